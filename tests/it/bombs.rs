//! Documents that are cheap to send and dear to read: what they cost the server and the commands, while others are served.

use crate::board::{self, Board, Environment, PATIENCE, documents, image};
use larder::demo::client;
use larder::demo::image::SampleImage as Image;
use larder::demo::upstream::{Behaviour, FaultyRegistry as Upstream};
use larder::oci::{Algorithm, Digest, media};
use std::collections::BTreeMap;
use std::process::Command;

/// What memory.max leaves beside an idle server, which holds 6 MiB where it is released.
const MEMORY: &str = "[memory]\nmax = \"24MiB\"\n";
const BESIDE_IDLE: u64 = 18 * 1024 * 1024;

/// An image that is nothing but this manifest.
fn only(bytes: Vec<u8>) -> Image {
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    let manifests = BTreeMap::from([(digest.clone(), (media::OCI_INDEX.to_owned(), bytes.into()))]);
    Image { blobs: BTreeMap::new(), manifests, root: digest }
}

/// Twelve indexes, each of which parses.
fn twelve() -> Vec<Image> {
    let all = documents::bombs();
    let kinds = [
        "numbers in annotations",
        "numbers by name",
        "texts by name",
        "keys that nobody knows",
        "few descriptors",
        "urls",
        "numbers for urls",
        "features of platforms",
    ];
    let mut bombs: Vec<Image> =
        kinds.iter().map(|kind| only(all.iter().find(|(name, _)| name == kind).unwrap().1.clone())).collect();
    // More of those that stay in memory for the longest.
    for round in 1..5 {
        let pad = "y".repeat(900);
        bombs.push(only(documents::index_of(|n| {
            let digest = documents::digest(n + 10_000 * round);
            format!(r#"{{"mediaType":"{}","digest":"{digest}","size":1,"p":"{pad}"}}"#, media::OCI_MANIFEST)
        })));
    }
    bombs
}

/// A figure of a process in bytes.
fn figure(id: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// glibc's allocator keeps what is freed; musl's, with which larder is released, gives it back.
fn as_musl() -> Environment {
    vec![("MALLOC_ARENA_MAX", "1".to_owned()), ("MALLOC_MMAP_THRESHOLD_", "65536".to_owned())]
}

fn board_of(upstream: &Upstream) -> Board {
    let config = Board::config(&upstream.url(), MEMORY);
    Board::in_folder(board::Folder::new(), &config, as_musl())
        .unwrap_or_else(|(log, _)| panic!("the server did not start:\n{log}"))
}

#[test]
fn twelve_large_indexes_at_once_stay_within_memory_max() {
    let upstream = Upstream::start().unwrap();
    let honest = image(1);
    upstream.push("lab/app", "latest", &honest);
    for (n, bomb) in twelve().iter().enumerate() {
        upstream.push(&format!("lab/bomb{n}"), "latest", bomb);
    }
    let mut board = board_of(&upstream);
    board.pull("lab/app", "latest").unwrap();
    let id = board.id();
    // Forgets the peak so far.
    let begin = || std::fs::write(format!("/proc/{id}/clear_refs"), "5").unwrap();
    begin();
    let before = figure(id, "RssAnon");
    let addr = board.addr;
    let get = move |repository: &str| {
        let path = format!("/v2/{repository}/manifests/latest?ns=docker.io");
        let answer = client::request(addr, "GET", &path, &[], PATIENCE).unwrap();
        (answer.status, answer.body().unwrap().len())
    };
    // They take turns, so that on a busy machine one may have to ask again.
    let get_at_last = move |repository: &str| {
        (0..10).map(|_| get(repository)).find(|(status, _)| *status == 200).unwrap_or((0, 0))
    };
    std::thread::scope(|scope| {
        let asked: Vec<_> =
            (0..12).map(|n| scope.spawn(move || get_at_last(&format!("lab/bomb{n}")))).collect();
        assert_eq!(get("lab/app").0, 200, "the neighbour is served meanwhile");
        for (n, answer) in asked.into_iter().enumerate() {
            let (status, bytes) = answer.join().unwrap();
            assert!(status == 200 && bytes > 2_000_000, "{n}: {status}, {bytes} bytes");
        }
    });
    // The process's own memory: pages of the program and of the index, which new work maps too, are not.
    let cost = |what: &str| {
        let cost = figure(id, "VmHWM").saturating_sub(figure(id, "RssFile") + before);
        println!("{what}: {} kB more than before", cost / 1024);
        assert!(cost <= BESIDE_IDLE, "{what} took {cost} bytes");
        begin();
    };
    cost("twelve pulls");
    let listed = board.said(&["ls"]);
    assert_eq!(listed.matches("lab/bomb").count(), 12, "{listed}");
    cost("ls");
    board.said(&["why", "docker.io/lab/bomb4:latest"]);
    board.said(&["status"]);
    cost("why and status");
    assert_eq!(get("lab/app").0, 200);
    board.stop();
    for arguments in [&["ls"][..], &["why", "docker.io/lab/bomb4:latest"], &["status"]] {
        let said = within(&board, arguments);
        assert!(said.contains("bomb") || arguments[0] == "status", "{said}");
    }
}

/// Runs a command that may have no more than 24 MiB of memory of its own, the server stopped.
fn within(board: &Board, arguments: &[&str]) -> String {
    let program = std::env::var("LARDER").unwrap_or_else(|_| env!("CARGO_BIN_EXE_larder").to_owned());
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "ulimit -d 24576; exec \"$0\" \"$@\"", &program]);
    command.arg("--config").arg(board.folder().join("larder.toml")).arg("--data-dir").arg(board.data());
    let output = board::output(command.args(arguments).envs(as_musl()));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{arguments:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

#[test]
fn sizes_that_nothing_has_are_refused_and_add_up_to_no_panic() {
    let upstream = Upstream::start().unwrap();
    let honest = image(1);
    upstream.push("lab/app", "latest", &honest);
    let content: Vec<(Digest, std::sync::Arc<[u8]>)> =
        (0..3u8).map(|n| (Digest::of(Algorithm::Sha256, &[n; 300_000]), vec![n; 300_000].into())).collect();
    let layer = |(digest, _): &(Digest, std::sync::Arc<[u8]>)| {
        format!(r#"{{"mediaType":"layer","digest":"{digest}","size":{}}}"#, i64::MAX)
    };
    let layers: Vec<String> = content.iter().map(layer).collect();
    let text = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","layers":[{}]}}"#,
        media::OCI_MANIFEST,
        layers.join(",")
    );
    let root = Digest::of(Algorithm::Sha256, text.as_bytes());
    let manifest = (media::OCI_MANIFEST.to_owned(), text.into_bytes().into());
    let evil = Image {
        blobs: content.iter().cloned().collect(),
        manifests: BTreeMap::from([(root.clone(), manifest)]),
        root,
    };
    upstream.push("lab/evil", "latest", &evil);
    // Without a length of its own the stated one would be believed.
    for (digest, _) in &content {
        upstream.on(Some("GET"), &digest.to_string(), Behaviour::NoContentLength);
    }
    let mut board = Board::new(&upstream, "");
    let get = |board: &Board, what: &str| board.get(&format!("/v2/lab/evil/{what}?ns=docker.io")).status;
    assert_eq!(get(&board, "manifests/latest"), 200);
    for (digest, _) in &content {
        assert!(get(&board, &format!("blobs/{digest}")) >= 400);
    }
    board.pull("lab/app", "latest").unwrap();
    for arguments in
        [&["ls"][..], &["why", "docker.io/lab/evil:latest"], &["history", "docker.io/lab/evil:latest"]]
    {
        board.said(arguments);
    }
    // With the uplink gone the error has the sum.
    upstream.hang_up();
    assert!(get(&board, "manifests/latest") >= 400 || !board.log().contains("panic"));
    assert!(!board.log().contains("panicked"), "{}", board.log());
    assert_eq!(board.head("/v2/lab/app/manifests/latest?ns=docker.io").status, 200);
    board.stop();
}
