//! Labels: content is served as a manifest only if its own bytes say so, whatever an index or an earlier request called it.

use crate::board::{self, Board, Folder, PLATFORM, image};
use larder::demo::image::SampleImage as Image;
use larder::demo::upstream::FaultyRegistry as Upstream;
use larder::oci::{Algorithm, Digest, media};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Content and the name that it has.
type Content = (Digest, Arc<[u8]>);

/// The content with its name.
fn named(bytes: impl Into<Vec<u8>>) -> Content {
    let bytes: Vec<u8> = bytes.into();
    (Digest::of(Algorithm::Sha256, &bytes), bytes.into())
}

/// An index whose children are these, all called images for the tests' platform.
fn index_of(children: &[Content]) -> Content {
    let (os, architecture) = PLATFORM.split_once('/').unwrap();
    let child = |(digest, bytes): &Content| {
        format!(
            r#"{{"mediaType":"{}","digest":"{digest}","size":{},"platform":{{"os":"{os}","architecture":"{architecture}"}}}}"#,
            media::OCI_MANIFEST,
            bytes.len()
        )
    };
    let children: Vec<String> = children.iter().map(child).collect();
    named(format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[{}]}}"#,
        media::OCI_INDEX,
        children.join(",")
    ))
}

/// Documents that a careless mirror would call manifests.
fn pretenders() -> Vec<(&'static str, Vec<u8>)> {
    let (index, manifest) = (media::OCI_INDEX, media::OCI_MANIFEST);
    let mut large = br#"{"schemaVersion":2,"layers":0,"x":""#.to_vec();
    large.resize(100_000, b'x');
    large.extend_from_slice(b"\"}");
    vec![
        ("not JSON", b"\x1f\x8b layer".to_vec()),
        ("a page", b"<html><script>alert(1)</script></html>".to_vec()),
        ("large and no manifest", large),
        ("both", br#"{"schemaVersion":2,"manifests":[],"layers":[]}"#.to_vec()),
        ("both for Go", br#"{"schemaVersion":2,"manifests":[],"Layers":[]}"#.to_vec()),
        ("both for Go, by a long s", "{\"schemaVersion\":2,\"manifests\":[],\"layer\u{17f}\":[]}".into()),
        (
            "two types",
            format!(r#"{{"schemaVersion":2,"mediaType":"{index}","mediaType":"{manifest}","layers":[]}}"#)
                .into(),
        ),
        (
            "two types for Go",
            format!(r#"{{"schemaVersion":2,"mediaType":"{manifest}","mediatype":"{index}","layers":[]}}"#)
                .into(),
        ),
        (
            "annotations twice",
            br#"{"schemaVersion":2,"layers":[],"annotations":{},"annotations":{}}"#.to_vec(),
        ),
        ("lists of layers twice", br#"{"schemaVersion":2,"layers":[],"layers":[]}"#.to_vec()),
        ("schema 1", br#"{"schemaVersion":1,"name":"a","tag":"b","fsLayers":[]}"#.to_vec()),
        (
            "layers of schema 1",
            format!(
                r#"{{"schemaVersion":2,"layers":[],"fsLayers":[{{"blobSum":"sha256:{}"}}]}}"#,
                "a".repeat(64)
            )
            .into(),
        ),
        ("another type", br#"{"schemaVersion":2,"mediaType":"text/html","layers":[]}"#.to_vec()),
        (
            "an index that says image",
            format!(r#"{{"schemaVersion":2,"mediaType":"{manifest}","manifests":[]}}"#).into(),
        ),
    ]
}

/// An upstream that holds each pretender as a blob and has an index which calls them images, and an honest image.
fn upstream() -> (Upstream, Vec<(&'static str, Digest)>, Image) {
    let upstream = Upstream::start().unwrap();
    let honest = image(7);
    upstream.push("lab/honest", "latest", &honest);
    let (names, content): (Vec<&str>, Vec<Content>) =
        pretenders().into_iter().map(|(name, bytes)| (name, named(bytes))).unzip();
    let digests: Vec<Digest> = content.iter().map(|(digest, _)| digest.clone()).collect();
    let (root, bytes) = index_of(&content);
    let bad = Image {
        blobs: content.into_iter().collect(),
        manifests: BTreeMap::from([(root.clone(), (media::OCI_INDEX.to_owned(), bytes))]),
        root,
    };
    upstream.push("lab/bad", "latest", &bad);
    (upstream, names.into_iter().zip(digests).collect(), honest)
}

fn path(what: &str, repository: &str, reference: &str) -> String {
    format!("/v2/{repository}/{what}/{reference}?ns=docker.io")
}

/// Asks for each as a manifest and wants each to be refused, and the honest neighbour to be served.
fn no_pretender_is_served(board: &Board, pretenders: &[(&str, Digest)], honest: &Image) {
    for (name, digest) in pretenders {
        for method in ["HEAD", "GET"] {
            let answer = board.request(method, &path("manifests", "lab/bad", &digest.to_string()), &[]);
            assert!(answer.status >= 400, "{method} of {name}: {}", answer.status);
        }
    }
    for method in ["HEAD", "GET"] {
        let answer = board.request(method, &path("manifests", "lab/honest", &honest.root.to_string()), &[]);
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(media::OCI_INDEX)));
    }
}

#[test]
fn what_an_index_calls_a_manifest_and_came_as_a_blob_is_not_served_as_one() {
    let (upstream, pretenders, honest) = upstream();
    let mut board = Board::new(&upstream, "");
    board.pull("lab/honest", "latest").unwrap();
    // The index gives each its label; then each comes as a blob.
    assert_eq!(board.get(&path("manifests", "lab/bad", "latest")).status, 200);
    for (name, digest) in &pretenders {
        let blob = board.get(&path("blobs", "lab/bad", &digest.to_string()));
        assert_eq!(blob.status, 200, "{name}");
        blob.body().unwrap();
        board.wait_until("the blob is stored", || board.has_blob(digest));
    }
    no_pretender_is_served(&board, &pretenders, &honest);
    // With the uplink gone, and after a restart, nothing else is known of them.
    upstream.hang_up();
    no_pretender_is_served(&board, &pretenders, &honest);
    board.stop();
    board.start_again();
    no_pretender_is_served(&board, &pretenders, &honest);
}

#[test]
fn a_true_manifest_that_came_as_a_blob_is_served_as_what_it_is_and_not_as_it_is_called() {
    let upstream = Upstream::start().unwrap();
    // An index that an index calls an image.
    let inner =
        named(format!(r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[]}}"#, media::DOCKER_LIST));
    let (root, bytes) = index_of(std::slice::from_ref(&inner));
    let image = Image {
        blobs: BTreeMap::from([inner.clone()]),
        manifests: BTreeMap::from([(root.clone(), (media::OCI_INDEX.to_owned(), bytes))]),
        root,
    };
    upstream.push("lab/app", "latest", &image);
    let board = Board::new(&upstream, "");
    assert_eq!(board.get(&path("manifests", "lab/app", "latest")).status, 200);
    board.get(&path("blobs", "lab/app", &inner.0.to_string())).body().unwrap();
    board.wait_until("the blob is stored", || board.has_blob(&inner.0));
    for method in ["HEAD", "GET"] {
        let answer = board.request(method, &path("manifests", "lab/app", &inner.0.to_string()), &[]);
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (200, Some(media::DOCKER_LIST)),
            "{method}"
        );
    }
}

#[test]
fn a_peer_is_given_no_pretender_and_a_rebuilt_index_believes_none() {
    let (upstream, pretenders, honest) = upstream();
    let folder = Folder::new();
    let secret = board::private_file(&folder, "secret", "a secret that the boards of a test share");
    let kit = |peers: &str| {
        format!(
            "[kit]\nsecret_file = \"{}\"\nlisten = \"127.0.0.1:0\"\npeers = [{peers}]\n",
            secret.display()
        )
    };
    let mut near = Board::new(&upstream, &kit(""));
    near.pull("lab/honest", "latest").unwrap();
    assert_eq!(near.get(&path("manifests", "lab/bad", "latest")).status, 200);
    for (_, digest) in &pretenders {
        near.get(&path("blobs", "lab/bad", &digest.to_string())).body().unwrap();
        near.wait_until("the blob is stored", || near.has_blob(digest));
    }
    let far = Board::new(&upstream, &kit(&format!("\"{}\"", near.kit_addr())));
    assert_eq!(far.head("/v2/lab/none/manifests/latest?ns=docker.io").status, 404);
    upstream.hang_up();
    no_pretender_is_served(&far, &pretenders, &honest);
    near.stop();
    std::fs::remove_dir_all(near.data().join("index")).unwrap();
    near.start_again();
    near.wait_for_log("index rebuilt");
    no_pretender_is_served(&near, &pretenders, &honest);
}
