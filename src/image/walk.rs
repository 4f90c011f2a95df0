//! Walks over the tags of the store, a step at a time.

use crate::budget;
use crate::oci::{Repository, Tag};
use crate::store::{Store, StoreError, TagRecord};

/// Visits every repository known, in order.
pub(super) fn each_repository(
    store: &Store,
    mut visit: impl FnMut(&Repository) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut last: Option<String> = None;
    loop {
        let repositories = store.repositories(last.as_deref(), budget::LISTING_STEP)?;
        let Some(name) = repositories.last() else { return Ok(()) };
        last = Some(name.to_string());
        repositories.iter().try_for_each(&mut visit)?;
    }
}

/// Visits every tag of a repository, in order.
pub(super) fn each_tag(
    store: &Store,
    repository: &Repository,
    mut visit: impl FnMut(&Tag, &TagRecord),
) -> Result<(), StoreError> {
    let mut last: Option<String> = None;
    loop {
        let tags = store.tags(repository, last.as_deref(), budget::LISTING_STEP)?;
        let Some((name, _)) = tags.last() else { return Ok(()) };
        last = Some(name.to_string());
        tags.iter().for_each(|(tag, record)| visit(tag, record));
    }
}
