//! A board for tests: the real binary on a real socket, in front of an upstream that fails on command.

// Each test binary uses its own part of this.
#![allow(dead_code, unused_imports)]
// Where a test cannot go on, it stops.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

pub mod documents;
pub mod io_faults;
mod private;
mod random;
mod upstream;

pub use private::{BOARD, InProcess, WRONG, private_file, secrets};
pub use random::{Random, from_environment};
pub use upstream::{image, layer_of, needed, tls_settings, upstream_with};

use larder::demo::client::{self, ClientAnswer as Answer, PullError, Pulled};
use larder::demo::image::SampleImage;
use larder::demo::upstream::FaultyRegistry as Upstream;
use larder::oci::{Digest, Hasher};
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, RwLock};
use std::time::{Duration, Instant};

/// Generous: the machine may be busy. A test that needs this long has found a hang.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The platform that tests want, whatever machine they run on.
pub const PLATFORM: &str = "linux/arm64";
/// What a busy machine may add to a bound.
pub const LEEWAY: Duration = Duration::from_secs(2);

/// Time-outs short enough for tests, and long enough for a busy machine.
pub const FETCH: &str =
    "[fetch]\nconnect_timeout = \"2s\"\nheader_timeout = \"3s\"\nstall_timeout = \"2s\"\n";
/// The bound of the first answer.
pub const DEADLINE: Duration = Duration::from_millis(500);

/// A folder that goes when the test ends.
pub struct Folder(pub PathBuf);

/// What a board's server is given in its environment.
pub type Environment = Vec<(&'static str, String)>;

impl Folder {
    pub fn new() -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("larder-test-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An upstream with `image`, and a board that has pulled it. `more` is appended to the board's configuration.
pub fn pulled(image: &SampleImage, more: &str) -> (Upstream, Board) {
    let upstream = upstream_with(image);
    let board = Board::new(&upstream, more);
    board.pull("lab/app", "latest").unwrap();
    (upstream, board)
}

/// A board: its folder, its configuration, and the server while it runs.
pub struct Board {
    folder: Folder,
    /// For the next start.
    pub environment: Environment,
    pub addr: SocketAddr,
    child: Child,
    log: Arc<(Mutex<Vec<String>>, Condvar)>,
}

impl Board {
    /// A board whose `docker.io` is `upstream`. `more` is appended to the configuration.
    pub fn new(upstream: &Upstream, more: &str) -> Board {
        Board::with_url(&upstream.url(), more)
    }

    pub fn with_url(url: &str, more: &str) -> Board {
        Board::with_config(&Board::config(url, more))
    }

    pub fn config(url: &str, more: &str) -> String {
        let tags = if more.contains("[tags]") { "" } else { "[tags]\nresolve_deadline = \"500ms\"\n" };
        let fetch = if more.contains("[fetch]") { "" } else { FETCH };
        format!(
            "platforms = [\"{PLATFORM}\"]\n{tags}{fetch}[disk]\nmin_free = \"1MiB\"\n[upstream.\"docker.io\"]\nurl = \"{url}\"\n{more}"
        )
    }

    pub fn with_config(config: &str) -> Board {
        Board::in_folder(Folder::new(), config, Vec::new())
            .unwrap_or_else(|(log, _)| panic!("the server did not start:\n{log}"))
    }

    /// A board whose data may be there already; the server's log, and the folder, if it does not start.
    pub fn in_folder(
        folder: Folder,
        config: &str,
        environment: Environment,
    ) -> Result<Board, (String, Folder)> {
        std::fs::write(folder.0.join("larder.toml"), config).unwrap();
        match start(&folder, &environment) {
            Ok((child, log, addr)) => Ok(Board { folder, environment, addr, child, log }),
            Err(log) => Err((log, folder)),
        }
    }

    /// The server's process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn data(&self) -> PathBuf {
        self.folder.0.join("data")
    }

    pub fn folder(&self) -> &Path {
        &self.folder.0
    }

    /// SIGKILL: nothing is written down.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and how long it took.
    pub fn stop(&mut self) -> Duration {
        let began = Instant::now();
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}, log:\n{}", self.log());
        began.elapsed()
    }

    pub fn start_again(&mut self) {
        self.try_start_again().unwrap_or_else(|log| panic!("the server did not start:\n{log}"));
    }

    /// The same where the server may end instead; its log then.
    pub fn try_start_again(&mut self) -> Result<(), String> {
        let (child, log, addr) = start(&self.folder, &self.environment)?;
        (self.child, self.log, self.addr) = (child, log, addr);
        Ok(())
    }

    /// HEAD, or `None` if the server ended before it answered.
    pub fn try_head(&self, path: &str) -> Option<Answer> {
        client::request(self.addr, "HEAD", path, &[], PATIENCE).ok()
    }

    pub fn log(&self) -> String {
        self.log.0.lock().unwrap().join("\n")
    }

    /// Waits until the log has a line with `text`.
    pub fn wait_for_log(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.log.0.lock().unwrap();
        while !lines.iter().any(|line| line.contains(text)) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the log never said {text:?}:\n{}", lines.join("\n"));
            lines = self.log.1.wait_timeout(lines, left).unwrap().0;
        }
    }

    /// Where the board answers its peers.
    pub fn kit_addr(&self) -> SocketAddr {
        self.wait_for_log("kit listening on ");
        let log = self.log();
        let addr = log.lines().find_map(|line| line.split("kit listening on ").nth(1)?.trim().parse().ok());
        addr.unwrap_or_else(|| panic!("no kit listens:\n{log}"))
    }

    /// Runs another command of the binary on this board's store.
    pub fn command(&self, arguments: &[&str]) -> Output {
        let mut command = binary(&self.folder);
        output(command.args(arguments))
    }

    /// The same, which must succeed; its standard output.
    pub fn said(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        client::request(self.addr, method, path, headers, PATIENCE).unwrap()
    }

    pub fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[])
    }

    pub fn head(&self, path: &str) -> Answer {
        self.request("HEAD", path, &[])
    }

    /// HEAD of a tag: status, Cache-Status and time.
    pub fn ask(&self, repository: &str, tag: &str) -> (u16, String, Duration) {
        let began = Instant::now();
        let answer = self.head(&format!("/v2/{repository}/manifests/{tag}?ns=docker.io"));
        (answer.status, answer.header("cache-status").unwrap_or("").to_owned(), began.elapsed())
    }

    /// Gets a tag's manifests, as clients do before they ask for blobs: what these name may be kept.
    pub fn manifests(&self, registry: &str, repository: &str, tag: &str, headers: &[(&str, &str)]) {
        let path = |reference: &str| format!("/v2/{repository}/manifests/{reference}?ns={registry}");
        let index = self.request("GET", &path(tag), headers).body().unwrap();
        let wanted: larder::oci::Platform = PLATFORM.parse().unwrap();
        let index = larder::oci::Manifest::parse(&index, None).unwrap();
        for child in index.children.iter().filter(|child| child.platform.as_ref() == Some(&wanted)) {
            self.request("GET", &path(&child.digest.to_string()), headers).body().unwrap();
        }
    }

    pub fn pull(&self, repository: &str, tag: &str) -> Result<Pulled, PullError> {
        client::pull(self.addr, Some("docker.io"), repository, tag, PLATFORM, PATIENCE)
    }

    /// Every file under `blobs/` hashes to its name; how many there are.
    pub fn check_blobs(&self) -> usize {
        check_blobs(&self.data())
    }

    /// A sample of `/metrics`.
    pub fn metric(&self, name: &str) -> u64 {
        let text = String::from_utf8(self.get("/metrics").body().unwrap()).unwrap();
        let sample = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        sample.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
    }

    pub fn has_blob(&self, digest: &Digest) -> bool {
        self.data().join("blobs").join(digest.algorithm().name()).join(digest.hex()).exists()
    }

    /// Waits until the upstream answers tags again.
    pub fn wait_until_up(&self, repository: &str, tag: &str) -> Duration {
        let began = Instant::now();
        while !self.ask(repository, tag).1.contains("upstream") {
            assert!(began.elapsed() < PATIENCE, "the upstream's return went unnoticed:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        began.elapsed()
    }

    /// Waits until `done` says so.
    pub fn wait_until(&self, what: &str, done: impl Fn() -> bool) {
        let began = Instant::now();
        while !done() {
            assert!(began.elapsed() < PATIENCE, "{what} never happened:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("log of the board:\n{}", self.log());
        }
    }
}

/// Held for writing while a process begins, for reading by who must not share its descriptors.
static SPAWNING: RwLock<()> = RwLock::new(());

/// A registry at an address that is this process's alone, for a test that counts on it to be gone: a port that is free
/// again can be another test's, whose registry would answer.
pub fn upstream_of_this_process() -> Upstream {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    Upstream::start_at([127, 64 | high, middle, low.max(1)].into()).unwrap()
}

/// Begins a process. All tests begin theirs here, see [`without_spawning`].
pub fn spawn(command: &mut Command) -> Child {
    let _alone = SPAWNING.write().unwrap();
    command.spawn().unwrap()
}

/// Begins a process and waits for its end and all that it prints.
pub fn output(command: &mut Command) -> Output {
    spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))
        .wait_with_output()
        .unwrap()
}

/// Does `work` while no process begins. Between fork and exec a new process has a copy of every descriptor of this one, so
/// that a flock(2) that this one lets go of is still held: what takes such a lock in the tests' own process does it here.
pub fn without_spawning<T>(work: impl FnOnce() -> T) -> T {
    let _nobody = SPAWNING.read().unwrap();
    work()
}

fn binary(folder: &Folder) -> Command {
    // Another build of the same program, such as a static one, can be put to the same tests.
    let program = std::env::var_os("LARDER").unwrap_or_else(|| env!("CARGO_BIN_EXE_larder").into());
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/bin:/bin");
    command.arg("--config").arg(folder.0.join("larder.toml")).arg("--data-dir").arg(folder.0.join("data"));
    command
}

type Log = Arc<(Mutex<Vec<String>>, Condvar)>;

/// Starts the server on a port of the kernel's choice and reads from its log which it is.
fn start(folder: &Folder, environment: &Environment) -> Result<(Child, Log, SocketAddr), String> {
    let mut command = binary(folder);
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    command.args(["--listen", "127.0.0.1:0", "-v", "serve"]).stderr(Stdio::piped()).stdout(Stdio::null());
    let mut child = spawn(&mut command);
    let log: Log = Arc::default();
    let (stderr, lines) = (child.stderr.take().unwrap(), Arc::clone(&log));
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            lines.0.lock().unwrap().push(line);
            lines.1.notify_all();
        }
        lines.0.lock().unwrap().push("(end of the log)".into());
        lines.1.notify_all();
    });
    let deadline = Instant::now() + PATIENCE;
    let mut lines = log.0.lock().unwrap();
    let addr = loop {
        let found = lines.iter().find_map(|line| {
            line.split("listening on ").nth(1)?.split("://").nth(1)?.split(',').next()?.parse().ok()
        });
        if let Some(addr) = found {
            break addr;
        }
        let ended = lines.iter().any(|line| line == "(end of the log)");
        let left = deadline.saturating_duration_since(Instant::now());
        if ended || left.is_zero() {
            let _ = child.kill();
            let _ = child.wait();
            return Err(lines.join("\n"));
        }
        lines = log.1.wait_timeout(lines, left).unwrap().0;
    };
    drop(lines);
    Ok((child, log, addr))
}

/// Every file under `blobs/` of a data folder hashes to its name; how many there are.
pub fn check_blobs(data: &Path) -> usize {
    let mut count = 0;
    for algorithm in larder::oci::Algorithm::ALL {
        let Ok(entries) = std::fs::read_dir(data.join("blobs").join(algorithm.name())) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let expected = Digest::from_hex(algorithm, name).expect("only blobs lie under blobs/");
            let mut hasher = Hasher::new(algorithm);
            let mut bytes = Vec::new();
            std::fs::File::open(&path).unwrap().read_to_end(&mut bytes).unwrap();
            hasher.update(&bytes);
            assert_eq!(hasher.finish(), expected, "{}", path.display());
            count += 1;
        }
    }
    count
}
