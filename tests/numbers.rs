//! Figures that users care about, printed and not judged: machines are shared and noisy. What is asserted is what was
//! measured, not how fast it was. `cargo test --release --test numbers -- --nocapture --test-threads 1` shows them at
//! their best; with `LARDER=FILE` they are another build's, such as a static one's.

// Where a test cannot go on, it stops.
#![allow(clippy::unwrap_used)]

#[path = "it/board/mod.rs"]
mod board;

use board::{Board, PATIENCE, image, layer_of, upstream_with};
use larder::demo::image::SampleImage as Image;
use larder::demo::upstream::Behaviour;
use larder::oci::{Algorithm, Digest};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const BLOBS: usize = 100_000;

#[test]
fn start_with_100_000_blobs_in_the_index() {
    let upstream = upstream_with(&image(1));
    let mut board = Board::new(&upstream, "");
    board.pull("lab/app", "latest").unwrap();
    let few = restart(&mut board);
    board.stop();
    // Blobs appear as a restored disk would bring them: the index is made again from what is there.
    let folder = board.data().join("blobs/sha256");
    for n in 0..BLOBS {
        let content = n.to_le_bytes();
        let name = Digest::of(Algorithm::Sha256, &content).hex();
        std::fs::write(folder.join(name), content).unwrap();
    }
    std::fs::remove_dir_all(board.data().join("index")).unwrap();
    let began = Instant::now();
    board.start_again();
    let (status, _, _) = board.ask("lab/app", "latest");
    let served = began.elapsed();
    board.wait_until("the rebuild", || {
        let metrics = String::from_utf8(board.get("/metrics").body().unwrap()).unwrap();
        board.get("/readyz").status == 200 && metrics.contains("larder_disk_used_bytes")
    });
    let rebuilt = began.elapsed();
    println!(
        "index lost, {BLOBS} blobs: first answer ({status}) after {served:.0?}, rebuilt after {rebuilt:.1?}"
    );
    let stored: serde_json::Value = serde_json::from_str(&board.said(&["status", "--json"])).unwrap();
    assert!(stored["blobs"].as_u64().unwrap() > BLOBS as u64, "{stored}");

    let many: Vec<Duration> = (0..5).map(|_| restart(&mut board)).collect();
    let worst = many.iter().max().unwrap();
    println!(
        "start to first answer: {few:.0?} with 7 blobs, {:.0?} to {worst:.0?} with {BLOBS} (goal 200 ms)",
        many.iter().min().unwrap()
    );
}

/// From the start of the process to its answer to a cached tag.
fn restart(board: &mut Board) -> Duration {
    board.stop();
    let began = Instant::now();
    board.start_again();
    let (status, tier, _) = board.ask("lab/app", "latest");
    assert_eq!((status, tier.as_str()), (200, "larder; hit; detail=upstream"));
    began.elapsed()
}

#[test]
fn answers_with_the_uplink_gone() {
    let upstream = upstream_with(&image(1));
    let board = Board::new(&upstream, "[tags]\nresolve_deadline = \"1500ms\"\n");
    board.pull("lab/app", "latest").unwrap();
    upstream.on(None, "/v2/", Behaviour::HangBeforeHeader);
    let offline = |expected: &str| {
        let (status, tier, took) = board.ask("lab/app", "latest");
        assert_eq!((status, tier.as_str()), (200, expected));
        took
    };
    let first = offline("larder; hit; detail=last-complete");
    let mut later: Vec<Duration> = (0..2_000).map(|_| offline("larder; hit; detail=last-complete")).collect();
    later.sort();
    println!(
        "uplink hangs: first tag answer after {first:.3?} (goal 1500 ms + 100 ms), then p50 {:.1?}, p99 {:.1?} (goal 10 ms)",
        later[later.len() / 2],
        later[later.len() * 99 / 100]
    );
    upstream.clear();
    upstream.release();
}

#[test]
fn a_cold_offline_boot_answers_at_once() {
    let upstream = upstream_with(&image(1));
    let mut board = Board::new(&upstream, "");
    board.pull("lab/app", "latest").unwrap();
    upstream.on(None, "/v2/", Behaviour::HangBeforeHeader);
    board.wait_until("the outage", || board.ask("lab/app", "latest").1.contains("last-complete"));
    board.wait_for_log("cannot be reached");
    board.stop();
    let began = Instant::now();
    board.start_again();
    let (status, tier, took) = board.ask("lab/app", "latest");
    assert_eq!((status, tier.as_str()), (200, "larder; hit; detail=last-complete"));
    println!(
        "cold boot with the uplink still gone: first answer {took:.1?}, {:.0?} after the start",
        began.elapsed()
    );
    assert!(took < PATIENCE);
    upstream.clear();
    upstream.release();
}

#[test]
fn memory_with_clients_that_take_no_byte() {
    for (clients, memory_max) in [(50, "24MiB"), (200, "64MiB")] {
        let image = Image::multi_arch(1, &[24_000_000]);
        let upstream = upstream_with(&image);
        let board = Board::new(&upstream, &format!("[memory]\nmax = \"{memory_max}\"\n"));
        board.manifests("docker.io", "lab/app", "latest", &[]);
        let idle = memory(&board, "VmRSS:");
        let path = format!("/v2/lab/app/blobs/{}?ns=docker.io", layer_of(&image));
        let mut slow = Vec::new();
        // The first half reads a download while it grows, the second half what is there.
        for half in 0..2 {
            slow.extend((0..clients / 2).map(|_| slow_client(&board, &path)));
            if half == 0 {
                board.wait_until("the blob", || board.has_blob(&layer_of(&image)));
            }
        }
        let status = board.head("/v2/lab/app/manifests/latest?ns=docker.io").status;
        assert_eq!((slow.len(), status), (clients, 200));
        let most = memory(&board, "VmHWM:");
        println!(
            "memory.max {memory_max}: idle {idle}, at most {most} with {clients} clients that take no byte"
        );
    }
}

/// A client that has the start of its answer and reads no further.
fn slow_client(board: &Board, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(board.addr).unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size(&stream, 4096).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
    let mut start = [0; 12];
    stream.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.1 200");
    stream
}

fn memory(board: &Board, key: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{}/status", board.id())).unwrap();
    status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned()
}
