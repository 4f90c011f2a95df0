//! What the board can say of a tag, and small manifests, kept in memory until the store changes.
//!
//! A node asks for the same tags over and over: kubelet for each pod that starts, monitors, boards that share. Whether
//! a version is whole takes a look at every blob of it; here that look is taken once for each change of the store.
//!
//! Invariants. A fact is given out only while the store's [`Stamp`] is the one that was taken before it was read, so it
//! is as right as if it were read now. Content that needs a login is never kept. What all facts cost in memory is bounded
//! by [`budget::FACTS_BYTES_MAX`]; when that is reached they are forgotten and read anew.

use super::Mirror;
use super::content::{Content, Served};
use super::refusal::Refusal;
use super::resolve::Local;
use crate::budget;
use crate::oci::{Digest, Repository, Tag};
use crate::store::{Stamp, StoreError};
use crate::sync::Mutex;
use bytes::Bytes;
use std::collections::HashMap;
use std::hash::Hash;
use std::io::Read;
use std::sync::Arc;
use std::time::Instant;

/// A manifest with its bytes at hand, which hash to its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmallManifest {
    /// The media type to serve it with.
    pub media_type: Bytes,
    /// Its digest in quotation marks ([`Digest::quoted`]).
    pub quoted: Bytes,
    /// Its content.
    pub bytes: Bytes,
}

/// What is known of a tag.
#[derive(Clone)]
pub(super) struct TagFact {
    pub(super) local: Arc<Local>,
    /// When it was last verified with its upstream, in this process.
    pub(super) verified: Option<Instant>,
}

/// What is known.
#[derive(Default)]
pub(super) struct Facts(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// What everything in here holds for.
    stamp: Option<Stamp>,
    tags: HashMap<(Repository, Tag), TagFact>,
    manifests: HashMap<(Repository, Digest), SmallManifest>,
    /// What it all costs.
    bytes: usize,
}

impl Known {
    /// Forgets everything if it does not hold at `stamp`.
    fn hold(&mut self, stamp: Stamp) -> &mut Known {
        if self.stamp != Some(stamp) {
            *self = Known { stamp: Some(stamp), ..Known::default() };
        }
        self
    }
}

impl Facts {
    /// A fact that holds at `stamp`.
    fn find<K: Hash + Eq, V: Clone>(
        &self,
        stamp: Stamp,
        key: &K,
        among: impl FnOnce(&Known) -> &HashMap<K, V>,
    ) -> Option<V> {
        let mut known = self.0.lock();
        among(known.hold(stamp)).get(key).cloned()
    }

    /// Keeps a fact that was read after `stamp` was taken and costs so many bytes.
    fn keep(&self, stamp: Stamp, bytes: usize, put: impl FnOnce(&mut Known)) {
        let mut known = self.0.lock();
        // Somebody may have read newer facts meanwhile.
        if known.stamp != Some(stamp) {
            return;
        }
        if known.bytes.saturating_add(bytes) > budget::FACTS_BYTES_MAX {
            *known = Known { stamp: Some(stamp), ..Known::default() };
        }
        known.bytes += bytes;
        put(&mut known);
    }

    /// Notes that a tag has been verified with its upstream.
    pub(super) fn verified(&self, repository: &Repository, tag: &Tag, at: Instant) {
        let mut known = self.0.lock();
        if let Some(fact) = known.tags.get_mut(&(repository.clone(), tag.clone())) {
            fact.verified = Some(at);
        }
    }
}

impl Mirror {
    /// What the board itself can say of a tag.
    pub(super) async fn local(
        self: &Arc<Self>,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<TagFact, Refusal> {
        let key = (repository.clone(), tag.clone());
        let stamp = self.store.stamp();
        if let Some(fact) = stamp.and_then(|stamp| self.facts.find(stamp, &key, |known| &known.tags)) {
            return Ok(fact);
        }
        let local = Arc::new(self.read_local(repository, tag).await?);
        // Verified again before the fact is kept, it seems older than it is: then upstream is asked once more.
        let fact = TagFact { local, verified: self.verified.at(repository, tag) };
        if let Some(stamp) = stamp.filter(|_| fact.local.is_known()) {
            let bytes = budget::FACT_BYTES + fact.local.bytes();
            let kept = fact.clone();
            self.facts.keep(stamp, bytes, |known| {
                // Clients come back for it by digest, and so does an answer that had to ask upstream.
                if let Some((digest, manifest)) = kept.local.manifest() {
                    known.manifests.insert((key.0.clone(), digest.clone()), manifest.clone());
                }
                known.tags.insert(key, kept);
            });
        }
        Ok(fact)
    }

    /// A manifest that is here, public and no larger than [`budget::SMALL_MANIFEST_BYTES_MAX`].
    pub async fn small_manifest(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
    ) -> Option<SmallManifest> {
        let key = (repository.clone(), digest.clone());
        let stamp = self.store.stamp()?;
        let mut found = self.facts.find(stamp, &key, |known| &known.manifests);
        if found.is_none() {
            let read = self.blocking(move |mirror| {
                let found = mirror.small_manifest_now(&key.0, &key.1)?;
                if let Some(manifest) = found.clone() {
                    let bytes = budget::FACT_BYTES + manifest.bytes.len();
                    mirror.facts.keep(stamp, bytes, |known| drop(known.manifests.insert(key, manifest)));
                }
                Ok(found)
            });
            // What went wrong is found out again, and said, by who takes the long way.
            found = read.await.ok()?;
        }
        if found.is_some() {
            self.store.touch(digest);
        }
        found
    }

    pub(super) fn small_manifest_now(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<SmallManifest>, StoreError> {
        let Some(Served { media_type, content: Content::Whole(blob), .. }) =
            self.manifest_now(repository, digest)?
        else {
            return Ok(None);
        };
        if blob.private || blob.size > budget::SMALL_MANIFEST_BYTES_MAX {
            return Ok(None);
        }
        let mut bytes = Vec::with_capacity(usize::try_from(blob.size).unwrap_or(0));
        let read = blob.file.take(budget::SMALL_MANIFEST_BYTES_MAX).read_to_end(&mut bytes);
        // It is read once for many answers, so that looking at its hash costs nothing.
        if read.is_err() || Digest::of(digest.algorithm(), &bytes) != *digest {
            return Ok(None);
        }
        let (media_type, quoted) = (media_type.into(), digest.quoted().into());
        Ok(Some(SmallManifest { media_type, quoted, bytes: bytes.into() }))
    }
}
