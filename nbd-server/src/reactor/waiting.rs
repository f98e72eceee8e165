//! Connections that wait for room: in a queue, a memory, a device.
//!
//! Whatever happens may give room back. Not all who wait are tried each time, or a thousand of them would cost everybody
//! else a thousand looks at each turn: some from the front are, and who finds no room goes to the end.
//!
//! Invariants: the queue has each connection once; before the reactor sleeps, each of them was tried after the last
//! thing that happened.

use std::collections::VecDeque;

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    queue: VecDeque<u16>,
    /// Connections from the front on that were not tried since something happened.
    untried: usize,
}

impl Waiting {
    /// One more, at the end.
    pub(super) fn push(&mut self, index: u16) {
        self.queue.push_back(index);
    }

    /// It is gone.
    pub(super) fn remove(&mut self, index: u16) {
        if let Some(at) = self.queue.iter().position(|&other| other == index) {
            self.queue.remove(at);
            self.untried -= usize::from(at < self.untried);
        }
    }

    /// The first that was not tried yet; it is no longer in the queue.
    pub(super) fn next(&mut self) -> Option<u16> {
        self.untried = self.untried.checked_sub(1)?;
        self.queue.pop_front()
    }

    /// There may be room for any of them.
    pub(super) fn try_all(&mut self) {
        self.untried = self.queue.len();
    }

    /// True if some are to be tried before anything is waited for.
    pub(super) fn has_untried(&self) -> bool {
        self.untried > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_tried_once_after_something_happened_and_those_that_were_not_come_first() {
        let mut waiting = Waiting::default();
        (0..5).for_each(|index| waiting.push(index));
        assert_eq!(waiting.next(), None, "nothing has happened");
        waiting.try_all();
        for index in [0, 1] {
            assert_eq!(waiting.next(), Some(index));
            waiting.push(index);
        }
        waiting.remove(0);
        waiting.remove(3);
        waiting.remove(9);
        assert_eq!((waiting.next(), waiting.next()), (Some(2), Some(4)));
        assert_eq!((waiting.next(), waiting.has_untried()), (None, false));
        waiting.try_all();
        assert_eq!((waiting.next(), waiting.next()), (Some(1), None));
    }
}
