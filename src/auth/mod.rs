//! Who asks, and what content may be shown to whom. Pure: nothing in here reads a file or asks an upstream.
//!
//! [`Identity`] is what a door knows of its client; [`AccessClass`] is what a repository's content is. Which identity may
//! see which digest is decided by the mirror, in one place.

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

/// The client of a connection, as far as a door knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Where the connection comes from.
    pub address: IpAddr,
    /// The user who has logged in.
    pub user: Option<String>,
}

impl Identity {
    /// A client that has not logged in.
    pub fn anonymous(address: IpAddr) -> Identity {
        Identity { address, user: None }
    }
}
