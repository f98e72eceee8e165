//! Shared set-up of the benches: an array over disks in memory.

use nbd_server::ram::RamDisk;
use raidcore::array::{Array, ArrayOptions};
use raidcore::blocking::{Blocking, VirtualDriver};
use raidcore::buf::Slab;
use raidcore::dev::{BlockDev, Geometry};
use raidcore::layout::{LayoutSpec, Level};
use raidcore::meta::{self, Candidate, CreateParams, Found};
use raidcore::time::Clock;
use std::error::Error;

/// Size of each disk in memory.
pub const DISK_BYTES: usize = 64 << 20;

/// An array of `level` over `slots` fresh disks in memory, in sync and started.
pub fn array_in_memory(
    level: Level,
    slots: usize,
    chunk: u32,
    clock: &Clock,
    slab: &Slab,
) -> Result<Array, Box<dyn Error>> {
    let disks: Vec<RamDisk> = (0..slots).map(|_| RamDisk::new(DISK_BYTES)).collect();
    let geometries: Vec<Geometry> = disks.iter().map(BlockDev::geometry).collect();
    let candidate = |(i, &geometry)| Candidate { name: format!("ram{i}"), geometry };
    let params = CreateParams {
        name: "bench".into(),
        layout: LayoutSpec::new(level, slots, chunk),
        members: geometries.iter().enumerate().map(candidate).collect(),
        spares: Vec::new(),
        assume_clean: true,
        now_ns: 1,
    };
    let superblocks = meta::plan_create(&params, uuid::Uuid::new_v4)?;
    let (mut found, mut members) = (Vec::new(), Vec::new());
    for (i, (disk, mut superblock)) in disks.into_iter().zip(superblocks).enumerate() {
        let driver = Box::new(VirtualDriver::new(clock.clone()));
        let mut dev = Blocking::new(disk, clock.clone(), slab.clone(), driver);
        meta::store(&mut dev, &mut superblock)?;
        let loaded = meta::load(&mut dev)?;
        found.push(Found { device: format!("ram{i}"), loaded, device_bytes: DISK_BYTES as u64 });
        members.push((i, Box::new(dev.into_inner()) as Box<dyn BlockDev>));
    }
    let assembly = meta::assemble(&found, false).remove(0)?;
    Ok(Array::assemble(&assembly, &found, members, clock, slab, ArrayOptions::default())?)
}
