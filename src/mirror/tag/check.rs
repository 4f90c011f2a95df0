//! Checks: asking upstream which digest a tag is, and moving the pointers by the answer. Runs on lanes.

use super::super::access::View;
use super::resolve::Tags;
use crate::auth::AccessClass;
use crate::budget;
use crate::clock;
use crate::decide;
use crate::fetch::{Failure, HeadTrust, NamedManifest, StaleAnswer, Upstream};
use crate::kit::Claim;
use crate::oci::{Algorithm, Digest, Repository, Tag};
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
    /// No bytes have proved it.
    pub(super) by_head: bool,
    /// Why this may be older than what upstream has, if it may be: it is no more than a claim then.
    pub(super) stale: Option<StaleClaim>,
}

/// What an endpoint claims that could not ask, or that is behind another.
#[derive(Debug, Clone)]
pub(super) struct StaleClaim {
    /// What it is.
    pub(super) why: String,
    pub(super) claim: Claim,
}

/// Such an answer, and who gave it.
type Named = (UpstreamDigest, Answerer);

/// Who gave an answer.
struct Answerer {
    /// When the registry made it, by its own clock.
    date: Option<u64>,
    /// The endpoint, and its place in the order.
    endpoint: String,
    place: usize,
}

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
        if let Some(answer) = self.lately(upstream, view, tag) {
            return Ok(answer);
        }
        let (answer, by) = match upstream.anonymous() {
            Some(anonymous) if !view.clearance.private => {
                self.ask_if_shown(upstream, anonymous, repository, tag)?
            }
            _ => self.ask_upstream(upstream, view, tag, HeadTrust::None)?,
        };
        let key = (repository.clone(), tag.clone());
        let answer = UpstreamDigest {
            stale: answer.stale.clone().or(self.older(upstream, &key, &answer, &by)),
            ..answer
        };
        if answer.stale.is_some() {
            return Ok(answer);
        }
        // Before the name of a tag is known that only credentials have shown.
        let store = &self.context.store;
        let marked = match self.context.class_without_proof(&repository.registry) {
            AccessClass::Private if upstream.is_private() => store.mark_private(repository),
            AccessClass::Private => store.note_class(repository, AccessClass::Private),
            AccessClass::Public | AccessClass::Unproven => Ok(()),
        };
        self.table.verified(&key, Instant::now());
        if let Some(date) = by.date {
            self.table.told(&key, date, by.place);
        }
        let seen = Observation {
            digest: answer.digest.clone(),
            source: VersionSource::Upstream,
            date: by.date,
            endpoint: Some(by.endpoint),
        };
        if let Err(problem) = marked.and_then(|()| self.settler.note(repository, tag, &seen)) {
            log::warn!("{repository}:{tag} is {}, but that could not be saved: {problem}", answer.digest);
        }
        Ok(answer)
    }

    /// Upstream's answer of less than `revalidate` ago, where another one costs a GET, which registries meter. Where it does
    /// not, a version that is not complete is asked for again.
    fn lately(&self, upstream: &Upstream, view: &View, tag: &Tag) -> Option<UpstreamDigest> {
        let repository = &view.repository;
        if upstream.anonymous().is_some() || !upstream.lacks_head(&repository.name) {
            return None;
        }
        let revalidate = self.context.config.now().tags.policy(repository, tag).revalidate;
        let (_, verified) = self.table.find(&(repository.clone(), tag.clone()), view.clearance, None);
        verified.filter(|at| at.elapsed() < revalidate)?;
        let digest = self.context.store.tag(repository, tag).ok()??.seen?.digest;
        self.manifests.read(view, &digest, None).ok()??;
        Some(UpstreamDigest { digest, stated: None, by_head: false, stale: None })
    }

    /// What makes an answer older than the last one, if it is.
    fn older(
        &self,
        upstream: &Upstream,
        key: &(Repository, Tag),
        answer: &UpstreamDigest,
        by: &Answerer,
    ) -> Option<StaleClaim> {
        if by.place == 0 {
            return None;
        }
        let record = self.context.store.tag(&key.0, &key.1).ok().flatten();
        let seen = record.and_then(|record| record.seen)?;
        let written = || {
            let endpoint = seen.endpoint.as_ref()?;
            let place = upstream.endpoints().iter().position(|one| one.name() == endpoint)?;
            Some((seen.date?, place))
        };
        let last = self.table.last_told(key).or_else(written);
        if seen.digest == answer.digest || !decide::is_older((by.date, by.place), last) {
            return None;
        }
        let why = format!("{}: its answer is older than that of an endpoint before it", by.endpoint);
        let claim = Claim { peer: by.endpoint.clone(), digest: answer.digest.clone(), unix: None };
        Some(StaleClaim { why, claim })
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
        let everybody = View::of_everybody(repository);
        let (named, unasked) = match self.ask_upstream(upstream, &everybody, tag, HeadTrust::Signed) {
            Err(failure @ (Failure::Unreachable { .. } | Failure::Wrong { .. })) => (None, Some(failure)),
            named => (named.ok(), None),
        };
        // One of several endpoints may have said that there is none, the only one has not.
        if let Some(failure) = &unasked
            && (upstream.endpoints().len() == 1 || !upstream.link().is_up())
        {
            return Err(told(upstream, failure.clone()));
        }
        let nothing = || Digest::of(Algorithm::Sha256, format!("{repository}:{tag}").as_bytes());
        let digest = named.as_ref().map_or_else(nothing, |(answer, _)| answer.digest.clone());
        let shown = self.proofs.manifest_shown(anonymous, repository, &digest);
        match (named, shown, unasked) {
            (_, Err(failure @ (Failure::Unreachable { .. } | Failure::Wrong { .. })), _)
            | (_, _, Some(failure)) => Err(told(upstream, failure)),
            (Some(named), Ok(()), _) => Ok(named),
            _ => {
                let registry = &repository.registry;
                Err(Failure::Missing { detail: format!("{registry}: shows everybody no such tag") })
            }
        }
    }

    /// Upstream's answer for a tag, when it was given, and by whom.
    fn ask_upstream(
        &self,
        upstream: &Upstream,
        view: &View,
        tag: &Tag,
        trust: HeadTrust,
    ) -> Result<Named, Failure> {
        let repository = &view.repository;
        Ok(match upstream.name_tag(&repository.name, tag, trust)? {
            NamedManifest::Head { digest, stated, date, endpoint, stale, place } => {
                let stale = stale.map(|stale| stale_claim(stale, &digest, &endpoint));
                (UpstreamDigest { digest, stated, by_head: true, stale }, Answerer { date, endpoint, place })
            }
            NamedManifest::Fetched(fetched) => {
                if let Ok(class) = self.proofs.manifest_class(upstream, view, &fetched.digest) {
                    self.manifests.keep(repository, &fetched, class);
                }
                let stated = Some((fetched.media_type, fetched.bytes.len() as u64));
                let stale = fetched.stale.map(|stale| stale_claim(stale, &fetched.digest, &fetched.endpoint));
                let by = Answerer { date: fetched.date, endpoint: fetched.endpoint, place: fetched.place };
                (UpstreamDigest { digest: fetched.digest, stated, by_head: false, stale }, by)
            }
        })
    }
}

/// What everybody is told of a question that has no answer. With several endpoints its text says which of them knows no such
/// tag: that is for the log.
fn told(upstream: &Upstream, failure: Failure) -> Failure {
    if upstream.endpoints().len() == 1 {
        return failure;
    }
    log::debug!("{}: {failure}", upstream.name());
    let detail = format!("{}: not every endpoint can be asked", upstream.label());
    match failure {
        Failure::Unreachable { cause, .. } => Failure::Unreachable { cause, detail },
        _ => Failure::Wrong { detail },
    }
}

/// What a Larder that cannot reach the registry says, as a claim of a peer.
fn stale_claim(stale: StaleAnswer, digest: &Digest, endpoint: &str) -> StaleClaim {
    let unix = stale.age.zip(clock::trusted_unix()).map(|(age, now)| now.saturating_sub(age));
    StaleClaim { why: stale.why, claim: Claim { peer: endpoint.to_owned(), digest: digest.clone(), unix } }
}
