//! Single-flight: a question is asked once, and all who ask it wait for the same answer.
//!
//! A question continues even if no client waits any more: its answer still moves a pointer or fills the store.
//! Invariant: a question is on the list from before it is queued until it has an answer or has failed.

use super::lane::{Lanes, QueueFull};
use crate::sync::Mutex;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use tokio::sync::watch;

/// Questions under way, by key.
pub(super) struct SingleFlight<K, V> {
    under_way: Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>,
}

/// One wait for an answer.
pub(super) struct Wait<V>(watch::Receiver<Option<V>>);

impl<K, V> Default for SingleFlight<K, V> {
    fn default() -> Self {
        SingleFlight { under_way: Arc::default() }
    }
}

impl<K, V> SingleFlight<K, V>
where
    K: Hash + Eq + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Joins the question `key` that is under way, or has `ask` run on the lanes for the repository `of`.
    pub(super) fn join(
        &self,
        lanes: &Lanes,
        of: &str,
        key: &K,
        ask: impl FnOnce() -> V + Send + 'static,
    ) -> Result<Wait<V>, QueueFull> {
        let (sender, answer) = watch::channel(None);
        {
            let mut under_way = self.under_way.lock();
            if let Some(answer) = under_way.get(key) {
                return Ok(Wait(answer.clone()));
            }
            under_way.insert(key.clone(), answer.clone());
        }
        // If the queue is full, the job is dropped, and with it `departure`, which removes the question from the list.
        let departure = Departure { under_way: Arc::clone(&self.under_way), key: key.clone() };
        lanes.run(of, move || {
            let answer = ask();
            drop(departure);
            sender.send_replace(Some(answer));
        })?;
        Ok(Wait(answer))
    }

    /// Questions under way.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.under_way.lock().len()
    }
}

/// Removes a question from the list when dropped, also after a panic.
struct Departure<K: Hash + Eq, V> {
    under_way: Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>,
    key: K,
}

impl<K: Hash + Eq, V> Drop for Departure<K, V> {
    fn drop(&mut self) {
        self.under_way.lock().remove(&self.key);
    }
}

impl<V: Clone> Wait<V> {
    /// The answer; `None` if the question ended without one.
    pub(super) async fn answer(mut self) -> Option<V> {
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
        let questions: SingleFlight<&str, usize> = SingleFlight::default();
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
        let first = questions.join(&lanes, "r", &"tag", ask(Some(gate))).unwrap();
        let second = questions.join(&lanes, "r", &"tag", ask(None)).unwrap();
        open.send(()).unwrap();
        assert_eq!((first.answer().await, second.answer().await), (Some(1), Some(1)));
        assert_eq!(questions.len(), 0);
        assert_eq!(questions.join(&lanes, "r", &"tag", ask(None)).unwrap().answer().await, Some(2));
    }

    #[tokio::test]
    async fn a_full_queue_and_a_panic_are_answers_too() {
        let lanes = Lanes::new("test", 1, 1);
        let questions: SingleFlight<u8, ()> = SingleFlight::default();
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let (started, running) = std::sync::mpsc::channel::<()>();
        let busy = questions
            .join(&lanes, "r", &0, move || {
                started.send(()).unwrap();
                gate.recv().unwrap();
            })
            .unwrap();
        running.recv().unwrap();
        let panics = questions.join(&lanes, "r", &1, || panic!("on purpose")).unwrap();
        assert!(questions.join(&lanes, "r", &2, || ()).is_err());
        open.send(()).unwrap();
        assert_eq!((busy.answer().await, panics.answer().await), (Some(()), None));
        assert_eq!(questions.len(), 0, "a refused or broken question must not stay on the list");
    }
}
