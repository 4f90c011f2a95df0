//! Pull secrets: whether a registry shows what a client asks for to the client's own login.
//!
//! The registry is asked by a HEAD of the very object ([`crate::fetch::Shown`]), once however many ask the same, within a
//! bound, on lanes of its own that clients share fairly. Its yes counts for [`budget::PULL_SECRET_TIME`], for the object, the
//! manifest that a tag was said to be, and what a manifest that was shown names in its repository: hashes vouch for that. Its
//! no is remembered briefly. The answer depends on what the registry says to this login and on nothing that is here, so that
//! it tells nothing about the cache. While the registry is out of reach, `kept` may know the login.

mod kept;

use super::access::View;
use super::context::Context;
use super::lane::Lanes;
use super::refusal::Refusal;
use super::single_flight::SingleFlight;
use crate::auth::{BasicCredentials, LoginKey, LoginKeys, ProvenLogins, PullObject};
use crate::budget;
use crate::fetch::{Cause, Failure, Shown, ShownObject, Upstream};
use crate::oci::{Digest, Manifest, ManifestRef, RegistryName, Repository};
use crate::sync::{Mutex, turn};
use kept::KeptLogins;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

/// What a pull secret opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretVerdict {
    /// The registry shows it to the login.
    Shown,
    /// The registry cannot be asked, and has accepted this login for the repository not long ago: what is cached.
    Kept,
    /// The registry does not show it, for the reason that is logged.
    Refused(&'static str),
}

/// What a registry was asked, and how that went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Shown,
    Refused(&'static str),
    /// It could not be asked; whether that is an outage, in which a kept login counts.
    NotAsked {
        outage: bool,
    },
}

/// The accepted pull secrets.
pub(super) struct PullSecrets {
    context: Arc<Context>,
    keys: LoginKeys,
    table: Arc<Mutex<ProvenLogins>>,
    lanes: HashMap<RegistryName, Lanes>,
    asked: SingleFlight<(LoginKey, PullObject), Outcome>,
    kept: Arc<KeptLogins>,
}

impl PullSecrets {
    /// Reads what is kept, or removes it if nothing is to be kept.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub(super) fn new(context: Arc<Context>) -> std::io::Result<PullSecrets> {
        let lanes = |name: &str| Lanes::new(name, budget::PULL_SECRET_LANES, budget::PULL_SECRET_CHECKS_MAX);
        let private = context.upstreams.iter().filter(|upstream| upstream.is_private());
        Ok(PullSecrets {
            keys: LoginKeys::new()?,
            table: Arc::default(),
            lanes: private.map(|up| (up.name().clone(), lanes(up.name().as_str()))).collect(),
            asked: SingleFlight::default(),
            kept: Arc::new(KeptLogins::open(Arc::clone(&context))),
            context,
        })
    }

    /// The name of a login in tables.
    pub(super) fn key(&self, credentials: &BasicCredentials, more: &[u8]) -> LoginKey {
        self.keys.of(credentials, more)
    }

    /// What is known without asking: by an earlier answer, or by a manifest that was shown and names the object.
    pub(super) async fn known(&self, login: LoginKey, object: &PullObject) -> Option<bool> {
        let now = Instant::now();
        let (known, manifests) = {
            let table = self.table.lock();
            let manifests = object.repository().map(|name| table.manifests(login, name, now));
            (table.verdict(login, object, now), manifests.unwrap_or_default())
        };
        let (Some(repository), Some(wanted)) = (object.repository(), object.digest()) else { return known };
        if known.is_some() || manifests.is_empty() {
            return known;
        }
        let (name, wanted) = (repository.clone(), wanted.clone());
        let naming = move |context: &Context| {
            for (manifest, until) in manifests {
                if context.sees(&View::of_the_owner(&name), &manifest)? && names(context, &manifest, &wanted)?
                {
                    return Ok(Some(until));
                }
            }
            Ok(None)
        };
        // Where the store cannot tell, the registry can.
        let until = self.context.try_blocking(naming).await.unwrap_or(None)?;
        self.table.lock().show_until(login, object.clone(), until, now);
        Some(true)
    }

    /// Asks the registry, on behalf of a client at this address.
    ///
    /// # Errors
    /// [`Refusal::Busy`] if too many ask, [`Refusal::Unavailable`] if the registry cannot be asked, whatever is here.
    pub(super) async fn ask(
        &self,
        client: IpAddr,
        credentials: &Arc<BasicCredentials>,
        object: &PullObject,
    ) -> Result<SecretVerdict, Refusal> {
        let login = self.key(credentials, b"");
        let registry = object.registry();
        let upstream = self.context.upstream(registry)?;
        let Some(lanes) = self.lanes.get(registry) else {
            // `/v2/` of a registry whose content takes no login.
            return Ok(SecretVerdict::Shown);
        };
        let outcome = if upstream.link().is_known_down() {
            Outcome::NotAsked { outage: true }
        } else {
            let question = self.question(&upstream, login, credentials, object);
            let asked = self.asked.join(lanes, &client.to_string(), &(login, object.clone()), question);
            let answer =
                asked.map_err(|_| Refusal::Busy("too many logins wait to be verified; retry".into()))?;
            let answer = tokio::time::timeout(budget::PULL_SECRET_WAIT_MAX, answer.answer()).await;
            // Longer than any question takes: it has not been asked yet, which says nothing about the registry.
            answer.ok().flatten().unwrap_or(Outcome::NotAsked { outage: false })
        };
        match outcome {
            Outcome::Shown => Ok(SecretVerdict::Shown),
            Outcome::Refused(why) => Ok(SecretVerdict::Refused(why)),
            Outcome::NotAsked { outage } if outage && self.kept.knows(login, credentials, object).await => {
                Ok(SecretVerdict::Kept)
            }
            Outcome::NotAsked { .. } => Err(Refusal::Unavailable(format!(
                "{registry} cannot be asked now whether it accepts this login; retry"
            ))),
        }
    }

    /// Removes kept logins that are over.
    pub(super) fn expire(&self) {
        self.kept.expire();
    }

    /// Writes down what is kept.
    pub(super) fn stop(&self) {
        self.kept.flush();
    }

    /// The question, with all that follows from its answer.
    fn question(
        &self,
        upstream: &Arc<Upstream>,
        login: LoginKey,
        credentials: &Arc<BasicCredentials>,
        object: &PullObject,
    ) -> impl FnMut() -> Outcome + Send + 'static {
        let (upstream, credentials, object) = (Arc::clone(upstream), Arc::clone(credentials), object.clone());
        let (table, kept, queued) = (Arc::clone(&self.table), Arc::clone(&self.kept), Instant::now());
        move || {
            if queued.elapsed() >= budget::PULL_SECRET_WAIT_MAX {
                // Nobody waits any more, and others do.
                return Outcome::NotAsked { outage: false };
            }
            let answer = ask_upstream(&upstream, &credentials, &object);
            if turn::is_called_off() {
                // The question is asked again.
                return Outcome::NotAsked { outage: false };
            }
            let now = Instant::now();
            let (why, denied) = match answer {
                Ok(Shown { digest, logged_in }) => {
                    let mut table = table.lock();
                    if let (PullObject::Manifest(name, ManifestRef::Tag(_)), Some(digest)) = (&object, digest)
                    {
                        let manifest = PullObject::Manifest(name.clone(), ManifestRef::Digest(digest));
                        table.show(login, manifest, now);
                    }
                    table.show(login, object.clone(), now);
                    drop(table);
                    if let Some(repository) = object.repository().filter(|_| logged_in) {
                        kept.accepted(login, &credentials, repository);
                    }
                    return Outcome::Shown;
                }
                Err(Failure::Unreachable { cause, .. }) => {
                    return Outcome::NotAsked { outage: cause != Cause::RateLimited };
                }
                // The texts of the failures may hold what the registry says, which knows the secret.
                Err(Failure::Denied { .. }) => ("the registry denies it this", true),
                Err(Failure::Missing { .. }) => ("the registry does not have this, or not for it", false),
                Err(Failure::Wrong { .. }) => ("the registry's answer cannot be used", false),
            };
            table.lock().refuse(login, object.clone(), denied, now);
            if let Some(repository) = object.repository().filter(|_| denied) {
                kept.denied(login, &credentials, repository);
            }
            Outcome::Refused(why)
        }
    }
}

fn ask_upstream(
    upstream: &Upstream,
    credentials: &BasicCredentials,
    object: &PullObject,
) -> Result<Shown, Failure> {
    let asked = match object {
        PullObject::Login(_) => ShownObject::Login,
        PullObject::Manifest(repository, reference) => ShownObject::Manifest(&repository.name, reference),
        PullObject::Blob(repository, digest) => ShownObject::Blob(&repository.name, digest),
    };
    upstream.shows_to(&credentials.user, &credentials.password, asked)
}

/// Whether a manifest that is here names some content.
fn names(context: &Context, manifest: &Digest, wanted: &Digest) -> Result<bool, crate::store::StoreError> {
    let children = |bytes: &[u8]| {
        let parsed = Manifest::parse(bytes, None);
        parsed.is_ok_and(|manifest| manifest.children.iter().any(|child| child.digest == *wanted))
    };
    Ok(context.store.with_document(manifest, children)?.unwrap_or(false))
}

/// A repository of a kept login as it is asked for by an object: any of the registry for `/v2/`.
fn concerns(repository: &Repository, object: &PullObject) -> bool {
    object.repository().map_or(repository.registry == *object.registry(), |name| name == repository)
}
