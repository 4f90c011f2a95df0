//! The kept logins: for each repository and user a slow hash of the last pull secret that the registry accepted.
//!
//! A file of its own with mode 0600, each line with a checksum as in the journal, replaced as a whole; without entries there
//! is none. A line that is damaged, too long or from a running time that was lost is no entry, so failure is never access.

use super::Store;
use super::error::{Result, StoreError};
use super::journal::{line, parse};
use super::layout::write_file;
use crate::budget;
use crate::files;
use crate::oci::Repository;
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;

/// One kept login.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptLogin {
    /// What it opens.
    pub repository: Repository,
    /// The user's name at the registry.
    pub user: String,
    /// A slow, salted hash.
    pub hash: String,
    /// When the registry accepted it, in milliseconds for which servers have run.
    pub accepted_ms: u64,
}

impl KeptLogin {
    fn is_sound(&self, now_ms: u64) -> bool {
        let short = self.user.len() <= budget::KEPT_USER_BYTES_MAX && self.hash.len() <= 64;
        short && self.accepted_ms <= now_ms
    }
}

impl Store {
    /// For how long servers have run, in milliseconds.
    pub fn served_ms(&self) -> u64 {
        self.uses.session.served_ms()
    }

    /// The kept logins, as many as may be.
    pub fn kept_logins(&self) -> Vec<KeptLogin> {
        let read = files::read(&self.layout.kept_logins(), budget::KEPT_LOGINS_BYTES_MAX);
        let text = read.unwrap_or_else(|e| {
            if e.kind() != ErrorKind::NotFound {
                log::warn!("kept logins cannot be read: {e}");
            }
            Vec::new()
        });
        let now = self.served_ms();
        let entries = text.split_inclusive(|byte| *byte == b'\n').filter_map(parse::<KeptLogin>);
        entries.filter(|entry| entry.is_sound(now)).take(budget::KEPT_LOGINS_MAX).collect()
    }

    /// Replaces the kept logins; none removes the file.
    ///
    /// # Errors
    /// The disk fails; then what was kept before may still be there.
    pub fn keep_logins(&self, logins: &[KeptLogin]) -> Result<()> {
        let path = self.layout.kept_logins();
        if logins.is_empty() {
            return match std::fs::remove_file(&path) {
                Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
                removed => removed.map_err(StoreError::io(format!("cannot remove {}", path.display()))),
            };
        }
        // Else after a power cut they would seem to have been accepted in the future.
        self.save_session()?;
        write_file(&path, &logins.iter().flat_map(line).collect::<Vec<u8>>())
    }
}
