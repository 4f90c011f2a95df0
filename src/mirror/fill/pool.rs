//! The pool: all fills, the slots that run them, and the retries of parked ones.

use super::super::context::{Arrivals, Context};
use super::super::progress::{Demand, Fill, FillTable, Phase};
use super::super::refusal::Refusal;
use super::super::reserve::Reserve;
use super::queue::{FillQueue, Parked, Revivals};
use super::run::{Ending, Run};
use crate::auth::AccessClass;
use crate::budget;
use crate::oci::{Digest, RegistryName, Repository};
use crate::store::ContentKey;
use crate::sync::Mutex;
use crate::text::bytes_text;
use std::sync::{Arc, Weak};
use std::time::Instant;

/// All fills.
pub(in crate::mirror) struct FillPool {
    pub(super) context: Arc<Context>,
    pub(super) reserve: Arc<Reserve>,
    arrivals: Arc<dyn Arrivals>,
    table: Arc<FillTable>,
    queue: Arc<FillQueue<Arc<Fill>>>,
    revivals: Mutex<Revivals>,
}

impl FillPool {
    /// Starts the threads of `fetch.streams` slots.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(in crate::mirror) fn start(
        context: Arc<Context>,
        reserve: Arc<Reserve>,
        table: Arc<FillTable>,
        arrivals: Arc<dyn Arrivals>,
    ) -> std::io::Result<Arc<FillPool>> {
        let slots = context.config.now().fetch.streams;
        let queue = Arc::new(FillQueue::new());
        let pool =
            Arc::new(FillPool { context, reserve, arrivals, table, queue, revivals: Mutex::default() });
        for number in 1..=slots {
            let (queue, pool) = (Arc::clone(&pool.queue), Arc::downgrade(&pool));
            std::thread::Builder::new()
                .name(format!("fetch-{number}"))
                .stack_size(budget::THREAD_STACK_BYTES)
                .spawn(move || serve_queue(&queue, &pool))?;
        }
        Ok(pool)
    }

    /// The key of a fill of this repository.
    pub(in crate::mirror) fn key(&self, repository: &Repository, digest: &Digest) -> ContentKey {
        ContentKey {
            registry: repository.registry.clone(),
            class: self.context.class_of(&repository.registry),
            digest: digest.clone(),
        }
    }

    /// The fill of a blob, if there is one.
    pub(in crate::mirror) fn find(&self, repository: &Repository, digest: &Digest) -> Option<Arc<Fill>> {
        self.table.find(&self.key(repository, digest))
    }

    /// Joins the fill of a blob or begins one; `true`: joined. A parked fill resumes. If it belongs to another repository,
    /// a fill of this repository takes over its bytes.
    ///
    /// # Errors
    /// [`Refusal::Busy`] if there are [`budget::FILLS_MAX`] fills.
    pub(in crate::mirror) fn begin(
        &self,
        repository: &Repository,
        digest: &Digest,
        stated: Option<u64>,
        demand: Demand,
    ) -> Result<(Arc<Fill>, bool), Refusal> {
        let key = self.key(repository, digest);
        let mut table = self.table.lock();
        if let Some(fill) = table.get(&key).cloned() {
            let (parked, ours) = (fill.is_parked(), fill.repository == *repository);
            fill.demand(demand);
            if parked && ours {
                self.enqueue(&fill);
            }
            if !parked || ours || key.class != AccessClass::Public {
                return Ok((fill, true));
            }
            table.remove(&key);
            let taken_over = format!("{repository} continues it");
            fill.set_phase(Phase::Failed(Refusal::Unavailable(taken_over)));
        }
        if self.queue.is_closed() || table.len() >= budget::FILLS_MAX {
            return Err(Refusal::Busy(format!("{} downloads are under way or waiting", table.len())));
        }
        let fill = Arc::new(Fill::download(key.clone(), repository, stated, demand));
        table.insert(key, Arc::clone(&fill));
        self.enqueue(&fill);
        Ok((fill, false))
    }

    /// Resumes the parked fills of a registry whose upstream is back.
    pub(in crate::mirror) fn resume(&self, registry: &RegistryName) {
        let table = self.table.lock();
        let parked = table.values().filter(|fill| fill.key.registry == *registry && fill.is_parked());
        parked.for_each(|fill| self.enqueue(fill));
    }

    /// Retries fills that are parked although their upstream answers, with growing pauses.
    pub(in crate::mirror) fn revive(&self, now: Instant) {
        let mut revivals = self.revivals.lock();
        let mut table = self.table.lock();
        revivals.retain(|key| table.contains_key(key));
        let parked: Vec<_> = table.values().filter(|fill| fill.is_parked()).cloned().collect();
        for fill in parked {
            match revivals.look(&fill.key, now) {
                Parked::Rest => {}
                Parked::Retry => {
                    let upstream = self.context.upstreams.find(&fill.key.registry);
                    if upstream.is_some_and(|upstream| upstream.link().is_up()) {
                        self.enqueue(&fill);
                    }
                }
                Parked::GiveUp => {
                    log::warn!("gave up on {} of {} until a client asks", fill.digest(), fill.repository);
                    table.remove(&fill.key);
                    let refusal = Refusal::Unavailable("the download made no progress".into());
                    fill.set_phase(Phase::Failed(refusal));
                }
            }
        }
    }

    /// Resumes the fills that an earlier process left unfinished.
    pub(in crate::mirror) fn resume_staged(&self) {
        let store = &self.context.store;
        for (key, from, bytes) in store.unfinished() {
            // Files of 0.1.0 have no class; they get that of their registry.
            let class = self.context.class_of(&key.registry);
            let same = key.class == class || key.class == AccessClass::Unproven;
            let configured = self.context.upstreams.find(&key.registry).is_some();
            // What no manifest names is not kept.
            if store.contains(&key.digest) || !configured || !same || from.size.is_none() {
                let _ = store.forget_staged(&key);
                continue;
            }
            log::info!("resuming {} of {} at {}", key.digest, from.repository, bytes_text(bytes));
            let begun = self.begin(&from.repository, &key.digest, from.size, Demand::Background);
            if let Err(problem) = begun {
                log::warn!("{} stays unfinished: {problem}", key.digest);
            }
        }
    }

    /// The number of fills that are not parked, and of parked ones.
    pub(in crate::mirror) fn counts(&self) -> (usize, usize) {
        self.table.counts()
    }

    /// Ends all fills after their current chunk. Staged bytes stay for the next start.
    pub(in crate::mirror) fn stop(&self) {
        self.queue.close();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.queue.is_closed()
    }

    fn enqueue(&self, fill: &Arc<Fill>) {
        fill.set_phase(Phase::Queued);
        self.queue.push(Arc::clone(fill));
    }

    fn run(&self, fill: &Arc<Fill>) {
        let outcome = Run::of(self, fill).run();
        match outcome {
            Ok(()) => {
                self.forget(fill);
                fill.progress.send_modify(|progress| {
                    progress.available = progress.total.unwrap_or(progress.available);
                    progress.phase = Phase::Done;
                });
                self.arrivals.arrived(&fill.repository);
            }
            Err(Ending::Parked(cause)) => {
                log::warn!("download of {} of {} is parked: {cause}", fill.digest(), fill.repository);
                fill.set_phase(Phase::Parked(cause));
            }
            Err(Ending::Restarted) => {
                self.forget(fill);
                let began = self.begin(&fill.repository, fill.digest(), fill.stated, Demand::Background);
                let again =
                    began.err().unwrap_or(Refusal::Unavailable("the download began again; retry".into()));
                fill.set_phase(Phase::Failed(again));
            }
            Err(Ending::Failed(refusal)) => {
                self.forget(fill);
                log::warn!("download of {} of {} failed: {refusal}", fill.digest(), fill.repository);
                fill.set_phase(Phase::Failed(refusal));
            }
        }
    }

    /// Removes a fill from the table, but not another one with the same key.
    fn forget(&self, fill: &Arc<Fill>) {
        let mut table = self.table.lock();
        if table.get(&fill.key).is_some_and(|known| Arc::ptr_eq(known, fill)) {
            table.remove(&fill.key);
        }
    }
}

impl Drop for FillPool {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The loop of a slot. It holds the pool only while a fill runs.
fn serve_queue(queue: &FillQueue<Arc<Fill>>, pool: &Weak<FillPool>) {
    while let Some(fill) = queue.next(|fill| fill.is_demanded()) {
        let Some(pool) = pool.upgrade() else { return };
        let run = std::panic::AssertUnwindSafe(|| pool.run(&fill));
        if std::panic::catch_unwind(run).is_err() {
            log::error!("the download of {} ended in a panic; this is a bug", fill.digest());
            pool.forget(&fill);
            fill.set_phase(Phase::Failed(download_failed()));
        }
    }
}

/// A download ended without a result.
pub(in crate::mirror) fn download_failed() -> Refusal {
    Refusal::Failed("the download failed; the log says how".into())
}
