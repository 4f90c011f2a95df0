//! What all parts of the mirror share: the configuration, the store, the upstreams, the kit, and the counters.
//!
//! It takes no decision. Work that may wait for the disk runs on the threads that are there for it ([`Context::blocking`]).

use super::counters::Counters;
use super::pulls::Pulls;
use super::refusal::Refusal;
use crate::auth::AccessClass;
use crate::budget;
use crate::clock;
use crate::config::{Config, LiveConfig};
use crate::decide::Reach;
use crate::fetch::{Cause, Failure, LinkState, Upstream, Upstreams};
use crate::kit::Kit;
use crate::oci::{Digest, RegistryName, Repository};
use crate::store::{ContentLink, Store, StoreError};
use crate::sync::{self, Mutex};
use crate::text::lasted_text;
use crate::via;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The shared state.
pub(super) struct Context {
    pub(super) config: LiveConfig,
    pub(super) store: Arc<Store>,
    pub(super) upstreams: Arc<Upstreams>,
    /// The other boards, if there is a kit.
    pub(super) kit: Option<Arc<Kit>>,
    pub(super) counters: Counters,
    pub(super) pulls: Pulls,
    /// The classes that were found for repositories of which none is written down, where the disk takes no change.
    pub(super) found_classes: Mutex<HashMap<Repository, AccessClass>>,
    stopping: AtomicBool,
}

impl Context {
    pub(super) fn new(config: Arc<Config>, store: Arc<Store>, upstreams: Upstreams) -> Context {
        let kit = config.kit.as_ref().map(|settings| Arc::new(Kit::new(settings)));
        Context {
            config: LiveConfig::new(config),
            store,
            upstreams: Arc::new(upstreams),
            kit,
            counters: Counters::default(),
            pulls: Pulls::default(),
            found_classes: Mutex::default(),
            stopping: AtomicBool::new(false),
        }
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// The upstream of a registry.
    pub(super) fn upstream(&self, registry: &RegistryName) -> Result<Arc<Upstream>, Refusal> {
        self.upstreams.find(registry).cloned().ok_or_else(|| Refusal::UnknownRegistry(registry.clone()))
    }

    /// What the index knows of some content in a repository; nothing while there is no index.
    pub(super) fn known_link(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<ContentLink>, StoreError> {
        match self.store.link(repository, digest) {
            Err(problem) if problem.is_without_index() => Ok(None),
            link => link,
        }
    }

    /// Runs work that may wait for the disk, off the threads that serve connections.
    pub(super) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Context) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Refusal> {
        self.try_blocking(work).await.map_err(|problem| Refusal::from_store(&problem))
    }

    /// The same, for callers that distinguish the store's errors.
    pub(super) async fn try_blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Context) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let context = Arc::clone(self);
        let done = sync::blocking(move || work(&context)).await;
        done.unwrap_or_else(|none| {
            Err(StoreError::Io { what: "cannot ask the store".into(), source: none.into() })
        })
    }
}

/// How long the client of this task waits for what is not here; less where that is another board.
pub(super) fn miss_wait() -> Duration {
    via::way().long(budget::MISS_WAIT_MAX)
}

/// That there was no answer in the time that was waited.
pub(super) fn no_answer_text(of: &str, waited: Duration) -> String {
    // What is left of a wait lacks the little that passed before it began.
    let millis = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX / 2).div_ceil(10) * 10;
    format!("{of} did not answer within {:?}", Duration::from_millis(millis))
}

/// The state of a link in the terms of `decide`.
pub(super) fn reach(link: &LinkState) -> Reach {
    match link {
        LinkState::NotAsked => Reach::NotAsked,
        LinkState::Up => Reach::Up,
        LinkState::Slow { .. } => Reach::Slow,
        // What is not here may be had, as after an outage that is only remembered.
        LinkState::Down { restored: true, .. } | LinkState::Failing { .. } => Reach::RememberedDown,
        LinkState::Down { restored: false, .. } => Reach::Down,
    }
}

/// How long an upstream has been down, and why: `docker.io is unreachable for 5 min (since 12:03 UTC):
/// registry-1.docker.io:443: connection refused`. The length is in running time; the other only while the clock is trusted.
pub fn outage_text(upstream: &Upstream) -> String {
    link_text(upstream.name(), upstream.link())
}

/// The same of a link that is known.
pub(super) fn link_text(name: &RegistryName, link: LinkState) -> String {
    match link {
        LinkState::Down { cause, restored: true, .. } => {
            format!("{name} is unreachable since before larder started: {cause}")
        }
        LinkState::Down { since, cause, restored: false } => {
            format!("{name} is unreachable for {}: {cause}", lasted(since))
        }
        LinkState::Failing { since, cause } => {
            format!("{name} fails to answer for {}: {cause}", lasted(since))
        }
        LinkState::Slow { since } => format!("{name} is slow for {}", lasted(since)),
        LinkState::Up => format!("{name} can be reached"),
        LinkState::NotAsked => format!("{name} has not been asked yet"),
    }
}

fn lasted(since: Instant) -> String {
    let (lasted, now) = (since.elapsed(), clock::trusted_unix());
    let began = now.map(|now| clock::rfc3339(now.saturating_sub(lasted.as_secs())));
    let began = began.as_deref().and_then(|began| began.split_once('T'));
    let text = lasted_text(lasted);
    match began.map(|(day, time)| (day, time.get(..5).unwrap_or(time))) {
        None => text,
        Some((_, time)) if lasted < Duration::from_secs(86_400) => format!("{text} (since {time} UTC)"),
        Some((day, time)) => format!("{text} (since {day} {time} UTC)"),
    }
}

/// The failure of a question that was not asked because the upstream is down.
pub(super) fn outage(upstream: &Upstream) -> Failure {
    Failure::Unreachable { cause: Cause::Connection, detail: outage_text(upstream) }
}

/// Why content is not served while its upstream is known to be down.
pub(super) fn unavailable(upstream: &Upstream, digest: &Digest) -> Refusal {
    Refusal::Unavailable(format!("{}; {digest} is not cached", outage_text(upstream)))
}

/// A listener for content that arrives in a repository. The tag part implements it, so that the parts that bring content
/// know nothing of tags.
pub(super) trait Arrivals: Send + Sync {
    /// This content of `repository` is on the disk now.
    fn arrived(&self, repository: &Repository, digest: &Digest);
}

/// A context over a store of its own, for tests.
#[cfg(test)]
pub(super) mod testing {
    use super::*;
    use crate::image::tests::Board;
    use crate::oci::Algorithm;

    /// A context whose configuration is `toml`, over the store of a board, which goes with it.
    pub(in crate::mirror) fn context(toml: &str) -> (Board, Arc<Context>) {
        let board = Board::new(&format!("platforms = [\"linux/arm64\"]\n{toml}"));
        let upstreams = Upstreams::new(&board.config).unwrap();
        let context = Context::new(Arc::clone(&board.config), Arc::clone(&board.store), upstreams);
        (board, Arc::new(context))
    }

    /// Stores `size` bytes as an image of their own and marks it as used.
    pub(in crate::mirror) fn put(context: &Context, size: usize, fill: u8) -> Digest {
        let bytes = vec![fill; size];
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        let repository = "docker.io/library/app".parse().unwrap();
        let stored = context.store.put_manifest(
            &repository,
            &digest,
            "application/vnd.oci.image.manifest.v1+json",
            &bytes,
            AccessClass::Public,
        );
        stored.unwrap();
        context.store.touch(&digest);
        digest
    }
}
