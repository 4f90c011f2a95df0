//! Lanes: a few threads for each upstream that ask short questions, so that layers never delay a tag.
//!
//! Invariants. The number of threads and the length of the queue are bounded. Of both, an eighth is kept for repositories
//! that have none (`fair`), and the next turn is that of the repository with the fewest jobs running: one whose answers
//! drip cannot make the others wait. Failure: a job that panics is logged; its sender is dropped, which ends the wait for
//! its answer.

use super::fair::{Shares, eighth};
use crate::budget;
use crate::sync::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;

type Job = Box<dyn FnOnce() + Send>;

/// The lanes to one upstream. A thread is started when a job finds no idle one, and ends when no job has come for a
/// while. So an upstream without requests costs nothing, and one that hangs delays no questions to others.
pub(super) struct Lanes {
    shared: Arc<LaneShared>,
}

struct LaneShared {
    name: String,
    threads_max: usize,
    state: Mutex<LaneState>,
    wake: Condvar,
}

struct LaneState {
    /// Jobs, each with the repository that it is for.
    queue: VecDeque<(String, Job)>,
    queued: Shares<String>,
    running: Shares<String>,
    threads: usize,
    idle: usize,
    closed: bool,
}

/// The queue for the lanes is full.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct QueueFull;

impl Lanes {
    /// Lanes that repositories share.
    pub(super) fn new(name: &str, threads_max: usize, queue_max: usize) -> Lanes {
        let queued = Shares::new(queue_max, eighth(queue_max));
        Lanes::with(name, threads_max, queued, Shares::new(threads_max, eighth(threads_max)))
    }

    /// Lanes for larder's own work, which keeps nothing for others.
    pub(super) fn unshared(name: &str, threads_max: usize, queue_max: usize) -> Lanes {
        Lanes::with(name, threads_max, Shares::new(queue_max, 0), Shares::new(threads_max, 0))
    }

    fn with(name: &str, threads_max: usize, queued: Shares<String>, running: Shares<String>) -> Lanes {
        let queue = VecDeque::new();
        let state = LaneState { queue, queued, running, threads: 0, idle: 0, closed: false };
        let (name, state, wake) = (name.to_owned(), Mutex::new(state), Condvar::new());
        Lanes { shared: Arc::new(LaneShared { name, threads_max, state, wake }) }
    }

    /// Queues a job for a repository.
    pub(super) fn run(&self, of: &str, job: impl FnOnce() + Send + 'static) -> Result<(), QueueFull> {
        let (job, of): (Job, _) = (Box::new(job), of.to_owned());
        let mut state = self.shared.state.lock();
        if !state.queued.may_take(&of) {
            // The job is dropped only after the lock: what it owns may queue another job when dropped.
            drop(state);
            drop(job);
            return Err(QueueFull);
        }
        state.queued.take(&of);
        state.queue.push_back((of, job));
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
                state.queued.clear();
                drop(state);
                drop(unasked);
                return Err(QueueFull);
            }
        }
        Ok(())
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.wake.notify_all();
    }
}

impl LaneState {
    /// Takes the job whose turn it is: the first of the repository with the fewest running.
    fn take_next(&mut self) -> Option<(String, Job)> {
        let running = &self.running;
        let able = self.queue.iter().enumerate().filter(|(_, (of, _))| running.may_take(of));
        let (at, _) = able.min_by_key(|(at, (of, _))| (running.held(of), *at))?;
        let (of, job) = self.queue.remove(at)?;
        self.queued.give_back(&of);
        self.running.take(&of);
        Some((of, job))
    }
}

impl LaneShared {
    /// The next job; `None` when the thread is no longer needed.
    fn next(&self) -> Option<(String, Job)> {
        let mut state = self.state.lock();
        let mut waited = false;
        loop {
            if let Some(next) = state.take_next() {
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
}

fn work(shared: &LaneShared) {
    while let Some((of, job)) = shared.next() {
        // A panic drops the job's sender, which ends the wait for its answer. The lane continues.
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
            log::error!("a question to {} ended in a panic; this is a bug", shared.name);
        }
        shared.state.lock().running.give_back(&of);
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
        assert_eq!(queued, 14);
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
