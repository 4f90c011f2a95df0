//! Upstreams with several endpoints, and endpoints that are mirrors themselves.

use super::*;

#[test]
fn an_outage_of_one_endpoint_leads_to_the_next() {
    let (first, second, config) = two_endpoints(503);
    let (_all, upstream) = open(&config).unwrap();
    assert_eq!(upstream.link(), LinkState::NotAsked);
    let fetched = upstream.fetch_manifest(&repository(), &tag()).unwrap();
    assert_eq!(fetched.endpoint, format!("127.0.0.1:{}", second.port));
    assert_eq!(upstream.link(), LinkState::Up);
    let [one, other] = upstream.endpoints() else { panic!("there are two") };
    wait_for_link(one, |link| matches!(link, LinkState::Failing { .. }));
    assert_eq!(other.breaker().link(), LinkState::Up);
    assert_eq!(
        (one.note(), other.note()),
        ("down/reg.test", format!("down/reg.test/{}", other.name).as_str())
    );
    // What is known to fail is passed over.
    upstream.fetch_manifest(&repository(), &tag()).unwrap();
    let asked = first.lines().iter().filter(|line| line.contains("manifests")).count();
    assert_eq!((asked, second.lines().len()), (1, 2));
    assert_eq!(
        (one.bytes(), other.bytes(), upstream.bytes()),
        (0, 2 * INDEX.len() as u64, 2 * INDEX.len() as u64)
    );
}

#[test]
fn an_outage_of_all_endpoints_is_the_firsts_and_all_are_asked_again() {
    let (first, _second, mut config) = two_endpoints(503);
    config.upstreams[0].endpoints[1].url = config.upstreams[0].endpoints[0].url.clone();
    let (_all, upstream) = open(&config).unwrap();
    for round in 1..=2 {
        let failure = upstream.fetch_manifest(&repository(), &tag()).unwrap_err();
        assert_eq!(failure.cause(), Some(Cause::ServerError(503)));
        let asked = first.lines().iter().filter(|line| line.contains("manifests")).count();
        assert_eq!(asked, 2 * round);
        for endpoint in upstream.endpoints() {
            wait_for_link(endpoint, |link| matches!(link, LinkState::Failing { .. }));
        }
    }
    assert!(!upstream.link().is_up());
}

#[test]
fn what_the_first_endpoint_does_not_give_the_next_is_asked_for() {
    for status in [404, 403, 401, 200] {
        let (first, second, config) = two_endpoints(status);
        let (_all, upstream) = open(&config).unwrap();
        let head = upstream.all_heads(&repository(), &tag());
        // It says no digest, which a HEAD may.
        assert_eq!(head.unwrap().0, usize::from(status != 200), "{status}");
        let fetched = upstream.fetch_manifest(&repository(), &tag()).unwrap();
        assert_eq!((fetched.place, fetched.endpoint), (1, format!("127.0.0.1:{}", second.port)), "{status}");
        assert_eq!(first.lines().len(), 2, "each question is asked there first");
        assert!(upstream.endpoints()[0].breaker().link().is_up(), "{status}");
    }
}

#[test]
fn the_last_refusal_counts_and_only_if_every_endpoint_could_say() {
    let refusing = |first: u16, second: u16| {
        let one = Server::new(move |seen, out| answer(seen, out, first, &[], b""));
        let other = Server::new(move |seen, out| answer(seen, out, second, &[], b""));
        let mut config = config(&one.url());
        config.upstreams[0].endpoints.push(EndpointSettings::at(other.url()));
        let (_all, upstream) = open(&config).unwrap();
        (0..2).map(|_| upstream.head_manifest(&repository(), &tag()).unwrap_err()).collect::<Vec<_>>()
    };
    for failure in refusing(404, 403) {
        assert!(matches!(failure, Failure::Denied { status: 403, .. }), "{failure:?}");
    }
    for failure in refusing(403, 404) {
        assert!(matches!(failure, Failure::Missing { .. }), "{failure:?}");
    }
    for (first, second) in [(503, 404), (404, 503), (500, 403)] {
        for failure in refusing(first, second) {
            assert!(failure.is_outage(), "{first} {second}: {failure:?}");
            let text = failure.to_string();
            assert!(text.contains("50") && text.contains("40"), "both are named: {text}");
        }
    }
}

#[test]
fn that_one_endpoint_knows_no_referrers_does_not_say_that_there_are_none() {
    let signature = [("Docker-Distribution-Api-Version", "registry/2.0")];
    let none = Server::new(move |seen, out| answer(seen, out, 404, &signature, b""));
    let list = br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
    let knows = Server::new(|seen, out| answer(seen, out, 200, &[("Content-Type", media::OCI_INDEX)], list));
    let fails = Server::new(|seen, out| answer(seen, out, 503, &[], b""));
    let ask = |second: &Server| {
        let mut config = config(&none.url());
        config.upstreams[0].endpoints.push(EndpointSettings::at(second.url()));
        let (_all, upstream) = open(&config).unwrap();
        let asked = || upstream.referrers(&repository(), &sha256(b"x"), None, None);
        // Known to fail or not.
        (0..2).map(|_| asked()).collect::<Vec<_>>()
    };
    assert!(ask(&knows).into_iter().all(|list| list.unwrap().is_some()));
    assert!(ask(&fails).into_iter().all(|list| list.unwrap_err().is_outage()));
    assert!(ask(&none).into_iter().all(|list| list.unwrap().is_none()));
}

#[test]
fn an_endpoint_that_is_down_may_have_what_the_others_do_not() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let last = Server::new(|seen, out| answer(seen, out, 404, &[], b""));
    let mut config = config(&format!("http://{closed}"));
    config.upstreams[0].endpoints.push(EndpointSettings::at(last.url()));
    let (_all, upstream) = open(&config).unwrap();
    for round in 1..=3 {
        let failure = upstream.head_manifest(&repository(), &tag()).unwrap_err();
        assert!(failure.is_outage() && failure.to_string().contains("refused"), "{round}: {failure}");
        assert_eq!(last.lines().len(), round);
        wait_for_link(&upstream.endpoints()[0], LinkState::is_known_down);
    }
}

#[test]
fn a_prefix_and_ns_are_said_to_the_endpoint_and_to_its_token_server() {
    let list = br#"{"name":"x","tags":["a"]}"#;
    let names = br#"{"repositories":["hub/proxy-2/x","hub/proxy/a/b","hub/proxy/c/d","other/z"]}"#;
    let server = Server::new(move |seen, out| match seen.target.as_str() {
        target if target.starts_with("/token") => answer(seen, out, 200, &[], br#"{"token":"t"}"#),
        _ if seen.header("authorization").is_none() => {
            let realm =
                format!("Bearer realm=\"http://{}/token\",service=\"s\"", seen.header("host").unwrap());
            answer(seen, out, 401, &[("WWW-Authenticate", &realm)], b"")
        }
        target if target.contains("/tags/list") => answer(seen, out, 200, &[], list),
        target if target.contains("_catalog") => answer(seen, out, 200, &[], names),
        _ => index_answer(seen, out),
    });
    let mut config = config(&format!("{}/art", server.url()));
    config.upstreams[0].endpoints[0].prefix = Some("hub/proxy".parse().unwrap());
    config.upstreams[0].endpoints[0].send_ns = true;
    let (_all, upstream) = open(&config).unwrap();
    upstream.head_manifest(&repository(), &tag()).unwrap();
    upstream.list_tags(&repository(), &ListPage { n: Some(5), ..ListPage::default() }).unwrap();
    assert_eq!(upstream.catalog(&ListPage::default()).unwrap().names, ["a/b", "c/d"]);
    let lines = server.lines();
    let has = |line: &str| assert!(lines.iter().any(|one| one == line), "{line} is not in {lines:#?}");
    has("HEAD /art/v2/hub/proxy/a/b/manifests/latest?ns=reg.test");
    has("GET /art/v2/hub/proxy/a/b/tags/list?n=5&ns=reg.test");
    has("GET /art/v2/_catalog?last=hub/proxy&ns=reg.test");
    let token = lines.iter().find(|line| line.contains("/token")).unwrap();
    assert!(token.contains("scope=repository:hub/proxy/a/b:pull"), "{token}");
    let requests = server.requests();
    let asked = |seen: &&Seen| seen.target.starts_with("/art/v2/");
    for seen in requests.iter().filter(asked) {
        assert!(seen.header("via").unwrap().starts_with("1.1 larder-"), "{seen:?}");
        assert_eq!(seen.header("prefer"), Some("wait=29"));
    }
}

#[test]
fn names_outside_the_prefix_are_looked_past() {
    let server = Server::new(|seen, out| {
        let (names, next) = match seen.target.split_once("last=").unwrap().1 {
            "hub" => (r#"["hub-old/a","hub.x/b"]"#, "hub.x/b"),
            "hub.x/b" => (r#"["hub/a","hub/b/c"]"#, "hub/b/c"),
            "hub/b/c" => (r#"["hubble/a"]"#, "hubble/a"),
            other => panic!("{other}"),
        };
        let link = format!("</v2/_catalog?last={next}>; rel=next");
        answer(seen, out, 200, &[("Link", &link)], format!("{{\"repositories\":{names}}}").as_bytes())
    });
    let mut config = config(&server.url());
    config.upstreams[0].endpoints[0].prefix = Some("hub".parse().unwrap());
    let (_all, upstream) = open(&config).unwrap();
    let first = upstream.catalog(&ListPage::default()).unwrap();
    assert_eq!(first.names, ["a", "b/c"]);
    let Rest::Stated(at) = first.rest else { panic!("{:?}", first.rest) };
    let end = NamePage { names: Vec::new(), rest: Rest::End };
    for stated in [Some(at), None] {
        let next = ListPage { last: Some("b/c".to_owned()), stated, ..ListPage::default() };
        assert_eq!(upstream.catalog(&next).unwrap(), end);
    }
}

#[test]
fn what_a_larder_says_of_another_registry_is_no_answer() {
    const HIT: &str = "larder; hit; detail=upstream";
    for (headers, send_ns, right) in [
        (vec![("OCI-Namespace", "reg.test"), ("Cache-Status", HIT)], false, true),
        (vec![("OCI-Namespace", "docker.io"), ("Cache-Status", HIT)], false, false),
        (vec![("OCI-Namespace", "docker.io"), ("Via", "1.1 nginx, 1.1 larder-0123456789ab")], false, false),
        (vec![("Cache-Status", "nginx; hit, larder; hit")], false, false),
        (vec![("Cache-Status", "nginx; hit")], false, true),
        (vec![("OCI-Namespace", "docker.io")], false, true),
        (vec![("OCI-Namespace", "docker.io")], true, false),
        (vec![("Cache-Status", HIT)], true, true),
    ] {
        let told = headers.clone();
        let server = Server::new(move |seen, out| {
            let digest = sha256(INDEX).to_string();
            let own = [("Docker-Content-Digest", digest.as_str()), ("Content-Type", media::OCI_INDEX)];
            answer(seen, out, 200, &[told.as_slice(), own.as_slice()].concat(), INDEX)
        });
        let mut config = config(&server.url());
        config.upstreams[0].endpoints[0].send_ns = send_ns;
        let (_all, upstream) = open(&config).unwrap();
        let head = upstream.head_manifest(&repository(), &tag());
        assert_eq!(head.is_ok(), right, "{headers:?} {send_ns}: {head:?}");
        let text = head.err().map(|failure| failure.to_string()).unwrap_or_default();
        assert!(right || send_ns || text.contains("set send_ns = true in [upstream.\"reg.test\"]"), "{text}");
    }
}
