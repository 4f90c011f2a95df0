//! Room on the disk: the one place that decides whether there is enough, and that makes more (rules 6 and 12).
//!
//! Invariants. The bytes that running fills will still write are reserved, so that two fills do not count on the same
//! free space. One thread at a time checks the disk and reserves; one at a time makes room. Room is made only for sizes
//! that a verified manifest states; what has no such size gets what is free. What is staged and nobody fetches goes first.
//! Failure: if no room can be made, that is [`StoreError::NoRoom`], and nothing was removed.
//!
//! Others fill the same file system. Larder gives way until `disk.min_free` holds again: what is staged, then images, the
//! least worth first, and the owner's own only if that mends it, with a warning and a count.

use super::context::Context;
use super::progress::{Fill, FillTable};
use crate::budget;
use crate::config::Config;
use crate::fetch::LinkState;
use crate::image::{Busy, Catalogue, Gone, Otherwise, Stocked};
use crate::oci::Digest;
use crate::store::{ContentKey, Room, Store, StoreError};
use crate::sync::Mutex;
use crate::text::bytes_text;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

mod reservation;

pub(super) use reservation::Reservation;
use reservation::{For, Reserved};

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

    /// What to remove so that the limits hold, as far as may be.
    fn remedy(self, step: u64) -> Option<(u64, Goal)> {
        if self.by_free > self.by_max {
            Some((self.by_free, Goal::GiveWay { step, wanted: false }))
        } else {
            (self.by_max > 0).then_some((self.by_max, Goal::AsFarAsMayBe))
        }
    }
}

/// What room is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    /// Something that comes: all of the room, or part of it is of no use.
    All,
    /// `disk.max`: each byte counts.
    AsFarAsMayBe,
    /// `disk.min_free`, which others went below: each byte counts, and `step` more are freed if that can be.
    GiveWay {
        /// In bytes.
        step: u64,
        /// What the owner wants to stay may go too, if that mends it.
        wanted: bool,
    },
}

impl Goal {
    fn victims(self, catalogue: &Catalogue, needed: u64) -> Vec<&Stocked> {
        match self {
            Goal::All => catalogue.choose(needed, Otherwise::Nothing),
            Goal::AsFarAsMayBe => catalogue.choose(needed, Otherwise::Everything),
            Goal::GiveWay { step, wanted } => catalogue.choose_for_others(needed, step, wanted),
        }
    }

    fn takes_wanted(self) -> bool {
        matches!(self, Goal::GiveWay { wanted: true, .. })
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
    /// What the owner wants to stay might have gone too.
    wanted: bool,
    /// How long it is not repeated: twice as long each time, as long as nothing changes.
    pause: Duration,
}

impl FailedAttempt {
    /// Whether another attempt would fail like this one.
    fn covers(&self, needed: u64, stored: u64, wanted: bool, now: Instant) -> bool {
        needed >= self.needed
            && stored == self.stored
            && (self.wanted || !wanted)
            && now.saturating_duration_since(self.at) < self.pause
    }
}

/// How the file system of a store is looked at.
type LookAtDisk = Box<dyn Fn(&Store) -> Result<Room, StoreError> + Send + Sync>;

/// Room on the disk.
pub(super) struct Reserve {
    context: Arc<Context>,
    fills: Arc<FillTable>,
    /// Held from the check of the disk until the bytes are reserved.
    turn: Mutex<()>,
    reserved: Mutex<Reserved>,
    /// Locked while room is being made.
    last_failed: Mutex<Option<FailedAttempt>>,
    /// Others have filled the disk, and nothing more can be removed: what runs must not fill it further.
    short: AtomicBool,
    /// When the last attempt to free inodes freed too few.
    inodes_failed: Mutex<Option<Instant>>,
    /// How the file system is looked at.
    look: LookAtDisk,
}

impl Reserve {
    pub(super) fn new(context: Arc<Context>, fills: Arc<FillTable>) -> Reserve {
        Reserve {
            context,
            fills,
            turn: Mutex::default(),
            reserved: Mutex::default(),
            last_failed: Mutex::default(),
            short: AtomicBool::new(false),
            inodes_failed: Mutex::default(),
            look: Box::new(Store::room),
        }
    }

    /// A reservation of nothing yet.
    pub(super) fn open(&self, fill: &Arc<Fill>) -> Reservation<'_> {
        Reservation::open(self, Some(Arc::clone(fill)))
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
            let lacking = self.shortage(bytes, None, For::Awaited)?.bytes();
            if lacking > 0 && self.free(lacking, Goal::All) < lacking {
                return Err(StoreError::NoRoom { what: format!("there is no room for {digest}") });
            }
        }
        store()
    }

    /// Restores `disk.max` and `disk.min_free`, whichever program used the space, and bounds what is staged.
    pub(super) fn watch(&self) {
        if let Err(problem) = self.try_watch() {
            log::warn!("free space on the disk cannot be read: {problem}");
        }
    }

    fn try_watch(&self) -> Result<(), StoreError> {
        self.bound_staged();
        let room = (self.look)(&self.context.store)?;
        let step = budget::percent_of(room.total, budget::FREE_STEP_PERCENT).min(budget::FREE_STEP_BYTES_MAX);
        // What nobody waits for takes what is free when it writes, and nothing goes for it.
        let missing = || self.shortage(0, None, For::Awaited);
        let mut freed = match missing()?.remedy(step) {
            Some((needed, goal)) => needed <= self.free(needed, goal),
            None => true,
        };
        // Downloads that run end before anything goes that the owner wants to stay.
        if !freed && self.reserved.lock().by_others(None, For::Nobody) == 0 {
            let needed = missing()?.by_free;
            freed = needed == 0 || needed <= self.free(needed, Goal::GiveWay { step, wanted: true });
        }
        let short = !freed && missing()?.by_free > 0;
        if short != self.short.swap(short, Ordering::Relaxed) {
            self.log_short(short, room);
        }
        self.free_inodes(room);
        Ok(())
    }

    /// Says once that nothing is stored, and once that this is over.
    fn log_short(&self, short: bool, room: Room) {
        let least = bytes_text(self.context.config.now().disk.min_free.of(room.total));
        if short {
            log::warn!(
                "nothing new is stored, and content is passed on: the disk has {} free, and {least} stay free for others (disk.min_free); make room, or set disk.min_free",
                bytes_text(room.free)
            );
        } else {
            log::info!("new content is stored again: the disk has {least} free");
        }
    }

    /// Restores the inodes that are left free, if that can be.
    fn free_inodes(&self, room: Room) {
        let least = budget::percent_of(room.inodes, budget::INODES_FREE_PERCENT);
        let lacking = least.saturating_sub(room.free_inodes);
        let mut failed = self.inodes_failed.lock();
        let rests = failed.is_some_and(|at| at.elapsed() < budget::ROOM_PAUSE_MAX);
        if lacking == 0 || rests {
            return;
        }
        let step = budget::percent_of(room.inodes, budget::FREE_STEP_PERCENT);
        let _turn = self.last_failed.lock();
        let freed = self.remove(|catalogue| {
            let most = catalogue.choose_files(lacking.saturating_add(step));
            if most.is_empty() { catalogue.choose_files(lacking) } else { most }
        });
        *failed = (freed == 0).then(Instant::now);
    }

    /// Removes what is staged and had no new byte for long.
    pub(super) fn expire_staged(&self) {
        self.context.store.expire_staged(budget::STAGED_AGE_MAX, |key| self.fills.is_idle(key));
    }

    /// Bounds what is staged and nobody fetches. The last of it stays, so that a large layer is resumed.
    fn bound_staged(&self) {
        let store = &self.context.store;
        let max = self.context.config.now().disk.max.unwrap_or(u64::MAX);
        let most = budget::STAGED_IDLE_BYTES_MAX.min(max / 2);
        if store.staged_bytes() <= most {
            return;
        }
        let idle = self.idle_staged();
        let bytes: u64 = idle.iter().map(|(_, bytes)| bytes).sum();
        let older = idle.len().saturating_sub(1);
        self.drop_staged(&idle[..older], bytes.saturating_sub(most));
    }

    fn idle_staged(&self) -> Vec<(ContentKey, u64)> {
        self.context.store.idle_staged(|key| self.fills.is_idle(key))
    }

    /// What is staged and may go before any image: what nobody fetches, then what is fetched and nobody waits for.
    fn spare_staged(&self) -> Vec<(ContentKey, u64)> {
        let mut spare = self.idle_staged();
        let size = |key: ContentKey| {
            let bytes = self.context.store.staged_size(&key);
            (key, bytes)
        };
        spare.extend(self.fills.unawaited().into_iter().map(size));
        spare
    }

    /// Removes staged content, the first first, until `needed` bytes are free. Returns the bytes that were freed.
    fn drop_staged(&self, idle: &[(ContentKey, u64)], needed: u64) -> u64 {
        let mut freed = 0;
        for (key, bytes) in idle {
            if freed >= needed {
                break;
            }
            let store = &self.context.store;
            let gone = store.forget_staged(key).is_ok()
                || self.fills.abandon(key, || store.revoke_staged(key).is_ok());
            if gone {
                freed += bytes;
                log::info!("{} that were staged of {} made room", bytes_text(*bytes), key.digest);
            }
        }
        freed
    }

    /// Makes room: first what is staged and nobody waits for goes, then images. Returns the bytes that were freed.
    fn free(&self, needed: u64, goal: Goal) -> u64 {
        let spare = self.spare_staged();
        let staged: u64 = spare.iter().map(|(_, bytes)| bytes).sum();
        let of_images = needed.saturating_sub(staged);
        let freed = if of_images > 0 { self.make_room(of_images, goal) } else { 0 };
        if freed < of_images && goal == Goal::All {
            return freed;
        }
        freed + self.drop_staged(&spare, needed.saturating_sub(freed))
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
        let is_down = |link| matches!(link, LinkState::Down { .. });
        let upstreams = self.context.upstreams.iter().filter(|upstream| is_down(upstream.link()));
        Busy {
            fills: self.fills.awaited(),
            repositories: self.context.pulls.busy(),
            roots: self.context.pulls.busy_roots(),
            unreachable: upstreams.map(|upstream| upstream.name().clone()).collect(),
        }
    }

    /// The shortage for a download with `rest` bytes to come beside what others than `own` have reserved: `disk.max` and
    /// `disk.min_free` both hold.
    fn shortage(&self, rest: u64, own: Option<u64>, whom: For) -> Result<Shortage, StoreError> {
        let (store, disk) = (&self.context.store, &self.context.config.now().disk);
        let coming = self.reserved.lock().by_others(own, whom).saturating_add(rest);
        let own =
            if disk.max.is_some() { store.counted_bytes().saturating_add(store.staged_bytes()) } else { 0 };
        let room = (self.look)(store)?;
        let state = DiskState { free: room.free, own };
        Ok(shortage(state, coming, disk.min_free.of(room.total), disk.max))
    }

    /// Removes images until `needed` more bytes are free. Returns the bytes that were freed.
    fn make_room(&self, needed: u64, goal: Goal) -> u64 {
        let store = &self.context.store;
        let mut last_failed = self.last_failed.lock();
        let (wanted, before) = (goal.takes_wanted(), store.stored_bytes());
        if last_failed.is_some_and(|last| last.covers(needed, before, wanted, Instant::now())) {
            return 0;
        }
        let freed = self.remove(|catalogue| goal.victims(catalogue, needed));
        let again = last_failed.filter(|last| last.stored == before && freed == 0);
        let pause = again.map_or(budget::ROOM_PAUSE, |last| (last.pause * 2).min(budget::ROOM_PAUSE_MAX));
        *last_failed = (freed < needed).then(|| FailedAttempt {
            at: Instant::now(),
            needed,
            stored: store.stored_bytes(),
            wanted,
            pause,
        });
        if freed < needed && again.is_none() {
            let needed = bytes_text(needed);
            log::warn!(
                "{needed} more are needed on the disk, and no image that may be removed would free them"
            );
        }
        freed
    }

    /// Removes what `choose` chooses of everything on the disk. Returns the bytes that were freed.
    fn remove(&self, choose: impl for<'a> FnOnce(&'a Catalogue) -> Vec<&'a Stocked>) -> u64 {
        let (store, config): (_, Arc<Config>) = (&self.context.store, self.context.config.now());
        let gone = Catalogue::take(store, &config, &self.busy())
            .and_then(|catalogue| catalogue.remove(store, &choose(&catalogue)));
        let gone = gone.unwrap_or_else(|problem| {
            log::warn!("no room could be made: {problem}");
            Vec::new()
        });
        self.count("evicted", &gone)
    }

    /// Logs and counts what was removed. Returns its bytes.
    fn count(&self, how: &str, gone: &[Gone]) -> u64 {
        for image in gone.iter().filter(|image| image.wanted) {
            log::warn!("{} was to stay and is removed: other programs fill the disk", image.what);
            self.context.counters.count_evicted_wanted();
        }
        for image in gone {
            log::info!("{how} {}: {} are free again", image.what, bytes_text(image.bytes));
        }
        let freed = gone.iter().map(|image| image.bytes).sum();
        self.context.counters.count_evicted(freed);
        freed
    }

    fn no_room_for(&self, bytes: u64) -> Result<StoreError, StoreError> {
        let room = (self.look)(&self.context.store)?;
        let disk = &self.context.config.now().disk;
        let max = disk.max.map_or(String::new(), |max| format!(", and disk.max is {}", bytes_text(max)));
        let what = format!(
            "the mirror's disk has {} free, of which {} stay free{max}; {} are to come, and no image that may be removed would make room for them",
            bytes_text(room.free),
            bytes_text(disk.min_free.of(room.total)),
            bytes_text(bytes),
        );
        Ok(StoreError::NoRoom { what })
    }
}

#[cfg(test)]
mod tests;
