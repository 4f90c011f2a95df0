//! Settling: when content arrives, the tags that wait for it may have become complete. Only those are looked at
//! ([`Waiting`]), however many tags the repository has.
//!
//! A tag that is new here is written down once its manifest is here. Until then it is in the bounded table, so that names
//! whose content never comes cost nothing on the disk. Forgetting one is harmless: the next request for the tag asks again.

use super::super::context::{Arrivals, Context};
use super::table::TagTable;
use super::waiting::{Waiter, Waiting};
use crate::budget;
use crate::image::Closures;
use crate::kit::Claim;
use crate::oci::{Digest, Repository, Tag};
use crate::store::{Observation, StoreError, TagRecord, TagVersion};
use crate::sync::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Listens for new content and moves the *complete* pointers.
pub(in crate::mirror) struct Settler {
    context: Arc<Context>,
    table: Arc<TagTable>,
    waiting: Mutex<Waiting>,
    /// How often content was looked for.
    looks: AtomicUsize,
}

impl Settler {
    pub(in crate::mirror) fn new(context: Arc<Context>, table: Arc<TagTable>) -> Settler {
        Settler { context, table, waiting: Mutex::default(), looks: AtomicUsize::new(0) }
    }

    /// Moves the tag's *complete* pointer if the version that upstream named last is complete.
    ///
    /// # Errors
    /// The store's.
    pub(super) fn settle(
        &self,
        repository: &Repository,
        tag: &Tag,
        record: &TagRecord,
    ) -> Result<(), StoreError> {
        let Some(seen) = awaited(record) else { return Ok(()) };
        if self.is_complete(repository, &seen.digest, &seen.digest)? {
            self.complete(repository, std::slice::from_ref(tag), &seen.digest)?;
        }
        Ok(())
    }

    /// Upstream reported the tag: notes that, now or when the manifest comes.
    ///
    /// # Errors
    /// The store's.
    pub(super) fn note(
        &self,
        repository: &Repository,
        tag: &Tag,
        seen: &Observation,
    ) -> Result<(), StoreError> {
        let (store, key) = (&self.context.store, (repository.clone(), tag.clone()));
        let known = store.tag(repository, tag);
        if !matches!(known, Ok(Some(_))) {
            self.table.expect(&key, seen);
            // Looked for after that: an arrival in between has found it expected.
            if known?.is_none() && !store.contains(&seen.digest) {
                return Ok(());
            }
        }
        let record = store.tag_seen(repository, tag, seen)?;
        self.table.forget_expected(&key);
        self.settle(repository, tag, &record)
    }

    /// Writes down the tags whose manifest has come.
    fn note_expected(&self, repository: &Repository, arrived: &Digest) -> Result<(), StoreError> {
        for (tag, seen) in self.table.expected(repository) {
            if seen.digest == *arrived && self.context.store.contains(arrived) {
                let record = self.context.store.tag_seen(repository, &tag, &seen)?;
                self.table.forget_expected(&(repository.clone(), tag.clone()));
                self.settle(repository, &tag, &record)?;
            }
        }
        Ok(())
    }

    fn complete(&self, repository: &Repository, tags: &[Tag], root: &Digest) -> Result<(), StoreError> {
        let Some(tag) = tags.first() else { return Ok(()) };
        if self.context.store.tags_complete(repository, tags, root)? {
            let more =
                if tags.len() > 1 { format!(" and {} more tags", tags.len() - 1) } else { String::new() };
            log::info!("{repository}:{tag}{more} is complete at {root}");
        }
        Ok(())
    }

    /// Whether `branch`, a part of `root` or all of it, is complete; if not, `root` waits for what it lacks.
    fn is_complete(
        &self,
        repository: &Repository,
        root: &Digest,
        branch: &Digest,
    ) -> Result<bool, StoreError> {
        let config = self.context.config.now();
        let closures = Closures::new(&self.context.store, &config);
        let mut again = true;
        let complete = loop {
            let (complete, lacks) = closures.lacks(repository, branch)?;
            self.waiting.lock().add(repository, root, &lacks);
            // What came before it was waited for has woken nobody.
            let came = lacks.iter().any(|lack| self.context.store.contains(&lack.missing));
            if complete || !came || !again {
                break complete;
            }
            again = false;
        };
        self.looks.fetch_add(closures.looks(), Ordering::Relaxed);
        Ok(complete)
    }

    /// Looks at all tags of a repository, which is done once: from then on it is known what they wait for.
    fn settle_all(&self, repository: &Repository) -> Result<(), StoreError> {
        let mut tags_of: HashMap<Digest, Vec<Tag>> = HashMap::new();
        for (tag, record) in self.context.store.tags(repository, None, budget::PENDING_TAGS_MAX)? {
            if let Some(seen) = awaited(&record) {
                tags_of.entry(seen.digest.clone()).or_default().push(tag);
            }
        }
        let before = self.looks.load(Ordering::Relaxed);
        for (root, tags) in tags_of {
            if self.looks.load(Ordering::Relaxed).wrapping_sub(before) > budget::SETTLE_LOOKS_MAX {
                break;
            }
            if self.is_complete(repository, &root, &root)? {
                self.complete(repository, &tags, &root)?;
            }
        }
        Ok(())
    }

    /// Looks at a version again that waited for what has arrived.
    fn settle_waiter(&self, waiter: &Waiter) -> Result<(), StoreError> {
        let Waiter { repository, root, branch } = waiter;
        let complete = self.is_complete(repository, root, branch)?
            && (root == branch || self.is_complete(repository, root, root)?);
        if !complete {
            return Ok(());
        }
        let tags = self.context.store.tags(repository, None, budget::PENDING_TAGS_MAX)?.into_iter();
        let waited = |record: &TagRecord| awaited(record).is_some_and(|seen| seen.digest == *root);
        let tags: Vec<Tag> = tags.filter(|(_, record)| waited(record)).map(|(tag, _)| tag).collect();
        self.complete(repository, &tags, root)?;
        for (tag, claim) in self.table.claims(repository) {
            if claim.digest == *root {
                self.settle_claim(repository, &tag, &claim);
            }
        }
        Ok(())
    }

    /// Records a claim as a version of its tag if its content is complete; else it waits for that.
    pub(super) fn settle_claim(&self, repository: &Repository, tag: &Tag, claim: &Claim) {
        let (digest, peer) = (&claim.digest, &claim.peer);
        let noted = self.is_complete(repository, digest, digest).and_then(|complete| {
            if !complete {
                return Ok(false);
            }
            let offered = Observation::peer(digest.clone());
            self.context.store.tag_offered(repository, tag, &offered, claim.unix).map(|()| true)
        });
        match noted {
            Ok(true) => {
                log::info!("{repository}:{tag} is complete at {digest}, as peer {peer} named it");
                self.table.forget_claim(&(repository.clone(), tag.clone()));
            }
            Ok(false) | Err(StoreError::Rebuilding) => {}
            Err(problem) => {
                log::warn!("peer {peer}'s version of {repository}:{tag} could not be saved: {problem}");
            }
        }
    }
}

/// The version that upstream named last, if it is not known to be complete.
fn awaited(record: &TagRecord) -> Option<&TagVersion> {
    let known = |seen: &&TagVersion| {
        let complete = record.complete.as_ref();
        complete.is_some_and(|version| version.digest == seen.digest && !version.is_from_peer())
    };
    record.seen.as_ref().filter(|seen| !known(seen))
}

impl Arrivals for Settler {
    fn arrived(&self, repository: &Repository, digest: &Digest) {
        let (is_new, woken) = {
            let mut waiting = self.waiting.lock();
            (waiting.is_new(repository), waiting.take(digest))
        };
        if let Err(problem) = self.note_expected(repository, digest) {
            log::warn!("new tags of {repository} could not be saved: {problem}");
        }
        let all = is_new.then(|| (repository, self.settle_all(repository)));
        let woken = woken.iter().map(|waiter| (&waiter.repository, self.settle_waiter(waiter)));
        for (repository, settled) in all.into_iter().chain(woken) {
            if let Err(problem) = settled {
                log::warn!("the complete tags of {repository} could not be saved: {problem}");
                self.waiting.lock().forget(repository);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::context::testing::context;
    use super::*;
    use crate::image::tests::{Board, repository, tag};

    /// A settler over a store whose 1,000 tags are one index of 900 images. Each image has a layer of its own; those of
    /// `present` are on the disk, without their layers.
    fn settler(present: std::ops::Range<usize>) -> (Board, Settler, Digest, Vec<Digest>) {
        let (board, context) = context("");
        let layers: Vec<Digest> = (0..900).map(|n| board.name(&format!("layer {n}"), 40)).collect();
        let children: Vec<Digest> = layers.iter().map(|layer| board.image("app", &[layer])).collect();
        let root = board.index("app", &children.iter().collect::<Vec<_>>());
        for n in (0..900).filter(|n| !present.contains(n)) {
            board.remove_by_hand(&children[n]);
        }
        let tags: Vec<String> = (0..1_000).map(|n| format!("v{n}")).collect();
        board.tag_all("app", &tags, &root);
        (board, Settler::new(context, Arc::default()), root, layers)
    }

    fn looks(settler: &Settler, work: impl FnOnce()) -> usize {
        let before = settler.looks.load(Ordering::Relaxed);
        work();
        settler.looks.load(Ordering::Relaxed) - before
    }

    fn complete(board: &Board) -> usize {
        let tags = board.store.tags(&repository("app"), None, 2_000).unwrap();
        tags.iter().filter(|(_, record)| record.complete.is_some()).count()
    }

    #[test]
    fn what_arrives_has_only_what_waits_for_it_looked_at() {
        let (board, settler, root, layers) = settler(400..500);
        let arrive = |digest: &Digest| looks(&settler, || settler.arrived(&repository("app"), digest));
        let stray = board.blob("nobody waits for it", 40);
        let first = arrive(&stray);
        assert!((900..2_000).contains(&first), "the first look at the repository: {first}");
        assert_eq!(arrive(&stray), 0);
        // An image of the index that is absent: it is looked at by itself, and from then on its layer is waited for.
        let child = board.image("app", &[&layers[7]]);
        assert!((1..10).contains(&arrive(&child)));
        assert_eq!((arrive(&child), complete(&board)), (0, 0));
        // A check of one tag costs a look at its version, not at a thousand.
        let record = board.store.tag(&repository("app"), &tag("v1")).unwrap().unwrap();
        let check = || settler.settle(&repository("app"), &tag("v1"), &record).unwrap();
        assert!(looks(&settler, check) < 2_000);
        // The layer completes the index, and all tags with it, by one look at the whole.
        board.blob("layer 7", 40);
        assert!((1..2_000).contains(&arrive(&layers[7])));
        assert_eq!(complete(&board), 1_000);
        let record = board.store.tag(&repository("app"), &tag("v999")).unwrap().unwrap();
        assert_eq!(record.complete.map(|version| version.digest), Some(root));
        assert!(arrive(&layers[8]) < 2_000, "what waits in vain may be looked at, once");
    }

    #[test]
    fn a_piece_that_came_through_another_repository_is_noticed_too() {
        let (board, context) = context("");
        let layer = board.name("layer", 40);
        let image = board.image("app", &[&layer]);
        board.tag("app", "latest", &image, false);
        let settler = Settler::new(context, Arc::default());
        settler.arrived(&repository("app"), &image);
        assert_eq!(complete(&board), 0);
        board.blob("layer", 40);
        settler.arrived(&repository("other"), &layer);
        assert_eq!(complete(&board), 1);
    }

    #[test]
    fn a_repository_that_is_full_of_versions_is_looked_at_within_a_bound() {
        let (board, context) = context("");
        for n in 0..40 {
            let layers: Vec<Digest> = (0..300).map(|at| board.name(&format!("{n} {at}"), 40)).collect();
            let children: Vec<Digest> = layers.iter().map(|layer| board.name(&layer.hex(), 80)).collect();
            let root = board.index("app", &children.iter().collect::<Vec<_>>());
            board.tag("app", &format!("v{n}"), &root, false);
        }
        let settler = Settler::new(context, Arc::default());
        let stray = board.blob("stray", 40);
        let all = looks(&settler, || settler.arrived(&repository("app"), &stray));
        assert!(all < budget::SETTLE_LOOKS_MAX + 1_000, "{all}");
        assert_eq!(looks(&settler, || settler.arrived(&repository("app"), &stray)), 0);
    }
}
