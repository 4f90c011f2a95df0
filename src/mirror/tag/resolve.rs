//! Answering a tag: asks upstream and waits within a bound, calls `decide`, and fetches the manifest.
//!
//! Upstream is asked first if it can be reached. A question that takes longer than its bound continues in the background
//! and moves the pointer when it ends, so that over a slow link a tag is one request behind and never stuck. No request
//! waits for an upstream that is known to be down.

use super::super::access::View;
use super::super::content::{ManifestAnswer, ManifestContent, Manifests, SmallManifest};
use super::super::context::{Context, link_text, miss_wait, no_answer_text, reach};
use super::super::counters::ByteSource;
use super::super::proof::Proofs;
use super::super::questions::{QUEUE_FULL, Questions, question_failed};
use super::super::refusal::{CachedOnly, Missing, Refusal};
use super::super::single_flight::SingleFlight;
use super::check::{StaleClaim, UpstreamDigest};
use super::local::LocalTag;
use super::settle::Settler;
use super::table::TagTable;
use crate::budget;
use crate::clock;
use crate::decide::{self, Here, Opening, Tier, UpstreamOutcome, UpstreamWait, Verdict};
use crate::fetch::{Failure, Upstream};
use crate::image::{Closures, served};
use crate::kit::Claim;
use crate::oci::{Digest, RegistryName, Repository, Tag};
use crate::store::{Stamp, StoreError};
use crate::sync::Mutex;
use crate::via;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// The answer to a tag.
#[derive(Debug)]
pub struct TagAnswer {
    /// The version that is served.
    pub digest: Digest,
    /// The rule that chose it.
    pub tier: Tier,
    /// Why the answer may be stale, if it may be.
    pub cause: Option<String>,
    /// For how many seconds upstream has not named it, if it may be stale and that is known.
    pub age: Option<u64>,
    /// Its manifest, or what is known of it.
    pub content: TagContent,
}

/// The manifest that a tag names, or what is known of it.
#[derive(Debug)]
pub enum TagContent {
    /// It is not here; media type and size in bytes as upstream stated them, which is all that a HEAD needs.
    Stated(String, u64),
    /// The manifest.
    Manifest(ManifestAnswer),
}

/// Tags.
pub(in crate::mirror) struct Tags {
    pub(super) context: Arc<Context>,
    pub(super) questions: Arc<Questions>,
    pub(super) manifests: Arc<Manifests>,
    pub(super) table: Arc<TagTable>,
    pub(super) settler: Arc<Settler>,
    pub(super) proofs: Arc<Proofs>,
    pub(super) checks: SingleFlight<(View, Tag), Result<UpstreamDigest, Failure>>,
    /// When an upstream that is down was last asked in the background.
    pub(super) last_background_check: Mutex<HashMap<RegistryName, Instant>>,
}

/// The version that was chosen for a tag.
struct Choice {
    digest: Digest,
    tier: Tier,
    cause: Option<String>,
    age: Option<u64>,
    stated: Option<(String, u64)>,
    /// Upstream has named it, and no bytes have proved it.
    by_head: bool,
    /// Its manifest, if that is here, public and small.
    small: Option<SmallManifest>,
}

/// How asking upstream ended, and why.
enum Outcome {
    Named(UpstreamDigest),
    /// What answered cannot reach upstream either, or is behind: a claim, and why it is no more.
    Claimed(StaleClaim),
    Failed(Failure),
    Unreachable(String),
    NotAsked(String),
}

impl Outcome {
    fn asked(&self) -> UpstreamOutcome<'_> {
        match self {
            Outcome::Named(answer) => UpstreamOutcome::Named(&answer.digest),
            Outcome::Failed(Failure::Missing { .. } | Failure::Denied { .. }) => UpstreamOutcome::Refused,
            Outcome::Failed(failure) if failure.is_outage() => UpstreamOutcome::Unreachable,
            Outcome::Failed(_) => UpstreamOutcome::Unusable,
            Outcome::Claimed(_) | Outcome::Unreachable(_) => UpstreamOutcome::Unreachable,
            Outcome::NotAsked(_) => UpstreamOutcome::NotAsked,
        }
    }

    /// A refusal where the login is gone is none: it would be another answer with it.
    fn without_login(self, local: &LocalTag) -> Outcome {
        match self {
            Outcome::Failed(refused @ (Failure::Missing { .. } | Failure::Denied { .. }))
                if local.lost_login =>
            {
                Outcome::Unreachable(format!(
                    "{refused}; the login that fetched it is not configured any more"
                ))
            }
            outcome => outcome,
        }
    }

    fn claim(&self) -> Option<Claim> {
        if let Outcome::Claimed(stale) = self { Some(stale.claim.clone()) } else { None }
    }

    fn cause(&self) -> String {
        match self {
            Outcome::Named(_) => String::new(),
            Outcome::Failed(failure) => failure.to_string(),
            Outcome::Claimed(stale) => stale.why.clone(),
            Outcome::Unreachable(cause) | Outcome::NotAsked(cause) => cause.clone(),
        }
    }
}

impl Tags {
    pub(in crate::mirror) fn new(
        context: Arc<Context>,
        questions: Arc<Questions>,
        manifests: Arc<Manifests>,
        table: Arc<TagTable>,
        settler: Arc<Settler>,
        proofs: Arc<Proofs>,
    ) -> Tags {
        let (checks, last_background_check) = (SingleFlight::default(), Mutex::default());
        Tags { context, questions, manifests, table, settler, proofs, checks, last_background_check }
    }

    /// Answers a tag. `head`: the manifest's bytes are not wanted. `cached_only`: why upstream is not asked for this client.
    /// All that upstream is asked for one request has one wait: later questions get what is left of it.
    ///
    /// # Errors
    /// [`Refusal::Missing`] and [`Refusal::Denied`] are upstream's own answers; [`Refusal::Unavailable`] names the
    /// upstream, since when it is unreachable and what is missing here.
    pub(in crate::mirror) async fn answer(
        self: &Arc<Self>,
        view: &View,
        tag: &Tag,
        head: bool,
        cached_only: Option<CachedOnly>,
    ) -> Result<TagAnswer, Refusal> {
        let repository = &view.repository;
        let until = Instant::now() + miss_wait();
        let choice = match self.choose(view, tag, cached_only, until).await {
            Ok(choice) => choice,
            Err(refusal) => {
                self.context.counters.count_resolve(Tier::None);
                return Err(refusal);
            }
        };
        self.report(repository, tag, &choice);
        if let Some(small) = choice.small.clone() {
            self.context.store.touch(&choice.digest);
            let content = ManifestContent::Small(small);
            return Ok(choice.with(ManifestAnswer { content, source: ByteSource::Cache }));
        }
        if head && let Some((media_type, size)) = choice.stated.clone() {
            return Ok(match self.manifests.cached(view, &choice.digest).await? {
                Some(answer) => choice.with(answer),
                None => choice.into_answer(TagContent::Stated(media_type, size)),
            });
        }
        let refusal = match self.manifests.manifest(view, &choice.digest, until).await {
            Ok(answer) => return Ok(choice.with(answer)),
            Err(refusal @ (Refusal::Unavailable(_) | Refusal::Missing { .. })) => refusal,
            Err(refusal) => return Err(refusal),
        };
        let named = self.named_by_bytes(view, tag, &choice, (cached_only, until)).await;
        let other = match named {
            Some(other) => Some(other),
            None => self.instead(view, tag, &choice, &refusal).await,
        };
        let Some(other) = other else { return Err(refusal) };
        self.report(repository, tag, &other);
        let answer = self.manifests.manifest(view, &other.digest, until).await?;
        Ok(other.with(answer))
    }

    /// What upstream's GET of the tag is, if its HEAD has named something that is nowhere.
    async fn named_by_bytes(
        self: &Arc<Self>,
        view: &View,
        tag: &Tag,
        chosen: &Choice,
        (cached_only, until): (Option<CachedOnly>, Instant),
    ) -> Option<Choice> {
        let upstream = self.context.upstream(&view.registry).ok()?;
        if !chosen.by_head || !upstream.lacks_head(&view.name) {
            return None;
        }
        let again = self.choose(view, tag, cached_only, until).await.ok()?;
        (!again.by_head && again.tier == Tier::Upstream && again.digest != chosen.digest).then_some(again)
    }

    /// Another version, if the chosen one cannot be fetched.
    async fn instead(
        self: &Arc<Self>,
        view: &View,
        tag: &Tag,
        chosen: &Choice,
        refusal: &Refusal,
    ) -> Option<Choice> {
        let (local, ..) = self.local(view, tag).await.ok()?;
        let here = local.here(None);
        let stand_in = self.stand_in(view, tag, &here).await.ok()?;
        let other = stand_in.as_ref().map(|(_, digest)| digest);
        match decide::instead_of(chosen.tier, &chosen.digest, &here, other) {
            Verdict::Serve(tier, digest) => {
                let cause = cause_with_stand_in(refusal.to_string(), tier, stand_in.as_ref());
                Some(Choice::of(tier, digest, Some(cause), &local))
            }
            Verdict::PassOn | Verdict::WaitForIndex | Verdict::Nothing => None,
        }
    }

    async fn choose(
        self: &Arc<Self>,
        view: &View,
        tag: &Tag,
        cached_only: Option<CachedOnly>,
        until: Instant,
    ) -> Result<Choice, Refusal> {
        let repository = &view.repository;
        let upstream = self.context.upstream(&repository.registry)?;
        let policy = self.context.config.now().tags.policy(repository, tag);
        let (local, verified, stamp) = self.local(view, tag).await?;
        let here = local.here(None);
        let age = verified.map(|at| at.elapsed());
        let link = upstream.link_for(&repository.name, tag);
        let opening = decide::before_asking(policy, reach(&link), &here, age);
        let outcome = match (opening, cached_only) {
            (Opening::Serve(digest), _) => return Ok(Choice::of(Tier::Fresh, digest, None, &local)),
            (_, Some(why)) => Outcome::NotAsked(why.cause().into()),
            (Opening::Ask(wait), None) => self.ask(&upstream, view, tag, (wait, until)).await?,
            (Opening::Offline, None) => {
                let cause = link_text(upstream.name(), link);
                self.check_in_background(&upstream, view, tag);
                Outcome::Unreachable(cause)
            }
        };
        let outcome = outcome.without_login(&local);
        let asked = outcome.asked();
        let claim = match asked {
            UpstreamOutcome::Unreachable => {
                self.claim(&upstream, repository, tag, &local, outcome.claim()).await
            }
            _ => None,
        };
        let claimed = claim.as_ref().map(|claim| &claim.digest);
        let mut stand_in = None;
        let mut verdict = decide::after_asking(policy, asked, &here, claimed, None);
        if matches!(verdict, Verdict::Nothing | Verdict::WaitForIndex) {
            stand_in = self.stand_in(view, tag, &here).await?;
            let other = stand_in.as_ref().map(|(_, digest)| digest);
            verdict = decide::after_asking(policy, asked, &here, claimed, other);
        }
        let cause = outcome.cause();
        match (verdict, &outcome, claim.as_ref()) {
            (Verdict::Serve(tier, digest), Outcome::Named(named), _) => {
                let stated = named.stated.clone().filter(|_| *digest == named.digest);
                let choice = Choice::of(tier, digest, None, &local);
                // While upstream was asked it may have been removed.
                let small = choice.small.filter(|_| stamp == self.context.store.stamp());
                Ok(Choice { stated, small, by_head: named.by_head, ..choice })
            }
            (Verdict::Serve(Tier::Peer, digest), _, Some(claim)) => {
                let cause = format!("{cause}; peer {} has this version", claim.peer);
                Ok(Choice::of(Tier::Peer, digest, Some(cause), &local).named_at(claim.unix))
            }
            (Verdict::Serve(tier, digest), ..) => {
                let cause = cause_with_stand_in(cause, tier, stand_in.as_ref());
                let named_at = self.named_at(repository, tag, &local).filter(|_| tier == Tier::LastComplete);
                Ok(Choice::of(tier, digest, Some(cause), &local).named_at(named_at))
            }
            (Verdict::PassOn, Outcome::Failed(failure), _) => {
                Err(Refusal::from_failure(failure, Missing::Manifest))
            }
            (Verdict::WaitForIndex, ..) => {
                Err(Refusal::Busy(format!("{cause}; the tag index is being rebuilt; retry")))
            }
            (Verdict::Nothing | Verdict::PassOn, ..) => {
                Err(self.nothing_to_serve(view, tag, &cause, &local, cached_only).await)
            }
        }
    }

    /// Asks upstream, and waits for it within a bound, and no longer than `until`.
    async fn ask(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        view: &View,
        tag: &Tag,
        (wait, until): (UpstreamWait, Instant),
    ) -> Result<Outcome, Refusal> {
        let left = until.saturating_duration_since(Instant::now());
        let short = via::way().short(self.context.config.now().tags.resolve_deadline);
        let bound = if wait == UpstreamWait::Deadline { short.min(left) } else { left };
        let Ok(question) = self.begin_check(upstream, view, tag) else {
            return Ok(Outcome::NotAsked(QUEUE_FULL.into()));
        };
        match tokio::time::timeout(bound, question.answer()).await {
            Ok(Some(Ok(UpstreamDigest { stale: Some(stale), .. }))) => Ok(Outcome::Claimed(stale)),
            Ok(Some(Ok(answer))) => Ok(Outcome::Named(answer)),
            Ok(Some(Err(failure))) => Ok(Outcome::Failed(failure)),
            Ok(None) => Err(question_failed()),
            Err(_) => {
                // What little time earlier questions left says nothing of it.
                if bound >= short {
                    upstream.overdue(&view.name, tag);
                }
                Ok(Outcome::Unreachable(no_answer_text(&upstream.label(), bound)))
            }
        }
    }

    fn report(&self, repository: &Repository, tag: &Tag, choice: &Choice) {
        self.context.counters.count_resolve(choice.tier);
        let Some(cause) = choice.cause.as_ref().filter(|_| choice.tier.is_stale()) else { return };
        let key = (repository.clone(), tag.clone());
        if self.table.is_report_due(&key, &choice.digest, choice.tier, Instant::now()) {
            let tier = choice.tier.as_str();
            log::warn!("{repository}:{tag} answered from {tier} ({}): {cause}", choice.digest);
        }
    }

    /// What the board itself can say of a tag, when it was last verified, and the store's stamp at which that holds.
    async fn local(
        self: &Arc<Self>,
        view: &View,
        tag: &Tag,
    ) -> Result<(Arc<LocalTag>, Option<Instant>, Option<Stamp>), Refusal> {
        let key = (view.repository.clone(), tag.clone());
        let stamp = self.context.store.stamp();
        let (known, verified) = self.table.find(&key, view.clearance, stamp);
        if let Some(local) = known {
            return Ok((local, verified, stamp));
        }
        let local = Arc::new(self.read_local(view, tag, stamp).await?);
        if let Some(stamp) = stamp.filter(|_| local.unknown.is_none()) {
            self.table.keep(&key, view.clearance, stamp, &local);
        }
        Ok((local, verified, stamp))
    }

    async fn read_local(
        self: &Arc<Self>,
        view: &View,
        tag: &Tag,
        stamp: Option<Stamp>,
    ) -> Result<LocalTag, Refusal> {
        let began = Instant::now();
        loop {
            let (view, tag, tags) = (view.clone(), tag.clone(), Arc::clone(self));
            let read = move |context: &Context| tags.local_now(context, &view, &tag, stamp);
            let problem = match self.context.try_blocking(read).await {
                Ok(local) => return Ok(local),
                Err(problem) => problem,
            };
            // During a rebuild pins and rollbacks are not known, so the request waits for its end. If the disk takes no
            // index at all, upstream is asked without them.
            let unbuildable = self.context.store.cannot_rebuild();
            if matches!(problem, StoreError::Rebuilding) && unbuildable {
                return Ok(LocalTag { unknown: Some(problem.to_string()), ..LocalTag::default() });
            }
            if unbuildable || !problem.is_without_index() || began.elapsed() >= budget::INDEX_WAIT_MAX {
                return Err(Refusal::from_store(&problem));
            }
            tokio::time::sleep(budget::INDEX_WAIT_STEP).await;
        }
    }

    fn local_now(
        &self,
        context: &Context,
        view: &View,
        tag: &Tag,
        stamp: Option<Stamp>,
    ) -> Result<LocalTag, StoreError> {
        let repository = &view.repository;
        let Some(record) = context.store.tag(repository, tag)? else { return Ok(LocalTag::default()) };
        let Some(record) = context.visible(view, record)? else { return Ok(LocalTag::default()) };
        let config = context.config.now();
        let closures = Closures::new(&context.store, &config).seen_with(view.clearance);
        let (mut missing, mut small) = (None, None);
        let complete = served(&closures, repository, &record)?.map(|(version, _)| version.clone());
        match (&complete, record.candidates().first()) {
            // An error here occurs again, and is reported, when the manifest is served.
            (Some(version), _) => {
                if let Ok(Some(ManifestContent::Small(read))) =
                    self.manifests.read(view, &version.digest, stamp)
                {
                    small = Some(read);
                }
            }
            (None, Some(nearest)) => missing = Some(closures.of(repository, &nearest.digest)?.missing_text()),
            (None, None) => {}
        }
        let rollback = record.rollback.as_ref();
        let rollback_is_here = match rollback {
            Some(rollback) => context.sees(view, &rollback.to)?,
            None => false,
        };
        let lost_login = context.has_lost_login(repository)?;
        let record = Some(record);
        Ok(LocalTag { record, complete, small, missing, rollback_is_here, lost_login, unknown: None })
    }

    /// The newest complete image of the repository that runs here, by name and digest, if it may stand in for a tag with this
    /// local state.
    async fn stand_in(
        &self,
        view: &View,
        tag: &Tag,
        here: &Here<'_>,
    ) -> Result<Option<(String, Digest)>, Refusal> {
        if !decide::may_stand_in(self.context.config.now().tags.fallback_versions, tag, here) {
            return Ok(None);
        }
        let wanted = view.clone();
        let find = move |context: &Context| {
            let mut versions = Vec::new();
            for (tag, record) in context.store.tags(&wanted, None, budget::PENDING_TAGS_MAX)? {
                let visible = if tag.names_a_digest() { None } else { context.visible(&wanted, record)? };
                let Some(record) = visible else { continue };
                let each = record.candidates().into_iter().cloned();
                versions.extend(each.map(|version| (format!(":{tag}"), version)));
            }
            versions.sort_by_key(|(_, version)| std::cmp::Reverse(version.n));
            let config = context.config.now();
            let closures = Closures::new(&context.store, &config).seen_with(wanted.clearance);
            for (name, version) in versions {
                // However many versions there are, the request has an answer in time.
                if closures.looks() > budget::SETTLE_LOOKS_MAX {
                    break;
                }
                if closures.runs_here(&wanted, &version.digest)? {
                    return Ok(Some((name, version.digest)));
                }
            }
            Ok(None)
        };
        self.context.blocking(find).await
    }
}

/// The cause of a stale answer, with the name of the version that stands in.
fn cause_with_stand_in(cause: String, tier: Tier, stand_in: Option<&(String, Digest)>) -> String {
    match stand_in {
        Some((version, _)) if tier == Tier::OlderVersion => format!("{cause}; {version} stands in"),
        _ => cause,
    }
}

impl Choice {
    fn of(tier: Tier, digest: &Digest, cause: Option<String>, local: &LocalTag) -> Choice {
        let complete = local.complete.as_ref().is_some_and(|version| version.digest == *digest);
        let small = local.small.clone().filter(|_| complete);
        Choice { digest: digest.clone(), tier, cause, age: None, stated: None, by_head: false, small }
    }

    /// Upstream named it last at that time, in seconds since 1970. Another board is told.
    fn named_at(self, unix: Option<u64>) -> Choice {
        let age = unix
            .filter(|_| via::way().is_from_board())
            .zip(clock::trusted_unix())
            .map(|(at, now)| now.saturating_sub(at));
        Choice { age, ..self }
    }

    fn with(self, manifest: ManifestAnswer) -> TagAnswer {
        self.into_answer(TagContent::Manifest(manifest))
    }

    fn into_answer(self, content: TagContent) -> TagAnswer {
        TagAnswer { digest: self.digest, tier: self.tier, cause: self.cause, age: self.age, content }
    }
}
