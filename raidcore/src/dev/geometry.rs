//! What a device is: its size, its block, what it can do.

use super::{ErrorKind, IoError, Op};
use crate::limits::{MAX_REQUEST_BYTES, MAX_SEGMENTS};

/// Logical block size: the unit of addressing, and of atomicity that a disk promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlockSize {
    /// 512 bytes.
    B512,
    /// 4096 bytes.
    B4096,
}

impl BlockSize {
    /// From a number of bytes; `None` unless it is 512 or 4096.
    pub const fn from_bytes(bytes: u32) -> Option<BlockSize> {
        match bytes {
            512 => Some(BlockSize::B512),
            4096 => Some(BlockSize::B4096),
            _ => None,
        }
    }

    /// In bytes.
    pub const fn bytes(self) -> u32 {
        match self {
            BlockSize::B512 => 512,
            BlockSize::B4096 => 4096,
        }
    }

    /// True if `n` is a multiple of the block.
    pub const fn divides(self, n: u64) -> bool {
        n.is_multiple_of(self.bytes() as u64)
    }
}

/// Size and abilities of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Usable size in bytes, a multiple of the block size.
    pub size_bytes: u64,
    /// The logical block.
    pub block_size: BlockSize,
    /// Requests of this size, aligned to it, are served best: a chunk, a full stripe. A power of two or not.
    pub preferred_bytes: u32,
    /// Largest read or write, in bytes. Discard and write-zeroes have no limit but the device's end.
    pub max_transfer_bytes: u64,
    /// Most requests in flight.
    pub queue_depth: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// The medium has seek times.
    pub rotational: bool,
    /// A finished write may be lost by a power cut until it is flushed. If false, flush has nothing to do.
    pub volatile_cache: bool,
    /// `Discard` does something.
    pub discard: bool,
    /// `WriteZeroes` with `unmap` frees the range and is fast. `WriteZeroes` works either way.
    pub unmap_zeroes: bool,
    /// Of such a `WriteZeroes` only whole pieces of so many bytes, so aligned, are fast: where parity is kept, the edges
    /// of others are read and written. Not zero.
    pub fast_zero_bytes: u32,
}

impl Geometry {
    /// A plain device of `size_bytes` (rounded down to whole blocks): writable, with a volatile cache, without
    /// discard. The starting point of implementations.
    pub fn plain(size_bytes: u64, block_size: BlockSize) -> Geometry {
        let block = u64::from(block_size.bytes());
        Geometry {
            size_bytes: size_bytes - size_bytes % block,
            block_size,
            preferred_bytes: 4096,
            max_transfer_bytes: MAX_REQUEST_BYTES,
            queue_depth: 1024,
            read_only: false,
            rotational: false,
            volatile_cache: true,
            discard: false,
            unmap_zeroes: false,
            fast_zero_bytes: 1,
        }
    }

    /// Whether a device of this geometry can be asked for `op`: the one check for every floor, a pure function
    /// that allocates nothing. Number of requests in flight and tags are the caller's.
    ///
    /// Errors, the first that applies: [`ErrorKind::ReadOnly`]; [`ErrorKind::Misaligned`] if it is empty or not
    /// whole blocks; [`ErrorKind::OutOfRange`], also if the end is past the largest number;
    /// [`ErrorKind::TooLarge`] if it carries more bytes or segments than one request may.
    ///
    /// ```
    /// use raidcore::dev::{BlockSize, ErrorKind, Geometry, Op};
    ///
    /// let geometry = Geometry::plain(1 << 20, BlockSize::B4096);
    /// assert!(geometry.check(&Op::Discard { offset: 4096, len: 8192 }).is_ok());
    /// let error = geometry.check(&Op::Discard { offset: 512, len: 512 }).unwrap_err();
    /// assert_eq!(error.kind, ErrorKind::Misaligned);
    /// ```
    pub fn check(&self, op: &Op) -> Result<(), IoError> {
        self.check_granular(op, self.block_size.bytes())
    }

    /// [`Geometry::check`] for a device that takes any offset and any length but zero.
    pub fn check_bytes(&self, op: &Op) -> Result<(), IoError> {
        self.check_granular(op, 1)
    }

    fn check_granular(&self, op: &Op, granule: u32) -> Result<(), IoError> {
        let (offset, len) = op.extent();
        let (segments, transfers) = match op {
            Op::Read { bufs, .. } => (bufs.len(), true),
            Op::Write { data, .. } => (data.len(), true),
            Op::Flush => return Ok(()),
            Op::Discard { .. } | Op::WriteZeroes { .. } => (0, false),
        };
        let whole = |n: u64| n.is_multiple_of(u64::from(granule));
        let kind = if op.is_write() && self.read_only {
            ErrorKind::ReadOnly
        } else if len == 0 || !whole(offset) || !whole(len) {
            ErrorKind::Misaligned
        } else if offset.checked_add(len).is_none_or(|end| end > self.size_bytes) {
            ErrorKind::OutOfRange
        } else if segments > MAX_SEGMENTS || (transfers && len > self.max_transfer_bytes) {
            ErrorKind::TooLarge
        } else {
            return Ok(());
        };
        Err(IoError::new(kind, op.kind(), offset, len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::{Slab, SlabConfig, ViewList};

    #[test]
    fn each_floor_judges_a_request_by_the_same_rules_in_the_same_order() {
        let slab = Slab::new(&SlabConfig::of(&[(4096, 1100)])).unwrap();
        let plain = Geometry { max_transfer_bytes: 8192, ..Geometry::plain(1 << 20, BlockSize::B512) };
        let read_only = Geometry { read_only: true, ..plain };
        let read = |offset, len: usize| Op::Read { offset, bufs: slab.alloc_list(len).unwrap() };
        let write = |offset, pieces: usize, len: usize| Op::Write {
            offset,
            data: (0..pieces).map(|_| slab.alloc(len).unwrap().freeze()).collect::<ViewList>(),
            fua: false,
        };
        let trim = |offset, len| Op::Discard { offset, len };
        use ErrorKind::*;
        // Geometry, operation, verdict of whole blocks, verdict of bytes.
        let cases = [
            (plain, read(512, 8192), None, None),
            (plain, read(1, 512), Some(Misaligned), None),
            (plain, read(0, 511), Some(Misaligned), None),
            (plain, read(0, 0), Some(Misaligned), Some(Misaligned)),
            (plain, trim(512, 0), Some(Misaligned), Some(Misaligned)),
            (plain, trim(0, 1 << 20), None, None),
            (plain, trim(1 << 20, 512), Some(OutOfRange), Some(OutOfRange)),
            (plain, trim(u64::MAX - 511, 512), Some(OutOfRange), Some(OutOfRange)),
            (plain, trim(u64::MAX, 2), Some(Misaligned), Some(OutOfRange)),
            (plain, write(0, 3, 4096), Some(TooLarge), Some(TooLarge)),
            (plain, write(0, MAX_SEGMENTS + 1, 1), Some(Misaligned), Some(TooLarge)),
            (read_only, write(0, 1, 512), Some(ReadOnly), Some(ReadOnly)),
            (read_only, trim(u64::MAX, 3), Some(ReadOnly), Some(ReadOnly)),
            (read_only, read(0, 512), None, None),
            (read_only, Op::Flush, None, None),
        ];
        for (geometry, op, blocks, bytes) in &cases {
            assert_eq!(geometry.check(op).err().map(|e| e.kind), *blocks, "{op:?}");
            assert_eq!(geometry.check_bytes(op).err().map(|e| e.kind), *bytes, "{op:?}");
        }
    }
}
