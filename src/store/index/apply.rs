//! How events and uses change the index, each batch in one transaction.

use super::super::error::StoreError;
use super::super::journal::{Event, Position, What};
use super::super::record::{BlobInfo, ContentLink, TagRecord};
use super::table::{
    BLOB, CLASS, LINK, META, NOTE, NUMBER, REPOSITORY, SUBJECT, TAG, Writing, failed, link_key, tag_key,
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
    ) -> Result<(), StoreError> {
        self.write(|txn| {
            let mut mark: Mark = self.require(txn, META, b"mark")?;
            for (event, manifest) in events {
                self.apply_one(txn, event, manifest.as_ref(), history_max)?;
                mark.sequence = mark.sequence.max(event.n);
            }
            (mark.generation, mark.offset) = (position.generation, position.offset);
            self.put(txn, META, b"mark", &mark)
        })
    }

    fn apply_one(
        &self,
        txn: Writing<'_, '_>,
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
        txn: Writing<'_, '_>,
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
        txn: Writing<'_, '_>,
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
        txn: Writing<'_, '_>,
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
        txn: Writing<'_, '_>,
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

    pub(in crate::store) fn set_note(&self, name: &str, text: Option<&str>) -> Result<(), StoreError> {
        self.write(|txn| match text {
            Some(text) => self.put(txn, NOTE, name.as_bytes(), &text),
            None => self.remove(txn, NOTE, name.as_bytes()).map(drop),
        })
    }

    pub(in crate::store) fn remove_blobs(&self, digests: &[Digest]) -> Result<(), StoreError> {
        self.write(|txn| {
            let mut stored: Stored = self.require(txn, META, b"stored")?;
            for digest in digests {
                self.count_out(txn, digest, &mut stored)?;
                self.remove(txn, BLOB, &digest.key())?;
            }
            self.put(txn, META, b"stored", &stored)
        })
    }

    fn count_out(
        &self,
        txn: Writing<'_, '_>,
        digest: &Digest,
        stored: &mut Stored,
    ) -> Result<(), StoreError> {
        if let Some(before) = self.fetch::<BlobRecord>(txn, BLOB, &digest.key())? {
            stored.blobs = stored.blobs.saturating_sub(1);
            stored.bytes = stored.bytes.saturating_sub(before.size);
        }
        Ok(())
    }

    /// Enters blobs found on the disk into a new self.
    pub(in crate::store) fn add_blobs(
        &self,
        blobs: impl Iterator<Item = BlobInfo>,
    ) -> Result<(), StoreError> {
        self.write(|txn| {
            let mut stored = Stored::default();
            for blob in blobs {
                stored.blobs += 1;
                stored.bytes += blob.size;
                self.put(txn, BLOB, &blob.digest.key(), &BlobRecord { size: blob.size, used: blob.used })?;
            }
            self.put(txn, META, b"stored", &stored)
        })
    }

    /// Notes uses, of new blobs too, and the count up to which they go.
    pub(in crate::store) fn touch(&self, uses: &[BlobInfo], sequence: u64) -> Result<(), StoreError> {
        self.write(|txn| {
            let mut stored: Stored = self.require(txn, META, b"stored")?;
            for blob in uses {
                self.count_out(txn, &blob.digest, &mut stored)?;
                stored.blobs += 1;
                stored.bytes += blob.size;
                let record = BlobRecord { size: blob.size, used: blob.used };
                self.put(txn, BLOB, &blob.digest.key(), &record)?;
            }
            self.put(txn, META, b"stored", &stored)?;
            let mark: Mark = self.require(txn, META, b"mark")?;
            self.put(txn, META, b"mark", &Mark { sequence: mark.sequence.max(sequence), ..mark })
        })
    }

    fn number_or_new(&self, txn: Writing<'_, '_>, repository: &Repository) -> Result<u32, StoreError> {
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
}
