//! Answers: the one place where a refusal becomes a status and an OCI error (distribution-spec, "Error Codes").

use super::body::Body;
use crate::mirror::{Missing, Refusal};
use crate::oci::{ErrorCode, RegistryName, error_body};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Method, Response, StatusCode};

/// What a client gets.
pub(super) type Answer = Response<Body>;

/// The digest of what is served.
pub(super) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// How the answer was made (RFC 9211).
pub(super) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
/// The registry that `ns` named.
pub(super) const NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");
/// What was applied to a list of referrers.
pub(super) const FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// An answer with a body at hand.
pub(super) fn full(status: StatusCode, content_type: &str, body: impl Into<bytes::Bytes>) -> Answer {
    let body: bytes::Bytes = body.into();
    let length = body.len() as u64;
    let mut answer = with_length(status, text(content_type), length);
    *answer.body_mut() = Body::full(body);
    answer
}

/// An answer whose body of `length` bytes is put in later, or never for a HEAD.
pub(super) fn with_length(status: StatusCode, content_type: HeaderValue, length: u64) -> Answer {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    answer
}

/// Text as a header value; what no header can carry becomes a question mark.
pub(super) fn text(value: &str) -> HeaderValue {
    HeaderValue::from_str(value).unwrap_or_else(|_| {
        let clean: String = value.chars().map(|c| if (' '..='~').contains(&c) { c } else { '?' }).collect();
        HeaderValue::from_str(&clean).unwrap_or(HeaderValue::from_static("?"))
    })
}

/// Bytes of our own making as a header value.
pub(super) fn shared(value: bytes::Bytes) -> HeaderValue {
    HeaderValue::from_maybe_shared(value).unwrap_or(HeaderValue::from_static("?"))
}

/// An error with the OCI body.
pub(super) fn error(status: StatusCode, code: ErrorCode, message: &str) -> Answer {
    full(status, "application/json", error_body(code, message))
}

/// Nothing can be written here.
pub(super) fn read_only(method: &Method) -> Answer {
    let message = format!("this mirror is read-only: {method} is not supported");
    let mut answer = error(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported, &message);
    answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    // A body that nobody will read must not be taken for the next request.
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    answer
}

/// Why a connection is not served now.
pub(super) const NO_CONNECTION: &str = "all connections that memory.max allows are in use";

/// All connections are in use.
pub(super) fn no_connection() -> Answer {
    let mut answer = refuse(&Refusal::Busy(NO_CONNECTION.into()));
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    answer
}

/// The registry is not configured.
pub(super) fn unknown_registry(registry: &RegistryName) -> Answer {
    refuse(&Refusal::UnknownRegistry(registry.clone()))
}

/// The answer that says why nothing is served.
pub(super) fn refuse(refusal: &Refusal) -> Answer {
    let (status, code) = match refusal {
        Refusal::UnknownRegistry(_) => (StatusCode::NOT_FOUND, ErrorCode::NameUnknown),
        Refusal::Missing { what: Missing::Manifest, .. } => {
            (StatusCode::NOT_FOUND, ErrorCode::ManifestUnknown)
        }
        Refusal::Missing { what: Missing::Blob, .. } => (StatusCode::NOT_FOUND, ErrorCode::BlobUnknown),
        Refusal::Missing { what: Missing::Repository, .. } => (StatusCode::NOT_FOUND, ErrorCode::NameUnknown),
        // Upstream's 401 is passed on without its challenge, or clients would send their credentials here.
        Refusal::Denied { status: 401, .. } => (StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized),
        Refusal::Denied { .. } => (StatusCode::FORBIDDEN, ErrorCode::Denied),
        Refusal::Unavailable(_) => (StatusCode::BAD_GATEWAY, ErrorCode::Unavailable),
        Refusal::Busy(_) => (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::TooManyRequests),
        Refusal::NotKept(_) => (StatusCode::INSUFFICIENT_STORAGE, ErrorCode::Unavailable),
        Refusal::Failed(_) => (StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Unavailable),
    };
    let mut answer = error(status, code, &refusal.to_string());
    if status == StatusCode::SERVICE_UNAVAILABLE {
        answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    answer.headers_mut().insert(CACHE_STATUS, HeaderValue::from_static("larder; fwd=uri-miss; detail=none"));
    answer
}

/// Marks an answer as made from what is cached because upstream could not be asked (RFC 7234, section 5.5).
pub(super) fn warn(answer: &mut Answer, cause: &str) {
    let cause = cause.replace(['"', '\\'], "'");
    answer.headers_mut().insert(header::WARNING, text(&format!("299 - \"larder: {cause}\"")));
}
