//! A claim is no proof: who may see private content changes by its bytes alone, and what may not be seen is answered like
//! what is absent, on every road.

use crate::board::{
    self, BOARD, Board, Folder, WRONG, image, layer_of, needed, private_file, secrets, upstream_with,
};
use crate::domains::{SECRET, peer_of};
use larder::demo::client::{self, ClientAnswer as Answer};
use larder::demo::image::SampleImage as Image;
use larder::demo::upstream::{Behaviour, FaultyRegistry as Upstream, LoginDemand as Login};
use larder::oci::Digest;
use std::os::unix::fs::PermissionsExt;

pub fn private_upstream(image: &Image) -> Upstream {
    let upstream = upstream_with(image);
    upstream.login(Login::Basic("alice".into(), "s3cret".into()));
    upstream
}

/// A section for each registry, with credentials or without.
fn sections(registries: &[(&str, &Upstream, bool)], credentials: &str) -> String {
    let each = registries.iter().map(|(name, upstream, private)| {
        let credentials = if *private { credentials } else { "" };
        format!("[upstream.\"{name}\"]\nurl = \"{}\"\n{credentials}", upstream.url())
    });
    each.collect()
}

/// Whether everybody may read the file of some content.
pub fn is_open(board: &Board, digest: &Digest) -> bool {
    let path = board.data().join("blobs/sha256").join(digest.hex());
    std::fs::metadata(path).unwrap().permissions().mode() & 0o077 != 0
}

pub fn blob(digest: &Digest, registry: &str) -> String {
    format!("/v2/lab/app/blobs/{digest}?ns={registry}")
}

pub fn manifest(reference: impl std::fmt::Display, registry: &str) -> String {
    format!("/v2/lab/app/manifests/{reference}?ns={registry}")
}

/// Pulls all of an image, as the platform of the tests does.
pub fn pull(board: &Board, image: &Image, registry: &str) {
    board.request("GET", &manifest("latest", registry), &[BOARD]).body().unwrap();
    for digest in image.manifests.keys() {
        let answer = board.request("GET", &manifest(digest, registry), &[BOARD]);
        assert_eq!(answer.status, 200, "{digest}");
        answer.body().unwrap();
    }
    for digest in needed(image) {
        assert!(
            board.request("GET", &blob(&digest, registry), &[BOARD]).body().unwrap() == *image.blobs[&digest]
        );
    }
}

/// The same names with other bytes: so many.
pub fn forged(image: &Image, bytes: usize) -> Image {
    let mut forged = image.clone();
    forged.blobs.values_mut().for_each(|blob| *blob = vec![0x66; bytes].into());
    forged.manifests.values_mut().for_each(|(_, manifest)| *manifest = vec![0x66; bytes].into());
    forged
}

/// An answer, if there is one: what is wrong from its start is cut before it.
fn ask(board: &Board, method: &str, path: &str, headers: &[(&str, &str)]) -> Option<Answer> {
    client::request(board.addr, method, path, headers, board::PATIENCE).ok()
}

/// Whether an answer has bytes of some content.
fn has_any_of(answer: Option<Answer>, content: &[u8]) -> bool {
    let (Some(mut answer), mut got) = (answer, Vec::new()) else { return false };
    let _ = std::io::Read::read_to_end(&mut answer, &mut got);
    got.len() > 20 && content.windows(20).any(|part| got.windows(20).any(|window| window == part))
}

#[test]
fn a_claim_of_a_public_registry_opens_nothing() {
    let image = image(1);
    let (layer, whole) = (layer_of(&image), image.blobs[&layer_of(&image)].clone());
    for bytes in [7, whole.len()] {
        let (private, evil) = (private_upstream(&image), upstream_with(&forged(&image, bytes)));
        let (other, folder) = (upstream_with(&board::image(2)), Folder::new());
        let (credentials, auth) = secrets(&folder);
        let others = [("private.example", &private, true), ("evil.example", &evil, false)];
        let mut board = Board::new(&other, &format!("{}{auth}", sections(&others, &credentials)));
        pull(&board, &image, "private.example");
        for round in 0..2 {
            for digest in needed(&image).iter().chain(image.manifests.keys()) {
                let content = image.blobs.get(digest).unwrap_or_else(|| &image.manifests[digest].1);
                for path in [blob(digest, "evil.example"), manifest(digest, "evil.example")] {
                    ask(&board, "HEAD", &path, &[]);
                    for range in ["bytes=0-99", "bytes=5-", "bytes=-10"] {
                        let answer = ask(&board, "GET", &path, &[("Range", range)]);
                        assert!(!has_any_of(answer, &content[..100]), "{path} {range}");
                    }
                    assert!(!has_any_of(ask(&board, "GET", &path, &[]), &content[..100]), "{path}");
                    assert_ne!(board.get(&path.replace("evil.example", "docker.io")).status, 200, "{path}");
                }
                assert!(!is_open(&board, digest), "{digest} in round {round}");
            }
            ask(&board, "GET", &manifest("latest", "evil.example"), &[]);
            assert!(!is_open(&board, &image.root));
            board.check_blobs();
            if round == 0 {
                board.kill();
                board.start_again();
            }
        }
        // The neighbours go on.
        assert!(board.request("GET", &blob(&layer, "private.example"), &[BOARD]).body().unwrap() == *whole);
        board.pull("lab/app", "latest").unwrap();
        // With the uplink gone there is nothing new either.
        for upstream in [&private, &evil, &other] {
            upstream.hang_up();
        }
        for registry in ["evil.example", "docker.io"] {
            board.wait_until("the outage", || board.get(&blob(&layer, registry)).status == 502);
            assert_eq!(board.get(&manifest(&image.root, registry)).status, 502);
        }
        assert_eq!(board.request("GET", &blob(&layer, "private.example"), &[BOARD]).status, 200);
        assert_eq!(board.request("GET", &manifest("latest", "private.example"), &[BOARD]).status, 200);
    }
}

#[test]
fn a_claim_of_another_private_registry_is_no_proof_and_bytes_are() {
    let image = image(1);
    let layer = layer_of(&image);
    let (private, evil, honest) =
        (private_upstream(&image), private_upstream(&forged(&image, 7)), private_upstream(&image));
    let (other, folder) = (upstream_with(&board::image(2)), Folder::new());
    let (credentials, auth) = secrets(&folder);
    let others = [
        ("private.example", &private, true),
        ("evil.example", &evil, true),
        ("honest.example", &honest, true),
    ];
    let board = Board::new(&other, &format!("{}{auth}", sections(&others, &credentials)));
    pull(&board, &image, "private.example");
    for path in [blob(&layer, "evil.example"), manifest(&image.root, "evil.example")] {
        board.request("HEAD", &path, &[BOARD]);
        let answer = ask(&board, "GET", &path, &[BOARD]);
        assert!(!has_any_of(answer, &image.blobs[&layer][..100]), "{path}");
    }
    pull(&board, &image, "honest.example");
    assert!(honest.count("GET", "/blobs/") > 0 && honest.count("HEAD", "/blobs/") == 0);
    assert!(!is_open(&board, &layer));
    for upstream in [&evil, &honest] {
        upstream.hang_up();
    }
    board.wait_until("the outage", || {
        board.request("GET", &blob(&layer, "evil.example"), &[BOARD]).status == 502
    });
    assert_eq!(board.request("GET", &blob(&layer, "honest.example"), &[BOARD]).status, 200);
    assert_eq!(board.request("GET", &manifest(&image.root, "honest.example"), &[BOARD]).status, 200);
    assert_eq!(board.get(&blob(&layer, "honest.example")).status, 401);
}

#[test]
fn within_a_registry_its_own_answer_for_the_repository_is_enough() {
    let image = image(1);
    let layer = layer_of(&image);
    let private = private_upstream(&image);
    private.push("lab/other", "latest", &image);
    let folder = Folder::new();
    let (credentials, auth) = secrets(&folder);
    let board = Board::new(&private, &format!("{credentials}{auth}"));
    pull(&board, &image, "docker.io");
    let sent = private.blob_bytes_sent();
    let other = format!("/v2/lab/other/blobs/{layer}?ns=docker.io");
    let first = board.request("GET", &other, &[BOARD]);
    assert_eq!(first.header("cache-status"), Some("larder; fwd=uri-miss"), "its upstream was asked");
    assert!(first.body().unwrap() == *image.blobs[&layer]);
    assert_eq!(board.request("GET", &other, &[BOARD]).header("cache-status"), Some("larder; hit"));
    assert_eq!((private.count("HEAD", "/lab/other/blobs/"), private.blob_bytes_sent()), (1, sent));
    let none = format!("/v2/lab/none/blobs/{layer}?ns=docker.io");
    assert_eq!(board.request("GET", &none, &[BOARD]).status, 404);
    assert!(!is_open(&board, &layer));
}

#[test]
fn a_layer_that_only_a_private_registry_sent_does_not_complete_a_public_image() {
    let image = image(1);
    let layer = layer_of(&image);
    let (private, public) = (private_upstream(&image), upstream_with(&image));
    let folder = Folder::new();
    let (credentials, auth) = secrets(&folder);
    let others = [("private.example", &private, true)];
    let board = Board::new(&public, &format!("{}{auth}", sections(&others, &credentials)));
    pull(&board, &image, "private.example");
    // All but the layer is asked of the public registry.
    board.get(&manifest("latest", "docker.io")).body().unwrap();
    for digest in image.manifests.keys() {
        board.get(&manifest(digest, "docker.io")).body().unwrap();
    }
    for digest in needed(&image).iter().filter(|digest| **digest != layer) {
        board.get(&blob(digest, "docker.io")).body().unwrap();
    }
    assert!(!is_open(&board, &layer));
    let ls = board.said(&["ls"]);
    let line = |name: &str| ls.lines().find(|line| line.contains(name)).unwrap().to_owned();
    assert!(!line("docker.io/lab/app").contains("complete"), "{ls}");
    assert!(line("private.example/lab/app").contains("complete"), "{ls}");
    public.hang_up();
    private.hang_up();
    board.wait_until("the outage", || board.get(&blob(&layer, "docker.io")).status == 502);
    let sent = public.blob_bytes_sent();
    let lacking = board.get(&manifest("latest", "docker.io"));
    assert_eq!(lacking.status, 502, "it cannot be served complete");
    assert_eq!(board.request("GET", &manifest("latest", "private.example"), &[BOARD]).status, 200);
    // The bytes prove it.
    public.come_back().unwrap();
    board.wait_until_up("lab/app", "latest");
    assert!(board.get(&blob(&layer, "docker.io")).body().unwrap() == *image.blobs[&layer]);
    assert_eq!(public.blob_bytes_sent() - sent, image.blobs[&layer].len() as u64);
    board.wait_until("its publication", || is_open(&board, &layer));
    public.hang_up();
    board.wait_until("the outage", || board.ask("lab/app", "latest").1.contains("last-complete"));
    board.pull("lab/app", "latest").unwrap();
}

#[test]
fn what_a_private_manifest_names_is_not_told_through_another_registry() {
    let image = image(1);
    let (private, evil) = (private_upstream(&image), upstream_with(&forged(&image, 7)));
    let (other, folder) = (upstream_with(&board::image(2)), Folder::new());
    let (credentials, auth) = secrets(&folder);
    let others = [("private.example", &private, true), ("evil.example", &evil, false)];
    let board = Board::new(&other, &format!("{}{auth}", sections(&others, &credentials)));
    // The manifests, and none of the layers: so something is lacking that could be named.
    for digest in image.manifests.keys() {
        board.request("GET", &manifest(digest, "private.example"), &[BOARD]).body().unwrap();
    }
    // A tag of the other registry names the private manifest.
    assert_eq!(board.head(&manifest("latest", "evil.example")).status, 200);
    evil.hang_up();
    for digest in image.manifests.keys().filter(|digest| **digest != image.root).chain(image.blobs.keys()) {
        for method in ["GET", "HEAD"] {
            let answer = board.request(method, &manifest("latest", "evil.example"), &[]);
            assert_eq!(answer.status, 502);
            let said = told(answer);
            assert!(!said.contains(&digest.short()), "{said}");
        }
    }
    let ls = board.said(&["ls"]);
    assert!(!ls.contains(&needed(&image)[0].short()), "{ls}");
}

#[test]
fn what_a_peer_sends_is_delivered_and_opens_nothing() {
    let image = image(1);
    let layer = layer_of(&image);
    let (private, public) = (private_upstream(&image), upstream_with(&image));
    let (folder, (peer, asked)) = (Folder::new(), peer_of(&image));
    let (credentials, auth) = secrets(&folder);
    let secret = private_file(&folder, "secret", SECRET);
    let (secret, address) = (secret.display(), peer.address());
    let kit =
        format!("[kit]\nsecret_file = \"{secret}\"\nlisten = \"127.0.0.1:0\"\npeers = [\"{address}\"]\n");
    let others = [("private.example", &private, true)];
    let board = Board::new(&public, &format!("{}{auth}{kit}", sections(&others, &credentials)));
    // All of it by the private registry first; the public one then proves that it has the manifests.
    for digest in image.manifests.keys() {
        board.request("GET", &manifest(digest, "private.example"), &[BOARD]).body().unwrap();
    }
    for digest in needed(&image) {
        board.request("GET", &blob(&digest, "private.example"), &[BOARD]).body().unwrap();
    }
    for digest in image.manifests.keys() {
        board.get(&manifest(digest, "docker.io")).body().unwrap();
    }
    public.hang_up();
    board.wait_until("the outage", || board.ask("lab/never", "latest").0 == 502);
    for digest in needed(&image) {
        let whole = &image.blobs[&digest];
        assert!(board.get(&blob(&digest, "docker.io")).body().unwrap() == **whole, "{digest}");
        let part = board.request("GET", &blob(&digest, "docker.io"), &[("Range", "bytes=5-14")]);
        assert_eq!((part.status, part.body().unwrap()), (206, whole[5..15].to_vec()));
        assert!(!is_open(&board, &digest), "{digest}");
    }
    assert!(std::sync::atomic::AtomicUsize::load(&asked, std::sync::atomic::Ordering::Relaxed) > 0);
    assert!(board.request("GET", &blob(&layer, "private.example"), &[BOARD]).body().is_ok());
    board.check_blobs();
}

#[test]
fn what_is_streamed_because_the_disk_is_full_proves_as_much() {
    let image = image(1);
    let layer = layer_of(&image);
    let (private, public) = (private_upstream(&image), upstream_with(&image));
    let folder = Folder::new();
    let (credentials, auth) = secrets(&folder);
    let others = [("docker.io", &public, false), ("private.example", &private, true)];
    let board = Board::with_config(&format!(
        "platforms = [\"{}\"]\n{}[disk]\nmin_free = \"1MiB\"\nmax = \"400KB\"\n{}{auth}",
        board::PLATFORM,
        board::FETCH,
        sections(&others, &credentials)
    ));
    pull(&board, &image, "private.example");
    let streamed = board.get(&blob(&layer, "docker.io"));
    assert_eq!(streamed.header("cache-status"), Some("larder; fwd=uri-miss; detail=not-stored"));
    assert!(streamed.body().unwrap() == *image.blobs[&layer]);
    board.wait_until("its publication", || is_open(&board, &layer));
    public.hang_up();
    assert!(board.get(&blob(&layer, "docker.io")).body().unwrap() == *image.blobs[&layer]);
    assert!(!is_open(&board, &image.root));
}

/// All that a client is told by an answer.
pub fn told(mut answer: Answer) -> String {
    let (status, mut headers, mut body) = (answer.status, answer.headers.clone(), Vec::new());
    let read = std::io::Read::read_to_end(&mut answer, &mut body).map_err(|e| e.kind()).map(drop);
    // A body says how long an upstream has been away, which is of one digit or of two.
    // Via names the board.
    let differs = |name: &str| ["date", "via"].contains(&name) || status == 502 && name == "content-length";
    headers.retain(|(name, _)| !differs(&name.to_ascii_lowercase()));
    format!("{status} {headers:?} {read:?} {}", String::from_utf8_lossy(&body))
}

/// The same without what differs from second to second.
pub fn seen(answer: Answer) -> String {
    let text = told(answer);
    let mut parts = text.split("unreachable for ");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        // How long, and since when by the clock.
        let part = part.split_once("):").or_else(|| part.split_once(':')).map_or(part, |(_, rest)| rest);
        text + "unreachable for N:" + part
    })
}

/// Every road to an image, and to nothing.
pub fn roads(image: &Image, signature: &Image, registry: &str) -> Vec<(&'static str, String)> {
    let mut roads = Vec::new();
    for method in ["GET", "HEAD"] {
        for reference in ["latest".to_owned(), "never".to_owned(), "second".to_owned()] {
            roads.push((method, manifest(reference, registry)));
        }
        for digest in image.manifests.keys().chain(signature.manifests.keys()) {
            roads.push((method, manifest(digest, registry)));
        }
        for digest in &needed(image) {
            roads.push((method, blob(digest, registry)));
            roads.push((method, manifest(digest, registry)));
        }
        for list in ["lab/app/tags/list", "lab/app/tags/list?n=1", "_catalog", "_catalog?n=1"] {
            let mark = if list.contains('?') { '&' } else { '?' };
            roads.push((method, format!("/v2/{list}{mark}ns={registry}")));
        }
        roads.push((method, format!("/v2/lab/app/referrers/{}?ns={registry}", image.root)));
        roads.push((method, "/v2/_catalog".to_owned()));
    }
    roads
}

/// A board that has private images, and its twin which has none of them; of both the same is configured.
pub struct Twins {
    pub holder: Board,
    pub absent: Board,
}

impl Twins {
    pub fn configure(&self, config: &str) {
        for board in [&self.holder, &self.absent] {
            std::fs::write(board.folder().join("larder.toml"), config).unwrap();
        }
    }

    pub fn restart(&mut self) {
        for board in [&mut self.holder, &mut self.absent] {
            board.stop();
            board.start_again();
        }
    }

    /// Asks both on every road; the roads on which they can be told apart, or that have something of the image.
    pub fn differences(
        &self,
        roads: &[(&str, String)],
        logins: &[&[(&str, &str)]],
        state: &str,
    ) -> Vec<String> {
        let mut found = Vec::new();
        for (method, path) in roads {
            for login in logins {
                for range in [None, Some(("Range", "bytes=0-99"))] {
                    let headers: Vec<_> = login.iter().copied().chain(range).collect();
                    let [here, there] =
                        [&self.holder, &self.absent].map(|board| seen(board.request(method, path, &headers)));
                    if here != there {
                        found.push(format!("{state}: {method} {path} {headers:?}\n  {here}\n  {there}"));
                    }
                }
            }
        }
        found
    }
}

#[test]
fn what_may_not_be_seen_is_answered_like_what_is_absent() {
    let (image, second) = (image(1), board::image(3));
    let signature = Image::artifact(&image, "application/vnd.lab.signature");
    let private = private_upstream(&image);
    private.push("lab/app", "second", &second);
    private.push("lab/app", "signature", &signature);
    private.push("lab/zoo", "latest", &second);
    let public = upstream_with(&board::image(2));
    let folder = Folder::new();
    let (credentials, auth) = secrets(&folder);
    let config = |private_too: bool| {
        let (own, credentials) = (private.url(), if private_too { credentials.as_str() } else { "" });
        let port = format!("[upstream.\"private.example\"]\nurl = \"{own}\"\n{credentials}{auth}");
        let tags = "[tags]\nresolve_deadline = \"500ms\"\n";
        format!(
            "platforms = [\"{}\"]\n{tags}{}[disk]\nmin_free = \"1MiB\"\n[upstream.\"docker.io\"]\nurl = \"{}\"\n{port}",
            board::PLATFORM,
            board::FETCH,
            public.url()
        )
    };
    let boards = || Board::with_config(&config(true));
    let mut twins = Twins { holder: boards(), absent: boards() };
    let holder = &twins.holder;
    pull(holder, &image, "private.example");
    holder.request("GET", &manifest("second", "private.example"), &[BOARD]).body().unwrap();
    holder.request("GET", &manifest(&signature.root, "private.example"), &[BOARD]).body().unwrap();
    // Only its tag is known of this one.
    let zoo = "/v2/lab/zoo/manifests/latest?ns=private.example";
    assert_eq!(holder.request("HEAD", zoo, &[BOARD]).status, 200);
    for board in [&twins.holder, &twins.absent] {
        board.pull("lab/app", "latest").unwrap();
    }
    let roads_of = |registry| roads(&image, &signature, registry);
    let everybody: [&[(&str, &str)]; 3] = [&[], &[WRONG], &[BOARD]];
    let mut found = Vec::new();
    // Through the public registry nobody sees it; through the private one nobody who has not logged in.
    let mut ask = |twins: &Twins, state: &str| {
        found.extend(twins.differences(&roads_of("docker.io"), &everybody, state));
        found.extend(twins.differences(&roads_of("private.example"), &everybody[..2], state));
    };
    ask(&twins, "online");
    twins.restart();
    ask(&twins, "after a restart");
    public.hang_up();
    private.hang_up();
    for board in [&twins.holder, &twins.absent] {
        for registry in ["docker.io", "private.example"] {
            let never = format!("/v2/lab/never/manifests/latest?ns={registry}");
            assert_eq!(board.request("HEAD", &never, &[BOARD]).status, 502);
        }
    }
    ask(&twins, "offline");
    twins.restart();
    ask(&twins, "offline after a restart");
    let holds = |board: &Board| board.request("GET", &manifest("latest", "private.example"), &[BOARD]).status;
    assert_eq!((holds(&twins.holder), holds(&twins.absent)), (200, 502), "its owner has it all the while");
    // The credentials leave the configuration: for others it is as if nothing had ever been fetched with them.
    twins.configure(&config(false));
    twins.restart();
    for board in [&twins.holder, &twins.absent] {
        for registry in ["docker.io", "private.example"] {
            board.head(&format!("/v2/lab/never/manifests/latest?ns={registry}"));
        }
    }
    found.extend(twins.differences(
        &roads_of("private.example"),
        &everybody[..2],
        "offline without credentials",
    ));
    found.extend(twins.differences(&roads_of("docker.io"), &everybody, "offline without credentials"));
    private.come_back().unwrap();
    public.come_back().unwrap();
    for board in [&twins.holder, &twins.absent] {
        board.wait_until_up("lab/app", "latest");
        let never = "/v2/lab/never/manifests/latest?ns=private.example";
        board.wait_until("the answer of upstream", || board.head(never).status == 401);
    }
    found.extend(twins.differences(
        &roads_of("private.example"),
        &everybody[..2],
        "online without credentials",
    ));
    assert!(found.is_empty(), "{} differences:\n{}", found.len(), found.join("\n"));
    assert!(!is_open(&twins.holder, &layer_of(&image)) && !is_open(&twins.holder, &image.root));
    // They come back, and so does the image.
    twins.configure(&config(true));
    private.hang_up();
    twins.restart();
    assert_eq!((holds(&twins.holder), holds(&twins.absent)), (200, 502));
}

#[test]
fn a_404_of_a_private_registry_does_not_tell_whether_the_content_is_here() {
    let (image, other) = (image(1), board::image(3));
    let folder = Folder::new();
    let (credentials, auth) = secrets(&folder);
    let private = private_upstream(&image);
    private.push("lab/zoo", "latest", &other);
    let config = format!("{}{auth}", sections(&[("private.example", &private, true)], &credentials));
    let public = upstream_with(&board::image(2));
    let (holder, absent) = (Board::new(&public, &config), Board::new(&public, &config));
    pull(&holder, &image, "private.example");
    // Another repository of the registry does not have it, whichever way it is asked.
    for status in [404, 403, 400] {
        if status != 404 {
            private.clear();
            private.on(None, "lab/zoo", Behaviour::Status(status, Vec::new()));
        }
        for digest in needed(&image).iter().chain(image.manifests.keys()) {
            for (method, kind) in
                [("GET", "blobs"), ("HEAD", "blobs"), ("GET", "manifests"), ("HEAD", "manifests")]
            {
                let path = format!("/v2/lab/zoo/{kind}/{digest}?ns=private.example");
                let answers = [&holder, &absent].map(|board| told(board.request(method, &path, &[BOARD])));
                assert_eq!(answers[0], answers[1], "{method} {path} {status}");
                assert!(!answers[0].starts_with("200"), "{}", answers[0]);
            }
        }
    }
}

#[test]
fn what_was_fetched_with_credentials_that_are_gone_is_still_the_owners() {
    let (image, second) = (image(1), board::image(3));
    let private = private_upstream(&image);
    private.push("lab/other", "latest", &second);
    let (public, folder) = (upstream_with(&board::image(2)), Folder::new());
    let (credentials, auth) = secrets(&folder);
    let users: String =
        ["board", "stranger"].map(|name| format!("{name}:{}\n", bcrypt::hash("carry", 4).unwrap())).concat();
    private_file(&folder, "htpasswd", &users);
    let rule = "[[auth.rule]]\nuser = \"board\"\nmatch = \"private.example/lab/app\"\n";
    let sections = |credentials: &str| {
        let others = [("private.example", &private, true)];
        Board::config(&public.url(), &format!("{}{auth}{rule}", sections(&others, credentials)))
    };
    let mut board = Board::with_config(&sections(&credentials));
    pull(&board, &image, "private.example");
    board.pull("lab/app", "latest").unwrap();
    let stranger = ("Authorization", "Basic c3RyYW5nZXI6Y2Fycnk=");
    for online in [true, false] {
        if !online {
            private.hang_up();
        }
        std::fs::write(board.folder().join("larder.toml"), sections("")).unwrap();
        board.stop();
        board.start_again();
        // Its owner has all of it, by tag too: that the registry refuses who has no login says nothing of the image.
        pull(&board, &image, "private.example");
        let tag = board.request("GET", &manifest("latest", "private.example"), &[BOARD]);
        assert!(tag.header("cache-status").unwrap().contains("last-complete"), "{:?}", tag.headers);
        let tags = board.request("GET", "/v2/lab/app/tags/list?ns=private.example", &[BOARD]);
        assert_eq!(tags.status, if online { 401 } else { 200 });
        let listed = board.request("GET", "/v2/_catalog?ns=private.example", &[BOARD]).body().unwrap();
        assert!(String::from_utf8(listed).unwrap().contains("lab/app"));
        // Nobody else has any of it, nobody is asked to log in, and a login opens nothing else.
        for who in [&[][..], &[WRONG], &[stranger]] {
            for digest in needed(&image).iter().chain(image.manifests.keys()) {
                for path in [blob(digest, "private.example"), manifest(digest, "private.example")] {
                    let answer = board.request("GET", &path, who);
                    assert_eq!(answer.header("www-authenticate"), None, "{path}");
                    assert!([401, 404, 502].contains(&answer.status), "{path}: {}", answer.status);
                }
            }
            let listed = board.request("GET", "/v2/_catalog?ns=private.example", who).body().unwrap();
            assert!(!String::from_utf8(listed).unwrap().contains("lab/app"));
        }
        assert_ne!(board.request("GET", &blob(&layer_of(&image), "docker.io"), &[BOARD]).status, 200);
        // The neighbour goes on, whoever asks.
        board.pull("lab/app", "latest").unwrap();
        for who in [BOARD, WRONG, stranger] {
            assert_eq!(board.request("GET", &manifest("latest", "docker.io"), &[who]).status, 200);
        }
    }
    assert!(!is_open(&board, &layer_of(&image)) && !is_open(&board, &image.root));
}

#[test]
fn a_claim_that_joins_a_download_of_the_same_registry_is_no_proof() {
    let image = image(1);
    let layer = layer_of(&image);
    // Of the right size, and it has no byte of it.
    let mut claimed = image.clone();
    claimed.blobs.values_mut().for_each(|blob| *blob = vec![0x66; blob.len()].into());
    let (private, evil) = (private_upstream(&image), private_upstream(&claimed));
    evil.push("lab/two", "latest", &claimed);
    evil.on(Some("GET"), &format!("lab/app/blobs/{layer}"), Behaviour::StallBodyAfter(10));
    let (other, folder) = (upstream_with(&board::image(2)), Folder::new());
    let (credentials, auth) = secrets(&folder);
    let others = [("private.example", &private, true), ("evil.example", &evil, true)];
    let board = Board::new(&other, &format!("{}{auth}", sections(&others, &credentials)));
    pull(&board, &image, "private.example");
    for repository in ["lab/app", "lab/two"] {
        board.manifests("evil.example", repository, "latest", &[BOARD]);
    }
    let two = blob(&layer, "evil.example").replace("lab/app", "lab/two");
    let whole = &image.blobs[&layer];
    std::thread::scope(|scope| {
        // One drips it to a first repository; a second joins, and the registry says that this one has it, too.
        scope.spawn(|| ask(&board, "GET", &blob(&layer, "evil.example"), &[BOARD]));
        assert!(evil.wait_for(1, "GET", &format!("lab/app/blobs/{layer}"), board::PATIENCE));
        let joined = ask(&board, "GET", &two, &[BOARD]);
        drop(joined);
        for _ in 0..3 {
            let range = ask(&board, "GET", &two, &[BOARD, ("Range", "bytes=100-199")]);
            assert!(!has_any_of(range, &whole[100..200]));
        }
        evil.release();
    });
    assert!(board.request("GET", &blob(&layer, "private.example"), &[BOARD]).body().unwrap() == **whole);
}

#[test]
fn what_is_hashed_again_for_its_owner_is_shown_to_nobody_else() {
    let image = Image::multi_arch(5, &[24 << 20]);
    let layer = layer_of(&image);
    let (private, public) = (private_upstream(&image), upstream_with(&board::image(2)));
    let folder = Folder::new();
    let (credentials, auth) = secrets(&folder);
    let config = |credentials: &str| {
        Board::config(
            &public.url(),
            &format!("{}{auth}", sections(&[("private.example", &private, true)], credentials)),
        )
    };
    let mut board = Board::with_config(&config(&credentials));
    pull(&board, &image, "private.example");
    board.kill();
    std::fs::write(board.folder().join("larder.toml"), config("")).unwrap();
    board.start_again();
    let path = blob(&layer, "private.example");
    let whole = &image.blobs[&layer];
    std::thread::scope(|scope| {
        let owner = scope.spawn(|| board.request("GET", &path, &[BOARD]).body().unwrap());
        while !owner.is_finished() {
            let part = ask(&board, "GET", &path, &[("Range", "bytes=100-199")]);
            assert!(!has_any_of(part, &whole[100..200]));
            let head = ask(&board, "HEAD", &path, &[]);
            assert!(head.is_none_or(|head| head.status != 200));
        }
        assert!(owner.join().unwrap() == **whole);
    });
}

#[test]
fn what_a_peer_sends_does_not_open_the_names_of_a_private_repository() {
    let (image, other) = (image(1), board::image(4));
    let (private, public) = (private_upstream(&image), upstream_with(&board::image(2)));
    let (folder, of_peer) = (Folder::new(), upstream_with(&other));
    let (credentials, auth) = secrets(&folder);
    let secret = private_file(&folder, "kit.secret", SECRET);
    let kit = |peers: &str| {
        let secret = secret.display();
        format!("[kit]\nsecret_file = \"{secret}\"\nlisten = \"127.0.0.1:0\"\npeers = [{peers}]\n")
    };
    let peer = Board::new(
        &of_peer,
        &format!("{}{}", sections(&[("private.example", &of_peer, false)], ""), kit("")),
    );
    peer.pull("lab/app", "latest").unwrap();
    let kit = kit(&format!("\"{}\"", peer.kit_addr()));
    let config = |credentials: &str| {
        let section = sections(&[("private.example", &private, true)], credentials);
        Board::config(&public.url(), &format!("{section}{auth}{kit}"))
    };
    let mut board = Board::with_config(&config(&credentials));
    pull(&board, &image, "private.example");
    board.stop();
    std::fs::write(board.folder().join("larder.toml"), config("")).unwrap();
    private.hang_up();
    board.start_again();
    let list = "/v2/lab/app/tags/list?ns=private.example";
    board.wait_until("the outage", || board.get(list).status == 502);
    // A public manifest of the other board, through the name of the private repository.
    let sent = board.get(&manifest(&other.root, "private.example"));
    assert_eq!(sent.status, 200);
    sent.body().unwrap();
    assert_eq!(board.get(list).status, 502);
    let listed = board.get("/v2/_catalog?ns=private.example").body().unwrap();
    assert!(!String::from_utf8(listed).unwrap().contains("lab/app"));
    assert_ne!(board.get(&manifest("latest", "private.example")).status, 200);
}
