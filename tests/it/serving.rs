//! Serving what is at hand: every byte as it is on the disk, whichever way it goes, and nothing else when the disk fails.

use crate::board::{self, Board, Folder, PATIENCE, image, upstream_with};
use larder::demo::upstream::FaultyRegistry as Upstream;
use larder::oci::{Algorithm, Digest};
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::num::NonZeroU64;
use std::path::PathBuf;

/// Around what is copied with its header, what is handed over in one piece, and what has several pieces.
const SIZES: [usize; 9] =
    [0, 1, 16 * 1024, 16 * 1024 + 1, 262_144, (1 << 20) - 1, 1 << 20, (1 << 20) + 16 * 1024 + 1, 5_000_001];

/// Bytes in which any two places differ, so that none can stand for another.
fn content(size: usize) -> Vec<u8> {
    let word = |n: usize| (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut content = vec![0; size];
    for (n, part) in content.chunks_mut(8).enumerate() {
        part.copy_from_slice(&word(n).to_le_bytes()[..part.len()]);
    }
    content
}

/// A board that has blobs of these sizes, as a restored disk would bring them.
fn board_with(upstream: &Upstream, sizes: &[usize]) -> Board {
    let board = Board::new(upstream, "");
    for size in sizes {
        std::fs::write(file_of(&board, *size), content(*size)).unwrap();
    }
    board
}

fn digest(size: usize) -> Digest {
    Digest::of(Algorithm::Sha256, &content(size))
}

fn file_of(board: &Board, size: usize) -> PathBuf {
    board.data().join("blobs/sha256").join(digest(size).hex())
}

fn path_of(size: usize) -> String {
    format!("/v2/lab/app/blobs/{}?ns=docker.io", digest(size))
}

/// What is wrong with what came, short enough to print.
fn assert_same(got: &[u8], expected: &[u8], what: &str) {
    // Whole slices are compared quickly; where they differ is looked for only if they do.
    let differs = if got == expected {
        None
    } else {
        got.iter().zip(expected).position(|(got, expected)| got != expected)
    };
    assert_eq!((got.len(), differs), (expected.len(), None), "{what}");
}

#[test]
fn every_size_and_range_arrives_as_it_is() {
    let upstream = upstream_with(&image(1));
    let board = board_with(&upstream, &SIZES);
    for size in SIZES {
        let expected = content(size);
        assert_same(&board.get(&path_of(size)).body().unwrap(), &expected, &format!("{size} bytes"));
        if size < 3 {
            continue;
        }
        for (first, last) in
            [(0, 0), (1, 16_385), (size / 2, size - 1), (size.saturating_sub(20_000), size - 2)]
        {
            if first >= size {
                continue;
            }
            let answer = board.request("GET", &path_of(size), &[("range", &format!("bytes={first}-{last}"))]);
            assert_eq!(answer.status, 206);
            let last = last.min(size - 1);
            assert_same(
                &answer.body().unwrap(),
                &expected[first..=last],
                &format!("{first}-{last} of {size}"),
            );
        }
    }
}

#[test]
fn answers_on_one_connection_do_not_mix() {
    let upstream = upstream_with(&image(1));
    let board = board_with(&upstream, &SIZES);
    board.pull("lab/app", "latest").unwrap();
    let stream = TcpStream::connect(board.addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // All at once, big ones between small ones and questions, twice over.
    let mut asked = String::new();
    let mut expected = Vec::new();
    for size in SIZES.iter().chain(SIZES.iter().rev()) {
        asked += &format!(
            "GET {} HTTP/1.1\r\nHost: x\r\n\r\nHEAD {0} HTTP/1.1\r\nHost: x\r\n\r\n",
            path_of(*size)
        );
        asked += "GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n";
        expected.extend([content(*size), Vec::new(), b"{}".to_vec()]);
    }
    let mut asking = stream.try_clone().unwrap();
    let writer = std::thread::spawn(move || asking.write_all(asked.as_bytes()).unwrap());
    let mut stream = std::io::BufReader::new(stream);
    for (number, expected) in expected.iter().enumerate() {
        let length = read_head(&mut stream);
        // A HEAD says how long the body would be.
        assert!(length == expected.len() || expected.is_empty(), "answer {number} has {length} bytes");
        let mut body = vec![0; expected.len()];
        stream.read_exact(&mut body).unwrap();
        assert_same(&body, expected, &format!("answer {number}"));
    }
    writer.join().unwrap();
}

/// Reads a header that must be that of a 200, and says what Content-Length it has.
fn read_head(stream: &mut impl Read) -> usize {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let text = String::from_utf8(head).unwrap().to_lowercase();
    assert!(text.starts_with("http/1.1 200"), "{text}");
    text.split("content-length: ").nth(1).unwrap().split('\r').next().unwrap().parse().unwrap()
}

#[test]
fn what_is_not_in_memory_is_waited_for() {
    let upstream = upstream_with(&image(1));
    let board = board_with(&upstream, &[5_000_001]);
    for gap in [None, NonZeroU64::new(1_000_000)] {
        let file = File::open(file_of(&board, 5_000_001)).unwrap();
        file.sync_all().unwrap();
        // All of it is cold, or a part in the middle.
        let from = gap.map_or(0, |_| 2_000_000);
        rustix::fs::fadvise(&file, from, gap, rustix::fs::Advice::DontNeed).unwrap();
        let got = board.get(&path_of(5_000_001)).body().unwrap();
        assert_same(&got, &content(5_000_001), "a cold blob");
    }
}

#[test]
fn a_slow_client_gets_the_same_bytes() {
    let upstream = upstream_with(&image(1));
    let board = board_with(&upstream, &[5_000_001]);
    let mut stream = std::io::BufReader::with_capacity(1000, slow_request(&board, 5_000_001));
    assert_eq!(read_head(&mut stream), 5_000_001);
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    assert_same(&got, &content(5_000_001), "through a small buffer");
}

/// A request on a connection that takes little at a time.
fn slow_request(board: &Board, size: usize) -> TcpStream {
    let mut stream = TcpStream::connect(board.addr).unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size(&stream, 128 * 1024).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!("GET {} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", path_of(size));
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

#[test]
fn a_file_that_shrinks_under_a_client_ends_its_connection_and_nothing_else() {
    const SIZE: usize = 24_000_000;
    let upstream = upstream_with(&image(1));
    let board = board_with(&upstream, &[SIZE, 5_000_001]);
    let mut cut = slow_request(&board, SIZE);
    assert_eq!(read_head(&mut cut), SIZE);
    // At the end of a page, for the kernel clears the rest of one that is cut.
    let left = 12 << 20;
    File::options().write(true).open(file_of(&board, SIZE)).unwrap().set_len(left).unwrap();
    let mut got = Vec::new();
    // Closed or reset: a client sees fewer bytes than it was promised, and none that are not the blob's.
    let _ = cut.read_to_end(&mut got);
    assert!(got.len() <= left as usize, "{} bytes of a file that has {left}", got.len());
    assert_same(&got, &content(SIZE)[..got.len()], "before the cut");
    board.wait_for_log("the file is shorter than it was");
    // It is looked at again, is not what it should be, and is not offered any more.
    board.wait_for_log("was quarantined");
    let other = board.get(&path_of(5_000_001)).body().unwrap();
    assert_same(&other, &content(5_000_001), "another blob");
}

#[test]
fn a_file_system_that_does_not_say_what_is_in_memory_is_read_from() {
    let upstream = upstream_with(&image(1));
    let mut board = board_with(&upstream, &SIZES);
    board.stop();
    // tmpfs takes no RWF_NOWAIT before Linux 6.6, and on many kernels not after.
    let folder = Folder(PathBuf::from(format!("/dev/shm/larder-test-{}", std::process::id())));
    let mut copy = std::process::Command::new("cp");
    let copied = board::output(copy.arg("-r").arg(board.data()).arg(&folder.0));
    assert!(copied.status.success());
    std::fs::remove_dir_all(board.data()).unwrap();
    std::os::unix::fs::symlink(&folder.0, board.data()).unwrap();
    board.start_again();
    for size in SIZES {
        let got = board.get(&path_of(size)).body().unwrap();
        assert_same(&got, &content(size), &format!("{size} bytes"));
    }
}
