//! Handles to slab memory: `Buf` (unique) and `View` (shared, read-only).
//!
//! Invariant: the ranges of all live `Buf`s of a block are disjoint from each other and from its `View`s. It
//! holds because a handle is only ever made by allocating, by splitting one in two, by freezing a `Buf`, or by
//! cloning a `View`.
#![allow(unsafe_code)] // one of the three places: it turns raw memory into slices

use super::slab::Arena;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

/// A place in a block, counted by the arena.
struct Piece {
    arena: Arc<Arena>,
    start: NonNull<u8>,
    len: u32,
    block: u32,
}

impl Piece {
    fn range(&self, from: usize, len: usize) -> Piece {
        assert!(
            from <= self.len() && len <= self.len() - from,
            "range {from}+{len} of a piece of {}",
            self.len()
        );
        self.arena.retain(self.block);
        // SAFETY: `from` was checked to lie within this piece, which lies within its block.
        let start = unsafe { self.start.add(from) };
        Piece { arena: Arc::clone(&self.arena), start, len: len as u32, block: self.block }
    }

    fn len(&self) -> usize {
        self.len as usize
    }

    fn as_slice(&self) -> &[u8] {
        // SAFETY: the block is mapped and initialised while the arena lives; the handles' invariant rules out
        // that a `Buf` of the same range exists while this one is read through a `View`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len()) }
    }

    fn is_followed_by(&self, next: &Piece) -> bool {
        self.block == next.block
            && Arc::ptr_eq(&self.arena, &next.arena)
            && self.start.as_ptr() as usize + self.len() == next.start.as_ptr() as usize
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.arena.release(self.block);
    }
}

/// The one handle to a range of slab memory. Readable and writable; may move to another thread.
pub struct Buf(Piece);

// SAFETY: a `Buf` is the only way to its bytes, so it may move between threads as a `Vec` may.
unsafe impl Send for Buf {}
// SAFETY: a shared `&Buf` only reads.
unsafe impl Sync for Buf {}

impl Buf {
    pub(super) fn from_parts(arena: Arc<Arena>, block: u32, start: NonNull<u8>, len: u32) -> Buf {
        Buf(Piece { arena, start, len, block })
    }

    /// Cuts the first `at` bytes off and returns them; `self` keeps the rest. Panics if `at` is past the end.
    pub fn split_to(&mut self, at: usize) -> Buf {
        let head = self.0.range(0, at);
        let tail = self.0.range(at, self.0.len() - at);
        self.0 = tail;
        Buf(head)
    }

    /// Shortens the buffer to its first `len` bytes; longer than it is, does nothing.
    pub fn truncate(&mut self, len: usize) {
        if len < self.len() {
            self.0.len = len as u32;
        }
    }

    /// Joins `next` to the end of `self` if it is the memory that follows; gives it back otherwise.
    pub fn unsplit(&mut self, next: Buf) -> Result<(), Buf> {
        if !self.0.is_followed_by(&next.0) {
            return Err(next);
        }
        self.0.len += next.0.len;
        Ok(())
    }

    /// Gives up writing, so that the bytes can be shared.
    pub fn freeze(self) -> View {
        View(self.0)
    }

    /// Where the bytes are, for the ring; valid while the handle lives.
    pub(crate) fn as_mut_raw(&mut self) -> *mut u8 {
        self.0.start.as_ptr()
    }
}

impl Deref for Buf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.0.as_slice()
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: `Buf` is the only handle to this range, and `&mut self` the only borrow of it.
        unsafe { std::slice::from_raw_parts_mut(self.0.start.as_ptr(), self.0.len()) }
    }
}

impl AsRef<[u8]> for Buf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf({} bytes)", self.len())
    }
}

/// One of the handles to a range of slab memory that no longer changes. Cloning shares the bytes.
///
/// It is `AsRef<[u8]> + Send + 'static`, so `bytes::Bytes::from_owner(view)` carries it out of the engine
/// without a copy.
pub struct View(Piece);

// SAFETY: all handles to the range are read-only, as an `Arc<[u8]>`.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    /// The bytes `from..from + len` of this view, sharing the memory. Panics if they lie outside.
    pub fn slice(&self, from: usize, len: usize) -> View {
        View(self.0.range(from, len))
    }

    /// Joins `next` to the end of `self` if it is the memory that follows; gives it back otherwise.
    pub fn unsplit(&mut self, next: View) -> Result<(), View> {
        if !self.0.is_followed_by(&next.0) {
            return Err(next);
        }
        self.0.len += next.0.len;
        Ok(())
    }

    /// Back to a writable buffer, if no other handle to the block is left.
    pub fn thaw(self) -> Result<Buf, View> {
        if self.0.arena.is_only_handle(self.0.block) { Ok(Buf(self.0)) } else { Err(self) }
    }
}

impl Clone for View {
    fn clone(&self) -> View {
        self.slice(0, self.len())
    }
}

impl Deref for View {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.0.as_slice()
    }
}

impl AsRef<[u8]> for View {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "View({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Slab, SlabConfig};

    #[test]
    fn split_parts_are_disjoint_and_join_again_only_in_order() {
        let slab = Slab::new(&SlabConfig::small()).unwrap();
        let mut tail = slab.alloc(4096).unwrap();
        let mut head = tail.split_to(1000);
        head.fill(1);
        tail.fill(2);
        assert_eq!((head.len(), tail.len()), (1000, 3096));
        let head = tail.unsplit(head).unwrap_err();
        let mut whole = head;
        whole.unsplit(tail).unwrap();
        assert_eq!((whole.len(), whole[999], whole[1000]), (4096, 1, 2));
        drop(whole);
        assert_eq!(slab.usage().used_bytes, 0);
    }

    #[test]
    fn a_view_thaws_only_when_it_is_alone() {
        let slab = Slab::new(&SlabConfig::small()).unwrap();
        let view = slab.alloc(4096).unwrap().freeze();
        let part = view.slice(512, 512);
        let view = view.thaw().unwrap_err();
        drop(part);
        let mut buf = view.thaw().unwrap();
        buf.fill(3);
    }

    #[test]
    fn bytes_carries_a_view_out_without_a_copy() {
        let slab = Slab::new(&SlabConfig::small()).unwrap();
        let mut buf = slab.alloc(4096).unwrap();
        buf.fill(9);
        let address = buf.as_ptr();
        let bytes = bytes::Bytes::from_owner(buf.freeze());
        assert_eq!((bytes.as_ptr(), bytes[4095]), (address, 9));
        drop(bytes);
        assert_eq!(slab.usage().used_bytes, 0);
    }

    #[test]
    #[should_panic(expected = "range 4000+97")]
    fn a_slice_past_the_end_is_a_bug_of_the_caller() {
        let slab = Slab::new(&SlabConfig::small()).unwrap();
        let _ = slab.alloc(4096).unwrap().freeze().slice(4000, 97);
    }
}
