//! The replies of a server, taken apart and held against what was asked.
//!
//! Bytes go in; parts come out: data for a place in a request, zeroes for one, the end of a request. No I/O. The
//! table of what was asked is here, so nothing a server sends can reach a request that it does not fit.
//!
//! Invariants:
//! - A read ends well only after each of its bytes was covered exactly once; data is announced only for bytes that
//!   were asked for and not covered before.
//! - Memory is bounded by what was asked: [`MAX_REPLY_FRAGMENTS`] ranges a read, [`MAX_REPLY_ERRORS`] errors, one
//!   error message at a time.
//! - After a [`Rubbish`] the stream means nothing any more: the connection must end.

use super::error::{Rubbish, Said};
use super::terms::Replies;
use crate::limits::{MAX_REPLY_ERRORS, MAX_REPLY_FRAGMENTS, MAX_STRING_BYTES};
use crate::proto::wire::{SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk};
use std::collections::HashMap;
use std::ops::Range;

/// Starts a chunk of a reply with 64-bit headers.
pub(super) const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;
/// A chunk that says that a range reads as zeroes.
const OFFSET_HOLE: u16 = 2;
/// An error at an offset.
const ERROR_OFFSET: u16 = 0x8002;
/// Set in the types of chunks that are errors.
const ERROR_BIT: u16 = 1 << 15;
/// Bytes of an error chunk before its message: number and length.
const ERROR_HEAD_BYTES: usize = 6;

/// A piece of a reply.
#[derive(Debug, PartialEq, Eq)]
pub enum Part {
    /// All input is taken; more is needed.
    More,
    /// These bytes of the input are data of the read `cookie`, `at` bytes behind its start.
    Data {
        /// Which read.
        cookie: u64,
        /// Where in it.
        at: u64,
        /// Where in the input.
        input: Range<usize>,
    },
    /// `len` bytes of the read `cookie`, from `at` on, are zeroes.
    Zeroes {
        /// Which read.
        cookie: u64,
        /// Where in it.
        at: u64,
        /// How many.
        len: u64,
    },
    /// A request was answered; its cookie is free again.
    Answer {
        /// Which request.
        cookie: u64,
        /// An error of the protocol's numbers, never zero.
        result: Result<(), Refusal>,
    },
}

/// A request that the server answered with an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The error's number.
    pub errno: u32,
    /// What the server says about it.
    pub said: Said,
}

/// Data that is still to come on the connection before anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Awaited {
    /// For which read.
    pub cookie: u64,
    /// Where in it.
    pub at: u64,
    /// How many bytes.
    pub len: u64,
}

/// Takes replies apart.
#[derive(Debug)]
pub struct ReplyParser {
    replies: Replies,
    asked: HashMap<u64, Asked>,
    state: State,
    /// What has arrived of the item that `state` waits for.
    partial: Vec<u8>,
}

#[derive(Debug)]
struct Asked {
    /// `Some` for a read: the bytes not covered yet.
    read: Option<Cover>,
    refusal: Option<Refusal>,
    errors: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Chunk {
    cookie: u64,
    kind: u16,
    len: u64,
    done: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The first four bytes of a reply.
    Magic,
    SimpleHead,
    ChunkHead,
    /// The offset of a data chunk, the whole of a hole or an error.
    Payload(Chunk),
    /// Data, `left > 0` bytes of it.
    Data {
        cookie: u64,
        at: u64,
        left: u64,
        done: bool,
    },
    /// Its last chunk was taken.
    Ended {
        cookie: u64,
    },
    /// Rubbish was read.
    Dead(Rubbish),
}

impl ReplyParser {
    /// A parser of a connection on which `replies` were negotiated.
    pub fn new(replies: Replies) -> ReplyParser {
        ReplyParser { replies, asked: HashMap::new(), state: State::Magic, partial: Vec::new() }
    }

    /// A read was, or will be, sent.
    pub fn expect_read(&mut self, cookie: u64, offset: u64, len: u64) {
        let read = Some(Cover { offset, len, covered: Vec::new() });
        self.asked.insert(cookie, Asked { read, refusal: None, errors: 0 });
    }

    /// A request that is answered without data was, or will be, sent.
    pub fn expect(&mut self, cookie: u64) {
        self.asked.insert(cookie, Asked { read: None, refusal: None, errors: 0 });
    }

    /// Requests that were not answered yet.
    pub fn unanswered(&self) -> usize {
        self.asked.len()
    }

    /// The data that comes next, if the stream is in the middle of some: it may be received past the parser, and be
    /// reported by [`took_data`](ReplyParser::took_data).
    pub fn awaited(&self) -> Option<Awaited> {
        match self.state {
            State::Data { cookie, at, left, .. } => Some(Awaited { cookie, at, len: left }),
            _ => None,
        }
    }

    /// `len` bytes of what is [awaited](ReplyParser::awaited) were taken from the connection.
    pub fn took_data(&mut self, len: u64) {
        if let State::Data { cookie, at, left, done } = self.state {
            let taken = len.min(left);
            self.state = match (left == taken, done) {
                (false, _) => State::Data { cookie, at: at + taken, left: left - taken, done },
                (true, true) => State::Ended { cookie },
                (true, false) => State::Magic,
            };
        }
    }

    /// Takes bytes from the server. Returns how many it took, and the next part.
    pub fn next(&mut self, input: &[u8]) -> (usize, Result<Part, Rubbish>) {
        let mut taken = 0;
        loop {
            if let State::Data { cookie, at, left, .. } = self.state {
                let len = (input.len() - taken).min(usize::try_from(left).unwrap_or(usize::MAX));
                if len == 0 {
                    return (taken, Ok(Part::More));
                }
                self.took_data(len as u64);
                return (taken + len, Ok(Part::Data { cookie, at, input: taken..taken + len }));
            }
            let missing = self.need() - self.partial.len();
            let used = missing.min(input.len() - taken);
            self.partial.extend_from_slice(&input[taken..taken + used]);
            taken += used;
            if used < missing {
                return (taken, Ok(Part::More));
            }
            match self.advance() {
                Ok(None) => {}
                Ok(Some(part)) => return (taken, Ok(part)),
                Err(rubbish) => {
                    self.partial.clear();
                    self.state = State::Dead(rubbish);
                    return (taken, Err(rubbish));
                }
            }
        }
    }

    fn need(&self) -> usize {
        match self.state {
            State::Magic => 4,
            State::SimpleHead => 16,
            State::ChunkHead if self.replies == Replies::Extended => 32,
            State::ChunkHead => 20,
            State::Payload(Chunk { kind: chunk::OFFSET_DATA, .. }) => 8,
            // Its length was checked when its head was read.
            State::Payload(chunk) => chunk.len as usize,
            State::Data { .. } | State::Ended { .. } | State::Dead(_) => 0,
        }
    }

    /// Acts on a complete item.
    fn advance(&mut self) -> Result<Option<Part>, Rubbish> {
        match self.state {
            State::Magic => {
                let magic = be(&self.partial) as u32;
                self.state = match (self.replies, magic) {
                    (Replies::Simple | Replies::Structured, SIMPLE_REPLY_MAGIC) => State::SimpleHead,
                    (Replies::Structured, STRUCTURED_REPLY_MAGIC) => State::ChunkHead,
                    (Replies::Extended, EXTENDED_REPLY_MAGIC) => State::ChunkHead,
                    _ => return Err(Rubbish::ReplyMagic(magic)),
                };
                Ok(None)
            }
            State::SimpleHead => {
                let (errno, cookie) = (be(&self.partial[4..8]) as u32, be(&self.partial[8..]));
                self.partial.clear();
                self.simple(errno, cookie)
            }
            State::ChunkHead => {
                let head = std::mem::take(&mut self.partial);
                self.chunk_head(&head)?;
                self.partial = head;
                self.partial.clear();
                Ok(None)
            }
            State::Payload(chunk) => {
                let payload = std::mem::take(&mut self.partial);
                self.payload(chunk, &payload)
            }
            State::Ended { cookie } => {
                self.state = State::Magic;
                self.answer(cookie).map(Some)
            }
            State::Data { .. } => Ok(Some(Part::More)),
            State::Dead(rubbish) => Err(rubbish),
        }
    }

    fn simple(&mut self, errno: u32, cookie: u64) -> Result<Option<Part>, Rubbish> {
        let asked = self.asked.get_mut(&cookie).ok_or(Rubbish::Cookie(cookie))?;
        if asked.refusal.is_some() || asked.read.as_ref().is_some_and(|cover| !cover.covered.is_empty()) {
            return Err(Rubbish::Overlap);
        }
        self.state = State::Ended { cookie };
        if errno != 0 {
            asked.refusal = Some(Refusal { errno, said: Said::default() });
        } else if let Some(cover) = &mut asked.read {
            if self.replies == Replies::Structured {
                // It would not be known where its data ends if there were an error in the middle of it.
                return Err(Rubbish::ReplyMagic(SIMPLE_REPLY_MAGIC));
            }
            let (offset, len) = (cover.offset, cover.len);
            cover.take(offset, len)?;
            self.state = State::Data { cookie, at: 0, left: len, done: true };
        }
        Ok(None)
    }

    fn chunk_head(&mut self, head: &[u8]) -> Result<(), Rubbish> {
        let flags = be(&head[4..6]) as u16;
        let len = be(if head.len() == 32 { &head[24..] } else { &head[16..] });
        let (kind, cookie) = (be(&head[6..8]) as u16, be(&head[8..16]));
        let done = flags & chunk::FLAG_DONE != 0;
        let asked = self.asked.get(&cookie).ok_or(Rubbish::Cookie(cookie))?;
        let is_read = asked.read.is_some();
        let longest_error = (ERROR_HEAD_BYTES + MAX_STRING_BYTES + 8) as u64;
        let length_fits = match kind {
            chunk::NONE => len == 0,
            chunk::OFFSET_DATA => len > 8,
            OFFSET_HOLE => len == 12,
            _ => (ERROR_HEAD_BYTES as u64..=longest_error).contains(&len),
        };
        let kind_fits = match kind {
            // It may not stand in the middle of a reply: a reply could be made of nothing else for ever.
            chunk::NONE => done,
            chunk::OFFSET_DATA | OFFSET_HOLE => is_read,
            _ => kind & ERROR_BIT != 0,
        };
        if !kind_fits {
            return Err(Rubbish::ChunkType(kind));
        }
        if !length_fits {
            return Err(Rubbish::ChunkLength { kind, len });
        }
        self.state = match kind {
            chunk::NONE => State::Ended { cookie },
            _ => State::Payload(Chunk { cookie, kind, len, done }),
        };
        Ok(())
    }

    fn payload(&mut self, chunk: Chunk, payload: &[u8]) -> Result<Option<Part>, Rubbish> {
        let Chunk { cookie, kind, len, done } = chunk;
        let asked = self.asked.get_mut(&cookie).ok_or(Rubbish::Cookie(cookie))?;
        self.state = if done { State::Ended { cookie } } else { State::Magic };
        match (kind, &mut asked.read) {
            (chunk::OFFSET_DATA, Some(cover)) => {
                let left = len - 8;
                let at = cover.take(be(payload), left)?;
                self.state = State::Data { cookie, at, left, done };
                Ok(None)
            }
            (OFFSET_HOLE, Some(cover)) => {
                let len = be(&payload[8..]);
                let at = cover.take(be(&payload[..8]), len)?;
                Ok(Some(Part::Zeroes { cookie, at, len }))
            }
            (_, cover) => {
                let (errno, said_len) = (be(&payload[..4]) as u32, be(&payload[4..6]) as usize);
                let (said, rest) = payload[ERROR_HEAD_BYTES..]
                    .split_at_checked(said_len)
                    .ok_or(Rubbish::ChunkLength { kind, len })?;
                let rest_fits = match kind {
                    chunk::ERROR => rest.is_empty(),
                    ERROR_OFFSET => rest.len() == 8,
                    // What is not yet invented may say more.
                    _ => true,
                };
                if !rest_fits {
                    return Err(Rubbish::ChunkLength { kind, len });
                }
                if kind == ERROR_OFFSET && cover.as_ref().is_some_and(|cover| !cover.has(be(rest))) {
                    return Err(Rubbish::OutsideRequest);
                }
                if errno == 0 {
                    return Err(Rubbish::ErrorZero);
                }
                asked.errors += 1;
                if asked.errors > MAX_REPLY_ERRORS {
                    return Err(Rubbish::EndlessReply);
                }
                asked.refusal.get_or_insert_with(|| Refusal { errno, said: Said::new(said) });
                Ok(None)
            }
        }
    }

    fn answer(&mut self, cookie: u64) -> Result<Part, Rubbish> {
        let asked = self.asked.remove(&cookie).ok_or(Rubbish::Cookie(cookie))?;
        let missing = asked.read.as_ref().map_or(0, Cover::missing);
        let result = match asked.refusal {
            Some(refusal) => Err(refusal),
            None if missing > 0 => return Err(Rubbish::Missing(missing)),
            None => Ok(()),
        };
        Ok(Part::Answer { cookie, result })
    }
}

/// Which bytes of a read have been answered.
#[derive(Debug)]
struct Cover {
    offset: u64,
    len: u64,
    /// Sorted, disjoint, not touching, none empty, within `0..len`.
    covered: Vec<Range<u64>>,
}

impl Cover {
    /// Covers `len` bytes at `offset` of the export; where that is in the read.
    fn take(&mut self, offset: u64, len: u64) -> Result<u64, Rubbish> {
        let start = offset.checked_sub(self.offset).ok_or(Rubbish::OutsideRequest)?;
        let end = start.checked_add(len).filter(|end| *end <= self.len).ok_or(Rubbish::OutsideRequest)?;
        if len == 0 {
            // Chunks of nothing could go on for ever.
            return Err(Rubbish::EndlessReply);
        }
        let next = self.covered.partition_point(|range| range.start < start);
        let overlaps_before = next > 0 && self.covered[next - 1].end > start;
        let overlaps_after = self.covered.get(next).is_some_and(|range| range.start < end);
        if overlaps_before || overlaps_after {
            return Err(Rubbish::Overlap);
        }
        let joins_before = next > 0 && self.covered[next - 1].end == start;
        let joins_after = self.covered.get(next).is_some_and(|range| range.start == end);
        match (joins_before, joins_after) {
            (true, true) => self.covered[next - 1].end = self.covered.remove(next).end,
            (true, false) => self.covered[next - 1].end = end,
            (false, true) => self.covered[next].start = start,
            (false, false) if self.covered.len() == MAX_REPLY_FRAGMENTS => return Err(Rubbish::EndlessReply),
            (false, false) => self.covered.insert(next, start..end),
        }
        Ok(start)
    }

    fn has(&self, offset: u64) -> bool {
        offset.checked_sub(self.offset).is_some_and(|at| at < self.len)
    }

    fn missing(&self) -> u64 {
        self.len - self.covered.iter().map(|range| range.end - range.start).sum::<u64>()
    }
}

/// A number of up to eight bytes.
fn be(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests;
