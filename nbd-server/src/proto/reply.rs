//! The heads of replies: everything of a reply but the payload of a read.

use super::errno::NbdError;
use super::wire::{SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk};
use crate::limits::MAX_ERROR_MESSAGE_BYTES;
use smallvec::SmallVec;

/// Names a request of a client; comes back in the reply. The specification calls it cookie or handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cookie(pub u64);

/// Which kind of replies a connection uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Simple replies.
    Simple,
    /// Structured replies.
    Structured,
}

/// The head of a reply. Those of successes stay off the heap; an error with its message may not.
#[derive(Clone, Debug)]
pub struct Head(SmallVec<[u8; 32]>);

impl Head {
    /// A success without data.
    pub fn ok(style: Style, cookie: Cookie) -> Head {
        match style {
            Style::Simple => Head::simple(cookie, 0),
            Style::Structured => Head::chunk(chunk::NONE, cookie, 0),
        }
    }

    /// A successful read of `len` bytes at `offset`; the data follows it. `1 <= len <= MAX_REQUEST_BYTES`.
    pub fn data(style: Style, cookie: Cookie, offset: u64, len: u32) -> Head {
        match style {
            Style::Simple => Head::simple(cookie, 0),
            Style::Structured => {
                let mut head = Head::chunk(chunk::OFFSET_DATA, cookie, 8 + len);
                head.put(&offset.to_be_bytes());
                head
            }
        }
    }

    /// A failure. The message is for people and is cut to its limit; simple replies have no room for one.
    pub fn error(style: Style, cookie: Cookie, error: NbdError, message: &str) -> Head {
        match style {
            Style::Simple => Head::simple(cookie, error.code()),
            Style::Structured => {
                let message = front(message, MAX_ERROR_MESSAGE_BYTES);
                let mut head = Head::chunk(chunk::ERROR, cookie, 6 + message.len() as u32);
                head.put(&error.code().to_be_bytes());
                head.put(&(message.len() as u16).to_be_bytes());
                head.put(message);
                head
            }
        }
    }

    /// The bytes to send.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes to send, to be owned by a send.
    pub fn into_bytes(self) -> SmallVec<[u8; 32]> {
        self.0
    }

    fn simple(cookie: Cookie, error: u32) -> Head {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        bytes[4..8].copy_from_slice(&error.to_be_bytes());
        bytes[8..].copy_from_slice(&cookie.0.to_be_bytes());
        Head(SmallVec::from_slice(&bytes))
    }

    /// Every reply here is one chunk, so it is always the last.
    fn chunk(kind: u16, cookie: Cookie, payload_len: u32) -> Head {
        let mut bytes = [0; 20];
        bytes[..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&chunk::FLAG_DONE.to_be_bytes());
        bytes[6..8].copy_from_slice(&kind.to_be_bytes());
        bytes[8..16].copy_from_slice(&cookie.0.to_be_bytes());
        bytes[16..].copy_from_slice(&payload_len.to_be_bytes());
        Head(SmallVec::from_slice(&bytes))
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

    const COOKIE: Cookie = Cookie(0x0102_0304_0506_0708);

    #[test]
    fn simple_replies_are_sixteen_bytes() {
        let ok = Head::ok(Style::Simple, COOKIE);
        assert_eq!(ok.as_bytes(), [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        let error = Head::error(Style::Simple, COOKIE, NbdError::Enospc, "ignored");
        assert_eq!(error.as_bytes(), [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn a_structured_read_is_one_chunk_with_its_offset() {
        let head = Head::data(Style::Structured, COOKIE, 0x1000, 512);
        let expected = [
            [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1].as_slice(),
            &[1, 2, 3, 4, 5, 6, 7, 8],
            &[0, 0, 2, 8],
            &[0, 0, 0, 0, 0, 0, 0x10, 0],
        ];
        assert_eq!(head.as_bytes(), expected.concat());
    }

    #[test]
    fn a_structured_error_carries_its_message_cut_at_a_character() {
        let head = Head::error(Style::Structured, COOKIE, NbdError::Eio, &"é".repeat(40));
        let bytes = head.as_bytes();
        assert_eq!(bytes[4..8], [0, 1, 0x80, 1]);
        assert_eq!(bytes[16..26], [0, 0, 0, 70, 0, 0, 0, 5, 0, 64]);
        assert_eq!(std::str::from_utf8(&bytes[26..]).unwrap(), "é".repeat(32));
        let cut = Head::error(Style::Structured, COOKIE, NbdError::Eio, &format!("x{}", "é".repeat(40)));
        assert_eq!(cut.as_bytes().len(), 26 + 63);
    }
}
