//! Content on its way in (design rule 2): staged in the same file system, hashed as it comes, flushed, renamed.
//!
//! A staging file holds a prefix of the content. It outlives the process, with a small `.origin` file beside it that
//! says where the rest can be had; whoever takes it up again hashes the prefix anew, so that nothing is believed of a
//! file that a power cut may have torn.

use super::layout::{flush_dir, set_private};
use super::{Store, StoreError};
use crate::budget;
use crate::oci::{Digest, Hasher, Repository};
use crate::sync::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Where staged content comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The repository that it was asked for in.
    pub repository: Repository,
    /// Its size in bytes, if known.
    pub size: Option<u64>,
}

/// Content being written by one writer. Dropping it leaves the file for a later writer to take up.
#[derive(Debug)]
pub struct Staged {
    digest: Digest,
    path: PathBuf,
    file: Arc<File>,
    hasher: Hasher,
    len: u64,
    /// It can be taken up by a later process, and so has an `.origin` file.
    resumable: bool,
    _claim: Option<Claim>,
}

/// The right to write one digest; given back on drop.
#[derive(Debug)]
struct Claim {
    writing: Arc<Mutex<HashSet<Digest>>>,
    digest: Digest,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.writing.lock().remove(&self.digest);
    }
}

impl Store {
    /// Begins to write content, or takes up what an earlier writer left; [`Staged::len`] says how much that is.
    pub fn stage(&self, digest: &Digest, origin: &Origin) -> Result<Staged, StoreError> {
        let claim = self.claim(digest)?;
        let path = self.layout.staged(digest);
        let note = serde_json::to_vec(origin).unwrap_or_default();
        let origin_path = self.layout.origin(digest);
        fs::write(&origin_path, note)
            .map_err(StoreError::io(format!("cannot write {}", origin_path.display())))?;
        let file = open_staging(&path, false)?;
        let mut staged = Staged {
            digest: digest.clone(),
            path,
            file: Arc::new(file),
            hasher: Hasher::new(digest.algorithm()),
            len: 0,
            resumable: true,
            _claim: Some(claim),
        };
        staged.take_up(origin.size)?;
        Ok(staged)
    }

    /// A staging file for content that is at hand whole. Several writers of the same content do not meet.
    pub(super) fn stage_scratch(&self, digest: &Digest) -> Result<Staged, StoreError> {
        let path = self.layout.scratch(digest, self.sequence.next());
        let file = Arc::new(open_staging(&path, true)?);
        let hasher = Hasher::new(digest.algorithm());
        Ok(Staged { digest: digest.clone(), path, file, hasher, len: 0, resumable: false, _claim: None })
    }

    /// What earlier writers left unfinished, with the bytes already there.
    pub fn unfinished(&self) -> Vec<(Digest, Origin, u64)> {
        let mut found = Vec::new();
        for entry in
            fs::read_dir(self.layout.staging()).into_iter().flatten().flatten().take(budget::FILLS_MAX * 2)
        {
            let path = entry.path();
            let name = entry.file_name();
            let Some(digest) = name.to_str().and_then(|n| n.replacen('-', ":", 1).parse::<Digest>().ok())
            else {
                continue;
            };
            let origin =
                fs::read(self.layout.origin(&digest)).ok().and_then(|b| serde_json::from_slice(&b).ok());
            match origin {
                Some(origin) => found.push((digest, origin, entry.metadata().map_or(0, |meta| meta.len()))),
                None => drop(fs::remove_file(path)),
            }
        }
        found.sort();
        found
    }

    /// Cuts the end off what earlier writers left: a power cut may have lengthened a file and not filled it, and one wrong
    /// byte would cost all of it.
    pub(super) fn cut_torn_ends(&self) {
        for (digest, _, len) in self.unfinished() {
            let sound = len.saturating_sub(budget::TORN_BYTES) / budget::TORN_BYTES * budget::TORN_BYTES;
            let file = OpenOptions::new().write(true).open(self.layout.staged(&digest));
            if let Err(e) = file.and_then(|file| file.set_len(sound)) {
                log::warn!("the end of {digest}, which is unfinished, could not be cut off: {e}");
            }
        }
    }

    /// Bytes of everything that is staged.
    pub fn staged_bytes(&self) -> u64 {
        let files = fs::read_dir(self.layout.staging()).into_iter().flatten().flatten();
        files.filter_map(|entry| entry.metadata().ok()).map(|meta| meta.len()).sum()
    }

    /// Removes what is staged of some content, if nobody is writing it.
    pub fn forget_staged(&self, digest: &Digest) -> Result<(), StoreError> {
        let _claim = self.claim(digest)?;
        let _ = fs::remove_file(self.layout.staged(digest));
        let _ = fs::remove_file(self.layout.origin(digest));
        Ok(())
    }

    fn claim(&self, digest: &Digest) -> Result<Claim, StoreError> {
        let mut writing = self.writing.lock();
        if !writing.insert(digest.clone()) {
            return Err(StoreError::Busy(Box::new(digest.clone())));
        }
        Ok(Claim { writing: Arc::clone(&self.writing), digest: digest.clone() })
    }
}

impl PartialOrd for Origin {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Origin {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (&self.repository, self.size).cmp(&(&other.repository, other.size))
    }
}

impl Staged {
    /// Bytes written so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing is written yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The file, for readers that follow the writer.
    pub fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Adds content at the end.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.file
            .write_all_at(bytes, self.len)
            .map_err(StoreError::io(format!("cannot write {}", self.path.display())))?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Throws away what is written, to begin again.
    pub fn restart(&mut self) -> Result<(), StoreError> {
        self.hasher = Hasher::new(self.digest.algorithm());
        self.len = 0;
        self.file.set_len(0).map_err(StoreError::io(format!("cannot empty {}", self.path.display())))
    }

    /// Whether what is written so far hashes to the name: the content is whole.
    pub fn matches(&self) -> Result<(), StoreError> {
        let actual = self.hasher.clone().finish();
        if actual == self.digest {
            Ok(())
        } else {
            Err(StoreError::Mismatch { expected: Box::new(self.digest.clone()), actual: Box::new(actual) })
        }
    }

    /// Makes the content a blob. On a mismatch, and on a failed flush, what was written is discarded.
    pub fn publish(self, store: &Store, private: bool) -> Result<(), StoreError> {
        let published = self.try_publish(store, private);
        if published.is_err() {
            self.discard(store);
        }
        published
    }

    fn try_publish(&self, store: &Store, private: bool) -> Result<(), StoreError> {
        self.matches()?;
        let target = store.layout.blob(&self.digest);
        let known = store.blob_size(&self.digest).is_some();
        let n = store.sequence.next();
        store.layout.set_used(&self.path, n);
        set_private(&self.path, private)?;
        self.file.sync_all().map_err(StoreError::io(format!("cannot flush {}", self.path.display())))?;
        {
            // Counted before it is there: a download that looks for room in between must not count on what this one takes.
            let _counted = store.uncounted();
            let new = if known { 0 } else { self.len };
            store.stored_bytes.fetch_add(new, Ordering::Relaxed);
            if let Err(e) = fs::rename(&self.path, &target) {
                store.count_out(new);
                return Err(StoreError::io(format!("cannot put {} in place", target.display()))(e));
            }
        }
        store.changed();
        if let Err(problem) = flush_dir(&store.layout.blobs(self.digest.algorithm())) {
            // What may not stay is not counted on.
            if !known && fs::remove_file(&target).is_ok() {
                store.changed();
                store.count_out(self.len);
            }
            return Err(problem);
        }
        store.acquit(&self.digest);
        store.changed();
        if self.resumable {
            let _ = fs::remove_file(store.layout.origin(&self.digest));
        }
        // Whole and in its place, it is a blob; the index hears of it with the next batch of uses.
        store.note_use(&self.digest, n);
        Ok(())
    }

    /// Removes what was written.
    pub fn discard(&self, store: &Store) {
        let _ = fs::remove_file(&self.path);
        if self.resumable {
            let _ = fs::remove_file(store.layout.origin(&self.digest));
        }
    }

    /// Hashes what an earlier writer left.
    fn take_up(&mut self, size: Option<u64>) -> Result<(), StoreError> {
        let failed = || StoreError::io(format!("cannot read {}", self.path.display()));
        let left = self.file.metadata().map_err(failed())?.len();
        if size.is_some_and(|size| left > size) {
            return self.restart();
        }
        let mut chunk = vec![0; budget::FETCH_CHUNK_BYTES];
        while self.len < left {
            match self.file.read_at(&mut chunk, self.len) {
                Ok(0) => break,
                Ok(n) => {
                    self.hasher.update(&chunk[..n]);
                    self.len += n as u64;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.restart(),
            }
        }
        Ok(())
    }
}

fn open_staging(path: &std::path::Path, fresh: bool) -> Result<File, StoreError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(fresh)
        .mode(0o600)
        .open(path)
        .map_err(StoreError::io(format!("cannot open {}", path.display())))
}

/// Writes a small file in one piece: a new one beside it, flushed, renamed, the folder flushed.
pub(super) fn write_whole(path: &std::path::Path, bytes: &[u8]) -> Result<(), StoreError> {
    let fresh = path.with_extension("new");
    let failed = |what: &str| StoreError::io(format!("cannot {what} {}", fresh.display()));
    let mut file = File::create(&fresh).map_err(failed("create"))?;
    file.write_all(bytes).map_err(failed("write"))?;
    file.sync_all().map_err(failed("flush"))?;
    drop(file);
    fs::rename(&fresh, path).map_err(failed("rename"))?;
    path.parent().map_or(Ok(()), flush_dir)
}
