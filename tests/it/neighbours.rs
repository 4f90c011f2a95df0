//! A card that larder shares with something that grows and shrinks: a file system of its own on a loop device. Needs root;
//! without it nothing is tested here, and that is said.

use crate::board::{self, Board, Folder, layer_of, output};
use larder::demo::image::SampleImage as Image;
use larder::demo::upstream::FaultyRegistry as Upstream;
use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

/// A mounted ext4.
struct Card {
    folder: Folder,
}

impl Card {
    /// `None`: this is not root, or there are no loop devices.
    fn new(bytes: u64) -> Option<Card> {
        let card = Card { folder: Folder::new() };
        let image = card.folder.0.join("card.img");
        File::create(&image).unwrap().set_len(bytes).unwrap();
        std::fs::create_dir(card.mount()).unwrap();
        let made = output(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image));
        let mounted = output(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(card.mount()));
        let there = made.status.success() && mounted.status.success();
        if !there {
            println!("skipped: {}", String::from_utf8_lossy(&mounted.stderr));
        }
        there.then_some(card)
    }

    fn mount(&self) -> PathBuf {
        self.folder.0.join("mount")
    }

    fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.mount()).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    fn total(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.mount()).unwrap();
        stat.f_blocks * stat.f_frsize
    }

    /// The neighbour grows, or shrinks, until so much is free.
    fn leave(&self, free: u64) {
        let file = File::options().create(true).append(true).open(self.mount().join("neighbour")).unwrap();
        let has = file.metadata().unwrap().len();
        let wanted = (has + self.free()).saturating_sub(free);
        if wanted < has {
            file.set_len(wanted).unwrap();
        } else {
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, wanted).unwrap();
        }
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        output(Command::new("umount").arg("-l").arg(self.mount()));
    }
}

fn megabytes(seed: u64) -> Image {
    Image::multi_arch(seed, &[3_000_000])
}

#[test]
fn a_neighbour_that_grows_gets_its_room_and_larder_ends_where_it_began() {
    let Some(card) = Card::new(4 << 30) else { return };
    let upstream = Upstream::start().unwrap();
    for seed in 1..=4 {
        upstream.push(&format!("lab/{seed}"), "latest", &megabytes(seed));
    }
    let folder = Folder::new();
    std::fs::create_dir(card.mount().join("larder")).unwrap();
    symlink(card.mount().join("larder"), folder.0.join("data")).unwrap();
    // Nothing is said of the disk: a fifth of it is left free.
    let config = format!(
        "platforms = [\"{}\"]\n{}[upstream.\"docker.io\"]\nurl = \"{}\"\n",
        board::PLATFORM,
        board::FETCH,
        upstream.url()
    );
    let board = Board::in_folder(folder, &config, Vec::new()).unwrap_or_else(|(log, _)| panic!("{log}"));
    let least = card.total() / 5;
    let pull = |seed: u64| board.pull(&format!("lab/{seed}"), "latest").unwrap();
    let here =
        || -> Vec<u64> { (1..=4).filter(|seed| board.has_blob(&layer_of(&megabytes(*seed)))).collect() };
    card.leave(least + 16_000_000);
    (1..=4).for_each(|seed| drop(pull(seed)));
    board.said(&["pin", "docker.io/lab/1"]);
    assert_eq!(here(), [1, 2, 3, 4]);
    // A megabyte too much at a time: one image goes each time, the pinned one last.
    for left in [&[1, 3, 4][..], &[1, 4], &[1], &[]] {
        card.leave(least - 1_000_000);
        board.wait_until("the room", || card.free() >= least);
        board.wait_until("the removal", || here() == left);
    }
    board.wait_for_log("was to stay and is removed");
    assert_eq!(board.metric("larder_evicted_wanted_total"), 1);
    // The card is full, and everything is served all the same; nothing of it is kept.
    card.leave(least - 1_000_000);
    pull(2);
    assert!(here().is_empty());
    card.leave(least + 64_000_000);
    board.wait_until("everything", || {
        (1..=4).for_each(|seed| drop(pull(seed)));
        here() == [1, 2, 3, 4]
    });
    board.check_blobs();
}
