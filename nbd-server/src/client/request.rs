//! The heads of requests, as bytes.

use super::terms::Replies;
use crate::proto::wire::{REQUEST_MAGIC, cmd};
use smallvec::SmallVec;

/// Starts a request with 64-bit headers.
const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Of a request with 64-bit headers: its length is that of the payload behind it.
const PAYLOAD_LEN: u16 = 1 << 5;

/// A request but for its payload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    /// Fits 32 bits unless the headers are extended.
    pub(super) len: u64,
}

impl Head {
    /// The bytes to send.
    pub(super) fn bytes(&self, replies: Replies) -> SmallVec<[u8; 40]> {
        let is_extended = replies == Replies::Extended;
        let payload = if is_extended && self.kind == cmd::WRITE { PAYLOAD_LEN } else { 0 };
        let mut bytes = SmallVec::new();
        let magic = if is_extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
        bytes.extend_from_slice(&magic.to_be_bytes());
        bytes.extend_from_slice(&(self.flags | payload).to_be_bytes());
        bytes.extend_from_slice(&self.kind.to_be_bytes());
        bytes.extend_from_slice(&self.cookie.to_be_bytes());
        bytes.extend_from_slice(&self.offset.to_be_bytes());
        match is_extended {
            true => bytes.extend_from_slice(&self.len.to_be_bytes()),
            false => bytes.extend_from_slice(&(self.len as u32).to_be_bytes()),
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_28_bytes_or_32() {
        let head = Head { kind: cmd::WRITE, flags: 1, cookie: 0x0102, offset: 0x0304, len: 0x0506 };
        let compact =
            [0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 3, 4, 0, 0, 5, 6];
        assert_eq!(head.bytes(Replies::Structured).as_slice(), compact);
        let extended = head.bytes(Replies::Extended);
        assert_eq!(extended[..8], [0x21, 0xe4, 0x1c, 0x71, 0, 0x21, 0, 1]);
        assert_eq!((extended.len(), &extended[24..]), (32, &[0, 0, 0, 0, 0, 0, 5, 6][..]));
    }
}
