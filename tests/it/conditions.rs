//! Conditional requests and ranges (RFC 9110, 13 and 14): what a client has already is not sent again, a part is a part of
//! what the client means, and neither says more to anybody than the content itself would.

use crate::board::{Board, image, layer_of, pulled, upstream_with};
use larder::demo::image::SampleImage as Image;
use larder::demo::upstream::Behaviour;
use std::io::Read;

/// A digest that nothing has, as an ETag.
const OTHER: &str = "\"sha256:0000000000000000000000000000000000000000000000000000000000000000\"";

/// Status, ETag, and the body or nothing.
fn asked(
    board: &Board,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> (u16, Option<String>, Vec<u8>) {
    let answer = board.request(method, path, headers);
    let (status, etag) = (answer.status, answer.header("etag").map(str::to_owned));
    (status, etag, answer.body().unwrap())
}

#[test]
fn what_a_client_has_is_not_sent_again() {
    let image = image(1);
    let (_upstream, board) = pulled(&image, "");
    let layer = layer_of(&image);
    for (path, digest) in [
        ("/v2/lab/app/manifests/latest?ns=docker.io".to_owned(), image.root.to_string()),
        (format!("/v2/lab/app/manifests/{}?ns=docker.io", image.root), image.root.to_string()),
        (format!("/v2/lab/app/blobs/{layer}?ns=docker.io"), layer.to_string()),
    ] {
        let etag = format!("\"{digest}\"");
        assert_eq!(board.head(&path).header("etag"), Some(etag.as_str()), "{path}");
        for method in ["GET", "HEAD"] {
            let weak = format!("W/{etag}");
            let list = format!("{OTHER}, {weak} ,\"x\"");
            for value in [etag.as_str(), &weak, &list, "*"] {
                let answer = board.request(method, &path, &[("if-none-match", value)]);
                assert_eq!(answer.status, 304, "{method} {path} {value}");
                assert_eq!(answer.header("etag"), Some(etag.as_str()));
                assert_eq!(answer.header("docker-content-digest"), Some(digest.as_str()));
                assert!(answer.header("cache-status").is_some_and(|status| status.contains("hit")));
                assert_eq!(answer.header("content-length"), None, "{method} {path} {value}");
            }
            let old = [("if-modified-since", "Sat, 29 Oct 2050 19:43:31 GMT"), ("if-none-match", OTHER)];
            assert_eq!(asked(&board, method, &path, &old).0, 200, "a date does not count beside an ETag");
            assert_eq!(asked(&board, method, &path, &[("if-match", etag.as_str())]).0, 200);
            assert_eq!(asked(&board, method, &path, &[("if-match", OTHER)]).0, 412);
        }
        let all = asked(&board, "GET", &path, &[("if-none-match", OTHER)]);
        assert!(all.0 == 200 && !all.2.is_empty(), "what it does not have is sent");
    }
}

#[test]
fn a_tag_is_resolved_before_its_client_is_told_that_nothing_changed() {
    let (old, new) = (image(1), image(2));
    let (upstream, board) = pulled(&old, "");
    let path = "/v2/lab/app/manifests/latest?ns=docker.io";
    let has = format!("\"{}\"", old.root);
    let asked_before = upstream.count("HEAD", "/manifests/latest");
    assert_eq!(asked(&board, "GET", path, &[("if-none-match", &has)]).0, 304);
    assert!(upstream.count("HEAD", "/manifests/latest") > asked_before, "upstream is asked as ever");
    upstream.push("lab/app", "latest", &new);
    for method in ["HEAD", "GET"] {
        let (status, etag, _) = asked(&board, method, path, &[("if-none-match", &has)]);
        assert_eq!((status, etag), (200, Some(format!("\"{}\"", new.root))), "{method}");
    }
    // Not complete here, the new one cannot be served with the uplink gone, and the answer says that it may be old.
    upstream.hang_up();
    let answer = board.request("GET", path, &[("if-none-match", &has)]);
    assert_eq!(answer.status, 304);
    assert!(answer.header("warning").is_some_and(|warning| warning.contains("299")));
}

#[test]
fn an_absent_blob_is_confirmed_and_not_fetched_for_who_has_it() {
    let image = image(1);
    let upstream = upstream_with(&image);
    let board = Board::new(&upstream, "");
    let layer = layer_of(&image);
    let path = format!("/v2/lab/app/blobs/{layer}?ns=docker.io");
    let has = format!("\"{layer}\"");
    let answer = board.request("GET", &path, &[("if-none-match", &has)]);
    assert_eq!((answer.status, answer.header("cache-status")), (304, Some("larder; fwd=uri-miss")));
    assert_eq!(upstream.count("GET", "/blobs/"), 0, "its bytes are not needed");
    // What is not there, or not for this client, is not said to be there.
    let missing = format!("/v2/lab/other/blobs/{layer}?ns=docker.io");
    assert_eq!(asked(&board, "GET", &missing, &[("if-none-match", "*")]).0, 404);
    upstream.on(None, "/blobs/", Behaviour::Status(403, Vec::new()));
    assert_eq!(asked(&board, "GET", &path, &[("if-none-match", &has)]).0, 403);
    upstream.hang_up();
    assert_eq!(asked(&board, "GET", &path, &[("if-none-match", &has)]).0, 502);
}

#[test]
fn a_part_is_sent_only_of_what_the_client_means() {
    let image = image(1);
    let (_upstream, board) = pulled(&image, "");
    let layer = layer_of(&image);
    let bytes = &image.blobs[&layer];
    let path = format!("/v2/lab/app/blobs/{layer}?ns=docker.io");
    let etag = format!("\"{layer}\"");
    let get = |range: &str, condition: &str| {
        let answer = board.request("GET", &path, &[("range", range), ("if-range", condition)]);
        (answer.status, answer.header("content-range").map(str::to_owned), answer.body().unwrap())
    };
    let total = bytes.len();
    let part = (206, Some(format!("bytes 10-19/{total}")), bytes[10..20].to_vec());
    assert_eq!(get("bytes=10-19", &etag), part);
    let all = (200, None, bytes.to_vec());
    for condition in [&format!("W/{etag}"), OTHER, "Sat, 29 Oct 1994 19:43:31 GMT", "*"] {
        assert_eq!(get("bytes=10-19", condition), all, "{condition}");
        assert_eq!(get(&format!("bytes={total}-"), condition), all, "{condition}");
    }
    assert_eq!(get(&format!("bytes={total}-"), &etag).0, 416);
    // A part of what the client has is nothing new (13.2.2).
    let both = [("range", "bytes=10-19"), ("if-none-match", etag.as_str())];
    assert_eq!(asked(&board, "GET", &path, &both).0, 304);
}

#[test]
fn several_ranges_are_one_part_or_all_of_it() {
    let image = image(1);
    let (_upstream, board) = pulled(&image, "");
    let layer = layer_of(&image);
    let bytes = &image.blobs[&layer];
    let path = format!("/v2/lab/app/blobs/{layer}?ns=docker.io");
    let total = bytes.len();
    for (range, status, expected) in [
        ("bytes=0-9,10-19".to_owned(), 206, &bytes[..20]),
        ("bytes=5-, -10".to_owned(), 206, &bytes[5..]),
        (format!("bytes=0-4,{total}-"), 206, &bytes[..5]),
        ("bytes=0-0,-1".to_owned(), 200, &bytes[..]),
    ] {
        let (got, _, body) = asked(&board, "GET", &path, &[("range", &range)]);
        assert!(got == status && body == expected, "{range}: {got}, {} bytes", body.len());
    }
    let (status, _, _) = asked(&board, "GET", &path, &[("range", &format!("bytes={total}-,-0"))]);
    assert_eq!(status, 416);
    let head = board.request("HEAD", &path, &[("range", "bytes=0-9")]);
    assert_eq!(head.status, 200, "a range is for GET alone");
}

#[test]
fn an_upstream_that_gives_another_part_or_none_is_asked_for_all_of_it() {
    let image = Image::multi_arch(1, &[1_000_000]);
    let layer = layer_of(&image);
    let bytes = &image.blobs[&layer];
    let path = format!("/v2/lab/app/blobs/{layer}?ns=docker.io");
    let resumptions = [
        Behaviour::RefuseRange(None),
        Behaviour::RefuseRange(Some("bytes */7".into())),
        Behaviour::RefuseRange(Some(format!("bytes */{}", bytes.len()))),
        Behaviour::PartFrom(5),
        Behaviour::PartFrom(bytes.len() - 5),
    ];
    let check = |resumption: Behaviour| {
        let upstream = upstream_with(&image);
        let board = Board::new(&upstream, "");
        board.manifests("docker.io", "lab/app", "latest", &[]);
        // It comes to nothing after a while, and then the next byte is asked for.
        upstream.on(Some("GET"), "/blobs/", Behaviour::StallBodyAfter(400_000));
        let mut answer = board.get(&path);
        let mut got = vec![0; 300_000];
        answer.read_exact(&mut got).unwrap();
        upstream.clear();
        upstream.on(Some("GET"), "/blobs/", resumption.clone());
        got.extend(answer.body().unwrap_or_else(|cut| panic!("{resumption:?}: {cut}")));
        assert!(got == bytes[..], "{resumption:?}: the client got other bytes");
        let ranges: Vec<_> = upstream.requests().into_iter().filter_map(|seen| seen.range).collect();
        assert_eq!(ranges, ["bytes=400000-"], "{resumption:?}");
        board.wait_until("the blob", || board.has_blob(&layer));
    };
    std::thread::scope(|scope| {
        let checks: Vec<_> =
            resumptions.into_iter().map(|resumption| scope.spawn(|| check(resumption))).collect();
        checks.into_iter().for_each(|check| check.join().unwrap());
    });
}

#[test]
fn what_upstream_calls_all_of_it_is_hashed() {
    let image = image(1);
    let layer = layer_of(&image);
    let bytes = &image.blobs[&layer];
    let path = format!("/v2/lab/app/blobs/{layer}?ns=docker.io");
    // All bytes have come and the end has not; nothing says how many there should be.
    let upstream = upstream_with(&image);
    let board = Board::new(&upstream, "");
    upstream.on(Some("GET"), "/blobs/", Behaviour::CutChunkedAfter(bytes.len()));
    assert!(board.get(&path).body().unwrap() == bytes[..]);
    let ranges: Vec<_> = upstream.requests().into_iter().filter_map(|seen| seen.range).collect();
    assert_eq!(ranges, [format!("bytes={}-", bytes.len())]);
    board.wait_until("the blob", || board.has_blob(&layer));

    // A part of them is not all of it, whatever upstream says: it begins again, and nothing wrong gets out.
    let upstream = upstream_with(&image);
    let board = Board::new(&upstream, "");
    upstream.on(Some("GET"), "/blobs/", Behaviour::CutChunkedAfter(bytes.len() / 2));
    std::thread::scope(|scope| {
        let client = scope.spawn(|| board.get(&path));
        board.wait_for_log("begins again: it hashes to");
        upstream.clear();
        let answer = client.join().unwrap();
        // Whether it waited for the second download is a question of time; that nothing wrong is completed is not.
        let status = answer.status;
        assert!(answer.body().map_or(true, |body| status == 502 || body == bytes[..]));
    });
    board.wait_until("the blob", || {
        let answer = board.get(&path);
        answer.status == 200 && answer.body().is_ok_and(|body| body == bytes[..])
    });
    board.check_blobs();
}

#[test]
fn a_redirect_may_have_names_as_they_are() {
    let image = image(1);
    let layer = layer_of(&image);
    let (upstream, elsewhere) = (upstream_with(&image), upstream_with(&image));
    upstream.push("lab/cdn", "latest", &image);
    let board = Board::new(&upstream, "");
    board.manifests("docker.io", "lab/app", "latest", &[]);
    let at = |host: &str| format!("{host}/v2/lab/cdn/blobs/{layer}");
    elsewhere.push("lab/cdn", "latest", &image);
    for (location, query) in [
        (format!("{}?datei=größe", at(&elsewhere.url())), "datei=gr%C3%B6%C3%9Fe"),
        (format!("{}?name=a b&n=日本", at("")), "name=a%20b&n=%E6%97%A5%E6%9C%AC"),
        (format!("ü/../../../cdn/blobs/{layer}?sig=%2F é"), "sig=%2F%20%C3%A9"),
    ] {
        upstream.clear();
        upstream.on(Some("GET"), "/v2/lab/app/blobs/", Behaviour::RedirectTo(location.clone()));
        // By this repository of its own each time, so that nothing is here.
        let fresh = Board::new(&upstream, "");
        let answer = fresh.get(&format!("/v2/lab/app/blobs/{layer}?ns=docker.io"));
        assert_eq!(answer.status, 200, "{location}");
        assert!(answer.body().unwrap() == image.blobs[&layer][..], "{location}");
        let asked = upstream.requests().into_iter().chain(elsewhere.requests());
        assert!(asked.into_iter().any(|seen| seen.query == query), "{location}");
    }
    // A host is not guessed, and nothing panics.
    for location in ["https://bücher.example/x", "http://[ü]/", "//ü:80/"] {
        upstream.clear();
        upstream.on(Some("GET"), "/v2/lab/app/blobs/", Behaviour::RedirectTo(location.into()));
        let answer = board.get(&format!("/v2/lab/app/blobs/{layer}?ns=docker.io"));
        assert_eq!(answer.status, 502, "{location}");
        let text = String::from_utf8(answer.body().unwrap()).unwrap();
        assert!(text.contains("a redirect cannot be followed"), "{text}");
    }
}

#[test]
fn chunks_may_be_written_as_the_standard_lets_them_be() {
    let image = image(1);
    for extension in
        [";a=b", ";signature=0123456789abcdef0123456789abcdef", " ; name = \"a;b\"", &";x".repeat(3_000)]
    {
        let upstream = upstream_with(&image);
        upstream.on(None, "/v2/", Behaviour::ChunkExtensions(extension.into()));
        let board = Board::new(&upstream, "");
        board.pull("lab/app", "latest").unwrap_or_else(|problem| panic!("{extension}: {problem:?}"));
        board.check_blobs();
    }
}
