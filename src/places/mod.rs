//! A pool of places, shared fairly (rule 11): an eighth of them, at least one, is kept for holders that have none or few.
//!
//! So one holder has up to seven eighths while nobody else wants any. Of the last eighth a holder may take a place as long as
//! more are free than it has, so that the next one finds some, too. A holder is whoever the pool is shared between; for
//! clients that is [`client`], an address. Places are given back by being dropped.
//!
//! What upstreams are asked is shared out by registry, client and repository: [`Allotment`] and [`Turns`] say whose turn it
//! is, [`TurnPool`] is a pool with that rule, and [`asker`] is the client for whom a task works.

mod pool;
mod turns;

pub use pool::{TurnPlace, TurnPool};
pub use turns::{Allotment, Asking, Turns, Waits};

use crate::sync::{Mutex, retry_when};
use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

tokio::task_local! {
    static ASKER: IpAddr;
}

/// Does work for a client; see [`asker`].
pub async fn for_client<T>(address: IpAddr, work: impl Future<Output = T>) -> T {
    ASKER.scope(client(address), work).await
}

/// The client for whom this task works; `None`: Larder itself.
pub fn asker() -> Option<IpAddr> {
    ASKER.try_with(|client| *client).ok()
}

/// Who a client is to a pool: its address, of IPv6 the network of 64 bits that one machine may have all of.
pub fn client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

/// The places, and who holds how many.
#[derive(Debug)]
pub struct Places<K>(Arc<Pool<K>>);

#[derive(Debug)]
struct Pool<K> {
    most: usize,
    /// The most that one holder may have.
    each: usize,
    held: Mutex<HashMap<K, usize>>,
    freed: Notify,
}

/// One place, or several that were taken as one, until it is dropped.
#[derive(Debug)]
pub struct Place<K: Eq + Hash> {
    pool: Arc<Pool<K>>,
    holder: K,
    count: usize,
}

impl<K: Eq + Hash + Clone> Places<K> {
    /// `most` places, at least two: of one alone nothing could be kept.
    pub fn new(most: usize) -> Places<K> {
        let most = most.max(2);
        Places::with_most_each(most, most)
    }

    /// The same, of which one holder has at most `each`, whether others want any or not.
    pub fn with_most_each(most: usize, each: usize) -> Places<K> {
        let (held, freed) = (Mutex::default(), Notify::new());
        Places(Arc::new(Pool { most, each, held, freed }))
    }

    /// The number of places.
    pub fn most(&self) -> usize {
        self.0.most
    }

    /// Who has the most places, if that are more than `holder` would have with one more; and how many of them would have to
    /// be given back for that.
    pub fn richest_but(&self, holder: &K) -> Option<(K, usize)> {
        let held = self.0.held.lock();
        let (own, free) = self.0.own_and_free(&held, holder);
        let (richest, most) = held.iter().max_by_key(|(_, count)| **count)?;
        let lacking = (self.0.kept_from(own) + 1).saturating_sub(free);
        (*most > own + 1).then(|| (richest.clone(), lacking.min(most - own - 1)))
    }

    /// A place for `holder`, if it may have one now.
    pub fn take(&self, holder: &K) -> Option<Place<K>> {
        self.take_all(1, holder)
    }

    /// `count` places for `holder` as one, if it may have the last of them now.
    fn take_all(&self, count: usize, holder: &K) -> Option<Place<K>> {
        let mut held = self.0.held.lock();
        let (own, free) = self.0.own_and_free(&held, holder);
        let (own, free) = (own + count - 1, free.checked_sub(count - 1)?);
        if free <= self.0.kept_from(own) || own >= self.0.each {
            return None;
        }
        held.insert(holder.clone(), own + 1);
        Some(Place { pool: Arc::clone(&self.0), holder: holder.clone(), count })
    }

    /// A place for `holder`, if it may have one within `longest`.
    pub async fn wait(&self, holder: &K, longest: Duration) -> Option<Place<K>> {
        self.wait_for(1, holder, longest).await
    }

    /// `count` places for `holder` as one, or as many as one holder may ever have, if it may have them within `longest`.
    pub async fn wait_for(&self, count: usize, holder: &K, longest: Duration) -> Option<Place<K>> {
        let count = count.min(self.0.most - self.0.kept()).min(self.0.each).max(1);
        let taken = retry_when(&self.0.freed, || self.take_all(count, holder));
        tokio::time::timeout(longest, taken).await.ok()
    }

    /// Waits until nobody holds a place.
    pub async fn emptied(&self) {
        retry_when(&self.0.freed, || self.0.held.lock().is_empty().then_some(())).await;
    }
}

impl<K: Eq + Hash> Pool<K> {
    /// How many places `holder` has, and how many nobody has.
    fn own_and_free(&self, held: &HashMap<K, usize>, holder: &K) -> (usize, usize) {
        let free = self.most.saturating_sub(held.values().sum());
        (held.get(holder).copied().unwrap_or(0), free)
    }

    /// The places that are kept for holders that have none or few.
    fn kept(&self) -> usize {
        (self.most / 8).max(1)
    }

    /// Free places that who has `own` must leave to others.
    fn kept_from(&self, own: usize) -> usize {
        own.min(self.kept())
    }
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut held = self.pool.held.lock();
        if let Some(own) = held.get_mut(&self.holder) {
            *own -= self.count;
            if *own == 0 {
                held.remove(&self.holder);
            }
        }
        drop(held);
        self.pool.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_never_has_the_last_eighth() {
        for (most, one, two) in [(512, 448, 32), (42, 37, 3), (24, 21, 2), (8, 7, 1), (2, 1, 1)] {
            let places = Places::new(most);
            let take_all = |holder| std::iter::from_fn(|| places.take(&holder)).collect::<Vec<_>>();
            let (first, second) = (take_all(1), take_all(2));
            assert_eq!((first.len(), second.len()), (one, two), "of {most}");
            // As long as there is a place it is for who has none.
            let others: Vec<_> = (3..).map_while(|holder| places.take(&holder)).collect();
            assert_eq!(others.len(), most - one - two);
            assert!((1..600).all(|holder| places.take(&holder).is_none()));
            drop((first, second, others));
            assert!(places.0.held.lock().is_empty());
            assert!(places.take(&1).is_some());
        }
    }

    #[test]
    fn who_has_the_most_is_named_to_who_has_less() {
        let places = Places::new(16);
        let held: Vec<_> = [1, 1, 1, 2, 3].iter().filter_map(|holder| places.take(holder)).collect();
        assert_eq!(held.len(), 5);
        // There is room for all of them.
        assert_eq!((places.richest_but(&2), places.richest_but(&9)), (Some((1, 0)), Some((1, 0))));
        assert_eq!(places.richest_but(&1), None);
        let _rest: Vec<_> = std::iter::from_fn(|| places.take(&1)).collect();
        let _second: Vec<_> = std::iter::from_fn(|| places.take(&2)).collect();
        // Who has two may have a third when three are free, and one is.
        assert_eq!(places.richest_but(&2), Some((1, 2)));
    }

    #[test]
    fn holders_that_race_leave_places_for_the_next() {
        let places = Places::new(512);
        let mut held = Vec::new();
        while let [Some(a), Some(b), Some(c)] = [1, 2, 3].map(|holder| places.take(&holder)) {
            held.push([a, b, c]);
        }
        let next: Vec<_> = std::iter::from_fn(|| places.take(&4)).collect();
        assert!((30..=33).contains(&next.len()), "{}", next.len());
        assert!(places.take(&5).is_some());
    }

    #[test]
    fn what_is_given_back_goes_to_who_waits() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let places = Places::new(8);
            let mut many: Vec<_> = std::iter::from_fn(|| places.take(&1)).collect();
            assert!(places.wait(&1, Duration::from_millis(20)).await.is_none());
            let (waited, ()) = tokio::join!(places.wait(&1, Duration::from_secs(60)), async {
                tokio::task::yield_now().await;
                many.pop();
            });
            assert!(waited.is_some());
            drop((waited, many));
            places.emptied().await;
        });
    }

    #[test]
    fn a_client_is_an_address_or_a_network() {
        let of = |text: &str| client(text.parse().unwrap()).to_string();
        assert_eq!(of("10.0.0.2"), "10.0.0.2");
        assert_eq!(of("::ffff:10.0.0.2"), "10.0.0.2");
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(of("2001:db8:1:2::9"), "2001:db8:1:2::");
        assert_ne!(of("2001:db8:1:3::9"), "2001:db8:1:2::");
    }
}
