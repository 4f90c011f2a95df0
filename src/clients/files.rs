//! Writing clients' files, and taking it back: the only file of this room that touches the disk.
//!
//! - Before the first file changes, what was there lies in a backup with a record beside it, flushed. So a power cut at
//!   any moment leaves a board on which `--undo` still leads back.
//! - A file is replaced whole: new file, flush, rename, flush of the folder. It keeps its mode and owner.
//! - A file that somebody changed since is never overwritten by `--undo`; the refusal says where the backup is.
//!
//! ```text
//! /etc/larder/clients/lock             flock(2) by who writes or takes back; JSON: which folders above it were made
//! /etc/larder/clients/NAME/N/record    JSON: what was written, what was there before
//! /etc/larder/clients/NAME/N/0, 1...   the files as they were
//! ```
//!
//! N grows by one when the owner changed the files between two writes: then each is taken back by itself.
//! Failures are sentences for the owner. Where a write fails, what was written before it is put back.

use super::{Client, Mirror, Present, Profile, Wanted, wanted};
use crate::budget;
use crate::oci::{Algorithm, Digest};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Component, Path, PathBuf};

/// Where backups and records are, from the root.
const KEPT: &str = "/etc/larder/clients";
const RECORD: &str = "record";
const LOCK: &str = "lock";
/// The version of the record that is written and read.
const FORMAT: u32 = 1;

/// The file system of a board: `/`, or the folder in which an image of one is being made.
#[derive(Clone, Debug)]
pub struct Root(PathBuf);

/// What a write did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Files that are as they should be now, and were not before.
    pub changed: Vec<PathBuf>,
    /// Where what was there before is kept, if anything was.
    pub backup: Option<PathBuf>,
}

/// What taking back did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Undone {
    /// Files that are as they were.
    pub restored: Vec<PathBuf>,
    /// Files that were not there before, and are gone.
    pub removed: Vec<PathBuf>,
    /// Folders that were not there before and stay, because something else is in them.
    pub left: Vec<PathBuf>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    format: u32,
    client: String,
    files: Vec<Entry>,
    /// Folders that were made, outermost first.
    folders: Vec<PathBuf>,
    /// The record whose place this one takes: that one's backups are in this one.
    replaces: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    path: PathBuf,
    /// The backup's name and hash; `None` if there was no file.
    before: Option<(String, Digest)>,
    /// What the record whose place this one takes had made of it: a power cut may have left that.
    earlier: Option<Digest>,
    after: Digest,
}

/// How a file stands to a record.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    AsBefore,
    AsWritten,
    Changed,
}

impl Root {
    /// The board whose `/` is `path`.
    ///
    /// # Errors
    /// There is no such folder.
    pub fn new(path: &Path) -> Result<Root, String> {
        match fs::canonicalize(path) {
            Ok(path) if path.is_dir() => Ok(Root(path)),
            Ok(_) => Err(format!("{} is no folder; --root is the folder that holds etc/", path.display())),
            Err(e) => Err(format!("cannot use {} as the root: {e}", path.display())),
        }
    }

    /// Where a path of the board is.
    pub fn at(&self, path: &Path) -> PathBuf {
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Refuses a path on which a link could lead elsewhere: the last part anywhere, each part where an image is made,
    /// because there an absolute link would lead out of it.
    fn check(&self, path: &Path) -> Result<(), String> {
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
                    "{} is a symbolic link to {}, and larder would put a file in its place: replace the link by what \
                     it leads to, or make the change there by hand",
                    so_far.display(),
                    to.display()
                ));
            }
        }
        Ok(())
    }

    /// A file's bytes, or `None` if there is none.
    fn bytes(&self, path: &Path) -> Result<Option<Vec<u8>>, String> {
        self.check(path)?;
        let shown = path.display();
        let failed = |e: io::Error| format!("cannot read {shown}: {e}{}", hint(&e));
        // Not waiting for a pipe's other end.
        let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(self.at(path)) {
            Ok(file) => file,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(e) => return Err(failed(e)),
        };
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(format!("{shown} is no file"));
        }
        let mut bytes = Vec::new();
        file.take(budget::CLIENT_FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > budget::CLIENT_FILE_BYTES_MAX {
            let most = budget::CLIENT_FILE_BYTES_MAX;
            return Err(format!("{shown} is larger than {most} bytes, which no such file should be"));
        }
        Ok(Some(bytes))
    }

    fn state(&self, entry: &Entry) -> Result<State, String> {
        let there = self.bytes(&entry.path)?.map(|bytes| hash(&bytes));
        Ok(match (&there, &entry.before) {
            (Some(there), _) if *there == entry.after => State::AsWritten,
            (Some(there), Some((_, before))) if there == before => State::AsBefore,
            (Some(there), _) if Some(there) == entry.earlier.as_ref() => State::AsWritten,
            (None, None) => State::AsBefore,
            _ => State::Changed,
        })
    }

    /// Puts a file in the place of another, or of none.
    fn put(&self, path: &Path, bytes: &[u8], like: Option<&Path>) -> Result<(), String> {
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

    fn remove(&self, path: &Path) -> Result<(), String> {
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
    fn folders(&self, path: &Path) -> Vec<PathBuf> {
        let mut absent: Vec<PathBuf> = path
            .ancestors()
            .skip(1)
            .take_while(|folder| fs::symlink_metadata(self.at(folder)).is_err())
            .map(Path::to_owned)
            .collect();
        absent.reverse();
        absent
    }

    fn make_folders(&self, folders: &[PathBuf]) -> Result<(), String> {
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
    fn remove_folders(&self, folders: &[PathBuf]) -> Vec<PathBuf> {
        let mut left = Vec::new();
        for folder in folders.iter().rev() {
            match fs::remove_dir(self.at(folder)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => left.push(folder.clone()),
                _ => {}
            }
        }
        left
    }

    /// One writer at a time. The lock remembers which folders were made for it, so that nothing stays of a write that
    /// is taken back.
    fn lock(&self) -> Result<File, String> {
        let path = Path::new(KEPT).join(LOCK);
        self.check(&path)?;
        let made = self.folders(&path);
        self.make_folders(&made)?;
        let failed = |e: io::Error| format!("cannot lock {KEPT}: {e}{}", hint(&e));
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.at(&path))
            .map_err(failed)?;
        let busy = || "another larder config --write or --undo is under way; try again".to_owned();
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| busy())?;
        // One that has just ended may have taken the file away between its opening here and the lock.
        let own = file.metadata().map_err(failed)?.ino();
        if !fs::metadata(self.at(&path)).is_ok_and(|meta| meta.ino() == own) {
            return Err(busy());
        }
        if !made.is_empty() {
            serde_json::to_writer(&mut file, &made).map_err(|e| failed(e.into()))?;
        }
        Ok(file)
    }

    fn records_of(&self, client: Client) -> PathBuf {
        Path::new(KEPT).join(client.name())
    }

    /// The newest record, and its number.
    fn newest(&self, client: Client) -> Result<Option<(u64, Record)>, String> {
        let folder = self.records_of(client);
        let entries = match fs::read_dir(self.at(&folder)) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(format!("cannot read {}: {e}{}", folder.display(), hint(&e))),
        };
        let names = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok());
        let Some(number) = names.max() else { return Ok(None) };
        let path = folder.join(number.to_string()).join(RECORD);
        let wrong = |why: String| format!("the record {} cannot be read: {why}", path.display());
        let bytes = self.bytes(&path)?.ok_or_else(|| wrong("it is not there".into()))?;
        let record: Record = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
        if record.format != FORMAT || record.client != client.name() {
            return Err(wrong(format!("it is of format {} for {}", record.format, record.client)));
        }
        Ok(Some((number, record)))
    }

    fn backup(&self, client: Client, number: u64, name: &str) -> PathBuf {
        self.records_of(client).join(number.to_string()).join(name)
    }

    /// What was there before, which must still hash to what it was.
    fn kept(&self, client: Client, number: u64, before: &(String, Digest)) -> Result<Vec<u8>, String> {
        let path = self.backup(client, number, &before.0);
        match self.bytes(&path)? {
            Some(bytes) if hash(&bytes) == before.1 => Ok(bytes),
            _ => {
                Err(format!("the backup {} is gone or damaged, so that nothing was changed", path.display()))
            }
        }
    }

    fn remove_record(&self, client: Client, number: u64) {
        let folder = self.at(&self.records_of(client).join(number.to_string()));
        // First it loses its name, so that no half of it is taken for one.
        let going = folder.with_extension("old");
        let _ = fs::remove_dir_all(&going);
        if fs::rename(&folder, &going).is_ok() {
            let _ = fs::remove_dir_all(&going);
        }
    }

    /// Removes what no record needs any more.
    fn tidy(&self, client: Client) {
        let records = self.at(&self.records_of(client));
        for entry in fs::read_dir(&records).into_iter().flatten().flatten() {
            // What a power cut left half made or half removed.
            if Path::new(&entry.file_name()).extension().is_some_and(|end| end == "new" || end == "old") {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let _ = fs::remove_dir(&records);
        let kept = self.at(Path::new(KEPT));
        let only_lock =
            fs::read_dir(&kept).is_ok_and(|entries| entries.flatten().all(|e| e.file_name() == LOCK));
        if only_lock {
            let lock = Path::new(KEPT).join(LOCK);
            let made = self.bytes(&lock).ok().flatten().unwrap_or_default();
            let made: Vec<PathBuf> = serde_json::from_slice(&made).unwrap_or_default();
            let _ = fs::remove_file(self.at(&lock));
            let above: Vec<PathBuf> = made.into_iter().filter(|folder| lock.starts_with(folder)).collect();
            self.remove_folders(&above);
        }
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

/// The board as it was before a record's write.
struct Before<'a> {
    root: &'a Root,
    texts: BTreeMap<PathBuf, Option<Vec<u8>>>,
}

impl Present for Before<'_> {
    fn read(&self, path: &Path) -> Result<Option<String>, String> {
        match self.texts.get(path) {
            None => self.root.read(path),
            Some(None) => Ok(None),
            Some(Some(bytes)) => String::from_utf8(bytes.clone())
                .map(Some)
                .map_err(|_| format!("{} is not text (UTF-8)", path.display())),
        }
    }

    fn list(&self, folder: &Path) -> Result<Vec<PathBuf>, String> {
        let mut paths = self.root.list(folder)?;
        paths.retain(|path| self.texts.get(path) != Some(&None));
        Ok(paths)
    }
}

/// Writes the files of a client, merged with what is there.
///
/// # Errors
/// Sentences that say what stands in the way and what to do; then nothing has changed.
pub fn write(root: &Root, client: Client, mirror: &Mirror, profile: Profile) -> Result<Written, String> {
    let _lock = root.lock()?;
    let done = write_locked(root, client, mirror, profile);
    root.tidy(client);
    done
}

fn write_locked(root: &Root, client: Client, mirror: &Mirror, profile: Profile) -> Result<Written, String> {
    let last = root.newest(client)?;
    let mut before = Before { root, texts: BTreeMap::new() };
    let mut untouched = true;
    if let Some((number, record)) = &last {
        for entry in &record.files {
            untouched &= root.state(entry)? != State::Changed;
        }
        for entry in record.files.iter().filter(|_| untouched) {
            let kept = entry.before.as_ref().map(|kept| root.kept(client, *number, kept)).transpose()?;
            before.texts.insert(entry.path.clone(), kept);
        }
    }
    let last = last.map(|(number, record)| (number, record, untouched));
    let files = wanted(client, mirror, profile, &before)?;
    let mut changes = Vec::new();
    for Wanted { path, text } in files {
        let was = match before.texts.get(&path) {
            Some(kept) => kept.clone(),
            None => root.bytes(&path)?,
        };
        if was.as_deref() != Some(text.as_bytes()) {
            changes.push((path, was, text.into_bytes()));
        }
    }
    // What an earlier write made and this one does not want goes back to what it was.
    let mut pending = Vec::new();
    for (path, was) in &before.texts {
        if !changes.iter().any(|(changed, ..)| changed == path)
            && restore(root, client, &last, path, was.as_deref())?
        {
            pending.push(path.clone());
        }
    }
    let mut present = Vec::new();
    for (path, _, after) in &changes {
        let there = root.bytes(path)?;
        if there.as_deref() != Some(after.as_slice()) {
            pending.push(path.clone());
        }
        present.push(there);
    }
    let same_files = match &last {
        Some((_, record, true)) => {
            record.files.len() == changes.len()
                && changes.iter().all(|(path, _, after)| {
                    record.files.iter().any(|entry| entry.path == *path && entry.after == hash(after))
                })
        }
        _ => changes.is_empty(),
    };
    if same_files && pending.is_empty() {
        return Ok(Written::default());
    }
    let number = last.as_ref().map_or(1, |(number, ..)| number + 1);
    let mut folders = match &last {
        // Those that nothing is in any more go, and are made again if something is to be.
        Some((_, record, true)) => root.remove_folders(&record.folders),
        _ => Vec::new(),
    };
    folders.reverse();
    for (path, ..) in &changes {
        for folder in root.folders(path) {
            if !folders.contains(&folder) {
                folders.push(folder);
            }
        }
    }
    let replaces = last.as_ref().filter(|(_, _, untouched)| *untouched).map(|(number, ..)| *number);
    let earlier = |there: &Option<Vec<u8>>| there.as_deref().map(hash).filter(|_| replaces.is_some());
    let earlier: Vec<Option<Digest>> = present.iter().map(earlier).collect();
    keep(root, client, number, replaces, &changes, &earlier, &folders)?;
    if let Err(problem) = put_all(root, &changes, &folders) {
        let back = put_back(root, &changes, &present, &folders);
        root.remove_record(client, number);
        return Err(match back {
            Ok(()) => format!("{problem}; nothing was changed"),
            Err(second) => format!("{problem}; and what was changed could not be put back: {second}"),
        });
    }
    if let Some(old) = replaces {
        root.remove_record(client, old);
    }
    let backup = root.records_of(client).join(number.to_string());
    let had_files = changes.iter().any(|(_, was, _)| was.is_some());
    Ok(Written { changed: pending, backup: had_files.then_some(backup) })
}

/// A file, what was there and what is to be there.
type Change = (PathBuf, Option<Vec<u8>>, Vec<u8>);

fn put_all(root: &Root, changes: &[Change], folders: &[PathBuf]) -> Result<(), String> {
    root.make_folders(folders)?;
    for (path, _, after) in changes {
        if root.bytes(path)?.as_deref() != Some(after.as_slice()) {
            root.put(path, after, None)?;
        }
    }
    Ok(())
}

/// Undoes as much of [`put_all`] as has been done.
fn put_back(
    root: &Root,
    changes: &[Change],
    present: &[Option<Vec<u8>>],
    folders: &[PathBuf],
) -> Result<(), String> {
    for ((path, ..), there) in changes.iter().zip(present) {
        match there {
            _ if root.bytes(path)? == *there => {}
            Some(bytes) => root.put(path, bytes, None)?,
            None => root.remove(path)?,
        }
    }
    root.remove_folders(folders);
    Ok(())
}

/// Writes backups and record, and gives them their name when they are whole.
fn keep(
    root: &Root,
    client: Client,
    number: u64,
    replaces: Option<u64>,
    changes: &[Change],
    earlier: &[Option<Digest>],
    folders: &[PathBuf],
) -> Result<(), String> {
    let folder = root.records_of(client);
    let new = folder.join(format!("{number}.new"));
    let failed = |e: io::Error| format!("cannot keep a backup in {}: {e}{}", folder.display(), hint(&e));
    match fs::remove_dir_all(root.at(&new)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    // Files that a client's configuration may hold passwords in are backed up here.
    fs::DirBuilder::new().mode(0o700).recursive(true).create(root.at(&new)).map_err(failed)?;
    let mut files = Vec::new();
    for (n, ((path, was, after), earlier)) in changes.iter().zip(earlier).enumerate() {
        let before = match was {
            None => None,
            Some(bytes) => {
                let name = n.to_string();
                let like = root.at(path);
                root.put(&new.join(&name), bytes, Some(&like))?;
                Some((name, hash(bytes)))
            }
        };
        files.push(Entry { path: path.clone(), before, earlier: earlier.clone(), after: hash(after) });
    }
    let record = Record {
        format: FORMAT,
        client: client.name().to_owned(),
        files,
        folders: folders.to_vec(),
        replaces,
    };
    let text = serde_json::to_vec_pretty(&record).map_err(|e| failed(e.into()))?;
    root.put(&new.join(RECORD), &text, None)?;
    fs::rename(root.at(&new), root.at(&folder.join(number.to_string()))).map_err(failed)?;
    File::open(root.at(&folder)).and_then(|folder| folder.sync_all()).map_err(failed)
}

/// Puts one file back to what a record says was there; whether it was not.
fn restore(
    root: &Root,
    client: Client,
    last: &Option<(u64, Record, bool)>,
    path: &Path,
    was: Option<&[u8]>,
) -> Result<bool, String> {
    let Some((number, record, _)) = last else { return Ok(false) };
    let Some(entry) = record.files.iter().find(|entry| entry.path == path) else { return Ok(false) };
    if root.state(entry)? == State::AsBefore {
        return Ok(false);
    }
    match (was, &entry.before) {
        (Some(bytes), Some((name, _))) => {
            let like = root.at(&root.backup(client, *number, name));
            root.put(path, bytes, Some(&like))?;
        }
        _ => root.remove(path)?,
    }
    Ok(true)
}

/// Takes the last write of a client's files back.
///
/// # Errors
/// Sentences that say why it cannot be taken back and where what was there before is kept; then nothing has changed.
pub fn undo(root: &Root, client: Client) -> Result<Undone, String> {
    let nothing = || format!("there is nothing to undo: larder has written no file of {client} here");
    if !root.at(&root.records_of(client)).exists() {
        return Err(nothing());
    }
    let _lock = root.lock()?;
    let undone = take_back(root, client)?.ok_or_else(nothing);
    root.tidy(client);
    undone
}

fn take_back(root: &Root, client: Client) -> Result<Option<Undone>, String> {
    let Some((number, record)) = root.newest(client)? else { return Ok(None) };
    let mut changed = Vec::new();
    let mut kept = Vec::new();
    for entry in &record.files {
        if root.state(entry)? == State::Changed {
            let there = entry.before.as_ref().map_or("there was none before".to_owned(), |(name, _)| {
                format!("what was there before is {}", root.backup(client, number, name).display())
            });
            changed.push(format!(
                "{} was changed since larder wrote it, and undoing would lose that: {there}",
                entry.path.display()
            ));
        }
        kept.push(entry.before.as_ref().map(|kept| root.kept(client, number, kept)).transpose()?);
    }
    if !changed.is_empty() {
        changed.push(format!(
            "nothing was undone; put the files right by hand, and remove {}",
            root.records_of(client).join(number.to_string()).display()
        ));
        return Err(changed.join("\n"));
    }
    let mut undone = Undone::default();
    let last = Some((number, record, true));
    let Some((_, record, _)) = &last else { return Ok(None) };
    for (entry, was) in record.files.iter().zip(&kept) {
        restore(root, client, &last, &entry.path, was.as_deref())?;
        if was.is_some() { &mut undone.restored } else { &mut undone.removed }.push(entry.path.clone());
    }
    undone.left = root.remove_folders(&record.folders);
    root.remove_record(client, number);
    if let Some(old) = record.replaces {
        root.remove_record(client, old);
    }
    Ok(Some(undone))
}

fn hash(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}

fn hint(e: &io::Error) -> &'static str {
    match e.kind() {
        io::ErrorKind::PermissionDenied => "; run as root",
        io::ErrorKind::ReadOnlyFilesystem => "; the file system is read-only: make it writable first",
        _ => "",
    }
}
