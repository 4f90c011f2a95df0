//! One repository's failure is not the link's: the others of its registry go on, and a registry that fails altogether is
//! still known to.

use crate::board::{self, Board, DEADLINE, LEEWAY, PATIENCE, image, layer_of, upstream_with};
use larder::demo::upstream::{Behaviour, FaultyRegistry as Upstream};

const REPOSITORIES: usize = 40;

/// An upstream with `lab/r0` to `lab/r39`.
fn many_repositories() -> Upstream {
    let upstream = Upstream::start().unwrap();
    for number in 0..REPOSITORIES {
        upstream.push(&format!("lab/r{number}"), "latest", &image(number as u64));
    }
    upstream
}

fn manifest(repository: &str) -> String {
    format!("/v2/{repository}/manifests/latest?ns=docker.io")
}

/// What a repository may do wrong: each is asked for, and then all 39 others.
fn one_fails(fault: &str, behaviour: Behaviour) {
    let upstream = many_repositories();
    upstream.on(None, "/lab/r0/", behaviour);
    let board = Board::new(&upstream, "");
    for number in 1..REPOSITORIES {
        let bad = board.get(&manifest("lab/r0")).status;
        assert_ne!(bad, 200, "{fault}");
        let good = board.get(&manifest(&format!("lab/r{number}"))).status;
        assert_eq!(good, 200, "{fault}: lab/r{number}");
    }
    let (status, how, _) = board.ask("lab/r1", "latest");
    assert!(status == 200 && how.contains("upstream"), "{fault}: {status} {how}");
}

#[test]
fn a_repository_that_answers_500() {
    one_fails("500", Behaviour::Status(500, Vec::new()));
}

#[test]
fn a_repository_that_is_not_http() {
    one_fails("garbage", Behaviour::Garbage);
}

#[test]
fn a_repository_that_hangs_up() {
    one_fails("cut", Behaviour::CutBeforeHeader);
}

#[test]
fn a_repository_with_a_long_header() {
    one_fails("long header", Behaviour::LongHeader(100_000));
}

#[test]
fn a_repository_that_limits_the_rate() {
    one_fails("429", Behaviour::Status(429, vec![("Retry-After".into(), "60".into())]));
}

#[test]
fn a_repository_whose_redirect_is_limited() {
    let storage = Upstream::start().unwrap();
    storage.on(None, "/", Behaviour::Status(429, vec![("Retry-After".into(), "60".into())]));
    one_fails("429 behind a redirect", Behaviour::RedirectTo(format!("{}/v2/x", storage.url())));
}

#[test]
fn a_blob_that_is_cut_again_and_again() {
    let upstream = many_repositories();
    upstream.on(None, "/lab/r0/blobs/", Behaviour::CutBodyAfter(0));
    let board = Board::new(&upstream, "");
    for number in 1..4 {
        assert!(board.pull("lab/r0", "latest").is_err());
        board.pull(&format!("lab/r{number}"), "latest").unwrap();
    }
    assert_eq!(board.metric("larder_upstream_up{upstream=\"docker.io\"}"), 1);
}

#[test]
fn while_only_a_status_is_bad_what_is_not_here_is_still_asked_for() {
    let first = image(1);
    let (upstream, board) = board::pulled(&first, "");
    upstream.push("lab/fine", "latest", &image(2));
    // The first rule that matches counts: all but one repository fails, and so does the probe.
    upstream.on(None, "/lab/fine/", Behaviour::Delay(std::time::Duration::ZERO));
    upstream.on(None, "/v2/", Behaviour::Status(503, Vec::new()));
    let (status, how, time) = board.ask("lab/app", "latest");
    assert_eq!((status, how.as_str()), (200, "larder; hit; detail=last-complete"));
    assert!(time < DEADLINE + LEEWAY, "{time:?}");
    board.wait_for_log("answers with failures");
    assert_eq!(board.get(&manifest("lab/fine")).status, 200);
    assert_eq!(board.get(&format!("/v2/lab/fine/blobs/{}?ns=docker.io", layer_of(&image(2)))).status, 200);
    upstream.clear();
    assert!(board.wait_until_up("lab/app", "latest") < PATIENCE);
}

#[test]
fn a_registry_that_fails_altogether_is_not_waited_for_and_its_return_is_seen() {
    for behaviour in [
        Behaviour::Status(500, Vec::new()),
        Behaviour::Garbage,
        Behaviour::CutBeforeHeader,
        Behaviour::LongHeader(100_000),
    ] {
        let upstream = upstream_with(&image(1));
        let board = Board::new(&upstream, "");
        board.pull("lab/app", "latest").unwrap();
        upstream.on(None, "/", behaviour.clone());
        for _ in 0..5 {
            let (status, how, time) = board.ask("lab/app", "latest");
            assert_eq!((status, how.as_str()), (200, "larder; hit; detail=last-complete"), "{behaviour:?}");
            assert!(time < DEADLINE + LEEWAY, "{behaviour:?}: {time:?}");
        }
        board.wait_for_log("answers with failures");
        let asked = upstream.count("HEAD", "/lab/app/");
        board.ask("lab/app", "latest");
        assert_eq!(upstream.count("HEAD", "/lab/app/"), asked, "{behaviour:?}: it is not asked in vain");
        upstream.clear();
        board.wait_until_up("lab/app", "latest");
    }
}
