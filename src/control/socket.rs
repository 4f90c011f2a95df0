//! The Unix socket between the commands and a running server: one JSON line asks, JSON lines answer.
//!
//! Each line of an answer is a record, the last one `null`: an answer without it was cut. The socket lies in the data
//! folder with mode 0660, so that root and larder's group may open it and nobody else. Lines are bounded, and so is the
//! number of commands at a time; a command that sends nothing, or takes nothing, is cut after a while.

use super::{Admin, AdminRecord, AdminRequest};
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
use std::time::{Duration, Instant};

const NAME: &str = "control.sock";

/// Serves commands on threads of their own until the process ends.
///
/// # Errors
/// A sentence that says why the socket cannot be made.
pub fn serve(admin: Admin, data_dir: &Path) -> Result<(), String> {
    let failed = |e: io::Error| format!("cannot make the control socket in {}: {e}", data_dir.display());
    let (path, _folder) = short_path(data_dir).map_err(failed)?;
    // The store's lock is held, so a socket that is there belongs to a process that is gone.
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(failed)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).map_err(failed)?;
    let accept = move || accept(&listener, &Arc::new(admin));
    std::thread::Builder::new().name("control-accept".into()).spawn(accept).map(drop).map_err(failed)
}

fn accept(listener: &UnixListener, admin: &Arc<Admin>) {
    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            std::thread::sleep(Duration::from_millis(100));
            continue;
        };
        if open.fetch_add(1, Ordering::Relaxed) >= budget::CONTROL_CONNECTIONS_MAX {
            open.fetch_sub(1, Ordering::Relaxed);
            let busy = AdminRecord::Failed("too many commands at a time; try again".into());
            let _ = send(&stream, &Some(busy)).and_then(|()| send(&stream, &END));
            continue;
        }
        let (admin, done) = (Arc::clone(admin), Arc::clone(&open));
        let answer = move || {
            if let Err(e) = answer(&admin, &stream) {
                log::debug!("a command was not answered: {e}");
            }
            done.fetch_sub(1, Ordering::Relaxed);
        };
        if std::thread::Builder::new().name("control".into()).spawn(answer).is_err() {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Removes the socket of a server that ends.
pub fn remove(data_dir: &Path) {
    let _ = fs::remove_file(data_dir.join(NAME));
}

/// Asks the running server, and passes each record to `take` as it comes. `false`: no server runs.
///
/// # Errors
/// A sentence that says why the running server cannot be asked, or that its answer was cut.
pub fn ask(
    data_dir: &Path,
    request: &AdminRequest,
    take: &mut dyn FnMut(AdminRecord),
) -> Result<bool, String> {
    let failed = |e: io::Error| format!("cannot ask the server that runs on {}: {e}", data_dir.display());
    let Ok((path, _folder)) = short_path(data_dir) else { return Ok(false) };
    let stream = match UnixStream::connect(&path) {
        Ok(stream) => stream,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(false);
        }
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            return Err(format!("{}; run as root or as a member of larder's group", failed(e)));
        }
        Err(e) => return Err(failed(e)),
    };
    match send(&stream, request) {
        // A server that has too many commands answers without reading this one.
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => return Err(failed(e)),
        _ => {}
    }
    let mut reader = BufReader::new(&stream);
    loop {
        match receive::<Option<AdminRecord>>(&mut reader, budget::CONTROL_BYTES_MAX).map_err(failed)? {
            Some(Some(record)) => take(record),
            Some(None) => return Ok(true),
            None => return Err("the server ended before it had answered".into()),
        }
    }
}

/// The line after the last record.
const END: Option<AdminRecord> = None;

fn answer(admin: &Admin, stream: &UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(budget::REQUEST_HEADER_TIME))?;
    let request = receive(&mut BufReader::new(stream), budget::CONTROL_REQUEST_BYTES_MAX)?;
    let Some(request) = request else { return Ok(()) };
    let mut told = Instant::now();
    // What the whole answer may wait for its reader. After a failure nothing more is written, so that no record follows
    // half of another.
    let mut left = budget::REQUEST_HEADER_TIME;
    let mut answer = |record| {
        if matches!(record, AdminRecord::Progress(..)) {
            if told.elapsed() < budget::CONTROL_PROGRESS_EVERY {
                return Ok(());
            }
            told = Instant::now();
        }
        send_within(stream, &Some(record), &mut left)
    };
    admin.execute(&request, &mut answer);
    send_within(stream, &END, &mut left)
}

/// Writes one line, and waits no longer than `left` for its reader; what it has waited is taken off.
fn send_within<T: serde::Serialize>(
    mut stream: &UnixStream,
    value: &T,
    left: &mut Duration,
) -> io::Result<()> {
    let line = line(value)?;
    let mut written = 0;
    while written < line.len() {
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let began = Instant::now();
        let wrote = stream.set_write_timeout(Some(*left)).and_then(|()| stream.write(&line[written..]));
        *left = left.saturating_sub(began.elapsed());
        match wrote {
            Ok(0) => *left = Duration::ZERO,
            Ok(n) => written += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => {
                *left = Duration::ZERO;
                return Err(e);
            }
        }
    }
    Ok(())
}

/// Writes one line.
fn send<T: serde::Serialize>(mut stream: &UnixStream, value: &T) -> io::Result<()> {
    stream.write_all(&line(value)?)
}

fn line<T: serde::Serialize>(value: &T) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

/// Reads one line of at most so many bytes; `None` at the end of the stream.
fn receive<T: serde::de::DeserializeOwned>(reader: &mut impl BufRead, most: u64) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    reader.take(most).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

/// A path to the socket that fits into a socket address, however long the path of the data folder is. It is valid while
/// the returned handle of the folder is open.
fn short_path(data_dir: &Path) -> io::Result<(PathBuf, OwnedFd)> {
    let folder =
        rustix::fs::open(data_dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok((PathBuf::from(format!("/proc/self/fd/{}/{NAME}", folder.as_raw_fd())), folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_stops_is_waited_for_once_and_gets_nothing_after_half_a_record() {
        let (server, mut client) = UnixStream::pair().unwrap();
        let mut left = Duration::from_millis(50);
        let record = AdminRecord::Done("x".repeat(1 << 22));
        let cut = send_within(&server, &Some(record), &mut left).unwrap_err();
        assert!(matches!(cut.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut), "{cut}");
        assert!(left.is_zero());
        let again = send_within(&server, &END, &mut left).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::TimedOut);
        drop(server);
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        assert!(got.ends_with(b"x"), "no record follows half of one");
    }
}
