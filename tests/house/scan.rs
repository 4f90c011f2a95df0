//! Rust as text: what is code and what is not, where functions begin and end, which types and modules are named. It
//! knows as much of the language as this repository's own source needs, and its tests say how much that is.

use std::collections::BTreeSet;

/// The text with comments, strings and characters blanked out. Lines and columns stay.
pub fn code_of(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = at + not_code(&bytes[at..], code.last().copied());
        if end == at {
            code.push(bytes[at]);
            at += 1;
            continue;
        }
        code.extend(bytes[at..end].iter().map(|byte| if *byte == b'\n' { b'\n' } else { b' ' }));
        at = end;
    }
    String::from_utf8(code).expect("what is no code is blanked out as a whole")
}

/// How many bytes from here on are a comment, a string or a character. `before`: the last byte of code.
fn not_code(rest: &[u8], before: Option<u8>) -> usize {
    let in_word = before.is_some_and(is_word);
    match rest {
        [b'/', b'/', ..] => rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()),
        [b'/', b'*', ..] => block_comment(rest),
        [b'"', ..] => string(rest, 0),
        [b'r', b'"' | b'#', ..] if !in_word => raw_string(rest, 1),
        [b'b' | b'c', b'"', ..] if !in_word => string(rest, 1),
        [b'b' | b'c', b'r', b'"' | b'#', ..] if !in_word => raw_string(rest, 2),
        [b'\'', ..] => character(rest),
        _ => 0,
    }
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn string(rest: &[u8], prefix: usize) -> usize {
    let mut at = prefix + 1;
    while at < rest.len() && rest[at] != b'"' {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

fn raw_string(rest: &[u8], prefix: usize) -> usize {
    let hashes = rest[prefix..].iter().take_while(|byte| **byte == b'#').count();
    if rest.get(prefix + hashes) != Some(&b'"') {
        return 0; // r#name
    }
    let end = [&b"\""[..], &vec![b'#'; hashes]].concat();
    let body = prefix + hashes + 1;
    let found = rest[body..].windows(end.len()).position(|part| part == end);
    found.map_or(rest.len(), |found| body + found + end.len())
}

/// A character, and not a lifetime.
fn character(rest: &[u8]) -> usize {
    match rest {
        [_, b'\\', _, more @ ..] => 3 + more.iter().position(|byte| *byte == b'\'').map_or(0, |end| end + 1),
        _ => {
            let length = (2..=5).find(|length| rest.get(*length) == Some(&b'\''));
            // 'a' and 'é' are characters; of 'a, 'b the second quote is far off or behind more than one character.
            length
                .filter(|end| std::str::from_utf8(&rest[1..*end]).is_ok_and(|c| c.chars().count() == 1))
                .map_or(0, |end| end + 1)
        }
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// The identifier that a text begins with.
fn identifier(text: &str) -> &str {
    &text[..text.bytes().position(|byte| !is_word(byte)).unwrap_or(text.len())]
}

/// Where `word` stands in code as a word of its own.
fn words_at<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let bytes = code.as_bytes();
    let alone = move |at: usize| {
        !(at > 0 && is_word(bytes[at - 1]) || bytes.get(at + word.len()).copied().is_some_and(is_word))
    };
    code.match_indices(word).map(|(at, _)| at).filter(move |at| alone(*at))
}

/// Behind the brace that closes the one at `open`.
fn close_of(code: &str, open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' if depth <= 1 => return at + 1,
            b'}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    pub name: String,
    /// The line of its `fn`, from 1 on.
    pub line: usize,
    /// From that line to the one of its closing brace.
    pub lines: usize,
    /// How deep braces are nested, the body's own among them.
    pub depth: usize,
    /// It is `pub` without restriction.
    pub is_public: bool,
    /// It returns a `Result`.
    pub is_fallible: bool,
}

/// Every function of a text that [`code_of`] made.
pub fn functions(code: &str) -> Vec<Function> {
    let line_of = |at: usize| code[..at].matches('\n').count() + 1;
    words_at(code, "fn")
        .filter_map(|at| {
            let rest = code[at + 2..].trim_start();
            let name = identifier(rest);
            let open = body_of(code, at).filter(|_| !name.is_empty())?;
            let end = close_of(code, open);
            let start = code[..at].rfind(['\n', ';', '}', '{']).map_or(0, |before| before + 1);
            Some(Function {
                name: name.to_owned(),
                line: line_of(at),
                lines: line_of(end - 1) - line_of(at) + 1,
                depth: deepest(&code[open..end]),
                is_public: code[start..at].split_whitespace().next() == Some("pub"),
                is_fallible: returns_result(&code[at..open]),
            })
        })
        .collect()
}

/// Where the body of the function at `at` opens, if it has one.
fn body_of(code: &str, at: usize) -> Option<usize> {
    let mut depth = 0_i32;
    for (place, byte) in code.bytes().enumerate().skip(at) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b';' if depth == 0 => return None,
            b'{' if depth == 0 => return Some(place),
            _ => {}
        }
    }
    None
}

fn deepest(body: &str) -> usize {
    let (mut depth, mut most) = (0_usize, 0);
    for byte in body.bytes() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        most = most.max(depth);
    }
    most
}

/// Of a signature: the type behind its last arrow that is in no parentheses.
fn returns_result(signature: &str) -> bool {
    let (mut depth, mut arrow) = (0_i32, None);
    for (at, byte) in signature.bytes().enumerate() {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'>' if depth == 0 && signature[..at].ends_with('-') && arrow.is_none() => arrow = Some(at + 1),
            _ => {}
        }
    }
    let returned = arrow.map_or("", |at| signature[at..].trim_start());
    let path = returned.split(['<', ' ', '\n', '{']).next().unwrap_or("");
    path.rsplit("::").next() == Some("Result")
}

/// The types that a file shows outside of itself: `pub`, `pub(crate)` and the like, in no block.
pub fn exported_types(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for at in words_at(code, "pub") {
        if code[..at]
            .bytes()
            .fold(0_i32, |depth, byte| depth + i32::from(byte == b'{') - i32::from(byte == b'}'))
            != 0
        {
            continue;
        }
        let mut rest = code[at + 3..].trim_start();
        if let Some(restricted) = rest.strip_prefix('(') {
            rest = restricted.split_once(')').map_or("", |(_, rest)| rest).trim_start();
        }
        let (kind, behind) = rest.split_at(identifier(rest).len());
        let (kind, behind) = if kind == "unsafe" {
            let behind = behind.trim_start();
            behind.split_at(identifier(behind).len())
        } else {
            (kind, behind)
        };
        if ["struct", "enum", "trait", "type", "union"].contains(&kind) {
            found.push(identifier(behind.trim_start()).to_owned());
        }
    }
    found
}

/// The text with modules that are only compiled for tests blanked out. Lines stay.
pub fn without_tests(code: &str) -> String {
    let mut kept = String::new();
    let mut rest = code;
    while let Some(at) = rest.find("#[cfg(test)]") {
        kept += &rest[..at];
        let behind = &rest[at + "#[cfg(test)]".len()..];
        let end = match body_of(behind, 0) {
            Some(open) if behind.trim_start().starts_with("mod ") => close_of(behind, open),
            _ => 0,
        };
        kept.extend(behind[..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &behind[end..];
    }
    kept + rest
}

/// The names that follow a path's `prefix`, such as `crate::`: one, or the heads of a group in braces.
pub fn named_behind(code: &str, prefix: &str) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        if at > 0 && (is_word(code.as_bytes()[at - 1]) || code[..at].ends_with("::")) {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        if rest.starts_with('{') {
            let group = &rest[1..close_of(rest, 0) - 1];
            named.extend(heads(group).map(|head| identifier(head).to_owned()));
        } else {
            named.insert(identifier(rest).to_owned());
        }
    }
    named.remove("");
    named
}

/// The elements of a group, which may have groups of their own.
fn heads(group: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_i32;
    group
        .split(move |c: char| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            c == ',' && depth == 0
        })
        .map(str::trim)
}

/// Whether a package is used: its name as a word, followed by `::`, and not behind another path.
pub fn mentions(code: &str, package: &str) -> bool {
    words_at(code, package)
        .any(|at| code[at + package.len()..].starts_with("::") && !code[..at].ends_with("::"))
}

/// The lines, from 1 on, of public functions that return a `Result` and do not say under `# Errors` what makes them fail.
pub fn without_errors_section(text: &str) -> Vec<usize> {
    let lines: Vec<&str> = text.lines().collect();
    let is_said = |line: usize| {
        let above = lines[..line - 1].iter().rev().map(|line| line.trim_start());
        let mut above = above.take_while(|line| line.starts_with("///") || line.starts_with("#["));
        above.any(|line| line.trim_start_matches('/').trim() == "# Errors")
    };
    let functions = functions(&without_tests(&code_of(text)));
    functions
        .iter()
        .filter(|function| function.is_public && function.is_fallible && !is_said(function.line))
        .map(|function| function.line)
        .collect()
}

/// The words of a text, for phrases to be looked for among them.
pub struct Words(Vec<Word>);

struct Word {
    line: usize,
    as_written: String,
    lower: String,
}

impl Words {
    pub fn of(text: &str) -> Words {
        let mut words = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let parts = line.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
            words.extend(parts.map(|word| Word {
                line: number + 1,
                as_written: word.to_owned(),
                lower: word.to_lowercase(),
            }));
        }
        Words(words)
    }

    /// The lines, from 1 on, on which a phrase begins. Case, underscores and line breaks are nothing; a star at the end of
    /// a word stands for any ending. A phrase with a capital is a name, and is met only as it is written.
    pub fn lines_with(&self, phrase: &str) -> Vec<usize> {
        let is_name = phrase.chars().any(char::is_uppercase);
        let wanted: Vec<&str> = phrase.split(' ').collect();
        let is = |word: &Word, wanted: &str| {
            let word = if is_name { &word.as_written } else { &word.lower };
            match wanted.strip_suffix('*') {
                Some(start) => word.starts_with(start),
                None => word == wanted,
            }
        };
        let first = self.0.iter().enumerate().filter(|(_, word)| is(word, wanted[0]));
        first
            .filter(|(at, _)| {
                let rest = self.0.get(*at..at + wanted.len());
                rest.is_some_and(|rest| rest.iter().zip(&wanted).all(|(word, wanted)| is(word, wanted)))
            })
            .map(|(_, word)| word.line)
            .collect()
    }
}

#[test]
fn comments_strings_and_characters_are_no_code() {
    let text = "a // { \"\nb /* { /* } */ { */ c \"}\\\"{\" d r#\"{\"# e b\"{\" f br\"{\" g '{' h '\\'' i '\\u{7b}' j 'é' k";
    let code = code_of(text);
    assert!(!code.contains(['{', '}', '"', '\'']), "{code}");
    assert_eq!(code.split_whitespace().collect::<String>(), "abcdefghijk");
    assert_eq!((code.len(), code.lines().count()), (text.len(), 2));
    assert_eq!(code_of("fn x<'a>(y: &'a str, z: &'a [u8]) {}"), "fn x<'a>(y: &'a str, z: &'a [u8]) {}");
    assert_eq!(code_of("r#fn; bar\"{\""), "r#fn; bar   ");
}

#[test]
fn functions_have_their_length_and_depth() {
    let text = "\
trait T {
    fn no_body(&self) -> [u8; 2];
    pub fn one(&self, f: fn(u8) -> Result<(), ()>) -> u8 { 1 }
}
pub(crate) async fn two<F>(f: F) -> io::Result<()>
where
    F: Fn() -> u8,
{
    if true { // {{{
        loop { break \"{{{{\" }
    }
}
pub const fn three() -> Result<u8, ()> { Ok(3) }
";
    let found = functions(&code_of(text));
    let brief: Vec<_> = found.iter().map(|f| (f.name.as_str(), f.line, f.lines, f.depth)).collect();
    assert_eq!(brief, [("one", 3, 1, 1), ("two", 5, 8, 3), ("three", 13, 1, 1)]);
    let kinds: Vec<_> = found.iter().map(|f| (f.is_public, f.is_fallible)).collect();
    assert_eq!(kinds, [(true, false), (false, true), (true, true)]);
}

#[test]
fn types_that_leave_a_file() {
    let text = "
pub struct A; pub(crate) enum B {} pub(super) trait C {} pub(in crate::x) type D = u8; struct E;
mod inner { pub struct F; } pub use other::G; pub fn h() {} // pub struct I
pub unsafe trait J {}";
    assert_eq!(exported_types(&code_of(text)), ["A", "B", "C", "D", "J"]);
}

#[test]
fn names_behind_a_path() {
    let text = "use crate::{a::{b, c::d}, e}; use crate::f::g; fn x() { crate::h::i(); other::crate::j; mycrate::k }";
    assert_eq!(named_behind(text, "crate::").into_iter().collect::<Vec<_>>(), ["a", "e", "f", "h"]);
    assert_eq!(
        named_behind("use super::super::x; use super::*;", "super::").into_iter().collect::<Vec<_>>(),
        ["super"]
    );
}

#[test]
fn tests_are_left_out() {
    let code = "use a; #[cfg(test)]\nmod tests { use super::{b}; { } } use c; #[cfg(test)] use d; #[cfg(test)] mod tests; use e;";
    let kept = without_tests(code);
    assert!(["use a", "use c", "use d", "use e"].iter().all(|kept_one| kept.contains(kept_one)), "{kept}");
    assert!(!kept.contains("super"), "{kept}");
}

#[test]
fn packages_are_named_as_words() {
    assert!(mentions("let x = heed::open();", "heed") && mentions("use heed::{A};", "heed"));
    assert!(!mentions("unheed::open(); my::heed::x(); heed.open()", "heed"));
}

#[test]
fn errors_are_told_of() {
    let text = "
/// Told.
///
/// # Errors
/// Whenever.
#[must_use]
pub fn told() -> Result<(), ()> { Ok(()) }
/// Not told.
pub fn not_told() -> io::Result<()> { Ok(()) }
/// Of no interest.
pub(crate) fn inside() -> Result<(), ()> { Ok(()) }
/// Cannot fail.
pub fn sure(f: impl Fn() -> Result<(), ()>) -> Vec<Result<(), ()>> { vec![f()] }
";
    assert_eq!(without_errors_section(text), [9]);
}

#[test]
fn phrases_are_found_whatever_is_between_their_words() {
    let text = "it is set\n    /// aside; SET_ASIDE and setaside\nCondemned, once  more, more";
    let lines_with = |phrase| Words::of(text).lines_with(phrase);
    assert_eq!(lines_with("set aside"), [1, 2]);
    assert_eq!(lines_with("condemn*"), [3]);
    assert_eq!(lines_with("condemn"), [] as [usize; 0]);
    assert_eq!(lines_with("once more"), [3]);
    assert_eq!(Words::of("a Desk, a desk, a DeskTop").lines_with("Desk"), [1]);
}
