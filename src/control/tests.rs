//! Answers, record by record: on a store, and over the socket.

use super::*;
use crate::budget;
use crate::image::tests::{Board, repository, tag};
use crate::store::Observation;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};

fn admin(board: &Board) -> Admin {
    Admin::new(Arc::clone(&board.config), Arc::clone(&board.store), None)
}

fn answer(admin: &Admin, request: &AdminRequest) -> Vec<AdminRecord> {
    let mut records = Vec::new();
    admin.execute(request, &mut |record| {
        records.push(record);
        Ok(())
    });
    records
}

/// A store with one image under two tags, one of which has moved on to what is not here.
fn board() -> Board {
    let board = Board::new("");
    let image = board.image("app", &[&board.blob("layer", 100)]);
    board.tag("app", "latest", &image, true);
    let missing = board.blob("missing", 100);
    let next = board.image("app", &[&missing]);
    board.remove_by_hand(&missing);
    board.tag("app", "latest", &next, false);
    board.tag("app", "next", &next, false);
    board
}

#[test]
fn each_tag_part_and_version_is_a_record() {
    let board = board();
    let admin = admin(&board);
    let image: Reference = "lab/app:latest".parse().unwrap();
    let rows: Vec<ImageRow> = answer(&admin, &AdminRequest::Ls)
        .into_iter()
        .map(|record| match record {
            AdminRecord::Image(row) => row,
            other => panic!("{other:?}"),
        })
        .collect();
    let states: Vec<_> =
        rows.iter().map(|row| (row.image.as_str(), row.state, row.newer.is_some())).collect();
    let expected = [
        ("docker.io/lab/app:latest", Completeness::Complete, true),
        ("docker.io/lab/app:next", Completeness::Partial, false),
    ];
    assert_eq!(states, expected);
    let why = answer(&admin, &AdminRequest::Why { image: image.clone() });
    let AdminRecord::Why(head) = &why[0] else { panic!("{why:?}") };
    assert!(head.parts.is_empty() && head.offline.as_ref().unwrap().1 == "last-complete");
    assert_eq!(head.upstream, "the server does not run");
    let here = |record: &AdminRecord| matches!(record, AdminRecord::Part(part) if part.here);
    assert!(why.len() == 3 && why[1..].iter().all(here), "{why:?}");
    let history = answer(&admin, &AdminRequest::History { image });
    let AdminRecord::Version(newest) = &history[1] else { panic!("{history:?}") };
    assert!(newest.seen && !newest.served_offline && newest.state == Completeness::Partial);
    assert_eq!(history.len(), 3);
    let unknown = answer(&admin, &AdminRequest::History { image: "lab/other:1".parse().unwrap() });
    assert!(
        matches!(&unknown[..], [AdminRecord::Failed(why)] if why.contains("is not known here")),
        "{unknown:?}"
    );
}

#[test]
fn a_corrupt_blob_names_its_images_in_as_many_records_as_it_takes() {
    let board = Board::new("");
    let layer = board.blob("layer", 100);
    let image = board.image("app", &[&layer]);
    let count = budget::CONTROL_NAMES_MAX + 1;
    let seen = Observation::upstream(image.clone());
    (0..count)
        .for_each(|n| drop(board.store.tag_seen(&repository("app"), &tag(&format!("{n}")), &seen).unwrap()));
    let path = board.folder.join("data/blobs/sha256").join(layer.hex());
    std::fs::write(path, vec![b'x'; 100]).unwrap();
    let records = answer(&admin(&board), &AdminRequest::Verify { repair: false });
    let mut named = Vec::new();
    for record in &records {
        if let AdminRecord::Corrupt(blob) = record {
            assert!(blob.digest == layer && blob.images.len() <= budget::CONTROL_NAMES_MAX);
            named.extend(blob.images.clone());
        }
    }
    named.sort();
    named.dedup();
    assert_eq!(named.len(), count);
    let progress = records.iter().filter(|record| matches!(record, AdminRecord::Progress(..)));
    assert_eq!(progress.count(), 2);
    assert!(
        matches!(records.last(), Some(AdminRecord::Verified(end)) if end.blobs == 2 && end.bad.is_empty())
    );
}

#[test]
fn an_answer_crosses_the_socket_record_by_record_and_its_end_is_marked() {
    let board = board();
    let data = board.folder.join("data");
    let nothing = socket::ask(&data, &AdminRequest::Ls, &mut |_| panic!("no server runs"));
    assert_eq!(nothing, Ok(false));
    let here = answer(&admin(&board), &AdminRequest::Ls);
    socket::serve(admin(&board), &data).unwrap();
    let mut records = Vec::new();
    assert_eq!(socket::ask(&data, &AdminRequest::Ls, &mut |record| records.push(record)), Ok(true));
    assert_eq!(records, here);
    let mut stream = UnixStream::connect(data.join("control.sock")).unwrap();
    stream.write_all(b"\"ls\"\n").unwrap();
    let lines: Vec<String> = BufReader::new(stream).lines().map(Result::unwrap).collect();
    assert_eq!((lines.len(), lines.last().map(String::as_str)), (3, Some("null")));
}

#[test]
fn an_answer_that_is_cut_is_not_taken_for_a_short_one() {
    let board = board();
    let data = board.folder.join("data");
    let line = serde_json::to_string(&answer(&admin(&board), &AdminRequest::Ls)[0]).unwrap();
    let listener = UnixListener::bind(data.join("control.sock")).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        BufReader::new(stream.try_clone().unwrap()).read_line(&mut String::new()).unwrap();
        writeln!(stream, "{line}").unwrap();
    });
    let mut count = 0;
    let asked = socket::ask(&data, &AdminRequest::Ls, &mut |_| count += 1);
    assert_eq!((asked, count), (Err("the server ended before it had answered".into()), 1));
    server.join().unwrap();
}
