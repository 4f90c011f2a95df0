//! Bodies: a few bytes at hand, or a file and how much of it is there.
//!
//! Hits and fills are read by the same code. The file is the buffer: a slow client holds one piece in memory at the most
//! and holds back nobody. Over plain HTTP not even that: a piece goes from the page cache to the socket ([`direct`]).
//! Over TLS, and where the file system does not say what is in memory, it is read into a buffer of the [`pool`]. What the
//! page cache does not have is waited for on a thread of its own, so that a cold card delays its readers alone.
//!
//! What cannot be read to its end is an error of the body, which cuts the connection: a body is never completed with
//! wrong or missing bytes.

use super::Shared;
use super::admission::Place;
use super::direct::{self, Doubt, Outlet, Warmth};
use super::page_cache::{self, Lent};
use super::pool;
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
    Stream { left: u64, state: State },
}

/// The reader, given back, and what it read.
type Read = (Box<Reader>, io::Result<Bytes>);

enum State {
    Idle(Box<Reader>),
    Reading(Pin<Box<dyn Future<Output = Read> + Send>>),
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
        Body(Inner::Stream { left: length, state: State::Idle(Box::new(reader)) })
    }

    /// Lets pieces of files go out by `outlet`, which must be that of the connection that the body is for.
    pub(super) fn send_by(&mut self, outlet: &Outlet) {
        if let Inner::Stream { state: State::Idle(reader), .. } = &mut self.0 {
            reader.outlet = Some(outlet.clone());
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
            let (reader, read) = match std::mem::replace(state, State::Ended) {
                State::Idle(mut reader) => match reader.read_now(*left) {
                    Some(read) => reader.note(*left, Ok(read)),
                    None => {
                        *state = State::Reading(Box::pin(reader.wait(*left)));
                        continue;
                    }
                },
                State::Reading(mut reading) => match reading.as_mut().poll(cx) {
                    Poll::Pending => {
                        *state = State::Reading(reading);
                        return Poll::Pending;
                    }
                    Poll::Ready(read) => read,
                },
                State::Ended => return Poll::Ready(None),
            };
            return Poll::Ready(Some(read.map(|bytes| {
                *left -= bytes.len() as u64;
                *state = State::Idle(reader);
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

/// A file that is whole or grows, and a place in it.
pub(super) struct Reader {
    from: From,
    offset: u64,
    /// By which pieces of files go out as they are, where they may.
    outlet: Option<Outlet>,
    /// Held while the file is read, where page cache is scarce.
    lent: Option<Lent>,
    /// Has a blob that cannot be read looked at once more.
    doubt: Option<Doubt>,
    account: Account,
}

enum From {
    Whole(Arc<File>),
    Growing { fill: Arc<Fill>, follow: watch::Receiver<Progress>, stall: Duration },
    Through(Through),
}

/// What comes for one client alone.
struct Through {
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
    fn new(from: From, offset: u64, account: Account) -> Reader {
        Reader { from, offset, outlet: None, lent: None, doubt: None, account }
    }

    /// Reads the blob `digest`; what cannot be read of it is looked at again.
    pub(super) fn whole(file: File, offset: u64, digest: &Digest, account: Account) -> Reader {
        let (mirror, doubted) = (Arc::clone(&account.mirror), digest.clone());
        let doubt: Doubt = Arc::new(move || mirror.doubt(&doubted));
        Reader { doubt: Some(doubt), ..Reader::new(From::Whole(Arc::new(file)), offset, account) }
    }

    /// Reads a fill as it grows; a wait of `stall` without a byte is an error.
    pub(super) fn growing(fill: Arc<Fill>, offset: u64, stall: Duration, account: Account) -> Reader {
        let follow = fill.follow();
        Reader::new(From::Growing { fill, follow, stall }, offset, account)
    }

    /// Passes on what comes for this client alone; a wait of `stall` without a byte is an error.
    pub(super) fn through(pieces: Pieces, offset: u64, stall: Duration, account: Account) -> Reader {
        let through = Through { pieces, come: 0, skip: offset, had: None, stall };
        Reader::new(From::Through(through), offset, account)
    }

    /// The next bytes, if nothing has to be waited for.
    fn read_now(&mut self, left: u64) -> Option<Bytes> {
        let (file, there) = match &mut self.from {
            From::Whole(file) => (Arc::clone(file), left),
            From::Through(_) => return None,
            From::Growing { fill, follow, .. } => {
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
        if self.lent.is_none() {
            self.lent = page_cache::lend(file);
        }
        // What is small goes out in one packet with its header.
        if let Some(outlet) = self.outlet.as_ref().filter(|_| there > budget::COPIED_BYTES_MAX) {
            let length = at_most(there, budget::DIRECT_PIECE_BYTES);
            match direct::warmth(file, self.offset, length) {
                Warmth::Warm(length) => {
                    return Some(outlet.put(Arc::clone(file), self.offset, length, self.doubt.clone()));
                }
                Warmth::Cold => return None,
                Warmth::Unknown => self.outlet = None,
            }
        }
        let (want, place) = (at_most(there, budget::SERVE_CHUNK_BYTES), Arc::clone(&self.account.place));
        let read = pool::filled(want, place, |into| direct::read_now(file, into, self.offset));
        read.ok().filter(|bytes| !bytes.is_empty())
    }

    /// The next bytes, however long they have to be waited for.
    async fn wait(mut self: Box<Self>, left: u64) -> Read {
        let read = self.read(left).await;
        self.note(left, read)
    }

    /// Enters what was read into the books.
    fn note(mut self: Box<Self>, left: u64, read: io::Result<Bytes>) -> Read {
        match &read {
            Ok(bytes) => {
                self.offset += bytes.len() as u64;
                self.account.served += bytes.len() as u64;
                self.account.whole = bytes.len() as u64 == left;
            }
            Err(e) => {
                log::warn!("a client's download was cut at byte {}: {e}", self.offset);
                if let Some(doubt) = &self.doubt {
                    doubt();
                }
            }
        }
        (self, read)
    }

    async fn read(&mut self, left: u64) -> io::Result<Bytes> {
        // What is whole has just been looked at; a download may have brought what is in memory now.
        let (file, there, look) = match &mut self.from {
            From::Whole(file) => (Arc::clone(file), left, false),
            From::Through(through) => return through.next(left).await,
            From::Growing { fill, follow, stall } => {
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
                        let mut through = Through { pieces, come: 0, skip: self.offset, had, stall };
                        let read = through.next(left).await;
                        self.from = From::Through(through);
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
        let (from_disk, offset, place) = (Arc::clone(&file), self.offset, Arc::clone(&self.account.place));
        let (outlet, doubt) = (self.outlet.clone(), self.doubt.clone());
        let read = tokio::task::spawn_blocking(move || match outlet {
            Some(outlet) if there > budget::COPIED_BYTES_MAX => {
                let length = at_most(there, budget::COLD_PIECE_BYTES);
                direct::warm(&from_disk, offset, length)?;
                Ok(outlet.put(from_disk, offset, length, doubt))
            }
            _ => pool::filled(at_most(there, budget::SERVE_CHUNK_BYTES), place, |into| {
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

impl Through {
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
    place: Arc<Place>,
    mirror: Arc<Mirror>,
    client: IpAddr,
    repository: Repository,
    source: ByteSource,
    served: u64,
    whole: bool,
}

impl Account {
    /// Opens the books once there is a place for the body.
    ///
    /// # Errors
    /// [`Refusal::Busy`] if there is none.
    pub(super) async fn open(
        shared: &Shared,
        client: IpAddr,
        repository: &Repository,
        source: ByteSource,
    ) -> Result<Account, Refusal> {
        let place = shared.admission.body().await?;
        let mirror = &shared.mirror;
        mirror.pulls().begin(client, repository);
        Ok(Account {
            place: Arc::new(place),
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
