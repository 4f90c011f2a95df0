//! How the demo's registry sends an answer, and what a [`Behaviour`] makes of it.

use super::content::{Asked, RegistryAnswer};
use super::header;
use super::upstream::{Behaviour, RegistryShared};
use crate::oci::{Algorithm, Digest};
use std::io::{self, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What an endless body ends at after all.
const ENDLESS_BYTES: usize = 64 << 20;

/// Sends the answer, or what the behaviour makes of it. Whether the connection can be used again.
pub(super) fn answer(
    shared: &RegistryShared,
    stream: &TcpStream,
    asked: &Asked<'_>,
    mut content: RegistryAnswer,
    behaviour: Option<Behaviour>,
) -> io::Result<bool> {
    let Some(behaviour) = behaviour else {
        return send(shared, stream, asked, content, &Manner::default());
    };
    let mut manner = Manner::default();
    match behaviour {
        Behaviour::HangBeforeHeader => shared.wait(),
        Behaviour::Delay(delay) => std::thread::sleep(delay),
        Behaviour::Status(status, headers) => {
            content = RegistryAnswer::error(status, "DENIED");
            content.headers.extend(headers);
        }
        Behaviour::RedirectLoop => content = RegistryAnswer::error(307, "MOVED").with("Location", asked.path),
        Behaviour::RedirectTo(url) => content = RegistryAnswer::error(307, "MOVED").with("Location", url),
        Behaviour::WrongBytes => {
            let mut wrong = content.body.to_vec();
            if let Some(byte) = wrong.last_mut() {
                *byte ^= 1;
            }
            content.body = wrong.into();
        }
        Behaviour::WrongDigestHeader => {
            let wrong = Digest::of(Algorithm::Sha256, b"something else").to_string();
            for (name, value) in &mut content.headers {
                if name == "Docker-Content-Digest" {
                    value.clone_from(&wrong);
                }
            }
        }
        Behaviour::NoDigestHeader => content.headers.retain(|(name, _)| name != "Docker-Content-Digest"),
        Behaviour::ContentLength(bytes) => manner.claimed = Some(bytes),
        Behaviour::StallBodyAfter(bytes) => manner.stall_after = Some(bytes),
        Behaviour::CutBodyAfter(bytes) => manner.cut_after = Some(bytes),
        Behaviour::CutFromStartAfter(bytes) => (manner.whole, manner.cut_after) = (true, Some(bytes)),
        Behaviour::SlowBody { bytes, pause } => manner.piece = Some((bytes, pause)),
        Behaviour::NoContentLength => manner.chunked = true,
        Behaviour::EndlessBody => (manner.chunked, manner.endless) = (true, true),
        Behaviour::ChunkExtensions(text) => (manner.chunked, manner.extension) = (true, text),
        Behaviour::IgnoreRange => manner.whole = true,
        Behaviour::RefuseRange(range) => manner.refusal = Some(range),
        Behaviour::PartFrom(byte) => manner.part_from = Some(byte),
        Behaviour::CutChunkedAfter(bytes) => (manner.chunked, manner.cut_after) = (true, Some(bytes)),
        Behaviour::Garbage => {
            (&*stream).write_all(b"\x00\x01 this is no HTTP \xff\r\n\r\n")?;
            return Ok(false);
        }
        Behaviour::CutBeforeHeader => return Ok(false),
        Behaviour::Header(name, value) => {
            content.headers.retain(|(own, _)| !own.eq_ignore_ascii_case(name));
            content = content.with(name, value);
        }
        Behaviour::Exactly(status, headers, body) => {
            let headers = headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            content = RegistryAnswer { status, headers, body: body.into(), is_blob: false };
        }
        Behaviour::WithHeaders(headers) => content.headers.extend(headers),
        Behaviour::LongHeader(bytes) => content.headers.push(("X-Long".into(), "x".repeat(bytes))),
    }
    send(shared, stream, asked, content, &manner)
}

/// How a body is sent.
#[derive(Default)]
struct Manner {
    claimed: Option<u64>,
    stall_after: Option<usize>,
    cut_after: Option<usize>,
    piece: Option<(usize, Duration)>,
    chunked: bool,
    /// What follows the size of each chunk.
    extension: String,
    endless: bool,
    whole: bool,
    /// The `Content-Range` of a refused part.
    refusal: Option<Option<String>>,
    part_from: Option<usize>,
}

/// The part that is asked for, from its first byte to before its end, and maybe none of `total` bytes.
fn part_of(range: &str, total: usize) -> Option<(usize, usize)> {
    let (from, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let end = last.parse().map_or(total, |last: usize| total.min(last.saturating_add(1)));
    Some((from.parse().ok()?, end))
}

fn send(
    shared: &RegistryShared,
    mut stream: &TcpStream,
    asked: &Asked<'_>,
    content: RegistryAnswer,
    manner: &Manner,
) -> io::Result<bool> {
    let total = content.body.len();
    let asked_part = header(asked.headers, "range")
        .filter(|_| content.is_blob && content.status == 200 && !manner.whole)
        .and_then(|range| part_of(range, total));
    let has = manner.cut_after.filter(|_| manner.chunked).map_or(total, |cut| cut.min(total));
    if let Some((from, _)) = asked_part
        && (manner.refusal.is_some() || from >= has)
    {
        let range = manner.refusal.clone().unwrap_or_else(|| Some(format!("bytes */{has}")));
        let refused = RegistryAnswer::error(416, "RANGE_INVALID");
        let refused = range.into_iter().fold(refused, |answer, range| answer.with("Content-Range", range));
        return send(shared, stream, asked, refused, &Manner::default());
    }
    let (from, end) = match asked_part {
        Some((_, end)) if manner.part_from.is_some() => (manner.part_from.unwrap_or(0), end),
        Some(part) => part,
        None => (0, total),
    };
    let body = &content.body[from..end];
    let mut head = if asked_part.is_some() {
        format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {from}-{}/{total}\r\n",
            end.saturating_sub(1)
        )
    } else {
        format!("HTTP/1.1 {} Answer\r\n", content.status)
    };
    for (name, value) in &content.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let has_length = header(&content.headers, "content-length").is_some();
    head += &match (manner.chunked, manner.claimed) {
        _ if has_length => "\r\n".to_owned(),
        (true, _) => "Transfer-Encoding: chunked\r\n\r\n".to_owned(),
        (false, Some(claimed)) => format!("Content-Length: {claimed}\r\n\r\n"),
        (false, None) => format!("Content-Length: {}\r\n\r\n", body.len()),
    };
    stream.write_all(head.as_bytes())?;
    if asked.method == "HEAD" {
        return Ok(true);
    }
    if manner.endless {
        send_endless(stream, content.is_blob.then_some(&shared.blob_bytes))?;
        return Ok(false);
    }
    send_body(shared, stream, body, content.is_blob, manner)
}

/// Sends a body in pieces. Whether the connection can be used again.
fn send_body(
    shared: &RegistryShared,
    mut stream: &TcpStream,
    body: &[u8],
    is_blob: bool,
    manner: &Manner,
) -> io::Result<bool> {
    let end = manner.cut_after.unwrap_or(body.len()).min(body.len());
    let pause_at = manner.stall_after.filter(|at| *at < end);
    let mut sent = 0;
    while sent < end {
        let stop = pause_at.filter(|at| sent < *at).unwrap_or(end);
        let piece = manner.piece.map_or(65_536, |(bytes, _)| bytes).min(stop - sent);
        let bytes = &body[sent..sent + piece];
        if manner.chunked {
            stream.write_all(format!("{piece:x}{}\r\n", manner.extension).as_bytes())?;
            stream.write_all(bytes)?;
            stream.write_all(b"\r\n")?;
        } else {
            stream.write_all(bytes)?;
        }
        if is_blob {
            shared.blob_bytes.fetch_add(piece as u64, Ordering::Relaxed);
        }
        sent += piece;
        if Some(sent) == pause_at {
            shared.wait();
        }
        if let Some((_, pause)) = manner.piece {
            std::thread::sleep(pause);
        }
    }
    if manner.chunked && manner.cut_after.is_none() {
        stream.write_all(format!("0{}\r\n\r\n", manner.extension).as_bytes())?;
    }
    Ok(!(manner.chunked && manner.cut_after.is_some())
        && end == body.len()
        && manner.claimed.is_none_or(|claimed| claimed == body.len() as u64))
}

fn send_endless(mut stream: &TcpStream, count: Option<&AtomicU64>) -> io::Result<()> {
    let piece = [0x2e; 65_536];
    for _ in 0..ENDLESS_BYTES / piece.len() {
        stream.write_all(b"10000\r\n")?;
        stream.write_all(&piece)?;
        stream.write_all(b"\r\n")?;
        if let Some(count) = count {
            count.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
    }
    Ok(())
}
