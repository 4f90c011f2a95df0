//! `ls`, `why`, `history`, `status`: nothing is changed by looking.

use super::{
    Desk, History, Image, Part, PeerStatus, Problem, State, Status, UpstreamStatus, Version, Why, tag_of,
    unknown,
};
use crate::budget;
use crate::clock;
use crate::config::OnMissing;
use crate::fetch::LinkState;
use crate::image::Catalogue;
use crate::image::Otherwise;
use crate::image::{Closure, closure};
use crate::mirror::outage_text;
use crate::oci::{Digest, Reference, Repository};
use crate::store::{StoreError, TagRecord};

impl Desk {
    pub(super) fn ls(&self) -> Result<Vec<Image>, Problem> {
        let mut images = Vec::new();
        let catalogue = self.catalogue()?;
        self.each_tag(|repository, tag, record| {
            if let Some(mut image) = self.image(format!("{repository}:{tag}"), record)? {
                let roots = record.candidates().into_iter();
                let stocked: Vec<_> =
                    roots.filter_map(|version| catalogue.find(repository, &version.digest)).collect();
                image.frees = catalogue.frees(&stocked);
                images.push(image);
            }
            Ok(())
        })?;
        Ok(images)
    }

    pub(super) fn why(&self, image: &Reference) -> Result<Why, Problem> {
        let repository = &image.repository;
        let record = match &image.tag {
            Some(tag) => self.store.tag(repository, tag)?,
            None => None,
        };
        if record.is_none() && image.digest.is_none() {
            return Err(unknown(image));
        }
        let record = record.unwrap_or_default();
        let offline = match &image.digest {
            Some(digest) => {
                self.closure(digest)?.is_complete().then(|| (digest.clone(), "digest".to_owned()))
            }
            None => self.served_offline(&record)?.map(|digest| (digest, "last-complete".to_owned())),
        };
        let shown = offline
            .as_ref()
            .map(|(digest, _)| digest)
            .or(image.digest.as_ref())
            .or(record.seen.as_ref().map(|seen| &seen.digest));
        let closure = shown.map(|digest| self.closure(digest)).transpose()?.unwrap_or_default();
        let part =
            |here| move |(digest, &bytes): (&Digest, &u64)| Part { digest: digest.clone(), bytes, here };
        let parts = closure.present.iter().map(part(true)).chain(closure.absent.iter().map(part(false)));
        Ok(Why {
            image: image.to_string(),
            seen: record.seen.map(|version| version.digest),
            complete: record.complete.map(|version| version.digest),
            rolled_back_to: record.rollback.map(|rollback| rollback.to),
            offline,
            platforms: self.config.platforms.clone(),
            parts: parts.collect(),
            upstream: self.upstream_words(repository)?,
            policy: self.policy_words(image),
        })
    }

    pub(super) fn history(&self, image: &Reference) -> Result<History, Problem> {
        let record = self.store.tag(&image.repository, tag_of(image)?)?.ok_or_else(|| unknown(image))?;
        let offline = self.served_offline(&record)?;
        let mut versions = Vec::new();
        let mut listed = record.candidates();
        listed.sort_by_key(|version| std::cmp::Reverse(version.n));
        for version in listed {
            versions.push(Version {
                digest: version.digest.clone(),
                noted: version.unix.map(clock::rfc3339),
                state: state(&self.closure(&version.digest)?),
                peer: version.peer,
                seen: record.seen.as_ref().is_some_and(|seen| seen.digest == version.digest),
                served_offline: offline.as_ref() == Some(&version.digest),
            });
        }
        Ok(History { image: image.to_string(), versions })
    }

    /// Everything on the disk, by image.
    pub(super) fn catalogue(&self) -> Result<Catalogue, Problem> {
        let busy = self.mirror.as_ref().map(|mirror| mirror.busy()).unwrap_or_default();
        Ok(Catalogue::take(&self.store, &self.config, &busy)?)
    }

    pub(super) fn status(&self) -> Result<Status, Problem> {
        let (mut complete, mut partial) = (0, 0);
        self.each_tag(|_, _, record| {
            if self.served_offline(record)?.is_some() {
                complete += 1
            } else {
                partial += 1
            }
            Ok(())
        })?;
        let (fills, parked) = self.mirror.as_ref().map_or((0, 0), |mirror| mirror.fill_counts());
        let mut upstreams = Vec::new();
        for upstream in &self.config.upstreams {
            let live = self.mirror.as_ref().and_then(|mirror| mirror.upstreams().find(&upstream.name));
            let state = match live {
                Some(live) => Some(match live.link() {
                    LinkState::NotAsked | LinkState::Up => "up".to_owned(),
                    LinkState::Slow { .. } => "slow".to_owned(),
                    LinkState::Down { .. } => outage_text(live),
                }),
                None => self.store.note(&upstream.outage_note(0))?.map(|cause| format!("was down: {cause}")),
            };
            upstreams.push(UpstreamStatus {
                name: upstream.name.to_string(),
                url: upstream.endpoints[0].url.clone(),
                state,
                bytes: live.map_or(0, |live| live.bytes()),
            });
        }
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            running: self.mirror.is_some(),
            uptime_seconds: self.mirror.is_some().then(|| self.opened.elapsed().as_secs()),
            data_dir: self.store.data_dir().display().to_string(),
            stored_bytes: self.store.stored_bytes(),
            blobs: self.store.blob_files()?.count() as u64,
            free_bytes: self.store.free_bytes()?,
            max_bytes: self.config.disk.max,
            next_to_go: self.next_to_go()?,
            images_complete: complete,
            images_partial: partial,
            fills: fills as u64,
            fills_parked: parked as u64,
            upstreams,
            peers: self.peers(),
            clock_trusted: clock::trusted_unix().is_some(),
        })
    }

    fn peers(&self) -> Vec<PeerStatus> {
        let Some(mirror) = &self.mirror else {
            let configured = self.config.kit.iter().flat_map(|kit| &kit.peers);
            return configured
                .map(|address| PeerStatus { address: address.to_string(), up: None, state: None })
                .collect();
        };
        let live = mirror.peers().into_iter().map(|peer| PeerStatus {
            address: peer.address.to_string(),
            up: Some(peer.up),
            state: Some(peer.text),
        });
        live.collect()
    }

    fn next_to_go(&self) -> Result<Option<(String, u64)>, Problem> {
        let catalogue = self.catalogue()?;
        let victims = catalogue.choose(1, Otherwise::Nothing);
        Ok(victims.first().map(|first| (first.words(), catalogue.frees(&victims))))
    }

    /// Visits every tag, in order, a step at a time.
    pub(super) fn each_tag(
        &self,
        mut visit: impl FnMut(&Repository, &crate::oci::Tag, &TagRecord) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        let mut last_repository: Option<String> = None;
        loop {
            let repositories = self.store.repositories(last_repository.as_deref(), budget::LISTING_STEP)?;
            let Some(last) = repositories.last() else { return Ok(()) };
            last_repository = Some(last.to_string());
            for repository in &repositories {
                let mut last_tag: Option<String> = None;
                loop {
                    let tags = self.store.tags(repository, last_tag.as_deref(), budget::LISTING_STEP)?;
                    let Some((last, _)) = tags.last() else { break };
                    last_tag = Some(last.to_string());
                    for (tag, record) in &tags {
                        visit(repository, tag, record)?;
                    }
                }
            }
        }
    }

    /// The version of a tag that would be served with the uplink gone.
    pub(super) fn served_offline(&self, record: &TagRecord) -> Result<Option<Digest>, StoreError> {
        for version in record.candidates() {
            if self.closure(&version.digest)?.is_complete() {
                return Ok(Some(version.digest.clone()));
            }
        }
        Ok(None)
    }

    pub(super) fn closure(&self, digest: &Digest) -> Result<Closure, StoreError> {
        closure(&self.store, &self.config.platforms, digest)
    }

    fn image(&self, name: String, record: &TagRecord) -> Result<Option<Image>, Problem> {
        let served = self.served_offline(record)?;
        let seen = record.seen.as_ref().map(|seen| seen.digest.clone());
        let newest = record.candidates().first().map(|version| version.digest.clone());
        let Some(digest) = served.clone().or(newest) else { return Ok(None) };
        let closure = self.closure(&digest)?;
        // A version that is whole, too, is not being waited for: a peer's word is newer than upstream's.
        let newer = match seen {
            Some(seen) if seen != digest && served.is_some() && record.rollback.is_none() => {
                (!self.closure(&seen)?.is_complete()).then_some(seen)
            }
            _ => None,
        };
        Ok(Some(Image {
            image: name,
            state: state(&closure),
            bytes: closure.present_bytes(),
            missing_bytes: closure.absent_bytes(),
            pinned: record.pinned,
            frees: 0,
            newer,
            digest,
        }))
    }

    fn upstream_words(&self, repository: &Repository) -> Result<String, Problem> {
        let registry = &repository.registry;
        if self.config.upstream(registry).is_none() {
            return Ok(format!("{registry} is not configured"));
        }
        let live = self.mirror.as_ref().and_then(|mirror| mirror.upstreams().find(registry));
        Ok(match live {
            Some(live) => match live.link() {
                LinkState::NotAsked | LinkState::Up => format!("{registry} can be reached"),
                LinkState::Slow { .. } => format!("{registry} is slow"),
                LinkState::Down { .. } => outage_text(live),
            },
            None => match self.store.note(&format!("down/{registry}"))? {
                Some(cause) => format!("{registry} could not be reached when the server ran last: {cause}"),
                None => "the server does not run".to_owned(),
            },
        })
    }

    fn policy_words(&self, image: &Reference) -> String {
        let Some(tag) = &image.tag else { return "a digest never changes".to_owned() };
        let policy = self.config.tags.policy(&image.repository, tag);
        let frozen = if policy.frozen { "; frozen: never asked for again once complete" } else { "" };
        let missing = match policy.on_missing {
            OnMissing::Pass => "passed on",
            OnMissing::Serve => "answered from the cache",
        };
        format!("revalidated after {:?}; upstream's 404 and 403 are {missing}{frozen}", policy.revalidate)
    }
}

pub(super) fn state(closure: &Closure) -> State {
    if closure.is_complete() { State::Complete } else { State::Partial }
}
