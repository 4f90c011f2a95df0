//! Files that are read again when they change: certificates and passwords.
//!
//! A change that cannot be used is logged once, and what was read before stays in use: a certificate and its key are
//! seldom replaced in one moment.

use crate::budget;
use crate::sync::Mutex;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// What tells two states of a file apart: device, inode, length, and time of change in nanoseconds.
type FileState = Option<(u64, u64, u64, i64, i64)>;

/// What was read of some files.
pub(super) struct Watched<T> {
    files: Vec<PathBuf>,
    read: Box<dyn Fn() -> Result<T, String> + Send + Sync>,
    state: Mutex<Latest<T>>,
}

struct Latest<T> {
    value: Arc<T>,
    files: Vec<FileState>,
    looked: Instant,
}

impl<T> Watched<T> {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// Those of `read`.
    pub(super) fn open(
        files: Vec<PathBuf>,
        read: impl Fn() -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Watched<T>, String> {
        let seen = look(&files);
        let latest = Latest { value: Arc::new(read()?), files: seen, looked: Instant::now() };
        Ok(Watched { files, read: Box::new(read), state: Mutex::new(latest) })
    }

    /// What the files say; they are looked at once in [`budget::WATCHED_FILES_EVERY`].
    pub(super) fn current(&self) -> Arc<T> {
        let mut latest = self.state.lock();
        if latest.looked.elapsed() >= budget::WATCHED_FILES_EVERY {
            latest.looked = Instant::now();
            self.refresh(&mut latest);
        }
        Arc::clone(&latest.value)
    }

    fn refresh(&self, latest: &mut Latest<T>) {
        let seen = look(&self.files);
        if seen == latest.files {
            return;
        }
        latest.files = seen;
        let names: Vec<_> = self.files.iter().map(|file| file.display().to_string()).collect();
        match (self.read)() {
            Ok(value) => {
                log::info!("{} changed and is in use", names.join(", "));
                latest.value = Arc::new(value);
            }
            Err(problem) => log::warn!("{problem}; what was read before stays in use"),
        }
    }
}

fn look(files: &[PathBuf]) -> Vec<FileState> {
    let state = |file: &PathBuf| {
        let meta = std::fs::metadata(file).ok()?;
        Some((meta.dev(), meta.ino(), meta.len(), meta.ctime(), meta.ctime_nsec()))
    };
    files.iter().map(state).collect()
}
