//! What users of an export rely on, and what a server that is back may have changed of it. Pure.
//!
//! A device under a file system or in an array can grow; it can do nothing else. Whatever would make its user read or
//! write another disk than it believes in is refused. Abilities that come, or that nobody uses, change nothing.

use super::terms::Terms;
use crate::proto::wire::transmission_flags as flags;

/// What is used of an export, if it is there. Lost, a flush would fail or, worse, mean nothing.
const RELIED_ON: [(u16, &str); 5] = [
    (flags::SEND_FLUSH, "flush"),
    (flags::SEND_FUA, "FUA"),
    (flags::SEND_TRIM, "trim"),
    (flags::SEND_WRITE_ZEROES, "write zeroes"),
    (flags::CAN_MULTI_CONN, "several connections"),
];

/// What is believed of an export by whoever uses it.
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
                "the export no longer offers {name}, which is relied on: serve it as before"
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::terms::{BlockSizes, Replies};

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

    fn promised(offer: &Terms, read_only: bool) -> Promise {
        let read_only = if read_only { flags::READ_ONLY } else { 0 };
        let (size_bytes, block_bytes) = (offer.size_bytes, offer.block.min);
        Promise { size_bytes, block_bytes, flags: offer.flags | read_only }
    }

    fn refusal(promise: &Promise, offer: &Terms) -> String {
        match promise.judge(offer) {
            Verdict::Refused(why) => why,
            verdict => panic!("{verdict:?}"),
        }
    }

    #[test]
    fn a_device_grows_and_never_shrinks() {
        let promise = promised(&offer(1 << 20, ALL, 512), false);
        assert_eq!(promise.judge(&offer(1 << 20, ALL, 512)), Verdict::Same);
        assert_eq!(promise.judge(&offer((1 << 20) + 512, ALL, 512)), Verdict::Grown((1 << 20) + 512));
        assert!(refusal(&promise, &offer((1 << 20) - 512, ALL, 512)).contains("1048064"));
    }

    #[test]
    fn abilities_may_come_but_not_go() {
        let promise = promised(&offer(1 << 20, ALL, 512), false);
        for (flag, name) in RELIED_ON {
            assert!(refusal(&promise, &offer(1 << 20, ALL & !flag, 512)).contains(name));
            let less = promised(&offer(1 << 20, ALL & !flag, 512), false);
            assert_eq!(less.judge(&offer(1 << 20, ALL, 512)), Verdict::Same);
        }
        assert!(refusal(&promise, &offer(1 << 20, 0, 512)).contains("flush"), "no flags mean nothing");
    }

    #[test]
    fn what_was_written_must_stay_writable() {
        let promise = promised(&offer(1 << 20, ALL, 512), false);
        let closed = offer(1 << 20, ALL | flags::READ_ONLY, 512);
        assert!(refusal(&promise, &closed).contains("read-only"));
        let reader = promised(&offer(1 << 20, ALL, 512), true);
        assert!(reader.is_read_only());
        assert_eq!(reader.judge(&closed), Verdict::Same);
    }

    #[test]
    fn what_is_not_used_may_go() {
        let unused = flags::SEND_CACHE | flags::SEND_FAST_ZERO | flags::SEND_DF | flags::BLOCK_STAT_PAYLOAD;
        let promise = promised(&offer(1 << 20, ALL | unused, 512), false);
        assert_eq!(promise.judge(&offer(1 << 20, ALL, 512)), Verdict::Same);
    }

    #[test]
    fn blocks_may_not_become_larger() {
        let small = promised(&offer(1 << 20, ALL, 512), false);
        assert!(refusal(&small, &offer(1 << 20, ALL, 4096)).contains("blocks of 4096"));
    }
}
