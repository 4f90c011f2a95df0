//! `/v2/NAME/manifests/REFERENCE` (distribution-spec, "Pulling manifests").
//!
//! The bytes are upstream's, and so is the media type, whatever the client accepts: converting a manifest would change
//! its digest.

use super::ServerShared;
use super::answer::{self, Answer, CACHE_STATUS, CONTENT_DIGEST, NAMESPACE};
use super::body::{Account, Body, Reader};
use super::request::ClientRequest;
use crate::mirror::{ByteSource, Content, Refusal, Resolved, Served, SmallManifest, Tier};
use crate::oci::{Digest, ManifestRef, Repository, Tag};
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{self, HeaderValue};
use std::sync::Arc;

pub(super) async fn answer(
    shared: &Arc<ServerShared>,
    request: &ClientRequest,
    repository: &Repository,
    reference: &ManifestRef,
) -> Answer {
    let answered = match reference {
        ManifestRef::Digest(digest) => by_digest(shared, request, repository, digest).await,
        ManifestRef::Tag(tag) => by_tag(shared, request, repository, tag).await,
    };
    match answered {
        Ok(answer) => answer,
        Err(refusal) => {
            shared.mirror.pulls().refused(request.identity.address, repository);
            answer::refuse(&refusal)
        }
    }
}

async fn by_digest(
    shared: &Arc<ServerShared>,
    request: &ClientRequest,
    repository: &Repository,
    digest: &Digest,
) -> Result<Answer, Refusal> {
    if let Some(manifest) = shared.mirror.small_manifest(repository, digest).await {
        shared.mirror.pulls().asked(request.identity.address, repository, digest, None);
        return Ok(at_hand(shared, request, repository, manifest, "larder; hit"));
    }
    let served = shared.mirror.manifest(repository, digest).await.inspect_err(|refusal| {
        log::warn!("{repository}@{digest} not answered: {refusal}");
    })?;
    shared.mirror.pulls().asked(request.identity.address, repository, digest, None);
    let status = if served.source == ByteSource::Cache { "larder; hit" } else { "larder; fwd=uri-miss" };
    content(shared, request, repository, digest, served, status).await
}

async fn by_tag(
    shared: &Arc<ServerShared>,
    request: &ClientRequest,
    repository: &Repository,
    tag: &Tag,
) -> Result<Answer, Refusal> {
    let mirror = &shared.mirror;
    let mut resolved = mirror.resolve(repository, tag).await?;
    mirror.pulls().asked(request.identity.address, repository, tag, Some(resolved.tier));
    // What upstream stated is all that a HEAD needs; the client comes back for the bytes by digest.
    if request.head
        && let Some((media_type, size)) = &resolved.stated
        && !mirror.store().contains(&resolved.digest)
    {
        let mut answer = answer::with_length(StatusCode::OK, answer::text(media_type), *size);
        label(&mut answer, request, resolved.digest.quoted(), "larder; fwd=uri-miss; detail=upstream");
        return Ok(answer);
    }
    let manifest = match resolved.at_hand.take() {
        Some(manifest) => Some(manifest),
        None => mirror.small_manifest(repository, &resolved.digest).await,
    };
    if let Some(manifest) = manifest {
        let status = cache_status(&resolved, ByteSource::Cache);
        let answer = at_hand(shared, request, repository, manifest, status);
        return Ok(with_cause(answer, &resolved));
    }
    let served = match mirror.manifest(repository, &resolved.digest).await {
        Ok(served) => served,
        // A version was named that then could not be had: an older one that is whole is better than nothing.
        Err(refusal @ (Refusal::Unavailable(_) | Refusal::Missing { .. }))
            if matches!(resolved.tier, Tier::Upstream | Tier::Peer) =>
        {
            let cause = refusal.to_string();
            resolved = mirror
                .resolve_instead(repository, tag, &resolved.digest, cause)
                .await
                .map_err(|_| refusal)?;
            mirror.manifest(repository, &resolved.digest).await?
        }
        Err(refusal) => return Err(refusal),
    };
    let status = cache_status(&resolved, served.source);
    let answer = content(shared, request, repository, &resolved.digest, served, status).await?;
    Ok(with_cause(answer, &resolved))
}

/// An answer that may be stale says why.
fn with_cause(mut answer: Answer, resolved: &Resolved) -> Answer {
    if let (true, Some(cause)) = (resolved.tier.is_stale(), &resolved.cause) {
        answer::warn(&mut answer, cause);
    }
    answer
}

fn cache_status(resolved: &Resolved, source: ByteSource) -> &'static str {
    match (resolved.tier, source != ByteSource::Cache) {
        (Tier::Fresh, false) => "larder; hit; detail=fresh",
        (Tier::Upstream, false) => "larder; hit; detail=upstream",
        (Tier::Peer, false) => "larder; hit; detail=peer",
        (Tier::LastComplete, false) => "larder; hit; detail=last-complete",
        (Tier::OlderVersion, false) => "larder; hit; detail=older-version",
        (Tier::Peer, true) => "larder; fwd=uri-miss; detail=peer",
        (Tier::None, _) => "larder; fwd=uri-miss; detail=none",
        (Tier::Fresh | Tier::Upstream | Tier::LastComplete | Tier::OlderVersion, true) => {
            "larder; fwd=uri-miss; detail=upstream"
        }
    }
}

/// A manifest whose bytes are in memory: they cost no place among the bodies, for all clients have the same.
fn at_hand(
    shared: &Arc<ServerShared>,
    request: &ClientRequest,
    repository: &Repository,
    manifest: SmallManifest,
    status: &'static str,
) -> Answer {
    let size = manifest.bytes.len() as u64;
    let mut answer = answer::with_length(StatusCode::OK, answer::shared(manifest.media_type), size);
    if !request.head {
        let mirror = &shared.mirror;
        mirror.counters().count_served(ByteSource::Cache, size);
        mirror.pulls().served(request.identity.address, repository, ByteSource::Cache, size);
        *answer.body_mut() = Body::full(manifest.bytes);
    }
    label(&mut answer, request, manifest.quoted, status);
    answer
}

async fn content(
    shared: &Arc<ServerShared>,
    request: &ClientRequest,
    repository: &Repository,
    digest: &Digest,
    served: Served,
    status: &'static str,
) -> Result<Answer, Refusal> {
    let size = served.content.size();
    let mut answer = answer::with_length(StatusCode::OK, answer::text(&served.media_type), size);
    if !request.head {
        let account = Account::open(shared, request.identity.address, repository, served.source).await?;
        *answer.body_mut() = match served.content {
            Content::Whole(blob) => Body::stream(Reader::complete(blob.file, 0, digest, account), size),
            Content::Memory(bytes) => account.paid(bytes),
        };
    }
    label(&mut answer, request, digest.quoted(), status);
    Ok(answer)
}

/// The headers that every answer with content has; `quoted` is its digest in quotation marks.
pub(super) fn label(
    answer: &mut Answer,
    request: &ClientRequest,
    quoted: impl Into<Bytes>,
    status: &'static str,
) {
    let (headers, quoted) = (answer.headers_mut(), quoted.into());
    headers.insert(CONTENT_DIGEST, answer::shared(quoted.slice(1..quoted.len() - 1)));
    headers.insert(header::ETAG, answer::shared(quoted));
    headers.insert(CACHE_STATUS, HeaderValue::from_static(status));
    if let Some(namespace) = &request.namespace {
        headers.insert(NAMESPACE, answer::text(namespace.as_str()));
    }
}
