//! The holes of a member: byte ranges that read as zeroes and take no space.
//!
//! Invariant: the ranges ascend, none is empty, and no two of them touch.

use std::ops::Range;

/// Byte ranges of a device that are known to be holes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holes {
    list: Vec<Range<u64>>,
}

impl Holes {
    /// Nothing is known to be a hole.
    pub fn none() -> Holes {
        Holes::default()
    }

    /// Adds a range that begins at or after the end of all before; others are left out.
    pub fn push(&mut self, range: Range<u64>) {
        match self.list.last_mut() {
            _ if range.is_empty() => {}
            Some(last) if range.start < last.end => {}
            Some(last) if range.start == last.end => last.end = range.end,
            _ => self.list.push(range),
        }
    }

    /// True if every byte of `range` is in a hole.
    pub fn contain(&self, range: Range<u64>) -> bool {
        let after = self.list.partition_point(|hole| hole.end <= range.start);
        self.list.get(after).is_some_and(|hole| hole.start <= range.start && range.end <= hole.end)
    }

    /// The ranges, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.list.iter().cloned()
    }

    /// What is a hole in both.
    pub fn and(&self, other: &Holes) -> Holes {
        let (mut both, mut i, mut j) = (Holes::none(), 0, 0);
        while let (Some(one), Some(two)) = (self.list.get(i), other.list.get(j)) {
            both.push(one.start.max(two.start)..one.end.min(two.end));
            if one.end < two.end { i += 1 } else { j += 1 }
        }
        both
    }

    /// What is a hole in any of them.
    pub fn union<'a>(sets: impl Iterator<Item = &'a Holes>) -> Holes {
        let mut all: Vec<Range<u64>> = sets.flat_map(Holes::iter).collect();
        all.sort_unstable_by_key(|hole| hole.start);
        let (mut union, mut covered) = (Holes::none(), 0);
        for hole in all {
            union.push(hole.start.max(covered)..hole.end.max(covered));
            covered = covered.max(hole.end);
        }
        union
    }

    /// The part within `within`, counted from its start.
    pub fn part(&self, within: Range<u64>) -> Holes {
        let mut part = Holes::none();
        for hole in self.iter() {
            let (start, end) = (hole.start.max(within.start), hole.end.min(within.end));
            if start < end {
                part.push(start - within.start..end - within.start);
            }
        }
        part
    }
}

impl FromIterator<Range<u64>> for Holes {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> Holes {
        let mut holes = Holes::none();
        ranges.into_iter().for_each(|range| holes.push(range));
        holes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BYTES: u64 = 60;

    fn holes() -> impl Strategy<Value = (Holes, Vec<bool>)> {
        prop::collection::vec(any::<bool>(), BYTES as usize).prop_map(|bytes| {
            let hole = |(at, is_hole): (usize, &bool)| is_hole.then_some(at as u64..at as u64 + 1);
            (bytes.iter().enumerate().filter_map(hole).collect(), bytes)
        })
    }

    fn bytes(holes: &Holes) -> Vec<bool> {
        (0..BYTES).map(|at| holes.contain(at..at + 1)).collect()
    }

    proptest! {
        #[test]
        fn sets_of_holes_behave_as_sets_of_bytes(
            (one, one_bytes) in holes(),
            (two, two_bytes) in holes(),
            (from, len) in (0..BYTES, 1..BYTES),
        ) {
            let each = |op: fn(bool, bool) -> bool| -> Vec<bool> {
                one_bytes.iter().zip(&two_bytes).map(|(&a, &b)| op(a, b)).collect()
            };
            prop_assert_eq!(bytes(&one), one_bytes.clone());
            prop_assert_eq!(bytes(&one.and(&two)), each(|a, b| a && b));
            prop_assert_eq!(bytes(&Holes::union([&one, &two].into_iter())), each(|a, b| a || b));
            let end = (from + len).min(BYTES);
            let within = &one_bytes[from as usize..end as usize];
            prop_assert_eq!(one.contain(from..end), within.iter().all(|&hole| hole));
            prop_assert_eq!(&bytes(&one.part(from..end))[..within.len()], within);
            for set in [&one, &one.and(&two), &Holes::union([&one, &two].into_iter())] {
                prop_assert!(set.list.windows(2).all(|pair| pair[0].end < pair[1].start));
                prop_assert!(set.iter().all(|hole| hole.start < hole.end));
            }
        }
    }
}
