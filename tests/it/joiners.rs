//! Clients that joined the download of another repository of their registry: when that stops serving them, they go on with
//! one of their own repository, and see no cut unless they have been sent other bytes.

use crate::board::{BOARD, Board, Folder, PATIENCE, image, layer_of, needed, secrets, upstream_with};
use larder::demo::client::{self, ClientAnswer as Answer};
use larder::demo::image::SampleImage as Image;
use larder::demo::upstream::{Behaviour, FaultyRegistry as Upstream, LoginDemand as Login};
use larder::oci::Digest;
use std::io::Read;
use std::time::{Duration, Instant};

/// A read of an upstream may wait for longer than any client does.
const PATIENT: &str =
    "[fetch]\nconnect_timeout = \"2s\"\nheader_timeout = \"3s\"\nstall_timeout = \"120s\"\n";
/// containerd cuts after so long without a byte.
const CONTAINERD: Duration = Duration::from_secs(30);

type Headers = &'static [(&'static str, &'static str)];

/// A registry with an image in lab/app and another with the same names in lab/evil, and a board that knows the manifests
/// of both.
fn two_repositories(app: &Image, evil: &Image, more: &str, login: Headers) -> (Upstream, Board) {
    let upstream = upstream_with(app);
    upstream.push("lab/evil", "latest", evil);
    if !login.is_empty() {
        upstream.login(Login::Basic("alice".into(), "s3cret".into()));
    }
    let board = Board::new(&upstream, &format!("{more}{PATIENT}"));
    for repository in ["lab/app", "lab/evil"] {
        board.manifests("docker.io", repository, "latest", login);
    }
    (upstream, board)
}

fn of(repository: &str, digest: &Digest) -> String {
    format!("/v2/{repository}/blobs/{digest}?ns=docker.io")
}

/// A client of a repository that goes on reading, whatever it gets.
fn keep_reading(board: &Board, path: String, login: Headers) {
    let addr = board.addr;
    std::thread::spawn(move || client::request(addr, "GET", &path, login, PATIENCE).and_then(Answer::body));
}

/// A client of lab/app joins the download that lab/evil has begun, of which so many bytes have come, and has some of them.
fn join(board: &Board, layer: &Digest, more: &[(&str, &str)], login: Headers) -> (Answer, Vec<u8>) {
    keep_reading(board, of("lab/evil", layer), login);
    board.wait_until("its bytes", || {
        let files = std::fs::read_dir(board.data().join("staging")).unwrap().flatten();
        files.filter_map(|file| file.metadata().ok()).map(|meta| meta.len()).max() >= Some(200_000)
    });
    let headers: Vec<_> = login.iter().chain(more).copied().collect();
    let mut answer = board.request("GET", &of("lab/app", layer), &headers);
    assert_eq!(answer.header("cache-status"), Some("larder; fwd=uri-miss; collapsed"));
    let mut begun = vec![0; 50_000];
    answer.read_exact(&mut begun).unwrap();
    (answer, begun)
}

/// The rest of an answer, which must not keep its client waiting.
fn rest((answer, mut begun): (Answer, Vec<u8>)) -> Vec<u8> {
    let joined = Instant::now();
    begun.extend(answer.body().unwrap());
    assert!(joined.elapsed() < CONTAINERD, "{:?}", joined.elapsed());
    begun
}

#[test]
fn a_download_that_stalls_late_lets_who_joined_it_go_on_without_a_cut() {
    let image = image(1);
    let layer = layer_of(&image);
    let whole = &image.blobs[&layer];
    // The second has sent all but a part of what is held back.
    for stall in [290_000, 299_000, 250_000] {
        let (upstream, board) = two_repositories(&image, &image, "", &[]);
        upstream.on(Some("GET"), "/lab/evil/blobs/", Behaviour::StallBodyAfter(stall));
        assert!(rest(join(&board, &layer, &[], &[])) == **whole, "{stall}");
        assert_eq!(upstream.count("GET", &format!("/lab/app/blobs/{layer}")), 1);
        // Who comes now finds it here, while the other still hangs.
        assert!(board.get(&of("lab/app", &layer)).body().unwrap() == **whole);
        board.check_blobs();
        upstream.release();
    }
}

#[test]
fn a_part_is_gone_on_with_too() {
    let image = image(1);
    let layer = layer_of(&image);
    let (upstream, board) = two_repositories(&image, &image, "", &[]);
    upstream.on(Some("GET"), "/lab/evil/blobs/", Behaviour::StallBodyAfter(290_000));
    let joined = join(&board, &layer, &[("Range", "bytes=100000-")], &[]);
    assert!(rest(joined)[..] == image.blobs[&layer][100_000..]);
    upstream.release();
}

#[test]
fn a_private_download_is_left_for_one_of_ones_own_too() {
    let image = image(1);
    let layer = layer_of(&image);
    let folder = Folder::new();
    let (credentials, auth) = secrets(&folder);
    let (upstream, board) = two_repositories(&image, &image, &format!("{credentials}{auth}"), &[BOARD]);
    upstream.on(Some("GET"), "/lab/evil/blobs/", Behaviour::StallBodyAfter(290_000));
    assert!(rest(join(&board, &layer, &[], &[BOARD])) == *image.blobs[&layer]);
    upstream.release();
}

#[test]
fn a_download_that_turns_out_wrong_costs_who_joined_it_nothing() {
    let image = image(1);
    let layer = layer_of(&image);
    let mut wrong = image.clone();
    let mut bytes = image.blobs[&layer].to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    wrong.blobs.insert(layer.clone(), bytes.into());
    let (upstream, board) = two_repositories(&image, &wrong, "", &[]);
    upstream.on(Some("GET"), "/lab/evil/blobs/", Behaviour::StallBodyAfter(250_000));
    let joined = join(&board, &layer, &[], &[]);
    upstream.release();
    assert!(rest(joined) == *image.blobs[&layer]);
    board.wait_for_log("hashes to");
    board.check_blobs();
}

#[test]
fn who_was_sent_other_bytes_is_cut_and_never_served_a_mixture() {
    let image = image(1);
    let layer = layer_of(&image);
    let mut forged = image.clone();
    forged.blobs.insert(layer.clone(), vec![0x66; image.blobs[&layer].len()].into());
    let (upstream, board) = two_repositories(&image, &forged, "", &[]);
    upstream.on(Some("GET"), "/lab/evil/blobs/", Behaviour::StallBodyAfter(290_000));
    let (answer, begun) = join(&board, &layer, &[], &[]);
    assert!(begun.iter().all(|byte| *byte == 0x66));
    let joined = Instant::now();
    answer.body().unwrap_err();
    assert!(joined.elapsed() < CONTAINERD, "{:?}", joined.elapsed());
    // The next attempt is served by its own repository.
    assert!(board.get(&of("lab/app", &layer)).body().unwrap() == *image.blobs[&layer]);
    board.check_blobs();
    upstream.release();
}

#[test]
fn who_joined_what_waits_for_the_turn_of_another_repository_has_its_own() {
    let shared = image(1);
    let layer = layer_of(&shared);
    let (upstream, board) = two_repositories(&shared, &shared, "", &[]);
    // The other repository hangs in all the slots that it may have.
    let hanging = Image::multi_arch(2, &[300_000, 300_001, 300_002]);
    upstream.push("lab/evil", "hanging", &hanging);
    board.manifests("docker.io", "lab/evil", "hanging", &[]);
    upstream.on(Some("GET"), "/lab/evil/blobs/", Behaviour::StallBodyAfter(10));
    for digest in needed(&hanging) {
        keep_reading(&board, of("lab/evil", &digest), &[]);
    }
    assert!(upstream.wait_for(3, "GET", "/lab/evil/blobs/", PATIENCE));
    keep_reading(&board, of("lab/evil", &layer), &[]);
    board.wait_until("the queue", || board.said(&["status"]).contains("5 under way"));
    let began = Instant::now();
    assert!(board.get(&of("lab/app", &layer)).body().unwrap() == *shared.blobs[&layer]);
    assert!(began.elapsed() < CONTAINERD, "{:?}", began.elapsed());
    upstream.clear();
    upstream.release();
}
