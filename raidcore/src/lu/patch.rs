//! Requests that do not begin and end on a block: done piece by piece, each piece in whole blocks of its own
//! memory, with the edge blocks read first and patched.
//!
//! Invariants:
//! - A job holds memory for one piece at most, whatever the size of its request: a client's largest request
//!   needs no second one of its size here. If a piece finds no memory it becomes smaller, down to one block.
//! - A job has exactly one request below, or it stands in `hungry`.
//! - Its range of blocks stays locked from its first piece to its last.

use super::*;
use crate::buf::{Buf, Exhausted, ViewList};

/// A request on its way.
pub(super) struct Job {
    op: Op,
    deadline: Time,
    /// Bytes of the device before it are done. `range.start <= at < range.end`.
    at: u64,
    piece: Piece,
    /// Give up after the piece that is below.
    canceled: bool,
}

/// What is being done of a request. The part from `Job::at` to `until` lies within `blocks`.
struct Piece {
    until: u64,
    blocks: Range<u64>,
    /// Memory for `blocks`, less what is below to be read. The edge blocks to be read are buffers of their own.
    memory: BufList,
    last_to_read: bool,
    step: Step,
}

/// Which part of a piece is below.
#[derive(Clone, Copy)]
enum Step {
    ReadFirst,
    ReadLast,
    /// The blocks themselves.
    Transfer,
}

/// Largest piece. Pieces end at multiples of it, where stripes end, too.
const PIECE_BYTES: u64 = MAX_BLOCK_BYTES as u64;

impl Job {
    /// A job for a request of which nothing is done.
    pub(super) fn new(op: Op, deadline: Time) -> Box<Job> {
        let at = op.range().start;
        let piece = Piece::without_memory(at..at, at);
        Box::new(Job { op, deadline, at, piece, canceled: false })
    }

    pub(super) fn deadline(&self) -> Time {
        self.deadline
    }

    pub(super) fn cancel(&mut self) {
        self.canceled = true;
    }

    /// The answer to the whole request: its read memory goes back.
    pub(super) fn end(self, tag: Tag, result: Result<(), IoError>) -> Completion {
        match self.op {
            Op::Read { bufs, .. } => Completion { tag, result, bufs },
            _ => Completion::new(tag, result),
        }
    }

    pub(super) fn error(&self, kind: ErrorKind) -> IoError {
        let (offset, len) = self.op.extent();
        IoError::new(kind, self.op.kind(), offset, len)
    }

    /// Memory for the next piece, which is as large as there is memory for.
    fn next_piece(&self, slab: &Slab, block: u64) -> Result<Piece, Exhausted> {
        let end = self.op.range().end;
        let whole_end = end / block * block;
        let zeroes = matches!(self.op, Op::WriteZeroes { .. });
        if zeroes && self.at.is_multiple_of(block) && self.at < whole_end {
            return Ok(Piece::without_memory(self.at..whole_end, whole_end));
        }
        // Zeroes are written as data only in the blocks at the edges.
        let mut size = if zeroes { block } else { PIECE_BYTES };
        loop {
            let until = end.min((self.at / size + 1).saturating_mul(size));
            let is_read = matches!(self.op, Op::Read { .. });
            match Piece::new(slab, self.at..until, block, is_read) {
                Err(exhausted) if size == block => return Err(exhausted),
                Err(_) => size /= 2,
                Ok(piece) => return Ok(piece),
            }
        }
    }

    /// What goes below now.
    fn next_op(&mut self, block: u64) -> Op {
        let Piece { until, blocks, memory, step, .. } = &mut self.piece;
        let (at, len) = ((self.at - blocks.start) as usize, (*until - self.at) as usize);
        match (*step, &self.op) {
            (Step::ReadFirst, _) => Op::Read { offset: blocks.start, bufs: memory.drain(..1).collect() },
            (Step::ReadLast, _) => {
                Op::Read { offset: blocks.end - block, bufs: memory.pop().into_iter().collect() }
            }
            (Step::Transfer, Op::Write { offset, data, fua }) => {
                copy(data, (self.at - offset) as usize, memory, at, len);
                let data = freeze(memory);
                Op::Write { offset: blocks.start, data, fua: *fua }
            }
            (Step::Transfer, Op::WriteZeroes { fua, unmap, .. }) if memory.is_empty() => {
                let len = blocks.end - blocks.start;
                Op::WriteZeroes { offset: blocks.start, len, fua: *fua, unmap: *unmap }
            }
            (Step::Transfer, Op::WriteZeroes { fua, .. }) => {
                memory.iter_mut().for_each(|only| only[at..at + len].fill(0));
                Op::Write { offset: blocks.start, data: freeze(memory), fua: *fua }
            }
            (Step::Transfer, _) => Op::Read { offset: blocks.start, bufs: std::mem::take(memory) },
        }
    }

    /// Takes the answer to a part. True if the piece is finished.
    fn take(&mut self, mut bufs: BufList) -> Result<bool, IoError> {
        match self.piece.step {
            Step::Transfer => {
                if let Op::Read { offset, bufs: target } = &mut self.op {
                    let from = (self.at - self.piece.blocks.start) as usize;
                    let len = (self.piece.until - self.at) as usize;
                    copy(&bufs, from, target, (self.at - *offset) as usize, len);
                }
                self.at = self.piece.until;
                return Ok(true);
            }
            Step::ReadFirst | Step::ReadLast => {
                // Data of unknown content must never be written back.
                let Some(edge) = bufs.pop() else { return Err(self.error(ErrorKind::Short)) };
                let memory = &mut self.piece.memory;
                let place = if matches!(self.piece.step, Step::ReadFirst) { 0 } else { memory.len() };
                memory.insert(place, edge);
            }
        }
        let last_to_read = std::mem::take(&mut self.piece.last_to_read);
        self.piece.step = if last_to_read { Step::ReadLast } else { Step::Transfer };
        Ok(false)
    }
}

impl Piece {
    fn without_memory(blocks: Range<u64>, until: u64) -> Piece {
        Piece { until, blocks, memory: BufList::new(), last_to_read: false, step: Step::Transfer }
    }

    fn new(slab: &Slab, range: Range<u64>, block: u64, is_read: bool) -> Result<Piece, Exhausted> {
        let blocks = range.start / block * block..range.end.next_multiple_of(block);
        let len = blocks.end - blocks.start;
        let first = !is_read && (range.start != blocks.start || range.end < blocks.start + block);
        let last = !is_read && len > block && range.end != blocks.end;
        let edges = block * (u64::from(first) + u64::from(last));
        let mut piece = Piece::without_memory(blocks, range.end);
        if first {
            piece.memory.push(slab.alloc(block as usize)?);
            piece.step = Step::ReadFirst;
        } else if last {
            piece.step = Step::ReadLast;
        }
        piece.last_to_read = first && last;
        piece.memory.extend(slab.alloc_list((len - edges) as usize)?);
        if last {
            piece.memory.push(slab.alloc(block as usize)?);
        }
        Ok(piece)
    }
}

impl<D: BlockDev> Lu<D> {
    /// Goes on with a job that has nothing below: its next piece, or back if there is no memory for it.
    pub(super) fn next_piece(&mut self, key: Key, mut job: Box<Job>) -> Result<(), Box<Job>> {
        let block = u64::from(self.geometry.block_size.bytes());
        let Ok(piece) = job.next_piece(&self.slab, block) else { return Err(job) };
        job.piece = piece;
        self.send(key, job);
        Ok(())
    }

    /// Sends the next part of the job's piece down.
    fn send(&mut self, key: Key, mut job: Box<Job>) {
        let op = job.next_op(u64::from(self.geometry.block_size.bytes()));
        let deadline = job.deadline;
        self.put_back(key, job);
        self.submit_below(key, op, deadline);
    }

    /// A part of a job is answered.
    pub(super) fn go_on(&mut self, key: Key, mut job: Box<Job>, answer: Completion) {
        let piece_done = match answer.result.and_then(|()| job.take(answer.bufs)) {
            Ok(piece_done) => piece_done,
            Err(error) => return self.end_job(key, *job, Err(error)),
        };
        if piece_done && job.at == job.op.range().end {
            self.end_job(key, *job, Ok(()));
        } else if job.canceled {
            let error = job.error(ErrorKind::Canceled);
            self.end_job(key, *job, Err(error));
        } else if piece_done {
            self.next_piece_or_wait(key, job);
        } else {
            self.send(key, job);
        }
    }
}

fn freeze(memory: &mut BufList) -> ViewList {
    std::mem::take(memory).into_iter().map(Buf::freeze).collect()
}

/// Copies `len` bytes of the list `source` from byte `from` on to the list `target` at byte `to`.
fn copy<S: AsRef<[u8]>>(source: &[S], mut from: usize, target: &mut [Buf], mut to: usize, mut len: usize) {
    let (mut s, mut t) = (0, 0);
    while len > 0 && s < source.len() && t < target.len() {
        let bytes = source[s].as_ref();
        if from >= bytes.len() {
            from -= bytes.len();
            s += 1;
        } else if to >= target[t].len() {
            to -= target[t].len();
            t += 1;
        } else {
            let count = len.min(bytes.len() - from).min(target[t].len() - to);
            target[t][to..to + count].copy_from_slice(&bytes[from..from + count]);
            (from, to, len) = (from + count, to + count, len - count);
        }
    }
    debug_assert_eq!(len, 0, "a list is shorter than what is copied");
}
