//! The records of the index: sealed values under keys of one byte for the table and the rest, in one LMDB database.
//!
//! The tally is kept with each change, so that a page that is gone is noticed by the records that went with it.

use super::super::error::{Result, StoreError};
use super::super::record::{is_sealed, seal, unseal};
use super::{Index, SCHEMA};
use crate::budget;
use crate::oci::{Digest, Repository};
use heed::types::Bytes;
use heed::{Database, MdbError, PutFlags, RoTxn, RwTxn, WithoutTls};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::ops::Bound;
use std::sync::atomic::Ordering;

/// All of the index is in one database.
pub(super) type Records = Database<'static, Bytes, Bytes>;

pub(super) const META: u8 = b'm';
pub(super) const NOTE: u8 = b'n';
pub(super) const BLOB: u8 = b'b';
pub(super) const REPOSITORY: u8 = b'r';
pub(super) const NUMBER: u8 = b'i';
pub(super) const TAG: u8 = b't';
pub(super) const LINK: u8 = b'l';
pub(super) const SUBJECT: u8 = b's';
pub(super) const CLASS: u8 = b'a';

pub(super) const TALLY: &[u8] = b"tally";

/// All records together, the tally itself left out: a page that is gone takes records with it, and what is not there has
/// no checksum of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tally {
    records: u64,
    /// The sum of their checksums.
    sum: u64,
}

impl Tally {
    fn add(&mut self, sealed: &[u8]) {
        self.records = self.records.wrapping_add(1);
        self.sum = self.sum.wrapping_add(sum_of(sealed));
    }

    fn take(&mut self, sealed: &[u8]) {
        self.records = self.records.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(sum_of(sealed));
    }
}

fn sum_of(sealed: &[u8]) -> u64 {
    sealed.first_chunk().map_or(0, |checksum| u64::from_be_bytes(*checksum))
}

impl Index {
    /// Reads every record, and compares all of them with the tally.
    pub(in crate::store) fn check(&self) -> Result<()> {
        self.read(|txn| {
            let (mut tally, expected) = (Tally::default(), txn.require::<Tally>(META, TALLY)?);
            for entry in txn.records.iter(txn.txn).map_err(failed("read the index"))? {
                let (key, sealed) = entry.map_err(failed("read the index"))?;
                let Some((&table, rest)) = key.split_first() else {
                    return Err(StoreError::Damaged("a key is empty".into()));
                };
                is_sealed(table, rest, sealed)?;
                if (table, rest) != (META, TALLY) {
                    tally.add(sealed);
                }
                // Pages that name each other have no end.
                if tally.records > expected.records {
                    break;
                }
            }
            if tally != expected {
                let (found, expected) = (tally.records, expected.records);
                return Err(StoreError::Damaged(format!(
                    "it has {found} records, not the {expected} written"
                )));
            }
            Ok(())
        })
    }

    /// Adds every record to `fresh`, which has none, in the order of the keys.
    pub(super) fn copy_records(&self, fresh: &Index) -> Result<()> {
        self.read(|from| {
            let mut records = from.records.iter(from.txn).map_err(failed("read the index"))?.peekable();
            while records.peek().is_some() {
                let mut txn = fresh.env.write_txn().map_err(failed("write the index"))?;
                for entry in records.by_ref().take(budget::INDEX_COPY_RECORDS) {
                    let (key, sealed) = entry.map_err(failed("read the index"))?;
                    let put = fresh.records.put_with_flags(&mut txn, PutFlags::APPEND, key, sealed);
                    put.map_err(failed("write the index"))?;
                }
                txn.commit().map_err(failed("write the index"))?;
            }
            Ok(())
        })
    }

    pub(super) fn read<T>(&self, work: impl FnOnce(IndexReader<'_, '_>) -> Result<T>) -> Result<T> {
        let txn = self.env.read_txn().map_err(failed("read the index"))?;
        work(IndexReader { records: self.records, txn: &txn })
    }

    /// Changes the index, all or nothing.
    pub(super) fn write(&self, work: impl FnOnce(&mut IndexWriter<'_>) -> Result<()>) -> Result<()> {
        let txn = self.env.write_txn().map_err(failed("write the index"))?;
        // Writers take turns, so this is known to be so until the commit.
        if self.ended.load(Ordering::Relaxed) {
            return Err(StoreError::io("cannot write the index")(std::io::Error::other(
                "larder is stopping",
            )));
        }
        let mut writer = IndexWriter { records: self.records, txn, tally: Tally::default() };
        writer.tally = writer.reader().fetch(META, TALLY)?.unwrap_or_default();
        work(&mut writer)?;
        if self.is_of_older_schema() {
            writer.put(META, b"schema", &SCHEMA)?;
        }
        let tally = writer.tally;
        writer.put(META, TALLY, &tally)?;
        writer.txn.commit().map_err(failed("write the index"))?;
        self.schema.store(SCHEMA, Ordering::Relaxed);
        Ok(())
    }
}

/// A transaction that reads, or the reading half of one that writes.
#[derive(Clone, Copy)]
pub(super) struct IndexReader<'t, 'e> {
    pub(super) records: Records,
    pub(super) txn: &'t RoTxn<'e, WithoutTls>,
}

impl IndexReader<'_, '_> {
    /// Opens every record of a table whose key begins with `prefix`.
    pub(super) fn each<T: DeserializeOwned>(
        self,
        table: u8,
        prefix: &[u8],
        mut visit: impl FnMut(&[u8], T),
    ) -> Result<()> {
        self.scan(table, prefix, None, |key, sealed| {
            visit(key, unseal(table, key, sealed)?);
            Ok(true)
        })
    }

    /// Walks the keys of a table that begin with `prefix`, from after `prefix` + `after`, until `visit` returns false.
    pub(super) fn scan(
        self,
        table: u8,
        prefix: &[u8],
        after: Option<&[u8]>,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<bool>,
    ) -> Result<()> {
        let start = [&[table], prefix].concat();
        let from = [&start[..], after.unwrap_or_default()].concat();
        // LMDB takes no longer key; nothing stored comes after it.
        if from.len() > 511 {
            return Ok(());
        }
        let lower = if after.is_some() { Bound::Excluded(&from[..]) } else { Bound::Included(&from[..]) };
        let range = (lower, Bound::Unbounded);
        for entry in self.records.range(self.txn, &range).map_err(failed("read the index"))? {
            let (key, sealed) = entry.map_err(failed("read the index"))?;
            if !key.starts_with(&start) || !visit(&key[1..], sealed)? {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn require<T: DeserializeOwned>(self, table: u8, key: &[u8]) -> Result<T> {
        let missing = || format!("record {:?} is missing", String::from_utf8_lossy(key));
        self.fetch(table, key)?.ok_or_else(|| StoreError::Damaged(missing()))
    }

    pub(super) fn fetch<T: DeserializeOwned>(self, table: u8, key: &[u8]) -> Result<Option<T>> {
        let found =
            self.records.get(self.txn, &[&[table], key].concat()).map_err(failed("read the index"))?;
        found.map(|sealed| unseal(table, key, sealed)).transpose()
    }

    pub(super) fn number(self, repository: &Repository) -> Result<Option<u32>> {
        self.fetch(REPOSITORY, repository.to_string().as_bytes())
    }
}

/// A transaction that writes. It keeps the tally; there is one at a time.
pub(super) struct IndexWriter<'e> {
    pub(super) records: Records,
    pub(super) txn: RwTxn<'e>,
    tally: Tally,
}

impl IndexWriter<'_> {
    pub(super) fn reader(&self) -> IndexReader<'_, '_> {
        IndexReader { records: self.records, txn: &self.txn }
    }

    pub(super) fn put<T: Serialize>(&mut self, table: u8, key: &[u8], value: &T) -> Result<()> {
        let (name, sealed) = ([&[table], key].concat(), seal(table, key, value));
        if (table, key) != (META, TALLY) {
            self.count(&name, Some(&sealed))?;
        }
        self.records.put(&mut self.txn, &name, &sealed).map_err(failed("write the index"))
    }

    pub(super) fn remove(&mut self, table: u8, key: &[u8]) -> Result<()> {
        let name = [&[table], key].concat();
        self.count(&name, None)?;
        self.records.delete(&mut self.txn, &name).map(drop).map_err(failed("write the index"))
    }

    /// Keeps the tally: what stands under a key goes, and what is written in its place comes.
    fn count(&mut self, name: &[u8], after: Option<&[u8]>) -> Result<()> {
        let before = self.records.get(&self.txn, name).map_err(failed("read the index"))?;
        before.into_iter().for_each(|sealed| self.tally.take(sealed));
        after.into_iter().for_each(|sealed| self.tally.add(sealed));
        Ok(())
    }
}

pub(super) fn tag_key(number: u32, tag: &str) -> Vec<u8> {
    [&number.to_be_bytes()[..], tag.as_bytes()].concat()
}

pub(super) fn link_key(number: u32, digest: &Digest) -> Vec<u8> {
    [&number.to_be_bytes()[..], &digest.key()].concat()
}

/// Sorts heed's errors into damage and refusals of the operating system.
pub(super) fn failed(what: &'static str) -> impl Fn(heed::Error) -> StoreError {
    move |error| match error {
        heed::Error::Io(source) => StoreError::Io { what: format!("cannot {what}"), source },
        heed::Error::Mdb(
            e @ (MdbError::Corrupted
            | MdbError::PageNotFound
            | MdbError::Invalid
            | MdbError::VersionMismatch
            | MdbError::BadTxn),
        ) => StoreError::Damaged(e.to_string()),
        heed::Error::Mdb(e @ MdbError::Panic) => StoreError::Stuck(e.to_string()),
        other => StoreError::Io {
            what: format!("cannot {what}"),
            source: std::io::Error::other(other.to_string()),
        },
    }
}
