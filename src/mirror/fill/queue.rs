//! The queue for the download slots, and when parked fills are tried again. Pure but for its lock.
//!
//! Fills that clients wait for come before fills for later use; whose turn it is among them, and which slots are kept, says
//! `places`. Invariant: each item that `next` returns is given back by `done` once.

use crate::budget;
use crate::places::{Allotment, Asking, Turns, Waits};
use crate::store::ContentKey;
use crate::sync::{Condvar, Mutex};
use std::collections::HashMap;
use std::time::Instant;

/// The queue.
pub(super) struct FillQueue<T> {
    state: Mutex<QueueState<T>>,
    wake: Condvar,
}

struct QueueState<T> {
    turns: Turns<T>,
    closed: bool,
}

impl<T: Waits> FillQueue<T> {
    pub(super) fn new(slots: Allotment) -> FillQueue<T> {
        let state = QueueState { turns: Turns::new(slots), closed: false };
        FillQueue { state: Mutex::new(state), wake: Condvar::new() }
    }

    /// Puts `item` at the end.
    pub(super) fn push(&self, item: T) {
        self.state.lock().turns.push(item);
        self.wake.notify_one();
    }

    /// A client waits for what nobody waited for.
    pub(super) fn changed(&self) {
        self.wake.notify_one();
    }

    /// Takes out what waits and `is` so.
    pub(super) fn remove(&self, is: impl Fn(&T) -> bool) {
        drop(self.state.lock().turns.remove(is));
    }

    /// Waits for the next, and takes a slot for it. `None`: the queue is closed.
    pub(super) fn next(&self) -> Option<T> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(item) = state.turns.take_next() {
                return Some(item);
            }
            state = self.wake.wait(state);
        }
    }

    /// Gives the slot back that `item` has.
    pub(super) fn done(&self, item: &T) {
        self.state.lock().turns.done(item.asking());
        self.wake.notify_all();
    }

    /// Whether `running` should give its slot to one that a client waits for; see [`Turns::must_make_way`].
    pub(super) fn must_make_way(&self, running: &T, may_share: bool, slow: bool) -> bool {
        self.state.lock().turns.must_make_way(running, may_share, slow)
    }

    /// Whether one that is asked for so would have a slot at once.
    pub(super) fn has_slot_for(&self, asking: &Asking) -> bool {
        self.state.lock().turns.has_place(asking)
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

    /// What is 10 and more is waited for. The hundreds are the registry, the thousands the repository.
    #[derive(Debug, Clone)]
    struct Item(u32, Arc<Asking>);

    impl PartialEq for Item {
        fn eq(&self, other: &Item) -> bool {
            self.0 == other.0
        }
    }

    impl Waits for Item {
        fn asking(&self) -> &Asking {
            &self.1
        }

        fn is_awaited(&self) -> bool {
            self.0 % 100 >= 10
        }
    }

    fn item(number: u32) -> Item {
        let (registry, repository) = (format!("r{}.test", number / 100 % 10), format!("a/{}", number / 1000));
        Item(number, Arc::new(Asking::new(&registry, &repository, None)))
    }

    fn queue(streams: usize) -> FillQueue<Item> {
        FillQueue::new(Allotment::of_streams(streams))
    }

    fn next(queue: &FillQueue<Item>) -> Option<u32> {
        queue.next().map(|item| item.0)
    }

    /// Who may run now, in the order of their turns, without waiting.
    fn able(queue: &FillQueue<Item>) -> Vec<u32> {
        let mut order = Vec::new();
        while queue.state.lock().turns.is_turn_of(|_| true) {
            order.extend(next(queue));
        }
        order
    }

    #[test]
    fn a_registry_and_a_repository_that_have_none_find_a_slot() {
        let queue = self::queue(4);
        for number in [10, 11, 12, 13, 14] {
            queue.push(item(number));
        }
        assert_eq!(able(&queue), [10, 11, 12], "its repository takes no more");
        queue.push(item(1_010));
        queue.push(item(1_011));
        assert_eq!(able(&queue), [1_010], "another repository of the registry takes one");
        queue.push(item(110));
        queue.push(item(210));
        assert_eq!(able(&queue), [110], "another registry finds the last");
        queue.done(&item(10));
        assert_eq!(able(&queue), [210], "a registry that has none comes first");
        queue.done(&item(10));
        assert_eq!(able(&queue), Vec::<u32>::new(), "one is kept");
        queue.done(&item(10));
        assert_eq!(able(&queue), [13], "then the repository that has none");
    }

    #[test]
    fn what_nobody_waits_for_leaves_the_kept_slots_and_makes_way() {
        let queue = self::queue(2);
        for number in [1, 101, 201] {
            queue.push(item(number));
        }
        assert_eq!(able(&queue), [1], "two are kept");
        assert!(!queue.must_make_way(&item(1), false, false), "for what nobody waits for it does not");
        queue.push(item(11));
        assert_eq!(able(&queue), Vec::<u32>::new(), "its repository has one");
        assert!(queue.must_make_way(&item(1), false, false));
        assert!(!queue.must_make_way(&item(1), false, false), "one that makes way is enough");
        queue.done(&item(1));
        assert_eq!(able(&queue), [11]);
        assert!(!queue.must_make_way(&item(11), false, false), "a client waits for it");
    }

    #[test]
    fn a_slow_one_makes_way_for_whose_turn_it_is_and_for_nobody_else() {
        let queue = self::queue(1);
        queue.push(item(10));
        assert_eq!(able(&queue), [10]);
        assert!(!queue.must_make_way(&item(10), true, true), "alone it may be as slow as it is");
        queue.push(item(1));
        assert!(!queue.must_make_way(&item(10), true, true), "nobody waits for the other");
        queue.push(item(110));
        assert!(!queue.must_make_way(&item(10), true, true), "there is a slot for it");
        assert_eq!(able(&queue), [110]);
        queue.push(item(111));
        assert!(!queue.must_make_way(&item(10), true, true), "its registry has one already");
        assert!(queue.must_make_way(&item(110), true, true), "it is the turn of the next of its registry");
        queue.done(&item(110));
        assert_eq!(able(&queue), [111]);
        queue.push(item(210));
        assert!(!queue.must_make_way(&item(10), false, false) && queue.must_make_way(&item(10), true, true));
        queue.remove(|item| item.0 == 210);
        queue.done(&item(10));
        assert_eq!(
            able(&queue),
            Vec::<u32>::new(),
            "what was taken out does not run, the rest leaves what is kept"
        );
    }

    #[test]
    fn what_clients_wait_for_goes_first_and_else_the_first_does() {
        let queue = self::queue(63);
        for number in [3, 1, 10, 2, 12] {
            queue.push(item(number));
        }
        let mut order = Vec::new();
        for _ in 0..5 {
            order.push(next(&queue).unwrap());
        }
        assert_eq!(order, [10, 12, 3, 1, 2]);
    }

    #[test]
    fn a_closed_queue_lets_every_slot_end_and_keeps_what_waits() {
        let queue = self::queue(4);
        queue.push(item(1));
        assert!(!queue.is_closed());
        queue.close();
        assert!(queue.is_closed());
        assert_eq!(next(&queue), None);
        assert_eq!(*queue.state.lock().turns.waiting(), [item(1)]);
        let queue = Arc::new(self::queue(4));
        let slots: Vec<_> = (0..2)
            .map(|_| {
                let queue = Arc::clone(&queue);
                std::thread::spawn(move || queue.next())
            })
            .collect();
        queue.push(item(7));
        queue.close();
        let got: Vec<_> = slots.into_iter().map(|slot| slot.join().unwrap()).collect();
        assert!(got.iter().filter(|got| got.is_some()).count() <= 1, "{got:?}");
    }

    #[test]
    fn a_slot_that_waits_is_woken_by_what_comes() {
        let queue = Arc::new(self::queue(4));
        let waiting = Arc::clone(&queue);
        let slot = std::thread::spawn(move || next(&waiting));
        queue.push(item(5));
        assert_eq!(slot.join().unwrap(), Some(5));
    }

    // Whether a slot waits already cannot be seen, so these two come often enough that some do.
    #[test]
    fn whatever_comes_wakes_a_slot() {
        let (queue, (took, taken)) = (Arc::new(self::queue(4)), mpsc::channel());
        let slot = Arc::clone(&queue);
        std::thread::spawn(move || {
            while let Some(item) = slot.next() {
                slot.done(&item);
                took.send(item.0).unwrap();
            }
        });
        for number in 0..1000 {
            queue.push(item(number));
            assert_eq!(taken.recv_timeout(LONG), Ok(number));
        }
        queue.close();
        assert_eq!(taken.recv_timeout(LONG), Err(mpsc::RecvTimeoutError::Disconnected));
    }

    #[test]
    fn the_end_wakes_every_slot() {
        for _ in 0..100 {
            let queue = Arc::new(self::queue(4));
            let (tell, told) = mpsc::channel();
            for _ in 0..3 {
                let (queue, tell) = (Arc::clone(&queue), tell.clone());
                std::thread::spawn(move || {
                    tell.send(None).unwrap();
                    tell.send(Some(next(&queue))).unwrap();
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
