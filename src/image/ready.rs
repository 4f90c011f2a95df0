//! Whether an image would start with every link down: what would be answered for it, and what of that is missing for a
//! platform.
//!
//! The version is chosen by the same [`decide`] as for a request. Nothing here changes anything; failure is the store's.

use super::closure::{Closure, Closures};
use super::needed::stated_platform;
use super::walk::{each_repository, each_tag, here, served};
use crate::config::Config;
use crate::decide::{self, Verdict};
use crate::oci::{Digest, Kind, Platform, Reference};
use crate::store::{Store, StoreError, TagRecord};

/// The rule by which a digest is answered: it has one version.
const DIGEST: &str = "digest";

/// An image that the owner wants to start offline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedImage {
    /// Its name.
    pub image: Reference,
    /// `[warm]` lists it.
    pub warm: bool,
    /// Its tag is pinned.
    pub pinned: bool,
}

/// What `[warm]` lists, in its order, and then what else is pinned.
///
/// # Errors
/// The index cannot be read.
pub fn wanted_images(store: &Store, config: &Config) -> Result<Vec<WantedImage>, StoreError> {
    let mut wanted: Vec<WantedImage> = Vec::new();
    for image in config.warm.iter().flat_map(|warm| &warm.images) {
        if !wanted.iter().any(|known| known.image == *image) {
            wanted.push(WantedImage { image: image.clone(), warm: true, pinned: false });
        }
    }
    let listed = wanted.len();
    each_repository(store, |repository| {
        each_tag(store, repository, |tag, record| {
            if !record.pinned {
                return Ok(());
            }
            let image = Reference { repository: repository.clone(), tag: Some(tag.clone()), digest: None };
            match wanted[..listed].iter_mut().find(|known| known.image == image) {
                Some(known) => known.pinned = true,
                None => wanted.push(WantedImage { image, warm: false, pinned: true }),
            }
            Ok::<_, StoreError>(())
        })
    })?;
    Ok(wanted)
}

/// What would be answered for an image with every link down, and by which rule.
///
/// # Errors
/// A manifest or the index cannot be read.
pub fn offline(
    closures: &Closures<'_>,
    config: &Config,
    image: &Reference,
    record: Option<&TagRecord>,
) -> Result<Option<(Digest, &'static str)>, StoreError> {
    if let Some(digest) = &image.digest {
        let complete = closures.of(&image.repository, digest)?.is_complete();
        return Ok(complete.then(|| (digest.clone(), DIGEST)));
    }
    let Some(tag) = &image.tag else { return Ok(None) };
    let complete = record.map(|record| served(closures, &image.repository, record)).transpose()?.flatten();
    let here = here(record, complete.map(|(version, _)| version), None, false);
    Ok(match decide::offline(config.tags.policy(&image.repository, tag), &here, None) {
        Verdict::Serve(tier, digest) => Some((digest.clone(), tier.as_str())),
        Verdict::PassOn | Verdict::WaitForIndex | Verdict::Nothing => None,
    })
}

/// How an image would start on a platform with every link down.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readiness {
    /// The version that would be answered and the rule, or none.
    pub offline: Option<(Digest, &'static str)>,
    /// The version that was looked at: that one, else the newest that is known.
    pub looked_at: Option<Digest>,
    /// What that version needs.
    pub closure: Closure,
    /// What it runs on, if that is stated and the platform is not among it.
    pub others: Vec<Platform>,
}

impl Readiness {
    /// Looks at an image. `any`: closures for the platforms of the configuration, by which the version is chosen; `own`:
    /// for `platform` alone.
    ///
    /// # Errors
    /// A manifest or the index cannot be read.
    pub fn of(
        any: &Closures<'_>,
        own: &Closures<'_>,
        config: &Config,
        image: &Reference,
        platform: &Platform,
    ) -> Result<Readiness, StoreError> {
        let record = match &image.tag {
            Some(tag) => own.store.tag(&image.repository, tag)?,
            None => None,
        };
        let offline = offline(any, config, image, record.as_ref())?;
        let newest = || record.as_ref()?.candidates().first().map(|version| version.digest.clone());
        let chosen = offline.as_ref().map(|(digest, _)| digest).or(image.digest.as_ref());
        let Some(digest) = chosen.cloned().or_else(newest) else { return Ok(Readiness::default()) };
        let closure = own.of(&image.repository, &digest)?;
        let others = if closure.is_complete() { others(own, &digest, platform)? } else { Vec::new() };
        Ok(Readiness { offline, looked_at: Some(digest), closure, others })
    }

    /// Whether it would start, as far as can be known without running it.
    pub fn would_start(&self) -> bool {
        self.offline.is_some() && self.closure.is_complete() && self.others.is_empty()
    }
}

/// What a version runs on, if it says so and `platform` is not among it.
fn others(closures: &Closures<'_>, root: &Digest, platform: &Platform) -> Result<Vec<Platform>, StoreError> {
    let Some(named) = closures.named(root, None)? else { return Ok(Vec::new()) };
    let stated: Vec<Platform> = match named.kind {
        Some(Kind::Index) => {
            let images = || named.children.iter().filter(|child| !child.aside);
            // One that states none may be for any.
            if images().any(|child| child.is_manifest() && child.platform.is_none()) {
                return Ok(Vec::new());
            }
            images().filter_map(|child| child.platform.clone()).collect()
        }
        // An image's first child is its configuration.
        Some(Kind::Image) => match named.children.first() {
            Some(config) => {
                closures.store.with_document(&config.digest, stated_platform)?.flatten().into_iter().collect()
            }
            None => Vec::new(),
        },
        None => Vec::new(),
    };
    let fits = stated.iter().any(|offered| platform.runs(offered));
    Ok(if fits { Vec::new() } else { stated })
}
