//! The queue for the download slots, and when parked fills are tried again. Pure but for its lock.
//!
//! Fills that clients wait for come before fills for later use; among equals the first comes first.

use crate::budget;
use crate::store::ContentKey;
use crate::sync::{Condvar, Mutex};
use std::collections::{HashMap, VecDeque};
use std::time::Instant;

/// The queue.
pub(super) struct FillQueue<T> {
    state: Mutex<QueueState<T>>,
    wake: Condvar,
}

struct QueueState<T> {
    waiting: VecDeque<T>,
    closed: bool,
}

impl<T> FillQueue<T> {
    pub(super) fn new() -> FillQueue<T> {
        FillQueue {
            state: Mutex::new(QueueState { waiting: VecDeque::new(), closed: false }),
            wake: Condvar::new(),
        }
    }

    /// Puts `item` at the end.
    pub(super) fn push(&self, item: T) {
        self.state.lock().waiting.push_back(item);
        self.wake.notify_one();
    }

    /// Waits for the next: the first that `is_urgent`, else the first. `None`: the queue is closed.
    pub(super) fn next(&self, is_urgent: impl Fn(&T) -> bool) -> Option<T> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return None;
            }
            let urgent = state.waiting.iter().position(&is_urgent);
            if let Some(item) = state.waiting.remove(urgent.unwrap_or(0)) {
                return Some(item);
            }
            state = self.wake.wait(state);
        }
    }

    /// From now on `next` returns `None`.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.wake.notify_all();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }
}

/// How often a parked fill was retried since it last received a byte, and when the next retry is due.
#[derive(Debug, Default)]
struct Revival {
    tried: u32,
    at: Option<Instant>,
}

/// The retries of parked fills: with growing pauses, and a limited number.
#[derive(Debug, Default)]
pub(super) struct Revivals(HashMap<ContentKey, Revival>);

/// What to do with a parked fill now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parked {
    /// Leave it parked.
    Rest,
    /// Run it.
    Retry,
    /// End it: it was tried often enough.
    GiveUp,
}

impl Revivals {
    /// What to do with a parked fill at `now`.
    pub(super) fn look(&mut self, key: &ContentKey, now: Instant) -> Parked {
        let revival = self.0.entry(key.clone()).or_default();
        let pause = budget::FILL_REVIVAL_PAUSE * 2u32.saturating_pow(revival.tried.min(8));
        if now < *revival.at.get_or_insert(now + pause) {
            return Parked::Rest;
        }
        revival.tried += 1;
        revival.at = None;
        if revival.tried > budget::FILL_REVIVALS_MAX { Parked::GiveUp } else { Parked::Retry }
    }

    /// Forgets fills that are no longer in `keep`.
    pub(super) fn retain(&mut self, keep: impl Fn(&ContentKey) -> bool) {
        self.0.retain(|key, _| keep(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::AccessClass;
    use std::sync::{Arc, mpsc};
    use std::time::Duration;

    /// Longer than any thread takes.
    const LONG: Duration = Duration::from_secs(20);

    fn key(fill: char) -> ContentKey {
        let digest = format!("sha256:{}", String::from(fill).repeat(64)).parse().unwrap();
        ContentKey::shared("docker.io".parse().unwrap(), AccessClass::Public, digest)
    }

    #[test]
    fn what_clients_wait_for_goes_first_and_else_the_first_does() {
        let queue = FillQueue::new();
        for item in [3, 1, 10, 2, 12] {
            queue.push(item);
        }
        let mut order = Vec::new();
        for _ in 0..5 {
            order.push(queue.next(|item| *item >= 10).unwrap());
        }
        assert_eq!(order, [10, 12, 3, 1, 2]);
    }

    #[test]
    fn a_closed_queue_lets_every_slot_end_and_keeps_what_waits() {
        let queue = FillQueue::new();
        queue.push(1);
        assert!(!queue.is_closed());
        queue.close();
        assert!(queue.is_closed());
        assert_eq!(queue.next(|_| true), None);
        assert_eq!(queue.state.lock().waiting, [1]);
        let queue: Arc<FillQueue<u32>> = Arc::new(FillQueue::new());
        let slots: Vec<_> = (0..2)
            .map(|_| {
                let queue = Arc::clone(&queue);
                std::thread::spawn(move || queue.next(|_| false))
            })
            .collect();
        queue.push(7);
        queue.close();
        let got: Vec<_> = slots.into_iter().map(|slot| slot.join().unwrap()).collect();
        assert!(got.iter().filter(|got| got.is_some()).count() <= 1, "{got:?}");
    }

    #[test]
    fn a_slot_that_waits_is_woken_by_what_comes() {
        let queue: Arc<FillQueue<u32>> = Arc::new(FillQueue::new());
        let waiting = Arc::clone(&queue);
        let slot = std::thread::spawn(move || waiting.next(|_| false));
        queue.push(5);
        assert_eq!(slot.join().unwrap(), Some(5));
    }

    // Whether a slot waits already cannot be seen, so these two come often enough that some do.
    #[test]
    fn whatever_comes_wakes_a_slot() {
        let (queue, (took, taken)) = (Arc::new(FillQueue::new()), mpsc::channel());
        let slot = Arc::clone(&queue);
        std::thread::spawn(move || while slot.next(|_| false).is_some_and(|item| took.send(item).is_ok()) {});
        for item in 0..1000 {
            queue.push(item);
            assert_eq!(taken.recv_timeout(LONG), Ok(item));
        }
        queue.close();
        assert_eq!(taken.recv_timeout(LONG), Err(mpsc::RecvTimeoutError::Disconnected));
    }

    #[test]
    fn the_end_wakes_every_slot() {
        for _ in 0..100 {
            let queue: Arc<FillQueue<u32>> = Arc::new(FillQueue::new());
            let (tell, told) = mpsc::channel();
            for _ in 0..3 {
                let (queue, tell) = (Arc::clone(&queue), tell.clone());
                std::thread::spawn(move || {
                    tell.send(None).unwrap();
                    tell.send(Some(queue.next(|_| false))).unwrap();
                });
            }
            assert_eq!([0; 3].map(|_| told.recv_timeout(LONG)), [Ok(None); 3], "they begin");
            queue.close();
            assert_eq!([0; 3].map(|_| told.recv_timeout(LONG)), [Ok(Some(None)); 3], "they end");
        }
    }

    #[test]
    fn a_parked_fill_is_tried_at_growing_distances_and_then_given_up() {
        let (mut revivals, start) = (Revivals::default(), Instant::now());
        let mut now = start;
        let mut pauses = Vec::new();
        loop {
            assert_eq!(revivals.look(&key('a'), now), Parked::Rest, "its pause begins");
            let began = now;
            let outcome = loop {
                now += Duration::from_secs(1);
                let outcome = revivals.look(&key('a'), now);
                if outcome != Parked::Rest {
                    break outcome;
                }
            };
            pauses.push((now - began).as_secs());
            if outcome == Parked::GiveUp {
                break;
            }
        }
        let unit = budget::FILL_REVIVAL_PAUSE.as_secs();
        assert_eq!(pauses.len(), budget::FILL_REVIVALS_MAX as usize + 1);
        assert_eq!(pauses[..4], [unit, 2 * unit, 4 * unit, 8 * unit]);
        assert_eq!(pauses.last(), Some(&(256 * unit)), "the pauses stop growing");
        assert_eq!(revivals.look(&key('a'), now), Parked::Rest);
        assert_eq!(
            revivals.look(&key('a'), now + 256 * budget::FILL_REVIVAL_PAUSE),
            Parked::GiveUp,
            "for good"
        );
    }

    #[test]
    fn each_fill_has_its_own_pauses_and_only_what_is_kept_goes_on_with_them() {
        let (mut revivals, start) = (Revivals::default(), Instant::now());
        let after = |pauses| start + pauses * budget::FILL_REVIVAL_PAUSE;
        for (pauses, expected) in [(0, Parked::Rest), (1, Parked::Retry), (1, Parked::Rest)] {
            for fill in ['a', 'b'] {
                assert_eq!(revivals.look(&key(fill), after(pauses)), expected, "{fill} after {pauses}");
            }
        }
        revivals.retain(|known| *known == key('b'));
        assert_eq!(revivals.look(&key('a'), after(3)), Parked::Rest, "its pause begins");
        assert_eq!(revivals.look(&key('b'), after(3)), Parked::Retry, "its second pause is over");
    }

    #[test]
    fn a_fill_that_had_bytes_begins_again_with_the_shortest_pause() {
        let (mut revivals, now) = (Revivals::default(), Instant::now());
        assert_eq!(revivals.look(&key('a'), now), Parked::Rest);
        assert_eq!(revivals.look(&key('a'), now + budget::FILL_REVIVAL_PAUSE), Parked::Retry);
        revivals.retain(|known| *known == key('b'));
        assert_eq!(revivals.look(&key('a'), now), Parked::Rest);
        assert_eq!(revivals.look(&key('a'), now + budget::FILL_REVIVAL_PAUSE), Parked::Retry);
    }
}
