//! Order and time: what larder may trust about either (rule 7).
//!
//! A board without a battery-backed clock starts in 1970 and jumps. So order is counted by [`Sequence`], never timed;
//! durations are monotonic; and the wall clock is trusted only once something says that it has been set.

use crate::budget;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// No build of larder is older than this (2026-01-01 00:00:00 UTC), so a clock that shows less is not set.
const BUILD_EPOCH_SECONDS: u64 = 1_767_225_600;

/// systemd-timesyncd leaves this file once it has set the clock in this boot.
const TIMESYNC_FLAG: &str = "/run/systemd/timesync/synchronized";

/// A counter that only grows, also over restarts: its owner persists it and restores the highest value with
/// [`Sequence::raise`].
#[derive(Debug, Default)]
pub struct Sequence(AtomicU64);

impl Sequence {
    /// The next number; no other call gets it.
    pub fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The highest number given out so far.
    pub fn last(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Makes sure that later numbers are greater than `seen`, unless that is none that was ever given out.
    pub fn raise(&self, seen: u64) {
        if seen <= budget::COUNT_MAX {
            self.0.fetch_max(seen, Ordering::Relaxed);
        }
    }
}

/// Seconds since 1970 if the wall clock is trusted, else `None`.
pub fn trusted_unix() -> Option<u64> {
    let now = SystemTime::now();
    let seconds = now.duration_since(UNIX_EPOCH).ok()?.as_secs();
    (is_plausible(now) && is_synchronised()).then_some(seconds)
}

/// Whether a clock that shows `now` may have been set at all.
pub fn is_plausible(now: SystemTime) -> bool {
    now >= UNIX_EPOCH + std::time::Duration::from_secs(BUILD_EPOCH_SECONDS)
}

/// Whether anything says that the clock was set: systemd's flag, or the kernel's own state.
fn is_synchronised() -> bool {
    // The kernel calls the clock unsynchronised until an NTP client says otherwise, and so do containers and boards
    // without one; there a plausible date is all there is to go by. Only where timesyncd runs is its flag decisive.
    !Path::new("/run/systemd/timesync").exists() || Path::new(TIMESYNC_FLAG).exists()
}

/// `1970-01-01T00:00:00Z` and on: a wall time for people, in UTC (RFC 3339).
pub fn rfc3339(unix: u64) -> String {
    let (days, second) = (unix / 86_400, unix % 86_400);
    let (year, month, day) = civil(days as i64);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

/// Days since 1970 to year, month and day (proleptic Gregorian).
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_shifted + 2) / 5 + 1;
    let month = if month_shifted < 10 { month_shifted + 3 } else { month_shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_times_for_people() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_826_154), "2000-02-29T12:09:14Z");
        assert_eq!(rfc3339(BUILD_EPOCH_SECONDS), "2026-01-01T00:00:00Z");
        assert_eq!(rfc3339(4_102_444_799), "2099-12-31T23:59:59Z");
    }

    #[test]
    fn a_sequence_never_repeats() {
        let sequence = Sequence::default();
        assert_eq!((sequence.next(), sequence.next()), (1, 2));
        sequence.raise(10);
        sequence.raise(5);
        assert_eq!((sequence.next(), sequence.last()), (11, 11));
        // What a damaged file says is no count, after which there would be no more.
        sequence.raise(u64::MAX);
        assert_eq!(sequence.next(), 12);
    }
}
