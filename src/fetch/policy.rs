//! Which addresses are connected to: the rules against server-side request forgery.
//!
//! An address on the board or in its network is reached only where the configuration put it. Every connection asks here
//! after its name was looked up, so that it does not matter how an address was written or who named it: a redirect, a
//! token realm, a mirror's DNS. Failure is an [`Obstacle`], and nothing is sent.

use super::address::looks_like_address;
use super::failure::Obstacle;
use crate::oci::quoted;
use crate::sync::Mutex;
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

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

/// What the owner can do about an address that is refused.
fn way_out(address: IpAddr) -> &'static str {
    let is_made_up = |v4: Ipv4Addr| v4.octets()[0] == 198 && reach_v4(v4) == Reach::Special;
    match (reach(address), address.to_canonical()) {
        (Reach::Lan, _) => "; fetch.allow_networks can allow its network",
        (_, IpAddr::V4(v4)) if is_made_up(v4) => "; fetch.allow_networks can allow its network",
        _ => "",
    }
}

/// Which addresses one upstream's connections may go to.
#[derive(Debug)]
pub(super) struct Policy {
    own_host: String,
    /// The upstream's address was written in the configuration.
    configured: bool,
    /// Other hosts and ports written in the configuration or environment: the realm's, the proxies'. That a proxy runs on
    /// the board opens none of the board's other ports.
    trusted: Vec<(String, u16)>,
    /// Networks of the configuration whose addresses count as public.
    networks: Vec<IpNet>,
    /// The upstream's own class, once it is known: its storage and token hosts may be in it, too. One whose name moves from
    /// one class to another has none but the public one from then on.
    own: Mutex<Option<Reach>>,
}

impl Policy {
    pub fn new(own_host: &str, configured: bool, trusted: Vec<(String, u16)>, networks: Vec<IpNet>) -> Self {
        let policy =
            Policy { own_host: own_host.to_owned(), configured, trusted, networks, own: Mutex::new(None) };
        let own = own_host.parse().ok().filter(|_| configured).map(|address| policy.reach(address));
        Policy { own: Mutex::new(own), ..policy }
    }

    /// How far an address reaches here: what the owner has allowed is as good as public, wherever it is written.
    fn reach(&self, address: IpAddr) -> Reach {
        let class = reach(address);
        let is_allowed = || self.networks.iter().any(|network| network.contains(&address.to_canonical()));
        if class != Reach::Loopback && is_allowed() { Reach::Public } else { class }
    }

    /// The addresses of `host` that may be connected to; an error if that is none of them.
    ///
    /// # Errors
    /// `Obstacle::Address`: why it is not connected to.
    pub fn allowed(&self, host: &str, addresses: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Obstacle> {
        if addresses.first().is_some_and(|first| self.is_trusted(host, first.port())) {
            return Ok(addresses);
        }
        let refused = addresses.first().map(|a| a.ip());
        let kept = if self.configured && host == self.own_host {
            self.own_addresses(addresses)
        } else {
            let own = self.own_class();
            let may = |class: Reach| class == Reach::Public || class == own && class != Reach::Special;
            addresses.into_iter().filter(|a| may(self.reach(a.ip()))).collect()
        };
        match refused {
            // A hotel's portal or a broken resolver: the name is not to be had, and what is cached may answer.
            Some(address) if kept.is_empty() && host == self.own_host && host.parse::<IpAddr>().is_err() => {
                Err(Obstacle::Name(format!(
                    "the name resolves to the private address {address}{}",
                    way_out(address)
                )))
            }
            Some(address) if kept.is_empty() => Err(Obstacle::Address(format!(
                "refused to connect to the private address {address}, which no configured upstream has{}",
                way_out(address)
            ))),
            _ => Ok(kept),
        }
    }

    /// The upstream's own addresses: all, for the configuration names it. But a name that was the network's or the
    /// internet's does not become the board itself, which whoever owns the name could have it do.
    fn own_addresses(&self, mut addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
        let mut own = self.own.lock();
        if own.is_some_and(|class| class < Reach::Loopback) {
            addresses.retain(|a| self.reach(a.ip()) != Reach::Loopback);
        }
        let classes = addresses.iter().map(|a| self.reach(a.ip()));
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

    fn is_trusted(&self, host: &str, port: u16) -> bool {
        self.trusted.iter().any(|(known, at)| known == host && *at == port)
    }

    fn own_class(&self) -> Reach {
        self.own.lock().unwrap_or(Reach::Public)
    }

    /// Checks a host that a proxy will look up: only what is written as an address can be judged.
    ///
    /// # Errors
    /// `Obstacle::Address`: why it is not connected to.
    pub fn allowed_by_name(&self, host: &str, port: u16) -> Result<(), Obstacle> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return self.allowed(host, vec![SocketAddr::new(address, port)]).map(drop);
        }
        let known = host == self.own_host || self.is_trusted(host, port);
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
        let built_in = Policy::new("registry.example", false, vec![], vec![]);
        assert!(built_in.allowed("registry.example", at("10.0.0.1")).is_err());
        assert!(built_in.allowed("registry.example", at("8.8.8.8")).is_ok());

        let configured = Policy::new("registry.example", true, vec![("proxy".into(), 443)], vec![]);
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
            assert!(built_in.allowed_by_name(host, 443).is_err(), "{host}");
        }
        assert!(built_in.allowed_by_name("cdn.example", 443).is_ok());
    }

    #[test]
    fn a_proxy_on_the_board_opens_its_own_port_only() {
        let at = |port: u16| vec![SocketAddr::new("127.0.0.1".parse().unwrap(), port)];
        let policy = Policy::new("registry.example", true, vec![("127.0.0.1".into(), 3128)], vec![]);
        assert!(policy.allowed("127.0.0.1", at(3128)).is_ok());
        assert!(policy.allowed("127.0.0.1", at(10_250)).is_err());
        assert!(policy.allowed_by_name("127.0.0.1", 10_250).is_err(), "nor by the proxy");
        assert!(policy.allowed_by_name("127.0.0.1", 3128).is_ok());
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
                let policy = Policy::new(host, true, vec![], vec![]);
                assert!(policy.allowed(host, at(own)).is_ok(), "{own} is configured");
                let allowed = |to: &str| policy.allowed("other.example", at(to)).is_ok();
                let found: String = to.map(|to| if allowed(to) { '#' } else { '.' }).iter().collect();
                assert_eq!(found, expected, "{own}, by name: {named}");
                let by_name = policy.allowed_by_name("localhost", 443).is_ok();
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
        let policy = Policy::new("registry.example", true, vec![], vec![]);
        assert_eq!(ask(&policy, &["9.9.9.9"]).ok(), Some(1));
        assert!(matches!(ask(&policy, &["127.0.0.1"]), Err(Obstacle::Name(_))));
        assert!(!other(&policy, "127.0.0.1"));
        assert_eq!(ask(&policy, &["10.0.0.1"]).ok(), Some(1), "a company's name may have two addresses");
        assert!(!other(&policy, "10.0.0.2"), "but then it is taken for a public one");
        assert_eq!(ask(&policy, &["9.9.9.9", "127.0.0.1"]).ok(), Some(1));

        let dual = Policy::new("registry.example", true, vec![], vec![]);
        assert_eq!(ask(&dual, &["192.168.1.5", "2606:4700::1"]).ok(), Some(2));
        assert!(other(&dual, "192.168.1.6") && !other(&dual, "127.0.0.1"));
        let mixed = Policy::new("registry.example", true, vec![], vec![]);
        assert_eq!(ask(&mixed, &["9.9.9.9", "127.0.0.1"]).ok(), Some(2));
        assert!(!other(&mixed, "127.0.0.1"));
    }

    #[test]
    fn networks_that_the_owner_allows_are_as_good_as_public() {
        let networks = ["198.18.0.0/15", "10.0.0.0/8", "100.64.0.0/10", "fd00::/8"];
        let networks: Vec<IpNet> = networks.iter().map(|network| network.parse().unwrap()).collect();
        let at = |address: &str| vec![SocketAddr::new(address.parse().unwrap(), 443)];
        for configured in [false, true] {
            let plain = Policy::new("registry.example", configured, vec![], vec![]);
            let allowing = Policy::new("registry.example", configured, vec![], networks.clone());
            for address in ["198.18.3.4", "10.9.9.9", "100.100.0.1", "fd12::1", "::ffff:198.19.0.1"] {
                // The registry itself, its storage and its token server.
                for host in ["registry.example", "storage.example", "auth.example"] {
                    assert!(allowing.allowed(host, at(address)).is_ok(), "{host} {address}");
                }
                let refused = plain.allowed("storage.example", at(address)).unwrap_err().to_string();
                assert!(refused.contains("fetch.allow_networks"), "{refused}");
            }
            for address in
                ["127.0.0.1", "169.254.169.254", "192.168.1.1", "::1", "fe80::1", "::ffff:127.0.0.1"]
            {
                assert!(allowing.allowed("storage.example", at(address)).is_err(), "{address}");
            }
        }
    }
}
