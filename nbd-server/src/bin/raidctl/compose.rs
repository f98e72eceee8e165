//! The composition root: the one place where files, arrays, logical units, the reactor and the control socket are
//! stacked on each other.
//!
//! Threads: the reactor, which owns devices, arrays and connections and never waits for anybody; the control threads
//! and the herald, which logs events; and the caller's. They share the [`Window`].

use crate::control::server::ControlServer;
use crate::control::socket::OwnedSocket;
use crate::control::takeover::ArrayName;
use crate::desk::FrontDesk;
use crate::devices::{Bench, Device, refuse_twins};
use crate::failure::{Context, Failure, Outcome};
use crate::herald::Herald;
use crate::house::{House, Window};
use crate::policy::Policy;
use crate::report::{self, StatusReport};
use crate::signals::Wish;
use crate::succession::{Estate, SuccessionDesk};
use crate::tls::Tls;
use nbd_server::export::Export;
use nbd_server::listen::{ListenAddr, Listener};
use nbd_server::reactor::{CallError, Io, Reactor, StopLimits, StopReport};
use nbd_server::tls::ServerTls;
use raidcore::allocation::{Holes, ZeroMap};
use raidcore::array::{Array, ArrayOptions};
use raidcore::dev::BlockDev;
use raidcore::meta::{self, Assembly, Found, LeftOutReason, LoadError, StoreError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, channel};
use std::time::{Duration, Instant};

/// How long the reactor may take to end after a stop: its rings wait for what they cancelled.
const LAST_WAIT: Duration = Duration::from_secs(5);

/// What to serve.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What to look for arrays on; absolute.
    pub devices: Vec<PathBuf>,
    /// Start arrays that refuse to start without somebody having looked.
    pub force: bool,
    /// Arrays without which nothing is served.
    pub required: Vec<ArrayName>,
    /// Who may use what, and how much of it.
    pub policy: Policy,
    /// Whether it is encrypted.
    pub tls: Tls,
}

/// Where it is served.
pub struct Places {
    /// For clients.
    pub listen: Vec<Listener>,
    /// For control.
    pub control: Arc<OwnedSocket>,
    /// Of those for clients, the service manager's.
    pub of_manager: Vec<ListenAddr>,
}

impl Places {
    /// Sockets of our own.
    pub fn new(listen: Vec<Listener>, control: OwnedSocket) -> Places {
        Places { listen, control: Arc::new(control), of_manager: Vec::new() }
    }
}

/// Whom it serves beside clients.
pub struct Company {
    /// Who asks for the status, and follows the events.
    pub window: Arc<Window>,
    /// What a new process that wants to take over is offered,
    pub estate: Estate,
    /// and who is told of it.
    pub post: SyncSender<Wish>,
}

/// Arrays being served: everything between the sockets and the devices. It can be stopped and started again.
pub struct Service {
    reactor: Reactor<House>,
    control: ControlServer,
    herald: Herald,
    exports: Vec<Export>,
}

/// How a stop went.
pub struct Ending {
    /// What went wrong, as a sentence.
    pub trouble: Option<String>,
    /// What still hangs in the kernel and keeps this process and its devices, as a sentence.
    pub held_up: Option<String>,
}

impl Service {
    /// Assembles what can be assembled, exports it, and answers at the control socket last: who is answered there
    /// finds everything else in place. Fails if there is nothing to serve; the log says what is wrong with each device.
    pub fn start(plan: &Plan, places: &Places, company: &Company) -> Outcome<Service> {
        let Company { window, estate, post } = company;
        refuse_twins(&plan.devices)?;
        raise_descriptor_limit();
        window.events.open();
        window.status.lock().listen = places.listen.iter().map(report::of_listener).collect();
        let herald = Herald::start(Arc::clone(window))?;
        let reactor = Reactor::spawn(plan.policy.reactor(), {
            let (plan, window) = (plan.clone(), Arc::clone(window));
            move |io| {
                furnish(io, &plan.devices, plan.force, window).map_err(|failure| failure.to_string().into())
            }
        })
        .map_err(Failure::new)?;
        let handle = reactor.handle();
        let listeners = places.listen.iter().map(Listener::share).collect();
        let opened = plan.clone();
        let opened = handle.call(move |host| open_house(host, listeners, &opened)).map_err(no_reactor);
        let exports = match opened.and_then(|exports| exports) {
            Ok(exports) => exports,
            Err(failure) => {
                close(reactor);
                return Err(failure);
            }
        };
        let desk = FrontDesk::new(handle, Arc::clone(window));
        let desk = Arc::new(SuccessionDesk::new(desk, Arc::clone(window), estate.clone(), post.clone()));
        let control = ControlServer::start(Arc::clone(&places.control), desk)?;
        Ok(Service { reactor, control, herald, exports })
    }

    /// What is exported.
    pub fn exports(&self) -> &[Export] {
        &self.exports
    }

    /// Says who may use what from now on. Clients that have chosen already keep what they have.
    pub fn admit(&self, policy: &Policy) -> Outcome<()> {
        let policy = policy.clone();
        self.reactor.handle().call(move |host| admit(host, &policy)).map_err(no_reactor)
    }

    /// New connections start TLS with these certificates.
    pub fn use_certificates(&self, certificates: Option<ServerTls>) -> Outcome<()> {
        self.reactor.handle().call(|host| host.set_certificates(certificates)).map_err(no_reactor)
    }

    /// Asks the reactor whether it lives.
    pub fn answers(&self) -> Result<(), CallError> {
        self.reactor.handle().call(|_| ())
    }

    /// Lets clients finish, flushes, marks the arrays clean and lets go of the devices. `is_clean` is set as soon as
    /// nothing is left to lose.
    pub fn stop(mut self, limits: StopLimits, is_clean: &AtomicBool) -> Outcome<Ending> {
        let report = match self.reactor.handle().stop_within(limits) {
            Ok(report) => report,
            Err(error) => {
                self.control.stop();
                close(self.reactor);
                return Err(no_reactor(error));
            }
        };
        let trouble = describe(&report).or_else(|| self.herald.unclean());
        is_clean.store(trouble.is_none(), Ordering::Release);
        self.control.stop();
        let has_ended = close(self.reactor);
        let trouble = trouble.or_else(|| self.herald.unclean());
        self.herald.finish();
        let held_up = (!has_ended).then(|| held_up(&self.herald.window.status.lock()));
        Ok(Ending { trouble, held_up })
    }
}

/// Ends the reactor's thread, waits for it with a bound, and says whether it has ended. The kernel does not let a thread go while a request
/// of its ring is stuck in a driver or a frozen file system; nothing but that device can end this.
fn close(reactor: Reactor<House>) -> bool {
    let (tell, told) = channel();
    let joining = std::thread::Builder::new().name("last".to_string()).spawn(move || {
        drop(reactor);
        if tell.send(()).is_err() {
            tracing::debug!("nobody waits for the reactor any more");
        }
    });
    // Without a thread the reactor has ended when the closure was dropped.
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
fn open_house(
    host: &mut nbd_server::reactor::Host<House>,
    listeners: Vec<Listener>,
    plan: &Plan,
) -> Outcome<Vec<Export>> {
    host.engine_mut().publish();
    let report = host.engine().report();
    if let Some(missing) = plan.required.iter().find(|wanted| !wanted.is_in(&report)) {
        return Err(Failure::new(format!("{missing} could not be started: the log says why")));
    }
    let exports = host.engine().exports();
    let names: Vec<String> = exports.iter().map(|export| export.name.clone()).collect();
    if let Some(name) = plan.policy.unprotected(&names) {
        let there = names.join(", ");
        return Err(Failure::new(format!("--read-only={name}: there is no such export, only {there}")));
    }
    for export in &exports {
        let description = plan.policy.description_of(&export.name).to_string();
        host.add_export(Export { description, ..export.clone() }).map_err(Failure::new)?;
    }
    admit(host, &plan.policy);
    host.set_certificates(plan.tls.certificates());
    for listener in listeners {
        host.add_listener(listener).map_err(Failure::new)?;
    }
    Ok(exports)
}

/// On the reactor: says who may use what from now on.
fn admit(host: &mut nbd_server::reactor::Host<House>, policy: &Policy) {
    let exports: Vec<_> = host.exports().iter().map(|export| (export.id, export.name.clone())).collect();
    let names: Vec<String> = exports.iter().map(|(_, name)| name.clone()).collect();
    for name in policy.names_beside(&names) {
        tracing::warn!(
            "the configuration speaks of an export {name:?}, which is not served: is it misspelt?"
        );
    }
    for (id, name) in exports {
        host.set_access(id, policy.access_of(&name));
    }
}

/// On the reactor's thread, before it turns: finds the arrays on the devices and starts them.
fn furnish(io: &Io, devices: &[PathBuf], force: bool, window: Arc<Window>) -> Outcome<House> {
    let mut house = House::new(&io.clock, window);
    let mut troubles = Vec::new();
    let bench = Bench::on(&io.ring);
    let mut found: Vec<Found> = Vec::new();
    let mut files: Vec<Option<Device>> = Vec::new();
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
            Ok((array, zeroes)) => house.take_in(array, zeroes, &io.slab),
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
fn look_at(bench: &Bench, path: &Path, begun: Instant) -> Outcome<(Found, Device)> {
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
    files: &mut [Option<Device>],
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

/// Starts an array on its devices; says what is left out and what is missing. With it comes what is known of it to be
/// zeroes.
fn start(
    io: &Io,
    assembly: &Assembly,
    found: &[Found],
    files: &mut [Option<Device>],
) -> Outcome<(Array, ZeroMap)> {
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
    let file_of = |&index: &usize| files.get(index).and_then(Option::as_ref);
    let holes_in = |index: &Option<usize>| index.as_ref().and_then(file_of)?.holes();
    let holes: Vec<Option<Holes>> = assembly.slots.iter().map(holes_in).collect();
    let used = assembly.slots.iter().flatten().chain(&assembly.spares);
    let mut take = |index: usize| {
        let mut device = files.get_mut(index)?.take()?;
        device.allow_blocks_of(assembly.array.block_size);
        Some((index, Box::new(device) as Box<dyn BlockDev>))
    };
    let devices = used.filter_map(|&index| take(index)).collect();
    let array = Array::assemble(assembly, found, devices, &io.clock, &io.slab, ArrayOptions::default())
        .context(format!("array {name}"))?;
    let zeroes = array.zero_map(|slot| holes.get(slot.index()).cloned().flatten().unwrap_or_default());
    Ok((array, zeroes))
}

/// Where clients find `export`, one URI per place.
pub fn uris(places: &[Listener], export: &str) -> Vec<String> {
    places.iter().map(|place| crate::listen::uri(place.addr(), place.tls(), export)).collect()
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
