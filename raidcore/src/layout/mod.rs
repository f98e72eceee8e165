//! Where each block lives: pure maps of the RAID levels, without state and without I/O.
//!
//! Two families cover the levels. *Near* places `copies` copies of each chunk one after the other along the
//! members (md's near layout): one copy is RAID0, as many as members RAID1, anything between RAID10, for odd
//! member counts too. *Parity* places one or two chunks of parity in each stripe, in one of md's four rotations
//! (RAID5, RAID6).
//!
//! Work and locks go by *units*: the rows of one stripe (or of one chunk and its copies) that are at most
//! [`MAX_ROW_BYTES`] high. A unit never shares a byte on any member with another unit.
//!
//! Invariants, each a property test below: every byte of the array has exactly one home per copy; copies of a
//! byte are on different members; parity falls on each member equally often; the capacity is what the level
//! promises; no home lies past the member's end.

mod near;
mod parity;
mod spec;

pub use parity::ParityAlgorithm;
pub use spec::{Layout, LayoutError, LayoutSpec, Level, Slot};

use crate::limits::MAX_ROW_BYTES;
use smallvec::SmallVec;

/// Number of a unit: ascending with the array's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitId(pub u64);

/// A place on a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Home {
    /// Which member.
    pub slot: Slot,
    /// Byte offset in the member's data area.
    pub offset: u64,
}

/// Homes of one byte range: one per copy, or one per column.
pub type Homes = SmallVec<[Home; 4]>;

/// A byte of the array, in terms of its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The unit.
    pub unit: UnitId,
    /// Data column within the unit: always 0 in the near family.
    pub column: usize,
    /// Byte within the column's rows: `0 <= row < unit_rows`.
    pub row: u32,
}

/// The members of one unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnitMap {
    /// All homes hold the same data.
    Copies(Homes),
    /// Column `i` is at `data[i]`; `parity` is the XOR of all columns: P.
    Parity {
        /// Homes of the data columns, in the order of the array's address.
        data: Homes,
        /// Home of the parity.
        parity: Home,
        /// RAID6's second parity.
        q: Option<Q>,
    },
}

/// RAID6's second parity of a unit: the sum of the columns, each times a power of the [field's](crate::parity)
/// generator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Q {
    /// Where it is.
    pub home: Home,
    /// The column whose factor is 1. That of the next one is 2, of the one after that 4, and so on, around the end.
    pub first_column: usize,
}

impl UnitMap {
    /// All places that the unit takes on members: copies, or columns, P and Q.
    pub fn homes(&self) -> SmallVec<[Home; 8]> {
        match self {
            UnitMap::Copies(homes) => homes.iter().copied().collect(),
            UnitMap::Parity { data, parity, q } => {
                data.iter().copied().chain([*parity]).chain(q.map(|q| q.home)).collect()
            }
        }
    }
}

impl Layout {
    /// Height of a unit: bytes each member of it holds. Chunks are whole multiples of it.
    pub fn unit_rows(&self) -> u32 {
        self.chunk_bytes().min(MAX_ROW_BYTES)
    }

    /// Data columns of a unit.
    pub fn columns(&self) -> usize {
        match self.parity_algorithm() {
            Some(_) => self.slots() - self.parities(),
            None => 1,
        }
    }

    /// Bytes of the array that one stripe holds: a write of this size, so aligned, needs no reads.
    pub fn stripe_bytes(&self) -> u64 {
        let columns = match self.level() {
            Level::Raid5 | Level::Raid6 => self.columns(),
            Level::Raid0 | Level::Raid1 | Level::Raid10 => self.slots().div_ceil(self.copies()),
        };
        columns as u64 * u64::from(self.chunk_bytes())
    }

    /// Size of the array over members that hold `member_bytes` of data each. Whole chunks only.
    pub fn capacity(&self, member_bytes: u64) -> u64 {
        let chunk = u64::from(self.chunk_bytes());
        let rows = member_bytes / chunk;
        let chunks = match self.parity_algorithm() {
            Some(_) => rows * self.columns() as u64,
            None => rows * self.slots() as u64 / self.copies() as u64,
        };
        chunks * chunk
    }

    /// What each member must hold at least for an array of `size_bytes`: whole chunks. Sizes beyond any array give
    /// more than any member has.
    pub fn member_bytes_for(&self, size_bytes: u64) -> u64 {
        let chunk = u64::from(self.chunk_bytes());
        let chunks = size_bytes.div_ceil(chunk);
        let rows = match self.parity_algorithm() {
            Some(_) => chunks.div_ceil(self.columns() as u64),
            None => chunks.saturating_mul(self.copies() as u64).div_ceil(self.slots() as u64),
        };
        rows.saturating_mul(chunk)
    }

    /// Number of units of an array over members of `member_bytes`.
    pub fn units(&self, member_bytes: u64) -> u64 {
        self.capacity(member_bytes) / (u64::from(self.unit_rows()) * self.columns() as u64)
    }

    /// The unit, column and row of byte `offset` of the array.
    pub fn place(&self, offset: u64) -> Place {
        let chunk = u64::from(self.chunk_bytes());
        let rows = u64::from(self.unit_rows());
        let (chunk_index, in_chunk) = (offset / chunk, offset % chunk);
        let columns = self.columns() as u64;
        let stripe = chunk_index / columns;
        Place {
            unit: UnitId(stripe * (chunk / rows) + in_chunk / rows),
            column: (chunk_index % columns) as usize,
            row: (in_chunk % rows) as u32,
        }
    }

    /// The byte of the array at `place`: the inverse of [`place`](Layout::place).
    pub fn address(&self, place: Place) -> u64 {
        let chunk = u64::from(self.chunk_bytes());
        let rows = u64::from(self.unit_rows());
        let (stripe, band) = (place.unit.0 / (chunk / rows), place.unit.0 % (chunk / rows));
        (stripe * self.columns() as u64 + place.column as u64) * chunk + band * rows + u64::from(place.row)
    }

    /// The members of `unit`: where its rows begin on each.
    pub fn unit_map(&self, unit: UnitId) -> UnitMap {
        let chunk = u64::from(self.chunk_bytes());
        let rows = u64::from(self.unit_rows());
        let (stripe, band) = (unit.0 / (chunk / rows), unit.0 % (chunk / rows) * rows);
        let home = |slot, chunk_row: u64| Home { slot, offset: chunk_row * chunk + band };
        match self.parity_algorithm() {
            Some(algorithm) => UnitMap::Parity {
                data: (0..self.columns())
                    .map(|column| algorithm.data_slot(self.slots(), self.parities(), stripe, column))
                    .map(|slot| home(slot, stripe))
                    .collect(),
                parity: home(algorithm.parity_slot(self.slots(), stripe), stripe),
                q: (self.level() == Level::Raid6).then(|| Q {
                    home: home(algorithm.q_slot(self.slots(), stripe), stripe),
                    first_column: algorithm.first_column(self.slots(), stripe),
                }),
            },
            None => UnitMap::Copies(
                (0..self.copies())
                    .map(|copy| near::home(self.slots(), self.copies(), stripe, copy))
                    .map(|(slot, row)| home(slot, row))
                    .collect(),
            ),
        }
    }

    /// The home of one column of a unit in the parity family, or of its first copy: where plain reads go when
    /// nothing is missing. Cheaper than the whole map.
    pub fn column_home(&self, unit: UnitId, column: usize) -> Home {
        let chunk = u64::from(self.chunk_bytes());
        let rows = u64::from(self.unit_rows());
        let (stripe, band) = (unit.0 / (chunk / rows), unit.0 % (chunk / rows) * rows);
        let (slot, row) = match self.parity_algorithm() {
            Some(algorithm) => (algorithm.data_slot(self.slots(), self.parities(), stripe, column), stripe),
            None => near::home(self.slots(), self.copies(), stripe, 0),
        };
        Home { slot, offset: row * chunk + band }
    }

    /// Bytes at the start of the members' data areas that lie wholly in units below `unit`: how far a walk over
    /// the units in order has come, in the terms of a member. Rounded down.
    pub fn member_bytes_before(&self, unit: UnitId) -> u64 {
        let rows = u64::from(self.unit_rows());
        let chunk = u64::from(self.chunk_bytes());
        match self.parity_algorithm() {
            Some(_) => unit.0 * rows,
            None => unit.0 / (chunk / rows) * self.copies() as u64 / self.slots() as u64 * chunk,
        }
    }

    /// The first unit that is not wholly within the first `member_bytes` of the members' data areas: where a
    /// walk that has come so far goes on. Never past what [`member_bytes_before`](Layout::member_bytes_before)
    /// was given.
    pub fn unit_after(&self, member_bytes: u64) -> UnitId {
        let rows = u64::from(self.unit_rows());
        let chunk = u64::from(self.chunk_bytes());
        match self.parity_algorithm() {
            Some(_) => UnitId(member_bytes / rows),
            None => {
                let chunks = member_bytes / chunk * self.slots() as u64 / self.copies() as u64;
                UnitId(chunks * (chunk / rows))
            }
        }
    }

    /// True if all data can still be read without the members for which `missing` is true.
    pub fn survives(&self, missing: impl Fn(Slot) -> bool) -> bool {
        match self.parity_algorithm() {
            Some(_) => self.all_slots().filter(|&slot| missing(slot)).count() <= self.parities(),
            None => near::survives(self.slots(), self.copies(), missing),
        }
    }

    /// All slots, ascending.
    pub fn all_slots(&self) -> impl Iterator<Item = Slot> + use<> {
        (0..self.slots()).map(Slot::from_index)
    }
}

#[cfg(test)]
mod tests;
