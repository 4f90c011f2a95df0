//! `/v2/NAME/blobs/DIGEST` (distribution-spec, "Pulling blobs"), with ranges on hits and on fills.

use super::ServerShared;
use super::answer::{self, Answer};
use super::body::{Account, Body, Reader};
use super::manifests::label;
use super::request::{ByteRange, ClientRequest};
use crate::mirror::{ByteSource, Refusal, Source};
use crate::oci::{Digest, Repository};
use hyper::StatusCode;
use hyper::header::{self, HeaderValue};
use std::sync::Arc;

/// What any blob is to who does not know what it is for.
const BYTES: HeaderValue = HeaderValue::from_static("application/octet-stream");

pub(super) async fn answer(
    shared: &Arc<ServerShared>,
    request: &ClientRequest,
    repository: &Repository,
    digest: &Digest,
) -> Answer {
    let answered = if request.head {
        head(shared, request, repository, digest).await
    } else {
        body(shared, request, repository, digest).await
    };
    answered.unwrap_or_else(|refusal| {
        log::warn!("{repository} blob {digest} not answered: {refusal}");
        shared.mirror.pulls().refused(request.identity.address, repository);
        answer::refuse(&refusal)
    })
}

async fn head(
    shared: &Arc<ServerShared>,
    request: &ClientRequest,
    repository: &Repository,
    digest: &Digest,
) -> Result<Answer, Refusal> {
    let (size, hit) = shared.mirror.blob_size(repository, digest).await?;
    let mut answer = answer::with_length(StatusCode::OK, BYTES, size);
    answer.headers_mut().insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    label(&mut answer, request, digest.quoted(), if hit { "larder; hit" } else { "larder; fwd=uri-miss" });
    Ok(answer)
}

async fn body(
    shared: &Arc<ServerShared>,
    request: &ClientRequest,
    repository: &Repository,
    digest: &Digest,
) -> Result<Answer, Refusal> {
    let mirror = &shared.mirror;
    let source = mirror.blob(repository, digest).await?;
    let (total, status) = match &source {
        Source::Hit(blob) => (blob.size, "larder; hit"),
        Source::Fill { total, fill, .. } if fill.source() == ByteSource::Cache => (*total, "larder; hit"),
        Source::Fill { total, joined: false, .. } => (*total, "larder; fwd=uri-miss"),
        Source::Fill { total, joined: true, .. } => (*total, "larder; fwd=uri-miss; collapsed"),
        Source::Through { total, .. } => (*total, "larder; fwd=uri-miss; detail=not-stored"),
    };
    let (code, first, length) = match request.range(total) {
        ByteRange::Whole => (StatusCode::OK, 0, total),
        ByteRange::Part(first, last) => (StatusCode::PARTIAL_CONTENT, first, last - first + 1),
        ByteRange::Unsatisfiable => return Ok(unsatisfiable(total)),
    };
    let mut answer = answer::with_length(code, BYTES, length);
    let headers = answer.headers_mut();
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if code == StatusCode::PARTIAL_CONTENT {
        let last = first + length - 1;
        headers.insert(header::CONTENT_RANGE, answer::text(&format!("bytes {first}-{last}/{total}")));
    }
    let reader = match source {
        Source::Hit(blob) => Reader::complete(
            blob.file,
            first,
            digest,
            Account::open(shared, request.identity.address, repository, ByteSource::Cache).await?,
        ),
        Source::Through { pieces, .. } => {
            let account =
                Account::open(shared, request.identity.address, repository, ByteSource::Fill).await?;
            Reader::uncached(pieces, first, mirror.stall_timeout(), account)
        }
        Source::Fill { fill, .. } => {
            let account =
                Account::open(shared, request.identity.address, repository, ByteSource::Fill).await?;
            Reader::growing(fill, first, mirror.stall_timeout(), account)
        }
    };
    *answer.body_mut() = Body::stream(reader, length);
    label(&mut answer, request, digest.quoted(), status);
    Ok(answer)
}

fn unsatisfiable(total: u64) -> Answer {
    let message = format!("the range is outside the blob's {total} bytes");
    let mut answer =
        answer::error(StatusCode::RANGE_NOT_SATISFIABLE, crate::oci::ErrorCode::Unsupported, &message);
    answer.headers_mut().insert(header::CONTENT_RANGE, answer::text(&format!("bytes */{total}")));
    answer
}
