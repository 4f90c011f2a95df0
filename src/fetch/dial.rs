//! How connections are made: look the name up, check the addresses, connect, shake hands, all within one limit.
//!
//! The HTTP client would look a name up before each request, even when a warm connection is there; here the name is
//! looked up only when a connection has to be made. Names of proxies are looked up the same way.

use super::failure::Obstacle;
use super::policy::Policy;
use crate::budget::{NAME_LOOKUPS_MAX, QUESTION_LOOK_PAUSE, SMALL_STACK_BYTES};
use crate::sync::{Condvar, Mutex, turn};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ChainedConnector, ConnectProxyConnector, ConnectionDetails, Connector, LazyBuffers, NextTimeout,
    TcpConnector, Transport, TransportAdapter, time,
};
use ureq::{Error, Timeout};

/// Most addresses of one name that are tried; the HTTP client's own limit.
const ADDRESSES_MAX: usize = 16;

/// Makes the connections of one upstream.
pub(super) struct Dialer {
    tcp: ChainedConnector<(), ConnectProxyConnector, TcpConnector>,
    tls: Arc<ClientConfig>,
    names: Arc<Names>,
    policy: Arc<Policy>,
}

impl Dialer {
    pub fn new(tls: Arc<ClientConfig>, names: Arc<Names>, policy: Arc<Policy>) -> Self {
        Dialer { tcp: ConnectProxyConnector::default().chain(TcpConnector::default()), tls, names, policy }
    }

    fn resolve(&self, uri: &Uri, limit: Duration) -> Result<ResolvedSocketAddrs, Error> {
        let host = bare_host(uri)?;
        let port = port_of(uri);
        let found = match host.parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) => self.names.look_up(&host, limit)?,
        };
        let found = found.into_iter().map(|address| SocketAddr::new(address, port)).collect();
        let mut addresses = no_addresses();
        for address in self.policy.allowed(&host, found)?.into_iter().take(ADDRESSES_MAX) {
            addresses.push(address);
        }
        Ok(addresses)
    }
}

impl Connector<()> for Dialer {
    type Out = Box<dyn Transport>;

    fn connect(&self, details: &ConnectionDetails, _: Option<()>) -> Result<Option<Self::Out>, Error> {
        let started = Instant::now();
        let limit = *details.timeout.after;
        let left = || -> Result<NextTimeout, Error> {
            let left = limit.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Err(Error::Timeout(Timeout::Connect));
            }
            Ok(NextTimeout { after: left.into(), ..details.timeout })
        };
        let addrs = if details.config.proxy().is_some() {
            self.policy.allowed_by_name(&bare_host(details.uri)?, port_of(details.uri))?;
            no_addresses()
        } else {
            self.resolve(details.uri, limit)?
        };
        let onward = ConnectionDetails {
            uri: details.uri,
            addrs,
            config: details.config,
            request_level: details.request_level,
            resolver: details.resolver,
            now: time::Instant::now(),
            timeout: left()?,
            current_time: details.current_time.clone(),
            run_connector: details.run_connector.clone(),
            register_shutdown: details.register_shutdown.clone(),
        };
        let transport = self.tcp.connect(&onward, None)?.ok_or(Error::ConnectionFailed)?;
        let transport = Yielding(Box::new(transport));
        if !details.needs_tls() {
            return Ok(Some(Box::new(transport)));
        }
        let name = ServerName::try_from(bare_host(details.uri)?)
            .map_err(|_| Obstacle::Address("the host name is not one".to_owned()))?;
        let mut tls = ClientConnection::new(self.tls.clone(), name).map_err(Obstacle::Tls)?;
        let boxed: Box<dyn Transport> = Box::new(transport);
        let mut socket = TransportAdapter::new(boxed, details.current_time.clone());
        socket.set_timeout(left()?);
        while tls.is_handshaking() {
            tls.complete_io(&mut socket).map_err(tls_error)?;
        }
        let config = details.config;
        let buffers = LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size());
        Ok(Some(Box::new(TlsTransport { buffers, stream: StreamOwned::new(tls, socket) })))
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").finish_non_exhaustive()
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

fn bare_host(uri: &Uri) -> Result<String, Error> {
    let host = uri.host().ok_or_else(|| Error::BadUri("no host".to_owned()))?;
    Ok(host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase())
}

fn port_of(uri: &Uri) -> u16 {
    uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 })
}

fn no_addresses() -> ResolvedSocketAddrs {
    ResolvedSocketAddrs::from_fn(|_| SocketAddr::from(([0, 0, 0, 0], 0)))
}

/// Stands where the HTTP client wants a resolver; the [`Dialer`] resolves.
#[derive(Debug)]
pub(super) struct Later;

impl Resolver for Later {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        Ok(no_addresses())
    }
}

/// A transport that waits for input only until its thread's work is called off ([`turn`]).
#[derive(Debug)]
struct Yielding(Box<dyn Transport>);

impl Transport for Yielding {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.0.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.0.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        if !turn::has_turn() {
            return self.0.await_input(timeout);
        }
        let (began, limit) = (Instant::now(), *timeout.after);
        loop {
            if turn::is_called_off() {
                return Err(Obstacle::CalledOff.into());
            }
            let left = limit.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Err(Error::Timeout(timeout.reason));
            }
            let step = left.min(QUESTION_LOOK_PAUSE);
            match self.0.await_input(NextTimeout { after: step.into(), ..timeout }) {
                Err(Error::Timeout(_)) if step < left => {}
                came => return came,
            }
        }
    }

    fn is_open(&mut self) -> bool {
        self.0.is_open()
    }

    fn is_tls(&self) -> bool {
        self.0.is_tls()
    }
}

/// TLS over a transport.
struct TlsTransport {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, TransportAdapter>,
}

impl fmt::Debug for TlsTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsTransport").finish_non_exhaustive()
    }
}

impl Transport for TlsTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.stream.get_mut().set_timeout(timeout);
        self.stream.write_all(&self.buffers.output()[..amount])?;
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.get_mut().set_timeout(timeout);
        let amount = self.stream.read(self.buffers.input_append_buf())?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.get_mut().get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}

/// Name lookups: the C library's, which cannot be bounded in time, so each runs on a thread of its own; those who
/// want the same name wait for the same lookup.
#[derive(Default)]
pub(super) struct Names {
    under_way: Mutex<HashMap<String, Arc<Lookup>>>,
}

#[derive(Default)]
struct Lookup {
    answer: Mutex<Option<Result<Vec<IpAddr>, String>>>,
    answered: Condvar,
}

impl Names {
    fn look_up(self: &Arc<Self>, host: &str, limit: Duration) -> Result<Vec<IpAddr>, Obstacle> {
        let lookup = self.join_or_begin(host)?;
        let answer = lookup.answer.lock();
        let (answer, _) =
            lookup
                .answered
                .wait_timeout_while(answer, limit.min(Duration::from_secs(3600)), |answer| answer.is_none());
        match &*answer {
            Some(Ok(addresses)) => Ok(addresses.clone()),
            Some(Err(message)) => Err(Obstacle::Name(message.clone())),
            None => Err(Obstacle::Name("the name could not be resolved in time".to_owned())),
        }
    }

    fn join_or_begin(self: &Arc<Self>, host: &str) -> Result<Arc<Lookup>, Obstacle> {
        let mut under_way = self.under_way.lock();
        if let Some(lookup) = under_way.get(host) {
            return Ok(lookup.clone());
        }
        if under_way.len() >= NAME_LOOKUPS_MAX {
            return Err(Obstacle::Name("too many name lookups hang already".to_owned()));
        }
        let lookup = Arc::new(Lookup::default());
        let (names, shared, name) = (self.clone(), lookup.clone(), host.to_owned());
        thread::Builder::new()
            .name("lookup".to_owned())
            .stack_size(SMALL_STACK_BYTES)
            .spawn(move || {
                let answer = ask_system(&name);
                names.under_way.lock().remove(&name);
                *shared.answer.lock() = Some(answer);
                shared.answered.notify_all();
            })
            .map_err(|error| Obstacle::Name(format!("no thread to resolve the name: {error}")))?;
        under_way.insert(host.to_owned(), lookup.clone());
        Ok(lookup)
    }
}

fn ask_system(host: &str) -> Result<Vec<IpAddr>, String> {
    match (host, 0u16).to_socket_addrs() {
        Ok(found) => {
            let addresses: Vec<IpAddr> = found.map(|address| address.ip()).collect();
            if addresses.is_empty() { Err("the name has no address".to_owned()) } else { Ok(addresses) }
        }
        Err(error) => {
            let message = error.to_string();
            let message = message.strip_prefix("failed to lookup address information: ").unwrap_or(&message);
            Err(format!("the name could not be resolved ({})", message.to_ascii_lowercase()))
        }
    }
}
