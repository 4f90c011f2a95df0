//! `[auth]`: logs clients in with a user name and password, and answers 401 with a challenge where that fails.
//!
//! Public repositories are never challenged, because that breaks anonymous pulls. bcrypt keeps a core busy, so passwords
//! are verified on a thread of their own, one at a time for each client, and a verified login is remembered for the life of the process.
//! A login that fails leaves a line in the log, without the password.
//!
//! A login that no user of the board has may be a pull secret (`auth.pull_secrets`): over TLS or from this machine the
//! registry is asked whether it shows what is asked for to that login. Who is let in so is nobody: no rule concerns such an
//! identity, and it opens nothing else. What the registry does not show is answered like a wrong password, be it here or not.

use super::answer::{self, Answer};
use super::request::ClientRequest;
use crate::auth::{BasicCredentials, Identity, LoginAttempt, LoginKey, Users, VerifiedLogins};
use crate::budget;
use crate::files::{self, Watched};
use crate::mirror::{Mirror, SecretVerdict};
use crate::oci::{ErrorCode, RegistryName, quoted};
use crate::places::{self, Places};
use crate::sync::Mutex;
use hyper::StatusCode;
use hyper::header::{self, HeaderValue};
use std::collections::HashSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Verifies who a client is.
pub(super) struct Authenticator {
    users: Watched<Users>,
    verified: Mutex<VerifiedLogins>,
    /// Logins that were compared with a user's hash, or its stand-in, and are not that user's.
    strangers: Mutex<HashSet<LoginKey>>,
    /// Passwords verified at a time: each costs a core for a tenth of a second on a small board.
    checks: Places<IpAddr>,
    /// Pull secrets that registries are asked about at a time, by client and registry.
    questions: Places<(IpAddr, RegistryName)>,
}

/// One login, with what all answers to it have in common.
struct Login<'a> {
    mirror: &'a Mirror,
    request: &'a ClientRequest,
    registry: &'a RegistryName,
    credentials: Arc<BasicCredentials>,
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
        Ok(Authenticator {
            users,
            verified: Mutex::default(),
            strangers: Mutex::default(),
            checks: Places::new(budget::LOGIN_CHECKS_MAX),
            questions: Places::with_most_each(
                budget::PULL_SECRET_CHECKS_MAX,
                budget::PULL_SECRET_CHECKS_EACH,
            ),
        })
    }

    /// Whether a login can be one of the board's own users.
    pub(super) fn has_users(&self) -> bool {
        !self.users.current().is_empty()
    }

    /// The identity of a client of a registry whose content needs no login, where it sends one: the user, or who it was.
    pub(super) async fn user(
        &self,
        mirror: &Mirror,
        request: &ClientRequest,
        registry: &RegistryName,
    ) -> Arc<Identity> {
        let Some(credentials) = credentials(request) else { return Arc::clone(&request.identity) };
        let login = Login { mirror, request, registry, credentials: Arc::new(credentials) };
        if self.is_user(&login).await.unwrap_or(false) {
            return login.user();
        }
        login.note("no user here has it");
        Arc::clone(&request.identity)
    }

    /// The identity of a client of `registry`, whose content needs a login, by the credentials of its request: a user, or
    /// nobody who has shown a pull secret for what it asks for.
    ///
    /// # Errors
    /// The answer: a challenge if the credentials are missing or wrong, 503 if too many logins wait.
    pub(super) async fn log_in(
        &self,
        mirror: &Mirror,
        request: &ClientRequest,
        registry: &RegistryName,
    ) -> Result<Arc<Identity>, Answer> {
        let Some(credentials) = credentials(request) else {
            return Err(challenge(&format!("content of {registry} needs a login here")));
        };
        let login = Login { mirror, request, registry, credentials: Arc::new(credentials) };
        let (secrets, sealed) = (mirror.config().auth.pull_secrets, request.identity.sealed);
        let attempt = self.users.current().login(Arc::clone(&login.credentials));
        if self.is_verified(attempt.as_ref()) {
            return Ok(login.user());
        }
        // A secret is neither asked for nor believed where others can read it.
        let object = request.pull_object().filter(|_| secrets && sealed);
        let Some(object) = object else {
            return if self.is_user(&login).await? { Ok(login.user()) } else { Err(login.wrong()) };
        };
        match mirror.knows_secret(mirror.login_key(&login.credentials, b""), &object).await {
            Some(true) => return Ok(Arc::clone(&request.identity)),
            Some(false) => return Err(login.refused("its registry refused it just now")),
            None if self.is_user(&login).await? => return Ok(login.user()),
            None => {}
        }
        let client = request.identity.address;
        let asker = (places::client(client), registry.clone());
        let place = self.questions.wait(&asker, budget::LOGIN_WAIT_MAX).await;
        let place = place.ok_or_else(too_many)?;
        match mirror.try_secret(client, &login.credentials, &object).await {
            Ok(SecretVerdict::Shown) => Ok(Arc::clone(&request.identity)),
            Ok(SecretVerdict::Kept) => {
                Ok(Arc::new(Identity { cached_only: true, ..(*request.identity).clone() }))
            }
            Ok(SecretVerdict::Refused(why)) => {
                // The pace of who guesses, also if it does not wait for the answer.
                tokio::spawn(async move {
                    tokio::time::sleep(budget::PULL_SECRET_REFUSED_PLACE).await;
                    drop(place);
                });
                Err(login.refused(why))
            }
            Err(refusal) => Err(answer::refuse(&refusal)),
        }
    }

    fn is_verified(&self, attempt: Option<&LoginAttempt>) -> bool {
        attempt.is_some_and(|attempt| self.verified.lock().contains(&attempt.key()))
    }

    /// Whether a login is that of one of the board's users, by the password file as it is now: one that is refused may be
    /// that of a moment ago.
    ///
    /// # Errors
    /// The answer: it cannot be verified now, or never.
    async fn is_user(&self, login: &Login<'_>) -> Result<bool, Answer> {
        let users = self.users.current();
        if self.matches(login, users.login(Arc::clone(&login.credentials))).await? {
            return Ok(true);
        }
        match self.users.newer_than(&users) {
            Some(newer) => self.matches(login, newer.login(Arc::clone(&login.credentials))).await,
            None => Ok(false),
        }
    }

    async fn matches(&self, login: &Login<'_>, attempt: Option<LoginAttempt>) -> Result<bool, Answer> {
        let Some(attempt) = attempt else { return Ok(false) };
        if self.is_verified(Some(&attempt)) {
            return Ok(true);
        }
        let secrets = login.mirror.config().auth.pull_secrets;
        if attempt.is_too_long() {
            let most = budget::PASSWORD_BYTES_MAX;
            let why = format!("a password of more than {most} bytes is not accepted");
            return if secrets { Ok(false) } else { Err(login.logged(&why, &why)) };
        }
        let key = attempt.key();
        let stranger = login.mirror.login_key(&login.credentials, key.hex().as_bytes());
        if self.strangers.lock().contains(&stranger) {
            return Ok(false);
        }
        let client = places::client(login.request.identity.address);
        let turn = self.checks.wait(&client, budget::LOGIN_WAIT_MAX).await;
        let _turn = turn.ok_or_else(too_many)?;
        match crate::sync::blocking(move || attempt.verify()).await {
            Ok(true) => {
                self.verified.lock().insert(key);
                Ok(true)
            }
            Ok(false) => {
                let mut strangers = self.strangers.lock();
                if strangers.len() >= budget::LOGINS_REMEMBERED_MAX {
                    strangers.clear();
                }
                strangers.insert(stranger);
                Ok(false)
            }
            Err(none) => {
                let message = format!("the login cannot be verified now: {none}; retry");
                let status = StatusCode::SERVICE_UNAVAILABLE;
                Err(answer::error(status, ErrorCode::TooManyRequests, &message))
            }
        }
    }
}

impl Login<'_> {
    fn user(&self) -> Arc<Identity> {
        let user = Some(self.credentials.user.clone());
        Arc::new(Identity { user, ..(*self.request.identity).clone() })
    }

    /// The answer to a login that is none, for whatever reason: the same for what is here and what is not.
    fn wrong(&self) -> Answer {
        self.refused("user name or password is wrong")
    }

    fn refused(&self, why: &str) -> Answer {
        if self.mirror.config().auth.pull_secrets {
            let registry = self.registry;
            let text = format!("user name or password is wrong, or {registry} does not show this to it");
            self.logged(why, &text)
        } else {
            self.logged(why, "user name or password is wrong")
        }
    }

    fn logged(&self, why: &str, text: &str) -> Answer {
        self.note(why);
        challenge(text)
    }

    fn note(&self, why: &str) {
        let (user, client) = (quoted(&self.credentials.user), self.request.identity.address);
        log::warn!("login of {user} from {client} for {} failed: {why}", self.registry);
    }
}

/// The user name and password that a request comes with.
fn credentials(request: &ClientRequest) -> Option<BasicCredentials> {
    let header = request.headers.get(header::AUTHORIZATION)?;
    BasicCredentials::from_header(header.to_str().ok()?)
}

fn too_many() -> Answer {
    let message = "too many logins wait to be verified; retry";
    answer::error(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::TooManyRequests, message)
}

fn challenge(message: &str) -> Answer {
    let mut answer = answer::error(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, message);
    let basic = HeaderValue::from_static("Basic realm=\"larder\", charset=\"UTF-8\"");
    answer.headers_mut().insert(header::WWW_AUTHENTICATE, basic);
    answer
}
