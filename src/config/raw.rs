//! Exactly what was typed: the shape of the file, before it means anything.
//!
//! Every table denies keys that it does not know, so that a slip of the pen is an error and not a default.

use super::units::{Bandwidth, Kept, Size, Span, SpanOrNever};
use super::{OnMissing, TagRule, UpstreamAccess};
use crate::oci::{Platform, Reference, familiar_pattern};
use crate::text::Secret;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawFile {
    pub(super) listen: Option<Vec<SocketAddr>>,
    pub(super) data_dir: Option<PathBuf>,
    pub(super) default_registry: Option<String>,
    pub(super) platforms: Option<Vec<Platform>>,
    pub(super) disk: RawDisk,
    pub(super) memory: RawMemory,
    pub(super) fetch: RawFetch,
    pub(super) tags: RawTags,
    pub(super) upstream: BTreeMap<String, RawUpstream>,
    pub(super) tls: Option<RawTls>,
    pub(super) auth: RawAuth,
    pub(super) access: Option<RawAccess>,
    pub(super) warm: Option<RawWarm>,
    pub(super) kit: Option<RawKit>,
    pub(super) alert: Option<RawAlert>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawDisk {
    pub(super) max: Option<Size>,
    pub(super) min_free: Option<Kept>,
    pub(super) expire_unused: Option<SpanOrNever>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawMemory {
    pub(super) max: Option<Size>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawFetch {
    pub(super) streams: Option<usize>,
    pub(super) connect_timeout: Option<Span>,
    pub(super) header_timeout: Option<Span>,
    pub(super) stall_timeout: Option<Span>,
    pub(super) bandwidth: Option<Bandwidth>,
    pub(super) early_ranges: Option<bool>,
    pub(super) allow_networks: Option<Vec<String>>,
    pub(super) proxy: Option<Secret>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawTags {
    pub(super) revalidate: Option<Span>,
    pub(super) resolve_deadline: Option<Span>,
    pub(super) fallback_versions: Option<bool>,
    pub(super) history: Option<usize>,
    pub(super) rule: Vec<RawRule>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRule {
    #[serde(rename = "match")]
    pub(super) pattern: String,
    pub(super) revalidate: Option<Span>,
    pub(super) on_missing: Option<OnMissing>,
    pub(super) frozen: Option<bool>,
}

impl From<RawRule> for TagRule {
    fn from(rule: RawRule) -> TagRule {
        TagRule {
            pattern: familiar_pattern(&rule.pattern, true),
            revalidate: rule.revalidate.map(|span| span.0),
            on_missing: rule.on_missing,
            frozen: rule.frozen,
        }
    }
}

/// `[upstream."NAME"]`, and each `[[upstream."NAME".endpoint]]`, which has no `access` and no `endpoint`.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawUpstream {
    pub(super) url: Option<String>,
    pub(super) prefix: Option<String>,
    pub(super) send_ns: Option<bool>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) client_cert_file: Option<PathBuf>,
    pub(super) client_key_file: Option<PathBuf>,
    pub(super) realm: Option<String>,
    pub(super) access: Option<UpstreamAccess>,
    pub(super) username: Option<String>,
    pub(super) password_file: Option<PathBuf>,
    pub(super) endpoint: Option<Vec<RawUpstream>>,
}

impl RawUpstream {
    /// Whether it has a login, a certificate or `access`, at one of its endpoints too.
    pub(super) fn says_who_may_read(&self) -> bool {
        self.access.is_some()
            || self.username.is_some()
            || self.password_file.is_some()
            || self.client_cert_file.is_some()
            || self.client_key_file.is_some()
            || self.endpoint.iter().flatten().any(RawUpstream::says_who_may_read)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTls {
    pub(super) cert_file: PathBuf,
    pub(super) key_file: PathBuf,
    pub(super) client_ca_file: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawAuth {
    pub(super) htpasswd_file: Option<PathBuf>,
    pub(super) pull_secrets: bool,
    pub(super) offline_grace: Option<Span>,
    pub(super) allow_plain_http: bool,
    pub(super) challenge_ping: bool,
    pub(super) rule: Vec<RawAuthRule>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAuthRule {
    pub(super) user: String,
    #[serde(rename = "match")]
    pub(super) pattern: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAccess {
    #[serde(default)]
    pub(super) pull: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawWarm {
    #[serde(default)]
    pub(super) images: Vec<Reference>,
    #[serde(default)]
    pub(super) every: Option<SpanOrNever>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawKit {
    pub(super) secret_file: PathBuf,
    pub(super) listen: Option<SocketAddr>,
    #[serde(default)]
    pub(super) peers: Vec<SocketAddr>,
    #[serde(default)]
    pub(super) mdns: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAlert {
    pub(super) command: Option<Vec<String>>,
    pub(super) url: Option<Secret>,
}
