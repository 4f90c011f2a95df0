//! How events and uses change the index, each batch in one transaction.

use super::super::error::{Result, StoreError};
use super::super::journal::{Event, Position, What};
use super::super::record::{BlobInfo, ContentLink, TagRecord, TagVersion};
use super::table::{
    BLOB, CLASS, IndexWriter, LINK, META, NOTE, NUMBER, REPOSITORY, SUBJECT, TAG, failed, link_key, tag_key,
};
use super::{BlobRecord, Index, Mark, Stored};
use crate::oci::{Digest, Kind, Manifest, Repository, Tag};

impl Index {
    /// Applies events and moves the mark, all or nothing. Each comes with its manifest if it has one at hand.
    pub(in crate::store) fn apply(
        &self,
        events: &[(Event, Option<Manifest>)],
        position: Position,
        history_max: usize,
    ) -> Result<()> {
        self.write(|txn| {
            let mut mark: Mark = txn.reader().require(META, b"mark")?;
            for (event, manifest) in events {
                txn.apply_one(event, manifest.as_ref(), history_max)?;
                mark.sequence = mark.sequence.max(event.n);
            }
            (mark.generation, mark.offset) = (position.generation, position.offset);
            txn.put(META, b"mark", &mark)
        })
    }

    pub(in crate::store) fn set_note(&self, name: &str, text: Option<&str>) -> Result<()> {
        self.write(|txn| match text {
            Some(text) => txn.put(NOTE, name.as_bytes(), &text),
            None => txn.remove(NOTE, name.as_bytes()),
        })
    }

    pub(in crate::store) fn remove_blobs(&self, digests: &[Digest]) -> Result<()> {
        self.write(|txn| {
            let mut stored: Stored = txn.reader().require(META, b"stored")?;
            for digest in digests {
                txn.count_out(digest, &mut stored)?;
                txn.remove(BLOB, &digest.key())?;
            }
            txn.put(META, b"stored", &stored)
        })
    }

    /// Enters blobs found on the disk into a new index.
    pub(in crate::store) fn add_blobs(&self, blobs: impl Iterator<Item = BlobInfo>) -> Result<()> {
        self.write(|txn| {
            let mut stored = Stored::default();
            for blob in blobs {
                stored.count_in(blob.size);
                txn.put(BLOB, &blob.digest.key(), &BlobRecord { size: blob.size, used: blob.used })?;
            }
            txn.put(META, b"stored", &stored)
        })
    }

    /// Notes uses, of new blobs too, and the count up to which they go.
    pub(in crate::store) fn touch(&self, uses: &[BlobInfo], sequence: u64) -> Result<()> {
        self.write(|txn| {
            let mut stored: Stored = txn.reader().require(META, b"stored")?;
            for blob in uses {
                txn.count_out(&blob.digest, &mut stored)?;
                stored.count_in(blob.size);
                let record = BlobRecord { size: blob.size, used: blob.used };
                txn.put(BLOB, &blob.digest.key(), &record)?;
            }
            txn.put(META, b"stored", &stored)?;
            let mark: Mark = txn.reader().require(META, b"mark")?;
            txn.put(META, b"mark", &Mark { sequence: mark.sequence.max(sequence), ..mark })
        })
    }
}

impl Stored {
    /// What is added to comes from the disk.
    fn count_in(&mut self, size: u64) {
        self.blobs = self.blobs.saturating_add(1);
        self.bytes = self.bytes.saturating_add(size);
    }
}

impl IndexWriter<'_> {
    fn apply_one(&mut self, event: &Event, manifest: Option<&Manifest>, history_max: usize) -> Result<()> {
        let n = event.n;
        match &event.what {
            What::Seen { repository, tag, version } => {
                let version = TagVersion { n, ..version.clone() };
                self.change_tag(repository, tag, |record| record.see(version))
            }
            What::Complete { repository, tag, version } => {
                let version = TagVersion { n, ..version.clone() };
                self.change_tag(repository, tag, |record| record.completed(version, history_max))
            }
            What::Rollback { repository, tag, rollback } => {
                self.change_tag(repository, tag, |record| record.rollback.clone_from(rollback))
            }
            What::Pinned { repository, tag, pinned } => {
                self.change_tag(repository, tag, |record| record.pinned = *pinned)
            }
            What::Removed { repository, tag } => match self.reader().number(repository)? {
                Some(number) => self.remove(TAG, &tag_key(number, tag.as_str())),
                None => Ok(()),
            },
            What::Evicted { repository, digest, links } => self.forget_image(repository, digest, links, n),
            What::Held { repository, digest } => {
                let number = self.number_or_new(repository)?;
                self.change_link(number, digest, |link| link.held = true)
            }
            What::Class { repository, class } => {
                let number = self.number_or_new(repository)?;
                self.put(CLASS, &number.to_be_bytes(), class)
            }
            What::Manifest { repository, digest, media_type } => {
                let number = self.number_or_new(repository)?;
                self.change_link(number, digest, |link| {
                    link.held = true;
                    link.n = n;
                    link.media_type = Some(media_type.clone());
                })?;
                match manifest {
                    Some(manifest) => self.link_children(number, digest, manifest),
                    None => Ok(()),
                }
            }
        }
    }

    /// Forgets the versions of tags that are this image, what it alone was linked to, and a repository of which nothing
    /// is left. What was noted after count `n` is of a later download and stays.
    fn forget_image(
        &mut self,
        repository: &Repository,
        root: &Digest,
        links: &[Digest],
        n: u64,
    ) -> Result<()> {
        let Some(number) = self.reader().number(repository)? else { return Ok(()) };
        let prefix = number.to_be_bytes();
        let mut tags = Vec::new();
        self.reader().each(TAG, &prefix, |key, record: TagRecord| tags.push((key.to_vec(), record)))?;
        for (key, mut record) in tags {
            if !record.forget(root, n) {
                continue;
            }
            if record.is_empty() {
                self.remove(TAG, &key)?;
            } else {
                self.put(TAG, &key, &record)?;
            }
        }
        for digest in links {
            let key = link_key(number, digest);
            if self.reader().fetch::<ContentLink>(LINK, &key)?.is_some_and(|link| link.n <= n) {
                self.remove(LINK, &key)?;
            }
        }
        let mut subjects = Vec::new();
        self.reader().each(SUBJECT, &[], |key, ()| {
            let of = key.len().checked_sub(root.key().len() + prefix.len());
            if of.is_some_and(|at| key[at..] == [&prefix[..], &root.key()].concat()) {
                subjects.push(key.to_vec());
            }
        })?;
        for key in subjects {
            self.remove(SUBJECT, &key)?;
        }
        let mut left = false;
        self.reader().each(TAG, &prefix, |_, _: TagRecord| left = true)?;
        self.reader().each(LINK, &prefix, |_, _: ContentLink| left = true)?;
        if !left {
            self.remove(REPOSITORY, repository.to_string().as_bytes())?;
            self.remove(NUMBER, &prefix)?;
            self.remove(CLASS, &prefix)?;
        }
        Ok(())
    }

    fn link_children(&mut self, number: u32, digest: &Digest, manifest: &Manifest) -> Result<()> {
        for child in &manifest.children {
            self.change_link(number, &child.digest, |link| {
                link.size = Some(child.size);
                if manifest.kind == Kind::Index && link.media_type.is_none() {
                    link.media_type = child.manifest_type.map(str::to_owned);
                }
            })?;
        }
        if let Some(subject) = &manifest.subject {
            let key = [&subject.key()[..], &number.to_be_bytes(), &digest.key()].concat();
            self.put(SUBJECT, &key, &())?;
        }
        Ok(())
    }

    fn change_tag(
        &mut self,
        repository: &Repository,
        tag: &Tag,
        change: impl FnOnce(&mut TagRecord),
    ) -> Result<()> {
        let number = self.number_or_new(repository)?;
        let key = tag_key(number, tag.as_str());
        let mut record: TagRecord = self.reader().fetch(TAG, &key)?.unwrap_or_default();
        change(&mut record);
        self.put(TAG, &key, &record)
    }

    fn change_link(
        &mut self,
        number: u32,
        digest: &Digest,
        change: impl FnOnce(&mut ContentLink),
    ) -> Result<()> {
        let key = link_key(number, digest);
        let before: ContentLink = self.reader().fetch(LINK, &key)?.unwrap_or_default();
        let mut after = before.clone();
        change(&mut after);
        if after == before { Ok(()) } else { self.put(LINK, &key, &after) }
    }

    fn count_out(&mut self, digest: &Digest, stored: &mut Stored) -> Result<()> {
        if let Some(before) = self.reader().fetch::<BlobRecord>(BLOB, &digest.key())? {
            stored.blobs = stored.blobs.saturating_sub(1);
            stored.bytes = stored.bytes.saturating_sub(before.size);
        }
        Ok(())
    }

    fn number_or_new(&mut self, repository: &Repository) -> Result<u32> {
        if let Some(number) = self.reader().number(repository)? {
            return Ok(number);
        }
        let last = self.records.get_lower_than(&self.txn, &[NUMBER + 1]).map_err(failed("read the index"))?;
        let last = last.and_then(|(key, _)| key.strip_prefix(&[NUMBER])?.try_into().ok());
        let next = last.map_or(0, u32::from_be_bytes).checked_add(1);
        let number = next.ok_or_else(|| StoreError::Damaged("no repository number is left".into()))?;
        self.put(NUMBER, &number.to_be_bytes(), repository)?;
        self.put(REPOSITORY, repository.to_string().as_bytes(), &number)?;
        Ok(number)
    }
}
