//! One request and its answer: time-outs, proxies, warm connections. Redirects and logins are above it.
//!
//! Manifests and blobs have agents of their own, so that the connections of layers never stand in a tag's way. A
//! connection that was idle during an outage is not used again: it may be dead without either side knowing. When a
//! certificate changes there are other agents, and the connections of those before are closed as soon as nobody reads.

use super::address::{Address, HttpOrigin};
use super::chunks::PlainChunks;
use super::dial::{Dialer, Later};
use super::failure::{Cause, Failure};
use super::names::Names;
use super::policy::Policy;
use super::proxy::Proxies;
use super::trust::Trust;
use crate::budget::{
    FETCH_CHUNK_BYTES, IDLE_CONNECTION_AGE, IDLE_CONNECTIONS, UPSTREAM_HEADER_BYTES_MAX,
    UPSTREAM_REQUEST_BYTES_MAX,
};
use crate::files::Watched;
use crate::sync::Mutex;
use crate::via::{self, BoardName};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use ureq::http::{self, HeaderValue, Method, Response, header};
use ureq::unversioned::transport::Connector as _;
use ureq::{Agent, Body};

/// When a question must be answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    at: Instant,
    /// Who asks has less time than the question may take.
    sooner: bool,
}

impl Deadline {
    pub fn after(time: Duration) -> Self {
        Deadline { at: Instant::now() + time, sooner: false }
    }

    /// The same, or a sooner one of who asks.
    pub fn or_sooner(self, at: Instant) -> Self {
        if at < self.at { Deadline { at, sooner: true } } else { self }
    }

    pub fn at(self) -> Instant {
        self.at
    }

    pub fn left(self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// Whether it is over only because who asks had no more time, which says nothing of who was asked.
    pub fn was_cut_short(self) -> bool {
        self.sooner && self.left().is_zero()
    }
}

/// Which agent asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lane {
    /// Small answers, wholly within the deadline.
    Manifests,
    /// Bodies without a total limit; each read is bounded.
    Blobs,
}

/// A request to be sent.
#[derive(Clone)]
pub(super) struct WireRequest<'a> {
    pub lane: Lane,
    pub method: Method,
    pub address: &'a Address,
    pub accept: Option<&'a str>,
    /// First byte wanted.
    pub from: u64,
    /// The byte before which the wanted part ends.
    pub end: Option<u64>,
    pub authorization: Option<&'a HeaderValue>,
    pub deadline: Deadline,
    /// On a new connection.
    pub fresh: bool,
}

/// `[fetch]`'s time-outs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub connect: Duration,
    pub header: Duration,
    pub stall: Duration,
}

/// How this board names itself to an endpoint, so that a chain of them knows itself.
struct Hop {
    board: BoardName,
    to: HttpOrigin,
    /// The endpoint is told how long it is waited for.
    says_wait: bool,
}

pub(super) struct Wire {
    agents: Watched<Agents>,
    proxies: Arc<Proxies>,
    times: Times,
    /// How this board names itself, and to whom.
    hop: Option<Hop>,
    /// Connections that were idle at this time are not trusted.
    last_outage: Mutex<Option<Instant>>,
}

/// With the connections that each keeps.
pub(super) struct Agents {
    manifests: Agent,
    blobs: Agent,
}

impl Agents {
    pub fn new(trust: &Trust, names: &Arc<Names>, policy: &Arc<Policy>) -> Self {
        let agent = |input_bytes: usize| {
            let config = Agent::config_builder()
                .http_status_as_error(false)
                .max_redirects(0)
                .max_redirects_will_error(false)
                .proxy(None)
                .user_agent(concat!("larder/", env!("CARGO_PKG_VERSION")))
                .accept_encoding("identity")
                .max_response_header_size(UPSTREAM_HEADER_BYTES_MAX)
                .input_buffer_size(input_bytes)
                .output_buffer_size(UPSTREAM_REQUEST_BYTES_MAX)
                .max_idle_connections(IDLE_CONNECTIONS)
                .max_idle_connections_per_host(IDLE_CONNECTIONS)
                .max_idle_age(IDLE_CONNECTION_AGE)
                .build();
            let dialer = Dialer::new(trust.clone(), names.clone(), policy.clone());
            Agent::with_parts(config, dialer.chain(PlainChunks), Later)
        };
        Agents { manifests: agent(UPSTREAM_HEADER_BYTES_MAX), blobs: agent(FETCH_CHUNK_BYTES) }
    }
}

impl Wire {
    pub fn new(times: Times, agents: Watched<Agents>, proxies: Arc<Proxies>) -> Self {
        Wire { agents, proxies, times, hop: None, last_outage: Mutex::new(None) }
    }

    /// The same, naming this board to an origin with each request.
    pub fn named(mut self, board: &BoardName, to: &HttpOrigin, says_wait: bool) -> Self {
        self.hop = Some(Hop { board: board.clone(), to: to.clone(), says_wait });
        self
    }

    pub fn times(&self) -> Times {
        self.times
    }

    /// Sends a request. That the other side closed a kept connection just then is no outage: the request, which
    /// changes nothing there, is retried on a new one; and so it is where a certificate may have been refused that has
    /// changed since.
    ///
    /// # Errors
    /// Why there is no answer; the status of one is not looked at.
    pub fn send(&self, request: &WireRequest) -> Result<Response<Body>, Failure> {
        let agents = self.agents.current();
        let mut answer = self.send_by(&agents, request);
        let may_be_refused = match &answer {
            Ok(answer) => matches!(answer.status().as_u16(), 400 | 401 | 403),
            Err(failure) => matches!(failure.cause(), Some(Cause::Tls | Cause::Cut | Cause::Connection)),
        };
        if may_be_refused && let Some(newer) = self.agents.newer_than(&agents) {
            answer = self.send_by(&newer, request);
        }
        if answer.as_ref().is_err_and(|failure| {
            !matches!(failure.cause(), None | Some(Cause::RateLimited | Cause::ServerError(_)))
        }) {
            *self.last_outage.lock() = Some(Instant::now());
        }
        answer
    }

    fn send_by(&self, agents: &Agents, request: &WireRequest) -> Result<Response<Body>, Failure> {
        let mut answer = self.send_once(agents, request);
        if answer.as_ref().is_err_and(was_cut) && !request.fresh && !request.deadline.left().is_zero() {
            answer = self.send_once(agents, &WireRequest { fresh: true, ..request.clone() });
        }
        let origin = &request.address.origin;
        answer.map_err(|error| {
            let failure = Failure::from_client(&origin.authority(), error);
            match self.proxies.for_origin(origin) {
                Some(proxy) => failure.through(&format!("{}:{}", proxy.host(), proxy.port())),
                None => failure,
            }
        })
    }

    fn send_once(&self, agents: &Agents, request: &WireRequest) -> Result<Response<Body>, ureq::Error> {
        let left = request.deadline.left();
        if left.is_zero() {
            return Err(ureq::Error::Timeout(ureq::Timeout::Global));
        }
        let header_time = self.times.header.min(left);
        let mut builder =
            http::Request::builder().method(request.method.clone()).uri(request.address.to_string());
        if let Some(accept) = request.accept {
            builder = builder.header(header::ACCEPT, accept);
        }
        match (request.from, request.end) {
            (0, None) => {}
            (from, None) => builder = builder.header(header::RANGE, format!("bytes={from}-")),
            (from, Some(end)) => {
                builder = builder.header(header::RANGE, format!("bytes={from}-{}", end.saturating_sub(1)));
            }
        }
        if let Some(authorization) = request.authorization {
            builder = builder.header(header::AUTHORIZATION, authorization);
        }
        if let Some(hop) = self.hop.as_ref().filter(|hop| hop.to == request.address.origin) {
            let way = via::way();
            builder = builder.header(header::VIA, way.onward(&hop.board));
            if hop.says_wait {
                let waits = if request.deadline.sooner { header_time } else { self.times.header };
                builder = builder.header("prefer", format!("wait={}", way.onward_wait(waits)));
            }
        }
        let agent = match request.lane {
            Lane::Manifests => &agents.manifests,
            Lane::Blobs => &agents.blobs,
        };
        let mut settings = agent
            .configure_request(builder.body(())?)
            .proxy(self.proxies.for_origin(&request.address.origin).cloned())
            .max_idle_age(if request.fresh { Duration::ZERO } else { self.idle_age() })
            .timeout_connect(Some(self.times.connect.min(left)))
            .timeout_send_request(Some(header_time))
            .timeout_recv_response(Some(header_time));
        settings = match request.lane {
            Lane::Manifests => settings.timeout_global(Some(left)).timeout_recv_body(Some(self.times.header)),
            Lane::Blobs => settings.timeout_per_read(Some(self.times.stall)),
        };
        agent.run(settings.build())
    }

    fn idle_age(&self) -> Duration {
        let last_outage = *self.last_outage.lock();
        last_outage.map_or(IDLE_CONNECTION_AGE, |at| at.elapsed().min(IDLE_CONNECTION_AGE))
    }
}

fn was_cut(error: &ureq::Error) -> bool {
    let ureq::Error::Io(error) = error else { return false };
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
    )
}
