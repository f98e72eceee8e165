//! One file per command. Each takes its arguments and returns how it ended.

mod admin;
mod attach;
mod create;
mod demo;
mod detach;
mod events;
mod examine;
mod serve;
mod status;

use crate::cli::Command;
use crate::failure::Outcome;

/// Runs one command to its end.
pub fn run(command: Command) -> Outcome<()> {
    match command {
        Command::Status(args) => status::run(&args),
        Command::Fail(args) => admin::fail(&args),
        Command::Add(args) => admin::add(&args),
        Command::Remove(args) => admin::remove(&args),
        Command::Grow(args) => admin::grow(&args),
        Command::Stop(args) => admin::stop(&args),
        Command::Events(args) => events::run(&args),
        Command::Attach(args) => attach::run(&args),
        Command::Detach(args) => detach::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Create(args) => create::run(&args),
        Command::Examine(args) => examine::run(&args),
    }
}
