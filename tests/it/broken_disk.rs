//! A disk on which one change fails, or all from one on: full, read-only, failing. Each change that a life makes is failed
//! in turn. The process never dies of it, clients get every byte, nothing wrong is kept, and a sound disk is enough for
//! everything to be well again.
//!
//! `LARDER_FAULTS` says at how many places one change fails (10 if it does not, spread over the life), and a quarter of them
//! at how many all do from there on; a large number means at every one.

use crate::board::io_faults::{self, Change};
use crate::board::{self, Board, Folder, PLATFORM};
use larder::demo::image::SampleImage as Image;
use larder::demo::upstream::FaultyRegistry as Upstream;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const EROFS: i32 = 30;

fn picture(version: u64) -> Image {
    // Longer than what is read at a time, so that some of it has been given out when its end cannot be kept.
    Image::multi_arch(version, &[300_000, 5_000])
}

fn config(url: &str) -> String {
    format!(
        "platforms = [\"{PLATFORM}\"]\n{}[tags]\nresolve_deadline = \"500ms\"\n[disk]\nmin_free = \"1MiB\"\n[upstream.\"docker.io\"]\nurl = \"{url}\"\n",
        board::FETCH
    )
}

/// An upstream that has the same versions for as many lives as there are, each under a name of its own.
struct World {
    upstream: Upstream,
    dead: String,
    lives: AtomicU64,
}

/// One life: a pull, a new version, a pin, an orderly end. `fault`: what the disk does. What it changed.
fn live(world: &World, fault: Option<String>) -> Vec<Change> {
    let name = format!("life/{}", world.lives.fetch_add(1, Ordering::Relaxed));
    world.upstream.push(&name, "latest", &picture(1));
    let folder = Folder::new();
    let log = folder.0.join("changes");
    let mut more = vec![("LARDER_DISK_LOG", log.display().to_string())];
    more.extend(fault.clone().map(|fault| ("LARDER_DISK_FAIL", fault)));
    let environment = io_faults::environment(&folder.0.join("data"), &more);
    let mut board = match Board::in_folder(folder, &config(&world.upstream.url()), environment) {
        Ok(board) => board,
        Err((said, folder)) => {
            // It could not begin, and says why.
            assert!(said.contains("ERROR") && !said.contains("panicked"), "{said}");
            let changes = io_faults::changes(&log);
            let board = Board::in_folder(folder, &config(&world.upstream.url()), Vec::new());
            let board = board.unwrap_or_else(|(log, _)| panic!("a sound disk is not enough:\n{log}"));
            afterwards(world, board, &name, 1);
            return changes;
        }
    };
    for version in [1, 2] {
        world.upstream.push(&name, "latest", &picture(version));
        // While the index is being made again clients are told to come back.
        let tag = format!("/v2/{name}/manifests/latest?ns=docker.io");
        board.wait_until("an index, or none for certain", || board.head(&tag).status != 503);
        let pulled =
            board.pull(&name, "latest").unwrap_or_else(|e| panic!("version {version}: {e}\n{}", board.log()));
        assert_eq!(pulled.digest, picture(version).root);
    }
    let pinned = board.command(&["pin", &format!("docker.io/{name}")]);
    assert!(pinned.status.success() || !pinned.stderr.is_empty(), "a refusal says why");
    assert_eq!(board.get("/healthz").status, 200);
    board.check_blobs();
    board.stop();
    let changes = io_faults::changes(&log);
    board.environment.clear();
    board.start_again();
    afterwards(world, board, &name, 2);
    changes
}

/// On a sound disk everything is well: online, and then with the upstream gone.
fn afterwards(world: &World, mut board: Board, name: &str, version: u64) {
    let index = |board: &Board| board.wait_until("the index", || board.get("/readyz").status == 200);
    index(&board);
    assert_eq!(board.pull(name, "latest").unwrap().digest, picture(version).root);
    board.check_blobs();
    board.stop();
    std::fs::write(board.folder().join("larder.toml"), config(&world.dead)).unwrap();
    board.start_again();
    index(&board);
    let pulled = board.pull(name, "latest").unwrap_or_else(|e| panic!("offline: {e}\n{}", board.log()));
    assert_eq!(pulled.digest, picture(version).root);
}

/// Changes at the end of a life: the index's fingerprint is written, and the control socket goes.
const LAST_CHANGES: usize = 14;

#[test]
fn whatever_change_the_disk_refuses_clients_get_every_byte() {
    let places = board::from_environment("LARDER_FAULTS", 10);
    let upstream = Upstream::start().unwrap();
    let gone = board::upstream_of_this_process();
    gone.hang_up();
    let world = World { upstream, dead: gone.url(), lives: AtomicU64::new(0) };
    let sound = live(&world, None);
    println!("{} changes in a life on a sound disk", sound.len());
    // Lives differ by a few changes, and what comes last in the longest is to be refused, too.
    let all = sound.len() as u64 + if places >= sound.len() as u64 { 12 } else { 0 };
    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    // The last of a life, the socket and the index's fingerprint, come at a number that differs by a few in each.
    let before_the_end = &sound[..sound.len().saturating_sub(LAST_CHANGES)];
    before_the_end.iter().for_each(|change| *expected.entry(change.site()).or_default() += 1);
    let ways =
        [("once", EIO, "EIO"), ("once", ENOSPC, "ENOSPC"), ("on", ENOSPC, "ENOSPC"), ("on", EROFS, "EROFS")];
    let mut lives = Vec::new();
    for (offset, (how, number, words)) in ways.into_iter().enumerate() {
        // Where everything fails from one change on, the next one is much the same life. Each way has places of its own
        // where not all are tried.
        let places = if how == "on" { (places / 4).min(all / 4) } else { places };
        let step = (all / places.max(1)).max(1);
        let first = 1 + offset as u64 * step / ways.len() as u64;
        lives.extend((first..=all).step_by(step as usize).map(|at| (at, how, number, words)));
    }
    let next = AtomicU64::new(0);
    let failed = Mutex::new(BTreeMap::<String, u64>::new());
    let work = || {
        while let Some(&(at, how, number, words)) = lives.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
            let life = std::panic::catch_unwind(|| live(&world, Some(format!("{at}:{number}:{how}"))));
            let changes = life.unwrap_or_else(|why| {
                println!("it was change {at}, {words} {how}");
                std::panic::resume_unwind(why)
            });
            let refused = changes.iter().find(|change| change.what.is_ascii_lowercase());
            if let Some(refused) = refused {
                *failed.lock().unwrap().entry(refused.site()).or_default() += 1;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(work);
        }
    });
    let failed = failed.into_inner().unwrap();
    println!("{} lives; the first change that was refused: {failed:?}", lives.len());
    assert!(failed.values().sum::<u64>() * 10 >= lives.len() as u64 * 9, "the disk refused too little");
    if places >= all {
        for site in expected.keys().filter(|site| !site.contains("control.sock")) {
            assert!(failed.contains_key(site), "no life met a disk that refused: {site}");
        }
    }
}
