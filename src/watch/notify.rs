//! The service manager's notification socket (sd_notify(3)): one datagram of `NAME=VALUE` lines for each message.
//!
//! Invariants. Only the socket that the environment names is written to, and a message that cannot be sent is dropped: the
//! manager's time-out handles silence.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The way to the service manager, if one listens.
pub struct Notify {
    to: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notify {
    /// As the environment of this process says: `NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`.
    pub fn from_environment() -> Notify {
        Notify::new(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn new(environment: &dyn Fn(&str) -> Option<String>) -> Notify {
        let to = environment("NOTIFY_SOCKET").and_then(|name| match way_to(&name) {
            Ok(to) => Some(to),
            Err(e) => {
                log::warn!("cannot notify the service manager at {name}: {e}");
                None
            }
        });
        // The variables are inherited by whatever a service starts, so they may be meant for somebody else.
        let ours = environment("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
        let period = environment("WATCHDOG_USEC").and_then(|period| period.parse().ok());
        let watchdog = period.filter(|&period| ours && to.is_some() && period > 0);
        Notify { to, watchdog: watchdog.map(Duration::from_micros) }
    }

    /// The longest time that may pass between two calls of [`Notify::alive`], if that is watched.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Whether anybody listens.
    pub fn is_heard(&self) -> bool {
        self.to.is_some()
    }

    /// The start is over: clients are answered. `status` is a line for people.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", one_line(status)));
    }

    /// A line for people.
    pub fn status(&self, status: &str) {
        self.send(&format!("STATUS={}", one_line(status)));
    }

    /// A sign of life.
    pub fn alive(&self) {
        if self.watchdog.is_some() {
            self.send("WATCHDOG=1");
        }
    }

    /// The end has begun.
    pub fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=stopping; downloads continue at the next start");
    }

    fn send(&self, words: &str) {
        let Some((socket, address)) = &self.to else { return };
        if let Err(e) = socket.send_to_addr(words.as_bytes(), address) {
            log::warn!("cannot notify the service manager: {e}");
        }
    }
}

/// A socket and the address that `NOTIFY_SOCKET` means: a path, or an abstract name after `@`.
fn way_to(name: &str) -> std::io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None if name.starts_with('/') => SocketAddr::from_pathname(name)?,
        None => return Err(std::io::Error::other("neither a path nor an abstract name")),
    };
    let socket = UnixDatagram::unbound()?;
    // A manager that does not read must not block the server.
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notify(variables: &[(&str, &str)]) -> Notify {
        let find = |name: &str| variables.iter().find(|(known, _)| *known == name);
        Notify::new(&|name| find(name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_watchdog_is_ours_or_nobodys() {
        let us = std::process::id().to_string();
        let socket = ("NOTIFY_SOCKET", "/nowhere");
        let period = ("WATCHDOG_USEC", "3000000");
        let three = Some(Duration::from_secs(3));
        assert_eq!(notify(&[socket, period, ("WATCHDOG_PID", &us)]).watchdog(), three);
        assert_eq!(notify(&[socket, period]).watchdog(), three);
        assert_eq!(notify(&[socket, period, ("WATCHDOG_PID", "1")]).watchdog(), None);
        assert_eq!(notify(&[socket, ("WATCHDOG_USEC", "0")]).watchdog(), None);
        assert_eq!(notify(&[period]).watchdog(), None);
    }

    #[test]
    fn no_manager_is_no_error() {
        let nobody = notify(&[]);
        nobody.ready("x");
        assert!(!nobody.is_heard());
        // Of a kind that is not known here, and one that has gone.
        assert!(!notify(&[("NOTIFY_SOCKET", "vsock:2:1234")]).is_heard());
        notify(&[("NOTIFY_SOCKET", "/nowhere/at/all")]).stopping();
    }
}
