//! Memory that connections may hold: one pool for all, each client's share of it, and each connection's part of that.
//!
//! A share is not a fixed number: a client may take more only while what it holds then is at most what is then left
//! free. One client alone gets half of the pool, each of two a third, each of eight a ninth; whatever the clients
//! that sit on their memory do, about as much as the largest of them holds is left for others. A hundred connections
//! of one client get together what one connection of it would get. Among themselves they do not take everything
//! either: one that takes all it can get leaves a quarter of the share to the others.
//! A part of the pool is kept back from clients that hold much, for requests of ordinary size, and a part of each
//! share from connections that do.
//!
//! Who holds nothing and finds no room for one large request waits in a queue. Others that want as much queue
//! behind it, and those that hold something already take no more meanwhile, so that its turn comes. A client that
//! leaves no room to a connection of its own delays nobody else by that.
//!
//! Invariant: `held` of the pool is the sum of its shares' `held`, that of a share the sum of its budgets', and that
//! of a budget the sum of its live charges. A charge gives back what it took when it is dropped, so that memory is
//! accounted for on every path, also when a client vanishes.

use crate::limits::SMALL_SHARE_BYTES;
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
    share: Rc<Share>,
    bytes: u64,
}

/// What the connections of one client use together: memory, and places for requests.
#[derive(Debug)]
pub(crate) struct Share {
    pool: Rc<Pool>,
    held: Cell<u64>,
    limit: u64,
    requests: Cell<u32>,
    max_requests: u32,
}

/// The part of one connection.
#[derive(Debug)]
pub(crate) struct Budget {
    share: Rc<Share>,
    id: u64,
    held: Cell<u64>,
    /// It is in the pool's queue.
    waits: Cell<bool>,
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

    /// What is kept back from clients that hold more than [`SMALL_SHARE_BYTES`].
    fn reserve(&self) -> u64 {
        self.limit / 8
    }

    fn has_room(&self, budget: &Budget, bytes: u64) -> bool {
        let share = &budget.share;
        // Of a pool of which nothing is in use any request is granted: nothing waits for what cannot come.
        let Some(free) = self.limit.checked_sub(self.held.get() + bytes) else { return self.held.get() == 0 };
        let held = share.held.get() + bytes;
        if held <= SMALL_SHARE_BYTES || self.held.get() == 0 {
            return true;
        }
        if free < self.reserve() {
            return false;
        }
        if share.held.get() == 0 {
            return !self.must_queue(budget, bytes);
        }
        // The client among the others, then the connection among those of its client.
        let most = share.limit.min((free + held) / 2);
        let Some(left) = most.checked_sub(held) else { return false };
        let own = budget.held.get() + bytes;
        if own <= SMALL_SHARE_BYTES {
            return true;
        }
        let fits = left >= most / 8 && (budget.held.get() == 0 || own <= 3 * left);
        fits && !self.must_queue(budget, bytes)
    }

    /// True if somebody waits who comes first.
    fn must_queue(&self, budget: &Budget, bytes: u64) -> bool {
        let waiting = self.waiting.borrow();
        let mut ahead = waiting.iter().take_while(|waiter| waiter.id != budget.id);
        ahead.any(|waiter| {
            let (is_first, can_come) = match Rc::ptr_eq(&waiter.share, &budget.share) {
                true => (budget.held.get() == 0, true),
                false => (budget.share.held.get() == 0, waiter.share.held.get() == 0),
            };
            can_come && (!is_first || waiter.bytes <= bytes)
        })
    }

    fn leave_queue(&self, budget: &Budget) {
        if budget.waits.replace(false) {
            self.waiting.borrow_mut().retain(|waiter| waiter.id != budget.id);
        }
    }

    fn queue(&self, budget: &Budget, bytes: u64) {
        if !budget.waits.replace(true) {
            let share = Rc::clone(&budget.share);
            self.waiting.borrow_mut().push_back(Waiter { id: budget.id, share, bytes });
        }
    }
}

impl Share {
    /// A share of `pool` of which nothing is in use, for a client that may hold `limit` bytes (and one request of
    /// any size) and have `max_requests` executed at once.
    pub(crate) fn new(pool: &Rc<Pool>, limit: u64, max_requests: u32) -> Rc<Share> {
        let (held, requests) = (Cell::new(0), Cell::new(0));
        Rc::new(Share { pool: Rc::clone(pool), held, limit, requests, max_requests })
    }
}

impl Budget {
    /// A part of `share` of which nothing is in use.
    pub(crate) fn new(share: &Rc<Share>) -> Rc<Budget> {
        let id = share.pool.next_id.get();
        share.pool.next_id.set(id + 1);
        Rc::new(Budget { share: Rc::clone(share), id, held: Cell::new(0), waits: Cell::new(false) })
    }

    /// Bytes in use.
    pub(crate) fn held(&self) -> u64 {
        self.held.get()
    }

    /// Takes room for `bytes`; `None` if there is not enough of it now. Try again when something has ended, or
    /// say [`Budget::give_up`].
    pub(crate) fn charge(self: &Rc<Budget>, bytes: u64) -> Option<Charge> {
        let pool = &self.share.pool;
        if pool.has_room(self, bytes) {
            pool.leave_queue(self);
            self.change(|held| held + bytes);
            return Some(Charge { budget: Rc::clone(self), bytes });
        }
        if self.held.get() == 0 {
            pool.queue(self, bytes);
        }
        None
    }

    /// The request that found no room is given up.
    pub(crate) fn give_up(&self) {
        self.share.pool.leave_queue(self);
    }

    /// True if the client has as many requests executed as it may.
    pub(crate) fn is_out_of_requests(&self) -> bool {
        self.share.requests.get() >= self.share.max_requests
    }

    /// A request is executed from now on.
    pub(crate) fn begin_request(&self) {
        self.share.requests.set(self.share.requests.get() + 1);
    }

    /// A request was executed.
    pub(crate) fn end_request(&self) {
        self.share.requests.set(self.share.requests.get() - 1);
    }

    fn change(&self, to: impl Fn(u64) -> u64) {
        for held in [&self.held, &self.share.held, &self.share.pool.held] {
            held.set(to(held.get()));
        }
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

    /// Gives back all but `bytes` of it.
    pub(crate) fn shrink(&mut self, bytes: u64) {
        let surplus = self.bytes.saturating_sub(bytes);
        self.budget.change(|held| held - surplus);
        self.bytes -= surplus;
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

    /// A connection of a client of its own.
    fn client(pool: &Rc<Pool>) -> Rc<Budget> {
        Budget::new(&Share::new(pool, 64 * MIB, 8))
    }

    /// Takes until there is no more.
    fn hog(budget: &Rc<Budget>, bytes: u64) -> Vec<Charge> {
        std::iter::from_fn(|| budget.charge(bytes)).take(1000).collect()
    }

    fn sum(charges: &[Vec<Charge>]) -> u64 {
        charges.iter().flatten().map(|charge| charge.bytes).sum()
    }

    #[test]
    fn a_charge_counts_here_and_in_the_pool_until_it_is_dropped() {
        let pool = Pool::new(MIB);
        let one = client(&pool);
        let mut charge = one.charge(4096).unwrap();
        charge.absorb(one.charge(8192).unwrap());
        assert_eq!((one.held(), one.share.held.get(), pool.held.get()), (12288, 12288, 12288));
        charge.shrink(4096);
        charge.shrink(8192);
        assert_eq!((one.held(), one.share.held.get(), pool.held.get()), (4096, 4096, 4096));
        drop(charge);
        assert_eq!((one.held(), one.share.held.get(), pool.held.get()), (0, 0, 0));
        assert!(one.charge(2 * MIB).is_some(), "a pool of which nothing is in use grants anything");
    }

    /// Two clients that read nothing used to hold all there was: nobody else got any until they were cut.
    #[test]
    fn however_many_take_all_they_can_get_newcomers_find_room() {
        for (hogs, each) in [(1, MIB), (2, MIB), (8, MIB), (2, 32 * MIB), (8, 32 * MIB), (4, 5 * MIB)] {
            let pool = Pool::new(96 * MIB);
            let budgets: Vec<_> = (0..hogs).map(|_| client(&pool)).collect();
            let charges: Vec<_> = budgets.iter().map(|budget| hog(budget, each)).collect();
            assert!(sum(&charges) >= 32 * MIB, "{hogs} of {each}: only {} bytes are used", sum(&charges));
            let (small, large) = (client(&pool), client(&pool));
            let kept = (small.charge(4096), small.charge(4096), large.charge(MIB));
            assert!(kept.0.is_some() && kept.1.is_some() && kept.2.is_some(), "{hogs} of {each}");
        }
    }

    /// Each connection used to have a part of its own: who opened a hundred of them had the pool.
    #[test]
    fn a_hundred_connections_of_a_client_get_no_more_than_a_client_may() {
        for each in [4096, 100_000, MIB, 5 * MIB, 32 * MIB] {
            let pool = Pool::new(96 * MIB);
            let share = Share::new(&pool, 64 * MIB, 8);
            let budgets: Vec<_> = (0..100).map(|_| Budget::new(&share)).collect();
            let charges: Vec<_> = budgets.iter().map(|budget| hog(budget, each)).collect();
            assert!(sum(&charges) <= 48 * MIB, "{each}: {} bytes", sum(&charges));
            let other = client(&pool);
            assert!(other.charge(32 * MIB).is_some(), "{each}");
            let low = Share::new(&pool, 2 * MIB, 8);
            let budgets: Vec<_> = (0..100).map(|_| Budget::new(&low)).collect();
            let charges: Vec<_> = budgets.iter().map(|budget| hog(budget, each)).collect();
            assert!(sum(&charges) <= each.max(2 * MIB), "{each}: {} bytes", sum(&charges));
        }
    }

    #[test]
    fn a_connection_that_takes_all_it_can_get_leaves_some_to_those_of_its_client() {
        for each in [65536, MIB, 5 * MIB] {
            let pool = Pool::new(96 * MIB);
            let share = Share::new(&pool, 64 * MIB, 8);
            let (greedy, modest) = (Budget::new(&share), Budget::new(&share));
            let held = hog(&greedy, each);
            assert!(greedy.held() >= 30 * MIB, "{each}: {}", greedy.held());
            assert!(modest.charge(MIB).is_some() && modest.charge(4 * MIB).is_some(), "{each}");
            drop(held);
        }
    }

    #[test]
    fn who_waits_with_nothing_gets_its_turn_before_those_that_hold_something_or_came_later() {
        let pool = Pool::new(96 * MIB);
        let (busy, waits, later) = (client(&pool), client(&pool), client(&pool));
        let (other, mut held) = (client(&pool), hog(&busy, 4 * MIB));
        let others = hog(&other, 4 * MIB);
        assert!(busy.held() >= 32 * MIB && other.held() >= 16 * MIB);
        assert!(waits.charge(50 * MIB).is_none());
        held.truncate(held.len() - 2);
        assert!(busy.charge(4 * MIB).is_none(), "it holds some, and somebody waits");
        assert!(later.charge(50 * MIB).is_none());
        assert!(later.charge(8 * MIB).is_some(), "a smaller first request takes its room beside it");
        held.clear();
        assert!(later.charge(50 * MIB).is_none(), "it came later");
        assert!(waits.charge(50 * MIB).is_some());
        drop(others);
    }

    #[test]
    fn who_gives_up_or_has_only_itself_to_wait_for_stands_in_nobodys_way() {
        let pool = Pool::new(96 * MIB);
        let (busy, waits) = (client(&pool), client(&pool));
        let mut held: Vec<_> = busy.charge(8 * MIB).into_iter().collect();
        let other = client(&pool);
        held.extend(other.charge(32 * MIB));
        assert!(waits.charge(50 * MIB).is_none());
        assert!(busy.charge(4 * MIB).is_none());
        waits.give_up();
        assert!(busy.charge(4 * MIB).is_some());
        // The second connection of a client waits for the first.
        let sibling = Budget::new(&other.share);
        assert!(sibling.charge(32 * MIB).is_none());
        assert!(busy.charge(4 * MIB).is_some());
        assert!(other.charge(4 * MIB).is_none(), "its own client holds some");
    }

    #[test]
    fn requests_are_counted_for_all_connections_of_a_client() {
        let pool = Pool::new(MIB);
        let share = Share::new(&pool, MIB, 2);
        let (one, two) = (Budget::new(&share), Budget::new(&share));
        one.begin_request();
        two.begin_request();
        assert!(one.is_out_of_requests() && two.is_out_of_requests());
        one.end_request();
        assert!(!two.is_out_of_requests());
    }
}
