//! Realms: where a token may be asked for, and whom a token server may send to.
//!
//! A realm is in the upstream's own domain, or the owner has written it down. Credentials go to the origin that the upstream
//! named, or to the one that the owner did, and not from https to plain http.

use super::address::{Address, HttpOrigin, same_owner};
use super::failure::Failure;
use super::token::{AskRealm, EndpointLogin, RealmAnswer};
use crate::budget::REDIRECTS_MAX;
use crate::oci::quoted;
use ureq::http::HeaderValue;

impl EndpointLogin {
    /// The realm as an address, if a token may be asked for there.
    pub(super) fn permitted(&self, realm: &str) -> Result<Address, Failure> {
        let address = Address::parse(realm).map_err(|why| {
            Failure::wrong(
                &self.own.authority(),
                format!("names {} as its token server: {why}", quoted(realm)),
            )
        })?;
        self.permit(&address.origin)?;
        Ok(address)
    }

    /// Whether a token may be asked for there.
    fn permit(&self, realm: &HttpOrigin) -> Result<(), Failure> {
        let wrong = |message: String| Err(Failure::wrong(&self.own.authority(), message));
        let chosen = self.realm.as_ref() == Some(realm);
        if !chosen && !same_owner(&self.own.host, &realm.host) {
            return wrong(format!(
                "names {} as its token server, which is not its own domain; if that is right, set realm to it",
                quoted(&realm.to_string())
            ));
        }
        if self.basic.is_some() && self.own.https && !realm.https {
            return wrong("has its token server on plain http, where credentials are not sent".to_owned());
        }
        Ok(())
    }

    /// Asks the token server, and whom it sends to: nobody but who may be a realm, and never from https to plain http. The
    /// credentials stay with the origin that the upstream named, or go to the one that the owner did.
    pub(super) fn ask_realm(
        &self,
        first: &Address,
        mut credentials: Option<&HeaderValue>,
        ask: AskRealm,
    ) -> Result<Vec<u8>, Failure> {
        let mut address = first.clone();
        for _ in 0..=REDIRECTS_MAX {
            let location = match ask(&address, credentials)? {
                RealmAnswer::Token(body) => return Ok(body),
                RealmAnswer::Moved(location) => location,
            };
            let wrong = |message: String| Failure::wrong(&address.origin.authority(), message);
            let to = address.join(&location).map_err(|why| {
                wrong(format!("the token server's redirect cannot be followed: {}", quoted(&why)))
            })?;
            if address.origin.https && !to.origin.https {
                return Err(wrong("the token server redirects from https to plain http".to_owned()));
            }
            self.permit(&to.origin)?;
            if to.origin != address.origin && self.realm.as_ref() != Some(&to.origin) {
                credentials = None;
            }
            address = to;
        }
        let message = format!("the token server sends more than {REDIRECTS_MAX} redirects");
        Err(Failure::wrong(&first.origin.authority(), message))
    }
}

#[cfg(test)]
mod tests {
    use super::super::challenge::Challenge;
    use super::super::token::tests::login;
    use super::super::wire::Deadline;
    use super::*;
    use crate::sync::Mutex;
    use std::time::Duration;

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

    /// Asks `login` with `credentials` for a token at a realm that answers these, first to last; whom it asks, with `+` where
    /// it sends the credentials.
    fn led(
        url: &str,
        credentials: bool,
        configured: Option<&str>,
        locations: &[&str],
    ) -> (Vec<String>, bool) {
        let login = login(url, credentials, configured);
        let asked = Mutex::new(Vec::new());
        let ask = |address: &Address, sent: Option<&HeaderValue>| {
            let mut asked = asked.lock();
            asked.push(format!("{address}{}", if sent.is_some() { "+" } else { "" }));
            Ok(match locations.get(asked.len() - 1) {
                Some(location) => RealmAnswer::Moved((*location).to_owned()),
                None => RealmAnswer::Token(br#"{"token":"t"}"#.to_vec()),
            })
        };
        let challenge = Challenge::Bearer { realm: format!("{url}/t"), service: None, scope: None };
        let deadline = Deadline::after(Duration::from_secs(60));
        let answer = login.answer(Some(challenge), "", None, deadline, &ask);
        (std::mem::take(&mut *asked.lock()), answer.is_ok())
    }

    #[test]
    fn a_realm_moves_where_a_realm_may_be_and_the_credentials_stay() {
        const REG: &str = "https://registry.example";
        let same = ["https://registry.example/t+", "https://registry.example/new?a=b+"];
        assert_eq!(led(REG, true, None, &["/new?a=b"]), (same.map(str::to_owned).into(), true));
        for (locations, asked, fine) in [
            (vec!["https://login.registry.example/t"], vec!["https://login.registry.example/t"], true),
            (
                vec!["https://registry.example:8443/t", "https://registry.example/u"],
                vec!["https://registry.example:8443/t", "https://registry.example/u"],
                true,
            ),
            (
                vec!["//auth.registry.example/t", "x"],
                vec!["https://auth.registry.example/t", "https://auth.registry.example/x"],
                true,
            ),
            (vec!["https://other.test/t"], vec![], false),
            (vec!["http://registry.example/t"], vec![], false),
            (vec!["ftp://registry.example/t"], vec![], false),
            (vec!["https://u:p@registry.example/t"], vec![], false),
        ] {
            for credentials in [true, false] {
                let first =
                    if credentials { "https://registry.example/t+" } else { "https://registry.example/t" };
                let expected: Vec<&str> = std::iter::once(first).chain(asked.iter().copied()).collect();
                assert_eq!(
                    led(REG, credentials, None, &locations),
                    (expected.iter().map(|s| s.to_string()).collect(), fine)
                );
            }
        }
        // Who the owner named gets the credentials.
        let (asked, fine) = led(REG, true, Some("https://sso.test"), &["https://sso.test/t"]);
        assert!(fine && asked[1] == "https://sso.test/t+", "{asked:?}");
        let (asked, fine) = led(REG, true, None, &["/t"; 100]);
        assert!(!fine && asked.len() == REDIRECTS_MAX + 1, "{asked:?}");
    }
}
