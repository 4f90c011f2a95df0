//! The bandwidth cap: all blob downloads together keep to `fetch.bandwidth`.
//!
//! A byte is paid for after it was read: the reader is told how long to rest before it reads again. Readers queue in
//! the order in which they pay, so that one download cannot starve another.

use crate::budget::{BANDWIDTH_BURST, FETCH_CHUNK_BYTES};
use crate::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

/// Smallest read where the cap is so low that a tenth of a second would be a handful of bytes.
const CHUNK_BYTES_MIN: u64 = 1024;

#[derive(Debug)]
pub(super) struct Pace {
    /// Bits per second; `None`: no cap.
    rate: Option<u64>,
    /// When everything read so far is paid for.
    paid_at: Mutex<Option<Instant>>,
}

impl Pace {
    pub fn new(rate: Option<u64>) -> Self {
        Pace { rate: rate.map(|rate| rate.max(1)), paid_at: Mutex::new(None) }
    }

    /// How much to read at a time, so that no read takes much more than the burst.
    pub fn chunk(&self) -> usize {
        let Some(rate) = self.rate else { return FETCH_CHUNK_BYTES };
        let burst = u128::from(rate) * BANDWIDTH_BURST.as_millis() / 8_000;
        let burst = u64::try_from(burst).unwrap_or(u64::MAX).max(CHUNK_BYTES_MIN);
        usize::try_from(burst).unwrap_or(usize::MAX).min(FETCH_CHUNK_BYTES)
    }

    /// Pays for `count` bytes, resting as long as the cap asks for.
    pub fn pay(&self, count: usize) {
        let rest = self.owed(count, Instant::now());
        if !rest.is_zero() {
            thread::sleep(rest);
        }
    }

    /// How long to rest at `now` for `count` bytes.
    fn owed(&self, count: usize, now: Instant) -> Duration {
        let Some(rate) = self.rate else { return Duration::ZERO };
        let price = Duration::from_secs_f64(count as f64 * 8.0 / rate as f64);
        let mut paid_at = self.paid_at.lock();
        let from = paid_at.map_or(now, |at| at.max(now));
        *paid_at = Some(from + price);
        (from + price).saturating_duration_since(now).saturating_sub(BANDWIDTH_BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept_over_time_whoever_reads() {
        let pace = Pace::new(Some(8_000_000));
        let start = Instant::now();
        let mut clocks = [start, start];
        let mut bytes = [0u64; 2];
        for _ in 0..500 {
            let reader = usize::from(clocks[1] < clocks[0]);
            bytes[reader] += 100_000;
            let rest = pace.owed(100_000, clocks[reader]);
            clocks[reader] += rest;
        }
        let seconds = clocks[0].max(clocks[1]).duration_since(start).as_secs_f64();
        assert!((49.0..=50.1).contains(&seconds), "50 MB at 1 MB/s took {seconds} s");
        assert!(bytes[0].abs_diff(bytes[1]) <= 200_000, "unfair: {bytes:?}");
    }

    #[test]
    fn a_pause_earns_no_more_than_a_burst() {
        let pace = Pace::new(Some(8_000));
        let start = Instant::now();
        assert_eq!(pace.owed(100, start), Duration::ZERO);
        let later = start + Duration::from_secs(3600);
        assert_eq!(pace.owed(1_100, later), Duration::from_secs(1));
        assert_eq!(pace.chunk(), 1024);
    }

    #[test]
    fn no_cap_costs_nothing() {
        let pace = Pace::new(None);
        assert_eq!(pace.owed(usize::MAX, Instant::now()), Duration::ZERO);
        assert_eq!(pace.chunk(), FETCH_CHUNK_BYTES);
    }
}
