//! Fills: one download for everybody, resumed, outliving its clients, never completed wrong.

use crate::board::{self, Board, PATIENCE, image, layer_of, needed, upstream_with};
use larder::demo::client;
use larder::demo::image::SampleImage as Image;
use larder::demo::upstream::{Behaviour, FaultyRegistry as Upstream};
use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn blob_path(digest: &larder::oci::Digest) -> String {
    format!("/v2/lab/app/blobs/{digest}?ns=docker.io")
}

#[test]
fn fifty_clients_cost_the_upstream_its_bytes_once() {
    let image = Image::multi_arch(1, &[2_000_000, 500_000, 10_000]);
    let upstream = upstream_with(&image);
    let board = Arc::new(Board::new(&upstream, ""));
    let clients: Vec<_> = (0..50)
        .map(|_| {
            let board = Arc::clone(&board);
            std::thread::spawn(move || board.pull("lab/app", "latest").unwrap())
        })
        .collect();
    for client in clients {
        assert_eq!(client.join().unwrap().digest, image.root);
    }
    let bytes: usize = needed(&image).iter().map(|digest| image.blobs[digest].len()).sum();
    let ratio = upstream.blob_bytes_sent() as f64 / bytes as f64;
    println!("50 clients, one cold image: the upstream sent {ratio:.2} times its bytes (goal 1.00)");
    assert_eq!(upstream.blob_bytes_sent(), bytes as u64);
    assert_eq!(upstream.count("GET", "/manifests/"), 2, "the index and one manifest, each once");
    board.check_blobs();
}

#[test]
fn the_first_byte_follows_the_upstreams() {
    let image = Image::multi_arch(1, &[2_000_000]);
    let upstream = upstream_with(&image);
    let board = Board::new(&upstream, "");
    board.manifests("docker.io", "lab/app", "latest", &[]);
    let layer = layer_of(&image);
    // The upstream sends 100 kB and then nothing, so whatever reaches the client did not wait for the rest.
    upstream.on(Some("GET"), "/blobs/", Behaviour::StallBodyAfter(100_000));
    let mut answer = board.get(&blob_path(&layer));
    assert_eq!(answer.status, 200);
    let mut first = [0; 1];
    answer.read_exact(&mut first).unwrap();
    let seen = upstream.requests().into_iter().rev().find(|seen| seen.path.contains("/blobs/")).unwrap();
    let lag = seen.at.elapsed();
    println!(
        "first byte at the client {:.1} ms after the upstream was asked (goal 50 ms)",
        lag.as_secs_f64() * 1e3
    );
    assert!(lag < board::LEEWAY, "{lag:?}");
    upstream.release();
    assert_eq!(answer.body().unwrap().len(), image.blobs[&layer].len() - 1);
}

#[test]
fn only_what_is_asked_for_is_fetched() {
    let image = image(1);
    let (upstream, board) = board::pulled(&image, "");
    let fetched = upstream.count("GET", "/blobs/");
    assert_eq!(fetched, needed(&image).len());
    assert_eq!(board.check_blobs(), fetched + 2);
}

#[test]
fn a_cut_is_resumed_by_range_behind_the_clients_back() {
    let image = Image::multi_arch(1, &[1_000_000]);
    let upstream = upstream_with(&image);
    let board = Board::new(&upstream, "");
    board.manifests("docker.io", "lab/app", "latest", &[]);
    let layer = layer_of(&image);
    upstream.on(Some("GET"), "/blobs/", Behaviour::CutBodyAfter(300_000));
    let body = board.get(&blob_path(&layer)).body().unwrap();
    assert!(body == *image.blobs[&layer], "the client got other bytes");
    assert_eq!(upstream.blob_bytes_sent(), body.len() as u64);
    let ranges: Vec<_> = upstream.requests().into_iter().filter_map(|seen| seen.range).collect();
    assert_eq!(ranges, ["bytes=300000-", "bytes=600000-", "bytes=900000-"]);
}

#[test]
fn a_fill_outlives_its_client() {
    let image = Image::multi_arch(1, &[1_000_000]);
    let upstream = upstream_with(&image);
    let board = Board::new(&upstream, "");
    board.manifests("docker.io", "lab/app", "latest", &[]);
    let layer = layer_of(&image);
    upstream.on(Some("GET"), "/blobs/", Behaviour::StallBodyAfter(200_000));
    let mut answer = board.get(&blob_path(&layer));
    answer.read_exact(&mut [0; 1000]).unwrap();
    drop(answer);
    upstream.release();
    board.wait_until("the blob", || board.has_blob(&layer));
    assert_eq!(upstream.blob_bytes_sent(), image.blobs[&layer].len() as u64);
}

#[test]
fn a_fill_is_resumed_after_a_kill() {
    let image = Image::multi_arch(1, &[1_000_000]);
    let upstream = upstream_with(&image);
    let mut board = Board::new(&upstream, "");
    board.manifests("docker.io", "lab/app", "latest", &[]);
    let layer = layer_of(&image);
    upstream.on(Some("GET"), "/blobs/", Behaviour::StallBodyAfter(400_000));
    let mut answer = board.get(&blob_path(&layer));
    answer.read_exact(&mut [0; 300_000]).unwrap();
    // Its name goes on with what stands for the registry and the class.
    let staged = |entry: &std::fs::DirEntry| {
        let name = entry.file_name().into_string().unwrap();
        name.starts_with(&format!("sha256-{}-", layer.hex())) && !name.contains('.')
    };
    board.wait_until("400 kB on the disk", || {
        let mut files = std::fs::read_dir(board.data().join("staging")).unwrap().flatten();
        files.find(staged).is_some_and(|file| file.metadata().is_ok_and(|meta| meta.len() >= 400_000))
    });
    board.kill();
    upstream.hang_up();
    upstream.come_back().unwrap();
    upstream.clear();
    upstream.release();
    // Nobody asks: the next start takes it up by itself.
    board.start_again();
    board.wait_until("the blob", || board.has_blob(&layer));
    // Its end is not believed after a stop that was not an orderly one.
    let again = upstream.blob_bytes_sent() - image.blobs[&layer].len() as u64;
    assert!(again <= 2 * larder::budget::TORN_BYTES, "{again} bytes came twice");
    board.check_blobs();
}

#[test]
fn a_fill_is_resumed_when_the_uplink_is_back() {
    let image = Image::multi_arch(1, &[1_000_000]);
    let upstream = upstream_with(&image);
    let board = Board::new(&upstream, "");
    board.head("/v2/lab/app/manifests/latest");
    board.manifests("docker.io", "lab/app", "latest", &[]);
    let layer = layer_of(&image);
    upstream.on(Some("GET"), "/blobs/", Behaviour::StallBodyAfter(400_000));
    let mut answer = board.get(&blob_path(&layer));
    answer.read_exact(&mut [0; 300_000]).unwrap();
    upstream.hang_up();
    upstream.clear();
    upstream.release();
    board.wait_for_log("is parked");
    // Once it is known to be down nobody waits, and the reader that is under way is cut in the end.
    assert_eq!(board.get(&blob_path(&layer)).status, 502);
    let began = Instant::now();
    assert!(answer.body().is_err(), "a body that cannot be completed must be cut");
    assert!(began.elapsed() < Duration::from_secs(30), "the reader hung for {:?}", began.elapsed());
    upstream.come_back().unwrap();
    board.wait_until("the blob", || board.has_blob(&layer));
    assert_eq!(upstream.blob_bytes_sent(), image.blobs[&layer].len() as u64);
}

#[test]
fn the_last_piece_of_a_wrong_blob_never_arrives() {
    let image = Image::multi_arch(1, &[500_000]);
    let upstream = upstream_with(&image);
    let board = Board::new(&upstream, "");
    board.manifests("docker.io", "lab/app", "latest", &[]);
    let layer = layer_of(&image);
    upstream.on(Some("GET"), "/blobs/", Behaviour::WrongBytes);
    let answer = board.get(&blob_path(&layer));
    // The verdict may be there before the answer's first byte has gone out.
    if answer.status == 200 {
        let cut = answer.body().unwrap_err();
        assert_eq!(cut.kind(), std::io::ErrorKind::UnexpectedEof, "{cut}");
    } else {
        assert_eq!(answer.status, 502);
    }
    assert!(!board.has_blob(&layer));
    board.wait_for_log("hashes to");
    let staged = std::fs::read_dir(board.data().join("staging")).unwrap().count();
    assert_eq!(staged, 0, "wrong bytes must not be taken up again");
    upstream.clear();
    assert_eq!(board.get(&blob_path(&layer)).body().unwrap(), &*image.blobs[&layer]);
}

#[test]
fn a_slow_reader_holds_back_nobody() {
    let image = Image::multi_arch(1, &[8_000_000]);
    let upstream = upstream_with(&image);
    let board = Board::new(&upstream, "");
    board.manifests("docker.io", "lab/app", "latest", &[]);
    let layer = layer_of(&image);
    let mut slow = board.get(&blob_path(&layer));
    slow.read_exact(&mut [0; 10]).unwrap();
    let fast = board.get(&blob_path(&layer)).body().unwrap();
    assert_eq!(fast.len(), image.blobs[&layer].len());
    assert_eq!(slow.body().unwrap().len(), fast.len() - 10);
    assert_eq!(upstream.blob_bytes_sent(), fast.len() as u64);
}

#[test]
fn layers_never_delay_a_tag() {
    let image = Image::multi_arch(1, &[300_000, 300_001, 300_002, 300_003, 300_004, 300_005]);
    let upstream = upstream_with(&image);
    let board = Board::new(&upstream, "");
    board.head("/v2/lab/app/manifests/latest");
    board.manifests("docker.io", "lab/app", "latest", &[]);
    upstream.on(Some("GET"), "/blobs/", Behaviour::StallBodyAfter(1000));
    let layers = needed(&image);
    let addr = board.addr;
    let clients: Vec<_> = layers
        .iter()
        .map(|layer| {
            let path = blob_path(layer);
            std::thread::spawn(move || {
                client::request(addr, "GET", &path, &[], PATIENCE).and_then(client::ClientAnswer::body)
            })
        })
        .collect();
    // Four downloads run, as many as there may be, and none makes progress.
    assert!(upstream.wait_for(4, "GET", "/blobs/", PATIENCE));
    let (status, tier, took) = board.ask("lab/app", "latest");
    assert!(status == 200 && tier.contains("upstream") && took < board::LEEWAY, "{status} {tier} {took:?}");
    upstream.clear();
    while clients.iter().any(|client| !client.is_finished()) {
        upstream.release();
        std::thread::sleep(Duration::from_millis(20));
    }
    for client in clients {
        client.join().unwrap().unwrap();
    }
}

#[test]
fn a_blob_without_a_length_is_served_once_it_is_whole() {
    let image = image(1);
    let upstream = upstream_with(&image);
    upstream.on(Some("GET"), "/blobs/", Behaviour::NoContentLength);
    let board = Board::new(&upstream, "");
    assert_eq!(board.pull("lab/app", "latest").unwrap().digest, image.root);
    let layer = layer_of(&image);
    let other = Board::new(&upstream, "");
    // Nothing is known of its size here, for no manifest has been asked for.
    assert_eq!(other.get(&blob_path(&layer)).body().unwrap(), &*image.blobs[&layer]);
}

#[test]
fn ranges_on_a_fill() {
    let image = Image::multi_arch(1, &[500_000]);
    let upstream = upstream_with(&image);
    let board = Board::new(&upstream, "");
    board.manifests("docker.io", "lab/app", "latest", &[]);
    let layer = layer_of(&image);
    upstream.on(Some("GET"), "/blobs/", Behaviour::StallBodyAfter(400_000));
    let part = board.request("GET", &blob_path(&layer), &[("Range", "bytes=1000-1999")]);
    assert_eq!((part.status, part.header("content-length")), (206, Some("1000")));
    assert_eq!(part.header("cache-status"), Some("larder; fwd=uri-miss"));
    assert_eq!(part.body().unwrap(), &image.blobs[&layer][1000..2000]);
    let joined = board.request("GET", &blob_path(&layer), &[("Range", "bytes=2000-2999")]);
    assert_eq!(joined.header("cache-status"), Some("larder; fwd=uri-miss; collapsed"));
    assert_eq!(joined.body().unwrap(), &image.blobs[&layer][2000..3000]);
    upstream.release();
    board.wait_until("the blob", || board.has_blob(&layer));
    assert_eq!(upstream.count("GET", "/blobs/"), 1);
}

#[test]
fn a_stop_is_quick_and_loses_nothing() {
    let image = Image::multi_arch(1, &[2_000_000]);
    let upstream = upstream_with(&image);
    let mut board = Board::new(&upstream, "");
    board.manifests("docker.io", "lab/app", "latest", &[]);
    let layer = layer_of(&image);
    upstream.on(
        Some("GET"),
        "/blobs/",
        Behaviour::SlowBody { bytes: 10_000, pause: Duration::from_millis(20) },
    );
    let mut answer = board.get(&blob_path(&layer));
    answer.read_exact(&mut [0; 50_000]).unwrap();
    let took = board.stop();
    assert!(took < Duration::from_secs(10), "{took:?}");
    upstream.clear();
    board.start_again();
    board.wait_until("the blob", || board.has_blob(&layer));
    let cost = upstream.blob_bytes_sent() as f64 / image.blobs[&layer].len() as f64;
    assert!(cost < 1.2, "the upstream paid {cost:.2} times");
}

#[test]
fn the_bandwidth_cap_holds() {
    let image = Image::multi_arch(1, &[1_000_000]);
    let upstream = Upstream::start().unwrap();
    upstream.push("lab/app", "latest", &image);
    let board = Board::new(&upstream, "[fetch]\nbandwidth = \"8Mbit\"\n");
    let began = Instant::now();
    board.get(&blob_path(&layer_of(&image))).body().unwrap();
    // A million bytes at a million bytes a second, less the burst.
    assert!(began.elapsed() > Duration::from_millis(700), "{:?}", began.elapsed());
}

/// A board with two public registries, of which only the second is sure to hold the image.
fn two_registries(first: &Upstream, second: &Upstream) -> Board {
    Board::new(first, &format!("[upstream.\"second.example\"]\nurl = \"{}\"\n", second.url()))
}

#[test]
fn a_registry_that_has_it_not_does_not_speak_for_one_that_has() {
    let image = Image::multi_arch(1, &[1_000_000]);
    let (first, second) = (Upstream::start().unwrap(), upstream_with(&image));
    let board = Arc::new(two_registries(&first, &second));
    let layer = layer_of(&image);
    first.on(Some("GET"), "/blobs/", Behaviour::HangBeforeHeader);
    let asker = {
        let (board, path) = (Arc::clone(&board), blob_path(&layer));
        std::thread::spawn(move || board.get(&path).status)
    };
    assert!(first.wait_for(1, "GET", "/blobs/", PATIENCE));
    let joiner = {
        let (board, path) = (Arc::clone(&board), format!("/v2/lab/app/blobs/{layer}?ns=second.example"));
        std::thread::spawn(move || board.get(&path).body().unwrap())
    };
    // The second client waits for the first one's download until that comes to nothing.
    std::thread::sleep(Duration::from_millis(100));
    first.release();
    assert_eq!(asker.join().unwrap(), 404);
    assert!(joiner.join().unwrap() == *image.blobs[&layer]);
}

#[test]
fn a_registry_that_is_there_is_asked_for_all_that_another_began() {
    let image = Image::multi_arch(1, &[1_000_000]);
    let (first, second) = (upstream_with(&image), upstream_with(&image));
    let board = two_registries(&first, &second);
    for registry in ["docker.io", "second.example"] {
        board.manifests(registry, "lab/app", "latest", &[]);
    }
    let layer = layer_of(&image);
    first.on(Some("GET"), "/blobs/", Behaviour::StallBodyAfter(400_000));
    let mut answer = board.get(&blob_path(&layer));
    answer.read_exact(&mut [0; 300_000]).unwrap();
    first.hang_up();
    board.wait_for_log("is parked");
    let body = board.get(&format!("/v2/lab/app/blobs/{layer}?ns=second.example")).body().unwrap();
    assert!(body == *image.blobs[&layer]);
    assert_eq!(second.blob_bytes_sent(), body.len() as u64, "nothing of the other's is gone on with");
    board.check_blobs();
}
