//! Where the keys of a JSON object stand, so that one can be added and every other byte stays.
//!
//! The text has been parsed before; a slip in here is caught because what a change leads to is parsed and compared.

/// The byte right after the brace that opens the document's object.
pub(super) fn inside(text: &str) -> Option<usize> {
    text.find('{').map(|at| at + 1)
}

/// The byte at which the value of a key of the document's object begins.
pub(super) fn value_of(text: &str, wanted: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let (mut at, mut depth) = (0, 0usize);
    // Whether a string at this place would be a key of the outermost object.
    let mut key_here = false;
    while let Some(&c) = bytes.get(at) {
        match c {
            b'"' => {
                let end = string_end(bytes, at);
                let is_wanted = text.get(at + 1..end.saturating_sub(1)) == Some(wanted);
                if depth == 1 && key_here && is_wanted {
                    let colon = end + text.get(end..)?.find(':')? + 1;
                    let rest = text.get(colon..)?;
                    return Some(colon + rest.len() - rest.trim_start().len());
                }
                key_here = false;
                at = end;
                continue;
            }
            b'{' | b'[' => {
                depth += 1;
                key_here = depth == 1 && c == b'{';
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' => key_here = depth == 1,
            _ => {}
        }
        at += 1;
    }
    None
}

/// The byte after the string that begins at `at`.
fn string_end(bytes: &[u8], at: usize) -> usize {
    let mut at = at + 1;
    while let Some(&c) = bytes.get(at) {
        match c {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}
