//! Room on the disk: the one place that decides whether there is enough, and that makes more (rules 6 and 12).
//!
//! Invariants. The bytes that running fills will still write are reserved, so that two fills do not count on the same
//! free space. One thread at a time checks the disk and reserves; one at a time makes room. Failure: if no room can be
//! made, that is [`StoreError::NoRoom`]. Nothing was removed for a download then; for a manifest what may be removed was, as
//! whenever larder is beyond `disk.max`.

use super::context::Context;
use super::progress::FillTable;
use crate::budget;
use crate::config::Config;
use crate::image::{Busy, Catalogue, Gone, Otherwise};
use crate::oci::Digest;
use crate::store::StoreError;
use crate::sync::Mutex;
use crate::text::bytes_text;
use std::sync::Arc;
use std::time::Instant;

/// Bytes that are missing on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shortage {
    /// For `disk.min_free`.
    by_free: u64,
    /// For `disk.max`.
    by_max: u64,
}

impl Shortage {
    fn bytes(self) -> u64 {
        self.by_free.max(self.by_max)
    }

    /// What to remove so that the limits hold. Above `disk.max` as much is removed as may be; if other programs filled the
    /// disk below `disk.min_free`, images are removed only if that restores it.
    fn remedy(self) -> Option<(u64, Otherwise)> {
        if self.by_free > self.by_max {
            Some((self.by_free, Otherwise::Nothing))
        } else {
            (self.by_max > 0).then_some((self.by_max, Otherwise::Everything))
        }
    }
}

/// The disk as limits see it, in bytes.
#[derive(Debug, Clone, Copy)]
struct DiskState {
    /// Free on the file system.
    free: u64,
    /// Larder's own.
    own: u64,
}

/// The shortage when `coming` more bytes are written.
fn shortage(state: DiskState, coming: u64, min_free: u64, max: Option<u64>) -> Shortage {
    Shortage {
        by_free: coming.saturating_add(min_free).saturating_sub(state.free),
        by_max: max.map_or(0, |max| state.own.saturating_add(coming).saturating_sub(max)),
    }
}

/// An attempt to make room that freed too little; it is not repeated at once.
#[derive(Debug, Clone, Copy)]
struct FailedAttempt {
    at: Instant,
    needed: u64,
    /// Bytes of all blobs at that time.
    stored: u64,
}

impl FailedAttempt {
    /// Whether another attempt would fail like this one.
    fn covers(&self, needed: u64, stored: u64, now: Instant) -> bool {
        needed >= self.needed
            && stored == self.stored
            && now.saturating_duration_since(self.at) < budget::ROOM_PAUSE
    }
}

/// Room on the disk.
pub(super) struct Reserve {
    context: Arc<Context>,
    fills: Arc<FillTable>,
    /// Held from the check of the disk until the bytes are reserved.
    turn: Mutex<()>,
    /// Bytes that running fills will still write.
    reserved: Mutex<u64>,
    /// Locked while room is being made.
    last_failed: Mutex<Option<FailedAttempt>>,
}

/// The bytes that one fill will still write. Dropping it releases them.
pub(super) struct Reservation<'a> {
    reserve: &'a Reserve,
    bytes: u64,
}

impl Reservation<'_> {
    /// Changes the reservation to `bytes`.
    pub(super) fn set(&mut self, bytes: u64) {
        let mut reserved = self.reserve.reserved.lock();
        *reserved = (*reserved).saturating_sub(self.bytes).saturating_add(bytes);
        self.bytes = bytes;
    }

    /// Reserves `bytes` in place of what was reserved, and makes room for them.
    ///
    /// # Errors
    /// [`StoreError::NoRoom`] if nothing that may be removed would make room; then nothing was removed.
    pub(super) fn make(&mut self, bytes: u64) -> Result<(), StoreError> {
        // One at a time, so that two fills do not count on the same bytes.
        let _turn = self.reserve.turn.lock();
        let lacking = self.reserve.shortage(bytes, self.bytes)?.bytes();
        if lacking > 0 && self.reserve.make_room(lacking, Otherwise::Nothing) < lacking {
            return Err(self.reserve.no_room_for(bytes)?);
        }
        self.set(bytes);
        Ok(())
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.set(0);
    }
}

impl Reserve {
    pub(super) fn new(context: Arc<Context>, fills: Arc<FillTable>) -> Reserve {
        Reserve {
            context,
            fills,
            turn: Mutex::default(),
            reserved: Mutex::default(),
            last_failed: Mutex::default(),
        }
    }

    /// A reservation of nothing yet.
    pub(super) fn open(&self) -> Reservation<'_> {
        Reservation { reserve: self, bytes: 0 }
    }

    /// Makes room for a manifest of `bytes` and calls `store`; one at a time, so that two do not count on the same room.
    ///
    /// # Errors
    /// As `store`, and [`StoreError::NoRoom`] if nothing that may be removed would make room.
    pub(super) fn with_room_for_manifest(
        &self,
        digest: &Digest,
        bytes: u64,
        store: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let _turn = self.turn.lock();
        if !self.context.store.contains(digest) {
            let lacking = self.shortage(bytes, 0)?;
            self.mend(lacking);
            if lacking.bytes() > 0 && self.shortage(bytes, 0)?.bytes() > 0 {
                return Err(StoreError::NoRoom { what: format!("there is no room for {digest}") });
            }
        }
        store()
    }

    /// Restores `disk.max` and `disk.min_free`, whichever program used the space.
    pub(super) fn watch(&self) {
        match self.shortage(0, 0) {
            Ok(lacking) => self.mend(lacking),
            Err(problem) => log::warn!("free space on the disk cannot be read: {problem}"),
        }
    }

    /// Removes images that were not used for `disk.expire_unused`, while the clock is trusted. Only time in which a server
    /// ran counts, so that a board that was switched off, or whose clock jumps, loses nothing.
    pub(super) fn expire(&self) {
        let config = self.context.config.now();
        let Some(age) = config.disk.expire_unused.filter(|_| crate::clock::trusted_unix().is_some()) else {
            return;
        };
        let Some(count) = self.context.store.unused_for(age) else { return };
        let _turn = self.last_failed.lock();
        let gone = Catalogue::take(&self.context.store, &config, &self.busy()).and_then(|catalogue| {
            let victims = catalogue.unused_since(count);
            catalogue.remove(&self.context.store, &victims)
        });
        match gone {
            Ok(gone) => drop(self.count("expired", &gone)),
            Err(problem) => log::warn!("images unused for {age:?} could not be removed: {problem}"),
        }
    }

    /// What must not be removed now.
    pub(super) fn busy(&self) -> Busy {
        Busy { fills: self.fills.under_way(), repositories: self.context.pulls.busy() }
    }

    fn mend(&self, lacking: Shortage) {
        if let Some((needed, otherwise)) = lacking.remedy() {
            self.make_room(needed, otherwise);
        }
    }

    /// The shortage for a download with `rest` bytes to come, of which `own` are reserved already: `disk.max` and
    /// `disk.min_free` both hold.
    fn shortage(&self, rest: u64, own: u64) -> Result<Shortage, StoreError> {
        let (store, disk) = (&self.context.store, &self.context.config.now().disk);
        let coming = self.reserved.lock().saturating_sub(own).saturating_add(rest);
        let own =
            if disk.max.is_some() { store.counted_bytes().saturating_add(store.staged_bytes()) } else { 0 };
        let state = DiskState { free: store.free_bytes()?, own };
        Ok(shortage(state, coming, disk.min_free, disk.max))
    }

    /// Removes images until `needed` more bytes are free. Returns the bytes that were freed.
    fn make_room(&self, needed: u64, otherwise: Otherwise) -> u64 {
        let store = &self.context.store;
        let mut last_failed = self.last_failed.lock();
        if last_failed.is_some_and(|last| last.covers(needed, store.stored_bytes(), Instant::now())) {
            return 0;
        }
        let config: Arc<Config> = self.context.config.now();
        let gone = Catalogue::take(store, &config, &self.busy())
            .and_then(|catalogue| catalogue.remove(store, &catalogue.choose(needed, otherwise)));
        let gone = gone.unwrap_or_else(|problem| {
            log::warn!("no room could be made: {problem}");
            Vec::new()
        });
        let freed = self.count("evicted", &gone);
        *last_failed = (freed < needed).then(|| FailedAttempt {
            at: Instant::now(),
            needed,
            stored: store.stored_bytes(),
        });
        if freed < needed {
            let needed = bytes_text(needed);
            log::warn!(
                "{needed} more are needed on the disk, and no image that may be removed would free them"
            );
        }
        freed
    }

    /// Logs and counts what was removed. Returns its bytes.
    fn count(&self, how: &str, gone: &[Gone]) -> u64 {
        for image in gone {
            log::info!("{how} {}: {} are free again", image.what, bytes_text(image.bytes));
        }
        let freed = gone.iter().map(|image| image.bytes).sum();
        self.context.counters.count_evicted(freed);
        freed
    }

    fn no_room_for(&self, bytes: u64) -> Result<StoreError, StoreError> {
        let disk = &self.context.config.now().disk;
        let max = disk.max.map_or(String::new(), |max| format!(", and disk.max is {}", bytes_text(max)));
        let what = format!(
            "the mirror's disk has {} free, of which {} stay free{max}; {} are to come, and no image that may be removed would make room for them",
            bytes_text(self.context.store.free_bytes()?),
            bytes_text(disk.min_free),
            bytes_text(bytes),
        );
        Ok(StoreError::NoRoom { what })
    }
}

#[cfg(test)]
mod tests;
