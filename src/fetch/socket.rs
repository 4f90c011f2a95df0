//! What bytes travel over: a TCP connection, and TLS on top of one.
//!
//! A wait for input ends by its limit, and where others wait for the thread ([`turn`]).

use super::failure::Obstacle;
use crate::budget::QUESTION_LOOK_PAUSE;
use crate::sync::turn;
use rustix::net::RecvFlags;
use rustls::{ClientConnection, StreamOwned};
use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use ureq::Error;
use ureq::unversioned::transport::{Buffers, LazyBuffers, NextTimeout, Transport, TransportAdapter};

/// Longest one system call waits, however long the limit is.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// A TCP connection.
pub(super) struct TcpLink {
    stream: TcpStream,
    buffers: LazyBuffers,
    /// As they are set on the socket.
    read_timeout: Duration,
    write_timeout: Duration,
}

impl TcpLink {
    pub fn new(stream: TcpStream, buffers: LazyBuffers) -> Self {
        TcpLink { stream, buffers, read_timeout: Duration::ZERO, write_timeout: Duration::ZERO }
    }
}

impl fmt::Debug for TcpLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpLink").finish_non_exhaustive()
    }
}

impl Transport for TcpLink {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let timeout = timeout.for_write();
        let (began, limit) = (Instant::now(), *timeout.after);
        let (mut sent, mut left) = (0, limit);
        while sent < amount {
            if left.is_zero() {
                return Err(Error::Timeout(timeout.reason));
            }
            let step = left.min(WAIT_MAX);
            if step != self.write_timeout {
                self.stream.set_write_timeout(Some(step))?;
                self.write_timeout = step;
            }
            match self.stream.write(&self.buffers.output()[sent..amount]) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(count) => sent += count,
                Err(error) if is_to_be_retried(&error) => {}
                Err(error) => return Err(error.into()),
            }
            left = limit.saturating_sub(began.elapsed());
        }
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let timeout = timeout.for_read();
        let (began, limit) = (Instant::now(), *timeout.after);
        let mut left = limit;
        loop {
            if left.is_zero() {
                return Err(Error::Timeout(timeout.reason));
            }
            let mut step = left.min(WAIT_MAX);
            if turn::has_turn() {
                if turn::is_called_off() {
                    return Err(Obstacle::CalledOff.into());
                }
                step = step.min(QUESTION_LOOK_PAUSE);
            }
            if step != self.read_timeout {
                self.stream.set_read_timeout(Some(step))?;
                self.read_timeout = step;
            }
            match self.stream.read(self.buffers.input_append_buf()) {
                Ok(amount) => {
                    self.buffers.input_appended(amount);
                    return Ok(amount > 0);
                }
                Err(error) if is_to_be_retried(&error) => {}
                Err(error) => return Err(error.into()),
            }
            left = limit.saturating_sub(began.elapsed());
        }
    }

    /// An idle connection has nothing to say: bytes are garbage, and the end is the end.
    fn is_open(&mut self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        matches!(rustix::net::recv(&self.stream, &mut [0u8; 1][..], flags), Err(rustix::io::Errno::AGAIN))
    }
}

/// The time of a system call is over, or a signal came.
fn is_to_be_retried(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

/// TLS over a transport.
pub(super) struct TlsTransport {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, TransportAdapter>,
}

impl TlsTransport {
    pub fn new(buffers: LazyBuffers, stream: StreamOwned<ClientConnection, TransportAdapter>) -> Self {
        TlsTransport { buffers, stream }
    }
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
