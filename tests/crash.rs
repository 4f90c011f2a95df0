//! The crash laboratory: a session is recorded down to each write, flush and rename, and cut at generated points, with
//! what was not flushed dropped, reordered and torn at 512 bytes. Whatever is left, the server starts, no byte is wrong,
//! and what was acknowledged is there.
//!
//! `LARDER_CRASHES` says how many power cuts are made up (150 if it does not). No two sessions are the same to the last
//! write, so a failure leaves the recording and the disk behind and says where: `LARDER_RECORDING` with `LARDER_SEED` has
//! the same cuts again.

// Where a test cannot go on, it stops.
#![allow(clippy::unwrap_used)]

#[path = "it/board/mod.rs"]
mod board;

use board::io_faults::{self, Change, Cut};
use board::{Board, Folder, PATIENCE, PLATFORM, Random};
use larder::demo::client;
use larder::demo::image::SampleImage as Image;
use larder::demo::upstream::FaultyRegistry as Upstream;
use larder::oci::Digest;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

const REPOSITORIES: u64 = 6;
/// Room for four or five of the images.
const DISK_MAX: u64 = 420_000;

fn picture(repository: u64, version: u64) -> Image {
    Image::multi_arch(repository * 100 + version, &[70_000 + repository as usize * 700, 3_000])
}

/// What the owner or a client was told, and how long the log was by then.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    /// All of a version has been given to a client.
    Pulled(u64, u64),
    Pinned(u64),
    Unpinned(u64),
    /// The tag is forgotten.
    Removed(u64),
}

struct Session {
    changes: Vec<Change>,
    told: Vec<(u64, Told)>,
    /// Where the log ends after each eviction or removal in a repository.
    gone: Vec<(u64, u64)>,
    /// The same for what upstream said of its tag.
    seen: Vec<(u64, u64)>,
}

impl Session {
    fn new(changes: Vec<Change>, told: Vec<(u64, Told)>) -> Session {
        let (mut gone, mut seen) = (Vec::new(), Vec::new());
        for change in changes.iter().filter(|change| change.path == "journal") {
            let text = String::from_utf8_lossy(&change.data);
            let goes = text.contains("\"evicted\":") || text.contains("\"removed\":");
            for repository in 0..REPOSITORIES {
                if text.contains(&format!("\"repository\":\"docker.io/lab/{repository}\"")) {
                    if goes {
                        gone.push((change.end, repository));
                    } else if text.contains("\"seen\":") {
                        seen.push((change.end, repository));
                    }
                }
            }
        }
        Session { changes, told, gone, seen }
    }

    /// Reads a recording.
    fn read(folder: &Path) -> Session {
        let told = std::fs::read_to_string(folder.join("told")).expect("LARDER_RECORDING names a recording");
        let told = told.lines().map(|line| {
            let mut words = line.split(' ');
            let mut number = || words.next().unwrap().parse().unwrap();
            let (at, kind, repository, version): (u64, u64, u64, u64) =
                (number(), number(), number(), number());
            let told = match kind {
                0 => Told::Pulled(repository, version),
                1 => Told::Pinned(repository),
                2 => Told::Unpinned(repository),
                _ => Told::Removed(repository),
            };
            (at, told)
        });
        Session::new(io_faults::changes(&folder.join("changes")), told.collect())
    }
}

/// Puts what was told beside the changes.
fn write_told(folder: &Path, told: &[(u64, Told)]) {
    let line = |(at, told): &(u64, Told)| match told {
        Told::Pulled(repository, version) => format!("{at} 0 {repository} {version}\n"),
        Told::Pinned(repository) => format!("{at} 1 {repository} 0\n"),
        Told::Unpinned(repository) => format!("{at} 2 {repository} 0\n"),
        Told::Removed(repository) => format!("{at} 3 {repository} 0\n"),
    };
    std::fs::write(folder.join("told"), told.iter().map(line).collect::<String>()).unwrap();
}

struct Recorder<'a> {
    board: Board,
    upstream: &'a Upstream,
    log: std::path::PathBuf,
    told: Vec<(u64, Told)>,
}

impl Recorder<'_> {
    fn note(&mut self, what: Told) {
        self.told.push((std::fs::metadata(&self.log).unwrap().len(), what));
    }

    fn pull(&mut self, repository: u64, version: u64) {
        let pulled = self.board.pull(&format!("lab/{repository}"), "latest").unwrap();
        assert_eq!(pulled.digest, picture(repository, version).root);
        // Kept: what is passed through for want of room is no promise.
        if board::needed(&picture(repository, version)).iter().all(|part| self.board.has_blob(part)) {
            self.note(Told::Pulled(repository, version));
        }
    }

    fn push(&self, repository: u64, version: u64) {
        self.upstream.push(&format!("lab/{repository}"), "latest", &picture(repository, version));
    }

    fn owner(&mut self, command: &str, repository: u64) {
        self.board.said(&[command, &format!("docker.io/lab/{repository}")]);
        self.note(match command {
            "pin" => Told::Pinned(repository),
            "unpin" => Told::Unpinned(repository),
            _ => Told::Removed(repository),
        });
    }
}

/// A life with pulls, moves of tags, pins, evictions, a removal, an orderly restart and a kill.
fn record(upstream: &Upstream, recording: &Path) -> Session {
    let folder = Folder::new();
    let log = recording.join("changes");
    let root = folder.0.join("data");
    let environment = io_faults::environment(&root, &[("LARDER_DISK_LOG", log.display().to_string())]);
    let board = Board::in_folder(folder, &config(&upstream.url()), environment);
    let board = board.unwrap_or_else(|(log, _)| panic!("the server does not start:\n{log}"));
    let mut life = Recorder { board, upstream, log: log.clone(), told: Vec::new() };
    for repository in 0..REPOSITORIES {
        life.push(repository, 0);
    }
    life.pull(0, 0);
    life.owner("pin", 0);
    life.pull(1, 0);
    life.push(0, 1);
    life.pull(0, 1);
    life.pull(2, 0);
    life.board.stop();
    life.board.start_again();
    life.pull(3, 0);
    life.owner("rm", 2);
    for repository in [4, 5, 1, 2] {
        life.pull(repository, 0);
    }
    life.push(4, 1);
    life.pull(4, 1);
    life.owner("pin", 4);
    life.board.kill();
    life.board.start_again();
    life.board.wait_until("the index", || life.board.get("/readyz").status == 200);
    for (repository, version) in [(5, 0), (4, 1), (0, 1), (3, 0)] {
        life.pull(repository, version);
    }
    life.owner("unpin", 4);
    life.push(3, 1);
    life.pull(3, 1);
    life.board.stop();
    write_told(recording, &life.told);
    Session::read(recording)
}

fn config(url: &str) -> String {
    format!(
        "platforms = [\"{PLATFORM}\"]\n{}[tags]\nresolve_deadline = \"500ms\"\n[disk]\nmin_free = \"1MiB\"\nmax = \"{DISK_MAX}\"\n[upstream.\"docker.io\"]\nurl = \"{url}\"\n",
        board::FETCH
    )
}

/// What must hold of one repository after a cut.
#[derive(Debug, Default)]
struct Promise {
    /// The version that was given out last, and every one that ever was.
    last: Option<u64>,
    ever: Vec<u64>,
    /// It must be there, because it was pinned after that, or nothing made it go.
    firm: bool,
    pinned: bool,
}

/// What was promised by the time of the cut. `upto`: the changes that had happened.
fn promises(session: &Session, upto: usize) -> BTreeMap<u64, Promise> {
    let by = if upto == 0 { 0 } else { session.changes[upto - 1].end };
    let mut promises: BTreeMap<u64, Promise> = BTreeMap::new();
    for repository in 0..REPOSITORIES {
        let promise = promises.entry(repository).or_default();
        for (at, told) in session.told.iter().take_while(|(at, _)| *at <= by) {
            match told {
                Told::Pulled(of, version) if *of == repository => {
                    promise.last = Some(*version);
                    promise.ever.push(*version);
                    promise.firm = true;
                }
                Told::Pinned(of) if *of == repository => promise.pinned = true,
                Told::Unpinned(of) if *of == repository => promise.pinned = false,
                Told::Removed(of) if *of == repository => {
                    // Until it was pulled again there is nothing, and that is promised too.
                    (promise.last, promise.firm) = (None, true);
                    promise.ever.clear();
                }
                _ => {}
            }
            // Whatever was not pinned may have gone since, or be about to.
            let went = |&(end, of): &(u64, u64)| of == repository && end > *at && end <= by;
            if session.gone.iter().any(went) && !promise.pinned {
                promise.firm = false;
            }
            // What was removed may be about to come again.
            if promise.last.is_none() && session.seen.iter().any(went) {
                promise.firm = false;
            }
        }
    }
    promises
}

/// Starts on what a cut left and looks whether every promise is kept; what was found, in a word for each repository.
fn check(session: &Session, upto: usize, folder: Folder, url: &str, versions: &BTreeMap<Digest, (u64, u64)>) {
    let data = folder.0.join("data");
    board::check_blobs(&data);
    let mut board = Board::in_folder(folder, &config(url), Vec::new())
        .unwrap_or_else(|(log, _)| panic!("the server does not start:\n{log}"));
    board.wait_until("the index", || board.get("/readyz").status == 200);
    for (repository, promise) in promises(session, upto) {
        let name = format!("lab/{repository}");
        let tag = board.head(&format!("/v2/{name}/manifests/latest?ns=docker.io"));
        if tag.status != 200 {
            assert_eq!(tag.status, 502);
            assert!(!(promise.firm && promise.last.is_some()), "{name} is lost: {promise:?}");
            continue;
        }
        // What is on offer is whole.
        let pulled = client::pull(board.addr, Some("docker.io"), &name, "latest", PLATFORM, PATIENCE)
            .unwrap_or_else(|e| panic!("half of {name} was on offer: {e}, {promise:?}"));
        let (of, version) = versions[&pulled.digest];
        assert_eq!(of, repository, "{name} has become another image");
        if promise.firm {
            assert!(
                promise.last.is_some_and(|last| version >= last),
                "{name} is served at version {version}: {promise:?}"
            );
        }
    }
    board.check_blobs();
    board.stop();
}

#[test]
fn whatever_a_power_cut_leaves_every_promise_is_kept() {
    let crashes = board::from_environment("LARDER_CRASHES", 150);
    let seed = Random::seeded();
    let upstream = board::upstream_of_this_process();
    let recording = Folder::new();
    let session = match std::env::var_os("LARDER_RECORDING") {
        Some(earlier) => Session::read(Path::new(&earlier)),
        None => record(&upstream, &recording.0),
    };
    upstream.hang_up();
    let mut versions = BTreeMap::new();
    for repository in 0..REPOSITORIES {
        for version in 0..2 {
            versions.insert(picture(repository, version).root, (repository, version));
        }
    }
    let flushes = session.changes.iter().filter(|change| matches!(change.what, b'S' | b'D')).count();
    let evictions = session.gone.len();
    println!(
        "{} changes, {flushes} flushes, {evictions} images went, {} acknowledgements",
        session.changes.len(),
        session.told.len()
    );
    assert!(session.told.len() >= 15 && evictions > 0, "the session is too dull");
    let url = upstream.url();
    let checked = || cut_often(&session, &seed, crashes, &url, &versions, true);
    let lost = std::panic::catch_unwind(std::panic::AssertUnwindSafe(checked)).unwrap_or_else(|why| {
        println!("the recording is in {}", recording.0.display());
        std::mem::forget(recording);
        std::panic::resume_unwind(why)
    });
    println!("{crashes} power cuts, {lost} sectors lost: every promise was kept");

    // A laboratory that finds nothing must be able to: were flushes of no effect, promises would be broken.
    let careless: Vec<Change> =
        session.changes.iter().filter(|change| !matches!(change.what, b'S' | b'D')).cloned().collect();
    let careless = careless.into_iter().map(|change| Change { synced: false, ..change }).collect();
    let careless = Session::new(careless, session.told.clone());
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let found = std::panic::catch_unwind(|| cut_often(&careless, &seed, 100, &url, &versions, false));
    std::panic::set_hook(quiet);
    assert!(found.is_err(), "100 power cuts of a disk that ignores flushes broke no promise");
}

/// Makes power cuts up and checks each; how many sectors were lost in all. `keep`: a disk that broke a promise is left
/// behind.
fn cut_often(
    session: &Session,
    seed: &Random,
    crashes: u64,
    url: &str,
    versions: &BTreeMap<Digest, (u64, u64)>,
    keep: bool,
) -> u64 {
    let (next, lost) = (AtomicU64::new(0), AtomicU64::new(0));
    let counts = Mutex::new(BTreeMap::<String, u64>::new());
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= crashes {
                return;
            }
            // Each cut has dice of its own, so that it can be had again alone.
            let mut random = seed.fork(number);
            let upto = random.below(session.changes.len() + 1);
            let cut = if random.below(2) == 0 { Cut::Ordered } else { Cut::Loose };
            let crash = io_faults::after_a_cut(&session.changes, upto, cut, &mut random);
            lost.fetch_add(crash.lost_sectors, Ordering::Relaxed);
            let folder = Folder::new();
            crash.write(&folder.0.join("data"));
            let checked = std::panic::AssertUnwindSafe(|| check(session, upto, folder, url, versions));
            if let Err(why) = std::panic::catch_unwind(checked) {
                if keep {
                    let kept = Folder::new();
                    crash.write(&kept.0.join("data"));
                    println!("cut {number} behind change {upto}, {cut:?}, is in {}", kept.0.display());
                    std::mem::forget(kept);
                }
                next.store(crashes, Ordering::Relaxed);
                std::panic::resume_unwind(why);
            }
            *counts.lock().unwrap().entry(format!("{cut:?}")).or_default() += 1;
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(work);
        }
    });
    let counts = counts.into_inner().unwrap();
    println!("{counts:?}");
    assert_eq!(counts.values().sum::<u64>(), crashes);
    lost.into_inner()
}
