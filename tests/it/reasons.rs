//! The reason reaches the person: what a client is told, and what the log says, names registry, endpoint, image, cause and
//! what is cached, the first time and later.

use crate::board::{self, BOARD, Board, Folder, InProcess, image, layer_of, needed, secrets, upstream_with};
use larder::auth::Identity;
use larder::demo::upstream::{Behaviour, FaultyRegistry as Upstream, LoginDemand as Login};

/// Status and message of the one error that an answer must have.
fn refused(board: &Board, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let answer = board.request("GET", path, headers);
    let status = answer.status;
    let body: serde_json::Value = serde_json::from_slice(&answer.body().unwrap()).unwrap();
    let errors = body["errors"].as_array().unwrap();
    assert_eq!(errors.len(), 1);
    assert!(errors[0]["code"].as_str().is_some_and(|code| !code.is_empty()), "{body}");
    (status, errors[0]["message"].as_str().unwrap().to_owned())
}

fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

/// A board that has pulled `library/busybox` as `1.0` and `latest`, and one of another repository.
fn busybox() -> (Upstream, Board) {
    let upstream = upstream_with(&image(3));
    for (tag, seed) in [("1.0", 1), ("latest", 2)] {
        upstream.push("library/busybox", tag, &image(seed));
    }
    let board = Board::new(&upstream, "");
    for (repository, tag) in
        [("library/busybox", "1.0"), ("library/busybox", "latest"), ("lab/app", "latest")]
    {
        board.pull(repository, tag).unwrap();
    }
    board.wait_until("complete", || !board.said(&["ls"]).contains("partial"));
    (upstream, board)
}

#[test]
fn what_is_not_cached_is_told_with_what_is() {
    let (upstream, board) = busybox();
    upstream.hang_up();
    let endpoint = upstream.addr().to_string();
    let image = "docker.io/library/busybox:1.1";
    let path = "/v2/library/busybox/manifests/1.1?ns=docker.io";
    for again in [false, true] {
        let (status, text) = refused(&board, path, &[]);
        assert_eq!(status, 502);
        let cause = format!("{endpoint}: connection refused");
        assert_says(&text, &["docker.io", &cause, &format!("{image} is not cached; 1.0 and latest are")]);
        if again {
            assert_says(&text, &["unreachable for "]);
        }
    }
    // A HEAD has no body: the log has the same line.
    assert_eq!(board.head("/v2/library/busybox/manifests/1.2?ns=docker.io").status, 502);
    board.wait_for_log("docker.io/library/busybox:1.2 is not cached; 1.0 and latest are");
    let log = board.log();
    let line = log.lines().find(|line| line.contains("busybox:1.2 not answered")).unwrap();
    assert_says(line, &["docker.io is unreachable for ", &endpoint, "connection refused"]);
    // What other repositories have is not named, and what is cached is served.
    let (_, text) = refused(&board, "/v2/lab/none/manifests/latest?ns=docker.io", &[]);
    assert_says(&text, &["docker.io/lab/none:latest", "nothing of it is cached"]);
    board.pull("library/busybox", "1.0").unwrap();
}

#[test]
fn a_version_that_is_here_in_part_is_told_with_what_it_lacks() {
    let (upstream, board) = busybox();
    upstream.push("library/busybox", "2.0", &image(5));
    board.manifests("docker.io", "library/busybox", "2.0", &[]);
    upstream.hang_up();
    let (status, text) = refused(&board, "/v2/library/busybox/manifests/2.0?ns=docker.io", &[]);
    assert_eq!(status, 502);
    assert_says(
        &text,
        &["the cached version of docker.io/library/busybox:2.0 lacks ", "1.0 and latest are complete"],
    );
}

#[test]
fn a_digest_is_told_with_its_image_and_the_endpoint() {
    let (upstream, board) = busybox();
    let other = image(7);
    upstream.push("lab/other", "latest", &other);
    upstream.hang_up();
    let endpoint = upstream.addr().to_string();
    let blob = layer_of(&other);
    for (kind, digest) in [("manifests", &other.root), ("blobs", &blob), ("manifests", &other.root)] {
        let path = format!("/v2/lab/other/{kind}/{digest}?ns=docker.io");
        let (status, text) = refused(&board, &path, &[]);
        assert_eq!(status, 502);
        let image = format!("docker.io/lab/other@{digest}");
        assert_says(&text, &[&image, &endpoint, "connection refused", "not cached"]);
        assert_eq!(board.head(&path).status, 502);
        board.wait_for_log(&format!("{image} not answered: "));
    }
    // Of a repository that is here it is said which versions are.
    let path = format!("/v2/library/busybox/manifests/{}?ns=docker.io", other.root);
    let of_busybox = "of docker.io/library/busybox 1.0 and latest are cached";
    assert_says(&refused(&board, &path, &[]).1, &[&endpoint, of_busybox]);
    let list = "/v2/lab/other/tags/list?ns=docker.io";
    let (status, text) = refused(&board, list, &[]);
    assert_eq!(status, 502);
    assert_says(&text, &["docker.io/lab/other", &endpoint, "connection refused", "no tag of"]);
    assert!(needed(&image(1)).iter().all(|digest| board.has_blob(digest)));
}

#[test]
fn the_first_failure_says_its_cause() {
    const PATH: &str = "/v2/lab/app/manifests/latest?ns=docker.io";
    let upstream = upstream_with(&image(1));
    let endpoint = upstream.addr().to_string();
    for (behaviour, says) in [
        (Behaviour::HangBeforeHeader, "no answer in time"),
        (Behaviour::Status(503, Vec::new()), "answered 503"),
        (Behaviour::CutBeforeHeader, "cut"),
        (Behaviour::Status(429, Vec::new()), "limits the rate"),
    ] {
        upstream.clear();
        let board = Board::new(&upstream, "");
        upstream.on(None, "/lab/app/", behaviour);
        let (status, text) = refused(&board, PATH, &[]);
        assert_eq!(status, 502, "{text}");
        assert_says(&text, &["docker.io/lab/app:latest", &endpoint, says, "cached"]);
        upstream.release();
    }
    // TLS with somebody who speaks none, with a certificate that nobody vouches for, and a name that does not exist.
    let board = Board::with_url(&upstream.url().replace("http://", "https://"), "");
    assert_says(&refused(&board, PATH, &[]).1, &["docker.io/lab/app:latest", &endpoint, "cached"]);
    let board = Board::with_url("https://no-such-registry.invalid", "");
    let (status, text) = refused(&board, PATH, &[]);
    assert_eq!(status, 502);
    assert_says(&text, &["docker.io/lab/app:latest", "no-such-registry.invalid:443", "resolve", "cached"]);
}

#[test]
fn a_stale_answer_says_who_did_not_answer() {
    let (upstream, board) = busybox();
    let endpoint = upstream.addr().to_string();
    upstream.on(Some("HEAD"), "/busybox/manifests/", Behaviour::HangBeforeHeader);
    let answer = board.head("/v2/library/busybox/manifests/1.0?ns=docker.io");
    assert_eq!(answer.status, 200);
    let warning = answer.header("warning").unwrap().to_owned();
    assert_says(&warning, &[&format!("docker.io ({endpoint}) did not answer within 500ms")]);
    upstream.hang_up();
    board.wait_until("an outage", || {
        let answer = board.head("/v2/lab/app/manifests/latest?ns=docker.io");
        let warning = answer.header("warning").unwrap_or_default().to_owned();
        answer.status == 200 && warning.contains(&format!("{endpoint}: connection refused"))
    });
}

#[test]
fn who_may_not_see_a_repository_is_not_told_its_tags() {
    let (upstream, folder) = (upstream_with(&image(1)), Folder::new());
    upstream.push("lab/secret", "inner", &image(2));
    upstream.hide("lab/secret", true);
    upstream.login(Login::Limited("alice".into(), "s3cret".into()));
    let (login, users) = secrets(&folder);
    let board = Board::new(&upstream, &format!("{login}access = \"public\"\n{users}"));
    board.manifests("docker.io", "lab/secret", "inner", &[BOARD]);
    for digest in needed(&image(2)) {
        let path = format!("/v2/lab/secret/blobs/{digest}?ns=docker.io");
        board.request("GET", &path, &[BOARD]).body().unwrap();
    }
    board.pull("lab/app", "latest").unwrap();
    board.wait_until("complete", || !board.said(&["ls"]).contains("partial"));
    upstream.hang_up();
    let never = "/v2/lab/secret/manifests/never?ns=docker.io";
    assert_says(&refused(&board, never, &[BOARD]).1, &["docker.io/lab/secret:never is not cached; inner is"]);
    let (status, text) = refused(&board, never, &[]);
    assert_eq!(status, 502);
    assert!(text.contains("nothing of it is cached") && !text.contains("inner"), "{text}");
    let (_, text) = refused(&board, "/v2/lab/app/manifests/never?ns=docker.io", &[]);
    assert_says(&text, &["latest is"]);
}

#[test]
fn every_refusal_says_what_to_do() {
    let (upstream, mut board) = {
        let upstream = upstream_with(&image(1));
        let board = Board::new(&upstream, "[access]\npull = [\"docker.io/lab/app\"]\n");
        board.pull("lab/app", "latest").unwrap();
        (upstream, board)
    };
    let (status, text) = refused(&board, "/v2/lab/app/manifests/latest?ns=registry.example", &[]);
    assert_eq!(status, 404);
    assert_says(&text, &["registry.example is not configured", "[upstream.\"registry.example\"]"]);
    let endpoint = upstream.addr().to_string();
    let (status, text) = refused(&board, "/v2/lab/none/manifests/v1?ns=docker.io", &[]);
    assert_eq!(status, 404);
    assert_says(&text, &["docker.io/lab/none:v1", &endpoint, "404"]);
    upstream.on(None, "/lab/denied/", Behaviour::Status(403, Vec::new()));
    let (status, text) = refused(&board, "/v2/lab/denied/manifests/v1?ns=docker.io", &[]);
    assert_eq!(status, 403);
    assert_says(&text, &["docker.io/lab/denied:v1", &endpoint, "403"]);
    // For a client on another machine.
    let server = InProcess::instead_of(&mut board);
    let away = Identity::anonymous("10.0.0.7".parse().unwrap());
    let get = |path: &str| String::from_utf8_lossy(&server.get(&away, path, "")).into_owned();
    let denied = get("/v2/lab/other/manifests/latest?ns=docker.io");
    assert_says(&denied, &["docker.io/lab/other", "access.pull in larder.toml", "not cached"]);
    assert!(board::check_blobs(&board.data()) > 0);
}
