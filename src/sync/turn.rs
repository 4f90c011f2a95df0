//! The turn of a thread: what it does for others is called off when others wait for the thread.
//!
//! Who gives a thread its work says how it is found out ([`in_turn`]), and what waits on that thread asks now and then
//! ([`is_called_off`]). A thread without a turn is never called off. Once it was, it stays so until the work ends.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How far the work of a turn is.
#[derive(Debug, Clone, Copy)]
pub struct TurnPace {
    /// When it began.
    pub began: Instant,
    /// When the body of the present answer began, and the bytes that came of it.
    pub body: Option<(Instant, u64)>,
}

impl TurnPace {
    /// Whether a body has been coming for `time` with fewer than `rate` bytes a second.
    pub fn is_below(&self, rate: u64, time: Duration) -> bool {
        let below = |(since, bytes): (Instant, u64)| {
            let taken = since.elapsed();
            taken >= time && u128::from(bytes) * 1_000 < u128::from(rate) * taken.as_millis()
        };
        self.body.is_some_and(below)
    }
}

type Condition<'a> = Rc<dyn Fn(&TurnPace) -> bool + 'a>;

struct ThreadTurn {
    pace: TurnPace,
    must_end: Vec<Condition<'static>>,
    called_off: bool,
}

thread_local! {
    static TURN: RefCell<Option<ThreadTurn>> = const { RefCell::new(None) };
}

/// Does work that is called off as soon as `must_end`; whether it was, so that what came of it is no result.
pub fn in_turn<T>(must_end: impl Fn(&TurnPace) -> bool + 'static, work: impl FnOnce() -> T) -> (T, bool) {
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            TURN.with_borrow_mut(Option::take);
        }
    }
    let pace = TurnPace { began: Instant::now(), body: None };
    let turn = ThreadTurn { pace, must_end: vec![Rc::new(must_end)], called_off: false };
    TURN.set(Some(turn));
    let _end = End;
    let result = work();
    (result, TURN.with_borrow(|turn| turn.as_ref().is_some_and(|turn| turn.called_off)))
}

/// One more condition for the work of this thread, until the guard is dropped.
#[must_use = "the condition ends when this is dropped"]
pub struct AlsoUntil(());

/// The work of this thread is called off as soon as this is so, too.
pub fn also_until(must_end: impl Fn(&TurnPace) -> bool + 'static) -> AlsoUntil {
    TURN.with_borrow_mut(|turn| {
        if let Some(turn) = turn {
            turn.must_end.push(Rc::new(must_end));
        }
    });
    AlsoUntil(())
}

impl Drop for AlsoUntil {
    fn drop(&mut self) {
        TURN.with_borrow_mut(|turn| turn.as_mut().and_then(|turn| turn.must_end.pop()));
    }
}

/// Whether this thread has a turn that can be called off.
pub fn has_turn() -> bool {
    TURN.with_borrow(Option::is_some)
}

/// Whether what this thread does is called off.
pub fn is_called_off() -> bool {
    let asked = TURN
        .with_borrow(|turn| turn.as_ref().map(|turn| (turn.called_off, turn.pace, turn.must_end.clone())));
    let Some((called_off, pace, must_end)) = asked else { return false };
    let called_off = called_off || must_end.iter().any(|must_end| must_end(&pace));
    if called_off {
        TURN.with_borrow_mut(|turn| turn.iter_mut().for_each(|turn| turn.called_off = true));
    }
    called_off
}

/// The body of an answer begins.
pub fn begin_body() {
    TURN.with_borrow_mut(|turn| turn.iter_mut().for_each(|turn| turn.pace.body = Some((Instant::now(), 0))));
}

/// So many bytes of it have come.
pub fn count_body(bytes: usize) {
    TURN.with_borrow_mut(|turn| {
        if let Some((_, come)) = turn.as_mut().and_then(|turn| turn.pace.body.as_mut()) {
            *come += bytes as u64;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn work_is_called_off_once_and_for_all_of_its_turn() {
        assert!(!has_turn() && !is_called_off());
        let end = Rc::new(Cell::new(false));
        let must_end = Rc::clone(&end);
        let ((), called_off) = in_turn(
            move |_| must_end.get(),
            || {
                assert!(has_turn() && !is_called_off());
                end.set(true);
                assert!(is_called_off());
                end.set(false);
                assert!(is_called_off(), "it stays so");
            },
        );
        assert!(called_off && !has_turn() && !is_called_off());
        let (seen, called_off) = in_turn(
            |_| false,
            || {
                let more = also_until(|_| true);
                drop(more);
                is_called_off()
            },
        );
        assert!(!seen && !called_off, "a condition ends with its guard");
        let caught = std::panic::catch_unwind(|| in_turn(|_| true, || panic!("on purpose")));
        assert!(caught.is_err() && !has_turn());
    }

    #[test]
    fn a_body_is_below_a_rate_only_after_some_time() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let pace = |body| TurnPace { began: now, body };
        assert!(!pace(None).is_below(1_000, Duration::ZERO));
        let Some(before) = now.checked_sub(10 * second) else { return };
        assert!(pace(Some((before, 9_000))).is_below(1_000, 5 * second));
        assert!(!pace(Some((before, 9_000))).is_below(1_000, 60 * second));
        assert!(!pace(Some((before, 60_000))).is_below(1_000, 5 * second));
        let counted = in_turn(
            |pace| pace.body.is_some_and(|(_, bytes)| bytes >= 7),
            || {
                count_body(9);
                assert!(!is_called_off(), "no body has begun");
                begin_body();
                count_body(7);
                is_called_off()
            },
        );
        assert_eq!(counted, (true, true));
    }
}
