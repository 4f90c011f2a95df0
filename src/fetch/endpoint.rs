//! One endpoint of an upstream: every question it can be asked (distribution-spec, "API"), and what its answers mean.
//!
//! All calls block, and each but the reading of a blob ends by its deadline. What an answer claims is checked before it
//! is returned: hashes, lengths, types, ranges. How a question travels is in `ask`.

use super::address::Address;
use super::ask::{Class, Logins, Question, RedirectLogins, server_error};
use super::breaker::Breaker;
use super::chain::Naming;
use super::failure::Failure;
use super::holds::Holds;
use super::pace::Pace;
use super::reply::{EndpointReply, LargeBody};
use super::shortcuts::Shortcuts;
use super::token::EndpointLogin;
use super::wire::{Deadline, Lane, Wire, WireRequest};
use crate::budget::{PROBE_HEADER_TIME_MAX, QUESTION_TIME_MAX};
use crate::documents::LargeAnswer;
use crate::oci::{RegistryName, media};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use ureq::http::Method;

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
    /// Clients' logins at the registry are tried here.
    pub(super) tries_pull_secrets: bool,
    pub(super) redirect_logins: RedirectLogins,
    pub(super) wire: Wire,
    pub(super) breaker: Breaker,
    pub(super) bytes: Arc<AtomicU64>,
    pub(super) pace: Arc<Pace>,
    pub(super) holds: Holds,
    pub(super) shortcuts: Shortcuts,
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

    /// Asks for a document of at most so many bytes. A large one that finds no place in memory is asked for again once it
    /// has one.
    pub(super) fn document(
        &self,
        question: &Question,
        most: u64,
    ) -> Result<(EndpointReply, LargeBody), Failure> {
        self.document_as(&self.logins(), question, most)
    }

    /// The same with other logins.
    pub(super) fn document_as(
        &self,
        logins: &Logins<'_>,
        question: &Question,
        most: u64,
    ) -> Result<(EndpointReply, LargeBody), Failure> {
        self.document_if(logins, question, most, EndpointReply::found)
    }

    /// The same where `judge` tells which answers have one.
    pub(super) fn document_if(
        &self,
        logins: &Logins<'_>,
        question: &Question,
        most: u64,
        judge: impl Fn(EndpointReply, &Question) -> Result<EndpointReply, Failure>,
    ) -> Result<(EndpointReply, LargeBody), Failure> {
        let mut place = None;
        loop {
            let mut reply = judge(self.ask_as(logins, question)?, question)?;
            if reply.is_page() {
                return Err(reply.no_registry());
            }
            if let Some(body) = reply.read_document(most, &self.bytes, &self.registry, place.take())? {
                let body = reply.decoded(body, most, &self.registry, question.deadline)?;
                return Ok((reply, body));
            }
            let busy = reply.wrong("sends a large answer while others are being read; retry");
            drop(reply);
            place = Some(LargeAnswer::wait(self.registry.as_str(), question.deadline.at()).ok_or(busy)?);
        }
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
            end: None,
            authorization: None,
            deadline: Deadline::after(times.connect + times.header.min(PROBE_HEADER_TIME_MAX)),
            fresh: true,
        })?;
        let reply = EndpointReply::new(address.origin.authority(), true, response);
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
