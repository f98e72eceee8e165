//! The composition root: the one place where files, arrays, logical units, the reactor and the control socket are
//! stacked on each other.
//!
//! Threads: the reactor, which owns devices, arrays and connections and never waits for anybody; the control threads
//! and the herald, which logs events; and the caller's, which waits for a signal. They share the [`Window`].

use crate::control::server::ControlServer;
use crate::control::socket::OwnedSocket;
use crate::desk::FrontDesk;
use crate::devices::{Bench, refuse_twins};
use crate::events::{EventRecord, Severity};
use crate::failure::{Context, Failure, Outcome};
use crate::house::{House, Window};
use crate::report::StatusReport;
use crate::signals::{StopRequest, stop_on_signal};
use nbd_server::export::Export;
use nbd_server::listen::{ListenAddr, Listener};
use nbd_server::reactor::{CallError, Io, Reactor, ReactorConfig, StopReport};
use raidcore::array::{Array, ArrayOptions};
use raidcore::dev::BlockDev;
use raidcore::meta::{self, Assembly, Found, LeftOutReason, LoadError, StoreError};
use raidcore::uring::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long each step of a clean stop may take: connections, flushes, arrays.
const DRAIN: Duration = Duration::from_secs(60);
/// How long the reactor may take to end after that: its rings wait for what they cancelled.
const LAST_WAIT: Duration = Duration::from_secs(5);
/// How often the daemon looks whether its reactor lives.
const PULSE: Duration = Duration::from_secs(5);

/// What a daemon is made of.
pub struct Setup {
    /// What to look for arrays on; absolute.
    pub devices: Vec<PathBuf>,
    /// Where it listens.
    pub listen: Vec<Listener>,
    /// Its control socket.
    pub control: PathBuf,
    /// Start arrays that refuse to start without somebody having looked.
    pub force: bool,
}

/// A daemon that serves.
pub struct Daemon {
    reactor: Reactor<House>,
    control: ControlServer,
    herald: Herald,
    exports: Vec<Export>,
    stop: StopRequest,
}

impl Daemon {
    /// Assembles what can be assembled, exports it, and opens the control socket last: who can connect to it finds
    /// everything else in place. Fails if there is nothing to serve; the log says what is wrong with each device.
    pub fn start(setup: Setup) -> Outcome<Daemon> {
        refuse_twins(&setup.devices)?;
        raise_descriptor_limit();
        // Before anything is written: a signal that comes early stops cleanly, too.
        let stop = stop_on_signal()?;
        let socket = OwnedSocket::bind(&setup.control)?;
        let window = Arc::new(Window::default());
        let herald = Herald::start(Arc::clone(&window))?;
        let reactor = Reactor::spawn(ReactorConfig::server(), {
            let (devices, force, window) = (setup.devices, setup.force, Arc::clone(&window));
            move |io| furnish(io, &devices, force, window).map_err(|failure| failure.to_string().into())
        })
        .map_err(Failure::new)?;
        let handle = reactor.handle();
        let listeners = setup.listen;
        let exports = handle.call(move |host| open_house(host, listeners)).map_err(no_reactor)??;
        let desk = Arc::new(FrontDesk::new(handle, window));
        let control = ControlServer::start(socket, desk)?;
        Ok(Daemon { reactor, control, herald, exports, stop })
    }

    /// What is exported.
    pub fn exports(&self) -> &[Export] {
        &self.exports
    }

    /// Serves until the first SIGINT or SIGTERM, then stops cleanly.
    pub fn run(mut self) -> Outcome<()> {
        let handle = self.reactor.handle();
        loop {
            match self.stop.stopped.recv_timeout(PULSE) {
                Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            match handle.call(|_| ()) {
                Ok(()) => {}
                Err(CallError::Gone) => return Err(no_reactor(CallError::Gone)),
                Err(error) => tracing::error!("{error}: a device may hang in the kernel; see dmesg"),
            }
        }
        let report = handle.stop(DRAIN).map_err(no_reactor)?;
        let trouble = describe(&report).or_else(|| self.herald.unclean());
        self.stop.is_clean.store(trouble.is_none(), Ordering::Release);
        self.control.stop();
        let has_ended = join(self.reactor);
        let trouble = trouble.or_else(|| self.herald.unclean());
        self.herald.finish();
        let outcome = match trouble {
            Some(trouble) => Err(Failure::new(trouble)),
            None => Ok(()),
        };
        match (has_ended, outcome.is_ok()) {
            (true, true) => tracing::info!("stopped"),
            (true, false) => {}
            (false, _) => tracing::warn!("{}", held_up(&self.herald.window.status.lock())),
        }
        outcome
    }
}

/// Waits for the reactor's thread to end, and says whether it did. The kernel does not let a thread go while a request
/// of its ring is stuck in a driver or a frozen file system; nothing but that device can end this.
fn join(reactor: Reactor<House>) -> bool {
    let (tell, told) = channel();
    let joining = std::thread::Builder::new().name("last".to_string()).spawn(move || {
        reactor.join();
        if tell.send(()).is_err() {
            tracing::debug!("nobody waits for the reactor any more");
        }
    });
    // Without a thread the reactor was joined when the closure was dropped.
    joining.is_err() || told.recv_timeout(LAST_WAIT).is_ok()
}

/// What keeps the process, as a sentence: the devices that did not answer in time.
fn held_up(report: &StatusReport) -> String {
    let members = report.arrays.iter().flat_map(|array| array.members.iter().chain(&array.spares));
    let silent =
        members.filter(|member| member.errors.timeout > 0).filter_map(|member| member.device.clone());
    let devices: Vec<String> = silent.collect();
    let which = if devices.is_empty() { "a device".to_string() } else { devices.join(", ") };
    format!(
        "stopped; {which} still hangs in the kernel (see dmesg), which ends this process only when it answers or goes \
         away"
    )
}

/// Each connection takes a descriptor, and the usual soft limit of 1024 is for programs that use `select`.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!("cannot raise the limit of open files ({error}): it bounds the connections served");
    }
}

/// What went wrong in a stop, as a sentence.
fn describe(report: &StopReport) -> Option<String> {
    if let Some((name, error)) = report.flush_errors.first() {
        return Some(format!(
            "{name}: the last flush failed ({error}); what was not flushed before may be lost"
        ));
    }
    if report.unflushed > 0 || report.engine_hung {
        return Some(
            "a device did not answer in time; the arrays will be resynced when they are served again".into(),
        );
    }
    if report.cut_connections > 0 {
        tracing::warn!("{} connections were cut with requests in flight", report.cut_connections);
    }
    None
}

fn no_reactor(error: CallError) -> Failure {
    Failure::new(format!("{error}: see the log"))
}

/// On the reactor: offers what the house has, and lets clients in.
fn open_house(host: &mut nbd_server::reactor::Host<House>, listeners: Vec<Listener>) -> Outcome<Vec<Export>> {
    let exports = host.engine().exports();
    for export in &exports {
        host.add_export(export.clone()).map_err(Failure::new)?;
    }
    for listener in listeners {
        host.add_listener(listener).map_err(Failure::new)?;
    }
    host.engine_mut().publish();
    Ok(exports)
}

/// On the reactor's thread, before it turns: finds the arrays on the devices and starts them.
fn furnish(io: &Io, devices: &[PathBuf], force: bool, window: Arc<Window>) -> Outcome<House> {
    let mut house = House::new(&io.clock, window);
    let mut troubles = Vec::new();
    let bench = Bench::on(&io.ring);
    let mut found: Vec<Found> = Vec::new();
    let mut files: Vec<Option<File>> = Vec::new();
    let begun = Instant::now();
    for path in devices {
        match look_at(&bench, path, begun) {
            Ok((item, file)) => {
                found.push(item);
                files.push(Some(file));
            }
            Err(failure) => troubles.push(failure.to_string()),
        }
    }
    for result in meta::assemble(&found, force) {
        let started = result.map_err(Failure::new).and_then(|assembly| {
            let name = assembly.array.name.to_string();
            if house.has(&name) {
                let uuid = assembly.array.uuid;
                return Err(Failure::new(format!(
                    "array {name}: another array has this name, so {uuid} is not started: serve it by itself"
                )));
            }
            catch_up(&bench, &assembly, &mut found, &mut files)?;
            start(io, &assembly, &found, &mut files)
        });
        match started {
            Ok(array) => house.take_in(array, &io.slab),
            Err(failure) => troubles.push(failure.to_string()),
        }
    }
    if house.exports().is_empty() {
        return Err(nothing_to_serve(&troubles));
    }
    troubles.iter().for_each(|trouble| tracing::warn!("{trouble}"));
    Ok(house)
}

/// One sentence if there is one thing to say; otherwise each is logged.
fn nothing_to_serve(troubles: &[String]) -> Failure {
    match troubles {
        [only] => Failure::new(only),
        many => {
            many.iter().for_each(|trouble| tracing::error!("{trouble}"));
            Failure::new("no array could be started, for the reasons above")
        }
    }
}

/// Claims a device and reads its superblock; mends a bad copy of it.
fn look_at(bench: &Bench, path: &Path, begun: Instant) -> Outcome<(Found, File)> {
    let mut disk = bench.claim(path, begun)?;
    let name = path.display().to_string();
    let mut loaded =
        meta::load(&mut disk).map_err(|error| match (&error, meta::foreign_signature(&mut disk)) {
            (LoadError::NoSuperblock, Ok(Some(signature))) => {
                Failure::new(format!("{name}: {error}; it carries {signature}"))
            }
            _ => Failure::new(format!("{name}: {error}")),
        })?;
    match meta::mend(&mut disk, &mut loaded) {
        Ok(false) => {}
        Ok(true) => {
            tracing::warn!("{name}: a superblock copy was bad; it was written again from the other one")
        }
        // It is left out, and then it is said why.
        Err(StoreError::TooSmall { .. }) => {}
        Err(error) => tracing::warn!("{name}: a superblock copy is bad and cannot be written again: {error}"),
    }
    let device_bytes = disk.geometry().size_bytes;
    Ok((Found { device: name, loaded, device_bytes }, disk.into_inner()))
}

/// Brings members that a crash kept from the last metadata update up to it.
fn catch_up(
    bench: &Bench,
    assembly: &Assembly,
    found: &mut [Found],
    files: &mut [Option<File>],
) -> Outcome<()> {
    for &index in &assembly.lagging {
        let Some(file) = files[index].take() else { continue };
        let mut disk = bench.disk(file);
        let name = found[index].device.clone();
        meta::catch_up(&mut disk, &mut found[index].loaded, &assembly.array)
            .context(format!("{name}: cannot write its superblock; start the array without it"))?;
        files[index] = Some(disk.into_inner());
    }
    Ok(())
}

/// Starts an array on its devices; says what is left out and what is missing.
fn start(io: &Io, assembly: &Assembly, found: &[Found], files: &mut [Option<File>]) -> Outcome<Array> {
    let name = &assembly.array.name;
    for left_out in &assembly.left_out {
        match left_out.reason {
            LeftOutReason::TooSmall { .. } => tracing::warn!("{name}: {left_out}"),
            _ => {
                tracing::warn!("{name}: {left_out}; to use it again: raidctl add {name} {}", left_out.device)
            }
        }
    }
    for lost in assembly.lost.iter().filter(|lost| lost.left_out.is_none()) {
        tracing::warn!("{name}: {lost}");
    }
    let used = assembly.slots.iter().flatten().chain(&assembly.spares);
    let devices = used
        .filter_map(|&index| Some((index, Box::new(files.get_mut(index)?.take()?) as Box<dyn BlockDev>)))
        .collect();
    Array::assemble(assembly, found, devices, &io.clock, &io.slab, ArrayOptions::default())
        .context(format!("array {name}"))
}

/// The thread that writes events to the log, so that no array ever waits for a terminal or a full pipe.
struct Herald {
    window: Arc<Window>,
    thread: Option<JoinHandle<()>>,
}

impl Herald {
    fn start(window: Arc<Window>) -> Outcome<Herald> {
        let thread = std::thread::Builder::new()
            .name("herald".to_string())
            .spawn({
                let window = Arc::clone(&window);
                move || {
                    let mut seen = 0;
                    while let Some(events) = window.events.wait_after(seen) {
                        for event in events {
                            seen = event.seq;
                            log(&event);
                        }
                    }
                }
            })
            .context("cannot start the thread that logs events")?;
        Ok(Herald { window, thread: Some(thread) })
    }

    /// The array that was not marked clean when it was stopped, as a sentence.
    fn unclean(&self) -> Option<String> {
        let events = self.window.events.after(0);
        let unclean =
            events.iter().find(|event| event.event == "Stopped" && event.severity == Severity::Critical)?;
        Some(format!("{}: {}", unclean.array, unclean.message))
    }

    /// Logs what is left and ends.
    fn finish(&mut self) {
        self.window.events.close();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that logs events panicked");
        }
    }
}

impl Drop for Herald {
    fn drop(&mut self) {
        self.finish();
    }
}

fn log(event: &EventRecord) {
    let EventRecord { event: name, array, message, .. } = event;
    match event.severity {
        Severity::Info => tracing::info!("{array}: {name}: {message}"),
        Severity::Warning => tracing::warn!("{array}: {name}: {message}"),
        Severity::Critical => tracing::error!("{array}: {name}: {message}"),
    }
}

/// Where clients find `export`, one URI per place.
pub fn uris(places: &[ListenAddr], export: &str) -> Vec<String> {
    places.iter().map(|place| crate::listen::uri(place, export)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples;

    #[test]
    fn the_device_that_keeps_the_process_is_named() {
        let mut report = samples::rebuilding();
        assert!(held_up(&StatusReport::default()).contains("a device still hangs"));
        report.arrays[0].members.iter_mut().for_each(|member| member.errors.timeout = 0);
        report.arrays[0].members[0].errors.timeout = 2;
        let device = report.arrays[0].members[0].device.clone().unwrap();
        assert!(held_up(&report).contains(&format!("stopped; {device} still hangs in the kernel")));
    }
}
