//! Writing clients' files, and undoing it.
//!
//! - Before the first file changes, what was there lies in a backup with a record next to it (`record`), flushed. So
//!   after a power cut at any moment `--undo` still leads back.
//! - A file that somebody changed since is never overwritten by `--undo`; the refusal says where the backup is.
//!
//! Failures are sentences for the owner. Where a write fails, what was written before it is put back.

use super::record::{Change, FileState, WriteRecord, hash, keep};
pub use super::root::Root;
use super::{Client, MirrorAddress, Present, Profile, Wanted, wanted};
use crate::oci::Digest;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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
pub fn write(
    root: &Root,
    client: Client,
    mirror: &MirrorAddress,
    profile: Profile,
) -> Result<Written, String> {
    let _lock = root.lock()?;
    let done = write_locked(root, client, mirror, profile);
    root.tidy(client);
    done
}

/// The last record: its number, what it says, and that nobody has changed its files since.
type LastRecord = Option<(u64, WriteRecord, bool)>;

fn write_locked(
    root: &Root,
    client: Client,
    mirror: &MirrorAddress,
    profile: Profile,
) -> Result<Written, String> {
    let (last, before) = before_last(root, client)?;
    let mut changes = Vec::new();
    for Wanted { path, text } in wanted(client, mirror, profile, &before)? {
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
    if pending.is_empty() && is_written(&last, &changes) {
        return Ok(Written::default());
    }
    let backup = commit(root, client, &last, &changes, &present)?;
    let had_files = changes.iter().any(|(_, was, _)| was.is_some());
    Ok(Written { changed: pending, backup: had_files.then_some(backup) })
}

/// The last record, and the board as it was before it if its files are as it left them.
fn before_last(root: &Root, client: Client) -> Result<(LastRecord, Before<'_>), String> {
    let mut before = Before { root, texts: BTreeMap::new() };
    let Some((number, record)) = root.newest(client)? else { return Ok((None, before)) };
    let mut untouched = true;
    for entry in &record.files {
        untouched &= root.state(entry)? != FileState::Changed;
    }
    for entry in record.files.iter().filter(|_| untouched) {
        let kept = entry.before.as_ref().map(|kept| root.kept(client, number, kept)).transpose()?;
        before.texts.insert(entry.path.clone(), kept);
    }
    Ok((Some((number, record, untouched)), before))
}

/// Whether the last record is of these changes.
fn is_written(last: &LastRecord, changes: &[Change]) -> bool {
    let Some((_, record, true)) = last else { return changes.is_empty() };
    record.files.len() == changes.len()
        && changes.iter().all(|(path, _, after)| {
            record.files.iter().any(|entry| entry.path == *path && entry.after == hash(after))
        })
}

/// Records the changes and makes them; where the backup is. An untouched last record is replaced.
fn commit(
    root: &Root,
    client: Client,
    last: &LastRecord,
    changes: &[Change],
    present: &[Option<Vec<u8>>],
) -> Result<PathBuf, String> {
    let number = last.as_ref().map_or(1, |(number, ..)| number + 1);
    let mut folders = match last {
        // Those that nothing is in any more go, and are made again if something is to be.
        Some((_, record, true)) => root.remove_folders(&record.folders),
        _ => Vec::new(),
    };
    folders.reverse();
    for (path, ..) in changes {
        for folder in root.folders(path) {
            if !folders.contains(&folder) {
                folders.push(folder);
            }
        }
    }
    let replaces = last.as_ref().filter(|(_, _, untouched)| *untouched).map(|(number, ..)| *number);
    let earlier = |there: &Option<Vec<u8>>| there.as_deref().map(hash).filter(|_| replaces.is_some());
    let earlier: Vec<Option<Digest>> = present.iter().map(earlier).collect();
    keep(root, client, number, replaces, changes, &earlier, &folders)?;
    if let Err(problem) = put_all(root, changes, &folders) {
        let back = put_back(root, changes, present, &folders);
        root.remove_record(client, number);
        return Err(match back {
            Ok(()) => format!("{problem}; nothing was changed"),
            Err(second) => format!("{problem}; and the changes could not be undone: {second}"),
        });
    }
    if let Some(old) = replaces {
        root.remove_record(client, old);
    }
    Ok(root.records_of(client).join(number.to_string()))
}

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

/// Puts one file back to what a record says was there; whether it was not.
fn restore(
    root: &Root,
    client: Client,
    last: &LastRecord,
    path: &Path,
    was: Option<&[u8]>,
) -> Result<bool, String> {
    let Some((number, record, _)) = last else { return Ok(false) };
    let Some(entry) = record.files.iter().find(|entry| entry.path == path) else { return Ok(false) };
    if root.state(entry)? == FileState::AsBefore {
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
        if root.state(entry)? == FileState::Changed {
            let there = entry.before.as_ref().map_or("there was no file before".to_owned(), |(name, _)| {
                format!("the previous file is {}", root.backup(client, number, name).display())
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
            "nothing was undone; correct the files by hand, and remove {}",
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
