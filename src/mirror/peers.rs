//! The answers to peers: public content from this board's disk (rule 8). Nothing in here asks an upstream or a peer.

use super::access::{Access, View, Viewer};
use super::content::{ManifestContent, Manifests};
use super::context::Context;
use super::tag::{TagTable, offer};
use crate::kit;
use crate::oci::{Digest, Platform, Repository, Tag};
use crate::store::{Blob, StoreError};
use std::fs::File;
use std::sync::{Arc, Weak};

/// The public part of the store, for peers.
pub(super) struct PublicContent {
    context: Weak<Context>,
    manifests: Weak<Manifests>,
    table: Arc<TagTable>,
}

impl PublicContent {
    pub(super) fn new(
        context: &Arc<Context>,
        manifests: &Arc<Manifests>,
        table: &Arc<TagTable>,
    ) -> PublicContent {
        PublicContent {
            context: Arc::downgrade(context),
            manifests: Arc::downgrade(manifests),
            table: Arc::clone(table),
        }
    }

    fn look<T>(
        &self,
        repository: &Repository,
        look: impl FnOnce(&Context) -> Result<Option<T>, StoreError>,
    ) -> Option<T> {
        let context = self.context.upgrade()?;
        if context.upstreams.find(&repository.registry).is_none()
            || context.access(&repository.registry, Viewer::Board) != Access::Granted
        {
            return None;
        }
        look(&context).unwrap_or_else(|problem| {
            log::debug!("a peer's question about {repository} was not answered: {problem}");
            None
        })
    }
}

impl kit::PeerContent for PublicContent {
    fn tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        platforms: &[Platform],
    ) -> Option<(Digest, Option<u64>)> {
        self.look(repository, |context| offer(context, &self.table, repository, tag, platforms))
    }

    fn manifest(&self, repository: &Repository, digest: &Digest) -> Option<(String, File, u64)> {
        let manifests = self.manifests.upgrade()?;
        self.look(repository, |context| {
            let found = match manifests.read(&View::of_everybody(repository), digest, None)? {
                Some(ManifestContent::Stored { media_type, blob }) => Some((media_type, Some(blob))),
                Some(ManifestContent::Small(small)) => {
                    let media_type = String::from_utf8_lossy(&small.media_type).into_owned();
                    Some((media_type, context.store.open_blob(digest)?))
                }
                Some(ManifestContent::NotStored { .. }) | None => None,
            };
            let public = |(media_type, blob): (String, Option<Blob>)| {
                let blob = blob.filter(Blob::is_public)?;
                Some((media_type, blob.file, blob.size))
            };
            Ok(found.and_then(public))
        })
    }

    fn blob(&self, repository: &Repository, digest: &Digest) -> Option<(File, u64)> {
        self.look(repository, |context| {
            let blob = context.store.open_blob(digest)?.filter(Blob::is_public);
            Ok(blob.map(|blob| (blob.file, blob.size)))
        })
    }
}
