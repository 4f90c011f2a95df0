//! Bodies: a few bytes at hand, or a file and how much of it is there.
//!
//! Hits and fills are read by the same code. The file is the buffer: a slow client holds one piece in memory at the most
//! and holds back nobody. Over plain HTTP not even that: a piece goes from the page cache to the socket ([`sendfile`]).
//! Over TLS, and where the file system does not say what is in memory, it is read into a buffer of the [`pool`]. What the
//! page cache does not have is waited for on a thread of its own, so that a cold card delays its readers alone.
//!
//! What cannot be read to its end is an error of the body, which cuts the connection: a body is never completed with
//! wrong or missing bytes.

use super::ServerShared;
use super::admission::AdmissionPermit;
use super::page_cache::{self, PageCacheUse};
use super::pool;
use super::sendfile::{self, OnReadFailure, PageCacheProbe, SendfileQueue};
use crate::budget;
use crate::mirror::{ByteSource, Fill, Mirror, Phase, Pieces, Progress, Refusal};
use crate::oci::{Digest, Repository};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use std::fs::File;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};

/// Turns at reading what the page cache does not have. Who waits for one waits without a thread, so that cold blobs
/// leave threads for the questions about tags.
static COLD_READS: Semaphore = Semaphore::const_new(budget::COLD_READS_MAX);

/// The body of an answer.
pub(crate) struct Body(Inner);

enum Inner {
    Full(Option<Bytes>),
    Stream { left: u64, state: StreamState },
}

/// The reader, given back, and what it read.
type ReadOutcome = (Box<Reader>, io::Result<Bytes>);

enum StreamState {
    Idle(Box<Reader>),
    Reading(Pin<Box<dyn Future<Output = ReadOutcome> + Send>>),
    Ended,
}

impl Body {
    pub(super) fn empty() -> Body {
        Body(Inner::Full(None))
    }

    pub(super) fn full(bytes: Bytes) -> Body {
        Body(Inner::Full((!bytes.is_empty()).then_some(bytes)))
    }

    /// `length` bytes of what `reader` reads.
    pub(super) fn stream(reader: Reader, length: u64) -> Body {
        Body(Inner::Stream { left: length, state: StreamState::Idle(Box::new(reader)) })
    }

    /// Sends pieces of files by `queue`, which must be that of the connection that the body is for.
    pub(super) fn send_by(&mut self, queue: SendfileQueue) {
        if let Inner::Stream { state: StreamState::Idle(reader), .. } = &mut self.0 {
            reader.queue = Some(queue);
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let (left, state) = match &mut self.0 {
            Inner::Full(bytes) => return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Inner::Stream { left: 0, .. } => return Poll::Ready(None),
            Inner::Stream { left, state } => (left, state),
        };
        loop {
            let (reader, read) = match std::mem::replace(state, StreamState::Ended) {
                StreamState::Idle(mut reader) => match reader.read_now(*left) {
                    Some(read) => reader.note(*left, Ok(read)),
                    None => {
                        *state = StreamState::Reading(Box::pin(reader.wait(*left)));
                        continue;
                    }
                },
                StreamState::Reading(mut reading) => match reading.as_mut().poll(cx) {
                    Poll::Pending => {
                        *state = StreamState::Reading(reading);
                        return Poll::Pending;
                    }
                    Poll::Ready(read) => read,
                },
                StreamState::Ended => return Poll::Ready(None),
            };
            return Poll::Ready(Some(read.map(|bytes| {
                *left -= bytes.len() as u64;
                *state = StreamState::Idle(reader);
                Frame::data(bytes)
            })));
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Full(bytes) => bytes.is_none(),
            Inner::Stream { left, .. } => *left == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Inner::Stream { left, .. } => SizeHint::with_exact(*left),
        }
    }
}

/// A file that is whole or grows, and a permit in it.
pub(super) struct Reader {
    from: ReaderSource,
    offset: u64,
    /// By which pieces of files go out as they are, where they may.
    queue: Option<SendfileQueue>,
    /// Held while the file is read, where page cache is scarce.
    cache_use: Option<PageCacheUse>,
    /// Has a blob that cannot be read looked at once more.
    on_failure: Option<OnReadFailure>,
    account: Account,
}

enum ReaderSource {
    Complete(Arc<File>),
    Growing { fill: Arc<Fill>, follow: watch::Receiver<Progress>, stall: Duration },
    Uncached(UncachedStream),
}

/// What comes for one client alone.
struct UncachedStream {
    pieces: Pieces,
    /// Bytes that have come.
    come: u64,
    /// Bytes before the first one that is wanted.
    skip: u64,
    /// The bytes before it as the client has had them, from a download that the disk would not take to its end.
    had: Option<Arc<File>>,
    stall: Duration,
}

impl Reader {
    fn new(from: ReaderSource, offset: u64, account: Account) -> Reader {
        Reader { from, offset, queue: None, cache_use: None, on_failure: None, account }
    }

    /// Reads the blob `digest`; what cannot be read of it is looked at again.
    pub(super) fn complete(file: File, offset: u64, digest: &Digest, account: Account) -> Reader {
        let (mirror, doubted) = (Arc::clone(&account.mirror), digest.clone());
        let on_failure: OnReadFailure = Arc::new(move || mirror.doubt(&doubted));
        Reader {
            on_failure: Some(on_failure),
            ..Reader::new(ReaderSource::Complete(Arc::new(file)), offset, account)
        }
    }

    /// Reads a fill as it grows; a wait of `stall` without a byte is an error.
    pub(super) fn growing(fill: Arc<Fill>, offset: u64, stall: Duration, account: Account) -> Reader {
        let follow = fill.follow();
        Reader::new(ReaderSource::Growing { fill, follow, stall }, offset, account)
    }

    /// Passes on what comes for this client alone; a wait of `stall` without a byte is an error.
    pub(super) fn uncached(pieces: Pieces, offset: u64, stall: Duration, account: Account) -> Reader {
        let stream = UncachedStream { pieces, come: 0, skip: offset, had: None, stall };
        Reader::new(ReaderSource::Uncached(stream), offset, account)
    }

    /// The next bytes, if nothing has to be waited for.
    fn read_now(&mut self, left: u64) -> Option<Bytes> {
        let (file, there) = match &mut self.from {
            ReaderSource::Complete(file) => (Arc::clone(file), left),
            ReaderSource::Uncached(_) => return None,
            ReaderSource::Growing { fill, follow, .. } => {
                let there = follow.borrow_and_update().available.checked_sub(self.offset)?;
                self.account.source = fill.source();
                (fill.file()?, there.min(left))
            }
        };
        self.piece_now(&file, there)
    }

    /// The next of `there` bytes of a file, if the page cache has them.
    fn piece_now(&mut self, file: &Arc<File>, there: u64) -> Option<Bytes> {
        if there == 0 {
            return None;
        }
        if self.cache_use.is_none() {
            self.cache_use = page_cache::track(file);
        }
        // What is small goes out in one packet with its header.
        if let Some(queue) = self.queue.as_ref().filter(|_| there > budget::COPIED_BYTES_MAX) {
            let length = at_most(there, budget::DIRECT_PIECE_BYTES);
            match sendfile::probe_page_cache(file, self.offset, length) {
                PageCacheProbe::Cached(length) => {
                    return Some(queue.push(Arc::clone(file), self.offset, length, self.on_failure.clone()));
                }
                PageCacheProbe::NotCached => return None,
                PageCacheProbe::Unknown => self.queue = None,
            }
        }
        let (want, permit) = (at_most(there, budget::SERVE_CHUNK_BYTES), Arc::clone(&self.account.permit));
        let read = pool::filled(want, permit, |into| sendfile::read_cached(file, into, self.offset));
        read.ok().filter(|bytes| !bytes.is_empty())
    }

    /// The next bytes, however long they have to be waited for.
    async fn wait(mut self: Box<Self>, left: u64) -> ReadOutcome {
        let read = self.read(left).await;
        self.note(left, read)
    }

    /// Enters what was read into the books.
    fn note(mut self: Box<Self>, left: u64, read: io::Result<Bytes>) -> ReadOutcome {
        match &read {
            Ok(bytes) => {
                self.offset += bytes.len() as u64;
                self.account.served += bytes.len() as u64;
                self.account.whole = bytes.len() as u64 == left;
            }
            Err(e) => {
                log::warn!("a client's download was cut at byte {}: {e}", self.offset);
                if let Some(on_failure) = &self.on_failure {
                    on_failure();
                }
            }
        }
        (self, read)
    }

    async fn read(&mut self, left: u64) -> io::Result<Bytes> {
        // What is whole has just been looked at; a download may have brought what is in memory now.
        let (file, there, look) = match &mut self.from {
            ReaderSource::Complete(file) => (Arc::clone(file), left, false),
            ReaderSource::Uncached(stream) => return stream.next(left).await,
            ReaderSource::Growing { fill, follow, stall } => {
                let available = match bytes_after(follow, self.offset, *stall).await {
                    Ok(available) => available,
                    Err(e) => {
                        // A download that only the disk ended goes on without it.
                        let Some(cause) = fill.not_kept() else { return Err(e) };
                        let total = follow.borrow().total.ok_or(e)?;
                        let mirror = Arc::clone(&self.account.mirror);
                        let pieces =
                            mirror.go_on_through(&self.account.repository, fill, total, &cause).await;
                        let pieces = pieces.map_err(|refusal| io::Error::other(refusal.to_string()))?;
                        let (had, stall) = (fill.file(), *stall);
                        let mut stream = UncachedStream { pieces, come: 0, skip: self.offset, had, stall };
                        let read = stream.next(left).await;
                        self.from = ReaderSource::Uncached(stream);
                        return read;
                    }
                };
                self.account.source = fill.source();
                let file = fill.file().ok_or_else(|| io::Error::other("the download has no file yet"))?;
                (file, left.min(available - self.offset), true)
            }
        };
        if look && let Some(bytes) = self.piece_now(&file, there) {
            return Ok(bytes);
        }
        let turn = COLD_READS.acquire().await.map_err(io::Error::other)?;
        let (from_disk, offset, permit) = (Arc::clone(&file), self.offset, Arc::clone(&self.account.permit));
        let (queue, on_failure) = (self.queue.clone(), self.on_failure.clone());
        let read = tokio::task::spawn_blocking(move || match queue {
            Some(queue) if there > budget::COPIED_BYTES_MAX => {
                let length = at_most(there, budget::COLD_PIECE_BYTES);
                sendfile::load(&from_disk, offset, length)?;
                Ok(queue.push(from_disk, offset, length, on_failure))
            }
            _ => pool::filled(at_most(there, budget::SERVE_CHUNK_BYTES), permit, |into| {
                pool::read_at(&from_disk, into, offset)
            }),
        });
        let read = read.await;
        drop(turn);
        read.map_err(io::Error::other)?
    }
}

fn at_most(bytes: u64, most: usize) -> usize {
    usize::try_from(bytes).map_or(most, |bytes| bytes.min(most))
}

impl UncachedStream {
    /// The next bytes, at most `left`.
    async fn next(&mut self, left: u64) -> io::Result<Bytes> {
        loop {
            let received = tokio::time::timeout(self.stall, self.pieces.recv()).await;
            let received =
                received.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no byte came in time"))?;
            let mut piece = received.ok_or(io::ErrorKind::UnexpectedEof)??;
            let at = self.come;
            self.come += piece.len() as u64;
            let skipped =
                usize::try_from(self.skip.saturating_sub(at)).unwrap_or(usize::MAX).min(piece.len());
            let wanted = piece.split_off(skipped);
            if let (Some(had), false) = (&self.had, piece.is_empty()) {
                // The client has had other bytes than the ones that are hashed now: it must not get their end.
                if read_from(had, at, piece.len()).await? != piece {
                    return Err(io::Error::other("upstream sends other bytes than it sent before"));
                }
            }
            if !wanted.is_empty() {
                return Ok(wanted.slice(..wanted.len().min(usize::try_from(left).unwrap_or(usize::MAX))));
            }
        }
    }
}

/// Reads so many bytes, or up to the end of the file, on a thread that may wait for the disk.
async fn read_from(file: &Arc<File>, offset: u64, want: usize) -> io::Result<Vec<u8>> {
    let file = Arc::clone(file);
    let read = move || {
        let mut bytes = vec![0; want];
        let filled = pool::read_at(&file, &mut bytes, offset)?;
        bytes.truncate(filled);
        Ok(bytes)
    };
    tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
}

/// Waits until a fill has bytes after `offset`, and says up to where.
async fn bytes_after(
    follow: &mut watch::Receiver<Progress>,
    offset: u64,
    stall: Duration,
) -> io::Result<u64> {
    loop {
        let progress = follow.borrow_and_update().clone();
        if progress.available > offset {
            return Ok(progress.available);
        }
        // Waiting for a turn is no stall: the downloads before it make progress or end.
        let patience = match progress.phase {
            Phase::Queued => budget::QUEUE_WAIT_MAX,
            // The download finds out first that it stalls, and asks again.
            Phase::Running => stall + budget::STALL_LEEWAY,
            Phase::Parked(_) => stall,
            Phase::Done => return Err(io::Error::other("the download ended before this byte")),
            Phase::Failed(refusal) => return Err(io::Error::other(refusal.to_string())),
        };
        match tokio::time::timeout(patience, follow.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(io::Error::other("the download was given up")),
            Err(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("no byte came for {patience:?}"),
                ));
            }
        }
    }
}

/// Keeps the books of one body: what was served to whom, when the body is dropped, read to its end or not.
pub(super) struct Account {
    /// Held until the last byte that was read is written, too.
    permit: Arc<AdmissionPermit>,
    mirror: Arc<Mirror>,
    client: IpAddr,
    repository: Repository,
    source: ByteSource,
    served: u64,
    whole: bool,
}

impl Account {
    /// Opens the books once there is a permit for the body.
    ///
    /// # Errors
    /// [`Refusal::Busy`] if there is none.
    pub(super) async fn open(
        shared: &ServerShared,
        client: IpAddr,
        repository: &Repository,
        source: ByteSource,
    ) -> Result<Account, Refusal> {
        let permit = shared.admission.body().await?;
        let mirror = &shared.mirror;
        mirror.pulls().begin(client, repository);
        Ok(Account {
            permit: Arc::new(permit),
            mirror: Arc::clone(mirror),
            client,
            repository: repository.clone(),
            source,
            served: 0,
            whole: false,
        })
    }
}

impl Account {
    /// A body that is at hand.
    pub(super) fn paid(mut self, bytes: Bytes) -> Body {
        (self.served, self.whole) = (bytes.len() as u64, true);
        Body::full(bytes)
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.mirror.counters().count_served(self.source, self.served);
        self.mirror.pulls().end(self.client, &self.repository, self.source, self.served, self.whole);
    }
}
