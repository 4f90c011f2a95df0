//! One registry, of which some repositories drip or hang, and the others that are honest; the client that asks for the
//! first and another one. Whoever is slow has its turn, and no more while others wait.

use crate::board::{self, Board, PATIENCE, documents, image, layer_of, needed};
use larder::demo::client;
use larder::demo::image::SampleImage as Image;
use larder::demo::upstream::{Behaviour, FaultyRegistry as Upstream};
use larder::oci::{Algorithm, Digest, media};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

/// What clients wait for a header, less what a busy machine takes.
const BOUND: Duration = Duration::from_secs(25);
/// A byte now and then, so that no time-out of a single read ends it.
const DRIP: Behaviour = Behaviour::SlowBody { bytes: 1, pause: Duration::from_millis(300) };
/// Time-outs as they are by default, so that no time-out of a test's own ends what drips.
const FETCH: &str = "[fetch]\nconnect_timeout = \"5s\"\nheader_timeout = \"10s\"\nstall_timeout = \"20s\"\n";
/// The last byte of the loopback addresses of the client that asks for what drips.
const GREEDY: u8 = 31;

/// Requests from 127.0.0.`host` whose answers nobody reads.
fn ask(board: &Board, host: u8, method: &str, path: &str) -> TcpStream {
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .unwrap();
    rustix::net::bind(&socket, &SocketAddrV4::new([127, 0, 0, host].into(), 0)).unwrap();
    rustix::net::connect(&socket, &board.addr).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.write_all(format!("{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
    stream
}

fn pull(board: &Board, registry: &str, repository: &str) -> Duration {
    let began = Instant::now();
    let pulled = client::pull(board.addr, Some(registry), repository, "latest", board::PLATFORM, PATIENCE);
    pulled.unwrap_or_else(|problem| panic!("{registry}/{repository}: {problem:?}"));
    began.elapsed()
}

/// A registry with so many repositories `lab/evilN`, and `lab/good`; one beside it with `lab/good`.
fn upstreams(evil: u64) -> (Upstream, Upstream, Vec<Image>) {
    let (first, beside) = (Upstream::start().unwrap(), Upstream::start().unwrap());
    let images: Vec<Image> = (0..evil).map(|n| Image::multi_arch(100 + n, &[40_000])).collect();
    for (n, image) in images.iter().enumerate() {
        first.push(&format!("lab/evil{n}"), "latest", image);
    }
    first.push("lab/good", "latest", &image(2));
    beside.push("lab/good", "latest", &image(3));
    (first, beside, images)
}

fn board_of(first: &Upstream, beside: &Upstream, more: &str) -> Board {
    Board::new(first, &format!("[upstream.\"good.test\"]\nurl = \"{}\"\n{FETCH}{more}", beside.url()))
}

/// The honest repository of the registry and the one beside it are pulled by 127.0.0.1 in a bounded time.
fn honest_pulls(board: &Board, what: &str) {
    for registry in ["docker.io", "good.test"] {
        let took = pull(board, registry, "lab/good");
        println!("{what}: {registry} took {took:?}");
        assert!(took < BOUND, "{what}: {registry}/lab/good took {took:?}");
    }
}

#[test]
fn manifests_of_many_repositories_that_drip_leave_lanes_to_another_client() {
    let (first, beside, images) = upstreams(70);
    first.on(Some("GET"), "/lab/evil", DRIP);
    let board = board_of(&first, &beside, "");
    let path = |n: usize| format!("/v2/lab/evil{n}/manifests/{}?ns=docker.io", images[n].root);
    let _clients: Vec<_> = (0..70).map(|n| ask(&board, GREEDY, "GET", &path(n))).collect();
    assert!(first.wait_for(4, "GET", "/lab/evil", PATIENCE));
    honest_pulls(&board, "70 manifests");
}

#[test]
fn tags_of_many_repositories_that_hang_leave_lanes_to_another_client() {
    let (first, beside, _) = upstreams(70);
    first.on(Some("HEAD"), "/lab/evil", Behaviour::HangBeforeHeader);
    let board = board_of(&first, &beside, "");
    let path = |n: usize| format!("/v2/lab/evil{n}/manifests/latest?ns=docker.io");
    let _clients: Vec<_> = (0..70).map(|n| ask(&board, GREEDY, "HEAD", &path(n))).collect();
    assert!(first.wait_for(4, "HEAD", "/lab/evil", PATIENCE));
    honest_pulls(&board, "70 tags");
}

#[test]
fn lists_and_referrers_that_drip_leave_lanes_to_another_client() {
    let (first, beside, images) = upstreams(16);
    first.on(Some("GET"), "/lab/evil", DRIP);
    let board = board_of(&first, &beside, "");
    let _clients: Vec<_> = (0..16)
        .map(|n| {
            let list = format!("/v2/lab/evil{n}/tags/list?ns=docker.io");
            let referrers = format!("/v2/lab/evil{n}/referrers/{}?ns=docker.io", images[n].root);
            ask(&board, GREEDY, "GET", if n % 2 == 0 { &list } else { &referrers })
        })
        .collect();
    assert!(first.wait_for(4, "GET", "/lab/evil", PATIENCE));
    honest_pulls(&board, "lists");
}

#[test]
fn ten_repositories_whose_manifests_drip_leave_turns_to_another_one_of_the_same_client() {
    let (first, beside, images) = upstreams(10);
    first.on(Some("GET"), "/lab/evil", DRIP);
    let board = board_of(&first, &beside, "");
    let path = |n: usize| format!("/v2/lab/evil{n}/manifests/{}?ns=docker.io", images[n].root);
    let _clients: Vec<_> = (0..10).map(|n| ask(&board, 1, "GET", &path(n))).collect();
    assert!(first.wait_for(4, "GET", "/lab/evil", PATIENCE));
    honest_pulls(&board, "ten manifests");
}

#[test]
fn ten_repositories_whose_tags_hang_leave_turns_to_another_one_of_the_same_client() {
    let (first, beside, _) = upstreams(10);
    first.on(Some("HEAD"), "/lab/evil", Behaviour::HangBeforeHeader);
    let board = board_of(&first, &beside, "");
    let path = |n: usize| format!("/v2/lab/evil{n}/manifests/latest?ns=docker.io");
    let _clients: Vec<_> = (0..10).map(|n| ask(&board, 1, "HEAD", &path(n))).collect();
    assert!(first.wait_for(4, "HEAD", "/lab/evil", PATIENCE));
    honest_pulls(&board, "ten tags");
}

#[test]
fn tags_that_are_answered_from_the_cache_leave_their_lanes_at_once() {
    let (first, beside, _) = upstreams(6);
    let board = board_of(&first, &beside, "");
    for n in 0..6 {
        pull(&board, "docker.io", &format!("lab/evil{n}"));
    }
    first.on(Some("HEAD"), "/lab/evil", Behaviour::HangBeforeHeader);
    // resolve_deadline passes, and nobody waits for their upstream any more.
    for n in 0..6 {
        let (status, how, _) = board.ask(&format!("lab/evil{n}"), "latest");
        assert_eq!((status, how.contains("last-complete")), (200, true), "{how}");
    }
    let took = pull(&board, "docker.io", "lab/good");
    assert!(took < Duration::from_secs(5), "{took:?}");
    // It was not given up: the answer still comes when the lane is free.
    assert!(first.wait_for(7, "HEAD", "/lab/evil", PATIENCE));
}

#[test]
fn what_a_client_asked_for_that_is_gone_makes_way_at_once() {
    let (first, beside, images) = upstreams(40);
    first.on(None, "/lab/evil", Behaviour::HangBeforeHeader);
    let board = board_of(&first, &beside, "");
    let path = |n: usize| format!("/v2/lab/evil{n}/manifests/{}?ns=docker.io", images[n].root);
    let clients: Vec<_> = (0..40).map(|n| ask(&board, 1, "GET", &path(n))).collect();
    assert!(first.wait_for(4, "GET", "/lab/evil", PATIENCE));
    drop(clients);
    let took = pull(&board, "docker.io", "lab/good");
    assert!(took < Duration::from_secs(8), "they are not waited for: {took:?}");
}

#[test]
fn downloads_of_many_repositories_that_drip_leave_slots_to_another_client() {
    let (first, beside, images) = upstreams(12);
    let board = board_of(&first, &beside, "");
    (0..12).for_each(|n| board.manifests("docker.io", &format!("lab/evil{n}"), "latest", &[]));
    first.on(Some("GET"), "/lab/evil", DRIP);
    let path = |n: usize| format!("/v2/lab/evil{n}/blobs/{}?ns=docker.io", layer_of(&images[n]));
    let _clients: Vec<_> = (0..12).map(|n| ask(&board, GREEDY, "GET", &path(n))).collect();
    assert!(first.wait_for(4, "GET", "/blobs/", PATIENCE));
    honest_pulls(&board, "twelve downloads");
}

#[test]
fn ten_repositories_whose_layers_drip_leave_turns_to_another_one_of_the_same_client() {
    let (first, beside, images) = upstreams(10);
    let board = board_of(&first, &beside, "");
    (0..10).for_each(|n| board.manifests("docker.io", &format!("lab/evil{n}"), "latest", &[]));
    first.on(Some("GET"), "/lab/evil", DRIP);
    let path = |n: usize| format!("/v2/lab/evil{n}/blobs/{}?ns=docker.io", layer_of(&images[n]));
    let _clients: Vec<_> = (0..10).map(|n| ask(&board, 1, "GET", &path(n))).collect();
    assert!(first.wait_for(4, "GET", "/blobs/", PATIENCE));
    honest_pulls(&board, "ten downloads");
}

#[test]
fn uncached_streams_of_many_repositories_that_drip_leave_places_to_others() {
    let (first, beside, images) = upstreams(8);
    first.on(Some("GET"), "/lab/evil", DRIP);
    let board = board_of(&first, &beside, "streams = 2\n");
    // No manifest names them: they are streamed and not kept.
    let path = |n: usize| format!("/v2/lab/evil{n}/blobs/{}?ns=docker.io", layer_of(&images[n]));
    let _clients: Vec<_> = (0..8).map(|n| ask(&board, GREEDY, "GET", &path(n))).collect();
    assert!(first.wait_for(2, "GET", "/blobs/", PATIENCE));
    let blob = needed(&image(2)).remove(0);
    let began = Instant::now();
    let answer = board.get(&format!("/v2/lab/good/blobs/{blob}?ns=docker.io"));
    assert_eq!(answer.status, 200, "after {:?}", began.elapsed());
    assert_eq!(Digest::of(Algorithm::Sha256, &answer.body().unwrap()), blob);
    assert!(began.elapsed() < BOUND, "{:?}", began.elapsed());
}

#[test]
fn clients_that_do_not_read_their_streams_leave_places_to_others() {
    let (first, beside, _) = upstreams(0);
    let large = Image::multi_arch(9, &[30_000_000]);
    (0..8).for_each(|n| first.push(&format!("lab/evil{n}"), "latest", &large));
    let board = board_of(&first, &beside, "streams = 2\n");
    let path = |n: usize| format!("/v2/lab/evil{n}/blobs/{}?ns=docker.io", layer_of(&large));
    let _clients: Vec<_> = (0..8).map(|n| ask(&board, GREEDY, "GET", &path(n))).collect();
    assert!(first.wait_for(2, "GET", "/blobs/", PATIENCE));
    let blob = needed(&image(2)).remove(0);
    let answer = board.get(&format!("/v2/lab/good/blobs/{blob}?ns=docker.io"));
    assert_eq!(answer.status, 200);
    assert_eq!(Digest::of(Algorithm::Sha256, &answer.body().unwrap()), blob);
}

/// An image that is nothing but a large index of its own.
fn large(n: u64) -> Image {
    let pad = "y".repeat(900);
    let bytes = documents::index_of(|child| {
        let digest = documents::digest(usize::try_from(n).unwrap() * 10_000 + child);
        format!(r#"{{"mediaType":"{}","digest":"{digest}","size":1,"p":"{pad}"}}"#, media::OCI_MANIFEST)
    });
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    let manifests = BTreeMap::from([(digest.clone(), (media::OCI_INDEX.to_owned(), bytes.into()))]);
    Image { blobs: BTreeMap::new(), manifests, root: digest }
}

#[test]
fn a_third_registry_has_its_turn_with_a_large_manifest_while_two_drip() {
    let upstreams: Vec<Upstream> = (0..3).map(|_| Upstream::start().unwrap()).collect();
    let images: Vec<Image> = (0..3).map(large).collect();
    for (upstream, image) in upstreams.iter().zip(&images) {
        upstream.push("lab/app", "latest", image);
    }
    // Enough at once to need a place, and then a little at a time.
    let slow = Behaviour::SlowBody { bytes: 70_000, pause: Duration::from_secs(4) };
    upstreams[..2].iter().for_each(|upstream| upstream.on(Some("GET"), "/manifests/", slow.clone()));
    let board = Board::new(
        &upstreams[0],
        &format!(
            "[upstream.\"b.test\"]\nurl = \"{}\"\n[upstream.\"c.test\"]\nurl = \"{}\"\n\
             [fetch]\nheader_timeout = \"19s\"\n",
            upstreams[1].url(),
            upstreams[2].url()
        ),
    );
    let path = |n: usize, registry: &str| format!("/v2/lab/app/manifests/{}?ns={registry}", images[n].root);
    let _clients =
        [("docker.io", 0), ("b.test", 1)].map(|(name, n)| ask(&board, GREEDY, "GET", &path(n, name)));
    for upstream in &upstreams[..2] {
        assert!(upstream.wait_for(1, "GET", "/manifests/", PATIENCE));
    }
    // They have the places once more has come than is read without one, which is with the first piece.
    std::thread::sleep(Duration::from_secs(1));
    let began = Instant::now();
    let answer = board.get(&path(2, "c.test"));
    let (status, took) = (answer.status, began.elapsed());
    assert_eq!(status, 200, "after {took:?}");
    let mut bytes = Vec::new();
    { answer }.read_to_end(&mut bytes).unwrap();
    assert_eq!(Digest::of(Algorithm::Sha256, &bytes), images[2].root);
    assert!(took < Duration::from_secs(14), "{took:?}");
}
