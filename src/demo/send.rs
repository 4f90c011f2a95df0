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
        Behaviour::IgnoreRange => manner.whole = true,
        Behaviour::Garbage => {
            (&*stream).write_all(b"\x00\x01 this is no HTTP \xff\r\n\r\n")?;
            return Ok(false);
        }
        Behaviour::CutBeforeHeader => return Ok(false),
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
    endless: bool,
    whole: bool,
}

fn send(
    shared: &RegistryShared,
    mut stream: &TcpStream,
    asked: &Asked<'_>,
    content: RegistryAnswer,
    manner: &Manner,
) -> io::Result<bool> {
    let total = content.body.len();
    let from = match header(asked.headers, "range")
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'))
    {
        Some(from) if content.is_blob && content.status == 200 && !manner.whole => {
            from.parse::<usize>().unwrap_or(0).min(total)
        }
        _ => 0,
    };
    let body = &content.body[from..];
    let mut head = if from > 0 {
        format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {from}-{}/{total}\r\n",
            total.saturating_sub(1)
        )
    } else {
        format!("HTTP/1.1 {} Answer\r\n", content.status)
    };
    for (name, value) in &content.headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += &match (manner.chunked, manner.claimed) {
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
            stream.write_all(format!("{piece:x}\r\n").as_bytes())?;
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
    if manner.chunked {
        stream.write_all(b"0\r\n\r\n")?;
    }
    Ok(end == body.len() && manner.claimed.is_none_or(|claimed| claimed == body.len() as u64))
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
