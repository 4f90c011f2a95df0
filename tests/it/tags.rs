//! How a tag is answered: the tiers, the rules, the pointers, the breaker.

use crate::board::{self, Board, DEADLINE, FETCH, LEEWAY, image, layer_of, needed, upstream_with};
use crate::servers_word::in_a_chain;
use larder::demo::image::SampleImage as Image;
use larder::demo::upstream::{Behaviour, FaultyRegistry as Upstream};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

const TAG: &str = "/v2/lab/app/manifests/latest?ns=docker.io";

#[test]
fn online_the_newest_is_served_at_once_and_an_unchanged_tag_costs_a_head() {
    let (first, second) = (image(1), image(2));
    let upstream = upstream_with(&first);
    let board = Board::new(&upstream, "");
    assert_eq!(board.pull("lab/app", "latest").unwrap().digest, first.root);
    let (heads, gets) = (upstream.count("HEAD", "/manifests/latest"), upstream.count("GET", "/manifests/"));
    let again = board.pull("lab/app", "latest").unwrap();
    assert_eq!(again.tag_status, "larder; hit; detail=upstream");
    assert_eq!(upstream.count("HEAD", "/manifests/latest"), heads + 1);
    assert_eq!(upstream.count("GET", "/manifests/"), gets, "an unchanged tag must not cost a metered GET");
    upstream.push("lab/app", "latest", &second);
    assert_eq!(board.pull("lab/app", "latest").unwrap().digest, second.root);
}

#[test]
fn with_the_uplink_gone_the_last_complete_version_is_served() {
    let first = image(1);
    let (upstream, board) = board::pulled(&first, "");
    upstream.hang_up();
    let answer = board.head(TAG);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("cache-status"), Some("larder; hit; detail=last-complete"));
    assert_eq!(answer.header("docker-content-digest"), Some(first.root.to_string().as_str()));
    assert!(
        answer.header("warning").unwrap().starts_with("299 - \"larder: "),
        "{:?}",
        answer.header("warning")
    );
    let before = upstream.requests().len();
    assert_eq!(board.pull("lab/app", "latest").unwrap().digest, first.root);
    assert_eq!(upstream.requests().len(), before);
    board.wait_for_log("answered from last-complete");
    board.wait_for_log("pull of docker.io/lab/app:latest by 127.0.0.1: tier last-complete");
}

#[test]
fn what_is_not_cached_is_a_502_that_says_why() {
    let upstream = upstream_with(&image(1));
    let board = Board::new(&upstream, "");
    board.pull("lab/app", "latest").unwrap();
    upstream.hang_up();
    for _ in 0..2 {
        let answer = board.get("/v2/lab/none/manifests/latest?ns=docker.io");
        assert_eq!(answer.status, 502);
        let body = String::from_utf8(answer.body().unwrap()).unwrap();
        assert!(body.contains("\"UNAVAILABLE\"") && body.contains("nothing of it is cached"), "{body}");
        assert!(body.contains("refused"), "{body}");
    }
    // The second answer came from the open breaker, and says since when.
    let body = String::from_utf8(board.get("/v2/lab/none/manifests/latest").body().unwrap()).unwrap();
    assert!(body.contains("docker.io is unreachable for "), "{body}");
}

#[test]
fn a_half_fetched_version_does_not_hide_the_complete_one() {
    let (first, second) = (image(1), image(2));
    let (upstream, board) = board::pulled(&first, "");
    upstream.push("lab/app", "latest", &second);
    // A client that gets as far as the index, the manifest and one blob.
    let index = board.get(TAG);
    assert_eq!(index.header("docker-content-digest"), Some(second.root.to_string().as_str()));
    let wanted = needed(&second);
    board.get(&format!("/v2/lab/app/manifests/{}?ns=docker.io", second.root)).body().unwrap();
    board.get(&format!("/v2/lab/app/blobs/{}?ns=docker.io", wanted[0])).body().unwrap();
    upstream.hang_up();
    assert_eq!(board.pull("lab/app", "latest").unwrap().digest, first.root);
    assert!(board.said(&["history", "docker.io/lab/app"]).contains("upstream's digest"));
    assert!(board.said(&["ls"]).contains("not complete here"));
}

#[test]
fn a_check_that_outlives_the_deadline_moves_the_pointer_beside_the_request() {
    let (first, second) = (image(1), image(2));
    let (upstream, board) = board::pulled(&first, "");
    upstream.push("lab/app", "latest", &second);
    upstream.on(Some("HEAD"), "/manifests/latest", Behaviour::HangBeforeHeader);
    let (status, tier, took) = board.ask("lab/app", "latest");
    assert_eq!((status, tier.as_str()), (200, "larder; hit; detail=last-complete"));
    assert!(took >= DEADLINE && took < DEADLINE + LEEWAY, "{took:?}");
    board.wait_for_log("upstream docker.io is slow");
    // Nobody waits for the check that is under way; when it ends the next request has its answer.
    upstream.clear();
    upstream.release();
    board.wait_until("the pointer's move", || {
        let versions = board.said(&["history", "docker.io/lab/app", "--json"]);
        versions.contains(&second.root.to_string())
    });
    assert_eq!(board.pull("lab/app", "latest").unwrap().digest, second.root);
}

#[test]
fn all_that_a_request_for_a_tag_waits_for_is_one_wait() {
    let upstream = upstream_with(&image(1));
    let board =
        Board::new(&upstream, "[tags]\nresolve_deadline = \"5s\"\n[fetch]\nheader_timeout = \"15s\"\n");
    // Its name comes late and its bytes do not come.
    let by_digest = format!("/manifests/{}", image(1).root);
    upstream.on(Some("HEAD"), "/manifests/latest", Behaviour::Delay(Duration::from_secs(5)));
    upstream.on(None, &by_digest, Behaviour::HangBeforeHeader);
    let headers = in_a_chain("6");
    let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
    let began = Instant::now();
    let answer = board.request("GET", TAG, &headers);
    let (status, took) = (answer.status, began.elapsed());
    let body = String::from_utf8(answer.body().unwrap()).unwrap();
    assert!(status == 502 && took < Duration::from_secs(9), "{status} after {took:?}: {body}");
    assert!(body.contains("did not answer within "), "{body}");
    upstream.clear();
    upstream.release();
    board.wait_until("the bytes", || board.pull("lab/app", "latest").is_ok());
}

#[test]
fn simultaneous_requests_ask_upstream_once() {
    let upstream = upstream_with(&image(1));
    let board =
        Board::new(&upstream, "[tags]\nresolve_deadline = \"20s\"\n[fetch]\nheader_timeout = \"15s\"\n");
    board.pull("lab/app", "latest").unwrap();
    let before = upstream.count("HEAD", "/manifests/latest");
    upstream.on(Some("HEAD"), "/manifests/latest", Behaviour::HangBeforeHeader);
    let mut clients: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(board.addr).unwrap()).collect();
    for client in &mut clients {
        client
            .write_all(format!("HEAD {TAG} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())
            .unwrap();
    }
    assert!(upstream.wait_for(before + 1, "HEAD", "/manifests/latest", board::PATIENCE));
    // Every request is written before the one question is answered; the pause lets the board read the last of them.
    std::thread::sleep(Duration::from_millis(500));
    upstream.release();
    for client in &mut clients {
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    assert_eq!(upstream.count("HEAD", "/manifests/latest"), before + 1);
}

#[test]
fn a_fresh_tag_is_served_without_asking() {
    let first = image(1);
    let (upstream, board) = board::pulled(&first, "[tags]\nrevalidate = \"1h\"\n");
    let before = upstream.requests().len();
    let again = board.pull("lab/app", "latest").unwrap();
    assert_eq!((again.tag_status.as_str(), again.digest), ("larder; hit; detail=fresh", first.root));
    assert_eq!(upstream.requests().len(), before);
}

#[test]
fn rules_make_exceptions() {
    let first = image(1);
    let upstream = upstream_with(&first);
    for tag in ["frozen", "kept", "passed"] {
        upstream.push("lab/app", tag, &first);
    }
    let rules = "[[tags.rule]]\nmatch = \"*:frozen\"\nfrozen = true\n[[tags.rule]]\nmatch = \"*:kept\"\non_missing = \"serve\"\n";
    let board = Board::new(&upstream, rules);
    for tag in ["frozen", "kept", "passed"] {
        board.pull("lab/app", tag).unwrap();
    }
    let before = upstream.count("HEAD", "/manifests/frozen");
    upstream.push("lab/app", "frozen", &image(2));
    assert_eq!(board.pull("lab/app", "frozen").unwrap().digest, first.root);
    assert_eq!(upstream.count("HEAD", "/manifests/frozen"), before);
    for tag in ["kept", "passed"] {
        upstream.remove_tag("lab/app", tag);
    }
    assert_eq!(board.pull("lab/app", "kept").unwrap().digest, first.root);
    let passed = board.get("/v2/lab/app/manifests/passed?ns=docker.io");
    assert_eq!(passed.status, 404);
    assert!(String::from_utf8(passed.body().unwrap()).unwrap().contains("MANIFEST_UNKNOWN"));
}

#[test]
fn an_older_version_stands_in_where_that_is_allowed() {
    let first = image(1);
    let upstream = Upstream::start().unwrap();
    upstream.push("lab/app", "1.0", &first);
    let allowed = Board::new(&upstream, "[tags]\nfallback_versions = true\n");
    let strict = Board::new(&upstream, "");
    allowed.pull("lab/app", "1.0").unwrap();
    strict.pull("lab/app", "1.0").unwrap();
    upstream.hang_up();
    let pulled = allowed.pull("lab/app", "1.1").unwrap();
    assert_eq!(
        (pulled.digest, pulled.tag_status.as_str()),
        (first.root, "larder; hit; detail=older-version")
    );
    assert_eq!(strict.ask("lab/app", "1.1").0, 502);
}

#[test]
fn a_cold_offline_boot_answers_at_once() {
    let first = image(1);
    let (upstream, mut board) = board::pulled(&first, "[tags]\nresolve_deadline = \"20s\"\n");
    // An uplink that swallows: without its memory the next start would wait for the deadline.
    upstream.on(None, "/v2/", Behaviour::HangBeforeHeader);
    assert_eq!(board.ask("lab/app", "latest").0, 200);
    board.wait_for_log("upstream docker.io cannot be reached");
    assert!(board.stop() < Duration::from_secs(10), "a stop took too long");
    board.start_again();
    let (status, tier, took) = board.ask("lab/app", "latest");
    assert_eq!((status, tier.as_str()), (200, "larder; hit; detail=last-complete"));
    assert!(took < LEEWAY, "the first answer took {took:?}");
    upstream.clear();
    upstream.release();
    assert!(board.wait_until_up("lab/app", "latest") < Duration::from_secs(30));
}

#[test]
fn the_uplinks_return_is_seen_without_a_restart() {
    let upstream = upstream_with(&image(1));
    let board = Board::new(&upstream, "");
    board.pull("lab/app", "latest").unwrap();
    upstream.hang_up();
    assert_eq!(board.ask("lab/app", "latest").0, 200);
    upstream.come_back().unwrap();
    let took = board.wait_until_up("lab/app", "latest");
    println!("back online {took:.1?} after the upstream's return (bound 30 s)");
    assert!(took < Duration::from_secs(30));
}

#[test]
fn a_rollback_holds_until_upstream_moves_on() {
    let (first, second, third) = (image(1), image(2), image(3));
    let (upstream, mut board) = board::pulled(&first, "");
    upstream.push("lab/app", "latest", &second);
    board.pull("lab/app", "latest").unwrap();
    board.wait_for_log(&format!("docker.io/lab/app:latest is complete at {}", second.root));
    board.said(&["rollback", "docker.io/lab/app"]);
    assert_eq!(board.pull("lab/app", "latest").unwrap().digest, first.root, "online");
    board.kill();
    let why = board.said(&["why", "docker.io/lab/app", "--json"]);
    assert!(why.contains("\"rolled_back_to\""), "{why}");
    board.start_again();
    upstream.hang_up();
    assert_eq!(board.pull("lab/app", "latest").unwrap().digest, first.root, "with the uplink gone");
    upstream.come_back().unwrap();
    upstream.push("lab/app", "latest", &third);
    board.wait_until_up("lab/app", "latest");
    assert_eq!(board.pull("lab/app", "latest").unwrap().digest, third.root);
}

#[test]
fn commands_say_the_same_with_the_server_running_and_stopped() {
    let upstream = upstream_with(&image(1));
    let mut board = Board::new(&upstream, "");
    board.pull("lab/app", "latest").unwrap();
    board.wait_for_log("is complete at");
    let commands: [&[&str]; 4] =
        [&["ls", "--json"], &["history", "docker.io/lab/app", "--json"], &["ls"], &["verify"]];
    let running: Vec<String> = commands.iter().map(|arguments| board.said(arguments)).collect();
    assert!(board.said(&["status"]).contains("running for"));
    board.stop();
    let stopped: Vec<String> = commands.iter().map(|arguments| board.said(arguments)).collect();
    assert_eq!(running, stopped);
    assert!(running[0].contains("docker.io/lab/app:latest") && running[0].contains("\"complete\""));
    assert!(board.said(&["status"]).contains("not running"));
    assert_eq!(board.command(&["why", "docker.io/lab/none"]).status.code(), Some(1));
    assert_eq!(board.command(&["why", "no such:image"]).status.code(), Some(2));
    assert_eq!(board.command(&["frobnicate"]).status.code(), Some(2));
}

#[test]
fn verify_finds_and_repairs_a_flipped_byte() {
    let first = image(1);
    let (_upstream, board) = board::pulled(&first, "");
    let layer = layer_of(&first);
    let path = board.data().join("blobs/sha256").join(layer.hex());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let found = board.command(&["verify"]);
    assert_eq!(found.status.code(), Some(1));
    let text = String::from_utf8(found.stdout).unwrap();
    assert!(text.contains(&layer.to_string()) && text.contains("of docker.io/lab/app:latest"), "{text}");
    assert_eq!(board.command(&["verify", "--repair"]).status.code(), Some(1));
    assert!(!board.has_blob(&layer));
    assert!(board.said(&["ls"]).contains("partial"));
    board.pull("lab/app", "latest").unwrap();
    assert!(board.said(&["verify"]).contains(" 0 corrupt"));
    board.check_blobs();
}

#[test]
fn the_index_can_be_lost_and_damaged() {
    let (first, second) = (image(1), image(2));
    let (upstream, mut board) = board::pulled(&first, "");
    upstream.push("lab/app", "latest", &second);
    board.pull("lab/app", "latest").unwrap();
    board.wait_for_log(&format!("is complete at {}", second.root));
    let before = board.said(&["history", "docker.io/lab/app"]);
    for damage in ["removed", "zeroed", "truncated"] {
        board.stop();
        let data = board.data().join("index/data.mdb");
        let len = std::fs::metadata(&data).unwrap().len();
        match damage {
            "removed" => std::fs::remove_dir_all(board.data().join("index")).unwrap(),
            "zeroed" => std::fs::write(&data, vec![0; usize::try_from(len).unwrap()]).unwrap(),
            _ => std::fs::File::options().write(true).open(&data).unwrap().set_len(len / 2).unwrap(),
        }
        board.start_again();
        board.wait_until("readiness", || board.get("/readyz").status == 200);
        assert_eq!(board.said(&["history", "docker.io/lab/app"]), before, "{damage}");
        assert_eq!(board.pull("lab/app", "latest").unwrap().digest, second.root, "{damage}");
    }
}

#[test]
fn one_upstream_that_hangs_does_not_hold_up_another() {
    let (hung, well) = (upstream_with(&image(1)), upstream_with(&image(2)));
    let more = format!("[upstream.\"ghcr.io\"]\nurl = \"{}\"\n{FETCH}", well.url());
    let board = Arc::new(Board::new(&hung, &more));
    hung.on(None, "/manifests/", Behaviour::HangBeforeHeader);
    let stuck: Vec<_> = (0..8)
        .map(|n| {
            let board = Arc::clone(&board);
            std::thread::spawn(move || board.ask(&format!("lab/n{n}"), "latest").0)
        })
        .collect();
    assert!(hung.wait_for(4, "HEAD", "/manifests/", board::PATIENCE));
    let began = std::time::Instant::now();
    assert_eq!(board.head("/v2/lab/app/manifests/latest?ns=ghcr.io").status, 200);
    assert!(began.elapsed() < LEEWAY, "{:?}", began.elapsed());
    hung.release();
    hung.clear();
    for thread in stuck {
        assert!([404, 502].contains(&thread.join().unwrap()));
    }
}

#[test]
fn images_of_every_shape_become_complete() {
    let upstream = Upstream::start().unwrap();
    let shapes = [
        ("docker", Image::docker(1, &[20_000])),
        ("nested", Image::nested(2, &[20_000])),
        ("sparse", Image::sparse(3, &[20_000])),
        ("sha512", Image::sha512(4, &[20_000])),
    ];
    for (name, image) in &shapes {
        upstream.push("lab/shapes", name, image);
    }
    let board = Board::new(&upstream, "");
    for (name, _) in &shapes {
        board.pull("lab/shapes", name).unwrap_or_else(|e| panic!("{name} online: {e}"));
    }
    upstream.hang_up();
    for (name, image) in &shapes {
        let pulled = board.pull("lab/shapes", name).unwrap_or_else(|e| panic!("{name} offline: {e}"));
        assert_eq!(pulled.digest, image.root, "{name}");
    }
    board.check_blobs();
}

#[test]
fn a_remembered_outage_refuses_nothing_that_can_be_had() {
    let upstream = upstream_with(&image(1));
    let mut board = Board::new(&upstream, "");
    board.pull("lab/app", "latest").unwrap();
    upstream.hang_up();
    for start in 0..5 {
        board.wait_until("the outage", || board.ask("lab/app", "latest").1.contains("last-complete"));
        board.kill();
        upstream.come_back().unwrap();
        board.start_again();
        // Whether the first probe has ended by now or not: nothing stands in for this, so upstream is asked.
        let new = format!("lab/new-{start}");
        upstream.push(&new, "latest", &image(2 + start));
        assert_eq!(board.pull(&new, "latest").unwrap().digest, image(2 + start).root);
        upstream.hang_up();
    }
}
