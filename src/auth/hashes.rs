//! The users of a password file in the format of `htpasswd -B`, and the logins that were verified before.
//!
//! bcrypt is slow on purpose: [`LoginAttempt::verify`] takes a tenth of a second on a small board, so the caller chooses the
//! thread. A verified login is remembered by its hash, and [`VerifiedLogins`] never holds more than
//! [`budget::LOGINS_REMEMBERED_MAX`]. A password file with a line that is not understood is refused as a whole.
//!
//! How long an answer takes does not tell who exists: a login of an unknown user is verified against the hash of another
//! one, always the same, and then refused.

use super::BasicCredentials;
use crate::budget;
use crate::oci::{Algorithm, Digest};
use crate::text::Secret;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// The users and their bcrypt hashes.
#[derive(Debug, Default)]
pub struct Users(BTreeMap<String, Secret>);

impl Users {
    /// Parses the text of a password file.
    ///
    /// # Errors
    /// The number of the first line that is not `USER:HASH` with a bcrypt hash, and what is wrong with it.
    pub fn parse(text: &str) -> Result<Users, String> {
        let mut users = BTreeMap::new();
        for (number, line) in text.lines().map(str::trim).enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |problem| format!("{}: {problem}", number + 1);
            let (user, hash) = line.split_once(':').ok_or_else(|| wrong("expected USER:HASH"))?;
            if !["$2y$", "$2a$", "$2b$"].iter().any(|prefix| hash.starts_with(prefix)) {
                return Err(wrong("only bcrypt hashes are supported; make the line with htpasswd -nB USER"));
            }
            users.insert(user.to_owned(), Secret::new(hash.to_owned()));
        }
        Ok(Users(users))
    }

    /// Whether there are no users at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The login that these credentials ask for; `None` if there are no users at all.
    pub fn login(&self, credentials: Arc<BasicCredentials>) -> Option<LoginAttempt> {
        let known = self.0.get(&credentials.user);
        let hash = known.or_else(|| self.stand_in(&credentials.user))?.clone();
        Some(LoginAttempt { known: known.is_some(), credentials, hash })
    }

    /// A hash that costs as much as one of the users', for a user who is none.
    fn stand_in(&self, user: &str) -> Option<&Secret> {
        let name = Digest::of(Algorithm::Sha256, user.as_bytes());
        let at = usize::from_str_radix(&name.hex()[..4], 16).unwrap_or(0);
        self.0.values().nth(at % self.0.len().max(1))
    }
}

/// Credentials, and the hash that the password must match.
#[derive(Debug)]
pub struct LoginAttempt {
    /// The user exists.
    known: bool,
    credentials: Arc<BasicCredentials>,
    hash: Secret,
}

impl LoginAttempt {
    /// The name under which a verified login is remembered. It changes with the password and with the hash.
    pub fn key(&self) -> Digest {
        let BasicCredentials { user, password } = &*self.credentials;
        let text = format!("{user}\0{}\0{}", password.reveal(), self.hash.reveal());
        Digest::of(Algorithm::Sha256, text.as_bytes())
    }

    /// Whether the password is longer than what bcrypt hashes. Every password with the same beginning would be as good.
    pub fn is_too_long(&self) -> bool {
        self.credentials.password.reveal().len() > budget::PASSWORD_BYTES_MAX
    }

    /// Whether the user exists and the password is right. Slow: keeps a core busy.
    pub fn verify(&self) -> bool {
        let matches = bcrypt::verify(self.credentials.password.reveal(), self.hash.reveal());
        matches.unwrap_or(false) && self.known && !self.is_too_long()
    }
}

/// The logins that were verified before, so that bcrypt is paid once and not for every request.
#[derive(Debug, Default)]
pub struct VerifiedLogins(HashSet<Digest>);

impl VerifiedLogins {
    /// Whether the login with this key was verified.
    pub fn contains(&self, key: &Digest) -> bool {
        self.0.contains(key)
    }

    /// Remembers a verified login; when there are too many, all others are forgotten.
    pub fn insert(&mut self, key: Digest) {
        if self.0.len() >= budget::LOGINS_REMEMBERED_MAX {
            self.0.clear();
        }
        self.0.insert(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(users: &Users, user: &str, password: &str) -> Option<LoginAttempt> {
        users.login(Arc::new(BasicCredentials { user: user.into(), password: Secret::new(password.into()) }))
    }

    #[test]
    fn a_password_file_is_understood_or_refused() {
        let hash = bcrypt::hash("carry", 4).unwrap();
        let users = Users::parse(&format!("# users\n\n  board:{hash}  \n")).unwrap();
        assert!(login(&users, "board", "carry").unwrap().verify());
        assert!(!login(&users, "board", "wrong").unwrap().verify());
        // Nobody's login takes a hash to refuse, even with a password that would match it.
        assert!(!login(&users, "nobody", "carry").unwrap().verify());
        assert!(login(&Users::default(), "nobody", "carry").is_none());
        let wrong = |text: &str| Users::parse(text).unwrap_err();
        assert_eq!(wrong("board"), "1: expected USER:HASH");
        let crypt = wrong(&format!("board:{hash}\nold:$apr1$x"));
        assert_eq!(crypt, "2: only bcrypt hashes are supported; make the line with htpasswd -nB USER");
        // A hash that begins like bcrypt's and is none lets nobody in.
        assert!(!login(&Users::parse("board:$2y$nonsense").unwrap(), "board", "").unwrap().verify());
    }

    #[test]
    fn a_password_matches_in_full_or_not_at_all() {
        let longest = "x".repeat(budget::PASSWORD_BYTES_MAX);
        let hash = bcrypt::hash(&longest, 4).unwrap();
        let users = Users::parse(&format!("board:{hash}")).unwrap();
        assert!(login(&users, "board", &longest).unwrap().verify());
        let longer = login(&users, "board", &(longest + "y")).unwrap();
        assert!(longer.is_too_long() && !longer.verify());
        assert!(!format!("{users:?}{longer:?}").contains(&hash), "a hash was shown");
    }

    #[test]
    fn verified_logins_are_told_apart_and_stay_few() {
        let users = Users::parse("a:$2y$x\nb:$2y$x").unwrap();
        let key = |user: &str, password: &str| login(&users, user, password).unwrap().key();
        let mut verified = VerifiedLogins::default();
        verified.insert(key("a", "one"));
        assert!(verified.contains(&key("a", "one")));
        assert!(!verified.contains(&key("a", "two")) && !verified.contains(&key("b", "one")));
        for n in 0..3 * budget::LOGINS_REMEMBERED_MAX {
            verified.insert(key("b", &n.to_string()));
            assert!(verified.contains(&key("b", &n.to_string())));
            assert!(verified.0.len() <= budget::LOGINS_REMEMBERED_MAX);
        }
    }
}
