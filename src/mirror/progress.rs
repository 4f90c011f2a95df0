//! Fills as their readers see them (rules 1, 4 and 5), and the one table of them.
//!
//! A fill is one download of one blob; any number of clients read it while it grows. Or it is one check of an unverified
//! blob on the disk; its readers wait until the hash is known. The thread that runs a fill writes to a file and publishes
//! its progress. A fill does not know its clients and outlives them.

use super::counters::ByteSource;
use super::refusal::Refusal;
use super::repeats::Repeats;
use crate::budget;
use crate::oci::{Digest, Repository};
use crate::places::{Asking, asker};
use crate::store::ContentKey;
use crate::sync::Mutex;
use crate::via::{self, Way};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// A download, as clients see it.
#[derive(Debug)]
pub struct Fill {
    pub(super) key: ContentKey,
    pub(super) repository: Repository,
    /// For whom it has its slot.
    pub(super) asking: Asking,
    /// How the request came that has begun it.
    pub(super) way: Way,
    /// The size that a manifest states, in bytes.
    pub(super) stated: Option<u64>,
    pub(super) file: OnceLock<Arc<File>>,
    demanded: Mutex<Demanded>,
    /// How fast its bytes come, since it runs.
    pace: Mutex<Option<Pace>>,
    /// Repositories of the registry that it says hold this too, until the bytes have proved that it has it at all.
    holders: Mutex<Option<Vec<Repository>>>,
    /// Some of it came from a peer.
    pub(super) from_peer: AtomicBool,
    /// A client wants a part of it that is far ahead.
    hurried: AtomicBool,
    /// Its upstream was asked for a part and did not give it.
    no_parts: AtomicBool,
    kind: FillKind,
    pub(super) progress: watch::Sender<Progress>,
}

/// Who wants a fill, and whether it may still be followed.
#[derive(Debug)]
struct Demanded {
    /// When a request last began or joined it, if one did.
    at: Option<Instant>,
    /// Nobody waited for it, and its file makes room: from now on nobody reads that.
    abandoned: bool,
}

/// The pace of a fill, measured over [`budget::JOIN_WAIT`] at a time.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// When the present time began, and the bytes that there were.
    since: Instant,
    bytes: u64,
    /// In the time before, fewer bytes came than [`budget::JOIN_RATE_MIN`].
    slow: bool,
    /// The bytes that there are, and when the last of them came.
    come: u64,
    moved: Instant,
}

/// What a fill does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FillKind {
    /// A download.
    Download,
    /// The hash of a blob on the disk.
    Check,
}

/// Who wants a fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Demand {
    /// A client waits for it.
    Client,
    /// Larder itself, for later use.
    Background,
}

/// How far a fill is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The size of the blob in bytes, once it is known.
    pub total: Option<u64>,
    /// Bytes that clients may read.
    pub available: u64,
    /// What it is doing.
    pub phase: Phase,
}

/// What a fill is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// It waits for a download slot.
    Queued,
    /// Bytes are coming, or are being asked for.
    Running,
    /// Upstream cannot be reached, and why. The fill resumes when upstream is back.
    Parked(String),
    /// The blob is complete and in the store.
    Done,
    /// It has ended without success.
    Failed(Refusal),
}

/// What of a repository is asked for, by a client if it is for one.
pub(super) fn asking_of(repository: &Repository, by: Option<IpAddr>) -> Asking {
    Asking::new(repository.registry.as_str(), &repository.name.to_string(), by)
}

impl Fill {
    /// A download that has yet to begin.
    pub(super) fn download(
        key: ContentKey,
        repository: &Repository,
        stated: Option<u64>,
        demand: Demand,
    ) -> Fill {
        let by = asker().filter(|_| demand == Demand::Client);
        Fill {
            key,
            repository: repository.clone(),
            asking: asking_of(repository, by),
            way: via::way(),
            stated,
            file: OnceLock::new(),
            demanded: Mutex::new(Demanded {
                at: (demand == Demand::Client).then(Instant::now),
                abandoned: false,
            }),
            pace: Mutex::default(),
            holders: Mutex::new(Some(Vec::new())),
            from_peer: AtomicBool::new(false),
            hurried: AtomicBool::new(false),
            no_parts: AtomicBool::new(false),
            kind: FillKind::Download,
            progress: watch::Sender::new(Progress { total: None, available: 0, phase: Phase::Queued }),
        }
    }

    /// The check of `file`, which has `size` bytes. It is `Queued` until the hash is known, so that its readers do not take
    /// the wait for a stall.
    pub(super) fn check(key: ContentKey, repository: &Repository, file: File, size: u64) -> Fill {
        let progress = Progress { total: Some(size), available: 0, phase: Phase::Queued };
        Fill {
            file: OnceLock::from(Arc::new(file)),
            kind: FillKind::Check,
            progress: watch::Sender::new(progress),
            ..Fill::download(key, repository, Some(size), Demand::Client)
        }
    }

    /// The registry says that a repository of it has this too. `false`: the fill has proved that the registry has it.
    pub(super) fn add_holder(&self, repository: &Repository) -> bool {
        let mut holders = self.holders.lock();
        let Some(waiting) = holders.as_mut() else { return false };
        if waiting.len() < budget::FILL_HOLDERS_MAX && !waiting.contains(repository) {
            waiting.push(repository.clone());
        }
        true
    }

    /// The bytes have proved that the registry has this: the repositories that hold it besides the fill's own.
    pub(super) fn take_holders(&self) -> Vec<Repository> {
        self.holders.lock().take().unwrap_or_default()
    }

    /// What is being fetched.
    pub fn digest(&self) -> &Digest {
        &self.key.digest
    }

    /// The size that a manifest states, in bytes.
    pub fn stated(&self) -> Option<u64> {
        self.stated
    }

    /// The source that its bytes are counted for: a peer, as soon as a part came from one.
    pub fn source(&self) -> ByteSource {
        match (self.kind, self.from_peer.load(Ordering::Relaxed)) {
            (FillKind::Check, _) => ByteSource::Cache,
            (FillKind::Download, true) => ByteSource::Peer,
            (FillKind::Download, false) => ByteSource::Fill,
        }
    }

    /// Why it ended, if the reason was that the disk could not store it.
    pub fn not_stored(&self) -> Option<String> {
        match &self.progress.borrow().phase {
            Phase::Failed(Refusal::NotStored(cause)) => Some(cause.clone()),
            _ => None,
        }
    }

    /// The growing file, once the fill has begun to run. Only who follows the fill may read it.
    pub fn file(&self) -> Option<Arc<File>> {
        if self.demanded.lock().abandoned { None } else { self.file.get().cloned() }
    }

    /// Follows the progress. Who follows it waits for it.
    pub fn follow(&self) -> watch::Receiver<Progress> {
        // Not while it is decided whether anybody does.
        let _demanded = self.demanded.lock();
        self.progress.subscribe()
    }

    /// So many bytes have come at `now`.
    pub(super) fn keep_pace(&self, bytes: u64, now: Instant) {
        let mut pace = self.pace.lock();
        let start = Pace { since: now, bytes, slow: false, come: bytes, moved: now };
        let pace = pace.get_or_insert(start);
        if bytes > pace.come {
            (pace.come, pace.moved) = (bytes, now);
        }
        let took = now.saturating_duration_since(pace.since);
        if took >= budget::JOIN_WAIT {
            pace.slow = bytes.saturating_sub(pace.bytes) < took.as_secs() * budget::JOIN_RATE_MIN;
            (pace.since, pace.bytes) = (now, bytes);
        }
    }

    /// Whether it is too slow for a client of another repository, whose own download costs upstream next to nothing then, or
    /// has had no byte for `stall`.
    pub(super) fn is_slow(&self, now: Instant, stall: Duration) -> bool {
        let Some(pace) = *self.pace.lock() else { return false };
        let silent = now.saturating_duration_since(pace.moved) >= stall.min(2 * budget::JOIN_WAIT);
        let progress = self.progress.borrow();
        // Where all bytes have come the disk is slow.
        let come = progress.total.is_some_and(|total| pace.come >= total);
        progress.phase == Phase::Running && !come && (pace.slow || silent)
    }

    /// Whether it is the download of a repository.
    pub fn is_of(&self, repository: &Repository) -> bool {
        self.repository == *repository
    }

    /// Whether it is the download of another repository, so that this one may have a better one.
    pub(super) fn is_foreign_to(&self, repository: &Repository) -> bool {
        self.kind == FillKind::Download && !self.is_of(repository)
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        if phase == Phase::Running {
            *self.pace.lock() = None;
        }
        self.progress.send_modify(|progress| progress.phase = phase);
    }

    pub(super) fn is_parked(&self) -> bool {
        matches!(self.progress.borrow().phase, Phase::Parked(_))
    }

    /// Another request wants it too.
    pub(super) fn demand(&self, demand: Demand) {
        if demand == Demand::Client {
            self.demanded.lock().at = Some(Instant::now());
            self.asking.join(asker());
        }
    }

    /// A client wants a part of it that is far ahead: it goes before its equals.
    pub(super) fn hurry(&self) {
        self.hurried.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_hurried(&self) -> bool {
        self.hurried.load(Ordering::Relaxed)
    }

    /// Its upstream does not give parts.
    pub(super) fn note_no_parts(&self) {
        self.no_parts.store(true, Ordering::Relaxed);
    }

    pub(super) fn gives_no_parts(&self) -> bool {
        self.no_parts.load(Ordering::Relaxed)
    }

    /// Whether a client waits for it or reads it, or is about to.
    pub(super) fn is_awaited(&self) -> bool {
        self.is_awaited_by(&self.demanded.lock())
    }

    fn is_awaited_by(&self, demanded: &Demanded) -> bool {
        let is_fresh = |at: Instant| at.elapsed() < budget::DEMAND_GRACE;
        self.progress.receiver_count() > 0 || demanded.at.is_some_and(is_fresh)
    }

    /// Ends it for all who might come to follow it, so that its file may go. `false`: somebody waits for it.
    fn abandon(&self) -> bool {
        let mut demanded = self.demanded.lock();
        let may = self.kind == FillKind::Download && !self.is_awaited_by(&demanded);
        demanded.abandoned |= may;
        may
    }

    fn is_running(&self) -> bool {
        self.progress.borrow().phase == Phase::Running
    }

    /// Whether a client waits for it, or it is the check of what is here.
    fn is_needed(&self) -> bool {
        self.kind == FillKind::Check || self.is_awaited()
    }

    /// Whether it may be dropped without anybody missing it: nobody waits for it, and it does not run.
    pub(super) fn is_idle(&self) -> bool {
        let rests = matches!(self.progress.borrow().phase, Phase::Queued | Phase::Parked(_));
        rests && self.kind == FillKind::Download && !self.is_awaited()
    }
}

/// All fills, by key. A fill leaves the table after its blob is in the store.
#[derive(Default)]
pub(super) struct FillTable {
    fills: Mutex<HashMap<ContentKey, Arc<Fill>>>,
    /// The repositories whose shared fills have served badly: the others do not join them again.
    bad: Mutex<HashMap<ContentKey, Repository>>,
    /// What upstreams have sent again.
    pub(super) repeats: Repeats,
}

impl FillTable {
    /// For several changes that others must see at once.
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<ContentKey, Arc<Fill>>> {
        self.fills.lock()
    }

    /// A fill served badly: it failed, or did not go on.
    pub(super) fn served_badly(&self, fill: &Fill) {
        let mut bad = self.bad.lock();
        if bad.len() >= budget::FILLS_MAX {
            bad.clear();
        }
        if fill.kind == FillKind::Download && fill.key.apart.is_none() {
            bad.insert(fill.key.clone(), fill.repository.clone());
        }
    }

    /// The key under which a repository fetches: of its own where another's fill of this content has served badly.
    pub(super) fn key_for(&self, shared: ContentKey, repository: &Repository) -> ContentKey {
        let bad = self.bad.lock();
        let apart = bad.get(&shared).is_some_and(|of| of != repository);
        if apart { shared.apart(&repository.name) } else { shared }
    }

    /// Content has arrived, so that nobody joins a fill of it any more.
    pub(super) fn forget_bad(&self, key: &ContentKey) {
        self.repeats.forget(key);
        self.bad.lock().remove(&ContentKey { apart: None, ..key.clone() });
    }

    pub(super) fn find(&self, key: &ContentKey) -> Option<Arc<Fill>> {
        self.lock().get(key).cloned()
    }

    pub(super) fn remove(&self, key: &ContentKey) {
        self.lock().remove(key);
    }

    /// What is being fetched for who waits for it, or hashed, or is queued for that.
    pub(super) fn awaited(&self) -> HashSet<Digest> {
        let table = self.lock();
        let awaited = table.values().filter(|fill| !fill.is_parked() && fill.is_needed());
        awaited.map(|fill| fill.digest().clone()).collect()
    }

    /// Whether nobody would miss what is staged under this key: no fill of it runs, and nobody waits for one that is queued.
    pub(super) fn is_idle(&self, key: &ContentKey) -> bool {
        self.lock().get(key).is_none_or(|fill| match fill.progress.borrow().phase {
            Phase::Queued => !fill.is_needed(),
            Phase::Running => false,
            Phase::Parked(_) | Phase::Done | Phase::Failed(_) => true,
        })
    }

    /// The fills that run and that nobody waits for.
    pub(super) fn unawaited(&self) -> Vec<ContentKey> {
        let table = self.lock();
        let idle = table.values().filter(|fill| fill.is_running() && !fill.is_needed());
        idle.map(|fill| fill.key.clone()).collect()
    }

    /// Ends a fill that nobody waits for and has `remove` take its file away, before another of its key can begin. `false`:
    /// somebody waits for it, or the file stays.
    pub(super) fn abandon(&self, key: &ContentKey, remove: impl FnOnce() -> bool) -> bool {
        let mut table = self.lock();
        let Some(fill) = table.get(key).filter(|fill| fill.is_running() && fill.abandon()).cloned() else {
            return false;
        };
        table.remove(key);
        let removed = remove();
        drop(table);
        let cause = "it made way for what clients wait for";
        fill.set_phase(Phase::Failed(Refusal::NotStored(cause.into())));
        removed
    }

    /// Fills that are not parked, and parked ones.
    pub(super) fn counts(&self) -> (usize, usize) {
        let table = self.lock();
        let parked = table.values().filter(|fill| fill.is_parked()).count();
        (table.len() - parked, parked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::AccessClass;
    use crate::oci::Algorithm;

    impl Fill {
        fn is_slow_at(&self, now: Instant) -> bool {
            self.is_slow(now, budget::CLIENT_STALL_TIME)
        }
    }

    fn fill() -> Fill {
        let repository: Repository = "docker.io/lab/app".parse().unwrap();
        let digest = Digest::of(Algorithm::Sha256, b"layer");
        let key = ContentKey::shared(repository.registry.clone(), AccessClass::Public, digest);
        Fill::download(key, &repository, None, Demand::Client)
    }

    #[test]
    fn a_fill_is_slow_by_its_last_bytes_and_not_by_all_of_them() {
        let (fill, start) = (fill(), Instant::now());
        let at = |waits: u32| start + waits * budget::JOIN_WAIT;
        let least = budget::JOIN_WAIT.as_secs() * budget::JOIN_RATE_MIN;
        assert!(!fill.is_slow_at(at(9)), "it does not run yet");
        fill.set_phase(Phase::Running);
        fill.keep_pace(0, at(0));
        fill.keep_pace(1_000 * least, at(1));
        assert!(!fill.is_slow_at(at(1)));
        fill.keep_pace(1_000 * least + 1, at(2));
        assert!(fill.is_slow_at(at(2)), "a byte is not enough");
        fill.keep_pace(1_001 * least + 1, at(3));
        assert!(!fill.is_slow_at(at(3)) && !fill.is_slow_at(at(4)), "it just suffices");
        assert!(fill.is_slow_at(at(5)), "nothing has come since");
        fill.set_phase(Phase::Parked("down".into()));
        assert!(!fill.is_slow_at(at(9)), "it may be slow no more when it runs again");
        fill.set_phase(Phase::Running);
        assert!(!fill.is_slow_at(at(9)));
    }

    #[test]
    fn what_has_served_badly_is_not_joined_by_others_until_it_has_come() {
        let (table, fill) = (FillTable::default(), fill());
        let other: Repository = "docker.io/lab/other".parse().unwrap();
        let key = |repository| table.key_for(fill.key.clone(), repository);
        assert_eq!(key(&other), fill.key);
        table.served_badly(&fill);
        assert_eq!(key(&other), fill.key.apart(&other.name));
        assert_eq!(key(&fill.repository), fill.key, "its own clients have what it has");
        let private = ContentKey { class: AccessClass::Private, ..fill.key.clone() };
        assert_eq!(table.key_for(private.clone(), &other), private);
        table.forget_bad(&fill.key.apart(&other.name));
        assert_eq!(key(&other), fill.key);
        // What is remembered has an end.
        for n in 0..budget::FILLS_MAX + 1 {
            let digest = Digest::of(Algorithm::Sha256, &n.to_le_bytes());
            let key = ContentKey { digest, ..fill.key.clone() };
            table.served_badly(&Fill::download(key, &other, None, Demand::Background));
        }
        assert!(table.bad.lock().len() <= budget::FILLS_MAX);
    }
}
