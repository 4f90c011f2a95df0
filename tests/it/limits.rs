//! Limits: what one client more than there is memory for is told, and that it is told at once.

use crate::board::{self, Board, PATIENCE, layer_of};
use larder::demo::image::SampleImage as Image;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

/// The least that there is: 24 bodies and 42 connections at a time, of which one client has all but an eighth.
const MEMORY: &str = "[memory]\nmax = \"16MiB\"\n";

/// A board with a cached layer that no socket buffer holds.
fn board() -> (Board, String) {
    let image = Image::multi_arch(1, &[24_000_000]);
    let (_upstream, board) = board::pulled(&image, MEMORY);
    (board, format!("/v2/lab/app/blobs/{}?ns=docker.io", layer_of(&image)))
}

#[test]
fn one_body_too_many_is_sent_away_and_tags_are_answered() {
    let (board, blob) = board();
    let mut slow = Vec::new();
    let refused = loop {
        let answer = board.get(&blob);
        if answer.status != 200 {
            break answer;
        }
        slow.push(answer);
        assert!(slow.len() < 100, "no limit");
    };
    assert_eq!(slow.len(), 24 - 3);
    assert_eq!(refused.status, 503);
    assert_eq!(refused.header("retry-after"), Some("1"));
    let body = String::from_utf8(refused.body().unwrap()).unwrap();
    assert!(body.contains("TOOMANYREQUESTS") && body.contains("memory.max"), "{body}");
    // Small questions cost next to nothing, so that they are answered.
    assert_eq!(board.head("/v2/lab/app/manifests/latest?ns=docker.io").status, 200);
    // Who was there before is served to the end, and then there is a place again.
    let whole = slow.pop().unwrap().body().unwrap();
    assert_eq!(whole.len(), 24_001_536);
    assert_eq!(board.get(&blob).status, 200);
}

#[test]
fn one_connection_too_many_is_told_so_and_not_left_waiting() {
    let (board, _) = board();
    let mut idle = Vec::new();
    let answer = loop {
        let mut stream = TcpStream::connect(board.addr).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let began = Instant::now();
        stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut start = [0; 12];
        stream.read_exact(&mut start).unwrap();
        if &start != b"HTTP/1.1 200" {
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).unwrap();
            println!("rejected after {:.1?}", began.elapsed());
            break format!("{}{}", String::from_utf8_lossy(&start), String::from_utf8_lossy(&rest));
        }
        idle.push(stream);
        assert!(idle.len() < 600, "no limit");
    };
    assert_eq!(idle.len(), 42 - 5);
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.to_lowercase().contains("retry-after: 1") && answer.contains("memory.max"), "{answer}");
    board.wait_for_log("was rejected: all connections that memory.max allows are in use");
    idle.clear();
    board.wait_until("a free place", || board.get("/v2/").status == 200);
}
