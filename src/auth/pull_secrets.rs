//! Pull secrets: what is remembered of the logins that a registry was asked about, and never the logins themselves.
//!
//! A login is remembered as a keyed hash ([`LoginKey`]), whose key is random and of this process alone. [`ProvenLogins`] says
//! what a registry has shown to a login, or refused it, and for how long that counts; it is bounded, and what is forgotten
//! is asked again. [`slow_hash`] is for the disk: of a secret's HMAC, because tokens are longer than bcrypt reads. Time is
//! the caller's. What cannot be verified is no access.

use super::BasicCredentials;
use crate::budget;
use crate::oci::{Digest, ManifestRef, RegistryName, Repository};
use crate::text::Secret;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::{hmac, rand::SystemRandom};
use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// A login that a registry may have accepted, as a name for tables.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LoginKey([u8; 32]);

/// Makes the names of logins.
pub struct LoginKeys(hmac::Key);

/// What a registry shows to a login: a proof of this is one of nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PullObject {
    /// The registry takes the login; of its content nothing.
    Login(RegistryName),
    /// A manifest, by tag or digest.
    Manifest(Repository, ManifestRef),
    /// A blob.
    Blob(Repository, Digest),
}

impl PullObject {
    /// The registry that is asked.
    pub fn registry(&self) -> &RegistryName {
        match self {
            PullObject::Login(registry) => registry,
            PullObject::Manifest(repository, _) | PullObject::Blob(repository, _) => &repository.registry,
        }
    }

    /// The repository that it is in.
    pub fn repository(&self) -> Option<&Repository> {
        match self {
            PullObject::Login(_) => None,
            PullObject::Manifest(repository, _) | PullObject::Blob(repository, _) => Some(repository),
        }
    }

    /// Its digest, if it is named by one.
    pub fn digest(&self) -> Option<&Digest> {
        match self {
            PullObject::Manifest(_, ManifestRef::Digest(digest)) | PullObject::Blob(_, digest) => {
                Some(digest)
            }
            PullObject::Login(_) | PullObject::Manifest(_, ManifestRef::Tag(_)) => None,
        }
    }
}

impl LoginKeys {
    /// A random key.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn new() -> std::io::Result<LoginKeys> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new());
        key.map(LoginKeys).map_err(|_| std::io::Error::other("the system gives no random numbers"))
    }

    /// The name of a login. `more`: what it depends on besides, such as the hash that it was compared with.
    pub fn of(&self, credentials: &BasicCredentials, more: &[u8]) -> LoginKey {
        // A user name holds no colon, and neither part a control character.
        let parts =
            [credentials.user.as_bytes(), b":", credentials.password.reveal().as_bytes(), b"\0", more];
        LoginKey(sign(&self.0, &parts))
    }
}

fn sign(key: &hmac::Key, parts: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(key);
    parts.iter().for_each(|part| context.update(part));
    let mut tag = [0; 32];
    tag.copy_from_slice(context.sign().as_ref());
    tag
}

/// A login for a repository as its slow hash is made of: as long for every secret, and of no use elsewhere.
pub fn hashed_login(repository: &Repository, credentials: &BasicCredentials) -> Secret {
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"larder kept login 1");
    let name = repository.to_string();
    let (user, password) = (credentials.user.as_bytes(), credentials.password.reveal().as_bytes());
    Secret::new(STANDARD.encode(sign(&key, &[name.as_bytes(), b"\0", user, b"\0", password])))
}

/// A salted hash of a login that is fit for the disk. Slow on purpose.
///
/// # Errors
/// The system gives no random numbers.
pub fn slow_hash(login: &Secret) -> Result<String, String> {
    bcrypt::hash(login.reveal(), budget::KEPT_LOGIN_COST).map_err(|e| e.to_string())
}

/// Whether `hash` is that of this login. Slow as well.
pub fn slow_hash_matches(login: &Secret, hash: &str) -> bool {
    bcrypt::verify(login.reveal(), hash).unwrap_or(false)
}

/// What registries have answered about logins.
#[derive(Default)]
pub struct ProvenLogins {
    shown: Recent<(LoginKey, PullObject)>,
    refused: Recent<(LoginKey, PullObject)>,
}

impl ProvenLogins {
    /// What is known of a login and an object: shown or refused, if the answer still counts.
    pub fn verdict(&self, login: LoginKey, object: &PullObject, now: Instant) -> Option<bool> {
        let key = (login, object.clone());
        let refused = || self.refused.until(&key, now).map(|_| false);
        self.shown.until(&key, now).map(|_| true).or_else(refused)
    }

    /// The registry has shown the object to the login.
    pub fn show(&mut self, login: LoginKey, object: PullObject, now: Instant) {
        self.show_until(login, object, now + budget::PULL_SECRET_TIME, now);
    }

    /// The same of what a manifest names, for as long as that counts.
    pub fn show_until(&mut self, login: LoginKey, object: PullObject, until: Instant, now: Instant) {
        let key = (login, object);
        self.refused.0.remove(&key);
        self.shown.insert(key, until, now, budget::PULL_SECRETS_MAX);
    }

    /// The registry does not show it. `entirely`: it denies the login this repository, of which nothing counts any more.
    pub fn refuse(&mut self, login: LoginKey, object: PullObject, entirely: bool, now: Instant) {
        let key = (login, object);
        self.shown.0.remove(&key);
        if entirely {
            let concerned = |(of, other): &(LoginKey, PullObject)| {
                *of == login
                    && other.registry() == key.1.registry()
                    && other.repository() == key.1.repository()
            };
            self.shown.0.retain(|other, _| !concerned(other));
        }
        self.refused.insert(key, now + budget::PULL_SECRET_PAUSE, now, budget::PULL_SECRETS_REFUSED_MAX);
    }

    /// The manifests of a repository that were shown to the login, and until when that counts. What they name, their
    /// hashes vouch for.
    pub fn manifests(
        &self,
        login: LoginKey,
        repository: &Repository,
        now: Instant,
    ) -> Vec<(Digest, Instant)> {
        let of = |((key, object), until): (&(LoginKey, PullObject), &Instant)| match object {
            PullObject::Manifest(name, ManifestRef::Digest(digest))
                if *key == login && name == repository && *until > now =>
            {
                Some((digest.clone(), *until))
            }
            _ => None,
        };
        let mut found: Vec<_> = self.shown.0.iter().filter_map(of).collect();
        // The newest first: a pull asks for what was named just now.
        found.sort_by_key(|(_, until)| std::cmp::Reverse(*until));
        found.truncate(budget::PULL_SECRET_MANIFESTS_MAX);
        found
    }
}

/// What counts until a time.
struct Recent<K>(HashMap<K, Instant>);

impl<K> Default for Recent<K> {
    fn default() -> Self {
        Recent(HashMap::new())
    }
}

impl<K: Eq + Hash + Clone> Recent<K> {
    fn until(&self, key: &K, now: Instant) -> Option<Instant> {
        self.0.get(key).copied().filter(|until| *until > now)
    }

    /// At most `most` are kept; the one that ends first makes room.
    fn insert(&mut self, key: K, until: Instant, now: Instant, most: usize) {
        if self.0.len() >= most && !self.0.contains_key(&key) {
            self.0.retain(|_, until| *until > now);
            if self.0.len() >= most
                && let Some(first) =
                    self.0.iter().min_by_key(|(_, until)| **until).map(|(key, _)| key.clone())
            {
                self.0.remove(&first);
            }
        }
        self.0.insert(key, until);
    }
}

/// For how long a kept login still counts: `None` if it is over. All in milliseconds of running time.
pub fn grace_left(accepted_ms: u64, now_ms: u64, grace: Duration) -> Option<Duration> {
    // What was accepted in the future belongs to a running time that was lost.
    let age = Duration::from_millis(now_ms.checked_sub(accepted_ms)?);
    grace.checked_sub(age).filter(|left| !left.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(user: &str, password: &str) -> BasicCredentials {
        BasicCredentials { user: user.into(), password: Secret::new(password.into()) }
    }

    fn repository(name: &str) -> Repository {
        Repository::new("reg.example".parse().unwrap(), name.parse().unwrap())
    }

    fn digest(n: u64) -> Digest {
        Digest::of(crate::oci::Algorithm::Sha256, &n.to_le_bytes())
    }

    fn manifest(name: &str, n: u64) -> PullObject {
        PullObject::Manifest(repository(name), ManifestRef::Digest(digest(n)))
    }

    #[test]
    fn logins_are_told_apart_and_differ_in_each_process() {
        let (keys, others) = (LoginKeys::new().unwrap(), LoginKeys::new().unwrap());
        let of = |user: &str, password: &str| keys.of(&login(user, password), b"");
        assert!(of("a", "b:c") == of("a", "b:c") && of("a", "b:c") != of("a", "b"));
        assert!(of("a", "bc") != of("ab", "c") && keys.of(&login("a", "b"), b"x") != of("a", "b"));
        assert!(others.of(&login("a", "b"), b"") != of("a", "b"));
    }

    #[test]
    fn a_proof_is_of_one_login_and_one_object_and_ends() {
        let (keys, mut table, now) = (LoginKeys::new().unwrap(), ProvenLogins::default(), Instant::now());
        let (alice, bob) = (keys.of(&login("alice", "x"), b""), keys.of(&login("bob", "x"), b""));
        table.show(alice, manifest("a/one", 1), now);
        let end = now + budget::PULL_SECRET_TIME;
        assert_eq!(table.verdict(alice, &manifest("a/one", 1), end - Duration::from_millis(1)), Some(true));
        assert_eq!(table.verdict(alice, &manifest("a/one", 1), end), None, "it is asked again");
        for other in
            [manifest("a/one", 2), manifest("a/two", 1), PullObject::Blob(repository("a/one"), digest(1))]
        {
            assert_eq!(table.verdict(alice, &other, now), None, "{other:?}");
        }
        assert_eq!(table.verdict(bob, &manifest("a/one", 1), now), None);
        assert_eq!(table.manifests(alice, &repository("a/one"), now), [(digest(1), end)]);
        assert!(table.manifests(alice, &repository("a/one"), end).is_empty());
        assert!(table.manifests(bob, &repository("a/one"), now).is_empty());
    }

    #[test]
    fn a_denial_ends_all_that_the_login_was_shown_of_the_repository() {
        let (keys, mut table, now) = (LoginKeys::new().unwrap(), ProvenLogins::default(), Instant::now());
        let (alice, bob) = (keys.of(&login("alice", "x"), b""), keys.of(&login("bob", "x"), b""));
        for (who, object) in
            [(alice, manifest("a/one", 1)), (bob, manifest("a/one", 1)), (alice, manifest("a/two", 1))]
        {
            table.show(who, object, now);
        }
        table.refuse(alice, manifest("a/one", 9), false, now);
        assert_eq!(table.verdict(alice, &manifest("a/one", 1), now), Some(true), "one that is not there");
        table.refuse(alice, manifest("a/one", 2), true, now);
        assert_eq!(table.verdict(alice, &manifest("a/one", 1), now), None);
        assert_eq!(table.verdict(alice, &manifest("a/one", 2), now), Some(false));
        assert_eq!(table.verdict(alice, &manifest("a/one", 2), now + budget::PULL_SECRET_PAUSE), None);
        assert_eq!(table.verdict(alice, &manifest("a/two", 1), now), Some(true));
        assert_eq!(table.verdict(bob, &manifest("a/one", 1), now), Some(true));
        table.show(alice, manifest("a/one", 2), now);
        assert_eq!(table.verdict(alice, &manifest("a/one", 2), now), Some(true), "the last answer counts");
    }

    #[test]
    fn the_tables_are_bounded_and_keep_what_came_last() {
        let (keys, mut table, now) = (LoginKeys::new().unwrap(), ProvenLogins::default(), Instant::now());
        let alice = keys.of(&login("alice", "x"), b"");
        for n in 0..2 * budget::PULL_SECRETS_MAX as u64 {
            let now = now + Duration::from_micros(n);
            table.show(alice, manifest("a/one", n), now);
            table.refuse(alice, manifest("a/two", n), false, now);
            assert_eq!(table.verdict(alice, &manifest("a/one", n), now), Some(true));
        }
        assert_eq!(table.shown.0.len(), budget::PULL_SECRETS_MAX);
        assert_eq!(table.refused.0.len(), budget::PULL_SECRETS_REFUSED_MAX);
        let found = table.manifests(alice, &repository("a/one"), now);
        let newest = (0..2 * budget::PULL_SECRETS_MAX as u64).rev().take(budget::PULL_SECRET_MANIFESTS_MAX);
        assert!(found.iter().map(|(digest, _)| digest.clone()).eq(newest.map(digest)));
    }

    #[test]
    fn a_kept_hash_is_of_one_login_for_one_repository() {
        let (long, one) = ("t".repeat(1_000), repository("a/one"));
        let of =
            |name: &str, user: &str, password: &str| hashed_login(&repository(name), &login(user, password));
        let hash = slow_hash(&hashed_login(&one, &login("alice", &long))).unwrap();
        assert!(slow_hash_matches(&of("a/one", "alice", &long), &hash));
        // The last differs beyond what bcrypt reads of a password.
        let others = [
            ("a/two", "alice", long.clone()),
            ("a/one", "bob", long.clone()),
            ("a/one", "alice", long.clone() + "u"),
        ];
        for (name, user, password) in others {
            assert!(!slow_hash_matches(&of(name, user, &password), &hash), "{name} {user}");
        }
        let alice = of("a/one", "alice", &long);
        assert!(!slow_hash_matches(&alice, "$2b$nonsense") && !slow_hash_matches(&alice, ""));
        assert_ne!(hash, slow_hash(&alice).unwrap(), "salted");
    }

    #[test]
    fn grace_is_counted_from_the_last_answer() {
        let hour = Duration::from_secs(3_600);
        assert_eq!(grace_left(1_000, 1_000, hour), Some(hour));
        assert_eq!(grace_left(1_000, 3_600_999, hour), Some(Duration::from_millis(1)));
        assert_eq!(grace_left(1_000, 3_601_000, hour), None);
        assert_eq!(grace_left(1_000, 1_000, Duration::ZERO), None);
        assert_eq!(grace_left(2_000, 1_000, hour), None, "the running time was lost");
    }
}
