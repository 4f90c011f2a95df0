//! Lanes: a few threads for each upstream that ask short questions, so that layers never delay a tag.
//!
//! Invariants. The number of threads and the length of the queue are bounded. Failure: a job that panics is logged; its
//! sender is dropped, which ends the wait for its answer.

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
    queue_max: usize,
    state: Mutex<LaneState>,
    wake: Condvar,
}

#[derive(Default)]
struct LaneState {
    queue: VecDeque<Job>,
    threads: usize,
    idle: usize,
    closed: bool,
}

/// The queue for the lanes is full.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct QueueFull;

impl Lanes {
    pub(super) fn new(name: &str, threads_max: usize, queue_max: usize) -> Lanes {
        let (state, wake) = (Mutex::default(), Condvar::new());
        Lanes { shared: Arc::new(LaneShared { name: name.to_owned(), threads_max, queue_max, state, wake }) }
    }

    /// Queues a job.
    pub(super) fn run(&self, job: impl FnOnce() + Send + 'static) -> Result<(), QueueFull> {
        let job: Job = Box::new(job);
        let mut state = self.shared.state.lock();
        if state.queue.len() >= self.shared.queue_max {
            // The job is dropped only after the lock: what it owns may queue another job when dropped.
            drop(state);
            drop(job);
            return Err(QueueFull);
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

impl LaneShared {
    /// The next job; `None` when the thread is no longer needed.
    fn next(&self) -> Option<Job> {
        let mut state = self.state.lock();
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

fn work(shared: &LaneShared) {
    while let Some(job) = shared.next() {
        // A panic drops the job's sender, which ends the wait for its answer. The lane continues.
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
            log::error!("a question to {} ended in a panic; this is a bug", shared.name);
        }
    }
}
