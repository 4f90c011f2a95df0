//! The user name and password of a request: Basic authentication (RFC 7617).
//!
//! A header that is not valid Basic authentication is the same as none.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// A user name and a password, not verified.
#[derive(PartialEq, Eq)]
pub struct BasicCredentials {
    /// The name of the user.
    pub user: String,
    /// The password as the client sent it.
    pub password: String,
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
        Some(BasicCredentials { user: user.to_owned(), password: password.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_valid_basic_headers_are_credentials() {
        let parse =
            |value: &str| BasicCredentials::from_header(value).map(|found| (found.user, found.password));
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
    }
}
