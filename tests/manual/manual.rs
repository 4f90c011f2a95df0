//! Writes the manual pages and the shells' completions into a folder, from the command line as it is.
//!
//! usage: cargo run --example manual -- DIR
//!
//! What packages hold is made by this and not kept beside the source, so that it cannot be of another version.

use clap_complete::Shell;
use std::fs;
use std::io::{self, Error};
use std::path::Path;

/// What the pages of the commands do not say.
const MORE: &str = r#".SH FILES
.TP
.I /etc/larder/larder.toml
The configuration, every key at its default with a comment. Larder runs without it too.
.TP
.I /var/lib/larder
What is kept. Under systemd
.B $STATE_DIRECTORY
names it.
.SH EXIT STATUS
0 done, 1 could not do it, 2 wrong usage or configuration.
"#;

fn main() -> io::Result<()> {
    let folder = std::env::args_os().nth(1).ok_or_else(|| Error::other("usage: manual DIR"))?;
    let folder = Path::new(&folder);
    fs::create_dir_all(folder)?;
    let command = larder::cli::command();
    clap_mangen::generate_to(command.clone(), folder)?;
    let page = folder.join("larder.1");
    fs::write(&page, fs::read_to_string(&page)? + MORE)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command.clone(), "larder", folder)?;
    }
    Ok(())
}
