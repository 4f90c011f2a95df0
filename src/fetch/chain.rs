//! An endpoint that is a mirror itself: how the names of a registry are said to it, and what its answers tell of how they
//! were made.
//!
//! A prefix stands between `/v2/` and every name, in the scope of a token too; `ns` says which registry is meant. An answer
//! that another Larder gave for another registry is no answer, and what it gave without having asked its own upstream is
//! stale: its digest may be served, and proves nothing.

use super::ask::Question;
use super::endpoint::Endpoint;
use super::failure::{Cause, Failure};
use super::lists::{ListPage, NamePage, Rest};
use super::reply::EndpointReply;
use super::wire::Deadline;
use crate::budget::CATALOGUE_PAGES_MAX;
use crate::config::EndpointSettings;
use crate::oci::{RegistryName, RepositoryName, quoted};
use crate::via;
use std::borrow::Cow;
use ureq::http::header;

/// What Larder calls the tiers of an answer that may be older than what upstream has.
const STALE_TIERS: [&str; 3] = ["peer", "last-complete", "older-version"];

/// What it calls a list of what it has, where it could not ask for one.
const CACHED_LIST: &str = "cached";

/// How an endpoint is told what is meant.
pub(super) struct Naming {
    prefix: Option<RepositoryName>,
    send_ns: bool,
}

impl Naming {
    pub fn of(settings: &EndpointSettings) -> Naming {
        Naming { prefix: settings.prefix.clone(), send_ns: settings.send_ns }
    }

    /// A question in the names of the endpoint.
    pub fn apply<'q>(&self, registry: &RegistryName, question: &'q Question) -> Cow<'q, Question> {
        let mut question = Cow::Borrowed(question);
        if let (Some(prefix), Some(name)) = (&self.prefix, &question.repository) {
            let name = name.to_string();
            let own = |text: &str, before: &str| {
                let rest = text.strip_prefix(before)?.strip_prefix(&name)?;
                rest.starts_with(['/', ':']).then(|| format!("{before}{prefix}/{name}{rest}"))
            };
            // What a link of the endpoint itself named has its own names already.
            if let Some(target) = own(&question.target, "") {
                question.to_mut().target = target;
            }
            if let Some(scope) = own(&question.scope, "repository:") {
                question.to_mut().scope = scope;
            }
        }
        if self.send_ns {
            let target = with_ns(registry, &question.target);
            let stated = question.stated.as_deref().map(|stated| with_ns(registry, stated));
            let own = question.to_mut();
            (own.target, own.stated) = (target, stated);
        }
        question
    }

    /// The reply, if it is about the registry that was meant, as far as it says.
    ///
    /// # Errors
    /// `Wrong`: another Larder has answered for another registry. `Unreachable`: it lists what it has, and cannot ask.
    pub fn check(&self, registry: &RegistryName, reply: EndpointReply) -> Result<EndpointReply, Failure> {
        let stated = reply.header("oci-namespace").map(str::trim);
        let other = match stated {
            Some(stated) if stated == registry.as_str() => None,
            Some(stated) if self.send_ns || is_larders(&reply) => Some(quoted(stated)),
            // An older Larder does not say. Docker Hub is what it takes for meant where nothing else is configured.
            None if !self.send_ns && is_larders(&reply) && registry.as_str() != "docker.io" => {
                Some("its default registry".to_owned())
            }
            _ => None,
        };
        let Some(other) = other.filter(|_| reply.own) else {
            if reply.own && tiers(&reply).any(|tier| tier == CACHED_LIST) {
                let text = "is a Larder that cannot reach it either and lists what is cached there";
                return Err(Failure::unreachable(&reply.host, Cause::Connection, text));
            }
            return Ok(reply);
        };
        Err(reply.wrong(if self.send_ns {
            format!("answered for {other} and not for {registry}")
        } else {
            format!(
                "is a Larder and answered for {other} and not for {registry}; set send_ns = true in [upstream.\"{registry}\"]"
            )
        }))
    }
}

/// An address that says which registry is meant.
fn with_ns(registry: &RegistryName, target: &str) -> String {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if query.split('&').any(|pair| pair.starts_with("ns=")) {
        return target.to_owned();
    }
    let and = if query.is_empty() { "" } else { "&" };
    format!("{path}?{query}{and}ns={registry}")
}

/// Whether another Larder has given or passed on an answer.
fn is_larders(reply: &EndpointReply) -> bool {
    reply.values(header::VIA.as_str()).any(via::names_board) || tiers(reply).next().is_some()
}

/// What a Larder's `Cache-Status` says in detail; perhaps nothing.
fn tiers(reply: &EndpointReply) -> impl Iterator<Item = &str> {
    reply.values("cache-status").flat_map(|value| value.split(',')).filter_map(tier)
}

/// The tier in a member of `Cache-Status`, if it is a Larder's; perhaps an empty one.
fn tier(member: &str) -> Option<&str> {
    let mut parts = member.split(';').map(str::trim);
    (parts.next()? == "larder").then(|| parts.find_map(|part| part.strip_prefix("detail=")).unwrap_or(""))
}

/// What another Larder says of a tag while it cannot reach the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaleAnswer {
    /// What it is, host first.
    pub why: String,
    /// For how many seconds the registry has not named the digest to it, if it says.
    pub age: Option<u64>,
}

/// Whether an answer may be older than what the registry has.
pub(super) fn staleness(reply: &EndpointReply) -> Option<StaleAnswer> {
    let stale = tiers(reply).find(|tier| STALE_TIERS.contains(tier))?;
    let why = format!("{}: is a Larder that cannot reach it either and answers from {stale}", reply.host);
    let age = reply.header(header::AGE.as_str()).and_then(|age| age.trim().parse().ok());
    Some(StaleAnswer { why, age })
}

impl Endpoint {
    /// A page of the repositories that are under the prefix, without it.
    pub(super) fn catalog_here(&self, wanted: &ListPage, deadline: Deadline) -> Result<NamePage, Failure> {
        let Some(prefix) = &self.naming.prefix else { return self.catalog(wanted, deadline) };
        let inside = format!("{prefix}/");
        let last = wanted.last.as_deref();
        let last = last.map_or_else(|| prefix.to_string(), |last| format!("{inside}{last}"));
        let mut wanted = ListPage { last: Some(last), ..wanted.clone() };
        for _ in 0..CATALOGUE_PAGES_MAX {
            let page = self.catalog(&wanted, deadline)?;
            let here = page.names.iter().filter_map(|name| name.strip_prefix(&inside));
            let names: Vec<String> = here.map(str::to_owned).collect();
            let end = page.names.last().filter(|end| wanted.last.as_ref() != Some(end));
            let is_past =
                page.names.is_sorted() && end.is_some_and(|end| *end > inside && !end.starts_with(&inside));
            let rest = if is_past { Rest::End } else { page.rest };
            if !names.is_empty() || matches!(rest, Rest::End | Rest::Unknown(_)) {
                return Ok(NamePage { names, rest });
            }
            wanted = match (rest, end) {
                (Rest::Stated(at), _) => ListPage { stated: Some(at), ..wanted },
                (_, Some(end)) => ListPage { last: Some(end.clone()), stated: None, ..wanted },
                (_, None) => return Ok(NamePage { names, rest: Rest::End }),
            };
        }
        let host = &self.base.origin.authority();
        Err(Failure::wrong(
            host,
            format!("lists more repositories outside of {prefix} than are looked through"),
        ))
    }
}
