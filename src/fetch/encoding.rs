//! Documents that a server or a cache in between has labelled as compressed, rightly or not.
//!
//! They are asked for as they are. A label on bytes that are not compressed is ignored: the hash or the parser says whether
//! they are right. What is compressed by gzip (RFC 1952) is decoded within a limit; every other coding is left to fail at its
//! hash. Memory: the decoded document at its stated size and no more.

use crate::documents::DocumentTurn;
use miniz_oxide::inflate::decompress_slice_iter_to_slice;

/// Identification of gzip and of its one method.
const MAGIC: [u8; 3] = [0x1f, 0x8b, 8];
/// The fixed part of a member's header.
const HEADER_BYTES: usize = 10;
/// Checksum and size at the end.
const TRAILER_BYTES: usize = 8;
const HAS_HEADER_CRC: u8 = 2;
const HAS_EXTRA: u8 = 4;
const HAS_NAME: u8 = 8;
const HAS_COMMENT: u8 = 16;

/// Whether an answer with this `Content-Encoding` really is compressed.
pub(super) fn is_gzip(coding: Option<&str>, bytes: &[u8]) -> bool {
    let says = coding.map(|coding| coding.trim().to_ascii_lowercase());
    matches!(says.as_deref(), Some("gzip" | "x-gzip")) && bytes.starts_with(&MAGIC)
}

/// The document in one gzip member, if it has no more than `most` bytes.
///
/// # Errors
/// Why there is none.
pub(super) fn gunzip(bytes: &[u8], most: u64) -> Result<Vec<u8>, &'static str> {
    const BROKEN: &str = "the compressed answer is broken";
    let rest = after_header(bytes).ok_or(BROKEN)?;
    let (body, trailer) = rest.split_at_checked(rest.len().wrapping_sub(TRAILER_BYTES)).ok_or(BROKEN)?;
    let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|n| trailer[at + n]));
    let (checksum, size) = (word(0), word(4));
    if u64::from(size) > most {
        return Err("the compressed answer is larger than allowed");
    }
    let size = usize::try_from(size).map_err(|_| BROKEN)?;
    let _turn = DocumentTurn::wait(size as u64);
    let mut document = vec![0; size];
    // What comes after the size that it states is a bomb, or nothing that can be read.
    let decoded = decompress_slice_iter_to_slice(&mut document, std::iter::once(body), false, true);
    if decoded.is_ok_and(|length| length == size) && crc32(&document) == checksum {
        Ok(document)
    } else {
        Err(BROKEN)
    }
}

/// What follows the header of a member.
fn after_header(bytes: &[u8]) -> Option<&[u8]> {
    let flags = *bytes.get(3)?;
    let mut rest = bytes.get(HEADER_BYTES..)?;
    if flags & HAS_EXTRA != 0 {
        let length = usize::from(u16::from_le_bytes([*rest.first()?, *rest.get(1)?]));
        rest = rest.get(2 + length..)?;
    }
    for text in [HAS_NAME, HAS_COMMENT] {
        if flags & text != 0 {
            let end = rest.iter().position(|byte| *byte == 0)?;
            rest = &rest[end + 1..];
        }
    }
    if flags & HAS_HEADER_CRC != 0 { rest.get(2..) } else { Some(rest) }
}

/// RFC 1952, 8.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { 0xedb8_8320 ^ (crc >> 1) } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc: u32, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use miniz_oxide::deflate::compress_to_vec;

    /// A gzip member with a name.
    pub fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut member = [&MAGIC[..], &[HAS_NAME, 0, 0, 0, 0, 0, 3], b"manifest.json\0"].concat();
        member.extend(compress_to_vec(bytes, 6));
        member.extend(crc32(bytes).to_le_bytes());
        member.extend(u32::try_from(bytes.len()).unwrap().to_le_bytes());
        member
    }

    #[test]
    fn what_is_compressed_is_decoded() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        for length in [0, 1, 5_000, 100_000] {
            let bytes: Vec<u8> = (0..length).map(|n: u32| (n.wrapping_mul(n) % 251) as u8).collect();
            assert_eq!(gunzip(&gzip(&bytes), 100_000).unwrap(), bytes);
        }
        // As gzip(1) writes it, with an extra field, a comment and a checksum of the header.
        let mut rich = vec![0x1f, 0x8b, 8, HAS_EXTRA | HAS_COMMENT | HAS_HEADER_CRC, 0, 0, 0, 0, 0, 3];
        rich.extend([2, 0, 9, 9, b'c', 0, 1, 2]);
        rich.extend(&gzip(b"text")[HEADER_BYTES + 14..]);
        assert_eq!(gunzip(&rich, 4).unwrap(), b"text");
    }

    #[test]
    fn bombs_and_what_is_broken_are_refused() {
        let bomb = gzip(&vec![0; 1 << 20]);
        assert!(gunzip(&bomb, 1 << 19).unwrap_err().contains("larger"));
        let mut lies = bomb.clone();
        let end = lies.len() - 4;
        lies[end..].copy_from_slice(&100u32.to_le_bytes());
        assert!(gunzip(&lies, 1 << 19).unwrap_err().contains("broken"));
        let whole = gzip(b"some text that is compressed");
        for end in 0..whole.len() {
            assert!(gunzip(&whole[..end], 1000).is_err(), "{end}");
        }
        let mut wrong = whole.clone();
        wrong[HEADER_BYTES + 16] ^= 0x10;
        assert!(gunzip(&wrong, 1000).is_err());
        assert!(gunzip(&[&gzip(b"other")[..], &whole[..]].concat(), 1000).is_err(), "one member is all");
    }

    #[test]
    fn a_label_alone_says_nothing() {
        assert!(is_gzip(Some("GZIP"), &gzip(b"x")) && is_gzip(Some(" x-gzip"), &gzip(b"x")));
        assert!(!is_gzip(Some("gzip"), b"{}") && !is_gzip(Some("br"), &gzip(b"x")));
        assert!(!is_gzip(None, &gzip(b"x")) && !is_gzip(Some("identity"), &gzip(b"x")));
    }
}
