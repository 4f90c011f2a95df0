//! `ls`, `why`, `history`, `status`, `check`, `rollback`, `verify`: one command, its records gathered and printed for people or as
//! JSON. Failure is exit status 1 and a sentence.
//!
//! Nothing is printed before the answer is complete: columns are as wide as their widest cell, and a pager that does not
//! read must not block the server.

use super::print::{self, cell};
use crate::budget;
use crate::config::Config;
use crate::control::{
    self, Admin, AdminRecord, AdminRequest, CheckRow, CheckState, Completeness, CorruptBlob, HistoryReport,
    ImageRow, StatusReport, VerifyReport, WhyReport,
};
use crate::oci::Digest;
use crate::store::{StoreError, work_as_owner};
use crate::text::bytes_text;
use serde::Serialize;
use std::borrow::Cow;
use std::fmt::Write;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Instant;

/// Asks the running server, or the store itself if none runs, and prints the answer.
pub fn run(config: &Config, requests: &[AdminRequest], json: bool) -> ExitCode {
    run_with(config, requests, json, |_| {})
}

/// The same for requests of one kind, whose answers are one. `finish` is called with it before it is printed.
pub(super) fn run_with(
    config: &Config,
    requests: &[AdminRequest],
    json: bool,
    finish: impl FnOnce(&mut GatheredAnswer),
) -> ExitCode {
    let mut answer =
        GatheredAnswer { terminal: std::io::stderr().is_terminal(), ..GatheredAnswer::default() };
    let asked = requests.iter().try_for_each(|request| ask(config, request, &mut answer));
    finish(&mut answer);
    let (text, problem) = match (asked, requests.last()) {
        (Ok(()), Some(request)) => answer.show(request, json),
        (Ok(()), None) => (String::new(), None),
        (Err(problem), _) => (String::new(), Some(problem)),
    };
    let printed = print::out(&text).map_err(|e| format!("cannot print: {e}"));
    match problem.map_or(printed, Err) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            log::error!("{problem}");
            ExitCode::from(1)
        }
    }
}

fn ask(config: &Config, request: &AdminRequest, answer: &mut GatheredAnswer) -> Result<(), String> {
    let began = Instant::now();
    loop {
        if control::socket::ask(&config.data_dir, request, &mut |record| answer.take(record))? {
            return Ok(());
        }
        if !config.data_dir.exists() {
            return Err(format!("there is no store at {}; is data_dir right?", config.data_dir.display()));
        }
        // Files that root writes into larder's store must belong to larder.
        work_as_owner(&config.data_dir).map_err(|e| e.to_string())?;
        match Admin::open(config) {
            Ok(admin) => {
                admin.execute(request, &mut |record| {
                    answer.take(record);
                    Ok(())
                });
                return Ok(());
            }
            // A server that starts or stops, or another command: the lock is free again soon.
            Err(StoreError::Locked(_)) if began.elapsed() < budget::LOCK_WAIT_MAX => {
                std::thread::sleep(budget::LOCK_WAIT_STEP);
            }
            Err(problem) => return Err(problem.to_string()),
        }
    }
}

/// The records of an answer, put together.
#[derive(Default)]
pub(super) struct GatheredAnswer {
    /// Progress can be shown.
    terminal: bool,
    images: Vec<ImageRow>,
    checked: Vec<CheckRow>,
    why: Option<Box<WhyReport>>,
    history: Option<HistoryReport>,
    status: Option<Box<StatusReport>>,
    corrupt: Vec<CorruptBlob>,
    verified: Option<VerifyReport>,
    done: String,
    failed: Option<String>,
}

impl GatheredAnswer {
    fn take(&mut self, record: AdminRecord) {
        match record {
            AdminRecord::Image(row) => self.images.push(row),
            AdminRecord::Checked(row) => {
                let mut row = *row;
                // Requests that follow each other may come to the same image.
                let same = |known: &CheckRow| known.image == row.image && known.platform == row.platform;
                if let Some(at) = self.checked.iter().position(same) {
                    let known = self.checked.remove(at);
                    (row.warm, row.pinned) = (row.warm || known.warm, row.pinned || known.pinned);
                }
                self.checked.push(row);
            }
            AdminRecord::Missing(part) => {
                self.checked.last_mut().into_iter().for_each(|row| row.missing.push(part.clone()));
            }
            AdminRecord::Why(why) => self.why = Some(why),
            AdminRecord::Part(row) => self.why.iter_mut().for_each(|why| why.parts.push(row.clone())),
            AdminRecord::History(history) => self.history = Some(history),
            AdminRecord::Version(row) => self.history.iter_mut().for_each(|of| of.versions.push(row.clone())),
            AdminRecord::Status(status) => self.status = Some(status),
            AdminRecord::Done(message) => self.done = message,
            AdminRecord::Corrupt(more) => match self.corrupt.last_mut() {
                Some(blob) if blob.digest == more.digest => blob.images.extend(more.images),
                _ => self.corrupt.push(more),
            },
            AdminRecord::Verified(verified) => {
                self.progress("");
                self.verified = Some(VerifyReport { bad: std::mem::take(&mut self.corrupt), ..verified });
            }
            AdminRecord::Progress(done, total) => {
                let percent = (done * 100).checked_div(total).unwrap_or(100);
                self.progress(&format!("{} of {} ({percent} %) ", bytes_text(done), bytes_text(total)));
            }
            AdminRecord::Failed(problem) => self.failed = Some(problem),
        }
    }

    /// Says of these images that pods need them.
    pub(super) fn mark_sandbox(&mut self, names: &[String]) {
        self.checked.iter_mut().for_each(|row| row.sandbox = names.contains(&row.image));
    }

    fn progress(&self, text: &str) {
        if self.terminal {
            print::progress(text);
        }
    }

    /// The text to print, and why the command failed.
    fn show(self, request: &AdminRequest, json: bool) -> (String, Option<String>) {
        if matches!(request, AdminRequest::Check { .. }) && self.failed.is_none() {
            let text = text_of(&self.checked, json, |rows| checked(rows));
            return (text, check_problem(&self.checked));
        }
        let corrupt = self.verified.as_ref().and_then(corrupt_text);
        let text = match (self.why, self.history, self.status, self.verified) {
            _ if self.failed.is_some() => String::new(),
            (Some(of), ..) => text_of(&of, json, |of| why(of)),
            (_, Some(of), ..) => text_of(&of, json, history),
            (_, _, Some(of), _) => text_of(&of, json, |of| status(of)),
            (.., Some(of)) => text_of(&of, json, verified),
            _ if *request == AdminRequest::Ls => text_of(&self.images, json, |images| ls(images)),
            _ => format!("{}\n", cell(&self.done)),
        };
        (text, self.failed.or(corrupt))
    }
}

fn text_of<T: Serialize>(value: &T, json: bool, text: impl FnOnce(&T) -> String) -> String {
    // Records are plain data that came as JSON, or could have.
    if json { serde_json::to_string_pretty(value).unwrap_or_default() + "\n" } else { text(value) }
}

fn ls(images: &[ImageRow]) -> String {
    let mut rows = vec![["IMAGE", "STATE", "SIZE", "DIGEST", "NOTE"].map(str::to_owned)];
    for image in images {
        let mut notes = Vec::new();
        match (&image.newer, image.state) {
            (Some(newer), _) => notes.push(format!("upstream has {}, not complete here", newer.short())),
            (None, Completeness::Partial) => {
                notes.push(format!("{} missing", bytes_text(image.missing_bytes)))
            }
            (None, Completeness::Complete) => {}
        }
        if image.pinned {
            notes.push("pinned".into());
        }
        if image.frees != image.bytes {
            notes.push(format!("would free {}", bytes_text(image.frees)));
        }
        let note = notes.join(", ");
        let state = state_word(image.state).to_owned();
        rows.push([image.image.clone(), state, bytes_text(image.bytes), image.digest.short(), note]);
    }
    table(&rows)
}

fn checked(rows: &[CheckRow]) -> String {
    let mut cells = vec![["IMAGE", "PLATFORM", "STATE", "SIZE", "NOTE"].map(str::to_owned)];
    for row in rows {
        let state = match row.state {
            CheckState::Ready => "ready",
            CheckState::Incomplete => "incomplete",
            CheckState::Absent => "absent",
            CheckState::OtherPlatform => "other platform",
            CheckState::Corrupt => "corrupt",
        };
        let why = [(row.sandbox, "needed by each pod"), (row.pinned, "pinned"), (row.warm, "in [warm]")];
        let why = why.iter().filter(|(holds, _)| *holds).map(|(_, note)| (*note).to_owned());
        let notes: Vec<String> = row.problem.clone().into_iter().chain(why).collect();
        let platform = row.platform.to_string();
        cells.push([row.image.clone(), platform, state.to_owned(), bytes_text(row.bytes), notes.join(", ")]);
    }
    let mut out = table(&cells);
    for row in rows.iter().filter(|row| !row.missing.is_empty()) {
        let _ = writeln!(out, "\n{} ({}):", cell(&row.image), row.platform);
        for part in &row.missing {
            let _ = writeln!(out, "  MISSING {:>10}  {}", bytes_text(part.bytes), part.digest);
        }
    }
    out
}

/// Why the exit status is not 0.
fn check_problem(rows: &[CheckRow]) -> Option<String> {
    let lacking = rows.iter().filter(|row| row.state != CheckState::Ready).count();
    match (rows.len(), lacking) {
        (0, _) => Some("no image is wanted: name some, list them under [warm], or pin them".to_owned()),
        (_, 0) => None,
        (1, _) => Some("it would not start with the uplink gone".to_owned()),
        (all, _) => Some(format!("{lacking} of {all} would not start with the uplink gone")),
    }
}

fn why(why: &WhyReport) -> String {
    let digest = |digest: &Option<Digest>| digest.as_ref().map_or("nothing".to_owned(), ToString::to_string);
    let mut lines =
        vec![("upstream's digest", digest(&why.seen)), ("newest complete", digest(&why.complete))];
    lines.extend(why.rolled_back_to.iter().map(|to| ("rolled back to", to.to_string())));
    let offline = why.offline.as_ref().map(|(digest, tier)| format!("{digest} ({tier})"));
    lines.push(("served offline", offline.unwrap_or("502: no version of it is complete".into())));
    lines.push(("upstream", why.upstream.clone()));
    lines.push(("policy", why.policy.clone()));
    let platforms: Vec<String> = why.platforms.iter().map(ToString::to_string).collect();
    lines.push(("platforms", platforms.join(", ")));
    let mut out = format!("{}\n", cell(&why.image));
    lines.iter().for_each(|(label, text)| out += &format!("  {label:<20}{}\n", cell(text)));
    for part in &why.parts {
        let here = if part.here { "here   " } else { "MISSING" };
        let _ = writeln!(out, "  {here} {:>10}  {}", bytes_text(part.bytes), part.digest);
    }
    out
}

fn history(history: &HistoryReport) -> String {
    let mut rows = vec![["DIGEST", "NOTED", "STATE", "NOTE"].map(str::to_owned)];
    for version in &history.versions {
        let notes = [
            (version.seen, "upstream's digest"),
            (version.peer, "named by a peer"),
            (version.served_offline, "served offline"),
        ];
        let notes: Vec<&str> = notes.iter().filter(|(holds, _)| *holds).map(|(_, note)| *note).collect();
        let noted = version.noted.clone().unwrap_or_else(|| "clock not set".into());
        rows.push([
            version.digest.to_string(),
            noted,
            state_word(version.state).to_owned(),
            notes.join(", "),
        ]);
    }
    table(&rows)
}

fn status(status: &StatusReport) -> String {
    let running = status.uptime_seconds.map(|seconds| format!("running for {seconds} s"));
    let (stored, free) = (bytes_text(status.stored_bytes), bytes_text(status.free_bytes));
    let mut lines = vec![
        ("server", running.unwrap_or("not running".into())),
        ("store", status.data_dir.clone()),
        ("disk", format!("{stored} in {} blobs, {free} free", status.blobs)),
    ];
    if status.free_bytes < status.min_free_bytes {
        let least = bytes_text(status.min_free_bytes);
        lines.push((
            "no room",
            format!("{least} stay free (disk.min_free): nothing new is stored, see larder doctor"),
        ));
    }
    lines.extend(status.max_bytes.map(|max| ("disk.max", bytes_text(max))));
    let next = status.next_to_go.as_ref();
    lines.extend(next.map(|(what, bytes)| ("goes next", format!("{what}, {}", bytes_text(*bytes)))));
    let (complete, partial) = (status.images_complete, status.images_partial);
    lines.push(("images", format!("{complete} complete, {partial} partial")));
    if status.wanted > 0 {
        let absent = status.wanted_absent;
        let text = match absent {
            0 => format!("{}, all would start with the uplink gone", status.wanted),
            _ => format!("{}, {absent} would not start with the uplink gone: larder check", status.wanted),
        };
        lines.push(("wanted", text));
    }
    let (fills, parked) = (status.fills, status.fills_parked);
    lines.push(("downloads", format!("{fills} under way, {parked} waiting for their upstream")));
    lines.push(("clock", if status.clock_trusted { "set" } else { "not set" }.into()));
    lines.extend(status.upstreams.iter().map(|upstream| {
        let (state, bytes) = (upstream.state.as_deref().unwrap_or("-"), bytes_text(upstream.bytes));
        ("upstream", format!("{} ({}): {state}, {bytes}", upstream.name, upstream.url))
    }));
    lines.extend(
        status
            .peers
            .iter()
            .map(|peer| ("peer", format!("{}: {}", peer.address, peer.state.as_deref().unwrap_or("-")))),
    );
    let mut out = format!("larder {}\n", status.version);
    lines.iter().for_each(|(label, text)| out += &format!("{label:<11}{}\n", cell(text)));
    out
}

fn verified(verified: &VerifyReport) -> String {
    let mut text = String::new();
    for bad in &verified.bad {
        let images =
            if bad.images.is_empty() { String::new() } else { format!(" (of {})", bad.images.join(", ")) };
        let _ = writeln!(text, "{}: {}{}", bad.digest, cell(&bad.problem), cell(&images));
    }
    let (blobs, bytes, bad) = (verified.blobs, bytes_text(verified.bytes), verified.bad.len());
    let _ = writeln!(text, "{blobs} blobs, {bytes}: {bad} corrupt");
    text
}

/// What happens to the corrupt blobs, if there are any.
fn corrupt_text(verified: &VerifyReport) -> Option<String> {
    let text = match verified.repaired {
        true => "corrupt blobs were quarantined; they are refetched as soon as their upstream can be reached",
        false => "run larder verify --repair to quarantine corrupt blobs and have them refetched",
    };
    (!verified.bad.is_empty()).then(|| text.to_owned())
}

fn state_word(state: Completeness) -> &'static str {
    match state {
        Completeness::Complete => "complete",
        Completeness::Partial => "partial",
    }
}

/// Columns as wide as their widest cell.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let rows: Vec<[Cow<'_, str>; N]> = rows.iter().map(|row| row.each_ref().map(|text| cell(text))).collect();
    let widths: Vec<usize> =
        (0..N).map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0)).collect();
    let mut out = String::new();
    for row in &rows {
        let line: Vec<String> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(out, "{}", line.join("  ").trim_end());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [["A", "B"], ["long name", "x"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "A          B\nlong name  x\n");
        let foreign = [["A", "B"], ["x\n\x1b[2Jy", "z"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&foreign), "A              B\nx\\n\\u001b[2Jy  z\n");
    }
}
