//! The server, its ports, and the upstreams: each is asked, within a bound.

use super::read::listener;
use super::{Finding, System};
use crate::budget;
use crate::config::{Config, UpstreamSettings};
use crate::control::{self, AdminRecord, AdminRequest, StatusReport};
use crate::fetch::{Cause, Examined, Failure, Upstreams};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

const SERVER: &str = "server";
const PORT: &str = "port";
const UPSTREAM: &str = "upstream";
/// Where a unit may be.
const UNITS: [&str; 3] = [
    "/etc/systemd/system/larder.service",
    "/usr/lib/systemd/system/larder.service",
    "/lib/systemd/system/larder.service",
];

/// Whether the server runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Running {
    Yes,
    No,
    /// It could not be asked.
    Unknown,
}

pub(super) fn server(config: &Config, system: &System, findings: &mut Vec<Finding>) -> Running {
    let unit = UNITS.iter().any(|unit| system.has(unit));
    let verb = |what: &str| if unit { format!("systemctl {what} larder") } else { "larder serve".to_owned() };
    let (send, receive) = mpsc::channel();
    let data_dir = config.data_dir.clone();
    // On a thread of its own: a server that hangs must not hang this.
    let asked = thread::Builder::new().name("ask-server".into()).spawn(move || {
        let mut last = None;
        let asked = control::socket::ask(&data_dir, &AdminRequest::Status, &mut |record| last = Some(record));
        let _ = send.send(asked.map(|runs| last.filter(|_| runs)));
    });
    let answer = match asked {
        Ok(_) => receive.recv_timeout(budget::DOCTOR_SERVER_TIME).map_err(|_| {
            format!(
                "it does not answer on its control socket within {} s",
                budget::DOCTOR_SERVER_TIME.as_secs()
            )
        }),
        Err(e) => Err(format!("it cannot be asked: {e}")),
    };
    let (finding, running) = match answer {
        Ok(Ok(Some(AdminRecord::Status(status)))) => (up(&status, &verb), Running::Yes),
        Ok(Ok(Some(other))) => {
            let what = format!("the server gave an unexpected answer: {other:?}");
            (Finding::warning(SERVER, what, verb("restart")), Running::Yes)
        }
        Ok(Ok(None)) if is_in_use(&config.data_dir) => {
            let what = "another command or a starting server has locked the store: run this again";
            (Finding::note(SERVER, what), Running::Unknown)
        }
        Ok(Ok(None)) => {
            let what = format!("no server runs on {}", config.data_dir.display());
            (Finding::warning(SERVER, what, verb("start")), Running::No)
        }
        Ok(Err(problem)) => (Finding::note(SERVER, problem), Running::Unknown),
        Err(problem) => {
            (Finding::bad(SERVER, format!("the server hangs: {problem}"), verb("restart")), Running::Yes)
        }
    };
    findings.push(finding);
    running
}

/// Whether somebody holds the store's lock.
fn is_in_use(data_dir: &Path) -> bool {
    let Ok(lock) = fs::File::open(data_dir.join("lock")) else { return false };
    matches!(flock(&lock, FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK))
}

fn up(status: &StatusReport, verb: &dyn Fn(&str) -> String) -> Finding {
    let own = env!("CARGO_PKG_VERSION");
    let since = status.uptime_seconds.unwrap_or(0);
    if status.version != own {
        let what = format!("the running server is version {}, this command is {own}", status.version);
        return Finding::warning(SERVER, what, verb("restart"));
    }
    Finding::ok(SERVER, format!("the server is running for {since} s, version {own}"))
}

pub(super) fn ports(config: &Config, system: &System, running: Running) -> Vec<Finding> {
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let mut findings: Vec<Finding> = config
        .listen
        .iter()
        .map(|address| port(*address, "listen", system, running, || is_larder(*address, scheme)))
        .collect();
    if let Some(kit) = &config.kit {
        // Boards talk to each other in their own way: that the server has the port is all that can be seen.
        findings.push(port(kit.listen, "kit.listen", system, running, || running == Running::Yes));
    }
    findings
}

fn port(
    address: SocketAddr,
    key: &str,
    system: &System,
    running: Running,
    is_ours: impl FnOnce() -> bool,
) -> Finding {
    if address.port() == 0 {
        return Finding::note(
            PORT,
            format!("{key} leaves the port to the kernel: no client can be sent to it"),
        );
    }
    match TcpListener::bind(address) {
        Ok(_) if running == Running::Yes => Finding::warning(
            PORT,
            format!("the server runs, but nothing listens on {address}: {key} was changed since it started"),
            "systemctl restart larder",
        ),
        Ok(_) => Finding::ok(PORT, format!("{address} is free")),
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            if is_ours() {
                return Finding::ok(PORT, format!("larder listens on {address}"));
            }
            let who = holder(system, address.port());
            let who_text = who.as_deref().unwrap_or("another program (run as root to see which)");
            Finding::bad(
                PORT,
                format!("{address} is in use by {who_text}"),
                format!("stop it, or set {key} to another port and run larder config CLIENT --write again"),
            )
        }
        Err(e) if e.kind() == io::ErrorKind::AddrNotAvailable => Finding::bad(
            PORT,
            format!("{} is not an address of this board", address.ip()),
            format!("set {key}; ip address shows what there is"),
        ),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            Finding::note(PORT, format!("only root may listen on {address}, so it was not tried"))
        }
        Err(e) => Finding::bad(
            PORT,
            format!("nobody can listen on {address}: {e}"),
            format!("set {key} to another"),
        ),
    }
}

/// Whether larder answers there. With HTTPS, whether anybody does.
fn is_larder(address: SocketAddr, scheme: &str) -> bool {
    let mut address = address;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    let wait = Duration::from_secs(2);
    let ask = || -> io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&address, wait)?;
        if scheme == "https" {
            return Ok(true);
        }
        stream.set_read_timeout(Some(wait))?;
        stream.set_write_timeout(Some(wait))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: larder\r\nConnection: close\r\n\r\n")?;
        let mut text = Vec::new();
        let _ = stream.take(16 * budget::KIB).read_to_end(&mut text);
        Ok(String::from_utf8_lossy(&text).contains("\nlarder_"))
    };
    ask().unwrap_or(false)
}

/// The program that listens on a port, if its open files may be seen.
fn holder(system: &System, port: u16) -> Option<String> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .find_map(|table| listener(&system.text(table).unwrap_or_default(), port))?;
    let wanted = format!("socket:[{inode}]");
    let mut looked_at = 0;
    for process in fs::read_dir(system.at("/proc")).ok()?.flatten() {
        let name = process.file_name();
        let Some(id) = name.to_str().filter(|name| name.bytes().all(|c| c.is_ascii_digit())) else {
            continue;
        };
        for file in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            looked_at += 1;
            if looked_at > budget::DOCTOR_OPEN_FILES_MAX {
                return None;
            }
            if fs::read_link(file.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str()) {
                let program = system.text(&format!("/proc/{id}/comm")).unwrap_or_default();
                return Some(format!("{} (process {id})", program.trim()));
            }
        }
    }
    None
}

/// Questions to upstreams that are under way.
pub(super) struct UnderWay {
    began: Instant,
    /// Name, address, user name's presence.
    asked: Vec<(String, bool)>,
    answers: Receiver<(String, Result<Examined, Failure>)>,
    /// They cannot be asked at all, and why.
    problem: Option<String>,
}

/// Asks every upstream, each on a thread of its own.
pub(super) fn begin_upstreams(config: &Config) -> UnderWay {
    let (send, answers) = mpsc::channel();
    let asked = config.upstreams.iter().flat_map(|one| {
        let each = one.endpoints.iter().enumerate();
        each.map(|(place, endpoint)| (named(one, place), endpoint.credentials.is_some()))
    });
    let asked = asked.collect();
    let mut under_way = UnderWay { began: Instant::now(), asked, answers, problem: None };
    let upstreams = match Upstreams::new(config) {
        Ok(upstreams) => std::sync::Arc::new(upstreams),
        Err(problem) => {
            under_way.problem = Some(problem);
            return under_way;
        }
    };
    let each =
        config.upstreams.iter().flat_map(|one| (0..one.endpoints.len()).map(move |place| (one, place)));
    for (settings, place) in each {
        let Some(upstream) = upstreams.find(&settings.name).cloned() else { continue };
        let name = named(settings, place);
        // The last of these threads ends the probes of all.
        let (send, all) = (send.clone(), std::sync::Arc::clone(&upstreams));
        let ask = move || {
            let _ = send.send((name, upstream.endpoints()[place].examine()));
            drop(all);
        };
        if let Err(e) = thread::Builder::new()
            .name("ask-upstream".into())
            .stack_size(budget::SMALL_STACK_BYTES)
            .spawn(ask)
        {
            under_way.problem = Some(format!("cannot start a thread to ask with: {e}"));
            break;
        }
    }
    under_way
}

/// What an endpoint is called: its registry, and where it is if there are several.
fn named(upstream: &UpstreamSettings, place: usize) -> String {
    let name = &upstream.name;
    match upstream.endpoints.as_slice() {
        [_] => name.to_string(),
        several => format!("{name} at {}", several[place].label()),
    }
}

/// Their answers.
pub(super) fn upstreams(under_way: UnderWay) -> Vec<Finding> {
    if let Some(problem) = under_way.problem {
        return vec![Finding::bad(UPSTREAM, problem, "larder config check")];
    }
    let mut answers = Vec::new();
    while answers.len() < under_way.asked.len() {
        let left = budget::DOCTOR_UPSTREAMS_TIME.saturating_sub(under_way.began.elapsed());
        match under_way.answers.recv_timeout(left) {
            Ok(answer) => answers.push(answer),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    let finding = |(name, login): &(String, bool)| match answers.iter().find(|(answered, _)| answered == name)
    {
        Some((_, outcome)) => upstream(name, *login, outcome),
        None => Finding::warning(
            UPSTREAM,
            format!("{name} has not answered within {} s", budget::DOCTOR_UPSTREAMS_TIME.as_secs()),
            "is the uplink slow? cached images are served meanwhile",
        ),
    };
    let all: Vec<Failure> = answers.iter().filter_map(|(_, outcome)| outcome.clone().err()).collect();
    let (asked, answered) = (under_way.asked.len(), answers.len());
    uplink(asked, answered, &all)
        .map_or_else(|| under_way.asked.iter().map(finding).collect(), |one| vec![one])
}

/// One finding for all where the uplink is what is gone, and not one registry or another.
pub(super) fn uplink(asked: usize, answered: usize, failures: &[Failure]) -> Option<Finding> {
    let gone = |failure: &&Failure| {
        matches!(
            failure.cause(),
            Some(Cause::Dns | Cause::Refused | Cause::Timeout | Cause::Connection | Cause::Cut)
        )
    };
    let first = failures.first().filter(|_| asked > 1 && answered == failures.len())?;
    if failures.iter().filter(gone).count() < failures.len() {
        return None;
    }
    Some(Finding::warning(
        UPSTREAM,
        format!("none of the {asked} upstreams can be reached, such as {first}"),
        "is the uplink there? ip route; cat /etc/resolv.conf; cached images are served meanwhile",
    ))
}

pub(super) fn upstream(name: &str, has_login: bool, outcome: &Result<Examined, Failure>) -> Finding {
    let failure = match outcome {
        Ok(examined) => {
            let login = if has_login { ", the login is accepted" } else { "" };
            let Some(limit) = examined.limit else {
                return Finding::ok(UPSTREAM, format!("{name} answers{login}"));
            };
            let of = limit.of.map_or(String::new(), |of| format!(" of {of}"));
            let what =
                format!("{name} answers{login}; {}{of} pulls are left before it limits the rate", limit.left);
            let few = limit.of.map_or(10, |of| of / 10);
            return if limit.left <= few {
                Finding::warning(UPSTREAM, what, login_lines(name, has_login))
            } else {
                Finding::ok(UPSTREAM, what)
            };
        }
        Err(failure) => failure,
    };
    let what = format!("{name}: {failure}");
    let section = section(name);
    let host = failure.to_string();
    let host = host.split(':').next().unwrap_or(name);
    match failure {
        Failure::Unreachable { cause, .. } => match cause {
            Cause::Dns => {
                Finding::warning(UPSTREAM, what, format!("getent hosts {host}; cat /etc/resolv.conf"))
            }
            Cause::Refused | Cause::Timeout | Cause::Connection | Cause::Cut => Finding::warning(
                UPSTREAM,
                what,
                "is the uplink there? ip route; cached images are served meanwhile",
            ),
            Cause::Tls if what.contains("client certificate") => {
                let mend = format!("set client_cert_file and client_key_file in {section}");
                Finding::bad(UPSTREAM, what, mend)
            }
            Cause::Tls => Finding::bad(
                UPSTREAM,
                what,
                format!(
                    "date; if the clock is right and the authority is your own: set ca_file in {section}"
                ),
            ),
            Cause::ServerError(_) => {
                Finding::warning(UPSTREAM, what, "wait: the registry itself has a fault")
            }
            Cause::RateLimited => Finding::warning(UPSTREAM, what, login_lines(name, has_login)),
            Cause::NotARegistry => Finding::warning(
                UPSTREAM,
                what,
                format!("check url in {section}, and whether a portal or a proxy answers in between"),
            ),
        },
        Failure::Denied { .. } => {
            Finding::bad(UPSTREAM, what, format!("check username and password_file in {section}"))
        }
        Failure::Missing { .. } => {
            Finding::bad(UPSTREAM, what, format!("check url in {section}: no registry answers there"))
        }
        Failure::Wrong { .. } => Finding::bad(UPSTREAM, what, format!("check url in {section}")),
    }
}

/// The part of the configuration that is about one of the `asked`: a registry, or one of several endpoints of it.
fn section(asked: &str) -> String {
    match asked.split_once(" at ") {
        None => format!("[upstream.\"{asked}\"]"),
        Some((name, at)) => format!("the [[upstream.\"{name}\".endpoint]] that is {at}"),
    }
}

fn login_lines(name: &str, has_login: bool) -> String {
    let section = section(name);
    if has_login {
        "wait, or have more pulls with another plan; tags.revalidate asks less often".to_owned()
    } else {
        format!(
            "set username and password_file in {section}, and access = \"public\" in the section of the registry: a login has a limit of its own"
        )
    }
}
