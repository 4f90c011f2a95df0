//! The store's life: how it is opened, how its index is brought up to date, reopened and rebuilt, how it is shut down.
//!
//! Whatever is found, content is served: an index that is missing or damaged is rebuilt from the journal and the blobs
//! while that goes on. One that is not as a clean shutdown left it is examined by another process before this one maps
//! it. A store that a newer larder wrote is refused before anything is changed. One of 0.1.0 is read as
//! it is, and becomes one that 0.1.0 refuses with the first write: the journal first, the index after it, so that
//! wherever the change is cut short either both larders can go on or 0.1.0 refuses.

use super::Store;
use super::accounts::Accounts;
use super::claims::Claims;
use super::error::{Result, StoreError};
use super::examine::examine;
use super::fingerprint;
use super::index::{Index, IndexSlot, close};
use super::journal::{Event, Journal};
use super::layout::Layout;
use super::quarantine::Quarantine;
use super::session::{Ended, Session};
use super::stamp::Stamps;
use super::uses::Uses;
use crate::oci::Manifest;
use crate::sync::Mutex;
use std::path::Path;
use std::time::Instant;

/// What is left to do after [`Store::open`], and must be done once.
#[derive(Debug)]
#[must_use = "the index may have to be rebuilt"]
pub struct Startup {
    needs_rebuild: bool,
}

impl Startup {
    /// Whether the index is missing or damaged. Then only content is answered until it has been rebuilt.
    pub fn needs_rebuild(&self) -> bool {
        self.needs_rebuild
    }

    /// For a server: rebuilds the index if need be, and writes to it, which makes the store one of this version. A disk
    /// that takes no change is no reason not to use it.
    ///
    /// # Errors
    /// The index cannot be built, or is damaged; the store serves content all the same.
    pub fn finish(self, store: &Store) -> Result<()> {
        if self.needs_rebuild {
            store.rebuild()?;
        }
        match store.change_index(|index| index.touch(&[], store.uses.sequence.last())) {
            Err(problem) if problem.is_disk_failure() => {
                log::warn!("the index takes no change: {problem}");
                Ok(())
            }
            written => written,
        }
    }

    /// For a command, which ends soon and may change nothing: rebuilds the index if need be.
    ///
    /// # Errors
    /// The index cannot be built.
    pub fn finish_briefly(self, store: &Store) -> Result<()> {
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
    pub fn open(data_dir: &Path, history_max: usize) -> Result<(Store, Startup)> {
        let layout = Layout::create(data_dir)?;
        let lock = layout.lock()?;
        let journal = Journal::open(layout.journal())?;
        let (session, ended) = Session::open(layout.session());
        let store = Store {
            _lock: lock,
            index: IndexSlot::empty(),
            journal: Mutex::new(journal),
            uses: Uses::new(session),
            claims: Claims::default(),
            accounts: Accounts::default(),
            quarantine: Quarantine::default(),
            stamps: Stamps::of(&layout)?,
            history_max,
            layout,
        };
        store.layout.clear_scratch();
        store.layout.keep_to_owner();
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

    /// What was on the disk at an unclean shutdown has to be verified.
    fn enter_session(&self, ended: Ended) -> Result<()> {
        let Uses { sequence, session, .. } = &self.uses;
        let known = match ended {
            Ended::Clean => return Ok(()),
            Ended::Unclean => {
                self.cut_torn_ends();
                log::info!("the last shutdown was unclean: each blob is verified before it is served");
                true
            }
            Ended::Unknown => {
                let mut any = false;
                self.blob_files()?.for_each(|blob| {
                    any = true;
                    sequence.raise(blob.used);
                });
                any
            }
        };
        if known {
            session.distrust_all(sequence.last());
            if let Err(problem) = session.save(sequence.last(), false) {
                log::warn!("the next start will not know that blobs have to be verified: {problem}");
            }
        }
        Ok(())
    }

    /// A server begins to use the store. Until [`Store::shut_down`] an end of the process is an unclean shutdown.
    pub fn begin_service(&self) {
        if let Err(problem) = self.uses.session.begin(self.uses.sequence.last()) {
            log::warn!("the session file does not say that a server runs: {problem}");
        }
    }

    /// Opens the index if it is there and not damaged, and brings it up to the journal's end.
    fn open_index(&self) -> Result<()> {
        let folder = self.layout.index();
        let read_only = self.layout.is_read_only();
        if read_only {
            let folder = self.data_dir().display();
            log::warn!("{folder} is read-only: what is here is served, and nothing new is kept");
        }
        let is_known = if folder.join("data.mdb").exists() {
            let is_known = fingerprint::holds(&folder);
            if !is_known {
                self.examine_index(read_only)?;
            }
            is_known
        } else {
            self.create_index()?;
            false
        };
        let index = Index::open(&folder, read_only)?;
        if is_known {
            index.set_remembered(index.last_change());
        }
        self.catch_up(&index, read_only)?;
        self.accounts.assume(index.stored_bytes()?);
        self.index.put(index);
        Ok(())
    }

    /// Makes the index of a store in which nothing is yet.
    fn create_index(&self) -> Result<()> {
        if !self.journal.lock().is_empty() || self.blob_files()?.next().is_some() {
            return Err(StoreError::Damaged("there is none".into()));
        }
        let fresh = self.layout.fresh_index()?;
        close(Index::create(&fresh)?);
        self.journal.lock().upgrade()?;
        self.layout.replace_index(&fresh)
    }

    /// Has every record of the index read, by a process that may die of it, and puts the copy in its place.
    fn examine_index(&self, read_only: bool) -> Result<()> {
        let began = Instant::now();
        let copy = if read_only { None } else { self.layout.fresh_index().ok() };
        let copied = examine(&self.layout.index(), copy.as_deref());
        match (&copied, &copy) {
            (Ok(true), Some(copy)) => self.layout.replace_index(copy)?,
            (_, Some(copy)) => drop(std::fs::remove_dir_all(copy)),
            (_, None) => {}
        }
        copied?;
        log::info!("the index was not closed by a clean shutdown; it was read in {:.1?}", began.elapsed());
        Ok(())
    }

    /// Brings an index up to the journal's end.
    fn catch_up(&self, index: &Index, read_only: bool) -> Result<()> {
        let mark = index.mark()?;
        self.uses.sequence.raise(mark.sequence);
        let mut journal = self.journal.lock();
        let from = if mark.generation == journal.generation() { mark.offset } else { 0 };
        if from > journal.len() {
            return Err(StoreError::Damaged("it knows more than the journal".into()));
        }
        if from == journal.len() {
            return Ok(());
        }
        if read_only {
            log::warn!(
                "the index is behind the journal and the disk is read-only: recent tag changes are not visible"
            );
            return Ok(());
        }
        journal.upgrade()?;
        self.replay(index, &journal, from)
    }

    /// Applies the journal from byte `from` to `index`, in batches.
    fn replay(&self, index: &Index, journal: &Journal, from: u64) -> Result<()> {
        journal.replay(from, |events, position| {
            self.index.advance(events.len() as u64);
            let with_manifest = |event: Event| {
                self.uses.sequence.raise(event.n);
                let manifest = self.manifest_of(&event)?;
                Ok((event, manifest))
            };
            let events: Vec<_> = events.into_iter().map(with_manifest).collect::<Result<_>>()?;
            index.apply(&events, position, self.history_max)
        })
    }

    /// The manifest that an event is about, read from its blob, if it is on the disk.
    fn manifest_of(&self, event: &Event) -> Result<Option<Manifest>> {
        let Some((digest, media_type)) = event.what.manifest() else { return Ok(None) };
        match self.with_document(digest, |bytes| Manifest::parse(bytes, Some(media_type)).ok()) {
            Ok(parsed) => Ok(parsed.flatten()),
            // An index without what it names would be taken for a whole one.
            Err(lack) if lack.is_exhaustion() => Err(lack),
            Err(_) => Ok(None),
        }
    }

    /// Puts an index that gave an error back into service: reopened if LMDB is stuck after a write that failed, and
    /// rebuilt if it is damaged.
    ///
    /// # Errors
    /// The index cannot be built.
    pub fn recover(&self) -> Result<()> {
        if self.index.is_stuck() {
            self.close_index();
            match self.open_index() {
                Ok(()) => {
                    log::info!("the index was reopened and is not damaged");
                    return Ok(());
                }
                Err(problem) => log::warn!("the index will be rebuilt: {problem}"),
            }
        }
        self.rebuild()
    }

    /// Rebuilds the index from the journal and the blobs. Requests for content are answered meanwhile.
    ///
    /// # Errors
    /// The index cannot be built: the disk is full, read-only or failing.
    pub fn rebuild(&self) -> Result<()> {
        self.index.advance(1);
        self.try_rebuild().inspect_err(|_| self.index.cannot_be_built())
    }

    fn try_rebuild(&self) -> Result<()> {
        let started = Instant::now();
        self.close_index();
        let fresh = self.layout.fresh_index()?;
        let mut journal = self.journal.lock();
        let (mut blobs, mut bytes) = (0u64, 0u64);
        let index = Index::create(&fresh)?;
        index.add_blobs(self.blob_files()?.inspect(|info| {
            blobs += 1;
            bytes += info.size;
            self.uses.sequence.raise(info.used);
            self.index.advance(1);
        }))?;
        self.replay(&index, &journal, 0)?;
        index.set_mark(journal.generation(), journal.len(), self.uses.sequence.last())?;
        close(index);
        journal.upgrade()?;
        self.layout.replace_index(&fresh)?;
        let index = Index::open(&self.layout.index(), false)?;
        self.accounts.list(|| self.list_bytes());
        self.index.put(index);
        self.stamps.changed();
        drop(journal);
        log::info!("index rebuilt: {blobs} blobs, {bytes} bytes, in {:.1?}", started.elapsed());
        Ok(())
    }

    /// Takes the index out of service.
    fn close_index(&self) {
        self.index.close();
        self.stamps.changed();
    }

    /// Reads every record of the index.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] says what is wrong with it.
    pub fn check_index(&self) -> Result<()> {
        self.index.ask(Index::check)
    }

    /// The last word of a server: the index is left as its fingerprint says. A thread that is late with a change is refused;
    /// what the journal has the next start brings into the index.
    pub fn end(&self) {
        if let Err(problem) = self.flush_touches() {
            log::warn!("uses were not written: {problem}");
        }
        if let Ok(index) = self.index.get()
            && let Err(problem) = index.end()
        {
            log::warn!("the index could not be closed: {problem}");
        }
        self.shut_down();
    }

    /// Writes down what is only in memory, and that the shutdown is clean. The store may be used on.
    pub fn shut_down(&self) {
        if let Err(problem) = self.flush_touches() {
            log::warn!("uses were not written: {problem}");
        }
        if let Err(problem) = self.uses.session.save(self.uses.sequence.last(), true) {
            log::warn!("the session file does not say that the shutdown was clean: {problem}");
        }
        if let Err(problem) = self.remember_index() {
            log::warn!("the next start will have to read all of the index: {problem}");
        }
    }

    /// Saves the fingerprint of the index, if it has changed.
    fn remember_index(&self) -> Result<()> {
        let Ok(index) = self.index.get() else { return Ok(()) };
        let folder = self.layout.index();
        if !self.index.is_ready() {
            fingerprint::forget(&folder);
        } else if !index.is_remembered() {
            // What is written from here on makes the fingerprint one of another file.
            let change = index.last_change();
            index.flush()?;
            fingerprint::save(&folder)?;
            index.set_remembered(change);
        }
        Ok(())
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.shut_down();
        self.close_index();
    }
}
