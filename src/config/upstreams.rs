//! `[upstream."NAME"]`: the registries that are built in, what the file says of others, and the endpoints of each.
//!
//! A registry has one endpoint, whose keys stand beside `access`, or several, each a table `[[upstream."NAME".endpoint]]`
//! with the same keys. Invariant: each has at least one endpoint, in the order of the file, and none of them twice.

use super::load::Check;
use super::names;
use super::raw::RawUpstream;
use super::secrets::{client_certificate, read_password, without_secrets};
use super::{EndpointSettings, UpstreamAccess, UpstreamSettings};
use crate::budget;
use crate::oci::{RegistryName, RepositoryName, quoted};
use std::collections::BTreeMap;

/// The registries that work without a word in the configuration: name, address if it is another, token realm.
const BUILT_IN: [(&str, Option<&str>, Option<&str>); 9] = [
    ("docker.io", Some("https://registry-1.docker.io"), None),
    ("ghcr.io", None, None),
    ("quay.io", None, None),
    ("registry.k8s.io", None, None),
    ("gcr.io", None, None),
    ("mcr.microsoft.com", None, None),
    ("public.ecr.aws", None, None),
    ("nvcr.io", None, None),
    ("lscr.io", None, Some("https://ghcr.io")),
];

/// The address of a registry of which the configuration names none.
pub(super) fn own_endpoint(name: &RegistryName) -> EndpointSettings {
    let built_in = BUILT_IN.iter().find(|(known, ..)| *known == name.as_str());
    let url = built_in.and_then(|(_, url, _)| *url).map_or_else(|| format!("https://{name}"), str::to_owned);
    let realm = built_in.and_then(|(.., realm)| *realm).map(str::to_owned);
    EndpointSettings { url_configured: false, realm, ..EndpointSettings::at(url) }
}

/// Every upstream: those that are built in, with what the file says of them, and those of the file, by name.
pub(super) fn upstreams(raw: BTreeMap<String, RawUpstream>, check: &mut Check<'_>) -> Vec<UpstreamSettings> {
    let mut upstreams = BTreeMap::new();
    for (name, ..) in BUILT_IN {
        let name: RegistryName = name.parse().expect("a well-formed name");
        let (endpoints, access) = (vec![own_endpoint(&name)], UpstreamAccess::default());
        upstreams.insert(name.clone(), UpstreamSettings { name, endpoints, access });
    }
    for (name, raw) in names::sections(raw, check) {
        let known = upstreams.get(&name).and_then(|known| known.endpoints.first());
        let upstream = upstream(&name, raw, known, check);
        upstreams.insert(name, upstream);
    }
    if upstreams.len() > budget::UPSTREAMS_MAX {
        check.wrong(format!(
            "there are {} upstreams, at most {} can be named",
            upstreams.len(),
            budget::UPSTREAMS_MAX
        ));
    }
    upstreams.into_values().collect()
}

fn upstream(
    name: &RegistryName,
    mut raw: RawUpstream,
    known: Option<&EndpointSettings>,
    check: &mut Check<'_>,
) -> UpstreamSettings {
    let (access, tables) = (raw.access.take(), raw.endpoint.take());
    let section = format!("[upstream.\"{name}\"]");
    let endpoints = match tables {
        None => vec![endpoint(name, &section, raw, known, check)],
        Some(tables) => {
            if raw != RawUpstream::default() {
                check.wrong(format!(
                    "{section} has endpoint tables and keys of a single endpoint: put url and what belongs to it into \
                     the first [[upstream.\"{name}\".endpoint]]"
                ));
            }
            several(name, tables, check)
        }
    };
    let shows_itself = endpoints.iter().any(|endpoint| endpoint.client_certificate.is_some());
    let has_login = endpoints.iter().any(|endpoint| endpoint.credentials.is_some());
    // A certificate alone tells the upstream whose board it is, and makes nothing private unless that is written.
    let default = if shows_itself && !has_login { UpstreamAccess::Public } else { UpstreamAccess::Private };
    let upstream = UpstreamSettings { name: name.clone(), endpoints, access: access.unwrap_or(default) };
    if upstream.lifts_limit() && shows_itself {
        check.wrong(format!(
            "{section} has a username, a client_cert_file and access = \"public\": what only the certificate opens would be \
             taken for public; leave access out, or one of the other two"
        ));
    }
    if access == Some(UpstreamAccess::Private) && !has_login && !shows_itself {
        check.wrong(format!(
            "{section} has access = \"private\" and no username: without a login everybody may read what it gives"
        ));
    }
    upstream
}

/// The endpoints of `[[upstream."NAME".endpoint]]`.
fn several(name: &RegistryName, tables: Vec<RawUpstream>, check: &mut Check<'_>) -> Vec<EndpointSettings> {
    if tables.is_empty() || tables.len() > budget::ENDPOINTS_MAX {
        check.wrong(format!(
            "[upstream.\"{name}\"] has {} endpoint tables, expected 1 to {}",
            tables.len(),
            budget::ENDPOINTS_MAX
        ));
        return vec![EndpointSettings::at(format!("https://{name}"))];
    }
    let mut endpoints: Vec<EndpointSettings> = Vec::with_capacity(tables.len());
    for (at, raw) in tables.into_iter().enumerate() {
        let section = format!("[[upstream.\"{name}\".endpoint]] number {}", at + 1);
        if raw.access.is_some() || raw.endpoint.is_some() {
            check.wrong(format!(
                "{section} has access or endpoint, which belong to [upstream.\"{name}\"] as a whole"
            ));
        }
        if raw.url.is_none() {
            check.wrong(format!("{section} has no url, expected such as \"https://mirror.lan\""));
        }
        let endpoint = endpoint(name, &section, raw, None, check);
        let same =
            |other: &&EndpointSettings| (&other.url, &other.prefix) == (&endpoint.url, &endpoint.prefix);
        if let Some(place) = endpoints.iter().position(|other| same(&other)) {
            let first = place + 1;
            check
                .wrong(format!("{section} has the url and the prefix of number {first}: each is asked once"));
        }
        endpoints.push(endpoint);
    }
    endpoints
}

fn endpoint(
    name: &RegistryName,
    section: &str,
    raw: RawUpstream,
    known: Option<&EndpointSettings>,
    check: &mut Check<'_>,
) -> EndpointSettings {
    let url_configured = raw.url.is_some();
    let url = match raw.url {
        // `/v2` comes after it, and some copy that, too.
        Some(url) => {
            let url = url.trim_end_matches('/');
            url.strip_suffix("/v2").unwrap_or(url).trim_end_matches('/').to_owned()
        }
        None => known.map_or_else(|| format!("https://{name}"), |known| known.url.clone()),
    };
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    match rest {
        None => check.wrong(format!(
            "{section} url is {}, expected https://HOST or http://HOST",
            quoted(&without_secrets(&url))
        )),
        Some(rest) if rest.is_empty() || rest.contains(['@', '?', '#', ' ']) => {
            check.wrong(format!(
                "{section} url is {}, expected a host, a port and perhaps a path",
                quoted(&without_secrets(&url))
            ));
        }
        Some(_) => {}
    }
    let credentials = match (raw.username, raw.password_file) {
        (None, None) => None,
        (Some(username), Some(password_file)) => read_password(section, username, password_file, check),
        (Some(_), None) => {
            check.wrong(format!("{section} has a username and no password_file"));
            None
        }
        (None, Some(_)) => {
            check.wrong(format!("{section} has a password_file and no username"));
            None
        }
    };
    if credentials.is_some() && url.starts_with("http://") && !is_loopback(&url) {
        check.wrong(format!(
            "{section} would send a password over plain http to {}; use https",
            quoted(&without_secrets(&url))
        ));
    }
    let client_files = (raw.client_cert_file, raw.client_key_file);
    let client_certificate = client_certificate(section, &url, client_files, check);
    let realm = raw.realm.or_else(|| known.filter(|_| !url_configured).and_then(|known| known.realm.clone()));
    EndpointSettings {
        url,
        url_configured,
        prefix: prefix(section, raw.prefix.unwrap_or_default(), check),
        send_ns: raw.send_ns.unwrap_or(false),
        ca_file: raw.ca_file,
        client_certificate,
        realm,
        credentials,
    }
}

/// What stands between `/v2/` and the names: components of a repository's name, or nothing.
fn prefix(section: &str, text: String, check: &mut Check<'_>) -> Option<RepositoryName> {
    let components = text.trim_matches('/');
    if components.is_empty() {
        return None;
    }
    if components == "v2" || components.starts_with("v2/") {
        check.wrong(format!(
            "{section} prefix is {}, expected what follows /v2/, such as \"dockerhub-proxy\"",
            quoted(&text)
        ));
        return None;
    }
    match components.parse() {
        Ok(prefix) => Some(prefix),
        Err(e) => {
            check.wrong(format!("{section} prefix: {e}; expected such as \"dockerhub-proxy\""));
            None
        }
    }
}

fn is_loopback(url: &str) -> bool {
    let host = url.trim_start_matches("http://").split('/').next().unwrap_or("");
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    host == "localhost"
        || host == "[::1]"
        || host.parse().is_ok_and(|ip: std::net::Ipv4Addr| ip.is_loopback())
}
