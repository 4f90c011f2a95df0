//! Bodies: a few bytes at hand, or a file and how much of it is there.
//!
//! Hits and fills are read by the same code. The file is the buffer: a slow client holds one chunk in memory and
//! nothing else, and holds back nobody. What cannot be read to its end is an error of the body, which cuts the
//! connection: a body is never completed with wrong or missing bytes.

use super::Shared;
use super::admission::Place;
use crate::budget;
use crate::mirror::{ByteSource, Fill, Mirror, Phase, Pieces, Progress, Refusal};
use crate::oci::{Digest, Repository};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use std::fs::File;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::watch;

/// The body of an answer.
pub(crate) struct Body(Inner);

enum Inner {
    Full(Option<Bytes>),
    Stream { left: u64, state: State },
}

/// The reader, given back, and what it read.
type Piece = (Box<Reader>, io::Result<Bytes>);

enum State {
    Idle(Box<Reader>),
    Reading(Pin<Box<dyn Future<Output = Piece> + Send>>),
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
            match std::mem::replace(state, State::Ended) {
                State::Idle(reader) => *state = State::Reading(Box::pin(reader.next(*left))),
                State::Reading(mut reading) => match reading.as_mut().poll(cx) {
                    Poll::Pending => {
                        *state = State::Reading(reading);
                        return Poll::Pending;
                    }
                    Poll::Ready((reader, Ok(bytes))) => {
                        *left -= bytes.len() as u64;
                        *state = State::Idle(reader);
                        return Poll::Ready(Some(Ok(Frame::data(bytes))));
                    }
                    Poll::Ready((_, Err(e))) => return Poll::Ready(Some(Err(e))),
                },
                State::Ended => return Poll::Ready(None),
            }
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
    account: Account,
}

enum From {
    Whole { file: Arc<File>, digest: Digest },
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
    /// Reads the blob `digest`; what cannot be read of it is looked at again.
    pub(super) fn whole(file: File, offset: u64, digest: &Digest, account: Account) -> Reader {
        Reader { from: From::Whole { file: Arc::new(file), digest: digest.clone() }, offset, account }
    }

    /// Reads a fill as it grows; a wait of `stall` without a byte is an error.
    pub(super) fn growing(fill: Arc<Fill>, offset: u64, stall: Duration, account: Account) -> Reader {
        let follow = fill.follow();
        Reader { from: From::Growing { fill, follow, stall }, offset, account }
    }

    /// Passes on what comes for this client alone; a wait of `stall` without a byte is an error.
    pub(super) fn through(pieces: Pieces, offset: u64, stall: Duration, account: Account) -> Reader {
        let through = Through { pieces, come: 0, skip: offset, had: None, stall };
        Reader { from: From::Through(through), offset, account }
    }

    async fn next(mut self: Box<Self>, left: u64) -> (Box<Self>, io::Result<Bytes>) {
        let read = self.read(left).await;
        match &read {
            Ok(bytes) => {
                self.offset += bytes.len() as u64;
                self.account.served += bytes.len() as u64;
                self.account.whole = bytes.len() as u64 == left;
            }
            Err(e) => {
                log::warn!("a client's download was cut at byte {}: {e}", self.offset);
                if let From::Whole { digest, .. } = &self.from {
                    self.account.mirror.doubt(digest);
                }
            }
        }
        (self, read)
    }

    async fn read(&mut self, left: u64) -> io::Result<Bytes> {
        let (file, available) = match &mut self.from {
            From::Whole { file, .. } => (Arc::clone(file), u64::MAX),
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
                (file, available)
            }
        };
        let want = left.min(available - self.offset).min(budget::SERVE_CHUNK_BYTES as u64);
        let (want, offset) = (usize::try_from(want).unwrap_or(budget::SERVE_CHUNK_BYTES), self.offset);
        read_from(&file, offset, want).await
    }
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
async fn read_from(file: &Arc<File>, offset: u64, want: usize) -> io::Result<Bytes> {
    let file = Arc::clone(file);
    tokio::task::spawn_blocking(move || read_at(&file, offset, want)).await.map_err(io::Error::other)?
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
            Phase::Running | Phase::Parked(_) => stall,
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

fn read_at(file: &File, offset: u64, want: usize) -> io::Result<Bytes> {
    let mut chunk = vec![0; want];
    let mut filled = 0;
    while filled < want {
        match file.read_at(&mut chunk[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    if filled == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than it was"));
    }
    chunk.truncate(filled);
    Ok(Bytes::from(chunk))
}

/// Keeps the books of one body: what was served to whom, when the body is dropped, read to its end or not.
pub(super) struct Account {
    _place: Place,
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
            _place: place,
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
