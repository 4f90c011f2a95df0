//! Checks: asking upstream which digest a tag is, and moving the pointers by the answer. Runs on lanes.

use super::super::access::View;
use super::resolve::Tags;
use crate::auth::AccessClass;
use crate::budget;
use crate::fetch::{Failure, Upstream};
use crate::oci::{Algorithm, Digest, Kind, ManifestRef, Repository, Tag};
use crate::store::{Observation, VersionSource};
use std::sync::Arc;
use std::time::Instant;

use super::super::lane::QueueFull;
use super::super::single_flight::Wait;

/// Upstream's answer for a tag.
#[derive(Debug, Clone)]
pub(super) struct UpstreamDigest {
    pub(super) digest: Digest,
    /// The manifest's media type and its size in bytes, as upstream states them.
    pub(super) stated: Option<(String, u64)>,
}

/// Such an answer, when the registry gave it, and the endpoint that did.
type Named = (UpstreamDigest, Option<u64>, String);

impl Tags {
    /// Asks upstream for a tag, or joins the question that is under way.
    pub(super) fn begin_check(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        view: &View,
        tag: &Tag,
    ) -> Result<Wait<Result<UpstreamDigest, Failure>>, QueueFull> {
        let (tags, asked) = (Arc::clone(self), Arc::clone(upstream));
        let (question, key) = ((view.clone(), tag.clone()), (view.clone(), tag.clone()));
        let lanes = self.questions.lanes(upstream)?;
        let of = view.name.to_string();
        self.checks.join(lanes, &of, &key, move || tags.check(&asked, &question.0, &question.1))
    }

    /// Asks an upstream that is down in the background, but not too often: there are registries whose `/v2/`, which probes
    /// ask for, fails while their manifests can be had.
    pub(super) fn check_in_background(self: &Arc<Self>, upstream: &Arc<Upstream>, view: &View, tag: &Tag) {
        let now = Instant::now();
        let due = {
            let mut last = self.last_background_check.lock();
            let last = last.entry(upstream.name().clone()).or_insert(now);
            let due = now.duration_since(*last) >= budget::BACKGROUND_CHECK_EVERY;
            if due {
                *last = now;
            }
            due
        };
        if due {
            let _ = self.begin_check(upstream, view, tag);
        }
    }

    /// Asks upstream for a tag and moves the pointers.
    fn check(&self, upstream: &Upstream, view: &View, tag: &Tag) -> Result<UpstreamDigest, Failure> {
        let repository = &view.repository;
        let (answer, date, endpoint) = match upstream.anonymous() {
            Some(anonymous) if !view.clearance.private => {
                self.ask_if_shown(upstream, anonymous, repository, tag)?
            }
            _ => self.ask_upstream(upstream, view, tag)?,
        };
        // Before the name of a tag is known that only credentials have shown.
        let store = &self.context.store;
        let marked = match self.context.class_without_proof(&repository.registry) {
            AccessClass::Private if upstream.is_private() => store.mark_private(repository),
            AccessClass::Private => store.note_class(repository, AccessClass::Private),
            AccessClass::Public | AccessClass::Unproven => Ok(()),
        };
        self.table.verified(&(repository.clone(), tag.clone()), Instant::now());
        let seen = Observation {
            digest: answer.digest.clone(),
            source: VersionSource::Upstream,
            date,
            endpoint: Some(endpoint),
        };
        if let Err(problem) = marked.and_then(|()| self.settler.note(repository, tag, &seen)) {
            log::warn!("{repository}:{tag} is {}, but that could not be saved: {problem}", answer.digest);
        }
        Ok(answer)
    }

    /// Upstream's answer for a tag, if it shows everybody what that names. All else is one and the same answer, after the
    /// same questions: whether there is such a tag is not told.
    fn ask_if_shown(
        &self,
        upstream: &Upstream,
        anonymous: &Upstream,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<Named, Failure> {
        let named = match self.ask_upstream(upstream, &View::of_everybody(repository), tag) {
            Err(failure @ (Failure::Unreachable { .. } | Failure::Wrong { .. })) => return Err(failure),
            named => named.ok(),
        };
        let nothing = || Digest::of(Algorithm::Sha256, format!("{repository}:{tag}").as_bytes());
        let digest = named.as_ref().map_or_else(nothing, |(answer, ..)| answer.digest.clone());
        let shown = self.proofs.manifest_shown(anonymous, repository, &digest);
        match (named, shown) {
            (_, Err(failure @ (Failure::Unreachable { .. } | Failure::Wrong { .. }))) => Err(failure),
            (Some(named), Ok(())) => Ok(named),
            _ => {
                let registry = &repository.registry;
                Err(Failure::Missing { detail: format!("{registry}: shows everybody no such tag") })
            }
        }
    }

    /// Upstream's answer for a tag, when it was given, and by whom.
    fn ask_upstream(&self, upstream: &Upstream, view: &View, tag: &Tag) -> Result<Named, Failure> {
        let (repository, reference) = (&view.repository, ManifestRef::Tag(tag.clone()));
        let head = upstream.head_manifest(&repository.name, &reference)?;
        Ok(match head.digest {
            Some(digest) => {
                // What is no manifest's type says that it must be fetched and looked at.
                let media_type = head.media_type.filter(|stated| Kind::of_media_type(stated).is_some());
                let stated = media_type.zip(head.size);
                (UpstreamDigest { digest, stated }, head.date, head.endpoint)
            }
            // Not every registry sends a digest on HEAD; then the manifest must be fetched.
            None => {
                let fetched = upstream.fetch_manifest(&repository.name, &reference)?;
                if let Ok(class) = self.proofs.manifest_class(upstream, view, &fetched.digest) {
                    self.manifests.keep(repository, &fetched, class);
                }
                let stated = Some((fetched.media_type, fetched.bytes.len() as u64));
                (UpstreamDigest { digest: fetched.digest, stated }, fetched.date, fetched.endpoint)
            }
        })
    }
}
