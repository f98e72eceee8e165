//! The one wrapper through which every device is entered.
//!
//! Invariants it upholds for the device below: requests are aligned, within the device, not empty, not larger
//! than the largest transfer, not writes to a read-only device, at most `queue_depth` in flight, and no tag is
//! in flight twice. For the caller above: one completion per request, and a successful read has all its memory.

use super::{BlockDev, Completion, ErrorKind, Geometry, IoError, Request, Tag};
use crate::buf::list_len;
use crate::time::Time;
use std::collections::HashMap;

/// A device with its contract checked on both sides.
pub struct Checked<D> {
    inner: D,
    geometry: Geometry,
    in_flight: HashMap<Tag, InFlight>,
    refused: Vec<Completion>,
    broken_promises: u64,
}

#[derive(Clone, Copy)]
struct InFlight {
    kind: super::OpKind,
    offset: u64,
    len: u64,
}

impl<D: BlockDev> Checked<D> {
    /// Wraps `inner`. Its geometry is taken now; only its size may follow, when it is
    /// [looked at again](BlockDev::refresh_size).
    pub fn new(inner: D) -> Checked<D> {
        let geometry = inner.geometry();
        Checked { inner, geometry, in_flight: HashMap::new(), refused: Vec::new(), broken_promises: 0 }
    }

    /// The device below.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    /// The device below, to control it; requests submitted past the wrapper are not its own.
    pub fn inner_mut(&mut self) -> &mut D {
        &mut self.inner
    }

    /// Takes the wrapper off.
    pub fn into_inner(self) -> D {
        self.inner
    }

    /// Requests submitted and not yet answered.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len() + self.refused.len()
    }

    /// Completions the device should not have sent: of unknown tags, or reads short of memory. A number above
    /// zero is a defect of the device, and such completions went no further.
    pub fn broken_promises(&self) -> u64 {
        self.broken_promises
    }

    fn check(&self, request: &Request) -> Result<InFlight, IoError> {
        let op = &request.op;
        let (offset, len) = op.extent();
        let kind = op.kind();
        let full = self.in_flight.len() >= self.geometry.queue_depth as usize;
        if full || self.in_flight.contains_key(&request.tag) {
            return Err(IoError::new(ErrorKind::Busy, kind, offset, len));
        }
        self.geometry.check(op)?;
        Ok(InFlight { kind, offset, len })
    }
}

impl<D: BlockDev> BlockDev for Checked<D> {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn refresh_size(&mut self) {
        self.inner.refresh_size();
        self.geometry.size_bytes = self.geometry.size_bytes.max(self.inner.geometry().size_bytes);
    }

    fn submit(&mut self, request: Request) {
        match self.check(&request) {
            Ok(entry) => {
                self.in_flight.insert(request.tag, entry);
                self.inner.submit(request);
            }
            Err(error) => self.refused.push(Completion::refused(request.tag, request.op, error)),
        }
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.refused);
        let first = done.len();
        self.inner.reap(done);
        let mut kept = first;
        for i in first..done.len() {
            let completion = &mut done[i];
            let Some(entry) = self.in_flight.remove(&completion.tag) else {
                self.broken_promises += 1;
                continue;
            };
            let is_read = entry.kind == super::OpKind::Read;
            if completion.result.is_ok() && is_read && list_len(&completion.bufs) != entry.len {
                self.broken_promises += 1;
                completion.result = Err(IoError::new(ErrorKind::Short, entry.kind, entry.offset, entry.len));
            }
            done.swap(kept, i);
            kept += 1;
        }
        done.truncate(kept);
    }

    fn cancel(&mut self, tag: Tag) {
        if self.in_flight.contains_key(&tag) {
            self.inner.cancel(tag);
        }
    }

    fn wake_at(&self) -> Option<Time> {
        // A refused request is answered by the next reap, whatever the device does.
        if self.refused.is_empty() { self.inner.wake_at() } else { Some(Time::ZERO) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::{Slab, SlabConfig};
    use crate::dev::{BlockSize, Op, OpKind};
    use smallvec::smallvec;

    /// Answers each request at the next reap; `lie` makes it misbehave.
    struct Echo {
        queued: Vec<Request>,
        lie: bool,
    }

    impl BlockDev for Echo {
        fn geometry(&self) -> Geometry {
            Geometry { max_transfer_bytes: 8192, queue_depth: 2, ..Geometry::plain(1 << 20, BlockSize::B512) }
        }
        fn submit(&mut self, request: Request) {
            self.queued.push(request);
        }
        fn reap(&mut self, done: &mut Vec<Completion>) {
            for request in self.queued.drain(..) {
                let bufs = match request.op {
                    Op::Read { bufs, .. } if !self.lie => bufs,
                    _ => smallvec![],
                };
                done.push(Completion { tag: request.tag, result: Ok(()), bufs });
                if self.lie {
                    done.push(Completion::new(Tag(999), Ok(())));
                }
            }
        }
        fn cancel(&mut self, _: Tag) {}
    }

    fn checked(lie: bool) -> (Checked<Echo>, Slab) {
        (Checked::new(Echo { queued: Vec::new(), lie }), Slab::new(&SlabConfig::small()).unwrap())
    }

    fn answer(dev: &mut Checked<Echo>, op: Op) -> Result<(), ErrorKind> {
        dev.submit(Request { tag: Tag(1), op, deadline: Time::from_ns(u64::MAX) });
        let mut done = Vec::new();
        dev.reap(&mut done);
        assert_eq!(done.len(), 1);
        done.remove(0).result.map_err(|e| e.kind)
    }

    #[test]
    fn requests_outside_the_contract_never_reach_the_device() {
        let (mut dev, slab) = checked(false);
        let read = |offset, len: usize| Op::Read { offset, bufs: slab.alloc_list(len).unwrap() };
        let trim = |offset, len| Op::Discard { offset, len };
        assert_eq!(answer(&mut dev, read(0, 512)), Ok(()));
        assert_eq!(answer(&mut dev, read(1, 512)), Err(ErrorKind::Misaligned));
        assert_eq!(answer(&mut dev, read(0, 511)), Err(ErrorKind::Misaligned));
        assert_eq!(answer(&mut dev, read(0, 0)), Err(ErrorKind::Misaligned));
        assert_eq!(answer(&mut dev, read(1 << 20, 512)), Err(ErrorKind::OutOfRange));
        assert_eq!(answer(&mut dev, read(0, 8704)), Err(ErrorKind::TooLarge));
        assert_eq!(answer(&mut dev, trim(0, 1 << 20)), Ok(()));
        assert_eq!(answer(&mut dev, trim(u64::MAX - 511, 512)), Err(ErrorKind::OutOfRange));
        assert_eq!(answer(&mut dev, Op::Flush), Ok(()));
        assert_eq!((dev.in_flight(), dev.broken_promises()), (0, 0));
    }

    #[test]
    fn a_queue_that_is_full_and_a_tag_used_twice_are_busy() {
        let (mut dev, _slab) = checked(false);
        for tag in [1, 1, 2, 3] {
            dev.submit(Request { tag: Tag(tag), op: Op::Flush, deadline: Time::ZERO });
        }
        let mut done = Vec::new();
        dev.reap(&mut done);
        let mut busy: Vec<_> = done.iter().filter(|c| c.result.is_err()).map(|c| c.tag.0).collect();
        busy.sort_unstable();
        assert_eq!((done.len(), busy), (4, vec![1, 3]));
    }

    #[test]
    fn a_device_that_breaks_the_contract_is_caught() {
        let (mut dev, slab) = checked(true);
        let result = answer(&mut dev, Op::Read { offset: 0, bufs: slab.alloc_list(512).unwrap() });
        assert_eq!(result, Err(ErrorKind::Short));
        assert_eq!(dev.broken_promises(), 2);
        assert_eq!(
            IoError::new(ErrorKind::Short, OpKind::Read, 0, 512).to_string(),
            "read of 512 bytes at 0: short transfer"
        );
    }
}
