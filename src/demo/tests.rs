//! The demo's parts, against each other.

use super::client::{PullError, pull, request};
use super::image::SampleImage;
use super::upstream::{Behaviour, FaultyRegistry, LoginDemand};
use std::time::Duration;

const WAIT_MAX: Duration = Duration::from_secs(60);
const PLATFORM: &str = "linux/arm64";

fn with_image() -> (FaultyRegistry, SampleImage) {
    let image = SampleImage::multi_arch(1, &[100_000, 5_000]);
    let upstream = FaultyRegistry::start().unwrap();
    upstream.push("lab/app", "latest", &image);
    (upstream, image)
}

#[test]
fn an_image_is_pulled_whole() {
    let (upstream, image) = with_image();
    let pulled = pull(upstream.addr(), None, "lab/app", "latest", PLATFORM, WAIT_MAX).unwrap();
    assert_eq!(pulled.digest, image.root);
    assert!(pulled.bytes > 105_000 && pulled.bytes < image.bytes());
    assert_eq!(upstream.count("HEAD", "/manifests/latest"), 1);
}

#[test]
fn a_cut_blob_is_resumed_and_a_wrong_one_refused() {
    let (upstream, image) = with_image();
    upstream.on(Some("GET"), "/blobs/", Behaviour::CutBodyAfter(30_000));
    assert_eq!(
        pull(upstream.addr(), None, "lab/app", "latest", PLATFORM, WAIT_MAX).unwrap().digest,
        image.root
    );
    assert!(upstream.requests().iter().any(|seen| seen.range.as_deref() == Some("bytes=30000-")));
    upstream.clear();
    upstream.on(Some("GET"), "/blobs/", Behaviour::WrongBytes);
    let failed = pull(upstream.addr(), None, "lab/app", "latest", PLATFORM, WAIT_MAX);
    assert!(matches!(failed, Err(PullError::Wrong(_))));
}

#[test]
fn it_goes_and_comes_back_on_the_same_port() {
    let (upstream, _) = with_image();
    upstream.hang_up();
    assert!(request(upstream.addr(), "GET", "/v2/", &[], WAIT_MAX).is_err());
    upstream.come_back().unwrap();
    assert_eq!(request(upstream.addr(), "GET", "/v2/", &[], WAIT_MAX).unwrap().status, 200);
}

#[test]
fn a_hang_ends_when_it_is_released() {
    let (upstream, _) = with_image();
    upstream.on(None, "/v2/", Behaviour::HangBeforeHeader);
    let addr = upstream.addr();
    let client = std::thread::spawn(move || request(addr, "GET", "/v2/", &[], WAIT_MAX).unwrap().status);
    assert!(upstream.wait_for(1, "GET", "/v2/", WAIT_MAX));
    while !client.is_finished() {
        upstream.release();
        std::thread::yield_now();
    }
    assert_eq!(client.join().unwrap(), 200);
}

#[test]
fn logins_are_asked_for() {
    let (upstream, _) = with_image();
    upstream.login(LoginDemand::Basic("board".into(), "s3cret".into()));
    let status = |headers: &[(&str, &str)]| {
        request(upstream.addr(), "GET", "/v2/lab/app/tags/list", headers, WAIT_MAX).unwrap().status
    };
    assert_eq!(status(&[]), 401);
    assert_eq!(status(&[("Authorization", "Basic Ym9hcmQ6czNjcmV0")]), 200);
    upstream.login(LoginDemand::Token(None));
    let challenged = request(upstream.addr(), "GET", "/v2/lab/app/tags/list", &[], WAIT_MAX).unwrap();
    let challenge = challenged.header("www-authenticate").unwrap();
    assert!(challenge.contains("scope=\"repository:lab/app:pull\""), "{challenge}");
}

#[test]
fn a_manifest_has_the_size_that_was_asked_for() {
    let image = SampleImage::of_manifest_size(1, 100_000);
    assert_eq!(image.manifests[&image.root].1.len(), 100_000);
}
