//! What is kept in memory about tags is never older than the disk: whatever changes there shows in the next answer.

use crate::board::{self, Board, image, layer_of, upstream_with};
use larder::demo::image::SampleImage as Image;
use larder::demo::upstream::FaultyRegistry as Upstream;

const TAGS: &str = "[tags]\nrevalidate = \"1h\"\nresolve_deadline = \"500ms\"\n";
const FRESH: &str = "larder; hit; detail=fresh";
const ASKED: &str = "larder; hit; detail=upstream";

/// A board that has an image and has answered for it from memory.
fn board(image: &Image) -> (Upstream, Board) {
    let upstream = upstream_with(image);
    let board = Board::new(&upstream, TAGS);
    board.pull("lab/app", "latest").unwrap();
    for _ in 0..3 {
        assert_eq!(status(&board), FRESH);
    }
    (upstream, board)
}

fn status(board: &Board) -> String {
    let (code, status, _) = board.ask("lab/app", "latest");
    format!("{}{status}", if code == 200 { "" } else { "not 200: " })
}

#[test]
fn a_blob_that_is_removed_by_hand_is_missed_at_once() {
    let image = image(1);
    let (upstream, board) = board(&image);
    let layer = layer_of(&image);
    let file = board.data().join("blobs/sha256").join(layer.hex());
    let aside = board.folder().join("aside");
    for _ in 0..3 {
        std::fs::rename(&file, &aside).unwrap();
        assert_eq!(status(&board), ASKED, "a version that is not whole was called fresh");
        std::fs::rename(&aside, &file).unwrap();
        assert_eq!(status(&board), FRESH);
    }
    // With the uplink gone what is not whole is not offered.
    drop(upstream);
    std::fs::rename(&file, &aside).unwrap();
    board.wait_until("the outage", || status(&board).starts_with("not 200"));
    std::fs::rename(&aside, &file).unwrap();
    assert_eq!(status(&board), FRESH);
}

#[test]
fn a_tag_that_is_verified_again_is_fresh_again() {
    let image = image(1);
    let (upstream, board) = board::pulled(&image, "[tags]\nrevalidate = \"4s\"\n");
    // Kept in memory, and in the store nothing changes from here on.
    board.wait_until("a fresh answer", || status(&board) == FRESH);
    for _ in 0..2 {
        board.wait_until("the end of its freshness", || status(&board) == ASKED);
        let asked = upstream.count("HEAD", "/manifests/latest");
        assert_eq!(status(&board), FRESH);
        assert_eq!(upstream.count("HEAD", "/manifests/latest"), asked);
    }
}

#[test]
fn what_the_owner_does_shows_in_the_next_answer() {
    let (first, second) = (image(1), image(2));
    let (upstream, board) = board(&first);
    upstream.push("lab/app", "latest", &second);
    board.said(&["rm", "lab/app:latest"]);
    assert_ne!(status(&board), FRESH, "a tag that was removed is still answered from memory");
    board.pull("lab/app", "latest").unwrap();
    assert_eq!(status(&board), FRESH);
    let digest = |board: &Board| {
        let answer = board.head("/v2/lab/app/manifests/latest?ns=docker.io");
        answer.header("docker-content-digest").unwrap().to_owned()
    };
    assert_eq!(digest(&board), second.root.to_string());
    let third = image(3);
    upstream.push("lab/next", "latest", &second);
    board.pull("lab/next", "latest").unwrap();
    upstream.push("lab/next", "latest", &third);
    let served = |board: &Board| {
        let answer = board.get("/v2/lab/app/manifests/latest?ns=docker.io");
        assert_eq!(answer.header("docker-content-digest"), Some(second.root.to_string().as_str()));
        answer.body().unwrap()
    };
    let manifest = &second.manifests[&second.root].1;
    assert_eq!(served(&board), manifest.to_vec());
    assert_eq!(served(&board), manifest.to_vec());
}

#[test]
fn a_manifest_that_was_set_aside_is_not_served_from_memory() {
    let image = image(1);
    let (upstream, board) = board(&image);
    let path = format!("/v2/lab/app/manifests/{}?ns=docker.io", image.root);
    assert_eq!(board.get(&path).status, 200);
    drop(upstream);
    let file = board.data().join("blobs/sha256").join(image.root.hex());
    std::fs::write(&file, b"not what it was").unwrap();
    board.command(&["verify", "--repair"]);
    assert!(!file.exists(), "verify left a manifest that does not hash to its name");
    board.wait_until("the refusal", || board.get(&path).status == 502);
}
