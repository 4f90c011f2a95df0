//! Failures of one repository, one redirect target or one token server, and everything else that goes on.

use super::*;

/// What goes wrong where `/bad/` is asked for.
type Fault = fn(&Seen, &mut dyn Write) -> Next;

fn garbage(_: &Seen, out: &mut dyn Write) -> Next {
    drop(out.write_all(b"\x00\x01 this is no HTTP \xff\r\n\r\n"));
    Next::Close
}

fn cut(_: &Seen, _: &mut dyn Write) -> Next {
    Next::Close
}

fn long_header(_: &Seen, out: &mut dyn Write) -> Next {
    let padding = "x".repeat(100_000);
    drop(
        out.write_all(format!("HTTP/1.1 200 X\r\nX-Long: {padding}\r\nContent-Length: 0\r\n\r\n").as_bytes()),
    );
    Next::Close
}

fn many_headers(_: &Seen, out: &mut dyn Write) -> Next {
    let padding = "X-Many: x\r\n".repeat(2_000);
    drop(out.write_all(format!("HTTP/1.1 200 X\r\n{padding}Content-Length: 0\r\n\r\n").as_bytes()));
    Next::Close
}

fn server_error(seen: &Seen, out: &mut dyn Write) -> Next {
    answer(seen, out, 500, &[], b"")
}

fn limited(seen: &Seen, out: &mut dyn Write) -> Next {
    answer(seen, out, 429, &[("Retry-After", "3600")], b"")
}

fn limited_without_a_time(seen: &Seen, out: &mut dyn Write) -> Next {
    answer(seen, out, 429, &[], b"")
}

const FAULTS: [(&str, Fault); 7] = [
    ("500", server_error),
    ("garbage", garbage),
    ("cut", cut),
    ("a long header", long_header),
    ("many headers", many_headers),
    ("429", limited),
    ("429 without a time", limited_without_a_time),
];

fn bad() -> RepositoryName {
    "a/bad".parse().unwrap()
}

/// Asks for the good repository in every way, while nothing may be held against it.
fn assert_good_goes_on(upstream: &Upstream, what: &str) {
    let link = upstream.link();
    assert!(link.is_up(), "{what}: {link:?}");
    let head = upstream.head_manifest(&repository(), &tag());
    assert!(head.is_ok(), "{what}: {head:?}");
    let fetched = upstream.fetch_manifest(&repository(), &tag());
    assert!(fetched.is_ok(), "{what}: {fetched:?}");
    assert!(upstream.link().is_up(), "{what}");
}

#[test]
fn what_one_repository_does_wrong_is_not_held_against_the_others() {
    for (what, fault) in FAULTS {
        let server = Server::new(move |seen, out| {
            if seen.target.contains("/bad/") { fault(seen, out) } else { index_answer(seen, out) }
        });
        let (_all, upstream) = open(&config(&server.url())).unwrap();
        for _ in 0..3 {
            upstream.head_manifest(&bad(), &tag()).unwrap_err();
            upstream.fetch_manifest(&bad(), &tag()).unwrap_err();
            upstream.head_blob(&bad(), &sha256(b"x")).unwrap_err();
            upstream.open_blob(&bad(), &sha256(b"x"), 0).unwrap_err();
            assert_good_goes_on(&upstream, what);
        }
    }
}

#[test]
fn a_redirect_target_stops_what_it_was_asked_for_and_nothing_else() {
    for (what, fault) in FAULTS {
        let storage = Server::new(fault);
        let to = storage.url();
        let server = Server::new(move |seen, out| {
            if seen.target.contains("/bad/") {
                return answer(seen, out, 307, &[("Location", &format!("{to}/x"))], b"");
            }
            index_answer(seen, out)
        });
        let (_all, upstream) = open(&config(&server.url())).unwrap();
        for _ in 0..3 {
            upstream.fetch_manifest(&bad(), &tag()).unwrap_err();
            assert_good_goes_on(&upstream, what);
        }
        let asked = storage.requests().len();
        assert_eq!(
            asked == 1,
            what == "429",
            "{what}: {asked} requests, where only a limit keeps from asking"
        );
    }
}

/// A registry that wants a token for the bad repository only.
fn half_open(realm: &str) -> Server {
    let challenge = format!("Bearer realm={realm}/token");
    Server::new(move |seen, out| {
        if seen.target.contains("/bad/") {
            return answer(seen, out, 401, &[("WWW-Authenticate", &challenge)], b"");
        }
        index_answer(seen, out)
    })
}

#[test]
fn a_token_server_stops_who_needs_a_token_and_nobody_else() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut realms: Vec<_> = FAULTS.iter().map(|(what, fault)| (*what, Server::new(*fault).url())).collect();
    realms.push(("refused", format!("http://{closed}")));
    realms.push(("silence", Server::new(|_, _| Next::Hang).url()));
    for (what, realm) in realms {
        let server = half_open(&realm);
        let mut config = hasty(&server.url());
        config.upstreams[0].endpoints[0].realm = Some(realm);
        let (_all, upstream) = open(&config).unwrap();
        for _ in 0..2 {
            let failure = upstream.fetch_manifest(&bad(), &tag()).unwrap_err();
            assert!(!matches!(failure, Failure::Missing { .. }), "{what}: {failure}");
            assert_good_goes_on(&upstream, what);
        }
    }
}

#[test]
fn a_limit_on_the_probe_holds_everything() {
    let server = Server::new(limited);
    let (_all, upstream) = open(&config(&server.url())).unwrap();
    upstream.fetch_manifest(&bad(), &tag()).unwrap_err();
    let deadline = Instant::now() + Duration::from_secs(60);
    while upstream.endpoints()[0].holds.check_all("h").is_ok() {
        assert!(Instant::now() < deadline, "the probe's answer goes unnoticed");
        thread::sleep(Duration::from_millis(5));
    }
    let before = server.requests().len();
    let failure = upstream.head_manifest(&repository(), &tag()).unwrap_err();
    assert_eq!(failure.cause(), Some(Cause::RateLimited), "{failure}");
    assert_eq!(server.requests().len(), before);
    assert!(!upstream.link().is_known_down());
}

#[test]
fn a_token_that_cannot_be_had_does_not_make_what_needs_it_missing() {
    let realm = Server::new(server_error);
    let server = half_open(&realm.url());
    let mut config = config(&server.url());
    config.upstreams[0].endpoints[0].realm = Some(realm.url());
    let (_all, upstream) = open(&config).unwrap();
    let first = upstream.fetch_manifest(&bad(), &tag()).unwrap_err();
    let second = upstream.fetch_manifest(&bad(), &tag()).unwrap_err();
    assert_eq!(
        (first.cause(), second.cause()),
        (Some(Cause::ServerError(500)), Some(Cause::ServerError(500)))
    );
}

#[test]
fn what_is_suspect_elsewhere_has_the_endpoint_probed() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gone = format!("http://{closed}");
    let storage = gone.clone();
    let server = Server::new(move |seen, out| answer(seen, out, 307, &[("Location", &storage)], b""));
    let (_all, upstream) = open(&config(&server.url())).unwrap();
    upstream.fetch_manifest(&bad(), &tag()).unwrap_err();
    assert!(upstream.link().is_up(), "the storage's failure is not the endpoint's");
    let (_all, upstream) = open(&config(&gone)).unwrap();
    upstream.endpoints()[0].breaker().suspect();
    wait_for_link(&upstream.endpoints()[0], LinkState::is_known_down);
}

#[test]
fn a_list_comes_from_its_own_origin_or_not_at_all() {
    let list = br#"{"name":"a/b","tags":["latest"],"repositories":["evil/x"]}"#;
    let stranger = Server::new(|seen, out| answer(seen, out, 200, &[], list));
    let to = stranger.url();
    let server = Server::new(move |seen, out| match seen.target.as_str() {
        target if target.contains("/moved/") => answer(seen, out, 307, &[("Location", "/v2/a/here")], b""),
        "/v2/a/here" => answer(seen, out, 200, &[("Link", "</v2/a/here?last=x>; rel=next")], list),
        target if target.contains("/paged/") => {
            let next = format!("<{to}/v2/a/b/tags/list?last=x>; rel=next");
            answer(seen, out, 200, &[("Link", &next)], list)
        }
        _ => answer(seen, out, 307, &[("Location", &format!("{to}{}", seen.target))], b""),
    });
    let (_all, upstream) = open(&config(&server.url())).unwrap();
    let wrong = |failure: Failure| assert_eq!(failure.cause(), Some(Cause::NotARegistry), "{failure:?}");
    let all = ListPage::default();
    wrong(upstream.list_tags(&repository(), &all).unwrap_err());
    wrong(upstream.catalog(&all).unwrap_err());
    wrong(upstream.referrers(&repository(), &sha256(b"x"), None, None).unwrap_err());
    assert_eq!(stranger.requests().len(), 0, "it is not even asked");
    let moved = upstream.list_tags(&"a/moved".parse().unwrap(), &all).unwrap();
    assert_eq!(moved.rest, stated("/v2/a/here?last=x"));
    assert_eq!(moved.names, ["latest"]);
    let paged = upstream.list_tags(&"a/paged".parse().unwrap(), &all).unwrap();
    assert_eq!(paged.rest, stated("/v2/a/b/tags/list?last=x"), "the registry itself is asked for it");
    assert_eq!(stranger.requests().len(), 0);
    assert!(upstream.endpoints()[0].examine().is_ok(), "whether it is there may be answered elsewhere");
}
