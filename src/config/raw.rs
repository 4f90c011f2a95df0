//! Exactly what was typed: the shape of the file, before it means anything.
//!
//! Every table denies keys that it does not know, so that a slip of the pen is an error and not a default.

use super::units::{Bandwidth, Size, Span, SpanOrNever};
use super::{OnMissing, TagRule};
use crate::oci::{Platform, Reference, RegistryName};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) listen: Option<Vec<SocketAddr>>,
    pub(super) data_dir: Option<PathBuf>,
    pub(super) default_registry: Option<RegistryName>,
    pub(super) platforms: Option<Vec<Platform>>,
    pub(super) disk: Disk,
    pub(super) memory: Memory,
    pub(super) fetch: Fetch,
    pub(super) tags: Tags,
    pub(super) upstream: BTreeMap<String, Upstream>,
    pub(super) tls: Option<Tls>,
    pub(super) auth: Option<Auth>,
    pub(super) warm: Option<Warm>,
    pub(super) kit: Option<Kit>,
    pub(super) alert: Option<Alert>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Disk {
    pub(super) max: Option<Size>,
    pub(super) min_free: Option<Size>,
    pub(super) expire_unused: Option<SpanOrNever>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Memory {
    pub(super) max: Option<Size>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Fetch {
    pub(super) streams: Option<usize>,
    pub(super) connect_timeout: Option<Span>,
    pub(super) header_timeout: Option<Span>,
    pub(super) stall_timeout: Option<Span>,
    pub(super) bandwidth: Option<Bandwidth>,
    pub(super) proxy: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Tags {
    pub(super) revalidate: Option<Span>,
    pub(super) resolve_deadline: Option<Span>,
    pub(super) fallback_versions: Option<bool>,
    pub(super) history: Option<usize>,
    pub(super) rule: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rule {
    #[serde(rename = "match")]
    pub(super) pattern: String,
    pub(super) revalidate: Option<Span>,
    pub(super) on_missing: Option<Missing>,
    pub(super) frozen: Option<bool>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Missing {
    Pass,
    Serve,
}

impl From<Rule> for TagRule {
    fn from(rule: Rule) -> TagRule {
        TagRule {
            pattern: rule.pattern,
            revalidate: rule.revalidate.map(|span| span.0),
            on_missing: rule.on_missing.map(|missing| match missing {
                Missing::Pass => OnMissing::Pass,
                Missing::Serve => OnMissing::Serve,
            }),
            frozen: rule.frozen,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Upstream {
    pub(super) url: Option<String>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) realm: Option<String>,
    pub(super) username: Option<String>,
    pub(super) password_file: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tls {
    pub(super) cert_file: PathBuf,
    pub(super) key_file: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Auth {
    pub(super) htpasswd_file: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Warm {
    #[serde(default)]
    pub(super) images: Vec<Reference>,
    #[serde(default)]
    pub(super) every: Option<SpanOrNever>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kit {
    pub(super) secret_file: PathBuf,
    pub(super) listen: Option<SocketAddr>,
    #[serde(default)]
    pub(super) peers: Vec<SocketAddr>,
    #[serde(default)]
    pub(super) mdns: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Alert {
    pub(super) command: Option<Vec<String>>,
    pub(super) url: Option<String>,
}
