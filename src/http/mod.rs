//! The listener for clients: the read-only OCI distribution API, over HTTP/1.1.
//!
//! | path | file |
//! |---|---|
//! | `/v2/` | [`base`] |
//! | `/v2/NAME/manifests/REFERENCE` | [`manifests`] |
//! | `/v2/NAME/blobs/DIGEST` | [`blobs`] |
//! | `/v2/NAME/tags/list`, `/v2/_catalog`, `/v2/NAME/referrers/DIGEST` | [`lists`] |
//! | `/healthz`, `/readyz`, `/metrics` | [`health`], [`metrics`] |
//!
//! A request is parsed once into a typed [`request::RequestTarget`]; a handler turns it into an answer; [`answer`] maps every
//! refusal to a status and an OCI error in one place. hyper speaks the protocol and is used in this room alone. A request
//! carries the identity of its client, and [`access`] decides whether that may see what it asks for.

mod admission;
mod answer;
mod auth;
mod base;
mod blobs;
mod body;
mod conditions;
mod growing;
mod health;
mod io;
mod listen;
mod lists;
mod manifests;
mod metrics;
mod page_cache;
mod pool;
mod request;
mod sendfile;
mod tls;

pub use listen::{ByteStream, Listener, Server};

use crate::auth::Identity;
use crate::mirror::{Access, Mirror, Refusal, Viewer};
use crate::oci::{ManifestRef, quoted};
use crate::places::for_client;
use crate::via::{self, Way};
use admission::Admission;
use answer::Answer;
use auth::Authenticator;
use hyper::body::Incoming;
use hyper::header::AUTHORIZATION;
use request::{ClientRequest, RequestTarget};
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::watch;

/// The answer of a handler, or why there is none.
type Answered = Result<Answer, Refusal>;

/// What all connections of a server share.
struct ServerShared {
    mirror: Arc<Mirror>,
    authenticator: Authenticator,
    admission: Admission,
    tls: Option<tls::TlsFiles>,
    stop: watch::Sender<bool>,
}

/// Answers one request.
async fn answer(
    shared: Arc<ServerShared>,
    identity: Arc<Identity>,
    incoming: hyper::Request<Incoming>,
) -> Answer {
    let reported = log::log_enabled!(log::Level::Debug)
        .then(|| (std::time::Instant::now(), format!("{} {}", incoming.method(), incoming.uri())));
    let client = identity.address;
    let (board, way) = (shared.mirror.board(), request::way(incoming.headers()));
    let mut answer = if way.is_loop(board) {
        answer::is_loop(&way.onward(board))
    } else {
        let parse = || ClientRequest::parse(incoming, identity, &shared.mirror.config());
        match via::on_thread(&way, parse) {
            Ok(request) => answer_request(&shared, client, way, request).await,
            Err(answer) => *answer,
        }
    };
    answer::name_board(&mut answer, board);
    if let Some((began, line)) = reported {
        let (line, status) = (quoted(&line), answer.status().as_u16());
        log::debug!("{client} {line} {status} in {:.1?}", began.elapsed());
    }
    answer
}

/// Answers a valid request. Another Larder is told for which registry: one that says none may have meant another.
async fn answer_request(
    shared: &ServerShared,
    client: IpAddr,
    way: Way,
    mut request: ClientRequest,
) -> Answer {
    if way.is_from_board() && request.target == RequestTarget::Catalog(None) {
        // It wants the names of one registry; all of them with that before each are for people.
        request.target = RequestTarget::Catalog(request.registry().cloned());
    }
    let registry = request.namespace.as_ref().or(request.registry()).filter(|_| way.is_from_board()).cloned();
    let mut answer = via::coming(way, for_client(client, route(shared, request))).await;
    if let Some(registry) = registry {
        answer::name_registry(&mut answer, &registry);
    }
    answer
}

/// Whether the client may see what it asks for. It is asked to log in only where that takes a login.
///
/// # Errors
/// The answer that says why not.
async fn access(shared: &ServerShared, request: &mut ClientRequest) -> Result<(), Answer> {
    let Some(registry) = request.registry() else { return Ok(()) };
    let auth = &shared.mirror.config().auth;
    // In the open only the board's own passwords are asked for, and only where the owner says so.
    let may_ask = request.identity.sealed
        || auth.allow_plain_http && (!auth.pull_secrets || shared.authenticator.has_users());
    let pinged = auth.challenge_ping && may_ask && request.target == RequestTarget::Base;
    if !pinged && shared.mirror.access(registry, Viewer::Anybody) == Access::Granted {
        // Nobody is asked to log in there. Who does so sees what was fetched with credentials, too.
        if may_ask && auth.htpasswd_file.is_some() && request.headers.contains_key(AUTHORIZATION) {
            request.identity = shared.authenticator.user(&shared.mirror, request, registry).await;
        }
        return Ok(());
    }
    match shared.mirror.access(registry, Viewer::Client(&request.identity)) {
        Access::Hidden => return Err(answer::unknown_registry(registry)),
        // Before a password is asked for, which would be sent in the open.
        _ if !may_ask => return Err(answer::needs_tls(registry)),
        Access::Granted if !pinged || request.identity.user.is_some() => {}
        _ => request.identity = shared.authenticator.log_in(&shared.mirror, request, registry).await?,
    }
    match (request.identity.user.as_deref(), request.repository()) {
        (Some(user), Some(repository)) if !auth.may_read(user, &repository.to_string()) => {
            Err(answer::no_right(user, repository))
        }
        // The registry itself has shown this to who is no user here: no rule says more.
        _ => Ok(()),
    }
}

async fn route(shared: &ServerShared, mut request: ClientRequest) -> Answer {
    if let Err(denied) = access(shared, &mut request).await {
        return denied;
    }
    let answered = match &request.target {
        RequestTarget::Base => Ok(base::answer()),
        RequestTarget::Manifest(repository, reference) => {
            manifests::answer(shared, &request, repository, reference).await
        }
        RequestTarget::Blob(repository, digest) => blobs::answer(shared, &request, repository, digest).await,
        RequestTarget::Tags(repository) => lists::tags(&shared.mirror, &request, repository).await,
        RequestTarget::Catalog(registry) => lists::catalog(&shared.mirror, &request, registry.as_ref()).await,
        RequestTarget::Referrers(repository, digest) => {
            lists::referrers(shared, &request, repository, digest).await
        }
        RequestTarget::Healthz => Ok(health::alive()),
        RequestTarget::Readyz => Ok(health::ready(&shared.mirror)),
        RequestTarget::Metrics => Ok(metrics::answer(&shared.mirror)),
    };
    answered.unwrap_or_else(|refusal| refuse(shared, &request, &refusal))
}

/// Logs and counts a refusal, and answers with it.
fn refuse(shared: &ServerShared, request: &ClientRequest, refusal: &Refusal) -> Answer {
    let count = |repository| shared.mirror.pulls().refused(request.identity.address, repository);
    // The log limits lines by their place, so that one kind of request cannot silence another.
    let image = match &request.target {
        RequestTarget::Manifest(repository, ManifestRef::Tag(tag)) => {
            let image = format!("{repository}:{tag}");
            log::warn!("{image} not answered: {refusal}");
            count(repository);
            image
        }
        RequestTarget::Manifest(repository, ManifestRef::Digest(digest))
        | RequestTarget::Blob(repository, digest) => {
            let image = format!("{repository}@{digest}");
            log::warn!("{image} not answered: {refusal}");
            count(repository);
            image
        }
        RequestTarget::Tags(repository) | RequestTarget::Referrers(repository, _) => {
            log::warn!("{} not answered: {refusal}", request.uri.path());
            repository.to_string()
        }
        _ => {
            log::warn!("{} not answered: {refusal}", request.uri.path());
            return answer::refuse(refusal);
        }
    };
    answer::refuse_for(&image, refusal)
}
