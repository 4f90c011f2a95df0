//! Why an upstream did not give what was asked, in the four kinds that the mirror treats differently.
//!
//! An outage (`Unreachable`) lets an older version answer; `Missing` and `Denied` are answers of the upstream and are
//! passed on; `Wrong` is an answer that must not be served. Every text is one lower-case sentence that begins with
//! the host, holds no secret, and has what came from outside escaped.

use super::trust;
use crate::clock;
use crate::oci::quoted;
use rustls::{AlertDescription, CertificateError};
use std::fmt;
use std::io;
use std::time::SystemTime;

/// Why a question to an upstream has no usable answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The upstream could not be asked: an outage.
    Unreachable {
        /// What kind of outage.
        cause: Cause,
        /// The message, host first.
        detail: String,
    },
    /// The upstream says that it does not exist (404, 410).
    Missing {
        /// The message, host first.
        detail: String,
    },
    /// The upstream or its token server refuses (401, 403).
    Denied {
        /// The status it answered with.
        status: u16,
        /// The message, host first.
        detail: String,
    },
    /// The upstream answered something that must not be used or followed.
    Wrong {
        /// The message, host first.
        detail: String,
    },
}

/// The kind of an outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The host is there, nothing listens.
    Refused,
    /// No connection, header or body in time.
    Timeout,
    /// The name could not be resolved.
    Dns,
    /// No trust: unknown issuer, wrong name, not valid at this time.
    Tls,
    /// No connection can be made: there is no route, or what is in between refuses.
    Connection,
    /// A connection that was made was cut, or what answered does not speak HTTP.
    Cut,
    /// A status from 500 on.
    ServerError(u16),
    /// Status 429, or a `Retry-After` that has not passed.
    RateLimited,
    /// What answered is no registry: an ingress without its pod, a portal, a proxy.
    NotARegistry,
}

impl Cause {
    /// Whether it concerns the link, and so every question to the same endpoint. Anything else concerns what was asked for
    /// until a probe fails too.
    pub(super) fn is_of_the_link(self) -> bool {
        match self {
            Cause::Refused | Cause::Timeout | Cause::Dns | Cause::Tls | Cause::Connection => true,
            Cause::Cut | Cause::ServerError(_) | Cause::RateLimited | Cause::NotARegistry => false,
        }
    }
}

impl Failure {
    /// Whether the upstream could not be asked, so that something older may answer in its place.
    pub fn is_outage(&self) -> bool {
        matches!(self, Failure::Unreachable { .. })
    }

    /// Whether the upstream says no.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Failure::Missing { .. } | Failure::Denied { .. })
    }

    /// The kind of outage, if it is one.
    pub fn cause(&self) -> Option<Cause> {
        match self {
            Failure::Unreachable { cause, .. } => Some(*cause),
            Failure::Missing { .. } | Failure::Denied { .. } | Failure::Wrong { .. } => None,
        }
    }

    pub(super) fn unreachable(host: &str, cause: Cause, message: impl fmt::Display) -> Self {
        Failure::Unreachable { cause, detail: format!("{host}: {message}") }
    }

    /// Something else than a registry answered with `status`, and `content_type`.
    pub(super) fn no_registry(host: &str, status: u16, content_type: Option<&str>) -> Self {
        let shown = content_type.map_or_else(String::new, |shown| format!(" ({})", quoted(shown)));
        let message = format!("answered {status} but not as a registry does{shown}");
        Failure::unreachable(host, Cause::NotARegistry, message)
    }

    pub(super) fn wrong(host: &str, message: impl fmt::Display) -> Self {
        Failure::Wrong { detail: format!("{host}: {message}") }
    }

    /// What an error of the HTTP client means. `host` is whom it was talking to.
    pub(super) fn from_client(host: &str, error: ureq::Error) -> Self {
        let lost = |message: String| Failure::unreachable(host, Cause::Cut, message);
        let no_connection = |message: String| Failure::unreachable(host, Cause::Connection, message);
        match error {
            ureq::Error::Timeout(phase) => Failure::unreachable(host, Cause::Timeout, phase_message(phase)),
            ureq::Error::HostNotFound => {
                Failure::unreachable(host, Cause::Dns, "the name could not be resolved")
            }
            ureq::Error::ConnectionFailed => no_connection("no connection can be made".to_owned()),
            ureq::Error::Rustls(error) => Failure::tls(host, &error, SystemTime::now()),
            ureq::Error::Io(error) => Failure::from_io(host, &error),
            ureq::Error::Protocol(error) => {
                lost(format!("the answer is not http ({})", quoted(&error.to_string())))
            }
            ureq::Error::ConnectProxyFailed(message) => {
                no_connection(format!("the proxy refuses: {}", quoted(&message)))
            }
            ureq::Error::LargeResponseHeader(..) => {
                Failure::wrong(host, "the answer's header is larger than allowed")
            }
            ureq::Error::Other(inner) => match inner.downcast::<Obstacle>() {
                Ok(obstacle) => Failure::from_obstacle(host, *obstacle),
                Err(other) => lost(quoted(&other.to_string())),
            },
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                Failure::wrong(host, "the address is not one that can be asked")
            }
            other => lost(quoted(&other.to_string())),
        }
    }

    /// The same where it was a proxy that was connected to: what failed may be the proxy's.
    pub(super) fn through(self, proxy: &str) -> Self {
        match self {
            Failure::Unreachable { cause, detail } if cause != Cause::RateLimited => {
                Failure::Unreachable { cause, detail: format!("{detail} (through the proxy {proxy})") }
            }
            other => other,
        }
    }

    fn from_obstacle(host: &str, obstacle: Obstacle) -> Self {
        match obstacle {
            Obstacle::Name(message) => Failure::unreachable(host, Cause::Dns, message),
            Obstacle::Address(message) => Failure::wrong(host, message),
            Obstacle::Tls(error) => Failure::tls(host, &error, SystemTime::now()),
            Obstacle::Handshake(message) => Failure::unreachable(host, Cause::Connection, message),
            Obstacle::CalledOff => Failure::wrong(host, "the question gave way to others that wait"),
        }
    }

    fn from_io(host: &str, error: &io::Error) -> Self {
        if let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            return Failure::tls(host, inner, SystemTime::now());
        }
        let (cause, message) = match error.kind() {
            io::ErrorKind::ConnectionRefused => (Cause::Refused, "connection refused"),
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => (Cause::Timeout, "timed out"),
            io::ErrorKind::HostUnreachable => (Cause::Connection, "no route to the host"),
            io::ErrorKind::NetworkUnreachable => (Cause::Connection, "the network is unreachable"),
            io::ErrorKind::NetworkDown => (Cause::Connection, "the network is down"),
            io::ErrorKind::ConnectionReset => (Cause::Cut, "the connection was reset"),
            io::ErrorKind::UnexpectedEof => (Cause::Cut, "the connection was cut"),
            _ => {
                let message = quoted(&error.to_string());
                return Failure::unreachable(host, Cause::Cut, format!("the connection broke: {message}"));
            }
        };
        Failure::unreachable(host, cause, message)
    }

    /// A certificate that is "not yet valid" on a board without a clock says nothing about the certificate.
    fn tls(host: &str, error: &rustls::Error, now: SystemTime) -> Self {
        let message = match error {
            rustls::Error::InvalidCertificate(
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
            ) => {
                if !clock::is_plausible(now) {
                    "the clock is not set, so that no certificate can be verified".to_owned()
                } else {
                    "the certificate is not yet valid; is the clock right?".to_owned()
                }
            }
            rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            ) => "the certificate has expired".to_owned(),
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
                "the certificate's issuer is not trusted (ca_file can name it)".to_owned()
            }
            signed_itself if trust::shows_an_authority(signed_itself) => {
                "the certificate is self-signed (ca_file can name it)".to_owned()
            }
            rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) => "the certificate is for another name".to_owned(),
            rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => {
                "the other side asks for a client certificate (client_cert_file can name it)".to_owned()
            }
            rustls::Error::AlertReceived(
                AlertDescription::BadCertificate
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnknownCA
                | AlertDescription::AccessDenied,
            ) => "the other side does not accept the client certificate (client_cert_file)".to_owned(),
            other => format!("tls failed: {}", quoted(&other.to_string())),
        };
        Failure::unreachable(host, Cause::Tls, message)
    }
}

fn phase_message(phase: ureq::Timeout) -> &'static str {
    match phase {
        ureq::Timeout::Resolve => "the name was not resolved in time",
        ureq::Timeout::Connect => "no connection in time",
        ureq::Timeout::PerRead | ureq::Timeout::PerWrite => "the connection stalled",
        ureq::Timeout::SendRequest | ureq::Timeout::SendBody | ureq::Timeout::RecvResponse => {
            "no answer in time"
        }
        ureq::Timeout::RecvBody => "the answer did not end in time",
        _ => "timed out",
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Unreachable { detail, .. }
            | Failure::Missing { detail }
            | Failure::Denied { detail, .. }
            | Failure::Wrong { detail } => f.write_str(detail),
        }
    }
}

impl std::error::Error for Failure {}

/// What stopped a connection before it was one; travels through the HTTP client as `ureq::Error::Other`.
#[derive(Debug)]
pub(super) enum Obstacle {
    /// The name has no address.
    Name(String),
    /// The address is one that larder does not connect to.
    Address(String),
    /// The handshake failed.
    Tls(rustls::Error),
    /// The connection was cut during the handshake.
    Handshake(String),
    /// Others wait for the thread.
    CalledOff,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::Name(message) | Obstacle::Address(message) | Obstacle::Handshake(message) => {
                f.write_str(message)
            }
            Obstacle::Tls(error) => write!(f, "{error}"),
            Obstacle::CalledOff => f.write_str("the question gave way to others that wait"),
        }
    }
}

impl std::error::Error for Obstacle {}

impl From<Obstacle> for ureq::Error {
    fn from(obstacle: Obstacle) -> Self {
        ureq::Error::Other(Box::new(obstacle))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_never_set_is_named_as_the_cause() {
        let error = rustls::Error::InvalidCertificate(CertificateError::NotValidYet);
        let unset = Failure::tls("a.example", &error, SystemTime::UNIX_EPOCH);
        assert_eq!(
            unset.to_string(),
            "a.example: the clock is not set, so that no certificate can be verified"
        );
        let set = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(4_000_000_000);
        assert!(Failure::tls("a.example", &error, set).to_string().contains("not yet valid"));
        assert_eq!(unset.cause(), Some(Cause::Tls));
    }

    #[test]
    fn causes_of_outages_are_told_apart() {
        let of = |kind: io::ErrorKind| Failure::from_io("h", &kind.into()).cause().unwrap();
        assert_eq!(of(io::ErrorKind::ConnectionRefused), Cause::Refused);
        assert_eq!(of(io::ErrorKind::TimedOut), Cause::Timeout);
        assert_eq!(of(io::ErrorKind::ConnectionReset), Cause::Cut);
        assert_eq!(of(io::ErrorKind::NetworkUnreachable), Cause::Connection);
        let wrapped = io::Error::new(io::ErrorKind::InvalidData, rustls::Error::DecryptError);
        assert_eq!(Failure::from_io("h", &wrapped).cause(), Some(Cause::Tls));
        let refused = ureq::Error::from(Obstacle::Address("private".into()));
        assert_eq!(Failure::from_client("h", refused), Failure::Wrong { detail: "h: private".into() });
    }
}
