//! TLS under one connection: what is sent is encrypted a send at a time, what was received is decrypted a record at
//! a time.
//!
//! Replies stay where they are until there is memory to encrypt them into, and that is one buffer: the next one is
//! filled when it is sent. So a client that does not read costs no more with TLS than without, but for that buffer.
//!
//! Invariant: `offset` is less than the length of the first of `parts`, or 0 if there is none.

use super::Context;
use crate::limits::{LARGE_RECEIVE_BYTES, SMALL_RECEIVE_BYTES};
use crate::tls::{Channel, RECORD_BYTES};
use raidcore::buf::Buf;
use raidcore::uring::SendPart;
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::rc::Rc;

/// The TLS of a connection.
#[derive(Debug)]
pub(super) struct Seal {
    pub(super) channel: Channel,
    /// To be encrypted.
    parts: VecDeque<SendPart>,
    /// How much of the first of them is.
    offset: usize,
    /// Held while the memory of a send is large.
    large: Option<Rc<()>>,
}

/// Most pieces that are gathered into one record.
const MAX_PIECES: usize = 64;

/// What a record is longer than its plaintext, at most.
const OVERHEAD_BYTES: usize = 64;

impl Seal {
    pub(super) fn new(channel: Channel) -> Seal {
        Seal { channel, parts: VecDeque::new(), offset: 0, large: None }
    }

    /// Takes what is to be sent next. The last of it must be encrypted already.
    pub(super) fn load(&mut self, parts: Vec<SendPart>) {
        debug_assert!(self.parts.is_empty());
        self.parts = parts.into();
        self.advance(0);
    }

    /// True while something is to be encrypted.
    pub(super) fn is_loaded(&self) -> bool {
        !self.parts.is_empty()
    }

    /// True while there is anything to be sent.
    pub(super) fn wants_send(&self) -> bool {
        self.is_loaded() || self.channel.wants_write()
    }

    /// Forgets what is to be encrypted.
    pub(super) fn clear(&mut self) {
        self.parts = VecDeque::new();
        self.offset = 0;
    }

    /// The next bytes to be sent; `None` if there are none, or no memory for them.
    pub(super) fn fill(&mut self, ctx: &mut Context<'_>) -> Option<Buf> {
        self.large = None;
        if !self.wants_send() {
            return None;
        }
        let Some(mut room) = self.room(ctx) else {
            ctx.starved = true;
            return None;
        };
        let mut filled = 0;
        loop {
            filled += self.channel.take_ciphertext(&mut room[filled..]);
            if filled == room.len() || !self.encrypt() {
                break;
            }
        }
        room.truncate(filled);
        (filled > 0).then_some(room)
    }

    /// Memory for the next send, a large one only for what does not fit a small one and only with a permit.
    fn room(&mut self, ctx: &Context<'_>) -> Option<Buf> {
        let enough = SMALL_RECEIVE_BYTES - OVERHEAD_BYTES;
        let pending = self.pending(enough + 1);
        if pending > enough {
            self.large = ctx.large_permit();
        }
        let bytes = if self.large.is_some() { LARGE_RECEIVE_BYTES } else { SMALL_RECEIVE_BYTES };
        ctx.slab.alloc(bytes).or_else(|_| ctx.slab.alloc(SMALL_RECEIVE_BYTES)).ok()
    }

    /// How much is to be encrypted, or at least `most`.
    fn pending(&self, most: usize) -> usize {
        let mut sum = 0;
        for part in &self.parts {
            sum += part.len();
            if sum >= most + self.offset {
                break;
            }
        }
        sum - self.offset
    }

    /// Encrypts one record; false if there is nothing for it.
    fn encrypt(&mut self) -> bool {
        let taken = self.channel.write(&gather(&self.parts, self.offset));
        self.advance(taken);
        taken > 0
    }

    /// Lets go of what is encrypted, and of its memory.
    fn advance(&mut self, mut bytes: usize) {
        while let Some(first) = self.parts.front() {
            let left = first.len() - self.offset;
            if left > bytes {
                self.offset += bytes;
                return;
            }
            bytes -= left;
            self.offset = 0;
            self.parts.pop_front();
        }
        self.parts = VecDeque::new();
    }
}

/// Up to a record's worth of `parts`, but for the first `skip` bytes.
fn gather(parts: &VecDeque<SendPart>, mut skip: usize) -> SmallVec<[IoSlice<'_>; MAX_PIECES]> {
    let mut pieces = SmallVec::new();
    let mut left = RECORD_BYTES;
    for part in parts.iter().take(MAX_PIECES) {
        let piece = &part[skip..];
        let piece = &piece[..piece.len().min(left)];
        pieces.push(IoSlice::new(piece));
        (left, skip) = (left - piece.len(), 0);
        if left == 0 {
            break;
        }
    }
    pieces
}
