//! Manifests and indexes, read just deeply enough to know what they need (image-spec, manifest.md and image-index.md).
//!
//! A manifest is served as the bytes it came in; what is parsed here only tells larder which other content belongs
//! to it. Unknown fields are left alone. A document that could be read as two things is refused, because two clients
//! might read it differently. What is not needed is skipped and never in memory: what a document of any size becomes
//! costs no more than [`budget::MANIFEST_DECODED_BYTES_MAX`]. How its fields are read is in `visit`.

mod annotations;
mod visit;

use super::{Digest, Invalid, Platform, json, media, quoted};
use crate::budget;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use visit::RawManifest;

/// A pointer to content.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Descriptor {
    /// The media type, if it is one of a manifest.
    pub manifest_type: Option<&'static str>,
    /// The media type is one of a layer.
    pub is_layer: bool,
    /// What the content is called.
    pub digest: Digest,
    /// Its size in bytes, as stated.
    pub size: u64,
    /// In an index: what the child runs on.
    pub platform: Option<Platform>,
    /// In an index: it goes with an image and is none, such as an attestation, a signature or another artifact.
    pub aside: bool,
    /// The content may be absent from registries (non-distributable layers); its addresses are never followed.
    pub optional: bool,
}

impl Descriptor {
    /// Whether the content is itself a manifest or index.
    pub fn is_manifest(&self) -> bool {
        self.manifest_type.is_some()
    }
}

/// What a manifest is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// An index or manifest list: its children are manifests.
    Index,
    /// An image or artifact manifest: its children are blobs.
    Image,
}

impl Kind {
    /// The kind that a media type stands for, if it is a manifest's.
    pub fn of_media_type(media_type: &str) -> Option<Kind> {
        match media_type {
            media::OCI_INDEX | media::DOCKER_LIST => Some(Kind::Index),
            media::OCI_MANIFEST | media::DOCKER_MANIFEST | media::OCI_ARTIFACT => Some(Kind::Image),
            _ => None,
        }
    }
}

/// A parsed manifest.
#[derive(Clone, PartialEq, Debug)]
pub struct Manifest {
    /// Index or image.
    pub kind: Kind,
    /// The media type it is served with.
    pub media_type: String,
    /// An index's manifests; an image's config and layers, in that order.
    pub children: Vec<Descriptor>,
    /// A container can be made of it: config and layers are those of an image. What signs, describes or attests one often
    /// has an image's config, and a chart has layers.
    pub is_container_image: bool,
    /// The manifest this one refers to (a signature's image).
    pub subject: Option<Digest>,
    /// The artifact type: the field of that name, else the config's media type.
    pub artifact_type: Option<String>,
}

impl Manifest {
    /// Parses a manifest. `content_type` is the header it came with, if any; it must agree with the body.
    ///
    /// # Errors
    /// It is not JSON, not a manifest, or not of the type that the header names.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Manifest, Invalid> {
        let raw = RawManifest::read(bytes)?;
        let header = content_type.map(media::essence).filter(|t| Kind::of_media_type(t).is_some());
        if raw.schema_version == Some(1) || raw.has_fs_layers {
            return Err(Invalid::new("manifest is of schema version 1, which no current runtime accepts"));
        }
        if let (Some(header), Some(body)) = (&header, &raw.media_type)
            && header != body
        {
            return Err(Invalid::new(format!(
                "manifest says it is {} but came as {}",
                quoted(body),
                quoted(header)
            )));
        }
        let has_image_parts = raw.layers.is_some() || raw.config.is_some() || raw.blobs.is_some();
        if raw.manifests.is_some() && has_image_parts {
            return Err(Invalid::new(
                "manifest has both manifests and layers, so it could be read in two ways",
            ));
        }
        let media_type = match raw.media_type.or(header) {
            Some(stated) => stated,
            None if raw.manifests.is_some() => media::OCI_INDEX.to_owned(),
            None if has_image_parts => media::OCI_MANIFEST.to_owned(),
            None => {
                return Err(Invalid::new(
                    "manifest has neither a media type nor manifests, config or layers",
                ));
            }
        };
        let Some(kind) = Kind::of_media_type(&media_type) else {
            return Err(Invalid::new(format!("media type {} is not a manifest's", quoted(&media_type))));
        };
        if (kind == Kind::Index && has_image_parts) || (kind == Kind::Image && raw.manifests.is_some()) {
            return Err(Invalid::new(format!(
                "manifest's content does not fit its media type {}",
                quoted(&media_type)
            )));
        }
        let (config, config_type) = raw.config.unzip();
        let layers = raw.layers.unwrap_or_default();
        let is_container_image = raw.artifact_type.as_deref().is_none_or(str::is_empty)
            && raw.subject.is_none()
            && config_type.as_deref().is_some_and(|of| media::IMAGE_CONFIGS.contains(&of))
            && layers.iter().all(|layer| layer.is_layer);
        let artifact_type = raw.artifact_type.or(config_type).filter(|t| !t.is_empty());
        let mut children = raw.manifests.unwrap_or_default();
        children.extend(config);
        children.extend(layers);
        children.extend(raw.blobs.into_iter().flatten());
        let subject = raw.subject;
        Ok(Manifest { kind, media_type, children, is_container_image, subject, artifact_type })
    }
}

/// The annotations of a manifest that parses; none if they are longer than [`budget::ANNOTATIONS_BYTES_MAX`] together.
pub fn annotations(bytes: &[u8]) -> BTreeMap<String, String> {
    annotations::annotations(bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(fill: char) -> String {
        format!("sha256:{}", String::from(fill).repeat(64))
    }

    #[test]
    fn an_image_needs_its_config_and_layers() {
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","config":{{"mediaType":"c","digest":"{}","size":3}},
               "layers":[{{"mediaType":"l","digest":"{}","size":5,"extra":1}}],"unknown":{{}}}}"#,
            media::OCI_MANIFEST,
            digest('a'),
            digest('b')
        );
        let manifest =
            Manifest::parse(text.as_bytes(), Some("application/vnd.oci.image.manifest.v1+json; x=y"))
                .unwrap();
        assert_eq!(manifest.kind, Kind::Image);
        assert_eq!(manifest.children.iter().map(|c| c.size).collect::<Vec<_>>(), [3, 5]);
        assert_eq!(manifest.artifact_type.as_deref(), Some("c"));
    }

    #[test]
    fn an_index_knows_its_platforms() {
        let text = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{}","digest":"{}","size":7,
               "platform":{{"os":"linux","architecture":"arm64","variant":"v8"}}}}]}}"#,
            media::OCI_MANIFEST,
            digest('c')
        );
        let manifest = Manifest::parse(text.as_bytes(), None).unwrap();
        assert_eq!((manifest.kind, manifest.children[0].aside), (Kind::Index, false));
        assert_eq!(manifest.children[0].platform, Some("linux/arm64".parse().unwrap()));
        assert!(Manifest::parse(br#"{"schemaVersion":2,"manifests":[]}"#, None).unwrap().children.is_empty());
    }

    #[test]
    fn what_goes_with_an_image_and_is_none_is_told_apart() {
        let arm = r#""platform":{"os":"linux","architecture":"arm64"}"#;
        for (more, aside) in [
            (arm, false),
            (r#""platform":{"os":"unknown","architecture":"unknown"}"#, true),
            (r#""annotations":{"a":1,"vnd.docker.reference.type":"attestation-manifest"}"#, true),
            (r#""annotations":{"a":{"vnd.docker.reference.type":"attestation-manifest"}}"#, false),
            (r#""annotations":{"vnd.docker.reference.type":["attestation-manifest"]}"#, false),
            (r#""annotations":"attestation-manifest""#, false),
            (r#""annotations":null,"artifactType":null"#, false),
            (r#""artifactType":"application/vnd.amazon.soci.index.v2+json""#, true),
            (r#""artifactType":"application/vnd.oci.image.config.v1+json""#, false),
        ] {
            let (manifest, digest) = (media::OCI_MANIFEST, digest('c'));
            let text = format!(
                r#"{{"manifests":[{{"mediaType":"{manifest}","digest":"{digest}","size":7,{more}}}]}}"#
            );
            assert_eq!(Manifest::parse(text.as_bytes(), None).unwrap().children[0].aside, aside, "{more}");
        }
    }

    #[test]
    fn a_container_image_is_told_from_what_looks_like_one() {
        let (oci, layer) = (media::IMAGE_CONFIGS[0], "application/vnd.oci.image.layer.v1.tar+gzip");
        let subject = format!(r#","subject":{{"mediaType":"m","digest":"{}","size":1}}"#, digest('e'));
        for (config, layer, more, is_image) in [
            (oci, layer, "", true),
            (media::IMAGE_CONFIGS[1], "application/vnd.docker.image.rootfs.diff.tar.gzip", "", true),
            (oci, "application/vnd.dev.cosign.simplesigning.v1+json", "", false),
            (oci, "application/vnd.in-toto+json", "", false),
            (oci, layer, r#","artifactType":"application/x""#, false),
            (oci, layer, &subject, false),
            ("application/vnd.cncf.helm.config.v1+json", layer, "", false),
        ] {
            let text = format!(
                r#"{{"config":{{"mediaType":"{config}","digest":"{}","size":3}},
                   "layers":[{{"mediaType":"{layer}","digest":"{}","size":5}}]{more}}}"#,
                digest('a'),
                digest('b')
            );
            let manifest = Manifest::parse(text.as_bytes(), None).unwrap();
            assert_eq!(manifest.is_container_image, is_image, "{config} {layer} {more}");
        }
    }

    #[test]
    fn ambiguous_or_foreign_documents_are_refused() {
        let both = br#"{"schemaVersion":2,"manifests":[],"layers":[]}"#;
        assert!(Manifest::parse(both, None).is_err());
        let disagrees = format!(r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[]}}"#, media::OCI_INDEX);
        assert!(Manifest::parse(disagrees.as_bytes(), Some(media::DOCKER_LIST)).is_err());
        let mislabelled =
            format!(r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[]}}"#, media::OCI_MANIFEST);
        assert!(Manifest::parse(mislabelled.as_bytes(), None).is_err());
        for bad in [&b""[..], b"{}", b"[]", b"{\"schemaVersion\":1,\"fsLayers\":[]}", b"\x1f\x8b"] {
            assert!(Manifest::parse(bad, None).is_err());
        }
    }

    #[test]
    fn absent_layers_may_be_absent() {
        let text = format!(
            r#"{{"schemaVersion":2,"layers":[{{"mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar",
               "digest":"{}","size":5}}]}}"#,
            digest('d')
        );
        assert!(Manifest::parse(text.as_bytes(), None).unwrap().children[0].optional);
    }
}
