//! Fills as their readers see them (rules 1, 4 and 5), and the one table of them.
//!
//! A fill is one download of one blob; any number of clients read it while it grows. Or it is one check of an unverified
//! blob on the disk; its readers wait until the hash is known. The thread that runs a fill writes to a file and publishes
//! its progress. A fill does not know its clients and outlives them.

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
    /// A client waits for it or has waited.
    demanded: AtomicBool,
    /// Some of it came from a peer.
    pub(super) from_peer: AtomicBool,
    kind: FillKind,
    pub(super) progress: watch::Sender<Progress>,
}

/// What a fill does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FillKind {
    /// A download.
    Download,
    /// The hash of a blob on the disk.
    Check,
}

/// Who wants a fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Demand {
    /// A client waits for it.
    Client,
    /// Larder itself, for later use.
    Background,
}

/// How far a fill is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The size of the blob in bytes, once it is known.
    pub total: Option<u64>,
    /// Bytes that clients may read.
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
    /// Upstream cannot be reached, and why. The fill resumes when upstream is back.
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

    /// The check of `file`, which has `size` bytes. It is `Queued` until the hash is known, so that its readers do not take
    /// the wait for a stall.
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

    /// The source that its bytes are counted for: a peer, as soon as a part came from one.
    pub fn source(&self) -> ByteSource {
        match (self.kind, self.from_peer.load(Ordering::Relaxed)) {
            (FillKind::Check, _) => ByteSource::Cache,
            (FillKind::Download, true) => ByteSource::Peer,
            (FillKind::Download, false) => ByteSource::Fill,
        }
    }

    /// Why it ended, if the reason was that the disk could not store it.
    pub fn not_stored(&self) -> Option<String> {
        match &self.progress.borrow().phase {
            Phase::Failed(Refusal::NotStored(cause)) => Some(cause.clone()),
            _ => None,
        }
    }

    /// The growing file, once the fill has begun to run.
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

    /// Another request wants it too.
    pub(super) fn demand(&self, demand: Demand) {
        if demand == Demand::Client {
            self.demanded.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn is_demanded(&self) -> bool {
        self.demanded.load(Ordering::Relaxed)
    }
}

/// All fills, by key. A fill leaves the table after its blob is in the store.
#[derive(Default)]
pub(super) struct FillTable(Mutex<HashMap<ContentKey, Arc<Fill>>>);

impl FillTable {
    /// For several changes that others must see at once.
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<ContentKey, Arc<Fill>>> {
        self.0.lock()
    }

    pub(super) fn find(&self, key: &ContentKey) -> Option<Arc<Fill>> {
        self.lock().get(key).cloned()
    }

    pub(super) fn remove(&self, key: &ContentKey) {
        self.lock().remove(key);
    }

    /// What is being fetched or hashed, or is queued for it.
    pub(super) fn under_way(&self) -> HashSet<Digest> {
        let table = self.lock();
        table.values().filter(|fill| !fill.is_parked()).map(|fill| fill.digest().clone()).collect()
    }

    /// Whether the fill of this key runs or waits for its turn.
    pub(super) fn is_under_way(&self, key: &ContentKey) -> bool {
        self.lock().get(key).is_some_and(|fill| !fill.is_parked())
    }

    /// Fills that are not parked, and parked ones.
    pub(super) fn counts(&self) -> (usize, usize) {
        let table = self.lock();
        let parked = table.values().filter(|fill| fill.is_parked()).count();
        (table.len() - parked, parked)
    }
}
