//! What an upstream shows to the own login of a client: a HEAD of the very object, with that login and nothing of larder's.
//!
//! A client's secret goes only where larder's would: to endpoints that larder logs in at, to their own origin and the realm
//! that is pinned for it, never after a redirect. Its tokens are asked for with the question and dropped with it, and a rate
//! limit that it meets is not larder's own.

use super::ask::{Class, Logins, Question, RedirectLogins};
use super::endpoint::Endpoint;
use super::failure::Failure;
use super::reply::EndpointReply;
use super::upstream::Upstream;
use super::wire::Deadline;
use crate::budget::PULL_SECRET_TIME_MAX;
use crate::oci::{Digest, Kind, ManifestRef, RepositoryName, media};
use crate::text::Secret;
use ureq::http::header;

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

impl Upstream {
    /// Asks whether an object is shown to a client's login.
    ///
    /// # Errors
    /// See [`Upstream::head_manifest`]. The text may hold what the upstream says, which knows the secret: it is for nobody to see.
    pub fn shows_to(&self, user: &str, password: &Secret, object: ShownObject<'_>) -> Result<Shown, Failure> {
        let logged_in_at = self.endpoints.iter().filter(|endpoint| endpoint.has_login());
        self.ask_each(logged_in_at, Deadline::after(PULL_SECRET_TIME_MAX), |endpoint, deadline| {
            endpoint.shows_to(user, password, object, deadline)
        })
    }
}

/// Whether an answer says that the registry has the object and shows it. A portal, a proxy or a gateway for logins answers
/// anything with 200, itself or where it redirects to: only a registry's own answer counts, to the question that was asked.
/// Where it sends blobs from elsewhere, the manifest that names one is the proof.
fn is_proof(reply: &EndpointReply, object: ShownObject<'_>, told: Option<&Digest>, logged_in: bool) -> bool {
    let is_manifest = || {
        let media_type = reply.header(header::CONTENT_TYPE.as_str()).map(media::essence);
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
        let question = match object {
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
        };
        let elsewhere = RedirectLogins::default();
        let reply =
            self.ask_as(&Logins { own: &login, elsewhere: &elsewhere }, &question)?.found(&question)?;
        let digest = reply.digest();
        let logged_in = login.was_asked_for();
        if !is_proof(&reply, object, digest.as_ref(), logged_in) {
            return Err(reply.wrong("does not answer as a registry that has this and shows it"));
        }
        if matches!(object, ShownObject::Login) {
            reply.drain();
        }
        Ok(Shown { digest, logged_in })
    }
}
