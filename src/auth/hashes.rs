//! The users of a password file in the format of `htpasswd -B`, and the logins that were verified before.
//!
//! bcrypt is slow on purpose: [`LoginAttempt::verify`] takes a tenth of a second on a small board, so the caller chooses the
//! thread. A verified login is remembered by its hash, and [`VerifiedLogins`] never holds more than
//! [`budget::LOGINS_REMEMBERED_MAX`]. A password file with a line that is not understood is refused as a whole.

use super::BasicCredentials;
use crate::budget;
use crate::oci::{Algorithm, Digest};
use std::collections::{HashMap, HashSet};

/// The users and their bcrypt hashes.
#[derive(Debug, Default)]
pub struct Users(HashMap<String, String>);

impl Users {
    /// Parses the text of a password file.
    ///
    /// # Errors
    /// The number of the first line that is not `USER:HASH` with a bcrypt hash, and what is wrong with it.
    pub fn parse(text: &str) -> Result<Users, String> {
        let mut users = HashMap::new();
        for (number, line) in text.lines().map(str::trim).enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |problem| format!("{}: {problem}", number + 1);
            let (user, hash) = line.split_once(':').ok_or_else(|| wrong("expected USER:HASH"))?;
            if !["$2y$", "$2a$", "$2b$"].iter().any(|prefix| hash.starts_with(prefix)) {
                return Err(wrong("only bcrypt hashes are supported; make the line with htpasswd -nB USER"));
            }
            users.insert(user.to_owned(), hash.to_owned());
        }
        Ok(Users(users))
    }

    /// The login that these credentials ask for, if the user exists.
    pub fn login(&self, credentials: BasicCredentials) -> Option<LoginAttempt> {
        let hash = self.0.get(&credentials.user)?.clone();
        Some(LoginAttempt { credentials, hash })
    }
}

/// BasicCredentials of a user who exists, and the hash that the password must match.
pub struct LoginAttempt {
    credentials: BasicCredentials,
    hash: String,
}

impl LoginAttempt {
    /// The name under which a verified login is remembered. It changes with the password and with the hash.
    pub fn key(&self) -> Digest {
        let BasicCredentials { user, password } = &self.credentials;
        Digest::of(Algorithm::Sha256, format!("{user}\0{password}\0{}", self.hash).as_bytes())
    }

    /// Whether the password is right. Slow: keeps a core busy.
    pub fn verify(&self) -> bool {
        bcrypt::verify(&self.credentials.password, &self.hash).unwrap_or(false)
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
        users.login(BasicCredentials { user: user.into(), password: password.into() })
    }

    #[test]
    fn a_password_file_is_understood_or_refused() {
        let hash = bcrypt::hash("carry", 4).unwrap();
        let users = Users::parse(&format!("# users\n\n  board:{hash}  \n")).unwrap();
        assert!(login(&users, "board", "carry").unwrap().verify());
        assert!(!login(&users, "board", "wrong").unwrap().verify());
        assert!(login(&users, "nobody", "carry").is_none());
        let wrong = |text: &str| Users::parse(text).unwrap_err();
        assert_eq!(wrong("board"), "1: expected USER:HASH");
        let crypt = wrong(&format!("board:{hash}\nold:$apr1$x"));
        assert_eq!(crypt, "2: only bcrypt hashes are supported; make the line with htpasswd -nB USER");
        // A hash that begins like bcrypt's and is none lets nobody in.
        assert!(!login(&Users::parse("board:$2y$nonsense").unwrap(), "board", "").unwrap().verify());
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
