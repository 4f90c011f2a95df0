//! Walks over the tags of the store, a step at a time, and the one place that says which version of a tag is served with
//! every link down. Failure is the store's.

use super::closure::{Closures, Summary};
use crate::budget;
use crate::decide::{CompleteVersion, Here};
use crate::oci::{Repository, Tag};
use crate::store::{Store, StoreError, TagRecord, TagVersion};

/// Visits every repository known, in order.
///
/// # Errors
/// The index cannot be read, or the visitor's own error.
pub fn each_repository<E: From<StoreError>>(
    store: &Store,
    mut visit: impl FnMut(&Repository) -> Result<(), E>,
) -> Result<(), E> {
    let mut last: Option<String> = None;
    loop {
        let repositories = store.repositories(last.as_deref(), budget::LISTING_STEP)?;
        let Some(name) = repositories.last() else { return Ok(()) };
        last = Some(name.to_string());
        repositories.iter().try_for_each(&mut visit)?;
    }
}

/// Visits every tag of a repository, in order.
///
/// # Errors
/// The index cannot be read, or the visitor's own error.
pub fn each_tag<E: From<StoreError>>(
    store: &Store,
    repository: &Repository,
    mut visit: impl FnMut(&Tag, &TagRecord) -> Result<(), E>,
) -> Result<(), E> {
    let mut last: Option<String> = None;
    loop {
        let tags = store.tags(repository, last.as_deref(), budget::LISTING_STEP)?;
        let Some((name, _)) = tags.last() else { return Ok(()) };
        last = Some(name.to_string());
        tags.iter().try_for_each(|(tag, record)| visit(tag, record))?;
    }
}

/// The first of the `versions` of a repository that is complete now, and how much it has.
///
/// # Errors
/// A manifest cannot be read.
pub fn first_complete<'v>(
    closures: &Closures<'_>,
    repository: &Repository,
    versions: impl IntoIterator<Item = &'v TagVersion>,
) -> Result<Option<(&'v TagVersion, Summary)>, StoreError> {
    for version in versions {
        let summary = closures.summary(repository, &version.digest)?;
        if summary.complete {
            return Ok(Some((version, summary)));
        }
    }
    Ok(None)
}

/// The version of a tag that would be served with every link down, and how much it has.
///
/// # Errors
/// A manifest cannot be read.
pub fn served<'v>(
    closures: &Closures<'_>,
    repository: &Repository,
    record: &'v TagRecord,
) -> Result<Option<(&'v TagVersion, Summary)>, StoreError> {
    first_complete(closures, repository, record.candidates())
}

/// What is here of a tag, as decisions see it. `complete`: what [`served`] found; `named_at`: see [`CompleteVersion`].
pub fn here<'a>(
    record: Option<&'a TagRecord>,
    complete: Option<&'a TagVersion>,
    named_at: Option<u64>,
    rollback_is_here: bool,
) -> Here<'a> {
    let rollback = record.and_then(|record| record.rollback.as_ref());
    Here {
        complete: complete.map(|version| CompleteVersion {
            digest: &version.digest,
            from_peer: version.is_from_peer(),
            named_at,
        }),
        seen: record.and_then(|record| record.seen.as_ref()).map(|seen| &seen.digest),
        rollback: rollback.map(|rollback| (&rollback.from, &rollback.to)),
        rollback_is_here,
        is_noted: record.is_some(),
        is_known: true,
    }
}
