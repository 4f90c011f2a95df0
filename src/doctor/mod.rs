//! What is wrong with a board, how bad it is, and the command that fixes it.
//!
//! - `board`: clock, memory, page size
//! - `disk`: the file system under the data folder, its room, its speed, whether its flushes can be believed
//! - `neighbours`: at which free room a kubelet or K3s acts
//! - `network`: the server, its ports, the upstreams
//! - `pulls`: do clients use larder, and what is stored twice
//! - `read`: the text of /proc and /sys, made into numbers; pure
//!
//! Nothing here changes the board, but for a file without a name that the disk's speed is measured with. Every look is
//! bounded in time and size (`budget`), and one that fails is a finding and never the end. All facts of the system are
//! read below one root, so that a board of any kind can be made up.

mod board;
mod disk;
mod neighbours;
mod network;
mod pulls;
mod read;

#[cfg(test)]
mod tests;

use crate::budget;
use crate::config::Config;
use serde::Serialize;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Good to know; nothing has to be done.
    Note,
    /// It works now, and will not in a case that boards meet.
    Warning,
    /// It does not work.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at: `clock`, `disk`, `memory`, `server`, `port`, `upstream`, `client`, `duplicates`.
    pub area: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// A sentence.
    pub what: String,
    /// The command, or the lines of a file, that fix it.
    pub mend: Option<String>,
}

impl Finding {
    fn new(area: &'static str, severity: Severity, what: impl Into<String>) -> Finding {
        Finding { area, severity, what: what.into(), mend: None }
    }

    fn ok(area: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(area, Severity::Ok, what)
    }

    fn note(area: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(area, Severity::Note, what)
    }

    fn warning(area: &'static str, what: impl Into<String>, mend: impl Into<String>) -> Finding {
        Finding { mend: Some(mend.into()), ..Finding::new(area, Severity::Warning, what) }
    }

    fn bad(area: &'static str, what: impl Into<String>, mend: impl Into<String>) -> Finding {
        Finding { mend: Some(mend.into()), ..Finding::new(area, Severity::Bad, what) }
    }

    fn with(mut self, mend: impl Into<String>) -> Finding {
        self.mend = Some(mend.into());
        self
    }

    /// Whether there is something to mend.
    pub fn is_wrong(&self) -> bool {
        self.severity >= Severity::Warning
    }
}

/// The board that is looked at.
#[derive(Clone, Debug)]
pub struct System {
    /// Where its `/` is.
    root: PathBuf,
    now: SystemTime,
    /// Bytes of a page.
    page_bytes: u64,
}

impl System {
    /// This board.
    pub fn this() -> System {
        System {
            root: PathBuf::from("/"),
            now: SystemTime::now(),
            page_bytes: rustix::param::page_size() as u64,
        }
    }

    /// A board that is made up of files below `root`, at a time and with pages of so many bytes.
    pub fn made_up(root: &Path, now: SystemTime, page_bytes: u64) -> System {
        System { root: root.to_owned(), now, page_bytes }
    }

    /// The same, with the files of the system below `root`.
    pub fn below(self, root: &Path) -> System {
        System { root: root.to_owned(), ..self }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn has(&self, path: &str) -> bool {
        self.at(path).exists()
    }

    /// The text of a file; `None` if it cannot be read.
    fn text(&self, path: &str) -> Option<String> {
        let mut text = String::new();
        File::open(self.at(path)).ok()?.take(budget::DOCTOR_TEXT_BYTES_MAX).read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// A number alone in a file.
    fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.trim().parse().ok()
    }
}

/// Looks at everything.
pub fn examine(config: &Config, system: &System) -> Vec<Finding> {
    // The upstreams take longest.
    let upstreams = network::begin_upstreams(config);
    let mut findings = board::clock(system);
    findings.extend(board::memory(config, system));
    findings.push(board::pages(system));
    findings.extend(disk::disk(config, system));
    let server = network::server(config, system, &mut findings);
    findings.extend(network::ports(config, system, server));
    findings.extend(pulls::clients(config, system));
    findings.extend(pulls::duplicates(config, system));
    findings.extend(network::upstreams(upstreams));
    findings
}
