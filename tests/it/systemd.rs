//! The service manager's side of the server: what it is told and when, and the sockets that it hands over. The tests
//! stand in systemd's place by its protocols; with systemd itself the unit is tried by tests/packages.

use crate::board::{self, Folder, PATIENCE};
use larder::demo::client;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};
use std::process::{Child, Command, Stdio};

/// A server that was started by a service manager, which is the test.
struct Service {
    folder: Folder,
    child: Child,
}

impl Service {
    fn start(variables: &[(&str, &str)], shell: &str, stdin: Stdio) -> Service {
        let folder = Folder::new();
        let config = "[upstream.\"docker.io\"]\nurl = \"http://127.0.0.1:1\"\n[disk]\nmin_free = \"1MiB\"\n";
        std::fs::write(folder.0.join("larder.toml"), config).unwrap();
        let program = std::env::var("LARDER").unwrap_or_else(|_| env!("CARGO_BIN_EXE_larder").into());
        let mut command = Command::new("/bin/sh");
        command.env_clear().env("PATH", "/usr/bin:/bin").envs(variables.iter().copied());
        command.args(["-c", shell, "sh", &program, "--listen", "127.0.0.1:0", "--config"]);
        command.arg(folder.0.join("larder.toml")).arg("--data-dir").arg(folder.0.join("data")).arg("serve");
        let child = board::spawn(command.stdin(stdin).stdout(Stdio::null()).stderr(Stdio::piped()));
        Service { folder, child }
    }

    fn terminate(&mut self) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    }

    /// Waits for its end; success, and the last lines of its log.
    fn end(mut self) -> (bool, String) {
        let status = self.child.wait().unwrap();
        let stderr = BufReader::new(self.child.stderr.take().unwrap());
        let log: Vec<String> = stderr.lines().map_while(Result::ok).collect();
        assert!(self.folder.0.exists());
        (status.success(), log.join("\n"))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads words until one holds `wanted`, and returns it.
fn wait_for(socket: &UnixDatagram, wanted: &str) -> String {
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = [0; 4096];
    loop {
        let length = socket.recv(&mut buffer).unwrap_or_else(|e| panic!("{wanted} was never said: {e}"));
        let words = String::from_utf8(buffer[..length].to_vec()).unwrap();
        if words.contains(wanted) {
            return words;
        }
    }
}

#[test]
fn the_manager_is_told_of_the_start_of_life_and_of_the_end() {
    let folder = Folder::new();
    let path = folder.0.join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let variables = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "200000")];
    let mut service = Service::start(&variables, "exec \"$@\"", Stdio::null());

    // Ready means that a client is answered, at the address that the same word names.
    let words = wait_for(&socket, "READY=1");
    let address = words.split("answers on ").nth(1).unwrap().split([';', '\n']).next().unwrap();
    let address: SocketAddr = address.trim().parse().unwrap();
    assert_eq!(client::request(address, "GET", "/v2/", &[], PATIENCE).unwrap().status, 200);
    for _ in 0..3 {
        wait_for(&socket, "WATCHDOG=1");
    }

    service.terminate();
    wait_for(&socket, "STOPPING=1");
    let (success, log) = service.end();
    assert!(success, "{log}");
}

#[test]
fn an_abstract_name_is_a_socket_too() {
    let name = format!("larder-test-{}", std::process::id());
    let socket = UnixDatagram::bind_addr(&UnixAddr::from_abstract_name(&name).unwrap()).unwrap();
    let variables = [("NOTIFY_SOCKET", &*format!("@{name}"))];
    let mut service = Service::start(&variables, "exec \"$@\"", Stdio::null());
    wait_for(&socket, "READY=1");
    service.terminate();
    wait_for(&socket, "STOPPING=1");
    assert!(service.end().0);
}

/// What systemd does for a socket unit: the socket is descriptor 3, and the process number is said before it starts.
const HAND_OVER: &str = "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$@\"";

#[test]
fn a_socket_that_is_handed_over_is_served() {
    // It listens from the first, so whoever connects before the server is there waits.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut service = Service::start(&[], HAND_OVER, Stdio::from(OwnedFd::from(listener)));
    assert_eq!(client::request(address, "GET", "/v2/", &[], PATIENCE).unwrap().status, 200);

    // No flag of the descriptor lets it through to other programs.
    let info = std::fs::read_to_string(format!("/proc/{}/fdinfo/3", service.child.id())).unwrap();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
    let flags = u32::from_str_radix(flags, 8).unwrap();
    let wanted = 0o2_000_000 | 0o4_000; // O_CLOEXEC and O_NONBLOCK
    assert_eq!(flags & wanted, wanted, "{info}");

    service.terminate();
    let (success, log) = service.end();
    assert!(success && log.contains(&format!("listening on http://{address}")), "{log}");
}

#[test]
fn a_descriptor_that_does_not_listen_is_refused() {
    let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let (success, log) = Service::start(&[], HAND_OVER, Stdio::from(OwnedFd::from(datagrams))).end();
    assert!(!success && log.contains("does not listen for TCP"), "{log}");
    let (success, log) = Service::start(&[], HAND_OVER, Stdio::null()).end();
    assert!(!success && log.contains("is no socket"), "{log}");
}

#[test]
fn sockets_that_were_meant_for_another_process_are_left_alone() {
    let folder = Folder::new();
    let path = folder.0.join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let variables = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("LISTEN_PID", "1"), ("LISTEN_FDS", "1")];
    let mut service = Service::start(&variables, "exec \"$@\"", Stdio::null());
    wait_for(&socket, "READY=1");
    service.terminate();
    assert!(service.end().0);
}

#[test]
fn a_start_that_fails_is_an_orderly_end_for_the_store() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = Folder::new();
    let data = folder.0.join("data");
    let program = std::env::var("LARDER").unwrap_or_else(|_| env!("CARGO_BIN_EXE_larder").into());
    // However often.
    for _ in 0..4 {
        let address = taken.local_addr().unwrap().to_string();
        let mut command = Command::new(&program);
        command.env_clear().arg("--listen").arg(address).arg("--data-dir").arg(&data).arg("serve");
        let ran = board::output(&mut command);
        let log = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(!ran.status.success() && log.contains("another program listens there"), "{log}");
        assert!(!log.contains("rebuilt"), "{log}");
    }
    assert!(data.join("index/data.mdb").exists());
}
