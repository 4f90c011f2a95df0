//! `/v2/NAME/blobs/DIGEST` (distribution-spec, "Pulling blobs"), with ranges on hits and on fills.

use super::answer::{self, Answer};
use super::body::{Account, Body, Reader};
use super::conditions::{self, ByteRange, Precondition};
use super::request::ClientRequest;
use super::{Answered, ServerShared};
use crate::mirror::{BlobSource, ByteSource};
use crate::oci::{Digest, ErrorCode, Repository};
use hyper::StatusCode;
use hyper::header::{self, HeaderValue};

/// The media type of a blob: only the manifest that names it knows more.
const BYTES: HeaderValue = HeaderValue::from_static("application/octet-stream");

pub(super) async fn answer(
    shared: &ServerShared,
    request: &ClientRequest,
    repository: &Repository,
    digest: &Digest,
) -> Answered {
    let mirror = &shared.mirror;
    let view = mirror.view(&request.identity, repository);
    mirror.check_fetch(&request.identity, &view, digest).await?;
    let etag = digest.quoted();
    let verdict = conditions::judge(&request.headers, etag.as_bytes());
    // Who has it already needs no download, only to know that it is still there.
    if request.head || verdict != Precondition::Send {
        let (size, hit) = mirror.blob_size(&view, digest).await?;
        let status = if hit { "larder; hit" } else { "larder; fwd=uri-miss" };
        return Ok(answer::on_condition(verdict, blob(request, digest, StatusCode::OK, size, status)));
    }
    let ranges = conditions::ranges(&request.headers, etag.as_bytes());
    let part = |total| match ranges.of(total) {
        ByteRange::Part(first, last) => Some((first, last)),
        ByteRange::Whole | ByteRange::Unsatisfiable => None,
    };
    let source = mirror.blob(&view, digest, &part).await?;
    let (total, status) = match &source {
        BlobSource::Hit(blob) => (blob.size, "larder; hit"),
        BlobSource::Confirmed(blob) => (blob.size, "larder; fwd=uri-miss"),
        BlobSource::Fill { total, fill, .. } if fill.source() == ByteSource::Cache => (*total, "larder; hit"),
        BlobSource::Fill { total, joined: false, .. } => (*total, "larder; fwd=uri-miss"),
        BlobSource::Fill { total, joined: true, .. } => (*total, "larder; fwd=uri-miss; collapsed"),
        BlobSource::Uncached { total, .. } => (*total, "larder; fwd=uri-miss; detail=not-stored"),
        BlobSource::Early { total, .. } => (*total, "larder; fwd=uri-miss; detail=early-range"),
    };
    let (code, first, length) = match ranges.of(total) {
        ByteRange::Whole => (StatusCode::OK, 0, total),
        ByteRange::Part(first, last) => (StatusCode::PARTIAL_CONTENT, first, last - first + 1),
        ByteRange::Unsatisfiable => return Ok(unsatisfiable(total)),
    };
    let mut answer = blob(request, digest, code, length, status);
    if code == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {first}-{}/{total}", first + length - 1);
        answer.headers_mut().insert(header::CONTENT_RANGE, answer::text(&range));
    }
    let served_from = match &source {
        BlobSource::Hit(_) | BlobSource::Confirmed(_) => ByteSource::Cache,
        BlobSource::Fill { .. } | BlobSource::Uncached { .. } | BlobSource::Early { .. } => ByteSource::Fill,
    };
    let account = Account::open(shared, request.identity.address, repository, served_from).await?;
    let reader = match source {
        BlobSource::Hit(blob) | BlobSource::Confirmed(blob) => {
            Reader::complete(blob.file, first, digest, account)
        }
        BlobSource::Uncached { pieces, .. } => {
            Reader::uncached(pieces, first, mirror.stall_timeout(), account)
        }
        BlobSource::Early { fill, pieces, .. } => {
            Reader::early(pieces, fill, first, mirror.stall_timeout(), account)
        }
        BlobSource::Fill { fill, .. } => Reader::growing(fill, first, mirror.stall_timeout(), account),
    };
    *answer.body_mut() = Body::stream(reader, length);
    Ok(answer)
}

/// An answer with `length` bytes of a blob, without the body.
fn blob(
    request: &ClientRequest,
    digest: &Digest,
    code: StatusCode,
    length: u64,
    status: &'static str,
) -> Answer {
    let mut answer = answer::with_length(code, BYTES, length);
    answer.headers_mut().insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    answer::label(&mut answer, request, digest.quoted(), status);
    answer
}

fn unsatisfiable(total: u64) -> Answer {
    let message = format!("the range is outside the blob's {total} bytes");
    let mut answer = answer::error(StatusCode::RANGE_NOT_SATISFIABLE, ErrorCode::Unsupported, &message);
    answer.headers_mut().insert(header::CONTENT_RANGE, answer::text(&format!("bytes */{total}")));
    answer
}
