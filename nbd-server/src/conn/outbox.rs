//! Replies on their way out: everything ready goes out in one send, one send at a time.
//!
//! Invariant: at most one send of a connection is in flight; while it is, replies gather for the next. Their
//! number is bounded by who queues them ([`Outbox::replies`]), their memory by their charges. In clear one send
//! takes all that is ready; with TLS it may take several, and what is ready next waits behind the last of them.

use super::Context;
use super::budget::Charge;
use super::seal::Seal;
use crate::proto::reply::Head;
use raidcore::buf::BufList;
use raidcore::uring::{SendPart, SharedFd};
use smallvec::SmallVec;

/// The queue of replies of one connection.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    queued: Batch,
    /// What is being sent.
    sending: Option<Batch>,
    /// A send is in flight.
    in_kernel: bool,
    /// The list of parts of the last send, to save an allocation.
    spare: Vec<SendPart>,
}

#[derive(Debug, Default)]
struct Batch {
    parts: Vec<SendPart>,
    replies: usize,
    /// Of them, replies to status queries.
    statuses: usize,
    charge: Option<Charge>,
}

impl Outbox {
    /// Replies not yet sent.
    pub(super) fn replies(&self) -> usize {
        self.queued.replies + self.sending.as_ref().map_or(0, |batch| batch.replies)
    }

    /// Replies to status queries that are not sent yet.
    pub(super) fn statuses(&self) -> usize {
        self.queued.statuses + self.sending.as_ref().map_or(0, |batch| batch.statuses)
    }

    /// True if nothing is queued or in flight.
    pub(super) fn is_idle(&self) -> bool {
        !self.in_kernel && self.sending.is_none() && self.queued.parts.is_empty()
    }

    /// True if a send is in flight.
    pub(super) fn is_sending(&self) -> bool {
        self.in_kernel
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
        let head = std::iter::once(SendPart::Bytes(head.into_bytes()));
        self.push_parts(head.chain(data.into_iter().map(SendPart::Buf)), charge);
    }

    /// Queues a reply of many parts; their memory is free again when it has been sent.
    pub(super) fn push_parts<I>(&mut self, parts: I, charge: Option<Charge>)
    where
        I: IntoIterator<Item = SendPart>,
    {
        self.queued.parts.extend(parts);
        self.queued.replies += 1;
        match (&mut self.queued.charge, charge) {
            (Some(sum), Some(charge)) => sum.absorb(charge),
            (sum @ None, charge) => *sum = charge,
            (Some(_), None) => {}
        }
    }

    /// Queues a reply to a status query.
    pub(super) fn push_status(&mut self, parts: impl IntoIterator<Item = SendPart>, charge: Charge) {
        self.push_parts(parts, Some(charge));
        self.queued.statuses += 1;
    }

    /// Sends what is queued unless a send is in flight; true if it began one. With `seal` the bytes are encrypted.
    pub(super) fn flush(
        &mut self,
        seal: Option<&mut Seal>,
        fd: &SharedFd,
        token: u64,
        ctx: &mut Context<'_>,
    ) -> bool {
        if self.in_kernel {
            return false;
        }
        let fresh = if self.sending.is_none() { self.next_batch() } else { None };
        let parts = match (seal, fresh) {
            (None, parts) => parts,
            (Some(seal), fresh) => {
                if let Some(parts) = fresh {
                    seal.load(parts);
                }
                if !seal.wants_send() {
                    self.sending = None;
                }
                seal.fill(ctx).map(|buf| vec![SendPart::Buf(buf)])
            }
        };
        let Some(parts) = parts else { return false };
        ctx.port.send(fd, parts, token);
        self.in_kernel = true;
        true
    }

    /// What is queued becomes what is being sent.
    fn next_batch(&mut self) -> Option<Vec<SendPart>> {
        if self.queued.parts.is_empty() {
            return None;
        }
        let mut batch = std::mem::take(&mut self.queued);
        self.queued.parts = std::mem::take(&mut self.spare);
        let parts = std::mem::take(&mut batch.parts);
        self.sending = Some(batch);
        Some(parts)
    }

    /// The send has ended; `parts` is its memory if it came back. Some of what is being sent is not out yet if
    /// `seal` has more of it.
    pub(super) fn sent(&mut self, mut parts: Vec<SendPart>, seal: Option<&Seal>) {
        parts.clear();
        self.in_kernel = false;
        match seal {
            Some(seal) if seal.wants_send() => {}
            Some(_) => self.sending = None,
            None => (self.spare, self.sending) = (parts, None),
        }
    }

    /// Forgets what is queued: nobody reads any more.
    pub(super) fn clear(&mut self) {
        self.queued = Batch::default();
        if !self.in_kernel {
            self.sending = None;
        }
    }
}
