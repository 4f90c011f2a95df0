//! Logging in at an upstream: basic credentials and bearer tokens (distribution, "Token Authentication
//! Specification").
//!
//! LoginSettings go to the upstream's own origin and to the realm it names, if that is its own domain or written in the
//! configuration, and never over plain http unless the upstream itself is plain http. What an upstream asked for last
//! is remembered, so that the next repository costs no 401. Tokens expire by the monotonic clock, a little early.

use super::address::{Address, HttpOrigin, query_value, same_owner};
use super::challenge::Challenge;
use super::failure::{Cause, Failure};
use super::wire::Deadline;
use crate::budget::{TOKEN_AGE_MAX, TOKENS_BYTES_MAX, TOKENS_MAX, UPSTREAM_TEXT_BYTES_MAX};
use crate::config::LoginSettings;
use crate::oci::quoted;
use crate::sync::{Condvar, Mutex};
use crate::text::Secret;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};
use ureq::http::HeaderValue;

/// What a token without `expires_in` is worth (the specification's default).
const TOKEN_AGE_DEFAULT: Duration = Duration::from_secs(60);
/// How much before its end a token counts as expired, but never more than a quarter of its age.
const TOKEN_EARLY: Duration = Duration::from_secs(10);

/// Asks a token server: address, `Authorization`. Gives the body of a 200.
pub(super) type AskRealm<'a> = &'a dyn Fn(&Address, Option<&HeaderValue>) -> Result<Vec<u8>, Failure>;

/// How one upstream is logged in at.
pub(super) struct EndpointLogin {
    own: HttpOrigin,
    /// `user:password`, ready to send.
    basic: Option<HeaderValue>,
    /// The configured realm.
    realm: Option<HttpOrigin>,
    state: Mutex<State>,
    /// Signalled when a thread stops asking for a token.
    asked: Condvar,
}

#[derive(Default)]
struct State {
    scheme: Option<Scheme>,
    tokens: HashMap<Key, Token>,
    asking: HashSet<Key>,
}

/// Service and scope.
type Key = (Option<String>, String);

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
        let header = |login: &LoginSettings| basic_header(&login.username, &login.password);
        let basic = credentials.map(header).transpose()?;
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
        let basic = Some(basic_header(username, password)?);
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

    /// What a second 401 means.
    pub fn refused_message(&self) -> &'static str {
        if self.basic.is_some() {
            "answered 401: the user name or password is not accepted, or does not reach this repository"
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
        let scheme = self.state.lock().scheme.clone();
        match scheme {
            None => Ok(None),
            Some(Scheme::Basic) => Ok(self.basic.clone()),
            Some(Scheme::Bearer { realm, service }) => {
                let token = self.token(&realm, service, scope, None, deadline, ask);
                if token.as_ref().is_err_and(|failure| !matches!(failure, Failure::Denied { .. })) {
                    // The next question asks its upstream first: it may need no token.
                    self.state.lock().scheme = None;
                }
                token.map(Some)
            }
        }
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
            Some(Challenge::Bearer { realm, service }) => {
                let realm = self.permitted(&realm)?;
                self.state.lock().scheme =
                    Some(Scheme::Bearer { realm: realm.clone(), service: service.clone() });
                self.token(&realm, service, scope, used, deadline, ask)
            }
            Some(Challenge::Basic) => match &self.basic {
                Some(basic) if used != Some(basic) => {
                    self.state.lock().scheme = Some(Scheme::Basic);
                    Ok(basic.clone())
                }
                Some(_) => Err(self.denied("the user name or password is not accepted")),
                None => Err(self.denied("asks for a user name and password, but none are configured")),
            },
            None => Err(self.denied("answered 401 without saying how to log in")),
        }
    }

    fn denied(&self, message: &str) -> Failure {
        Failure::Denied { status: 401, detail: format!("{}: {message}", self.own.authority()) }
    }

    /// The realm as an address, if a token may be asked for there.
    fn permitted(&self, realm: &str) -> Result<Address, Failure> {
        let wrong = |message: String| Failure::wrong(&self.own.authority(), message);
        let realm = Address::parse(realm)
            .map_err(|why| wrong(format!("names {} as its token server: {why}", quoted(realm))))?;
        let chosen = self.realm.as_ref() == Some(&realm.origin);
        if !chosen && !same_owner(&self.own.host, &realm.origin.host) {
            let origin = realm.origin.to_string();
            return Err(wrong(format!(
                "names {} as its token server, which is not its own domain; if that is right, set realm to it",
                quoted(&origin)
            )));
        }
        if self.basic.is_some() && self.own.https && !realm.origin.https {
            return Err(wrong(
                "has its token server on plain http, where credentials are not sent".to_owned(),
            ));
        }
        Ok(realm)
    }

    /// A token for `scope` other than `stale`; of several who want the same one, one asks.
    fn token(
        &self,
        realm: &Address,
        service: Option<String>,
        scope: &str,
        stale: Option<&HeaderValue>,
        deadline: Deadline,
        ask: AskRealm,
    ) -> Result<HeaderValue, Failure> {
        let key: Key = (service, scope.to_owned());
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
                let host = &realm.origin.authority();
                return Err(Failure::unreachable(host, Cause::Timeout, "no token in time"));
            }
            state = self.asked.wait_timeout(state, left).0;
        }
        state.asking.insert(key.clone());
        drop(state);
        let _asking = Asking { login: self, key: &key };
        let begun = Instant::now();
        let body = ask(&token_address(realm, &key), self.basic.as_ref())?;
        let (header, age) =
            read_token(&body).map_err(|why| Failure::wrong(&realm.origin.authority(), why))?;
        let mut state = self.state.lock();
        make_room(&mut state.tokens, header.len(), begun);
        state.tokens.insert(key.clone(), Token { header: header.clone(), until: begun + age });
        Ok(header)
    }
}

/// Stands for one thread that asks for a token; whatever becomes of it, the others go on.
struct Asking<'a> {
    login: &'a EndpointLogin,
    key: &'a Key,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.login.state.lock().asking.remove(self.key);
        self.login.asked.notify_all();
    }
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

fn token_address(realm: &Address, (service, scope): &Key) -> Address {
    let mut target = realm.target.clone();
    target.push(if target.contains('?') { '&' } else { '?' });
    if let Some(service) = service {
        target.push_str("service=");
        target.push_str(&query_value(service));
        target.push('&');
    }
    // A login alone has no scope.
    if !scope.is_empty() {
        target.push_str("scope=");
        target.push_str(&query_value(scope));
    }
    Address { origin: realm.origin.clone(), target }
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
fn make_room(tokens: &mut HashMap<Key, Token>, bytes: usize, now: Instant) {
    let is_full = |tokens: &HashMap<Key, Token>| {
        let held: usize = tokens.values().map(|token| token.header.len()).sum();
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
mod tests {
    use super::*;

    fn login(url: &str, with_credentials: bool, realm: Option<&str>) -> EndpointLogin {
        let credentials = LoginSettings {
            username: "user".into(),
            password: crate::text::Secret::new("secret".into()),
            password_file: "/dev/null".into(),
        };
        let own = Address::parse(url).unwrap().origin;
        EndpointLogin::new(own, with_credentials.then_some(&credentials), realm).unwrap()
    }

    #[test]
    fn realms_are_pinned_to_the_upstreams_own_domain() {
        for (url, realm, credentials, configured, fine) in [
            ("https://registry-1.docker.io", "https://auth.docker.io/token", true, None, true),
            ("https://registry-1.docker.io", "https://evil.example/token", false, None, false),
            ("https://reg.example", "https://reg.example:5001/token", true, None, true),
            ("https://reg.example", "http://reg.example/token", true, None, false),
            ("https://reg.example", "http://reg.example/token", false, None, true),
            ("http://10.0.0.1:5000", "http://10.0.0.1:5001/token", true, None, true),
            ("http://10.0.0.1:5000", "http://10.0.0.2:5001/token", true, None, false),
            ("http://reg:5000", "http://auth:5001/token", true, None, false),
            ("http://reg:5000", "http://auth:5001/token", true, Some("http://auth:5001"), true),
            ("http://reg:5000", "http://auth:5002/token", true, Some("http://auth:5001"), false),
            ("https://lscr.io", "https://ghcr.io/token", false, Some("https://ghcr.io"), true),
            ("https://reg.example", "https://user:pw@reg.example/", false, None, false),
            ("https://reg.example", "file:///etc/passwd", false, None, false),
        ] {
            let verdict = login(url, credentials, configured).permitted(realm);
            assert_eq!(verdict.is_ok(), fine, "{url} {realm}: {verdict:?}");
        }
        let said = login("https://a.example", false, None).permitted("https://b.test/").unwrap_err();
        assert!(said.to_string().contains("set realm"), "{said}");
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
    fn tokens_are_bounded_and_asked_for_once() {
        let login = login("https://reg.example", false, None);
        let asked = std::sync::atomic::AtomicUsize::new(0);
        let ask = |_: &Address, _: Option<&HeaderValue>| {
            asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            Ok(br#"{"token":"t"}"#.to_vec())
        };
        let challenge = || {
            Some(Challenge::Bearer { realm: "https://reg.example/token".into(), service: Some("s s".into()) })
        };
        let deadline = Deadline::after(Duration::from_secs(60));
        for count in 0..TOKENS_MAX + 10 {
            login.answer(challenge(), &format!("scope {count}"), None, deadline, &ask).unwrap();
        }
        assert_eq!(login.state.lock().tokens.len(), TOKENS_MAX);
        // Of long ones fewer are remembered.
        let long = |_: &Address, _: Option<&HeaderValue>| {
            Ok(format!(r#"{{"token":"{}"}}"#, "t".repeat(UPSTREAM_TEXT_BYTES_MAX)).into_bytes())
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
        let address = token_address(
            &Address::parse("https://reg.example/token?x=1").unwrap(),
            &(Some("s s".into()), "repository:a/b:pull".into()),
        );
        assert_eq!(address.target, "/token?x=1&service=s%20s&scope=repository:a/b:pull");
    }
}
