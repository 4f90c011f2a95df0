//! Claims: the answers of peers about a tag while its upstream cannot be reached (rule 8), and this board's own answers
//! to peers.
//!
//! A claim does not move the *seen* pointer. It is used only if this board has verified nothing newer itself.

use super::super::access::{Access, View, Viewer};
use super::super::context::{Context, reach};
use super::local::LocalTag;
use super::resolve::Tags;
use super::table::TagTable;
use crate::auth::Clearance;
use crate::budget;
use crate::clock;
use crate::decide::{self, PeerClaim};
use crate::fetch::Upstream;
use crate::image::Closures;
use crate::kit::Claim;
use crate::oci::{Digest, Platform, Repository, Tag};
use crate::store::StoreError;
use std::sync::Arc;

impl Tags {
    /// When upstream last named the version that is complete here; a claim must be newer.
    pub(super) fn named_at(&self, repository: &Repository, tag: &Tag, local: &LocalTag) -> Option<u64> {
        let version = local.complete.as_ref()?;
        if !local.complete_is_seen() {
            return version.unix;
        }
        let seen = local.record.as_ref()?.seen.as_ref()?;
        self.table.named_at(&(repository.clone(), tag.clone()), seen.unix)
    }

    /// The best claim of a peer, or of an upstream that is a Larder itself, if it is better than the version that is here.
    pub(super) async fn claim(
        self: &Arc<Self>,
        upstream: &Upstream,
        repository: &Repository,
        tag: &Tag,
        local: &LocalTag,
        own: Option<Claim>,
    ) -> Option<Claim> {
        let here = local.here(self.named_at(repository, tag, local));
        // A board that keeps what the owner went back to asks nobody.
        if !decide::may_ask_peers(reach(&upstream.link()), &here, clock::trusted_unix()) {
            return None;
        }
        let mut claims = match self.context.live_kit(&repository.registry) {
            Some(kit) => kit.ask_tag(repository, tag, &self.context.config.now().platforms).await,
            None => Vec::new(),
        };
        claims.extend(own);
        let offered: Vec<PeerClaim<'_>> =
            claims.iter().map(|claim| PeerClaim { digest: &claim.digest, named_at: claim.unix }).collect();
        let ahead = budget::CLAIM_AHEAD_MAX.as_secs();
        let (at, unix) = decide::best_claim(&offered, here.complete, clock::trusted_unix(), ahead)?;
        let claim = Claim { unix, ..claims[at].clone() };
        self.table.claim(&(repository.clone(), tag.clone()), &claim);
        // Its content may already be here, because of other tags.
        let (settler, settled) =
            (Arc::clone(&self.settler), (repository.clone(), tag.clone(), claim.clone()));
        let _ = self
            .context
            .blocking(move |_| {
                settler.settle_claim(&settled.0, &settled.1, &settled.2);
                Ok(())
            })
            .await;
        Some(claim)
    }
}

/// The newest version of a tag that this board's upstream named and that is complete and public, and when upstream named
/// it. Claims of peers are not passed on: they would come back.
///
/// # Errors
/// The store's.
pub(in crate::mirror) fn offer(
    context: &Context,
    table: &TagTable,
    repository: &Repository,
    tag: &Tag,
    platforms: &[Platform],
) -> Result<Option<(Digest, Option<u64>)>, StoreError> {
    if context.access(&repository.registry, Viewer::Board) != Access::Granted {
        return Ok(None);
    }
    let store = &context.store;
    let Some(record) = store.tag(repository, tag)? else { return Ok(None) };
    if context.is_hidden(&View::of_everybody(repository))? {
        return Ok(None);
    }
    let config = context.config.now();
    let closures = Closures::for_platforms(store, &config, platforms).seen_with(Clearance::NONE);
    for version in record.seen.iter().chain(&record.complete).chain(&record.history) {
        let public = || Ok(store.open_blob(&version.digest)?.is_some_and(|blob| blob.is_public()));
        if version.is_from_peer() || !public()? {
            continue;
        }
        if closures.of(repository, &version.digest)?.is_complete() {
            // The time is known only for the digest that upstream named last; an earlier one is offered without a time.
            let last = record.seen.as_ref().filter(|seen| seen.digest == version.digest);
            let key = (repository.clone(), tag.clone());
            let unix = last.and_then(|seen| table.named_at(&key, seen.unix));
            return Ok(Some((version.digest.clone(), unix)));
        }
    }
    Ok(None)
}
