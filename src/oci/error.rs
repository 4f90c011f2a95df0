//! The error codes of the distribution specification and the JSON body that carries them (spec.md, "Error Codes").

/// An error code a client can be shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorCode {
    /// The blob is unknown.
    BlobUnknown,
    /// The digest is not one.
    DigestInvalid,
    /// The manifest is not well formed.
    ManifestInvalid,
    /// The manifest is unknown.
    ManifestUnknown,
    /// The repository name is not one.
    NameInvalid,
    /// The repository, or its registry, is not known here.
    NameUnknown,
    /// Credentials are needed.
    Unauthorized,
    /// The credentials do not suffice.
    Denied,
    /// The operation does not exist here.
    Unsupported,
    /// The client should come back later.
    TooManyRequests,
    /// The upstream cannot be asked. The specification has no code for it; clients print the message.
    Unavailable,
}

impl ErrorCode {
    /// The code as it stands in the body.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorCode::BlobUnknown => "BLOB_UNKNOWN",
            ErrorCode::DigestInvalid => "DIGEST_INVALID",
            ErrorCode::ManifestInvalid => "MANIFEST_INVALID",
            ErrorCode::ManifestUnknown => "MANIFEST_UNKNOWN",
            ErrorCode::NameInvalid => "NAME_INVALID",
            ErrorCode::NameUnknown => "NAME_UNKNOWN",
            ErrorCode::Unauthorized => "UNAUTHORIZED",
            ErrorCode::Denied => "DENIED",
            ErrorCode::Unsupported => "UNSUPPORTED",
            ErrorCode::TooManyRequests => "TOOMANYREQUESTS",
            ErrorCode::Unavailable => "UNAVAILABLE",
        }
    }
}

/// The body of an error answer.
pub fn error_body(code: ErrorCode, message: &str) -> String {
    serde_json::json!({ "errors": [{ "code": code.as_str(), "message": message }] }).to_string()
}
