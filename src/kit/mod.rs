//! Boards that share (rule 8): the claim of a peer is a hint.
//!
//! - [`Kit`] asks the other boards, [`listen`] answers them, `wire` is how both talk
//! - a board answers from its own disk only; it asks nobody on behalf of a peer, so that no question goes round
//! - a peer's claim of a tag is only passed on here, with its peer; whether it counts is the mirror's decision
//! - content is believed by its hash alone
//!
//! A peer that fails is left out for a growing pause, in which it delays nothing. This room knows neither the store nor
//! the upstreams: what it gives out is behind [`PeerContent`].

mod ask;
mod serve;
mod wire;

#[cfg(test)]
mod tests;

pub use ask::{Claim, Kit, PeerBlob, PeerManifest, PeerState};
pub use serve::{Listening, listen};

use crate::budget;
use crate::oci::{Digest, Platform, Repository, Tag};
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::File;

/// What a board gives to its peers.
pub trait PeerContent: Send + Sync {
    /// The newest version of a tag that this board's own upstream named and that is complete here for one of the
    /// platforms; and when the upstream last confirmed it, in seconds since 1970, if the clock could be trusted.
    fn tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        platforms: &[Platform],
    ) -> Option<(Digest, Option<u64>)>;

    /// A manifest: its media type, its file and its size in bytes.
    fn manifest(&self, repository: &Repository, digest: &Digest) -> Option<(String, File, u64)>;

    /// A blob: its file and its size in bytes.
    fn blob(&self, repository: &Repository, digest: &Digest) -> Option<(File, u64)>;
}

/// A question of a board.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Question {
    /// Which digest is this tag? Complete for one of the platforms, for what the answerer runs is no help.
    Tag {
        repository: Repository,
        tag: Tag,
        #[serde(deserialize_with = "few_platforms")]
        platforms: Vec<Platform>,
    },
    /// The bytes of a manifest.
    Manifest { repository: Repository, digest: Digest },
    /// The bytes of a blob from byte `from` on.
    Blob { repository: Repository, digest: Digest, from: u64 },
}

/// The first [`budget::KIT_PLATFORMS_MAX`] platforms of a list; the others are skipped.
fn few_platforms<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Platform>, D::Error> {
    struct Few;
    impl<'de> Visitor<'de> for Few {
        type Value = Vec<Platform>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of platforms")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Vec<Platform>, A::Error> {
            let mut few = Vec::new();
            while few.len() < budget::KIT_PLATFORMS_MAX {
                match from.next_element()? {
                    Some(platform) => few.push(platform),
                    None => return Ok(few),
                }
            }
            while from.next_element::<IgnoredAny>()?.is_some() {}
            Ok(few)
        }
    }
    from.deserialize_seq(Few)
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    /// Nothing of that is to be had here.
    None,
    /// To [`Question::Tag`].
    Tag { digest: Digest, unix: Option<u64>, complete: bool },
    /// To [`Question::Manifest`]; `size` bytes follow.
    Manifest { media_type: String, size: u64 },
    /// To [`Question::Blob`]; the bytes from `from` to `size` follow.
    Blob { size: u64 },
}
