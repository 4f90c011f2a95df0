//! What the index is asked, each question in one transaction.

use super::super::error::StoreError;
use super::super::journal::{Event, What};
use super::super::record::{ContentLink, LinkedManifest, TagRecord, unseal};
use super::Index;
use super::table::{CLASS, LINK, NOTE, NUMBER, REPOSITORY, Reading, SUBJECT, TAG, link_key, tag_key};
use crate::auth::AccessClass;
use crate::oci::{Digest, Repository, Tag};

impl Index {
    /// Asks about a repository; the default where nothing is known of it.
    fn of<T: Default>(
        &self,
        repository: &Repository,
        work: impl FnOnce(&Reading<'_>, u32) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.read(|txn| match self.number(txn, repository)? {
            Some(number) => work(txn, number),
            None => Ok(T::default()),
        })
    }

    pub(in crate::store) fn tag(
        &self,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<Option<TagRecord>, StoreError> {
        self.of(repository, |txn, number| self.fetch(txn, TAG, &tag_key(number, tag.as_str())))
    }

    pub(in crate::store) fn tags(
        &self,
        repository: &Repository,
        last: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(Tag, TagRecord)>, StoreError> {
        self.of(repository, |txn, number| {
            let mut tags = Vec::new();
            self.scan(txn, TAG, &number.to_be_bytes(), last.map(str::as_bytes), |key, sealed| {
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

    pub(in crate::store) fn repositories(
        &self,
        last: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Repository>, StoreError> {
        self.read(|txn| self.repositories_in(txn, last, limit))
    }

    pub(in crate::store) fn link(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<ContentLink>, StoreError> {
        self.of(repository, |txn, number| self.fetch(txn, LINK, &link_key(number, digest)))
    }

    pub(in crate::store) fn class(&self, repository: &Repository) -> Result<Option<AccessClass>, StoreError> {
        self.of(repository, |txn, number| self.fetch(txn, CLASS, &number.to_be_bytes()))
    }

    /// The class of a repository and its link to some content, in one read.
    pub(in crate::store) fn class_and_link(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<(Option<AccessClass>, Option<ContentLink>), StoreError> {
        self.of(repository, |txn, number| {
            let class = self.fetch(txn, CLASS, &number.to_be_bytes())?;
            Ok((class, self.fetch(txn, LINK, &link_key(number, digest))?))
        })
    }

    /// The repositories that content is linked to, and how. Walks all links: for what happens seldom.
    pub(in crate::store) fn links_to(
        &self,
        digest: &Digest,
    ) -> Result<Vec<(Repository, ContentLink)>, StoreError> {
        self.read(|txn| {
            let wanted = digest.key();
            let mut found = Vec::new();
            self.scan(txn, LINK, b"", None, |key, sealed| {
                if let Some((number, rest)) = key.split_at_checked(4)
                    && rest == wanted
                    && let Some(repository) = self.fetch::<Repository>(txn, NUMBER, number)?
                {
                    found.push((repository, unseal(LINK, key, sealed)?));
                }
                Ok(true)
            })?;
            Ok(found)
        })
    }

    pub(in crate::store) fn manifests(
        &self,
        repository: &Repository,
    ) -> Result<Vec<LinkedManifest>, StoreError> {
        self.of(repository, |txn, number| {
            let mut manifests = Vec::new();
            self.each(txn, LINK, &number.to_be_bytes(), |key, link: ContentLink| {
                if let (true, Some(media_type), Some(digest)) =
                    (link.held, link.media_type, Digest::from_key(&key[4..]))
                {
                    manifests.push(LinkedManifest { digest, media_type, n: link.n });
                }
            })?;
            Ok(manifests)
        })
    }

    pub(in crate::store) fn referrers(
        &self,
        repository: &Repository,
        subject: &Digest,
    ) -> Result<Vec<Digest>, StoreError> {
        self.of(repository, |txn, number| {
            let prefix = [&subject.key()[..], &number.to_be_bytes()].concat();
            let mut found = Vec::new();
            self.each(txn, SUBJECT, &prefix, |key, ()| found.extend(Digest::from_key(&key[prefix.len()..])))?;
            Ok(found)
        })
    }

    pub(in crate::store) fn note(&self, name: &str) -> Result<Option<String>, StoreError> {
        self.read(|txn| self.fetch(txn, NOTE, name.as_bytes()))
    }

    /// Events that lead from nothing to what the index holds.
    pub(in crate::store) fn snapshot(&self) -> Result<Vec<Event>, StoreError> {
        self.read(|txn| {
            let mut events = Vec::new();
            for repository in self.repositories_in(txn, None, usize::MAX)? {
                let Some(number) = self.number(txn, &repository)? else { continue };
                let prefix = number.to_be_bytes();
                if let Some(class) = self.fetch(txn, CLASS, &prefix)? {
                    events.push(Event { n: 0, what: What::Class { repository: repository.clone(), class } });
                }
                self.each(txn, LINK, &prefix, |key, link| {
                    let digest = Digest::from_key(&key[4..]);
                    events.extend(digest.and_then(|digest| link_event(&repository, digest, link)));
                })?;
                self.each(txn, TAG, &prefix, |key, record| {
                    let tag = std::str::from_utf8(&key[4..]).ok().and_then(|text| text.parse().ok());
                    events.extend(tag.into_iter().flat_map(|tag| tag_events(&repository, &tag, &record)));
                })?;
            }
            Ok(events)
        })
    }

    pub(super) fn number(
        &self,
        txn: &Reading<'_>,
        repository: &Repository,
    ) -> Result<Option<u32>, StoreError> {
        self.fetch(txn, REPOSITORY, repository.to_string().as_bytes())
    }

    pub(super) fn repositories_in(
        &self,
        txn: &Reading<'_>,
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
}

/// The event by which a repository came to hold content.
fn link_event(repository: &Repository, digest: Digest, link: ContentLink) -> Option<Event> {
    let repository = repository.clone();
    let what = match link.media_type {
        _ if !link.held => return None,
        Some(media_type) => What::Manifest { repository, digest, media_type },
        None => What::Held { repository, digest },
    };
    Some(Event { n: link.n, what })
}

/// The events that lead to what is known of a tag.
fn tag_events(repository: &Repository, tag: &Tag, record: &TagRecord) -> Vec<Event> {
    let name = || (repository.clone(), tag.clone());
    let mut events = Vec::new();
    for version in record.history.iter().rev().chain(&record.complete) {
        let ((repository, tag), observed) = (name(), version.clone().observation());
        let what = What::Complete { repository, tag, unix: version.unix, observed };
        events.push(Event { n: version.n, what });
    }
    let last = record.seen.as_ref().map_or(0, |seen| seen.n);
    if let Some(seen) = &record.seen {
        let ((repository, tag), observed) = (name(), seen.clone().observation());
        events.push(Event { n: last, what: What::Seen { repository, tag, unix: seen.unix, observed } });
    }
    if record.pinned {
        let (repository, tag) = name();
        events.push(Event { n: last, what: What::Pinned { repository, tag, pinned: true } });
    }
    if record.rollback.is_some() {
        let (repository, tag) = name();
        let what = What::Rollback { repository, tag, rollback: record.rollback.clone() };
        events.push(Event { n: last, what });
    }
    events
}
