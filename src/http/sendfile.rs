//! Pieces of files that go from the page cache to a client's socket without passing through the process.
//!
//! hyper speaks the protocol and queues the frames of a body as slices. For a piece of a file the body gives hyper a slice
//! of a [`placeholder`], memory that nobody reads, and adds the piece to the [`SendfileQueue`] that it shares with its
//! connection. When hyper writes that slice, the connection sends the piece with `sendfile(2)` instead.
//!
//! Invariant: no byte of the placeholder reaches a client. Every write is compared with the queue, slice by slice and
//! length by length; on any difference the connection is cut. So a change in how hyper buffers shows as connections that
//! end, never as wrong content.
//!
//! Failure. A file that is shorter than before, or that the disk cannot read, ends the one connection.

use super::pool;
use crate::budget;
use crate::sync::Mutex;
use bytes::Bytes;
use rustix::io::{Errno, ReadWriteFlags};
use std::cell::Cell;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, LazyLock};

/// Stands for pieces of files: address space that the kernel never has to back, because nobody touches it.
fn placeholder() -> &'static [u8] {
    static PLACEHOLDER: LazyLock<&'static [u8]> =
        LazyLock::new(|| Box::leak(vec![0; budget::DIRECT_PIECE_BYTES].into_boxed_slice()));
    &PLACEHOLDER
}

/// Whether a slice has any byte of the placeholder.
fn overlaps_placeholder(slice: &[u8]) -> bool {
    let (ours, theirs) = (placeholder().as_ptr_range(), slice.as_ptr_range());
    theirs.start < ours.end && ours.start < theirs.end
}

/// The pieces of files that a connection has to send, in their order.
#[derive(Clone, Default)]
pub(super) struct SendfileQueue(Arc<Mutex<VecDeque<FilePiece>>>);

/// Is called when a file cannot be read.
pub(super) type OnReadFailure = Option<Arc<dyn Fn() + Send + Sync>>;

/// A piece of a file.
#[derive(Clone)]
pub(super) struct FilePiece {
    pub(super) file: Arc<File>,
    pub(super) offset: u64,
    /// Bytes of it that are left to send.
    pub(super) left: usize,
    pub(super) on_failure: OnReadFailure,
}

/// What a write begins with.
pub(super) enum NextWrite {
    /// The first so many slices, as they are.
    Slices(usize),
    /// A piece of a file.
    Piece(FilePiece),
}

impl SendfileQueue {
    /// Adds `length` bytes of a file, at most [`budget::DIRECT_PIECE_BYTES`], and returns the placeholder for them.
    pub(super) fn push(
        &self,
        file: Arc<File>,
        offset: u64,
        length: usize,
        on_failure: OnReadFailure,
    ) -> Bytes {
        let placeholder = &placeholder()[..length];
        self.0.lock().push_back(FilePiece { file, offset, left: length, on_failure });
        Bytes::from_static(placeholder)
    }

    /// Says what a write of `slices` begins with.
    ///
    /// # Errors
    /// The slices are not those of the queue: then the connection must end.
    pub(super) fn next_write(&self, slices: &[IoSlice<'_>]) -> io::Result<NextWrite> {
        let pieces = self.0.lock();
        let mut expected = pieces.iter();
        let mut first = None;
        for (at, slice) in slices.iter().enumerate() {
            if !overlaps_placeholder(slice) {
                continue;
            }
            if expected.next().is_none_or(|piece| piece.left != slice.len()) {
                return Err(mismatch());
            }
            first.get_or_insert(at);
        }
        if expected.next().is_some() {
            return Err(mismatch());
        }
        match (first, pieces.front()) {
            (Some(at), Some(piece)) if slices[..at].iter().all(|slice| slice.is_empty()) => {
                Ok(NextWrite::Piece(piece.clone()))
            }
            (Some(at), _) => Ok(NextWrite::Slices(at)),
            (None, _) => Ok(NextWrite::Slices(slices.len())),
        }
    }

    /// Removes so many bytes of the first piece, which have been sent.
    pub(super) fn sent(&self, bytes: usize) {
        let mut pieces = self.0.lock();
        let Some(piece) = pieces.front_mut() else { return };
        piece.offset += bytes as u64;
        piece.left = piece.left.saturating_sub(bytes);
        if piece.left == 0 {
            pieces.pop_front();
        }
    }
}

fn mismatch() -> io::Error {
    io::Error::other("the bytes to be written are not those of the body; this is a bug")
}

/// How much of a piece of a file the page cache has.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PageCacheProbe {
    /// So many bytes of it from its start.
    Cached(usize),
    /// Nothing.
    NotCached,
    /// The file system cannot tell.
    Unknown,
}

/// Probes how much of `length` bytes at `offset` is in the page cache: one byte of every
/// [`budget::PAGE_CACHE_PROBE_STEP_BYTES`], because pages come and go in runs.
///
/// The byte is chosen at random. A probe counts as a use: the kernel would keep a page that is probed each time when all
/// pages around it are dropped, and the probe would find that one.
pub(super) fn probe_page_cache(file: &File, offset: u64, length: usize) -> PageCacheProbe {
    let mut cached = 0;
    while cached < length {
        let step = budget::PAGE_CACHE_PROBE_STEP_BYTES.min(length - cached);
        match read_cached(file, &mut [0], offset + (cached + random_below(step)) as u64) {
            Ok(1..) => {}
            // A file that ends early is detected by the read that may wait for the disk.
            Ok(_) | Err(Errno::AGAIN) if cached == 0 => return PageCacheProbe::NotCached,
            Err(_) if cached == 0 => return PageCacheProbe::Unknown,
            Ok(_) | Err(_) => break,
        }
        cached += step;
    }
    PageCacheProbe::Cached(cached)
}

/// Some number less than `bound`, which is not 0; its quality does not matter.
fn random_below(bound: usize) -> usize {
    thread_local!(static STATE: Cell<u32> = const { Cell::new(1) });
    // A linear congruential generator with the constants of Numerical Recipes; its high bits are the better ones.
    let state = STATE.get().wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    STATE.set(state);
    ((u64::from(state) * bound as u64) >> 32) as usize
}

/// Reads bytes that the page cache has.
///
/// # Errors
/// [`Errno::AGAIN`] if the read would have to wait for the disk; else what the file system answers.
pub(super) fn read_cached(file: &File, into: &mut [u8], offset: u64) -> Result<usize, Errno> {
    loop {
        match rustix::io::preadv2(file, &mut [IoSliceMut::new(into)], offset, ReadWriteFlags::NOWAIT) {
            Err(Errno::INTR) => {}
            read => return read,
        }
    }
}

/// Loads a piece of a file into the page cache; waits for the disk.
///
/// # Errors
/// The disk cannot read it, or the file is shorter.
pub(super) fn load(file: &File, offset: u64, length: usize) -> io::Result<()> {
    // The kernel reads all of it ahead, and then one byte of each page is read: nothing is copied.
    let _ = rustix::fs::fadvise(file, offset, NonZeroU64::new(length as u64), rustix::fs::Advice::WillNeed);
    let end = offset + length as u64;
    let pages = (offset..end).step_by(budget::PAGE_BYTES_MIN).chain([end - 1]);
    for at in pages {
        file.read_exact_at(&mut [0], at).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => pool::shorter(),
            _ => e,
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue_with(lengths: &[usize]) -> (SendfileQueue, Vec<Bytes>) {
        let queue = SendfileQueue::default();
        let file = Arc::new(File::open("/dev/null").unwrap());
        let frames = lengths.iter().map(|length| queue.push(Arc::clone(&file), 7, *length, None)).collect();
        (queue, frames)
    }

    fn next(queue: &SendfileQueue, slices: &[&[u8]]) -> Result<String, ()> {
        let slices: Vec<IoSlice<'_>> = slices.iter().map(|slice| IoSlice::new(slice)).collect();
        match queue.next_write(&slices) {
            Ok(NextWrite::Slices(count)) => Ok(format!("{count} slices")),
            Ok(NextWrite::Piece(piece)) => Ok(format!("{} at {}", piece.left, piece.offset)),
            Err(_) => Err(()),
        }
    }

    #[test]
    fn bytes_before_a_piece_are_sent_first_and_then_the_piece() {
        let (queue, frames) = queue_with(&[100, 50]);
        assert_eq!(next(&queue, &[b"header", &frames[0], &frames[1]]), Ok("1 slices".into()));
        assert_eq!(next(&queue, &[b"", &frames[0], &frames[1]]), Ok("100 at 7".into()));
        queue.sent(30);
        assert_eq!(next(&queue, &[&frames[0][30..], &frames[1]]), Ok("70 at 37".into()));
        queue.sent(70);
        assert_eq!(next(&queue, &[&frames[1]]), Ok("50 at 7".into()));
        queue.sent(50);
        assert_eq!(next(&queue, &[b"the next header", b"and body"]), Ok("2 slices".into()));
    }

    #[test]
    fn a_write_that_does_not_match_the_queue_is_refused() {
        let (queue, frames) = queue_with(&[100, 50]);
        let copied = vec![0; 150];
        for slices in [
            // hyper has copied the placeholder: zeros that look like any others.
            &[b"header".as_slice(), &copied] as &[&[u8]],
            &[b"header"],
            // One is missing, one is short, the order is wrong, one comes twice.
            &[&frames[0]],
            &[&frames[0][1..], &frames[1]],
            &[&frames[0], &frames[1][..49]],
            &[&frames[1], &frames[0]],
            &[&frames[0], &frames[1], &frames[1]],
        ] {
            assert_eq!(
                next(&queue, slices),
                Err(()),
                "{:?}",
                slices.iter().map(|s| s.len()).collect::<Vec<_>>()
            );
        }
        // A slice of the placeholder that is not in the queue.
        assert_eq!(next(&SendfileQueue::default(), &[&frames[0]]), Err(()));
    }

    #[test]
    fn bytes_that_were_read_are_cached_and_bytes_beyond_the_end_are_not() {
        let folder = std::env::temp_dir().join(format!("larder-page-cache-{}", std::process::id()));
        std::fs::write(&folder, vec![1; 300_000]).unwrap();
        let file = File::open(&folder).unwrap();
        std::fs::remove_file(&folder).unwrap();
        let found = probe_page_cache(&file, 0, 300_000);
        assert!([PageCacheProbe::Cached(300_000), PageCacheProbe::Unknown].contains(&found), "{found:?}");
        assert!(probe_page_cache(&file, 300_000, 10) != PageCacheProbe::Cached(10));
        assert!(load(&file, 0, 300_000).is_ok());
        let short = load(&file, 299_990, 11).unwrap_err();
        assert_eq!(short.to_string(), "the file is shorter than it was");
    }
}
