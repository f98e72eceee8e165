//! Requests of any length, handed to the device piece by piece.
//!
//! A trim or a write of zeroes may be for the whole export at once. In pieces each has a deadline of its own, so that
//! a slow device is not given up while it works, and one client's request does not fill the queues below. Pieces end
//! at multiples of the piece's size: an array is not cut within a stripe.
//!
//! `NBD_CMD_CACHE` is a read whose data is dropped. There is no cache here that could keep it; what it brings is that
//! blocks that cannot be read are found and repaired, and that the caches of disks and remote members are warm.

use raidcore::buf::{BufList, list_len};
use raidcore::dev::Op;
use std::ops::Range;

/// A request under way. `next <= end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Long {
    work: Work,
    next: u64,
    end: u64,
    /// Largest piece; pieces end at multiples of it.
    piece: u64,
    /// The flush that makes it durable is still to come.
    flush: bool,
}

/// What is done to each piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Discarded, and in the end flushed if it has to be durable.
    Trim { fua: bool },
    /// Overwritten with zeroes.
    Zero { fua: bool, unmap: bool },
    /// Read, and the data dropped.
    Cache,
}

impl Long {
    /// `work` on `range`, in pieces of at most `piece` bytes.
    pub(super) fn new(work: Work, range: Range<u64>, piece: u64) -> Long {
        Long { work, next: range.start, end: range.end, piece, flush: work == Work::Trim { fua: true } }
    }

    /// The next operation, or `None` when all is done. `bufs` is the memory of the piece before; only reading needs
    /// any, and reads as much at once as there is.
    pub(super) fn next_op(&mut self, bufs: BufList) -> Option<Op> {
        let offset = self.next;
        let most = match self.work {
            Work::Cache => list_len(&bufs),
            _ => self.piece - offset % self.piece,
        };
        let len = most.min(self.end - offset);
        if len == 0 {
            return std::mem::take(&mut self.flush).then_some(Op::Flush);
        }
        self.next += len;
        Some(match self.work {
            Work::Trim { .. } => Op::Discard { offset, len },
            Work::Zero { fua, unmap } => Op::WriteZeroes { offset, len, fua, unmap },
            Work::Cache => Op::Read { offset, bufs: front(bufs, len) },
        })
    }
}

/// The first `len` bytes of `bufs`.
fn front(mut bufs: BufList, len: u64) -> BufList {
    let mut left = len as usize;
    for buf in &mut bufs {
        buf.truncate(left.min(buf.len()));
        left -= buf.len();
    }
    bufs.retain(|buf| !buf.is_empty());
    bufs
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use raidcore::buf::{Slab, SlabConfig};

    fn ops(mut long: Long, mut bufs: BufList) -> Vec<(&'static str, u64, u64)> {
        let mut seen = Vec::new();
        while let Some(op) = long.next_op(std::mem::take(&mut bufs)) {
            let (offset, len) = op.extent();
            let name = match op {
                Op::Read { bufs: read, .. } => {
                    bufs = read;
                    "read"
                }
                Op::Flush => "flush",
                Op::Discard { .. } => "discard",
                _ => "zero",
            };
            seen.push((name, offset, len));
        }
        seen
    }

    #[test]
    fn pieces_end_at_multiples_and_a_durable_trim_with_a_flush() {
        let trim = Long::new(Work::Trim { fua: true }, 900..3100, 1000);
        let expected =
            [("discard", 900, 100), ("discard", 1000, 1000), ("discard", 2000, 1000), ("discard", 3000, 100)];
        let seen = ops(trim, BufList::new());
        assert_eq!(seen[..4], expected);
        assert_eq!((seen.len(), seen[4].0), (5, "flush"));
        let zero = Long::new(Work::Zero { fua: true, unmap: false }, 0..1000, 1000);
        assert_eq!(ops(zero, BufList::new()), [("zero", 0, 1000)]);
    }

    #[test]
    fn reading_ahead_reuses_the_memory_it_began_with() {
        let slab = Slab::new(&SlabConfig::of(&[(4096, 8)])).unwrap();
        let cache = Long::new(Work::Cache, 512..20_992, 1000);
        let seen = ops(cache, slab.alloc_list(8192).unwrap());
        assert_eq!(seen, [("read", 512, 8192), ("read", 8704, 8192), ("read", 16896, 4096)]);
        assert_eq!(slab.usage().used_bytes, 0);
    }

    proptest! {
        #[test]
        fn pieces_cover_the_range_once_and_in_order(start in 0u64..10_000, len in 1u64..10_000, piece in 1u64..5000) {
            let seen = ops(Long::new(Work::Trim { fua: false }, start..start + len, piece), BufList::new());
            let mut at = start;
            for (name, offset, len) in seen {
                prop_assert!(name == "discard" && offset == at && len > 0 && len <= piece);
                at += len;
            }
            prop_assert_eq!(at, start + len);
        }
    }
}
