//! What the mirror counts about itself, for `status` and the metrics.

use std::sync::atomic::{AtomicU64, Ordering};

/// Which rule answered a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tier {
    /// Verified with upstream less than `revalidate` ago.
    Fresh,
    /// Upstream answered.
    Upstream,
    /// A peer has a newer version that it verified.
    Peer,
    /// The newest complete version of the tag.
    LastComplete,
    /// The newest complete version of the repository.
    OlderVersion,
    /// Nothing could be served.
    None,
}

impl Tier {
    /// Every tier, best first.
    pub const ALL: [Tier; 6] =
        [Tier::Fresh, Tier::Upstream, Tier::Peer, Tier::LastComplete, Tier::OlderVersion, Tier::None];

    /// The name in logs, headers and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Tier::Fresh => "fresh",
            Tier::Upstream => "upstream",
            Tier::Peer => "peer",
            Tier::LastComplete => "last-complete",
            Tier::OlderVersion => "older-version",
            Tier::None => "none",
        }
    }

    /// Whether the answer may be older than what upstream has.
    pub fn is_stale(self) -> bool {
        matches!(self, Tier::Peer | Tier::LastComplete | Tier::OlderVersion)
    }
}

/// Where served bytes came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// They were on the disk.
    Cache,
    /// They were being fetched.
    Fill,
    /// A peer had them.
    Peer,
}

impl Source {
    /// Every source.
    pub const ALL: [Source; 3] = [Source::Cache, Source::Fill, Source::Peer];

    /// The name in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Source::Cache => "cache",
            Source::Fill => "fill",
            Source::Peer => "peer",
        }
    }
}

/// Counts since the start.
#[derive(Debug, Default)]
pub struct Counters {
    resolves: [AtomicU64; Tier::ALL.len()],
    served_bytes: [AtomicU64; Source::ALL.len()],
    evicted_bytes: AtomicU64,
}

impl Counters {
    /// Tags answered by `tier`.
    pub fn resolves(&self, tier: Tier) -> u64 {
        self.resolves[tier as usize].load(Ordering::Relaxed)
    }

    /// Content bytes given to clients from `source`.
    pub fn served_bytes(&self, source: Source) -> u64 {
        self.served_bytes[source as usize].load(Ordering::Relaxed)
    }

    /// Bytes that were removed to make room.
    pub fn evicted_bytes(&self) -> u64 {
        self.evicted_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn count_evicted(&self, bytes: u64) {
        self.evicted_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn count_resolve(&self, tier: Tier) {
        self.resolves[tier as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_served(&self, source: Source, bytes: u64) {
        self.served_bytes[source as usize].fetch_add(bytes, Ordering::Relaxed);
    }
}
