//! Verification of blobs on the disk (rule 1): before an unverified one is served, after a read error, and of all blobs
//! by the scrub.
//!
//! After an unclean shutdown each blob is hashed before its first byte is served: a client that has received wrong bytes
//! resumes behind them, and containerd keeps them for a day. For a large blob the header of the answer is sent at once and
//! the body waits. The scrub reads all blobs in the course of [`budget::SCRUB_PASS`], one at a time, while no client is
//! served. Corrupt blobs are moved to quarantine; a failure of the store is logged or returned.

use super::context::Context;
use super::lane::Lanes;
use super::progress::{Fill, FillTable, Phase};
use super::refusal::Refusal;
use crate::budget;
use crate::oci::{Digest, Repository};
use crate::store::{Blob, BlobInfo, ContentKey, Recheck, StoreError};
use crate::text::bytes_text;
use std::sync::Arc;
use std::time::Duration;

/// Verifies blobs on threads of its own.
pub(super) struct Verifier {
    context: Arc<Context>,
    fills: Arc<FillTable>,
    hashers: Lanes,
}

impl Verifier {
    pub(super) fn new(context: Arc<Context>, fills: Arc<FillTable>) -> Verifier {
        Verifier { context, fills, hashers: Lanes::unshared("hash", budget::RECHECKS, budget::FILLS_MAX) }
    }

    /// Hashes an unverified blob. `true`: it is verified now, and this counts as a use. `false`: it is corrupt or gone.
    ///
    /// # Errors
    /// The store's, if a corrupt blob cannot be put in quarantine.
    pub(super) fn is_sound(&self, digest: &Digest) -> Result<bool, StoreError> {
        let store = &self.context.store;
        let sound = store.verify(digest).is_ok() || matches!(store.recheck(digest)?, Recheck::Verified);
        if sound {
            store.touch(digest);
        }
        Ok(sound)
    }

    /// Begins or joins the check of an unverified blob; readers of the fill wait for its end. `Ok(None)`: a check has just
    /// ended, and the caller must look for the blob again.
    ///
    /// # Errors
    /// [`Refusal::Busy`] if the queue for checks is full.
    pub(super) fn begin(
        self: &Arc<Self>,
        key: &ContentKey,
        repository: &Repository,
        blob: Blob,
    ) -> Result<Option<Arc<Fill>>, Refusal> {
        let mut table = self.fills.lock();
        if let Some(fill) = table.get(key) {
            return Ok(Some(Arc::clone(fill)));
        }
        // A check leaves the table after its result is known.
        let again = self.context.store.open_blob(&key.digest).ok().flatten();
        if again.is_none_or(|blob| !blob.unverified) {
            return Ok(None);
        }
        let fill = Arc::new(Fill::check(key.clone(), repository, blob.file, blob.size));
        table.insert(key.clone(), Arc::clone(&fill));
        drop(table);
        let (verifier, checked) = (Arc::downgrade(self), Arc::clone(&fill));
        let begun = self.hashers.run("", move || {
            if let Some(verifier) = verifier.upgrade() {
                verifier.check(&checked);
            }
        });
        if begun.is_err() {
            self.fills.remove(key);
            let busy = Refusal::Busy("too much has to be hashed before it is served; retry".into());
            fill.set_phase(Phase::Failed(busy.clone()));
            return Err(busy);
        }
        Ok(Some(fill))
    }

    /// Runs a check.
    fn check(&self, fill: &Fill) {
        let (store, digest) = (&self.context.store, fill.digest());
        let outcome = match store.verify_along(digest, &mut |_| !self.context.is_stopping()) {
            Ok(true) => Ok(()),
            Ok(false) => Err("larder is stopping".to_owned()),
            Err(_) => match store.recheck(digest) {
                Ok(Recheck::Verified) => Ok(()),
                Ok(Recheck::Gone) => Err(format!("{digest} is gone")),
                Ok(Recheck::Quarantined(problem)) => Err(format!("it was corrupt on the disk: {problem}")),
                Err(problem) => Err(problem.to_string()),
            },
        };
        if outcome.is_ok() {
            store.touch(digest);
        }
        self.fills.remove(&fill.key);
        fill.progress.send_modify(|progress| match outcome {
            Ok(()) => (progress.available, progress.phase) = (fill.stated.unwrap_or(0), Phase::Done),
            Err(cause) => progress.phase = Phase::Failed(Refusal::Unavailable(cause)),
        });
    }

    /// Verifies content in the background that could not be read while it was served.
    pub(super) fn reread(&self, digest: &Digest) {
        let (context, digest) = (Arc::clone(&self.context), digest.clone());
        let queued = self.hashers.run("", move || {
            if let Err(problem) = context.store.recheck(&digest) {
                log::error!("{digest} cannot be read, and {problem}");
            }
        });
        if queued.is_err() {
            log::warn!(
                "too many blobs wait to be hashed; one that could not be read is left until the scrub"
            );
        }
    }

    /// One step of the scrub: verifies one blob past the page cache, and returns the pause before the next step.
    ///
    /// # Errors
    /// The store's, if the blobs cannot be listed or a corrupt one cannot be put in quarantine.
    pub(super) fn scrub_step(&self) -> Result<Duration, StoreError> {
        let store = &self.context.store;
        let mut blobs: Vec<BlobInfo> = store.stock()?;
        blobs.sort_by(|a, b| a.digest.cmp(&b.digest));
        let total: u64 = blobs.iter().map(|blob| blob.size).sum();
        let passed = store.scrubbed();
        let next = blobs.iter().find(|blob| passed.as_ref().is_none_or(|passed| blob.digest > *passed));
        let Some(blob) = next else {
            store.set_scrubbed(None);
            if passed.is_some() {
                log::info!(
                    "the scrub has verified all blobs: {} in {} blobs",
                    bytes_text(total),
                    blobs.len()
                );
            }
            return Ok(budget::SCRUB_REST);
        };
        let mut quiet = |_: u64| !self.context.is_stopping();
        match store.verify_cold(&blob.digest, &mut quiet) {
            Ok(true) => {}
            Ok(false) => return Ok(budget::SCRUB_PAUSE),
            // Gone or corrupt: a second read tells which.
            Err(_) => drop(store.recheck(&blob.digest)?),
        }
        store.set_scrubbed(Some(blob.digest.clone()));
        let unverified = store.has_unverified();
        let pass = if unverified { budget::SCRUB_PASS_UNVERIFIED } else { budget::SCRUB_PASS };
        Ok(pause_after(blob.size, total, pass))
    }

    /// A step of the scrub, if no client is served and no fill runs. Returns the pause until the next.
    pub(super) fn scrub(&self) -> Duration {
        if self.fills.counts().0 > 0 || !self.context.pulls.busy().is_empty() {
            return budget::MAINTENANCE_TICK;
        }
        self.scrub_step().unwrap_or_else(|problem| {
            log::warn!("the scrub pauses: {problem}");
            budget::SCRUB_PAUSE
        })
    }
}

/// The pause after a blob of so many bytes, so that all of them take `pass`.
fn pause_after(bytes: u64, total: u64, pass: Duration) -> Duration {
    pass.mul_f64(bytes as f64 / total.max(1) as f64)
}

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
