//! A stamp of what the store holds: for as long as it stays the same, what was read from the store is still so.
//!
//! It counts every change that this process makes, after it is made, and has the times at which the kernel saw names come
//! to the folders of blobs and go: what a person removes by hand shows too. It is taken without waiting for the disk,
//! for the folders are held open. Uses of blobs and notes are no changes.

use super::error::{Result, StoreError};
use super::layout::Layout;
use crate::oci::Algorithm;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the store held at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    changes: u64,
    /// For each folder of blobs, in seconds and nanoseconds.
    folders: [(i64, u64); Algorithm::ALL.len()],
}

/// What stamps are taken of.
pub(super) struct Stamps {
    changes: AtomicU64,
    folders: [File; Algorithm::ALL.len()],
}

impl Stamps {
    pub(super) fn of(layout: &Layout) -> Result<Stamps> {
        let [first, second] = Algorithm::ALL.map(|algorithm| {
            let path = layout.blobs(algorithm);
            File::open(&path).map_err(StoreError::io(format!("cannot open {}", path.display())))
        });
        Ok(Stamps { changes: AtomicU64::new(0), folders: [first?, second?] })
    }

    /// The stamp of now; `None` if a folder does not say.
    pub(super) fn now(&self) -> Option<Stamp> {
        let changes = self.changes.load(Ordering::Acquire);
        let mut folders = [(0, 0); Algorithm::ALL.len()];
        for (folder, time) in self.folders.iter().zip(&mut folders) {
            let stat = rustix::fs::fstat(folder).ok()?;
            // The types differ from one architecture to the next.
            #[allow(clippy::unnecessary_cast, clippy::cast_lossless)]
            let seen = (stat.st_ctime as i64, stat.st_ctime_nsec as u64);
            *time = seen;
        }
        Some(Stamp { changes, folders })
    }

    /// Something has changed. Called after the change: what is read between the two is read again.
    pub(super) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }
}
