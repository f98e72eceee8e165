//! A blocking handle for simple callers: create, examine, assembly, examples, tests.
//!
//! One operation at a time is in flight below it, at most a mebibyte of payload each, and the payload is copied:
//! who needs speed submits and reaps. It never waits past an operation's deadline, even on a device that breaks
//! its contract and does not answer.

use crate::buf::{BufList, Slab, ViewList};
use crate::dev::{BlockDev, Checked, Completion, ErrorKind, Geometry, IoError, Op, OpKind, Request, Tag};
use crate::limits::{DEFAULT_DEADLINE, MAX_BLOCK_BYTES};
use crate::time::{Clock, Time};
use crate::uring::Ring;
use std::io;
use std::time::Duration;

/// Lets something complete below a device: a ring enters the kernel, a virtual clock advances.
pub trait Driver {
    /// Returns when something may have completed, and at `until` at the latest.
    fn wait(&mut self, until: Time) -> io::Result<()>;
}

/// The driver of devices on virtual time: nothing happens but that time passes.
#[derive(Clone, Debug)]
pub struct VirtualDriver {
    clock: Clock,
}

impl VirtualDriver {
    /// A driver that advances `clock`, which must be a virtual one.
    pub fn new(clock: Clock) -> VirtualDriver {
        VirtualDriver { clock }
    }
}

impl Driver for VirtualDriver {
    fn wait(&mut self, until: Time) -> io::Result<()> {
        self.clock.advance_to(until);
        Ok(())
    }
}

/// The driver of devices on a ring: waits in the kernel.
#[derive(Clone)]
pub struct RingDriver {
    ring: Ring,
}

impl RingDriver {
    /// A driver that enters `ring`.
    pub fn new(ring: Ring) -> RingDriver {
        RingDriver { ring }
    }
}

impl Driver for RingDriver {
    fn wait(&mut self, until: Time) -> io::Result<()> {
        self.ring.enter(Some(until), true)
    }
}

/// A device with blocking calls.
///
/// Offsets and lengths are in bytes and multiples of the device's block size; other ones are answered with
/// [`ErrorKind::Misaligned`] and nothing is done. Lengths have no limit but the device's end: they are split.
pub struct Blocking<D> {
    dev: Checked<D>,
    clock: Clock,
    slab: Slab,
    driver: Box<dyn Driver>,
    deadline: Duration,
    last_tag: u64,
    done: Vec<Completion>,
}

impl<D: BlockDev> Blocking<D> {
    /// Wraps `dev`, on which nothing else is in flight. `driver` waits for what moves `dev`; `slab` is where its
    /// memory comes from (for a ring, the slab registered with it).
    pub fn new(dev: D, clock: Clock, slab: Slab, driver: Box<dyn Driver>) -> Blocking<D> {
        let dev = Checked::new(dev);
        Blocking { dev, clock, slab, driver, deadline: DEFAULT_DEADLINE, last_tag: 0, done: Vec::new() }
    }

    /// Wraps a device whose files are on `ring`, with the ring's clock and memory.
    pub fn on_ring(dev: D, ring: &Ring) -> Blocking<D> {
        let driver = Box::new(RingDriver::new(ring.clone()));
        Blocking::new(dev, ring.clock().clone(), ring.slab().clone(), driver)
    }

    /// Sets how long one operation below may take; [`DEFAULT_DEADLINE`] at first.
    pub fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    /// Size, block size and abilities of the device.
    pub fn geometry(&self) -> Geometry {
        self.dev.geometry()
    }

    /// The device below.
    pub fn inner_mut(&mut self) -> &mut D {
        self.dev.inner_mut()
    }

    /// Takes the handle off.
    pub fn into_inner(self) -> D {
        self.dev.into_inner()
    }

    /// Fills `target` from `offset` on. On an error, `target` holds anything.
    pub fn read_at(&mut self, offset: u64, target: &mut [u8]) -> Result<(), IoError> {
        self.check(OpKind::Read, offset, target.len() as u64)?;
        let mut at = offset;
        for part in target.chunks_mut(self.step()) {
            let bufs = self.alloc(OpKind::Read, at, part.len())?;
            let bufs = self.run(Op::Read { offset: at, bufs })?;
            let mut rest = &mut *part;
            for buf in &bufs {
                let (now, later) = rest.split_at_mut(buf.len());
                now.copy_from_slice(buf);
                rest = later;
            }
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Writes `source` from `offset` on; with `fua`, durably. On an error, any part may have been written.
    pub fn write_at(&mut self, offset: u64, source: &[u8], fua: bool) -> Result<(), IoError> {
        self.check(OpKind::Write, offset, source.len() as u64)?;
        let mut at = offset;
        for part in source.chunks(self.step()) {
            let mut rest = part;
            let mut data = ViewList::new();
            for mut buf in self.alloc(OpKind::Write, at, part.len())? {
                let (now, later) = rest.split_at(buf.len());
                buf.copy_from_slice(now);
                rest = later;
                data.push(buf.freeze());
            }
            self.run(Op::Write { offset: at, data, fua })?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Makes every write so far durable.
    pub fn flush(&mut self) -> Result<(), IoError> {
        self.run(Op::Flush).map(drop)
    }

    /// Tells that the range is no longer needed; it reads as anything afterwards.
    pub fn discard(&mut self, offset: u64, len: u64) -> Result<(), IoError> {
        self.check(OpKind::Discard, offset, len)?;
        self.run(Op::Discard { offset, len }).map(drop)
    }

    /// Makes the range read as zeroes, and durably so with `fua`; with `unmap` its space may be given back.
    pub fn write_zeroes(&mut self, offset: u64, len: u64, fua: bool, unmap: bool) -> Result<(), IoError> {
        self.check(OpKind::WriteZeroes, offset, len)?;
        self.run(Op::WriteZeroes { offset, len, fua, unmap }).map(drop)
    }

    /// Checks the whole range before its first part is done, so that a request past the end does nothing.
    fn check(&self, op: OpKind, offset: u64, len: u64) -> Result<(), IoError> {
        let geometry = self.dev.geometry();
        if len == 0 || !geometry.block_size.divides(offset) || !geometry.block_size.divides(len) {
            return Err(IoError::new(ErrorKind::Misaligned, op, offset, len));
        }
        match offset.checked_add(len) {
            Some(end) if end <= geometry.size_bytes => Ok(()),
            _ => Err(IoError::new(ErrorKind::OutOfRange, op, offset, len)),
        }
    }

    /// Bytes of one operation below: whole blocks, at least one.
    fn step(&self) -> usize {
        let geometry = self.dev.geometry();
        let block = geometry.block_size.bytes() as usize;
        let largest = usize::try_from(geometry.max_transfer_bytes).unwrap_or(MAX_BLOCK_BYTES);
        (largest.min(MAX_BLOCK_BYTES) / block).max(1) * block
    }

    fn alloc(&self, op: OpKind, offset: u64, len: usize) -> Result<BufList, IoError> {
        self.slab.alloc_list(len).map_err(|_| IoError::new(ErrorKind::Busy, op, offset, len as u64))
    }

    /// Submits one operation and waits for its answer.
    fn run(&mut self, op: Op) -> Result<BufList, IoError> {
        let (kind, (offset, len)) = (op.kind(), op.extent());
        self.last_tag += 1;
        let tag = Tag(self.last_tag);
        let deadline = self.clock.refresh() + self.deadline;
        self.dev.submit(Request { tag, op, deadline });
        loop {
            let now = self.clock.refresh();
            self.dev.reap(&mut self.done);
            let mut answer = None;
            for completion in self.done.drain(..) {
                if completion.tag == tag {
                    answer = Some(completion);
                }
                // Any other one is the late answer of an operation that was given up below.
            }
            if let Some(completion) = answer {
                return completion.result.map(|()| completion.bufs);
            }
            if now >= deadline {
                // The device had its chance at the deadline and broke its contract; its memory stays with it.
                return Err(IoError::new(ErrorKind::Timeout, kind, offset, len));
            }
            let until = self.dev.wake_at().map_or(deadline, |at| at.min(deadline));
            self.driver.wait(until).map_err(|error| match error.raw_os_error() {
                Some(errno) => IoError::from_errno(errno, kind, offset, len),
                None => IoError::new(ErrorKind::Gone, kind, offset, len),
            })?;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::buf::SlabConfig;
    use crate::dev::BlockSize;

    /// A disk in memory that answers at the next reap.
    pub(crate) struct Mem {
        pub(crate) bytes: Vec<u8>,
        pub(crate) geometry: Geometry,
        pub(crate) bad: Option<(OpKind, u64)>,
        pub(crate) mute: bool,
        queued: Vec<Request>,
    }

    impl Mem {
        pub(crate) fn new(size: usize) -> Mem {
            let geometry = Geometry::plain(size as u64, BlockSize::B512);
            Mem { bytes: vec![0; size], geometry, bad: None, mute: false, queued: Vec::new() }
        }

        fn execute(&mut self, request: Request) -> Completion {
            let (kind, (offset, len)) = (request.op.kind(), request.op.extent());
            if self.bad.is_some_and(|(op, at)| op == kind && (offset..offset + len).contains(&at)) {
                return Completion::refused(
                    request.tag,
                    request.op,
                    IoError::new(ErrorKind::Medium, kind, offset, len),
                );
            }
            let mut at = offset as usize;
            let mut completion = Completion::new(request.tag, Ok(()));
            match request.op {
                Op::Read { mut bufs, .. } => {
                    for buf in &mut bufs {
                        let len = buf.len();
                        buf.copy_from_slice(&self.bytes[at..at + len]);
                        at += len;
                    }
                    completion.bufs = bufs;
                }
                Op::Write { data, .. } => {
                    for view in &data {
                        self.bytes[at..at + view.len()].copy_from_slice(view);
                        at += view.len();
                    }
                }
                Op::WriteZeroes { .. } => self.bytes[at..at + len as usize].fill(0),
                Op::Flush | Op::Discard { .. } => {}
            }
            completion
        }
    }

    impl BlockDev for Mem {
        fn geometry(&self) -> Geometry {
            self.geometry
        }
        fn submit(&mut self, request: Request) {
            self.queued.push(request);
        }
        fn reap(&mut self, done: &mut Vec<Completion>) {
            if !self.mute {
                for request in std::mem::take(&mut self.queued) {
                    let completion = self.execute(request);
                    done.push(completion);
                }
            }
        }
        fn cancel(&mut self, _: Tag) {}
    }

    pub(crate) fn blocking(mem: Mem) -> Blocking<Mem> {
        let clock = Clock::virtual_at(Time::ZERO);
        let driver = Box::new(VirtualDriver::new(clock.clone()));
        Blocking::new(mem, clock, Slab::new(&SlabConfig::small()).unwrap(), driver)
    }

    #[test]
    fn what_is_written_is_read_back_in_pieces_the_device_can_take() {
        let mut mem = Mem::new(1 << 20);
        mem.geometry.max_transfer_bytes = 1536;
        let mut dev = blocking(mem);
        let source: Vec<u8> = (0..8192u32).map(|i| (i % 251) as u8).collect();
        dev.write_at(512, &source, true).unwrap();
        dev.flush().unwrap();
        let mut target = vec![0; 8192];
        dev.read_at(512, &mut target).unwrap();
        assert!(source == target);
        dev.write_zeroes(512, 512, false, true).unwrap();
        dev.read_at(0, &mut target).unwrap();
        assert!(target[..1024].iter().all(|&b| b == 0) && target[1024..] == source[512..7680]);
    }

    #[test]
    fn a_range_that_is_unaligned_or_past_the_end_does_nothing() {
        let mut dev = blocking(Mem::new(1 << 20));
        let kind = |result: Result<(), IoError>| result.unwrap_err().kind;
        assert_eq!(kind(dev.write_at(1, &[1; 512], false)), ErrorKind::Misaligned);
        assert_eq!(kind(dev.write_at(0, &[], false)), ErrorKind::Misaligned);
        assert_eq!(kind(dev.read_at(0, &mut [0; 100])), ErrorKind::Misaligned);
        assert_eq!(kind(dev.write_at((1 << 20) - 512, &[1; 1024], false)), ErrorKind::OutOfRange);
        assert_eq!(kind(dev.discard(u64::MAX - 511, 512)), ErrorKind::OutOfRange);
        assert!(dev.into_inner().bytes.iter().all(|&b| b == 0));
    }

    #[test]
    fn a_device_that_never_answers_is_given_up_at_the_deadline() {
        let mut mem = Mem::new(1 << 20);
        mem.mute = true;
        let mut dev = blocking(mem);
        assert_eq!(dev.flush().unwrap_err().kind, ErrorKind::Timeout);
        assert_eq!(dev.clock.now(), Time::ZERO + DEFAULT_DEADLINE);
        dev.inner_mut().mute = false;
        assert_eq!(dev.flush(), Ok(()), "the late answer of the first flush is not taken for the second's");
    }
}
