//! The one table of what is kept in memory about tags: the store's record, the time of the last check with upstream, the
//! last log line, the claim of a peer, and what upstream reported of a tag of which nothing is on the disk.
//!
//! Invariants. The store's record is used only while the store's stamp equals the one taken before the record was read.
//! All entries together cost no more than [`budget::TAG_TABLE_BYTES_MAX`]; beyond that the least recently used half is
//! forgotten. Forgetting an entry is harmless: it is read, asked, or logged again.

use super::local::LocalTag;
use crate::auth::Clearance;
use crate::budget;
use crate::clock;
use crate::decide;
use crate::decide::Tier;
use crate::kit::Claim;
use crate::oci::{Digest, Repository, Tag};
use crate::store::{Observation, Stamp};
use crate::sync::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

type TagKey = (Repository, Tag);

/// The table.
#[derive(Default)]
pub(in crate::mirror) struct TagTable(Mutex<Entries>);

#[derive(Default)]
struct Entries {
    by_tag: HashMap<TagKey, TagEntry>,
    /// Their cost together.
    bytes: usize,
    /// Counts uses.
    uses: u64,
}

#[derive(Default)]
struct TagEntry {
    local: Option<(Stamp, Clearance, Arc<LocalTag>)>,
    /// When upstream last answered, since the start.
    verified: Option<Instant>,
    /// When the last of these answers was made, by the registry's clock, and the place of its endpoint.
    told: Option<(u64, usize)>,
    /// The last stale answer that was logged, and when.
    reported: Option<(Digest, Tier, Instant)>,
    /// A peer's claim that was served, until its content is complete here.
    claim: Option<Claim>,
    /// What upstream reported, until its manifest is here.
    expected: Option<Observation>,
    used: u64,
}

impl TagEntry {
    fn cost(&self) -> usize {
        let expected = self.expected.as_ref().map_or(0, |_| budget::TAG_VERSION_COST_BYTES);
        budget::TAG_ENTRY_COST_BYTES + expected + self.local.as_ref().map_or(0, |(.., local)| local.cost())
    }
}

impl Entries {
    /// Changes the entry of a tag, which is created if need be.
    fn change<T>(&mut self, key: &TagKey, change: impl FnOnce(&mut TagEntry) -> T) -> T {
        self.uses += 1;
        let known = self.by_tag.contains_key(key);
        let entry = self.by_tag.entry(key.clone()).or_default();
        entry.used = self.uses;
        let before = if known { entry.cost() } else { 0 };
        let changed = change(entry);
        self.bytes = self.bytes - before + entry.cost();
        if self.bytes > budget::TAG_TABLE_BYTES_MAX {
            self.forget_half();
        }
        changed
    }

    /// Reads the entry of a tag, if there is one. This counts as a use.
    fn look<T>(&mut self, key: &TagKey, look: impl FnOnce(&TagEntry) -> Option<T>) -> Option<T> {
        self.uses += 1;
        let entry = self.by_tag.get_mut(key)?;
        entry.used = self.uses;
        look(entry)
    }

    /// Forgets what the store says of the half that was not used for the longest, and all of that half if that is not
    /// enough.
    fn forget_half(&mut self) {
        let mut uses: Vec<u64> = self.by_tag.values().map(|entry| entry.used).collect();
        let middle = uses.len() / 2;
        let (_, median, _) = uses.select_nth_unstable(middle);
        let median = *median;
        let older = self.by_tag.values_mut().filter(|entry| entry.used <= median);
        older.for_each(|entry| entry.local = None);
        self.bytes = self.by_tag.values().map(TagEntry::cost).sum();
        if self.bytes > budget::TAG_TABLE_BYTES_MAX / 2 {
            self.by_tag.retain(|_, entry| entry.used > median);
            self.bytes = self.by_tag.values().map(TagEntry::cost).sum();
        }
    }
}

impl TagTable {
    /// What the store knew at `stamp`, as who has this clearance sees it, and when the tag was last verified.
    pub(super) fn find(
        &self,
        key: &TagKey,
        clearance: Clearance,
        stamp: Option<Stamp>,
    ) -> (Option<Arc<LocalTag>>, Option<Instant>) {
        let mut entries = self.0.lock();
        let found = entries.look(key, |entry| {
            let local = entry.local.as_ref().filter(|(at, of, _)| Some(*at) == stamp && *of == clearance);
            Some((local.map(|(.., local)| Arc::clone(local)), entry.verified))
        });
        found.unwrap_or_default()
    }

    /// Keeps what was read after `stamp` was taken.
    pub(super) fn keep(&self, key: &TagKey, clearance: Clearance, stamp: Stamp, local: &Arc<LocalTag>) {
        self.0.lock().change(key, |entry| entry.local = Some((stamp, clearance, Arc::clone(local))));
    }

    /// Upstream has answered for the tag, which ends claims of peers.
    pub(super) fn verified(&self, key: &TagKey, at: Instant) {
        self.0.lock().change(key, |entry| (entry.verified, entry.claim) = (Some(at), None));
    }

    /// The endpoint at `place` has made the answer at `date`, by the registry's clock. An older answer of one lower in the
    /// order, which names the same, makes no later one of it news.
    pub(super) fn told(&self, key: &TagKey, date: u64, place: usize) {
        self.0.lock().change(key, |entry| {
            if !decide::is_older((Some(date), place), entry.told) {
                entry.told = Some((date, place));
            }
        });
    }

    /// When the last answer was made, and by the endpoint at which place.
    pub(super) fn last_told(&self, key: &TagKey) -> Option<(u64, usize)> {
        self.0.lock().look(key, |entry| entry.told)
    }

    /// When upstream last named the digest that it first named at `unix`; an answer that changed nothing counts too.
    /// `None` if the clock was not trusted then.
    pub(super) fn named_at(&self, key: &TagKey, unix: Option<u64>) -> Option<u64> {
        let verified = self.0.lock().look(key, |entry| entry.verified);
        let again = verified.zip(clock::trusted_unix());
        again.map(|(at, now)| now.saturating_sub(at.elapsed().as_secs())).max(unix)
    }

    /// Whether to log a stale answer. It is not logged each time, because clients may ask a thousand times a second.
    pub(super) fn is_report_due(&self, key: &TagKey, digest: &Digest, tier: Tier, now: Instant) -> bool {
        self.0.lock().change(key, |entry| {
            let repeated = entry.reported.as_ref().is_some_and(|(known, by, at)| {
                let recent = now.saturating_duration_since(*at) < budget::STALE_REPORT_EVERY;
                known == digest && *by == tier && recent
            });
            if !repeated {
                entry.reported = Some((digest.clone(), tier, now));
            }
            !repeated
        })
    }

    /// A claim is served to clients.
    pub(super) fn claim(&self, key: &TagKey, claim: &Claim) {
        self.0.lock().change(key, |entry| entry.claim = Some(claim.clone()));
    }

    /// The claims of a repository whose content is not yet complete.
    pub(super) fn claims(&self, repository: &Repository) -> Vec<(Tag, Claim)> {
        let entries = self.0.lock();
        let of = entries.by_tag.iter().filter(|((name, _), _)| name == repository);
        of.filter_map(|((_, tag), entry)| Some((tag.clone(), entry.claim.clone()?))).collect()
    }

    /// Upstream reported a tag of which nothing is on the disk.
    pub(super) fn expect(&self, key: &TagKey, seen: &Observation) {
        self.0.lock().change(key, |entry| entry.expected = Some(seen.clone()));
    }

    /// What was reported of tags of a repository and waits for its manifest.
    pub(super) fn expected(&self, repository: &Repository) -> Vec<(Tag, Observation)> {
        let entries = self.0.lock();
        let of = entries.by_tag.iter().filter(|((name, _), _)| name == repository);
        of.filter_map(|((_, tag), entry)| Some((tag.clone(), entry.expected.clone()?))).collect()
    }

    /// It is written down.
    pub(super) fn forget_expected(&self, key: &TagKey) {
        self.0.lock().change(key, |entry| entry.expected = None);
    }

    /// A claim has become a version.
    pub(super) fn forget_claim(&self, key: &TagKey) {
        let mut entries = self.0.lock();
        if let Some(entry) = entries.by_tag.get_mut(key) {
            entry.claim = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn key(n: usize) -> TagKey {
        ("docker.io/library/app".parse().unwrap(), format!("v{n}").parse().unwrap())
    }

    fn digest(fill: char) -> Digest {
        format!("sha256:{}", String::from(fill).repeat(64)).parse().unwrap()
    }

    #[test]
    fn the_entries_that_were_not_used_for_the_longest_go_first() {
        let (table, now) = (TagTable::default(), Instant::now());
        let fits = budget::TAG_TABLE_BYTES_MAX / budget::TAG_ENTRY_COST_BYTES;
        for n in 0..fits {
            table.verified(&key(n), now);
        }
        // The first is used again, and one more than fits comes.
        assert!(table.find(&key(0), Clearance::NONE, None).1.is_some());
        table.verified(&key(fits), now);
        assert!(
            table.find(&key(0), Clearance::NONE, None).1.is_some()
                && table.find(&key(fits), Clearance::NONE, None).1.is_some()
        );
        assert!(table.find(&key(1), Clearance::NONE, None).1.is_none());
        let entries = table.0.lock();
        assert!(entries.by_tag.len() * 2 <= fits + 2, "half of them went: {}", entries.by_tag.len());
        assert_eq!(entries.bytes, entries.by_tag.len() * budget::TAG_ENTRY_COST_BYTES);
    }

    #[test]
    fn a_stale_answer_is_logged_once_in_a_while_and_at_each_change() {
        let (table, now) = (TagTable::default(), Instant::now());
        let due = |fill, tier, at| table.is_report_due(&key(1), &digest(fill), tier, at);
        assert!(due('a', Tier::LastComplete, now));
        assert!(!due('a', Tier::LastComplete, now + budget::STALE_REPORT_EVERY / 2));
        assert!(due('b', Tier::LastComplete, now + budget::STALE_REPORT_EVERY / 2));
        assert!(due('b', Tier::Peer, now + budget::STALE_REPORT_EVERY / 2));
        assert!(due('b', Tier::Peer, now + budget::STALE_REPORT_EVERY * 2));
    }

    #[test]
    fn what_upstream_says_ends_a_claim() {
        let table = TagTable::default();
        let claim = Claim { peer: "10.0.0.2:5002".into(), digest: digest('a'), unix: None };
        table.claim(&key(1), &claim);
        table.claim(&key(2), &claim);
        assert_eq!(table.claims(&key(1).0).len(), 2);
        table.verified(&key(1), Instant::now());
        assert_eq!(table.claims(&key(1).0), [(key(2).1, claim)]);
        table.forget_claim(&key(2));
        assert!(table.claims(&key(1).0).is_empty());
    }

    #[test]
    fn an_older_answer_from_lower_in_the_order_does_not_make_its_next_one_news() {
        let table = TagTable::default();
        for (told, known) in
            [((700, 0), (700, 0)), ((650, 1), (700, 0)), ((750, 1), (750, 1)), ((720, 0), (720, 0))]
        {
            table.told(&key(1), told.0, told.1);
            assert_eq!(table.last_told(&key(1)), Some(known), "{told:?}");
        }
    }

    #[test]
    fn a_time_of_verification_counts_from_now() {
        let table = TagTable::default();
        assert_eq!(table.named_at(&key(1), Some(5)), Some(5));
        assert_eq!(table.named_at(&key(1), None), None);
        table.verified(&key(1), Instant::now() - Duration::from_secs(3));
        let named = table.named_at(&key(1), Some(5));
        match clock::trusted_unix() {
            Some(now) => {
                assert!(named.is_some_and(|named| (now - 5..=now - 3).contains(&named)), "{named:?}")
            }
            None => assert_eq!(named, Some(5)),
        }
    }
}
