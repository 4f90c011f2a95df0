//! References: how people and kubelets name images, with Docker's abbreviations spelled out.

use super::{Digest, Invalid, RegistryName, Repository, RepositoryName, Tag, quoted, textual};
use std::fmt;
use std::str::FromStr;

/// The registry that an abbreviated reference means to every container runtime.
const DOCKER_HUB: &str = "docker.io";

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
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        let name_from = rest.rfind('/').map_or(0, |at| at + 1);
        let (name, tag) = match rest[name_from..].find(':') {
            Some(at) => (&rest[..name_from + at], Some(rest[name_from + at + 1..].parse::<Tag>()?)),
            None => (rest, None),
        };
        if name.is_empty() {
            return Err(Invalid::new(format!("image {} has no name", quoted(text))));
        }
        let (registry, path) = match name.split_once('/') {
            Some((first, path)) if first == "localhost" || first.contains(['.', ':']) => {
                (first, path.to_owned())
            }
            _ => (DOCKER_HUB, name.to_owned()),
        };
        let registry = if registry == "index.docker.io" { DOCKER_HUB } else { registry };
        let path =
            if registry == DOCKER_HUB && !path.contains('/') { format!("library/{path}") } else { path };
        let repository = Repository::new(registry.parse::<RegistryName>()?, path.parse::<RepositoryName>()?);
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
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), full);
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
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?} was taken");
        }
    }
}
