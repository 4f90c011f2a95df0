//! The breaker of one endpoint: whether requests wait for it.
//!
//! It opens on the first outage of any request and closes on the first success. While it is slow or down, one probe
//! thread asks in the background, with growing pauses, and ends when the link is up. What a request learns
//! counts only if nobody has succeeded since it began, so that one that hung for half a minute cannot close a link
//! that has come back. The breaker refuses nobody: callers look at [`Breaker::link`] and decide.

use super::failure::{Cause, Failure};
use crate::budget::{PROBE_PAUSE_MAX, PROBE_PAUSE_MIN, SMALL_STACK_BYTES};
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
            LinkState::Down { restored: false, .. } => 4,
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
        let state =
            State { link: LinkState::NotAsked, successes: 0, version: 0, probing: false, closed: false };
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

    /// A request that began at `attempt` failed. Only an outage counts, and only if nobody succeeded since.
    pub fn failed(&self, attempt: Attempt, failure: &Failure) {
        if self.shared.failed(attempt, failure) {
            self.probe_in_background(First::Pause);
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

    /// Whether the link left `Up`, or is down and wants a probe.
    fn failed(&self, attempt: Attempt, failure: &Failure) -> bool {
        if matches!(failure.cause(), None | Some(Cause::RateLimited)) {
            return false;
        }
        let since = (self.timing.now)();
        let mut state = self.state.lock();
        if attempt.0 != state.successes {
            return false;
        }
        let since = match &state.link {
            LinkState::Down { restored: false, .. } => return true,
            LinkState::Down { since, .. } => *since,
            LinkState::NotAsked | LinkState::Up | LinkState::Slow { .. } => since,
        };
        self.change(&mut state, LinkState::Down { since, cause: failure.to_string(), restored: false });
        drop(state);
        self.announce();
        true
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
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// Far more than a probe thread takes to get going on a busy machine.
    const WAIT_MAX: Duration = Duration::from_secs(60);

    struct Bench {
        breaker: Breaker,
        /// Where probes get their results from.
        results: Sender<Result<(), Failure>>,
        /// The pauses the probe thread takes, each once it is over.
        pauses: Receiver<Duration>,
        changes: Receiver<LinkState>,
        start: Instant,
    }

    fn bench() -> Bench {
        let (results, wanted) = channel::<Result<(), Failure>>();
        let (paused, pauses) = channel();
        let (changed, changes) = channel();
        let wanted = Mutex::new(wanted);
        let start = Instant::now();
        let timing = Timing {
            now: Box::new(move || start),
            pause: Some(Box::new(move |length| paused.send(length).unwrap_or(()))),
        };
        let probe: Probe = Box::new(move || wanted.lock().recv().ok());
        let breaker = Breaker::with_timing("a.example".to_owned(), probe, timing);
        breaker.on_change(Box::new(move |link| changed.send(link.clone()).unwrap_or(())));
        Bench { breaker, results, pauses, changes, start }
    }

    fn outage() -> Failure {
        Failure::unreachable("a.example", Cause::Refused, "connection refused")
    }

    #[test]
    fn opens_on_the_first_outage_and_closes_on_the_first_good_probe() {
        let bench = bench();
        assert_eq!(bench.breaker.link(), LinkState::NotAsked);
        bench.breaker.failed(bench.breaker.begin(), &outage());
        let down = LinkState::Down {
            since: bench.start,
            cause: "a.example: connection refused".into(),
            restored: false,
        };
        assert_eq!(bench.breaker.link(), down);
        assert!(!bench.breaker.link().is_up());
        assert_eq!(bench.changes.recv_timeout(WAIT_MAX), Ok(down.clone()));
        for expected in [250, 250, 500, 1000, 2000, 4000, 8000, 10_000, 10_000] {
            assert_eq!(bench.pauses.recv_timeout(WAIT_MAX), Ok(Duration::from_millis(expected)));
            bench.results.send(Err(outage())).unwrap();
        }
        bench.results.send(Ok(())).unwrap();
        assert_eq!(bench.changes.recv_timeout(WAIT_MAX), Ok(LinkState::Up));
        assert!(bench.breaker.link().is_up());
    }

    #[test]
    fn what_is_no_outage_of_the_link_does_not_open_it() {
        let bench = bench();
        for failure in [
            Failure::Missing { detail: String::new() },
            Failure::Denied { status: 401, detail: String::new() },
            Failure::wrong("a.example", "nonsense"),
            Failure::unreachable("a.example", Cause::RateLimited, "rate limited"),
        ] {
            bench.breaker.failed(bench.breaker.begin(), &failure);
            assert_eq!(bench.breaker.link(), LinkState::NotAsked);
        }
        bench.breaker.failed(
            bench.breaker.begin(),
            &Failure::unreachable("a.example", Cause::ServerError(503), "answered 503"),
        );
        assert!(!bench.breaker.link().is_up());
    }

    #[test]
    fn a_failure_older_than_the_last_success_is_ignored() {
        let bench = bench();
        let hung = bench.breaker.begin();
        bench.breaker.failed(bench.breaker.begin(), &outage());
        bench.breaker.succeeded();
        bench.breaker.failed(hung, &outage());
        assert!(bench.breaker.link().is_up());
        bench.breaker.failed(bench.breaker.begin(), &outage());
        assert!(!bench.breaker.link().is_up());
    }

    #[test]
    fn slow_is_between_up_and_down() {
        let bench = bench();
        bench.breaker.overdue();
        assert_eq!(bench.breaker.link(), LinkState::Slow { since: bench.start });
        bench.breaker.failed(bench.breaker.begin(), &outage());
        assert!(matches!(bench.breaker.link(), LinkState::Down { .. }));
        bench.breaker.overdue();
        assert!(matches!(bench.breaker.link(), LinkState::Down { .. }));
        bench.breaker.succeeded();
        assert_eq!(bench.breaker.link(), LinkState::Up);
        bench.breaker.overdue();
        bench.results.send(Ok(())).unwrap();
        while bench.changes.recv_timeout(WAIT_MAX).unwrap() != LinkState::Up || !bench.breaker.link().is_up()
        {
        }
    }

    #[test]
    fn a_restored_outage_is_confirmed_or_ended_by_the_probe_at_the_start() {
        let bench = bench();
        bench.breaker.restore_down("it was down");
        assert!(matches!(bench.breaker.link(), LinkState::Down { restored: true, .. }));
        bench.changes.recv_timeout(WAIT_MAX).unwrap();
        bench.breaker.start_probe();
        bench.results.send(Err(outage())).unwrap();
        assert!(matches!(bench.changes.recv_timeout(WAIT_MAX), Ok(LinkState::Down { restored: false, .. })));
        bench.results.send(Ok(())).unwrap();
        assert_eq!(bench.changes.recv_timeout(WAIT_MAX), Ok(LinkState::Up));
        bench.breaker.restore_down("too late");
        assert!(bench.breaker.link().is_up());
    }

    #[test]
    fn the_probe_at_the_start_finds_an_outage_and_shutdown_ends_it() {
        let bench = bench();
        bench.breaker.start_probe();
        bench.results.send(Err(outage())).unwrap();
        assert!(matches!(bench.changes.recv_timeout(WAIT_MAX), Ok(LinkState::Down { .. })));
        bench.breaker.shutdown();
        // The thread is waiting for a result; the next one finds it closed.
        bench.results.send(Err(outage())).unwrap_or(());
        let deadline = Instant::now() + WAIT_MAX;
        while bench.breaker.shared.state.lock().probing {
            assert!(Instant::now() < deadline, "the probe thread goes on");
            thread::yield_now();
        }
    }
}
