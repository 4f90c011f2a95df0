//! Threads for work that may wait for the disk.
//!
//! All of them are made at the start and stay, so that no request needs a thread that the system does not give: at the
//! limit of processes tokio's own pool panics, or leaves its work undone for ever. Idle they cost address space and a few
//! pages each. Work waits in one queue of bounded length. Work that panics ends nothing but itself.
//!
//! Failure is [`NoWorker`], which callers answer like any other lack of a resource.

use super::{Condvar, Mutex};
use crate::budget;
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tokio::sync::oneshot;

type Work = Box<dyn FnOnce() + Send>;

static WORKERS: Workers =
    Workers { state: Mutex::new(WorkerState { queue: VecDeque::new(), threads: 0 }), wake: Condvar::new() };

struct Workers {
    state: Mutex<WorkerState>,
    wake: Condvar,
}

struct WorkerState {
    queue: VecDeque<Work>,
    threads: usize,
}

/// Too much waits for the disk, or there is no thread that could.
#[derive(Debug, PartialEq, Eq)]
pub struct NoWorker;

impl std::fmt::Display for NoWorker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("too much waits for the disk")
    }
}

impl std::error::Error for NoWorker {}

impl From<NoWorker> for io::Error {
    fn from(none: NoWorker) -> io::Error {
        io::Error::new(io::ErrorKind::WouldBlock, none)
    }
}

/// Makes the threads, as far as they are not there.
///
/// # Errors
/// The system gives no thread; those that were made stay.
pub fn start_workers() -> io::Result<()> {
    let mut state = WORKERS.state.lock();
    while state.threads < budget::BLOCKING_THREADS_MAX {
        std::thread::Builder::new()
            .name("worker".into())
            .stack_size(budget::THREAD_STACK_BYTES)
            .spawn(|| WORKERS.work())?;
        state.threads += 1;
    }
    Ok(())
}

/// Runs work on one of the threads and waits for what it returns. It runs also if nobody waits any more.
///
/// # Errors
/// [`NoWorker`]: it does not run, or it has panicked.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, NoWorker> {
    let (answer, answered) = oneshot::channel();
    in_background(move || {
        // The asker may have left.
        let _ = answer.send(work());
    })?;
    answered.await.map_err(|_| NoWorker)
}

/// Runs work on one of the threads.
///
/// # Errors
/// [`NoWorker`]: it does not run.
pub fn in_background(work: impl FnOnce() + Send + 'static) -> Result<(), NoWorker> {
    WORKERS.queue(Box::new(work))
}

impl Workers {
    fn queue(&self, work: Work) -> Result<(), NoWorker> {
        let mut state = self.state.lock();
        if state.threads == 0 {
            // Not a server, which has begun with them.
            drop(state);
            let made = start_workers();
            state = self.state.lock();
            if state.threads == 0 {
                drop(state);
                log::warn!("no thread for work on the disk: {made:?}");
                return Err(NoWorker);
            }
        }
        if state.queue.len() >= budget::BLOCKING_QUEUE_MAX {
            // What the work owns is dropped after the lock.
            drop(state);
            return Err(NoWorker);
        }
        state.queue.push_back(work);
        drop(state);
        self.wake.notify_one();
        Ok(())
    }

    fn work(&self) {
        loop {
            let mut state = self.state.lock();
            let work = loop {
                match state.queue.pop_front() {
                    Some(work) => break work,
                    None => state = self.wake.wait(state),
                }
            };
            drop(state);
            if catch_unwind(AssertUnwindSafe(work)).is_err() {
                log::error!("work on the disk ended in a panic; this is a bug");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn there_are_as_many_threads_as_stated_and_one_that_panics_stays() {
        start_workers().unwrap();
        start_workers().unwrap();
        assert_eq!(WORKERS.state.lock().threads, budget::BLOCKING_THREADS_MAX);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for _ in 0..2 * budget::BLOCKING_THREADS_MAX {
            assert_eq!(runtime.block_on(blocking(|| panic!("lab"))), Err::<(), _>(NoWorker));
        }
        assert_eq!(runtime.block_on(blocking(|| 7)), Ok(7));
    }

    #[test]
    fn what_finds_no_place_in_the_queue_is_refused_and_dropped() {
        let workers = Workers {
            state: Mutex::new(WorkerState { queue: VecDeque::new(), threads: 1 }),
            wake: Condvar::new(),
        };
        let (dropped, seen) = mpsc::channel();
        let work = || {
            let dropped = dropped.clone();
            Box::new(move || {
                let _ = dropped.send(());
            })
        };
        for _ in 0..budget::BLOCKING_QUEUE_MAX {
            workers.queue(work()).unwrap();
        }
        assert_eq!(workers.queue(work()), Err(NoWorker));
        assert!(io::Error::from(NoWorker).kind() == io::ErrorKind::WouldBlock && seen.try_recv().is_err());
    }
}
