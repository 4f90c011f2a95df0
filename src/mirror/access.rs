//! Access: the one answer to "may this client see this content through this repository?".
//!
//! Content that was fetched with credentials is private. It is served only through a repository whose upstream is known
//! to hold it, because a manifest of another repository can name any digest. If the repository is private, the client
//! must have logged in. Other boards get public content only.

use super::context::Context;
use crate::auth::{AccessClass, Identity, may_read};
use crate::kit::Kit;
use crate::oci::{Digest, RegistryName, Repository};
use crate::store::{Blob, StoreError};
use std::net::IpAddr;
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

    /// Whether `viewer` may see a repository, or its content `digest`.
    pub(super) fn access(
        &self,
        registry: &RegistryName,
        _digest: Option<&Digest>,
        viewer: Viewer<'_>,
    ) -> Access {
        match (self.class_of(registry), viewer) {
            (class, Viewer::Client(identity)) if may_read(identity, class) => Access::Granted,
            (_, Viewer::Client(_)) => Access::LoginNeeded,
            (AccessClass::Public, Viewer::Anybody | Viewer::Board) => Access::Granted,
            (_, Viewer::Anybody | Viewer::Board) => Access::Hidden,
        }
    }

    /// Whether a client may have content: it is cached, or `access.pull` lets the client have it fetched.
    pub(super) fn may_have(&self, client: IpAddr, repository: &Repository, digest: &Digest) -> bool {
        self.config.now().may_fetch(client, repository) || self.store.contains(digest)
    }

    /// The peers that can stand in for an upstream. `None` for private registries: their content is never asked of peers.
    pub(super) fn live_kit(&self, registry: &RegistryName) -> Option<&Arc<Kit>> {
        let shared = self.access(registry, None, Viewer::Board) == Access::Granted;
        self.kit.as_ref().filter(|kit| shared && kit.has_live_peer())
    }

    /// Whether a repository is known to hold `blob`, which is on the disk; else only its upstream can tell.
    pub(super) fn holds(
        &self,
        repository: &Repository,
        digest: &Digest,
        blob: &Blob,
    ) -> Result<bool, StoreError> {
        if !blob.private {
            return Ok(true);
        }
        // This registry has no credentials now, so its clients need no login. Content that earlier credentials fetched is
        // served only after upstream has shown that it is public.
        if self.class_of(&repository.registry) == AccessClass::Public {
            return Ok(false);
        }
        Ok(self.known_link(repository, digest)?.is_some_and(|link| link.held))
    }
}
