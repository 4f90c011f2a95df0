//! Content by digest: from the disk, else from upstream, or from a peer while upstream cannot be reached.
//!
//! | file | what |
//! |---|---|
//! | `manifest` | manifests, and the small ones kept in memory |
//! | `blob` | blobs: a hit, a fill, or an uncached stream |
//! | `early` | a client's range far ahead of its download |
//! | `source` | what a blob is served from |
//! | `stream` | streams to one client that are not stored |
//! | `named` | sizes of what manifests name and the index does not |
//! | `repair` | refetching corrupt blobs |
//!
//! A digest proves its content, so cached content is served without asking upstream, unless it is private. New content is
//! announced ([`Arrivals`]); nothing in here knows of tags.
//!
//! [`Arrivals`]: super::context::Arrivals

mod blob;
mod early;
mod manifest;
mod named;
mod repair;
mod small;
mod source;
mod stream;

pub use early::WantedPart;
pub use manifest::{ManifestAnswer, ManifestContent};
pub use small::SmallManifest;
pub use source::BlobSource;
pub use stream::Pieces;

pub(super) use blob::Blobs;
pub(super) use manifest::{AskedManifests, Manifests};
pub(super) use named::NamedBlobs;
pub(super) use repair::Repairs;
pub(super) use stream::Streams;

use super::access::View;
use super::context::Context;
use crate::oci::Digest;
use crate::store::{Blob, StoreError};

/// What is on the disk for a digest, as seen through a repository.
enum Lookup {
    Here(Blob),
    /// It is not here.
    Absent,
    /// It is here, but its registry is not known to hold it in this repository.
    Unproven,
}

/// Looks for content on the disk.
fn look_up(context: &Context, view: &View, digest: &Digest) -> Result<Lookup, StoreError> {
    match context.store.open_blob(digest)? {
        Some(blob) => judge(context, view, digest, blob),
        None => Ok(Lookup::Absent),
    }
}

/// Whether `blob`, which was found for `digest`, may be served through a repository.
fn judge(context: &Context, view: &View, digest: &Digest, blob: Blob) -> Result<Lookup, StoreError> {
    Ok(if context.holds(view, digest, &blob)? { Lookup::Here(blob) } else { Lookup::Unproven })
}
