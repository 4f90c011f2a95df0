//! How an endpoint is asked: one question with its login, its redirects, and the pauses that a registry demands.
//!
//! Each call tells the breaker how it went and none looks at it: what happens at the endpoint's own origin counts, what
//! happens elsewhere is suspect. Redirects are followed by hand; the login goes to the endpoint's own origin only. An
//! outage, 429 and a redirect that cannot be followed are failures; every other status is an answer.

use super::address::{Address, HttpOrigin};
use super::breaker::Attempt;
use super::challenge::Challenge;
use super::endpoint::Endpoint;
use super::failure::{Cause, Failure};
use super::reply::EndpointReply;
use super::token::{EndpointLogin, RealmAnswer};
use super::wire::{Deadline, Lane, WireRequest};
use crate::budget::{GUEST_LOGINS_MAX, REDIRECTS_MAX, TOKEN_BYTES_MAX};
use crate::oci::{Digest, ManifestRef, RepositoryName, media, quoted};
use crate::sync::Mutex;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use ureq::Body;
use ureq::http::{HeaderValue, Method, Response, header};

impl Endpoint {
    /// Asks a question, logging in where that is asked for and following redirects to who answers it. An answer of
    /// any status but an outage's, 429 or a redirect's is `Ok`.
    pub(super) fn ask(&self, question: &Question) -> Result<EndpointReply, Failure> {
        self.ask_as(&self.logins(), question)
    }

    pub(super) fn logins(&self) -> Logins<'_> {
        Logins { own: &self.login, elsewhere: &self.redirect_logins }
    }

    /// The same with other logins.
    pub(super) fn ask_as(&self, logins: &Logins<'_>, question: &Question) -> Result<EndpointReply, Failure> {
        let question = &*self.naming.apply(&self.registry, question);
        self.holds.check_all(&self.base.origin.authority())?;
        self.holds.check(&self.base.origin, question)?;
        let attempt = self.breaker.begin();
        let mut address = self.address_of(question);
        for _ in 0..=REDIRECTS_MAX {
            let reply = self.ask_at(logins, &address, question, attempt)?;
            if !matches!(reply.status(), 301 | 302 | 303 | 307 | 308) {
                return self.naming.check(&self.registry, reply);
            }
            address = self.redirected(&address, &reply)?;
            // A list says what a registry has, and is shown to clients as it comes: nobody else may say it.
            if question.class == Class::List && address.origin != self.base.origin {
                let origin = address.origin.to_string();
                let message = format!("has {} answer for a list of its own", quoted(&origin));
                return Err(Failure::unreachable(&reply.host, Cause::NotARegistry, message));
            }
            reply.drain();
        }
        Err(Failure::wrong(&address.origin.authority(), format!("more than {REDIRECTS_MAX} redirects")))
    }

    /// Where the endpoint itself is asked a question.
    pub(super) fn address_of(&self, question: &Question) -> Address {
        match &question.stated {
            Some(target) => Address { origin: self.base.origin.clone(), target: target.clone() },
            None => self.address(&question.target),
        }
    }

    /// Asks at one address. The upstream's own origin gets the configured login; an origin that it redirects to gets
    /// an anonymous token of its own if it asks for one (`lscr.io` sends to `ghcr.io`), and never anything else.
    fn ask_at(
        &self,
        logins: &Logins<'_>,
        address: &Address,
        question: &Question,
        attempt: Attempt,
    ) -> Result<EndpointReply, Failure> {
        if address.origin == self.base.origin {
            return self.ask_own(logins.own, address, question, attempt);
        }
        let deadline = question.deadline;
        let ask_realm = |realm: &Address, credentials: Option<&HeaderValue>| {
            self.ask_realm(question, realm, credentials, attempt)
        };
        self.holds.check(&address.origin, question)?;
        let scope = scope_of(address).unwrap_or_else(|| question.scope.clone());
        let known = logins.elsewhere.find(&address.origin);
        let sent = match &known {
            Some(login) => login.ready(&scope, deadline, &ask_realm)?,
            None => None,
        };
        let reply = self.send(address, question, sent.as_ref(), attempt)?;
        match reply.challenge() {
            Some(challenge @ Challenge::Bearer { .. }) if reply.status() == 401 => {
                reply.drain();
                let login = known.unwrap_or_else(|| logins.elsewhere.begin(&address.origin));
                let better = login.answer(Some(challenge), &scope, sent.as_ref(), deadline, &ask_realm)?;
                self.send(address, question, Some(&better), attempt)
            }
            _ => Ok(reply),
        }
    }

    /// Asks at the upstream's own origin.
    fn ask_own(
        &self,
        own: &EndpointLogin,
        address: &Address,
        question: &Question,
        attempt: Attempt,
    ) -> Result<EndpointReply, Failure> {
        let deadline = question.deadline;
        let ask_realm = |realm: &Address, credentials: Option<&HeaderValue>| {
            self.ask_realm(question, realm, credentials, attempt)
        };
        let login = own.credentials();
        let ready = || or_without(own.ready(&question.scope, deadline, &ask_realm));
        let (mut sent, mut no_token) = ready();
        let mut reply = self.send(address, question, sent.as_ref(), attempt)?;
        // A password that is no longer accepted may have been replaced a moment ago.
        if reply.status() == 403 && own.newer_than(login.as_ref()).is_some() {
            reply.drain();
            (sent, no_token) = ready();
            reply = self.send(address, question, sent.as_ref(), attempt)?;
        }
        let challenge = reply.challenge();
        let asks_else = challenge.as_ref().is_some_and(|stated| own.differs(stated, &question.scope));
        let stands = |failure: &Failure| !(asks_else && matches!(failure, Failure::Denied { .. }));
        if let Some(failure) = no_token.filter(|failure| reply.status() >= 400 && stands(failure)) {
            reply.drain();
            return Err(failure);
        }
        if reply.status() != 401 {
            return Ok(reply);
        }
        if question.shows_who_answers(401) {
            if reply.header(header::WWW_AUTHENTICATE.as_str()).is_none() {
                return Ok(reply);
            }
            // A router or a portal may ask for a password, too.
            let by_password = matches!(challenge, Some(Challenge::Basic));
            if by_password && !own.has_credentials() && !reply.is_a_registrys() {
                return Err(reply.no_registry());
            }
        }
        reply.drain();
        let better = own.answer(challenge, &question.scope, sent.as_ref(), deadline, &ask_realm)?;
        let reply = self.send(address, question, Some(&better), attempt)?;
        if reply.status() == 401 {
            let message = own.refused_message();
            reply.drain();
            return Err(Failure::Denied {
                status: 401,
                detail: format!("{}: {message}", self.base.origin.authority()),
            });
        }
        Ok(reply)
    }

    fn send(
        &self,
        address: &Address,
        question: &Question,
        authorization: Option<&HeaderValue>,
        attempt: Attempt,
    ) -> Result<EndpointReply, Failure> {
        let response = self.wire.send(&WireRequest {
            lane: question.class.lane(),
            method: question.class.method(),
            address,
            accept: question.accept,
            from: question.from,
            end: question.end,
            authorization,
            deadline: question.deadline,
            fresh: false,
        });
        self.judged(address, question, response, attempt)
    }

    /// Tells the breaker how a request went. An outage's status and 429 become failures.
    fn judged(
        &self,
        address: &Address,
        question: &Question,
        response: Result<Response<Body>, Failure>,
        attempt: Attempt,
    ) -> Result<EndpointReply, Failure> {
        let host = &address.origin.authority();
        // What happens at other hosts says nothing about the link to this one.
        let own = address.origin == self.base.origin;
        let reply = match response {
            Ok(response) => EndpointReply::new(host.clone(), own, response),
            Err(failure) => {
                let cut_short = failure.cause() == Some(Cause::Timeout) && question.deadline.was_cut_short();
                if own && !cut_short {
                    self.breaker.failed(attempt, &failure);
                } else {
                    self.breaker.suspect();
                }
                return Err(failure);
            }
        };
        let status = reply.status();
        let failing = status >= 500 && status != 501;
        if own && !failing {
            self.breaker.succeeded();
        }
        if !failing && status != 429 {
            return Ok(reply);
        }
        self.breaker.suspect();
        if status == 429 {
            self.holds.begin(&address.origin, question, reply.retry_after());
        }
        reply.drain();
        Err(if failing { server_error(host, status) } else { rate_limited(host) })
    }

    fn redirected(&self, from: &Address, reply: &EndpointReply) -> Result<Address, Failure> {
        let location = reply.location().ok_or_else(|| reply.wrong("a redirect has no Location"))?;
        let to = from
            .join(&location)
            .map_err(|why| reply.wrong(format!("a redirect cannot be followed: {}", quoted(&why))))?;
        if self.base.origin.https && !to.origin.https {
            return Err(reply.wrong(format!(
                "a redirect from https to plain http ({}) is not followed",
                quoted(&to.origin.to_string())
            )));
        }
        Ok(to)
    }

    fn ask_realm(
        &self,
        question: &Question,
        address: &Address,
        login: Option<&HeaderValue>,
        attempt: Attempt,
    ) -> Result<RealmAnswer, Failure> {
        let host = &address.origin.authority();
        self.holds.check(&address.origin, question)?;
        let response = self.wire.send(&WireRequest {
            lane: Lane::Manifests,
            method: Method::GET,
            address,
            accept: None,
            from: 0,
            end: None,
            authorization: login,
            deadline: question.deadline,
            fresh: false,
        });
        let mut reply = self.judged(address, question, response, attempt)?;
        match reply.status() {
            200..=299 => reply.read_body(TOKEN_BYTES_MAX, &AtomicU64::new(0)).map(RealmAnswer::Token),
            301 | 302 | 303 | 307 | 308 => {
                let location = reply.location();
                let location =
                    location.ok_or_else(|| reply.wrong("the token server's redirect has no Location"))?;
                reply.drain();
                Ok(RealmAnswer::Moved(location))
            }
            status @ 400..=499 => match reply.token_refusal() {
                Some(message) => Err(Failure::Denied {
                    status,
                    detail: format!("{host}: refuses a token ({status}){message}"),
                }),
                None => {
                    let message = format!("answered {status} but not as a token server does");
                    Err(Failure::unreachable(host, Cause::NotARegistry, message))
                }
            },
            status => Err(Failure::wrong(host, format!("the token server answered {status}"))),
        }
    }
}

/// What to send where a token could not be had: nothing, and the failure that it comes to unless that is enough. Not every
/// repository of a registry needs the token that another one needed, nor one for a scope of ours.
fn or_without(ready: Result<Option<HeaderValue>, Failure>) -> (Option<HeaderValue>, Option<Failure>) {
    match ready {
        Ok(sent) => (sent, None),
        Err(failure) => (None, Some(failure)),
    }
}

pub(super) fn server_error(host: &str, status: u16) -> Failure {
    if status == 508 {
        let message = "answered 508: its own upstreams lead back to this board";
        return Failure::unreachable(host, Cause::ServerError(status), message);
    }
    Failure::unreachable(host, Cause::ServerError(status), format!("answered {status}"))
}

fn rate_limited(host: &str) -> Failure {
    Failure::unreachable(host, Cause::RateLimited, "limits the rate of requests (429)")
}

/// What a question is asked with.
pub(super) struct Logins<'a> {
    /// At the endpoint's own origin.
    pub own: &'a EndpointLogin,
    /// At the origins that it redirects to.
    pub elsewhere: &'a RedirectLogins,
}

/// A kind of question. Upstreams meter them apart, so that they are held apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Class {
    ManifestHead,
    ManifestGet,
    BlobHead,
    Blob,
    List,
    /// Whether a manifest or blob is shown to a client's login. Its rate limit is not larder's own.
    ShownManifest,
    ShownManifestGet,
    ShownBlob,
    ShownBlobGet,
    /// Whether it answers and takes the login.
    Ping,
}

impl Class {
    fn method(self) -> Method {
        match self {
            Class::ManifestHead | Class::BlobHead | Class::ShownManifest | Class::ShownBlob => Method::HEAD,
            Class::ManifestGet | Class::ShownManifestGet | Class::Blob | Class::ShownBlobGet => Method::GET,
            Class::List | Class::Ping => Method::GET,
        }
    }

    fn lane(self) -> Lane {
        match self {
            Class::Blob | Class::ShownBlobGet => Lane::Blobs,
            _ => Lane::Manifests,
        }
    }
}

/// A question to an endpoint, in the names of its registry.
#[derive(Clone)]
pub(super) struct Question {
    pub class: Class,
    /// Whose content it is about, if one repository's.
    pub repository: Option<RepositoryName>,
    /// What follows `/v2/`.
    pub target: String,
    /// Path and query as the endpoint itself has stated them for this; `target` is for what is remembered of it.
    pub stated: Option<String>,
    pub scope: String,
    /// It names content by its digest.
    pub by_digest: bool,
    pub accept: Option<&'static str>,
    /// First byte wanted.
    pub from: u64,
    /// The byte before which the wanted part ends, if not the last one.
    pub end: Option<u64>,
    pub deadline: Deadline,
}

impl Question {
    /// A listing of `/v2/TARGET`.
    pub fn new(target: String, scope: String, deadline: Deadline) -> Self {
        Question {
            class: Class::List,
            repository: None,
            target,
            stated: None,
            scope,
            by_digest: false,
            accept: None,
            from: 0,
            end: None,
            deadline,
        }
    }

    pub fn manifest(repository: &RepositoryName, reference: &ManifestRef, deadline: Deadline) -> Self {
        Question {
            by_digest: matches!(reference, ManifestRef::Digest(_)),
            accept: Some(media::ACCEPT_MANIFESTS),
            ..Question::repository(repository, &format!("manifests/{reference}"), deadline)
        }
    }

    pub fn blob(repository: &RepositoryName, digest: &Digest, deadline: Deadline) -> Self {
        let question = Question::repository(repository, &format!("blobs/{digest}"), deadline);
        Question { by_digest: true, ..question }
    }

    /// Whether a refusal with this status shows if it comes from a registry: it has a body, and it does not only say that the
    /// question is not known, as that for referrers may be.
    pub fn shows_who_answers(&self, status: u16) -> bool {
        let unknown = || matches!(status, 400 | 404 | 405 | 406 | 410 | 501);
        self.class.method() == Method::GET && !(self.target.contains("/referrers/") && unknown())
    }

    /// A listing unless the class is set otherwise.
    pub fn repository(repository: &RepositoryName, rest: &str, deadline: Deadline) -> Self {
        let scope = format!("repository:{repository}:pull");
        let question = Question::new(format!("{repository}/{rest}"), scope, deadline);
        Question { repository: Some(repository.clone()), ..question }
    }
}

/// Anonymous logins at the origins that an upstream redirects to.
#[derive(Default)]
pub(super) struct RedirectLogins(Mutex<Vec<(HttpOrigin, Arc<EndpointLogin>)>>);

impl RedirectLogins {
    fn find(&self, origin: &HttpOrigin) -> Option<Arc<EndpointLogin>> {
        let logins = self.0.lock();
        logins.iter().find(|(known, _)| known == origin).map(|(_, login)| login.clone())
    }

    fn begin(&self, origin: &HttpOrigin) -> Arc<EndpointLogin> {
        let login = Arc::new(EndpointLogin::anonymous(origin.clone()));
        let mut logins = self.0.lock();
        if logins.len() == GUEST_LOGINS_MAX {
            logins.remove(0);
        }
        logins.push((origin.clone(), login.clone()));
        login
    }
}

/// The scope that the repository in an address of the API stands for.
fn scope_of(address: &Address) -> Option<String> {
    let (_, rest) = address.target.split_once("/v2/")?;
    let ends = ["/manifests/", "/blobs/", "/tags/", "/referrers/"];
    let end = ends.iter().filter_map(|end| rest.find(end)).min()?;
    let repository: RepositoryName = rest[..end].parse().ok()?;
    Some(format!("repository:{repository}:pull"))
}
