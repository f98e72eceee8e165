//! `raidctl`: the one binary, daemon and command line.
//!
//! This file only parses, sets up the log, runs one command and turns its outcome into an exit status:
//! 0 done, 1 failed (one sentence on stderr names the thing and the remedy), 2 wrong usage.

mod activation;
mod afterlife;
mod allow;
mod attachment;
mod cli;
mod commands;
mod compose;
mod config;
mod control;
mod daemon;
mod desk;
mod devices;
mod events;
mod extents;
mod failure;
mod herald;
mod house;
mod listen;
mod moderation;
mod nbd_netlink;
mod notify;
mod output;
mod policy;
mod report;
mod signals;
mod size;
mod succession;
mod table;
mod takeover;
mod tls;

use clap::Parser;
use cli::Cli;
use failure::{Failure, Outcome};
use std::io::IsTerminal;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // Usage errors end in here, with exit status 2; --help and --version with 0.
    let cli = Cli::parse();
    match start_log(&cli).and_then(|()| commands::run(cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(sentence) = failure.sentence() {
                eprintln!("raidctl: {sentence}");
            }
            ExitCode::from(failure.exit_status())
        }
    }
}

/// The log goes to stderr, so that what a command prints can be piped. Daemons log what they do, other commands
/// only what is wrong.
fn start_log(cli: &Cli) -> Outcome<()> {
    let default = if cli.command.is_daemon() { "info" } else { "warn" };
    let filter = cli.log_level.as_deref().filter(|text| !text.is_empty()).unwrap_or(default);
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        Failure::usage(format!(
            "the log filter {filter:?} is not understood ({error}): say error, warn, info, debug or trace"
        ))
    })?;
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .with_env_filter(filter)
        .init();
    Ok(())
}
