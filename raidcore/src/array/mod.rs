//! The array: a [`BlockDev`] over members, with redundancy.
//!
//! A request is cut into pieces by the layout. Plain reads (and all of RAID0) go straight to their member.
//! What touches redundancy queues at its unit: one operation works on a unit at a time, and what waits there
//! meanwhile is merged into the next one. An operation runs a [`plan`]: reads, XOR, writes. Each member's
//! `plug` merges what arrives together. Beside them run the `commit` of superblocks and the background
//! `sync`.
//!
//! Invariants (numbers are those of the project's rules):
//! - No write is acknowledged without a member until the superblocks of the others say that it is out (3):
//!   while such a commit is pending, finished writes wait in `awaiting_commit`.
//! - No write to a redundant array is started before the superblocks say that it is dirty.
//! - A member is read only in units where it has every acknowledged write (4).
//! - One operation at a time works on a unit, so that data and parity change together.
//! - A failed device costs a member, a failed block a repair, never the process (7).
//!
//! The array does no I/O, reads no clock and starts no thread of its own: its driver calls
//! [`submit`](BlockDev::submit) and [`reap`](BlockDev::reap).

mod admin;
mod allocation;
mod assemble;
mod commit;
mod events;
mod failure;
mod grow;
mod health;
mod member;
mod op;
pub mod plan;
mod plug;
mod request;
mod status;
mod stop;
mod sync;
mod unit;

#[cfg(test)]
mod tests;

pub use admin::AdminError;
pub use assemble::{ArrayOptions, StartError};
pub use events::{Event, Severity};
pub use grow::{GrowError, GrowTo, Growth};
pub use health::{Health, HealthMap};
pub use member::ErrorCounts;
pub use status::{Action, ActionKind, ArrayStatus, MemberStatus};

use crate::buf::{Slab, View};
use crate::dev::{BlockDev, Completion, Geometry, Request, Tag};
use crate::layout::{Layout, Slot, UnitId};
use crate::meta::{ArrayMeta, MemberState};
use crate::slots::{Key, Slots};
use crate::time::{Clock, Time};
use commit::Commit;
use grow::Grow;
use member::{Member, MemberId};
use op::UnitOp;
use plan::{Access, Span};
use plug::Outcome;
use request::{Parent, ReadPiece};
use stop::{FlushJob, Phase};
use sync::Sync;
use unit::Units;

/// Turns of the inner loop in one `reap`: a bound, so that a device that completes at once cannot keep the
/// caller for ever. What is left is taken up by the next call, which `wake_at` asks for.
const MAX_TURNS: usize = 64;

/// Whom a member I/O is for.
#[derive(Clone, Copy, Debug)]
pub(in crate::array) enum Owner {
    /// A read that went straight to its home.
    Read { parent: Key, part: u32, unit: UnitId, span: Span, member: MemberId },
    /// A write that went straight to its home: RAID0.
    Write { parent: Key, member: MemberId },
    /// A read of an operation, into this scratch buffer.
    OpRead { op: Key, scratch: u32, member: MemberId },
    /// A write of an operation.
    OpWrite { op: Key, member: MemberId },
    /// A superblock of this commit.
    Commit { member: MemberId },
    /// A member's part of a flush.
    Flush { job: Key, member: MemberId },
    /// Zeroes over a superblock at the former end of a device that has grown.
    Erase { growth: u64, member: MemberId },
}

/// A running array. Lives on one thread and is driven by its caller.
pub struct Array {
    meta: ArrayMeta,
    layout: Layout,
    geometry: Geometry,
    options: ArrayOptions,
    clock: Clock,
    /// Where the memory of requests comes from, for reads whose memory a hung device keeps.
    slab: Slab,
    /// Memory of operations under way. It is apart from the clients' so that they cannot starve each other.
    scratch: Slab,
    /// Memory of superblocks on their way out: enough for one per member.
    superblock_memory: Slab,
    /// A unit's height of zeroes, written wherever zeroes are asked for.
    zeroes: View,

    members: Vec<Member>,
    /// The member in each slot.
    slots: Vec<MemberId>,
    /// No slot is missing, failed, rebuilding or out of sync: reads need no further look.
    all_well: bool,
    failed: bool,
    /// A resync is due because of an unclean stop, not because the array is new.
    in_doubt: bool,
    /// The stop could not mark the superblocks clean.
    unclean: bool,
    phase: Phase,

    parents: Slots<Parent>,
    units: Units,
    ops: Slots<UnitOp>,
    /// Operations that are done but for a commit.
    awaiting_commit: Vec<Key>,
    commit: Commit,
    grow: Option<Grow>,
    flushes: Slots<FlushJob>,
    /// Flush requests that arrived while one is under way; the next one serves them all.
    flushes_waiting: Vec<Key>,
    /// Flush requests that are done but for a commit.
    flushes_awaiting_commit: Vec<Key>,
    sync: Option<Sync>,
    /// A resync ended with rows that could not be read: it is not begun again by itself.
    resync_given_up: bool,
    /// How many walks there have been.
    walks: u64,
    /// How many growths there have been.
    growths: u64,
    /// When a write came last: an array that has been idle for a while is marked clean.
    last_write: Time,
    /// How many writes have come: tells if one came since a flush was begun.
    writes_begun: u64,

    outcomes: Vec<Outcome>,
    completions: Vec<Completion>,
    finished: Vec<Completion>,
    events: Vec<Event>,
    next_deadline_check: Time,
}

impl Array {
    /// Events since the last call, in order.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    fn event(&mut self, event: Event) {
        // Bounded, should no one ever take them: the oldest go first.
        if self.events.len() >= 4096 {
            self.events.remove(0);
        }
        self.events.push(event);
    }

    fn member_of(&self, slot: Slot) -> &Member {
        &self.members[self.slots[slot.index()].0]
    }

    /// What the members of `unit` can be used for now.
    fn access(&self, unit: UnitId) -> Access {
        if self.all_well {
            return Access::default();
        }
        let unsynced = self.is_unsynced(unit);
        let in_doubt = unsynced && self.in_doubt;
        let mut access = Access { unsynced, in_doubt, ..Access::default() };
        for slot in self.layout.all_slots() {
            if !self.is_readable(slot, unit) {
                access.unreadable.insert(slot);
            }
            if !self.member_of(slot).is_live() {
                access.unwritable.insert(slot);
            }
        }
        access
    }

    /// True if the member in `slot` has every acknowledged write to `unit`.
    fn is_readable(&self, slot: Slot, unit: UnitId) -> bool {
        let id = self.slots[slot.index()];
        match self.members[id.0].state {
            MemberState::InSync => true,
            MemberState::Rebuilding => self.sync.as_ref().is_some_and(|sync| sync.has_rebuilt(id, unit)),
            MemberState::Spare | MemberState::Faulty | MemberState::Missing => false,
        }
    }

    /// Takes up what the members completed, starts what can start, until nothing moves.
    fn run(&mut self) {
        for _ in 0..MAX_TURNS {
            let mut outcomes = std::mem::take(&mut self.outcomes);
            for member in &mut self.members {
                member.reap(
                    self.clock.now(),
                    self.options.member_deadline,
                    &mut self.completions,
                    &mut outcomes,
                );
            }
            let moved = !outcomes.is_empty();
            outcomes.drain(..).for_each(|outcome| self.on_outcome(outcome));
            self.outcomes = outcomes;

            self.pump_sync();
            self.start_units();
            self.pump_grow();
            self.pump_commit();
            self.pump_stop();
            let deadline = self.options.member_deadline;
            for member in &mut self.members {
                member.flush(&self.clock, deadline, &mut self.outcomes);
            }
            if !moved && self.outcomes.is_empty() {
                return;
            }
        }
    }

    fn on_outcome(&mut self, outcome: Outcome) {
        match outcome.owner {
            Owner::Read { parent, part, unit, span, member } => {
                let piece = ReadPiece { parent, part, unit, span };
                self.on_plain_read(outcome, piece, member);
            }
            Owner::Write { parent, member } => self.on_plain_write(outcome, parent, member),
            Owner::OpRead { op, scratch, member } => self.on_op_read(outcome, op, scratch, member),
            Owner::OpWrite { op, member } => self.on_op_write(outcome, op, member),
            Owner::Commit { member } => self.on_commit_written(outcome, member),
            Owner::Flush { job, member } => self.on_flushed(outcome, job, member),
            Owner::Erase { growth, member } => self.on_erased(outcome, growth, member),
        }
    }

    fn id_at(&self, slot: Slot) -> MemberId {
        self.slots[slot.index()]
    }
}

impl BlockDev for Array {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn submit(&mut self, request: Request) {
        self.begin(request);
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        self.run();
        self.check_deadlines();
        done.append(&mut self.finished);
    }

    fn cancel(&mut self, tag: Tag) {
        self.cancel_request(tag);
    }

    fn wake_at(&self) -> Option<Time> {
        let now_if = |pending: bool| pending.then(|| self.clock.now());
        let members = self.members.iter().filter_map(Member::wake_at).min();
        let deadlines = (self.parents.len() > 0).then_some(self.next_deadline_check);
        let pending = !self.finished.is_empty() || !self.outcomes.is_empty() || self.units.has_ready();
        [members, deadlines, now_if(pending), self.clean_at()].into_iter().flatten().min()
    }
}
