//! Blobs by digest: a hit on the disk, a fill that is begun or joined, or an uncached stream.

use super::super::context::{Context, unavailable};
use super::super::fill::{FillPool, download_failed};
use super::super::progress::{Demand, Fill, Phase};
use super::super::questions::Questions;
use super::super::refusal::{Missing, Refusal};
use super::super::verify::Verifier;
use super::named::NamedBlobs;
use super::stream::{Pieces, Streams};
use super::{Lookup, judge, look_up};
use crate::auth::AccessClass;
use crate::budget;
use crate::fetch::Upstream;
use crate::oci::{Digest, Repository};
use crate::store::Blob;
use std::sync::Arc;

/// A blob that can be served.
#[derive(Debug)]
pub enum BlobSource {
    /// It is complete.
    Hit(Blob),
    /// It is growing.
    Fill {
        /// The download.
        fill: Arc<Fill>,
        /// Bytes that it will have.
        total: u64,
        /// Another request began it.
        joined: bool,
    },
    /// It is streamed to this client only and not stored.
    Uncached {
        /// Bytes that it has.
        total: u64,
        /// The pieces, from the first byte on.
        pieces: Pieces,
    },
}

/// The result of a lookup on the disk and in the index.
enum Found {
    Here(Blob),
    /// It is not here. The size that a manifest states.
    Absent(Option<u64>),
    /// It is here, but its upstream must confirm that this repository holds it.
    Unproven,
}

/// Blobs.
pub(in crate::mirror) struct Blobs {
    pub(in crate::mirror) context: Arc<Context>,
    pub(in crate::mirror) questions: Arc<Questions>,
    pub(in crate::mirror) verifier: Arc<Verifier>,
    pub(in crate::mirror) fills: Arc<FillPool>,
    pub(in crate::mirror) streams: Arc<Streams>,
    pub(in crate::mirror) named: Arc<NamedBlobs>,
}

impl Blobs {
    /// A blob by its digest. If it is not cached, this begins a fill or joins one.
    ///
    /// # Errors
    /// Upstream's own 404 and 401/403, and [`Refusal::Unavailable`] where it cannot be asked; [`Refusal::Busy`] if
    /// the queue for download slots is full.
    pub(in crate::mirror) async fn blob(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<BlobSource, Refusal> {
        let upstream = self.context.upstream(&repository.registry)?;
        let (found, stated) = match self.look(repository, digest).await? {
            Found::Here(blob) => (Some(blob), None),
            Found::Unproven => (Some(self.confirm(&upstream, repository, digest).await?), None),
            Found::Absent(stated) => (None, stated),
        };
        let stated = match found {
            None => stated,
            Some(blob) => match self.verified(repository, digest, blob).await? {
                Some(source) => return Ok(source),
                // It was corrupt, and is not here any more.
                None => self.stated(repository, digest).await?,
            },
        };
        if upstream.link().is_known_down() && self.context.live_kit(&repository.registry).is_none() {
            return Err(unavailable(&upstream, digest));
        }
        let stated = stated.or_else(|| self.named.size(repository, digest));
        // What no verified manifest names is passed on and not kept, but for what has no length to be promised.
        if stated.is_none() && self.context.store.has_index() {
            let cause = "no manifest that is here names it";
            let streamed = self.streams.stream_uncached(repository, digest, None, cause).await?;
            if let Some((total, pieces)) = streamed {
                return Ok(BlobSource::Uncached { total, pieces });
            }
        }
        for again in [true, false] {
            let (fill, joined) = self.fills.begin(repository, digest, stated, Demand::Client)?;
            let of_another = fill.repository != *repository;
            if of_another && fill.key.class != AccessClass::Public {
                return Err(Refusal::Busy(format!(
                    "{digest} is being fetched for another repository; retry"
                )));
            }
            match size_of(&fill, repository, digest).await {
                Ok(Some(total)) => return Ok(BlobSource::Fill { fill, total, joined }),
                Ok(None) => break,
                Err(Refusal::NotStored(cause)) => {
                    let streamed = self.streams.stream_uncached(repository, digest, stated, &cause).await?;
                    let (total, pieces) = streamed.ok_or(Refusal::NotStored(cause))?;
                    return Ok(BlobSource::Uncached { total, pieces });
                }
                // The failure concerns the other repository; this one may still succeed.
                Err(_) if of_another && again => {}
                Err(refusal) => return Err(refusal),
            }
        }
        // The fill has ended, so the blob is on the disk now. Whether this repository holds it must be checked again.
        match self.look(repository, digest).await? {
            Found::Here(blob) => Ok(BlobSource::Hit(blob)),
            Found::Unproven => self.confirm(&upstream, repository, digest).await.map(BlobSource::Hit),
            Found::Absent(_) => Err(Refusal::not_here(Missing::Blob, digest)),
        }
    }

    /// The size of a blob, without fetching it, and whether it is here.
    ///
    /// # Errors
    /// As [`Blobs::blob`].
    pub(in crate::mirror) async fn size(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<(u64, bool), Refusal> {
        let upstream = self.context.upstream(&repository.registry)?;
        match self.look(repository, digest).await? {
            Found::Here(blob) => return Ok((blob.size, true)),
            Found::Unproven => {
                return Ok((self.confirm(&upstream, repository, digest).await?.size, true));
            }
            Found::Absent(_) => {}
        }
        let fill = self.fills.find(repository, digest).filter(|fill| fill.repository == *repository);
        if let Some(total) = fill.and_then(|fill| fill.follow().borrow().total) {
            return Ok((total, false));
        }
        if upstream.link().is_known_down() {
            return Err(unavailable(&upstream, digest));
        }
        match self.ask_size(&upstream, repository, digest).await? {
            Some(size) => Ok((size, false)),
            None => Err(Refusal::Unavailable(format!("{} states no size for {digest}", repository.registry))),
        }
    }

    /// Looks for a blob, and for the stated size of one that is not here.
    async fn look(&self, repository: &Repository, digest: &Digest) -> Result<Found, Refusal> {
        // Most blobs are public and their folder entry is in memory: then no other thread is needed.
        let opened = match self.context.store.open_blob_now(digest) {
            Some(blob) if !blob.private => return Ok(Found::Here(blob)),
            opened => opened,
        };
        let (wanted, name) = (digest.clone(), repository.clone());
        let look = move |context: &Context| {
            let found = match opened {
                Some(blob) => judge(context, &name, &wanted, blob),
                None => look_up(context, &name, &wanted),
            };
            Ok(match found? {
                Lookup::Here(blob) => Found::Here(blob),
                Lookup::Unproven => Found::Unproven,
                Lookup::Absent => {
                    Found::Absent(context.known_link(&name, &wanted)?.and_then(|link| link.size))
                }
            })
        };
        self.context.blocking(look).await
    }

    async fn stated(&self, repository: &Repository, digest: &Digest) -> Result<Option<u64>, Refusal> {
        let (name, wanted) = (repository.clone(), digest.clone());
        let link = self.context.blocking(move |context| context.known_link(&name, &wanted)).await?;
        Ok(link.and_then(|link| link.size))
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
        let key = self.fills.key(repository, digest);
        let (verifier, name) = (Arc::clone(&self.verifier), repository.clone());
        let begun = self.context.blocking(move |_| Ok(verifier.begin(&key, &name, blob))).await?;
        if let Some(fill) = begun? {
            return Ok(Some(BlobSource::Fill { fill, total, joined: false }));
        }
        // Another request's check has just ended.
        let again = self.context.blocking(move |context| context.store.open_blob(&wanted)).await?;
        Ok(again.map(BlobSource::Hit))
    }

    /// Asks this repository's upstream whether it holds private content that is on the disk.
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
        let class = self.context.class_of(&repository.registry);
        let (name, wanted) = (repository.clone(), digest.clone());
        let note = move |context: &Context| {
            let noted = match class {
                AccessClass::Public => context.store.make_public(&wanted),
                AccessClass::Private | AccessClass::Unproven => context.store.hold(&name, &wanted),
            };
            if let Err(problem) = noted {
                log::warn!(
                    "{name} holds {wanted}, but that could not be saved and is asked again next time: {problem}"
                );
            }
            context.store.open_blob(&wanted)
        };
        let blob = self.context.blocking(note).await?;
        blob.ok_or_else(|| Refusal::not_here(Missing::Blob, digest))
    }

    /// The size that upstream states for a blob of a repository.
    async fn ask_size(
        &self,
        upstream: &Arc<Upstream>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<u64>, Refusal> {
        let (name, wanted) = (repository.name.clone(), digest.clone());
        let answer = self.questions.ask(upstream, move |upstream| upstream.head_blob(&name, &wanted)).await?;
        answer.map_err(|failure| Refusal::from_failure(&failure, Missing::Blob))
    }
}

/// Waits until a fill knows its size. `None`: it is done. While the fill is queued behind others for long, the size that
/// the manifest states is used: then the client waits for bytes and not for a header.
async fn size_of(fill: &Arc<Fill>, repository: &Repository, digest: &Digest) -> Result<Option<u64>, Refusal> {
    let mut follow = fill.follow();
    let known = follow.wait_for(|progress| {
        progress.total.is_some() && progress.phase == Phase::Running
            || !matches!(progress.phase, Phase::Queued | Phase::Running)
    });
    let Ok(known) = tokio::time::timeout(budget::MISS_WAIT_MAX, known).await else {
        return match (fill.stated(), &fill.follow().borrow().phase) {
            (Some(stated), Phase::Queued) => Ok(Some(stated)),
            (_, Phase::Queued) => Err(Streams::busy()),
            _ => Err(Refusal::Unavailable(format!("{} is slow to offer {digest}", repository.registry))),
        };
    };
    let progress = known.map_err(|_| download_failed())?.clone();
    match progress.phase {
        Phase::Done => Ok(None),
        Phase::Queued | Phase::Running => Ok(progress.total),
        Phase::Parked(cause) => Err(Refusal::Unavailable(format!("{cause}; {digest} is not cached"))),
        Phase::Failed(refusal) => Err(refusal),
    }
}
