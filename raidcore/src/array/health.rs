//! How far each byte of the array is from being lost.
//!
//! A picture of the members is taken once; what is asked of it afterwards is pure. Health changes along the array
//! for two reasons only: a walk has come so far (a *cut* between two *zones* of units), and the layout puts
//! neighbouring chunks on different members. A zone in which the layout makes no difference is stepped over as a
//! whole, so that the map of an array of any size costs what its runs cost.
//!
//! Invariants: the runs lie end to end; neighbours differ; between two of them at most one period of the layout is
//! looked at, chunk by chunk, and for all of them together at most [`MAX_HEALTH_LOOKS`] places.

use super::Array;
use crate::layout::{Layout, Place, Slot, UnitId, UnitMap};
use crate::limits::MAX_HEALTH_LOOKS;
use crate::meta::MemberState;
use smallvec::SmallVec;
use std::ops::Range;

/// How far a byte is from being lost. The larger, the worse.
///
/// Blocks that a disk cannot read and that nobody has tried yet are not known, and not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Health {
    /// The loss of any one member does no harm.
    Redundant,
    /// It can be read, and the loss of a member may take it: a member is out or not rebuilt so far, or an unclean stop
    /// left redundancy in doubt. RAID0 and a failed array have nothing better.
    Degraded,
    /// It cannot be read.
    Unreadable,
}

/// The health of an array at one moment.
#[derive(Clone, Debug)]
pub struct HealthMap {
    layout: Layout,
    size_bytes: u64,
    /// Zone `i` ends before the unit `cuts[i]`; the last one has no end. Ascending.
    cuts: SmallVec<[UnitId; 4]>,
    zones: SmallVec<[Zone; 4]>,
}

/// What the members are good for in a stretch of units.
#[derive(Clone, Copy, Debug)]
struct Zone {
    /// Slots that can be read, a bit each.
    readable: u64,
    /// Redundancy there is not to be counted on.
    in_doubt: bool,
    /// Its health, if that is the same throughout.
    uniform: Option<Health>,
}

impl Array {
    /// The health of the array as it is now.
    pub fn health(&self) -> HealthMap {
        let doubt_from = self.unsynced_from().filter(|_| self.in_doubt);
        let doubt_from = if self.failed { Some(UnitId(0)) } else { doubt_from };
        let rebuilt = self.sync.as_ref().and_then(|sync| Some((sync.target()?, sync.reached())));
        let readable_before = |slot: Slot| -> UnitId {
            let id = self.id_at(slot);
            let member = &self.members[id.0];
            match member.state {
                _ if member.gone => UnitId(0),
                MemberState::InSync => UnitId(u64::MAX),
                MemberState::Rebuilding => {
                    rebuilt.filter(|(target, _)| *target == id).map_or(UnitId(0), |(_, reached)| reached)
                }
                MemberState::Spare | MemberState::Faulty | MemberState::Missing => UnitId(0),
            }
        };
        HealthMap::new(self.layout, self.geometry.size_bytes, readable_before, doubt_from)
    }
}

impl HealthMap {
    /// The health of an array of which each slot can be read in the units before `readable_before(slot)`, and whose
    /// redundancy is in doubt from `doubt_from` on.
    pub fn new(
        layout: Layout,
        size_bytes: u64,
        readable_before: impl Fn(Slot) -> UnitId,
        doubt_from: Option<UnitId>,
    ) -> HealthMap {
        let ends = layout.all_slots().map(&readable_before);
        let mut cuts: SmallVec<[UnitId; 4]> = ends.chain(doubt_from).collect();
        cuts.retain(|cut| *cut > UnitId(0) && *cut < UnitId(u64::MAX));
        cuts.sort_unstable();
        cuts.dedup();
        let starts = std::iter::once(UnitId(0)).chain(cuts.iter().copied());
        let zone_from = |start: UnitId| {
            let readable = layout.all_slots().filter(|&slot| start < readable_before(slot));
            let readable = readable.fold(0, |bits, slot| bits | 1 << slot.0);
            let in_doubt = doubt_from.is_some_and(|from| from <= start);
            let zone = Zone { readable, in_doubt, uniform: None };
            Zone { uniform: zone.everywhere(&layout), ..zone }
        };
        let zones = starts.map(zone_from).collect();
        HealthMap { layout, size_bytes, cuts, zones }
    }

    /// The health of one byte.
    pub fn at(&self, offset: u64) -> Health {
        let place = self.layout.place(offset);
        self.zones[self.zone_of(place.unit)].health_of(&self.layout, place)
    }

    /// Stretches of equal health, from the start of `range` to its end or the array's, or to where
    /// [`MAX_HEALTH_LOOKS`] places were looked at: take as many as you have use for. Of a range that is not empty there
    /// is at least one.
    pub fn runs(&self, range: Range<u64>) -> impl Iterator<Item = (u64, Health)> + '_ {
        let (mut at, end) = (range.start, range.end.min(self.size_bytes));
        let mut looks = MAX_HEALTH_LOOKS;
        std::iter::from_fn(move || {
            if at >= end || looks == 0 {
                return None;
            }
            let (start, health) = (at, self.at(at));
            while at < end && looks > 0 && self.at(at) == health {
                looks -= 1;
                at = self.equal_until(at);
            }
            at = at.min(end);
            Some((at - start, health))
        })
    }

    fn zone_of(&self, unit: UnitId) -> usize {
        self.cuts.partition_point(|cut| *cut <= unit)
    }

    /// A byte after `at` up to which its health holds.
    fn equal_until(&self, at: u64) -> u64 {
        let chunk = u64::from(self.layout.chunk_bytes());
        let place = self.layout.place(at);
        let zone = self.zone_of(place.unit);
        let bands = chunk / u64::from(self.layout.unit_rows());
        let stripe = place.unit.0 / bands;
        // A stripe's units take turns along the address, so a cut within one shows in each of its chunks.
        if let Some(cut) = self.cuts.get(zone).filter(|cut| cut.0 / bands == stripe) {
            return self.layout.address(Place { unit: *cut, row: 0, ..place });
        }
        let chunk_end = (at / chunk + 1) * chunk;
        let is_cut = zone.checked_sub(1).is_some_and(|last| self.cuts[last].0.div_ceil(bands) > stripe);
        if is_cut || self.zones[zone].uniform.is_none() {
            return chunk_end;
        }
        match self.cuts.get(zone) {
            Some(cut) => {
                let unit = UnitId(cut.0 / bands * bands);
                self.layout.address(Place { unit, column: 0, row: 0 })
            }
            None => self.size_bytes.max(chunk_end),
        }
    }
}

impl Zone {
    fn is_readable(self, slot: Slot) -> bool {
        self.readable >> slot.0 & 1 == 1
    }

    fn health_of(self, layout: &Layout, place: Place) -> Health {
        if let Some(health) = self.uniform {
            return health;
        }
        match layout.unit_map(place.unit) {
            UnitMap::Copies(homes) => {
                self.of_copies(homes.iter().filter(|home| self.is_readable(home.slot)).count())
            }
            UnitMap::Parity { data, .. } => match self.with_parity(layout) {
                Some(health) => health,
                None if self.is_readable(data[place.column].slot) => Health::Degraded,
                None => Health::Unreadable,
            },
        }
    }

    fn of_copies(self, readable: usize) -> Health {
        match readable {
            0 => Health::Unreadable,
            1 => Health::Degraded,
            _ if self.in_doubt => Health::Degraded,
            _ => Health::Redundant,
        }
    }

    /// The health of any column of a stripe with parity; `None` if parity is not enough. Every member stands in every
    /// stripe, so that this is the same for all.
    fn with_parity(self, layout: &Layout) -> Option<Health> {
        let lost = layout.slots() - self.readable.count_ones() as usize;
        match layout.parities() {
            parities if lost < parities && !self.in_doubt => Some(Health::Redundant),
            parities if lost <= parities => Some(Health::Degraded),
            _ => None,
        }
    }

    /// The health of the whole zone, if the layout makes no difference.
    fn everywhere(self, layout: &Layout) -> Option<Health> {
        let (slots, copies) = (layout.slots(), layout.copies());
        let readable = self.readable.count_ones() as usize;
        if layout.parity_algorithm().is_some() {
            // Which of a stripe's columns are lost is another matter.
            return self.with_parity(layout).or((readable == 0).then_some(Health::Unreadable));
        }
        if readable == slots || copies == slots {
            return Some(self.of_copies(readable.min(copies)));
        }
        // Where the copies of a chunk stand repeats itself after as many chunks as there are slots.
        let chunk = u64::from(layout.chunk_bytes());
        let mut each = (0..slots as u64).map(|index| self.health_of(layout, layout.place(index * chunk)));
        let first = each.next()?;
        each.all(|other| other == first).then_some(first)
    }
}

#[cfg(test)]
mod tests;
