//! What this board itself knows of a tag.

use super::super::content::SmallManifest;
use crate::budget;
use crate::decide::Here;
use crate::image;
use crate::store::{TagRecord, TagVersion};

/// What the store knows of a tag, read at one time.
#[derive(Default)]
pub(super) struct LocalTag {
    pub(super) record: Option<TagRecord>,
    /// The best complete version.
    pub(super) complete: Option<TagVersion>,
    /// The manifest of what the owner went back to is here.
    pub(super) rollback_is_here: bool,
    /// Its manifest, if that is public and small.
    pub(super) small: Option<SmallManifest>,
    /// What the nearest version lacks, if none is complete.
    pub(super) missing: Option<String>,
    /// It was fetched with credentials that the configuration does not have any more, so that a refusal says nothing of it.
    pub(super) lost_login: bool,
    /// Why nothing is known: there is no index, and none can be built.
    pub(super) unknown: Option<String>,
}

impl LocalTag {
    /// As decisions see it. `named_at`: see [`image::here`].
    pub(super) fn here(&self, named_at: Option<u64>) -> Here<'_> {
        let here = image::here(self.record.as_ref(), self.complete.as_ref(), named_at, self.rollback_is_here);
        Here { is_known: self.unknown.is_none(), ..here }
    }

    /// Whether the complete version is the one that upstream named last.
    pub(super) fn complete_is_seen(&self) -> bool {
        let seen = self.record.as_ref().and_then(|record| record.seen.as_ref());
        seen.zip(self.complete.as_ref()).is_some_and(|(seen, complete)| seen.digest == complete.digest)
    }

    /// Its approximate cost in memory.
    pub(super) fn cost(&self) -> usize {
        let versions = self.record.as_ref().map_or(0, |record| record.history.len() + 2) + 1;
        let small =
            self.small.as_ref().map_or(0, |small| budget::SMALL_MANIFEST_COST_BYTES + small.bytes.len());
        versions * budget::TAG_VERSION_COST_BYTES + small
    }
}
