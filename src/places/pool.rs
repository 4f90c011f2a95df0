//! A pool whose places are held by values, and waited for by tasks and by threads in the order of [`Turns`].

use super::turns::{Allotment, Asking, Turns, Waits};
use crate::sync::{Condvar, Mutex, retry_when};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// The pool.
#[derive(Clone, Debug)]
pub struct TurnPool(Arc<PoolOfTurns>);

#[derive(Debug)]
struct PoolOfTurns {
    turns: Mutex<Turns<Arc<Asking>>>,
    freed: Notify,
    changed: Condvar,
}

/// A place; dropping it gives it back.
#[derive(Debug)]
pub struct TurnPlace {
    asking: Arc<Asking>,
    pool: Arc<PoolOfTurns>,
}

impl Waits for Arc<Asking> {
    fn asking(&self) -> &Asking {
        self
    }

    fn is_awaited(&self) -> bool {
        true
    }
}

impl TurnPool {
    /// A pool of these places.
    pub fn new(places: Allotment) -> TurnPool {
        let (turns, freed, changed) = (Mutex::new(Turns::new(places)), Notify::new(), Condvar::new());
        TurnPool(Arc::new(PoolOfTurns { turns, freed, changed }))
    }

    /// A place, if there is one now.
    pub fn take(&self, asking: Asking) -> Option<TurnPlace> {
        let taken = self.0.turns.lock().take_at_once(&asking);
        taken.then(|| TurnPlace { asking: Arc::new(asking), pool: Arc::clone(&self.0) })
    }

    /// A place, if it is its turn within `longest`.
    pub async fn wait(&self, asking: Asking, longest: Duration) -> Option<TurnPlace> {
        let entry = self.enter(asking);
        let taken = retry_when(&self.0.freed, || entry.take());
        tokio::time::timeout(longest, taken).await.ok()
    }

    /// The same for a thread, until `until`.
    pub fn wait_until(&self, asking: Asking, until: Instant) -> Option<TurnPlace> {
        let entry = self.enter(asking);
        let mut turns = self.0.turns.lock();
        loop {
            if let Some(place) = entry.take_of(&mut turns) {
                return Some(place);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // The lock is taken again when the entry is dropped.
                drop(turns);
                return None;
            }
            turns = self.0.changed.wait_timeout(turns, left).0;
        }
    }

    fn enter(&self, asking: Asking) -> Entry<'_> {
        let asking = Arc::new(asking);
        self.0.turns.lock().push(Arc::clone(&asking));
        Entry { asking, pool: &self.0 }
    }
}

/// One that waits, until it is dropped.
struct Entry<'a> {
    asking: Arc<Asking>,
    pool: &'a Arc<PoolOfTurns>,
}

impl Entry<'_> {
    fn take(&self) -> Option<TurnPlace> {
        self.take_of(&mut self.pool.turns.lock())
    }

    fn take_of(&self, turns: &mut Turns<Arc<Asking>>) -> Option<TurnPlace> {
        if !turns.is_turn_of(|first| Arc::ptr_eq(first, &self.asking)) {
            return None;
        }
        let asking = turns.take_next()?;
        // There may be a place for the next, too.
        self.pool.wake();
        Some(TurnPlace { asking, pool: Arc::clone(self.pool) })
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.pool.turns.lock().remove(|waiting| Arc::ptr_eq(waiting, &self.asking));
        self.pool.wake();
    }
}

impl PoolOfTurns {
    fn wake(&self) {
        self.freed.notify_waiters();
        self.changed.notify_all();
    }
}

impl TurnPlace {
    /// Whether it should be given to one that waits: see [`Turns::must_make_way`].
    pub fn must_make_way(&self, slow: bool) -> bool {
        self.pool.turns.lock().must_make_way(&self.asking, false, slow)
    }

    /// For what the place is.
    pub fn asking(&self) -> &Asking {
        &self.asking
    }
}

impl Drop for TurnPlace {
    fn drop(&mut self) {
        self.pool.turns.lock().done(&self.asking);
        self.pool.wake();
    }
}
