//! `raidctl fail`, `add`, `remove`, `grow`, `stop`: one request to the daemon, one sentence back.

use crate::cli::{AddArgs, GrowArgs, MemberArgs, StopArgs};
use crate::control::client::Client;
use crate::control::proto::Request;
use crate::devices::absolute;
use crate::failure::{Failure, Outcome};
use crate::output::say;
use crate::size::{Size, SizeOrMax};
use std::path::Path;

/// Marks a member faulty.
pub fn fail(args: &MemberArgs) -> Outcome<()> {
    let device = device_name(&args.device)?;
    say(Client::connect(&args.control)?.work(&Request::Fail { array: args.name.clone(), device })?)
}

/// Adds a spare.
pub fn add(args: &AddArgs) -> Outcome<()> {
    let device = device_name(&args.device)?;
    let request = Request::Add { array: args.name.clone(), device, force: args.force };
    say(Client::connect(&args.control)?.work(&request)?)
}

/// Lets go of a faulty member or a spare.
pub fn remove(args: &MemberArgs) -> Outcome<()> {
    let device = device_name(&args.device)?;
    say(Client::connect(&args.control)?.work(&Request::Remove { array: args.name.clone(), device })?)
}

/// Grows an array into members that became larger.
pub fn grow(args: &GrowArgs) -> Outcome<()> {
    let size_bytes = match args.size {
        SizeOrMax::Max => None,
        SizeOrMax::Size(Size(bytes)) => Some(bytes),
    };
    let request = Request::Grow { array: args.name.clone(), size_bytes };
    say(Client::connect(&args.control)?.work(&request)?)
}

/// Stops an array.
pub fn stop(args: &StopArgs) -> Outcome<()> {
    say(Client::connect(&args.control)?.work(&Request::Stop { array: args.name.clone() })?)
}

/// The daemon runs in a folder of its own: what we name here, it must find there. The device itself may be long
/// gone, so it is not looked at.
fn device_name(path: &Path) -> Outcome<String> {
    let path = absolute(path)?;
    path.into_os_string()
        .into_string()
        .map_err(|path| Failure::new(format!("{path:?} is not UTF-8: use a link with another name")))
}
