//! What a server states is used as it is stated: every parameter of a challenge, where a token server redirects to, the
//! target of a `Link`. Our own value stands in where it says nothing.

use crate::board::{self, Board};
use larder::demo::image::SampleImage as Image;
use larder::oci::Digest;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// A request as the scripted registry got it.
#[derive(Clone, Debug)]
pub struct Heard {
    pub method: String,
    pub path: String,
    pub query: String,
    pub headers: HashMap<String, String>,
}

impl Heard {
    /// A parameter of the query, decoded, as often as it is there.
    pub fn all(&self, name: &str) -> Vec<String> {
        let pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        let decode =
            |value: &str| percent_encoding::percent_decode_str(value).decode_utf8().unwrap().into_owned();
        pairs.filter(|(key, _)| *key == name).map(|(_, value)| decode(value)).collect()
    }

    pub fn one(&self, name: &str) -> Option<String> {
        self.all(name).into_iter().next()
    }

    pub fn authorization(&self) -> Option<&str> {
        self.headers.get("authorization").map(String::as_str)
    }
}

/// An answer: status, headers, body.
pub type Said = (u16, Vec<(String, String)>, Vec<u8>);

/// A JSON answer with these headers.
pub fn says(status: u16, headers: &[(&str, &str)], body: &Value) -> Said {
    let mut all = vec![("Content-Type".to_owned(), "application/json".to_owned())];
    all.extend(headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    (status, all, body.to_string().into_bytes())
}

/// A registry's own 404.
pub fn unknown() -> Said {
    let body = json!({ "errors": [{ "code": "NAME_UNKNOWN", "message": "it is not here" }] });
    says(404, &[("Docker-Distribution-Api-Version", "registry/2.0")], &body)
}

/// A registry whose every answer is the test's; it ends with the process.
pub struct Scripted {
    pub port: u16,
    heard: Arc<Mutex<Vec<Heard>>>,
    connections: Arc<AtomicUsize>,
}

impl Scripted {
    pub fn new(script: impl Fn(&Heard) -> Said + Send + Sync + 'static) -> Scripted {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, heard) = (listener.local_addr().unwrap().port(), Arc::<Mutex<Vec<Heard>>>::default());
        let (script, shared) = (Arc::new(script), Arc::clone(&heard));
        let connections = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&connections);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                count.fetch_add(1, Ordering::SeqCst);
                let (script, heard) = (Arc::clone(&script), Arc::clone(&shared));
                std::thread::spawn(move || converse(&stream.unwrap(), &heard, &*script));
            }
        });
        Scripted { port, heard, connections }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Requests whose path holds the text.
    pub fn about(&self, path: &str) -> Vec<Heard> {
        self.heard().into_iter().filter(|heard| heard.path.contains(path)).collect()
    }
}

fn converse(stream: &TcpStream, heard: &Mutex<Vec<Heard>>, script: &dyn Fn(&Heard) -> Said) {
    let mut lines = BufReader::new(stream).lines();
    while let Some(Ok(start)) = lines.next() {
        let mut words = start.split(' ');
        let (method, target) = (words.next().unwrap().to_owned(), words.next().unwrap_or("").to_owned());
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let mut headers = HashMap::new();
        for line in lines.by_ref().map_while(Result::ok).take_while(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':').unwrap();
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let request = Heard { method, path: path.to_owned(), query: query.to_owned(), headers };
        heard.lock().unwrap().push(request.clone());
        let (status, headers, body) = script(&request);
        let mut head = format!("HTTP/1.1 {status} Answer\r\nContent-Length: {}\r\n", body.len());
        headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        let mut bytes = (head + "\r\n").into_bytes();
        bytes.extend_from_slice(if request.method == "HEAD" { &[] } else { &body });
        let mut stream = stream;
        if stream.write_all(&bytes).is_err() {
            return;
        }
    }
}

/// What a registry with one image answers to the API.
pub fn image_says(image: &Image, heard: &Heard) -> Said {
    let last = heard.path.rsplit('/').next().unwrap();
    if heard.path.contains("/manifests/") {
        let digest = last.parse::<Digest>().unwrap_or_else(|_| image.root.clone());
        let Some((media_type, bytes)) = image.manifests.get(&digest) else { return unknown() };
        let headers = [("Content-Type", media_type.clone()), ("Docker-Content-Digest", digest.to_string())];
        return (200, headers.map(|(name, value)| (name.to_owned(), value)).into(), bytes.to_vec());
    }
    let blob = last.parse::<Digest>().ok().and_then(|digest| image.blobs.get(&digest));
    blob.map_or_else(unknown, |bytes| (200, Vec::new(), bytes.to_vec()))
}

/// A neighbour that is as registries are: the pull of its image is no business of what is wrong elsewhere.
pub fn neighbour(image: &Image) -> (Scripted, String) {
    let image = image.clone();
    let server = Scripted::new(move |heard| image_says(&image, heard));
    let config = format!("[upstream.\"honest.example\"]\nurl = \"{}\"\n", server.url());
    (server, config)
}

pub fn pulls_from_neighbour(board: &Board, image: &Image) {
    let pulled = larder::demo::client::pull(
        board.addr,
        Some("honest.example"),
        "lab/other",
        "latest",
        board::PLATFORM,
        board::PATIENCE,
    );
    assert_eq!(pulled.unwrap().digest, image.root);
}

/// A registry that gives content only for a token that was granted for the scope that it states.
fn scoped(image: &Image, challenge: impl Fn(&str, &str) -> Vec<String> + Send + Sync + 'static) -> Scripted {
    let image = image.clone();
    Scripted::new(move |heard| {
        if heard.path == "/token" {
            return says(200, &[], &json!({ "token": format!("for.{}", hex(&heard.all("scope"))) }));
        }
        let host = &heard.headers["host"];
        let repository =
            heard.path.trim_start_matches("/v2/").rsplitn(3, '/').nth(2).unwrap_or("").to_owned();
        let wanted = vec![format!("repository:cache/{repository}:pull"), "registry:cache:use".to_owned()];
        if heard.authorization() == Some(&format!("Bearer for.{}", hex(&wanted))) {
            return image_says(&image, heard);
        }
        let challenges = challenge(host, &wanted.join(" "));
        let headers: Vec<_> = challenges.iter().map(|value| ("WWW-Authenticate", value.as_str())).collect();
        says(401, &headers, &json!({ "errors": [{ "code": "UNAUTHORIZED" }] }))
    })
}

fn hex(scopes: &[String]) -> String {
    scopes.join(" ").bytes().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_scope_that_is_stated_is_the_one_that_is_asked_for() {
    let (image, other) = (board::image(1), board::image(2));
    type Form = fn(&str, &str) -> Vec<String>;
    let forms: [Form; 3] = [
        |host, scope| vec![format!(r#"Bearer realm="http://{host}/token",service="a, b",scope="{scope}""#)],
        |host, scope| {
            vec![
                r#"Basic realm="Bearer realm=x, scope=y""#.to_owned(),
                format!(r#"bearer SCOPE = "{scope}" , error="invalid_token",Realm="http://{host}/token""#),
            ]
        },
        |host, scope| {
            vec![format!(
                r#"Negotiate, Bearer x-new=1, scope="{scope}", realm="http://{host}/token", Basic realm="z""#
            )]
        },
    ];
    for form in forms {
        let server = scoped(&image, form);
        let (honest, more) = neighbour(&other);
        let board = Board::with_url(&server.url(), &more);
        board.pull("lab/app", "latest").unwrap();
        board.pull("lab/app", "latest").unwrap();
        board.pull("lab/second", "latest").unwrap();
        pulls_from_neighbour(&board, &other);
        let tokens = server.about("/token");
        assert_eq!(tokens.len(), 2, "one for each stated scope: {tokens:?}");
        for (token, repository) in tokens.iter().zip(["lab/app", "lab/second"]) {
            let scopes = [format!("repository:cache/{repository}:pull"), "registry:cache:use".to_owned()];
            assert_eq!(token.all("scope"), scopes);
        }
        assert!(honest.heard().iter().all(|heard| heard.authorization().is_none()));
        // The usual check of a tag is one HEAD, also with a scope of the server's.
        let (before, connections) = (server.heard().len(), server.connections());
        assert_eq!(board.ask("lab/app", "latest").0, 200);
        let after = &server.heard()[before..];
        assert_eq!((after.len(), after[0].method.as_str()), (1, "HEAD"), "{after:?}");
        assert_eq!(server.connections(), connections, "on a warm connection");
    }
}

#[test]
fn a_scope_of_ours_that_is_refused_gives_way_to_the_one_that_is_stated() {
    let image = board::image(1);
    let app = image.clone();
    // Its own repositories have the scope that everybody would guess, and those of its upstreams another one.
    let server = Scripted::new(move |heard| {
        let repository = heard.path.trim_start_matches("/v2/").rsplitn(3, '/').nth(2).unwrap_or("");
        let front = if repository.contains("cached") { "proxy/" } else { "" };
        let scope = format!("repository:{front}{repository}:pull");
        if heard.path == "/token" {
            let asked = heard.one("scope").unwrap();
            return match asked.contains("cached") && !asked.contains("proxy/") {
                true => says(403, &[], &json!({})),
                false => says(200, &[], &json!({ "token": hex(&[asked]) })),
            };
        }
        if heard.authorization() == Some(&format!("Bearer {}", hex(std::slice::from_ref(&scope)))) {
            return image_says(&app, heard);
        }
        let realm = format!(r#"Bearer realm="http://{}/token",scope="{scope}""#, heard.headers["host"]);
        says(401, &[("WWW-Authenticate", &realm)], &json!({}))
    });
    let board = Board::with_url(&server.url(), "");
    for repository in ["lab/own", "cached/app", "lab/other", "cached/other"] {
        assert_eq!(board.pull(repository, "latest").unwrap().digest, image.root, "{repository}");
    }
}

#[test]
fn a_token_for_a_wide_scope_goes_to_nobody_else() {
    let (image, folder) = (board::image(1), board::Folder::new());
    let stranger = Scripted::new(|heard| {
        let realm = format!(
            r#"Bearer realm="http://{}/token",scope="repository:everything:*""#,
            heard.headers["host"]
        );
        if heard.path == "/token" {
            says(200, &[], &json!({ "token": "strange" }))
        } else {
            says(401, &[("WWW-Authenticate", &realm)], &json!({}))
        }
    });
    let (to, app) = (stranger.url(), image.clone());
    let server = Scripted::new(move |heard| {
        if heard.path == "/token" {
            return says(200, &[], &json!({ "token": "mighty" }));
        }
        if heard.authorization() != Some("Bearer mighty") {
            let realm = format!(
                r#"Bearer realm="http://{}/token",scope="repository:everything:*""#,
                heard.headers["host"]
            );
            return says(401, &[("WWW-Authenticate", &realm)], &json!({}));
        }
        if heard.path.contains("/blobs/") {
            return (307, vec![("Location".into(), format!("{to}{}", heard.path))], Vec::new());
        }
        image_says(&app, heard)
    });
    let (login, users) = board::secrets(&folder);
    let board = Board::with_url(&server.url(), &format!("{login}{users}"));
    board.manifests("docker.io", "lab/app", "latest", &[board::BOARD]);
    let blob = format!("/v2/lab/app/blobs/{}?ns=docker.io", board::layer_of(&image));
    assert_ne!(board.request("GET", &blob, &[board::BOARD]).status, 200, "the stranger has nothing");
    assert!(server.about("/token").iter().any(|heard| heard.authorization().is_some()), "it did log in");
    assert!(!stranger.heard().is_empty());
    for heard in stranger.heard() {
        let sent = heard.authorization().unwrap_or("");
        assert!(!sent.contains("mighty") && !sent.contains("Basic"), "{heard:?}");
    }
}

#[test]
fn a_token_server_that_moves_is_followed_and_the_login_stays() {
    let (image, folder) = (board::image(1), board::Folder::new());
    for status in [301, 302, 303, 307, 308] {
        for (location, same_origin) in
            [("/new/token?account=x", true), ("token/", true), ("AUTH/token", false)]
        {
            let elsewhere = Scripted::new(|_| says(200, &[], &json!({ "access_token": "granted" })));
            let (app, to) = (image.clone(), location.replace("AUTH", &elsewhere.url()));
            let server = Scripted::new(move |heard| {
                if heard.path == "/token" {
                    return says(status, &[("Location", &to)], &json!({}));
                }
                if heard.path.ends_with("token") || heard.path.ends_with("token/") {
                    return says(200, &[], &json!({ "access_token": "granted" }));
                }
                if heard.authorization() == Some("Bearer granted") {
                    return image_says(&app, heard);
                }
                let realm = format!(r#"Bearer realm="http://{}/token",service=s"#, heard.headers["host"]);
                says(401, &[("WWW-Authenticate", &realm)], &json!({}))
            });
            let (login, users) = board::secrets(&folder);
            let board = Board::with_url(&server.url(), &format!("{login}{users}"));
            let answer = board.request("GET", "/v2/lab/app/manifests/latest?ns=docker.io", &[board::BOARD]);
            let (code, body) = (answer.status, answer.body().unwrap());
            assert_eq!(code, 200, "{status} {location}: {}", String::from_utf8_lossy(&body));
            let asked: Vec<Heard> = server.about("token").into_iter().chain(elsewhere.heard()).collect();
            let logged_in: Vec<bool> = asked.iter().map(|heard| heard.authorization().is_some()).collect();
            assert_eq!(logged_in, [true, same_origin], "{status} {location}: {asked:?}");
        }
    }
    // Round and round it goes, but not for ever.
    let server = Scripted::new(|heard| {
        let realm = format!(r#"Bearer realm="http://{}/token""#, heard.headers["host"]);
        match heard.path.as_str() {
            "/token" => says(302, &[("Location", "/token")], &json!({})),
            _ => says(401, &[("WWW-Authenticate", &realm)], &json!({})),
        }
    });
    let board = Board::with_url(&server.url(), "");
    assert_eq!(board.ask("lab/app", "latest").0, 502);
    assert!(server.about("/token").len() <= 20, "{}", server.about("/token").len());
}

/// Goes through a list as clients do, by its links; the names, and how many pages there were.
pub fn walk(board: &Board, first: &str, key: &str) -> (Vec<String>, usize) {
    let (mut names, mut pages, mut next) = (Vec::new(), 0, Some(first.to_owned()));
    while let Some(path) = next {
        assert!(pages < 200, "it does not end: {path}");
        pages += 1;
        let answer = board.get(&path);
        let (status, link) = (answer.status, answer.header("link").map(str::to_owned));
        let body = answer.body().unwrap();
        assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&body));
        let body: Value = serde_json::from_slice(&body).unwrap();
        names.extend(body[key].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()));
        next = link.map(|link| link.strip_prefix('<').unwrap().split('>').next().unwrap().to_owned());
    }
    (names, pages)
}

/// A list with an order and pages of its own, whose next page is behind a token that means nothing to anybody else.
fn opaque(links: fn(&Heard, usize) -> String) -> Scripted {
    const NAMES: [&str; 7] = ["latest", "zeta", "v2", "v10", "a", "m", "b"];
    Scripted::new(move |heard| {
        let from: usize =
            heard.one("next_page").map_or(0, |token| token.trim_start_matches("t=/").parse().unwrap());
        let page = &NAMES[from..(from + 3).min(NAMES.len())];
        let link = links(heard, from + 3);
        let headers: &[(&str, &str)] = if from + 3 < NAMES.len() { &[("Link", &link)] } else { &[] };
        says(200, headers, &json!({ "name": "lab/app", "tags": page, "repositories": page }))
    })
}

#[test]
fn the_next_page_is_where_the_server_says() {
    let forms: [fn(&Heard, usize) -> String; 5] = [
        |heard, at| format!(r#"<{}?next_page=t%3D%2F{at}&limit=3>; rel="next""#, heard.path),
        |_, at| format!("<?next_page=t%3D%2F{at}>; rel=next"),
        |heard, at| {
            format!("<http://{}{}?next_page=t%3D%2F{at}>; rel=\"next\"", heard.headers["host"], heard.path)
        },
        |heard, at| {
            format!(
                "</v2/>; rel=first, <{}?next_page=t%3D%2F{at}&x=,>; title=\"a, b\"; REL=\"next\"",
                heard.path
            )
        },
        // Not even the path need be the one that was asked for.
        |_, at| format!("</v2/other/path?next_page=t%3D%2F{at}>; rel=next"),
    ];
    for (number, form) in forms.into_iter().enumerate() {
        let server = opaque(form);
        let board = Board::with_url(&server.url(), "");
        let all = ["latest", "zeta", "v2", "v10", "a", "m", "b"];
        for (list, key) in
            [("/v2/lab/app/tags/list?ns=docker.io", "tags"), ("/v2/_catalog?ns=docker.io", "repositories")]
        {
            assert_eq!(walk(&board, list, key), (all.map(str::to_owned).into(), 3), "{number}");
            // Pages that are smaller than the server's: nothing is lost, and nothing comes twice.
            let (names, pages) = walk(&board, &format!("{list}&n=2"), key);
            assert_eq!((names, pages), (all.map(str::to_owned).into(), 5), "{number}");
        }
        let asked = server.heard();
        assert!(asked.iter().all(|heard| heard.one("n").is_none_or(|n| n == "2")), "{asked:?}");
    }
}

#[test]
fn large_pages_are_asked_for_only_if_a_client_does_and_not_again_if_they_are_refused() {
    for refusal in [400, 413] {
        let server = Scripted::new(move |heard| {
            let n: usize = heard.one("n").map_or(100, |n| n.parse().unwrap());
            if n > 100 {
                let body = json!({ "errors": [{ "code": "PAGINATION_NUMBER_INVALID", "message": "n is too large" }] });
                return says(refusal, &[], &body);
            }
            let from: usize = heard.one("last").map_or(0, |last| last[1..].parse::<usize>().unwrap() + 1);
            let names: Vec<String> = (from..250.min(from + n)).map(|n| format!("t{n:03}")).collect();
            let link = format!("<{}?n={n}&last=t{:03}>; rel=next", heard.path, (from + n).saturating_sub(1));
            let headers: &[(&str, &str)] = if from + n < 250 { &[("Link", &link)] } else { &[] };
            says(200, headers, &json!({ "name": "lab/app", "tags": names, "repositories": names }))
        });
        let board = Board::with_url(&server.url(), "");
        for (list, key) in
            [("/v2/lab/app/tags/list?ns=docker.io", "tags"), ("/v2/_catalog?ns=docker.io", "repositories")]
        {
            let before = server.heard().len();
            let (names, pages) = walk(&board, list, key);
            assert_eq!((names.len(), pages), (250, 3));
            let asked = server.heard().split_off(before);
            assert_eq!(asked[0].one("n"), None, "{asked:?}");
            assert_eq!(asked.len(), 3);
            let (names, pages) = walk(&board, &format!("{list}&n=500"), key);
            assert_eq!((names.len(), pages), (250, 3));
            // As many as the client wants are asked for as they are.
            let (names, pages) = walk(&board, &format!("{list}&n=50"), key);
            assert_eq!((names.len(), pages), (250, 5));
        }
    }
}

#[test]
fn a_whole_list_that_is_too_long_is_asked_for_in_pages() {
    let server = Scripted::new(|heard| {
        let n: usize = heard.one("n").map_or(usize::MAX, |n| n.parse().unwrap());
        let from: usize = heard.one("last").map_or(0, |last| last[1..6].parse::<usize>().unwrap() + 1);
        let to = 50_000.min(from.saturating_add(n));
        let names: Vec<String> = (from..to).map(|n| format!("t{n:05}{}", "x".repeat(100))).collect();
        let link =
            format!("<{}?n={n}&last={}>; rel=next", heard.path, names.last().map_or("", String::as_str));
        let headers: &[(&str, &str)] = if to < 50_000 { &[("Link", &link)] } else { &[] };
        says(200, headers, &json!({ "name": "lab/app", "tags": names }))
    });
    let board = Board::with_url(&server.url(), "");
    let (names, pages) = walk(&board, "/v2/lab/app/tags/list?ns=docker.io", "tags");
    assert_eq!((names.len(), pages), (50_000, 50));
    let without: Vec<Heard> = server.heard().into_iter().filter(|heard| heard.one("n").is_none()).collect();
    assert_eq!(without.len(), 1, "it is known after the first: {without:?}");
}

#[test]
fn a_list_that_brings_nothing_new_ends() {
    type Form = fn(&Heard, usize) -> (Vec<String>, String);
    let forms: [(Form, usize); 6] = [
        // The same page with the same link, the same page with links that differ, a circle of three pages.
        (|heard, _| (vec!["a".into(), "b".into()], format!("<{}?page=x>; rel=next", heard.path)), 2),
        (
            |heard, count| (vec!["a".into(), "b".into()], format!("<{}?page={count}>; rel=next", heard.path)),
            2,
        ),
        (
            |heard, _| {
                let at: usize = heard.one("page").map_or(0, |page| page.parse().unwrap());
                (vec![format!("t{at}")], format!("<{}?page={}>; rel=next", heard.path, (at + 1) % 3))
            },
            3,
        ),
        // Nothing at all, for ever; and a link back to what was asked for.
        (|heard, count| (Vec::new(), format!("<{}?page={count}>; rel=next", heard.path)), 0),
        (|heard, _| (vec!["a".into()], format!("<{}?{}>; rel=next", heard.path, heard.query)), 1),
        (|heard, _| (vec!["a".into()], format!("<{}>; rel=next", heard.path)), 1),
    ];
    for (number, (form, distinct)) in forms.into_iter().enumerate() {
        let count = Mutex::new(0);
        let server = Scripted::new(move |heard| {
            let mut count = count.lock().unwrap();
            *count += 1;
            let (names, link) = form(heard, *count);
            says(200, &[("Link", &link)], &json!({ "name": "lab/app", "tags": names, "repositories": names }))
        });
        let board = Board::with_url(&server.url(), "");
        for (list, key) in [
            ("/v2/lab/app/tags/list?ns=docker.io", "tags"),
            ("/v2/_catalog?ns=docker.io&n=5", "repositories"),
        ] {
            let before = server.heard().len();
            // Where there was never a name it is not known that the list is empty.
            let (mut names, _) = match distinct {
                0 => {
                    assert_eq!(board.get(list).status, 502, "{number}: {list}");
                    (Vec::new(), 1)
                }
                _ => walk(&board, list, key),
            };
            let asked = server.heard().len() - before;
            names.sort();
            names.dedup();
            assert_eq!(names.len(), distinct, "{number}: {names:?}");
            assert!(asked <= 16, "{number}: asked {asked} times");
        }
    }
}

#[test]
fn a_larder_in_front_of_another_follows_its_links() {
    let server = opaque(|heard, at| format!("<{}?next_page=t%3D%2F{at}>; rel=next", heard.path));
    let inner = Board::with_url(&server.url(), "");
    let outer = Board::with_url(&format!("http://{}", inner.addr), "");
    let all = ["latest", "zeta", "v2", "v10", "a", "m", "b"].map(str::to_owned);
    assert_eq!(walk(&outer, "/v2/lab/app/tags/list?ns=docker.io", "tags"), (all.clone().into(), 3));
    assert_eq!(walk(&outer, "/v2/lab/app/tags/list?ns=docker.io&n=2", "tags").0, all);
}

#[test]
fn a_catalogue_that_rules_filter_is_walked_through_and_names_nothing_else() {
    const NAMES: [&str; 8] =
        ["lab/a", "lab/b", "secret/c", "secret/d", "secret/e", "tool/f", "tool/lab", "zoo/lab"];
    let folder = board::Folder::new();
    // By a token of its own, whatever `last` says; and by `last`.
    for opaque in [true, false] {
        let server = Scripted::new(move |heard| {
            if heard.authorization().is_none() {
                return says(401, &[("WWW-Authenticate", "Basic realm=x")], &json!({}));
            }
            let after = |last: String| NAMES.iter().filter(|name| **name <= last.as_str()).count();
            let token = heard.one("token").map(|token| token.split('-').next().unwrap().parse().unwrap());
            let from: usize = token.or(heard.one("last").filter(|_| !opaque).map(after)).unwrap_or(0);
            let to = NAMES.len().min(from + 2);
            let link = match opaque {
                true => format!("</v2/_catalog?token={to}-secret>; rel=next"),
                false => format!("</v2/_catalog?last={}>; rel=next", NAMES[to - 1]),
            };
            let headers: &[(&str, &str)] = if to < NAMES.len() { &[("Link", &link)] } else { &[] };
            says(200, headers, &json!({ "repositories": NAMES[from..to] }))
        });
        let (login, users) = board::secrets(&folder);
        let rule = |of: &str| format!("[[auth.rule]]\nuser = \"board\"\nmatch = \"docker.io/{of}/*\"\n");
        let rules = rule("lab") + &rule("zoo");
        let board = Board::with_url(&server.url(), &format!("{login}{users}{rules}"));
        let (mut names, mut next, mut pages) = (Vec::new(), Some("/v2/_catalog?ns=docker.io".to_owned()), 0);
        while let Some(path) = next {
            pages += 1;
            assert!(pages < 10 && !path.contains("secret") && !path.contains("tool"), "{path}");
            let answer = board.request("GET", &path, &[board::BOARD]);
            next = answer.header("link").map(|link| link[1..].split('>').next().unwrap().to_owned());
            let body: Value = serde_json::from_slice(&answer.body().unwrap()).unwrap();
            let found = body["repositories"].as_array().unwrap().clone();
            names.extend(found.iter().map(|name| name.as_str().unwrap().to_owned()));
        }
        assert_eq!(names, ["lab/a", "lab/b", "zoo/lab"], "{opaque}");
    }
}

/// A request as another board sends it that waits so long, in seconds.
pub fn in_a_chain(wait: &str) -> [(&'static str, String); 2] {
    [("Via", "1.1 larder-0123456789ab".to_owned()), ("Prefer", format!("wait={wait}"))]
}

#[test]
fn one_request_for_a_list_costs_its_upstream_no_more_than_a_bound() {
    // Hidden names between empty pages; the same under a prefix that most names lie outside of; hidden names alone.
    type Names = fn(usize) -> Vec<String>;
    let forms: [(&str, Names); 3] = [
        ("", |count| (count % 16 == 0).then(|| format!("hidden/n{count}")).into_iter().collect()),
        ("prefix = \"dock\"\n", |count| {
            vec![if count % 16 == 0 { format!("dock/hidden/n{count}") } else { format!("a{count}/y") }]
        }),
        ("", |count| vec![format!("hidden/n{count}")]),
    ];
    let folder = board::Folder::new();
    for (number, (keys, names)) in forms.into_iter().enumerate() {
        let count = AtomicUsize::new(0);
        let server = Scripted::new(move |heard| {
            if heard.authorization().is_none() {
                return says(401, &[("WWW-Authenticate", "Basic realm=x")], &json!({}));
            }
            if heard.path.contains("/tags/") {
                return says(200, &[], &json!({ "name": "lab/app", "tags": ["latest"] }));
            }
            let count = count.fetch_add(1, Ordering::SeqCst) + 1;
            let link = format!("</v2/_catalog?token={count}>; rel=next");
            says(200, &[("Link", &link)], &json!({ "repositories": names(count) }))
        });
        let (login, users) = board::secrets(&folder);
        let rule = "[[auth.rule]]\nuser = \"board\"\nmatch = \"docker.io/lab/*\"\n";
        let board = Board::with_url(&server.url(), &format!("{login}{keys}{users}{rule}"));
        let answer = board.request("GET", "/v2/_catalog?ns=docker.io", &[board::BOARD]);
        let asked = server.about("_catalog").len();
        assert!(asked <= 34, "{number}: asked {asked} times");
        // Nothing was found, and the end was not seen.
        assert_eq!(answer.status, 502, "{number}");
        let answer = board.request("GET", "/v2/lab/app/tags/list?ns=docker.io", &[board::BOARD]);
        assert_eq!(answer.status, 200, "{number}: a list that ends has its own bound");
    }
}

#[test]
fn a_list_is_answered_while_its_client_waits() {
    let server = Scripted::new(|heard| {
        std::thread::sleep(std::time::Duration::from_millis(800));
        let link = format!("<{}?page={}>; rel=next", heard.path, heard.one("page").unwrap_or_default() + "x");
        says(200, &[("Link", &link)], &json!({ "name": "lab/app", "tags": [], "repositories": [] }))
    });
    let board = Board::with_url(&server.url(), "");
    for list in
        ["/v2/lab/app/tags/list?ns=docker.io", "/v2/_catalog?ns=docker.io", "/v2/_catalog?n=2&ns=docker.io"]
    {
        let began = std::time::Instant::now();
        let headers = in_a_chain("2");
        let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
        let answer = board.request("GET", list, &headers);
        let (status, took) = (answer.status, began.elapsed());
        let body = String::from_utf8(answer.body().unwrap()).unwrap();
        assert!(status == 502 && took.as_secs() < 8, "{list}: {status} after {took:?}: {body}");
    }
    // What a client has no more time for is no outage.
    assert_eq!(board.metric("larder_upstream_up{upstream=\"docker.io\"}"), 1, "{}", board.log());
}

#[test]
fn a_link_that_larder_did_not_write_leads_nowhere() {
    let server = opaque(|heard, at| format!("<{}?next_page=t%3D%2F{at}>; rel=next", heard.path));
    let board = Board::with_url(&server.url(), "");
    let list = "/v2/lab/app/tags/list?ns=docker.io";
    let answer = board.get(list);
    let link = answer.header("link").unwrap().to_owned();
    let next = link.strip_prefix('<').unwrap().split('>').next().unwrap().to_owned();
    let forged = [
        next.replace("lab/app", "lab/secret"),
        next.replace("next%5Fpage", "evil"),
        format!("{list}&next=%2Fv2%2Flab%2Fsecret%2Ftags%2Flist"),
        format!("{list}&next=1.2.0.%2Fv2%2Flab%2Fsecret%2Ftags%2Flist"),
        format!("{list}&next=.{}", ".".repeat(5_000)),
    ];
    for path in forged {
        assert_ne!(path, next);
        let before = server.heard().len();
        board.get(&path).body().unwrap();
        let asked = server.heard().swap_remove(before);
        assert!(asked.one("next_page").is_none() && asked.one("evil").is_none(), "{path}: {asked:?}");
        let own = path.split('?').next().unwrap();
        assert_eq!(asked.path, own, "{path}");
    }
    // What it did write is good until it is started again; then the last name counts.
    let mut board = board;
    board.stop();
    board.start_again();
    let before = server.heard().len();
    board.get(&next).body().unwrap();
    let asked = server.heard().swap_remove(before);
    assert_eq!((asked.one("next_page"), asked.one("last").as_deref()), (None, Some("v2")));
}
