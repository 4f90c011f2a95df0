//! What is on the disk.
//!
//! ```text
//! DATA/lock                     held by the one process that owns the store
//! DATA/blobs/ALGORITHM/HEX      whole content, exact bytes; mtime: the count of its last use; mode 0600: private
//! DATA/staging/ALGORITHM-HEX    content on its way in; beside it `.origin`: where the rest of it is
//! DATA/journal                  every tag move and manifest, in order, one checksummed line each
//! DATA/index/                   LMDB: the same and more, for quick look-ups; disposable
//! DATA/quarantine/              content that no longer hashes to its name
//! DATA/session                  whether the last server came to an orderly end, and how far the scrub is
//! ```
//!
//! Invariants. A file under `blobs/` is whole: it got there by a rename after its hash was right and it was flushed.
//! The journal is written before the index, so that the index can always be made again from the journal and the
//! blobs. Nothing here knows of upstreams or clients.
//!
//! Failure. Every method that touches the disk returns [`StoreError`]; the store stays usable after any of them. A
//! failed flush discards what was being written, for the kernel may have dropped it (design rule 2).

mod blobs;
mod index;
mod integrity;
mod journal;
mod layout;
mod owner;
mod record;
mod session;
mod staging;
mod stamp;

pub use blobs::{Blob, BlobInfo};
pub use integrity::Recheck;
pub use owner::work_as_owner;
pub use record::{ContentLink, LinkedManifest, Observation, Rollback, TagRecord, TagVersion, VersionSource};
pub use staging::{ContentKey, Staged, StagedFrom};
pub use stamp::Stamp;

use crate::auth::AccessClass;
use crate::budget;
use crate::clock::{self, Sequence};
use crate::oci::{Digest, Manifest, Repository, Tag};
use crate::sync::{Mutex, RwLock};
use index::Index;
use journal::{Event, Journal};
use layout::Layout;
use session::{Ended, Session};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, OnceLock, RwLockReadGuard};
use std::time::Duration;

/// Why the store could not do something.
#[derive(Debug)]
pub enum StoreError {
    /// The operating system refused.
    Io {
        /// What was being done, with the path.
        what: String,
        /// What it answered.
        source: std::io::Error,
    },
    /// The limits that the owner set for the disk leave no room, though the disk may not be full.
    NoRoom {
        /// For what.
        what: String,
    },
    /// Another process holds the store.
    Locked(PathBuf),
    /// The store was written by a newer larder.
    Newer {
        /// The schema found.
        found: u32,
        /// The newest schema this binary knows.
        known: u32,
    },
    /// Content does not hash to its name.
    Mismatch {
        /// The name.
        expected: Box<Digest>,
        /// What it hashes to.
        actual: Box<Digest>,
    },
    /// The index is damaged; it is made again at the next start, or at once by the server.
    Damaged(String),
    /// A write to the index failed, and LMDB goes no further before it is opened anew; the server does that at once.
    Stuck(String),
    /// The index is being made again; only content can be asked for.
    Rebuilding,
    /// Somebody else is writing this content just now.
    Busy(Box<Digest>),
}

impl StoreError {
    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> StoreError {
        let what = what.into();
        move |source| StoreError::Io { what, source }
    }

    /// Whether there is no index to answer from just now.
    pub fn is_without_index(&self) -> bool {
        matches!(self, StoreError::Rebuilding | StoreError::Damaged(_) | StoreError::Stuck(_))
    }

    /// Whether the disk would not take something: full, read-only, or failing.
    pub fn is_disk_failure(&self) -> bool {
        matches!(self, StoreError::Io { .. } | StoreError::NoRoom { .. })
    }
}

impl std::fmt::Display for StoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StoreError::Io { what, source } => write!(f, "{what}: {source}"),
            StoreError::NoRoom { what } => write!(f, "the limits of the disk leave no room for {what}"),
            StoreError::Locked(path) => {
                write!(
                    f,
                    "another larder uses {}: stop it, or name another folder with --data-dir",
                    path.display()
                )
            }
            StoreError::Newer { found, known } => write!(
                f,
                "the store was written by a newer larder (schema {found}, this one knows {known}); nothing was changed"
            ),
            StoreError::Mismatch { expected, actual } => {
                write!(f, "content of {expected} hashes to {actual}")
            }
            StoreError::Damaged(what) => write!(f, "the index is damaged: {what}"),
            StoreError::Stuck(what) => write!(f, "the index has to be opened anew: {what}"),
            StoreError::Rebuilding => f.write_str("the index is being rebuilt"),
            StoreError::Busy(digest) => write!(f, "{digest} is being written already"),
        }
    }
}

impl std::error::Error for StoreError {}

/// The store, owned by this process until it is dropped.
pub struct Store {
    layout: Layout,
    _lock: File,
    index: RwLock<Option<Arc<Index>>>,
    journal: Mutex<Journal>,
    session: Session,
    sequence: Sequence,
    touches: Mutex<HashMap<Digest, u64>>,
    writing: Arc<Mutex<HashSet<ContentKey>>>,
    history_max: usize,
    stored_bytes: AtomicU64,
    counted: OnceLock<()>,
    /// See [`Store::uncounted`].
    counting: RwLock<()>,
    damaged: AtomicBool,
    /// Opening the index anew may be enough.
    stuck: AtomicBool,
    /// The index could not be made when that was tried last.
    cannot_rebuild: AtomicBool,
    /// Bad content that could not be moved out of the way, and whether there is any.
    condemned: Mutex<HashSet<Digest>>,
    any_condemned: AtomicBool,
    corrupt: AtomicU64,
    /// What rebuilds have read since the start.
    rebuilt: AtomicU64,
    stamps: stamp::Stamps,
}

/// What is left to do after [`Store::open`], and must be done once.
#[derive(Debug)]
#[must_use = "the index may have to be rebuilt, and stays unproven until it has been read through"]
pub struct Startup {
    needs_rebuild: bool,
}

impl Startup {
    /// Whether the index is missing or damaged. Then only content is answered until it has been rebuilt.
    pub fn needs_rebuild(&self) -> bool {
        self.needs_rebuild
    }

    /// For a server: rebuilds the index if need be, and reads all of it. It takes as long as that takes.
    ///
    /// # Errors
    /// The index cannot be built or read; the store serves content all the same.
    pub fn finish(self, store: &Store) -> Result<(), StoreError> {
        if self.needs_rebuild {
            store.rebuild()?;
        }
        store.check_index()
    }

    /// For a command, which ends soon: rebuilds the index if need be.
    ///
    /// # Errors
    /// The index cannot be built.
    pub fn finish_briefly(self, store: &Store) -> Result<(), StoreError> {
        if self.needs_rebuild { store.rebuild() } else { Ok(()) }
    }
}

impl Store {
    /// Opens the store under `data_dir`, making it if need be, and takes its lock.
    ///
    /// `history_max` earlier versions are remembered for each tag. This returns at once, also where the index must be
    /// rebuilt, so that a server can answer for content while it finishes the [`Startup`].
    ///
    /// # Errors
    /// Another process holds the store, a newer larder wrote it, or the disk fails.
    pub fn open(data_dir: &Path, history_max: usize) -> Result<(Store, Startup), StoreError> {
        let layout = Layout::create(data_dir)?;
        let lock = layout.lock()?;
        let journal = Journal::open(layout.journal())?;
        let (session, ended) = Session::open(layout.session());
        let store = Store {
            _lock: lock,
            index: RwLock::new(None),
            journal: Mutex::new(journal),
            session,
            sequence: Sequence::default(),
            touches: Mutex::default(),
            writing: Arc::default(),
            history_max,
            stored_bytes: AtomicU64::new(0),
            counted: OnceLock::new(),
            counting: RwLock::default(),
            damaged: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
            cannot_rebuild: AtomicBool::new(false),
            condemned: Mutex::default(),
            any_condemned: AtomicBool::new(false),
            corrupt: AtomicU64::new(0),
            rebuilt: AtomicU64::new(0),
            stamps: stamp::Stamps::of(&layout)?,
            layout,
        };
        store.layout.clear_scratch();
        let needs_rebuild = match store.open_index() {
            Ok(()) => false,
            Err(newer @ StoreError::Newer { .. }) => return Err(newer),
            Err(problem) => {
                log::warn!("index cannot be used and will be rebuilt: {problem}");
                true
            }
        };
        store.enter_session(ended)?;
        Ok((store, Startup { needs_rebuild }))
    }

    /// Takes up the counts where the last process left them; what a server that did not come to an orderly end left on
    /// the disk is suspect.
    fn enter_session(&self, ended: Ended) -> Result<(), StoreError> {
        self.sequence.raise(self.session.ceiling());
        let known = match ended {
            Ended::Orderly => return Ok(()),
            Ended::Unclean => {
                self.cut_torn_ends();
                log::info!(
                    "the last stop was not an orderly one: each blob is hashed before it is served again"
                );
                true
            }
            Ended::Unknown => {
                let mut any = false;
                self.blob_files()?.for_each(|blob| {
                    any = true;
                    self.sequence.raise(blob.used);
                });
                any
            }
        };
        if known {
            self.session.distrust_all(self.sequence.last());
            if let Err(problem) = self.session.save(self.sequence.last(), false) {
                log::warn!("that blobs have to be hashed was not written down: {problem}");
            }
        }
        Ok(())
    }

    /// A server begins to use the store. Until [`Store::shut_down`] an end of the process is not an orderly one.
    pub fn begin_service(&self) {
        if let Err(problem) = self.session.begin(self.sequence.last()) {
            log::warn!("that a server runs was not written down: {problem}");
        }
    }

    /// Opens the index if it is there and sound, and brings it up to the journal's end.
    fn open_index(&self) -> Result<(), StoreError> {
        if !self.layout.index().join("data.mdb").exists() {
            if !self.journal().is_empty() || self.blob_files()?.next().is_some() {
                return Err(StoreError::Damaged("there is none".into()));
            }
            let fresh = self.layout.fresh_index()?;
            close(Index::create(&fresh)?);
            self.layout.replace_index(&fresh)?;
        }
        let read_only = self.layout.is_read_only();
        if read_only {
            log::warn!(
                "{} is read-only: what is here is served, and nothing new is kept",
                self.data_dir().display()
            );
        }
        // A damaged page can kill the process that reads it. That must not happen at every start, and yet a start that
        // a power cut ended is no reason to make everything again.
        let unfinished = self.layout.unfinished_starts();
        if unfinished >= budget::UNFINISHED_STARTS_MAX {
            return Err(StoreError::Damaged(format!(
                "the last {unfinished} starts ended before all of it had been read"
            )));
        }
        // A disk that takes no mark is no reason to make anything again.
        if let Err(e) = std::fs::write(self.layout.unproven(), (unfinished + 1).to_string()) {
            log::warn!("the index could not be marked as unproven: {e}");
        }
        // A page that cannot be read would kill the process where the index is mapped.
        self.layout.read_through_index()?;
        let index = Index::open(&self.layout.index(), read_only).inspect_err(|problem| {
            if matches!(problem, StoreError::Newer { .. }) {
                self.prove();
            }
        })?;
        // A page that is gone takes records with it, and nobody would miss them: all or none is answered from.
        index.check()?;
        let mark = index.mark()?;
        self.sequence.raise(mark.sequence);
        let journal = self.journal();
        let from = if mark.generation == journal.generation() { mark.offset } else { 0 };
        if from > journal.len() {
            return Err(StoreError::Damaged("it knows more than the journal".into()));
        }
        if from < journal.len() && read_only {
            log::warn!("the index does not know the end of the journal, and cannot be told of it");
        } else if from < journal.len() {
            self.replay(&index, &journal, from)?;
        }
        if self.counted.get().is_none() {
            self.stored_bytes.store(index.stored_bytes()?, Ordering::Relaxed);
        }
        drop(journal);
        *self.index.write() = Some(Arc::new(index));
        Ok(())
    }

    /// Applies the journal from byte `from` to `index`, in batches.
    fn replay(&self, index: &Index, journal: &Journal, from: u64) -> Result<(), StoreError> {
        journal.replay(from, |events, position| {
            for event in events {
                self.sequence.raise(event.n);
            }
            self.rebuilt.fetch_add(events.len() as u64, Ordering::Relaxed);
            let events = events.iter().map(|event| (event, self.manifest_of(event))).collect::<Vec<_>>();
            index.apply(&events, position, self.history_max)
        })
    }

    /// The manifest that an event speaks of, read from its blob, if it is on the disk.
    fn manifest_of(&self, event: &Event) -> Option<Manifest> {
        let (digest, media_type) = event.what.manifest()?;
        let bytes = self.read_small(digest).ok()??;
        Manifest::parse(&bytes, Some(media_type)).ok()
    }

    /// Puts an index that gave an error back into service: opened anew if LMDB goes no further after a write that failed,
    /// and made again if it is damaged.
    pub fn recover(&self) -> Result<(), StoreError> {
        if self.stuck.swap(false, Ordering::Relaxed) && self.has_index() {
            self.close_index();
            match self.open_index() {
                Ok(()) => {
                    self.damaged.store(false, Ordering::Relaxed);
                    self.prove();
                    log::info!("the index was opened anew and is sound");
                    return Ok(());
                }
                Err(problem) => log::warn!("the index is made again: {problem}"),
            }
        }
        self.rebuild()
    }

    /// Makes the index again from the journal and the blobs. Requests for content are answered meanwhile.
    pub fn rebuild(&self) -> Result<(), StoreError> {
        self.rebuilt.fetch_add(1, Ordering::Relaxed);
        let rebuilt = self.try_rebuild();
        self.cannot_rebuild.store(rebuilt.is_err(), Ordering::Relaxed);
        rebuilt
    }

    /// Whether the disk would not let the index be made when that was tried last.
    pub fn cannot_rebuild(&self) -> bool {
        self.cannot_rebuild.load(Ordering::Relaxed)
    }

    fn try_rebuild(&self) -> Result<(), StoreError> {
        let started = std::time::Instant::now();
        self.close_index();
        let fresh = self.layout.fresh_index()?;
        let journal = self.journal();
        let mut blobs = 0u64;
        let mut bytes = 0u64;
        {
            let index = Index::create(&fresh)?;
            index.add_blobs(self.blob_files()?.inspect(|info| {
                blobs += 1;
                bytes += info.size;
                self.sequence.raise(info.used);
                self.rebuilt.fetch_add(1, Ordering::Relaxed);
            }))?;
            self.replay(&index, &journal, 0)?;
            index.set_mark(journal.generation(), journal.len(), self.sequence.last())?;
            close(index);
        }
        self.layout.replace_index(&fresh)?;
        let index = Index::open(&self.layout.index(), false)?;
        self.count_bytes();
        self.damaged.store(false, Ordering::Relaxed);
        *self.index.write() = Some(Arc::new(index));
        self.prove();
        self.changed();
        drop(journal);
        log::info!("index rebuilt: {blobs} blobs, {bytes} bytes, in {:.1?}", started.elapsed());
        Ok(())
    }

    /// Takes the index out of service.
    fn close_index(&self) {
        let index = self.index.write().take();
        self.changed();
        if let Some(index) = index {
            close(index);
        }
    }

    /// Reads every record of the index, and writes one; `Err(Damaged)` says what is wrong. Must be called once after
    /// [`Store::open`]: an index that no start has read and written without harm is made again.
    pub fn check_index(&self) -> Result<(), StoreError> {
        self.with_index(Index::check)?;
        self.change_index(|index| index.touch(&[], self.sequence.last()))?;
        self.prove();
        Ok(())
    }

    /// Notes that all of the index has been read, or made, without harm.
    fn prove(&self) {
        let _ = std::fs::remove_file(self.layout.unproven());
    }

    /// Writes down what is only in memory, and that the process ends in order. The store may be used on.
    pub fn shut_down(&self) {
        if let Err(problem) = self.flush_touches() {
            log::warn!("uses were not written: {problem}");
        }
        // An orderly end is no crash of the index, however short the process lived.
        if self.has_index() && !self.is_damaged() {
            self.prove();
        }
        if let Err(problem) = self.session.save(self.sequence.last(), true) {
            log::warn!("the orderly end was not written down: {problem}");
        }
    }

    /// Whether a record of the index was found damaged since it was opened.
    pub fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    /// Attempts to make the index again, and the blobs and events that they read: it grows while that gets further, and
    /// with each new attempt where the disk takes no index.
    pub fn rebuilt(&self) -> u64 {
        self.rebuilt.load(Ordering::Relaxed)
    }

    /// Whether tags and links can be asked for.
    pub fn has_index(&self) -> bool {
        self.index.read().is_some()
    }

    /// Bytes of all blobs, as far as the index knows.
    pub fn stored_bytes(&self) -> u64 {
        self.stored_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of all blobs, counted on the disk once after a start: a blob whose process was killed before the index knew
    /// of it is among them. The first call takes as long as it takes to list them.
    pub fn counted_bytes(&self) -> u64 {
        self.counted.get_or_init(|| self.count_bytes());
        self.stored_bytes()
    }

    /// Counts the bytes of all blobs on the disk.
    fn count_bytes(&self) {
        // Nothing comes or goes meanwhile: it would be counted twice, or not at all.
        let _all = self.counting.write();
        if let Ok(blobs) = self.blob_files() {
            self.stored_bytes.store(blobs.map(|blob| blob.size).sum(), Ordering::Relaxed);
        }
    }

    /// Held while a blob comes or goes and is counted.
    fn uncounted(&self) -> RwLockReadGuard<'_, ()> {
        self.counting.read()
    }

    /// A blob has gone, or failed to come.
    fn count_out(&self, bytes: u64) {
        let less = |stored: u64| Some(stored.saturating_sub(bytes));
        let _ = self.stored_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// The folder that everything is in.
    pub fn data_dir(&self) -> &Path {
        self.layout.data_dir()
    }

    /// Free bytes on the file system of the store, for an unprivileged process.
    pub fn free_bytes(&self) -> Result<u64, StoreError> {
        self.layout.free_bytes()
    }

    // -- Tags ------------------------------------------------------------------------------------------------

    /// What is known of a tag.
    pub fn tag(&self, repository: &Repository, tag: &Tag) -> Result<Option<TagRecord>, StoreError> {
        self.with_index(|index| index.tag(repository, tag))
    }

    /// Notes what upstream reported for the tag. Does nothing if that is what it reported last, and if no peer has
    /// reported anything since.
    pub fn tag_seen(
        &self,
        repository: &Repository,
        tag: &Tag,
        observed: &Observation,
    ) -> Result<(), StoreError> {
        let same = |seen: TagVersion| seen.digest == observed.digest && seen.source == observed.source;
        let known = || {
            let record = self.tag(repository, tag)?;
            Ok(record.is_some_and(|record| !record.has_later_offer() && record.seen.is_some_and(same)))
        };
        if known()? {
            return Ok(());
        }
        let what = journal::What::Seen {
            repository: repository.clone(),
            tag: tag.clone(),
            unix: clock::trusted_unix(),
            observed: observed.clone(),
        };
        self.record_unless(vec![what], known)
    }

    /// Moves the tag's *complete* pointer to `digest`, whose closure the caller has found whole.
    pub fn tag_complete(
        &self,
        repository: &Repository,
        tag: &Tag,
        digest: &Digest,
    ) -> Result<(), StoreError> {
        let same = |complete: TagVersion| complete.digest == *digest && !complete.is_from_peer();
        let known = || Ok(self.tag(repository, tag)?.is_some_and(|record| record.complete.is_some_and(same)));
        let record = self.tag(repository, tag)?.unwrap_or_default();
        if record.complete.is_some_and(same) {
            return Ok(());
        }
        // It is the version that was seen, with where that came from.
        let seen = record.seen.filter(|seen| seen.digest == *digest).map(TagVersion::observation);
        let what = journal::What::Complete {
            repository: repository.clone(),
            tag: tag.clone(),
            unix: clock::trusted_unix(),
            observed: seen.unwrap_or_else(|| Observation::upstream(digest.clone())),
        };
        self.record_unless(vec![what], known)
    }

    /// Notes that a version which a peer named is whole here. `unix` is when the peer's upstream said so. What this
    /// board's own upstream said stays as it is.
    pub fn tag_offered(
        &self,
        repository: &Repository,
        tag: &Tag,
        observed: &Observation,
        unix: Option<u64>,
    ) -> Result<(), StoreError> {
        let known = self.tag(repository, tag)?.unwrap_or_default();
        let versions = [&known.seen, &known.complete];
        if versions.into_iter().flatten().any(|version| version.digest == observed.digest) {
            return Ok(());
        }
        self.record(journal::What::Complete {
            repository: repository.clone(),
            tag: tag.clone(),
            unix,
            observed: observed.clone(),
        })
    }

    /// Serves `rollback.to` for the tag for as long as upstream says `rollback.from`; `None` ends that.
    pub fn tag_rollback(
        &self,
        repository: &Repository,
        tag: &Tag,
        rollback: Option<Rollback>,
    ) -> Result<(), StoreError> {
        self.record(journal::What::Rollback { repository: repository.clone(), tag: tag.clone(), rollback })
    }

    /// Notes that the owner wants the tag's image to stay, or no longer.
    pub fn tag_pin(&self, repository: &Repository, tag: &Tag, pinned: bool) -> Result<(), StoreError> {
        if self.tag(repository, tag)?.unwrap_or_default().pinned == pinned {
            return Ok(());
        }
        self.record(journal::What::Pinned { repository: repository.clone(), tag: tag.clone(), pinned })
    }

    /// The tags known of a repository, sorted, from after `last`, at most `limit`.
    pub fn tags(
        &self,
        repository: &Repository,
        last: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(Tag, TagRecord)>, StoreError> {
        self.with_index(|index| index.tags(repository, last, limit))
    }

    /// The repositories known, sorted, from after `last`, at most `limit`.
    pub fn repositories(&self, last: Option<&str>, limit: usize) -> Result<Vec<Repository>, StoreError> {
        self.with_index(|index| index.repositories(last, limit))
    }

    // -- Manifests and links ---------------------------------------------------------------------------------

    /// Who may read a repository, as far as that was found out.
    pub fn repository_class(&self, repository: &Repository) -> Result<Option<AccessClass>, StoreError> {
        self.with_index(|index| index.class(repository))
    }

    /// Stores a manifest whose bytes the caller has checked, and links what it names to the repository, which is of
    /// this class.
    pub fn put_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
        media_type: &str,
        bytes: &[u8],
        class: AccessClass,
    ) -> Result<(), StoreError> {
        if let Some(known) = self.open_blob(digest)? {
            if known.private && class != AccessClass::Private {
                self.make_public(digest)?;
            }
        } else {
            let mut staged = self.stage_scratch(digest)?;
            staged.append(bytes)?;
            staged.publish(self, class)?;
        }
        let mut news = Vec::new();
        let known = self.repository_class(repository)?;
        // What did not come from the registry proves nothing about it.
        if known != Some(class) && (known.is_none() || class != AccessClass::Unproven) {
            news.push(journal::What::Class { repository: repository.clone(), class });
        }
        let known = self.link(repository, digest)?;
        if known.is_none_or(|link| !link.held || link.media_type.as_deref() != Some(media_type)) {
            news.push(journal::What::Manifest {
                repository: repository.clone(),
                digest: digest.clone(),
                media_type: media_type.to_owned(),
            });
        }
        if news.is_empty() { Ok(()) } else { self.record_unless(news, || Ok(false)) }
    }

    /// What is known of some content in a repository.
    pub fn link(&self, repository: &Repository, digest: &Digest) -> Result<Option<ContentLink>, StoreError> {
        self.with_index(|index| index.link(repository, digest))
    }

    /// The repositories that content is linked to, and how.
    pub fn links_to(&self, digest: &Digest) -> Result<Vec<(Repository, ContentLink)>, StoreError> {
        self.with_index(|index| index.links_to(digest))
    }

    /// Notes that this repository's upstream holds the content, so that it may be served to who may read there.
    pub fn hold(&self, repository: &Repository, digest: &Digest) -> Result<(), StoreError> {
        if self.link(repository, digest)?.is_some_and(|link| link.held) {
            return Ok(());
        }
        self.record(journal::What::Held { repository: repository.clone(), digest: digest.clone() })
    }

    /// The manifests known of a repository.
    pub fn manifests(&self, repository: &Repository) -> Result<Vec<LinkedManifest>, StoreError> {
        self.with_index(|index| index.manifests(repository))
    }

    /// The manifests of a repository that name `subject` as theirs.
    pub fn referrers(&self, repository: &Repository, subject: &Digest) -> Result<Vec<Digest>, StoreError> {
        self.with_index(|index| index.referrers(repository, subject))
    }

    /// Forgets an image of a repository and removes the content that went with it.
    ///
    /// `root` is the manifest that versions of tags name, `links` what only this image of the repository had, `parts`
    /// what no other image on the disk has. The versions are forgotten first and the root goes before its parts, so
    /// that wherever this is cut short no half image is on offer; what stays behind is content that nobody names.
    pub fn evict(
        &self,
        repository: &Repository,
        root: &Digest,
        links: &[Digest],
        parts: &[Digest],
    ) -> Result<(), StoreError> {
        let mut left = links;
        loop {
            let (now, later) = left.split_at(left.len().min(journal::LINKS_AT_A_TIME));
            self.record(journal::What::Evicted {
                repository: repository.clone(),
                digest: root.clone(),
                links: now.to_vec(),
            })?;
            left = later;
            if left.is_empty() {
                break;
            }
        }
        self.remove_blobs(Some(root), parts)
    }

    /// Removes content that belongs to no image.
    pub fn remove_orphans(&self, digests: &[Digest]) -> Result<(), StoreError> {
        self.remove_blobs(None, digests)
    }

    /// Forgets a tag with all its versions, at the owner's wish; their content stays until it is evicted.
    pub fn tag_remove(&self, repository: &Repository, tag: &Tag) -> Result<(), StoreError> {
        self.record(journal::What::Removed { repository: repository.clone(), tag: tag.clone() })
    }

    // -- Notes -----------------------------------------------------------------------------------------------

    /// A small text kept over restarts, such as the state of an upstream.
    pub fn note(&self, name: &str) -> Result<Option<String>, StoreError> {
        self.with_index(|index| index.note(name))
    }

    /// Keeps a small text; `None` removes it. It is not in the journal: a rebuilt index has lost it.
    pub fn set_note(&self, name: &str, text: Option<&str>) -> Result<(), StoreError> {
        self.change_index(|index| index.set_note(name, text))
    }

    // -- Uses ------------------------------------------------------------------------------------------------

    /// Notes that content was used. Kept in memory until [`Store::flush_touches`].
    pub fn touch(&self, digest: &Digest) {
        let n = self.sequence.next();
        if !self.session.may_touch(n) {
            return;
        }
        self.note_use(digest, n);
    }

    /// Notes that content was used at count `n`.
    fn note_use(&self, digest: &Digest, n: u64) {
        let mut touches = self.touches.lock();
        if touches.len() < budget::TOUCHES_MAX || touches.contains_key(digest) {
            touches.insert(digest.clone(), n);
        }
    }

    /// The count of a use that is not written down yet: one of the last minute or so.
    pub fn unwritten_use(&self, digest: &Digest) -> Option<u64> {
        self.touches.lock().get(digest).copied()
    }

    fn forget_touches(&self, digests: &[Digest]) {
        let mut touches = self.touches.lock();
        for digest in digests {
            touches.remove(digest);
        }
    }

    /// Writes the uses noted since the last time, onto the index and the blobs' mtimes, in one batch.
    pub fn flush_touches(&self) -> Result<(), StoreError> {
        let touches = std::mem::take(&mut *self.touches.lock());
        if touches.is_empty() {
            return Ok(());
        }
        let mut uses = Vec::with_capacity(touches.len());
        for (digest, n) in touches {
            self.layout.set_used(&self.layout.blob(&digest), n);
            if let Some(size) = self.blob_size(&digest) {
                uses.push(BlobInfo { digest, size, used: n });
            }
        }
        self.change_index(|index| index.touch(&uses, self.sequence.last()))
    }

    /// Keeps the counts ahead of their use, and notes how they compare with the time for which servers have run: often
    /// enough for [`Store::unused_for`] to know of `age`.
    pub fn keep_counts(&self, age: Option<Duration>) -> Result<(), StoreError> {
        self.session.keep_ahead(self.sequence.last())?;
        match age {
            Some(age) => self.session.mark(self.sequence.last(), age / budget::USE_MARKS_EACH),
            None => Ok(()),
        }
    }

    /// The count that stands for `age` ago, in time for which a server has run: what was used last at it or before has
    /// not been used for that long. `None` if so much has not passed.
    pub fn unused_for(&self, age: Duration) -> Option<u64> {
        self.session.count_before(age)
    }

    // -- Inside ----------------------------------------------------------------------------------------------

    /// Writes one event: the journal first, flushed; then the index.
    fn record(&self, what: journal::What) -> Result<(), StoreError> {
        self.record_unless(vec![what], || Ok(false))
    }

    /// The same, unless it turns out to be known when its turn has come: several may have found it out at once.
    fn record_unless(
        &self,
        news: Vec<journal::What>,
        known: impl FnOnce() -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let index = self.index()?;
        let mut journal = self.journal();
        if known()? {
            return Ok(());
        }
        let events: Vec<Event> =
            news.into_iter().map(|what| Event { n: self.sequence.next(), what }).collect();
        let applied: Vec<_> = events.iter().map(|event| (event, self.manifest_of(event))).collect();
        let position = journal.append(&events)?;
        let applied = index.apply(&applied, position, self.history_max);
        self.changed();
        self.watch_damage(applied)?;
        if journal.wants_compaction() {
            let snapshot = self.watch_damage(index.snapshot())?;
            journal.compact(&snapshot)?;
            self.watch_damage(index.set_mark(journal.generation(), journal.len(), self.sequence.last()))?;
        }
        Ok(())
    }

    fn with_index<T>(&self, work: impl FnOnce(&Index) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let index = self.index()?;
        self.watch_damage(work(&index))
    }

    /// The same for what changes the index: an older larder must refuse the store from then on.
    fn change_index(&self, work: impl FnOnce(&Index) -> Result<(), StoreError>) -> Result<(), StoreError> {
        if self.index()?.is_of_older_schema() {
            self.journal().upgrade()?;
        }
        self.with_index(work)
    }

    fn index(&self) -> Result<Arc<Index>, StoreError> {
        self.index.read().clone().ok_or(StoreError::Rebuilding)
    }

    fn watch_damage<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(StoreError::Stuck(what)) = &result {
            if !self.stuck.swap(true, Ordering::Relaxed) {
                log::error!("a write to the index failed ({what}); it will be opened anew");
            }
            self.damaged.store(true, Ordering::Relaxed);
        }
        if let Err(StoreError::Damaged(what)) = &result
            && !self.damaged.swap(true, Ordering::Relaxed)
        {
            log::error!("the index is damaged ({what}); it will be rebuilt");
        }
        result
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock()
    }
}

/// Closes an index and waits until nobody reads it any more, so that its folder can be replaced.
fn close<I: std::borrow::Borrow<Index>>(index: I) {
    let closed = index.borrow().close();
    drop(index);
    closed.wait_timeout(budget::INDEX_CLOSE_TIME);
}

impl Drop for Store {
    fn drop(&mut self) {
        self.shut_down();
        self.close_index();
    }
}

#[cfg(test)]
mod tests;
