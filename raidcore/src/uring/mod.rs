//! The ring: every system call of the data plane, of disks and of sockets, goes through here.
//!
//! - [`Ring`]: one io_uring per reactor thread; submits, waits, routes completions, keeps deadlines.
//! - [`Port`]: socket operations of one owner, with owned memory in and out, so that a server needs no `unsafe`.
//! - [`File`]: a regular file or a block device as a [`BlockDev`](crate::dev::BlockDev).
//! - [`identify`]: sees through links and loop devices that two names mean the same disk.
//!
//! Invariants:
//! - The memory and the file descriptor of an operation are owned by its slot until the operation's *terminal*
//!   completion, whatever its submitter was told before. An operation that was given up thereby is in
//!   quarantine: nobody is handed its memory, and it is freed when the kernel lets go of it.
//! - A completion names its slot and the slot's generation: a stray one reaches nobody.
//! - Operations in the kernel never exceed the completion queue.
//! - A ring that cannot be drained is leaked, and all memory with it; it is never freed under the kernel.
//!
//! ```
//! use raidcore::buf::{Slab, SlabConfig};
//! use raidcore::dev::{BlockDev, Op, Request, Tag};
//! use raidcore::time::{Clock, Time};
//! use raidcore::uring::{File, OpenHow, Ring, RingConfig};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let disk = tempfile::NamedTempFile::new()?;
//! # disk.as_file().set_len(1 << 20)?;
//! let slab = Slab::new(&SlabConfig::small())?;
//! let ring = Ring::new(&RingConfig::default(), &Clock::monotonic(), &slab)?;
//! let mut file = File::open(disk.path(), &ring, OpenHow::MEMBER)?;
//!
//! let bufs = slab.alloc_list(4096)?;
//! file.submit(Request { tag: Tag(1), op: Op::Read { offset: 0, bufs }, deadline: Time::NEVER });
//! let mut done = Vec::new();
//! while done.is_empty() {
//!     ring.enter(None, true)?;
//!     file.reap(&mut done);
//! }
//! assert_eq!(done[0].result, Ok(()));
//! # Ok(())
//! # }
//! ```

mod disk;
mod file;
mod geometry;
mod identity;
mod limits;
mod open;
mod port;
mod ring;
mod setup;
mod slot;
mod socket;
mod waker;

pub use file::File;
pub use identity::{DeviceId, files_below, identify};
pub use limits::MAX_STANDING;
pub use open::{OpenError, OpenHow, Warning};
pub use port::{Event, EventMemory, Outcome, Port, SendPart, SharedFd};
pub use ring::Ring;
pub use setup::{RingConfig, RingFeatures};
pub use waker::Waker;

#[cfg(test)]
mod tests;
