//! An index that the medium damaged: back in service, and not one wrong answer.
//!
//! `LARDER_ROUNDS` says how often each kind of damage is done (12 times if it does not), `LARDER_SEED` repeats a run.

use crate::board::{self, Board, image, upstream_with};
use std::collections::BTreeMap;
use std::time::Instant;

const TAGS: u64 = 12;
/// Starts until the index has been made again, at most: two that it kills, and one.
const STARTS_MAX: usize = 3;

#[test]
fn a_damaged_index_gives_no_wrong_answer_and_is_made_again() {
    let rounds = board::from_environment("LARDER_ROUNDS", 12);
    let mut random = board::Random::seeded();
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
    let file = board.data().join("index/data.mdb");
    let sound = std::fs::read(&file).unwrap();
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    for round in 0..rounds * 4 {
        let mut damaged = sound.clone();
        let kind = match round % 4 {
            0 => {
                let at = random.below(damaged.len() / 512) * 512;
                damaged[at..at + 512].fill(0);
                "512 bytes zeroed"
            }
            1 => {
                let at = random.below(damaged.len() / 512) * 512;
                damaged[at..at + 512].iter_mut().for_each(|byte| *byte = random.below(256) as u8);
                "512 random bytes"
            }
            2 => {
                damaged.truncate(random.below(damaged.len()));
                "truncated"
            }
            _ => {
                let at = random.below(damaged.len() / 4096) * 4096;
                damaged[at..at + 4096].fill(0);
                "4 KiB zeroed"
            }
        };
        std::fs::write(&file, &damaged).unwrap();
        let began = Instant::now();
        let mut deaths = 0;
        while !serves(&mut board, &expected) {
            deaths += 1;
            *counts.entry("deaths").or_default() += 1;
            assert!(deaths < STARTS_MAX, "{kind}: the server does not stay up");
        }
        assert!(began.elapsed() < board::PATIENCE, "{kind}: {:?}", began.elapsed());
        board.stop();
        // What was made again is sound: the next start has nothing to do.
        board.start_again();
        assert!(!board.log().contains("rebuilt"), "{kind}: {}", board.log());
        assert!(serves_now(&board, &expected), "{kind}");
        board.stop();
        *counts.entry(kind).or_default() += 1;
    }
    board.check_blobs();
    println!("{counts:?}");
}

/// Starts the server and asks for every tag until all are answered; `false` if it died. A wrong answer ends the test.
fn serves(board: &mut Board, expected: &BTreeMap<String, String>) -> bool {
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

fn serves_now(board: &Board, expected: &BTreeMap<String, String>) -> bool {
    expected.iter().all(|(tag, digest)| {
        let answer = board.head(&format!("/v2/lab/app/manifests/{tag}?ns=docker.io"));
        answer.status == 200 && answer.header("docker-content-digest") == Some(digest)
    })
}
