//! The adapter between hyper and tokio: connections as hyper reads and writes them, and hyper's timer.
//!
//! A [`Connection`] wraps any byte stream. The kernel sends the pieces of files that a body has queued
//! ([`super::sendfile`]), if the stream is a TCP socket. hyper has no limit for a slow client: here a client that takes no
//! byte for [`budget::CLIENT_STALL_TIME`](crate::budget::CLIENT_STALL_TIME) is cut.

use super::pool;
use super::sendfile::{FilePiece, NextWrite, SendfileQueue};
use crate::budget;
use hyper::rt::{Read, ReadBufCursor, Sleep, Timer, Write};
use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// Has the kernel send some of a piece of a file to a client.
type SendPiece<S> = fn(&S, &mut Context<'_>, &FilePiece) -> Poll<io::Result<usize>>;

fn send_piece(socket: &TcpStream, cx: &mut Context<'_>, piece: &FilePiece) -> Poll<io::Result<usize>> {
    loop {
        ready!(socket.poll_write_ready(cx))?;
        let sent = socket.try_io(Interest::WRITABLE, || {
            let mut offset = piece.offset;
            Ok(rustix::fs::sendfile(socket, &*piece.file, Some(&mut offset), piece.left)?)
        });
        match sent {
            Ok(0) => return Poll::Ready(Err(pool::shorter())),
            // The readiness was stale, or a signal came.
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            sent => return Poll::Ready(sent),
        }
    }
}

thread_local! {
    /// Bytes of a request on their way to hyper.
    static READ: RefCell<[u8; 4096]> = const { RefCell::new([0; 4096]) };
}

/// A client's connection over any byte stream.
pub(super) struct Connection<S> {
    stream: S,
    /// Sends pieces of files, if the stream can.
    send_piece: Option<SendPiece<S>>,
    /// Pieces of files that are to be sent.
    queue: SendfileQueue,
    /// Bytes of files sent since another connection had the chance to go on.
    in_turn: usize,
    /// A write waits for the client.
    stalled: bool,
    /// When that has taken too long; kept for the next time.
    stall_timer: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Connection<TcpStream> {
    /// A connection to which the kernel sends files.
    pub(super) fn tcp(socket: TcpStream) -> Self {
        Connection { send_piece: Some(send_piece), ..Connection::new(socket) }
    }
}

impl<S> Connection<S> {
    /// A connection whose bytes all pass through the process.
    pub(super) fn new(stream: S) -> Self {
        let queue = SendfileQueue::default();
        Connection { stream, send_piece: None, queue, in_turn: 0, stalled: false, stall_timer: None }
    }

    /// The queue for bodies, if the stream takes pieces of files.
    pub(super) fn queue(&self) -> Option<SendfileQueue> {
        self.send_piece.map(|_| self.queue.clone())
    }

    /// Sends some of a piece of a file.
    fn poll_send(&mut self, cx: &mut Context<'_>, piece: &FilePiece) -> Poll<io::Result<usize>> {
        let Some(send_piece) = self.send_piece else {
            return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
        };
        // A client that is faster than the page cache must not keep the thread from all other clients.
        if self.in_turn >= budget::DIRECT_TURN_BYTES {
            self.in_turn = 0;
            // It goes on when this thread has polled all others, and on this thread: a waker that is called at once moves
            // the task to another thread.
            if pin!(tokio::task::yield_now()).poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
        let sent = send_piece(&self.stream, cx, piece);
        match &sent {
            Poll::Ready(Ok(bytes)) => {
                self.queue.sent(*bytes);
                self.in_turn += bytes;
            }
            Poll::Ready(Err(e)) if !client_is_gone(e) => {
                log::warn!("a client's download was cut at byte {}: {e}", piece.offset);
                if let Some(on_failure) = &piece.on_failure {
                    on_failure();
                }
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.in_turn = 0,
        }
        self.bound(cx, sent)
    }

    /// Fails a write that is pending for too long.
    fn bound<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let began = !std::mem::replace(&mut self.stalled, written.is_pending());
        if !self.stalled {
            return written;
        }
        let until = || tokio::time::Instant::now() + budget::CLIENT_STALL_TIME;
        let timer = self.stall_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until())));
        if began {
            timer.as_mut().reset(until());
        }
        let stalled = || io::Error::new(io::ErrorKind::TimedOut, "the client takes no bytes");
        timer.as_mut().poll(cx).map(|()| Err(stalled()))
    }
}

impl<S: AsyncRead + Unpin> Read for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        // hyper's cursor gives its memory only to unsafe code, so bytes are copied through a small buffer of the thread.
        // Requests are a few hundred bytes and have no bodies.
        READ.with_borrow_mut(|bytes| {
            let room = into.remaining().min(bytes.len());
            let mut buffer = ReadBuf::new(&mut bytes[..room]);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
            into.put_slice(buffer.filled());
            Poll::Ready(Ok(()))
        })
    }
}

impl<S: AsyncWrite + Unpin> Write for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        // hyper never writes frames this way; if it did, a placeholder could be among them.
        if let NextWrite::Piece(_) = self.queue.next_write(&[io::IoSlice::new(bytes)])? {
            return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.bound(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.bound(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.bound(cx, shut)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.queue.next_write(slices)? {
            NextWrite::Piece(piece) => self.poll_send(cx, &piece),
            NextWrite::Slices(count) => {
                let written = Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..count]);
                self.bound(cx, written)
            }
        }
    }
}

/// Whether a failed write means that the client is gone, and not that the file cannot be read.
fn client_is_gone(e: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, TimedOut};
    matches!(e.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | TimedOut)
}

/// Without a timer hyper's time-out for request headers is silently off.
#[derive(Clone, Copy)]
pub(super) struct HyperTimer;

struct HyperSleep(Pin<Box<tokio::time::Sleep>>);

impl Future for HyperSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}

impl Sleep for HyperSleep {}

impl Timer for HyperTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        Box::pin(HyperSleep(Box::pin(tokio::time::sleep(duration))))
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(HyperSleep(Box::pin(tokio::time::sleep_until(deadline.into()))))
    }
}
