//! Tells of many alike events in moderation: a disk on its way out corrects thousands of blocks a second, and neither
//! the log nor the events that matter may drown in them.

use raidcore::time::Time;
use std::time::Duration;

/// Events let through in one [`SPAN`].
const LET_THROUGH: u32 = 10;
/// Counted anew after this.
const SPAN: Duration = Duration::from_secs(10);

/// Lets the first few events of a span through and counts the others.
#[derive(Default)]
pub struct Moderation {
    until: Time,
    let_through: u32,
    withheld: u64,
}

impl Moderation {
    /// True if an event of now may be told.
    pub fn admit(&mut self, now: Time) -> bool {
        if now >= self.until && self.withheld == 0 {
            *self = Moderation { until: now + SPAN, ..Moderation::default() };
        }
        if self.let_through < LET_THROUGH {
            self.let_through += 1;
            return true;
        }
        self.withheld += 1;
        false
    }

    /// When there is something to [`sum_up`](Moderation::sum_up).
    pub fn wake_at(&self) -> Option<Time> {
        (self.withheld > 0).then_some(self.until)
    }

    /// How many were withheld, once the span is over; then the next one begins.
    pub fn sum_up(&mut self, now: Time) -> Option<u64> {
        let is_due = self.wake_at().is_some_and(|at| at <= now);
        is_due.then(|| std::mem::take(self).withheld)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_told_by_its_first_drops_and_its_sum() {
        let mut moderation = Moderation::default();
        let start = Time::from_ns(5);
        let told = (0..1000).filter(|_| moderation.admit(start)).count();
        assert_eq!(told, 10);
        assert_eq!(moderation.sum_up(start), None, "the span is not over");
        let end = moderation.wake_at().unwrap();
        assert_eq!(moderation.sum_up(end), Some(990));
        assert_eq!((moderation.sum_up(end), moderation.wake_at()), (None, None));
        assert!(moderation.admit(end), "a new span");
    }

    #[test]
    fn single_events_are_always_told() {
        let mut moderation = Moderation::default();
        assert!((1..100).all(|i| moderation.admit(Time::ZERO + i * SPAN)));
    }
}
