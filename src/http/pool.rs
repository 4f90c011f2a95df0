//! Buffers for bodies that pass through the process: over TLS, and from file systems that cannot tell what the page cache
//! has.
//!
//! A buffer is reused as soon as its bytes are written, so that a read needs no new memory, which the kernel would have to
//! clear each time. Only as many are kept as there are bodies at a time on a busy board.

use crate::budget;
use crate::sync::Mutex;
use bytes::Bytes;
use std::io;

static SPARE: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());

/// Fills a buffer by `read` and returns it as bytes. `keep` is held as long as they are.
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
        return Err(shorter());
    }
    Ok(filled)
}

/// The error of a file that ends before the bytes that were announced.
pub(super) fn shorter() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than it was")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn bytes_are_those_read_and_hold_their_permit() {
        let permit = Arc::new(());
        let read = |into: &mut [u8]| {
            into[..3].copy_from_slice(b"abc");
            Ok::<_, io::Error>(3)
        };
        let bytes = filled(10, Arc::clone(&permit), read).unwrap();
        assert_eq!((bytes.as_ref(), Arc::strong_count(&permit)), (b"abc".as_slice(), 2));
        let half = bytes.slice(1..);
        drop(bytes);
        assert_eq!((half.as_ref(), Arc::strong_count(&permit)), (b"bc".as_slice(), 2));
        drop(half);
        assert_eq!(Arc::strong_count(&permit), 1);
        let failed = filled(10, Arc::clone(&permit), |_| Err::<usize, _>(io::Error::other("no")));
        assert!(failed.is_err());
        assert_eq!(Arc::strong_count(&permit), 1);
    }
}
