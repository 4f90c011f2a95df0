//! Content by digest: from the disk, or from upstream - or a peer, while upstream cannot be reached - on its way to it.
//!
//! Content names itself, so what is here is served without asking anybody - unless it was fetched with credentials.
//! Then it is served only through a repository whose upstream was seen to hold it, because a manifest in another
//! repository can name any digest it likes.

use super::fill::{Fill, Phase};
use super::integrity::Checked;
use super::lane::Flight;
use super::refusal::{Missing, Refusal};
use super::through::Pieces;
use super::{ByteSource, Mirror, outage_text};
use crate::budget;
use crate::fetch::{Failure, FetchedManifest, Upstream};
use crate::oci::{Digest, Manifest, ManifestRef, Repository};
use crate::store::{Blob, StoreError};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

/// A manifest that can be served.
#[derive(Debug)]
pub struct Served {
    /// The media type to serve it with.
    pub media_type: String,
    /// Its content.
    pub content: Content,
    /// Where it was when it was asked for.
    pub source: ByteSource,
}

/// The content of a manifest.
#[derive(Debug)]
pub enum Content {
    /// It is on the disk.
    Whole(Blob),
    /// The disk would not take it.
    Memory(Bytes),
}

impl Content {
    /// Bytes in it.
    pub fn size(&self) -> u64 {
        match self {
            Content::Whole(blob) => blob.size,
            Content::Memory(bytes) => bytes.len() as u64,
        }
    }
}

/// What a question for a manifest has brought.
#[derive(Debug, Clone)]
pub(super) struct Landed {
    pub(super) source: ByteSource,
    /// The manifest, if the disk would not take it; else it is there.
    unstored: Option<Arc<Unstored>>,
}

/// A manifest that is passed on and not kept.
#[derive(Debug)]
struct Unstored {
    media_type: String,
    bytes: Bytes,
    /// One of the places of what is streamed through; `None`: there was none.
    place: Option<Arc<OwnedSemaphorePermit>>,
}

impl Unstored {
    /// The content for one client, which keeps the place taken while it reads.
    fn content(&self) -> Result<Content, Refusal> {
        /// Bytes, and the place that pays for them.
        struct Paid(Bytes, #[allow(dead_code)] Arc<OwnedSemaphorePermit>);
        impl AsRef<[u8]> for Paid {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        match &self.place {
            Some(place) => {
                Ok(Content::Memory(Bytes::from_owner(Paid(self.bytes.clone(), Arc::clone(place)))))
            }
            None => Err(Refusal::Busy("as much is streamed through as memory.max allows".into())),
        }
    }
}

/// A blob that can be served.
#[derive(Debug)]
pub enum Source {
    /// It is whole.
    Hit(Blob),
    /// It is growing.
    Fill {
        /// The download.
        fill: Arc<Fill>,
        /// Bytes that it will have.
        total: u64,
        /// Another request had begun it.
        joined: bool,
    },
    /// It comes for this client alone and is not kept.
    Through {
        /// Bytes that it has.
        total: u64,
        /// The pieces, from the first byte on.
        pieces: Pieces,
    },
}

/// What is on the disk for a digest, as far as a repository may see it.
enum Here {
    Yes(Blob),
    /// Nothing.
    No,
    /// Content that this repository's upstream was not seen to hold.
    Unconfirmed,
}

impl Mirror {
    /// A manifest by its digest.
    ///
    /// # Errors
    /// Upstream's own 404 and 401/403, and [`Refusal::Unavailable`] where it cannot be asked.
    pub async fn manifest(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Served, Refusal> {
        let upstream = self.upstreams.find(&repository.registry).cloned();
        let upstream = upstream.ok_or_else(|| Refusal::UnknownRegistry(repository.registry.clone()))?;
        if let Some(served) = self.manifest_here(repository, digest).await? {
            self.store.touch(digest);
            return Ok(served);
        }
        if upstream.link().is_known_down() {
            return match self.peers_for(&upstream) {
                Some(_) => self.manifest_from_peers(&upstream, repository, digest).await,
                None => Err(unavailable(&upstream, digest)),
            };
        }
        let flight = self.begin_manifest(&upstream, repository, digest)?;
        self.landed(flight, repository, digest).await
    }

    /// Has upstream asked for a manifest, or joins the question that is under way.
    pub(super) fn begin_manifest(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Flight<Result<Landed, Refusal>>, Refusal> {
        let key = (repository.clone(), digest.clone());
        let (mirror, question, asked) = (Arc::clone(self), key.clone(), Arc::clone(upstream));
        let ask = move || mirror.fetch_manifest(&asked, &question.0, &question.1);
        self.manifests
            .join(&self.lanes[upstream.name()], &key, ask)
            .map_err(|_| Refusal::Busy("too many questions wait for upstreams".into()))
    }

    /// Waits for a manifest that was asked for.
    pub(super) async fn landed(
        self: &Arc<Self>,
        flight: Flight<Result<Landed, Refusal>>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Served, Refusal> {
        let landed = match tokio::time::timeout(budget::MISS_WAIT_MAX, flight.land()).await {
            Ok(Some(Ok(landed))) => landed,
            Ok(Some(Err(refusal))) => return Err(refusal),
            Ok(None) => {
                return Err(Refusal::Failed("the question to upstream failed; the log says how".into()));
            }
            Err(_) => {
                let waited = budget::MISS_WAIT_MAX.as_secs();
                return Err(Refusal::Unavailable(format!(
                    "{} did not answer within {waited} s",
                    repository.registry
                )));
            }
        };
        let source = landed.source;
        if let Some(unstored) = landed.unstored {
            return Ok(Served {
                media_type: unstored.media_type.clone(),
                content: unstored.content()?,
                source,
            });
        }
        match self.manifest_here(repository, digest).await? {
            Some(served) => Ok(Served { source, ..served }),
            None => Err(Refusal::not_here(Missing::Manifest, digest)),
        }
    }

    /// A blob by its digest; begins a fill, or joins one, if it is not here.
    ///
    /// # Errors
    /// As [`Mirror::manifest`]; [`Refusal::Busy`] when the downloads that may wait are all taken.
    pub async fn blob(self: &Arc<Self>, repository: &Repository, digest: &Digest) -> Result<Source, Refusal> {
        let upstream = self.upstreams.find(&repository.registry).cloned();
        let upstream = upstream.ok_or_else(|| Refusal::UnknownRegistry(repository.registry.clone()))?;
        if let Some(blob) = self.blob_here(&upstream, repository, digest).await? {
            if !blob.suspect {
                self.store.touch(digest);
                return Ok(Source::Hit(blob));
            }
            if let Checked::Serve(source) = self.checked(repository, digest, blob).await? {
                return Ok(source);
            }
        }
        if upstream.link().is_known_down() && self.peers_for(&upstream).is_none() {
            return Err(unavailable(&upstream, digest));
        }
        let stated = match self.store.link(repository, digest) {
            Ok(link) => link.and_then(|link| link.size),
            Err(problem) if problem.is_without_index() => None,
            Err(problem) => return Err(Refusal::from_store(&problem)),
        };
        for again in [true, false] {
            let joined = self.fills.find(digest).is_some();
            let Some(fill) = self.fills.begin(repository, digest, stated)? else { break };
            let of_another = fill.repository() != repository;
            if of_another && upstream_of(self, fill.repository()).is_some_and(|other| other.is_private()) {
                return Err(Refusal::Busy(format!("{digest} is being fetched for another repository")));
            }
            match self.size_of(&fill, repository, digest).await {
                Ok(Some(total)) => return Ok(Source::Fill { fill, total, joined }),
                Ok(None) => break,
                // That another repository's upstream cannot give it says nothing of this one's.
                Err(Refusal::NotKept(cause)) => {
                    return self.through(&upstream, repository, digest, stated, &cause).await;
                }
                Err(_) if of_another && again => {}
                Err(refusal) => return Err(refusal),
            }
        }
        // It ended between two looks: whole, so it is here now; whose it is has to be asked anew.
        match self.blob_here(&upstream, repository, digest).await? {
            Some(blob) => Ok(Source::Hit(blob)),
            None => Err(Refusal::not_here(Missing::Blob, digest)),
        }
    }

    /// The size of a blob, without fetching it.
    pub async fn blob_size(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<(u64, bool), Refusal> {
        let upstream = self.upstreams.find(&repository.registry).cloned();
        let upstream = upstream.ok_or_else(|| Refusal::UnknownRegistry(repository.registry.clone()))?;
        if let Some(blob) = self.blob_here(&upstream, repository, digest).await? {
            return Ok((blob.size, true));
        }
        let total = self.fills.find(digest).filter(|fill| fill.repository() == repository);
        if let Some(total) = total.and_then(|fill| fill.follow().borrow().total) {
            return Ok((total, false));
        }
        if upstream.link().is_known_down() {
            return Err(unavailable(&upstream, digest));
        }
        let (name, wanted) = (repository.name.clone(), digest.clone());
        let answer = self.ask(&upstream, move |upstream| upstream.head_blob(&name, &wanted)).await?;
        match answer.map_err(|failure| Refusal::from_failure(&failure, Missing::Blob))? {
            Some(size) => Ok((size, false)),
            None => Err(Refusal::Unavailable(format!("{} states no size for {digest}", repository.registry))),
        }
    }

    /// Waits until a fill knows its size. `None`: it has ended well. Queued behind other downloads, the size that the
    /// manifest states will do: the client then waits for bytes and not for a header.
    async fn size_of(
        &self,
        fill: &Arc<Fill>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<u64>, Refusal> {
        let mut follow = fill.follow();
        let known = follow.wait_for(|progress| {
            progress.total.is_some() && progress.phase == Phase::Running
                || !matches!(progress.phase, Phase::Queued | Phase::Running)
        });
        let Ok(known) = tokio::time::timeout(budget::MISS_WAIT_MAX, known).await else {
            return match (fill.stated(), &fill.follow().borrow().phase) {
                (Some(stated), Phase::Queued) => Ok(Some(stated)),
                (_, Phase::Queued) => Err(Refusal::Busy("all downloads at a time are taken".into())),
                _ => Err(Refusal::Unavailable(format!("{} is slow to offer {digest}", repository.registry))),
            };
        };
        let progress =
            known.map_err(|_| Refusal::Failed("the download failed; the log says how".into()))?.clone();
        match progress.phase {
            Phase::Done => Ok(None),
            Phase::Queued | Phase::Running => Ok(progress.total),
            Phase::Parked(cause) => Err(Refusal::Unavailable(format!("{cause}; {digest} is not cached"))),
            Phase::Failed(refusal) => Err(refusal),
        }
    }

    async fn manifest_here(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<Served>, Refusal> {
        let (repository, digest) = (repository.clone(), digest.clone());
        let found = self.blocking(move |mirror| mirror.manifest_now(&repository, &digest)).await;
        found.map_err(|problem| Refusal::from_store(&problem))
    }

    pub(super) fn manifest_now(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<Served>, StoreError> {
        let Here::Yes(mut blob) = self.here(repository, digest)? else { return Ok(None) };
        if blob.suspect {
            if !self.is_sound(digest)? {
                return Ok(None);
            }
            blob.suspect = false;
        }
        let linked = match self.store.link(repository, digest) {
            Ok(link) => link.and_then(|link| link.media_type),
            Err(problem) if problem.is_without_index() => None,
            Err(problem) => return Err(problem),
        };
        let media_type = match linked {
            Some(media_type) => Some(media_type),
            // Not a manifest of this repository as far as is known: only its own text can say what it is.
            None => self
                .store
                .read_small(digest)?
                .and_then(|bytes| Manifest::parse(&bytes, None).ok())
                .map(|manifest| manifest.media_type),
        };
        let content = Content::Whole(blob);
        Ok(media_type.map(|media_type| Served { media_type, content, source: ByteSource::Cache }))
    }

    async fn blob_here(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<Blob>, Refusal> {
        // Most of what is here is public, and its name in memory: then no other thread is asked.
        let opened = match self.store.open_blob_now(digest) {
            Some(blob) if !blob.private => return Ok(Some(blob)),
            opened => opened,
        };
        let (wanted, name) = (digest.clone(), repository.clone());
        let here = self.blocking(move |mirror| match opened {
            Some(blob) => mirror.here_for(&name, &wanted, blob),
            None => mirror.here(&name, &wanted),
        });
        match here.await.map_err(|problem| Refusal::from_store(&problem))? {
            Here::Yes(blob) => Ok(Some(blob)),
            Here::No => Ok(None),
            Here::Unconfirmed => self.confirm(upstream, repository, digest).await.map(Some),
        }
    }

    fn here(&self, repository: &Repository, digest: &Digest) -> Result<Here, StoreError> {
        match self.store.open_blob(digest)? {
            Some(blob) => self.here_for(repository, digest, blob),
            None => Ok(Here::No),
        }
    }

    /// Whether a repository may have the blob `digest`, which is on the disk.
    fn here_for(&self, repository: &Repository, digest: &Digest, blob: Blob) -> Result<Here, StoreError> {
        if !blob.private {
            return Ok(Here::Yes(blob));
        }
        // Without credentials nobody has to log in here, so what they once fetched has to be seen in public first.
        if !upstream_of(self, repository).is_some_and(|upstream| upstream.is_private()) {
            return Ok(Here::Unconfirmed);
        }
        let held = match self.store.link(repository, digest) {
            Ok(link) => link.is_some_and(|link| link.held),
            Err(problem) if problem.is_without_index() => false,
            Err(problem) => return Err(problem),
        };
        Ok(if held { Here::Yes(blob) } else { Here::Unconfirmed })
    }

    /// Asks this repository's upstream whether it holds content that is here but private.
    async fn confirm(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Blob, Refusal> {
        if upstream.link().is_known_down() {
            return Err(unavailable(upstream, digest));
        }
        let (name, wanted) = (repository.name.clone(), digest.clone());
        let answer = self.ask(upstream, move |upstream| upstream.head_blob(&name, &wanted)).await?;
        answer.map_err(|failure| Refusal::from_failure(&failure, Missing::Blob))?;
        let (public, name, wanted) = (!upstream.is_private(), repository.clone(), digest.clone());
        let noted = self.blocking(move |mirror| {
            let noted =
                if public { mirror.store.make_public(&wanted) } else { mirror.store.hold(&name, &wanted) };
            if let Err(problem) = noted {
                log::warn!("that {name} holds {wanted} was not noted, and has to be asked again: {problem}");
            }
            mirror.store.open_blob(&wanted)
        });
        let blob = noted.await.map_err(|problem| Refusal::from_store(&problem))?;
        blob.ok_or_else(|| Refusal::not_here(Missing::Blob, digest))
    }

    fn fetch_manifest(
        &self,
        upstream: &Upstream,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Landed, Refusal> {
        // Another question may have ended between this one's look at the disk and its turn.
        if let Ok(Some(_)) = self.manifest_now(repository, digest) {
            return Ok(Landed { source: ByteSource::Fill, unstored: None });
        }
        let fetched = upstream.fetch_manifest(&repository.name, &ManifestRef::Digest(digest.clone()));
        let fetched = match fetched {
            Ok(fetched) => fetched,
            Err(failure) if failure.is_outage() => {
                return self.take_from_peers(upstream, repository, digest, &|| failure.to_string());
            }
            Err(failure) => return Err(Refusal::from_failure(&failure, Missing::Manifest)),
        };
        let stored = self.put_manifest(upstream, repository, &fetched);
        self.landed_as(ByteSource::Fill, stored, &fetched.digest, &fetched.media_type, fetched.bytes)
    }

    /// What a question has brought: a manifest that the disk would not take is passed on and not kept.
    pub(super) fn landed_as(
        &self,
        source: ByteSource,
        stored: Result<(), StoreError>,
        digest: &Digest,
        media_type: &str,
        bytes: Vec<u8>,
    ) -> Result<Landed, Refusal> {
        match stored {
            Ok(()) => Ok(Landed { source, unstored: None }),
            Err(problem) if problem.is_of_the_disk() || problem.is_without_index() => {
                log::warn!("manifest {digest} is passed on and not kept: {problem}");
                let place = Arc::clone(&self.through).try_acquire_owned().ok().map(Arc::new);
                let (media_type, bytes) = (media_type.to_owned(), Bytes::from(bytes));
                Ok(Landed { source, unstored: Some(Arc::new(Unstored { media_type, bytes, place })) })
            }
            Err(problem) => Err(Refusal::from_store(&problem)),
        }
    }

    /// Stores a manifest that came unasked; a store that cannot take it is no reason to fail the question.
    pub(super) fn keep_manifest(
        &self,
        upstream: &Upstream,
        repository: &Repository,
        fetched: &FetchedManifest,
    ) {
        if let Err(problem) = self.put_manifest(upstream, repository, fetched) {
            log::warn!("manifest {} of {repository} was not kept: {problem}", fetched.digest);
        }
    }

    fn put_manifest(
        &self,
        upstream: &Upstream,
        repository: &Repository,
        fetched: &FetchedManifest,
    ) -> Result<(), StoreError> {
        let (digest, bytes) = (&fetched.digest, &fetched.bytes);
        self.fills.with_room_for_manifest(digest, bytes.len() as u64, || {
            self.store.put_manifest(repository, digest, &fetched.media_type, bytes, upstream.is_private())
        })?;
        self.settle_all(repository);
        Ok(())
    }

    /// Has a short question asked on a lane.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        upstream: &Arc<Upstream>,
        question: impl FnOnce(&Upstream) -> Result<T, Failure> + Send + 'static,
    ) -> Result<Result<T, Failure>, Refusal> {
        let (sender, answer) = tokio::sync::oneshot::channel();
        let asked = Arc::clone(upstream);
        self.lanes[upstream.name()]
            .run(move || drop(sender.send(question(&asked))))
            .map_err(|_| Refusal::Busy("too many questions wait for upstreams".into()))?;
        match tokio::time::timeout(budget::MISS_WAIT_MAX, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(Refusal::Failed("the question to upstream failed; the log says how".into())),
            Err(_) => Err(Refusal::Unavailable("upstream did not answer in time".into())),
        }
    }

    /// How long a reader of a fill waits without a byte before it is cut.
    pub fn stall_timeout(&self) -> Duration {
        self.config.fetch.stall_timeout
    }
}

fn upstream_of<'a>(mirror: &'a Mirror, repository: &Repository) -> Option<&'a Arc<Upstream>> {
    mirror.upstreams.find(&repository.registry)
}

fn unavailable(upstream: &Upstream, digest: &Digest) -> Refusal {
    Refusal::Unavailable(format!("{}; {digest} is not cached", outage_text(upstream)))
}
