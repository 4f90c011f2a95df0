//! The files that make clients use larder: what they should contain, how they are merged into what is there, and
//! whether they make a client use larder.
//!
//! - `containerd`, `k3s`, `podman`, `docker`: one client each, pure: text in, text out
//! - `toml_text`, `yaml_text`, `json_text`: where in a text a key stands, so that everything else stays as it is
//! - [`files`], `record`, `root`: the only files that touch the disk: backups, crash-safe writes, undo
//! - [`sandbox_images`]: the image that a runtime needs beside each pod
//! - [`routing`]: does a client use larder
//!
//! Nothing that a user wrote is lost: each merge is compared with what it should have led to, and one that cannot be
//! made without touching something else is refused with what to do by hand.

mod containerd;
mod docker;
pub mod files;
mod json_text;
mod k3s;
mod podman;
mod record;
mod root;
pub mod routing;
mod sandbox;
mod toml_text;
mod yaml_text;

#[cfg(test)]
mod tests;

use crate::config::{Config, EndpointSettings};
use crate::oci::{RegistryName, quoted};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use sandbox::{SandboxImages, sandbox_images};

/// A program that pulls images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Client {
    /// containerd by itself, for Kubernetes, nerdctl and `ctr`.
    Containerd,
    /// K3s with the containerd that is built into it.
    K3s,
    /// podman, and CRI-O, buildah and skopeo, which read the same files.
    Podman,
    /// Docker.
    Docker,
}

impl Client {
    /// Every client.
    pub const ALL: [Client; 4] = [Client::Containerd, Client::K3s, Client::Podman, Client::Docker];

    /// Its name, as in `larder config NAME`.
    pub fn name(self) -> &'static str {
        match self {
            Client::Containerd => "containerd",
            Client::K3s => "k3s",
            Client::Podman => "podman",
            Client::Docker => "docker",
        }
    }

    /// How the client is made to read its files again.
    pub fn takes_effect(self) -> &'static str {
        match self {
            Client::Containerd => {
                "config.toml is read when containerd starts: systemctl restart containerd; hosts.toml at each pull"
            }
            Client::K3s => {
                "read when K3s starts: systemctl restart k3s (k3s-agent on an agent); every node needs the file"
            }
            Client::Podman => "podman, buildah and skopeo read it at each pull; CRI-O: systemctl reload crio",
            Client::Docker => "read when Docker starts: systemctl restart docker",
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a client asks when larder does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// The origin is asked after larder.
    Fallback,
    /// Larder alone is asked.
    Sealed,
}

impl FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fallback" => Ok(Profile::Fallback),
            "sealed" => Ok(Profile::Sealed),
            other => Err(format!(
                "{} is not a profile, expected fallback (the origin is asked after larder) or sealed (larder alone)",
                quoted(other)
            )),
        }
    }
}

/// Larder as its clients see it.
#[derive(Clone, Debug)]
pub struct MirrorAddress {
    /// `http://127.0.0.1:5000`
    url: String,
    /// Other addresses at which this board reaches it.
    also: Vec<String>,
    /// The certificate that larder shows, if it serves HTTPS.
    certificate: Option<PathBuf>,
    /// The registry meant by a request that names none.
    default_registry: RegistryName,
    origins: Vec<Origin>,
}

/// A registry that larder stands before.
#[derive(Clone, Debug)]
struct Origin {
    name: RegistryName,
    url: String,
    /// The address is the owner's, not one that is built in.
    url_configured: bool,
    ca_file: Option<PathBuf>,
}

impl MirrorAddress {
    /// What `config` says of it. `address`, such as `http://10.0.0.2:5000`, is where clients reach it if that is
    /// elsewhere than on this board.
    ///
    /// # Errors
    /// A sentence that says why clients cannot be sent there.
    pub fn of(config: &Config, address: Option<&str>) -> Result<MirrorAddress, String> {
        let scheme = if config.tls.is_some() { "https" } else { "http" };
        let url = match address {
            Some(address) => checked_address(address)?,
            None => format!("{scheme}://{}", reachable(&config.listen)?),
        };
        let mut also = Vec::new();
        for listen in config.listen.iter().filter(|_| address.is_none()) {
            let ip = listen.ip();
            if ip.is_loopback() || ip.is_unspecified() {
                also.push(format!("{scheme}://localhost:{}", listen.port()));
            }
            if ip.is_unspecified() {
                also.push(format!("{scheme}://127.0.0.1:{}", listen.port()));
            } else {
                also.push(format!("{scheme}://{listen}"));
            }
        }
        let certificate = config.tls.as_ref().map(|tls| tls.cert_file.clone());
        let origin = |upstream: &crate::config::UpstreamSettings| {
            let EndpointSettings { url, url_configured, ca_file, .. } = upstream.origin();
            Origin { name: upstream.name.clone(), url, url_configured, ca_file }
        };
        Ok(MirrorAddress {
            certificate: certificate.filter(|_| url.starts_with("https://")),
            url,
            also,
            default_registry: config.default_registry.clone(),
            origins: config.upstreams.iter().map(origin).collect(),
        })
    }

    /// `http://127.0.0.1:5000`
    pub fn url(&self) -> &str {
        &self.url
    }

    /// `127.0.0.1:5000`
    fn authority(&self) -> &str {
        self.url.split_once("://").map_or(self.url.as_str(), |(_, authority)| authority)
    }

    fn is_https(&self) -> bool {
        self.url.starts_with("https://")
    }

    /// Whether a client on this board reaches it without leaving the board.
    fn is_loopback(&self) -> bool {
        let host = self.authority().rsplit_once(':').map_or(self.authority(), |(host, _)| host);
        host == "localhost"
            || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// Whether an address in a client's file is this one: clients take it with and without `/v2` and a slash.
    fn is_at(&self, url: &str) -> bool {
        let plain = url.trim_end_matches('/');
        let plain = plain.strip_suffix("/v2").unwrap_or(plain);
        self.also.iter().chain([&self.url]).any(|own| plain.eq_ignore_ascii_case(own))
    }
}

/// The address of `listen` that a client on this board reaches best.
fn reachable(listen: &[SocketAddr]) -> Result<SocketAddr, String> {
    let rank = |address: &&SocketAddr| match address.ip() {
        ip if ip.is_loopback() => 0,
        ip if ip.is_unspecified() => 1,
        _ => 2,
    };
    let best = listen.iter().filter(|address| address.port() != 0).min_by_key(rank);
    let mut best = *best.ok_or("larder listens on no port that is known before it starts; set listen")?;
    if best.ip().is_unspecified() {
        best.set_ip(if best.is_ipv4() {
            IpAddr::from(std::net::Ipv4Addr::LOCALHOST)
        } else {
            IpAddr::from(std::net::Ipv6Addr::LOCALHOST)
        });
    }
    Ok(best)
}

fn checked_address(text: &str) -> Result<String, String> {
    let plain = text.strip_suffix('/').unwrap_or(text);
    let authority = plain.strip_prefix("https://").or_else(|| plain.strip_prefix("http://"));
    match authority {
        Some(authority) if authority.parse::<RegistryName>().is_ok() => Ok(plain.to_owned()),
        _ => Err(format!("--address is {}, expected http://HOST:PORT or https://HOST:PORT", quoted(text))),
    }
}

/// A file as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Where it belongs, from the root of the board's file system.
    pub path: PathBuf,
    /// All of it.
    pub text: String,
}

/// What is there already.
pub trait Present {
    /// The text of a file; `None` if there is none.
    ///
    /// # Errors
    /// A sentence that names the file and says why it cannot be read, or is not text.
    fn read(&self, path: &Path) -> Result<Option<String>, String>;

    /// The files of a folder, sorted; none if there is no folder.
    ///
    /// # Errors
    /// A sentence that names the folder.
    fn list(&self, folder: &Path) -> Result<Vec<PathBuf>, String>;
}

/// A board with none of these files.
pub struct Nothing;

impl Present for Nothing {
    fn read(&self, _: &Path) -> Result<Option<String>, String> {
        Ok(None)
    }

    fn list(&self, _: &Path) -> Result<Vec<PathBuf>, String> {
        Ok(Vec::new())
    }
}

/// The files of `client`, merged with what is there.
///
/// # Errors
/// Sentences, one a line, that say which file cannot be merged, why, and what to do by hand.
pub fn wanted(
    client: Client,
    mirror: &MirrorAddress,
    profile: Profile,
    present: &dyn Present,
) -> Result<Vec<Wanted>, String> {
    match client {
        Client::Containerd => containerd::wanted(mirror, profile, present),
        Client::K3s => k3s::wanted(mirror, profile, present),
        Client::Podman => podman::wanted(mirror, profile, present),
        Client::Docker => docker::wanted(mirror, profile, present),
    }
}

/// What the owner should know about a client's files besides their content.
pub fn remarks(client: Client, mirror: &MirrorAddress, profile: Profile) -> Vec<String> {
    let mut remarks = Vec::new();
    match (client, profile) {
        (Client::K3s, Profile::Sealed) => remarks.push(
            "sealed holds with disable-default-registry-endpoint (K3s releases since January 2024), which the second file sets; it \
             is what --disable-default-registry-endpoint sets, and it holds for the registries named in the first"
                .to_owned(),
        ),
        (Client::Podman, Profile::Sealed) => remarks
            .push("registries that are not named are still asked by podman itself".to_owned()),
        (Client::Docker, Profile::Fallback) => remarks
            .push("Docker asks a mirror for docker.io alone, and always the origin after it".to_owned()),
        _ => {}
    }
    if let Some(certificate) = &mirror.certificate {
        let certificate = certificate.display();
        let authority = mirror.authority();
        match client {
            Client::Containerd | Client::K3s => remarks.push(format!(
                "the files name {certificate} as the certificate to trust; it has to be valid for {authority}"
            )),
            Client::Podman => remarks.push(format!(
                "podman trusts the system's authorities; one of your own goes to /etc/containers/certs.d/{authority}/ca.crt"
            )),
            Client::Docker => remarks.push(format!(
                "Docker trusts the system's authorities; one of your own goes to /etc/docker/certs.d/{authority}/ca.crt"
            )),
        }
    }
    remarks
}

/// The line ends of a text: what is added to it has the same.
fn line_end(text: &str) -> &'static str {
    if text.contains("\r\n") { "\r\n" } else { "\n" }
}

/// `text` with `lines` put in at byte `at`, which is the beginning of a line or the end of the text.
fn with_lines(text: &str, at: usize, lines: &str) -> String {
    let end = line_end(text);
    let lines = if end == "\n" { lines.to_owned() } else { lines.replace('\n', end) };
    let (before, after) = text.split_at(at);
    let gap = if before.is_empty() || before.ends_with('\n') || before == BOM { "" } else { end };
    format!("{before}{gap}{lines}{after}")
}

/// What some editors begin a file with; it belongs to no line.
const BOM: &str = "\u{feff}";
