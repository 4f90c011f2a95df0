//! What stands in the place of a file of Larder's and is none: a pipe, at which a plain open would wait for ever. Every
//! start and every command ends in time, what can be made anew is, and what cannot is named.

use crate::board::{self, BOARD, Board, Folder, image, private_file, pulled, secrets, upstream_with};
use larder::demo::upstream::LoginDemand as Login;
use rustix::fs::{CWD, FileType, Mode};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const TAG: &str = "/v2/lab/app/manifests/latest?ns=docker.io";

/// Longest that a start or a command may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Puts a pipe into the place of whatever is there.
fn pipe_at(path: &Path) {
    let _ = std::fs::remove_file(path);
    rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

#[test]
fn a_pipe_among_the_stores_files_stops_no_start_and_no_command() {
    let (_upstream, mut board) = pulled(&image(1), "[auth]\npull_secrets = true\noffline_grace = \"1h\"\n");
    let files = [
        "index/data.mdb",
        "index/lock.mdb",
        "index/fingerprint",
        "session",
        "session.new",
        "journal.new",
        "kept-logins",
        "journal",
        "lock",
    ];
    let fresh = board.folder().join("sound");
    board.stop();
    let copied = |from: &Path, to: &Path| {
        let copy = board::output(Command::new("cp").arg("-a").arg(from).arg(to));
        assert!(copy.status.success());
    };
    copied(&board.data(), &fresh);
    for file in files {
        std::fs::remove_dir_all(board.data()).unwrap();
        copied(&fresh, &board.data());
        pipe_at(&board.data().join(file));
        for command in [&["ls"][..], &["status", "--json"], &["verify"], &["ls"]] {
            let began = Instant::now();
            let output = board.command(command);
            assert!(began.elapsed() < PATIENCE, "{file} {command:?}");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            match output.status.code() {
                Some(0) => {}
                Some(1) => {
                    assert!(said.contains(file) && said.contains("it is not a file"), "{file}: {said}")
                }
                other => panic!("{file} {command:?}: {other:?} {said}"),
            }
        }
        pipe_at(&board.data().join(file));
        let began = Instant::now();
        match board.try_start_again() {
            Ok(()) => {
                board.wait_until("its answer", || board.request("GET", TAG, &[BOARD]).status == 200);
                board.stop();
            }
            // These two hold what cannot be made anew, or who else has the store.
            Err(said) => {
                assert!(["journal", "lock"].contains(&file), "{file}: {said}");
                assert!(said.contains("it is not a file"), "{file}: {said}");
            }
        }
        assert!(began.elapsed() < PATIENCE, "{file}");
    }
}

#[test]
fn a_pipe_that_the_configuration_names_is_an_error_and_stops_no_server() {
    let upstream = upstream_with(&image(1));
    upstream.login(Login::Basic("alice".into(), "s3cret".into()));
    let folder = Folder::new();
    let (credentials, auth) = secrets(&folder);
    let pipe = private_file(&folder, "pipe", "");
    let htpasswd = pipe.with_file_name("htpasswd");
    pipe_at(&pipe);
    let named = pipe.display();
    for text in [
        format!("{credentials}[auth]\nhtpasswd_file = \"{named}\"\n"),
        format!("username = \"alice\"\npassword_file = \"{named}\"\n{auth}"),
        format!("{credentials}{auth}[kit]\nsecret_file = \"{named}\"\nlisten = \"127.0.0.1:0\"\n"),
        format!("{credentials}{auth}[tls]\ncert_file = \"{named}\"\nkey_file = \"{named}\"\n"),
    ] {
        let config = Board::config(&upstream.url(), &text);
        let began = Instant::now();
        let Err((said, _)) = Board::in_folder(Folder::new(), &config, Vec::new()) else {
            panic!("it started with {text}")
        };
        assert!(began.elapsed() < PATIENCE);
        assert!(said.contains(&named.to_string()) && said.contains("it is not a file"), "{text}\n{said}");
    }
    // One that takes the place of the password file later leaves the logins as they were.
    let board = Board::new(&upstream, &format!("{credentials}{auth}"));
    assert_eq!(board.request("GET", TAG, &[BOARD]).status, 200);
    pipe_at(&htpasswd);
    board.wait_until("the look at the file", || {
        assert_eq!(board.request("GET", TAG, &[BOARD]).status, 200);
        board.log().contains("it is not a file; what was read before stays in use")
    });
}
