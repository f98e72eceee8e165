//! An array inside a program: no daemon, no runtime, no disks.
//!
//! First over the simulator's disks on virtual time, one of which dies under way; then over a device of the
//! embedder's own, by the submit/reap interface that fast callers use.
//!
//! Run it with `cargo run -p raidcore --example embed`.

use raidcore::array::{Array, ArrayOptions};
use raidcore::blocking::{Blocking, Driver, VirtualDriver};
use raidcore::buf::{BufList, Slab, SlabConfig, ViewList};
use raidcore::dev::{BlockDev, BlockSize, Checked, Completion, Geometry, Op, Request, Tag};
use raidcore::layout::{LayoutSpec, Level};
use raidcore::meta::{self, Candidate, CreateParams, Found};
use raidcore::sim::{Disk, DiskConfig};
use raidcore::time::{Clock, Time};
use std::collections::VecDeque;
use std::error::Error;
use std::time::Duration;

const MIB: u64 = 1 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    over_simulated_disks()?;
    over_a_device_of_our_own()
}

/// The blocking handle: simple calls, one after the other.
fn over_simulated_disks() -> Result<(), Box<dyn Error>> {
    let clock = Clock::virtual_at(Time::ZERO);
    let slab = Slab::new(&SlabConfig::small())?;
    let disks: Vec<Disk> =
        (0..4).map(|seed| Disk::new(DiskConfig::default().with_seed(seed), &clock)).collect();
    let devices = disks.iter().map(|disk| Box::new(disk.device()) as Box<dyn BlockDev>).collect();

    let driver = || Box::new(VirtualDriver::new(clock.clone())) as Box<dyn Driver>;
    let array = create_and_start(Level::Raid5, devices, &clock, &slab, &driver)?;
    let mut array = Blocking::new(array, clock.clone(), slab.clone(), driver());
    println!("raid5 of 4 simulated disks: {} MiB", array.geometry().size_bytes / MIB);

    let text: Vec<u8> = b"the data survives it. ".iter().copied().cycle().take(MIB as usize).collect();
    array.write_at(0, &text, false)?;
    disks[2].fail();
    let mut back = vec![0; text.len()];
    array.read_at(0, &mut back)?;
    assert!(back == text);
    println!("disk 2 died; the megabyte is still there, and the array is {}", array.inner_mut().state());
    for event in array.inner_mut().take_events() {
        println!("  {}: {event}", event.name());
    }
    Ok(())
}

/// The fast interface: many requests in flight, memory that moves in and out.
fn over_a_device_of_our_own() -> Result<(), Box<dyn Error>> {
    let clock = Clock::monotonic();
    let slab = Slab::new(&SlabConfig::small())?;
    let devices = (0..3).map(|_| Box::new(Ram::new(32 * MIB)) as Box<dyn BlockDev>).collect();
    let driver = || Box::new(Refresh(clock.clone())) as Box<dyn Driver>;
    // An array checks its members, and whoever calls it is checked by the same wrapper.
    let mut array = Checked::new(create_and_start(Level::Raid1, devices, &clock, &slab, &driver)?);
    println!("raid1 of 3 devices of our own: {} MiB", array.geometry().size_bytes / MIB);

    let deadline = clock.refresh() + Duration::from_secs(5);
    for i in 0..64 {
        let mut buf = slab.alloc(4096)?;
        buf.fill(i as u8);
        let op = Op::Write { offset: i * 4096, data: ViewList::from_iter([buf.freeze()]), fua: false };
        array.submit(Request { tag: Tag(i), op, deadline });
    }
    let mut done = Vec::new();
    while done.len() < 64 {
        clock.refresh();
        array.reap(&mut done);
    }
    for completion in done.drain(..) {
        completion.result?;
    }
    let bufs = BufList::from_iter([slab.alloc(64 * 4096)?]);
    array.submit(Request { tag: Tag(100), op: Op::Read { offset: 0, bufs }, deadline });
    while done.is_empty() {
        clock.refresh();
        array.reap(&mut done);
    }
    let completion = done.remove(0);
    completion.result?;
    let bytes = completion.bufs.into_iter().next().ok_or("a read brings its memory back")?;
    assert!(bytes.chunks(4096).enumerate().all(|(i, block)| block.iter().all(|&b| b == i as u8)));
    // The memory leaves the engine without a copy.
    let bytes = bytes::Bytes::from_owner(bytes.freeze());
    println!("64 writes in flight together, read back as one: {} bytes", bytes.len());
    Ok(())
}

/// Writes superblocks on the devices and starts the array, as `raidctl create` and `serve` do.
fn create_and_start(
    level: Level,
    devices: Vec<Box<dyn BlockDev>>,
    clock: &Clock,
    slab: &Slab,
    driver: &dyn Fn() -> Box<dyn Driver>,
) -> Result<Array, Box<dyn Error>> {
    let geometries: Vec<Geometry> = devices.iter().map(|dev| dev.geometry()).collect();
    let candidate = |(i, &geometry)| Candidate { name: format!("device {i}"), geometry };
    let params = CreateParams {
        name: "embedded".into(),
        layout: LayoutSpec::new(level, devices.len(), 64 << 10),
        members: geometries.iter().enumerate().map(candidate).collect(),
        spares: Vec::new(),
        // All devices are full of zeroes, whose parity is zero: nothing has to be brought into sync.
        assume_clean: true,
        now_ns: clock.wall_ns(),
    };
    let superblocks = meta::plan_create(&params, uuid::Uuid::new_v4)?;
    let (mut found, mut members) = (Vec::new(), Vec::new());
    for (i, (dev, mut superblock)) in devices.into_iter().zip(superblocks).enumerate() {
        let device_bytes = dev.geometry().size_bytes;
        let mut dev = Blocking::new(dev, clock.clone(), slab.clone(), driver());
        meta::store(&mut dev, &mut superblock)?;
        let loaded = meta::load(&mut dev)?;
        found.push(Found { device: format!("device {i}"), loaded, device_bytes });
        members.push((i, dev.into_inner()));
    }
    let assembly = meta::assemble(&found, false).remove(0)?;
    Ok(Array::assemble(&assembly, &found, members, clock, slab, ArrayOptions::default())?)
}

/// The least an embedder has to write: a device, here a piece of memory.
struct Ram {
    bytes: Vec<u8>,
    queue: VecDeque<Request>,
}

impl Ram {
    fn new(size: u64) -> Ram {
        Ram { bytes: vec![0; size as usize], queue: VecDeque::new() }
    }

    /// Requests have been checked: they are aligned and lie within the device.
    fn execute(&mut self, op: Op) -> BufList {
        match op {
            Op::Read { offset, mut bufs } => {
                let mut at = offset as usize;
                for buf in &mut bufs {
                    let end = at + buf.len();
                    buf.copy_from_slice(&self.bytes[at..end]);
                    at = end;
                }
                return bufs;
            }
            Op::Write { offset, data, .. } => {
                let mut at = offset as usize;
                for view in &data {
                    self.bytes[at..at + view.len()].copy_from_slice(view);
                    at += view.len();
                }
            }
            Op::WriteZeroes { offset, len, .. } => {
                self.bytes[offset as usize..(offset + len) as usize].fill(0)
            }
            Op::Flush | Op::Discard { .. } => {}
        }
        BufList::new()
    }
}

impl BlockDev for Ram {
    fn geometry(&self) -> Geometry {
        Geometry { volatile_cache: false, ..Geometry::plain(self.bytes.len() as u64, BlockSize::B4096) }
    }

    fn submit(&mut self, request: Request) {
        self.queue.push_back(request);
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        while let Some(Request { tag, op, .. }) = self.queue.pop_front() {
            let bufs = self.execute(op);
            done.push(Completion { tag, result: Ok(()), bufs });
        }
    }

    fn cancel(&mut self, _: Tag) {}
}

/// Nothing below ever makes us wait; only time has to be read.
struct Refresh(Clock);

impl Driver for Refresh {
    fn wait(&mut self, _until: Time) -> std::io::Result<()> {
        self.0.refresh();
        Ok(())
    }
}
