//! Boards that share: what a peer may change, and what not, with real boards and with one that lies.

use crate::board::{
    self, Board, FETCH, Folder, LEEWAY, image, layer_of, needed, private_file, upstream_with,
};
use larder::budget;
use larder::config;
use larder::demo::image::SampleImage as Image;
use larder::demo::upstream::{Behaviour, FaultyRegistry as Upstream, LoginDemand as Login};
use larder::files::Watched;
use larder::kit::{self, Kit, Listening, PeerContent};
use larder::oci::{Digest, Platform, Repository, Tag};
use larder::text::Secret;
use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

const SECRET: &str = "a secret that the boards of a test share";
const TAG: &str = "/v2/lab/app/manifests/latest?ns=docker.io";
/// The index and one manifest, which are pulled beside the blobs.
const WITH_MANIFESTS: usize = 2;

/// Claims are compared by the second. A jump of the wall clock is no second: how long ago upstream was heard is measured
/// by a clock that does not jump.
const A_SECOND: Duration = Duration::from_millis(1_100);

/// The section of a board that knows `peers`.
fn section(folder: &Folder, secret: &str, listen: SocketAddr, peers: &[SocketAddr]) -> String {
    let file = private_file(folder, &format!("secret-{}", secret.len()), secret);
    let peers: Vec<String> = peers.iter().map(|peer| format!("\"{peer}\"")).collect();
    format!(
        "[kit]\nsecret_file = \"{}\"\nlisten = \"{listen}\"\npeers = [{}]\n",
        file.display(),
        peers.join(", ")
    )
}

fn any_port() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// A port that was free a moment ago, for boards that have to know each other before they run. It is of a loopback address
/// where nothing else of the tests listens that takes any port.
fn free_port() -> SocketAddr {
    static COUNT: AtomicU8 = AtomicU8::new(2);
    let host = COUNT.fetch_add(1, Ordering::Relaxed);
    TcpListener::bind(SocketAddr::from(([127, 0, 0, host], 0))).unwrap().local_addr().unwrap()
}

fn board(upstream: &Upstream, folder: &Folder, peers: &[SocketAddr]) -> Board {
    Board::new(upstream, &section(folder, SECRET, any_port(), peers))
}

fn metric(board: &Board, name: &str) -> u64 {
    let page = String::from_utf8(board.get("/metrics").body().unwrap()).unwrap();
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    line.unwrap_or_else(|| panic!("no {name} in\n{page}"))
}

#[test]
fn an_empty_board_pulls_latest_through_a_peer() {
    let first = image(1);
    let (upstream, folder) = (upstream_with(&first), Folder::new());
    let mut near = board(&upstream, &folder, &[]);
    let far = board(&upstream, &folder, &[near.kit_addr()]);
    near.pull("lab/app", "latest").unwrap();
    assert_eq!(far.head("/v2/lab/none/manifests/latest?ns=docker.io").status, 404);
    upstream.hang_up();
    let before = upstream.requests().len();
    let pulled = far.pull("lab/app", "latest").unwrap();
    assert_eq!(pulled.digest, first.root);
    assert_eq!(pulled.tag_status, "larder; fwd=uri-miss; detail=peer");
    assert_eq!(upstream.requests().len(), before);
    assert_eq!(far.check_blobs(), WITH_MANIFESTS + needed(&first).len());
    let bytes: usize = needed(&first).iter().map(|digest| first.blobs[digest].len()).sum();
    // What was served is counted when the answer ends here, which may be after its last byte has come there.
    let served = || metric(&far, "larder_served_bytes_total{source=\"peer\"}");
    far.wait_until("the count of all bytes", || served() >= bytes as u64);
    assert_eq!(metric(&far, "larder_served_bytes_total{source=\"fill\"}"), 0);
    assert!(metric(&far, "larder_resolves_total{tier=\"peer\"}") >= 1);
    assert_eq!(metric(&far, &format!("larder_peer_up{{peer=\"{}\"}}", near.kit_addr())), 1);
    assert!(far.said(&["status"]).contains(&format!("peer       {}: up", near.kit_addr())));
    // What a peer said is not what upstream said.
    far.wait_for_log("is complete at");
    let history = far.said(&["history", "docker.io/lab/app"]);
    assert!(history.contains("named by a peer") && !history.contains("upstream's digest"), "{history}");
    let why = far.said(&["why", "docker.io/lab/app"]);
    assert!(why.contains("upstream's digest   nothing"), "{why}");
    // The version is the board's own by now: it is answered without the peer, also after a restart.
    near.kill();
    let mut far = far;
    for _ in 0..2 {
        let answer = far.head(TAG);
        assert_eq!(answer.header("cache-status"), Some("larder; hit; detail=last-complete"));
        assert!(answer.header("warning").is_some());
        assert_eq!(far.pull("lab/app", "latest").unwrap().digest, first.root);
        far.stop();
        far.start_again();
    }
    // And it is not passed on as if this board's upstream had said it.
    let third = board(&upstream, &folder, &[far.kit_addr()]);
    let answer = third.get(TAG);
    assert_eq!(answer.status, 502);
    let status = far.said(&["status"]);
    assert!(status.contains(&format!("peer       {}: ", near.kit_addr())), "{status}");
    // Upstream is back and is asked again.
    upstream.come_back().unwrap();
    far.wait_until_up("lab/app", "latest");
    assert!(far.said(&["history", "docker.io/lab/app"]).contains("upstream's digest"));
}

#[test]
fn a_newer_claim_beats_an_older_version_and_an_older_claim_does_not() {
    let (first, second) = (image(1), image(2));
    let (upstream, folder) = (upstream_with(&first), Folder::new());
    let (old_port, new_port) = (free_port(), free_port());
    let old = Board::new(&upstream, &section(&folder, SECRET, old_port, &[new_port]));
    let mut new = Board::new(&upstream, &section(&folder, SECRET, new_port, &[old_port]));
    old.pull("lab/app", "latest").unwrap();
    old.wait_for_log(&format!("is complete at {}", first.root));
    std::thread::sleep(A_SECOND);
    upstream.push("lab/app", "latest", &second);
    new.pull("lab/app", "latest").unwrap();
    upstream.hang_up();
    let kept = new.pull("lab/app", "latest").unwrap();
    assert_eq!(
        (kept.digest, kept.tag_status.as_str()),
        (second.root.clone(), "larder; hit; detail=last-complete")
    );
    let moved = old.pull("lab/app", "latest").unwrap();
    assert_eq!(moved.digest, second.root);
    assert_eq!(moved.tag_status, "larder; fwd=uri-miss; detail=peer");
    old.wait_for_log(&format!("is complete at {}", second.root));
    old.wait_for_log("answered from peer");
    let history = old.said(&["history", "docker.io/lab/app"]);
    let seen = history.lines().find(|line| line.contains("upstream's digest")).unwrap();
    assert!(seen.contains(&first.root.to_string()), "the peer moved what upstream said: {history}");
    // It does not go back when the peer is gone.
    new.kill();
    let (_, tier, _) = old.ask("lab/app", "latest");
    assert_eq!(tier, "larder; hit; detail=last-complete");
    assert_eq!(old.pull("lab/app", "latest").unwrap().digest, second.root);
    // Upstream says again what it said first. That counts more than what the peer heard before.
    std::thread::sleep(A_SECOND);
    upstream.push("lab/app", "latest", &first);
    upstream.come_back().unwrap();
    old.wait_until_up("lab/app", "latest");
    assert_eq!(old.pull("lab/app", "latest").unwrap().digest, first.root);
    upstream.hang_up();
    new.start_again();
    // The first pull may pass the peer by, which was gone just now; one that asks it has the same answer.
    let peer_up = format!("larder_peer_up{{peer=\"{new_port}\"}}");
    old.wait_until("the peer's return", || {
        assert_eq!(old.pull("lab/app", "latest").unwrap().digest, first.root);
        metric(&old, &peer_up) == 1
    });
    assert_eq!(old.pull("lab/app", "latest").unwrap().digest, first.root);
}

#[test]
fn a_download_that_the_uplink_cut_is_finished_by_a_peer() {
    let app = image(1);
    let (upstream, folder) = (upstream_with(&app), Folder::new());
    let near = board(&upstream, &folder, &[]);
    near.pull("lab/app", "latest").unwrap();
    let far = board(&upstream, &folder, &[near.kit_addr()]);
    // The manifests, so that the size of the layer is known; then a part of the layer.
    far.get(TAG).body().unwrap();
    for digest in app.manifests.keys() {
        far.get(&format!("/v2/lab/app/manifests/{digest}?ns=docker.io")).body().unwrap();
    }
    let layer = layer_of(&app);
    upstream.on(Some("GET"), &layer.to_string(), Behaviour::StallBodyAfter(100_000));
    let sent = upstream.blob_bytes_sent();
    let answer = far.get(&format!("/v2/lab/app/blobs/{layer}?ns=docker.io"));
    far.wait_until("the first part", || upstream.blob_bytes_sent() >= sent + 100_000);
    upstream.hang_up();
    assert_eq!(answer.body().unwrap(), app.blobs[&layer].to_vec());
    far.wait_for_log("comes from peer");
    far.check_blobs();
    let served = || metric(&far, "larder_served_bytes_total{source=\"peer\"}");
    far.wait_until("the count of all bytes", || served() >= app.blobs[&layer].len() as u64);
}

/// A board that knows the secret, claims an image as of just now, and has wrong bytes for it.
struct Liar {
    image: Image,
    folder: Folder,
    lies_about_manifests: bool,
}

impl Liar {
    fn open(image: &Image, lies_about_manifests: bool) -> Listening {
        let liar = Liar { image: image.clone(), folder: Folder::new(), lies_about_manifests };
        kit::listen(any_port(), Watched::fixed(Secret::new(SECRET.into())), Arc::new(liar)).unwrap()
    }

    fn file(&self, digest: &Digest, bytes: &[u8]) -> (File, u64) {
        let path = self.folder.0.join(digest.hex());
        std::fs::write(&path, bytes).unwrap();
        (File::open(path).unwrap(), bytes.len() as u64)
    }
}

impl PeerContent for Liar {
    fn tag(&self, _: &Repository, _: &Tag, _: &[Platform]) -> Option<(Digest, Option<u64>)> {
        Some((self.image.root.clone(), larder::clock::trusted_unix().map(|now| now + 60)))
    }

    fn manifest(&self, _: &Repository, digest: &Digest) -> Option<(String, File, u64)> {
        let (media_type, bytes) = self.image.manifests.get(digest)?;
        let mut bytes = bytes.to_vec();
        if self.lies_about_manifests {
            bytes.push(b' ');
        }
        let (file, size) = self.file(digest, &bytes);
        Some((media_type.clone(), file, size))
    }

    fn blob(&self, _: &Repository, digest: &Digest) -> Option<(File, u64)> {
        let mut bytes = self.image.blobs.get(digest)?.to_vec();
        bytes[0] ^= 1;
        Some(self.file(digest, &bytes))
    }
}

#[test]
fn a_peer_that_lies_about_blobs_harms_nothing() {
    let (upstream, folder) = (upstream_with(&image(1)), Folder::new());
    let honest = board(&upstream, &folder, &[]);
    honest.pull("lab/app", "latest").unwrap();
    let liar = Liar::open(&image(1), false);
    let board = board(&upstream, &folder, &[liar.address(), honest.kit_addr()]);
    upstream.hang_up();
    // Whatever the client was given before the hash was known was cut short; nothing wrong was kept.
    let failed = board.pull("lab/app", "latest");
    board.wait_for_log("sent wrong content and is left out");
    board.check_blobs();
    // The rest comes from the board that has it.
    if failed.is_err() {
        board.pull("lab/app", "latest").unwrap();
    }
    assert_eq!(board.check_blobs(), WITH_MANIFESTS + needed(&image(1)).len());
    assert_eq!(metric(&board, &format!("larder_peer_up{{peer=\"{}\"}}", liar.address())), 0);
    let status = board.said(&["status"]);
    assert!(status.contains("left out for ") && status.contains("hashes to"), "{status}");
}

#[test]
fn after_a_lie_the_good_source_is_used() {
    let (upstream, folder) = (upstream_with(&image(1)), Folder::new());
    let liar = Liar::open(&image(1), false);
    let board = board(&upstream, &folder, &[liar.address()]);
    upstream.hang_up();
    assert!(board.pull("lab/app", "latest").is_err());
    board.wait_for_log("sent wrong content and is left out");
    let layer = layer_of(&image(1));
    assert_eq!(board.get(&format!("/v2/lab/app/blobs/{layer}?ns=docker.io")).status, 502);
    upstream.come_back().unwrap();
    board.wait_until_up("lab/app", "latest");
    board.pull("lab/app", "latest").unwrap();
    assert_eq!(board.check_blobs(), WITH_MANIFESTS + needed(&image(1)).len());
}

#[test]
fn a_claim_whose_manifest_is_wrong_is_not_answered_with() {
    let (first, second) = (image(1), image(2));
    let (upstream, folder) = (upstream_with(&first), Folder::new());
    let liar = Liar::open(&second, true);
    let board = board(&upstream, &folder, &[liar.address()]);
    board.pull("lab/app", "latest").unwrap();
    upstream.hang_up();
    let answer = board.get(TAG);
    assert_eq!(answer.header("docker-content-digest"), Some(first.root.to_string().as_str()));
    assert_eq!(answer.header("cache-status"), Some("larder; hit; detail=last-complete"));
    assert_eq!(board.pull("lab/app", "latest").unwrap().digest, first.root);
    board.wait_for_log("sent wrong content and is left out");
    assert!(!board.has_blob(&second.root));
}

#[test]
fn a_peer_that_hangs_delays_one_answer_by_its_deadline() {
    let first = image(1);
    let (upstream, folder) = (upstream_with(&first), Folder::new());
    let mute = TcpListener::bind(any_port()).unwrap();
    let address = mute.local_addr().unwrap();
    std::thread::spawn(move || mute.incoming().map_while(Result::ok).collect::<Vec<TcpStream>>());
    let board = board(&upstream, &folder, &[address]);
    board.pull("lab/app", "latest").unwrap();
    upstream.hang_up();
    let (status, tier, took) = board.ask("lab/app", "latest");
    assert_eq!((status, tier.as_str()), (200, "larder; hit; detail=last-complete"));
    assert!(took < budget::PEER_DEADLINE + LEEWAY, "{took:?}");
    board.wait_for_log("is left out for 1 s: no answer in time");
    // In its pause it is not asked, and nothing that is not here waits for it either.
    let (_, _, took) = board.ask("lab/app", "latest");
    assert!(took < budget::PEER_DEADLINE, "{took:?}");
    assert_eq!(board.get("/v2/lab/none/manifests/latest?ns=docker.io").status, 502);
    assert_eq!(board.pull("lab/app", "latest").unwrap().digest, first.root);
}

#[test]
fn a_board_with_another_secret_is_given_nothing() {
    let (upstream, folder) = (upstream_with(&image(1)), Folder::new());
    let near = board(&upstream, &folder, &[]);
    near.pull("lab/app", "latest").unwrap();
    let other = section(&folder, "some other secret", any_port(), &[near.kit_addr()]);
    let far = Board::new(&upstream, &other);
    upstream.hang_up();
    assert_eq!(far.get(TAG).status, 502);
    far.wait_for_log("its secret is another");
    near.wait_for_log("does not have the secret of this kit");
}

#[test]
fn private_content_is_not_shared() {
    let (private, public) = (image(1), image(2));
    let (guarded, open) = (upstream_with(&private), upstream_with(&public));
    guarded.login(Login::Basic("lab".into(), "pull".into()));
    let folder = Folder::new();
    let password = private_file(&folder, "password", "pull");
    let line = format!("me:{}\n", bcrypt::hash("door", 4).unwrap());
    let logins = private_file(&folder, "htpasswd", &line);
    let board = Board::with_config(&format!(
        "platforms = [\"{}\"]\n{FETCH}[disk]\nmin_free = \"1MiB\"\n[auth]\nhtpasswd_file = \"{}\"\n\
         [upstream.\"docker.io\"]\nurl = \"{}\"\nusername = \"lab\"\npassword_file = \"{}\"\n\
         [upstream.\"open.example\"]\nurl = \"{}\"\n{}",
        board::PLATFORM,
        logins.display(),
        guarded.url(),
        password.display(),
        open.url(),
        section(&folder, SECRET, any_port(), &[])
    ));
    let login = [("Authorization", "Basic bWU6ZG9vcg==")];
    for (image, registry) in [(&private, "docker.io"), (&public, "open.example")] {
        let fetch = |kind: &str, what: &str| {
            let path = format!("/v2/lab/app/{kind}/{what}?ns={registry}");
            let answer = board.request("GET", &path, &login);
            assert_eq!(answer.status, 200, "{path}:\n{}", board.log());
            answer.body().unwrap();
        };
        fetch("manifests", "latest");
        for digest in image.manifests.keys() {
            fetch("manifests", &digest.to_string());
        }
        for digest in image.blobs.keys() {
            fetch("blobs", &digest.to_string());
        }
    }
    let kit = Kit::new(&config::KitSettings {
        secret_file: "/none".into(),
        secret: Secret::new(SECRET.into()),
        listen: any_port(),
        peers: vec![board.kit_addr()],
        mdns: false,
    });
    let repository = |registry: &str| -> Repository { format!("{registry}/lab/app").parse().unwrap() };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let claims = |registry: &str| {
        let platforms = [board::PLATFORM.parse().unwrap()];
        runtime.block_on(kit.ask_tag(&repository(registry), &"latest".parse().unwrap(), &platforms))
    };
    board.wait_until("the public image's completion", || claims("open.example").len() == 1);
    assert_eq!(claims("open.example")[0].digest, public.root);
    assert_eq!(claims("docker.io"), []);
    assert_eq!(claims("not.configured"), []);
    // Not by digest either, nor through a public repository.
    for registry in ["docker.io", "open.example"] {
        assert_eq!(kit.manifest(&repository(registry), &private.root), None);
        for digest in private.blobs.keys() {
            assert!(kit.blob(&repository(registry), digest, 0, &[]).is_none(), "{registry} {digest}");
        }
    }
    assert!(kit.manifest(&repository("open.example"), &public.root).is_some());
    assert!(kit.blob(&repository("open.example"), &layer_of(&public), 0, &[]).is_some());
    assert!(kit.has_live_peer(), "a no is no failure: {:?}", kit.peers());
}
