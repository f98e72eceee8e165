//! Memory that connections may hold: one pool for all, and each connection's share of it.
//!
//! A share is not a fixed number: a connection may take more only while what it holds then is at most what is
//! then left free. One client alone gets half of the pool, each of two a third, each of eight a ninth; whatever
//! the clients that sit on their memory do, about as much as the largest of them holds is left for others.
//! A part of the pool is kept back from those that hold much, for requests of ordinary size.
//!
//! Who holds nothing and finds no room for one large request waits in a queue. Others that want as much queue
//! behind it, and those that hold something already take no more meanwhile, so that its turn comes.
//!
//! Invariant: `held` of the pool is the sum of its budgets' `held`, and that of a budget the sum of its live
//! charges. A charge gives back what it took when it is dropped, so that memory is accounted for on every path,
//! also when a client vanishes.

use crate::limits::{CONNECTION_BYTES, SMALL_SHARE_BYTES};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// The memory of all connections.
#[derive(Debug)]
pub(crate) struct Pool {
    held: Cell<u64>,
    limit: u64,
    next_id: Cell<u64>,
    /// Budgets of which nothing is in use, that found no room.
    waiting: RefCell<VecDeque<Waiter>>,
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    bytes: u64,
}

/// The share of one connection.
#[derive(Debug)]
pub(crate) struct Budget {
    pool: Rc<Pool>,
    id: u64,
    held: Cell<u64>,
}

/// A part of a budget in use.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Rc<Budget>,
    bytes: u64,
}

impl Pool {
    /// A pool of `limit` bytes.
    pub(crate) fn new(limit: u64) -> Rc<Pool> {
        Rc::new(Pool { held: Cell::new(0), limit, next_id: Cell::new(0), waiting: RefCell::default() })
    }

    /// What is kept back from connections that hold more than [`SMALL_SHARE_BYTES`].
    fn reserve(&self) -> u64 {
        self.limit / 8
    }

    fn has_room(&self, budget: &Budget, bytes: u64) -> bool {
        // Of a pool of which nothing is in use any request is granted: nothing waits for what cannot come.
        let Some(free) = self.limit.checked_sub(self.held.get() + bytes) else { return self.held.get() == 0 };
        let is_first = budget.held.get() == 0;
        let held = budget.held.get() + bytes;
        if held <= SMALL_SHARE_BYTES {
            return true;
        }
        let fits = free >= self.reserve() || self.held.get() == 0;
        fits && (is_first || held <= free.min(CONNECTION_BYTES)) && !self.must_queue(budget, bytes)
    }

    /// True if somebody waits who comes first.
    fn must_queue(&self, budget: &Budget, bytes: u64) -> bool {
        let is_first = budget.held.get() == 0;
        let waiting = self.waiting.borrow();
        let ahead = waiting.iter().take_while(|waiter| waiter.id != budget.id);
        ahead.into_iter().any(|waiter| !is_first || waiter.bytes <= bytes)
    }

    fn leave_queue(&self, id: u64) {
        self.waiting.borrow_mut().retain(|waiter| waiter.id != id);
    }

    fn queue(&self, id: u64, bytes: u64) {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.iter().all(|waiter| waiter.id != id) {
            waiting.push_back(Waiter { id, bytes });
        }
    }
}

impl Budget {
    /// A share of `pool` of which nothing is in use.
    pub(crate) fn new(pool: &Rc<Pool>) -> Rc<Budget> {
        let id = pool.next_id.get();
        pool.next_id.set(id + 1);
        Rc::new(Budget { pool: Rc::clone(pool), id, held: Cell::new(0) })
    }

    /// Bytes in use.
    pub(crate) fn held(&self) -> u64 {
        self.held.get()
    }

    /// Takes room for `bytes`; `None` if there is not enough of it now. Try again when something has ended, or
    /// say [`Budget::give_up`].
    pub(crate) fn charge(self: &Rc<Budget>, bytes: u64) -> Option<Charge> {
        if self.pool.has_room(self, bytes) {
            self.pool.leave_queue(self.id);
            self.change(|held| held + bytes);
            return Some(Charge { budget: Rc::clone(self), bytes });
        }
        if self.held.get() == 0 {
            self.pool.queue(self.id, bytes);
        }
        None
    }

    /// The request that found no room is given up.
    pub(crate) fn give_up(&self) {
        self.pool.leave_queue(self.id);
    }

    fn change(&self, to: impl Fn(u64) -> u64) {
        self.held.set(to(self.held.get()));
        self.pool.held.set(to(self.pool.held.get()));
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        debug_assert_eq!(self.held.get(), 0);
        self.give_up();
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
        debug_assert!(self.budget.held() >= self.bytes);
        self.budget.change(|held| held - self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Takes until there is no more.
    fn hog(budget: &Rc<Budget>, bytes: u64) -> Vec<Charge> {
        std::iter::from_fn(|| budget.charge(bytes)).take(1000).collect()
    }

    #[test]
    fn a_charge_counts_here_and_in_the_pool_until_it_is_dropped() {
        let pool = Pool::new(MIB);
        let one = Budget::new(&pool);
        let mut charge = one.charge(4096).unwrap();
        charge.absorb(one.charge(8192).unwrap());
        assert_eq!((one.held(), pool.held.get()), (12288, 12288));
        drop(charge);
        assert_eq!((one.held(), pool.held.get()), (0, 0));
        assert!(one.charge(2 * MIB).is_some(), "a pool of which nothing is in use grants anything");
    }

    /// Two clients that read nothing used to hold all there was: nobody else got any until they were cut.
    #[test]
    fn however_many_take_all_they_can_get_newcomers_find_room() {
        for (hogs, each) in [(1, MIB), (2, MIB), (8, MIB), (2, 32 * MIB), (8, 32 * MIB), (4, 5 * MIB)] {
            let pool = Pool::new(96 * MIB);
            let budgets: Vec<_> = (0..hogs).map(|_| Budget::new(&pool)).collect();
            let charges: Vec<_> = budgets.iter().map(|budget| hog(budget, each)).collect();
            let held: u64 = charges.iter().flatten().map(|charge| charge.bytes).sum();
            assert!(held >= 32 * MIB, "{hogs} of {each}: only {held} bytes are used");
            let (small, large) = (Budget::new(&pool), Budget::new(&pool));
            let kept = (small.charge(4096), small.charge(4096), large.charge(MIB));
            assert!(kept.0.is_some() && kept.1.is_some() && kept.2.is_some(), "{hogs} of {each}");
        }
    }

    #[test]
    fn who_waits_with_nothing_gets_its_turn_before_those_that_hold_something_or_came_later() {
        let pool = Pool::new(96 * MIB);
        let (busy, waits, later) = (Budget::new(&pool), Budget::new(&pool), Budget::new(&pool));
        let (other, mut held) = (Budget::new(&pool), hog(&busy, 4 * MIB));
        let others = hog(&other, 4 * MIB);
        assert!(waits.charge(32 * MIB).is_none());
        held.truncate(held.len() - 2);
        assert!(busy.charge(4 * MIB).is_none(), "it holds some, and somebody waits");
        assert!(later.charge(32 * MIB).is_none());
        assert!(later.charge(8 * MIB).is_some(), "a smaller first request takes its room beside it");
        held.clear();
        assert!(later.charge(32 * MIB).is_none(), "it came later");
        assert!(waits.charge(32 * MIB).is_some());
        drop(others);
        assert!(later.charge(32 * MIB).is_some());
    }

    #[test]
    fn who_gives_up_stands_in_nobodys_way() {
        let pool = Pool::new(96 * MIB);
        let (busy, waits) = (Budget::new(&pool), Budget::new(&pool));
        let mut held = hog(&busy, 16 * MIB);
        let other = Budget::new(&pool);
        held.extend(other.charge(32 * MIB));
        assert!(waits.charge(32 * MIB).is_none());
        drop(held.pop());
        held.clear();
        held.extend(busy.charge(4 * MIB));
        assert!(busy.charge(4 * MIB).is_none());
        waits.give_up();
        assert!(busy.charge(4 * MIB).is_some());
    }
}
