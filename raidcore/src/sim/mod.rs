//! A simulated disk: a [`BlockDev`](crate::dev::BlockDev) in memory, with seeded faults, on virtual time.
//!
//! A test keeps a [`Disk`] to plant faults and to look at the platter, and hands its [`Device`] to what is
//! tested. Several devices of one disk are several paths to it.
//!
//! - The same seed and the same calls give the same answers in the same order, and the same content: a failure
//!   replays from its seed.
//! - Nothing happens but in `reap`, and no time passes but by [`Clock::advance_to`](crate::time::Clock);
//!   [`run_until`] drives both.
//! - The disk never panics on what is done to it, and keeps all limits of `BlockDev`'s contract, deadlines
//!   included, whatever faults are planted.
//! - It does not check its callers: enter it through [`Checked`](crate::dev::Checked), as any device.
//!
//! ```
//! use raidcore::buf::{Slab, SlabConfig};
//! use raidcore::dev::{BlockDev, BlockSize, ErrorKind, Op, Request, Tag};
//! use raidcore::sim::{Disk, DiskConfig, run_until};
//! use raidcore::time::{Clock, Time};
//!
//! let clock = Clock::virtual_at(Time::ZERO);
//! let slab = Slab::new(&SlabConfig::small())?;
//! let disk = Disk::new(DiskConfig::quiet(1 << 20, BlockSize::B4096), &clock);
//! let mut device = disk.device();
//!
//! disk.poke(8192, b"hello");
//! disk.fail_reads(0..4096);
//! for offset in [0, 8192] {
//!     let op = Op::Read { offset, bufs: slab.alloc_list(4096)? };
//!     device.submit(Request { tag: Tag(offset), op, deadline: Time::from_ns(1_000_000) });
//! }
//! let mut done = Vec::new();
//! run_until(&clock, &mut device, &mut done, |_, done| done.len() == 2)?;
//! done.sort_by_key(|completion| completion.tag);
//! assert_eq!(done[0].result.map_err(|error| error.kind), Err(ErrorKind::Medium));
//! assert_eq!(&done[1].bufs[0][..5], b"hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod config;
mod disk;
mod faults;
mod image;
mod media;
mod platter;
mod port;
mod ranges;
mod rng;
mod run;
mod stats;
#[cfg(test)]
mod tests;

pub use config::{DiskConfig, FaultRates, Latency};
pub use disk::{Device, Disk, Link};
pub use rng::Rng;
pub use run::{RunError, run_until};
pub use stats::{Stats, TraceEvent};
