//! Content on its way in (rule 2): staged in the same file system, hashed as it comes, flushed, renamed.
//!
//! A staging file holds a prefix of the content. It outlives the process, with a small `.origin` file beside it that
//! names the source of the rest. A writer that resumes it hashes the prefix first, because a power cut may have torn the
//! file. What no writer has open is the first thing to go when the disk has no room, and goes in time by itself.

use super::Store;
use super::claims::StagingClaim;
use super::error::{Result, StoreError};
use super::layout::{class_of, flush_dir, own_file, set_class, write_own};
use super::record::checksum;
use crate::auth::AccessClass;
use crate::budget;
use crate::files;
use crate::oci::{Digest, Hasher, RegistryName, Repository, RepositoryName};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Which content is staged, and for whom: nothing is mixed with what another registry, or the same one to other
/// clients, sent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentKey {
    /// The registry that it comes from.
    pub registry: RegistryName,
    /// Who may read it there.
    pub class: AccessClass,
    /// What it is.
    pub digest: Digest,
    /// The repository that fetches it for itself, because what the others share has served it badly.
    pub apart: Option<RepositoryName>,
}

impl ContentKey {
    /// The key of what all repositories of a registry share.
    pub fn shared(registry: RegistryName, class: AccessClass, digest: Digest) -> ContentKey {
        ContentKey { registry, class, digest, apart: None }
    }

    /// The key of the same content for this repository alone.
    #[must_use]
    pub fn apart(&self, repository: &RepositoryName) -> ContentKey {
        ContentKey { apart: Some(repository.clone()), ..self.clone() }
    }

    /// The name of its file: safe and of bounded length for every registry, and the digest is seen at a glance.
    fn file_name(&self) -> String {
        let (registry, class) = (self.registry.as_str(), self.class.as_str());
        let of = match &self.apart {
            None => format!("{registry}/{class}"),
            Some(repository) => format!("{registry}/{class}/{repository}"),
        };
        let of: String = checksum(&[of.as_bytes()]).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{}-{of}", self.file_name_0_1())
    }

    /// Whether this is the key of a file that 0.1.0 left, of the registry of `other`.
    fn is_of_0_1(&self, file: &Path, other: &ContentKey) -> bool {
        self.registry == other.registry && file.file_name().is_some_and(|name| name == &*self.file_name_0_1())
    }

    /// The name that 0.1.0 gave it, whatever the registry.
    fn file_name_0_1(&self) -> String {
        format!("{}-{}", self.digest.algorithm().name(), self.digest.hex())
    }
}

/// What `.origin` says.
#[derive(Serialize, Deserialize)]
struct OriginNote {
    #[serde(flatten)]
    from: StagedFrom,
    /// 0.1.0 did not write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    class: Option<AccessClass>,
    /// How much was there when a writer took it up, and for how long servers had run when one last found more than before.
    #[serde(default)]
    bytes: u64,
    #[serde(default)]
    since_ms: u64,
}

/// Where staged content comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StagedFrom {
    /// The repository that it was asked for in.
    pub repository: Repository,
    /// Its size in bytes, if known.
    pub size: Option<u64>,
}

/// Content being written by one writer. Dropping it leaves the file for a later writer to take up.
#[derive(Debug)]
pub struct Staged {
    digest: Digest,
    path: PathBuf,
    file: Arc<File>,
    hasher: Hasher,
    len: u64,
    /// It can be taken up by a later process, and so has an `.origin` file.
    resumable: bool,
    claim: Option<StagingClaim>,
}

impl Store {
    /// Begins to write content, or takes up what an earlier writer left; [`Staged::len`] says how much that is.
    ///
    /// # Errors
    /// Another writer is writing it, or the disk fails.
    pub fn stage(&self, key: &ContentKey, from: &StagedFrom) -> Result<Staged> {
        let claim = self.claims.take(key)?;
        let path = self.layout.staged(&key.file_name());
        let bytes = fs::metadata(&path).map_or(0, |meta| meta.len());
        let stuck = read_origin(&path).filter(|known| bytes <= known.bytes && path.exists());
        let since_ms = stuck.map_or_else(|| self.uses.session.served_ms(), |known| known.since_ms);
        let note = OriginNote { from: from.clone(), class: Some(key.class), bytes, since_ms };
        let note = serde_json::to_vec(&note).unwrap_or_default();
        let origin = path.with_extension("origin");
        let old = if path.exists() { None } else { self.left_by_0_1(key) };
        let is_ours = |before: &StagedFrom| before.repository == from.repository;
        // What another repository left may be wrong, or not for who may read this one.
        if !read_origin(&path).is_some_and(|before| is_ours(&before.from)) {
            let _ = fs::remove_file(&path);
        }
        let written = origin.with_extension("new");
        write_own(&written, &note)
            .and_then(|()| fs::rename(&written, &origin))
            .map_err(StoreError::io(format!("cannot write {}", origin.display())))?;
        if let Some((left, before, _claim)) = old
            && is_ours(&before)
            && fs::rename(&left, &path).is_ok()
        {
            let _ = fs::remove_file(left.with_extension("origin"));
        }
        let file = open_staging(&path, false)?;
        let mut staged = Staged {
            digest: key.digest.clone(),
            path,
            file: Arc::new(file),
            hasher: Hasher::new(key.digest.algorithm()),
            len: 0,
            resumable: true,
            claim: Some(claim),
        };
        staged.take_up(from.size)?;
        Ok(staged)
    }

    /// What 0.1.0 left of the same registry, with the right to it.
    fn left_by_0_1(&self, key: &ContentKey) -> Option<(PathBuf, StagedFrom, Option<StagingClaim>)> {
        let mut found = self.left_staged(Some(&key.digest)).into_iter();
        // Credentials may have fetched it, so that all of it proves nothing to those who have none.
        let proves = |from: &StagedFrom, bytes: u64| {
            key.class != AccessClass::Public || from.size.is_none_or(|size| bytes < size)
        };
        let (left, of, from, _) =
            found.find(|(left, of, from, bytes)| of.is_of_0_1(left, key) && proves(from, *bytes))?;
        let claim = (of != *key).then(|| self.claims.take(&of)).transpose().ok()?;
        Some((left, from, claim))
    }

    /// A staging file for content that is at hand. Several writers of the same content do not meet.
    pub(super) fn stage_scratch(&self, digest: &Digest) -> Result<Staged> {
        let path = self.layout.scratch(digest, self.uses.sequence.next());
        let file = Arc::new(open_staging(&path, true)?);
        let hasher = Hasher::new(digest.algorithm());
        Ok(Staged { digest: digest.clone(), path, file, hasher, len: 0, resumable: false, claim: None })
    }

    /// What earlier writers left unfinished, with the bytes already there. What 0.1.0 left is of no class yet and called
    /// unproven; it is taken up under any class.
    pub fn unfinished(&self) -> Vec<(ContentKey, StagedFrom, u64)> {
        let mut found: Vec<_> =
            self.left_staged(None).into_iter().map(|(_, key, from, bytes)| (key, from, bytes)).collect();
        found.sort();
        found
    }

    /// What was left of some content, or of all.
    fn left_staged(&self, of: Option<&Digest>) -> Vec<(PathBuf, ContentKey, StagedFrom, u64)> {
        let mut found = Vec::new();
        for entry in
            fs::read_dir(self.layout.staging()).into_iter().flatten().flatten().take(budget::FILLS_MAX * 2)
        {
            let (path, name) = (entry.path(), entry.file_name());
            let parts: Vec<&str> = name.to_str().unwrap_or_default().splitn(3, '-').collect();
            if path.extension().is_some() {
                continue;
            }
            let [algorithm, hex, ..] = parts[..] else { continue };
            let Ok(digest) = format!("{algorithm}:{hex}").parse::<Digest>() else { continue };
            if of.is_some_and(|of| *of != digest) {
                continue;
            }
            let Some(OriginNote { from, class, .. }) = read_origin(&path) else {
                let _ = fs::remove_file(path);
                continue;
            };
            let class = class.unwrap_or(AccessClass::Unproven);
            let shared = ContentKey::shared(from.repository.registry.clone(), class, digest);
            let apart = shared.apart(&from.repository.name);
            let key = match name.to_str() {
                Some(name) if name == shared.file_name() || name == shared.file_name_0_1() => shared,
                Some(name) if name == apart.file_name() => apart,
                _ => {
                    let _ = fs::remove_file(path);
                    continue;
                }
            };
            found.push((path, key, from, entry.metadata().map_or(0, |meta| meta.len())));
        }
        found
    }

    /// Cuts the end off what earlier writers left: a power cut may have lengthened a file and not filled it, and one wrong
    /// byte would cost all of it.
    pub(super) fn cut_torn_ends(&self) {
        for (path, key, _, len) in self.left_staged(None) {
            let sound = len.saturating_sub(budget::TORN_BYTES) / budget::TORN_BYTES * budget::TORN_BYTES;
            let file = files::open_with(OpenOptions::new().write(true), &path);
            if let Err(e) = file.and_then(|file| file.set_len(sound)) {
                log::warn!("cannot cut the end off {}, which is unfinished: {e}", key.digest);
            }
        }
    }

    /// Bytes of everything that is staged.
    pub fn staged_bytes(&self) -> u64 {
        let files = fs::read_dir(self.layout.staging()).into_iter().flatten().flatten();
        files.filter_map(|entry| entry.metadata().ok()).map(|meta| meta.len()).sum()
    }

    /// What is staged and may go, of that which nobody is writing: the longest without a new byte first, with its bytes.
    pub fn idle_staged(&self, may_go: impl Fn(&ContentKey) -> bool) -> Vec<(ContentKey, u64)> {
        let found = self.left_staged(None).into_iter().filter(|(_, key, ..)| may_go(key));
        let mut found: Vec<_> = found
            .filter(|(_, key, ..)| !self.claims.contains(key))
            .map(|(path, key, _, bytes)| (read_origin(&path).map_or(0, |note| note.since_ms), key, bytes))
            .collect();
        found.sort();
        found.into_iter().map(|(_, key, bytes)| (key, bytes)).collect()
    }

    /// Removes staged content that may go and had no new byte for `age`, in time for which servers have run.
    pub fn expire_staged(&self, age: Duration, may_go: impl Fn(&ContentKey) -> bool) {
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let Some(before) = self.uses.session.served_ms().checked_sub(age) else { return };
        for (path, key, ..) in self.left_staged(None) {
            let old = read_origin(&path).is_some_and(|note| note.since_ms <= before);
            if old && may_go(&key) && self.forget_staged(&key).is_ok() {
                log::info!("what was staged of {} has expired: nothing came for long", key.digest);
            }
        }
    }

    /// Removes what is staged of some content although somebody is writing it, who cannot go on then. Its bytes are free at
    /// once: nobody may be reading the file. Returns their number.
    ///
    /// # Errors
    /// It is becoming a blob.
    pub fn revoke_staged(&self, key: &ContentKey) -> Result<u64> {
        let path = self.layout.staged(&key.file_name());
        let mut bytes = 0;
        self.claims.revoke(key, || {
            bytes = fs::metadata(&path).map_or(0, |meta| meta.len());
            // The writer has the file open, so that it would keep its bytes without a name.
            let _ = OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(0));
            let _ = fs::remove_file(&path);
            let _ = fs::remove_file(path.with_extension("origin"));
        })?;
        Ok(bytes)
    }

    /// Bytes that are staged of some content.
    pub fn staged_size(&self, key: &ContentKey) -> u64 {
        fs::metadata(self.layout.staged(&key.file_name())).map_or(0, |meta| meta.len())
    }

    /// Removes what is staged of some content, if nobody is writing it.
    ///
    /// # Errors
    /// Somebody is.
    pub fn forget_staged(&self, key: &ContentKey) -> Result<()> {
        let _claim = self.claims.take(key)?;
        let old =
            self.left_staged(Some(&key.digest)).into_iter().filter(|(left, of, ..)| of.is_of_0_1(left, key));
        let own = self.layout.staged(&key.file_name());
        for path in old.map(|(path, ..)| path).chain([own]) {
            let _ = fs::remove_file(&path);
            let _ = fs::remove_file(path.with_extension("origin"));
        }
        Ok(())
    }
}

/// What was written makes room for something else, and its writer has to end.
fn revoked() -> StoreError {
    StoreError::NoRoom { what: "it made way for what clients wait for".into() }
}

fn read_origin(staged: &Path) -> Option<OriginNote> {
    let bytes = files::read(&staged.with_extension("origin"), budget::ORIGIN_BYTES_MAX).ok()?;
    serde_json::from_slice(&bytes).ok()
}

impl Staged {
    /// Bytes written so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing is written yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The file, for readers that follow the writer.
    pub fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Adds content at the end.
    ///
    /// # Errors
    /// The disk does not take it, or what was written made room for something else.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if !self.while_ours(|| {}) {
            return Err(revoked());
        }
        self.file
            .write_all_at(bytes, self.len)
            .map_err(StoreError::io(format!("cannot write {}", self.path.display())))?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Throws away what is written, to begin from the start.
    ///
    /// # Errors
    /// The file cannot be emptied.
    pub fn restart(&mut self) -> Result<()> {
        self.hasher = Hasher::new(self.digest.algorithm());
        self.len = 0;
        self.file.set_len(0).map_err(StoreError::io(format!("cannot empty {}", self.path.display())))
    }

    /// Whether what is written so far hashes to the name: the content is complete.
    ///
    /// # Errors
    /// [`StoreError::Mismatch`] if it does not.
    pub fn matches(&self) -> Result<()> {
        let actual = self.hasher.clone().finish();
        if actual == self.digest {
            Ok(())
        } else {
            Err(StoreError::Mismatch { expected: Box::new(self.digest.clone()), actual: Box::new(actual) })
        }
    }

    /// Makes the content a blob: private if that is its class, else for everybody. On a mismatch, and on a failed
    /// flush, what was written is discarded.
    ///
    /// # Errors
    /// It does not hash to its name, or the disk does not take it.
    pub fn publish(self, store: &Store, class: AccessClass) -> Result<()> {
        // What more may read already stays theirs.
        let known = store.open_blob(&self.digest).ok().flatten();
        let class = known.map_or(class, |known| class.min(known.class));
        let fixed = self.claim.as_ref().is_none_or(StagingClaim::fix);
        let published = if fixed { self.try_publish(store, class) } else { Err(revoked()) };
        if published.is_err() {
            self.discard();
        }
        published
    }

    fn try_publish(&self, store: &Store, class: AccessClass) -> Result<()> {
        self.matches()?;
        let n = store.uses.sequence.next();
        store.layout.set_used(&self.path, n);
        set_class(&self.path, class)?;
        self.file.sync_all().map_err(StoreError::io(format!("cannot flush {}", self.path.display())))?;
        self.put_in_place(store)?;
        if store.layout.take_from_quarantine(&self.digest) {
            log::info!("{} was refetched in place of the corrupt blob", self.digest);
        }
        store.quarantine.release(&self.digest);
        store.stamps.changed();
        if self.resumable {
            let _ = fs::remove_file(self.path.with_extension("origin"));
        }
        // Verified and in its place, it is a blob; the index hears of it with the next batch of uses.
        store.uses.note(&self.digest, n);
        Ok(())
    }

    fn put_in_place(&self, store: &Store) -> Result<()> {
        let target = store.layout.blob(&self.digest);
        let moving = store.accounts.moving();
        let known = store.layout.blob_size(&self.digest);
        let new = if known.is_some() { 0 } else { self.len };
        // What everybody may read stays so.
        if fs::symlink_metadata(&target).is_ok_and(|meta| class_of(&meta) == AccessClass::Public) {
            set_class(&self.path, AccessClass::Public)?;
        }
        // Counted before it is there: a download that looks for room in between must not count on what this one takes.
        moving.add(new);
        if let Err(e) = fs::rename(&self.path, &target) {
            moving.take(new);
            return Err(StoreError::io(format!("cannot put {} in place", target.display()))(e));
        }
        store.stamps.changed();
        drop(moving);
        let flushed = flush_dir(&store.layout.blobs(self.digest.algorithm()));
        // What may not stay is not counted on.
        if flushed.is_err() && known.is_none() {
            let moving = store.accounts.moving();
            if fs::remove_file(&target).is_ok() {
                store.stamps.changed();
                moving.take(self.len);
            }
        }
        flushed
    }

    /// Removes what was written.
    pub fn discard(&self) {
        self.while_ours(|| {
            let _ = fs::remove_file(&self.path);
            if self.resumable {
                let _ = fs::remove_file(self.path.with_extension("origin"));
            }
        });
    }

    /// Calls `work` unless what was written was removed to make room, and another writer may have begun.
    fn while_ours(&self, work: impl FnOnce()) -> bool {
        match &self.claim {
            Some(claim) => claim.while_held(work),
            None => {
                work();
                true
            }
        }
    }

    /// Hashes what an earlier writer left.
    fn take_up(&mut self, size: Option<u64>) -> Result<()> {
        let failed = || StoreError::io(format!("cannot read {}", self.path.display()));
        let left = self.file.metadata().map_err(failed())?.len();
        if size.is_some_and(|size| left > size) {
            return self.restart();
        }
        let mut chunk = vec![0; budget::FETCH_CHUNK_BYTES];
        while self.len < left {
            match self.file.read_at(&mut chunk, self.len) {
                Ok(0) => break,
                Ok(n) => {
                    self.hasher.update(&chunk[..n]);
                    self.len += n as u64;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.restart(),
            }
        }
        Ok(())
    }
}

fn open_staging(path: &std::path::Path, fresh: bool) -> Result<File> {
    files::open_with(own_file().read(true).truncate(fresh), path)
        .map_err(StoreError::io(format!("cannot open {}", path.display())))
}
