//! Where and when a disk is bad: what was planted, and what happened by chance.

use super::ranges::RangeSet;
use crate::limits::SIM_BAD_RANGES;
use std::ops::Range;

/// Planted faults.
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// Reads fail until the place is written.
    weak: RangeSet,
    /// Reads fail, whatever is written.
    unreadable: RangeSet,
    /// Writes fail.
    unwritable: RangeSet,
    /// Operations until the disk is gone.
    operations_left: Option<u64>,
}

impl Faults {
    pub(super) fn fail_reads(&mut self, range: Range<u64>, until_written: bool) {
        if until_written { self.weak.insert(range) } else { self.unreadable.insert(range) }
    }

    /// A block goes bad by chance: bounded, for a long run may never write these places again.
    pub(super) fn weaken(&mut self, range: Range<u64>) {
        if self.weak.len() < SIM_BAD_RANGES {
            self.weak.insert(range);
        }
    }

    pub(super) fn fail_writes(&mut self, range: Range<u64>) {
        self.unwritable.insert(range);
    }

    pub(super) fn fail_after(&mut self, operations: Option<u64>) {
        self.operations_left = operations;
    }

    pub(super) fn clear(&mut self) {
        self.weak.clear();
        self.unreadable.clear();
        self.unwritable.clear();
        self.operations_left = None;
    }

    pub(super) fn read_fails(&self, range: &Range<u64>) -> bool {
        self.weak.overlaps(range) || self.unreadable.overlaps(range)
    }

    pub(super) fn write_fails(&self, range: &Range<u64>) -> bool {
        self.unwritable.overlaps(range)
    }

    /// The range was written: a disk replaces its weak sectors then.
    pub(super) fn written(&mut self, range: &Range<u64>) {
        if self.weak.len() > 0 {
            self.weak.remove(range.clone());
        }
    }

    /// Counts one operation; true if it is one too many.
    pub(super) fn spend_operation(&mut self) -> bool {
        match &mut self.operations_left {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }
}
