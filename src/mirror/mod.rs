//! The decisions: which digest a tag is, where content comes from, what is complete.
//!
//! [`Mirror`] is what the doors of the house - http, control, carry - stand before. Its methods are asynchronous and
//! never wait on an upstream without a bound; what blocks is done on lanes ([`lane`]), fetch threads ([`fill`]) or the
//! runtime's threads for blocking work.

mod content;
mod counters;
mod facts;
mod fill;
mod integrity;
mod lane;
mod lists;
mod live;
mod peers;
mod pulls;
mod refusal;
mod resolve;
mod room;
mod through;

pub use crate::kit::PeerState;
pub use content::{Content, Served, Source};
pub use counters::{Counters, Source as ByteSource, Tier};
pub use facts::SmallManifest;
pub use fill::{Fill, Phase, Progress};
pub use lists::{Page, PageRequest, Referrers};
pub use pulls::Pulls;
pub use refusal::{Missing, Refusal};
pub use resolve::Resolved;
pub use through::Pieces;

use crate::budget;
use crate::config::Config;
use crate::fetch::{Cause, Failure, Link, Upstream, Upstreams};
use crate::kit::Kit;
use crate::oci::{Digest, Repository, Tag};
use crate::store::{Store, StoreError};
use crate::sync::Mutex;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

type Registry = crate::oci::RegistryName;

type ManifestFlights = lane::Flights<(Repository, Digest), Result<content::Landed, Refusal>>;

/// The mirror.
pub struct Mirror {
    config: Arc<Config>,
    store: Arc<Store>,
    upstreams: Arc<Upstreams>,
    lanes: HashMap<Registry, lane::Lanes>,
    /// When an upstream that is down was last asked beside a request.
    beside: Mutex<HashMap<Registry, Instant>>,
    fills: Arc<fill::Fills>,
    checks: lane::Flights<(Repository, Tag), Result<resolve::Checked, Failure>>,
    manifests: ManifestFlights,
    /// The other boards, if there is a kit.
    kit: Option<Arc<Kit>>,
    /// Questions to peers have lanes of their own: those of an upstream that is down may all be waiting for it.
    peer_lanes: lane::Lanes,
    peer_manifests: ManifestFlights,
    claims: peers::Claims,
    verified: resolve::Verified,
    facts: facts::Facts,
    stale_reports: resolve::StaleReports,
    counters: Counters,
    pulls: Pulls,
    /// Places for blobs that are streamed through.
    through: Arc<tokio::sync::Semaphore>,
    /// One makes room at a time.
    room: Mutex<room::Attempts>,
    /// What was damaged and is to be fetched again.
    damaged: Mutex<integrity::Damaged>,
    stopping: AtomicBool,
}

impl Mirror {
    /// Starts the mirror: its threads, the probes of every upstream, and the fills that an earlier run left.
    ///
    /// If `needs_rebuild`, the index is made again on a thread of its own, and only content is answered meanwhile.
    pub fn start(
        config: Arc<Config>,
        store: Arc<Store>,
        upstreams: Upstreams,
        needs_rebuild: bool,
    ) -> std::io::Result<Arc<Mirror>> {
        let upstreams = Arc::new(upstreams);
        let kit = config.kit.as_ref().map(|settings| Arc::new(Kit::new(settings)));
        let fills = fill::Fills::start(
            Arc::clone(&store),
            Arc::clone(&upstreams),
            kit.clone(),
            config.fetch.streams,
            config.disk.clone(),
        )?;
        let streams = config.fetch.streams;
        let mirror = Arc::new(Mirror {
            lanes: upstreams.iter().map(|upstream| (upstream.name().clone(), lanes_to(upstream))).collect(),
            beside: Mutex::default(),
            config,
            store,
            upstreams,
            fills,
            checks: lane::Flights::default(),
            manifests: lane::Flights::default(),
            kit,
            peer_lanes: lane::Lanes::new("peers", budget::MANIFEST_LANES, budget::MANIFEST_QUEUE_MAX),
            peer_manifests: lane::Flights::default(),
            claims: peers::Claims::default(),
            verified: resolve::Verified::default(),
            facts: facts::Facts::default(),
            stale_reports: resolve::StaleReports::default(),
            counters: Counters::default(),
            pulls: Pulls::default(),
            through: Arc::new(tokio::sync::Semaphore::new(streams)),
            room: Mutex::default(),
            damaged: Mutex::default(),
            stopping: AtomicBool::new(false),
        });
        let settled = Arc::downgrade(&mirror);
        mirror.fills.on_published(move |repository, _| {
            if let Some(mirror) = settled.upgrade() {
                mirror.settle_all(repository);
            }
        });
        let room = Arc::downgrade(&mirror);
        mirror.fills.on_lack(move |needed, otherwise| {
            room.upgrade().map_or(0, |mirror| mirror.make_room(needed, otherwise))
        });
        mirror.store.begin_service();
        mirror.watch_upstreams();
        let keeper = Arc::downgrade(&mirror);
        std::thread::Builder::new()
            .name("keeper".into())
            .spawn(move || keep_house(&keeper, needs_rebuild))?;
        let scrubbed = Arc::downgrade(&mirror);
        std::thread::Builder::new()
            .name("scrub".into())
            .stack_size(budget::THREAD_STACK_BYTES)
            .spawn(move || integrity::scrub(&scrubbed))?;
        Ok(mirror)
    }

    /// The configuration.
    pub fn config(&self) -> &Arc<Config> {
        &self.config
    }

    /// The store.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The upstreams.
    pub fn upstreams(&self) -> &Upstreams {
        &self.upstreams
    }

    /// What has been counted since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The gathering of outcomes for the log.
    pub fn pulls(&self) -> &Pulls {
        &self.pulls
    }

    /// Fills under way or waiting, and parked ones.
    pub fn fill_counts(&self) -> (usize, usize) {
        self.fills.counts()
    }

    /// Begins to stop: no fill goes on, no probe is sent, uses are written down.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.fills.stop();
        for upstream in self.upstreams.iter() {
            upstream.breaker().shutdown();
        }
        // Here and not when the last thread lets go of the store: the process may have ended by then.
        self.store.wind_down();
    }

    /// Does work that may wait for the disk, off the threads that serve connections.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Mirror) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let mirror = Arc::clone(self);
        match tokio::task::spawn_blocking(move || work(&mirror)).await {
            Ok(result) => result,
            Err(e) => Err(StoreError::Io {
                what: "cannot ask the store".into(),
                source: std::io::Error::other(e.to_string()),
            }),
        }
    }

    /// Remembers the state of every upstream over restarts, so that a cold offline boot answers at once, and takes
    /// parked fills up when one is back.
    fn watch_upstreams(self: &Arc<Self>) {
        for upstream in self.upstreams.iter() {
            let note = note_of(upstream.name());
            match self.store.note(&note) {
                Ok(Some(cause)) => upstream.breaker().restore_down(&cause),
                Ok(None) | Err(StoreError::Rebuilding) => {}
                Err(problem) => log::warn!("the last state of {} is not known: {problem}", upstream.name()),
            }
            let mirror: Weak<Mirror> = Arc::downgrade(self);
            upstream.breaker().on_change(Box::new(move |registry, link| {
                if let Some(mirror) = mirror.upgrade() {
                    mirror.upstream_changed(registry, link);
                }
            }));
            // A registry that nothing was ever pulled from is none of our business until somebody asks for it.
            if self.has_pulled_from(upstream.name()) {
                upstream.breaker().start_probe();
            }
        }
    }

    fn has_pulled_from(&self, registry: &Registry) -> bool {
        let first = self.store.repositories(Some(&format!("{registry}/")), 1);
        first.is_ok_and(|names| names.first().is_some_and(|name| name.registry == *registry))
    }

    fn upstream_changed(&self, registry: &Registry, link: &Link) {
        let text = match link {
            Link::Up => {
                log::info!("upstream {registry} answers");
                self.fills.resume(registry);
                self.retry_damaged();
                None
            }
            Link::Slow { .. } => {
                log::warn!("upstream {registry} is slow; cached tags are answered without waiting for it");
                return;
            }
            Link::Down { cause, .. } => {
                log::warn!("upstream {registry} cannot be reached: {cause}");
                Some(cause.as_str())
            }
        };
        match self.store.set_note(&note_of(registry), text) {
            Ok(()) | Err(StoreError::Rebuilding) => {}
            Err(problem) => log::warn!("the state of {registry} was not written down: {problem}"),
        }
    }
}

/// Since when an upstream is down and why: `docker.io is unreachable for 12 s: connection refused`.
pub fn outage_text(upstream: &Upstream) -> String {
    match upstream.breaker().link() {
        Link::Down { cause, restored: true, .. } => {
            format!("{} is unreachable since before larder started: {cause}", upstream.name())
        }
        Link::Down { since, cause, restored: false } => {
            format!("{} is unreachable for {} s: {cause}", upstream.name(), since.elapsed().as_secs())
        }
        Link::Slow { since } => format!("{} is slow for {} s", upstream.name(), since.elapsed().as_secs()),
        Link::Up => format!("{} can be reached", upstream.name()),
    }
}

/// An outage as the failure of a question that was not asked.
fn outage(upstream: &Upstream) -> Failure {
    Failure::Unreachable { cause: Cause::Connection, detail: outage_text(upstream) }
}

fn lanes_to(upstream: &Upstream) -> lane::Lanes {
    lane::Lanes::new(upstream.name().as_str(), budget::MANIFEST_LANES, budget::MANIFEST_QUEUE_MAX)
}

fn note_of(registry: &Registry) -> String {
    format!("down/{registry}")
}

/// The keeper's life: rebuilds the index, writes uses, logs pulls, tries parked fills.
fn keep_house(mirror: &Weak<Mirror>, needs_rebuild: bool) {
    if let Some(mirror) = mirror.upgrade() {
        if needs_rebuild && let Err(problem) = mirror.store.rebuild() {
            log::error!("the index could not be rebuilt: {problem}");
        }
        mirror.fills.take_up_unfinished();
        match mirror.store.check_index() {
            Ok(()) => {}
            Err(problem) if problem.is_without_index() => {}
            Err(problem) => log::warn!("the index could not be read through: {problem}"),
        }
    }
    let mut flushed = Instant::now();
    let (mut next_rebuild, mut watched) = (flushed, flushed);
    // What is due at once.
    let (mut next_expiry, mut next_refetch) = (flushed, flushed);
    while let Some(mirror) = mirror.upgrade() {
        if mirror.stopping.load(Ordering::Relaxed) {
            return;
        }
        let now = Instant::now();
        mirror.pulls.log_finished(now);
        mirror.fills.revive(now);
        if (mirror.store.is_damaged() || !mirror.store.has_index()) && now >= next_rebuild {
            next_rebuild = now + budget::REBUILD_PAUSE;
            if let Err(problem) = mirror.store.recover() {
                log::error!("the index could not be put back into service: {problem}");
            }
        }
        if now.duration_since(watched) >= budget::DISK_WATCH_EVERY && mirror.store.has_index() {
            watched = now;
            mirror.watch_disk();
        }
        if now >= next_refetch {
            next_refetch = now + budget::REFETCH_PAUSE;
            mirror.refetch();
        }
        let age = mirror.config.disk.expire_unused;
        if let Err(problem) = mirror.store.keep_counts(age) {
            log::debug!("counts were not written down: {problem}");
        }
        if let (Some(age), true) = (age, now >= next_expiry && mirror.store.has_index()) {
            next_expiry = now + budget::EXPIRE_EVERY.min(age / budget::USE_MARKS_EACH);
            mirror.expire(age);
        }
        if now.duration_since(flushed) >= budget::TOUCH_FLUSH_EVERY {
            flushed = now;
            if let Err(problem) = mirror.store.flush_touches() {
                log::warn!("uses were not written: {problem}");
            }
        }
        drop(mirror);
        std::thread::sleep(Duration::from_millis(500));
    }
}
