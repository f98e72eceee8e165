//! An array on simulated disks, and the few verbs the tests speak in.

use crate::array::{Array, ArrayOptions, Event};
use crate::blocking::{Blocking, VirtualDriver};
use crate::buf::{Slab, SlabConfig, ViewList};
use crate::dev::{BlockDev, BlockSize, Completion, ErrorKind, Op, Request, Tag};
use crate::layout::{LayoutSpec, Level, Slot, UnitId, UnitMap};
use crate::meta::{self, AssembleError, Assembly, Candidate, CreateParams, Found, MemberState, Superblock};
use crate::parity::multiply;
use crate::sim::{Disk, DiskConfig, Latency, run_until};
use crate::time::{Clock, Time};
use std::collections::HashMap;
use std::time::Duration;
use uuid::Uuid;

/// What an array under test is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub level: Level,
    pub slots: usize,
    pub chunk: u32,
    pub block: BlockSize,
    pub assume_clean: bool,
    pub seed: u64,
    pub disk_bytes: u64,
}

impl Shape {
    pub(super) fn new(level: Level, slots: usize) -> Shape {
        Shape {
            level,
            slots,
            chunk: 16384,
            block: BlockSize::B512,
            assume_clean: true,
            seed: 1,
            disk_bytes: DISK_BYTES,
        }
    }
}

pub(super) struct Rig {
    pub clock: Clock,
    pub slab: Slab,
    pub disks: Vec<Disk>,
    pub array: Array,
    pub events: Vec<Event>,
    pub last_assembly: Assembly,
    config: DiskConfig,
    next_tag: u64,
}

/// Room for half a MiB of data, or for five where a test needs many units.
pub(super) const DISK_BYTES: u64 = (1 << 20) + (512 << 10) + meta::TAIL_BYTES;
pub(super) const LARGE_DISK_BYTES: u64 = (6 << 20) + meta::TAIL_BYTES;

impl Rig {
    /// Creates an array and starts it: on zeroed disks, or on disks full of garbage if it has to come into sync.
    pub(super) fn new(shape: Shape) -> Rig {
        let us = Duration::from_micros;
        let latency = Latency { min: us(50), max: us(60) };
        Rig::with_disks(shape, DiskConfig { latency, ..DiskConfig::quiet(shape.disk_bytes, shape.block) })
    }

    pub(super) fn with_disks(shape: Shape, config: DiskConfig) -> Rig {
        let clock = Clock::virtual_at(Time::from_ns(1));
        let slab = Slab::new(&SlabConfig::small()).unwrap();
        let disk = |i: usize| Disk::new(config.clone().with_seed(shape.seed * 1000 + i as u64), &clock);
        let disks: Vec<Disk> = (0..shape.slots).map(disk).collect();
        for (i, disk) in disks.iter().enumerate().filter(|_| !shape.assume_clean) {
            disk.poke(0, &garbage(i as u64, shape.disk_bytes));
        }
        let candidate = |(i, disk): (usize, &Disk)| Candidate {
            name: format!("disk{i}"),
            geometry: disk.device().geometry(),
        };
        let params = CreateParams {
            name: "vol0".into(),
            layout: LayoutSpec::new(shape.level, shape.slots, shape.chunk),
            members: disks.iter().enumerate().map(candidate).collect(),
            spares: Vec::new(),
            assume_clean: shape.assume_clean,
            now_ns: 1,
        };
        let mut superblocks = meta::plan_create(&params, Uuid::new_v4).unwrap();
        for (disk, superblock) in disks.iter().zip(&mut superblocks) {
            let mut dev = blocking(disk, &clock, &slab);
            meta::store(&mut dev, superblock).unwrap();
        }
        let (array, assembly) = start(&disks, &clock, &slab, false).unwrap();
        Rig { clock, slab, disks, array, events: Vec::new(), last_assembly: assembly, config, next_tag: 0 }
    }

    pub(super) fn size(&self) -> u64 {
        self.array.geometry().size_bytes
    }

    /// Queues an operation with a deadline far away.
    pub(super) fn submit(&mut self, op: Op) -> Tag {
        self.next_tag += 1;
        let deadline = self.clock.now() + Duration::from_secs(600);
        self.array.submit(Request { tag: Tag(self.next_tag), op, deadline });
        Tag(self.next_tag)
    }

    pub(super) fn read_op(&self, offset: u64, len: usize) -> Op {
        Op::Read { offset, bufs: self.slab.alloc_list(len).unwrap() }
    }

    pub(super) fn write_op(&self, offset: u64, bytes: &[u8], fua: bool) -> Op {
        let mut data = ViewList::new();
        let mut rest = bytes;
        for mut buf in self.slab.alloc_list(bytes.len()).unwrap() {
            let (now, later) = rest.split_at(buf.len());
            buf.copy_from_slice(now);
            rest = later;
            data.push(buf.freeze());
        }
        Op::Write { offset, data, fua }
    }

    /// Runs until all of these are answered.
    pub(super) fn finish(&mut self, tags: &[Tag]) -> HashMap<Tag, Completion> {
        let mut done = Vec::new();
        run_until(&self.clock, &mut self.array, &mut done, |_, done| done.len() >= tags.len()).unwrap();
        self.events.extend(self.array.take_events());
        let done: HashMap<Tag, Completion> = done.into_iter().map(|c| (c.tag, c)).collect();
        assert!(tags.iter().all(|tag| done.contains_key(tag)) && done.len() == tags.len());
        done
    }

    pub(super) fn run(&mut self, op: Op) -> Result<Vec<u8>, ErrorKind> {
        let tag = self.submit(op);
        let completion = self.finish(&[tag]).remove(&tag).unwrap();
        completion.result.map_err(|e| e.kind)?;
        Ok(completion.bufs.iter().flat_map(|buf| buf.to_vec()).collect())
    }

    pub(super) fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, ErrorKind> {
        let op = self.read_op(offset, len);
        self.run(op)
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ErrorKind> {
        let op = self.write_op(offset, bytes, false);
        self.run(op).map(drop)
    }

    pub(super) fn flush(&mut self) -> Result<(), ErrorKind> {
        self.run(Op::Flush).map(drop)
    }

    pub(super) fn read_all(&mut self) -> Vec<u8> {
        let size = self.size();
        let step = 256 << 10;
        (0..size)
            .step_by(step)
            .flat_map(|at| self.read(at, step.min((size - at) as usize)).unwrap())
            .collect()
    }

    /// Runs until `pred` holds of the array, with no request in flight.
    pub(super) fn settle(&mut self, what: &str, mut pred: impl FnMut(&Array) -> bool) {
        let ran = run_until(&self.clock, &mut self.array, &mut Vec::new(), |array, _| pred(array));
        self.events.extend(self.array.take_events());
        if let Err(error) = ran {
            panic!("waiting for {what}: {error}; status {:?}", self.array.status());
        }
    }

    /// Runs until nothing goes on in the background, or the array has failed.
    pub(super) fn settle_background(&mut self) {
        // One turn first: what was just asked for must get the chance to begin.
        self.array.reap(&mut Vec::new());
        self.settle("the background to end", |array| array.status().action.is_none());
    }

    pub(super) fn stop(&mut self) {
        self.array.stop();
        self.settle("the stop", Array::is_stopped);
    }

    /// Assembles the array from its disks, without those in `without`.
    pub(super) fn restart(&mut self, without: &[usize], force: bool) -> Result<(), AssembleError> {
        let disks: Vec<Disk> = self
            .disks
            .iter()
            .enumerate()
            .filter(|(i, _)| !without.contains(i))
            .map(|(_, d)| d.clone())
            .collect();
        let (array, assembly) = start(&disks, &self.clock, &self.slab, force)?;
        self.array = array;
        self.last_assembly = assembly;
        Ok(())
    }

    pub(super) fn power_cut(&mut self) {
        self.disks.iter().for_each(Disk::power_cut);
    }

    /// A new disk, not yet in the array. Its name is `disk` and its number.
    pub(super) fn new_disk(&mut self) -> usize {
        let seed = 77 + self.disks.len() as u64;
        self.disks.push(Disk::new(self.config.clone().with_seed(seed), &self.clock));
        self.disks.len() - 1
    }

    pub(super) fn add(&mut self, disk: usize) {
        let device = Box::new(self.disks[disk].device());
        self.array.add(format!("disk{disk}"), device).unwrap();
    }

    pub(super) fn state_of(&self, slot: usize) -> MemberState {
        self.array.status().members[slot].state
    }

    /// What the disk's newer superblock copy says.
    pub(super) fn superblock(&self, disk: usize) -> Superblock {
        let copy = |at| Superblock::decode(&self.disks[disk].peek(at, 4096)).ok();
        let size_bytes = self.disks[disk].device().geometry().size_bytes;
        let [a, b] = meta::locations(size_bytes).map(copy);
        [a, b].into_iter().flatten().max_by_key(|s| s.own.sequence).unwrap()
    }

    /// Panics unless parity and copies match on the disks in every unit, but for the slots in `without`.
    pub(super) fn check_redundancy(&self, disk_of_slot: &[usize]) {
        let meta = self.superblock(disk_of_slot[0]).array;
        let rows = meta.layout.unit_rows();
        let bytes = |slot: Slot, offset: u64| {
            self.disks[disk_of_slot[slot.index()]].peek(meta.data_offset + offset, u64::from(rows))
        };
        for unit in 0..meta.layout.units(meta.data_bytes) {
            match meta.layout.unit_map(UnitId(unit)) {
                UnitMap::Copies(homes) => {
                    let first = bytes(homes[0].slot, homes[0].offset);
                    for home in &homes[1..] {
                        assert!(bytes(home.slot, home.offset) == first, "copies differ in unit {unit}");
                    }
                }
                UnitMap::Parity { data, parity, q } => {
                    let mut p = bytes(parity.slot, parity.offset);
                    let mut sum = vec![0; rows as usize];
                    let first = q.map_or(0, |q| q.first_column);
                    for column in (0..data.len()).rev().map(|power| (power + first) % data.len()) {
                        let column = bytes(data[column].slot, data[column].offset);
                        p.iter_mut().zip(&column).for_each(|(a, b)| *a ^= b);
                        sum.iter_mut().zip(&column).for_each(|(a, b)| *a = multiply(*a, 2) ^ b);
                    }
                    assert!(p.iter().all(|&b| b == 0), "parity is wrong in unit {unit}");
                    assert!(
                        q.is_none_or(|q| bytes(q.home.slot, q.home.offset) == sum),
                        "Q is wrong in unit {unit}"
                    );
                }
            }
        }
    }

    pub(super) fn saw(&self, name: &str) -> bool {
        self.events.iter().any(|event| event.name() == name)
    }
}

/// What was on disk `disk` before. Unlike on every disk, and zeroes nowhere: bytes that happened to be in parity,
/// or to be copies of each other, would prove nothing.
fn garbage(disk: u64, len: u64) -> Vec<u8> {
    let word = |n: u64| {
        let mixed = ((disk << 40) | (n + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9).rotate_left(31).to_le_bytes()
    };
    (0..len / 8).flat_map(word).collect()
}

#[test]
fn garbage_is_out_of_sync_in_every_sector() {
    // It once was the top byte of a product that stayed small: zeroes on every disk, in sync from the beginning, so
    // that whoever asked for a first resync got nothing to do.
    let disks: Vec<Vec<u8>> = (0..4).map(|disk| garbage(disk, LARGE_DISK_BYTES)).collect();
    for at in (0..disks[0].len()).step_by(512) {
        let sectors: Vec<&[u8]> = disks.iter().map(|disk| &disk[at..at + 512]).collect();
        let parity = (0..512).any(|i| sectors.iter().fold(0, |xor, sector| xor ^ sector[i]) != 0);
        assert!(parity && sectors.windows(2).all(|pair| pair[0] != pair[1]), "at {at}");
    }
}

fn blocking(disk: &Disk, clock: &Clock, slab: &Slab) -> Blocking<crate::sim::Device> {
    Blocking::new(disk.device(), clock.clone(), slab.clone(), Box::new(VirtualDriver::new(clock.clone())))
}

fn start(
    disks: &[Disk],
    clock: &Clock,
    slab: &Slab,
    force: bool,
) -> Result<(Array, Assembly), AssembleError> {
    let mut found: Vec<Found> = disks
        .iter()
        .enumerate()
        .filter_map(|(i, disk)| {
            let mut dev = blocking(disk, clock, slab);
            let mut loaded = meta::load(&mut dev).ok()?;
            // What cannot be mended is gone on with, as by the daemon.
            meta::mend(&mut dev, &mut loaded).ok();
            Some(Found {
                device: format!("disk{i}"),
                loaded,
                device_bytes: disk.device().geometry().size_bytes,
            })
        })
        .collect();
    let assembly = meta::assemble(&found, force).remove(0)?;
    let named = |f: &Found| f.device.trim_start_matches("disk").parse::<usize>().unwrap();
    for &index in &assembly.lagging {
        let mut dev = blocking(&disks[named(&found[index])], clock, slab);
        meta::catch_up(&mut dev, &mut found[index].loaded, &assembly.array).unwrap();
    }
    let device = |(i, f): (usize, &Found)| (i, Box::new(disks[named(f)].device()) as Box<dyn BlockDev>);
    let devices = found.iter().enumerate().map(device).collect();
    let array = Array::assemble(&assembly, &found, devices, clock, slab, ArrayOptions::default()).unwrap();
    Ok((array, assembly))
}

/// Bytes that tell where they were written and by which write.
pub(super) fn pattern(offset: u64, len: usize, version: u64) -> Vec<u8> {
    let byte = |i: u64| ((offset + i) / 512 * 31 + i + version.wrapping_mul(0x9e37)) as u8;
    (0..len as u64).map(byte).collect()
}
