//! Uses of content: counted, not timed, so that the least recently used is known on a board without a clock.
//!
//! A use takes a count of the whole store. It stays in memory until [`Store::flush_touches`] writes all of them in one
//! batch, onto the blobs' mtimes and the index; a power cut costs the last of them. The same counts say which content
//! has not been verified since an unclean shutdown.

use super::Store;
use super::error::Result;
use super::record::BlobInfo;
use super::session::Session;
use crate::budget;
use crate::clock::Sequence;
use crate::oci::Digest;
use crate::sync::Mutex;
use std::collections::HashMap;
use std::time::Duration;

/// The counts, and what is known of uses that are not written down.
pub(super) struct Uses {
    pub(super) sequence: Sequence,
    pub(super) session: Session,
    touches: Mutex<HashMap<Digest, u64>>,
}

impl Uses {
    pub(super) fn new(session: Session) -> Uses {
        let sequence = Sequence::default();
        sequence.raise(session.ceiling());
        Uses { sequence, session, touches: Mutex::default() }
    }

    /// Content was used at count `n`.
    pub(super) fn note(&self, digest: &Digest, n: u64) {
        let mut touches = self.touches.lock();
        if touches.len() < budget::TOUCHES_MAX || touches.contains_key(digest) {
            touches.insert(digest.clone(), n);
        }
    }

    /// The count of a use that is not written down yet.
    pub(super) fn unwritten(&self, digest: &Digest) -> Option<u64> {
        self.touches.lock().get(digest).copied()
    }

    pub(super) fn forget(&self, digests: &[Digest]) {
        let mut touches = self.touches.lock();
        for digest in digests {
            touches.remove(digest);
        }
    }

    /// Whether content whose file says that it was used last at count `used` has to be verified before it is served.
    pub(super) fn is_unverified(&self, digest: &Digest, used: u64) -> bool {
        self.session.is_unverified(digest, used)
            && self.unwritten(digest).is_none_or(|n| self.session.is_unverified(digest, n))
    }
}

impl Store {
    /// Notes that content was used. Kept in memory until [`Store::flush_touches`].
    pub fn touch(&self, digest: &Digest) {
        let n = self.uses.sequence.next();
        if self.uses.session.may_touch(n) {
            self.uses.note(digest, n);
        }
    }

    /// Writes the uses noted since the last time, onto the index and the blobs' mtimes, in one batch.
    ///
    /// # Errors
    /// The index cannot take them; what is on the mtimes stays.
    pub fn flush_touches(&self) -> Result<()> {
        let touches = std::mem::take(&mut *self.uses.touches.lock());
        if touches.is_empty() {
            return Ok(());
        }
        let mut uses = Vec::with_capacity(touches.len());
        for (digest, n) in touches {
            self.layout.set_used(&self.layout.blob(&digest), n);
            if let Some(size) = self.layout.blob_size(&digest) {
                uses.push(BlobInfo { digest, size, used: n });
            }
        }
        self.change_index(|index| index.touch(&uses, self.uses.sequence.last()))
    }

    /// Keeps the counts ahead of their use, and notes how they compare with the time for which servers have run: often
    /// enough for [`Store::unused_for`] to know of `age`.
    ///
    /// # Errors
    /// The session file cannot be written.
    pub fn keep_counts(&self, age: Option<Duration>) -> Result<()> {
        self.uses.session.keep_ahead(self.uses.sequence.last())?;
        match age {
            Some(age) => self.uses.session.mark(self.uses.sequence.last(), age / budget::USE_MARKS_EACH),
            None => Ok(()),
        }
    }

    /// The count that stands for `age` ago, in time for which a server has run: what was used last at it or before has
    /// not been used for that long. `None` if so much has not passed.
    pub fn unused_for(&self, age: Duration) -> Option<u64> {
        self.uses.session.count_before(age)
    }
}
