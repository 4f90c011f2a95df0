//! Bytes that upstreams send again: an upstream that ignores Range sends what is here before what is missing, and wrong
//! bytes come again from the first one on. Of each download so many are accepted within [`budget::REPEAT_WINDOW`], and
//! fewer while nobody waits for it; clients that come and go do not change that.
//!
//! Bounded; what has the fewest is forgotten first.

use crate::budget;
use crate::store::ContentKey;
use crate::sync::Mutex;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// What came again, by download.
#[derive(Default)]
pub(super) struct Repeats(Mutex<HashMap<ContentKey, Repeated>>);

#[derive(Debug, Clone, Copy)]
struct Repeated {
    bytes: u64,
    since: Instant,
}

impl Repeated {
    fn left(&self, now: Instant) -> Duration {
        budget::REPEAT_WINDOW.saturating_sub(now.saturating_duration_since(self.since))
    }
}

/// How many bytes of a download of `size` may come again.
fn most(size: u64, awaited: bool) -> u64 {
    let times = if awaited { budget::REPEATS_AWAITED_MAX } else { budget::REPEATS_UNAWAITED_MAX };
    size.max(budget::REPEAT_BYTES_MIN).saturating_mul(times)
}

impl Repeats {
    /// So many bytes come again, or came for nothing.
    pub(super) fn note(&self, key: &ContentKey, bytes: u64, now: Instant) {
        if bytes == 0 {
            return;
        }
        let mut known = self.0.lock();
        if known.len() >= budget::FILLS_MAX && !known.contains_key(key) {
            known.retain(|_, repeated| !repeated.left(now).is_zero());
            let fewest = known.iter().min_by_key(|(_, repeated)| repeated.bytes).map(|(key, _)| key.clone());
            if let Some(fewest) = fewest.filter(|_| known.len() >= budget::FILLS_MAX) {
                known.remove(&fewest);
            }
        }
        let repeated = known.entry(key.clone()).or_insert(Repeated { bytes: 0, since: now });
        if repeated.left(now).is_zero() {
            *repeated = Repeated { bytes: 0, since: now };
        }
        repeated.bytes = repeated.bytes.saturating_add(bytes);
    }

    /// Whether `bytes` more of a download of `size` may come again; else after how long.
    pub(super) fn may(
        &self,
        key: &ContentKey,
        bytes: u64,
        size: u64,
        awaited: bool,
        now: Instant,
    ) -> Result<(), Duration> {
        let repeated = self.0.lock().get(key).copied().filter(|repeated| !repeated.left(now).is_zero());
        let so_far = repeated.map_or(0, |repeated| repeated.bytes);
        if so_far.saturating_add(bytes) <= most(size, awaited) {
            return Ok(());
        }
        Err(repeated.map_or(budget::REPEAT_WINDOW, |repeated| repeated.left(now)))
    }

    /// The content has come.
    pub(super) fn forget(&self, key: &ContentKey) {
        self.0.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::AccessClass;
    use crate::oci::{Algorithm, Digest};

    fn key(n: usize) -> ContentKey {
        let digest = Digest::of(Algorithm::Sha256, &n.to_le_bytes());
        ContentKey::shared("docker.io".parse().unwrap(), AccessClass::Public, digest)
    }

    #[test]
    fn so_much_may_come_again_and_more_after_a_while() {
        let (repeats, start, size) = (Repeats::default(), Instant::now(), 50 * budget::MIB);
        let may = |bytes, awaited, now| repeats.may(&key(1), bytes, size, awaited, now);
        assert!(may(size, false, start).is_ok() && may(size + 1, false, start).is_err());
        repeats.note(&key(1), size, start);
        assert!(may(1, false, start).is_err() && may(3 * size, true, start).is_ok());
        repeats.note(&key(1), 3 * size, start);
        let half = start + budget::REPEAT_WINDOW / 2;
        assert_eq!(may(1, true, half), Err(budget::REPEAT_WINDOW / 2));
        assert!(may(0, true, half).is_ok(), "what does not come again may come");
        assert!(may(size, false, start + budget::REPEAT_WINDOW).is_ok());
        repeats.note(&key(1), 1, start + budget::REPEAT_WINDOW);
        assert!(may(4 * size - 1, true, start + budget::REPEAT_WINDOW).is_ok());
        assert!(repeats.may(&key(2), size, size, false, half).is_ok(), "each has its own");
        repeats.forget(&key(1));
        assert!(may(4 * size, true, half).is_ok());
        assert!(
            repeats.may(&key(3), budget::REPEAT_BYTES_MIN, 10, false, half).is_ok(),
            "a small one is cheap"
        );
    }

    #[test]
    fn who_has_many_downloads_does_not_have_a_large_one_forgotten() {
        let (repeats, now) = (Repeats::default(), Instant::now());
        repeats.note(&key(0), 1_000_000_000, now);
        (1..2 * budget::FILLS_MAX).for_each(|n| repeats.note(&key(n), 1, now));
        assert!(repeats.0.lock().len() <= budget::FILLS_MAX);
        assert!(repeats.may(&key(0), 1, 250_000_000, true, now).is_err());
    }
}
