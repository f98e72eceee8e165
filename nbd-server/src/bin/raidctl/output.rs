//! Printing for people and for programs. A closed pipe is not an error worth a panic.

use crate::failure::{Failure, Outcome};
use serde::Serialize;
use std::io::Write;

/// Prints `text` and a newline on stdout.
pub fn say(text: impl AsRef<str>) -> Outcome<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", text.as_ref()).and_then(|()| out.flush()).map_err(Failure::of_output)
}

/// Prints `value` as JSON, indented, for `--json`.
pub fn say_json(value: &impl Serialize) -> Outcome<()> {
    say(serde_json::to_string_pretty(value).map_err(Failure::new)?)
}

/// Prints `value` as one line of JSON, for streams.
pub fn say_json_line(value: &impl Serialize) -> Outcome<()> {
    say(serde_json::to_string(value).map_err(Failure::new)?)
}
