//! Printing that survives a closed pipe: `larder ls | head` is no failure. Any other failure to write is.
//!
//! Whatever is printed is escaped here, but for line ends and tabs: names, messages of registries and of peers are in it.
//! A value that must stay on its line goes through [`cell`] first.

use crate::text::escaped;
use std::borrow::Cow;
use std::io::{self, Write};

/// Writes to standard output. A closed pipe is no error.
///
/// # Errors
/// Standard output cannot be written for another reason.
pub fn out(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(escaped(text, &LAYOUT).as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e),
        _ => Ok(()),
    }
}

/// Writes a note to standard error.
pub fn note(text: &str) {
    let _ = io::stderr().lock().write_all(escaped(text, &LAYOUT).as_bytes());
}

/// Writes a passing note to standard error, in the place of the one before.
pub fn progress(text: &str) {
    let _ = io::stderr().lock().write_all(format!("\r\x1b[K{}", cell(text)).as_bytes());
}

/// A value in a line: no line end of its own begins another.
pub fn cell(value: &str) -> Cow<'_, str> {
    escaped(value, &[])
}

/// What may be in printed text besides characters that stand for themselves.
const LAYOUT: [char; 2] = ['\n', '\t'];
