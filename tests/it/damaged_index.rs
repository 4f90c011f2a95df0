//! An index that the medium damaged: no process ends by a signal, nothing is answered wrong, and what is made again is
//! sound. So for the server, and for every command while it is stopped.
//!
//! `LARDER_DAMAGES` says how often each kind of damage is done (6 times if it does not; from 100 on each command is tried on
//! each), `LARDER_SEED` repeats a run.

use crate::board::{self, Board, Random, image, upstream_with};
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Output;
use std::time::Instant;

const TAGS: u64 = 12;
/// From so many damages of each kind on each command is tried on each.
const EACH_COMMAND_FROM: usize = 100;
const SECTOR: usize = 512;
const PAGE: usize = 4096;
/// Digest by tag.
type Expected = BTreeMap<String, String>;
/// What damages a file.
type Damage = fn(&mut Vec<u8>, &mut Random);

const KINDS: [(&str, Damage); 9] = [
    ("some bytes", |bytes, random| {
        for _ in 0..=random.below(16) {
            let at = random.below(bytes.len());
            bytes[at] ^= 1 + random.below(255) as u8;
        }
    }),
    ("a sector zeroed", |bytes, random| {
        let at = random.below(bytes.len() / SECTOR) * SECTOR;
        bytes[at..at + SECTOR].fill(0);
    }),
    ("a sector random", |bytes, random| {
        let at = random.below(bytes.len() / SECTOR) * SECTOR;
        noise(&mut bytes[at..at + SECTOR], random);
    }),
    ("a page zeroed", |bytes, random| {
        let at = random.below(bytes.len() / PAGE) * PAGE;
        bytes[at..at + PAGE].fill(0);
    }),
    ("a page random", |bytes, random| {
        let at = random.below(bytes.len() / PAGE) * PAGE;
        noise(&mut bytes[at..at + PAGE], random);
    }),
    ("half of it", |bytes, random| {
        let half = bytes.len() / 2;
        let at = random.below(half);
        noise(&mut bytes[at..at + half], random);
    }),
    ("truncated", |bytes, random| bytes.truncate(random.below(bytes.len()))),
    // A write that went to a wrong place.
    ("a page for another", |bytes, random| {
        let from = random.below(bytes.len() / PAGE) * PAGE;
        let to = random.below(bytes.len() / PAGE) * PAGE;
        bytes.copy_within(from..from + PAGE, to);
    }),
    // The header of a page: its type, and where its free space is.
    ("a page's header", |bytes, random| {
        let at = random.below(bytes.len() / PAGE) * PAGE;
        noise(&mut bytes[at + 8..at + 16], random);
    }),
];

fn noise(bytes: &mut [u8], random: &mut Random) {
    bytes.iter_mut().for_each(|byte| *byte = random.below(256) as u8);
}

/// Every command that works on a stopped server's store, what looks before what changes.
const COMMANDS: [&[&str]; 8] = [
    &["ls"],
    &["why", "docker.io/lab/app:v3"],
    &["history", "docker.io/lab/app:latest", "--json"],
    &["verify"],
    &["status"],
    &["pin", "docker.io/lab/app:v1"],
    &["unpin", "docker.io/lab/app:v1"],
    &["rollback", "docker.io/lab/app:latest"],
];

/// What a command prints, but for what changes by itself.
fn said(command: &[&str], output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let free = |line: &&str| !(command[0] == "status" && line.starts_with("disk "));
    format!("{:?} {}", output.status.code(), text.lines().filter(free).collect::<Vec<_>>().join("\n"))
}

/// The index's files as a clean shutdown left them.
struct Sound {
    data: Vec<u8>,
    fingerprint: Option<Vec<u8>>,
    journal: Vec<u8>,
}

impl Sound {
    fn read(data_dir: &Path) -> Sound {
        Sound {
            data: std::fs::read(data_dir.join("index/data.mdb")).unwrap(),
            fingerprint: std::fs::read(data_dir.join("index/fingerprint")).ok(),
            journal: std::fs::read(data_dir.join("journal")).unwrap(),
        }
    }

    /// Puts everything back, with `data` for the index.
    fn put(&self, data_dir: &Path, data: &[u8]) {
        std::fs::write(data_dir.join("index/data.mdb"), data).unwrap();
        std::fs::write(data_dir.join("journal"), &self.journal).unwrap();
        if let Some(fingerprint) = &self.fingerprint {
            std::fs::write(data_dir.join("index/fingerprint"), fingerprint).unwrap();
        }
    }
}

/// A board with [`TAGS`] images whose server is stopped, and its upstream gone.
fn stopped_board() -> (Board, Expected) {
    let upstream = upstream_with(&image(0));
    for seed in 1..TAGS {
        upstream.push("lab/app", &format!("v{seed}"), &image(seed));
    }
    let mut board = Board::new(&upstream, "");
    let mut expected = BTreeMap::new();
    for seed in 0..TAGS {
        let tag = if seed == 0 { "latest".to_owned() } else { format!("v{seed}") };
        board.pull("lab/app", &tag).unwrap();
        expected.insert(tag, image(seed).root.to_string());
    }
    upstream.hang_up();
    board.stop();
    (board, expected)
}

#[test]
fn a_damaged_index_ends_no_process_and_gives_no_wrong_answer() {
    let rounds = board::from_environment("LARDER_DAMAGES", 6) as usize;
    let mut random = Random::seeded();
    let (mut board, expected) = stopped_board();
    let sound = Sound::read(&board.data());
    let answers = COMMANDS.map(|command| {
        sound.put(&board.data(), &sound.data);
        said(command, &board.command(command))
    });
    let (mut deaths, mut commands, mut rebuilt) = (BTreeMap::<String, u32>::new(), 0, 0);
    for round in 0..rounds * KINDS.len() {
        let (kind, damage) = KINDS[round % KINDS.len()];
        let mut damaged = sound.data.clone();
        damage(&mut damaged, &mut random);

        // In turn; where much time is given, each command meets each damage.
        let turn = (round / KINDS.len() + round) % COMMANDS.len();
        for at in (0..COMMANDS.len()).filter(|at| rounds >= EACH_COMMAND_FROM || *at == turn) {
            sound.put(&board.data(), &damaged);
            let output = board.command(COMMANDS[at]);
            commands += 1;
            if let Some(signal) = output.status.signal() {
                *deaths.entry(format!("{}: signal {signal}", COMMANDS[at][0])).or_default() += 1;
                continue;
            }
            let log = String::from_utf8_lossy(&output.stderr);
            assert_eq!(said(COMMANDS[at], &output), answers[at], "{kind}, {:?}:\n{log}", COMMANDS[at]);
            rebuilt += u32::from(log.contains("index rebuilt"));
        }

        sound.put(&board.data(), &damaged);
        let began = Instant::now();
        while !serves(&mut board, &expected) {
            *deaths.entry(format!("serve: {kind}")).or_default() += 1;
            assert!(began.elapsed() < board::PATIENCE, "{kind}: the server does not stay up");
        }
        board.stop();
        // What was made again is sound: the next start has nothing to do.
        if round % 8 == 0 {
            board.start_again();
            assert!(
                !board.log().contains("rebuilt") && !board.log().contains("it was read"),
                "{}",
                board.log()
            );
            assert!(expected.iter().all(|(tag, digest)| answers_with(&board, tag) == Some(digest.clone())));
            board.stop();
        }
    }
    board.check_blobs();
    println!(
        "{rounds} of each kind; {rebuilt} of {commands} commands rebuilt; ended by a signal: {deaths:?}"
    );
    assert!(deaths.is_empty(), "{deaths:?}");
    assert!(rebuilt > 0, "the damage was none");
}

/// Starts the server and asks for every tag until all are answered; `false` if it died. A wrong answer ends the test.
fn serves(board: &mut Board, expected: &Expected) -> bool {
    if board.try_start_again().is_err() {
        return false;
    }
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < board::PATIENCE, "not back in service:\n{}", board.log());
        let mut answered = 0;
        for (tag, digest) in expected {
            let Some(answer) = board.try_head(&format!("/v2/lab/app/manifests/{tag}?ns=docker.io")) else {
                return false;
            };
            match answer.status {
                200 => {
                    assert_eq!(answer.header("docker-content-digest"), Some(digest.as_str()), "{tag}");
                    answered += 1;
                }
                // It is being made again, or will be.
                500 | 503 => {}
                other => panic!("{tag}: {other}\n{}", board.log()),
            }
        }
        if answered == expected.len() {
            return true;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

fn answers_with(board: &Board, tag: &str) -> Option<String> {
    let answer = board.head(&format!("/v2/lab/app/manifests/{tag}?ns=docker.io"));
    (answer.status == 200).then(|| answer.header("docker-content-digest").map(str::to_owned)).flatten()
}

#[test]
fn an_index_that_a_power_cut_left_is_read_and_not_rebuilt() {
    let (mut board, expected) = stopped_board();
    board.start_again();
    let all = |board: &Board| {
        let right = |(tag, digest): (&String, &String)| answers_with(board, tag).as_ref() == Some(digest);
        expected.iter().all(right)
    };
    assert!(all(&board) && !board.log().contains("it was read"), "{}", board.log());
    board.kill();
    board.start_again();
    assert!(all(&board), "at once:\n{}", board.log());
    let log = board.log();
    assert!(log.contains("it was read in") && !log.contains("rebuilt"), "{log}");
    assert!(!board.data().join("index.new").exists());
    board.stop();
    board.start_again();
    assert!(all(&board) && !board.log().contains("it was read"), "{}", board.log());
}

#[test]
fn a_look_at_a_stopped_servers_store_writes_nothing_to_its_index() {
    let (board, _) = stopped_board();
    let times = || {
        ["data.mdb", "fingerprint"].map(|name| {
            let path = board.data().join("index").join(name);
            (std::fs::metadata(&path).unwrap().modified().unwrap(), std::fs::read(path).unwrap())
        })
    };
    let before = times();
    for command in &COMMANDS[..5] {
        assert!(board.command(command).status.success());
    }
    assert!(times() == before);
    board.said(COMMANDS[5]);
    assert!(times()[1].1 != before[1].1, "a change has a fingerprint of its own");
    let log = board.command(&["ls"]).stderr;
    assert!(!String::from_utf8_lossy(&log).contains("it was read"));
}

#[test]
fn lmdbs_lock_file_and_what_lies_beside_the_index_may_be_anything() {
    let mut random = Random::seeded();
    let (mut board, expected) = stopped_board();
    let answer = said(COMMANDS[0], &board.command(COMMANDS[0]));
    for name in ["index/lock.mdb", "index/fingerprint", "index/fingerprint.new", "index.new"] {
        for long in [0, 100, 40_000] {
            let mut content = vec![0; long];
            noise(&mut content, &mut random);
            std::fs::write(board.data().join(name), &content).unwrap();
            let output = board.command(COMMANDS[0]);
            assert_eq!(said(COMMANDS[0], &output), answer, "{name}: {long}");
            std::fs::write(board.data().join(name), &content).unwrap();
            assert!(serves(&mut board, &expected), "{name}: {long}\n{}", board.log());
            board.stop();
        }
    }
}
