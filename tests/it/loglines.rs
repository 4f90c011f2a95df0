//! What others write into the log and onto the terminal: escaped, one line an event, and never more than is read.

use crate::board::{Board, Folder, image, private_file, pulled, upstream_with};
use larder::demo::upstream::LoginDemand as Login;
use ring::hmac;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

const SECRET: &str = "a secret that the boards of a test share";
const TAG: &str = "/v2/lab/app/manifests/latest?ns=docker.io";

/// What a terminal must not get: a title, a screen that is cleared, a line of its own, text that runs backwards.
const ESCAPES: &str = "\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}2J\r\nERROR [larder] owned\u{202e}dens";

fn is_harmless(text: &str) -> bool {
    !text.chars().any(|c| c.is_control() && c != '\n' || ('\u{202a}'..='\u{202e}').contains(&c))
        && !text.lines().any(|line| line.starts_with("ERROR [larder] owned"))
}

/// The section of a board in a kit.
fn kit(folder: &Folder, peers: &[SocketAddr]) -> String {
    let secret = private_file(folder, "kit.secret", SECRET);
    let peers: Vec<String> = peers.iter().map(|peer| format!("\"{peer}\"")).collect();
    let peers = peers.join(", ");
    format!("[kit]\nsecret_file = \"{}\"\nlisten = \"127.0.0.1:0\"\npeers = [{peers}]\n", secret.display())
}

/// Proves to a board that asks that this is a peer, and answers every question with `answer`.
fn answer_peer(mut socket: TcpStream, answer: &[u8]) -> std::io::Result<()> {
    const GREETING: &[u8] = b"larder-kit-1\n";
    let mac = |key: &hmac::Key, parts: &[&[u8]]| hmac::sign(key, &parts.concat());
    let secret = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let mut greeting = [0; 45];
    socket.read_exact(&mut greeting)?;
    let (mine, mut proof) = ([7; 32], [0; 32]);
    let nonces = [&greeting[13..], &mine].concat();
    socket.write_all(&[GREETING, &mine].concat())?;
    socket.read_exact(&mut proof)?;
    socket.write_all(mac(&secret, &[b"larder kit 1 proof", b"b", &nonces]).as_ref())?;
    let key = mac(&secret, &[b"larder kit 1 session", &nonces]);
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_ref());
    for count in 0u64.. {
        let mut length = [0; 4];
        socket.read_exact(&mut length)?;
        let mut question = vec![0; u32::from_be_bytes(length) as usize + 32];
        socket.read_exact(&mut question)?;
        let seal = mac(&key, &[b"b", &count.to_be_bytes(), answer]);
        let length = u32::try_from(answer.len()).unwrap().to_be_bytes();
        socket.write_all(&[&length, answer, seal.as_ref()].concat())?;
    }
    Ok(())
}

/// A peer that knows the secret and answers every question with `answer`.
fn peer(answer: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let _ = answer_peer(socket.unwrap(), &answer);
        }
    });
    address
}

#[test]
fn a_peers_answer_is_escaped_in_the_log_and_on_the_terminal() {
    let name = serde_json::to_string(ESCAPES).unwrap();
    for answer in [
        format!("{{{name}:1}}"),
        format!("{{\"tag\":{{\"digest\":{name},\"unix\":null,\"complete\":true}}}}"),
        format!("{{\"tag\":{{{name}:{name}}}}}"),
    ] {
        let folder = Folder::new();
        let upstream = upstream_with(&image(1));
        let (honest, hostile) = (Board::new(&upstream, ""), peer(answer.into_bytes()));
        let board = Board::with_url("http://127.0.0.1:1", &kit(&folder, &[hostile]));
        assert_eq!(board.get(TAG).status, 502);
        board.wait_for_log("it sends what is not understood");
        assert!(is_harmless(&board.log()), "{:?}", board.log());
        let state = board.said(&["status"]);
        assert!(state.contains("it sends what is not understood") && is_harmless(&state), "{state:?}");
        let json = board.said(&["status", "--json"]);
        assert!(is_harmless(&json), "{json:?}");
        assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok(), "{json}");
        honest.pull("lab/app", "latest").unwrap();
    }
}

/// Lines of a board's log with `text` in them.
fn count(board: &Board, text: &str) -> usize {
    board.log().lines().filter(|line| line.contains(text) && !line.contains("left out in the last")).count()
}

/// The most lines of one kind since `began`.
fn most(began: Instant) -> usize {
    let refills = began.elapsed().as_millis() / larder::budget::LOG_REFILL.as_millis();
    larder::budget::LOG_BURST as usize + usize::try_from(refills).unwrap() + 1
}

#[test]
fn refusals_that_repeat_are_counted_and_not_all_written() {
    let (upstream, mut board) = pulled(&image(1), "");
    upstream.hang_up();
    let began = Instant::now();
    // A blob that nobody has: the same line from the same place each time.
    let mut stream = TcpStream::connect(board.addr).unwrap();
    for n in 0..300 {
        let path = format!("/v2/lab/app/blobs/sha256:{n:064x}?ns=docker.io");
        write!(stream, "HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        assert!(head.starts_with(b"HTTP/1.1 502"), "{}", String::from_utf8_lossy(&head));
    }
    let written = count(&board, " not answered: ");
    assert!((1..=most(began)).contains(&written), "{written} lines in {:?}", began.elapsed());
    // What others have to say is not lost among them, and how many there were is known before the server ends.
    board.wait_for_log("like it left out in the last");
    board.pull("lab/app", "latest").unwrap();
    board.stop();
    board.wait_for_log("(end of the log)");
    let left_out: usize = board
        .log()
        .lines()
        .filter_map(|line| {
            let (_, note) = line.rsplit_once(" (")?;
            line.contains(" not answered: ").then_some(())?;
            note.strip_suffix(" s)")?.split(" like it").next()?.parse::<usize>().ok()
        })
        .sum();
    assert_eq!(count(&board, " not answered: ") + left_out, 300, "{}", board.log());
}

#[test]
fn logins_that_fail_and_strangers_to_the_kit_fill_no_log() {
    let upstream = upstream_with(&image(1));
    upstream.login(Login::Basic("alice".into(), "s3cret".into()));
    let folder = Folder::new();
    let users = format!("board:{}\n", bcrypt::hash("carry", 4).unwrap());
    let (users, password) =
        (private_file(&folder, "htpasswd", &users), private_file(&folder, "password", "s3cret"));
    let text = format!(
        "username = \"alice\"\npassword_file = \"{}\"\n[auth]\nhtpasswd_file = \"{}\"\n{}",
        password.display(),
        users.display(),
        kit(&folder, &[])
    );
    let mut board = Board::new(&upstream, &text);
    let (began, kit) = (Instant::now(), board.kit_addr());
    for _ in 0..100 {
        let mut caller = TcpStream::connect(kit).unwrap();
        caller.write_all(&[b"larder-kit-1\n" as &[u8], &[7; 64]].concat()).unwrap();
        let _ = caller.read_to_end(&mut Vec::new());
        // "board:wrong"
        assert_eq!(board.request("GET", TAG, &[("Authorization", "Basic Ym9hcmQ6d3Jvbmc=")]).status, 401);
    }
    let most = most(began);
    for text in ["login of \"board\" from 127.0.0.1", "refused peer 127.0.0.1:"] {
        let written = count(&board, text);
        assert!((1..=most).contains(&written), "{written} times {text:?}, at most {most}");
    }
    // Who has the password is let in meanwhile.
    assert_eq!(board.request("GET", TAG, &[("Authorization", "Basic Ym9hcmQ6Y2Fycnk=")]).status, 200);
    board.stop();
    board.wait_for_log("(end of the log)");
    assert_eq!(board.log().matches(" like it left out in the last ").count(), 2, "{}", board.log());
}

#[test]
fn a_command_says_all_that_it_has_to_say() {
    let folder = Folder::new();
    let wrong: String = (0..60).map(|n| format!("[upstream.\"r{n}.example\"]\nusername = \"u\"\n")).collect();
    let path = private_file(&folder, "larder.toml", &wrong);
    let program = std::env::var_os("LARDER").unwrap_or_else(|| env!("CARGO_BIN_EXE_larder").into());
    let mut command = std::process::Command::new(program);
    let output =
        crate::board::output(command.env_clear().arg("--config").arg(path).args(["config", "check"]));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!((0..60).all(|n| said.contains(&format!("r{n}.example"))), "{said}");
}

#[test]
fn a_text_of_the_owners_own_moves_no_cursor_either() {
    let folder = Folder::new();
    let program = || std::env::var_os("LARDER").unwrap_or_else(|| env!("CARGO_BIN_EXE_larder").into());
    let toml = "\"\\u001B]0;owned\\u0007\\u009B2J\\u202Edens\"";
    for (text, word) in [
        (format!("[upstream.\"a.example\"]\nca_file = {toml}\n"), "print"),
        (format!("[auth]\nhtpasswd_file = {toml}\n"), "print"),
        (format!("[upstream.\"a.example\"]\nusername = \"u\"\npassword_file = {toml}\n"), "check"),
        (format!("[fetch]\nbandwidth = {toml}\n"), "check"),
    ] {
        let path = private_file(&folder, "larder.toml", &text);
        let mut command = std::process::Command::new(program());
        let output =
            crate::board::output(command.env_clear().arg("--config").arg(path).args(["config", word]));
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(said.contains("owned") && is_harmless(&said), "{said:?}");
    }
}

#[test]
fn what_is_typed_is_escaped_when_it_is_refused() {
    let folder = Folder::new();
    let board = Board::in_folder(folder, &Board::config("http://127.0.0.1:1", ""), Vec::new());
    let Ok(board) = board else { panic!("the server did not start") };
    let flag = format!("--{ESCAPES}");
    for arguments in [
        &[ESCAPES][..],
        &["ls", &flag],
        &["why", ESCAPES],
        &["pin", "a", ESCAPES],
        &["--data-dir", ESCAPES, "ls"],
    ] {
        let output = board.command(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && !said.is_empty(), "{arguments:?}");
        assert!(is_harmless(&said), "{arguments:?}: {said:?}");
    }
    let help = board.command(&["--help"]);
    assert!(help.status.success() && help.stderr.is_empty());
    assert!(String::from_utf8_lossy(&help.stdout).contains("Usage: larder"));
}
