//! Tags, manifests, links and the class of repositories: what is written to the journal first and to the index second.
//!
//! An event has happened once the journal is flushed. An index that fails after that is damaged or stuck, and learns of
//! the event when it is reopened or rebuilt.

use super::Store;
use super::blobs::Blob;
use super::error::{Result, StoreError};
use super::journal::{Event, LINKS_AT_A_TIME, What};
use super::record::{ContentLink, LinkedManifest, Observation, Rollback, TagRecord, TagVersion};
use crate::auth::AccessClass;
use crate::budget;
use crate::clock;
use crate::documents::DocumentTurn;
use crate::oci::{Digest, Manifest, Repository, Tag};

impl Store {
    /// What is known of a tag, in one read.
    ///
    /// # Errors
    /// There is no index to answer from.
    pub fn tag(&self, repository: &Repository, tag: &Tag) -> Result<Option<TagRecord>> {
        self.index.ask(|index| index.tag(repository, tag))
    }

    /// Notes what upstream reported for the tag, and says what is known of the tag then. Does nothing if that is what it
    /// reported last, and if no peer has reported anything since: then the journal is not waited for.
    ///
    /// # Errors
    /// It cannot be recorded.
    pub fn tag_seen(&self, repository: &Repository, tag: &Tag, observed: &Observation) -> Result<TagRecord> {
        let is_news = |record: &TagRecord| {
            let same = |seen: &TagVersion| seen.digest == observed.digest && seen.source == observed.source;
            record.has_later_offer() || !record.seen.as_ref().is_some_and(same)
        };
        let record = self.tag(repository, tag)?.unwrap_or_default();
        if !is_news(&record) {
            return Ok(record);
        }
        self.record(None, || {
            // Several may have found it out at once.
            if !is_news(&self.tag(repository, tag)?.unwrap_or_default()) {
                return Ok(Vec::new());
            }
            let version = observed.version(clock::trusted_unix());
            Ok(vec![What::Seen { repository: repository.clone(), tag: tag.clone(), version }])
        })?;
        Ok(self.tag(repository, tag)?.unwrap_or_default())
    }

    /// Moves the tag's *complete* pointer to `digest`, whose closure the caller has found complete. `false`: it was there.
    ///
    /// # Errors
    /// It cannot be recorded.
    pub fn tag_complete(&self, repository: &Repository, tag: &Tag, digest: &Digest) -> Result<bool> {
        self.tags_complete(repository, std::slice::from_ref(tag), digest)
    }

    /// The same for several tags of a repository, with one flush.
    ///
    /// # Errors
    /// It cannot be recorded.
    pub fn tags_complete(&self, repository: &Repository, tags: &[Tag], digest: &Digest) -> Result<bool> {
        self.record(None, || {
            let mut news = Vec::new();
            for tag in tags {
                let record = self.tag(repository, tag)?.unwrap_or_default();
                if record.complete.is_some_and(|known| known.digest == *digest && !known.is_from_peer()) {
                    continue;
                }
                // It is the version that was seen, and comes from where that came from.
                let seen = record.seen.filter(|seen| seen.digest == *digest);
                let version = seen.unwrap_or_else(|| Observation::upstream(digest.clone()).version(None));
                let version = TagVersion { n: 0, unix: clock::trusted_unix(), ..version };
                news.push(What::Complete { repository: repository.clone(), tag: tag.clone(), version });
            }
            Ok(news)
        })
    }

    /// Notes that a version which did not come from upstream is complete here. `unix` is when the peer's upstream
    /// reported it. What this board's own upstream reported stays as it is.
    ///
    /// # Errors
    /// It cannot be recorded.
    pub fn tag_offered(
        &self,
        repository: &Repository,
        tag: &Tag,
        observed: &Observation,
        unix: Option<u64>,
    ) -> Result<()> {
        self.check_tag(repository, tag)?;
        self.record(None, || {
            let known = self.tag(repository, tag)?.unwrap_or_default();
            let mut versions = known.seen.iter().chain(&known.complete);
            if versions.any(|version| version.digest == observed.digest) {
                return Ok(Vec::new());
            }
            let version = observed.version(unix);
            Ok(vec![What::Complete { repository: repository.clone(), tag: tag.clone(), version }])
        })
        .map(drop)
    }

    /// Serves `rollback.to` for the tag for as long as upstream reports `rollback.from`; `None` ends that.
    ///
    /// # Errors
    /// It cannot be recorded.
    pub fn tag_rollback(&self, repository: &Repository, tag: &Tag, rollback: Option<Rollback>) -> Result<()> {
        self.record_one(&What::Rollback { repository: repository.clone(), tag: tag.clone(), rollback })
    }

    /// Notes that the owner wants the tag's image to stay, or no longer.
    ///
    /// # Errors
    /// It cannot be recorded.
    pub fn tag_pin(&self, repository: &Repository, tag: &Tag, pinned: bool) -> Result<()> {
        if self.tag(repository, tag)?.unwrap_or_default().pinned == pinned {
            return Ok(());
        }
        self.record_one(&What::Pinned { repository: repository.clone(), tag: tag.clone(), pinned })
    }

    /// Forgets a tag with all its versions, at the owner's wish; their content stays until it is evicted.
    ///
    /// # Errors
    /// It cannot be recorded.
    pub fn tag_remove(&self, repository: &Repository, tag: &Tag) -> Result<()> {
        self.record_one(&What::Removed { repository: repository.clone(), tag: tag.clone() })
    }

    /// The tags known of a repository, sorted, from after `last`, at most `limit`.
    ///
    /// # Errors
    /// There is no index to answer from.
    pub fn tags(
        &self,
        repository: &Repository,
        last: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(Tag, TagRecord)>> {
        self.index.ask(|index| index.tags(repository, last, limit))
    }

    /// The repositories known, sorted, from after `last`, at most `limit`.
    ///
    /// # Errors
    /// There is no index to answer from.
    pub fn repositories(&self, last: Option<&str>, limit: usize) -> Result<Vec<Repository>> {
        self.index.ask(|index| index.repositories(last, limit))
    }

    /// The access class of a repository, if it is known: what its registry proved last.
    ///
    /// # Errors
    /// There is no index to answer from.
    pub fn repository_class(&self, repository: &Repository) -> Result<Option<AccessClass>> {
        self.index.ask(|index| index.class(repository))
    }

    /// Notes the class of a repository of which none is known.
    ///
    /// # Errors
    /// It cannot be recorded.
    pub fn note_class(&self, repository: &Repository, class: AccessClass) -> Result<()> {
        let news = || match self.repository_class(repository)? {
            Some(_) => Ok(Vec::new()),
            None => Ok(vec![What::Class { repository: repository.clone(), class }]),
        };
        self.record(None, news).map(drop)
    }

    /// Notes that a root of a repository was shown to everybody, or that its owner says so.
    ///
    /// # Errors
    /// It cannot be recorded.
    pub fn mark_public(&self, repository: &Repository) -> Result<()> {
        let class = AccessClass::Public;
        if self.repository_class(repository)? == Some(class) {
            return Ok(());
        }
        self.record_one(&What::Class { repository: repository.clone(), class })
    }

    /// Notes that what is known of a repository was asked for with credentials. Only content that came without them
    /// makes it public again, see [`Store::put_manifest`].
    ///
    /// # Errors
    /// It cannot be recorded.
    pub fn mark_private(&self, repository: &Repository) -> Result<()> {
        let class = AccessClass::Private;
        if self.repository_class(repository)? == Some(class) {
            return Ok(());
        }
        self.record_one(&What::Class { repository: repository.clone(), class })
    }

    // -- Manifests and links ---------------------------------------------------------------------------------

    /// Stores a manifest whose bytes the caller has checked, and links what it names to the repository, which is of
    /// this class.
    ///
    /// # Errors
    /// The disk does not take it, or there is no index.
    pub fn put_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
        media_type: &str,
        bytes: &[u8],
        class: AccessClass,
    ) -> Result<()> {
        self.put_manifest_in(repository, (digest, media_type), bytes, class, class)
    }

    /// The same for a manifest that proves nothing of its repository: what is known of that stays, such as what another board
    /// sends, and what was not shown to everybody where other content may have been.
    ///
    /// # Errors
    /// As [`Store::put_manifest`].
    pub fn add_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
        media_type: &str,
        bytes: &[u8],
        class: AccessClass,
    ) -> Result<()> {
        self.note_class(repository, class)?;
        self.put_manifest_in(repository, (digest, media_type), bytes, class, AccessClass::Unproven)
    }

    /// `of`: the class that this proves of the repository.
    fn put_manifest_in(
        &self,
        repository: &Repository,
        (digest, media_type): (&Digest, &str),
        bytes: &[u8],
        class: AccessClass,
        of: AccessClass,
    ) -> Result<()> {
        match self.check_repository(repository) {
            Err(problem) if problem.is_without_index() => {}
            checked => checked?,
        }
        match self.open_blob(digest)? {
            Some(known) if class < known.class => self.set_class(digest, class)?,
            Some(known) if self.is_more(&known, class, repository, digest)? => return Ok(()),
            Some(_) => {}
            None => {
                let mut staged = self.stage_scratch(digest)?;
                staged.append(bytes)?;
                staged.publish(self, class)?;
            }
        }
        let turn = DocumentTurn::wait(bytes.len() as u64);
        let manifest = Manifest::parse(bytes, Some(media_type)).ok();
        drop(turn);
        self.record(manifest, || {
            let mut news = Vec::new();
            let (known, link) = self.index.ask(|index| index.class_and_link(repository, digest))?;
            // What did not come from the registry proves nothing about it.
            if known != Some(of) && (known.is_none() || of != AccessClass::Unproven) {
                news.push(What::Class { repository: repository.clone(), class: of });
            }
            if link.is_none_or(|link| !link.held || link.media_type.as_deref() != Some(media_type)) {
                let (repository, digest) = (repository.clone(), digest.clone());
                news.push(What::Manifest { repository, digest, media_type: media_type.to_owned() });
            }
            Ok(news)
        })
        .map(drop)
    }

    /// Stores a blob of a repository from a source that is at hand, such as a file.
    ///
    /// # Errors
    /// The disk does not take it, the source cannot be read, or it is other content.
    pub fn put_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        source: &mut dyn std::io::Read,
        class: AccessClass,
    ) -> Result<()> {
        let mut staged = self.stage_scratch(digest)?;
        let mut chunk = vec![0; budget::FETCH_CHUNK_BYTES];
        loop {
            match source.read(&mut chunk) {
                Ok(0) => break,
                Ok(n) => staged.append(&chunk[..n])?,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => {
                    staged.discard();
                    return Err(StoreError::io(format!("cannot read {digest} to store it"))(e));
                }
            }
        }
        let known = self.open_blob(digest)?;
        staged.publish(self, class)?;
        match known {
            Some(known) if self.is_more(&known, class, repository, digest)? => Ok(()),
            _ => self.hold(repository, digest),
        }
    }

    /// Whether content that came from elsewhere is private here through other repositories: that this one has it too is only
    /// said.
    fn is_more(
        &self,
        known: &Blob,
        class: AccessClass,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<bool> {
        let said = known.class == AccessClass::Private && class == AccessClass::Unproven;
        Ok(said && !self.link(repository, digest)?.is_some_and(|link| link.held))
    }

    /// What is known of some content in a repository.
    ///
    /// # Errors
    /// There is no index to answer from.
    pub fn link(&self, repository: &Repository, digest: &Digest) -> Result<Option<ContentLink>> {
        self.index.ask(|index| index.link(repository, digest))
    }

    /// The repositories that content is linked to, and how.
    ///
    /// # Errors
    /// There is no index to answer from.
    pub fn links_to(&self, digest: &Digest) -> Result<Vec<(Repository, ContentLink)>> {
        self.index.ask(|index| index.links_to(digest))
    }

    /// Notes that this repository's upstream holds the content, so that it may be served to who may read there.
    ///
    /// # Errors
    /// It cannot be recorded.
    pub fn hold(&self, repository: &Repository, digest: &Digest) -> Result<()> {
        if self.link(repository, digest)?.is_some_and(|link| link.held) {
            return Ok(());
        }
        self.record_one(&What::Held { repository: repository.clone(), digest: digest.clone() })
    }

    /// The manifests known of a repository.
    ///
    /// # Errors
    /// There is no index to answer from.
    pub fn manifests(&self, repository: &Repository) -> Result<Vec<LinkedManifest>> {
        self.index.ask(|index| index.manifests(repository))
    }

    /// The manifests of a repository that name `subject` as theirs.
    ///
    /// # Errors
    /// There is no index to answer from.
    pub fn referrers(&self, repository: &Repository, subject: &Digest) -> Result<Vec<Digest>> {
        self.index.ask(|index| index.referrers(repository, subject))
    }

    /// Forgets an image of a repository and removes the content that went with it.
    ///
    /// `root` is the manifest that versions of tags name, `links` what only this image of the repository had, `parts`
    /// what no other image on the disk has. The versions are forgotten first and the root goes before its parts, so
    /// that wherever this is cut short no half image is on offer; what stays behind is content that nobody names.
    ///
    /// # Errors
    /// It cannot be recorded, or a blob not removed.
    pub fn evict(
        &self,
        repository: &Repository,
        root: &Digest,
        links: &[Digest],
        parts: &[Digest],
    ) -> Result<()> {
        let mut left = links;
        loop {
            let (now, later) = left.split_at(left.len().min(LINKS_AT_A_TIME));
            let (repository, digest, links) = (repository.clone(), root.clone(), now.to_vec());
            self.record_one(&What::Evicted { repository, digest, links })?;
            left = later;
            if left.is_empty() {
                break;
            }
        }
        self.remove_blobs(Some(root), parts)
    }

    /// Removes content that belongs to no image.
    ///
    /// # Errors
    /// A blob cannot be removed.
    pub fn remove_orphans(&self, digests: &[Digest]) -> Result<()> {
        self.remove_blobs(None, digests)
    }

    // -- Inside ----------------------------------------------------------------------------------------------

    fn record_one(&self, what: &What) -> Result<()> {
        self.record(None, || Ok(vec![what.clone()])).map(drop)
    }

    /// Writes events: the journal first, flushed; then the index. `news` says which, and is asked a second time when
    /// its turn has come: several may have found the same out at once. `false`: there was none. `manifest` is that of the event that has one.
    pub(super) fn record(
        &self,
        mut manifest: Option<Manifest>,
        news: impl Fn() -> Result<Vec<What>>,
    ) -> Result<bool> {
        let index = self.index.get()?;
        let first = news()?;
        if first.is_empty() {
            return Ok(false);
        }
        self.check_place(&first)?;
        let mut journal = self.journal.lock();
        let event = |what: What| {
            let manifest = what.manifest().and_then(|_| manifest.take());
            (Event { n: self.uses.sequence.next(), what }, manifest)
        };
        let events: Vec<_> = news()?.into_iter().map(event).collect();
        if events.is_empty() {
            return Ok(false);
        }
        let position = journal.append(&events)?;
        let applied = index.apply(&events, position, self.history_max);
        self.stamps.changed();
        self.index.watch(&index, applied)?;
        if journal.wants_compaction() {
            let snapshot = self.index.watch(&index, index.snapshot())?;
            journal.compact(&snapshot)?;
            let last = self.uses.sequence.last();
            self.index.watch(&index, index.set_mark(journal.generation(), journal.len(), last))?;
        }
        Ok(true)
    }
}
