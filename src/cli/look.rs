//! `ls`, `why`, `history`, `status`, `rollback`, `verify`: one request to the desk, printed for people or as JSON.

use super::print;
use crate::budget;
use crate::config::Config;
use crate::control::{self, Desk, History, Image, Reply, Request, State, Status, Verified, Why};
use crate::oci::Digest;
use crate::store::{StoreError, work_as_owner};
use crate::text::bytes_text;
use std::fmt::Write;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Instant;

/// Asks the running server, or the store itself if none runs, and prints the answer.
pub fn run(config: &Config, request: &Request, json: bool) -> ExitCode {
    match ask(config, request) {
        Ok(reply) => show(&reply, json),
        Err(problem) => Outcome::failed(problem),
    }
    .end()
}

/// What is to be printed, and the exit status.
struct Outcome {
    text: String,
    problem: Option<String>,
}

impl Outcome {
    fn done(text: String) -> Outcome {
        Outcome { text, problem: None }
    }

    fn failed(problem: String) -> Outcome {
        Outcome { text: String::new(), problem: Some(problem) }
    }

    fn end(self) -> ExitCode {
        let printed = print::out(&self.text);
        match (self.problem, printed) {
            (None, Ok(())) => ExitCode::SUCCESS,
            (Some(problem), _) => {
                log::error!("{problem}");
                ExitCode::from(1)
            }
            (None, Err(e)) => {
                log::error!("cannot print: {e}");
                ExitCode::from(1)
            }
        }
    }
}

fn ask(config: &Config, request: &Request) -> Result<Reply, String> {
    let terminal = std::io::stderr().is_terminal();
    let mut progress = |done: u64, total: u64| {
        if terminal {
            let percent = (done * 100).checked_div(total).unwrap_or(100);
            print::note(&format!("\r{} of {} ({percent} %) ", bytes_text(done), bytes_text(total)));
        }
    };
    let began = Instant::now();
    let reply = loop {
        if let Some(reply) = control::socket::ask(&config.data_dir, request, &mut progress)? {
            break reply;
        }
        if !config.data_dir.exists() {
            return Err(format!("there is no store at {}; is data_dir right?", config.data_dir.display()));
        }
        // What root writes into a store of larder's must stay larder's.
        work_as_owner(&config.data_dir).map_err(|e| e.to_string())?;
        match Desk::open(config) {
            Ok(desk) => break desk.execute(request, &mut progress),
            // A server that starts or ends, or another command: both are soon over.
            Err(StoreError::Locked(_)) if began.elapsed() < budget::LOCK_WAIT_MAX => {
                std::thread::sleep(budget::LOCK_WAIT_STEP);
            }
            Err(problem) => return Err(problem.to_string()),
        }
    };
    if terminal && matches!(reply, Reply::Verify(_)) {
        print::note("\r\x1b[K");
    }
    Ok(reply)
}

fn show(reply: &Reply, json: bool) -> Outcome {
    let as_json = |value: serde_json::Result<String>| match value {
        Ok(text) => Outcome::done(text + "\n"),
        Err(e) => Outcome::failed(e.to_string()),
    };
    match reply {
        Reply::Ls(images) if json => as_json(serde_json::to_string_pretty(images)),
        Reply::Why(why) if json => as_json(serde_json::to_string_pretty(why)),
        Reply::History(history) if json => as_json(serde_json::to_string_pretty(history)),
        Reply::Status(status) if json => as_json(serde_json::to_string_pretty(status)),
        Reply::Ls(images) => Outcome::done(ls(images)),
        Reply::Why(why) => Outcome::done(self::why(why)),
        Reply::History(history) => Outcome::done(self::history(history)),
        Reply::Status(status) => Outcome::done(self::status(status)),
        Reply::Done(message) => Outcome::done(format!("{message}\n")),
        Reply::Verify(verified) => self::verified(verified, json),
        Reply::Progress(..) => Outcome::failed("the server answered out of turn".into()),
        Reply::Failed(problem) => Outcome::failed(problem.clone()),
    }
}

fn ls(images: &[Image]) -> String {
    let mut rows = vec![["IMAGE", "STATE", "SIZE", "DIGEST", "NOTE"].map(str::to_owned)];
    for image in images {
        let mut notes = Vec::new();
        match (&image.newer, image.state) {
            (Some(newer), _) => notes.push(format!("upstream has {}, not complete here", newer.short())),
            (None, State::Partial) => notes.push(format!("{} missing", bytes_text(image.missing_bytes))),
            (None, State::Complete) => {}
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

fn why(why: &Why) -> String {
    let mut out = format!("{}\n", why.image);
    let digest = |digest: &Option<Digest>| digest.as_ref().map_or("nothing".to_owned(), ToString::to_string);
    let _ = writeln!(out, "  upstream said last  {}", digest(&why.seen));
    let _ = writeln!(out, "  newest complete     {}", digest(&why.complete));
    if let Some(to) = &why.rolled_back_to {
        let _ = writeln!(out, "  rolled back to      {to}");
    }
    let _ = match &why.offline {
        Some((digest, tier)) => writeln!(out, "  uplink gone         {digest} ({tier})"),
        None => writeln!(out, "  uplink gone         502: no version of it is complete"),
    };
    let _ = writeln!(out, "  upstream            {}", why.upstream);
    let _ = writeln!(out, "  policy              {}", why.policy);
    let platforms: Vec<String> = why.platforms.iter().map(ToString::to_string).collect();
    let _ = writeln!(out, "  platforms           {}", platforms.join(", "));
    for part in &why.parts {
        let here = if part.here { "here   " } else { "MISSING" };
        let _ = writeln!(out, "  {here} {:>10}  {}", bytes_text(part.bytes), part.digest);
    }
    out
}

fn history(history: &History) -> String {
    let mut rows = vec![["DIGEST", "NOTED", "STATE", "NOTE"].map(str::to_owned)];
    for version in &history.versions {
        let notes = [
            (version.seen, "upstream's last"),
            (version.peer, "a peer's word"),
            (version.served_offline, "served with the uplink gone"),
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

fn status(status: &Status) -> String {
    let mut out = format!("larder {}\n", status.version);
    let running = match status.uptime_seconds {
        Some(seconds) => format!("running for {seconds} s"),
        None => "not running".to_owned(),
    };
    let _ = writeln!(out, "server     {running}");
    let _ = writeln!(out, "store      {}", status.data_dir);
    let _ = writeln!(
        out,
        "disk       {} in {} blobs, {} free",
        bytes_text(status.stored_bytes),
        status.blobs,
        bytes_text(status.free_bytes)
    );
    if let Some(max) = status.max_bytes {
        let _ = writeln!(out, "disk.max   {}", bytes_text(max));
    }
    if let Some((what, bytes)) = &status.next_to_go {
        let _ = writeln!(out, "goes next  {what}, {}", bytes_text(*bytes));
    }
    let _ =
        writeln!(out, "images     {} complete, {} partial", status.images_complete, status.images_partial);
    let _ = writeln!(
        out,
        "downloads  {} under way, {} waiting for their upstream",
        status.fills, status.fills_parked
    );
    let _ = writeln!(out, "clock      {}", if status.clock_trusted { "set" } else { "not set" });
    for upstream in &status.upstreams {
        let state = upstream.state.as_deref().unwrap_or("-");
        let _ = writeln!(
            out,
            "upstream   {} ({}): {state}, {}",
            upstream.name,
            upstream.url,
            bytes_text(upstream.bytes)
        );
    }
    for peer in &status.peers {
        let _ = writeln!(out, "peer       {}: {}", peer.address, peer.state.as_deref().unwrap_or("-"));
    }
    out
}

fn verified(verified: &Verified, json: bool) -> Outcome {
    let mut text = String::new();
    if json {
        text = serde_json::to_string_pretty(verified).unwrap_or_default() + "\n";
    } else {
        for bad in &verified.bad {
            let images = if bad.images.is_empty() {
                String::new()
            } else {
                format!(" (of {})", bad.images.join(", "))
            };
            let _ = writeln!(text, "{}: {}{images}", bad.digest, bad.problem);
        }
        let _ = writeln!(
            text,
            "{} blobs, {}: {} bad",
            verified.blobs,
            bytes_text(verified.bytes),
            verified.bad.len()
        );
    }
    let problem = match (verified.bad.is_empty(), verified.repaired) {
        (true, _) => None,
        (false, true) => Some(
            "bad blobs were set aside; they are fetched again as soon as their upstream can be reached"
                .to_owned(),
        ),
        (false, false) => {
            Some("run larder verify --repair to set bad blobs aside and have them fetched again".into())
        }
    };
    Outcome { text, problem }
}

fn state_word(state: State) -> &'static str {
    match state {
        State::Complete => "complete",
        State::Partial => "partial",
    }
}

/// Columns as wide as their widest cell.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: Vec<usize> =
        (0..N).map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
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
    }
}
