//! The background walk over all units: a resync of redundancy, or the rebuild of one member.
//!
//! Each unit is a step that queues at it like any work, so it never meets a client's operation half way, and
//! clients wait for the unit in work only. Steps run ahead in a window; what counts is the first unit that is
//! not done, `base`.
//!
//! Invariants: units below `base` are in sync (resync; but for rows that were told as unreadable) or right on the
//! target (rebuild), and stay so, for writes go to the target too; where a write left the target other than its
//! source, the walk goes back. Nothing is recorded in the superblocks that was not flushed first.

use super::member::MemberId;
use super::stop::Purpose;
use super::unit::Work;
use super::{Array, Event};
use crate::dev::ErrorKind;
use crate::layout::{Slot, UnitId};
use crate::meta::MemberState;
use crate::time::Time;
use std::collections::{HashMap, VecDeque};

/// Scratch memory the window may take.
const WINDOW_BYTES: u64 = 8 << 20;
/// Most units in the window while no client does I/O, and while one does.
const WINDOW_IDLE: u64 = 64;
const WINDOW_BUSY: u64 = 8;

/// Height of the rows that a step falls back to when it meets a block it cannot read.
pub(super) const SYNC_ROW: u32 = 4096;

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
    /// Units that go on row by row, and how many pieces of each are left.
    split: HashMap<UnitId, usize>,
    /// Rows that a resync had to leave as they are, and the first unit with one.
    left_rows: u64,
    first_left: Option<UnitId>,
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

    /// How far the superblocks may say that the walk has come: not past a row that it had to leave.
    pub(super) fn checkpoint(&self) -> UnitId {
        self.first_left.map_or(self.reached(), |first| first.min(self.reached()))
    }

    pub(super) fn walk(&self) -> u64 {
        self.walk
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

    /// A piece of the unit is done; with the last one, the unit is.
    fn piece_done(&mut self, unit: UnitId) {
        match self.split.get_mut(&unit) {
            Some(left) if *left > 1 => *left -= 1,
            _ => {
                self.split.remove(&unit);
                self.done(unit);
            }
        }
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
        self.unsynced_from().is_some_and(|from| unit >= from)
    }

    /// The first unit whose redundancy may not match its data; so may that of all after it.
    pub(super) fn unsynced_from(&self) -> Option<UnitId> {
        let recorded = self.meta.resync?;
        Some(match &self.sync {
            // From the first unit with a row that was left, nothing is taken for granted.
            Some(sync) if sync.step == SyncStep::Resync => sync.checkpoint(),
            _ => self.layout.unit_after(recorded),
        })
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
        let buffers = self.layout.slots() + self.layout.parities().max(1);
        let unit_bytes = u64::from(self.layout.unit_rows()) * buffers as u64;
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
            self.units.push(UnitId(unit), Work::Sync { step, walk, row: 0, len: self.layout.unit_rows() });
        }
    }

    /// Chooses what to do: redundancy first, then a member that is being rebuilt, then a spare for a free slot.
    fn start_sync(&mut self) {
        let total = self.layout.units(self.meta.data_bytes);
        let can_compare = self.layout.parity_algorithm().is_none() || self.has_redundancy();
        if let Some(bytes) = self.meta.resync
            && can_compare
            && !self.resync_given_up
        {
            let base = self.layout.unit_after(bytes).0.min(total);
            self.walk(SyncStep::Resync, None, total, base);
            return self.event(Event::ResyncStarted);
        }
        let is_due = |slot: &Slot| {
            let id = self.id_at(*slot);
            self.is_rebuilding(id) && !self.members[id.0].rebuild_given_up
        };
        let rebuilding = self.layout.all_slots().find(is_due);
        if let Some(slot) = rebuilding.or_else(|| self.give_slot_to_spare()) {
            let id = self.id_at(slot);
            let member = &mut self.members[id.0];
            let base = self.layout.unit_after(member.rebuilt_bytes).0.min(total);
            let device = member.device.clone();
            self.walk(SyncStep::Rebuild(slot), Some(id), total, base);
            self.event(Event::RebuildStarted { device, slot });
        }
    }

    pub(super) fn walk(&mut self, step: SyncStep, target: Option<MemberId>, total: u64, base: u64) {
        self.walks += 1;
        self.sync = Some(Sync {
            step,
            walk: self.walks,
            target,
            total,
            base,
            window: VecDeque::new(),
            in_flight: 0,
            split: HashMap::new(),
            left_rows: 0,
            first_left: None,
            ending: false,
            started: self.clock.now(),
            started_at: base,
        });
    }

    /// Puts a spare in the place of a member that is out. The superblocks will call it rebuilding from the start:
    /// before the first checkpoint, nothing on it counts.
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
            (None, _) => sync.piece_done(unit),
            (Some(_), None) => {
                sync.left_rows += 1;
                sync.first_left = sync.first_left.min(Some(unit)).or(Some(unit));
                sync.piece_done(unit);
            }
            (Some(_), Some(_)) => {
                let bytes = self.layout.member_bytes_before(unit);
                let reason = format!("what it needs at {bytes} bytes into the members cannot be read");
                if let Some(sync) = self.sync.take() {
                    self.give_up_sync(&sync, &reason);
                }
            }
        }
    }

    /// A step goes on as `pieces` further pieces of its unit.
    pub(super) fn sync_step_split(&mut self, unit: UnitId, walk: u64, pieces: usize) {
        if let Some(sync) = self.sync.as_mut().filter(|sync| sync.walk == walk) {
            // The step itself ends, too.
            sync.split.insert(unit, pieces + 1);
        }
    }

    /// A write failed on the only good copy and may have reached the target of a rebuild: the target is not what
    /// its source is from this unit on, until it has been copied again.
    pub(super) fn copy_again_from(&mut self, unit: UnitId) {
        let Some(sync) = &self.sync else { return };
        let (step, target, total) = (sync.step, sync.target, sync.total);
        if target.is_some() && unit.0 < sync.base {
            self.walk(step, target, total, unit.0);
        }
    }

    /// All is done and flushed, unless a member did not flush.
    pub(super) fn end_sync(&mut self, walk: u64, error: Option<ErrorKind>) {
        let Some(sync) = self.sync.take_if(|sync| sync.ending && sync.walk == walk) else { return };
        if error.is_some() {
            return self.give_up_sync(&sync, "a member could not make it durable");
        }
        match (sync.step, sync.target) {
            (SyncStep::Rebuild(slot), Some(id)) => {
                let member = &mut self.members[id.0];
                member.state = MemberState::InSync;
                member.rebuilt_bytes = 0;
                let device = member.device.clone();
                self.event(Event::RebuildFinished { device: device.clone() });
                self.event(Event::SpareActive { device, slot });
            }
            _ => self.end_resync(sync.left_rows, sync.first_left),
        }
        self.commit.request();
        self.look_at_health();
    }

    /// The walk cannot come to a good end. It is not begun again by itself.
    fn give_up_sync(&mut self, sync: &Sync, reason: &str) {
        match sync.target {
            Some(target) => {
                let member = &mut self.members[target.0];
                member.rebuild_given_up = true;
                let device = member.device.clone();
                self.event(Event::RebuildFailed { device, reason: reason.to_owned() });
            }
            None => {
                self.resync_given_up = true;
                self.event(Event::ResyncIncomplete { rows: sync.left_rows });
            }
        }
    }

    fn end_resync(&mut self, left_rows: u64, first_left: Option<UnitId>) {
        match first_left {
            None => {
                self.meta.resync = None;
                self.event(Event::ResyncFinished);
            }
            Some(unit) => {
                self.meta.resync = Some(self.layout.member_bytes_before(unit));
                self.resync_given_up = true;
                self.event(Event::ResyncIncomplete { rows: left_rows });
            }
        }
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
