//! The vocabulary of the registry world: digests, names, references, platforms, manifests, errors.
//!
//! Everything here is a value that cannot be wrong: text from outside is parsed once, at the edge, and the rest of
//! the house handles types. Paths and upstream addresses are built from these types only, never from raw text.
//! This room knows the limits, and nothing else of the house.

mod digest;
mod error;
mod familiar;
pub mod json;
mod manifest;
pub mod media;
mod name;
mod platform;
mod reference;

pub use digest::{Algorithm, Digest, Hasher};
pub use error::{ErrorCode, error_body};
pub use familiar::familiar_pattern;
pub use manifest::{Descriptor, Kind, Manifest, annotations};
pub use name::{RegistryName, Repository, RepositoryName, Tag};
pub use platform::Platform;
pub use reference::{ManifestRef, Reference};

/// What was wrong with a piece of text that should have been one of this room's values.
///
/// The message is a lower-case sentence without a full stop that names the value and what is expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid(pub(crate) String);

impl Invalid {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Invalid(message.into())
    }
}

impl std::fmt::Display for Invalid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Invalid {}

/// Quotes text from outside for a message: control bytes escaped, at most 80 characters of it.
pub fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for (count, c) in text.chars().enumerate() {
        if count == 80 {
            out.push_str("...");
            break;
        }
        out.extend(c.escape_debug());
    }
    out.push('"');
    out
}

/// Implements `Display`, `Debug`, `Serialize` and `Deserialize` for a value that has `as_str`-like text and `FromStr`.
macro_rules! textual {
    ($type:ty) => {
        impl std::fmt::Debug for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(self, f)
            }
        }
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use textual;
