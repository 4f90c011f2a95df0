//! The part of a report that only a running server knows. Nothing in here waits or fails.

use super::{ByteSource, Mirror, Tier, outage_text};
use crate::image::Busy;
use crate::oci::RegistryName;
use crate::report::{CountReport, Live, PeerReport, Snapshot, UpstreamState};

impl Mirror {
    /// How this server is doing.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::take(&self.config(), self.store(), Some(self))
    }
}

impl Live for Mirror {
    fn upstream(&self, name: &RegistryName) -> Option<(UpstreamState, u64)> {
        let upstream = self.upstreams().find(name)?;
        let state = UpstreamState::Live(upstream.link(), outage_text(upstream));
        Some((state, upstream.bytes()))
    }

    fn peers(&self) -> Vec<PeerReport> {
        let peers = Mirror::peers(self).into_iter().map(|peer| PeerReport {
            address: peer.address.to_string(),
            up: Some(peer.up),
            state: Some(peer.text),
        });
        peers.collect()
    }

    fn fills(&self) -> (u64, u64) {
        let (active, parked) = self.fill_counts();
        (active as u64, parked as u64)
    }

    fn counts(&self) -> CountReport {
        let counters = self.counters();
        CountReport {
            resolves: Tier::ALL.map(|tier| (tier.as_str(), counters.resolves(tier))).to_vec(),
            served_bytes: ByteSource::ALL
                .map(|source| (source.as_str(), counters.served_bytes(source)))
                .to_vec(),
            evicted_bytes: counters.evicted_bytes(),
            evicted_wanted: counters.evicted_wanted(),
        }
    }

    fn busy(&self) -> Busy {
        Mirror::busy(self)
    }
}
