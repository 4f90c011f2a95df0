//! Single-flight: a question is asked once, and all who ask it wait for the same answer.
//!
//! A question continues even if no client waits any more, unless others wait for its lane: its answer still moves a pointer
//! or fills the store. Invariant: a question is on the list from before it is queued until it has an answer or has failed.

use super::lane::{LaneJob, LaneTicket, Lanes, QueueFull};
use crate::places::{Asking, asker};
use crate::sync::Mutex;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use tokio::sync::watch;

/// A question under way: where its answer comes, and who waits for it.
type UnderWay<V> = (Arc<watch::Sender<Option<V>>>, Arc<Asking>);

/// Questions under way, by key.
pub(super) struct SingleFlight<K, V> {
    under_way: Arc<Mutex<HashMap<K, UnderWay<V>>>>,
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
    /// Joins the question `key` that is under way, or has `ask` run on the lanes for the repository `of`, for the client of
    /// this task. It may be run again, if it was called off.
    pub(super) fn join(
        &self,
        lanes: &Lanes,
        of: &str,
        key: &K,
        ask: impl FnMut() -> V + Send + 'static,
    ) -> Result<Wait<V>, QueueFull> {
        let (sender, answer) = watch::channel(None);
        let (sender, asking) = (Arc::new(sender), lanes.asking(of, asker()));
        {
            let mut under_way = self.under_way.lock();
            if let Some((sender, asking)) = under_way.get(key) {
                asking.join(asker());
                let wait = Wait(sender.subscribe());
                drop(under_way);
                lanes.changed();
                return Ok(wait);
            }
            under_way.insert(key.clone(), (Arc::clone(&sender), Arc::clone(&asking)));
        }
        let waited = Arc::clone(&sender);
        let ticket = LaneTicket::new(asking, move || waited.receiver_count() > 0);
        // If the queue is full, the job is dropped, and with it `departure`, which removes the question from the list.
        let departure = Departure { under_way: Arc::clone(&self.under_way), key: key.clone() };
        lanes.queue(ticket, Box::new(FlightJob { ask, answer: None, departure, sender }))?;
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
    under_way: Arc<Mutex<HashMap<K, UnderWay<V>>>>,
    key: K,
}

impl<K: Hash + Eq, V> Drop for Departure<K, V> {
    fn drop(&mut self) {
        self.under_way.lock().remove(&self.key);
    }
}

struct FlightJob<A, K: Hash + Eq, V> {
    ask: A,
    answer: Option<V>,
    departure: Departure<K, V>,
    sender: Arc<watch::Sender<Option<V>>>,
}

impl<A, K, V> LaneJob for FlightJob<A, K, V>
where
    A: FnMut() -> V + Send,
    K: Hash + Eq + Send,
    V: Send + Sync,
{
    fn work(&mut self) {
        self.answer = Some((self.ask)());
    }

    fn publish(self: Box<Self>) {
        let FlightJob { answer, departure, sender, .. } = *self;
        drop(departure);
        sender.send_replace(answer);
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
                if let Some(gate) = &gate {
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
