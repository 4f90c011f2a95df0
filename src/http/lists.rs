//! `tags/list`, `_catalog` and `referrers` (distribution-spec, "Content Discovery").

use super::ServerShared;
use super::answer::{self, Answer, CACHE_STATUS, FILTERS, NAMESPACE};
use super::request::ClientRequest;
use crate::mirror::{Page, Refusal};
use crate::oci::{Digest, RegistryName, Repository, media};
use hyper::StatusCode;
use hyper::header::{self, HeaderValue};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;
use std::sync::Arc;

pub(super) async fn tags(
    shared: &Arc<ServerShared>,
    request: &ClientRequest,
    repository: &Repository,
) -> Answer {
    let name = repository.name.clone();
    let page = shared.mirror.tags(repository, request.page.clone()).await;
    list(request, page, |names| json!({ "name": name, "tags": names }))
}

pub(super) async fn catalog(
    shared: &Arc<ServerShared>,
    request: &ClientRequest,
    registry: Option<&RegistryName>,
) -> Answer {
    let page = shared.mirror.catalog(registry, request.page.clone()).await;
    list(request, page, |names| json!({ "repositories": names }))
}

pub(super) async fn referrers(
    shared: &Arc<ServerShared>,
    request: &ClientRequest,
    repository: &Repository,
    digest: &Digest,
) -> Answer {
    match shared.mirror.referrers(repository, digest, request.artifact_type.clone()).await {
        Ok(found) => {
            let mut answer = answer::full(StatusCode::OK, media::OCI_INDEX, found.bytes);
            if found.filtered {
                answer.headers_mut().insert(FILTERS, HeaderValue::from_static("artifactType"));
            }
            mark(&mut answer, request, found.stale.as_deref());
            answer
        }
        Err(refusal) => refuse(request, &refusal),
    }
}

fn list(
    request: &ClientRequest,
    page: Result<Page, Refusal>,
    body: impl FnOnce(&[String]) -> serde_json::Value,
) -> Answer {
    let page = match page {
        Ok(page) => page,
        Err(refusal) => return refuse(request, &refusal),
    };
    let mut answer = answer::full(StatusCode::OK, "application/json", body(&page.names).to_string());
    if let (true, Some(last)) = (page.more, page.names.last()) {
        answer.headers_mut().insert(header::LINK, answer::text(&next(request, last, page.names.len())));
    }
    mark(&mut answer, request, page.stale.as_deref());
    answer
}

/// The link to the next page (RFC 8288).
fn next(request: &ClientRequest, last: &str, names: usize) -> String {
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let n = request.page.n.unwrap_or(names);
    let ns = request.namespace.as_ref().map_or(String::new(), |ns| format!("&ns={}", encode(ns.as_str())));
    format!("<{}?n={n}&last={}{ns}>; rel=\"next\"", request.uri.path(), encode(last))
}

fn mark(answer: &mut Answer, request: &ClientRequest, stale: Option<&str>) {
    let status = if stale.is_some() { "larder; hit; detail=cached" } else { "larder; fwd=uri-miss" };
    answer.headers_mut().insert(CACHE_STATUS, HeaderValue::from_static(status));
    if let Some(cause) = stale {
        answer::warn(answer, cause);
    }
    if let Some(namespace) = &request.namespace {
        answer.headers_mut().insert(NAMESPACE, answer::text(namespace.as_str()));
    }
}

fn refuse(request: &ClientRequest, refusal: &Refusal) -> Answer {
    log::warn!("{} not answered: {refusal}", request.uri.path());
    answer::refuse(refusal)
}
