//! Answers to `NBD_CMD_BLOCK_STATUS`, from what the engine knows.
//!
//! They are the reactor's own work, not a device's: an engine looks only so far for one, memory for the longest there
//! can be is there before it is asked, and [`MAX_STATUS_REPLIES`] bounds how many there are in a turn.
//!
//! [`MAX_STATUS_REPLIES`]: crate::limits::MAX_STATUS_REPLIES

use crate::engine::Engine;
use crate::export::{ExportId, MetaContext};
use crate::limits::MAX_EXTENTS;
use crate::proto::Contexts;
use crate::proto::reply::{RequestId, Style};
use crate::proto::status::{max_chunk_bytes, put_chunk, tidy};
use raidcore::buf::BufList;
use raidcore::uring::SendPart;
use std::ops::Range;

/// What a client wants to know.
#[derive(Clone, Debug)]
pub(super) struct Query {
    pub(super) contexts: Contexts,
    pub(super) range: Range<u64>,
    /// One extent for each context.
    pub(super) only_first: bool,
}

impl Query {
    /// Bytes of the longest reply there can be.
    pub(super) fn max_reply_bytes(&self) -> usize {
        let extents = if self.only_first { 1 } else { MAX_EXTENTS };
        self.contexts.iter().count() * max_chunk_bytes(extents)
    }

    /// The whole reply: a chunk for each context, at most `MAX_EXTENTS` extents in each.
    pub(super) fn reply(
        &self,
        style: Style,
        id: RequestId,
        export: ExportId,
        engine: &mut dyn Engine,
    ) -> Vec<u8> {
        let contexts: Vec<MetaContext> = self.contexts.iter().collect();
        let (mut out, mut extents) = (Vec::new(), Vec::new());
        for (at, &context) in contexts.iter().enumerate() {
            extents.clear();
            engine.extents(export, context, self.range.clone(), &mut extents);
            tidy(&mut extents, self.range.end - self.range.start, self.only_first);
            put_chunk(&mut out, style, id, context, &extents, at + 1 == contexts.len());
        }
        out
    }
}

/// A reply copied to memory that is accounted for: a client that does not read its replies holds what it was granted.
pub(super) fn parts(mut reply: &[u8], mut bufs: BufList) -> impl Iterator<Item = SendPart> {
    for buf in &mut bufs {
        let (front, rest) = reply.split_at(buf.len().min(reply.len()));
        buf[..front.len()].copy_from_slice(front);
        reply = rest;
    }
    debug_assert!(reply.is_empty(), "memory is shorter than the reply");
    bufs.into_iter().map(SendPart::Buf)
}
