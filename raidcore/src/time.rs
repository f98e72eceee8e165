//! Time as the engine sees it: a number that somebody outside advances.
//!
//! The engine never asks the operating system what time it is. Whoever drives it (a reactor, a simulator)
//! refreshes a [`Clock`] once a turn, so that every decision made within one turn sees the same instant, a
//! clock read costs one load, and a test runs on virtual time.

use std::fmt;
use std::ops::{Add, Sub};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// An instant: nanoseconds since an arbitrary origin that never moves while the process lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(u64);

impl Time {
    /// The origin of the clock.
    pub const ZERO: Time = Time(0);

    /// The end of time: the deadline of what may wait for ever.
    pub const NEVER: Time = Time(u64::MAX);

    /// The instant `ns` nanoseconds after the origin.
    pub const fn from_ns(ns: u64) -> Time {
        Time(ns)
    }

    /// Nanoseconds since the origin.
    pub const fn as_ns(self) -> u64 {
        self.0
    }

    /// The span from `earlier` to `self`; zero if `earlier` is later.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Time {
    type Output = Time;
    /// Saturates: a deadline too far to be written down is as good as the end of time.
    fn add(self, span: Duration) -> Time {
        Time(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Time> for Time {
    type Output = Duration;
    fn sub(self, earlier: Time) -> Duration {
        self.since(earlier)
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", Duration::from_nanos(self.0))
    }
}

/// The current time, shared by everything that one driver drives. Clones read the same clock.
#[derive(Clone, Debug)]
pub struct Clock {
    now_ns: Arc<AtomicU64>,
    origin: Option<std::time::Instant>,
}

impl Clock {
    /// A clock that follows the operating system's monotonic clock each time it is [refreshed](Clock::refresh).
    pub fn monotonic() -> Clock {
        Clock { now_ns: Arc::new(AtomicU64::new(0)), origin: Some(std::time::Instant::now()) }
    }

    /// A clock that moves only when it is told to.
    pub fn virtual_at(start: Time) -> Clock {
        Clock { now_ns: Arc::new(AtomicU64::new(start.as_ns())), origin: None }
    }

    /// The time of this turn.
    pub fn now(&self) -> Time {
        Time(self.now_ns.load(Ordering::Relaxed))
    }

    /// Reads the operating system's clock; on a virtual clock, does nothing. Returns the time of the new turn.
    pub fn refresh(&self) -> Time {
        if let Some(origin) = self.origin {
            let ns = u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.now_ns.store(ns, Ordering::Relaxed);
        }
        self.now()
    }

    /// Nanoseconds since 1970 UTC, for time stamps that people read; on a virtual clock, its own time.
    pub fn wall_ns(&self) -> u64 {
        match self.origin {
            Some(_) => match std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH) {
                Ok(span) => u64::try_from(span.as_nanos()).unwrap_or(u64::MAX),
                Err(_) => 0,
            },
            None => self.now().as_ns(),
        }
    }

    /// Moves a virtual clock forward to `to`. A clock never goes back, and a monotonic one is not moved by hand.
    pub fn advance_to(&self, to: Time) {
        if self.origin.is_none() {
            self.now_ns.fetch_max(to.as_ns(), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_virtual_clock_moves_only_forward_and_only_by_hand() {
        let clock = Clock::virtual_at(Time::from_ns(10));
        let twin = clock.clone();
        assert_eq!(clock.refresh(), Time::from_ns(10));
        clock.advance_to(Time::from_ns(30));
        clock.advance_to(Time::from_ns(20));
        assert_eq!(twin.now(), Time::from_ns(30));
    }

    #[test]
    fn a_deadline_past_the_end_of_time_saturates() {
        assert_eq!(Time::from_ns(1) + Duration::MAX, Time::from_ns(u64::MAX));
    }
}
