//! Where the memory of operations that were given up waits.
//!
//! An operation past its deadline is answered with a timeout, but the kernel (or a disk behind it) may still
//! write to its memory. That memory must reach no one else before the terminal completion. It is held here
//! under the operation's key; if it is still here when the quarantine is dropped, it is leaked, and with it
//! the slab's mapping, for a leak is harmless and a late write into somebody else's data is not.

use super::list::{BufList, ViewList, list_len};
use std::collections::HashMap;

/// The memory of an operation.
#[derive(Debug)]
pub enum Memory {
    /// None at all: a flush, a discard.
    None,
    /// The destination of a read.
    Bufs(BufList),
    /// The source of a write.
    Views(ViewList),
}

impl Memory {
    /// Bytes held.
    pub fn len(&self) -> u64 {
        match self {
            Memory::None => 0,
            Memory::Bufs(list) => list_len(list),
            Memory::Views(list) => list_len(list),
        }
    }

    /// True if no bytes are held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Memory of operations that were given up and have not ended, by the operation's key.
#[derive(Debug, Default)]
pub struct Quarantine {
    held: HashMap<u64, Memory>,
    bytes: u64,
}

impl Quarantine {
    /// An empty quarantine.
    pub fn new() -> Quarantine {
        Quarantine::default()
    }

    /// Holds `memory` until [`release`](Quarantine::release) is called with the same key. Keys of operations in
    /// flight are unique; holding a second one under the same key would free the first, so it is a bug.
    pub fn hold(&mut self, key: u64, memory: Memory) {
        self.bytes += memory.len();
        let previous = self.held.insert(key, memory);
        assert!(previous.is_none(), "two operations given up under key {key}");
    }

    /// The operation `key` has ended: returns its memory, or `None` if it was not given up.
    pub fn release(&mut self, key: u64) -> Option<Memory> {
        let memory = self.held.remove(&key)?;
        self.bytes -= memory.len();
        Some(memory)
    }

    /// Operations held.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// True if nothing is held.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Quarantine {
    fn drop(&mut self) {
        for (_, memory) in self.held.drain() {
            std::mem::forget(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Slab, SlabConfig};
    use super::*;
    use smallvec::smallvec;

    #[test]
    fn held_memory_is_not_handed_out_again_until_it_is_released() {
        let slab = Slab::new(&SlabConfig::of(&[(4096, 1)])).unwrap();
        let mut quarantine = Quarantine::new();
        quarantine.hold(7, Memory::Bufs(smallvec![slab.alloc(4096).unwrap()]));
        assert_eq!((quarantine.len(), quarantine.bytes()), (1, 4096));
        assert!(slab.alloc(4096).is_err());
        assert!(quarantine.release(8).is_none());
        drop(quarantine.release(7));
        assert_eq!(quarantine.bytes(), 0);
        assert!(slab.alloc(4096).is_ok());
    }

    #[test]
    fn memory_still_held_at_the_end_is_leaked_rather_than_reused() {
        let slab = Slab::new(&SlabConfig::of(&[(4096, 1)])).unwrap();
        let mut quarantine = Quarantine::new();
        quarantine.hold(1, Memory::Bufs(smallvec![slab.alloc(4096).unwrap()]));
        drop(quarantine);
        assert!(slab.alloc(4096).is_err());
    }
}
