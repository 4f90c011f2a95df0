//! Repair: corrupt blobs are refetched if a repository still needs them and its upstream can be reached.

use super::super::context::Context;
use super::super::fill::FillPool;
use super::super::progress::Demand;
use super::manifest::Manifests;
use crate::budget;
use crate::image::Closures;
use crate::oci::{Digest, Repository};
use crate::store::{ContentLink, StoreError};
use crate::sync::Mutex;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Corrupt blobs, and how often a refetch was due.
pub(in crate::mirror) struct Repairs {
    context: Arc<Context>,
    manifests: Arc<Manifests>,
    fills: Arc<FillPool>,
    tried: Mutex<HashMap<Digest, u32>>,
}

impl Repairs {
    pub(in crate::mirror) fn new(
        context: Arc<Context>,
        manifests: Arc<Manifests>,
        fills: Arc<FillPool>,
    ) -> Repairs {
        Repairs { context, manifests, fills, tried: Mutex::default() }
    }

    /// An upstream is back: all corrupt blobs are tried at the next turn.
    pub(in crate::mirror) fn retry(&self) {
        self.tried.lock().values_mut().for_each(|tried| *tried = 1);
    }

    /// Begins to refetch the blobs in quarantine, without waiting for them.
    pub(in crate::mirror) fn refetch(&self) {
        let mut known = self.tried.lock();
        let corrupt: HashSet<Digest> = self.context.store.quarantined().into_iter().collect();
        known.retain(|digest, _| corrupt.contains(digest));
        for digest in corrupt {
            let tried = known.entry(digest.clone()).or_default();
            // It is tried for as long as it is needed, with growing pauses, and at once when an upstream is back.
            *tried = tried.saturating_add(1);
            if !tried.is_power_of_two() {
                continue;
            }
            match self.refetch_one(&digest, *tried) {
                Ok(()) => {}
                Err(StoreError::Rebuilding) => return,
                Err(problem) => log::warn!("what needs {digest} cannot be looked up: {problem}"),
            }
        }
    }

    /// `tried`: how often it was due.
    fn refetch_one(&self, digest: &Digest, tried: u32) -> Result<(), StoreError> {
        let links = self.context.store.links_to(digest)?;
        let images = if tried == 1 { self.images_with(digest, &links)? } else { Vec::new() };
        if !images.is_empty() {
            let images = images.join(", ");
            log::error!("{digest} was corrupt on the disk; not complete without it: {images}");
        }
        if links.is_empty() {
            log::info!("{digest} was corrupt on the disk, and nothing needs it any more");
            self.context.store.forget_quarantined(digest);
            return Ok(());
        }
        let mut reachable: Vec<_> = links
            .iter()
            .filter(|(repository, _)| {
                let upstream = self.context.upstreams.find(&repository.registry);
                upstream.is_some_and(|upstream| upstream.link().is_up())
            })
            .collect();
        // Those that held it first, and another one each time: a manifest can name what its registry does not have.
        reachable.sort_by_key(|(_, link)| !link.held);
        let turn = tried.ilog2() as usize % reachable.len().max(1);
        let Some((repository, link)) = reachable.get(turn) else { return Ok(()) };
        let begun = if link.media_type.is_some() {
            self.manifests.prefetch(repository, digest)
        } else {
            let class = self.context.class_without_proof(&repository.registry);
            self.fills.begin(repository, (digest, class), link.size, Demand::Background).map(drop)
        };
        if let Err(refusal) = begun {
            log::warn!("{digest} of {repository} could not be refetched: {refusal}");
        }
        Ok(())
    }

    /// The tags that lack this content, as many as a bounded look finds.
    fn images_with(
        &self,
        digest: &Digest,
        links: &[(Repository, ContentLink)],
    ) -> Result<Vec<String>, StoreError> {
        let config = self.context.config.now();
        let closures = Closures::new(&self.context.store, &config);
        let (mut images, mut known) = (Vec::new(), HashMap::new());
        for (repository, _) in links {
            for (tag, record) in self.context.store.tags(repository, None, budget::PENDING_TAGS_MAX)? {
                for version in record.candidates() {
                    let lacks = match known.get(&(repository, version.digest.clone())) {
                        Some(lacks) => *lacks,
                        None if closures.looks() > budget::SETTLE_LOOKS_MAX => return Ok(images),
                        None => closures.of(repository, &version.digest)?.absent.contains_key(digest),
                    };
                    known.insert((repository, version.digest.clone()), lacks);
                    if lacks {
                        images.push(format!("{repository}:{tag}"));
                        break;
                    }
                }
            }
        }
        Ok(images)
    }
}
