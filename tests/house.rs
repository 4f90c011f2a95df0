//! The arrows of the house: which room may use which, and which room alone may use a package.
//!
//! Reads the source as text. A comment is no use of a room, so line comments are passed over.

// Where a test cannot go on, it stops.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Every room, and the rooms that it may use. An arrow that is not here is a decision, to be taken here.
const ARROWS: &[(&str, &[&str])] = &[
    ("oci", &[]),
    ("budget", &[]),
    ("auth", &["oci", "budget"]),
    ("sync", &[]),
    ("text", &[]),
    ("clock", &[]),
    ("config", &["oci", "budget", "sync"]),
    ("store", &["auth", "oci", "budget", "clock", "sync"]),
    ("image", &["auth", "oci", "budget", "config", "store", "text"]),
    ("fetch", &["sync", "oci", "budget", "clock", "config"]),
    ("kit", &["sync", "oci", "budget", "clock", "config"]),
    (
        "mirror",
        &["auth", "image", "text", "sync", "oci", "budget", "clock", "config", "store", "fetch", "kit"],
    ),
    ("http", &["auth", "sync", "oci", "budget", "config", "fetch", "mirror"]),
    ("clients", &["oci", "budget", "config"]),
    ("control", &["auth", "image", "text", "oci", "budget", "clock", "config", "store", "fetch", "mirror"]),
    ("doctor", &["text", "oci", "budget", "clock", "config", "fetch", "mirror", "control", "clients"]),
    ("demo", &["sync", "oci", "budget"]),
    ("watch", &["sync", "oci", "budget", "store"]),
    (
        "cli",
        &[
            "text", "oci", "budget", "config", "store", "fetch", "mirror", "http", "control", "demo", "kit",
            "clients", "doctor", "watch",
        ],
    ),
];

/// Packages that one room alone may use.
const KEPT_TO: &[(&str, &[&str])] = &[
    ("heed", &["store"]),
    ("ureq", &["fetch"]),
    ("hyper", &["http"]),
    ("sha2", &["oci"]),
    ("toml", &["config", "clients"]),
    ("clap", &["cli"]),
    ("bcrypt", &["auth"]),
    ("ring", &["kit"]),
];

#[test]
fn rooms_use_only_what_is_below_them() {
    let mut wrong = Vec::new();
    let mut met = BTreeSet::new();
    for (room, path, text) in source() {
        let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
        let Some(allowed) = allowed.get(room.as_str()) else {
            wrong.push(format!("{}: room {room} has no place in ARROWS", path.display()));
            continue;
        };
        for other in rooms_named(&text).into_iter().filter(|other| *other != room) {
            met.insert((room.clone(), other.clone()));
            if !allowed.contains(&other.as_str()) {
                wrong.push(format!("{}: {room} must not use {other}", path.display()));
            }
        }
    }
    assert!(
        met.contains(&("http".into(), "mirror".into())),
        "the search for arrows finds none; it is broken"
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn packages_are_kept_to_their_room() {
    let mut wrong = Vec::new();
    for (package, rooms) in KEPT_TO {
        let mut used = false;
        for (room, path, text) in source() {
            if !mentions(&text, package) {
                continue;
            }
            used = true;
            if !rooms.contains(&room.as_str()) {
                wrong.push(format!("{}: only {rooms:?} may use {package}", path.display()));
            }
        }
        assert!(used, "nothing uses {package}; the search is broken or the list is old");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_says_what_it_owns() {
    for (_, path, _) in source() {
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//!"), "{} does not open with what it owns", path.display());
        let longest = text.lines().count();
        assert!(longest <= 1_200, "{} has {longest} lines: split the room", path.display());
    }
}

#[test]
fn every_dependency_has_its_reason() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let section = manifest.split("[dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
    let reasons = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let names: Vec<&str> = section.lines().filter_map(|line| Some(line.split_once(" =")?.0.trim())).collect();
    assert!(names.contains(&"hyper"));
    for name in names {
        assert!(reasons.contains(&format!("| `{name}` |")), "ARCHITECTURE.md has no line for {name}");
    }
}

#[test]
fn every_environment_is_the_users() {
    // Nothing of one machine or one workplace belongs into the source.
    for (_, path, text) in source() {
        for word in ["/work/", "/root/", "../shared"] {
            assert!(!text.contains(word), "{} mentions {word}", path.display());
        }
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every file of a room: the room, the path, the text without line comments.
fn source() -> Vec<(String, PathBuf, String)> {
    let src = root().join("src");
    let mut files = Vec::new();
    collect(&src, &mut files);
    files.retain(|path| !["main.rs", "lib.rs"].contains(&path.file_name().unwrap().to_str().unwrap()));
    assert!(files.len() > 40, "only {} files found", files.len());
    let entry = |path: PathBuf| {
        let first = path.strip_prefix(&src).unwrap().iter().next().unwrap();
        let room = Path::new(first).file_stem().unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let code =
            text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        (room, path, code)
    };
    files.into_iter().map(entry).collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// The rooms named as `crate::ROOM` or in `use crate::{ROOM...}`.
fn rooms_named(text: &str) -> BTreeSet<String> {
    let known: Vec<&str> = ARROWS.iter().map(|(room, _)| *room).collect();
    let mut named = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        let first: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if known.contains(&first.as_str()) {
            named.insert(first);
        } else if let Some(group) = rest.strip_prefix('{') {
            let words =
                group.split(';').next().unwrap_or("").split(|c: char| !(c.is_alphanumeric() || c == '_'));
            named.extend(words.filter(|word| known.contains(word)).map(str::to_owned));
        }
    }
    named
}

/// Whether a package is used: its name as a word, followed by `::`.
fn mentions(text: &str, package: &str) -> bool {
    text.match_indices(&format!("{package}::")).any(|(at, _)| {
        !text[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
    })
}
