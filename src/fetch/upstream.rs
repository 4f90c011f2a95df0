//! One upstream: a registry behind one or more endpoints, which are asked in the order of the configuration.
//!
//! An endpoint that this run has seen to be unreachable or failing is passed over while another is not. What an endpoint does
//! not give, because it cannot be reached, answers nonsense, or says that there is none or that it is not shown, the next is
//! asked for. The last one's "there is none" counts, but only if all the others could say so too: what one of them has that
//! cannot be asked is not known. A question ends within `QUESTION_TIME_MAX`, however many are asked.

use super::blob::BlobStream;
use super::breaker::LinkState;
use super::endpoint::Endpoint;
use super::failure::{Cause, Failure};
use super::heads::{FetchedManifest, HeadTrust, NamedManifest};
use super::late::TagTries;
use super::shortcuts::Content;
use super::wire::Deadline;
use crate::budget::{QUESTION_TIME_MAX, WRONG_SOURCES_MAX};
use crate::oci::{Digest, ManifestRef, RegistryName, RepositoryName, Tag};
use crate::sync::{Mutex, turn};
use std::sync::Arc;
use std::time::Duration;

/// An upstream registry.
#[derive(Debug)]
pub struct Upstream {
    name: RegistryName,
    /// At least one.
    pub(super) endpoints: Vec<Arc<Endpoint>>,
    /// What it gives is not for everybody.
    private: bool,
    /// The same registry without the login, where that only lifts a rate limit.
    anonymous: Option<Arc<Upstream>>,
    /// Which endpoints have sent wrong bytes of what: while another is left they are not asked for it.
    wrong: Mutex<Vec<(Digest, usize)>>,
    tags: TagTries,
}

impl Upstream {
    pub(super) fn new(
        name: RegistryName,
        endpoints: Vec<Arc<Endpoint>>,
        private: bool,
        anonymous: Option<Arc<Upstream>>,
    ) -> Upstream {
        Upstream { name, endpoints, private, anonymous, wrong: Mutex::default(), tags: TagTries::default() }
    }

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

    /// The same for a tag: the state of the endpoint that was late with it last, while that is slow.
    pub fn link_for(&self, repository: &RepositoryName, tag: &Tag) -> LinkState {
        let late = self.tags.was_late(repository, tag).and_then(|place| self.endpoints.get(place));
        let slow = late.map(|late| late.breaker().link());
        let link = self.link();
        slow.filter(|slow| link.is_up() && matches!(slow, LinkState::Slow { .. })).unwrap_or(link)
    }

    /// A check of a tag outlived `resolve_deadline`: the endpoint that is asked is slow; the first in turn, if none is yet.
    pub fn overdue(&self, repository: &RepositoryName, tag: &Tag) {
        let late = self.tags.is_late(repository, tag).and_then(|place| self.endpoints.get(place));
        if let Some(endpoint) = late.or_else(|| self.in_turn().next()) {
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
        let now = self.tags.begin(repository, tag);
        let question = |endpoint: &Endpoint, deadline| {
            now.at(self.place_of(endpoint));
            endpoint.name_tag(repository, tag, trust, deadline)
        };
        let (place, named) = self.ask_unless(self.all(), |named| named.stale().is_some(), question)?;
        Ok(named.at(place))
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
        self.all_heads(repository, reference).map(|(_, head)| head)
    }

    /// The same, and at which place the endpoint is.
    #[cfg(test)]
    pub(super) fn all_heads(
        &self,
        repository: &RepositoryName,
        reference: &ManifestRef,
    ) -> Result<(usize, super::heads::ManifestHead), Failure> {
        let question =
            |endpoint: &Endpoint, deadline| endpoint.head_manifest(repository, reference, deadline).0;
        self.ask_unless(self.all(), |head| head.stale.is_some(), question)
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
        let by_tag = matches!(reference, ManifestRef::Tag(_));
        let question =
            |endpoint: &Endpoint, deadline| endpoint.fetch_manifest(repository, reference, deadline);
        let is_stale = |fetched: &FetchedManifest| by_tag && fetched.stale.is_some();
        let (place, mut fetched) = self.ask_unless(self.all(), is_stale, question)?;
        fetched.place = place;
        Ok(fetched)
    }

    /// Opens a blob at byte `from`, at an endpoint that has not sent wrong bytes of it.
    ///
    /// # Errors
    /// See [`Upstream::name_tag`]; `Wrong` if the answer is not the part that was asked for.
    pub fn open_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        from: u64,
    ) -> Result<BlobStream, Failure> {
        let question = |endpoint: &Endpoint, deadline| endpoint.open_blob(repository, digest, from, deadline);
        let (place, mut stream) = self.ask_unless(self.right(digest), |_| false, question)?;
        stream.place = place;
        Ok(stream)
    }

    /// The endpoint at `place` has sent wrong bytes of a blob. `false`: all have, and each may be asked again.
    pub fn sent_wrong(&self, digest: &Digest, place: usize) -> bool {
        let mut wrong = self.wrong.lock();
        if wrong.len() >= WRONG_SOURCES_MAX {
            wrong.remove(0);
        }
        wrong.push((digest.clone(), place));
        let is_left = (0..self.endpoints.len()).any(|place| !wrong.contains(&(digest.clone(), place)));
        if !is_left {
            wrong.retain(|(of, _)| of != digest);
        }
        is_left
    }

    /// Opens the part of a blob of `total` bytes from its byte `first` to before `end`. `None`: the upstream does not give
    /// parts.
    ///
    /// # Errors
    /// See [`Upstream::name_tag`].
    pub fn open_part(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        (first, end, total): (u64, u64, u64),
    ) -> Result<Option<BlobStream>, Failure> {
        let question = |endpoint: &Endpoint, deadline| {
            endpoint.open_part(repository, digest, (first, end, total), deadline)
        };
        self.ask_unless(self.right(digest), Option::is_none, question).map(|(_, part)| part)
    }

    /// Asks whether a blob is there; its size in bytes, if the upstream says.
    ///
    /// # Errors
    /// See [`Upstream::name_tag`].
    pub fn head_blob(&self, repository: &RepositoryName, digest: &Digest) -> Result<Option<u64>, Failure> {
        self.ask(|endpoint, deadline| endpoint.head_blob(repository, digest, deadline))
    }

    /// The endpoints to ask first: those that work as far as is known, else those that fail, else those that are down.
    fn in_turn(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        let least = self.endpoints.iter().map(|endpoint| badness(endpoint)).min();
        self.endpoints.iter().filter(move |endpoint| Some(badness(endpoint)) == least)
    }

    /// Every endpoint, and its place in the order.
    pub(super) fn all(&self) -> impl Iterator<Item = (usize, &Arc<Endpoint>)> {
        self.endpoints.iter().enumerate()
    }

    /// The endpoints that have not sent wrong bytes of a blob.
    fn right<'a>(&'a self, digest: &'a Digest) -> impl Iterator<Item = (usize, &'a Arc<Endpoint>)> {
        self.all().filter(|(place, _)| !self.wrong.lock().contains(&(digest.clone(), *place)))
    }

    /// Asks one endpoint after the other until one answers.
    pub(super) fn ask<T>(
        &self,
        question: impl Fn(&Endpoint, Deadline) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        self.ask_unless(self.all(), |_| false, question).map(|(_, answer)| answer)
    }

    /// The same of some endpoints, and which of them it was. One whose answer `is_stale` could not ask its own upstream: what
    /// the next says goes before that.
    pub(super) fn ask_unless<'e, T>(
        &self,
        endpoints: impl Iterator<Item = (usize, &'e Arc<Endpoint>)>,
        is_stale: impl Fn(&T) -> bool,
        question: impl Fn(&Endpoint, Deadline) -> Result<T, Failure>,
    ) -> Result<(usize, T), Failure> {
        let endpoints: Vec<_> =
            endpoints.map(|(place, endpoint)| (place, endpoint, badness(endpoint))).collect();
        let least = endpoints.iter().map(|(.., badness)| *badness).min();
        let (first, others): (Vec<_>, Vec<_>) =
            endpoints.into_iter().partition(|(.., badness)| Some(*badness) == least);
        let mut tries =
            Tries { deadline: Deadline::after(QUESTION_TIME_MAX), stale: None, trouble: None, refusal: None };
        let mut after = first.len();
        for (place, endpoint, _) in first {
            after -= 1;
            if let Some(answer) = tries.ask(place, endpoint, after, &is_stale, &question) {
                return Ok((place, answer));
            }
        }
        // "There is none" is no answer while others may have it.
        for (place, endpoint, _) in others {
            if !tries.is_refused() {
                break;
            }
            if let LinkState::Down { cause, .. } = endpoint.breaker().link() {
                let down = Failure::Unreachable { cause: Cause::Connection, detail: cause };
                tries.trouble.get_or_insert(down);
            } else if let Some(answer) = tries.ask(place, endpoint, 0, &is_stale, &question) {
                return Ok((place, answer));
            }
        }
        tries.end(&self.name)
    }

    /// Asks one of some endpoints after the other, all of which say the same: the first that is no outage answers.
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
        Err(outage.unwrap_or_else(|| no_endpoint(&self.name)))
    }
}

/// How badly an endpoint is known to be off: those with the least are asked first.
fn badness(endpoint: &Endpoint) -> (bool, bool) {
    let link = endpoint.breaker().link();
    (link.is_known_down(), matches!(link, LinkState::Failing { .. }))
}

/// What one endpoint may take of the time that is left where so many are to be asked after it.
fn share(left: Duration, after: usize) -> Duration {
    left / u32::try_from(after.saturating_add(1)).unwrap_or(u32::MAX)
}

fn no_endpoint(name: &RegistryName) -> Failure {
    Failure::unreachable(name.as_str(), Cause::Connection, "no endpoint is configured")
}

/// What endpoints have said so far, of which nothing is the answer yet.
struct Tries<T> {
    deadline: Deadline,
    /// The first answer that may be older than the registry's.
    stale: Option<(usize, T)>,
    /// Why one of them could not say: the first outage or nonsense.
    trouble: Option<Failure>,
    /// The last "there is none" or "not for you".
    refusal: Option<Failure>,
}

impl<T> Tries<T> {
    fn is_refused(&self) -> bool {
        self.refusal.is_some() && self.stale.is_none()
    }

    /// Asks an endpoint; its answer, if that is one. So many come `after` it, and what is left of the time is for all of them:
    /// one that hangs does not use it up.
    fn ask(
        &mut self,
        place: usize,
        endpoint: &Endpoint,
        after: usize,
        is_stale: &impl Fn(&T) -> bool,
        question: &impl Fn(&Endpoint, Deadline) -> Result<T, Failure>,
    ) -> Option<T> {
        let asked_before = self.stale.is_some() || self.trouble.is_some() || self.refusal.is_some();
        if asked_before && (self.deadline.left().is_zero() || turn::is_called_off()) {
            // What no time is left for says nothing.
            let late = || Failure::unreachable(&endpoint.name, Cause::Timeout, "no time is left to ask it");
            self.trouble.get_or_insert_with(late);
            return None;
        }
        let deadline = match after {
            0 => self.deadline,
            _ => Deadline::after(share(self.deadline.left(), after)),
        };
        match question(endpoint, deadline) {
            Ok(answer) if is_stale(&answer) => {
                self.stale.get_or_insert((place, answer));
            }
            Ok(answer) => return Some(answer),
            Err(refusal @ (Failure::Missing { .. } | Failure::Denied { .. })) => self.refusal = Some(refusal),
            Err(trouble) => {
                self.trouble.get_or_insert(trouble);
            }
        }
        None
    }

    fn end(self, name: &RegistryName) -> Result<(usize, T), Failure> {
        match (self.stale, self.trouble, self.refusal) {
            (Some(stale), ..) => Ok(stale),
            (None, None, Some(refusal)) => Err(refusal),
            (None, Some(trouble), None) => Err(trouble),
            (None, Some(trouble), Some(refusal)) => Err(match trouble {
                Failure::Unreachable { cause, detail } => {
                    Failure::Unreachable { cause, detail: format!("{detail}; {refusal}") }
                }
                other => Failure::Wrong { detail: format!("{other}; {refusal}") },
            }),
            (None, None, None) => Err(no_endpoint(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::ENDPOINTS_MAX;

    #[test]
    fn endpoints_that_hang_leave_time_for_those_after_them() {
        assert_eq!(share(QUESTION_TIME_MAX, 0), QUESTION_TIME_MAX);
        let mut left = QUESTION_TIME_MAX;
        for after in (0..ENDPOINTS_MAX).rev() {
            let one = share(left, after);
            assert!(one >= QUESTION_TIME_MAX / 10, "{after}: {one:?}");
            left -= one;
        }
        assert!(left.is_zero(), "the last one has all that is left");
    }
}
