//! Fills: one download of one blob, which any number of clients read while it grows (design rules 1, 4 and 5).
//!
//! A fixed set of threads runs them; that set is the download budget. A fill writes to a staging file and publishes how
//! far it is; clients read the file. The last bytes are held back until the hash is right. A fill does not know its
//! clients and outlives them. When upstream goes away it is parked, its bytes stay, and it is taken up again when
//! upstream is back.

use super::counters::Source;
use super::lane::Lanes;
use super::outage_text;
use super::refusal::{Missing, Refusal};
use crate::budget;
use crate::config::DiskSettings;
use crate::fetch::{Failure, LinkState, Upstream, Upstreams};
use crate::image::Otherwise;
use crate::kit::Kit;
use crate::oci::{Digest, Repository};
use crate::store::{Blob, Origin, Staged, Store, StoreError, Verdict};
use crate::sync::{Condvar, Mutex};
use crate::text::bytes_text;
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// A download, as clients see it.
#[derive(Debug)]
pub struct Fill {
    digest: Digest,
    repository: Repository,
    /// The size that a manifest states, in bytes.
    stated: Option<u64>,
    file: OnceLock<Arc<File>>,
    /// Some of it came from a peer.
    from_peer: AtomicBool,
    /// It fetches nothing: it hashes what is on the disk.
    checks: bool,
    progress: watch::Sender<Progress>,
    revival: Mutex<Revival>,
}

/// How far a fill is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The size of the blob in bytes, once upstream has said it.
    pub total: Option<u64>,
    /// Bytes that clients may have.
    pub available: u64,
    /// What it is doing.
    pub phase: Phase,
}

/// What a fill is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// It waits for one of the fetch threads.
    Queued,
    /// Bytes are coming, or are being asked for.
    Running,
    /// Upstream cannot be reached; the cause. It goes on by itself when upstream is back.
    Parked(String),
    /// The blob is whole and in the store.
    Done,
    /// It has ended without success.
    Failed(Refusal),
}

#[derive(Debug, Default)]
struct Revival {
    tried: u32,
    at: Option<Instant>,
}

impl Fill {
    /// What is being fetched.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The repository that it is fetched from.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The size that a manifest states, in bytes.
    pub fn stated(&self) -> Option<u64> {
        self.stated
    }

    /// What its bytes are counted as: a peer's as soon as some of them are.
    pub fn source(&self) -> Source {
        match (self.checks, self.from_peer.load(Ordering::Relaxed)) {
            (true, _) => Source::Cache,
            (false, true) => Source::Peer,
            (false, false) => Source::Fill,
        }
    }

    /// Why it was given up, if it was because the disk would not take it.
    pub fn not_kept(&self) -> Option<String> {
        match &self.progress.borrow().phase {
            Phase::Failed(Refusal::NotKept(cause)) => Some(cause.clone()),
            _ => None,
        }
    }

    /// The file that grows; there once the fill has begun to run.
    pub fn file(&self) -> Option<Arc<File>> {
        self.file.get().cloned()
    }

    /// Follows the progress.
    pub fn follow(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    fn set_phase(&self, phase: Phase) {
        self.progress.send_modify(|progress| progress.phase = phase);
    }
}

/// Is told of every blob that has arrived.
type Published = dyn Fn(&Repository, &Digest) + Send + Sync;

/// Is asked to free so many bytes, and says how many it has freed.
type Lack = dyn Fn(u64, Otherwise) -> u64 + Send + Sync;

/// Bytes that are missing on the disk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lacking {
    /// For `disk.min_free`.
    by_free: u64,
    /// For `disk.max`.
    by_max: u64,
}

impl Lacking {
    fn bytes(self) -> u64 {
        self.by_free.max(self.by_max)
    }

    /// Has room made for the limits' own sake. What larder has beyond `disk.max` goes as far as it may; for a floor
    /// that neighbours broke images go only if that mends it.
    pub(super) fn bring_about(self, make_room: impl Fn(u64, Otherwise) -> u64) {
        if self.by_free > self.by_max {
            make_room(self.by_free, Otherwise::Nothing);
        } else if self.by_max > 0 {
            make_room(self.by_max, Otherwise::Everything);
        }
    }
}

/// All fills.
pub(super) struct Fills {
    store: Arc<Store>,
    upstreams: Arc<Upstreams>,
    kit: Option<Arc<Kit>>,
    disk: DiskSettings,
    state: Mutex<State>,
    wake: Condvar,
    /// Called after a blob has been published.
    published: OnceLock<Box<Published>>,
    /// Held from the look at the disk until what is needed is reserved.
    reserving: Mutex<()>,
    /// Called to make room.
    lack: OnceLock<Box<Lack>>,
    /// Where content is hashed that is on the disk and suspect.
    checks: Lanes,
}

#[derive(Default)]
struct State {
    by_digest: HashMap<Digest, Arc<Fill>>,
    queue: VecDeque<Arc<Fill>>,
    /// Bytes that running fills will still write, so that several do not count on the same free space.
    reserved: u64,
    stopping: bool,
}

impl Fills {
    /// Starts `threads` fetch threads.
    pub(super) fn start(
        store: Arc<Store>,
        upstreams: Arc<Upstreams>,
        kit: Option<Arc<Kit>>,
        threads: usize,
        disk: DiskSettings,
    ) -> std::io::Result<Arc<Fills>> {
        let fills = Arc::new(Fills {
            store,
            upstreams,
            kit,
            disk,
            state: Mutex::default(),
            wake: Condvar::new(),
            published: OnceLock::new(),
            reserving: Mutex::default(),
            lack: OnceLock::new(),
            checks: Lanes::new("checks", budget::RECHECKS, budget::FILLS_MAX),
        });
        for number in 1..=threads {
            let fills = Arc::downgrade(&fills);
            std::thread::Builder::new()
                .name(format!("fetch-{number}"))
                .stack_size(budget::THREAD_STACK_BYTES)
                .spawn(move || serve_queue(&fills))?;
        }
        Ok(fills)
    }

    /// Has `hook` called after every blob that was published. Only the first hook counts.
    pub(super) fn on_published(&self, hook: impl Fn(&Repository, &Digest) + Send + Sync + 'static) {
        let _ = self.published.set(Box::new(hook));
    }

    /// Has `hook` called when a fill needs room. Only the first hook counts.
    pub(super) fn on_lack(&self, hook: impl Fn(u64, Otherwise) -> u64 + Send + Sync + 'static) {
        let _ = self.lack.set(Box::new(hook));
    }

    fn make_room(&self, needed: u64, otherwise: Otherwise) -> u64 {
        self.lack.get().map_or(0, |hook| hook(needed, otherwise))
    }

    /// Makes room for a manifest of so many bytes and has it stored, one at a time, so that two do not count on the same
    /// room.
    ///
    /// # Errors
    /// As `store`, and as from a full disk if nothing may go that would make room.
    pub(super) fn with_room_for_manifest(
        &self,
        digest: &Digest,
        bytes: u64,
        store: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let _turn = self.reserving.lock();
        if !self.store.contains(digest) {
            let lacking = self.lacking(bytes, 0)?;
            lacking.bring_about(|needed, otherwise| self.make_room(needed, otherwise));
            if lacking.bytes() > 0 && self.lacking(bytes, 0)?.bytes() > 0 {
                return Err(StoreError::no_room(format!("there is no room for {digest}")));
            }
        }
        store()
    }

    /// What is being fetched just now, or waits for its turn.
    pub(super) fn under_way(&self) -> std::collections::HashSet<Digest> {
        let state = self.state();
        let running = |fill: &&Arc<Fill>| !matches!(fill.progress.borrow().phase, Phase::Parked(_));
        state.by_digest.values().filter(running).map(|fill| fill.digest.clone()).collect()
    }

    /// Bytes that are missing on the disk for a download with `rest` bytes to come, of which `reserved` are reserved
    /// already: `disk.max` and `disk.min_free` both hold.
    pub(super) fn lacking(&self, rest: u64, reserved: u64) -> Result<Lacking, StoreError> {
        let coming = (self.state().reserved - reserved).saturating_add(rest);
        let kept_free = coming.saturating_add(self.disk.min_free);
        let by_free = kept_free.saturating_sub(self.store.free_bytes()?);
        let by_max = self.disk.max.map_or(0, |max| {
            let own = self.store.counted_bytes().saturating_add(self.store.staged_bytes());
            own.saturating_add(coming).saturating_sub(max)
        });
        Ok(Lacking { by_free, by_max })
    }

    /// The fill of a blob, if there is one.
    pub(super) fn find(&self, digest: &Digest) -> Option<Arc<Fill>> {
        self.state().by_digest.get(digest).cloned()
    }

    /// Joins the fill of a blob or begins one. A parked one is taken up again, with the same bytes from this
    /// repository's upstream if it was another's. `Ok(None)`: it is here by now.
    pub(super) fn begin(
        &self,
        repository: &Repository,
        digest: &Digest,
        stated: Option<u64>,
    ) -> Result<Option<Arc<Fill>>, Refusal> {
        let mut state = self.state();
        if let Some(fill) = state.by_digest.get(digest).cloned() {
            let parked = matches!(fill.progress.borrow().phase, Phase::Parked(_));
            let ours = fill.repository == *repository;
            if parked && ours {
                self.enqueue(&mut state, &fill);
            }
            if !parked || ours || self.is_private(&fill.repository) {
                return Ok(Some(fill));
            }
            state.by_digest.remove(digest);
            fill.set_phase(Phase::Failed(Refusal::Unavailable("another upstream goes on with it".into())));
        }
        // A fill leaves the list after its blob is in place, so what is on neither side of this was never fetched.
        if self.store.contains(digest) {
            return Ok(None);
        }
        if state.stopping || state.by_digest.len() >= budget::FILLS_MAX {
            return Err(Refusal::Busy(format!(
                "{} downloads are under way or waiting",
                state.by_digest.len()
            )));
        }
        let fill = Arc::new(Fill {
            digest: digest.clone(),
            repository: repository.clone(),
            stated,
            file: OnceLock::new(),
            from_peer: AtomicBool::new(false),
            checks: false,
            progress: watch::Sender::new(Progress { total: None, available: 0, phase: Phase::Queued }),
            revival: Mutex::default(),
        });
        state.by_digest.insert(digest.clone(), Arc::clone(&fill));
        self.enqueue(&mut state, &fill);
        Ok(Some(fill))
    }

    /// Has a suspect blob hashed, whose readers wait until that is done; joins if it is being done. `Ok(None)`: it has been
    /// done, and the blob must be looked for again.
    pub(super) fn begin_check(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
        blob: Blob,
    ) -> Result<Option<Arc<Fill>>, Refusal> {
        let mut state = self.state();
        if let Some(fill) = state.by_digest.get(digest) {
            return Ok(Some(Arc::clone(fill)));
        }
        // A check leaves the list after its verdict is known.
        if self.store.open_blob(digest).ok().flatten().is_none_or(|blob| !blob.suspect) {
            return Ok(None);
        }
        // Readers wait as for a turn: that nothing comes is no stall.
        let progress = Progress { total: Some(blob.size), available: 0, phase: Phase::Queued };
        let fill = Arc::new(Fill {
            digest: digest.clone(),
            repository: repository.clone(),
            stated: Some(blob.size),
            file: OnceLock::from(Arc::new(blob.file)),
            from_peer: AtomicBool::new(false),
            checks: true,
            progress: watch::Sender::new(progress),
            revival: Mutex::default(),
        });
        state.by_digest.insert(digest.clone(), Arc::clone(&fill));
        drop(state);
        let (fills, checked) = (Arc::downgrade(self), Arc::clone(&fill));
        let begun = self.beside(move || {
            if let Some(fills) = fills.upgrade() {
                fills.check(&checked);
            }
        });
        if !begun {
            self.state().by_digest.remove(digest);
            let busy = Refusal::Busy("too much has to be hashed before it is served".into());
            fill.set_phase(Phase::Failed(busy.clone()));
            return Err(busy);
        }
        Ok(Some(fill))
    }

    /// Has work done that reads a lot from the disk; `false` if too much waits.
    pub(super) fn beside(&self, work: impl FnOnce() + Send + 'static) -> bool {
        self.checks.run(work).is_ok()
    }

    /// Hashes the blob of a check.
    fn check(&self, fill: &Fill) {
        let outcome = match self.store.verify_along(&fill.digest, &mut |_| !self.is_stopping()) {
            Ok(true) => Ok(()),
            Ok(false) => Err("larder is stopping".to_owned()),
            Err(_) => match self.store.condemn(&fill.digest) {
                Ok(Verdict::Sound) => Ok(()),
                Ok(Verdict::Gone) => Err(format!("{} is gone", fill.digest)),
                Ok(Verdict::SetAside(problem)) => Err(format!("it was damaged on the disk: {problem}")),
                Err(problem) => Err(problem.to_string()),
            },
        };
        if outcome.is_ok() {
            self.store.touch(&fill.digest);
        }
        self.state().by_digest.remove(&fill.digest);
        fill.progress.send_modify(|progress| match outcome {
            Ok(()) => (progress.available, progress.phase) = (fill.stated.unwrap_or(0), Phase::Done),
            Err(cause) => progress.phase = Phase::Failed(Refusal::Unavailable(cause)),
        });
    }

    /// Takes up the parked fills of a registry whose upstream is back.
    pub(super) fn resume(&self, registry: &crate::oci::RegistryName) {
        let mut state = self.state();
        let parked: Vec<_> = state
            .by_digest
            .values()
            .filter(|fill| fill.repository.registry == *registry)
            .filter(|fill| matches!(fill.progress.borrow().phase, Phase::Parked(_)))
            .cloned()
            .collect();
        for fill in parked {
            self.enqueue(&mut state, &fill);
        }
    }

    /// Tries parked fills whose upstream answers but which could not go on, with growing pauses.
    pub(super) fn revive(&self, now: Instant) {
        let mut state = self.state();
        let due: Vec<_> = state
            .by_digest
            .values()
            .filter(|fill| matches!(fill.progress.borrow().phase, Phase::Parked(_)))
            .filter(|fill| {
                let mut revival = fill.revival.lock();
                let pause = budget::FILL_REVIVAL_PAUSE * 2u32.saturating_pow(revival.tried.min(8));
                let at = *revival.at.get_or_insert(now + pause);
                let due = now >= at;
                if due {
                    revival.tried += 1;
                    revival.at = None;
                }
                due
            })
            .cloned()
            .collect();
        for fill in due {
            let tried = fill.revival.lock().tried;
            let up = self
                .upstreams
                .find(&fill.repository.registry)
                .is_some_and(|upstream| upstream.link().is_up());
            if tried > budget::FILL_REVIVALS_MAX {
                log::warn!("gave up on {} of {} until somebody asks for it", fill.digest, fill.repository);
                state.by_digest.remove(&fill.digest);
                fill.set_phase(Phase::Failed(Refusal::Unavailable("the download made no progress".into())));
            } else if up {
                self.enqueue(&mut state, &fill);
            }
        }
    }

    /// Takes up what an earlier process left unfinished.
    pub(super) fn take_up_unfinished(&self) {
        for (digest, origin, bytes) in self.store.unfinished() {
            let configured = self.upstreams.find(&origin.repository.registry).is_some();
            if self.store.contains(&digest) || !configured {
                let _ = self.store.forget_staged(&digest);
                continue;
            }
            log::info!("taking up {digest} of {} at {}", origin.repository, bytes_text(bytes));
            if let Err(problem) = self.begin(&origin.repository, &digest, origin.size) {
                log::warn!("{digest} stays unfinished: {problem}");
            }
        }
    }

    /// Fills that are not parked, and parked ones.
    pub(super) fn counts(&self) -> (usize, usize) {
        let state = self.state();
        let parked = state
            .by_digest
            .values()
            .filter(|fill| matches!(fill.progress.borrow().phase, Phase::Parked(_)))
            .count();
        (state.by_digest.len() - parked, parked)
    }

    /// No fill goes on after its present chunk; what is staged stays for the next start.
    pub(super) fn stop(&self) {
        self.state().stopping = true;
        self.wake.notify_all();
    }

    fn enqueue(&self, state: &mut State, fill: &Arc<Fill>) {
        fill.set_phase(Phase::Queued);
        state.queue.push_back(Arc::clone(fill));
        self.wake.notify_one();
    }

    fn is_private(&self, repository: &Repository) -> bool {
        self.upstreams.find(&repository.registry).is_some_and(|upstream| upstream.is_private())
    }

    fn is_stopping(&self) -> bool {
        self.state().stopping
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Waits up to a second for a fill to run; `Err` when the threads are to end.
    fn next(&self) -> Result<Option<Arc<Fill>>, ()> {
        let mut state = self.state();
        if state.queue.is_empty() && !state.stopping {
            (state, _) = self.wake.wait_timeout(state, Duration::from_secs(1));
        }
        if state.stopping { Err(()) } else { Ok(state.queue.pop_front()) }
    }

    fn run(&self, fill: &Arc<Fill>) {
        let mut run = Run { fills: self, fill, fruitless: 0, reserved: 0, resumed: false };
        let outcome = run.run();
        run.reserve(0);
        let mut state = self.state();
        match outcome {
            Ok(()) => {
                state.by_digest.remove(&fill.digest);
                drop(state);
                fill.progress.send_modify(|progress| {
                    progress.available = progress.total.unwrap_or(progress.available);
                    progress.phase = Phase::Done;
                });
                if let Some(hook) = self.published.get() {
                    hook(&fill.repository, &fill.digest);
                }
            }
            Err(Ending::Parked(cause)) => {
                log::warn!("download of {} of {} is parked: {cause}", fill.digest, fill.repository);
                fill.set_phase(Phase::Parked(cause));
            }
            Err(Ending::Failed(refusal)) => {
                state.by_digest.remove(&fill.digest);
                log::warn!("download of {} of {} failed: {refusal}", fill.digest, fill.repository);
                fill.set_phase(Phase::Failed(refusal));
            }
        }
    }
}

/// A fetch thread's life.
fn serve_queue(fills: &Weak<Fills>) {
    while let Some(fills) = fills.upgrade() {
        match fills.next() {
            Ok(Some(fill)) => {
                let run = std::panic::AssertUnwindSafe(|| fills.run(&fill));
                if std::panic::catch_unwind(run).is_err() {
                    log::error!("the download of {} ended in a panic; this is a bug", fill.digest);
                    fills.state().by_digest.remove(&fill.digest);
                    fill.set_phase(Phase::Failed(Refusal::Failed(
                        "the download failed; the log says how".into(),
                    )));
                }
            }
            Ok(None) => {}
            Err(()) => return,
        }
    }
}

/// How a run of a fill can end short of the whole blob.
enum Ending {
    /// It can go on later.
    Parked(String),
    /// It cannot.
    Failed(Refusal),
}

impl From<StoreError> for Ending {
    fn from(problem: StoreError) -> Self {
        Ending::Failed(if problem.is_of_the_disk() {
            Refusal::NotKept(format!("the mirror's disk: {problem}"))
        } else {
            Refusal::from_store(&problem)
        })
    }
}

/// One run of one fill on a fetch thread.
struct Run<'a> {
    fills: &'a Fills,
    fill: &'a Fill,
    /// Attempts in a row that brought not a byte.
    fruitless: u32,
    /// Bytes reserved on the disk.
    reserved: u64,
    /// The content was put together from several answers, so a wrong hash may be the seam's fault.
    resumed: bool,
}

impl Run<'_> {
    fn run(&mut self) -> Result<(), Ending> {
        let fill = self.fill;
        let Some(upstream) = self.fills.upstreams.find(&fill.repository.registry) else {
            return Err(Ending::Failed(Refusal::UnknownRegistry(fill.repository.registry.clone())));
        };
        let origin = Origin { repository: fill.repository.clone(), size: fill.stated };
        let mut staged = self.fills.store.stage(&fill.digest, &origin)?;
        self.resumed = !staged.is_empty();
        // A later run of the same fill opens the same file by name; readers keep the handle of the first.
        let _ = fill.file.set(staged.file());
        fill.set_phase(Phase::Running);
        self.publish(&staged, None);
        let kit = self.fills.kit.as_ref().filter(|_| !upstream.is_private());
        let down = upstream.link().is_known_down();
        let taken = if down && kit.is_some() {
            Err(Ending::Parked(outage_text(upstream)))
        } else {
            self.take_from_upstream(upstream, &mut staged)
        };
        match (taken, kit) {
            (Ok(()), _) => {}
            (Err(Ending::Parked(cause)), Some(kit)) if !self.fills.is_stopping() => {
                if !self.take_from_peers(kit, &mut staged)? {
                    if down && staged.is_empty() {
                        // It was begun for the peers alone, and none has it.
                        staged.discard(&self.fills.store);
                        let refusal = Refusal::Unavailable(format!("{cause}; {} is not cached", fill.digest));
                        return Err(Ending::Failed(refusal));
                    }
                    return Err(Ending::Parked(cause));
                }
            }
            (Err(ending), _) => return Err(ending),
        }
        self.finish(staged, upstream.is_private())
    }

    /// Downloads what is missing from upstream.
    fn take_from_upstream(&mut self, upstream: &Upstream, staged: &mut Staged) -> Result<(), Ending> {
        let fill = self.fill;
        loop {
            let total = fill.progress.borrow().total;
            if total == Some(staged.len()) || (total.is_none() && fill.stated == Some(staged.len())) {
                return Ok(());
            }
            match upstream.open_blob(&fill.repository.name, &fill.digest, staged.len()) {
                Ok(mut stream) => {
                    self.check_total(stream.total)?;
                    self.resumed |= !staged.is_empty();
                    self.publish(staged, stream.total);
                    let total = stream.total;
                    let read = |chunk: &mut [u8]| stream.read(chunk).map_err(|failure| failure.to_string());
                    match self.copy(total, read, staged)? {
                        Copied::ToTheEnd => return Ok(()),
                        Copied::Cut(cause) => self.pause(upstream.link(), &cause)?,
                    }
                }
                Err(failure) if failure.is_outage() => self.pause(upstream.link(), &failure.to_string())?,
                Err(failure @ Failure::Wrong { .. }) => {
                    staged.discard(&self.fills.store);
                    return Err(Ending::Failed(Refusal::from_failure(&failure, Missing::Blob)));
                }
                Err(failure) => {
                    // What upstream no longer has cannot be finished; what it denies today may be allowed tomorrow.
                    if staged.is_empty() || matches!(failure, Failure::Missing { .. }) {
                        staged.discard(&self.fills.store);
                    }
                    return Err(Ending::Failed(Refusal::from_failure(&failure, Missing::Blob)));
                }
            }
        }
    }

    /// Has the peers send what is missing, one after the other. `false`: none of them could send all of it.
    ///
    /// Only where the size is known: a peer that lied about it would have clients promised a wrong length.
    fn take_from_peers(&mut self, kit: &Kit, staged: &mut Staged) -> Result<bool, Ending> {
        let fill = self.fill;
        let Some(known) = fill.stated.or(fill.progress.borrow().total) else { return Ok(false) };
        // Whoever fails is left out by the kit, so that this ends; the bound is for peers that fail at once and return.
        for _ in 0..budget::PEERS_MAX {
            let begin = staged.len();
            let Some(mut stream) = kit.blob(&fill.repository, &fill.digest, begin) else { return Ok(false) };
            let (peer, total) = (stream.peer(), stream.total());
            if total != known || begin > total {
                stream.is_wrong(&format!("it offers {total} bytes for {}, which has {known}", fill.digest));
                continue;
            }
            self.check_total(Some(total))?;
            fill.from_peer.store(true, Ordering::Relaxed);
            self.publish(staged, Some(total));
            log::debug!("{} of {} comes from peer {peer}", fill.digest, fill.repository);
            let copied = self.copy(Some(total), |chunk: &mut [u8]| stream.read(chunk), staged)?;
            if matches!(copied, Copied::Cut(_)) {
                continue;
            }
            return match staged.matches() {
                Ok(()) => Ok(true),
                Err(problem) => {
                    stream.is_wrong(&format!(
                        "{problem}{}",
                        if begin > 0 { " (others sent its beginning)" } else { "" }
                    ));
                    // Begins anew, so that the next source does not add to what is wrong.
                    staged.discard(&self.fills.store);
                    Err(Ending::Failed(Refusal::Unavailable(format!("peer {peer} sent wrong bytes"))))
                }
            };
        }
        Ok(false)
    }

    /// Copies until the body ends. `offered`: the size of the whole, if the source says.
    fn copy(
        &mut self,
        offered: Option<u64>,
        mut read: impl FnMut(&mut [u8]) -> Result<usize, String>,
        staged: &mut Staged,
    ) -> Result<Copied, Ending> {
        let total = offered.or(self.fill.stated);
        let limit = total.unwrap_or(budget::BLOB_BYTES_MAX);
        let mut chunk = vec![0; budget::FETCH_CHUNK_BYTES];
        loop {
            if self.fills.is_stopping() {
                return Err(Ending::Parked("larder is stopping".into()));
            }
            match read(&mut chunk) {
                Ok(0) if total.is_none_or(|total| staged.len() == total) => return Ok(Copied::ToTheEnd),
                Ok(0) => return Ok(Copied::Cut("the body ended early".into())),
                Ok(n) if staged.len() + n as u64 > limit => {
                    staged.discard(&self.fills.store);
                    return Err(self.wrong(format!("sent more than the {limit} bytes that it should have")));
                }
                Ok(n) => {
                    if let Err(problem) = staged.append(&chunk[..n]) {
                        // What cannot be finished takes no room from what can, and is not to be believed.
                        staged.discard(&self.fills.store);
                        return Err(problem.into());
                    }
                    self.fruitless = 0;
                    self.publish(staged, offered);
                    self.reserve(total.map_or(0, |total| total - staged.len()));
                }
                Err(failure) => return Ok(Copied::Cut(failure)),
            }
        }
    }

    /// Verifies the whole and makes it a blob.
    fn finish(&mut self, staged: Staged, private: bool) -> Result<(), Ending> {
        let fill = self.fill;
        let private = private
            && self.fills.store.open_blob(&fill.digest).ok().flatten().is_none_or(|blob| blob.private);
        fill.progress.send_modify(|progress| progress.total = Some(staged.len()));
        match staged.publish(&self.fills.store, private) {
            Ok(()) => {}
            Err(StoreError::Mismatch { actual, .. }) => {
                let seam = if self.resumed { " (it was put together from several answers)" } else { "" };
                return Err(self.wrong(format!("sent content that hashes to {actual}{seam}")));
            }
            Err(problem) => return Err(problem.into()),
        }
        if private && let Err(problem) = self.fills.store.hold(&fill.repository, &fill.digest) {
            log::warn!("{} will be confirmed again: {problem}", fill.digest);
        }
        Ok(())
    }

    /// Refuses a blob of a size that its manifest does not state, and one that the disk cannot take.
    fn check_total(&mut self, total: Option<u64>) -> Result<(), Ending> {
        let Some(total) = total else { return Ok(()) };
        if let Some(stated) = self.fill.stated
            && stated != total
        {
            return Err(self.wrong(format!("offers {total} bytes where the manifest says {stated}")));
        }
        if total > budget::BLOB_BYTES_MAX {
            return Err(self.wrong(format!("offers {total} bytes, more than larder keeps")));
        }
        let rest = total.saturating_sub(self.fill.progress.borrow().available);
        // One after the other, so that two do not count on the same bytes.
        let _turn = self.fills.reserving.lock();
        let lacking = self.fills.lacking(rest, self.reserved)?.bytes();
        if lacking > 0 && self.fills.make_room(lacking, Otherwise::Nothing) < lacking {
            return Err(Ending::Failed(Refusal::NotKept(format!(
                "the mirror's disk has {} free, of which {} stay free{}; {} are to come, and nothing that may go would make room for them",
                bytes_text(self.fills.store.free_bytes()?),
                bytes_text(self.fills.disk.min_free),
                self.fills
                    .disk
                    .max
                    .map_or(String::new(), |max| format!(", and disk.max is {}", bytes_text(max))),
                bytes_text(rest),
            ))));
        }
        self.reserve(rest);
        Ok(())
    }

    fn reserve(&mut self, bytes: u64) {
        let mut state = self.fills.state();
        state.reserved = state.reserved - self.reserved + bytes;
        self.reserved = bytes;
    }

    /// Tells clients how far it is, less what is held back until the hash is right.
    fn publish(&self, staged: &Staged, total: Option<u64>) {
        self.fill.progress.send_modify(|progress| {
            progress.total = progress.total.or(total);
            let end = progress.total.unwrap_or(staged.len());
            let may = staged.len().min(end.saturating_sub(budget::HELD_BACK_BYTES));
            progress.available = progress.available.max(may);
        });
    }

    /// Waits a little before the next attempt; parks the fill when there is no point in one.
    fn pause(&mut self, link: LinkState, cause: &str) -> Result<(), Ending> {
        self.fruitless += 1;
        if self.fruitless > budget::FILL_FRUITLESS_TRIES || matches!(link, LinkState::Down { .. }) {
            return Err(Ending::Parked(cause.to_owned()));
        }
        log::debug!("{} goes on after a cut: {cause}", self.fill.digest);
        std::thread::sleep(budget::FILL_RETRY_PAUSE * self.fruitless);
        Ok(())
    }

    fn wrong(&self, what: String) -> Ending {
        Ending::Failed(Refusal::Unavailable(format!("{} {what}", self.fill.repository.registry)))
    }
}

enum Copied {
    ToTheEnd,
    Cut(String),
}
