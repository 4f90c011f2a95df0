//! `larder check` says before the uplink goes what would start without it, and its exit status says it to programs.

use crate::board::{self, Board, image, layer_of, needed, upstream_with};
use std::process::Output;

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The rows of `check --json`: image, state, rule, and how many pieces are missing.
fn rows(output: &Output) -> Vec<(String, String, String, usize)> {
    let rows: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    let row = |row: &serde_json::Value| {
        let word = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        (word("image"), word("state"), word("rule"), row["missing"].as_array().unwrap().len())
    };
    rows.as_array().unwrap().iter().map(row).collect()
}

#[test]
fn what_would_start_is_told_from_what_would_not() {
    let (first, second) = (image(1), image(2));
    let (upstream, mut board) = board::pulled(&first, "");
    upstream.push("lab/app", "next", &second);
    // Of the second its manifests alone; of the third nothing.
    board.manifests("docker.io", "lab/app", "next", &[]);
    let names = ["lab/app:latest", "lab/app:next", "lab/none:1"];
    for running in [true, false] {
        if !running {
            board.stop();
        }
        let ready = board.command(&["check", "lab/app:latest"]);
        assert!(ready.status.success() && text(&ready).contains("ready"), "{ready:?}");
        let all = board.command(&["check", "--json", names[0], names[1], names[2]]);
        assert_eq!(all.status.code(), Some(1), "{all:?}");
        let found = rows(&all);
        let states: Vec<_> =
            found.iter().map(|(image, state, ..)| (image.as_str(), state.as_str())).collect();
        let expected = [
            ("docker.io/lab/app:latest", "ready"),
            ("docker.io/lab/app:next", "incomplete"),
            ("docker.io/lab/none:1", "absent"),
        ];
        assert_eq!(states, expected);
        assert!(found[1].3 > 0, "what is missing is named: {found:?}");
        assert_eq!(found[0].2, "last-complete");
        let lacking = board.command(&["check", "lab/app:next"]);
        assert!(text(&lacking).contains(&format!("{}", layer_of(&second))), "{lacking:?}");
        let digest = format!("lab/app@{}", first.root);
        assert!(board.command(&["check", &digest]).status.success());
    }
    assert_eq!(board.command(&["check"]).status.code(), Some(1), "that nothing is wanted is no success");
    assert!(text(&board.command(&["check"])).contains("no image is wanted"));
}

#[test]
fn the_version_is_the_one_that_a_request_would_get() {
    let (first, second) = (image(1), image(2));
    let (upstream, board) = board::pulled(&first, "");
    upstream.push("lab/app", "latest", &second);
    board.manifests("docker.io", "lab/app", "latest", &[]);
    // The newer one is half here; the older one answers.
    let checked = board.command(&["check", "--json", "lab/app"]);
    assert!(checked.status.success(), "{checked:?}");
    assert!(text(&checked).contains(&first.root.to_string()));
    upstream.hang_up();
    assert_eq!(board.pull("lab/app", "latest").unwrap().digest, first.root);
}

#[test]
fn an_image_for_another_platform_does_not_start() {
    let upstream = upstream_with(&image(1));
    let folder = board::Folder::new();
    let config = Board::config(&upstream.url(), "").replace(board::PLATFORM, "linux/s390x");
    let board = Board::in_folder(folder, &config, Vec::new()).unwrap_or_else(|(log, _)| panic!("{log}"));
    board.pull("lab/app", "latest").unwrap();
    let checked = board.command(&["check", "lab/app"]);
    assert_eq!(checked.status.code(), Some(1), "{checked:?}");
    let said = text(&checked);
    assert!(said.contains("other platform") && said.contains(board::PLATFORM), "{said}");
}

#[test]
fn the_bytes_are_read_if_that_is_asked_for() {
    let first = image(1);
    let (_upstream, board) = board::pulled(&first, "");
    let layer = layer_of(&first);
    let file = board.data().join("blobs/sha256").join(layer.to_string().trim_start_matches("sha256:"));
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[7] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    assert!(board.command(&["check", "lab/app"]).status.success());
    let hashed = board.command(&["check", "--hash", "lab/app"]);
    assert_eq!(hashed.status.code(), Some(1), "{hashed:?}");
    assert!(text(&hashed).contains("corrupt") && text(&hashed).contains("verify --repair"), "{hashed:?}");
}

#[test]
fn what_is_wanted_is_pinned_listed_or_needed_by_each_pod() {
    let upstream = upstream_with(&image(1));
    for name in ["warm", "pause"] {
        upstream.push(&format!("lab/{name}"), "1", &image(2));
    }
    let board = Board::new(&upstream, "[warm]\nimages = [\"docker.io/lab/warm:1\"]\n");
    board.pull("lab/app", "latest").unwrap();
    board.said(&["pin", "lab/app"]);
    let root = board.folder().join("root");
    std::fs::create_dir_all(root.join("etc/containerd")).unwrap();
    let runtime =
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"docker.io/lab/pause:1\"\n";
    std::fs::write(root.join("etc/containerd/config.toml"), runtime).unwrap();
    let root = root.to_str().unwrap().to_owned();
    let check = |more: &[&str]| board.command(&[&["check", "--root", root.as_str()], more].concat());
    let state = |image: &str| {
        let found = rows(&check(&["--json"]));
        found.iter().find(|row| row.0.ends_with(image)).map(|row| row.1.clone()).unwrap()
    };
    assert_eq!(check(&[]).status.code(), Some(1));
    assert!(board.said(&["status"]).contains("2, 1 would not start"), "{}", board.said(&["status"]));
    assert_eq!(
        (state("lab/app:latest"), state("lab/warm:1"), state("lab/pause:1")),
        ("ready".into(), "absent".into(), "absent".into())
    );
    board.pull("lab/warm", "1").unwrap();
    assert_eq!(check(&[]).status.code(), Some(1), "without the sandbox image no pod starts");
    assert!(text(&check(&[])).contains("needed by each pod"));
    // An image that is named is not alone with it unless that is asked for.
    assert!(check(&["lab/warm:1"]).status.success());
    assert_eq!(check(&["--from-runtime", "lab/warm:1"]).status.code(), Some(1));
    board.pull("lab/pause", "1").unwrap();
    assert!(check(&[]).status.success());
    board.wait_until("the report", || board.said(&["status"]).contains("2, all would start"));
    let other = board.folder().join("other");
    std::fs::create_dir(&other).unwrap();
    let unknown = board.command(&["check", "--from-runtime", "--root", other.to_str().unwrap(), "lab/app"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text(&unknown).contains("names a sandbox image"), "{unknown:?}");
}

#[test]
fn more_images_than_a_request_takes_are_one_answer() {
    let (_upstream, board) = board::pulled(&image(1), "");
    board.said(&["pin", "lab/app"]);
    assert!(!needed(&image(1)).is_empty());
    let mut names: Vec<String> = (0..40).map(|n| format!("lab/none:{n}")).collect();
    names.push("lab/app:latest".to_owned());
    let arguments: Vec<&str> =
        ["check", "--json"].into_iter().chain(names.iter().map(String::as_str)).collect();
    let found = rows(&board.command(&arguments));
    assert_eq!(found.len(), names.len());
    assert_eq!(found.iter().filter(|row| row.1 == "absent").count(), 40);
}
