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
    let mut page = Page(String::new());
    page.each(
        "larder_resolves_total",
        "counter",
        "Tags answered, by the tier that answered.",
        "tier",
        report.counts.resolves.iter().copied(),
    );
    page.each(
        "larder_served_bytes_total",
        "counter",
        "Content bytes given to clients, by where they came from.",
        "source",
        report.counts.served_bytes.iter().copied(),
    );
    page.each(
        "larder_upstream_bytes_total",
        "counter",
        "Bytes taken from an upstream.",
        "upstream",
        report.upstreams.iter().map(|upstream| (upstream.name.as_str(), upstream.bytes)),
    );
    page.each(
        "larder_upstream_up",
        "gauge",
        "Whether an upstream can be reached.",
        "upstream",
        report.upstreams.iter().map(|upstream| (upstream.name.as_str(), u64::from(!upstream.is_down()))),
    );
    if !report.peers.is_empty() {
        let up = |state: &Option<(bool, String)>| u64::from(state.as_ref().is_some_and(|(up, _)| *up));
        page.each(
            "larder_peer_up",
            "gauge",
            "Whether a peer may be asked, and is not left out for a failure.",
            "peer",
            report.peers.iter().map(|peer| (peer.address.as_str(), up(&peer.state))),
        );
    }
    page.one("larder_disk_used_bytes", "gauge", "Bytes of whole blobs.", report.stored_bytes);
    if let Some(max) = report.max_bytes {
        page.one("larder_disk_max_bytes", "gauge", "The configured disk.max.", max);
    }
    let evicted = report.counts.evicted_bytes;
    page.one("larder_evicted_bytes_total", "counter", "Bytes removed to make room.", evicted);
    let corrupt = report.corrupt_blobs;
    page.one("larder_corrupt_blobs_total", "counter", "Blobs found not to hash to their name.", corrupt);
    let memory = report.memory_max_bytes;
    page.one("larder_memory_budget_bytes", "gauge", "The configured memory.max.", memory);
    page.0
}

struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.head(name, kind, help);
        let _ = writeln!(self.0, "{name} {value}");
    }

    fn each<'a>(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        label: &str,
        values: impl Iterator<Item = (&'a str, u64)>,
    ) {
        self.head(name, kind, help);
        for (of, value) in values {
            let _ = writeln!(self.0, "{name}{{{label}=\"{of}\"}} {value}");
        }
    }
}
