//! `rollback`, `pin`, `unpin`, `rm` and `verify`: what an owner may change.

use super::{Bad, Desk, Problem, Verified, tag_of, unknown};
use crate::budget;
use crate::image::closure;
use crate::oci::{Digest, Reference};
use crate::store::{Rollback, StoreError};
use crate::text::bytes_text;

impl Desk {
    pub(super) fn rollback(&self, image: &Reference, to: Option<&Digest>) -> Result<String, Problem> {
        let (repository, tag) = (&image.repository, tag_of(image)?);
        let record = self.store.tag(repository, tag)?.ok_or_else(|| unknown(image))?;
        let newest =
            record.seen.as_ref().or(record.complete.as_ref()).ok_or_else(|| unknown(image))?.digest.clone();
        // A peer's word that is newer than upstream's is what is served while the uplink is gone.
        let offered = record.offered().map(|version| &version.digest).filter(|digest| **digest != newest);
        let to = match to.or(image.digest.as_ref()) {
            Some(digest) => digest.clone(),
            None => {
                let present =
                    record.rollback.as_ref().map(|rollback| &rollback.to).or(offered).unwrap_or(&newest);
                // Newest first, whatever was gone back to. Not by count: a version may be found whole only after
                // upstream has named the next.
                let mut plain = record.clone();
                plain.rollback = None;
                let order = plain.candidates();
                let at = order.iter().position(|version| version.digest == *present);
                let mut best = None;
                for version in &order[at.map_or(0, |at| at + 1)..] {
                    if best.is_none() && self.closure(&version.digest)?.is_complete() {
                        best = Some(*version);
                    }
                }
                best.ok_or_else(|| Problem(format!("{image} has no earlier complete version")))?
                    .digest
                    .clone()
            }
        };
        if !record.candidates().iter().any(|version| version.digest == to) {
            return Err(Problem(format!(
                "{to} is not a version of {image}; larder history {image} lists them"
            )));
        }
        let found = self.closure(&to)?;
        if !found.is_complete() {
            return Err(Problem(format!("{to} is not complete: it lacks {}", found.missing_text())));
        }
        if to == newest && offered.is_none() {
            self.store.tag_rollback(repository, tag, None)?;
            return Ok(format!("{repository}:{tag} follows upstream again, at {to}"));
        }
        self.store.tag_rollback(repository, tag, Some(Rollback { from: newest.clone(), to: to.clone() }))?;
        Ok(format!("{repository}:{tag} is served at {to} until upstream moves on from {newest}"))
    }

    pub(super) fn pin(&self, image: &Reference, pinned: bool) -> Result<String, Problem> {
        let (repository, tag) = (&image.repository, tag_of(image)?);
        let record = self.store.tag(repository, tag)?.ok_or_else(|| unknown(image))?;
        self.store.tag_pin(repository, tag, pinned)?;
        let name = format!("{repository}:{tag}");
        Ok(match (pinned, self.served_offline(&record)?.is_some()) {
            (false, _) => format!("{name} may go when room is needed"),
            (true, true) => format!("{name} stays: its last complete version is never removed to make room"),
            (true, false) => format!("{name} stays once it is complete; so far it is not"),
        })
    }

    pub(super) fn rm(&self, image: &Reference) -> Result<String, Problem> {
        let (repository, tag) = (&image.repository, tag_of(image)?);
        let record = self.store.tag(repository, tag)?.ok_or_else(|| unknown(image))?;
        if record.pinned {
            return Err(Problem(format!("{image} is pinned; larder unpin {image} comes first")));
        }
        self.store.tag_remove(repository, tag)?;
        let catalogue = self.catalogue()?;
        // What other tags name stays.
        let roots =
            record.candidates().into_iter().filter_map(|version| catalogue.find(repository, &version.digest));
        let victims: Vec<_> = roots.filter(|stocked| stocked.tags.is_empty()).collect();
        let bytes = catalogue.remove(&self.store, &victims)?.iter().map(|gone| gone.bytes).sum();
        Ok(format!("{repository}:{tag} is forgotten; {} are free again", bytes_text(bytes)))
    }

    pub(super) fn verify(
        &self,
        repair: bool,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Verified, Problem> {
        // The thread is this command's own. Where it may not step back it goes on as it is.
        let _ = rustix::process::nice(budget::SCRUB_NICE);
        let blobs: Vec<_> = self.store.blob_files()?.collect();
        let total = blobs.iter().map(|blob| blob.size).sum();
        let mut verified = Verified { blobs: 0, bytes: 0, bad: Vec::new(), repaired: false };
        for blob in blobs {
            match self.store.verify(&blob.digest) {
                Ok(()) => {}
                // It may have been evicted since the list was made.
                Err(_) if !self.store.contains(&blob.digest) => continue,
                Err(problem) => {
                    if !repair {
                        self.store.count_corrupt();
                    }
                    verified.bad.push(Bad {
                        problem: problem.to_string(),
                        images: Vec::new(),
                        digest: blob.digest,
                    });
                }
            }
            verified.blobs += 1;
            verified.bytes += blob.size;
            progress(verified.bytes, total);
        }
        self.name_images(&mut verified.bad)?;
        if repair {
            for bad in &verified.bad {
                self.store.quarantine(&bad.digest)?;
                log::warn!("{} was set aside: {}", bad.digest, bad.problem);
            }
            verified.repaired = true;
        }
        if let Err(problem @ StoreError::Damaged(_)) = self.store.check_index() {
            self.store.rebuild()?;
            log::warn!("{problem}; it was rebuilt");
        }
        Ok(verified)
    }

    fn name_images(&self, bad: &mut [Bad]) -> Result<(), Problem> {
        if bad.is_empty() {
            return Ok(());
        }
        self.each_tag(|repository, tag, record| {
            for version in record.candidates() {
                let needed = closure(&self.store, &self.config.platforms, &version.digest)?;
                for bad in bad.iter_mut().filter(|bad| needed.present.contains_key(&bad.digest)) {
                    let name = format!("{repository}:{tag}");
                    if !bad.images.contains(&name) {
                        bad.images.push(name);
                    }
                }
            }
            Ok(())
        })
    }
}
