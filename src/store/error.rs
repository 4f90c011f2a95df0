//! Errors of the store: one enum.

use crate::oci::Digest;
use rustix::io::Errno;
use std::io::ErrorKind;
use std::path::PathBuf;

/// Why the store could not do something.
#[derive(Debug)]
pub enum StoreError {
    /// The operating system refused.
    Io {
        /// What was being done, with the path.
        what: String,
        /// What it answered.
        source: std::io::Error,
    },
    /// The configured disk limits leave no room, though the disk may not be full.
    NoRoom {
        /// What there is no room for, and why, in a sentence.
        what: String,
    },
    /// Another process holds the store.
    Locked(PathBuf),
    /// The store was written by a newer larder.
    Newer {
        /// The schema found.
        found: u32,
        /// The newest schema this binary knows.
        known: u32,
    },
    /// Content does not hash to its name.
    Mismatch {
        /// The name.
        expected: Box<Digest>,
        /// What it hashes to.
        actual: Box<Digest>,
    },
    /// The index is damaged; it is rebuilt at the next start, or at once by the server.
    Damaged(String),
    /// A write to the index failed, and LMDB has to be reopened before it does more; the server does that at once.
    Stuck(String),
    /// The index is being rebuilt; only content can be asked for.
    Rebuilding,
    /// Another writer is writing this content now.
    Busy(Box<Digest>),
}

/// What the store answers.
pub(super) type Result<T, E = StoreError> = std::result::Result<T, E>;

impl StoreError {
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> StoreError {
        let what = what.into();
        move |source| StoreError::Io { what, source }
    }

    /// Whether there is no usable index now.
    pub fn is_without_index(&self) -> bool {
        matches!(self, StoreError::Rebuilding | StoreError::Damaged(_) | StoreError::Stuck(_))
    }

    /// Whether the process is short of something: threads, open files, memory. It says nothing of the disk.
    pub fn is_exhaustion(&self) -> bool {
        const SHORT: [Errno; 5] = [Errno::AGAIN, Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS];
        let StoreError::Io { source, .. } = self else { return false };
        source.kind() == ErrorKind::WouldBlock
            || Errno::from_io_error(source).is_some_and(|e| SHORT.contains(&e))
    }

    /// Whether the disk would not take something: full, read-only, or failing.
    pub fn is_disk_failure(&self) -> bool {
        matches!(self, StoreError::Io { .. } | StoreError::NoRoom { .. })
    }
}

impl std::fmt::Display for StoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StoreError::Io { what, source } => write!(f, "{what}: {source}"),
            StoreError::NoRoom { what } => f.write_str(what),
            StoreError::Locked(path) => {
                let path = path.display();
                write!(f, "another larder uses {path}: stop it, or name another folder with --data-dir")
            }
            StoreError::Newer { found, known } => write!(
                f,
                "the store was written by a newer larder (schema {found}, this one knows {known}); nothing was changed"
            ),
            StoreError::Mismatch { expected, actual } => {
                write!(f, "content of {expected} hashes to {actual}")
            }
            StoreError::Damaged(what) => write!(f, "the index is damaged: {what}"),
            StoreError::Stuck(what) => write!(f, "the index has to be reopened: {what}"),
            StoreError::Rebuilding => f.write_str("the index is being rebuilt"),
            StoreError::Busy(digest) => write!(f, "{digest} is being written already"),
        }
    }
}

impl std::error::Error for StoreError {}
