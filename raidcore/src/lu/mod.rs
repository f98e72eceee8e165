//! Logical units: what is exported. An LU is a device that takes any byte range.
//!
//! The floors below work in whole blocks. A client that asks for less gets it here by read-modify-write: the
//! blocks at the edges are read, patched and written back. Aligned requests pass through untouched.
//!
//! Invariants:
//! - Two writes that share a block are never in flight below together if one of them patches that block: the
//!   later one waits. So a patch never brings back what another write has replaced.
//! - Each request is answered once, also when it is refused; a read gets its own memory back.
//! - Whatever waits, for another write or for memory, is answered by its deadline.
//! - What it says is known to be zeroes reads as zeroes: all that changes the unit comes past here.

mod patch;

#[cfg(test)]
mod tests;

use crate::allocation::ZeroMap;
use crate::buf::{BufList, Slab};
use crate::dev::{BlockDev, Completion, ErrorKind, Geometry, IoError, Op, Request, Tag};
use crate::limits::MAX_BLOCK_BYTES;
use crate::slots::{Key, Slots};
use crate::time::{Clock, Time};
use patch::Job;
use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

/// A logical unit over a device: usually an [`Array`](crate::array::Array).
///
/// It is a [`BlockDev`] that is more generous than the contract asks: offsets and lengths need not be multiples
/// of the block size. Do not wrap it in [`Checked`](crate::dev::Checked), which would refuse them; the LU makes
/// the same checks itself, down to the byte.
pub struct Lu<D> {
    dev: D,
    slab: Slab,
    clock: Clock,
    geometry: Geometry,
    zeroes: ZeroMap,
    requests: Slots<InFlight>,
    /// Block ranges of writes that patch blocks, while they are in flight.
    patches: Vec<(Key, Range<u64>)>,
    /// Writes that must not start yet, in order.
    waiting: VecDeque<Request>,
    /// Jobs that need memory that is not there, in order.
    hungry: VecDeque<Key>,
    /// No deadline of what waits is earlier.
    next_deadline: Time,
    /// A write has ended: those that wait for it may start.
    released: bool,
    /// Something was submitted below since the device was reaped.
    submitted: bool,
    below: Vec<Completion>,
    finished: Vec<Completion>,
}

/// A request that is below, or between two pieces.
struct InFlight {
    tag: Tag,
    /// The blocks a write touches; empty for other requests.
    blocks: Range<u64>,
    /// How an unaligned request goes on when its part below is answered.
    job: Option<Box<Job>>,
}

/// How soon memory is looked for again: it may come back from where nobody here sees it.
const MEMORY_RETRY: Duration = Duration::from_millis(1);

/// How often within a turn answers may lead to new requests below.
const MAX_ROUNDS: usize = 4;

impl<D: BlockDev> Lu<D> {
    /// An LU over all of `dev`. Memory for patching comes from `slab`, at most 1 MiB for a request at a time;
    /// `clock` is the one that deadlines are measured by.
    pub fn new(dev: D, slab: &Slab, clock: &Clock) -> Lu<D> {
        let geometry = dev.geometry();
        Lu {
            dev,
            slab: slab.clone(),
            clock: clock.clone(),
            geometry,
            zeroes: ZeroMap::unknown(geometry.size_bytes, None),
            requests: Slots::new(),
            patches: Vec::new(),
            waiting: VecDeque::new(),
            hungry: VecDeque::new(),
            next_deadline: Time::NEVER,
            released: false,
            submitted: false,
            below: Vec::new(),
            finished: Vec::new(),
        }
    }

    /// Begins with what is known to be zeroes of the device, to which nothing was written since that was found out.
    pub fn with_zero_map(self, zeroes: ZeroMap) -> Lu<D> {
        Lu { zeroes, ..self }
    }

    /// What is known to be zeroes now.
    pub fn zeroes(&self) -> &ZeroMap {
        &self.zeroes
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

    /// True if the request would share a patched block with a write in flight.
    fn must_wait(&self, range: &Range<u64>, patches: bool) -> bool {
        self.patches.iter().any(|(_, other)| overlap(other, range))
            || (patches && self.requests.iter().any(|(_, request)| overlap(&request.blocks, range)))
    }

    /// The blocks a request changes; empty if none.
    fn changed_blocks(&self, op: &Op) -> Range<u64> {
        if op.is_write() { self.blocks_of(op.range()) } else { 0..0 }
    }

    /// Starts a request or returns it, if it has to wait for another write.
    fn start(&mut self, request: Request) -> Result<(), Request> {
        let (offset, len) = request.op.extent();
        let block = self.geometry.block_size;
        let aligned = block.divides(offset) && block.divides(len);
        let blocks = self.changed_blocks(&request.op);
        if request.op.is_write() && self.must_wait(&blocks, !aligned) {
            return Err(request);
        }
        let Request { tag, op, deadline } = request;
        if matches!(op, Op::Write { .. } | Op::WriteZeroes { unmap: false, .. }) {
            self.zeroes.on_write(&blocks);
        }
        match op {
            _ if aligned => self.forward(tag, op, deadline, blocks),
            Op::Discard { .. } => self.discard(tag, offset..offset + len, deadline),
            _ => {
                let key = self.requests.insert(InFlight { tag, blocks: blocks.clone(), job: None });
                self.note_zeroing(key, &op);
                if !blocks.is_empty() {
                    self.patches.push((key, blocks));
                }
                self.next_piece_or_wait(key, Job::new(op, deadline));
            }
        }
        Ok(())
    }

    /// Advice about part of a block is not taken.
    fn discard(&mut self, tag: Tag, range: Range<u64>, deadline: Time) {
        let block = u64::from(self.geometry.block_size.bytes());
        let (from, to) = (range.start.next_multiple_of(block), range.end / block * block);
        if from < to {
            self.forward(tag, Op::Discard { offset: from, len: to - from }, deadline, from..to);
        } else {
            self.finished.push(Completion::new(tag, Ok(())));
        }
    }

    /// Sends an aligned request down.
    fn forward(&mut self, tag: Tag, op: Op, deadline: Time, blocks: Range<u64>) {
        let key = self.requests.insert(InFlight { tag, blocks, job: None });
        self.note_zeroing(key, &op);
        self.submit_below(key, op, deadline);
    }

    /// What may have become zeroes without taking space, if this operation does so, is known when it has succeeded.
    fn note_zeroing(&mut self, key: Key, op: &Op) {
        let is_discard = match op {
            Op::Discard { .. } => true,
            Op::WriteZeroes { unmap: true, .. } => false,
            _ => return,
        };
        let others = self.requests.iter().filter(|(other, _)| *other != key);
        let in_flight = others.map(|(_, request)| request.blocks.clone());
        self.zeroes.on_zeroing(key, op.range(), is_discard, in_flight);
    }

    fn submit_below(&mut self, key: Key, op: Op, deadline: Time) {
        self.submitted = true;
        self.dev.submit(Request { tag: Tag(key), op, deadline });
    }

    fn on_answer(&mut self, completion: Completion) {
        let key = completion.tag.0;
        let Some(request) = self.requests.get_mut(key) else { return };
        match request.job.take() {
            Some(job) => self.go_on(key, job, completion),
            None => {
                let Some(InFlight { tag, blocks, .. }) = self.requests.remove(key) else { return };
                self.released |= !blocks.is_empty();
                self.zeroes.on_end(key, completion.result.is_ok());
                self.finished.push(Completion { tag, ..completion });
            }
        }
    }

    fn follow_growth(&mut self) {
        let size_bytes = self.dev.geometry().size_bytes;
        if size_bytes > self.geometry.size_bytes {
            self.geometry.size_bytes = size_bytes;
            self.zeroes.grow(size_bytes);
        }
    }

    fn put_back(&mut self, key: Key, job: Box<Job>) {
        if let Some(request) = self.requests.get_mut(key) {
            request.job = Some(job);
        }
    }

    /// A job's next piece. Those that wait for memory already come first.
    fn next_piece_or_wait(&mut self, key: Key, job: Box<Job>) {
        let back = if self.hungry.is_empty() { self.next_piece(key, job) } else { Err(job) };
        if let Err(job) = back {
            self.next_deadline = self.next_deadline.min(job.deadline());
            self.put_back(key, job);
            self.hungry.push_back(key);
        }
    }

    fn end_job(&mut self, key: Key, job: Job, result: Result<(), IoError>) {
        let Some(InFlight { tag, blocks, .. }) = self.requests.remove(key) else { return };
        self.released |= !blocks.is_empty();
        self.zeroes.on_end(key, result.is_ok());
        self.patches.retain(|(other, _)| *other != key);
        self.finished.push(job.end(tag, result));
    }

    /// Ends a job that waits for memory.
    fn give_up(&mut self, key: Key, kind: ErrorKind) {
        if let Some(job) = self.requests.get_mut(key).and_then(|request| request.job.take()) {
            let error = job.error(kind);
            self.end_job(key, *job, Err(error));
        }
    }

    fn wait(&mut self, request: Request) {
        self.next_deadline = self.next_deadline.min(request.deadline);
        self.waiting.push_back(request);
    }

    /// Gives what memory there is to those that wait for some, in order.
    fn feed(&mut self) {
        while let Some(&key) = self.hungry.front() {
            if let Some(job) = self.requests.get_mut(key).and_then(|request| request.job.take())
                && let Err(job) = self.next_piece(key, job)
            {
                return self.put_back(key, job);
            }
            self.hungry.pop_front();
        }
    }

    /// Starts what waited for other writes, in order; what still has to wait holds back only what it overlaps.
    fn start_waiting(&mut self) {
        let mut held: Vec<Range<u64>> = Vec::new();
        for request in std::mem::take(&mut self.waiting) {
            let range = self.changed_blocks(&request.op);
            let overtakes = held.iter().any(|other| overlap(other, &range));
            let back = if overtakes { Err(request) } else { self.start(request) };
            if let Err(request) = back {
                held.push(range);
                self.waiting.push_back(request);
            }
        }
    }

    /// Answers what has waited up to its deadline.
    fn expire(&mut self, now: Time) {
        if now < self.next_deadline {
            return;
        }
        self.next_deadline = Time::NEVER;
        for request in std::mem::take(&mut self.waiting) {
            if request.deadline <= now {
                self.released = true;
                self.finished.push(request.refuse(ErrorKind::Timeout));
            } else {
                self.wait(request);
            }
        }
        for key in std::mem::take(&mut self.hungry) {
            let job = self.requests.get(key).and_then(|request| request.job.as_ref());
            match job.map(|job| job.deadline()) {
                Some(deadline) if deadline > now => {
                    self.next_deadline = self.next_deadline.min(deadline);
                    self.hungry.push_back(key);
                }
                _ => self.give_up(key, ErrorKind::Timeout),
            }
        }
    }
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
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
        let range = self.changed_blocks(&request.op);
        let overtakes = self.waiting.iter().any(|other| overlap(&self.changed_blocks(&other.op), &range));
        let back = if overtakes { Err(request) } else { self.start(request) };
        if let Err(request) = back {
            self.wait(request);
        }
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        self.expire(self.clock.now());
        self.feed();
        for _ in 0..MAX_ROUNDS {
            if std::mem::take(&mut self.released) && !self.waiting.is_empty() {
                self.start_waiting();
            }
            self.submitted = false;
            let mut below = std::mem::take(&mut self.below);
            self.dev.reap(&mut below);
            // An array that grows is larger from one turn to the next.
            self.follow_growth();
            below.drain(..).for_each(|completion| self.on_answer(completion));
            self.below = below;
            self.feed();
            if !self.submitted && !self.released {
                break;
            }
        }
        done.append(&mut self.finished);
    }

    fn cancel(&mut self, tag: Tag) {
        if let Some(at) = self.waiting.iter().position(|request| request.tag == tag) {
            if let Some(request) = self.waiting.remove(at) {
                self.released = true;
                self.finished.push(request.refuse(ErrorKind::Canceled));
            }
            return;
        }
        let Some(key) = self.requests.iter().find(|(_, request)| request.tag == tag).map(|(key, _)| key)
        else {
            return;
        };
        if let Some(at) = self.hungry.iter().position(|hungry| *hungry == key) {
            self.hungry.remove(at);
            return self.give_up(key, ErrorKind::Canceled);
        }
        if let Some(job) = self.requests.get_mut(key).and_then(|request| request.job.as_mut()) {
            job.cancel();
        }
        self.dev.cancel(Tag(key));
    }

    fn wake_at(&self) -> Option<Time> {
        // What was submitted or refused since the last turn goes down, or up, with the next one.
        if !self.finished.is_empty() || self.submitted || self.released {
            return Some(Time::ZERO);
        }
        let memory = (!self.hungry.is_empty()).then(|| self.clock.now() + MEMORY_RETRY);
        let waits = !self.hungry.is_empty() || !self.waiting.is_empty();
        let deadline = waits.then_some(self.next_deadline);
        [self.dev.wake_at(), memory, deadline].into_iter().flatten().min()
    }
}
