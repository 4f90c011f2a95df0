//! What a token is asked for: the realm, service and scope that an upstream states, and ours only where it states none.
//!
//! A registry that namespaces its upstreams grants nothing but the scope that it stated, so that what it stated for which
//! question is remembered. Invariant: both are bounded; what is forgotten costs one more 401.

use super::address::{Address, query_value};
use crate::budget::{TOKENS_BYTES_MAX, TOKENS_MAX};
use std::collections::HashMap;

/// What a token server is asked, and so what its token is for.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct TokenRequest {
    pub realm: Address,
    pub service: Option<String>,
    /// One or more, with spaces between them; a login alone has none.
    pub scope: String,
}

impl TokenRequest {
    /// Where and how it is asked: each scope is a parameter of its own.
    pub fn address(&self) -> Address {
        let scopes = self.scope.split_ascii_whitespace().map(|scope| ("scope", scope));
        let service = self.service.iter().map(|service| ("service", service.as_str()));
        let mut target = self.realm.target.clone();
        for (name, value) in service.chain(scopes) {
            target.push(if target.contains('?') { '&' } else { '?' });
            target.push_str(&format!("{name}={}", query_value(value)));
        }
        Address { origin: self.realm.origin.clone(), target }
    }

    /// Bytes of its text.
    pub fn bytes(&self) -> usize {
        let service = self.service.as_ref().map_or(0, String::len);
        self.realm.origin.host.len() + self.realm.target.len() + service + self.scope.len()
    }
}

/// The scopes that an upstream has stated for ours.
#[derive(Default)]
pub(super) struct StatedScopes {
    by_own: HashMap<String, String>,
    bytes: usize,
    /// It states others than ours, so that ours are worth nothing for a repository that it has not stated one for.
    others: bool,
}

impl StatedScopes {
    /// The scope to ask for after a challenge to a question whose own scope is `own`.
    pub fn learn(&mut self, own: &str, stated: Option<&str>) -> String {
        let scope = stated.unwrap_or(own);
        // A login alone has no scope of its own that another one could differ from.
        self.others |= scope != own && !own.is_empty();
        if self.others || scope != own {
            self.bytes += own.len() + scope.len();
            if self.by_own.len() >= TOKENS_MAX || self.bytes > TOKENS_BYTES_MAX {
                self.by_own.clear();
                self.bytes = own.len() + scope.len();
            }
            self.by_own.insert(own.to_owned(), scope.to_owned());
        }
        scope.to_owned()
    }

    /// The scope to ask for before a challenge; `None`: the upstream will state it.
    pub fn find(&self, own: &str) -> Option<String> {
        let known = self.by_own.get(own).cloned();
        known.or_else(|| (!self.others || own.is_empty()).then(|| own.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "repository:a/b:pull";

    #[test]
    fn each_stated_parameter_is_sent_as_stated() {
        let asked = |realm: &str, service: Option<&str>, scope: &str| {
            let realm = Address::parse(realm).unwrap();
            TokenRequest { realm, service: service.map(str::to_owned), scope: scope.into() }.address().target
        };
        for (realm, service, scope, target) in [
            (
                "https://r.example/token?x=1",
                Some("s s"),
                OWN,
                "/token?x=1&service=s%20s&scope=repository:a/b:pull",
            ),
            (
                "https://r.example/token",
                None,
                "a:b:pull  c:d:pull,push",
                "/token?scope=a:b:pull&scope=c:d:pull%2Cpush",
            ),
            ("https://r.example/token", Some("s&scope=x"), "", "/token?service=s%26scope%3Dx"),
            ("https://r.example/token", None, "", "/token"),
        ] {
            assert_eq!(asked(realm, service, scope), target);
        }
    }

    #[test]
    fn ours_stands_in_only_where_nothing_is_stated() {
        let mut scopes = StatedScopes::default();
        assert_eq!(scopes.find(OWN).as_deref(), Some(OWN));
        assert_eq!(scopes.learn("", Some("registry:catalog:*")), "registry:catalog:*");
        assert_eq!((scopes.learn(OWN, None), scopes.learn(OWN, Some(OWN))), (OWN.into(), OWN.into()));
        assert_eq!(scopes.find("repository:c:pull").as_deref(), Some("repository:c:pull"));
        assert_eq!(scopes.learn(OWN, Some("repository:proxy/a/b:pull")), "repository:proxy/a/b:pull");
        assert_eq!(scopes.find(OWN).as_deref(), Some("repository:proxy/a/b:pull"));
        assert_eq!(scopes.find("repository:c:pull"), None, "it will state that one too");
        assert_eq!(scopes.find("").as_deref(), Some("registry:catalog:*"));
        assert_eq!(scopes.learn(OWN, None), OWN, "what it states last counts");
        assert_eq!(scopes.find(OWN).as_deref(), Some(OWN));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut scopes = StatedScopes::default();
        for n in 0..3 * TOKENS_MAX {
            scopes.learn(&format!("own {n}"), Some(&"x".repeat(2_000)));
            let held: usize = scopes.by_own.iter().map(|(own, stated)| own.len() + stated.len()).sum();
            assert!(scopes.by_own.len() <= TOKENS_MAX && held <= TOKENS_BYTES_MAX);
            assert!(scopes.find(&format!("own {n}")).is_some_and(|scope| scope.len() == 2_000));
        }
    }
}
