//! Files that are read again when they change: certificates and passwords.
//!
//! They are looked at when what they say is used, at most once in [`budget::WATCHED_FILES_EVERY`], and at once where what
//! they said was refused; nobody waits for a change. A file counts as changed when another is in its place - by a rename
//! or by a link on the way to it - and when it was written to.
//!
//! A change that cannot be used is logged once, and what was read before stays in use: a certificate and its key are
//! seldom replaced in one moment.

use crate::budget;
use crate::sync::Mutex;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// What tells two states of a file apart: device, inode, length, and time of change in nanoseconds.
type FileState = Option<(u64, u64, u64, i64, i64)>;

/// What was read of some files.
pub struct Watched<T> {
    files: Vec<PathBuf>,
    read: Box<dyn Fn() -> Result<T, String> + Send + Sync>,
    state: Mutex<Latest<T>>,
}

impl<T> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("files", &self.files).finish_non_exhaustive()
    }
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
    pub fn open(
        files: Vec<PathBuf>,
        read: impl Fn() -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Watched<T>, String> {
        let seen = look(&files);
        let value = Arc::new(read()?);
        Ok(Watched::beginning(value, seen, files, read))
    }

    /// The same where `value` was read of them before, and stands in as long as they cannot be read again.
    pub fn resume(
        value: T,
        files: Vec<PathBuf>,
        read: impl Fn() -> Result<T, String> + Send + Sync + 'static,
    ) -> Watched<T> {
        let seen = look(&files);
        let value = Arc::new(read().unwrap_or(value));
        Watched::beginning(value, seen, files, read)
    }

    /// What was read of no file and stays as it is.
    pub fn fixed(value: T) -> Watched<T> {
        let never = || Err("it was read of no file".to_owned());
        Watched::beginning(Arc::new(value), Vec::new(), Vec::new(), never)
    }

    fn beginning(
        value: Arc<T>,
        seen: Vec<FileState>,
        files: Vec<PathBuf>,
        read: impl Fn() -> Result<T, String> + Send + Sync + 'static,
    ) -> Watched<T> {
        let latest = Latest { value, files: seen, looked: Instant::now() };
        Watched { files, read: Box::new(read), state: Mutex::new(latest) }
    }

    /// What the files say; they are looked at once in [`budget::WATCHED_FILES_EVERY`].
    pub fn current(&self) -> Arc<T> {
        let mut latest = self.state.lock();
        if latest.looked.elapsed() >= budget::WATCHED_FILES_EVERY {
            latest.looked = Instant::now();
            self.refresh(&mut latest);
        }
        Arc::clone(&latest.value)
    }

    /// What the files say, which are looked at now.
    pub fn now(&self) -> Arc<T> {
        let mut latest = self.state.lock();
        latest.looked = Instant::now();
        self.refresh(&mut latest);
        Arc::clone(&latest.value)
    }

    /// What the files say if that is not what was `used`, which was refused: they are looked at now.
    pub fn newer_than(&self, used: &Arc<T>) -> Option<Arc<T>> {
        let mut latest = self.state.lock();
        if Arc::ptr_eq(&latest.value, used) {
            latest.looked = Instant::now();
            self.refresh(&mut latest);
        }
        (!Arc::ptr_eq(&latest.value, used)).then(|| Arc::clone(&latest.value))
    }

    fn refresh(&self, latest: &mut Latest<T>) {
        let seen = look(&self.files);
        if seen == latest.files {
            return;
        }
        let changed =
            self.files.iter().zip(seen.iter().zip(&latest.files)).filter(|(_, (now, then))| now != then);
        let names: Vec<_> = changed.map(|(file, _)| file.display().to_string()).collect();
        latest.files = seen;
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("larder-watched-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn watched(file: &Path) -> Watched<String> {
        let path = file.to_owned();
        let read = move || match fs::read_to_string(&path).unwrap_or_default() {
            text if text.is_empty() => Err("it is empty".to_owned()),
            text => Ok(text),
        };
        Watched::open(vec![file.to_owned()], read).unwrap()
    }

    /// What is new after `change`.
    fn after(watched: &Watched<String>, change: impl FnOnce()) -> Option<String> {
        let used = Arc::clone(&watched.state.lock().value);
        change();
        watched.newer_than(&used).map(|value| value.to_string())
    }

    #[test]
    fn every_kind_of_change_counts() {
        let folder = folder("kinds");
        let file = folder.join("secret");
        fs::write(&file, "one").unwrap();
        let plain = watched(&file);
        assert_eq!(after(&plain, || {}), None);
        assert_eq!(after(&plain, || fs::write(&file, "three").unwrap()).as_deref(), Some("three"));
        let renamed = after(&plain, || {
            fs::write(folder.join("new"), "fours").unwrap();
            fs::rename(folder.join("new"), &file).unwrap();
        });
        assert_eq!(renamed.as_deref(), Some("fours"));
        // As a kubelet does it: secret -> ..data/secret, ..data -> a folder of its own for each state.
        for state in ["a", "b"] {
            fs::create_dir(folder.join(state)).unwrap();
            fs::write(folder.join(state).join("secret"), state).unwrap();
        }
        symlink("a", folder.join("..data")).unwrap();
        let link = folder.join("link");
        symlink("..data/secret", &link).unwrap();
        let linked = watched(&link);
        let swapped = after(&linked, || {
            symlink("b", folder.join("..data_tmp")).unwrap();
            fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
        });
        assert_eq!(swapped.as_deref(), Some("b"));
    }

    #[test]
    fn what_cannot_be_used_changes_nothing() {
        let folder = folder("broken");
        let file = folder.join("secret");
        fs::write(&file, "one").unwrap();
        let plain = watched(&file);
        assert_eq!(after(&plain, || fs::write(&file, "").unwrap()), None);
        assert_eq!(after(&plain, || fs::remove_file(&file).unwrap()), None);
        assert_eq!(*plain.current(), "one");
        assert_eq!(after(&plain, || fs::write(&file, "two").unwrap()).as_deref(), Some("two"));
        let stands_in = Watched::resume("first".to_owned(), vec![file.clone()], || Err("no".to_owned()));
        assert_eq!(*stands_in.current(), "first");
        assert_eq!(after(&Watched::fixed("fixed".to_owned()), || {}), None);
    }
}
