//! The slab: one anonymous mapping cut into blocks of a few size classes.
//!
//! Invariants:
//! - A block is in exactly one place: its class's free list, the return stack, or behind one or more handles.
//! - `refs[block]` is the number of handles to it; the handle that brings it to zero returns the block.
//! - The mapping outlives every handle, for each holds the [`Arena`] alive; a leaked handle leaks the mapping,
//!   which is what must happen to memory that the kernel may still write to.
//!
//! Only the thread that owns the [`Slab`] allocates. Handles may be dropped on any thread: a returned block is
//! pushed on a stack that the owner takes over whole, so no lock is held and no ABA problem arises.
#![allow(unsafe_code)] // one of the three places: it hands out slices of raw memory

use super::handle::Buf;
use super::list::BufList;
use crate::limits::{MAX_BLOCK_BYTES, MAX_SLAB_BYTES, PAGE_BYTES};
use std::cell::RefCell;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// One size class of a slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlabClass {
    /// Bytes of each block: a power of two from 4 KiB to 1 MiB.
    pub block_bytes: usize,
    /// How many blocks.
    pub blocks: usize,
}

/// The shape of a slab: classes in ascending order of block size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlabConfig {
    /// The classes.
    pub classes: Vec<SlabClass>,
}

impl SlabConfig {
    /// About 11 MiB: enough for tests, examples and small embedders.
    pub fn small() -> SlabConfig {
        SlabConfig::of(&[(4 << 10, 512), (64 << 10, 64), (1 << 20, 5)])
    }

    /// About 192 MiB: a reactor that serves many connections with large requests in flight.
    pub fn server() -> SlabConfig {
        SlabConfig::of(&[(4 << 10, 8192), (64 << 10, 1024), (1 << 20, 96)])
    }

    /// Classes from pairs of (bytes of a block, number of blocks).
    pub fn of(classes: &[(usize, usize)]) -> SlabConfig {
        let class = |&(block_bytes, blocks)| SlabClass { block_bytes, blocks };
        SlabConfig { classes: classes.iter().map(class).collect() }
    }

    fn check(&self) -> Result<usize, String> {
        let mut total = 0usize;
        let mut previous = 0;
        for class in &self.classes {
            let size = class.block_bytes;
            if !size.is_power_of_two() || !(PAGE_BYTES..=MAX_BLOCK_BYTES).contains(&size) || size <= previous
            {
                return Err(format!(
                    "slab class of {size} bytes: classes are ascending powers of two, 4K to 1M"
                ));
            }
            previous = size;
            total = size.checked_mul(class.blocks).and_then(|n| total.checked_add(n)).unwrap_or(usize::MAX);
        }
        if total == 0 || total > MAX_SLAB_BYTES {
            return Err(format!("slab of {total} bytes: must hold 1 to {MAX_SLAB_BYTES}"));
        }
        Ok(total)
    }
}

/// No block large enough is free. Bounded memory is back-pressure, so this is an answer and not a failure:
/// try again when something completes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no free slab block for {bytes} bytes")]
pub struct Exhausted {
    /// What was asked for.
    pub bytes: usize,
}

/// How much of a slab is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlabUsage {
    /// Bytes of all blocks.
    pub total_bytes: usize,
    /// Bytes of the blocks that handles hold.
    pub used_bytes: usize,
}

/// The allocator. Cheap to clone; all clones share the blocks. It stays on its thread, its handles need not.
#[derive(Clone)]
pub struct Slab {
    arena: Arc<Arena>,
    free: Rc<RefCell<Vec<Vec<u32>>>>,
}

impl Slab {
    /// Maps the memory. Fails if the configuration is malformed or the system has no memory to give.
    pub fn new(config: &SlabConfig) -> std::io::Result<Slab> {
        let bytes =
            config.check().map_err(|why| std::io::Error::new(std::io::ErrorKind::InvalidInput, why))?;
        let arena = Arena::map(config, bytes)?;
        let mut free = Vec::new();
        for class in &arena.classes {
            free.push((class.first_block..class.first_block + class.blocks).rev().collect());
        }
        Ok(Slab { arena: Arc::new(arena), free: Rc::new(RefCell::new(free)) })
    }

    /// A buffer of exactly `bytes` bytes (1 to 1 MiB), page-aligned, with unspecified (but initialised) content.
    ///
    /// The smallest class that fits is used, and a larger one when that is empty.
    pub fn alloc(&self, bytes: usize) -> Result<Buf, Exhausted> {
        let exhausted = Exhausted { bytes };
        let first = self.arena.classes.iter().position(|c| c.block_bytes >= bytes).ok_or(exhausted)?;
        let mut free = self.free.borrow_mut();
        // What came back last is used first: it is still in the processor's cache.
        self.arena.collect_returned(|class, block| free[class].push(block));
        let block = take(&mut free, first).ok_or(exhausted)?;
        self.arena.refs[block as usize].store(1, Ordering::Relaxed);
        let len = u32::try_from(bytes).map_err(|_| exhausted)?;
        Ok(Buf::from_parts(Arc::clone(&self.arena), block, self.arena.block_start(block), len))
    }

    /// Buffers of `bytes` bytes together, in order, as few as possible: for requests larger than a block.
    pub fn alloc_list(&self, bytes: usize) -> Result<BufList, Exhausted> {
        let largest = self.arena.classes.last().map_or(PAGE_BYTES, |c| c.block_bytes);
        let mut list = BufList::new();
        let mut left = bytes;
        while left > 0 {
            let piece = left.min(largest);
            list.push(self.alloc(piece).map_err(|_| Exhausted { bytes })?);
            left -= piece;
        }
        Ok(list)
    }

    /// How much is in use now.
    pub fn usage(&self) -> SlabUsage {
        let mut free = self.free.borrow_mut();
        self.arena.collect_returned(|class, block| free[class].push(block));
        let free_bytes: usize =
            free.iter().zip(&self.arena.classes).map(|(f, c)| f.len() * c.block_bytes).sum();
        SlabUsage { total_bytes: self.arena.bytes, used_bytes: self.arena.bytes - free_bytes }
    }

    /// Start and length of the whole mapping, for registration with a ring.
    pub fn region(&self) -> (NonNull<u8>, usize) {
        (self.arena.base, self.arena.bytes)
    }

    /// True if `address` lies in this slab's mapping.
    pub fn contains(&self, address: *const u8) -> bool {
        (address as usize).wrapping_sub(self.arena.base.as_ptr() as usize) < self.arena.bytes
    }
}

fn take(free: &mut [Vec<u32>], first_class: usize) -> Option<u32> {
    free[first_class..].iter_mut().find_map(Vec::pop)
}

struct Class {
    block_bytes: usize,
    blocks: u32,
    first_block: u32,
    offset: usize,
}

/// No block: the end of the return stack.
const NONE: u32 = u32::MAX;

/// The mapping and its bookkeeping, shared by the slab and all handles.
pub(super) struct Arena {
    base: NonNull<u8>,
    bytes: usize,
    classes: Vec<Class>,
    refs: Vec<AtomicU32>,
    /// `next[b]` is the block below `b` on the return stack.
    next: Vec<AtomicU32>,
    /// Top of the return stack: a block number, or `NONE`.
    returned: AtomicUsize,
}

// SAFETY: the mapping is plain memory owned by the arena; which thread may touch which bytes is decided by the
// handles (`Buf` is unique, `View` read-only), and all bookkeeping is atomic.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    fn map(config: &SlabConfig, bytes: usize) -> std::io::Result<Arena> {
        // SAFETY: a fresh private anonymous mapping at an address of the kernel's choice aliases nothing.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        let base = match NonNull::new(base.cast::<u8>()) {
            Some(base) if base.as_ptr().cast() != libc::MAP_FAILED => base,
            _ => return Err(std::io::Error::last_os_error()),
        };
        let mut classes = Vec::new();
        let (mut first_block, mut offset) = (0u32, 0usize);
        // Largest blocks first, so that every block is aligned to its own size as far as the mapping is.
        for class in config.classes.iter().rev() {
            let blocks = u32::try_from(class.blocks).unwrap_or(0);
            classes.push(Class { block_bytes: class.block_bytes, blocks, first_block, offset });
            first_block += blocks;
            offset += class.block_bytes * class.blocks;
        }
        classes.reverse();
        let refs = (0..first_block).map(|_| AtomicU32::new(0)).collect();
        let next = (0..first_block).map(|_| AtomicU32::new(NONE)).collect();
        Ok(Arena { base, bytes, classes, refs, next, returned: AtomicUsize::new(NONE as usize) })
    }

    fn class_of(&self, block: u32) -> usize {
        let within = |c: &Class| (c.first_block..c.first_block + c.blocks).contains(&block);
        self.classes.iter().position(within).unwrap_or(0)
    }

    fn block_start(&self, block: u32) -> NonNull<u8> {
        let class = &self.classes[self.class_of(block)];
        let offset = class.offset + class.block_bytes * (block - class.first_block) as usize;
        debug_assert!(offset + class.block_bytes <= self.bytes);
        // SAFETY: the offset of a block lies within the mapping by construction of the classes.
        unsafe { self.base.add(offset) }
    }

    pub(super) fn retain(&self, block: u32) {
        self.refs[block as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Drops one handle's claim; the last one returns the block.
    pub(super) fn release(&self, block: u32) {
        // Release + acquire: what any handle did to the memory happens before the next owner gets it.
        if self.refs[block as usize].fetch_sub(1, Ordering::AcqRel) == 1 {
            let mut top = self.returned.load(Ordering::Relaxed);
            loop {
                self.next[block as usize].store(top as u32, Ordering::Relaxed);
                let pushed = self.returned.compare_exchange_weak(
                    top,
                    block as usize,
                    Ordering::Release,
                    Ordering::Relaxed,
                );
                match pushed {
                    Ok(_) => return,
                    Err(now) => top = now,
                }
            }
        }
    }

    pub(super) fn is_only_handle(&self, block: u32) -> bool {
        self.refs[block as usize].load(Ordering::Acquire) == 1
    }

    /// Takes all returned blocks at once and hands each, with its class, to `keep`. Called by the owner only.
    fn collect_returned(&self, mut keep: impl FnMut(usize, u32)) {
        if self.returned.load(Ordering::Relaxed) == NONE as usize {
            return;
        }
        let mut block = self.returned.swap(NONE as usize, Ordering::Acquire) as u32;
        while block != NONE {
            let below = self.next[block as usize].load(Ordering::Relaxed);
            keep(self.class_of(block), block);
            block = below;
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: base and length are those of the mapping made in `map`, and no handle is left.
        let unmapped = unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
        debug_assert_eq!(unmapped, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> Slab {
        Slab::new(&SlabConfig::of(&[(4096, 2), (65536, 1)])).unwrap()
    }

    #[test]
    fn buffers_are_page_aligned_and_disjoint() {
        let slab = tiny();
        let (mut a, mut b) = (slab.alloc(4096).unwrap(), slab.alloc(100).unwrap());
        a.fill(1);
        b.fill(2);
        assert!(a.iter().all(|&x| x == 1) && b.iter().all(|&x| x == 2));
        assert_eq!((a.as_ptr() as usize % 4096, b.as_ptr() as usize % 4096), (0, 0));
        assert_eq!(b.len(), 100);
    }

    #[test]
    fn a_larger_class_serves_when_the_fitting_one_is_empty_and_then_the_slab_says_so() {
        let slab = tiny();
        let held: Vec<_> = (0..3).map(|_| slab.alloc(4096).unwrap()).collect();
        assert_eq!(slab.alloc(1).unwrap_err(), Exhausted { bytes: 1 });
        drop(held);
        assert_eq!(slab.usage().used_bytes, 0);
        assert!(slab.alloc(65536).is_ok());
        assert!(slab.alloc(65537).is_err());
    }

    #[test]
    fn a_handle_dropped_on_another_thread_comes_back() {
        let slab = tiny();
        for _ in 0..100 {
            let buf = slab.alloc(65536).unwrap();
            std::thread::spawn(move || drop(buf)).join().unwrap();
        }
        assert_eq!(slab.usage().used_bytes, 0);
    }

    #[test]
    fn handles_returned_by_many_threads_at_once_are_neither_lost_nor_doubled() {
        let slab = Slab::new(&SlabConfig::of(&[(4096, 64)])).unwrap();
        for _ in 0..50 {
            let held: Vec<_> = (0..64).map(|_| slab.alloc(4096).unwrap()).collect();
            let mut parts: Vec<Vec<Buf>> = (0..4).map(|_| Vec::new()).collect();
            held.into_iter().enumerate().for_each(|(i, buf)| parts[i % 4].push(buf));
            std::thread::scope(|scope| {
                for part in parts {
                    scope.spawn(move || drop(part));
                }
            });
        }
        let held: Vec<_> = (0..64).map(|_| slab.alloc(4096).unwrap()).collect();
        let mut starts: Vec<_> = held.iter().map(|b| b.as_ptr() as usize).collect();
        starts.sort_unstable();
        starts.dedup();
        assert_eq!(starts.len(), 64);
        assert!(slab.alloc(4096).is_err());
    }

    #[test]
    fn handles_outlive_the_slab() {
        let slab = tiny();
        let mut buf = slab.alloc(4096).unwrap();
        drop(slab);
        buf.fill(7);
        assert_eq!(buf[4095], 7);
    }

    #[test]
    fn a_malformed_configuration_is_refused_with_its_reason() {
        for classes in
            [&[(4095, 1)][..], &[(65536, 1), (4096, 1)], &[(4096, 0)], &[(4096, usize::MAX)], &[(2 << 20, 1)]]
        {
            assert!(Slab::new(&SlabConfig::of(classes)).is_err(), "{classes:?}");
        }
    }
}
