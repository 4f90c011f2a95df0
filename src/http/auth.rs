//! `[auth]`: logs clients in with a user name and password, and answers 401 with a challenge where that fails.
//!
//! Public repositories are never challenged, because that breaks anonymous pulls. bcrypt keeps a core busy, so passwords
//! are verified on a thread of their own, one at a time for each client, and a verified login is remembered for the life of the process.
//! A login that fails leaves a line in the log, without the password.

use super::answer::{self, Answer};
use super::request::ClientRequest;
use super::watched::Watched;
use crate::auth::{BasicCredentials, Identity, Users, VerifiedLogins};
use crate::budget;
use crate::files;
use crate::oci::{ErrorCode, RegistryName, quoted};
use crate::places::{self, Places};
use crate::sync::Mutex;
use hyper::StatusCode;
use hyper::header::{self, HeaderValue};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Verifies who a client is.
pub(super) struct Authenticator {
    users: Watched<Users>,
    verified: Mutex<VerifiedLogins>,
    /// Passwords verified at a time: each costs a core for a tenth of a second on a small board.
    checks: Places<IpAddr>,
}

impl Authenticator {
    /// Reads the password file, if there is one.
    ///
    /// # Errors
    /// A sentence that names the file, the line and what is wrong with it.
    pub(super) fn open(file: Option<PathBuf>) -> Result<Authenticator, String> {
        let read = |file: &Path| {
            let text = files::read_text(file, budget::HTPASSWD_BYTES_MAX)
                .map_err(|e| format!("auth.htpasswd_file {}: {e}", file.display()))?;
            Users::parse(&text).map_err(|e| format!("{}:{e}", file.display()))
        };
        let users = Watched::open(file.iter().cloned().collect(), move || {
            Ok(file.as_deref().map(read).transpose()?.unwrap_or_default())
        })?;
        Ok(Authenticator { users, verified: Mutex::default(), checks: Places::new(budget::LOGIN_CHECKS_MAX) })
    }

    /// The identity of a client of `registry`, whose content needs a login, by the credentials of its request.
    ///
    /// # Errors
    /// The answer: a challenge if the credentials are missing or wrong, 503 if too many logins wait.
    pub(super) async fn log_in(
        &self,
        request: &ClientRequest,
        registry: &RegistryName,
    ) -> Result<Arc<Identity>, Answer> {
        let header = request.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some(credentials) = header.and_then(BasicCredentials::from_header) else {
            return Err(challenge(&format!("content of {registry} needs a login here")));
        };
        let (user, client) = (credentials.user.clone(), request.identity.address);
        let refused = |why: &str| {
            log::warn!("login of {} from {client} for {registry} failed: {why}", quoted(&user));
            challenge(why)
        };
        let wrong = "user name or password is wrong";
        let login = self.users.current().login(credentials).ok_or_else(|| refused(wrong))?;
        if login.is_too_long() {
            let most = budget::PASSWORD_BYTES_MAX;
            return Err(refused(&format!("a password of more than {most} bytes is not accepted")));
        }
        let key = login.key();
        let identity = Arc::new(Identity { user: Some(user.clone()), ..(*request.identity).clone() });
        if self.verified.lock().contains(&key) {
            return Ok(identity);
        }
        let turn = self.checks.wait(&places::client(client), budget::LOGIN_WAIT_MAX).await;
        let Some(_turn) = turn else {
            let message = "too many logins wait to be verified; retry";
            return Err(answer::error(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::TooManyRequests, message));
        };
        match crate::sync::blocking(move || login.verify()).await {
            Ok(true) => {}
            Ok(false) => return Err(refused(wrong)),
            Err(none) => {
                let message = format!("the login cannot be verified now: {none}; retry");
                let status = StatusCode::SERVICE_UNAVAILABLE;
                return Err(answer::error(status, ErrorCode::TooManyRequests, &message));
            }
        }
        self.verified.lock().insert(key);
        Ok(identity)
    }
}

fn challenge(message: &str) -> Answer {
    let mut answer = answer::error(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, message);
    let basic = HeaderValue::from_static("Basic realm=\"larder\", charset=\"UTF-8\"");
    answer.headers_mut().insert(header::WWW_AUTHENTICATE, basic);
    answer
}
