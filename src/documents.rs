//! How many large documents are in memory at a time: manifests and lists, from upstreams, peers and the disk.
//!
//! Two rules bound what they cost, whoever sends them. One at a time is parsed, or is in memory because it was read from
//! the disk ([`DocumentTurn`]). Few are on their way in or wait to be stored ([`LargeAnswer`]), of each registry one, and
//! one that drips gives its place to a registry that waits. Who has both took the place first and asks nobody while the
//! turn lasts, so that nobody waits for ever. Small documents need neither. Nothing in here can fail.

use crate::budget;
use crate::places::{Allotment, Asking, TurnPlace, TurnPool};
use crate::sync::Mutex;
use crate::sync::turn::{AlsoUntil, also_until};
use std::sync::{Arc, LazyLock, MutexGuard};
use std::time::Instant;

static TURN: Mutex<()> = Mutex::new(());
static PLACES: LazyLock<TurnPool> =
    LazyLock::new(|| TurnPool::new(Allotment::new(budget::LARGE_ANSWERS_MAX)));

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
pub struct LargeAnswer {
    place: Arc<TurnPlace>,
}

impl LargeAnswer {
    /// Waits for a place for an answer of `owner`, until `until`.
    pub fn wait(owner: &str, until: Instant) -> Option<LargeAnswer> {
        LargeAnswer::wait_in(&PLACES, owner, until)
    }

    fn wait_in(places: &TurnPool, owner: &str, until: Instant) -> Option<LargeAnswer> {
        let place = places.wait_until(Asking::new(owner, "", None), until)?;
        Some(LargeAnswer { place: Arc::new(place) })
    }

    /// Until what is returned is dropped, the work of this thread is called off if the answer is slow and another owner
    /// waits for its place.
    pub fn yields(&self) -> AlsoUntil {
        let (place, since) = (Arc::downgrade(&self.place), Instant::now());
        also_until(move |pace| {
            let turn = budget::LARGE_ANSWER_TURN_TIME;
            let least = budget::FILL_TURN_BYTES / budget::FILL_TURN_TIME.as_secs();
            let slow = since.elapsed() >= turn && pace.is_below(least, turn);
            place.upgrade().is_some_and(|place| place.must_make_way(slow))
        })
    }
}

impl PartialEq for LargeAnswer {
    /// Whether both are of the same owner.
    fn eq(&self, other: &LargeAnswer) -> bool {
        self.place.asking().registry() == other.place.asking().registry()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn place_of(places: &TurnPool, owner: &str) -> Option<LargeAnswer> {
        LargeAnswer::wait_in(places, owner, Instant::now() + Duration::from_millis(20))
    }

    #[test]
    fn each_owner_has_one_place_and_all_together_few() {
        let places = TurnPool::new(Allotment::new(2));
        let evil = place_of(&places, "evil").unwrap();
        assert!(place_of(&places, "evil").is_none());
        let good = place_of(&places, "good").unwrap();
        assert!(place_of(&places, "third").is_none());
        drop(evil);
        let third = place_of(&places, "third").unwrap();
        assert!(place_of(&places, "evil").is_none());
        drop((good, third));
        assert!(place_of(&places, "evil").is_some());
    }

    #[test]
    fn who_has_a_place_gives_it_to_another_owner_when_its_turn_is_over() {
        let places = TurnPool::new(Allotment::new(2));
        let (evil, worse) = (place_of(&places, "evil").unwrap(), place_of(&places, "worse").unwrap());
        assert!(!evil.place.must_make_way(true), "nobody waits");
        let (asked, good) = (places.clone(), Instant::now() + Duration::from_secs(60));
        let waits = std::thread::spawn(move || LargeAnswer::wait_in(&asked, "good", good).is_some());
        while !evil.place.must_make_way(true) {
            std::thread::yield_now();
        }
        assert!(!worse.place.must_make_way(true), "one is enough");
        drop(evil);
        assert!(waits.join().unwrap());
    }

    #[test]
    fn small_documents_wait_for_nobody() {
        let _large = DocumentTurn::wait(budget::LARGE_DOCUMENT_BYTES + 1);
        let _small = DocumentTurn::wait(budget::LARGE_DOCUMENT_BYTES);
    }
}
