//! Downloads that nobody waits for: they take what is free, remove nothing, go first, and are not repeated for ever. In each
//! test the images of an honest registry are on the same disk, and are complete and served after.

use crate::board::{self, Board, layer_of};
use larder::demo::client;
use larder::demo::image::SampleImage as Image;
use larder::demo::upstream::{Behaviour, FaultyRegistry as Upstream};
use larder::oci::Digest;
use std::io::Read;

/// What each disk takes: three images of the honest registry, and half of one more.
const MAX: u64 = 3_500_000;
/// A read of an upstream waits for longer than any of these tests takes.
const PATIENT: &str =
    "[fetch]\nconnect_timeout = \"2s\"\nheader_timeout = \"3s\"\nstall_timeout = \"120s\"\n";

fn honest(seed: u64) -> Image {
    Image::multi_arch(seed, &[1_000_000])
}

/// An image of the other registry: with its layer and one honest image the disk is nearly full.
fn large(seed: u64) -> Image {
    Image::multi_arch(seed, &[2_000_000])
}

/// Two registries, and a board that has the first image of the honest one and the manifests of the other's.
fn two(fetch: &str, evil_images: &[Image]) -> (Upstream, Upstream, Board) {
    let (good, evil) = (Upstream::start().unwrap(), board::upstream_of_this_process());
    for seed in 1..=3 {
        good.push(&format!("lab/{seed}"), "latest", &honest(seed));
    }
    let board = Board::with_config(&format!(
        "platforms = [\"{}\"]\n{fetch}[tags]\nresolve_deadline = \"500ms\"\n[disk]\nmin_free = \"1MiB\"\nmax = \"{MAX}B\"\n\
         [upstream.\"docker.io\"]\nurl = \"{}\"\n[upstream.\"evil.example\"]\nurl = \"{}\"\n",
        board::PLATFORM,
        good.url(),
        evil.url()
    ));
    board.pull("lab/1", "latest").unwrap();
    for (at, image) in evil_images.iter().enumerate() {
        evil.push(&format!("lab/x{at}"), "latest", image);
        board.manifests("evil.example", &format!("lab/x{at}"), "latest", &[]);
    }
    (good, evil, board)
}

fn of_evil(at: usize, layer: &Digest) -> String {
    format!("/v2/lab/x{at}/blobs/{layer}?ns=evil.example")
}

/// A client reads so many bytes and hangs up.
fn begin(board: &Board, path: &str, bytes: usize) {
    let mut answer = board.get(path);
    assert_eq!(answer.status, 200);
    answer.read_exact(&mut vec![0; bytes]).unwrap();
}

/// A client reads until it is cut.
fn read_to_the_cut(board: &Board, path: &str) {
    let answer = client::request(board.addr, "GET", path, &[], board::PATIENCE);
    assert!(answer.and_then(client::ClientAnswer::body).is_err());
}

/// Every honest image of these is here and served.
fn unharmed(board: &Board, seeds: &[u64]) {
    for &seed in seeds {
        assert!(board.has_blob(&layer_of(&honest(seed))), "image {seed} is gone:\n{}", board.log());
        assert_eq!(board.pull(&format!("lab/{seed}"), "latest").unwrap().digest, honest(seed).root);
    }
}

fn staged(board: &Board) -> u64 {
    let files = std::fs::read_dir(board.data().join("staging")).unwrap().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|meta| meta.len()).sum()
}

/// Lines of the log about how a download ended.
fn endings(board: &Board) -> usize {
    let log = board.log();
    log.lines().filter(|line| line.contains("is parked") || line.contains("waits for a client")).count()
}

#[test]
fn what_goes_on_by_itself_removes_nothing() {
    for restart in [false, true] {
        // Two of them, whose claims together are more than the disk.
        let images = [large(8), large(9)];
        let (_good, evil, mut board) = two(board::FETCH, &images);
        evil.on(Some("GET"), "/blobs/", Behaviour::CutFromStartAfter(200_000));
        for (at, image) in images.iter().enumerate() {
            read_to_the_cut(&board, &of_evil(at, &layer_of(image)));
        }
        board.wait_until("both parked", || endings(&board) >= 2);
        for seed in [2, 3] {
            board.pull(&format!("lab/{seed}"), "latest").unwrap();
        }
        assert!(staged(&board) > 0, "they are still there to go on");
        let (before, sent) = (endings(&board), evil.blob_bytes_sent());
        if restart {
            board.stop();
            board.start_again();
            board.wait_until("their end", || endings(&board) >= 2);
        } else {
            evil.hang_up();
            board.wait_until("the outage", || {
                board.head("/v2/lab/x0/manifests/latest?ns=evil.example");
                board.log().contains("evil.example cannot be reached")
            });
            evil.come_back().unwrap();
            board.wait_until("their end", || endings(&board) >= before + 2);
        }
        unharmed(&board, &[1, 2, 3]);
        let again = evil.blob_bytes_sent() - sent;
        assert!(again <= 4_000_000 + 400_000, "{again} bytes came again");
        assert_eq!(board.metric("larder_evicted_bytes_total"), 0);
        // A client is served all the same, and what it waits for has its room.
        evil.clear();
        let layer = layer_of(&images[0]);
        assert!(board.get(&of_evil(0, &layer)).body().unwrap() == *images[0].blobs[&layer]);
        board.check_blobs();
    }
}

#[test]
fn a_repair_removes_no_image() {
    let images = [large(9)];
    let (_good, evil, board) = two(board::FETCH, &images);
    let layer = layer_of(&images[0]);
    for digest in board::needed(&images[0]) {
        board.get(&of_evil(0, &digest)).body().unwrap();
    }
    evil.hang_up();
    board.wait_until("the outage", || {
        board.head("/v2/lab/x0/manifests/latest?ns=evil.example");
        board.log().contains("evil.example cannot be reached")
    });
    let path = board.data().join("blobs/sha256").join(layer.hex());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[1_000] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(board.command(&["verify", "--repair"]).status.code(), Some(1), "something was wrong");
    for seed in [2, 3] {
        board.pull(&format!("lab/{seed}"), "latest").unwrap();
    }
    evil.come_back().unwrap();
    board.wait_until("the attempt", || board.has_blob(&layer) || endings(&board) >= 1);
    unharmed(&board, &[1, 2, 3]);
    assert_eq!(board.metric("larder_evicted_bytes_total"), 0);
}

#[test]
fn what_nobody_waits_for_any_more_goes_first_while_it_hangs() {
    let images = [large(9)];
    let (_good, evil, board) = two(PATIENT, &images);
    let layer = layer_of(&images[0]);
    evil.on(Some("GET"), "/blobs/", Behaviour::StallBodyAfter(1_500_000));
    begin(&board, &of_evil(0, &layer), 1_000_000);
    board.wait_until("the bytes", || staged(&board) >= 1_500_000);
    // It is logged once the client has been gone for a while.
    board.wait_for_log("requests failed");
    // The honest images have its room, what it wrote and what it reserved, although its upstream still holds the line.
    for seed in [2, 3] {
        board.pull(&format!("lab/{seed}"), "latest").unwrap();
    }
    assert!(staged(&board) < 1_000_000, "its room is free at once");
    unharmed(&board, &[1, 2, 3]);
    assert_eq!(board.metric("larder_evicted_bytes_total"), 0);
    // A client that comes meanwhile has a download of its own, and the old one's end does not touch that.
    evil.clear();
    let mut answer = board.get(&of_evil(0, &layer));
    answer.read_exact(&mut [0; 1_000]).unwrap();
    evil.release();
    assert!(answer.body().unwrap()[..] == images[0].blobs[&layer][1_000..]);
    board.check_blobs();
}

#[test]
fn a_download_that_a_client_waits_for_still_has_its_room() {
    let images = [large(9)];
    let (_good, evil, board) = two(board::FETCH, &images);
    for seed in [2, 3] {
        board.pull(&format!("lab/{seed}"), "latest").unwrap();
    }
    let layer = layer_of(&images[0]);
    assert!(board.get(&of_evil(0, &layer)).body().unwrap() == *images[0].blobs[&layer]);
    assert!(board.has_blob(&layer), "{}", board.log());
    assert!(board.has_blob(&layer_of(&honest(3))));
    assert!(evil.blob_bytes_sent() >= 2_000_000);
}

#[test]
fn clients_that_come_and_go_do_not_have_the_same_bytes_sent_for_ever() {
    let troubles = [Behaviour::CutFromStartAfter(1_900_000), Behaviour::WrongBytes];
    for trouble in troubles {
        let images = [large(9)];
        let fetch = "[fetch]\nconnect_timeout = \"2s\"\nheader_timeout = \"3s\"\nstall_timeout = \"1s\"\n";
        let (_good, evil, board) = two(fetch, &images);
        let (layer, size) = (layer_of(&images[0]), 2_000_000);
        evil.on(Some("GET"), "/blobs/", trouble.clone());
        for _ in 0..12 {
            read_to_the_cut_or_refused(&board, &of_evil(0, &layer));
        }
        board.wait_for_log("sent this again and again");
        let most = (2 + larder::budget::REPEATS_AWAITED_MAX) * size;
        assert!(evil.blob_bytes_sent() <= most, "{trouble:?}: {} bytes were sent", evil.blob_bytes_sent());
        // The neighbours live: another repository of this registry too, which has a download of its own.
        evil.push("lab/honest", "latest", &images[0]);
        board.manifests("evil.example", "lab/honest", "latest", &[]);
        evil.clear();
        let path = format!("/v2/lab/honest/blobs/{layer}?ns=evil.example");
        assert!(board.get(&path).body().unwrap() == *images[0].blobs[&layer], "{trouble:?}");
        board.pull("lab/2", "latest").unwrap();
        board.check_blobs();
    }
}

/// A client asks, and reads until it is cut, if it is served at all.
fn read_to_the_cut_or_refused(board: &Board, path: &str) {
    let answer = client::request(board.addr, "GET", path, &[], board::PATIENCE);
    if let Ok(answer) = answer {
        assert!(answer.status == 502 || answer.body().is_err());
    }
}

#[test]
fn who_drips_a_byte_at_each_attempt_is_not_asked_for_ever() {
    let images = [large(9)];
    let (_good, evil, board) = two(board::FETCH, &images);
    let layer = layer_of(&images[0]);
    evil.on(Some("GET"), "/blobs/", Behaviour::CutBodyAfter(10_000));
    begin(&board, &of_evil(0, &layer), 1_000);
    board.wait_until("the end", || endings(&board) >= 1);
    let asked = evil.count("GET", "/blobs/");
    assert!(asked < 60, "it was asked {asked} times");
    unharmed(&board, &[1]);
    // A client that waits gets all of it.
    evil.clear();
    assert!(board.get(&of_evil(0, &layer)).body().unwrap() == *images[0].blobs[&layer]);
}

#[test]
fn a_card_that_others_have_filled_keeps_nothing_new_says_so_once_and_serves_everything() {
    let good = Upstream::start().unwrap();
    good.push("lab/1", "latest", &honest(1));
    // Of no card that tests run on so much is free.
    let board = Board::with_config(&format!(
        "platforms = [\"{}\"]\n{}[disk]\nmin_free = \"{}MiB\"\n[upstream.\"docker.io\"]\nurl = \"{}\"\n",
        board::PLATFORM,
        board::FETCH,
        1u64 << 40,
        good.url()
    ));
    board.wait_for_log("nothing new is stored, and content is passed on");
    for _ in 0..2 {
        assert_eq!(board.pull("lab/1", "latest").unwrap().digest, honest(1).root);
    }
    let layer = layer_of(&honest(1));
    let part = board.request("GET", &format!("/v2/lab/1/blobs/{layer}"), &[("Range", "bytes=400000-700000")]);
    assert_eq!(part.status, 206);
    assert!(part.body().unwrap() == honest(1).blobs[&layer][400_000..=700_000]);
    good.on(Some("GET"), "/blobs/", Behaviour::WrongBytes);
    read_to_the_cut(&board, &format!("/v2/lab/1/blobs/{layer}"));
    assert_eq!(board.check_blobs(), 0, "nothing is kept");
    assert_eq!(staged(&board), 0);
    assert_eq!(board.log().matches("nothing new is stored").count(), 1);
    assert!(board.said(&["status"]).contains("nothing new is stored, see larder doctor"));
}
