//! What a report says of a running server. Nothing in here waits or fails.

use super::{ByteSource, Mirror, Tier, outage_text};
use crate::image::Busy;
use crate::report::{CountReport, FillReport, Live, LiveUpstream, PeerReport, Snapshot};

impl Mirror {
    /// How this server is doing.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::take(&self.config, &self.store, Some(self))
    }
}

impl Live for Mirror {
    fn upstreams(&self) -> Vec<LiveUpstream> {
        let upstreams = self.upstreams.iter().map(|upstream| LiveUpstream {
            name: upstream.name().clone(),
            link: upstream.breaker().link(),
            text: outage_text(upstream),
            bytes: upstream.bytes(),
        });
        upstreams.collect()
    }

    fn peers(&self) -> Vec<PeerReport> {
        let peers = Mirror::peers(self)
            .into_iter()
            .map(|peer| PeerReport { address: peer.address.to_string(), state: Some((peer.up, peer.text)) });
        peers.collect()
    }

    fn fills(&self) -> FillReport {
        let (active, parked) = self.fill_counts();
        FillReport { active: active as u64, parked: parked as u64 }
    }

    fn counts(&self) -> CountReport {
        let counters = &self.counters;
        CountReport {
            resolves: Tier::ALL.map(|tier| (tier.as_str(), counters.resolves(tier))).to_vec(),
            served_bytes: ByteSource::ALL
                .map(|source| (source.as_str(), counters.served_bytes(source)))
                .to_vec(),
            evicted_bytes: counters.evicted_bytes(),
        }
    }

    fn busy(&self) -> Busy {
        Mirror::busy(self)
    }
}
