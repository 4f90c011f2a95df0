//! The bytes of all blobs, for the limits of the disk.
//!
//! Blobs come and go one at a time and are counted while they do, so that a count of what is on the disk finds each of
//! them exactly once. Nothing in here can fail.

use crate::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{MutexGuard, OnceLock};

/// Bytes stored.
#[derive(Default)]
pub(super) struct Accounts {
    bytes: AtomicU64,
    /// The disk was listed since the start.
    listed: OnceLock<()>,
    moving: Mutex<()>,
}

/// Held while a blob comes or goes.
pub(super) struct Moving<'a> {
    bytes: &'a AtomicU64,
    _turn: MutexGuard<'a, ()>,
}

impl Accounts {
    pub(super) fn stored(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Takes what the index knows, for as long as nobody has listed the disk.
    pub(super) fn assume(&self, bytes: u64) {
        if self.listed.get().is_none() {
            self.bytes.store(bytes, Ordering::Relaxed);
        }
    }

    /// Lists the disk once after a start.
    pub(super) fn list_once(&self, list: impl FnOnce() -> Option<u64>) {
        self.listed.get_or_init(|| self.list(list));
    }

    /// Takes what `list` finds on the disk. Nothing comes or goes meanwhile.
    pub(super) fn list(&self, list: impl FnOnce() -> Option<u64>) {
        let _turn = self.moving.lock();
        if let Some(bytes) = list() {
            self.bytes.store(bytes, Ordering::Relaxed);
        }
    }

    /// Waits until no other blob comes or goes.
    pub(super) fn moving(&self) -> Moving<'_> {
        Moving { bytes: &self.bytes, _turn: self.moving.lock() }
    }
}

impl Moving<'_> {
    /// A blob comes.
    pub(super) fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A blob has gone, or failed to come.
    pub(super) fn take(&self, bytes: u64) {
        let less = |stored: u64| Some(stored.saturating_sub(bytes));
        let _ = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}
