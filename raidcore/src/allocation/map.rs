//! Which parts of a logical unit are known to read as zeroes, and to take no space where the devices can do that.
//!
//! One bit per granule of 64 KiB: 2 MiB of memory per TiB, and none of it touched before a bit in it is set.
//!
//! Invariants:
//! - A granule whose bit is set reads as zeroes, whatever is in flight: a write clears its granules before it is
//!   sent.
//! - A zeroing sets its granules when it has succeeded, and only those that no write met while it was under way:
//!   of overlapping requests in flight together either may come last. What it may still set is its *claim*.

use crate::limits::{MAX_MAP_WORDS, MAX_ZERO_CLAIMS, MAX_ZERO_MAP_BYTES};
use crate::slots::Key;
use std::ops::Range;

/// What one bit stands for.
pub const GRANULE_BYTES: u64 = 64 << 10;

/// Known zeroes of a logical unit.
#[derive(Debug)]
pub struct ZeroMap {
    words: Vec<u64>,
    size_bytes: u64,
    /// A discard turns each whole piece of so many bytes, so aligned, into zeroes and leaves the rest as it is.
    discard_step: Option<u64>,
    /// Granules that zeroings under way may set.
    claims: Vec<(Key, Range<u64>)>,
}

impl ZeroMap {
    /// Nothing is known yet of a unit of `size_bytes`. `discard_step`: see [`Array::zero_map`]; without it, a discard
    /// is not known to leave zeroes. What lies past the largest map (128 TiB) stays unknown.
    ///
    /// [`Array::zero_map`]: crate::array::Array::zero_map
    pub fn unknown(size_bytes: u64, discard_step: Option<u64>) -> ZeroMap {
        ZeroMap { words: vec![0; words_for(size_bytes)], size_bytes, discard_step, claims: Vec::new() }
    }

    /// The unit has become larger: nothing is known of what was added, nor of a last granule that was short.
    pub fn grow(&mut self, size_bytes: u64) {
        let known = self.size_bytes / GRANULE_BYTES;
        self.each_word(known..known + 1, |word, mask| *word &= !mask);
        self.words.resize(words_for(size_bytes).max(self.words.len()), 0);
        self.size_bytes = size_bytes.max(self.size_bytes);
        // They may end with that granule.
        self.claims.clear();
    }

    /// Parts of `range` and whether each is known to be zeroes, from its start on, and at least one of a range that is
    /// not empty. They lie end to end and stop short of the range's end when [`MAX_MAP_WORDS`] were looked at;
    /// neighbours may be equal. Take as many as you have use for.
    pub fn runs(&self, range: Range<u64>) -> impl Iterator<Item = (u64, bool)> + '_ {
        let (mut at, end) = (range.start, range.end.min(self.size_bytes));
        let until_word = (at / GRANULE_BYTES / 64).saturating_add(MAX_MAP_WORDS as u64);
        let last = end.div_ceil(GRANULE_BYTES);
        std::iter::from_fn(move || {
            let first = at / GRANULE_BYTES;
            if at >= end || first / 64 >= until_word {
                return None;
            }
            let (until, zero) = self.run_from(first, last, until_word);
            let start = at;
            at = (until * GRANULE_BYTES).min(end);
            Some((at - start, zero))
        })
    }

    /// The end of a run of equal granules that begins with `first`, at most `end`, and to be looked for before the word
    /// `until_word`.
    fn run_from(&self, first: u64, end: u64, until_word: u64) -> (u64, bool) {
        let Some(&word) = self.words.get((first / 64) as usize) else { return (end, false) };
        let zero = word >> (first % 64) & 1 == 1;
        let differing = |word: u64| if zero { !word } else { word };
        let here = differing(word) & (u64::MAX << (first % 64));
        let mut at = first / 64;
        let mut ahead = here;
        while ahead == 0 {
            at += 1;
            match self.words.get(at as usize) {
                Some(&word) if at < until_word && at * 64 < end => ahead = differing(word),
                _ => return ((at * 64).min(end), zero),
            }
        }
        ((at * 64 + u64::from(ahead.trailing_zeros())).min(end), zero)
    }

    /// Takes all granules that lie wholly in `range` for zeroes.
    pub(crate) fn set(&mut self, range: Range<u64>) {
        let granules = self.whole(range);
        self.each_word(granules, |word, mask| *word |= mask);
    }

    /// Data may be anywhere in `range` from now on.
    pub(crate) fn on_write(&mut self, range: &Range<u64>) {
        let granules = range.start / GRANULE_BYTES..range.end.div_ceil(GRANULE_BYTES);
        if !self.claims.is_empty() {
            self.disclaim(&granules);
        }
        self.each_word(granules, |word, mask| {
            // Memory that was never set is not touched.
            if *word & mask != 0 {
                *word &= !mask;
            }
        });
    }

    /// The zeroing `key` of `range` begins; `is_discard` if it may leave what is not a whole piece. Of what it covers,
    /// `in_flight` is being changed by others.
    pub(crate) fn on_zeroing(
        &mut self,
        key: Key,
        range: Range<u64>,
        is_discard: bool,
        in_flight: impl Iterator<Item = Range<u64>>,
    ) {
        let zeroed = match (is_discard, self.discard_step) {
            (false, _) => range,
            (true, Some(step)) => range.start.next_multiple_of(step)..range.end / step * step,
            (true, None) => return,
        };
        let granules = self.whole(zeroed);
        if granules.is_empty() || self.claims.len() >= MAX_ZERO_CLAIMS {
            return;
        }
        let old = std::mem::replace(&mut self.claims, vec![(key, granules)]);
        for other in in_flight {
            self.disclaim(&(other.start / GRANULE_BYTES..other.end.div_ceil(GRANULE_BYTES)));
        }
        self.claims.extend(old);
        self.claims.truncate(MAX_ZERO_CLAIMS);
    }

    /// The request `key` has ended. A zeroing that succeeded sets what is left of its claim.
    pub(crate) fn on_end(&mut self, key: Key, succeeded: bool) {
        if self.claims.is_empty() {
            return;
        }
        let mut at = 0;
        while let Some((owner, granules)) = self.claims.get(at) {
            if *owner != key {
                at += 1;
                continue;
            }
            let granules = granules.clone();
            self.claims.swap_remove(at);
            if succeeded {
                self.each_word(granules, |word, mask| *word |= mask);
            }
        }
    }

    /// Takes granules out of all claims. One that is cut in two when there is no room for both keeps its first part.
    fn disclaim(&mut self, out: &Range<u64>) {
        let mut at = 0;
        while at < self.claims.len() {
            let (key, claim) = self.claims[at].clone();
            if claim.end <= out.start || out.end <= claim.start {
                at += 1;
                continue;
            }
            let (first, last) = (claim.start..out.start, out.end..claim.end);
            match (first.is_empty(), last.is_empty()) {
                (true, true) => drop(self.claims.swap_remove(at)),
                (false, true) => self.claims[at].1 = first,
                (true, false) => self.claims[at].1 = last,
                (false, false) => {
                    self.claims[at].1 = first;
                    if self.claims.len() < MAX_ZERO_CLAIMS {
                        self.claims.push((key, last));
                    }
                }
            }
        }
    }

    /// The granules that lie wholly in `range`; the device's last one may be short.
    fn whole(&self, range: Range<u64>) -> Range<u64> {
        let end = if range.end == self.size_bytes {
            range.end.div_ceil(GRANULE_BYTES)
        } else {
            range.end / GRANULE_BYTES
        };
        range.start.div_ceil(GRANULE_BYTES)..end
    }

    fn each_word(&mut self, granules: Range<u64>, mut change: impl FnMut(&mut u64, u64)) {
        let end = granules.end.min(self.words.len() as u64 * 64);
        let mut at = granules.start;
        while at < end {
            let until = ((at / 64 + 1) * 64).min(end);
            let mask = (u64::MAX >> (64 - (until - at))) << (at % 64);
            change(&mut self.words[(at / 64) as usize], mask);
            at = until;
        }
    }
}

fn words_for(size_bytes: u64) -> usize {
    let words = size_bytes.div_ceil(GRANULE_BYTES).div_ceil(64);
    words.min(MAX_ZERO_MAP_BYTES as u64 / 8) as usize
}

#[cfg(test)]
mod tests;
