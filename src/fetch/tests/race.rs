//! Hosts with several addresses, some of which lead nowhere.

use super::*;
use crate::budget::{CONNECT_ATTEMPT_PAUSE, CONNECT_ATTEMPTS_MAX, PATHS_MAX};
use crate::fetch::race::{Paths, connect_first};
use rustix::net::{AddressFamily, SocketType};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

/// A listener that never takes a connection and whose queue is full: what else comes waits as for a host that drops packets.
struct DeadEnd {
    listener: TcpListener,
    _waiting: Vec<TcpStream>,
}

fn dead_end(at: SocketAddr) -> DeadEnd {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(socket.as_fd(), &at).unwrap();
    rustix::net::listen(socket.as_fd(), 0).unwrap();
    let listener = TcpListener::from(socket);
    let at = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(one) = TcpStream::connect_timeout(&at, Duration::from_millis(200)) {
        waiting.push(one);
        assert!(waiting.len() < 16, "its queue does not fill");
    }
    DeadEnd { listener, _waiting: waiting }
}

/// Sockets on this machine that are on their way to an address.
fn on_the_way_to(at: SocketAddr) -> usize {
    let IpAddr::V4(v4) = at.ip() else { panic!("no address of IPv4") };
    let remote = format!("{:08X}:{:04X} 02", u32::from_ne_bytes(v4.octets()), at.port());
    std::fs::read_to_string("/proc/net/tcp").unwrap().lines().filter(|line| line.contains(&remote)).count()
}

fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn at(last: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, last], port))
}

/// `N.M.test` has the addresses 127.0.0.N and 127.0.0.M, in this order.
fn numbered(host: &str) -> Result<Vec<IpAddr>, String> {
    let numbers = host.split('.').map_while(|part| part.parse::<u8>().ok());
    let found: Vec<IpAddr> = numbers.map(|last| IpAddr::from([127, 0, 0, last])).collect();
    if found.is_empty() { Err("the name has no address".to_owned()) } else { Ok(found) }
}

fn open_numbered(config: &Config) -> (Upstreams, Arc<Upstream>) {
    let upstreams = Upstreams::with(config, |_| None, Names::asking(numbered)).unwrap();
    let only = upstreams.iter().next().unwrap().clone();
    (upstreams, only)
}

/// The shortest of some times, as the machine has other things to do.
fn shortest(mut of: impl FnMut()) -> Duration {
    let mut time = || {
        let began = Instant::now();
        of();
        began.elapsed()
    };
    (0..5).map(|_| time()).min().unwrap()
}

#[test]
fn families_take_turns_and_what_worked_is_first() {
    let found = addresses(&["[::1]:1", "[::2]:1", "[::3]:1", "1.0.0.1:1", "1.0.0.2:1", "[::1]:1"]);
    let paths = Paths::default();
    let order = |host: &str| {
        let order: Vec<String> =
            paths.in_order(host, found.clone()).iter().map(|at| at.ip().to_string()).collect();
        order.join(" ")
    };
    assert_eq!(order("a.test"), "::1 1.0.0.1 ::2 1.0.0.2 ::3");
    paths.worked("a.test", "1.0.0.2:1".parse().unwrap());
    assert_eq!(order("a.test"), "1.0.0.2 ::1 1.0.0.1 ::2 ::3");
    assert_eq!(order("b.test"), "::1 1.0.0.1 ::2 1.0.0.2 ::3", "of another host nothing is known");
    paths.led_nowhere("a.test", "[::1]:1".parse().unwrap());
    assert_eq!(order("a.test"), "::2 1.0.0.1 ::3 1.0.0.2 ::1");
    // A name that has moved: the family that worked goes on.
    paths.worked("a.test", "9.9.9.9:1".parse().unwrap());
    assert_eq!(order("a.test"), "1.0.0.1 ::1 1.0.0.2 ::2 ::3");
    let many = (1..100).map(|last| at(last, 1)).collect();
    assert_eq!(paths.in_order("a.test", many).len(), CONNECT_ATTEMPTS_MAX);
    assert!(paths.in_order("a.test", Vec::new()).is_empty());
    for count in 0..3 * PATHS_MAX {
        paths.worked(&format!("{count}.test"), at(1, 1));
        assert!(paths.known() <= PATHS_MAX);
    }
}

#[test]
fn the_next_address_is_tried_beside_one_that_does_not_answer() {
    let living = TcpListener::bind("127.0.0.1:0").unwrap();
    let live = living.local_addr().unwrap();
    let gone = dead_end(at(2, live.port()));
    let dead = gone.listener.local_addr().unwrap();
    let began = Instant::now();
    let (_, won) = connect_first(&[dead, live], Duration::from_secs(30)).unwrap();
    assert_eq!(won, live);
    assert!(began.elapsed() >= CONNECT_ATTEMPT_PAUSE && began.elapsed() < Duration::from_secs(5));
    assert_eq!(on_the_way_to(dead), 0, "what loses is closed");
    let quick =
        shortest(|| assert_eq!(connect_first(&[live, dead], Duration::from_secs(30)).unwrap().1, live));
    assert!(quick < CONNECT_ATTEMPT_PAUSE, "{quick:?} with what works first");
}

#[test]
fn a_failure_is_not_waited_for() {
    let living = TcpListener::bind("127.0.0.1:0").unwrap();
    let live = living.local_addr().unwrap();
    let refusing: Vec<SocketAddr> = (3..11).map(|last| at(last, live.port())).collect();
    let mut all = refusing.clone();
    all.push(live);
    let quick = shortest(|| assert_eq!(connect_first(&all, Duration::from_secs(30)).unwrap().1, live));
    assert!(quick < CONNECT_ATTEMPT_PAUSE, "{quick:?}");
    let Err(ureq::Error::Io(error)) = connect_first(&refusing, Duration::from_secs(30)) else { panic!() };
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_race_without_a_winner_ends_in_time_and_leaves_nothing() {
    let dead = [dead_end(at(2, 0)), dead_end(at(3, 0)), dead_end(at(4, 0))];
    let all: Vec<SocketAddr> = dead.iter().map(|dead| dead.listener.local_addr().unwrap()).collect();
    let began = Instant::now();
    let lost = connect_first(&all, Duration::from_millis(900)).unwrap_err();
    assert!(matches!(lost, ureq::Error::Timeout(_)), "{lost}");
    assert!(began.elapsed() >= Duration::from_millis(900) && began.elapsed() < Duration::from_secs(5));
    assert!(all.iter().all(|at| on_the_way_to(*at) == 0));
}

#[test]
fn an_early_attempt_goes_on_beside_later_ones() {
    let (first, second) = (dead_end(at(2, 0)), dead_end(at(3, 0)));
    let all = [&first, &second].map(|dead| dead.listener.local_addr().unwrap());
    thread::scope(|scope| {
        scope.spawn(|| {
            while on_the_way_to(all[1]) == 0 {
                thread::yield_now();
            }
            // Now it answers, when the first attempt is sent again.
            while first.listener.accept().is_ok() {}
        });
        let (_, won) = connect_first(&all, Duration::from_secs(60)).unwrap();
        assert_eq!(won, all[0]);
        rustix::net::shutdown(first.listener.as_fd(), rustix::net::Shutdown::Both).unwrap();
    });
}

#[test]
fn an_upstream_with_a_dead_address_is_up() {
    let server = Server::new(index_answer);
    let dead = dead_end(at(2, server.port));
    let (_all, upstream) = open_numbered(&config(&format!("http://2.1.test:{}", server.port)));
    upstream.head_manifest(&repository(), &tag()).unwrap();
    assert!(upstream.link().is_up());
    let quick = shortest(|| upstream.endpoints()[0].probe().unwrap());
    assert!(quick < CONNECT_ATTEMPT_PAUSE, "{quick:?} for a new connection when it is known what works");
    // What worked is gone, and the other way has come back.
    let moved = dead.listener.local_addr().unwrap();
    drop(dead);
    let other = format!("http://2.3.test:{}", server.port);
    let (_all, upstream) = open_numbered(&config(&other));
    let back = TcpListener::bind(moved).unwrap();
    let answering = thread::spawn(move || {
        for socket in back.incoming().take(2) {
            converse(Box::new(socket.unwrap()), &Mutex::default(), &|seen, out| {
                index_answer(seen, out);
                Next::Close
            });
        }
    });
    upstream.head_manifest(&repository(), &tag()).unwrap();
    upstream.endpoints()[0].probe().unwrap();
    answering.join().unwrap();
}

#[test]
fn a_proxy_has_several_addresses_too() {
    let server = Server::new(|seen, out| match seen.method.as_str() {
        "CONNECT" => {
            drop(out.write_all(b"HTTP/1.1 200 OK\r\n\r\n"));
            Next::Keep
        }
        _ => index_answer(seen, out),
    });
    let _dead = dead_end(at(2, server.port));
    let mut config = config("http://registry.test:5000");
    config.fetch.proxy = Some(Secret::new(format!("http://2.1.test:{}", server.port)));
    let (_all, upstream) = open_numbered(&config);
    upstream.head_manifest(&repository(), &tag()).unwrap();
    let quick = shortest(|| upstream.endpoints()[0].probe().unwrap());
    assert!(quick < CONNECT_ATTEMPT_PAUSE, "{quick:?}");
    assert_eq!(server.lines()[0], "CONNECT registry.test:5000");
    assert!(server.lines()[1].starts_with("HEAD "));
}

#[test]
fn a_path_that_takes_connections_and_carries_nothing_is_tried_last() {
    let (server, authority) = tls_server(index_answer);
    let silent = TcpListener::bind(at(2, server.port)).unwrap();
    let mut config = hasty(&format!("https://2.1.test:{}", server.port));
    let file = std::env::temp_dir().join(format!("larder-race-ca-{}.pem", std::process::id()));
    std::fs::write(&file, authority).unwrap();
    config.upstreams[0].endpoints[0].ca_file = Some(file);
    let (_all, upstream) = open_numbered(&config);
    let silence = upstream.endpoints()[0].probe().unwrap_err();
    assert_eq!(silence.cause(), Some(Cause::Timeout), "{silence}");
    // The certificate is for the number: that it is looked at shows that the other address answered.
    let name = upstream.endpoints()[0].probe().unwrap_err();
    assert!(name.to_string().contains("for another name"), "{name}");
    drop(silent);
}
