//! What the demo's registry answers if nothing is to go wrong: the read-only distribution API.

use super::header;
use super::upstream::{LoginDemand, RegistryShared, RegistryState};
use crate::oci::{Algorithm, Digest, Manifest, media};
use serde_json::json;
use std::sync::Arc;

/// A request.
pub(super) struct Asked<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub query: &'a str,
    pub headers: &'a [(String, String)],
}

/// What is answered if nothing is to go wrong.
pub(super) struct RegistryAnswer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Arc<[u8]>,
    pub is_blob: bool,
}

impl RegistryAnswer {
    fn new(status: u16, content_type: &str, body: impl Into<Arc<[u8]>>) -> RegistryAnswer {
        let headers = vec![("Content-Type".to_owned(), content_type.to_owned())];
        RegistryAnswer { status, headers, body: body.into(), is_blob: false }
    }

    pub fn with(mut self, name: &str, value: impl ToString) -> RegistryAnswer {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub fn error(status: u16, code: &str) -> RegistryAnswer {
        let body = json!({ "errors": [{ "code": code, "message": code }] }).to_string();
        RegistryAnswer::new(status, "application/json", body.into_bytes())
    }
}

pub(super) fn content(shared: &RegistryShared, asked: &Asked<'_>) -> RegistryAnswer {
    let state = shared.state.lock();
    if asked.path == "/token" {
        return token(&state, asked);
    }
    if let Some(challenge) = challenge(&state, asked) {
        return challenge;
    }
    let Some(rest) = asked.path.strip_prefix("/v2/") else { return RegistryAnswer::error(404, "NOT_FOUND") };
    if rest.is_empty() {
        return RegistryAnswer::new(200, "application/json", *b"{}");
    }
    if rest == "_catalog" {
        let all = !matches!(state.login, Some(LoginDemand::Limited(..))) || is_logged_in(&state, asked);
        let names: Vec<&String> =
            state.tags.keys().filter(|name| all || !state.hidden.contains(*name)).collect();
        return RegistryAnswer::new(
            200,
            "application/json",
            json!({ "repositories": names }).to_string().into_bytes(),
        );
    }
    let mut parts = rest.rsplitn(3, '/');
    let (last, kind, repository) =
        (parts.next().unwrap_or(""), parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    match kind {
        "manifests" => manifest(&state, repository, last),
        "blobs" => match last.parse::<Digest>().ok().and_then(|digest| {
            state.blobs.get(&(repository.to_owned(), digest.clone())).map(|bytes| (digest, Arc::clone(bytes)))
        }) {
            Some((digest, bytes)) => RegistryAnswer {
                is_blob: true,
                ..RegistryAnswer::new(200, "application/octet-stream", bytes)
            }
            .with("Docker-Content-Digest", digest),
            None => RegistryAnswer::error(404, "BLOB_UNKNOWN"),
        },
        "tags" => tags(&state, repository, asked.query),
        "referrers" => referrers(&state, repository, last, asked.query),
        _ => RegistryAnswer::error(404, "NOT_FOUND"),
    }
}

fn manifest(state: &RegistryState, repository: &str, reference: &str) -> RegistryAnswer {
    let digest = match reference.parse::<Digest>() {
        Ok(digest) => Some(digest),
        Err(_) => state.tags.get(repository).and_then(|tags| tags.get(reference)).cloned(),
    };
    let found = digest.and_then(|digest| {
        let (media_type, bytes) = state.manifests.get(&(repository.to_owned(), digest.clone()))?;
        Some(RegistryAnswer::new(200, media_type, Arc::clone(bytes)).with("Docker-Content-Digest", digest))
    });
    found.unwrap_or_else(|| RegistryAnswer::error(404, "MANIFEST_UNKNOWN"))
}

fn tags(state: &RegistryState, repository: &str, query: &str) -> RegistryAnswer {
    let Some(tags) = state.tags.get(repository) else { return RegistryAnswer::error(404, "NAME_UNKNOWN") };
    let last = parameter(query, "last").unwrap_or("");
    let n = parameter(query, "n").and_then(|n| n.parse().ok()).unwrap_or(usize::MAX);
    let mut names: Vec<&String> = tags.keys().filter(|tag| tag.as_str() > last).collect();
    let more = names.len() > n;
    names.truncate(n);
    let body = json!({ "name": repository, "tags": names }).to_string();
    let page = RegistryAnswer::new(200, "application/json", body.into_bytes());
    match names.last() {
        Some(last) if more => {
            page.with("Link", format!("</v2/{repository}/tags/list?n={n}&last={last}>; rel=\"next\""))
        }
        _ => page,
    }
}

fn referrers(state: &RegistryState, repository: &str, digest: &str, query: &str) -> RegistryAnswer {
    let filter =
        parameter(query, "artifactType").map(|filter| filter.replace("%2F", "/").replace("%2B", "+"));
    let mut descriptors = Vec::new();
    for ((name, own), (media_type, bytes)) in &state.manifests {
        let Ok(manifest) = Manifest::parse(bytes, Some(media_type)) else { continue };
        let refers = manifest.subject.is_some_and(|subject| subject.to_string() == digest);
        let wanted = filter.is_none() || manifest.artifact_type == filter;
        if name == repository && refers && wanted {
            descriptors.push(json!({
                "mediaType": media_type, "digest": own, "size": bytes.len(), "artifactType": manifest.artifact_type
            }));
        }
    }
    let index = json!({ "schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": descriptors });
    let content = RegistryAnswer::new(200, media::OCI_INDEX, index.to_string().into_bytes());
    if filter.is_some() { content.with("OCI-Filters-Applied", "artifactType") } else { content }
}

/// Gives a token for the scope that is asked for; it is valid for that repository and for who asked.
fn token(state: &RegistryState, asked: &Asked<'_>) -> RegistryAnswer {
    let given = header(asked.headers, "authorization");
    let scope = parameter(asked.query, "scope").unwrap_or("").replace("%3A", ":").replace("%2F", "/");
    let repository = scope.split(':').nth(1).unwrap_or("");
    let is = |user: &str, password: &str| given == Some(basic(user, password).as_str());
    let token = match &state.login {
        Some(LoginDemand::Token(Some((user, password)))) if !is(user, password) => {
            match account(state, given, repository) {
                Some(user) => token_for(user, repository),
                None => return RegistryAnswer::error(401, "UNAUTHORIZED"),
            }
        }
        Some(LoginDemand::Limited(user, password)) if !is(user, password) => token_of_everybody(repository),
        Some(LoginDemand::Token(_) | LoginDemand::Limited(..)) => token_for("", repository),
        Some(LoginDemand::Basic(..)) | None => return RegistryAnswer::error(404, "NOT_FOUND"),
    };
    let body = json!({ "token": token, "expires_in": 300 }).to_string();
    RegistryAnswer::new(200, "application/json", body.into_bytes())
}

fn token_for(user: &str, repository: &str) -> String {
    Digest::of(Algorithm::Sha256, format!("a secret of the demo {user} {repository}").as_bytes()).hex()
}

/// The other login that a header stands for, if it may read the repository.
fn account<'s>(state: &'s RegistryState, given: Option<&str>, repository: &str) -> Option<&'s str> {
    let mut accounts = state.accounts.iter();
    let found = accounts.find(|(user, password, of)| {
        (repository.is_empty() || repository == of) && given == Some(basic(user, password).as_str())
    });
    found.map(|(user, ..)| user.as_str())
}

fn token_of_everybody(repository: &str) -> String {
    token_for("everybody", repository)
}

/// Whether a request comes with a login, or with the token of one.
pub(super) fn is_logged_in(state: &RegistryState, asked: &Asked<'_>) -> bool {
    let given = header(asked.headers, "authorization").unwrap_or("");
    let token = format!("Bearer {}", token_for("", repository_of(asked)));
    given.starts_with("Basic ") || given == token && state.login.is_some()
}

fn repository_of<'a>(asked: &Asked<'a>) -> &'a str {
    asked.path.trim_start_matches("/v2/").rsplitn(3, '/').nth(2).unwrap_or("")
}

/// What who has not logged in is answered in any case: nothing but HEAD is without a limit, and what is hidden is as if it
/// did not exist.
fn limited(state: &RegistryState, asked: &Asked<'_>, challenge: &str) -> Option<RegistryAnswer> {
    let repository = repository_of(asked);
    let manifest = asked.path.contains("/manifests/");
    if manifest && asked.method == "GET" {
        return Some(RegistryAnswer::error(429, "TOOMANYREQUESTS"));
    }
    if manifest && let Some(status) = state.anonymous_status {
        return Some(RegistryAnswer::error(status, "ON_PURPOSE"));
    }
    let shown = state.tags.contains_key(repository) && !state.hidden.contains(repository);
    (!shown && !repository.is_empty())
        .then(|| RegistryAnswer::error(401, "UNAUTHORIZED").with("WWW-Authenticate", challenge))
}

fn challenge(state: &RegistryState, asked: &Asked<'_>) -> Option<RegistryAnswer> {
    let given = header(asked.headers, "authorization");
    let repository = repository_of(asked);
    match state.login.as_ref()? {
        LoginDemand::Basic(user, password) => {
            let known = given == Some(basic(user, password).as_str());
            let valid = known || account(state, given, repository).is_some();
            (!valid).then(|| {
                RegistryAnswer::error(401, "UNAUTHORIZED").with("WWW-Authenticate", "Basic realm=\"demo\"")
            })
        }
        LoginDemand::Token(_) | LoginDemand::Limited(..) => {
            let host = header(asked.headers, "host").unwrap_or("");
            let challenge = format!(
                "Bearer realm=\"http://{host}/token\",service=\"demo\",scope=\"repository:{repository}:pull\""
            );
            let is = |token: String| given == Some(format!("Bearer {token}").as_str());
            if matches!(state.login, Some(LoginDemand::Limited(..))) && is(token_of_everybody(repository)) {
                return limited(state, asked, &challenge);
            }
            let mut readers = state.accounts.iter().map(|(user, ..)| user.as_str()).chain([""]);
            let valid = readers.any(|user| is(token_for(user, repository)));
            (!valid).then(|| RegistryAnswer::error(401, "UNAUTHORIZED").with("WWW-Authenticate", challenge))
        }
    }
}

fn basic(user: &str, password: &str) -> String {
    use base64::Engine;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name).map(|(_, value)| value))
}
