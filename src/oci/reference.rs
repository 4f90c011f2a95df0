//! References: how people and kubelets name images. Their abbreviations are spelled out by `familiar`.

use super::{Digest, Invalid, Repository, Tag, familiar, quoted, textual};
use std::fmt;
use std::str::FromStr;

/// An image reference: a repository with a tag, a digest, or both. A reference with neither means `:latest`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    /// The repository.
    pub repository: Repository,
    /// The tag, if one was given or implied.
    pub tag: Option<Tag>,
    /// The digest, if one was given.
    pub digest: Option<Digest>,
}

impl FromStr for Reference {
    type Err = Invalid;

    /// Parses as container runtimes do: the part before the first slash is a registry if it holds a period or a
    /// colon or is `localhost`; else the registry is Docker Hub, where a single name is in `library/`.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let image = familiar::without_scheme(text)?;
        let (rest, digest) = match image.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (image, None),
        };
        let name_from = rest.rfind('/').map_or(0, |at| at + 1);
        let (name, tag) = match rest[name_from..].find(':') {
            Some(at) => (&rest[..name_from + at], Some(rest[name_from + at + 1..].parse::<Tag>()?)),
            None => (rest, None),
        };
        if name.is_empty() {
            return Err(Invalid::new(format!("image {} has no name", quoted(text))));
        }
        let repository = familiar::repository(name)?;
        let tag = if tag.is_none() && digest.is_none() { Some(Tag::latest()) } else { tag };
        Ok(Reference { repository, tag, digest })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

textual!(Reference);

/// What may stand at the end of `/v2/<name>/manifests/<reference>`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum ManifestRef {
    /// A tag, which only an upstream can resolve.
    Tag(Tag),
    /// A digest, which names its content.
    Digest(Digest),
}

impl FromStr for ManifestRef {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.contains(':') {
            Ok(ManifestRef::Digest(text.parse()?))
        } else {
            Ok(ManifestRef::Tag(text.parse()?))
        }
    }
}

impl fmt::Display for ManifestRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ManifestRef::Tag(tag) => tag.fmt(f),
            ManifestRef::Digest(digest) => digest.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abbreviations() {
        for (text, full) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.25", "docker.io/library/nginx:1.25"),
            ("owner/app", "docker.io/owner/app:latest"),
            ("docker.io/nginx", "docker.io/library/nginx:latest"),
            ("index.docker.io/library/nginx", "docker.io/library/nginx:latest"),
            ("ghcr.io/owner/app:v1", "ghcr.io/owner/app:v1"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app:x", "localhost:5000/app:x"),
            ("127.0.0.1:5000/a/b", "127.0.0.1:5000/a/b:latest"),
            ("docker://alpine", "docker.io/library/alpine:latest"),
            ("docker://ghcr.io/owner/app:v1", "ghcr.io/owner/app:v1"),
            ("HTTPS://Docker.IO/library/alpine:3", "docker.io/library/alpine:3"),
            ("http://registry.lan:5000/app", "registry.lan:5000/app:latest"),
            ("oci://ghcr.io/owner/chart:1.2.3", "ghcr.io/owner/chart:1.2.3"),
            ("registry-1.docker.io:443/alpine", "docker.io/library/alpine:latest"),
            (" ghcr.io/owner/app/\n", "ghcr.io/owner/app:latest"),
            ("alpine/", "docker.io/library/alpine:latest"),
            ("localhost:443/app", "localhost/app:latest"),
            ("cache:443/app", "cache:443/app:latest"),
            ("registry.lan/registry.lan/app", "registry.lan/registry.lan/app:latest"),
        ] {
            let parsed = text.parse::<Reference>().unwrap();
            assert_eq!(parsed.to_string(), full);
            assert_eq!(full.parse::<Reference>().unwrap(), parsed, "commands pass {full} on");
        }
        let hex = "a".repeat(64);
        let pinned = format!("nginx@sha256:{hex}").parse::<Reference>().unwrap();
        assert_eq!(pinned.to_string(), format!("docker.io/library/nginx@sha256:{hex}"));
        let both = format!("nginx:1@sha256:{hex}").parse::<Reference>().unwrap();
        assert_eq!(both.to_string(), format!("docker.io/library/nginx:1@sha256:{hex}"));
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "",
            ":",
            "@",
            "nginx:",
            "nginx@",
            "nginx@sha256:abc",
            "Nginx",
            "a//b",
            "ghcr.io/",
            "x y",
            "docker.io/../etc",
            "docker://",
            "https://alpine",
            "docker://ghcr.io/",
            "http://cache/app",
            "oci://",
            "ftp://ghcr.io/owner/app",
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?} was taken");
        }
    }
}
