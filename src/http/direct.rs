//! Pieces of files that go from the page cache to a client's socket without passing through the process.
//!
//! hyper speaks the protocol and queues the frames of a body as slices. A frame that stands for a piece of a file is a
//! slice of a [`stand_in`], memory that nobody reads, and the piece itself is noted in the [`Outlet`] that the body
//! shares with its connection. When hyper hands that slice over to be written, the connection sends the piece with
//! `sendfile(2)` in its place.
//!
//! Invariant: no byte of the stand-in reaches a client. Every write is compared with what is noted, slice by slice and
//! length by length; where they differ in anything the connection is cut. So a change in how hyper buffers shows as
//! connections that end, never as content that is wrong.
//!
//! Failure. A file that is shorter than it was, or that its disk cannot read, ends the one connection.

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
use std::sync::{Arc, LazyLock, MutexGuard};

/// What stands in for pieces of files: address space that the kernel never has to back, because nobody touches it.
fn stand_in() -> &'static [u8] {
    static STAND_IN: LazyLock<&'static [u8]> =
        LazyLock::new(|| Box::leak(vec![0; budget::DIRECT_PIECE_BYTES].into_boxed_slice()));
    &STAND_IN
}

/// Whether a slice has anything of the stand-in.
fn stands_in(slice: &[u8]) -> bool {
    let (ours, theirs) = (stand_in().as_ptr_range(), slice.as_ptr_range());
    theirs.start < ours.end && ours.start < theirs.end
}

/// The pieces that a connection's body has handed to hyper and that have not been sent.
#[derive(Clone, Default)]
pub(super) struct Outlet(Arc<Mutex<VecDeque<Piece>>>);

/// Is called when a file cannot be read as it should.
pub(super) type Doubt = Arc<dyn Fn() + Send + Sync>;

/// A piece of a file.
#[derive(Clone)]
pub(super) struct Piece {
    pub(super) file: Arc<File>,
    pub(super) offset: u64,
    /// Bytes of it that are left to send.
    pub(super) left: usize,
    pub(super) doubt: Option<Doubt>,
}

/// What a write has to begin with.
pub(super) enum Next {
    /// The first so many slices, as they are.
    Slices(usize),
    /// A piece of a file.
    Piece(Piece),
}

impl Outlet {
    /// Notes `length` bytes of a file, at most [`budget::DIRECT_PIECE_BYTES`], and returns what stands in for them.
    pub(super) fn put(&self, file: Arc<File>, offset: u64, length: usize, doubt: Option<Doubt>) -> Bytes {
        let stand_in = &stand_in()[..length];
        self.pieces().push_back(Piece { file, offset, left: length, doubt });
        Bytes::from_static(stand_in)
    }

    /// Says what a write of `slices` begins with.
    ///
    /// # Errors
    /// Slices and notes differ: then the connection must end.
    pub(super) fn next(&self, slices: &[IoSlice<'_>]) -> io::Result<Next> {
        let pieces = self.pieces();
        let mut expected = pieces.iter();
        let mut first = None;
        for (at, slice) in slices.iter().enumerate() {
            if !stands_in(slice) {
                continue;
            }
            if expected.next().is_none_or(|piece| piece.left != slice.len()) {
                return Err(unlike());
            }
            first.get_or_insert(at);
        }
        if expected.next().is_some() {
            return Err(unlike());
        }
        match (first, pieces.front()) {
            (Some(at), Some(piece)) if slices[..at].iter().all(|slice| slice.is_empty()) => {
                Ok(Next::Piece(piece.clone()))
            }
            (Some(at), _) => Ok(Next::Slices(at)),
            (None, _) => Ok(Next::Slices(slices.len())),
        }
    }

    /// Notes that so many bytes of the first piece have been sent.
    pub(super) fn sent(&self, bytes: usize) {
        let mut pieces = self.pieces();
        let Some(piece) = pieces.front_mut() else { return };
        piece.offset += bytes as u64;
        piece.left = piece.left.saturating_sub(bytes);
        if piece.left == 0 {
            pieces.pop_front();
        }
    }

    fn pieces(&self) -> MutexGuard<'_, VecDeque<Piece>> {
        self.0.lock()
    }
}

fn unlike() -> io::Error {
    io::Error::other("what is to be written is not what the body handed over; this is a bug")
}

/// How much of a piece of a file can be had without waiting for the disk.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Warmth {
    /// So many bytes of it from its start.
    Warm(usize),
    /// Nothing.
    Cold,
    /// Its file system does not say.
    Unknown,
}

/// Looks how much of `length` bytes at `offset` is in the page cache: at a byte of every [`budget::WARMTH_STEP_BYTES`],
/// for pages come and go in runs.
///
/// Which byte is a matter of chance. A look is a use, and pages that were looked at each time would be kept when all
/// around them are dropped, and tell of the past.
pub(super) fn warmth(file: &File, offset: u64, length: usize) -> Warmth {
    let mut warm = 0;
    while warm < length {
        let step = budget::WARMTH_STEP_BYTES.min(length - warm);
        match read_now(file, &mut [0], offset + (warm + any_below(step)) as u64) {
            Ok(1..) => {}
            // A file that ends early is found out where it may be waited for.
            Ok(_) | Err(Errno::AGAIN) if warm == 0 => return Warmth::Cold,
            Ok(_) | Err(Errno::AGAIN) => return Warmth::Warm(warm),
            Err(_) if warm == 0 => return Warmth::Unknown,
            Err(_) => return Warmth::Warm(warm),
        }
        warm += step;
    }
    Warmth::Warm(warm)
}

/// Some number less than `bound`, which is not 0; nothing hangs on which one.
fn any_below(bound: usize) -> usize {
    thread_local!(static STATE: Cell<u32> = const { Cell::new(1) });
    // A linear congruential generator with the constants of Numerical Recipes; its high bits are the better ones.
    let state = STATE.get().wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    STATE.set(state);
    ((u64::from(state) * bound as u64) >> 32) as usize
}

/// Reads what is in the page cache. [`Errno::AGAIN`]: the disk would have to be waited for.
pub(super) fn read_now(file: &File, into: &mut [u8], offset: u64) -> Result<usize, Errno> {
    loop {
        match rustix::io::preadv2(file, &mut [IoSliceMut::new(into)], offset, ReadWriteFlags::NOWAIT) {
            Err(Errno::INTR) => {}
            read => return read,
        }
    }
}

/// Brings a piece of a file into the page cache; waits for the disk.
///
/// # Errors
/// The disk cannot read it, or the file is shorter.
pub(super) fn warm(file: &File, offset: u64, length: usize) -> io::Result<()> {
    // All of it is asked for at once, and then a byte of each page waited for: nothing is copied.
    let _ = rustix::fs::fadvise(file, offset, NonZeroU64::new(length as u64), rustix::fs::Advice::WillNeed);
    let end = offset + length as u64;
    let pages = (offset..end).step_by(budget::PAGE_BYTES_MIN).chain([end - 1]);
    for at in pages {
        file.read_exact_at(&mut [0], at).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::new(e.kind(), "the file is shorter than it was"),
            _ => e,
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outlet_with(lengths: &[usize]) -> (Outlet, Vec<Bytes>) {
        let outlet = Outlet::default();
        let file = Arc::new(File::open("/dev/null").unwrap());
        let frames = lengths.iter().map(|length| outlet.put(Arc::clone(&file), 7, *length, None)).collect();
        (outlet, frames)
    }

    fn next(outlet: &Outlet, slices: &[&[u8]]) -> Result<String, ()> {
        let slices: Vec<IoSlice<'_>> = slices.iter().map(|slice| IoSlice::new(slice)).collect();
        match outlet.next(&slices) {
            Ok(Next::Slices(count)) => Ok(format!("{count} slices")),
            Ok(Next::Piece(piece)) => Ok(format!("{} at {}", piece.left, piece.offset)),
            Err(_) => Err(()),
        }
    }

    #[test]
    fn what_stands_before_a_piece_goes_first_and_then_the_piece() {
        let (outlet, frames) = outlet_with(&[100, 50]);
        assert_eq!(next(&outlet, &[b"header", &frames[0], &frames[1]]), Ok("1 slices".into()));
        assert_eq!(next(&outlet, &[b"", &frames[0], &frames[1]]), Ok("100 at 7".into()));
        outlet.sent(30);
        assert_eq!(next(&outlet, &[&frames[0][30..], &frames[1]]), Ok("70 at 37".into()));
        outlet.sent(70);
        assert_eq!(next(&outlet, &[&frames[1]]), Ok("50 at 7".into()));
        outlet.sent(50);
        assert_eq!(next(&outlet, &[b"the next header", b"and body"]), Ok("2 slices".into()));
    }

    #[test]
    fn a_write_that_is_not_what_was_handed_over_is_refused() {
        let (outlet, frames) = outlet_with(&[100, 50]);
        let copied = vec![0; 150];
        for slices in [
            // hyper has copied the stand-in: zeros that look like any others.
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
                next(&outlet, slices),
                Err(()),
                "{:?}",
                slices.iter().map(|s| s.len()).collect::<Vec<_>>()
            );
        }
        // A slice that nothing is noted for.
        assert_eq!(next(&Outlet::default(), &[&frames[0]]), Err(()));
    }

    #[test]
    fn what_was_read_is_warm_and_what_is_beyond_the_end_is_waited_for() {
        let folder = std::env::temp_dir().join(format!("larder-warmth-{}", std::process::id()));
        std::fs::write(&folder, vec![1; 300_000]).unwrap();
        let file = File::open(&folder).unwrap();
        std::fs::remove_file(&folder).unwrap();
        let found = warmth(&file, 0, 300_000);
        assert!([Warmth::Warm(300_000), Warmth::Unknown].contains(&found), "{found:?}");
        assert!(warmth(&file, 300_000, 10) != Warmth::Warm(10));
        assert!(warm(&file, 0, 300_000).is_ok());
        let short = warm(&file, 299_990, 11).unwrap_err();
        assert_eq!(short.to_string(), "the file is shorter than it was");
    }
}
