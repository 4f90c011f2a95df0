//! A request, parsed once: the registry, the repository, and what the client wants of it. A request that is not valid
//! becomes an answer here.

use super::answer::{self, Answer};
use crate::auth::{Identity, PullObject};
use crate::config::Config;
use crate::mirror::PageRequest;
use crate::oci::{Digest, ErrorCode, Invalid, ManifestRef, RegistryName, Repository, quoted};
use crate::via::Way;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode, Uri};
use std::borrow::Cow;
use std::sync::Arc;

/// A part of a request, or the answer that says what is wrong with it.
type Parsed<T> = Result<T, Box<Answer>>;

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RequestTarget {
    Base,
    Manifest(Repository, ManifestRef),
    Blob(Repository, Digest),
    Tags(Repository),
    /// The registry that was named by `ns`, if any.
    Catalog(Option<RegistryName>),
    Referrers(Repository, Digest),
    Healthz,
    Readyz,
    Metrics,
}

/// A valid request.
pub(super) struct ClientRequest {
    /// Who asks: the identity of the connection, or the user who has logged in with this request.
    pub(super) identity: Arc<Identity>,
    /// HEAD: as GET, without the body.
    pub(super) head: bool,
    pub(super) target: RequestTarget,
    pub(super) page: PageRequest,
    pub(super) artifact_type: Option<String>,
    /// `ns`, which the answer repeats.
    pub(super) namespace: Option<RegistryName>,
    /// The URI as the client sent it, for links to the next page.
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    default_registry: RegistryName,
}

impl ClientRequest {
    /// Parses a request of a client.
    ///
    /// # Errors
    /// The answer that says what is wrong with it.
    pub(super) fn parse(
        incoming: hyper::Request<impl Sized>,
        identity: Arc<Identity>,
        config: &Config,
    ) -> Parsed<ClientRequest> {
        let (parts, _) = incoming.into_parts();
        let (method, uri) = (parts.method, parts.uri);
        let query = Query::parse(&uri)?;
        let namespace = query.namespace(config)?;
        let path =
            decode(uri.path()).ok_or_else(|| invalid(ErrorCode::NameInvalid, "the path is not UTF-8"))?;
        if ![Method::GET, Method::HEAD].contains(&method) {
            return Err(Box::new(answer::read_only(&method)));
        }
        let target = parse_path(&path, namespace.as_ref(), config)?;
        Ok(ClientRequest {
            identity,
            head: method == Method::HEAD,
            target,
            page: PageRequest { n: query.n, last: query.last, next: query.next },
            artifact_type: query.artifact_type,
            namespace,
            uri,
            headers: parts.headers,
            default_registry: config.default_registry.clone(),
        })
    }

    /// The registry that the request is about.
    pub(super) fn registry(&self) -> Option<&RegistryName> {
        Some(match &self.target {
            RequestTarget::Manifest(repository, _)
            | RequestTarget::Blob(repository, _)
            | RequestTarget::Referrers(repository, _)
            | RequestTarget::Tags(repository) => &repository.registry,
            RequestTarget::Catalog(registry) => registry.as_ref().unwrap_or(&self.default_registry),
            // Clients that name no registry decide by this path whether to log in at all.
            RequestTarget::Base => &self.default_registry,
            RequestTarget::Healthz | RequestTarget::Readyz | RequestTarget::Metrics => return None,
        })
    }

    /// What a registry must show to a client's own login for this request. Lists it cannot be asked for by a HEAD.
    pub(super) fn pull_object(&self) -> Option<PullObject> {
        Some(match &self.target {
            RequestTarget::Base => PullObject::Login(self.default_registry.clone()),
            RequestTarget::Manifest(repository, reference) => {
                PullObject::Manifest(repository.clone(), reference.clone())
            }
            RequestTarget::Blob(repository, digest) => PullObject::Blob(repository.clone(), digest.clone()),
            _ => return None,
        })
    }

    /// The repository that the request names.
    pub(super) fn repository(&self) -> Option<&Repository> {
        match &self.target {
            RequestTarget::Manifest(repository, _)
            | RequestTarget::Blob(repository, _)
            | RequestTarget::Tags(repository)
            | RequestTarget::Referrers(repository, _) => Some(repository),
            _ => None,
        }
    }
}

#[derive(Default)]
struct Query {
    ns: Option<String>,
    n: Option<usize>,
    last: Option<String>,
    next: Option<String>,
    artifact_type: Option<String>,
}

impl Query {
    fn parse(uri: &Uri) -> Parsed<Query> {
        let mut query = Query::default();
        for pair in uri.query().unwrap_or("").split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value =
                decode(value).ok_or_else(|| invalid(ErrorCode::NameInvalid, "the query is not UTF-8"))?;
            match key {
                "ns" => query.ns = Some(value.into_owned()),
                "n" => {
                    query.n = Some(value.parse().map_err(|_| {
                        invalid(ErrorCode::Unsupported, &format!("n={} is not a number", quoted(&value)))
                    })?);
                }
                "last" => query.last = Some(value.into_owned()),
                "next" => query.next = Some(value.into_owned()),
                "artifactType" => query.artifact_type = Some(value.into_owned()),
                _ => {}
            }
        }
        Ok(query)
    }

    /// The registry named by `ns`: it must be one that is configured, or nothing goes out.
    fn namespace(&self, config: &Config) -> Parsed<Option<RegistryName>> {
        let Some(ns) = &self.ns else { return Ok(None) };
        let registry =
            RegistryName::familiar(ns).map_err(|e| invalid(ErrorCode::NameInvalid, &e.to_string()))?;
        if config.upstream(&registry).is_none() {
            return Err(Box::new(answer::unknown_registry(&registry)));
        }
        Ok(Some(registry))
    }
}

/// The Larders that a request has come through.
pub(super) fn way(headers: &HeaderMap) -> Way {
    if !headers.contains_key(header::VIA) {
        return Way::NONE;
    }
    let values = |name| headers.get_all(name).iter().filter_map(|value: &HeaderValue| value.to_str().ok());
    Way::parse(values(header::VIA), values(HeaderName::from_static("prefer")))
}

/// Whether a request asks how the server is, which is answered whoever has the connections.
pub(super) fn asks_for_health(incoming: &hyper::Request<impl Sized>) -> bool {
    matches!(incoming.uri().path(), "/healthz" | "/readyz")
}

fn parse_path(path: &str, namespace: Option<&RegistryName>, config: &Config) -> Parsed<RequestTarget> {
    match path {
        "/healthz" => return Ok(RequestTarget::Healthz),
        "/readyz" => return Ok(RequestTarget::Readyz),
        "/metrics" => return Ok(RequestTarget::Metrics),
        "/v2" | "/v2/" => return Ok(RequestTarget::Base),
        "/v2/_catalog" => return Ok(RequestTarget::Catalog(namespace.cloned())),
        _ => {}
    }
    let message = "there is nothing at this path";
    let unknown = || Box::new(answer::error(StatusCode::NOT_FOUND, ErrorCode::NameUnknown, message));
    let rest = path.strip_prefix("/v2/").ok_or_else(unknown)?;
    let (front, last) = rest.rsplit_once('/').ok_or_else(unknown)?;
    let (name, kind) = front.rsplit_once('/').ok_or_else(unknown)?;
    let repository = || parse_name(name, namespace, config);
    let digest = || last.parse::<Digest>().map_err(|e| invalid(ErrorCode::DigestInvalid, &e.to_string()));
    match kind {
        "manifests" => {
            let code = if last.contains(':') { ErrorCode::DigestInvalid } else { ErrorCode::ManifestInvalid };
            let reference = last.parse().map_err(|e: Invalid| invalid(code, &e.to_string()));
            Ok(RequestTarget::Manifest(repository()?, reference?))
        }
        "blobs" => Ok(RequestTarget::Blob(repository()?, digest()?)),
        "referrers" => Ok(RequestTarget::Referrers(repository()?, digest()?)),
        "tags" if last == "list" => Ok(RequestTarget::Tags(repository()?)),
        _ => Err(unknown()),
    }
}

/// The registry is `ns`, which the path may repeat; else the first component where that is a configured registry; else the
/// default one. The names may be familiar ones: who may read what is asked of what they stand for.
fn parse_name(name: &str, namespace: Option<&RegistryName>, config: &Config) -> Parsed<Repository> {
    let in_path = || {
        let (first, rest) = name.split_once('/')?;
        let registry = RegistryName::familiar(first).ok().filter(|name| config.upstream(name).is_some())?;
        Some((registry, rest))
    };
    let repository = match namespace {
        Some(registry) => Repository::familiar_beside(registry.clone(), name),
        None => {
            let (registry, name) = in_path().unwrap_or_else(|| (config.default_registry.clone(), name));
            Repository::familiar(registry, name)
        }
    };
    repository.map_err(|e| invalid(ErrorCode::NameInvalid, &e.to_string()))
}

fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    percent_encoding::percent_decode_str(text).decode_utf8().ok()
}

fn invalid(code: ErrorCode, message: &str) -> Box<Answer> {
    Box::new(answer::error(StatusCode::BAD_REQUEST, code, message))
}
