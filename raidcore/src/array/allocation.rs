//! What an array that starts knows to be zeroes, from the holes of its members.
//!
//! Invariant: what is told to be zeroes reads as zeroes, also when a member is lost later on. So
//! - of copies, all that are in sync must be holes;
//! - in a parity array the home of the data must be one, if it is in sync and its stripe's parity is right. Where
//!   parity may be wrong, or the home is missing, the whole stripe must be holes: the parity of zeroes is zero.
//!
//! Stretches of members in which all have holes are taken as a whole, and those in which none has one are passed
//! over; what is left is looked at granule by granule, up to a bound.

use super::Array;
use crate::allocation::{GRANULE_BYTES, Holes, ZeroMap};
use crate::layout::{Home, Layout, Slot, UnitId, UnitMap};
use crate::limits::MAX_START_GRANULES;
use std::ops::Range;

impl Array {
    /// What is known to be zeroes and to take no space, where `holes_of` says which parts of the device in a slot are
    /// holes; it is asked for members that are in sync. To be called when the array has been assembled and nothing was
    /// written to it since its holes were looked for.
    ///
    /// From then on a discard leaves zeroes in whole pieces of one chunk of each data column.
    pub fn zero_map(&self, holes_of: impl Fn(Slot) -> Holes) -> ZeroMap {
        let discard_step = self.geometry.discard.then(|| self.zero_step_bytes());
        let mut map = ZeroMap::unknown(self.geometry.size_bytes, discard_step);
        let data_area = self.meta.data_offset..self.meta.data_offset + self.meta.data_bytes;
        let of_slot = |slot| self.is_in_sync(slot).then(|| holes_of(slot).part(data_area.clone()));
        let survey = Survey {
            layout: self.layout,
            size_bytes: self.geometry.size_bytes,
            holes: self.layout.all_slots().map(of_slot).collect(),
            unsynced_from: self.unsynced_from(),
        };
        survey.fill(&mut map, MAX_START_GRANULES);
        map
    }
}

/// What is known of the members at the start.
struct Survey {
    layout: Layout,
    size_bytes: u64,
    /// Holes of the data area of each slot's member; `None` if that is not in sync.
    holes: Vec<Option<Holes>>,
    unsynced_from: Option<UnitId>,
}

impl Survey {
    fn fill(&self, map: &mut ZeroMap, mut budget: u64) {
        let in_sync = || self.holes.iter().flatten();
        let all =
            in_sync().skip(1).fold(in_sync().next().cloned().unwrap_or_default(), |all, one| all.and(one));
        for hole in all.iter() {
            map.set(self.addresses_within(hole));
        }
        let mut at = 0;
        for hole in Holes::union(in_sync()).iter() {
            let about = self.addresses_about(hole);
            at = at.max(about.start / GRANULE_BYTES * GRANULE_BYTES);
            while at < about.end {
                let Some((len, zero)) = map.runs(at..about.end).next() else { break };
                let end = at + len.next_multiple_of(GRANULE_BYTES);
                if zero {
                    at = end;
                }
                while at < end {
                    let Some(left) = budget.checked_sub(1) else { return };
                    budget = left;
                    let granule = at..(at + GRANULE_BYTES).min(self.size_bytes);
                    if self.is_zero(granule.clone()) {
                        map.set(granule);
                    }
                    at += GRANULE_BYTES;
                }
            }
        }
    }

    /// Addresses of which each copy and each column lies within these bytes of the members.
    fn addresses_within(&self, bytes: Range<u64>) -> Range<u64> {
        let chunk = u64::from(self.layout.chunk_bytes());
        let rows = bytes.start.div_ceil(chunk)..bytes.end / chunk;
        let (factor, copies) = self.chunks_per_row();
        let chunks = (rows.start * factor).div_ceil(copies)..rows.end.max(rows.start) * factor / copies;
        (chunks.start * chunk).min(self.size_bytes)..(chunks.end * chunk).min(self.size_bytes)
    }

    /// Addresses outside of which nothing lies on these bytes of the members.
    fn addresses_about(&self, bytes: Range<u64>) -> Range<u64> {
        let chunk = u64::from(self.layout.chunk_bytes());
        let rows = bytes.start / chunk..bytes.end.div_ceil(chunk);
        let (factor, copies) = self.chunks_per_row();
        let chunks = rows.start * factor / copies..(rows.end * factor).div_ceil(copies);
        (chunks.start * chunk).min(self.size_bytes)..(chunks.end * chunk).min(self.size_bytes)
    }

    /// Places for data in a row of chunks, and how many of them a chunk takes.
    fn chunks_per_row(&self) -> (u64, u64) {
        match self.layout.parity_algorithm() {
            Some(_) => (self.layout.columns() as u64, 1),
            None => (self.layout.slots() as u64, self.layout.copies() as u64),
        }
    }

    /// True if all of these addresses are zeroes. They lie in one granule.
    fn is_zero(&self, range: Range<u64>) -> bool {
        let mut at = range.start;
        while at < range.end {
            let place = self.layout.place(at);
            let len = u64::from(self.layout.unit_rows() - place.row).min(range.end - at);
            if !self.is_piece_zero(place.unit, place.column, place.row, len) {
                return false;
            }
            at += len;
        }
        true
    }

    fn is_piece_zero(&self, unit: UnitId, column: usize, row: u32, len: u64) -> bool {
        let is_hole = |home: &Home| {
            let from = home.offset + u64::from(row);
            self.holes[home.slot.index()].as_ref().map(|holes| holes.contain(from..from + len))
        };
        let is_synced = self.unsynced_from.is_none_or(|from| unit < from);
        // One home decides, and its look-up is the cheap one.
        if self.layout.copies() == 1 && is_synced {
            let own = self.layout.column_home(unit, column);
            if let Some(is_hole) = is_hole(&own) {
                return is_hole;
            }
        }
        let map = self.layout.unit_map(unit);
        let homes = map.homes();
        let spare = match map {
            UnitMap::Copies(_) => homes.len() - 1,
            UnitMap::Parity { .. } => self.layout.parities(),
        };
        let present = homes.iter().filter_map(is_hole);
        let (mut found, mut all_holes) = (0, true);
        for is_hole in present {
            found += 1;
            all_holes &= is_hole;
        }
        all_holes && found + spare >= homes.len()
    }
}

#[cfg(test)]
mod tests;
