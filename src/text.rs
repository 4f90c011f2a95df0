//! Text for people: sizes, text from outside for a terminal or a log, and what no text may show. Nothing in here can fail.

use serde::Deserialize;
use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

/// A value that nothing prints: a password, a token, an address that may hold one. It has no `Display`, its `Debug` shows
/// nothing of it, and it cannot be serialized.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret<T = String>(T);

impl<T> Secret<T> {
    /// Keeps `value` to itself.
    pub fn new(value: T) -> Secret<T> {
        Secret(value)
    }

    /// The value, for who has to use it.
    pub fn reveal(&self) -> &T {
        &self.0
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Text for a terminal or a log. What would move the cursor, begin a line or turn the direction of writing is escaped, but
/// for the characters in `keep`. The escapes are those of JSON and TOML strings, so that a document stays what it is.
pub fn escaped<'a>(text: &'a str, keep: &[char]) -> Cow<'a, str> {
    let escapes = |c: char| acts_on_a_terminal(c) && !keep.contains(&c);
    if !text.contains(escapes) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            c if !escapes(c) => out.push(c),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c => out.push_str(&format!("\\u{:04x}", u32::from(c))),
        }
    }
    Cow::Owned(out)
}

/// Control characters, line separators, and marks that change the direction of the text that follows them.
fn acts_on_a_terminal(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// How long something has lasted, for people: `12 s`, `5 min`, `3 h 5 min`, `2 d 3 h`.
pub fn lasted_text(lasted: Duration) -> String {
    let seconds = lasted.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{minutes} min"),
        3_600..86_400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// A number of bytes for people, in powers of ten.
pub fn bytes_text(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_for_people() {
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (3_599, "59 min"),
            (11_100, "3 h 5 min"),
            (183_600, "2 d 3 h"),
        ] {
            assert_eq!(lasted_text(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn text_from_outside_moves_no_cursor_and_begins_no_line() {
        for (text, shown) in [
            ("plain, grüße, 日本", "plain, grüße, 日本"),
            ("\x1b]0;owned\x07", "\\u001b]0;owned\\u0007"),
            ("a\r\nERROR b\tc\x7f", "a\\r\\nERROR b\\tc\\u007f"),
            ("\u{9b}2J \u{202e}gpj.exe \u{2066}x\u{2028}", "\\u009b2J \\u202egpj.exe \\u2066x\\u2028"),
        ] {
            assert_eq!(escaped(text, &[]), shown);
            // As JSON has it, so that what is JSON stays the same JSON.
            let json = format!("\"{}\"", escaped(text, &[]));
            assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }
        assert_eq!(escaped("a\n\x1bb\n", &['\n']), "a\n\\u001bb\n");
    }

    #[test]
    fn a_secret_is_not_shown() {
        let secret = Secret::new("s3cret".to_owned());
        assert_eq!(format!("{secret:?} {:?}", Some(&secret)), "Secret(..) Some(Secret(..))");
        assert_eq!(secret.reveal(), "s3cret");
    }

    #[test]
    fn sizes_for_people() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (37_200_000, "37.2 MB"),
            (2_500_000_000_000, "2.5 TB"),
        ] {
            assert_eq!(bytes_text(bytes), text);
        }
    }
}
