//! The fingerprint of the index's file: how a start knows again what a clean shutdown left.
//!
//! LMDB maps the file and believes every page of it; a damaged one is a wrong answer, or a signal that ends the process. So
//! the file is mapped without further ado only if it is, byte for byte, the one that this program wrote last. A
//! fingerprint speaks of bytes and not of time: it needs no removal when the file changes, and outlives what leaves the
//! file as it is. A fingerprint that is lost, damaged or of another file costs an examination ([`super::examine`]).
//!
//! It guards against what cards and power cuts do to a file, and not against an attacker, who could write both files. So
//! it is a chain of multiplications over 64-bit words, which reads a file as fast as the page cache gives it, also on
//! processors without instructions for SHA-256. Each step maps the states one to one, so that one changed word always
//! changes the result.

use super::error::{Result, StoreError};
use super::journal::{line, parse};
use super::layout::write_file;
use crate::budget;
use crate::files;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

/// What is known of a file.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Fingerprint {
    bytes: u64,
    sum: u64,
}

/// The fingerprint's file, in the folder of the index.
fn path(index: &Path) -> PathBuf {
    index.join("fingerprint")
}

/// Notes that the index in this folder is as it should be.
///
/// # Errors
/// The disk does not take it, or does not give the index back.
pub(super) fn save(index: &Path) -> Result<()> {
    let data = index.join("data.mdb");
    let taken = take(&data).map_err(StoreError::io(format!("cannot read {}", data.display())))?;
    write_file(&path(index), &line(&taken))
}

/// The index is not to be believed.
pub(super) fn forget(index: &Path) {
    let _ = std::fs::remove_file(path(index));
}

/// Whether the index in this folder is as it was when its fingerprint was saved.
pub(super) fn holds(index: &Path) -> bool {
    let mut text = Vec::new();
    let read = files::open(&path(index))
        .and_then(|file| file.take(budget::FINGERPRINT_BYTES_MAX).read_to_end(&mut text));
    let saved = read.ok().and_then(|_| parse::<Fingerprint>(&text));
    saved.is_some_and(|saved| take(&index.join("data.mdb")).is_ok_and(|now| now == saved))
}

/// Reads a file to its end.
fn take(path: &Path) -> io::Result<Fingerprint> {
    let mut file = files::open(path)?;
    let mut chunk = vec![0; budget::FINGERPRINT_CHUNK_BYTES];
    // LMDB's files differ with the size of an address and with the order of bytes. The order is in the words.
    let (mut bytes, mut sum) = (0, u64::from(usize::BITS));
    loop {
        let filled = fill(&mut file, &mut chunk)?;
        bytes += filled as u64;
        sum = mix(sum, &mut chunk, filled);
        if filled < chunk.len() {
            return Ok(Fingerprint { bytes, sum });
        }
    }
}

/// Reads until `chunk` is full or the file ends.
fn fill(file: &mut File, chunk: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < chunk.len() {
        match file.read(&mut chunk[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// Adds the first `filled` bytes of a chunk to a sum; zeros fill the last word up.
fn mix(mut sum: u64, chunk: &mut [u8], filled: usize) -> u64 {
    let end = filled.next_multiple_of(size_of::<u64>()).min(chunk.len());
    chunk[filled..end].fill(0);
    let (words, _) = chunk[..end].as_chunks();
    for word in words {
        // An odd factor: 2^64 divided by the golden ratio.
        sum = (sum ^ u64::from_ne_bytes(*word)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_changed_bit_one_byte_more_or_less_and_it_is_another_file() {
        let folder = std::env::temp_dir().join(format!("larder-fingerprint-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let data = folder.join("data.mdb");
        // Longer than a chunk, and no whole number of words.
        let content: Vec<u8> =
            (0..budget::FINGERPRINT_CHUNK_BYTES + 1_003).map(|at| (at % 251) as u8).collect();
        std::fs::write(&data, &content).unwrap();
        assert!(!holds(&folder), "there is none");
        save(&folder).unwrap();
        assert!(holds(&folder));
        for at in [0, 7, 4_096, budget::FINGERPRINT_CHUNK_BYTES, content.len() - 1] {
            for bit in [1, 0x80] {
                let mut other = content.clone();
                other[at] ^= bit;
                std::fs::write(&data, other).unwrap();
                assert!(!holds(&folder), "byte {at}");
            }
        }
        std::fs::write(&data, &content[..content.len() - 1]).unwrap();
        assert!(!holds(&folder));
        std::fs::write(&data, [&content[..], &[0]].concat()).unwrap();
        assert!(!holds(&folder), "zeros count");
        std::fs::write(&data, &content).unwrap();
        assert!(holds(&folder), "it speaks of bytes and not of time");
        let saved = std::fs::read(path(&folder)).unwrap();
        for bad in [&saved[..saved.len() - 1], b"", &[0xff; 100_000]] {
            std::fs::write(path(&folder), bad).unwrap();
            assert!(!holds(&folder));
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
