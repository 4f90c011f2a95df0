//! Streaming through: a blob that the disk has no room for is given to the client that asked, and not kept.
//!
//! Each client costs the upstream its bytes, and a range costs those before it, because nothing is believed before the
//! whole has the right hash: here too the last piece is held back until then.

use super::refusal::{Missing, Refusal};
use super::{Fill, Mirror, Source};
use crate::budget;
use crate::fetch::Upstream;
use crate::oci::{Digest, Hasher, Repository};
use bytes::Bytes;
use std::io;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// The pieces of a blob on their way from an upstream to one client.
pub type Pieces = mpsc::Receiver<io::Result<Bytes>>;

impl Mirror {
    /// Streams a blob through. `cause`: why it is not kept.
    ///
    /// # Errors
    /// As for any blob; [`Refusal::Busy`] when as many are streamed through as there are downloads at a time.
    pub(super) async fn through(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repository: &Repository,
        digest: &Digest,
        stated: Option<u64>,
        cause: &str,
    ) -> Result<Source, Refusal> {
        let place = Arc::clone(&self.through).try_acquire_owned();
        let place = place.map_err(|_| Refusal::Busy("all downloads at a time are taken".into()))?;
        log::warn!("{digest} of {repository} is streamed through and not kept: {cause}");
        let (opened, total) = oneshot::channel();
        let (pieces, received) = mpsc::channel(budget::THROUGH_PIECES);
        let (upstream, name, wanted) = (Arc::clone(upstream), repository.name.clone(), digest.clone());
        let run = move || {
            let _place = place;
            let mut stream = match upstream.open_blob(&name, &wanted, 0) {
                Ok(stream) => stream,
                Err(failure) => {
                    let _ = opened.send(Err(Refusal::from_failure(&failure, Missing::Blob)));
                    return;
                }
            };
            let Some(total) =
                stream.total.or(stated).filter(|total| stated.is_none_or(|stated| stated == *total))
            else {
                let text = format!("{} does not offer {wanted} in the size it should have", upstream.name());
                let _ = opened.send(Err(Refusal::Unavailable(text)));
                return;
            };
            if opened.send(Ok(total)).is_err() {
                return;
            }
            let read = |buffer: &mut [u8]| stream.read(buffer).map_err(|failure| failure.to_string());
            if let Err(problem) = pass_on(read, &wanted, total, &pieces) {
                log::warn!("{wanted} was cut on its way through: {problem}");
                let _ = pieces.blocking_send(Err(io::Error::other(problem)));
            }
        };
        std::thread::Builder::new()
            .name("through".into())
            .stack_size(budget::THREAD_STACK_BYTES)
            .spawn(run)
            .map_err(|e| Refusal::Busy(format!("no thread for another download: {e}")))?;
        match tokio::time::timeout(budget::MISS_WAIT_MAX, total).await {
            Ok(Ok(total)) => Ok(Source::Through { total: total?, pieces: received }),
            Ok(Err(_)) => Err(Refusal::Failed("the download failed; the log says how".into())),
            Err(_) => Err(Refusal::Unavailable(format!("{} is slow to offer {digest}", repository.registry))),
        }
    }
}

impl Mirror {
    /// Goes on with a download that the disk would not take to its end, for one client: the whole blob of `total` bytes
    /// comes again.
    pub async fn go_on_through(
        self: &Arc<Self>,
        repository: &Repository,
        fill: &Fill,
        total: u64,
        cause: &str,
    ) -> Result<Pieces, Refusal> {
        let upstream = self.upstreams.find(&repository.registry).cloned();
        let upstream = upstream.ok_or_else(|| Refusal::UnknownRegistry(repository.registry.clone()))?;
        match self.through(&upstream, repository, fill.digest(), fill.stated(), cause).await? {
            Source::Through { total: offered, pieces } if offered == total => Ok(pieces),
            _ => Err(Refusal::Unavailable(format!("{} changed its size", fill.digest()))),
        }
    }
}

/// Passes a body on, all but its last piece as it comes, and that once the hash of the whole is right. `Err` says what
/// went wrong; a client that has gone is nothing wrong.
fn pass_on(
    mut read: impl FnMut(&mut [u8]) -> Result<usize, String>,
    digest: &Digest,
    total: u64,
    pieces: &mpsc::Sender<io::Result<Bytes>>,
) -> Result<(), String> {
    let mut hasher = Hasher::new(digest.algorithm());
    let held_back = usize::try_from(budget::HELD_BACK_BYTES).unwrap_or(usize::MAX);
    // What has come and has not been passed on: never more than a chunk and what is held back.
    let mut waiting = Vec::new();
    let mut chunk = vec![0; budget::SERVE_CHUNK_BYTES];
    let mut come = 0u64;
    loop {
        let n = read(&mut chunk)?;
        if n == 0 {
            break;
        }
        come += n as u64;
        if come > total {
            return Err(format!("it has more than its {total} bytes"));
        }
        hasher.update(&chunk[..n]);
        waiting.extend_from_slice(&chunk[..n]);
        if waiting.len() > held_back {
            let rest = waiting.split_off(waiting.len() - held_back);
            if pieces.blocking_send(Ok(Bytes::from(std::mem::replace(&mut waiting, rest)))).is_err() {
                return Ok(());
            }
        }
    }
    if come < total {
        return Err(format!("it ended after {come} of {total} bytes"));
    }
    let actual = hasher.finish();
    if actual != *digest {
        return Err(format!("it hashes to {actual}"));
    }
    let _ = pieces.blocking_send(Ok(Bytes::from(waiting)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    /// What a client gets of a body that comes in pieces of 10,000 bytes.
    fn passed_on(body: &[u8], digest: &Digest, total: u64) -> (Vec<u8>, Result<(), String>) {
        let (sender, mut received) = mpsc::channel(1_000);
        let mut left = body;
        let read = |buffer: &mut [u8]| {
            let n = left.len().min(10_000).min(buffer.len());
            let (now, later) = left.split_at(n);
            buffer[..n].copy_from_slice(now);
            left = later;
            Ok(n)
        };
        let outcome = pass_on(read, digest, total, &sender);
        drop(sender);
        let mut got = Vec::new();
        while let Some(piece) = received.blocking_recv() {
            got.extend_from_slice(&piece.unwrap());
        }
        (got, outcome)
    }

    #[test]
    fn the_last_piece_waits_for_the_hash() {
        let body: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
        let digest = Digest::of(Algorithm::Sha256, &body);
        assert_eq!(passed_on(&body, &digest, 100_000), (body.clone(), Ok(())));
        assert_eq!(passed_on(b"", &Digest::of(Algorithm::Sha256, b""), 0), (Vec::new(), Ok(())));
        let mut wrong = body.clone();
        wrong[5] ^= 1;
        for (sent, total) in [(&wrong[..], 100_000), (&body[..99_000], 100_000), (&body[..], 99_000)] {
            let (got, outcome) = passed_on(sent, &digest, total);
            assert!(outcome.is_err());
            assert!(got.len() <= 100_000 - 4_096, "{} bytes were passed on", got.len());
        }
    }
}
