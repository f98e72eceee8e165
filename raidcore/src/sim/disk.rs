//! The disk, as the test holds it, and the device, as what is tested holds it.

use super::FaultRates;
use super::config::DiskConfig;
use super::platter::Platter;
use super::port::Port;
use super::stats::{Stats, TraceEvent};
use crate::dev::{BlockDev, Completion, Geometry, Request, Tag};
use crate::time::{Clock, Time};
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

/// A handle to a simulated disk, to plant faults and to look at what it holds. Clones are the same disk.
#[derive(Clone)]
pub struct Disk {
    core: Rc<RefCell<Core>>,
}

impl Disk {
    /// A disk full of zeroes, whose time is `clock`.
    pub fn new(config: DiskConfig, clock: &Clock) -> Disk {
        let platter = Platter::new(config, clock);
        Disk { core: Rc::new(RefCell::new(Core { platter, ports: Vec::new(), made: 0 })) }
    }

    /// A path to the disk. Each call makes a further one, all of them leading to the same blocks. After
    /// [`power_cut`](Disk::power_cut) this is how the disk comes up again.
    pub fn device(&self) -> Device {
        let mut core = self.core.borrow_mut();
        let port = Port::new(core.made);
        core.made += 1;
        let index = core.ports.iter().position(Option::is_none).unwrap_or(core.ports.len());
        if index == core.ports.len() {
            core.ports.push(None);
        }
        core.ports[index] = Some(port);
        Device { core: Rc::clone(&self.core), index, geometry: core.platter.config.geometry() }
    }

    /// Cuts the power, and restores it. Every device made so far is dead: what it has in flight, and all that
    /// is asked of it later, is answered with [`ErrorKind::Gone`](crate::dev::ErrorKind::Gone). Of the writes that were not flushed, and of
    /// those in flight, a random part survives, in any order, and some are torn. A hang ends; other faults stay.
    pub fn power_cut(&self) {
        let mut core = self.core.borrow_mut();
        let Core { platter, ports, .. } = &mut *core;
        let mut in_flight = Vec::new();
        for port in ports.iter_mut().flatten() {
            in_flight.append(&mut port.power_cut(platter));
        }
        ports.iter_mut().for_each(|port| drop(port.take_if(|port| port.is_over())));
        platter.media.power_cut(&mut platter.rng, in_flight);
        platter.hung = false;
        platter.journal.stats.power_cuts += 1;
    }

    /// The disk fails: on all its devices everything is answered with [`ErrorKind::Gone`](crate::dev::ErrorKind::Gone).
    pub fn fail(&self) {
        self.core.borrow_mut().platter.gone = true;
    }

    /// The disk is back after [`fail`](Disk::fail) or [`fail_after`](Disk::fail_after), with what it held.
    pub fn restore(&self) {
        let platter = &mut self.core.borrow_mut().platter;
        platter.gone = false;
        platter.faults.fail_after(None);
    }

    /// The disk fails when `operations` more have been executed.
    pub fn fail_after(&self, operations: u64) {
        self.core.borrow_mut().platter.faults.fail_after(Some(operations));
    }

    /// While on, nothing is answered but deadlines. Afterwards the disk goes on with what it was told.
    pub fn hang(&self, on: bool) {
        self.core.borrow_mut().platter.hung = on;
    }

    /// Bad sectors: reads that touch `range` fail with [`ErrorKind::Medium`](crate::dev::ErrorKind::Medium), until the place is written.
    pub fn fail_reads(&self, range: Range<u64>) {
        self.core.borrow_mut().platter.faults.fail_reads(range, true);
    }

    /// Reads that touch `range` fail with [`ErrorKind::Medium`](crate::dev::ErrorKind::Medium), whatever is written there.
    pub fn fail_reads_for_good(&self, range: Range<u64>) {
        self.core.borrow_mut().platter.faults.fail_reads(range, false);
    }

    /// Writes and write-zeroes that touch `range` fail with [`ErrorKind::Medium`](crate::dev::ErrorKind::Medium), and write nothing.
    pub fn fail_writes(&self, range: Range<u64>) {
        self.core.borrow_mut().platter.faults.fail_writes(range);
    }

    /// Mends all bad places, those that came by chance included, and forgets [`fail_after`](Disk::fail_after).
    pub fn clear_faults(&self) {
        self.core.borrow_mut().platter.faults.clear();
    }

    /// The disk becomes larger, with zeroes behind its former end; a smaller size does nothing. Devices made so far
    /// keep theirs until they [look again](BlockDev::refresh_size).
    pub fn grow(&self, size_bytes: u64) {
        let config = &mut self.core.borrow_mut().platter.config;
        config.size_bytes = config.size_bytes.max(size_bytes);
    }

    /// Changes how often faults happen by themselves.
    pub fn set_rates(&self, rates: FaultRates) {
        self.core.borrow_mut().platter.config.rates = rates;
    }

    /// Silently changes every one of `len` bytes from `offset` on, as bit rot does.
    pub fn corrupt(&self, offset: u64, len: u64) {
        let mut bytes = self.peek(offset, len);
        let mut core = self.core.borrow_mut();
        for byte in &mut bytes {
            *byte ^= 1 + core.platter.rng.below(255) as u8;
        }
        core.platter.media.poke(offset, &bytes);
    }

    /// What a read would deliver now, bad sectors notwithstanding. Any offset and length.
    pub fn peek(&self, offset: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.core.borrow().platter.media.read(offset, &mut bytes);
        bytes
    }

    /// What a power cut leaves at least: what is flushed, or written with forced unit access.
    pub fn durable(&self, offset: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.core.borrow().platter.media.read_durable(offset, &mut bytes);
        bytes
    }

    /// Writes `bytes` at `offset`, durably, past all faults. Any offset and length.
    pub fn poke(&self, offset: u64, bytes: &[u8]) {
        self.core.borrow_mut().platter.media.poke(offset, bytes);
    }

    /// What the disk has done so far.
    pub fn stats(&self) -> Stats {
        self.core.borrow().platter.journal.stats
    }

    /// The last operations, oldest first: as many as [`DiskConfig::trace`] says.
    pub fn trace(&self) -> Vec<TraceEvent> {
        self.core.borrow().platter.journal.trace.iter().copied().collect()
    }
}

/// A path to a simulated disk. Dropping it is as the death of its process: what the disk was told to do may
/// still be done, and nobody is told.
pub struct Device {
    core: Rc<RefCell<Core>>,
    index: usize,
    geometry: Geometry,
}

impl Device {
    /// A handle to the way between this device and its disk, to break it while others hold.
    pub fn link(&self) -> Link {
        Link { core: Rc::clone(&self.core), index: self.index, path: self.path() }
    }

    /// Which path this is: the number of devices of the disk made before.
    pub fn path(&self) -> usize {
        self.core.borrow().ports[self.index].as_ref().map_or(usize::MAX, Port::path)
    }

    fn with<T>(&self, on_port: impl FnOnce(&mut Port, &mut Platter) -> T) -> Option<T> {
        let mut core = self.core.borrow_mut();
        let Core { platter, ports, .. } = &mut *core;
        ports[self.index].as_mut().map(|port| on_port(port, platter))
    }
}

impl BlockDev for Device {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn refresh_size(&mut self) {
        self.geometry.size_bytes = self.core.borrow().platter.config.geometry().size_bytes;
    }

    fn submit(&mut self, request: Request) {
        self.with(|port, platter| port.submit(platter, request));
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        self.core.borrow_mut().turn_detached();
        self.with(|port, platter| port.turn(platter, done));
    }

    fn cancel(&mut self, tag: Tag) {
        self.with(|port, platter| port.cancel(platter, tag));
    }

    fn wake_at(&self) -> Option<Time> {
        let core = self.core.borrow();
        let detached = |(index, port): (usize, &Port)| index == self.index || port.is_detached();
        let ports = core.ports.iter().enumerate().filter_map(|(index, port)| Some((index, port.as_ref()?)));
        ports.filter(|&pair| detached(pair)).filter_map(|(_, port)| port.wake_at(&core.platter)).min()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.with(|port, platter| port.detach(platter));
        let port = &mut self.core.borrow_mut().ports[self.index];
        drop(port.take_if(|port| port.is_over()));
    }
}

/// The way between one device and its disk: a cable, a fabric. Clones are the same way.
#[derive(Clone)]
pub struct Link {
    core: Rc<RefCell<Core>>,
    index: usize,
    path: usize,
}

impl Link {
    /// Cuts the way: everything on this device is answered with [`ErrorKind::Gone`](crate::dev::ErrorKind::Gone), but what the disk was
    /// already told to do may still be done.
    pub fn fail(&self) {
        self.with(|port| port.down = true);
    }

    /// The way is whole again.
    pub fn restore(&self) {
        self.with(|port| port.down = false);
    }

    /// While on, nothing comes through and nothing is answered but deadlines.
    pub fn hang(&self, on: bool) {
        self.with(|port| port.hung = on);
    }

    /// Does nothing if the device is no longer there.
    fn with(&self, on_port: impl FnOnce(&mut Port)) {
        let mut core = self.core.borrow_mut();
        if let Some(port) = core.ports[self.index].as_mut().filter(|port| port.path() == self.path) {
            on_port(port);
        }
    }
}

struct Core {
    platter: Platter,
    /// An index belongs to one device while that lives.
    ports: Vec<Option<Port>>,
    /// Devices made so far.
    made: usize,
}

impl Core {
    /// Executes what devices that were dropped have left behind.
    fn turn_detached(&mut self) {
        for slot in &mut self.ports {
            if let Some(port) = slot.as_mut().filter(|port| port.is_detached()) {
                port.turn(&mut self.platter, &mut Vec::new());
                drop(slot.take_if(|port| port.is_over()));
            }
        }
    }
}
