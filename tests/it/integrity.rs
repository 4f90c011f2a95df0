//! Content that has gone bad on the disk: it is found out before it is believed, set aside, and fetched again.

use crate::board::{self, Board, Folder, PLATFORM, io_faults, layer_of, needed, upstream_with};
use larder::config::{Config, Options};
use larder::demo::client;
use larder::demo::image::SampleImage as Image;
use larder::demo::upstream::FaultyRegistry as Upstream;
use larder::fetch::Upstreams;
use larder::mirror::Mirror;
use larder::oci::Digest;
use larder::store::Store;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// With a layer that is hashed after the header of the answer has gone out, and one that is hashed before.
fn big(seed: u64) -> Image {
    Image::multi_arch(seed, &[6_000_000, 20_000])
}

fn path_of(data: &Path, digest: &Digest) -> PathBuf {
    data.join("blobs").join(digest.algorithm().name()).join(digest.hex())
}

/// Changes one bit in the middle, and nothing else: size and times stay.
fn damage(data: &Path, digest: &Digest) {
    let path = path_of(data, digest);
    let before = std::fs::metadata(&path).unwrap();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, before.len() / 2).unwrap();
    file.write_all_at(&[byte[0] ^ 1], before.len() / 2).unwrap();
    file.set_modified(before.modified().unwrap()).unwrap();
}

/// The part of the image that is hashed before it is served: config or small layer.
fn small_part(image: &Image) -> Digest {
    needed(image)
        .into_iter()
        .find(|digest| image.blobs[digest].len() > 10_000 && *digest != layer_of(image))
        .unwrap()
}

#[test]
fn after_an_unclean_stop_everything_is_hashed_before_it_is_served() {
    let image = big(1);
    let (_upstream, mut board) = board::pulled(&image, "");
    let layer = layer_of(&image);
    board.kill();
    damage(&board.data(), &layer);
    board.start_again();
    board.wait_for_log("the last shutdown was unclean");
    // Not a byte of it is served, so that a client which resumes gets the right ones.
    let answer = board.get(&format!("/v2/lab/app/blobs/{layer}?ns=docker.io"));
    let (status, cut) = (answer.status, answer.body().unwrap_err());
    assert!(
        status == 200 && cut.to_string().contains(&format!("cut {} bytes", image.blobs[&layer].len())),
        "{cut}"
    );
    board.wait_for_log("is corrupt and was quarantined");
    assert_eq!(board.metric("larder_corrupt_blobs_total"), 1);
    board.pull("lab/app", "latest").unwrap();
    board.check_blobs();
    assert_eq!(std::fs::read_dir(board.data().join("quarantine")).unwrap().count(), 0, "it has come anew");
    // What was served once is not hashed again, over an orderly restart neither.
    board.stop();
    board.start_again();
    damage(&board.data(), &layer);
    let answer = board.get(&format!("/v2/lab/app/blobs/{layer}?ns=docker.io"));
    assert_eq!(answer.header("cache-status"), Some("larder; hit"));
    assert_eq!(answer.body().unwrap().len(), image.blobs[&layer].len());
    assert_eq!(board.metric("larder_corrupt_blobs_total"), 0);
}

#[test]
fn a_sound_blob_is_a_hit_after_an_unclean_stop_and_ranges_are_served() {
    let image = big(1);
    let (upstream, mut board) = board::pulled(&image, "");
    board.kill();
    upstream.hang_up();
    board.start_again();
    let layer = layer_of(&image);
    let url = format!("/v2/lab/app/blobs/{layer}?ns=docker.io");
    let answer = board.request("GET", &url, &[("Range", "bytes=5999000-")]);
    assert_eq!((answer.status, answer.header("cache-status")), (206, Some("larder; hit")));
    assert!(answer.body().unwrap() == image.blobs[&layer][5_999_000..]);
    board.pull("lab/app", "latest").unwrap();
    let served = "larder_served_bytes_total{source=\"cache\"}";
    assert!(board.metric(served) > 6_000_000, "it came from the cache: {}", board.metric(served));
}

#[test]
fn offline_a_damaged_version_gives_way_to_the_one_before_and_comes_back_with_the_uplink() {
    let (old, new) = (big(1), big(2));
    let (upstream, mut board) = board::pulled(&old, "");
    upstream.push("lab/app", "latest", &new);
    // A version is one to go back to from when its completion is noted.
    board.wait_for_log(&format!("is complete at {}", old.root));
    board.pull("lab/app", "latest").unwrap();
    board.wait_for_log(&format!("is complete at {}", new.root));
    board.kill();
    upstream.hang_up();
    let part = small_part(&new);
    damage(&board.data(), &part);
    board.start_again();
    // The first pull finds it out; from then on the version is not complete and the one before is served.
    let refused = board.pull("lab/app", "latest").unwrap_err();
    assert!(refused.to_string().contains("502"), "{refused}");
    assert!(!board.has_blob(&part), "it is set aside");
    assert_eq!(board.pull("lab/app", "latest").unwrap().digest, old.root);
    board.wait_for_log("not complete without it: docker.io/lab/app:latest");
    assert!(board.said(&["history", "docker.io/lab/app"]).contains("partial"));
    // Nobody has to ask for it.
    upstream.come_back().unwrap();
    board.wait_until("the blob, anew", || board.has_blob(&part));
    upstream.hang_up();
    board.wait_until("the newer version", || {
        board.pull("lab/app", "latest").is_ok_and(|pulled| pulled.digest == new.root)
    });
    board.check_blobs();
}

#[test]
fn a_damaged_manifest_is_fetched_again_at_once() {
    let image = big(1);
    let (_upstream, mut board) = board::pulled(&image, "");
    board.kill();
    damage(&board.data(), &image.root);
    board.start_again();
    assert_eq!(board.pull("lab/app", "latest").unwrap().digest, image.root);
    board.check_blobs();
    assert_eq!(board.metric("larder_corrupt_blobs_total"), 1);
}

#[test]
fn what_verify_sets_aside_comes_back_by_itself() {
    let image = big(1);
    let (_upstream, board) = board::pulled(&image, "");
    let layer = layer_of(&image);
    damage(&board.data(), &layer);
    let found = board.command(&["verify"]);
    assert_eq!(found.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&found.stdout).contains("docker.io/lab/app:latest"));
    assert!(board.has_blob(&layer), "looking changes nothing");
    assert_eq!(board.command(&["verify", "--repair"]).status.code(), Some(1), "something was wrong");
    board.wait_until("the blob, anew", || board.has_blob(&layer));
    board.said(&["verify"]);
}

#[test]
fn what_the_medium_does_not_give_is_set_aside_and_fetched_again() {
    let image = big(1);
    let upstream = upstream_with(&image);
    let folder = Folder::new();
    let bad = folder.0.join("bad");
    std::fs::write(&bad, "").unwrap();
    let environment =
        io_faults::environment(&folder.0.join("data"), &[("LARDER_DISK_BAD", bad.display().to_string())]);
    let config = format!(
        "platforms = [\"{PLATFORM}\"]\n{}[disk]\nmin_free = \"1MiB\"\n[upstream.\"docker.io\"]\nurl = \"{}\"\n",
        board::FETCH,
        upstream.url()
    );
    let board = Board::in_folder(folder, &config, environment);
    let board = board.unwrap_or_else(|(log, _)| panic!("the server did not start:\n{log}"));
    board.pull("lab/app", "latest").unwrap();
    for part in [layer_of(&image), image.root.clone()] {
        std::fs::write(&bad, part.hex()).unwrap();
        // The client is cut short, before the header or after it.
        let path = format!("/v2/lab/app/blobs/{part}?ns=docker.io");
        let answer = client::request(board.addr, "GET", &path, &[], board::PATIENCE);
        assert!(answer.is_err() || answer.is_ok_and(|answer| answer.body().is_err()));
        board.wait_for_log(&format!("{part} is corrupt and was quarantined"));
        std::fs::write(&bad, "").unwrap();
        board.wait_until("a pull", || board.pull("lab/app", "latest").is_ok());
        assert!(board.has_blob(&part));
    }
    board.check_blobs();
}

#[test]
fn unused_images_expire_but_not_by_a_clock_that_is_not_set() {
    let upstream = Upstream::start().unwrap();
    for seed in [1, 2] {
        upstream.push(&format!("lab/{seed}"), "latest", &big(seed));
    }
    let folder = Folder::new();
    let clock = folder.0.join("clock");
    // 1970, more or less.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    std::fs::write(&clock, format!("-{now}")).unwrap();
    let environment =
        io_faults::environment(&folder.0.join("data"), &[("LARDER_CLOCK", clock.display().to_string())]);
    let config = format!(
        "platforms = [\"{PLATFORM}\"]\n{}[disk]\nmin_free = \"1MiB\"\nexpire_unused = \"2s\"\n[upstream.\"docker.io\"]\nurl = \"{}\"\n",
        board::FETCH,
        upstream.url()
    );
    let board = Board::in_folder(folder, &config, environment);
    let board = board.unwrap_or_else(|(log, _)| panic!("the server did not start:\n{log}"));
    for seed in [1, 2] {
        board.pull(&format!("lab/{seed}"), "latest").unwrap();
    }
    board.said(&["pin", "docker.io/lab/1"]);
    let status: serde_json::Value = serde_json::from_str(&board.said(&["status", "--json"])).unwrap();
    assert_eq!(status["clock_trusted"], false);
    // Twice as long as it takes, by the time that it runs.
    std::thread::sleep(std::time::Duration::from_secs(4));
    assert!(!board.log().contains("expired"), "the clock is not set:\n{}", board.log());
    std::fs::write(&clock, "0").unwrap();
    board.wait_for_log("expired docker.io/lab/2:latest");
    assert!(board.has_blob(&big(1).root) && !board.has_blob(&big(2).root), "what is pinned stays");
    board.check_blobs();
}

#[test]
fn the_scrub_reads_everything_in_turn_and_goes_on_where_it_was() {
    let image = big(1);
    let (_upstream, mut board) = board::pulled(&image, "");
    board.stop();
    let layer = layer_of(&image);
    damage(&board.data(), &layer);
    let blobs = std::fs::read_dir(board.data().join("blobs/sha256")).unwrap().count();
    let open = || {
        let options = Options {
            file: Some(board.folder().join("larder.toml")),
            data_dir: Some(board.data()),
            ..Options::default()
        };
        let config = Config::load(&options).unwrap();
        let upstreams = Upstreams::new(&config).unwrap();
        let (store, startup) = board::without_spawning(|| Store::open(&config.data_dir, 3)).unwrap();
        assert!(!startup.needs_rebuild());
        Mirror::start(Arc::new(config), Arc::new(store), upstreams, startup).unwrap()
    };
    let mirror = open();
    let mut pauses = std::time::Duration::ZERO;
    for _ in 0..blobs / 2 {
        pauses += mirror.scrub_step().unwrap();
    }
    let passed = mirror.store().scrubbed().expect("it is on its way");
    mirror.stop();
    drop(mirror);
    // Its threads let go of the store within a moment.
    let deadline = std::time::Instant::now() + board::PATIENCE;
    while board::without_spawning(|| Store::open(&board.data(), 3).is_err()) {
        assert!(std::time::Instant::now() < deadline, "the store is still held");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let mirror = open();
    assert_eq!(mirror.store().scrubbed(), Some(passed), "an orderly restart goes on");
    while mirror.store().scrubbed().is_some() {
        pauses += mirror.scrub_step().unwrap();
    }
    assert_eq!(mirror.store().corrupt_blobs(), 1);
    let month = larder::budget::SCRUB_PASS;
    assert!(pauses >= month && pauses < month * 2, "{pauses:?}");
    let deadline = std::time::Instant::now() + board::PATIENCE;
    while !mirror.store().contains(&layer) {
        assert!(std::time::Instant::now() < deadline, "it was not fetched again");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    mirror.stop();
    board::check_blobs(&board.data());
}
