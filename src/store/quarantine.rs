//! Which corrupt blobs the disk would not let go, and how many corrupt blobs there were.
//!
//! A corrupt blob is moved to `quarantine/`. Where the disk takes no change it stays in its place and is remembered
//! here, so that it is not served. Nothing in here can fail.

use crate::budget;
use crate::oci::Digest;
use crate::sync::Mutex;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Corrupt blobs since the start.
#[derive(Default)]
pub(super) struct Quarantine {
    /// Those that are still under `blobs/`, and whether there is any: looked at with each request.
    in_place: Mutex<HashSet<Digest>>,
    any: AtomicBool,
    found: AtomicU64,
}

impl Quarantine {
    /// Whether content is corrupt and could not be moved away.
    pub(super) fn holds(&self, digest: &Digest) -> bool {
        self.any.load(Ordering::Relaxed) && self.in_place.lock().contains(digest)
    }

    /// Remembers a corrupt blob that could not be moved away.
    pub(super) fn hold(&self, digest: &Digest) {
        let mut in_place = self.in_place.lock();
        if in_place.len() < budget::QUARANTINE_FILES_MAX {
            in_place.insert(digest.clone());
            self.any.store(true, Ordering::Relaxed);
        }
    }

    /// Content has come in place of what was corrupt.
    pub(super) fn release(&self, digest: &Digest) {
        if self.any.load(Ordering::Relaxed) {
            self.in_place.lock().remove(digest);
        }
    }

    pub(super) fn count(&self) {
        self.found.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn counted(&self) -> u64 {
        self.found.load(Ordering::Relaxed)
    }
}
