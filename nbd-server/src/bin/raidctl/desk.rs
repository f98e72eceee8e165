//! The front desk: answers what comes in over the control socket, on the control threads.
//!
//! `status` is answered from the window. Everything else is a call to the reactor, with a limit on how long it may
//! take; what may block, such as looking at a new device, is done here, before the call.

use crate::control::proto::{Reply, Request};
use crate::control::server::Desk;
use crate::devices::{Bench, Device, Disk, reach, refuse_signature, uri_of};
use crate::events::EventLog;
use crate::failure::{Failure, Outcome};
use crate::house::{House, Window};
use crate::report::{ArrayReport, StatusReport};
use crate::size::Size;
use nbd_server::client::NbdDev;
use nbd_server::export::ExportId;
use nbd_server::reactor::{CallError, Host, ReactorHandle};
use raidcore::array::{AdminError, Array, GrowTo, Growth};
use raidcore::dev::BlockDev;
use raidcore::meta::{self, Relation};
use raidcore::uring::{File, OpenError, OpenHow, identify};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long `stop` waits for the array's clients and members, and `grow` for its superblocks.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// How long `add` waits for the kernel to let go of a device that was in use until now.
const LET_GO: Duration = Duration::from_secs(2);
/// How long `add` waits to see whether a rebuild begins, so that it can say so.
const REBUILD_LIMIT: Duration = Duration::from_secs(1);
/// How often a wait looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Answers for the arrays of one reactor.
pub struct FrontDesk {
    reactor: ReactorHandle<House>,
    window: Arc<Window>,
}

impl FrontDesk {
    /// A desk for the house that `reactor` drives and that publishes through `window`.
    pub fn new(reactor: ReactorHandle<House>, window: Arc<Window>) -> FrontDesk {
        FrontDesk { reactor, window }
    }

    fn work(&self, request: Request) -> Outcome<Reply> {
        match request {
            Request::Status { array } => self.status(array.as_deref()).map(Reply::Status),
            Request::Fail { array, device } => self.fail(&array, &device).map(Reply::Done),
            Request::Add { array, device, force } => self.add(&array, &device, force).map(Reply::Done),
            Request::Remove { array, device } => self.remove(&array, &device).map(Reply::Done),
            Request::Grow { array, size_bytes } => {
                let to = size_bytes.map_or(GrowTo::Max, GrowTo::Bytes);
                self.grow(&array, to).map(Reply::Done)
            }
            Request::Stop { array } => self.stop(&array).map(Reply::Done),
            Request::Events { after, .. } => Ok(Reply::Events(self.window.events.after(after))),
        }
    }

    fn status(&self, array: Option<&str>) -> Outcome<StatusReport> {
        match array {
            None => Ok(self.window.status.lock().clone()),
            Some(name) => {
                let listen = self.window.status.lock().listen.clone();
                Ok(StatusReport { arrays: vec![self.report(name)?], listen })
            }
        }
    }

    fn report(&self, name: &str) -> Outcome<ArrayReport> {
        let status = self.window.status.lock().clone();
        let names: Vec<&str> = status.arrays.iter().map(|array| array.name.as_str()).collect();
        let found = status.arrays.iter().find(|array| array.name == name).cloned();
        found.ok_or_else(|| {
            Failure::new(match names.is_empty() {
                true => format!("there is no array {name}: this daemon serves none"),
                false => format!("there is no array {name}: this daemon serves {}", names.join(", ")),
            })
        })
    }

    fn fail(&self, array: &str, device: &str) -> Outcome<String> {
        let device = member_name(&self.report(array)?, device);
        self.admin(array, {
            let device = device.clone();
            move |array| array.fail(&device)
        })?;
        let state = self.report(array)?.state;
        Ok(format!("{device} is faulty; {array} is {state}"))
    }

    /// A device that was let go of still says that it is a member in sync, of the day it left: started by itself, it
    /// would serve old data. So its superblock goes, if that can be done without waiting for a sick device.
    fn remove(&self, array: &str, device: &str) -> Outcome<String> {
        let report = self.report(array)?;
        let device = member_name(&report, device);
        let members = report.members.iter().chain(&report.spares);
        let hangs = members
            .filter(|member| member.device.as_ref() == Some(&device))
            .any(|member| member.errors.timeout > 0);
        let begun = Instant::now();
        while !self.let_go_of(array, &device, begun.elapsed() < LET_GO)? {
            std::thread::sleep(LOOK_INTERVAL);
        }
        let erased = match hangs {
            true => Err(Failure::new("it did not answer in time before")),
            false => erase_superblock(Path::new(&device), &report.uuid),
        };
        Ok(match erased {
            Ok(()) => format!("{device} is no longer in {array}; its superblock is erased, its data is not"),
            Err(why) => format!(
                "{device} is no longer in {array}; its old superblock could not be erased ({why}): do not serve it \
                 by itself, its data is old"
            ),
        })
    }

    /// False if the device has requests under way and that is `tolerable` for now: one that has just been failed may
    /// have a last one.
    fn let_go_of(&self, array: &str, device: &str, tolerable: bool) -> Outcome<bool> {
        let (name, device) = (array.to_string(), device.to_string());
        self.call(move |host| {
            let (_, array) = host.engine_mut().array_mut(&name).ok_or_else(|| gone(&name))?;
            match array.remove(&device) {
                Err(AdminError::NotQuiet { .. }) if tolerable => return Ok(false),
                removed => removed.map_err(Failure::new)?,
            }
            host.engine_mut().publish();
            Ok(true)
        })?
    }

    fn add(&self, array: &str, device: &str, force: bool) -> Outcome<String> {
        let report = self.report(array)?;
        let known = member_name(&report, device);
        if let Some(member) =
            report.members.iter().chain(&report.spares).find(|m| m.device.as_ref() == Some(&known))
        {
            return Err(Failure::new(match member.state.as_str() {
                "faulty" => format!(
                    "{known} is a faulty member of {array}: remove it first, with raidctl remove {array} {known}"
                ),
                state => format!("{known} is a member of {array} already: it is {state}"),
            }));
        }
        look_over(Path::new(device), &report, force)?;
        let begun = Instant::now();
        while !self.claim_and_add(array, device, begun.elapsed() < LET_GO)? {
            std::thread::sleep(LOOK_INTERVAL);
        }
        self.tell_add(array, device)
    }

    /// False if the device is in use and that is `tolerable` for now.
    fn claim_and_add(&self, array: &str, device: &str, tolerable: bool) -> Outcome<bool> {
        let (name, path) = (array.to_string(), device.to_string());
        // The reactor waits for nobody: connections are made here.
        let reached = uri_of(Path::new(device))?.map(|uri| reach(&uri)).transpose()?;
        self.call(move |host| {
            let mut new: Device = match reached {
                Some(reached) => {
                    Device::Remote(Box::new(NbdDev::on(host.ring(), reached).map_err(Failure::new)?))
                }
                None => match File::open(Path::new(&path), host.ring(), OpenHow::MEMBER) {
                    Err(OpenError::Busy { .. }) if tolerable => return Ok(false),
                    opened => opened.map_err(Failure::new)?.into(),
                },
            };
            let (_, array) = host.engine_mut().array_mut(&name).ok_or_else(|| gone(&name))?;
            new.allow_blocks_of(array.geometry().block_size);
            array.add(path, Box::new(new)).map_err(Failure::new)?;
            host.engine_mut().publish();
            Ok(true)
        })?
    }

    /// What became of a device that was added: it waits, or it is being filled.
    fn tell_add(&self, array: &str, device: &str) -> Outcome<String> {
        let begun = Instant::now();
        loop {
            self.call(|host| host.engine_mut().publish())?;
            let report = self.report(array)?;
            let waits = report.spares.iter().any(|spare| spare.device.as_deref() == Some(device));
            if !waits {
                return Ok(format!("{array} is rebuilt on {device}: see raidctl status --watch"));
            }
            if report.state != "degraded" || begun.elapsed() > REBUILD_LIMIT {
                return Ok(format!("{device} is a spare of {array}"));
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    /// Lets an array take the room that its members' devices have by now; returns when the new size is durable, and
    /// with that announced to new clients.
    fn grow(&self, array: &str, to: GrowTo) -> Outcome<String> {
        self.report(array)?;
        let name = array.to_string();
        let Growth { from_bytes, to_bytes } = self.call(move |host| {
            let (_, array) = host.engine_mut().array_mut(&name).ok_or_else(|| gone(&name))?;
            array.grow(to).map_err(Failure::new)
        })??;
        let name = array.to_string();
        let ended = self.wait(move |host| {
            let Some((_, array)) = host.engine_mut().array_mut(&name) else { return Some(None) };
            let size_bytes = array.geometry().size_bytes;
            (!array.is_growing()).then_some(Some(size_bytes))
        })?;
        self.call(|host| host.engine_mut().publish())?;
        match ended {
            Some(Some(size_bytes)) if size_bytes >= to_bytes => {}
            Some(Some(_)) => {
                let events = self.window.events.after(0).into_iter().rev();
                let why = events.into_iter().find(|told| told.event == "GrowFailed" && told.array == array);
                let why = why.map_or(String::new(), |told| told.message);
                return Err(Failure::new(format!(
                    "{array}: {why}; see raidctl status {array}, then try again"
                )));
            }
            Some(None) => return Err(gone(array)),
            None => {
                return Err(Failure::new(format!(
                    "{array} takes longer than {} s to grow: a member may hang; raidctl events tells how it ends",
                    STOP_LIMIT.as_secs()
                )));
            }
        }
        Ok(format!(
            "{array} has grown from {} to {} ({to_bytes} bytes); new clients see it at once, connected ones once \
             they look again",
            Size(from_bytes),
            Size(to_bytes)
        ))
    }

    /// Withdraws the export, lets its clients finish, stops the array and closes its devices.
    fn stop(&self, array: &str) -> Outcome<String> {
        self.report(array)?;
        let name = array.to_string();
        let export: ExportId = self.call(move |host| {
            let (export, _) = host.engine_mut().array_mut(&name).ok_or_else(|| gone(&name))?;
            // Somebody else may stop it as well; to withdraw it twice does no harm.
            drop(host.remove_export(export));
            Ok(export)
        })??;
        let clients_gone = self.wait(move |host| (host.connections_of(export) == 0).then_some(()))?.is_some();
        let name = array.to_string();
        self.call(move |host| {
            if let Some((_, array)) = host.engine_mut().array_mut(&name) {
                array.stop();
            }
        })?;
        let name = array.to_string();
        match self.wait(move |host| host.engine_mut().let_go(&name))? {
            None => {
                return Err(Failure::new(format!(
                    "{array} takes longer than {} s to stop: a member may hang; see raidctl status and dmesg",
                    STOP_LIMIT.as_secs()
                )));
            }
            Some(false) => {
                return Err(Failure::new(format!(
                    "{array} is stopped, but had failed and could not be marked clean: see raidctl events before \
                     you serve it again"
                )));
            }
            Some(true) => {}
        }
        let note = if clients_gone { "" } else { "; clients that did not finish were cut off" };
        Ok(format!("{array} is stopped{note}"))
    }

    /// Looks again and again until there is an answer; `None` if there is none within [`STOP_LIMIT`].
    fn wait<R, F>(&self, look: F) -> Outcome<Option<R>>
    where
        R: Send + 'static,
        F: Fn(&mut Host<House>) -> Option<R> + Clone + Send + 'static,
    {
        let begun = Instant::now();
        while begun.elapsed() < STOP_LIMIT {
            if let Some(answer) = self.call(look.clone())? {
                return Ok(Some(answer));
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        Ok(None)
    }

    /// Does something to an array and publishes the result.
    fn admin<F>(&self, name: &str, act: F) -> Outcome<()>
    where
        F: FnOnce(&mut Array) -> Result<(), AdminError> + Send + 'static,
    {
        let name = name.to_string();
        self.call(move |host| {
            let (_, array) = host.engine_mut().array_mut(&name).ok_or_else(|| gone(&name))?;
            act(array).map_err(Failure::new)?;
            host.engine_mut().publish();
            Ok(())
        })?
    }

    fn call<R, F>(&self, act: F) -> Outcome<R>
    where
        R: Send + 'static,
        F: FnOnce(&mut Host<House>) -> R + Send + 'static,
    {
        self.reactor.call(act).map_err(|error| {
            Failure::new(match error {
                CallError::Gone => "the daemon is stopping".to_string(),
                CallError::Timeout => {
                    "the daemon is held up, perhaps by a device that hangs in the kernel: see dmesg; what was asked \
                     for may still be done"
                        .to_string()
                }
                CallError::Busy => "the daemon has too much to do: try again".to_string(),
            })
        })
    }
}

impl Desk for FrontDesk {
    fn answer(&self, request: Request) -> Reply {
        self.work(request).unwrap_or_else(|failure| Reply::Error(failure.to_string()))
    }

    fn events(&self) -> &EventLog {
        &self.window.events
    }
}

fn gone(array: &str) -> Failure {
    Failure::new(format!("there is no array {array} any more: it was stopped"))
}

/// The name under which the array knows `device`: the same, or that of the same disk by another name.
fn member_name(array: &ArrayReport, device: &str) -> String {
    let known: Vec<&String> =
        array.members.iter().chain(&array.spares).filter_map(|member| member.device.as_ref()).collect();
    if let (false, Ok(id)) = (known.iter().any(|name| *name == device), identify(Path::new(device))) {
        let same = known.iter().find(|name| identify(Path::new(name)).is_ok_and(|other| other == id));
        if let Some(name) = same {
            return name.to_string();
        }
    }
    device.to_string()
}

/// Erases the superblock of a device that was a member of the array `uuid` until now, and lets go of it again.
fn erase_superblock(path: &Path, uuid: &str) -> Outcome<()> {
    let bench = Bench::that_lets_go()?;
    let begun = Instant::now();
    // The array has closed it, and the kernel lets go of it in a moment.
    let mut disk = loop {
        match bench.open(path, OpenHow::MEMBER) {
            Err(_) if begun.elapsed() < LET_GO && path.exists() => std::thread::sleep(LOOK_INTERVAL),
            opened => break opened?,
        }
    };
    disk.set_deadline(LET_GO);
    let its = meta::load(&mut disk).map_err(Failure::new)?.superblock.array.uuid.to_string();
    if its != uuid {
        return Err(Failure::new("it belongs to another array now"));
    }
    meta::erase(&mut disk).map_err(Failure::new)
}

/// Makes sure that nothing on a device is lost by adding it: it is blank, or it was a member of this array that slept
/// and has nothing that the array has not. It is not claimed yet: the claim of a ring outlives the ring for a moment.
fn look_over(path: &Path, array: &ArrayReport, force: bool) -> Outcome<()> {
    let bench = Bench::new()?;
    let mut disk = bench.open(path, OpenHow::EXAMINE)?;
    if force || has_slept(&bench, &mut disk, array) {
        return Ok(());
    }
    refuse_signature(&mut disk, path, "use another device, or --force if its content may be lost")
}

fn has_slept(bench: &Bench, disk: &mut Disk, array: &ArrayReport) -> bool {
    let Ok(its) = meta::load(disk) else { return false };
    let its = its.superblock.array;
    let in_sync = array.members.iter().filter(|member| member.state == "in_sync");
    let mut survivors = in_sync.filter_map(|member| member.device.as_deref());
    survivors.any(|device| {
        let ours = bench
            .open(Path::new(device), OpenHow::EXAMINE)
            .ok()
            .and_then(|mut disk| meta::load(&mut disk).ok());
        ours.is_some_and(|ours| {
            let ours = ours.superblock.array;
            its.uuid == ours.uuid && its.history.relation(its.events, &ours.history) != Relation::Diverged
        })
    })
}
