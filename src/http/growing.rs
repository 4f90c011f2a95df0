//! A download as one client reads it while it grows.
//!
//! A client of another repository than the download's leaves it as soon as it serves badly, and goes on with a download of
//! its own repository. Nothing of the two is mixed: what the client has had must be in its own download too, byte for
//! byte, before it gets more, and the last piece waits for the hash of that.

use super::body::{Account, read_from};
use crate::budget;
use crate::mirror::{Fill, Phase, Progress};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// The reading side of a fill.
pub(super) struct Growing {
    pub(super) fill: Arc<Fill>,
    pub(super) follow: watch::Receiver<Progress>,
    stall: Duration,
    /// What the client has had of another fill, until it is compared with this one.
    had: Option<Had>,
    /// The size that the client was told, if this is not the fill that it began with.
    told: Option<u64>,
}

struct Had {
    file: Arc<File>,
    /// The first byte that is not compared yet.
    at: u64,
}

impl Growing {
    pub(super) fn new(fill: Arc<Fill>, stall: Duration) -> Growing {
        let follow = fill.follow();
        Growing { fill, follow, stall, had: None, told: None }
    }

    /// The same for a client that has had bytes from `first` on of this fill, and of `total` in all.
    pub(super) fn go_on_with(&self, fill: Arc<Fill>, first: u64, total: u64) -> Growing {
        let had = self.sent().map(|file| Had { file, at: first });
        Growing { had, told: Some(total), ..Growing::new(fill, self.stall) }
    }

    /// The file that has what the client has had.
    pub(super) fn sent(&self) -> Option<Arc<File>> {
        self.had.as_ref().map(|had| Arc::clone(&had.file)).or_else(|| self.fill.file())
    }

    /// The size that the client was told.
    pub(super) fn total(&self) -> Option<u64> {
        self.told.or(self.follow.borrow().total).or(self.fill.stated())
    }

    pub(super) fn stall(&self) -> Duration {
        self.stall
    }

    /// Up to where it can be read now, if the client may have more of it.
    pub(super) fn available_now(&mut self) -> Option<u64> {
        let may = self.had.is_none() && self.told.is_none();
        may.then(|| self.follow.borrow_and_update().available)
    }

    /// Waits for bytes after `offset`, and says up to where.
    pub(super) async fn available(&mut self, offset: u64, account: &Account) -> io::Result<u64> {
        while let Some(at) = self.had.as_ref().map(|had| had.at).filter(|at| *at < offset) {
            let end = self.bytes_after(at, account).await?.min(offset);
            self.check_total()?;
            self.compare(at, end).await?;
        }
        self.had = None;
        let available = self.bytes_after(offset, account).await?;
        self.check_total()?;
        self.told = None;
        Ok(available)
    }

    fn check_total(&self) -> io::Result<()> {
        let total = self.follow.borrow().total;
        if self.told.is_some_and(|told| total.is_some_and(|total| total != told)) {
            return Err(io::Error::other("the download of its own repository has another size"));
        }
        Ok(())
    }

    /// Compares a piece of what the client has had with this fill.
    async fn compare(&mut self, from: u64, end: u64) -> io::Result<()> {
        let Some(had) = &mut self.had else { return Ok(()) };
        let Some(file) = self.fill.file() else {
            return Err(io::Error::other("its own repository has sent nothing to compare"));
        };
        let want = usize::try_from(end - from).unwrap_or(usize::MAX).min(budget::SERVE_CHUNK_BYTES);
        let (before, now) = (read_from(&had.file, from, want).await?, read_from(&file, from, want).await?);
        if before.is_empty() || before != now {
            return Err(io::Error::other("its own repository sends other bytes than the one before"));
        }
        had.at += now.len() as u64;
        Ok(())
    }

    async fn bytes_after(&mut self, offset: u64, account: &Account) -> io::Result<u64> {
        let (began, mut changed_at) = (Instant::now(), Instant::now());
        let foreign = !self.fill.is_of(account.repository());
        loop {
            let progress = self.follow.borrow_and_update().clone();
            if progress.available > offset {
                return Ok(progress.available);
            }
            if foreign && account.mirror().is_bad_for(account.repository(), &self.fill, began.elapsed()) {
                return Err(io::Error::other("the download of another repository does not go on"));
            }
            // A queued download is not stalled: the downloads before it make progress or end.
            let longest = match progress.phase {
                Phase::Queued => budget::QUEUE_WAIT_MAX,
                // The download detects a stall first, and resumes.
                Phase::Running => self.stall + account.mirror().resume_time(),
                Phase::Parked(_) => self.stall,
                Phase::Done => return Err(io::Error::other("the download ended before this byte")),
                Phase::Failed(refusal) => return Err(io::Error::other(refusal.to_string())),
            };
            let left = longest.saturating_sub(changed_at.elapsed());
            let step = if foreign { left.min(budget::JOIN_LOOK_PAUSE) } else { left };
            match tokio::time::timeout(step, self.follow.changed()).await {
                Ok(Ok(())) => changed_at = Instant::now(),
                Ok(Err(_)) => return Err(io::Error::other("the download was given up")),
                Err(_) if changed_at.elapsed() >= longest => return Err(stalled(longest)),
                Err(_) => {}
            }
        }
    }
}

pub(super) fn stalled(wait: Duration) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no byte came for {wait:?}"))
}
