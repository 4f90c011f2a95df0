//! Who may see what: the one answer to "may this client see this content through this repository?".
//!
//! Content that was fetched with credentials is private. It is served only through a repository whose upstream was seen
//! to hold it, because a manifest elsewhere can name any digest it likes, and only to a client that has logged in where
//! the repository is private. Other boards get public content alone.

use super::context::Context;
use crate::auth::{AccessClass, Identity, may_read};
use crate::kit::Kit;
use crate::oci::{Digest, RegistryName, Repository};
use crate::store::{Blob, StoreError};
use std::sync::Arc;

/// Who wants to see something.
#[derive(Debug, Clone, Copy)]
pub enum Viewer<'a> {
    /// A client of the mirror.
    Client(&'a Identity),
    /// Anybody, whoever it is: a list that names all registries.
    Anybody,
    /// Another board of the kit.
    Board,
}

/// What a viewer is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It may see it.
    Granted,
    /// It has to log in first.
    LoginNeeded,
    /// It may not, and is not told whether it exists.
    Hidden,
}

/// Whether content that is here may be served through a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Possession {
    /// Yes.
    Proven,
    /// Only its upstream can say.
    Unproven,
}

impl Context {
    /// The class of what a repository's upstream gives.
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

    /// The peers that can be asked for what an upstream cannot give now: never for what needs credentials.
    pub(super) fn live_kit(&self, registry: &RegistryName) -> Option<&Arc<Kit>> {
        let shared = self.access(registry, None, Viewer::Board) == Access::Granted;
        self.kit.as_ref().filter(|kit| shared && kit.has_live_peer())
    }

    /// Whether a repository may have the blob `digest`, which is on the disk.
    pub(super) fn possession(
        &self,
        repository: &Repository,
        digest: &Digest,
        blob: &Blob,
    ) -> Result<Possession, StoreError> {
        if !blob.private {
            return Ok(Possession::Proven);
        }
        // Without credentials nobody has to log in here, so what they once fetched has to be seen in public first.
        if self.class_of(&repository.registry) == AccessClass::Public {
            return Ok(Possession::Unproven);
        }
        match self.store.link(repository, digest) {
            Ok(Some(link)) if link.held => Ok(Possession::Proven),
            Ok(_) => Ok(Possession::Unproven),
            Err(problem) if problem.is_without_index() => Ok(Possession::Unproven),
            Err(problem) => Err(problem),
        }
    }
}
