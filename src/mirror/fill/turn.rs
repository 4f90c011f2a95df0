//! The turn of a run in its download slot: whether it is slower than what others may have to wait for.

use crate::budget;
use std::time::Instant;

/// A turn. It begins again whenever [`budget::FILL_TURN_BYTES`] have come, and is over if they do not come in time.
#[derive(Debug)]
pub(in crate::mirror) struct Turn {
    began: Instant,
    bytes: u64,
    looked: Instant,
}

impl Turn {
    pub(in crate::mirror) fn begin(now: Instant) -> Turn {
        Turn { began: now, bytes: 0, looked: now }
    }

    /// So many bytes have come.
    pub(in crate::mirror) fn count(&mut self, bytes: u64, now: Instant) {
        self.bytes += bytes;
        if self.bytes >= budget::FILL_TURN_BYTES && !self.is_over(now) {
            (self.began, self.bytes) = (now, 0);
        }
    }

    /// Whether it is too slow for others to wait for. What drips is so sooner.
    pub(in crate::mirror) fn is_over(&self, now: Instant) -> bool {
        let taken = now.saturating_duration_since(self.began);
        let drips = self.bytes < taken.as_secs() * budget::JOIN_RATE_MIN;
        taken >= budget::FILL_TURN_TIME || taken >= budget::FILL_DRIP_TIME && drips
    }

    /// Whether to look now who waits, which is not worth it for each chunk.
    pub(in crate::mirror) fn may_look(&mut self, now: Instant) -> bool {
        let due = now.saturating_duration_since(self.looked) >= budget::FILL_LOOK_PAUSE;
        if due {
            self.looked = now;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_lasts_as_long_as_enough_comes() {
        let start = Instant::now();
        let mut turn = Turn::begin(start);
        let mut now = start;
        for _ in 0..100 {
            now += budget::FILL_TURN_TIME / 2;
            turn.count(budget::FILL_TURN_BYTES, now);
            assert!(!turn.is_over(now));
        }
        assert!(turn.is_over(now + budget::FILL_TURN_TIME));
        let mut slow = Turn::begin(start);
        for second in 0..30 {
            let now = start + std::time::Duration::from_secs(second);
            slow.count(2 * budget::JOIN_RATE_MIN, now);
            assert_eq!(slow.is_over(now), second >= budget::FILL_TURN_TIME.as_secs(), "{second}");
        }
        let mut drip = Turn::begin(start);
        drip.count(1, start);
        assert!(
            !drip.is_over(start + budget::FILL_DRIP_TIME / 2) && drip.is_over(start + budget::FILL_DRIP_TIME)
        );
        let late = start + budget::FILL_TURN_TIME;
        slow.count(budget::FILL_TURN_BYTES, late);
        assert!(slow.is_over(late), "what came too late does not count");
    }

    #[test]
    fn it_does_not_look_for_each_chunk() {
        let start = Instant::now();
        let mut turn = Turn::begin(start);
        assert!(!turn.may_look(start));
        assert!(turn.may_look(start + budget::FILL_LOOK_PAUSE));
        assert!(!turn.may_look(start + budget::FILL_LOOK_PAUSE));
    }
}
