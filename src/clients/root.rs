//! The file system of a board: reading and replacing clients' files below its root.
//!
//! A file is replaced as one: new file, flush, rename, flush of the folder. It keeps its mode and owner. A path that a
//! symbolic link would lead elsewhere is refused. Failures are sentences for the owner.

use super::Present;
use crate::budget;
use crate::files;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Component, Path, PathBuf};

/// The file system of a board: `/`, or the folder in which an image of one is being made.
#[derive(Clone, Debug)]
pub struct Root(PathBuf);

impl Root {
    /// The board whose `/` is `path`.
    ///
    /// # Errors
    /// There is no such folder.
    pub fn new(path: &Path) -> Result<Root, String> {
        match fs::canonicalize(path) {
            Ok(path) if path.is_dir() => Ok(Root(path)),
            Ok(_) => Err(format!(
                "{} is not a directory; --root is the directory that contains etc/",
                path.display()
            )),
            Err(e) => Err(format!("cannot use {} as the root: {e}", path.display())),
        }
    }

    /// Where a path of the board is.
    pub fn at(&self, path: &Path) -> PathBuf {
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Refuses a path on which a link could lead elsewhere: the last part anywhere, each part where an image is made,
    /// because there an absolute link would lead out of it.
    pub(super) fn check(&self, path: &Path) -> Result<(), String> {
        let mut so_far = self.0.clone();
        let parts: Vec<_> = path.components().filter(|part| !matches!(part, Component::RootDir)).collect();
        for (n, part) in parts.iter().enumerate() {
            let Component::Normal(name) = part else {
                return Err(format!("{} is not a plain path", path.display()));
            };
            so_far.push(name);
            let last = n + 1 == parts.len();
            let is_link = fs::symlink_metadata(&so_far).is_ok_and(|meta| meta.is_symlink());
            if is_link && (last || self.0 != Path::new("/")) {
                let to = fs::read_link(&so_far).unwrap_or_default();
                return Err(format!(
                    "{} is a symbolic link to {}, and larder would put a file in its place: replace the link with \
                     its target, or change the target by hand",
                    so_far.display(),
                    to.display()
                ));
            }
        }
        Ok(())
    }

    /// A file's bytes, or `None` if there is none.
    pub(super) fn bytes(&self, path: &Path) -> Result<Option<Vec<u8>>, String> {
        self.check(path)?;
        let shown = path.display();
        let failed = |e: io::Error| format!("cannot read {shown}: {e}{}", hint(&e));
        match files::read(&self.at(path), budget::CLIENT_FILE_BYTES_MAX) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(e) => Err(failed(e)),
        }
    }

    /// Puts a file in the place of another, or of none.
    pub(super) fn put(&self, path: &Path, bytes: &[u8], like: Option<&Path>) -> Result<(), String> {
        self.check(path)?;
        let target = self.at(path);
        let failed = |e: io::Error| format!("cannot write {}: {e}{}", path.display(), hint(&e));
        let (Some(folder), Some(name)) = (target.parent(), target.file_name()) else {
            return Err(format!("{} is not a plain path", path.display()));
        };
        let mut new_name = std::ffi::OsString::from(".");
        new_name.push(name);
        new_name.push(".larder-new");
        let new = folder.join(new_name);
        let write = || -> io::Result<()> {
            // One that a power cut left.
            match fs::remove_file(&new) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            file.write_all(bytes)?;
            let like = like.map_or_else(|| target.clone(), Path::to_owned);
            let (mode, owner) = match fs::metadata(&like) {
                Ok(meta) => (meta.permissions(), Some((meta.uid(), meta.gid()))),
                Err(_) => (fs::Permissions::from_mode(0o644), None),
            };
            if let Some((user, group)) = owner {
                let own = file.metadata()?;
                if (own.uid(), own.gid()) != (user, group) {
                    fchown(&file, Some(user), Some(group))?;
                }
            }
            file.set_permissions(mode)?;
            file.sync_all()?;
            fs::rename(&new, &target)?;
            File::open(folder)?.sync_all()
        };
        write().map_err(|e| {
            let _ = fs::remove_file(&new);
            failed(e)
        })
    }

    pub(super) fn remove(&self, path: &Path) -> Result<(), String> {
        self.check(path)?;
        let target = self.at(path);
        let remove = || -> io::Result<()> {
            match fs::remove_file(&target) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            target.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
        };
        remove().map_err(|e| format!("cannot remove {}: {e}{}", path.display(), hint(&e)))
    }

    /// Makes the folders above a file; tells those that were not there.
    pub(super) fn folders(&self, path: &Path) -> Vec<PathBuf> {
        let mut absent: Vec<PathBuf> = path
            .ancestors()
            .skip(1)
            .take_while(|folder| fs::symlink_metadata(self.at(folder)).is_err())
            .map(Path::to_owned)
            .collect();
        absent.reverse();
        absent
    }

    pub(super) fn make_folders(&self, folders: &[PathBuf]) -> Result<(), String> {
        for folder in folders {
            self.check(folder)?;
            let at = self.at(folder);
            match fs::DirBuilder::new().mode(0o755).create(&at) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(format!("cannot make {}: {e}{}", folder.display(), hint(&e)));
                }
                _ => {}
            }
            if let Some(parent) = at.parent() {
                let _ = File::open(parent).and_then(|parent| parent.sync_all());
            }
        }
        Ok(())
    }

    /// Removes folders that were made, innermost first, as far as nothing else is in them.
    pub(super) fn remove_folders(&self, folders: &[PathBuf]) -> Vec<PathBuf> {
        let mut left = Vec::new();
        for folder in folders.iter().rev() {
            match fs::remove_dir(self.at(folder)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => left.push(folder.clone()),
                _ => {}
            }
        }
        left
    }
}

impl Present for Root {
    fn read(&self, path: &Path) -> Result<Option<String>, String> {
        let text =
            |bytes| String::from_utf8(bytes).map_err(|_| format!("{} is not text (UTF-8)", path.display()));
        self.bytes(path)?.map(text).transpose()
    }

    fn list(&self, folder: &Path) -> Result<Vec<PathBuf>, String> {
        let entries = match fs::read_dir(self.at(folder)) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(format!("cannot read {}: {e}{}", folder.display(), hint(&e))),
        };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| folder.join(entry.file_name())).collect();
        paths.sort();
        Ok(paths)
    }
}

/// What an owner can do about it, to follow the error.
pub(super) fn hint(e: &io::Error) -> &'static str {
    match e.kind() {
        io::ErrorKind::PermissionDenied => "; run as root",
        io::ErrorKind::ReadOnlyFilesystem => "; the file system is read-only: make it writable first",
        _ => "",
    }
}
