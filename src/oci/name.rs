//! Names: registries, repositories and tags (distribution-spec, "Pulling manifests").
//!
//! The grammars are strict, because these names become index keys, log lines and parts of upstream addresses.

use super::{Invalid, quoted, textual};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest registry name in bytes: a DNS name, a colon and a port.
pub const REGISTRY_BYTES_MAX: usize = 253;
/// Longest repository name in bytes (distribution-spec: clients limit name and host to 255).
pub const REPOSITORY_BYTES_MAX: usize = 255;
/// Longest tag in bytes (distribution-spec: at most 128 characters).
pub const TAG_BYTES_MAX: usize = 128;

/// The name of a registry as it stands in references: `docker.io`, `127.0.0.1:5000`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegistryName(Arc<str>);

impl RegistryName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RegistryName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let invalid = |why: &str| Err(Invalid::new(format!("registry {} {why}", quoted(text))));
        if text.len() > REGISTRY_BYTES_MAX {
            return invalid("is longer than 253 bytes");
        }
        let (host, port) = split_port(text);
        if let Some(port) = port
            && (port.is_empty() || port.len() > 5 || port.parse::<u16>().map_or(true, |p| p == 0))
        {
            return invalid("has a port that is not a number from 1 to 65535");
        }
        if let Some(inner) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            if inner.parse::<std::net::Ipv6Addr>().is_err() {
                return invalid("is not a host name or address");
            }
        } else {
            let label = |l: &str| {
                !l.is_empty()
                    && l.len() <= 63
                    && l.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
                    && !l.starts_with('-')
                    && !l.ends_with('-')
            };
            if !host.split('.').all(label) {
                return invalid("is not a lower-case host name or address");
            }
        }
        Ok(RegistryName(Arc::from(text)))
    }
}

/// Splits `host:port`, minding the colons inside an IPv6 address in brackets.
fn split_port(text: &str) -> (&str, Option<&str>) {
    let from = text.rfind(']').map_or(0, |at| at + 1);
    match text[from..].rfind(':') {
        Some(at) => (&text[..from + at], Some(&text[from + at + 1..])),
        None => (text, None),
    }
}

impl fmt::Display for RegistryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

textual!(RegistryName);

/// The name of a repository within its registry: `library/nginx`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryName(Arc<str>);

impl FromStr for RepositoryName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.len() > REPOSITORY_BYTES_MAX {
            return Err(Invalid::new(format!("repository {} is longer than 255 bytes", quoted(text))));
        }
        if text.is_empty() || !text.split('/').all(is_path_component) {
            return Err(Invalid::new(format!(
                "repository {} is not lower-case letters and digits with single separators",
                quoted(text)
            )));
        }
        Ok(RepositoryName(Arc::from(text)))
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(text: &str) -> bool {
    let alphanumeric = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    if !alphanumeric(first) || !alphanumeric(last) {
        return false;
    }
    bytes
        .split(|&c| alphanumeric(c))
        .filter(|separator| !separator.is_empty())
        .all(|separator| matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|&c| c == b'-'))
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

textual!(RepositoryName);

/// A repository and the registry it is in: `docker.io/library/nginx`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    /// The registry.
    pub registry: RegistryName,
    /// The repository's name in it.
    pub name: RepositoryName,
}

impl Repository {
    /// Puts the two names together.
    pub fn new(registry: RegistryName, name: RepositoryName) -> Self {
        Repository { registry, name }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.name)
    }
}

impl FromStr for Repository {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let Some((registry, name)) = text.split_once('/') else {
            return Err(Invalid::new(format!("repository {} names no registry", quoted(text))));
        };
        Ok(Repository { registry: registry.parse()?, name: name.parse()? })
    }
}

textual!(Repository);

/// A tag: `latest`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Arc<str>);

impl Tag {
    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `latest`, which a reference without a tag means.
    pub fn latest() -> Self {
        Tag(Arc::from("latest"))
    }
}

impl Tag {
    /// Whether it names what belongs to a digest and no version of its own: the list of referrers of registries without
    /// such lists (distribution-spec, "Referrers Tag Schema"), and cosign's `.sig`, `.att` and `.sbom` of the same form.
    pub fn names_a_digest(&self) -> bool {
        const HEX_LEAST: usize = 64;
        let plain = self.0.split_once('.').map_or(&*self.0, |(plain, _)| plain);
        plain.split_once('-').is_some_and(|(algorithm, hex)| {
            matches!(algorithm, "sha256" | "sha384" | "sha512" | "blake3")
                && hex.len() >= HEX_LEAST
                && hex.bytes().all(|c| c.is_ascii_hexdigit())
        })
    }
}

impl FromStr for Tag {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let bytes = text.as_bytes();
        let word = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
        let sound = bytes.len() <= TAG_BYTES_MAX
            && bytes.first().is_some_and(|&c| word(c))
            && bytes.iter().all(|&c| word(c) || c == b'.' || c == b'-');
        if sound {
            Ok(Tag(Arc::from(text)))
        } else {
            Err(Invalid::new(format!(
                "tag {} is not up to 128 letters, digits, periods, dashes and underscores",
                quoted(text)
            )))
        }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

textual!(Tag);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_grammar() {
        for good in ["nginx", "library/nginx", "a/b/c", "a__b/c--d", "0/1", "a.b_c-d"] {
            assert!(good.parse::<RepositoryName>().is_ok(), "{good} was refused");
        }
        for bad in ["", "/", "a/", "/a", "a//b", "A", "a..b", "a___b", "a._b", "-a", "a-", "../a", "a b", "é"]
        {
            assert!(bad.parse::<RepositoryName>().is_err(), "{bad} was taken");
        }
        assert!("a".repeat(255).parse::<RepositoryName>().is_ok());
        assert!("a".repeat(256).parse::<RepositoryName>().is_err());
    }

    #[test]
    fn registry_grammar() {
        for good in ["docker.io", "localhost:5000", "127.0.0.1:5000", "[::1]:5000", "[fe80::1]", "a"] {
            assert!(good.parse::<RegistryName>().is_ok(), "{good} was refused");
        }
        for bad in [
            "",
            "docker.io:",
            "docker.io:0",
            "docker.io:99999",
            "a..b",
            "Docker.io",
            "a/b",
            "[::g]",
            "-a.b",
            "a@b",
        ] {
            assert!(bad.parse::<RegistryName>().is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn tags_that_name_a_digest() {
        let hex = "0a".repeat(32);
        for (tag, names) in [
            (format!("sha256-{hex}"), true),
            (format!("sha256-{hex}.sig"), true),
            (format!("sha256-{hex}.att"), true),
            (format!("sha512-{hex}"), true),
            (format!("sha256-{}", &hex[..40]), false),
            (format!("main-{hex}"), false),
            ("1.25".to_owned(), false),
            ("sha256-latest".to_owned(), false),
        ] {
            assert_eq!(tag.parse::<Tag>().unwrap().names_a_digest(), names, "{tag}");
        }
    }

    #[test]
    fn tag_grammar() {
        for good in ["latest", "1.25", "_x", "v1-alpine", &"a".repeat(128)] {
            assert!(good.parse::<Tag>().is_ok(), "{good} was refused");
        }
        for bad in ["", ".a", "-a", "a b", "a/b", "a:b", &"a".repeat(129)] {
            assert!(bad.parse::<Tag>().is_err(), "{bad} was taken");
        }
    }
}
