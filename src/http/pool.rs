//! Buffers for bodies that have to pass through the process: over TLS, and from file systems that do not say what is in
//! memory.
//!
//! A buffer is used again as soon as what was in it has been written, so that reading costs no fresh memory, which the
//! kernel would have to clear each time. Only as many are kept as there are bodies at a time on a busy board.

use crate::budget;
use crate::sync::Mutex;
use bytes::Bytes;
use std::io;

static SPARE: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());

/// Fills a buffer with what `read` reads into it and gives it out as bytes. `keep` is held for as long as they are.
///
/// # Errors
/// Those of `read`.
pub(super) fn filled<K: Send + Sync + 'static, E>(
    want: usize,
    keep: K,
    read: impl FnOnce(&mut [u8]) -> Result<usize, E>,
) -> Result<Bytes, E> {
    let mut buffer = Buffer { bytes: take(), length: 0, _keep: keep };
    let want = want.min(buffer.bytes.len());
    buffer.length = read(&mut buffer.bytes[..want])?.min(want);
    Ok(Bytes::from_owner(buffer))
}

fn take() -> Box<[u8]> {
    let spare = SPARE.lock().pop();
    spare.unwrap_or_else(|| vec![0; budget::SERVE_CHUNK_BYTES].into_boxed_slice())
}

/// A buffer in use.
struct Buffer<K> {
    bytes: Box<[u8]>,
    length: usize,
    _keep: K,
}

impl<K> AsRef<[u8]> for Buffer<K> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl<K> Drop for Buffer<K> {
    fn drop(&mut self) {
        let mut spare = SPARE.lock();
        if spare.len() < budget::SPARE_BUFFERS_MAX {
            spare.push(std::mem::take(&mut self.bytes));
        }
    }
}

/// A file's bytes from `offset`, until `into` is full or the file ends; waits for the disk.
///
/// # Errors
/// The disk cannot read them, or there are none.
pub(super) fn read_at(file: &std::fs::File, into: &mut [u8], offset: u64) -> io::Result<usize> {
    use std::os::unix::fs::FileExt;
    let mut filled = 0;
    while filled < into.len() {
        match file.read_at(&mut into[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    if filled == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than it was"));
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn bytes_are_what_was_read_and_hold_what_they_should() {
        let place = Arc::new(());
        let read = |into: &mut [u8]| {
            into[..3].copy_from_slice(b"abc");
            Ok::<_, io::Error>(3)
        };
        let bytes = filled(10, Arc::clone(&place), read).unwrap();
        assert_eq!((bytes.as_ref(), Arc::strong_count(&place)), (b"abc".as_slice(), 2));
        let half = bytes.slice(1..);
        drop(bytes);
        assert_eq!((half.as_ref(), Arc::strong_count(&place)), (b"bc".as_slice(), 2));
        drop(half);
        assert_eq!(Arc::strong_count(&place), 1);
        let failed = filled(10, Arc::clone(&place), |_| Err::<usize, _>(io::Error::other("no")));
        assert!(failed.is_err());
        assert_eq!(Arc::strong_count(&place), 1);
    }
}
