//! Answers of what is no registry: an ingress without its pod, a portal, a proxy. They are outages, and not "it does not
//! exist" nor "it may not be read".

use crate::board::{self, Board, image, layer_of, needed, upstream_with};
use larder::demo::image::SampleImage as Image;
use larder::demo::upstream::{Behaviour, FaultyRegistry as Upstream};
use std::time::Duration;

const PAGE: &str = "<html><body>log in, or come back later</body></html>";

fn answer(status: u16, content_type: &str, body: &str) -> Behaviour {
    Behaviour::Exactly(status, vec![("Content-Type", content_type.to_owned())], body.into())
}

/// What stands in the place of the registry, and what a person is told about it.
fn impostors(login_page: &Upstream) -> Vec<(Behaviour, &'static str)> {
    let elsewhere = format!("{}/v2/login", login_page.url());
    let proxy = vec![("Proxy-Authenticate", "Basic realm=\"office\"".to_owned())];
    vec![
        (answer(404, "text/plain", "default backend - 404"), "answered 404 but not as a registry does"),
        (answer(404, "text/plain; charset=utf-8", "404 page not found\n"), "answered 404 but not as"),
        (answer(403, "text/html", PAGE), "answered 403 but not as a registry does"),
        // Other programs speak JSON too.
        (answer(404, "application/json", "{\"message\":\"no Route matched\"}"), "answered 404 but not as"),
        (answer(404, "application/json", "{\"errors\":[]}"), "answered 404 but not as"),
        (answer(401, "text/html", PAGE), "answered 401 but not as"),
        (answer(410, "text/html", PAGE), "answered 410 but not as"),
        (answer(400, "text/html", PAGE), "answered 400 but not as"),
        (answer(200, "text/html; charset=utf-8", PAGE), "answered 200 but not as a registry does"),
        (Behaviour::RedirectTo(elsewhere), "answered 200 but not as a registry does"),
        (answer(511, "text/html", PAGE), "answered 511"),
        (Behaviour::Exactly(407, proxy, PAGE.into()), "answered 407 but not as"),
    ]
}

#[test]
fn what_is_no_registry_is_an_outage_and_is_named() {
    let login_page = Upstream::start().unwrap();
    login_page.on(None, "/", answer(200, "text/html", PAGE));
    for (impostor, told) in impostors(&login_page) {
        let what = format!("{impostor:?}");
        let (first, other) = (image(1), image(2));
        let (upstream, neighbour) = (upstream_with(&first), upstream_with(&other));
        let quay = format!(
            "[tags]\nresolve_deadline = \"20s\"\n[upstream.\"quay.io\"]\nurl = \"{}\"\n",
            neighbour.url()
        );
        let board = Board::new(&upstream, &quay);
        board.pull("lab/app", "latest").unwrap();
        upstream.on(None, "/", impostor);
        for _ in 0..5 {
            let (status, how, _) = board.ask("lab/app", "latest");
            assert_eq!((status, how.as_str()), (200, "larder; hit; detail=last-complete"), "{what}");
        }
        // It does not cost two requests each time.
        assert_eq!(upstream.count("GET", "/lab/app/manifests/latest"), 1, "{what}");
        let refused = board.get("/v2/lab/app/manifests/other?ns=docker.io");
        assert_eq!(refused.status, 502, "{what}");
        let text = String::from_utf8(refused.body().unwrap()).unwrap();
        assert!(text.contains(told), "{what}: {text}");
        let digest = &image(5).root;
        assert_eq!(board.get(&format!("/v2/lab/app/manifests/{digest}?ns=docker.io")).status, 502, "{what}");
        assert_eq!(board.head(&format!("/v2/lab/app/blobs/{digest}?ns=docker.io")).status, 502, "{what}");
        assert_eq!(board.get(&format!("/v2/lab/app/blobs/{digest}?ns=docker.io")).status, 502, "{what}");
        let tags = board.get("/v2/lab/app/tags/list?ns=docker.io");
        assert_eq!(tags.status, 200, "{what}");
        assert_eq!(board.get("/v2/lab/app/manifests/latest?ns=quay.io").status, 200, "{what}");
        // The pod is back.
        upstream.clear();
        board.wait_until_up("lab/app", "latest");
        assert_eq!(board.get("/v2/lab/app/manifests/other?ns=docker.io").status, 404, "{what}");
    }
}

#[test]
fn a_refusal_that_a_registry_signs_is_an_answer() {
    let header = vec![("Docker-Distribution-Api-Version", "registry/2.0".to_owned())];
    let error = "{\"errors\":[{\"code\":\"MANIFEST_UNKNOWN\",\"detail\":{\"Tag\":\"latest\"}}]}";
    for (behaviour, status) in [
        (Behaviour::Exactly(404, header.clone(), b"404 page not found".to_vec()), 404),
        (Behaviour::Exactly(403, header, Vec::new()), 403),
        (answer(404, "application/json", error), 404),
        (answer(404, "text/plain", error), 404),
        (Behaviour::Status(403, Vec::new()), 403),
        (Behaviour::Status(401, Vec::new()), 401),
    ] {
        let what = format!("{behaviour:?}");
        let upstream = upstream_with(&image(1));
        let board = Board::new(&upstream, "[tags]\nresolve_deadline = \"20s\"\n");
        board.pull("lab/app", "latest").unwrap();
        upstream.on(None, "/lab/app/", behaviour);
        assert_eq!(board.ask("lab/app", "latest").0, status, "{what}");
        upstream.clear();
        assert_eq!(board.ask("lab/app", "latest").0, 200, "{what}");
    }
}

/// The layer of an image whose download was cut in the middle, by an upstream that then is another.
#[test]
fn a_download_goes_on_when_the_portal_is_gone() {
    for impostor in
        [answer(200, "text/html", PAGE), answer(404, "text/html", PAGE), answer(403, "text/html", "")]
    {
        let image = Image::multi_arch(2, &[700_000]);
        let (upstream, layer) = (upstream_with(&image), layer_of(&image));
        let path = format!("/lab/app/blobs/{layer}");
        let board = Board::new(&upstream, "");
        board.manifests("docker.io", "lab/app", "latest", &[]);
        upstream.on(Some("GET"), &path, Behaviour::StallBodyAfter(400_000));
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| board.get(&format!("/v2{path}?ns=docker.io")).body());
            assert!(upstream.wait_for(1, "GET", &path, board::PATIENCE));
            upstream.clear();
            upstream.on(None, "/", impostor);
            assert!(upstream.wait_for(2, "GET", &path, board::PATIENCE), "it is asked again after the stall");
            std::thread::sleep(Duration::from_millis(50));
            upstream.clear();
            let _ = reader.join();
        });
        board.wait_until("the image", || board.pull("lab/app", "latest").is_ok());
        let ranges: Vec<_> =
            upstream.requests().into_iter().filter(|seen| seen.path.ends_with(&path)).collect();
        let from_zero = ranges.iter().filter(|seen| seen.method == "GET" && seen.range.is_none()).count();
        assert_eq!(from_zero, 1, "{ranges:?}");
        assert!(needed(&image).iter().all(|digest| board.has_blob(digest)));
        board.check_blobs();
    }
}
