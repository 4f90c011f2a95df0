//! The Unix socket between the commands and a running server: one JSON line asks, JSON lines answer.
//!
//! It lies in the data folder with mode 0660, so that root and larder's group may open it and nobody else. Lines are
//! bounded, and so is the number of commands at a time; a command that sends nothing is cut after a while.

use super::{Desk, Reply, Request};
use crate::budget;
use rustix::fs::{Mode, OFlags};
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const NAME: &str = "control.sock";

/// Serves commands on threads of their own until the process ends.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn serve(desk: Desk, data_dir: &Path) -> Result<(), String> {
    let failed = |e: io::Error| format!("cannot make the control socket in {}: {e}", data_dir.display());
    let (path, _folder) = short_path(data_dir).map_err(failed)?;
    // The store's lock is held, so a socket that is there belongs to a process that is gone.
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(failed)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).map_err(failed)?;
    let desk = Arc::new(desk);
    let open = Arc::new(AtomicUsize::new(0));
    let accept = move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                std::thread::sleep(std::time::Duration::from_millis(100));
                continue;
            };
            if open.fetch_add(1, Ordering::Relaxed) >= budget::CONTROL_CONNECTIONS_MAX {
                open.fetch_sub(1, Ordering::Relaxed);
                let _ = send(&stream, &Reply::Failed("too many commands at a time; try again".into()));
                continue;
            }
            let (desk, done) = (Arc::clone(&desk), Arc::clone(&open));
            let answer = move || {
                if let Err(e) = answer(&desk, &stream) {
                    log::debug!("a command was not answered: {e}");
                }
                done.fetch_sub(1, Ordering::Relaxed);
            };
            if std::thread::Builder::new().name("control".into()).spawn(answer).is_err() {
                open.fetch_sub(1, Ordering::Relaxed);
            }
        }
    };
    std::thread::Builder::new().name("control-door".into()).spawn(accept).map(drop).map_err(failed)
}

/// Removes the socket of a server that ends.
pub fn remove(data_dir: &Path) {
    let _ = fs::remove_file(data_dir.join(NAME));
}

/// Asks the running server. `Ok(None)`: none runs.
///
/// # Errors
/// A sentence that says why the server that runs cannot be asked.
pub fn ask(
    data_dir: &Path,
    request: &Request,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Option<Reply>, String> {
    let failed = |e: io::Error| format!("cannot ask the server that runs on {}: {e}", data_dir.display());
    let Ok((path, _folder)) = short_path(data_dir) else { return Ok(None) };
    let stream = match UnixStream::connect(&path) {
        Ok(stream) => stream,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            return Err(format!("{}; run as root or as a member of larder's group", failed(e)));
        }
        Err(e) => return Err(failed(e)),
    };
    let mut line = serde_json::to_vec(request).map_err(|e| failed(e.into()))?;
    line.push(b'\n');
    (&stream).write_all(&line).map_err(failed)?;
    let mut reader = BufReader::new(&stream);
    loop {
        match receive(&mut reader).map_err(failed)? {
            Some(Reply::Progress(done, total)) => progress(done, total),
            Some(reply) => return Ok(Some(reply)),
            None => return Err("the server ended before it had answered".into()),
        }
    }
}

fn answer(desk: &Desk, stream: &UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(budget::REQUEST_HEADER_TIME))?;
    stream.set_write_timeout(Some(budget::REQUEST_HEADER_TIME))?;
    let Some(request) = receive::<Request>(&mut BufReader::new(stream))? else { return Ok(()) };
    let mut told = std::time::Instant::now();
    let mut progress = |done, total| {
        if told.elapsed() >= budget::CONTROL_PROGRESS_EVERY {
            told = std::time::Instant::now();
            // Whoever asked may be gone; what was asked for goes on to its end.
            let _ = send(stream, &Reply::Progress(done, total));
        }
    };
    let reply = desk.execute(&request, &mut progress);
    send(stream, &reply)
}

fn send(mut stream: &UnixStream, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    stream.write_all(&line)
}

fn receive<T: serde::de::DeserializeOwned>(reader: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    reader.take(budget::CONTROL_BYTES_MAX).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

/// A path to the socket that fits into a socket address however long the data folder's own path is. It is good for as
/// long as the folder's handle, which comes with it, is open.
fn short_path(data_dir: &Path) -> io::Result<(PathBuf, OwnedFd)> {
    let folder =
        rustix::fs::open(data_dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok((PathBuf::from(format!("/proc/self/fd/{}/{NAME}", folder.as_raw_fd())), folder))
}
