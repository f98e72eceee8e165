//! The payload of a write on its way in.
//!
//! Invariant: `filled <= len`, and the first `filled` bytes of `bufs` are the payload's. While the rest is
//! received directly, `bufs` holds only what was filled before.

use super::budget::Charge;
use crate::proto::reply::RequestId;
use raidcore::buf::{BufList, ViewList};

/// A write whose payload is not complete.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) id: RequestId,
    pub(super) offset: u64,
    pub(super) fua: bool,
    pub(super) charge: Option<Charge>,
    bufs: BufList,
    filled: usize,
}

impl Incoming {
    /// A write into `bufs`, which are as long as its payload.
    pub(super) fn new(
        id: RequestId,
        offset: u64,
        fua: bool,
        charge: Option<Charge>,
        bufs: BufList,
    ) -> Incoming {
        Incoming { id, offset, fua, charge, bufs, filled: 0 }
    }

    /// Copies the next bytes of the payload.
    pub(super) fn copy(&mut self, mut bytes: &[u8]) {
        let mut start = 0;
        for buf in &mut self.bufs {
            let at = self.filled.saturating_sub(start).min(buf.len());
            let count = (buf.len() - at).min(bytes.len());
            buf[at..at + count].copy_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            self.filled += count;
            start += buf.len();
        }
        debug_assert!(bytes.is_empty(), "payload is longer than its memory");
    }

    /// Takes out the memory of what is still to come, to receive straight into it.
    pub(super) fn split_rest(&mut self) -> BufList {
        let (mut rest, mut start) = (BufList::new(), 0);
        for mut buf in std::mem::take(&mut self.bufs) {
            let (len, at) = (buf.len(), self.filled.saturating_sub(start).min(buf.len()));
            start += len;
            match at {
                0 => rest.push(buf),
                at if at == len => self.bufs.push(buf),
                at => {
                    self.bufs.push(buf.split_to(at));
                    rest.push(buf);
                }
            }
        }
        rest
    }

    /// Puts the memory of `split_rest` back, filled. Pieces that were one become one again, for a device wants
    /// its memory aligned.
    pub(super) fn join_rest(&mut self, rest: BufList) {
        for buf in rest {
            self.filled += buf.len();
            let apart = match self.bufs.last_mut() {
                Some(last) => last.unsplit(buf).err(),
                None => Some(buf),
            };
            self.bufs.extend(apart);
        }
    }

    /// The payload, complete.
    pub(super) fn take_data(&mut self) -> ViewList {
        std::mem::take(&mut self.bufs).into_iter().map(|buf| buf.freeze()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::reply::Cookie;
    use raidcore::buf::{Slab, SlabConfig};

    #[test]
    fn copied_and_directly_received_parts_make_one_aligned_payload() {
        let slab = Slab::new(&SlabConfig::of(&[(4096, 8)])).unwrap();
        for copied in [0, 1, 4095, 4096, 4097, 9000] {
            let id = RequestId { cookie: Cookie(1), offset: 0 };
            let mut incoming = Incoming::new(id, 0, false, None, slab.alloc_list(10000).unwrap());
            let bytes: Vec<u8> = (0..10000u32).map(|i| (i % 251) as u8).collect();
            bytes[..copied].chunks(700).for_each(|piece| incoming.copy(piece));
            let mut rest = incoming.split_rest();
            let mut from = copied;
            for buf in &mut rest {
                let to = from + buf.len();
                buf.copy_from_slice(&bytes[from..to]);
                from = to;
            }
            assert_eq!(from, 10000);
            incoming.join_rest(rest);
            let data = incoming.take_data();
            assert_eq!(data.iter().map(|view| view.len()).collect::<Vec<_>>(), [4096, 4096, 1808]);
            assert_eq!(data.iter().flat_map(|view| view.to_vec()).collect::<Vec<_>>(), bytes);
        }
        assert_eq!(slab.usage().used_bytes, 0);
    }
}
