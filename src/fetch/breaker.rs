//! The breaker of one endpoint: whether requests wait for it.
//!
//! It opens on the first failure of the link itself (no connection, no trust, no answer in time) that any request meets,
//! and closes on the first success. Whatever else goes wrong belongs to what was asked for and says nothing about the next
//! question: it only has the endpoint probed ([`Breaker::suspect`]), and the probe decides. While it is not up, one probe
//! thread asks in the background, with growing pauses, and ends when the link is up. What a request learns
//! counts only if nobody has succeeded since it began, so that one that hung for half a minute cannot close a link
//! that has come back. The breaker refuses nobody: callers look at [`Breaker::link`] and decide.

use super::failure::{Cause, Failure};
use crate::budget::{PROBE_PAUSE_MAX, PROBE_PAUSE_MIN, SMALL_STACK_BYTES, SUSPECT_PAUSE};
use crate::sync::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// What is known of the way to an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// This run has not asked it yet. Ask it.
    NotAsked,
    /// It answers. Ask it.
    Up,
    /// A check outlived `resolve_deadline`: a request that can be answered from the cache does not wait.
    Slow {
        /// Since when.
        since: Instant,
    },
    /// It can be reached, and answers even a probe with a failure: a request that can be answered from the cache does
    /// not wait, any other may still ask.
    Failing {
        /// Since when.
        since: Instant,
        /// The failure, in a sentence.
        cause: String,
    },
    /// Nobody waits for it.
    Down {
        /// Since when; for a restored state, since the start.
        since: Instant,
        /// The failure, in a sentence.
        cause: String,
        /// Remembered from the last run and not seen in this one.
        restored: bool,
    },
}

impl LinkState {
    /// Whether nothing speaks against asking it.
    pub fn is_up(&self) -> bool {
        matches!(self, LinkState::NotAsked | LinkState::Up)
    }

    /// The best has the lowest.
    pub(super) fn rank(&self) -> u8 {
        match self {
            LinkState::Up => 0,
            LinkState::NotAsked => 1,
            LinkState::Slow { .. } => 2,
            LinkState::Down { restored: true, .. } => 3,
            LinkState::Failing { .. } => 4,
            LinkState::Down { restored: false, .. } => 5,
        }
    }

    /// Whether this run has seen that the upstream cannot be reached, so that to ask it is to wait for nothing. What is
    /// remembered of the last run is reason enough to answer from the cache, and none to refuse what is not there.
    pub fn is_known_down(&self) -> bool {
        matches!(self, LinkState::Down { restored: false, .. })
    }
}

/// When a request began, in successes of its endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Attempt(u64);

/// What is called when a link changes. It may look at the breaker, and must not report to it. It runs on the thread
/// that found out, perhaps the probe's, which has a small stack: hand long work on.
pub(super) type OnLinkChange = Box<dyn Fn(&LinkState) + Send + Sync>;

/// Asks the endpoint once; `None`: the endpoint is gone, stop.
type Probe = Box<dyn Fn() -> Option<Result<(), Failure>> + Send + Sync>;

/// A clone is the same breaker.
#[derive(Clone)]
pub struct Breaker {
    shared: Arc<Shared>,
}

struct Shared {
    /// For the log.
    name: String,
    state: Mutex<State>,
    /// Signalled when the link comes up and at the end.
    settled: Condvar,
    /// `state.link == LinkState::Up`, to be read without the lock.
    up: AtomicBool,
    probe: Probe,
    timing: Timing,
    announcer: Mutex<Announcer>,
}

struct State {
    link: LinkState,
    /// Counts successes, so that a failure can be seen to be older than the last.
    successes: u64,
    /// Counts changes of `link` that are announced.
    version: u64,
    /// There is a probe thread.
    probing: bool,
    /// When a failure that need not be the link's last led to a probe.
    suspected: Option<Instant>,
    closed: bool,
}

#[derive(Default)]
struct Announcer {
    /// The last version that was announced.
    version: u64,
    callback: Option<OnLinkChange>,
}

/// The clock, and the pause between probes where a test stands in for it.
struct Timing {
    now: Box<dyn Fn() -> Instant + Send + Sync>,
    pause: Option<Box<dyn Fn(Duration) + Send + Sync>>,
}

impl Breaker {
    pub(super) fn new(name: String, probe: Probe) -> Self {
        Breaker::with_timing(name, probe, Timing { now: Box::new(Instant::now), pause: None })
    }

    fn with_timing(name: String, probe: Probe, timing: Timing) -> Self {
        let state = State {
            link: LinkState::NotAsked,
            successes: 0,
            version: 0,
            probing: false,
            suspected: None,
            closed: false,
        };
        Breaker {
            shared: Arc::new(Shared {
                name,
                state: Mutex::new(state),
                settled: Condvar::new(),
                up: AtomicBool::new(false),
                probe,
                timing,
                announcer: Mutex::default(),
            }),
        }
    }

    /// The link as it is now.
    pub fn link(&self) -> LinkState {
        let up = self.shared.up.load(Ordering::Acquire);
        if up { LinkState::Up } else { self.shared.state.lock().link.clone() }
    }

    /// Marks the begin of a request.
    pub fn begin(&self) -> Attempt {
        Attempt(self.shared.state.lock().successes)
    }

    /// The endpoint answered.
    pub fn succeeded(&self) {
        self.shared.succeeded();
    }

    /// A request that began at `attempt` failed. If the link failed it opens, unless somebody succeeded since; any other
    /// failure is suspect.
    pub fn failed(&self, attempt: Attempt, failure: &Failure) {
        match failure.cause() {
            Some(cause) if cause.is_of_the_link() => {
                if self.shared.failed(attempt, failure) {
                    // Who has waited for an answer in vain has paused.
                    let first = if cause == Cause::Timeout { First::Now } else { First::Pause };
                    self.probe_in_background(first);
                }
            }
            _ => self.suspect(),
        }
    }

    /// Something failed that need not be the link: a probe finds out, but not many in a row.
    pub fn suspect(&self) {
        if self.shared.suspect() {
            self.probe_in_background(First::Now);
        }
    }

    /// A check outlived `resolve_deadline`.
    pub fn overdue(&self) {
        self.shared.overdue();
        self.probe_in_background(First::Pause);
    }

    /// Takes over what the last run knew. Call it before [`Breaker::start_probe`].
    pub fn restore_down(&self, cause: &str) {
        let since = (self.shared.timing.now)();
        let mut state = self.shared.state.lock();
        if state.link == LinkState::NotAsked {
            self.shared
                .change(&mut state, LinkState::Down { since, cause: cause.to_owned(), restored: true });
        }
        drop(state);
        self.shared.announce();
    }

    /// Probes at once, to know before the first request asks.
    pub fn start_probe(&self) {
        self.probe_in_background(First::Now);
    }

    /// Calls `callback` on every change from now on; changes that follow closely may be announced as one.
    pub(super) fn on_change(&self, callback: OnLinkChange) {
        let version = self.shared.state.lock().version;
        let mut announcer = self.shared.announcer.lock();
        *announcer = Announcer { version, callback: Some(callback) };
    }

    /// Ends the probe thread, for good.
    pub fn shutdown(&self) {
        self.shared.state.lock().closed = true;
        self.shared.settled.notify_all();
    }

    fn probe_in_background(&self, first: First) {
        {
            let mut state = self.shared.state.lock();
            if state.probing || state.closed {
                return;
            }
            state.probing = true;
        }
        let shared = self.shared.clone();
        let spawned = thread::Builder::new()
            .name("probe".to_owned())
            .stack_size(SMALL_STACK_BYTES)
            .spawn(move || shared.probe_until_up(first));
        if let Err(error) = spawned {
            // The next failure tries again.
            log::warn!("cannot start a thread to probe {}: {error}", self.shared.name);
            self.shared.state.lock().probing = false;
        }
    }
}

/// When the first probe is made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum First {
    /// At once, even while the link is up.
    Now,
    /// After a pause, because a request has just failed.
    Pause,
}

impl Shared {
    fn succeeded(&self) {
        let mut state = self.state.lock();
        state.successes = state.successes.wrapping_add(1);
        if state.link != LinkState::Up {
            self.change(&mut state, LinkState::Up);
            drop(state);
            self.settled.notify_all();
            self.announce();
        }
    }

    /// Whether the link left `Up`, or is down and wants a probe. A failure that is not the link's was a probe's.
    fn failed(&self, attempt: Attempt, failure: &Failure) -> bool {
        let since = (self.timing.now)();
        let mut state = self.state.lock();
        if attempt.0 != state.successes {
            return false;
        }
        let of_the_link = failure.cause().is_some_and(Cause::is_of_the_link);
        let since = match (&state.link, of_the_link) {
            (LinkState::Down { restored: false, .. }, true) | (LinkState::Failing { .. }, false) => {
                return true;
            }
            (LinkState::Down { since, .. } | LinkState::Failing { since, .. }, _) => *since,
            (LinkState::NotAsked | LinkState::Up | LinkState::Slow { .. }, _) => since,
        };
        let cause = failure.to_string();
        let link = match of_the_link {
            true => LinkState::Down { since, cause, restored: false },
            false => LinkState::Failing { since, cause },
        };
        self.change(&mut state, link);
        drop(state);
        self.announce();
        true
    }

    /// Whether it is time for a probe because of a failure that need not be the link's.
    fn suspect(&self) -> bool {
        let now = (self.timing.now)();
        let mut state = self.state.lock();
        let due = state.suspected.is_none_or(|last| now.saturating_duration_since(last) >= SUSPECT_PAUSE);
        if due {
            state.suspected = Some(now);
        }
        due
    }

    fn overdue(&self) {
        let since = (self.timing.now)();
        let mut state = self.state.lock();
        if state.link.is_up() {
            self.change(&mut state, LinkState::Slow { since });
            drop(state);
            self.announce();
        }
    }

    fn change(&self, state: &mut State, link: LinkState) {
        self.up.store(link == LinkState::Up, Ordering::Release);
        // The first answer is what was expected, and no news.
        if !(state.link.is_up() && link.is_up()) {
            state.version += 1;
        }
        state.link = link;
    }

    /// Tells the newest state, once, in order.
    fn announce(&self) {
        let mut announcer = self.announcer.lock();
        let (version, link) = {
            let state = self.state.lock();
            (state.version, state.link.clone())
        };
        if version > announcer.version {
            announcer.version = version;
            if let Some(callback) = &announcer.callback {
                callback(&link);
            }
        }
    }

    fn probe_until_up(&self, first: First) {
        let mut pause = PROBE_PAUSE_MIN;
        if first == First::Pause {
            self.pause(pause);
        }
        let mut wanted = first == First::Now;
        loop {
            let attempt = {
                let mut state = self.state.lock();
                if state.closed || (state.link.is_up() && !wanted) {
                    state.probing = false;
                    return;
                }
                Attempt(state.successes)
            };
            wanted = false;
            match (self.probe)() {
                None => self.state.lock().closed = true,
                Some(Ok(())) => self.succeeded(),
                Some(Err(failure)) => {
                    self.failed(attempt, &failure);
                    self.pause(pause);
                    pause = (pause * 2).min(PROBE_PAUSE_MAX);
                }
            }
        }
    }

    /// Rests between probes; ends early when the link is up or all is over.
    fn pause(&self, length: Duration) {
        if let Some(stand_in) = &self.timing.pause {
            return stand_in(length);
        }
        let unsettled = |state: &mut State| !state.link.is_up() && !state.closed;
        drop(self.settled.wait_timeout_while(self.state.lock(), length, unsettled));
    }
}

#[cfg(test)]
mod tests;
