//! Logging in at an upstream: basic credentials and bearer tokens (distribution, "Token Authentication
//! Specification").
//!
//! LoginSettings go to the upstream's own origin and to the realm it names (`realm` says which may be one), and never over
//! plain http unless the upstream itself is plain http. What an upstream asked for last is remembered, so that the next
//! repository costs no 401. Tokens expire by the monotonic clock, a little early. When the password changes, those that were
//! obtained with the one before are dropped.

use super::address::{Address, HttpOrigin};
use super::challenge::Challenge;
use super::failure::{Cause, Failure};
use super::scope::{StatedScopes, TokenRequest};
use super::wire::Deadline;
use crate::budget::{
    CHALLENGE_TEXT_BYTES_MAX, TOKEN_AGE_MAX, TOKENS_BYTES_MAX, TOKENS_MAX, UPSTREAM_TEXT_BYTES_MAX,
};
use crate::config::LoginSettings;
use crate::files::Watched;
use crate::sync::{Condvar, Mutex};
use crate::text::Secret;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use ureq::http::HeaderValue;

/// What a token without `expires_in` is worth (the specification's default).
const TOKEN_AGE_DEFAULT: Duration = Duration::from_secs(60);
/// How much before its end a token counts as expired, but never more than a quarter of its age.
const TOKEN_EARLY: Duration = Duration::from_secs(10);

/// Asks a token server: address, `Authorization`.
pub(super) type AskRealm<'a> = &'a dyn Fn(&Address, Option<&HeaderValue>) -> Result<RealmAnswer, Failure>;

/// What a token server answers.
pub(super) enum RealmAnswer {
    /// The body of a 200.
    Token(Vec<u8>),
    /// The `Location` of a redirect.
    Moved(String),
}

/// How one upstream is logged in at.
pub(super) struct EndpointLogin {
    pub(super) own: HttpOrigin,
    /// `user:password`, ready to send.
    pub(super) basic: Option<Watched<HeaderValue>>,
    /// The configured realm.
    pub(super) realm: Option<HttpOrigin>,
    state: Mutex<State>,
    /// Signalled when a thread stops asking for a token.
    asked: Condvar,
}

#[derive(Default)]
struct State {
    scheme: Option<Scheme>,
    scopes: StatedScopes,
    tokens: HashMap<TokenRequest, Token>,
    asking: HashSet<TokenRequest>,
    /// What the tokens were obtained with.
    obtained_with: Option<SentLogin>,
}

/// `user:password` as it was at some time.
pub(super) type SentLogin = Arc<HeaderValue>;

#[derive(Clone)]
enum Scheme {
    Basic,
    Bearer { realm: Address, service: Option<String> },
}

struct Token {
    header: HeaderValue,
    until: Instant,
}

impl EndpointLogin {
    /// `realm` is the configuration's.
    ///
    /// # Errors
    /// What is wrong with it or the credentials.
    pub fn new(
        own: HttpOrigin,
        credentials: Option<&LoginSettings>,
        realm: Option<&str>,
    ) -> Result<Self, String> {
        let realm = realm
            .map(|text| Address::parse(text).map(|address| address.origin))
            .transpose()
            .map_err(|why| format!("its realm is not usable: {why}"))?;
        let basic = credentials.map(watched_login).transpose()?;
        Ok(EndpointLogin { own, basic, realm, state: Mutex::default(), asked: Condvar::new() })
    }

    /// A login without credentials.
    pub fn anonymous(own: HttpOrigin) -> Self {
        EndpointLogin { own, basic: None, realm: None, state: Mutex::default(), asked: Condvar::new() }
    }

    /// A login with a client's own credentials, which go where these go and nowhere else. It has tokens of its own, and is
    /// dropped with its question.
    ///
    /// # Errors
    /// They cannot be sent.
    pub fn of_client(&self, username: &str, password: &Secret) -> Result<Self, String> {
        let basic = Some(Watched::fixed(basic_header(username, password)?));
        Ok(EndpointLogin { basic, realm: self.realm.clone(), ..EndpointLogin::anonymous(self.own.clone()) })
    }

    /// Whether the other side has asked for it, so that an answer is one to this login.
    pub fn was_asked_for(&self) -> bool {
        self.state.lock().scheme.is_some()
    }

    /// Whether there is something to log in with.
    pub fn has_credentials(&self) -> bool {
        self.basic.is_some()
    }

    /// What is logged in with now. When that has changed, the tokens that were obtained before are dropped.
    pub fn credentials(&self) -> Option<SentLogin> {
        self.take_up(self.basic.as_ref()?.current())
    }

    /// The same if it is not what was `sent`, which was refused: the password file is looked at now.
    pub fn newer_than(&self, sent: Option<&SentLogin>) -> Option<SentLogin> {
        self.take_up(self.basic.as_ref()?.newer_than(sent?)?)
    }

    fn fresh_credentials(&self) -> Option<SentLogin> {
        let known = self.credentials();
        self.newer_than(known.as_ref()).or(known)
    }

    fn take_up(&self, login: SentLogin) -> Option<SentLogin> {
        let mut state = self.state.lock();
        if state.obtained_with.as_ref().is_some_and(|known| !Arc::ptr_eq(known, &login)) {
            state.tokens.clear();
        }
        state.obtained_with = Some(Arc::clone(&login));
        Some(login)
    }

    /// What a second 401 means.
    pub fn refused_message(&self) -> &'static str {
        if self.basic.is_some() {
            "answered 401: larder's own user name or password is not accepted, or does not reach this repository"
        } else {
            "answered 401: the repository does not exist or needs a user name and password"
        }
    }

    /// What to send before being asked, by what the upstream asked for last.
    ///
    /// # Errors
    /// The token server could not be asked, or refuses.
    pub fn ready(
        &self,
        scope: &str,
        deadline: Deadline,
        ask: AskRealm,
    ) -> Result<Option<HeaderValue>, Failure> {
        let basic = self.credentials();
        let scheme = self.state.lock().scheme.clone();
        match scheme {
            None => Ok(None),
            Some(Scheme::Basic) => Ok(basic.as_deref().cloned()),
            Some(Scheme::Bearer { realm, service }) => {
                let known = self.state.lock().scopes.find(scope);
                let Some(scope) = known else { return Ok(None) };
                let token = self.token(TokenRequest { realm, service, scope }, None, deadline, ask);
                if token.as_ref().is_err_and(|failure| !matches!(failure, Failure::Denied { .. })) {
                    // The next question asks its upstream first: it may need no token.
                    self.state.lock().scheme = None;
                }
                token.map(Some)
            }
        }
    }

    /// Whether a challenge asks for another token than the one that [`EndpointLogin::ready`] asks for.
    pub fn differs(&self, challenge: &Challenge, own_scope: &str) -> bool {
        let Challenge::Bearer { realm, service, scope } = challenge else { return false };
        let state = self.state.lock();
        let Some(Scheme::Bearer { realm: known, service: known_service }) = &state.scheme else {
            return true;
        };
        let scope = scope.as_deref().unwrap_or(own_scope);
        let same_server =
            Address::parse(realm).is_ok_and(|realm| realm == *known) && service == known_service;
        !same_server || state.scopes.find(own_scope).as_deref() != Some(scope)
    }

    /// What to send after a 401 with `challenge` to a request that carried `used`.
    ///
    /// # Errors
    /// `Denied` if there is nothing to log in with; `Wrong` if the token server must not be asked.
    pub fn answer(
        &self,
        challenge: Option<Challenge>,
        scope: &str,
        used: Option<&HeaderValue>,
        deadline: Deadline,
        ask: AskRealm,
    ) -> Result<HeaderValue, Failure> {
        match challenge {
            Some(Challenge::Bearer { realm, service, scope: stated }) => {
                let realm = self.permitted(&realm)?;
                let texts = service.iter().chain(&stated);
                if texts.into_iter().any(|text| text.len() > CHALLENGE_TEXT_BYTES_MAX) {
                    let message = "asks for a login with a service or scope that is longer than allowed";
                    return Err(Failure::wrong(&self.own.host, message));
                }
                let mut state = self.state.lock();
                let scope = state.scopes.learn(scope, stated.as_deref());
                state.scheme = Some(Scheme::Bearer { realm: realm.clone(), service: service.clone() });
                drop(state);
                self.token(TokenRequest { realm, service, scope }, used, deadline, ask)
            }
            Some(Challenge::Basic) => match self.fresh_credentials() {
                Some(basic) if used != Some(&*basic) => {
                    self.state.lock().scheme = Some(Scheme::Basic);
                    Ok((*basic).clone())
                }
                Some(_) => {
                    Err(self.denied("larder's own user name or password (password_file) is not accepted"))
                }
                None => Err(self.denied("asks for a user name and password, and is asked without")),
            },
            None => Err(self.denied("answered 401 without saying how to log in")),
        }
    }

    fn denied(&self, message: &str) -> Failure {
        Failure::Denied { status: 401, detail: format!("{}: {message}", self.own.authority()) }
    }

    /// The token for `key`, other than `stale`; of several who want the same one, one asks.
    fn token(
        &self,
        key: TokenRequest,
        stale: Option<&HeaderValue>,
        deadline: Deadline,
        ask: AskRealm,
    ) -> Result<HeaderValue, Failure> {
        let host = &key.realm.origin.authority();
        let mut state = self.state.lock();
        loop {
            let now = Instant::now();
            let kept = state.tokens.get(&key).filter(|token| token.until > now);
            if let Some(token) = kept.filter(|token| Some(&token.header) != stale) {
                return Ok(token.header.clone());
            }
            if !state.asking.contains(&key) {
                break;
            }
            let left = deadline.left();
            if left.is_zero() {
                return Err(Failure::unreachable(host, Cause::Timeout, "no token in time"));
            }
            state = self.asked.wait_timeout(state, left).0;
        }
        state.asking.insert(key.clone());
        drop(state);
        let _asking = Asking { login: self, key: &key };
        let begun = Instant::now();
        let address = key.address();
        let mut basic = self.credentials();
        let mut body = self.ask_realm(&address, basic.as_deref(), ask);
        if matches!(body, Err(Failure::Denied { .. }))
            && let Some(newer) = self.newer_than(basic.as_ref())
        {
            body = self.ask_realm(&address, Some(&newer), ask);
            basic = Some(newer);
        }
        let (header, age) = read_token(&body?).map_err(|why| Failure::wrong(host, why))?;
        let mut state = self.state.lock();
        let is_of_now = match (&state.obtained_with, &basic) {
            (Some(now), Some(then)) => Arc::ptr_eq(now, then),
            (_, then) => then.is_none(),
        };
        if is_of_now {
            make_room(&mut state.tokens, header.len() + key.bytes(), begun);
            state.tokens.insert(key.clone(), Token { header: header.clone(), until: begun + age });
        }
        Ok(header)
    }
}

/// Stands for one thread that asks for a token; whatever becomes of it, the others go on.
struct Asking<'a> {
    login: &'a EndpointLogin,
    key: &'a TokenRequest,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.login.state.lock().asking.remove(self.key);
        self.login.asked.notify_all();
    }
}

/// The login with the password that its file holds, whenever that changes.
fn watched_login(login: &LoginSettings) -> Result<Watched<HeaderValue>, String> {
    let now = basic_header(&login.username, &login.password)?;
    let (username, file) = (login.username.clone(), login.password_file.clone());
    Ok(Watched::resume(now, vec![file.clone()], move || {
        let in_file = |why: String| format!("password_file {}: {why}", file.display());
        let password = LoginSettings::read_password(&file).map_err(in_file)?;
        basic_header(&username, &password).map_err(in_file)
    }))
}

fn basic_header(username: &str, password: &Secret) -> Result<HeaderValue, String> {
    if username.contains(':') {
        return Err("its username holds a colon".to_owned());
    }
    let text = STANDARD.encode(format!("{username}:{}", password.reveal()));
    let mut header = HeaderValue::from_str(&format!("Basic {text}"))
        .map_err(|_| "its credentials cannot be sent".to_owned())?;
    if header.len() > UPSTREAM_TEXT_BYTES_MAX {
        return Err("its password is too long".to_owned());
    }
    header.set_sensitive(true);
    Ok(header)
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Option<f64>,
}

/// The token as a header, and how long it is used.
fn read_token(body: &[u8]) -> Result<(HeaderValue, Duration), &'static str> {
    let answer: TokenAnswer =
        serde_json::from_slice(body).map_err(|_| "the token server's answer cannot be parsed")?;
    let some = |text: Option<String>| text.filter(|text| !text.is_empty());
    let token = some(answer.token).or(some(answer.access_token)).ok_or("the token server gave no token")?;
    if token.len() > UPSTREAM_TEXT_BYTES_MAX {
        return Err("the token is longer than allowed");
    }
    let mut header =
        HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| "the token cannot be sent")?;
    header.set_sensitive(true);
    let age = answer
        .expires_in
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|age| !age.is_zero())
        .unwrap_or(TOKEN_AGE_DEFAULT)
        .min(TOKEN_AGE_MAX);
    Ok((header, age - TOKEN_EARLY.min(age / 4)))
}

/// Drops expired tokens, and the one that expires soonest if that is not enough, so that one of `bytes` more has room.
fn make_room(tokens: &mut HashMap<TokenRequest, Token>, bytes: usize, now: Instant) {
    let is_full = |tokens: &HashMap<TokenRequest, Token>| {
        let held: usize = tokens.iter().map(|(key, token)| token.header.len() + key.bytes()).sum();
        tokens.len() >= TOKENS_MAX || held.saturating_add(bytes) > TOKENS_BYTES_MAX
    };
    if !is_full(tokens) {
        return;
    }
    tokens.retain(|_, token| token.until > now);
    while is_full(tokens) {
        let soonest = tokens.iter().min_by_key(|(_, token)| token.until).map(|(key, _)| key.clone());
        let Some(soonest) = soonest else { return };
        tokens.remove(&soonest);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn login(url: &str, with_credentials: bool, realm: Option<&str>) -> EndpointLogin {
        let credentials = LoginSettings {
            username: "user".into(),
            password: crate::text::Secret::new("secret".into()),
            password_file: "/dev/null".into(),
        };
        let own = Address::parse(url).unwrap().origin;
        EndpointLogin::new(own, with_credentials.then_some(&credentials), realm).unwrap()
    }

    #[test]
    fn tokens_are_read_and_expire_early() {
        for (body, header, seconds) in [
            (r#"{"token":"a","access_token":"b","expires_in":300}"#, "Bearer a", 290.0),
            (r#"{"access_token":"b"}"#, "Bearer b", 50.0),
            (r#"{"token":"","access_token":"b","expires_in":4}"#, "Bearer b", 3.0),
            (r#"{"token":"a","expires_in":-1}"#, "Bearer a", 50.0),
            (r#"{"token":"a","expires_in":1e300}"#, "Bearer a", 50.0),
            (r#"{"token":"a","expires_in":999999999}"#, "Bearer a", 86_390.0),
        ] {
            let (value, age) = read_token(body.as_bytes()).unwrap();
            assert_eq!((value.to_str().unwrap(), age.as_secs_f64()), (header, seconds), "{body}");
        }
        for bad in ["", "{}", r#"{"token":"a\nb"}"#, "[]", r#"{"token":7}"#] {
            assert!(read_token(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_too_long_to_be_sent_is_refused() {
        let login = login("https://reg.example", true, None);
        let ask = |_: &Address, _: Option<&HeaderValue>| panic!("nobody is asked");
        let long = || Some("x".repeat(CHALLENGE_TEXT_BYTES_MAX + 1));
        for (service, scope) in [(long(), None), (None, long())] {
            let challenge = Challenge::Bearer { realm: "https://reg.example/t".into(), service, scope };
            let deadline = Deadline::after(Duration::from_secs(60));
            let answer = login.answer(Some(challenge), "own", None, deadline, &ask);
            assert!(matches!(answer, Err(Failure::Wrong { .. })), "{answer:?}");
        }
        assert!(!login.was_asked_for());
    }

    #[test]
    fn tokens_are_bounded_and_asked_for_once() {
        let login = login("https://reg.example", false, None);
        let asked = std::sync::atomic::AtomicUsize::new(0);
        let ask = |_: &Address, _: Option<&HeaderValue>| {
            asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            Ok(RealmAnswer::Token(br#"{"token":"t"}"#.to_vec()))
        };
        let challenge = || {
            let (realm, service) = ("https://reg.example/token".into(), Some("s s".into()));
            Some(Challenge::Bearer { realm, service, scope: None })
        };
        let deadline = Deadline::after(Duration::from_secs(60));
        for count in 0..TOKENS_MAX + 10 {
            login.answer(challenge(), &format!("scope {count}"), None, deadline, &ask).unwrap();
        }
        assert_eq!(login.state.lock().tokens.len(), TOKENS_MAX);
        // Of long ones fewer are remembered.
        let long = |_: &Address, _: Option<&HeaderValue>| {
            let token = "t".repeat(UPSTREAM_TEXT_BYTES_MAX);
            Ok(RealmAnswer::Token(format!(r#"{{"token":"{token}"}}"#).into_bytes()))
        };
        for count in 0..TOKENS_MAX {
            login.answer(challenge(), &format!("long {count}"), None, deadline, &long).unwrap();
        }
        let held: usize = login.state.lock().tokens.values().map(|token| token.header.len()).sum();
        assert!(held <= TOKENS_BYTES_MAX && held > TOKENS_BYTES_MAX / 2, "{held}");
        let before = asked.load(std::sync::atomic::Ordering::SeqCst);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| login.ready("another", deadline, &ask).unwrap());
            }
        });
        assert_eq!(asked.load(std::sync::atomic::Ordering::SeqCst), before + 1);
    }
}
