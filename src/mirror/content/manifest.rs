//! Manifests by digest: from memory, the disk, upstream or a peer.
//!
//! A manifest is asked for once however many clients wait. What upstream gave is hashed, checked to be what its media type
//! says, stored, and announced; what the disk does not take is passed on from memory.

use super::super::context::{Arrivals, Context, outage_text, unavailable};
use super::super::counters::ByteSource;
use super::super::questions::{Questions, question_failed, queue_full};
use super::super::refusal::{Missing, Refusal};
use super::super::reserve::Reserve;
use super::super::single_flight::{SingleFlight, Wait};
use super::super::verify::Verifier;
use super::small::{SmallManifest, SmallManifests};
use super::stream::{StreamSlot, Streams};
use super::{Lookup, look_up};
use crate::auth::AccessClass;
use crate::budget;
use crate::fetch::{FetchedManifest, Upstream};
use crate::kit::Kit;
use crate::oci::{Digest, Manifest, ManifestRef, Repository};
use crate::store::{Blob, Stamp, StoreError};
use bytes::Bytes;
use std::io::Read;
use std::sync::Arc;

/// A manifest that can be served.
#[derive(Debug)]
pub struct ManifestAnswer {
    /// Its content, and the media type to serve it with.
    pub content: ManifestContent,
    /// Where it was when it was asked for.
    pub source: ByteSource,
}

/// The content of a manifest.
#[derive(Debug)]
pub enum ManifestContent {
    /// It is public, small, and in memory.
    Small(SmallManifest),
    /// It is on the disk.
    Stored {
        /// The media type.
        media_type: String,
        /// The content.
        blob: Blob,
    },
    /// The disk would not take it.
    NotStored {
        /// The media type.
        media_type: String,
        /// The content.
        bytes: Bytes,
    },
}

/// How a question for a manifest ended well.
#[derive(Debug, Clone)]
pub(in crate::mirror) struct ManifestOutcome {
    source: ByteSource,
    held: Held,
}

/// Where the manifest is that a question has brought.
#[derive(Debug, Clone)]
enum Held {
    OnDisk,
    Small(SmallManifest),
    /// The disk would not take it. `None`: there was no slot to pass it on either.
    NotStored {
        media_type: String,
        bytes: Bytes,
        slot: Option<StreamSlot>,
    },
}

type ManifestWait = Wait<Result<ManifestOutcome, Refusal>>;
type ManifestFlights = SingleFlight<(Repository, Digest), Result<ManifestOutcome, Refusal>>;

/// The small manifests that are in memory, and the questions for manifests that are under way.
#[derive(Default)]
pub(in crate::mirror) struct AskedManifests {
    small: SmallManifests,
    upstream: ManifestFlights,
    peers: ManifestFlights,
}

/// Manifests.
pub(in crate::mirror) struct Manifests {
    pub(in crate::mirror) context: Arc<Context>,
    pub(in crate::mirror) questions: Arc<Questions>,
    pub(in crate::mirror) reserve: Arc<Reserve>,
    pub(in crate::mirror) verifier: Arc<Verifier>,
    pub(in crate::mirror) streams: Arc<Streams>,
    pub(in crate::mirror) arrivals: Arc<dyn Arrivals>,
    pub(in crate::mirror) asked: AskedManifests,
}

impl Manifests {
    /// A manifest by its digest.
    ///
    /// # Errors
    /// Upstream's own 404 and 401/403, and [`Refusal::Unavailable`] where it cannot be asked.
    pub(in crate::mirror) async fn manifest(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<ManifestAnswer, Refusal> {
        let upstream = self.context.upstream(&repository.registry)?;
        let stamp = self.context.store.stamp();
        if let Some(content) = self.here(repository, digest, stamp).await? {
            self.context.store.touch(digest);
            return Ok(ManifestAnswer { content, source: ByteSource::Cache });
        }
        if upstream.link().is_known_down() {
            let wait = self.begin_with_peers(&upstream, repository, digest)?;
            return self.wait(wait, repository, digest).await;
        }
        let wait = self.begin(&upstream, repository, digest, stamp)?;
        self.wait(wait, repository, digest).await
    }

    /// A manifest by its digest, if it is here.
    ///
    /// # Errors
    /// The store's.
    pub(in crate::mirror) async fn cached(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<ManifestAnswer>, Refusal> {
        let content = self.here(repository, digest, self.context.store.stamp()).await?;
        Ok(content.map(|content| {
            self.context.store.touch(digest);
            ManifestAnswer { content, source: ByteSource::Cache }
        }))
    }

    /// What is here of a manifest; in memory if its stamp is still that of the store.
    async fn here(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
        stamp: Option<Stamp>,
    ) -> Result<Option<ManifestContent>, Refusal> {
        let key = (repository.clone(), digest.clone());
        if let Some(manifest) = stamp.and_then(|stamp| self.asked.small.find(stamp, &key)) {
            return Ok(Some(ManifestContent::Small(manifest)));
        }
        let manifests = Arc::clone(self);
        self.context.blocking(move |_| manifests.read(&key.0, &key.1, stamp)).await
    }

    /// Reads a manifest that is on the disk and may be seen through this repository, hashing it first if it is not
    /// verified. A small one is kept in memory for as long as `stamp` holds.
    ///
    /// # Errors
    /// The store's.
    pub(in crate::mirror) fn read(
        &self,
        repository: &Repository,
        digest: &Digest,
        stamp: Option<Stamp>,
    ) -> Result<Option<ManifestContent>, StoreError> {
        let Lookup::Here(mut blob) = look_up(&self.context, repository, digest)? else { return Ok(None) };
        if blob.unverified {
            if !self.verifier.is_sound(digest)? {
                return Ok(None);
            }
            blob.unverified = false;
        }
        let Some(media_type) = self.media_type(repository, digest)? else { return Ok(None) };
        if blob.private || blob.size > budget::SMALL_MANIFEST_BYTES_MAX {
            return Ok(Some(ManifestContent::Stored { media_type, blob }));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(blob.size).unwrap_or(0));
        let read = (&blob.file).take(budget::SMALL_MANIFEST_BYTES_MAX).read_to_end(&mut bytes);
        // It is read once for many answers, so that looking at its hash costs nothing. What cannot be read is served from
        // the file, where the failure cuts the body and has it verified.
        if read.is_err() || Digest::of(digest.algorithm(), &bytes) != *digest {
            return Ok(Some(ManifestContent::Stored { media_type, blob }));
        }
        let small = SmallManifest::new(&media_type, digest, bytes);
        if let Some(stamp) = stamp {
            self.asked.small.keep(stamp, (repository.clone(), digest.clone()), small.clone());
        }
        Ok(Some(ManifestContent::Small(small)))
    }

    fn media_type(&self, repository: &Repository, digest: &Digest) -> Result<Option<String>, StoreError> {
        let linked = match self.context.store.link(repository, digest) {
            Ok(link) => link.and_then(|link| link.media_type),
            Err(problem) if problem.is_without_index() => None,
            Err(problem) => return Err(problem),
        };
        if linked.is_some() {
            return Ok(linked);
        }
        // Not a manifest of this repository as far as is known: only its own text can say what it is.
        let bytes = self.context.store.read_small(digest)?;
        let manifest = bytes.and_then(|bytes| Manifest::parse(&bytes, None).ok());
        Ok(manifest.map(|manifest| manifest.media_type))
    }

    /// Has upstream asked for a manifest, or joins the question that is under way. `looked`: the store's stamp when it was
    /// last looked for here and not found.
    ///
    /// # Errors
    /// [`Refusal::Busy`] if too many questions wait.
    fn begin(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repository: &Repository,
        digest: &Digest,
        looked: Option<Stamp>,
    ) -> Result<ManifestWait, Refusal> {
        let key = (repository.clone(), digest.clone());
        let (manifests, question, asked) = (Arc::clone(self), key.clone(), Arc::clone(upstream));
        let ask = move || manifests.fetch(&asked, &question.0, &question.1, looked);
        let lanes = self.questions.lanes(upstream).map_err(|_| queue_full())?;
        self.asked.upstream.join(lanes, &key, ask).map_err(|_| queue_full())
    }

    /// Has a manifest fetched that nobody waits for.
    ///
    /// # Errors
    /// [`Refusal::Busy`] if too many questions wait; the registry may not be configured.
    pub(in crate::mirror) fn prefetch(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<(), Refusal> {
        let upstream = self.context.upstream(&repository.registry)?;
        self.begin(&upstream, repository, digest, None).map(drop)
    }

    /// Has a manifest that is not here asked of the peers, beside the lanes of an upstream that cannot answer.
    fn begin_with_peers(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<ManifestWait, Refusal> {
        if self.live_kit(repository).is_none() {
            return Err(unavailable(upstream, digest));
        }
        let key = (repository.clone(), digest.clone());
        let (manifests, question, absent) = (Arc::clone(self), key.clone(), Arc::clone(upstream));
        let ask = move || {
            let cause = || format!("{}; {} is not cached", outage_text(&absent), question.1);
            manifests.take_from_peers(&question.0, &question.1, &cause)
        };
        let joined = self.asked.peers.join(&self.questions.peers, &key, ask);
        joined.map_err(|_| Refusal::Busy("too many questions wait for peers".into()))
    }

    /// Waits for a manifest that was asked for.
    async fn wait(
        self: &Arc<Self>,
        wait: ManifestWait,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<ManifestAnswer, Refusal> {
        let outcome = match tokio::time::timeout(budget::MISS_WAIT_MAX, wait.answer()).await {
            Ok(Some(outcome)) => outcome?,
            Ok(None) => return Err(question_failed()),
            Err(_) => {
                let (registry, waited) = (&repository.registry, budget::MISS_WAIT_MAX.as_secs());
                let text = format!("{registry} did not answer within {waited} s");
                return Err(Refusal::Unavailable(text));
            }
        };
        let content = match outcome.held {
            Held::Small(manifest) => Some(ManifestContent::Small(manifest)),
            Held::OnDisk => self.here(repository, digest, None).await?,
            Held::NotStored { media_type, bytes, slot } => {
                let slot = slot.ok_or_else(Streams::busy)?;
                Some(ManifestContent::NotStored { media_type, bytes: slot.pay_for(bytes) })
            }
        };
        let content = content.ok_or_else(|| Refusal::not_here(Missing::Manifest, digest))?;
        Ok(ManifestAnswer { content, source: outcome.source })
    }

    /// Fetches a manifest; runs on a lane.
    fn fetch(
        &self,
        upstream: &Upstream,
        repository: &Repository,
        digest: &Digest,
        looked: Option<Stamp>,
    ) -> Result<ManifestOutcome, Refusal> {
        // Another question may have ended between this one's look at the disk and its turn.
        let changed = looked.is_none() || looked != self.context.store.stamp();
        if changed && let Ok(Some(_)) = self.read(repository, digest, None) {
            return Ok(ManifestOutcome { source: ByteSource::Fill, held: Held::OnDisk });
        }
        match upstream.fetch_manifest(&repository.name, &ManifestRef::Digest(digest.clone())) {
            Ok(fetched) => {
                let stored = self.store(upstream, repository, &fetched);
                let (digest, media_type) = (&fetched.digest, &fetched.media_type);
                let class = self.context.class_of(&repository.registry);
                self.outcome(ByteSource::Fill, stored, digest, media_type, fetched.bytes, class)
            }
            Err(failure) if failure.is_outage() => {
                self.take_from_peers(repository, digest, &|| failure.to_string())
            }
            Err(failure) => Err(Refusal::from_failure(&failure, Missing::Manifest)),
        }
    }

    /// Takes a manifest from a peer that has it; runs on a lane. `cause`: why upstream does not give it.
    fn take_from_peers(
        &self,
        repository: &Repository,
        digest: &Digest,
        cause: &dyn Fn() -> String,
    ) -> Result<ManifestOutcome, Refusal> {
        let found = self.live_kit(repository).and_then(|kit| kit.manifest(repository, digest));
        let Some(found) = found else { return Err(Refusal::Unavailable(cause())) };
        // The hash is right, and so the text is what somebody's upstream holds; what it is must still be plain.
        let manifest = Manifest::parse(&found.bytes, Some(&found.media_type))
            .map_err(|why| Refusal::Unavailable(format!("{}; peer {}: {why}", cause(), found.peer)))?;
        let (bytes, media_type) = (&found.bytes, &manifest.media_type);
        let stored = self.put(repository, digest, media_type, bytes, AccessClass::Public);
        log::debug!("manifest {digest} of {repository} came from peer {}", found.peer);
        self.arrivals.arrived(repository);
        let public = AccessClass::Public;
        self.outcome(ByteSource::Peer, stored, digest, media_type, found.bytes, public)
    }

    /// What a question has brought: a manifest that the disk would not take is passed on and not stored.
    fn outcome(
        &self,
        source: ByteSource,
        stored: Result<(), StoreError>,
        digest: &Digest,
        media_type: &str,
        bytes: Vec<u8>,
        class: AccessClass,
    ) -> Result<ManifestOutcome, Refusal> {
        let small = class == AccessClass::Public && bytes.len() as u64 <= budget::SMALL_MANIFEST_BYTES_MAX;
        let held = match stored {
            Ok(()) if small => Held::Small(SmallManifest::new(media_type, digest, bytes)),
            Ok(()) => Held::OnDisk,
            Err(problem) if problem.is_disk_failure() || problem.is_without_index() => {
                log::warn!("manifest {digest} is passed on and not stored: {problem}");
                let (media_type, bytes) = (media_type.to_owned(), Bytes::from(bytes));
                Held::NotStored { media_type, bytes, slot: self.streams.slot() }
            }
            Err(problem) => return Err(Refusal::from_store(&problem)),
        };
        Ok(ManifestOutcome { source, held })
    }

    /// Stores a manifest that came with the answer to another question; a store that cannot take it is no reason to fail
    /// that question.
    pub(in crate::mirror) fn keep(
        &self,
        upstream: &Upstream,
        repository: &Repository,
        fetched: &FetchedManifest,
    ) {
        if let Err(problem) = self.store(upstream, repository, fetched) {
            log::warn!("manifest {} of {repository} was not stored: {problem}", fetched.digest);
        }
    }

    fn store(
        &self,
        upstream: &Upstream,
        repository: &Repository,
        fetched: &FetchedManifest,
    ) -> Result<(), StoreError> {
        let class = AccessClass::of_upstream(upstream.is_private());
        self.put(repository, &fetched.digest, &fetched.media_type, &fetched.bytes, class)?;
        self.arrivals.arrived(repository);
        Ok(())
    }

    fn put(
        &self,
        repository: &Repository,
        digest: &Digest,
        media_type: &str,
        bytes: &[u8],
        class: AccessClass,
    ) -> Result<(), StoreError> {
        self.reserve.with_room_for_manifest(digest, bytes.len() as u64, || {
            self.context.store.put_manifest(repository, digest, media_type, bytes, class)
        })
    }

    /// The peers that can be asked for what a repository's upstream cannot give now.
    fn live_kit(&self, repository: &Repository) -> Option<&Arc<Kit>> {
        self.context.live_kit(&repository.registry)
    }
}
