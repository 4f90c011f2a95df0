//! The door for the owner of the board: looking at the store and changing it.
//!
//! A command is a [`Request`] and its answer a [`Reply`]; both are plain data. With the server running they cross a
//! Unix socket ([`socket`]) that only root and larder's group may open; with it stopped the same code works on the
//! store itself, under its lock. So a command says the same either way.

mod change;
mod look;
pub mod socket;

use crate::config::Config;
use crate::mirror::Mirror;
use crate::oci::{Digest, Platform, Reference};
use crate::store::{Store, StoreError};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Instant;

/// What the owner asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Every tag known.
    Ls,
    /// Why an image would be answered as it would.
    Why {
        /// The image.
        image: Reference,
    },
    /// The versions of a tag.
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
    /// Keep an image whatever room is needed, or no longer.
    Pin {
        /// The image.
        image: Reference,
        /// Whether it is to stay.
        pinned: bool,
    },
    /// Forget a tag and remove what only it had.
    Rm {
        /// The image.
        image: Reference,
    },
    /// Hash everything on the disk.
    Verify {
        /// Set bad blobs aside, so that they are fetched again.
        repair: bool,
    },
}

/// What the owner is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To [`Request::Ls`].
    Ls(Vec<Image>),
    /// To [`Request::Why`].
    Why(Box<Why>),
    /// To [`Request::History`].
    History(History),
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Rollback`], [`Request::Pin`] and [`Request::Rm`].
    Done(String),
    /// To [`Request::Verify`].
    Verify(Verified),
    /// Not the end yet: bytes done of bytes in all.
    Progress(u64, u64),
    /// It could not be done, and why.
    Failed(String),
}

/// Whether all of a version is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It would start with the uplink gone.
    Complete,
    /// Something is missing.
    Partial,
}

/// A tag, as `ls` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// `registry/repository:tag`.
    pub image: String,
    /// The version that would be served with the uplink gone; else the one that upstream named.
    pub digest: Digest,
    /// Whether it is whole.
    pub state: State,
    /// Bytes of it that are here.
    pub bytes: u64,
    /// Bytes of it that are missing, as far as is known.
    pub missing_bytes: u64,
    /// Upstream has named a newer version that is not whole yet.
    pub newer: Option<Digest>,
    /// The owner wants it to stay.
    pub pinned: bool,
    /// Bytes that would be free if it went: those that no other image has.
    pub frees: u64,
}

/// The answer of `why`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    /// The image asked about.
    pub image: String,
    /// What upstream said last.
    pub seen: Option<Digest>,
    /// The newest version that was whole when it was noted.
    pub complete: Option<Digest>,
    /// What the owner went back to.
    pub rolled_back_to: Option<Digest>,
    /// What would be answered with the uplink gone, and by which tier.
    pub offline: Option<(Digest, String)>,
    /// The platforms that count.
    pub platforms: Vec<Platform>,
    /// The parts of the version that `offline` or `seen` names.
    pub parts: Vec<Part>,
    /// Whether upstream can be reached, in words.
    pub upstream: String,
    /// The rules that hold for the tag, in words.
    pub policy: String,
}

/// One piece of content of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its name.
    pub digest: Digest,
    /// Its size in bytes.
    pub bytes: u64,
    /// Whether it is on the disk.
    pub here: bool,
}

/// The answer of `history`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The image asked about.
    pub image: String,
    /// Its versions, newest first.
    pub versions: Vec<Version>,
}

/// One version of a tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// What the tag stood for.
    pub digest: Digest,
    /// When that was noted (RFC 3339), if the clock could be trusted then.
    pub noted: Option<String>,
    /// Whether it is whole now.
    pub state: State,
    /// What upstream said last.
    pub seen: bool,
    /// A peer said so, and not this board's upstream.
    #[serde(default)]
    pub peer: bool,
    /// What is served with the uplink gone.
    pub served_offline: bool,
}

/// The answer of `status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Larder's version.
    pub version: String,
    /// Whether the server runs.
    pub running: bool,
    /// Seconds since the server started.
    pub uptime_seconds: Option<u64>,
    /// Where everything is kept.
    pub data_dir: String,
    /// Bytes of whole blobs.
    pub stored_bytes: u64,
    /// Whole blobs.
    pub blobs: u64,
    /// Bytes free on the file system.
    pub free_bytes: u64,
    /// Tags whose served version is whole, and tags without one.
    pub images_complete: u64,
    /// Tags without a whole version.
    pub images_partial: u64,
    /// `disk.max`, if it is set.
    pub max_bytes: Option<u64>,
    /// What goes first when room is needed, and the bytes that it frees.
    pub next_to_go: Option<(String, u64)>,
    /// Downloads under way or waiting.
    pub fills: u64,
    /// Downloads that wait for their upstream.
    pub fills_parked: u64,
    /// The upstreams.
    pub upstreams: Vec<UpstreamStatus>,
    /// The other boards of the kit.
    #[serde(default)]
    pub peers: Vec<PeerStatus>,
    /// Whether the wall clock is believed.
    pub clock_trusted: bool,
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its address.
    pub address: String,
    /// Whether it may be asked, or is left out after a failure; `None` when the server does not run.
    pub up: Option<bool>,
    /// The same in words, with the cause.
    pub state: Option<String>,
}

/// One upstream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamStatus {
    /// The registry.
    pub name: String,
    /// Its address.
    pub url: String,
    /// In words; `None` when the server does not run and nothing is remembered.
    pub state: Option<String>,
    /// Bytes taken from it since the start.
    pub bytes: u64,
}

/// The answer of `verify`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Blobs that were hashed.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blobs that do not hash to their name, or cannot be read.
    pub bad: Vec<Bad>,
    /// The bad ones were set aside.
    pub repaired: bool,
}

/// A blob that is not what its name says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bad {
    /// Its name.
    pub digest: Digest,
    /// What is wrong.
    pub problem: String,
    /// Images that it belongs to.
    pub images: Vec<String>,
}

/// Where commands are carried out.
pub struct Desk {
    config: Arc<Config>,
    store: Arc<Store>,
    /// There while the server runs.
    mirror: Option<Arc<Mirror>>,
    opened: Instant,
}

impl Desk {
    /// The desk of a running server.
    pub fn of(mirror: &Arc<Mirror>) -> Desk {
        Desk {
            config: Arc::clone(mirror.config()),
            store: Arc::clone(mirror.store()),
            mirror: Some(Arc::clone(mirror)),
            opened: Instant::now(),
        }
    }

    /// The desk of a store whose server is stopped. Takes the store's lock.
    pub fn open(config: &Config) -> Result<Desk, StoreError> {
        let (store, startup) = Store::open(&config.data_dir, config.tags.history)?;
        startup.finish_briefly(&store)?;
        let config = Arc::new(config.clone());
        Ok(Desk { config, store: Arc::new(store), mirror: None, opened: Instant::now() })
    }

    /// Carries a command out. `progress` is told how far a long one is, in bytes.
    pub fn execute(&self, request: &Request, progress: &mut dyn FnMut(u64, u64)) -> Reply {
        let reply = match request {
            Request::Ls => self.ls().map(Reply::Ls),
            Request::Why { image } => self.why(image).map(|why| Reply::Why(Box::new(why))),
            Request::History { image } => self.history(image).map(Reply::History),
            Request::Status => self.status().map(|status| Reply::Status(Box::new(status))),
            Request::Rollback { image, to } => self.rollback(image, to.as_ref()).map(Reply::Done),
            Request::Pin { image, pinned } => self.pin(image, *pinned).map(Reply::Done),
            Request::Rm { image } => self.rm(image).map(Reply::Done),
            Request::Verify { repair } => self.verify(*repair, progress).map(Reply::Verify),
        };
        reply.unwrap_or_else(|problem| Reply::Failed(problem.0))
    }
}

/// Why a command could not be carried out, for the owner.
struct Problem(String);

impl From<StoreError> for Problem {
    fn from(e: StoreError) -> Self {
        Problem(e.to_string())
    }
}

/// A tag is what most commands are about.
fn tag_of(image: &Reference) -> Result<&crate::oci::Tag, Problem> {
    image
        .tag
        .as_ref()
        .ok_or_else(|| Problem(format!("{image} names a digest and no tag; a digest has one version")))
}

fn unknown(image: &Reference) -> Problem {
    Problem(format!("{image} is not known here; larder ls shows what is"))
}
