//! A set of byte ranges: where a disk is bad.
//!
//! Invariant: the ranges are disjoint and none is empty.

use std::collections::BTreeMap;
use std::ops::Range;

/// Disjoint ranges, by start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RangeSet {
    ends: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// Adds `range`.
    pub(super) fn insert(&mut self, range: Range<u64>) {
        if !range.is_empty() {
            self.remove(range.clone());
            self.ends.insert(range.start, range.end);
        }
    }

    /// Takes `range` out, splitting what it lies in.
    pub(super) fn remove(&mut self, range: Range<u64>) {
        while let Some(hit) = self.first_overlap(&range) {
            self.ends.remove(&hit.start);
            if hit.start < range.start {
                self.ends.insert(hit.start, range.start);
            }
            if hit.end > range.end {
                self.ends.insert(range.end, hit.end);
            }
        }
    }

    /// True if any byte of `range` is in the set.
    pub(super) fn overlaps(&self, range: &Range<u64>) -> bool {
        !self.ends.is_empty() && self.first_overlap(range).is_some()
    }

    /// How many ranges there are.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Empties the set.
    pub(super) fn clear(&mut self) {
        self.ends.clear();
    }

    fn first_overlap(&self, range: &Range<u64>) -> Option<Range<u64>> {
        if range.is_empty() {
            return None;
        }
        let (&start, &end) = self.ends.range(..range.end).next_back()?;
        (end > range.start).then_some(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Rng;
    use super::*;

    #[test]
    fn a_range_set_is_a_set_of_bytes() {
        let (mut rng, mut set, mut model) = (Rng::new(9), RangeSet::default(), [false; 64]);
        for _ in 0..5000 {
            let start = rng.below(64);
            let range = start..start + rng.below(65 - start);
            let bytes = range.start as usize..range.end as usize;
            match rng.below(3) {
                0 => {
                    set.insert(range);
                    model[bytes].fill(true);
                }
                1 => {
                    set.remove(range);
                    model[bytes].fill(false);
                }
                _ => assert_eq!(set.overlaps(&range), model[bytes].contains(&true)),
            }
            let total: u64 = set.ends.iter().map(|(start, end)| end - start).sum();
            assert_eq!(total as usize, model.iter().filter(|&&x| x).count());
        }
    }
}
