//! How larder is doing: one snapshot for `larder status`, `/metrics`, `/readyz` and systemd's status line, so that they
//! agree.
//!
//! [`Snapshot`] is cheap: it asks memory alone while the server runs. [`ImageReport`] reads every image; [`ImageCache`]
//! keeps it while the store does not change. [`Live`] is what only a running server knows; it is absent when a command
//! works on the store of a stopped one. Failure is the store's.

mod images;

pub use images::{ImageCache, ImageReport};

use crate::clock;
use crate::config::{self, Config};
use crate::fetch::LinkState;
use crate::image::Busy;
use crate::oci::RegistryName;
use crate::store::Store;
use serde::{Deserialize, Serialize};

/// What only a running server knows.
pub trait Live: Send + Sync {
    /// The state of an upstream, and the bytes taken from it since the start.
    fn upstream(&self, name: &RegistryName) -> Option<(UpstreamState, u64)>;
    /// The other boards of the kit.
    fn peers(&self) -> Vec<PeerReport>;
    /// Downloads that are under way or queued, and those that wait for their upstream.
    fn fills(&self) -> (u64, u64);
    /// Counts since the start.
    fn counts(&self) -> CountReport;
    /// What must not be removed now.
    fn busy(&self) -> Busy;
}

/// Counts since the start, each with its label.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CountReport {
    /// Tags answered, by tier.
    pub resolves: Vec<(&'static str, u64)>,
    /// Content bytes given to clients, by where they came from.
    pub served_bytes: Vec<(&'static str, u64)>,
    /// Bytes removed to make room.
    pub evicted_bytes: u64,
    /// Images that the owner wanted to stay and that gave way to other programs all the same.
    pub evicted_wanted: u64,
}

/// Whether tags can be answered from the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexReport {
    /// They can.
    Ready,
    /// The index is being rebuilt.
    Rebuilding,
    /// The disk takes no new index.
    CannotRebuild,
}

/// One upstream.
#[derive(Debug, Clone)]
pub struct UpstreamReport {
    /// The registry.
    pub name: RegistryName,
    /// Its address.
    pub url: String,
    /// Whether it can be reached.
    pub state: UpstreamState,
    /// Bytes taken from it since the start.
    pub bytes: u64,
}

/// Whether an upstream can be reached.
#[derive(Debug, Clone)]
pub enum UpstreamState {
    /// The server runs: the link, and the same for people.
    Live(LinkState, String),
    /// The server is stopped; why the upstream could not be reached when it ran last.
    WasDown(String),
    /// The server is stopped, and nothing is remembered.
    Unknown,
}

impl UpstreamReport {
    /// Whether it is known to be out of reach now, or to answer with failures only.
    pub fn is_down(&self) -> bool {
        let UpstreamState::Live(link, _) = &self.state else { return false };
        matches!(link, LinkState::Down { .. } | LinkState::Failing { .. })
    }
}

/// One peer; `None` when the server is stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerReport {
    /// Its address.
    pub address: String,
    /// Whether it may be asked, or is left out after a failure.
    pub up: Option<bool>,
    /// The same for people, with the cause.
    pub state: Option<String>,
}

/// How larder is doing: the cheap part.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Whether tags can be answered from the disk.
    pub index: IndexReport,
    /// Bytes of verified blobs.
    pub stored_bytes: u64,
    /// `disk.max`, if it is set.
    pub max_bytes: Option<u64>,
    /// `memory.max`.
    pub memory_max_bytes: u64,
    /// Corrupt blobs found since the start.
    pub corrupt_blobs: u64,
    /// Downloads under way or queued.
    pub fills: u64,
    /// Downloads that wait for their upstream.
    pub fills_parked: u64,
    /// Counts since the start.
    pub counts: CountReport,
    /// The upstreams, by name.
    pub upstreams: Vec<UpstreamReport>,
    /// The other boards of the kit.
    pub peers: Vec<PeerReport>,
    /// Whether the wall clock is trusted.
    pub clock_trusted: bool,
}

impl Snapshot {
    /// Takes one. `live`: the server, if it runs.
    pub fn take(config: &Config, store: &Store, live: Option<&dyn Live>) -> Snapshot {
        let peers = config.kit.iter().flat_map(|kit| &kit.peers).map(ToString::to_string);
        let (fills, fills_parked) = live.map(Live::fills).unwrap_or_default();
        Snapshot {
            index: match (store.has_index(), store.cannot_rebuild()) {
                (true, _) => IndexReport::Ready,
                (false, false) => IndexReport::Rebuilding,
                (false, true) => IndexReport::CannotRebuild,
            },
            stored_bytes: store.stored_bytes(),
            max_bytes: config.disk.max,
            memory_max_bytes: config.memory_max,
            corrupt_blobs: store.corrupt_blobs(),
            fills,
            fills_parked,
            counts: live.map(Live::counts).unwrap_or_default(),
            upstreams: config.upstreams.iter().map(|settings| upstream(settings, store, live)).collect(),
            peers: match live {
                Some(live) => live.peers(),
                None => peers.map(|address| PeerReport { address, up: None, state: None }).collect(),
            },
            clock_trusted: clock::trusted_unix().is_some(),
        }
    }
}

fn upstream(settings: &config::UpstreamSettings, store: &Store, live: Option<&dyn Live>) -> UpstreamReport {
    let remembered = || match store.note(&settings.outage_note(0)) {
        Ok(Some(cause)) => UpstreamState::WasDown(cause),
        Ok(None) => UpstreamState::Unknown,
        Err(problem) => {
            log::warn!("the last state of {} is not known: {problem}", settings.name);
            UpstreamState::Unknown
        }
    };
    let first = settings.endpoints.first();
    let (name, url) = (settings.name.clone(), first.map_or(String::new(), |first| first.url.clone()));
    let (state, bytes) = live.and_then(|live| live.upstream(&name)).unwrap_or_else(|| (remembered(), 0));
    UpstreamReport { name, url, state, bytes }
}

#[cfg(test)]
mod tests;
