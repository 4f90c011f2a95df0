//! What was written into clients' files, and what was there before: records and backups.
//!
//! ```text
//! /etc/larder/clients/lock             flock(2) by the command that writes or undoes; JSON: folders above it that were made
//! /etc/larder/clients/NAME/N/record    JSON: what was written, what was there before
//! /etc/larder/clients/NAME/N/0, 1...   the files as they were
//! ```
//!
//! N grows by one when the owner changed the files between two writes: then each is undone by itself. A record gets its
//! name when it is complete and flushed. Failures are sentences for the owner.

use super::Client;
use super::root::{Root, hint};
use crate::oci::{Algorithm, Digest};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Where backups and records are, from the root.
const KEPT: &str = "/etc/larder/clients";
const RECORD: &str = "record";
const LOCK: &str = "lock";
/// The version of the record that is written and read.
const FORMAT: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WriteRecord {
    pub format: u32,
    pub client: String,
    pub files: Vec<FileRecord>,
    /// Folders that were made, outermost first.
    pub folders: Vec<PathBuf>,
    /// The record whose place this one takes: that one's backups are in this one.
    pub replaces: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileRecord {
    pub path: PathBuf,
    /// The backup's name and hash; `None` if there was no file.
    pub before: Option<(String, Digest)>,
    /// What the record whose place this one takes had made of it: a power cut may have left that.
    pub earlier: Option<Digest>,
    pub after: Digest,
}

/// How a file stands to a record.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum FileState {
    AsBefore,
    AsWritten,
    Changed,
}

/// A file, what was there and what is to be there.
pub(super) type Change = (PathBuf, Option<Vec<u8>>, Vec<u8>);

impl Root {
    pub(super) fn state(&self, entry: &FileRecord) -> Result<FileState, String> {
        let there = self.bytes(&entry.path)?.map(|bytes| hash(&bytes));
        Ok(match (&there, &entry.before) {
            (Some(there), _) if *there == entry.after => FileState::AsWritten,
            (Some(there), Some((_, before))) if there == before => FileState::AsBefore,
            (Some(there), _) if Some(there) == entry.earlier.as_ref() => FileState::AsWritten,
            (None, None) => FileState::AsBefore,
            _ => FileState::Changed,
        })
    }

    /// One writer at a time. The lock remembers which folders were made for it, so that nothing stays of a write that
    /// is taken back.
    pub(super) fn lock(&self) -> Result<File, String> {
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
        let busy = || "another larder config --write or --undo is running; try again".to_owned();
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

    pub(super) fn records_of(&self, client: Client) -> PathBuf {
        Path::new(KEPT).join(client.name())
    }

    /// The newest record, and its number.
    pub(super) fn newest(&self, client: Client) -> Result<Option<(u64, WriteRecord)>, String> {
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
        let bytes = self.bytes(&path)?.ok_or_else(|| wrong("it does not exist".into()))?;
        let record: WriteRecord = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
        if record.format != FORMAT || record.client != client.name() {
            return Err(wrong(format!("it is of format {} for {}", record.format, record.client)));
        }
        Ok(Some((number, record)))
    }

    pub(super) fn backup(&self, client: Client, number: u64, name: &str) -> PathBuf {
        self.records_of(client).join(number.to_string()).join(name)
    }

    /// What was there before, which must still hash to what it was.
    pub(super) fn kept(
        &self,
        client: Client,
        number: u64,
        before: &(String, Digest),
    ) -> Result<Vec<u8>, String> {
        let path = self.backup(client, number, &before.0);
        match self.bytes(&path)? {
            Some(bytes) if hash(&bytes) == before.1 => Ok(bytes),
            _ => Err(format!("the backup {} is missing or corrupt; nothing was changed", path.display())),
        }
    }

    pub(super) fn remove_record(&self, client: Client, number: u64) {
        let folder = self.at(&self.records_of(client).join(number.to_string()));
        // First it loses its name, so that no half of it is taken for one.
        let going = folder.with_extension("old");
        let _ = fs::remove_dir_all(&going);
        if fs::rename(&folder, &going).is_ok() {
            let _ = fs::remove_dir_all(&going);
        }
    }

    /// Removes what no record needs any more.
    pub(super) fn tidy(&self, client: Client) {
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

/// Writes backups and record, and gives them their name when they are complete.
pub(super) fn keep(
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
        files.push(FileRecord { path: path.clone(), before, earlier: earlier.clone(), after: hash(after) });
    }
    let record = WriteRecord {
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

pub(super) fn hash(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}
