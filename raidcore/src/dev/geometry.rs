//! What a device is: its size, its block, what it can do.

use crate::limits::MAX_REQUEST_BYTES;

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
        }
    }
}
