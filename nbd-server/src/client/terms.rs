//! What a server says of an export: the terms on which it is used.

use crate::limits::MAX_REQUEST_BYTES;
use crate::proto::wire::transmission_flags;

/// Which headers and replies a connection uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replies {
    /// Simple replies only.
    Simple,
    /// Structured replies to reads; simple or structured ones to the rest.
    Structured,
    /// 64-bit headers, and structured replies to everything.
    Extended,
}

/// Block sizes of an export, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Offsets and lengths are multiples of it: a power of two, `1..=65536`.
    pub min: u32,
    /// Served best.
    pub preferred: u32,
    /// Largest payload of a request: a multiple of `min`.
    pub max: u32,
}

impl BlockSizes {
    /// What a server announced, or `None` if that contradicts itself. The maximum is cut to whole blocks.
    pub fn checked(min: u32, preferred: u32, max: u32) -> Option<BlockSizes> {
        let min_is_fine = min.is_power_of_two() && min <= 1 << 16;
        if !min_is_fine || !preferred.is_power_of_two() || preferred < min || max < preferred {
            return None;
        }
        Some(BlockSizes { min, preferred, max: max - max % min })
    }
}

impl Default for BlockSizes {
    /// What a client assumes of a server that does not say.
    fn default() -> BlockSizes {
        BlockSizes { min: 512, preferred: 4096, max: MAX_REQUEST_BYTES }
    }
}

/// An export as its server described it in one handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Size in bytes, at most `i64::MAX`.
    pub size_bytes: u64,
    /// Transmission flags, see [`transmission_flags`].
    pub flags: u16,
    /// Block sizes.
    pub block: BlockSizes,
    /// The block sizes are the server's own words, not our assumption.
    pub block_announced: bool,
    /// What was negotiated for requests.
    pub replies: Replies,
}

impl Terms {
    /// True if the server set this flag, and said that its flags mean something.
    pub fn has(&self, flag: u16) -> bool {
        self.flags & transmission_flags::HAS_FLAGS != 0 && self.flags & flag != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_a_server_that_sets_none_mean_nothing() {
        let terms = |flags| Terms {
            size_bytes: 0,
            flags,
            block: BlockSizes::default(),
            block_announced: false,
            replies: Replies::Simple,
        };
        assert!(!terms(transmission_flags::SEND_FLUSH).has(transmission_flags::SEND_FLUSH));
        assert!(terms(5).has(transmission_flags::SEND_FLUSH));
    }
}
