//! Requests and answers of commands, as plain data.
//!
//! An answer is a sequence of records. Each is bounded by [`crate::budget::CONTROL_BYTES_MAX`]; an answer is not, because
//! neither side holds all of it. `--json` prints the names of the fields. Nothing in here can fail.

use crate::oci::{Digest, Platform, Reference};
use crate::report::PeerReport;
use serde::{Deserialize, Serialize};

/// A command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdminRequest {
    /// List every tag.
    Ls,
    /// Explain which version of an image is served.
    Why {
        /// The image.
        image: Reference,
    },
    /// List the versions of a tag.
    History {
        /// The image.
        image: Reference,
    },
    /// How larder is doing.
    Status,
    /// Serve an earlier version until upstream moves on.
    Rollback {
        /// The image.
        image: Reference,
        /// The version; the newest one before the present one if `None`.
        to: Option<Digest>,
    },
    /// Protect an image from removal, or end that.
    Pin {
        /// The image.
        image: Reference,
        /// Whether it is to stay.
        pinned: bool,
    },
    /// Say whether images would start with every link down.
    Check {
        /// The images; of one request as many as its length allows.
        images: Vec<Reference>,
        /// Also what `[warm]` lists and what is pinned.
        wanted: bool,
        /// Hash what is here.
        hash: bool,
    },
    /// Forget a tag and remove the content that only it needs.
    Rm {
        /// The image.
        image: Reference,
    },
    /// Hash each blob on the disk.
    Verify {
        /// Quarantine corrupt blobs, so that they are fetched again.
        repair: bool,
    },
}

/// One piece of an answer, on a line of its own. `why`, `history` and `verify` are answered by a head and its pieces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdminRecord {
    /// `ls`: a tag.
    Image(ImageRow),
    /// `why`: all but its parts.
    Why(Box<WhyReport>),
    /// `why`: a part.
    Part(PartRow),
    /// `check`: an image on a platform, all but what is missing of it.
    Checked(Box<CheckRow>),
    /// `check`: content that is missing of the image before it.
    Missing(PartRow),
    /// `history`: all but its versions.
    History(HistoryReport),
    /// `history`: a version.
    Version(VersionRow),
    /// `status`.
    Status(Box<StatusReport>),
    /// `rollback`, `pin` and `rm`: what was done.
    Done(String),
    /// `verify`: a corrupt blob, more than once if it belongs to many images.
    Corrupt(CorruptBlob),
    /// `verify`: the end of it.
    Verified(VerifyReport),
    /// Not the end yet: bytes done of bytes in all.
    Progress(u64, u64),
    /// It could not be done, and why.
    Failed(String),
}

/// Whether all of a version is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Completeness {
    /// It would start with every link down.
    Complete,
    /// Something is missing.
    Partial,
}

/// A tag, as `ls` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRow {
    /// `registry/repository:tag`.
    pub image: String,
    /// The version that would be served with every link down; else the one that upstream named.
    pub digest: Digest,
    /// Whether it is complete.
    pub state: Completeness,
    /// Bytes of it that are here.
    pub bytes: u64,
    /// Bytes of it that are missing, as far as is known.
    pub missing_bytes: u64,
    /// Upstream has named a newer version that is not complete yet.
    pub newer: Option<Digest>,
    /// It is pinned.
    pub pinned: bool,
    /// Bytes that its removal would free: those that no other image needs.
    pub frees: u64,
}

/// The answer of `why`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyReport {
    /// The image asked about.
    pub image: String,
    /// Upstream's digest.
    pub seen: Option<Digest>,
    /// The newest version that was complete when it was recorded.
    pub complete: Option<Digest>,
    /// The version that it was rolled back to.
    pub rolled_back_to: Option<Digest>,
    /// What would be answered with every link down, and by which tier.
    pub offline: Option<(Digest, String)>,
    /// The platforms that count.
    pub platforms: Vec<Platform>,
    /// The parts of the version that `offline` or `seen` names; as a record: none, they follow.
    pub parts: Vec<PartRow>,
    /// Whether upstream can be reached, for people.
    pub upstream: String,
    /// The rules that hold for the tag, for people.
    pub policy: String,
}

/// One piece of content of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartRow {
    /// Its name.
    pub digest: Digest,
    /// Its size in bytes.
    pub bytes: u64,
    /// Whether it is on the disk.
    pub here: bool,
}

/// Whether an image would start with every link down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckState {
    /// It would.
    Ready,
    /// Some of it is missing.
    Incomplete,
    /// Nothing is known of it here.
    Absent,
    /// It has nothing for the platform.
    OtherPlatform,
    /// Bytes of it are not what they should be.
    Corrupt,
}

/// An image on a platform, as `check` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckRow {
    /// The image.
    pub image: String,
    /// What it is to run on.
    pub platform: Platform,
    /// Whether it would start.
    pub state: CheckState,
    /// `[warm]` lists it.
    pub warm: bool,
    /// It is pinned.
    pub pinned: bool,
    /// Pods need it, because the runtime runs it beside each of them.
    #[serde(default)]
    pub sandbox: bool,
    /// The version that was looked at.
    pub digest: Option<Digest>,
    /// The rule by which it would be answered with every link down.
    pub rule: Option<String>,
    /// Bytes that are here.
    pub bytes: u64,
    /// Bytes that are missing, as far as is known.
    pub missing_bytes: u64,
    /// What is wrong, for people.
    pub problem: Option<String>,
    /// What is missing; as a record: nothing, it follows.
    pub missing: Vec<PartRow>,
}

/// The answer of `history`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryReport {
    /// The image asked about.
    pub image: String,
    /// Its versions, newest first; as a record: none, they follow.
    pub versions: Vec<VersionRow>,
}

/// One version of a tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRow {
    /// What the tag stood for.
    pub digest: Digest,
    /// When that was recorded (RFC 3339), if the clock could be trusted then.
    pub noted: Option<String>,
    /// Whether it is complete now.
    pub state: Completeness,
    /// It is upstream's digest.
    pub seen: bool,
    /// A peer named it, and not this board's upstream.
    #[serde(default)]
    pub peer: bool,
    /// It is served with every link down.
    pub served_offline: bool,
}

/// The answer of `status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// Larder's version.
    pub version: String,
    /// Whether the server runs.
    pub running: bool,
    /// Seconds since the server started.
    pub uptime_seconds: Option<u64>,
    /// Directory for images and state.
    pub data_dir: String,
    /// Bytes of verified blobs.
    pub stored_bytes: u64,
    /// Verified blobs.
    pub blobs: u64,
    /// Bytes free on the file system.
    pub free_bytes: u64,
    /// Bytes that stay free for others: with fewer, nothing new is stored.
    pub min_free_bytes: u64,
    /// Tags of which a version is complete.
    pub images_complete: u64,
    /// Tags without a complete version.
    pub images_partial: u64,
    /// Images that are pinned or that `[warm]` lists.
    #[serde(default)]
    pub wanted: u64,
    /// Those of them that would not start with every link down.
    #[serde(default)]
    pub wanted_absent: u64,
    /// `disk.max`, if it is set.
    pub max_bytes: Option<u64>,
    /// What is removed first when room is needed, and the bytes that it frees.
    pub next_to_go: Option<(String, u64)>,
    /// Downloads under way or waiting.
    pub fills: u64,
    /// Downloads that wait for their upstream.
    pub fills_parked: u64,
    /// The upstreams.
    pub upstreams: Vec<UpstreamRow>,
    /// The other boards of the kit.
    #[serde(default)]
    pub peers: Vec<PeerReport>,
    /// Whether the wall clock is trusted.
    pub clock_trusted: bool,
}

/// One upstream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamRow {
    /// The registry.
    pub name: String,
    /// Its address.
    pub url: String,
    /// For people; `None` when the server does not run and nothing is remembered.
    pub state: Option<String>,
    /// Bytes taken from it since the start.
    pub bytes: u64,
}

/// The answer of `verify`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Blobs that were hashed.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blobs that do not hash to their name, or cannot be read; as a record: none, they came before.
    pub bad: Vec<CorruptBlob>,
    /// The corrupt ones were quarantined.
    pub repaired: bool,
}

/// A corrupt blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CorruptBlob {
    /// Its name.
    pub digest: Digest,
    /// What is wrong.
    pub problem: String,
    /// Images that it belongs to.
    pub images: Vec<String>,
}
