//! The part of the report that reads every image: how many are complete, and which would be removed first.
//!
//! It is reused while the store's [`Stamp`] and the server's [`Busy`] stay the same. Uses of images do not change the
//! stamp, so it is reused for [`budget::IMAGE_REPORT_AGE_MAX`] at most. Failure is the store's; then nothing is kept.

use crate::budget;
use crate::config::Config;
use crate::image::{
    Busy, Catalogue, Closures, Otherwise, Readiness, each_repository, each_tag, served, wanted_images,
};
use crate::store::{Stamp, Store, StoreError};
use crate::sync::Mutex;
use std::time::Instant;

/// What images there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageReport {
    /// Tags of which a version is complete.
    pub complete: u64,
    /// Tags without a complete version.
    pub partial: u64,
    /// Images that are pinned or that `[warm]` lists.
    pub wanted: u64,
    /// Those of them that would not start with every link down.
    pub wanted_absent: u64,
    /// Verified blobs.
    pub blobs: u64,
    /// What is removed first when room is needed, and the bytes that it frees.
    pub next_to_go: Option<(String, u64)>,
}

/// The last report, and the state that it is valid for.
#[derive(Default)]
pub struct ImageCache(Mutex<Option<CachedReport>>);

struct CachedReport {
    stamp: Stamp,
    busy: Busy,
    at: Instant,
    report: ImageReport,
}

impl ImageCache {
    /// The report of now. `busy`: what must not be removed.
    ///
    /// # Errors
    /// The disk cannot be listed, or the index or a manifest cannot be read.
    pub fn report(&self, store: &Store, config: &Config, busy: Busy) -> Result<ImageReport, StoreError> {
        // Locked while images are read, so that concurrent callers share one report.
        let mut cached = self.0.lock();
        let stamp = store.stamp();
        let holds = |cached: &&CachedReport| {
            Some(cached.stamp) == stamp
                && cached.busy == busy
                && cached.at.elapsed() < budget::IMAGE_REPORT_AGE_MAX
        };
        if let Some(cached) = cached.as_ref().filter(holds) {
            return Ok(cached.report.clone());
        }
        let report = ImageReport::take(store, config, &busy)?;
        *cached = stamp.map(|stamp| CachedReport { stamp, busy, at: Instant::now(), report: report.clone() });
        Ok(report)
    }
}

impl ImageReport {
    fn take(store: &Store, config: &Config, busy: &Busy) -> Result<ImageReport, StoreError> {
        let closures = Closures::new(store, config);
        let (mut complete, mut partial) = (0, 0);
        each_repository(store, |repository| {
            each_tag(store, repository, |_, record| {
                match served(&closures, repository, record)? {
                    Some(_) => complete += 1,
                    None => partial += 1,
                }
                Ok::<_, StoreError>(())
            })
        })?;
        let (wanted, wanted_absent) = wanted(&closures, store, config)?;
        let catalogue = Catalogue::take(store, config, busy)?;
        let victims = catalogue.choose(1, Otherwise::Nothing);
        let next_to_go = victims.first().map(|first| (first.description(), catalogue.frees(&victims)));
        Ok(ImageReport { complete, partial, wanted, wanted_absent, blobs: catalogue.blobs(), next_to_go })
    }
}

/// How many images are wanted, and how many of them would not start on each wanted platform.
fn wanted(closures: &Closures<'_>, store: &Store, config: &Config) -> Result<(u64, u64), StoreError> {
    let mut images: Vec<_> = wanted_images(store, config)?.into_iter().map(|image| (image, true)).collect();
    for platform in &config.platforms {
        let own = Closures::for_platforms(store, config, std::slice::from_ref(platform));
        for (wanted, ready) in &mut images {
            *ready &= Readiness::of(closures, &own, config, &wanted.image, platform)?.would_start();
        }
    }
    Ok((images.len() as u64, images.iter().filter(|(_, ready)| !ready).count() as u64))
}
