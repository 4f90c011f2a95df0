//! An upstream with several endpoints, and endpoints that are mirrors with names of their own.

use crate::board::{
    BOARD, Board, FETCH, Folder, PATIENCE, PLATFORM, image, layer_of, secrets, upstream_with,
};
use larder::demo::image::SampleImage as Image;
use larder::demo::upstream::{Behaviour, FaultyRegistry as Upstream, LoginDemand};
use std::time::Duration;

const TAG: &str = "/v2/lab/app/manifests/latest?ns=docker.io";

/// A configuration whose docker.io has these endpoints, each with more keys.
fn config(endpoints: &[(&Upstream, &str)], more: &str) -> String {
    let table = |(upstream, keys): &(&Upstream, &str)| {
        format!("[[upstream.\"docker.io\".endpoint]]\nurl = \"{}\"\n{keys}\n", upstream.url())
    };
    let tables: String = endpoints.iter().map(table).collect();
    format!(
        "platforms = [\"{PLATFORM}\"]\n[tags]\nresolve_deadline = \"500ms\"\n{FETCH}[disk]\nmin_free = \"1MiB\"\n{tables}{more}"
    )
}

fn board(first: &Upstream, second: &Upstream) -> Board {
    Board::with_config(&config(&[(first, ""), (second, "")], ""))
}

/// Headers that a server gives besides its own.
fn with(name: &str, value: &str) -> Behaviour {
    Behaviour::WithHeaders(vec![(name.into(), value.into())])
}

fn digest_of(board: &Board) -> String {
    board.head(TAG).header("docker-content-digest").unwrap_or("none").to_owned()
}

#[test]
fn what_an_endpoint_does_not_have_or_show_or_cannot_give_comes_from_the_next() {
    let app = image(1);
    for behaviour in [
        Some(Behaviour::Status(404, vec![])),
        Some(Behaviour::Status(403, vec![])),
        Some(Behaviour::Status(401, vec![])),
        Some(Behaviour::Status(503, vec![])),
        Some(Behaviour::Garbage),
        None,
    ] {
        let (first, second) = (Upstream::start().unwrap(), upstream_with(&app));
        // A neighbour is in the first alone.
        first.push("lab/other", "latest", &image(2));
        match &behaviour {
            Some(behaviour) => first.on(None, "/lab/app/", behaviour.clone()),
            None => first.hang_up(),
        }
        let board = board(&first, &second);
        assert_eq!(board.pull("lab/app", "latest").unwrap().digest, app.root, "{behaviour:?}");
        if behaviour.is_some() {
            assert_eq!(board.pull("lab/other", "latest").unwrap().digest, image(2).root, "{behaviour:?}");
            let link = if first.count("GET", "/lab/app/") > 0 { "is asked first" } else { "is passed over" };
            assert!(first.count("HEAD", "/lab/app/") > 0, "{behaviour:?}: the first {link}");
        }
    }
}

#[test]
fn the_endpoint_that_is_late_is_the_one_that_is_slow() {
    let app = image(1);
    let (quick, late) = (Upstream::start().unwrap(), upstream_with(&app));
    quick.push("lab/other", "latest", &image(2));
    let keys = FETCH.replace("header_timeout = \"3s\"", "header_timeout = \"20s\"");
    let text = config(&[(&quick, ""), (&late, "")], "").replace(FETCH, &keys).replace("\"500ms\"", "\"3s\"");
    let board = Board::with_config(&text);
    board.pull("lab/app", "latest").unwrap();
    board.pull("lab/other", "latest").unwrap();
    late.on(None, "", Behaviour::HangBeforeHeader);
    let (status, tier, took) = board.ask("lab/app", "latest");
    assert_eq!((status, tier.as_str()), (200, "larder; hit; detail=last-complete"));
    assert!(took >= Duration::from_secs(3), "{took:?}");
    // From then on nobody waits for what only the late one has, and what the other has is asked for.
    for _ in 0..3 {
        let (status, tier, took) = board.ask("lab/app", "latest");
        assert_eq!((status, tier.as_str()), (200, "larder; hit; detail=last-complete"));
        assert!(took < Duration::from_secs(3), "{took:?}");
    }
    assert_eq!(board.ask("lab/other", "latest").1, "larder; hit; detail=upstream");
    let says = |url: String| format!("({}) is slow", url.trim_start_matches("http://"));
    assert!(board.log().contains(&says(late.url())), "{}", board.log());
    assert!(!board.log().contains(&says(quick.url())), "{}", board.log());
    late.clear();
    late.release();
    board.wait_until("its return", || board.ask("lab/app", "latest").1 == "larder; hit; detail=upstream");
}

#[test]
fn the_last_endpoint_s_refusal_counts_unless_another_could_not_say() {
    let (first, second) = (upstream_with(&image(1)), Upstream::start().unwrap());
    second.push("lab/second", "latest", &image(2));
    let board = board(&first, &second);
    board.pull("lab/app", "latest").unwrap();
    board.pull("lab/second", "latest").unwrap();
    let none = "/v2/lab/none/manifests/latest?ns=docker.io";
    assert_eq!(board.head(none).status, 404, "neither has it");
    second.on(None, "/lab/none/", Behaviour::Status(403, vec![]));
    assert_eq!(board.head(none).status, 403, "the last one's answer counts");
    // The first, which alone has the image, cannot be asked: the second's 404 is not the registry's.
    first.hang_up();
    for _ in 0..2 {
        let answer = board.head(TAG);
        let status = answer.header("cache-status");
        assert_eq!((answer.status, status), (200, Some("larder; hit; detail=last-complete")));
    }
    let answer = board.get("/v2/lab/none/manifests/other?ns=docker.io");
    assert_eq!(answer.status, 502, "what the first has is not known");
    let body = String::from_utf8(answer.body().unwrap()).unwrap();
    assert!(body.contains("refused") && body.contains("403"), "{body}");
    assert_eq!(board.pull("lab/second", "latest").unwrap().tag_status, "larder; hit; detail=upstream");
    // Its own answer is one again.
    first.come_back().unwrap();
    first.remove_tag("lab/app", "latest");
    board.wait_until("the 404 of both", || board.head(TAG).status == 404);
}

#[test]
fn an_older_answer_of_a_lower_endpoint_does_not_replace_what_was_seen() {
    let (old, new) = (image(1), image(2));
    let (first, second) = (upstream_with(&new), upstream_with(&old));
    second.push("lab/second", "latest", &old);
    first.on(None, "/manifests/latest", with("Date", "Mon, 30 Nov 2026 12:00:00 GMT"));
    second.on(None, "/manifests/latest", with("Date", "Mon, 30 Nov 2026 11:00:00 GMT"));
    let mut board = board(&first, &second);
    board.pull("lab/app", "latest").unwrap();
    first.hang_up();
    let stale = |board: &Board| {
        let answer = board.head(TAG);
        assert_eq!(answer.header("docker-content-digest"), Some(new.root.to_string().as_str()));
        assert_eq!(answer.header("cache-status"), Some("larder; hit; detail=last-complete"));
    };
    stale(&board);
    let warning = board.head(TAG).header("warning").unwrap_or_default().to_owned();
    assert!(warning.contains("older than that of an endpoint before it"), "{warning}");
    // A tag that only the second knows is its own.
    assert_eq!(board.pull("lab/second", "latest").unwrap().digest, old.root);
    // After a restart the journal knows.
    board.stop();
    board.start_again();
    let asked = second.count("HEAD", "/lab/app/manifests/latest");
    board.wait_until("the second is asked", || {
        board.head(TAG);
        second.count("HEAD", "/lab/app/manifests/latest") > asked
    });
    stale(&board);
    // A later date of the lower one is news.
    let newest = image(3);
    second.push("lab/app", "latest", &newest);
    second.clear();
    second.on(None, "/manifests/latest", with("Date", "Mon, 30 Nov 2026 12:30:00 GMT"));
    board.wait_until("the newest is seen", || digest_of(&board) == newest.root.to_string());
    // What the first says counts, whatever its date.
    first.come_back().unwrap();
    board.wait_until("the first is believed", || digest_of(&board) == new.root.to_string());
}

#[test]
fn a_blob_goes_on_at_another_endpoint_and_begins_again_where_that_is_not_sure() {
    let app = Image::multi_arch(1, &[2_000_000]);
    let layer = layer_of(&app);
    let path = format!("/blobs/{layer}");
    let size = app.blobs[&layer].len();
    // Cut in the middle, then gone: the second sends the rest and nothing before it.
    let (first, second) = (upstream_with(&app), upstream_with(&app));
    first.on(None, &path, Behaviour::CutBodyAfter(size / 2));
    let going_on = board(&first, &second);
    going_on.manifests("docker.io", "lab/app", "latest", &[]);
    let got = std::thread::scope(|scope| {
        let pull = scope.spawn(|| going_on.pull("lab/app", "latest"));
        assert!(first.wait_for(1, "GET", &path, PATIENCE));
        first.on(None, &path, Behaviour::Status(404, vec![]));
        first.clear();
        first.on(None, &path, Behaviour::Status(404, vec![]));
        pull.join().unwrap().unwrap()
    });
    assert_eq!(got.digest, app.root);
    let ranges: Vec<_> = second.requests().into_iter().filter(|seen| seen.path.ends_with(&path)).collect();
    assert!(ranges.iter().any(|seen| seen.range.is_some()), "{ranges:?}");
    let sent = usize::try_from(second.blob_bytes_sent()).unwrap();
    assert!(sent < size, "{sent} of {size}: what is here does not come again");
    // The second states no size: what it has is fetched from the first byte on.
    let (first, second) = (upstream_with(&app), upstream_with(&app));
    first.on(None, &path, Behaviour::CutBodyAfter(size / 2));
    second.on(None, &path, Behaviour::NoContentLength);
    let again = board(&first, &second);
    again.manifests("docker.io", "lab/app", "latest", &[]);
    let first_try = std::thread::scope(|scope| {
        let pull = scope.spawn(|| again.pull("lab/app", "latest"));
        assert!(first.wait_for(1, "GET", &path, PATIENCE));
        first.clear();
        first.on(None, &path, Behaviour::Status(404, vec![]));
        pull.join().unwrap()
    });
    drop(first_try);
    again.wait_until("it is complete", || again.has_blob(&layer));
    again.pull("lab/app", "latest").unwrap();
    again.check_blobs();
}

#[test]
fn wrong_bytes_of_one_endpoint_are_fetched_again_from_another() {
    let app = Image::multi_arch(1, &[900_000]);
    let layer = layer_of(&app);
    let path = format!("/blobs/{layer}");
    for behaviour in
        [Behaviour::WrongBytes, Behaviour::ContentLength(1_234), Behaviour::ContentLength(9_999_999)]
    {
        let (first, second) = (upstream_with(&app), upstream_with(&app));
        first.push("lab/other", "latest", &image(7));
        first.on(Some("GET"), &path, behaviour.clone());
        let board = board(&first, &second);
        board.manifests("docker.io", "lab/app", "latest", &[]);
        // Who has had some of it is cut; who asks again has the other's.
        let began = std::time::Instant::now();
        while board.pull("lab/app", "latest").is_err() {
            assert!(began.elapsed() < PATIENCE, "{behaviour:?}:\n{}", board.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        board.check_blobs();
        assert!(board.has_blob(&layer));
        assert_eq!(first.count("GET", &path), 1, "{behaviour:?}: it is not asked again for this");
        assert_eq!(board.pull("lab/other", "latest").unwrap().digest, image(7).root, "{behaviour:?}");
        assert!(second.count("GET", &path) > 0);
    }
}

#[test]
fn what_is_streamed_and_wrong_comes_from_another_endpoint_the_next_time() {
    let app = image(1);
    let layer = layer_of(&app);
    let (first, second) = (upstream_with(&app), upstream_with(&app));
    first.on(Some("GET"), &format!("/blobs/{layer}"), Behaviour::WrongBytes);
    let board = board(&first, &second);
    let path = format!("/v2/lab/app/blobs/{layer}?ns=docker.io");
    assert!(board.get(&path).body().is_err(), "wrong bytes are cut");
    assert_eq!(board.get(&path).body().unwrap(), app.blobs[&layer].to_vec());
}

#[test]
fn an_endpoint_has_names_of_its_own() {
    let app = image(1);
    let (harbor, plain) = (Upstream::start().unwrap(), Upstream::start().unwrap());
    harbor.push("hub-proxy/lab/app", "latest", &app);
    harbor.push("hub-proxy/lab/app", "v2", &app);
    harbor.push("elsewhere/x", "latest", &app);
    harbor.login(LoginDemand::Token(None));
    plain.push("lab/app", "latest", &app);
    plain.push("lab/plain", "latest", &image(2));
    let board =
        Board::with_config(&config(&[(&harbor, "prefix = \"hub-proxy\""), (&plain, "send_ns = true")], ""));
    assert_eq!(board.pull("lab/app", "latest").unwrap().digest, app.root);
    assert_eq!(plain.requests().len(), 0, "the first has everything");
    assert_eq!(board.pull("lab/plain", "latest").unwrap().digest, image(2).root);
    let asked = plain.requests();
    assert!(
        !asked.is_empty() && asked.iter().all(|seen| seen.path == "/v2/" || seen.query == "ns=docker.io")
    );
    assert!(asked.iter().all(|seen| seen.via.as_deref().is_some_and(|via| via.starts_with("1.1 larder-"))));
    let text = |path: &str| String::from_utf8(board.get(path).body().unwrap()).unwrap();
    assert!(text("/v2/lab/app/tags/list?ns=docker.io").contains("\"v2\""));
    // Each has its own breaker.
    harbor.hang_up();
    assert_eq!(board.pull("lab/plain", "latest").unwrap().tag_status, "larder; hit; detail=upstream");
    let shown = board.said(&["config", "print"]);
    assert!(shown.contains("prefix = \"hub-proxy\"") && shown.contains("send_ns = true"), "{shown}");
}

#[test]
fn doctor_examines_each_endpoint() {
    let (first, second) = (upstream_with(&image(1)), upstream_with(&image(1)));
    let board = Board::with_config(&config(&[(&first, ""), (&second, "prefix = \"hub\"")], ""));
    second.on(None, "/v2/", Behaviour::Status(503, vec![]));
    let found = String::from_utf8(board.command(&["doctor"]).stdout).unwrap();
    let line =
        |place: String| found.lines().find(|line| line.contains(&place)).unwrap_or_default().to_owned();
    assert!(line(format!("docker.io at {} answers", first.addr())).contains("docker.io"), "{found}");
    assert!(line(format!("docker.io at {}/v2/hub", second.addr())).contains("503"), "{found}");
    board.said(&["config", "check"]);
}

#[test]
fn a_private_login_at_one_endpoint_makes_the_registry_private() {
    let app = image(1);
    let folder = Folder::new();
    let (login, auth) = secrets(&folder);
    for first_has_login in [true, false] {
        let (open, closed) = (Upstream::start().unwrap(), upstream_with(&app));
        open.push("lab/open", "latest", &image(2));
        closed.login(LoginDemand::Basic("alice".into(), "s3cret".into()));
        let endpoints: [(&Upstream, &str); 2] =
            if first_has_login { [(&closed, &login), (&open, "")] } else { [(&open, ""), (&closed, &login)] };
        let board = Board::with_config(&config(&endpoints, &auth));
        for path in [TAG, "/v2/lab/open/manifests/latest?ns=docker.io"] {
            assert_eq!(board.head(path).status, 401, "{path}");
            assert_eq!(board.request("HEAD", path, &[BOARD]).status, 200, "{path}");
        }
        assert!(open.requests().iter().all(|seen| !seen.authorized), "the login goes to its endpoint alone");
    }
}
