//! One file per command. Each takes its arguments and returns how it ended.

mod admin;
mod create;
mod events;
mod examine;
mod status;

use crate::cli::Command;
use crate::failure::{Failure, Outcome};

/// Runs one command to its end.
pub fn run(command: Command) -> Outcome<()> {
    match command {
        Command::Status(args) => status::run(&args),
        Command::Fail(args) => admin::fail(&args),
        Command::Add(args) => admin::add(&args),
        Command::Remove(args) => admin::remove(&args),
        Command::Stop(args) => admin::stop(&args),
        Command::Events(args) => events::run(&args),
        Command::Serve(args) => crate::config::ServeConfig::load(&args).and(not_yet()),
        Command::Create(args) => create::run(&args),
        Command::Examine(args) => examine::run(&args),
        Command::Demo(_) => not_yet(),
    }
}

fn not_yet() -> Outcome<()> {
    Err(Failure::new("this build has no engine yet: use a later one"))
}
