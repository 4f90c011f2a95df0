//! Pools and who may fill them: downloads, lanes and queues that one registry or repository has taken leave a place to the
//! others, whoever came first.

use crate::board::{self, Board, PATIENCE, image, needed};
use larder::demo::client;
use larder::demo::image::SampleImage as Image;
use larder::demo::upstream::{Behaviour, FaultyRegistry as Upstream};
use larder::oci::Digest;
use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Longer than an honest pull takes on a busy machine, and shorter than anything here that drips.
const SOON: Duration = Duration::from_secs(15);
/// A byte now and then, so that no time-out of a single read ends it.
const DRIP: Behaviour = Behaviour::SlowBody { bytes: 1, pause: Duration::from_millis(500) };

/// A board with `docker.io`, some of whose repositories are not honest, and `good.test`, which is.
fn two_registries(first: &Upstream, good: &Upstream, streams: usize) -> Board {
    let fetch = board::FETCH;
    let more = format!("[upstream.\"good.test\"]\nurl = \"{}\"\n{fetch}streams = {streams}\n", good.url());
    Board::new(first, &more)
}

/// Asks for a blob and reads nothing.
fn ask_for(board: &Board, repository: &str, digest: &Digest) -> TcpStream {
    ask(board, &format!("/v2/{repository}/blobs/{digest}?ns=docker.io"))
}

fn ask(board: &Board, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(board.addr).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
    stream
}

fn pull(board: &Board, registry: &str, repository: &str) -> Duration {
    let began = Instant::now();
    let pulled = client::pull(board.addr, Some(registry), repository, "latest", board::PLATFORM, PATIENCE);
    pulled.unwrap_or_else(|problem| panic!("{registry}/{repository}: {problem:?}\n{}", board.log()));
    began.elapsed()
}

/// Upstreams with `lab/evil` (many layers), `lab/good` at both.
fn upstreams(layers: usize) -> (Upstream, Upstream, Vec<Digest>) {
    let (first, good) = (Upstream::start().unwrap(), Upstream::start().unwrap());
    let evil = Image::multi_arch(7, &vec![200; layers]);
    first.push("lab/evil", "latest", &evil);
    first.push("lab/good", "latest", &image(2));
    good.push("lab/good", "latest", &image(3));
    first.on(Some("GET"), "/lab/evil/blobs/", DRIP);
    (first, good, needed(&evil))
}

#[test]
fn downloads_that_drip_leave_slots_to_other_registries_and_repositories() {
    for streams in [2, 4] {
        let (first, good, blobs) = upstreams(8);
        let board = two_registries(&first, &good, streams);
        board.manifests("docker.io", "lab/evil", "latest", &[]);
        let _clients: Vec<_> = blobs.iter().map(|blob| ask_for(&board, "lab/evil", blob)).collect();
        assert!(first.wait_for(streams - 1, "GET", "/lab/evil/blobs/", PATIENCE));
        for (registry, repository) in [("good.test", "lab/good"), ("docker.io", "lab/good")] {
            let took = pull(&board, registry, repository);
            assert!(took < SOON, "{streams} streams: {registry}/{repository} took {took:?}");
        }
        assert_eq!(first.count("GET", "/lab/evil/blobs/"), streams - 1, "a slot is kept");
    }
}

#[test]
fn the_only_slot_does_not_stop_another_registry() {
    let (first, good, blobs) = upstreams(2);
    let board = two_registries(&first, &good, 1);
    board.manifests("docker.io", "lab/evil", "latest", &[]);
    let _clients: Vec<_> = blobs.iter().map(|blob| ask_for(&board, "lab/evil", blob)).collect();
    assert!(first.wait_for(1, "GET", "/lab/evil/blobs/", PATIENCE));
    let took = pull(&board, "good.test", "lab/good");
    assert!(took < SOON, "{took:?}");
}

#[test]
fn what_nobody_waits_for_any_more_gives_its_slot_away() {
    let (first, good, blobs) = upstreams(2);
    let board = two_registries(&first, &good, 1);
    board.manifests("docker.io", "lab/evil", "latest", &[]);
    let client = ask_for(&board, "lab/evil", &blobs[0]);
    assert!(first.wait_for(1, "GET", "/lab/evil/blobs/", PATIENCE));
    drop(client);
    let took = pull(&board, "docker.io", "lab/good");
    assert!(took < SOON, "{took:?}");
    // It goes on where it was when nobody else wants the slot.
    assert!(first.wait_for(2, "GET", "/lab/evil/blobs/", PATIENCE));
    let again = first.requests().into_iter().rfind(|seen| seen.path.contains("/lab/evil/blobs/")).unwrap();
    assert!(again.range.is_some(), "{again:?}");
}

#[test]
fn a_slow_download_has_its_turn_and_its_client_follows_it_over_the_next() {
    let (first, good, _) = upstreams(1);
    let slow = Image::multi_arch(9, &[20_000]);
    first.clear();
    first.push("lab/slow", "latest", &slow);
    first.on(
        Some("GET"),
        "/lab/slow/blobs/",
        Behaviour::SlowBody { bytes: 64, pause: Duration::from_millis(500) },
    );
    let board = two_registries(&first, &good, 1);
    board.manifests("docker.io", "lab/slow", "latest", &[]);
    let blob = board::layer_of(&slow);
    let path = format!("/v2/lab/slow/blobs/{blob}?ns=docker.io");
    std::thread::scope(|scope| {
        let client = scope.spawn(|| board.get(&path).body().unwrap());
        assert!(first.wait_for(1, "GET", "/lab/slow/blobs/", PATIENCE));
        let took = pull(&board, "docker.io", "lab/good");
        assert!(took < PATIENCE, "{took:?}");
        first.clear();
        let body = client.join().unwrap();
        assert_eq!(body[..], slow.blobs[&blob][..]);
    });
    assert_eq!(
        first.count("GET", &format!("/lab/slow/blobs/{blob}")),
        2,
        "its second turn asked for the rest"
    );
}

#[test]
fn fills_of_clients_that_are_gone_do_not_fill_the_table() {
    let (first, good, blobs) = upstreams(1_060);
    let board = two_registries(&first, &good, 4);
    board.manifests("docker.io", "lab/evil", "latest", &[]);
    let fills = || {
        let status: serde_json::Value = serde_json::from_str(&board.said(&["status", "--json"])).unwrap();
        status["fills"].as_u64().unwrap()
    };
    let mut asked = 0;
    for some in blobs.chunks(100) {
        let _clients: Vec<_> = some.iter().map(|blob| ask_for(&board, "lab/evil", blob)).collect();
        asked = (asked + some.len() as u64).min(1_024);
        // A table that drops what nobody waits for is never so full.
        board.wait_until("the flood", || fills() >= asked.min(500));
    }
    // Its grace is over: the last clients are known to be gone.
    std::thread::sleep(Duration::from_millis(1_500));
    for registry in ["good.test", "docker.io"] {
        let took = pull(&board, registry, "lab/good");
        assert!(took < SOON, "{registry}: {took:?}");
    }
}

#[test]
fn manifests_that_drip_leave_a_lane_to_other_repositories() {
    let first = Upstream::start().unwrap();
    let images: Vec<_> = (0..12).map(image).collect();
    images.iter().for_each(|image| first.push("lab/evil", "latest", image));
    first.push("lab/good", "latest", &image(20));
    first.on(Some("GET"), "/lab/evil/manifests/", DRIP);
    let board = Board::new(&first, "");
    let path = |image: &Image| format!("/v2/lab/evil/manifests/{}?ns=docker.io", image.root);
    let _clients: Vec<_> = images.iter().map(|image| ask(&board, &path(image))).collect();
    assert!(first.wait_for(3, "GET", "/lab/evil/manifests/", PATIENCE));
    let took = pull(&board, "docker.io", "lab/good");
    assert!(took < SOON, "{took:?}");
    assert_eq!(first.count("GET", "/lab/evil/manifests/"), 3, "a lane is kept");
}

#[test]
fn uncached_streams_that_drip_leave_a_place_to_others() {
    let (first, good) = (Upstream::start().unwrap(), Upstream::start().unwrap());
    let (evil, honest) =
        (Image::multi_arch(7, &[900_000, 900_001, 900_002]), Image::multi_arch(8, &[800_000]));
    first.push("lab/evil", "latest", &evil);
    first.push("lab/good", "latest", &honest);
    good.push("lab/good", "latest", &honest);
    first.on(Some("GET"), "/lab/evil/blobs/", DRIP);
    let board = Board::with_config(&format!(
        "platforms = [\"{}\"]\n{}streams = 2\n[disk]\nmin_free = \"1MiB\"\nmax = \"200kB\"\n\
         [upstream.\"docker.io\"]\nurl = \"{}\"\n[upstream.\"good.test\"]\nurl = \"{}\"\n",
        board::PLATFORM,
        board::FETCH,
        first.url(),
        good.url()
    ));
    board.manifests("docker.io", "lab/evil", "latest", &[]);
    let big = needed(&evil).into_iter().filter(|digest| evil.blobs[digest].len() > 500_000);
    let _clients: Vec<_> = big.map(|blob| ask_for(&board, "lab/evil", &blob)).collect();
    // Three that did not fit, and one that is streamed.
    assert!(first.wait_for(4, "GET", "/lab/evil/blobs/", PATIENCE));
    let layer = board::layer_of(&honest);
    for registry in ["good.test", "docker.io"] {
        let began = Instant::now();
        let answer = board.get(&format!("/v2/lab/good/blobs/{layer}?ns={registry}"));
        assert_eq!(answer.status, 200, "{registry}");
        assert_eq!(answer.body().unwrap()[..], honest.blobs[&layer][..], "{registry}");
        assert!(began.elapsed() < SOON, "{registry}: {:?}", began.elapsed());
    }
}
