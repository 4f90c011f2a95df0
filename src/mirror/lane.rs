//! Lanes: a few threads for each upstream that ask short questions, so that layers never delay a tag.
//!
//! A question is asked once however many wait for its answer ([`Flights`]), and goes on when nobody waits any more:
//! its answer moves a pointer or fills the store all the same.

use crate::budget;
use crate::sync::{Condvar, Mutex};
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, MutexGuard};
use tokio::sync::watch;

type Job = Box<dyn FnOnce() + Send>;

/// The lanes to one upstream. A thread is begun when a question finds none idle and ends when none has come for a
/// while, so that an upstream that nobody asks costs nothing, and one that hangs holds up nobody else's questions.
pub(super) struct Lanes {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    threads_max: usize,
    queue_max: usize,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    threads: usize,
    idle: usize,
    closed: bool,
}

/// The queue for the lanes is full.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Lanes {
    pub(super) fn new(name: &str, threads_max: usize, queue_max: usize) -> Lanes {
        let (state, wake) = (Mutex::default(), Condvar::new());
        Lanes { shared: Arc::new(Shared { name: name.to_owned(), threads_max, queue_max, state, wake }) }
    }

    /// Has a job done, in its turn.
    pub(super) fn run(&self, job: impl FnOnce() + Send + 'static) -> Result<(), Full> {
        let job: Job = Box::new(job);
        let mut state = self.shared.state();
        if state.queue.len() >= self.shared.queue_max {
            // The job goes only after the lock, for what it drops may want to ask again.
            drop(state);
            drop(job);
            return Err(Full);
        }
        state.queue.push_back(job);
        if state.idle >= state.queue.len() || state.threads >= self.shared.threads_max {
            self.shared.wake.notify_one();
            return Ok(());
        }
        state.threads += 1;
        let shared = Arc::clone(&self.shared);
        let begun = std::thread::Builder::new()
            .name(format!("lane {}", self.shared.name))
            .stack_size(budget::THREAD_STACK_BYTES)
            .spawn(move || work(&shared));
        if let Err(e) = begun {
            state.threads -= 1;
            if state.threads == 0 {
                log::error!("no thread to ask {}: {e}", self.shared.name);
                let unasked = std::mem::take(&mut state.queue);
                drop(state);
                drop(unasked);
                return Err(Full);
            }
        }
        Ok(())
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.shared.state().closed = true;
        self.shared.wake.notify_all();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The next job; `None` when the thread is no longer needed.
    fn next(&self) -> Option<Job> {
        let mut state = self.state();
        let mut waited = false;
        loop {
            if let Some(job) = state.queue.pop_front() {
                return Some(job);
            }
            if state.closed || waited {
                state.threads -= 1;
                return None;
            }
            state.idle += 1;
            let (woken, timeout) = self.wake.wait_timeout(state, budget::LANE_IDLE);
            state = woken;
            state.idle -= 1;
            waited = timeout;
        }
    }
}

fn work(shared: &Shared) {
    while let Some(job) = shared.next() {
        // A job that panics has told who waits for it by dropping its sender; the lane goes on.
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
            log::error!("a question to {} ended in a panic; this is a bug", shared.name);
        }
    }
}

/// Questions under way, by what they ask.
pub(super) struct Flights<K, V> {
    under_way: Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>,
}

/// One wait for an answer.
pub(super) struct Flight<V>(watch::Receiver<Option<V>>);

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Flights { under_way: Arc::default() }
    }
}

impl<K, V> Flights<K, V>
where
    K: Hash + Eq + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Joins the question `key` that is under way, or has `ask` run on the lanes.
    pub(super) fn join(
        &self,
        lanes: &Lanes,
        key: &K,
        ask: impl FnOnce() -> V + Send + 'static,
    ) -> Result<Flight<V>, Full> {
        let (sender, answer) = watch::channel(None);
        {
            let mut under_way = self.under_way.lock();
            if let Some(answer) = under_way.get(key) {
                return Ok(Flight(answer.clone()));
            }
            under_way.insert(key.clone(), answer.clone());
        }
        // If the queue is full, dropping the job drops its landing, which takes the question off the list again.
        let landing = Landing { under_way: Arc::clone(&self.under_way), key: key.clone() };
        lanes.run(move || {
            let answer = ask();
            drop(landing);
            sender.send_replace(Some(answer));
        })?;
        Ok(Flight(answer))
    }

    /// Questions under way.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.under_way.lock().len()
    }
}

/// Takes a question off the list, also when it ends in a panic.
struct Landing<K: Hash + Eq, V> {
    under_way: Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>,
    key: K,
}

impl<K: Hash + Eq, V> Drop for Landing<K, V> {
    fn drop(&mut self) {
        self.under_way.lock().remove(&self.key);
    }
}

impl<V: Clone> Flight<V> {
    /// The answer; `None` if the question ended without one.
    pub(super) async fn land(mut self) -> Option<V> {
        let answer = self.0.wait_for(Option::is_some).await.ok()?;
        answer.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::Receiver;

    #[tokio::test]
    async fn many_ask_once() {
        let lanes = Lanes::new("test", 1, 8);
        let flights: Flights<&str, usize> = Flights::default();
        let asked = Arc::new(AtomicUsize::new(0));
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let ask = |gate: Option<Receiver<()>>| {
            let asked = Arc::clone(&asked);
            move || {
                if let Some(gate) = gate {
                    gate.recv().unwrap();
                }
                asked.fetch_add(1, Ordering::SeqCst) + 1
            }
        };
        let first = flights.join(&lanes, &"tag", ask(Some(gate))).unwrap();
        let second = flights.join(&lanes, &"tag", ask(None)).unwrap();
        open.send(()).unwrap();
        assert_eq!((first.land().await, second.land().await), (Some(1), Some(1)));
        assert_eq!(flights.len(), 0);
        assert_eq!(flights.join(&lanes, &"tag", ask(None)).unwrap().land().await, Some(2));
    }

    #[tokio::test]
    async fn a_full_queue_and_a_panic_are_answers_too() {
        let lanes = Lanes::new("test", 1, 1);
        let flights: Flights<u8, ()> = Flights::default();
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let (started, running) = std::sync::mpsc::channel::<()>();
        let busy = flights
            .join(&lanes, &0, move || {
                started.send(()).unwrap();
                gate.recv().unwrap();
            })
            .unwrap();
        running.recv().unwrap();
        let panics = flights.join(&lanes, &1, || panic!("on purpose")).unwrap();
        assert!(flights.join(&lanes, &2, || ()).is_err());
        open.send(()).unwrap();
        assert_eq!((busy.land().await, panics.land().await), (Some(()), None));
        assert_eq!(flights.len(), 0, "a refused or broken question must not stay on the list");
    }
}
