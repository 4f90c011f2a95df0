//! Maintenance: one table of chores on one sleeping timer.
//!
//! The timer's thread sleeps until the next chore is due and runs it. The scrub reads for long and at the lowest
//! priority, so it has a thread of its own. A chore that fails logs why and runs again at its next turn. Both threads end
//! when the mirror stops or is dropped.

use super::parts::Parts;
use crate::budget;
use crate::config::Config;
use crate::store::Startup;
use crate::sync::{Condvar, Mutex};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// A task that runs at an interval.
struct Chore {
    name: &'static str,
    every: fn(&Config) -> Duration,
    /// It is due as soon as the server has started.
    at_start: bool,
    run: fn(&Parts),
}

/// All chores.
const CHORES: &[Chore] = &[
    Chore {
        name: "log pulls",
        every: |_| budget::MAINTENANCE_TICK,
        at_start: true,
        run: |parts| parts.context.pulls.log_finished(Instant::now()),
    },
    Chore {
        name: "retry parked fills",
        every: |_| budget::MAINTENANCE_TICK,
        at_start: true,
        run: |parts| parts.fills.revive(Instant::now()),
    },
    Chore {
        name: "recover the index",
        every: |_| budget::MAINTENANCE_TICK,
        at_start: true,
        run: recover_index,
    },
    Chore { name: "keep counts", every: |_| budget::MAINTENANCE_TICK, at_start: true, run: keep_counts },
    Chore { name: "watch the disk", every: |_| budget::DISK_WATCH_EVERY, at_start: false, run: watch_disk },
    Chore {
        name: "refetch",
        every: |_| budget::REFETCH_PAUSE,
        at_start: true,
        run: |parts| parts.repairs.refetch(),
    },
    Chore { name: "write uses", every: |_| budget::TOUCH_FLUSH_EVERY, at_start: false, run: flush_touches },
    Chore { name: "expire", every: expire_every, at_start: true, run: expire },
    Chore {
        name: "expire kept logins",
        every: |config| {
            (config.auth.offline_grace / 16).clamp(budget::MAINTENANCE_TICK, budget::KEPT_LOGINS_EVERY)
        },
        at_start: false,
        run: |parts| parts.pull_secrets.expire(),
    },
    Chore {
        name: "save the scrub's position",
        every: |_| budget::SCRUB_SAVE_EVERY,
        at_start: false,
        run: save_session,
    },
];

/// Puts an index that failed back into service.
fn recover_index(parts: &Parts) {
    let store = &parts.context.store;
    if (store.is_damaged() || !store.has_index())
        && parts.recovery.is_due(Instant::now())
        && let Err(problem) = store.recover()
    {
        log::error!("the index could not be put back into service: {problem}");
    }
}

fn keep_counts(parts: &Parts) {
    let age = parts.context.config.now().disk.expire_unused;
    if let Err(problem) = parts.context.store.keep_counts(age) {
        log::debug!("the use counts could not be saved: {problem}");
    }
}

fn watch_disk(parts: &Parts) {
    if parts.context.store.has_index() {
        parts.reserve.watch();
    }
}

fn flush_touches(parts: &Parts) {
    if let Err(problem) = parts.context.store.flush_touches() {
        log::warn!("uses of blobs could not be saved: {problem}");
    }
}

/// Often enough for the marks that measure the age of images.
fn expire_every(config: &Config) -> Duration {
    let age = config.disk.expire_unused.map_or(budget::EXPIRE_EVERY, |age| age / budget::USE_MARKS_EACH);
    age.clamp(budget::MAINTENANCE_TICK, budget::EXPIRE_EVERY)
}

fn expire(parts: &Parts) {
    parts.reserve.expire_staged();
    if parts.context.store.has_index() {
        parts.reserve.expire();
    }
}

fn save_session(parts: &Parts) {
    if let Err(problem) = parts.context.store.save_session() {
        log::warn!("the scrub's position could not be saved: {problem}");
    }
}

/// When each chore is due next. Pure.
struct Timetable {
    due: Vec<Instant>,
}

impl Timetable {
    fn new(due: impl Iterator<Item = Instant>) -> Timetable {
        Timetable { due: due.collect() }
    }

    /// The chores that are due. Each is scheduled again `every` later.
    fn take_due(&mut self, now: Instant, every: impl Fn(usize) -> Duration) -> Vec<usize> {
        let due: Vec<usize> = (0..self.due.len()).filter(|&at| self.due[at] <= now).collect();
        due.iter().for_each(|&at| self.due[at] = now + every(at));
        due
    }

    /// How long to sleep.
    fn sleep(&self, now: Instant) -> Duration {
        let next = self.due.iter().min();
        next.map_or(Duration::MAX, |next| next.saturating_duration_since(now))
    }
}

/// Ends the threads of maintenance.
#[derive(Default)]
pub(super) struct Maintenance {
    ended: Mutex<bool>,
    wake: Condvar,
}

impl Maintenance {
    /// Starts the timer, and the scrub's thread.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(super) fn start(parts: &Arc<Parts>, startup: Startup) -> std::io::Result<Arc<Maintenance>> {
        let maintenance = Arc::new(Maintenance::default());
        let (timer, chores) = (Arc::clone(&maintenance), Arc::downgrade(parts));
        std::thread::Builder::new().name("maintenance".into()).spawn(move || {
            if let Some(parts) = chores.upgrade() {
                begin(&parts, startup);
            }
            timer.run_chores(&chores);
        })?;
        let (timer, scrubbed) = (Arc::clone(&maintenance), Arc::downgrade(parts));
        std::thread::Builder::new()
            .name("scrub".into())
            .stack_size(budget::THREAD_STACK_BYTES)
            .spawn(move || timer.run_scrub(&scrubbed))?;
        Ok(maintenance)
    }

    /// Ends both threads after their current work.
    pub(super) fn stop(&self) {
        *self.ended.lock() = true;
        self.wake.notify_all();
    }

    /// Sleeps. `false`: the thread is to end.
    fn sleep(&self, length: Duration) -> bool {
        let (ended, _) = self.wake.wait_timeout_while(self.ended.lock(), length, |ended| !*ended);
        !*ended
    }

    fn run_chores(&self, parts: &Weak<Parts>) {
        let Some(config) = parts.upgrade().map(|parts| parts.context.config.now()) else { return };
        let now = Instant::now();
        let first = |chore: &Chore| if chore.at_start { now } else { now + (chore.every)(&config) };
        let mut timetable = Timetable::new(CHORES.iter().map(first));
        loop {
            let Some(parts) = parts.upgrade() else { return };
            let config = parts.context.config.now();
            for at in timetable.take_due(Instant::now(), |at| (CHORES[at].every)(&config)) {
                if parts.context.is_stopping() {
                    return;
                }
                let began = Instant::now();
                (CHORES[at].run)(&parts);
                log::trace!("maintenance: {} took {:.1?}", CHORES[at].name, began.elapsed());
            }
            drop(parts);
            if !self.sleep(timetable.sleep(Instant::now())) {
                return;
            }
        }
    }

    fn run_scrub(&self, parts: &Weak<Parts>) {
        // On Linux this lowers the priority of the calling thread only.
        let _ = rustix::process::nice(budget::SCRUB_NICE);
        let mut pause = budget::SCRUB_PAUSE;
        while self.sleep(pause) {
            let Some(parts) = parts.upgrade() else { return };
            pause = parts.verifier.scrub();
        }
    }
}

impl Drop for Maintenance {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Runs once at the start: makes the index ready, and resumes the downloads that an earlier process left.
fn begin(parts: &Parts, startup: Startup) {
    let rebuilds = startup.needs_rebuild();
    match startup.finish(&parts.context.store) {
        Ok(()) => {}
        Err(problem) if rebuilds => log::error!("the index could not be rebuilt: {problem}"),
        // It has been logged.
        Err(problem) if problem.is_without_index() => {}
        Err(problem) => log::warn!("the index could not be read through: {problem}"),
    }
    parts.fills.resume_staged();
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn each_chore_has_its_turn_and_the_timer_sleeps_until_the_next() {
        let (start, every) = (Instant::now(), [SECOND, 3 * SECOND]);
        let mut timetable = Timetable::new([start, start].into_iter());
        assert_eq!(timetable.take_due(start, |at| every[at]), [0, 1], "all are due at the start");
        assert_eq!(timetable.sleep(start), SECOND);
        assert!(timetable.take_due(start + SECOND / 2, |at| every[at]).is_empty());
        assert_eq!(timetable.take_due(start + SECOND, |at| every[at]), [0]);
        assert_eq!(timetable.take_due(start + 3 * SECOND, |at| every[at]), [0, 1]);
        assert_eq!(timetable.sleep(start + 9 * SECOND), Duration::ZERO, "what is late is not skipped");
    }

    #[test]
    fn a_timer_that_is_stopped_does_not_sleep() {
        let maintenance = Maintenance::default();
        assert!(maintenance.sleep(Duration::ZERO));
        maintenance.stop();
        assert!(!maintenance.sleep(Duration::from_secs(3_600)));
    }
}
