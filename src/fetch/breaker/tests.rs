//! The breaker against a probe and a clock that the test sets.

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
        Failure::unreachable("a.example", Cause::ServerError(503), "answered 503"),
        Failure::unreachable("a.example", Cause::Cut, "the connection was cut"),
    ] {
        bench.breaker.failed(bench.breaker.begin(), &failure);
        assert_eq!(bench.breaker.link(), LinkState::NotAsked);
    }
    for cause in [Cause::Refused, Cause::Timeout, Cause::Dns, Cause::Tls, Cause::Connection] {
        let bench = self::bench();
        bench.breaker.failed(bench.breaker.begin(), &Failure::unreachable("a.example", cause, "gone"));
        assert!(bench.breaker.link().is_known_down(), "{cause:?}");
    }
}

fn bad_status() -> Failure {
    Failure::unreachable("a.example", Cause::ServerError(500), "answered 500")
}

/// Waits until no probe runs any more.
fn rest(bench: &Bench) {
    let deadline = Instant::now() + WAIT_MAX;
    while bench.breaker.shared.state.lock().probing {
        assert!(Instant::now() < deadline, "the probe thread goes on");
        thread::yield_now();
    }
}

#[test]
fn the_probe_decides_what_a_suspect_failure_means() {
    let bench = bench();
    bench.breaker.succeeded();
    bench.breaker.failed(bench.breaker.begin(), &bad_status());
    bench.results.send(Ok(())).unwrap();
    rest(&bench);
    assert_eq!((bench.breaker.link(), bench.changes.try_recv().ok()), (LinkState::Up, None));

    let bench = self::bench();
    bench.breaker.suspect();
    bench.results.send(Err(bad_status())).unwrap();
    let failing = LinkState::Failing { since: bench.start, cause: "a.example: answered 500".into() };
    assert_eq!(bench.changes.recv_timeout(WAIT_MAX), Ok(failing.clone()));
    assert!(!failing.is_up() && !failing.is_known_down(), "what is not here may still be asked for");
    bench.results.send(Err(outage())).unwrap();
    assert!(matches!(bench.changes.recv_timeout(WAIT_MAX), Ok(LinkState::Down { .. })));
    bench.results.send(Err(Failure::wrong("a.example", "nonsense"))).unwrap();
    assert!(matches!(bench.changes.recv_timeout(WAIT_MAX), Ok(LinkState::Failing { .. })));
    bench.results.send(Ok(())).unwrap();
    assert_eq!(bench.changes.recv_timeout(WAIT_MAX), Ok(LinkState::Up));
}

#[test]
fn failures_in_a_row_lead_to_one_probe() {
    let bench = bench();
    bench.breaker.suspect();
    bench.results.send(Ok(())).unwrap();
    rest(&bench);
    for _ in 0..100 {
        bench.breaker.suspect();
    }
    assert!(!bench.breaker.shared.state.lock().probing, "the clock stands still");
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
    while bench.changes.recv_timeout(WAIT_MAX).unwrap() != LinkState::Up || !bench.breaker.link().is_up() {}
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
