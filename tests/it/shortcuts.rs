//! Shortcuts that upstreams refuse or get wrong: HEAD, manifests by digest, labels. A client that asks the registry straight
//! by GET succeeds with each, and so does one that asks through larder.

use crate::board::{Board, image, layer_of, needed, upstream_with};
use larder::demo::client::ClientAnswer as Answer;
use larder::demo::image::SampleImage as Image;
use larder::demo::upstream::{Behaviour, FaultyRegistry as Upstream};
use larder::oci::media;

fn manifest(reference: &str) -> String {
    format!("/v2/lab/app/manifests/{reference}?ns=docker.io")
}

fn blob(digest: &larder::oci::Digest) -> String {
    format!("/v2/lab/app/blobs/{digest}?ns=docker.io")
}

/// A board that waits for its upstream, however busy the machine is.
fn board_of(upstream: &Upstream) -> Board {
    Board::new(upstream, "[tags]\nresolve_deadline = \"20s\"\n")
}

/// An honest repository of the same registry, which is asked as ever: one HEAD for each answer.
fn neighbour_is_well(upstream: &Upstream, board: &Board) {
    let neighbour = image(99);
    upstream.push("lab/good", "latest", &neighbour);
    board.pull("lab/good", "latest").unwrap();
    let (heads, gets) = (upstream.count("HEAD", "/lab/good/"), upstream.count("GET", "/lab/good/"));
    for n in 1..4 {
        assert_eq!(board.ask("lab/good", "latest").0, 200);
        assert_eq!(upstream.count("HEAD", "/lab/good/"), heads + n);
    }
    assert_eq!(upstream.count("GET", "/lab/good/"), gets);
}

/// GETs of the tag so far.
fn gets(upstream: &Upstream) -> usize {
    upstream.count("GET", "/lab/app/manifests/latest")
}

/// The answer is the manifest of the image, byte for byte, with its type.
fn is_manifest_of(answer: Answer, image: &Image, what: &str) {
    let (media_type, bytes) = &image.manifests[&image.root];
    assert_eq!(answer.status, 200, "{what}");
    assert_eq!(answer.header("docker-content-digest"), Some(&*image.root.to_string()), "{what}");
    assert_eq!(answer.header("content-type"), Some(media_type.as_str()), "{what}");
    assert!(answer.body().unwrap() == **bytes, "{what}");
}

#[test]
fn where_head_is_refused_get_is_the_answer_and_is_remembered() {
    let challenge = ("WWW-Authenticate".to_owned(), "Basic realm=\"x\"".to_owned());
    let refusals = [
        Behaviour::Status(400, Vec::new()),
        Behaviour::Status(401, vec![challenge]),
        Behaviour::Status(403, Vec::new()),
        Behaviour::Status(404, Vec::new()),
        Behaviour::Status(404, vec![("Docker-Distribution-Api-Version".into(), "registry/2.0".into())]),
        Behaviour::Status(405, Vec::new()),
        Behaviour::Status(501, Vec::new()),
        Behaviour::Status(406, Vec::new()),
        Behaviour::Status(500, Vec::new()),
        Behaviour::CutBeforeHeader,
    ];
    for refusal in refusals {
        let (first, second) = (image(1), image(2));
        let upstream = upstream_with(&first);
        upstream.on(Some("HEAD"), "/lab/app/", refusal.clone());
        let board = board_of(&upstream);
        let what = format!("{refusal:?}");
        is_manifest_of(board.get(&manifest("latest")), &first, &what);
        assert_eq!(board.pull("lab/app", "latest").expect(&what).digest, first.root, "{what}");
        let heads = upstream.count("HEAD", "/lab/app/manifests/latest");
        // A tag that moves is seen at once, and its HEAD is not asked for in vain again.
        upstream.push("lab/app", "latest", &second);
        assert_eq!(board.pull("lab/app", "latest").expect(&what).digest, second.root, "{what}");
        assert_eq!(upstream.count("HEAD", "/lab/app/manifests/latest"), heads, "{what}");
        neighbour_is_well(&upstream, &board);
        board.check_blobs();
    }
}

#[test]
fn a_tag_whose_upstream_refuses_head_costs_one_get_in_each_revalidate() {
    let upstream = upstream_with(&image(1));
    upstream.on(Some("HEAD"), "/lab/app/", Behaviour::Status(405, Vec::new()));
    let board = Board::new(&upstream, "[tags]\nrevalidate = \"1h\"\nresolve_deadline = \"20s\"\n");
    // Nothing of it is complete.
    for _ in 0..5 {
        is_manifest_of(board.get(&manifest("latest")), &image(1), "incomplete");
        assert_eq!(board.head(&manifest("latest")).status, 200);
    }
    assert_eq!(gets(&upstream), 1);
    board.pull("lab/app", "latest").unwrap();
    for _ in 0..5 {
        assert_eq!(board.ask("lab/app", "latest").0, 200);
    }
    assert_eq!(gets(&upstream), 1);
    assert_eq!(upstream.count("HEAD", "/lab/app/manifests/"), 1);
    neighbour_is_well(&upstream, &board_of(&upstream));
}

#[test]
fn a_tag_that_does_not_exist_costs_one_get() {
    let upstream = upstream_with(&image(1));
    let board = board_of(&upstream);
    for _ in 0..5 {
        assert_eq!(board.get(&manifest("never")).status, 404);
    }
    assert_eq!(upstream.count("GET", "/manifests/never"), 1);
    assert_eq!(upstream.count("HEAD", "/manifests/never"), 5);
    // As soon as it exists it is found.
    upstream.push("lab/app", "never", &image(2));
    is_manifest_of(board.get(&manifest("never")), &image(2), "it is there");
    neighbour_is_well(&upstream, &board);
}

#[test]
fn what_a_head_states_is_relayed_only_if_it_can_be_right() {
    let (media_type, bytes) = image(1).manifests[&image(1).root].clone();
    let header = |name, value: &str| Behaviour::Header(name, value.to_owned());
    let cases = [
        (Behaviour::ContentLength(0), true),
        (Behaviour::ContentLength(1 << 30), true),
        (Behaviour::NoContentLength, true),
        (header("Content-Type", "application/json"), true),
        (header("Content-Type", "application/octet-stream"), true),
        (header("Content-Type", "text/html; charset=utf-8"), true),
        (header("Content-Type", "application/vnd.oci.image.layer.v1.tar"), true),
        (header("Content-Encoding", "gzip"), true),
        (Behaviour::NoDigestHeader, true),
        (header("Docker-Content-Digest", "sha256:short"), true),
        // What could be right is relayed, without a GET, until the bytes are here.
        (Behaviour::ContentLength(5), false),
        (header("Content-Type", media::DOCKER_MANIFEST), false),
    ];
    for (behaviour, at_once) in cases {
        let what = format!("{behaviour:?}");
        let upstream = upstream_with(&image(1));
        upstream.on(Some("HEAD"), "/lab/app/manifests/", behaviour);
        let board = board_of(&upstream);
        let is_right = |answer: &Answer, media_type: &str, length: usize, digest: &str| {
            assert_eq!(
                (answer.status, answer.header("docker-content-digest")),
                (200, Some(digest)),
                "{what}"
            );
            answer.header("content-type") == Some(media_type)
                && answer.header("content-length") == Some(&*length.to_string())
        };
        let digest = image(1).root.to_string();
        let first = board.head(&manifest("latest"));
        assert_eq!(is_right(&first, &media_type, bytes.len(), &digest), at_once, "{what}");
        assert_eq!(upstream.count("GET", "/lab/app/manifests/"), usize::from(at_once), "{what}");
        board.pull("lab/app", "latest").expect(&what);
        assert!(is_right(&board.head(&manifest("latest")), &media_type, bytes.len(), &digest), "{what}");
        // It is not believed again.
        upstream.push("lab/app", "latest", &image(2));
        let (media_type, bytes) = &image(2).manifests[&image(2).root];
        let next = board.head(&manifest("latest"));
        assert!(is_right(&next, media_type, bytes.len(), &image(2).root.to_string()), "{what}");
        neighbour_is_well(&upstream, &board);
    }
}

#[test]
fn a_head_that_names_another_manifest_is_found_out() {
    for on_digest in [Behaviour::Status(404, Vec::new()), Behaviour::Status(400, Vec::new())] {
        let image = image(1);
        let upstream = upstream_with(&image);
        upstream.on(Some("HEAD"), "/lab/app/manifests/latest", Behaviour::WrongDigestHeader);
        upstream.on(Some("GET"), "/lab/app/manifests/sha256:", on_digest);
        let board = board_of(&upstream);
        is_manifest_of(board.get(&manifest("latest")), &image, "by GET, as skopeo asks");
        upstream.clear();
        upstream.on(Some("HEAD"), "/lab/app/manifests/latest", Behaviour::WrongDigestHeader);
        assert_eq!(board.pull("lab/app", "latest").unwrap().digest, image.root);
        neighbour_is_well(&upstream, &board);
    }
}

#[test]
fn a_manifest_that_is_known_by_its_tag_alone_is_fetched_by_it() {
    for (status, other) in [(404, 404), (403, 403), (400, 502)] {
        let image = image(1);
        let upstream = upstream_with(&image);
        let by_digest = format!("/lab/app/manifests/{}", image.root);
        upstream.on(None, &by_digest, Behaviour::Status(status, Vec::new()));
        let board = board_of(&upstream);
        assert_eq!(board.get(&manifest(&image.root.to_string())).status, other, "nobody has named it yet");
        assert_eq!(gets(&upstream), 0);
        assert_eq!(board.pull("lab/app", "latest").unwrap().digest, image.root, "{status}");
        assert_eq!(gets(&upstream), 1);
        is_manifest_of(board.get(&manifest("latest")), &image, "it is here now");
        assert_eq!(gets(&upstream), 1);
        neighbour_is_well(&upstream, &board);
    }
}

/// `bytes` in a gzip member.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let step = |crc: u32, _| if crc & 1 == 1 { 0xedb8_8320 ^ (crc >> 1) } else { crc >> 1 };
    let crc = !bytes.iter().fold(!0, |crc: u32, byte| (0..8).fold(crc ^ u32::from(*byte), step));
    let mut member = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
    member.extend(miniz_oxide::deflate::compress_to_vec(bytes, 6));
    member.extend(crc.to_le_bytes());
    member.extend(u32::try_from(bytes.len()).unwrap().to_le_bytes());
    member
}

#[test]
fn labels_of_an_encoding_are_believed_if_the_bytes_bear_them_out() {
    let label = |coding: &str| Behaviour::Header("Content-Encoding", coding.to_owned());
    for coding in ["gzip", "x-gzip", "br", "aws-chunked"] {
        let image = image(1);
        let upstream = upstream_with(&image);
        upstream.on(None, "/lab/app/", label(coding));
        let board = board_of(&upstream);
        is_manifest_of(board.get(&manifest("latest")), &image, coding);
        assert_eq!(board.pull("lab/app", "latest").expect(coding).digest, image.root);
        for digest in needed(&image) {
            let answer = board.get(&blob(&digest));
            assert_eq!(answer.header("content-encoding"), None);
            assert!(answer.body().unwrap() == *image.blobs[&digest], "{coding}");
        }
        neighbour_is_well(&upstream, &board);
    }
    // What is really compressed is decoded.
    let image = image(1);
    let upstream = upstream_with(&image);
    for (digest, (media_type, bytes)) in &image.manifests {
        let headers = vec![("Content-Type", media_type.clone()), ("Content-Encoding", "gzip".to_owned())];
        let compressed = Behaviour::Exactly(200, headers, gzip(bytes));
        upstream.on(Some("GET"), &format!("/lab/app/manifests/{digest}"), compressed.clone());
        if *digest == image.root {
            upstream.on(None, "/lab/app/manifests/latest", compressed);
        }
    }
    let board = board_of(&upstream);
    is_manifest_of(board.get(&manifest("latest")), &image, "compressed");
    assert_eq!(board.pull("lab/app", "latest").unwrap().digest, image.root);
    neighbour_is_well(&upstream, &board);
}

#[test]
fn a_bomb_and_a_compressed_blob_are_refused() {
    let image = image(1);
    let upstream = upstream_with(&image);
    let compressed =
        |bytes: &[u8]| Behaviour::Exactly(200, vec![("Content-Encoding", "gzip".to_owned())], gzip(bytes));
    upstream.on(Some("GET"), "/lab/app/manifests/latest", compressed(&vec![b' '; 64 << 20]));
    upstream.on(Some("HEAD"), "/lab/app/manifests/latest", Behaviour::Status(405, Vec::new()));
    let layer = layer_of(&image);
    upstream.on(Some("GET"), &format!("/lab/app/blobs/{layer}"), compressed(&image.blobs[&layer]));
    let board = board_of(&upstream);
    let refused = board.get(&manifest("latest"));
    assert_eq!(refused.status, 502);
    let text = String::from_utf8(refused.body().unwrap()).unwrap();
    assert!(text.contains("the compressed answer is larger than allowed"), "{text}");
    board.get(&manifest(&image.root.to_string())).body().unwrap();
    board.manifests("docker.io", "lab/app", &image.root.to_string(), &[]);
    let answer = board.get(&blob(&layer));
    assert!(answer.status != 200 || answer.body().is_err());
    assert!(!board.has_blob(&layer));
    neighbour_is_well(&upstream, &board);
    board.check_blobs();
}

#[test]
fn where_head_of_a_blob_is_no_answer_get_is() {
    let cases = [
        Behaviour::Status(405, Vec::new()),
        Behaviour::Status(404, Vec::new()),
        Behaviour::Status(403, Vec::new()),
        Behaviour::Status(400, Vec::new()),
        Behaviour::Status(503, Vec::new()),
        Behaviour::ContentLength(0),
        Behaviour::NoContentLength,
    ];
    for behaviour in cases {
        let what = format!("{behaviour:?}");
        let image = image(1);
        let upstream = upstream_with(&image);
        upstream.on(Some("HEAD"), "/lab/app/blobs/", behaviour);
        let board = board_of(&upstream);
        for digest in needed(&image) {
            let answer = board.head(&blob(&digest));
            let size = image.blobs[&digest].len().to_string();
            assert_eq!((answer.status, answer.header("content-length")), (200, Some(&*size)), "{what}");
        }
        assert_eq!(upstream.count("HEAD", "/lab/app/blobs/"), 1, "{what}: it is remembered");
        let never = larder::oci::Digest::of(larder::oci::Algorithm::Sha256, b"never");
        assert_eq!(board.head(&blob(&never)).status, 404, "{what}");
        neighbour_is_well(&upstream, &board);
    }
    // A length that is wrong is not relayed where a manifest that is here states it.
    let image = image(1);
    let upstream = upstream_with(&image);
    upstream.on(Some("HEAD"), "/lab/app/blobs/", Behaviour::ContentLength(7));
    let board = board_of(&upstream);
    board.manifests("docker.io", "lab/app", "latest", &[]);
    let layer = layer_of(&image);
    let size = image.blobs[&layer].len().to_string();
    assert_eq!(board.head(&blob(&layer)).header("content-length"), Some(&*size));
}
