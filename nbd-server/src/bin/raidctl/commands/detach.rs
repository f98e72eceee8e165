//! `raidctl detach`: ends a device that `raidctl attach` made, its keeper and its record.

use crate::attachment::device::Device;
use crate::attachment::record::{self, Record};
use crate::attachment::{DEVICE_PATIENCE, LOOK_AGAIN};
use crate::cli::DetachArgs;
use crate::failure::{Context, Failure, Outcome};
use crate::nbd_netlink::{Change, Driver, DriverError};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use std::time::Instant;

/// Detaches, and returns when the device is free.
pub fn run(args: &DetachArgs) -> Outcome<()> {
    let device = args.device;
    let mut driver = Driver::open().map_err(Failure::new)?;
    let Some((record, _)) = record::read(device)? else {
        return Err(match driver.in_use(device.index) {
            Ok(true) => Failure::new(format!(
                "{device} was not attached by raidctl: end it with what made it, `nbd-client -d {device}` for example"
            )),
            _ => Failure::new(format!("{device} is not attached")),
        });
    };
    // Asks for nothing to be changed: is it still the device of this record?
    let ours = driver.reconfigure(device.index, &record.identity, &Change::default());
    let is_ours = ours.map(|()| true).or_else(|error| match error.errno() {
        Some(Errno::PERM | Errno::ACCESS) => Err(Failure::new("detaching a device takes root: use sudo")),
        Some(_) => Ok(false),
        None => Err(Failure::new(error)),
    })?;
    let users = if is_ours { device.users() } else { Vec::new() };
    if !users.is_empty() && !args.force {
        return Err(Failure::new(format!(
            "{device} is in use: {}: end that first, or use --force, which makes its users see errors",
            users.join(", and ")
        )));
    }
    if is_ours {
        driver.disconnect(device.index).map_err(Failure::new)?;
    }
    end_keeper(device, &record)?;
    if is_ours && users.is_empty() {
        until(|| driver.in_use(device.index).map(|in_use| !in_use))
            .map_err(Failure::new)?
            .then_some(())
            .ok_or_else(|| {
                Failure::new(format!("{device} is disconnected, but a program still has it open"))
            })?;
    }
    remove_log(device)
}

/// Tells the keeper to look, which then finds nothing to keep, and waits until it has ended.
fn end_keeper(device: Device, record: &Record) -> Outcome<()> {
    // The lock on the record says that the process lives, so that its number is not another's by now.
    if let Some((record, true)) = record::read(device)?
        && let Some(pid) = Pid::from_raw(record.pid)
        && let Err(error) = kill_process(pid, Signal::TERM)
        && error != Errno::SRCH
    {
        return Err(Failure::new(format!(
            "cannot end the process {} that keeps {device}: {error}",
            record.pid
        )));
    }
    let ended = until(|| Ok(!matches!(record::read(device), Ok(Some((_, true))))));
    match ended.map_err(Failure::new)? {
        true => record::remove_stale(device),
        false => Err(Failure::new(format!(
            "{device} is disconnected, but the process {} that kept it does not end: kill it",
            record.pid
        ))),
    }
}

fn remove_log(device: Device) -> Outcome<()> {
    let path = record::log_path(device);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context(format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// True when the condition holds, false if it does not in time.
fn until(mut condition: impl FnMut() -> Result<bool, DriverError>) -> Result<bool, DriverError> {
    let end = Instant::now() + DEVICE_PATIENCE;
    while !condition()? {
        if Instant::now() > end {
            return Ok(false);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(true)
}
