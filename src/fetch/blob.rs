//! A blob's bytes as they come in. They are not hashed here: the writer hashes them.
//!
//! There is no limit on the total, only on each read (`stall_timeout`). A stream that has failed stays failed, so that
//! a cut can never be taken for the end.

use super::breaker::Breaker;
use super::failure::{Cause, Failure};
use super::pace::Pace;
use super::reply::CountedBody;
use crate::budget::BLOB_BYTES_MAX;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A blob from some byte to its end.
pub struct BlobStream {
    /// The blob's size in bytes, if the upstream says.
    pub total: Option<u64>,
    /// Which endpoint of its upstream sends it, in their order.
    pub place: usize,
    /// Whether it can be had from a byte on, as far as the answer tells (RFC 9110, 14.3).
    pub gives_parts: Option<bool>,
    pub(super) host: String,
    pub(super) body: CountedBody,
    /// The next byte of the blob that the body brings.
    pub(super) position: u64,
    /// Bytes before this one were not asked for and are thrown away.
    pub(super) from: u64,
    pub(super) failed: Option<Failure>,
    pub(super) bytes: Arc<AtomicU64>,
    pub(super) pace: Arc<Pace>,
    pub(super) breaker: Breaker,
    /// The endpoint itself sends it, and no one that it redirected to.
    pub(super) own: bool,
}

impl BlobStream {
    /// Reads what has come, at least a byte; 0 is the end, at which `total`, if known, has been reached.
    ///
    /// # Errors
    /// `Unreachable` when the connection is cut or stalls, `Wrong` when the body is longer than it may be. Every
    /// later read gives the same failure.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Failure> {
        if let Some(failure) = &self.failed {
            return Err(failure.clone());
        }
        let skipped = if self.position < self.from { self.skip() } else { Ok(()) };
        let outcome = skipped.and_then(|()| self.take(buffer));
        if let Err(failure) = &outcome {
            self.failed = Some(failure.clone());
            // A blob that fails is that blob's failure. Only silence for so long says more, and only where the endpoint
            // itself sends: that is as good a reason not to wait for it as an answer that is late.
            match failure.cause() {
                Some(Cause::Timeout) if self.own => self.breaker.overdue(),
                _ => self.breaker.suspect(),
            }
        }
        outcome
    }

    /// Bytes before the one that was asked for, which the upstream sends again.
    pub fn repeats(&self) -> u64 {
        self.from.saturating_sub(self.position)
    }

    /// Reads on to the first byte that was asked for, where the upstream ignored the range.
    fn skip(&mut self) -> Result<(), Failure> {
        let mut waste = [0u8; 16 * 1024];
        while self.position < self.from {
            let most = usize::try_from(self.from - self.position).map_or(waste.len(), |n| n.min(waste.len()));
            if self.take(&mut waste[..most])? == 0 {
                return Err(Failure::wrong(&self.host, "the blob ends before the byte that was asked for"));
            }
        }
        Ok(())
    }

    fn take(&mut self, buffer: &mut [u8]) -> Result<usize, Failure> {
        let most = buffer.len().min(self.pace.chunk());
        let count = self
            .body
            .read(&mut buffer[..most])
            .map_err(|error| Failure::from_client(&self.host, ureq::Error::from(error)))?;
        self.position += count as u64;
        self.bytes.fetch_add(count as u64, Ordering::Relaxed);
        let limit = self.total.unwrap_or(BLOB_BYTES_MAX);
        if self.position > limit {
            return Err(Failure::wrong(&self.host, format!("the blob is longer than {limit} bytes")));
        }
        if count == 0 && most > 0 && self.total.is_some_and(|total| self.position < total) {
            return Err(Failure::unreachable(&self.host, Cause::Cut, "the blob was cut short"));
        }
        self.pace.pay(count);
        Ok(count)
    }
}

impl std::fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobStream").field("host", &self.host).field("position", &self.position).finish()
    }
}
