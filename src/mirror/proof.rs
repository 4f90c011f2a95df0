//! Proofs: what the registry of an upstream whose login only lifts a rate limit shows to everybody.
//!
//! The registry is asked without any login, by HEAD and by digest, which it does not meter. An answer for a root is one for
//! all that the root names. It is remembered for [`PROOF_AGE_MAX`], and counts on for as long as the registry cannot be asked
//! again; a refusal of the registry ends it at once, for what is not here yet. What could not be asked is no refusal and is
//! not remembered. Several that ask the same at a time wait for one answer. All of this blocks and runs on lanes.
//!
//! Content of unknown origin becomes public by the same question.

use super::access::View;
use super::context::{Context, outage};
use crate::auth::AccessClass;
use crate::budget::{NAMING_MANIFESTS_MAX, PROOF_AGE_MAX, PROOFS_ASKED_MAX, PROOFS_MAX};
use crate::fetch::{Failure, Upstream};
use crate::image;
use crate::oci::{Digest, Manifest, Repository};
use crate::store::StoreError;
use crate::sync::{Condvar, Mutex};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

type Root = (Repository, Digest);

/// Proofs, and the questions for them that are under way.
pub(super) struct Proofs {
    context: Arc<Context>,
    known: Mutex<KnownProofs>,
    asked: Mutex<HashMap<Root, Arc<Question>>>,
}

/// A question under way, and its answer.
#[derive(Default)]
struct Question {
    answer: Mutex<Option<Result<(), Failure>>>,
    answered: Condvar,
}

/// When what was shown.
#[derive(Default)]
struct KnownProofs(HashMap<Root, Instant>);

impl KnownProofs {
    fn is_fresh(&self, root: &Root, now: Instant) -> bool {
        self.0.get(root).is_some_and(|at| now.saturating_duration_since(*at) < PROOF_AGE_MAX)
    }

    /// Remembers a proof, in the place of the oldest if there are too many.
    fn insert(&mut self, root: Root, now: Instant) {
        if self.0.len() >= PROOFS_MAX && !self.0.contains_key(&root) {
            let oldest = self.0.iter().min_by_key(|(_, at)| **at).map(|(root, _)| root.clone());
            oldest.and_then(|oldest| self.0.remove(&oldest));
        }
        self.0.insert(root, now);
    }
}

impl Proofs {
    pub(super) fn new(context: Arc<Context>) -> Proofs {
        Proofs { context, known: Mutex::default(), asked: Mutex::default() }
    }

    /// The class of a manifest that is fetched for this view. What everybody is shown and is here already is public from now
    /// on, with all that it names.
    ///
    /// # Errors
    /// Why it is not shown to everybody, for who may see nothing else.
    pub(super) fn manifest_class(
        &self,
        upstream: &Upstream,
        view: &View,
        digest: &Digest,
    ) -> Result<AccessClass, Failure> {
        let Some(anonymous) = upstream.anonymous() else {
            self.ask_about_unproven(upstream, view, digest);
            return Ok(self.context.class_of(upstream.name()));
        };
        match self.manifest_shown(anonymous, view, digest) {
            Ok(()) => Ok(AccessClass::Public),
            Err(_) if view.clearance.private => Ok(AccessClass::Private),
            Err(failure) => Err(failure),
        }
    }

    /// Whether the registry shows a manifest to everybody, by itself or because it shows what names it.
    ///
    /// # Errors
    /// `Missing` and `Denied`: it does not. Else it could not be asked, and is not known to have shown it before.
    pub(super) fn manifest_shown(
        &self,
        anonymous: &Upstream,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<(), Failure> {
        let root = (repository.clone(), digest.clone());
        let now = Instant::now();
        if !self.known.lock().is_fresh(&root, now) {
            let parents = self.named_by(repository, digest);
            let by_parent = {
                let known = self.known.lock();
                parents.iter().any(|parent| known.is_fresh(&(repository.clone(), parent.clone()), now))
            };
            if by_parent {
                self.known.lock().insert(root, now);
            } else {
                self.ask(anonymous, root)?;
            }
        }
        self.open(repository, digest, true);
        Ok(())
    }

    /// Whether the registry shows everybody a manifest that names this blob. If the blob is here it is public from now on.
    ///
    /// # Errors
    /// The registry could not be asked, and nothing is known of what names it.
    pub(super) fn blob_shown(
        &self,
        anonymous: &Upstream,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<bool, Failure> {
        let parents = self.named_by(repository, digest);
        let root = |parent: &Digest| (repository.clone(), parent.clone());
        let fresh = {
            let (known, now) = (self.known.lock(), Instant::now());
            parents.iter().find(|parent| known.is_fresh(&root(parent), now)).cloned()
        };
        let mut shown = fresh;
        for parent in &parents {
            if shown.is_some() {
                break;
            }
            match self.ask(anonymous, root(parent)) {
                Ok(()) => shown = Some(parent.clone()),
                Err(Failure::Missing { .. } | Failure::Denied { .. }) => {}
                // What names it is public here because it was shown, before this process began.
                Err(_) if self.is_public(repository) => shown = Some(parent.clone()),
                Err(failure) => return Err(failure),
            }
        }
        if let Some(parent) = &shown {
            self.open(repository, parent, true);
        }
        Ok(shown.is_some())
    }

    /// Asks, or waits for the answer to who asks already.
    fn ask(&self, anonymous: &Upstream, root: Root) -> Result<(), Failure> {
        let question = {
            let mut asked = self.asked.lock();
            match asked.get(&root).cloned() {
                Some(question) => Err(question),
                None => {
                    let question = Arc::<Question>::default();
                    asked.insert(root.clone(), Arc::clone(&question));
                    Ok(question)
                }
            }
        };
        let question = match question {
            Ok(question) => question,
            Err(others) => {
                let mut answer = others.answer.lock();
                loop {
                    if let Some(answer) = &*answer {
                        return answer.clone();
                    }
                    answer = others.answered.wait(answer);
                }
            }
        };
        let asking = Asking { proofs: self, root, question };
        let down = anonymous.link().is_known_down().then(|| outage(anonymous));
        let answer = down.map_or_else(|| anonymous.shows(&asking.root.0.name, &asking.root.1), Err);
        let answer = self.judge(&asking.root, answer);
        asking.end(answer)
    }

    /// What an answer comes to, by what is known.
    fn judge(&self, root: &Root, answer: Result<(), Failure>) -> Result<(), Failure> {
        let mut known = self.known.lock();
        match &answer {
            Ok(()) => known.insert(root.clone(), Instant::now()),
            Err(Failure::Missing { .. } | Failure::Denied { .. }) => drop(known.0.remove(root)),
            // The last proof counts.
            Err(Failure::Unreachable { .. } | Failure::Wrong { .. }) if known.0.contains_key(root) => {
                return Ok(());
            }
            Err(Failure::Unreachable { .. } | Failure::Wrong { .. }) => {}
        }
        answer
    }

    /// The public manifests of a repository that name some content, newest first, so many as are asked about.
    fn named_by(&self, repository: &Repository, digest: &Digest) -> Vec<Digest> {
        let store = &self.context.store;
        let Ok(mut manifests) = store.manifests(repository) else { return Vec::new() };
        manifests.sort_by_key(|manifest| std::cmp::Reverse(manifest.n));
        manifests.truncate(NAMING_MANIFESTS_MAX);
        let names = |bytes: &[u8]| {
            let parsed = Manifest::parse(bytes, None);
            parsed.is_ok_and(|manifest| manifest.children.iter().any(|child| child.digest == *digest))
        };
        let naming = manifests.into_iter().map(|manifest| manifest.digest).filter(|manifest| {
            let public =
                store.open_blob(manifest).is_ok_and(|blob| blob.is_some_and(|blob| blob.is_public()));
            public && store.with_document(manifest, names).is_ok_and(|named| named == Some(true))
        });
        naming.take(PROOFS_ASKED_MAX).collect()
    }

    fn is_public(&self, repository: &Repository) -> bool {
        self.context.store.repository_class(repository).is_ok_and(|class| class == Some(AccessClass::Public))
    }

    /// Asks about a manifest of unknown origin that is here.
    fn ask_about_unproven(&self, upstream: &Upstream, repository: &Repository, digest: &Digest) {
        let public = self.context.class_of(upstream.name()) == AccessClass::Public;
        let here = self.context.store.open_blob(digest);
        let unproven = here.is_ok_and(|blob| blob.is_some_and(|blob| blob.class == AccessClass::Unproven));
        let belongs = || {
            let link = self.context.known_link(repository, digest);
            link.is_ok_and(|link| link.is_some_and(|link| link.held))
        };
        if public && unproven && belongs() && self.ask(upstream, (repository.clone(), digest.clone())).is_ok()
        {
            self.open(repository, digest, false);
        }
    }

    /// Makes public what of a manifest's closure is here and belongs to the repository.
    fn open(&self, repository: &Repository, root: &Digest, private_too: bool) {
        let opened: Result<(), StoreError> = image::open_to_everybody(
            &self.context.store,
            &self.context.config.now(),
            repository,
            root,
            private_too,
        );
        match opened {
            Err(problem) if !problem.is_without_index() => {
                log::warn!("{repository}@{root} is public, which could not be saved: {problem}");
            }
            _ => {}
        }
    }
}

/// Stands for a question under way; it is answered whatever becomes of the thread that asks.
struct Asking<'a> {
    proofs: &'a Proofs,
    root: Root,
    question: Arc<Question>,
}

impl Asking<'_> {
    fn end(self, answer: Result<(), Failure>) -> Result<(), Failure> {
        *self.question.answer.lock() = Some(answer.clone());
        answer
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let detail = format!("{}: the question failed", self.root.0.registry);
        self.question.answer.lock().get_or_insert(Err(Failure::Wrong { detail }));
        self.question.answered.notify_all();
        self.proofs.asked.lock().remove(&self.root);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn root(n: usize) -> Root {
        let digest = format!("sha256:{n:064x}").parse().unwrap();
        ("docker.io/lab/app".parse().unwrap(), digest)
    }

    #[test]
    fn a_proof_is_remembered_for_a_day_and_the_oldest_makes_way() {
        let (mut known, now) = (KnownProofs::default(), Instant::now());
        known.insert(root(0), now);
        assert!(known.is_fresh(&root(0), now + PROOF_AGE_MAX - Duration::from_secs(1)));
        assert!(!known.is_fresh(&root(0), now + PROOF_AGE_MAX) && known.0.contains_key(&root(0)));
        for n in 1..=PROOFS_MAX {
            known.insert(root(n), now + Duration::from_secs(1));
        }
        assert_eq!(known.0.len(), PROOFS_MAX);
        assert!(!known.0.contains_key(&root(0)) && known.0.contains_key(&root(PROOFS_MAX)));
    }
}
