//! A registry on loopback that fails on command.
//!
//! It speaks the read-only distribution API over HTTP/1.1, a thread a connection, and writes down every request. What
//! it does wrong is set while it runs. Waits end when they are released, when the upstream is dropped, and in any case
//! after [`CEILING`], so that no test can hang in here.

use super::content::{Asked, content, is_logged_in};
use super::image::SampleImage;
use super::send::answer;
use super::{header, read_head};
use crate::oci::Digest;
use crate::sync::{Condvar, Mutex};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, BufReader};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Longest that anything waits in here.
const CEILING: Duration = Duration::from_secs(120);
/// Connections at a time; one more is closed at once.
const CONNECTIONS_MAX: usize = 512;

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
    /// Answers a request for a part with everything, sends so many bytes of it and closes.
    CutFromStartAfter(usize),
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
    /// Sends the body chunked, with this behind the size of each chunk.
    ChunkExtensions(String),
    /// Answers a request for a part with everything.
    IgnoreRange,
    /// Answers a request for a part with 416 and this `Content-Range`.
    RefuseRange(Option<String>),
    /// Answers a request for a part with another one, which begins at this byte.
    PartFrom(usize),
    /// Sends the body chunked, so many bytes of it, and closes without an end. A part from there on it refuses.
    CutChunkedAfter(usize),
    /// Answers with something that is not HTTP.
    Garbage,
    /// Closes the connection instead of an answer.
    CutBeforeHeader,
    /// Answers well, with a header of so many bytes more.
    LongHeader(usize),
    /// Answers well, with this header instead of its own of that name.
    Header(&'static str, String),
    /// Answers exactly this, with a length of its own only if the headers have none.
    Exactly(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// Answers well, with these headers more.
    WithHeaders(Vec<(String, String)>),
}

/// How clients must log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoginDemand {
    /// By user name and password with each request.
    Basic(String, String),
    /// By a token, which is given to everybody or to who knows user name and password.
    Token(Option<(String, String)>),
    /// By a token. Everybody gets one, for HEAD and for what is not hidden ([`FaultyRegistry::hide`]); who knows user name and
    /// password gets one for everything.
    Limited(String, String),
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
    /// It came with the login, or with the token that a login gets.
    pub logged_in: bool,
    /// What it said.
    pub authorization: Option<String>,
    /// The Via header.
    pub via: Option<String>,
    /// When it came.
    pub at: Instant,
}

/// The upstream. Dropping it ends it.
pub struct FaultyRegistry {
    addr: SocketAddr,
    shared: Arc<RegistryShared>,
}

/// What the registry and its connections share.
pub(super) struct RegistryShared {
    pub(super) state: Mutex<RegistryState>,
    changed: Condvar,
    pub blob_bytes: AtomicU64,
    ended: AtomicBool,
}

/// Content and its media type.
type Typed = (String, Arc<[u8]>);

/// Which requests, by method and part of the path, are answered how.
type Rule = (Option<String>, String, Behaviour);

#[derive(Default)]
/// What the registry has, and what it is to do.
pub(super) struct RegistryState {
    pub tags: BTreeMap<String, BTreeMap<String, Digest>>,
    pub manifests: HashMap<(String, Digest), Typed>,
    pub blobs: HashMap<(String, Digest), Arc<[u8]>>,
    rules: Vec<Rule>,
    pub login: Option<LoginDemand>,
    /// Repositories that only a login shows.
    pub hidden: BTreeSet<String>,
    /// What is answered to HEAD without a login, if nothing else is.
    pub anonymous_status: Option<u16>,
    /// Other logins: user, password, and the one repository that each may read.
    pub accounts: Vec<(String, String, String)>,
    seen: Vec<Seen>,
    /// Waits that began before this number of releases are over.
    releases: u64,
    connections: HashMap<u64, TcpStream>,
    connected: u64,
    /// Which listener is the present one; 0 while there is none.
    listener: u64,
    listeners: u64,
}

impl FaultyRegistry {
    /// Starts an empty registry on a port of the kernel's choice.
    ///
    /// # Errors
    /// Whatever the socket says.
    pub fn start() -> io::Result<FaultyRegistry> {
        FaultyRegistry::start_at(Ipv4Addr::LOCALHOST)
    }

    /// Starts an empty registry at an address of loopback. While it is hung up its port is free: at an address of its own
    /// nobody else takes it.
    ///
    /// # Errors
    /// Whatever the socket says.
    pub fn start_at(address: Ipv4Addr) -> io::Result<FaultyRegistry> {
        let listener = TcpListener::bind((address, 0))?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(RegistryShared {
            state: Mutex::default(),
            changed: Condvar::new(),
            blob_bytes: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        });
        let upstream = FaultyRegistry { addr, shared };
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
    pub fn push(&self, repository: &str, tag: &str, image: &SampleImage) {
        let mut state = self.shared.state.lock();
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
        if let Some(tags) = self.shared.state.lock().tags.get_mut(repository) {
            tags.remove(tag);
        }
    }

    /// From now on requests of that method (`None`: any) whose path contains the text are answered so. The first rule
    /// that matches counts.
    pub fn on(&self, method: Option<&str>, path_contains: &str, behaviour: Behaviour) {
        self.shared.state.lock().rules.push((method.map(str::to_owned), path_contains.to_owned(), behaviour));
    }

    /// Forgets every rule. Requests that wait go on waiting.
    pub fn clear(&self) {
        self.shared.state.lock().rules.clear();
    }

    /// Lets every request go that waits now.
    pub fn release(&self) {
        self.shared.state.lock().releases += 1;
        self.shared.changed.notify_all();
    }

    /// Hides a repository from who has not logged in, or shows it again.
    pub fn hide(&self, repository: &str, hidden: bool) {
        let mut state = self.shared.state.lock();
        if hidden {
            state.hidden.insert(repository.to_owned());
        } else {
            state.hidden.remove(repository);
        }
    }

    /// Answers HEAD of manifests with this status to who has not logged in.
    pub fn refuse_anonymous(&self, status: Option<u16>) {
        self.shared.state.lock().anonymous_status = status;
    }

    /// Asks for a login from now on.
    pub fn login(&self, login: LoginDemand) {
        self.shared.state.lock().login = Some(login);
    }

    /// Besides the login that is asked for, this one may read one repository from now on.
    pub fn open_account(&self, user: &str, password: &str, repository: &str) {
        let account = (user.to_owned(), password.to_owned(), repository.to_owned());
        self.shared.state.lock().accounts.push(account);
    }

    /// Such a login may read nothing any more.
    pub fn close_accounts(&self, user: &str) {
        self.shared.state.lock().accounts.retain(|(name, ..)| name != user);
    }

    /// The uplink goes: connections are refused, and those that are open are closed.
    pub fn hang_up(&self) {
        let mut state = self.shared.state.lock();
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
        self.shared.state.lock().seen.clone()
    }

    /// Requests of that method whose path contains the text.
    pub fn count(&self, method: &str, path_contains: &str) -> usize {
        self.shared.state.lock().count(method, path_contains)
    }

    /// Waits until so many such requests have come.
    pub fn wait_for(&self, count: usize, method: &str, path_contains: &str, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = self.shared.state.lock();
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
        let mut state = self.shared.state.lock();
        state.listeners += 1;
        state.listener = state.listeners;
        let (number, shared) = (state.listener, Arc::clone(&self.shared));
        drop(state);
        let accept = move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { continue };
                if shared.ended.load(Ordering::Relaxed) || shared.state.lock().listener != number {
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

impl Drop for FaultyRegistry {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.release();
        self.hang_up();
    }
}

impl RegistryShared {
    /// Waits for the next release.
    pub fn wait(&self) {
        let deadline = Instant::now() + CEILING;
        let mut state = self.state.lock();
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

impl RegistryState {
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
fn serve(shared: &RegistryShared, stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(CEILING))?;
    stream.set_write_timeout(Some(CEILING))?;
    let number = {
        let mut state = shared.state.lock();
        if state.connections.len() >= CONNECTIONS_MAX {
            return Ok(());
        }
        state.connected += 1;
        let number = state.connected;
        state.connections.insert(number, stream.try_clone()?);
        number
    };
    let served = converse(shared, &stream);
    shared.state.lock().connections.remove(&number);
    let _ = stream.shutdown(Shutdown::Both);
    served
}

fn converse(shared: &RegistryShared, stream: &TcpStream) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some((start, headers)) = read_head(&mut reader)? {
        let mut words = start.split(' ');
        let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let asked = Asked { method, path, query, headers: &headers };
        let behaviour = {
            let mut state = shared.state.lock();
            let logged_in = is_logged_in(&state, &asked);
            state.seen.push(Seen {
                method: method.to_owned(),
                path: path.to_owned(),
                query: query.to_owned(),
                range: header(&headers, "range").map(str::to_owned),
                authorized: header(&headers, "authorization").is_some(),
                logged_in,
                authorization: header(&headers, "authorization").map(str::to_owned),
                via: header(&headers, "via").map(str::to_owned),
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
