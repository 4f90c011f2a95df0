//! The door for clients: the read-only OCI distribution API, over HTTP/1.1.
//!
//! | path | file |
//! |---|---|
//! | `/v2/` | [`base`] |
//! | `/v2/NAME/manifests/REFERENCE` | [`manifests`] |
//! | `/v2/NAME/blobs/DIGEST` | [`blobs`] |
//! | `/v2/NAME/tags/list`, `/v2/_catalog`, `/v2/NAME/referrers/DIGEST` | [`lists`] |
//! | `/healthz`, `/readyz`, `/metrics` | [`health`], [`metrics`] |
//!
//! A request is parsed once into a typed [`request::Target`]; a handler turns it into an answer; [`answer`] maps every
//! refusal to a status and an OCI error in one place. hyper speaks the protocol and is used in this room alone.

mod admission;
mod answer;
mod auth;
mod base;
mod blobs;
mod body;
mod direct;
mod health;
mod io;
mod listen;
mod lists;
mod manifests;
mod metrics;
mod page_cache;
mod pool;
mod request;
mod tls;

pub use listen::{Listener, Server};

use crate::mirror::Mirror;
use admission::Admission;
use answer::Answer;
use auth::Door;
use hyper::body::Incoming;
use request::{Request, Target};
use std::net::IpAddr;
use std::sync::Arc;

/// What every request needs.
pub(crate) struct Shared {
    pub(crate) mirror: Arc<Mirror>,
    pub(crate) door: Door,
    admission: Admission,
}

/// Answers one request.
async fn answer(shared: Arc<Shared>, client: IpAddr, incoming: hyper::Request<Incoming>) -> Answer {
    let reported = log::log_enabled!(log::Level::Debug)
        .then(|| (std::time::Instant::now(), format!("{} {}", incoming.method(), incoming.uri())));
    let answer = match Request::parse(incoming, client, shared.mirror.config()) {
        Ok(request) => route(&shared, request).await,
        Err(answer) => *answer,
    };
    if let Some((began, line)) = reported {
        log::debug!(
            "{client} {} {} in {:.1?}",
            crate::oci::quoted(&line),
            answer.status().as_u16(),
            began.elapsed()
        );
    }
    answer
}

async fn route(shared: &Arc<Shared>, request: Request) -> Answer {
    if let Some(registry) = request.private_registry(&shared.mirror)
        && let Err(challenge) = shared.door.check(&request, registry).await
    {
        return challenge;
    }
    match &request.target {
        Target::Base => base::answer(),
        Target::Manifest(repository, reference) => {
            manifests::answer(shared, &request, repository, reference).await
        }
        Target::Blob(repository, digest) => blobs::answer(shared, &request, repository, digest).await,
        Target::Tags(repository) => lists::tags(shared, &request, repository).await,
        Target::Catalog(registry) => lists::catalog(shared, &request, registry.as_ref()).await,
        Target::Referrers(repository, digest) => lists::referrers(shared, &request, repository, digest).await,
        Target::Healthz => health::alive(),
        Target::Readyz => health::ready(&shared.mirror),
        Target::Metrics => metrics::answer(&shared.mirror),
    }
}
