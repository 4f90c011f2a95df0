//! A registry on loopback that fails on command.
//!
//! It speaks the read-only distribution API over HTTP/1.1, a thread a connection, and writes down every request. What
//! it does wrong is set while it runs. Waits end when they are released, when the upstream is dropped, and in any case
//! after [`CEILING`], so that no test can hang in here.

use super::image::Image;
use super::{header, read_head};
use crate::oci::{Algorithm, Digest, Manifest, media};
use crate::sync::{Condvar, Mutex};
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

/// Longest that anything waits in here.
const CEILING: Duration = Duration::from_secs(120);
/// Connections at a time; one more is closed at once.
const CONNECTIONS_MAX: usize = 512;
/// What an endless body ends at after all.
const ENDLESS_BYTES: usize = 64 << 20;

/// What the upstream does with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Behaviour {
    /// Sends nothing until released, then answers well.
    HangBeforeHeader,
    /// Answers this status with these headers.
    Status(u16, Vec<(String, String)>),
    /// Sends so many bytes of the body and no more until released.
    StallBodyAfter(usize),
    /// Sends so many bytes of the body and closes.
    CutBodyAfter(usize),
    /// Sends as many bytes as it should, of which some are wrong.
    WrongBytes,
    /// Names another digest in the header than the content has.
    WrongDigestHeader,
    /// Names no digest in the header.
    NoDigestHeader,
    /// Sends a body without end, chunked.
    EndlessBody,
    /// Claims so many bytes, and sends what it has.
    ContentLength(u64),
    /// Redirects to itself, for ever.
    RedirectLoop,
    /// Redirects.
    RedirectTo(String),
    /// Waits before the header, as a slow link does.
    Delay(Duration),
    /// Sends so many bytes at a time, with a pause after each.
    SlowBody {
        /// Bytes at a time.
        bytes: usize,
        /// The pause.
        pause: Duration,
    },
    /// Sends the body chunked, without its length.
    NoContentLength,
    /// Answers a request for a part with the whole.
    IgnoreRange,
    /// Answers with something that is not HTTP.
    Garbage,
}

/// How clients must log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// By user name and password with each request.
    Basic(String, String),
    /// By a token, which is given to everybody or to who knows user name and password.
    Token(Option<(String, String)>),
}

/// A request that came.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The method.
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// The query, without its question mark.
    pub query: String,
    /// The Range header.
    pub range: Option<String>,
    /// The Authorization header was there.
    pub authorized: bool,
    /// When it came.
    pub at: Instant,
}

/// The upstream. Dropping it ends it.
pub struct Upstream {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    blob_bytes: AtomicU64,
    ended: AtomicBool,
}

/// Content and its media type.
type Typed = (String, Arc<[u8]>);

/// Which requests, by method and part of the path, are answered how.
type Rule = (Option<String>, String, Behaviour);

#[derive(Default)]
struct State {
    tags: BTreeMap<String, BTreeMap<String, Digest>>,
    manifests: HashMap<(String, Digest), Typed>,
    blobs: HashMap<(String, Digest), Arc<[u8]>>,
    rules: Vec<Rule>,
    login: Option<Login>,
    seen: Vec<Seen>,
    /// Waits that began before this number of releases are over.
    releases: u64,
    connections: HashMap<u64, TcpStream>,
    connected: u64,
    /// Which listener is the present one; 0 while there is none.
    listener: u64,
    listeners: u64,
}

impl Upstream {
    /// Starts an empty registry on a port of the kernel's choice.
    ///
    /// # Errors
    /// Whatever the socket says.
    pub fn start() -> io::Result<Upstream> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            blob_bytes: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        });
        let upstream = Upstream { addr, shared };
        upstream.listen(listener)?;
        Ok(upstream)
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its address for a configuration.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Puts an image into a repository, and has a tag point to it.
    pub fn push(&self, repository: &str, tag: &str, image: &Image) {
        let mut state = self.shared.state();
        for (digest, bytes) in &image.blobs {
            state.blobs.insert((repository.to_owned(), digest.clone()), Arc::clone(bytes));
        }
        for (digest, manifest) in &image.manifests {
            state.manifests.insert((repository.to_owned(), digest.clone()), manifest.clone());
        }
        state.tags.entry(repository.to_owned()).or_default().insert(tag.to_owned(), image.root.clone());
    }

    /// Takes a tag away.
    pub fn remove_tag(&self, repository: &str, tag: &str) {
        if let Some(tags) = self.shared.state().tags.get_mut(repository) {
            tags.remove(tag);
        }
    }

    /// From now on requests of that method (`None`: any) whose path contains the text are answered so. The first rule
    /// that matches counts.
    pub fn on(&self, method: Option<&str>, path_contains: &str, behaviour: Behaviour) {
        self.shared.state().rules.push((method.map(str::to_owned), path_contains.to_owned(), behaviour));
    }

    /// Forgets every rule. Requests that wait go on waiting.
    pub fn clear(&self) {
        self.shared.state().rules.clear();
    }

    /// Lets every request go that waits now.
    pub fn release(&self) {
        self.shared.state().releases += 1;
        self.shared.changed.notify_all();
    }

    /// Asks for a login from now on.
    pub fn login(&self, login: Login) {
        self.shared.state().login = Some(login);
    }

    /// The uplink goes: connections are refused, and those that are open are closed.
    pub fn hang_up(&self) {
        let mut state = self.shared.state();
        state.listener = 0;
        for (_, stream) in state.connections.drain() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        drop(state);
        // The listener closes once its accept returns.
        let _ = TcpStream::connect(self.addr);
        let began = Instant::now();
        while TcpStream::connect(self.addr).is_ok() && began.elapsed() < CEILING {
            std::thread::yield_now();
        }
    }

    /// The uplink is back, on the same port.
    ///
    /// # Errors
    /// Another program has taken the port meanwhile.
    pub fn come_back(&self) -> io::Result<()> {
        let began = Instant::now();
        loop {
            match TcpListener::bind(self.addr) {
                Ok(listener) => return self.listen(listener),
                Err(e) if began.elapsed() > Duration::from_secs(5) => return Err(e),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Seen> {
        self.shared.state().seen.clone()
    }

    /// Requests of that method whose path contains the text.
    pub fn count(&self, method: &str, path_contains: &str) -> usize {
        self.shared.state().count(method, path_contains)
    }

    /// Waits until so many such requests have come.
    pub fn wait_for(&self, count: usize, method: &str, path_contains: &str, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = self.shared.state();
        while state.count(method, path_contains) < count {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.shared.changed.wait_timeout(state, left).0;
        }
        true
    }

    /// Bytes of blobs that were sent.
    pub fn blob_bytes_sent(&self) -> u64 {
        self.shared.blob_bytes.load(Ordering::Relaxed)
    }

    fn listen(&self, listener: TcpListener) -> io::Result<()> {
        let mut state = self.shared.state();
        state.listeners += 1;
        state.listener = state.listeners;
        let (number, shared) = (state.listener, Arc::clone(&self.shared));
        drop(state);
        let accept = move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { continue };
                if shared.ended.load(Ordering::Relaxed) || shared.state().listener != number {
                    return;
                }
                let shared = Arc::clone(&shared);
                let _ = std::thread::Builder::new().name("upstream".into()).spawn(move || {
                    // A client that goes away is what most of these tests are about.
                    let _ = serve(&shared, stream);
                });
            }
        };
        std::thread::Builder::new().name("upstream-door".into()).spawn(accept).map(drop)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.release();
        self.hang_up();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Waits for the next release.
    fn wait(&self) {
        let deadline = Instant::now() + CEILING;
        let mut state = self.state();
        let before = state.releases;
        while state.releases == before && !self.ended.load(Ordering::Relaxed) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.changed.wait_timeout(state, left).0;
        }
    }
}

impl State {
    fn count(&self, method: &str, path_contains: &str) -> usize {
        self.seen.iter().filter(|seen| seen.method == method && seen.path.contains(path_contains)).count()
    }

    fn behaviour(&self, method: &str, path: &str) -> Option<Behaviour> {
        let rule = self.rules.iter().find(|(of, contains, _)| {
            of.as_deref().is_none_or(|of| of == method) && path.contains(contains.as_str())
        });
        rule.map(|(_, _, behaviour)| behaviour.clone())
    }
}

/// A connection's life.
fn serve(shared: &Shared, stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(CEILING))?;
    stream.set_write_timeout(Some(CEILING))?;
    let number = {
        let mut state = shared.state();
        if state.connections.len() >= CONNECTIONS_MAX {
            return Ok(());
        }
        state.connected += 1;
        let number = state.connected;
        state.connections.insert(number, stream.try_clone()?);
        number
    };
    let served = converse(shared, &stream);
    shared.state().connections.remove(&number);
    let _ = stream.shutdown(Shutdown::Both);
    served
}

fn converse(shared: &Shared, stream: &TcpStream) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some((start, headers)) = read_head(&mut reader)? {
        let mut words = start.split(' ');
        let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let asked = Asked { method, path, query, headers: &headers };
        let behaviour = {
            let mut state = shared.state();
            state.seen.push(Seen {
                method: method.to_owned(),
                path: path.to_owned(),
                query: query.to_owned(),
                range: header(&headers, "range").map(str::to_owned),
                authorized: header(&headers, "authorization").is_some(),
                at: Instant::now(),
            });
            shared.changed.notify_all();
            state.behaviour(method, path)
        };
        let content = content(shared, &asked);
        if !answer(shared, stream, &asked, content, behaviour)?
            || header(&headers, "connection") == Some("close")
        {
            return Ok(());
        }
    }
    Ok(())
}

struct Asked<'a> {
    method: &'a str,
    path: &'a str,
    query: &'a str,
    headers: &'a [(String, String)],
}

/// What is answered if nothing is to go wrong.
struct Content {
    status: u16,
    headers: Vec<(String, String)>,
    body: Arc<[u8]>,
    is_blob: bool,
}

impl Content {
    fn new(status: u16, content_type: &str, body: impl Into<Arc<[u8]>>) -> Content {
        let headers = vec![("Content-Type".to_owned(), content_type.to_owned())];
        Content { status, headers, body: body.into(), is_blob: false }
    }

    fn with(mut self, name: &str, value: impl ToString) -> Content {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    fn error(status: u16, code: &str) -> Content {
        let body = json!({ "errors": [{ "code": code, "message": code }] }).to_string();
        Content::new(status, "application/json", body.into_bytes())
    }
}

fn content(shared: &Shared, asked: &Asked<'_>) -> Content {
    let state = shared.state();
    if asked.path == "/token" {
        return token(&state, asked);
    }
    if let Some(challenge) = challenge(&state, asked) {
        return challenge;
    }
    let Some(rest) = asked.path.strip_prefix("/v2/") else { return Content::error(404, "NOT_FOUND") };
    if rest.is_empty() {
        return Content::new(200, "application/json", *b"{}");
    }
    if rest == "_catalog" {
        let names: Vec<&String> = state.tags.keys().collect();
        return Content::new(
            200,
            "application/json",
            json!({ "repositories": names }).to_string().into_bytes(),
        );
    }
    let mut parts = rest.rsplitn(3, '/');
    let (last, kind, repository) =
        (parts.next().unwrap_or(""), parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    match kind {
        "manifests" => manifest(&state, repository, last),
        "blobs" => match last.parse::<Digest>().ok().and_then(|digest| {
            state.blobs.get(&(repository.to_owned(), digest.clone())).map(|bytes| (digest, Arc::clone(bytes)))
        }) {
            Some((digest, bytes)) => {
                Content { is_blob: true, ..Content::new(200, "application/octet-stream", bytes) }
                    .with("Docker-Content-Digest", digest)
            }
            None => Content::error(404, "BLOB_UNKNOWN"),
        },
        "tags" => tags(&state, repository, asked.query),
        "referrers" => referrers(&state, repository, last, asked.query),
        _ => Content::error(404, "NOT_FOUND"),
    }
}

fn manifest(state: &State, repository: &str, reference: &str) -> Content {
    let digest = match reference.parse::<Digest>() {
        Ok(digest) => Some(digest),
        Err(_) => state.tags.get(repository).and_then(|tags| tags.get(reference)).cloned(),
    };
    let found = digest.and_then(|digest| {
        let (media_type, bytes) = state.manifests.get(&(repository.to_owned(), digest.clone()))?;
        Some(Content::new(200, media_type, Arc::clone(bytes)).with("Docker-Content-Digest", digest))
    });
    found.unwrap_or_else(|| Content::error(404, "MANIFEST_UNKNOWN"))
}

fn tags(state: &State, repository: &str, query: &str) -> Content {
    let Some(tags) = state.tags.get(repository) else { return Content::error(404, "NAME_UNKNOWN") };
    let last = parameter(query, "last").unwrap_or("");
    let n = parameter(query, "n").and_then(|n| n.parse().ok()).unwrap_or(usize::MAX);
    let mut names: Vec<&String> = tags.keys().filter(|tag| tag.as_str() > last).collect();
    let more = names.len() > n;
    names.truncate(n);
    let body = json!({ "name": repository, "tags": names }).to_string();
    let page = Content::new(200, "application/json", body.into_bytes());
    match names.last() {
        Some(last) if more => {
            page.with("Link", format!("</v2/{repository}/tags/list?n={n}&last={last}>; rel=\"next\""))
        }
        _ => page,
    }
}

fn referrers(state: &State, repository: &str, digest: &str, query: &str) -> Content {
    let filter =
        parameter(query, "artifactType").map(|filter| filter.replace("%2F", "/").replace("%2B", "+"));
    let mut descriptors = Vec::new();
    for ((name, own), (media_type, bytes)) in &state.manifests {
        let Ok(manifest) = Manifest::parse(bytes, Some(media_type)) else { continue };
        let refers = manifest.subject.is_some_and(|subject| subject.to_string() == digest);
        let wanted = filter.is_none() || manifest.artifact_type == filter;
        if name == repository && refers && wanted {
            descriptors.push(json!({
                "mediaType": media_type, "digest": own, "size": bytes.len(), "artifactType": manifest.artifact_type
            }));
        }
    }
    let index = json!({ "schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": descriptors });
    let content = Content::new(200, media::OCI_INDEX, index.to_string().into_bytes());
    if filter.is_some() { content.with("OCI-Filters-Applied", "artifactType") } else { content }
}

/// Gives a token for the scope that is asked for; it is valid for that repository.
fn token(state: &State, asked: &Asked<'_>) -> Content {
    let Some(Login::Token(wanted)) = &state.login else { return Content::error(404, "NOT_FOUND") };
    if let Some((user, password)) = wanted
        && header(asked.headers, "authorization") != Some(basic(user, password).as_str())
    {
        return Content::error(401, "UNAUTHORIZED");
    }
    let scope = parameter(asked.query, "scope").unwrap_or("").replace("%3A", ":").replace("%2F", "/");
    let token = token_for(scope.split(':').nth(1).unwrap_or(""));
    let body = json!({ "token": token, "expires_in": 300 }).to_string();
    Content::new(200, "application/json", body.into_bytes())
}

fn token_for(repository: &str) -> String {
    Digest::of(Algorithm::Sha256, format!("a secret of the demo {repository}").as_bytes()).hex()
}

fn challenge(state: &State, asked: &Asked<'_>) -> Option<Content> {
    let given = header(asked.headers, "authorization");
    let repository = asked.path.trim_start_matches("/v2/").rsplitn(3, '/').nth(2).unwrap_or("");
    match state.login.as_ref()? {
        Login::Basic(user, password) => (given != Some(basic(user, password).as_str()))
            .then(|| Content::error(401, "UNAUTHORIZED").with("WWW-Authenticate", "Basic realm=\"demo\"")),
        Login::Token(_) => {
            let host = header(asked.headers, "host").unwrap_or("");
            let challenge = format!(
                "Bearer realm=\"http://{host}/token\",service=\"demo\",scope=\"repository:{repository}:pull\""
            );
            let valid = given == Some(format!("Bearer {}", token_for(repository)).as_str());
            (!valid).then(|| Content::error(401, "UNAUTHORIZED").with("WWW-Authenticate", challenge))
        }
    }
}

fn basic(user: &str, password: &str) -> String {
    use base64::Engine;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name).map(|(_, value)| value))
}

/// Sends the answer, or what the behaviour makes of it. Whether the connection can be used again.
fn answer(
    shared: &Shared,
    stream: &TcpStream,
    asked: &Asked<'_>,
    mut content: Content,
    behaviour: Option<Behaviour>,
) -> io::Result<bool> {
    let Some(behaviour) = behaviour else {
        return send(shared, stream, asked, content, &Manner::default());
    };
    let mut manner = Manner::default();
    match behaviour {
        Behaviour::HangBeforeHeader => shared.wait(),
        Behaviour::Delay(delay) => std::thread::sleep(delay),
        Behaviour::Status(status, headers) => {
            content = Content::error(status, "DENIED");
            content.headers.extend(headers);
        }
        Behaviour::RedirectLoop => content = Content::error(307, "MOVED").with("Location", asked.path),
        Behaviour::RedirectTo(url) => content = Content::error(307, "MOVED").with("Location", url),
        Behaviour::WrongBytes => {
            let mut wrong = content.body.to_vec();
            if let Some(byte) = wrong.last_mut() {
                *byte ^= 1;
            }
            content.body = wrong.into();
        }
        Behaviour::WrongDigestHeader => {
            let wrong = Digest::of(Algorithm::Sha256, b"something else").to_string();
            for (name, value) in &mut content.headers {
                if name == "Docker-Content-Digest" {
                    value.clone_from(&wrong);
                }
            }
        }
        Behaviour::NoDigestHeader => content.headers.retain(|(name, _)| name != "Docker-Content-Digest"),
        Behaviour::ContentLength(bytes) => manner.claimed = Some(bytes),
        Behaviour::StallBodyAfter(bytes) => manner.stall_after = Some(bytes),
        Behaviour::CutBodyAfter(bytes) => manner.cut_after = Some(bytes),
        Behaviour::SlowBody { bytes, pause } => manner.piece = Some((bytes, pause)),
        Behaviour::NoContentLength => manner.chunked = true,
        Behaviour::EndlessBody => (manner.chunked, manner.endless) = (true, true),
        Behaviour::IgnoreRange => manner.whole = true,
        Behaviour::Garbage => {
            (&*stream).write_all(b"\x00\x01 this is no HTTP \xff\r\n\r\n")?;
            return Ok(false);
        }
    }
    send(shared, stream, asked, content, &manner)
}

/// How a body is sent.
#[derive(Default)]
struct Manner {
    claimed: Option<u64>,
    stall_after: Option<usize>,
    cut_after: Option<usize>,
    piece: Option<(usize, Duration)>,
    chunked: bool,
    endless: bool,
    whole: bool,
}

fn send(
    shared: &Shared,
    mut stream: &TcpStream,
    asked: &Asked<'_>,
    content: Content,
    manner: &Manner,
) -> io::Result<bool> {
    let total = content.body.len();
    let from = match header(asked.headers, "range")
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'))
    {
        Some(from) if content.is_blob && content.status == 200 && !manner.whole => {
            from.parse::<usize>().unwrap_or(0).min(total)
        }
        _ => 0,
    };
    let body = &content.body[from..];
    let mut head = if from > 0 {
        format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {from}-{}/{total}\r\n",
            total.saturating_sub(1)
        )
    } else {
        format!("HTTP/1.1 {} Answer\r\n", content.status)
    };
    for (name, value) in &content.headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += &match (manner.chunked, manner.claimed) {
        (true, _) => "Transfer-Encoding: chunked\r\n\r\n".to_owned(),
        (false, Some(claimed)) => format!("Content-Length: {claimed}\r\n\r\n"),
        (false, None) => format!("Content-Length: {}\r\n\r\n", body.len()),
    };
    stream.write_all(head.as_bytes())?;
    if asked.method == "HEAD" {
        return Ok(true);
    }
    let count = |bytes: usize| {
        if content.is_blob {
            shared.blob_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    };
    if manner.endless {
        let piece = [0x2e; 65_536];
        for _ in 0..ENDLESS_BYTES / piece.len() {
            stream.write_all(b"10000\r\n")?;
            stream.write_all(&piece)?;
            stream.write_all(b"\r\n")?;
            count(piece.len());
        }
        return Ok(false);
    }
    let end = manner.cut_after.unwrap_or(body.len()).min(body.len());
    let pause_at = manner.stall_after.filter(|at| *at < end);
    let mut sent = 0;
    while sent < end {
        let stop = pause_at.filter(|at| sent < *at).unwrap_or(end);
        let piece = manner.piece.map_or(65_536, |(bytes, _)| bytes).min(stop - sent);
        let bytes = &body[sent..sent + piece];
        if manner.chunked {
            stream.write_all(format!("{piece:x}\r\n").as_bytes())?;
            stream.write_all(bytes)?;
            stream.write_all(b"\r\n")?;
        } else {
            stream.write_all(bytes)?;
        }
        count(piece);
        sent += piece;
        if Some(sent) == pause_at {
            shared.wait();
        }
        if let Some((_, pause)) = manner.piece {
            std::thread::sleep(pause);
        }
    }
    if manner.chunked {
        stream.write_all(b"0\r\n\r\n")?;
    }
    Ok(end == body.len() && manner.claimed.is_none_or(|claimed| claimed == body.len() as u64))
}
