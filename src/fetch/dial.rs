//! How connections are made: look the name up, check the addresses, connect to the first that answers, shake hands, all
//! within one limit.
//!
//! The HTTP client would look a name up before each request, even when a warm connection is there; here the name is
//! looked up only when a connection has to be made. Names of proxies are looked up the same way, and their addresses tried
//! the same way. What a proxy is asked for is in `tunnel`, the race between addresses in `race`.

use super::failure::Obstacle;
use super::names::Names;
use super::policy::Policy;
use super::race::connect_first;
use super::socket::{TcpLink, TlsTransport};
use super::trust::Trust;
use super::tunnel::{self, TunnelTarget};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport, TransportAdapter,
};
use ureq::{Error, Proxy, ProxyProtocol, Timeout};

type BoxedTransport = Box<dyn Transport>;

/// Makes the connections of one upstream.
pub(super) struct Dialer {
    trust: Trust,
    names: Arc<Names>,
    policy: Arc<Policy>,
}

impl Dialer {
    pub fn new(trust: Trust, names: Arc<Names>, policy: Arc<Policy>) -> Self {
        Dialer { trust, names, policy }
    }
}

impl Connector<()> for Dialer {
    type Out = BoxedTransport;

    fn connect(&self, details: &ConnectionDetails, _: Option<()>) -> Result<Option<Self::Out>, Error> {
        let dial = Dial { dialer: self, details, began: Instant::now(), limit: *details.timeout.after };
        let target = Host::of(details.uri)?;
        match details.config.proxy() {
            None => dial.direct(&target),
            Some(proxy) => dial.by_proxy(proxy, &target),
        }
        .map(Some)
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").finish_non_exhaustive()
    }
}

/// Whom a connection is made to.
struct Host {
    https: bool,
    /// In lower case, an IPv6 address without brackets.
    name: String,
    port: u16,
}

impl Host {
    fn of(uri: &Uri) -> Result<Self, Error> {
        let host = uri.host().ok_or_else(|| Error::BadUri("no host".to_owned()))?;
        let name = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let https = uri.scheme_str() == Some("https");
        Ok(Host { https, name, port: uri.port_u16().unwrap_or(if https { 443 } else { 80 }) })
    }

    fn of_proxy(proxy: &Proxy) -> Result<Self, Error> {
        Ok(Host { port: proxy.port(), ..Host::of(proxy.uri())? })
    }
}

/// One connection being made.
struct Dial<'a> {
    dialer: &'a Dialer,
    details: &'a ConnectionDetails<'a>,
    began: Instant,
    limit: Duration,
}

impl Dial<'_> {
    fn left(&self) -> Result<Duration, Error> {
        let left = self.limit.saturating_sub(self.began.elapsed());
        if left.is_zero() { Err(Error::Timeout(Timeout::Connect)) } else { Ok(left) }
    }

    fn direct(&self, host: &Host) -> Result<BoxedTransport, Error> {
        let (link, address) = self.reach(host)?;
        if !host.https {
            return Ok(link);
        }
        let secured = self.secure(link, host);
        // Some paths let connections be made and no more.
        if secured.as_ref().is_err_and(is_silence) {
            self.dialer.names.paths.led_nowhere(&host.name, address);
        }
        secured
    }

    /// A TCP connection to one of the host's addresses.
    fn reach(&self, host: &Host) -> Result<(BoxedTransport, SocketAddr), Error> {
        let addresses = self.addresses(host)?;
        let (stream, address) = connect_first(&addresses, self.left()?)?;
        self.dialer.names.paths.worked(&host.name, address);
        Ok((Box::new(TcpLink::new(stream, self.buffers())), address))
    }

    /// The host's addresses that may be connected to, in the order in which they are tried.
    fn addresses(&self, host: &Host) -> Result<Vec<SocketAddr>, Error> {
        let Dialer { names, policy, .. } = self.dialer;
        let found = match host.name.parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) => names.look_up(&host.name, self.left()?)?,
        };
        let found = found.into_iter().map(|address| SocketAddr::new(address, host.port)).collect();
        Ok(names.paths.in_order(&host.name, policy.allowed(&host.name, found)?))
    }

    fn by_proxy(&self, proxy: &Proxy, target: &Host) -> Result<BoxedTransport, Error> {
        let tunnel = match (proxy.protocol(), target.name.parse::<IpAddr>()) {
            (ProxyProtocol::Socks5, Err(_)) => self.by_address(proxy, target)?,
            (ProxyProtocol::Socks5 | ProxyProtocol::Socks5h, literal) => {
                self.dialer.policy.allowed_by_name(&target.name, target.port)?;
                let to = match literal {
                    Ok(address) => TunnelTarget::Address(SocketAddr::new(address, target.port)),
                    Err(_) => TunnelTarget::Name(&target.name, target.port),
                };
                self.by_socks(proxy, &to)?
            }
            _ => {
                self.dialer.policy.allowed_by_name(&target.name, target.port)?;
                let transport = self.direct(&Host::of_proxy(proxy)?)?;
                let mut stream = self.stream(transport)?;
                tunnel::connect(&mut stream, proxy, &target.name, target.port)?;
                stream.into_inner()
            }
        };
        let tunnel: BoxedTransport = Box::new(Tunnel(tunnel));
        if target.https { self.secure(tunnel, target) } else { Ok(tunnel) }
    }

    /// Has a SOCKS5 proxy connect to the addresses that this board finds, in turn: each has its part of the time.
    fn by_address(&self, proxy: &Proxy, target: &Host) -> Result<BoxedTransport, Error> {
        let mut failed = Error::HostNotFound;
        let addresses = self.addresses(target)?;
        for (done, address) in addresses.iter().enumerate() {
            let more = u32::try_from(addresses.len() - done).unwrap_or(u32::MAX);
            let turn = Dial { began: Instant::now(), limit: self.left()? / more, ..*self };
            match turn.by_socks(proxy, &TunnelTarget::Address(*address)) {
                Ok(tunnel) => {
                    self.dialer.names.paths.worked(&target.name, *address);
                    return Ok(tunnel);
                }
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    fn by_socks(&self, proxy: &Proxy, to: &TunnelTarget<'_>) -> Result<BoxedTransport, Error> {
        let (link, _) = self.reach(&Host::of_proxy(proxy)?)?;
        let mut stream = self.stream(link)?;
        tunnel::socks5(&mut stream, proxy, to)?;
        Ok(stream.into_inner())
    }

    /// The transport as a stream that ends with the time for the connection.
    fn stream(&self, transport: BoxedTransport) -> Result<TransportAdapter, Error> {
        let mut stream = TransportAdapter::new(transport, self.details.current_time.clone());
        stream.set_timeout(NextTimeout { after: self.left()?.into(), ..self.details.timeout });
        Ok(stream)
    }

    fn secure(&self, transport: BoxedTransport, host: &Host) -> Result<BoxedTransport, Error> {
        let name = ServerName::try_from(host.name.clone())
            .map_err(|_| Obstacle::Address("the host name is not one".to_owned()))?;
        let settings = self.dialer.trust.settings_for(&host.name, host.port);
        let mut tls = ClientConnection::new(settings, name).map_err(Obstacle::Tls)?;
        let mut stream = self.stream(transport)?;
        while tls.is_handshaking() {
            tls.complete_io(&mut stream).map_err(tls_error)?;
        }
        Ok(Box::new(TlsTransport::new(self.buffers(), StreamOwned::new(tls, stream))))
    }

    fn buffers(&self) -> LazyBuffers {
        LazyBuffers::new(self.details.config.input_buffer_size(), self.details.config.output_buffer_size())
    }
}

/// Whether the other side said nothing.
fn is_silence(error: &Error) -> bool {
    match error {
        Error::Timeout(_) => true,
        Error::Io(error) => error.kind() == io::ErrorKind::TimedOut,
        _ => false,
    }
}

/// What was a connection to a proxy and is one to the target: it is not the target that secured it.
#[derive(Debug)]
struct Tunnel(BoxedTransport);

impl Transport for Tunnel {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.0.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.0.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.0.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.0.is_open()
    }
}

/// Distinguishes a failed handshake from a failed connection.
fn tls_error(error: io::Error) -> Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(inner) => Obstacle::Tls(inner.clone()).into(),
        None => match Error::from(error) {
            Error::Io(error) if error.kind() != io::ErrorKind::TimedOut => Obstacle::Handshake(format!(
                "the connection was cut during the tls handshake ({})",
                error.kind()
            ))
            .into(),
            other => other,
        },
    }
}

/// Stands where the HTTP client wants a resolver; the [`Dialer`] resolves.
#[derive(Debug)]
pub(super) struct Later;

impl Resolver for Later {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        Ok(ResolvedSocketAddrs::from_fn(|_| SocketAddr::from(([0, 0, 0, 0], 0))))
    }
}
