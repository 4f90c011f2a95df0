//! Chunk extensions, and zeros before a chunk's size, left out of what the HTTP client reads: both are legal (RFC 9112,
//! 7.1.1), mean nothing to larder, and the client refuses a chunk's line of more than some 20 bytes.
//!
//! The filter follows an answer from the first byte of its header, which begins after a request was sent. It removes
//! bytes of chunks' lines only and adds none; what it does not understand it leaves as it is, for the client to judge. A line
//! has an end: what is left out of one is bounded, and the time of a read counts however many bytes are left out.

use crate::budget::CHUNK_LINE_BYTES_MAX;
use std::borrow::Cow;
use std::fmt;
use std::io;
use std::time::Instant;
use ureq::Error;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

/// Longest part of a header line that is looked at: what names the transfer coding is shorter.
const LOOKED_AT_BYTES: usize = 256;

/// Wraps each connection so that its answers have no chunk extensions.
#[derive(Debug)]
pub(super) struct PlainChunks;

impl Connector<Box<dyn Transport>> for PlainChunks {
    type Out = Box<dyn Transport>;

    fn connect(
        &self,
        _: &ConnectionDetails,
        chained: Option<Box<dyn Transport>>,
    ) -> Result<Option<Self::Out>, Error> {
        Ok(chained.map(|inner| {
            let plain: Box<dyn Transport> =
                Box::new(PlainTransport { inner, filter: ChunkFilter::default() });
            plain
        }))
    }
}

struct PlainTransport {
    inner: Box<dyn Transport>,
    filter: ChunkFilter,
}

impl fmt::Debug for PlainTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl Transport for PlainTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.filter = ChunkFilter::default();
        self.inner.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        // However many pieces are left out, this is one read.
        let (began, timeout) = (Instant::now(), timeout.for_read());
        loop {
            let left = timeout.after.checked_sub(began.elapsed()).filter(|left| !left.is_zero());
            let left = left.ok_or(Error::Timeout(timeout.reason))?;
            let known = self.inner.buffers().input().len();
            let came = self.inner.await_input(NextTimeout { after: left.into(), ..timeout })?;
            let buffers = self.inner.buffers();
            let input = buffers.input();
            let Some(new) = input.get(known..).filter(|new| !new.is_empty()) else { return Ok(came) };
            let Cow::Owned(kept) = self.filter.strip(new) else { return Ok(came) };
            if self.filter.left_out > CHUNK_LINE_BYTES_MAX {
                let message = "a chunk's line is longer than allowed";
                return Err(Error::Io(io::Error::new(io::ErrorKind::InvalidData, message)));
            }
            let (nothing_new, all) = (kept.is_empty(), [&input[..known], &kept].concat());
            buffers.input_consume(known + new.len());
            // There were more bytes in the same place before.
            if let Some(space) = buffers.input_append_buf().get_mut(..all.len()) {
                space.copy_from_slice(&all);
            }
            buffers.input_appended(all.len());
            if !nothing_new || !came {
                return Ok(came);
            }
        }
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}

/// Where in an answer the next byte is.
#[derive(Debug)]
enum Place {
    /// In a line of the header, of which this has come. `first`: it is the first. `interim`: another header follows this
    /// one (RFC 9110, 15.2). `chunked`: chunks follow it.
    Head { line: Vec<u8>, first: bool, interim: bool, chunked: bool },
    /// In a chunk's size, of which this has come. `zeros`: only zeros have.
    Size { bytes: u64, zeros: bool },
    /// Behind it on its line.
    Extension { bytes: u64 },
    /// In a chunk that has so many bytes left.
    Chunk(u64),
    /// Between a chunk and the next size.
    ChunkEnd,
    /// Where nothing is to be left out any more.
    Rest,
}

/// Leaves out what chunks' lines have besides their sizes.
#[derive(Debug)]
struct ChunkFilter {
    place: Place,
    /// Bytes that were left out of the present line.
    left_out: u64,
}

impl Default for ChunkFilter {
    fn default() -> ChunkFilter {
        ChunkFilter { place: Place::head(), left_out: 0 }
    }
}

impl Place {
    fn head() -> Place {
        Place::Head { line: Vec::new(), first: true, interim: false, chunked: false }
    }
}

impl ChunkFilter {
    /// What is left of the next bytes.
    fn strip<'a>(&mut self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let mut kept = Cow::Borrowed(&bytes[..0]);
        let mut at = 0;
        while at < bytes.len() {
            let (length, keep) = self.step(&bytes[at..]);
            let piece = &bytes[at..at + length];
            self.left_out = if keep { self.left_out } else { self.left_out + length as u64 };
            at += length;
            match &mut kept {
                // Nothing was left out so far.
                Cow::Borrowed(_) if keep => kept = Cow::Borrowed(&bytes[..at]),
                Cow::Borrowed(before) => kept = Cow::Owned(before.to_vec()),
                Cow::Owned(before) if keep => before.extend_from_slice(piece),
                Cow::Owned(_) => {}
            }
        }
        kept
    }

    /// Takes at least one of the next bytes: how many, and whether they are kept.
    fn step(&mut self, bytes: &[u8]) -> (usize, bool) {
        let byte = bytes[0];
        match &mut self.place {
            Place::Rest => (bytes.len(), true),
            Place::Head { line, first, interim, chunked } => {
                if byte != b'\n' {
                    if line.len() < LOOKED_AT_BYTES {
                        line.push(byte.to_ascii_lowercase());
                    }
                } else if line.iter().all(|byte| *byte == b'\r') && !*first {
                    self.place = match (*interim, *chunked) {
                        (true, _) => Place::head(),
                        (false, true) => Place::Size { bytes: 0, zeros: false },
                        (false, false) => Place::Rest,
                    };
                } else {
                    *interim |= *first && line.get(9) == Some(&b'1') && line.get(9..12) != Some(b"101");
                    let value = line.strip_prefix(b"transfer-encoding:").unwrap_or(b"");
                    *chunked |= value.windows(7).any(|part| part == b"chunked");
                    *first = false;
                    line.clear();
                }
                (1, true)
            }
            Place::Size { bytes: size, zeros } => match (byte, char::from(byte).to_digit(16)) {
                // One zero is enough, and it is not known yet whether it is the last digit.
                (b'0', _) if *size == 0 => (1, !std::mem::replace(zeros, true)),
                (_, Some(digit)) => {
                    *size = size.saturating_mul(16).saturating_add(u64::from(digit));
                    (1, true)
                }
                (b'\n', _) => {
                    let size = *size;
                    self.end_line(size);
                    (1, true)
                }
                (b'\r', _) => (1, true),
                (b';' | b' ' | b'\t', _) => {
                    self.place = Place::Extension { bytes: *size };
                    (1, false)
                }
                _ => {
                    self.place = Place::Rest;
                    (1, true)
                }
            },
            Place::Extension { bytes: size } => {
                if byte == b'\n' {
                    let size = *size;
                    self.end_line(size);
                }
                (1, matches!(byte, b'\r' | b'\n'))
            }
            Place::Chunk(left) => {
                let length = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                *left -= length as u64;
                if *left == 0 {
                    self.place = Place::ChunkEnd;
                }
                (length, true)
            }
            Place::ChunkEnd => {
                if byte == b'\n' {
                    self.place = Place::Size { bytes: 0, zeros: false };
                }
                (1, true)
            }
        }
    }

    fn end_line(&mut self, size: u64) {
        self.left_out = 0;
        // What follows the last chunk is like a header.
        self.place = if size == 0 { Place::Rest } else { Place::Chunk(size) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ureq::unversioned::transport::LazyBuffers;

    const HEAD: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n";

    /// What is left of an answer that comes in pieces of so many bytes.
    fn stripped(answer: &str, piece: usize) -> String {
        let mut filter = ChunkFilter::default();
        let kept: Vec<u8> =
            answer.as_bytes().chunks(piece).flat_map(|piece| filter.strip(piece).into_owned()).collect();
        String::from_utf8(kept).unwrap()
    }

    #[test]
    fn only_lines_of_chunks_lose_anything() {
        let long = "x".repeat(9_000);
        for (body, left) in [
            (
                format!("5;{long}\r\nhe;lo\r\n0;a=\"b;c\"\r\nT: 1;2\r\n\r\n"),
                "5\r\nhe;lo\r\n0\r\nT: 1;2\r\n\r\n",
            ),
            (
                "5 ; a = b\r\nhello\r\nA\r\n;;;;;;;;;;\r\n0\r\n\r\n".into(),
                "5\r\nhello\r\nA\r\n;;;;;;;;;;\r\n0\r\n\r\n",
            ),
            ("5\r\nhello\r\n0\r\n\r\n".into(), "5\r\nhello\r\n0\r\n\r\n"),
        ] {
            for piece in [1, 2, 3, 7, 100_000] {
                assert_eq!(stripped(&format!("{HEAD}{body}"), piece), format!("{HEAD}{left}"), "{piece}");
            }
        }
    }

    /// A connection that brings one more byte of an extension each time.
    #[derive(Debug)]
    struct Drip(LazyBuffers, Option<&'static str>);

    impl Transport for Drip {
        fn buffers(&mut self) -> &mut dyn Buffers {
            &mut self.0
        }

        fn transmit_output(&mut self, _: usize, _: NextTimeout) -> Result<(), Error> {
            Ok(())
        }

        fn await_input(&mut self, _: NextTimeout) -> Result<bool, Error> {
            let text = self.1.take().unwrap_or("x");
            self.0.input_append_buf()[..text.len()].copy_from_slice(text.as_bytes());
            self.0.input_appended(text.len());
            Ok(true)
        }

        fn is_open(&mut self) -> bool {
            true
        }
    }

    #[test]
    fn a_line_without_end_ends_and_a_slow_one_takes_no_longer_than_a_read_may() {
        let begun = |after: std::time::Duration| {
            let begin = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;";
            let inner: Box<dyn Transport> = Box::new(Drip(LazyBuffers::new(4_096, 4_096), Some(begin)));
            let mut plain = PlainTransport { inner, filter: ChunkFilter::default() };
            let timeout = NextTimeout { per_read: Some(after.into()), ..NextTimeout::default() };
            assert!(plain.await_input(timeout).unwrap(), "the header");
            plain.await_input(timeout).unwrap_err()
        };
        let endless = begun(std::time::Duration::from_secs(600));
        assert!(endless.to_string().contains("longer than allowed"), "{endless}");
        let slow = begun(std::time::Duration::from_millis(1));
        assert!(matches!(slow, Error::Timeout(_)), "{slow}");
    }

    #[test]
    fn what_is_left_out_of_a_line_is_counted_to_its_end() {
        let mut filter = ChunkFilter::default();
        filter.strip(HEAD.as_bytes());
        for (piece, left_out) in [("0005;", 3), ("xxxx", 7), ("y\r\n", 0), ("hello\r\n", 0), ("1;", 1)] {
            filter.strip(piece.as_bytes());
            assert_eq!(filter.left_out, left_out, "{piece}");
        }
    }

    #[test]
    fn zeros_before_a_size_are_one_at_most() {
        for piece in [1, 3, 1_000] {
            let zeros = "0".repeat(40);
            let body = format!("{zeros}5\r\nhello\r\n{zeros}\r\n\r\n");
            assert_eq!(stripped(&format!("{HEAD}{body}"), piece), format!("{HEAD}05\r\nhello\r\n0\r\n\r\n"));
        }
    }

    #[test]
    fn what_is_not_chunked_stays_as_it_is() {
        for answer in [
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n5;ext\r\nhe",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n5;ext\r\nhe",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nthis is; no size\r\n",
            "HTTP/1.1 200 OK\r\nX: transfer-encoding: chunked\r\n\r\n5;ext\r\nhe",
            "5;ext\r\n",
        ] {
            for piece in [1, 1_000] {
                assert_eq!(stripped(answer, piece), answer);
            }
        }
        let interim = "HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n";
        let answer = format!("{interim}{HEAD}1;e\r\na\r\n0\r\n\r\n");
        assert_eq!(stripped(&answer, 1), format!("{interim}{HEAD}1\r\na\r\n0\r\n\r\n"));
    }
}
