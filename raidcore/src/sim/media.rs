//! The platter and its volatile cache.
//!
//! Invariants, for every block:
//! - `durable` holds the last version that was flushed, written with forced unit access, or pushed out of a full
//!   cache, whichever came last. An older version never replaces it.
//! - `current` (what a read sees) is `durable` with the cached changes applied in order. Without a cache there
//!   is only `durable`.
//! - After a power cut a sector holds its durable version, or that of one change still cached or in flight.

use super::Rng;
use super::image::Image;
use crate::limits::SIM_CACHE_WRITES;
use smallvec::{SmallVec, smallvec};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;

/// Noise is made up sector by sector, so that a part of it is the same as in the whole.
const NOISE_SECTOR: u64 = 512;
/// Changes of more sectors than this tear in two pieces only, not into a random pattern.
const MAX_PATTERN_SECTORS: u64 = 8192;

/// Parts of a change, disjoint; most often it is whole.
pub(super) type Parts = SmallVec<[Range<u64>; 1]>;

/// New content.
#[derive(Clone, Debug)]
pub(super) enum Payload {
    Data(Rc<[u8]>),
    Zeroes,
    Noise(u64),
}

/// New content for a range of the disk.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) range: Range<u64>,
    pub(super) payload: Payload,
}

impl Change {
    fn apply(&self, image: &mut Image, part: Range<u64>) {
        if part.is_empty() {
            return;
        }
        match &self.payload {
            Payload::Data(bytes) => {
                let from = (part.start - self.range.start) as usize;
                image.write(part.start, &bytes[from..from + (part.end - part.start) as usize]);
            }
            Payload::Zeroes => image.zero(part),
            Payload::Noise(seed) => {
                let mut sector = [0; NOISE_SECTOR as usize];
                for at in part.step_by(NOISE_SECTOR as usize) {
                    Rng::new(seed ^ at).fill(&mut sector);
                    image.write(at, &sector);
                }
            }
        }
    }

    fn memory_bytes(&self) -> u64 {
        match self.payload {
            Payload::Data(_) => self.range.end - self.range.start,
            Payload::Zeroes | Payload::Noise(_) => 0,
        }
    }
}

struct Cached {
    seq: u64,
    /// The part of the change that is cached: a torn write leaves several.
    part: Range<u64>,
    change: Change,
}

/// Platter and cache.
pub(super) struct Media {
    block_bytes: u64,
    tear_bytes: u64,
    cache_bytes: Option<u64>,
    durable: Image,
    current: Image,
    cached: VecDeque<Cached>,
    cached_bytes: u64,
    /// Blocks that became durable past the cache, and when: cached changes that are older must not reach them.
    floor: BTreeMap<u64, u64>,
    next_seq: u64,
}

impl Media {
    /// A platter of zeroes; `cache_bytes` is `None` if it has no volatile cache.
    pub(super) fn new(block_bytes: u64, tear_bytes: u64, cache_bytes: Option<u64>) -> Media {
        Media {
            block_bytes,
            tear_bytes,
            cache_bytes,
            durable: Image::default(),
            current: Image::default(),
            cached: VecDeque::new(),
            cached_bytes: 0,
            floor: BTreeMap::new(),
            next_seq: 0,
        }
    }

    /// Reads what the last writes left.
    pub(super) fn read(&self, offset: u64, to: &mut [u8]) {
        if self.cache_bytes.is_some() { self.current.read(offset, to) } else { self.durable.read(offset, to) }
    }

    /// Reads what a power cut that loses the whole cache would leave.
    pub(super) fn read_durable(&self, offset: u64, to: &mut [u8]) {
        self.durable.read(offset, to);
    }

    /// Changes made so far: what a flush submitted now must cover.
    pub(super) fn seq(&self) -> u64 {
        self.next_seq
    }

    /// Makes the parts `parts` of `change`; durable at once if `fua`.
    pub(super) fn write(&mut self, change: &Change, parts: &[Range<u64>], fua: bool) {
        for part in parts {
            let Some(limit) = self.cache_bytes else {
                change.apply(&mut self.durable, part.clone());
                continue;
            };
            change.apply(&mut self.current, part.clone());
            let seq = self.next_seq;
            self.next_seq += 1;
            if fua {
                self.write_through(change, part, seq);
            } else {
                self.cached_bytes += change.memory_bytes();
                self.cached.push_back(Cached { seq, part: part.clone(), change: change.clone() });
            }
            if self.cached_bytes > limit || self.cached.len() > SIM_CACHE_WRITES {
                let middle = self.cached.get(self.cached.len() / 2).map_or(seq, |cached| cached.seq);
                self.flush(middle + 1);
            } else if self.floor.len() > SIM_CACHE_WRITES {
                self.flush(seq + 1);
            }
        }
    }

    /// Writes past the cache; the blocks touched become durable as a read would see them.
    pub(super) fn poke(&mut self, offset: u64, from: &[u8]) {
        let block = self.block_bytes;
        let range = offset - offset % block..(offset + from.len() as u64).next_multiple_of(block);
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.read(range.start, &mut bytes);
        let at = (offset - range.start) as usize;
        bytes[at..at + from.len()].copy_from_slice(from);
        let change = Change { range: range.clone(), payload: Payload::Data(bytes.into()) };
        self.write(&change, &[range], true);
    }

    fn write_through(&mut self, change: &Change, part: &Range<u64>, seq: u64) {
        let blocks = part.start / self.block_bytes..part.end.div_ceil(self.block_bytes);
        if blocks.end - blocks.start > SIM_CACHE_WRITES as u64 {
            // Too many blocks to remember: what is older goes down first instead.
            self.flush(seq);
        }
        change.apply(&mut self.durable, part.clone());
        if !self.cached.is_empty() {
            self.floor.extend(blocks.map(|index| (index, seq)));
        }
    }

    /// Makes the changes before `upto` durable.
    pub(super) fn flush(&mut self, upto: u64) {
        while self.cached.front().is_some_and(|cached| cached.seq < upto) {
            let Some(cached) = self.cached.pop_front() else { break };
            self.cached_bytes -= cached.change.memory_bytes();
            self.settle(&cached);
        }
        if self.cached.is_empty() {
            self.floor.clear();
        }
    }

    /// The power goes: of what is cached and of what is `in_flight`, some reaches the platter, in some order.
    pub(super) fn power_cut(&mut self, rng: &mut Rng, in_flight: Vec<Change>) {
        let mut pending: Vec<Cached> = self.cached.drain(..).collect();
        for change in in_flight {
            pending.push(Cached { seq: self.next_seq, part: change.range.clone(), change });
            self.next_seq += 1;
        }
        // Nearly nothing lost and nearly all lost find other bugs than the mean does.
        let survival = [0.0, 0.1, 0.5, 0.9, 1.0][rng.index(5)];
        let tearing = [0.0, 0.2, 0.8][rng.index(3)];
        if rng.chance(0.5) {
            rng.shuffle(&mut pending);
        }
        for cached in pending {
            if rng.chance(tearing) {
                for part in torn(rng, &cached.part, self.tear_bytes) {
                    self.settle(&Cached { seq: cached.seq, part, change: cached.change.clone() });
                }
            } else if rng.chance(survival) {
                self.settle(&cached);
            }
        }
        self.cached_bytes = 0;
        self.floor.clear();
        self.current = if self.cache_bytes.is_some() { self.durable.clone() } else { Image::default() };
    }

    /// Brings a cached change to the platter, but for the blocks where something newer is durable.
    fn settle(&mut self, cached: &Cached) {
        let (part, block) = (&cached.part, self.block_bytes);
        let mut at = part.start;
        for (&index, &seq) in self.floor.range(part.start / block..part.end.div_ceil(block)) {
            if seq > cached.seq {
                cached.change.apply(&mut self.durable, at..(index * block).max(at));
                at = at.max((index + 1) * block);
            }
        }
        cached.change.apply(&mut self.durable, at..part.end.max(at));
    }
}

/// Some of the sectors of `range`, never all: what an interrupted write leaves. None if there is only one.
pub(super) fn torn(rng: &mut Rng, range: &Range<u64>, sector: u64) -> Parts {
    let first = range.start / sector;
    let sectors = range.end.div_ceil(sector) - first;
    if sectors < 2 {
        return Parts::new();
    }
    let cut = (first + 1 + rng.below(sectors - 1)) * sector;
    let style = rng.below(if sectors <= MAX_PATTERN_SECTORS { 3 } else { 2 });
    if style == 0 {
        return smallvec![range.start..cut];
    }
    if style == 1 {
        return smallvec![cut..range.end];
    }
    // The sector before the cut is lost in any case, so that the write is not whole by chance.
    let lost = cut / sector - 1;
    let kept = (first..first + sectors).filter(|&index| rng.chance(0.5) && index != lost);
    kept.map(|index| (index * sector).max(range.start)..((index + 1) * sector).min(range.end)).collect()
}
