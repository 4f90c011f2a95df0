//! Printing that survives a closed pipe: `larder ls | head` is no failure. Any other failure to write is.

use std::io::{self, Write};

/// Writes to standard output. A closed pipe is no error.
///
/// # Errors
/// Standard output cannot be written for another reason.
pub fn out(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e),
        _ => Ok(()),
    }
}

/// Writes a passing note to standard error.
pub fn note(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}
