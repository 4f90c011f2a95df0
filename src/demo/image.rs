//! Small images, made in memory: the same seed, the same digests.

use crate::oci::{Algorithm, Digest, media};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Architecture and variant of each platform.
const PLATFORMS: [(&str, &str); 4] = [("amd64", ""), ("arm64", ""), ("arm", "v7"), ("arm", "v6")];

/// An image or artifact and everything that belongs to it.
#[derive(Debug, Clone)]
pub struct SampleImage {
    /// Configs and layers.
    pub blobs: BTreeMap<Digest, Arc<[u8]>>,
    /// Manifests and indexes, each with its media type.
    pub manifests: BTreeMap<Digest, (String, Arc<[u8]>)>,
    /// What a tag points to.
    pub root: Digest,
}

/// What differs between the kinds of image.
struct Kind {
    algorithm: Algorithm,
    index: &'static str,
    manifest: &'static str,
    config: &'static str,
    layer: &'static str,
}

const OCI: Kind = Kind {
    algorithm: Algorithm::Sha256,
    index: media::OCI_INDEX,
    manifest: media::OCI_MANIFEST,
    config: CONFIG,
    layer: LAYER,
};

impl SampleImage {
    /// An OCI index with an image for amd64, arm64, arm/v7 and arm/v6, each with layers that hold files of the given sizes.
    pub fn multi_arch(seed: u64, layers: &[usize]) -> SampleImage {
        let mut making = Making::new(OCI);
        let children = making.platforms(seed, layers);
        making.index(&children)
    }

    /// The same with Docker's media types.
    pub fn docker(seed: u64, layers: &[usize]) -> SampleImage {
        let mut making = Making::new(Kind {
            index: media::DOCKER_LIST,
            manifest: media::DOCKER_MANIFEST,
            config: DOCKER_CONFIG,
            layer: DOCKER_LAYER,
            ..OCI
        });
        let children = making.platforms(seed, layers);
        making.index(&children)
    }

    /// The same with everything addressed by sha512.
    pub fn sha512(seed: u64, layers: &[usize]) -> SampleImage {
        let mut making = Making::new(Kind { algorithm: Algorithm::Sha512, ..OCI });
        let children = making.platforms(seed, layers);
        making.index(&children)
    }

    /// An index whose one child is an index of the images.
    pub fn nested(seed: u64, layers: &[usize]) -> SampleImage {
        let mut making = Making::new(OCI);
        let children = making.platforms(seed, layers);
        let inner = making.manifest_of(
            OCI.index,
            &json!({
                "schemaVersion": 2, "mediaType": OCI.index, "manifests": children
            }),
        );
        making.index(&[inner])
    }

    /// An index that also names an image for a platform which no registry holds.
    pub fn sparse(seed: u64, layers: &[usize]) -> SampleImage {
        let mut making = Making::new(OCI);
        let mut children = making.platforms(seed, layers);
        let absent = Digest::of(OCI.algorithm, b"nobody has this");
        children.push(json!({
            "mediaType": OCI.manifest, "digest": absent, "size": 15,
            "platform": { "os": "linux", "architecture": "s390x" }
        }));
        making.index(&children)
    }

    /// A manifest that refers to `subject`, such as a signature.
    pub fn artifact(subject: &SampleImage, artifact_type: &str) -> SampleImage {
        let mut making = Making::new(OCI);
        let config = making.blob("application/vnd.oci.empty.v1+json", b"{}".to_vec());
        let layer = making.blob("text/plain", artifact_type.as_bytes().to_vec());
        let (media_type, bytes) = &subject.manifests[&subject.root];
        let root = making.manifest_of(OCI.manifest, &json!({
            "schemaVersion": 2, "mediaType": OCI.manifest, "artifactType": artifact_type, "config": config,
            "layers": [layer], "annotations": { "made.by": "the demo" },
            "subject": { "mediaType": media_type, "digest": subject.root, "size": bytes.len() }
        }));
        making.finish(&root)
    }

    /// An image manifest of exactly `bytes` bytes, filled up by an annotation.
    pub fn of_manifest_size(seed: u64, bytes: usize) -> SampleImage {
        let mut making = Making::new(OCI);
        let config = making.blob(CONFIG, format!("{{\"seed\":{seed}}}").into_bytes());
        let text = |fill: usize| {
            json!({
                "schemaVersion": 2, "mediaType": OCI.manifest, "config": config, "layers": [],
                "annotations": { "fill": "x".repeat(fill) }
            })
        };
        let frame = text(0).to_string().len();
        let root = making.manifest_of(OCI.manifest, &text(bytes.saturating_sub(frame)));
        making.finish(&root)
    }

    /// Bytes of every manifest and blob together.
    pub fn bytes(&self) -> u64 {
        let manifests = self.manifests.values().map(|(_, bytes)| bytes.len());
        self.blobs.values().map(|bytes| bytes.len()).chain(manifests).sum::<usize>() as u64
    }
}

struct Making {
    kind: Kind,
    blobs: BTreeMap<Digest, Arc<[u8]>>,
    manifests: BTreeMap<Digest, (String, Arc<[u8]>)>,
}

impl Making {
    fn new(kind: Kind) -> Making {
        Making { kind, blobs: BTreeMap::new(), manifests: BTreeMap::new() }
    }

    fn platforms(&mut self, seed: u64, layers: &[usize]) -> Vec<Value> {
        let image = |(n, (architecture, variant)): (usize, &(&str, &str))| {
            let mut platform = json!({ "os": "linux", "architecture": architecture });
            if !variant.is_empty() {
                platform["variant"] = json!(variant);
            }
            let tars: Vec<Vec<u8>> = layers
                .iter()
                .enumerate()
                .map(|(at, size)| tar(&format!("data/{at}"), &noise(seed, (n * 100 + at) as u64, *size)))
                .collect();
            let diff_ids: Vec<Digest> = tars.iter().map(|tar| Digest::of(Algorithm::Sha256, tar)).collect();
            let mut config = json!({ "rootfs": { "type": "layers", "diff_ids": diff_ids }, "config": {} });
            config["os"] = json!("linux");
            config["architecture"] = json!(architecture);
            let config = self.blob(self.kind.config, config.to_string().into_bytes());
            let layers: Vec<Value> = tars.into_iter().map(|tar| self.blob(self.kind.layer, tar)).collect();
            let mut descriptor = self.manifest_of(
                self.kind.manifest,
                &json!({
                    "schemaVersion": 2, "mediaType": self.kind.manifest, "config": config, "layers": layers
                }),
            );
            descriptor["platform"] = platform;
            descriptor
        };
        PLATFORMS.iter().enumerate().map(image).collect()
    }

    fn blob(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = Digest::of(self.kind.algorithm, &bytes);
        let descriptor = json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() });
        self.blobs.insert(digest, bytes.into());
        descriptor
    }

    fn manifest_of(&mut self, media_type: &str, text: &Value) -> Value {
        let bytes = text.to_string().into_bytes();
        let digest = Digest::of(self.kind.algorithm, &bytes);
        let descriptor = json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() });
        self.manifests.insert(digest, (media_type.to_owned(), bytes.into()));
        descriptor
    }

    fn index(mut self, children: &[Value]) -> SampleImage {
        let media_type = self.kind.index;
        let root = self.manifest_of(
            media_type,
            &json!({
                "schemaVersion": 2, "mediaType": media_type, "manifests": children
            }),
        );
        self.finish(&root)
    }

    fn finish(self, root: &Value) -> SampleImage {
        let root =
            root["digest"].as_str().and_then(|digest| digest.parse().ok()).expect("a digest was put there");
        SampleImage { blobs: self.blobs, manifests: self.manifests, root }
    }
}

/// A tar archive with one file (POSIX ustar).
fn tar(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000644\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
    header[136..148].copy_from_slice(b"14524770400\0");
    header[148..156].copy_from_slice(b"        ");
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = header.to_vec();
    tar.extend_from_slice(content);
    tar.resize(512 + content.len().div_ceil(512) * 512 + 1024, 0);
    tar
}

/// Bytes that do not compress (SplitMix64).
fn noise(seed: u64, stream: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ stream.wrapping_mul(0xd1b5_4a32_d192_ed03);
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        out.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    out.truncate(bytes);
    out
}
