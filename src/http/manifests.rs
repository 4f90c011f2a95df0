//! `/v2/NAME/manifests/REFERENCE` (distribution-spec, "Pulling manifests").
//!
//! The bytes and the media type are those of upstream, whatever the client accepts: a converted manifest has another
//! digest.

use super::answer::{self, Answer};
use super::body::{Account, Body, Reader};
use super::request::ClientRequest;
use super::{Answered, ServerShared};
use crate::mirror::{ByteSource, Content, Refusal, Resolved, Served, SmallManifest, Tier};
use crate::oci::{Digest, ManifestRef, Repository, Tag};
use hyper::StatusCode;

pub(super) async fn answer(
    shared: &ServerShared,
    request: &ClientRequest,
    repository: &Repository,
    reference: &ManifestRef,
) -> Answered {
    match reference {
        ManifestRef::Digest(digest) => by_digest(shared, request, repository, digest).await,
        ManifestRef::Tag(tag) => by_tag(shared, request, repository, tag).await,
    }
}

async fn by_digest(
    shared: &ServerShared,
    request: &ClientRequest,
    repository: &Repository,
    digest: &Digest,
) -> Answered {
    if let Some(manifest) = shared.mirror.small_manifest(repository, digest).await {
        shared.mirror.pulls().asked(request.identity.address, repository, digest, None);
        return Ok(from_memory(shared, request, repository, manifest, "larder; hit"));
    }
    let served = shared.mirror.manifest(repository, digest).await?;
    shared.mirror.pulls().asked(request.identity.address, repository, digest, None);
    let status = if served.source == ByteSource::Cache { "larder; hit" } else { "larder; fwd=uri-miss" };
    content(shared, request, repository, digest, served, status).await
}

async fn by_tag(
    shared: &ServerShared,
    request: &ClientRequest,
    repository: &Repository,
    tag: &Tag,
) -> Answered {
    let mirror = &shared.mirror;
    let mut resolved = mirror.resolve(repository, tag).await?;
    mirror.pulls().asked(request.identity.address, repository, tag, Some(resolved.tier));
    // What upstream stated is all that a HEAD needs; the client comes back for the bytes by digest.
    if request.head
        && let Some((media_type, size)) = &resolved.stated
        && !mirror.store().contains(&resolved.digest)
    {
        let mut answer = answer::with_length(StatusCode::OK, answer::text(media_type), *size);
        let status = "larder; fwd=uri-miss; detail=upstream";
        answer::label(&mut answer, request, resolved.digest.quoted(), status);
        return Ok(answer);
    }
    let manifest = match resolved.at_hand.take() {
        Some(manifest) => Some(manifest),
        None => mirror.small_manifest(repository, &resolved.digest).await,
    };
    if let Some(manifest) = manifest {
        let status = cache_status(&resolved, ByteSource::Cache);
        let answer = from_memory(shared, request, repository, manifest, status);
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

/// Adds to an answer that may be stale why it may.
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

/// Answers with a manifest whose bytes are in memory: it needs no permit for a body, because all clients share the bytes.
fn from_memory(
    shared: &ServerShared,
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
    answer::label(&mut answer, request, manifest.quoted, status);
    answer
}

async fn content(
    shared: &ServerShared,
    request: &ClientRequest,
    repository: &Repository,
    digest: &Digest,
    served: Served,
    status: &'static str,
) -> Answered {
    let size = served.content.size();
    let mut answer = answer::with_length(StatusCode::OK, answer::text(&served.media_type), size);
    if !request.head {
        let account = Account::open(shared, request.identity.address, repository, served.source).await?;
        *answer.body_mut() = match served.content {
            Content::Whole(blob) => Body::stream(Reader::complete(blob.file, 0, digest, account), size),
            Content::Memory(bytes) => account.in_memory(bytes),
        };
    }
    answer::label(&mut answer, request, digest.quoted(), status);
    Ok(answer)
}
