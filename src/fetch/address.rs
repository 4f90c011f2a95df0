//! Addresses on the network: what may be connected to, and how a redirect's address is read.
//!
//! An [`Address`] never holds user names or passwords. Origins are compared as scheme, host and port, which decides
//! where credentials may go. Which of them are connected to is in `policy`.

use crate::budget::UPSTREAM_TEXT_BYTES_MAX;
use crate::oci::quoted;
use std::fmt;
use std::net::Ipv6Addr;
use ureq::http::Uri;

/// Scheme, host and port: where credentials may go.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct HttpOrigin {
    pub https: bool,
    /// In lower case, an IPv6 address without brackets.
    pub host: String,
    pub port: u16,
}

impl fmt::Display for HttpOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, usual) = if self.https { ("https", 443) } else { ("http", 80) };
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{scheme}://{open}{}{close}", self.host)?;
        if self.port != usual { write!(f, ":{}", self.port) } else { Ok(()) }
    }
}

impl HttpOrigin {
    /// Host and port, as messages name them: `registry-1.docker.io:443`.
    pub fn authority(&self) -> String {
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        format!("{open}{}{close}:{}", self.host, self.port)
    }
}

/// An `http` or `https` address.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Address {
    pub origin: HttpOrigin,
    /// Path and query, as sent.
    pub target: String,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin, self.target)
    }
}

impl Address {
    /// Reads an absolute address.
    ///
    /// # Errors
    /// What is wrong with it, without quoting a password it may hold.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > UPSTREAM_TEXT_BYTES_MAX {
            return Err(format!("an address of {} bytes is too long", text.len()));
        }
        let uri: Uri = text.parse().map_err(|_| "it is not an address".to_owned())?;
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err("it is neither http:// nor https://".to_owned()),
        };
        let authority = uri.authority().ok_or("it names no host")?;
        if authority.as_str().contains('@') {
            return Err("it holds a user name".to_owned());
        }
        let host = authority.host();
        let bare = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(inner) if inner.parse::<Ipv6Addr>().is_ok() => inner.to_ascii_lowercase(),
            Some(_) => return Err("its host is not an address".to_owned()),
            None => host.to_ascii_lowercase(),
        };
        if bare.is_empty() {
            return Err("it names no host".to_owned());
        }
        let after_host = &authority.as_str()[host.len()..];
        let port = match after_host.strip_prefix(':') {
            None => {
                if https {
                    443
                } else {
                    80
                }
            }
            Some(digits) => digits
                .parse()
                .ok()
                .filter(|&port| port != 0)
                .ok_or_else(|| format!("its port {} is not a number from 1 to 65535", quoted(digits)))?,
        };
        let target = uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
        Ok(Address { origin: HttpOrigin { https, host: bare, port }, target })
    }

    /// The address that `location` means when this one answered with it (RFC 9110, 10.2.2).
    ///
    /// # Errors
    /// What is wrong with it, to follow "a redirect cannot be followed".
    pub fn join(&self, location: &str) -> Result<Self, String> {
        let location = location.split('#').next().unwrap_or("");
        if location.contains("://") && !location.starts_with(['/', '?', '.']) {
            return Address::parse(location);
        }
        if location.starts_with("//") {
            let scheme = if self.origin.https { "https" } else { "http" };
            return Address::parse(&format!("{scheme}:{location}"));
        }
        let path = self.target.split('?').next().unwrap_or("/");
        let target = if location.is_empty() {
            self.target.clone()
        } else if location.starts_with('/') {
            location.to_owned()
        } else if location.starts_with('?') {
            format!("{path}{location}")
        } else {
            let folder = path.rfind('/').map_or("/", |at| &path[..=at]);
            format!("{folder}{location}")
        };
        Address::parse(&format!("{}{}", self.origin, without_dots(&target)))
    }
}

/// Removes `.` and `..` from the path (RFC 3986, 5.2.4).
fn without_dots(target: &str) -> String {
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/').skip(1) {
        match part {
            "." => {}
            ".." => {
                parts.pop();
            }
            other => parts.push(other),
        }
    }
    if path.ends_with("/.") || path.ends_with("/..") {
        parts.push("");
    }
    let path = format!("/{}", parts.join("/"));
    query.map_or(path.clone(), |query| format!("{path}?{query}"))
}

/// An address with what no address can hold percent-encoded, as browsers do it (WHATWG URL, "path state" and "query
/// state"): bytes beyond ASCII, controls, spaces, and the marks that end an address in text. What is escaped already stays.
pub(super) fn escaped(location: &[u8]) -> String {
    let mut out = String::with_capacity(location.len());
    let mut in_query = false;
    for &byte in location.trim_ascii() {
        let kept: &[u8] = if in_query { b"`{}^" } else { b"'" };
        in_query |= byte == b'?';
        match byte {
            // Browsers leave them out.
            b'\t' | b'\n' | b'\r' => {}
            0x21..=0x7e if kept.contains(&byte) || !b"\"'<>`{}^".contains(&byte) => {
                out.push(char::from(byte))
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Percent-encodes text for a query value: everything but letters, digits and `-._~/:` .
pub(super) fn query_value(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/:".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Whether two hosts belong to one owner, by a rule that errs towards no: the same host, or the same registrable
/// domain. Addresses and single labels are only ever equal to themselves.
pub(super) fn same_owner(a: &str, b: &str) -> bool {
    a == b || matches!((registrable(a), registrable(b)), (Some(a), Some(b)) if a == b)
}

/// The domain that was registered, as far as can be told without the public suffix list: the last two labels, or
/// three where the second-level label is so short that it may be a registry's own (`co.uk`, `com.au`).
fn registrable(host: &str) -> Option<&str> {
    if looks_like_address(host) || host.split('.').any(str::is_empty) {
        return None;
    }
    let dots: Vec<usize> = host.match_indices('.').map(|(at, _)| at).collect();
    let second_level_from = match dots.len() {
        0 => return None,
        1 => 0,
        count => dots[count - 2] + 1,
    };
    let last_dot = *dots.last()?;
    if last_dot - second_level_from > 3 {
        return Some(&host[second_level_from..]);
    }
    match dots.len() {
        1 => None,
        2 => Some(host),
        count => Some(&host[dots[count - 3] + 1..]),
    }
}

/// Whether a host is written as an address, in any of the forms that a C library would read as one.
pub(super) fn looks_like_address(host: &str) -> bool {
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or("");
    let number = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    let hex = last
        .strip_prefix("0x")
        .or_else(|| last.strip_prefix("0X"))
        .is_some_and(|rest| rest.bytes().all(|c| c.is_ascii_hexdigit()));
    host.contains(':') || number(last) || hex
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_joined() {
        let base = Address::parse("https://reg.example:8443/v2/a/blobs/x?q=1").unwrap();
        for (location, whole) in [
            ("https://cdn.example/b?sig=%2F", "https://cdn.example/b?sig=%2F"),
            ("//cdn.example/b", "https://cdn.example/b"),
            ("/c/d", "https://reg.example:8443/c/d"),
            ("y?z", "https://reg.example:8443/v2/a/blobs/y?z"),
            ("../y", "https://reg.example:8443/v2/a/y"),
            ("?z=2", "https://reg.example:8443/v2/a/blobs/x?z=2"),
            ("/c?u=https://x/", "https://reg.example:8443/c?u=https://x/"),
            ("HTTPS://CDN.example:443/#f", "https://cdn.example/"),
        ] {
            assert_eq!(base.join(location).unwrap().to_string(), whole, "{location}");
        }
        for bad in
            ["ftp://x/", "https://", "https://u:p@x/", "https://x:0/", "https://x:99999/", "http://[::g]/"]
        {
            assert!(base.join(bad).is_err(), "{bad} was taken");
        }
        let v6 = Address::parse("http://[::1]:5000/v2/").unwrap();
        assert_eq!((v6.origin.host.as_str(), v6.to_string().as_str()), ("::1", "http://[::1]:5000/v2/"));
    }

    #[test]
    fn what_no_address_can_hold_is_escaped() {
        let base = Address::parse("https://reg.example/v2/a/blobs/x").unwrap();
        for (location, whole) in [
            ("/größe/b?n=é".as_bytes(), "https://reg.example/gr%C3%B6%C3%9Fe/b?n=%C3%A9"),
            ("y z/ä".as_bytes(), "https://reg.example/v2/a/blobs/y%20z/%C3%A4"),
            ("https://cdn.example/ü%20?a=1%2F".as_bytes(), "https://cdn.example/%C3%BC%20?a=1%2F"),
            (b" /a\xff\tb ".as_slice(), "https://reg.example/a%FFb"),
            (b"/{a}|'\"b\"?{'\"}", "https://reg.example/%7Ba%7D|'%22b%22?{%27%22}"),
            ("/日本?x#é".as_bytes(), "https://reg.example/%E6%97%A5%E6%9C%AC?x"),
        ] {
            assert_eq!(base.join(&escaped(location)).unwrap().to_string(), whole);
        }
        // A host beyond ASCII would need a table of names that look alike; nothing is guessed.
        for bad in ["https://bücher.example/", "//ü/", "https://a b/"] {
            assert!(base.join(&escaped(bad.as_bytes())).is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn owners_are_told_apart() {
        for (a, b) in [
            ("registry-1.docker.io", "auth.docker.io"),
            ("registry.gitlab.com", "gitlab.com"),
            ("a.b.co.uk", "c.b.co.uk"),
            ("127.0.0.1", "127.0.0.1"),
            ("registry", "registry"),
            ("gcr.io", "gcr.io"),
        ] {
            assert!(same_owner(a, b), "{a} {b}");
        }
        for (a, b) in [
            ("registry.docker.io", "docker.io.evil.example"),
            ("a.co.uk", "b.co.uk"),
            ("gcr.io", "evil.gcr.io"),
            ("10.0.0.1", "11.0.0.1"),
            ("1.2.3.4", "9.9.3.4"),
            ("registry", "auth"),
            ("a.docker.io", "b.docker.io."),
            ("x.docker.io", "docker.com"),
            ("::1", "::2"),
        ] {
            assert!(!same_owner(a, b), "{a} {b}");
        }
    }
}
