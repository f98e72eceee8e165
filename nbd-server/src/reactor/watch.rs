//! When to look at connections again: whether they have chosen, whether they are silent.
//!
//! A connection has one entry. Nothing is changed in here when it does something: it is looked at when its entry is
//! due, and then it says when to look again. So what is idle costs nothing, and what is active costs no more.

use super::host::ConnectionId;
use raidcore::time::Time;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Dates with connections. Those of connections that are gone stay until they are due or are too many.
#[derive(Default)]
pub(super) struct Watch {
    dates: BinaryHeap<Reverse<(Time, ConnectionId, u16)>>,
}

/// Entries of connections that are gone and not worth a search for them.
const SLACK: usize = 64;

impl Watch {
    /// Looks at this connection at `at`.
    pub(super) fn add(&mut self, at: Time, id: ConnectionId, index: u16) {
        self.dates.push(Reverse((at, id, index)));
    }

    /// The next date.
    pub(super) fn next(&self) -> Option<Time> {
        self.dates.peek().map(|Reverse((at, ..))| *at)
    }

    /// Takes an entry whose date has come.
    pub(super) fn pop_due(&mut self, now: Time) -> Option<(ConnectionId, u16)> {
        self.next().filter(|at| *at <= now)?;
        self.dates.pop().map(|Reverse((_, id, index))| (id, index))
    }

    /// Drops entries of connections that are gone if there are many, `live` being those that are not. To be called
    /// when connections come and go, so that clients that do nothing but that make nothing grow.
    pub(super) fn tidy(&mut self, live: usize, is_live: impl Fn(ConnectionId, u16) -> bool) {
        if self.dates.len() > 2 * live + SLACK {
            self.dates.retain(|Reverse((_, id, index))| is_live(*id, *index));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn entries_come_when_they_are_due_in_their_order() {
        let mut watch = Watch::default();
        for (seconds, id) in [(5, 1), (3, 2), (4, 3)] {
            watch.add(at(seconds), ConnectionId(id), id as u16);
        }
        assert_eq!((watch.next(), watch.pop_due(at(2))), (Some(at(3)), None));
        let due: Vec<_> = std::iter::from_fn(|| watch.pop_due(at(4))).map(|(id, _)| id.0).collect();
        assert_eq!((due, watch.next()), (vec![2, 3], Some(at(5))));
    }

    #[test]
    fn clients_that_come_and_go_make_nothing_grow() {
        let mut watch = Watch::default();
        for id in 0..100_000 {
            watch.add(at(30), ConnectionId(id), 0);
            watch.tidy(1, |live, _| live == ConnectionId(id));
            assert!(watch.dates.len() <= SLACK + 3);
        }
    }
}
