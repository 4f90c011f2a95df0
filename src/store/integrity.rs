//! Integrity: is what is on the disk still what its name says? (design rules 1 and 2)
//!
//! Content is hashed as it arrives, and again the first time it is used after a stop that was not an orderly one, and by
//! the scrub. What looks bad is read once more past the page cache before it is condemned, for memory and cables lie
//! too. What is condemned is set aside under `quarantine/` and from then on not here: every image that needs it is no
//! longer complete. Its name in `quarantine/` stays until it has come anew, so that it is known over restarts what is
//! to be fetched again; its bytes stay while there are few of them.

use super::{Blob, Store, StoreError, layout};
use crate::budget;
use crate::oci::{Digest, Hasher};
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::sync::atomic::Ordering;

/// What a second look at content has found.
#[derive(Debug)]
pub enum Recheck {
    /// It is as its name says.
    Verified,
    /// It is not here any more.
    Gone,
    /// It is corrupt, in these words, and is in quarantine now.
    Quarantined(String),
}

impl Store {
    /// Whether content whose file says that it was used last at count `used` has to be hashed before it is served.
    pub(super) fn is_unverified(&self, digest: &Digest, used: u64) -> bool {
        self.session.is_unverified(digest, used)
            && self.unwritten_use(digest).is_none_or(|n| self.session.is_unverified(digest, n))
    }

    /// Whether there is content that was not hashed since a stop that was not an orderly one.
    pub fn has_unverified(&self) -> bool {
        self.session.has_unverified()
    }

    /// How far the scrub is: it has come past everything up to this digest.
    pub fn scrubbed(&self) -> Option<Digest> {
        self.session.scrubbed()
    }

    /// Notes how far the scrub is; `None`: it has come to the end. Written down at the next orderly end, or by
    /// [`Store::save_session`].
    pub fn set_scrubbed(&self, digest: Option<Digest>) {
        self.session.set_scrubbed(digest);
    }

    /// Writes down how far things are that are otherwise written at an orderly end.
    pub fn save_session(&self) -> Result<(), StoreError> {
        self.session.save(self.sequence.last(), false)
    }

    /// Reads a blob and compares its hash with its name.
    pub fn verify(&self, digest: &Digest) -> Result<(), StoreError> {
        self.verify_along(digest, &mut |_| true).map(drop)
    }

    /// The same, telling `go_on` how many bytes have been read, which says whether to go on; `Ok(false)`: it said no.
    pub fn verify_along(
        &self,
        digest: &Digest,
        go_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<bool, StoreError> {
        match self.open_blob(digest)? {
            Some(blob) => verify_file(blob.file, digest, go_on),
            None => Err(StoreError::io(format!("cannot open {digest}"))(ErrorKind::NotFound.into())),
        }
    }

    /// The same past the page cache, from the medium itself as far as the kernel lets us. `go_on` is told how many bytes
    /// have been read and says whether to; `Ok(false)`: it said no.
    pub fn verify_cold(
        &self,
        digest: &Digest,
        go_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<bool, StoreError> {
        if let Some(blob) = self.open_blob(digest)? {
            let dropped = rustix::fs::fadvise(&blob.file, 0, None, rustix::fs::Advice::DontNeed);
            dropped.map_err(|e| StoreError::io(format!("cannot reread {digest}"))(e.into()))?;
        }
        self.verify_along(digest, go_on)
    }

    /// Has a second look at content that seemed bad, and sets it aside if it is.
    pub fn recheck(&self, digest: &Digest) -> Result<Recheck, StoreError> {
        let problem = match self.verify_cold(digest, &mut |_| true) {
            Ok(_) => return Ok(Recheck::Verified),
            Err(_) if !self.contains(digest) => return Ok(Recheck::Gone),
            Err(problem) => problem,
        };
        self.quarantine(digest)?;
        log::error!("{digest} was damaged on the disk and is set aside: {problem}");
        Ok(Recheck::Quarantined(problem.to_string()))
    }

    /// Takes a bad blob out of service. Its bytes are kept under `quarantine/` while there is room for them.
    pub fn quarantine(&self, digest: &Digest) -> Result<(), StoreError> {
        let path = self.layout.blob(digest);
        self.count_corrupt();
        let counted = self.uncounted();
        let size = self.blob_size(digest).unwrap_or(0);
        let aside = self.layout.quarantined(digest);
        if let Err(e) = fs::rename(&path, &aside) {
            // A disk that takes no change must not have it served all the same.
            let mut condemned = self.condemned.lock();
            if condemned.len() < budget::QUARANTINE_FILES_MAX {
                condemned.insert(digest.clone());
                self.any_condemned.store(true, Ordering::Relaxed);
            }
            drop(condemned);
            self.changed();
            return Err(StoreError::io(format!("cannot set {} aside", path.display()))(e));
        }
        self.changed();
        self.count_out(size);
        drop(counted);
        self.forget_touches(std::slice::from_ref(digest));
        if self.layout.quarantined_bytes() > budget::QUARANTINE_BYTES_MAX {
            // The name is what counts.
            let _ = File::create(&aside);
        }
        layout::flush_dir(&self.layout.blobs(digest.algorithm()))?;
        match self.change_index(|index| index.remove_blobs(std::slice::from_ref(digest))) {
            Err(StoreError::Rebuilding) => Ok(()),
            other => other,
        }
    }

    /// What was set aside and has not come anew.
    pub fn quarantined(&self) -> Vec<Digest> {
        let names = self.layout.quarantined_names(budget::QUARANTINE_FILES_MAX);
        names.into_iter().filter(|digest| !self.contains(digest)).collect()
    }

    /// Forgets that content was set aside: nobody needs it any more.
    pub fn forget_quarantined(&self, digest: &Digest) {
        self.layout.take_from_quarantine(digest);
    }

    /// Blobs found bad since the start.
    pub fn corrupt_blobs(&self) -> u64 {
        self.corrupt.load(Ordering::Relaxed)
    }

    /// Counts a blob that was found bad.
    pub fn count_corrupt(&self) {
        self.corrupt.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether content is bad and could not be moved out of the way.
    pub(super) fn is_condemned(&self, digest: &Digest) -> bool {
        self.any_condemned.load(Ordering::Relaxed) && self.condemned.lock().contains(digest)
    }

    /// Content has come anew.
    pub(super) fn clear(&self, digest: &Digest) {
        if self.layout.take_from_quarantine(digest) {
            log::info!("{digest} has come anew in place of what was damaged");
        }
        self.condemned.lock().remove(digest);
    }

    /// The bytes of a small blob that is open, hashed if it is suspect; `None` if they were bad and are set aside.
    pub(super) fn read_checked(&self, digest: &Digest, blob: Blob) -> Result<Option<Vec<u8>>, StoreError> {
        let (suspect, size) = (blob.unverified, blob.size);
        let read = |mut file: File| {
            let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
            file.read_to_end(&mut bytes).map(|_| bytes)
        };
        match read(blob.file) {
            Ok(bytes) if !suspect || Digest::of(digest.algorithm(), &bytes) == *digest => {
                return Ok(Some(bytes));
            }
            Ok(_) => log::warn!("{digest} does not hash to its name; it is read again"),
            Err(e) => log::warn!("{digest} cannot be read: {e}; it is read again"),
        }
        match self.recheck(digest)? {
            Recheck::Gone | Recheck::Quarantined(_) => Ok(None),
            Recheck::Verified => match self.open_blob(digest)? {
                Some(again) => {
                    read(again.file).map(Some).map_err(StoreError::io(format!("cannot read {digest}")))
                }
                None => Ok(None),
            },
        }
    }
}

/// Hashes a file from its start. `go_on` is told how many bytes have been read and says whether to; `Ok(false)`: it said
/// no.
pub(super) fn verify_file(
    mut file: File,
    digest: &Digest,
    go_on: &mut dyn FnMut(u64) -> bool,
) -> Result<bool, StoreError> {
    let mut hasher = Hasher::new(digest.algorithm());
    let mut chunk = vec![0; budget::SCRUB_CHUNK_BYTES];
    let mut done = 0;
    loop {
        match file.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => {
                hasher.update(&chunk[..n]);
                done += n as u64;
                if !go_on(done) {
                    return Ok(false);
                }
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(StoreError::io(format!("cannot read {digest} at byte {done}"))(e)),
        }
    }
    let actual = hasher.finish();
    if actual == *digest {
        Ok(true)
    } else {
        Err(StoreError::Mismatch { expected: Box::new(digest.clone()), actual: Box::new(actual) })
    }
}
