//! Replies to reads that leave the zeroes out.
//!
//! Blocks of [`HOLE_BYTES`], aligned on the export, that are all zeroes are told as holes. To find them costs next to
//! nothing where there are none: a block whose first word is not zero is looked at no further.
//!
//! Invariants: the runs follow each other from the read's offset to its end, neighbours differ in kind, and there are
//! at most [`MAX_READ_CHUNKS`]: what comes after them is told as data in the last, zeroes included.

use crate::limits::{HOLE_BYTES, MAX_READ_CHUNKS};
use crate::proto::reply::{Head, Part, RequestId, Style};
use raidcore::buf::{Buf, BufList};
use raidcore::uring::SendPart;
use smallvec::SmallVec;

/// The reply to a read of `len` bytes at the offset of `id`, which `bufs` hold. Not for simple replies.
pub(super) fn reply(style: Style, id: RequestId, len: u32, bufs: BufList) -> SmallVec<[SendPart; 4]> {
    let runs = runs(id.offset, &bufs);
    let mut parts = SmallVec::new();
    let mut offset = id.offset;
    let mut bufs = bufs.into_iter();
    let mut rest = bufs.next();
    for (at, run) in runs.iter().enumerate() {
        let is_last = at + 1 == runs.len();
        let part = Part { offset, len: run.len as u32, is_last };
        let head = if run.is_hole { Head::hole(style, id, part) } else { Head::data(style, id, part) };
        parts.push(SendPart::Bytes(head.into_bytes()));
        offset += run.len as u64;
        let mut left = run.len;
        while left > 0 {
            let Some(buf) = &mut rest else { break };
            let count = left.min(buf.len());
            let piece = if count == buf.len() { rest.take() } else { Some(buf.split_to(count)) };
            rest = rest.or_else(|| bufs.next());
            left -= count;
            // The memory of a hole is free from here on.
            if !run.is_hole {
                parts.extend(piece.map(SendPart::Buf));
            }
        }
    }
    debug_assert_eq!(offset, id.offset + u64::from(len));
    parts
}

/// A stretch of data, or of zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    len: usize,
    is_hole: bool,
}

fn runs(mut offset: u64, bufs: &[Buf]) -> SmallVec<[Run; 4]> {
    let mut runs: SmallVec<[Run; 4]> = SmallVec::new();
    for buf in bufs {
        let mut bytes = &buf[..];
        while !bytes.is_empty() {
            let to_boundary = HOLE_BYTES - (offset % HOLE_BYTES as u64) as usize;
            let (block, rest) = bytes.split_at(to_boundary.min(bytes.len()));
            // A block in two pieces of memory is data: reads are aligned, as a rule, and so is memory.
            add(&mut runs, block.len(), block.len() == HOLE_BYTES && is_zero(block));
            offset += block.len() as u64;
            bytes = rest;
        }
    }
    runs
}

fn add(runs: &mut SmallVec<[Run; 4]>, len: usize, is_hole: bool) {
    let count = runs.len();
    match runs.last_mut() {
        Some(last) if last.is_hole == is_hole => last.len += len,
        Some(last) if count == MAX_READ_CHUNKS => {
            *last = Run { len: last.len + len, is_hole: false };
        }
        _ => runs.push(Run { len, is_hole }),
    }
}

/// True if there is no bit set in `block`, which is not longer than [`HOLE_BYTES`].
fn is_zero(block: &[u8]) -> bool {
    static ZEROES: [u8; HOLE_BYTES] = [0; HOLE_BYTES];
    // The comparison ends with the first byte that differs, but it is a call: most data shows itself before that.
    block.first_chunk::<8>().is_none_or(|word| *word == [0; 8]) && block == &ZEROES[..block.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::reply::Cookie;
    use proptest::prelude::*;
    use raidcore::buf::{Slab, SlabConfig};

    fn memory(slab: &Slab, bytes: &[u8]) -> BufList {
        let mut bufs = slab.alloc_list(bytes.len()).unwrap();
        let mut from = 0;
        for buf in &mut bufs {
            let to = from + buf.len();
            buf.copy_from_slice(&bytes[from..to]);
            from = to;
        }
        bufs
    }

    /// What a client makes of a reply: the data, how many chunks, how many bytes of holes.
    fn understand(offset: u64, len: usize, parts: &[SendPart]) -> (Vec<u8>, usize, usize) {
        let stream: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
        let number = |bytes: &[u8]| bytes.iter().fold(0u64, |n, &byte| n << 8 | u64::from(byte));
        let (mut data, mut chunks, mut holes, mut rest) = (vec![0xee; len], 0, 0, &stream[..]);
        loop {
            let (flags, kind, size) =
                (number(&rest[4..6]), number(&rest[6..8]), number(&rest[16..20]) as usize);
            let (payload, after) = rest[20..].split_at(size);
            let at = (number(&payload[..8]) - offset) as usize;
            let bytes =
                if kind == 2 { vec![0; number(&payload[8..12]) as usize] } else { payload[8..].to_vec() };
            assert!(!bytes.is_empty() && data[at..at + bytes.len()].iter().all(|byte| *byte == 0xee));
            data[at..at + bytes.len()].copy_from_slice(&bytes);
            holes += if kind == 2 { bytes.len() } else { 0 };
            chunks += 1;
            rest = after;
            assert_eq!(flags == 1, rest.is_empty());
            if rest.is_empty() {
                return (data, chunks, holes);
            }
        }
    }

    fn told(offset: u64, bytes: &[u8]) -> (usize, usize) {
        let slab = Slab::new(&SlabConfig::of(&[(65536, 80)])).unwrap();
        let id = RequestId { cookie: Cookie(1), offset };
        let parts = reply(Style::Structured, id, bytes.len() as u32, memory(&slab, bytes));
        let (data, chunks, holes) = understand(offset, bytes.len(), &parts);
        assert!(data == bytes, "other bytes are told");
        drop(parts);
        assert_eq!(slab.usage().used_bytes, 0);
        (chunks, holes)
    }

    #[test]
    fn aligned_blocks_of_zeroes_are_holes_and_nothing_else_is() {
        assert_eq!(told(0, &[7; 65536]), (1, 0));
        assert_eq!(told(0, &[0; 200_000]), (2, 196_608));
        assert_eq!(told(4096, &[0; 4096]), (1, 4096));
        assert_eq!(told(0, &[0; 4095]), (1, 0));
        assert_eq!(told(1, &[0; 8190]), (1, 0));
        assert_eq!(told(512, &[0; 65536]), (3, 61440));
        let mut late = [0; 4096];
        late[4095] = 1;
        assert_eq!(told(0, &late), (1, 0));
    }

    #[test]
    fn holes_without_end_make_a_bounded_number_of_chunks() {
        let mut bytes = vec![0; 4 << 20];
        bytes.chunks_mut(8192).for_each(|pair| pair[0] = 1);
        assert_eq!(told(0, &bytes), (MAX_READ_CHUNKS, (MAX_READ_CHUNKS / 2 - 1) * 4096));
    }

    proptest! {
        #[test]
        fn whatever_is_left_out_the_client_gets_the_same_bytes(
            blocks in prop::collection::vec(0u8..3, 1..40), offset in 0u64..3, cut in 0usize..9, len in 1usize..200_000
        ) {
            let mut bytes: Vec<u8> = blocks.iter().flat_map(|kind| match kind {
                0 => vec![9; 4096],
                1 => [vec![0; 4000], vec![1], vec![0; 95]].concat(),
                _ => vec![0; 4096],
            }).collect();
            bytes.drain(..cut * 512 % 4096);
            bytes.truncate(len);
            told(offset * 4096 + (cut * 512 % 4096) as u64, &bytes);
        }
    }
}
