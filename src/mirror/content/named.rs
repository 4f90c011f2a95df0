//! Sizes that manifests state, for content that the index does not know of the repository: the manifest was just fetched,
//! or could not be stored, or was stored for another repository.
//!
//! Bounded; the older half is forgotten first. Forgetting an entry costs a download that is not kept.

use crate::budget;
use crate::oci::{Digest, Manifest, Repository};
use crate::sync::Mutex;
use std::collections::HashMap;

type Sizes = HashMap<(Repository, Digest), u64>;

/// The sizes.
#[derive(Default)]
pub(in crate::mirror) struct NamedBlobs(Mutex<Halves>);

#[derive(Default)]
struct Halves {
    newer: Sizes,
    older: Sizes,
}

impl NamedBlobs {
    /// A verified manifest names these for a repository.
    pub(super) fn note(&self, repository: &Repository, manifest: &Manifest) {
        let mut halves = self.0.lock();
        for child in &manifest.children {
            if halves.newer.len() >= budget::NAMED_BLOBS_MAX / 2 {
                halves.older = std::mem::take(&mut halves.newer);
            }
            halves.newer.insert((repository.clone(), child.digest.clone()), child.size);
        }
    }

    /// The size that a manifest states.
    pub(super) fn size(&self, repository: &Repository, digest: &Digest) -> Option<u64> {
        let (halves, key) = (self.0.lock(), (repository.clone(), digest.clone()));
        halves.newer.get(&key).or_else(|| halves.older.get(&key)).copied()
    }
}
