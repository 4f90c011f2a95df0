//! Until when an origin is not to be asked, by its own `Retry-After`.
//!
//! A rate limit concerns the origin that set it, the kind of question and the repository: registries meter them apart, and
//! one repository must not have the others wait. Only where the endpoint's probe meets the limit too does it concern
//! everything that the endpoint is asked. Invariant: no more than [`HOLDS_MAX`] are remembered, and none for longer than
//! [`RETRY_AFTER_MAX`]; what is forgotten costs one more request.

use super::address::HttpOrigin;
use super::ask::{Class, Question};
use super::failure::{Cause, Failure};
use crate::budget::{HOLDS_MAX, RETRY_AFTER_MAX};
use crate::oci::RepositoryName;
use crate::sync::Mutex;
use std::time::{Duration, Instant};

/// What is not to be asked.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Held {
    origin: HttpOrigin,
    class: Class,
    repository: Option<RepositoryName>,
}

/// The rate limits that one endpoint, and whoever it sends to, has set.
#[derive(Default)]
pub(super) struct Holds(Mutex<HoldState>);

#[derive(Default)]
struct HoldState {
    each: Vec<(Held, Instant)>,
    /// The endpoint itself, whatever it is asked.
    all: Option<Instant>,
}

impl Holds {
    /// Whether the endpoint may be asked at all.
    ///
    /// # Errors
    /// `Unreachable`: its probe was limited, and how long that lasts.
    pub fn check_all(&self, host: &str) -> Result<(), Failure> {
        let until = self.0.lock().all;
        over(host, until, Instant::now())
    }

    /// Whether `origin` may be asked this.
    ///
    /// # Errors
    /// `Unreachable`: it limits the rate, and for how long.
    pub fn check(&self, origin: &HttpOrigin, question: &Question) -> Result<(), Failure> {
        let until = {
            let state = self.0.lock();
            let found = state.each.iter().find(|(held, _)| held.is(origin, question));
            found.map(|(_, until)| *until)
        };
        over(&origin.authority(), until, Instant::now())
    }

    /// `origin` answered this with a rate limit for `length`.
    pub fn begin(&self, origin: &HttpOrigin, question: &Question, length: Option<Duration>) {
        let Some(length) = length else { return };
        let now = Instant::now();
        let mut state = self.0.lock();
        state.each.retain(|(held, until)| *until > now && !held.is(origin, question));
        if state.each.len() == HOLDS_MAX {
            state.each.remove(0);
        }
        let (class, repository) = (question.class, question.repository.clone());
        state
            .each
            .push((Held { origin: origin.clone(), class, repository }, now + length.min(RETRY_AFTER_MAX)));
    }

    /// The endpoint answered a probe with a rate limit for `length`.
    pub fn begin_all(&self, length: Option<Duration>) {
        self.0.lock().all = length.map(|length| Instant::now() + length.min(RETRY_AFTER_MAX));
    }
}

impl Held {
    fn is(&self, origin: &HttpOrigin, question: &Question) -> bool {
        self.class == question.class && self.repository == question.repository && self.origin == *origin
    }
}

fn over(host: &str, until: Option<Instant>, now: Instant) -> Result<(), Failure> {
    match until.and_then(|until| until.checked_duration_since(now)) {
        Some(left) if !left.is_zero() => {
            let seconds = left.as_secs() + 1;
            let message = format!("limits the rate of requests (429) for {seconds} s more");
            Err(Failure::unreachable(host, Cause::RateLimited, message))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::Deadline;
    use super::*;

    fn origin(host: &str) -> HttpOrigin {
        HttpOrigin { https: true, host: host.to_owned(), port: 443 }
    }

    fn question(class: Class, repository: &str) -> Question {
        let deadline = Deadline::after(Duration::from_secs(60));
        Question { class, ..Question::repository(&repository.parse().unwrap(), "x", deadline) }
    }

    #[test]
    fn a_limit_concerns_its_origin_its_kind_and_its_repository() {
        let (holds, long) = (Holds::default(), Some(Duration::from_secs(30)));
        let limited = question(Class::ManifestGet, "a/one");
        holds.begin(&origin("reg.test"), &limited, long);
        assert!(holds.check(&origin("reg.test"), &limited).is_err());
        for (host, class, repository) in [
            ("reg.test", Class::ManifestGet, "a/two"),
            ("reg.test", Class::ManifestHead, "a/one"),
            ("reg.test", Class::Blob, "a/one"),
            ("auth.reg.test", Class::ManifestGet, "a/one"),
        ] {
            let other = question(class, repository);
            assert!(holds.check(&origin(host), &other).is_ok(), "{host} {class:?} {repository}");
        }
        assert!(holds.check_all("reg.test").is_ok());
        holds.begin_all(long);
        assert!(holds.check_all("reg.test").is_err());
        holds.begin_all(None);
        assert!(holds.check_all("reg.test").is_ok());
    }

    #[test]
    fn no_more_are_remembered_than_the_table_takes_and_the_last_is() {
        let holds = Holds::default();
        let one = |n: usize| question(Class::Blob, &format!("a/r{n}"));
        for n in 0..HOLDS_MAX + 10 {
            holds.begin(&origin("reg.test"), &one(n), Some(Duration::from_secs(30)));
        }
        assert_eq!(holds.0.lock().each.len(), HOLDS_MAX);
        assert!(holds.check(&origin("reg.test"), &one(HOLDS_MAX + 9)).is_err());
        assert!(holds.check(&origin("reg.test"), &one(0)).is_ok());
        holds.begin(&origin("reg.test"), &one(HOLDS_MAX + 9), Some(Duration::ZERO));
        assert!(holds.check(&origin("reg.test"), &one(HOLDS_MAX + 9)).is_ok(), "the last answer counts");
    }
}
