//! `verify`: hashes each blob on the disk, and reads the index through. Failure is the store's.

use super::{Admin, AdminRecord, AnswerSink, CorruptBlob, Problem, VerifyReport};
use crate::budget;
use crate::image::{each_repository, each_tag};
use crate::store::StoreError;

impl Admin {
    pub(super) fn verify(&self, repair: bool, answer: &mut AnswerSink<'_>) -> Result<(), Problem> {
        // This thread runs only this command. If its priority cannot be lowered, it continues as it is.
        let _ = rustix::process::nice(budget::SCRUB_NICE);
        let blobs: Vec<_> = self.store.blob_files()?.collect();
        let total = blobs.iter().map(|blob| blob.size).sum();
        let mut verified = VerifyReport { blobs: 0, bytes: 0, bad: Vec::new(), repaired: repair };
        let mut corrupt = Vec::new();
        for blob in blobs {
            match self.store.verify(&blob.digest) {
                Ok(()) => {}
                // It may have been evicted since the list was made.
                Err(_) if !self.store.contains(&blob.digest) => continue,
                // That proves nothing.
                Err(lack) if lack.is_exhaustion() => return Err(lack.into()),
                Err(problem) => {
                    if !repair {
                        self.store.count_corrupt();
                    }
                    let (digest, problem) = (blob.digest, problem.to_string());
                    corrupt.push(CorruptBlob { digest, problem, images: Vec::new() });
                }
            }
            verified.blobs += 1;
            verified.bytes += blob.size;
            // The client may have left; the command is executed to its end.
            let _ = answer(AdminRecord::Progress(verified.bytes, total));
        }
        self.name_images(&mut corrupt)?;
        if repair {
            for blob in &corrupt {
                self.store.quarantine(&blob.digest)?;
                log::warn!("{} was quarantined: {}", blob.digest, blob.problem);
            }
        }
        if let Err(problem @ StoreError::Damaged(_)) = self.store.check_index() {
            self.store.rebuild()?;
            log::warn!("{problem}; it was rebuilt");
        }
        for mut blob in corrupt {
            while blob.images.len() > budget::CONTROL_NAMES_MAX {
                let rest = blob.images.split_off(budget::CONTROL_NAMES_MAX);
                answer(AdminRecord::Corrupt(blob.clone()))?;
                blob.images = rest;
            }
            answer(AdminRecord::Corrupt(blob))?;
        }
        Ok(answer(AdminRecord::Verified(verified))?)
    }

    fn name_images(&self, corrupt: &mut [CorruptBlob]) -> Result<(), Problem> {
        if corrupt.is_empty() {
            return Ok(());
        }
        let closures = self.closures();
        each_repository(&self.store, |repository| {
            each_tag(&self.store, repository, |tag, record| {
                for version in record.candidates() {
                    let needed = closures.on_disk(&version.digest)?;
                    for blob in corrupt.iter_mut().filter(|blob| needed.present.contains_key(&blob.digest)) {
                        let name = format!("{repository}:{tag}");
                        if !blob.images.contains(&name) {
                            blob.images.push(name);
                        }
                    }
                }
                Ok(())
            })
        })
    }
}
