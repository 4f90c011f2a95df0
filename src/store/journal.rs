//! The tag journal: what happened to tags and manifests, in order, so that the index can be rebuilt.
//!
//! A text file. Each line is sixteen hexadecimal digits of checksum, a space, and JSON; the first line is the header
//! with the generation, which changes whenever the file is compacted. A line is believed only if its checksum is
//! right. A torn last line is what a power cut leaves and is cut off; a corrupt line elsewhere is damage of the
//! medium, is skipped and counted, and costs that one event.

use super::error::{Result, StoreError};
use super::layout::{flush_dir, replace_file, write_file};
use super::record::{Rollback, TagVersion, checksum, count_of};
use crate::auth::AccessClass;
use crate::budget;
use crate::files;
use crate::oci::{Digest, Repository, Tag};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// The journal's format; a larger number means a newer larder.
const FORMAT: u32 = 2;
/// Most links that one event of an eviction forgets, so that lines stay short.
pub(super) const LINKS_AT_A_TIME: usize = 256;
/// Events handed over at a time in a replay.
const BATCH: usize = 512;
/// Hexadecimal digits of checksum, and a space.
const PREFIX_BYTES: usize = 17;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Event {
    /// The count at which it happened.
    #[serde(deserialize_with = "count_of")]
    pub(super) n: u64,
    /// What it was.
    #[serde(flatten)]
    pub(super) what: What,
}

/// What can happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum What {
    /// Upstream reported that the tag is this digest.
    Seen {
        repository: Repository,
        tag: Tag,
        #[serde(flatten)]
        version: TagVersion,
    },
    /// That digest's closure was found complete. Of a peer's version, `unix` is when its upstream reported it.
    Complete {
        repository: Repository,
        tag: Tag,
        #[serde(flatten)]
        version: TagVersion,
    },
    /// The owner went back to an earlier version, or ended that.
    Rollback { repository: Repository, tag: Tag, rollback: Option<Rollback> },
    /// The owner wants the tag's image to stay, or no longer.
    Pinned { repository: Repository, tag: Tag, pinned: bool },
    /// The owner wants the tag to be forgotten.
    Removed { repository: Repository, tag: Tag },
    /// An image made room: what versions of tags name, and what it alone was linked to.
    Evicted { repository: Repository, digest: Digest, links: Vec<Digest> },
    /// A manifest was stored.
    Manifest { repository: Repository, digest: Digest, media_type: String },
    /// The repository's upstream holds this blob.
    Held { repository: Repository, digest: Digest },
    /// Who may read the repository.
    Class { repository: Repository, class: AccessClass },
}

impl What {
    /// The manifest that came with the event, and its media type.
    pub(super) fn manifest(&self) -> Option<(&Digest, &str)> {
        match self {
            What::Manifest { digest, media_type, .. } => Some((digest, media_type)),
            What::Seen { .. }
            | What::Complete { .. }
            | What::Rollback { .. }
            | What::Pinned { .. }
            | What::Removed { .. }
            | What::Evicted { .. }
            | What::Held { .. }
            | What::Class { .. } => None,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    generation: u64,
}

/// A place in the journal: how far the index has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) generation: u64,
    pub(super) offset: u64,
}

/// The open journal.
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    /// The file system took no changes when it was opened; nothing is appended until the next start.
    read_only: bool,
    format: u32,
    generation: u64,
    len: u64,
    /// Length after the last compaction.
    base_len: u64,
    /// The folder has not been flushed since the file took its name.
    has_unflushed_name: bool,
}

impl Journal {
    /// Opens the journal, making it if need be, and cuts a torn end off.
    pub(super) fn open(path: PathBuf) -> Result<Journal> {
        if !path.exists() {
            write_file(&path, &line(&Header { format: FORMAT, generation: 1 }))?;
        }
        let opened = files::open_with(OpenOptions::new().read(true).write(true), &path);
        let (opened, read_only) = match opened {
            Err(e) if e.kind() == ErrorKind::ReadOnlyFilesystem => (files::open(&path), true),
            opened => (opened, false),
        };
        let file = opened.map_err(StoreError::io(format!("cannot open {}", path.display())))?;
        let len =
            file.metadata().map_err(StoreError::io(format!("cannot look at {}", path.display())))?.len();
        let mut journal = Journal {
            path,
            file,
            read_only,
            format: FORMAT,
            generation: 0,
            len,
            base_len: 0,
            has_unflushed_name: false,
        };
        let header = journal.first_line()?;
        match header {
            Some(header) if header.format > FORMAT => {
                return Err(StoreError::Newer { found: header.format, known: FORMAT });
            }
            Some(header) => (journal.format, journal.generation) = (header.format, header.generation),
            // Without a header the events are still there; a generation that no index has makes them all be read.
            None => journal.generation = u64::MAX,
        }
        journal.cut_torn_end()?;
        journal.base_len = journal.len;
        Ok(journal)
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing has happened yet.
    pub(super) fn is_empty(&self) -> bool {
        self.len == line(&Header { format: FORMAT, generation: self.generation }).len() as u64
    }

    /// Brings the file to the format of this larder, before anything is written that an older one would misread.
    /// Its events stay where they are: the header has the same length in each format.
    pub(super) fn upgrade(&mut self) -> Result<()> {
        if self.format == FORMAT {
            return self.flush_name();
        }
        self.must_be_writable()?;
        let failed = || StoreError::io(format!("cannot read {}", self.path.display()));
        let mut bytes = line(&Header { format: FORMAT, generation: self.generation });
        let mut rest = vec![0; usize::try_from(self.len).unwrap_or(usize::MAX).saturating_sub(bytes.len())];
        self.file.read_exact_at(&mut rest, bytes.len() as u64).map_err(failed())?;
        bytes.append(&mut rest);
        self.replace(&bytes, self.generation)?;
        log::info!("{} is now of format {FORMAT}: an older larder refuses it", self.path.display());
        Ok(())
    }

    fn must_be_writable(&self) -> Result<()> {
        let refused = StoreError::io(format!("cannot write {}", self.path.display()));
        if self.read_only { Err(refused(ErrorKind::ReadOnlyFilesystem.into())) } else { Ok(()) }
    }

    /// Puts a new text in the place of the file. Whatever fails after the rename, what is appended goes to the new file.
    fn replace(&mut self, bytes: &[u8], generation: u64) -> Result<()> {
        self.file = replace_file(&self.path, bytes)?;
        (self.format, self.generation, self.len) = (FORMAT, generation, bytes.len() as u64);
        self.has_unflushed_name = true;
        self.flush_name()
    }

    fn flush_name(&mut self) -> Result<()> {
        if self.has_unflushed_name {
            self.path.parent().map_or(Ok(()), flush_dir)?;
            self.has_unflushed_name = false;
        }
        Ok(())
    }

    /// Adds events and flushes them. If that fails none of them happened.
    pub(super) fn append<T>(&mut self, events: &[(Event, T)]) -> Result<Position> {
        self.must_be_writable()?;
        self.upgrade()?;
        let bytes: Vec<u8> = events.iter().flat_map(|(event, _)| line(event)).collect();
        let failed = |what: &str| StoreError::io(format!("cannot {what} {}", self.path.display()));
        let written = self.file.write_all_at(&bytes, self.len).map_err(failed("write"));
        let flushed = written.and_then(|()| self.file.sync_data().map_err(failed("flush")));
        if let Err(problem) = flushed {
            // Whatever part of the line got there must not be taken for an event later.
            let _ = self.file.set_len(self.len);
            return Err(problem);
        }
        self.len += bytes.len() as u64;
        Ok(Position { generation: self.generation, offset: self.len })
    }

    /// Whether it has grown enough to be compacted.
    pub(super) fn wants_compaction(&self) -> bool {
        self.len > budget::JOURNAL_COMPACT_BYTES && self.len / 2 > self.base_len
    }

    /// Replaces the journal by `events`, which lead to the same state.
    pub(super) fn compact(&mut self, events: &[Event]) -> Result<()> {
        let generation = if self.generation == u64::MAX { 2 } else { self.generation + 1 };
        let mut bytes = line(&Header { format: FORMAT, generation });
        for event in events {
            bytes.extend_from_slice(&line(event));
        }
        self.replace(&bytes, generation)?;
        self.base_len = self.len;
        Ok(())
    }

    /// Hands the events from byte `from` on to `apply`, in batches, each with the place after its last event.
    pub(super) fn replay(
        &self,
        from: u64,
        mut apply: impl FnMut(Vec<Event>, Position) -> Result<()>,
    ) -> Result<()> {
        let failed = || StoreError::io(format!("cannot read {}", self.path.display()));
        let mut reader = BufReader::new(files::open(&self.path).map_err(failed())?.take(self.len));
        reader.get_mut().get_mut().seek(SeekFrom::Start(from)).map_err(failed())?;
        reader.get_mut().set_limit(self.len.saturating_sub(from));
        let mut position = Position { generation: self.generation, offset: from };
        let mut batch = Vec::new();
        let mut damaged = 0u64;
        let mut text = Vec::new();
        loop {
            text.clear();
            let n = (&mut reader)
                .take(budget::JOURNAL_RECORD_BYTES_MAX as u64)
                .read_until(b'\n', &mut text)
                .map_err(failed())?;
            if n == 0 {
                break;
            }
            position.offset += n as u64;
            match parse::<Event>(&text) {
                Some(event) => batch.push(event),
                None if position.offset == n as u64 && parse::<Header>(&text).is_some() => {}
                None => damaged += 1,
            }
            if batch.len() == BATCH {
                apply(std::mem::take(&mut batch), position)?;
            }
        }
        if damaged > 0 {
            log::warn!("{damaged} corrupt lines in {} were skipped", self.path.display());
        }
        if batch.is_empty() { Ok(()) } else { apply(batch, position) }
    }

    fn first_line(&self) -> Result<Option<Header>> {
        let file = files::open(&self.path)
            .map_err(StoreError::io(format!("cannot open {}", self.path.display())))?;
        let mut text = Vec::new();
        BufReader::new(file.take(1024))
            .read_until(b'\n', &mut text)
            .map_err(StoreError::io(format!("cannot read {}", self.path.display())))?;
        Ok(parse(&text))
    }

    /// Cuts off what comes after the last line end: an event whose flush never returned.
    fn cut_torn_end(&mut self) -> Result<()> {
        let failed = |what: &str| StoreError::io(format!("cannot {what} {}", self.path.display()));
        let tail_from = self.len.saturating_sub(budget::JOURNAL_RECORD_BYTES_MAX as u64);
        let mut tail = vec![0; usize::try_from(self.len - tail_from).unwrap_or(0)];
        self.file.read_exact_at(&mut tail, tail_from).map_err(failed("read"))?;
        let end = tail.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        if end < tail.len() {
            let len = tail_from + end as u64;
            log::warn!(
                "the last {} bytes of {} were torn and are cut off",
                self.len - len,
                self.path.display()
            );
            if !self.read_only {
                self.file.set_len(len).map_err(failed("cut"))?;
                self.file.sync_all().map_err(failed("flush"))?;
            }
            self.len = len;
        }
        Ok(())
    }
}

/// One line of the journal.
pub(super) fn line<T: Serialize>(value: &T) -> Vec<u8> {
    let text = serde_json::to_vec(value).expect("events are plain data");
    let mut line: Vec<u8> =
        checksum(&[&text]).iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect();
    line.push(b' ');
    line.extend_from_slice(&text);
    line.push(b'\n');
    line
}

/// The value of a line, if it is as it was written.
pub(super) fn parse<T: serde::de::DeserializeOwned>(line: &[u8]) -> Option<T> {
    let text = line.get(PREFIX_BYTES..)?.strip_suffix(b"\n")?;
    let sum: String = checksum(&[text]).iter().map(|byte| format!("{byte:02x}")).collect();
    (line.get(..PREFIX_BYTES - 1)? == sum.as_bytes()).then(|| serde_json::from_slice(text).ok()).flatten()
}
