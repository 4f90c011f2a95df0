//! What the index and the journal hold, and the one way in which records are written.
//!
//! A record is a checksum and JSON: the first eight bytes of the SHA-256 of table, key and text, then the text. JSON
//! because both files must be readable by later versions and by people; the checksum because LMDB has none and cards
//! return wrong bytes without an error.

use super::error::{Result, StoreError};
use crate::budget;
use crate::oci::{Algorithm, Digest, Hasher};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

/// Bytes of a record's checksum.
pub(super) const CHECKSUM_BYTES: usize = 8;

/// Where a version of a tag comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VersionSource {
    /// This board's upstream.
    #[default]
    Upstream,
    /// A peer, which had it from its own upstream.
    Peer,
    /// An import from a file.
    Import,
}

impl VersionSource {
    fn is_upstream(&self) -> bool {
        *self == VersionSource::Upstream
    }
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Reads a count. One that was never given out is damage: nothing could come after it.
pub(super) fn count_of<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let n = u64::deserialize(from)?;
    if n <= budget::COUNT_MAX { Ok(n) } else { Err(serde::de::Error::custom("a count is too large")) }
}

/// Reads a source. 0.1.0 wrote `"peer":true` in place of `"source":"peer"`.
fn source_of<'de, D: Deserializer<'de>>(from: D) -> Result<VersionSource, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Peer(bool),
        Source(VersionSource),
    }
    Ok(match Written::deserialize(from)? {
        Written::Peer(true) => VersionSource::Peer,
        Written::Peer(false) => VersionSource::Upstream,
        Written::Source(source) => source,
    })
}

/// A report of a tag's digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// What the tag stands for.
    pub digest: Digest,
    /// Who reported it.
    pub source: VersionSource,
    /// When the registry made the answer, by its own clock: `Date`, in seconds since 1970.
    pub date: Option<u64>,
    /// The endpoint that answered.
    pub endpoint: Option<String>,
}

impl Observation {
    /// What upstream reported, of which no more is known.
    pub fn upstream(digest: Digest) -> Observation {
        Observation { digest, source: VersionSource::Upstream, date: None, endpoint: None }
    }

    /// What a peer reported, of which no more is known.
    pub fn peer(digest: Digest) -> Observation {
        Observation { source: VersionSource::Peer, ..Observation::upstream(digest) }
    }

    /// The version that this is, before it has a count.
    pub(super) fn version(&self, unix: Option<u64>) -> TagVersion {
        let Observation { digest, source, date, endpoint } = self.clone();
        TagVersion { digest, n: 0, unix, source, date, endpoint }
    }
}

/// One version of a tag, as it was noted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagVersion {
    /// What the tag stood for.
    pub digest: Digest,
    /// The count at which that was noted; within an event of the journal it stands beside it.
    #[serde(default, deserialize_with = "count_of", skip_serializing_if = "is_zero")]
    pub n: u64,
    /// Seconds since 1970, if the clock could be trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unix: Option<u64>,
    /// Who reported it. Of a peer's version, `unix` is when the peer's upstream reported it.
    #[serde(
        default,
        alias = "peer",
        deserialize_with = "source_of",
        skip_serializing_if = "VersionSource::is_upstream"
    )]
    pub source: VersionSource,
    /// When the registry made the answer, by its own clock: `Date`, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub date: Option<u64>,
    /// The endpoint that answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
}

impl TagVersion {
    /// Whether a peer reported it, and this board's upstream has not.
    pub fn is_from_peer(&self) -> bool {
        self.source == VersionSource::Peer
    }
}

/// Everything known of a tag: two pointers, and how they got there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagRecord {
    /// What upstream reported last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<TagVersion>,
    /// The newest version whose closure was complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub complete: Option<TagVersion>,
    /// Earlier complete versions, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<TagVersion>,
    /// A version that the owner of the board went back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<Rollback>,
    /// The owner wants the image to stay.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
}

/// An owner's decision to serve an earlier version until upstream has moved on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollback {
    /// While upstream reports this ...
    pub from: Digest,
    /// ... this is served.
    pub to: Digest,
}

impl TagRecord {
    /// Upstream reported `version`. Observations that are older than what is known change nothing.
    pub(super) fn see(&mut self, version: TagVersion) {
        if self.seen.as_ref().is_some_and(|seen| seen.n >= version.n) {
            return;
        }
        if self.rollback.as_ref().is_some_and(|rollback| rollback.from != version.digest) {
            self.rollback = None;
        }
        self.seen = Some(version);
    }

    /// `version` was found complete.
    pub(super) fn completed(&mut self, version: TagVersion, history_max: usize) {
        if self.complete.as_ref().is_some_and(|complete| complete.n >= version.n) {
            return;
        }
        self.history.retain(|earlier| earlier.digest != version.digest);
        if let Some(before) = self.complete.replace(version.clone())
            && before.digest != version.digest
        {
            self.history.insert(0, before);
        }
        self.history.truncate(history_max);
    }

    /// Forgets the version that is `digest`, as it was noted up to count `n`; whether there was one. What upstream reported
    /// last stays known while there is another version to serve in its place.
    pub(super) fn forget(&mut self, digest: &Digest, n: u64) -> bool {
        let is = |version: &TagVersion| version.digest == *digest && version.n <= n;
        if !self.versions().any(is) {
            return false;
        }
        self.history.retain(|version| !is(version));
        if self.complete.as_ref().is_some_and(is) {
            self.complete = if self.history.is_empty() { None } else { Some(self.history.remove(0)) };
        }
        if self.complete.is_none() && self.seen.as_ref().is_some_and(is) {
            self.seen = None;
        }
        if self.rollback.as_ref().is_some_and(|rollback| rollback.to == *digest) {
            self.rollback = None;
        }
        true
    }

    /// Whether nothing is known of the tag.
    pub(super) fn is_empty(&self) -> bool {
        self.versions().next().is_none() && !self.pinned
    }

    /// What a peer has reported since upstream reported anything, if that is newer by the wall times of both.
    pub fn offered(&self) -> Option<&TagVersion> {
        let newer = |version: &&TagVersion| match &self.seen {
            Some(seen) => {
                let later = version.unix.zip(seen.unix).is_some_and(|(offered, seen)| offered > seen);
                version.n > seen.n && later
            }
            None => true,
        };
        self.complete.iter().chain(&self.history).filter(|version| version.is_from_peer()).find(newer)
    }

    /// Whether a peer has reported anything since upstream did.
    pub(super) fn has_later_offer(&self) -> bool {
        let seen = self.seen.as_ref().map_or(0, |seen| seen.n);
        self.complete.iter().chain(&self.history).any(|version| version.is_from_peer() && version.n > seen)
    }

    /// The versions that may be complete, best first: what the owner went back to, then the newest.
    pub fn candidates(&self) -> Vec<&TagVersion> {
        let mut candidates: Vec<&TagVersion> = Vec::new();
        if let Some(rollback) = &self.rollback {
            candidates.extend(self.versions().find(|version| version.digest == rollback.to));
        }
        if let Some(offered) = self.offered()
            && !candidates.iter().any(|known| known.digest == offered.digest)
        {
            candidates.push(offered);
        }
        for version in self.versions() {
            if !candidates.iter().any(|known| known.digest == version.digest) {
                candidates.push(version);
            }
        }
        candidates
    }

    /// All versions that are known of it.
    pub fn versions(&self) -> impl Iterator<Item = &TagVersion> {
        self.seen.iter().chain(&self.complete).chain(&self.history)
    }

    /// The same tag as if it had never been these digests; `None` if nothing is left of it then.
    #[must_use]
    pub fn without(mut self, hidden: &[Digest]) -> Option<TagRecord> {
        if hidden.is_empty() {
            return Some(self);
        }
        let stays = |version: &TagVersion| !hidden.contains(&version.digest);
        self.history.retain(stays);
        self.seen = self.seen.filter(stays);
        if !self.complete.as_ref().is_some_and(stays) {
            self.complete = if self.history.is_empty() { None } else { Some(self.history.remove(0)) };
        }
        let away = |rollback: &Rollback| hidden.contains(&rollback.from) || hidden.contains(&rollback.to);
        self.rollback = self.rollback.filter(|rollback| !away(rollback));
        let left = self.versions().next().is_some();
        left.then_some(self)
    }
}

/// How content belongs to a repository.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentLink {
    /// For a manifest: the media type that it was stored with, or that an index states (see [`ContentLink::is_own`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The size that a manifest states for it, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// The repository's upstream was seen to hold it; else a manifest merely names it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
    /// The count at which a manifest was noted.
    #[serde(default, deserialize_with = "count_of")]
    pub n: u64,
}

impl ContentLink {
    /// Whether it was stored as a manifest of its own; else the media type is what an index calls it.
    pub fn is_own(&self) -> bool {
        self.media_type.is_some() && self.n > 0
    }
}

/// A manifest known of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkedManifest {
    /// Its digest.
    pub digest: Digest,
    /// The media type it is served with.
    pub media_type: String,
    /// The count at which it was noted.
    pub n: u64,
}

/// What is known of a blob without opening it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobInfo {
    /// Its name.
    pub digest: Digest,
    /// Bytes in it.
    pub size: u64,
    /// The count of its last use.
    pub used: u64,
}

/// Writes a record of `table` under `key`.
pub(super) fn seal<T: Serialize>(table: u8, key: &[u8], value: &T) -> Vec<u8> {
    let text = serde_json::to_vec(value).expect("records are plain data with text keys");
    let mut sealed = Vec::with_capacity(CHECKSUM_BYTES + text.len());
    sealed.extend_from_slice(&checksum(&[&[table], key, &text]));
    sealed.extend_from_slice(&text);
    sealed
}

/// Reads a record; one that is not as it was written is damage.
pub(super) fn unseal<T: DeserializeOwned>(table: u8, key: &[u8], sealed: &[u8]) -> Result<T> {
    let text = is_sealed(table, key, sealed)?;
    serde_json::from_slice(text).map_err(|e| damaged(table, key, &format!("cannot be read: {e}")))
}

/// The text of a record whose checksum is right.
pub(super) fn is_sealed<'a>(table: u8, key: &[u8], sealed: &'a [u8]) -> Result<&'a [u8]> {
    let Some((sum, text)) = sealed.split_at_checked(CHECKSUM_BYTES) else {
        return Err(damaged(table, key, "is too short"));
    };
    if checksum(&[&[table], key, text]) != sum {
        return Err(damaged(table, key, "has a wrong checksum"));
    }
    Ok(text)
}

fn damaged(table: u8, key: &[u8], why: &str) -> StoreError {
    StoreError::Damaged(format!("record {}/{} {why}", table as char, hex(key)))
}

/// The first eight bytes of the SHA-256 of the parts, each of which but the last is of a length known from context.
pub(super) fn checksum(parts: &[&[u8]]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    for part in parts {
        hasher.update(part);
    }
    let mut sum = [0; CHECKSUM_BYTES];
    sum.copy_from_slice(&hasher.finish().bytes()[..CHECKSUM_BYTES]);
    sum
}

/// A key for a message.
fn hex(key: &[u8]) -> String {
    key.iter().take(40).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(fill: char, n: u64) -> TagVersion {
        TagVersion {
            digest: format!("sha256:{}", String::from(fill).repeat(64)).parse().unwrap(),
            n,
            unix: None,
            source: VersionSource::Upstream,
            date: None,
            endpoint: None,
        }
    }

    #[test]
    fn a_peers_version_comes_first_only_until_upstream_reports() {
        let at = |fill, n, unix| TagVersion { unix, ..version(fill, n) };
        let mut tag = TagRecord::default();
        tag.see(at('a', 1, Some(100)));
        tag.completed(at('a', 2, Some(101)), 3);
        tag.completed(TagVersion { source: VersionSource::Peer, ..at('b', 3, Some(200)) }, 3);
        let first = |tag: &TagRecord| tag.candidates()[0].digest.clone();
        assert_eq!(first(&tag), version('b', 0).digest);
        assert!(tag.has_later_offer());
        tag.rollback = Some(Rollback { from: version('a', 0).digest, to: version('a', 0).digest });
        assert_eq!(first(&tag), version('a', 0).digest, "the owner's decision counts more");
        tag.rollback = None;
        for unix in [Some(150), None] {
            let mut later = tag.clone();
            later.see(at('a', 4, unix));
            assert_eq!(first(&later), version('a', 0).digest);
        }
        // An older version, and one without a time, come after what upstream reported.
        for unix in [Some(99), None] {
            let mut older = tag.clone();
            older.completed(TagVersion { source: VersionSource::Peer, ..at('c', 5, unix) }, 0);
            assert_eq!(first(&older), version('a', 0).digest);
        }
    }

    #[test]
    fn a_half_fetched_version_does_not_hide_the_complete_one() {
        let mut tag = TagRecord::default();
        tag.see(version('a', 1));
        tag.completed(version('a', 2), 3);
        tag.see(version('b', 3));
        assert_eq!(tag.complete.as_ref().unwrap().digest, version('a', 0).digest);
        let order: Vec<_> = tag.candidates().iter().map(|v| v.digest.clone()).collect();
        assert_eq!(order, [version('b', 0).digest, version('a', 0).digest]);
    }

    #[test]
    fn history_is_bounded_and_without_repeats() {
        let mut tag = TagRecord::default();
        for (n, fill) in ('a'..='f').enumerate() {
            tag.completed(version(fill, n as u64 + 1), 3);
        }
        assert_eq!(tag.history.iter().map(|v| v.n).collect::<Vec<_>>(), [5, 4, 3]);
        tag.completed(version('e', 9), 3);
        assert_eq!(tag.history.iter().map(|v| v.n).collect::<Vec<_>>(), [6, 4, 3]);
        tag.completed(version('0', 8), 3);
        assert_eq!(tag.complete.unwrap().n, 9, "an older observation must change nothing");
    }

    #[test]
    fn a_rollback_ends_when_upstream_moves_on() {
        let mut tag = TagRecord::default();
        tag.completed(version('a', 1), 3);
        tag.see(version('b', 2));
        tag.completed(version('b', 3), 3);
        tag.rollback = Some(Rollback { from: version('b', 0).digest, to: version('a', 0).digest });
        assert_eq!(tag.candidates()[0].digest, version('a', 0).digest);
        tag.see(version('b', 4));
        assert!(tag.rollback.is_some());
        tag.see(version('c', 5));
        assert!(tag.rollback.is_none());
    }

    #[test]
    fn one_changed_bit_is_damage() {
        let sealed = seal(b't', b"key", &version('a', 7));
        assert_eq!(unseal::<TagVersion>(b't', b"key", &sealed).unwrap(), version('a', 7));
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 1;
            assert!(unseal::<TagVersion>(b't', b"key", &bad).is_err(), "byte {at}");
        }
        assert!(unseal::<TagVersion>(b't', b"other", &sealed).is_err());
        assert!(unseal::<TagVersion>(b'm', b"key", &sealed).is_err());
    }
}
