//! `WWW-Authenticate` and its neighbours among an upstream's headers (RFC 9110, 11.6.1; distribution, "Token
//! Authentication Specification").
//!
//! Parsing never fails: what cannot be understood is left out, and a challenge that is left out is no login.

/// One challenge.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Challenge {
    /// Ask `realm` for a token.
    Bearer {
        /// Where to ask.
        realm: String,
        /// Whom the token is for.
        service: Option<String>,
        /// What the token is to allow.
        scope: Option<String>,
    },
    /// Send user name and password.
    Basic,
}

/// The challenge to answer: a token is preferred to a password.
pub(super) fn choose<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let all: Vec<Challenge> = headers.flat_map(parse).collect();
    let bearer = all.iter().find(|c| matches!(c, Challenge::Bearer { .. })).cloned();
    bearer.or_else(|| all.into_iter().next())
}

/// Every challenge of one header value that is understood.
fn parse(value: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    let mut rest = value;
    let mut scheme: Option<String> = None;
    let mut parameters: Vec<(String, String)> = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            break;
        }
        let end = rest.find([' ', '\t', ',', '=', '"']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let tail = after.trim_start_matches([' ', '\t']);
        match tail.strip_prefix('=') {
            // `name = value`; a token68 such as `abc==` is no parameter and is skipped.
            Some(value_from) if !word.is_empty() && !value_from.starts_with(['=', ',']) => {
                let (text, left) = parameter_value(value_from.trim_start_matches([' ', '\t']));
                parameters.push((word.to_ascii_lowercase(), text));
                rest = left;
            }
            Some(_) => rest = tail.trim_start_matches('='),
            None if word.is_empty() => {
                // A stray character: step over it.
                rest = after.get(1..).unwrap_or("");
            }
            None => {
                found.extend(finished(scheme.take(), &mut parameters));
                scheme = Some(word.to_ascii_lowercase());
                rest = after;
            }
        }
    }
    found.extend(finished(scheme, &mut parameters));
    found
}

/// A parameter's value, quoted or not, and what follows it.
fn parameter_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '\t', ',']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut escaped = false;
    for (at, c) in quoted.char_indices() {
        match c {
            _ if escaped => {
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return (value, &quoted[at + 1..]),
            _ => value.push(c),
        }
    }
    (value, "")
}

fn finished(scheme: Option<String>, parameters: &mut Vec<(String, String)>) -> Option<Challenge> {
    let parameters = std::mem::take(parameters);
    let of = |name: &str| parameters.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
    match scheme?.as_str() {
        "basic" => Some(Challenge::Basic),
        "bearer" => {
            let scope = of("scope").filter(|scope| !scope.trim().is_empty());
            Some(Challenge::Bearer { realm: of("realm")?, service: of("service"), scope })
        }
        _ => None,
    }
}

/// The address of the next page that a `Link` header names, perhaps among others (RFC 8288; distribution-spec, "Content
/// Discovery"). Clients take one without a relation, or without brackets, too.
pub(super) fn next_page(value: &str) -> Option<&str> {
    let relation = |parameter: &str| {
        let (name, relation) = parameter.split_once('=')?;
        let is_next = |relation: &str| relation.split(' ').any(|r| r.eq_ignore_ascii_case("next"));
        let relation = relation.trim().trim_matches(['"', '\'']);
        name.trim().eq_ignore_ascii_case("rel").then(|| is_next(relation))
    };
    let mut rest = value.trim_start_matches([' ', '\t', ',']);
    if !rest.starts_with('<') {
        let target = rest.split([';', ',']).next().unwrap_or(rest).trim();
        return target.contains("/v2/").then_some(target);
    }
    let mut without = None;
    while let Some((target, parameters)) = rest.strip_prefix('<').and_then(|rest| rest.split_once('>')) {
        let mut quoted = false;
        let end = parameters.find(|c| {
            quoted ^= c == '"';
            c == ',' && !quoted
        });
        let (parameters, left) = parameters.split_at(end.unwrap_or(parameters.len()));
        match parameters.split(';').skip(1).find_map(relation) {
            Some(true) => return Some(target),
            Some(false) => {}
            None => without = without.or(Some(target)),
        }
        rest = left.trim_start_matches([' ', '\t', ',']);
    }
    without
}

/// What `Content-Range` says (RFC 9110, 14.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ContentRange {
    /// `bytes FIRST-LAST/LENGTH`.
    Part {
        /// The first byte.
        first: u64,
        /// The last one.
        last: u64,
        /// Bytes of the whole, if stated.
        length: Option<u64>,
    },
    /// `bytes */LENGTH`: nothing of so many bytes is in the range that was asked for.
    None(u64),
}

/// Reads a `Content-Range`.
pub(super) fn content_range(value: &str) -> Option<ContentRange> {
    let value = value.trim();
    let (unit, range) = value.split_at_checked(6)?;
    if !unit.eq_ignore_ascii_case("bytes ") {
        return None;
    }
    let (span, length) = range.trim().split_once('/')?;
    if span == "*" {
        return length.parse().ok().map(ContentRange::None);
    }
    let (first, last) = span.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let length: Option<u64> = if length == "*" { None } else { Some(length.parse().ok()?) };
    if last < first || length.is_some_and(|length| last >= length) {
        return None;
    }
    Some(ContentRange::Part { first, last, length })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Challenge {
        Challenge::Bearer { realm: realm.into(), service: service.map(str::to_owned), scope: None }
    }

    fn scoped(realm: &str, service: Option<&str>, scope: &str) -> Challenge {
        let service = service.map(str::to_owned);
        Challenge::Bearer { realm: realm.into(), service, scope: Some(scope.into()) }
    }

    #[test]
    fn challenges_as_they_are_found() {
        for (header, expected) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
                vec![scoped(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    "repository:a/b:pull,push",
                )],
            ),
            (
                r#"Basic realm="x", Bearer error="invalid_token", SCOPE="a:b:pull c:d:pull" ,x=y,realm=r"#,
                vec![Challenge::Basic, scoped("r", None, "a:b:pull c:d:pull")],
            ),
            (r#"Bearer realm=r,scope="""#, vec![bearer("r", None)]),
            (r#"bEARER Realm = "x\"y\\z" , SERVICE=s"#, vec![bearer(r#"x"y\z"#, Some("s"))]),
            (
                r#"Basic realm="a, Bearer realm=b", Bearer realm="c""#,
                vec![Challenge::Basic, bearer("c", None)],
            ),
            ("Basic", vec![Challenge::Basic]),
            ("Negotiate, Basic realm=x", vec![Challenge::Basic]),
            ("Negotiate YWJj==, Bearer realm=r", vec![bearer("r", None)]),
            ("Bearer service=x", vec![]),
            (r#"Bearer realm="unterminated"#, vec![bearer("unterminated", None)]),
            ("", vec![]),
            ("=,\"\"==,,,", vec![]),
            ("Bearer realm=\"é\" ünd", vec![bearer("é", None)]),
        ] {
            assert_eq!(parse(header), expected, "{header}");
        }
        let both = ["Basic realm=x", "Bearer realm=y"];
        assert_eq!(choose(both.into_iter()), Some(bearer("y", None)));
    }

    #[test]
    fn neighbours() {
        let list = r#"</v2/a/tags/list?n=2&last=b>; rel="next""#;
        assert_eq!(next_page(list), Some("/v2/a/tags/list?n=2&last=b"));
        assert_eq!(next_page("</v2/x;y>; title=y; REL=next"), Some("/v2/x;y"));
        let several =
            r#"</v2/x?a=1,2>; title="a, <b>"; rel=prev, </v2/y?a=1,2>; rel="last next", </z>; rel=next"#;
        assert_eq!(next_page(several), Some("/v2/y?a=1,2"));
        assert_eq!(next_page("</v2/a?last=b>; rel='next'"), Some("/v2/a?last=b"));
        assert_eq!(next_page("</v2/a?last=b>"), Some("/v2/a?last=b"), "without a relation");
        assert_eq!(next_page("</v2/a>; title=x, </v2/b>; rel=next"), Some("/v2/b"));
        assert_eq!(next_page("/v2/a?last=b; rel=next"), Some("/v2/a?last=b"), "without brackets");
        for other in [r#"</v2/a>; rel="prev""#, "next", "<rel=next", ""] {
            assert_eq!(next_page(other), None, "{other}");
        }
        let part = |length| Some(ContentRange::Part { first: 5, last: 9, length });
        assert_eq!(content_range("bytes 5-9/10"), part(Some(10)));
        assert_eq!(content_range("Bytes 5-9/*"), part(None));
        assert_eq!(content_range("bytes */10"), Some(ContentRange::None(10)));
        for bad in ["bytes */x", "bytes 9-5/10", "bytes 5-10/10", "5-9/10", "bytes", "items 5-9/10", "é"] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }
}
