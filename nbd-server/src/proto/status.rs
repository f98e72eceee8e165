//! The reply to `NBD_CMD_BLOCK_STATUS`: a chunk for each context, with the extents of the range.

use super::meta_context::id_of;
use super::reply::{Head, RequestId, Style};
use crate::export::{Extent, MetaContext};
use crate::limits::MAX_EXTENTS;

/// Makes what an engine said fit to be told: no empty extents, neighbours of one status joined, nothing beyond the
/// `len` bytes that were asked about, and `only_first` of them if the client wants one. At least one extent is left.
pub fn tidy(extents: &mut Vec<Extent>, len: u64, only_first: bool) {
    let mut left = len;
    let mut kept = 0;
    for at in 0..extents.len() {
        let Extent { len, flags } = extents[at];
        let len = len.min(left);
        left -= len;
        if len == 0 {
            continue;
        }
        match kept {
            _ if kept > 0 && extents[kept - 1].flags == flags => extents[kept - 1].len += len,
            _ => {
                extents[kept] = Extent { len, flags };
                kept += 1;
            }
        }
    }
    extents.truncate(kept.min(if only_first { 1 } else { MAX_EXTENTS }));
    if extents.is_empty() {
        // Nothing is known of it; a status of 0 is always safe.
        extents.push(Extent { len, flags: 0 });
    }
}

/// Of the header of a chunk, at most.
const EXTENDED_CHUNK_BYTES: usize = 32;

/// Bytes of a chunk with so many extents, with whichever headers: what [`put_chunk`] appends is not longer.
pub fn max_chunk_bytes(extents: usize) -> usize {
    EXTENDED_CHUNK_BYTES + 8 + 16 * extents
}

/// Appends the chunk of one context. `extents` are tidy, and `is_last` says whether the reply ends with it. With
/// extended headers lengths have 64 bits; without, a request has not more than 32 and so no extent has.
pub fn put_chunk(
    out: &mut Vec<u8>,
    style: Style,
    id: RequestId,
    context: MetaContext,
    extents: &[Extent],
    is_last: bool,
) {
    out.extend_from_slice(Head::status(style, id, extents.len(), is_last).as_bytes());
    out.extend_from_slice(&id_of(context).to_be_bytes());
    if style == Style::Extended {
        out.extend_from_slice(&(extents.len() as u32).to_be_bytes());
    }
    for extent in extents {
        if style == Style::Extended {
            out.extend_from_slice(&extent.len.to_be_bytes());
            out.extend_from_slice(&extent.flags.to_be_bytes());
        } else {
            debug_assert!(extent.len <= u64::from(u32::MAX));
            out.extend_from_slice(&(extent.len as u32).to_be_bytes());
            out.extend_from_slice(&(extent.flags as u32).to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::reply::Cookie;
    use super::*;
    use proptest::prelude::*;

    fn list(of: &[(u64, u64)]) -> Vec<Extent> {
        of.iter().map(|&(len, flags)| Extent { len, flags }).collect()
    }

    fn tidied(of: &[(u64, u64)], len: u64, only_first: bool) -> Vec<Extent> {
        let mut extents = list(of);
        tidy(&mut extents, len, only_first);
        extents
    }

    #[test]
    fn neighbours_of_one_status_are_one_and_nothing_is_told_beyond_the_range() {
        assert_eq!(tidied(&[(4, 0), (4, 0), (0, 3), (4, 1), (9, 1)], 14, false), list(&[(8, 0), (6, 1)]));
        assert_eq!(tidied(&[(4, 0), (4, 0), (4, 1)], 12, true), list(&[(8, 0)]));
        assert_eq!(tidied(&[(u64::MAX, 2), (u64::MAX, 1)], 5, false), list(&[(5, 2)]));
        assert_eq!(tidied(&[], 5, false), list(&[(5, 0)]));
        assert_eq!(tidied(&[(0, 1)], 5, true), list(&[(5, 0)]));
        let many: Vec<_> = (0..5000).map(|i| (512, i % 2)).collect();
        assert_eq!(tidied(&many, 512 * 5000, false).len(), MAX_EXTENTS);
    }

    #[test]
    fn a_chunk_is_drawn_as_the_specification_has_it() {
        let (id, extents) =
            (RequestId { cookie: Cookie(7), offset: 0x200 }, list(&[(0x1000, 0), (0x200, 3)]));
        let mut out = Vec::new();
        put_chunk(&mut out, Style::Structured, id, MetaContext::Health, &extents, false);
        let compact = [
            &[0x66, 0x8e, 0x33, 0xef, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 20][..],
            &[0, 0, 0, 2, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 3],
        ];
        assert_eq!(out, compact.concat());
        out.clear();
        put_chunk(&mut out, Style::Extended, id, MetaContext::Allocation, &extents, true);
        let extended = [
            &[0x6e, 0x8a, 0x27, 0x8c, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0, 0, 7][..],
            &[0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 40, 0, 0, 0, 1, 0, 0, 0, 2],
            &[0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 3],
        ];
        assert_eq!(out, extended.concat());
    }

    proptest! {
        #[test]
        fn tidying_changes_no_byte_of_the_meaning(
            of in prop::collection::vec((0u64..20, 0u64..3), 0..40), len in 1u64..200, only_first: bool
        ) {
            let flat = |extents: &[Extent]| -> Vec<u64> {
                extents.iter().flat_map(|e| std::iter::repeat_n(e.flags, e.len as usize)).collect()
            };
            let (mut before, after) = (flat(&list(&of)), tidied(&of, len, only_first));
            before.truncate(len as usize);
            let told = flat(&after);
            prop_assert!(!told.is_empty() && told.len() as u64 <= len && (!only_first || after.len() == 1));
            prop_assert!(after.iter().all(|e| e.len > 0) && after.windows(2).all(|w| w[0].flags != w[1].flags));
            if !before.is_empty() {
                prop_assert_eq!(&told[..], &before[..told.len()]);
                prop_assert!(only_first || told.len() == before.len());
            }
        }
    }
}
