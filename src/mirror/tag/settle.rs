//! Settling: when content arrives, the tags that wait for it may have become complete.
//!
//! A tag that is new here is written down once its manifest is here. Until then it is in the bounded table, so that names
//! whose content never comes cost nothing on the disk. Forgetting one is harmless: the next request for the tag asks again.

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
        let complete = self.context.closure(&seen.digest)?.is_complete();
        if complete && self.context.store.tag_complete(repository, tag, &seen.digest)? {
            log::info!("{repository}:{tag} is complete at {}", seen.digest);
        }
        Ok(())
    }

    /// Upstream reported the tag: notes that, now or when the manifest comes.
    ///
    /// # Errors
    /// The store's.
    pub(super) fn note(
        &self,
        repository: &Repository,
        tag: &Tag,
        seen: &Observation,
    ) -> Result<(), StoreError> {
        let (store, key) = (&self.context.store, (repository.clone(), tag.clone()));
        let known = store.tag(repository, tag);
        if !matches!(known, Ok(Some(_))) {
            self.table.expect(&key, seen);
            // Looked for after that: an arrival in between has found it expected.
            if known?.is_none() && !store.contains(&seen.digest) {
                return Ok(());
            }
        }
        let record = store.tag_seen(repository, tag, seen)?;
        self.table.forget_expected(&key);
        self.settle(repository, tag, &record)
    }

    /// Writes down the tags whose manifest has come.
    fn note_expected(&self, repository: &Repository) -> Result<(), StoreError> {
        for (tag, seen) in self.table.expected(repository) {
            if self.context.store.contains(&seen.digest) {
                self.context.store.tag_seen(repository, &tag, &seen)?;
                self.table.forget_expected(&(repository.clone(), tag));
            }
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
            let noted = self.context.closure(&claim.digest).and_then(|found| {
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
        if let Err(problem) = self.note_expected(repository).and_then(|()| self.settle_all(repository)) {
            log::warn!("the complete tags of {repository} could not be saved: {problem}");
        }
    }
}
