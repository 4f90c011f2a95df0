//! A client's range far ahead of a download, as lazy-pulling snapshotters ask: its download goes first, and with
//! `fetch.early_ranges` the range is asked for beside it, under the same rights and never for more than that.

use crate::board::{self, BOARD, Board, Folder, WRONG, layer_of, needed, upstream_with};
use larder::demo::image::SampleImage as Image;
use larder::demo::upstream::{Behaviour, FaultyRegistry as Upstream, LoginDemand};
use larder::oci::Digest;
use std::io::Read;

/// The tests' time-outs, and parts beside the download.
const EARLY: &str = "[fetch]\nconnect_timeout = \"2s\"\nheader_timeout = \"3s\"\nstall_timeout = \"30s\"\nearly_ranges = true\n";

fn path(repository: &str, digest: &Digest) -> String {
    format!("/v2/{repository}/blobs/{digest}?ns=docker.io")
}

/// The ranges that the upstream was asked for.
fn ranges(upstream: &Upstream) -> Vec<String> {
    upstream.requests().into_iter().filter_map(|seen| seen.range).collect()
}

/// A layer that stalls after its first bytes, with a client that reads it.
struct Stalled {
    upstream: Upstream,
    board: Board,
    image: Image,
    layer: Digest,
    answer: larder::demo::client::ClientAnswer,
}

fn stalled(more: &str) -> Stalled {
    let image = Image::multi_arch(1, &[8_000_000, 20_000]);
    let upstream = upstream_with(&image);
    let board = Board::new(&upstream, more);
    board.manifests("docker.io", "lab/app", "latest", &[]);
    let layer = layer_of(&image);
    upstream.on(Some("GET"), &layer.to_string(), Behaviour::StallBodyAfter(100_000));
    let mut answer = board.get(&path("lab/app", &layer));
    answer.read_exact(&mut [0; 1]).unwrap();
    Stalled { upstream, board, image, layer, answer }
}

#[test]
fn a_part_far_ahead_does_not_wait_for_the_layer() {
    let Stalled { upstream, board, image, layer, answer } = stalled(EARLY);
    let bytes = &image.blobs[&layer];
    let (total, mid) = (bytes.len(), bytes.len() / 2);
    for (range, first, last) in [
        ("bytes=-51".to_owned(), total - 51, total - 1),
        (format!("bytes={}-", total - 70_000), total - 70_000, total - 1),
        (format!("bytes={mid}-{}", mid + 99_999), mid, mid + 99_999),
        (format!("bytes={}-{},{}-{}", mid, mid + 9, mid + 10, mid + 19), mid, mid + 19),
    ] {
        let answer = board.request("GET", &path("lab/app", &layer), &[("range", &range)]);
        let cache = answer.header("cache-status").unwrap_or("").to_owned();
        assert_eq!(
            (answer.status, cache.as_str()),
            (206, "larder; fwd=uri-miss; detail=early-range"),
            "{range}"
        );
        assert_eq!(answer.header("content-range"), Some(format!("bytes {first}-{last}/{total}").as_str()));
        assert!(answer.body().unwrap() == bytes[first..=last], "{range}");
        assert_eq!(ranges(&upstream).pop(), Some(format!("bytes={first}-{last}")));
    }
    // What is near, and what is more than a part, waits; a neighbour is none the worse.
    let asked = ranges(&upstream).len();
    let other = needed(&image).into_iter().find(|digest| *digest != layer).unwrap();
    assert_eq!(board.get(&path("lab/app", &other)).body().unwrap(), image.blobs[&other].to_vec());
    let waiting = [(200_000, 200_050), (2_000_000, 2_000_000 + (4 << 20))].map(|(first, last)| {
        let range = format!("bytes={first}-{last}");
        (first, last, board.request("GET", &path("lab/app", &layer), &[("range", &range)]))
    });
    assert_eq!(ranges(&upstream).len(), asked);
    upstream.release();
    for (first, last, answer) in waiting {
        assert!(answer.body().unwrap() == bytes[first..=last], "{first}");
    }
    assert_eq!(answer.body().unwrap().len(), total - 1);
    board.wait_until("the blob", || board.has_blob(&layer));
    board.check_blobs();
    let counted = board.metric("larder_upstream_bytes_total{upstream=\"docker.io\"}");
    assert!(counted >= (total + 170_071) as u64, "early parts count for the uplink: {counted}");
}

#[test]
fn without_the_key_a_part_waits() {
    let Stalled { upstream, board, image, layer, answer } = stalled(&EARLY.replace("true", "false"));
    let bytes = &image.blobs[&layer];
    let tail = board.request("GET", &path("lab/app", &layer), &[("range", "bytes=-51")]);
    assert_eq!(ranges(&upstream), Vec::<String>::new());
    upstream.release();
    assert!(tail.body().unwrap() == bytes[bytes.len() - 51..]);
    drop(answer);
}

#[test]
fn an_upstream_that_gives_no_parts_is_asked_once_and_waited_for() {
    for refusal in [Behaviour::IgnoreRange, Behaviour::RefuseRange(None), Behaviour::PartFrom(5)] {
        let Stalled { upstream, board, image, layer, answer } = stalled(EARLY);
        let bytes = &image.blobs[&layer];
        upstream.clear();
        upstream.on(Some("GET"), &layer.to_string(), refusal.clone());
        let parts = [51, 9].map(|last| {
            let range = format!("bytes=-{last}");
            (last, board.request("GET", &path("lab/app", &layer), &[("range", &range)]))
        });
        upstream.release();
        for (last, part) in parts {
            assert!(part.body().unwrap() == bytes[bytes.len() - last..], "{refusal:?}");
        }
        assert_eq!(ranges(&upstream).len(), 1, "{refusal:?}");
        drop(answer);
    }
}

#[test]
fn a_part_that_is_cut_goes_on_with_the_download() {
    let Stalled { upstream, board, image, layer, answer } = stalled(EARLY);
    let bytes = &image.blobs[&layer];
    upstream.clear();
    upstream.on(Some("GET"), &layer.to_string(), Behaviour::CutBodyAfter(70_000));
    let first = bytes.len() - 200_000;
    let range = format!("bytes={first}-");
    let mut part = board.request("GET", &path("lab/app", &layer), &[("range", &range)]);
    let mut got = vec![0; 70_000];
    part.read_exact(&mut got).unwrap();
    upstream.release();
    got.extend(part.body().unwrap());
    assert!(got == bytes[first..]);
    drop(answer);
}

#[test]
fn parts_have_only_so_many_places() {
    // One, and one more that is kept for another registry.
    let Stalled { upstream, board, image, layer, answer } =
        stalled(&format!("{}streams = 1\n", EARLY.replace("\"3s\"", "\"20s\"")));
    let bytes = &image.blobs[&layer];
    upstream.clear();
    upstream.on(Some("GET"), &layer.to_string(), Behaviour::HangBeforeHeader);
    let ask = |range: &str| board.request("GET", &path("lab/app", &layer), &[("range", range)]);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| ask("bytes=-51").body().unwrap());
        assert!(upstream.wait_for(2, "GET", &layer.to_string(), board::PATIENCE));
        let second = ask("bytes=4000000-4000009");
        assert_eq!(second.header("cache-status"), Some("larder; fwd=uri-miss; collapsed"), "it waits");
        assert_eq!(ranges(&upstream).len(), 1);
        upstream.release();
        assert!(second.body().unwrap() == bytes[4_000_000..4_000_010]);
        assert!(first.join().unwrap() == bytes[bytes.len() - 51..]);
    });
    drop(answer);
}

#[test]
fn private_content_has_the_same_rights_as_ever() {
    let image = Image::multi_arch(1, &[8_000_000]);
    let upstream = upstream_with(&image);
    upstream.login(LoginDemand::Basic("alice".into(), "s3cret".into()));
    let folder = Folder::new();
    let (login, auth) = board::secrets(&folder);
    let board = Board::new(&upstream, &format!("{login}{EARLY}{auth}"));
    board.manifests("docker.io", "lab/app", "latest", &[BOARD]);
    let layer = layer_of(&image);
    let bytes = &image.blobs[&layer];
    upstream.on(Some("GET"), &layer.to_string(), Behaviour::StallBodyAfter(100_000));
    let mut answer = board.request("GET", &path("lab/app", &layer), &[BOARD]);
    answer.read_exact(&mut [0; 1]).unwrap();
    for strangers in [&[("range", "bytes=-51")][..], &[("range", "bytes=-51"), WRONG]] {
        assert_eq!(board.request("GET", &path("lab/app", &layer), strangers).status, 401);
    }
    assert_eq!(ranges(&upstream), Vec::<String>::new(), "nothing is asked for them");
    // A repository that has it not, by its registry's own word, is not given it either.
    let other = board.request("GET", &path("lab/other", &layer), &[("range", "bytes=-51"), BOARD]);
    assert_eq!(other.status, 404);
    let part = board.request("GET", &path("lab/app", &layer), &[("range", "bytes=-51"), BOARD]);
    assert!(part.status == 206 && part.body().unwrap() == bytes[bytes.len() - 51..]);
    assert!(upstream.requests().iter().any(|seen| seen.range.is_some() && seen.logged_in));
    upstream.release();
}

#[test]
fn a_part_far_ahead_moves_its_download_to_the_front() {
    let image = Image::multi_arch(1, &[3_000_000, 3_000_001, 3_000_002]);
    let upstream = upstream_with(&image);
    let board = Board::new(&upstream, "[fetch]\nstreams = 1\nstall_timeout = \"30s\"\n");
    board.manifests("docker.io", "lab/app", "latest", &[]);
    let mut layers = needed(&image);
    layers.retain(|digest| image.blobs[digest].len() > 1_000_000);
    upstream.on(Some("GET"), "/blobs/", Behaviour::StallBodyAfter(100_000));
    let asked = || -> Vec<String> {
        let seen = upstream.requests().into_iter().filter(|seen| seen.path.contains("/blobs/"));
        seen.map(|seen| seen.path).collect()
    };
    std::thread::scope(|scope| {
        let ask = |layer: &Digest, range: &'static str| {
            let (board, path) = (&board, path("lab/app", layer));
            scope
                .spawn(move || board.request("GET", &path, &[("range", range)]).body().map(|body| body.len()))
        };
        let downloads = |count| {
            board.wait_until("the downloads", || {
                let status = board.said(&["status", "--json"]);
                let status: serde_json::Value = serde_json::from_str(&status).unwrap();
                status["fills"] == count
            });
        };
        let mut clients = vec![ask(&layers[0], "bytes=0-9")];
        downloads(1);
        clients.push(ask(&layers[1], "bytes=0-9"));
        downloads(2);
        clients.push(ask(&layers[2], "bytes=-51"));
        downloads(3);
        assert_eq!(asked().len(), 1, "one at a time");
        upstream.release();
        assert!(upstream.wait_for(2, "GET", "/blobs/", board::PATIENCE));
        let expected = [0, 2].map(|n: usize| format!("/v2/lab/app/blobs/{}", layers[n]));
        assert_eq!(asked(), expected, "the part that is far ahead goes first");
        upstream.clear();
        board.wait_until("every client's part", || {
            // One that stalls only now waits for the next release.
            upstream.release();
            clients.iter().all(|client| client.is_finished())
        });
        let lengths: Vec<_> = clients.into_iter().map(|client| client.join().unwrap().unwrap()).collect();
        assert_eq!(lengths, [10, 10, 51]);
    });
}
