//! What a blob is served from, and the wait for its size.

use super::super::fill::download_failed;
use super::super::progress::{Fill, Phase};
use super::super::refusal::Refusal;
use super::stream::{Pieces, Streams};
use crate::oci::Repository;
use crate::store::Blob;
use std::sync::Arc;
use std::time::Duration;

/// A blob that can be served.
#[derive(Debug)]
pub enum BlobSource {
    /// It is complete.
    Hit(Blob),
    /// It is complete, and upstream has just confirmed that this repository holds it.
    Confirmed(Blob),
    /// It is growing.
    Fill {
        /// The download.
        fill: Arc<Fill>,
        /// Bytes that it will have.
        total: u64,
        /// Another request began it.
        joined: bool,
    },
    /// It is streamed to this client only and not stored.
    Uncached {
        /// Bytes that it has.
        total: u64,
        /// The pieces, from the first byte on.
        pieces: Pieces,
    },
    /// A part of it is streamed to this client only, which is far ahead of a download and has no hash.
    Early {
        /// The download, for what the pieces do not bring.
        fill: Arc<Fill>,
        /// Bytes that the blob has.
        total: u64,
        /// The pieces, from the first byte that the client wants.
        pieces: Pieces,
    },
}

/// Waits until a fill knows its size. `None`: it is done. While the fill is queued behind others for long, the size that
/// the manifest states is used: then the client waits for bytes and not for a header.
pub(super) async fn size_of(
    fill: &Fill,
    repository: &Repository,
    wait: Duration,
) -> Result<Option<u64>, Refusal> {
    let digest = fill.digest();
    let mut follow = fill.follow();
    let known = follow.wait_for(|progress| {
        progress.total.is_some() && progress.phase == Phase::Running
            || !matches!(progress.phase, Phase::Queued | Phase::Running)
    });
    let Ok(known) = tokio::time::timeout(wait, known).await else {
        return match (fill.stated(), &fill.follow().borrow().phase) {
            (Some(stated), Phase::Queued) => Ok(Some(stated)),
            (_, Phase::Queued) => Err(Streams::busy()),
            _ => Err(Refusal::Unavailable(format!("{} is slow to offer {digest}", repository.registry))),
        };
    };
    let progress = known.map_err(|_| download_failed())?.clone();
    match progress.phase {
        Phase::Done => Ok(None),
        Phase::Queued | Phase::Running => Ok(progress.total),
        Phase::Parked(cause) => Err(Refusal::Unavailable(format!("{cause}; {digest} is not cached"))),
        Phase::Failed(refusal) => Err(refusal),
    }
}
