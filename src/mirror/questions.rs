//! Short questions to upstreams and peers, each on a lane of its registry.

use super::context::{Context, miss_wait, no_answer_text};
use super::lane::{LaneJob, LaneTicket, Lanes, QueueFull};
use super::refusal::Refusal;
use crate::budget;
use crate::fetch::{Failure, Upstream};
use crate::oci::RegistryName;
use crate::places::asker;
use crate::sync::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// The lanes to every registry, and those to the peers. Peers have their own, because all lanes of an upstream that is
/// down may be waiting for it.
pub(super) struct Questions {
    by_registry: HashMap<RegistryName, Lanes>,
    pub(super) peers: Lanes,
}

impl Questions {
    pub(super) fn new(context: &Context) -> Questions {
        let lanes = |name: &str| Lanes::new(name, budget::MANIFEST_LANES, budget::MANIFEST_QUEUE_MAX);
        let each = context.upstreams.iter();
        Questions {
            by_registry: each.map(|up| (up.name().clone(), lanes(up.name().as_str()))).collect(),
            peers: lanes("peers"),
        }
    }

    /// The lanes to an upstream.
    pub(super) fn lanes(&self, upstream: &Upstream) -> Result<&Lanes, QueueFull> {
        self.by_registry.get(upstream.name()).ok_or(QueueFull)
    }

    /// Asks a question about the repository `of`, and waits for the answer as long as a client can.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        upstream: &Arc<Upstream>,
        of: &str,
        question: impl FnMut(&Upstream) -> Result<T, Failure> + Send + 'static,
    ) -> Result<Result<T, Failure>, Refusal> {
        self.ask_within(upstream, of, miss_wait(), question).await
    }

    /// The same, and waits so long.
    ///
    /// # Errors
    /// [`Refusal::Unavailable`]: there was no answer in this time.
    pub(super) async fn ask_within<T: Send + 'static>(
        &self,
        upstream: &Arc<Upstream>,
        of: &str,
        wait: Duration,
        question: impl FnMut(&Upstream) -> Result<T, Failure> + Send + 'static,
    ) -> Result<Result<T, Failure>, Refusal> {
        let (sender, answer) = oneshot::channel();
        let sender = Arc::new(Mutex::new(Some(sender)));
        let lanes = self.lanes(upstream).map_err(|_| queue_full())?;
        let waited = Arc::clone(&sender);
        let awaited =
            move || waited.lock().as_ref().is_some_and(|sender: &AnswerSender<T>| !sender.is_closed());
        let ticket = LaneTicket::new(lanes.asking(of, asker()), awaited);
        let job = OneQuestion { upstream: Arc::clone(upstream), question, answer: None, sender };
        lanes.queue(ticket, Box::new(job)).map_err(|_| queue_full())?;
        match tokio::time::timeout(wait, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(question_failed()),
            Err(_) => Err(Refusal::Unavailable(no_answer_text(&upstream.label(), wait))),
        }
    }
}

type AnswerSender<T> = oneshot::Sender<Result<T, Failure>>;

/// A question with one who waits for it.
struct OneQuestion<Q, T> {
    upstream: Arc<Upstream>,
    question: Q,
    answer: Option<Result<T, Failure>>,
    sender: Arc<Mutex<Option<AnswerSender<T>>>>,
}

impl<Q, T> LaneJob for OneQuestion<Q, T>
where
    Q: FnMut(&Upstream) -> Result<T, Failure> + Send,
    T: Send,
{
    fn work(&mut self) {
        self.answer = Some((self.question)(&self.upstream));
    }

    fn publish(self: Box<Self>) {
        let sender = self.sender.lock().take();
        if let (Some(sender), Some(answer)) = (sender, self.answer) {
            drop(sender.send(answer));
        }
    }
}

/// The queue for questions is full.
pub(super) fn queue_full() -> Refusal {
    Refusal::Busy(QUEUE_FULL.into())
}

/// The same as text.
pub(super) const QUEUE_FULL: &str = "too many questions wait for upstreams";

/// A question ended without an answer.
pub(super) fn question_failed() -> Refusal {
    Refusal::Failed("the question to upstream failed; the log says how".into())
}
