//! Memory that connections may hold: a limit for each and one for all together.
//!
//! Invariant: `held` of a budget is the sum of its live charges. A charge gives back what it took when it is
//! dropped, so that memory is accounted for on every path, also when a client vanishes.

use raidcore::limits::PAGE_BYTES;
use std::cell::Cell;
use std::rc::Rc;

/// A limit on payload in memory.
#[derive(Debug)]
pub(crate) struct Budget {
    held: Cell<u64>,
    limit: u64,
    /// What is taken here is taken there as well.
    parent: Option<Rc<Budget>>,
}

/// A part of a budget in use.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Rc<Budget>,
    bytes: u64,
}

impl Budget {
    /// A budget of `limit` bytes, within `parent` if there is one.
    pub(crate) fn new(limit: u64, parent: Option<Rc<Budget>>) -> Rc<Budget> {
        Rc::new(Budget { held: Cell::new(0), limit, parent })
    }

    /// Bytes in use.
    pub(crate) fn held(&self) -> u64 {
        self.held.get()
    }

    /// Takes room for `bytes` of payload; `None` if there is not enough of it. A budget of which nothing is in
    /// use grants any request, so that nothing waits for what cannot come.
    pub(crate) fn charge(self: &Rc<Budget>, bytes: u32) -> Option<Charge> {
        let bytes = u64::from(bytes).next_multiple_of(PAGE_BYTES as u64);
        if !self.has_room(bytes) {
            return None;
        }
        self.add(bytes);
        Some(Charge { budget: Rc::clone(self), bytes })
    }

    fn has_room(&self, bytes: u64) -> bool {
        let here = self.held.get() == 0 || self.held.get() + bytes <= self.limit;
        here && self.parent.as_ref().is_none_or(|parent| parent.has_room(bytes))
    }

    fn add(&self, bytes: u64) {
        self.held.set(self.held.get() + bytes);
        if let Some(parent) = &self.parent {
            parent.add(bytes);
        }
    }

    fn sub(&self, bytes: u64) {
        debug_assert!(self.held.get() >= bytes);
        self.held.set(self.held.get() - bytes);
        if let Some(parent) = &self.parent {
            parent.sub(bytes);
        }
    }
}

impl Charge {
    /// Makes one charge of two of the same budget.
    pub(crate) fn absorb(&mut self, mut other: Charge) {
        debug_assert!(Rc::ptr_eq(&self.budget, &other.budget));
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.sub(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_charge_counts_in_pages_here_and_above_until_it_is_dropped() {
        let all = Budget::new(1 << 20, None);
        let one = Budget::new(16384, Some(Rc::clone(&all)));
        let mut charge = one.charge(1).unwrap();
        charge.absorb(one.charge(8192).unwrap());
        assert_eq!((one.held(), all.held()), (12288, 12288));
        assert!(one.charge(8192).is_none());
        drop(charge);
        assert_eq!((one.held(), all.held()), (0, 0));
    }

    #[test]
    fn the_common_limit_binds_and_an_unused_budget_grants_anything() {
        let all = Budget::new(8192, None);
        let (one, two) = (Budget::new(8192, Some(Rc::clone(&all))), Budget::new(8192, Some(Rc::clone(&all))));
        let large = one.charge(1 << 20).unwrap();
        assert!(two.charge(1).is_none());
        drop(large);
        assert!(two.charge(1).is_some());
    }
}
