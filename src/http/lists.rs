//! `tags/list`, `_catalog` and `referrers` (distribution-spec, "Content Discovery").

use super::answer::{self, Answer, FILTERS};
use super::request::ClientRequest;
use super::{Answered, ServerShared};
use crate::budget;
use crate::mirror::{Access, Mirror, Page, Refusal, Viewer};
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
    let page = match registry {
        Some(registry) if mirror.access(registry, Viewer::Anybody) != Access::Granted => {
            private_catalog(mirror, request, registry).await?
        }
        _ => mirror.catalog(registry, &request.identity, request.page.clone()).await?,
    };
    Ok(list(request, &page, |names| json!({ "repositories": names })))
}

/// The names that the rules let the user see. Neither the list nor the link to the next page has another one.
async fn private_catalog(
    mirror: &Arc<Mirror>,
    request: &ClientRequest,
    registry: &RegistryName,
) -> Result<Page, Refusal> {
    let config = mirror.config();
    let user = request.identity.user.as_deref().unwrap_or_default();
    let mut wanted = request.page.clone();
    let mut page = Page { names: Vec::new(), more: false, stale: None };
    for _ in 0..budget::CATALOGUE_PAGES_MAX {
        page = mirror.catalog(Some(registry), &request.identity, wanted.clone()).await?;
        let last = page.names.last().cloned();
        page.names.retain(|name| config.auth.may_read(user, &format!("{registry}/{name}")));
        if !page.names.is_empty() || !page.more || last.is_none() {
            break;
        }
        wanted.last = last;
    }
    Ok(page)
}

pub(super) async fn referrers(
    shared: &ServerShared,
    request: &ClientRequest,
    repository: &Repository,
    digest: &Digest,
) -> Answered {
    let view = shared.mirror.view(&request.identity, repository);
    let found = shared.mirror.referrers(&view, digest, request.artifact_type.clone()).await?;
    let bytes = shared.admission.in_memory(request.identity.address, found.bytes).await?;
    drop(found.place);
    let mut answer = answer::full(StatusCode::OK, media::OCI_INDEX, bytes);
    if found.filtered {
        answer.headers_mut().insert(FILTERS, HeaderValue::from_static("artifactType"));
    }
    mark(&mut answer, request, found.stale.as_deref());
    Ok(answer)
}

fn list(request: &ClientRequest, page: &Page, body: impl FnOnce(&[String]) -> serde_json::Value) -> Answer {
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
    answer::mark(answer, request, status);
    if let Some(cause) = stale {
        answer::warn(answer, cause, None);
    }
}
