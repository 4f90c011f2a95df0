//! How two boards talk: they prove to each other that they know the secret, then exchange sealed frames.
//!
//! ```text
//! asker     "larder-kit-1\n", nonce of 32 bytes
//! answerer  "larder-kit-1\n", nonce of 32 bytes
//! asker     HMAC-SHA256(secret, "larder kit 1 proof", 'a', asker's nonce, answerer's nonce)
//! answerer  HMAC-SHA256(secret, "larder kit 1 proof", 'b', asker's nonce, answerer's nonce)
//! then      length (4 bytes, big endian), JSON of that length, seal of 32 bytes
//! seal      HMAC-SHA256(key, 'a' or 'b', count of frames in that direction (8 bytes, big endian), JSON)
//! key       HMAC-SHA256(secret, "larder kit 1 session", asker's nonce, answerer's nonce)
//! ```
//!
//! The asker proves itself first, so that who merely calls a board is given nothing that the secret was used on.
//! Nothing is encrypted: what is shared is public. After an answer that announces content its bytes follow as they are;
//! their hash is all that is believed of them.

use crate::budget;
use crate::oci::quoted;
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// What a caller says first, with the version of the protocol.
pub(super) const GREETING: &[u8; 13] = b"larder-kit-1\n";
/// Bytes of a nonce.
pub(super) const NONCE_BYTES: usize = 32;
/// Bytes of a proof and of a seal.
const MAC_BYTES: usize = 32;

/// Why a conversation ended.
#[derive(Debug)]
pub(super) enum Broken {
    /// The connection, or the time that it may take.
    Io(io::Error),
    /// The other side does not know the secret.
    Secret,
    /// The other side does not speak this protocol, or its bytes were changed on the way.
    Speech(String),
}

impl From<io::Error> for Broken {
    fn from(e: io::Error) -> Self {
        Broken::Io(e)
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::Io(e) => match e.kind() {
                ErrorKind::TimedOut | ErrorKind::WouldBlock => f.write_str("no answer in time"),
                ErrorKind::ConnectionRefused => f.write_str("connection refused"),
                ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => {
                    f.write_str("the connection was closed")
                }
                _ => e.fmt(f),
            },
            Broken::Secret => f.write_str("its secret is another"),
            Broken::Speech(what) => f.write_str(what),
        }
    }
}

/// Which end of a connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It opened the connection and asks.
    Asker,
    /// It answers.
    Answerer,
}

impl Role {
    fn letter(self) -> &'static [u8] {
        match self {
            Role::Asker => b"a",
            Role::Answerer => b"b",
        }
    }

    fn other(self) -> Role {
        match self {
            Role::Asker => Role::Answerer,
            Role::Answerer => Role::Asker,
        }
    }
}

/// A connection to a board that has proved that it knows the secret.
#[derive(Debug)]
pub(super) struct PeerSession {
    socket: TcpStream,
    key: hmac::Key,
    role: Role,
    sent: u64,
    received: u64,
}

impl PeerSession {
    /// Proves that this board knows the secret and has the other one prove it, until `until` at the latest.
    pub(super) fn shake(
        socket: TcpStream,
        secret: &[u8],
        role: Role,
        until: Instant,
    ) -> Result<PeerSession, Broken> {
        socket.set_nodelay(true)?;
        let mut mine = [0; NONCE_BYTES];
        let random = SystemRandom::new().fill(&mut mine);
        random.map_err(|_| Broken::Speech("the system has no random numbers".into()))?;
        let mut timed = Timed { socket: &socket, until };
        let greeting = [&GREETING[..], &mine].concat();
        if role == Role::Asker {
            timed.write_all(&greeting)?;
        }
        let mut theirs = [0; GREETING.len() + NONCE_BYTES];
        timed.read_exact(&mut theirs)?;
        let Some(theirs) = theirs.strip_prefix(&GREETING[..]) else {
            return Err(Broken::Speech("it does not speak this version of the protocol".into()));
        };
        if role == Role::Answerer {
            timed.write_all(&greeting)?;
        }
        let nonces = match role {
            Role::Asker => [&mine, theirs].concat(),
            Role::Answerer => [theirs, &mine].concat(),
        };
        let secret = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let proof = |role: Role| mac(&secret, &[b"larder kit 1 proof", role.letter(), &nonces]);
        if role == Role::Asker {
            timed.write_all(proof(role).as_ref())?;
        }
        let mut proved = [0; MAC_BYTES];
        timed.read_exact(&mut proved).map_err(|e| match (role, e.kind()) {
            // All that a board with another secret does is to hang up.
            (Role::Asker, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => Broken::Secret,
            _ => Broken::Io(e),
        })?;
        let expected = [b"larder kit 1 proof", role.other().letter(), &nonces].concat();
        // Compares in constant time.
        hmac::verify(&secret, &expected, &proved).map_err(|_| Broken::Secret)?;
        if role == Role::Answerer {
            timed.write_all(proof(role).as_ref())?;
        }
        let key = mac(&secret, &[b"larder kit 1 session", &nonces]);
        let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_ref());
        Ok(PeerSession { socket, key, role, sent: 0, received: 0 })
    }

    /// Sends a frame.
    pub(super) fn send(&mut self, value: &impl Serialize, until: Instant) -> Result<(), Broken> {
        let text = serde_json::to_vec(value).map_err(|e| Broken::Speech(e.to_string()))?;
        let length = u32::try_from(text.len()).ok().filter(|_| text.len() <= budget::KIT_FRAME_BYTES_MAX);
        let length = length.ok_or_else(|| Broken::Speech("the frame would be too large".into()))?;
        let seal = mac(&self.key, &[self.role.letter(), &self.sent.to_be_bytes(), &text]);
        self.sent += 1;
        let frame = [&length.to_be_bytes(), &text[..], seal.as_ref()].concat();
        Ok(Timed { socket: &self.socket, until }.write_all(&frame)?)
    }

    /// Receives a frame; `None` if the other side hung up before it began one.
    pub(super) fn receive<T: DeserializeOwned>(&mut self, until: Instant) -> Result<Option<T>, Broken> {
        let mut timed = Timed { socket: &self.socket, until };
        let mut length = [0; 4];
        if timed.read(&mut length[..1])? == 0 {
            return Ok(None);
        }
        timed.read_exact(&mut length[1..])?;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > budget::KIT_FRAME_BYTES_MAX {
            let most = budget::KIT_FRAME_BYTES_MAX;
            return Err(Broken::Speech(format!("it sends a frame of {length} bytes, more than {most}")));
        }
        let mut frame = vec![0; length + MAC_BYTES];
        timed.read_exact(&mut frame)?;
        let (text, seal) = frame.split_at(length);
        let expected = [self.role.other().letter(), &self.received.to_be_bytes(), text].concat();
        hmac::verify(&self.key, &expected, seal)
            .map_err(|_| Broken::Speech("a frame is not as it was sent".into()))?;
        self.received += 1;
        let value = serde_json::from_slice(text).map_err(|e| {
            Broken::Speech(format!("it sends what is not understood: {}", quoted(&e.to_string())))
        })?;
        Ok(Some(value))
    }

    /// Sends bytes of content.
    pub(super) fn send_raw(&mut self, bytes: &[u8], until: Instant) -> io::Result<()> {
        Timed { socket: &self.socket, until }.write_all(bytes)
    }

    /// Receives some bytes of content.
    pub(super) fn receive_raw(&mut self, buffer: &mut [u8], until: Instant) -> io::Result<usize> {
        Timed { socket: &self.socket, until }.read(buffer)
    }
}

/// The MAC of the parts one after another; all but the last are of a length that the first says.
fn mac(key: &hmac::Key, parts: &[&[u8]]) -> hmac::Tag {
    let mut context = hmac::Context::with_key(key);
    for part in parts {
        context.update(part);
    }
    context.sign()
}

/// A socket that works until a point in time, however the other side deals out its bytes.
struct Timed<'a> {
    socket: &'a TcpStream,
    until: Instant,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.socket.set_read_timeout(Some(self.left()?))?;
            match self.socket.read(buffer) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(self.left()?))?;
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
