//! The room against a scripted upstream on a real socket.

mod apart;
mod changed;
mod heads;
mod mirrors;
mod race;
mod shown;

use super::*;
use crate::budget::{MANIFEST_BYTES_MAX, QUESTION_TIME_MAX};
use crate::config::{
    AuthSettings, DiskSettings, EndpointSettings, FetchSettings, LoginSettings, MinFree, TagSettings,
    UpstreamAccess,
};
use crate::oci::{Algorithm, Digest, ManifestRef, RepositoryName, media};
use crate::sync::Mutex;
use crate::text::Secret;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// One request as the scripted server got it.
#[derive(Clone, Debug)]
struct Seen {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
}

impl Seen {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// What becomes of the connection after an answer.
#[derive(PartialEq)]
enum Next {
    Keep,
    Close,
    /// Says nothing more, until the client gives up.
    Hang,
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

type Handler = dyn Fn(&Seen, &mut dyn Write) -> Next + Send + Sync;

struct Server {
    port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
    connections: Arc<AtomicUsize>,
}

impl Server {
    fn new(handler: impl Fn(&Seen, &mut dyn Write) -> Next + Send + Sync + 'static) -> Self {
        Server::start(Box::new(|socket| Box::new(socket)), Arc::new(handler))
    }

    fn start(wrap: Box<dyn Fn(TcpStream) -> Box<dyn Stream> + Send + Sync>, handler: Arc<Handler>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server {
            port: listener.local_addr().unwrap().port(),
            seen: Arc::default(),
            connections: Arc::default(),
        };
        let (seen, connections, wrap) = (server.seen.clone(), server.connections.clone(), Arc::new(wrap));
        thread::spawn(move || {
            for socket in listener.incoming() {
                connections.fetch_add(1, Ordering::SeqCst);
                let (seen, handler, wrap) = (seen.clone(), handler.clone(), wrap.clone());
                thread::spawn(move || converse(wrap(socket.unwrap()), &seen, &*handler));
            }
        });
        server
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn requests(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }

    fn lines(&self) -> Vec<String> {
        self.requests().iter().map(|seen| format!("{} {}", seen.method, seen.target)).collect()
    }
}

fn converse(stream: Box<dyn Stream>, seen: &Mutex<Vec<Seen>>, handler: &Handler) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read_request(&mut stream) {
        seen.lock().push(request.clone());
        match handler(&request, stream.get_mut()) {
            Next::Keep => {}
            Next::Close => return,
            Next::Hang => {
                let mut rest = Vec::new();
                drop(stream.read_to_end(&mut rest));
                return;
            }
        }
    }
}

fn read_request(stream: &mut impl BufRead) -> Option<Seen> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    let mut words = lines.first()?.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let header = |line: &String| {
        let (name, value) = line.split_once(':').unwrap();
        (name.to_ascii_lowercase(), value.trim().to_owned())
    };
    Some(Seen { method, target, headers: lines[1..].iter().map(header).collect() })
}

/// A whole answer; a HEAD gets no body.
fn answer(seen: &Seen, out: &mut dyn Write, status: u16, headers: &[(&str, &str)], body: &[u8]) -> Next {
    let mut text = format!("HTTP/1.1 {status} X\r\n");
    if !headers.iter().any(|(name, _)| *name == "Content-Length" || *name == "Transfer-Encoding") {
        text.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    let mut bytes = text.into_bytes();
    if seen.method != "HEAD" {
        bytes.extend_from_slice(body);
    }
    if out.write_all(&bytes).and_then(|()| out.flush()).is_ok() { Next::Keep } else { Next::Close }
}

/// Settings with generous time-outs; tests that wait for one shorten it.
fn config(url: &str) -> Config {
    Config {
        listen: vec![],
        data_dir: "/nonexistent".into(),
        default_registry: "reg.test".parse().unwrap(),
        platforms: vec![],
        disk: DiskSettings { max: None, min_free: MinFree::Bytes(0), expire_unused: None },
        memory_max: 1 << 26,
        fetch: FetchSettings {
            streams: 4,
            connect_timeout: Duration::from_secs(30),
            header_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(30),
            bandwidth: None,
            early_ranges: false,
            allow_networks: Vec::new(),
            proxy: None,
        },
        tags: TagSettings {
            revalidate: Duration::ZERO,
            resolve_deadline: Duration::from_secs(1),
            fallback_versions: false,
            history: 3,
            rules: vec![],
        },
        upstreams: vec![UpstreamSettings {
            name: "reg.test".parse().unwrap(),
            endpoints: vec![EndpointSettings::at(url)],
            access: UpstreamAccess::default(),
        }],
        tls: None,
        auth: AuthSettings::default(),
        access_pull: None,
        warm: None,
        kit: None,
        alert: None,
    }
}

/// Settings with a short time-out of every kind.
fn hasty(url: &str) -> Config {
    let mut config = config(url);
    config.fetch.connect_timeout = Duration::from_millis(1500);
    config.fetch.header_timeout = Duration::from_millis(1500);
    config.fetch.stall_timeout = Duration::from_millis(1500);
    config
}

fn credentials() -> Option<LoginSettings> {
    Some(LoginSettings {
        username: "user".into(),
        password: Secret::new("secret".into()),
        password_file: "/dev/null".into(),
    })
}

/// `user:secret`
const BASIC: &str = "Basic dXNlcjpzZWNyZXQ=";

fn open(config: &Config) -> Result<(Upstreams, Arc<Upstream>), String> {
    let upstreams = Upstreams::with(config, |_| None, Names::of_system())?;
    let only = upstreams.iter().next().unwrap().clone();
    Ok((upstreams, only))
}

fn repository() -> RepositoryName {
    "a/b".parse().unwrap()
}

fn tag() -> ManifestRef {
    "latest".parse().unwrap()
}

const INDEX: &[u8] = br#"{"schemaVersion":2,"manifests":[]}"#;

fn sha256(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}

fn index_answer(seen: &Seen, out: &mut dyn Write) -> Next {
    let digest = sha256(INDEX).to_string();
    let headers = [("Content-Type", media::OCI_INDEX), ("Docker-Content-Digest", &digest)];
    answer(seen, out, 200, &headers, INDEX)
}

fn read_all(stream: &mut BlobStream) -> Result<Vec<u8>, Failure> {
    let (mut all, mut buffer) = (Vec::new(), [0; 7000]);
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(all),
            count => all.extend_from_slice(&buffer[..count]),
        }
    }
}

fn blob() -> Vec<u8> {
    (0..300_000u32).map(|n| (n % 251) as u8).collect()
}

#[test]
fn manifests_are_asked_for_and_checked() {
    let server = Server::new(index_answer);
    let (_all, upstream) = open(&config(&server.url())).unwrap();
    let head = upstream.head_manifest(&repository(), &tag()).unwrap();
    assert_eq!(head.digest, Some(sha256(INDEX)));
    assert_eq!((head.media_type.as_deref(), head.size), (Some(media::OCI_INDEX), Some(INDEX.len() as u64)));
    let fetched = upstream.fetch_manifest(&repository(), &tag()).unwrap();
    assert_eq!((fetched.bytes.as_slice(), fetched.digest), (INDEX, sha256(INDEX)));
    assert_eq!(fetched.media_type, media::OCI_INDEX);
    let by_digest = ManifestRef::Digest(Digest::of(Algorithm::Sha512, INDEX));
    assert_eq!(
        upstream.fetch_manifest(&repository(), &by_digest).unwrap().digest.to_string(),
        by_digest.to_string()
    );
    assert_eq!(upstream.bytes(), 2 * INDEX.len() as u64);

    let requests = server.requests();
    assert_eq!(requests[0].target, "/v2/a/b/manifests/latest");
    assert_eq!(requests[0].header("accept"), Some(media::ACCEPT_MANIFESTS));
    assert_eq!(requests[0].header("accept-encoding"), Some("identity"));
    assert_eq!(requests[0].header("user-agent"), Some(concat!("larder/", env!("CARGO_PKG_VERSION"))));
    assert_eq!(server.connections.load(Ordering::SeqCst), 1, "the connection is kept");
}

#[test]
fn wrong_manifests_are_refused() {
    let other = sha256(b"other").to_string();
    type Case<'a> = (&'a str, Vec<(&'a str, &'a str)>, &'static [u8]);
    let cases: Vec<Case> = vec![
        ("should be", vec![("Docker-Content-Digest", other.as_str())], INDEX),
        (
            "came as",
            vec![("Content-Type", media::DOCKER_LIST)],
            br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#,
        ),
        ("JSON", vec![("Content-Type", "text/plain")], b"<html>pay here</html>"),
        (
            "broken",
            vec![("Content-Encoding", "gzip")],
            b"\x1f\x8b\x08 and nothing that can be decoded\0\0\0\0",
        ),
        ("larger", vec![("Content-Length", "99999999999")], INDEX),
    ];
    for (words, headers, body) in cases {
        let headers: Vec<(String, String)> =
            headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let server = Server::new(move |seen, out| {
            let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            answer(seen, out, 200, &headers, body)
        });
        let (_all, upstream) = open(&config(&server.url())).unwrap();
        let failure = upstream.fetch_manifest(&repository(), &tag()).unwrap_err();
        assert!(matches!(failure, Failure::Wrong { .. }), "{failure:?}");
        assert!(failure.to_string().contains(words), "{failure}");
        assert!(upstream.endpoints()[0].breaker().link().is_up(), "nonsense is no outage");
    }
    let server = Server::new(index_answer);
    let (_all, upstream) = open(&config(&server.url())).unwrap();
    let wanted = ManifestRef::Digest(sha256(b"something else"));
    let failure = upstream.fetch_manifest(&repository(), &wanted).unwrap_err();
    assert!(matches!(failure, Failure::Wrong { .. }), "{failure:?}");
}

#[test]
fn an_endless_manifest_ends() {
    let server = Server::new(|_, out| {
        drop(out.write_all(b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n"));
        let chunk = [b"10000\r\n", [b' '; 0x10000].as_slice(), b"\r\n"].concat();
        while out.write_all(&chunk).is_ok() {}
        Next::Close
    });
    let (_all, upstream) = open(&config(&server.url())).unwrap();
    let failure = upstream.fetch_manifest(&repository(), &tag()).unwrap_err();
    assert!(failure.to_string().contains("larger than"), "{failure}");
    assert!(upstream.bytes() <= MANIFEST_BYTES_MAX + 1);
}

#[test]
fn heads_that_say_little() {
    let server = Server::new(|seen, out| match seen.target.as_str() {
        "/v2/a/b/manifests/nodigest" => answer(seen, out, 200, &[], INDEX),
        "/v2/a/b/manifests/nohead" => answer(seen, out, 405, &[], b""),
        "/v2/a/b/manifests/nothead" => answer(seen, out, 501, &[], b""),
        _ => answer(seen, out, 404, &[], br#"{"errors":[{"code":"X","message":"no \u001b[31m such"}]}"#),
    });
    let (_all, upstream) = open(&config(&server.url())).unwrap();
    for name in ["nodigest", "nohead", "nothead"] {
        assert_eq!(upstream.head_manifest(&repository(), &name.parse().unwrap()).unwrap().digest, None);
    }
    assert!(matches!(upstream.head_manifest(&repository(), &tag()), Err(Failure::Missing { .. })));
    let failure = upstream.fetch_manifest(&repository(), &tag()).unwrap_err();
    let host = server.url().replace("http://", "");
    assert_eq!(failure.to_string(), format!(r#"{host}: answered 404: "no \u{{1b}}[31m such""#));
    assert!(upstream.endpoints()[0].breaker().link().is_up());
}

/// An upstream that wants a token, and the token server at another port of the same host.
fn token_pair(expires_in: u64) -> (Server, Server) {
    let count = AtomicUsize::new(0);
    let realm = Server::new(move |seen, out| {
        let n = count.fetch_add(1, Ordering::SeqCst);
        let body = format!(r#"{{"token":"t{n}","expires_in":{expires_in}}}"#);
        answer(seen, out, 200, &[], body.as_bytes())
    });
    let challenge = format!(r#"Bearer realm="{}/token",service="reg test""#, realm.url());
    let server = Server::new(move |seen, out| match seen.header("authorization") {
        Some(token) if token.starts_with("Bearer t") && token != "Bearer t0" => index_answer(seen, out),
        Some("Bearer t0") if !seen.target.contains("/c/") => index_answer(seen, out),
        _ => answer(seen, out, 401, &[("WWW-Authenticate", &challenge)], b"{}"),
    });
    (server, realm)
}

#[test]
fn tokens_are_got_kept_and_renewed() {
    let (server, realm) = token_pair(300);
    let (_all, upstream) = open(&config(&server.url())).unwrap();
    for _ in 0..3 {
        upstream.head_manifest(&repository(), &tag()).unwrap();
    }
    assert_eq!(server.requests().len(), 4, "one 401, three answers");
    assert_eq!(realm.lines(), ["GET /token?service=reg%20test&scope=repository:a/b:pull"]);
    assert_eq!(realm.requests()[0].header("authorization"), None);

    // Another repository needs no 401; a token that is no longer accepted is renewed once.
    upstream.head_manifest(&"x".parse().unwrap(), &tag()).unwrap();
    assert_eq!((server.requests().len(), realm.requests().len()), (5, 2));
    assert!(!upstream.is_private());
}

#[test]
fn a_token_that_is_refused_is_renewed_once() {
    let (server, realm) = token_pair(300);
    let (_all, upstream) = open(&config(&server.url())).unwrap();
    let repository: RepositoryName = "z/c/d".parse().unwrap();
    // t0 is refused for this repository although it is fresh.
    let failure = upstream.head_manifest(&repository, &tag()).unwrap_err();
    assert!(matches!(failure, Failure::Denied { status: 401, .. }), "{failure:?}");
    assert_eq!((server.requests().len(), realm.requests().len()), (2, 1));
    upstream.head_manifest(&repository, &tag()).unwrap();
    assert_eq!((server.requests().len(), realm.requests().len()), (4, 2));
}

#[test]
fn credentials_go_to_the_realm_only() {
    let (server, realm) = token_pair(300);
    let mut config = config(&server.url());
    config.upstreams[0].endpoints[0].credentials = credentials();
    let (_all, upstream) = open(&config).unwrap();
    upstream.head_manifest(&repository(), &tag()).unwrap();
    assert!(upstream.is_private());
    assert_eq!(realm.requests()[0].header("authorization"), Some(BASIC));
    let sent: Vec<Option<String>> =
        server.requests().iter().map(|r| r.header("authorization").map(str::to_owned)).collect();
    assert_eq!(sent, [None, Some("Bearer t0".to_owned())]);
}

#[test]
fn a_foreign_realm_is_refused_unless_configured() {
    let server = Server::new(|seen, out| {
        answer(seen, out, 401, &[("WWW-Authenticate", r#"Bearer realm="http://evil.test/token""#)], b"")
    });
    let (_all, upstream) = open(&config(&server.url())).unwrap();
    let failure = upstream.head_manifest(&repository(), &tag()).unwrap_err();
    assert!(matches!(failure, Failure::Wrong { .. }), "{failure:?}");
    assert!(failure.to_string().contains("set realm"), "{failure}");
}

#[test]
fn a_token_server_that_refuses_or_fails() {
    for (status, denied) in [(401, true), (400, true), (403, true), (503, false)] {
        let realm = Server::new(move |seen, out| answer(seen, out, status, &[], b"{}"));
        let challenge = format!("Bearer realm={}/", realm.url());
        let server =
            Server::new(move |seen, out| answer(seen, out, 401, &[("WWW-Authenticate", &challenge)], b""));
        let (_all, upstream) = open(&config(&server.url())).unwrap();
        let failure = upstream.head_manifest(&repository(), &tag()).unwrap_err();
        assert_eq!(matches!(failure, Failure::Denied { .. }), denied, "{failure:?}");
        assert_eq!(failure.is_outage(), !denied, "{failure:?}");
    }
}

#[test]
fn basic_logins() {
    let handler = |seen: &Seen, out: &mut dyn Write| match seen.header("authorization") {
        Some(BASIC) => index_answer(seen, out),
        _ => answer(seen, out, 401, &[("WWW-Authenticate", "basic realm=\"x\"")], b""),
    };
    let server = Server::new(handler);
    let (_all, anonymous) = open(&config(&server.url())).unwrap();
    let failure = anonymous.head_manifest(&repository(), &tag()).unwrap_err();
    assert!(matches!(failure, Failure::Denied { status: 401, .. }), "{failure:?}");

    let mut config = config(&server.url());
    config.upstreams[0].endpoints[0].credentials = credentials();
    let (_all, upstream) = open(&config).unwrap();
    for _ in 0..2 {
        upstream.head_manifest(&repository(), &tag()).unwrap();
    }
    assert_eq!(server.requests().len(), 1 + 3, "the second time it is sent at once");

    config.upstreams[0].endpoints[0].credentials.as_mut().unwrap().password = Secret::new("wrong".into());
    let (_all, upstream) = open(&config).unwrap();
    let failure = upstream.head_manifest(&repository(), &tag()).unwrap_err();
    assert!(failure.to_string().contains("not accepted"), "{failure}");
    assert_eq!(server.requests().len(), 4 + 2);
}

#[test]
fn redirects_carry_no_login() {
    let storage = Server::new(|seen, out| answer(seen, out, 200, &[], &blob()));
    let location = format!("{}/store/x?sig=a%2Fb", storage.url());
    let server = Server::new(move |seen, out| match seen.header("authorization") {
        Some(BASIC) => answer(seen, out, 307, &[("Location", &location)], b"moved"),
        _ => answer(seen, out, 401, &[("WWW-Authenticate", "Basic")], b""),
    });
    let mut config = config(&server.url());
    config.upstreams[0].endpoints[0].credentials = credentials();
    let (_all, upstream) = open(&config).unwrap();
    let mut stream = upstream.open_blob(&repository(), &sha256(&blob()), 0).unwrap();
    assert_eq!(stream.total, Some(300_000));
    assert_eq!(read_all(&mut stream).unwrap(), blob());
    assert_eq!(storage.lines(), ["GET /store/x?sig=a%2Fb"]);
    assert_eq!(storage.requests()[0].header("authorization"), None);
    assert_eq!(upstream.bytes(), 300_000);
}

#[test]
fn a_registry_behind_a_redirect_gets_an_anonymous_token_of_its_own() {
    let (behind, realm) = token_pair(300);
    let to = behind.url();
    let front = Server::new(move |seen, out| {
        answer(seen, out, 307, &[("Location", &format!("{to}{}", seen.target))], b"")
    });
    let mut config = config(&front.url());
    config.upstreams[0].endpoints[0].credentials = credentials();
    let (_all, upstream) = open(&config).unwrap();
    for _ in 0..2 {
        upstream.head_manifest(&repository(), &tag()).unwrap();
    }
    assert_eq!(realm.requests().len(), 1);
    assert_eq!(realm.requests()[0].header("authorization"), None, "credentials stay with their upstream");
    assert_eq!(behind.requests().len(), 3);
    assert!(front.requests().iter().all(|r| r.header("authorization").is_none()));
}

#[test]
fn redirects_end() {
    let server = Server::new(|seen, out| match seen.target.as_str() {
        "/v2/a/b/manifests/latest" => answer(seen, out, 302, &[("Location", "latest?again")], b""),
        "/v2/a/b/manifests/latest?again" => {
            answer(seen, out, 302, &[("Location", "/v2/a/b/manifests/latest")], b"")
        }
        "/v2/a/b/manifests/metadata" => {
            answer(seen, out, 302, &[("Location", "http://169.254.169.254/x")], b"")
        }
        _ => answer(seen, out, 302, &[], b""),
    });
    let (_all, upstream) = open(&config(&server.url())).unwrap();
    let failure = upstream.fetch_manifest(&repository(), &tag()).unwrap_err();
    let host = server.url().replace("http://", "");
    assert_eq!(failure, Failure::Wrong { detail: format!("{host}: more than 5 redirects") });
    assert_eq!(server.requests().len(), 6);
    let failure = upstream.fetch_manifest(&repository(), &"metadata".parse().unwrap()).unwrap_err();
    assert!(failure.to_string().contains("refused to connect to the private address"), "{failure}");
    let failure = upstream.fetch_manifest(&repository(), &"nowhere".parse().unwrap()).unwrap_err();
    assert!(failure.to_string().contains("has no Location"), "{failure}");
    assert!(upstream.endpoints()[0].breaker().link().is_up());
}

#[test]
fn private_addresses_are_not_connected_to() {
    let server = Server::new(index_answer);
    let mut config = config(&server.url());
    config.upstreams[0].endpoints[0].url_configured = false;
    let (_all, upstream) = open(&config).unwrap();
    let failure = upstream.head_manifest(&repository(), &tag()).unwrap_err();
    assert!(matches!(failure, Failure::Wrong { .. }), "{failure:?}");
    assert!(failure.to_string().contains("private address 127.0.0.1"), "{failure}");
    config.upstreams[0].endpoints[0].url = format!("http://localhost:{}", server.port);
    let (_all, upstream) = open(&config).unwrap();
    let failure = upstream.head_manifest(&repository(), &tag()).unwrap_err();
    assert_eq!(failure.cause(), Some(Cause::Dns), "{failure}");
    assert_eq!(server.connections.load(Ordering::SeqCst), 0);
    config.upstreams[0].endpoints[0].url_configured = true;
    let (_all, upstream) = open(&config).unwrap();
    upstream.head_manifest(&repository(), &tag()).unwrap();
}

#[test]
fn blobs_resume() {
    let whole = blob();
    let server = Server::new(move |seen, out| {
        let from = seen.header("range").map(|range| {
            range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse::<usize>().unwrap()
        });
        let whole = blob();
        match from {
            Some(from) if seen.target.contains("/honest/") => {
                let range = format!("bytes {from}-{}/{}", whole.len() - 1, whole.len());
                answer(seen, out, 206, &[("Content-Range", &range)], &whole[from..])
            }
            Some(_) if seen.target.contains("/liar/") => {
                answer(seen, out, 206, &[("Content-Range", "bytes 0-299999/300000")], &whole)
            }
            Some(_) if seen.target.contains("/past/") => answer(seen, out, 416, &[], b""),
            Some(_) if seen.target.contains("/later/") => {
                answer(seen, out, 206, &[("Content-Range", "bytes 200000-299999/300000")], &whole[200_000..])
            }
            Some(_) if seen.target.contains("/whole/") => {
                answer(seen, out, 416, &[("Content-Range", "bytes */123456")], b"{}")
            }
            Some(_) if seen.target.contains("/other/") => {
                answer(seen, out, 416, &[("Content-Range", "bytes */99")], b"{}")
            }
            _ if seen.target.contains("/short/") => {
                answer(seen, out, if from.is_some() { 416 } else { 200 }, &[], &whole[..99])
            }
            _ if seen.target.contains("/rangeless/") => answer(seen, out, 206, &[], &whole),
            _ => answer(seen, out, 200, &[], &whole),
        }
    });
    let (_all, upstream) = open(&config(&server.url())).unwrap();
    let digest = sha256(&whole);
    let from = 123_456;
    // Who does not give the part that was asked for is asked for all of it.
    for name in ["a/honest/x", "a/ignorant/x", "a/liar/x", "a/later/x", "a/past/x", "a/other/x"] {
        let mut stream = upstream.open_blob(&name.parse().unwrap(), &digest, from).unwrap();
        assert_eq!(stream.total, Some(300_000));
        assert_eq!(read_all(&mut stream).unwrap(), whole[from as usize..], "{name}");
        assert_eq!(stream.read(&mut [0; 10]), Ok(0));
    }
    let mut whole_already = upstream.open_blob(&"a/whole/x".parse().unwrap(), &digest, from).unwrap();
    assert!(whole_already.is_whole && whole_already.total == Some(from));
    assert_eq!(whole_already.read(&mut [0; 10]), Ok(0), "the text of the refusal is not the blob's");
    for name in ["a/short/x", "a/rangeless/x"] {
        let failure = upstream.open_blob(&name.parse().unwrap(), &digest, from).unwrap_err();
        assert!(matches!(failure, Failure::Wrong { .. }), "{failure:?}");
    }
    assert_eq!(upstream.head_blob(&repository(), &digest).unwrap(), Some(300_000));
}

#[test]
fn the_bandwidth_cap_holds_for_blobs() {
    let server = Server::new(|seen, out| answer(seen, out, 200, &[], &blob()));
    let mut config = config(&server.url());
    config.fetch.bandwidth = Some(8_000_000);
    let (_all, upstream) = open(&config).unwrap();
    let begun = Instant::now();
    let mut stream = upstream.open_blob(&repository(), &sha256(&blob()), 0).unwrap();
    assert_eq!(read_all(&mut stream).unwrap(), blob());
    // 300 kB at 1 MB/s, less the burst.
    assert!(begun.elapsed() >= Duration::from_millis(200), "{:?}", begun.elapsed());
}

#[test]
fn a_cut_blob_is_no_whole_one() {
    let server = Server::new(|_, out| {
        drop(out.write_all(b"HTTP/1.1 200 X\r\nContent-Length: 1000\r\n\r\nonly this"));
        Next::Close
    });
    let (_all, upstream) = open(&config(&server.url())).unwrap();
    let mut stream = upstream.open_blob(&repository(), &sha256(b""), 0).unwrap();
    let failure = read_all(&mut stream).unwrap_err();
    assert_eq!(failure.cause(), Some(Cause::Cut), "{failure}");
    assert_eq!(stream.read(&mut [0; 10]), Err(failure), "a failed stream stays failed");
    assert!(upstream.endpoints()[0].breaker().link().is_up());
}

#[test]
fn a_stalled_blob_is_given_up() {
    let server = Server::new(|_, out| {
        drop(out.write_all(b"HTTP/1.1 200 X\r\nContent-Length: 1000\r\n\r\nonly this"));
        Next::Hang
    });
    let (_all, upstream) = open(&hasty(&server.url())).unwrap();
    let mut stream = upstream.open_blob(&repository(), &sha256(b""), 0).unwrap();
    let failure = read_all(&mut stream).unwrap_err();
    assert_eq!(failure.to_string(), server.url().replace("http://", "") + ": the connection stalled");
    assert!(!upstream.endpoints()[0].breaker().link().is_up());
}

#[test]
fn outages_are_told_apart() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (_all, upstream) = open(&config(&format!("http://{closed}"))).unwrap();
    let failure = upstream.head_manifest(&repository(), &tag()).unwrap_err();
    assert_eq!(failure.to_string(), format!("{closed}: connection refused"));
    assert!(matches!(upstream.endpoints()[0].breaker().link(), LinkState::Down { restored: false, .. }));

    let (_all, upstream) = open(&config("http://no-such-host.invalid")).unwrap();
    let failure = upstream.head_manifest(&repository(), &tag()).unwrap_err();
    assert_eq!(failure.cause(), Some(Cause::Dns), "{failure}");

    let hanging = Server::new(|_, _| Next::Hang);
    let (_all, upstream) = open(&hasty(&hanging.url())).unwrap();
    let begun = Instant::now();
    let failure = upstream.head_manifest(&repository(), &tag()).unwrap_err();
    assert_eq!(failure.to_string(), hanging.url().replace("http://", "") + ": no answer in time");
    assert!(begun.elapsed() < QUESTION_TIME_MAX);

    let broken = Server::new(|seen, out| answer(seen, out, 503, &[], b""));
    let (_all, upstream) = open(&config(&broken.url())).unwrap();
    let failure = upstream.fetch_manifest(&repository(), &tag()).unwrap_err();
    assert_eq!(failure.cause(), Some(Cause::ServerError(503)));
    wait_for_link(&upstream.endpoints()[0], |link| matches!(link, LinkState::Failing { .. }));

    let gibberish = Server::new(|_, out| {
        drop(out.write_all(b"SSH-2.0-OpenSSH\r\n\r\n"));
        Next::Close
    });
    let (_all, upstream) = open(&config(&gibberish.url())).unwrap();
    let failure = upstream.head_manifest(&repository(), &tag()).unwrap_err();
    assert_eq!(failure.cause(), Some(Cause::Cut), "{failure}");
    wait_for_link(&upstream.endpoints()[0], |link| matches!(link, LinkState::Failing { .. }));
}

/// Waits until a probe has found out.
fn wait_for_link(endpoint: &Endpoint, is_so: impl Fn(&LinkState) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so(&endpoint.breaker().link()) {
        assert!(Instant::now() < deadline, "it stays {:?}", endpoint.breaker().link());
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_drip_of_header_bytes_does_not_hold_a_question() {
    let server = Server::new(|_, out| {
        drop(out.write_all(b"HTTP/1.1 200 X\r\n"));
        while out.write_all(b"X-A: b\r\n").is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
        Next::Close
    });
    let (_all, upstream) = open(&hasty(&server.url())).unwrap();
    let begun = Instant::now();
    let failure = upstream.head_manifest(&repository(), &tag()).unwrap_err();
    assert!(failure.is_outage(), "{failure:?}");
    assert!(begun.elapsed() < QUESTION_TIME_MAX);
}

#[test]
fn a_connection_closed_while_idle_is_no_outage() {
    // Answers once, then closes on the next request without a word.
    let connection = AtomicUsize::new(0);
    let server = Server::new(move |seen, out| match connection.fetch_add(1, Ordering::SeqCst) {
        1 => Next::Close,
        _ => index_answer(seen, out),
    });
    let (_all, upstream) = open(&config(&server.url())).unwrap();
    upstream.head_manifest(&repository(), &tag()).unwrap();
    upstream.head_manifest(&repository(), &tag()).unwrap();
    assert_eq!((server.requests().len(), server.connections.load(Ordering::SeqCst)), (3, 2));
}

#[test]
fn rate_limits_are_kept_without_a_connection() {
    let server = Server::new(|seen, out| match seen.method.as_str() {
        "GET" if seen.target != "/v2/" => answer(seen, out, 429, &[("Retry-After", "3600")], b""),
        _ => index_answer(seen, out),
    });
    let (_all, upstream) = open(&config(&server.url())).unwrap();
    for _ in 0..3 {
        let failure = upstream.fetch_manifest(&repository(), &tag()).unwrap_err();
        assert_eq!(failure.cause(), Some(Cause::RateLimited), "{failure}");
    }
    assert_eq!(server.lines().iter().filter(|line| line.contains("manifests")).count(), 1);
    upstream.head_manifest(&repository(), &tag()).unwrap();
    assert!(upstream.endpoints()[0].breaker().link().is_up());
}

#[test]
fn lists_and_referrers() {
    let server = Server::new(|seen, out| match seen.target.as_str() {
        "/v2/a/b/tags/list?n=2&last=a%20b" => {
            let next = r#"</v2/a/b/tags/list?n=2&last=y>; rel="next""#;
            answer(seen, out, 200, &[("Link", next)], br#"{"name":"a/b","tags":["x","../no","y"]}"#)
        }
        "/v2/empty/tags/list" => answer(seen, out, 200, &[], br#"{"name":"empty","tags":null}"#),
        "/v2/_catalog?n=5" => answer(seen, out, 200, &[], br#"{"repositories":["a/b","NO"]}"#),
        target if target.ends_with("?artifactType=a/b%2Bc") => {
            let headers = [("Content-Type", media::OCI_INDEX), ("OCI-Filters-Applied", "artifactType")];
            answer(seen, out, 200, &headers, INDEX)
        }
        target if target.contains("/referrers/") => answer(seen, out, 200, &[], b"{}"),
        _ => answer(seen, out, 404, &[], b""),
    });
    let (_all, upstream) = open(&config(&server.url())).unwrap();
    let page = upstream.list_tags(&repository(), &wanted(Some(2), Some("a b"))).unwrap();
    let rest = stated("/v2/a/b/tags/list?n=2&last=y");
    assert_eq!(page, NamePage { names: vec!["x".into(), "y".into()], rest });
    let page = upstream.list_tags(&"empty".parse().unwrap(), &wanted(None, None)).unwrap();
    assert_eq!(page, NamePage { names: vec![], rest: Rest::End });
    assert_eq!(upstream.catalog(&wanted(Some(5), None)).unwrap().names, ["a/b"]);
    let digest = sha256(b"x");
    let referrers = upstream.referrers(&repository(), &digest, Some("a/b+c"), None).unwrap().unwrap();
    assert_eq!((referrers.bytes.as_slice(), referrers.filtered), (INDEX, true));
    let no_index = upstream.referrers(&repository(), &digest, None, None);
    assert!(matches!(no_index, Err(Failure::Wrong { .. })));
}

#[test]
fn a_good_probe_closes_the_breaker() {
    let healthy = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let state = healthy.clone();
    let server = Server::new(move |seen, out| {
        let status = if state.load(Ordering::SeqCst) { 401 } else { 502 };
        answer(seen, out, status, &[], b"")
    });
    let (all, upstream) = open(&config(&server.url())).unwrap();
    let (changed, changes) = std::sync::mpsc::channel();
    all.on_change(Box::new(move |_, _, link| changed.send(link.clone()).unwrap_or(())));
    assert_eq!(upstream.endpoints()[0].probe().unwrap_err().cause(), Some(Cause::ServerError(502)));
    assert!(matches!(changes.recv(), Ok(LinkState::Failing { .. })));
    healthy.store(true, Ordering::SeqCst);
    assert_eq!(changes.recv_timeout(Duration::from_secs(60)), Ok(LinkState::Up));
    assert!(server.lines().iter().all(|line| line == "GET /v2/"));
}

#[test]
fn proxies_are_used_and_told_what_not_to_reach() {
    let target = Server::new(index_answer);
    let to = target.port;
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy_port = proxy.local_addr().unwrap().port();
    let (connected, connects) = std::sync::mpsc::channel();
    thread::spawn(move || {
        for socket in proxy.incoming() {
            let socket = socket.unwrap();
            let mut reader = BufReader::new(socket.try_clone().unwrap());
            let request = read_request(&mut reader).unwrap();
            connected.send(format!("{} {}", request.method, request.target)).unwrap();
            let onward = TcpStream::connect(("127.0.0.1", to)).unwrap();
            (&socket).write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            let (mut back, mut client) = (onward.try_clone().unwrap(), socket);
            thread::spawn(move || std::io::copy(&mut back, &mut client));
            let mut onward = onward;
            thread::spawn(move || std::io::copy(&mut reader, &mut onward));
        }
    });
    let mut config = config("http://registry.test:5000");
    config.upstreams[0].endpoints[0].url_configured = false;
    config.fetch.proxy = Some(Secret::new(format!("http://127.0.0.1:{proxy_port}")));
    let (_all, upstream) = open(&config).unwrap();
    upstream.head_manifest(&repository(), &tag()).unwrap();
    assert_eq!(connects.recv_timeout(Duration::from_secs(60)).unwrap(), "CONNECT registry.test:5000");
    assert_eq!(target.requests()[0].header("host"), Some("registry.test:5000"));

    config.upstreams[0].endpoints[0].url = "http://10.0.0.1".to_owned();
    let (_all, upstream) = open(&config).unwrap();
    let failure = upstream.head_manifest(&repository(), &tag()).unwrap_err();
    assert!(matches!(failure, Failure::Wrong { .. }), "{failure:?}");
    assert!(connects.try_recv().is_err());
}

/// A server with a certificate for 127.0.0.1, and the file of the authority that signed it.
fn tls_server(handler: impl Fn(&Seen, &mut dyn Write) -> Next + Send + Sync + 'static) -> (Server, String) {
    tls_server_for(rustls::server::WebPkiClientVerifier::no_client_auth(), handler)
}

/// The same with such clients.
fn tls_server_for(
    clients: Arc<dyn rustls::server::danger::ClientCertVerifier>,
    handler: impl Fn(&Seen, &mut dyn Write) -> Next + Send + Sync + 'static,
) -> (Server, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let authority = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = authority.self_signed(&key).unwrap();
    let settings =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(
                vec![certificate.der().clone()],
                rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
    let settings = Arc::new(settings);
    let wrap = move |socket: TcpStream| -> Box<dyn Stream> {
        let session = rustls::ServerConnection::new(settings.clone()).unwrap();
        Box::new(rustls::StreamOwned::new(session, socket))
    };
    (Server::start(Box::new(wrap), Arc::new(handler)), certificate.pem())
}

fn open_trusting(url: &str, authority: &str) -> (Upstreams, Arc<Upstream>) {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let count = COUNT.fetch_add(1, Ordering::SeqCst);
    let file = std::env::temp_dir().join(format!("larder-ca-{}-{count}.pem", std::process::id()));
    std::fs::write(&file, authority).unwrap();
    let mut config = config(url);
    config.upstreams[0].endpoints[0].ca_file = Some(file.clone());
    let opened = open(&config);
    std::fs::remove_file(&file).unwrap();
    opened.unwrap()
}

#[test]
fn tls_needs_trust() {
    let (server, authority) = tls_server(|seen, out| {
        if seen.target.ends_with("/downgrade") {
            answer(seen, out, 302, &[("Location", "http://127.0.0.1:1/")], b"")
        } else if seen.target.contains("/blobs/") {
            answer(seen, out, 200, &[], &blob())
        } else {
            index_answer(seen, out)
        }
    });
    let url = format!("https://127.0.0.1:{}", server.port);
    let (_all, distrustful) = open(&config(&url)).unwrap();
    let failure = distrustful.head_manifest(&repository(), &tag()).unwrap_err();
    assert_eq!(failure.cause(), Some(Cause::Tls), "{failure}");
    assert!(failure.to_string().contains("issuer is not trusted"), "{failure}");
    assert!(!distrustful.endpoints()[0].breaker().link().is_up());

    let (_all, upstream) = open_trusting(&url, &authority);
    let before = server.connections.load(Ordering::SeqCst);
    for _ in 0..3 {
        upstream.fetch_manifest(&repository(), &tag()).unwrap();
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), before + 1, "the connection is kept");
    let mut stream = upstream.open_blob(&repository(), &sha256(&blob()), 0).unwrap();
    assert_eq!(read_all(&mut stream).unwrap(), blob());
    // A probe, with its handshake, fits on the small stack of its thread.
    let (_all, fresh) = open_trusting(&url, &authority);
    let (changed, changes) = std::sync::mpsc::channel();
    fresh.endpoints()[0].breaker().restore_down("it was down");
    fresh.endpoints()[0].breaker().on_change(Box::new(move |link| changed.send(link.clone()).unwrap_or(())));
    fresh.endpoints()[0].breaker().start_probe();
    assert_eq!(changes.recv_timeout(Duration::from_secs(60)), Ok(LinkState::Up));
    let failure = upstream.fetch_manifest(&repository(), &"downgrade".parse().unwrap()).unwrap_err();
    assert!(failure.to_string().contains("plain http"), "{failure}");
}

#[test]
fn a_ca_file_that_cannot_be_used_is_named() {
    let mut config = config("https://reg.test");
    config.upstreams[0].endpoints[0].ca_file = Some("/nonexistent/ca.pem".into());
    let error = open(&config).unwrap_err();
    assert!(error.contains("upstream reg.test") && error.contains("/nonexistent/ca.pem"), "{error}");
    config.upstreams[0].endpoints[0].ca_file = Some("/proc/version".into());
    assert!(open(&config).unwrap_err().contains("holds no certificate"));
    config.upstreams[0].endpoints[0].ca_file = Some("/dev/null".into());
    assert!(open(&config).unwrap_err().contains("it is not a file"));
    config.upstreams[0].endpoints[0].ca_file = None;
    config.upstreams[0].endpoints[0].url = "ftp://reg.test".into();
    assert!(open(&config).unwrap_err().contains("its url is not usable"));
}

#[test]
fn lists_of_an_upstream_that_pages_nothing_are_paged_here() {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let whole = || names(&["latest", "1.1", "2.0", "1.0"]);
    let page_of = |names, more: bool, n, last| {
        let rest = if more { stated("/v2/more") } else { Rest::End };
        lists::page_of(names, rest, &wanted(n, last))
    };
    let page = |given: &[&str], rest| NamePage { names: names(given), rest };
    let end = || Rest::End;
    assert_eq!(page_of(whole(), false, Some(10), None), page(&["1.0", "1.1", "2.0", "latest"], end()));
    assert_eq!(page_of(whole(), false, Some(2), None), page(&["1.0", "1.1"], Rest::AfterLast));
    assert_eq!(page_of(whole(), false, Some(2), Some("1.1")), page(&["2.0", "latest"], end()));
    assert_eq!(page_of(whole(), false, Some(9), Some("1.1")), page(&["2.0", "latest"], end()));
    // Upstream's own pages, in whatever order, stay as they are.
    assert_eq!(page_of(names(&["b", "a"]), true, Some(2), None), page(&["b", "a"], stated("/v2/more")));
    assert_eq!(
        page_of(names(&["b", "a"]), true, Some(1), None),
        page(&["b"], Rest::AfterLast),
        "but no longer than asked"
    );
    assert_eq!(page_of(names(&["d", "c"]), false, Some(2), Some("a")), page(&["d", "c"], end()));
    // One at an address of upstream's is asked for there again for what was cut, and begins after what was had of it.
    let at = |last| ListPage { stated: Some(address("/v2/at")), ..wanted(Some(2), last) };
    let of_three = |last| lists::page_of(names(&["c", "a", "b"]), stated("/v2/more"), &at(last));
    assert_eq!(of_three(Some("z")), page(&["c", "a"], stated("/v2/at")));
    assert_eq!(of_three(Some("a")), page(&["b"], stated("/v2/more")));
    assert!(matches!(of_three(Some("b")).rest, Rest::Unknown(_)), "it brings nothing new");
}

fn wanted(n: Option<usize>, last: Option<&str>) -> ListPage {
    ListPage { n, last: last.map(str::to_owned), ..ListPage::default() }
}

fn address(target: &str) -> PageAddress {
    PageAddress { endpoint: 0, target: target.to_owned() }
}

fn stated(target: &str) -> Rest {
    Rest::Stated(address(target))
}

#[test]
fn an_answer_carries_the_registrys_date_and_its_endpoint() {
    const DATE: (&str, &str) = ("Date", "Sun, 06 Nov 1994 08:49:37 GMT");
    for (headers, date) in [
        (vec![DATE], Some(784_111_777)),
        (vec![DATE, ("Age", "23")], Some(784_111_777)),
        (vec![DATE, ("Age", "old")], Some(784_111_777)),
        (vec![("Date", "yesterday"), ("Age", "23")], None),
        (vec![], None),
    ] {
        let server = Server::new(move |seen, out| answer(seen, out, 200, &headers, INDEX));
        let (_all, upstream) = open(&config(&server.url())).unwrap();
        let head = upstream.head_manifest(&repository(), &tag()).unwrap();
        let fetched = upstream.fetch_manifest(&repository(), &tag()).unwrap();
        assert_eq!((head.date, fetched.date), (date, date));
        let name = format!("127.0.0.1:{}", server.port);
        assert_eq!(fetched.endpoint, name);
    }
}

/// An upstream behind two endpoints, the first of which answers with `status`.
fn two_endpoints(status: u16) -> (Server, Server, Config) {
    let signature = [("Docker-Distribution-Api-Version", "registry/2.0")];
    let first = Server::new(move |seen, out| answer(seen, out, status, &signature, b""));
    let second = Server::new(index_answer);
    let mut config = config(&first.url());
    let mut other = config.upstreams[0].endpoints[0].clone();
    other.url = second.url();
    config.upstreams[0].endpoints.push(other);
    (first, second, config)
}
