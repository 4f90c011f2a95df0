//! Replays the corpus of every fuzz target: what the fuzzers have found stays found. Some changes of each entry come with
//! it: `LARDER_STEPS` says how many, `LARDER_SEED` which; a failure prints both.

// Where a test cannot go on, it stops.
#![allow(clippy::unwrap_used)]

#[path = "../it/board/mod.rs"]
mod board;
mod targets;

use board::{Random, from_environment};
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Changes of each entry of the corpus, if `LARDER_STEPS` says nothing.
const CHANGES: u64 = 40;

#[test]
fn names() {
    replay("names");
}

#[test]
fn manifests() {
    replay("manifest");
}

#[test]
fn configurations() {
    replay("config");
}

#[test]
fn requests() {
    replay("request");
}

#[test]
fn upstreams() {
    replay("upstream");
}

#[test]
fn journals() {
    replay("journal");
}

#[test]
fn indexes() {
    replay("index");
}

#[test]
fn kits() {
    replay("kit");
}

#[test]
fn mirrors() {
    replay("mirror");
}

#[test]
fn every_target_has_a_corpus_and_a_fuzzer() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz");
    for (name, _) in targets::TARGETS {
        assert!(here.join("corpus").join(name).read_dir().unwrap().next().is_some(), "{name} has no corpus");
        assert!(here.join(format!("fuzz_targets/{name}.rs")).is_file(), "{name} has no fuzzer");
    }
}

/// A runtime or a pool outlives a panic of one of its threads, and is asked here whether there was one.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::Relaxed);
            usual(info);
        }));
    });
}

fn replay(name: &str) {
    count_panics();
    let (_, target) = targets::TARGETS.into_iter().find(|(target, _)| *target == name).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
    // A store or a whole mirror for each takes longer than the rest.
    let divisor = if matches!(name, "index" | "mirror") { 4 } else { 1 };
    let changes = from_environment("LARDER_STEPS", CHANGES).div_ceil(divisor);
    let seed = from_environment("LARDER_SEED", 1);
    let mut random = Random::of(seed);
    let mut entries: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    let all: Vec<Vec<u8>> = entries.iter().map(|entry| std::fs::read(entry).unwrap()).collect();
    for (entry, data) in entries.iter().zip(&all) {
        println!("{}", entry.display());
        target(data);
        for change in 0..changes {
            let changed = changed(&mut random, data, &all);
            println!(
                "  LARDER_SEED={seed} LARDER_STEPS={}, change {change}: {}",
                changes * divisor,
                changed.escape_ascii()
            );
            target(&changed);
        }
    }
    assert_eq!(PANICS.load(Ordering::Relaxed), 0, "a thread panicked, see above");
}

/// An entry with up to four changes: a byte, a piece cut out, a piece of another entry.
fn changed(random: &mut Random, data: &[u8], all: &[Vec<u8>]) -> Vec<u8> {
    let mut out = data.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(out.len() + 1);
        match random.below(4) {
            0 if at < out.len() => out[at] = random.below(256) as u8,
            1 => out.truncate(at),
            2 => {
                let end = at + random.below(out.len() - at + 1);
                out.drain(at..end);
            }
            _ => {
                let other = &all[random.below(all.len())];
                let begin = random.below(other.len() + 1);
                let end = begin + random.below(other.len() - begin + 1);
                out.splice(at..at, other[begin..end].iter().copied());
            }
        }
    }
    out
}
