//! Replies on their way out: everything ready goes out in one send, one send at a time.
//!
//! Invariant: at most one send of a connection is in flight; while it is, replies gather for the next. Their
//! number is bounded by who queues them ([`Outbox::replies`]), their memory by their charges.

use super::budget::Charge;
use crate::proto::reply::Head;
use raidcore::buf::BufList;
use raidcore::uring::{Port, SendPart, SharedFd};
use smallvec::SmallVec;

/// The queue of replies of one connection.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    queued: Batch,
    sending: Option<Batch>,
    /// The list of parts of the last send, to save an allocation.
    spare: Vec<SendPart>,
}

#[derive(Debug, Default)]
struct Batch {
    parts: Vec<SendPart>,
    replies: usize,
    charge: Option<Charge>,
}

impl Outbox {
    /// Replies not yet sent.
    pub(super) fn replies(&self) -> usize {
        self.queued.replies + self.sending.as_ref().map_or(0, |batch| batch.replies)
    }

    /// True if nothing is queued or in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.sending.is_none() && self.queued.parts.is_empty()
    }

    /// True if a send is in flight.
    pub(super) fn is_sending(&self) -> bool {
        self.sending.is_some()
    }

    /// Queues bytes of the handshake.
    pub(super) fn push_bytes(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.queued.parts.push(SendPart::Bytes(SmallVec::from_slice(bytes)));
            self.queued.replies += 1;
        }
    }

    /// Queues a reply without data.
    pub(super) fn push(&mut self, head: Head) {
        self.queued.parts.push(SendPart::Bytes(head.into_bytes()));
        self.queued.replies += 1;
    }

    /// Queues a reply with data; its memory is free again when it has been sent.
    pub(super) fn push_data(&mut self, head: Head, data: BufList, charge: Option<Charge>) {
        self.push(head);
        self.queued.parts.extend(data.into_iter().map(SendPart::Buf));
        match (&mut self.queued.charge, charge) {
            (Some(sum), Some(charge)) => sum.absorb(charge),
            (sum @ None, charge) => *sum = charge,
            (Some(_), None) => {}
        }
    }

    /// Sends what is queued unless a send is in flight; true if it began one.
    pub(super) fn flush(&mut self, port: &Port, fd: &SharedFd, token: u64) -> bool {
        if self.sending.is_some() || self.queued.parts.is_empty() {
            return false;
        }
        let mut batch = std::mem::take(&mut self.queued);
        self.queued.parts = std::mem::take(&mut self.spare);
        port.send(fd, std::mem::take(&mut batch.parts), token);
        self.sending = Some(batch);
        true
    }

    /// The send has ended; `parts` is its memory if it came back.
    pub(super) fn sent(&mut self, mut parts: Vec<SendPart>) {
        parts.clear();
        self.spare = parts;
        self.sending = None;
    }

    /// Forgets what is queued: nobody reads any more.
    pub(super) fn clear(&mut self) {
        self.queued = Batch::default();
    }
}
