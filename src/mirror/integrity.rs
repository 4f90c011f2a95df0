//! What the mirror does about content that may be bad: hashes it before it is believed, has it fetched again, and reads
//! everything once in a while.
//!
//! Content that was on the disk when a server did not come to an orderly end is hashed the first time it is asked for,
//! before its first byte is served: a client that has had wrong bytes resumes behind them, and containerd keeps them for
//! a day. For a large blob the header of the answer goes out at once and the body waits. The scrub reads everything in
//! the course of [`budget::SCRUB_PASS`], one blob at a time, while nobody wants anything.

use super::{Mirror, Source};
use crate::budget;
use crate::image::closure;
use crate::oci::{Digest, Repository};
use crate::store::{Blob, BlobInfo, StoreError, Verdict};
use crate::text::bytes_text;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::refusal::Refusal;

/// What has become of content that had to be hashed first.
pub(super) enum Checked {
    /// It can be served.
    Serve(Source),
    /// It was bad, and is not here any more.
    Bad,
}

impl Mirror {
    /// Serves a blob that has to be hashed first.
    pub(super) async fn checked(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
        blob: Blob,
    ) -> Result<Checked, Refusal> {
        if blob.size <= budget::RECHECK_FIRST_BYTES {
            let wanted = digest.clone();
            let sound = self.blocking(move |mirror| mirror.is_sound(&wanted)).await;
            return match sound.map_err(|problem| Refusal::from_store(&problem))? {
                true => Ok(Checked::Serve(Source::Hit(blob))),
                false => Ok(Checked::Bad),
            };
        }
        let total = blob.size;
        match self.fills.begin_check(repository, digest, blob)? {
            Some(fill) => Ok(Checked::Serve(Source::Fill { fill, total, joined: false })),
            // Somebody else's check has just ended.
            None => {
                let wanted = digest.clone();
                let again = self.blocking(move |mirror| mirror.store.open_blob(&wanted)).await;
                let again = again.map_err(|problem| Refusal::from_store(&problem))?;
                Ok(again.map_or(Checked::Bad, |blob| Checked::Serve(Source::Hit(blob))))
            }
        }
    }

    /// Hashes a suspect blob; if it is as its name says it is a use like any other, and no longer suspect.
    pub(super) fn is_sound(&self, digest: &Digest) -> Result<bool, StoreError> {
        let sound = match self.store.verify(digest) {
            Ok(()) => true,
            Err(_) => matches!(self.store.condemn(digest)?, Verdict::Sound),
        };
        if sound {
            self.store.touch(digest);
        }
        Ok(sound)
    }

    /// Content could not be read while it was served: has it looked at once more, beside the requests.
    pub fn doubt(self: &Arc<Self>, digest: &Digest) {
        let (mirror, digest) = (Arc::downgrade(self), digest.clone());
        let looked = self.fills.beside(move || {
            let Some(mirror) = mirror.upgrade() else { return };
            if let Err(problem) = mirror.store.condemn(&digest) {
                log::error!("{digest} cannot be read, and {problem}");
            }
        });
        if !looked {
            log::warn!("too much is being hashed for a second look");
        }
    }

    /// Has what was damaged fetched again, where its upstream can be reached and something still needs it. Begins the
    /// downloads and does not wait for them.
    pub(super) fn refetch(self: &Arc<Self>) {
        let mut known = self.damaged.lock();
        let aside: HashSet<Digest> = self.store.quarantined().into_iter().collect();
        known.retain(|digest, _| aside.contains(digest));
        for digest in aside {
            let tried = known.entry(digest.clone()).or_default();
            // It is worth a try for as long as it is wanted, at growing distances, and at once when an upstream is back.
            *tried = tried.saturating_add(1);
            if !tried.is_power_of_two() {
                continue;
            }
            let first = *tried == 1;
            let (links, images) = match self.places_of(&digest, first) {
                Ok(found) => found,
                Err(StoreError::Rebuilding) => return,
                Err(problem) => {
                    log::warn!("where {digest} belongs cannot be said: {problem}");
                    continue;
                }
            };
            if !images.is_empty() {
                log::error!(
                    "{digest} was damaged on the disk; not complete without it: {}",
                    images.join(", ")
                );
            }
            if links.is_empty() {
                log::info!("{digest} was damaged on the disk, and nothing needs it any more");
                self.store.forget_quarantined(&digest);
                continue;
            }
            let reachable = links.iter().find(|(repository, _)| {
                let upstream = self.upstreams.find(&repository.registry);
                upstream.is_some_and(|upstream| upstream.link().is_up())
            });
            if let Some((repository, link)) = reachable {
                self.fetch_again(repository, &digest, link);
            }
        }
    }

    /// An upstream is back: what was damaged is tried again at the next occasion.
    pub(super) fn retry_damaged(&self) {
        let mut known = self.damaged.lock();
        known.values_mut().for_each(|tried| *tried = 1);
    }

    fn fetch_again(self: &Arc<Self>, repository: &Repository, digest: &Digest, link: &crate::store::Link) {
        let begun = if link.media_type.is_some() {
            let Some(upstream) = self.upstreams.find(&repository.registry) else { return };
            self.begin_manifest(upstream, repository, digest).map(drop)
        } else {
            self.fills.begin(repository, digest, link.size).map(drop)
        };
        if let Err(refusal) = begun {
            log::warn!("{digest} of {repository} could not be fetched again: {refusal}");
        }
    }

    /// The repositories that content belongs to, and if `named` the tags that need it.
    #[allow(clippy::type_complexity)]
    fn places_of(
        &self,
        digest: &Digest,
        named: bool,
    ) -> Result<(Vec<(Repository, crate::store::Link)>, Vec<String>), StoreError> {
        let links = self.store.links_to(digest)?;
        let mut images = Vec::new();
        for (repository, _) in links.iter().filter(|_| named) {
            for (tag, record) in self.store.tags(repository, None, budget::PENDING_TAGS_MAX)? {
                for version in record.candidates() {
                    let found = closure(&self.store, &self.config.platforms, &version.digest)?;
                    if found.absent.contains_key(digest) {
                        images.push(format!("{repository}:{tag}"));
                        break;
                    }
                }
            }
        }
        Ok((links, images))
    }

    /// One step of the scrub: reads one blob past the page cache, and says how long to wait before the next.
    pub fn scrub_step(&self) -> Result<Duration, StoreError> {
        let mut blobs: Vec<BlobInfo> = self.store.stock()?;
        blobs.sort_by(|a, b| a.digest.cmp(&b.digest));
        let total: u64 = blobs.iter().map(|blob| blob.size).sum();
        let passed = self.store.scrubbed();
        let next = blobs.iter().position(|blob| passed.as_ref().is_none_or(|passed| blob.digest > *passed));
        let Some(at) = next else {
            self.store.set_scrubbed(None);
            if passed.is_some() {
                log::info!("the scrub has read everything: {} in {} blobs", bytes_text(total), blobs.len());
            }
            return Ok(budget::SCRUB_REST);
        };
        let blob = &blobs[at];
        let mut quiet = |_: u64| !self.stopping.load(Ordering::Relaxed);
        match self.store.verify_cold(&blob.digest, &mut quiet) {
            Ok(true) => self.store.set_scrubbed(Some(blob.digest.clone())),
            Ok(false) => return Ok(budget::SCRUB_PAUSE),
            Err(_) => {
                // Gone, or bad: the second look says which.
                self.store.condemn(&blob.digest)?;
                self.store.set_scrubbed(Some(blob.digest.clone()));
            }
        }
        let pass = if self.store.has_suspects() { budget::SCRUB_PASS_SUSPECT } else { budget::SCRUB_PASS };
        Ok(pause_after(blob.size, total, pass))
    }

    /// Whether nobody wants anything just now.
    fn is_idle(&self) -> bool {
        self.fills.counts().0 == 0 && self.pulls.busy().is_empty()
    }

    /// Removes images that were not used for `disk.expire_unused` - of time for which a server has run, so that a board
    /// that was switched off for long, or whose clock jumps, finds everything as it was - while the clock is trusted.
    pub(super) fn expire(&self, age: Duration) {
        if crate::clock::trusted_unix().is_none() {
            return;
        }
        let Some(count) = self.store.unused_for(age) else { return };
        match self.remove_unused(count) {
            Ok(gone) => {
                for image in gone {
                    log::info!("expired {}: {} are free again", image.what, bytes_text(image.bytes));
                    self.counters.count_evicted(image.bytes);
                }
            }
            Err(problem) => log::warn!("what was not used for long could not be removed: {problem}"),
        }
    }
}

/// The pause after a blob of so many bytes, so that all of them take `pass`.
fn pause_after(bytes: u64, total: u64, pass: Duration) -> Duration {
    pass.mul_f64(bytes as f64 / total.max(1) as f64)
}

/// The scrub's life, on a thread of its own.
pub(super) fn scrub(mirror: &Weak<Mirror>) {
    // Of the calling thread alone, on Linux.
    let _ = rustix::process::nice(budget::SCRUB_NICE);
    let mut due = Instant::now() + budget::SCRUB_PAUSE;
    let mut saved = Instant::now();
    while let Some(mirror) = mirror.upgrade() {
        if mirror.stopping.load(Ordering::Relaxed) {
            return;
        }
        let now = Instant::now();
        if now >= due && mirror.is_idle() {
            let pause = mirror.scrub_step().unwrap_or_else(|problem| {
                log::warn!("the scrub cannot go on just now: {problem}");
                budget::SCRUB_PAUSE
            });
            due = Instant::now() + pause;
        }
        if now.duration_since(saved) >= budget::SCRUB_SAVE_EVERY {
            saved = now;
            if let Err(problem) = mirror.store.save_session() {
                log::warn!("how far the scrub is was not written down: {problem}");
            }
        }
        drop(mirror);
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Damaged content and how often it was tried to be fetched again.
pub(super) type Damaged = HashMap<Digest, u32>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_takes_its_time_whatever_the_sizes() {
        let sizes = [1u64, 10_000_000, 300_000_000, 4_096];
        let total = sizes.iter().sum();
        let all: Duration = sizes.iter().map(|&size| pause_after(size, total, budget::SCRUB_PASS)).sum();
        assert!(all.abs_diff(budget::SCRUB_PASS) < Duration::from_secs(1), "{all:?}");
        assert_eq!(pause_after(0, 0, budget::SCRUB_PASS), Duration::ZERO);
    }
}
