//! Blobs by digest: a hit on the disk, a fill that is begun or joined, or an uncached stream.
//!
//! A fill of another repository of the registry is joined, and left as soon as it serves badly. What is here and not for
//! the repository that is asked is fetched like what is absent.

use super::super::access::View;
use super::super::context::{Context, miss_wait, unavailable};
use super::super::fill::FillPool;
use super::super::progress::{Demand, Fill, Phase};
use super::super::proof::Proofs;
use super::super::questions::Questions;
use super::super::refusal::{Missing, Refusal};
use super::super::verify::Verifier;
use super::early::{WantedPart, part_ahead};
use super::named::NamedBlobs;
use super::source::{BlobSource, size_of};
use super::stream::Streams;
use super::{Lookup, judge, look_up};
use crate::auth::AccessClass;
use crate::budget;
use crate::fetch::Upstream;
use crate::oci::{Digest, Repository};
use crate::store::{Blob, ContentLink};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The result of a lookup on the disk and in the index.
enum Found {
    Here(Blob),
    /// It is not here, or not for this repository unless upstream sends it. The size that a manifest states.
    Absent(Option<u64>),
    /// Another repository of the registry holds it: upstream must confirm that this one does too.
    Unconfirmed,
}

/// Where a blob is fetched.
struct Source {
    upstream: Arc<Upstream>,
    class: AccessClass,
    /// What is known of its size may be used.
    named: bool,
}

/// Blobs.
pub(in crate::mirror) struct Blobs {
    pub(in crate::mirror) context: Arc<Context>,
    pub(in crate::mirror) questions: Arc<Questions>,
    pub(in crate::mirror) verifier: Arc<Verifier>,
    pub(in crate::mirror) fills: Arc<FillPool>,
    pub(in crate::mirror) streams: Arc<Streams>,
    pub(in crate::mirror) named: Arc<NamedBlobs>,
    pub(in crate::mirror) proofs: Arc<Proofs>,
}

impl Blobs {
    /// A blob by its digest. If it is not cached, this begins a fill or joins one.
    ///
    /// # Errors
    /// Upstream's own 404 and 401/403, and [`Refusal::Unavailable`] where it cannot be asked; [`Refusal::Busy`] if
    /// the queue for download slots is full.
    pub(in crate::mirror) async fn blob(
        &self,
        view: &View,
        digest: &Digest,
        wanted: WantedPart<'_>,
    ) -> Result<BlobSource, Refusal> {
        match self.found(view, digest, wanted).await? {
            // Of nothing no last piece can be held back until the hash is right.
            BlobSource::Fill { total: 0, .. } | BlobSource::Uncached { total: 0, .. }
                if *digest != Digest::of(digest.algorithm(), b"") =>
            {
                let registry = &view.registry;
                Err(Refusal::Unavailable(format!(
                    "{registry} offers nothing for {digest}, which is not empty"
                )))
            }
            source => Ok(source),
        }
    }

    async fn found(
        &self,
        view: &View,
        digest: &Digest,
        wanted: WantedPart<'_>,
    ) -> Result<BlobSource, Refusal> {
        let repository = &view.repository;
        let upstream = self.context.upstream(&repository.registry)?;
        let found = match self.look(view, digest).await? {
            Found::Here(blob) => self.verified(repository, digest, blob).await?,
            Found::Unconfirmed => {
                let blob = self.confirm(&upstream, repository, digest).await?;
                match self.verified(repository, digest, blob).await? {
                    Some(BlobSource::Hit(blob)) => Some(BlobSource::Confirmed(blob)),
                    found => found,
                }
            }
            Found::Absent(stated) => return self.fetch(&upstream, view, digest, stated, wanted).await,
        };
        match found {
            Some(source) => Ok(source),
            // It was corrupt, and is not here any more.
            None => {
                let stated = self.link(repository, digest).await?.and_then(|link| link.size);
                self.fetch(&upstream, view, digest, stated, wanted).await
            }
        }
    }

    /// Begins a fill or joins one. `stated`: the size that a manifest of the repository states.
    async fn fetch(
        &self,
        upstream: &Arc<Upstream>,
        view: &View,
        digest: &Digest,
        stated: Option<u64>,
        wanted: WantedPart<'_>,
    ) -> Result<BlobSource, Refusal> {
        let repository = &view.repository;
        if upstream.link().is_known_down() && self.context.live_kit(&repository.registry).is_none() {
            return Err(unavailable(upstream, digest));
        }
        let Source { upstream, class, named } = self.source(upstream, view, digest).await?;
        if class == AccessClass::Public
            && self.context.needs_proof(&repository.registry)
            && let Found::Here(blob) = self.look(view, digest).await?
            && let Some(source) = self.verified(repository, digest, blob).await?
        {
            return Ok(source);
        }
        let (upstream, stated) = (&upstream, stated.filter(|_| named));
        let stated = stated.or_else(|| self.named.size(repository, digest)).filter(|_| named);
        // What no verified manifest names is passed on and not kept, but for what has no length to be promised, and never what
        // is not known to be shown to everybody: the login would fetch it.
        if !named || stated.is_none() && self.context.store.has_index() {
            let cause = "no manifest that is here names it";
            let from = (Arc::clone(upstream), class);
            let streamed = self.streams.stream_uncached(from, repository, digest, None, cause).await?;
            if let Some((total, pieces)) = streamed {
                return Ok(BlobSource::Uncached { total, pieces });
            }
            if !named {
                let text = format!("{} states no size for {digest}", repository.registry);
                return Err(Refusal::Unavailable(text));
            }
        }
        let (fill, joined) = self.fills.begin(repository, (digest, class), stated, Demand::Client)?;
        if part_ahead(&fill, stated, wanted).is_some() {
            self.fills.hurry(&fill);
        }
        if let Some(pieces) = self.streams.early(upstream, repository, &fill, stated, wanted).await
            && let Some(total) = stated
        {
            return Ok(BlobSource::Early { fill, total, pieces });
        }
        let trusted = fill.repository == *repository && (stated.is_none() || stated == fill.stated());
        if trusted {
            return self.follow_again(fill, joined, repository, stated, miss_wait()).await;
        }
        match self.join(upstream, fill, repository, digest, stated).await? {
            Some(source) => Ok(source),
            None => {
                let (fill, joined) = self.fills.begin_apart(repository, (digest, class), stated)?;
                self.follow(fill, joined, repository, stated, miss_wait()).await
            }
        }
    }

    /// Joins a fill of another repository of the registry, or one that knows another size. `None`: it is not fit for that,
    /// and this repository must have one of its own. A size is believed only from a manifest of this repository or from
    /// upstream's answer for it.
    async fn join(
        &self,
        upstream: &Arc<Upstream>,
        fill: Arc<Fill>,
        repository: &Repository,
        digest: &Digest,
        stated: Option<u64>,
    ) -> Result<Option<BlobSource>, Refusal> {
        let known = match fill.key.class {
            AccessClass::Public => stated,
            AccessClass::Private | AccessClass::Unproven => {
                let link = self.link(repository, digest).await?;
                if link.is_some_and(|link| link.held) && stated.is_some() {
                    stated
                } else {
                    let answered = self.ask_size(upstream, repository, digest).await?;
                    self.hold_when_proven(&fill, repository, digest).await?;
                    stated.or(answered)
                }
            }
        };
        if known.is_none() || self.is_bad_for(repository, &fill, Duration::ZERO) {
            return Ok(None);
        }
        match self.follow(fill, true, repository, stated, budget::JOIN_WAIT).await {
            Ok(BlobSource::Fill { total, .. }) if Some(total) != known => Ok(None),
            Ok(source) => Ok(Some(source)),
            // The failure concerns the other repository; this one may still succeed.
            Err(_) => Ok(None),
        }
    }

    /// The same for a fill of the repository itself. One that had to begin again is followed from there.
    async fn follow_again(
        &self,
        fill: Arc<Fill>,
        joined: bool,
        repository: &Repository,
        stated: Option<u64>,
        wait: Duration,
    ) -> Result<BlobSource, Refusal> {
        let began = Arc::clone(&fill);
        match self.follow(fill, joined, repository, stated, wait).await {
            Err(refusal) => match self.fills.find(repository, began.digest(), began.key.class) {
                Some(next) if !Arc::ptr_eq(&next, &began) && next.repository == *repository => {
                    self.follow(next, joined, repository, stated, wait).await
                }
                _ => Err(refusal),
            },
            found => found,
        }
    }

    /// Waits until a fill can be served.
    async fn follow(
        &self,
        fill: Arc<Fill>,
        joined: bool,
        repository: &Repository,
        stated: Option<u64>,
        wait: Duration,
    ) -> Result<BlobSource, Refusal> {
        let digest = fill.digest();
        match size_of(&fill, repository, wait).await {
            Ok(Some(total)) => Ok(BlobSource::Fill { fill, total, joined }),
            // It has ended, and its file has all of the blob, whatever becomes of that.
            Ok(None) => match fill.follow().borrow().total {
                Some(total) => Ok(BlobSource::Fill { fill: Arc::clone(&fill), total, joined }),
                None => Err(Refusal::gone(digest)),
            },
            Err(Refusal::NotStored(cause)) => {
                let from = (self.context.upstream(&repository.registry)?, fill.key.class);
                let streamed = self.streams.stream_uncached(from, repository, digest, stated, &cause).await?;
                let (total, pieces) = streamed.ok_or(Refusal::NotStored(cause))?;
                Ok(BlobSource::Uncached { total, pieces })
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// Whether a client of `repository`, which has `waited` for the next byte of a fill, is better served by one of its own.
    pub(in crate::mirror) fn is_bad_for(
        &self,
        repository: &Repository,
        fill: &Fill,
        waited: Duration,
    ) -> bool {
        if !fill.is_foreign_to(repository) {
            return false;
        }
        let phase = fill.progress.borrow().phase.clone();
        match phase {
            Phase::Queued => waited >= budget::JOIN_WAIT && self.fills.has_slot_for(repository),
            Phase::Running => fill.is_slow(Instant::now(), self.context.config.now().fetch.stall_timeout),
            // With the link down this repository cannot be asked either.
            Phase::Parked(_) => self
                .context
                .upstreams
                .find(&repository.registry)
                .is_some_and(|upstream| !upstream.link().is_known_down()),
            Phase::Failed(refusal) => !matches!(refusal, Refusal::NotStored(_)),
            Phase::Done => false,
        }
    }

    /// A fill of this repository, for a client that the fill of another one has served badly.
    pub(in crate::mirror) async fn own_fill(
        &self,
        repository: &Repository,
        fill: &Fill,
    ) -> Option<Arc<Fill>> {
        if !fill.is_foreign_to(repository) {
            return None;
        }
        // What waits for its turn is not to blame.
        if fill.progress.borrow().phase != Phase::Queued {
            self.fills.served_badly(fill);
        }
        let digest = fill.digest();
        let stated = self.link(repository, digest).await.ok()?.and_then(|link| link.size);
        let stated = stated.or_else(|| self.named.size(repository, digest));
        let begun = self.fills.begin_apart(repository, (digest, fill.key.class), stated);
        log::info!("{digest} of {} does not go on; {repository} is asked for it", fill.repository);
        begun
            .inspect_err(|refusal| log::warn!("{digest} of {repository}: {refusal}"))
            .ok()
            .map(|(fill, _)| fill)
    }

    /// The size of a blob, without fetching it, and whether it is here.
    ///
    /// # Errors
    /// As [`Blobs::blob`].
    pub(in crate::mirror) async fn size(&self, view: &View, digest: &Digest) -> Result<(u64, bool), Refusal> {
        let repository = &view.repository;
        let upstream = self.context.upstream(&repository.registry)?;
        let stated = match self.look(view, digest).await? {
            Found::Here(blob) => return Ok((blob.size, true)),
            // Upstream was asked for it, as for what is not here.
            Found::Unconfirmed => {
                return Ok((self.confirm(&upstream, repository, digest).await?.size, false));
            }
            Found::Absent(stated) => stated,
        };
        if upstream.link().is_known_down() {
            return Err(unavailable(&upstream, digest));
        }
        let Source { upstream, class, named } = self.source(&upstream, view, digest).await?;
        let fill = self.fills.find(repository, digest, class).filter(|fill| fill.repository == *repository);
        if let Some(total) = fill.and_then(|fill| fill.follow().borrow().total) {
            return Ok((total, false));
        }
        let answered = self.ask_size(&upstream, repository, digest).await?;
        // What a verified manifest says is more than what a HEAD does.
        let stated = stated.or_else(|| self.named.size(repository, digest)).filter(|_| named);
        match stated.or(answered) {
            Some(size) => Ok((size, false)),
            None => Err(Refusal::Unavailable(format!("{} states no size for {digest}", repository.registry))),
        }
    }

    /// Where a blob is fetched for a view. Where everybody has only what is shown to everybody, the registry must show what
    /// names it; else it is asked as everybody, and its answer is theirs.
    async fn source(
        &self,
        upstream: &Arc<Upstream>,
        view: &View,
        digest: &Digest,
    ) -> Result<Source, Refusal> {
        let registry = &view.repository.registry;
        let Some(anonymous) = upstream.anonymous() else {
            let class = self.context.class_of(registry);
            return Ok(Source { upstream: Arc::clone(upstream), class, named: true });
        };
        let (proofs, twin) = (Arc::clone(&self.proofs), Arc::clone(anonymous));
        let (name, wanted) = (view.repository.clone(), digest.clone());
        let ask = move |_: &Upstream| proofs.blob_shown(&twin, &name, &wanted);
        let shown = self.questions.ask(upstream, &view.name.to_string(), ask).await?;
        match shown {
            Ok(true) => {
                Ok(Source { upstream: Arc::clone(upstream), class: AccessClass::Public, named: true })
            }
            _ if view.clearance.private => {
                Ok(Source { upstream: Arc::clone(upstream), class: AccessClass::Private, named: true })
            }
            Ok(false) => {
                Ok(Source { upstream: Arc::clone(anonymous), class: AccessClass::Public, named: false })
            }
            Err(failure) => Err(Refusal::from_failure(&failure, Missing::Blob)),
        }
    }

    /// Looks for a blob, and for the stated size of one that is not here.
    async fn look(&self, view: &View, digest: &Digest) -> Result<Found, Refusal> {
        // Most blobs are public and their folder entry is in memory: then no other thread is needed.
        let opened = match self.context.store.open_blob_now(digest) {
            Some(blob) if blob.is_public() => return Ok(Found::Here(blob)),
            opened => opened,
        };
        let (wanted, name) = (digest.clone(), view.clone());
        let look = move |context: &Context| {
            let found = match opened {
                Some(blob) => judge(context, &name, &wanted, blob),
                None => look_up(context, &name, &wanted),
            };
            Ok(match found? {
                Lookup::Here(blob) => Found::Here(blob),
                Lookup::Unproven if context.held_in_registry(&name.registry, &wanted)? => Found::Unconfirmed,
                Lookup::Unproven | Lookup::Absent => {
                    Found::Absent(context.known_link(&name, &wanted)?.and_then(|link| link.size))
                }
            })
        };
        self.context.blocking(look).await
    }

    async fn link(&self, repository: &Repository, digest: &Digest) -> Result<Option<ContentLink>, Refusal> {
        let (name, wanted) = (repository.clone(), digest.clone());
        self.context.blocking(move |context| context.known_link(&name, &wanted)).await
    }

    /// Serves a blob from the disk; an unverified one is hashed first. `None`: it was corrupt and is now in quarantine.
    async fn verified(
        &self,
        repository: &Repository,
        digest: &Digest,
        blob: Blob,
    ) -> Result<Option<BlobSource>, Refusal> {
        if !blob.unverified {
            self.context.store.touch(digest);
            return Ok(Some(BlobSource::Hit(blob)));
        }
        let wanted = digest.clone();
        if blob.size <= budget::RECHECK_FIRST_BYTES {
            let verifier = Arc::clone(&self.verifier);
            let sound = self.context.blocking(move |_| verifier.is_sound(&wanted)).await?;
            return Ok(sound.then_some(BlobSource::Hit(blob)));
        }
        let total = blob.size;
        // Of its own class, so that nobody joins it who may not see the blob.
        let key = self.fills.key(repository, digest, blob.class);
        let (verifier, name) = (Arc::clone(&self.verifier), repository.clone());
        let begun = self.context.blocking(move |_| Ok(verifier.begin(&key, &name, blob))).await?;
        if let Some(fill) = begun? {
            return Ok(Some(BlobSource::Fill { fill, total, joined: false }));
        }
        // Another request's check has just ended.
        let again = self.context.blocking(move |context| context.store.open_blob(&wanted)).await?;
        Ok(again.map(BlobSource::Hit))
    }

    /// Asks upstream whether this repository holds private content too that another one of the registry holds.
    async fn confirm(
        &self,
        upstream: &Arc<Upstream>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Blob, Refusal> {
        if upstream.link().is_known_down() {
            return Err(unavailable(upstream, digest));
        }
        self.ask_size(upstream, repository, digest).await?;
        self.hold(repository, digest).await?;
        let wanted = digest.clone();
        let blob = self.context.blocking(move |context| context.store.open_blob(&wanted)).await?;
        blob.ok_or_else(|| Refusal::gone(digest))
    }

    /// The registry says that this repository has what a fill brings to another: at once where that is known of the registry,
    /// else once the bytes of the fill have proved that it has the content at all.
    async fn hold_when_proven(
        &self,
        fill: &Fill,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<(), Refusal> {
        let (registry, wanted) = (repository.registry.clone(), digest.clone());
        let known = move |context: &Context| context.held_in_registry(&registry, &wanted);
        if self.context.blocking(known).await? || !fill.add_holder(repository) {
            return self.hold(repository, digest).await;
        }
        Ok(())
    }

    /// Notes that upstream holds private content in this repository.
    async fn hold(&self, repository: &Repository, digest: &Digest) -> Result<(), Refusal> {
        let (name, wanted, fills) = (repository.clone(), digest.clone(), Arc::clone(&self.fills));
        let note = move |context: &Context| {
            if let Err(problem) = context.store.hold(&name, &wanted) {
                log::warn!("{name} holds {wanted}, which could not be saved and is asked again: {problem}");
            }
            fills.announce(&name, &wanted);
            Ok(())
        };
        self.context.blocking(note).await
    }

    /// The size that upstream states for a blob of a repository.
    async fn ask_size(
        &self,
        upstream: &Arc<Upstream>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<u64>, Refusal> {
        let (name, wanted) = (repository.name.clone(), digest.clone());
        let of = repository.name.to_string();
        let answer =
            self.questions.ask(upstream, &of, move |upstream| upstream.head_blob(&name, &wanted)).await?;
        answer.map_err(|failure| Refusal::from_failure(&failure, Missing::Blob))
    }
}
