//! What a manifest or blob is without fetching it, and manifests: HEAD where an endpoint answers that well, else GET.
//!
//! HEAD is our optimisation, because registries do not meter it: where it fails, says nothing or says something wrong, GET is
//! the answer, and `shortcuts` remembers that. A refusal by HEAD has no body to show that a registry gave it, so that a GET
//! confirms it, once in a while. Bytes prove what a manifest is: what a HEAD states is relayed only if it can be right, and
//! only until the bytes are here. A GET that does not hash to its digest is refused, whatever HEAD said.

use super::ask::{Class, Question};
use super::chain::{self, StaleAnswer};
use super::endpoint::Endpoint;
use super::failure::{Cause, Failure};
use super::reply::{EndpointReply, LargeBody};
use super::shortcuts::{Content, HeadRefusal, StatedManifest};
use super::wire::Deadline;
use crate::budget::MANIFEST_BYTES_MAX;
use crate::documents::LargeAnswer;
use crate::oci::{Algorithm, Digest, Kind, ManifestRef, RepositoryName, Tag};
use crate::sync::turn;
use ureq::http::header;

/// The answer to a HEAD of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ManifestHead {
    /// The manifest's digest, if the upstream gives a valid one.
    pub digest: Option<Digest>,
    /// Its media type, without parameters.
    pub media_type: Option<String>,
    /// Its size in bytes.
    pub size: Option<u64>,
    /// When the registry answered, by its own clock, as Unix seconds.
    pub date: Option<u64>,
    /// Why the digest may be older than the registry's, if it may be.
    pub stale: Option<StaleAnswer>,
}

/// Which refusals by HEAD are confirmed by GET.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadTrust {
    /// All: HEAD may be refused where GET is not.
    None,
    /// Those without any sign of a registry. Others are answers, so that what is hidden and what does not exist are asked about
    /// alike.
    Signed,
}

/// Which manifest a tag is.
#[derive(Debug)]
pub enum NamedManifest {
    /// By HEAD.
    Head {
        /// Its digest.
        digest: Digest,
        /// Its media type and size in bytes, if they are a manifest's.
        stated: Option<(String, u64)>,
        /// When the registry answered, by its own clock, as Unix seconds.
        date: Option<u64>,
        /// The host and port that answered.
        endpoint: String,
        /// Why the digest may be older than the registry's, if it may be.
        stale: Option<StaleAnswer>,
        /// Which endpoint of its upstream that is, in their order.
        place: usize,
    },
    /// By GET.
    Fetched(FetchedManifest),
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

impl NamedManifest {
    /// Why it may be older than the registry's, if it may be.
    pub(super) fn stale(&self) -> Option<&StaleAnswer> {
        match self {
            NamedManifest::Head { stale, .. } => stale.as_ref(),
            NamedManifest::Fetched(fetched) => fetched.stale.as_ref(),
        }
    }

    /// The same from the endpoint at that place.
    pub(super) fn at(mut self, at: usize) -> NamedManifest {
        match &mut self {
            NamedManifest::Head { place, .. } => *place = at,
            NamedManifest::Fetched(fetched) => fetched.place = at,
        }
        self
    }
}

impl ManifestHead {
    /// What may be relayed.
    fn stated(&self) -> Option<(String, u64)> {
        let media_type = self.media_type.clone().filter(|stated| Kind::of_media_type(stated).is_some());
        media_type.zip(self.size.filter(|size| (1..=MANIFEST_BYTES_MAX).contains(size)))
    }
}

impl Endpoint {
    /// Asks what a manifest is. Whether the header of the answer is a registry's comes with it.
    ///
    /// An upstream that knows no HEAD (405, 501) or sends no digest gives a head without digest.
    pub(super) fn head_manifest(
        &self,
        repository: &RepositoryName,
        reference: &ManifestRef,
        deadline: Deadline,
    ) -> (Result<ManifestHead, Failure>, bool) {
        let question = Question::manifest(repository, reference, deadline);
        let question = Question { class: Class::ManifestHead, ..question };
        let reply = match self.ask(&question) {
            Ok(reply) => reply,
            Err(failure) => return (Err(failure), false),
        };
        let signed = reply.is_signed();
        let (date, stale) = (reply.date(), chain::staleness(&reply));
        if matches!(reply.status(), 405 | 501) {
            return (Ok(ManifestHead { digest: None, media_type: None, size: None, date, stale }), signed);
        }
        let reply = match reply.found(&question) {
            Ok(reply) => reply,
            Err(failure) => return (Err(failure), signed),
        };
        let digest = reply.digest();
        if let (ManifestRef::Digest(wanted), Some(told)) = (reference, &digest)
            && wanted.algorithm() == told.algorithm()
            && wanted != told
        {
            return (Err(reply.wrong(format!("was asked for {wanted} and answered {told}"))), signed);
        }
        let size =
            reply.content_length().filter(|_| reply.header(header::CONTENT_ENCODING.as_str()).is_none());
        (Ok(ManifestHead { digest, media_type: reply.content_type(), size, date, stale }), signed)
    }

    /// See [`Upstream::name_tag`](super::Upstream::name_tag).
    pub(super) fn name_tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
        trust: HeadTrust,
        deadline: Deadline,
    ) -> Result<NamedManifest, Failure> {
        let reference = ManifestRef::Tag(tag.clone());
        let by_get = || self.get_manifest(repository, &reference, deadline);
        if self.shortcuts.lacks_head(repository, Content::Manifests) {
            return by_get().map(NamedManifest::Fetched);
        }
        let (head, signed) = self.head_manifest(repository, &reference, deadline);
        let failure = match head {
            Ok(head) if let Some(digest) = head.digest.clone() => {
                let stated = head.stated().filter(|_| !self.shortcuts.misstates(repository));
                let note = StatedManifest { tag: tag.clone(), stated: stated.clone() };
                self.shortcuts.named(repository, &digest, note);
                self.shortcuts.is_a_registry();
                let (date, endpoint, stale) = (head.date, self.name.clone(), head.stale);
                return Ok(NamedManifest::Head { digest, stated, date, endpoint, stale, place: 0 });
            }
            Ok(_) => None,
            Err(failure) => Some(failure),
        };
        let believed = trust == HeadTrust::Signed
            && (signed || matches!(failure, Some(Failure::Denied { status: 401, .. })));
        let target = format!("{repository}/manifests/{tag}");
        self.instead_of_head(HeadRefusal { failure, signed }, believed, &target, by_get, |_| {
            self.shortcuts.head_failed(repository, Content::Manifests);
        })
        .map(NamedManifest::Fetched)
    }

    /// Asks by GET what a HEAD has refused, unless the same refusal was confirmed lately. `believed`: a refusal counts without
    /// that. `was_wrong` is called if GET is an answer.
    fn instead_of_head<T>(
        &self,
        refusal: HeadRefusal,
        believed: bool,
        target: &str,
        by_get: impl FnOnce() -> Result<T, Failure>,
        was_wrong: impl FnOnce(&T),
    ) -> Result<T, Failure> {
        if let Some(failure) = &refusal.failure
            && (failure.is_refusal() && believed || !may_be_heads_alone(failure) || turn::is_called_off())
        {
            return Err(failure.clone());
        }
        if let Some(failure) = self.shortcuts.confirmed(target, &refusal) {
            return Err(failure);
        }
        let answer = by_get();
        match &answer {
            Ok(found) => was_wrong(found),
            Err(_) if turn::is_called_off() => {}
            Err(failure) => {
                if let Some(refused) = refusal.failure.as_ref().filter(|failure| failure.is_refusal())
                    && refusal.signed
                    && failure.cause() == Some(Cause::RateLimited)
                {
                    return Err(refused.clone());
                }
                self.shortcuts.confirm(target, refusal, failure);
            }
        }
        answer
    }

    /// See [`Upstream::shows`](super::Upstream::shows). What the registry says of its own content is accepted, but not an
    /// answer to another question, nor one that speaks of no manifest, such as that of a portal. Where HEAD says nothing, the
    /// bytes of a GET prove it. A refusal counts unless a GET finds that no registry has given it.
    pub(super) fn shows(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        deadline: Deadline,
    ) -> Result<(), Failure> {
        let reference = ManifestRef::Digest(digest.clone());
        let by_get = || self.get_manifest(repository, &reference, deadline).map(drop);
        if self.shortcuts.lacks_head(repository, Content::Manifests) {
            return by_get();
        }
        let (head, signed) = self.head_manifest(repository, &reference, deadline);
        let failure = match head {
            Ok(head) if head.digest.is_some() || is_manifest_type(head.media_type.as_deref()) => {
                return Ok(());
            }
            Ok(_) => None,
            Err(failure) => Some(failure),
        };
        let refused = failure.clone().filter(|failure| failure.is_refusal());
        let believed = signed || matches!(failure, Some(Failure::Denied { status: 401, .. }));
        let target = format!("{repository}/manifests/{digest}");
        let shown = self.instead_of_head(HeadRefusal { failure, signed }, believed, &target, by_get, |()| {
            self.shortcuts.head_failed(repository, Content::Manifests);
        });
        match (refused, shown) {
            // Nothing that a GET cannot say undoes what HEAD says.
            (Some(refused), Err(Failure::Unreachable { cause, .. })) if cause != Cause::NotARegistry => {
                Err(refused)
            }
            (_, shown) => shown,
        }
    }

    /// Fetches a manifest. Its bytes hash to the digest returned, and its media type is that of its body. One that is known by
    /// its tag alone is asked for by the tag whose HEAD has named it.
    pub(super) fn fetch_manifest(
        &self,
        repository: &RepositoryName,
        reference: &ManifestRef,
        deadline: Deadline,
    ) -> Result<FetchedManifest, Failure> {
        let answer = self.get_manifest(repository, reference, deadline);
        let ManifestRef::Digest(wanted) = reference else { return answer };
        let Some(named) = self.shortcuts.name_of(repository, wanted) else { return answer };
        let failure = match answer {
            Ok(fetched) => {
                self.compare(repository, &named, &fetched);
                return Ok(fetched);
            }
            Err(failure) if failure.is_outage() && failure.cause() != Some(Cause::NotARegistry) => {
                return Err(failure);
            }
            Err(failure) if turn::is_called_off() => return Err(failure),
            Err(failure) => failure,
        };
        let by_tag = ManifestRef::Tag(named.tag.clone());
        let Ok(fetched) = self.get_manifest(repository, &by_tag, deadline) else {
            return Err(failure);
        };
        if Digest::of(wanted.algorithm(), &fetched.bytes) == *wanted {
            self.compare(repository, &named, &fetched);
            return Ok(FetchedManifest { digest: wanted.clone(), ..fetched });
        }
        // Its HEAD names what its GET is not, unless the tag has moved since.
        if let (Ok(head), _) = self.head_manifest(repository, &by_tag, deadline)
            && head.digest.as_ref() == Some(wanted)
        {
            self.shortcuts.head_failed(repository, Content::Manifests);
        }
        Err(failure)
    }

    /// Remembers if a HEAD has stated something else than the bytes are.
    fn compare(&self, repository: &RepositoryName, named: &StatedManifest, fetched: &FetchedManifest) {
        let is = (fetched.media_type.as_str(), fetched.bytes.len() as u64);
        if named.stated.as_ref().is_some_and(|(media_type, size)| (media_type.as_str(), *size) != is) {
            self.shortcuts.misstated(repository);
        }
    }

    /// Fetches a manifest by the name that is given.
    fn get_manifest(
        &self,
        repository: &RepositoryName,
        reference: &ManifestRef,
        deadline: Deadline,
    ) -> Result<FetchedManifest, Failure> {
        let question = Question::manifest(repository, reference, deadline);
        let question = Question { class: Class::ManifestGet, ..question };
        let (reply, body) = self.document(&question, MANIFEST_BYTES_MAX)?;
        self.manifest_in(&reply, body, reference)
    }

    /// The manifest in the answer to a GET.
    pub(super) fn manifest_in(
        &self,
        reply: &EndpointReply,
        LargeBody { bytes, place }: LargeBody,
        reference: &ManifestRef,
    ) -> Result<FetchedManifest, Failure> {
        let digest = match (reference, reply.digest()) {
            (ManifestRef::Digest(wanted), _) => wanted.clone(),
            (ManifestRef::Tag(_), Some(told)) => told,
            (ManifestRef::Tag(_), None) => Digest::of(Algorithm::Sha256, &bytes),
        };
        let actual = Digest::of(digest.algorithm(), &bytes);
        if actual != digest {
            return Err(reply.wrong(format!("the manifest should be {digest} and hashes to {actual}")));
        }
        let media_type = reply.manifest_of(&bytes)?.media_type;
        self.shortcuts.is_a_registry();
        let (date, endpoint, stale) = (reply.date(), self.name.clone(), chain::staleness(reply));
        Ok(FetchedManifest { digest, media_type, bytes, date, endpoint, stale, place: 0, _memory: place })
    }

    /// Asks whether a blob is there; its size in bytes, if the upstream says. Where HEAD is no answer, the header of a GET is.
    pub(super) fn head_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        deadline: Deadline,
    ) -> Result<Option<u64>, Failure> {
        let by_get = || self.open_blob(repository, digest, 0, deadline).map(|stream| stream.total);
        if self.shortcuts.lacks_head(repository, Content::Blobs) {
            return by_get();
        }
        let question = Question::blob(repository, digest, deadline);
        let question = Question { class: Class::BlobHead, ..question };
        let (failure, signed) = match self.ask(&question) {
            Ok(reply) => {
                let signed = reply.is_signed();
                let empty = *digest == Digest::of(digest.algorithm(), b"");
                match reply.found(&question) {
                    Ok(reply) if reply.is_page() => (None, signed),
                    Ok(reply) => match reply.content_length() {
                        Some(size) if size > 0 || empty => return Ok(Some(size)),
                        _ => (None, signed),
                    },
                    Err(failure) => (Some(failure), signed),
                }
            }
            Err(failure) => (Some(failure), false),
        };
        self.instead_of_head(HeadRefusal { failure, signed }, false, &question.target, by_get, |_| {
            self.shortcuts.head_failed(repository, Content::Blobs);
        })
    }
}

fn is_manifest_type(media_type: Option<&str>) -> bool {
    media_type.and_then(Kind::of_media_type).is_some()
}

/// Whether a GET may go better: something answered, or hung up on the question.
fn may_be_heads_alone(failure: &Failure) -> bool {
    match failure {
        Failure::Missing { .. } | Failure::Denied { .. } | Failure::Wrong { .. } => true,
        Failure::Unreachable { cause, .. } => match cause {
            Cause::ServerError(_) | Cause::Cut => true,
            Cause::Refused | Cause::Timeout | Cause::Dns | Cause::Tls | Cause::Connection => false,
            Cause::RateLimited | Cause::NotARegistry => false,
        },
    }
}
