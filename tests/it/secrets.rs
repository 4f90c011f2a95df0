//! Secrets stay where they are: in no output, in no file that others can read, and in no answer's time.

use crate::board::{self, Board, Folder, PATIENCE, image, pulled, tls_settings, upstream_with};
use larder::demo::client;
use larder::demo::upstream::{FaultyRegistry as Upstream, LoginDemand as Login};
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

const PRIVATE: &str = "/v2/lab/app/manifests/latest?ns=docker.io";

/// A file with `text` and `mode`.
fn file(folder: &Folder, name: &str, text: &str, mode: u32) -> PathBuf {
    let path = folder.0.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    path
}

fn program() -> std::ffi::OsString {
    std::env::var_os("LARDER").unwrap_or_else(|| env!("CARGO_BIN_EXE_larder").into())
}

/// `larder config WORD` for a configuration of its own.
fn config(folder: &Folder, mode: u32, text: &str, word: &str) -> Output {
    let path = file(folder, "larder.toml", text, mode);
    let mut command = Command::new(program());
    board::output(command.env_clear().arg("--config").arg(path).args(["config", word]))
}

fn basic(user: &str, password: &str) -> String {
    use base64::Engine;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

/// A board whose docker.io is private, with users and their passwords at a cost.
fn private_board(users: &[(&str, &str)], cost: u32) -> (Board, Upstream, Folder) {
    let upstream = upstream_with(&image(1));
    upstream.login(Login::Basic("alice".into(), "s3cret".into()));
    let folder = Folder::new();
    let line =
        |(user, password): &(&str, &str)| format!("{user}:{}\n", bcrypt::hash(password, cost).unwrap());
    let htpasswd = file(&folder, "htpasswd", &users.iter().map(line).collect::<String>(), 0o600);
    let password = file(&folder, "password", "s3cret\n", 0o600);
    let text = format!(
        "username = \"alice\"\npassword_file = \"{}\"\n[auth]\nhtpasswd_file = \"{}\"\n",
        password.display(),
        htpasswd.display()
    );
    (Board::new(&upstream, &text), upstream, folder)
}

fn log_in(board: &Board, user: &str, password: &str) -> u16 {
    board.request("GET", PRIVATE, &[("Authorization", &basic(user, password))]).status
}

#[test]
fn the_configuration_is_printed_without_secrets() {
    let folder = Folder::new();
    for text in [
        "[fetch]\nproxy = \"larder:s3cret@proxy.example:3128\"",
        "[fetch]\nproxy = \"http://larder:s3cret@proxy.example:3128\"",
        "[fetch]\nproxy = \"http://larder:p/s3cret@proxy.example:3128\"",
        "[alert]\nurl = \"https://hooks.example/services/s3cret\"",
        "[alert]\nurl = \"https://larder:s3cret@hooks.example\"",
        "[upstream.\"a.example\"]\nrealm = \"https://larder:s3cret@auth.example\"",
        // Refused, and named all the same.
        "[upstream.\"a.example\"]\nurl = \"https://larder:s3cret@a.example\"",
        "[upstream.\"a.example\"]\nurl = \"https://a.example/?token=s3cret\"",
    ] {
        for word in ["print", "check"] {
            let output = config(&folder, 0o600, text, word);
            let shown = [output.stdout, output.stderr].concat();
            let shown = String::from_utf8_lossy(&shown);
            assert!(!shown.contains("s3cret"), "config {word} of {text}:\n{shown}");
            assert!(word == "check" || shown.contains("***"), "{shown}");
        }
    }
}

#[test]
fn a_file_with_a_secret_that_everybody_can_read_is_named() {
    let folder = Folder::new();
    let key = |mode| {
        format!("[tls]\ncert_file = \"/none\"\nkey_file = \"{}\"", file(&folder, "key", "k", mode).display())
    };
    let users =
        |mode| format!("[auth]\nhtpasswd_file = \"{}\"", file(&folder, "htpasswd", "", mode).display());
    let kit = |mode| {
        let secret = file(&folder, "kit.secret", "0123456789abcdef", mode);
        format!("[kit]\nsecret_file = \"{}\"", secret.display())
    };
    let login = |mode| {
        let password = file(&folder, "password", "s3cret", mode);
        let upstream =
            format!("[upstream.\"a.example\"]\nusername = \"u\"\npassword_file = \"{}\"", password.display());
        format!("{}\n{upstream}", users(0o600))
    };
    for make in [&key as &dyn Fn(u32) -> String, &users, &kit, &login] {
        let output = config(&folder, 0o644, &make(0o640), "check");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for mode in [0o644, 0o604, 0o602] {
            let output = config(&folder, 0o644, &make(mode), "check");
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{mode:o}: {said}");
            assert!(said.contains("can be read by everybody; chmod 640"), "{said}");
        }
    }
    // The configuration itself, if a secret is in it.
    for (text, code) in [
        ("[fetch]\nproxy = \"u:p@proxy.example:3128\"", 2),
        ("[alert]\nurl = \"https://hooks.example/T0\"", 2),
        ("[fetch]\nproxy = \"http://proxy.example:3128\"", 0),
    ] {
        assert_eq!(config(&folder, 0o644, text, "check").status.code(), Some(code), "{text}");
        assert_eq!(config(&folder, 0o640, text, "check").status.code(), Some(0), "{text}");
    }
}

#[test]
fn a_server_whose_key_everybody_can_read_warns_and_serves() {
    let folder = Folder::new();
    let (_, certificate, key) = tls_settings();
    let certificate = file(&folder, "cert.pem", &certificate, 0o644);
    let key = file(&folder, "key.pem", &key, 0o644);
    let text =
        format!("[tls]\ncert_file = \"{}\"\nkey_file = \"{}\"\n", certificate.display(), key.display());
    let board = Board::new(&upstream_with(&image(1)), &text);
    board.wait_for_log("tls.key_file");
    assert!(board.log().contains("can be read by everybody"), "{}", board.log());
}

/// Files under `folder`, and their modes.
fn modes(folder: &Path, found: &mut Vec<(String, u32, bool)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let meta = fs::symlink_metadata(&path).unwrap();
        found.push((path.display().to_string(), meta.permissions().mode() & 0o777, meta.is_dir()));
        if meta.is_dir() {
            modes(&path, found);
        }
    }
}

#[test]
fn files_of_the_store_are_their_owners_whatever_the_umask() {
    let upstream = upstream_with(&image(1));
    let folder = Folder::new();
    let text =
        format!("platforms = [\"linux/arm64\"]\n[upstream.\"docker.io\"]\nurl = \"{}\"\n", upstream.url());
    let path = file(&folder, "larder.toml", &text, 0o644);
    let mut command = Command::new("/bin/sh");
    command.env_clear().args(["-c", "umask 000; exec \"$@\"", "sh"]).arg(program());
    command.arg("--config").arg(path).arg("--data-dir").arg(folder.0.join("data"));
    command.args(["--listen", "127.0.0.1:0", "serve"]);
    let mut child = board::spawn(command.stdout(Stdio::null()).stderr(Stdio::piped()));
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let addr = lines.find_map(|line| line.split("://").nth(1)?.split(',').next()?.parse().ok()).unwrap();
    std::thread::spawn(move || lines.for_each(drop));
    // One image, one manifest that is asked for and one download that is cut.
    client::pull(addr, Some("docker.io"), "lab/app", "latest", "linux/arm64", PATIENCE).unwrap();
    let check = || {
        let mut found = Vec::new();
        modes(&folder.0.join("data"), &mut found);
        for (path, mode, is_folder) in &found {
            let public = path.contains("/blobs/") && !is_folder;
            let wanted = match path.rsplit('/').next().unwrap() {
                "control.sock" => 0o660,
                _ if *is_folder => 0o750,
                _ if public => 0o644,
                _ => 0o600,
            };
            assert_eq!(mode & !wanted, 0, "{path} has mode {mode:o}, and should have {wanted:o}");
        }
        found.len()
    };
    assert!(check() > 8);
    assert_eq!(fs::metadata(folder.0.join("data")).unwrap().permissions().mode() & 0o777, 0o750);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(check() > 8);
}

#[test]
fn files_that_an_older_larder_left_open_are_closed_at_the_start() {
    let (_upstream, mut board) = pulled(&image(1), "");
    board.stop();
    let own = ["journal", "session", "lock", "index/data.mdb"].map(|name| board.data().join(name));
    for path in &own {
        fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
    }
    board.start_again();
    for path in &own {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
    }
    board.pull("lab/app", "latest").unwrap();
}

#[test]
fn a_password_matches_in_full() {
    let longest = "x".repeat(72);
    let (board, _upstream, _folder) = private_board(&[("board", &longest), ("short", "carry")], 4);
    assert_eq!(log_in(&board, "board", &longest), 200);
    for wrong in [format!("{longest}y"), longest.repeat(4), longest[..71].to_owned()] {
        assert_eq!(log_in(&board, "board", &wrong), 401, "{wrong}");
    }
    let answer = board.request("GET", PRIVATE, &[("Authorization", &basic("board", &longest.repeat(2)))]);
    let text = String::from_utf8(answer.body().unwrap()).unwrap();
    assert!(text.contains("more than 72 bytes"), "{text}");
    // bcrypt goes round from the end to the beginning, with a NUL in between.
    assert_eq!(log_in(&board, "short", "carry\0carry"), 401);
    assert_eq!(log_in(&board, "short", "carry"), 200);
}

#[test]
fn a_login_that_fails_leaves_a_line_without_the_password() {
    let (board, _upstream, _folder) = private_board(&[("board", "carry")], 4);
    for (user, shown) in [("board", "board"), ("nobody", "nobody"), ("\u{202e}x \u{9f}", "")] {
        assert_eq!(log_in(&board, user, "wr0ng-s3cret"), 401);
        if !shown.is_empty() {
            board.wait_for_log(&format!("login of \"{shown}\" from 127.0.0.1 for docker.io failed"));
        }
    }
    assert_eq!(log_in(&board, "board", "carry"), 200);
    let log = board.log();
    assert!(!log.contains("wr0ng") && !log.contains("carry") && !log.contains('\u{202e}'), "{log}");
    assert!(!log.contains(&basic("board", "wr0ng-s3cret")[6..]), "{log}");
}

#[test]
fn an_unknown_user_is_refused_as_slowly_as_a_known_one() {
    // A cost at which one check takes longer than anything else that a request does.
    let (board, _upstream, _folder) = private_board(&[("board", "carry"), ("other", "carry")], 10);
    let names = ["board", "nobody", "root", ""];
    let mut least = [PATIENCE; 4];
    // By turns and the least of them, so that what else runs on the machine counts for all or for none.
    for n in 0..5 {
        for (name, least) in names.iter().zip(&mut least) {
            let began = Instant::now();
            assert_eq!(log_in(&board, name, &format!("wrong {n}")), 401);
            *least = began.elapsed().min(*least);
        }
    }
    for (name, took) in names.iter().zip(least) {
        assert!(took * 4 > least[0], "{name:?}: {took:?}, a known user: {:?}", least[0]);
        assert_eq!(log_in(&board, name, "carry"), if *name == "board" { 200 } else { 401 });
    }
}

#[test]
fn no_unit_leaves_a_core() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd");
    let units = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let services: Vec<PathBuf> =
        units.filter(|path| path.extension().is_some_and(|of| of == "service")).collect();
    assert!(services.len() >= 2);
    for path in services {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.lines().any(|line| line == "LimitCORE=0"), "{}", path.display());
    }
}
