//! What boards are put in front of: upstreams that fail on command, the images that they have, certificates of their own.

use super::PLATFORM;
use larder::demo::image::SampleImage as Image;
use larder::demo::upstream::FaultyRegistry as Upstream;
use larder::oci::Digest;
use std::sync::Arc;

/// An upstream with one image as `lab/app:latest`.
pub fn upstream_with(image: &Image) -> Upstream {
    let upstream = Upstream::start().unwrap();
    upstream.push("lab/app", "latest", image);
    upstream
}

/// A small image; different seeds, different digests.
pub fn image(seed: u64) -> Image {
    Image::multi_arch(seed, &[300_000, 20_000])
}

/// The largest blob of an image that the tests' platform pulls: a layer.
pub fn layer_of(image: &Image) -> Digest {
    let pulled = needed(image);
    pulled.into_iter().max_by_key(|digest| image.blobs[digest].len()).unwrap()
}

/// Config and layers for the tests' platform.
pub fn needed(image: &Image) -> Vec<Digest> {
    let index = larder::oci::Manifest::parse(&image.manifests[&image.root].1, None).unwrap();
    let wanted: larder::oci::Platform = PLATFORM.parse().unwrap();
    let child = index.children.iter().find(|child| child.platform.as_ref() == Some(&wanted)).unwrap();
    let manifest = larder::oci::Manifest::parse(&image.manifests[&child.digest].1, None).unwrap();
    manifest.children.into_iter().map(|child| child.digest).collect()
}

/// A TLS server's settings with a certificate for 127.0.0.1 that it signed itself, and certificate and key as PEM.
pub fn tls_settings() -> (rustls::ServerConfig, String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let settings = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    (settings, certificate.pem(), key.serialize_pem())
}
