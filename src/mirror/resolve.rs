//! Which digest is this tag? The six tiers, in order: fresh, upstream, peer, last-complete, older-version, none.
//!
//! Upstream is asked first, within a bound, wherever it can be reached. A question that outlives the bound goes on
//! beside the request and moves the pointer when it ends, so that a slow link is a request behind and never stuck.
//! Nothing waits for an upstream that is known to be down.

use super::counters::Tier;
use super::facts::{SmallManifest, TagFact};
use super::lane::{Flight, Full};
use super::refusal::{Missing, Refusal};
use super::{Mirror, Registry, outage_text};
use crate::budget;
use crate::clock;
use crate::config::{OnMissing, TagPolicy};
use crate::fetch::{Failure, LinkState, Upstream};
use crate::image::{Closure, closure};
use crate::oci::{Digest, ManifestRef, Repository, Tag};
use crate::store::{StoreError, TagRecord, Version};
use crate::sync::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The answer to a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// What the tag stands for.
    pub digest: Digest,
    /// Which rule said so.
    pub tier: Tier,
    /// Why nothing better answered, where the answer may be stale.
    pub cause: Option<String>,
    /// What is known of the manifest without having it: media type and size in bytes, as upstream stated them.
    pub stated: Option<(String, u64)>,
    /// Its manifest, if that is here, public and small.
    pub at_hand: Option<SmallManifest>,
}

/// What upstream said of a tag.
#[derive(Debug, Clone)]
pub(super) struct Checked {
    digest: Digest,
    stated: Option<(String, u64)>,
}

/// What the board itself can say of a tag.
#[derive(Default)]
pub(super) struct Local {
    pub(super) record: Option<TagRecord>,
    /// The best complete version.
    pub(super) complete: Option<Version>,
    /// Its manifest, if that is public and small.
    at_hand: Option<SmallManifest>,
    /// What the nearest version lacks, if none is complete.
    missing: Option<String>,
    /// Why it can say nothing: there is no index, and none can be made.
    unknown: Option<String>,
}

impl Local {
    /// Whether the store could be asked.
    pub(super) fn is_known(&self) -> bool {
        self.unknown.is_none()
    }

    /// The manifest of the complete version, by its digest, if it is public and small.
    pub(super) fn manifest(&self) -> Option<(&Digest, &SmallManifest)> {
        self.complete.as_ref().map(|version| &version.digest).zip(self.at_hand.as_ref())
    }

    /// What it costs in memory, about.
    pub(super) fn bytes(&self) -> usize {
        let versions = self.record.as_ref().map_or(0, |record| record.history.len() + 2) + 1;
        let manifest = self.at_hand.as_ref().map_or(0, |manifest| budget::FACT_BYTES + manifest.bytes.len());
        versions * budget::FACT_VERSION_BYTES + manifest
    }
}

impl Mirror {
    /// Resolves a tag.
    ///
    /// # Errors
    /// [`Refusal::Missing`] and [`Refusal::Denied`] are upstream's own answers; [`Refusal::Unavailable`] names the
    /// upstream, since when it is unreachable and what is missing here.
    pub async fn resolve(self: &Arc<Self>, repository: &Repository, tag: &Tag) -> Result<Resolved, Refusal> {
        let resolved = self.resolve_uncounted(repository, tag).await;
        match &resolved {
            Ok(resolved) => self.report(repository, tag, resolved),
            Err(refusal) => {
                self.counters.count_resolve(Tier::None);
                log::warn!("{repository}:{tag} not answered: {refusal}");
            }
        }
        resolved
    }

    async fn resolve_uncounted(
        self: &Arc<Self>,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<Resolved, Refusal> {
        let upstream = self.upstream(&repository.registry)?;
        let policy = self.config.tags.policy(repository, tag);
        let TagFact { local, verified } = self.local(repository, tag).await?;
        if let Some(version) = without_asking(policy, &local, verified) {
            return Ok(self.as_here(version, Tier::Fresh, None, &local));
        }
        let Some(bound) = self.patience(&upstream.link(), local.complete.is_some()) else {
            let cause = outage_text(&upstream);
            self.check_beside(&upstream, repository, tag);
            return self.do_without(&upstream, repository, tag, cause, &local).await;
        };
        let flight = self.begin_check(&upstream, repository, tag);
        let Ok(flight) = flight else {
            return self.fall_back(repository, "too many questions wait for upstreams".into(), &local).await;
        };
        match tokio::time::timeout(bound, flight.land()).await {
            Ok(Some(Ok(checked))) => Ok(Resolved {
                digest: self.after_rollback(repository, tag, checked.digest).await,
                tier: Tier::Upstream,
                cause: None,
                stated: checked.stated,
                at_hand: None,
            }),
            Ok(Some(Err(failure))) if failure.is_outage() => {
                self.do_without(&upstream, repository, tag, failure.to_string(), &local).await
            }
            Ok(Some(Err(failure))) => self.upstream_refused(repository, policy, &failure, &local).await,
            Ok(None) => Err(Refusal::Failed("the question to upstream failed; the log says how".into())),
            Err(_) => {
                upstream.overdue();
                let cause = format!("{} did not answer within {bound:?}", repository.registry);
                self.do_without(&upstream, repository, tag, cause, &local).await
            }
        }
    }

    /// The answer with the complete version of a tag, which is here.
    fn as_here(&self, version: &Version, tier: Tier, cause: Option<String>, local: &Local) -> Resolved {
        if local.at_hand.is_some() {
            self.store.touch(&version.digest);
        }
        let (digest, at_hand) = (version.digest.clone(), local.at_hand.clone());
        Resolved { digest, tier, cause, stated: None, at_hand }
    }

    /// How long a request waits for upstream; `None`: not at all.
    fn patience(&self, link: &LinkState, can_fall_back: bool) -> Option<Duration> {
        match (link, can_fall_back) {
            (LinkState::Down { restored: false, .. }, _)
            | (LinkState::Down { .. } | LinkState::Slow { .. }, true) => None,
            (LinkState::NotAsked | LinkState::Up, true) => Some(self.config.tags.resolve_deadline),
            (_, false) => Some(budget::MISS_WAIT_MAX),
        }
    }

    /// Upstream answered, but with no digest: 404, 401, 403, or nonsense.
    async fn upstream_refused(
        self: &Arc<Self>,
        repository: &Repository,
        policy: TagPolicy,
        failure: &Failure,
        local: &Local,
    ) -> Result<Resolved, Refusal> {
        let passed_on = matches!(failure, Failure::Missing { .. } | Failure::Denied { .. });
        if passed_on && policy.on_missing == OnMissing::Pass {
            return Err(Refusal::from_failure(failure, Missing::Manifest));
        }
        self.fall_back(repository, failure.to_string(), local).await
    }

    /// Resolves a tag without the version that upstream named but could not give.
    ///
    /// # Errors
    /// [`Refusal::Unavailable`] if no other version is complete.
    pub async fn resolve_instead(
        self: &Arc<Self>,
        repository: &Repository,
        tag: &Tag,
        instead_of: &Digest,
        cause: String,
    ) -> Result<Resolved, Refusal> {
        let TagFact { local, .. } = self.local(repository, tag).await?;
        let resolved = self.fall_back(repository, cause, &local).await?;
        if resolved.digest == *instead_of {
            return Err(Refusal::Unavailable("there is no other version".into()));
        }
        self.report(repository, tag, &resolved);
        Ok(resolved)
    }

    fn report(&self, repository: &Repository, tag: &Tag, resolved: &Resolved) {
        self.counters.count_resolve(resolved.tier);
        if let (true, Some(cause)) = (resolved.tier.is_stale(), &resolved.cause)
            && self.stale_reports.is_due(repository, tag, resolved)
        {
            log::warn!(
                "{repository}:{tag} answered from {} ({}): {cause}",
                resolved.tier.as_str(),
                resolved.digest
            );
        }
    }

    /// Upstream cannot be reached: a peer may know better than this board, or else what is here has to do.
    async fn do_without(
        self: &Arc<Self>,
        upstream: &Upstream,
        repository: &Repository,
        tag: &Tag,
        cause: String,
        local: &Local,
    ) -> Result<Resolved, Refusal> {
        let Some(claim) = self.claim(upstream, repository, tag, local).await else {
            return self.fall_back(repository, cause, local).await;
        };
        let cause = Some(format!("{cause}; peer {} has this version", claim.peer));
        Ok(Resolved { digest: claim.digest, tier: Tier::Peer, cause, stated: None, at_hand: None })
    }

    async fn fall_back(
        self: &Arc<Self>,
        repository: &Repository,
        cause: String,
        local: &Local,
    ) -> Result<Resolved, Refusal> {
        if let Some(version) = &local.complete {
            return Ok(self.as_here(version, Tier::LastComplete, Some(cause), local));
        }
        if self.config.tags.fallback_versions
            && local.record.is_none()
            && let Some((version, digest)) = self.older_version(repository).await?
        {
            let cause = Some(format!("{cause}; {version} stands in"));
            return Ok(Resolved { digest, tier: Tier::OlderVersion, cause, stated: None, at_hand: None });
        }
        if let Some(problem) = &local.unknown {
            return Err(Refusal::Busy(format!("{cause}; {problem}, and may know what to serve")));
        }
        let missing = match &local.missing {
            Some(missing) => format!("the cached version lacks {missing}"),
            None => "nothing of it is cached".to_owned(),
        };
        Err(Refusal::Unavailable(format!("{cause}; {missing}")))
    }

    /// What the owner of the board went back to, while upstream still says what was gone back from.
    async fn after_rollback(self: &Arc<Self>, repository: &Repository, tag: &Tag, said: Digest) -> Digest {
        let (repository, tag) = (repository.clone(), tag.clone());
        let record = self.blocking(move |mirror| mirror.store.tag(&repository, &tag)).await;
        match record.ok().flatten().and_then(|record| record.rollback) {
            Some(rollback) if rollback.from == said && self.store.contains(&rollback.to) => rollback.to,
            _ => said,
        }
    }

    /// What the board itself can say of a tag, read from the store.
    pub(super) async fn read_local(
        self: &Arc<Self>,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<Local, Refusal> {
        let began = Instant::now();
        let local = loop {
            let (repository, tag) = (repository.clone(), tag.clone());
            let local = self.blocking(move |mirror| mirror.local_now(&repository, &tag)).await;
            // Mostly it takes but a moment to have an index again.
            let moment = began.elapsed() < budget::INDEX_WAIT_MAX && !self.store.cannot_rebuild();
            match &local {
                Err(problem) if problem.is_without_index() && moment => {
                    tokio::time::sleep(budget::INDEX_WAIT_STEP).await;
                }
                _ => break local,
            }
        };
        match local {
            // A rebuild takes a moment, and until then the owner's wishes are not known. Where the disk lets none be
            // made upstream is asked all the same.
            Err(problem @ StoreError::Rebuilding) if self.store.cannot_rebuild() => {
                Ok(Local { unknown: Some(problem.to_string()), ..Local::default() })
            }
            other => other.map_err(|e| Refusal::from_store(&e)),
        }
    }

    fn local_now(&self, repository: &Repository, tag: &Tag) -> Result<Local, StoreError> {
        let record = self.store.tag(repository, tag)?;
        let mut local = Local { record, ..Local::default() };
        for version in local.record.iter().flat_map(TagRecord::candidates) {
            let found = self.closure(&version.digest)?;
            if found.is_complete() {
                local.complete = Some(version.clone());
                // What went wrong is found out again, and said, by who takes the long way.
                local.at_hand = self.small_manifest_now(repository, &version.digest).unwrap_or(None);
                break;
            }
            local.missing.get_or_insert_with(|| found.missing_text());
        }
        Ok(local)
    }

    /// The newest complete version of a repository: its name and digest.
    async fn older_version(
        self: &Arc<Self>,
        repository: &Repository,
    ) -> Result<Option<(String, Digest)>, Refusal> {
        let wanted = repository.clone();
        let found = self.blocking(move |mirror| {
            let mut versions = Vec::new();
            for (tag, record) in mirror.store.tags(&wanted, None, budget::PENDING_TAGS_MAX)? {
                for version in record.candidates() {
                    versions.push((version.n, format!(":{tag}"), version.digest.clone()));
                }
            }
            versions.sort_by_key(|(n, ..)| std::cmp::Reverse(*n));
            for (_, name, digest) in versions {
                if mirror.closure(&digest)?.is_complete() {
                    return Ok(Some((name, digest)));
                }
            }
            Ok(None)
        });
        found.await.map_err(|e: StoreError| Refusal::from_store(&e))
    }

    /// Has upstream asked for a tag, or joins the question that is under way.
    fn begin_check(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<Flight<Result<Checked, Failure>>, Full> {
        let (mirror, asked) = (Arc::clone(self), Arc::clone(upstream));
        let (question, key) = ((repository.clone(), tag.clone()), (repository.clone(), tag.clone()));
        self.checks
            .join(&self.lanes[upstream.name()], &key, move || mirror.check(&asked, &question.0, &question.1))
    }

    /// Has an upstream that is down asked now and then beside the requests that do not wait for it: there are
    /// registries whose `/v2/`, which probes ask for, fails while their manifests are well.
    fn check_beside(self: &Arc<Self>, upstream: &Arc<Upstream>, repository: &Repository, tag: &Tag) {
        let now = Instant::now();
        let mut beside = self.beside.lock();
        let last = beside.entry(upstream.name().clone()).or_insert(now);
        if now.duration_since(*last) >= budget::BESIDE_EVERY {
            *last = now;
            drop(beside);
            let _ = self.begin_check(upstream, repository, tag);
        }
    }

    /// Asks upstream for a tag and moves the pointers; runs on a lane.
    fn check(&self, upstream: &Upstream, repository: &Repository, tag: &Tag) -> Result<Checked, Failure> {
        let reference = ManifestRef::Tag(tag.clone());
        let head = upstream.head_manifest(&repository.name, &reference)?;
        let checked = match head.digest {
            Some(digest) => {
                let stated = head.media_type.zip(head.size);
                Checked { digest, stated }
            }
            // Not every registry tells a digest on HEAD; then there is no way but to take the manifest.
            None => {
                let fetched = upstream.fetch_manifest(&repository.name, &reference)?;
                self.keep_manifest(upstream, repository, &fetched);
                Checked {
                    digest: fetched.digest,
                    stated: Some((fetched.media_type, fetched.bytes.len() as u64)),
                }
            }
        };
        self.facts.verified(repository, tag, self.verified.note(repository, tag));
        self.claims.forget(repository, tag);
        let moved = self.store.tag_seen(repository, tag, &checked.digest);
        if let Err(problem) = moved.and_then(|()| self.settle(repository, tag)) {
            log::warn!("{repository}:{tag} is {} but that could not be noted: {problem}", checked.digest);
        }
        Ok(checked)
    }

    /// Moves the tag's *complete* pointer if what was seen last is whole.
    pub(super) fn settle(&self, repository: &Repository, tag: &Tag) -> Result<(), StoreError> {
        let Some(record) = self.store.tag(repository, tag)? else { return Ok(()) };
        let Some(seen) = &record.seen else { return Ok(()) };
        if record.complete.as_ref().is_some_and(|complete| complete.digest == seen.digest && !complete.peer) {
            return Ok(());
        }
        if self.closure(&seen.digest)?.is_complete() {
            self.store.tag_complete(repository, tag, &seen.digest)?;
            log::info!("{repository}:{tag} is complete at {}", seen.digest);
        }
        Ok(())
    }

    /// Something of a repository has arrived: tags that waited for it may be complete now.
    pub(super) fn settle_all(&self, repository: &Repository) {
        self.settle_claims(repository);
        let settled = self.store.tags(repository, None, budget::PENDING_TAGS_MAX).and_then(|tags| {
            tags.iter()
                .filter(|(_, record)| waits(record))
                .try_for_each(|(tag, _)| self.settle(repository, tag))
        });
        if let Err(problem) = settled {
            log::warn!("readiness of {repository} could not be noted: {problem}");
        }
    }

    /// What a manifest needs and has, for the wanted platforms.
    pub fn closure(&self, digest: &Digest) -> Result<Closure, StoreError> {
        closure(&self.store, &self.config.platforms, digest)
    }

    fn upstream(&self, registry: &Registry) -> Result<Arc<Upstream>, Refusal> {
        self.upstreams.find(registry).cloned().ok_or_else(|| Refusal::UnknownRegistry(registry.clone()))
    }
}

/// The answer of the tiers that ask nobody: `fresh`, and tags that are frozen.
fn without_asking(policy: TagPolicy, local: &Local, verified: Option<Instant>) -> Option<&Version> {
    let record = local.record.as_ref()?;
    let complete = local.complete.as_ref()?;
    if policy.frozen {
        // What only a peer said must not be frozen: upstream has yet to be asked.
        return (!complete.peer).then_some(complete);
    }
    let seen = record.seen.as_ref()?;
    // A pointer to what is not here yet is no use to a client once the uplink goes, so it is asked for again.
    let served = record.rollback.as_ref().map_or(&seen.digest, |rollback| &rollback.to);
    (complete.digest == *served && verified?.elapsed() < policy.revalidate).then_some(complete)
}

/// Whether a version was seen that is not known to be complete.
fn waits(record: &TagRecord) -> bool {
    let seen = record.seen.as_ref().map(|version| &version.digest);
    seen.is_some() && seen != record.complete.as_ref().map(|version| &version.digest)
}

/// When tags were last verified with their upstream, in this process.
#[derive(Default)]
pub(super) struct Verified(Mutex<HashMap<(Repository, Tag), Instant>>);

impl Verified {
    /// Notes that a tag has been verified, and says when: now.
    fn note(&self, repository: &Repository, tag: &Tag) -> Instant {
        let now = Instant::now();
        let mut known = self.0.lock();
        let key = (repository.clone(), tag.clone());
        if known.len() >= budget::VERIFIED_TAGS_MAX && !known.contains_key(&key) {
            known.clear();
        }
        known.insert(key, now);
        now
    }

    /// When upstream said last what it said first at `unix`: also an answer that changed nothing counts. `None` where
    /// the clock could not be trusted then.
    pub(super) fn said(&self, repository: &Repository, tag: &Tag, unix: Option<u64>) -> Option<u64> {
        let now = clock::trusted_unix();
        let age = self.at(repository, tag).as_ref().map(Instant::elapsed);
        let again = age.zip(now).map(|(age, now)| now.saturating_sub(age.as_secs()));
        again.max(unix)
    }

    /// When a tag was last verified.
    pub(super) fn at(&self, repository: &Repository, tag: &Tag) -> Option<Instant> {
        let known = self.0.lock();
        known.get(&(repository.clone(), tag.clone())).copied()
    }
}

/// Which tags were last said in the log to be answered from something old.
#[derive(Default)]
pub(super) struct StaleReports(Mutex<HashMap<(Repository, Tag), StaleReport>>);

/// What was said, and when.
type StaleReport = (Digest, Tier, Instant);

impl StaleReports {
    /// Whether to say it (again): the log is for people, and clients may ask a thousand times a second.
    fn is_due(&self, repository: &Repository, tag: &Tag, resolved: &Resolved) -> bool {
        let (now, key) = (Instant::now(), (repository.clone(), tag.clone()));
        let mut said = self.0.lock();
        if said.get(&key).is_some_and(|(digest, tier, at)| {
            *digest == resolved.digest
                && *tier == resolved.tier
                && now.duration_since(*at) < budget::STALE_REPORT_EVERY
        }) {
            return false;
        }
        if said.len() >= budget::STALE_REPORTS_MAX && !said.contains_key(&key) {
            said.clear();
        }
        said.insert(key, (resolved.digest.clone(), resolved.tier, now));
        true
    }
}
