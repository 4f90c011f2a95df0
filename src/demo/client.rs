//! A client that asks as containerd does: HEAD the tag, GET the manifests by digest, three blobs at a time, every hash
//! checked, a cut blob resumed by Range while it makes progress.

use super::{header, read_head};
use crate::oci::{Digest, Hasher, Kind, Manifest, Platform};
use crate::sync::Mutex;
use std::fmt;
use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Blobs at a time.
const AT_A_TIME: usize = 3;
/// Tries in a row that bring not a byte.
const FRUITLESS_TRIES: u32 = 4;

/// An answer whose body has not been read yet.
pub struct ClientAnswer {
    /// The status code.
    pub status: u16,
    /// The headers, as they came.
    pub headers: Vec<(String, String)>,
    reader: BufReader<TcpStream>,
    /// Bytes of the body still to come; `None`: chunked, which only errors of a test's own making are.
    left: u64,
}

impl ClientAnswer {
    /// The first header of that name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// The complete body.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] if it is shorter than its Content-Length.
    pub fn body(mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

impl Read for ClientAnswer {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Ok(0);
        }
        let room = into.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = self.reader.read(&mut into[..room])?;
        if n == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("cut {} bytes short", self.left),
            ));
        }
        self.left -= n as u64;
        Ok(n)
    }
}

/// Sends one request on a connection of its own.
///
/// # Errors
/// Whatever the socket says; [`io::ErrorKind::TimedOut`] or `WouldBlock` after `timeout` without a byte.
pub fn request(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    timeout: Duration,
) -> io::Result<ClientAnswer> {
    let mut stream = TcpStream::connect_timeout(&addr, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.set_nodelay(true)?;
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{text}\r\n").as_bytes())?;
    let mut reader = BufReader::with_capacity(64 * 1024, stream);
    let (start, headers) = read_head(&mut reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let status =
        start.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    let length = header(&headers, "content-length").and_then(|length| length.parse().ok());
    let bodiless = method == "HEAD" || status == 304;
    let left = if bodiless { 0 } else { length.ok_or(io::ErrorKind::InvalidData)? };
    Ok(ClientAnswer { status, headers, reader, left })
}

/// What a pull brought.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// What the tag stood for.
    pub digest: Digest,
    /// Bytes of manifests and blobs.
    pub bytes: u64,
    /// `Cache-Status` of the tag's answer.
    pub tag_status: String,
    /// How long the tag's answer took.
    pub tag_time: Duration,
    /// From the first request for a blob to its first byte.
    pub first_byte: Duration,
    /// All of it.
    pub elapsed: Duration,
}

/// Why a pull failed.
#[derive(Debug)]
pub enum PullError {
    /// The mirror answered something else than success.
    Status {
        /// What was asked for.
        path: String,
        /// The status code.
        status: u16,
        /// The body.
        body: String,
    },
    /// The connection failed, or a body stayed short.
    Io(String, io::Error),
    /// The content was not what its name says, or made no sense.
    Wrong(String),
}

impl fmt::Display for PullError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PullError::Status { path, status, body } => write!(f, "{path}: {status} {body}"),
            PullError::Io(path, e) => write!(f, "{path}: {e}"),
            PullError::Wrong(what) => f.write_str(what),
        }
    }
}

/// Pulls an image for a platform. `registry` is sent as `ns=`.
///
/// # Errors
/// [`PullError`]
pub fn pull(
    addr: SocketAddr,
    registry: Option<&str>,
    repository: &str,
    reference: &str,
    platform: &str,
    timeout: Duration,
) -> Result<Pulled, PullError> {
    let began = Instant::now();
    let ns = registry.map_or(String::new(), |registry| format!("?ns={registry}"));
    let asking = Asking { addr, repository, ns: &ns, timeout };
    let path = format!("/v2/{repository}/manifests/{reference}{ns}");
    let tag = asking.ask("HEAD", &path, &[])?;
    let (tag_status, tag_time) = (tag.header("cache-status").unwrap_or("").to_owned(), began.elapsed());
    let digest = tag.header("docker-content-digest").and_then(|digest| digest.parse::<Digest>().ok());
    let digest = digest.ok_or_else(|| PullError::Wrong("the tag's answer has no digest".into()))?;
    let wanted: Platform =
        platform.parse().map_err(|e: crate::oci::Invalid| PullError::Wrong(e.to_string()))?;
    let (image, mut bytes) = asking.image(&digest, &wanted, 0)?;
    let first_byte = Mutex::new(None);
    let blobs_began = Instant::now();
    let next = AtomicUsize::new(0);
    let total = Mutex::new(Ok(0u64));
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME.min(image.children.len()) {
            scope.spawn(|| {
                while let Some(child) = image.children.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let got = asking.blob(&child.digest, || {
                        first_byte.lock().get_or_insert_with(|| blobs_began.elapsed());
                    });
                    let mut total = total.lock();
                    match (total.as_mut(), got) {
                        (Ok(sum), Ok(n)) => *sum += n,
                        (Ok(_), Err(e)) => *total = Err(e),
                        (Err(_), _) => return,
                    }
                }
            });
        }
    });
    bytes += total.into_inner()?;
    let first_byte = first_byte.lock().unwrap_or_default();
    Ok(Pulled { digest, bytes, tag_status, tag_time, first_byte, elapsed: began.elapsed() })
}

struct Asking<'a> {
    addr: SocketAddr,
    repository: &'a str,
    ns: &'a str,
    timeout: Duration,
}

impl Asking<'_> {
    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Result<ClientAnswer, PullError> {
        let failed = |e| PullError::Io(path.to_owned(), e);
        let answer = request(self.addr, method, path, headers, self.timeout).map_err(failed)?;
        if (200..300).contains(&answer.status) {
            return Ok(answer);
        }
        let status = answer.status;
        let body = String::from_utf8_lossy(&answer.body().unwrap_or_default()).into_owned();
        Err(PullError::Status { path: path.to_owned(), status, body })
    }

    /// The image manifest for a platform, through as many indexes as it takes, and the bytes of all of them.
    fn image(&self, digest: &Digest, wanted: &Platform, depth: usize) -> Result<(Manifest, u64), PullError> {
        let path = format!("/v2/{}/manifests/{digest}{}", self.repository, self.ns);
        let answer = self.ask("GET", &path, &[])?;
        let media_type = answer.header("content-type").unwrap_or("").to_owned();
        let bytes = answer.body().map_err(|e| PullError::Io(path.clone(), e))?;
        if Digest::of(digest.algorithm(), &bytes) != *digest {
            return Err(PullError::Wrong(format!("{path} came with other content")));
        }
        let size = bytes.len() as u64;
        let manifest = Manifest::parse(&bytes, Some(&media_type))
            .map_err(|e| PullError::Wrong(format!("{path}: {e}")))?;
        if manifest.kind == Kind::Image || depth > 4 {
            return Ok((manifest, size));
        }
        let suits = |offered: &Platform| wanted.runs(offered);
        let child = manifest.children.iter().find(|child| child.platform.as_ref().is_none_or(suits));
        let child = child.ok_or_else(|| PullError::Wrong(format!("{path} has no image for {wanted}")))?;
        let (image, more) = self.image(&child.digest, wanted, depth + 1)?;
        Ok((image, size + more))
    }

    /// A blob, resumed as often as it makes progress; how many bytes it has.
    fn blob(&self, digest: &Digest, on_first_byte: impl Fn()) -> Result<u64, PullError> {
        let path = format!("/v2/{}/blobs/{digest}{}", self.repository, self.ns);
        let mut hasher = Hasher::new(digest.algorithm());
        let (mut got, mut fruitless) = (0u64, 0);
        let mut chunk = vec![0; 64 * 1024];
        loop {
            let range = format!("bytes={got}-");
            let headers: &[(&str, &str)] = if got > 0 { &[("Range", &range)] } else { &[] };
            let mut answer = self.ask("GET", &path, headers)?;
            if (answer.status == 206) != (got > 0) {
                return Err(PullError::Wrong(format!("{path}: {} to a request for {range}", answer.status)));
            }
            let before = got;
            let cut = loop {
                match answer.read(&mut chunk) {
                    Ok(0) => break None,
                    Ok(n) => {
                        on_first_byte();
                        hasher.update(&chunk[..n]);
                        got += n as u64;
                    }
                    Err(e) => break Some(e),
                }
            };
            let Some(cut) = cut else { break };
            fruitless = if got > before { 0 } else { fruitless + 1 };
            if fruitless >= FRUITLESS_TRIES {
                return Err(PullError::Io(path, cut));
            }
        }
        if hasher.finish() == *digest {
            Ok(got)
        } else {
            Err(PullError::Wrong(format!("{path} came with other content")))
        }
    }
}
