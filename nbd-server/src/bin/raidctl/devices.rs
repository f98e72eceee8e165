//! Opening devices to read and write their metadata, with blocking calls on a ring of our own.
//!
//! Used by the commands that work without a daemon, and by the daemon before arrays run. Nothing here decides what
//! an array is; it opens, looks and names what it finds.

use crate::afterlife::{LOOK_AGAIN, patience_with_lock};
use crate::failure::{Context, Failure, Outcome};
use raidcore::blocking::{Blocking, RingDriver};
use raidcore::buf::{Slab, SlabConfig};
use raidcore::meta;
use raidcore::time::Clock;
use raidcore::uring::{DeviceId, File, OpenError, OpenHow, Ring, RingConfig, identify};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A ring, its clock and its memory.
pub struct Bench {
    clock: Clock,
    slab: Slab,
    ring: Ring,
}

/// An open device with blocking calls.
pub type Disk = Blocking<File>;

impl Bench {
    /// A small bench for the calling thread.
    pub fn new() -> Outcome<Bench> {
        Bench::with(&RingConfig::default())
    }

    /// A small bench whose ring knows files by their descriptors only: what it claims is free again the moment it is
    /// closed, while a registered file stays open until the kernel has taken the ring apart.
    pub fn that_lets_go() -> Outcome<Bench> {
        Bench::with(&RingConfig { registered_files: 0, ..RingConfig::default() })
    }

    fn with(config: &RingConfig) -> Outcome<Bench> {
        let clock = Clock::monotonic();
        let slab = Slab::new(&SlabConfig::small()).context("cannot get memory for I/O")?;
        let ring = Ring::new(config, &clock, &slab).context("cannot set up io_uring")?;
        Ok(Bench { clock, slab, ring })
    }

    /// A bench on a ring that serves others as well.
    pub fn on(ring: &Ring) -> Bench {
        Bench { clock: ring.clock().clone(), slab: ring.slab().clone(), ring: ring.clone() }
    }

    /// Opens `path` as `how` says.
    pub fn open(&self, path: &Path, how: OpenHow) -> Outcome<Disk> {
        Ok(self.disk(File::open(path, &self.ring, how).map_err(Failure::new)?))
    }

    /// Claims a device. What a process that has ended still holds is waited for, counted from `begun`.
    pub fn claim(&self, path: &Path, begun: Instant) -> Outcome<Disk> {
        loop {
            match File::open(path, &self.ring, OpenHow::MEMBER) {
                Err(OpenError::Busy { .. }) if begun.elapsed() < patience_with_lock(path) => {
                    std::thread::sleep(LOOK_AGAIN);
                }
                opened => return Ok(self.disk(opened.map_err(Failure::new)?)),
            }
        }
    }

    /// Gives an open file blocking calls; what is to be known about it goes to the log.
    pub fn disk(&self, file: File) -> Disk {
        if let Some(warning) = file.warning() {
            tracing::warn!("{warning}");
        }
        let driver = Box::new(RingDriver::new(self.ring.clone()));
        Blocking::new(file, self.clock.clone(), self.slab.clone(), driver)
    }
}

/// Refuses a device that is named twice, also through a link or a loop device. Names that lead nowhere pass: opening
/// them has the better message.
pub fn refuse_twins(paths: &[PathBuf]) -> Outcome<()> {
    let mut seen: Vec<(DeviceId, &Path)> = Vec::new();
    for path in paths {
        let Ok(id) = identify(path) else { continue };
        if let Some((_, first)) = seen.iter().find(|(other, _)| *other == id) {
            let (first, second) = (first.display().to_string(), path.display().to_string());
            return Err(Failure::new(match first == second {
                true => format!("{second} is given twice: name each device once"),
                false => format!("{second} is the same device as {first}: name each device once"),
            }));
        }
        seen.push((id, path));
    }
    Ok(())
}

/// Refuses a device that carries something. `remedy` says how to insist.
pub fn refuse_signature(disk: &mut Disk, path: &Path, remedy: &str) -> Outcome<()> {
    let found = meta::foreign_signature(disk).context(path.display())?;
    match found {
        None => Ok(()),
        Some(signature) => Err(Failure::new(format!("{} carries {signature}: {remedy}", path.display()))),
    }
}
