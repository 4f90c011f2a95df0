//! Access: the one answer to "may this client see this content through this repository?".
//!
//! Content that was fetched with credentials is private, and content that came from elsewhere is unproven. Both are served
//! only through a repository that is known to hold them, because a manifest of another repository can name any digest, and
//! an upstream can claim to hold any. To another registry only its bytes prove that, within one registry its answer for the
//! repository does. A [`View`] is a repository and what may be read of it besides what is public: what is private by who has
//! the right and sends the login, also where the registry has lost its credentials or needs none; what is unproven by
//! clients of this machine. What may not be seen is answered like what is absent, and so is all that is derived from it.
//! Other boards get public content only.

use super::context::Context;
use crate::auth::{AccessClass, Clearance, Identity, may_read};
use crate::budget;
use crate::kit::Kit;
use crate::oci::{Digest, RegistryName, Repository};
use crate::store::{Blob, StoreError, TagRecord, TagVersion, VersionSource};
use std::ops::Deref;
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

/// A repository as somebody sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct View {
    /// The repository.
    pub repository: Repository,
    /// What may be read besides what is public.
    pub clearance: Clearance,
}

impl View {
    /// What everybody sees of a repository.
    pub fn of_everybody(repository: &Repository) -> View {
        View { repository: repository.clone(), clearance: Clearance::NONE }
    }

    /// What the owner sees of a repository.
    pub fn of_the_owner(repository: &Repository) -> View {
        View { repository: repository.clone(), clearance: Clearance::FULL }
    }
}

impl Deref for View {
    type Target = Repository;

    fn deref(&self) -> &Repository {
        &self.repository
    }
}

impl Context {
    /// The access class of content from a registry.
    pub(super) fn class_of(&self, registry: &RegistryName) -> AccessClass {
        let private = self.upstreams.find(registry).is_some_and(|upstream| upstream.is_private());
        AccessClass::of_upstream(private)
    }

    /// Whether what a registry gives is public only as far as it shows it to everybody.
    pub(super) fn needs_proof(&self, registry: &RegistryName) -> bool {
        self.upstreams.find(registry).is_some_and(|upstream| upstream.anonymous().is_some())
    }

    /// The class of what a registry gives whatever it shows to everybody.
    pub(super) fn class_without_proof(&self, registry: &RegistryName) -> AccessClass {
        if self.needs_proof(registry) { AccessClass::Private } else { self.class_of(registry) }
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

    /// A repository as a client sees it, whose [`Context::access`] to its registry was granted.
    pub(super) fn view(&self, repository: &Repository, viewer: Viewer<'_>) -> View {
        let Viewer::Client(identity) = viewer else { return View::of_everybody(repository) };
        let auth = &self.config.now().auth;
        let has_right = || {
            let user = identity.user.as_deref().unwrap_or_default();
            let sealed = identity.sealed || auth.allow_plain_http;
            sealed && may_read(identity, AccessClass::Private) && auth.may_read(user, &repository.to_string())
        };
        // Where the registry is private, access to it was granted by what is known there.
        let private = self.class_of(&repository.registry) == AccessClass::Private || has_right();
        let unproven = may_read(identity, AccessClass::Unproven);
        View { repository: repository.clone(), clearance: Clearance { private, unproven } }
    }

    /// The peers that can stand in for an upstream. `None` for private registries: their content is never asked of peers.
    pub(super) fn live_kit(&self, registry: &RegistryName) -> Option<&Arc<Kit>> {
        let shared = self.access(registry, Viewer::Board) == Access::Granted;
        self.kit.as_ref().filter(|kit| shared && kit.has_live_peer())
    }

    /// Whether `blob`, which is on the disk, may be served through a repository; else only bytes or, within one registry,
    /// an answer of its upstream can show that.
    pub(super) fn holds(&self, view: &View, digest: &Digest, blob: &Blob) -> Result<bool, StoreError> {
        self.store.may_serve(view, view.clearance, digest, blob.class)
    }

    /// Whether content that is here may be seen through a repository. It may be absent as well.
    pub(super) fn sees(&self, view: &View, digest: &Digest) -> Result<bool, StoreError> {
        Ok(self.store.size_through(view, view.clearance, digest)?.is_some())
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

    /// Whether the names of a repository are hidden: what is known of it was fetched with credentials or came from elsewhere,
    /// and upstream has shown nothing of it to everybody since.
    pub(super) fn is_hidden(&self, view: &View) -> Result<bool, StoreError> {
        Ok(!view.clearance.covers(self.known_class(view)?))
    }

    /// Whether what is known of a repository was fetched with credentials that the configuration does not have any more.
    pub(super) fn has_lost_login(&self, repository: &Repository) -> Result<bool, StoreError> {
        let public = self.class_without_proof(&repository.registry) == AccessClass::Public;
        Ok(public && self.known_class(repository)? == AccessClass::Private)
    }

    /// What may be seen of a tag; `None` if nothing may.
    pub(super) fn visible(&self, view: &View, record: TagRecord) -> Result<Option<TagRecord>, StoreError> {
        if self.is_hidden(view)? {
            return Ok(None);
        }
        let mut hidden = Vec::new();
        for version in record.versions() {
            let named = self.shows_names(view, version);
            if !self.sees(view, &version.digest)? && (!named || self.is_withheld(view, &version.digest)?) {
                hidden.push(version.digest.clone());
            }
        }
        Ok(record.without(&hidden))
    }

    /// Whether a version of a tag may be named whether its manifest is here and may be seen or not: who named it, named it to
    /// everybody.
    fn shows_names(&self, view: &View, version: &TagVersion) -> bool {
        match version.source {
            VersionSource::Import => view.clearance.unproven,
            VersionSource::Upstream | VersionSource::Peer => {
                view.clearance.private || !self.needs_proof(&view.registry)
            }
        }
    }

    /// Whether a manifest is here, belongs to this repository, and is not public: then only who may see it learns its names,
    /// also where the configuration has lost the login that showed it.
    fn is_withheld(&self, repository: &Repository, digest: &Digest) -> Result<bool, StoreError> {
        let public = self.store.open_blob(digest)?.is_none_or(|blob| blob.is_public());
        Ok(!public && self.known_link(repository, digest)?.is_some_and(|link| link.held))
    }

    /// The class of a repository. 0.1.0 wrote none: what is found once is remembered.
    fn known_class(&self, repository: &Repository) -> Result<AccessClass, StoreError> {
        if self.class_of(&repository.registry) == AccessClass::Private {
            return Ok(AccessClass::Private);
        }
        if let Some(class) = self.store.repository_class(repository)? {
            return Ok(class);
        }
        if let Some(class) = self.found_classes.lock().get(repository) {
            return Ok(*class);
        }
        let manifests = self.store.manifests(repository)?;
        let mut class = match manifests.is_empty() {
            true => self.class_without_proof(&repository.registry),
            false => AccessClass::Public,
        };
        for manifest in &manifests {
            class = self.store.open_blob(&manifest.digest)?.map_or(class, |blob| class.max(blob.class));
            if class != AccessClass::Public {
                break;
            }
        }
        if !manifests.is_empty() && self.store.note_class(repository, class).is_err() {
            let mut found = self.found_classes.lock();
            if found.len() >= budget::FOUND_CLASSES_MAX {
                found.clear();
            }
            found.insert(repository.clone(), class);
        }
        Ok(class)
    }

    /// All bytes of content have come from the upstream of a repository, and their hash is right. If it is not public here,
    /// it may be served through that repository from now on.
    pub(super) fn proven(
        &self,
        repository: &Repository,
        digest: &Digest,
        class: AccessClass,
    ) -> Result<(), StoreError> {
        if self.store.open_blob(digest)?.is_none_or(|blob| blob.is_public()) {
            return Ok(());
        }
        match class {
            AccessClass::Public => self.store.make_public(digest),
            AccessClass::Private | AccessClass::Unproven => self.store.hold(repository, digest),
        }
    }
}
