//! The tidiness of the house: which room may use which, and which room alone may use a package; how long functions and
//! files may be; which names and words are used. Reads the source as text and links nothing of the library. What reads
//! is in `house/scan.rs` and has tests of its own.
//!
//! What is not tidy yet is listed here by name. A list only gets shorter: who makes a file tidy takes it off, and is
//! told to.

// Where a test cannot go on, it stops.
#![allow(clippy::unwrap_used)]

#[path = "house/scan.rs"]
mod scan;

use scan::{Function, Words, code_of, exported_types, functions, mentions, named_behind, without_tests};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Every room, and the rooms that it may use. An arrow that is not here is a decision, to be taken here.
const ARROWS: &[(&str, &[&str])] = &[
    ("budget", &[]),
    ("clock", &["budget"]),
    ("sync", &["budget"]),
    ("files", &["budget", "sync"]),
    ("text", &[]),
    ("via", &["budget"]),
    ("oci", &["budget"]),
    ("places", &["budget", "sync"]),
    ("documents", &["budget", "sync", "places"]),
    ("auth", &["oci", "budget", "text"]),
    ("config", &["oci", "budget", "files", "sync", "text"]),
    ("decide", &["oci", "config"]),
    ("store", &["oci", "budget", "files", "clock", "sync", "documents", "auth"]),
    ("fetch", &["oci", "budget", "files", "clock", "sync", "text", "via", "documents", "config"]),
    ("kit", &["oci", "budget", "files", "sync", "text", "documents", "places", "config"]),
    ("image", &["oci", "budget", "text", "auth", "config", "decide", "store"]),
    ("report", &["oci", "budget", "clock", "sync", "config", "store", "fetch", "image"]),
    (
        "mirror",
        &[
            "oci",
            "budget",
            "clock",
            "sync",
            "text",
            "via",
            "places",
            "documents",
            "auth",
            "config",
            "decide",
            "store",
            "fetch",
            "kit",
            "image",
            "report",
        ],
    ),
    ("http", &["oci", "budget", "files", "sync", "via", "places", "auth", "config", "report", "mirror"]),
    ("clients", &["oci", "budget", "files", "config"]),
    ("control", &["oci", "budget", "clock", "text", "config", "decide", "store", "fetch", "image", "report"]),
    ("doctor", &["oci", "budget", "files", "clock", "text", "config", "fetch", "control", "clients"]),
    ("demo", &["oci", "sync"]),
    ("watch", &["budget", "sync", "store"]),
    (
        "cli",
        &[
            "oci", "budget", "sync", "text", "config", "store", "fetch", "kit", "report", "mirror", "http",
            "control", "demo", "clients", "doctor", "watch",
        ],
    ),
];

/// What every part of `mirror` may use of it.
const MIRROR_GROUND: [&str; 9] =
    ["access", "context", "counters", "lane", "progress", "pulls", "refusal", "repeats", "single_flight"];

/// The parts of `src/mirror`, and the parts that each may use besides [`MIRROR_GROUND`]. `mod` is the façade: whatever
/// is named as `super::Name` or `crate::mirror::Name` and is no part.
const MIRROR_ARROWS: &[(&str, &[&str])] = &[
    ("live", &["mod"]),
    (
        "mod",
        &[
            "links",
            "maintenance",
            "parts",
            "peers",
            "tag",
            "content",
            "fill",
            "reserve",
            "verify",
            "lists",
            "pull_secrets",
        ],
    ),
    ("links", &["parts"]),
    ("maintenance", &["parts"]),
    (
        "parts",
        &[
            "tag",
            "content",
            "fill",
            "reserve",
            "verify",
            "lists",
            "cursor",
            "questions",
            "proof",
            "pull_secrets",
        ],
    ),
    ("peers", &["tag", "content"]),
    ("lists", &["cursor", "questions"]),
    ("cursor", &[]),
    ("tag", &["content", "questions", "proof"]),
    ("content", &["fill", "reserve", "verify", "questions", "proof"]),
    ("proof", &[]),
    ("fill", &["reserve", "verify"]),
    ("reserve", &[]),
    ("verify", &[]),
    ("questions", &[]),
    ("pull_secrets", &[]),
    ("access", &["context"]),
    ("context", &["counters", "pulls", "refusal"]),
    ("progress", &["counters", "refusal", "repeats"]),
    ("repeats", &[]),
    ("single_flight", &["lane"]),
    ("lane", &[]),
    ("pulls", &["counters"]),
    ("counters", &[]),
    ("refusal", &[]),
];

/// Parts of `mirror` that have no place in [`MIRROR_ARROWS`] yet.
const MIRROR_NOT_YET: &[&str] = &[];

/// Packages that one room alone may use.
const KEPT_TO: &[(&str, &[&str])] = &[
    ("heed", &["store"]),
    ("ureq", &["fetch"]),
    ("hyper", &["http"]),
    ("sha2", &["oci"]),
    ("toml", &["config", "clients"]),
    ("clap", &["cli"]),
    ("bcrypt", &["auth"]),
    ("ring", &["auth", "kit"]),
    ("listenfd", &["watch"]),
    ("humantime", &["config"]),
    ("parse_size", &["config"]),
    ("httpdate", &["fetch"]),
    ("miniz_oxide", &["fetch"]),
];

const FUNCTION_LINES_MAX: usize = 70;
/// Pairs of braces inside each other, the body's own among them.
const FUNCTION_DEPTH_MAX: usize = 6;
const FILE_LINES_MAX: usize = 500;

/// Tables and tests, which may be longer than a file of code.
const LONG_FILES: &[&str] = &["src/budget.rs", "tests.rs"];

/// Files with functions that are too long or nested too deep.
const FUNCTIONS_NOT_YET: &[&str] = &[];
/// Files that are too long.
const FILES_NOT_YET: &[&str] = &[];
/// Names of types that more than one file exports.
const TYPES_NOT_YET: &[&str] = &[];
/// Files with public functions that do not say what makes them fail.
const ERRORS_NOT_YET: &[&str] = &[];
/// Files with words that do not come back.
const WORDS_NOT_YET: &[&str] = &[];

/// Words that do not come back, and what is said in their place: see [`Words::lines_with`].
const WORDS: &[(&str, &str)] = &[
    ("set aside", "quarantine"),
    ("sets aside", "quarantine"),
    ("condemn*", "quarantine, or verify"),
    ("acquit*", "clear"),
    ("doubt*", "verify, or unverified"),
    ("anew", "refetch, rebuild, retry"),
    ("once more", "refetch, rebuild, retry"),
    ("an orderly", "clean shutdown"),
    ("orderly stop", "clean shutdown"),
    ("orderly end", "clean shutdown"),
    ("what was damaged", "corrupt blob"),
    ("beside the request", "in the background"),
    ("what upstream said", "upstream's digest, or answer"),
    ("keep house", "maintenance"),
    ("keeper", "maintenance"),
    ("Desk", "Admin"),
    ("Door", "Authenticator"),
    ("Shelf", "PeerContent"),
    ("Flights", "SingleFlight"),
    ("Landed", "ManifestOutcome"),
    ("go on through", "resume_uncached"),
    ("NotKept", "NotStored"),
    ("patience", "upstream_wait"),
    ("do without", "resolve_offline"),
    ("downloads at a time are taken", "all fetch.streams download slots are in use"),
    ("may know what to serve", "the tag index is being rebuilt; retry"),
    ("say more", "more verbose (repeatable)"),
    ("where everything is kept", "directory for images and state"),
    ("never asked whether content exists", "never consulted for existence"),
    ("cannot be told of it", "the index is behind the journal and the disk is read-only"),
    ("was not written down", "what failed, and why"),
];

/// What is read by people besides the source.
const READ_BY_PEOPLE: [&str; 3] = ["README.md", "ARCHITECTURE.md", "firmware-config/larder.toml"];

#[test]
fn rooms_use_only_what_is_below_them() {
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let mut wrong = Vec::new();
    let mut met = BTreeSet::new();
    for file in source() {
        let room = room_of(&file.name);
        let Some(allowed) = allowed.get(room) else {
            wrong.push(format!("{}: room {room} has no place in ARROWS", file.name));
            continue;
        };
        for other in rooms_named(&file.code).into_iter().filter(|other| other != room) {
            if !allowed.contains(&other.as_str()) {
                wrong.push(format!("{}: {room} must not use {other}", file.name));
            }
            met.insert((room.to_owned(), other));
        }
    }
    assert!(
        met.contains(&("http".into(), "mirror".into())),
        "the search for arrows finds none; it is broken"
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn arrows_make_no_circle() {
    for (table, ground) in [(ARROWS, &[][..]), (MIRROR_ARROWS, &MIRROR_GROUND[..])] {
        for (at, (name, others)) in table.iter().enumerate() {
            for other in *others {
                let place = table.iter().position(|(name, _)| name == other);
                let place = place.unwrap_or_else(|| panic!("{name} may use {other}, which has no place"));
                // ARROWS goes upwards and MIRROR_ARROWS downwards; neither goes both ways.
                let down = table[0].1.is_empty();
                assert!((place < at) == down, "{name} and {other} stand in the wrong order");
            }
            let of_ground = others.iter().all(|other| ground.contains(other));
            assert!(!ground.contains(name) || of_ground, "{name} is ground and uses {others:?}");
        }
    }
}

#[test]
fn parts_of_mirror_use_only_what_is_below_them() {
    let allowed: BTreeMap<&str, &[&str]> = MIRROR_ARROWS.iter().copied().collect();
    let parts: BTreeMap<String, SourceFile> = mirror_files().collect::<Vec<_>>().into_iter().collect();
    let names: BTreeSet<&str> = parts.keys().map(|path| part_of(path)).collect();
    let mut wrong = BTreeMap::<String, Vec<String>>::new();
    for (path, file) in &parts {
        let part = part_of(path);
        let named = parts_named(path, &file.code, &names);
        let Some(allowed) = allowed.get(part) else {
            wrong
                .entry(part.to_owned())
                .or_default()
                .push(format!("{}: {part} has no place in MIRROR_ARROWS", file.name));
            continue;
        };
        for other in named.iter().map(String::as_str).filter(|other| *other != part) {
            let is_ground = MIRROR_GROUND.contains(&other) && !MIRROR_GROUND.contains(&part);
            if !is_ground && !allowed.contains(&other) {
                wrong
                    .entry(part.to_owned())
                    .or_default()
                    .push(format!("{}: {part} must not use {other}", file.name));
            }
        }
    }
    judge("MIRROR_NOT_YET", MIRROR_NOT_YET, &wrong);
}

#[test]
fn parts_of_mirror_are_told_from_the_facade() {
    let names = BTreeSet::from(["mod", "tag", "fill", "lane"]);
    let named = |path, code| parts_named(path, code, &names).into_iter().collect::<Vec<_>>();
    assert_eq!(
        named("tag.rs", "use super::{Mirror, fill::{self, Fill}}; super::lane::x()"),
        ["fill", "lane", "mod"]
    );
    assert_eq!(named("tag/mod.rs", "use super::fill::x; use self::table;"), ["fill"]);
    assert_eq!(
        named("tag/table.rs", "use super::resolve; use super::super::lane; crate::mirror::Mirror"),
        ["lane", "mod"]
    );
    assert_eq!(
        named("mod.rs", "mod tag; use super::store; use tag::Table; fill::run(); other::lane::x()"),
        ["fill", "tag"]
    );
    assert_eq!(part_of("tag/table.rs"), "tag");
    assert_eq!(part_of("fill.rs"), "fill");
}

#[test]
fn packages_are_kept_to_their_room() {
    let mut wrong = Vec::new();
    for (package, rooms) in KEPT_TO {
        let mut used = false;
        for file in source() {
            if !mentions(&file.code, package) {
                continue;
            }
            used = true;
            if !rooms.contains(&room_of(&file.name)) {
                wrong.push(format!("{}: only {rooms:?} may use {package}", file.name));
            }
        }
        assert!(used, "nothing uses {package}; the search is broken or the list is old");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_says_what_it_owns() {
    for file in source() {
        assert!(file.text.starts_with("//!"), "{} does not open with what it owns", file.name);
        let longest = file.text.lines().count();
        assert!(longest <= 1_200, "{} has {longest} lines: split the room", file.name);
    }
}

#[test]
fn files_are_short() {
    let mut wrong = BTreeMap::new();
    for file in source() {
        let lines = file.text.lines().count();
        if lines > FILE_LINES_MAX && !LONG_FILES.iter().any(|end| file.name.ends_with(end)) {
            let what = format!("{}: {lines} lines, and {FILE_LINES_MAX} is the most: split it", file.name);
            wrong.insert(file.name, vec![what]);
        }
    }
    judge("FILES_NOT_YET", FILES_NOT_YET, &wrong);
}

#[test]
fn functions_are_short_and_shallow() {
    let mut wrong = BTreeMap::<String, Vec<String>>::new();
    let mut count = 0;
    for file in all_source() {
        let found = functions(&file.code);
        count += found.len();
        let unwieldy =
            found.iter().filter_map(|function| Some(format!("{}:{}", file.name, unwieldy(function)?)));
        let unwieldy: Vec<String> = unwieldy.collect();
        if !unwieldy.is_empty() {
            wrong.insert(file.name, unwieldy);
        }
    }
    assert!(count > 1_000, "only {count} functions found");
    judge("FUNCTIONS_NOT_YET", FUNCTIONS_NOT_YET, &wrong);
}

/// What is too much about a function.
fn unwieldy(Function { name, line, lines, depth, .. }: &Function) -> Option<String> {
    if *lines > FUNCTION_LINES_MAX {
        Some(format!("{line}: {name} has {lines} lines, and {FUNCTION_LINES_MAX} is the most"))
    } else if *depth > FUNCTION_DEPTH_MAX {
        Some(format!("{line}: {name} is nested {depth} deep, and {FUNCTION_DEPTH_MAX} is the most"))
    } else {
        None
    }
}

#[test]
fn limits_are_kept_to_the_line() {
    let function = |lines: usize, depth: usize| {
        let braces = "{".repeat(depth - 1) + &"}".repeat(depth - 1);
        let text = format!("fn x() {{{}{braces}}}", "\n".repeat(lines - 1));
        unwieldy(&functions(&text)[0])
    };
    assert_eq!(function(70, 6), None);
    assert!(function(71, 6).unwrap().contains("x has 71 lines"));
    assert!(function(70, 7).unwrap().contains("x is nested 7 deep"));
}

#[test]
fn names_of_types_are_unique() {
    let mut places = BTreeMap::<String, BTreeSet<String>>::new();
    for file in source() {
        for name in exported_types(&without_tests(&file.code)) {
            places.entry(name).or_default().insert(file.name.clone());
        }
    }
    assert!(places.len() > 100, "only {} types found", places.len());
    places.retain(|_, files| files.len() > 1);
    let wrong = places.into_iter().map(|(name, files)| {
        let files = files.into_iter().collect::<Vec<_>>().join(", ");
        let what = format!("{name} is a type of {files}: give each a name of its own");
        (name, vec![what])
    });
    judge("TYPES_NOT_YET", TYPES_NOT_YET, &wrong.collect());
}

#[test]
fn public_functions_say_what_makes_them_fail() {
    let mut wrong = BTreeMap::new();
    for file in source().into_iter().filter(|file| !file.name.ends_with("/tests.rs")) {
        let lines = scan::without_errors_section(&file.text);
        let what = |line: &usize| format!("{}:{line}: the doc comment has no section `# Errors`", file.name);
        if !lines.is_empty() {
            wrong.insert(file.name.clone(), lines.iter().map(what).collect());
        }
    }
    judge("ERRORS_NOT_YET", ERRORS_NOT_YET, &wrong);
}

#[test]
fn words_that_do_not_come_back() {
    let mut texts: Vec<(String, String)> =
        all_source().into_iter().map(|file| (file.name, file.text)).collect();
    for name in READ_BY_PEOPLE {
        texts.push((name.to_owned(), std::fs::read_to_string(root().join(name)).unwrap()));
    }
    let mut wrong = BTreeMap::<String, Vec<String>>::new();
    for (name, text) in &texts {
        let words = Words::of(text);
        for (phrase, instead) in WORDS {
            for line in words.lines_with(phrase) {
                let what = format!("{name}:{line}: not \"{phrase}\" but {instead}");
                wrong.entry(name.clone()).or_default().push(what);
            }
        }
    }
    judge("WORDS_NOT_YET", WORDS_NOT_YET, &wrong);
}

/// Ends the test if a file, or a name, that is not in a list is wrong, or one that is in the list is not.
fn judge(list: &str, not_yet: &[&str], wrong: &BTreeMap<String, Vec<String>>) {
    println!("{list}: {} left", not_yet.len());
    let problems = problems(list, not_yet, wrong);
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

fn problems(list: &str, not_yet: &[&str], wrong: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let new = wrong.iter().filter(|(name, _)| !not_yet.contains(&name.as_str()));
    let mut problems: Vec<String> = new.flat_map(|(_, what)| what.clone()).collect();
    let tidy = not_yet.iter().filter(|name| !wrong.contains_key(**name));
    problems.extend(tidy.map(|name| format!("{name} needs no exception any more: take it off {list}")));
    problems
}

#[test]
fn lists_only_get_shorter() {
    let wrong = BTreeMap::from([("a".to_owned(), vec!["a:1".to_owned(), "a:2".to_owned()])]);
    assert_eq!(problems("L", &["a"], &wrong), [] as [&str; 0]);
    assert_eq!(problems("L", &[], &wrong), ["a:1", "a:2"]);
    assert_eq!(problems("L", &["a", "b"], &wrong), ["b needs no exception any more: take it off L"]);
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
    for file in source() {
        // Line comments are no use of anything.
        let code = file.text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let code = code.collect::<Vec<_>>().join("\n");
        for word in ["/work/", "/root/", "../shared"] {
            assert!(!code.contains(word), "{} mentions {word}", file.name);
        }
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A file of the source.
#[derive(Clone)]
struct SourceFile {
    /// From the top of the repository.
    name: String,
    text: String,
    /// The text without comments and strings.
    code: String,
}

/// Every file of a room.
fn source() -> Vec<SourceFile> {
    let mut files = all_source();
    files.retain(|file| !["src/main.rs", "src/lib.rs"].contains(&file.name.as_str()));
    assert!(files.len() > 40, "only {} files found", files.len());
    files
}

/// Read once for all tests.
fn all_source() -> Vec<SourceFile> {
    static FILES: OnceLock<Vec<SourceFile>> = OnceLock::new();
    FILES.get_or_init(read_source).clone()
}

fn read_source() -> Vec<SourceFile> {
    let mut paths = Vec::new();
    collect(&root().join("src"), &mut paths);
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        SourceFile { name, code: code_of(&text), text }
    };
    paths.into_iter().map(read).collect()
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

/// `src/ROOM/FILE.rs` or `src/ROOM.rs`.
fn room_of(name: &str) -> &str {
    let name = name.strip_prefix("src/").unwrap_or(name);
    name.split('/').next().unwrap_or(name).trim_end_matches(".rs")
}

#[test]
fn a_room_is_a_folder_or_a_file() {
    assert_eq!((room_of("src/store/index/mod.rs"), room_of("src/sync.rs")), ("store", "sync"));
}

/// The rooms named as `crate::ROOM` or in `use crate::{ROOM...}`.
fn rooms_named(code: &str) -> BTreeSet<String> {
    let mut named = named_behind(code, "crate::");
    named.retain(|name| ARROWS.iter().any(|(room, _)| room == name));
    named
}

/// The files of `mirror`, by their path in it. Modules of tests may use what they like.
fn mirror_files() -> impl Iterator<Item = (String, SourceFile)> {
    source().into_iter().filter_map(|mut file| {
        let path = file.name.strip_prefix("src/mirror/")?.to_owned();
        file.code = without_tests(&file.code);
        (!path.ends_with("tests.rs")).then_some((path, file))
    })
}

/// The part that a file of `mirror` belongs to.
fn part_of(path: &str) -> &str {
    path.split('/').next().unwrap_or(path).trim_end_matches(".rs")
}

/// The parts of `mirror` that a file of it names. What is named of `mirror` and is no part is the façade, `mod`.
fn parts_named(path: &str, code: &str, parts: &BTreeSet<&str>) -> BTreeSet<String> {
    if path == "mod.rs" {
        // Its own modules need no path.
        return parts.iter().filter(|part| mentions(code, part)).map(|part| (*part).to_owned()).collect();
    }
    let is_inside = path.contains('/') && !path.ends_with("/mod.rs");
    let above = if is_inside { "super::super::" } else { "super::" };
    let mut named = named_behind(code, above);
    named.extend(named_behind(code, "crate::mirror::"));
    named.remove("super");
    named
        .into_iter()
        .map(|name| if parts.contains(name.as_str()) { name } else { "mod".to_owned() })
        .collect()
}
