//! Whether an index that no fingerprint vouches for may be mapped: a process of its own finds out.
//!
//! To read a damaged LMDB file can end the process that reads it. So the program runs itself a second time
//! ([`examiner`]); that process reads every record, compares all of them with the tally, and copies them one by one into
//! a new index. The copy has none of the old file's pages, so that no damage in its free space or its list of free pages
//! comes along, which no reader would meet but the first writer. Where the disk takes no copy the index is used as
//! it was read, and so is one that an older larder wrote, which must be able to go on with it.
//!
//! Failure. A process that cannot be begun, that is ended by a signal, or that takes too long, is a damaged index, which
//! is rebuilt. Nothing here changes the index that is there.

use super::error::{Result, StoreError};
use super::index::{Index, SCHEMA, close};
use crate::budget;
use rustix::process::{DumpableBehavior, Signal, set_dumpable_behavior, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// The first argument of a process that examines an index. The index's folder follows, and the copy's if one is wanted.
const ARGUMENT: &str = "examine-index";

/// Whether this process's program knows [`ARGUMENT`].
static IN_A_PROCESS: AtomicBool = AtomicBool::new(false);

/// What an examination has found.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Verdict {
    /// Every record is right, and the copy has all of them.
    Copied,
    /// Every record is right.
    Read,
    /// A newer larder wrote it, with this schema.
    Newer(u32),
    /// It is damaged, in these words.
    Damaged(String),
}

/// Examines an index and returns this process's exit status, if that is what it was started for. To be called first by a
/// program that opens stores; in one that does not, indexes are examined in the process itself.
pub fn examiner() -> Option<ExitCode> {
    IN_A_PROCESS.store(true, Ordering::Relaxed);
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != ARGUMENT {
        return None;
    }
    let (index, copy) = (PathBuf::from(arguments.next()?), arguments.next().map(PathBuf::from));
    // It ends with the process that waits for it, and a crash here is an answer: it need not fill the disk.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let verdict = here(&index, copy.as_deref());
    let said = serde_json::to_vec(&verdict).map_err(io::Error::from);
    let said = said.and_then(|text| io::stdout().write_all(&text).and_then(|()| io::stdout().flush()));
    Some(ExitCode::from(u8::from(said.is_err())))
}

/// Reads all of an index, and copies it into the empty folder `copy`. `false`: it was read, and there is no copy.
///
/// # Errors
/// [`StoreError::Newer`]; [`StoreError::Damaged`] says why it cannot be used.
pub(super) fn examine(index: &Path, copy: Option<&Path>) -> Result<bool> {
    let verdict = match IN_A_PROCESS.load(Ordering::Relaxed) {
        true => in_a_process(index, copy).map_err(StoreError::Damaged)?,
        false => here(index, copy),
    };
    match verdict {
        Verdict::Copied => Ok(true),
        Verdict::Read => Ok(false),
        Verdict::Newer(found) => Err(StoreError::Newer { found, known: SCHEMA }),
        Verdict::Damaged(why) => Err(StoreError::Damaged(why)),
    }
}

fn here(folder: &Path, copy: Option<&Path>) -> Verdict {
    let examined = Index::open_to_examine(folder).and_then(|index| {
        let read = index.check();
        let copied = match copy {
            Some(copy) if read.is_ok() && !index.is_of_older_schema() => Some(index.copy_to(copy)),
            _ => None,
        };
        close(index);
        read.map(|()| copied)
    });
    match examined {
        Ok(Some(Ok(()))) => Verdict::Copied,
        Ok(Some(Err(problem))) if !problem.is_disk_failure() => Verdict::Damaged(problem.to_string()),
        Ok(_) => Verdict::Read,
        Err(StoreError::Newer { found, .. }) => Verdict::Newer(found),
        Err(StoreError::Damaged(why)) => Verdict::Damaged(why),
        Err(problem) => Verdict::Damaged(problem.to_string()),
    }
}

fn in_a_process(index: &Path, copy: Option<&Path>) -> std::result::Result<Verdict, String> {
    let began = begin(index, copy).map_err(|e| format!("no process could be started to read it: {e}"));
    let (mut child, answer) = began?;
    let told = listen(&answer);
    if told.is_err() {
        let _ = child.kill();
    }
    let ended = child.wait().map_err(|e| format!("the process that read it is lost: {e}"))?;
    match (told, ended.signal()) {
        (Err(e), _) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Err(format!("it could not be read within {} s", budget::INDEX_EXAMINE_TIME.as_secs()))
        }
        (Err(e), _) => Err(format!("the process that read it gave no answer: {e}")),
        (Ok(_), Some(signal)) => Err(format!("the process that read it was ended by signal {signal}")),
        (Ok(text), None) => serde_json::from_slice(&text)
            .map_err(|_| format!("the process that read it ended with {ended} and without an answer")),
    }
}

/// Starts this program again, with one end of a pair of sockets for its answer.
fn begin(index: &Path, copy: Option<&Path>) -> io::Result<(Child, UnixStream)> {
    let (answer, theirs) = UnixStream::pair()?;
    // Not by its name, under which there may be another version by now. What it opens itself closes with it.
    let child = Command::new("/proc/self/exe")
        .arg(ARGUMENT)
        .arg(index)
        .args(copy)
        .stdin(Stdio::null())
        .stdout(OwnedFd::from(theirs))
        .stderr(Stdio::null())
        .spawn()?;
    Ok((child, answer))
}

/// What the process says until its end.
fn listen(mut answer: &UnixStream) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + budget::INDEX_EXAMINE_TIME;
    let (mut told, mut piece) = (Vec::new(), [0; 1024]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        answer.set_read_timeout(Some(left))?;
        match answer.read(&mut piece) {
            Ok(0) => return Ok(told),
            Ok(n) if told.len() < budget::INDEX_VERDICT_BYTES_MAX => told.extend_from_slice(&piece[..n]),
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_right_is_copied_where_the_disk_takes_it_and_what_is_newer_is_left_alone() {
        let folder = std::env::temp_dir().join(format!("larder-examine-{}", std::process::id()));
        let (index, copy) = (folder.join("index"), folder.join("copy"));
        std::fs::create_dir_all(&index).unwrap();
        std::fs::create_dir_all(&copy).unwrap();
        close(Index::create(&index).unwrap());
        assert_eq!(here(&index, None), Verdict::Read);
        assert_eq!(here(&index, Some(&folder.join("no such folder"))), Verdict::Read);
        assert_eq!(here(&index, Some(&copy)), Verdict::Copied);
        assert_eq!(here(&copy, None), Verdict::Read);
        let newer = Index::open(&index, false).unwrap();
        newer.set_schema(SCHEMA + 1).unwrap();
        close(newer);
        assert_eq!(here(&index, None), Verdict::Newer(SCHEMA + 1));
        std::fs::write(copy.join("data.mdb"), b"nothing of LMDB's").unwrap();
        assert!(matches!(here(&copy, None), Verdict::Damaged(_)));
        assert!(matches!(here(&folder.join("no such folder"), None), Verdict::Damaged(_)));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
