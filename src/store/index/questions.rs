//! What the index is asked, each question in one transaction.

use super::super::census::{Census, LeastRepository};
use super::super::error::Result;
use super::super::journal::{Event, What};
use super::super::record::{ContentLink, LinkedManifest, TagRecord, TagVersion, unseal};
use super::Index;
use super::table::{CLASS, IndexReader, LINK, NOTE, NUMBER, REPOSITORY, SUBJECT, TAG, link_key, tag_key};
use crate::auth::AccessClass;
use crate::oci::{Digest, Repository, Tag};

impl Index {
    /// Asks about a repository; the default where nothing is known of it.
    fn of<T: Default>(
        &self,
        repository: &Repository,
        work: impl FnOnce(IndexReader<'_, '_>, u32) -> Result<T>,
    ) -> Result<T> {
        self.read(|txn| match txn.number(repository)? {
            Some(number) => work(txn, number),
            None => Ok(T::default()),
        })
    }

    pub(in crate::store) fn knows(&self, repository: &Repository) -> Result<bool> {
        self.of(repository, |_, _| Ok(true))
    }

    /// Counts what is known of the registry of a repository.
    pub(in crate::store) fn census(&self, repository: &Repository) -> Result<Census> {
        self.read(|txn| {
            let (mut census, own) = (Census::default(), txn.number(repository)?);
            let prefix = format!("{}/", repository.registry);
            txn.scan(REPOSITORY, prefix.as_bytes(), None, |key, sealed| {
                let (number, mut tags): (u32, _) = (unseal(REPOSITORY, key, sealed)?, 0);
                txn.scan(TAG, &number.to_be_bytes(), None, |_, _| {
                    tags += 1;
                    Ok(true)
                })?;
                census.repositories += 1;
                census.tags += tags;
                if own == Some(number) {
                    census.own_tags = tags;
                }
                Ok(true)
            })?;
            Ok(census)
        })
    }

    /// The repository of the same registry that is forgotten first: of it nothing is complete or pinned.
    pub(in crate::store) fn least(&self, repository: &Repository) -> Result<Option<LeastRepository>> {
        self.read(|txn| {
            let (mut least, prefix): (Option<LeastRepository>, _) =
                (None, format!("{}/", repository.registry));
            txn.scan(REPOSITORY, prefix.as_bytes(), None, |name, sealed| {
                let number: u32 = unseal(REPOSITORY, name, sealed)?;
                let name = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok());
                let Some(repository) = name else { return Ok(true) };
                let mut found = LeastRepository { repository, n: 0, tags: Vec::new(), links: Vec::new() };
                let mut stays = false;
                txn.each(TAG, &number.to_be_bytes(), |key, record: TagRecord| {
                    stays |= record.pinned || record.complete.is_some() || record.rollback.is_some();
                    found.n = record.versions().map(|version| version.n).fold(found.n, u64::max);
                    found.tags.extend(std::str::from_utf8(&key[4..]).ok().and_then(|tag| tag.parse().ok()));
                })?;
                if stays {
                    return Ok(true);
                }
                txn.each(LINK, &number.to_be_bytes(), |key, link: ContentLink| {
                    found.n = found.n.max(link.n);
                    found.links.extend(Digest::from_key(&key[4..]));
                })?;
                if least.as_ref().is_none_or(|least| found.n < least.n) {
                    least = Some(found);
                }
                Ok(true)
            })?;
            Ok(least)
        })
    }

    pub(in crate::store) fn tag(&self, repository: &Repository, tag: &Tag) -> Result<Option<TagRecord>> {
        self.of(repository, |txn, number| txn.fetch(TAG, &tag_key(number, tag.as_str())))
    }

    pub(in crate::store) fn tags(
        &self,
        repository: &Repository,
        last: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(Tag, TagRecord)>> {
        self.of(repository, |txn, number| {
            let mut tags = Vec::new();
            txn.scan(TAG, &number.to_be_bytes(), last.map(str::as_bytes), |key, sealed| {
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

    pub(in crate::store) fn repositories(&self, last: Option<&str>, limit: usize) -> Result<Vec<Repository>> {
        self.read(|txn| repositories_in(txn, last, limit))
    }

    pub(in crate::store) fn link(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<ContentLink>> {
        self.of(repository, |txn, number| txn.fetch(LINK, &link_key(number, digest)))
    }

    pub(in crate::store) fn class(&self, repository: &Repository) -> Result<Option<AccessClass>> {
        self.of(repository, |txn, number| txn.fetch(CLASS, &number.to_be_bytes()))
    }

    /// The class of a repository and its link to some content, in one read.
    pub(in crate::store) fn class_and_link(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<(Option<AccessClass>, Option<ContentLink>)> {
        self.of(repository, |txn, number| {
            let class = txn.fetch(CLASS, &number.to_be_bytes())?;
            Ok((class, txn.fetch(LINK, &link_key(number, digest))?))
        })
    }

    /// The repositories that content is linked to, and how. Walks all links: for what happens seldom.
    pub(in crate::store) fn links_to(&self, digest: &Digest) -> Result<Vec<(Repository, ContentLink)>> {
        self.read(|txn| {
            let wanted = digest.key();
            let mut found = Vec::new();
            txn.scan(LINK, b"", None, |key, sealed| {
                if let Some((number, rest)) = key.split_at_checked(4)
                    && rest == wanted
                    && let Some(repository) = txn.fetch::<Repository>(NUMBER, number)?
                {
                    found.push((repository, unseal(LINK, key, sealed)?));
                }
                Ok(true)
            })?;
            Ok(found)
        })
    }

    pub(in crate::store) fn manifests(&self, repository: &Repository) -> Result<Vec<LinkedManifest>> {
        self.of(repository, |txn, number| {
            let mut manifests = Vec::new();
            txn.each(LINK, &number.to_be_bytes(), |key, link: ContentLink| {
                if link.held
                    && link.is_own()
                    && let (Some(media_type), Some(digest)) = (link.media_type, Digest::from_key(&key[4..]))
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
    ) -> Result<Vec<Digest>> {
        self.of(repository, |txn, number| {
            let prefix = [&subject.key()[..], &number.to_be_bytes()].concat();
            let mut found = Vec::new();
            txn.each(SUBJECT, &prefix, |key, ()| found.extend(Digest::from_key(&key[prefix.len()..])))?;
            Ok(found)
        })
    }

    pub(in crate::store) fn note(&self, name: &str) -> Result<Option<String>> {
        self.read(|txn| txn.fetch(NOTE, name.as_bytes()))
    }

    /// Events that lead from nothing to what the index holds.
    pub(in crate::store) fn snapshot(&self) -> Result<Vec<Event>> {
        self.read(|txn| {
            let mut events = Vec::new();
            for repository in repositories_in(txn, None, usize::MAX)? {
                let Some(number) = txn.number(&repository)? else { continue };
                let prefix = number.to_be_bytes();
                if let Some(class) = txn.fetch(CLASS, &prefix)? {
                    events.push(Event { n: 0, what: What::Class { repository: repository.clone(), class } });
                }
                txn.each(LINK, &prefix, |key, link| {
                    let digest = Digest::from_key(&key[4..]);
                    events.extend(digest.and_then(|digest| link_event(&repository, digest, link)));
                })?;
                txn.each(TAG, &prefix, |key, record| {
                    let tag = std::str::from_utf8(&key[4..]).ok().and_then(|text| text.parse().ok());
                    events.extend(tag.map(|tag| tag_events(&repository, &tag, record)).unwrap_or_default());
                })?;
            }
            Ok(events)
        })
    }
}

fn repositories_in(txn: IndexReader<'_, '_>, last: Option<&str>, limit: usize) -> Result<Vec<Repository>> {
    let mut names = Vec::new();
    txn.scan(REPOSITORY, b"", last.map(str::as_bytes), |key, _| {
        names.extend(std::str::from_utf8(key).ok().and_then(|name| name.parse().ok()));
        Ok(names.len() < limit)
    })?;
    names.truncate(limit);
    Ok(names)
}

/// The event by which a repository came to hold content.
fn link_event(repository: &Repository, digest: Digest, link: ContentLink) -> Option<Event> {
    let repository = repository.clone();
    let what = match link.media_type {
        _ if !link.held => return None,
        Some(media_type) if link.n > 0 => What::Manifest { repository, digest, media_type },
        _ => What::Held { repository, digest },
    };
    Some(Event { n: link.n, what })
}

/// The events that lead to what is known of a tag.
fn tag_events(repository: &Repository, tag: &Tag, record: TagRecord) -> Vec<Event> {
    let name = || (repository.clone(), tag.clone());
    let of = |version: TagVersion| (version.n, TagVersion { n: 0, ..version });
    let mut events = Vec::new();
    for version in record.history.into_iter().rev().chain(record.complete) {
        let ((repository, tag), (n, version)) = (name(), of(version));
        events.push(Event { n, what: What::Complete { repository, tag, version } });
    }
    let last = record.seen.as_ref().map_or(0, |seen| seen.n);
    if let Some(seen) = record.seen {
        let ((repository, tag), (n, version)) = (name(), of(seen));
        events.push(Event { n, what: What::Seen { repository, tag, version } });
    }
    let (repository, tag) = name();
    if record.pinned {
        events.push(Event { n: last, what: What::Pinned { repository, tag, pinned: true } });
    }
    if let Some(rollback) = record.rollback {
        let (repository, tag) = name();
        events.push(Event { n: last, what: What::Rollback { repository, tag, rollback: Some(rollback) } });
    }
    events
}
