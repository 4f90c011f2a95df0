//! The command line: argv to a command, a command to an exit status.
//!
//! Exit status: 0 done, 1 could not do it, 2 wrong usage or configuration.

mod allocator;
mod check;
mod clients;
mod demo;
mod doctor;
mod logger;
mod look;
mod print;
mod serve;

use crate::clients::Client;
use crate::config::{Config, Options, UpstreamSettings};
use crate::control::AdminRequest;
use crate::fetch::Upstreams;
use crate::oci::{Digest, Reference};
use clap::error::ContextValue;
use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A container image mirror for boards whose uplink comes and goes.
#[derive(Parser)]
#[command(name = "larder", version, about, max_term_width = 80)]
struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Global {
    /// The configuration file [default: /etc/larder/larder.toml if it exists]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory for images and state
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Address to listen on, such as 127.0.0.1:5000; may be repeated
    #[arg(long, global = true, value_name = "ADDRESS")]
    listen: Vec<SocketAddr>,
    /// More verbose (repeatable)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    /// Less verbose (repeatable; twice: errors only)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    quiet: u8,
}

#[derive(Subcommand)]
enum Command {
    /// Run the mirror
    Serve,
    /// Show how larder works, with an upstream of its own: pull, cut the uplink, pull again
    Demo,
    /// List the cached images
    Ls {
        #[command(flatten)]
        form: Form,
    },
    /// Explain which version of an image is served, and why
    Why {
        /// The image, such as nginx:latest or ghcr.io/owner/app:v1
        image: Reference,
        #[command(flatten)]
        form: Form,
    },
    /// List the versions of a tag
    History {
        /// The image
        image: Reference,
        #[command(flatten)]
        form: Form,
    },
    /// Show how larder is doing
    Status {
        #[command(flatten)]
        form: Form,
    },
    /// Serve an earlier version of a tag until the upstream has a new one
    Rollback {
        /// The image
        image: Reference,
        /// The version to go back to [default: the previous version]
        digest: Option<Digest>,
    },
    /// Keep an image, even when the disk is full
    Pin {
        /// The image
        image: Reference,
    },
    /// Undo pin: the image may be removed when the disk is full
    Unpin {
        /// The image
        image: Reference,
    },
    /// Say whether images would start with the uplink gone: exit status 0 if every one would
    Check {
        /// The images [default: those of [warm], the pinned ones, and what the runtime needs beside each pod]
        images: Vec<Reference>,
        /// Hash the bytes that are here
        #[arg(long)]
        hash: bool,
        /// Also the image that the runtime needs beside each pod, by its configuration
        #[arg(long)]
        from_runtime: bool,
        #[command(flatten)]
        form: Form,
        /// Root directory of the board whose runtime is looked at
        #[arg(long, hide = true, value_name = "DIR", default_value = "/")]
        root: PathBuf,
    },
    /// Remove a tag and the content that only it uses
    Rm {
        /// The image
        image: Reference,
    },
    /// Check the hash of every blob on the disk
    Verify {
        /// Quarantine corrupt blobs, so that they are fetched again
        #[arg(long)]
        repair: bool,
        #[command(flatten)]
        form: Form,
    },
    /// Check this board (clock, disk, memory, upstreams, clients) and say how to fix what is wrong
    Doctor {
        #[command(flatten)]
        form: Form,
        /// Root directory of the board to check
        #[arg(long, hide = true, value_name = "DIR", default_value = "/")]
        root: PathBuf,
    },
    /// Check or print the configuration, or set up containerd, K3s, podman or Docker to use larder
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Check the configuration
    Check,
    /// Print the configuration with all defaults
    Print,
    /// Set up containerd: config.toml and a hosts.toml for each registry
    Containerd(clients::Form),
    /// Set up K3s: registries.yaml
    K3s(clients::Form),
    /// Set up podman, CRI-O, buildah and skopeo: a part of registries.conf
    #[command(visible_alias = "crio")]
    Podman(clients::Form),
    /// Set up Docker, for docker.io only: daemon.json
    Docker(clients::Form),
}

#[derive(Args)]
struct Form {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The command line as it is, for manual pages and completions.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    allocator::give_back_what_is_freed();
    if let Some(examined) = crate::store::examiner() {
        return examined;
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(e) => {
            return usage(e);
        }
    };
    // The demo prints a table; the server's warnings about its faults would bury it.
    let quieter = u8::from(matches!(arguments.command, Command::Demo)) * 2;
    logger::set_up(arguments.global.verbose, arguments.global.quiet.saturating_add(quieter));
    let options = Options {
        file: arguments.global.config,
        data_dir: arguments.global.data_dir,
        listen: arguments.global.listen,
    };
    let exit = match Config::load(&options) {
        Ok(config) => run(&arguments.command, &config, &options),
        Err(e) => {
            e.to_string().lines().for_each(|line| log::error!("{line}"));
            ExitCode::from(2)
        }
    };
    log::logger().flush();
    exit
}

fn run(command: &Command, config: &Config, options: &Options) -> ExitCode {
    let look = |request: AdminRequest, form: &Form| look::run(config, &[request], form.json);
    let change = |request: AdminRequest| look::run(config, &[request], false);
    match command {
        Command::Serve => {
            let exposed = config.exposed_secrets(&config_file(options));
            exposed.iter().for_each(|problem| log::warn!("{problem}"));
            serve::run(config)
        }
        Command::Demo => demo::run(config),
        Command::Ls { form } => look(AdminRequest::Ls, form),
        Command::Why { image, form } => look(AdminRequest::Why { image: image.clone() }, form),
        Command::History { image, form } => look(AdminRequest::History { image: image.clone() }, form),
        Command::Status { form } => look(AdminRequest::Status, form),
        Command::Rollback { image, digest } => {
            change(AdminRequest::Rollback { image: image.clone(), to: digest.clone() })
        }
        Command::Pin { image } => change(AdminRequest::Pin { image: image.clone(), pinned: true }),
        Command::Unpin { image } => change(AdminRequest::Pin { image: image.clone(), pinned: false }),
        Command::Check { images, hash, from_runtime, form, root } => {
            check::run(config, images, *hash, *from_runtime, root, form.json)
        }
        Command::Rm { image } => change(AdminRequest::Rm { image: image.clone() }),
        Command::Verify { repair, form } => look(AdminRequest::Verify { repair: *repair }, form),
        Command::Doctor { form, root } => doctor::run(config, root, form.json),
        Command::Config(ConfigCommand::Check) => checked(config, &config_file(options)),
        Command::Config(ConfigCommand::Print) => printed(&config.to_toml()),
        Command::Config(ConfigCommand::Containerd(form)) => clients::run(config, Client::Containerd, form),
        Command::Config(ConfigCommand::K3s(form)) => clients::run(config, Client::K3s, form),
        Command::Config(ConfigCommand::Podman(form)) => clients::run(config, Client::Podman, form),
        Command::Config(ConfigCommand::Docker(form)) => clients::run(config, Client::Docker, form),
    }
}

/// Says what is wrong with the command line, or the help or version that it asks for, which go to standard output.
fn usage(mut e: clap::Error) -> ExitCode {
    // What was typed stays on its line.
    let typed: Vec<_> = e
        .context()
        .filter_map(|(kind, value)| match value {
            ContextValue::String(text) => Some((kind, print::cell(text).into_owned())),
            _ => None,
        })
        .collect();
    for (kind, text) in typed {
        e.insert(kind, ContextValue::String(text));
    }
    let text = e.render().to_string();
    if e.use_stderr() {
        print::note(&text);
        return ExitCode::from(2);
    }
    printed(&text)
}

fn config_file(options: &Options) -> PathBuf {
    options.file.clone().unwrap_or_else(|| crate::config::DEFAULT_FILE.into())
}

/// What loads is valid; what it keeps secret must be so on the disk, too.
fn checked(config: &Config, file: &Path) -> ExitCode {
    let name = if file.exists() { file.display().to_string() } else { "no file, the defaults".to_owned() };
    let mut problems = config.exposed_secrets(file);
    // What the server reads when it starts: authorities, certificates, the proxy.
    problems.extend(Upstreams::new(config).err());
    if problems.is_empty() {
        return printed(&format!("{name}: ok\n{}", logins(config)));
    }
    problems.iter().for_each(|problem| log::error!("{name}: {problem}"));
    ExitCode::from(2)
}

/// What each login at an upstream means for who may read what it fetches, a line each.
fn logins(config: &Config) -> String {
    let line = |upstream: &UpstreamSettings| match (upstream.is_private(), upstream.lifts_limit()) {
        (true, _) => format!("{}: what the login fetches is served after a login here\n", upstream.name),
        (_, true) => format!(
            "{}: the login only lifts the rate limit; what the registry shows to everybody is served to everybody\n",
            upstream.name
        ),
        (false, false) => String::new(),
    };
    config.upstreams.iter().map(line).collect()
}

fn printed(text: &str) -> ExitCode {
    match print::out(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            log::error!("cannot print: {e}");
            ExitCode::from(1)
        }
    }
}
