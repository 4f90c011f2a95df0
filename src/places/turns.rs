//! Whose turn it is (rule 11): places that registries share, and within each its clients and its repositories. Pure.
//!
//! Invariants. No more places are taken than there are, and each that is taken is given back once. Of every pool an eighth,
//! at least one place, is kept for registries that hold none, and of the rest an eighth for repositories that hold none; of a
//! table, which nothing can be called back from, somewhat more for clients that hold none. The next turn is theirs
//! who hold the fewest: the registry, then the client; then what is hurried; then theirs who had none yet, then the repository's, then who came first. What runs gives way at
//! once if nobody waits for it, when its share is larger than that of one that waits, and when it is too slow and it is the
//! turn of another. While nobody waits nothing gives way.

use super::client;
use crate::budget;
use crate::sync::Mutex;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

/// What of a registry is asked for, and the clients that wait for it.
#[derive(Debug)]
pub struct Asking {
    registry: String,
    repository: String,
    clients: Mutex<AskingClients>,
}

#[derive(Debug, Default)]
struct AskingClients {
    waiting: Vec<IpAddr>,
    /// The one whose place it has.
    charged: Option<IpAddr>,
}

impl Asking {
    /// `by`: the client, if it is for one.
    pub fn new(registry: &str, repository: &str, by: Option<IpAddr>) -> Asking {
        let asking = Asking {
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            clients: Mutex::default(),
        };
        asking.join(by);
        asking
    }

    /// A client wants it too: it counts for whom of them holds the fewest places.
    pub fn join(&self, by: Option<IpAddr>) {
        let Some(by) = by.map(client) else { return };
        let mut clients = self.clients.lock();
        if !clients.waiting.contains(&by) {
            if clients.waiting.len() >= budget::ASKERS_MAX {
                clients.waiting.remove(0);
            }
            clients.waiting.push(by);
        }
    }

    /// The registry.
    pub fn registry(&self) -> &str {
        &self.registry
    }
}

/// How many places the registry has, its client, its repository.
type HeldPlaces = (usize, usize, usize);

/// Places, and how many of them each registry, each of its clients and each of its repositories has.
#[derive(Debug)]
pub struct Allotment {
    places: usize,
    kept: Kept,
    taken: usize,
    registries: HashMap<String, HeldOfRegistry>,
}

/// Places that are kept from who holds some already.
#[derive(Debug, Clone, Copy)]
struct Kept {
    registry: usize,
    client: usize,
    repository: usize,
}

#[derive(Debug, Default)]
struct HeldOfRegistry {
    all: usize,
    clients: HashMap<Option<IpAddr>, usize>,
    repositories: HashMap<String, usize>,
}

/// The places of a pool that are kept: an eighth, at least one, but none of a single one.
fn eighth(places: usize) -> usize {
    if places < 2 { 0 } else { (places / 8).max(1) }
}

/// The places of a table that are kept for clients, so that one that asks for many repositories leaves some to another client
/// also of a repository that has a place.
fn more_than(repository: usize) -> usize {
    repository + repository.div_ceil(8)
}

impl Allotment {
    /// Places for work that gives way.
    pub fn new(places: usize) -> Allotment {
        let registry = eighth(places);
        Allotment::with(places, Kept { registry, client: 0, repository: eighth(places - registry) })
    }

    /// As many downloads as `streams`, and one more for a registry that has none: a limit of one must not stop all others
    /// while one hangs.
    pub fn of_streams(streams: usize) -> Allotment {
        Allotment::new(streams + 1)
    }

    /// Places of one registry for work that gives way.
    pub fn of_registry(places: usize) -> Allotment {
        Allotment::with(places, Kept { registry: 0, client: 0, repository: eighth(places) })
    }

    /// Places of a table: what is in it stays until it is done.
    pub fn of_table(places: usize) -> Allotment {
        let registry = eighth(places);
        let repository = eighth(places - registry);
        Allotment::with(places, Kept { registry, client: more_than(repository), repository })
    }

    /// The same for one registry.
    pub fn of_table_of_registry(places: usize) -> Allotment {
        let repository = eighth(places);
        Allotment::with(places, Kept { registry: 0, client: more_than(repository), repository })
    }

    /// Places for larder's own work, of which none are kept.
    pub fn unshared(places: usize) -> Allotment {
        Allotment::with(places, Kept { registry: 0, client: 0, repository: 0 })
    }

    fn with(places: usize, kept: Kept) -> Allotment {
        Allotment { places, kept, taken: 0, registries: HashMap::new() }
    }

    /// The number of places.
    pub fn places(&self) -> usize {
        self.places
    }

    fn free(&self) -> usize {
        self.places.saturating_sub(self.taken)
    }

    /// Whether a place is left that is kept for nobody.
    fn has_spare(&self) -> bool {
        self.free() > self.kept.registry + self.kept.client + self.kept.repository
    }

    fn held_by(&self, asking: &Asking, by: Option<IpAddr>) -> HeldPlaces {
        let Some(held) = self.registries.get(&asking.registry) else { return (0, 0, 0) };
        let count = |count: Option<&usize>| count.copied().unwrap_or(0);
        (held.all, count(held.clients.get(&by)), count(held.repositories.get(&asking.repository)))
    }

    /// What is held by the registry, by the client with the fewest of those that wait, and by the repository; and that client.
    fn held(&self, asking: &Asking) -> (HeldPlaces, Option<IpAddr>) {
        let clients = asking.clients.lock();
        let each = clients.waiting.iter().map(|by| (self.held_by(asking, Some(*by)), Some(*by)));
        each.min_by_key(|(held, _)| *held).unwrap_or_else(|| (self.held_by(asking, None), None))
    }

    /// Whether there is a place.
    pub fn may_take(&self, asking: &Asking) -> bool {
        let ((registry, client, repository), _) = self.held(asking);
        let kept =
            [(registry, self.kept.registry), (client, self.kept.client), (repository, self.kept.repository)];
        let left: usize = kept.into_iter().filter(|(held, _)| *held > 0).map(|(_, kept)| kept).sum();
        self.free() > left
    }

    /// Takes a place, whether there is one or not.
    pub fn take(&mut self, asking: &Asking) {
        let (_, by) = self.held(asking);
        asking.clients.lock().charged = by;
        self.take_for(asking, by);
    }

    fn take_for(&mut self, asking: &Asking, by: Option<IpAddr>) {
        self.taken += 1;
        let held = self.registries.entry(asking.registry.clone()).or_default();
        held.all += 1;
        *held.clients.entry(by).or_default() += 1;
        *held.repositories.entry(asking.repository.clone()).or_default() += 1;
    }

    /// Counts what is in a table.
    pub fn count(&mut self, asking: &Asking) {
        let by = asking.clients.lock().waiting.first().copied();
        self.take_for(asking, by);
    }

    /// Gives the place back that was taken.
    pub fn give_back(&mut self, asking: &Asking) {
        let by = asking.clients.lock().charged;
        let Some(held) = self.registries.get_mut(&asking.registry) else { return };
        let Some(own) = held.clients.get_mut(&by).filter(|own| **own > 0) else { return };
        *own -= 1;
        if *own == 0 {
            held.clients.remove(&by);
        }
        if let Some(own) = held.repositories.get_mut(&asking.repository) {
            *own -= 1;
            if *own == 0 {
                held.repositories.remove(&asking.repository);
            }
        }
        held.all -= 1;
        if held.all == 0 {
            self.registries.remove(&asking.registry);
        }
        self.taken -= 1;
    }
}

/// What waits for a place, or has one.
pub trait Waits {
    /// What is asked for, and by whom.
    fn asking(&self) -> &Asking;

    /// Whether a client waits for it.
    fn is_awaited(&self) -> bool;

    /// Whether it goes before what is asked for by the same client or by who holds as much.
    fn is_hurried(&self) -> bool {
        false
    }

    /// Whether it had a turn, which came to nothing.
    fn had_turn(&self) -> bool {
        false
    }
}

/// Whose turn comes first has the lowest: what is waited for; then by what the registry holds and the client; what is
/// hurried, and what had no turn yet; then by what the repository holds.
type Rank = (bool, (usize, usize), (bool, bool), usize);

/// Places, and what waits for them.
#[derive(Debug)]
pub struct Turns<T> {
    slots: Allotment,
    waiting: VecDeque<T>,
    /// A run is about to give up its place for one that waits; a second need not.
    making_way: bool,
}

fn rank(item: &impl Waits, (registry, client, repository): HeldPlaces) -> Rank {
    (!item.is_awaited(), (registry, client), (!item.is_hurried(), item.had_turn()), repository)
}

impl<T: Waits> Turns<T> {
    /// Nobody waits.
    pub fn new(slots: Allotment) -> Turns<T> {
        Turns { slots, waiting: VecDeque::new(), making_way: false }
    }

    /// What waits, in the order in which it came.
    pub fn waiting(&self) -> &VecDeque<T> {
        &self.waiting
    }

    /// Whether there is a place.
    pub fn has_place(&self, asking: &Asking) -> bool {
        self.slots.may_take(asking)
    }

    /// Puts `item` at the end.
    pub fn push(&mut self, item: T) {
        self.waiting.push_back(item);
    }

    /// Takes out what `is` so.
    pub fn remove(&mut self, is: impl Fn(&T) -> bool) -> Vec<T> {
        let all = std::mem::take(&mut self.waiting);
        let (out, stay): (VecDeque<T>, VecDeque<T>) = all.into_iter().partition(|item| is(item));
        self.waiting = stay;
        out.into()
    }

    /// The one that may have a place now and whose turn it is.
    fn first(&self) -> Option<(usize, Rank)> {
        let may_run =
            |item: &T| self.slots.may_take(item.asking()) && (item.is_awaited() || self.slots.has_spare());
        let able = self.waiting.iter().enumerate().filter(|(_, item)| may_run(item));
        let ranked = able.map(|(at, item)| (at, rank(item, self.slots.held(item.asking()).0)));
        ranked.min_by_key(|(at, rank)| (*rank, *at))
    }

    /// Whether it is the turn of what `is` so.
    pub fn is_turn_of(&self, is: impl Fn(&T) -> bool) -> bool {
        self.first().is_some_and(|(at, _)| self.waiting.get(at).is_some_and(is))
    }

    /// Takes the next, and a place for it.
    pub fn take_next(&mut self) -> Option<T> {
        let (at, _) = self.first()?;
        let item = self.waiting.remove(at)?;
        self.slots.take(item.asking());
        Some(item)
    }

    /// Takes a place for what does not wait, if there is one that is nobody's turn.
    pub fn take_at_once(&mut self, asking: &Asking) -> bool {
        let may = self.first().is_none() && self.slots.may_take(asking);
        if may {
            self.slots.take(asking);
        }
        may
    }

    /// Gives a place back.
    pub fn done(&mut self, asking: &Asking) {
        self.making_way = false;
        self.slots.give_back(asking);
    }

    /// Whether `running` should give its place to one that a client waits for, which has none without that: at once if nobody
    /// waits for it; if `may_share`, also to one of a registry, or within it of a client, that has fewer; if `slow`, to
    /// whose turn it is, but in a second turn only to who had none: else nothing would end where all are slow.
    pub fn must_make_way(&mut self, running: &impl Waits, may_share: bool, slow: bool) -> bool {
        let is_taken = |first: Option<(usize, Rank)>| first.is_some_and(|(_, (unawaited, ..))| !unawaited);
        if self.making_way || self.waiting.is_empty() || is_taken(self.first()) {
            return false;
        }
        let (awaited, asking) = (running.is_awaited(), running.asking());
        if awaited && !may_share && !slow {
            return false;
        }
        let by = asking.clients.lock().charged;
        self.slots.give_back(asking);
        let mine = rank(running, self.slots.held_by(asking, by));
        let way = self.first().is_some_and(|(_, first)| {
            let has_fewer = first.1 < mine.1;
            let is_its_turn =
                if running.had_turn() { (first.1, first.2) < (mine.1, mine.2) } else { first <= mine };
            !first.0 && (!awaited || may_share && has_fewer || slow && is_its_turn)
        });
        self.slots.take_for(asking, by);
        self.making_way = way;
        way
    }
}

#[cfg(test)]
mod tests;
