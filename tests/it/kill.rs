//! SIGKILL in the middle of pulls and evictions: what is under `blobs/` is whole, and the server starts and serves.
//!
//! `LARDER_ROUNDS` says how often (25 times if it does not), `LARDER_SEED` repeats the points in time.

use crate::board::{self, Board, PATIENCE, PLATFORM};
use larder::demo::client;
use larder::demo::image::SampleImage as Image;
use larder::demo::upstream::FaultyRegistry as Upstream;
use std::time::Duration;

/// Room for three of the images.
const DISK_MAX: u64 = 1_200_000;
const IMAGES: u64 = 8;
const CLIENTS: u64 = 3;

fn picture(seed: u64) -> Image {
    Image::multi_arch(seed, &[300_000, 50_000])
}

#[test]
fn killed_in_the_middle_nothing_half_is_left() {
    let rounds = board::from_environment("LARDER_ROUNDS", 25);
    let mut random = board::Random::seeded();
    let upstream = Upstream::start().unwrap();
    for seed in 0..IMAGES {
        upstream.push(&format!("lab/{seed}"), "latest", &picture(seed));
    }
    let mut board = Board::with_config(&format!(
        "platforms = [\"{PLATFORM}\"]\n{}[disk]\nmin_free = \"1MiB\"\nmax = \"{DISK_MAX}\"\n[upstream.\"docker.io\"]\nurl = \"{}\"\n",
        board::FETCH,
        upstream.url()
    ));
    let mut blobs = 0;
    for _ in 0..rounds {
        let addr = board.addr;
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let first = random.below(IMAGES as usize) as u64;
                std::thread::spawn(move || {
                    for seed in first.. {
                        let name = format!("lab/{}", seed % IMAGES);
                        let pulled =
                            client::pull(addr, Some("docker.io"), &name, "latest", PLATFORM, PATIENCE);
                        // The server is gone, or has more to do than it has room for.
                        if std::net::TcpStream::connect(addr).is_err() {
                            return;
                        }
                        if let Ok(pulled) = pulled {
                            assert_eq!(pulled.digest, picture(seed % IMAGES).root);
                        }
                    }
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(random.below(120) as u64));
        board.kill();
        clients.into_iter().for_each(|client| client.join().unwrap());
        blobs += board.check_blobs();
        board.start_again();
        board.wait_until("the index", || board.get("/readyz").status == 200);
    }
    // Nothing that was left behind keeps anything from being pulled, and the limit still holds.
    for seed in 0..IMAGES {
        board.wait_until("a pull", || {
            board
                .pull(&format!("lab/{seed}"), "latest")
                .is_ok_and(|pulled| pulled.digest == picture(seed).root)
        });
    }
    board.wait_until("disk.max", || {
        let files = std::fs::read_dir(board.data().join("blobs/sha256")).unwrap();
        files.filter_map(|file| file.ok()?.metadata().ok()).map(|meta| meta.len()).sum::<u64>() <= DISK_MAX
    });
    board.check_blobs();
    println!("killed {rounds} times, {blobs} blobs looked at, all of them whole");
}
