//! The background walk over all units: a resync of redundancy, or the rebuild of one member.
//!
//! Each unit is a step that queues at it like any work, so it never meets a client's operation half way, and
//! clients wait for the unit in work only. Steps run ahead in a window; what counts is the first unit that is
//! not done, `base`.
//!
//! Invariants: units below `base` are in sync (resync) or right on the target (rebuild), and stay so, for writes
//! go to the target too. Nothing is recorded in the superblocks that was not flushed first.

use super::member::MemberId;
use super::stop::Purpose;
use super::unit::Work;
use super::{Array, Event};
use crate::dev::ErrorKind;
use crate::layout::{Slot, UnitId};
use crate::meta::MemberState;
use crate::time::Time;
use std::collections::VecDeque;

/// Scratch memory the window may take.
const WINDOW_BYTES: u64 = 8 << 20;
/// Most units in the window while no client does I/O, and while one does.
const WINDOW_IDLE: u64 = 64;
const WINDOW_BUSY: u64 = 8;

/// What a step does to its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SyncStep {
    Resync,
    Rebuild(Slot),
}

/// Why a walk is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SyncStop {
    MemberFailed,
    ArrayFailed,
}

/// A walk under way.
pub(super) struct Sync {
    step: SyncStep,
    /// Number of this walk: steps of an earlier one, still under way when it was given up, do not count.
    walk: u64,
    target: Option<MemberId>,
    total: u64,
    /// The first unit that is not done.
    base: u64,
    /// Of the units from `base` on that were started, which are done.
    window: VecDeque<bool>,
    in_flight: u64,
    /// All units are done; the flush before the end is under way.
    ending: bool,
    started: Time,
    started_at: u64,
}

impl Sync {
    pub(super) fn has_rebuilt(&self, id: MemberId, unit: UnitId) -> bool {
        self.target == Some(id) && unit.0 < self.base
    }

    pub(super) fn target(&self) -> Option<MemberId> {
        self.target
    }

    pub(super) fn reached(&self) -> UnitId {
        UnitId(self.base)
    }

    pub(super) fn total(&self) -> u64 {
        self.total
    }

    pub(super) fn step(&self) -> SyncStep {
        self.step
    }

    /// Units done since the walk was started, and when that was.
    pub(super) fn progress(&self) -> (u64, Time) {
        (self.base - self.started_at, self.started)
    }

    fn done(&mut self, unit: UnitId) {
        if let Some(done) =
            unit.0.checked_sub(self.base).and_then(|index| self.window.get_mut(index as usize))
        {
            *done = true;
            self.in_flight -= 1;
        }
        while self.window.front() == Some(&true) {
            self.window.pop_front();
            self.base += 1;
        }
    }
}

impl Array {
    /// True if the redundancy of `unit` may not match its data.
    pub(super) fn is_unsynced(&self, unit: UnitId) -> bool {
        match (&self.meta.resync, &self.sync) {
            (None, _) => false,
            (Some(_), Some(sync)) if sync.step == SyncStep::Resync => unit.0 >= sync.base,
            (Some(bytes), _) => unit >= self.layout.unit_after(*bytes),
        }
    }

    /// Starts the next walk, or feeds the one under way.
    pub(super) fn pump_sync(&mut self) {
        if !self.phase.is_serving() || self.failed {
            return;
        }
        if self.sync.is_none() {
            self.start_sync();
        }
        let busy = self.parents.len() > 0;
        let unit_bytes = u64::from(self.layout.unit_rows()) * (self.layout.slots() as u64 + 1);
        let window = if busy { WINDOW_BUSY } else { WINDOW_IDLE }.min(WINDOW_BYTES / unit_bytes).max(1);
        let Some(sync) = &mut self.sync else { return };
        if sync.base == sync.total && !sync.ending {
            sync.ending = true;
            return self.begin_flush(Purpose::SyncDone);
        }
        // Refilled in bulk, so that neighbours are merged into large transfers.
        if sync.in_flight > window / 2 {
            return;
        }
        let (step, walk) = (sync.step, sync.walk);
        let next = sync.base + sync.window.len() as u64;
        let end = (next + window - sync.in_flight).min(sync.base + 4 * window).min(sync.total);
        for unit in next..end {
            sync.window.push_back(false);
            sync.in_flight += 1;
            self.units.push(UnitId(unit), Work::Sync { step, walk });
        }
    }

    /// Chooses what to do: redundancy first, then a member that is being rebuilt, then a spare for a free slot.
    fn start_sync(&mut self) {
        let total = self.layout.units(self.meta.data_bytes);
        if let Some(bytes) = self.meta.resync {
            let base = self.layout.unit_after(bytes).0.min(total);
            self.walk(SyncStep::Resync, None, total, base);
            return self.event(Event::ResyncStarted);
        }
        let rebuilding = self.layout.all_slots().find(|&slot| self.is_rebuilding(self.id_at(slot)));
        if let Some(slot) = rebuilding.or_else(|| self.give_slot_to_spare()) {
            let id = self.id_at(slot);
            let member = &mut self.members[id.0];
            if member.rebuild_given_up {
                return;
            }
            let base = self.layout.unit_after(member.rebuilt_bytes).0.min(total);
            let device = member.device.clone();
            self.walk(SyncStep::Rebuild(slot), Some(id), total, base);
            self.event(Event::RebuildStarted { device, slot });
        }
    }

    fn walk(&mut self, step: SyncStep, target: Option<MemberId>, total: u64, base: u64) {
        self.walks += 1;
        self.sync = Some(Sync {
            step,
            walk: self.walks,
            target,
            total,
            base,
            window: VecDeque::new(),
            in_flight: 0,
            ending: false,
            started: self.clock.now(),
            started_at: base,
        });
    }

    /// Puts a spare in the place of a member that is out. Its superblock says so before it holds anything.
    fn give_slot_to_spare(&mut self) -> Option<Slot> {
        let vacant = self.layout.all_slots().find(|&slot| self.member_of(slot).state.is_out())?;
        let is_spare =
            |id: &MemberId| self.members[id.0].state == MemberState::Spare && self.members[id.0].is_live();
        let spare = (0..self.members.len()).map(MemberId).find(is_spare)?;
        let old = &mut self.members[self.slots[vacant.index()].0];
        old.slot = None;
        // A device that is here stays listed as faulty until it is removed; one that is not is forgotten.
        old.forgotten |= old.device.is_empty();
        let new = &mut self.members[spare.0];
        new.slot = Some(vacant);
        new.state = MemberState::Rebuilding;
        new.rebuilt_bytes = 0;
        self.slots[vacant.index()] = spare;
        self.commit.request();
        Some(vacant)
    }

    pub(super) fn sync_step_done(&mut self, unit: UnitId, walk: u64, error: Option<ErrorKind>) {
        let Some(sync) = &mut self.sync else { return };
        if sync.walk != walk {
            return;
        }
        match (error, sync.target) {
            (None, _) | (Some(_), None) => sync.done(unit),
            (Some(_), Some(target)) => {
                let bytes = self.layout.member_bytes_before(unit);
                let reason = format!("what it needs at {bytes} bytes into the members cannot be read");
                let device = self.members[target.0].device.clone();
                self.members[target.0].rebuild_given_up = true;
                self.sync = None;
                self.event(Event::RebuildFailed { device, reason });
            }
        }
    }

    /// All is done and flushed.
    pub(super) fn end_sync(&mut self) {
        let Some(sync) = self.sync.take_if(|sync| sync.ending) else { return };
        match (sync.step, sync.target) {
            (SyncStep::Rebuild(slot), Some(id)) => {
                let member = &mut self.members[id.0];
                member.state = MemberState::InSync;
                member.rebuilt_bytes = 0;
                let device = member.device.clone();
                self.event(Event::RebuildFinished { device: device.clone() });
                self.event(Event::SpareActive { device, slot });
            }
            _ => {
                self.meta.resync = None;
                self.event(Event::ResyncFinished);
            }
        }
        self.commit.request();
        self.look_at_health();
    }

    /// A member failed: a walk that fills it ends, and so does a resync that it took part in; the next walk
    /// starts where the array then is.
    pub(super) fn stop_sync_without(&mut self, id: MemberId, why: SyncStop) {
        let Some(sync) = &self.sync else { return };
        let parity_is_moot = sync.step == SyncStep::Resync && self.layout.parity_algorithm().is_some();
        if why == SyncStop::ArrayFailed
            || sync.target == Some(id)
            || (parity_is_moot && self.members[id.0].slot.is_some())
        {
            self.sync = None;
        }
    }
}
