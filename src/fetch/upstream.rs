//! One upstream: every question it can be asked (distribution-spec, "API"), and what its answers mean.
//!
//! All calls block, and each but the reading of a blob ends within `QUESTION_TIME_MAX`. What an answer claims is
//! checked before it is returned: hashes, lengths, types, ranges. Each call tells the breaker how it went and none
//! looks at it. Redirects are followed by hand; the login goes to the upstream's own origin only.

use super::address::{Address, Origin, query_value};
use super::blob::BlobStream;
use super::breaker::{Attempt, Breaker};
use super::challenge::{self, Challenge};
use super::failure::{Cause, Failure};
use super::pace::Pace;
use super::token::Login;
use super::wire::{Deadline, Lane, Request, Wire};
use crate::budget::{
    BLOB_BYTES_MAX, ERROR_BODY_BYTES_MAX, GUEST_LOGINS_MAX, LIST_BYTES_MAX, MANIFEST_BYTES_MAX,
    PROBE_HEADER_TIME_MAX, QUESTION_TIME_MAX, REDIRECTS_MAX, RETRY_AFTER_MAX, TOKEN_BYTES_MAX,
    UPSTREAM_NAMES_MAX,
};
use crate::oci::{Digest, Kind, Manifest, ManifestRef, RegistryName, RepositoryName, Tag, media, quoted};
use crate::sync::Mutex;
use serde::Deserialize;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use ureq::http::{HeaderValue, Method, Response, header};
use ureq::{Body, BodyReader};

/// An upstream registry.
pub struct Upstream {
    pub(super) name: RegistryName,
    /// The origin and, as target, the path prefix before `/v2/`.
    pub(super) base: Address,
    pub(super) login: Login,
    pub(super) guests: Guests,
    pub(super) wire: Wire,
    pub(super) breaker: Breaker,
    pub(super) bytes: Arc<AtomicU64>,
    pub(super) pace: Arc<Pace>,
    pub(super) holds: Holds,
}

/// What a HEAD of a manifest tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestHead {
    /// The manifest's digest, if the upstream gives a valid one.
    pub digest: Option<Digest>,
    /// Its media type, without parameters.
    pub media_type: Option<String>,
    /// Its size in bytes.
    pub size: Option<u64>,
}

/// A manifest whose bytes hash to its digest.
#[derive(Clone, Debug, PartialEq)]
pub struct FetchedManifest {
    /// The digest that was asked for; for a tag the one the upstream gave, or the sha256.
    pub digest: Digest,
    /// The media type to serve it with.
    pub media_type: String,
    /// Its bytes, as they came.
    pub bytes: Vec<u8>,
    /// What they say.
    pub manifest: Manifest,
}

/// What [`Upstream::examine`] found of an upstream that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Examined {
    /// Its rate limit, if it says so.
    pub limit: Option<RateLimit>,
}

/// Pulls that an upstream still gives in its period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Those that are left.
    pub left: u64,
    /// Of how many.
    pub of: Option<u64>,
}

/// A page of tags or repositories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePage {
    /// The names; what is not a name is left out.
    pub names: Vec<String>,
    /// There is a next page.
    pub more: bool,
}

impl NamePage {
    /// The page that was asked for where an upstream that knows no pages, such as distribution 2.8 for tags, sent the
    /// whole list in an order of its own. A page by upstream's own paging stays as it came.
    pub(super) fn in_order(mut self, n: Option<usize>, last: Option<&str>) -> NamePage {
        let too_many = n.is_some_and(|n| self.names.len() > n);
        let from_the_start = last.is_none_or(|last| self.names.iter().any(|name| name == last));
        if !self.more && (too_many || from_the_start) {
            self.names.sort_unstable();
            self.names.retain(|name| last.is_none_or(|last| name.as_str() > last));
            if let Some(n) = n
                && self.names.len() > n
            {
                self.names.truncate(n);
                self.more = true;
            }
        }
        self
    }
}

/// The manifests that refer to one (distribution-spec, "Listing Referrers").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Referrers {
    /// An image index, as it came.
    pub bytes: Vec<u8>,
    /// The upstream has applied the filter that was asked for.
    pub filtered: bool,
}

impl Upstream {
    /// The registry's name in references.
    pub fn name(&self) -> &RegistryName {
        &self.name
    }

    /// Whether credentials are configured: then what it gives is not for everybody.
    pub fn is_private(&self) -> bool {
        self.login.has_credentials()
    }

    /// Whether requests should wait for it.
    pub fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// Body bytes taken from it so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Asks what a manifest is, which registries do not meter.
    ///
    /// An upstream that knows no HEAD (405, 501) or sends no digest gives a head without digest: then
    /// [`Upstream::fetch_manifest`] tells.
    pub fn head_manifest(
        &self,
        repository: &RepositoryName,
        reference: &ManifestRef,
    ) -> Result<ManifestHead, Failure> {
        let reply = self.ask(&Question {
            class: Class::ManifestHead,
            accept: Some(media::ACCEPT_MANIFESTS),
            ..Question::repository(repository, &format!("manifests/{reference}"))
        })?;
        if matches!(reply.status(), 405 | 501) {
            return Ok(ManifestHead { digest: None, media_type: None, size: None });
        }
        let reply = reply.found()?;
        let digest = reply.digest();
        if let (ManifestRef::Digest(wanted), Some(told)) = (reference, &digest)
            && wanted.algorithm() == told.algorithm()
            && wanted != told
        {
            return Err(reply.wrong(format!("was asked for {wanted} and has {told}")));
        }
        let media_type = reply.header(header::CONTENT_TYPE.as_str()).map(media::essence);
        Ok(ManifestHead { digest, media_type, size: reply.content_length() })
    }

    /// Fetches a manifest. Its bytes hash to the digest returned, and its media type is that of its body.
    pub fn fetch_manifest(
        &self,
        repository: &RepositoryName,
        reference: &ManifestRef,
    ) -> Result<FetchedManifest, Failure> {
        let reply = self.ask(&Question {
            class: Class::ManifestGet,
            accept: Some(media::ACCEPT_MANIFESTS),
            ..Question::repository(repository, &format!("manifests/{reference}"))
        })?;
        let mut reply = reply.found()?;
        reply.verbatim()?;
        let bytes = reply.read_whole(MANIFEST_BYTES_MAX, &self.bytes)?;
        let digest = match (reference, reply.digest()) {
            (ManifestRef::Digest(wanted), _) => wanted.clone(),
            (ManifestRef::Tag(_), Some(told)) => told,
            (ManifestRef::Tag(_), None) => Digest::of(crate::oci::Algorithm::Sha256, &bytes),
        };
        let actual = Digest::of(digest.algorithm(), &bytes);
        if actual != digest {
            return Err(reply.wrong(format!("the manifest should be {digest} and is {actual}")));
        }
        let manifest = Manifest::parse(&bytes, reply.header(header::CONTENT_TYPE.as_str()))
            .map_err(|why| reply.wrong(why))?;
        Ok(FetchedManifest { digest, media_type: manifest.media_type.clone(), bytes, manifest })
    }

    /// Opens a blob at byte `from`. An upstream that ignores the range costs the bytes before it once more.
    pub fn open_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        from: u64,
    ) -> Result<BlobStream, Failure> {
        let reply = self.ask(&Question {
            class: Class::Blob,
            from,
            ..Question::repository(repository, &format!("blobs/{digest}"))
        })?;
        let reply = reply.found()?;
        reply.verbatim()?;
        let (position, total) = if reply.status() == 206 {
            let range = reply.header(header::CONTENT_RANGE.as_str()).and_then(challenge::content_range);
            match range {
                Some((start, length)) if start == from => {
                    (from, length.or_else(|| reply.content_length().and_then(|left| from.checked_add(left))))
                }
                Some((start, _)) => {
                    return Err(reply.wrong(format!("was asked for byte {from} and begins at {start}")));
                }
                None => return Err(reply.wrong("a partial answer does not say which part it is")),
            }
        } else {
            (0, reply.content_length())
        };
        if let Some(total) = total.filter(|&total| total > BLOB_BYTES_MAX || total < from) {
            return Err(reply.wrong(format!("a blob of {total} bytes is not what was asked for")));
        }
        Ok(BlobStream {
            total,
            host: reply.host,
            body: reply.body,
            position,
            from,
            failed: None,
            bytes: self.bytes.clone(),
            pace: self.pace.clone(),
            attempt: self.breaker.begin(),
            breaker: self.breaker.clone(),
        })
    }

    /// Asks whether a blob is there; its size in bytes, if the upstream says.
    pub fn head_blob(&self, repository: &RepositoryName, digest: &Digest) -> Result<Option<u64>, Failure> {
        let reply = self.ask(&Question {
            class: Class::BlobHead,
            ..Question::repository(repository, &format!("blobs/{digest}"))
        })?;
        Ok(reply.found()?.content_length())
    }

    /// A page of at most `n` tags after `last`.
    pub fn list_tags(
        &self,
        repository: &RepositoryName,
        n: Option<usize>,
        last: Option<&str>,
    ) -> Result<NamePage, Failure> {
        let question = Question::repository(repository, &format!("tags/list{}", page_query(n, last)));
        let page = self.page(&question, |name| name.parse::<Tag>().is_ok())?;
        Ok(page.in_order(n, last))
    }

    /// A page of at most `n` repositories after `last`.
    pub fn catalog(&self, n: Option<usize>, last: Option<&str>) -> Result<NamePage, Failure> {
        let question = Question {
            target: format!("_catalog{}", page_query(n, last)),
            scope: "registry:catalog:*".to_owned(),
            class: Class::List,
            accept: None,
            from: 0,
        };
        let page = self.page(&question, |name| name.parse::<RepositoryName>().is_ok())?;
        Ok(page.in_order(n, last))
    }

    fn page(&self, question: &Question, is_name: impl Fn(&str) -> bool) -> Result<NamePage, Failure> {
        let mut reply = self.ask(question)?.found()?;
        let more = reply.header(header::LINK.as_str()).is_some_and(challenge::has_next);
        let bytes = reply.read_whole(LIST_BYTES_MAX, &self.bytes)?;
        let list: NameList = serde_json::from_slice(&bytes)
            .map_err(|error| reply.wrong(format!("the list is not understood: {error}")))?;
        let mut names = list.tags.or(list.repositories).unwrap_or_default().0;
        names.retain(|name| is_name(name));
        Ok(NamePage { names, more })
    }

    /// The manifests that refer to `digest`; `Missing` where the upstream does not know the question.
    pub fn referrers(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Referrers, Failure> {
        let filter = artifact_type.map(|t| format!("?artifactType={}", query_value(t))).unwrap_or_default();
        let question = Question {
            accept: Some(media::OCI_INDEX),
            ..Question::repository(repository, &format!("referrers/{digest}{filter}"))
        };
        let mut reply = self.ask(&question)?.found()?;
        let bytes = reply.read_whole(LIST_BYTES_MAX, &self.bytes)?;
        let index = Manifest::parse(&bytes, reply.header(header::CONTENT_TYPE.as_str()))
            .map_err(|why| reply.wrong(why))?;
        if index.kind != Kind::Index {
            return Err(reply.wrong("the list of referrers is not an index"));
        }
        let filtered = reply
            .header("oci-filters-applied")
            .is_some_and(|value| value.split(',').any(|f| f.trim().eq_ignore_ascii_case("artifactType")));
        Ok(Referrers { bytes, filtered })
    }

    /// Asks whether it is there, on a new connection. Any status below 500 means that it is.
    pub fn probe(&self) -> Result<(), Failure> {
        let attempt = self.breaker.begin();
        let outcome = self.probe_quietly();
        match &outcome {
            Ok(()) => self.breaker.succeeded(),
            Err(failure) => self.breaker.failed(attempt, failure),
        }
        outcome
    }

    /// Asks what the owner should know: whether it answers and takes the login, and what it says of its rate limit.
    /// A question for a person who waits; no pull needs it.
    pub fn examine(&self) -> Result<Examined, Failure> {
        let question = Question {
            target: String::new(),
            scope: String::new(),
            class: Class::List,
            accept: None,
            from: 0,
        };
        let mut limit = None;
        match self.ask(&question) {
            Ok(reply) => limit = reply.rate_limit(),
            // Without credentials a registry may give nothing but its public repositories.
            Err(Failure::Denied { .. }) if !self.is_private() => {}
            Err(failure) => return Err(failure),
        }
        if limit.is_none() && self.name.as_str() == "docker.io" {
            // Docker Hub's own repository for this question; a HEAD of it costs nothing.
            let question = Question {
                class: Class::ManifestHead,
                accept: Some(media::ACCEPT_MANIFESTS),
                target: "ratelimitpreview/test/manifests/latest".to_owned(),
                scope: "repository:ratelimitpreview/test:pull".to_owned(),
                from: 0,
            };
            limit = self.ask(&question).ok().and_then(|reply| reply.rate_limit());
        }
        Ok(Examined { limit })
    }

    /// [`Upstream::probe`] without a word to the breaker.
    pub(super) fn probe_quietly(&self) -> Result<(), Failure> {
        let times = self.wire.times();
        let address = self.address("");
        let response = self.wire.send(&Request {
            lane: Lane::Manifests,
            method: Method::GET,
            address: &address,
            accept: None,
            from: 0,
            authorization: None,
            deadline: Deadline::after(times.connect + times.header.min(PROBE_HEADER_TIME_MAX)),
            fresh: true,
        })?;
        match response.status().as_u16() {
            status @ 500.. => Err(server_error(&address.origin.host, status)),
            _ => Ok(()),
        }
    }

    fn address(&self, target: &str) -> Address {
        let prefix = self.base.target.trim_end_matches('/');
        Address { origin: self.base.origin.clone(), target: format!("{prefix}/v2/{target}") }
    }

    /// Asks a question, logging in where that is asked for and following redirects to who answers it. An answer of
    /// any status but an outage's, 429 or a redirect's is `Ok`.
    fn ask(&self, question: &Question) -> Result<Reply, Failure> {
        let deadline = Deadline::after(QUESTION_TIME_MAX);
        self.holds.check(question.class, &self.base.origin.host)?;
        let attempt = self.breaker.begin();
        let mut address = self.address(&question.target);
        for _ in 0..=REDIRECTS_MAX {
            let reply = self.ask_at(&address, question, attempt, deadline)?;
            if !matches!(reply.status(), 301 | 302 | 303 | 307 | 308) {
                return Ok(reply);
            }
            address = self.redirected(&address, &reply)?;
            reply.drain();
        }
        Err(Failure::wrong(&address.origin.host, format!("more than {REDIRECTS_MAX} redirects")))
    }

    /// Asks at one address. The upstream's own origin gets the configured login; an origin that it redirects to gets
    /// an anonymous token of its own if it asks for one (`lscr.io` sends to `ghcr.io`), and never anything else.
    fn ask_at(
        &self,
        address: &Address,
        question: &Question,
        attempt: Attempt,
        deadline: Deadline,
    ) -> Result<Reply, Failure> {
        let ask_realm = |realm: &Address, credentials: Option<&HeaderValue>| {
            self.ask_realm(question.class, realm, credentials, attempt, deadline)
        };
        if address.origin == self.base.origin {
            let sent = self.login.ready(&question.scope, deadline, &ask_realm)?;
            let reply = self.send(address, question, sent.as_ref(), attempt, deadline)?;
            if reply.status() != 401 {
                return Ok(reply);
            }
            let challenge = reply.challenge();
            reply.drain();
            let better =
                self.login.answer(challenge, &question.scope, sent.as_ref(), deadline, &ask_realm)?;
            let reply = self.send(address, question, Some(&better), attempt, deadline)?;
            if reply.status() == 401 {
                let words = self.login.refused_words();
                reply.drain();
                return Err(Failure::Denied {
                    status: 401,
                    detail: format!("{}: {words}", self.base.origin.host),
                });
            }
            return Ok(reply);
        }
        let scope = scope_of(address).unwrap_or_else(|| question.scope.clone());
        let known = self.guests.find(&address.origin);
        let sent = match &known {
            Some(login) => login.ready(&scope, deadline, &ask_realm)?,
            None => None,
        };
        let reply = self.send(address, question, sent.as_ref(), attempt, deadline)?;
        match reply.challenge() {
            Some(challenge @ Challenge::Bearer { .. }) if reply.status() == 401 => {
                reply.drain();
                let login = known.unwrap_or_else(|| self.guests.begin(&address.origin));
                let better = login.answer(Some(challenge), &scope, sent.as_ref(), deadline, &ask_realm)?;
                self.send(address, question, Some(&better), attempt, deadline)
            }
            _ => Ok(reply),
        }
    }

    fn send(
        &self,
        address: &Address,
        question: &Question,
        authorization: Option<&HeaderValue>,
        attempt: Attempt,
        deadline: Deadline,
    ) -> Result<Reply, Failure> {
        let host = &address.origin.host;
        // What happens at other hosts says nothing about the link to this one, which has just answered.
        let own = address.origin == self.base.origin;
        let failed = |failure: Failure| {
            if own {
                self.breaker.failed(attempt, &failure);
            }
            failure
        };
        let response = self.wire.send(&Request {
            lane: question.class.lane(),
            method: question.class.method(),
            address,
            accept: question.accept,
            from: question.from,
            authorization,
            deadline,
            fresh: false,
        });
        let reply = Reply::new(host.clone(), response.map_err(failed)?);
        match reply.status() {
            429 => {
                if own {
                    self.breaker.succeeded();
                }
                self.holds.begin(question.class, reply.retry_after());
                reply.drain();
                Err(rate_limited(host))
            }
            status if status >= 500 && status != 501 => {
                reply.drain();
                Err(failed(server_error(host, status)))
            }
            _ => {
                if own {
                    self.breaker.succeeded();
                }
                Ok(reply)
            }
        }
    }

    fn redirected(&self, from: &Address, reply: &Reply) -> Result<Address, Failure> {
        let location = reply
            .header(header::LOCATION.as_str())
            .ok_or_else(|| reply.wrong("a redirect does not say where to"))?;
        let to = from
            .join(location)
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
        class: Class,
        address: &Address,
        login: Option<&HeaderValue>,
        attempt: Attempt,
        deadline: Deadline,
    ) -> Result<Vec<u8>, Failure> {
        let host = &address.origin.host;
        let sent = self.wire.send(&Request {
            lane: Lane::Manifests,
            method: Method::GET,
            address,
            accept: None,
            from: 0,
            authorization: login,
            deadline,
            fresh: false,
        });
        let mut reply = match sent {
            Ok(response) => Reply::new(host.clone(), response),
            Err(failure) => {
                self.breaker.failed(attempt, &failure);
                return Err(failure);
            }
        };
        match reply.status() {
            200..=299 => reply.read_whole(TOKEN_BYTES_MAX, &AtomicU64::new(0)),
            429 => {
                self.holds.begin(class, reply.retry_after());
                reply.drain();
                Err(rate_limited(host))
            }
            status @ 500.. => {
                let failure = server_error(host, status);
                self.breaker.failed(attempt, &failure);
                reply.drain();
                Err(failure)
            }
            status @ 400.. => {
                let words = reply.error_words();
                Err(Failure::Denied { status, detail: format!("{host}: refuses a token ({status}){words}") })
            }
            status => Err(Failure::wrong(host, format!("the token server answered {status}"))),
        }
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").field("name", &self.name).field("base", &self.base).finish_non_exhaustive()
    }
}

fn server_error(host: &str, status: u16) -> Failure {
    Failure::unreachable(host, Cause::ServerError(status), format!("answered {status}"))
}

fn rate_limited(host: &str) -> Failure {
    Failure::unreachable(host, Cause::RateLimited, "limits the rate of requests (429)")
}

fn page_query(n: Option<usize>, last: Option<&str>) -> String {
    match (n, last) {
        (None, None) => String::new(),
        (Some(n), None) => format!("?n={n}"),
        (None, Some(last)) => format!("?last={}", query_value(last)),
        (Some(n), Some(last)) => format!("?n={n}&last={}", query_value(last)),
    }
}

/// A kind of question. Upstreams meter them apart, so that they are held apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Class {
    ManifestHead,
    ManifestGet,
    BlobHead,
    Blob,
    List,
}

impl Class {
    const COUNT: usize = 5;

    fn method(self) -> Method {
        match self {
            Class::ManifestHead | Class::BlobHead => Method::HEAD,
            Class::ManifestGet | Class::Blob | Class::List => Method::GET,
        }
    }

    fn lane(self) -> Lane {
        match self {
            Class::Blob => Lane::Blobs,
            Class::ManifestHead | Class::ManifestGet | Class::BlobHead | Class::List => Lane::Manifests,
        }
    }
}

struct Question {
    class: Class,
    /// What follows `/v2/`.
    target: String,
    scope: String,
    accept: Option<&'static str>,
    from: u64,
}

impl Question {
    /// A listing unless the class is set otherwise.
    fn repository(repository: &RepositoryName, rest: &str) -> Self {
        Question {
            class: Class::List,
            target: format!("{repository}/{rest}"),
            scope: format!("repository:{repository}:pull"),
            accept: None,
            from: 0,
        }
    }
}

/// Until when each class of question is not to be asked, by the upstream's own `Retry-After`.
#[derive(Default)]
pub(super) struct Holds([Mutex<Option<Instant>>; Class::COUNT]);

impl Holds {
    fn check(&self, class: Class, host: &str) -> Result<(), Failure> {
        let until = *self.0[class as usize].lock();
        match until.and_then(|until| until.checked_duration_since(Instant::now())) {
            Some(left) if !left.is_zero() => {
                let seconds = left.as_secs() + 1;
                let words = format!("limits the rate of requests (429) for {seconds} s more");
                Err(Failure::unreachable(host, Cause::RateLimited, words))
            }
            _ => Ok(()),
        }
    }

    fn begin(&self, class: Class, length: Option<Duration>) {
        if let Some(length) = length {
            *self.0[class as usize].lock() = Some(Instant::now() + length.min(RETRY_AFTER_MAX));
        }
    }
}

/// Anonymous logins at the origins that an upstream redirects to.
#[derive(Default)]
pub(super) struct Guests(Mutex<Vec<(Origin, Arc<Login>)>>);

impl Guests {
    fn find(&self, origin: &Origin) -> Option<Arc<Login>> {
        let guests = self.0.lock();
        guests.iter().find(|(known, _)| known == origin).map(|(_, login)| login.clone())
    }

    fn begin(&self, origin: &Origin) -> Arc<Login> {
        let login = Arc::new(Login::anonymous(origin.clone()));
        let mut guests = self.0.lock();
        if guests.len() == GUEST_LOGINS_MAX {
            guests.remove(0);
        }
        guests.push((origin.clone(), login.clone()));
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

/// An answer, its body not yet read.
struct Reply {
    host: String,
    parts: ureq::http::response::Parts,
    body: BodyReader<'static>,
}

impl Reply {
    fn new(host: String, response: Response<Body>) -> Self {
        let (parts, body) = response.into_parts();
        Reply { host, parts, body: body.into_reader() }
    }

    fn status(&self) -> u16 {
        self.parts.status.as_u16()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.parts.headers.get(name)?.to_str().ok()
    }

    fn content_length(&self) -> Option<u64> {
        if self.parts.headers.contains_key(header::TRANSFER_ENCODING) {
            return None;
        }
        self.header(header::CONTENT_LENGTH.as_str())?.trim().parse().ok()
    }

    fn digest(&self) -> Option<Digest> {
        self.header("docker-content-digest")?.trim().parse().ok()
    }

    /// `ratelimit-remaining: 76;w=21600` and `ratelimit-limit: 100;w=21600`.
    fn rate_limit(&self) -> Option<RateLimit> {
        let number = |name| self.header(name)?.split(';').next()?.trim().parse().ok();
        Some(RateLimit { left: number("ratelimit-remaining")?, of: number("ratelimit-limit") })
    }

    fn challenge(&self) -> Option<Challenge> {
        let values = self.parts.headers.get_all(header::WWW_AUTHENTICATE);
        challenge::choose(values.iter().filter_map(|value| value.to_str().ok()))
    }

    fn retry_after(&self) -> Option<Duration> {
        self.header(header::RETRY_AFTER.as_str())?.trim().parse().ok().map(Duration::from_secs)
    }

    fn wrong(&self, words: impl std::fmt::Display) -> Failure {
        Failure::wrong(&self.host, words)
    }

    /// The reply if it is one that has what was asked for.
    fn found(mut self) -> Result<Reply, Failure> {
        let status = self.status();
        if matches!(status, 200 | 206) {
            return Ok(self);
        }
        let words = self.error_words();
        let detail = format!("{}: answered {status}{words}", self.host);
        Err(match status {
            404 | 410 | 405 | 501 => Failure::Missing { detail },
            401 | 403 | 451 => Failure::Denied { status, detail },
            408 => Failure::Unreachable { cause: Cause::Timeout, detail },
            _ => Failure::Wrong { detail },
        })
    }

    /// Refuses a body that is not the content itself: it was not asked to be compressed.
    fn verbatim(&self) -> Result<(), Failure> {
        match self.header(header::CONTENT_ENCODING.as_str()) {
            Some(coding) if !coding.trim().eq_ignore_ascii_case("identity") => {
                Err(self.wrong(format!("the answer is encoded as {}", quoted(coding))))
            }
            _ => Ok(()),
        }
    }

    /// The whole body, if it is no longer than `most`.
    fn read_whole(&mut self, most: u64, count: &AtomicU64) -> Result<Vec<u8>, Failure> {
        let long = |reply: &Reply| reply.wrong(format!("the answer is larger than {most} bytes"));
        let announced = self.content_length();
        if announced.is_some_and(|length| length > most) {
            return Err(long(self));
        }
        let mut bytes = Vec::new();
        let outcome = self.body.by_ref().take(most + 1).read_to_end(&mut bytes);
        count.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        outcome.map_err(|error| Failure::from_client(&self.host, ureq::Error::from(error)))?;
        if bytes.len() as u64 > most { Err(long(self)) } else { Ok(bytes) }
    }

    /// Reads the rest of a small body, so that its connection can be used again.
    fn drain(mut self) {
        let mut rest = Vec::new();
        drop(self.body.by_ref().take(ERROR_BODY_BYTES_MAX).read_to_end(&mut rest));
    }

    /// `: "message"` from an error body (distribution-spec, "Error Codes"), or nothing.
    fn error_words(&mut self) -> String {
        let mut bytes = Vec::new();
        if self.body.by_ref().take(ERROR_BODY_BYTES_MAX).read_to_end(&mut bytes).is_err() {
            return String::new();
        }
        let errors: Option<ErrorBody> = serde_json::from_slice(&bytes).ok();
        let message = errors.and_then(|body| body.errors.into_iter().next()).and_then(|error| error.message);
        message.filter(|m| !m.is_empty()).map_or(String::new(), |message| format!(": {}", quoted(&message)))
    }
}

#[derive(Deserialize)]
struct ErrorBody {
    errors: Vec<ErrorEntry>,
}

#[derive(Deserialize)]
struct ErrorEntry {
    #[serde(default)]
    message: Option<String>,
}

#[derive(Deserialize)]
struct NameList {
    #[serde(default)]
    tags: Option<Names>,
    #[serde(default)]
    repositories: Option<Names>,
}

/// Names, no more than `UPSTREAM_NAMES_MAX`.
#[derive(Default)]
struct Names(Vec<String>);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Names;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "at most {UPSTREAM_NAMES_MAX} names")
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut items: A) -> Result<Names, A::Error> {
                let mut names = Vec::new();
                while let Some(name) = items.next_element()? {
                    if names.len() == UPSTREAM_NAMES_MAX {
                        return Err(serde::de::Error::invalid_length(names.len() + 1, &self));
                    }
                    names.push(name);
                }
                Ok(Names(names))
            }
        }
        deserializer.deserialize_seq(Visitor)
    }
}
