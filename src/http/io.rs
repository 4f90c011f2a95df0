//! The seam between hyper and tokio: sockets as hyper reads and writes them, and hyper's clock.
//!
//! A piece of a file that the body has handed over ([`super::direct`]) is sent here by the kernel. hyper has no limit on a
//! slow reader. Here a client that takes no byte for
//! [`budget::CLIENT_STALL_TIME`](crate::budget::CLIENT_STALL_TIME) is cut.

use super::direct::{Next, Outlet, Piece};
use crate::budget;
use hyper::rt::{Read, ReadBufCursor, Sleep, Timer, Write};
use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// What a client is connected by.
pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Whether it takes pieces of files.
    const TAKES_PIECES: bool;

    /// Has the kernel send some of a piece of a file.
    fn poll_send(&self, cx: &mut Context<'_>, piece: &Piece) -> Poll<io::Result<usize>>;
}

impl Socket for TcpStream {
    const TAKES_PIECES: bool = true;

    fn poll_send(&self, cx: &mut Context<'_>, piece: &Piece) -> Poll<io::Result<usize>> {
        loop {
            match self.poll_write_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => return Poll::Pending,
            }
            let sent = self.try_io(Interest::WRITABLE, || {
                let mut offset = piece.offset;
                Ok(rustix::fs::sendfile(self, &*piece.file, Some(&mut offset), piece.left)?)
            });
            match sent {
                Ok(0) => {
                    let short =
                        io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than it was");
                    return Poll::Ready(Err(short));
                }
                // The readiness was stale, or a signal came.
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                sent => return Poll::Ready(sent),
            }
        }
    }
}

impl Socket for TlsStream<TcpStream> {
    const TAKES_PIECES: bool = false;

    fn poll_send(&self, _: &mut Context<'_>, _: &Piece) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

thread_local! {
    /// What is read of a request before hyper has it.
    static READ: RefCell<[u8; 4096]> = const { RefCell::new([0; 4096]) };
}

/// A client's connection.
pub(super) struct Connection<S> {
    socket: S,
    /// Pieces of files that are to be sent.
    outlet: Outlet,
    /// Bytes of files sent since another connection had the chance to go on.
    in_turn: usize,
    /// A write waits for the client.
    stalled: bool,
    /// How long it may; kept for the next time.
    patience: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl<S> Connection<S> {
    pub(super) fn new(socket: S) -> Self {
        Connection { socket, outlet: Outlet::default(), in_turn: 0, stalled: false, patience: None }
    }

    /// The outlet for bodies, if the socket takes pieces of files.
    pub(super) fn outlet(&self) -> Option<Outlet>
    where
        S: Socket,
    {
        S::TAKES_PIECES.then(|| self.outlet.clone())
    }

    /// Sends some of a piece of a file.
    fn poll_send(&mut self, cx: &mut Context<'_>, piece: &Piece) -> Poll<io::Result<usize>>
    where
        S: Socket,
    {
        // A client that is faster than the page cache must not keep the thread from all the others.
        if self.in_turn >= budget::DIRECT_TURN_BYTES {
            self.in_turn = 0;
            // It goes on when this thread has looked after all others, and on this thread: a waker that is called right
            // away has another one take it over.
            if pin!(tokio::task::yield_now()).poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
        let sent = self.socket.poll_send(cx, piece);
        match &sent {
            Poll::Ready(Ok(bytes)) => {
                self.outlet.sent(*bytes);
                self.in_turn += bytes;
            }
            Poll::Ready(Err(e)) if !is_of_the_client(e) => {
                log::warn!("a client's download was cut at byte {}: {e}", piece.offset);
                if let Some(doubt) = &piece.doubt {
                    doubt();
                }
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.in_turn = 0,
        }
        self.bound(cx, sent)
    }

    /// Lets a pending write run out of time.
    fn bound<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let began = !std::mem::replace(&mut self.stalled, written.is_pending());
        if !self.stalled {
            return written;
        }
        let until = || tokio::time::Instant::now() + budget::CLIENT_STALL_TIME;
        let patience = match &mut self.patience {
            Some(patience) => {
                if began {
                    patience.as_mut().reset(until());
                }
                patience
            }
            none => none.insert(Box::pin(tokio::time::sleep_until(until()))),
        };
        patience
            .as_mut()
            .poll(cx)
            .map(|()| Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes no bytes")))
    }
}

impl<S: AsyncRead + Unpin> Read for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        // hyper's cursor hands out its memory only to unsafe code, so bytes take the way over a small buffer of the
        // thread. Requests are a few hundred bytes and have no bodies.
        READ.with_borrow_mut(|bytes| {
            let room = into.remaining().min(bytes.len());
            let mut buffer = ReadBuf::new(&mut bytes[..room]);
            match Pin::new(&mut self.socket).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) => {
                    into.put_slice(buffer.filled());
                    Poll::Ready(Ok(()))
                }
                other => other,
            }
        })
    }
}

impl<S: Socket> Write for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        // hyper never writes what it queues this way; if it did, a stand-in could be among it.
        if let Next::Piece(_) = self.outlet.next(&[io::IoSlice::new(bytes)])? {
            return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
        }
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.bound(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.socket).poll_flush(cx);
        self.bound(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.socket).poll_shutdown(cx);
        self.bound(cx, shut)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.outlet.next(slices)? {
            Next::Piece(piece) => self.poll_send(cx, &piece),
            Next::Slices(count) => {
                let written = Pin::new(&mut self.socket).poll_write_vectored(cx, &slices[..count]);
                self.bound(cx, written)
            }
        }
    }
}

/// Whether a failed write says that the client has gone, and nothing of the file.
fn is_of_the_client(e: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, TimedOut};
    matches!(e.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | TimedOut)
}

/// Without a timer hyper's time-out for request headers is silently off.
#[derive(Clone, Copy)]
pub(super) struct Clock;

struct Nap(Pin<Box<tokio::time::Sleep>>);

impl Future for Nap {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}

impl Sleep for Nap {}

impl Timer for Clock {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        Box::pin(Nap(Box::pin(tokio::time::sleep(duration))))
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(Nap(Box::pin(tokio::time::sleep_until(deadline.into()))))
    }
}
