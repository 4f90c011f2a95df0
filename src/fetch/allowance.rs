//! What one client's request for a list may still cost: time, and questions to its upstream.
//!
//! Invariant: however many pages, endpoints and prefixes lie behind a request, they share one allowance. A question that it
//! does not cover is not sent, and fails like an outage: how the list goes on is not known.

use super::failure::{Cause, Failure};
use super::wire::Deadline;
use crate::budget::{LIST_REQUESTS_MAX, MISS_WAIT_MAX};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The allowance of one request. A clone is the same.
#[derive(Clone, Debug)]
pub struct ListAllowance {
    until: Instant,
    questions: Arc<AtomicUsize>,
}

impl ListAllowance {
    /// As much as is allowed, in this time.
    pub fn of(time: Duration) -> ListAllowance {
        let questions = Arc::new(AtomicUsize::new(LIST_REQUESTS_MAX));
        ListAllowance { until: Instant::now() + time, questions }
    }

    /// The time that is left.
    pub fn time(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Whether one more question may be asked.
    pub fn is_left(&self) -> bool {
        !self.time().is_zero() && self.questions.load(Ordering::Relaxed) > 0
    }

    /// One more question to `host`.
    ///
    /// # Errors
    /// `Unreachable`: it may not be asked.
    pub(super) fn take(&self, host: &str) -> Result<(), Failure> {
        if self.time().is_zero() {
            return Err(Failure::unreachable(host, Cause::Timeout, "no time is left to ask for its list"));
        }
        let less = |left: usize| left.checked_sub(1);
        match self.questions.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less) {
            Ok(_) => Ok(()),
            Err(_) => {
                let text = format!("its list takes more than {LIST_REQUESTS_MAX} requests for one answer");
                Err(Failure::unreachable(host, Cause::Timeout, text))
            }
        }
    }

    /// When a question that may take until `deadline` must be answered.
    pub(super) fn within(&self, deadline: Deadline) -> Deadline {
        deadline.or_sooner(self.until)
    }
}

impl Default for ListAllowance {
    fn default() -> ListAllowance {
        ListAllowance::of(MISS_WAIT_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::QUESTION_TIME_MAX;

    #[test]
    fn an_allowance_is_shared_and_ends() {
        let one = ListAllowance::default();
        let same = one.clone();
        for _ in 0..LIST_REQUESTS_MAX {
            assert!(same.is_left());
            one.take("host").unwrap();
        }
        assert!(!same.is_left() && same.take("host").unwrap_err().is_outage());
        let late = ListAllowance::of(Duration::ZERO);
        assert!(!late.is_left() && late.take("host").unwrap_err().is_outage());
        let question = Deadline::after(QUESTION_TIME_MAX);
        assert!(late.within(question).was_cut_short());
        let long = ListAllowance::of(QUESTION_TIME_MAX * 2).within(question);
        assert!(long.at() == question.at() && !long.was_cut_short());
    }
}
