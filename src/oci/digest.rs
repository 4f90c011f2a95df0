//! Digests: what content is called (image-spec, descriptor.md, "Digests").
//!
//! Only the two registered algorithms exist here, and only in lower-case hexadecimal of the right length, so that a
//! digest can be a file name without another thought.

use super::{Invalid, quoted, textual};
use sha2::Digest as _;
use std::fmt;
use std::hash::Hash;
use std::str::FromStr;

/// Hexadecimal digits of the longest digest.
const HEX_BYTES_MAX: usize = 128;

/// A registered digest algorithm.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Algorithm {
    /// `sha256`, 32 bytes.
    Sha256,
    /// `sha512`, 64 bytes.
    Sha512,
}

impl Algorithm {
    /// Every algorithm, in a fixed order.
    pub const ALL: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

    /// The name as it stands before the colon, and as the folder under `blobs/`.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// Length of a digest in bytes.
    pub fn len_bytes(self) -> usize {
        match self {
            Algorithm::Sha256 => 32,
            Algorithm::Sha512 => 64,
        }
    }
}

/// A content digest, such as `sha256:6c3c624b58db...`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    bytes: [u8; 64],
}

impl Hash for Digest {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        // The length says which algorithm it is.
        state.write(self.bytes());
    }
}

impl Digest {
    /// The digest of `content`.
    pub fn of(algorithm: Algorithm, content: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(content);
        hasher.finish()
    }

    /// Which algorithm made it.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The digest proper: 32 or 64 bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.algorithm.len_bytes()]
    }

    /// The digest as lower-case hexadecimal, without the algorithm.
    pub fn hex(&self) -> String {
        self.hex_in(&mut [0; HEX_BYTES_MAX]).to_owned()
    }

    /// The digest as text in quotation marks, as it stands in an `ETag` (RFC 9110, section 8.8.3).
    pub fn quoted(&self) -> String {
        let name = self.algorithm.name();
        let mut text = String::with_capacity(name.len() + 3 + self.bytes().len() * 2);
        for part in ["\"", name, ":", self.hex_in(&mut [0; HEX_BYTES_MAX]), "\""] {
            text.push_str(part);
        }
        text
    }

    /// The digits of [`Digest::hex`], in memory of the caller.
    fn hex_in<'a>(&self, text: &'a mut [u8; HEX_BYTES_MAX]) -> &'a str {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.bytes()) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        std::str::from_utf8(&text[..self.bytes().len() * 2]).unwrap_or_default()
    }

    /// Builds a digest from its parts; `hex` must be lower-case and of the algorithm's length.
    ///
    /// # Errors
    /// It is not.
    pub fn from_hex(algorithm: Algorithm, hex: &str) -> Result<Self, Invalid> {
        let expected = algorithm.len_bytes() * 2;
        let text = hex.as_bytes();
        if text.len() != expected {
            return Err(Invalid::new(format!(
                "digest {} has {} characters after {}:, expected {expected}",
                quoted(hex),
                text.len(),
                algorithm.name()
            )));
        }
        let mut bytes = [0u8; 64];
        for (slot, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            match (nibble(pair[0]), nibble(pair[1])) {
                (Some(high), Some(low)) => *slot = high << 4 | low,
                _ => {
                    return Err(Invalid::new(format!(
                        "digest {} is not lower-case hexadecimal",
                        quoted(hex)
                    )));
                }
            }
        }
        Ok(Digest { algorithm, bytes })
    }

    /// Bytes that name this digest in the index: one for the algorithm, then the digest.
    pub fn key(&self) -> Vec<u8> {
        let mut key = Vec::with_capacity(65);
        key.push(match self.algorithm {
            Algorithm::Sha256 => 1,
            Algorithm::Sha512 => 2,
        });
        key.extend_from_slice(self.bytes());
        key
    }

    /// The reverse of [`Digest::key`].
    pub fn from_key(key: &[u8]) -> Option<Self> {
        let (&tag, rest) = key.split_first()?;
        let algorithm = match tag {
            1 => Algorithm::Sha256,
            2 => Algorithm::Sha512,
            _ => return None,
        };
        if rest.len() != algorithm.len_bytes() {
            return None;
        }
        let mut bytes = [0u8; 64];
        bytes[..rest.len()].copy_from_slice(rest);
        Some(Digest { algorithm, bytes })
    }

    /// The first 12 hexadecimal characters, for people.
    pub fn short(&self) -> String {
        let mut hex = self.hex();
        hex.truncate(12);
        hex
    }
}

fn nibble(c: u8) -> Option<u8> {
    match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.algorithm.name())?;
        f.write_str(":")?;
        f.write_str(self.hex_in(&mut [0; HEX_BYTES_MAX]))
    }
}

impl FromStr for Digest {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let Some((algorithm, hex)) = text.split_once(':') else {
            return Err(Invalid::new(format!("digest {} has no algorithm", quoted(text))));
        };
        match algorithm {
            "sha256" => Digest::from_hex(Algorithm::Sha256, hex),
            "sha512" => Digest::from_hex(Algorithm::Sha512, hex),
            _ => Err(Invalid::new(format!("digest {} is neither sha256 nor sha512", quoted(text)))),
        }
    }
}

textual!(Digest);

/// A running hash of either algorithm.
#[derive(Clone, Debug)]
pub enum Hasher {
    /// In the course of a `sha256`.
    Sha256(sha2::Sha256),
    /// In the course of a `sha512`.
    Sha512(Box<sha2::Sha512>),
}

impl Hasher {
    /// Begins a hash.
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Hasher::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Box::default()),
        }
    }

    /// Takes more content.
    pub fn update(&mut self, content: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(content),
            Hasher::Sha512(hasher) => hasher.update(content),
        }
    }

    /// The digest of everything taken.
    pub fn finish(self) -> Digest {
        let mut bytes = [0u8; 64];
        let algorithm = match self {
            Hasher::Sha256(hasher) => {
                bytes[..32].copy_from_slice(&hasher.finalize());
                Algorithm::Sha256
            }
            Hasher::Sha512(hasher) => {
                bytes.copy_from_slice(&hasher.finalize());
                Algorithm::Sha512
            }
        };
        Digest { algorithm, bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_is_the_text_in_quotation_marks() {
        for algorithm in Algorithm::ALL {
            let digest = Digest::of(algorithm, b"content");
            assert_eq!(digest.quoted(), format!("\"{digest}\""));
        }
    }

    #[test]
    fn known_answers() {
        assert_eq!(
            Digest::of(Algorithm::Sha256, b"abc").to_string(),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert!(
            Digest::of(Algorithm::Sha512, b"abc").to_string().starts_with("sha512:ddaf35a193617abacc417349")
        );
    }

    #[test]
    fn text_and_key_round_trip() {
        for algorithm in Algorithm::ALL {
            let digest = Digest::of(algorithm, b"larder");
            assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
            assert_eq!(Digest::from_key(&digest.key()).unwrap(), digest);
        }
    }

    #[test]
    fn nothing_else_is_a_digest() {
        let hex = "a".repeat(64);
        for bad in [
            "",
            "sha256",
            "sha256:",
            "sha256:abc",
            &format!("sha256:{}", "A".repeat(64)),
            &format!("sha256:{hex}a"),
            &format!("sha512:{hex}"),
            &format!("md5:{hex}"),
            &format!("sha256:../{}", "a".repeat(61)),
            &format!(" sha256:{hex}"),
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad:?} was taken for a digest");
        }
    }
}
