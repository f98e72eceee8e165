//! What a reactor drives besides connections: the devices behind the exports.

use crate::export::{ExportId, Extent, MetaContext};
use raidcore::dev::{BlockDev, Completion, ErrorKind, Geometry, Request};
use raidcore::time::Time;
use std::ops::Range;

/// The devices behind the exports of a reactor, as one: arrays with their logical units, or whatever else an
/// embedder exports. It lives on the reactor's thread and need not be `Send`.
///
/// The contract is that of [`BlockDev`], with many devices behind one queue: `submit` only queues, work moves
/// forward in `reap`, each request is answered exactly once. Tags are unique among *all* requests of the reactor
/// in flight, so a device may be handed them as they are.
pub trait Engine {
    /// Queues a request for the device of `export`.
    fn submit(&mut self, export: ExportId, request: Request);

    /// Moves every device forward and appends what has completed. Also called when nothing was submitted: an
    /// engine does its own work (a rebuild, a metadata update) here.
    fn reap(&mut self, done: &mut Vec<Completion>);

    /// When `reap` has something to do though nothing completes below; `None` if never.
    fn wake_at(&self) -> Option<Time> {
        None
    }

    /// Appends what is true of `range` of `export` to `out`: extents that follow each other without a gap, the first
    /// of them at the range's start. `range` is not empty and lies within the export.
    ///
    /// It answers at once from what it knows and waits for nothing. At least one extent and at most
    /// [`MAX_EXTENTS`](crate::limits::MAX_EXTENTS) of them; they may end before the range does, and the last may
    /// end after it. Neighbours may be equal: the protocol's side joins them.
    ///
    /// An engine that does not know better says that everything is allocated and redundant.
    fn extents(&mut self, export: ExportId, context: MetaContext, range: Range<u64>, out: &mut Vec<Extent>) {
        let (_, _) = (export, context);
        out.push(Extent { len: range.end - range.start, flags: 0 });
    }

    /// A device that has grown and was not yet told of here, and its new size in bytes. Asked after each `reap`, until
    /// there is none.
    fn resized(&mut self) -> Option<(ExportId, u64)> {
        None
    }

    /// The reactor stops: all connections are closed and the exports are flushed. Begin to close the devices.
    fn begin_stop(&mut self) {}

    /// True once everything is closed. The reactor calls `reap` until then, or until its time is up.
    fn is_stopped(&self) -> bool {
        true
    }
}

/// The simplest engine: a list of devices.
///
/// They are not wrapped in [`Checked`](raidcore::dev::Checked), which knows whole blocks only: the server has
/// checked each request against the geometry, down to the byte where the export is byte-granular.
#[derive(Default)]
pub struct Devices {
    /// With the size that was told last.
    list: Vec<(ExportId, Box<dyn BlockDev>, u64)>,
    refused: Vec<Completion>,
}

impl Devices {
    /// No devices.
    pub fn new() -> Devices {
        Devices::default()
    }

    /// Puts a device behind `export`, in place of the one that was there; its geometry.
    pub fn insert(&mut self, export: ExportId, device: Box<dyn BlockDev>) -> Geometry {
        self.list.retain(|(id, ..)| *id != export);
        let geometry = device.geometry();
        self.list.push((export, device, geometry.size_bytes));
        geometry
    }

    /// Takes the device of `export` away. Its requests in flight are never answered: withdraw the export and
    /// wait for them first.
    pub fn remove(&mut self, export: ExportId) -> Option<Box<dyn BlockDev>> {
        let at = self.list.iter().position(|(id, ..)| *id == export)?;
        Some(self.list.remove(at).1)
    }
}

impl Engine for Devices {
    fn submit(&mut self, export: ExportId, request: Request) {
        match self.list.iter_mut().find(|(id, ..)| *id == export) {
            Some((_, device, _)) => device.submit(request),
            None => self.refused.push(request.refuse(ErrorKind::Gone)),
        }
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.refused);
        self.list.iter_mut().for_each(|(_, device, _)| device.reap(done));
    }

    fn resized(&mut self) -> Option<(ExportId, u64)> {
        let (export, told, size_bytes) = self.list.iter_mut().find_map(|(export, device, told)| {
            let size_bytes = device.geometry().size_bytes;
            (size_bytes > *told).then_some((*export, told, size_bytes))
        })?;
        *told = size_bytes;
        Some((export, size_bytes))
    }

    fn wake_at(&self) -> Option<Time> {
        let refused = (!self.refused.is_empty()).then_some(Time::ZERO);
        self.list.iter().filter_map(|(_, device, _)| device.wake_at()).chain(refused).min()
    }
}
