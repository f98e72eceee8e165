//! What a RAID operation on one unit does, as data: reads, then parity, then writes.
//!
//! Planning is pure: it takes the unit's map, what is asked for and which members may be used, and returns
//! steps. It never looks at data and never does I/O. When a member fails under way, the executor notes it and
//! plans again.
//!
//! Invariants of every plan, each a property test:
//! - after its writes, the parity of every touched row is the XOR of all columns of that row (as far as the
//!   members exist), and no row that was not touched changes;
//! - it reads only members that are readable, and writes only members that are writable.

mod bands;
mod read;
mod sync;
mod write;

#[cfg(test)]
mod tests;

pub(super) use read::plan_read;
pub(super) use sync::{plan_rebuild, plan_resync};
pub(super) use write::{plan_write, plan_zero};

use crate::layout::{Home, Slot};
use smallvec::SmallVec;

/// A set of slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SlotSet(u64);

impl SlotSet {
    pub(super) fn insert(&mut self, slot: Slot) {
        self.0 |= 1 << slot.0;
    }

    pub(super) fn contains(self, slot: Slot) -> bool {
        self.0 >> slot.0 & 1 == 1
    }

    pub(super) fn union(self, other: SlotSet) -> SlotSet {
        SlotSet(self.0 | other.0)
    }
}

impl FromIterator<Slot> for SlotSet {
    fn from_iter<I: IntoIterator<Item = Slot>>(slots: I) -> SlotSet {
        let mut set = SlotSet::default();
        slots.into_iter().for_each(|slot| set.insert(slot));
        set
    }
}

/// What the members of a unit can be used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Access {
    /// Not to be read: missing, failed, not rebuilt so far, or with a bad block in this unit.
    pub(super) unreadable: SlotSet,
    /// Not to be written: missing or failed.
    pub(super) unwritable: SlotSet,
    /// The redundancy of the unit may not match its data: a resync has not come here yet.
    pub(super) unsynced: bool,
}

/// Rows of one column that a request covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) column: usize,
    pub(super) row: u32,
    pub(super) len: u32,
}

impl Span {
    pub(super) fn end(&self) -> u32 {
        self.row + self.len
    }

    pub(super) fn overlaps(&self, other: &Span) -> bool {
        self.column == other.column && self.row < other.end() && other.row < self.end()
    }
}

/// Memory a step works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mem {
    /// Scratch buffer number so-and-so, whole.
    Scratch(usize),
    /// `len` bytes from `from` on of the memory of span number `span`.
    Span { span: usize, from: u32, len: u32 },
}

/// Fill a scratch buffer from a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReadStep {
    pub(super) home: Home,
    pub(super) into: usize,
}

/// `dst` becomes the XOR of `sources`; of one source, a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct XorStep {
    pub(super) dst: Mem,
    pub(super) sources: SmallVec<[Mem; 8]>,
}

/// Write memory to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WriteStep {
    pub(super) home: Home,
    pub(super) from: Mem,
    /// Leave it if this scratch buffer, which holds what is on the member now, is equal to `from`.
    pub(super) unless_equal: Option<usize>,
}

/// Zero a range of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ZeroStep {
    pub(super) home: Home,
    pub(super) len: u32,
}

/// The steps. Phases run one after the other; the steps of a phase run together, but XOR steps in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Length of each scratch buffer, in bytes.
    pub(super) scratch: Vec<u32>,
    pub(super) reads: Vec<ReadStep>,
    pub(super) xors: Vec<XorStep>,
    pub(super) writes: Vec<WriteStep>,
    pub(super) zeroes: Vec<ZeroStep>,
}

/// The unit cannot be planned for: too many of its members are unreadable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unreadable;

impl Plan {
    fn new_scratch(&mut self, len: u32) -> usize {
        self.scratch.push(len);
        self.scratch.len() - 1
    }

    /// Reads `len` bytes at `home` into a new scratch buffer.
    fn read(&mut self, home: Home, len: u32) -> usize {
        let into = self.new_scratch(len);
        self.reads.push(ReadStep { home, into });
        into
    }

    fn write(&mut self, home: Home, from: Mem) {
        self.writes.push(WriteStep { home, from, unless_equal: None });
    }

    fn xor(&mut self, dst: Mem, sources: impl IntoIterator<Item = Mem>) {
        self.xors.push(XorStep { dst, sources: sources.into_iter().collect() });
    }
}

/// `home` moved down by `row` bytes.
fn at_row(home: Home, row: u32) -> Home {
    Home { slot: home.slot, offset: home.offset + u64::from(row) }
}
