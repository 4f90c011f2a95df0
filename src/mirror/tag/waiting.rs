//! What tags wait for: of each version that is not complete one missing piece for each way in which it can become so. When
//! a piece arrives, only what waits for it is looked at again. Pure; it cannot fail.
//!
//! Bounded: of a repository [`budget::WAITING_EACH`] pieces, of all together [`budget::WAITING_MAX`]. What has no place is
//! found complete when its tag is asked for next; where all places are taken the repository with the most loses its own.

use crate::budget;
use crate::image::Lack;
use crate::oci::{Digest, Repository};
use std::collections::{HashMap, HashSet};

/// A version that waits for a piece.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Waiter {
    pub(super) repository: Repository,
    /// What tags name.
    pub(super) root: Digest,
    /// The manifest within it that lacks the piece.
    pub(super) branch: Digest,
}

#[derive(Default)]
pub(super) struct Waiting {
    by_missing: HashMap<Digest, HashSet<Waiter>>,
    /// How many pieces are waited for in each repository whose tags have been looked at.
    known: HashMap<Repository, usize>,
    /// Repositories all of whose tags have been looked at.
    looked_at: HashSet<Repository>,
    all: usize,
}

impl Waiting {
    /// Whether this is the first time that a repository is met: then its tags have to be looked at.
    pub(super) fn is_new(&mut self, repository: &Repository) -> bool {
        if self.looked_at.contains(repository) {
            return false;
        }
        if self.known.len().max(self.looked_at.len()) >= budget::WAITING_MAX {
            *self = Waiting::default();
        }
        self.looked_at.insert(repository.clone());
        true
    }

    /// A version waits for each of these pieces.
    pub(super) fn add(&mut self, repository: &Repository, root: &Digest, lacks: &[Lack]) {
        for Lack { branch, missing } in lacks {
            if self.all >= budget::WAITING_MAX {
                self.drop_largest();
            }
            let each = self.known.entry(repository.clone()).or_default();
            if *each >= budget::WAITING_EACH {
                return;
            }
            let (root, branch) = (root.clone(), branch.clone());
            let waiter = Waiter { repository: repository.clone(), root, branch };
            if self.by_missing.entry(missing.clone()).or_default().insert(waiter) {
                *each += 1;
                self.all += 1;
            }
        }
    }

    /// What waits for a piece, and does so no longer.
    pub(super) fn take(&mut self, missing: &Digest) -> Vec<Waiter> {
        let taken = self.by_missing.remove(missing).unwrap_or_default();
        for waiter in &taken {
            self.all -= 1;
            if let Some(each) = self.known.get_mut(&waiter.repository) {
                *each -= 1;
            }
        }
        taken.into_iter().collect()
    }

    /// What a repository waits for is not known after all.
    pub(super) fn forget(&mut self, repository: &Repository) {
        self.drop_waiters(repository);
        self.known.remove(repository);
        self.looked_at.remove(repository);
    }

    fn drop_largest(&mut self) {
        let largest = self.known.iter().max_by_key(|(_, each)| **each).map(|(name, _)| name.clone());
        let Some(largest) = largest else { return };
        self.drop_waiters(&largest);
    }

    fn drop_waiters(&mut self, repository: &Repository) {
        let Some(each) = self.known.get_mut(repository) else { return };
        self.all -= std::mem::take(each);
        self.by_missing.retain(|_, waiters| {
            waiters.retain(|waiter| waiter.repository != *repository);
            !waiters.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn digest(n: usize) -> Digest {
        Digest::of(Algorithm::Sha256, &n.to_be_bytes())
    }

    fn repository(name: &str) -> Repository {
        format!("docker.io/lab/{name}").parse().unwrap()
    }

    fn lacks(pieces: std::ops::Range<usize>) -> Vec<Lack> {
        pieces.map(|n| Lack { branch: digest(1), missing: digest(n) }).collect()
    }

    #[test]
    fn a_piece_wakes_what_waits_for_it_once_and_nothing_else() {
        let mut waiting = Waiting::default();
        let (app, other) = (repository("app"), repository("other"));
        assert!(waiting.is_new(&app) && !waiting.is_new(&app));
        waiting.add(&app, &digest(0), &lacks(10..12));
        waiting.add(&app, &digest(0), &lacks(10..12));
        waiting.add(&other, &digest(0), &lacks(11..12));
        assert!(waiting.take(&digest(5)).is_empty());
        assert_eq!(waiting.take(&digest(10)).len(), 1);
        let mut woken: Vec<Repository> =
            waiting.take(&digest(11)).into_iter().map(|waiter| waiter.repository).collect();
        woken.sort();
        assert_eq!(woken, [app.clone(), other], "a public piece serves both");
        assert!(waiting.take(&digest(11)).is_empty());
        waiting.add(&app, &digest(0), &lacks(10..12));
        waiting.forget(&app);
        assert!(waiting.take(&digest(10)).is_empty() && waiting.is_new(&app));
        assert_eq!((waiting.all, waiting.by_missing.len()), (0, 0));
    }

    #[test]
    fn a_repository_that_waits_for_much_loses_its_own_places_only() {
        let mut waiting = Waiting::default();
        let honest = repository("honest");
        waiting.add(&honest, &digest(0), &lacks(1_000_000..1_000_001));
        for n in 0..20 {
            waiting.add(&repository(&format!("evil{n}")), &digest(0), &lacks(n * 10_000..(n + 1) * 10_000));
            assert!(waiting.all <= budget::WAITING_MAX);
            assert!(waiting.known.values().all(|each| *each <= budget::WAITING_EACH));
            let counted: usize = waiting.by_missing.values().map(HashSet::len).sum();
            assert_eq!((counted, waiting.known.values().sum()), (waiting.all, waiting.all));
        }
        assert_eq!(waiting.take(&digest(1_000_000)).len(), 1);
    }

    #[test]
    fn a_repository_that_waits_for_something_has_yet_to_be_looked_at() {
        let mut waiting = Waiting::default();
        let lack = Lack { branch: digest(1), missing: digest(2) };
        waiting.add(&repository("app"), &digest(1), &[lack]);
        assert!(waiting.is_new(&repository("app")) && !waiting.is_new(&repository("app")));
        waiting.forget(&repository("app"));
        assert!(waiting.is_new(&repository("app")));
    }
}
