//! The heads of replies: everything of a reply but the payload of a read.

use super::errno::NbdError;
use super::wire::{EXTENDED_REPLY_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk};
use crate::limits::MAX_ERROR_MESSAGE_BYTES;
use smallvec::SmallVec;

/// Names a request of a client; comes back in the reply. The specification calls it cookie or handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cookie(pub u64);

/// What a reply repeats of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId {
    /// The client's name for it.
    pub cookie: Cookie,
    /// The offset as the client sent it; only extended replies repeat it.
    pub offset: u64,
}

/// Which kind of headers and replies a connection uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Style {
    /// Simple replies.
    #[default]
    Simple,
    /// Structured replies.
    Structured,
    /// Requests and replies with extended headers; replies are structured, too.
    Extended,
}

/// A part of the range of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where it begins on the export.
    pub offset: u64,
    /// Bytes, not zero.
    pub len: u32,
    /// The reply ends with it.
    pub is_last: bool,
}

/// The inline size of a head: an extended header and the offset of a chunk of data.
type Bytes = SmallVec<[u8; 40]>;

/// The head of a reply. Those of successes stay off the heap; an error with its message may not.
#[derive(Clone, Debug)]
pub struct Head(Bytes);

impl Head {
    /// A success without data.
    pub fn ok(style: Style, id: RequestId) -> Head {
        match style {
            Style::Simple => Head::simple(id, 0),
            _ => Head::chunk(style, chunk::NONE, id, 0, true),
        }
    }

    /// A part of a successful read; its data follows. `part.len <= MAX_REQUEST_BYTES`; a simple reply has one part.
    pub fn data(style: Style, id: RequestId, part: Part) -> Head {
        if style == Style::Simple {
            return Head::simple(id, 0);
        }
        let mut head = Head::chunk(style, chunk::OFFSET_DATA, id, 8 + part.len, part.is_last);
        head.put(&part.offset.to_be_bytes());
        head
    }

    /// A part of a successful read that is all zeroes. Not for simple replies.
    pub fn hole(style: Style, id: RequestId, part: Part) -> Head {
        let mut head = Head::chunk(style, chunk::OFFSET_HOLE, id, 12, part.is_last);
        head.put(&part.offset.to_be_bytes());
        head.put(&part.len.to_be_bytes());
        head
    }

    /// The extents of one metadata context; its number and they follow. Not for simple replies.
    pub(super) fn status(style: Style, id: RequestId, extents: usize, is_last: bool) -> Head {
        let extents = extents as u32;
        match style {
            Style::Extended => Head::chunk(style, chunk::BLOCK_STATUS_EXT, id, 8 + 16 * extents, is_last),
            _ => Head::chunk(style, chunk::BLOCK_STATUS, id, 4 + 8 * extents, is_last),
        }
    }

    /// A failure. The message is for people and is cut to its limit; simple replies have no room for one.
    pub fn error(style: Style, id: RequestId, error: NbdError, message: &str) -> Head {
        if style == Style::Simple {
            return Head::simple(id, error.code());
        }
        let message = front(message, MAX_ERROR_MESSAGE_BYTES);
        let mut head = Head::chunk(style, chunk::ERROR, id, 6 + message.len() as u32, true);
        head.put(&error.code().to_be_bytes());
        head.put(&(message.len() as u16).to_be_bytes());
        head.put(message);
        head
    }

    /// The bytes to send.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes to send, to be owned by a send.
    pub fn into_bytes(self) -> SmallVec<[u8; 40]> {
        self.0
    }

    fn simple(id: RequestId, error: u32) -> Head {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        bytes[4..8].copy_from_slice(&error.to_be_bytes());
        bytes[8..].copy_from_slice(&id.cookie.0.to_be_bytes());
        Head(SmallVec::from_slice(&bytes))
    }

    fn chunk(style: Style, kind: u16, id: RequestId, payload_len: u32, is_last: bool) -> Head {
        let flags = if is_last { chunk::FLAG_DONE } else { 0 };
        let magic = if style == Style::Extended { EXTENDED_REPLY_MAGIC } else { STRUCTURED_REPLY_MAGIC };
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&magic.to_be_bytes());
        bytes[4..6].copy_from_slice(&flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&kind.to_be_bytes());
        bytes[8..16].copy_from_slice(&id.cookie.0.to_be_bytes());
        if style == Style::Extended {
            bytes[16..24].copy_from_slice(&id.offset.to_be_bytes());
            bytes[24..].copy_from_slice(&u64::from(payload_len).to_be_bytes());
            Head(SmallVec::from_slice(&bytes))
        } else {
            bytes[16..20].copy_from_slice(&payload_len.to_be_bytes());
            Head(SmallVec::from_slice(&bytes[..20]))
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
}

/// The longest front of `text` that is at most `most` bytes and ends with a whole character.
fn front(text: &str, most: usize) -> &[u8] {
    let cut = (0..=most.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    &text.as_bytes()[..cut]
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: RequestId = RequestId { cookie: Cookie(0x0102_0304_0506_0708), offset: 0x1000 };

    #[test]
    fn simple_replies_are_sixteen_bytes() {
        let ok = Head::ok(Style::Simple, ID);
        assert_eq!(ok.as_bytes(), [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        let error = Head::error(Style::Simple, ID, NbdError::Enospc, "ignored");
        assert_eq!(error.as_bytes(), [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn a_structured_part_of_a_read_has_its_offset() {
        let part = Part { offset: 0x1000, len: 512, is_last: true };
        let expected = [
            [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1].as_slice(),
            &[1, 2, 3, 4, 5, 6, 7, 8],
            &[0, 0, 2, 8],
            &[0, 0, 0, 0, 0, 0, 0x10, 0],
        ];
        assert_eq!(Head::data(Style::Structured, ID, part).as_bytes(), expected.concat());
        let hole = Head::hole(Style::Structured, ID, Part { is_last: false, ..part });
        assert_eq!(hole.as_bytes()[4..8], [0, 0, 0, 2]);
        assert_eq!(hole.as_bytes()[16..], [0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 2, 0]);
    }

    #[test]
    fn extended_headers_have_thirty_two_bytes_and_the_offset_of_the_request() {
        let part = Part { offset: 0x1200, len: 512, is_last: true };
        let expected = [
            [0x6e, 0x8a, 0x27, 0x8c, 0, 1, 0, 1].as_slice(),
            &[1, 2, 3, 4, 5, 6, 7, 8],
            &[0, 0, 0, 0, 0, 0, 0x10, 0],
            &[0, 0, 0, 0, 0, 0, 2, 8],
            &[0, 0, 0, 0, 0, 0, 0x12, 0],
        ];
        let head = Head::data(Style::Extended, ID, part);
        assert_eq!(head.as_bytes(), expected.concat());
        assert!(!head.into_bytes().spilled());
        let ok = Head::ok(Style::Extended, ID);
        assert_eq!((ok.as_bytes().len(), &ok.as_bytes()[4..8]), (32, &[0, 1, 0, 0][..]));
    }

    #[test]
    fn a_structured_error_carries_its_message_cut_at_a_character() {
        let head = Head::error(Style::Structured, ID, NbdError::Eio, &"é".repeat(40));
        let bytes = head.as_bytes();
        assert_eq!(bytes[4..8], [0, 1, 0x80, 1]);
        assert_eq!(bytes[16..26], [0, 0, 0, 70, 0, 0, 0, 5, 0, 64]);
        assert_eq!(std::str::from_utf8(&bytes[26..]).unwrap(), "é".repeat(32));
        let cut = Head::error(Style::Structured, ID, NbdError::Eio, &format!("x{}", "é".repeat(40)));
        assert_eq!(cut.as_bytes().len(), 26 + 63);
        let extended = Head::error(Style::Extended, ID, NbdError::Eio, "why");
        assert_eq!(extended.as_bytes()[32..], [0, 0, 0, 5, 0, 3, b'w', b'h', b'y']);
    }
}
