//! The read-only distribution API, endpoint by endpoint, online and with the uplink gone.

use crate::board::{self, Board, PLATFORM, image, layer_of, upstream_with};
use larder::demo::client;
use larder::demo::image::SampleImage as Image;
use larder::demo::upstream::{Behaviour, FaultyRegistry as Upstream};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;

/// Status, the code of the OCI error and its message.
fn error(board: &Board, method: &str, path: &str) -> (u16, String, String) {
    let answer = board.request(method, path, &[]);
    let status = answer.status;
    assert_eq!(answer.header("content-type"), Some("application/json"), "{method} {path}");
    let body: Value = serde_json::from_slice(&answer.body().unwrap()).unwrap();
    let error = &body["errors"][0];
    let text = |key: &str| error[key].as_str().unwrap_or_else(|| panic!("{path}: {body}")).to_owned();
    (status, text("code"), text("message"))
}

fn json(board: &Board, path: &str) -> Value {
    let answer = board.get(path);
    assert_eq!(answer.status, 200, "{path}");
    serde_json::from_slice(&answer.body().unwrap()).unwrap()
}

fn names(board: &Board, path: &str, key: &str) -> Vec<String> {
    let body = json(board, path);
    let names = body[key].as_array().unwrap_or_else(|| panic!("{path}: {body}"));
    names.iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

#[test]
fn base_says_that_this_is_a_registry() {
    let board = Board::new(&Upstream::start().unwrap(), "");
    for path in ["/v2/", "/v2"] {
        let answer = board.get(path);
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("docker-distribution-api-version"), Some("registry/2.0"));
        assert_eq!(answer.body().unwrap(), b"{}");
    }
}

#[test]
fn every_method_that_writes_is_refused() {
    let upstream = upstream_with(&image(1));
    let board = Board::new(&upstream, "");
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        for path in ["/v2/lab/app/blobs/uploads/", "/v2/lab/app/manifests/latest", "/v2/", "/"] {
            let (status, code, message) = error(&board, method, path);
            assert_eq!((status, code.as_str()), (405, "UNSUPPORTED"), "{method} {path}");
            assert!(message.contains("read-only"), "{message}");
        }
    }
    assert_eq!(upstream.requests().len(), upstream.count("GET", "/v2/"), "no write may reach the upstream");
}

#[test]
fn names_and_digests_follow_the_grammar() {
    let upstream = Upstream::start().unwrap();
    let board = Board::new(&upstream, "");
    let sha = "0".repeat(64);
    for (path, code) in [
        ("/v2/lab/app/manifests/sha256:abc".to_owned(), "DIGEST_INVALID"),
        (format!("/v2/lab/app/manifests/sha256:{}", sha.replace('0', "G")), "DIGEST_INVALID"),
        (format!("/v2/lab/app/blobs/md5:{sha}"), "DIGEST_INVALID"),
        ("/v2/lab/app/blobs/latest".to_owned(), "DIGEST_INVALID"),
        ("/v2/lab/app/referrers/latest".to_owned(), "DIGEST_INVALID"),
        ("/v2/lab/app/manifests/-latest".to_owned(), "MANIFEST_INVALID"),
        (format!("/v2/lab/app/manifests/{}", "t".repeat(129)), "MANIFEST_INVALID"),
        ("/v2/Lab/app/manifests/latest".to_owned(), "NAME_INVALID"),
        ("/v2/lab//app/manifests/latest".to_owned(), "NAME_INVALID"),
        ("/v2/../../etc/manifests/latest".to_owned(), "NAME_INVALID"),
        ("/v2/%2e%2e/%2e%2e/etc/manifests/latest".to_owned(), "NAME_INVALID"),
        (format!("/v2/{}/manifests/latest", "n".repeat(300)), "NAME_INVALID"),
        ("/v2/lab/app/manifests/latest?ns=http://evil".to_owned(), "NAME_INVALID"),
        ("/v2/lab/app/tags/list?n=many".to_owned(), "UNSUPPORTED"),
    ] {
        let (status, said, message) = error(&board, "GET", &path);
        assert_eq!((status, said.as_str()), (400, code), "{path}: {message}");
    }
    let asked = upstream.requests();
    assert!(
        asked.iter().all(|seen| seen.path == "/v2/"),
        "nothing of this may reach the upstream: {asked:?}"
    );
}

#[test]
fn a_registry_that_is_not_configured_is_unknown_and_nothing_goes_out() {
    let upstream = Upstream::start().unwrap();
    let board = Board::new(&upstream, "");
    let asked = upstream.requests().len();
    for path in ["/v2/lab/app/manifests/latest", "/v2/_catalog", "/v2/lab/app/tags/list"] {
        let (status, code, message) = error(&board, "GET", &format!("{path}?ns=registry.example"));
        assert_eq!((status, code.as_str()), (404, "NAME_UNKNOWN"));
        assert!(message.contains("registry.example") && message.contains("not configured"), "{message}");
    }
    assert_eq!(upstream.requests().len(), asked);
}

#[test]
fn the_registry_is_named_by_ns_by_the_path_or_not_at_all() {
    let (first, second) = (upstream_with(&image(1)), upstream_with(&image(2)));
    let board =
        Board::new(&first, &format!("[upstream.\"second.example:5000\"]\nurl = \"{}\"\n", second.url()));
    let digest = |path: &str| {
        let answer = board.head(path);
        assert_eq!(answer.status, 200, "{path}");
        let namespace = answer.header("oci-namespace").map(str::to_owned);
        (answer.header("docker-content-digest").unwrap().to_owned(), namespace)
    };
    let (one, two) = (image(1).root.to_string(), image(2).root.to_string());
    assert_eq!(digest("/v2/lab/app/manifests/latest"), (one.clone(), None));
    let named = "/v2/lab/app/manifests/latest?ns=docker.io";
    assert_eq!(digest(named), (one.clone(), Some("docker.io".into())));
    let named = "/v2/lab/app/manifests/latest?ns=second.example:5000";
    assert_eq!(digest(named), (two.clone(), Some("second.example:5000".into())));
    assert_eq!(digest("/v2/second.example:5000/lab/app/manifests/latest"), (two, None));
    assert_eq!(digest("/v2/docker.io/lab/app/manifests/latest"), (one, None));
    assert!(second.requests().iter().all(|seen| !seen.query.contains("ns=")), "ns is for mirrors");
}

#[test]
fn ranges_of_what_is_cached() {
    let image = image(1);
    let (_upstream, board) = board::pulled(&image, "");
    let layer = layer_of(&image);
    let path = format!("/v2/lab/app/blobs/{layer}?ns=docker.io");
    let whole = &image.blobs[&layer];
    let total = whole.len();
    let head = board.head(&path);
    assert_eq!(head.header("content-length"), Some(total.to_string().as_str()));
    assert_eq!(head.header("accept-ranges"), Some("bytes"));
    for (range, first, last) in [
        ("bytes=500-1499".to_owned(), 500, 1499),
        ("bytes=500-".to_owned(), 500, total - 1),
        ("bytes=-500".to_owned(), total - 500, total - 1),
        (format!("bytes={}-{}", total - 10, total + 10), total - 10, total - 1),
        ("bytes=0-0".to_owned(), 0, 0),
    ] {
        let answer = board.request("GET", &path, &[("Range", &range)]);
        assert_eq!(answer.status, 206, "{range}");
        assert_eq!(
            answer.header("content-range"),
            Some(format!("bytes {first}-{last}/{total}").as_str()),
            "{range}"
        );
        assert_eq!(answer.body().unwrap(), &whole[first..=last], "{range}");
    }
    for range in ["bytes=500-0".to_owned(), format!("bytes={total}-{}", total + 100)] {
        let answer = board.request("GET", &path, &[("Range", &range)]);
        assert_eq!(answer.status, 416, "{range}");
        assert_eq!(answer.header("content-range"), Some(format!("bytes */{total}").as_str()));
    }
    // A range on a HEAD is ignored (RFC 9110, section 14.2).
    assert_eq!(board.request("HEAD", &path, &[("Range", "bytes=0-9")]).status, 200);
}

#[test]
fn content_is_served_verbatim_and_labelled() {
    for image in [
        Image::multi_arch(1, &[70_000]),
        Image::docker(2, &[70_000]),
        Image::sha512(3, &[70_000]),
        Image::nested(4, &[70_000]),
        Image::sparse(5, &[70_000]),
    ] {
        let upstream = upstream_with(&image);
        let board = Board::new(&upstream, "");
        assert_eq!(board.pull("lab/app", "latest").unwrap().digest, image.root);
        for (digest, (media_type, bytes)) in &image.manifests {
            let path = format!("/v2/lab/app/manifests/{digest}?ns=docker.io");
            // Compression is for others: digests are of the bytes as they are.
            let answer = board.request("GET", &path, &[("Accept-Encoding", "gzip, zstd")]);
            assert_eq!(answer.status, 200);
            assert_eq!(answer.header("content-type"), Some(media_type.as_str()));
            assert_eq!(answer.header("docker-content-digest"), Some(digest.to_string().as_str()));
            assert_eq!(answer.header("content-encoding"), None);
            assert_eq!(answer.body().unwrap(), &bytes[..]);
            let head = board.head(&path);
            assert_eq!(head.header("content-length"), Some(bytes.len().to_string().as_str()));
            assert_eq!(head.header("content-type"), Some(media_type.as_str()));
        }
        upstream.hang_up();
        let again = board.pull("lab/app", "latest").unwrap();
        assert_eq!(again.tag_status, "larder; hit; detail=last-complete");
        board.check_blobs();
    }
}

#[test]
fn several_accept_lines_and_keep_alive() {
    let image = image(1);
    let upstream = upstream_with(&image);
    let board = Board::new(&upstream, "");
    let mut stream = TcpStream::connect(board.addr).unwrap();
    stream.set_read_timeout(Some(board::PATIENCE)).unwrap();
    // As podman asks: one line for each type, and no ns.
    let mut head = "GET /v2/lab/app/manifests/latest HTTP/1.1\r\nHost: x\r\n".to_owned();
    for kind in ["vnd.oci.image.manifest.v1", "vnd.docker.distribution.manifest.v2", "vnd.oci.image.index.v1"]
    {
        head += &format!("Accept: application/{kind}+json\r\n");
    }
    let size = image.manifests[&image.root].1.len();
    for _ in 0..3 {
        stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
        let mut text = Vec::new();
        let mut byte = [0];
        while !text.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            text.push(byte[0]);
        }
        let text = String::from_utf8(text).unwrap();
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        assert!(
            text.to_lowercase().contains("content-type: application/vnd.oci.image.index.v1+json"),
            "{text}"
        );
        let mut body = vec![0; size];
        stream.read_exact(&mut body).unwrap();
        assert_eq!(body, &image.manifests[&image.root].1[..]);
    }
}

#[test]
fn a_manifest_may_have_4_mib_and_no_more() {
    let upstream = Upstream::start().unwrap();
    let (largest, larger) = (Image::of_manifest_size(1, 4 << 20), Image::of_manifest_size(2, (4 << 20) + 1));
    upstream.push("lab/big", "largest", &largest);
    upstream.push("lab/big", "larger", &larger);
    let board = Board::new(&upstream, "");
    assert_eq!(board.pull("lab/big", "largest").unwrap().digest, largest.root);
    let (status, code, message) =
        error(&board, "GET", &format!("/v2/lab/big/manifests/{}?ns=docker.io", larger.root));
    assert_eq!((status, code.as_str()), (502, "UNAVAILABLE"), "{message}");
    assert!(message.contains("4194304"), "{message}");
    assert!(!board.has_blob(&larger.root));
}

#[test]
fn tags_are_listed_by_upstream_and_without_it_from_the_index() {
    let upstream = Upstream::start().unwrap();
    for (n, tag) in ["1.0", "1.1", "2.0", "latest", "zeta"].iter().enumerate() {
        upstream.push("lab/app", tag, &Image::multi_arch(n as u64, &[1_000]));
    }
    let board = Board::new(&upstream, "");
    let list = "/v2/lab/app/tags/list?ns=docker.io";
    assert_eq!(names(&board, list, "tags"), ["1.0", "1.1", "2.0", "latest", "zeta"]);
    assert_eq!(json(&board, list)["name"], "lab/app");
    for tag in ["1.1", "2.0", "latest"] {
        board.pull("lab/app", tag).unwrap();
    }
    let paged = |page: &str| {
        let answer = board.get(&format!("{list}&{page}"));
        let link = answer.header("link").map(str::to_owned);
        let body: Value = serde_json::from_slice(&answer.body().unwrap()).unwrap();
        let names: Vec<String> =
            body["tags"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect();
        (names, link)
    };
    for online in [true, false] {
        if !online {
            upstream.hang_up();
            let answer = board.get(list);
            assert!(answer.header("warning").is_some(), "a list that may be stale says so");
            assert_eq!(names(&board, list, "tags"), ["1.1", "2.0", "latest"]);
        }
        assert_eq!(paged("n=0").0, Vec::<String>::new());
        let (first, link) = paged("n=2&last=1.0");
        assert_eq!(first, ["1.1", "2.0"]);
        let link = link.expect("there is another page");
        let next = link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\"")).unwrap();
        let rest = names(&board, next, "tags");
        assert_eq!(rest, if online { vec!["latest", "zeta"] } else { vec!["latest"] });
        assert_eq!(paged("last=zeta"), (Vec::new(), None));
    }
    let (status, _, message) = error(&board, "GET", "/v2/lab/none/tags/list?ns=docker.io");
    assert_eq!(status, 502, "{message}");
}

#[test]
fn an_unknown_repository_has_no_tags() {
    let board = Board::new(&upstream_with(&image(1)), "");
    let (status, code, _) = error(&board, "GET", "/v2/lab/none/tags/list?ns=docker.io");
    // The upstream lives no longer than this test's first line.
    assert_eq!((status, code.as_str()), (502, "UNAVAILABLE"));
    let upstream = upstream_with(&image(1));
    let board = Board::new(&upstream, "");
    let (status, code, _) = error(&board, "GET", "/v2/lab/none/tags/list?ns=docker.io");
    assert_eq!((status, code.as_str()), (404, "NAME_UNKNOWN"));
}

#[test]
fn the_catalogue_is_upstreams_and_without_it_the_indexs() {
    let upstream = Upstream::start().unwrap();
    for name in ["lab/a", "lab/b", "lab/c", "lab/d"] {
        upstream.push(name, "latest", &Image::multi_arch(1, &[1_000]));
    }
    let board = Board::new(&upstream, "");
    for name in ["lab/b", "lab/c", "lab/d"] {
        board.pull(name, "latest").unwrap();
    }
    let list = "/v2/_catalog?ns=docker.io";
    assert_eq!(names(&board, list, "repositories"), ["lab/a", "lab/b", "lab/c", "lab/d"]);
    assert_eq!(
        names(&board, "/v2/_catalog", "repositories"),
        ["docker.io/lab/b", "docker.io/lab/c", "docker.io/lab/d"],
        "without a registry: everything that is cached"
    );
    upstream.hang_up();
    assert_eq!(names(&board, list, "repositories"), ["lab/b", "lab/c", "lab/d"]);
    assert_eq!(names(&board, &format!("{list}&n=2"), "repositories"), ["lab/b", "lab/c"]);
    let answer = board.get(&format!("{list}&n=2"));
    let link = answer.header("link").expect("there is another page").to_owned();
    let next = link.strip_prefix('<').and_then(|link| link.split('>').next()).unwrap();
    assert_eq!(names(&board, next, "repositories"), ["lab/d"]);
    assert_eq!(names(&board, &format!("{list}&n=0"), "repositories"), Vec::<String>::new());
}

#[test]
fn referrers_are_upstreams_and_without_it_those_that_are_cached() {
    let image = image(1);
    let upstream = upstream_with(&image);
    let signature = Image::artifact(&image, "application/vnd.example.signature");
    let bill = Image::artifact(&image, "application/vnd.example.sbom+json");
    upstream.push("lab/app", "signature", &signature);
    upstream.push("lab/app", "bill", &bill);
    let board = Board::new(&upstream, "");
    let path = format!("/v2/lab/app/referrers/{}?ns=docker.io", image.root);
    let found = |path: &str| {
        let answer = board.get(path);
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(answer.header("content-type"), Some("application/vnd.oci.image.index.v1+json"));
        let filtered = answer.header("oci-filters-applied").map(str::to_owned);
        let index: Value = serde_json::from_slice(&answer.body().unwrap()).unwrap();
        let mut digests: Vec<String> = index["manifests"]
            .as_array()
            .unwrap()
            .iter()
            .map(|descriptor| descriptor["digest"].as_str().unwrap().to_owned())
            .collect();
        digests.sort();
        (digests, filtered)
    };
    let mut both = vec![signature.root.to_string(), bill.root.to_string()];
    both.sort();
    assert_eq!(found(&path), (both, None));
    let filter = format!("{path}&artifactType=application%2Fvnd.example.sbom%2Bjson");
    assert_eq!(found(&filter), (vec![bill.root.to_string()], Some("artifactType".into())));

    // Only what was asked for is kept, and only that is known when the uplink is gone.
    board.get(&format!("/v2/lab/app/manifests/{}?ns=docker.io", bill.root)).body().unwrap();
    upstream.hang_up();
    assert_eq!(found(&path), (vec![bill.root.to_string()], None));
    assert_eq!(found(&filter), (vec![bill.root.to_string()], Some("artifactType".into())));
    let other = format!("{path}&artifactType=application%2Fnone");
    assert_eq!(found(&other), (Vec::new(), Some("artifactType".into())));
    // Of what nothing is known an empty list would say that there is nothing.
    let unknown = format!("/v2/lab/app/referrers/sha256:{}?ns=docker.io", "0".repeat(64));
    assert_eq!(error(&board, "GET", &unknown).0, 502);
}

#[test]
fn referrers_of_an_upstream_without_them_are_an_empty_index() {
    let upstream = upstream_with(&image(1));
    upstream.on(None, "/referrers/", Behaviour::Status(404, Vec::new()));
    let board = Board::new(&upstream, "");
    let index = json(&board, &format!("/v2/lab/app/referrers/sha256:{}?ns=docker.io", "0".repeat(64)));
    assert_eq!(index["manifests"], Value::Array(Vec::new()));
    assert_eq!(index["schemaVersion"], 2);
}

#[test]
fn what_upstream_does_not_have_is_unknown() {
    let upstream = upstream_with(&image(1));
    let board = Board::new(&upstream, "");
    let absent = format!("sha256:{}", "0".repeat(64));
    for (path, code) in [
        ("/v2/lab/app/manifests/none".to_owned(), "MANIFEST_UNKNOWN"),
        (format!("/v2/lab/app/manifests/{absent}"), "MANIFEST_UNKNOWN"),
        (format!("/v2/lab/app/blobs/{absent}"), "BLOB_UNKNOWN"),
    ] {
        let (status, said, message) = error(&board, "GET", &path);
        assert_eq!((status, said.as_str()), (404, code), "{message}");
        assert_eq!(board.head(&path).status, 404);
    }
}

#[test]
fn head_of_a_blob_fetches_nothing() {
    let image = image(1);
    let upstream = upstream_with(&image);
    let board = Board::new(&upstream, "");
    let layer = layer_of(&image);
    let answer = board.head(&format!("/v2/lab/app/blobs/{layer}?ns=docker.io"));
    assert_eq!(answer.status, 200, "a chained cache asks for the size first");
    assert_eq!(answer.header("content-length"), Some(image.blobs[&layer].len().to_string().as_str()));
    assert_eq!(upstream.count("GET", "/blobs/"), 0);
}

#[test]
fn health_readiness_and_metrics() {
    let image = image(1);
    let upstream = upstream_with(&image);
    let board = Board::new(&upstream, "");
    assert_eq!(board.get("/healthz").status, 200);
    board.wait_until("readiness", || board.get("/readyz").status == 200);
    board.pull("lab/app", "latest").unwrap();
    board.pull("lab/app", "latest").unwrap();
    let text = String::from_utf8(board.get("/metrics").body().unwrap()).unwrap();
    let value = |name: &str| -> f64 {
        let line =
            text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.unwrap_or_else(|| panic!("{name} is not in\n{text}"))
            .rsplit(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap()
    };
    assert!(value("larder_resolves_total{tier=\"upstream\"}") >= 2.0);
    assert!(value("larder_served_bytes_total{source=\"cache\"}") > 0.0);
    assert!(value("larder_served_bytes_total{source=\"fill\"}") > 0.0);
    assert!(
        value("larder_upstream_bytes_total{upstream=\"docker.io\"}") >= upstream.blob_bytes_sent() as f64
    );
    assert_eq!(value("larder_upstream_up{upstream=\"docker.io\"}"), 1.0);
    assert!(value("larder_disk_used_bytes") > 0.0);
    assert_eq!(value("larder_corrupt_blobs_total"), 0.0);
    assert_eq!(value("larder_memory_budget_bytes"), f64::from(64 << 20));
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (_, number) = line.rsplit_once(' ').unwrap();
        assert!(number.parse::<f64>().is_ok(), "{line}");
    }
}

#[test]
fn a_client_without_a_namespace_pulls_from_the_path() {
    let image = image(1);
    let upstream = upstream_with(&image);
    let board = Board::new(&upstream, "");
    for repository in ["lab/app", "docker.io/lab/app"] {
        let pulled = client::pull(board.addr, None, repository, "latest", PLATFORM, board::PATIENCE).unwrap();
        assert_eq!(pulled.digest, image.root);
    }
}
