//! Complete content: looking it up, opening it, removing it.
//!
//! The file system is the authority on which blobs exist: a name under `blobs/` is complete content. The index only
//! remembers their order of use, and is never asked whether content is here.

use super::Store;
use super::error::{Result, StoreError};
use super::layout;
use super::record::BlobInfo;
use crate::auth::{AccessClass, Clearance};
use crate::budget;
use crate::oci::{Algorithm, Digest, Repository};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};

/// What keeps the open of a name from leading elsewhere, and from waiting for what is no file.
const HARMLESS: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK);

/// An open blob. It stays readable even if it is evicted meanwhile.
#[derive(Debug)]
pub struct Blob {
    /// The content, at its start.
    pub file: File,
    /// Bytes in it.
    pub size: u64,
    /// Who may read it.
    pub class: AccessClass,
    /// It was not verified since an unclean shutdown, and has to be before it is served.
    pub unverified: bool,
}

impl Blob {
    /// Whether everybody may read it.
    pub fn is_public(&self) -> bool {
        self.class == AccessClass::Public
    }
}

/// The count of a blob's last use; none where the file's time is no count.
fn used(meta: &fs::Metadata) -> u64 {
    u64::try_from(meta.mtime()).ok().filter(|n| *n <= budget::COUNT_MAX).unwrap_or(0)
}

impl Store {
    /// Opens a blob; `None` if it is not here.
    ///
    /// # Errors
    /// The disk fails.
    pub fn open_blob(&self, digest: &Digest) -> Result<Option<Blob>> {
        if self.quarantine.holds(digest) {
            return Ok(None);
        }
        let path = self.layout.blob(digest);
        let opened =
            fs::OpenOptions::new().read(true).custom_flags(HARMLESS.bits().cast_signed()).open(&path);
        match opened.and_then(|file| self.blob_of(digest, file)) {
            Ok(blob) => Ok(blob),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StoreError::io(format!("cannot open {}", path.display()))(e)),
        }
    }

    /// Opens a blob if its name and inode are in memory. `None`: it may be here all the same, which
    /// [`Store::open_blob`] finds out.
    pub fn open_blob_now(&self, digest: &Digest) -> Option<Blob> {
        // Linux has this since 5.12. What does not, or a sandbox without openat2(2), is not asked again.
        static UNKNOWN: AtomicBool = AtomicBool::new(false);
        if UNKNOWN.load(Ordering::Relaxed) || self.quarantine.holds(digest) {
            return None;
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::LARGEFILE | HARMLESS;
        let path = self.layout.blob(digest);
        match rustix::fs::openat2(CWD, &path, flags, Mode::empty(), ResolveFlags::CACHED) {
            Ok(file) => self.blob_of(digest, file.into()).ok().flatten(),
            Err(Errno::INVAL | Errno::NOSYS | Errno::PERM) => {
                UNKNOWN.store(true, Ordering::Relaxed);
                None
            }
            Err(_) => None,
        }
    }

    /// `None`: what was opened is no file.
    fn blob_of(&self, digest: &Digest, file: File) -> io::Result<Option<Blob>> {
        let meta = file.metadata()?;
        let used = used(&meta);
        Ok(meta.is_file().then(|| Blob {
            size: meta.len(),
            class: layout::class_of(&meta),
            unverified: self.uses.is_unverified(digest, used),
            file,
        }))
    }

    /// Whether the blob is here.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.blob_size(digest).is_some()
    }

    /// The blob's size in bytes, if it is here.
    pub fn blob_size(&self, digest: &Digest) -> Option<u64> {
        self.layout.blob_size(digest).filter(|_| !self.quarantine.holds(digest))
    }

    /// The blob's size in bytes, if it may be served through a repository to who may read what `clearance` covers.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn size_through(
        &self,
        repository: &Repository,
        clearance: Clearance,
        digest: &Digest,
    ) -> Result<Option<u64>> {
        let Ok(meta) = fs::symlink_metadata(self.layout.blob(digest)) else { return Ok(None) };
        let here = meta.is_file() && !self.quarantine.holds(digest);
        let served = here && self.may_serve(repository, clearance, digest, layout::class_of(&meta))?;
        Ok(served.then_some(meta.len()))
    }

    /// Whether content of `class` that is on the disk may be served through a repository to who may read what `clearance`
    /// covers: what is not public only where it is known to belong to this repository. While there is no index, that is
    /// not known.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn may_serve(
        &self,
        repository: &Repository,
        clearance: Clearance,
        digest: &Digest,
        class: AccessClass,
    ) -> Result<bool> {
        if class == AccessClass::Public || !clearance.covers(class) {
            return Ok(class == AccessClass::Public);
        }
        match self.link(repository, digest) {
            Err(problem) if problem.is_without_index() => Ok(false),
            link => Ok(link?.is_some_and(|link| link.held)),
        }
    }

    /// Marks content as public: all its bytes came from where everybody may read them, its registry has shown it to
    /// everybody, or its owner says so.
    ///
    /// # Errors
    /// The disk does not take the mode; then it may be private again after a power cut.
    pub fn make_public(&self, digest: &Digest) -> Result<()> {
        self.set_class(digest, AccessClass::Public)
    }

    /// Changes who may read content that is here.
    pub(super) fn set_class(&self, digest: &Digest, class: AccessClass) -> Result<()> {
        let path = self.layout.blob(digest);
        let set = layout::set_class(&path, class);
        self.stamps.changed();
        set?;
        // The mode is the one record of it.
        File::open(&path)
            .and_then(|file| file.sync_all())
            .map_err(StoreError::io(format!("cannot flush {}", path.display())))
    }

    /// Removes blobs, `first` before the others if it is among them. One that is not here is passed over.
    pub(super) fn remove_blobs(&self, first: Option<&Digest>, parts: &[Digest]) -> Result<()> {
        let (first, rest): (Vec<&Digest>, Vec<&Digest>) = parts.iter().partition(|part| Some(*part) == first);
        for digest in first.into_iter().chain(rest) {
            let path = self.layout.blob(digest);
            let moving = self.accounts.moving();
            let size = self.layout.blob_size(digest).unwrap_or(0);
            match fs::remove_file(&path) {
                Ok(()) => {
                    self.stamps.changed();
                    moving.take(size);
                }
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(StoreError::io(format!("cannot remove {}", path.display()))(e)),
            }
        }
        self.uses.forget(parts);
        self.change_index(|index| index.remove_blobs(parts))
    }

    /// Every blob on the disk with its last use, those that are not written down yet included.
    ///
    /// # Errors
    /// A folder cannot be listed.
    pub fn stock(&self) -> Result<Vec<BlobInfo>> {
        let mut blobs: Vec<BlobInfo> = self.blob_files()?.collect();
        for blob in &mut blobs {
            blob.used = self.uses.unwritten(&blob.digest).unwrap_or(blob.used);
        }
        Ok(blobs)
    }

    /// Bytes of all blobs on the disk; `None` if they cannot be listed.
    pub(super) fn list_bytes(&self) -> Option<u64> {
        Some(self.blob_files().ok()?.map(|blob| blob.size).sum())
    }

    /// Every blob on the disk, in no order. Files that are not blobs are passed over.
    ///
    /// # Errors
    /// A folder cannot be listed.
    pub fn blob_files(&self) -> Result<impl Iterator<Item = BlobInfo> + use<>> {
        let mut folders = Vec::new();
        for algorithm in Algorithm::ALL {
            let path = self.layout.blobs(algorithm);
            let entries =
                fs::read_dir(&path).map_err(StoreError::io(format!("cannot list {}", path.display())))?;
            folders.push((algorithm, entries));
        }
        Ok(folders.into_iter().flat_map(|(algorithm, entries)| {
            entries.flatten().filter_map(move |entry| {
                let digest = Digest::from_hex(algorithm, entry.file_name().to_str()?).ok()?;
                let meta = entry.metadata().ok().filter(fs::Metadata::is_file)?;
                Some(BlobInfo { digest, size: meta.len(), used: used(&meta) })
            })
        }))
    }
}
