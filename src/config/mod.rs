//! The configuration: TOML to a [`Config`] that cannot be invalid.
//!
//! `raw` is exactly what was typed; this module is what it means, with every default filled in and every name parsed.
//! The rest of the house takes a `Config` and never looks at TOML.

mod live;
mod load;
mod names;
mod print;
mod raw;
mod secrets;
mod units;
mod upstreams;

pub use live::LiveConfig;
pub use load::{ConfigError, DEFAULT_FILE, Options};

use crate::oci::{Platform, Reference, RegistryName, Repository, RepositoryName, Tag};
use crate::text::Secret;
use ipnet::IpNet;
use serde::Deserialize;
use std::cell::LazyCell;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Everything that can be configured.
#[derive(Clone, Debug)]
pub struct Config {
    /// Addresses the mirror listens on.
    pub listen: Vec<SocketAddr>,
    /// Directory for images and state.
    pub data_dir: PathBuf,
    /// The registry meant by a request that names none.
    pub default_registry: RegistryName,
    /// The platforms for which images are to be complete.
    pub platforms: Vec<Platform>,
    /// `[disk]`
    pub disk: DiskSettings,
    /// `[memory]`: the process's own memory in bytes.
    pub memory_max: u64,
    /// `[fetch]`
    pub fetch: FetchSettings,
    /// `[tags]`
    pub tags: TagSettings,
    /// `[upstream."NAME"]`, sorted by name.
    pub upstreams: Vec<UpstreamSettings>,
    /// `[tls]`, if larder serves HTTPS.
    pub tls: Option<TlsSettings>,
    /// `[auth]`
    pub auth: AuthSettings,
    /// `[access]`: patterns over `registry/repository` of what clients on other machines may have fetched; `None`: all.
    pub access_pull: Option<Vec<String>>,
    /// `[warm]`
    pub warm: Option<WarmSettings>,
    /// `[kit]`
    pub kit: Option<KitSettings>,
    /// `[alert]`
    pub alert: Option<AlertSettings>,
}

/// `[disk]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSettings {
    /// Bytes larder may use; `None`: what leaves `min_free`.
    pub max: Option<u64>,
    /// What is left free on the file system.
    pub min_free: MinFree,
    /// Images unused for so long go, in time for which larder runs; `None`: never.
    pub expire_unused: Option<Duration>,
}

/// `disk.min_free`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MinFree {
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of the file system, and at least [`crate::budget::MIN_FREE_BYTES`].
    Percent(u8),
}

impl MinFree {
    /// The bytes that are left free on a file system of `total` bytes.
    pub fn of(self, total: u64) -> u64 {
        match self {
            MinFree::Bytes(bytes) => bytes,
            MinFree::Percent(percent) => {
                crate::budget::percent_of(total, percent).max(crate::budget::MIN_FREE_BYTES)
            }
        }
    }
}

/// `[fetch]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchSettings {
    /// Downloads at a time, 1 to 64.
    pub streams: usize,
    /// Longest wait for a name and a connection.
    pub connect_timeout: Duration,
    /// Longest wait for an answer's header.
    pub header_timeout: Duration,
    /// Longest wait for the next byte of a body.
    pub stall_timeout: Duration,
    /// Bits per second of all downloads together; `None`: unlimited.
    pub bandwidth: Option<u64>,
    /// Parts of a blob far beyond what has come of it are asked for at once, and streamed without a hash.
    pub early_ranges: bool,
    /// Networks whose addresses are as good as public ones.
    pub allow_networks: Vec<IpNet>,
    /// Proxy for upstream connections (`http://host:port`, may hold credentials); `None`: the environment's.
    pub proxy: Option<Secret>,
}

/// `[tags]`
#[derive(Clone, Debug)]
pub struct TagSettings {
    /// How long a verified tag is served without asking again.
    pub revalidate: Duration,
    /// How long a request waits for the upstream where there is something to fall back to.
    pub resolve_deadline: Duration,
    /// Whether another version of the repository may stand in for a tag never seen.
    pub fallback_versions: bool,
    /// Earlier versions remembered for each tag.
    pub history: usize,
    /// `[[tags.rule]]`, first match wins.
    pub rules: Vec<TagRule>,
}

/// What holds for one tag: the `[tags]` defaults with the first matching rule laid over them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TagPolicy {
    /// How long a verified tag is served without asking again.
    pub revalidate: Duration,
    /// What an upstream's 404 or 401/403 means when the tag is cached.
    pub on_missing: OnMissing,
    /// Once complete, the tag is never asked for again.
    pub frozen: bool,
}

/// `on_missing`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnMissing {
    /// The upstream's answer is passed on.
    Pass,
    /// The cached version is served on.
    Serve,
}

/// `[[tags.rule]]`
#[derive(Clone, Debug)]
pub struct TagRule {
    /// Pattern over `registry/repository:tag`; `*` stands for any text.
    pub pattern: String,
    /// Overrides [`TagSettings::revalidate`].
    pub revalidate: Option<Duration>,
    /// Overrides [`OnMissing::Pass`].
    pub on_missing: Option<OnMissing>,
    /// Overrides `false`.
    pub frozen: Option<bool>,
}

/// `[upstream."NAME"]`
#[derive(Clone, Debug)]
pub struct UpstreamSettings {
    /// The registry's name in references.
    pub name: RegistryName,
    /// Where it is asked, in order; at least one.
    pub endpoints: Vec<EndpointSettings>,
    /// Who may read what it gives for a login.
    pub access: UpstreamAccess,
}

/// `access` of an upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpstreamAccess {
    /// Who may read what is private.
    #[default]
    Private,
    /// Everybody, as far as the registry shows it to everybody: the login only lifts a rate limit.
    Public,
}

/// One address that an upstream is asked at.
#[derive(Clone)]
pub struct EndpointSettings {
    /// Scheme, host and port, without a trailing slash; a path prefix is allowed.
    pub url: String,
    /// The address was written in the configuration file, not built in: private addresses are then what was meant.
    pub url_configured: bool,
    /// What stands between `/v2/` and the names, such as a Harbor project or an Artifactory repository.
    pub prefix: Option<RepositoryName>,
    /// It is a mirror of several registries, and is told by `ns` which one is meant.
    pub send_ns: bool,
    /// Extra trust roots, PEM.
    pub ca_file: Option<PathBuf>,
    /// The certificate that larder shows when it is asked for one.
    pub client_certificate: Option<ClientCertSettings>,
    /// Where tokens come from, when it is not the upstream's own domain: `https://host[:port]`.
    pub realm: Option<String>,
    /// User name and the file that holds the password.
    pub credentials: Option<LoginSettings>,
}

/// A certificate and its key, PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertSettings {
    /// The certificate, and those between it and its authority.
    pub cert_file: PathBuf,
    /// Its private key.
    pub key_file: PathBuf,
}

/// How larder logs in at an endpoint.
#[derive(Clone, Debug)]
pub struct LoginSettings {
    /// The user name.
    pub username: String,
    /// The password, read from `password_file` at load.
    pub password: Secret,
    /// Where it was read from.
    pub password_file: PathBuf,
}

/// `[tls]`
#[derive(Clone, Debug)]
pub struct TlsSettings {
    /// Certificate chain, PEM.
    pub cert_file: PathBuf,
    /// Private key, PEM.
    pub key_file: PathBuf,
    /// The authorities of client certificates, PEM; a client that shows one is the user that it names.
    pub client_ca_file: Option<PathBuf>,
}

/// `[auth]`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuthSettings {
    /// Users and their passwords, as `htpasswd -B` writes them.
    pub htpasswd_file: Option<PathBuf>,
    /// Whether a client's own login at the registry opens what the registry shows to it.
    pub pull_secrets: bool,
    /// How long the last such login counts while the registry cannot be asked, in running time.
    pub offline_grace: Duration,
    /// Whether private content is sent to other machines without TLS.
    pub allow_plain_http: bool,
    /// Whether `/v2/` asks for a login, for clients that log in only when asked there.
    pub challenge_ping: bool,
    /// `[[auth.rule]]`; without any, every user may read everything.
    pub rules: Vec<AuthRule>,
}

/// `[[auth.rule]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthRule {
    /// A user of the password file or of a client certificate.
    pub user: String,
    /// Pattern over `registry/repository`; `*` stands for any text.
    pub pattern: String,
}

/// `[warm]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarmSettings {
    /// Images that are kept complete.
    pub images: Vec<Reference>,
    /// How often they are refetched; `None`: never.
    pub every: Option<Duration>,
}

/// `[kit]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KitSettings {
    /// Where the secret was read from.
    pub secret_file: PathBuf,
    /// The secret that the boards of a kit share.
    pub secret: Secret<Vec<u8>>,
    /// Where other boards ask.
    pub listen: SocketAddr,
    /// Other boards.
    pub peers: Vec<SocketAddr>,
    /// Find other boards by multicast DNS.
    pub mdns: bool,
}

/// `[alert]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlertSettings {
    /// A program and its arguments.
    pub command: Option<Secret<Vec<String>>>,
    /// An address that is posted to.
    pub url: Option<Secret>,
}

impl UpstreamSettings {
    /// Whether what it gives is not for everybody: it takes a login, and that does not only lift a rate limit, or a client
    /// certificate that the owner has called private.
    pub fn is_private(&self) -> bool {
        let is_known = |endpoint: &EndpointSettings| {
            endpoint.credentials.is_some() || endpoint.client_certificate.is_some()
        };
        self.access == UpstreamAccess::Private && self.endpoints.iter().any(is_known)
    }

    /// Whether credentials are configured that only lift a rate limit.
    pub fn lifts_limit(&self) -> bool {
        self.has_login() && self.access == UpstreamAccess::Public
    }

    /// Whether credentials are configured.
    pub fn has_login(&self) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.credentials.is_some())
    }

    /// Where clients find the registry itself, under its own names: the last endpoint that has these, else its own address.
    pub fn origin(&self) -> EndpointSettings {
        let found = self.origin_place().map(|place| self.endpoints[place].clone());
        found.unwrap_or_else(|| upstreams::own_endpoint(&self.name))
    }

    /// Whether clients' logins at the registry are tried at the endpoint at `place`: at the only one, else at the registry
    /// itself, and only where there is a login of larder's own.
    pub fn tries_pull_secrets_at(&self, place: usize) -> bool {
        let is_meant = self.endpoints.len() == 1 || self.origin_place() == Some(place);
        is_meant && self.endpoints[place].credentials.is_some()
    }

    fn origin_place(&self) -> Option<usize> {
        self.endpoints.iter().rposition(|endpoint| endpoint.prefix.is_none() && !endpoint.send_ns)
    }

    /// The key under which the outage of the endpoint at `place` is remembered over a restart. That of the first does
    /// not name it, so that a note of an older version is found.
    pub fn outage_note(&self, place: usize) -> String {
        match self.endpoints.get(place) {
            Some(endpoint) if place > 0 => format!("down/{}/{}", self.name, endpoint.label()),
            _ => format!("down/{}", self.name),
        }
    }
}

impl EndpointSettings {
    /// An endpoint at an address that the owner has chosen, without a login.
    pub fn at(url: impl Into<String>) -> EndpointSettings {
        let url = url.into();
        EndpointSettings {
            url,
            url_configured: true,
            prefix: None,
            send_ns: false,
            ca_file: None,
            client_certificate: None,
            realm: None,
            credentials: None,
        }
    }

    /// Host, port, path and prefix: tells the endpoints of an upstream apart.
    pub fn label(&self) -> String {
        let rest = self.url.split_once("://").map_or(self.url.as_str(), |(_, rest)| rest);
        let path = rest.find('/').map_or("", |at| &rest[at..]);
        let prefix = self.prefix.as_ref().map_or(String::new(), |prefix| format!("/v2/{prefix}"));
        format!("{}{path}{prefix}", self.host_port())
    }

    /// Host and port, such as `registry-1.docker.io:443`.
    pub fn host_port(&self) -> String {
        let (scheme, rest) = self.url.split_once("://").unwrap_or(("https", &self.url));
        let authority = rest.split('/').next().unwrap_or_default();
        let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
        match (has_port, scheme) {
            (true, _) => authority.to_owned(),
            (false, "http") => format!("{authority}:80"),
            (false, _) => format!("{authority}:443"),
        }
    }
}

impl std::fmt::Debug for EndpointSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EndpointSettings").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Config {
    /// Sections that are read and checked but have no effect in this version. `[warm]` has half of its effect: its images
    /// are not evicted, and they are not fetched in advance.
    pub fn not_yet(&self) -> Vec<&'static str> {
        let sections =
            [(self.kit.as_ref().is_some_and(|kit| kit.mdns), "kit.mdns"), (self.alert.is_some(), "[alert]")];
        sections.into_iter().filter(|(used, _)| *used).map(|(_, name)| name).collect()
    }

    /// Whether a client at this address may have content of the repository fetched.
    pub fn may_fetch(&self, client: IpAddr, repository: &Repository) -> bool {
        let Some(patterns) = &self.access_pull else { return true };
        client.to_canonical().is_loopback() || {
            let name = repository.to_string();
            patterns.iter().any(|pattern| matches(pattern, &name))
        }
    }

    /// The upstream of that name, if it is configured.
    pub fn upstream(&self, name: &RegistryName) -> Option<&UpstreamSettings> {
        self.upstreams.iter().find(|upstream| upstream.name == *name)
    }
}

impl TagSettings {
    /// What holds for one tag.
    pub fn policy(&self, repository: &Repository, tag: &Tag) -> TagPolicy {
        // Made only where there are rules to compare it with.
        let name = LazyCell::new(|| format!("{repository}:{tag}"));
        let rule = self.rules.iter().find(|rule| matches(&rule.pattern, &name));
        TagPolicy {
            revalidate: rule.and_then(|r| r.revalidate).unwrap_or(self.revalidate),
            on_missing: rule.and_then(|r| r.on_missing).unwrap_or(OnMissing::Pass),
            frozen: rule.and_then(|r| r.frozen).unwrap_or(false),
        }
    }
}

impl AuthSettings {
    /// Whether a user may read a private repository, `registry/repository`.
    pub fn may_read(&self, user: &str, repository: &str) -> bool {
        let fits = |rule: &AuthRule| rule.user == user && matches(&rule.pattern, repository);
        self.rules.is_empty() || self.rules.iter().any(fits)
    }
}

/// Whether `text` fits `pattern`, in which `*` stands for any text, the empty one too.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or("");
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut last = None;
    for part in parts {
        if let Some(middle) = last.replace(part) {
            let middle: &str = middle;
            let Some(at) = rest.find(middle) else { return false };
            rest = &rest[at + middle.len()..];
        }
    }
    match last {
        Some(end) => rest.ends_with(end),
        None => rest.is_empty(),
    }
}

#[cfg(test)]
mod tests;
