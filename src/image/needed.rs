//! What has to be here of an index so that it would run, and which versions would run in place of another. Failure is the
//! store's.
//!
//! - A runtime takes the image that suits its platform best, so only that counts: for each wanted platform the best of those
//!   that run on it. If no image says that it runs here, any of them will do.
//! - What goes with images - attestations, signatures, other artifacts - is never needed beside one, nor is what this version
//!   does not know. In an index without images any of them will do.
//! - Content that is no manifest is all needed where no manifest is named: a build cache is an index of its layers. Layers
//!   are needed in any case.

use super::closure::{Closures, Named};
use crate::budget;
use crate::oci::{Descriptor, Digest, Kind, Platform, Repository};
use crate::store::StoreError;
use serde::Deserialize;

/// The children of an index that it needs.
pub(super) struct Needed<'i> {
    /// One of these manifests, the best match first.
    pub(super) any: Vec<&'i Descriptor>,
    /// All of this content.
    pub(super) all: Vec<&'i Descriptor>,
}

/// What an index needs for one of these platforms.
pub(super) fn needed<'i>(index: &'i Named, platforms: &[Platform]) -> Needed<'i> {
    let (manifests, contents): (Vec<&Descriptor>, Vec<&Descriptor>) =
        index.children.iter().partition(|child| child.is_manifest());
    let all = contents.into_iter().filter(|content| manifests.is_empty() || content.is_layer).collect();
    let mut images: Vec<&Descriptor> = manifests.iter().copied().filter(|child| !child.aside).collect();
    if images.is_empty() {
        images = manifests;
    }
    let suits = |platform: &Platform, child: &Descriptor| match &child.platform {
        Some(offered) => platform.preference(offered),
        None => Some(0),
    };
    let mut any: Vec<(u8, &Descriptor)> = Vec::new();
    for platform in platforms {
        let best = images.iter().filter_map(|child| suits(platform, child)).max();
        for child in images.iter().filter(|child| best.is_some() && suits(platform, child) == best) {
            if !any.iter().any(|(_, known)| std::ptr::eq(*known, *child)) {
                any.push((best.unwrap_or_default(), child));
            }
        }
    }
    // The best match first, so that of equally incomplete ones the right one is named as missing.
    any.sort_by_key(|(preference, _)| std::cmp::Reverse(*preference));
    let any = if any.is_empty() { images } else { any.into_iter().map(|(_, child)| child).collect() };
    Needed { any, all }
}

/// What an image's config says that it runs on (image-spec, config.md); other documents say nothing.
pub(super) fn stated_platform(config: &[u8]) -> Option<Platform> {
    #[derive(Deserialize)]
    struct ConfigPlatform {
        os: String,
        architecture: String,
        #[serde(default)]
        variant: String,
    }
    let of: ConfigPlatform = serde_json::from_slice(config).ok()?;
    Some(Platform::new(&of.os, &of.architecture, &of.variant))
}

impl Closures<'_> {
    /// Whether a version of a repository is a container image that runs on a wanted platform, and says so: it may stand in
    /// for another one.
    ///
    /// # Errors
    /// A manifest or config cannot be read.
    pub fn runs_here(&self, repository: &Repository, root: &Digest) -> Result<bool, StoreError> {
        self.runs(repository, root, None, 0)
    }

    /// `stated`: what an index says that it runs on.
    fn runs(
        &self,
        repository: &Repository,
        digest: &Digest,
        stated: Option<&Platform>,
        depth: usize,
    ) -> Result<bool, StoreError> {
        if depth > budget::INDEX_DEPTH_MAX || !self.summary(repository, digest)?.complete {
            return Ok(false);
        }
        let runs = |offered: &Platform| self.platforms.iter().any(|wanted| wanted.runs(offered));
        let Some(named) = self.named(digest, None)? else { return Ok(false) };
        if named.kind == Some(Kind::Index) {
            for child in needed(&named, self.platforms).any {
                if !child.aside && self.runs(repository, &child.digest, child.platform.as_ref(), depth + 1)? {
                    return Ok(true);
                }
            }
            return Ok(false);
        }
        if !named.is_container_image {
            return Ok(false);
        }
        match (stated, named.children.first()) {
            (Some(stated), _) => Ok(runs(stated)),
            (None, Some(config)) => {
                let config = self.store.with_document(&config.digest, stated_platform)?.flatten();
                Ok(config.is_some_and(|stated| runs(&stated)))
            }
            (None, None) => Ok(false),
        }
    }
}
