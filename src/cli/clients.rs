//! `config k3s`, `containerd`, `podman`, `docker`: shows, writes or restores the files that make a client use larder.

use super::print;
use crate::clients::files::{self, Root};
use crate::clients::{self, Client, MirrorAddress, Nothing, Profile};
use crate::config::Config;
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

/// What to do with a client's files.
#[derive(Args)]
pub(super) struct Form {
    /// Merge into the existing files, and keep a backup
    #[arg(long, conflicts_with = "undo")]
    write: bool,
    /// Restore the files from before the last --write
    #[arg(long, conflicts_with_all = ["profile", "address"])]
    undo: bool,
    /// fallback: the origin is asked after larder; sealed: larder alone is asked
    #[arg(long, value_name = "PROFILE", default_value = "fallback")]
    profile: Profile,
    /// Where clients reach larder, if not on this board, such as http://10.0.0.2:5000
    #[arg(long, value_name = "URL")]
    address: Option<String>,
    /// Directory that contains etc/, when building an image for a board
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

/// Shows, writes or restores the files of `client`.
pub(super) fn run(config: &Config, client: Client, form: &Form) -> ExitCode {
    let done = if form.undo { undo(client, form) } else { show_or_write(config, client, form) };
    match done.and_then(|text| print::out(&text).map_err(|e| format!("cannot print: {e}"))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            problem.lines().for_each(|line| log::error!("{line}"));
            ExitCode::from(1)
        }
    }
}

fn show_or_write(config: &Config, client: Client, form: &Form) -> Result<String, String> {
    let mirror = MirrorAddress::of(config, form.address.as_deref())?;
    let mut notes = clients::remarks(client, &mirror, form.profile);
    notes.push(client.takes_effect().to_owned());
    let text = if form.write {
        let written = files::write(&Root::new(&form.root)?, client, &mirror, form.profile)?;
        if written.changed.is_empty() {
            return Ok("nothing to do: every file is up to date\n".to_owned());
        }
        let mut text: String =
            written.changed.iter().map(|path| format!("wrote {}\n", path.display())).collect();
        if let Some(backup) = written.backup {
            text += &format!("the previous files are in {}; --undo restores them\n", backup.display());
        }
        text
    } else {
        let wanted = clients::wanted(client, &mirror, form.profile, &Nothing)?;
        let mut shown = Vec::new();
        for file in wanted {
            let path = file.path.display();
            // JSON knows no comments, so its place is a note.
            if client == Client::Docker {
                notes.insert(0, format!("put this into {path}, or run: larder config {client} --write"));
                shown.push(file.text);
            } else {
                shown.push(format!("# {path}\n{}", file.text));
            }
        }
        if client != Client::Docker {
            notes.insert(
                0,
                format!("put each part into the file named above it, or run: larder config {client} --write"),
            );
        }
        shown.join("\n")
    };
    print::out(&text).map_err(|e| format!("cannot print: {e}"))?;
    notes.iter().for_each(|note| print::note(&format!("{note}\n")));
    Ok(String::new())
}

fn undo(client: Client, form: &Form) -> Result<String, String> {
    let undone = files::undo(&Root::new(&form.root)?, client)?;
    let mut text = String::new();
    for (word, paths) in [
        ("restored", &undone.restored),
        ("removed", &undone.removed),
        ("left, because it is not empty:", &undone.left),
    ] {
        paths.iter().for_each(|path| text += &format!("{word} {}\n", path.display()));
    }
    print::out(&text).map_err(|e| format!("cannot print: {e}"))?;
    print::note(&format!("{}\n", client.takes_effect()));
    Ok(String::new())
}
