//! Figures that users care about, printed and not judged: machines are shared and noisy. What is asserted is what was
//! measured, not how fast it was. `cargo test --release --test numbers -- --nocapture` shows them at their best.

// Where a test cannot go on, it stops.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Board, PATIENCE, image, upstream_with};
use larder::demo::upstream::Behaviour;
use larder::oci::{Algorithm, Digest};
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
fn idle_memory() {
    let upstream = upstream_with(&image(1));
    let board = Board::new(&upstream, "");
    board.pull("lab/app", "latest").unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", board.id())).unwrap();
    let value = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned();
    println!("memory after a pull: VmRSS {}, VmHWM {}", value("VmRSS:"), value("VmHWM:"));
}
