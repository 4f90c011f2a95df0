//! How many large documents are in memory at a time: manifests and lists, from upstreams, peers and the disk.
//!
//! Two rules bound what they cost, whoever sends them. One at a time is parsed, or is in memory because it was read from
//! the disk ([`DocumentTurn`]). Few are on their way in or wait to be stored ([`LargeAnswer`]), of each registry one, so
//! that a registry that drips does not keep out the others. Who has both took the place first and asks nobody while the
//! turn lasts, so that nobody waits for ever. Small documents need neither. Nothing in here can fail.

use crate::budget;
use crate::sync::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::MutexGuard;
use std::time::Instant;

static TURN: Mutex<()> = Mutex::new(());
static PLACES: Places = Places::new(budget::LARGE_ANSWERS_MAX);

/// Whether a document of so many bytes needs a turn and a place.
pub fn is_large(bytes: u64) -> bool {
    bytes > budget::LARGE_DOCUMENT_BYTES
}

/// The right to parse a document, or to have it in memory.
#[must_use = "a turn ends when this is dropped"]
pub struct DocumentTurn {
    _turn: Option<MutexGuard<'static, ()>>,
}

impl DocumentTurn {
    /// Waits for the turn of a document of so many bytes.
    pub fn wait(bytes: u64) -> DocumentTurn {
        DocumentTurn { _turn: is_large(bytes).then(|| TURN.lock()) }
    }
}

/// The right to have a large answer in memory while it comes and until it is stored.
#[derive(Debug)]
#[must_use = "a place is free again when this is dropped"]
pub struct LargeAnswer(Place<'static>);

impl LargeAnswer {
    /// Waits for a place for an answer of `owner`, until `until`.
    pub fn wait(owner: &str, until: Instant) -> Option<LargeAnswer> {
        PLACES.wait(owner, until).map(LargeAnswer)
    }
}

impl PartialEq for LargeAnswer {
    /// Whether both are of the same owner.
    fn eq(&self, other: &LargeAnswer) -> bool {
        self.0.owner == other.0.owner
    }
}

#[derive(Debug)]
struct Places {
    most: usize,
    state: Mutex<PlacesState>,
    changed: Condvar,
}

#[derive(Debug)]
struct PlacesState {
    /// The owners of places in use.
    held: Vec<String>,
    /// Who waits, first come first.
    waiting: VecDeque<(u64, String)>,
    tickets: u64,
}

#[derive(Debug)]
struct Place<'a> {
    places: &'a Places,
    owner: String,
}

impl Places {
    const fn new(most: usize) -> Places {
        let state = PlacesState { held: Vec::new(), waiting: VecDeque::new(), tickets: 0 };
        Places { most, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// A place for `owner`, who has none, once it is the first for whom there is one.
    fn wait(&self, owner: &str, until: Instant) -> Option<Place<'_>> {
        let mut state = self.state.lock();
        state.tickets += 1;
        let ticket = state.tickets;
        state.waiting.push_back((ticket, owner.to_owned()));
        loop {
            let is_first = state.held.len() < self.most && state.next() == Some(ticket);
            let left = until.saturating_duration_since(Instant::now());
            if is_first || left.is_zero() {
                state.waiting.retain(|(waiting, _)| *waiting != ticket);
                if is_first {
                    state.held.push(owner.to_owned());
                }
                drop(state);
                // The next may have a place, too, or is now the first.
                self.changed.notify_all();
                return is_first.then(|| Place { places: self, owner: owner.to_owned() });
            }
            state = self.changed.wait_timeout(state, left).0;
        }
    }
}

impl PlacesState {
    /// The first that waits and has no place.
    fn next(&self) -> Option<u64> {
        let next = self.waiting.iter().find(|(_, owner)| !self.held.contains(owner));
        next.map(|(ticket, _)| *ticket)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.places.state.lock();
        if let Some(at) = state.held.iter().position(|owner| *owner == self.owner) {
            state.held.swap_remove(at);
        }
        drop(state);
        self.places.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    #[test]
    fn each_owner_has_one_place_and_all_together_few() {
        let places = Places::new(2);
        let evil = places.wait("evil", soon()).unwrap();
        assert!(places.wait("evil", soon()).is_none());
        let good = places.wait("good", soon()).unwrap();
        assert!(places.wait("third", soon()).is_none());
        drop(evil);
        let third = places.wait("third", soon()).unwrap();
        assert!(places.wait("evil", soon()).is_none());
        drop((good, third));
        assert!(places.wait("evil", soon()).is_some());
        assert!(places.state.lock().held.is_empty() && places.state.lock().waiting.is_empty());
    }

    #[test]
    fn who_came_first_goes_first() {
        let places = Places::new(1);
        let long = Instant::now() + Duration::from_secs(60);
        let first = places.wait("evil", long).unwrap();
        std::thread::scope(|scope| {
            let good = scope.spawn(|| places.wait("good", long).map(|place| place.owner.clone()));
            while places.state.lock().waiting.is_empty() {
                std::thread::yield_now();
            }
            let again = scope.spawn(|| places.wait("evil", long).map(drop));
            while places.state.lock().waiting.len() < 2 {
                std::thread::yield_now();
            }
            assert_eq!(places.state.lock().next(), Some(2), "the other registry, though both wait");
            drop(first);
            assert_eq!(good.join().unwrap().as_deref(), Some("good"));
            assert!(again.join().unwrap().is_some());
        });
    }

    #[test]
    fn small_documents_wait_for_nobody() {
        let _large = DocumentTurn::wait(budget::LARGE_DOCUMENT_BYTES + 1);
        let _small = DocumentTurn::wait(budget::LARGE_DOCUMENT_BYTES);
    }
}
