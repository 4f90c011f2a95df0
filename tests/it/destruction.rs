//! Destruction on unverified input: what an upstream or a client merely claims removes nothing and fills no disk.
//!
//! In each test the images of an honest repository are on the disk before, and are complete and served after.

use crate::board::{self, Board, layer_of};
use larder::demo::client;
use larder::demo::image::SampleImage as Image;
use larder::demo::upstream::{Behaviour, FaultyRegistry as Upstream};
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const MAX: u64 = 3_500_000;

/// About a megabyte for each platform.
fn megabyte(seed: u64) -> Image {
    Image::multi_arch(seed, &[1_000_000])
}

/// A board with `disk.max`, whose `docker.io` is honest and whose `evil.example` is not.
fn board(good: &Upstream, evil: &Upstream) -> Board {
    Board::with_config(&format!(
        "platforms = [\"{}\"]\n{}[tags]\nresolve_deadline = \"500ms\"\n[disk]\nmin_free = \"1MiB\"\nmax = \"{MAX}B\"\n\
         [upstream.\"docker.io\"]\nurl = \"{}\"\n[upstream.\"evil.example\"]\nurl = \"{}\"\n",
        board::PLATFORM,
        board::FETCH,
        good.url(),
        evil.url()
    ))
}

/// Two registries, and a board that has three images of the honest one: all that its disk takes.
fn full() -> (Upstream, Upstream, Board) {
    let (good, evil) = (Upstream::start().unwrap(), Upstream::start().unwrap());
    for seed in 1..=3 {
        good.push(&format!("lab/{seed}"), "latest", &megabyte(seed));
    }
    evil.push("lab/x", "latest", &megabyte(9));
    let board = board(&good, &evil);
    for seed in 1..=3 {
        board.pull(&format!("lab/{seed}"), "latest").unwrap();
    }
    (good, evil, board)
}

fn of_evil(digest: &larder::oci::Digest) -> String {
    format!("/v2/lab/x/blobs/{digest}?ns=evil.example")
}

/// Every honest image is here, and can be had with the uplink gone.
fn unharmed(board: &Board) {
    for seed in 1..=3 {
        assert!(board.has_blob(&layer_of(&megabyte(seed))), "image {seed} is gone:\n{}", board.log());
        assert_eq!(board.pull(&format!("lab/{seed}"), "latest").unwrap().digest, megabyte(seed).root);
    }
}

fn bytes_below(folder: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => bytes_below(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

fn staged(board: &Board) -> u64 {
    bytes_below(&board.data().join("staging"))
}

#[test]
fn a_claimed_length_without_a_byte_removes_nothing() {
    let (_good, evil, board) = full();
    let layer = layer_of(&megabyte(9));
    for behaviour in [
        Behaviour::ContentLength(3_000_000),
        Behaviour::ContentLength(49_000_000),
        Behaviour::CutBodyAfter(0),
    ] {
        evil.on(Some("GET"), "/blobs/", behaviour);
        let path = of_evil(&layer);
        let answer = client::request(board.addr, "GET", &path, &[], board::PATIENCE);
        assert!(answer.and_then(client::ClientAnswer::body).is_err());
        evil.clear();
        unharmed(&board);
    }
    assert_eq!(staged(&board), 0, "nothing of it is left for later");
}

#[test]
fn a_body_without_a_length_takes_what_room_there_is_and_removes_nothing() {
    let (_good, evil, board) = full();
    let layer = layer_of(&megabyte(9));
    for behaviour in [Behaviour::EndlessBody, Behaviour::NoContentLength] {
        evil.on(Some("GET"), "/blobs/", behaviour);
        let most = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| drop(board.get(&of_evil(&layer)).body()));
            while !asked.is_finished() {
                most.fetch_max(bytes_below(&board.data().join("blobs")) + staged(&board), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        evil.clear();
        assert!(most.into_inner() <= MAX + 10_000, "disk.max was passed");
        unharmed(&board);
    }
    board.wait_until("an empty folder", || staged(&board) == 0);
}

#[test]
fn what_no_manifest_names_is_passed_on_and_not_kept() {
    let (_good, _evil, board) = full();
    let image = megabyte(9);
    let layer = layer_of(&image);
    for _ in 0..2 {
        let answer = board.get(&of_evil(&layer));
        assert_eq!(answer.header("cache-status"), Some("larder; fwd=uri-miss; detail=not-stored"));
        assert!(answer.body().unwrap() == *image.blobs[&layer]);
    }
    assert!(!board.has_blob(&layer));
    unharmed(&board);
    // Once its manifest is here it is an image like another, and the oldest makes room for it.
    board.manifests("evil.example", "lab/x", "latest", &[]);
    board.get(&of_evil(&layer)).body().unwrap();
    assert!(board.has_blob(&layer));
    assert!(!board.has_blob(&layer_of(&megabyte(1))));
}

#[test]
fn what_is_named_through_another_repository_is_kept_here_too() {
    let good = Upstream::start().unwrap();
    let image = megabyte(1);
    good.push("lab/one", "latest", &image);
    good.push("lab/two", "latest", &image);
    let board = Board::new(&good, "");
    board.manifests("docker.io", "lab/one", "latest", &[]);
    // The manifests are here, so that nobody is asked for them.
    assert_eq!(board.pull("lab/two", "latest").unwrap().digest, image.root);
    assert!(board.has_blob(&layer_of(&image)), "{}", board.log());
}

#[test]
fn cut_downloads_are_bounded_and_go_before_images() {
    let good = Upstream::start().unwrap();
    let evil = Upstream::start().unwrap();
    for seed in 1..=3 {
        good.push(&format!("lab/{seed}"), "latest", &megabyte(seed));
    }
    let cut: Vec<Image> = (11..16).map(megabyte).collect();
    let layers: Vec<_> = cut.iter().map(layer_of).collect();
    for (at, image) in cut.iter().enumerate() {
        evil.push(&format!("lab/x{at}"), "latest", image);
    }
    let mut board = board(&good, &evil);
    board.pull("lab/1", "latest").unwrap();
    for at in 0..cut.len() {
        board.manifests("evil.example", &format!("lab/x{at}"), "latest", &[]);
    }
    // Each is named by its manifest and begins; then it is cut, and the rest is denied.
    for (at, layer) in layers.iter().enumerate() {
        evil.clear();
        let deny = |upto: usize| {
            for layer in &layers[..upto] {
                evil.on(Some("GET"), &layer.to_string(), Behaviour::Status(403, Vec::new()));
            }
        };
        deny(at);
        evil.on(Some("GET"), &layer.to_string(), Behaviour::StallBodyAfter(700_000));
        let path = format!("/v2/lab/x{at}/blobs/{layer}?ns=evil.example");
        board.wait_until("the registry", || {
            let answer = client::request(board.addr, "GET", &path, &[], board::PATIENCE);
            answer
                .is_ok_and(|mut answer| answer.status == 200 && answer.read_exact(&mut [0; 600_000]).is_ok())
        });
        evil.clear();
        deny(at + 1);
        evil.hang_up();
        evil.come_back().unwrap();
        // It is parked, or the rest is denied.
        board.wait_for_log(&format!("download of {layer}"));
    }
    evil.hang_up();
    board.wait_until("a bounded folder", || staged(&board) <= MAX / 2 + 10_000);
    assert!(board.has_blob(&layer_of(&megabyte(1))), "an image went for what is half fetched");
    // Images that are pulled need what is left of it, and no other image.
    board.pull("lab/2", "latest").unwrap();
    board.pull("lab/3", "latest").unwrap();
    unharmed(&board);
    board.stop();
    board.start_again();
    unharmed(&board);
}

#[test]
fn what_there_is_no_room_for_leaves_nothing_to_resume() {
    let (good, _evil, mut board) = full();
    for seed in 1..=3 {
        board.said(&["pin", &format!("docker.io/lab/{seed}")]);
    }
    good.push("lab/big", "latest", &Image::multi_arch(20, &[3_000_000]));
    board.pull("lab/big", "latest").unwrap();
    board.wait_for_log("is streamed and not stored");
    assert_eq!(staged(&board), 0);
    board.stop();
    board.start_again();
    assert!(!board.log().contains("resuming"), "{}", board.log());
    unharmed(&board);
}

#[test]
fn tags_whose_content_never_follows_cost_nothing_on_the_disk() {
    let (good, evil, mut board) = full();
    let state = |board: &Board| {
        let journal = std::fs::metadata(board.data().join("journal")).unwrap().len();
        journal + bytes_below(&board.data().join("index"))
    };
    for tag in 0..300 {
        evil.push(&format!("lab/junk{}", tag % 7), &format!("t{tag}"), &Image::of_manifest_size(tag, 600));
    }
    let before = state(&board);
    for tag in 0..300 {
        let path = format!("/v2/lab/junk{}/manifests/t{tag}?ns=evil.example", tag % 7);
        assert_eq!(board.head(&path).status, 200);
    }
    assert_eq!(state(&board), before);
    assert!(!board.said(&["ls"]).contains("junk"));
    // What users rely on: seen by HEAD, then fetched by digest, it is known, also after a restart with the uplink gone.
    let new = megabyte(3);
    good.push("lab/3", "next", &new);
    good.push("lab/new", "latest", &Image::of_manifest_size(77, 700));
    let root = Image::of_manifest_size(77, 700).root;
    assert_eq!(board.ask("lab/3", "next").0, 200);
    assert_eq!(board.ask("lab/new", "latest").0, 200);
    board.pull("lab/new", "latest").unwrap_or_else(|_| panic!("{}", board.log()));
    let listed = board.said(&["ls"]);
    assert!(listed.contains("lab/3:next") && listed.contains("lab/new:latest"), "{listed}");
    good.hang_up();
    board.stop();
    board.start_again();
    let answer = board.head("/v2/lab/new/manifests/latest?ns=docker.io");
    assert_eq!(answer.header("docker-content-digest"), Some(root.to_string().as_str()));
    unharmed(&board);
}

#[test]
fn a_manifest_that_cannot_fit_removes_nothing() {
    let (good, evil) = (Upstream::start().unwrap(), Upstream::start().unwrap());
    let small = Image::multi_arch(1, &[20_000]);
    good.push("lab/1", "latest", &small);
    evil.push("lab/x", "latest", &Image::of_manifest_size(5, 3_000_000));
    let board = Board::with_config(&format!(
        "platforms = [\"{}\"]\n{}[disk]\nmin_free = \"1MiB\"\nmax = \"500kB\"\n[upstream.\"docker.io\"]\nurl = \"{}\"\n\
         [upstream.\"evil.example\"]\nurl = \"{}\"\n",
        board::PLATFORM,
        board::FETCH,
        good.url(),
        evil.url()
    ));
    board.pull("lab/1", "latest").unwrap();
    let answer = board.get("/v2/lab/x/manifests/latest?ns=evil.example");
    assert_eq!(answer.body().unwrap().len(), 3_000_000, "it is passed on");
    assert!(board.has_blob(&layer_of(&small)), "{}", board.log());
    assert_eq!(board.pull("lab/1", "latest").unwrap().digest, small.root);
}

#[test]
fn what_is_staged_expires_in_running_time_once_nothing_comes() {
    use larder::store::{ContentKey, StagedFrom, Store};
    let folder = board::Folder::new();
    let (store, _) = board::without_spawning(|| Store::open(&folder.0, 3)).unwrap();
    store.begin_service();
    let key = |fill: &str| {
        let digest = larder::oci::Digest::of(larder::oci::Algorithm::Sha256, fill.as_bytes());
        ContentKey::shared("docker.io".parse().unwrap(), larder::auth::AccessClass::Public, digest)
    };
    let from = StagedFrom { repository: "docker.io/lab/app".parse().unwrap(), size: Some(10) };
    let stage = |fill: &str, more: &[u8]| store.stage(&key(fill), &from).unwrap().append(more).unwrap();
    stage("stuck", b"abc");
    stage("stuck", b"");
    stage("moving", b"abc");
    let age = Duration::from_millis(300);
    std::thread::sleep(age * 2);
    let taken_up = std::time::Instant::now();
    // One is taken up with nothing new, the other had bytes since it was last.
    stage("stuck", b"");
    stage("moving", b"d");
    stage("moving", b"");
    store.expire_staged(age * 1000, |_| true);
    assert_eq!(store.unfinished().len(), 2, "it is not that old");
    store.expire_staged(age, |_| false);
    assert_eq!(store.unfinished().len(), 2, "somebody fetches it");
    store.expire_staged(age, |_| true);
    let left: Vec<_> = store.unfinished().into_iter().map(|(key, ..)| key).collect();
    assert!(!left.contains(&key("stuck")));
    // On a machine that took so long over this it has expired too.
    assert!(left == [key("moving")] || taken_up.elapsed() >= age);
}

#[test]
fn what_other_machines_may_have_fetched_can_be_named_and_what_is_cached_they_get() {
    use larder::auth::Identity;

    let upstream = Upstream::start().unwrap();
    upstream.push("lab/app", "latest", &megabyte(1));
    upstream.push("lab/other", "latest", &megabyte(2));
    let mut board = Board::new(&upstream, "[access]\npull = [\"docker.io/lab/app\"]\n");
    let inside = board::InProcess::instead_of(&mut board);
    let ask = |from: [u8; 4], path: &str| -> (String, String) {
        let answer = inside.get(&Identity::anonymous(from.into()), &format!("{path}?ns=docker.io"), "");
        let answer = String::from_utf8_lossy(&answer).into_owned();
        (answer.split(' ').nth(1).unwrap().to_owned(), answer)
    };
    let (lan, here) = ([10, 0, 0, 7], [127, 0, 0, 1]);
    let image = megabyte(2);
    let mut paths = vec!["/v2/lab/other/manifests/latest".to_owned()];
    paths.extend(image.manifests.keys().map(|digest| format!("/v2/lab/other/manifests/{digest}")));
    paths.push(format!("/v2/lab/other/blobs/{}", layer_of(&image)));
    for path in &paths {
        let (status, answer) = ask(lan, path);
        assert!(status == "403" && answer.contains("DENIED") && answer.contains("access.pull"), "{answer}");
    }
    assert_eq!(upstream.count("GET", "lab/other") + upstream.count("HEAD", "lab/other"), 0);
    assert_eq!(ask(lan, "/v2/lab/app/manifests/latest").0, "200", "what is named is fetched");
    for digest in board::needed(&image) {
        paths.push(format!("/v2/lab/other/blobs/{digest}"));
    }
    for from in [here, lan] {
        for path in &paths {
            assert_eq!(ask(from, path).0, "200", "{path}");
        }
    }
    // The version that is cached is served on.
    upstream.push("lab/other", "latest", &megabyte(3));
    let (status, answer) = ask(lan, &paths[0]);
    assert!(status == "200" && answer.contains(&image.root.to_string()), "{answer}");
    inside.mirror.stop();
}

#[test]
fn tags_of_a_manifest_that_is_here_are_bounded_too() {
    use larder::budget::REPOSITORY_TAGS_MAX;
    use larder::store::Store;
    let (good, evil, mut board) = full();
    let (repository, small) = ("evil.example/lab/junk".parse().unwrap(), Image::of_manifest_size(1, 600));
    let tag = |n: usize| format!("t{n:05}");
    let some_more = REPOSITORY_TAGS_MAX..REPOSITORY_TAGS_MAX + 20;
    for n in [0].into_iter().chain(some_more.clone()) {
        evil.push("lab/junk", &tag(n), &small);
    }
    board.manifests("evil.example", "lab/junk", &tag(0), &[]);
    board.stop();
    // All but the last of those that are remembered, with one flush.
    let known: Vec<_> = (1..REPOSITORY_TAGS_MAX - 1).map(|n| tag(n).parse().unwrap()).collect();
    let (store, startup) = Store::open(&board.data(), 3).unwrap();
    startup.finish_briefly(&store).unwrap();
    assert!(store.tags_complete(&repository, &known, &small.root).unwrap());
    drop(store);
    board.start_again();
    for n in some_more.clone() {
        assert_eq!(board.head(&format!("/v2/lab/junk/manifests/{}?ns=evil.example", tag(n))).status, 200);
    }
    board.wait_for_log("tags of this repository are known, which is the most");
    // What is known stays, and what another registry has is remembered as ever.
    let new = megabyte(3);
    good.push("lab/3", "next", &new);
    board.pull("lab/3", "next").unwrap();
    evil.hang_up();
    good.hang_up();
    let list = format!("/v2/lab/junk/tags/list?ns=evil.example&n=100&last={}", tag(REPOSITORY_TAGS_MAX - 2));
    let known = || String::from_utf8(board.get(&list).body().unwrap()).unwrap();
    board.wait_until("the outage", || known().contains(&tag(some_more.start)));
    assert!(!some_more.clone().skip(1).any(|n| known().contains(&tag(n))), "{}", known());
    board.pull("lab/3", "next").unwrap();
}
