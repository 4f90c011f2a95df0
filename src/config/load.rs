//! From the file, the command line and the environment to a [`Config`].

use super::names;
use super::raw;
use super::secrets::read_kit_secret;
use super::upstreams::upstreams;
use super::{
    AlertSettings, AuthRule, AuthSettings, Config, DiskSettings, FetchSettings, KitSettings, MinFree,
    TagSettings, TlsSettings, WarmSettings,
};
use crate::budget;
use crate::files;
use crate::oci::{Platform, familiar_pattern, quoted};
use crate::text::Secret;
use ipnet::IpNet;
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the configuration is looked for if the command line names none.
pub const DEFAULT_FILE: &str = "/etc/larder/larder.toml";

/// What the command line says about the configuration.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `--config`
    pub file: Option<PathBuf>,
    /// `--data-dir`
    pub data_dir: Option<PathBuf>,
    /// `--listen`
    pub listen: Vec<SocketAddr>,
}

/// What is wrong with a configuration: one sentence, or several lines of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(pub(super) String);

impl Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

/// A look at the environment, so that tests bring their own.
pub(super) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Config {
    /// Reads the configuration file and whatever it names.
    ///
    /// # Errors
    /// Names the file, the line or key, what is wrong and what would be right.
    pub fn load(options: &Options) -> Result<Config, ConfigError> {
        let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let default = Path::new(DEFAULT_FILE);
        let file = options.file.as_deref().or_else(|| default.exists().then_some(default));
        let text = match file {
            Some(file) => files::read_named(file, budget::CONFIG_BYTES_MAX)
                .map_err(|e| ConfigError(format!("cannot read {}: {e}", file.display())))?,
            None => String::new(),
        };
        let name = file.map_or("the defaults".to_owned(), |file| file.display().to_string());
        Config::parse(&text, &name, options, &environment)
    }

    /// Makes a configuration of `text`; `name` is what errors call it.
    pub(super) fn parse(
        text: &str,
        name: &str,
        options: &Options,
        environment: Environment<'_>,
    ) -> Result<Config, ConfigError> {
        let file: raw::RawFile = toml::from_str(text).map_err(|e| explain(name, text, &e))?;
        let mut check = Check { name, wrong: Vec::new() };
        let config = build(file, options, environment, &mut check);
        if check.wrong.is_empty() { Ok(config) } else { Err(ConfigError(check.wrong.join("\n"))) }
    }
}

/// Gathers everything that is wrong, so that it can be mended in one go.
pub(super) struct Check<'a> {
    name: &'a str,
    wrong: Vec<String>,
}

impl Check<'_> {
    pub(super) fn wrong(&mut self, what: impl Display) {
        self.wrong.push(format!("{}: {what}", self.name));
    }

    fn within<T: PartialOrd + Copy>(
        &mut self,
        key: &str,
        value: T,
        least: T,
        most: T,
        text: impl Fn(T) -> String,
    ) -> T {
        if value < least || value > most {
            self.wrong(format!("{key} is {}, expected {} to {}", text(value), text(least), text(most)));
        }
        value
    }

    fn span(&mut self, key: &str, value: Duration, least: Duration, most: Duration) -> Duration {
        self.within(key, value, least, most, super::units::span_text)
    }
}

fn build(
    file: raw::RawFile,
    options: &Options,
    environment: Environment<'_>,
    check: &mut Check<'_>,
) -> Config {
    let listen = if options.listen.is_empty() {
        file.listen.unwrap_or_else(|| vec![SocketAddr::from(([127, 0, 0, 1], 5000))])
    } else {
        options.listen.clone()
    };
    if listen.is_empty() {
        check.wrong("listen is empty, expected at least one address such as \"127.0.0.1:5000\"");
    }
    no_repeats(check, "listen", &listen);
    let platforms = file.platforms.unwrap_or_else(|| vec![Platform::of_this_board()]);
    if platforms.is_empty() {
        check.wrong("platforms is empty, expected at least one such as \"linux/arm64\"");
    }
    no_repeats(check, "platforms", &platforms);
    let upstreams = upstreams(file.upstream, check);
    let tls = file.tls.map(|tls| TlsSettings {
        cert_file: tls.cert_file,
        key_file: tls.key_file,
        client_ca_file: tls.client_ca_file,
    });
    let auth = auth(file.auth, check);
    let by_certificate = tls.as_ref().is_some_and(|tls| tls.client_ca_file.is_some());
    if auth.htpasswd_file.is_none()
        && !by_certificate
        && !auth.pull_secrets
        && let Some(private) = upstreams.iter().find(|upstream| upstream.is_private())
    {
        check.wrong(format!(
            "upstream {} has credentials, so what they fetch is private, but [auth] is missing: set auth.htpasswd_file, tls.client_ca_file, or auth.pull_secrets = true; if they only lift a rate limit, set access = \"public\" there",
            private.name
        ));
    }
    let default_registry = names::default_registry(file.default_registry, check);
    if !upstreams.iter().any(|upstream| upstream.name == default_registry) {
        check.wrong(format!("default_registry {default_registry} is not one of the upstreams"));
    }
    let memory_max = file.memory.max.map_or(64 * budget::MIB, |size| size.0);
    check.within("memory.max", memory_max, budget::MEMORY_MIN, 64 * budget::GIB, super::units::size_text);
    Config {
        listen,
        data_dir: data_dir(file.data_dir, options, environment),
        default_registry,
        platforms,
        disk: DiskSettings {
            max: file.disk.max.map(|size| size.0),
            min_free: file.disk.min_free.map_or(MinFree::Percent(20), |kept| kept.0),
            expire_unused: file.disk.expire_unused.and_then(|span| span.0),
        },
        memory_max,
        fetch: fetch(file.fetch, check),
        tags: tags(file.tags, check),
        upstreams,
        tls,
        auth,
        access_pull: file.access.and_then(|access| access.pull).map(names::patterns),
        warm: file
            .warm
            .map(|warm| WarmSettings { images: warm.images, every: warm.every.and_then(|span| span.0) }),
        kit: file.kit.and_then(|raw| kit(raw, check)),
        alert: file
            .alert
            .map(|alert| AlertSettings { command: alert.command.map(Secret::new), url: alert.url }),
    }
}

fn auth(raw: raw::RawAuth, check: &mut Check<'_>) -> AuthSettings {
    if raw.rule.iter().any(|rule| rule.user.is_empty() || rule.pattern.is_empty()) {
        check.wrong(
            "an [[auth.rule]] has an empty user or match, expected such as user = \"kit\" and match = \"ghcr.io/owner/*\"",
        );
    }
    let rules = raw.rule.into_iter().map(|rule| {
        let pattern = familiar_pattern(&rule.pattern, false);
        AuthRule { user: rule.user, pattern }
    });
    AuthSettings {
        htpasswd_file: raw.htpasswd_file,
        pull_secrets: raw.pull_secrets,
        offline_grace: check.span(
            "auth.offline_grace",
            raw.offline_grace.map_or(Duration::ZERO, |span| span.0),
            Duration::ZERO,
            budget::OFFLINE_GRACE_MAX,
        ),
        allow_plain_http: raw.allow_plain_http,
        challenge_ping: raw.challenge_ping,
        rules: rules.collect(),
    }
}

fn kit(raw: raw::RawKit, check: &mut Check<'_>) -> Option<KitSettings> {
    no_repeats(check, "kit.peers", &raw.peers);
    if raw.peers.len() > budget::PEERS_MAX {
        let (count, most) = (raw.peers.len(), budget::PEERS_MAX);
        check.wrong(format!("kit.peers names {count} boards, at most {most} can be named"));
    }
    let secret = read_kit_secret(&raw.secret_file, check)?;
    Some(KitSettings {
        secret_file: raw.secret_file,
        secret,
        listen: raw.listen.unwrap_or(SocketAddr::from(([0, 0, 0, 0], 5002))),
        peers: raw.peers,
        mdns: raw.mdns.unwrap_or(false),
    })
}

/// Networks of `fetch.allow_networks`, none of which reaches the board itself or what is link-local.
fn networks(texts: Vec<String>, check: &mut Check<'_>) -> Vec<IpNet> {
    // An IPv4 address that is written as one of IPv6 counts as itself.
    const NEVER: [&str; 10] = [
        "127.0.0.0/8",
        "0.0.0.0/8",
        "169.254.0.0/16",
        "224.0.0.0/3",
        "::/96",
        "::ffff:0:0/96",
        "64:ff9b::/96",
        "2002::/16",
        "fe80::/10",
        "ff00::/8",
    ];
    if texts.len() > budget::ALLOWED_NETWORKS_MAX {
        check.wrong(format!(
            "fetch.allow_networks has {} networks, expected at most {}",
            texts.len(),
            budget::ALLOWED_NETWORKS_MAX
        ));
        return Vec::new();
    }
    let never: Vec<IpNet> = NEVER.iter().filter_map(|text| text.parse().ok()).collect();
    let mut network = |text: String| match text.parse::<IpNet>() {
        Err(_) => {
            check.wrong(format!(
                "fetch.allow_networks: {} is no network such as 198.18.0.0/15",
                quoted(&text)
            ));
            None
        }
        Ok(network) if never.iter().any(|never| never.contains(&network) || network.contains(never)) => {
            check.wrong(format!(
                "fetch.allow_networks: {network} reaches this board itself, link-local addresses or none that a \
                 registry can have; name the network that the resolver answers with, such as 198.18.0.0/15"
            ));
            None
        }
        Ok(network) => Some(network.trunc()),
    };
    texts.into_iter().filter_map(&mut network).collect()
}

fn fetch(raw: raw::RawFetch, check: &mut Check<'_>) -> FetchSettings {
    let seconds = Duration::from_secs;
    let mut timeout = |key: &str, value: Option<super::units::Span>, default, least, most| {
        check.span(key, value.map_or(seconds(default), |span| span.0), least, seconds(most))
    };
    let least = Duration::from_millis(100);
    let connect_timeout = timeout("fetch.connect_timeout", raw.connect_timeout, 5, least, 20);
    let header_timeout = timeout("fetch.header_timeout", raw.header_timeout, 10, least, 20);
    let stall_timeout = timeout("fetch.stall_timeout", raw.stall_timeout, 20, seconds(1), 600);
    let fetch = FetchSettings {
        streams: check.within("fetch.streams", raw.streams.unwrap_or(4), 1, 64, |n| n.to_string()),
        connect_timeout,
        header_timeout,
        stall_timeout,
        bandwidth: raw.bandwidth.and_then(|bandwidth| bandwidth.0),
        early_ranges: raw.early_ranges.unwrap_or(false),
        allow_networks: networks(raw.allow_networks.unwrap_or_default(), check),
        proxy: raw.proxy,
    };
    if fetch.connect_timeout + fetch.header_timeout >= budget::MISS_WAIT_MAX {
        check.wrong(format!(
            "fetch.connect_timeout and fetch.header_timeout together must stay below {}, or clients give up first",
            super::units::span_text(budget::MISS_WAIT_MAX)
        ));
    }
    if let Some(bits) = fetch.bandwidth {
        let text = |bits| super::units::bandwidth_text(Some(bits));
        check.within("fetch.bandwidth", bits, 8_000, u64::MAX, text);
    }
    fetch
}

fn tags(raw: raw::RawTags, check: &mut Check<'_>) -> TagSettings {
    let deadline = raw.resolve_deadline.map_or(Duration::from_millis(1500), |span| span.0);
    if raw.rule.iter().any(|rule| rule.pattern.is_empty()) {
        check.wrong(
            "a [[tags.rule]] has an empty match, expected a pattern such as \"docker.io/library/*:1.*\"",
        );
    }
    TagSettings {
        revalidate: raw.revalidate.map_or(Duration::ZERO, |span| span.0),
        resolve_deadline: check.span(
            "tags.resolve_deadline",
            deadline,
            Duration::from_millis(1),
            Duration::from_secs(20),
        ),
        fallback_versions: raw.fallback_versions.unwrap_or(false),
        history: check
            .within("tags.history", raw.history.unwrap_or(3), 0, budget::HISTORY_MAX, |n| n.to_string()),
        rules: raw.rule.into_iter().map(Into::into).collect(),
    }
}

/// Where the store is kept under systemd, and by root.
const SYSTEM_DATA_DIR: &str = "/var/lib/larder";

/// `--data-dir`; systemd's `$STATE_DIRECTORY`; the file's; root: `/var/lib/larder`; else `$XDG_STATE_HOME/larder`, or
/// again `/var/lib/larder` for a member of larder's group, who may enter it, and who has no store of their own.
fn data_dir(file: Option<PathBuf>, options: &Options, environment: Environment<'_>) -> PathBuf {
    if let Some(dir) = &options.data_dir {
        return dir.clone();
    }
    if let Some(dirs) = environment("STATE_DIRECTORY") {
        let dir = PathBuf::from(dirs.split(':').next().unwrap_or_default());
        if let Some(file) = file.filter(|file| *file != dir) {
            log::warn!(
                "data_dir is {}, but systemd's STATE_DIRECTORY is {} and wins; a drop-in with an empty StateDirectory= ends that",
                file.display(),
                dir.display()
            );
        }
        return dir;
    }
    if let Some(dir) = file {
        return dir;
    }
    if rustix::process::geteuid().is_root() {
        return PathBuf::from(SYSTEM_DATA_DIR);
    }
    let state = environment("XDG_STATE_HOME").map(PathBuf::from);
    let home = || environment("HOME").map(|home| Path::new(&home).join(".local/state"));
    let own = state.or_else(home).map(|state| state.join("larder"));
    let of_the_group = || rustix::fs::access(SYSTEM_DATA_DIR, rustix::fs::Access::EXEC_OK).is_ok();
    match own {
        Some(own) if own.exists() || !of_the_group() => own,
        _ => PathBuf::from(SYSTEM_DATA_DIR),
    }
}

fn no_repeats<T: PartialEq + Display>(check: &mut Check<'_>, key: &str, values: &[T]) {
    for (at, value) in values.iter().enumerate() {
        if values[..at].contains(value) {
            check.wrong(format!("{key} names {value} twice"));
        }
    }
}

/// A TOML error for people: the file, the line, and for an unknown key the nearest one that is known.
fn explain(name: &str, text: &str, error: &toml::de::Error) -> ConfigError {
    let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    let place = line.map_or(name.to_owned(), |line| format!("{name}:{line}"));
    let message = error.message();
    let quoted_words: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let message = match quoted_words.split_first() {
        Some((unknown, known)) if message.starts_with("unknown field") => {
            let near = known.iter().map(|key| (strsim::damerau_levenshtein(unknown, key), *key)).min();
            let hint = match near {
                Some((distance, key)) if distance <= 1 + unknown.len() / 3 => {
                    format!("; did you mean \"{key}\"?")
                }
                _ => format!("; known here: {}", known.join(", ")),
            };
            format!("unknown key \"{unknown}\"{hint}")
        }
        _ => message.trim_end().replace('\n', "; "),
    };
    ConfigError(format!("{place}: {message}"))
}
