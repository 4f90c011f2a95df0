//! Who may have a place of a pool: an eighth, and at least one, is kept for whoever holds none. Pure but for
//! a pool that is waited for ([`UplinkPlaces`]).
//!
//! A pool that whoever comes first may fill belongs to whoever is slow: four downloads that drip would stop all registries.
//! Here nobody can take the last places, and a newcomer finds one. Invariants: no more places are taken than there are,
//! and each that is taken is given back once.

use crate::oci::{RegistryName, Repository};
use crate::sync::{Mutex, retry_when};
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// The places of a pool that are kept: an eighth, at least one, but none of a single one.
pub(super) fn eighth(places: usize) -> usize {
    if places < 2 { 0 } else { (places / 8).max(1) }
}

/// Places, and how many of them each holder has.
#[derive(Debug)]
pub(super) struct Shares<K> {
    places: usize,
    /// Places for those that hold none.
    kept: usize,
    taken: usize,
    held: HashMap<K, usize>,
}

impl<K: Hash + Eq + Clone> Shares<K> {
    pub(super) fn new(places: usize, kept: usize) -> Shares<K> {
        Shares { places, kept, taken: 0, held: HashMap::new() }
    }

    pub(super) fn free(&self) -> usize {
        self.places.saturating_sub(self.taken)
    }

    pub(super) fn held(&self, who: &K) -> usize {
        self.held.get(who).copied().unwrap_or(0)
    }

    /// Whether there is a place for `who`.
    pub(super) fn may_take(&self, who: &K) -> bool {
        self.free() > if self.held(who) == 0 { 0 } else { self.kept }
    }

    pub(super) fn take(&mut self, who: &K) {
        self.taken += 1;
        *self.held.entry(who.clone()).or_default() += 1;
    }

    pub(super) fn give_back(&mut self, who: &K) {
        let Some(held) = self.held.get_mut(who) else { return };
        *held -= 1;
        if *held == 0 {
            self.held.remove(who);
        }
        self.taken -= 1;
    }

    /// Everything is given back.
    pub(super) fn clear(&mut self) {
        self.taken = 0;
        self.held.clear();
    }
}

/// Places that registries share, and within each its repositories.
#[derive(Debug)]
pub(super) struct Allotment {
    registries: Shares<RegistryName>,
    repositories: Shares<Repository>,
}

impl Allotment {
    /// Of `places`, an eighth are kept for registries that hold none; of the rest an eighth for repositories that do.
    pub(super) fn new(places: usize) -> Allotment {
        Allotment::with(places, eighth(places))
    }

    /// As many downloads as `streams`, and one more for a registry that has none: a limit of one must not stop all others
    /// while one hangs.
    pub(super) fn of_streams(streams: usize) -> Allotment {
        Allotment::with(streams + 1, eighth(streams + 1))
    }

    fn with(places: usize, kept: usize) -> Allotment {
        let both = kept + eighth(places - kept);
        Allotment { registries: Shares::new(places, kept), repositories: Shares::new(places, both) }
    }

    pub(super) fn places(&self) -> usize {
        self.registries.places
    }

    pub(super) fn may_take(&self, who: &Repository) -> bool {
        self.registries.may_take(&who.registry) && self.repositories.may_take(who)
    }

    /// Whether a place is left that is kept for nobody.
    pub(super) fn has_spare(&self) -> bool {
        self.repositories.free() > self.repositories.kept
    }

    /// How many places the registry and the repository hold: the next turn is theirs who hold the fewest.
    pub(super) fn held(&self, who: &Repository) -> (usize, usize) {
        (self.registries.held(&who.registry), self.repositories.held(who))
    }

    pub(super) fn take(&mut self, who: &Repository) {
        self.registries.take(&who.registry);
        self.repositories.take(who);
    }

    pub(super) fn give_back(&mut self, who: &Repository) {
        self.registries.give_back(&who.registry);
        self.repositories.give_back(who);
    }
}

/// A pool whose places are held by values.
#[derive(Clone, Debug)]
pub(super) struct UplinkPlaces(Arc<UplinkPool>);

#[derive(Debug)]
struct UplinkPool {
    allotment: Mutex<Allotment>,
    freed: Notify,
}

/// A place; dropping it gives it back.
#[derive(Debug)]
pub(super) struct UplinkPlace {
    of: Repository,
    places: UplinkPlaces,
}

impl UplinkPlaces {
    pub(super) fn new(allotment: Allotment) -> UplinkPlaces {
        UplinkPlaces(Arc::new(UplinkPool { allotment: Mutex::new(allotment), freed: Notify::new() }))
    }

    /// A place for a repository, if there is one.
    pub(super) fn take(&self, of: &Repository) -> Option<UplinkPlace> {
        let mut allotment = self.0.allotment.lock();
        if !allotment.may_take(of) {
            return None;
        }
        allotment.take(of);
        Some(UplinkPlace { of: of.clone(), places: self.clone() })
    }

    /// A place for a repository, if there is one within `longest`.
    pub(super) async fn wait(&self, of: &Repository, longest: Duration) -> Option<UplinkPlace> {
        tokio::time::timeout(longest, retry_when(&self.0.freed, || self.take(of))).await.ok()
    }
}

impl Drop for UplinkPlace {
    fn drop(&mut self) {
        self.places.0.allotment.lock().give_back(&self.of);
        self.places.0.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(name: &str) -> Repository {
        name.parse().unwrap()
    }

    /// How many places each of these takes that takes all it can, in their order.
    fn greedy(allotment: &mut Allotment, names: &[&str]) -> Vec<usize> {
        let mut counts = Vec::new();
        for name in names {
            let (who, mut count) = (repository(name), 0);
            while allotment.may_take(&who) {
                allotment.take(&who);
                count += 1;
            }
            counts.push(count);
        }
        counts
    }

    #[test]
    fn nobody_takes_the_last_place_but_who_has_none() {
        for (places, kept) in [(1, 0), (2, 1), (4, 1), (15, 1), (16, 2), (64, 8), (1_024, 128)] {
            assert_eq!(eighth(places), kept, "{places}");
            let mut shares = Shares::new(places, eighth(places));
            while shares.may_take(&'a') {
                shares.take(&'a');
            }
            assert_eq!(shares.held(&'a'), places - kept, "{places}");
            assert_eq!(shares.may_take(&'b'), kept > 0, "{places}");
        }
    }

    #[test]
    fn a_registry_leaves_a_place_to_others_and_a_repository_too() {
        let all = ["evil.test/a/one", "evil.test/a/two", "evil.test/a/three", "good.test/b", "third.test/c"];
        assert_eq!(greedy(&mut Allotment::new(4), &all), [2, 1, 0, 1, 0]);
        assert_eq!(greedy(&mut Allotment::of_streams(4), &all), [3, 1, 0, 1, 0]);
        assert_eq!(greedy(&mut Allotment::of_streams(1), &all), [1, 0, 0, 1, 0]);
        assert_eq!(greedy(&mut Allotment::of_streams(2), &all), [1, 1, 0, 1, 0]);
        assert_eq!(greedy(&mut Allotment::new(1), &all), [1, 0, 0, 0, 0]);
        assert_eq!(greedy(&mut Allotment::of_streams(63), &all), [49, 1, 1, 1, 1]);
    }

    #[test]
    fn what_is_given_back_is_there_for_the_next() {
        let places = UplinkPlaces::new(Allotment::new(2));
        let (one, other) = (repository("a.test/a"), repository("b.test/b"));
        let first = places.take(&one).unwrap();
        assert!(places.take(&one).is_none(), "the other is kept");
        let second = places.take(&other).unwrap();
        assert!(places.take(&repository("c.test/c")).is_none());
        drop(first);
        assert!(places.take(&other).is_none());
        drop(second);
        assert_eq!(places.0.allotment.lock().held(&one), (0, 0));
        let mut shares = Shares::new(2, 1);
        shares.give_back(&'a');
        assert_eq!(shares.free(), 2, "what was not taken is not given back");
    }
}
