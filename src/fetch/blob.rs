//! A blob's bytes as they come in. They are not hashed here: the writer hashes them.
//!
//! There is no limit on the total, only on each read (`stall_timeout`). A stream that has failed stays failed, so that
//! a cut can never be taken for the end. An upstream that does not give the part that was asked for is asked for all of
//! it, and what was not wanted is thrown away; only a size that the blob cannot have is a failure.

use super::ask::{Class, Question};
use super::breaker::Breaker;
use super::challenge::ContentRange;
use super::endpoint::Endpoint;
use super::failure::{Cause, Failure};
use super::pace::Pace;
use super::reply::{CountedBody, EndpointReply};
use super::wire::Deadline;
use crate::budget::BLOB_BYTES_MAX;
use crate::oci::{Digest, RepositoryName};
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use ureq::http::header;

/// A blob from some byte to its end, or a part of it.
pub struct BlobStream {
    /// The blob's size in bytes, if the upstream says.
    pub total: Option<u64>,
    /// Which endpoint of its upstream sends it, in their order.
    pub place: usize,
    /// Whether it can be had from a byte on, as far as the answer tells (RFC 9110, 14.3).
    pub gives_parts: Option<bool>,
    /// The upstream says that the bytes before the one that was asked for are all of it.
    pub is_whole: bool,
    host: String,
    body: CountedBody,
    /// The next byte of the blob that the body brings.
    position: u64,
    /// Bytes before this one were not asked for and are thrown away.
    from: u64,
    /// The byte that the body ends before, if that is not the blob's end.
    until: Option<u64>,
    failed: Option<Failure>,
    bytes: Arc<AtomicU64>,
    pace: Arc<Pace>,
    breaker: Breaker,
    /// The endpoint itself sends it, and no one that it redirected to.
    own: bool,
}

impl Endpoint {
    /// Opens a blob at byte `from`. An upstream that ignores the range, or cannot give that part, sends the bytes before it
    /// again.
    pub(super) fn open_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        from: u64,
        deadline: Deadline,
    ) -> Result<BlobStream, Failure> {
        let question = Question { class: Class::Blob, from, ..Question::blob(repository, digest, deadline) };
        let mut reply = self.ask(&question)?;
        if from > 0 && reply.status() == 416 && reply.content_range() == Some(ContentRange::None(from)) {
            // Nothing begins there, because that is its end (RFC 9110, 15.5.17).
            let ended = self.stream(reply, from, Some(from));
            return Ok(BlobStream { is_whole: true, gives_parts: Some(true), ..ended });
        }
        if from > 0 && !may_give(&reply, from) {
            log::debug!("{}: does not give {digest} from byte {from} on", reply.host);
            drop(reply);
            reply = self.ask(&Question { from: 0, ..question.clone() })?;
        }
        let reply = reply.found(&question)?;
        if reply.is_page() {
            return Err(reply.no_registry());
        }
        let (position, total) = if reply.status() == 206 {
            match reply.content_range() {
                Some(ContentRange::Part { first, length, .. }) if first <= from => (
                    first,
                    length.or_else(|| reply.content_length().and_then(|left| first.checked_add(left))),
                ),
                Some(ContentRange::Part { first, .. }) => {
                    return Err(reply.wrong(format!("was asked for byte {from} and begins at {first}")));
                }
                _ => return Err(reply.wrong("a partial answer has no usable Content-Range")),
            }
        } else {
            (0, reply.content_length())
        };
        if let Some(total) = total.filter(|&total| total > BLOB_BYTES_MAX || total < from) {
            return Err(reply.wrong(format!("announces {total} bytes, which the blob cannot have")));
        }
        let gives_parts = match (reply.status(), reply.header(header::ACCEPT_RANGES.as_str())) {
            (206, _) => Some(position == from),
            _ if from > 0 => Some(false),
            (_, Some(unit)) => Some(!unit.trim().eq_ignore_ascii_case("none")),
            (_, None) => None,
        };
        let stream = self.stream(reply, position, total);
        Ok(BlobStream { from, gives_parts, ..stream })
    }

    /// Opens the part of a blob of `total` bytes from its byte `first` to before `end`. `None`: this upstream does not give
    /// it.
    pub(super) fn open_part(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        (first, end, total): (u64, u64, u64),
        deadline: Deadline,
    ) -> Result<Option<BlobStream>, Failure> {
        let question = Question::blob(repository, digest, deadline);
        let question = Question { class: Class::Blob, from: first, end: Some(end), ..question };
        let reply = self.ask(&question)?;
        let given = ContentRange::Part { first, last: end - 1, length: Some(total) };
        if reply.status() != 206 || reply.content_range() != Some(given) {
            return if matches!(reply.status(), 200 | 206 | 416) {
                Ok(None)
            } else {
                reply.found(&question).map(|_| None)
            };
        }
        if reply.is_page() {
            return Err(reply.no_registry());
        }
        let part = self.stream(reply, first, Some(total));
        Ok(Some(BlobStream { until: Some(end), ..part }))
    }

    fn stream(&self, reply: EndpointReply, position: u64, total: Option<u64>) -> BlobStream {
        BlobStream {
            total,
            place: 0,
            gives_parts: None,
            is_whole: false,
            host: reply.host,
            body: reply.body,
            position,
            from: position,
            until: None,
            failed: None,
            bytes: self.bytes.clone(),
            pace: self.pace.clone(),
            breaker: self.breaker.clone(),
            own: reply.own,
        }
    }
}

/// Whether an answer to a request from byte `from` on may bring that byte. One that does not is no answer to it: what is
/// here stays good, and the blob can still be had from its start.
fn may_give(reply: &EndpointReply, from: u64) -> bool {
    match reply.status() {
        206 => matches!(reply.content_range(), Some(ContentRange::Part { first, .. }) if first <= from),
        416 => false,
        _ => true,
    }
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
        // What is left of the answer says why there is no more.
        if self.is_whole {
            return Ok(0);
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
        let end = self.until.or(self.total);
        let limit = end.unwrap_or(BLOB_BYTES_MAX);
        if self.position > limit {
            return Err(Failure::wrong(&self.host, format!("the blob is longer than {limit} bytes")));
        }
        if count == 0 && most > 0 && end.is_some_and(|end| self.position < end) {
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
