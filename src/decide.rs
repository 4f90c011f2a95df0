//! Which version a tag is answered with: the rules of the tiers, as pure functions of what is known.
//!
//! [`before_asking`] decides whether upstream is asked and how long the request waits, [`after_asking`] what is served
//! after upstream's answer or its absence, [`instead_of`] what is served if the chosen version cannot be fetched, and
//! [`offline`] what would be served with every link down. The mirror and the commands use the same functions, so that they
//! cannot disagree. Nothing in here can fail.

use crate::config::{OnMissing, TagPolicy};
use crate::oci::{Digest, Tag};
use std::time::Duration;

/// Which rule answered a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tier {
    /// Verified with upstream less than `revalidate` ago.
    Fresh,
    /// Upstream answered.
    Upstream,
    /// A peer has verified a newer version.
    Peer,
    /// The newest complete version of the tag.
    LastComplete,
    /// The newest complete version of the repository.
    OlderVersion,
    /// Nothing could be served.
    None,
}

impl Tier {
    /// Every tier, best first.
    pub const ALL: [Tier; 6] =
        [Tier::Fresh, Tier::Upstream, Tier::Peer, Tier::LastComplete, Tier::OlderVersion, Tier::None];

    /// The name in logs, headers and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Tier::Fresh => "fresh",
            Tier::Upstream => "upstream",
            Tier::Peer => "peer",
            Tier::LastComplete => "last-complete",
            Tier::OlderVersion => "older-version",
            Tier::None => "none",
        }
    }

    /// Whether the answer may be older than what upstream has.
    pub fn is_stale(self) -> bool {
        matches!(self, Tier::Peer | Tier::LastComplete | Tier::OlderVersion)
    }
}

/// The state of the link to an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// It was not asked since the start.
    NotAsked,
    /// It answers.
    Up,
    /// It answers slowly.
    Slow,
    /// It was down when larder stopped.
    RememberedDown,
    /// It cannot be reached.
    Down,
}

/// A version of a tag that is complete here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompleteVersion<'a> {
    /// Its manifest.
    pub digest: &'a Digest,
    /// A peer named it; this board's upstream did not.
    pub from_peer: bool,
    /// When its upstream named it, in seconds since 1970, if the clock was trusted.
    pub named_at: Option<u64>,
}

/// What is here of a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Here<'a> {
    /// Its first complete version; a rollback comes before the newest.
    pub complete: Option<CompleteVersion<'a>>,
    /// The digest that upstream named last.
    pub seen: Option<&'a Digest>,
    /// A rollback: while upstream names the first digest, the second is served.
    pub rollback: Option<(&'a Digest, &'a Digest)>,
    /// The manifest that the owner wants is on the disk; what it names may not be.
    pub rollback_is_here: bool,
    /// Anything was ever noted of the tag.
    pub is_noted: bool,
    /// The index could be read.
    pub is_known: bool,
}

#[cfg(test)]
impl Here<'_> {
    /// Nothing is here, and the index says so.
    pub const NOTHING: Here<'static> = Here {
        complete: None,
        seen: None,
        rollback: None,
        rollback_is_here: false,
        is_noted: false,
        is_known: true,
    };
}

/// What to do before upstream is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening<'a> {
    /// Serve this version without asking.
    Serve(&'a Digest),
    /// Ask upstream, and wait for so long.
    Ask(UpstreamWait),
    /// Answer without waiting for upstream.
    Offline,
}

/// How long a request waits for upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamWait {
    /// `tags.resolve_deadline`: a cached version can be served instead.
    Deadline,
    /// As long as a client can: there is nothing else to serve.
    Long,
}

/// How asking upstream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamOutcome<'a> {
    /// It named this digest.
    Named(&'a Digest),
    /// It answered 404, 401 or 403.
    Refused,
    /// It answered, but not as a registry does.
    Unusable,
    /// It could not be asked, or did not answer in time.
    Unreachable,
    /// Larder was too busy to ask.
    NotAsked,
}

/// What a tag is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// Serve this version.
    Serve(Tier, &'a Digest),
    /// Pass on upstream's refusal.
    PassOn,
    /// The client must retry: the index is being rebuilt.
    WaitForIndex,
    /// There is nothing to serve.
    Nothing,
}

/// Whether upstream is asked for a tag. `verified`: how long ago the tag was verified, if it was since the start.
pub fn before_asking<'a>(
    policy: TagPolicy,
    reach: Reach,
    here: &Here<'a>,
    verified: Option<Duration>,
) -> Opening<'a> {
    if let Some(complete) = here.complete {
        // A version that only a peer named must not be frozen: upstream was never asked.
        let frozen = policy.frozen && !complete.from_peer;
        // If the newest version is not complete yet, upstream is asked again: the pull that follows completes it.
        let wanted = here.rollback.map(|(_, to)| to).or(here.seen);
        let fresh = !policy.frozen
            && here.seen.is_some()
            && wanted == Some(complete.digest)
            && verified.is_some_and(|age| age < policy.revalidate);
        if frozen || fresh {
            return Opening::Serve(complete.digest);
        }
    }
    match (reach, here.complete.is_some()) {
        (Reach::Down, _) | (Reach::RememberedDown | Reach::Slow, true) => Opening::Offline,
        (Reach::NotAsked | Reach::Up, true) => Opening::Ask(UpstreamWait::Deadline),
        (_, false) => Opening::Ask(UpstreamWait::Long),
    }
}

/// What is served after upstream was asked, or could not be. `claim`: a peer's version that [`best_claim`] chose;
/// `stand_in`: another version of the repository, if [`may_stand_in`].
pub fn after_asking<'a>(
    policy: TagPolicy,
    asked: UpstreamOutcome<'a>,
    here: &Here<'a>,
    claim: Option<&'a Digest>,
    stand_in: Option<&'a Digest>,
) -> Verdict<'a> {
    match (asked, claim) {
        (UpstreamOutcome::Named(digest), _) => match here.rollback {
            // The owner's choice holds while upstream names what was left, also where a layer has to be fetched again.
            Some((from, to)) if from == digest && here.rollback_is_here => Verdict::Serve(Tier::Upstream, to),
            _ => Verdict::Serve(Tier::Upstream, digest),
        },
        (UpstreamOutcome::Refused, _) if policy.on_missing == OnMissing::Pass => Verdict::PassOn,
        (UpstreamOutcome::Unreachable, Some(claimed)) => Verdict::Serve(Tier::Peer, claimed),
        _ => fall_back(here, stand_in),
    }
}

/// What is served with every link down.
pub fn offline<'a>(policy: TagPolicy, here: &Here<'a>, stand_in: Option<&'a Digest>) -> Verdict<'a> {
    match before_asking(policy, Reach::Down, here, None) {
        Opening::Serve(digest) => Verdict::Serve(Tier::Fresh, digest),
        Opening::Ask(_) | Opening::Offline => {
            after_asking(policy, UpstreamOutcome::Unreachable, here, None, stand_in)
        }
    }
}

/// Whether the answer of an endpoint for a tag is older than upstream's last one: it is lower in the order, and its answer has
/// an earlier date. Both are a date by the registry's clock, and the place of the endpoint.
pub fn is_older(told: (Option<u64>, usize), last: Option<(u64, usize)>) -> bool {
    let (Some(date), Some((last_date, last_place))) = (told.0, last) else { return false };
    told.1 > last_place && date < last_date
}

/// What is served if `chosen`, which `tier` named, cannot be fetched: an older complete version is better than an error,
/// if the chosen one came from upstream or a peer.
pub fn instead_of<'a>(
    tier: Tier,
    chosen: &Digest,
    here: &Here<'a>,
    stand_in: Option<&'a Digest>,
) -> Verdict<'a> {
    match (tier, fall_back(here, stand_in)) {
        (Tier::Upstream | Tier::Peer, Verdict::Serve(other, digest)) if digest != chosen => {
            Verdict::Serve(other, digest)
        }
        _ => Verdict::Nothing,
    }
}

fn fall_back<'a>(here: &Here<'a>, stand_in: Option<&'a Digest>) -> Verdict<'a> {
    match (here.complete, stand_in) {
        (Some(complete), _) => Verdict::Serve(Tier::LastComplete, complete.digest),
        (None, Some(other)) if !here.is_noted => Verdict::Serve(Tier::OlderVersion, other),
        (None, _) if !here.is_known => Verdict::WaitForIndex,
        (None, _) => Verdict::Nothing,
    }
}

/// Whether another version of the repository may stand in for a tag with this local state. A tag that names a digest, such
/// as that of a signature, is no version: nothing stands in for it, as it stands in for nothing.
pub fn may_stand_in(fallback_versions: bool, tag: &Tag, here: &Here<'_>) -> bool {
    fallback_versions && !tag.names_a_digest() && here.complete.is_none() && !here.is_noted
}

/// Whether peers are asked for a tag while its upstream cannot be. `now`: the time, if the clock is trusted.
///
/// A complete version here is kept without asking peers if it is a rollback, if upstream is only slow, or if the times
/// cannot be compared.
pub fn may_ask_peers(reach: Reach, here: &Here<'_>, now: Option<u64>) -> bool {
    match here.complete {
        None => true,
        Some(complete) => {
            reach != Reach::Slow && here.rollback.is_none() && complete.named_at.is_some() && now.is_some()
        }
    }
}

/// The claim of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerClaim<'a> {
    /// The version.
    pub digest: &'a Digest,
    /// When the peer's upstream named it, in seconds since 1970, if its clock was trusted.
    pub named_at: Option<u64>,
}

/// The claim that is better than the version here: its index, and its time if that is plausible. `now`: the time, if the
/// clock is trusted; `ahead_max`: seconds that a claim may be ahead of it.
///
/// If nothing is complete here, any claim is better; the newest with a plausible time comes first. A complete version is
/// replaced only by a newer one, and only if both times are known and plausible.
pub fn best_claim(
    claims: &[PeerClaim<'_>],
    complete: Option<CompleteVersion<'_>>,
    now: Option<u64>,
    ahead_max: u64,
) -> Option<(usize, Option<u64>)> {
    let latest = now.map(|now| now.saturating_add(ahead_max));
    // An implausible time counts as none; else it would come before every later claim.
    let plausible =
        |claim: &PeerClaim<'_>| claim.named_at.filter(|at| latest.is_none_or(|latest| *at <= latest));
    let numbered = claims.iter().enumerate();
    let Some(complete) = complete else {
        let (at, claim) = numbered.max_by_key(|(_, claim)| (plausible(claim), claim.named_at.is_none()))?;
        return Some((at, plausible(claim)));
    };
    let (_, since) = now.zip(complete.named_at)?;
    let newer = numbered.filter_map(|(at, claim)| Some((at, plausible(claim).filter(|time| *time > since)?)));
    let (at, time) = newer.max_by_key(|(_, time)| *time)?;
    (claims[at].digest != complete.digest).then_some((at, Some(time)))
}

#[cfg(test)]
mod tests;
