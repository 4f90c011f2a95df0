//! What a client asks for on a condition, and which part it asks for (RFC 9110, 13 and 14). Pure.
//!
//! The one validator of content is its ETag, the digest in quotation marks; no content has a date. So `If-Match`,
//! `If-None-Match` and `If-Range` compare with that, and what is said of dates is never met (13.2.2 lets the ETag go
//! first). The caller judges after it knows what it would send and to whom. A condition that cannot be parsed is not
//! met; a range that cannot is ignored or refused, never guessed.

use hyper::header::{self, HeaderMap, HeaderName};

/// What the conditions of a request come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Precondition {
    /// The answer is as without them.
    Send,
    /// The client has it: 304.
    NotModified,
    /// It is not what the client means: 412.
    Failed,
}

/// Judges the conditions of a GET or HEAD of content with this ETag, in the order of RFC 9110, 13.2.2.
pub(super) fn judge(headers: &HeaderMap, etag: &[u8]) -> Precondition {
    if headers.contains_key(header::IF_MATCH) && !names(headers, &header::IF_MATCH, etag, false) {
        return Precondition::Failed;
    }
    if names(headers, &header::IF_NONE_MATCH, etag, true) {
        Precondition::NotModified
    } else {
        Precondition::Send
    }
}

/// Whether a list of ETags, which may have several lines, names this one or is `*`. `weakly`: one that is marked as
/// weak may name it too (RFC 9110, 8.8.3.2).
fn names(headers: &HeaderMap, name: &HeaderName, etag: &[u8], weakly: bool) -> bool {
    headers.get_all(name).iter().any(|value| {
        let value = value.as_bytes();
        value.trim_ascii() == b"*" || EntityTags(value).any(|(weak, tag)| tag == etag && (weakly || !weak))
    })
}

/// The entity tags of a list (RFC 9110, 8.8.3): whether each is weak, and the rest of it with its quotation marks. It ends
/// at what is none. A tag may hold commas, and no backslash escapes in it.
struct EntityTags<'a>(&'a [u8]);

impl<'a> Iterator for EntityTags<'a> {
    type Item = (bool, &'a [u8]);

    fn next(&mut self) -> Option<(bool, &'a [u8])> {
        let start = self.0.iter().position(|byte| !b", \t".contains(byte))?;
        let rest = &self.0[start..];
        let (weak, rest) = rest.strip_prefix(b"W/").map_or((false, rest), |rest| (true, rest));
        let end = rest.strip_prefix(b"\"")?.iter().position(|byte| *byte == b'"')? + 2;
        self.0 = &rest[end..];
        Some((weak, &rest[..end]))
    }
}

/// What part of the content a request asks for, before its size is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ranges {
    /// All of it: there is no range, or one that may be ignored.
    Whole,
    /// Parts, in the order of the request.
    Parts(Vec<RangeSpec>),
    /// Something that is no range.
    Invalid,
}

/// One range of a request (RFC 9110, 14.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RangeSpec {
    /// From a byte to another one, or to the end.
    From(u64, Option<u64>),
    /// So many bytes at the end.
    Last(u64),
}

/// What a range means for a body of some size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ByteRange {
    /// The complete body.
    Whole,
    /// From the first to the last byte, both included.
    Part(u64, u64),
    /// Nothing of the body is in the range.
    Unsatisfiable,
}

/// The range that a GET of content with this ETag asks for: none where `If-Range` names something else (RFC 9110, 13.1.5:
/// a weak tag and a date never match).
pub(super) fn ranges(headers: &HeaderMap, etag: &[u8]) -> Ranges {
    let Some(value) = headers.get(header::RANGE) else { return Ranges::Whole };
    if headers.get(header::IF_RANGE).is_some_and(|wanted| wanted.as_bytes().trim_ascii() != etag) {
        return Ranges::Whole;
    }
    value.to_str().map_or(Ranges::Whole, Ranges::parse)
}

impl Ranges {
    fn parse(value: &str) -> Ranges {
        let Some((unit, set)) = value.trim().split_once('=') else { return Ranges::Whole };
        if !unit.eq_ignore_ascii_case("bytes") {
            return Ranges::Whole;
        }
        let specs = set.split(',').map(str::trim).filter(|spec| !spec.is_empty());
        let specs: Option<Vec<RangeSpec>> = specs.map(RangeSpec::parse).collect();
        specs.filter(|specs| !specs.is_empty()).map_or(Ranges::Invalid, Ranges::Parts)
    }

    /// What is to be sent of `total` bytes. Several ranges that are one piece are answered as one; else the answer is the
    /// complete body, which is allowed and costs no buffers (RFC 9110, 14.2 and 15.3.7.2).
    pub(super) fn of(&self, total: u64) -> ByteRange {
        let specs = match self {
            Ranges::Whole => return ByteRange::Whole,
            Ranges::Invalid => return ByteRange::Unsatisfiable,
            Ranges::Parts(specs) => specs,
        };
        let mut parts: Vec<(u64, u64)> = specs.iter().filter_map(|spec| spec.of(total)).collect();
        parts.sort_unstable();
        let mut parts = parts.into_iter();
        let Some((first, mut last)) = parts.next() else { return ByteRange::Unsatisfiable };
        for (next, end) in parts {
            if next > last.saturating_add(1) {
                return ByteRange::Whole;
            }
            last = last.max(end);
        }
        ByteRange::Part(first, last)
    }
}

impl RangeSpec {
    fn parse(spec: &str) -> Option<RangeSpec> {
        let (first, last) = spec.split_once('-')?;
        let (first, last) = (first.trim(), last.trim());
        match (first.is_empty(), last.is_empty()) {
            (true, true) => None,
            (true, false) => Some(RangeSpec::Last(number(last)?)),
            (false, true) => Some(RangeSpec::From(number(first)?, None)),
            (false, false) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(RangeSpec::From(first, Some(last)))
            }
        }
    }

    /// The bytes that it means of `total`, if there are any.
    fn of(self, total: u64) -> Option<(u64, u64)> {
        let end = total.checked_sub(1)?;
        match self {
            RangeSpec::From(first, last) => {
                (first <= end).then(|| (first, last.map_or(end, |last| last.min(end))))
            }
            RangeSpec::Last(bytes) => (bytes > 0).then(|| (total.saturating_sub(bytes), end)),
        }
    }
}

/// Digits alone; what is too large is the largest number.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    const ETAG: &[u8] = b"\"sha256:abc\"";

    fn headers(lines: &[(HeaderName, &str)]) -> HeaderMap {
        let lines = lines.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()));
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, value);
        }
        headers
    }

    #[test]
    fn what_the_client_has_is_not_sent_again() {
        for (value, verdict) in [
            ("\"sha256:abc\"", Precondition::NotModified),
            ("W/\"sha256:abc\"", Precondition::NotModified),
            ("*", Precondition::NotModified),
            (" * ", Precondition::NotModified),
            ("\"x\", W/\"y,\\\" ,\"sha256:abc\"", Precondition::NotModified),
            (",, \"sha256:abc\",", Precondition::NotModified),
            ("\"sha256:abd\"", Precondition::Send),
            ("\"x\"", Precondition::Send),
            ("sha256:abc", Precondition::Send),
            ("\"sha256:abc", Precondition::Send),
            ("w/\"sha256:abc\"", Precondition::Send),
            ("\"a,\"sha256:abc\",b\"", Precondition::Send),
            ("", Precondition::Send),
        ] {
            assert_eq!(judge(&headers(&[(header::IF_NONE_MATCH, value)]), ETAG), verdict, "{value}");
        }
        let lines = [(header::IF_NONE_MATCH, "\"x\""), (header::IF_NONE_MATCH, "\"sha256:abc\"")];
        assert_eq!(judge(&headers(&lines), ETAG), Precondition::NotModified);
        // Dates are not looked at.
        let date = (header::IF_MODIFIED_SINCE, "Sat, 29 Oct 2050 19:43:31 GMT");
        assert_eq!(judge(&headers(std::slice::from_ref(&date)), ETAG), Precondition::Send);
        assert_eq!(judge(&headers(&[date, (header::IF_NONE_MATCH, "\"x\"")]), ETAG), Precondition::Send);
    }

    #[test]
    fn what_the_client_means_is_what_it_gets() {
        for (value, verdict) in [
            ("\"sha256:abc\"", Precondition::Send),
            ("*", Precondition::Send),
            ("\"x\", \"sha256:abc\"", Precondition::Send),
            ("W/\"sha256:abc\"", Precondition::Failed),
            ("\"x\"", Precondition::Failed),
        ] {
            assert_eq!(judge(&headers(&[(header::IF_MATCH, value)]), ETAG), verdict, "{value}");
        }
        let both = [(header::IF_NONE_MATCH, "*"), (header::IF_MATCH, "\"x\"")];
        assert_eq!(judge(&headers(&both), ETAG), Precondition::Failed);
    }

    #[test]
    fn a_range_of_something_else_is_all_of_it() {
        for (value, part) in [
            ("\"sha256:abc\"", true),
            ("W/\"sha256:abc\"", false),
            ("\"sha256:abd\"", false),
            ("Sat, 29 Oct 1994 19:43:31 GMT", false),
            ("*", false),
        ] {
            let lines = [(header::RANGE, "bytes=0-0"), (header::IF_RANGE, value)];
            let expected = if part { ByteRange::Part(0, 0) } else { ByteRange::Whole };
            assert_eq!(ranges(&headers(&lines), ETAG).of(9), expected, "{value}");
        }
        assert_eq!(ranges(&headers(&[(header::IF_RANGE, "\"x\"")]), ETAG), Ranges::Whole);
    }

    #[test]
    fn ranges_mean_bytes() {
        for (value, total, expected) in [
            ("bytes=500-1499", 2000, ByteRange::Part(500, 1499)),
            ("bytes=500-", 2000, ByteRange::Part(500, 1999)),
            ("bytes=-500", 2000, ByteRange::Part(1500, 1999)),
            ("bytes=-5000", 2000, ByteRange::Part(0, 1999)),
            ("bytes=1000-5000", 2000, ByteRange::Part(1000, 1999)),
            ("bytes=0-0", 2000, ByteRange::Part(0, 0)),
            ("bytes=0-99999999999999999999999", 2000, ByteRange::Part(0, 1999)),
            ("Bytes=0-0", 2000, ByteRange::Part(0, 0)),
            ("bytes=500-0", 2000, ByteRange::Unsatisfiable),
            ("bytes=5000-10000", 2000, ByteRange::Unsatisfiable),
            ("bytes=2000-", 2000, ByteRange::Unsatisfiable),
            ("bytes=-0", 2000, ByteRange::Unsatisfiable),
            ("bytes=-", 2000, ByteRange::Unsatisfiable),
            ("bytes=x-y", 2000, ByteRange::Unsatisfiable),
            ("bytes=", 2000, ByteRange::Unsatisfiable),
            ("bytes=+1-2", 2000, ByteRange::Unsatisfiable),
            ("bytes=0-", 0, ByteRange::Unsatisfiable),
            ("bytes=-1", 0, ByteRange::Unsatisfiable),
            ("bytes=0-1,3-4", 2000, ByteRange::Whole),
            ("bytes=0-1,2-4", 2000, ByteRange::Part(0, 4)),
            ("bytes=5-9, 0-6,", 2000, ByteRange::Part(0, 9)),
            ("bytes=0-1,5000-", 2000, ByteRange::Part(0, 1)),
            ("bytes=5000-,-0", 2000, ByteRange::Unsatisfiable),
            ("bytes=0-1,-1", 2000, ByteRange::Whole),
            ("bytes=0-1,x", 2000, ByteRange::Unsatisfiable),
            ("lines=0-1", 2000, ByteRange::Whole),
        ] {
            assert_eq!(Ranges::parse(value).of(total), expected, "{value} of {total}");
        }
    }
}
