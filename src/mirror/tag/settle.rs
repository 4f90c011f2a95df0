//! Settling: when content arrives, the tags that wait for it may have become complete.

use super::super::context::{Arrivals, Context};
use super::table::TagTable;
use crate::budget;
use crate::oci::{Repository, Tag};
use crate::store::{Observation, StoreError, TagRecord, TagVersion};
use std::sync::Arc;

/// Listens for new content and moves the *complete* pointers.
pub(in crate::mirror) struct Settler {
    context: Arc<Context>,
    table: Arc<TagTable>,
}

impl Settler {
    pub(in crate::mirror) fn new(context: Arc<Context>, table: Arc<TagTable>) -> Settler {
        Settler { context, table }
    }

    /// Moves the tag's *complete* pointer if the version that upstream named last is complete.
    ///
    /// # Errors
    /// The store's.
    pub(super) fn settle(
        &self,
        repository: &Repository,
        tag: &Tag,
        record: &TagRecord,
    ) -> Result<(), StoreError> {
        let Some(seen) = awaited(record) else { return Ok(()) };
        let complete = self.context.closure(repository, &seen.digest)?.is_complete();
        if complete && self.context.store.tag_complete(repository, tag, &seen.digest)? {
            log::info!("{repository}:{tag} is complete at {}", seen.digest);
        }
        Ok(())
    }

    fn settle_all(&self, repository: &Repository) -> Result<(), StoreError> {
        let tags = self.context.store.tags(repository, None, budget::PENDING_TAGS_MAX)?;
        tags.iter().try_for_each(|(tag, record)| self.settle(repository, tag, record))
    }

    /// Records the claims whose content is now complete as versions of their tags.
    pub(super) fn settle_claims(&self, repository: &Repository) {
        for (tag, claim) in self.table.claims(repository) {
            let noted = self.context.closure(repository, &claim.digest).and_then(|found| {
                if !found.is_complete() {
                    return Ok(false);
                }
                let store = &self.context.store;
                let offered = Observation::peer(claim.digest.clone());
                store.tag_offered(repository, &tag, &offered, claim.unix).map(|()| true)
            });
            match noted {
                Ok(true) => {
                    let (digest, peer) = (&claim.digest, claim.peer);
                    log::info!("{repository}:{tag} is complete at {digest}, as peer {peer} named it");
                    self.table.forget_claim(&(repository.clone(), tag));
                }
                Ok(false) | Err(StoreError::Rebuilding) => {}
                Err(problem) => {
                    let peer = claim.peer;
                    log::warn!("peer {peer}'s version of {repository}:{tag} could not be saved: {problem}");
                }
            }
        }
    }
}

/// The version that upstream named last, if it is not known to be complete.
fn awaited(record: &TagRecord) -> Option<&TagVersion> {
    let known = |seen: &&TagVersion| {
        let complete = record.complete.as_ref();
        complete.is_some_and(|version| version.digest == seen.digest && !version.is_from_peer())
    };
    record.seen.as_ref().filter(|seen| !known(seen))
}

impl Arrivals for Settler {
    fn arrived(&self, repository: &Repository) {
        self.settle_claims(repository);
        if let Err(problem) = self.settle_all(repository) {
            log::warn!("the complete tags of {repository} could not be saved: {problem}");
        }
    }
}
