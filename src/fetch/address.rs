//! Addresses on the network: what may be connected to, and how a redirect's address is read.
//!
//! An [`Address`] never holds user names or passwords. Origins are compared as scheme, host and port, which decides
//! where credentials may go. The rules against server-side request forgery are in [`Policy`]: an address on the board or
//! in its network is reached only where the configuration put it.

use super::failure::Obstacle;
use crate::budget::UPSTREAM_TEXT_BYTES_MAX;
use crate::oci::quoted;
use crate::sync::Mutex;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use ureq::http::Uri;

/// Scheme, host and port: where credentials may go.
#[derive(Clone, PartialEq, Eq, Debug)]
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

/// An `http` or `https` address.
#[derive(Clone, PartialEq, Eq, Debug)]
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
fn looks_like_address(host: &str) -> bool {
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or("");
    let number = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    let hex = last
        .strip_prefix("0x")
        .or_else(|| last.strip_prefix("0X"))
        .is_some_and(|rest| rest.bytes().all(|c| c.is_ascii_hexdigit()));
    host.contains(':') || number(last) || hex
}

/// How far an address reaches. A registry may send to another host of its own class and to public ones: one on the internet
/// to nothing inside, one in the board's network to nothing on the board itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Reach {
    /// The internet.
    Public,
    /// The board's network or its carrier's.
    Lan,
    /// The board itself.
    Loopback,
    /// Link-local (cloud metadata), multicast, broadcast, unspecified, reserved: never a registry unless written so.
    Special,
}

fn reach(address: IpAddr) -> Reach {
    match address {
        IpAddr::V4(v4) => reach_v4(v4),
        IpAddr::V6(v6) => reach_v6(v6),
    }
}

fn reach_v4(v4: Ipv4Addr) -> Reach {
    let [a, b, c, _] = v4.octets();
    match (a, b, c) {
        (127, ..) => Reach::Loopback,
        // To connect to 0.0.0.0 is to connect to the board itself.
        (0 | 224..=255, ..) | (169, 254, _) | (192, 0, 0) | (198, 18 | 19, _) => Reach::Special,
        (10, ..) | (172, 16..=31, _) | (192, 168, _) | (100, 64..=127, _) => Reach::Lan,
        _ => Reach::Public,
    }
}

fn reach_v6(v6: Ipv6Addr) -> Reach {
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        reach_v4(Ipv4Addr::new(a, b, c, d))
    };
    match v6.segments() {
        [0, 0, 0, 0, 0, 0, 0, 1] => Reach::Loopback,
        // Mapped, compatible and translated forms (RFC 4291, RFC 2765), NAT64 (RFC 6052) and 6to4 (RFC 3056) reach the
        // IPv4 address inside, and so do Teredo (RFC 4380), where it is inverted, and ISATAP (RFC 5214).
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => embedded(high, low),
        [0x2001, 0, .., high, low] => embedded(!high, !low),
        [0x64, 0xff9b, ..] => Reach::Lan,
        [first, ..] if first & 0xfe00 == 0xfc00 || first & 0xffc0 == 0xfec0 => Reach::Lan,
        [first, .., 0 | 0x200, 0x5efe, high, low] if first & 0xe000 == 0x2000 => embedded(high, low),
        [first, ..] if first & 0xe000 == 0x2000 => Reach::Public,
        _ => Reach::Special,
    }
}

/// Which addresses one upstream's connections may go to.
#[derive(Debug)]
pub(super) struct Policy {
    own_host: String,
    /// The upstream's address was written in the configuration.
    configured: bool,
    /// Other hosts written in the configuration or environment: the realm's, the proxies'.
    trusted: Vec<String>,
    /// The upstream's own class, once it is known: its storage and token hosts may be in it, too. One whose name moves from
    /// one class to another has none but the public one from then on.
    own: Mutex<Option<Reach>>,
}

impl Policy {
    pub fn new(own_host: &str, configured: bool, trusted: Vec<String>) -> Self {
        let own = own_host.parse().ok().filter(|_| configured).map(reach);
        Policy { own_host: own_host.to_owned(), configured, trusted, own: Mutex::new(own) }
    }

    /// The addresses of `host` that may be connected to; an error if that is none of them.
    ///
    /// # Errors
    /// `Obstacle::Address`: why it is not connected to.
    pub fn allowed(&self, host: &str, addresses: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Obstacle> {
        if self.trusted.iter().any(|trusted| trusted == host) {
            return Ok(addresses);
        }
        let refused = addresses.first().map(|a| a.ip());
        let kept = if self.configured && host == self.own_host {
            self.own_addresses(addresses)
        } else {
            let own = self.own_class();
            let may = |class: Reach| class == Reach::Public || class == own && class != Reach::Special;
            addresses.into_iter().filter(|a| may(reach(a.ip()))).collect()
        };
        match refused {
            // A hotel's portal or a broken resolver: the name is not to be had, and what is cached may answer.
            Some(address) if kept.is_empty() && host == self.own_host && host.parse::<IpAddr>().is_err() => {
                Err(Obstacle::Name(format!("the name resolves to the private address {address}")))
            }
            Some(address) if kept.is_empty() => Err(Obstacle::Address(format!(
                "refused to connect to the private address {address}, which no configured upstream has"
            ))),
            _ => Ok(kept),
        }
    }

    /// The upstream's own addresses: all, for the configuration names it. But a name that was the network's or the
    /// internet's does not become the board itself, which whoever owns the name could have it do.
    fn own_addresses(&self, mut addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
        let mut own = self.own.lock();
        if own.is_some_and(|class| class < Reach::Loopback) {
            addresses.retain(|a| reach(a.ip()) != Reach::Loopback);
        }
        let classes = addresses.iter().map(|a| reach(a.ip()));
        let (least, most) = (classes.clone().min(), classes.max());
        // A network's name may have a public address as well; any other mixture has no class.
        let class =
            most.filter(|class| *class == Reach::Lan || least == most).or(least.map(|_| Reach::Public));
        *own = match (*own, class) {
            (None, class) => class,
            (known, None) => known,
            (Some(known), Some(class)) => Some(if known == class { known } else { Reach::Public }),
        };
        addresses
    }

    fn own_class(&self) -> Reach {
        self.own.lock().unwrap_or(Reach::Public)
    }

    /// Checks a host that a proxy will look up: only what is written as an address can be judged.
    ///
    /// # Errors
    /// `Obstacle::Address`: why it is not connected to.
    pub fn allowed_by_name(&self, host: &str) -> Result<(), Obstacle> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return self.allowed(host, vec![SocketAddr::new(address, 0)]).map(drop);
        }
        let known = host == self.own_host || self.trusted.iter().any(|trusted| trusted == host);
        let name = host.trim_end_matches('.');
        let local = name == "localhost" || name.ends_with(".localhost");
        if !known && (looks_like_address(host) || local && self.own_class() != Reach::Loopback) {
            return Err(Obstacle::Address(format!(
                "refused to connect to {} through the proxy",
                quoted(host)
            )));
        }
        Ok(())
    }
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

    #[test]
    fn reach_of_addresses() {
        for (text, expected) in [
            ("8.8.8.8", Reach::Public),
            ("2606:4700::1", Reach::Public),
            ("64:ff9b::808:808", Reach::Public),
            ("10.1.2.3", Reach::Lan),
            ("127.0.0.1", Reach::Loopback),
            ("172.31.0.1", Reach::Lan),
            ("172.32.0.1", Reach::Public),
            ("192.168.1.1", Reach::Lan),
            ("100.64.0.1", Reach::Lan),
            ("::1", Reach::Loopback),
            ("::ffff:127.0.0.1", Reach::Loopback),
            ("64:ff9b::a00:1", Reach::Lan),
            ("fd00::1", Reach::Lan),
            ("169.254.169.254", Reach::Special),
            ("::ffff:169.254.169.254", Reach::Special),
            ("0.0.0.0", Reach::Special),
            ("::", Reach::Special),
            ("224.0.0.1", Reach::Special),
            ("255.255.255.255", Reach::Special),
            ("fe80::1", Reach::Special),
            ("ff02::1", Reach::Special),
            ("127.255.0.9", Reach::Loopback),
            ("100.63.0.1", Reach::Public),
            ("100.127.255.255", Reach::Lan),
            ("192.0.0.1", Reach::Special),
            ("198.19.0.1", Reach::Special),
            ("0.1.2.3", Reach::Special),
            ("240.0.0.1", Reach::Special),
            ("2002:7f00:1::1", Reach::Loopback),
            ("2002:c0a8:101::1", Reach::Lan),
            ("2002:a9fe:a9fe::1", Reach::Special),
            ("64:ff9b::7f00:1", Reach::Loopback),
            ("64:ff9b:1::808:808", Reach::Lan),
            ("::ffff:0:127.0.0.1", Reach::Loopback),
            ("::127.0.0.1", Reach::Loopback),
            ("::ffff:0.0.0.0", Reach::Special),
            ("2001:0:102:304::80ff:fffe", Reach::Loopback),
            ("2001:db8::200:5efe:10.0.0.1", Reach::Lan),
            ("fec0::1", Reach::Lan),
            ("fdff::1", Reach::Lan),
            ("100::1", Reach::Special),
            ("4000::1", Reach::Special),
        ] {
            assert_eq!(reach(text.parse().unwrap()), expected, "{text}");
        }
    }

    #[test]
    fn private_addresses_need_a_configured_reason() {
        let at = |text: &str| vec![SocketAddr::new(text.parse().unwrap(), 443)];
        let built_in = Policy::new("registry.example", false, vec![]);
        assert!(built_in.allowed("registry.example", at("10.0.0.1")).is_err());
        assert!(built_in.allowed("registry.example", at("8.8.8.8")).is_ok());

        let configured = Policy::new("registry.example", true, vec!["proxy".into()]);
        assert!(configured.allowed("cdn.example", at("10.0.0.2")).is_err());
        assert!(configured.allowed("registry.example", at("10.0.0.1")).is_ok());
        assert!(configured.allowed("cdn.example", at("10.0.0.2")).is_ok());
        assert!(configured.allowed("cdn.example", at("169.254.169.254")).is_err());
        assert!(configured.allowed("proxy", at("169.254.1.1")).is_ok());

        for host in [
            "10.0.0.1",
            "0x7f.1",
            "localhost.",
            "x.localhost",
            "2130706433",
            "localhost",
            "::1",
            "0177.0.0.01",
        ] {
            assert!(built_in.allowed_by_name(host).is_err(), "{host}");
        }
        assert!(built_in.allowed_by_name("cdn.example").is_ok());
    }

    /// The classes that a registry at this address may send to.
    #[test]
    fn a_registry_sends_to_its_own_class_and_to_public_ones() {
        let at = |text: &str| vec![SocketAddr::new(text.parse().unwrap(), 443)];
        let to = [
            "8.8.8.8",
            "2606:4700::1",
            "192.168.7.7",
            "fd00::7",
            "127.0.0.1",
            "::1",
            "169.254.1.1",
            "0.0.0.0",
        ];
        for (own, expected) in [
            ("9.9.9.9", "##......"),
            ("192.168.1.1", "####...."),
            ("100.64.1.1", "####...."),
            ("::ffff:10.0.0.1", "####...."),
            ("127.0.0.1", "##..##.."),
            ("::1", "##..##.."),
            ("169.254.1.9", "##......"),
            ("0.0.0.0", "##......"),
        ] {
            for named in [true, false] {
                let host = if named { "registry.example" } else { own };
                let policy = Policy::new(host, true, vec![]);
                assert!(policy.allowed(host, at(own)).is_ok(), "{own} is configured");
                let allowed = |to: &str| policy.allowed("other.example", at(to)).is_ok();
                let found: String = to.map(|to| if allowed(to) { '#' } else { '.' }).iter().collect();
                assert_eq!(found, expected, "{own}, by name: {named}");
                let by_name = policy.allowed_by_name("localhost").is_ok();
                assert_eq!(by_name, expected.as_bytes()[4] == b'#', "{own}: localhost by the proxy");
            }
        }
    }

    #[test]
    fn a_name_that_moves_gains_nothing() {
        let at = |text: &str| SocketAddr::new(text.parse().unwrap(), 443);
        let ask = |policy: &Policy, to: &[&str]| {
            policy.allowed("registry.example", to.iter().map(|to| at(to)).collect()).map(|kept| kept.len())
        };
        let other = |policy: &Policy, to: &str| policy.allowed("other.example", vec![at(to)]).is_ok();
        let policy = Policy::new("registry.example", true, vec![]);
        assert_eq!(ask(&policy, &["9.9.9.9"]).ok(), Some(1));
        assert!(matches!(ask(&policy, &["127.0.0.1"]), Err(Obstacle::Name(_))));
        assert!(!other(&policy, "127.0.0.1"));
        assert_eq!(ask(&policy, &["10.0.0.1"]).ok(), Some(1), "a company's name may have two addresses");
        assert!(!other(&policy, "10.0.0.2"), "but then it is taken for a public one");
        assert_eq!(ask(&policy, &["9.9.9.9", "127.0.0.1"]).ok(), Some(1));

        let dual = Policy::new("registry.example", true, vec![]);
        assert_eq!(ask(&dual, &["192.168.1.5", "2606:4700::1"]).ok(), Some(2));
        assert!(other(&dual, "192.168.1.6") && !other(&dual, "127.0.0.1"));
        let mixed = Policy::new("registry.example", true, vec![]);
        assert_eq!(ask(&mixed, &["9.9.9.9", "127.0.0.1"]).ok(), Some(2));
        assert!(!other(&mixed, "127.0.0.1"));
    }
}
