//! One endpoint of an upstream: every question it can be asked (distribution-spec, "API"), and what its answers mean.
//!
//! All calls block, and each but the reading of a blob ends by its deadline. What an answer claims is checked before it
//! is returned: hashes, lengths, types, ranges. How a question travels is in `ask`.

use super::address::{Address, query_value};
use super::ask::{Class, Question, RedirectLogins, server_error};
use super::blob::BlobStream;
use super::breaker::Breaker;
use super::chain::{self, Naming, StaleAnswer};
use super::challenge;
use super::failure::Failure;
use super::holds::Holds;
use super::pace::Pace;
use super::reply::{EndpointReply, LargeBody, NameList};
use super::token::EndpointLogin;
use super::wire::{Deadline, Lane, Wire, WireRequest};
use crate::budget::{
    BLOB_BYTES_MAX, LIST_BYTES_MAX, MANIFEST_BYTES_MAX, PROBE_HEADER_TIME_MAX, QUESTION_TIME_MAX,
};
use crate::documents::{DocumentTurn, LargeAnswer};
use crate::oci::{Digest, Kind, ManifestRef, RegistryName, RepositoryName, Tag, json, media};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use ureq::http::{Method, header};

/// One address of a registry, with its login, its certificates and what is known of the way to it.
pub struct Endpoint {
    pub(super) registry: RegistryName,
    /// Host and port.
    pub(super) name: String,
    pub(super) note: String,
    /// The origin and, as target, the path prefix before `/v2/`.
    pub(super) base: Address,
    pub(super) naming: Naming,
    pub(super) login: EndpointLogin,
    pub(super) redirect_logins: RedirectLogins,
    pub(super) wire: Wire,
    pub(super) breaker: Breaker,
    pub(super) bytes: Arc<AtomicU64>,
    pub(super) pace: Arc<Pace>,
    pub(super) holds: Holds,
}

/// The answer to a HEAD of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestHead {
    /// The manifest's digest, if the upstream gives a valid one.
    pub digest: Option<Digest>,
    /// Its media type, without parameters.
    pub media_type: Option<String>,
    /// Its size in bytes.
    pub size: Option<u64>,
    /// When the registry answered, by its own clock, as Unix seconds.
    pub date: Option<u64>,
    /// The host and port that answered.
    pub endpoint: String,
    /// Why the digest may be older than the registry's, if it may be.
    pub stale: Option<StaleAnswer>,
    /// Which endpoint of its upstream that is, in their order.
    pub place: usize,
}

/// A manifest whose bytes hash to its digest.
#[derive(Debug)]
pub struct FetchedManifest {
    /// The digest that was asked for; for a tag the one the upstream gave, or the sha256.
    pub digest: Digest,
    /// The media type to serve it with.
    pub media_type: String,
    /// Its bytes, as they came.
    pub bytes: Vec<u8>,
    /// When the registry answered, by its own clock, as Unix seconds.
    pub date: Option<u64>,
    /// The host and port that answered.
    pub endpoint: String,
    /// Why the digest of a tag may be older than the registry's, if it may be.
    pub stale: Option<StaleAnswer>,
    /// Which endpoint of its upstream that is, in their order.
    pub place: usize,
    /// For as long as the bytes are in memory.
    _memory: Option<LargeAnswer>,
}

/// What [`Endpoint::examine`] found of an upstream that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Examined {
    /// Its rate limit, if it reports one.
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

/// The page that was asked for where an upstream that knows no pages, such as distribution 2.8 for tags, sent the whole list
/// in an order of its own. A page by upstream's own paging stays in its order, and is cut if it is longer than was asked.
pub(super) fn page_of<T: AsRef<str> + Ord>(
    mut names: Vec<T>,
    mut more: bool,
    n: Option<usize>,
    last: Option<&str>,
) -> NamePage {
    let too_many = n.is_some_and(|n| names.len() > n);
    let from_the_start = last.is_none_or(|last| names.iter().any(|name| name.as_ref() == last));
    if !more && (too_many || from_the_start) {
        names.sort_unstable();
        names.retain(|name| last.is_none_or(|last| name.as_ref() > last));
    }
    if let Some(n) = n
        && names.len() > n
    {
        names.truncate(n);
        more = true;
    }
    NamePage { names: names.iter().map(|name| name.as_ref().to_owned()).collect(), more }
}

/// The manifests that refer to one (distribution-spec, "Listing Referrers").
#[derive(Debug)]
pub struct ReferrerList {
    /// An image index, as it came.
    pub bytes: Vec<u8>,
    /// The upstream has applied the filter that was asked for.
    pub filtered: bool,
    /// To be kept until the bytes are accounted for elsewhere.
    pub place: Option<LargeAnswer>,
}

impl Endpoint {
    /// The key under which its outage is remembered over a restart.
    pub fn note(&self) -> &str {
        &self.note
    }

    /// Host and port.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether credentials are configured.
    pub fn has_login(&self) -> bool {
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
    /// [`Endpoint::fetch_manifest`] tells.
    pub(super) fn head_manifest(
        &self,
        repository: &RepositoryName,
        reference: &ManifestRef,
        deadline: Deadline,
    ) -> Result<ManifestHead, Failure> {
        let question = Question::manifest(repository, reference, deadline);
        let question = Question { class: Class::ManifestHead, ..question };
        let reply = self.ask(&question)?;
        let (date, endpoint) = (reply.date(), self.name.clone());
        if matches!(reply.status(), 405 | 501) {
            let (digest, media_type, size, stale) = (None, None, None, None);
            return Ok(ManifestHead { digest, media_type, size, date, endpoint, stale, place: 0 });
        }
        let reply = reply.found(&question)?;
        let digest = reply.digest();
        if let (ManifestRef::Digest(wanted), Some(told)) = (reference, &digest)
            && wanted.algorithm() == told.algorithm()
            && wanted != told
        {
            return Err(reply.wrong(format!("was asked for {wanted} and answered {told}")));
        }
        let media_type = reply.header(header::CONTENT_TYPE.as_str()).map(media::essence);
        let (size, stale) = (reply.content_length(), chain::staleness(&reply));
        Ok(ManifestHead { digest, media_type, size, date, endpoint, stale, place: 0 })
    }

    /// See [`Upstream::shows`](super::Upstream::shows). What the registry says of its own content is accepted, but not an
    /// answer to another question, nor one that speaks of no manifest, such as that of a portal.
    pub(super) fn shows(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        deadline: Deadline,
    ) -> Result<(), Failure> {
        let head = self.head_manifest(repository, &ManifestRef::Digest(digest.clone()), deadline)?;
        let is_manifest = head.media_type.as_deref().and_then(Kind::of_media_type).is_some();
        if is_manifest || head.digest.is_some() {
            return Ok(());
        }
        let host = &self.base.origin.host;
        Err(Failure::wrong(host, "does not say whether it has a manifest without sending it"))
    }

    /// Fetches a manifest. Its bytes hash to the digest returned, and its media type is that of its body.
    pub(super) fn fetch_manifest(
        &self,
        repository: &RepositoryName,
        reference: &ManifestRef,
        deadline: Deadline,
    ) -> Result<FetchedManifest, Failure> {
        let question = Question::manifest(repository, reference, deadline);
        let question = Question { class: Class::ManifestGet, ..question };
        let (reply, LargeBody { bytes, place }) = self.document(&question, MANIFEST_BYTES_MAX)?;
        let digest = match (reference, reply.digest()) {
            (ManifestRef::Digest(wanted), _) => wanted.clone(),
            (ManifestRef::Tag(_), Some(told)) => told,
            (ManifestRef::Tag(_), None) => Digest::of(crate::oci::Algorithm::Sha256, &bytes),
        };
        let actual = Digest::of(digest.algorithm(), &bytes);
        if actual != digest {
            return Err(reply.wrong(format!("the manifest should be {digest} and hashes to {actual}")));
        }
        let media_type = reply.manifest_of(&bytes)?.media_type;
        let (date, endpoint, stale) = (reply.date(), self.name.clone(), chain::staleness(&reply));
        Ok(FetchedManifest { digest, media_type, bytes, date, endpoint, stale, place: 0, _memory: place })
    }

    /// Asks for a document of at most so many bytes. A large one that finds no place in memory is asked for again once it
    /// has one.
    fn document(&self, question: &Question, most: u64) -> Result<(EndpointReply, LargeBody), Failure> {
        let mut place = None;
        loop {
            let mut reply = self.ask(question)?.found(question)?;
            reply.verbatim()?;
            if let Some(body) = reply.read_document(most, &self.bytes, &self.registry, place.take())? {
                return Ok((reply, body));
            }
            let busy = reply.wrong("sends a large answer while others are being read; retry");
            drop(reply);
            place = Some(LargeAnswer::wait(self.registry.as_str(), question.deadline.at()).ok_or(busy)?);
        }
    }

    /// Opens a blob at byte `from`. An upstream that ignores the range sends the bytes before it again.
    pub(super) fn open_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        from: u64,
        deadline: Deadline,
    ) -> Result<BlobStream, Failure> {
        let question = Question::blob(repository, digest, deadline);
        let question = Question { class: Class::Blob, from, ..question };
        let reply = self.ask(&question)?.found(&question)?;
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
                None => return Err(reply.wrong("a partial answer has no usable Content-Range")),
            }
        } else {
            (0, reply.content_length())
        };
        if let Some(total) = total.filter(|&total| total > BLOB_BYTES_MAX || total < from) {
            return Err(reply.wrong(format!("announces {total} bytes, which the blob cannot have")));
        }
        let gives_parts = match (reply.status(), reply.header(header::ACCEPT_RANGES.as_str())) {
            (206, _) => Some(true),
            _ if from > 0 => Some(false),
            (_, Some(unit)) => Some(!unit.trim().eq_ignore_ascii_case("none")),
            (_, None) => None,
        };
        Ok(BlobStream {
            total,
            place: 0,
            gives_parts,
            host: reply.host,
            body: reply.body,
            position,
            from,
            failed: None,
            bytes: self.bytes.clone(),
            pace: self.pace.clone(),
            breaker: self.breaker.clone(),
            own: reply.own,
        })
    }

    /// Asks whether a blob is there; its size in bytes, if the upstream says.
    pub(super) fn head_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        deadline: Deadline,
    ) -> Result<Option<u64>, Failure> {
        let question = Question::blob(repository, digest, deadline);
        let question = Question { class: Class::BlobHead, ..question };
        Ok(self.ask(&question)?.found(&question)?.content_length())
    }

    /// A page of at most `n` tags after `last`.
    pub(super) fn list_tags(
        &self,
        repository: &RepositoryName,
        n: Option<usize>,
        last: Option<&str>,
        deadline: Deadline,
    ) -> Result<NamePage, Failure> {
        let question =
            Question::repository(repository, &format!("tags/list{}", page_query(n, last)), deadline);
        self.page(&question, n, last, |name| name.parse::<Tag>().is_ok())
    }

    /// A page of at most `n` repositories after `last`.
    pub(super) fn catalog(
        &self,
        n: Option<usize>,
        last: Option<&str>,
        deadline: Deadline,
    ) -> Result<NamePage, Failure> {
        let scope = "registry:catalog:*".to_owned();
        let question = Question::new(format!("_catalog{}", page_query(n, last)), scope, deadline);
        self.page(&question, n, last, |name| name.parse::<RepositoryName>().is_ok())
    }

    fn page(
        &self,
        question: &Question,
        n: Option<usize>,
        last: Option<&str>,
        is_name: impl Fn(&str) -> bool,
    ) -> Result<NamePage, Failure> {
        let (reply, body) = self.document(question, LIST_BYTES_MAX)?;
        let next = reply.header(header::LINK.as_str()).and_then(challenge::next_page);
        let is_own = |next: &str| {
            let next = self.address(&question.target).join(next);
            next.is_ok_and(|next| next.origin == self.base.origin)
        };
        let more = next.is_some_and(is_own);
        let _turn = DocumentTurn::wait(body.bytes.len() as u64);
        let wrong = |why: &dyn std::fmt::Display| reply.wrong(format!("the list cannot be parsed: {why}"));
        json::check_shape(&body.bytes).map_err(|why| wrong(&why))?;
        let list: NameList<'_> = serde_json::from_slice(&body.bytes).map_err(|why| wrong(&why))?;
        let mut names = list.tags.or(list.repositories).unwrap_or_default().0;
        names.retain(|name| is_name(name));
        Ok(page_of(names, more, n, last))
    }

    /// The manifests that refer to `digest`; `Missing` where the upstream does not know the question.
    pub(super) fn referrers(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        artifact_type: Option<&str>,
        deadline: Deadline,
    ) -> Result<ReferrerList, Failure> {
        let filter = artifact_type.map(|t| format!("?artifactType={}", query_value(t))).unwrap_or_default();
        let question = Question {
            accept: Some(media::OCI_INDEX),
            ..Question::repository(repository, &format!("referrers/{digest}{filter}"), deadline)
        };
        let (reply, LargeBody { bytes, place }) = self.document(&question, LIST_BYTES_MAX)?;
        let index = reply.manifest_of(&bytes)?;
        if index.kind != Kind::Index {
            return Err(reply.wrong("the list of referrers is not an index"));
        }
        let filtered = reply
            .header("oci-filters-applied")
            .is_some_and(|value| value.split(',').any(|f| f.trim().eq_ignore_ascii_case("artifactType")));
        Ok(ReferrerList { bytes, filtered, place })
    }

    /// Probes, and reports the outcome to the breaker.
    #[cfg(test)]
    pub(super) fn probe(&self) -> Result<(), Failure> {
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
    ///
    /// # Errors
    /// Why it does not answer, or does not accept the login.
    pub fn examine(&self) -> Result<Examined, Failure> {
        let mut limit = None;
        let ping = Question::new(String::new(), String::new(), Deadline::after(QUESTION_TIME_MAX));
        match self.ask(&Question { class: Class::Ping, ..ping }) {
            Ok(reply) => limit = reply.rate_limit(),
            // Without credentials a registry may give nothing but its public repositories.
            Err(Failure::Denied { .. }) if !self.has_login() => {}
            Err(failure) => return Err(failure),
        }
        if limit.is_none() && self.registry.as_str() == "docker.io" {
            // Docker Hub's own repository for this question; a HEAD of it costs nothing.
            let scope = "repository:ratelimitpreview/test:pull".to_owned();
            let target = "ratelimitpreview/test/manifests/latest".to_owned();
            let question = Question {
                class: Class::ManifestHead,
                accept: Some(media::ACCEPT_MANIFESTS),
                ..Question::new(target, scope, Deadline::after(QUESTION_TIME_MAX))
            };
            limit = self.ask(&question).ok().and_then(|reply| reply.rate_limit());
        }
        Ok(Examined { limit })
    }

    /// Asks whether it is there, on a new connection. Any status below 500 means that it is; a rate limit concerns all that
    /// it is asked. The caller reports the outcome to the breaker.
    ///
    /// # Errors
    /// `Unreachable`: no connection, no answer in time, or a status from 500 on.
    pub(super) fn probe_quietly(&self) -> Result<(), Failure> {
        let times = self.wire.times();
        let address = self.address("");
        let response = self.wire.send(&WireRequest {
            lane: Lane::Manifests,
            method: Method::GET,
            address: &address,
            accept: None,
            from: 0,
            authorization: None,
            deadline: Deadline::after(times.connect + times.header.min(PROBE_HEADER_TIME_MAX)),
            fresh: true,
        })?;
        let reply = EndpointReply::new(address.origin.host.clone(), true, response);
        match reply.status() {
            status @ 500.. => Err(server_error(&reply.host, status)),
            429 => {
                self.holds.begin_all(reply.retry_after());
                Ok(())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn address(&self, target: &str) -> Address {
        let prefix = self.base.target.trim_end_matches('/');
        Address { origin: self.base.origin.clone(), target: format!("{prefix}/v2/{target}") }
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint")
            .field("registry", &self.registry)
            .field("base", &self.base)
            .finish_non_exhaustive()
    }
}

fn page_query(n: Option<usize>, last: Option<&str>) -> String {
    match (n, last) {
        (None, None) => String::new(),
        (Some(n), None) => format!("?n={n}"),
        (None, Some(last)) => format!("?last={}", query_value(last)),
        (Some(n), Some(last)) => format!("?n={n}&last={}", query_value(last)),
    }
}
