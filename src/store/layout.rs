//! Where things lie under the data folder, and the flushes that make a name stay.

use super::error::{Result, StoreError};
use crate::auth::AccessClass;
use crate::files;
use crate::oci::{Algorithm, Digest};
use rustix::fs::{FlockOperation, Timespec, Timestamps};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The room on a file system, for an unprivileged process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Room {
    /// Bytes that are free.
    pub free: u64,
    /// Bytes that it has.
    pub total: u64,
    /// Inodes that are free.
    pub free_inodes: u64,
    /// Inodes that it has; 0 where they are made as needed.
    pub inodes: u64,
}

/// The paths of one store.
pub(super) struct Layout {
    data_dir: PathBuf,
}

/// The right to use the store, until it is dropped.
pub(super) struct StoreLock(File);

impl Drop for StoreLock {
    fn drop(&mut self) {
        // To close it is not enough: a process that was started meanwhile has the file too until it runs its own program.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

impl Layout {
    /// Makes the folders that are not there yet.
    pub(super) fn create(data_dir: &Path) -> Result<Layout> {
        let layout = Layout { data_dir: data_dir.to_owned() };
        let folders = [layout.staging(), layout.quarantine()];
        let folders: Vec<PathBuf> =
            Algorithm::ALL.map(|each| layout.blobs(each)).into_iter().chain(folders).collect();
        if folders.iter().all(|folder| folder.is_dir()) {
            return Ok(layout);
        }
        folders.iter().try_for_each(|folder| make_dir(folder))?;
        // What is put into a folder later stays only if the folder itself does.
        flush_dir(&layout.data_dir.join("blobs"))?;
        flush_dir(&layout.data_dir)?;
        if let Some(parent) = layout.data_dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            // It may belong to somebody else; then its owner made DATA, and not just now.
            let _ = flush_dir(parent);
        }
        Ok(layout)
    }

    /// Takes the store's lock for this process.
    pub(super) fn lock(&self) -> Result<StoreLock> {
        let path = self.data_dir.join("lock");
        let opened = files::open_with(own_file().truncate(false), &path);
        let opened = match opened {
            Err(e) if e.kind() == ErrorKind::ReadOnlyFilesystem => files::open(&path),
            opened => opened,
        };
        let file = opened.map_err(StoreError::io(format!("cannot open {}", path.display())))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(StoreLock(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::Locked(self.data_dir.clone())),
            Err(e) => Err(StoreError::io(format!("cannot lock {}", path.display()))(e.into())),
        }
    }

    /// Takes from others what an older larder let them read: all of the store's files but the blobs.
    pub(super) fn keep_to_owner(&self) {
        let own = ["lock", "journal", "session", "index.unproven"].map(|name| self.data_dir.join(name));
        let folders = [self.index(), self.staging()];
        let within = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
        for path in own.into_iter().chain(within.map(|entry| entry.path())) {
            let open =
                fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file() && meta.mode() & 0o077 != 0);
            if open && let Err(e) = fs::set_permissions(&path, fs::Permissions::from_mode(0o600)) {
                log::debug!("{} can be read by others, and its mode cannot be changed: {e}", path.display());
            }
        }
    }

    pub(super) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    pub(super) fn blobs(&self, algorithm: Algorithm) -> PathBuf {
        self.data_dir.join("blobs").join(algorithm.name())
    }

    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs(digest.algorithm()).join(digest.hex())
    }

    /// Bytes in the file of a blob, if there is one.
    pub(super) fn blob_size(&self, digest: &Digest) -> Option<u64> {
        let meta = fs::symlink_metadata(self.blob(digest)).ok()?;
        meta.is_file().then_some(meta.len())
    }

    pub(super) fn staging(&self) -> PathBuf {
        self.data_dir.join("staging")
    }

    /// A staging file by its name; beside it lies its `.origin`.
    pub(super) fn staged(&self, name: &str) -> PathBuf {
        self.staging().join(name)
    }

    /// A staging file for content that comes at once; it is not kept over a restart.
    pub(super) fn scratch(&self, digest: &Digest, n: u64) -> PathBuf {
        self.staging().join(format!("{}-{}.{n}.scratch", digest.algorithm().name(), digest.hex()))
    }

    pub(super) fn quarantine(&self) -> PathBuf {
        self.data_dir.join("quarantine")
    }

    pub(super) fn quarantined(&self, digest: &Digest) -> PathBuf {
        self.quarantine().join(format!("{}-{}", digest.algorithm().name(), digest.hex()))
    }

    /// What is in quarantine, at most `limit`.
    pub(super) fn quarantined_names(&self, limit: usize) -> Vec<Digest> {
        let entries = fs::read_dir(self.quarantine()).into_iter().flatten().flatten().take(limit);
        let name = |entry: fs::DirEntry| entry.file_name().to_str()?.replacen('-', ":", 1).parse().ok();
        entries.filter_map(name).collect()
    }

    /// Bytes of what is in quarantine.
    pub(super) fn quarantined_bytes(&self) -> u64 {
        let entries = fs::read_dir(self.quarantine()).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.metadata().ok()).map(|meta| meta.len()).sum()
    }

    /// Removes content from quarantine; whether there was any.
    pub(super) fn take_from_quarantine(&self, digest: &Digest) -> bool {
        fs::remove_file(self.quarantined(digest)).is_ok()
    }

    pub(super) fn journal(&self) -> PathBuf {
        self.data_dir.join("journal")
    }

    pub(super) fn kept_logins(&self) -> PathBuf {
        self.data_dir.join("kept-logins")
    }

    pub(super) fn session(&self) -> PathBuf {
        self.data_dir.join("session")
    }

    pub(super) fn index(&self) -> PathBuf {
        self.data_dir.join("index")
    }

    /// An empty folder for an index in the making.
    pub(super) fn fresh_index(&self) -> Result<PathBuf> {
        let path = self.data_dir.join("index.new");
        remove_dir(&path)?;
        make_dir(&path)?;
        Ok(path)
    }

    /// Puts a finished index in the place of the old one.
    pub(super) fn replace_index(&self, fresh: &Path) -> Result<()> {
        remove_dir(&self.index())?;
        fs::rename(fresh, self.index())
            .map_err(StoreError::io(format!("cannot put {} in place", fresh.display())))?;
        flush_dir(&self.data_dir)
    }

    /// Removes what an earlier process left behind and nothing can use.
    pub(super) fn clear_scratch(&self) {
        // 0.1.0 counted in it the starts that ended before the index had been read.
        let _ = fs::remove_file(self.data_dir.join("index.unproven"));
        let Ok(entries) = fs::read_dir(self.staging()) else { return };
        for entry in entries.flatten() {
            let path = entry.path();
            let extension = path.extension().unwrap_or_default();
            let alone = extension == "origin" && !path.with_extension("").exists();
            if extension == "scratch" || extension == "new" || alone {
                let _ = fs::remove_file(path);
            }
        }
    }

    /// Writes the count of a blob's last use onto its mtime, as seconds. A blob that has gone is no matter.
    pub(super) fn set_used(&self, path: &Path, n: u64) {
        let at = Timespec { tv_sec: i64::try_from(n).unwrap_or(i64::MAX), tv_nsec: 0 };
        let times = Timestamps { last_access: at, last_modification: at };
        let _ = rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
    }

    /// Whether the file system takes no changes.
    pub(super) fn is_read_only(&self) -> bool {
        rustix::fs::statvfs(&self.data_dir)
            .is_ok_and(|stat| stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
    }

    pub(super) fn room(&self) -> Result<Room> {
        let stat = rustix::fs::statvfs(&self.data_dir).map_err(|e| {
            StoreError::io(format!("cannot ask how full {} is", self.data_dir.display()))(e.into())
        })?;
        Ok(Room {
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            free_inodes: stat.f_favail,
            inodes: stat.f_files,
        })
    }
}

/// Flushes a folder, so that the names in it stay after a power cut.
pub(super) fn flush_dir(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(StoreError::io(format!("cannot flush folder {}", path.display())))
}

/// Notes who may read a blob: the mode is the one record of that which cannot get lost. Whoever knows two classes only takes
/// what is unproven for private.
pub(super) fn set_class(path: &Path, class: AccessClass) -> Result<()> {
    let mode = match class {
        AccessClass::Public => 0o644,
        AccessClass::Private => 0o600,
        AccessClass::Unproven => 0o400,
    };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(StoreError::io(format!("cannot set the mode of {}", path.display())))
}

/// The class that a blob's mode stands for.
pub(super) fn class_of(meta: &fs::Metadata) -> AccessClass {
    match meta.mode() {
        mode if mode & 0o077 != 0 => AccessClass::Public,
        mode if mode & 0o200 != 0 => AccessClass::Private,
        _ => AccessClass::Unproven,
    }
}

/// How every file of the store is made that is no blob: the names of private images are in it, so that its owner alone may
/// read it, whatever the umask is.
pub(super) fn own_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true).write(true).mode(0o600);
    options
}

/// Writes a small file of the store. A power cut may tear it.
pub(super) fn write_own(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    files::open_with(own_file().truncate(true), path)?.write_all(bytes)
}

/// Writes a small file in one piece: a new one beside it, flushed, renamed, the folder flushed.
pub(super) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    replace_file(path, bytes)?;
    path.parent().map_or(Ok(()), flush_dir)
}

/// The same up to the flush of the folder, where the new file is used on.
pub(super) fn replace_file(path: &Path, bytes: &[u8]) -> Result<File> {
    let fresh = path.with_extension("new");
    let failed = |what: &str| StoreError::io(format!("cannot {what} {}", fresh.display()));
    let opened = files::open_with(own_file().read(true).truncate(true), &fresh);
    let mut file = opened.map_err(failed("create"))?;
    file.write_all(bytes).map_err(failed("write"))?;
    file.sync_all().map_err(failed("flush"))?;
    fs::rename(&fresh, path).map_err(failed("rename"))?;
    Ok(file)
}

fn make_dir(path: &Path) -> Result<()> {
    // The group may enter, for the control socket.
    let made = fs::DirBuilder::new().recursive(true).mode(0o750).create(path);
    made.map_err(StoreError::io(format!("cannot make {}", path.display())))
}

fn remove_dir(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    };
    removed.map_err(StoreError::io(format!("cannot remove {}", path.display())))
}
