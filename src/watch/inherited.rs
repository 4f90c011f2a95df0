//! Sockets that systemd has bound for us (sd_listen_fds(3)): `LISTEN_PID`, `LISTEN_FDS`, descriptors from 3 on.
//!
//! Invariants. What leaves here is a listening TCP socket that no child process inherits in turn. Failure: a descriptor
//! that is anything else is a mistake in the socket unit, which the caller should end with.

use crate::budget;
use listenfd::ListenFd;
use rustix::net::sockopt;
use std::net::TcpListener;

/// The sockets that were handed to this process; none if it was started otherwise, and none at a second call. To be
/// called before there is a second thread: it takes the variables out of the environment.
///
/// # Errors
/// A sentence that says what is wrong with the socket unit.
pub fn inherited_listeners() -> Result<Vec<TcpListener>, String> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    // The variables may have been inherited from a parent that they were meant for, and `listenfd` takes a missing
    // LISTEN_PID for ours.
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Ok(Vec::new());
    }
    let count = number("LISTEN_FDS").unwrap_or(0);
    if count > budget::INHERITED_SOCKETS_MAX {
        let most = budget::INHERITED_SOCKETS_MAX;
        return Err(format!("systemd hands over {count} sockets, at most {most} are taken"));
    }
    let mut sockets = ListenFd::from_env();
    (0..sockets.len()).map(|place| listener(&mut sockets, place)).collect()
}

fn listener(sockets: &mut ListenFd, place: usize) -> Result<TcpListener, String> {
    const ADVICE: &str = "larder.socket needs ListenStream= with an address and a port";
    let no_tcp = || format!("socket {place} of systemd does not listen for TCP; {ADVICE}");
    // `fd 3 is not a socket`, `fd 3 is not a valid tcp socket`
    let taken = sockets.take_tcp_listener(place);
    let socket = match taken.map_err(|e| e.to_string()) {
        Ok(socket) => socket.ok_or_else(no_tcp)?,
        Err(why) if why.ends_with("is not a socket") => {
            return Err(format!("socket {place} of systemd is no socket; {ADVICE}"));
        }
        Err(_) => return Err(no_tcp()),
    };
    if sockopt::socket_acceptconn(&socket).is_ok_and(|listens| listens) { Ok(socket) } else { Err(no_tcp()) }
}
