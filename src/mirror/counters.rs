//! Counters of the mirror, for `status` and the metrics.

use crate::decide::Tier;
use std::sync::atomic::{AtomicU64, Ordering};

/// Where served bytes came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ByteSource {
    /// They were on the disk.
    Cache,
    /// They were being fetched.
    Fill,
    /// A peer had them.
    Peer,
}

impl ByteSource {
    /// Every source.
    pub const ALL: [ByteSource; 3] = [ByteSource::Cache, ByteSource::Fill, ByteSource::Peer];

    /// The name in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            ByteSource::Cache => "cache",
            ByteSource::Fill => "fill",
            ByteSource::Peer => "peer",
        }
    }
}

/// Counts since the start.
#[derive(Debug, Default)]
pub struct Counters {
    resolves: [AtomicU64; Tier::ALL.len()],
    served_bytes: [AtomicU64; ByteSource::ALL.len()],
    evicted_bytes: AtomicU64,
    evicted_wanted: AtomicU64,
}

impl Counters {
    /// Tags answered by `tier`.
    pub fn resolves(&self, tier: Tier) -> u64 {
        self.resolves[tier as usize].load(Ordering::Relaxed)
    }

    /// Content bytes given to clients from `source`.
    pub fn served_bytes(&self, source: ByteSource) -> u64 {
        self.served_bytes[source as usize].load(Ordering::Relaxed)
    }

    /// Bytes that were removed to make room.
    pub fn evicted_bytes(&self) -> u64 {
        self.evicted_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn count_evicted(&self, bytes: u64) {
        self.evicted_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Images that the owner wanted to stay and that gave way to other programs all the same.
    pub fn evicted_wanted(&self) -> u64 {
        self.evicted_wanted.load(Ordering::Relaxed)
    }

    pub(crate) fn count_evicted_wanted(&self) {
        self.evicted_wanted.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_resolve(&self, tier: Tier) {
        self.resolves[tier as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_served(&self, source: ByteSource, bytes: u64) {
        self.served_bytes[source as usize].fetch_add(bytes, Ordering::Relaxed);
    }
}
