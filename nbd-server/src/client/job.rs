//! One request of a device's caller on its way through connections, and its memory.
//!
//! A job is sent as one request of the protocol, or as several, one after the other, where the server takes less at
//! once. A job whose connection broke is sent again from the start of the piece that was not answered.

use super::terms::Terms;
use super::unflushed::Mark;
use crate::limits::{MAX_RANGE_BYTES, MAX_SEALED_BYTES, UNFLUSHED_UNIT_BYTES};
use crate::proto::wire::{cmd, cmd_flags, transmission_flags};
use raidcore::buf::{BufList, View, ViewList, list_len};
use raidcore::dev::{IoError, Op, OpKind, Request, Tag};
use raidcore::time::Time;
use raidcore::uring::SendPart;
use std::collections::HashMap;
use std::ops::Range;

/// Names a job, for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct JobId(pub(super) u64);

impl JobId {
    /// The job that a cookie is of.
    pub(super) fn of_cookie(cookie: u64) -> JobId {
        JobId(cookie >> 16)
    }
}

/// All jobs of a device.
pub(super) type Jobs = HashMap<JobId, Job>;

/// A request in the device.
#[derive(Debug)]
pub(super) struct Job {
    /// The caller's; `None` for a read of our own, and for one that was cancelled.
    pub(super) tag: Option<Tag>,
    pub(super) kind: OpKind,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) deadline: Time,
    pub(super) fua: bool,
    unmap: bool,
    pub(super) memory: Memory,
    data: ViewList,
    /// `cursor <= len`: answered so far.
    cursor: u64,
    /// Bytes of the piece that is in flight.
    piece: u64,
    /// All is written; a flush makes it durable, for the server knows no FUA.
    pub(super) is_syncing: bool,
    /// The connection it is in flight on.
    pub(super) on: Option<u64>,
    /// How often this piece was sent.
    pub(super) sends: u32,
    /// Counts everything that was sent for it, so that each has a cookie of its own.
    serial: u16,
    /// A server may have what it did not answer.
    pub(super) was_sent: bool,
    /// What a flush covers.
    pub(super) mark: Mark,
    /// How it ended, while its memory is still on loan.
    pub(super) ending: Option<Result<(), IoError>>,
}

/// What is sent for a piece of a job.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) payload: Vec<SendPart>,
}

impl Job {
    pub(super) fn new(request: Request, mark: Mark) -> Job {
        let kind = request.op.kind();
        let (offset, len) = request.op.extent();
        let mut job = Job::empty(kind, offset, len, request.deadline);
        job.tag = Some(request.tag);
        job.mark = mark;
        match request.op {
            Op::Read { bufs, .. } => job.memory = Memory::of(bufs),
            Op::Write { data, fua, .. } => (job.data, job.fua) = (data, fua),
            Op::WriteZeroes { fua, unmap, .. } => (job.fua, job.unmap) = (fua, unmap),
            Op::Flush | Op::Discard { .. } => {}
        }
        job
    }

    /// A read of the device's own.
    pub(super) fn look(range: Range<u64>, memory: BufList, deadline: Time) -> Job {
        let mut job = Job::empty(OpKind::Read, range.start, range.end - range.start, deadline);
        job.memory = Memory::of(memory);
        job
    }

    fn empty(kind: OpKind, offset: u64, len: u64, deadline: Time) -> Job {
        Job {
            tag: None,
            kind,
            offset,
            len,
            deadline,
            fua: false,
            unmap: false,
            memory: Memory::default(),
            data: ViewList::new(),
            cursor: 0,
            piece: 0,
            is_syncing: false,
            on: None,
            sends: 0,
            serial: 0,
            was_sent: false,
            mark: Mark::default(),
            ending: None,
        }
    }

    /// True if it changes what the server has.
    pub(super) fn is_write(&self) -> bool {
        matches!(self.kind, OpKind::Write | OpKind::Discard | OpKind::WriteZeroes)
    }

    /// It is about to be sent on this connection. The request's cookie.
    pub(super) fn set_out(&mut self, id: JobId, link: u64) -> u64 {
        self.on = Some(link);
        self.sends += 1;
        self.serial = self.serial.wrapping_add(1);
        self.was_sent = true;
        id.0 << 16 | u64::from(self.serial)
    }

    /// Where data of the piece in flight lies in the job's memory.
    pub(super) fn place(&self, at: u64) -> u64 {
        self.cursor + at
    }

    /// The bytes of the device that the piece in flight is about.
    pub(super) fn piece_range(&self) -> Range<u64> {
        self.offset + self.cursor..self.offset + self.cursor + self.piece
    }

    /// The payload of the piece in flight, where there is one.
    pub(super) fn piece_data(&self) -> ViewList {
        cut(&self.data, self.cursor, self.piece)
    }

    /// The piece in flight was answered well; true if more of the job is to be sent.
    pub(super) fn advance(&mut self) -> bool {
        self.on = None;
        self.sends = 0;
        self.was_sent = false;
        if self.is_syncing {
            return false;
        }
        self.cursor += self.piece;
        self.piece = 0;
        self.cursor < self.len
    }

    /// What is to be sent next; `zeroes` stands in for zeroing where the server does not know it.
    pub(super) fn next_piece(&mut self, terms: &Terms, is_tls: bool, zeroes: Option<&View>) -> Piece {
        let flag = |when: bool, flag: u16| if when { flag } else { 0 };
        let fua = flag(self.fua && terms.has(transmission_flags::SEND_FUA), cmd_flags::FUA);
        if self.is_syncing || self.kind == OpKind::Flush {
            self.piece = 0;
            return Piece { kind: cmd::FLUSH, flags: 0, offset: 0, len: 0, payload: Vec::new() };
        }
        let most_payload = match is_tls {
            true => u64::from(terms.block.max).min(MAX_SEALED_BYTES as u64),
            false => u64::from(terms.block.max),
        };
        let (kind, flags, most) = match self.kind {
            OpKind::Read => (cmd::READ, 0, u64::from(terms.block.max)),
            OpKind::Discard => (cmd::TRIM, 0, MAX_RANGE_BYTES),
            OpKind::WriteZeroes if zeroes.is_none() => {
                (cmd::WRITE_ZEROES, fua | flag(!self.unmap, cmd_flags::NO_HOLE), MAX_RANGE_BYTES)
            }
            OpKind::Write | OpKind::WriteZeroes | OpKind::Flush => (cmd::WRITE, fua, most_payload),
        };
        let most =
            if self.kind == OpKind::WriteZeroes && zeroes.is_some() { most.min(1 << 20) } else { most };
        // Whole units, so that each can be looked for; blocks where the server takes no more at once.
        let min = u64::from(terms.block.min);
        let unit = if most < UNFLUSHED_UNIT_BYTES { min } else { min.max(UNFLUSHED_UNIT_BYTES) };
        self.piece = (self.len - self.cursor).min((most - most % unit).max(min));
        let payload = match (self.kind, zeroes) {
            (OpKind::Write, _) => self.piece_data().into_iter().map(SendPart::View).collect(),
            (OpKind::WriteZeroes, Some(zeroes)) => repeat(zeroes, self.piece),
            _ => Vec::new(),
        };
        let Range { start, end } = self.piece_range();
        Piece { kind, flags, offset: start, len: end - start, payload }
    }
}

/// `len` bytes of a view that is as good as any other.
fn repeat(zeroes: &View, len: u64) -> Vec<SendPart> {
    let mut parts = Vec::new();
    let mut left = len as usize;
    while left > 0 {
        let part = left.min(zeroes.len());
        parts.push(SendPart::View(zeroes.slice(0, part)));
        left -= part;
    }
    parts
}

/// The bytes `at..at + len` of a list, sharing its memory.
fn cut(list: &ViewList, at: u64, len: u64) -> ViewList {
    let (mut skip, mut left) = (at as usize, len as usize);
    let mut part = ViewList::new();
    for view in list {
        let from = skip.min(view.len());
        let count = (view.len() - from).min(left);
        if count > 0 {
            part.push(view.slice(from, count));
        }
        skip -= from;
        left -= count;
    }
    part
}

/// The memory of a read. A part of it may be on loan to a receive.
#[derive(Debug, Default)]
pub(super) struct Memory {
    front: BufList,
    /// Behind what is on loan.
    back: BufList,
    on_loan: bool,
}

impl Memory {
    fn of(bufs: BufList) -> Memory {
        Memory { front: bufs, back: BufList::new(), on_loan: false }
    }

    /// True while a receive holds a part of it.
    pub(super) fn is_on_loan(&self) -> bool {
        self.on_loan
    }

    /// Takes all of it away; what is on loan stays lost.
    pub(super) fn take(&mut self) -> BufList {
        if self.on_loan {
            return BufList::new();
        }
        std::mem::take(&mut self.front)
    }

    /// Copies `bytes` to `at`. Nothing happens where memory was taken away.
    pub(super) fn fill(&mut self, at: u64, bytes: &[u8]) {
        let mut rest = bytes;
        self.each(at, bytes.len() as u64, |part| {
            let (now, later) = rest.split_at(part.len());
            part.copy_from_slice(now);
            rest = later;
        });
    }

    /// Zeroes `len` bytes at `at`.
    pub(super) fn zero(&mut self, at: u64, len: u64) {
        self.each(at, len, |part| part.fill(0));
    }

    fn each(&mut self, at: u64, len: u64, mut act: impl FnMut(&mut [u8])) {
        if self.on_loan {
            return;
        }
        let (mut skip, mut left) = (at as usize, len as usize);
        for buf in &mut self.front {
            let from = skip.min(buf.len());
            let count = (buf.len() - from).min(left);
            if count > 0 {
                act(&mut buf[from..from + count]);
            }
            skip -= from;
            left -= count;
        }
    }

    /// Lends `len` bytes at `at`; `None` if they are not there.
    pub(super) fn lend(&mut self, at: u64, len: u64) -> Option<BufList> {
        if self.on_loan || at.checked_add(len)? > list_len(&self.front) {
            return None;
        }
        let mut middle = split_off(&mut self.front, at as usize);
        self.back = split_off(&mut middle, len as usize);
        self.on_loan = true;
        Some(middle)
    }

    /// Takes back what was lent.
    pub(super) fn restore(&mut self, middle: BufList) {
        join(&mut self.front, middle);
        let back = std::mem::take(&mut self.back);
        join(&mut self.front, back);
        self.on_loan = false;
    }
}

/// Cuts a list in two at `at` bytes and returns the second part.
fn split_off(list: &mut BufList, at: usize) -> BufList {
    let mut left = at;
    let (mut front, mut back) = (BufList::new(), BufList::new());
    for mut buf in list.drain(..) {
        let count = left.min(buf.len());
        left -= count;
        if count == buf.len() {
            front.push(buf);
        } else {
            if count > 0 {
                front.push(buf.split_to(count));
            }
            back.push(buf);
        }
    }
    *list = front;
    back
}

/// Appends a list, and makes one piece again of what was cut in two.
fn join(list: &mut BufList, next: BufList) {
    for buf in next {
        match list.last_mut() {
            Some(last) => {
                if let Err(buf) = last.unsplit(buf) {
                    list.push(buf);
                }
            }
            None => list.push(buf),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raidcore::buf::{Slab, SlabConfig};

    #[test]
    fn memory_that_was_lent_comes_back_whole_and_in_order() {
        let slab = Slab::new(&SlabConfig::small()).unwrap();
        let bufs: BufList = [4096, 512, 8192].iter().map(|len| slab.alloc(*len).unwrap()).collect();
        let lens: Vec<usize> = bufs.iter().map(|buf| buf.len()).collect();
        let mut memory = Memory::of(bufs);
        for at in [0, 1, 4096, 4100, 4608, 12799] {
            for len in [1, 511, 5000, 12800 - at] {
                memory.zero(0, 12800);
                let Some(mut lent) = memory.lend(at, len) else {
                    assert!(at + len > 12800);
                    continue;
                };
                assert!(memory.is_on_loan() && list_len(&lent) == len);
                lent.iter_mut().for_each(|buf| buf.fill(7));
                memory.restore(lent);
                let bytes: Vec<u8> = memory.front.iter().flat_map(|buf| buf.to_vec()).collect();
                let expected = |i: u64| if (at..at + len).contains(&i) { 7 } else { 0 };
                assert!((0..12800).all(|i| bytes[i as usize] == expected(i)));
                assert_eq!(memory.front.iter().map(|buf| buf.len()).collect::<Vec<_>>(), lens);
            }
        }
        memory.fill(4000, &[9; 1000]);
        assert_eq!((memory.front[0][3999], memory.front[0][4000], memory.front[2][391]), (0, 9, 9));
        drop(memory);
        assert_eq!(slab.usage().used_bytes, 0);
    }
}
