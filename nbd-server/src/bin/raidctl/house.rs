//! The arrays of one reactor, as the engine behind its exports.
//!
//! It lives on the reactor's thread. What other threads may know of it, it publishes, so that `status` never waits for
//! a disk: events at once and the status with them, otherwise the status at most every [`PUBLISH_INTERVAL`] and once
//! more before it falls idle.
//! It never logs and never blocks; who follows the events logs them.

use crate::events::{EventLog, Severity};
use crate::extents;
use crate::moderation::Moderation;
use crate::report::{self, StatusReport};
use nbd_server::engine::Engine;
use nbd_server::export::{Export, ExportId, Extent, MetaContext};
use parking_lot::Mutex;
use raidcore::allocation::ZeroMap;
use raidcore::array::{Array, Event};
use raidcore::buf::Slab;
use raidcore::dev::{BlockDev, Completion, ErrorKind, Request};
use raidcore::lu::Lu;
use raidcore::time::{Clock, Time};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// How old a published status may be while something moves.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(100);

/// What other threads see of the arrays.
#[derive(Default)]
pub struct Window {
    /// The last published status.
    pub status: Mutex<StatusReport>,
    /// What happened.
    pub events: EventLog,
}

/// The arrays.
pub struct House {
    arrays: Vec<Hosted>,
    refused: Vec<Completion>,
    clock: Clock,
    window: Arc<Window>,
    next_export: u32,
    /// Something may have changed since the status was published.
    stale: bool,
    publish_at: Time,
}

struct Hosted {
    export: ExportId,
    name: String,
    /// The size that the reactor knows of.
    told_bytes: u64,
    /// It checks what clients ask for down to the byte, so the array needs no further wrapper.
    lu: Lu<Array>,
    /// How many corrected read errors were told of.
    corrected: Moderation,
}

impl House {
    /// An empty house that publishes through `window`.
    pub fn new(clock: &Clock, window: Arc<Window>) -> House {
        House {
            arrays: Vec::new(),
            refused: Vec::new(),
            clock: clock.clone(),
            window,
            next_export: 0,
            stale: true,
            publish_at: Time::ZERO,
        }
    }

    /// Takes an array in, of which `zeroes` is known. Memory for requests smaller than a block comes from `slab`.
    pub fn take_in(&mut self, array: Array, zeroes: ZeroMap, slab: &Slab) {
        let export = ExportId(self.next_export);
        self.next_export += 1;
        self.arrays.push(Hosted {
            export,
            name: array.name(),
            told_bytes: array.geometry().size_bytes,
            lu: Lu::new(array, slab, &self.clock).with_zero_map(zeroes),
            corrected: Moderation::default(),
        });
    }

    /// True if there is an array of this name.
    pub fn has(&self, name: &str) -> bool {
        self.arrays.iter().any(|hosted| hosted.name == name)
    }

    /// What is to be exported.
    pub fn exports(&self) -> Vec<Export> {
        let export = |hosted: &Hosted| Export {
            id: hosted.export,
            name: hosted.name.clone(),
            description: String::new(),
            geometry: hosted.lu.geometry(),
            byte_granular: true,
        };
        self.arrays.iter().map(export).collect()
    }

    /// The status as it was published last.
    pub fn report(&self) -> StatusReport {
        self.window.status.lock().clone()
    }

    /// The array of this name, and its export.
    pub fn array_mut(&mut self, name: &str) -> Option<(ExportId, &mut Array)> {
        self.stale = true;
        let hosted = self.arrays.iter_mut().find(|hosted| hosted.name == name)?;
        Some((hosted.export, hosted.lu.dev_mut()))
    }

    /// Lets go of an array that is stopped, and closes its devices. `None` if it is not stopped yet; otherwise
    /// whether its superblocks are marked clean.
    pub fn let_go(&mut self, name: &str) -> Option<bool> {
        let Some(at) = self.arrays.iter().position(|hosted| hosted.name == name) else { return Some(true) };
        let array = self.arrays[at].lu.dev();
        if !array.is_stopped() {
            return None;
        }
        let clean = !array.has_failed();
        let news = self.take_news();
        self.arrays.remove(at);
        self.publish_with(news);
        Some(clean)
    }

    /// Publishes the status as it is now, and what happened.
    pub fn publish(&mut self) {
        let news = self.take_news();
        self.publish_with(news);
    }

    /// The status first: whoever is told of an event and asks, finds what it is about.
    fn publish_with(&mut self, news: Vec<News>) {
        let arrays = self.arrays.iter().map(|hosted| report::of_array(&hosted.lu.dev().status())).collect();
        self.window.status.lock().arrays = arrays;
        self.stale = false;
        self.publish_at = self.clock.now() + PUBLISH_INTERVAL;
        for News { severity, event, array, device, message } in news {
            self.window.events.push(severity, event, &array, device.as_deref(), &message);
        }
    }

    /// What happened since it was asked for last. Empty most of the time, and then nothing is allocated.
    fn take_news(&mut self) -> Vec<News> {
        let now = self.clock.now();
        let mut news = Vec::new();
        for Hosted { name, lu, corrected, .. } in &mut self.arrays {
            if let Some(more) = corrected.sum_up(now) {
                news.push(News {
                    severity: Severity::Warning,
                    event: "ReadErrorCorrected",
                    array: name.clone(),
                    device: None,
                    message: format!("{more} more blocks could not be read, were rebuilt and written back"),
                });
            }
            for event in lu.dev_mut().take_events() {
                if matches!(event, Event::ReadErrorCorrected { .. }) && !corrected.admit(now) {
                    continue;
                }
                news.push(News {
                    severity: event.severity().into(),
                    event: event.name(),
                    array: name.clone(),
                    device: device_of(&event).map(str::to_string),
                    message: event.to_string(),
                });
            }
        }
        news
    }
}

/// An event that nobody was told of yet.
struct News {
    severity: Severity,
    event: &'static str,
    array: String,
    device: Option<String>,
    message: String,
}

/// The device an event is about.
fn device_of(event: &Event) -> Option<&str> {
    match event {
        Event::Fail { device, .. }
        | Event::ReadErrorCorrected { device, .. }
        | Event::SpareAdded { device }
        | Event::RebuildStarted { device, .. }
        | Event::SpareActive { device, .. }
        | Event::RebuildFinished { device }
        | Event::RebuildFailed { device, .. }
        | Event::Removed { device } => Some(device),
        _ => None,
    }
}

impl Engine for House {
    fn submit(&mut self, export: ExportId, request: Request) {
        match self.arrays.iter_mut().find(|hosted| hosted.export == export) {
            Some(hosted) => hosted.lu.submit(request),
            None => self.refused.push(request.refuse(ErrorKind::Gone)),
        }
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.refused);
        for hosted in &mut self.arrays {
            hosted.lu.reap(done);
        }
        self.stale = true;
        let news = self.take_news();
        if !news.is_empty() || self.clock.now() >= self.publish_at {
            self.publish_with(news);
        }
    }

    fn wake_at(&self) -> Option<Time> {
        let refused = (!self.refused.is_empty()).then_some(Time::ZERO);
        let publish = self.stale.then_some(self.publish_at);
        let arrays = self.arrays.iter().flat_map(|hosted| [hosted.lu.wake_at(), hosted.corrected.wake_at()]);
        arrays.chain([refused, publish]).flatten().min()
    }

    fn extents(&mut self, export: ExportId, context: MetaContext, range: Range<u64>, out: &mut Vec<Extent>) {
        match self.arrays.iter().find(|hosted| hosted.export == export) {
            Some(hosted) => extents::tell(&hosted.lu, context, range, out),
            None => out.push(Extent { len: range.end - range.start, flags: 0 }),
        }
    }

    fn resized(&mut self) -> Option<(ExportId, u64)> {
        let grown = |hosted: &&mut Hosted| hosted.lu.geometry().size_bytes > hosted.told_bytes;
        let hosted = self.arrays.iter_mut().find(grown)?;
        hosted.told_bytes = hosted.lu.geometry().size_bytes;
        Some((hosted.export, hosted.told_bytes))
    }

    fn begin_stop(&mut self) {
        for hosted in &mut self.arrays {
            hosted.lu.dev_mut().stop();
        }
    }

    fn is_stopped(&self) -> bool {
        self.arrays.iter().all(|hosted| hosted.lu.dev().is_stopped())
    }
}

impl Drop for House {
    /// The last events, of stopping, are told as well.
    fn drop(&mut self) {
        self.publish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nbd_server::ram::RamDisk;
    use raidcore::allocation::Holes;
    use raidcore::array::ArrayOptions;
    use raidcore::blocking::{Blocking, VirtualDriver};
    use raidcore::buf::SlabConfig;
    use raidcore::layout::{LayoutSpec, Level};
    use raidcore::meta::{self, Candidate, CreateParams, Found};

    const DISK_BYTES: usize = 4 << 20;

    fn mirror(clock: &Clock, slab: &Slab) -> Array {
        let disks = [RamDisk::new(DISK_BYTES), RamDisk::new(DISK_BYTES)];
        let candidate =
            |(i, disk): (usize, &RamDisk)| Candidate { name: format!("ram{i}"), geometry: disk.geometry() };
        let params = CreateParams {
            name: "v".into(),
            layout: LayoutSpec::new(Level::Raid1, 2, 64 << 10),
            members: disks.iter().enumerate().map(candidate).collect(),
            spares: Vec::new(),
            assume_clean: true,
            now_ns: 1,
        };
        let superblocks = meta::plan_create(&params, uuid::Uuid::new_v4).unwrap();
        let (mut found, mut devices) = (Vec::new(), Vec::new());
        for (i, (disk, mut superblock)) in disks.into_iter().zip(superblocks).enumerate() {
            let driver = Box::new(VirtualDriver::new(clock.clone()));
            let mut dev = Blocking::new(disk, clock.clone(), slab.clone(), driver);
            meta::store(&mut dev, &mut superblock).unwrap();
            let loaded = meta::load(&mut dev).unwrap();
            found.push(Found { device: format!("ram{i}"), loaded, device_bytes: DISK_BYTES as u64 });
            devices.push((i, Box::new(dev.into_inner()) as Box<dyn BlockDev>));
        }
        let assembly = meta::assemble(&found, false).remove(0).unwrap();
        Array::assemble(&assembly, &found, devices, clock, slab, ArrayOptions::default()).unwrap()
    }

    /// The status of before was published for up to a tenth of a second after the event: a script that waited for
    /// `Fail` and then asked found the array whole. The clock stands still here, so nothing is published by time.
    #[test]
    fn the_status_is_as_new_as_the_last_event_and_an_idle_house_sleeps() {
        let clock = Clock::virtual_at(Time::ZERO);
        let slab = Slab::new(&SlabConfig::small()).unwrap();
        let window = Arc::new(Window::default());
        let mut house = House::new(&clock, Arc::clone(&window));
        let array = mirror(&clock, &slab);
        let zeroes = array.zero_map(|_| Holes::none());
        house.take_in(array, zeroes, &slab);
        house.publish();
        house.array_mut("v").unwrap().1.fail("ram1").unwrap();
        let mut done = Vec::new();
        house.reap(&mut done);
        let events = window.events.after(0);
        assert!(events.iter().any(|event| event.event == "Fail"), "{events:?}");
        assert_eq!(window.status.lock().arrays[0].state, "degraded");
        // What is left to do is done in a bounded number of turns, and then nothing wakes it.
        for _ in 0..1000 {
            house.reap(&mut done);
            match house.wake_at() {
                Some(at) => clock.advance_to(at.max(clock.now())),
                None => return,
            }
        }
        panic!("it wakes for ever: {:?}", house.wake_at());
    }
}
