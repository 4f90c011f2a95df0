//! Larders in a chain: one is the upstream of the other.

use crate::board::{Board, FETCH, PATIENCE, PLATFORM, image, upstream_with};
use larder::demo::upstream::{Behaviour, FaultyRegistry as Upstream};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

const TAG: &str = "/v2/lab/app/manifests/latest?ns=docker.io";
const GHCR: &str = "/v2/lab/app/manifests/latest?ns=ghcr.io";

/// A configuration with these lines for upstreams.
fn config(upstreams: &str) -> String {
    config_with("500ms", FETCH, upstreams)
}

fn config_with(deadline: &str, fetch: &str, upstreams: &str) -> String {
    format!(
        "platforms = [\"{PLATFORM}\"]\n[tags]\nresolve_deadline = \"{deadline}\"\n{fetch}[disk]\nmin_free = \"1MiB\"\n{upstreams}"
    )
}

fn upstream(registry: &str, url: &str, more: &str) -> String {
    format!("[upstream.\"{registry}\"]\nurl = \"{url}\"\n{more}\n")
}

fn url(board: &Board) -> String {
    format!("http://{}", board.addr)
}

/// A board in front of a registry, and one in front of that board, both for docker.io.
fn two(hub: &Upstream) -> (Board, Board) {
    let inner = Board::with_config(&config(&upstream("docker.io", &hub.url(), "")));
    let outer = Board::with_config(&config(&upstream("docker.io", &url(&inner), "send_ns = true")));
    (inner, outer)
}

fn status(board: &Board, path: &str) -> String {
    board.head(path).header("cache-status").unwrap_or("none").to_owned()
}

fn digest(board: &Board, path: &str) -> String {
    board.head(path).header("docker-content-digest").unwrap_or("none").to_owned()
}

#[test]
fn each_registry_is_itself_through_two_boards_or_not_answered() {
    let (hubs, ghcrs) = (image(1), image(2));
    let (hub, ghcr) = (upstream_with(&hubs), upstream_with(&ghcrs));
    let upstreams = upstream("docker.io", &hub.url(), "") + &upstream("ghcr.io", &ghcr.url(), "");
    let inner = Board::with_config(&config(&upstreams));
    let through = |ns: &str| {
        let both = upstream("docker.io", &url(&inner), ns) + &upstream("ghcr.io", &url(&inner), ns);
        Board::with_config(&config(&both))
    };
    let outer = through("send_ns = true");
    for (path, image) in [(TAG, &hubs), (GHCR, &ghcrs)] {
        assert_eq!(digest(&outer, path), image.root.to_string(), "{path}");
        assert_eq!(outer.get(path).body().unwrap(), image.manifests[&image.root].1.to_vec());
    }
    let pulled = outer.pull("lab/app", "latest").unwrap();
    assert_eq!(pulled.digest, hubs.root);
    // Without ns the inner board takes its default registry for meant, and says so.
    let silent = through("");
    for path in [GHCR.to_owned(), GHCR.replace("latest", "v9"), GHCR.replace("manifests/latest", "tags/list")]
    {
        let answer = silent.get(&path);
        assert_eq!(answer.status, 502, "{path}");
        let body = String::from_utf8(answer.body().unwrap()).unwrap();
        assert!(body.contains("set send_ns = true in [upstream.\\\"ghcr.io\\\"]"), "{body}");
    }
    assert_eq!(silent.pull("lab/app", "latest").unwrap().digest, hubs.root, "what is meant is answered");
    let catalog = |board: &Board| String::from_utf8(board.get("/v2/_catalog?ns=docker.io").body().unwrap());
    assert_eq!(
        catalog(&silent).unwrap(),
        r#"{"repositories":["lab/app"]}"#,
        "names are without their registry"
    );
    assert_eq!(catalog(&outer).unwrap(), r#"{"repositories":["lab/app"]}"#);
    // An older board says nothing of the registry.
    let old = upstream_with(&hubs);
    let told = vec![("Cache-Status".to_owned(), "larder; hit; detail=upstream".to_owned())];
    old.on(None, "/lab/", Behaviour::WithHeaders(told));
    let both = upstream("docker.io", &old.url(), "") + &upstream("ghcr.io", &old.url(), "");
    let outer = Board::with_config(&config(&both));
    assert_eq!((outer.head(GHCR).status, outer.head(TAG).status), (502, 200));
}

#[test]
fn what_a_board_answers_without_its_upstream_is_not_seen() {
    let (first, second) = (image(1), image(2));
    let hub = upstream_with(&first);
    hub.push("lab/new", "latest", &second);
    let (mut inner, outer) = two(&hub);
    outer.pull("lab/app", "latest").unwrap();
    inner.pull("lab/new", "latest").unwrap();
    assert_eq!(status(&outer, TAG), "larder; hit; detail=upstream");
    hub.hang_up();
    inner.wait_until("the outage", || status(&inner, TAG).contains("last-complete"));
    let answer = outer.head(TAG);
    assert_eq!(answer.header("cache-status"), Some("larder; hit; detail=last-complete"));
    assert_eq!(answer.header("docker-content-digest"), Some(first.root.to_string().as_str()));
    let warning = answer.header("warning").unwrap_or_default().to_owned();
    assert!(warning.contains("is a Larder that cannot reach it either"), "{warning}");
    let asked = outer.request("HEAD", TAG, &[("Via", "1.1 larder-00")]);
    assert!(asked.header("age").is_some_and(|age| age.parse::<u64>().is_ok()), "another board is told");
    // A list of what the inner board has is none of the registry.
    let list = outer.get("/v2/lab/app/tags/list?ns=docker.io");
    assert!(list.header("warning").unwrap_or_default().contains("lists what is cached there"));
    assert_eq!(list.body().unwrap(), br#"{"name":"lab/app","tags":["latest"]}"#);
    // What only the inner board has is served, as a peer's version, and kept.
    let pulled = outer.pull("lab/new", "latest").unwrap();
    assert_eq!((pulled.digest, pulled.tag_status.contains("detail=peer")), (second.root.clone(), true));
    let history = outer.said(&["history", "--json", "docker.io/lab/new:latest"]);
    assert!(!history.contains("\"seen\":{\"digest\""), "{history}");
    outer.wait_for_log(&format!("lab/new:latest is complete at {}", second.root));
    // The outer board's own upstream is well: what is absent everywhere is the inner one's 502.
    assert_eq!(outer.head("/v2/lab/none/manifests/latest?ns=docker.io").status, 502);
    let up = "larder_upstream_up{upstream=\"docker.io\"}";
    assert_eq!(outer.metric(up), 1);
    // With the hub back its news are seen by both.
    hub.come_back().unwrap();
    hub.push("lab/app", "latest", &second);
    outer.wait_until("the news", || digest(&outer, TAG) == second.root.to_string());
    outer.pull("lab/app", "latest").unwrap();
    // Without any upstream all of it is served.
    inner.kill();
    let new = "/v2/lab/new/manifests/latest?ns=docker.io";
    for path in [TAG, new] {
        outer.wait_until("the outage", || status(&outer, path).contains("last-complete"));
        assert_eq!(digest(&outer, path), second.root.to_string());
    }
    outer.pull("lab/new", "latest").unwrap();
}

#[test]
fn a_board_that_knows_a_newer_version_is_believed_and_another_endpoint_more() {
    let (first, second) = (image(1), image(2));
    let hub = upstream_with(&first);
    let (inner, outer) = two(&hub);
    outer.pull("lab/app", "latest").unwrap();
    // Only the inner board sees the second version; a second passes, so that it is the later one.
    std::thread::sleep(std::time::Duration::from_millis(2_100));
    hub.push("lab/app", "latest", &second);
    inner.pull("lab/app", "latest").unwrap();
    hub.hang_up();
    inner.wait_until("the outage", || status(&inner, TAG).contains("last-complete"));
    let pulled = outer.pull("lab/app", "latest").unwrap();
    assert_eq!((pulled.digest, pulled.tag_status.contains("detail=peer")), (second.root, true));
    // The registry itself as a second endpoint goes before what the board says.
    let (newest, direct) = (image(3), Upstream::start().unwrap());
    direct.push("lab/app", "latest", &newest);
    let endpoint =
        |url: &str, more| format!("[[upstream.\"docker.io\".endpoint]]\nurl = \"{url}\"\n{more}\n");
    let both = endpoint(&url(&inner), "send_ns = true") + &endpoint(&direct.url(), "");
    let outer = Board::with_config(&config(&both));
    let pulled = outer.pull("lab/app", "latest").unwrap();
    assert_eq!((pulled.digest, pulled.tag_status.contains("detail=upstream")), (newest.root, true));
    // Where it says that there is none, the board that could not ask is what is left.
    direct.remove_tag("lab/app", "latest");
    let answer = outer.head(TAG);
    assert_eq!((answer.status, answer.header("cache-status").unwrap().contains("upstream")), (200, false));
}

#[test]
fn three_boards_in_a_row_are_one_chain() {
    let (first, second) = (image(1), image(2));
    let hub = upstream_with(&first);
    hub.push("lab/two", "latest", &second);
    let (mut inner, middle) = two(&hub);
    let outer = Board::with_config(&config(&upstream("docker.io", &url(&middle), "send_ns = true")));
    assert_eq!(outer.pull("lab/app", "latest").unwrap().tag_status, "larder; fwd=uri-miss; detail=upstream");
    let ways: Vec<_> = hub.requests().into_iter().filter_map(|seen| seen.via).collect();
    assert!(ways.iter().any(|way| way.matches("1.1 larder-").count() == 3), "{ways:?}");
    inner.pull("lab/two", "latest").unwrap();
    hub.hang_up();
    inner.wait_until("the outage", || status(&inner, TAG).contains("last-complete"));
    for board in [&middle, &outer] {
        assert_eq!(status(board, TAG), "larder; hit; detail=last-complete");
        let new = board.head("/v2/lab/two/manifests/latest?ns=docker.io");
        let tier = new.header("cache-status").unwrap();
        assert_eq!((new.status, tier.contains("detail=peer")), (200, true), "{tier}");
    }
    assert_eq!(outer.pull("lab/two", "latest").unwrap().digest, second.root);
    outer.wait_for_log(&format!("lab/two:latest is complete at {}", second.root));
    inner.kill();
    drop(middle);
    assert_eq!(outer.pull("lab/app", "latest").unwrap().digest, first.root);
    assert_eq!(outer.pull("lab/two", "latest").unwrap().digest, second.root);
}

/// An address whose board is known only after another one was told of it.
struct Relay(SocketAddr, Arc<OnceLock<SocketAddr>>);

impl Relay {
    fn start() -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Relay(listener.local_addr().unwrap(), Arc::default());
        let target = Arc::clone(&relay.1);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Some(server) = target.get().and_then(|at| TcpStream::connect(at).ok()) else { continue };
                for (mut from, mut to) in
                    [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)]
                {
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(std::net::Shutdown::Both);
                    });
                }
            }
        });
        relay
    }
}

#[test]
fn boards_that_lead_back_to_each_other_end_the_loop() {
    let hub = upstream_with(&image(1));
    let relay = Relay::start();
    let leading_to = |addr: SocketAddr| {
        let ghcr = upstream("ghcr.io", &format!("http://{addr}"), "send_ns = true");
        Board::with_config(&config(&(upstream("docker.io", &hub.url(), "") + &ghcr)))
    };
    let one = leading_to(relay.0);
    let other = leading_to(one.addr);
    relay.1.set(other.addr).unwrap();
    for (board, path) in [(&one, GHCR), (&other, GHCR), (&one, "/v2/lab/app/tags/list?ns=ghcr.io")] {
        let began = Instant::now();
        let answer = board.get(path);
        assert_eq!(answer.status, 502);
        let body = String::from_utf8(answer.body().unwrap()).unwrap();
        assert!(body.contains("50"), "{body}");
        assert!(began.elapsed() < PATIENCE / 2, "it ends by itself");
    }
    assert!(one.log().contains("508: ") && other.log().contains("508: "), "{}", one.log());
    for board in [&one, &other] {
        assert_eq!(board.pull("lab/app", "latest").unwrap().digest, image(1).root, "the rest goes on");
    }
    // A request that says that it has been here before.
    let own = other.head(TAG).header("via").unwrap().to_owned();
    assert!(own.starts_with("1.1 larder-") && own != one.head(TAG).header("via").unwrap());
    for way in [own.clone(), format!("1.1 nginx, {own} (x), 1.1 larder-00")] {
        let answer = other.request("GET", TAG, &[("Via", &way)]);
        assert_eq!(answer.status, 508);
        let body = String::from_utf8(answer.body().unwrap()).unwrap();
        assert!(body.contains("lead back to this one") && body.contains(&own), "{body}");
    }
    assert_eq!(other.request("HEAD", TAG, &[("Via", "1.1 larder-00, 1.1 nginx")]).status, 200);
}

#[test]
fn the_inner_board_gives_up_before_the_outer_one_does() {
    let fetch = "[fetch]\nconnect_timeout = \"2s\"\nheader_timeout = \"6s\"\nstall_timeout = \"2s\"\n";
    let hub = upstream_with(&image(1));
    let inner = Board::with_config(&config_with("4s", fetch, &upstream("docker.io", &hub.url(), "")));
    let to_inner = upstream("docker.io", &url(&inner), "send_ns = true");
    let outer = Board::with_config(&config_with("4s", fetch, &to_inner));
    outer.pull("lab/app", "latest").unwrap();
    hub.on(None, "/manifests/", Behaviour::HangBeforeHeader);
    let answer = outer.head(TAG);
    let warning = answer.header("warning").unwrap_or_default().to_owned();
    assert!(warning.contains("is a Larder that cannot reach it either"), "{warning}");
    // What nobody has takes longer, and is still the inner board's answer and not its silence.
    let answer = outer.get("/v2/lab/none/manifests/latest?ns=docker.io");
    assert_eq!(answer.status, 502);
    assert_eq!(outer.metric("larder_upstream_up{upstream=\"docker.io\"}"), 1, "{}", outer.log());
    assert!(!outer.log().contains("cannot be reached"), "{}", outer.log());
    hub.release();
}

#[test]
fn what_a_board_does_not_stand_before_is_no_word_of_the_registry_to_another_board() {
    let board = Board::new(&upstream_with(&image(1)), "");
    let path = "/v2/lab/app/manifests/latest?ns=other.example";
    for (via, status) in [("1.1 proxy", 404), ("1.1 larder-00", 502), ("1.0 proxy, 1.1 larder-0a", 502)] {
        for method in ["GET", "HEAD"] {
            assert_eq!(board.request(method, path, &[("Via", via)]).status, status, "{via} {method}");
        }
    }
}
