//! What the kernel can be promised of an export, and how often it is looked for. Pure.

use super::{FIRST_PAUSE, LONGEST_PAUSE};
use nbd_server::client::{Promise, Terms};
use nbd_server::proto::wire::transmission_flags as flags;
use std::time::Duration;

/// Logical blocks the kernel can have.
const MIN_BLOCK_BYTES: u32 = 512;
const MAX_BLOCK_BYTES: u32 = 4096;

/// What is promised of an export as the server describes it. An error if the kernel cannot have such a device.
pub fn promise_of(offer: &Terms, read_only: bool) -> Result<Promise, String> {
    if offer.block_announced && offer.block.min > MAX_BLOCK_BYTES {
        return Err(format!(
            "its blocks have {} bytes, and the kernel takes at most {MAX_BLOCK_BYTES}",
            offer.block.min
        ));
    }
    if offer.size_bytes < u64::from(MIN_BLOCK_BYTES) {
        return Err(format!("it has {} bytes, and a block device has at least one block", offer.size_bytes));
    }
    let read_only = if read_only { flags::READ_ONLY | flags::HAS_FLAGS } else { 0 };
    Ok(Promise {
        size_bytes: offer.size_bytes,
        block_bytes: offer.block.min.clamp(MIN_BLOCK_BYTES, MAX_BLOCK_BYTES),
        flags: offer.flags | read_only,
    })
}

/// The pause before the next attempt, after as many in vain.
pub fn pause(attempts: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(2u32.saturating_pow(attempts)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nbd_server::client::{BlockSizes, Replies};

    const ALL: u16 = flags::HAS_FLAGS | flags::SEND_FLUSH;

    fn offer(size_bytes: u64, flags: u16, min: u32) -> Terms {
        let block = BlockSizes { min, preferred: min.max(4096), max: 32 << 20 };
        Terms { size_bytes, flags, block, block_announced: true, replies: Replies::Simple }
    }

    #[test]
    fn blocks_fit_the_kernel() {
        let block = |min| promise_of(&offer(1 << 20, ALL, min), false).map(|promise| promise.block_bytes);
        assert_eq!(block(1), Ok(512));
        assert_eq!(block(4096), Ok(4096));
        assert!(block(65536).unwrap_err().contains("65536"));
        assert!(promise_of(&offer(0, ALL, 1), false).unwrap_err().contains("0 bytes"));
    }

    #[test]
    fn pauses_grow_to_a_limit() {
        let pauses: Vec<_> = (0..40).map(pause).collect();
        assert_eq!(pauses[0], FIRST_PAUSE);
        assert!(pauses.is_sorted() && pauses[39] == LONGEST_PAUSE);
    }
}
