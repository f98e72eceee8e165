//! Opening devices to read and write their metadata, with blocking calls on a ring of our own.
//!
//! Used by the commands that work without a daemon, and by the daemon before arrays run. Nothing here decides what
//! an array is; it opens, looks and names what it finds.

use crate::afterlife::{LOOK_AGAIN, patience_with_lock};
use crate::failure::{Context, Failure, Outcome};
use nbd_server::client::{NbdDev, NbdOptions, NbdUri, Reached};
use raidcore::allocation::Holes;
use raidcore::blocking::{Blocking, RingDriver};
use raidcore::buf::{Slab, SlabConfig};
use raidcore::dev::{BlockDev, BlockSize, Completion, Geometry, Request, Tag};
use raidcore::meta;
use raidcore::time::Clock;
use raidcore::time::Time;
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
pub type Disk = Blocking<Device>;

/// A device by its name: a file or block device, claimed or looked at, or an export of another server.
///
/// An export cannot be claimed: nothing but its superblock tells whether somebody else uses it.
pub enum Device {
    /// By its path.
    File(Box<File>),
    /// By its URI.
    Remote(Box<NbdDev>),
}

impl BlockDev for Device {
    fn geometry(&self) -> Geometry {
        match self {
            Device::File(file) => file.geometry(),
            Device::Remote(export) => export.geometry(),
        }
    }
    fn refresh_size(&mut self) {
        match self {
            Device::File(file) => file.refresh_size(),
            Device::Remote(export) => export.refresh_size(),
        }
    }
    fn submit(&mut self, request: Request) {
        match self {
            Device::File(file) => file.submit(request),
            Device::Remote(export) => export.submit(request),
        }
    }
    fn reap(&mut self, done: &mut Vec<Completion>) {
        match self {
            Device::File(file) => file.reap(done),
            Device::Remote(export) => export.reap(done),
        }
    }
    fn cancel(&mut self, tag: Tag) {
        match self {
            Device::File(file) => file.cancel(tag),
            Device::Remote(export) => export.cancel(tag),
        }
    }
    fn wake_at(&self) -> Option<Time> {
        match self {
            Device::File(file) => file.wake_at(),
            Device::Remote(export) => export.wake_at(),
        }
    }
}

/// The URI that a device's name means to be; `None` for a path.
pub fn uri_of(name: &Path) -> Outcome<Option<NbdUri>> {
    match name.to_str().filter(|text| NbdUri::is_meant_by(text)) {
        Some(text) => text.parse().map(Some).map_err(|error| Failure::new(format!("{text}: {error}"))),
        None => Ok(None),
    }
}

/// A device's name as it is kept and compared: a path from the root on, symlinks kept (/dev/disk/by-id/... says more than
/// /dev/sdb), or a URI with all its parts.
pub fn absolute(name: &Path) -> Outcome<PathBuf> {
    match uri_of(name)? {
        Some(uri) => Ok(PathBuf::from(uri.to_string())),
        None => std::path::absolute(name).context(name.display()),
    }
}

/// True if there is nothing at this path. An export is not looked for: a server that is away for a moment is no mistake
/// in the configuration.
pub fn leads_nowhere(name: &Path) -> bool {
    matches!(uri_of(name), Ok(None)) && !name.exists()
}

/// Connects to an export.
pub fn reach(uri: &NbdUri) -> Outcome<Reached> {
    Reached::new(uri, &NbdOptions::default()).map_err(Failure::new)
}

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
        match uri_of(path)? {
            Some(uri) => self.remote(&uri),
            None => Ok(self.disk(File::open(path, &self.ring, how).map_err(Failure::new)?.into())),
        }
    }

    /// Claims a device. What a process that has ended still holds is waited for, counted from `begun`.
    ///
    /// An export is connected; it cannot be claimed.
    pub fn claim(&self, path: &Path, begun: Instant) -> Outcome<Disk> {
        if let Some(uri) = uri_of(path)? {
            return self.remote(&uri);
        }
        loop {
            match File::open(path, &self.ring, OpenHow::MEMBER) {
                Err(OpenError::Busy { .. }) if begun.elapsed() < patience_with_lock(path) => {
                    std::thread::sleep(LOOK_AGAIN);
                }
                opened => return Ok(self.disk(opened.map_err(Failure::new)?.into())),
            }
        }
    }

    fn remote(&self, uri: &NbdUri) -> Outcome<Disk> {
        let export = NbdDev::on(&self.ring, reach(uri)?).map_err(Failure::new)?;
        Ok(self.disk(Device::Remote(Box::new(export))))
    }

    /// Gives an open device blocking calls; what is to be known about it goes to the log.
    pub fn disk(&self, device: Device) -> Disk {
        if let Device::File(file) = &device
            && let Some(warning) = file.warning()
        {
            tracing::warn!("{warning}");
        }
        let driver = Box::new(RingDriver::new(self.ring.clone()));
        Blocking::new(device, self.clock.clone(), self.slab.clone(), driver)
    }
}

impl Device {
    /// Lets its blocks be as small as those of the array it is for, where that is possible.
    pub fn allow_blocks_of(&mut self, block_size: BlockSize) {
        if let Device::Remote(export) = self {
            export.allow_blocks_of(block_size);
        }
    }

    /// The holes it has, if it is a file.
    pub fn holes(&self) -> Option<Holes> {
        match self {
            Device::File(file) => Some(file.holes()),
            Device::Remote(_) => None,
        }
    }
}

impl From<File> for Device {
    fn from(file: File) -> Device {
        Device::File(Box::new(file))
    }
}

/// Refuses a device that is named twice, also through a link or a loop device; an export by its URI. Names that lead
/// nowhere pass: opening them has the better message.
pub fn refuse_twins(paths: &[PathBuf]) -> Outcome<()> {
    let mut uris: Vec<NbdUri> = Vec::new();
    for path in paths {
        let Some(uri) = uri_of(path)? else { continue };
        if uris.contains(&uri) {
            return Err(Failure::new(format!("{uri} is given twice: name each device once")));
        }
        uris.push(uri);
    }
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
