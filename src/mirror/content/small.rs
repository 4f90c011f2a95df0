//! Small public manifests, kept in memory until the store changes.
//!
//! Invariants. A manifest is served from here only while the store's stamp equals the one taken before the manifest was
//! read, so it is as correct as if read now. Private manifests are never kept. All together cost no more than
//! [`budget::SMALL_MANIFESTS_BYTES_MAX`]; beyond that all are forgotten and read again.

use crate::budget;
use crate::oci::{Digest, Repository};
use crate::store::Stamp;
use crate::sync::Mutex;
use bytes::Bytes;
use std::collections::HashMap;

/// A manifest with its verified bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmallManifest {
    /// The media type to serve it with.
    pub media_type: Bytes,
    /// Its digest in quotation marks ([`Digest::quoted`]).
    pub quoted: Bytes,
    /// Its content.
    pub bytes: Bytes,
}

impl SmallManifest {
    /// `bytes` must hash to `digest`.
    pub(super) fn new(media_type: &str, digest: &Digest, bytes: Vec<u8>) -> SmallManifest {
        let media_type = Bytes::from(media_type.to_owned());
        SmallManifest { media_type, quoted: digest.quoted().into(), bytes: bytes.into() }
    }
}

/// The small manifests that are in memory.
#[derive(Default)]
pub(super) struct SmallManifests(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    manifests: HashMap<(Repository, Digest), (Stamp, SmallManifest)>,
    bytes: usize,
}

impl SmallManifests {
    /// The manifest `key`, if it was kept with this stamp.
    pub(super) fn find(&self, stamp: Stamp, key: &(Repository, Digest)) -> Option<SmallManifest> {
        let kept = self.0.lock();
        kept.manifests.get(key).filter(|(at, _)| *at == stamp).map(|(_, manifest)| manifest.clone())
    }

    /// Keeps a manifest that was read after `stamp` was taken.
    pub(super) fn keep(&self, stamp: Stamp, key: (Repository, Digest), manifest: SmallManifest) {
        let cost = |manifest: &SmallManifest| budget::SMALL_MANIFEST_COST_BYTES + manifest.bytes.len();
        let mut kept = self.0.lock();
        if kept.bytes.saturating_add(cost(&manifest)) > budget::SMALL_MANIFESTS_BYTES_MAX {
            *kept = Kept::default();
        }
        kept.bytes += cost(&manifest);
        if let Some((_, before)) = kept.manifests.insert(key, (stamp, manifest)) {
            kept.bytes -= cost(&before);
        }
    }
}
