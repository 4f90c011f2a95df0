//! Bodies: a few bytes in memory, or a file of which some bytes may still be missing.
//!
//! Hits and fills are read by the same code. The file is the buffer: a slow client holds at most one piece in memory and
//! delays nobody. Over plain HTTP not even that: a piece goes from the page cache to the socket ([`sendfile`]). Over TLS,
//! and where the file system cannot tell what the page cache has, it is read into a buffer of the [`pool`]. Bytes that the
//! page cache does not have are read on a blocking thread, so that a slow card delays only its own readers.
//!
//! A read that fails is an error of the body, which cuts the connection: a body never ends with wrong or missing bytes.

use super::ServerShared;
use super::admission::{AdmissionPermit, RequestUnderWay};
use super::growing::{Growing, stalled};
use super::page_cache::{self, PageCacheUse};
use super::pool;
use super::sendfile::{self, OnReadFailure, PageCacheProbe, SendfileQueue};
use crate::budget;
use crate::mirror::{ByteSource, Fill, Mirror, Pieces, Refusal};
use crate::oci::{Digest, Repository};
use crate::places::for_client;
use crate::sync;
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
use tokio::sync::Semaphore;

/// Permits to read what the page cache does not have. A reader waits for one without a thread, so that cold blobs leave
/// threads for requests about tags.
static COLD_READS: Semaphore = Semaphore::const_new(budget::COLD_READS_MAX);

/// The body of an answer.
pub(crate) struct Body(Inner, Option<RequestUnderWay>);

enum Inner {
    Full(Option<Bytes>),
    Stream { left: u64, state: StreamState },
}

/// The reader, and what it read.
type ReadOutcome = (Box<Reader>, io::Result<Bytes>);

enum StreamState {
    Idle(Box<Reader>),
    Reading(Pin<Box<dyn Future<Output = ReadOutcome> + Send>>),
    Ended,
}

impl Body {
    pub(super) fn full(bytes: Bytes) -> Body {
        Body(Inner::Full((!bytes.is_empty()).then_some(bytes)), None)
    }

    /// `length` bytes of what `reader` reads.
    pub(super) fn stream(reader: Reader, length: u64) -> Body {
        Body(Inner::Stream { left: length, state: StreamState::Idle(Box::new(reader)) }, None)
    }

    /// Has the request count as under way until the body is dropped.
    pub(super) fn hold(&mut self, request: RequestUnderWay) {
        self.1 = Some(request);
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

/// Where the bytes of a body come from, and the next one to read.
pub(super) struct Reader {
    from: ReaderSource,
    /// The first byte that the client wants.
    first: u64,
    offset: u64,
    /// Sends pieces of files, if the connection can.
    queue: Option<SendfileQueue>,
    /// Held while the file is read, where page cache is scarce.
    cache_use: Option<PageCacheUse>,
    /// Has the mirror verify a blob that cannot be read.
    on_failure: OnReadFailure,
    account: Account,
}

enum ReaderSource {
    Complete(Arc<File>),
    Growing(Growing),
    Uncached(UncachedStream),
    /// Bytes from the first one on that the client wants, and the download that has what they do not bring.
    Early(UncachedStream, Growing),
}

/// A download for this client alone, which is not stored.
struct UncachedStream {
    pieces: Pieces,
    /// Bytes received.
    received: u64,
    /// Bytes before the first one that the client wants.
    skip: u64,
    /// Those bytes as the client has them already, from a download that the disk could not store to its end.
    sent: Option<Arc<File>>,
    stall: Duration,
}

impl Reader {
    fn new(from: ReaderSource, offset: u64, account: Account) -> Reader {
        Reader { from, first: offset, offset, queue: None, cache_use: None, on_failure: None, account }
    }

    /// Reads the blob `digest`; the mirror verifies it again if a read fails.
    pub(super) fn complete(file: File, offset: u64, digest: &Digest, account: Account) -> Reader {
        let (mirror, digest) = (Arc::clone(&account.mirror), digest.clone());
        let on_failure: OnReadFailure = Some(Arc::new(move || mirror.reread(&digest)));
        let reader = Reader::new(ReaderSource::Complete(Arc::new(file)), offset, account);
        Reader { on_failure, ..reader }
    }

    /// Reads a fill as it grows; a wait of `stall` without a byte is an error.
    pub(super) fn growing(fill: Arc<Fill>, offset: u64, stall: Duration, account: Account) -> Reader {
        Reader::new(ReaderSource::Growing(Growing::new(fill, stall)), offset, account)
    }

    /// Passes on a download that is not stored; a wait of `stall` without a byte is an error.
    pub(super) fn uncached(pieces: Pieces, offset: u64, stall: Duration, account: Account) -> Reader {
        let stream = UncachedStream { pieces, received: 0, skip: offset, sent: None, stall };
        Reader::new(ReaderSource::Uncached(stream), offset, account)
    }

    /// Passes on a part that is asked for beside a fill, and goes on with that where the part ends early.
    pub(super) fn early(
        pieces: Pieces,
        fill: Arc<Fill>,
        offset: u64,
        stall: Duration,
        account: Account,
    ) -> Reader {
        let stream = UncachedStream { pieces, received: 0, skip: 0, sent: None, stall };
        Reader::new(ReaderSource::Early(stream, Growing::new(fill, stall)), offset, account)
    }

    /// The next bytes, if they can be read without waiting.
    fn read_now(&mut self, left: u64) -> Option<Bytes> {
        let (file, available) = match &mut self.from {
            ReaderSource::Complete(file) => (Arc::clone(file), left),
            ReaderSource::Uncached(_) | ReaderSource::Early(..) => return None,
            ReaderSource::Growing(growing) => {
                let available = growing.available_now()?.checked_sub(self.offset)?;
                self.account.source = growing.fill.source();
                (growing.fill.file()?, available.min(left))
            }
        };
        self.piece_now(&file, available)
    }

    /// The next of `available` bytes of a file, if the page cache has them.
    fn piece_now(&mut self, file: &Arc<File>, available: u64) -> Option<Bytes> {
        if available == 0 {
            return None;
        }
        if self.cache_use.is_none() {
            self.cache_use = page_cache::track(file);
        }
        // A small body goes out in one packet with its header.
        if let Some(queue) = self.queue.as_ref().filter(|_| available > budget::COPIED_BYTES_MAX) {
            let length = at_most(available, budget::DIRECT_PIECE_BYTES);
            match sendfile::probe_page_cache(file, self.offset, length) {
                PageCacheProbe::Cached(length) => {
                    return Some(queue.push(Arc::clone(file), self.offset, length, self.on_failure.clone()));
                }
                PageCacheProbe::NotCached => return None,
                PageCacheProbe::Unknown => self.queue = None,
            }
        }
        let (want, permit) =
            (at_most(available, budget::SERVE_CHUNK_BYTES), Arc::clone(&self.account.permit));
        let read = pool::filled(want, permit, |into| sendfile::read_cached(file, into, self.offset));
        read.ok().filter(|bytes| !bytes.is_empty())
    }

    /// The next bytes, however long that takes.
    async fn wait(mut self: Box<Self>, left: u64) -> ReadOutcome {
        let read = self.read(left).await;
        self.note(left, read)
    }

    /// Counts what was read, or reports why it could not be.
    fn note(mut self: Box<Self>, left: u64, read: io::Result<Bytes>) -> ReadOutcome {
        match &read {
            Ok(bytes) => {
                self.offset += bytes.len() as u64;
                self.account.served += bytes.len() as u64;
                self.account.complete = bytes.len() as u64 == left;
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
        let (file, available) = loop {
            let waited = match &mut self.from {
                ReaderSource::Complete(file) => break (Arc::clone(file), left),
                ReaderSource::Uncached(stream) => return stream.next(left).await,
                ReaderSource::Early(stream, _) => match stream.next(left).await {
                    Ok(bytes) => return Ok(bytes),
                    Err(problem) => Err(problem),
                },
                ReaderSource::Growing(growing) => {
                    let waited = growing.available(self.offset, &self.account).await;
                    waited.map(|available| (growing.fill.file(), available, growing.fill.source()))
                }
            };
            match waited {
                Ok((file, available, source)) => {
                    self.account.source = source;
                    let file = file.ok_or_else(|| io::Error::other("the download has no file yet"))?;
                    let available = left.min(available - self.offset);
                    // The page cache had nothing of a complete file just now; of this one it may have the new bytes.
                    if let Some(bytes) = self.piece_now(&file, available) {
                        return Ok(bytes);
                    }
                    break (file, available);
                }
                Err(problem) => self.go_on_elsewhere(problem).await?,
            }
        };
        let reading = COLD_READS.acquire().await.map_err(io::Error::other)?;
        let (offset, permit) = (self.offset, Arc::clone(&self.account.permit));
        let (queue, on_failure) = (self.queue.clone(), self.on_failure.clone());
        let read = sync::blocking(move || match queue {
            Some(queue) if available > budget::COPIED_BYTES_MAX => {
                let length = at_most(available, budget::COLD_PIECE_BYTES);
                sendfile::load(&file, offset, length)?;
                Ok(queue.push(file, offset, length, on_failure))
            }
            _ => pool::filled(at_most(available, budget::SERVE_CHUNK_BYTES), permit, |into| {
                pool::read_at(&file, into, offset)
            }),
        });
        let read = read.await;
        drop(reading);
        read?
    }

    /// Goes on after a fill has failed with `problem`: without the disk, if only the disk was to blame, or with a download of
    /// its own repository, if it was another's.
    async fn go_on_elsewhere(&mut self, problem: io::Error) -> io::Result<()> {
        if let ReaderSource::Early(_, growing) = &self.from {
            // Of another repository's download this one has not been shown to hold it.
            if !growing.fill.is_of(&self.account.repository) {
                return Err(problem);
            }
            let growing = Growing::new(Arc::clone(&growing.fill), growing.stall());
            self.from = ReaderSource::Growing(growing);
            return Ok(());
        }
        let ReaderSource::Growing(growing) = &self.from else { return Err(problem) };
        let Account { mirror, repository, client, .. } = &self.account;
        let Some(total) = growing.total() else { return Err(problem) };
        let Some(cause) = growing.fill.not_stored() else {
            let own = for_client(*client, mirror.own_fill(repository, &growing.fill)).await.ok_or(problem)?;
            let own = growing.go_on_with(own, self.first, total);
            self.from = ReaderSource::Growing(own);
            return Ok(());
        };
        let pieces = mirror.resume_uncached(repository, &growing.fill, total, &cause);
        let pieces = for_client(*client, pieces).await;
        let pieces = pieces.map_err(|refusal| io::Error::other(refusal.to_string()))?;
        let (sent, stall) = (growing.sent(), growing.stall());
        let stream = UncachedStream { pieces, received: 0, skip: self.offset, sent, stall };
        self.from = ReaderSource::Uncached(stream);
        Ok(())
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
            let received = received.map_err(|_| stalled(self.stall))?;
            let mut piece = received.ok_or(io::ErrorKind::UnexpectedEof)??;
            let at = self.received;
            self.received += piece.len() as u64;
            let wanted = piece.split_off(at_most(self.skip.saturating_sub(at), piece.len()));
            // If the client has other bytes than the ones that are hashed now, it must not get their end.
            if let (Some(sent), false) = (&self.sent, piece.is_empty())
                && read_from(sent, at, piece.len()).await? != piece
            {
                return Err(io::Error::other("upstream sends other bytes than it sent before"));
            }
            if !wanted.is_empty() {
                return Ok(wanted.slice(..at_most(left, wanted.len())));
            }
        }
    }
}

/// Reads so many bytes, or up to the end of the file, on a thread that may wait for the disk.
pub(super) async fn read_from(file: &Arc<File>, offset: u64, want: usize) -> io::Result<Vec<u8>> {
    let file = Arc::clone(file);
    let read = move || {
        let mut bytes = vec![0; want];
        let filled = pool::read_at(&file, &mut bytes, offset)?;
        bytes.truncate(filled);
        Ok(bytes)
    };
    sync::blocking(read).await?
}

/// Counts what one body serves to whom, and reports it when the body is dropped, complete or not.
pub(super) struct Account {
    /// Held until the last byte that was read is written.
    permit: Arc<AdmissionPermit>,
    mirror: Arc<Mirror>,
    client: IpAddr,
    repository: Repository,
    source: ByteSource,
    served: u64,
    complete: bool,
}

impl Account {
    /// Waits for a permit for the body.
    ///
    /// # Errors
    /// [`Refusal::Busy`] if none is free before long.
    pub(super) async fn open(
        shared: &ServerShared,
        client: IpAddr,
        repository: &Repository,
        source: ByteSource,
    ) -> Result<Account, Refusal> {
        let permit = shared.admission.body(client).await?;
        let mirror = &shared.mirror;
        mirror.pulls().begin(client, repository);
        Ok(Account {
            permit: Arc::new(permit),
            mirror: Arc::clone(mirror),
            client,
            repository: repository.clone(),
            source,
            served: 0,
            complete: false,
        })
    }

    pub(super) fn mirror(&self) -> &Mirror {
        &self.mirror
    }

    pub(super) fn repository(&self) -> &Repository {
        &self.repository
    }

    /// A body that is in memory.
    pub(super) fn in_memory(mut self, bytes: Bytes) -> Body {
        (self.served, self.complete) = (bytes.len() as u64, true);
        Body::full(bytes)
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.mirror.counters().count_served(self.source, self.served);
        self.mirror.pulls().end(self.client, &self.repository, self.source, self.served, self.complete);
    }
}
