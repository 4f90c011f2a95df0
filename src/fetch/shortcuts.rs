//! What one endpoint was found to be unable to do, so that it costs a request once and not each time.
//!
//! HEAD is our optimisation. Where it fails and GET does not, GET is used at once; where both fail in the same way, HEAD is
//! believed for a while. Invariants: no more than [`SHORTCUTS_MAX`] of each kind are remembered, for a bounded running time.
//! Nothing in here can fail; what is forgotten costs one more request.

use super::failure::{Cause, Failure};
use crate::budget::{CONFIRMED_TIME, NO_HEAD_TIME, SHORTCUTS_MAX};
use crate::oci::{Digest, RepositoryName, Tag};
use crate::sync::Mutex;
use std::time::{Duration, Instant};

/// What is asked about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Content {
    Manifests,
    Blobs,
}

/// A HEAD that was no answer: how it failed, unless it only said nothing, and whether a registry has signed it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct HeadRefusal {
    pub failure: Option<Failure>,
    pub signed: bool,
}

/// What a HEAD of a tag stated of a manifest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct StatedManifest {
    pub tag: Tag,
    /// Its media type and size in bytes.
    pub stated: Option<(String, u64)>,
}

/// What is remembered of one endpoint.
#[derive(Default)]
pub(super) struct Shortcuts(Mutex<Remembered>);

#[derive(Default)]
struct Remembered {
    /// HEAD has failed where GET has not.
    no_head: Recent<(RepositoryName, Content), ()>,
    /// The type or size that a HEAD stated was wrong.
    misstates: Recent<RepositoryName, ()>,
    /// What follows `/v2/`: how HEAD refused it, and what GET said then.
    confirmed: Recent<String, (HeadRefusal, Failure)>,
    /// What a HEAD of a tag has named.
    named: Recent<(RepositoryName, Digest), StatedManifest>,
}

impl Shortcuts {
    /// Whether HEAD is of no use for this content of a repository.
    pub fn lacks_head(&self, repository: &RepositoryName, content: Content) -> bool {
        let key = (repository.clone(), content);
        self.0.lock().no_head.find(&key, NO_HEAD_TIME, Instant::now()).is_some()
    }

    /// HEAD was no answer, or a wrong one, and GET was one.
    pub fn head_failed(&self, repository: &RepositoryName, content: Content) {
        self.0.lock().no_head.note((repository.clone(), content), (), Instant::now());
    }

    /// What GET said when HEAD refused this in the same way.
    pub fn confirmed(&self, target: &str, refusal: &HeadRefusal) -> Option<Failure> {
        let mut remembered = self.0.lock();
        let found = remembered.confirmed.find(&target.to_owned(), CONFIRMED_TIME, Instant::now())?;
        (found.0 == *refusal).then(|| found.1.clone())
    }

    /// GET has failed too. What may go better with the next attempt is not remembered.
    pub fn confirm(&self, target: &str, refusal: HeadRefusal, failure: &Failure) {
        let lasts = match failure {
            Failure::Unreachable { cause, .. } => {
                matches!(cause, Cause::NotARegistry | Cause::ServerError(_))
            }
            failure => failure.is_refusal(),
        };
        if failure.is_refusal() {
            self.is_a_registry();
        }
        if lasts {
            let confirmed = (refusal, failure.clone());
            self.0.lock().confirmed.note(target.to_owned(), confirmed, Instant::now());
        }
    }

    /// A registry answers here, so that what something else has answered does not count any more.
    pub fn is_a_registry(&self) {
        let other = |failure: &Failure| failure.cause() == Some(Cause::NotARegistry);
        self.0.lock().confirmed.0.retain(|(_, (_, failure), _)| !other(failure));
    }

    /// A HEAD of a tag has named this manifest.
    pub fn named(&self, repository: &RepositoryName, digest: &Digest, stated: StatedManifest) {
        self.0.lock().named.note((repository.clone(), digest.clone()), stated, Instant::now());
    }

    /// The tag whose HEAD has named this manifest, and what that stated.
    pub fn name_of(&self, repository: &RepositoryName, digest: &Digest) -> Option<StatedManifest> {
        let key = (repository.clone(), digest.clone());
        self.0.lock().named.find(&key, NO_HEAD_TIME, Instant::now()).cloned()
    }

    /// The bytes are not what a HEAD has stated.
    pub fn misstated(&self, repository: &RepositoryName) {
        self.0.lock().misstates.note(repository.clone(), (), Instant::now());
    }

    /// Whether what a HEAD states of manifests of this repository was found to be wrong.
    pub fn misstates(&self, repository: &RepositoryName) -> bool {
        self.0.lock().misstates.find(repository, NO_HEAD_TIME, Instant::now()).is_some()
    }
}

/// The last entries, each with the time at which it was noted.
struct Recent<K, V>(Vec<(K, V, Instant)>);

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Recent(Vec::new())
    }
}

impl<K: PartialEq, V> Recent<K, V> {
    /// The value, if it was noted less than `age` ago. What is older goes.
    fn find(&mut self, key: &K, age: Duration, now: Instant) -> Option<&V> {
        self.0.retain(|(.., at)| now.saturating_duration_since(*at) < age);
        self.0.iter().find(|(known, ..)| known == key).map(|(_, value, _)| value)
    }

    /// Remembers a value, in the place of the oldest if there are too many.
    fn note(&mut self, key: K, value: V, now: Instant) {
        self.0.retain(|(known, ..)| *known != key);
        if self.0.len() == SHORTCUTS_MAX {
            self.0.remove(0);
        }
        self.0.push((key, value, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded_and_ends() {
        let (mut recent, now, age) = (Recent::default(), Instant::now(), Duration::from_secs(10));
        for n in 0..SHORTCUTS_MAX + 1 {
            recent.note(n, n, now);
        }
        assert!(recent.find(&0, age, now).is_none(), "the oldest makes way");
        assert_eq!(recent.0.len(), SHORTCUTS_MAX);
        recent.note(1, 7, now + Duration::from_secs(5));
        assert_eq!(recent.find(&1, age, now + Duration::from_secs(9)), Some(&7), "the last counts");
        assert!(recent.find(&2, age, now + Duration::from_secs(10)).is_none());
        assert_eq!(recent.0.len(), 1, "what is over goes");
    }

    #[test]
    fn a_refusal_counts_while_head_refuses_in_the_same_way() {
        let shortcuts = Shortcuts::default();
        let missing = Failure::Missing { detail: "h: answered 404".into() };
        let refusal = |signed| HeadRefusal { failure: Some(missing.clone()), signed };
        shortcuts.confirm("a/manifests/x", refusal(true), &missing);
        assert_eq!(shortcuts.confirmed("a/manifests/x", &refusal(true)), Some(missing.clone()));
        assert_eq!(shortcuts.confirmed("a/manifests/x", &refusal(false)), None);
        assert_eq!(shortcuts.confirmed("a/manifests/y", &refusal(true)), None);
        let lost = Failure::unreachable("h", Cause::Timeout, "no answer in time");
        shortcuts.confirm("a/manifests/y", refusal(true), &lost);
        assert_eq!(shortcuts.confirmed("a/manifests/y", &refusal(true)), None);
        let portal = Failure::no_registry("h", 404, None);
        shortcuts.confirm("a/manifests/y", refusal(false), &portal);
        assert_eq!(shortcuts.confirmed("a/manifests/y", &refusal(false)), Some(portal));
        shortcuts.is_a_registry();
        assert_eq!(shortcuts.confirmed("a/manifests/y", &refusal(false)), None);
        assert_eq!(shortcuts.confirmed("a/manifests/x", &refusal(true)), Some(missing.clone()));
    }
}
