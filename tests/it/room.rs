//! Room: what goes when the disk has no more of it, what stays, and that both limits hold.

use crate::board::{self, Board, image, layer_of, upstream_with};
use larder::demo::image::SampleImage as Image;
use larder::demo::upstream::{Behaviour, FaultyRegistry as Upstream};

/// About a megabyte for each platform.
fn megabyte(seed: u64) -> Image {
    Image::multi_arch(seed, &[1_000_000])
}

/// An upstream with the images `lab/1` to `lab/N`, each with the tag `latest`.
fn upstream(images: u64) -> Upstream {
    let upstream = Upstream::start().unwrap();
    for seed in 1..=images {
        upstream.push(&format!("lab/{seed}"), "latest", &megabyte(seed));
    }
    upstream
}

fn board(upstream: &Upstream, max: &str) -> Board {
    Board::with_config(&format!(
        "platforms = [\"{}\"]\n{}[tags]\nresolve_deadline = \"500ms\"\n[disk]\nmin_free = \"1MiB\"\nmax = \"{max}\"\n[upstream.\"docker.io\"]\nurl = \"{}\"\n",
        board::PLATFORM,
        board::FETCH,
        upstream.url()
    ))
}

fn pull(board: &Board, seed: u64) {
    assert_eq!(board.pull(&format!("lab/{seed}"), "latest").unwrap().digest, megabyte(seed).root);
}

/// The images that are whole, by `ls`.
fn whole(board: &Board) -> Vec<String> {
    let listed: serde_json::Value = serde_json::from_str(&board.said(&["ls", "--json"])).unwrap();
    let images = listed.as_array().unwrap().iter().filter(|image| image["state"] == "complete");
    let name = |image: &serde_json::Value| image["image"].as_str().unwrap().to_owned();
    images
        .map(|image| name(image).trim_start_matches("docker.io/lab/").trim_end_matches(":latest").to_owned())
        .collect()
}

fn on_disk(board: &Board) -> u64 {
    let folder = std::fs::read_dir(board.data().join("blobs/sha256")).unwrap();
    folder.map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn disk_max_holds_and_the_least_recently_used_goes_first() {
    let upstream = upstream(8);
    let mut board = board(&upstream, "3500kB");
    for seed in [1, 2, 3] {
        pull(&board, seed);
    }
    assert_eq!(whole(&board), ["1", "2", "3"]);
    pull(&board, 1);
    pull(&board, 4);
    assert_eq!(whole(&board), ["1", "3", "4"], "the second was not used since");
    board.wait_for_log("evicted docker.io/lab/2:latest");
    for seed in [5, 6, 7, 8] {
        pull(&board, seed);
        assert!(on_disk(&board) <= 3_500_000, "{} bytes", on_disk(&board));
    }
    assert_eq!(whole(&board), ["6", "7", "8"]);
    board.check_blobs();
    // What went is not on offer, and what stays is, also when the index is made again.
    upstream.hang_up();
    for again in [false, true] {
        if again {
            board.stop();
            std::fs::remove_dir_all(board.data().join("index")).unwrap();
            board.start_again();
            board.wait_until("the rebuild", || board.get("/readyz").status == 200);
        }
        assert!(board.pull("lab/2", "latest").is_err());
        pull(&board, 7);
        assert_eq!(whole(&board), ["6", "7", "8"]);
    }
    let metrics = String::from_utf8(board.get("/metrics").body().unwrap()).unwrap();
    assert!(metrics.contains("larder_disk_max_bytes 3500000"), "{metrics}");
}

#[test]
fn what_is_pinned_stays_and_when_nothing_may_go_that_is_said() {
    let upstream = upstream(4);
    let board = board(&upstream, "2500kB");
    pull(&board, 1);
    pull(&board, 2);
    assert!(board.said(&["pin", "docker.io/lab/1"]).contains("stays"));
    pull(&board, 3);
    assert_eq!(whole(&board), ["1", "3"]);
    board.said(&["pin", "docker.io/lab/3"]);
    assert!(board.said(&["ls"]).contains("pinned"));
    assert!(!board.said(&["status"]).contains("goes next"));
    // What there is no room for is served and not stored, and every byte of it is right.
    pull(&board, 4);
    board.wait_for_log("is streamed and not stored");
    board.wait_for_log("no image that may be removed would make room");
    assert_eq!(whole(&board), ["1", "3"]);
    let layer = layer_of(&megabyte(4));
    let path = format!("/v2/lab/4/blobs/{layer}?ns=docker.io");
    let answer = board.request("GET", &path, &[("Range", "bytes=400000-700000")]);
    let status = answer.header("cache-status").map(str::to_owned);
    assert_eq!((answer.status, status.as_deref()), (206, Some("larder; fwd=uri-miss; detail=not-stored")));
    assert!(answer.body().unwrap() == megabyte(4).blobs[&layer][400_000..=700_000]);
    upstream.on(Some("GET"), "/blobs/", Behaviour::WrongBytes);
    assert!(board.get(&path).body().is_err(), "a wrong byte is never completed, here neither");
    upstream.clear();
    assert!(!board.has_blob(&layer));
    board.said(&["unpin", "docker.io/lab/1"]);
    assert!(board.said(&["status"]).contains("goes next  docker.io/lab/1:latest"));
    // What could not be done a moment ago is not tried for at once.
    board.wait_until("room", || board.pull("lab/4", "latest").is_ok() && whole(&board) == ["3", "4"]);
}

#[test]
fn a_new_version_takes_the_place_of_the_oldest_one() {
    let upstream = upstream(1);
    let board = board(&upstream, "2500kB");
    pull(&board, 1);
    for seed in [2, 3, 4] {
        upstream.push("lab/1", "latest", &megabyte(seed));
        assert_eq!(board.pull("lab/1", "latest").unwrap().digest, megabyte(seed).root);
    }
    let history: serde_json::Value =
        serde_json::from_str(&board.said(&["history", "docker.io/lab/1", "--json"])).unwrap();
    let versions: Vec<&str> = history["versions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|version| version["digest"].as_str().unwrap())
        .collect();
    assert_eq!(versions, [megabyte(4).root.to_string(), megabyte(3).root.to_string()]);
    upstream.hang_up();
    assert_eq!(board.pull("lab/1", "latest").unwrap().digest, megabyte(4).root);
}

#[test]
fn rm_forgets_a_tag_and_removes_what_only_it_had() {
    let upstream = upstream_with(&image(1));
    upstream.push("lab/app", "same", &image(1));
    upstream.push("lab/app", "other", &image(2));
    let mut board = Board::new(&upstream, "");
    for tag in ["latest", "same", "other"] {
        board.pull("lab/app", tag).unwrap();
    }
    board.said(&["pin", "docker.io/lab/app:other"]);
    for running in [true, false] {
        if !running {
            board.said(&["unpin", "docker.io/lab/app:other"]);
            board.stop();
        }
        let tag = if running { "latest" } else { "same" };
        board.said(&["rm", &format!("docker.io/lab/app:{tag}")]);
        assert!(!board.said(&["ls"]).contains(&format!("app:{tag} ")));
        assert_eq!(board.has_blob(&image(1).root), running, "what another tag names stays");
    }
    assert!(board.said(&["rm", "docker.io/lab/app:other"]).contains("are free again"));
    assert_eq!(board.check_blobs(), 0);
    assert_eq!(board.command(&["rm", "docker.io/lab/app:other"]).status.code(), Some(1));
    board.start_again();
    board.pull("lab/app", "latest").unwrap();
    board.said(&["pin", "docker.io/lab/app"]);
    let refused = board.command(&["rm", "docker.io/lab/app"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8(refused.stderr).unwrap().contains("larder unpin"));
}
