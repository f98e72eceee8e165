//! What the memory of a request's payload is made of.

use crate::limits::PIECE_BYTES;
use raidcore::buf::{BufList, Exhausted, Slab};
use raidcore::limits::{MAX_BLOCK_BYTES, PAGE_BYTES};

/// Memory for `len` bytes, in order. A slab takes the smallest block that fits the whole, which for 68 KiB is a
/// megabyte; what is left after the full megabytes is therefore made of smaller pieces while there are any.
pub(super) fn pieces(slab: &Slab, len: usize) -> Result<BufList, Exhausted> {
    let rest = len % MAX_BLOCK_BYTES;
    let few = if len <= PIECE_BYTES || rest > MAX_BLOCK_BYTES / 2 {
        slab.alloc_list(len)
    } else {
        slab.alloc_list(len - rest).and_then(|list| pieces_of(PIECE_BYTES, slab, list, rest))
    };
    // When large blocks are out there may be small ones, of which a request must not have too many.
    few.or_else(|_| pieces_of(PIECE_BYTES, slab, BufList::new(), len)).or_else(|exhausted| match len {
        len if len <= MAX_BLOCK_BYTES => pieces_of(PAGE_BYTES, slab, BufList::new(), len),
        _ => Err(exhausted),
    })
}

fn pieces_of(size: usize, slab: &Slab, mut list: BufList, mut left: usize) -> Result<BufList, Exhausted> {
    while left > 0 {
        let piece = left.min(size);
        list.push(slab.alloc(piece)?);
        left -= piece;
    }
    Ok(list)
}

/// What [`pieces`] takes of a slab for `len` bytes, in whole blocks: that is what others cannot have.
pub(super) fn footprint(len: usize) -> u64 {
    let rest = match len % MAX_BLOCK_BYTES {
        rest if len <= PIECE_BYTES && rest <= PAGE_BYTES => PAGE_BYTES,
        rest if rest > MAX_BLOCK_BYTES / 2 => MAX_BLOCK_BYTES,
        rest => rest.next_multiple_of(PIECE_BYTES),
    };
    (len - len % MAX_BLOCK_BYTES + rest) as u64
}
