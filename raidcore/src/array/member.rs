//! A device in the array: what it is, how it does, and its queue.

use super::plug::{Outcome, Piece, Plug};
use crate::dev::{BlockDev, Checked, Completion, ErrorKind, OpKind};
use crate::layout::Slot;
use crate::meta::{MemberState, MemberUuid, Own};
use crate::time::{Clock, Time};
use std::time::Duration;

/// Index of a member in the array's table. It keeps its meaning while the array runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct MemberId(pub(super) usize);

/// Errors of a member since the array was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErrorCounts {
    /// Failed reads.
    pub read: u64,
    /// Failed writes, flushes and discards.
    pub write: u64,
    /// Requests of either kind that were not answered by their deadline.
    pub timeout: u64,
}

/// A member. One that is missing has no device.
pub(super) struct Member {
    pub(super) uuid: MemberUuid,
    /// Its device's name, as the administrator gave it; empty if it is missing.
    pub(super) device: String,
    pub(super) slot: Option<Slot>,
    pub(super) state: MemberState,
    pub(super) errors: ErrorCounts,
    pub(super) own: Option<Own>,
    pub(super) plug: Plug,
    /// While rebuilding: bytes of its data area that were right when this was recorded last.
    pub(super) rebuilt_bytes: u64,
    /// Its rebuild failed for want of something to read; it is not begun again by itself.
    pub(super) rebuild_given_up: bool,
    /// No longer in the member table: removed, or replaced while it was missing.
    pub(super) forgotten: bool,
    /// Its device is gone or silent, and the array, which cannot do without it, has failed.
    pub(super) gone: bool,
    dev: Option<Checked<Box<dyn BlockDev>>>,
    queue_depth: usize,
}

impl Member {
    pub(super) fn present(uuid: MemberUuid, device: String, dev: Box<dyn BlockDev>, own: Own) -> Member {
        let dev = Checked::new(dev);
        let geometry = dev.geometry();
        let (queue_depth, plug) = (geometry.queue_depth as usize, Plug::new(geometry.max_transfer_bytes));
        Member { device, own: Some(own), dev: Some(dev), queue_depth, plug, ..Member::missing(uuid) }
    }

    pub(super) fn missing(uuid: MemberUuid) -> Member {
        Member {
            uuid,
            device: String::new(),
            slot: None,
            state: MemberState::Missing,
            errors: ErrorCounts::default(),
            own: None,
            plug: Plug::new(0),
            rebuilt_bytes: 0,
            rebuild_given_up: false,
            forgotten: false,
            gone: false,
            dev: None,
            queue_depth: 0,
        }
    }

    /// True if it takes writes: data if it has a slot, superblocks in any case.
    pub(super) fn is_live(&self) -> bool {
        !self.state.is_out() && self.dev.is_some()
    }

    pub(super) fn geometry(&self) -> Option<crate::dev::Geometry> {
        self.dev.as_ref().map(BlockDev::geometry)
    }

    /// Looks how large the device is now.
    pub(super) fn refresh_size(&mut self) {
        if let Some(dev) = &mut self.dev {
            dev.refresh_size();
        }
    }

    /// True if nothing waits and nothing is in the device.
    pub(super) fn is_quiet(&self) -> bool {
        self.plug.load() == 0
    }

    /// Asks the device to give up what it is doing.
    pub(super) fn cancel_all(&mut self) {
        if let Some(dev) = &mut self.dev {
            self.plug.sent_tags().for_each(|tag| dev.cancel(tag));
        }
    }

    /// Lets go of the device, which nothing is under way on any more.
    pub(super) fn release(&mut self) {
        self.dev = None;
        self.own = None;
        self.forgotten = true;
    }

    pub(super) fn push(&mut self, piece: Piece) {
        self.plug.push(piece);
    }

    /// Takes what the device has completed.
    pub(super) fn reap(
        &mut self,
        now: Time,
        patience: Duration,
        completions: &mut Vec<Completion>,
        outcomes: &mut Vec<Outcome>,
    ) {
        if let Some(dev) = &mut self.dev
            && self.plug.in_device() > 0
        {
            dev.reap(completions);
            for completion in completions.drain(..) {
                self.plug.complete(completion, now, patience, outcomes);
            }
        }
    }

    /// Submits what waits. What was meant for a member that is out comes back as failed.
    pub(super) fn flush(&mut self, clock: &Clock, deadline: Duration, outcomes: &mut Vec<Outcome>) {
        if !self.plug.has_waiting() {
            return;
        }
        match &mut self.dev {
            Some(dev) if !self.state.is_out() => {
                self.plug.flush(dev, self.queue_depth, clock.now(), deadline)
            }
            _ => self.plug.fail_waiting(ErrorKind::Gone, outcomes),
        }
    }

    pub(super) fn count_error(&mut self, kind: ErrorKind, op: OpKind) {
        match (kind, op) {
            (ErrorKind::Timeout, _) => self.errors.timeout += 1,
            (_, OpKind::Read) => self.errors.read += 1,
            _ => self.errors.write += 1,
        }
    }

    pub(super) fn wake_at(&self) -> Option<Time> {
        let dev = self.dev.as_ref()?;
        if self.plug.in_device() > 0 { dev.wake_at() } else { self.plug.wake_at() }
    }
}
