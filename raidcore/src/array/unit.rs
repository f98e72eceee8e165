//! Queues of units: what touches redundancy waits here for its turn.
//!
//! Invariant: a unit has at most one operation under way; what arrives meanwhile waits in order, and the next
//! operation takes all of it that is of one kind and does not overlap.

use super::plan::{SlotSet, Span};
use super::{Array, sync::SyncStep};
use crate::buf::{Buf, View};
use crate::layout::UnitId;
use crate::slots::Key;
use std::collections::{HashMap, VecDeque};

/// What waits at a unit.
pub(super) enum Work {
    /// A piece of a read that its home cannot serve. `buf` is `None` if a hung device kept the memory.
    Read { parent: Key, part: u32, span: Span, buf: Option<Buf>, avoid: SlotSet },
    /// A piece of a write.
    Write { parent: Key, span: Span, data: View, fua: bool },
    /// The whole unit becomes zeroes.
    Zero { parent: Key, fua: bool, unmap: bool },
    /// A step of the background resync or rebuild: all rows of the unit, or some of them.
    Sync { step: SyncStep, walk: u64, row: u32, len: u32 },
}

impl Work {
    /// Work of one kind may share an operation. `None`: this goes alone.
    fn kind(&self) -> Option<u8> {
        match self {
            Work::Read { .. } => Some(0),
            Work::Write { .. } => Some(1),
            Work::Zero { .. } | Work::Sync { .. } => None,
        }
    }

    pub(super) fn span(&self) -> Option<Span> {
        match self {
            Work::Read { span, .. } | Work::Write { span, .. } => Some(*span),
            Work::Zero { .. } | Work::Sync { .. } => None,
        }
    }

    pub(super) fn is_client_write(&self) -> bool {
        matches!(self, Work::Write { .. } | Work::Zero { .. })
    }
}

#[derive(Default)]
struct Queue {
    active: bool,
    waiting: VecDeque<Work>,
    /// The next operation takes one piece only: the last one failed, and not all its pieces need to.
    one_by_one: usize,
}

/// All queues that are not empty, and which of them may start something.
#[derive(Default)]
pub(super) struct Units {
    queues: HashMap<UnitId, Queue, BuildMix>,
    ready: VecDeque<UnitId>,
    /// All of `ready` was tried and has to wait for something that completes.
    stalled: bool,
    /// Client writes waiting or under way.
    writes: usize,
}

/// Unit numbers are hashed by one multiplication; nobody outside chooses which meet in a bucket to any profit,
/// since the table holds only as many entries as requests are in flight.
#[derive(Clone, Copy, Default)]
struct BuildMix;

struct Mix(u64);

impl std::hash::BuildHasher for BuildMix {
    type Hasher = Mix;
    fn build_hasher(&self) -> Mix {
        Mix(0)
    }
}

impl std::hash::Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(u64::from(byte)));
    }
    fn write_u64(&mut self, n: u64) {
        let mixed = (self.0 ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }
}

impl Units {
    pub(super) fn push(&mut self, unit: UnitId, work: Work) {
        self.writes += usize::from(work.is_client_write());
        let queue = self.queues.entry(unit).or_default();
        if !queue.active && queue.waiting.is_empty() {
            self.ready.push_back(unit);
            self.stalled = false;
        }
        queue.waiting.push_back(work);
    }

    /// True if something can start at once.
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty() && !self.stalled
    }

    /// Client writes waiting or under way.
    pub(super) fn writes(&self) -> usize {
        self.writes
    }

    pub(super) fn is_idle(&self) -> bool {
        self.queues.is_empty()
    }

    /// Takes the next batch of `unit`, which becomes active: all waiting work of the first one's kind, in order,
    /// up to the first that overlaps what is taken.
    fn take_batch(&mut self, unit: UnitId) -> Vec<Work> {
        let Some(queue) = self.queues.get_mut(&unit) else { return Vec::new() };
        let Some(first) = queue.waiting.pop_front() else { return Vec::new() };
        queue.active = true;
        let kind = first.kind();
        let mut batch = vec![first];
        if queue.one_by_one > 0 {
            queue.one_by_one -= 1;
            return batch;
        }
        while kind.is_some()
            && let Some(next) = queue.waiting.front()
            && next.kind() == kind
            && !batch.iter().any(|taken| overlap(taken, next))
            && let Some(next) = queue.waiting.pop_front()
        {
            batch.push(next);
        }
        batch
    }

    /// The operation of `unit` has ended, `writes` of its pieces were client writes.
    pub(super) fn finished(&mut self, unit: UnitId, writes: usize) {
        self.writes -= writes;
        if let Some(queue) = self.queues.get_mut(&unit) {
            queue.active = false;
            if queue.waiting.is_empty() {
                self.queues.remove(&unit);
            } else {
                self.ready.push_back(unit);
                self.stalled = false;
            }
        }
    }

    /// Puts a batch back where it came from. With `one_by_one`, its pieces are taken singly next time.
    pub(super) fn put_back(&mut self, unit: UnitId, batch: Vec<Work>, one_by_one: bool) {
        let queue = self.queues.entry(unit).or_default();
        queue.active = false;
        if one_by_one {
            queue.one_by_one = batch.len();
            self.stalled = false;
        }
        batch.into_iter().rev().for_each(|work| queue.waiting.push_front(work));
        self.ready.push_back(unit);
    }
}

fn overlap(a: &Work, b: &Work) -> bool {
    match (a.span(), b.span()) {
        (Some(a), Some(b)) => a.overlaps(&b),
        _ => false,
    }
}

impl Array {
    pub(super) fn queue(&mut self, unit: UnitId, work: Work) {
        self.units.push(unit, work);
    }

    /// Starts an operation on each unit that is ready. Those that cannot start yet stay ready.
    pub(super) fn start_units(&mut self) {
        // What is put back because it has to wait counts as stalled unless something new becomes ready.
        self.units.stalled = true;
        for _ in 0..self.units.ready.len() {
            let Some(unit) = self.units.ready.pop_front() else { return };
            let batch = self.units.take_batch(unit);
            if !batch.is_empty() {
                self.start_op(unit, batch);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::{Slab, SlabConfig};

    fn write(slab: &Slab, row: u32) -> Work {
        let data = slab.alloc(512).unwrap().freeze();
        Work::Write { parent: 0, span: Span { column: 0, row, len: 512 }, data, fua: false }
    }

    #[test]
    fn what_waits_is_taken_together_up_to_the_first_overlap() {
        let slab = Slab::new(&SlabConfig::small()).unwrap();
        let mut units = Units::default();
        [0, 512, 256, 4096].iter().for_each(|&row| units.push(UnitId(7), write(&slab, row)));
        units.push(UnitId(7), Work::Zero { parent: 0, fua: false, unmap: true });
        assert_eq!((units.ready.len(), units.writes()), (1, 5));
        let lens: Vec<usize> = (0..3)
            .map(|_| {
                assert_eq!(units.ready.pop_front(), Some(UnitId(7)));
                let batch = units.take_batch(UnitId(7));
                units.finished(UnitId(7), batch.len());
                batch.len()
            })
            .collect();
        assert_eq!(lens, [2, 2, 1]);
        assert!(units.is_idle() && units.writes() == 0);
    }

    #[test]
    fn a_batch_that_failed_is_taken_again_piece_by_piece_in_order() {
        let slab = Slab::new(&SlabConfig::small()).unwrap();
        let mut units = Units::default();
        [0, 512, 1024].iter().for_each(|&row| units.push(UnitId(1), write(&slab, row)));
        let batch = units.take_batch(UnitId(1));
        units.put_back(UnitId(1), batch, true);
        for row in [0, 512, 1024] {
            let batch = units.take_batch(UnitId(1));
            assert_eq!((batch.len(), batch[0].span().unwrap().row), (1, row));
            units.finished(UnitId(1), 1);
        }
        assert!(units.is_idle());
    }
}
