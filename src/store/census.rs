//! How much the index may know of one registry: names cost next to nothing to send, and each costs a record here and a line
//! in the journal. What is beyond the limits is answered and not remembered. Nothing that is complete goes for it, nor what is
//! pinned; a repository of which nothing is complete does, the one that was heard of longest ago first.

use super::Store;
use super::error::{Result, StoreError};
use super::journal::{LINKS_AT_A_TIME, What};
use crate::budget::{REGISTRY_REPOSITORIES_MAX, REGISTRY_TAGS_MAX, REPOSITORY_TAGS_MAX};
use crate::oci::{Algorithm, Digest, Repository, Tag};

/// What the index knows of a registry.
#[derive(Default)]
pub(super) struct Census {
    /// Its repositories.
    pub(super) repositories: usize,
    /// Tags of all of them.
    pub(super) tags: usize,
    /// Tags of the repository that is asked about.
    pub(super) own_tags: usize,
}

/// A repository that may be forgotten.
pub(super) struct LeastRepository {
    pub(super) repository: Repository,
    /// The count of the last thing that was heard of it.
    pub(super) n: u64,
    pub(super) tags: Vec<Tag>,
    pub(super) links: Vec<Digest>,
}

impl Store {
    /// Refuses what would have to be remembered of a registry that has as much as is kept. New tags that come at once are
    /// counted once.
    pub(super) fn check_place(&self, news: &[What]) -> Result<()> {
        let mut counted = None;
        news.iter().try_for_each(|what| match what {
            What::Seen { repository, .. } if counted == Some(repository) => Ok(()),
            What::Seen { repository, tag, .. } => match self.tag(repository, tag)? {
                Some(_) => Ok(()),
                None => {
                    counted = Some(repository);
                    self.check_new_tag(repository)
                }
            },
            What::Held { repository, .. }
            | What::Class { repository, .. }
            | What::Manifest { repository, .. } => self.check_repository(repository),
            // Of what is known, or at the owner's wish.
            What::Complete { .. }
            | What::Rollback { .. }
            | What::Pinned { .. }
            | What::Removed { .. }
            | What::Evicted { .. } => Ok(()),
        })
    }

    /// Refuses a repository that is new, if its registry has as many as are kept and none of them may be forgotten.
    pub(super) fn check_repository(&self, repository: &Repository) -> Result<()> {
        if self.index.ask(|index| index.knows(repository))? {
            return Ok(());
        }
        let census = self.index.ask(|index| index.census(repository))?;
        if census.repositories >= REGISTRY_REPOSITORIES_MAX
            && let Some(least) = self.index.ask(|index| index.least(repository))?
        {
            return self.forget_repository(&least);
        }
        check(repository, census.repositories, REGISTRY_REPOSITORIES_MAX, "repositories of this registry")
    }

    /// Forgets a repository; its content stays until it is evicted.
    fn forget_repository(&self, least: &LeastRepository) -> Result<()> {
        let LeastRepository { repository, tags, links, .. } = least;
        let removed = |tag: &Tag| What::Removed { repository: repository.clone(), tag: tag.clone() };
        let evicted = |links: &[Digest]| What::Evicted {
            repository: repository.clone(),
            digest: links.first().cloned().unwrap_or_else(|| Digest::of(Algorithm::Sha256, b"")),
            links: links.to_vec(),
        };
        let nothing: &[Digest] = &[];
        let parts = links.chunks(LINKS_AT_A_TIME).chain(links.is_empty().then_some(nothing));
        let news: Vec<What> = tags.iter().map(removed).chain(parts.map(evicted)).collect();
        self.record(None, || Ok(news.clone())).map(drop)
    }

    /// Refuses a tag that is new, if its repository or its registry has as many as are kept.
    pub(super) fn check_tag(&self, repository: &Repository, tag: &Tag) -> Result<()> {
        if self.tag(repository, tag)?.is_some() { Ok(()) } else { self.check_new_tag(repository) }
    }

    fn check_new_tag(&self, repository: &Repository) -> Result<()> {
        self.check_repository(repository)?;
        let census = self.index.ask(|index| index.census(repository))?;
        check(repository, census.own_tags, REPOSITORY_TAGS_MAX, "tags of this repository")?;
        check(repository, census.tags, REGISTRY_TAGS_MAX, "tags of this registry")
    }
}

fn check(repository: &Repository, count: usize, most: usize, what: &str) -> Result<()> {
    if count < most {
        return Ok(());
    }
    Err(StoreError::NoRoom {
        what: format!("{repository}: {count} {what} are known, which is the most; `larder rm` makes room"),
    })
}
