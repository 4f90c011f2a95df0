//! Sockets that systemd has bound for us (sd_listen_fds(3)): `LISTEN_PID`, `LISTEN_FDS`, descriptors from 3 on.
//!
//! Invariants. What leaves here is a listening TCP socket that no child process inherits in turn. Failure: a descriptor
//! that is anything else is a mistake in the socket unit, which the caller should end with.

use crate::budget;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketType, sockopt};
use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// The first descriptor that is handed over; those before it are the standard streams.
const FIRST: RawFd = 3;

/// The sockets that were handed to this process; none if it was started otherwise, and none at a second call.
///
/// # Errors
/// A sentence that says what is wrong with the socket unit.
pub fn inherited_listeners() -> Result<Vec<TcpListener>, String> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    // The variables may have been inherited from a parent that they were meant for.
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Ok(Vec::new());
    }
    let count = number("LISTEN_FDS").unwrap_or(0);
    if count > budget::INHERITED_SOCKETS_MAX {
        let most = budget::INHERITED_SOCKETS_MAX;
        return Err(format!("systemd hands over {count} sockets, at most {most} are taken"));
    }
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let numbers = (FIRST..).take(count as usize);
    numbers.map(|number| listener(number).map_err(|e| format!("socket {number} of systemd {e}"))).collect()
}

fn listener(number: RawFd) -> Result<TcpListener, String> {
    let socket = take(number)?;
    let failed = |e: rustix::io::Errno| format!("cannot be used: {e}");
    // Whoever larder starts has no business with it; systemd hands it over open to all.
    fcntl_setfd(&socket, FdFlags::CLOEXEC).map_err(failed)?;
    let no_socket =
        |_| "is no socket; larder.socket needs ListenStream= with an address and a port".to_owned();
    let kind = sockopt::socket_type(&socket).map_err(no_socket)?;
    let family = sockopt::socket_domain(&socket).map_err(failed)?;
    let listens = sockopt::socket_acceptconn(&socket).map_err(failed)?;
    if kind != SocketType::STREAM
        || ![AddressFamily::INET, AddressFamily::INET6].contains(&family)
        || !listens
    {
        return Err(
            "does not listen for TCP; larder.socket needs ListenStream= with an address and a port".into()
        );
    }
    Ok(TcpListener::from(socket))
}

/// Makes a descriptor that is known by its number our own.
fn take(number: RawFd) -> Result<OwnedFd, String> {
    if std::fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_err() {
        return Err("is not open, though LISTEN_FDS counts it".into());
    }
    // SAFETY: the descriptor is open, as was just seen, and nobody else's: LISTEN_PID says that it was handed to this
    // process, which takes it once (TAKEN) and before it has opened anything that it keeps by this number.
    #[allow(unsafe_code)]
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    Ok(socket)
}
