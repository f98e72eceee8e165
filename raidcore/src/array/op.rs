//! The executor: runs the plan of one operation on one unit.
//!
//! Reads go out together; when the last is back, the steps that compute run; then the writes go out together; when the
//! last is back, the pieces are answered. It decides nothing: a failed read sends the operation back to
//! planning with that member avoided; a failed write fails its member, and the answer waits for the commit.

use super::assemble::SCRATCH_ROW_BLOCKS;
use super::member::MemberId;
use super::plan::{
    Access, Compute, Mem, Plan, SlotSet, Span, Term, plan_read, plan_rebuild, plan_resync, plan_write,
    plan_zero,
};
use super::plug::{Io, Outcome, Piece};
use super::sync::SYNC_ROW;
use super::sync::SyncStep;
use super::unit::Work;
use super::{Array, Event, Owner};
use crate::buf::{Buf, View};
use crate::dev::{ErrorKind, IoError, OpKind};
use crate::layout::{Slot, UnitId};
use crate::parity;
use crate::slots::Key;
use smallvec::SmallVec;

/// Scratch buffers that one operation may take while it could be split.
const MAX_BATCH_SCRATCH: usize = SCRATCH_ROW_BLOCKS / 2;

/// A scratch buffer's way through an operation.
enum Scratch {
    /// Writable: not yet read into, or read.
    Buf(Buf),
    /// Read-only: being written to members.
    View(View),
    /// With a member's read.
    Away,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum OpPhase {
    Reading,
    Writing,
}

/// An operation under way on a unit.
pub(super) struct UnitOp {
    unit: UnitId,
    works: Vec<Work>,
    plan: Plan,
    scratch: Vec<Scratch>,
    phase: OpPhase,
    /// Member I/Os outstanding in this phase.
    left: usize,
    /// Members not to be read in this unit: a block of theirs turned out bad.
    avoid: SlotSet,
    /// A read of this phase failed: plan again.
    replan: bool,
    error: Option<ErrorKind>,
}

impl UnitOp {
    fn unplanned(unit: UnitId, works: Vec<Work>) -> UnitOp {
        UnitOp {
            unit,
            works,
            plan: Plan::default(),
            scratch: Vec::new(),
            phase: OpPhase::Reading,
            left: 0,
            avoid: SlotSet::default(),
            replan: false,
            error: None,
        }
    }
}

impl Array {
    /// Plans a batch and starts it, or puts it back if it has to wait.
    pub(super) fn start_op(&mut self, unit: UnitId, works: Vec<Work>) {
        let writes = works.iter().any(Work::is_client_write);
        if writes && self.failed {
            return self.end_batch(unit, works, Some(ErrorKind::ArrayFailed));
        }
        if writes && !self.may_write() {
            return self.units.put_back(unit, works, false);
        }
        let mut avoid = SlotSet::default();
        for work in &works {
            if let Work::Read { avoid: bad, .. } = work {
                avoid = avoid.union(*bad);
            }
        }
        self.plan_and_start(unit, works, avoid);
    }

    fn plan_and_start(&mut self, unit: UnitId, mut works: Vec<Work>, avoid: SlotSet) {
        let Ok(plan) = self.plan_for(unit, &works, avoid) else {
            if works.len() > 1 {
                return self.units.put_back(unit, works, true);
            }
            if let Some(&Work::Sync { len, .. }) = works.first()
                && len > SYNC_ROW
            {
                return self.try_otherwise(UnitOp::unplanned(unit, works));
            }
            let kind = if self.failed { ErrorKind::ArrayFailed } else { ErrorKind::Medium };
            return self.end_batch(unit, works, Some(kind));
        };
        let Some(scratch) = self.scratch_for(&plan, &mut works) else {
            // Memory comes back when other operations end. One piece always fits when none is under way; of many
            // together that need more than a fair part of it, the next try takes one.
            let one_by_one = works.len() > 1 && plan.scratch.len() > MAX_BATCH_SCRATCH;
            return self.units.put_back(unit, works, one_by_one);
        };
        let op = UnitOp { plan, scratch, avoid, ..UnitOp::unplanned(unit, works) };
        let key = self.ops.insert(op);
        self.issue_reads(key);
    }

    fn plan_for(
        &self,
        unit: UnitId,
        works: &[Work],
        avoid: SlotSet,
    ) -> Result<Plan, super::plan::Unreadable> {
        let access = self.access(unit);
        let access = Access { unreadable: access.unreadable.union(avoid), ..access };
        let map = self.layout.unit_map(unit);
        let spans: SmallVec<[Span; 8]> = works.iter().filter_map(Work::span).collect();
        let rows = self.layout.unit_rows();
        match works.first() {
            Some(Work::Read { .. }) => plan_read(&map, &spans, access, avoid),
            Some(Work::Write { .. }) => plan_write(&map, &spans, access),
            Some(Work::Zero { .. }) => plan_zero(&map, rows, access),
            Some(&Work::Sync { step: SyncStep::Resync, row, len, .. }) => {
                plan_resync(&map, row, len, access, avoid)
            }
            Some(&Work::Sync { step: SyncStep::Rebuild(slot), row, len, .. }) => {
                plan_rebuild(&map, row, len, slot, access)
            }
            None => Ok(Plan::default()),
        }
    }

    /// All memory of the plan or none, so that operations never wait for each other's.
    fn scratch_for(&self, plan: &Plan, works: &mut [Work]) -> Option<Vec<Scratch>> {
        for work in works {
            if let Work::Read { buf: buf @ None, span, .. } = work {
                *buf = Some(self.slab.alloc(span.len as usize).ok()?);
            }
        }
        let alloc = |&len: &u32| self.scratch.alloc(len as usize).map(Scratch::Buf).ok();
        plan.scratch.iter().map(alloc).collect()
    }

    fn issue_reads(&mut self, key: Key) {
        let Some(op) = self.ops.get_mut(key) else { return };
        op.left = op.plan.reads.len();
        for step in &op.plan.reads {
            let member = self.slots[step.home.slot.index()];
            if let Scratch::Buf(buf) = std::mem::replace(&mut op.scratch[step.into], Scratch::Away) {
                let owner = Owner::OpRead { op: key, scratch: step.into as u32, member };
                let offset = self.meta.data_offset + step.home.offset;
                self.members[member.0].push(Piece { owner, offset, io: Io::Read(buf) });
            }
        }
        self.after_reads(key);
    }

    pub(super) fn on_op_read(&mut self, outcome: Outcome, key: Key, scratch: u32, member: MemberId) {
        let Outcome { result, buf, .. } = outcome;
        let avoid = match &result {
            Ok(()) => SlotSet::default(),
            Err(error) => self.note_read_error(member, error),
        };
        let Some(op) = self.ops.get_mut(key) else { return };
        if let Some(buf) = buf {
            op.scratch[scratch as usize] = Scratch::Buf(buf);
        }
        op.avoid = op.avoid.union(avoid);
        op.replan |= result.is_err();
        op.left -= 1;
        self.after_reads(key);
    }

    fn after_reads(&mut self, key: Key) {
        let Some(op) = self.ops.get_mut(key) else { return };
        if op.left > 0 || op.phase != OpPhase::Reading {
            return;
        }
        if op.replan {
            if let Some(op) = self.ops.remove(key) {
                self.try_otherwise(op);
            }
            return;
        }
        compute(op);
        self.issue_writes(key);
    }

    /// A read of the operation failed. A background step over many rows goes on row by row, so that one bad
    /// block costs only its own row; anything else is planned again without that member.
    fn try_otherwise(&mut self, op: UnitOp) {
        match op.works.first() {
            Some(&Work::Sync { step, walk, row, len }) if len > SYNC_ROW => {
                let rows = (row..row + len).step_by(SYNC_ROW as usize);
                rows.clone()
                    .for_each(|row| self.queue(op.unit, Work::Sync { step, walk, row, len: SYNC_ROW }));
                self.sync_step_split(op.unit, walk, rows.count());
                self.end_batch(op.unit, op.works, None);
            }
            _ => self.plan_and_start(op.unit, op.works, op.avoid),
        }
    }

    fn issue_writes(&mut self, key: Key) {
        let Some(op) = self.ops.get_mut(key) else { return };
        op.phase = OpPhase::Writing;
        let fua = op
            .works
            .iter()
            .any(|work| matches!(work, Work::Write { fua: true, .. } | Work::Zero { fua: true, .. }));
        let unmap = op.works.iter().all(|work| matches!(work, Work::Zero { unmap: true, .. }));
        let mut ios: SmallVec<[(Slot, u64, Io); 8]> = SmallVec::new();
        for index in 0..op.plan.writes.len() {
            let step = op.plan.writes[index];
            if step
                .unless_equal
                .is_some_and(|present| *bytes_of(op, Mem::Scratch(present)) == *bytes_of(op, step.from))
            {
                continue;
            }
            if let Some(data) = view_of(op, step.from) {
                ios.push((step.home.slot, step.home.offset, Io::Write { data, fua }));
            }
        }
        for step in &op.plan.zeroes {
            ios.push((step.home.slot, step.home.offset, Io::Zero { len: u64::from(step.len), fua, unmap }));
        }
        op.left = ios.len();
        for (slot, offset, io) in ios {
            let member = self.id_at(slot);
            let owner = Owner::OpWrite { op: key, member };
            let offset = self.meta.data_offset + offset;
            self.members[member.0].push(Piece { owner, offset, io });
        }
        self.after_writes(key);
    }

    pub(super) fn on_op_write(&mut self, outcome: Outcome, key: Key, member: MemberId) {
        let error = match &outcome.result {
            Ok(()) => None,
            Err(error) => self.note_write_error(member, error),
        };
        if error.is_some()
            && let Some(unit) = self.ops.get(key).map(|op| op.unit)
        {
            self.copy_again_from(unit);
        }
        let Some(op) = self.ops.get_mut(key) else { return };
        // A read has its data already; writing it back to a bad block is a favour that may fail.
        if !matches!(op.works.first(), Some(Work::Read { .. })) {
            op.error = op.error.or(error);
        }
        op.left -= 1;
        self.after_writes(key);
    }

    fn after_writes(&mut self, key: Key) {
        let Some(op) = self.ops.get(key) else { return };
        if op.left > 0 || op.phase != OpPhase::Writing {
            return;
        }
        // Rule 3: the write may lack a member that the superblocks do not yet say is out.
        let is_write = op.works.iter().any(Work::is_client_write);
        if is_write && self.commit.is_pending() && !self.failed {
            if let Some(op) = self.ops.get_mut(key) {
                op.scratch.clear();
            }
            self.awaiting_commit.push(key);
        } else {
            self.end_op(key);
        }
    }

    /// Ends the operations that waited for the commit which is now done.
    pub(super) fn end_awaiting(&mut self) {
        for key in std::mem::take(&mut self.awaiting_commit) {
            self.end_op(key);
        }
    }

    fn end_op(&mut self, key: Key) {
        let Some(op) = self.ops.remove(key) else { return };
        self.tell_healed(&op);
        let is_write = op.works.iter().any(Work::is_client_write);
        let failed = (is_write && self.failed).then_some(ErrorKind::ArrayFailed);
        self.end_batch(op.unit, op.works, op.error.or(failed));
    }

    /// A block that could not be read, and was written back to a member that is still in, is healed.
    fn tell_healed(&mut self, op: &UnitOp) {
        if !matches!(op.works.first(), Some(Work::Read { .. })) {
            return;
        }
        for step in &op.plan.writes {
            let member = self.member_of(step.home.slot);
            let Some(len) = (match step.from {
                Mem::Scratch(index) if member.is_live() => op.plan.scratch.get(index).copied(),
                _ => None,
            }) else {
                continue;
            };
            let device = member.device.clone();
            let offset = self.meta.data_offset + step.home.offset;
            self.event(Event::ReadErrorCorrected { device, offset, len: u64::from(len) });
        }
    }

    /// Answers the pieces of a batch and lets the next one of the unit go.
    fn end_batch(&mut self, unit: UnitId, works: Vec<Work>, error: Option<ErrorKind>) {
        let writes = works.iter().filter(|work| work.is_client_write()).count();
        self.units.finished(unit, writes);
        let result = |kind: OpKind| match error {
            Some(why) => Err(IoError::new(why, kind, 0, 0)),
            None => Ok(()),
        };
        for work in works {
            match work {
                Work::Read { parent, part, buf, .. } => {
                    self.read_done(parent, part, buf, result(OpKind::Read))
                }
                Work::Write { parent, .. } => self.piece_done(parent, result(OpKind::Write)),
                Work::Zero { parent, .. } => self.piece_done(parent, result(OpKind::WriteZeroes)),
                Work::Sync { walk, .. } => self.sync_step_done(unit, walk, error),
            }
        }
    }
}

/// The bytes a step reads.
fn bytes_of(op: &UnitOp, mem: Mem) -> &[u8] {
    match mem {
        Mem::Scratch(index) => match &op.scratch[index] {
            Scratch::Buf(buf) => buf,
            Scratch::View(view) => view,
            Scratch::Away => &[],
        },
        Mem::Span { span, from, len } => {
            let range = from as usize..(from + len) as usize;
            match &op.works[span] {
                Work::Write { data, .. } => &data[range],
                Work::Read { buf: Some(buf), .. } => &buf[range],
                Work::Read { .. } | Work::Zero { .. } | Work::Sync { .. } => &[],
            }
        }
    }
}

/// Memory of a write step, shared. A scratch buffer is frozen: nothing writes to it any more.
fn view_of(op: &mut UnitOp, mem: Mem) -> Option<View> {
    match mem {
        Mem::Span { span, from, len } => match &op.works[span] {
            Work::Write { data, .. } => Some(data.slice(from as usize, len as usize)),
            Work::Read { .. } | Work::Zero { .. } | Work::Sync { .. } => None,
        },
        Mem::Scratch(index) => {
            let view = match std::mem::replace(&mut op.scratch[index], Scratch::Away) {
                Scratch::Buf(buf) => buf.freeze(),
                Scratch::View(view) => view,
                Scratch::Away => return None,
            };
            op.scratch[index] = Scratch::View(view.clone());
            Some(view)
        }
    }
}

fn compute(op: &mut UnitOp) {
    for step in std::mem::take(&mut op.plan.sums) {
        match step {
            Compute::Sum { dst, terms } => run_sum(op, dst, &terms),
            Compute::Parities { p, q, columns } => run_parities(op, p, q, &columns),
        }
    }
}

/// Takes the destination out of the operation, so that it can be written while the sources are read. Plans
/// never name a destination among its own sources.
fn run_sum(op: &mut UnitOp, dst: Mem, terms: &[Term]) {
    match dst {
        Mem::Scratch(index) => {
            let Some(mut dst) = take_scratch(op, index) else { return };
            sum(op, &mut dst, terms);
            op.scratch[index] = Scratch::Buf(dst);
        }
        Mem::Span { span, from, len } => {
            let Work::Read { buf, .. } = &mut op.works[span] else { return };
            let Some(mut dst) = buf.take() else { return };
            sum(op, &mut dst[from as usize..(from + len) as usize], terms);
            if let Work::Read { buf, .. } = &mut op.works[span] {
                *buf = Some(dst);
            }
        }
    }
}

fn run_parities(op: &mut UnitOp, p: usize, q: usize, columns: &[Mem]) {
    let Some(mut p_buf) = take_scratch(op, p) else { return };
    if let Some(mut q_buf) = take_scratch(op, q) {
        parities(op, &mut p_buf, &mut q_buf, columns);
        op.scratch[q] = Scratch::Buf(q_buf);
    }
    op.scratch[p] = Scratch::Buf(p_buf);
}

fn take_scratch(op: &mut UnitOp, index: usize) -> Option<Buf> {
    match std::mem::replace(&mut op.scratch[index], Scratch::Away) {
        Scratch::Buf(buf) => Some(buf),
        Scratch::View(_) | Scratch::Away => None,
    }
}

fn parities(op: &UnitOp, p: &mut [u8], q: &mut [u8], columns: &[Mem]) {
    let columns: SmallVec<[&[u8]; 16]> = columns.iter().map(|&mem| bytes_of(op, mem)).collect();
    parity::pq_into(p, q, &columns);
}

fn sum(op: &UnitOp, dst: &mut [u8], terms: &[Term]) {
    if terms.iter().all(|term| term.factor == 1) {
        let sources: SmallVec<[&[u8]; 16]> = terms.iter().map(|term| bytes_of(op, term.source)).collect();
        return parity::xor_into(dst, &sources);
    }
    let terms: SmallVec<[parity::Scaled; 16]> =
        terms.iter().map(|term| (term.factor, bytes_of(op, term.source))).collect();
    parity::combine_into(dst, &terms);
}
