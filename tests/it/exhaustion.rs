//! A process that runs out of threads, processes or open files: each request is answered or refused, nothing that is
//! sound is taken for damaged, and all is well again as soon as there is enough.
//!
//! The limits are set on the running server alone. Those of processes do not hold for root, so that root gives the store
//! to a user who has nothing else, as whom the server then works.

use crate::board::{self, Board, Folder, image, upstream_with};
use larder::demo::client;
use larder::demo::upstream::FaultyRegistry as Upstream;
use rustix::process::Resource;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Longest that an answer may take that waits for nothing.
const SOON: Duration = Duration::from_secs(10);

/// A folder whose store belongs to a user who has no other process.
fn folder() -> Folder {
    static USERS: AtomicU32 = AtomicU32::new(0);
    let folder = Folder::new();
    let data = folder.0.join("data");
    std::fs::create_dir(&data).unwrap();
    if rustix::process::geteuid().is_root() {
        let user = 200_000 + std::process::id() % 50_000 * 16 + USERS.fetch_add(1, Ordering::Relaxed);
        std::os::unix::fs::chown(&data, Some(user), Some(user)).unwrap();
    }
    folder
}

fn config(upstream: &Upstream) -> String {
    format!(
        "platforms = [\"{}\"]\n{}[tags]\nresolve_deadline = \"500ms\"\n[disk]\nmin_free = \"1MiB\"\n[upstream.\"docker.io\"]\nurl = \"{}\"\n",
        board::PLATFORM,
        board::FETCH,
        upstream.url()
    )
}

/// An upstream with `v1` and `v2`, and a board that has `v1` and was started just now.
fn started_board() -> (Upstream, Board) {
    let upstream = upstream_with(&image(0));
    upstream.push("lab/app", "v1", &image(1));
    upstream.push("lab/app", "v2", &image(2));
    let mut board = Board::in_folder(folder(), &config(&upstream), Vec::new())
        .unwrap_or_else(|(log, _)| panic!("the server did not start:\n{log}"));
    board.pull("lab/app", "v1").unwrap();
    board.stop();
    board.start_again();
    (upstream, board)
}

/// Sets a limit of the running server, as the user that it is; `None`: what it was.
fn limit(board: &Board, what: &str, to: Option<u64>) {
    let resource = if what == "nproc" { Resource::Nproc } else { Resource::Nofile };
    // The server has them from this process.
    let to = to.or(rustix::process::getrlimit(resource).current);
    let to = to.map_or("unlimited".to_owned(), |to| to.to_string());
    let user = std::fs::metadata(board.data()).unwrap().uid().to_string();
    let mut command = Command::new("setpriv");
    if rustix::process::geteuid().is_root() {
        command.args(["--clear-groups", "--regid", &user, "--reuid", &user]);
    }
    command.args(["prlimit", "--pid", &board.id().to_string(), &format!("--{what}={to}:")]);
    let set = board::output(&mut command);
    assert!(set.status.success(), "{set:?}");
}

/// GET, which must be answered soon; its status.
fn status(board: &Board, path: &str) -> u16 {
    let answer = client::request(board.addr, "GET", path, &[], SOON);
    answer.unwrap_or_else(|e| panic!("GET {path}: {e}\n{}", board.log())).status
}

fn manifest(tag: &str) -> String {
    format!("/v2/lab/app/manifests/{tag}?ns=docker.io")
}

/// The process lives, and everything can be pulled.
fn is_well(board: &Board) {
    for tag in ["v1", "v2", "latest"] {
        board.wait_until("a pull", || board.pull("lab/app", tag).is_ok());
    }
    board.check_blobs();
    let log = board.log();
    assert!(!log.contains("panicked") && !log.contains("quarantined"), "{log}");
}

#[test]
fn without_one_more_thread_every_request_is_answered() {
    let (_upstream, mut board) = started_board();
    limit(&board, "nproc", Some(1));
    for _ in 0..3 {
        // What is here is served, cold as it is.
        assert_eq!(status(&board, &manifest("v1")), 200);
        assert_eq!(status(&board, &manifest(&image(1).root.to_string())), 200);
        for blob in board::needed(&image(1)) {
            assert_eq!(status(&board, &format!("/v2/lab/app/blobs/{blob}?ns=docker.io")), 200);
        }
        assert_eq!(status(&board, "/healthz"), 200);
        assert_eq!(status(&board, "/metrics"), 200);
    }
    // What would take a thread is refused.
    let list = "/v2/lab/app/tags/list?ns=docker.io".to_owned();
    for path in [manifest("v2"), manifest(&image(2).root.to_string()), list] {
        assert!((500..=504).contains(&status(&board, &path)), "{path}");
    }
    assert!(board.command(&["ls"]).status.signal().is_none());
    limit(&board, "nproc", None);
    is_well(&board);
    board.said(&["ls"]);
    board.stop();
}

/// Lowers the limit of open files until no more than one connection is accepted; that limit. It is found by trying: a
/// thread that waits in accept(2) has the number of its next file, and no list of the open ones shows it.
fn limit_to_one_connection(board: &Board) -> u64 {
    let is_open = |number: &u64| Path::new(&format!("/proc/{}/fd/{number}", board.id())).exists();
    let mut limits = (0..).skip_while(is_open);
    let answers = |to: &u64| {
        limit(board, "nofile", Some(*to));
        client::request(board.addr, "GET", "/healthz", &[], Duration::from_secs(1)).is_ok()
    };
    limits.find(answers).unwrap()
}

#[test]
fn without_one_more_open_file_nothing_is_lost_and_nothing_sound_is_quarantined() {
    let (_upstream, mut board) = started_board();
    let blobs = board.check_blobs();
    for more in 0..3 {
        let one = limit_to_one_connection(&board);
        limit(&board, "nofile", Some(one + more));
        for path in [manifest("v1"), manifest(&image(1).root.to_string()), manifest("v2")] {
            let status = status(&board, &path);
            assert!(status == 200 || (500..=504).contains(&status), "{more}: {path}: {status}");
        }
        for blob in board::needed(&image(1)) {
            let status = status(&board, &format!("/v2/lab/app/blobs/{blob}?ns=docker.io"));
            assert!(status == 200 || status == 503, "{more}: {status}");
        }
        // A verification that cannot open what it is to verify proves nothing.
        let verified = board.command(&["verify", "--repair"]);
        let text = format!("{verified:?}");
        assert!(!text.contains("corrupt blobs were quarantined"), "{more}: {text}");
        limit(&board, "nofile", None);
    }
    // Not even the connection: it waits until there is one.
    limit(&board, "nofile", Some(1));
    let (addr, path) = (board.addr, manifest("v1"));
    let waiting = std::thread::spawn(move || client::request(addr, "GET", &path, &[], board::PATIENCE));
    board.wait_for_log("cannot accept a connection");
    limit(&board, "nofile", None);
    assert!([200, 503].contains(&waiting.join().unwrap().unwrap().status));
    assert!(board.check_blobs() >= blobs);
    is_well(&board);
    board.stop();
}

/// Runs the program under a limit that prlimit(1) knows.
fn under(limit: &str, folder: &Folder, arguments: &[&str], stopped_after: Option<&str>) -> Output {
    let program = std::env::var_os("LARDER").unwrap_or_else(|| env!("CARGO_BIN_EXE_larder").into());
    let mut command = Command::new("timeout");
    // What serves is asked to stop, and does.
    command.args(["--signal=TERM", stopped_after.unwrap_or("60"), "prlimit", limit]).arg(program);
    command.env_clear().env("PATH", "/usr/bin:/bin");
    command.arg("--config").arg(folder.0.join("larder.toml")).arg("--data-dir").arg(folder.0.join("data"));
    board::output(command.args(arguments))
}

#[test]
fn where_no_process_can_be_started_the_index_is_rebuilt() {
    let (_upstream, mut board) = started_board();
    let expected = board.said(&["ls"]);
    board.kill();
    let output = under("--nproc=1:1", &Folder(board.folder().to_owned()), &["ls"], None);
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{output:?}");
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    if rustix::process::geteuid().is_root() {
        assert!(log.contains("no process could be started") && log.contains("index rebuilt"), "{log}");
    }
}

#[test]
fn a_start_under_any_limit_serves_or_says_why_not() {
    let upstream = upstream_with(&image(0));
    let folder = folder();
    std::fs::write(folder.0.join("larder.toml"), config(&upstream)).unwrap();
    let (mut served, mut refused) = (0, 0);
    let processes = [1, 2, 16, 32, 33, 40, 45, 60, 200].map(|n| format!("--nproc={n}:{n}"));
    let files = [4, 6, 12, 20, 30, 63, 64, 100].map(|n| format!("--nofile={n}:{n}"));
    for limit in processes.iter().chain(&files) {
        let ran = under(limit, &folder, &["--listen", "127.0.0.1:0", "serve"], Some("0.5"));
        let log = String::from_utf8_lossy(&ran.stderr).into_owned();
        match ran.status.code() {
            // It was asked to stop and did.
            Some(124) => served += 1,
            Some(1) if log.contains("ERROR") => refused += 1,
            // Without files not even the loader starts a program that is linked dynamically.
            Some(127) if limit.contains("nofile") => refused += 1,
            other => panic!("{limit}: {other:?}\n{log}"),
        }
        assert!(!log.contains("panicked"), "{limit}:\n{log}");
    }
    println!("{served} served, {refused} refused");
    assert!(served > 2 && refused > 2, "{served} {refused}");
}
