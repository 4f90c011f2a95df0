//! `larder serve`: the store, the mirror, the listeners, and a clean shutdown.

use super::logger;
use crate::budget;
use crate::config::Config;
use crate::control::{self, Admin};
use crate::fetch::Upstreams;
use crate::http::{Listener, Server};
use crate::mirror::Mirror;
use crate::report::{IndexReport, Snapshot};
use crate::store::{Startup, Store, StoreError, work_as_owner};
use crate::sync::start_workers;
use crate::watch::{Notify, Pulse, inherited_listeners};
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Runs the mirror until SIGTERM or SIGINT.
pub fn run(config: &Config) -> ExitCode {
    for section in config.not_yet() {
        log::warn!("{section} in the configuration: read, but without effect in this version");
    }
    if config.warm.is_some() {
        log::warn!(
            "[warm]: its images are protected from removal, but not yet fetched in advance; pull each of them once"
        );
    }
    match serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            log::error!("{problem}");
            ExitCode::from(1)
        }
    }
}

fn serve(config: &Config) -> Result<(), String> {
    let inherited = inherited_listeners()?;
    let notify = Arc::new(Notify::from_environment());
    // This must happen while there is one thread.
    work_as_owner(&config.data_dir).map_err(|e| e.to_string())?;
    let runtime = runtime()?;
    // Before the store is opened, so that a stop during the start is a clean shutdown too.
    let signals = {
        let _inside = runtime.enter();
        Signals::listen()?
    };
    let running = RunningServer::start(runtime, config.clone(), inherited, true)?;
    running.runtime.spawn(logger::limit());
    notify.ready(&running.status());
    running.report_to(&notify);
    running.runtime.block_on(signals.wait());
    notify.stopping();
    running.stop();
    Ok(())
}

/// The threads that connections are served on, and those that wait for the disk.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, String> {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    if let Some(files) = files.filter(|files| *files < budget::OPEN_FILES_MIN) {
        let least = budget::OPEN_FILES_MIN;
        return Err(format!(
            "the limit of open files is {files}; at least {least} are needed (LimitNOFILE=, ulimit -n)"
        ));
    }
    let failed = |e: std::io::Error| format!("cannot start a thread: {e}");
    start_workers().map_err(failed)?;
    // Where the system gives not even one, tokio panics.
    let probe = std::thread::Builder::new().spawn(|| {}).map_err(failed)?;
    let _ = probe.join();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, usize::from).clamp(1, 4))
        // Nothing runs there: what waits for the disk has threads of its own.
        .max_blocking_threads(1)
        .thread_stack_size(budget::THREAD_STACK_BYTES)
        .enable_all()
        .build()
        .map_err(|e| format!("cannot start the runtime: {e}"))
}

/// A running server, for `serve` and `demo`.
pub(super) struct RunningServer {
    runtime: tokio::runtime::Runtime,
    server: Arc<Server>,
    mirror: Arc<Mirror>,
    addresses: Vec<SocketAddr>,
    /// The listener for peers, which closes when this is dropped.
    peers: Option<crate::kit::Listening>,
}

impl RunningServer {
    /// Opens the store, binds the addresses and begins to serve.
    ///
    /// # Errors
    /// A sentence that says what is wrong and what to do.
    pub(super) fn start(
        runtime: tokio::runtime::Runtime,
        config: Config,
        inherited: Vec<TcpListener>,
        with_control: bool,
    ) -> Result<RunningServer, String> {
        let upstreams = Upstreams::new(&config)?;
        let (store, startup) = open_store(&config)?;
        let config = Arc::new(config);
        let mirror = Mirror::start(Arc::clone(&config), Arc::new(store), upstreams, startup)
            .map_err(|e| format!("cannot start a thread: {e}"))?;
        // A start that fails here must shut the store down cleanly; else later starts would take the index for corrupt.
        let stop = Arc::clone(&mirror);
        RunningServer::listen(runtime, mirror, inherited, with_control).inspect_err(|_| stop.stop())
    }

    fn listen(
        runtime: tokio::runtime::Runtime,
        mirror: Arc<Mirror>,
        inherited: Vec<TcpListener>,
        with_control: bool,
    ) -> Result<RunningServer, String> {
        let config = mirror.config();
        let server = Arc::new(Server::new(Arc::clone(&mirror))?);
        let listeners = runtime.block_on(async {
            // The sockets of a socket unit replace `listen`: systemd has bound those addresses already.
            if !inherited.is_empty() {
                return inherited.into_iter().map(Listener::inherited).collect();
            }
            let mut listeners = Vec::new();
            for address in &config.listen {
                listeners.push(Listener::bind(*address).await?);
            }
            Ok::<Vec<_>, String>(listeners)
        })?;
        let mut addresses = Vec::new();
        for listener in listeners {
            let address = listener.address().map_err(|e| e.to_string())?;
            addresses.push(address);
            let server = Arc::clone(&server);
            runtime.spawn(async move { server.serve(listener).await });
            let scheme = if config.tls.is_some() { "https" } else { "http" };
            log::info!("listening on {scheme}://{address}, keeping images in {}", config.data_dir.display());
        }
        let peers = mirror.serve_peers()?;
        if with_control {
            // If the disk takes no socket, its content can still be served.
            let admin = Admin::of(&config, mirror.store(), Arc::clone(&mirror) as Arc<_>);
            if let Err(problem) = control::socket::serve(admin, &config.data_dir) {
                log::error!("{problem}; larder commands cannot reach this server");
            }
        }
        Ok(RunningServer { runtime, server, mirror, addresses, peers })
    }

    /// The addresses that it listens on.
    pub(super) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Its status in one line.
    fn status(&self) -> String {
        status(&self.mirror.snapshot(), &self.addresses)
    }

    /// Reports its status to the service manager while it runs.
    fn report_to(&self, notify: &Arc<Notify>) {
        let (mirror, addresses) = (Arc::clone(&self.mirror), self.addresses.clone());
        let pulse = Pulse::of(Arc::clone(self.mirror.store()));
        self.runtime.spawn(pulse.tell(Arc::clone(notify), move || status(&mirror.snapshot(), &addresses)));
    }

    /// Stops within a few seconds; downloads that are under way can be resumed by the next start.
    pub(super) fn stop(self) {
        control::socket::remove(&self.mirror.config().data_dir);
        drop(self.peers);
        self.mirror.stop();
        self.runtime.block_on(self.server.stop(budget::STOP_GRACE));
        self.runtime.shutdown_timeout(budget::STOP_GRACE);
        // The last requests may have changed something.
        self.mirror.store().end();
        log::info!("stopped");
    }
}

/// The status of a server in one line.
fn status(report: &Snapshot, addresses: &[SocketAddr]) -> String {
    match report.index {
        IndexReport::Ready => {}
        IndexReport::Rebuilding => return "the index is being rebuilt; content is answered by digest".into(),
        IndexReport::CannotRebuild => {
            return "the index cannot be rebuilt; content is answered by digest".into();
        }
    }
    let addresses: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
    let down = report.upstreams.iter().filter(|upstream| upstream.is_down());
    let down: Vec<&str> = down.map(|upstream| upstream.name.as_str()).collect();
    let rest = if down.is_empty() { String::new() } else { format!("; out of reach: {}", down.join(", ")) };
    format!("answers on {}{rest}", addresses.join(", "))
}

/// Opens the store; waits while a command holds it.
fn open_store(config: &Config) -> Result<(Store, Startup), String> {
    let began = Instant::now();
    loop {
        match Store::open(&config.data_dir, config.tags.history) {
            Err(StoreError::Locked(_)) if began.elapsed() < budget::LOCK_WAIT_MAX => {
                std::thread::sleep(budget::LOCK_WAIT_STEP);
            }
            opened => return opened.map_err(|e| e.to_string()),
        }
    }
}

/// The signals that stop the server.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> Result<Signals, String> {
        let failed = |e: std::io::Error| format!("cannot listen for signals: {e}");
        Ok(Signals {
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
        })
    }

    async fn wait(mut self) {
        let name = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        };
        log::info!("{name}: stopping");
    }
}
