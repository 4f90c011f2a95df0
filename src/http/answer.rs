//! Answers: the one place where a refusal becomes a status and an OCI error (distribution-spec, "Error Codes").

use super::body::Body;
use super::conditions::Precondition;
use super::request::ClientRequest;
use crate::mirror::{Missing, Refusal};
use crate::oci::{ErrorCode, RegistryName, Repository, error_body, quoted};
use crate::via::{self, BoardName};
use bytes::Bytes;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Method, Response, StatusCode};

/// What a client gets.
pub(super) type Answer = Response<Body>;

/// The digest of what is served.
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// How the answer was made: from the cache or not (RFC 9211).
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
/// The registry that `ns` named.
const NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");
/// What was applied to a list of referrers.
pub(super) const FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// An answer whose body is in memory.
pub(super) fn full(status: StatusCode, content_type: &str, body: impl Into<Bytes>) -> Answer {
    let body: Bytes = body.into();
    let length = body.len() as u64;
    let mut answer = with_length(status, text(content_type), length);
    *answer.body_mut() = Body::full(body);
    answer
}

/// An answer whose body of `length` bytes is added later, or never for a HEAD.
pub(super) fn with_length(status: StatusCode, content_type: HeaderValue, length: u64) -> Answer {
    let mut answer = Response::new(Body::full(Bytes::new()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    answer
}

/// Text as a header value; a character that no header can carry becomes a question mark.
pub(super) fn text(value: &str) -> HeaderValue {
    HeaderValue::from_str(value).unwrap_or_else(|_| {
        let clean: String = value.chars().map(|c| if (' '..='~').contains(&c) { c } else { '?' }).collect();
        HeaderValue::from_str(&clean).unwrap_or(HeaderValue::from_static("?"))
    })
}

/// Bytes that larder made as a header value.
pub(super) fn shared(value: Bytes) -> HeaderValue {
    HeaderValue::from_maybe_shared(value).unwrap_or(HeaderValue::from_static("?"))
}

/// An error with the OCI body.
pub(super) fn error(status: StatusCode, code: ErrorCode, message: &str) -> Answer {
    full(status, "application/json", error_body(code, message))
}

/// The mirror is read-only.
pub(super) fn read_only(method: &Method) -> Answer {
    let message = format!("this mirror is read-only: {method} is not supported");
    let mut answer = error(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported, &message);
    answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    // Nobody reads the body of this request, so the connection must not be used for the next one.
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    answer
}

/// Why a connection is not served now.
pub(super) const NO_CONNECTION: &str = "all connections that memory.max allows are in use";

/// All connections are in use.
pub(super) fn no_connection() -> Answer {
    closing(refuse(&Refusal::Busy(NO_CONNECTION.into())))
}

/// The last answer on its connection.
pub(super) fn closing(mut answer: Answer) -> Answer {
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    answer
}

/// The registry is not configured.
pub(super) fn unknown_registry(registry: &RegistryName) -> Answer {
    refuse(&Refusal::UnknownRegistry(registry.clone()))
}

/// Private content of the registry would be readable on its way to the client.
pub(super) fn needs_tls(registry: &RegistryName) -> Answer {
    let message = format!(
        "content of {registry} is private, and other machines get it over TLS only: set [tls] in the mirror's configuration, or auth.allow_plain_http = true"
    );
    error(StatusCode::FORBIDDEN, ErrorCode::Denied, &message)
}

/// No `[[auth.rule]]` lets the user read the repository.
pub(super) fn no_right(user: &str, repository: &Repository) -> Answer {
    let message = format!("no [[auth.rule]] of the mirror lets {} read {repository}", quoted(user));
    error(StatusCode::FORBIDDEN, ErrorCode::Denied, &message)
}

/// Marks how an answer was made, and echoes the registry that `ns` named.
pub(super) fn mark(answer: &mut Answer, request: &ClientRequest, status: &'static str) {
    let headers = answer.headers_mut();
    headers.insert(CACHE_STATUS, HeaderValue::from_static(status));
    if let Some(namespace) = &request.namespace {
        headers.insert(NAMESPACE, text(namespace.as_str()));
    }
}

/// Names this board in an answer (RFC 9110, section 7.6.3).
pub(super) fn name_board(answer: &mut Answer, board: &BoardName) {
    answer.headers_mut().insert(header::VIA, text(&board.hop()));
}

/// Says which registry was taken for meant.
pub(super) fn name_registry(answer: &mut Answer, registry: &RegistryName) {
    answer.headers_mut().insert(NAMESPACE, text(registry.as_str()));
}

/// The request has come through this board before (RFC 5842, section 7.2).
pub(super) fn is_loop(way: &str) -> Answer {
    let message = format!(
        "the upstreams of these mirrors lead back to this one ({way}): check the url of each [upstream] on each of them"
    );
    log::warn!("508: {message}");
    error(StatusCode::LOOP_DETECTED, ErrorCode::Unavailable, &message)
}

/// Adds the headers that every answer with content has; `quoted` is its digest in quotation marks.
pub(super) fn label(
    answer: &mut Answer,
    request: &ClientRequest,
    quoted: impl Into<Bytes>,
    status: &'static str,
) {
    let (headers, quoted) = (answer.headers_mut(), quoted.into());
    headers.insert(CONTENT_DIGEST, shared(quoted.slice(1..quoted.len() - 1)));
    headers.insert(header::ETAG, shared(quoted));
    mark(answer, request, status);
}

/// The answer that says why nothing is served of an image.
pub(super) fn refuse_for(image: &str, refusal: &Refusal) -> Answer {
    let why = refusal.to_string();
    refuse_with(refusal, &if why.contains(image) { why } else { format!("{image}: {why}") })
}

/// The answer that the conditions of a request make of one with this content.
pub(super) fn on_condition(verdict: Precondition, mut answer: Answer) -> Answer {
    match verdict {
        Precondition::Send => answer,
        Precondition::NotModified => {
            *answer.status_mut() = StatusCode::NOT_MODIFIED;
            *answer.body_mut() = Body::full(Bytes::new());
            for name in [header::CONTENT_TYPE, header::CONTENT_LENGTH, header::ACCEPT_RANGES] {
                answer.headers_mut().remove(name);
            }
            answer
        }
        Precondition::Failed => {
            let message = "the content has another digest than If-Match names";
            error(StatusCode::PRECONDITION_FAILED, ErrorCode::Unsupported, message)
        }
    }
}

/// The answer that says why nothing is served.
pub(super) fn refuse(refusal: &Refusal) -> Answer {
    refuse_with(refusal, &refusal.to_string())
}

fn refuse_with(refusal: &Refusal, message: &str) -> Answer {
    let (status, code) = match refusal {
        // To another board it would be the registry's word that there is no such image.
        Refusal::UnknownRegistry(_) if via::way().is_from_board() => {
            (StatusCode::BAD_GATEWAY, ErrorCode::Unavailable)
        }
        Refusal::UnknownRegistry(_) => (StatusCode::NOT_FOUND, ErrorCode::NameUnknown),
        Refusal::Missing { what: Missing::Manifest, .. } => {
            (StatusCode::NOT_FOUND, ErrorCode::ManifestUnknown)
        }
        Refusal::Missing { what: Missing::Blob, .. } => (StatusCode::NOT_FOUND, ErrorCode::BlobUnknown),
        Refusal::Missing { what: Missing::Repository, .. } => (StatusCode::NOT_FOUND, ErrorCode::NameUnknown),
        Refusal::Missing { what: Missing::Catalogue, .. } => (StatusCode::NOT_FOUND, ErrorCode::Unsupported),
        // Upstream's 401 is passed on without its challenge, or clients would send their credentials here.
        Refusal::Denied { status: 401, .. } => (StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized),
        Refusal::Denied { .. } => (StatusCode::FORBIDDEN, ErrorCode::Denied),
        Refusal::Unavailable(_) => (StatusCode::BAD_GATEWAY, ErrorCode::Unavailable),
        Refusal::Busy(_) => (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::TooManyRequests),
        Refusal::NotStored(_) => (StatusCode::INSUFFICIENT_STORAGE, ErrorCode::Unavailable),
        Refusal::Failed(_) => (StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Unavailable),
    };
    let mut answer = error(status, code, message);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    answer.headers_mut().insert(CACHE_STATUS, HeaderValue::from_static("larder; fwd=uri-miss; detail=none"));
    answer
}

/// Marks an answer as made from what is cached because upstream could not be asked (RFC 7234, section 5.5).
/// `age`: for how many seconds upstream has not named it, if that is known (RFC 9111, section 5.1).
pub(super) fn warn(answer: &mut Answer, cause: &str, age: Option<u64>) {
    let cause = cause.replace(['"', '\\'], "'");
    answer.headers_mut().insert(header::WARNING, text(&format!("299 - \"larder: {cause}\"")));
    if let Some(age) = age {
        answer.headers_mut().insert(header::AGE, HeaderValue::from(age));
    }
}
