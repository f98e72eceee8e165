//! Requests that do not begin and end on a block: read-modify-write, step by step.

use super::*;
use crate::buf::{Buf, Exhausted, ViewList};

/// What follows when the part of a request that is below is answered.
pub(super) enum Patch {
    /// A read of whole blocks: copy what was asked for into the caller's memory.
    Read { skip: usize, bufs: BufList },
    /// The first and the last block of a write, read: put the data over them and write all.
    Fill { request: Request, rest: Fill },
    /// Nothing more of this part; the rest of the request, if there is one, is a request of its own.
    Then(Option<Request>),
}

/// A write on its way to whole blocks: memory for all of it, its edges as they come in.
pub(super) struct Fill {
    memory: BufList,
    /// The last block is still to be read.
    last_to_read: bool,
    /// What comes after this write.
    then: Option<Request>,
}

impl<D: BlockDev> Lu<D> {
    /// Starts a request that is not aligned, or returns it if there is no memory for it now.
    pub(super) fn start_patch(&mut self, request: Request, blocks: Range<u64>) -> Result<(), Request> {
        let Request { tag, op, deadline } = request;
        match op {
            Op::Read { offset, bufs } => {
                let whole = self.blocks_of(offset..offset + list_len(&bufs));
                let Ok(memory) = self.slab.alloc_list((whole.end - whole.start) as usize) else {
                    return Err(Request { tag, op: Op::Read { offset, bufs }, deadline });
                };
                let skip = (offset - whole.start) as usize;
                let op = Op::Read { offset: whole.start, bufs: memory };
                self.forward(Request { tag, op, deadline }, 0..0, Some(Patch::Read { skip, bufs }));
                Ok(())
            }
            Op::Write { .. } => self.start_fill(Request { tag, op, deadline }, blocks, None),
            Op::WriteZeroes { offset, len, fua, unmap } => {
                let zeroes = Zeroes { offset, len, fua, unmap };
                self.start_zeroes(tag, zeroes, deadline)
                    .map_err(|Exhausted { .. }| zeroes.request(tag, deadline))
            }
            // Advice about part of a block is not taken.
            Op::Discard { offset, len } => {
                let block = u64::from(self.geometry.block_size.bytes());
                let (from, to) = (offset.next_multiple_of(block), (offset + len) / block * block);
                match from < to {
                    true => {
                        let op = Op::Discard { offset: from, len: to - from };
                        self.forward(Request { tag, op, deadline }, from..to, None);
                    }
                    false => self.finish(tag, Ok(()), BufList::new()),
                }
                Ok(())
            }
            Op::Flush => {
                self.forward(Request { tag, op: Op::Flush, deadline }, 0..0, None);
                Ok(())
            }
        }
    }

    fn start_fill(
        &mut self,
        request: Request,
        blocks: Range<u64>,
        then: Option<Request>,
    ) -> Result<(), Request> {
        let Ok(memory) = self.slab.alloc_list((blocks.end - blocks.start) as usize) else {
            return Err(request);
        };
        let block = u64::from(self.geometry.block_size.bytes());
        let range = request.op.range();
        let first_whole = range.start == blocks.start && range.end - range.start >= block;
        let one_block = blocks.end - blocks.start == block;
        let last_to_read = !one_block && range.end != blocks.end;
        let fill = Fill { memory, last_to_read, then };
        self.read_edge(request, blocks, fill, first_whole)
    }

    /// Reads the next edge block into its place in the memory, or goes on to the write.
    fn read_edge(
        &mut self,
        request: Request,
        blocks: Range<u64>,
        mut rest: Fill,
        first_done: bool,
    ) -> Result<(), Request> {
        let block = self.geometry.block_size.bytes() as usize;
        let at = if !first_done {
            blocks.start
        } else if std::mem::take(&mut rest.last_to_read) {
            blocks.end - block as u64
        } else {
            self.write_filled(request, blocks, rest);
            return Ok(());
        };
        let Ok(buf) = self.slab.alloc(block) else { return Err(request) };
        let op = Op::Read { offset: at, bufs: BufList::from_iter([buf]) };
        let (tag, deadline) = (request.tag, request.deadline);
        self.forward(Request { tag, op, deadline }, blocks, Some(Patch::Fill { request, rest }));
        Ok(())
    }

    /// All edges are in: the data goes over them, and all goes down.
    fn write_filled(&mut self, request: Request, blocks: Range<u64>, mut rest: Fill) {
        let Request { tag, op, deadline } = request;
        let Op::Write { offset, data, fua } = op else { return };
        let mut at = (offset - blocks.start) as usize;
        for view in &data {
            put(&mut rest.memory, at, view);
            at += view.len();
        }
        let data: ViewList = rest.memory.into_iter().map(Buf::freeze).collect();
        let op = Op::Write { offset: blocks.start, data, fua };
        self.forward(Request { tag, op, deadline }, blocks, Some(Patch::Then(rest.then)));
    }

    /// Zeroes from the front: up to the first whole block, then whole blocks, then what is left.
    fn start_zeroes(&mut self, tag: Tag, zeroes: Zeroes, deadline: Time) -> Result<(), Exhausted> {
        let Zeroes { offset, len, fua, unmap } = zeroes;
        let block = u64::from(self.geometry.block_size.bytes());
        let end = offset + len;
        let whole_end = end / block * block;
        let aligned = offset.is_multiple_of(block) && offset < whole_end;
        let cut = if aligned { whole_end } else { end.min((offset + 1).next_multiple_of(block)) };
        let rest = Zeroes { offset: cut, len: end - cut, ..zeroes };
        let then = (cut < end).then(|| rest.request(tag, deadline));
        if aligned {
            let op = Op::WriteZeroes { offset, len: cut - offset, fua, unmap };
            self.forward(Request { tag, op, deadline }, offset..cut, Some(Patch::Then(then)));
            return Ok(());
        }
        // A part of one block: zeroes are data.
        let mut data = self.slab.alloc((cut - offset) as usize)?;
        data.fill(0);
        let op = Op::Write { offset, data: ViewList::from_iter([data.freeze()]), fua };
        let blocks = self.blocks_of(offset..cut);
        let back = self.start_fill(Request { tag, op, deadline }, blocks, then);
        back.map_err(|_| Exhausted { bytes: block as usize })
    }

    /// Goes on with a request whose part below is answered.
    pub(super) fn go_on(&mut self, tag: Tag, blocks: Range<u64>, patch: Patch, answer: Completion) {
        if let Err(error) = answer.result {
            let bufs = if let Patch::Read { bufs, .. } = patch { bufs } else { BufList::new() };
            return self.finish(tag, Err(error), bufs);
        }
        match patch {
            Patch::Read { skip, mut bufs } => {
                let mut at = skip;
                for buf in &mut bufs {
                    take(&answer.bufs, at, buf);
                    at += buf.len();
                }
                self.finish(tag, Ok(()), bufs);
            }
            Patch::Then(None) => self.finish(tag, Ok(()), BufList::new()),
            Patch::Then(Some(request)) => self.again(request),
            Patch::Fill { request, mut rest } => {
                let block = self.geometry.block_size.bytes() as usize;
                let len = list_len(&rest.memory) as usize;
                let is_last = !rest.last_to_read && len > block && request.op.range().end != blocks.end;
                let at = if is_last { len - block } else { 0 };
                if let Some(edge) = answer.bufs.first() {
                    put(&mut rest.memory, at, edge);
                }
                if let Err(request) = self.read_edge(request, blocks, rest, true) {
                    self.again(request);
                }
            }
        }
    }

    /// Starts a request, or lets it wait for memory.
    fn again(&mut self, request: Request) {
        if let Err(request) = self.start(request) {
            self.waiting.push_front(request);
        }
    }
}

/// A write-zeroes.
#[derive(Clone, Copy)]
struct Zeroes {
    offset: u64,
    len: u64,
    fua: bool,
    unmap: bool,
}

impl Zeroes {
    fn request(self, tag: Tag, deadline: Time) -> Request {
        let Zeroes { offset, len, fua, unmap } = self;
        Request { tag, op: Op::WriteZeroes { offset, len, fua, unmap }, deadline }
    }
}

/// Copies `bytes` over the list's bytes from `at` on.
fn put(list: &mut BufList, mut at: usize, mut bytes: &[u8]) {
    for buf in list {
        if at >= buf.len() {
            at -= buf.len();
            continue;
        }
        let len = bytes.len().min(buf.len() - at);
        buf[at..at + len].copy_from_slice(&bytes[..len]);
        bytes = &bytes[len..];
        at = 0;
        if bytes.is_empty() {
            return;
        }
    }
}

/// Fills `bytes` with the list's bytes from `at` on.
fn take(list: &BufList, mut at: usize, mut bytes: &mut [u8]) {
    for buf in list {
        if at >= buf.len() {
            at -= buf.len();
            continue;
        }
        let len = bytes.len().min(buf.len() - at);
        bytes[..len].copy_from_slice(&buf[at..at + len]);
        bytes = &mut bytes[len..];
        at = 0;
        if bytes.is_empty() {
            return;
        }
    }
}
