//! Logical units: what is exported. An LU is a device that takes any byte range.
//!
//! The floors below work in whole blocks. A client that asks for less gets it here by read-modify-write: the
//! blocks at the edges are read, patched and written back. Aligned requests pass through untouched.
//!
//! Invariants:
//! - Two writes that share a block are never in flight below together if one of them patches that block: the
//!   later one waits. So a patch never brings back what another write has replaced.
//! - Each request is answered once, also when it is refused; a read gets its own memory back.

mod patch;

#[cfg(test)]
mod tests;

use crate::buf::{BufList, Slab, list_len};
use crate::dev::{BlockDev, Completion, ErrorKind, Geometry, IoError, Op, Request, Tag};
use crate::slots::{Key, Slots};
use crate::time::Time;
use patch::Patch;
use std::collections::VecDeque;
use std::ops::Range;

/// A logical unit over a device: usually an [`Array`](crate::array::Array).
///
/// It is a [`BlockDev`] that is more generous than the contract asks: offsets and lengths need not be multiples
/// of the block size. Do not wrap it in [`Checked`](crate::dev::Checked), which would refuse them; the LU makes
/// the same checks itself, down to the byte.
pub struct Lu<D> {
    dev: D,
    slab: Slab,
    geometry: Geometry,
    requests: Slots<InFlight>,
    /// Block ranges of writes that patch blocks, while they are in flight.
    patches: Vec<(Key, Range<u64>)>,
    /// Writes that must not start yet, in order; and what needs memory that is not there.
    waiting: VecDeque<Request>,
    below: Vec<Completion>,
    finished: Vec<Completion>,
}

/// A request that is below.
struct InFlight {
    tag: Tag,
    /// The blocks a write touches; empty for other requests.
    blocks: Range<u64>,
    /// What is still to be done when the part below is answered.
    patch: Option<Patch>,
}

impl<D: BlockDev> Lu<D> {
    /// An LU over all of `dev`. Memory for patching comes from `slab`.
    pub fn new(dev: D, slab: &Slab) -> Lu<D> {
        let geometry = dev.geometry();
        Lu {
            dev,
            slab: slab.clone(),
            geometry,
            requests: Slots::new(),
            patches: Vec::new(),
            waiting: VecDeque::new(),
            below: Vec::new(),
            finished: Vec::new(),
        }
    }

    /// The device below.
    pub fn dev(&self) -> &D {
        &self.dev
    }

    /// The device below, to control it.
    pub fn dev_mut(&mut self) -> &mut D {
        &mut self.dev
    }

    fn check(&self, op: &Op) -> Result<(), IoError> {
        if self.requests.len() + self.waiting.len() >= self.geometry.queue_depth as usize {
            let (offset, len) = op.extent();
            return Err(IoError::new(ErrorKind::Busy, op.kind(), offset, len));
        }
        self.geometry.check_bytes(op)
    }

    /// The range rounded out to whole blocks.
    fn blocks_of(&self, range: Range<u64>) -> Range<u64> {
        let block = u64::from(self.geometry.block_size.bytes());
        range.start / block * block..range.end.next_multiple_of(block)
    }

    /// True if the request would share a patched block with a write in flight, or overtake one that waits.
    fn must_wait(&self, range: &Range<u64>, patches: bool) -> bool {
        let overlaps = |other: &Range<u64>| other.start < range.end && range.start < other.end;
        self.patches.iter().any(|(_, other)| overlaps(other))
            || (patches && self.requests.iter().any(|(_, request)| overlaps(&request.blocks)))
    }

    /// Starts a request or returns it, if it has to wait.
    fn start(&mut self, request: Request) -> Result<(), Request> {
        let (offset, len) = request.op.extent();
        let block = self.geometry.block_size;
        let aligned = block.divides(offset) && block.divides(len);
        let blocks = if request.op.is_write() { self.blocks_of(request.op.range()) } else { 0..0 };
        if request.op.is_write() && self.must_wait(&blocks, !aligned) {
            return Err(request);
        }
        if aligned {
            self.forward(request, blocks, None);
            return Ok(());
        }
        self.start_patch(request, blocks)
    }

    /// Sends a request down. `patch` is what follows its answer.
    fn forward(&mut self, request: Request, blocks: Range<u64>, patch: Option<Patch>) {
        let Request { tag, op, deadline } = request;
        let patches = patch.is_some() && !blocks.is_empty();
        let key = self.requests.insert(InFlight { tag, blocks: blocks.clone(), patch });
        if patches {
            self.patches.push((key, blocks));
        }
        self.dev.submit(Request { tag: Tag(key), op, deadline });
    }

    fn finish(&mut self, tag: Tag, result: Result<(), IoError>, bufs: BufList) {
        self.finished.push(Completion { tag, result, bufs });
    }

    fn on_answer(&mut self, completion: Completion) {
        let Some(InFlight { tag, blocks, patch }) = self.requests.remove(completion.tag.0) else { return };
        if !self.patches.is_empty() {
            self.patches.retain(|(key, _)| *key != completion.tag.0);
        }
        match patch {
            None => self.finish(tag, completion.result, completion.bufs),
            Some(patch) => self.go_on(tag, blocks, patch, completion),
        }
    }

    /// Starts what waited, in order; what still has to wait holds back only what it overlaps.
    fn start_waiting(&mut self) {
        let mut held: Vec<Range<u64>> = Vec::new();
        for request in std::mem::take(&mut self.waiting) {
            let range = if request.op.is_write() { self.blocks_of(request.op.range()) } else { 0..0 };
            let overtakes = held.iter().any(|other| other.start < range.end && range.start < other.end);
            let back = if overtakes { Err(request) } else { self.start(request) };
            if let Err(request) = back {
                held.push(range);
                self.waiting.push_back(request);
            }
        }
    }
}

impl<D: BlockDev> BlockDev for Lu<D> {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn submit(&mut self, request: Request) {
        if let Err(error) = self.check(&request.op) {
            self.finished.push(Completion::refused(request.tag, request.op, error));
            return;
        }
        let waits = !self.waiting.is_empty() && request.op.is_write();
        let back = if waits { Err(request) } else { self.start(request) };
        if let Err(request) = back {
            self.waiting.push_back(request);
        }
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        let mut below = std::mem::take(&mut self.below);
        self.dev.reap(&mut below);
        let moved = !below.is_empty();
        below.drain(..).for_each(|completion| self.on_answer(completion));
        self.below = below;
        if moved && !self.waiting.is_empty() {
            self.start_waiting();
        }
        done.append(&mut self.finished);
    }

    fn cancel(&mut self, tag: Tag) {
        if let Some(at) = self.waiting.iter().position(|request| request.tag == tag)
            && let Some(Request { op, .. }) = self.waiting.remove(at)
        {
            let (offset, len) = op.extent();
            let error = IoError::new(ErrorKind::Canceled, op.kind(), offset, len);
            return self.finished.push(Completion::refused(tag, op, error));
        }
        if let Some((key, _)) = self.requests.iter().find(|(_, request)| request.tag == tag) {
            self.dev.cancel(Tag(key));
        }
    }

    fn wake_at(&self) -> Option<Time> {
        // What was patched or refused in this turn goes down, or up, with the next one.
        let pending = !self.finished.is_empty() || (!self.waiting.is_empty() && self.requests.len() == 0);
        if pending { Some(Time::ZERO) } else { self.dev.wake_at() }
    }
}
