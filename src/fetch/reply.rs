//! An answer of an endpoint: its header as typed values, and its body within limits.

use super::address::escaped;
use super::ask::Question;
use super::challenge::{self, Challenge, ContentRange};
use super::encoding;
use super::endpoint::RateLimit;
use super::failure::{Cause, Failure};
use super::wire::Deadline;
use crate::budget::{
    ERROR_BODY_BYTES_MAX, LARGE_ANSWER_STEP_BYTES, LARGE_DOCUMENT_BYTES, UPSTREAM_NAMES_MAX,
};
use crate::documents::{DocumentTurn, LargeAnswer};
use crate::oci::{Digest, Manifest, RegistryName, media, quoted};
use crate::sync::turn;
use percent_encoding::{CONTROLS, percent_encode};
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, UNIX_EPOCH};
use ureq::http::{Response, header};
use ureq::{Body, BodyReader};

/// A body, and its place in memory if it is large.
#[derive(Debug)]
pub(super) struct LargeBody {
    pub bytes: Vec<u8>,
    pub place: Option<LargeAnswer>,
}

/// An answer, its body not yet read.
pub(super) struct EndpointReply {
    pub host: String,
    /// The endpoint itself gave it, and no one that it redirected to.
    pub own: bool,
    parts: ureq::http::response::Parts,
    pub body: CountedBody,
}

/// A body whose bytes count for the turn of the thread that reads it.
pub(super) struct CountedBody(BodyReader<'static>);

impl Read for CountedBody {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.0.read(buffer)?;
        turn::count_body(count);
        Ok(count)
    }
}

impl EndpointReply {
    pub fn new(host: String, own: bool, response: Response<Body>) -> Self {
        let (parts, body) = response.into_parts();
        turn::begin_body();
        EndpointReply { host, own, parts, body: CountedBody(body.into_reader()) }
    }

    pub fn status(&self) -> u16 {
        self.parts.status.as_u16()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.parts.headers.get(name)?.to_str().ok()
    }

    /// Every value of a header.
    pub fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.parts.headers.get_all(name).iter().filter_map(|value| value.to_str().ok())
    }

    pub fn content_length(&self) -> Option<u64> {
        if self.parts.headers.contains_key(header::TRANSFER_ENCODING) {
            return None;
        }
        self.header(header::CONTENT_LENGTH.as_str())?.trim().parse().ok()
    }

    pub fn content_range(&self) -> Option<ContentRange> {
        challenge::content_range(self.header(header::CONTENT_RANGE.as_str())?)
    }

    /// Where a redirect leads, as an address can have it: registries send names as they are, in UTF-8 and with spaces.
    pub fn location(&self) -> Option<String> {
        self.parts.headers.get(header::LOCATION).map(|value| escaped(value.as_bytes()))
    }

    pub fn digest(&self) -> Option<Digest> {
        self.header("docker-content-digest")?.trim().parse().ok()
    }

    /// `ratelimit-remaining: 76;w=21600` and `ratelimit-limit: 100;w=21600`.
    pub fn rate_limit(&self) -> Option<RateLimit> {
        let number = |name| self.header(name)?.split(';').next()?.trim().parse().ok();
        Some(RateLimit { left: number("ratelimit-remaining")?, of: number("ratelimit-limit") })
    }

    pub fn challenge(&self) -> Option<Challenge> {
        let values = self.parts.headers.get_all(header::WWW_AUTHENTICATE);
        challenge::choose(values.iter().filter_map(|value| value.to_str().ok()))
    }

    /// The address of the next page of a list as it is stated, with what may not stand in one escaped.
    pub fn next_page(&self) -> Option<String> {
        let links = self.parts.headers.get_all(header::LINK).iter();
        let links = links.map(|value| percent_encode(value.as_bytes(), CONTROLS).to_string());
        links.into_iter().find_map(|link| challenge::next_page(&link).map(str::to_owned))
    }

    pub fn retry_after(&self) -> Option<Duration> {
        self.header(header::RETRY_AFTER.as_str())?.trim().parse().ok().map(Duration::from_secs)
    }

    /// When the registry made the answer, as Unix seconds (RFC 9110, 6.6.1). A cache passes `Date` on as it is, so that an
    /// answer out of one is as old as that says.
    pub fn date(&self) -> Option<u64> {
        let date = httpdate::parse_http_date(self.header(header::DATE.as_str())?.trim()).ok()?;
        Some(date.duration_since(UNIX_EPOCH).ok()?.as_secs())
    }

    pub fn wrong(&self, message: impl std::fmt::Display) -> Failure {
        Failure::wrong(&self.host, message)
    }

    /// The reply if it is one that has what was asked for. The endpoint's own words are for the log where content was
    /// asked for by its digest: there they would tell whether it is here, because what is here is confirmed by a HEAD, whose
    /// answer has none. A refusal without any sign of a registry is an outage, but for one by HEAD, which has no body: that
    /// is for a GET to confirm.
    ///
    /// # Errors
    /// By its status: `Missing`, `Denied`, `Unreachable` or `Wrong`.
    pub fn found(mut self, question: &Question) -> Result<EndpointReply, Failure> {
        let status = self.status();
        if matches!(status, 200 | 206) {
            return Ok(self);
        }
        let error = self.error_entry();
        let signed = self.is_signed() || error.as_ref().is_some_and(|error| error.code.is_some());
        // What any server may say on behalf of a registry, such as who stores its blobs.
        let of_http = match status {
            401 => self.parts.headers.contains_key(header::WWW_AUTHENTICATE),
            408 | 416 => true,
            _ => false,
        };
        if !signed && !of_http && question.shows_who_answers(status) {
            return Err(self.no_registry());
        }
        let message = message_of(error);
        let detail = if question.by_digest {
            log::debug!("{}: answered {status}{message} to {}", self.host, question.target);
            format!("{}: answered {status}", self.host)
        } else {
            format!("{}: answered {status}{message}", self.host)
        };
        Err(match status {
            404 | 410 | 405 | 501 => Failure::Missing { detail },
            401 | 403 | 451 => Failure::Denied { status, detail },
            408 => Failure::Unreachable { cause: Cause::Timeout, detail },
            _ => Failure::Wrong { detail },
        })
    }

    /// Whether its header is one that registries send.
    pub fn is_signed(&self) -> bool {
        self.header("docker-distribution-api-version").is_some()
    }

    /// Whether it is a page for people, such as that of a portal.
    pub fn is_page(&self) -> bool {
        self.content_type().is_some_and(|shown| shown == "text/html") && self.digest().is_none()
    }

    /// Its media type, without parameters.
    pub fn content_type(&self) -> Option<String> {
        self.header(header::CONTENT_TYPE.as_str()).map(media::essence)
    }

    /// What answered is no registry.
    pub fn no_registry(&self) -> Failure {
        Failure::no_registry(&self.host, self.status(), self.content_type().as_deref())
    }

    /// The document in a body, which may be compressed although that was not asked for; see [`encoding`]. However short
    /// that is, the document may be large.
    ///
    /// # Errors
    /// `Wrong` if it is larger than `most`, cannot be decoded, or finds no place in memory until then.
    pub fn decoded(
        &self,
        body: LargeBody,
        most: u64,
        owner: &RegistryName,
        deadline: Deadline,
    ) -> Result<LargeBody, Failure> {
        let coding = self.header(header::CONTENT_ENCODING.as_str());
        if !encoding::is_gzip(coding, &body.bytes) {
            return Ok(body);
        }
        let place = body.place.or_else(|| LargeAnswer::wait(owner.as_str(), deadline.at()));
        let place = place.ok_or_else(|| self.wrong("sends a compressed answer while large ones are read"))?;
        // Both are in memory at a time.
        let most = most.saturating_sub(body.bytes.len() as u64);
        let bytes = encoding::gunzip(&body.bytes, most).map_err(|why| self.wrong(why))?;
        Ok(LargeBody { bytes, place: Some(place) })
    }

    /// The complete body, if it is no longer than `most`.
    ///
    /// # Errors
    /// `Wrong` if it is longer, `Unreachable` if it is cut.
    pub fn read_body(&mut self, most: u64, count: &AtomicU64) -> Result<Vec<u8>, Failure> {
        let long = |reply: &EndpointReply| reply.wrong(format!("the answer is larger than {most} bytes"));
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

    /// The same of a document that may be large: its first bytes as they come, more only with a place of `owner`. `None`:
    /// it has none, and there is none now. It is not waited for here, because the time for a body is running.
    ///
    /// # Errors
    /// As [`EndpointReply::read_body`].
    pub fn read_document(
        &mut self,
        most: u64,
        count: &AtomicU64,
        owner: &RegistryName,
        place: Option<LargeAnswer>,
    ) -> Result<Option<LargeBody>, Failure> {
        let long = |reply: &EndpointReply| reply.wrong(format!("the answer is larger than {most} bytes"));
        let announced = self.content_length();
        if announced.is_some_and(|length| length > most) {
            return Err(long(self));
        }
        let mut body = LargeBody { bytes: Vec::new(), place };
        let mut watch = body.place.as_ref().map(LargeAnswer::yields);
        let mut limit = LARGE_DOCUMENT_BYTES + 1;
        loop {
            // Exactly, because a list that doubles may have twice the memory that it needs.
            let step = limit.min(most + 1) - body.bytes.len() as u64;
            body.bytes.reserve_exact(usize::try_from(step).unwrap_or(0));
            let outcome = self.body.by_ref().take(step).read_to_end(&mut body.bytes);
            let got = outcome.map_err(|error| Failure::from_client(&self.host, ureq::Error::from(error)));
            let ended = got? < usize::try_from(step).unwrap_or(usize::MAX);
            if ended || body.bytes.len() as u64 > most {
                break;
            }
            if body.place.is_none() {
                body.place = LargeAnswer::wait(owner.as_str(), Instant::now());
                if body.place.is_none() {
                    return Ok(None);
                }
            }
            if watch.is_none() {
                watch = body.place.as_ref().map(LargeAnswer::yields);
            }
            limit += announced.map_or(LARGE_ANSWER_STEP_BYTES, |length| length.saturating_sub(limit) + 1);
        }
        count.fetch_add(body.bytes.len() as u64, Ordering::Relaxed);
        if body.bytes.len() as u64 > most { Err(long(self)) } else { Ok(Some(body)) }
    }

    /// The manifest that `bytes` are, by themselves and by the header that they came with.
    ///
    /// # Errors
    /// `Wrong` if they are none.
    pub fn manifest_of(&self, bytes: &[u8]) -> Result<Manifest, Failure> {
        let _turn = DocumentTurn::wait(bytes.len() as u64);
        Manifest::parse(bytes, self.header(header::CONTENT_TYPE.as_str())).map_err(|why| self.wrong(why))
    }

    /// Reads the rest of a small body, so that its connection can be used again.
    pub fn drain(mut self) {
        let mut rest = Vec::new();
        drop(self.body.by_ref().take(ERROR_BODY_BYTES_MAX).read_to_end(&mut rest));
    }

    /// `: "message"` from an error body (distribution-spec, "Error Codes"), or nothing.
    pub fn error_message(&mut self) -> String {
        message_of(self.error_entry())
    }

    /// What a token server says of its refusal, which may be nothing. `None`: nothing shows that it is one.
    pub fn token_refusal(&mut self) -> Option<String> {
        let asks = self.status() == 401 && self.parts.headers.contains_key(header::WWW_AUTHENTICATE);
        let known = asks || self.is_signed();
        let bytes = self.error_bytes().unwrap_or_default();
        // Several say it in words of their own, but all as an object.
        let is_object = || serde_json::from_slice::<BTreeMap<String, IgnoredAny>>(&bytes).is_ok();
        (known || bytes.is_empty() || is_object()).then(|| message_of(entry_of(&bytes)))
    }

    /// Whether a refusal is signed as a registry's, by its header or its body.
    pub fn is_a_registrys(&mut self) -> bool {
        self.is_signed() || self.error_entry().is_some_and(|error| error.code.is_some())
    }

    /// The first error of an error body.
    fn error_entry(&mut self) -> Option<ErrorEntry> {
        entry_of(&self.error_bytes()?)
    }

    fn error_bytes(&mut self) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        self.body.by_ref().take(ERROR_BODY_BYTES_MAX).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }
}

/// The first error of an error body.
fn entry_of(body: &[u8]) -> Option<ErrorEntry> {
    serde_json::from_slice::<ErrorBody>(body).ok()?.errors.into_iter().next()
}

/// What an error says, to follow what else is known of it; perhaps nothing.
fn message_of(error: Option<ErrorEntry>) -> String {
    let message = error.and_then(|error| error.message).filter(|message| !message.is_empty());
    message.map_or_else(String::new, |message| format!(": {}", quoted(&message)))
}

#[derive(Deserialize)]
struct ErrorBody {
    errors: Vec<ErrorEntry>,
}

#[derive(Deserialize)]
struct ErrorEntry {
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    message: Option<String>,
}

/// A page of tags or repositories, as it is sent.
#[derive(Deserialize)]
pub(super) struct NameList<'a> {
    /// What every list of tags has.
    #[serde(default)]
    name: Option<IgnoredAny>,
    #[serde(default, borrow, deserialize_with = "present")]
    tags: Option<Option<ListedNames<'a>>>,
    #[serde(default, borrow, deserialize_with = "present")]
    repositories: Option<Option<ListedNames<'a>>>,
}

/// What is there, if only as `null`.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

impl<'a> NameList<'a> {
    /// The names; `None` if it is no such list.
    pub fn names(self) -> Option<Vec<Cow<'a, str>>> {
        let listed = match (self.tags.or(self.repositories), self.name) {
            (Some(listed), _) => listed,
            (None, Some(_)) => None,
            (None, None) => return None,
        };
        Some(listed.unwrap_or_default().0)
    }
}

/// Names, no more than `UPSTREAM_NAMES_MAX`. They lie in the answer, but for those that are written with escapes.
#[derive(Default)]
struct ListedNames<'a>(Vec<Cow<'a, str>>);

/// A name that is read without a copy where that can be.
#[derive(Deserialize)]
struct ListedName<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for ListedNames<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = ListedNames<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "at most {UPSTREAM_NAMES_MAX} names")
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
                let mut names = Vec::new();
                while let Some(ListedName(name)) = items.next_element()? {
                    if names.len() == UPSTREAM_NAMES_MAX {
                        return Err(serde::de::Error::invalid_length(names.len() + 1, &self));
                    }
                    names.push(name);
                }
                Ok(ListedNames(names))
            }

            fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<Self::Value, E> {
                Err(E::custom("a text stands where a list should"))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
