//! The records of the index: sealed values under keys of one byte for the table and the rest, in one LMDB database.
//!
//! The tally is kept with each change, so that a page that is gone is noticed by the records that went with it.

use super::super::error::StoreError;
use super::super::record::{is_sealed, seal, unseal};
use super::{Index, SCHEMA};
use crate::oci::Digest;
use heed::{MdbError, RoTxn, RwTxn, WithoutTls};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::ops::Bound;
use std::sync::atomic::Ordering;

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

/// A transaction that reads.
pub(super) type Reading<'e> = RoTxn<'e, WithoutTls>;
/// A transaction that changes something.
pub(super) type Writing<'a, 'e> = &'a mut RwTxn<'e>;

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
    pub(in crate::store) fn check(&self) -> Result<(), StoreError> {
        self.read(|txn| {
            let mut tally = Tally::default();
            for entry in self.records.iter(txn).map_err(failed("read the index"))? {
                let (key, sealed) = entry.map_err(failed("read the index"))?;
                let Some((&table, rest)) = key.split_first() else {
                    return Err(StoreError::Damaged("a key is empty".into()));
                };
                is_sealed(table, rest, sealed)?;
                if (table, rest) != (META, TALLY) {
                    tally.add(sealed);
                }
            }
            let expected: Tally = self.require(txn, META, TALLY)?;
            if tally != expected {
                let (found, expected) = (tally.records, expected.records);
                return Err(StoreError::Damaged(format!(
                    "it has {found} records, not the {expected} written"
                )));
            }
            Ok(())
        })
    }

    /// Opens every record of a table whose key begins with `prefix`.
    pub(super) fn each<T: DeserializeOwned>(
        &self,
        txn: &Reading<'_>,
        table: u8,
        prefix: &[u8],
        mut visit: impl FnMut(&[u8], T),
    ) -> Result<(), StoreError> {
        self.scan(txn, table, prefix, None, |key, sealed| {
            visit(key, unseal(table, key, sealed)?);
            Ok(true)
        })
    }

    /// Walks the keys of a table that begin with `prefix`, from after `prefix` + `after`, until `visit` says false.
    pub(super) fn scan(
        &self,
        txn: &Reading<'_>,
        table: u8,
        prefix: &[u8],
        after: Option<&[u8]>,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let start = [&[table], prefix].concat();
        let from = [&start[..], after.unwrap_or_default()].concat();
        // LMDB takes no longer key; nothing stored comes after it.
        if from.len() > 511 {
            return Ok(());
        }
        let lower = if after.is_some() { Bound::Excluded(&from[..]) } else { Bound::Included(&from[..]) };
        let range = (lower, Bound::Unbounded);
        for entry in self.records.range(txn, &range).map_err(failed("read the index"))? {
            let (key, sealed) = entry.map_err(failed("read the index"))?;
            if !key.starts_with(&start) || !visit(&key[1..], sealed)? {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn require<T: DeserializeOwned>(
        &self,
        txn: &Reading<'_>,
        table: u8,
        key: &[u8],
    ) -> Result<T, StoreError> {
        self.fetch(txn, table, key)?.ok_or_else(|| {
            StoreError::Damaged(format!("record {:?} is missing", String::from_utf8_lossy(key)))
        })
    }

    pub(super) fn fetch<T: DeserializeOwned>(
        &self,
        txn: &Reading<'_>,
        table: u8,
        key: &[u8],
    ) -> Result<Option<T>, StoreError> {
        let found = self.records.get(txn, &[&[table], key].concat()).map_err(failed("read the index"))?;
        found.map(|sealed| unseal(table, key, sealed)).transpose()
    }

    pub(super) fn put<T: Serialize>(
        &self,
        txn: Writing<'_, '_>,
        table: u8,
        key: &[u8],
        value: &T,
    ) -> Result<(), StoreError> {
        let (name, sealed) = ([&[table], key].concat(), seal(table, key, value));
        if (table, key) != (META, TALLY) {
            self.count(txn, &name, Some(&sealed))?;
        }
        self.records.put(txn, &name, &sealed).map_err(failed("write the index"))
    }

    /// Keeps the tally: what stands under a key goes, and what is written in its place comes.
    pub(super) fn count(&self, txn: &RwTxn<'_>, name: &[u8], after: Option<&[u8]>) -> Result<(), StoreError> {
        let before = self.records.get(txn, name).map_err(failed("read the index"))?;
        let mut tally = self.tally.lock();
        before.into_iter().for_each(|sealed| tally.take(sealed));
        after.into_iter().for_each(|sealed| tally.add(sealed));
        Ok(())
    }

    pub(super) fn remove(&self, txn: Writing<'_, '_>, table: u8, key: &[u8]) -> Result<bool, StoreError> {
        let name = [&[table], key].concat();
        self.count(txn, &name, None)?;
        self.records.delete(txn, &name).map_err(failed("write the index"))
    }

    pub(super) fn read<T>(
        &self,
        work: impl FnOnce(&Reading<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let txn = self.env.read_txn().map_err(failed("read the index"))?;
        work(&txn)
    }

    pub(super) fn write(
        &self,
        work: impl FnOnce(Writing<'_, '_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut txn = self.env.write_txn().map_err(failed("write the index"))?;
        let tally = self.fetch(&txn, META, TALLY)?.unwrap_or_default();
        *self.tally.lock() = tally;
        work(&mut txn)?;
        if self.is_of_older_schema() {
            self.put(&mut txn, META, b"schema", &SCHEMA)?;
        }
        let tally = *self.tally.lock();
        self.put(&mut txn, META, TALLY, &tally)?;
        txn.commit().map_err(failed("write the index"))?;
        self.schema.store(SCHEMA, Ordering::Relaxed);
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
