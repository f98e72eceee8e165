//! What is asked of a device, and its answer.

use super::error::{ErrorKind, IoError};
use crate::buf::{BufList, ViewList, list_len};
use crate::time::Time;
use std::fmt;
use std::ops::Range;

/// Chosen by the submitter, unique among its requests in flight on one device; comes back in the completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(pub u64);

/// An operation. Offsets and lengths are in bytes and multiples of the device's block size.
#[derive(Debug)]
pub enum Op {
    /// Fill `bufs`, in order, from `offset` on.
    Read {
        /// First byte on the device.
        offset: u64,
        /// Where the data goes.
        bufs: BufList,
    },
    /// Write `data`, in order, from `offset` on.
    Write {
        /// First byte on the device.
        offset: u64,
        /// What is written.
        data: ViewList,
        /// Force unit access: answered only once this write is durable.
        fua: bool,
    },
    /// Make every write answered so far durable.
    Flush,
    /// The content of the range is no longer needed: advice, after which it reads as anything.
    Discard {
        /// First byte on the device.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// The range reads as zeroes afterwards.
    WriteZeroes {
        /// First byte on the device.
        offset: u64,
        /// How many bytes.
        len: u64,
        /// Answered only once durable.
        fua: bool,
        /// The space behind it may be given back. If false, it stays allocated.
        unmap: bool,
    },
}

/// The kind of an operation, for errors, counters and logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OpKind {
    /// [`Op::Read`]
    Read,
    /// [`Op::Write`]
    Write,
    /// [`Op::Flush`]
    Flush,
    /// [`Op::Discard`]
    Discard,
    /// [`Op::WriteZeroes`]
    WriteZeroes,
}

impl fmt::Display for OpKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OpKind::Read => "read",
            OpKind::Write => "write",
            OpKind::Flush => "flush",
            OpKind::Discard => "discard",
            OpKind::WriteZeroes => "write zeroes",
        })
    }
}

impl Op {
    /// Which operation it is.
    pub fn kind(&self) -> OpKind {
        match self {
            Op::Read { .. } => OpKind::Read,
            Op::Write { .. } => OpKind::Write,
            Op::Flush => OpKind::Flush,
            Op::Discard { .. } => OpKind::Discard,
            Op::WriteZeroes { .. } => OpKind::WriteZeroes,
        }
    }

    /// First byte and length; a flush covers nothing in particular: 0, 0.
    pub fn extent(&self) -> (u64, u64) {
        match self {
            Op::Read { offset, bufs } => (*offset, list_len(bufs)),
            Op::Write { offset, data, .. } => (*offset, list_len(data)),
            Op::Flush => (0, 0),
            Op::Discard { offset, len } | Op::WriteZeroes { offset, len, .. } => (*offset, *len),
        }
    }

    /// The bytes it covers on the device. Only for operations that passed [`Checked`](super::Checked): a range
    /// past the end of numbers saturates.
    pub fn range(&self) -> Range<u64> {
        let (offset, len) = self.extent();
        offset..offset.saturating_add(len)
    }

    /// True if it changes what the device holds.
    pub fn is_write(&self) -> bool {
        matches!(self, Op::Write { .. } | Op::Discard { .. } | Op::WriteZeroes { .. })
    }
}

/// An operation with its tag and the time by which it must have been answered.
#[derive(Debug)]
pub struct Request {
    /// Names the request.
    pub tag: Tag,
    /// What to do.
    pub op: Op,
    /// When to give up.
    pub deadline: Time,
}

impl Request {
    /// The answer to a request with which nothing is done, for the reason `kind`.
    pub fn refuse(self, kind: ErrorKind) -> Completion {
        let (offset, len) = self.op.extent();
        let error = IoError::new(kind, self.op.kind(), offset, len);
        Completion::refused(self.tag, self.op, error)
    }
}

/// The answer to a request.
#[derive(Debug)]
pub struct Completion {
    /// The request's tag.
    pub tag: Tag,
    /// How it ended.
    pub result: Result<(), IoError>,
    /// The memory of a read, as it was given; empty for other operations, and for a read that was given up
    /// while the kernel may still write to it.
    pub bufs: BufList,
}

impl Completion {
    /// An answer without memory.
    pub fn new(tag: Tag, result: Result<(), IoError>) -> Completion {
        Completion { tag, result, bufs: BufList::new() }
    }

    /// The answer to `op` that failed before anything was done with it: its read memory goes back.
    pub fn refused(tag: Tag, op: Op, error: IoError) -> Completion {
        let bufs = match op {
            Op::Read { bufs, .. } => bufs,
            _ => BufList::new(),
        };
        Completion { tag, result: Err(error), bufs }
    }
}
