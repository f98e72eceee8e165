//! What a disk has done: counters, and a bounded trace for people who read a replay.

use crate::dev::{ErrorKind, OpKind, Tag};
use crate::time::Time;
use std::collections::VecDeque;
use std::fmt;

/// Counters of a disk since it was made. They outlive power cuts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Reads executed.
    pub reads: u64,
    /// Writes executed, late ones included.
    pub writes: u64,
    /// Writes among them with forced unit access.
    pub fua_writes: u64,
    /// Flushes executed.
    pub flushes: u64,
    /// Discards executed.
    pub discards: u64,
    /// Write-zeroes executed.
    pub zeroes: u64,
    /// Bytes of the reads.
    pub read_bytes: u64,
    /// Bytes of the writes, discards and zeroes not included.
    pub written_bytes: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Requests among them that were answered because their deadline passed.
    pub timeouts: u64,
    /// Operations executed after they had been given up.
    pub late: u64,
    /// Silent faults done to operations.
    pub silent_faults: u64,
    /// Power cuts.
    pub power_cuts: u64,
}

/// One line of the trace: an operation that was executed, or a request that was answered without being
/// executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceEvent {
    /// When.
    pub time: Time,
    /// Which path, in the order the devices were made.
    pub path: usize,
    /// The request's tag.
    pub tag: Tag,
    /// What.
    pub op: OpKind,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// How it ended.
    pub result: Result<(), ErrorKind>,
    /// What was out of the ordinary: "late", "torn", "lost", "misdirected", "corrupt"; empty otherwise.
    pub note: &'static str,
}

impl fmt::Display for TraceEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} path {} tag {}: ", self.time, self.path, self.tag.0)?;
        write!(f, "{} {}+{}", self.op, self.offset, self.len)?;
        if let Err(kind) = self.result {
            write!(f, " {kind:?}")?;
        }
        if self.note.is_empty() { Ok(()) } else { write!(f, " ({})", self.note) }
    }
}

/// Counters and trace together.
#[derive(Default)]
pub(super) struct Journal {
    pub(super) stats: Stats,
    pub(super) trace: VecDeque<TraceEvent>,
    pub(super) trace_limit: usize,
}

impl Journal {
    pub(super) fn record(&mut self, event: TraceEvent) {
        if self.trace_limit == 0 {
            return;
        }
        if self.trace.len() >= self.trace_limit {
            self.trace.pop_front();
        }
        self.trace.push_back(event);
    }
}
