//! What the demo needs besides the real server: an image, an upstream that fails on command, and a client.
//!
//! The tests use the same three against the real binary. Nothing here is used by `serve`. Only the standard library
//! speaks HTTP here, so that neither side of a test shares code with what is tested.

pub mod client;
mod content;
pub mod image;
mod send;
pub mod upstream;

#[cfg(test)]
mod tests;

use std::io::{self, BufRead, Read};

/// Longest line of a header, in bytes.
const LINE_BYTES_MAX: u64 = 16 * 1024;
/// Most header lines of one message.
const HEADERS_MAX: usize = 128;

/// Names, in lower case, and values.
type Headers = Vec<(String, String)>;

/// Reads a start line and headers. `None`: the connection was closed before the first byte.
fn read_head(reader: &mut impl BufRead) -> io::Result<Option<(String, Headers)>> {
    let Some(start) = read_line(reader)? else { return Ok(None) };
    let mut headers = Vec::new();
    loop {
        let line = read_line(reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        if line.is_empty() {
            return Ok(Some((start, headers)));
        }
        let (name, value) = line.split_once(':').ok_or(io::ErrorKind::InvalidData)?;
        headers.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        if headers.len() > HEADERS_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

fn read_line(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
    match line.strip_suffix(b"\n") {
        None if line.is_empty() => Ok(None),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
        Some(line) => {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            Ok(Some(String::from_utf8(line.to_vec()).map_err(|_| io::ErrorKind::InvalidData)?))
        }
    }
}

/// The first header of that name.
fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}
