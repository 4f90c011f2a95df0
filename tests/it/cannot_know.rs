//! "I cannot know" is not "there is none": what Larder cannot learn from upstream is said as that, or learnt where the
//! specification says that it is.

use crate::board::{Board, image};
use crate::servers_word::{
    Heard, Said, Scripted, image_says, neighbour, pulls_from_neighbour, says, unknown, walk,
};
use larder::demo::image::SampleImage as Image;
use larder::demo::upstream::{Behaviour, FaultyRegistry as Upstream};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const TAGS: &str = "/v2/lab/app/tags/list?ns=docker.io";
const CATALOG: &str = "/v2/_catalog?ns=docker.io";

/// Status, whether it is marked as stale or incomplete, and the body.
fn told(board: &Board, path: &str) -> (u16, bool, Value) {
    let answer = board.get(path);
    let (status, marked) = (answer.status, answer.header("warning").is_some());
    let body = answer.body().unwrap();
    (status, marked, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

fn referrers(subject: &str) -> String {
    format!("/v2/lab/app/referrers/{subject}?ns=docker.io")
}

fn index_of(digests: &[String]) -> Value {
    let one = |digest| json!({ "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 7 });
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": digests.iter().map(one).collect::<Vec<_>>() })
}

fn portal() -> Said {
    (200, vec![("Content-Type".into(), "text/html".into())], b"<html>please log in</html>".to_vec())
}

fn code(body: &Value) -> &str {
    body["errors"][0]["code"].as_str().unwrap_or("")
}

/// A registry whose answer to what is asked for can be changed; everything else is an image's.
fn changing(image: &Image, what: &'static str) -> (Scripted, Arc<Mutex<Said>>) {
    let now = Arc::new(Mutex::new(unknown()));
    let (image, said) = (image.clone(), Arc::clone(&now));
    let server = Scripted::new(move |heard| {
        if heard.path.contains(what) { said.lock().unwrap().clone() } else { image_says(&image, heard) }
    });
    (server, now)
}

#[test]
fn referrers_of_a_registry_before_1_1_lie_under_their_tag() {
    let other = image(9);
    for status in [404, 400, 405, 406, 410, 501] {
        for (algorithm, length) in [("sha256", 64), ("sha512", 128)] {
            let subject = format!("{algorithm}:{}", "a".repeat(length));
            // The name of the tag has 64 digits at the most.
            let tag = format!("/v2/lab/app/manifests/{algorithm}-{}", "a".repeat(64));
            let signature = format!("sha256:{}", "b".repeat(64));
            let index = index_of(std::slice::from_ref(&signature));
            let server = Scripted::new(move |heard| {
                if heard.path.contains("/referrers/") {
                    return says(status, &[], &json!({ "errors": [{ "code": "UNSUPPORTED" }] }));
                }
                if heard.path == tag { says(200, &[("Content-Type", INDEX)], &index) } else { unknown() }
            });
            let (_honest, more) = neighbour(&other);
            let board = Board::with_url(&server.url(), &more);
            let (code, marked, body) = told(&board, &referrers(&subject));
            assert_eq!((code, marked), (200, false), "{status} {subject}: {body}");
            assert_eq!(body["manifests"][0]["digest"], signature, "{status} {subject}");
            // There, and only there, is nothing.
            let none = format!("sha256:{}", "c".repeat(64));
            let (code, marked, body) = told(&board, &referrers(&none));
            assert_eq!((code, marked, &body["manifests"]), (200, false, &json!([])), "{status}");
            if algorithm == "sha256" {
                pulls_from_neighbour(&board, &other);
            }
        }
    }
}

#[test]
fn an_upstream_that_cannot_say_what_refers_to_an_image_did_not_say_nothing() {
    let image = image(1);
    let bill = Image::artifact(&image, "application/vnd.example.sbom+json");
    let denied = says(401, &[], &json!({ "errors": [{ "code": "UNAUTHORIZED" }] }));
    let broken = says(500, &[], &json!({}));
    for (cached, of_api, of_tag) in [
        (false, broken.clone(), unknown()),
        (false, portal(), unknown()),
        (false, unknown(), broken.clone()),
        (false, unknown(), portal()),
        (false, unknown(), says(200, &[], &json!({ "schemaVersion": 2, "config": {}, "layers": [] }))),
        (true, broken.clone(), unknown()),
        (true, portal(), unknown()),
        (true, unknown(), portal()),
        (false, denied.clone(), unknown()),
        (false, unknown(), denied.clone()),
        (true, unknown(), denied.clone()),
    ] {
        let (app, sbom, said) = (image.clone(), bill.clone(), (of_api.clone(), of_tag.clone()));
        let server = Scripted::new(move |heard| match &heard.path {
            path if path.contains("/referrers/") => said.0.clone(),
            path if path.contains("/manifests/sha256-") => said.1.clone(),
            path if path.contains(&sbom.root.to_string()) => image_says(&sbom, heard),
            _ => image_says(&app, heard),
        });
        let board = Board::with_url(&server.url(), "");
        if cached {
            board.pull("lab/app", "latest").unwrap();
            board.get(&format!("/v2/lab/app/manifests/{}?ns=docker.io", bill.root)).body().unwrap();
        }
        let (status, marked, body) = told(&board, &referrers(&image.root.to_string()));
        let is_denied = of_api.0 == 401 || of_tag.0 == 401;
        match (is_denied, cached) {
            (true, _) => assert_eq!((status, code(&body)), (401, "UNAUTHORIZED"), "{of_api:?} {of_tag:?}"),
            (false, true) => {
                assert_eq!((status, marked), (200, true), "{of_api:?} {of_tag:?} {body}");
                assert_eq!(body["manifests"][0]["digest"], bill.root.to_string());
            }
            (false, false) => assert!([502, 503].contains(&status), "{status} {of_api:?} {of_tag:?} {body}"),
        }
    }
}

#[test]
fn referrers_go_on_where_upstream_says_and_end() {
    let digests: Vec<String> = (0..5).map(|n| format!("sha256:{}", format!("{n}").repeat(64))).collect();
    for round in [false, true] {
        let all = digests.clone();
        let server = Scripted::new(move |heard: &Heard| {
            let at: usize = heard.one("page").map_or(0, |page| page.parse().unwrap());
            let link = format!("<{}?page={}>; rel=next", heard.path, (at + 2) % 6);
            let more = round || at + 2 < all.len();
            let headers: &[(&str, &str)] =
                if more { &[("Content-Type", INDEX), ("Link", &link)] } else { &[("Content-Type", INDEX)] };
            says(200, headers, &index_of(&all[at.min(all.len())..(at + 2).min(all.len())]))
        });
        let board = Board::with_url(&server.url(), "");
        let mut names = Vec::new();
        let path = format!("/v2/lab/app/referrers/sha256:{}?ns=docker.io", "a".repeat(64));
        let (mut next, mut pages) = (Some(path), 0);
        while let Some(path) = next {
            pages += 1;
            assert!(pages < 20, "{path}");
            let answer = board.get(&path);
            next = answer.header("link").map(|link| link[1..].split('>').next().unwrap().to_owned());
            let body: Value = serde_json::from_slice(&answer.body().unwrap()).unwrap();
            let found = body["manifests"].as_array().unwrap().clone();
            names.extend(found.iter().map(|one| one["digest"].as_str().unwrap().to_owned()));
        }
        names.sort();
        names.dedup();
        assert_eq!(names, digests, "{round}");
    }
}

/// What tells a registry's answer from that of whoever stands before it.
const SIGNATURE: (&str, &str) = ("Docker-Distribution-Api-Version", "registry/2.0");

#[test]
fn a_list_of_tags_that_upstream_does_not_give_is_not_an_empty_one() {
    let (app, other) = (image(1), image(9));
    let (server, now) = changing(&app, "/tags/list");
    let (_honest, more) = neighbour(&other);
    let board = Board::with_url(&server.url(), &more);
    let refusals = [
        portal(),
        says(405, &[], &json!({})),
        says(501, &[], &json!({})),
        says(500, &[], &json!({})),
        says(418, &[], &json!({})),
        // What is no list is not an empty one.
        says(200, &[], &json!({ "status": "ok" })),
    ];
    for refusal in &refusals {
        *now.lock().unwrap() = refusal.clone();
        let (status, _, body) = told(&board, TAGS);
        assert_eq!((status, code(&body)), (502, "UNAVAILABLE"), "{refusal:?} {body}");
    }
    board.pull("lab/app", "latest").unwrap();
    for refusal in refusals {
        *now.lock().unwrap() = refusal.clone();
        let (status, marked, body) = told(&board, TAGS);
        assert_eq!((status, marked, &body["tags"]), (200, true, &json!(["latest"])), "{refusal:?}");
    }
    // What a registry says is passed on: that it has no such repository, that who asks may not know, that there is no tag.
    *now.lock().unwrap() = unknown();
    assert_eq!(told(&board, TAGS).0, 404);
    *now.lock().unwrap() = says(403, &[SIGNATURE], &json!({}));
    assert_eq!(told(&board, TAGS).0, 403);
    *now.lock().unwrap() = says(200, &[], &json!({ "name": "lab/app", "tags": null }));
    assert_eq!(told(&board, TAGS), (200, false, json!({ "name": "lab/app", "tags": [] })));
    pulls_from_neighbour(&board, &other);
}

#[test]
fn a_registry_that_gives_no_catalogue_has_not_said_that_it_is_empty() {
    let app = image(1);
    let (server, now) = changing(&app, "_catalog");
    let board = Board::with_url(&server.url(), "");
    let refusals = [401, 403, 404, 405, 501].map(|status| says(status, &[SIGNATURE], &json!({})));
    for refusal in &refusals {
        *now.lock().unwrap() = refusal.clone();
        let (status, _, body) = told(&board, CATALOG);
        assert_eq!((status, code(&body)), (404, "UNSUPPORTED"), "{refusal:?} {body}");
        let message = body["errors"][0]["message"].as_str().unwrap();
        assert!(message.starts_with("docker.io gives no catalogue: "), "{message}");
    }
    *now.lock().unwrap() = says(503, &[], &json!({}));
    assert_eq!(told(&board, CATALOG).0, 502);
    *now.lock().unwrap() = says(200, &[], &json!({ "repositories": [] }));
    assert_eq!(
        told(&board, CATALOG),
        (200, false, json!({ "repositories": [] })),
        "that is one that is empty"
    );
    board.pull("lab/app", "latest").unwrap();
    for refusal in refusals.into_iter().chain([portal(), says(503, &[], &json!({}))]) {
        *now.lock().unwrap() = refusal.clone();
        let (status, marked, body) = told(&board, CATALOG);
        assert_eq!((status, marked, &body["repositories"]), (200, true, &json!(["lab/app"])), "{refusal:?}");
    }
}

#[test]
fn a_link_is_followed_however_it_is_written_and_at_the_registry_alone() {
    for form in [
        "<{}>",
        "<{}>; rel='next'",
        "{}; rel=next",
        "<http://inner.example:5000{}>; rel=next",
        "<https://elsewhere.example{}>",
    ] {
        let server = Scripted::new(move |heard| {
            let page = heard.all("last").first().map_or(0, |last| last[1..].parse().unwrap());
            let tags: Vec<String> = (page + 1..=page + 2).map(|n| format!("t{n}")).collect();
            let link = form.replace("{}", &format!("/v2/lab/app/tags/list?n=2&last=t{}", page + 2));
            let links = [("Link", link.as_str())];
            let more = if page < 6 { &links[..] } else { &[] };
            says(200, more, &json!({ "name": "lab/app", "tags": tags }))
        });
        let board = Board::with_url(&server.url(), "");
        let (names, pages) = walk(&board, TAGS, "tags");
        assert_eq!((names.len(), pages), (8, 4), "{form}: {names:?}");
    }
}

#[test]
fn what_stands_in_the_place_of_a_token_server_or_asks_for_a_password_is_no_registry() {
    let page = |status: u16, kind: &str, body: &str, more: &[(&str, &str)]| -> Said {
        let mut headers = vec![("Content-Type".to_owned(), kind.to_owned())];
        headers.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        (status, headers, body.as_bytes().to_vec())
    };
    let app = image(1);
    for (token, basic, status) in [
        (Some(page(404, "text/plain", "default backend - 404", &[])), None, 200),
        (Some(page(403, "text/html", "<html>blocked</html>", &[])), None, 200),
        (Some(page(401, "text/html", "<html>log in</html>", &[])), None, 200),
        (Some(page(403, "application/json", "{\"details\":\"not for you\"}", &[])), None, 403),
        (
            None,
            Some(page(
                401,
                "text/html",
                "<html>router</html>",
                &[("WWW-Authenticate", "Basic realm=\"Router\"")],
            )),
            200,
        ),
        (
            None,
            Some(page(
                401,
                "application/json",
                "{\"errors\":[{\"code\":\"UNAUTHORIZED\"}]}",
                &[("WWW-Authenticate", "Basic realm=r")],
            )),
            401,
        ),
    ] {
        let changed = Arc::new(Mutex::new(false));
        let (image, seen, case) = (app.clone(), Arc::clone(&changed), (token.clone(), basic.clone()));
        let server = Scripted::new(move |heard| {
            let changed = *seen.lock().unwrap();
            let authorized = heard.headers.contains_key("authorization");
            match &case {
                (_, Some(said)) if changed => said.clone(),
                (Some(said), _) if changed && heard.path == "/token" => said.clone(),
                (Some(_), _) if heard.path == "/token" => {
                    says(200, &[], &json!({ "token": "t", "expires_in": 1 }))
                }
                (Some(_), _) if !authorized || changed => {
                    let realm = format!("Bearer realm=\"http://{}/token\"", heard.headers["host"]);
                    says(401, &[("WWW-Authenticate", &realm)], &json!({}))
                }
                _ => image_says(&image, heard),
            }
        });
        let board = Board::with_url(&server.url(), "");
        board.pull("lab/app", "latest").unwrap();
        *changed.lock().unwrap() = true;
        let got = board.get("/v2/lab/app/manifests/latest?ns=docker.io").status;
        assert_eq!(got, status, "{token:?} {basic:?}\n{}", board.log());
    }
}

#[test]
fn a_rest_that_is_not_followed_is_said() {
    let long = "x".repeat(5_000);
    for next in ["ftp://x/".to_owned(), format!("?page={long}")] {
        let link = format!("<{next}>; rel=next");
        let server = Scripted::new(move |_| {
            says(200, &[("Link", &link)], &json!({ "name": "lab/app", "tags": ["a", "b"] }))
        });
        let board = Board::with_url(&server.url(), "");
        let (status, marked, body) = told(&board, TAGS);
        assert_eq!((status, marked, &body["tags"]), (200, true, &json!(["a", "b"])), "{next:.40}");
        assert_eq!(walk(&board, TAGS, "tags").1, 1);
    }
}

#[test]
fn a_list_whose_end_is_not_seen_is_not_an_empty_one() {
    let app = image(1);
    // Pages without a name for ever; a link that is not followed; one that leads back to the page that it is on.
    let links: [fn(&Heard) -> String; 3] = [
        |heard| format!("<{}?page={}x>; rel=next", heard.path, heard.one("page").unwrap_or_default()),
        |heard| format!("<http://elsewhere.example{}?last=b>; rel=next", heard.path),
        |heard| format!("<{}?{}>; rel=next", heard.path, heard.query),
    ];
    for (number, link) in links.into_iter().enumerate() {
        let shown = app.clone();
        let server = Scripted::new(move |heard| {
            if !heard.path.contains("/tags/list") && !heard.path.contains("_catalog") {
                return image_says(&shown, heard);
            }
            says(
                200,
                &[("Link", &link(heard))],
                &json!({ "name": "lab/app", "tags": [], "repositories": [] }),
            )
        });
        let board = Board::with_url(&server.url(), "");
        for path in [TAGS, CATALOG] {
            let (status, _, body) = told(&board, path);
            assert_eq!((status, code(&body)), (502, "UNAVAILABLE"), "{number} {path} {body}");
        }
        board.pull("lab/app", "latest").unwrap();
        for (path, key, name) in [(TAGS, "tags", "latest"), (CATALOG, "repositories", "lab/app")] {
            let (status, marked, body) = told(&board, path);
            assert_eq!((status, marked, &body[key]), (200, true, &json!([name])), "{number} {path}");
        }
    }
}

#[test]
fn lists_of_an_upstream_out_of_reach_are_what_is_cached_or_none() {
    let app = image(1);
    let upstream = Upstream::start().unwrap();
    upstream.push("lab/app", "latest", &app);
    let board = Board::new(&upstream, "");
    for (subject, path) in [
        ("nothing", "/v2/lab/none/tags/list?ns=docker.io".to_owned()),
        ("referrers", referrers(&app.root.to_string())),
        ("catalogue", CATALOG.to_owned()),
    ] {
        upstream.on(None, "", Behaviour::CutBeforeHeader);
        let (status, _, body) = told(&board, &path);
        assert_eq!((status, code(&body)), (502, "UNAVAILABLE"), "{subject}");
        upstream.clear();
    }
    board.wait_until("the upstream", || board.pull("lab/app", "latest").is_ok());
    upstream.hang_up();
    for (path, key) in [(TAGS, "tags"), (CATALOG, "repositories")] {
        let (status, marked, body) = told(&board, path);
        assert_eq!((status, marked, body[key].as_array().unwrap().len()), (200, true, 1), "{path}");
    }
    assert_eq!(told(&board, &referrers(&app.root.to_string())).0, 502, "whether it is signed is not known");
}
