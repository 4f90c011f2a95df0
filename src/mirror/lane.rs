//! Lanes: a few threads for each upstream that ask short questions, so that layers never delay a tag.
//!
//! Invariants. The number of threads and the length of the queue are bounded, and shared out by repository and client
//! (`places`): one whose answers drip cannot make the others wait. A question that has had its turn gives way to one whose
//! turn it is, and waits for its next; one that nobody waits for gives way at once, and has no place in a full queue.
//! Failure: a job that panics is logged; its sender is dropped, which ends the wait for its answer.

use crate::budget;
use crate::places::{Allotment, Asking, Turns, Waits};
use crate::sync::turn::{TurnPace, in_turn};
use crate::sync::{Condvar, Mutex};
use crate::via::{self, Way};
use std::sync::Arc;

/// Work for a lane.
pub(super) trait LaneJob: Send {
    /// Does it, again from its beginning if it was called off before.
    fn work(&mut self);

    /// It was not called off: tells what came of it.
    fn publish(self: Box<Self>);
}

/// What is asked for, by whom, and whether a client waits for it.
#[derive(Clone)]
pub(super) struct LaneTicket {
    asking: Arc<Asking>,
    awaited: Arc<dyn Fn() -> bool + Send + Sync>,
    /// How the request came that asks first.
    way: Way,
    /// It was called off before.
    again: bool,
}

impl LaneTicket {
    pub(super) fn new(asking: Arc<Asking>, awaited: impl Fn() -> bool + Send + Sync + 'static) -> LaneTicket {
        LaneTicket { asking, awaited: Arc::new(awaited), way: via::way(), again: false }
    }
}

impl Waits for LaneTicket {
    fn asking(&self) -> &Asking {
        &self.asking
    }

    fn is_awaited(&self) -> bool {
        (self.awaited)()
    }

    fn had_turn(&self) -> bool {
        self.again
    }
}

struct QueuedJob {
    ticket: LaneTicket,
    job: Box<dyn LaneJob>,
}

impl Waits for QueuedJob {
    fn asking(&self) -> &Asking {
        &self.ticket.asking
    }

    fn is_awaited(&self) -> bool {
        self.ticket.is_awaited()
    }

    fn had_turn(&self) -> bool {
        self.ticket.again
    }
}

/// The lanes to one upstream. A thread is started when a job finds no idle one, and ends when no job has come for a
/// while. So an upstream without requests costs nothing, and one that hangs delays no questions to others.
pub(super) struct Lanes {
    shared: Arc<LaneShared>,
}

struct LaneShared {
    name: String,
    threads_max: usize,
    /// The queue with nothing in it.
    queue: fn(usize) -> Allotment,
    queue_max: usize,
    state: Mutex<LaneState>,
    wake: Condvar,
}

struct LaneState {
    turns: Turns<QueuedJob>,
    threads: usize,
    idle: usize,
    closed: bool,
}

/// The queue for the lanes is full.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct QueueFull;

impl Lanes {
    /// Lanes that repositories and clients share.
    pub(super) fn new(name: &str, threads_max: usize, queue_max: usize) -> Lanes {
        Lanes::with(name, Allotment::of_registry(threads_max), Allotment::of_table_of_registry, queue_max)
    }

    /// Lanes for larder's own work, which keeps nothing for others.
    pub(super) fn unshared(name: &str, threads_max: usize, queue_max: usize) -> Lanes {
        Lanes::with(name, Allotment::unshared(threads_max), Allotment::unshared, queue_max)
    }

    fn with(name: &str, lanes: Allotment, queue: fn(usize) -> Allotment, queue_max: usize) -> Lanes {
        let threads_max = lanes.places();
        let state = LaneState { turns: Turns::new(lanes), threads: 0, idle: 0, closed: false };
        let (name, state, wake) = (name.to_owned(), Mutex::new(state), Condvar::new());
        Lanes { shared: Arc::new(LaneShared { name, threads_max, queue, queue_max, state, wake }) }
    }

    /// What a repository is asked for `by` a client.
    pub(super) fn asking(&self, repository: &str, by: Option<std::net::IpAddr>) -> Arc<Asking> {
        Arc::new(Asking::new(&self.shared.name, repository, by))
    }

    /// Queues larder's own work.
    pub(super) fn run(&self, of: &str, job: impl FnOnce() + Send + 'static) -> Result<(), QueueFull> {
        let ticket = LaneTicket::new(self.asking(of, None), || true);
        self.queue(ticket, Box::new(Once(Some(job))))
    }

    /// Queues a job.
    pub(super) fn queue(&self, ticket: LaneTicket, job: Box<dyn LaneJob>) -> Result<(), QueueFull> {
        let mut state = self.shared.state.lock();
        let mut unasked = Vec::new();
        if !self.shared.has_place(&state, &ticket) && ticket.is_awaited() {
            // What nobody waits for yields.
            unasked = state.turns.remove(|queued| !queued.is_awaited());
        }
        if !self.shared.has_place(&state, &ticket) {
            // Jobs are dropped only after the lock: what they own may queue another job when dropped.
            drop(state);
            drop((job, unasked));
            return Err(QueueFull);
        }
        state.turns.push(QueuedJob { ticket, job });
        if state.idle >= state.turns.waiting().len() || state.threads >= self.shared.threads_max {
            drop(state);
            self.shared.wake.notify_one();
            return Ok(());
        }
        if let Err(e) = self.begin_thread(&mut state)
            && state.threads == 0
        {
            log::error!("no thread to ask {}: {e}", self.shared.name);
            unasked.extend(state.turns.remove(|_| true));
            drop(state);
            return Err(QueueFull);
        }
        Ok(())
    }

    fn begin_thread(&self, state: &mut LaneState) -> std::io::Result<()> {
        let shared = Arc::clone(&self.shared);
        std::thread::Builder::new()
            .name(format!("lane {}", self.shared.name))
            .stack_size(budget::THREAD_STACK_BYTES)
            .spawn(move || work(&shared))?;
        state.threads += 1;
        Ok(())
    }

    /// A client waits for what nobody waited for: it may have a place now, and no thread that waits for work.
    pub(super) fn changed(&self) {
        let mut state = self.shared.state.lock();
        let waiting = state.turns.waiting().len();
        // Without a thread it waits for one that is busy.
        let _ = state.idle >= waiting
            || state.threads >= self.shared.threads_max
            || self.begin_thread(&mut state).is_ok();
        drop(state);
        self.shared.wake.notify_one();
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.wake.notify_all();
    }
}

/// A job that is not asked again.
struct Once<F>(Option<F>);

impl<F: FnOnce() + Send> LaneJob for Once<F> {
    fn work(&mut self) {
        if let Some(job) = self.0.take() {
            job();
        }
    }

    fn publish(self: Box<Self>) {}
}

impl LaneShared {
    fn has_place(&self, state: &LaneState, ticket: &LaneTicket) -> bool {
        let mut queue = (self.queue)(self.queue_max);
        state.turns.waiting().iter().for_each(|queued| queue.count(queued.asking()));
        queue.may_take(&ticket.asking)
    }

    /// The next job; `None` when the thread is no longer needed.
    fn next(&self) -> Option<QueuedJob> {
        let mut state = self.state.lock();
        let mut waited = false;
        loop {
            if let Some(next) = state.turns.take_next() {
                return Some(next);
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

    /// Whether a running job is called off. To ask again costs its upstream an answer, so that a larger share gives way only
    /// after a turn. What drips lets others by; what is merely late does so too, and has its login and its connection the next
    /// time, when it lets by only what is new.
    fn is_over(&self, ticket: &LaneTicket, pace: &TurnPace) -> bool {
        let taken = pace.began.elapsed();
        let may_share = taken >= budget::QUESTION_TURN_TIME;
        let drips = pace.is_below(budget::QUESTION_RATE_MIN, budget::QUESTION_TURN_TIME);
        let late =
            taken >= if ticket.again { budget::QUESTION_TURN_TIME } else { budget::QUESTION_LATE_TIME };
        self.state.lock().turns.must_make_way(ticket, may_share, drips || late)
    }
}

fn work(shared: &Arc<LaneShared>) {
    while let Some(QueuedJob { ticket, mut job }) = shared.next() {
        let (watched, running) = (Arc::clone(shared), ticket.clone());
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let work = || via::on_thread(&ticket.way, || job.work());
            in_turn(move |pace| watched.is_over(&running, pace), work).1
        }));
        let asking = Arc::clone(&ticket.asking);
        let mut state = shared.state.lock();
        state.turns.done(&asking);
        if let Ok(true) = worked {
            log::debug!("a question to {} waits for its next turn", shared.name);
            state.turns.push(QueuedJob { ticket: LaneTicket { again: true, ..ticket }, job });
            continue;
        }
        drop(state);
        match worked {
            Ok(_) => job.publish(),
            // A panic drops the job's sender, which ends the wait for its answer. The lane continues.
            Err(_) => log::error!("a question to {} ended in a panic; this is a bug", shared.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    /// Longer than any thread takes.
    const LONG: Duration = Duration::from_secs(20);

    /// A job that reports its name and then waits until the gate opens.
    fn job(name: &'static str, began: &Sender<&'static str>) -> (impl FnOnce() + Send + 'static, Sender<()>) {
        let (began, (open, gate)) = (began.clone(), channel::<()>());
        let wait = move || {
            let _ = began.send(name);
            let _ = gate.recv();
        };
        (wait, open)
    }

    fn begun(receiver: &Receiver<&'static str>, count: usize) -> Vec<&'static str> {
        (0..count).map(|_| receiver.recv_timeout(LONG).unwrap()).collect()
    }

    #[test]
    fn a_repository_that_drips_leaves_a_lane_to_the_others() {
        let lanes = Lanes::new("test", 4, 64);
        let (began, receiver) = channel();
        let mut gates = Vec::new();
        for _ in 0..10 {
            let (wait, open) = job("slow", &began);
            lanes.run("slow", wait).unwrap();
            gates.push(open);
        }
        assert_eq!(begun(&receiver, 3), ["slow"; 3]);
        for name in ["one", "two"] {
            let (quick, open) = job(name, &began);
            drop(open);
            lanes.run(name, quick).unwrap();
            assert_eq!(begun(&receiver, 1), [name], "it does not wait for the slow one");
        }
        assert!(receiver.try_recv().is_err(), "the last lane is kept");
        drop(gates);
        assert_eq!(begun(&receiver, 7), ["slow"; 7]);
    }

    #[test]
    fn a_repository_leaves_places_in_the_queue_to_the_others() {
        let lanes = Lanes::new("test", 1, 16);
        let (began, receiver) = channel();
        let (wait, gate) = job("first", &began);
        lanes.run("slow", wait).unwrap();
        begun(&receiver, 1);
        let mut queued = 0;
        while lanes.run("slow", || ()).is_ok() {
            queued += 1;
            assert!(queued < 100, "no limit");
        }
        assert_eq!(queued, 11);
        let (quick, open) = job("other", &began);
        drop(open);
        lanes.run("other", quick).unwrap();
        assert!(lanes.run("other", || ()).is_err(), "it has one now");
        assert!(lanes.run("third", || ()).is_ok());
        assert!(lanes.run("fourth", || ()).is_err(), "it is full");
        drop(gate);
        assert_eq!(begun(&receiver, 1), ["other"]);
    }

    #[test]
    fn turns_go_round() {
        let lanes = Lanes::new("test", 2, 64);
        let (began, receiver) = channel();
        let (wait, gate) = job("slow", &began);
        lanes.run("slow", wait).unwrap();
        begun(&receiver, 1);
        let (wait, second) = job("other", &began);
        lanes.run("other", wait).unwrap();
        begun(&receiver, 1);
        for name in ["slow", "slow", "other", "third"] {
            let (quick, open) = job(name, &began);
            drop(open);
            lanes.run(name, quick).unwrap();
        }
        drop(second);
        let order = begun(&receiver, 2);
        assert_eq!(order, ["other", "third"], "who has none comes before who has one");
        drop(gate);
        assert_eq!(begun(&receiver, 2), ["slow", "slow"]);
    }
}
