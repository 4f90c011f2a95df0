//! Work in progress is shared inside one trust domain only: what a registry, a repository or a peer does badly concerns its
//! own clients, and the neighbours go on.

use crate::board::{BOARD, Board, Folder, PATIENCE, image, layer_of, private_file, secrets, upstream_with};
use larder::demo::client::{self, ClientAnswer as Answer};
use larder::demo::image::SampleImage as Image;
use larder::demo::upstream::{Behaviour, FaultyRegistry as Upstream, LoginDemand as Login};
use larder::kit::{self, PeerContent};
use larder::oci::{Digest, Platform, Repository, Tag};
use larder::text::Secret;
use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What the boards of these tests share.
pub const SECRET: &str = "a secret that the boards of a test share";

fn of(repository: &str, digest: &Digest, registry: &str) -> String {
    format!("/v2/{repository}/blobs/{digest}?ns={registry}")
}

/// The same image from somebody who has other bytes under the names of its blobs: so many.
fn forged(image: &Image, bytes: usize) -> Image {
    let mut forged = image.clone();
    forged.blobs.values_mut().for_each(|blob| *blob = vec![0x66; bytes].into());
    forged
}

/// The manifests of an image, so that its sizes are known.
fn ask_manifests(board: &Board, image: &Image, repository: &str, registry: &str, login: &[(&str, &str)]) {
    for digest in image.manifests.keys() {
        let path = format!("/v2/{repository}/manifests/{digest}?ns={registry}");
        let answer = board.request("GET", &path, login);
        assert_eq!(answer.status, 200, "{path}");
        answer.body().unwrap();
    }
}

/// Begins a download in the background and keeps it going.
fn keep_asking(addr: SocketAddr, path: String, headers: &'static [(&str, &str)]) {
    std::thread::spawn(move || {
        let answer = client::request(addr, "GET", &path, headers, PATIENCE);
        answer.and_then(Answer::body)
    });
}

/// A board with the honest docker.io and the other one.
fn board_of(honest: &Upstream, other: &Upstream) -> Board {
    Board::new(honest, &format!("[upstream.\"evil.example\"]\nurl = \"{}\"\n", other.url()))
}

#[test]
fn what_a_registry_sent_is_not_gone_on_with_by_another() {
    let image = image(1);
    let layer = layer_of(&image);
    let whole = &image.blobs[&layer];
    for restart in [false, true] {
        let (honest, evil) = (upstream_with(&image), upstream_with(&forged(&image, whole.len())));
        let mut board = board_of(&honest, &evil);
        for registry in ["docker.io", "evil.example"] {
            ask_manifests(&board, &image, "lab/app", registry, &[]);
        }
        evil.on(Some("GET"), "/blobs/", Behaviour::StallBodyAfter(200_000));
        let mut answer = board.get(&of("lab/app", &layer, "evil.example"));
        answer.read_exact(&mut [0; 100_000]).unwrap();
        evil.hang_up();
        board.wait_for_log("is parked");
        if restart {
            drop(answer);
            board.kill();
            board.start_again();
        }
        for range in ["bytes=0-", "bytes=150000-", "bytes=250000-250099"] {
            let from: usize = range[6..].split('-').next().unwrap().parse().unwrap();
            let answer = board.request("GET", &of("lab/app", &layer, "docker.io"), &[("Range", range)]);
            assert_eq!(answer.status, 206);
            let part = answer.body().unwrap();
            assert!(part[..] == whole[from..from + part.len()], "{range} after a restart: {restart}");
        }
        assert!(honest.requests().iter().all(|seen| seen.range.is_none()), "it was asked for all of it");
        board.check_blobs();
    }
}

#[test]
fn a_registry_that_hangs_drips_or_lies_about_a_length_holds_up_no_other() {
    let image = image(1);
    let layer = layer_of(&image);
    let whole = &image.blobs[&layer];
    let drip = Behaviour::SlowBody { bytes: 1, pause: std::time::Duration::from_secs(2) };
    for trouble in
        [Behaviour::HangBeforeHeader, drip, Behaviour::ContentLength(7), Behaviour::CutBodyAfter(9)]
    {
        let (honest, evil) = (upstream_with(&image), upstream_with(&forged(&image, whole.len())));
        let board = board_of(&honest, &evil);
        for registry in ["docker.io", "evil.example"] {
            ask_manifests(&board, &image, "lab/app", registry, &[]);
        }
        evil.on(Some("GET"), "/blobs/", trouble.clone());
        keep_asking(board.addr, of("lab/app", &layer, "evil.example"), &[]);
        assert!(evil.wait_for(1, "GET", "/blobs/", PATIENCE));
        let head = board.head(&of("lab/app", &layer, "docker.io"));
        assert_eq!(head.header("content-length"), Some(whole.len().to_string().as_str()), "{trouble:?}");
        assert!(board.get(&of("lab/app", &layer, "docker.io")).body().unwrap() == **whole, "{trouble:?}");
    }
}

/// A board whose docker.io has an honest lab/app, and lab/evil with other bytes under the same names.
fn two_repositories(image: &Image, forgery: &Image) -> (Upstream, Board) {
    let upstream = upstream_with(image);
    upstream.push("lab/evil", "latest", forgery);
    let board = Board::new(&upstream, "");
    (upstream, board)
}

#[test]
fn a_repository_that_lies_about_a_length_hurts_no_other_of_its_registry() {
    let image = image(1);
    let layer = layer_of(&image);
    let whole = &image.blobs[&layer];
    for known in [true, false] {
        let (upstream, board) = two_repositories(&image, &forged(&image, 70_000));
        if known {
            ask_manifests(&board, &image, "lab/app", "docker.io", &[]);
        }
        upstream.on(Some("GET"), "/lab/evil/blobs/", Behaviour::StallBodyAfter(50_000));
        let mut evil = board.get(&of("lab/evil", &layer, "docker.io"));
        evil.read_exact(&mut [0; 1_000]).unwrap();
        let path = of("lab/app", &layer, "docker.io");
        assert_eq!(board.head(&path).header("content-length"), Some(whole.len().to_string().as_str()));
        let part = board.request("GET", &path, &[("Range", "bytes=200000-200999")]);
        assert_eq!((part.status, part.body().unwrap()), (206, whole[200_000..201_000].to_vec()));
        assert!(board.get(&path).body().unwrap() == **whole, "with a manifest: {known}");
        board.check_blobs();
    }
}

#[test]
fn a_fill_that_serves_badly_lets_the_others_begin_their_own() {
    let image = image(1);
    let layer = layer_of(&image);
    let whole = &image.blobs[&layer];
    let troubles = [
        Behaviour::HangBeforeHeader,
        Behaviour::StallBodyAfter(100_000),
        Behaviour::Status(404, Vec::new()),
        Behaviour::SlowBody { bytes: 10_000, pause: std::time::Duration::from_millis(20) },
        Behaviour::SlowBody { bytes: 1, pause: std::time::Duration::from_millis(500) },
    ];
    for trouble in troubles {
        let (upstream, board) = two_repositories(&image, &forged(&image, whole.len()));
        for repository in ["lab/app", "lab/evil"] {
            ask_manifests(&board, &image, repository, "docker.io", &[]);
        }
        upstream.on(Some("GET"), "/lab/evil/blobs/", trouble.clone());
        keep_asking(board.addr, of("lab/evil", &layer, "docker.io"), &[]);
        assert!(upstream.wait_for(1, "GET", "/lab/evil/blobs/", PATIENCE));
        let path = of("lab/app", &layer, "docker.io");
        let first = board.get(&path);
        assert_eq!(first.status, 200, "{trouble:?}");
        // It may have been served by the other's fill for a while, and then it is cut.
        match first.body() {
            Ok(body) => assert!(body == **whole, "{trouble:?}"),
            Err(cut) => {
                assert_eq!(cut.kind(), std::io::ErrorKind::UnexpectedEof, "{trouble:?}: {cut}");
                // It is asked for again, and the other goes on badly meanwhile.
                keep_asking(board.addr, of("lab/evil", &layer, "docker.io"), &[]);
                assert!(board.get(&path).body().unwrap() == **whole, "{trouble:?}");
            }
        }
        board.check_blobs();
        upstream.release();
    }
}

#[test]
fn repositories_that_do_well_share_one_download() {
    let image = image(1);
    let layer = layer_of(&image);
    let (upstream, board) = two_repositories(&image, &image);
    for repository in ["lab/app", "lab/evil"] {
        ask_manifests(&board, &image, repository, "docker.io", &[]);
    }
    upstream.on(Some("GET"), "/blobs/", Behaviour::StallBodyAfter(100_000));
    let first = board.get(&of("lab/evil", &layer, "docker.io"));
    let second = board.get(&of("lab/app", &layer, "docker.io"));
    assert_eq!(second.header("cache-status"), Some("larder; fwd=uri-miss; collapsed"));
    upstream.release();
    for answer in [first, second] {
        assert!(answer.body().unwrap() == *image.blobs[&layer]);
    }
    assert_eq!(upstream.blob_bytes_sent(), image.blobs[&layer].len() as u64);
}

#[test]
fn a_private_download_is_joined_after_the_registry_s_own_answer() {
    let image = image(1);
    let layer = layer_of(&image);
    let upstream = upstream_with(&image);
    upstream.push("lab/other", "latest", &image);
    upstream.login(Login::Basic("alice".into(), "s3cret".into()));
    let folder = Folder::new();
    let (credentials, auth) = secrets(&folder);
    let board = Board::new(&upstream, &format!("{credentials}{auth}"));
    for repository in ["lab/app", "lab/other"] {
        ask_manifests(&board, &image, repository, "docker.io", &[BOARD]);
    }
    upstream.on(Some("GET"), "/blobs/", Behaviour::StallBodyAfter(100_000));
    let mut first = board.request("GET", &of("lab/app", &layer, "docker.io"), &[BOARD]);
    first.read_exact(&mut [0; 1_000]).unwrap();
    // To know a digest is not to have it, also while it comes.
    let none = of("lab/none", &layer, "docker.io");
    assert_eq!(board.request("GET", &none, &[BOARD]).status, 404);
    assert_eq!(board.request("GET", &none, &[BOARD, ("Range", "bytes=0-9")]).status, 404);
    assert_eq!(board.request("HEAD", &none, &[BOARD]).status, 404);
    let other = of("lab/other", &layer, "docker.io");
    assert_eq!(board.get(&other).status, 401);
    let second = board.request("GET", &other, &[BOARD]);
    assert_eq!(second.status, 200);
    assert_eq!(upstream.count("HEAD", &format!("/lab/other/blobs/{layer}")), 1);
    upstream.release();
    assert_eq!(first.body().unwrap().len(), image.blobs[&layer].len() - 1_000);
    assert!(second.body().unwrap() == *image.blobs[&layer]);
    assert_eq!(upstream.blob_bytes_sent(), image.blobs[&layer].len() as u64, "its bytes came once");
    assert_eq!(board.request("GET", &none, &[BOARD]).status, 404);
    upstream.hang_up();
    assert_eq!(board.request("GET", &other, &[BOARD]).status, 200, "it is known to hold it");
    assert_eq!(board.request("GET", &none, &[BOARD]).status, 502);
}

#[test]
fn a_private_download_that_fails_is_begun_by_who_waits_for_it() {
    let image = image(1);
    let layer = layer_of(&image);
    for size in [image.blobs[&layer].len(), 70_000] {
        let upstream = upstream_with(&forged(&image, size));
        upstream.push("lab/other", "latest", &image);
        upstream.login(Login::Basic("alice".into(), "s3cret".into()));
        let folder = Folder::new();
        let (credentials, auth) = secrets(&folder);
        let board = Board::new(&upstream, &format!("{credentials}{auth}"));
        for repository in ["lab/app", "lab/other"] {
            ask_manifests(&board, &image, repository, "docker.io", &[BOARD]);
        }
        upstream.on(Some("GET"), "/lab/app/blobs/", Behaviour::HangBeforeHeader);
        keep_asking(board.addr, of("lab/app", &layer, "docker.io"), &[BOARD]);
        assert!(upstream.wait_for(1, "GET", "/lab/app/blobs/", PATIENCE));
        let other = of("lab/other", &layer, "docker.io");
        assert!(board.request("GET", &other, &[BOARD]).body().unwrap() == *image.blobs[&layer]);
        upstream.release();
    }
}

/// A peer that has an image, and counts what it is asked.
struct HonestPeer {
    image: Image,
    folder: Folder,
    asked: Arc<AtomicUsize>,
}

impl PeerContent for HonestPeer {
    fn tag(&self, _: &Repository, _: &Tag, _: &[Platform]) -> Option<(Digest, Option<u64>)> {
        None
    }

    fn manifest(&self, _: &Repository, _: &Digest) -> Option<(String, File, u64)> {
        None
    }

    fn blob(&self, _: &Repository, digest: &Digest) -> Option<(File, u64)> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let (path, bytes) = (self.folder.0.join(digest.hex()), self.image.blobs.get(digest)?);
        std::fs::write(&path, bytes).unwrap();
        Some((File::open(path).unwrap(), bytes.len() as u64))
    }
}

/// A board with an honest peer, the honest docker.io and another registry.
fn board_with_peer(honest: &Upstream, other: &Upstream, peer: SocketAddr, folder: &Folder) -> Board {
    let secret = private_file(folder, "secret", SECRET);
    let (url, secret) = (other.url(), secret.display());
    Board::new(
        honest,
        &format!(
            "[upstream.\"evil.example\"]\nurl = \"{url}\"\n[kit]\nsecret_file = \"{secret}\"\nlisten = \"127.0.0.1:0\"\npeers = [\"{peer}\"]\n"
        ),
    )
}

/// A peer that has an image and answers by digest, and how often it was asked.
pub fn peer_of(image: &Image) -> (kit::Listening, Arc<AtomicUsize>) {
    let asked = Arc::default();
    let peer = HonestPeer { image: image.clone(), folder: Folder::new(), asked: Arc::clone(&asked) };
    let secret = Secret::new(SECRET.as_bytes().to_vec());
    (
        kit::listen(([127, 0, 0, 1], 0).into(), larder::files::Watched::fixed(secret), Arc::new(peer))
            .unwrap(),
        asked,
    )
}

/// An image of somebody else that names the layer, with a size and with other bytes.
fn naming(layer: &Digest, size: usize) -> Image {
    let media_type = larder::oci::media::OCI_MANIFEST;
    let text = serde_json::json!({
        "schemaVersion": 2, "mediaType": media_type, "layers": [],
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": layer, "size": size }
    });
    let bytes = text.to_string().into_bytes();
    let root = Digest::of(larder::oci::Algorithm::Sha256, &bytes);
    Image {
        blobs: [(layer.clone(), vec![0x66; size].into())].into(),
        manifests: [(root.clone(), (media_type.to_owned(), bytes.into()))].into(),
        root,
    }
}

#[test]
fn an_honest_peer_is_not_blamed_for_what_a_registry_sent_before_it() {
    let image = image(1);
    let layer = layer_of(&image);
    let forgery = naming(&layer, image.blobs[&layer].len());
    let (honest, evil) = (upstream_with(&image), upstream_with(&forgery));
    let (folder, (peer, asked)) = (Folder::new(), peer_of(&image));
    let board = board_with_peer(&honest, &evil, peer.address(), &folder);
    ask_manifests(&board, &forgery, "lab/app", "evil.example", &[]);
    ask_manifests(&board, &image, "lab/app", "docker.io", &[]);
    evil.on(Some("GET"), "/blobs/", Behaviour::StallBodyAfter(100_000));
    let mut answer = board.get(&of("lab/app", &layer, "evil.example"));
    answer.read_exact(&mut [0; 50_000]).unwrap();
    evil.hang_up();
    answer.body().unwrap_err();
    board.wait_until("the peer's answer", || asked.load(Ordering::Relaxed) > 0);
    board.wait_for_log("sent parts that do not fit");
    let up = format!("larder_peer_up{{peer=\"{}\"}}", peer.address());
    assert_eq!(board.metric(&up), 1, "{}", board.log());
    // The neighbour, whose uplink goes too, has the peer; and so has the other registry, from the start.
    honest.hang_up();
    board.wait_until("the outage", || !board.ask("lab/app", "latest").1.contains("upstream"));
    for registry in ["docker.io", "evil.example"] {
        assert!(board.get(&of("lab/app", &layer, registry)).body().unwrap() == *image.blobs[&layer]);
    }
    board.check_blobs();
}

#[test]
fn an_honest_peer_is_not_blamed_for_a_size_that_a_registry_claimed() {
    let image = image(1);
    let layer = layer_of(&image);
    let lie = naming(&layer, 50_000);
    for known in [true, false] {
        let (honest, evil) = (upstream_with(&image), upstream_with(&lie));
        let (folder, (peer, _asked)) = (Folder::new(), peer_of(&image));
        let board = board_with_peer(&honest, &evil, peer.address(), &folder);
        if known {
            ask_manifests(&board, &lie, "lab/app", "evil.example", &[]);
        }
        ask_manifests(&board, &image, "lab/app", "docker.io", &[]);
        evil.on(Some("GET"), "/blobs/", Behaviour::StallBodyAfter(20_000));
        let mut answer = board.get(&of("lab/app", &layer, "evil.example"));
        answer.read_exact(&mut [0; 10_000]).unwrap();
        evil.hang_up();
        answer.body().unwrap_err();
        if known {
            // What no manifest names is passed on, and no peer is asked for it.
            board.wait_for_log("is parked");
        }
        let up = format!("larder_peer_up{{peer=\"{}\"}}", peer.address());
        assert_eq!(board.metric(&up), 1, "{}", board.log());
        honest.hang_up();
        board.wait_until("the outage", || !board.ask("lab/app", "latest").1.contains("upstream"));
        assert!(board.get(&of("lab/app", &layer, "docker.io")).body().unwrap() == *image.blobs[&layer]);
        board.check_blobs();
    }
}

#[test]
fn a_corrupt_blob_is_refetched_from_who_has_it_whoever_else_names_it() {
    let image = image(1);
    let layer = layer_of(&image);
    let forgery = naming(&layer, image.blobs[&layer].len());
    let (honest, evil) = (upstream_with(&image), upstream_with(&forgery));
    let board = board_of(&honest, &evil);
    // The other registry's manifest names the layer first.
    ask_manifests(&board, &forgery, "lab/app", "evil.example", &[]);
    board.pull("lab/app", "latest").unwrap();
    let path = board.data().join("blobs/sha256").join(layer.hex());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[1_000] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(board.command(&["verify", "--repair"]).status.code(), Some(1), "something was wrong");
    board.wait_until("the layer's return", || board.has_blob(&layer));
    board.check_blobs();
    assert!(evil.count("GET", "/blobs/") > 0, "it was asked too");
    assert!(board.get(&of("lab/app", &layer, "docker.io")).body().unwrap() == *image.blobs[&layer]);
}
