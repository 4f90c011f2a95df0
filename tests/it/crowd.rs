//! One client address that takes all it can get, and another that comes after it.

use crate::board::{Board, Folder, PATIENCE, image, layer_of, private_file, pulled, upstream_with};
use larder::budget;
use larder::demo::image::SampleImage as Image;
use larder::demo::upstream::LoginDemand as Login;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::io::{Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// The least that there is: 24 bodies and 42 connections at a time, of which an eighth is kept.
const MEMORY: &str = "[memory]\nmax = \"16MiB\"\n";
const CONNECTIONS_EACH: usize = 42 - 5;
const BODIES_EACH: usize = 24 - 3;

/// The last byte of the loopback addresses of a client that takes all, of two more, and of one that comes after them.
const GREEDY: [u8; 3] = [21, 22, 23];
const MODEST: u8 = 24;

/// A connection from 127.0.0.`host`.
fn connect(host: u8, to: SocketAddr) -> TcpStream {
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .unwrap();
    rustix::net::bind(&socket, &SocketAddrV4::new([127, 0, 0, host].into(), 0)).unwrap();
    rustix::net::connect(&socket, &to).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends a request and reads the status of its answer; 0 if there is none.
fn ask(stream: &mut TcpStream, path: &str, more: &str) -> u16 {
    let mut start = [0; 12];
    let sent = write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n{more}\r\n");
    match sent.and_then(|()| stream.read_exact(&mut start)) {
        Ok(()) => std::str::from_utf8(&start[9..]).unwrap().parse().unwrap(),
        Err(_) => 0,
    }
}

/// Status and body of a request on a connection of its own.
fn fetch(host: u8, to: SocketAddr, path: &str, more: &str) -> (u16, Vec<u8>) {
    let mut stream = connect(host, to);
    let status = ask(&mut stream, path, &format!("Connection: close\r\n{more}"));
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    let end = rest.windows(4).position(|at| at == b"\r\n\r\n").map_or(rest.len(), |at| at + 4);
    (status, rest.split_off(end))
}

/// Connections from `host` that stay open, as many as are answered.
fn take_all(host: u8, board: &Board, path: &str) -> Vec<TcpStream> {
    let mut held = Vec::new();
    loop {
        let mut stream = connect(host, board.addr);
        if ask(&mut stream, path, "") != 200 {
            return held;
        }
        held.push(stream);
        assert!(held.len() < 600, "no limit");
    }
}

/// A board with a cached layer that no socket buffer holds.
fn board() -> (Board, String, Vec<u8>) {
    let image = Image::multi_arch(1, &[24_000_000]);
    let (_upstream, board) = pulled(&image, MEMORY);
    let layer = layer_of(&image);
    (board, format!("/v2/lab/app/blobs/{layer}?ns=docker.io"), image.blobs[&layer].to_vec())
}

#[test]
fn one_address_has_seven_eighths_of_the_connections_and_others_the_rest() {
    let (board, blob, bytes) = board();
    let mut held = vec![take_all(GREEDY[0], &board, "/v2/")];
    assert_eq!(held[0].len(), CONNECTIONS_EACH, "one client on an idle board has what there is but the rest");
    // Some are in use at once, for a pull has several.
    let mut modest: Vec<TcpStream> = (0..3).map(|_| connect(MODEST, board.addr)).collect();
    for stream in &mut modest {
        assert_eq!(ask(stream, "/v2/", ""), 200);
    }
    drop(modest);
    // Two more that take all they get, and the next one still finds a place.
    board.wait_until("a free place", || fetch(MODEST, board.addr, "/v2/", "").0 == 200);
    held.extend(GREEDY[1..].iter().map(|host| take_all(*host, &board, "/v2/")));
    assert_eq!(fetch(MODEST, board.addr, &blob, ""), (200, bytes));
    assert_eq!(fetch(MODEST, board.addr, "/v2/lab/app/manifests/latest?ns=docker.io", "").0, 200);
}

#[test]
fn connections_that_send_no_request_shut_nobody_out() {
    let (board, blob, bytes) = board();
    // More than there are connections and places to wait together, each with half a header.
    let mut half = Vec::new();
    for _ in 0..150 {
        let mut stream = connect(GREEDY[0], board.addr);
        let _ = stream.write_all(b"GET /v2/ HTTP/1.1\r\nHos");
        half.push(stream);
    }
    for _ in 0..3 {
        let began = Instant::now();
        assert_eq!(fetch(MODEST, board.addr, &blob, ""), (200, bytes.clone()));
        assert!(began.elapsed() < budget::REJECTION_TIME, "{:?}", began.elapsed());
    }
}

#[test]
fn idle_connections_of_who_has_the_most_go_when_another_needs_them() {
    let (board, blob, bytes) = board();
    // Some have been used, and some have sent half a header.
    let mut greedy = take_all(GREEDY[0], &board, "/v2/");
    greedy.truncate(CONNECTIONS_EACH - 12);
    board.wait_until("a free place", || fetch(GREEDY[0], board.addr, "/v2/", "").0 == 200);
    for _ in 0..12 {
        let mut stream = connect(GREEDY[0], board.addr);
        stream.write_all(b"GET /v2/ HTTP/1.1\r\nHos").unwrap();
        greedy.push(stream);
    }
    // One is in use, and goes on to its end.
    let mut busy = connect(GREEDY[1], board.addr);
    assert_eq!(ask(&mut busy, &blob, "Connection: close\r\n"), 200);
    let mut modest: Vec<TcpStream> = (0..15).map(|_| connect(MODEST, board.addr)).collect();
    for (n, stream) in modest.iter_mut().enumerate() {
        assert_eq!(ask(stream, "/v2/", ""), 200, "connection {n}");
    }
    let mut rest = Vec::new();
    busy.read_to_end(&mut rest).unwrap();
    assert!(rest.ends_with(&bytes), "{} of {} bytes", rest.len(), bytes.len());
}

#[test]
fn one_address_has_seven_eighths_of_the_bodies() {
    let (board, blob, bytes) = board();
    // Each reads the beginning of a body and then no more.
    let held = take_all(GREEDY[0], &board, &blob);
    assert_eq!(held.len(), BODIES_EACH);
    let began = Instant::now();
    assert_eq!(fetch(MODEST, board.addr, &blob, ""), (200, bytes.clone()));
    println!("served in {:.1?}", began.elapsed());
    let more = take_all(GREEDY[1], &board, &blob);
    assert!((1..4).contains(&more.len()), "{}", more.len());
    assert_eq!(fetch(MODEST, board.addr, &blob, ""), (200, bytes));
}

#[test]
fn the_health_of_a_full_board_is_answered_at_once() {
    let (board, _, _) = board();
    let held = take_all(GREEDY[0], &board, "/v2/");
    for host in [GREEDY[0], MODEST, 1] {
        for path in ["/healthz", "/readyz"] {
            let began = Instant::now();
            assert_eq!(fetch(host, board.addr, path, "").0, 200, "{path} from {host}");
            assert!(began.elapsed() < budget::ADMISSION_WAIT_MAX, "{:?}", began.elapsed());
        }
    }
    // Connections of the same address that only wait are no obstacle, however many.
    let silent: Vec<TcpStream> =
        (0..2 * budget::CONNECTIONS_WAITING_MAX).map(|_| connect(GREEDY[0], board.addr)).collect();
    assert_eq!(fetch(GREEDY[0], board.addr, "/healthz", "").0, 200);
    drop(silent);
    // That place is for nothing else, and not for a second request.
    let mut stream = connect(GREEDY[0], board.addr);
    assert_eq!(ask(&mut stream, "/healthz", ""), 200);
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.to_lowercase().contains("connection: close"), "{rest}");
    let (status, body) = fetch(GREEDY[0], board.addr, "/metrics", "");
    assert_eq!(status, 503);
    assert!(String::from_utf8_lossy(&body).contains("memory.max"));
    drop(held);
    board.wait_until("a free place", || fetch(GREEDY[0], board.addr, "/metrics", "").0 == 200);
}

#[test]
fn passwords_of_one_address_are_checked_one_after_another_and_nobody_elses_wait() {
    const TAG: &str = "/v2/lab/app/manifests/latest?ns=docker.io";
    let upstream = upstream_with(&image(1));
    upstream.login(Login::Basic("alice".into(), "s3cret".into()));
    let folder = Folder::new();
    let users = format!("board:{}\n", bcrypt::hash("carry", 11).unwrap());
    let text = format!(
        "username = \"alice\"\npassword_file = \"{}\"\n[auth]\nhtpasswd_file = \"{}\"\n",
        private_file(&folder, "password", "s3cret").display(),
        private_file(&folder, "htpasswd", &users).display()
    );
    let board = Board::new(&upstream, &text);
    // "board:wrong", by so many at once that a turn for each takes longer than a login waits.
    let flood = || {
        let mut stream = connect(GREEDY[0], board.addr);
        write!(stream, "GET {TAG} HTTP/1.1\r\nHost: x\r\nAuthorization: Basic Ym9hcmQ6d3Jvbmc=\r\n\r\n")
            .unwrap();
        stream
    };
    let mut held: Vec<TcpStream> = (0..200).map(|_| flood()).collect();
    // All of them wait when the first is refused.
    held[0].read_exact(&mut [0; 12]).unwrap();
    let began = Instant::now();
    // "board:carry"
    let login = "Authorization: Basic Ym9hcmQ6Y2Fycnk=\r\n";
    assert_eq!(fetch(MODEST, board.addr, TAG, login).0, 200);
    let took = began.elapsed();
    println!("logged in after {took:.1?}");
    assert!(took < budget::LOGIN_WAIT_MAX, "{took:?}");
    drop(held);
}

#[test]
fn strangers_do_not_take_all_handshakes_of_the_kit() {
    let folder = Folder::new();
    let secret = private_file(&folder, "kit.secret", "a secret that the boards of a test share");
    let text = format!("[kit]\nsecret_file = \"{}\"\nlisten = \"127.0.0.1:0\"\n", secret.display());
    let board = Board::new(&upstream_with(&image(1)), &text);
    let (kit, ended) = (board.kit_addr(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for host in GREEDY {
            let ended = &ended;
            // Says nothing until it is cut, and comes again.
            for _ in 0..budget::KIT_CONNECTIONS_EACH {
                scope.spawn(move || {
                    while !ended.load(Ordering::Relaxed) {
                        let _ = connect(host, kit).read(&mut [0]);
                        std::thread::sleep(std::time::Duration::from_millis(5));
                    }
                });
            }
        }
        let greeted = || {
            let mut stream = connect(MODEST, kit);
            stream.write_all(&[b"larder-kit-1\n" as &[u8], &[7; 32]].concat()).unwrap();
            stream.read_exact(&mut [0; 45]).is_ok()
        };
        let began = Instant::now();
        let answers: Vec<bool> = std::iter::repeat_with(|| {
            std::thread::sleep(std::time::Duration::from_millis(100));
            greeted()
        })
        .take(15)
        .collect();
        ended.store(true, Ordering::Relaxed);
        assert!(answers.iter().all(|greeted| *greeted), "{answers:?} in {:?}", began.elapsed());
    });
}
