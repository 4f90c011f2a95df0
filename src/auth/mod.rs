//! Who asks, and who may read what. Pure: nothing in here reads a file, waits or asks an upstream.
//!
//! | file | what it owns |
//! |---|---|
//! | `credentials` | the user name and password of a request |
//! | `hashes` | the users of a password file, their bcrypt hashes, logins that were verified before |
//! | `pull_secrets` | what registries have answered about logins that are none of the board's users |
//! | `seal` | text that goes out to clients and must come back as it was |
//! | `rules` | which identity may read which class of content |
//!
//! [`Identity`] is what a listener knows of its client; [`AccessClass`] is the class of a repository's content. A login
//! that cannot be verified is refused: failure never means access.

mod credentials;
mod hashes;
mod pull_secrets;
mod rules;
mod seal;

pub use credentials::BasicCredentials;
pub use hashes::{LoginAttempt, Users, VerifiedLogins};
pub use pull_secrets::{
    LoginKey, LoginKeys, ProvenLogins, PullObject, grace_left, hashed_login, slow_hash, slow_hash_matches,
};
pub use rules::{Clearance, may_read};
pub use seal::Seal;

use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Who may read the content of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessClass {
    /// Everybody: it was fetched without credentials.
    Public,
    /// Who may read the repository: it was fetched with credentials.
    Private,
    /// Not known: it did not come from the registry.
    Unproven,
}

impl AccessClass {
    /// The class of what an upstream gives that is asked with credentials, or without.
    pub fn of_upstream(with_credentials: bool) -> AccessClass {
        if with_credentials { AccessClass::Private } else { AccessClass::Public }
    }

    /// As it is written on the disk.
    pub fn as_str(self) -> &'static str {
        match self {
            AccessClass::Public => "public",
            AccessClass::Private => "private",
            AccessClass::Unproven => "unproven",
        }
    }
}

/// The client of a connection, as far as the listener knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Where the connection comes from.
    pub address: IpAddr,
    /// The user who has logged in, or whom the client's certificate names.
    pub user: Option<String>,
    /// Nobody on the way can read what is sent: TLS, or the same machine.
    pub sealed: bool,
    /// It has logged in by a pull secret that its registry cannot be asked about now: it gets what is cached.
    pub cached_only: bool,
}

impl Identity {
    /// A client that has not logged in.
    pub fn anonymous(address: IpAddr) -> Identity {
        let sealed = address.to_canonical().is_loopback();
        Identity { address, user: None, sealed, cached_only: false }
    }
}
