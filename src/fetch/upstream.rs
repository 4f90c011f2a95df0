//! One upstream: a registry behind one or more endpoints, which are asked in the order of the configuration.
//!
//! An endpoint that this run has seen to be unreachable or failing is passed over while another is not, and an outage of one leads
//! to the next; every other answer stands. A question ends within `QUESTION_TIME_MAX`, however many are asked.

use super::blob::BlobStream;
use super::breaker::LinkState;
use super::endpoint::Endpoint;
use super::failure::{Cause, Failure};
use super::heads::{FetchedManifest, HeadTrust, NamedManifest};
use super::shortcuts::Content;
use super::wire::Deadline;
use crate::budget::QUESTION_TIME_MAX;
use crate::oci::{Digest, ManifestRef, RegistryName, RepositoryName, Tag};
use std::sync::Arc;

/// An upstream registry.
#[derive(Debug)]
pub struct Upstream {
    pub(super) name: RegistryName,
    /// At least one.
    pub(super) endpoints: Vec<Arc<Endpoint>>,
    /// What it gives is not for everybody.
    pub(super) private: bool,
    /// The same registry without the login, where that only lifts a rate limit.
    pub(super) anonymous: Option<Arc<Upstream>>,
}

impl Upstream {
    /// The registry's name in references.
    pub fn name(&self) -> &RegistryName {
        &self.name
    }

    /// Where it is asked, in order.
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// Its name and where it is asked, for messages: `docker.io (registry-1.docker.io:443)`.
    pub fn label(&self) -> String {
        let endpoints: Vec<&str> = self.endpoints.iter().map(|endpoint| &*endpoint.name).collect();
        format!("{} ({})", self.name, endpoints.join(", "))
    }

    /// Whether what it gives is not for everybody: it takes a login, and that does not only lift a rate limit.
    pub fn is_private(&self) -> bool {
        self.private
    }

    /// The same registry as everybody sees it, if its login only lifts a rate limit: asked without any credential and with
    /// tokens of its own.
    pub fn anonymous(&self) -> Option<&Arc<Upstream>> {
        self.anonymous.as_ref()
    }

    /// Asks whether the registry shows a manifest to who asks, by its digest: by HEAD, which registries do not meter, or by
    /// GET where HEAD is no answer.
    ///
    /// # Errors
    /// `Missing` and `Denied`: it does not. `Wrong`: its answer does not say.
    pub fn shows(&self, repository: &RepositoryName, digest: &Digest) -> Result<(), Failure> {
        self.ask(|endpoint, deadline| endpoint.shows(repository, digest, deadline))
    }

    /// Body bytes taken from it so far.
    pub fn bytes(&self) -> u64 {
        self.endpoints.iter().map(|endpoint| endpoint.bytes()).sum()
    }

    /// The state of the endpoint that can be reached best.
    pub fn link(&self) -> LinkState {
        let links = self.endpoints.iter().map(|endpoint| endpoint.breaker().link());
        links.min_by_key(LinkState::rank).unwrap_or(LinkState::NotAsked)
    }

    /// A check outlived `resolve_deadline`.
    pub fn overdue(&self) {
        if let Some(endpoint) = self.in_turn().next() {
            endpoint.breaker().overdue();
        }
    }

    /// Probes every endpoint at once, to know before the first request asks.
    pub fn start_probe(&self) {
        self.endpoints.iter().for_each(|endpoint| endpoint.breaker().start_probe());
    }

    /// Asks which manifest a tag is: by HEAD, which registries do not meter, or by GET where HEAD is no answer.
    ///
    /// # Errors
    /// As for all questions: `Unreachable` if every endpoint is, else what the first that can be reached says.
    pub fn name_tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
        trust: HeadTrust,
    ) -> Result<NamedManifest, Failure> {
        self.ask(|endpoint, deadline| endpoint.name_tag(repository, tag, trust, deadline))
    }

    /// Whether a tag of the repository can only be asked about by GET, as far as is known.
    pub fn lacks_head(&self, repository: &RepositoryName) -> bool {
        self.in_turn().any(|endpoint| endpoint.shortcuts.lacks_head(repository, Content::Manifests))
    }

    /// What an endpoint answers to HEAD.
    #[cfg(test)]
    pub(super) fn head_manifest(
        &self,
        repository: &RepositoryName,
        reference: &ManifestRef,
    ) -> Result<super::heads::ManifestHead, Failure> {
        self.ask(|endpoint, deadline| endpoint.head_manifest(repository, reference, deadline).0)
    }

    /// Fetches a manifest. Its bytes hash to the digest returned, and its media type is that of its body.
    ///
    /// # Errors
    /// See [`Upstream::name_tag`]; `Wrong` if the bytes do not hash to the digest, or are no manifest.
    pub fn fetch_manifest(
        &self,
        repository: &RepositoryName,
        reference: &ManifestRef,
    ) -> Result<FetchedManifest, Failure> {
        self.ask(|endpoint, deadline| endpoint.fetch_manifest(repository, reference, deadline))
    }

    /// Opens a blob at byte `from`.
    ///
    /// # Errors
    /// See [`Upstream::name_tag`]; `Wrong` if the answer is not the part that was asked for.
    pub fn open_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        from: u64,
    ) -> Result<BlobStream, Failure> {
        self.ask(|endpoint, deadline| endpoint.open_blob(repository, digest, from, deadline))
    }

    /// Opens the part of a blob of `total` bytes from its byte `first` to before `end`. `None`: the upstream does not give
    /// parts.
    ///
    /// # Errors
    /// See [`Upstream::head_manifest`].
    pub fn open_part(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        (first, end, total): (u64, u64, u64),
    ) -> Result<Option<BlobStream>, Failure> {
        self.ask(|endpoint, deadline| endpoint.open_part(repository, digest, (first, end, total), deadline))
    }

    /// Asks whether a blob is there; its size in bytes, if the upstream says.
    ///
    /// # Errors
    /// See [`Upstream::name_tag`].
    pub fn head_blob(&self, repository: &RepositoryName, digest: &Digest) -> Result<Option<u64>, Failure> {
        self.ask(|endpoint, deadline| endpoint.head_blob(repository, digest, deadline))
    }

    /// The endpoints to ask: those that work as far as is known, else those that fail, else those that are down.
    fn in_turn(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        let badness = |endpoint: &Arc<Endpoint>| {
            let link = endpoint.breaker().link();
            (link.is_known_down(), matches!(link, LinkState::Failing { .. }))
        };
        let least = self.endpoints.iter().map(badness).min();
        self.endpoints.iter().filter(move |endpoint| Some(badness(endpoint)) == least)
    }

    /// Asks one endpoint after the other until one is no outage; the first outage is the answer if all are.
    pub(super) fn ask<T>(
        &self,
        question: impl Fn(&Endpoint, Deadline) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        self.ask_each(self.in_turn(), Deadline::after(QUESTION_TIME_MAX), question)
    }

    /// The same of some endpoints.
    pub(super) fn ask_each<'e, T>(
        &self,
        endpoints: impl Iterator<Item = &'e Arc<Endpoint>>,
        deadline: Deadline,
        question: impl Fn(&Endpoint, Deadline) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut outage = None;
        for endpoint in endpoints {
            // What no time is left for says nothing about the next endpoint.
            if outage.is_some() && deadline.left().is_zero() {
                break;
            }
            match question(endpoint, deadline) {
                Err(failure) if failure.is_outage() => {
                    outage.get_or_insert(failure);
                }
                answer => return answer,
            }
        }
        Err(outage.unwrap_or_else(|| {
            Failure::unreachable(self.name.as_str(), Cause::Connection, "no endpoint is configured")
        }))
    }
}
