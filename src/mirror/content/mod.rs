//! Content by digest: from the disk, or from upstream - or a peer, while upstream cannot be reached - on its way to it.
//!
//! | file | what |
//! |---|---|
//! | `manifest` | manifests, and the small ones kept in memory |
//! | `blob` | blobs: a hit, a fill, or a stream |
//! | `stream` | what is passed on and not stored |
//! | `repair` | refetching what was corrupt |
//!
//! Content names itself, so what is here is served without asking anybody - unless it was fetched with credentials.
//! What arrives is announced ([`Arrivals`]); nothing in here knows of tags.
//!
//! [`Arrivals`]: super::context::Arrivals

mod blob;
mod manifest;
mod repair;
mod small;
mod stream;

pub use blob::BlobSource;
pub use manifest::{ManifestAnswer, ManifestContent};
pub use small::SmallManifest;
pub use stream::Pieces;

pub(super) use blob::Blobs;
pub(super) use manifest::{AskedManifests, Manifests};
pub(super) use repair::Repairs;
pub(super) use stream::Streams;

use super::access::Possession;
use super::context::Context;
use crate::oci::{Digest, Repository};
use crate::store::{Blob, StoreError};

/// What is on the disk for a digest, as far as a repository may see it.
enum Lookup {
    Here(Blob),
    /// Nothing.
    Absent,
    /// Content that this repository's upstream was not seen to hold.
    Unproven,
}

/// Looks for content on the disk.
fn look_up(context: &Context, repository: &Repository, digest: &Digest) -> Result<Lookup, StoreError> {
    match context.store.open_blob(digest)? {
        Some(blob) => judge(context, repository, digest, blob),
        None => Ok(Lookup::Absent),
    }
}

/// Whether `blob`, which was found for `digest`, may be seen through a repository.
fn judge(
    context: &Context,
    repository: &Repository,
    digest: &Digest,
    blob: Blob,
) -> Result<Lookup, StoreError> {
    Ok(match context.possession(repository, digest, &blob)? {
        Possession::Proven => Lookup::Here(blob),
        Possession::Unproven => Lookup::Unproven,
    })
}
