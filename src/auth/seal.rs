//! Seals on text that goes out to clients and comes back. A wrong seal means that the text is not this process's.

use ring::{hmac, rand::SystemRandom};

/// Bytes of a seal.
const SEAL_BYTES: usize = 16;

/// The key of one process.
pub struct Seal(hmac::Key);

impl Seal {
    /// A random key.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn new() -> std::io::Result<Seal> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new());
        key.map(Seal).map_err(|_| std::io::Error::other("the system gives no random numbers"))
    }

    /// The seal on `text`, in hexadecimal digits.
    pub fn on(&self, text: &str) -> String {
        let tag = hmac::sign(&self.0, text.as_bytes());
        tag.as_ref()[..SEAL_BYTES].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whether `seal` is the one on `text`. How long the answer takes says nothing of the right one.
    pub fn is_on(&self, seal: &str, text: &str) -> bool {
        let right = self.on(text);
        let different = right.bytes().zip(seal.bytes()).fold(0, |all, (a, b)| all | (a ^ b));
        seal.len() == right.len() && different == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_is_on_its_text_and_of_its_key() {
        let (seal, other) = (Seal::new().unwrap(), Seal::new().unwrap());
        let right = seal.on("text");
        assert!(right.len() == 2 * SEAL_BYTES && seal.is_on(&right, "text"));
        for (wrong, text) in
            [(right.as_str(), "test"), (&right[1..], "text"), ("", "text"), (&other.on("text"), "text")]
        {
            assert!(!seal.is_on(wrong, text), "{wrong} {text}");
        }
    }
}
