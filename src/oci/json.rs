//! What JSON from outside may look like, before anything of it is read: how deep it nests, and how long a text with
//! escapes is.
//!
//! A reader that skips a value still keeps a byte for each level of it, and unescapes a text into memory of its own. Both
//! are bounded here by one pass that takes no memory. Whether it is JSON at all is left to the parser.

use super::Invalid;
use crate::budget::{JSON_DEPTH_MAX, JSON_ESCAPED_BYTES_MAX};

/// Checks that `bytes` can be read in little memory.
///
/// # Errors
/// It nests too deep, or a text with escapes is too long.
pub fn check_shape(bytes: &[u8]) -> Result<(), Invalid> {
    let mut depth = 0usize;
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'[' | b'{' => {
                depth += 1;
                if depth > JSON_DEPTH_MAX {
                    return Err(Invalid::new(format!("it nests deeper than {JSON_DEPTH_MAX} levels")));
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'"' => at = end_of_text(bytes, at)?,
            _ => {}
        }
    }
    Ok(())
}

/// The place behind the closing quotation mark of the text that begins at `start`.
fn end_of_text(bytes: &[u8], start: usize) -> Result<usize, Invalid> {
    let (mut at, mut escaped) = (start, false);
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'"' => break,
            b'\\' => {
                escaped = true;
                at += 1;
            }
            _ => {}
        }
    }
    if escaped && at - start > JSON_ESCAPED_BYTES_MAX {
        return Err(Invalid::new(format!(
            "a text with escapes is longer than {JSON_ESCAPED_BYTES_MAX} bytes"
        )));
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_and_escaped_texts_are_bounded_and_nothing_else_is() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(check_shape(nested(JSON_DEPTH_MAX).as_bytes()).is_ok());
        assert!(check_shape(nested(JSON_DEPTH_MAX + 1).as_bytes()).is_err());
        let objects = "{\"a\":".repeat(JSON_DEPTH_MAX + 1);
        assert!(check_shape(objects.as_bytes()).is_err());
        // Brackets within a text are text, also behind an escaped quotation mark.
        let text = format!(r#""\"{}""#, "[".repeat(JSON_DEPTH_MAX + 1));
        assert!(check_shape(text.as_bytes()).is_ok());
        let long = "x".repeat(JSON_ESCAPED_BYTES_MAX);
        assert!(check_shape(format!("\"{long}\"").as_bytes()).is_ok());
        assert!(check_shape(format!("\"{long}\\n\"").as_bytes()).is_err());
        assert!(check_shape(format!("{{\"{long}\\n\":1}}").as_bytes()).is_err());
        for odd in [&b"\""[..], b"\"\\", b"]]}", b"", b"\\\\\\"] {
            assert!(check_shape(odd).is_ok(), "what is no JSON is the parser's matter");
        }
    }
}
