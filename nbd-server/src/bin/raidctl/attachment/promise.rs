//! What the kernel was promised of an export, and what a server that is back may have changed of it. Pure.
//!
//! A device under a file system can grow; it can do nothing else. Whatever would make the file system read or write
//! another disk than it believes in is refused, and requests go on waiting for the right one.

use super::{FIRST_PAUSE, LONGEST_PAUSE};
use nbd_server::client::Terms;
use nbd_server::proto::wire::transmission_flags as flags;
use std::time::Duration;

/// Logical blocks the kernel can have.
const MIN_BLOCK_BYTES: u32 = 512;
const MAX_BLOCK_BYTES: u32 = 4096;

/// What the kernel uses of an export, if it is there. Lost, a flush would fail or, worse, mean nothing.
const RELIED_ON: [(u16, &str); 5] = [
    (flags::SEND_FLUSH, "flush"),
    (flags::SEND_FUA, "FUA"),
    (flags::SEND_TRIM, "trim"),
    (flags::SEND_WRITE_ZEROES, "write zeroes"),
    (flags::CAN_MULTI_CONN, "several connections"),
];

/// What the kernel believes of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// Size in bytes.
    pub size_bytes: u64,
    /// Logical block in bytes.
    pub block_bytes: u32,
    /// Transmission flags.
    pub flags: u16,
}

/// What an offer means to a device that has a promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All as it was.
    Same,
    /// It grew to this many bytes.
    Grown(u64),
    /// Another disk, as far as a file system is concerned. The sentence says why.
    Refused(String),
}

impl Promise {
    /// What is promised of an export as the server describes it. An error if the kernel cannot have such a device.
    pub fn of(offer: &Terms, read_only: bool) -> Result<Promise, String> {
        if offer.block_announced && offer.block.min > MAX_BLOCK_BYTES {
            return Err(format!(
                "its blocks have {} bytes, and the kernel takes at most {MAX_BLOCK_BYTES}",
                offer.block.min
            ));
        }
        if offer.size_bytes < u64::from(MIN_BLOCK_BYTES) {
            return Err(format!(
                "it has {} bytes, and a block device has at least one block",
                offer.size_bytes
            ));
        }
        let read_only = if read_only { flags::READ_ONLY | flags::HAS_FLAGS } else { 0 };
        Ok(Promise {
            size_bytes: offer.size_bytes,
            block_bytes: offer.block.min.clamp(MIN_BLOCK_BYTES, MAX_BLOCK_BYTES),
            flags: offer.flags | read_only,
        })
    }

    /// True if nothing is written to the device.
    pub fn is_read_only(&self) -> bool {
        self.flags & flags::READ_ONLY != 0
    }

    /// What `offer` means now.
    pub fn judge(&self, offer: &Terms) -> Verdict {
        if offer.size_bytes < self.size_bytes {
            return Verdict::Refused(format!(
                "the export has {} bytes and the device has {}: serve the whole of it again",
                offer.size_bytes, self.size_bytes
            ));
        }
        if offer.has(flags::READ_ONLY) && !self.is_read_only() {
            return Verdict::Refused("the export is read-only now: let it be written again".to_string());
        }
        let had = |flag| self.flags & flag != 0;
        if let Some((_, name)) = RELIED_ON.iter().find(|(flag, _)| had(*flag) && !offer.has(*flag)) {
            return Verdict::Refused(format!(
                "the export no longer offers {name}, which the kernel relies on: serve it as before"
            ));
        }
        if offer.block_announced && offer.block.min > self.block_bytes {
            return Verdict::Refused(format!(
                "the export has blocks of {} bytes now and the device of {}: serve it as before",
                offer.block.min, self.block_bytes
            ));
        }
        match offer.size_bytes {
            size if size > self.size_bytes => Verdict::Grown(size),
            _ => Verdict::Same,
        }
    }
}

/// The pause before the next attempt, after as many in vain.
pub fn pause(attempts: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(2u32.saturating_pow(attempts)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nbd_server::client::{BlockSizes, Replies};

    const ALL: u16 = flags::HAS_FLAGS
        | flags::SEND_FLUSH
        | flags::SEND_FUA
        | flags::SEND_TRIM
        | flags::SEND_WRITE_ZEROES
        | flags::CAN_MULTI_CONN;

    fn offer(size_bytes: u64, flags: u16, min: u32) -> Terms {
        let block = BlockSizes { min, preferred: min.max(4096), max: 32 << 20 };
        Terms { size_bytes, flags, block, block_announced: true, replies: Replies::Simple }
    }

    fn refusal(promise: &Promise, offer: &Terms) -> String {
        match promise.judge(offer) {
            Verdict::Refused(why) => why,
            verdict => panic!("{verdict:?}"),
        }
    }

    #[test]
    fn a_device_grows_and_never_shrinks() {
        let promise = Promise::of(&offer(1 << 20, ALL, 512), false).unwrap();
        assert_eq!(promise.judge(&offer(1 << 20, ALL, 512)), Verdict::Same);
        assert_eq!(promise.judge(&offer((1 << 20) + 512, ALL, 512)), Verdict::Grown((1 << 20) + 512));
        assert!(refusal(&promise, &offer((1 << 20) - 512, ALL, 512)).contains("1048064"));
    }

    #[test]
    fn abilities_may_come_but_not_go() {
        let promise = Promise::of(&offer(1 << 20, ALL, 512), false).unwrap();
        for (flag, name) in RELIED_ON {
            assert!(refusal(&promise, &offer(1 << 20, ALL & !flag, 512)).contains(name));
            let less = Promise::of(&offer(1 << 20, ALL & !flag, 512), false).unwrap();
            assert_eq!(less.judge(&offer(1 << 20, ALL, 512)), Verdict::Same);
        }
        assert!(refusal(&promise, &offer(1 << 20, 0, 512)).contains("flush"), "no flags mean nothing");
    }

    #[test]
    fn what_was_written_must_stay_writable() {
        let promise = Promise::of(&offer(1 << 20, ALL, 512), false).unwrap();
        let closed = offer(1 << 20, ALL | flags::READ_ONLY, 512);
        assert!(refusal(&promise, &closed).contains("read-only"));
        let reader = Promise::of(&offer(1 << 20, ALL, 512), true).unwrap();
        assert!(reader.is_read_only());
        assert_eq!(reader.judge(&closed), Verdict::Same);
    }

    #[test]
    fn blocks_fit_the_kernel() {
        let block = |min| Promise::of(&offer(1 << 20, ALL, min), false).map(|promise| promise.block_bytes);
        assert_eq!(block(1), Ok(512));
        assert_eq!(block(4096), Ok(4096));
        assert!(block(65536).unwrap_err().contains("65536"));
        let small = Promise::of(&offer(1 << 20, ALL, 512), false).unwrap();
        assert!(refusal(&small, &offer(1 << 20, ALL, 4096)).contains("blocks of 4096"));
        assert!(Promise::of(&offer(0, ALL, 1), false).unwrap_err().contains("0 bytes"));
    }

    #[test]
    fn pauses_grow_to_a_limit() {
        let pauses: Vec<_> = (0..40).map(pause).collect();
        assert_eq!(pauses[0], FIRST_PAUSE);
        assert!(pauses.is_sorted() && pauses[39] == LONGEST_PAUSE);
    }
}
