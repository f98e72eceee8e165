//! Where what operations own waits after they were given up.
//!
//! An operation past its deadline is answered with a timeout, but the kernel (or a disk behind it) may still
//! write to its memory. That memory must reach no one else before the terminal completion. Whatever owns it is
//! held here under the operation's key; if it is still here when the quarantine is dropped, it is leaked, and
//! with it the slab's mapping, for a leak is harmless and a late write into somebody else's data is not.

use std::collections::HashMap;

/// What operations own that were given up and have not ended, by the operation's key.
#[derive(Debug)]
pub struct Quarantine<T> {
    held: HashMap<u64, T>,
}

impl<T> Quarantine<T> {
    /// An empty quarantine.
    pub fn new() -> Quarantine<T> {
        Quarantine { held: HashMap::new() }
    }

    /// Holds `owned` until [`release`](Quarantine::release) is called with the same key. Keys of operations in
    /// flight are unique; holding a second one under the same key would free the first, so it is a bug.
    pub fn hold(&mut self, key: u64, owned: T) {
        let previous = self.held.insert(key, owned);
        assert!(previous.is_none(), "two operations given up under key {key}");
    }

    /// The operation `key` has ended: returns what it owned, or `None` if it was not given up.
    pub fn release(&mut self, key: u64) -> Option<T> {
        self.held.remove(&key)
    }

    /// Operations held.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// True if nothing is held.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

impl<T> Default for Quarantine<T> {
    fn default() -> Quarantine<T> {
        Quarantine::new()
    }
}

impl<T> Drop for Quarantine<T> {
    fn drop(&mut self) {
        for (_, owned) in self.held.drain() {
            std::mem::forget(owned);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Slab, SlabConfig};
    use super::*;

    #[test]
    fn held_memory_is_not_handed_out_again_until_it_is_released() {
        let slab = Slab::new(&SlabConfig::of(&[(4096, 1)])).unwrap();
        let mut quarantine = Quarantine::new();
        quarantine.hold(7, slab.alloc(4096).unwrap());
        assert_eq!(quarantine.len(), 1);
        assert!(slab.alloc(4096).is_err());
        assert!(quarantine.release(8).is_none());
        drop(quarantine.release(7));
        assert!(quarantine.is_empty() && slab.alloc(4096).is_ok());
    }

    #[test]
    fn memory_still_held_at_the_end_is_leaked_rather_than_reused() {
        let slab = Slab::new(&SlabConfig::of(&[(4096, 1)])).unwrap();
        let mut quarantine = Quarantine::new();
        quarantine.hold(1, slab.alloc(4096).unwrap());
        drop(quarantine);
        assert!(slab.alloc(4096).is_err());
    }
}
