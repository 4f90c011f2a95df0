//! Random pulls, moves of tags, outages, pins, removals, stops, kills and jumps of the clock, against a model of what must
//! hold.
//!
//! `LARDER_STEPS` says how many steps (1,000 if it does not), `LARDER_SEED` repeats a run; a failure prints both.

// Where a test cannot go on, it stops.
#![allow(clippy::unwrap_used)]

#[path = "it/board/mod.rs"]
mod board;

use board::{Board, Folder, Random, io_faults};
use larder::demo::image::SampleImage as Image;
use larder::demo::upstream::FaultyRegistry as Upstream;
use larder::oci::Digest;
use std::collections::BTreeMap;

/// Images of about 66 kB, of which some six fit on the disk.
const DISK_MAX: u64 = 420_000;
const REPOSITORIES: usize = 10;

fn picture(repository: usize, version: u64) -> Image {
    Image::multi_arch(repository as u64 * 1_000 + version, &[60_000, 2_000])
}

/// What is known of one tag, `lab/N:latest`.
#[derive(Default)]
struct Known {
    /// The version that upstream has.
    upstream: u64,
    /// Every version that was pulled whole since the tag was removed, the newest last.
    pulled: Vec<u64>,
    /// The version that was pulled last when it was pinned, or since.
    pinned: Option<u64>,
}

struct Run {
    random: Random,
    upstream: Upstream,
    board: Board,
    known: BTreeMap<usize, Known>,
    online: bool,
    counts: BTreeMap<&'static str, u32>,
}

impl Run {
    fn new(random: Random) -> Run {
        let upstream = board::upstream_of_this_process();
        let mut known = BTreeMap::new();
        for repository in 0..REPOSITORIES {
            upstream.push(&format!("lab/{repository}"), "latest", &picture(repository, 0));
            known.insert(repository, Known::default());
        }
        let folder = Folder::new();
        let environment = vec![
            ("LD_PRELOAD", io_faults::shim().display().to_string()),
            ("LARDER_CLOCK", folder.0.join("clock").display().to_string()),
        ];
        let config = format!(
            "platforms = [\"{}\"]\n{}[tags]\nresolve_deadline = \"500ms\"\n[disk]\nmin_free = \"1MiB\"\nmax = \"{DISK_MAX}\"\nexpire_unused = \"1d\"\n[upstream.\"docker.io\"]\nurl = \"{}\"\n",
            board::PLATFORM,
            board::FETCH,
            upstream.url()
        );
        let board = Board::in_folder(folder, &config, environment);
        let board = board.unwrap_or_else(|(log, _)| panic!("the server did not start:\n{log}"));
        Run { random, upstream, board, known, online: true, counts: BTreeMap::new() }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn step(&mut self) {
        let repository = self.random.below(REPOSITORIES);
        match self.random.below(100) {
            0..70 => self.pull(repository),
            70..80 => self.push(repository),
            80..86 => self.pin(repository),
            86..90 => self.remove(repository),
            90..93 => self.uplink(),
            93..94 => self.clock(),
            94..97 => self.start_again(false),
            _ => self.start_again(true),
        }
        let used: u64 = std::fs::read_dir(self.board.data().join("blobs/sha256"))
            .unwrap()
            .filter_map(|entry| entry.unwrap().metadata().ok())
            .map(|meta| meta.len())
            .sum();
        assert!(used <= DISK_MAX, "{used} bytes are on the disk");
    }

    fn pull(&mut self, repository: usize) {
        let answer = self.board.pull(&format!("lab/{repository}"), "latest");
        let known = &self.known[&repository];
        let root = |version: u64| picture(repository, version).root;
        if self.online {
            match answer {
                Ok(pulled) => {
                    assert_eq!(pulled.digest, root(known.upstream), "online the newest is served");
                    let parts = board::needed(&picture(repository, known.upstream));
                    let kept = parts.iter().all(|part| self.board.has_blob(part));
                    let (version, known) = (known.upstream, self.known.get_mut(&repository).unwrap());
                    known.pulled.retain(|earlier| *earlier != version);
                    known.pulled.push(version);
                    if !kept {
                        // With enough pinned there is no room for what is not here: it was passed on. It may become
                        // whole when there is.
                        self.count("not kept");
                        return;
                    }
                    if known.pinned.is_some() {
                        known.pinned = Some(version);
                    }
                    self.count("pulled online");
                }
                Err(refused) => panic!("{refused}"),
            }
            return;
        }
        match answer {
            Ok(pulled) => {
                let versions: Vec<Digest> = known.pulled.iter().map(|version| root(*version)).collect();
                assert!(versions.contains(&pulled.digest), "{} was never pulled whole", pulled.digest);
                if let Some(version) = known.pinned {
                    let place = |digest: &Digest| versions.iter().position(|version| version == digest);
                    let served = place(&pulled.digest);
                    assert!(served >= place(&root(version)), "what is pinned is served, or a later version");
                }
                self.count("pulled offline");
            }
            Err(refused) => {
                assert!(known.pinned.is_none(), "what is pinned is gone: {refused}");
                assert!(refused.to_string().contains("502"), "{refused}");
                self.count("not here offline");
            }
        }
    }

    fn push(&mut self, repository: usize) {
        let known = self.known.get_mut(&repository).unwrap();
        known.upstream += 1;
        self.upstream.push(&format!("lab/{repository}"), "latest", &picture(repository, known.upstream));
        self.count("tags moved");
    }

    fn pin(&mut self, repository: usize) {
        let image = format!("docker.io/lab/{repository}");
        let known = self.known.get_mut(&repository).unwrap();
        if known.pinned.take().is_some() {
            self.board.said(&["unpin", &image]);
            self.count("unpinned");
            return;
        }
        // Only what is whole now can be counted on.
        let why = self.board.command(&["why", &image, "--json"]);
        let why: serde_json::Value = serde_json::from_slice(&why.stdout).unwrap_or_default();
        let offline = why["offline"][0].as_str().map(str::to_owned);
        let version = known.pulled.iter().copied().find(|version| {
            offline.as_deref() == Some(picture(repository, *version).root.to_string().as_str())
        });
        let Some(version) = version else { return };
        let pinned = self.board.command(&["pin", &image]);
        if String::from_utf8_lossy(&pinned.stdout).contains("its last complete version is never removed") {
            known.pinned = Some(version);
            self.count("pinned");
            return;
        }
        // Downloads that go on after an outage make room: in between it can have been removed.
        let said = String::from_utf8_lossy(&pinned.stderr).into_owned();
        assert!(pinned.status.success() || said.contains("is not known here"), "{said}");
        self.board.command(&["unpin", &image]);
        self.count("gone before it was pinned");
    }

    fn remove(&mut self, repository: usize) {
        let known = self.known.get_mut(&repository).unwrap();
        let removed = self.board.command(&["rm", &format!("docker.io/lab/{repository}")]);
        if known.pinned.is_some() {
            assert_eq!(removed.status.code(), Some(1), "what is pinned is not removed");
        } else if removed.status.success() {
            known.pulled.clear();
            self.count("removed");
        }
    }

    fn uplink(&mut self) {
        if self.online {
            self.upstream.hang_up();
        } else {
            self.upstream.come_back().unwrap();
            self.until_upstream_is_up();
        }
        self.online = !self.online;
        self.count("uplink came or went");
    }

    fn until_upstream_is_up(&self) {
        let up = "larder_upstream_up{upstream=\"docker.io\"} 1";
        self.board.wait_until("the upstream's return", || {
            self.board.get("/metrics").body().is_ok_and(|text| String::from_utf8_lossy(&text).contains(up))
        });
    }

    /// To 1970, to now, or to 2040: nothing comes or goes with it.
    fn clock(&mut self) {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let off = [format!("-{now}"), "0".to_owned(), (2_208_988_800 - now).to_string()];
        std::fs::write(self.board.folder().join("clock"), &off[self.random.below(3)]).unwrap();
        self.count("the clock jumped");
    }

    fn start_again(&mut self, kill: bool) {
        if kill {
            self.board.kill();
        } else {
            self.board.stop();
        }
        if self.random.below(4) == 0 {
            std::fs::remove_dir_all(self.board.data().join("index")).unwrap();
            self.count("index lost");
        }
        self.board.start_again();
        let board = &self.board;
        board.wait_until("the index", || board.get("/readyz").status == 200);
        if self.online {
            // A kill can come before the end of the last outage is on the disk: until the first probe that outage counts.
            self.until_upstream_is_up();
        }
        self.count(if kill { "killed" } else { "stopped" });
    }
}

#[test]
fn random_lives_keep_every_promise() {
    let steps = board::from_environment("LARDER_STEPS", 1_000);
    let mut run = Run::new(Random::seeded());
    for step in 0..steps {
        run.step();
        if step % 100 == 99 {
            run.board.check_blobs();
        }
    }
    run.board.check_blobs();
    println!("{:?}", run.counts);
}
