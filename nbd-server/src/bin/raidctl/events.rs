//! What happened to the arrays: a bounded log that any thread may add to and any number of readers may follow.
//!
//! Invariants: sequence numbers start at 1 and never skip; the log keeps the last [`KEPT_EVENTS`]; a reader that
//! fell behind sees from the numbers that it did.

use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

/// Events kept for readers that come later.
pub const KEPT_EVENTS: usize = 1024;

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// For the record.
    Info,
    /// Something was lost that redundancy made up for.
    Warning,
    /// Redundancy or data is gone: act now.
    Critical,
}

impl From<raidcore::array::Severity> for Severity {
    fn from(severity: raidcore::array::Severity) -> Severity {
        match severity {
            raidcore::array::Severity::Info => Severity::Info,
            raidcore::array::Severity::Warning => Severity::Warning,
            raidcore::array::Severity::Critical => Severity::Critical,
        }
    }
}

/// One event, with md's name where md has one (mdadm(8), monitor mode).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// Counts from 1 since the daemon started.
    pub seq: u64,
    /// When, RFC 3339, UTC.
    pub time: String,
    /// `NewArray`, `Fail`, `DegradedArray`, `RebuildStarted`, `RebuildFinished`, `SpareActive`, ...
    pub event: String,
    /// How much it matters.
    pub severity: Severity,
    /// Which array.
    pub array: String,
    /// Which device, where it is about one.
    pub device: Option<String>,
    /// For people.
    pub message: String,
}

impl EventRecord {
    /// One line for people.
    pub fn line(&self) -> String {
        format!("{} {} {}: {}", self.time, self.event, self.array, self.message)
    }
}

/// The log.
#[derive(Default)]
pub struct EventLog {
    ring: Mutex<Ring>,
    grown: Condvar,
}

#[derive(Default)]
struct Ring {
    last_seq: u64,
    records: VecDeque<EventRecord>,
    closed: bool,
}

impl EventLog {
    /// Adds an event of now and wakes whoever follows. Returns it, numbered.
    pub fn push(
        &self,
        severity: Severity,
        event: &str,
        array: &str,
        device: Option<&str>,
        message: &str,
    ) -> EventRecord {
        let mut ring = self.ring.lock();
        ring.last_seq += 1;
        let record = EventRecord {
            seq: ring.last_seq,
            time: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            event: event.to_string(),
            severity,
            array: array.to_string(),
            device: device.map(str::to_string),
            message: message.to_string(),
        };
        if ring.records.len() == KEPT_EVENTS {
            ring.records.pop_front();
        }
        ring.records.push_back(record.clone());
        self.grown.notify_all();
        record
    }

    /// The kept events with a number above `seq`, in order.
    pub fn after(&self, seq: u64) -> Vec<EventRecord> {
        self.ring.lock().after(seq)
    }

    /// As [`after`](EventLog::after), but waits for the first one. `None` once the log is closed and all is seen.
    pub fn wait_after(&self, seq: u64) -> Option<Vec<EventRecord>> {
        self.look(seq, None)
    }

    /// As [`wait_after`](EventLog::wait_after), but not longer than `patience`: then there are none.
    pub fn wait_a_while_after(&self, seq: u64, patience: Duration) -> Option<Vec<EventRecord>> {
        self.look(seq, Some(patience))
    }

    /// The number of the last event so far.
    pub fn last_seq(&self) -> u64 {
        self.ring.lock().last_seq
    }

    /// Something may happen again, after [`close`](EventLog::close).
    pub fn open(&self) {
        self.ring.lock().closed = false;
    }

    /// Nothing more will happen: lets those who wait go.
    pub fn close(&self) {
        self.ring.lock().closed = true;
        self.grown.notify_all();
    }

    fn look(&self, seq: u64, patience: Option<Duration>) -> Option<Vec<EventRecord>> {
        let mut ring = self.ring.lock();
        while ring.last_seq <= seq {
            if ring.closed {
                return None;
            }
            match patience {
                None => self.grown.wait(&mut ring),
                Some(patience) if self.grown.wait_for(&mut ring, patience).timed_out() => break,
                Some(_) => {}
            }
        }
        Some(ring.after(seq))
    }
}

impl Ring {
    fn after(&self, seq: u64) -> Vec<EventRecord> {
        self.records.iter().filter(|record| record.seq > seq).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_bounded_and_keeps_the_newest() {
        let log = EventLog::default();
        for _ in 0..KEPT_EVENTS + 10 {
            log.push(Severity::Warning, "Fail", "vol0", Some("/dev/loop1"), "write error");
        }
        let kept = log.after(0);
        assert_eq!((kept.len(), kept[0].seq), (KEPT_EVENTS, 11));
        assert_eq!(log.after(kept[0].seq).len(), KEPT_EVENTS - 1);
    }

    #[test]
    fn a_follower_is_woken_by_the_next_event() {
        let log = EventLog::default();
        std::thread::scope(|scope| {
            let follower = scope.spawn(|| log.wait_after(0));
            log.push(Severity::Info, "NewArray", "vol0", None, "");
            assert_eq!(follower.join().unwrap().unwrap()[0].event, "NewArray");
            let follower = scope.spawn(|| (log.wait_after(0).is_some(), log.wait_after(1)));
            log.close();
            assert_eq!(follower.join().unwrap(), (true, None), "closed, but what happened before is told");
        });
    }

    #[test]
    fn a_line_names_event_array_and_device() {
        let record = EventLog::default().push(Severity::Warning, "Fail", "vol0", None, "/dev/loop1 failed");
        assert!(record.line().ends_with(" Fail vol0: /dev/loop1 failed"), "{}", record.line());
    }
}
