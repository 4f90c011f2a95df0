//! `/metrics`: the Prometheus text format, version 0.0.4, of the report. Nothing in here waits or fails.

use super::answer::{self, Answer};
use crate::mirror::Mirror;
use crate::report::Snapshot;
use hyper::StatusCode;
use std::fmt::Write;

pub(super) fn answer(mirror: &Mirror) -> Answer {
    answer::full(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", render(&mirror.snapshot()))
}

fn render(report: &Snapshot) -> String {
    let mut page = MetricsPage { text: String::new(), name: "" };
    page.family("larder_resolves_total", "counter", "Tags answered, by the tier that answered.");
    report.counts.resolves.iter().for_each(|(tier, count)| page.labelled("tier", tier, *count));
    let help = "Content bytes given to clients, by where they came from.";
    page.family("larder_served_bytes_total", "counter", help);
    report.counts.served_bytes.iter().for_each(|(source, bytes)| page.labelled("source", source, *bytes));
    page.family("larder_upstream_bytes_total", "counter", "Bytes taken from an upstream.");
    for upstream in &report.upstreams {
        page.labelled("upstream", upstream.name.as_str(), upstream.bytes);
    }
    page.family("larder_upstream_up", "gauge", "Whether an upstream can be reached.");
    for upstream in &report.upstreams {
        page.labelled("upstream", upstream.name.as_str(), u64::from(!upstream.is_down()));
    }
    if !report.peers.is_empty() {
        let help = "Whether a peer may be asked, and is not left out for a failure.";
        page.family("larder_peer_up", "gauge", help);
    }
    for peer in &report.peers {
        page.labelled("peer", &peer.address, u64::from(peer.up == Some(true)));
    }
    page.family("larder_disk_used_bytes", "gauge", "Bytes of whole blobs.");
    page.value(report.stored_bytes);
    if let Some(max) = report.max_bytes {
        page.family("larder_disk_max_bytes", "gauge", "The configured disk.max.");
        page.value(max);
    }
    page.family("larder_evicted_bytes_total", "counter", "Bytes removed to make room.");
    page.value(report.counts.evicted_bytes);
    let help = "Pinned and wanted images removed because other programs fill the disk.";
    page.family("larder_evicted_wanted_total", "counter", help);
    page.value(report.counts.evicted_wanted);
    page.family("larder_corrupt_blobs_total", "counter", "Blobs found not to hash to their name.");
    page.value(report.corrupt_blobs);
    page.family("larder_memory_budget_bytes", "gauge", "The configured memory.max.");
    page.value(report.memory_max_bytes);
    page.text
}

/// The text, and the family that values belong to.
struct MetricsPage {
    text: String,
    name: &'static str,
}

impl MetricsPage {
    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.name = name;
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn value(&mut self, value: u64) {
        let _ = writeln!(self.text, "{} {value}", self.name);
    }

    fn labelled(&mut self, label: &str, of: &str, value: u64) {
        let _ = writeln!(self.text, "{}{{{label}=\"{of}\"}} {value}", self.name);
    }
}
