//! `larder demo`: the main job with nothing else installed.
//!
//! It starts an upstream of its own with a small image, and the real server on a real socket - the same code as
//! `serve` - pulls through it, cuts, hangs, slows and moves the upstream, and prints what it measured. A situation that
//! does not hold is a failure, with exit status 1.

use super::print;
use super::serve::{RunningServer, runtime};
use crate::config::{
    AuthSettings, Config, DiskSettings, EndpointSettings, MinFree, UpstreamAccess, UpstreamSettings,
};
use crate::demo::client::{self, PullError, Pulled};
use crate::demo::image::SampleImage;
use crate::demo::upstream::{Behaviour, FaultyRegistry};
use crate::text::bytes_text;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const REGISTRY: &str = "docker.io";
const REPOSITORY: &str = "lab/app";
/// Layers of the image, in bytes.
const LAYERS: [usize; 3] = [3_000_000, 700_000, 20_000];
/// What the contract allows once the breaker is open.
const AT_ONCE: Duration = Duration::from_millis(10);
/// Added to each bound for loopback, a busy machine and qemu.
const LEEWAY: Duration = Duration::from_secs(2);
/// Longest the return of the upstream may go unnoticed.
const BACK_WITHIN: Duration = Duration::from_secs(30);
/// Longest any request may take; beyond it the demo has hung.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Runs the demo with the time-outs of `config`, in a folder that it removes.
pub fn run(config: &Config) -> ExitCode {
    match Demo::start(config).and_then(Demo::play) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            log::error!("at least one situation did not meet its bound");
            ExitCode::from(1)
        }
        Err(problem) => {
            log::error!("the demo could not run: {problem}");
            ExitCode::from(1)
        }
    }
}

struct Demo {
    folder: PathBuf,
    upstream: FaultyRegistry,
    running: Option<RunningServer>,
    address: SocketAddr,
    platform: String,
    deadline: Duration,
    header_timeout: Duration,
    rows: Vec<Row>,
}

/// One line of the table.
struct Row {
    situation: &'static str,
    answer: String,
    bound: String,
    measured: String,
    held: bool,
}

impl Demo {
    fn start(config: &Config) -> Result<Demo, String> {
        let folder = std::env::temp_dir().join(format!("larder-demo-{}", std::process::id()));
        let upstream = FaultyRegistry::start().map_err(|e| format!("cannot start an upstream: {e}"))?;
        let name = REGISTRY.parse().map_err(|e: crate::oci::Invalid| e.to_string())?;
        let config = Config {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
            data_dir: folder.clone(),
            upstreams: vec![UpstreamSettings {
                name,
                endpoints: vec![EndpointSettings::at(upstream.url())],
                access: UpstreamAccess::default(),
            }],
            tls: None,
            auth: AuthSettings::default(),
            kit: None,
            // It shows how images are served, on a disk that is full too.
            disk: DiskSettings { min_free: MinFree::Bytes(0), ..config.disk.clone() },
            ..config.clone()
        };
        let platform = config.platforms.first().map_or_else(String::new, ToString::to_string);
        let (deadline, header_timeout) = (config.tags.resolve_deadline, config.fetch.header_timeout);
        let running = RunningServer::start(runtime()?, config, Vec::new(), false)?;
        let address = *running.addresses().first().ok_or("it listens nowhere")?;
        let running = Some(running);
        Ok(Demo { folder, upstream, running, address, platform, deadline, header_timeout, rows: Vec::new() })
    }

    fn play(mut self) -> Result<bool, String> {
        let first = SampleImage::multi_arch(1, &LAYERS);
        let second = SampleImage::multi_arch(2, &LAYERS);
        self.upstream.push(REPOSITORY, "latest", &first);
        print_line(&format!(
            "larder on {} in front of an upstream on {}; image {REPOSITORY}:latest for {}\n",
            self.address,
            self.upstream.addr(),
            self.platform
        ));
        self.online(&first)?;
        self.moved(&second)?;
        self.slow()?;
        self.cut_body()?;
        self.hanging()?;
        self.refused(&second)?;
        self.back()?;
        let held = self.rows.iter().all(|row| row.held);
        print_line(&self.table());
        Ok(held)
    }

    fn online(&mut self, image: &SampleImage) -> Result<(), String> {
        let pulled = self.pull("latest").map_err(|e| e.to_string())?;
        let right = pulled.digest == image.root;
        let took = format!(
            "{} in {}, first byte after {}",
            bytes_text(pulled.bytes),
            ms(pulled.elapsed),
            ms(pulled.first_byte)
        );
        self.row("online, not cached", "upstream's newest", "upstream's own latency", took, right);
        let before = self.upstream.count("GET", "/manifests/");
        let again = self.pull("latest").map_err(|e| e.to_string())?;
        let metered = self.upstream.count("GET", "/manifests/") - before;
        let text = format!("{}, {metered} manifests fetched again", ms(again.elapsed));
        self.row(
            "online, cached",
            "verified by HEAD",
            "no download",
            text,
            metered == 0 && again.digest == image.root,
        );
        Ok(())
    }

    fn moved(&mut self, image: &SampleImage) -> Result<(), String> {
        self.upstream.push(REPOSITORY, "latest", image);
        let pulled = self.pull("latest").map_err(|e| e.to_string())?;
        let held = pulled.digest == image.root && pulled.tag_status.contains("upstream");
        self.row("online, the tag moved", "upstream's newest", "at once", ms(pulled.tag_time), held);
        Ok(())
    }

    fn slow(&mut self) -> Result<(), String> {
        let delay = self.deadline / 2;
        self.upstream.on(None, "/manifests/", Behaviour::Delay(delay));
        let (status, took, tier) = self.ask_tag("latest")?;
        self.upstream.clear();
        let text = format!("{} after {} ({tier})", status, ms(took));
        let held = status == 200 && tier.contains("upstream") && took < self.deadline + LEEWAY;
        self.row("slow link, within the deadline", "upstream's newest", &ms(self.deadline), text, held);
        Ok(())
    }

    fn cut_body(&mut self) -> Result<(), String> {
        let image = SampleImage::multi_arch(3, &LAYERS);
        self.upstream.push("lab/cut", "latest", &image);
        self.upstream.on(Some("GET"), "/blobs/", Behaviour::CutBodyAfter(1_000_000));
        let sent = self.upstream.blob_bytes_sent();
        let pulled =
            client::pull(self.address, Some(REGISTRY), "lab/cut", "latest", &self.platform, WAIT_MAX);
        self.upstream.clear();
        let pulled = pulled.map_err(|e| e.to_string())?;
        let cost = (self.upstream.blob_bytes_sent() - sent) as f64 / pulled.bytes.max(1) as f64;
        let text = format!("{}, upstream sent {cost:.2} times its bytes", ms(pulled.elapsed));
        self.row("a layer is cut every 1 MB", "resumed by Range", "bytes sent once", text, cost < 1.05);
        Ok(())
    }

    fn hanging(&mut self) -> Result<(), String> {
        self.upstream.on(None, "/v2/", Behaviour::HangBeforeHeader);
        let (status, first, tier) = self.ask_tag("latest")?;
        let held = status == 200
            && tier.contains("last-complete")
            && first < self.deadline + Duration::from_millis(100) + LEEWAY;
        let text = format!("{status} after {} ({tier})", ms(first));
        let bound = format!("{} for the first request", ms(self.deadline));
        self.row("upstream hangs, cached", "last complete", &bound, text, held);
        self.next_requests()?;
        let (status, took, _) = self.ask_tag_of("lab/never", "latest")?;
        let held = status == 502 && took < self.header_timeout + Duration::from_secs(5) + LEEWAY;
        let text = format!("{status} after {}", ms(took));
        self.row("upstream hangs, not cached", "502", &ms(self.header_timeout), text, held);
        self.upstream.clear();
        self.upstream.release();
        Ok(())
    }

    fn refused(&mut self, newest: &SampleImage) -> Result<(), String> {
        self.wait_until_back()?;
        self.upstream.hang_up();
        let (status, took, tier) = self.ask_tag("latest")?;
        let held = status == 200 && tier.contains("last-complete") && took < self.deadline + LEEWAY;
        self.row(
            "uplink gone, cached",
            "last complete",
            &ms(self.deadline),
            format!("{status} after {} ({tier})", ms(took)),
            held,
        );
        self.next_requests()?;
        let pulled = self.pull("latest").map_err(|e| e.to_string())?;
        let text = format!("{} in {}", bytes_text(pulled.bytes), ms(pulled.elapsed));
        self.row(
            "  a full pull by a new client",
            "every byte from the board",
            "no upstream",
            text,
            pulled.digest == newest.root,
        );
        let (status, took, _) = self.ask_tag_of("lab/never", "latest")?;
        self.row(
            "uplink gone, not cached",
            "502",
            "at once",
            format!("{status} after {}", ms(took)),
            status == 502 && took < AT_ONCE + LEEWAY,
        );
        Ok(())
    }

    fn back(&mut self) -> Result<(), String> {
        self.upstream.come_back().map_err(|e| format!("the upstream could not come back: {e}"))?;
        let took = self.wait_until_back()?;
        self.row("the uplink is back", "upstream's newest", &ms(BACK_WITHIN), ms(took), took < BACK_WITHIN);
        Ok(())
    }

    /// Asks until upstream answers again.
    fn wait_until_back(&self) -> Result<Duration, String> {
        let began = Instant::now();
        while began.elapsed() < BACK_WITHIN {
            let (_, _, tier) = self.ask_tag("latest")?;
            if tier.contains("upstream") {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(began.elapsed())
    }

    /// The slowest of 50 requests once the breaker is open.
    fn next_requests(&mut self) -> Result<(), String> {
        let (mut worst, mut tier) = (Duration::ZERO, String::new());
        for _ in 0..50 {
            let (_, took, by) = self.ask_tag("latest")?;
            if took >= worst {
                (worst, tier) = (took, by);
            }
        }
        let held = tier.contains("last-complete") && worst < AT_ONCE + LEEWAY;
        let text = format!("slowest {} ({tier})", ms(worst));
        self.row("  the next 50 requests", "last complete", &ms(AT_ONCE), text, held);
        Ok(())
    }

    fn ask_tag(&self, tag: &str) -> Result<(u16, Duration, String), String> {
        self.ask_tag_of(REPOSITORY, tag)
    }

    /// HEAD of a tag, as containerd asks: status, time, Cache-Status.
    fn ask_tag_of(&self, repository: &str, tag: &str) -> Result<(u16, Duration, String), String> {
        let path = format!("/v2/{repository}/manifests/{tag}?ns={REGISTRY}");
        let began = Instant::now();
        let answer =
            client::request(self.address, "HEAD", &path, &[], WAIT_MAX).map_err(|e| e.to_string())?;
        let status = answer.header("cache-status").unwrap_or("").trim_start_matches("larder; ").to_owned();
        Ok((answer.status, began.elapsed(), status))
    }

    fn pull(&self, tag: &str) -> Result<Pulled, PullError> {
        client::pull(self.address, Some(REGISTRY), REPOSITORY, tag, &self.platform, WAIT_MAX)
    }

    fn row(&mut self, situation: &'static str, answer: &str, bound: &str, measured: String, held: bool) {
        self.rows.push(Row { situation, answer: answer.to_owned(), bound: bound.to_owned(), measured, held });
    }

    fn table(&self) -> String {
        let mut out = String::from("| situation | answer | bound | measured | |\n|---|---|---|---|---|\n");
        for row in &self.rows {
            let verdict = if row.held { "holds" } else { "BROKEN" };
            out += &format!(
                "| {} | {} | {} | {} | {verdict} |\n",
                row.situation, row.answer, row.bound, row.measured
            );
        }
        out
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn ms(time: Duration) -> String {
    let millis = time.as_secs_f64() * 1000.0;
    if millis < 10.0 { format!("{millis:.1} ms") } else { format!("{millis:.0} ms") }
}

fn print_line(text: &str) {
    // A closed pipe is no reason to stop: the exit status still says whether everything held.
    let _ = print::out(&format!("{text}\n"));
}
