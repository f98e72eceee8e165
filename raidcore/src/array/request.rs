//! Requests of the caller: cut into pieces, counted down, answered.

use super::member::MemberId;
use super::plan::{SlotSet, Span};
use super::plug::{Io, Outcome, Piece};
use super::unit::Work;
use super::{Array, Owner};
use crate::buf::{Buf, BufList, View, ViewList};
use crate::dev::{Completion, ErrorKind, IoError, Op, OpKind, Request, Tag};
use crate::layout::{Home, UnitId, UnitMap};
use crate::slots::Key;
use crate::time::Time;
use smallvec::SmallVec;
use std::time::Duration;

/// How often the deadlines of the callers' requests are looked at.
const DEADLINE_TICK: Duration = Duration::from_millis(50);
/// Units of one large write-zeroes that are under way at once: its length does not decide how much memory it takes.
const WALK_UNITS: u32 = 256;

/// A request of the caller. It ends when `left` pieces have.
pub(super) struct Parent {
    pub(super) tag: Tag,
    kind: OpKind,
    extent: (u64, u64),
    left: u32,
    error: Option<IoError>,
    /// Memory of a read, piece by piece, as it comes back.
    parts: SmallVec<[Option<Buf>; 2]>,
    deadline: Time,
    /// Its deadline passed and the caller has been told; the pieces end into nothing.
    answered: bool,
    /// What of a write-zeroes is not yet under way.
    walk: Option<Walk>,
}

/// A piece of a read that went straight to its home.
pub(super) struct ReadPiece {
    pub(super) parent: Key,
    pub(super) part: u32,
    pub(super) unit: UnitId,
    pub(super) span: Span,
}

struct Walk {
    next: u64,
    end: u64,
    fua: bool,
    unmap: bool,
}

impl Array {
    /// Takes a request. Nothing is submitted to a member here: pieces are queued, and `run` starts them.
    pub(super) fn begin(&mut self, request: Request) {
        let Request { tag, op, deadline } = request;
        if let Err(error) = self.admit(&op) {
            self.finished.push(Completion::refused(tag, op, error));
            return;
        }
        let (kind, extent) = (op.kind(), op.extent());
        if self.parents.len() == 0 {
            self.next_deadline_check = self.clock.now() + DEADLINE_TICK;
        }
        let parent = self.parents.insert(Parent {
            tag,
            kind,
            extent,
            left: 1,
            error: None,
            parts: SmallVec::new(),
            deadline,
            answered: false,
            walk: None,
        });
        match op {
            Op::Read { offset, bufs } => self.begin_read(parent, offset, bufs),
            Op::Write { offset, data, fua } => self.begin_write(parent, offset, data, fua),
            Op::Flush => return self.flush_for(parent),
            Op::Discard { offset, len } => self.begin_discard(parent, offset, len),
            Op::WriteZeroes { offset, len, fua, unmap } => {
                self.begin_walk(parent, Walk { next: offset, end: offset + len, fua, unmap });
            }
        }
        // The piece that stood for "still being cut".
        self.piece_done(parent, Ok(()));
    }

    /// The array is public, so it relies on no wrapper: a write past its end would hit superblocks.
    fn admit(&self, op: &Op) -> Result<(), IoError> {
        self.geometry.check(op)?;
        let (offset, len) = op.extent();
        let kind = if !self.phase.is_serving() {
            ErrorKind::Stopped
        } else if self.parents.len() >= crate::limits::ARRAY_QUEUE_DEPTH as usize {
            ErrorKind::Busy
        } else if self.failed && (op.is_write() || matches!(op, Op::Flush)) {
            ErrorKind::ArrayFailed
        } else {
            return Ok(());
        };
        Err(IoError::new(kind, op.kind(), offset, len))
    }

    fn begin_read(&mut self, parent: Key, mut offset: u64, bufs: BufList) {
        for mut buf in bufs {
            while !buf.is_empty() {
                let place = self.layout.place(offset);
                let len = buf.len().min((self.layout.unit_rows() - place.row) as usize);
                let span = Span { column: place.column, row: place.row, len: len as u32 };
                offset += len as u64;
                // A whole buffer moves; splitting one costs a count.
                if len == buf.len() {
                    self.add_read_piece(parent, place.unit, span, buf);
                    break;
                }
                self.add_read_piece(parent, place.unit, span, buf.split_to(len));
            }
        }
    }

    fn add_read_piece(&mut self, parent: Key, unit: UnitId, span: Span, buf: Buf) {
        let Some(entry) = self.parents.get_mut(parent) else { return };
        entry.left += 1;
        entry.parts.push(None);
        let part = (entry.parts.len() - 1) as u32;
        self.route_read(parent, part, unit, span, buf);
    }

    /// Sends a piece of a read to its home, or to its unit's queue if that cannot be read.
    fn route_read(&mut self, parent: Key, part: u32, unit: UnitId, span: Span, buf: Buf) {
        match self.home_to_read(unit, span.column) {
            Some(home) => {
                let member = self.id_at(home.slot);
                let owner = Owner::Read { parent, part, unit, span, member };
                let offset = self.meta.data_offset + home.offset + u64::from(span.row);
                self.members[member.0].push(Piece { owner, offset, io: Io::Read(buf) });
            }
            None => {
                let avoid = SlotSet::default();
                self.queue(unit, Work::Read { parent, part, span, buf: Some(buf), avoid });
            }
        }
    }

    /// Where a column is read without reconstruction: the least loaded copy that may be read.
    fn home_to_read(&self, unit: UnitId, column: usize) -> Option<Home> {
        if self.layout.copies() == 1 {
            let home = self.layout.column_home(unit, column);
            return (self.all_well || self.is_readable(home.slot, unit)).then_some(home);
        }
        let UnitMap::Copies(homes) = self.layout.unit_map(unit) else { return None };
        let readable = |home: &&Home| self.all_well || self.is_readable(home.slot, unit);
        if self.is_unsynced(unit) {
            // The copies may differ: one of them is the truth until the resync has been here.
            return homes.iter().find(readable).copied();
        }
        // Among equals the unit decides, so that a sequential reader uses all copies and each in long runs.
        let turn = unit.0 as usize % homes.len();
        let in_turn = homes[turn..].iter().chain(&homes[..turn]);
        in_turn.filter(readable).min_by_key(|home| self.member_of(home.slot).plug.load()).copied()
    }

    pub(super) fn on_plain_read(&mut self, outcome: Outcome, piece: ReadPiece, member: MemberId) {
        let ReadPiece { parent, part, unit, span } = piece;
        let Outcome { result, buf, .. } = outcome;
        let Err(error) = result else { return self.read_done(parent, part, buf, Ok(())) };
        let avoid = self.note_read_error(member, &error);
        if !self.layout.level().is_redundant() {
            return self.read_done(parent, part, buf, Err(error));
        }
        self.queue(unit, Work::Read { parent, part, span, buf, avoid });
    }

    /// A piece of a read has its memory back.
    pub(super) fn read_done(
        &mut self,
        parent: Key,
        part: u32,
        buf: Option<Buf>,
        result: Result<(), IoError>,
    ) {
        if let Some(entry) = self.parents.get_mut(parent) {
            entry.parts[part as usize] = buf;
        }
        self.piece_done(parent, result);
    }

    fn begin_write(&mut self, parent: Key, offset: u64, data: ViewList, fua: bool) {
        self.note_write();
        let mut at = offset;
        for view in data {
            let mut from = 0;
            while from < view.len() {
                let place = self.layout.place(at);
                let len = (view.len() - from).min((self.layout.unit_rows() - place.row) as usize);
                let piece = view.slice(from, len);
                let span = Span { column: place.column, row: place.row, len: len as u32 };
                self.write_piece(parent, place.unit, span, piece, fua);
                from += len;
                at += len as u64;
            }
        }
    }

    fn write_piece(&mut self, parent: Key, unit: UnitId, span: Span, data: View, fua: bool) {
        self.add_piece(parent);
        if self.layout.level().is_redundant() {
            self.queue(unit, Work::Write { parent, span, data, fua });
        } else {
            self.push_plain(parent, unit, span, Io::Write { data, fua });
        }
    }

    /// RAID0: nothing to keep in step, so nothing to queue for.
    fn push_plain(&mut self, parent: Key, unit: UnitId, span: Span, io: Io) {
        let home = self.layout.column_home(unit, span.column);
        let offset = self.meta.data_offset + home.offset + u64::from(span.row);
        let member = self.id_at(home.slot);
        self.members[member.0].push(Piece { owner: Owner::Write { parent, member }, offset, io });
    }

    pub(super) fn on_plain_write(&mut self, outcome: Outcome, parent: Key, member: MemberId) {
        let result = match outcome.result {
            Ok(()) => Ok(()),
            Err(error) => {
                let kind = self.note_write_error(member, &error).unwrap_or(error.kind);
                Err(IoError { kind, ..error })
            }
        };
        self.piece_done(parent, result);
    }

    /// A discard frees what can be freed without leaving redundancy undefined: whole stripes, as zeroes. Where
    /// the members cannot do that cheaply, it does nothing, which is a right answer to advice.
    fn begin_discard(&mut self, parent: Key, offset: u64, len: u64) {
        if !self.geometry.discard {
            return;
        }
        let step = self.zero_step_bytes();
        let (first, end) = (offset.next_multiple_of(step), (offset + len) / step * step);
        if first < end {
            self.begin_walk(parent, Walk { next: first, end, fua: false, unmap: true });
        }
    }

    /// Addresses that a set of whole units covers without a gap: a chunk of each data column.
    pub(super) fn zero_step_bytes(&self) -> u64 {
        self.layout.columns() as u64 * u64::from(self.layout.chunk_bytes())
    }

    fn begin_walk(&mut self, parent: Key, walk: Walk) {
        self.note_write();
        if let Some(entry) = self.parents.get_mut(parent) {
            entry.walk = Some(walk);
        }
        self.feed_walk(parent);
    }

    /// Brings up to `WALK_UNITS` pieces of a write-zeroes under way.
    fn feed_walk(&mut self, parent: Key) {
        loop {
            let Some(entry) = self.parents.get_mut(parent) else { return };
            let Some(walk) = &mut entry.walk else { return };
            if walk.next >= walk.end || entry.error.is_some() {
                entry.walk = None;
                return;
            }
            if entry.left > WALK_UNITS {
                return;
            }
            let (at, end, fua, unmap) = (walk.next, walk.end, walk.fua, walk.unmap);
            let len = self.zero_step(parent, at, end, fua, unmap);
            if let Some(Walk { next, .. }) = self.parents.get_mut(parent).and_then(|p| p.walk.as_mut()) {
                *next += len;
            }
        }
    }

    /// Brings the zeroing of some bytes from `at` on under way and returns how many.
    fn zero_step(&mut self, parent: Key, at: u64, end: u64, fua: bool, unmap: bool) -> u64 {
        let place = self.layout.place(at);
        let step = self.zero_step_bytes();
        if self.layout.level().is_redundant() && at.is_multiple_of(step) && end - at >= step {
            let units = u64::from(self.layout.chunk_bytes() / self.layout.unit_rows());
            for unit in place.unit.0..place.unit.0 + units {
                self.add_piece(parent);
                self.queue(UnitId(unit), Work::Zero { parent, fua, unmap });
            }
            return step;
        }
        let len = (end - at).min(u64::from(self.layout.unit_rows() - place.row));
        let span = Span { column: place.column, row: place.row, len: len as u32 };
        if self.layout.level().is_redundant() {
            let data = self.zeroes.slice(0, len as usize);
            self.write_piece(parent, place.unit, span, data, fua);
        } else {
            self.add_piece(parent);
            self.push_plain(parent, place.unit, span, Io::Zero { len, fua, unmap });
        }
        len
    }

    fn note_write(&mut self) {
        self.last_write = self.clock.now();
        self.writes_begun += 1;
    }

    fn add_piece(&mut self, parent: Key) {
        if let Some(entry) = self.parents.get_mut(parent) {
            entry.left += 1;
        }
    }

    /// Counts a piece down; the last one answers the request.
    pub(super) fn piece_done(&mut self, parent: Key, result: Result<(), IoError>) {
        let Some(entry) = self.parents.get_mut(parent) else { return };
        if let Err(error) = result {
            entry.error.get_or_insert(error);
        }
        entry.left -= 1;
        if entry.walk.is_some() {
            // Refill in bulk, so that pieces that lie side by side are merged.
            if entry.left <= WALK_UNITS / 2 {
                entry.left += 1;
                self.feed_walk(parent);
                self.piece_done(parent, Ok(()));
            }
            return;
        }
        if entry.left == 0
            && let Some(entry) = self.parents.remove(parent)
        {
            self.answer(entry);
        }
    }

    fn answer(&mut self, parent: Parent) {
        let Parent { tag, kind, extent, error, parts, answered, .. } = parent;
        if answered {
            return;
        }
        // Errors speak in the addresses of the array, not of the member they came from.
        let result = match error {
            Some(error) => Err(IoError { op: kind, offset: extent.0, len: extent.1, ..error }),
            None => Ok(()),
        };
        self.finished.push(Completion { tag, result, bufs: join(parts) });
    }

    /// Answers requests whose deadline has passed. What they had under way ends into nothing.
    pub(super) fn check_deadlines(&mut self) {
        let now = self.clock.now();
        if now < self.next_deadline_check || self.parents.len() == 0 {
            return;
        }
        self.next_deadline_check = now + DEADLINE_TICK;
        let is_late = |parent: &Parent| parent.deadline <= now && !parent.answered;
        let late: Vec<Key> = self.parents.iter().filter(|(_, p)| is_late(p)).map(|(key, _)| key).collect();
        for key in late {
            self.give_up(key, ErrorKind::Timeout);
        }
    }

    /// A request whose pieces cannot be recalled ends for its caller now.
    pub(super) fn cancel_request(&mut self, tag: Tag) {
        let found = self.parents.iter().find(|(_, parent)| parent.tag == tag && !parent.answered);
        if let Some(key) = found.map(|(key, _)| key) {
            self.give_up(key, ErrorKind::Canceled);
        }
    }

    fn give_up(&mut self, key: Key, kind: ErrorKind) {
        let is_ordered = self.layout.level().is_redundant();
        let Some(parent) = self.parents.get_mut(key) else { return };
        let (offset, len) = parent.extent;
        let error = IoError::new(kind, parent.kind, offset, len);
        // A walk stops here; what is under way finishes.
        parent.error.get_or_insert(error);
        // Rule 6: where no unit's queue orders writes, one that was given up must not land on a later one. Its
        // answer waits for its members, at most until their own deadline.
        if !is_ordered && matches!(parent.kind, OpKind::Write | OpKind::WriteZeroes | OpKind::Discard) {
            return;
        }
        parent.answered = true;
        let completion = Completion::new(parent.tag, Err(error));
        self.finished.push(completion);
    }
}

/// The memory of a read in order, as few handles as it came in.
fn join(parts: SmallVec<[Option<Buf>; 2]>) -> BufList {
    let mut list = BufList::new();
    for part in parts.into_iter().flatten() {
        match list.pop() {
            None => list.push(part),
            Some(mut last) => match last.unsplit(part) {
                Ok(()) => list.push(last),
                Err(part) => {
                    list.push(last);
                    list.push(part);
                }
            },
        }
    }
    list
}
