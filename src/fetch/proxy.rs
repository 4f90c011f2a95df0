//! Proxies: the configuration's, else the environment's (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`).
//!
//! The environment is read here and not by the HTTP client, which takes one proxy for both schemes, and of `NO_PROXY`
//! neither lists with spaces, nor `example.com` for its subdomains, nor networks (`10.0.0.0/8`, as K3s writes them).
//! Every connection through a proxy is a CONNECT tunnel or one by SOCKS5, so that the proxy sees no token. Names are looked
//! up by the proxy, but for `socks5://`: there this board looks them up and the proxy is given addresses, which have been
//! checked like all others.

use super::address::HttpOrigin;
use std::net::IpAddr;
use ureq::{Proxy, ProxyProtocol};

/// Which proxy a connection takes.
#[derive(Debug, Default)]
pub(super) struct Proxies {
    https: Option<Proxy>,
    http: Option<Proxy>,
    none_for: Vec<Exception>,
}

/// One entry of `NO_PROXY`.
#[derive(Debug, PartialEq, Eq)]
enum Exception {
    Everything,
    /// The host itself and everything under it, perhaps only at a port.
    Domain(String, Option<u16>),
    Network(IpAddr, u8),
}

impl Proxies {
    /// `configured`, else what the environment says. `Err` says which setting is wrong.
    ///
    /// # Errors
    /// Which setting cannot be used, and why.
    pub fn new(
        configured: Option<&str>,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, String> {
        let either = |name: &str| {
            let lower = environment(&name.to_ascii_lowercase());
            lower.or_else(|| environment(name)).filter(|value| !value.trim().is_empty())
        };
        let exceptions = either("NO_PROXY").unwrap_or_default();
        let none_for = exceptions.split([',', ' ']).filter_map(Exception::parse).collect();
        if let Some(text) = configured {
            let proxy = parse(text).map_err(|why| format!("fetch.proxy {why}"))?;
            return Ok(Proxies { https: Some(proxy.clone()), http: Some(proxy), none_for });
        }
        let of_scheme = |name: &str| -> Result<Option<Proxy>, String> {
            for name in [name, "ALL_PROXY"] {
                if let Some(text) = either(name) {
                    return parse(text.trim()).map(Some).map_err(|why| format!("{name} {why}"));
                }
            }
            Ok(None)
        };
        Ok(Proxies { https: of_scheme("HTTPS_PROXY")?, http: of_scheme("HTTP_PROXY")?, none_for })
    }

    /// The proxy for connections to `origin`, if any.
    pub fn for_origin(&self, origin: &HttpOrigin) -> Option<&Proxy> {
        let proxy = if origin.https { self.https.as_ref() } else { self.http.as_ref() };
        proxy.filter(|_| !self.none_for.iter().any(|exception| exception.matches(origin)))
    }

    /// The proxies' own hosts and ports, which larder may connect to wherever they are.
    pub fn hosts(&self) -> Vec<(String, u16)> {
        let both = [&self.https, &self.http];
        let bare = |proxy: &Proxy| proxy.host().trim_matches(['[', ']']).to_ascii_lowercase();
        both.into_iter().flatten().map(|proxy| (bare(proxy), proxy.port())).collect()
    }
}

/// Errors do not quote the text, which may hold a password.
fn parse(text: &str) -> Result<Proxy, String> {
    let proxy = Proxy::new(text).map_err(|_| "is not an address such as http://host:port".to_owned())?;
    match proxy.protocol() {
        ProxyProtocol::Http | ProxyProtocol::Https | ProxyProtocol::Socks5 | ProxyProtocol::Socks5h => {
            Ok(proxy)
        }
        other => Err(format!(
            "names a {other} proxy; http://, https://, socks5:// and socks5h:// proxies are supported"
        )),
    }
}

impl Exception {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        if text == "*" {
            return Some(Exception::Everything);
        }
        if let Some((address, bits)) = text.split_once('/')
            && let (Ok(address), Ok(bits)) = (address.parse::<IpAddr>(), bits.parse::<u8>())
        {
            return Some(Exception::Network(address, bits));
        }
        if let Ok(address) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
            return Some(Exception::Network(address, if address.is_ipv4() { 32 } else { 128 }));
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host.trim_matches(['[', ']']), Some(port.parse().ok()?)),
            None => (text.as_str(), None),
        };
        let host = host.strip_prefix('*').unwrap_or(host).trim_matches('.');
        (!host.is_empty()).then(|| Exception::Domain(host.to_owned(), port))
    }

    fn matches(&self, origin: &HttpOrigin) -> bool {
        match self {
            Exception::Everything => true,
            Exception::Domain(domain, port) => {
                let under = origin.host.strip_suffix(domain.as_str()).is_some_and(|rest| rest.ends_with('.'));
                (origin.host == *domain || under) && port.is_none_or(|port| port == origin.port)
            }
            Exception::Network(network, bits) => {
                origin.host.parse().is_ok_and(|address| is_within(address, *network, *bits))
            }
        }
    }
}

fn is_within(address: IpAddr, network: IpAddr, bits: u8) -> bool {
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(n)) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(bits.into())).unwrap_or(0);
            bits <= 32 && u32::from(a) & mask == u32::from(n) & mask
        }
        (IpAddr::V6(a), IpAddr::V6(n)) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(bits.into())).unwrap_or(0);
            bits <= 128 && u128::from(a) & mask == u128::from(n) & mask
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(settings: &[(&str, &str)], configured: Option<&str>) -> Result<Proxies, String> {
        Proxies::new(configured, |name| {
            settings.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn origin(https: bool, host: &str, port: u16) -> HttpOrigin {
        HttpOrigin { https, host: host.to_owned(), port }
    }

    fn port_for(proxies: &Proxies, origin: &HttpOrigin) -> Option<u16> {
        proxies.for_origin(origin).map(Proxy::port)
    }

    #[test]
    fn schemes_have_their_own_proxies() {
        let some = proxies(&[("HTTPS_PROXY", "http://p:1"), ("all_proxy", "p:2")], None).unwrap();
        assert_eq!(port_for(&some, &origin(true, "a.example", 443)), Some(1));
        assert_eq!(port_for(&some, &origin(false, "a.example", 80)), Some(2));
        assert_eq!(some.hosts(), [("p".into(), 1), ("p".into(), 2)]);
        let configured = proxies(&[("HTTPS_PROXY", "http://p:1")], Some("http://u:s@q:3")).unwrap();
        assert_eq!(port_for(&configured, &origin(false, "a.example", 80)), Some(3));
        assert_eq!(port_for(&proxies(&[], None).unwrap(), &origin(true, "a.example", 443)), None);
    }

    #[test]
    fn what_cannot_be_used_is_said_without_the_password() {
        let error = proxies(&[("ALL_PROXY", "socks4://user:secret@p:1")], None).unwrap_err();
        assert!(error.starts_with("ALL_PROXY names a SOCKS4 proxy") && !error.contains("secret"), "{error}");
        let error = proxies(&[], Some("http://user:secret@")).unwrap_err();
        assert!(error.starts_with("fetch.proxy is not") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn exceptions() {
        let text =
            "localhost, .svc ,example.com,*.wild.example,10.0.0.0/8,fd00::/8,192.168.1.7,one.example:5000";
        let some = proxies(&[("HTTP_PROXY", "http://p:1"), ("NO_PROXY", text)], None).unwrap();
        for direct in [
            "localhost",
            "x.svc",
            "example.com",
            "deep.example.com",
            "a.wild.example",
            "10.9.8.7",
            "fd00::1",
            "192.168.1.7",
        ] {
            assert_eq!(port_for(&some, &origin(false, direct, 80)), None, "{direct}");
        }
        for through in ["notexample.com", "11.0.0.1", "192.168.1.8", "10.evil.example", "one.example"] {
            assert_eq!(port_for(&some, &origin(false, through, 80)), Some(1), "{through}");
        }
        assert_eq!(port_for(&some, &origin(false, "one.example", 5000)), None);
        let all = proxies(&[("HTTP_PROXY", "http://p:1"), ("no_proxy", "*")], None).unwrap();
        assert_eq!(port_for(&all, &origin(false, "x", 80)), None);
    }
}
