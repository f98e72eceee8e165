//! Lists of buffers: the memory of one request, in order.

use super::handle::{Buf, View};
use smallvec::SmallVec;

/// Writable memory of one request, in order. One or two pieces stay off the heap.
pub type BufList = SmallVec<[Buf; 2]>;

/// Shared memory of one request, in order. One or two pieces stay off the heap.
pub type ViewList = SmallVec<[View; 2]>;

/// Bytes of all pieces together.
pub fn list_len<T: AsRef<[u8]>>(list: &[T]) -> u64 {
    list.iter().map(|piece| piece.as_ref().len() as u64).sum()
}
