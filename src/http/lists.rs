//! `tags/list`, `_catalog` and `referrers` (distribution-spec, "Content Discovery").

use super::answer::{self, Answer, FILTERS};
use super::request::ClientRequest;
use super::{Answered, ServerShared};
use crate::mirror::{Mirror, Page};
use crate::oci::{Digest, RegistryName, Repository, media};
use hyper::StatusCode;
use hyper::header::{self, HeaderValue};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;
use std::sync::Arc;

pub(super) async fn tags(mirror: &Arc<Mirror>, request: &ClientRequest, repository: &Repository) -> Answered {
    let name = repository.name.clone();
    let page = mirror.tags(&mirror.view(&request.identity, repository), request.page.clone()).await?;
    Ok(list(request, &page, |names| json!({ "name": name, "tags": names })))
}

pub(super) async fn catalog(
    mirror: &Arc<Mirror>,
    request: &ClientRequest,
    registry: Option<&RegistryName>,
) -> Answered {
    let page = mirror.catalog(registry, &request.identity, request.page.clone()).await?;
    Ok(list(request, &page, |names| json!({ "repositories": names })))
}

pub(super) async fn referrers(
    shared: &ServerShared,
    request: &ClientRequest,
    repository: &Repository,
    digest: &Digest,
) -> Answered {
    let view = shared.mirror.view(&request.identity, repository);
    let (filter, next) = (request.artifact_type.clone(), request.page.next.as_deref());
    let found = shared.mirror.referrers(&view, digest, filter, next).await?;
    let bytes = shared.admission.in_memory(request.identity.address, found.bytes).await?;
    drop(found.place);
    let mut answer = answer::full(StatusCode::OK, media::OCI_INDEX, bytes);
    if found.filtered {
        answer.headers_mut().insert(FILTERS, HeaderValue::from_static("artifactType"));
    }
    if let Some(next) = &found.next {
        let filter = request.artifact_type.as_deref().map(|filter| ("artifactType", filter));
        link(&mut answer, request, filter.into_iter().chain([("next", next.as_str())]));
    }
    mark(&mut answer, request, (found.stale.as_deref(), found.cut.as_deref()));
    Ok(answer)
}

fn list(request: &ClientRequest, page: &Page, body: impl FnOnce(&[String]) -> serde_json::Value) -> Answer {
    let mut answer = answer::full(StatusCode::OK, "application/json", body(&page.names).to_string());
    if let (true, Some(last)) = (page.more, page.names.last()) {
        let n = request.page.n.map(|n| n.to_string());
        let n = n.as_deref().map(|n| ("n", n));
        let next = page.next.as_deref().map(|next| ("next", next));
        link(&mut answer, request, n.into_iter().chain([("last", last.as_str())]).chain(next));
    }
    mark(&mut answer, request, (page.stale.as_deref(), page.cut.as_deref()));
    answer
}

/// Adds the link to the next page (RFC 8288).
fn link<'a>(
    answer: &mut Answer,
    request: &'a ClientRequest,
    query: impl Iterator<Item = (&'a str, &'a str)>,
) {
    let namespace = request.namespace.as_ref().map(|ns| ("ns", ns.as_str()));
    let encode = |(name, value)| format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC));
    let query: Vec<String> = query.chain(namespace).map(encode).collect();
    let value = format!("<{}?{}>; rel=\"next\"", request.uri.path(), query.join("&"));
    answer.headers_mut().insert(header::LINK, answer::text(&value));
}

/// Marks how a list was made: whether from the cache, and whether it ends before its end.
fn mark(answer: &mut Answer, request: &ClientRequest, (stale, cut): (Option<&str>, Option<&str>)) {
    let status = if stale.is_some() { "larder; hit; detail=cached" } else { "larder; fwd=uri-miss" };
    answer::mark(answer, request, status);
    if let Some(cause) = stale.or(cut) {
        answer::warn(answer, cause, None);
    }
}
