//! The pool: all fills, the slots that run them, and the retries of parked ones.

use super::super::context::{Arrivals, Context};
use super::super::progress::{Demand, Fill, FillTable, Phase, asking_of};
use super::super::refusal::Refusal;
use super::super::repeats::Repeats;
use super::super::reserve::Reserve;
use super::queue::{FillQueue, Parked, Revivals};
use super::run::{Ending, Run};
use crate::auth::AccessClass;
use crate::budget;
use crate::oci::{Digest, RegistryName, Repository};
use crate::places::{Allotment, Asking, Waits, asker};
use crate::store::ContentKey;
use crate::sync::Mutex;
use crate::text::bytes_text;
use crate::via;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

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
    /// Starts the threads of `fetch.streams` slots, and of one more for a registry that has none.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(in crate::mirror) fn start(
        context: Arc<Context>,
        reserve: Arc<Reserve>,
        table: Arc<FillTable>,
        arrivals: Arc<dyn Arrivals>,
    ) -> std::io::Result<Arc<FillPool>> {
        let allotment = Allotment::of_streams(context.config.now().fetch.streams);
        let slots = allotment.places();
        let queue = Arc::new(FillQueue::new(allotment));
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

    /// The key of a fill of this repository, which others of its registry share.
    pub(in crate::mirror) fn key(
        &self,
        repository: &Repository,
        digest: &Digest,
        class: AccessClass,
    ) -> ContentKey {
        ContentKey::shared(repository.registry.clone(), class, digest.clone())
    }

    /// The fill of a blob, if there is one.
    pub(in crate::mirror) fn find(
        &self,
        repository: &Repository,
        digest: &Digest,
        class: AccessClass,
    ) -> Option<Arc<Fill>> {
        let shared = self.key(repository, digest, class);
        self.table.find(&shared.apart(&repository.name)).or_else(|| self.table.find(&shared))
    }

    /// Joins the fill of a blob or begins one; `true`: joined. A parked fill resumes. It may be of another repository of the
    /// registry, and is not if such a one has served badly.
    ///
    /// # Errors
    /// [`Refusal::Busy`] if there are [`budget::FILLS_MAX`] fills, less those places that are kept for others.
    pub(in crate::mirror) fn begin(
        &self,
        repository: &Repository,
        (digest, class): (&Digest, AccessClass),
        stated: Option<u64>,
        demand: Demand,
    ) -> Result<(Arc<Fill>, bool), Refusal> {
        let key = self.table.key_for(self.key(repository, digest, class), repository);
        self.begin_by(key, repository, stated, demand)
    }

    /// The same for this repository alone.
    ///
    /// # Errors
    /// As [`FillPool::begin`].
    pub(in crate::mirror) fn begin_apart(
        &self,
        repository: &Repository,
        (digest, class): (&Digest, AccessClass),
        stated: Option<u64>,
    ) -> Result<(Arc<Fill>, bool), Refusal> {
        let key = self.key(repository, digest, class).apart(&repository.name);
        self.begin_by(key, repository, stated, Demand::Client)
    }

    fn begin_by(
        &self,
        key: ContentKey,
        repository: &Repository,
        stated: Option<u64>,
        demand: Demand,
    ) -> Result<(Arc<Fill>, bool), Refusal> {
        let mut table = self.table.lock();
        if let Some(fill) = table.get(&key).cloned() {
            fill.demand(demand);
            if fill.is_parked() {
                self.enqueue(&fill);
            } else {
                self.queue.changed();
            }
            return Ok((fill, true));
        }
        self.check_repeats(&key, stated, demand)?;
        if demand == Demand::Client {
            self.make_way(&mut table, repository);
        }
        if self.queue.is_closed() || !has_place(&table, repository) {
            return Err(Refusal::Busy(format!("{} downloads are under way or waiting", table.len())));
        }
        let fill = Arc::new(Fill::download(key.clone(), repository, stated, demand));
        table.insert(key, Arc::clone(&fill));
        self.enqueue(&fill);
        Ok((fill, false))
    }

    /// Whether a download may begin whose upstream has sent its bytes in vain.
    fn check_repeats(&self, key: &ContentKey, stated: Option<u64>, demand: Demand) -> Result<(), Refusal> {
        let (size, awaited) = (stated.unwrap_or(0), demand == Demand::Client);
        let may = self.repeats().may(key, 0, size, awaited, Instant::now());
        may.map_err(|pause| too_often(&key.registry, pause))
    }

    pub(super) fn repeats(&self) -> &Repeats {
        &self.table.repeats
    }

    /// Drops fills that nobody waits for and that do not run, until there is a place for one that a client waits for; those
    /// of the registry with the most first. Their staged bytes stay.
    fn make_way(&self, table: &mut HashMap<ContentKey, Arc<Fill>>, of: &Repository) {
        if has_place(table, of) {
            return;
        }
        let mut idle: Vec<_> = table.values().filter(|fill| fill.is_idle()).cloned().collect();
        let mut counts: HashMap<RegistryName, usize> = HashMap::new();
        idle.iter().for_each(|fill| *counts.entry(fill.key.registry.clone()).or_default() += 1);
        idle.sort_by_key(|fill| counts[&fill.key.registry]);
        // In steps, so that a flood pays for its own sorting.
        let drops: Vec<_> = idle.into_iter().rev().take(budget::FILLS_MAX / 8).collect();
        for fill in &drops {
            table.remove(&fill.key);
            fill.set_phase(Phase::Failed(Refusal::Unavailable(
                "it made way for what clients wait for".into(),
            )));
        }
        self.queue.remove(|waiting| drops.iter().any(|fill| Arc::ptr_eq(fill, waiting)));
        log::info!("{} downloads that nobody waits for were dropped from the queue", drops.len());
    }

    /// Whether a run should give its slot to one that a client waits for; see [`FillQueue::must_make_way`].
    pub(super) fn must_make_way(&self, fill: &Arc<Fill>, may_share: bool, slow: bool) -> bool {
        self.queue.must_make_way(fill, may_share, slow)
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
                    self.table.served_badly(&fill);
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
            let of_registry = self.context.class_without_proof(&key.registry);
            let proven = key.class == AccessClass::Public && self.context.needs_proof(&key.registry);
            let class = if proven { AccessClass::Public } else { of_registry };
            let same = key.class == class || key.class == AccessClass::Unproven;
            let configured = self.context.upstreams.find(&key.registry).is_some();
            // What no manifest names is not kept.
            if store.contains(&key.digest) || !configured || !same || from.size.is_none() {
                let _ = store.forget_staged(&key);
                continue;
            }
            log::info!("resuming {} of {} at {}", key.digest, from.repository, bytes_text(bytes));
            let key = ContentKey { class, ..key };
            let begun = self.begin_by(key, &from.repository, from.size, Demand::Background);
            if let Err(problem) = begun {
                log::warn!("what is staged of {} stays unfinished: {problem}", from.repository);
            }
        }
    }

    /// The number of fills that are not parked, and of parked ones.
    pub(in crate::mirror) fn counts(&self) -> (usize, usize) {
        self.table.counts()
    }

    /// Whether a download of this repository would begin at once.
    pub(in crate::mirror) fn has_slot_for(&self, repository: &Repository) -> bool {
        self.queue.has_slot_for(&asking_of(repository, asker()))
    }

    /// A client wants a part of a fill that is far ahead of what has come: it goes before its equals in the queue.
    pub(in crate::mirror) fn hurry(&self, fill: &Fill) {
        fill.hurry();
        self.queue.changed();
    }

    /// A client of another repository was served badly by this fill.
    pub(in crate::mirror) fn served_badly(&self, fill: &Fill) {
        self.table.served_badly(fill);
    }

    /// A repository is known to hold content that is here already.
    pub(in crate::mirror) fn announce(&self, repository: &Repository, digest: &Digest) {
        self.arrivals.arrived(repository, digest);
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

    /// What follows from how a run ended, whose slot has been given back: else who takes the fill up again would be charged
    /// for the slot of the run before.
    fn conclude(&self, fill: &Arc<Fill>, outcome: Result<(), Ending>) {
        match outcome {
            Ok(()) => {
                self.forget(fill);
                self.table.forget_bad(&fill.key);
                fill.progress.send_modify(|progress| {
                    progress.available = progress.total.unwrap_or(progress.available);
                    progress.phase = Phase::Done;
                });
                self.arrivals.arrived(&fill.repository, fill.digest());
            }
            Err(Ending::Parked(cause)) => {
                // With the link up only this repository is to blame.
                let upstream = self.context.upstreams.find(&fill.key.registry);
                if upstream.is_some_and(|upstream| upstream.link().is_up()) && !self.is_stopping() {
                    self.table.served_badly(fill);
                }
                log::warn!("download of {} of {} is parked: {cause}", fill.digest(), fill.repository);
                fill.set_phase(Phase::Parked(cause));
            }
            Err(Ending::MadeWay) => {
                log::debug!("download of {} of {} waits for its next turn", fill.digest(), fill.repository);
                self.enqueue(fill);
            }
            Err(Ending::Unawaited(cause)) => {
                self.forget(fill);
                log::info!(
                    "download of {} of {} waits for a client: {cause}",
                    fill.digest(),
                    fill.repository
                );
                // Who asks just now is served without the disk.
                fill.set_phase(Phase::Failed(Refusal::NotStored(cause)));
            }
            Err(Ending::Restarted) => {
                self.forget(fill);
                let key = fill.key.clone();
                let began = self.begin_by(key, &fill.repository, fill.stated, Demand::Background);
                let again =
                    began.err().unwrap_or(Refusal::Unavailable("the download began again; retry".into()));
                fill.set_phase(Phase::Failed(again));
            }
            Err(Ending::Failed(refusal)) => {
                if !matches!(refusal, Refusal::NotStored(_)) {
                    self.table.served_badly(fill);
                }
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
    while let Some(fill) = queue.next() {
        let Some(pool) = pool.upgrade() else { return };
        let run = std::panic::AssertUnwindSafe(|| via::on_thread(&fill.way, || Run::of(&pool, &fill).run()));
        let outcome = std::panic::catch_unwind(run);
        queue.done(&fill);
        let conclude = std::panic::AssertUnwindSafe(|| outcome.map(|outcome| pool.conclude(&fill, outcome)));
        if !matches!(std::panic::catch_unwind(conclude), Ok(Ok(()))) {
            log::error!("the download of {} ended in a panic; this is a bug", fill.digest());
            pool.forget(&fill);
            fill.set_phase(Phase::Failed(download_failed()));
        }
    }
}

impl Waits for Arc<Fill> {
    fn asking(&self) -> &Asking {
        &self.asking
    }

    fn is_awaited(&self) -> bool {
        Fill::is_awaited(self)
    }

    fn is_hurried(&self) -> bool {
        Fill::is_hurried(self)
    }
}

/// Whether the table has a place for a fill of a repository, for the client of this task.
fn has_place(table: &HashMap<ContentKey, Arc<Fill>>, of: &Repository) -> bool {
    // Half of it anybody may fill, which saves counting.
    if table.len() < budget::FILLS_MAX / 2 {
        return true;
    }
    let mut places = Allotment::of_table(budget::FILLS_MAX);
    table.values().for_each(|fill| places.count(&fill.asking));
    places.may_take(&asking_of(of, asker()))
}

/// An upstream has sent the same bytes too often.
pub(super) fn too_often(registry: &RegistryName, pause: Duration) -> Refusal {
    let seconds = pause.as_secs().max(1);
    Refusal::Unavailable(format!(
        "{registry} sent this again and again and never to its end; it is asked again in {seconds} s"
    ))
}

/// A download ended without a result.
pub(in crate::mirror) fn download_failed() -> Refusal {
    Refusal::Failed("the download failed; the log says how".into())
}
