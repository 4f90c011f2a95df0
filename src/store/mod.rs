//! What is on the disk.
//!
//! ```text
//! DATA/lock                     held by the one process that owns the store
//! DATA/blobs/ALGORITHM/HEX      complete content, exact bytes; mtime: the count of its last use; mode: who may read it
//! DATA/staging/ALGORITHM-HEX-*  content on its way in, for one registry and class; `.origin`: where the rest of it is
//! DATA/journal                  every tag move and manifest, in order, one checksummed line each
//! DATA/index/                   LMDB: the same and more, for quick look-ups; disposable
//! DATA/quarantine/              content that no longer hashes to its name
//! DATA/session                  whether the last server shut down cleanly, and how far the scrub is
//! DATA/kept-logins              slow hashes of pull secrets, only where `auth.offline_grace` is set
//! ```
//!
//! Invariants. A file under `blobs/` is complete: it got there by a rename after its hash was right and it was flushed.
//! The journal is written before the index, so that the index can always be rebuilt from the journal and the blobs.
//! Nothing here knows of upstreams or clients.
//!
//! Failure. Every method that touches the disk returns [`StoreError`]; the store stays usable after any of them. A
//! failed flush discards what was being written, for the kernel may have dropped it (rule 2).
//!
//! The files stand on each other in this order, and none calls one that comes after it: `error`, `record` (what is
//! written), `layout` (where), `accounts`, `quarantine`, `stamp`, `journal`, `session`, `index`, `fingerprint`,
//! `examine`, `uses`, `blobs`, `staging` and `verify`, `kept`, `census`, `tags`, `open`. The fields of [`Store`] are parts that
//! each keep their own state.

mod accounts;
mod blobs;
mod census;
mod claims;
mod error;
mod examine;
mod fingerprint;
mod index;
mod journal;
mod kept;
mod layout;
mod open;
mod owner;
mod quarantine;
mod record;
mod session;
mod staging;
mod stamp;
mod tags;
mod uses;
mod verify;

pub use blobs::Blob;
pub use error::StoreError;
pub use examine::examiner;
pub use kept::KeptLogin;
pub use layout::Room;
pub use open::Startup;
pub use owner::work_as_owner;
pub use record::{
    BlobInfo, ContentLink, LinkedManifest, Observation, Rollback, TagRecord, TagVersion, VersionSource,
};
pub use staging::{ContentKey, Staged, StagedFrom};
pub use stamp::Stamp;
pub use verify::Recheck;

use crate::sync::Mutex;
use accounts::Accounts;
use claims::Claims;
use error::Result;
use index::{Index, IndexSlot};
use journal::Journal;
use layout::{Layout, StoreLock};
use quarantine::Quarantine;
use stamp::Stamps;
use std::path::Path;
use uses::Uses;

/// The store, owned by this process until it is dropped.
pub struct Store {
    layout: Layout,
    index: IndexSlot,
    journal: Mutex<Journal>,
    uses: Uses,
    claims: Claims,
    accounts: Accounts,
    quarantine: Quarantine,
    stamps: Stamps,
    history_max: usize,
    /// The last to be dropped: whoever has it next finds everything closed.
    _lock: StoreLock,
}

impl Store {
    /// The folder that everything is in.
    pub fn data_dir(&self) -> &Path {
        self.layout.data_dir()
    }

    /// The room on the file system of the store.
    ///
    /// # Errors
    /// The file system does not say.
    pub fn room(&self) -> Result<Room> {
        self.layout.room()
    }

    /// Bytes of all blobs, as far as the index knows.
    pub fn stored_bytes(&self) -> u64 {
        self.accounts.stored()
    }

    /// Bytes of all blobs, counted on the disk once after a start: a blob whose process was killed before the index knew
    /// of it is among them. The first call takes as long as it takes to list them.
    pub fn counted_bytes(&self) -> u64 {
        self.accounts.list_once(|| self.list_bytes());
        self.stored_bytes()
    }

    /// The stamp of now. Taken before something is read, it holds for that; `None` if a folder does not say.
    pub fn stamp(&self) -> Option<Stamp> {
        self.stamps.now()
    }

    /// Whether tags and links can be asked for.
    pub fn has_index(&self) -> bool {
        self.index.is_there()
    }

    /// Whether the index that is there was found damaged or stuck since it was opened.
    pub fn is_damaged(&self) -> bool {
        self.has_index() && !self.index.is_ready()
    }

    /// Whether the disk would not let the index be built when that was tried last.
    pub fn cannot_rebuild(&self) -> bool {
        self.index.is_unbuildable()
    }

    /// Attempts to rebuild the index, and the blobs and events that they read: it grows while that gets further, and
    /// with each new attempt where the disk takes no index.
    pub fn rebuilt(&self) -> u64 {
        self.index.progress()
    }

    /// A small text kept over restarts, such as the state of an upstream.
    ///
    /// # Errors
    /// There is no index to answer from.
    pub fn note(&self, name: &str) -> Result<Option<String>> {
        self.index.ask(|index| index.note(name))
    }

    /// Keeps a small text; `None` removes it. It is not in the journal: a rebuilt index has lost it.
    ///
    /// # Errors
    /// The index does not take it.
    pub fn set_note(&self, name: &str, text: Option<&str>) -> Result<()> {
        self.change_index(|index| index.set_note(name, text))
    }

    fn change_index(&self, work: impl FnOnce(&Index) -> Result<()>) -> Result<()> {
        self.index.change(&self.journal, work)
    }
}

#[cfg(test)]
mod tests;
