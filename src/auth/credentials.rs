//! The user name and password of a request: Basic authentication (RFC 7617).
//!
//! A header that is not valid Basic authentication is the same as none. Neither part may hold control characters (RFC
//! 7617, section 2): bcrypt takes a NUL for the end, so that `a`, NUL, `a` would be as good as `a`.

use crate::text::Secret;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// A user name and a password, not verified.
#[derive(Debug, PartialEq, Eq)]
pub struct BasicCredentials {
    /// The name of the user.
    pub user: String,
    /// The password as the client sent it.
    pub password: Secret,
}

impl BasicCredentials {
    /// Parses the value of an `Authorization` header.
    pub fn from_header(value: &str) -> Option<BasicCredentials> {
        let (scheme, encoded) = value.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let text = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
        let (user, password) = text.split_once(':')?;
        if text.contains(char::is_control) {
            return None;
        }
        Some(BasicCredentials { user: user.to_owned(), password: Secret::new(password.to_owned()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_valid_basic_headers_are_credentials() {
        let parse = |value: &str| {
            BasicCredentials::from_header(value).map(|found| (found.user, found.password.reveal().clone()))
        };
        let board = Some(("board".to_owned(), "carry".to_owned()));
        assert_eq!(parse("Basic Ym9hcmQ6Y2Fycnk="), board);
        assert_eq!(parse("bAsIc  Ym9hcmQ6Y2Fycnk= "), board);
        // The password may hold colons: "a:b:c".
        assert_eq!(parse("Basic YTpiOmM="), Some(("a".to_owned(), "b:c".to_owned())));
        for value in
            ["", "Basic", "Basic ", "Bearer Ym9hcmQ6Y2Fycnk=", "Basic Ym9hcmQ", "Basic ?", "Basic //8="]
        {
            assert_eq!(parse(value), None, "{value}");
        }
        let nul = STANDARD.encode("board:carry\0carry");
        assert_eq!(parse(&format!("Basic {nul}")), None);
    }
}
