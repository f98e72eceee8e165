//! A disk in memory: to try the server and to measure it alone. It keeps nothing.

use raidcore::buf::BufList;
use raidcore::dev::{BlockDev, BlockSize, Completion, Geometry, Op, Request, Tag};
use std::ops::Range;

/// A block device over a vector. It takes any offset and length, and answers at the next `reap`.
///
/// Requests must lie within the device, as those of a server do; one that does not panics.
pub struct RamDisk {
    geometry: Geometry,
    bytes: Vec<u8>,
    queued: Vec<Request>,
}

impl RamDisk {
    /// A disk of `size_bytes` (rounded down to whole blocks of 512) zeroes.
    pub fn new(size_bytes: usize) -> RamDisk {
        let geometry = Geometry {
            discard: true,
            unmap_zeroes: true,
            preferred_bytes: 65536,
            volatile_cache: false,
            ..Geometry::plain(size_bytes as u64, BlockSize::B512)
        };
        RamDisk { geometry, bytes: vec![0; geometry.size_bytes as usize], queued: Vec::new() }
    }

    fn range(offset: u64, len: u64) -> Range<usize> {
        offset as usize..(offset + len) as usize
    }

    fn execute(&mut self, op: Op) -> BufList {
        match op {
            Op::Read { offset, mut bufs } => {
                let mut at = offset as usize;
                for buf in &mut bufs {
                    let len = buf.len();
                    buf.copy_from_slice(&self.bytes[at..at + len]);
                    at += len;
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
            Op::Flush => {}
            Op::Discard { offset, len } | Op::WriteZeroes { offset, len, .. } => {
                self.bytes[RamDisk::range(offset, len)].fill(0);
            }
        }
        BufList::new()
    }
}

impl BlockDev for RamDisk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn submit(&mut self, request: Request) {
        self.queued.push(request);
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        let mut queued = std::mem::take(&mut self.queued);
        for Request { tag, op, .. } in queued.drain(..) {
            let bufs = self.execute(op);
            done.push(Completion { tag, result: Ok(()), bufs });
        }
        self.queued = queued;
    }

    fn cancel(&mut self, _: Tag) {}
}
