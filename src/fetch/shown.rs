//! What an upstream shows to the own login of a client: a HEAD of the very object, with that login and nothing of larder's;
//! a GET where HEAD is refused.
//!
//! A client's secret goes only where larder's would: to an endpoint that larder logs in at, to its own origin and the realm
//! that is pinned for it, never after a redirect. Of several endpoints that is the registry itself, the last one that has
//! its own names, and no other: a mirror is not whom the client's secret is for, nor is its "no" the registry's. Its tokens are asked for with the question and dropped with it, and a rate
//! limit that it meets is not larder's own.

use super::ask::{Class, Logins, Question, RedirectLogins};
use super::endpoint::Endpoint;
use super::failure::{Cause, Failure};
use super::reply::EndpointReply;
use super::shortcuts::Content;
use super::upstream::Upstream;
use super::wire::Deadline;
use crate::budget::{MANIFEST_BYTES_MAX, PULL_SECRET_TIME_MAX};
use crate::oci::{Digest, Kind, ManifestRef, RepositoryName};
use crate::text::Secret;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub enum ShownObject<'a> {
    /// Whether the registry takes the login at all.
    Login,
    /// A manifest.
    Manifest(&'a RepositoryName, &'a ManifestRef),
    /// A blob.
    Blob(&'a RepositoryName, &'a Digest),
}

/// What an upstream has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The digest of the manifest, as far as the upstream gives a valid one.
    pub digest: Option<Digest>,
    /// The upstream asked for the login; else it would have shown this to anybody.
    pub logged_in: bool,
}

impl<'a> ShownObject<'a> {
    fn question(self, deadline: Deadline) -> Question {
        match self {
            ShownObject::Login => {
                Question { class: Class::Ping, ..Question::new(String::new(), String::new(), deadline) }
            }
            ShownObject::Manifest(repository, reference) => {
                let question = Question::manifest(repository, reference, deadline);
                Question { class: Class::ShownManifest, ..question }
            }
            ShownObject::Blob(repository, digest) => {
                Question { class: Class::ShownBlob, ..Question::blob(repository, digest, deadline) }
            }
        }
    }

    fn content(self) -> Option<(&'a RepositoryName, Content)> {
        match self {
            ShownObject::Login => None,
            ShownObject::Manifest(repository, _) => Some((repository, Content::Manifests)),
            ShownObject::Blob(repository, _) => Some((repository, Content::Blobs)),
        }
    }
}

impl Upstream {
    /// Asks whether an object is shown to a client's login.
    ///
    /// # Errors
    /// See [`Upstream::name_tag`]. The text may hold what the upstream says, which knows the secret: it is for nobody to see.
    pub fn shows_to(&self, user: &str, password: &Secret, object: ShownObject<'_>) -> Result<Shown, Failure> {
        let asked = self.endpoints.iter().filter(|endpoint| endpoint.tries_pull_secrets);
        if self.endpoints.len() > 1 && asked.clone().next().is_none() {
            let detail = format!("{}: larder has no login at the registry itself", self.name());
            return Err(Failure::Denied { status: 401, detail });
        }
        self.ask_each(asked, Deadline::after(PULL_SECRET_TIME_MAX), |endpoint, deadline| {
            endpoint.shows_to(user, password, object, deadline)
        })
    }
}

/// Whether an answer says that the registry has the object and shows it. A portal, a proxy or a gateway for logins answers
/// anything with 200, itself or where it redirects to: only a registry's own answer counts, to the question that was asked.
/// Where it sends blobs from elsewhere, the manifest that names one is the proof.
fn is_proof(reply: &EndpointReply, object: ShownObject<'_>, told: Option<&Digest>, logged_in: bool) -> bool {
    let is_manifest = || {
        let media_type = reply.content_type();
        media_type.as_deref().and_then(Kind::of_media_type).is_some()
    };
    let fits = match object {
        ShownObject::Login => logged_in || reply.header("docker-distribution-api-version").is_some(),
        ShownObject::Manifest(_, ManifestRef::Tag(_)) => told.is_some() && is_manifest(),
        ShownObject::Manifest(_, ManifestRef::Digest(wanted)) => told == Some(wanted) && is_manifest(),
        ShownObject::Blob(_, wanted) => told == Some(wanted),
    };
    reply.own && reply.status() == 200 && fits
}

impl Endpoint {
    fn shows_to(
        &self,
        user: &str,
        password: &Secret,
        object: ShownObject<'_>,
        deadline: Deadline,
    ) -> Result<Shown, Failure> {
        let host = &self.base.origin.authority();
        let login = self
            .login
            .of_client(user, password)
            .map_err(|why| Failure::Denied { status: 401, detail: format!("{host}: {why}") })?;
        let elsewhere = RedirectLogins::default();
        let logins = Logins { own: &login, elsewhere: &elsewhere };
        let question = object.question(deadline);
        let by_get = |refused: Option<Failure>| match (self.shown_by_get(&logins, object, deadline), refused)
        {
            // Nothing that a GET cannot say undoes what HEAD says.
            (Err(Failure::Unreachable { cause, .. }), Some(refused)) if cause != Cause::NotARegistry => {
                Err(refused)
            }
            (shown, _) => shown.map(|digest| Shown { digest, logged_in: login.was_asked_for() }),
        };
        let content = object.content();
        if content.is_some_and(|(repository, content)| self.shortcuts.lacks_head(repository, content)) {
            return by_get(None);
        }
        let reply = self.ask_as(&logins, &question)?;
        let (digest, logged_in) = (reply.digest(), login.was_asked_for());
        if is_proof(&reply, object, digest.as_ref(), logged_in) {
            if content.is_none() {
                reply.drain();
            }
            return Ok(Shown { digest, logged_in });
        }
        let may_be_heads_alone = reply.own && reply.status() != 401;
        let failure = match reply.found(&question) {
            Ok(reply) => reply.wrong(NO_PROOF),
            Err(failure) => failure,
        };
        let Some((repository, content)) = content.filter(|_| may_be_heads_alone) else { return Err(failure) };
        let shown = by_get(Some(failure));
        if shown.is_ok() {
            self.shortcuts.head_failed(repository, content);
        }
        shown
    }

    /// The same by GET, for who refuses HEAD: the bytes of a manifest prove it, and the header for a blob is the one that HEAD
    /// should have.
    fn shown_by_get(
        &self,
        logins: &Logins<'_>,
        object: ShownObject<'_>,
        deadline: Deadline,
    ) -> Result<Option<Digest>, Failure> {
        let question = object.question(deadline);
        match object {
            ShownObject::Manifest(_, reference) => {
                let question = Question { class: Class::ShownManifestGet, ..question };
                let (reply, body) = self.document_as(logins, &question, MANIFEST_BYTES_MAX)?;
                let manifest = self.manifest_in(&reply, body, reference)?;
                let proof = reply.own && reply.status() == 200;
                proof.then_some(Some(manifest.digest)).ok_or_else(|| reply.wrong(NO_PROOF))
            }
            ShownObject::Blob(..) | ShownObject::Login => {
                let question = Question { class: Class::ShownBlobGet, ..question };
                let reply = self.ask_as(logins, &question)?.found(&question)?;
                let digest = reply.digest();
                let proof = is_proof(&reply, object, digest.as_ref(), false);
                proof.then_some(digest).ok_or_else(|| reply.wrong(NO_PROOF))
            }
        }
    }
}

const NO_PROOF: &str = "does not answer as a registry that has this and shows it";
