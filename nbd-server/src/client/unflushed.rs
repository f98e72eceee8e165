//! What a server has acknowledged and not made durable: remembered by checksum, to be looked for after a lost
//! connection.
//!
//! A server that comes back may be the same one, or one whose machine lost its caches, and nothing tells which. So
//! what was answered and not flushed is read again before anything else is done with the new connection: if all of
//! it is there, a flush makes it durable as if nothing had happened; if not, acknowledged data is lost, and the device
//! with it.
//!
//! Invariant: for each byte that was written, answered and not covered by a successful flush, its unit is in `units`,
//! unless `beyond` says that it may not be, or a write in flight covers the unit: that one will be sent again.

use crate::limits::{MAX_UNFLUSHED_UNITS, UNFLUSHED_UNIT_BYTES};
use std::collections::HashMap;
use std::ops::Range;

/// A point in the order of answers: a flush covers what was answered up to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mark(u64);

/// The memory of what is not durable yet.
#[derive(Debug)]
pub(super) struct Unflushed {
    size_bytes: u64,
    units: HashMap<u64, Unit>,
    last: Mark,
    /// When something was answered last that could not be remembered.
    beyond: Option<Mark>,
}

#[derive(Clone, Copy, Debug)]
struct Unit {
    /// Checksum of all its bytes; `None` if only a part was written, so that it cannot be looked for.
    crc: Option<u32>,
    since: Mark,
}

/// What became of a range.
#[derive(Clone, Copy, Debug)]
pub(super) enum Written<'a> {
    /// These bytes were written, in order.
    Bytes(&'a [&'a [u8]]),
    /// It was zeroed.
    Zeroes,
    /// It reads as anything.
    Discarded,
}

impl Unflushed {
    /// Nothing is unflushed on a device of this size.
    pub(super) fn new(size_bytes: u64) -> Unflushed {
        Unflushed { size_bytes, units: HashMap::new(), last: Mark::default(), beyond: None }
    }

    /// The device has grown.
    pub(super) fn grow(&mut self, size_bytes: u64) {
        self.size_bytes = size_bytes;
    }

    /// Everything answered up to now.
    pub(super) fn mark(&self) -> Mark {
        self.last
    }

    /// True if everything is durable.
    pub(super) fn is_empty(&self) -> bool {
        self.units.is_empty() && self.beyond.is_none()
    }

    /// True if something cannot be looked for.
    pub(super) fn is_beyond_proof(&self) -> bool {
        self.beyond.is_some() || self.units.values().any(|unit| unit.crc.is_none())
    }

    /// The range is about to be overwritten: until that is answered its units hold the old or the new.
    pub(super) fn sending(&mut self, range: Range<u64>) {
        if self.units.is_empty() {
            return;
        }
        for number in unit_numbers(&range) {
            if self.is_whole(number, &range) {
                self.units.remove(&number);
            } else if let Some(unit) = self.units.get_mut(&number) {
                unit.crc = None;
            }
        }
    }

    /// A write that is not durable was answered.
    pub(super) fn answered(&mut self, range: Range<u64>, written: Written<'_>) {
        if matches!(written, Written::Discarded) {
            return;
        }
        self.last.0 += 1;
        let since = self.last;
        let count = (range.end - range.start) / UNFLUSHED_UNIT_BYTES + 2;
        if self.units.len() as u64 + count > MAX_UNFLUSHED_UNITS as u64 {
            self.beyond = Some(since);
            return;
        }
        let mut bytes = match written {
            Written::Bytes(pieces) => Pieces { pieces, at: 0 },
            _ => Pieces { pieces: &[], at: 0 },
        };
        for number in unit_numbers(&range) {
            let unit = self.unit_range(number);
            let len = unit.end.min(range.end) - unit.start.max(range.start);
            let crc = bytes.checksum(len as usize, matches!(written, Written::Zeroes));
            let crc = Some(crc).filter(|_| self.is_whole(number, &range));
            self.units.insert(number, Unit { crc, since });
        }
    }

    /// A flush that was asked for at `mark` has succeeded.
    pub(super) fn flushed(&mut self, mark: Mark) {
        self.units.retain(|_, unit| unit.since > mark);
        self.beyond = self.beyond.filter(|since| *since > mark);
    }

    /// What is to be looked for: ranges of at most `most` bytes, in order, each of whole units.
    pub(super) fn ranges(&self, most: u64) -> Vec<Range<u64>> {
        let mut numbers: Vec<u64> = self.units.keys().copied().collect();
        numbers.sort_unstable();
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for unit in numbers.into_iter().map(|number| self.unit_range(number)) {
            match ranges.last_mut() {
                Some(last) if last.end == unit.start && unit.end - last.start <= most => last.end = unit.end,
                _ => ranges.push(unit),
            }
        }
        ranges
    }

    /// True if `found`, read at `offset`, holds all that was answered up to `mark` and is not being overwritten.
    /// Whole units.
    pub(super) fn is_there(&self, offset: u64, found: &[u8], mark: Mark) -> bool {
        let range = offset..offset + found.len() as u64;
        unit_numbers(&range).all(|number| match self.units.get(&number) {
            Some(unit) if unit.since <= mark => {
                let at = self.unit_range(number);
                let bytes = &found[(at.start - offset) as usize..(at.end - offset) as usize];
                // Without a checksum it is being overwritten: what is there may be the new already.
                unit.crc.is_none_or(|crc| crc == crc32c::crc32c(bytes))
            }
            _ => true,
        })
    }

    fn unit_range(&self, number: u64) -> Range<u64> {
        let start = number * UNFLUSHED_UNIT_BYTES;
        start..(start + UNFLUSHED_UNIT_BYTES).min(self.size_bytes)
    }

    fn is_whole(&self, number: u64, range: &Range<u64>) -> bool {
        let unit = self.unit_range(number);
        range.start <= unit.start && unit.end <= range.end
    }
}

fn unit_numbers(range: &Range<u64>) -> Range<u64> {
    range.start / UNFLUSHED_UNIT_BYTES..range.end.div_ceil(UNFLUSHED_UNIT_BYTES)
}

/// A place in the bytes of several pieces.
struct Pieces<'a> {
    pieces: &'a [&'a [u8]],
    at: usize,
}

impl Pieces<'_> {
    /// The checksum of the next `len` bytes.
    fn checksum(&mut self, len: usize, zeroes: bool) -> u32 {
        static ZEROES: [u8; UNFLUSHED_UNIT_BYTES as usize] = [0; UNFLUSHED_UNIT_BYTES as usize];
        if zeroes {
            return crc32c::crc32c(&ZEROES[..len]);
        }
        let (mut crc, mut left) = (0, len);
        while left > 0
            && let Some(piece) = self.pieces.first()
        {
            let part = &piece[self.at..piece.len().min(self.at + left)];
            crc = crc32c::crc32c_append(crc, part);
            left -= part.len();
            self.at += part.len();
            if self.at == piece.len() {
                self.pieces = &self.pieces[1..];
                self.at = 0;
            }
        }
        crc
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 100 * 4096 + 512;

    fn write(memory: &mut Unflushed, at: u64, bytes: &[u8]) {
        memory.sending(at..at + bytes.len() as u64);
        let (front, back) = bytes.split_at(bytes.len() / 3);
        memory.answered(at..at + bytes.len() as u64, Written::Bytes(&[front, back]));
    }

    #[test]
    fn what_was_written_is_recognised_and_anything_else_is_not() {
        let mut memory = Unflushed::new(SIZE);
        let bytes: Vec<u8> = (0..12288u32).map(|i| (i / 7) as u8).collect();
        write(&mut memory, 8192, &bytes);
        assert_eq!(memory.ranges(8192), [8192..16384, 16384..20480]);
        assert!(memory.is_there(8192, &bytes, memory.mark()));
        let mut other = bytes.clone();
        other[5000] ^= 1;
        assert!(!memory.is_there(8192, &other, memory.mark()));
        assert!(memory.is_there(8192, &other[..4096], memory.mark()));
    }

    #[test]
    fn a_flush_covers_what_was_answered_before_it_was_asked_for() {
        let mut memory = Unflushed::new(SIZE);
        write(&mut memory, 0, &[1; 4096]);
        let mark = memory.mark();
        write(&mut memory, 4096, &[2; 4096]);
        memory.flushed(mark);
        assert_eq!(memory.ranges(1 << 20).first(), Some(&(4096..8192)));
        memory.flushed(memory.mark());
        assert!(memory.is_empty());
    }

    #[test]
    fn a_part_of_a_unit_cannot_be_proved_but_the_end_of_the_device_can() {
        let mut memory = Unflushed::new(SIZE);
        write(&mut memory, SIZE - 512, &[3; 512]);
        assert!(!memory.is_beyond_proof());
        assert!(memory.is_there(SIZE - 512, &[3; 512], memory.mark()));
        write(&mut memory, 0, &[1; 4096]);
        memory.sending(512..1024);
        assert!(memory.is_beyond_proof(), "the rest of the unit is not durable and no longer known");
        memory.answered(512..1024, Written::Bytes(&[&[2; 512]]));
        memory.flushed(memory.mark());
        assert!(memory.is_empty());
    }

    #[test]
    fn a_write_in_flight_is_not_looked_for() {
        let mut memory = Unflushed::new(SIZE);
        write(&mut memory, 0, &[1; 8192]);
        memory.sending(0..4096);
        assert_eq!(memory.ranges(1 << 20).first(), Some(&(4096..8192)));
        let mark = memory.mark();
        memory.answered(0..4096, Written::Zeroes);
        assert!(memory.is_there(0, &[9; 4096], mark), "it came after the look began");
        assert!(memory.is_there(0, &[0; 4096], memory.mark()));
        // While one connection looks, another one that has looked already writes a part of a unit.
        let mark = memory.mark();
        memory.sending(512..1024);
        assert!(memory.is_there(0, &[9; 4096], mark), "neither old nor new is amiss");
        assert!(!memory.is_there(4096, &[9; 4096], mark), "the rest is looked for as ever");
        memory.sending(0..8192);
        memory.answered(0..8192, Written::Discarded);
        assert!(memory.is_empty());
    }

    #[test]
    fn more_than_can_be_remembered_is_said_to_be() {
        let mut memory = Unflushed::new(1 << 40);
        memory.answered(0..1 << 39, Written::Zeroes);
        assert!(memory.is_beyond_proof() && memory.units.is_empty());
        memory.flushed(memory.mark());
        assert!(memory.is_empty());
    }
}
