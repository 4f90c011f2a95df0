//! Is what is on the disk still what its name says? (rules 1 and 2)
//!
//! Content is hashed as it arrives, again the first time it is used after an unclean shutdown, and by the scrub. What
//! looks corrupt is read a second time past the page cache before it is believed to be, for memory and cables lie too. A
//! corrupt blob is moved to `quarantine/` and from then on not here: an image that needs it is no longer complete. Its
//! name in `quarantine/` stays until it was refetched, so that it is known over restarts what is to be refetched; its
//! bytes stay while there are few of them.

use super::Store;
use super::error::{Result, StoreError};
use super::layout;
use crate::budget;
use crate::documents::DocumentTurn;
use crate::oci::{Digest, Hasher};
use std::fs::{self, File};
use std::io::{ErrorKind, Read};

/// What the second check of a blob has found.
#[derive(Debug)]
pub enum Recheck {
    /// It hashes to its name.
    Verified,
    /// It is not here any more.
    Gone,
    /// It is corrupt, in these words, and is in quarantine now.
    Quarantined(String),
}

impl Store {
    /// Whether there is content that was not verified since an unclean shutdown.
    pub fn has_unverified(&self) -> bool {
        self.uses.session.has_unverified()
    }

    /// How far the scrub is: it has come past everything up to this digest.
    pub fn scrubbed(&self) -> Option<Digest> {
        self.uses.session.scrubbed()
    }

    /// Notes how far the scrub is; `None`: it has come to the end. Written down at the next clean shutdown, or by
    /// [`Store::save_session`].
    pub fn set_scrubbed(&self, digest: Option<Digest>) {
        self.uses.session.set_scrubbed(digest);
    }

    /// Writes down how far things are that are otherwise written at a clean shutdown.
    ///
    /// # Errors
    /// The session file cannot be written.
    pub fn save_session(&self) -> Result<()> {
        self.uses.session.save(self.uses.sequence.last(), false)
    }

    /// Reads a blob and compares its hash with its name.
    ///
    /// # Errors
    /// It cannot be read, or does not hash to its name.
    pub fn verify(&self, digest: &Digest) -> Result<()> {
        self.verify_along(digest, &mut |_| true).map(drop)
    }

    /// The same, telling `go_on` how many bytes have been read, which decides whether to go on; `Ok(false)`: it does not.
    ///
    /// # Errors
    /// As [`Store::verify`].
    pub fn verify_along(&self, digest: &Digest, go_on: &mut dyn FnMut(u64) -> bool) -> Result<bool> {
        match self.open_blob(digest)? {
            Some(blob) => verify_file(blob.file, digest, go_on),
            None => Err(StoreError::io(format!("cannot open {digest}"))(ErrorKind::NotFound.into())),
        }
    }

    /// The same past the page cache, from the medium itself as far as the kernel lets us. `go_on` is told how many bytes
    /// have been read and decides whether to go on; `Ok(false)`: it does not.
    ///
    /// # Errors
    /// As [`Store::verify`].
    pub fn verify_cold(&self, digest: &Digest, go_on: &mut dyn FnMut(u64) -> bool) -> Result<bool> {
        if let Some(blob) = self.open_blob(digest)? {
            let dropped = rustix::fs::fadvise(&blob.file, 0, None, rustix::fs::Advice::DontNeed);
            dropped.map_err(|e| StoreError::io(format!("cannot reread {digest}"))(e.into()))?;
        }
        self.verify_along(digest, go_on)
    }

    /// Verifies content that looked corrupt a second time, and quarantines it if it is.
    ///
    /// # Errors
    /// It is corrupt and the disk does not let it be moved away; it is not served all the same. Or it could not be read for
    /// lack of something, which proves nothing.
    pub fn recheck(&self, digest: &Digest) -> Result<Recheck> {
        let problem = match self.verify_cold(digest, &mut |_| true) {
            Ok(_) => return Ok(Recheck::Verified),
            Err(_) if !self.contains(digest) => return Ok(Recheck::Gone),
            Err(lack) if lack.is_exhaustion() => return Err(lack),
            Err(problem) => problem,
        };
        self.quarantine(digest)?;
        log::error!("{digest} is corrupt and was quarantined: {problem}");
        Ok(Recheck::Quarantined(problem.to_string()))
    }

    /// Takes a corrupt blob out of service. Its bytes are kept under `quarantine/` while there is room for them.
    ///
    /// # Errors
    /// The disk does not let it be moved away. It is not served all the same.
    pub fn quarantine(&self, digest: &Digest) -> Result<()> {
        let path = self.layout.blob(digest);
        self.quarantine.count();
        let moving = self.accounts.moving();
        let size = self.layout.blob_size(digest).unwrap_or(0);
        let quarantined = self.layout.quarantined(digest);
        if let Err(e) = fs::rename(&path, &quarantined) {
            self.quarantine.hold(digest);
            self.stamps.changed();
            return Err(StoreError::io(format!("cannot quarantine {}", path.display()))(e));
        }
        self.stamps.changed();
        moving.take(size);
        drop(moving);
        self.uses.forget(std::slice::from_ref(digest));
        if self.layout.quarantined_bytes() > budget::QUARANTINE_BYTES_MAX {
            // The name is what counts.
            let _ = File::create(&quarantined);
        }
        layout::flush_dir(&self.layout.blobs(digest.algorithm()))?;
        match self.change_index(|index| index.remove_blobs(std::slice::from_ref(digest))) {
            Err(StoreError::Rebuilding) => Ok(()),
            other => other,
        }
    }

    /// What is in quarantine and was not refetched.
    pub fn quarantined(&self) -> Vec<Digest> {
        let names = self.layout.quarantined_names(budget::QUARANTINE_FILES_MAX);
        names.into_iter().filter(|digest| !self.contains(digest)).collect()
    }

    /// Removes content from quarantine: nobody needs it any more.
    pub fn forget_quarantined(&self, digest: &Digest) {
        self.layout.take_from_quarantine(digest);
    }

    /// Corrupt blobs found since the start.
    pub fn corrupt_blobs(&self) -> u64 {
        self.quarantine.counted()
    }

    /// Counts a blob that was found corrupt.
    pub fn count_corrupt(&self) {
        self.quarantine.count();
    }

    /// What `read` makes of the content of a blob no larger than a manifest may be; `None` if it is not here or larger. The
    /// content is in memory only meanwhile, and of large ones one at a time.
    ///
    /// # Errors
    /// The disk fails.
    pub fn with_document<T>(&self, digest: &Digest, read: impl FnOnce(&[u8]) -> T) -> Result<Option<T>> {
        let Some(size) = self.blob_size(digest) else { return Ok(None) };
        if size > budget::MANIFEST_BYTES_MAX {
            return Ok(None);
        }
        let _turn = DocumentTurn::wait(size);
        Ok(self.read_small(digest)?.map(|bytes| read(&bytes)))
    }

    fn read_small(&self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        let Some(blob) = self.open_blob(digest)? else { return Ok(None) };
        if blob.size > budget::MANIFEST_BYTES_MAX {
            return Ok(None);
        }
        let (unverified, size) = (blob.unverified, blob.size);
        let read = |mut file: File| {
            let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
            file.read_to_end(&mut bytes).map(|_| bytes)
        };
        match read(blob.file) {
            Ok(bytes) if !unverified || Digest::of(digest.algorithm(), &bytes) == *digest => {
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

/// Hashes a file from its start. `go_on` is told how many bytes have been read and decides whether to go on; `Ok(false)`: it
/// does not.
fn verify_file(mut file: File, digest: &Digest, go_on: &mut dyn FnMut(u64) -> bool) -> Result<bool> {
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
