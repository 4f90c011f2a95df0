//! The last login that a registry accepted for each repository and user, for when it cannot be asked (`auth.offline_grace`).
//!
//! Kept is a slow hash, on the disk too ([`crate::store::KeptLogin`]), until the grace is over in running time or the registry
//! denies that very login; a wrong password for the same user removes nothing. Without a grace nothing is kept, and what was is
//! removed. Invariants: no more than [`budget::KEPT_LOGINS_MAX`] entries; the secret itself is nowhere after its request.
//! A disk that takes no change is logged; memory is what counts until the end.

use super::super::context::Context;
use super::concerns;
use crate::auth::{
    BasicCredentials, LoginKey, PullObject, grace_left, hashed_login, slow_hash, slow_hash_matches,
};
use crate::budget;
use crate::oci::Repository;
use crate::store::KeptLogin;
use crate::sync::{self, Mutex};
use std::sync::Arc;
use std::time::Duration;

/// The kept logins.
pub(super) struct KeptLogins {
    context: Arc<Context>,
    state: Mutex<KeptState>,
    /// Held while the file is written, so that the newest state comes last.
    writing: Mutex<()>,
}

#[derive(Default)]
struct KeptState {
    entries: Vec<Entry>,
    /// The file is not as the entries are.
    unwritten: bool,
    /// Logins whose hash is being made; one that is denied meanwhile is not kept.
    begun: Vec<(LoginKey, Repository)>,
}

struct Entry {
    login: KeptLogin,
    /// The login, if this process has seen it.
    key: Option<LoginKey>,
}

impl KeptState {
    fn find(&mut self, user: &str, repository: &Repository) -> Option<&mut Entry> {
        self.entries
            .iter_mut()
            .find(|entry| entry.login.user == user && entry.login.repository == *repository)
    }
}

impl KeptLogins {
    pub(super) fn open(context: Arc<Context>) -> KeptLogins {
        let kept = KeptLogins { context, state: Mutex::default(), writing: Mutex::default() };
        let entries = if kept.grace().is_zero() { Vec::new() } else { kept.context.store.kept_logins() };
        let entries = entries.into_iter().map(|login| Entry { login, key: None }).collect();
        *kept.state.lock() = KeptState { entries, unwritten: kept.grace().is_zero(), begun: Vec::new() };
        kept.expire();
        kept
    }

    fn grace(&self) -> Duration {
        let auth = &self.context.config.now().auth;
        if auth.pull_secrets { auth.offline_grace } else { Duration::ZERO }
    }

    /// Whether this is the last login that was accepted for the repository, and that counts still.
    pub(super) async fn knows(
        self: &Arc<Self>,
        key: LoginKey,
        credentials: &Arc<BasicCredentials>,
        object: &PullObject,
    ) -> bool {
        let (kept, credentials, object) = (Arc::clone(self), Arc::clone(credentials), object.clone());
        sync::blocking(move || kept.knows_now(key, &credentials, &object)).await.unwrap_or(false)
    }

    fn knows_now(&self, key: LoginKey, credentials: &BasicCredentials, object: &PullObject) -> bool {
        self.expire();
        let found = {
            let state = self.state.lock();
            let is_of = |entry: &&Entry| {
                entry.login.user == credentials.user && concerns(&entry.login.repository, object)
            };
            if state.entries.iter().filter(is_of).any(|entry| entry.key == Some(key)) {
                return true;
            }
            let own = state.entries.iter().find(|entry| is_of(entry) && entry.key.is_none());
            // Who is unknown is compared with somebody else's hash, so that the time does not tell who is known.
            own.or(state.entries.first()).map(|entry| (entry.login.clone(), own.is_some()))
        };
        let Some((login, own)) = found else { return false };
        let matches = slow_hash_matches(&hashed_login(&login.repository, credentials), &login.hash) && own;
        if matches && let Some(entry) = self.state.lock().find(&login.user, &login.repository) {
            entry.key = Some(key).filter(|_| entry.login.hash == login.hash);
        }
        matches
    }

    /// The registry has accepted a login for a repository. The hash is made in the background.
    pub(super) fn accepted(
        self: &Arc<Self>,
        key: LoginKey,
        credentials: &BasicCredentials,
        repository: &Repository,
    ) {
        if self.grace().is_zero() || credentials.user.len() > budget::KEPT_USER_BYTES_MAX {
            return;
        }
        let accepted_ms = self.context.store.served_ms();
        let mut state = self.state.lock();
        if let Some(entry) = state.find(&credentials.user, repository)
            && entry.key == Some(key)
        {
            entry.login.accepted_ms = accepted_ms;
            state.unwritten = true;
            return;
        }
        if state.begun.len() >= budget::KEPT_LOGINS_MAX {
            return;
        }
        state.begun.push((key, repository.clone()));
        drop(state);
        // Of the secret no more than that goes beyond its request.
        let login = hashed_login(repository, credentials);
        let (kept, user, repository) = (Arc::clone(self), credentials.user.clone(), repository.clone());
        let made = sync::in_background(move || {
            let hash = slow_hash(&login);
            let entry = |hash| KeptLogin { repository, user, hash, accepted_ms };
            kept.insert(key, hash.map(entry));
        });
        if let Err(none) = made {
            self.insert(key, Err(none.to_string()));
        }
    }

    /// Keeps a login whose hash was begun and now is made, or not; the one that was accepted first makes room.
    fn insert(&self, key: LoginKey, made: Result<KeptLogin, String>) {
        let mut state = self.state.lock();
        let login = match made {
            Ok(login) => login,
            Err(problem) => {
                state.begun.retain(|(begun, _)| *begun != key);
                return log::warn!("a login is not kept for offline_grace: {problem}");
            }
        };
        let Some(at) = state.begun.iter().position(|begun| *begun == (key, login.repository.clone())) else {
            return;
        };
        state.begun.swap_remove(at);
        let same =
            |other: &Entry| other.login.user == login.user && other.login.repository == login.repository;
        state.entries.retain(|other| !same(other));
        if state.entries.len() >= budget::KEPT_LOGINS_MAX {
            let first = state.entries.iter().enumerate().min_by_key(|(_, other)| other.login.accepted_ms);
            if let Some((first, _)) = first {
                state.entries.swap_remove(first);
            }
        }
        state.entries.push(Entry { login, key: Some(key) });
        state.unwritten = true;
        drop(state);
        self.flush();
    }

    /// The registry has denied a login a repository.
    pub(super) fn denied(&self, key: LoginKey, credentials: &BasicCredentials, repository: &Repository) {
        let found = {
            let mut state = self.state.lock();
            state.begun.retain(|(begun, name)| *begun != key || name != repository);
            state.find(&credentials.user, repository).map(|entry| (entry.key, entry.login.hash.clone()))
        };
        let Some((known, hash)) = found else { return };
        let is_it = match known {
            Some(known) => known == key,
            None => slow_hash_matches(&hashed_login(repository, credentials), &hash),
        };
        if is_it {
            let mut state = self.state.lock();
            state.entries.retain(|entry| entry.login.hash != hash);
            state.unwritten = true;
            drop(state);
            self.flush();
        }
    }

    /// Removes what is over, and writes down what is not yet.
    pub(super) fn expire(&self) {
        let (now_ms, grace) = (self.context.store.served_ms(), self.grace());
        let mut state = self.state.lock();
        let before = state.entries.len();
        state.entries.retain(|entry| grace_left(entry.login.accepted_ms, now_ms, grace).is_some());
        state.unwritten |= state.entries.len() != before;
        drop(state);
        self.flush();
    }

    /// Writes the file if it is not as the entries are.
    pub(super) fn flush(&self) {
        let _turn = self.writing.lock();
        let logins: Vec<KeptLogin> = {
            let mut state = self.state.lock();
            if !std::mem::take(&mut state.unwritten) {
                return;
            }
            state.entries.iter().map(|entry| entry.login.clone()).collect()
        };
        if let Err(problem) = self.context.store.keep_logins(&logins) {
            // An entry that is removed must not come back, so it is tried again.
            self.state.lock().unwritten = true;
            log::warn!("the kept logins of offline_grace could not be written: {problem}");
        }
    }
}
