//! Manifests by digest: from memory, the disk, upstream or a peer.
//!
//! Upstream is asked once for a manifest, and all clients wait for the same answer. The answer is hashed, checked against
//! its media type, stored, and announced. If it cannot be stored, it is served from memory. Content is a manifest only if
//! its own bytes parse as one, however it came onto the disk and whatever an index calls it.

use super::super::access::View;
use super::super::context::{Arrivals, Context, no_answer_text, outage_text, unavailable};
use super::super::counters::ByteSource;
use super::super::proof::Proofs;
use super::super::questions::{Questions, question_failed, queue_full};
use super::super::refusal::{Missing, Refusal};
use super::super::reserve::Reserve;
use super::super::single_flight::{SingleFlight, Wait};
use super::super::verify::Verifier;
use super::named::NamedBlobs;
use super::small::{SmallManifest, SmallManifests};
use super::stream::{StreamSlot, Streams};
use super::{Lookup, look_up};
use crate::auth::AccessClass;
use crate::budget;
use crate::documents::DocumentTurn;
use crate::fetch::{FetchedManifest, Upstream};
use crate::oci::{Digest, Manifest, ManifestRef, Repository};
use crate::store::{Blob, ContentLink, Stamp, Store, StoreError};
use crate::sync::Mutex;
use bytes::Bytes;
use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;
use std::time::Instant;

/// A manifest that can be served.
#[derive(Debug)]
pub struct ManifestAnswer {
    /// Its content, and the media type to serve it with.
    pub content: ManifestContent,
    /// Where it came from.
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
    /// It could not be stored.
    NotStored {
        /// The media type.
        media_type: String,
        /// The content.
        bytes: Bytes,
    },
}

/// The answer to a question for a manifest.
#[derive(Debug, Clone)]
pub(in crate::mirror) struct ManifestOutcome {
    source: ByteSource,
    held: Held,
}

/// Where that manifest is now.
#[derive(Debug, Clone)]
enum Held {
    OnDisk,
    Small(SmallManifest),
    /// It could not be stored. Without a slot it cannot be served from memory either.
    NotStored {
        media_type: String,
        bytes: Bytes,
        slot: Option<StreamSlot>,
    },
}

type ManifestWait = Wait<Result<ManifestOutcome, Refusal>>;
type ManifestFlights = SingleFlight<(View, Digest), Result<ManifestOutcome, Refusal>>;

/// The media type of content as its bytes parse, by the repository that asked, its digest and the type that it came with.
type ParsedTypes = HashMap<(Repository, Digest, Option<String>), Option<String>>;

/// The small manifests that are in memory, the media types of others, and the questions for manifests that are under way.
#[derive(Default)]
pub(in crate::mirror) struct AskedManifests {
    small: SmallManifests,
    types: Mutex<ParsedTypes>,
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
    pub(in crate::mirror) named: Arc<NamedBlobs>,
    pub(in crate::mirror) asked: AskedManifests,
    pub(in crate::mirror) proofs: Arc<Proofs>,
}

impl Manifests {
    /// A manifest by its digest. If it is not here it is waited for `until` then.
    ///
    /// # Errors
    /// Upstream's own 404 and 401/403, and [`Refusal::Unavailable`] where it cannot be asked.
    pub(in crate::mirror) async fn manifest(
        self: &Arc<Self>,
        view: &View,
        digest: &Digest,
        until: Instant,
    ) -> Result<ManifestAnswer, Refusal> {
        let upstream = self.context.upstream(&view.registry)?;
        let stamp = self.context.store.stamp();
        if let Some(content) = self.here(view, digest, stamp).await? {
            self.context.store.touch(digest);
            return Ok(ManifestAnswer { content, source: ByteSource::Cache });
        }
        if upstream.link().is_known_down() {
            let wait = self.begin_with_peers(&upstream, view, digest)?;
            return self.wait(wait, view, digest, until).await;
        }
        let wait = self.begin(&upstream, view, digest, stamp)?;
        self.wait(wait, view, digest, until).await
    }

    /// A manifest by its digest, if it is here.
    ///
    /// # Errors
    /// The store's.
    pub(in crate::mirror) async fn cached(
        self: &Arc<Self>,
        view: &View,
        digest: &Digest,
    ) -> Result<Option<ManifestAnswer>, Refusal> {
        let content = self.here(view, digest, self.context.store.stamp()).await?;
        Ok(content.map(|content| {
            self.context.store.touch(digest);
            ManifestAnswer { content, source: ByteSource::Cache }
        }))
    }

    /// A manifest from memory, if it is kept for this stamp, else from the disk.
    async fn here(
        self: &Arc<Self>,
        view: &View,
        digest: &Digest,
        stamp: Option<Stamp>,
    ) -> Result<Option<ManifestContent>, Refusal> {
        let key = (view.repository.clone(), digest.clone());
        if let Some(manifest) = stamp.and_then(|stamp| self.asked.small.find(stamp, &key)) {
            return Ok(Some(ManifestContent::Small(manifest)));
        }
        let (manifests, view, digest) = (Arc::clone(self), view.clone(), key.1);
        self.context.blocking(move |_| manifests.read(&view, &digest, stamp)).await
    }

    /// Reads a manifest from the disk that may be served through this repository; an unverified one is hashed first. A
    /// small one is kept in memory for as long as `stamp` is current.
    ///
    /// # Errors
    /// The store's.
    pub(in crate::mirror) fn read(
        &self,
        view: &View,
        digest: &Digest,
        stamp: Option<Stamp>,
    ) -> Result<Option<ManifestContent>, StoreError> {
        let repository = &view.repository;
        let Lookup::Here(mut blob) = look_up(&self.context, view, digest)? else { return Ok(None) };
        if blob.unverified {
            if !self.verifier.is_sound(digest)? {
                return Ok(None);
            }
            blob.unverified = false;
        }
        let header = self.own_type(repository, digest)?;
        if !blob.is_public() || blob.size > budget::SMALL_MANIFEST_BYTES_MAX {
            let media_type = self.parsed_type(repository, digest, header)?;
            return Ok(media_type.map(|media_type| ManifestContent::Stored { media_type, blob }));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(blob.size).unwrap_or(0));
        let read = (&blob.file).take(budget::SMALL_MANIFEST_BYTES_MAX).read_to_end(&mut bytes);
        // It is read once for many answers, so its hash is cheap to verify. If it cannot be read, it is served from the
        // file: the read error then cuts the body and starts a verification.
        if read.is_err() || Digest::of(digest.algorithm(), &bytes) != *digest {
            return Ok(header.map(|media_type| ManifestContent::Stored { media_type, blob }));
        }
        let Ok(manifest) = Manifest::parse(&bytes, header.as_deref()) else { return Ok(None) };
        if header.is_none() {
            // The index does not know it as a manifest of this repository, nor what it names.
            self.named.note(repository, &manifest);
        }
        let small = SmallManifest::new(&manifest.media_type, digest, bytes);
        if let Some(stamp) = stamp {
            self.asked.small.keep(stamp, (repository.clone(), digest.clone()), small.clone());
        }
        Ok(Some(ManifestContent::Small(small)))
    }

    /// The media type with which it was stored as a manifest of this repository. What an index calls it is no proof.
    fn own_type(&self, repository: &Repository, digest: &Digest) -> Result<Option<String>, StoreError> {
        let link = self.context.known_link(repository, digest)?.filter(ContentLink::is_own);
        Ok(link.and_then(|link| link.media_type))
    }

    /// The media type of content as its own bytes parse, by themselves and by the type that it came with; `None` if they
    /// are no manifest of that type. That cannot change, so it is remembered.
    fn parsed_type(
        &self,
        repository: &Repository,
        digest: &Digest,
        header: Option<String>,
    ) -> Result<Option<String>, StoreError> {
        let key = (repository.clone(), digest.clone(), header);
        if let Some(known) = self.asked.types.lock().get(&key) {
            return Ok(known.clone());
        }
        let parse = |bytes: &[u8]| Manifest::parse(bytes, key.2.as_deref()).ok();
        let Some(parsed) = self.context.store.with_document(digest, parse)? else { return Ok(None) };
        if let (None, Some(manifest)) = (&key.2, &parsed) {
            self.named.note(repository, manifest);
        }
        let media_type = parsed.map(|manifest| manifest.media_type);
        let mut types = self.asked.types.lock();
        if types.len() >= budget::PARSED_TYPES_MAX {
            types.clear();
        }
        types.insert(key, media_type.clone());
        Ok(media_type)
    }

    /// Asks upstream for a manifest, or joins the question that is under way. `looked`: the store's stamp when the manifest
    /// was last looked up and not found.
    ///
    /// # Errors
    /// [`Refusal::Busy`] if the queue for questions is full.
    fn begin(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        view: &View,
        digest: &Digest,
        looked: Option<Stamp>,
    ) -> Result<ManifestWait, Refusal> {
        let key = (view.clone(), digest.clone());
        let (manifests, question, asked) = (Arc::clone(self), key.clone(), Arc::clone(upstream));
        let ask = move || manifests.fetch(&asked, &question.0, &question.1, looked);
        let lanes = self.questions.lanes(upstream).map_err(|_| queue_full())?;
        self.asked.upstream.join(lanes, &view.name.to_string(), &key, ask).map_err(|_| queue_full())
    }

    /// Fetches a manifest in the background.
    ///
    /// # Errors
    /// [`Refusal::Busy`] if the queue for questions is full; the registry may not be configured.
    pub(in crate::mirror) fn prefetch(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<(), Refusal> {
        let upstream = self.context.upstream(&repository.registry)?;
        self.begin(&upstream, &View::of_the_owner(repository), digest, None).map(drop)
    }

    /// Asks the peers for a manifest, on lanes of their own: those of the upstream may all be waiting for it.
    fn begin_with_peers(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        view: &View,
        digest: &Digest,
    ) -> Result<ManifestWait, Refusal> {
        if self.context.live_kit(&view.registry).is_none() {
            return Err(unavailable(upstream, digest));
        }
        let key = (view.clone(), digest.clone());
        let (manifests, question, absent) = (Arc::clone(self), key.clone(), Arc::clone(upstream));
        let ask = move || {
            let cause = || format!("{}; {} is not cached", outage_text(&absent), question.1);
            manifests.take_from_peers(&question.0, &question.1, &cause)
        };
        let joined = self.asked.peers.join(&self.questions.peers, &view.name.to_string(), &key, ask);
        joined.map_err(|_| Refusal::Busy("too many questions wait for peers".into()))
    }

    /// Waits `until` then for a manifest that was asked for.
    async fn wait(
        self: &Arc<Self>,
        wait: ManifestWait,
        view: &View,
        digest: &Digest,
        until: Instant,
    ) -> Result<ManifestAnswer, Refusal> {
        let left = until.saturating_duration_since(Instant::now());
        let outcome = match tokio::time::timeout(left, wait.answer()).await {
            Ok(Some(outcome)) => outcome?,
            Ok(None) => return Err(question_failed()),
            Err(_) => {
                let upstream = self.context.upstream(&view.registry)?;
                return Err(Refusal::Unavailable(no_answer_text(&upstream.label(), left)));
            }
        };
        let content = match outcome.held {
            Held::Small(manifest) => Some(ManifestContent::Small(manifest)),
            Held::OnDisk => self.here(view, digest, None).await?,
            Held::NotStored { media_type, bytes, slot } => {
                let slot = slot.ok_or_else(Streams::busy)?;
                Some(ManifestContent::NotStored { media_type, bytes: slot.hold_with(bytes) })
            }
        };
        let content = content.ok_or_else(|| Refusal::gone(digest))?;
        Ok(ManifestAnswer { content, source: outcome.source })
    }

    /// Fetches a manifest; runs on a lane.
    fn fetch(
        &self,
        upstream: &Upstream,
        view: &View,
        digest: &Digest,
        looked: Option<Stamp>,
    ) -> Result<ManifestOutcome, Refusal> {
        let repository = &view.repository;
        // Another question may have brought it since this one was queued.
        let changed = looked.is_none() || looked != self.context.store.stamp();
        if changed && let Ok(Some(_)) = self.read(view, digest, None) {
            return Ok(ManifestOutcome { source: ByteSource::Fill, held: Held::OnDisk });
        }
        let class = self.proofs.manifest_class(upstream, view, digest);
        let class = class.map_err(|failure| Refusal::from_failure(&failure, Missing::Manifest))?;
        // What is shown to everybody may be here already.
        if let Ok(Some(_)) = self.read(view, digest, None) {
            return Ok(ManifestOutcome { source: ByteSource::Cache, held: Held::OnDisk });
        }
        match upstream.fetch_manifest(&repository.name, &ManifestRef::Digest(digest.clone())) {
            Ok(fetched) => {
                let stored = self.store(repository, &fetched, class);
                let (digest, media_type) = (&fetched.digest, &fetched.media_type);
                self.outcome(ByteSource::Fill, stored, (repository, digest), media_type, fetched.bytes, class)
            }
            Err(failure) if failure.is_outage() => {
                self.take_from_peers(repository, digest, &|| format!("{failure}; {digest} is not cached"))
            }
            Err(failure) => Err(Refusal::from_failure(&failure, Missing::Manifest)),
        }
    }

    /// Fetches a manifest from a peer; runs on a lane. `cause`: why upstream cannot send it.
    fn take_from_peers(
        &self,
        repository: &Repository,
        digest: &Digest,
        cause: &dyn Fn() -> String,
    ) -> Result<ManifestOutcome, Refusal> {
        let kit = self.context.live_kit(&repository.registry);
        let found = kit.and_then(|kit| kit.manifest(repository, digest));
        let Some(found) = found else { return Err(Refusal::Unavailable(cause())) };
        // The hash is right; the media type must still match the content.
        let turn = DocumentTurn::wait(found.bytes.len() as u64);
        let parsed = Manifest::parse(&found.bytes, Some(&found.media_type));
        drop(turn);
        let manifest =
            parsed.map_err(|why| Refusal::Unavailable(format!("{}; peer {}: {why}", cause(), found.peer)))?;
        let (bytes, media_type) = (&found.bytes, &manifest.media_type);
        log::debug!("manifest {digest} of {repository} came from peer {}", found.peer);
        let known = self.context.store.open_blob(digest).map_err(|problem| Refusal::from_store(&problem))?;
        if known.is_some_and(|blob| !blob.is_public()) {
            // Who may see it is shown by what its registry sends, and not by a peer.
            let (media_type, bytes) = (media_type.clone(), Bytes::from(found.bytes));
            let held = Held::NotStored { media_type, bytes, slot: self.streams.slot(repository) };
            return Ok(ManifestOutcome { source: ByteSource::Peer, held });
        }
        let stored = self.keep_in(repository, digest, bytes, media_type, |store| {
            // Another board says nothing of the repository.
            store.add_manifest(repository, digest, media_type, bytes, AccessClass::Public)
        });
        self.arrivals.arrived(repository, digest);
        let public = AccessClass::Public;
        self.outcome(ByteSource::Peer, stored, (repository, digest), media_type, found.bytes, public)
    }

    /// The outcome after an attempt to store a manifest: one that cannot be stored is served from memory.
    fn outcome(
        &self,
        source: ByteSource,
        stored: Result<(), StoreError>,
        (repository, digest): (&Repository, &Digest),
        media_type: &str,
        bytes: Vec<u8>,
        class: AccessClass,
    ) -> Result<ManifestOutcome, Refusal> {
        let small = class == AccessClass::Public && bytes.len() as u64 <= budget::SMALL_MANIFEST_BYTES_MAX;
        let held = match stored {
            Ok(()) if small => Held::Small(SmallManifest::new(media_type, digest, bytes)),
            Ok(()) => Held::OnDisk,
            Err(problem) if problem.is_disk_failure() || problem.is_without_index() => {
                log::warn!("manifest {digest} is served and not stored: {problem}");
                let (media_type, bytes) = (media_type.to_owned(), Bytes::from(bytes));
                Held::NotStored { media_type, bytes, slot: self.streams.slot(repository) }
            }
            Err(problem) => return Err(Refusal::from_store(&problem)),
        };
        Ok(ManifestOutcome { source, held })
    }

    /// Stores a manifest that came with the answer to another question. A failure is only logged, so that the other
    /// question does not fail.
    pub(in crate::mirror) fn keep(
        &self,
        repository: &Repository,
        fetched: &FetchedManifest,
        class: AccessClass,
    ) {
        if let Err(problem) = self.store(repository, fetched, class) {
            log::warn!("manifest {} of {repository} was not stored: {problem}", fetched.digest);
        }
    }

    fn store(
        &self,
        repository: &Repository,
        fetched: &FetchedManifest,
        class: AccessClass,
    ) -> Result<(), StoreError> {
        let (digest, media_type, bytes) = (&fetched.digest, fetched.media_type.as_str(), &fetched.bytes);
        self.keep_in(repository, digest, bytes, media_type, |store| {
            if class == AccessClass::Private && self.context.needs_proof(&repository.registry) {
                store.add_manifest(repository, digest, media_type, bytes, class)
            } else {
                store.put_manifest(repository, digest, media_type, bytes, class)
            }
        })?;
        self.arrivals.arrived(repository, &fetched.digest);
        Ok(())
    }

    /// Has `put` store a manifest in the room that is made for it.
    fn keep_in(
        &self,
        repository: &Repository,
        digest: &Digest,
        bytes: &[u8],
        media_type: &str,
        put: impl FnOnce(&Store) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        // Before anybody can be served it, and whether it can be stored or not.
        let turn = DocumentTurn::wait(bytes.len() as u64);
        if let Ok(manifest) = Manifest::parse(bytes, Some(media_type)) {
            self.named.note(repository, &manifest);
        }
        drop(turn);
        self.reserve.with_room_for_manifest(digest, bytes.len() as u64, || put(&self.context.store))
    }
}
