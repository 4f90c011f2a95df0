//! The index: an LMDB environment with one database, the only user of heed.
//!
//! It answers quickly what the journal and the blobs answer slowly, and holds nothing that they do not, but for notes
//! and the order of uses since the last batch. Every record is sealed with a checksum ([`super::record`]); one that
//! does not open is [`StoreError::Damaged`], which leads to a rebuild.
//!
//! Keys are one byte for the table and then:
//!
//! | table | key | value |
//! |---|---|---|
//! | `m` | `schema`, `mark`, `stored`, `tally` | schema version; how far the journal is applied; totals |
//! | `n` | name | a note |
//! | `b` | digest | bytes in it and the count of its last use |
//! | `r` | `registry/repository` | the repository's number |
//! | `i` | number | the repository's name |
//! | `t` | number, tag | [`super::TagRecord`] |
//! | `l` | number, digest | [`super::ContentLink`] |
//! | `s` | subject digest, number, digest | nothing: the manifest refers to the subject |
//! | `a` | number | [`crate::auth::AccessClass`]: who may read the repository |
//!
//! Numbers are 32 bits, big endian. No transaction is held over an await, a lock of another room or a write to a client.

mod apply;
mod questions;
mod slot;
mod table;

pub(super) use slot::IndexSlot;

use super::error::{Result, StoreError};
use super::layout::own_file;
use super::record::count_of;
use crate::budget;
use crate::files;
use heed::types::Bytes;
use heed::{CommitOrAbort, Env, EnvFlags, EnvOpenOptions, WithoutTls};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use table::{META, Records, TALLY, Tally, failed};

/// The schema written. A larger number means a newer larder, whose index is refused and left alone.
pub(super) const SCHEMA: u32 = 3;
/// The oldest schema that is read as it is: that of 0.1.0, whose records are records of this schema too.
const SCHEMA_READ_MIN: u32 = 2;

/// How far the index has got.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::store) struct Mark {
    /// The journal's generation.
    pub(super) generation: u64,
    /// Bytes of it that are applied.
    pub(super) offset: u64,
    /// The highest count given out.
    #[serde(deserialize_with = "count_of")]
    pub(super) sequence: u64,
}

#[derive(Serialize, Deserialize)]
struct BlobRecord {
    size: u64,
    #[serde(deserialize_with = "count_of")]
    used: u64,
}

#[derive(Default, Serialize, Deserialize)]
struct Stored {
    blobs: u64,
    bytes: u64,
}

/// The open index.
pub(in crate::store) struct Index {
    env: Env<WithoutTls>,
    records: Records,
    /// The schema of the file; it rises with the first change.
    schema: AtomicU32,
    /// The change after which the file's fingerprint was right.
    remembered: AtomicUsize,
    /// Nothing is written any more.
    ended: AtomicBool,
}

impl Index {
    /// Makes an empty index in an empty folder.
    pub(in crate::store) fn create(folder: &Path) -> Result<Index> {
        let index = Index::open_env(folder, EnvFlags::NO_META_SYNC)?;
        index.write(|txn| {
            txn.put(META, TALLY, &Tally::default())?;
            txn.put(META, b"schema", &SCHEMA)?;
            txn.put(META, b"mark", &Mark::default())?;
            txn.put(META, b"stored", &Stored::default())
        })?;
        Ok(index)
    }

    /// Opens an index, refusing one of a newer schema. On a file system that is `read_only` it can be read.
    pub(in crate::store) fn open(folder: &Path, read_only: bool) -> Result<Index> {
        // A power cut may cost the last commit, and nothing else: the journal has what was in it.
        Index::open_as(folder, if read_only { EnvFlags::READ_ONLY } else { EnvFlags::NO_META_SYNC })
    }

    /// Opens an index that may be damaged, and changes nothing of it. To be done where a signal ends no server.
    pub(in crate::store) fn open_to_examine(folder: &Path) -> Result<Index> {
        Index::open_as(folder, EnvFlags::READ_ONLY | EnvFlags::NO_LOCK)
    }

    fn open_as(folder: &Path, flags: EnvFlags) -> Result<Index> {
        let index = Index::open_env(folder, flags)?;
        let schema = index.read(|txn| txn.require::<u32>(META, b"schema"))?;
        index.schema.store(schema, Ordering::Relaxed);
        match schema {
            SCHEMA_READ_MIN..=SCHEMA => Ok(index),
            newer if newer > SCHEMA => Err(StoreError::Newer { found: newer, known: SCHEMA }),
            older => Err(StoreError::Damaged(format!("schema {older} is no longer read"))),
        }
    }

    /// Copies every record into a new index, in an empty folder. It is not flushed: what a power cut leaves of it has no
    /// fingerprint.
    pub(in crate::store) fn copy_to(&self, folder: &Path) -> Result<()> {
        let fresh = Index::open_env(folder, EnvFlags::NO_SYNC)?;
        let copied = self.copy_records(&fresh);
        close(fresh);
        copied
    }

    #[allow(unsafe_code)]
    fn open_env(folder: &Path, flags: EnvFlags) -> Result<Index> {
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.map_size(budget::INDEX_MAP_BYTES).max_readers(budget::INDEX_READERS);
        let read_only = flags.contains(EnvFlags::READ_ONLY);
        check_file(&folder.join("data.mdb"))?;
        if !read_only {
            reserve_lock(folder)?;
        }
        // SAFETY: NO_META_SYNC weakens neither LMDB's locking nor the order of its writes. NO_LOCK goes with a reader
        // that is alone under the store's lock, NO_SYNC with a file that is not believed after a power cut.
        unsafe { options.flags(flags) };
        // SAFETY: the file is mapped, so nobody else may change it while it is open. The store's lock keeps every
        // other larder out, and the folder belongs to larder alone.
        let env = unsafe { options.open(folder) }.map_err(failed("open the index"))?;
        check_length(&env)?;
        let records = if read_only {
            let txn = env.read_txn().map_err(failed("open the index"))?;
            let opened = env.open_databases_and_commit(txn, |opener, txn| {
                opener.open_database::<Bytes, Bytes>(txn, None).map(CommitOrAbort::<_, ()>::Commit)
            });
            let records = opened.map_err(failed("open the index"))?.unwrap_commit();
            records.ok_or_else(|| StoreError::Damaged("it has no database".into()))?
        } else {
            let txn = env.write_txn().map_err(failed("open the index"))?;
            let created = env.create_databases_and_commit(txn, |opener, txn| {
                opener.create_database::<Bytes, Bytes>(txn, None).map(CommitOrAbort::<_, ()>::Commit)
            });
            created.map_err(failed("open the index"))?.unwrap_commit()
        };
        let (schema, remembered) = (AtomicU32::new(SCHEMA), AtomicUsize::new(usize::MAX));
        Ok(Index { env, records, schema, remembered, ended: AtomicBool::new(false) })
    }

    /// Whether the file is still as an older larder wrote it. Before it is changed the journal must be of the new format:
    /// an older larder refuses that before it touches anything.
    pub(in crate::store) fn is_of_older_schema(&self) -> bool {
        self.schema.load(Ordering::Relaxed) < SCHEMA
    }

    /// Waits for the write that is under way; what comes later is refused.
    pub(in crate::store) fn end(&self) -> Result<()> {
        let txn = self.env.write_txn().map_err(failed("write the index"))?;
        self.ended.store(true, Ordering::Relaxed);
        txn.abort();
        Ok(())
    }

    /// The number of the last change.
    pub(in crate::store) fn last_change(&self) -> usize {
        self.env.info().last_txn_id
    }

    /// Whether the file has a fingerprint that is right.
    pub(in crate::store) fn is_remembered(&self) -> bool {
        self.remembered.load(Ordering::Relaxed) == self.last_change()
    }

    /// The fingerprint is that of the file after this change.
    pub(in crate::store) fn set_remembered(&self, change: usize) {
        self.remembered.store(change, Ordering::Relaxed);
    }

    /// Flushes the last change too.
    pub(in crate::store) fn flush(&self) -> Result<()> {
        self.env.force_sync().map_err(failed("flush the index"))
    }

    pub(in crate::store) fn mark(&self) -> Result<Mark> {
        self.read(|txn| txn.require(META, b"mark"))
    }

    pub(in crate::store) fn set_mark(&self, generation: u64, offset: u64, sequence: u64) -> Result<()> {
        self.write(|txn| txn.put(META, b"mark", &Mark { generation, offset, sequence }))
    }

    #[cfg(test)]
    pub(in crate::store) fn set_schema(&self, schema: u32) -> Result<()> {
        self.write(|txn| txn.put(META, b"schema", &schema))
    }

    pub(in crate::store) fn stored_bytes(&self) -> Result<u64> {
        self.read(|txn| Ok(txn.require::<Stored>(META, b"stored")?.bytes))
    }
}

/// Closes an index and waits until nobody reads it any more, at most ten seconds, so that its folder can be replaced.
pub(in crate::store) fn close<I: std::borrow::Borrow<Index>>(index: I) {
    let closed = index.borrow().env.clone().prepare_for_closing();
    drop(index);
    closed.wait_timeout(budget::INDEX_CLOSE_TIME);
}

/// Refuses what is no file: LMDB would wait at a pipe for ever.
fn check_file(path: &Path) -> Result<()> {
    match std::fs::metadata(path) {
        Ok(meta) if !meta.is_file() => Err(StoreError::Damaged(format!("{} is not a file", path.display()))),
        _ => Ok(()),
    }
}

/// Has the blocks of LMDB's lock file allocated before it is mapped: a full disk must be an error, and not the end of the
/// process that writes to the map. Where the file system cannot do that nothing is lost.
fn reserve_lock(folder: &Path) -> Result<()> {
    let path = folder.join("lock.mdb");
    let reserved = files::open_with(own_file().read(true).truncate(false), &path).and_then(|file| {
        let all = rustix::fs::FallocateFlags::empty();
        match rustix::fs::fallocate(&file, all, 0, budget::INDEX_LOCK_BYTES) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
            other => other.map_err(Into::into),
        }
    });
    reserved.map_err(StoreError::io(format!("cannot reserve {}", path.display())))
}

/// Refuses a file that is shorter than its own header states: to read beyond its end would kill the process.
fn check_length(env: &Env<WithoutTls>) -> Result<()> {
    let page = u64::from(env.unnamed_database_stat().page_size);
    let needed = (env.info().last_page_number as u64 + 1).saturating_mul(page);
    let length = env.real_disk_size().map_err(failed("look at the index"))?;
    // A new environment has written its two header pages and nothing else.
    if length < needed {
        return Err(StoreError::Damaged(format!("the file has {length} bytes of at least {needed}")));
    }
    Ok(())
}
