//! Answering: a bounded number of threads, one for each connection of a peer, that read the own disk.

use super::wire::{Broken, PeerSession, Role};
use super::{Answer, PeerContent, Question};
use crate::budget;
use crate::files::Watched;
use crate::places::{self, Places};
use crate::text::Secret;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The listener for peers. Dropping it closes it; open connections end by themselves.
#[derive(Debug)]
pub struct Listening {
    address: SocketAddr,
    closed: Arc<AtomicBool>,
}

impl Listening {
    /// Where it listens, with the port that the kernel chose for port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Relaxed);
        // `accept` has no time-out; a connection wakes it.
        let here = match self.address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            ip => ip,
        };
        let _ = TcpStream::connect_timeout(&(here, self.address.port()).into(), Duration::from_millis(100));
    }
}

/// Begins to answer peers at `address` from `content`.
///
/// # Errors
/// A sentence that says what is wrong with the address and what can be done.
pub fn listen(
    address: SocketAddr,
    secret: Watched<Secret<Vec<u8>>>,
    content: Arc<dyn PeerContent>,
) -> Result<Listening, String> {
    let failed = |e: io::Error| {
        let advice = match e.kind() {
            io::ErrorKind::AddrInUse => "; another program listens there, choose another kit.listen",
            io::ErrorKind::AddrNotAvailable => "; this board has no such address, choose another kit.listen",
            _ => "",
        };
        format!("cannot listen for peers on {address}: {e}{advice}")
    };
    let listener = TcpListener::bind(address).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let closed = Arc::new(AtomicBool::new(false));
    let server = Arc::new(PeerServer {
        secret,
        content,
        closed: Arc::clone(&closed),
        places: Places::with_most_each(budget::KIT_CONNECTIONS_MAX, budget::KIT_CONNECTIONS_EACH),
    });
    std::thread::Builder::new()
        .name("kit".into())
        .stack_size(budget::SMALL_STACK_BYTES)
        .spawn(move || server.accept(&listener))
        .map_err(failed)?;
    log::info!("kit listening on {address}");
    Ok(Listening { address, closed })
}

struct PeerServer {
    secret: Watched<Secret<Vec<u8>>>,
    content: Arc<dyn PeerContent>,
    closed: Arc<AtomicBool>,
    /// For connections, handshakes included.
    places: Places<IpAddr>,
}

impl PeerServer {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        loop {
            let accepted = listener.accept();
            if self.closed.load(Ordering::Relaxed) {
                return;
            }
            match accepted {
                Ok((socket, caller)) => {
                    let Some(place) = self.places.take(&places::client(caller.ip())) else {
                        log::debug!("a connection of peer {caller} was closed: there are too many");
                        continue;
                    };
                    let server = Arc::clone(self);
                    let begun = std::thread::Builder::new()
                        .name("kit peer".into())
                        .stack_size(budget::SMALL_STACK_BYTES)
                        .spawn(move || {
                            server.talk(socket, caller);
                            drop(place);
                        });
                    if let Err(e) = begun {
                        log::warn!("cannot start a thread to answer peer {caller}: {e}");
                    }
                }
                Err(e) => {
                    log::warn!("cannot accept a peer's connection: {e}");
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    fn talk(&self, socket: TcpStream, caller: SocketAddr) {
        let until = Instant::now() + budget::KIT_HANDSHAKE_TIME;
        let ended = PeerSession::shake(socket, self.secret.current().reveal(), Role::Answerer, until)
            .and_then(|session| self.answer_all(session));
        match ended {
            Ok(()) => {}
            Err(Broken::Secret) => {
                log::warn!(
                    "refused peer {caller}: it does not have the secret of this kit (kit.secret_file)"
                );
            }
            Err(why) => log::debug!("the conversation with peer {caller} ended: {why}"),
        }
    }

    fn answer_all(&self, mut session: PeerSession) -> Result<(), Broken> {
        while let Some(question) = session.receive(Instant::now() + budget::KIT_IDLE_TIME)? {
            if self.closed.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.answer(&mut session, &question)?;
        }
        Ok(())
    }

    fn answer(&self, session: &mut PeerSession, question: &Question) -> Result<(), Broken> {
        let until = Instant::now() + budget::KIT_STALL_TIME;
        match question {
            Question::Tag { repository, tag, platforms } => {
                let answer = match self.content.tag(repository, tag, platforms) {
                    Some((digest, unix)) => Answer::Tag { digest, unix, complete: true },
                    None => Answer::None,
                };
                session.send(&answer, until)
            }
            Question::Manifest { repository, digest } => match self.content.manifest(repository, digest) {
                Some((media_type, file, size)) if size <= budget::MANIFEST_BYTES_MAX => {
                    session.send(&Answer::Manifest { media_type, size }, until)?;
                    send_file(session, &file, 0, size)
                }
                _ => session.send(&Answer::None, until),
            },
            Question::Blob { repository, digest, from } => match self.content.blob(repository, digest) {
                Some((file, size)) => {
                    session.send(&Answer::Blob { size }, until)?;
                    send_file(session, &file, *from, size)
                }
                None => session.send(&Answer::None, until),
            },
        }
    }
}

/// Sends the bytes from `from` to `size`. A file that is shorter than it was ends the connection.
fn send_file(session: &mut PeerSession, file: &File, from: u64, size: u64) -> Result<(), Broken> {
    let mut chunk = vec![0; budget::SERVE_CHUNK_BYTES];
    let mut at = from;
    while at < size {
        let want = usize::try_from(size - at).map_or(chunk.len(), |left| left.min(chunk.len()));
        match file.read_at(&mut chunk[..want], at) {
            Ok(0) => return Err(Broken::Io(io::ErrorKind::UnexpectedEof.into())),
            Ok(n) => {
                session.send_raw(&chunk[..n], Instant::now() + budget::KIT_STALL_TIME)?;
                at += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}
