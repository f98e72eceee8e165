//! What a RAID operation on one unit does, as data: reads, then parity, then writes.
//!
//! Planning is pure: it takes the unit's map, what is asked for and which members may be used, and returns
//! steps. It never looks at data and never does I/O. When a member fails under way, the executor notes it and
//! plans again.
//!
//! Invariants of every plan, each a property test:
//! - after its writes, the parity of every touched row is that of all columns of that row (as far as the members
//!   exist), and no row that was not touched changes;
//! - it reads only members that are readable, and writes only members that are writable.

mod bands;
mod pq;
mod read;
mod sync;
mod write;

#[cfg(test)]
mod tests;

pub use read::plan_read;
pub use sync::{plan_rebuild, plan_resync};
pub use write::{plan_write, plan_zero};

use crate::layout::{Home, Slot};
use smallvec::SmallVec;

/// A set of slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotSet(u64);

impl SlotSet {
    /// Adds a slot.
    pub fn insert(&mut self, slot: Slot) {
        self.0 |= 1 << slot.0;
    }

    /// True if the slot is in the set.
    pub fn contains(self, slot: Slot) -> bool {
        self.0 >> slot.0 & 1 == 1
    }

    /// The slots of both sets.
    pub fn union(self, other: SlotSet) -> SlotSet {
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
pub struct Access {
    /// Not to be read: missing, failed, not rebuilt so far, or with a bad block in this unit.
    pub unreadable: SlotSet,
    /// Not to be written: missing or failed.
    pub unwritable: SlotSet,
    /// The redundancy of the unit may not match its data: a resync has not come here yet.
    pub unsynced: bool,
    /// It may not match data that was written: the resync follows an unclean stop. In a new array only what was
    /// never written is unsynced, and what parity makes of the rest is right.
    pub in_doubt: bool,
}

/// Rows of one column that a request covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The data column.
    pub column: usize,
    /// First row, in bytes from the top of the unit.
    pub row: u32,
    /// How many, in bytes.
    pub len: u32,
}

impl Span {
    /// The row after the last one.
    pub fn end(&self) -> u32 {
        self.row + self.len
    }

    /// True if both cover a row of the same column.
    pub fn overlaps(&self, other: &Span) -> bool {
        self.column == other.column && self.row < other.end() && other.row < self.end()
    }
}

/// Memory a step works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mem {
    /// Scratch buffer number so-and-so, whole.
    Scratch(usize),
    /// `len` bytes from `from` on of the memory of span number `span`.
    Span {
        /// Number of the span.
        span: usize,
        /// First byte of its memory.
        from: u32,
        /// How many bytes.
        len: u32,
    },
}

/// Fill a scratch buffer from a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadStep {
    /// From where.
    pub home: Home,
    /// Which scratch buffer.
    pub into: usize,
}

/// Memory and the factor that it counts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term {
    /// The factor, in the field of Q: 1 wherever there is no Q.
    pub factor: u8,
    /// The memory.
    pub source: Mem,
}

/// A step that computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compute {
    /// `dst` becomes the sum of the terms; of one with the factor 1, a copy.
    Sum {
        /// What is written.
        dst: Mem,
        /// What is read; never `dst`.
        terms: SmallVec<[Term; 8]>,
    },
    /// Two scratch buffers become P and Q of all columns, in one pass.
    Parities {
        /// The buffer of P.
        p: usize,
        /// The buffer of Q.
        q: usize,
        /// The columns in the order of their powers in Q; neither P nor Q.
        columns: SmallVec<[Mem; 8]>,
    },
}

/// Write memory to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteStep {
    /// Where to.
    pub home: Home,
    /// What.
    pub from: Mem,
    /// Leave it if this scratch buffer, which holds what is on the member now, is equal to `from`.
    pub unless_equal: Option<usize>,
}

/// Zero a range of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZeroStep {
    /// Where.
    pub home: Home,
    /// How many bytes.
    pub len: u32,
}

/// The steps. Phases run one after the other; the steps of a phase run together, but those that compute in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Length of each scratch buffer, in bytes.
    pub scratch: Vec<u32>,
    /// First: what is read.
    pub reads: Vec<ReadStep>,
    /// Then: what is computed, in order.
    pub sums: Vec<Compute>,
    /// Then: what is written,
    pub writes: Vec<WriteStep>,
    /// and what is zeroed.
    pub zeroes: Vec<ZeroStep>,
}

/// The unit cannot be planned for: too many of its members are unreadable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many members of the stripe are unreadable")]
pub struct Unreadable;

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
        let terms = sources.into_iter().map(|source| Term { factor: 1, source }).collect();
        self.sums.push(Compute::Sum { dst, terms });
    }
}

/// `home` moved down by `row` bytes.
fn at_row(home: Home, row: u32) -> Home {
    Home { slot: home.slot, offset: home.offset + u64::from(row) }
}
