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
//! | `b` | digest | [`BlobRecord`] |
//! | `r` | `registry/repository` | the repository's number |
//! | `i` | number | the repository's name |
//! | `t` | number, tag | [`TagRecord`] |
//! | `l` | number, digest | [`ContentLink`] |
//! | `s` | subject digest, number, digest | nothing: the manifest refers to the subject |
//! | `a` | number | [`AccessClass`]: who may read the repository |
//!
//! Numbers are 32 bits, big endian. No transaction is held over an await, a lock of another room or a write to a client.

use super::journal::{Event, Position, What};
use super::record::{ContentLink, LinkedManifest, TagRecord, is_sealed, seal, unseal};
use super::{BlobInfo, StoreError};
use crate::auth::AccessClass;
use crate::budget;
use crate::oci::{Digest, Kind, Manifest, Repository, Tag};
use crate::sync::Mutex;
use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, MdbError, RoTxn, RwTxn, WithoutTls};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

/// The schema written. A larger number means a newer larder, whose index is refused and left alone.
const SCHEMA: u32 = 3;
/// The oldest schema that is read as it is: that of 0.1.0, whose records are records of this schema too.
const SCHEMA_READ_MIN: u32 = 2;

const META: u8 = b'm';
const NOTE: u8 = b'n';
const BLOB: u8 = b'b';
const REPOSITORY: u8 = b'r';
const NUMBER: u8 = b'i';
const TAG: u8 = b't';
const LINK: u8 = b'l';
const SUBJECT: u8 = b's';
const CLASS: u8 = b'a';

/// How far the index has got.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// The journal's generation.
    pub(super) generation: u64,
    /// Bytes of it that are applied.
    pub(super) offset: u64,
    /// The highest count given out.
    pub(super) sequence: u64,
}

#[derive(Serialize, Deserialize)]
struct BlobRecord {
    size: u64,
    used: u64,
}

#[derive(Default, Serialize, Deserialize)]
struct Stored {
    blobs: u64,
    bytes: u64,
}

/// All records together, the tally itself left out: a page that is gone takes records with it, and what is not there has
/// no checksum of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Tally {
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

const TALLY: &[u8] = b"tally";

/// The open index.
pub(super) struct Index {
    env: Env<WithoutTls>,
    records: Database<'static, Bytes, Bytes>,
    /// The schema that the file says; it rises with the first change.
    schema: AtomicU32,
    /// The tally while a change is being made. There is one change at a time.
    tally: Mutex<Tally>,
}

type Change<'a, 'e> = &'a mut RwTxn<'e>;

impl Index {
    /// Makes an empty index in an empty folder.
    pub(super) fn create(folder: &Path) -> Result<Index, StoreError> {
        let index = Index::open_env(folder, false)?;
        index.write(|index, txn| {
            index.put(txn, META, TALLY, &Tally::default())?;
            index.put(txn, META, b"schema", &SCHEMA)?;
            index.put(txn, META, b"mark", &Mark::default())?;
            index.put(txn, META, b"stored", &Stored::default())
        })?;
        Ok(index)
    }

    /// Opens an index, refusing one of a newer schema. On a file system that is `read_only` it can be read.
    pub(super) fn open(folder: &Path, read_only: bool) -> Result<Index, StoreError> {
        let index = Index::open_env(folder, read_only)?;
        let schema = index.read(|index, txn| index.require::<u32>(txn, META, b"schema"))?;
        index.schema.store(schema, Ordering::Relaxed);
        match schema {
            SCHEMA_READ_MIN..=SCHEMA => Ok(index),
            newer if newer > SCHEMA => Err(StoreError::Newer { found: newer, known: SCHEMA }),
            older => Err(StoreError::Damaged(format!("schema {older} is no longer read"))),
        }
    }

    #[allow(unsafe_code)]
    fn open_env(folder: &Path, read_only: bool) -> Result<Index, StoreError> {
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.map_size(budget::INDEX_MAP_BYTES).max_readers(budget::INDEX_READERS);
        // A power cut may cost the last commit, and nothing else: the journal has what was in it.
        let flags = if read_only { EnvFlags::READ_ONLY } else { EnvFlags::NO_META_SYNC };
        if !read_only {
            reserve_lock(folder)?;
        }
        // SAFETY: these flags weaken neither LMDB's locking nor the order of its writes.
        unsafe { options.flags(flags) };
        // SAFETY: the file is mapped, so nobody else may change it while it is open. The store's lock keeps every
        // other larder out, and the folder belongs to larder alone.
        let env = unsafe { options.open(folder) }.map_err(failed("open the index"))?;
        check_length(&env)?;
        if read_only {
            let txn = env.read_txn().map_err(failed("open the index"))?;
            let records = env
                .open_databases_and_commit(txn, |opener, txn| {
                    opener.open_database::<Bytes, Bytes>(txn, None).map(CommitOrAbort::<_, ()>::Commit)
                })
                .map_err(failed("open the index"))?
                .unwrap_commit();
            let records = records.ok_or_else(|| StoreError::Damaged("it has no database".into()))?;
            return Ok(Index { env, records, schema: AtomicU32::new(SCHEMA), tally: Mutex::default() });
        }
        let txn = env.write_txn().map_err(failed("open the index"))?;
        let records = env
            .create_databases_and_commit(txn, |opener, txn| {
                opener.create_database::<Bytes, Bytes>(txn, None).map(CommitOrAbort::<_, ()>::Commit)
            })
            .map_err(failed("open the index"))?
            .unwrap_commit();
        Ok(Index { env, records, schema: AtomicU32::new(SCHEMA), tally: Mutex::default() })
    }

    /// Closes the environment, so that its folder can be moved. Waits for who is still reading, at most ten seconds.
    pub(super) fn close(&self) -> heed::EnvClosingEvent {
        self.env.clone().prepare_for_closing()
    }

    /// Whether the file is still as an older larder wrote it. Before it is changed the journal must be of the new format:
    /// an older larder refuses that before it touches anything.
    pub(super) fn is_of_older_schema(&self) -> bool {
        self.schema.load(Ordering::Relaxed) < SCHEMA
    }

    pub(super) fn mark(&self) -> Result<Mark, StoreError> {
        self.read(|index, txn| index.require(txn, META, b"mark"))
    }

    pub(super) fn set_mark(&self, generation: u64, offset: u64, sequence: u64) -> Result<(), StoreError> {
        self.write(|index, txn| index.put(txn, META, b"mark", &Mark { generation, offset, sequence }))
    }

    #[cfg(test)]
    pub(super) fn set_schema(&self, schema: u32) -> Result<(), StoreError> {
        self.write(|index, txn| index.put(txn, META, b"schema", &schema))
    }

    pub(super) fn stored_bytes(&self) -> Result<u64, StoreError> {
        self.read(|index, txn| Ok(index.require::<Stored>(txn, META, b"stored")?.bytes))
    }

    // -- Events ----------------------------------------------------------------------------------------------

    /// Applies events and moves the mark, all or nothing. Each comes with its manifest if it has one at hand.
    pub(super) fn apply(
        &self,
        events: &[(&Event, Option<Manifest>)],
        position: Position,
        history_max: usize,
    ) -> Result<(), StoreError> {
        self.write(|index, txn| {
            let mut mark: Mark = index.require(txn, META, b"mark")?;
            for (event, manifest) in events {
                index.apply_one(txn, event, manifest.as_ref(), history_max)?;
                mark.sequence = mark.sequence.max(event.n);
            }
            (mark.generation, mark.offset) = (position.generation, position.offset);
            index.put(txn, META, b"mark", &mark)
        })
    }

    fn apply_one(
        &self,
        txn: Change<'_, '_>,
        event: &Event,
        manifest: Option<&Manifest>,
        history_max: usize,
    ) -> Result<(), StoreError> {
        let n = event.n;
        match &event.what {
            What::Seen { repository, tag, unix, observed } => {
                let version = observed.clone().noted(n, *unix);
                self.change_tag(txn, repository, tag, |record| record.see(version))
            }
            What::Complete { repository, tag, unix, observed } => {
                let version = observed.clone().noted(n, *unix);
                self.change_tag(txn, repository, tag, |record| record.completed(version, history_max))
            }
            What::Rollback { repository, tag, rollback } => {
                self.change_tag(txn, repository, tag, |record| record.rollback.clone_from(rollback))
            }
            What::Pinned { repository, tag, pinned } => {
                self.change_tag(txn, repository, tag, |record| record.pinned = *pinned)
            }
            What::Removed { repository, tag } => match self.number(txn, repository)? {
                Some(number) => self.remove(txn, TAG, &tag_key(number, tag.as_str())).map(drop),
                None => Ok(()),
            },
            What::Evicted { repository, digest, links } => {
                self.forget_image(txn, repository, digest, links, n)
            }
            What::Held { repository, digest } => {
                let number = self.number_or_new(txn, repository)?;
                self.change_link(txn, number, digest, |link| link.held = true)
            }
            What::Class { repository, class } => {
                let number = self.number_or_new(txn, repository)?;
                self.put(txn, CLASS, &number.to_be_bytes(), class)
            }
            What::Manifest { repository, digest, media_type } => {
                let number = self.number_or_new(txn, repository)?;
                self.change_link(txn, number, digest, |link| {
                    link.held = true;
                    link.n = n;
                    link.media_type = Some(media_type.clone());
                })?;
                match manifest {
                    Some(manifest) => self.link_children(txn, number, digest, manifest),
                    None => Ok(()),
                }
            }
        }
    }

    /// Forgets the versions of tags that are this image, what it alone was linked to, and a repository of which nothing
    /// is left. What was noted after count `n` is of a later download and stays.
    fn forget_image(
        &self,
        txn: Change<'_, '_>,
        repository: &Repository,
        root: &Digest,
        links: &[Digest],
        n: u64,
    ) -> Result<(), StoreError> {
        let Some(number) = self.number(txn, repository)? else { return Ok(()) };
        let prefix = number.to_be_bytes();
        let mut tags = Vec::new();
        self.each(txn, TAG, &prefix, |key, record: TagRecord| tags.push((key.to_vec(), record)))?;
        for (key, mut record) in tags {
            if !record.forget(root, n) {
                continue;
            }
            if record.is_empty() {
                self.remove(txn, TAG, &key)?;
            } else {
                self.put(txn, TAG, &key, &record)?;
            }
        }
        for digest in links {
            let key = link_key(number, digest);
            if self.fetch::<ContentLink>(txn, LINK, &key)?.is_some_and(|link| link.n <= n) {
                self.remove(txn, LINK, &key)?;
            }
        }
        let mut subjects = Vec::new();
        self.each(txn, SUBJECT, &[], |key, ()| {
            let of = key.len().checked_sub(root.key().len() + prefix.len());
            if of.is_some_and(|at| key[at..] == [&prefix[..], &root.key()].concat()) {
                subjects.push(key.to_vec());
            }
        })?;
        for key in subjects {
            self.remove(txn, SUBJECT, &key)?;
        }
        let mut left = false;
        self.each(txn, TAG, &prefix, |_, _: TagRecord| left = true)?;
        self.each(txn, LINK, &prefix, |_, _: ContentLink| left = true)?;
        if !left {
            self.remove(txn, REPOSITORY, repository.to_string().as_bytes())?;
            self.remove(txn, NUMBER, &prefix)?;
            self.remove(txn, CLASS, &prefix)?;
        }
        Ok(())
    }

    fn link_children(
        &self,
        txn: Change<'_, '_>,
        number: u32,
        digest: &Digest,
        manifest: &Manifest,
    ) -> Result<(), StoreError> {
        for child in &manifest.children {
            self.change_link(txn, number, &child.digest, |link| {
                link.size = Some(child.size);
                if manifest.kind == Kind::Index && link.media_type.is_none() && child.is_manifest() {
                    link.media_type = Some(child.media_type.clone());
                }
            })?;
        }
        if let Some(subject) = &manifest.subject {
            let key = [&subject.key()[..], &number.to_be_bytes(), &digest.key()].concat();
            self.put(txn, SUBJECT, &key, &())?;
        }
        Ok(())
    }

    fn change_tag(
        &self,
        txn: Change<'_, '_>,
        repository: &Repository,
        tag: &Tag,
        change: impl FnOnce(&mut TagRecord),
    ) -> Result<(), StoreError> {
        let number = self.number_or_new(txn, repository)?;
        let key = tag_key(number, tag.as_str());
        let mut record: TagRecord = self.fetch(txn, TAG, &key)?.unwrap_or_default();
        change(&mut record);
        self.put(txn, TAG, &key, &record)
    }

    fn change_link(
        &self,
        txn: Change<'_, '_>,
        number: u32,
        digest: &Digest,
        change: impl FnOnce(&mut ContentLink),
    ) -> Result<(), StoreError> {
        let key = link_key(number, digest);
        let before: ContentLink = self.fetch(txn, LINK, &key)?.unwrap_or_default();
        let mut after = before.clone();
        change(&mut after);
        if after == before { Ok(()) } else { self.put(txn, LINK, &key, &after) }
    }

    /// Events that lead from nothing to what the index holds.
    pub(super) fn snapshot(&self) -> Result<Vec<Event>, StoreError> {
        self.read(|index, txn| {
            let mut events = Vec::new();
            for repository in index.repositories_in(txn, None, usize::MAX)? {
                let Some(number) = index.number(txn, &repository)? else { continue };
                if let Some(class) = index.fetch(txn, CLASS, &number.to_be_bytes())? {
                    events.push(Event { n: 0, what: What::Class { repository: repository.clone(), class } });
                }
                index.each(txn, LINK, &number.to_be_bytes(), |key, link: ContentLink| {
                    let Some(digest) = Digest::from_key(&key[4..]) else { return };
                    let what = match link.media_type {
                        Some(media_type) if link.held => {
                            What::Manifest { repository: repository.clone(), digest, media_type }
                        }
                        None if link.held => What::Held { repository: repository.clone(), digest },
                        _ => return,
                    };
                    events.push(Event { n: link.n, what });
                })?;
                index.each(txn, TAG, &number.to_be_bytes(), |key, record: TagRecord| {
                    let Some(tag) = std::str::from_utf8(&key[4..]).ok().and_then(|t| t.parse::<Tag>().ok())
                    else {
                        return;
                    };
                    let repository = &repository;
                    let complete = record.history.into_iter().rev().chain(record.complete);
                    events.extend(complete.map(|version| Event {
                        n: version.n,
                        what: What::Complete {
                            repository: repository.clone(),
                            tag: tag.clone(),
                            unix: version.unix,
                            observed: version.observation(),
                        },
                    }));
                    let last = record.seen.as_ref().map_or(0, |seen| seen.n);
                    events.extend(record.seen.map(|version| Event {
                        n: version.n,
                        what: What::Seen {
                            repository: repository.clone(),
                            tag: tag.clone(),
                            unix: version.unix,
                            observed: version.observation(),
                        },
                    }));
                    if record.pinned {
                        let (repository, tag) = (repository.clone(), tag.clone());
                        events.push(Event { n: last, what: What::Pinned { repository, tag, pinned: true } });
                    }
                    if record.rollback.is_some() {
                        let what =
                            What::Rollback { repository: repository.clone(), tag, rollback: record.rollback };
                        events.push(Event { n: last, what });
                    }
                })?;
            }
            Ok(events)
        })
    }

    // -- Questions -------------------------------------------------------------------------------------------

    pub(super) fn tag(&self, repository: &Repository, tag: &Tag) -> Result<Option<TagRecord>, StoreError> {
        self.read(|index, txn| match index.number(txn, repository)? {
            Some(number) => index.fetch(txn, TAG, &tag_key(number, tag.as_str())),
            None => Ok(None),
        })
    }

    pub(super) fn tags(
        &self,
        repository: &Repository,
        last: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(Tag, TagRecord)>, StoreError> {
        self.read(|index, txn| {
            let Some(number) = index.number(txn, repository)? else { return Ok(Vec::new()) };
            let mut tags = Vec::new();
            index.scan(txn, TAG, &number.to_be_bytes(), last.map(str::as_bytes), |key, sealed| {
                if tags.len() == limit {
                    return Ok(false);
                }
                let record = unseal(TAG, key, sealed)?;
                if let Some(tag) = std::str::from_utf8(&key[4..]).ok().and_then(|t| t.parse().ok()) {
                    tags.push((tag, record));
                }
                Ok(true)
            })?;
            Ok(tags)
        })
    }

    pub(super) fn repositories(
        &self,
        last: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Repository>, StoreError> {
        self.read(|index, txn| index.repositories_in(txn, last, limit))
    }

    pub(super) fn link(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<ContentLink>, StoreError> {
        self.read(|index, txn| match index.number(txn, repository)? {
            Some(number) => index.fetch(txn, LINK, &link_key(number, digest)),
            None => Ok(None),
        })
    }

    pub(super) fn class(&self, repository: &Repository) -> Result<Option<AccessClass>, StoreError> {
        self.read(|index, txn| match index.number(txn, repository)? {
            Some(number) => index.fetch(txn, CLASS, &number.to_be_bytes()),
            None => Ok(None),
        })
    }

    /// The repositories that content is linked to, and how. Walks all links: for what happens seldom.
    pub(super) fn links_to(&self, digest: &Digest) -> Result<Vec<(Repository, ContentLink)>, StoreError> {
        self.read(|index, txn| {
            let wanted = digest.key();
            let mut found = Vec::new();
            index.scan(txn, LINK, b"", None, |key, sealed| {
                if let Some((number, rest)) = key.split_at_checked(4)
                    && rest == wanted
                    && let Some(repository) = index.fetch::<Repository>(txn, NUMBER, number)?
                {
                    found.push((repository, unseal(LINK, key, sealed)?));
                }
                Ok(true)
            })?;
            Ok(found)
        })
    }

    pub(super) fn manifests(&self, repository: &Repository) -> Result<Vec<LinkedManifest>, StoreError> {
        self.read(|index, txn| {
            let Some(number) = index.number(txn, repository)? else { return Ok(Vec::new()) };
            let mut manifests = Vec::new();
            index.each(txn, LINK, &number.to_be_bytes(), |key, link: ContentLink| {
                if let (true, Some(media_type), Some(digest)) =
                    (link.held, link.media_type, Digest::from_key(&key[4..]))
                {
                    manifests.push(LinkedManifest { digest, media_type, n: link.n });
                }
            })?;
            Ok(manifests)
        })
    }

    pub(super) fn referrers(
        &self,
        repository: &Repository,
        subject: &Digest,
    ) -> Result<Vec<Digest>, StoreError> {
        self.read(|index, txn| {
            let Some(number) = index.number(txn, repository)? else { return Ok(Vec::new()) };
            let prefix = [&subject.key()[..], &number.to_be_bytes()].concat();
            let mut found = Vec::new();
            index.each(txn, SUBJECT, &prefix, |key, ()| {
                found.extend(Digest::from_key(&key[prefix.len()..]))
            })?;
            Ok(found)
        })
    }

    pub(super) fn note(&self, name: &str) -> Result<Option<String>, StoreError> {
        self.read(|index, txn| index.fetch(txn, NOTE, name.as_bytes()))
    }

    pub(super) fn set_note(&self, name: &str, text: Option<&str>) -> Result<(), StoreError> {
        self.write(|index, txn| match text {
            Some(text) => index.put(txn, NOTE, name.as_bytes(), &text),
            None => index.remove(txn, NOTE, name.as_bytes()).map(drop),
        })
    }

    // -- Blobs -----------------------------------------------------------------------------------------------

    pub(super) fn remove_blobs(&self, digests: &[Digest]) -> Result<(), StoreError> {
        self.write(|index, txn| {
            let mut stored: Stored = index.require(txn, META, b"stored")?;
            for digest in digests {
                index.count_out(txn, digest, &mut stored)?;
                index.remove(txn, BLOB, &digest.key())?;
            }
            index.put(txn, META, b"stored", &stored)
        })
    }

    fn count_out(&self, txn: Change<'_, '_>, digest: &Digest, stored: &mut Stored) -> Result<(), StoreError> {
        if let Some(before) = self.fetch::<BlobRecord>(txn, BLOB, &digest.key())? {
            stored.blobs = stored.blobs.saturating_sub(1);
            stored.bytes = stored.bytes.saturating_sub(before.size);
        }
        Ok(())
    }

    /// Enters blobs found on the disk into a new index.
    pub(super) fn add_blobs(&self, blobs: impl Iterator<Item = BlobInfo>) -> Result<(), StoreError> {
        self.write(|index, txn| {
            let mut stored = Stored::default();
            for blob in blobs {
                stored.blobs += 1;
                stored.bytes += blob.size;
                index.put(txn, BLOB, &blob.digest.key(), &BlobRecord { size: blob.size, used: blob.used })?;
            }
            index.put(txn, META, b"stored", &stored)
        })
    }

    /// Notes uses, of new blobs too, and the count up to which they go.
    pub(super) fn touch(&self, uses: &[BlobInfo], sequence: u64) -> Result<(), StoreError> {
        self.write(|index, txn| {
            let mut stored: Stored = index.require(txn, META, b"stored")?;
            for blob in uses {
                index.count_out(txn, &blob.digest, &mut stored)?;
                stored.blobs += 1;
                stored.bytes += blob.size;
                let record = BlobRecord { size: blob.size, used: blob.used };
                index.put(txn, BLOB, &blob.digest.key(), &record)?;
            }
            index.put(txn, META, b"stored", &stored)?;
            let mark: Mark = index.require(txn, META, b"mark")?;
            index.put(txn, META, b"mark", &Mark { sequence: mark.sequence.max(sequence), ..mark })
        })
    }

    /// Reads every record, and compares all of them with the tally.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        self.read(|index, txn| {
            let mut tally = Tally::default();
            for entry in index.records.iter(txn).map_err(failed("read the index"))? {
                let (key, sealed) = entry.map_err(failed("read the index"))?;
                let Some((&table, rest)) = key.split_first() else {
                    return Err(StoreError::Damaged("a key is empty".into()));
                };
                is_sealed(table, rest, sealed)?;
                if (table, rest) != (META, TALLY) {
                    tally.add(sealed);
                }
            }
            let expected: Tally = index.require(txn, META, TALLY)?;
            if tally != expected {
                let (found, expected) = (tally.records, expected.records);
                return Err(StoreError::Damaged(format!(
                    "it has {found} records, not the {expected} written"
                )));
            }
            Ok(())
        })
    }

    // -- Records ---------------------------------------------------------------------------------------------

    fn number(
        &self,
        txn: &RoTxn<'_, WithoutTls>,
        repository: &Repository,
    ) -> Result<Option<u32>, StoreError> {
        self.fetch(txn, REPOSITORY, repository.to_string().as_bytes())
    }

    fn number_or_new(&self, txn: Change<'_, '_>, repository: &Repository) -> Result<u32, StoreError> {
        if let Some(number) = self.number(txn, repository)? {
            return Ok(number);
        }
        let last = self
            .records
            .get_lower_than(txn, &[NUMBER + 1])
            .map_err(failed("read the index"))?
            .and_then(|(key, _)| key.strip_prefix(&[NUMBER])?.try_into().ok())
            .map_or(0, u32::from_be_bytes);
        let number =
            last.checked_add(1).ok_or_else(|| StoreError::Damaged("no repository number is left".into()))?;
        self.put(txn, NUMBER, &number.to_be_bytes(), repository)?;
        self.put(txn, REPOSITORY, repository.to_string().as_bytes(), &number)?;
        Ok(number)
    }

    fn repositories_in(
        &self,
        txn: &RoTxn<'_, WithoutTls>,
        last: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Repository>, StoreError> {
        let mut names = Vec::new();
        self.scan(txn, REPOSITORY, b"", last.map(str::as_bytes), |key, _| {
            names.extend(std::str::from_utf8(key).ok().and_then(|name| name.parse().ok()));
            Ok(names.len() < limit)
        })?;
        names.truncate(limit);
        Ok(names)
    }

    /// Opens every record of a table whose key begins with `prefix`.
    fn each<T: DeserializeOwned>(
        &self,
        txn: &RoTxn<'_, WithoutTls>,
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
    fn scan(
        &self,
        txn: &RoTxn<'_, WithoutTls>,
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

    fn require<T: DeserializeOwned>(
        &self,
        txn: &RoTxn<'_, WithoutTls>,
        table: u8,
        key: &[u8],
    ) -> Result<T, StoreError> {
        self.fetch(txn, table, key)?.ok_or_else(|| {
            StoreError::Damaged(format!("record {:?} is missing", String::from_utf8_lossy(key)))
        })
    }

    fn fetch<T: DeserializeOwned>(
        &self,
        txn: &RoTxn<'_, WithoutTls>,
        table: u8,
        key: &[u8],
    ) -> Result<Option<T>, StoreError> {
        let found = self.records.get(txn, &[&[table], key].concat()).map_err(failed("read the index"))?;
        found.map(|sealed| unseal(table, key, sealed)).transpose()
    }

    fn put<T: Serialize>(
        &self,
        txn: Change<'_, '_>,
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
    fn count(&self, txn: &RwTxn<'_>, name: &[u8], after: Option<&[u8]>) -> Result<(), StoreError> {
        let before = self.records.get(txn, name).map_err(failed("read the index"))?;
        let mut tally = self.tally.lock();
        before.into_iter().for_each(|sealed| tally.take(sealed));
        after.into_iter().for_each(|sealed| tally.add(sealed));
        Ok(())
    }

    fn remove(&self, txn: Change<'_, '_>, table: u8, key: &[u8]) -> Result<bool, StoreError> {
        let name = [&[table], key].concat();
        self.count(txn, &name, None)?;
        self.records.delete(txn, &name).map_err(failed("write the index"))
    }

    fn read<T>(
        &self,
        work: impl FnOnce(&Index, &RoTxn<'_, WithoutTls>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let txn = self.env.read_txn().map_err(failed("read the index"))?;
        work(self, &txn)
    }

    fn write(
        &self,
        work: impl FnOnce(&Index, Change<'_, '_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut txn = self.env.write_txn().map_err(failed("write the index"))?;
        let tally = self.fetch(&txn, META, TALLY)?.unwrap_or_default();
        *self.tally.lock() = tally;
        work(self, &mut txn)?;
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

/// Has the blocks of LMDB's lock file allocated before it is mapped: a full disk must be an error, and not the end of the
/// process that writes to the map. Where the file system cannot do that nothing is lost.
fn reserve_lock(folder: &Path) -> Result<(), StoreError> {
    let path = folder.join("lock.mdb");
    let reserved =
        std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).and_then(
            |file| match rustix::fs::fallocate(
                &file,
                rustix::fs::FallocateFlags::empty(),
                0,
                budget::INDEX_LOCK_BYTES,
            ) {
                Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
                other => other.map_err(Into::into),
            },
        );
    reserved.map_err(StoreError::io(format!("cannot reserve {}", path.display())))
}

/// Refuses a file that is shorter than its own header says: to read beyond its end would kill the process.
fn check_length(env: &Env<WithoutTls>) -> Result<(), StoreError> {
    let page = u64::from(env.unnamed_database_stat().page_size);
    let needed = (env.info().last_page_number as u64 + 1).saturating_mul(page);
    let length = env.real_disk_size().map_err(failed("look at the index"))?;
    // A new environment has written its two header pages and nothing else.
    if length < needed {
        return Err(StoreError::Damaged(format!("the file has {length} bytes of at least {needed}")));
    }
    Ok(())
}

fn tag_key(number: u32, tag: &str) -> Vec<u8> {
    [&number.to_be_bytes()[..], tag.as_bytes()].concat()
}

fn link_key(number: u32, digest: &Digest) -> Vec<u8> {
    [&number.to_be_bytes()[..], &digest.key()].concat()
}

/// Sorts heed's errors into damage and refusals of the operating system.
fn failed(what: &'static str) -> impl Fn(heed::Error) -> StoreError {
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
