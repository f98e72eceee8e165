//! The one seam: a block device.
//!
//! Members, arrays, multipath maps, remote exports and simulated disks all are a [`BlockDev`]; each floor
//! knows only this trait of the floor below. It is completion-driven: requests are submitted, work moves
//! forward in [`BlockDev::reap`], and every request is answered by exactly one [`Completion`].
//!
//! Devices are entered through [`Checked`], so that no implementation needs to check what a caller got wrong,
//! and no caller what an implementation did.

mod checked;
mod error;
mod geometry;
mod request;

pub use checked::Checked;
pub use error::{ErrorKind, IoError};
pub use geometry::{BlockSize, Geometry};
pub use request::{Completion, Op, OpKind, Request, Tag};

use crate::time::Time;

/// A block device, driven by its caller.
///
/// # Contract
///
/// - `submit` takes a request at any time and only queues it; it never blocks. At most
///   [`Geometry::queue_depth`] requests are in flight; one more is answered with [`ErrorKind::Busy`].
/// - `reap` moves the device forward and appends what has completed. It never blocks, and nothing happens
///   between two calls of it: a caller that has submitted must call `reap` to have the work started.
/// - Each request is answered exactly once, at its [`Request::deadline`] at the latest, with
///   [`ErrorKind::Timeout`] if need be. The memory of a request that timed out may stay with the device (in
///   quarantine): then the completion carries none.
/// - Requests in flight together may be executed in any order; overlapping writes in flight together leave
///   either's data in each block. A flush covers every write that was *answered* before it was submitted.
/// - A read returns the memory it was given, whole and in the same order, also when it failed; the bytes are
///   meaningful only on success.
pub trait BlockDev {
    /// Size, block size and abilities. Constant while requests are in flight, but for the size, which
    /// [`refresh_size`](BlockDev::refresh_size) may raise.
    fn geometry(&self) -> Geometry;

    /// Looks whether what is below has become larger, and lets the geometry follow. It never blocks, may be called
    /// with requests in flight, which it does not affect, and never lowers the size: a device that has shrunk is
    /// broken, not smaller. Devices that cannot grow do nothing.
    fn refresh_size(&mut self) {}

    /// Queues a request.
    fn submit(&mut self, request: Request);

    /// Starts what is queued, takes what the floor below completed, and appends finished requests to `done`.
    fn reap(&mut self, done: &mut Vec<Completion>);

    /// Asks to give up a request early. Its completion comes all the same: [`ErrorKind::Canceled`], or whatever
    /// it ended with first. A tag that is not in flight is ignored.
    fn cancel(&mut self, tag: Tag);

    /// The earliest time at which `reap` has something to do though nothing completes below: a deadline, a
    /// timer. `None` if only a completion can move the device.
    fn wake_at(&self) -> Option<Time> {
        None
    }
}

impl<D: BlockDev + ?Sized> BlockDev for Box<D> {
    fn geometry(&self) -> Geometry {
        (**self).geometry()
    }
    fn refresh_size(&mut self) {
        (**self).refresh_size();
    }
    fn submit(&mut self, request: Request) {
        (**self).submit(request);
    }
    fn reap(&mut self, done: &mut Vec<Completion>) {
        (**self).reap(done);
    }
    fn cancel(&mut self, tag: Tag) {
        (**self).cancel(tag);
    }
    fn wake_at(&self) -> Option<Time> {
        (**self).wake_at()
    }
}
