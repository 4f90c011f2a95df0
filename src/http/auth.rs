//! `[auth]`: who may read what was fetched with credentials.
//!
//! Public repositories are never challenged, because that breaks anonymous pulls. A password file in the format of
//! `htpasswd -B` (bcrypt, as registries take it) names the users. bcrypt is slow on purpose, so a login that was right
//! is remembered by its hash for the life of the process.

use super::answer::{self, Answer};
use super::request::Request;
use crate::budget;
use crate::oci::{Algorithm, Digest, ErrorCode, RegistryName};
use crate::sync::Mutex;
use base64::Engine;
use hyper::StatusCode;
use hyper::header::{self, HeaderValue};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Users and what is remembered of their logins.
pub(crate) struct Door {
    users: Arc<HashMap<String, String>>,
    remembered: Mutex<HashSet<Digest>>,
    /// Passwords that may be checked at a time: each costs a core for a tenth of a second on a small board.
    checks: Semaphore,
}

impl Door {
    /// Reads the password file, if there is one.
    ///
    /// # Errors
    /// A sentence that names the file, the line and what is wrong with it.
    pub(super) fn open(file: Option<&Path>) -> Result<Door, String> {
        let mut users = HashMap::new();
        if let Some(file) = file {
            let text = std::fs::read_to_string(file)
                .map_err(|e| format!("auth.htpasswd_file {}: {e}", file.display()))?;
            for (number, line) in text.lines().enumerate() {
                let line = line.trim();
                if line.is_empty() || line.starts_with('#') {
                    continue;
                }
                let wrong = |why: &str| Err(format!("{}:{}: {why}", file.display(), number + 1));
                let Some((user, hash)) = line.split_once(':') else {
                    return wrong("expected USER:HASH");
                };
                if !["$2y$", "$2a$", "$2b$"].iter().any(|prefix| hash.starts_with(prefix)) {
                    return wrong("only bcrypt hashes are taken; make the line with htpasswd -nB USER");
                }
                users.insert(user.to_owned(), hash.to_owned());
            }
        }
        Ok(Door { users: Arc::new(users), remembered: Mutex::default(), checks: Semaphore::new(1) })
    }

    /// Lets a request for private content pass, or answers with a challenge.
    pub(super) async fn check(&self, request: &Request, registry: &RegistryName) -> Result<(), Answer> {
        let Some((user, password)) = credentials(request) else {
            return Err(challenge(&format!("content of {registry} needs a login here")));
        };
        let Some(hash) = self.users.get(&user).cloned() else {
            return Err(challenge("user name or password is wrong"));
        };
        let login = Digest::of(Algorithm::Sha256, format!("{user}\0{password}\0{hash}").as_bytes());
        if self.remembered.lock().contains(&login) {
            return Ok(());
        }
        let Ok(_turn) = tokio::time::timeout(budget::LOGIN_WAIT_MAX, self.checks.acquire()).await else {
            return Err(answer::error(
                StatusCode::SERVICE_UNAVAILABLE,
                ErrorCode::TooManyRequests,
                "too many logins are being checked",
            ));
        };
        let verified = tokio::task::spawn_blocking(move || bcrypt::verify(password, &hash)).await;
        if !matches!(verified, Ok(Ok(true))) {
            return Err(challenge("user name or password is wrong"));
        }
        let mut remembered = self.remembered.lock();
        if remembered.len() >= budget::LOGINS_REMEMBERED_MAX {
            remembered.clear();
        }
        remembered.insert(login);
        Ok(())
    }
}

/// The user name and password of a Basic Authorization header (RFC 7617).
fn credentials(request: &Request) -> Option<(String, String)> {
    let value = request.headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = base64::engine::general_purpose::STANDARD.decode(encoded.trim()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

fn challenge(message: &str) -> Answer {
    let mut answer = answer::error(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, message);
    answer.headers_mut().insert(
        header::WWW_AUTHENTICATE,
        HeaderValue::from_static("Basic realm=\"larder\", charset=\"UTF-8\""),
    );
    answer
}
