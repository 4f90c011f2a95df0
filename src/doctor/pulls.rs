//! Clients: are they sent here, and what do they keep of what larder keeps.

use super::{Finding, System};
use crate::budget;
use crate::clients::files::Root;
use crate::clients::routing::{self, Routing};
use crate::clients::{Client, MirrorAddress, Nothing, Present};
use crate::config::Config;
use crate::files;
use crate::oci::{Algorithm, Digest, Kind, Manifest};
use crate::text::bytes_text;
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

const CLIENT: &str = "client";
const DUPLICATES: &str = "duplicates";
/// Where containerd keeps content, below its data.
const CONTENT: &str = "io.containerd.content.v1.content/blobs/sha256";
const CONTAINERD: &str = "/var/lib/containerd";
const K3S: &str = "/var/lib/rancher/k3s/agent/containerd";

/// What shows that a client is on a board.
fn signs(client: Client) -> &'static [&'static str] {
    match client {
        Client::Containerd => {
            &["/usr/bin/containerd", "/usr/local/bin/containerd", "/etc/containerd/config.toml"]
        }
        Client::K3s => &["/usr/local/bin/k3s", "/usr/bin/k3s", "/etc/rancher/k3s", "/var/lib/rancher/k3s"],
        Client::Podman => &["/usr/bin/podman", "/usr/bin/crio", "/usr/local/bin/crio", "/usr/bin/buildah"],
        Client::Docker => {
            &["/usr/bin/dockerd", "/usr/sbin/dockerd", "/usr/local/bin/dockerd", "/etc/docker/daemon.json"]
        }
    }
}

fn has(system: &System, client: Client) -> bool {
    signs(client).iter().any(|sign| system.has(sign))
}

pub(super) fn has_k3s(system: &System) -> bool {
    has(system, Client::K3s)
}

pub(super) fn clients(config: &Config, system: &System) -> Vec<Finding> {
    let mirror = match MirrorAddress::of(config, None) {
        Ok(mirror) => mirror,
        Err(problem) => return vec![Finding::note(CLIENT, problem)],
    };
    let root = match Root::new(&system.root) {
        Ok(root) => root,
        Err(problem) => return vec![Finding::note(CLIENT, problem)],
    };
    let there: Vec<Client> = Client::ALL.into_iter().filter(|client| has(system, *client)).collect();
    if there.is_empty() {
        return vec![Finding::note(
            CLIENT,
            "neither containerd nor K3s, podman or Docker was found on this board",
        )];
    }
    // Docker and K3s bring a containerd that reads no such files, or not these.
    let only_theirs = there.contains(&Client::Docker) && !system.has("/usr/bin/kubelet");
    let look = |client: &Client| {
        let routing = routing::look(*client, &mirror, &root);
        client_finding(*client, &mirror, routing, *client == Client::Containerd && only_theirs)
    };
    there.iter().map(look).collect()
}

fn client_finding(client: Client, mirror: &MirrorAddress, routing: Routing, minor: bool) -> Finding {
    let url = mirror.url();
    let mend = format!("larder config {client} --write");
    let restart = client.takes_effect();
    if !routing.not_read_yet.is_empty() {
        let names = routing.not_read_yet.join(", ");
        let what =
            format!("{client} has not been restarted since it was configured to use {url} for {names}");
        return Finding::warning(CLIENT, what, "systemctl restart k3s");
    }
    if routing.passed_by.is_empty() {
        return Finding::ok(CLIENT, format!("{client} asks {url} for {} registries", routing.sent.len()));
    }
    let problem = routing.problem.map_or_else(
        || format!("{} does not name it", routing::file_of(client)),
        |problem| problem.lines().next().unwrap_or_default().to_owned(),
    );
    if routing.sent.is_empty() {
        let what = format!("{client} is not sent to {url}: {problem}");
        return if minor {
            let why = "with Docker on the board it may not pull anything itself";
            Finding::note(CLIENT, format!("{what}; {why}")).with(format!("{mend} ({restart})"))
        } else {
            Finding::warning(CLIENT, what, format!("{mend} ({restart})"))
        };
    }
    let what = format!("{client} is not sent to {url} for {}", routing.passed_by.join(", "));
    Finding::warning(CLIENT, what, format!("{mend} ({restart})"))
}

pub(super) fn duplicates(config: &Config, system: &System) -> Vec<Finding> {
    let root = Root::new(&system.root);
    let present: &dyn Present = root.as_ref().map_or(&Nothing as &dyn Present, |root| root);
    let own = routing::containerd_data(present).unwrap_or_else(|| PathBuf::from(CONTAINERD));
    let stores = [("containerd", own), ("k3s", PathBuf::from(K3S))];
    let finding = |(client, data): (&'static str, PathBuf)| {
        let folder = system.at(&data.join(CONTENT).display().to_string());
        match Stock::take(&folder, &config.data_dir) {
            Ok(stock) => stock.map(|stock| stock.finding(client, discards(client, present))),
            Err(problem) => Some(Finding::note(DUPLICATES, problem)),
        }
    };
    stores.into_iter().filter_map(finding).collect()
}

/// Whether the client's configuration says already that layers go when they are unpacked.
fn discards(client: &str, present: &dyn Present) -> bool {
    let file = match client {
        "k3s" => "/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
        _ => routing::file_of(Client::Containerd),
    };
    let text = present.read(Path::new(file)).ok().flatten().unwrap_or_default();
    text.lines().any(|line| {
        let plain: String = line.chars().filter(|c| !c.is_whitespace()).collect();
        plain.starts_with("discard_unpacked_layers=true")
    })
}

/// What a containerd keeps.
#[derive(Debug, Default, PartialEq, Eq)]
struct Stock {
    blobs: usize,
    /// Bytes that larder has too.
    twice: u64,
    /// Bytes of layers, which containerd needs only until they are unpacked.
    layers: u64,
    /// There are more than were looked at.
    more: bool,
}

impl Stock {
    /// `None`: there is no such store.
    fn take(folder: &Path, data_dir: &Path) -> Result<Option<Stock>, String> {
        let failed = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::PermissionDenied => format!("{} can only be read by root", folder.display()),
            _ => format!("cannot read {}: {e}", folder.display()),
        };
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        let mut stock = Stock::default();
        let mut blobs: Vec<(Digest, u64)> = Vec::new();
        for entry in entries.flatten() {
            if blobs.len() == budget::DOCTOR_BLOBS_MAX {
                stock.more = true;
                break;
            }
            let Ok(digest) = Digest::from_hex(Algorithm::Sha256, &entry.file_name().to_string_lossy()) else {
                continue;
            };
            if let Ok(meta) = entry.metadata() {
                blobs.push((digest, meta.len()));
            }
        }
        let ours = data_dir.join("blobs").join(Algorithm::Sha256.name());
        let mut layers = HashSet::new();
        let mut left = budget::DOCTOR_MANIFEST_BYTES_MAX;
        // The small ones first, so that what may be read goes as far as it can.
        blobs.sort_by_key(|(_, bytes)| *bytes);
        for (digest, bytes) in &blobs {
            if ours.join(digest.hex()).exists() {
                stock.twice += bytes;
            }
            if *bytes <= budget::MANIFEST_BYTES_MAX && *bytes <= left {
                left -= layers_of(&folder.join(digest.hex()), *bytes, &mut layers);
            }
        }
        stock.blobs = blobs.len();
        stock.layers =
            blobs.iter().filter(|(digest, _)| layers.contains(digest)).map(|(_, bytes)| bytes).sum();
        Ok(Some(stock))
    }

    fn finding(&self, client: &str, discards: bool) -> Finding {
        let more = if self.more { "; there are more that were not checked" } else { "" };
        let what = format!(
            "{client} keeps {} blobs, of which larder has {} too{more}",
            self.blobs,
            bytes_text(self.twice)
        );
        if discards {
            return Finding::ok(DUPLICATES, format!("{what}; it discards unpacked layers"));
        }
        if self.layers == 0 {
            return Finding::ok(DUPLICATES, what);
        }
        let lines = match client {
            "k3s" => {
                "in a config.toml.tmpl next to /var/lib/rancher/k3s/agent/etc/containerd/config.toml, made of it: \
                 discard_unpacked_layers = true where config.toml sets the snapshotter; not with --embedded-registry, \
                 which needs the layers"
            }
            _ => {
                "in /etc/containerd/config.toml: version 2: [plugins.\"io.containerd.grpc.v1.cri\".containerd], version \
                 3: [plugins.\"io.containerd.cri.v1.images\"], there: discard_unpacked_layers = true; it holds for \
                 images pulled after a restart of containerd"
            }
        };
        let saves = format!(
            "{what}; discard_unpacked_layers = true would save {} ({} bytes)",
            bytes_text(self.layers),
            self.layers
        );
        Finding::note(DUPLICATES, saves).with(lines)
    }
}

/// Adds the layers that a file names, if it is an image's manifest. The bytes that were read.
fn layers_of(path: &Path, bytes: u64, layers: &mut HashSet<Digest>) -> u64 {
    // A layer begins with other bytes than a manifest: one byte tells most of them.
    let mut first = [0u8; 1];
    let begins =
        files::open(path).and_then(|file| std::os::unix::fs::FileExt::read_exact_at(&file, &mut first, 0));
    if begins.is_err() || !matches!(first[0], b'{' | b' ' | b'\n' | b'\t' | b'\r') {
        return 1;
    }
    let Ok(content) = files::read(path, bytes) else { return bytes };
    if let Ok(manifest) = Manifest::parse(&content, None)
        && manifest.kind != Kind::Index
    {
        layers.extend(manifest.children.into_iter().filter(|c| c.is_layer).map(|c| c.digest));
    }
    bytes
}
