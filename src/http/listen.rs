//! Listening: accepts connections, hands each to hyper, and shuts down cleanly.
//!
//! A connection is a byte stream and the identity of its client: plain TCP, TLS and the streams of other listeners are
//! served by the same code.
//!
//! Invariants. No more connections are served than [`super::admission`] has permits; one more waits briefly and is
//! answered 503, and one that may not even wait is closed, so that accepting never stops. No error of a single connection, and no temporary error of `accept`, ends the server.

use super::admission::{Admission, ConnectionPermit};
use super::answer::Answer;
use super::auth::Authenticator;
use super::io::{Connection, HyperTimer};
use super::{ServerShared, answer, request, tls};
use crate::auth::Identity;
use crate::budget;
use crate::mirror::Mirror;
use hyper::body::Incoming;
use hyper::service::service_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// An address that is bound.
pub struct Listener(TcpListener);

impl Listener {
    /// Binds an address. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the address and what can be done.
    pub async fn bind(address: SocketAddr) -> Result<Listener, String> {
        match TcpListener::bind(address).await {
            Ok(listener) => Ok(Listener(listener)),
            Err(e) => {
                let advice = match e.kind() {
                    io::ErrorKind::AddrInUse => {
                        "; another program listens there, choose another with --listen"
                    }
                    io::ErrorKind::PermissionDenied => {
                        "; ports below 1024 need privileges, choose a higher one"
                    }
                    io::ErrorKind::AddrNotAvailable => "; this board has no such address",
                    _ => "",
                };
                Err(format!("cannot listen on {address}: {e}{advice}"))
            }
        }
    }

    /// Takes a socket that listens already. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn inherited(listener: std::net::TcpListener) -> Result<Listener, String> {
        // It may have come blocking, and then the first client that goes away while it waits would stop the others.
        let taken = listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener));
        taken.map(Listener).map_err(|e| format!("cannot use the socket that systemd handed over: {e}"))
    }

    /// The address it listens on, with the port that the kernel chose for port 0.
    ///
    /// # Errors
    /// The kernel does not know the socket's address.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// A stream of bytes between a client and the server.
pub trait ByteStream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> ByteStream for S {}

/// The server: answers clients over any byte stream, within the connections that `memory.max` allows.
pub struct Server(Arc<ServerShared>);

impl Server {
    /// Prepares to serve `mirror`, reading the certificate and the password file if there are any.
    ///
    /// # Errors
    /// A sentence that names the file and what is wrong with it.
    pub fn new(mirror: Arc<Mirror>) -> Result<Server, String> {
        let config = mirror.config();
        Ok(Server(Arc::new(ServerShared {
            mirror,
            authenticator: Authenticator::open(config.auth.htpasswd_file.clone())?,
            admission: Admission::new(&config),
            tls: config.tls.as_ref().map(tls::TlsFiles::open).transpose()?,
            stop: watch::Sender::new(false),
        })))
    }

    /// Accepts connections until [`Server::stop`].
    pub async fn serve(&self, listener: Listener) {
        let mut stopped = self.0.stop.subscribe();
        loop {
            let accepted = tokio::select! {
                accepted = listener.0.accept() => accepted,
                _ = stopped.wait_for(|stop| *stop) => return,
            };
            match accepted {
                Ok((socket, peer)) => self.accept(socket, Identity::anonymous(peer.ip())),
                Err(e) => {
                    log::warn!("cannot accept a connection: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Serves one client over a stream that another listener has accepted, until the client or [`Server::stop`] ends it.
    /// It is one of the connections that `memory.max` allows.
    pub async fn serve_stream(&self, stream: impl ByteStream, identity: Identity) {
        if let Some(permit) = self.permit(&identity) {
            let client = identity.address;
            let open = std::future::ready(Ok((Connection::new(stream), identity)));
            serve_client(Arc::clone(&self.0), open, client, permit).await;
        }
    }

    /// Accepts no more, lets the requests under way end, and returns when none is left or `grace` is over.
    pub async fn stop(&self, grace: Duration) {
        self.0.stop.send_replace(true);
        let _ = tokio::time::timeout(grace, self.0.admission.emptied()).await;
    }

    fn permit(&self, identity: &Identity) -> Option<Arc<ConnectionPermit>> {
        let permit = self.0.admission.connection(identity.address);
        if permit.is_none() {
            log::warn!("a connection of {} was closed: {}", identity.address, answer::NO_CONNECTION);
        }
        permit
    }

    /// Serves an accepted socket on a task of its own, with TLS if that is configured.
    fn accept(&self, socket: TcpStream, identity: Identity) {
        let Some(permit) = self.permit(&identity) else { return };
        let (shared, client) = (Arc::clone(&self.0), identity.address);
        let Some(tls) = shared.tls.as_ref().map(tls::TlsFiles::acceptor) else {
            let open = async { socket.set_nodelay(true).map(|()| (Connection::tcp(socket), identity)) };
            tokio::spawn(serve_client(shared, open, client, permit));
            return;
        };
        let open = async move {
            socket.set_nodelay(true)?;
            // A box, so that the connection's task does not keep the handshake's memory.
            let handshake = Box::pin(tls.accept(socket));
            let stream = tokio::time::timeout(budget::REQUEST_HEADER_TIME, handshake).await??;
            let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
            let identity = Identity { user: certificate.and_then(tls::user_of), sealed: true, ..identity };
            Ok((Connection::new(stream), identity))
        };
        tokio::spawn(serve_client(shared, open, client, permit));
    }
}

/// Serves the client of the connection that `open` gives. Unless it is admitted with its first request it is soon closed.
async fn serve_client<S: ByteStream>(
    shared: Arc<ServerShared>,
    open: impl Future<Output = io::Result<(Connection<S>, Identity)>>,
    client: IpAddr,
    permit: Arc<ConnectionPermit>,
) {
    let mut served = pin!(serve_http(shared, open, Arc::clone(&permit)));
    let mut ended = None;
    if !permit.is_admitted() {
        let longest = budget::ADMISSION_WAIT_MAX + budget::REJECTION_TIME;
        ended = match tokio::time::timeout(longest, served.as_mut()).await {
            Ok(ended) => Some(ended),
            Err(_) if permit.is_admitted() => None,
            Err(late) => Some(Err(late.into())),
        };
    }
    let ended = match ended {
        Some(ended) => ended,
        None => served.await,
    };
    if let Err(problem) = ended {
        log::debug!("connection of {client} ended: {problem}");
    }
}

/// Answers a request on a connection that may still wait for its permit.
async fn answer_admitted(
    shared: Arc<ServerShared>,
    identity: Arc<Identity>,
    permit: &ConnectionPermit,
    incoming: hyper::Request<Incoming>,
) -> Answer {
    if !permit.is_admitted() && request::asks_for_health(&incoming) {
        return answer::closing(super::answer(shared, identity, incoming).await);
    }
    if shared.admission.admit(permit).await {
        return super::answer(shared, identity, incoming).await;
    }
    log::warn!("{} was rejected: {}", identity.address, answer::NO_CONNECTION);
    answer::no_connection()
}

async fn serve_http<S: ByteStream>(
    shared: Arc<ServerShared>,
    open: impl Future<Output = io::Result<(Connection<S>, Identity)>>,
    permit: Arc<ConnectionPermit>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (connection, identity) = tokio::select! {
        opened = open => opened?,
        () = permit.recalled() => return Ok(()),
    };
    let (queue, identity) = (connection.queue(), Arc::new(identity));
    let mut stop = shared.stop.subscribe();
    let of_connection = Arc::clone(&permit);
    let service = service_fn(move |request| {
        let (shared, identity, queue) = (Arc::clone(&shared), Arc::clone(&identity), queue.clone());
        let permit = Arc::clone(&of_connection);
        async move {
            let under_way = permit.request();
            let mut answered = answer_admitted(shared, identity, &permit, request).await;
            answered.body_mut().hold(under_way);
            if let Some(queue) = queue {
                answered.body_mut().send_by(queue);
            }
            Ok::<_, std::convert::Infallible>(answered)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(HyperTimer)
        .header_read_timeout(budget::REQUEST_HEADER_TIME)
        .max_buf_size(budget::CONNECTION_BUFFER_BYTES)
        // Frames are queued as they are, which is what pieces of files rely on.
        .writev(true)
        .serve_connection(connection, service);
    tokio::pin!(connection);
    tokio::select! {
        biased;
        ended = connection.as_mut() => return Ok(ended?),
        _ = stop.wait_for(|stop| *stop) => {}
        // The header of a first request may take long, and nothing would be lost.
        () = permit.recalled() => if !permit.was_used() { return Ok(()) },
    }
    connection.as_mut().graceful_shutdown();
    Ok(connection.await?)
}
