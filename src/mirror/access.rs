//! Access: the one answer to "may this client see this content through this repository?".
//!
//! Content that was fetched with credentials is private. It is served only through a repository whose upstream is known
//! to hold it, because a manifest of another repository can name any digest, and an upstream can claim to hold any. To
//! another registry only its bytes prove that, within one registry its answer for the repository does. Nothing but bytes
//! that came without credentials makes private content public. What may not be seen is answered like what is absent, and
//! so is all that is derived from it. If the repository is private, the client must have logged in. Other boards get public
//! content only.

use super::context::Context;
use crate::auth::{AccessClass, Identity, may_read};
use crate::kit::Kit;
use crate::oci::{Digest, RegistryName, Repository};
use crate::store::{Blob, StoreError};
use std::sync::Arc;

/// Who asks for content.
#[derive(Debug, Clone, Copy)]
pub enum Viewer<'a> {
    /// A client of the mirror.
    Client(&'a Identity),
    /// An anonymous reader: for a list that names all registries.
    Anybody,
    /// Another board of the kit.
    Board,
}

/// Whether a viewer may see something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Yes.
    Granted,
    /// Only after a login.
    LoginNeeded,
    /// No, and the answer does not reveal whether it exists.
    Hidden,
}

impl Context {
    /// The access class of content from a registry.
    pub(super) fn class_of(&self, registry: &RegistryName) -> AccessClass {
        let private = self.upstreams.find(registry).is_some_and(|upstream| upstream.is_private());
        AccessClass::of_upstream(private)
    }

    /// Whether `viewer` may see the repositories of a registry.
    pub(super) fn access(&self, registry: &RegistryName, viewer: Viewer<'_>) -> Access {
        match (self.class_of(registry), viewer) {
            (class, Viewer::Client(identity)) if may_read(identity, class) => Access::Granted,
            (_, Viewer::Client(_)) => Access::LoginNeeded,
            (AccessClass::Public, Viewer::Anybody | Viewer::Board) => Access::Granted,
            (_, Viewer::Anybody | Viewer::Board) => Access::Hidden,
        }
    }

    /// The peers that can stand in for an upstream. `None` for private registries: their content is never asked of peers.
    pub(super) fn live_kit(&self, registry: &RegistryName) -> Option<&Arc<Kit>> {
        let shared = self.access(registry, Viewer::Board) == Access::Granted;
        self.kit.as_ref().filter(|kit| shared && kit.has_live_peer())
    }

    /// Whether `blob`, which is on the disk, may be served through a repository; else only bytes or, within one registry,
    /// an answer of its upstream can show that.
    pub(super) fn holds(
        &self,
        repository: &Repository,
        digest: &Digest,
        blob: &Blob,
    ) -> Result<bool, StoreError> {
        let class = self.class_of(&repository.registry);
        self.store.may_serve(repository, class, digest, blob.private)
    }

    /// Whether content that is here may be seen through a repository. It may be absent as well.
    pub(super) fn sees(&self, repository: &Repository, digest: &Digest) -> Result<bool, StoreError> {
        let class = self.class_of(&repository.registry);
        Ok(self.store.size_through(repository, class, digest)?.is_some())
    }

    /// Whether a repository of this registry, which needs credentials, is known to hold private content: then the answer of
    /// the registry for another of its repositories is enough. To another registry only bytes prove possession.
    pub(super) fn held_in_registry(
        &self,
        registry: &RegistryName,
        digest: &Digest,
    ) -> Result<bool, StoreError> {
        if self.class_of(registry) == AccessClass::Public {
            return Ok(false);
        }
        match self.store.links_to(digest) {
            Err(problem) if problem.is_without_index() => Ok(false),
            links => Ok(links?.iter().any(|(name, link)| name.registry == *registry && link.held)),
        }
    }

    /// Whether what is known of a repository is hidden: credentials have fetched it that the configuration does not have
    /// any more, and upstream has sent nothing of it to everybody since.
    pub(super) fn is_hidden(&self, repository: &Repository) -> Result<bool, StoreError> {
        if self.class_of(&repository.registry) != AccessClass::Public {
            return Ok(false);
        }
        match self.store.repository_class(repository)? {
            Some(class) => Ok(class == AccessClass::Private),
            // 0.1.0 wrote no class.
            None => {
                for manifest in self.store.manifests(repository)? {
                    if self.store.open_blob(&manifest.digest)?.is_some_and(|blob| blob.private) {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }

    /// All bytes of content have come from the upstream of a repository, and their hash is right. If it is private here,
    /// it may be served through that repository from now on.
    pub(super) fn proven(&self, repository: &Repository, digest: &Digest) -> Result<(), StoreError> {
        if !self.store.open_blob(digest)?.is_some_and(|blob| blob.private) {
            return Ok(());
        }
        match self.class_of(&repository.registry) {
            AccessClass::Public => self.store.make_public(digest),
            AccessClass::Private | AccessClass::Unproven => self.store.hold(repository, digest),
        }
    }
}
