//! `raidctl events`: what happened, and with `--follow` what happens.

use crate::cli::EventsArgs;
use crate::control::client::Client;
use crate::events::EventRecord;
use crate::failure::Outcome;
use crate::output::{say, say_json_line};

/// Prints the events.
pub fn run(args: &EventsArgs) -> Outcome<()> {
    let mut client = Client::connect(&args.control)?;
    let print = |event: EventRecord| if args.json { say_json_line(&event) } else { say(event.line()) };
    if !args.follow {
        return client.events()?.into_iter().try_for_each(print);
    }
    client.follow(print)?;
    eprintln!("the daemon has stopped");
    Ok(())
}
