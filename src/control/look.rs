//! `ls`, `why`, `history`, `status`: commands that change nothing. Failure is the store's.

use super::{
    Admin, AdminRecord, AnswerSink, Completeness, HistoryReport, ImageRow, PartRow, Problem, StatusReport,
    UpstreamRow, VersionRow, WhyReport, unknown,
};
use crate::clock;
use crate::config::OnMissing;
use crate::fetch::LinkState;
use crate::image::{Closures, Summary, each_repository, each_tag, offline, served};
use crate::oci::{Digest, Reference, RegistryName, Repository, Tag};
use crate::report::UpstreamState;
use crate::store::{StoreError, TagRecord};

impl Admin {
    pub(super) fn ls(&self, answer: &mut AnswerSink<'_>) -> Result<(), Problem> {
        let (catalogue, closures) = (self.catalogue()?, self.closures());
        each_repository(&self.store, |repository| {
            each_tag(&self.store, repository, |tag, record| {
                if let Some(mut image) = image(&closures, repository, tag, record)? {
                    let roots = record.candidates().into_iter();
                    let stocked: Vec<_> =
                        roots.filter_map(|version| catalogue.find(repository, &version.digest)).collect();
                    image.frees = catalogue.frees(&stocked);
                    answer(AdminRecord::Image(image))?;
                }
                Ok(())
            })
        })
    }

    pub(super) fn why(&self, image: &Reference, answer: &mut AnswerSink<'_>) -> Result<(), Problem> {
        let record = match &image.tag {
            Some(tag) => self.store.tag(&image.repository, tag)?,
            None => None,
        };
        if record.is_none() && image.digest.is_none() {
            return Err(unknown(image));
        }
        let closures = self.closures();
        let offline = offline(&closures, &self.config, image, record.as_ref())?
            .map(|(digest, rule)| (digest, rule.to_owned()));
        let record = record.unwrap_or_default();
        let shown = offline
            .as_ref()
            .map(|(digest, _)| digest)
            .or(image.digest.as_ref())
            .or(record.seen.as_ref().map(|seen| &seen.digest));
        let closure =
            shown.map(|digest| closures.of(&image.repository, digest)).transpose()?.unwrap_or_default();
        answer(AdminRecord::Why(Box::new(WhyReport {
            image: image.to_string(),
            seen: record.seen.map(|version| version.digest),
            complete: record.complete.map(|version| version.digest),
            rolled_back_to: record.rollback.map(|rollback| rollback.to),
            offline,
            platforms: self.config.platforms.clone(),
            parts: Vec::new(),
            upstream: self.upstream_text(&image.repository.registry),
            policy: self.policy_text(image),
        })))?;
        let part =
            |(digest, bytes, here): (Digest, u64, bool)| AdminRecord::Part(PartRow { digest, bytes, here });
        let present = closure.present.into_iter().map(|(digest, bytes)| (digest, bytes, true));
        let absent = closure.absent.into_iter().map(|(digest, bytes)| (digest, bytes, false));
        Ok(present.chain(absent).map(part).try_for_each(answer)?)
    }

    pub(super) fn history(&self, image: &Reference, answer: &mut AnswerSink<'_>) -> Result<(), Problem> {
        let (repository, _, record) = self.tag(image)?;
        let closures = self.closures();
        let offline = served(&closures, repository, &record)?.map(|(version, _)| &version.digest);
        answer(AdminRecord::History(HistoryReport { image: image.to_string(), versions: Vec::new() }))?;
        let mut listed = record.candidates();
        listed.sort_by_key(|version| std::cmp::Reverse(version.n));
        for version in listed {
            answer(AdminRecord::Version(VersionRow {
                digest: version.digest.clone(),
                noted: version.unix.map(clock::rfc3339),
                state: completeness(closures.summary(repository, &version.digest)?),
                peer: version.is_from_peer(),
                seen: record.seen.as_ref().is_some_and(|seen| seen.digest == version.digest),
                served_offline: offline == Some(&version.digest),
            }))?;
        }
        Ok(())
    }

    pub(super) fn status(&self) -> Result<StatusReport, Problem> {
        let (report, running) = (self.snapshot(), self.live.is_some());
        let images = self.images.report(&self.store, &self.config, self.busy())?;
        let upstreams = report.upstreams.into_iter().map(|upstream| UpstreamRow {
            state: match upstream.state {
                UpstreamState::Live(LinkState::Up | LinkState::NotAsked, _) => Some("up".to_owned()),
                UpstreamState::Live(LinkState::Slow { .. }, _) => Some("slow".to_owned()),
                UpstreamState::Live(LinkState::Failing { .. } | LinkState::Down { .. }, text) => Some(text),
                UpstreamState::WasDown(cause) => Some(format!("was down: {cause}")),
                UpstreamState::Unknown => None,
            },
            name: upstream.name.to_string(),
            url: upstream.url,
            bytes: upstream.bytes,
        });
        let room = self.store.room()?;
        Ok(StatusReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            running,
            uptime_seconds: running.then(|| self.opened.elapsed().as_secs()),
            data_dir: self.store.data_dir().display().to_string(),
            stored_bytes: report.stored_bytes,
            blobs: images.blobs,
            free_bytes: room.free,
            min_free_bytes: self.config.disk.min_free.of(room.total),
            max_bytes: report.max_bytes,
            next_to_go: images.next_to_go,
            images_complete: images.complete,
            images_partial: images.partial,
            wanted: images.wanted,
            wanted_absent: images.wanted_absent,
            fills: report.fills,
            fills_parked: report.fills_parked,
            upstreams: upstreams.collect(),
            peers: report.peers,
            clock_trusted: report.clock_trusted,
        })
    }

    fn upstream_text(&self, registry: &RegistryName) -> String {
        let upstream = self.snapshot().upstreams.into_iter().find(|upstream| upstream.name == *registry);
        match upstream.map(|upstream| upstream.state) {
            None => format!("{registry} is not configured"),
            Some(UpstreamState::Live(LinkState::Up, _)) => format!("{registry} can be reached"),
            Some(UpstreamState::Live(LinkState::NotAsked, _)) => {
                format!("{registry} has not been asked since the server started")
            }
            Some(UpstreamState::Live(LinkState::Slow { .. }, _)) => format!("{registry} is slow"),
            Some(UpstreamState::Live(LinkState::Failing { .. } | LinkState::Down { .. }, text)) => text,
            Some(UpstreamState::WasDown(cause)) => {
                format!("{registry} could not be reached when the server ran last: {cause}")
            }
            Some(UpstreamState::Unknown) => "the server does not run".to_owned(),
        }
    }

    fn policy_text(&self, image: &Reference) -> String {
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

fn image(
    closures: &Closures<'_>,
    repository: &Repository,
    tag: &Tag,
    record: &TagRecord,
) -> Result<Option<ImageRow>, StoreError> {
    let served = served(closures, repository, record)?;
    let is_served = served.is_some();
    let (digest, summary) = match served {
        Some((version, summary)) => (version.digest.clone(), summary),
        None => {
            let Some(newest) = record.candidates().first().map(|version| version.digest.clone()) else {
                return Ok(None);
            };
            let summary = closures.summary(repository, &newest)?;
            (newest, summary)
        }
    };
    // If upstream's version is complete too, the served one is a peer's, which is newer.
    let newer = match &record.seen {
        Some(seen) if seen.digest != digest && is_served && record.rollback.is_none() => {
            (!closures.summary(repository, &seen.digest)?.complete).then(|| seen.digest.clone())
        }
        _ => None,
    };
    Ok(Some(ImageRow {
        image: format!("{repository}:{tag}"),
        state: completeness(summary),
        bytes: summary.present_bytes,
        missing_bytes: summary.absent_bytes,
        pinned: record.pinned,
        frees: 0,
        newer,
        digest,
    }))
}

fn completeness(summary: Summary) -> Completeness {
    if summary.complete { Completeness::Complete } else { Completeness::Partial }
}
