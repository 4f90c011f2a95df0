//! Refusals: the answers to a client when there is nothing to serve.
//!
//! Missing, denied and unreachable are three different answers, and none of them is a failure of larder. The text is for
//! the person who reads a pod's events, and says what failed, why, and what to do. Which image was asked for is put before
//! it where it is answered, if it does not say so itself; so is the log line, because the answer to a HEAD has no body.

use crate::fetch::Failure;
use crate::oci::{Digest, RegistryName, Repository};
use crate::store::StoreError;
use crate::via;

/// Why nothing is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The registry is not configured here.
    UnknownRegistry(RegistryName),
    /// Upstream answered 404.
    Missing {
        /// What does not exist.
        what: Missing,
        /// The message.
        message: String,
    },
    /// Upstream answered 401 or 403.
    Denied {
        /// Which of the two.
        status: u16,
        /// The message.
        message: String,
    },
    /// Upstream cannot be asked or sent an invalid answer, and nothing cached can be served instead.
    Unavailable(String),
    /// A limit of larder is reached; the client may retry.
    Busy(String),
    /// The disk cannot store it: it is full and nothing may be removed, or it is read-only, or it fails.
    NotStored(String),
    /// Larder itself failed; the log says how.
    Failed(String),
}

/// What upstream does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// A manifest or tag.
    Manifest,
    /// A blob.
    Blob,
    /// A repository.
    Repository,
    /// The list of the registry's repositories: it gives none.
    Catalogue,
}

/// Why nothing is fetched for a client, which gets what is cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CachedOnly {
    /// `access.pull` does not name the repository, and the client is on another machine.
    AccessPull,
    /// The client's pull secret was accepted earlier, and the registry cannot be asked about it now.
    KeptLogin,
}

impl CachedOnly {
    /// As the cause of an answer that may be stale.
    pub(crate) fn cause(self) -> &'static str {
        match self {
            CachedOnly::AccessPull => "access.pull in larder.toml leaves it at what is cached",
            CachedOnly::KeptLogin => {
                "the registry cannot be asked about this login, which leaves it at what is cached"
            }
        }
    }

    /// Something is not cached. `cached`: what is, if anything is known to be.
    pub(crate) fn refusal(self, repository: &Repository, cached: Option<&str>) -> Refusal {
        let but = cached.map_or_else(String::new, |cached| format!("; {cached}"));
        match self {
            CachedOnly::AccessPull => {
                let message = format!(
                    "{repository} is not fetched for other machines: access.pull in larder.toml does not name it, and this is not cached{but}"
                );
                // To another board a denial would be the registry's.
                if via::way().is_from_board() {
                    return Refusal::Unavailable(message);
                }
                Refusal::Denied { status: 403, message }
            }
            CachedOnly::KeptLogin => Refusal::Unavailable(format!(
                "{} cannot be asked now whether it accepts this login, and this of {repository} is not cached{but}",
                repository.registry
            )),
        }
    }
}

impl Refusal {
    /// What a failure of upstream means for a client that asked for `what`.
    pub(crate) fn from_failure(failure: &Failure, what: Missing) -> Refusal {
        match failure {
            Failure::Missing { .. } => Refusal::Missing { what, message: failure.to_string() },
            Failure::Denied { status, .. } => {
                Refusal::Denied { status: *status, message: failure.to_string() }
            }
            Failure::Unreachable { .. } => Refusal::Unavailable(format!("{failure}; this is not cached")),
            Failure::Wrong { .. } => Refusal::Unavailable(failure.to_string()),
        }
    }

    /// What a failure of the store means for a client. The details stay in the log.
    pub(crate) fn from_store(problem: &StoreError) -> Refusal {
        match problem {
            problem if problem.is_without_index() => {
                Refusal::Busy("the index is being rebuilt; content by digest is served".into())
            }
            StoreError::Busy(digest) => Refusal::Busy(format!("{digest} is being written")),
            lack if lack.is_exhaustion() => {
                log::warn!("{lack}");
                Refusal::Busy("the mirror is short of threads, open files or memory; retry".into())
            }
            other => {
                log::error!("{other}");
                Refusal::Failed("the mirror's store failed; its log says how".into())
            }
        }
    }

    /// Upstream has it, and so had larder a moment ago: that it has gone again says nothing of the repository.
    pub(crate) fn gone(digest: &Digest) -> Refusal {
        Refusal::Busy(format!("{digest} was here and has gone again; retry"))
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refusal::UnknownRegistry(name) => write!(
                f,
                "registry {name} is not configured in this mirror: its larder.toml needs [upstream.\"{name}\"]"
            ),
            Refusal::Busy(message) if !message.ends_with("; retry") => write!(f, "{message}; retry"),
            Refusal::NotStored(message) => write!(f, "{message}; larder doctor on the mirror says more"),
            Refusal::Missing { message, .. }
            | Refusal::Denied { message, .. }
            | Refusal::Unavailable(message)
            | Refusal::Busy(message)
            | Refusal::Failed(message) => f.write_str(message),
        }
    }
}
