//! `/v2/NAME/manifests/REFERENCE` (distribution-spec, "Pulling manifests").
//!
//! The bytes and the media type are those of upstream, whatever the client accepts: a converted manifest has another
//! digest.

use super::answer::{self};
use super::body::{Account, Body, Reader};
use super::conditions::{Precondition, judge};
use super::request::ClientRequest;
use super::{Answered, ServerShared};
use crate::mirror::{ByteSource, ManifestAnswer, ManifestContent, TagContent, Tier};
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
    let view = shared.mirror.view(&request.identity, repository);
    shared.mirror.check_fetch(&request.identity, &view, digest).await?;
    let found = shared.mirror.manifest(&view, digest).await?;
    shared.mirror.pulls().asked(request.identity.address, repository, digest, None);
    let status = if found.source == ByteSource::Cache { "larder; hit" } else { "larder; fwd=uri-miss" };
    content(shared, request, repository, digest, found, status).await
}

async fn by_tag(
    shared: &ServerShared,
    request: &ClientRequest,
    repository: &Repository,
    tag: &Tag,
) -> Answered {
    let view = shared.mirror.view(&request.identity, repository);
    let found = shared.mirror.tag(&request.identity, &view, tag, request.head).await?;
    shared.mirror.pulls().asked(request.identity.address, repository, tag, Some(found.tier));
    let mut answer = match found.content {
        TagContent::Stated(media_type, size) => {
            let mut answer = answer::with_length(StatusCode::OK, answer::text(&media_type), size);
            let status = cache_status(found.tier, ByteSource::Fill);
            answer::label(&mut answer, request, found.digest.quoted(), status);
            let verdict = judge(&request.headers, found.digest.quoted().as_bytes());
            answer::on_condition(verdict, answer)
        }
        TagContent::Manifest(manifest) => {
            let status = cache_status(found.tier, manifest.source);
            content(shared, request, repository, &found.digest, manifest, status).await?
        }
    };
    // An answer that may be stale says why.
    if let (true, Some(cause)) = (found.tier.is_stale(), &found.cause) {
        answer::warn(&mut answer, cause, found.age);
    }
    Ok(answer)
}

fn cache_status(tier: Tier, source: ByteSource) -> &'static str {
    match (tier, source != ByteSource::Cache) {
        (Tier::Fresh, false) => "larder; hit; detail=fresh",
        (Tier::Upstream, false) => "larder; hit; detail=upstream",
        (Tier::Peer, false) => "larder; hit; detail=peer",
        (Tier::LastComplete, false) => "larder; hit; detail=last-complete",
        (Tier::OlderVersion, false) => "larder; hit; detail=older-version",
        (Tier::Peer, true) => "larder; fwd=uri-miss; detail=peer",
        (Tier::LastComplete, true) => "larder; fwd=uri-miss; detail=last-complete",
        (Tier::OlderVersion, true) => "larder; fwd=uri-miss; detail=older-version",
        (Tier::None, _) => "larder; fwd=uri-miss; detail=none",
        (Tier::Fresh | Tier::Upstream, true) => "larder; fwd=uri-miss; detail=upstream",
    }
}

async fn content(
    shared: &ServerShared,
    request: &ClientRequest,
    repository: &Repository,
    digest: &Digest,
    found: ManifestAnswer,
    status: &'static str,
) -> Answered {
    let (source, client) = (found.source, request.identity.address);
    let (media_type, size, quoted) = match &found.content {
        ManifestContent::Small(small) => {
            (answer::shared(small.media_type.clone()), small.bytes.len() as u64, small.quoted.clone())
        }
        ManifestContent::Stored { media_type, blob } => {
            (answer::text(media_type), blob.size, digest.quoted().into())
        }
        ManifestContent::NotStored { media_type, bytes } => {
            (answer::text(media_type), bytes.len() as u64, digest.quoted().into())
        }
    };
    let verdict = judge(&request.headers, &quoted);
    let mut answer = answer::with_length(StatusCode::OK, media_type, size);
    answer::label(&mut answer, request, quoted, status);
    if request.head || verdict != Precondition::Send {
        return Ok(answer::on_condition(verdict, answer));
    }
    *answer.body_mut() = match found.content {
        // It needs no permit for a body, because all clients share the bytes.
        ManifestContent::Small(small) => {
            shared.mirror.counters().count_served(source, size);
            shared.mirror.pulls().served(client, repository, source, size);
            Body::full(small.bytes)
        }
        ManifestContent::Stored { blob, .. } => {
            let account = Account::open(shared, client, repository, source).await?;
            Body::stream(Reader::complete(blob.file, 0, digest, account), size)
        }
        ManifestContent::NotStored { bytes, .. } => {
            Account::open(shared, client, repository, source).await?.in_memory(bytes)
        }
    };
    Ok(answer)
}
