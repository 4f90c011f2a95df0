//! Familiar names: what people and clients write, and the one name that it stands for.
//!
//! Everything that takes a name from outside - requests, references, patterns and keys of the configuration - has it
//! spelled out here and nowhere else, so that what is checked is what is fetched. The rules:
//!
//! - A registry's host is in lower case and without the port of https. Docker Hub has several names and is `docker.io`.
//! - A repository of one component at Docker Hub is in `library/`.
//! - A path that a request asks a named registry for may repeat the name of that registry, once, as clients with
//!   `override_path` do. What is left is the repository. A first component that names another registry is part of the
//!   repository (mirrors have such), and so is one after which nothing is left; a repository that begins with the name of
//!   its own registry is asked for with the name twice.
//!
//! Text that is no name is refused by the grammars in `name`.

use super::{Invalid, RegistryName, Repository, quoted};
use std::borrow::Cow;

/// The registry that an abbreviated name means to every container runtime.
const DOCKER_HUB: &str = "docker.io";

/// Its other names.
const HUB_NAMES: [&str; 3] = ["index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"];

/// The prefixes of other programs, and whether a registry must follow.
const SCHEMES: [(&str, bool); 4] =
    [("docker://", false), ("https://", true), ("http://", true), ("oci://", true)];

impl RegistryName {
    /// The registry that people mean by `text`.
    ///
    /// # Errors
    /// It is not a host name or address, with or without a port.
    pub fn familiar(text: &str) -> Result<RegistryName, Invalid> {
        let text = text.to_ascii_lowercase();
        // Without its port `cache:443` would read as the beginning of a repository at Docker Hub.
        let host = text.strip_suffix(":443").filter(|host| reads_as_registry(host)).unwrap_or(&text);
        if HUB_NAMES.contains(&host) { DOCKER_HUB } else { host }.parse()
    }

    /// Whether it is Docker Hub.
    fn is_docker_hub(&self) -> bool {
        self.as_str() == DOCKER_HUB
    }
}

impl Repository {
    /// The repository that clients mean by a path in a registry.
    ///
    /// # Errors
    /// The path is no repository's name.
    pub fn familiar(registry: RegistryName, path: &str) -> Result<Repository, Invalid> {
        let in_library = registry.is_docker_hub() && !path.contains('/');
        let path = if in_library { Cow::Owned(format!("library/{path}")) } else { Cow::Borrowed(path) };
        Ok(Repository::new(registry, path.parse()?))
    }

    /// The same where the client has named the registry besides, so that the path may repeat it.
    ///
    /// # Errors
    /// What is left of the path is no repository's name.
    pub fn familiar_beside(registry: RegistryName, path: &str) -> Result<Repository, Invalid> {
        let repeats = |first: &str| {
            reads_as_registry(first) && RegistryName::familiar(first).is_ok_and(|named| named == registry)
        };
        let path = path.split_once('/').filter(|(first, _)| repeats(first)).map_or(path, |(_, rest)| rest);
        Repository::familiar(registry, path)
    }
}

/// Whether the first component of a name is a registry to container runtimes.
fn reads_as_registry(first: &str) -> bool {
    first.contains(['.', ':']) || first.eq_ignore_ascii_case("localhost")
}

/// Splits the name of an image into its registry, if it names one, and the path.
fn split_registry(name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((first, path)) if reads_as_registry(first) => (Some(first), path),
        _ => (None, name),
    }
}

/// An image's name without tag and digest, as people write it.
///
/// # Errors
/// It is not one.
pub(super) fn repository(name: &str) -> Result<Repository, Invalid> {
    let (registry, path) = split_registry(name);
    Repository::familiar(RegistryName::familiar(registry.unwrap_or(DOCKER_HUB))?, path)
}

/// An image as it was copied from elsewhere: without white space around it, the prefix of another program and slashes at the
/// end.
///
/// # Errors
/// Something must name a registry before it and does not.
pub(super) fn without_scheme(text: &str) -> Result<&str, Invalid> {
    let text = text.trim();
    let starts = |scheme: &str| text.get(..scheme.len()).is_some_and(|at| at.eq_ignore_ascii_case(scheme));
    let (image, with_registry) = match SCHEMES.iter().find(|(scheme, _)| starts(scheme)) {
        Some((scheme, with_registry)) => (&text[scheme.len()..], *with_registry),
        None => (text, false),
    };
    // A registry alone is no image.
    let bare = image.trim_end_matches('/');
    let image = if bare.contains('/') || !reads_as_registry(bare) { bare } else { image };
    if with_registry && split_registry(image).0.is_none() {
        return Err(Invalid::new(format!("image {} names no registry and repository", quoted(text))));
    }
    Ok(image)
}

/// A pattern over `registry/repository`, or `registry/repository:tag` if `tagged`, in which `*` stands for any text. As far
/// as it spells a name out, the name may be a familiar one; the rest is compared as it stands.
pub fn familiar_pattern(pattern: &str, tagged: bool) -> String {
    let name_from = pattern.rfind('/').map_or(0, |at| at + 1);
    let tag_at = pattern[name_from..].find(':').filter(|_| tagged).map(|at| name_from + at);
    let (name, tag) = pattern.split_at(tag_at.unwrap_or(pattern.len()));
    if !name.contains('*') {
        let tag = if tagged && tag.is_empty() { ":latest" } else { tag };
        let name = without_scheme(name).and_then(repository);
        return name.map_or_else(|_| pattern.to_owned(), |name| format!("{name}{tag}"));
    }
    let (Some(first), path) = split_registry(pattern) else { return pattern.to_owned() };
    let registry = RegistryName::familiar(first);
    registry.map_or_else(|_| pattern.to_owned(), |registry| format!("{registry}/{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_have_one_name() {
        for (text, name) in [
            ("docker.io", "docker.io"),
            ("index.docker.io", "docker.io"),
            ("Registry-1.Docker.IO:443", "docker.io"),
            ("registry.hub.docker.com", "docker.io"),
            ("GHCR.io", "ghcr.io"),
            ("registry.lan:443", "registry.lan"),
            ("registry.lan:5000", "registry.lan:5000"),
            ("registry.lan:4430", "registry.lan:4430"),
            ("cache:443", "cache:443"),
            ("[::1]:443", "[::1]"),
            ("localhost:443", "localhost"),
            ("mirror.docker.io", "mirror.docker.io"),
        ] {
            assert_eq!(RegistryName::familiar(text).unwrap().as_str(), name, "{text}");
        }
        for bad in ["", "docker.io/", "http://docker.io", "a b", "docker.io:", "a..b"] {
            assert!(RegistryName::familiar(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_path_that_repeats_its_registry_is_cut_once() {
        for (registry, path, name) in [
            ("docker.io", "alpine", "docker.io/library/alpine"),
            ("docker.io", "docker.io/alpine", "docker.io/library/alpine"),
            ("docker.io", "docker.io/library/alpine", "docker.io/library/alpine"),
            ("docker.io", "index.docker.io/owner/app", "docker.io/owner/app"),
            ("docker.io", "docker.io", "docker.io/library/docker.io"),
            ("ghcr.io", "ghcr.io/owner/app", "ghcr.io/owner/app"),
            ("ghcr.io", "app", "ghcr.io/app"),
            ("registry.lan:5000", "registry.lan:5000/app", "registry.lan:5000/app"),
            ("registry.lan", "registry.lan/registry.lan/app", "registry.lan/registry.lan/app"),
            // A mirror's own repository that has the name of what it mirrors, and names that only begin alike.
            ("mirror.lan", "docker.io/library/alpine", "mirror.lan/docker.io/library/alpine"),
            ("ghcr.io", "ghcr.iox/app", "ghcr.io/ghcr.iox/app"),
            ("ghcr.io", "owner/ghcr.io/app", "ghcr.io/owner/ghcr.io/app"),
            ("cache", "cache/app", "cache/cache/app"),
        ] {
            let found = Repository::familiar_beside(registry.parse().unwrap(), path).unwrap();
            assert_eq!(found.to_string(), name, "{path} of {registry}");
        }
        for bad in ["docker.io/", "docker.io/../x", "/alpine", "Alpine"] {
            assert!(Repository::familiar_beside("docker.io".parse().unwrap(), bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn patterns_spell_familiar_names_out() {
        for (pattern, meant) in [
            ("alpine:3.20", "docker.io/library/alpine:3.20"),
            ("alpine:*", "docker.io/library/alpine:*"),
            ("alpine", "docker.io/library/alpine:latest"),
            ("docker://owner/app:v1", "docker.io/owner/app:v1"),
            ("index.docker.io/library/*:1.*", "docker.io/library/*:1.*"),
            ("GHCR.io/owner/*", "ghcr.io/owner/*"),
            ("registry.lan:5000/app:v1", "registry.lan:5000/app:v1"),
            ("docker.io/library/*:1.*", "docker.io/library/*:1.*"),
            ("*/app:v1", "*/app:v1"),
            ("*", "*"),
            ("Not A Name", "Not A Name"),
        ] {
            assert_eq!(familiar_pattern(pattern, true), meant, "{pattern}");
        }
        for (pattern, meant) in [
            ("alpine", "docker.io/library/alpine"),
            ("docker.io/alpine", "docker.io/library/alpine"),
            ("registry.lan:5000/app", "registry.lan:5000/app"),
            ("ghcr.io/owner/app", "ghcr.io/owner/app"),
            ("owner/*", "owner/*"),
            ("docker.io*", "docker.io*"),
            ("*", "*"),
        ] {
            assert_eq!(familiar_pattern(pattern, false), meant, "{pattern}");
        }
    }
}
