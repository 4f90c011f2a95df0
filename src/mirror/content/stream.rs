//! Uncached streams: content that cannot be stored is streamed to the client that asked for it.
//!
//! Each client costs a download from its first byte on, also for a range: the last piece is held back until the hash of
//! the complete blob is right. There are as many streams as download slots, shared out alike; one more is
//! [`Refusal::Busy`].

use super::super::context::{Context, miss_wait};
use super::super::fill::{Turn, download_failed};
use super::super::progress::{Fill, asking_of};
use super::super::refusal::{Missing, Refusal};
use crate::auth::AccessClass;
use crate::budget;
use crate::fetch::Upstream;
use crate::oci::{Digest, Hasher, Repository};
use crate::places::{Allotment, TurnPlace, TurnPool, asker};
use crate::via;
use bytes::Bytes;
use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::oneshot;

/// The pieces of a blob on their way from an upstream to one client.
pub type Pieces = mpsc::Receiver<io::Result<Bytes>>;

/// Uncached streams.
pub(in crate::mirror) struct Streams {
    pub(super) context: Arc<Context>,
    pub(super) slots: TurnPool,
}

/// The right to serve content from memory.
#[derive(Debug, Clone)]
pub(super) struct StreamSlot {
    _place: Arc<TurnPlace>,
}

impl StreamSlot {
    /// `bytes` that keep the slot until they are dropped.
    pub(super) fn hold_with(&self, bytes: Bytes) -> Bytes {
        struct Held {
            bytes: Bytes,
            _slot: StreamSlot,
        }
        impl AsRef<[u8]> for Held {
            fn as_ref(&self) -> &[u8] {
                &self.bytes
            }
        }
        Bytes::from_owner(Held { bytes, _slot: self.clone() })
    }
}

/// One blob to be streamed.
struct UncachedBlob {
    context: Arc<Context>,
    upstream: Arc<Upstream>,
    repository: Repository,
    digest: Digest,
    /// The class of what the upstream gives for this.
    class: AccessClass,
    /// The size that a manifest states.
    stated: Option<u64>,
}

impl Streams {
    pub(in crate::mirror) fn new(context: Arc<Context>) -> Streams {
        let slots = context.config.now().fetch.streams;
        Streams { context, slots: TurnPool::new(Allotment::of_streams(slots)) }
    }

    /// A slot for a repository, if one is free that is not kept for others.
    pub(super) fn slot(&self, repository: &Repository) -> Option<StreamSlot> {
        self.slots.take(asking_of(repository, asker())).map(|place| StreamSlot { _place: Arc::new(place) })
    }

    /// All slots are in use.
    pub(super) fn busy() -> Refusal {
        Refusal::Busy("all fetch.streams download slots are in use; retry".into())
    }

    /// Streams a blob: its size, and its pieces from the first byte on. `None`: neither a manifest nor upstream states its
    /// size. `upstream` gives it to who may read content of `class`. `cause`: why it is not stored.
    ///
    /// # Errors
    /// As for any blob; [`Refusal::Busy`] when all slots are in use.
    pub(super) async fn stream_uncached(
        &self,
        (upstream, class): (Arc<Upstream>, AccessClass),
        repository: &Repository,
        digest: &Digest,
        stated: Option<u64>,
        cause: &str,
    ) -> Result<Option<(u64, Pieces)>, Refusal> {
        let slot = self
            .slots
            .wait(asking_of(repository, asker()), budget::STREAM_WAIT_MAX)
            .await
            .ok_or_else(Streams::busy)?;
        log::warn!("{digest} of {repository} is streamed and not stored: {cause}");
        let (context, repository, digest) = (Arc::clone(&self.context), repository.clone(), digest.clone());
        let (registry, wanted) = (repository.registry.clone(), digest.clone());
        let blob = UncachedBlob { context, upstream, repository, digest, class, stated };
        let ((opened, total), way) = (oneshot::channel(), via::way());
        let (pieces, received) = mpsc::channel(budget::STREAM_PIECES);
        std::thread::Builder::new()
            .name("stream".into())
            .stack_size(budget::THREAD_STACK_BYTES)
            .spawn(move || {
                via::on_thread(&way, || blob.run(opened, &pieces, slot));
            })
            .map_err(|e| Refusal::Busy(format!("no thread for another download: {e}")))?;
        match tokio::time::timeout(miss_wait(), total).await {
            Ok(Ok(total)) => Ok(total?.map(|total| (total, received))),
            Ok(Err(_)) => Err(download_failed()),
            Err(_) => Err(Refusal::Unavailable(format!("{registry} is slow to offer {wanted}"))),
        }
    }

    /// Streams a blob of `total` bytes to one client, from its first byte, because its download could not be stored.
    ///
    /// # Errors
    /// As [`Streams::stream_uncached`]; [`Refusal::Unavailable`] if its size has changed.
    pub(in crate::mirror) async fn resume_uncached(
        &self,
        repository: &Repository,
        fill: &Fill,
        total: u64,
        cause: &str,
    ) -> Result<Pieces, Refusal> {
        let from = (self.context.upstream(&repository.registry)?, fill.key.class);
        match self.stream_uncached(from, repository, fill.digest(), fill.stated(), cause).await? {
            Some((offered, pieces)) if offered == total => Ok(pieces),
            _ => Err(Refusal::Unavailable(format!("{} changed its size", fill.digest()))),
        }
    }
}

impl UncachedBlob {
    /// Sends the size of the blob to `opened`, then the blob to `pieces`.
    fn run(
        &self,
        opened: oneshot::Sender<Result<Option<u64>, Refusal>>,
        pieces: &mpsc::Sender<io::Result<Bytes>>,
        slot: TurnPlace,
    ) {
        let mut stream = match self.upstream.open_blob(&self.repository.name, &self.digest, 0) {
            Ok(stream) => stream,
            Err(failure) => {
                let _ = opened.send(Err(Refusal::from_failure(&failure, Missing::Blob)));
                return;
            }
        };
        let place = stream.place;
        let Some(total) = stream.total.or(self.stated) else {
            let _ = opened.send(Ok(None));
            return;
        };
        if self.stated.is_some_and(|stated| stated != total) {
            let name = self.upstream.name();
            let text = format!("{name} does not offer {} in the size it should have", self.digest);
            let _ = opened.send(Err(Refusal::Unavailable(text)));
            return;
        }
        if opened.send(Ok(Some(total))).is_err() {
            return;
        }
        let turn = RefCell::new(Turn::begin(Instant::now()));
        let read = |buffer: &mut [u8]| {
            let n = stream.read(buffer).map_err(|failure| failure.to_string())?;
            turn.borrow_mut().count(n as u64, Instant::now());
            Ok(n)
        };
        // Nothing of it is kept, so that only what is too slow gives way, whoever is to blame for that.
        let must_end = |stuck: bool| {
            let (now, mut turn) = (Instant::now(), turn.borrow_mut());
            turn.may_look(now) && slot.must_make_way(stuck || turn.is_over(now))
        };
        match pass_on(read, must_end, &self.digest, total, pieces) {
            Ok(true) => {
                if let Err(problem) = self.context.proven(&self.repository, &self.digest, self.class) {
                    log::warn!(
                        "{} holds {}, which could not be saved: {problem}",
                        self.repository,
                        self.digest
                    );
                }
            }
            Ok(false) => {}
            Err(Broken { problem, wrong }) => {
                log::warn!("{} was cut while it was streamed: {problem}", self.digest);
                if wrong && self.upstream.endpoints().len() > 1 {
                    self.upstream.sent_wrong(&self.digest, place);
                }
                // Others have the place while its client is told.
                drop(slot);
                let _ = pieces.blocking_send(Err(io::Error::other(problem)));
            }
        }
    }
}

/// Why a body was not forwarded to its end.
#[derive(Debug)]
struct Broken {
    problem: String,
    /// Its source has sent wrong bytes.
    wrong: bool,
}

impl From<String> for Broken {
    fn from(problem: String) -> Broken {
        Broken { problem, wrong: false }
    }
}

/// Forwards a body as it comes, and its last piece once the hash of the complete body is right. `Err` says what went
/// wrong; a client that has left is no failure, but then the body is not known to be right.
fn pass_on(
    mut read: impl FnMut(&mut [u8]) -> Result<usize, String>,
    must_end: impl Fn(bool) -> bool,
    digest: &Digest,
    total: u64,
    pieces: &mpsc::Sender<io::Result<Bytes>>,
) -> Result<bool, Broken> {
    let mut hasher = Hasher::new(digest.algorithm());
    let held_back = usize::try_from(budget::HELD_BACK_BYTES).unwrap_or(usize::MAX);
    // Received and not yet forwarded: never more than a chunk and the last piece.
    let mut waiting = Vec::new();
    let mut chunk = vec![0; budget::SERVE_CHUNK_BYTES];
    let mut come = 0u64;
    loop {
        let n = read(&mut chunk)?;
        if n == 0 {
            break;
        }
        // Seen also while nothing is sent, so that who is gone gives the place back to others.
        if pieces.is_closed() {
            return Ok(false);
        }
        if must_end(false) {
            return Err(GAVE_WAY.to_owned().into());
        }
        come += n as u64;
        if come > total {
            return Err(Broken { problem: format!("it has more than its {total} bytes"), wrong: true });
        }
        hasher.update(&chunk[..n]);
        waiting.extend_from_slice(&chunk[..n]);
        if waiting.len() > held_back {
            let rest = waiting.split_off(waiting.len() - held_back);
            if !hand_over(Bytes::from(std::mem::replace(&mut waiting, rest)), &must_end, pieces)? {
                return Ok(false);
            }
        }
    }
    if come < total {
        return Err(format!("it ended after {come} of {total} bytes").into());
    }
    let actual = hasher.finish();
    if actual != *digest {
        return Err(Broken { problem: format!("it hashes to {actual}"), wrong: true });
    }
    // A client that has left has what it asked for.
    hand_over(Bytes::from(waiting), &must_end, pieces)?;
    Ok(true)
}

const GAVE_WAY: &str = "it was slow, and others wait for its place";

/// Sends a piece as soon as the client has taken the one before; `false`: the client has left.
pub(super) fn hand_over(
    piece: Bytes,
    must_end: &impl Fn(bool) -> bool,
    pieces: &mpsc::Sender<io::Result<Bytes>>,
) -> Result<bool, String> {
    let (since, mut pause) = (Instant::now(), budget::STREAM_LOOK_PAUSE_MIN);
    let mut piece = Ok(piece);
    loop {
        match pieces.try_send(piece) {
            Ok(()) => return Ok(true),
            Err(TrySendError::Closed(_)) => return Ok(false),
            Err(TrySendError::Full(_)) if must_end(since.elapsed() >= budget::FILL_DRIP_TIME) => {
                return Err(GAVE_WAY.into());
            }
            Err(TrySendError::Full(kept)) => piece = kept,
        }
        std::thread::sleep(pause);
        pause = (2 * pause).min(budget::STREAM_LOOK_PAUSE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    /// What a client gets of a body that comes in pieces of 10,000 bytes.
    fn passed_on(body: &[u8], digest: &Digest, total: u64) -> (Vec<u8>, Result<bool, String>) {
        let (sender, mut received) = mpsc::channel(1_000);
        let mut left = body;
        let read = |buffer: &mut [u8]| {
            let n = left.len().min(10_000).min(buffer.len());
            let (now, later) = left.split_at(n);
            buffer[..n].copy_from_slice(now);
            left = later;
            Ok(n)
        };
        let outcome = pass_on(read, |_| false, digest, total, &sender).map_err(|broken| broken.problem);
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
        assert_eq!(passed_on(&body, &digest, 100_000), (body.clone(), Ok(true)));
        assert_eq!(passed_on(b"", &Digest::of(Algorithm::Sha256, b""), 0), (Vec::new(), Ok(true)));
        let mut wrong = body.clone();
        wrong[5] ^= 1;
        for (sent, total) in [(&wrong[..], 100_000), (&body[..99_000], 100_000), (&body[..], 99_000)] {
            let (got, outcome) = passed_on(sent, &digest, total);
            assert!(outcome.is_err());
            assert!(got.len() <= 100_000 - 4_096, "{} bytes were passed on", got.len());
        }
    }
}
