//! What an error costs: a repair, a member, or the array.
//!
//! - A read that failed in the medium costs a repair: the block is rebuilt and written back.
//! - A write that failed, a device that is gone or does not answer, costs the member, if the others can carry on.
//! - Where they cannot: a write error of a striped or mirrored block is that block's error. In a parity array it
//!   fails the array, for the stripe it left half-written would reconstruct other blocks wrongly. A write that
//!   timed out fails the array too: it may still land, on top of a later one (rule 6).
//! - A failed array serves no more writes and leaves the superblocks as they are, so that it can be assembled
//!   again once the devices are back.

use super::member::MemberId;
use super::plan::SlotSet;
use super::sync::SyncStop;
use super::{Array, Event};
use crate::dev::{ErrorKind, IoError};
use crate::layout::Slot;
use crate::meta::MemberState;

impl Array {
    /// A read from a member failed. Returns the slots to avoid when trying again: this one's.
    pub(super) fn note_read_error(&mut self, id: MemberId, error: &IoError) -> SlotSet {
        let member = &mut self.members[id.0];
        if !member.state.is_out() {
            member.count_error(error.kind, error.op);
            match error.kind {
                ErrorKind::Gone | ErrorKind::Timeout if self.can_lose(id) => {
                    self.fail_member(id, &error.to_string())
                }
                ErrorKind::Gone => self.fail_array(id, error),
                _ => {}
            }
        }
        self.members[id.0].slot.into_iter().collect()
    }

    /// A write, flush or superblock write to a member failed. Returns the error that its requests get, if any:
    /// none if the other members have what was written.
    #[must_use = "what the other members do not have must be told to who wrote it"]
    pub(super) fn note_write_error(&mut self, id: MemberId, error: &IoError) -> Option<ErrorKind> {
        let member = &mut self.members[id.0];
        if member.state.is_out() {
            return None;
        }
        member.count_error(error.kind, error.op);
        if self.can_lose(id) {
            self.fail_member(id, &error.to_string());
            return None;
        }
        let is_block_error = !matches!(error.kind, ErrorKind::Gone | ErrorKind::Timeout);
        if is_block_error && self.layout.parity_algorithm().is_none() {
            return Some(error.kind);
        }
        self.fail_array(id, error);
        Some(ErrorKind::ArrayFailed)
    }

    /// True if the array can go on without this member.
    pub(super) fn can_lose(&self, id: MemberId) -> bool {
        match self.members[id.0].slot {
            None => true,
            Some(_) if self.members[id.0].state != MemberState::InSync => true,
            Some(slot) => self.layout.survives(|other| other == slot || !self.is_in_sync(other)),
        }
    }

    pub(super) fn is_in_sync(&self, slot: Slot) -> bool {
        self.member_of(slot).state == MemberState::InSync
    }

    /// Takes a member out. What it misses from now on is not acknowledged before the superblocks say so.
    pub(super) fn fail_member(&mut self, id: MemberId, reason: &str) {
        let member = &mut self.members[id.0];
        let was_in_sync = member.state == MemberState::InSync;
        member.state = MemberState::Faulty;
        // What is in the device is not waited for until its deadline.
        member.cancel_all();
        let (device, slot) = (member.device.clone(), member.slot);
        self.event(Event::Fail { device, slot, reason: reason.to_owned() });
        self.stop_sync_without(id, SyncStop::MemberFailed);
        if was_in_sync && self.meta.resync.is_some() && self.layout.parity_algorithm().is_some() {
            if self.in_doubt {
                // The superblocks keep it in mind: what parity makes up may be wrong where it was not checked.
                self.event(Event::ParityInDoubt);
            } else if !self.has_redundancy() {
                // A new array: what was never written is anything, and what was written has its parity.
                self.meta.resync = None;
            }
        }
        self.commit.request();
        self.look_at_health();
        self.tell_degraded();
    }

    /// True if parity tells more than the members that are missing: then it can be wrong.
    pub(super) fn has_redundancy(&self) -> bool {
        let lost = self.layout.all_slots().filter(|&slot| !self.is_in_sync(slot)).count();
        lost < self.layout.parities()
    }

    pub(super) fn fail_array(&mut self, id: MemberId, error: &IoError) {
        self.members[id.0].gone |= matches!(error.kind, ErrorKind::Gone | ErrorKind::Timeout);
        if self.failed {
            return;
        }
        self.failed = true;
        let device = &self.members[id.0].device;
        let reason = format!("{device}, which it cannot do without: {error}");
        self.event(Event::ArrayFailed { reason });
        self.stop_sync_without(id, SyncStop::ArrayFailed);
        // No commit will come: what waits for one ends now, failed.
        self.end_awaiting();
        self.end_flushes_awaiting();
    }

    pub(super) fn tell_degraded(&mut self) {
        let slots: Vec<Slot> = self.layout.all_slots().filter(|&slot| !self.is_in_sync(slot)).collect();
        if !slots.is_empty() && !self.failed {
            let in_sync = |slot: &Slot| self.is_in_sync(*slot);
            let survives_more =
                self.layout.all_slots().filter(in_sync).all(|slot| self.can_lose(self.id_at(slot)));
            self.event(Event::DegradedArray { slots, survives_more });
        }
    }

    /// Recomputes what the read path asks about every piece.
    pub(super) fn look_at_health(&mut self) {
        self.all_well =
            self.meta.resync.is_none() && self.layout.all_slots().all(|slot| self.is_in_sync(slot));
    }
}
