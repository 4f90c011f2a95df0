//! Fills as their readers see them (rules 1, 4 and 5), and the one table of them.
//!
//! A fill is one download of one blob, which any number of clients read while it grows; or one hashing of a blob that is
//! on the disk and not verified, whose readers wait until that is done. Whoever runs it writes to a file and publishes how
//! far it is. A fill does not know its clients and outlives them.

use super::counters::ByteSource;
use super::refusal::Refusal;
use crate::oci::{Digest, Repository};
use crate::store::ContentKey;
use crate::sync::Mutex;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard, OnceLock};
use tokio::sync::watch;

/// A download, as clients see it.
#[derive(Debug)]
pub struct Fill {
    pub(super) key: ContentKey,
    pub(super) repository: Repository,
    /// The size that a manifest states, in bytes.
    pub(super) stated: Option<u64>,
    pub(super) file: OnceLock<Arc<File>>,
    /// A client waits for it, or has.
    demanded: AtomicBool,
    /// Some of it came from a peer.
    pub(super) from_peer: AtomicBool,
    kind: FillKind,
    pub(super) progress: watch::Sender<Progress>,
}

/// What a fill does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FillKind {
    /// It downloads.
    Download,
    /// It hashes what is on the disk.
    Check,
}

/// Who wants a fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Demand {
    /// A client waits for it.
    Client,
    /// Larder itself, for later.
    Background,
}

/// How far a fill is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The size of the blob in bytes, once upstream has said it.
    pub total: Option<u64>,
    /// Bytes that clients may have.
    pub available: u64,
    /// What it is doing.
    pub phase: Phase,
}

/// What a fill is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// It waits for a download slot.
    Queued,
    /// Bytes are coming, or are being asked for.
    Running,
    /// Upstream cannot be reached; the cause. It goes on by itself when upstream is back.
    Parked(String),
    /// The blob is complete and in the store.
    Done,
    /// It has ended without success.
    Failed(Refusal),
}

impl Fill {
    /// A download that has yet to begin.
    pub(super) fn download(
        key: ContentKey,
        repository: &Repository,
        stated: Option<u64>,
        demand: Demand,
    ) -> Fill {
        Fill {
            key,
            repository: repository.clone(),
            stated,
            file: OnceLock::new(),
            demanded: AtomicBool::new(demand == Demand::Client),
            from_peer: AtomicBool::new(false),
            kind: FillKind::Download,
            progress: watch::Sender::new(Progress { total: None, available: 0, phase: Phase::Queued }),
        }
    }

    /// The hashing of `file`, which has `size` bytes. Readers wait as for a slot: that nothing comes is no stall.
    pub(super) fn check(key: ContentKey, repository: &Repository, file: File, size: u64) -> Fill {
        let progress = Progress { total: Some(size), available: 0, phase: Phase::Queued };
        Fill {
            file: OnceLock::from(Arc::new(file)),
            kind: FillKind::Check,
            progress: watch::Sender::new(progress),
            ..Fill::download(key, repository, Some(size), Demand::Client)
        }
    }

    /// What is being fetched.
    pub fn digest(&self) -> &Digest {
        &self.key.digest
    }

    /// The size that a manifest states, in bytes.
    pub fn stated(&self) -> Option<u64> {
        self.stated
    }

    /// What its bytes are counted as: a peer's as soon as some of them are.
    pub fn source(&self) -> ByteSource {
        match (self.kind, self.from_peer.load(Ordering::Relaxed)) {
            (FillKind::Check, _) => ByteSource::Cache,
            (FillKind::Download, true) => ByteSource::Peer,
            (FillKind::Download, false) => ByteSource::Fill,
        }
    }

    /// Why it was given up, if it was because the disk would not take it.
    pub fn not_stored(&self) -> Option<String> {
        match &self.progress.borrow().phase {
            Phase::Failed(Refusal::NotStored(cause)) => Some(cause.clone()),
            _ => None,
        }
    }

    /// The file that grows; there once the fill has begun to run.
    pub fn file(&self) -> Option<Arc<File>> {
        self.file.get().cloned()
    }

    /// Follows the progress.
    pub fn follow(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        self.progress.send_modify(|progress| progress.phase = phase);
    }

    pub(super) fn is_parked(&self) -> bool {
        matches!(self.progress.borrow().phase, Phase::Parked(_))
    }

    /// Somebody else wants it too.
    pub(super) fn demand(&self, demand: Demand) {
        if demand == Demand::Client {
            self.demanded.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn is_demanded(&self) -> bool {
        self.demanded.load(Ordering::Relaxed)
    }
}

/// Every fill, by its key. A fill leaves the table after its blob is in place.
#[derive(Default)]
pub(super) struct FillTable(Mutex<HashMap<ContentKey, Arc<Fill>>>);

impl FillTable {
    /// For steps that must not be seen half done.
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<ContentKey, Arc<Fill>>> {
        self.0.lock()
    }

    pub(super) fn find(&self, key: &ContentKey) -> Option<Arc<Fill>> {
        self.lock().get(key).cloned()
    }

    pub(super) fn remove(&self, key: &ContentKey) {
        self.lock().remove(key);
    }

    /// What is being fetched or hashed just now, or waits for its turn.
    pub(super) fn under_way(&self) -> HashSet<Digest> {
        let table = self.lock();
        table.values().filter(|fill| !fill.is_parked()).map(|fill| fill.digest().clone()).collect()
    }

    /// Fills that are not parked, and parked ones.
    pub(super) fn counts(&self) -> (usize, usize) {
        let table = self.lock();
        let parked = table.values().filter(|fill| fill.is_parked()).count();
        (table.len() - parked, parked)
    }
}
