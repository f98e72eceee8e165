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
mod log;
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
use failure::Outcome;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Usage errors end in here, with exit status 2; --help and --version with 0.
    let cli = Cli::parse();
    let done = start_log(&cli).and_then(|()| commands::run(cli.command));
    log::end(done.as_ref().err().and_then(|failure| failure.sentence()));
    done.map_or_else(|failure| ExitCode::from(failure.exit_status()), |()| ExitCode::SUCCESS)
}

/// Daemons log what they do, other commands only what is wrong.
fn start_log(cli: &Cli) -> Outcome<()> {
    let default = if cli.command.is_daemon() { "info" } else { "warn" };
    log::start(cli.log_level.as_deref().filter(|text| !text.is_empty()).unwrap_or(default))
}
