//! Whose the store is.
//!
//! Under systemd the store belongs to a user of its own, and its owner at the keyboard is root. A journal or an index
//! that root has rewritten could not be read by that user: the server would not start again. So root works on a
//! store as the user that it belongs to.

use super::error::{Result, StoreError};
use rustix::process::{Gid, Uid, geteuid};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Where root works on the store of another user, this thread, and what it starts from now on, becomes that user. To be
/// called while there is no other thread.
///
/// # Errors
/// The system does not let root become that user.
pub fn work_as_owner(data_dir: &Path) -> Result<()> {
    let Ok(meta) = std::fs::metadata(data_dir) else { return Ok(()) };
    if !geteuid().is_root() || meta.uid() == 0 {
        return Ok(());
    }
    let group = Gid::from_raw(meta.gid());
    set_thread_groups(&[])
        .and_then(|()| set_thread_gid(group))
        .and_then(|()| set_thread_uid(Uid::from_raw(meta.uid())))
        .map_err(|e| {
            let what = format!("cannot become the user that {} belongs to", data_dir.display());
            StoreError::io(what)(e.into())
        })
}
