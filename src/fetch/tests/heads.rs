//! Heads: what costs how many requests, and what counts as a proof where HEAD is refused.

use super::*;
use crate::fetch::shown::{Shown, ShownObject};

const SIGNED: (&str, &str) = ("Docker-Distribution-Api-Version", "registry/2.0");

fn name_tag(upstream: &Upstream) -> Result<NamedManifest, Failure> {
    upstream.name_tag(&repository(), &"latest".parse().unwrap(), HeadTrust::None)
}

/// Refuses HEAD with a status.
fn no_head(status: u16) -> Server {
    Server::new(move |seen, out| match seen.method.as_str() {
        "HEAD" => answer(seen, out, status, &[], b""),
        _ => index_answer(seen, out),
    })
}

#[test]
fn the_usual_check_is_one_head_on_a_warm_connection() {
    let server = Server::new(index_answer);
    let (_all, upstream) = open(&config(&server.url())).unwrap();
    for _ in 0..5 {
        let NamedManifest::Head { digest, stated, .. } = name_tag(&upstream).unwrap() else { panic!() };
        assert_eq!(digest, sha256(INDEX));
        assert_eq!(stated, Some((media::OCI_INDEX.to_owned(), INDEX.len() as u64)));
    }
    assert_eq!(server.lines(), ["HEAD /v2/a/b/manifests/latest"; 5]);
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn a_refused_head_costs_a_get_and_after_that_no_head() {
    for status in [400, 403, 404, 405, 500, 501] {
        let server = no_head(status);
        let (_all, upstream) = open(&config(&server.url())).unwrap();
        for _ in 0..3 {
            let NamedManifest::Fetched(fetched) = name_tag(&upstream).unwrap() else { panic!() };
            assert_eq!(fetched.bytes, INDEX);
        }
        let (head, get) = ("HEAD /v2/a/b/manifests/latest", "GET /v2/a/b/manifests/latest");
        let asked: Vec<String> =
            server.lines().into_iter().filter(|line| line.contains("manifests")).collect();
        assert_eq!(asked, [head, get, get, get], "{status}");
        assert!(upstream.lacks_head(&repository()) && !upstream.lacks_head(&"x/y".parse().unwrap()));
    }
}

#[test]
fn what_both_refuse_is_confirmed_once_while_head_refuses_in_the_same_way() {
    let signed = Arc::new(Mutex::new(true));
    let sign = signed.clone();
    let server = Server::new(move |seen, out| {
        let headers = if *sign.lock() { vec![SIGNED] } else { vec![] };
        answer(seen, out, 404, &headers, b"")
    });
    let (_all, upstream) = open(&config(&server.url())).unwrap();
    let ask = |n: usize| {
        let failures: Vec<Failure> = (0..n).map(|_| name_tag(&upstream).unwrap_err()).collect();
        let gets = server.lines().iter().filter(|line| line.starts_with("GET")).count();
        (failures, gets)
    };
    let (failures, gets) = ask(3);
    assert!(failures.iter().all(|failure| matches!(failure, Failure::Missing { .. })), "{failures:?}");
    assert_eq!(gets, 1);
    // The pod is gone.
    *signed.lock() = false;
    let (failures, gets) = ask(3);
    assert!(failures.iter().all(|failure| failure.cause() == Some(Cause::NotARegistry)), "{failures:?}");
    assert_eq!(gets, 2);
    assert!(failures[0].to_string().ends_with("answered 404 but not as a registry does"), "{failures:?}");
    *signed.lock() = true;
    assert!(matches!(ask(1).0[0], Failure::Missing { .. }));
}

#[test]
fn who_trusts_signed_refusals_asks_once() {
    for (headers, requests) in [(vec![SIGNED], 1), (vec![], 2)] {
        let server = Server::new(move |seen, out| {
            answer(seen, out, 404, &headers, br#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#)
        });
        let (_all, upstream) = open(&config(&server.url())).unwrap();
        let failure =
            upstream.name_tag(&repository(), &"latest".parse().unwrap(), HeadTrust::Signed).unwrap_err();
        assert!(matches!(failure, Failure::Missing { .. }), "{failure:?}");
        assert_eq!(server.lines().len(), requests);
    }
}

#[test]
fn where_head_says_nothing_the_bytes_are_the_proof() {
    for status in [405, 400, 501, 500] {
        let server = no_head(status);
        let (_all, upstream) = open(&config(&server.url())).unwrap();
        upstream.shows(&repository(), &sha256(INDEX)).unwrap();
        upstream.shows(&repository(), &sha256(INDEX)).unwrap();
        assert_eq!(server.lines().iter().filter(|line| line.starts_with("HEAD")).count(), 1, "{status}");
        assert!(upstream.shows(&repository(), &sha256(b"other")).is_err(), "{status}: other bytes");
    }
    // A registry's own refusal counts, whatever its GET would say; what no registry says is for a GET to tell.
    for (headers, shown) in [(vec![SIGNED], false), (vec![], true)] {
        let server = Server::new(move |seen, out| match seen.method.as_str() {
            "HEAD" => answer(seen, out, 404, &headers, b""),
            _ => index_answer(seen, out),
        });
        let (_all, upstream) = open(&config(&server.url())).unwrap();
        assert_eq!(upstream.shows(&repository(), &sha256(INDEX)).is_ok(), shown);
    }
    // A dead ingress has not made anything private, and a rate limit of GET undoes no refusal.
    for (get, denied) in [(404, false), (429, true)] {
        let server = Server::new(move |seen, out| match seen.method.as_str() {
            "HEAD" => answer(seen, out, 404, &[], b""),
            _ => answer(seen, out, get, &[("Content-Type", "text/plain")], b"default backend"),
        });
        let (_all, upstream) = open(&config(&server.url())).unwrap();
        let failure = upstream.shows(&repository(), &sha256(INDEX)).unwrap_err();
        assert_eq!(matches!(failure, Failure::Missing { .. }), denied, "{failure:?}");
    }
}

/// Asks whether an object is shown to a client's login.
fn shown_to(upstream: &Upstream, object: ShownObject<'_>) -> Result<Shown, Failure> {
    upstream.shows_to("bob", &Secret::new("own".into()), object)
}

#[test]
fn a_client_s_login_is_proved_by_get_where_head_is_refused() {
    let digest = ManifestRef::Digest(sha256(INDEX));
    for status in [404, 403, 405, 400] {
        let server = Server::new(move |seen, out| match (seen.header("authorization"), &*seen.method) {
            (None, _) => answer(seen, out, 401, &[("WWW-Authenticate", "Basic")], b""),
            (Some(_), "HEAD") => answer(seen, out, status, &[SIGNED], b""),
            _ if seen.target.contains("/blobs/") => {
                let digest = sha256(b"blob").to_string();
                answer(seen, out, 200, &[("Docker-Content-Digest", &digest)], b"blob")
            }
            _ => index_answer(seen, out),
        });
        let mut config = config(&server.url());
        config.upstreams[0].endpoints[0].credentials = credentials();
        let (_all, upstream) = open(&config).unwrap();
        let name = repository();
        for reference in [&digest, &tag()] {
            let shown = shown_to(&upstream, ShownObject::Manifest(&name, reference)).unwrap();
            assert_eq!(shown, Shown { digest: Some(sha256(INDEX)), logged_in: true }, "{status}");
        }
        assert!(shown_to(&upstream, ShownObject::Blob(&name, &sha256(b"blob"))).is_ok(), "{status}");
        // What is sent is not what was asked for.
        let other = ManifestRef::Digest(sha256(b"other"));
        assert!(shown_to(&upstream, ShownObject::Manifest(&name, &other)).is_err(), "{status}");
        assert!(shown_to(&upstream, ShownObject::Blob(&name, &sha256(b"other"))).is_err(), "{status}");
        let sent = server.requests();
        assert!(sent.iter().filter_map(|seen| seen.header("authorization")).all(|login| login != BASIC));
    }
}
