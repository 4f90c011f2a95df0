//! One connection to a host that has several addresses: the first that answers is taken (RFC 8305, "Happy Eyeballs").
//!
//! The addresses are tried in an order in which the families take turns; the next is begun after a pause or as soon as the
//! one before has failed, and those before go on. One thread waits for all of them. What loses is closed at once, so that
//! nothing outlives the call. Which address answered last is remembered for each host and port, and is tried first.
//!
//! Failure is that of the first address that was asked and said no; a host none of whose addresses answers is a time-out.

use super::failure::Obstacle;
use crate::budget::{CONNECT_ATTEMPT_PAUSE, CONNECT_ATTEMPTS_MAX, PATHS_MAX, QUESTION_LOOK_PAUSE};
use crate::sync::{Mutex, turn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use ureq::{Error, Timeout};

/// Which address of a host answered last, or was a dead end.
#[derive(Debug, Default)]
pub(super) struct Paths(Mutex<HashMap<(String, u16), KnownPath>>);

#[derive(Clone, Copy, Debug)]
struct KnownPath {
    address: IpAddr,
    works: bool,
}

impl Paths {
    /// The addresses of `host` in the order in which they are tried, at most [`CONNECT_ATTEMPTS_MAX`] of them.
    pub fn in_order(&self, host: &str, found: Vec<SocketAddr>) -> Vec<SocketAddr> {
        let port = found.first().map_or(0, SocketAddr::port);
        let known = self.0.lock().get(&(host.to_owned(), port)).copied();
        let mut order = alternating(found, known);
        order.truncate(CONNECT_ATTEMPTS_MAX);
        order
    }

    /// The host answered at this address.
    pub fn worked(&self, host: &str, at: SocketAddr) {
        self.learn(host, at, true);
    }

    /// A connection to this address was made, and nothing came over it: it is tried last.
    pub fn led_nowhere(&self, host: &str, at: SocketAddr) {
        self.learn(host, at, false);
    }

    #[cfg(test)]
    pub fn known(&self) -> usize {
        self.0.lock().len()
    }

    fn learn(&self, host: &str, at: SocketAddr, works: bool) {
        let mut known = self.0.lock();
        let host = (host.to_owned(), at.port());
        if known.len() >= PATHS_MAX && !known.contains_key(&host) {
            known.clear();
        }
        known.insert(host, KnownPath { address: at.ip(), works });
    }
}

/// The families in turn (RFC 8305, section 4), beginning with that of the address that is known to work, or else with the
/// one that the system put first.
fn alternating(mut found: Vec<SocketAddr>, known: Option<KnownPath>) -> Vec<SocketAddr> {
    let mut seen = Vec::new();
    found.retain(|at| {
        !seen.contains(at) && {
            seen.push(*at);
            true
        }
    });
    let good = known.filter(|known| known.works).map(|known| known.address);
    let bad = known.filter(|known| !known.works).map(|known| known.address);
    found.sort_by_key(|at| if Some(at.ip()) == good { 0 } else { 1 + u8::from(Some(at.ip()) == bad) });
    let Some(first_is_v6) = good.or(found.first().map(SocketAddr::ip)).map(|address| address.is_ipv6())
    else {
        return found;
    };
    let (first, second): (Vec<_>, Vec<_>) = found.into_iter().partition(|at| at.is_ipv6() == first_is_v6);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut order = Vec::new();
    while order.len() < seen.len() {
        order.extend(first.next());
        order.extend(second.next());
    }
    if let Some(at) = order.iter().position(|at| Some(at.ip()) == bad) {
        let last = order.remove(at);
        order.push(last);
    }
    order
}

/// Connects to the first of the addresses that answers, and says which it was.
///
/// # Errors
/// `Timeout` where none has answered in time, `Io` where all have failed, `CalledOff` where others wait for the thread.
pub(super) fn connect_first(
    addresses: &[SocketAddr],
    limit: Duration,
) -> Result<(TcpStream, SocketAddr), Error> {
    let began = Instant::now();
    let mut race =
        Race { waiting: addresses.iter(), attempts: Vec::new(), next_at: Duration::ZERO, failed: None };
    loop {
        let now = began.elapsed();
        if turn::is_called_off() {
            return Err(Obstacle::CalledOff.into());
        }
        if let Some(winner) = race.begin_due(now) {
            return Ok(winner);
        }
        if race.attempts.is_empty() {
            return Err(Error::Io(race.failed.unwrap_or(Errno::HOSTUNREACH).into()));
        }
        let left = limit.saturating_sub(now);
        if left.is_zero() {
            return Err(Error::Timeout(Timeout::Connect));
        }
        if let Some(winner) = race.wait(now, left)? {
            return Ok(winner);
        }
    }
}

struct Race<'a> {
    waiting: std::slice::Iter<'a, SocketAddr>,
    attempts: Vec<(OwnedFd, SocketAddr)>,
    /// When the next is begun, from the start on.
    next_at: Duration,
    failed: Option<Errno>,
}

impl Race<'_> {
    /// Begins the attempts whose time has come; a socket that is connected at once has won.
    fn begin_due(&mut self, now: Duration) -> Option<(TcpStream, SocketAddr)> {
        while self.attempts.is_empty() || now >= self.next_at {
            let address = *self.waiting.next()?;
            match begin(address) {
                Ok((socket, true)) => match finish(socket, address) {
                    Ok(winner) => return Some(winner),
                    Err(error) => self.fail(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
                },
                Ok((socket, false)) => {
                    self.attempts.push((socket, address));
                    self.next_at = now + CONNECT_ATTEMPT_PAUSE;
                }
                Err(error) => self.fail(error),
            }
        }
        None
    }

    /// Waits until an attempt ends, or something else is to be done.
    fn wait(&mut self, now: Duration, left: Duration) -> io::Result<Option<(TcpStream, SocketAddr)>> {
        let mut step = left;
        if !self.waiting.as_slice().is_empty() {
            step = step.min(self.next_at.saturating_sub(now));
        }
        if turn::has_turn() {
            step = step.min(QUESTION_LOOK_PAUSE);
        }
        let mut sockets: Vec<PollFd<'_>> =
            self.attempts.iter().map(|(socket, _)| PollFd::new(socket, PollFlags::OUT)).collect();
        match poll(&mut sockets, Timespec::try_from(step).ok().as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ended: Vec<bool> = sockets.iter().map(|socket| !socket.revents().is_empty()).collect();
        for at in (0..ended.len()).filter(|&at| ended[at]).rev() {
            let (socket, address) = self.attempts.swap_remove(at);
            match sockopt::socket_error(&socket) {
                Ok(Ok(())) => return finish(socket, address).map(Some),
                Ok(Err(error)) | Err(error) => {
                    self.fail(error);
                    self.next_at = Duration::ZERO;
                }
            }
        }
        Ok(None)
    }

    /// That this board has no way to an address says less than what a host said.
    fn fail(&mut self, error: Errno) {
        let is_local = |error| matches!(error, Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::ADDRNOTAVAIL);
        match self.failed {
            Some(known) if !is_local(known) || is_local(error) => {}
            _ => self.failed = Some(error),
        }
    }
}

/// A socket on its way to `address`, and whether it is there.
fn begin(address: SocketAddr) -> Result<(OwnedFd, bool), Errno> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) => Ok((socket, true)),
        Err(Errno::INPROGRESS | Errno::INTR) => Ok((socket, false)),
        Err(error) => Err(error),
    }
}

fn finish(socket: OwnedFd, address: SocketAddr) -> io::Result<(TcpStream, SocketAddr)> {
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    Ok((stream, address))
}
