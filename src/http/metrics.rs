//! `/metrics`: the Prometheus text format, version 0.0.4.

use super::answer::{self, Answer};
use crate::fetch::LinkState;
use crate::mirror::{ByteSource, Mirror, Tier};
use hyper::StatusCode;
use std::fmt::Write;

pub(super) fn answer(mirror: &Mirror) -> Answer {
    answer::full(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", render(mirror))
}

fn render(mirror: &Mirror) -> String {
    let counters = mirror.counters();
    let mut page = Page(String::new());
    page.family("larder_resolves_total", "counter", "Tags answered, by the tier that answered.");
    for tier in Tier::ALL {
        page.sample("larder_resolves_total", &format!("tier=\"{}\"", tier.as_str()), counters.resolves(tier));
    }
    page.family(
        "larder_served_bytes_total",
        "counter",
        "Content bytes given to clients, by where they came from.",
    );
    for source in ByteSource::ALL {
        let label = format!("source=\"{}\"", source.as_str());
        page.sample("larder_served_bytes_total", &label, counters.served_bytes(source));
    }
    page.family("larder_upstream_bytes_total", "counter", "Bytes taken from an upstream.");
    for upstream in mirror.upstreams().iter() {
        page.sample(
            "larder_upstream_bytes_total",
            &format!("upstream=\"{}\"", upstream.name()),
            upstream.bytes(),
        );
    }
    page.family("larder_upstream_up", "gauge", "Whether an upstream can be reached.");
    for upstream in mirror.upstreams().iter() {
        let up = !matches!(upstream.link(), LinkState::Down { .. });
        page.sample("larder_upstream_up", &format!("upstream=\"{}\"", upstream.name()), u64::from(up));
    }
    let peers = mirror.peers();
    if !peers.is_empty() {
        page.family(
            "larder_peer_up",
            "gauge",
            "Whether a peer may be asked, and is not left out for a failure.",
        );
    }
    for peer in peers {
        page.sample("larder_peer_up", &format!("peer=\"{}\"", peer.address), u64::from(peer.up));
    }
    page.family("larder_disk_used_bytes", "gauge", "Bytes of whole blobs.");
    page.sample("larder_disk_used_bytes", "", mirror.store().stored_bytes());
    if let Some(max) = mirror.config().disk.max {
        page.family("larder_disk_max_bytes", "gauge", "The configured disk.max.");
        page.sample("larder_disk_max_bytes", "", max);
    }
    page.family("larder_evicted_bytes_total", "counter", "Bytes removed to make room.");
    page.sample("larder_evicted_bytes_total", "", counters.evicted_bytes());
    page.family("larder_corrupt_blobs_total", "counter", "Blobs found not to hash to their name.");
    page.sample("larder_corrupt_blobs_total", "", mirror.store().corrupt_blobs());
    page.family("larder_memory_budget_bytes", "gauge", "The configured memory.max.");
    page.sample("larder_memory_budget_bytes", "", mirror.config().memory_max);
    page.0
}

struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, label: &str, value: u64) {
        let label = if label.is_empty() { String::new() } else { format!("{{{label}}}") };
        let _ = writeln!(self.0, "{name}{label} {value}");
    }
}
