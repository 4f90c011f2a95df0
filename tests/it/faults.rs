//! What an upstream can do wrong: for each fault what the client sees, how long it took, what is on the disk.
//!
//! Run with `--nocapture` for the table.

use crate::board::{self, Board, DEADLINE, LEEWAY, image, layer_of, upstream_with};
use larder::demo::client::PullError;
use larder::demo::image::SampleImage as Image;
use larder::demo::upstream::{Behaviour, FaultyRegistry as Upstream};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The longest header_timeout, connect_timeout and a second try may add up to.
const MISS_BOUND: Duration = Duration::from_secs(12);

/// What a client sees of a tag that is cached, and of one that is not.
struct Seen {
    cached: (u16, String, Duration),
    uncached: (u16, String, Duration),
}

/// Asks a board whose upstream does `fault` from now on.
fn see(board: &Board) -> Seen {
    let cached = board.ask("lab/app", "latest");
    let began = Instant::now();
    let answer = board.get("/v2/lab/never/manifests/latest?ns=docker.io");
    let status = answer.status;
    let body = String::from_utf8_lossy(&answer.body().unwrap()).into_owned();
    Seen { cached, uncached: (status, body, began.elapsed()) }
}

fn row(fault: &str, seen: &Seen, on_disk: usize) {
    println!(
        "| {fault} | {} {} in {} ms | {} in {} ms | {on_disk} blobs, all right |",
        seen.cached.0,
        seen.cached.1.trim_start_matches("larder; "),
        seen.cached.2.as_millis(),
        seen.uncached.0,
        seen.uncached.2.as_millis()
    );
}

/// An outage that begins while the server runs.
fn outage(fault: &str, words: &str, breaks: impl Fn(&Upstream)) {
    let image = image(1);
    let (upstream, board) = board::pulled(&image, "");
    breaks(&upstream);
    is_outage(&board, fault, &[words]);
    assert_eq!(board.pull("lab/app", "latest").unwrap().digest, image.root, "{fault}");
    upstream.clear();
    upstream.release();
}

/// The cached tag is answered from the last complete version within the deadline, the other is a 502 that says why.
fn is_outage(board: &Board, fault: &str, words: &[&str]) {
    let seen = see(board);
    row(fault, &seen, board.check_blobs());
    let expected = (200, "larder; hit; detail=last-complete");
    assert_eq!((seen.cached.0, seen.cached.1.as_str()), expected, "{fault}");
    assert!(seen.cached.2 < DEADLINE + LEEWAY, "{fault}: {:?}", seen.cached.2);
    assert_eq!(seen.uncached.0, 502, "{fault}: {}", seen.uncached.1);
    assert!(seen.uncached.2 < MISS_BOUND, "{fault}: {:?}", seen.uncached.2);
    assert!(words.iter().any(|word| seen.uncached.1.contains(word)), "{fault}: {}", seen.uncached.1);
}

#[test]
fn refused() {
    outage("connection refused", "refused", Upstream::hang_up);
}

#[test]
fn hangs_before_headers() {
    outage("hangs before headers", "time", |upstream| upstream.on(None, "/v2/", Behaviour::HangBeforeHeader));
}

#[test]
fn server_errors() {
    for status in [500, 502, 503, 504] {
        outage(&format!("status {status}"), &status.to_string(), |upstream| {
            upstream.on(None, "/v2/", Behaviour::Status(status, Vec::new()));
        });
    }
}

#[test]
fn too_many_requests_is_never_relayed() {
    outage("status 429", "rate", |upstream| {
        upstream.on(None, "/v2/", Behaviour::Status(429, vec![("Retry-After".into(), "30".into())]));
    });
}

#[test]
fn no_http_at_all() {
    outage("garbage instead of HTTP", "docker.io", |upstream| upstream.on(None, "/v2/", Behaviour::Garbage));
}

/// An upstream that cannot even be connected to, from the start.
fn unreachable(fault: &str, url: &str, words: &[&str]) {
    let image = image(1);
    let (upstream, mut board) = board::pulled(&image, "");
    board.stop();
    let file = board.folder().join("larder.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace(&upstream.url(), url)).unwrap();
    board.start_again();
    is_outage(&board, fault, words);
}

#[test]
fn name_does_not_resolve() {
    unreachable("DNS failure", "http://no-such-host.invalid", &["resolve", "name"]);
}

#[test]
fn syn_dropped() {
    let hole = BlackHole::new();
    unreachable("SYN dropped", &format!("http://{}", hole.addr), &["time"]);
}

#[test]
fn tls_is_not_spoken() {
    // A server that speaks no TLS where TLS is expected: it hangs up on what it takes for a bad request.
    let upstream = Upstream::start().unwrap();
    unreachable("no TLS", &upstream.url().replace("http://", "https://"), &["cut", "TLS"]);
}

#[test]
fn certificate_is_not_trusted() {
    let stranger = TlsStranger::start();
    unreachable("certificate not trusted", &format!("https://{}", stranger.addr), &["certificate"]);
}

/// A server whose certificate nobody has signed.
struct TlsStranger {
    addr: SocketAddr,
}

impl TlsStranger {
    fn start() -> TlsStranger {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let settings = Arc::new(board::tls_settings().0);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let mut session = rustls::ServerConnection::new(Arc::clone(&settings)).unwrap();
                // The client ends this as soon as it has seen the certificate.
                let _ = session.complete_io(&mut stream);
            }
        });
        TlsStranger { addr }
    }
}

/// A port whose queue of connections is full, so that the kernel drops every further SYN.
struct BlackHole {
    addr: SocketAddr,
    _listener: OwnedFd,
    _waiting: Vec<TcpStream>,
}

impl BlackHole {
    fn new() -> BlackHole {
        use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};
        let listener = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&listener, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        listen(&listener, 0).unwrap();
        let addr: SocketAddr = getsockname(&listener).unwrap().try_into().unwrap();
        let mut waiting = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&addr, Duration::from_millis(500)) {
            waiting.push(stream);
            assert!(waiting.len() < 100, "the queue never filled");
        }
        BlackHole { addr, _listener: listener, _waiting: waiting }
    }
}

/// An answer, not an outage: passed on whether the tag is cached or not.
fn answered(status: u16, shown: u16, code: &str) {
    let upstream = upstream_with(&image(1));
    let board = Board::new(&upstream, "");
    board.pull("lab/app", "latest").unwrap();
    upstream.on(None, "/manifests/", Behaviour::Status(status, Vec::new()));
    let seen = see(&board);
    row(&format!("status {status}"), &seen, board.check_blobs());
    assert_eq!((seen.cached.0, seen.uncached.0), (shown, shown));
    assert!(seen.uncached.1.contains(code), "{}", seen.uncached.1);
    let answer = board.get("/v2/lab/app/manifests/latest?ns=docker.io");
    assert_eq!(
        answer.header("www-authenticate"),
        None,
        "a challenge would have clients send credentials here"
    );
    // It is remembered by nobody.
    upstream.clear();
    assert_eq!(board.ask("lab/app", "latest").0, 200);
}

#[test]
fn answers_are_passed_on() {
    answered(404, 404, "MANIFEST_UNKNOWN");
    answered(401, 401, "UNAUTHORIZED");
    answered(403, 403, "DENIED");
}

/// A fault in content: what a pull of a new version makes of it, and that the old one is served on.
fn bad_content(fault: &str, method: Option<&str>, path: &str, behaviour: &Behaviour, ok: bool) {
    let (first, second) = (image(1), Image::multi_arch(2, &[700_000]));
    let (upstream, board) = board::pulled(&first, "");
    upstream.push("lab/app", "latest", &second);
    upstream.on(method, path, behaviour.clone());
    let began = Instant::now();
    let pulled = board.pull("lab/app", "latest");
    let took = began.elapsed();
    let told = match &pulled {
        Ok(pulled) => format!(
            "pulled {}",
            if pulled.digest == second.root { "the new version" } else { "the old version" }
        ),
        Err(PullError::Status { status, .. }) => format!("status {status}"),
        Err(PullError::Io(_, e)) => format!("cut: {}", e.kind()),
        Err(PullError::Wrong(what)) => panic!("{fault}: the client was given wrong content: {what}"),
    };
    println!("| {fault} | {told} in {} ms | {} blobs, all right |", took.as_millis(), board.check_blobs());
    assert_eq!(pulled.is_ok(), ok, "{fault}: {told}");
    assert!(took < Duration::from_secs(30), "{fault}: {took:?}");
    if !ok {
        assert!(!board.has_blob(&layer_of(&second)), "{fault}");
    }
    // With the uplink gone what was complete is served on, unless the new version became so.
    upstream.clear();
    upstream.release();
    upstream.hang_up();
    board.wait_until("the outage", || board.ask("lab/app", "latest").1.contains("last-complete"));
    let kept = board.pull("lab/app", "latest").unwrap().digest;
    let new = matches!(&pulled, Ok(pulled) if pulled.digest == second.root);
    assert_eq!(kept, if new { second.root } else { first.root }, "{fault}");
}

#[test]
fn a_body_that_stalls_is_resumed_over_a_slow_link() {
    let image = image(1);
    let (upstream, layer) = (upstream_with(&image), layer_of(&image));
    let path = format!("/blobs/{layer}");
    let board = Board::new(&upstream, "");
    board.manifests("docker.io", "lab/app", "latest", &[]);
    upstream.on(Some("GET"), &path, Behaviour::StallBodyAfter(image.blobs[&layer].len() / 2));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| board.get(&format!("/v2/lab/app{path}?ns=docker.io")).body());
        assert!(upstream.wait_for(1, "GET", &path, board::PATIENCE));
        // Name, connection and answer take their time once more, within what the configuration gives them.
        upstream.clear();
        upstream.on(Some("GET"), &path, Behaviour::Delay(Duration::from_millis(1_600)));
        assert!(reader.join().unwrap().unwrap() == *image.blobs[&layer]);
    });
}

#[test]
fn a_body_that_stalls_is_resumed() {
    bad_content("stall in the body", Some("GET"), "/blobs/", &Behaviour::StallBodyAfter(250_000), true);
}

#[test]
fn a_body_that_is_cut_is_resumed() {
    bad_content("cut in the body", Some("GET"), "/blobs/", &Behaviour::CutBodyAfter(100_000), true);
}

#[test]
fn a_body_that_is_cut_at_once_ends() {
    bad_content("cut before the first byte", Some("GET"), "/blobs/", &Behaviour::CutBodyAfter(0), false);
}

#[test]
fn ranges_that_are_ignored_are_skipped() {
    let (first, second) = (image(1), Image::multi_arch(2, &[700_000]));
    let upstream = upstream_with(&first);
    let board = Board::new(&upstream, "");
    upstream.push("lab/app", "latest", &second);
    board.manifests("docker.io", "lab/app", "latest", &[]);
    let layer = layer_of(&second);
    upstream.on(Some("GET"), "/blobs/", Behaviour::CutBodyAfter(100_000));
    let addr = board.addr;
    let path = format!("/v2/lab/app/blobs/{layer}");
    let client = std::thread::spawn(move || {
        larder::demo::client::request(addr, "GET", &path, &[], board::PATIENCE).unwrap().body()
    });
    assert!(upstream.wait_for(1, "GET", "/blobs/", board::PATIENCE));
    upstream.clear();
    upstream.on(Some("GET"), "/blobs/", Behaviour::IgnoreRange);
    assert!(client.join().unwrap().unwrap() == *second.blobs[&layer]);
    board.wait_until("the blob", || board.has_blob(&layer));
    board.check_blobs();
}

#[test]
fn wrong_bytes_of_the_right_length() {
    bad_content("wrong bytes", Some("GET"), "/blobs/", &Behaviour::WrongBytes, false);
    bad_content("wrong bytes of a manifest", Some("GET"), "/manifests/", &Behaviour::WrongBytes, false);
}

#[test]
fn a_wrong_digest_header() {
    bad_content("wrong digest header", None, "/manifests/", &Behaviour::WrongDigestHeader, false);
}

#[test]
fn no_digest_header() {
    bad_content("no digest header", None, "/manifests/", &Behaviour::NoDigestHeader, true);
}

#[test]
fn bodies_without_end() {
    bad_content("endless blob", Some("GET"), "/blobs/", &Behaviour::EndlessBody, false);
    bad_content("endless manifest", Some("GET"), "/manifests/", &Behaviour::EndlessBody, false);
}

#[test]
fn sizes_that_are_not_the_manifests() {
    bad_content("blob too large", Some("GET"), "/blobs/", &Behaviour::ContentLength(1 << 40), false);
    bad_content("huge manifest", Some("GET"), "/manifests/", &Behaviour::ContentLength(1 << 30), false);
}

#[test]
fn redirects_that_lead_nowhere() {
    bad_content("redirect loop", Some("GET"), "/blobs/", &Behaviour::RedirectLoop, false);
    bad_content("redirect loop of a manifest", Some("GET"), "/manifests/", &Behaviour::RedirectLoop, false);
}

#[test]
fn a_redirect_to_a_storage_host_is_followed() {
    let image = image(1);
    let (upstream, storage) = (upstream_with(&image), upstream_with(&image));
    let layer = layer_of(&image);
    upstream.on(
        Some("GET"),
        "/blobs/",
        Behaviour::RedirectTo(format!("{}/v2/lab/app/blobs/{layer}", storage.url())),
    );
    let board = Board::new(&upstream, "");
    assert!(board.get(&format!("/v2/lab/app/blobs/{layer}")).body().unwrap() == *image.blobs[&layer]);
    assert_eq!(storage.count("GET", "/blobs/"), 1);
}
