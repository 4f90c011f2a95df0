//! The table of tiers, row by row.

use super::*;
use std::sync::LazyLock;

const NOW: u64 = 1_800_000_000;
const AHEAD: u64 = 600;
const SECOND: Duration = Duration::from_secs(1);

fn digest(fill: char) -> Digest {
    format!("sha256:{}", String::from(fill).repeat(64)).parse().unwrap()
}

static OLD: LazyLock<Digest> = LazyLock::new(|| digest('0'));
static NEW: LazyLock<Digest> = LazyLock::new(|| digest('1'));
static OTHER: LazyLock<Digest> = LazyLock::new(|| digest('2'));

fn policy(revalidate: Duration, on_missing: OnMissing, frozen: bool) -> TagPolicy {
    TagPolicy { revalidate, on_missing, frozen }
}

fn plain() -> TagPolicy {
    policy(Duration::ZERO, OnMissing::Pass, false)
}

fn complete(digest: &Digest) -> CompleteVersion<'_> {
    CompleteVersion { digest, from_peer: false, named_at: Some(NOW - 100) }
}

/// The old version is complete, and upstream named it last.
fn cached() -> Here<'static> {
    Here { complete: Some(complete(&OLD)), seen: Some(&OLD), is_noted: true, ..Here::NOTHING }
}

/// Upstream named the new version, of which nothing is here, and the old one is complete.
fn half() -> Here<'static> {
    Here { seen: Some(&NEW), ..cached() }
}

/// Upstream named the new version, and none is complete.
fn partial() -> Here<'static> {
    Here { complete: None, ..half() }
}

/// Upstream named the new version and the owner wants the old one.
fn rolled_back() -> Here<'static> {
    Here { rollback: Some((&NEW, &OLD)), rollback_is_here: true, ..half() }
}

/// Nothing is here, and the index cannot be asked.
fn unknown() -> Here<'static> {
    Here { is_known: false, ..Here::NOTHING }
}

#[test]
fn an_older_answer_of_a_lower_endpoint_is_told_from_others() {
    for (told, last, older) in [
        ((Some(5), 1), Some((6, 0)), true),
        ((Some(5), 2), Some((6, 1)), true),
        ((Some(6), 1), Some((6, 0)), false),
        ((Some(5), 0), Some((6, 1)), false),
        // Its own clock was set back, or another of its machines answers.
        ((Some(5), 1), Some((6, 1)), false),
        ((None, 1), Some((6, 0)), false),
        ((Some(5), 1), None, false),
    ] {
        assert_eq!(is_older(told, last), older, "{told:?} {last:?}");
    }
}

#[test]
fn tiers_are_listed_from_the_best_on_and_what_is_not_upstreams_word_may_be_stale() {
    let table = [
        (Tier::Fresh, "fresh", false),
        (Tier::Upstream, "upstream", false),
        (Tier::Peer, "peer", true),
        (Tier::LastComplete, "last-complete", true),
        (Tier::OlderVersion, "older-version", true),
        (Tier::None, "none", false),
    ];
    assert_eq!(Tier::ALL.map(|tier| (tier, tier.as_str(), tier.is_stale())), table);
}

#[test]
fn who_is_asked_and_how_long_the_request_waits() {
    use Opening::{Ask, Offline};
    use UpstreamWait::{Deadline, Long};
    let table = [
        (Reach::NotAsked, cached(), Ask(Deadline)),
        (Reach::Up, cached(), Ask(Deadline)),
        (Reach::Slow, cached(), Offline),
        (Reach::RememberedDown, cached(), Offline),
        (Reach::Down, cached(), Offline),
        (Reach::NotAsked, partial(), Ask(Long)),
        (Reach::Up, partial(), Ask(Long)),
        (Reach::Slow, partial(), Ask(Long)),
        (Reach::RememberedDown, partial(), Ask(Long)),
        (Reach::Down, partial(), Offline),
        (Reach::Up, Here::NOTHING, Ask(Long)),
        (Reach::Down, Here::NOTHING, Offline),
    ];
    for (reach, here, expected) in table {
        assert_eq!(before_asking(plain(), reach, &here, None), expected, "{reach:?} {here:?}");
    }
}

#[test]
fn a_tag_is_fresh_only_while_it_was_verified_and_what_it_names_is_here() {
    let fresh = policy(10 * SECOND, OnMissing::Pass, false);
    let ask = Opening::Ask(UpstreamWait::Deadline);
    let table = [
        (fresh, cached(), Some(9 * SECOND), Opening::Serve(&OLD)),
        (fresh, cached(), Some(10 * SECOND), ask),
        (fresh, cached(), None, ask),
        (fresh, half(), Some(SECOND), ask),
        (fresh, rolled_back(), Some(SECOND), Opening::Serve(&OLD)),
        (fresh, Here { seen: None, ..cached() }, Some(SECOND), ask),
        (fresh, Here { seen: None, ..rolled_back() }, Some(SECOND), ask),
        (fresh, Here { rollback: Some((&OLD, &OTHER)), ..cached() }, Some(SECOND), ask),
        (plain(), cached(), Some(Duration::ZERO), ask),
    ];
    for (policy, here, verified, expected) in table {
        assert_eq!(before_asking(policy, Reach::Up, &here, verified), expected, "{here:?} {verified:?}");
    }
    assert_eq!(before_asking(fresh, Reach::Down, &cached(), Some(SECOND)), Opening::Serve(&OLD));
}

#[test]
fn a_frozen_tag_is_never_asked_for_once_upstream_has_named_it() {
    let frozen = policy(10 * SECOND, OnMissing::Pass, true);
    for reach in [Reach::NotAsked, Reach::Up, Reach::Slow, Reach::RememberedDown, Reach::Down] {
        assert_eq!(before_asking(frozen, reach, &half(), None), Opening::Serve(&OLD), "{reach:?}");
    }
    let of_peer = CompleteVersion { from_peer: true, ..complete(&OLD) };
    let of_peer = Here { complete: Some(of_peer), ..cached() };
    let ask = Opening::Ask(UpstreamWait::Deadline);
    assert_eq!(before_asking(frozen, Reach::Up, &of_peer, Some(Duration::ZERO)), ask);
    assert_eq!(before_asking(frozen, Reach::Up, &partial(), None), Opening::Ask(UpstreamWait::Long));
}

#[test]
fn what_upstream_says_decides_what_is_served() {
    use Verdict::{Nothing, PassOn, Serve, WaitForIndex};
    let keep = policy(Duration::ZERO, OnMissing::Serve, false);
    let last = Serve(Tier::LastComplete, &OLD);
    let table = [
        (plain(), UpstreamOutcome::Named(&NEW), cached(), Serve(Tier::Upstream, &NEW)),
        (plain(), UpstreamOutcome::Named(&OLD), cached(), Serve(Tier::Upstream, &OLD)),
        (plain(), UpstreamOutcome::Named(&NEW), Here::NOTHING, Serve(Tier::Upstream, &NEW)),
        (plain(), UpstreamOutcome::Named(&NEW), rolled_back(), Serve(Tier::Upstream, &OLD)),
        (plain(), UpstreamOutcome::Named(&OTHER), rolled_back(), Serve(Tier::Upstream, &OTHER)),
        (
            plain(),
            UpstreamOutcome::Named(&NEW),
            Here { complete: None, ..rolled_back() },
            Serve(Tier::Upstream, &OLD),
        ),
        (
            plain(),
            UpstreamOutcome::Named(&NEW),
            Here { rollback_is_here: false, ..rolled_back() },
            Serve(Tier::Upstream, &NEW),
        ),
        (
            plain(),
            UpstreamOutcome::Named(&NEW),
            Here { rollback: Some((&NEW, &OTHER)), ..half() },
            Serve(Tier::Upstream, &NEW),
        ),
        (plain(), UpstreamOutcome::Refused, cached(), PassOn),
        (plain(), UpstreamOutcome::Refused, Here::NOTHING, PassOn),
        (keep, UpstreamOutcome::Refused, cached(), last),
        (keep, UpstreamOutcome::Refused, Here::NOTHING, Nothing),
        (plain(), UpstreamOutcome::Unusable, cached(), last),
        (plain(), UpstreamOutcome::Unreachable, cached(), last),
        (plain(), UpstreamOutcome::Unreachable, half(), last),
        (plain(), UpstreamOutcome::Unreachable, partial(), Nothing),
        (plain(), UpstreamOutcome::NotAsked, cached(), last),
        (plain(), UpstreamOutcome::NotAsked, Here::NOTHING, Nothing),
        (plain(), UpstreamOutcome::Unreachable, unknown(), WaitForIndex),
        (plain(), UpstreamOutcome::Unreachable, Here { is_known: false, ..cached() }, last),
        (plain(), UpstreamOutcome::Unreachable, Here::NOTHING, Nothing),
    ];
    for (policy, asked, here, expected) in table {
        assert_eq!(after_asking(policy, asked, &here, None, None), expected, "{asked:?} {here:?}");
    }
}

#[test]
fn a_peer_counts_only_while_upstream_cannot_be_reached() {
    let answer = |asked, here| after_asking(plain(), asked, &here, Some(&OTHER), None);
    assert_eq!(answer(UpstreamOutcome::Unreachable, cached()), Verdict::Serve(Tier::Peer, &OTHER));
    assert_eq!(answer(UpstreamOutcome::Unreachable, Here::NOTHING), Verdict::Serve(Tier::Peer, &OTHER));
    assert_eq!(answer(UpstreamOutcome::Named(&NEW), cached()), Verdict::Serve(Tier::Upstream, &NEW));
    assert_eq!(answer(UpstreamOutcome::Refused, cached()), Verdict::PassOn);
    for asked in [UpstreamOutcome::Unusable, UpstreamOutcome::NotAsked] {
        assert_eq!(answer(asked, cached()), Verdict::Serve(Tier::LastComplete, &OLD), "{asked:?}");
    }
    let keep = policy(Duration::ZERO, OnMissing::Serve, false);
    let refused = after_asking(keep, UpstreamOutcome::Refused, &cached(), Some(&OTHER), None);
    assert_eq!(refused, Verdict::Serve(Tier::LastComplete, &OLD), "a refusal is an answer");
}

#[test]
fn another_version_stands_in_only_for_a_tag_that_was_never_seen() {
    let answer =
        |here: Here<'static>| after_asking(plain(), UpstreamOutcome::Unreachable, &here, None, Some(&OTHER));
    assert_eq!(answer(Here::NOTHING), Verdict::Serve(Tier::OlderVersion, &OTHER));
    assert_eq!(answer(unknown()), Verdict::Serve(Tier::OlderVersion, &OTHER), "nobody waits for the index");
    assert_eq!(answer(partial()), Verdict::Nothing);
    assert_eq!(answer(cached()), Verdict::Serve(Tier::LastComplete, &OLD));
    let may_stand_in = |allowed, here: &Here<'_>| may_stand_in(allowed, &"2.0".parse().unwrap(), here);
    assert!(may_stand_in(true, &Here::NOTHING) && !may_stand_in(false, &Here::NOTHING));
    assert!(!may_stand_in(true, &partial()) && !may_stand_in(true, &cached()));
    assert!(!may_stand_in(true, &Here { is_noted: false, ..cached() }));
    let signature = format!("sha256-{}.sig", "0".repeat(64)).parse().unwrap();
    assert!(!super::may_stand_in(true, &signature, &Here::NOTHING), "a signature is no version");
}

#[test]
fn with_every_link_down_the_last_complete_version_is_served() {
    let last = Verdict::Serve(Tier::LastComplete, &OLD);
    assert_eq!(offline(plain(), &half(), None), last);
    assert_eq!(offline(plain(), &rolled_back(), None), last);
    let fresh = policy(10 * SECOND, OnMissing::Pass, false);
    assert_eq!(offline(fresh, &cached(), None), last, "freshness does not last");
    assert_eq!(offline(plain(), &partial(), Some(&OTHER)), Verdict::Nothing);
    assert_eq!(offline(plain(), &Here::NOTHING, Some(&OTHER)), Verdict::Serve(Tier::OlderVersion, &OTHER));
    let frozen = policy(Duration::ZERO, OnMissing::Pass, true);
    assert_eq!(offline(frozen, &cached(), None), Verdict::Serve(Tier::Fresh, &OLD));
}

#[test]
fn an_older_version_beats_an_error() {
    let last = Verdict::Serve(Tier::LastComplete, &OLD);
    for tier in [Tier::Upstream, Tier::Peer] {
        assert_eq!(instead_of(tier, &NEW, &half(), None), last);
        assert_eq!(instead_of(tier, &OLD, &cached(), None), Verdict::Nothing, "it is the one that failed");
        assert_eq!(instead_of(tier, &NEW, &partial(), None), Verdict::Nothing);
        assert_eq!(instead_of(tier, &NEW, &unknown(), None), Verdict::Nothing, "nobody waits for the index");
        let stand_in = Verdict::Serve(Tier::OlderVersion, &OTHER);
        assert_eq!(instead_of(tier, &NEW, &Here::NOTHING, Some(&OTHER)), stand_in);
    }
    for tier in [Tier::Fresh, Tier::LastComplete, Tier::OlderVersion, Tier::None] {
        assert_eq!(instead_of(tier, &NEW, &half(), None), Verdict::Nothing, "{tier:?}");
    }
}

#[test]
fn peers_are_asked_where_they_can_know_better() {
    assert!(may_ask_peers(Reach::Down, &Here::NOTHING, None));
    assert!(may_ask_peers(Reach::Slow, &partial(), None));
    for reach in [Reach::NotAsked, Reach::Up, Reach::RememberedDown, Reach::Down] {
        assert!(may_ask_peers(reach, &cached(), Some(NOW)), "{reach:?}");
    }
    let of_peer = CompleteVersion { from_peer: true, ..complete(&OLD) };
    assert!(may_ask_peers(Reach::Down, &Here { complete: Some(of_peer), ..cached() }, Some(NOW)));
    assert!(!may_ask_peers(Reach::Down, &cached(), None), "the clock is not set");
    assert!(!may_ask_peers(Reach::Slow, &cached(), Some(NOW)));
    assert!(!may_ask_peers(Reach::Down, &rolled_back(), Some(NOW)));
    let undated = CompleteVersion { named_at: None, ..complete(&OLD) };
    assert!(!may_ask_peers(Reach::Down, &Here { complete: Some(undated), ..cached() }, Some(NOW)));
}

fn claim(fill: char, named_at: impl Into<Option<u64>>) -> (Digest, Option<u64>) {
    (digest(fill), named_at.into())
}

fn best(
    claims: &[(Digest, Option<u64>)],
    known: Option<Option<u64>>,
    now: Option<u64>,
) -> Option<(char, Option<u64>)> {
    let offered: Vec<PeerClaim<'_>> =
        claims.iter().map(|(digest, named_at)| PeerClaim { digest, named_at: *named_at }).collect();
    let known = known.map(|named_at| CompleteVersion { named_at, ..complete(&OLD) });
    let (at, time) = best_claim(&offered, known, now, AHEAD)?;
    Some((claims[at].0.hex().chars().next().unwrap(), time))
}

fn chosen(claims: &[(Digest, Option<u64>)], known: Option<Option<u64>>, now: Option<u64>) -> Option<char> {
    best(claims, known, now).map(|(fill, _)| fill)
}

#[test]
fn with_nothing_here_any_claim_will_do_and_the_newest_believable_is_best() {
    let ahead = NOW + 601;
    let all = [claim('a', NOW - 9), claim('b', NOW - 5), claim('c', None), claim('d', ahead)];
    assert_eq!(chosen(&all, None, Some(NOW)), Some('b'));
    assert_eq!(chosen(&all[2..], None, Some(NOW)), Some('c'));
    assert_eq!(chosen(&all[3..], None, Some(NOW)), Some('d'));
    assert_eq!(best(&all[3..], None, Some(NOW)).unwrap().1, None);
    assert_eq!(chosen(&all[..3], None, None), Some('b'));
    assert_eq!(chosen(&[], None, Some(NOW)), None);
}

#[test]
fn what_is_here_gives_way_only_to_what_is_newer_by_two_good_clocks() {
    let known = Some(Some(NOW - 100));
    assert_eq!(chosen(&[claim('a', NOW - 99)], known, Some(NOW)), Some('a'));
    assert_eq!(chosen(&[claim('a', NOW - 100)], known, Some(NOW)), None, "not newer");
    assert_eq!(chosen(&[claim('a', NOW - 101)], known, Some(NOW)), None, "older");
    assert_eq!(chosen(&[claim('a', None)], known, Some(NOW)), None, "no time");
    assert_eq!(chosen(&[claim('a', NOW)], Some(None), Some(NOW)), None, "no time here");
    assert_eq!(chosen(&[claim('a', NOW)], known, None), None, "the clock is not set");
    assert_eq!(chosen(&[claim('a', NOW + 600)], known, Some(NOW)), Some('a'));
    assert_eq!(chosen(&[claim('a', NOW + 601)], known, Some(NOW)), None, "too far ahead");
    assert_eq!(chosen(&[claim('0', NOW)], known, Some(NOW)), None, "the same version");
    let same = [claim('a', NOW - 50), claim('0', NOW)];
    assert_eq!(chosen(&same, known, Some(NOW)), None, "the newest is the same version");
    assert_eq!(chosen(&[claim('b', NOW - 200), claim('a', NOW)], known, Some(NOW)), Some('a'));
    assert_eq!(chosen(&[claim('a', NOW)], known, Some(u64::MAX)), Some('a'), "no time is too late to add to");
    assert_eq!(
        best(&[claim('a', NOW - 9), claim('b', NOW - 5)], known, Some(NOW)),
        Some(('b', Some(NOW - 5)))
    );
}
