//! Prints a file's modification time in whole seconds since 1970, as the standard library of this build reads it.
//!
//! `cross/check` gives it a file of the year 2040. A build whose `time_t` has 32 bits prints another number or fails: after
//! January 2038 it could not date a single blob.

use std::io::Write;
use std::time::UNIX_EPOCH;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: time64 FILE")?;
    let modified = std::fs::metadata(path)?.modified()?;
    let seconds = modified.duration_since(UNIX_EPOCH)?.as_secs();
    writeln!(std::io::stdout(), "{seconds}")?;
    Ok(())
}
