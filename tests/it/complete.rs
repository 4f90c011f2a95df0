//! Complete means that it would run: what an index needs, what it does not need, and what may stand in for a version.

use crate::board::{self, Board, image, upstream_with};
use larder::demo::image::SampleImage as Image;
use larder::demo::upstream::FaultyRegistry as Upstream;
use larder::oci::{Algorithm, Digest, media};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// Content in the making.
struct Making(Image);

impl Making {
    fn new() -> Making {
        let root = Digest::of(Algorithm::Sha256, b"");
        Making(Image { blobs: BTreeMap::new(), manifests: BTreeMap::new(), root })
    }

    fn blob(&mut self, media_type: &str, text: &str) -> Value {
        let digest = Digest::of(Algorithm::Sha256, text.as_bytes());
        self.0.blobs.insert(digest.clone(), text.as_bytes().into());
        json!({ "mediaType": media_type, "digest": digest, "size": text.len() })
    }

    /// A manifest, which is the root until the next comes; its descriptor with `more`.
    fn manifest(&mut self, media_type: &str, mut fields: Value, more: &Value) -> Value {
        fields["schemaVersion"] = json!(2);
        fields["mediaType"] = json!(media_type);
        let bytes = fields.to_string().into_bytes();
        self.0.root = Digest::of(Algorithm::Sha256, &bytes);
        let mut descriptor = json!({ "mediaType": media_type, "digest": self.0.root, "size": bytes.len() });
        self.0.manifests.insert(self.0.root.clone(), (media_type.to_owned(), bytes.into()));
        for (key, value) in more.as_object().into_iter().flatten() {
            descriptor[key] = value.clone();
        }
        descriptor
    }

    /// An image for an architecture and variant, or something that has a manifest like one.
    fn image(&mut self, name: &str, config: (&str, Value), layer: &str, more: &Value) -> Value {
        let config = self.blob(config.0, &config.1.to_string());
        let layer = self.blob(layer, name);
        self.manifest(media::OCI_MANIFEST, json!({ "config": config, "layers": [layer] }), more)
    }

    fn index(&mut self, children: &[Value]) -> Value {
        self.manifest(media::OCI_INDEX, json!({ "manifests": children }), &Value::Null)
    }
}

/// An image's config.
fn runs_on(architecture: &str) -> (&'static str, Value) {
    (
        CONFIG,
        json!({ "os": "linux", "architecture": architecture, "rootfs": { "type": "layers", "diff_ids": [] } }),
    )
}

fn platform(architecture: &str, variant: &str) -> Value {
    json!({ "platform": { "os": "linux", "architecture": architecture, "variant": variant } })
}

fn attestation() -> Value {
    json!({
        "platform": { "os": "unknown", "architecture": "unknown" },
        "annotations": { "vnd.docker.reference.type": "attestation-manifest" }
    })
}

fn digest_of(descriptor: &Value) -> &str {
    descriptor["digest"].as_str().unwrap()
}

/// Asks for a tag, its manifest and some of its content, as a client does that wants no more.
fn take(board: &Board, repository: &str, tag: &str, wanted: &[&Value]) {
    let path = |kind: &str, name: &str| format!("/v2/{repository}/{kind}/{name}?ns=docker.io");
    assert_eq!(board.head(&path("manifests", tag)).status, 200, "{tag}");
    board.get(&path("manifests", tag)).body().unwrap();
    for descriptor in wanted {
        let is_manifest = media::MANIFESTS.contains(&descriptor["mediaType"].as_str().unwrap());
        let kind = if is_manifest { "manifests" } else { "blobs" };
        let answer = board.get(&path(kind, digest_of(descriptor)));
        assert_eq!(answer.status, 200, "{descriptor}");
        answer.body().unwrap();
        board.wait_until("stored", || board.has_blob(&digest_of(descriptor).parse().unwrap()));
    }
}

/// A board that has taken some of what `lab/app:latest` names.
fn taken(made: Making, wanted: &[&Value]) -> (Upstream, Board) {
    let upstream = upstream_with(&made.0);
    let board = Board::new(&upstream, "");
    take(&board, "lab/app", "latest", wanted);
    (upstream, board)
}

fn state(board: &Board, image: &str) -> String {
    let listed = board.said(&["ls"]);
    let row = listed.lines().find(|line| line.starts_with(&format!("docker.io/{image} ")));
    row.map_or_else(
        || panic!("no {image} in\n{listed}"),
        |row| row.split_whitespace().nth(1).unwrap().to_owned(),
    )
}

fn assert_complete(board: &Board, image: &str) {
    board.wait_until("complete", || state(board, image) == "complete");
}

#[test]
fn a_build_cache_is_complete_with_the_last_of_its_layers() {
    let mut made = Making::new();
    let layers = [made.blob(LAYER, "first"), made.blob(LAYER, "second")];
    let cache = made.blob("application/vnd.buildkit.cacheconfig.v0", "{\"layers\":[]}");
    made.index(&[layers[0].clone(), layers[1].clone(), cache.clone()]);
    let root = made.0.root.to_string();
    let (upstream, board) = taken(made, &[&cache, &layers[0]]);
    assert_eq!(state(&board, "lab/app:latest"), "partial");
    let why = board.said(&["why", "lab/app"]);
    let second = why.lines().find(|line| line.contains(digest_of(&layers[1])));
    assert!(second.is_some_and(|line| line.contains("MISSING")), "{why}");
    take(&board, "lab/app", "latest", &[&layers[1]]);
    assert_complete(&board, "lab/app:latest");
    upstream.hang_up();
    let answer = board.get("/v2/lab/app/manifests/latest?ns=docker.io");
    assert_eq!((answer.status, answer.header("docker-content-digest")), (200, Some(root.as_str())));
}

#[test]
fn attestations_never_hold_an_image_back_and_never_count_as_one() {
    let mut made = Making::new();
    let config = runs_on("arm64");
    let arm = made.image("arm64", config.clone(), LAYER, &platform("arm64", ""));
    let parts = [made.blob(CONFIG, &config.1.to_string()), made.blob(LAYER, "arm64")];
    let about = made.image("sbom", config.clone(), "application/vnd.in-toto+json", &attestation());
    made.index(&[arm.clone(), about]);
    let (_upstream, board) = taken(made, &[&arm, &parts[0], &parts[1]]);
    assert_complete(&board, "lab/app:latest");

    // Of an index whose one image runs elsewhere, and of one whose image has the platform of an artifact beside it.
    for (architecture, artifact) in [
        ("amd64", attestation()),
        ("arm64", {
            let mut soci = platform("arm64", "");
            soci["artifactType"] = json!("application/vnd.amazon.soci.index.v2+json");
            soci
        }),
    ] {
        let mut made = Making::new();
        let image = made.image("image", runs_on(architecture), LAYER, &platform(architecture, ""));
        let about = made.image("about", config.clone(), "application/vnd.in-toto+json", &artifact);
        let parts =
            [made.blob(CONFIG, &config.1.to_string()), made.blob("application/vnd.in-toto+json", "about")];
        let image_parts =
            [made.blob(CONFIG, &runs_on(architecture).1.to_string()), made.blob(LAYER, "image")];
        made.index(&[about.clone(), image.clone()]);
        let (_upstream, board) = taken(made, &[&about, &parts[0], &parts[1]]);
        assert_eq!(state(&board, "lab/app:latest"), "partial", "{architecture}");
        take(&board, "lab/app", "latest", &[&image, &image_parts[0], &image_parts[1]]);
        assert_complete(&board, "lab/app:latest");
    }
}

#[test]
fn only_the_image_that_a_runtime_takes_counts() {
    let mut made = Making::new();
    let old = made.image("v7", runs_on("arm"), LAYER, &platform("arm", "v7"));
    let old_parts = [made.blob(CONFIG, &runs_on("arm").1.to_string()), made.blob(LAYER, "v7")];
    let best = made.image("v8", runs_on("arm64"), LAYER, &platform("arm64", "v8"));
    let best_parts = [made.blob(CONFIG, &runs_on("arm64").1.to_string()), made.blob(LAYER, "v8")];
    let other = made.image("x86", runs_on("amd64"), LAYER, &platform("amd64", ""));
    let unknown = made.blob("application/vnd.example.notes.v1+json", "what no runtime asks for");
    made.index(&[old.clone(), other.clone(), best.clone(), unknown]);
    let (_upstream, board) = taken(made, &[&old, &old_parts[0], &old_parts[1]]);
    assert_eq!(state(&board, "lab/app:latest"), "partial");
    take(&board, "lab/app", "latest", &[&best, &best_parts[0], &best_parts[1]]);
    assert_complete(&board, "lab/app:latest");

    // Where there is none for arm64, its boards run the one for arm.
    let mut made = Making::new();
    let old = made.image("v7", runs_on("arm"), LAYER, &platform("arm", "v7"));
    let other = made.image("x86", runs_on("amd64"), LAYER, &platform("amd64", ""));
    let other_parts = [made.blob(CONFIG, &runs_on("amd64").1.to_string()), made.blob(LAYER, "x86")];
    made.index(&[other.clone(), old.clone()]);
    let (_upstream, board) = taken(made, &[&other, &other_parts[0], &other_parts[1]]);
    assert_eq!(state(&board, "lab/app:latest"), "partial");
    take(&board, "lab/app", "latest", &[&old, &old_parts[0], &old_parts[1]]);
    assert_complete(&board, "lab/app:latest");
}

#[test]
fn a_chart_is_complete_with_its_blobs() {
    let mut made = Making::new();
    let (config, layer) =
        ("application/vnd.cncf.helm.config.v1+json", "application/vnd.cncf.helm.chart.content.v1.tar+gzip");
    made.image("chart", (config, json!({ "name": "chart" })), layer, &Value::Null);
    let parts = [made.blob(config, &json!({ "name": "chart" }).to_string()), made.blob(layer, "chart")];
    let (upstream, board) = taken(made, &[&parts[0]]);
    assert_eq!(state(&board, "lab/app:latest"), "partial");
    take(&board, "lab/app", "latest", &[&parts[1]]);
    assert_complete(&board, "lab/app:latest");
    upstream.hang_up();
    assert_eq!(board.head("/v2/lab/app/manifests/latest?ns=docker.io").status, 200);
}

/// What lies beside images in repositories and is no version: each with the name of its tag.
fn no_versions() -> Vec<(String, Making)> {
    let hex = "ab".repeat(32);
    let plain = |name: &str, config: (&str, Value), layer: &str| {
        let mut made = Making::new();
        made.image(name, config, layer, &Value::Null);
        made
    };
    let chart = ("application/vnd.cncf.helm.config.v1+json", json!({ "name": "chart" }));
    let cosign = "application/vnd.dev.cosign.simplesigning.v1+json";
    let mut only_about = Making::new();
    let about = only_about.image("about", runs_on("arm64"), "application/vnd.in-toto+json", &attestation());
    only_about.index(&[about]);
    let mut elsewhere = Making::new();
    let x86 = elsewhere.image("x86", runs_on("amd64"), LAYER, &platform("amd64", ""));
    elsewhere.index(&[x86]);
    vec![
        (format!("sha256-{hex}.sig"), plain("signature", runs_on("arm64"), cosign)),
        ("signature".into(), plain("signature too", runs_on("arm64"), cosign)),
        ("chart".into(), plain("chart", chart, "application/vnd.cncf.helm.chart.content.v1.tar+gzip")),
        (format!("sha256-{hex}"), plain("named by a digest", runs_on("arm64"), LAYER)),
        ("about".into(), only_about),
        ("elsewhere".into(), elsewhere),
        ("x86".into(), plain("x86 without an index", runs_on("amd64"), LAYER)),
    ]
}

#[test]
fn only_images_that_run_here_stand_in_for_a_version() {
    let upstream = upstream_with(&image(1));
    let board = Board::new(&upstream, "[tags]\nfallback_versions = true\n");
    board.pull("lab/app", "latest").unwrap();
    assert_complete(&board, "lab/app:latest");
    let mut plain = Making::new();
    plain.image("without an index", runs_on("arm64"), LAYER, &Value::Null);
    let plain_root = plain.0.root.to_string();
    let all = no_versions().into_iter().map(|(tag, made)| ("lab/app", tag, made));
    let all = all.chain(no_versions().into_iter().map(|(tag, made)| ("lab/none", tag, made)));
    for (repository, tag, made) in all.chain([("lab/plain", "1.0".to_owned(), plain)]) {
        upstream.push(repository, &tag, &made.0);
        let path = |kind: &str, name: &str| format!("/v2/{repository}/{kind}/{name}?ns=docker.io");
        assert_eq!(board.head(&path("manifests", &tag)).status, 200);
        for digest in made.0.manifests.keys() {
            board.get(&path("manifests", &digest.to_string())).body().unwrap();
        }
        for digest in made.0.blobs.keys() {
            board.get(&path("blobs", &digest.to_string())).body().unwrap();
        }
        assert_complete(&board, &format!("{repository}:{tag}"));
    }
    upstream.hang_up();
    let ask = |repository: &str, tag: &str| {
        let answer = board.head(&format!("/v2/{repository}/manifests/{tag}?ns=docker.io"));
        (answer.status, answer.header("docker-content-digest").unwrap_or_default().to_owned())
    };
    assert_eq!(ask("lab/app", "2.0"), (200, image(1).root.to_string()), "the image, though it is the oldest");
    assert_eq!(ask("lab/plain", "2.0"), (200, plain_root));
    assert_eq!(ask("lab/none", "2.0").0, 502);
    // Nor does an image stand in for a signature.
    let hex = "cd".repeat(32);
    for tag in [format!("sha256-{hex}"), format!("sha256-{hex}.sig"), format!("sha256-{hex}.att")] {
        assert_eq!(ask("lab/app", &tag).0, 502, "{tag}");
    }
    // Each is served by its own name.
    assert!(no_versions().iter().all(|(tag, made)| ask("lab/none", tag) == (200, made.0.root.to_string())));
    assert!(board::needed(&image(1)).iter().all(|digest| board.has_blob(digest)));
}

#[test]
fn check_asks_what_an_image_runs_on_and_not_what_stands_beside_it() {
    for (stated, ready) in [(json!({}), true), (platform("arm64", ""), true), (platform("amd64", ""), false)]
    {
        let mut made = Making::new();
        let image = made.image("image", runs_on("arm64"), LAYER, &stated);
        let about = made.image("sbom", runs_on("arm64"), "application/vnd.in-toto+json", &attestation());
        let parts = [made.blob(CONFIG, &runs_on("arm64").1.to_string()), made.blob(LAYER, "image")];
        made.index(&[about, image.clone()]);
        let (_upstream, board) = taken(made, &[&image, &parts[0], &parts[1]]);
        assert_complete(&board, "lab/app:latest");
        let checked = board.command(&["check", "lab/app"]);
        assert_eq!(checked.status.success(), ready, "{stated}: {checked:?}");
        assert!(!String::from_utf8_lossy(&checked.stdout).contains("unknown/unknown"), "{checked:?}");
    }
}
