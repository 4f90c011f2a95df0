//! Listening: accepts connections, hands each to hyper, and stops in good order.
//!
//! Invariants. No more connections are open than [`super::admission`] has places; one more waits briefly and is answered
//! 503. No error of a single connection, and no passing error of `accept`, ends the server.

use super::admission::Admission;
use super::auth::Door;
use super::io::{Clock, Connection, Socket};
use super::{Shared, answer, tls};
use crate::budget;
use crate::mirror::Mirror;
use hyper::service::service_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

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

    /// Where it listens, with the port that the kernel chose for port 0.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// The server.
pub struct Server {
    shared: Arc<Shared>,
    tls: Option<tokio_rustls::TlsAcceptor>,
    /// For connections that have no place yet.
    at_the_door: Arc<Semaphore>,
    stop: watch::Sender<bool>,
}

impl Server {
    /// Prepares to serve `mirror`, reading the certificate and the password file if there are any.
    ///
    /// # Errors
    /// A sentence that names the file and what is wrong with it.
    pub fn new(mirror: Arc<Mirror>) -> Result<Server, String> {
        let config = Arc::clone(mirror.config());
        let tls = config.tls.as_ref().map(tls::acceptor).transpose()?;
        let door = Door::open(config.htpasswd_file.as_deref())?;
        Ok(Server {
            shared: Arc::new(Shared { mirror, door, admission: Admission::new(&config) }),
            tls,
            at_the_door: Arc::new(Semaphore::new(budget::AT_THE_DOOR_MAX)),
            stop: watch::Sender::new(false),
        })
    }

    /// Accepts connections until [`Server::stop`].
    pub async fn serve(&self, listener: Listener) {
        let mut stopped = self.stop.subscribe();
        loop {
            let Ok(at_the_door) = Arc::clone(&self.at_the_door).acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = listener.0.accept() => accepted,
                _ = stopped.wait_for(|stop| *stop) => return,
            };
            match accepted {
                Ok((socket, peer)) => {
                    let (shared, tls, stop) =
                        (Arc::clone(&self.shared), self.tls.clone(), self.stop.subscribe());
                    tokio::spawn(async move {
                        let ended = match shared.admission.connection().await {
                            Some(place) => {
                                drop(at_the_door);
                                let admitted = Arc::clone(&shared);
                                let ended = connection(admitted, tls, socket, peer.ip(), stop, true).await;
                                drop(place);
                                ended
                            }
                            None => {
                                log::warn!(
                                    "{peer} was turned away: all connections that memory.max allows are taken"
                                );
                                let away = connection(shared, tls, socket, peer.ip(), stop, false);
                                let away = tokio::time::timeout(budget::TURNED_AWAY_TIME, away).await;
                                away.unwrap_or_else(|late| Err(late.into()))
                            }
                        };
                        if let Err(problem) = ended {
                            log::debug!("connection of {peer} ended: {problem}");
                        }
                    });
                }
                Err(e) => {
                    log::warn!("cannot accept a connection: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Accepts no more, lets the requests under way end, and returns when none is left or `grace` is over.
    pub async fn stop(&self, grace: Duration) {
        self.stop.send_replace(true);
        let _ = tokio::time::timeout(grace, self.shared.admission.emptied()).await;
    }
}

/// Serves a connection, or tells it that there is no place for it.
async fn connection(
    shared: Arc<Shared>,
    tls: Option<tokio_rustls::TlsAcceptor>,
    socket: TcpStream,
    client: IpAddr,
    stop: watch::Receiver<bool>,
    admitted: bool,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    socket.set_nodelay(true)?;
    match tls {
        None => speak(shared, socket, client, stop, admitted).await,
        Some(acceptor) => {
            let socket = tokio::time::timeout(budget::REQUEST_HEADER_TIME, acceptor.accept(socket)).await??;
            speak(shared, socket, client, stop, admitted).await
        }
    }
}

async fn speak<S: Socket>(
    shared: Arc<Shared>,
    socket: S,
    client: IpAddr,
    mut stop: watch::Receiver<bool>,
    admitted: bool,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let socket = Connection::new(socket);
    let outlet = socket.outlet();
    let service = service_fn(move |request| {
        let (shared, outlet) = (Arc::clone(&shared), outlet.clone());
        async move {
            let mut answered =
                if admitted { super::answer(shared, client, request).await } else { answer::no_place() };
            if let Some(outlet) = &outlet {
                answered.body_mut().send_by(outlet);
            }
            Ok::<_, std::convert::Infallible>(answered)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(Clock)
        .header_read_timeout(budget::REQUEST_HEADER_TIME)
        .max_buf_size(budget::CONNECTION_BUFFER_BYTES)
        // Frames are queued as they are, which is what pieces of files rely on.
        .writev(true)
        .serve_connection(socket, service);
    tokio::pin!(connection);
    tokio::select! {
        biased;
        ended = connection.as_mut() => return Ok(ended?),
        _ = stop.wait_for(|stop| *stop) => connection.as_mut().graceful_shutdown(),
    }
    Ok(connection.await?)
}
