//! One member's queue: I/O that arrives together and lies side by side goes out as one.
//!
//! Everything a turn wants of a member is collected, sorted by address and merged where it is contiguous (the
//! block layer's plugging), so that a run of small writes or of full stripes reaches the disk as few large
//! transfers. Requests beyond the device's queue depth wait here in the order they were merged in.
//!
//! Invariants: each piece gets exactly one outcome; a merged transfer that failed in the medium is sent again
//! piece by piece, so that one bad block fails no neighbour; at most `queue_depth` requests are in the device.

use super::Owner;
use crate::buf::{Buf, BufList, View, ViewList};
use crate::dev::{BlockDev, Completion, ErrorKind, IoError, Op, OpKind, Request, Tag};
use crate::slots::Slots;
use crate::time::Time;
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::time::Duration;

/// Largest transfer made by merging: beyond it, fewer requests gain nothing and latency suffers.
const MAX_MERGED_BYTES: u64 = 1 << 20;
/// How long a device without room is left alone.
const BUSY_PAUSE: Duration = Duration::from_millis(1);
/// Most segments of a merged transfer.
const MAX_MERGED_SEGMENTS: usize = 256;

/// What a piece does.
pub(super) enum Io {
    Read(Buf),
    Write { data: View, fua: bool },
    Zero { len: u64, fua: bool, unmap: bool },
    Flush,
}

impl Io {
    fn len(&self) -> u64 {
        match self {
            Io::Read(buf) => buf.len() as u64,
            Io::Write { data, .. } => data.len() as u64,
            Io::Zero { len, .. } => *len,
            Io::Flush => 0,
        }
    }

    fn kind(&self) -> OpKind {
        match self {
            Io::Read(_) => OpKind::Read,
            Io::Write { .. } => OpKind::Write,
            Io::Zero { .. } => OpKind::WriteZeroes,
            Io::Flush => OpKind::Flush,
        }
    }

    /// Pieces of one class may be merged. `None`: this one goes alone.
    fn class(&self) -> Option<u8> {
        match self {
            Io::Read(_) => Some(0),
            Io::Write { fua, .. } => Some(1 + u8::from(*fua)),
            Io::Zero { fua, unmap, .. } => Some(3 + u8::from(*fua) + 2 * u8::from(*unmap)),
            Io::Flush => None,
        }
    }
}

/// One member I/O: where on the device, what, and for whom.
pub(super) struct Piece {
    pub(super) owner: Owner,
    pub(super) offset: u64,
    pub(super) io: Io,
}

/// How a piece ended. A read brings its memory back, unless the device keeps it.
pub(super) struct Outcome {
    pub(super) owner: Owner,
    pub(super) result: Result<(), IoError>,
    pub(super) buf: Option<Buf>,
}

type Group = SmallVec<[Piece; 2]>;

/// A piece that is in the device.
struct Sent {
    owner: Owner,
    offset: u64,
    len: u64,
    /// What to send again; reads get their memory back.
    again: Option<Io>,
    kind: OpKind,
}

/// The queue.
pub(super) struct Plug {
    fresh: Vec<Piece>,
    groups: VecDeque<Group>,
    sent: Slots<SmallVec<[Sent; 2]>>,
    max_bytes: u64,
    /// The device had no room: nothing is submitted before this time.
    pause_until: Time,
    /// Since when it has had no room.
    busy_since: Option<Time>,
}

impl Plug {
    /// A queue of a device whose largest transfer is `max_transfer_bytes`.
    pub(super) fn new(max_transfer_bytes: u64) -> Plug {
        Plug {
            fresh: Vec::new(),
            groups: VecDeque::new(),
            sent: Slots::new(),
            max_bytes: max_transfer_bytes.min(MAX_MERGED_BYTES),
            pause_until: Time::ZERO,
            busy_since: None,
        }
    }

    pub(super) fn push(&mut self, piece: Piece) {
        self.fresh.push(piece);
    }

    /// Requests in the device.
    pub(super) fn in_device(&self) -> usize {
        self.sent.len()
    }

    /// Pieces waiting and requests in the device: the member's load.
    pub(super) fn load(&self) -> usize {
        self.fresh.len() + self.groups.len() + self.sent.len()
    }

    /// Tags of the requests in the device.
    pub(super) fn sent_tags(&self) -> impl Iterator<Item = Tag> {
        self.sent.iter().map(|(key, _)| Tag(key))
    }

    /// True if something waits to be submitted.
    pub(super) fn has_waiting(&self) -> bool {
        !self.fresh.is_empty() || !self.groups.is_empty()
    }

    /// Submits what waits, merged, as far as the device's queue takes it.
    pub(super) fn flush(
        &mut self,
        dev: &mut dyn BlockDev,
        queue_depth: usize,
        now: Time,
        deadline: Duration,
    ) {
        self.merge_fresh();
        if now < self.pause_until {
            return;
        }
        let deadline = now + deadline;
        while self.sent.len() < queue_depth
            && let Some(group) = self.groups.pop_front()
        {
            self.submit(dev, group, deadline);
        }
    }

    /// Drops what waits, with `error`: the member has failed.
    pub(super) fn fail_waiting(&mut self, error: ErrorKind, outcomes: &mut Vec<Outcome>) {
        let waiting = self.groups.drain(..).flatten().chain(self.fresh.drain(..));
        for Piece { owner, offset, io } in waiting {
            let result = Err(IoError::new(error, io.kind(), offset, io.len()));
            let buf = if let Io::Read(buf) = io { Some(buf) } else { None };
            outcomes.push(Outcome { owner, result, buf });
        }
    }

    /// When something waits and may be submitted, though nothing is in the device.
    pub(super) fn wake_at(&self) -> Option<Time> {
        (self.has_waiting() && self.sent.len() == 0).then_some(self.pause_until)
    }

    /// Takes a completion apart into the outcomes of its pieces. A device without room is asked again after a
    /// pause, for as long as `patience`: that is no fault of its medium.
    pub(super) fn complete(
        &mut self,
        completion: Completion,
        now: Time,
        patience: Duration,
        outcomes: &mut Vec<Outcome>,
    ) {
        let Completion { tag, result, bufs } = completion;
        let Some(sent) = self.sent.remove(tag.0) else { return };
        let again = match result.map_err(|error| error.kind) {
            Err(ErrorKind::Busy) => {
                self.pause_until = now + BUSY_PAUSE;
                now.since(*self.busy_since.get_or_insert(now)) < patience
            }
            Err(ErrorKind::Medium | ErrorKind::Short) => sent.len() > 1,
            Ok(()) => {
                self.busy_since = None;
                false
            }
            Err(_) => false,
        };
        let mut bufs = bufs.into_iter();
        for Sent { owner, offset, len, again: write, kind } in sent {
            let buf = if kind == OpKind::Read { bufs.next() } else { None };
            let io = match (write, kind, buf) {
                (_, OpKind::Read, Some(buf)) if again => Io::Read(buf),
                (Some(io), _, None) if again => io,
                (_, _, buf) => {
                    let result = result.map_err(|e| IoError { offset, len, ..e });
                    outcomes.push(Outcome { owner, result, buf });
                    continue;
                }
            };
            let alone = Piece { owner, offset, io };
            self.groups.push_back(SmallVec::from_iter([alone]));
        }
    }

    fn merge_fresh(&mut self) {
        if self.fresh.len() > 1 {
            self.fresh.sort_by_key(|piece| (piece.io.class(), piece.offset));
        }
        let mut group = Group::new();
        let (mut class, mut end, mut bytes) = (None, 0, 0);
        for piece in self.fresh.drain(..) {
            let len = piece.io.len();
            let transfers = !matches!(piece.io, Io::Zero { .. });
            let fits = !transfers || (bytes + len <= self.max_bytes && group.len() < MAX_MERGED_SEGMENTS);
            let joins = class.is_some() && piece.io.class() == class && piece.offset == end && fits;
            if !joins && !group.is_empty() {
                self.groups.push_back(std::mem::take(&mut group));
                bytes = 0;
            }
            (class, end) = (piece.io.class(), piece.offset + len);
            bytes += len;
            group.push(piece);
        }
        if !group.is_empty() {
            self.groups.push_back(group);
        }
    }

    fn submit(&mut self, dev: &mut dyn BlockDev, group: Group, deadline: Time) {
        let mut sent = SmallVec::new();
        let offset = group[0].offset;
        let (mut bufs, mut views) = (BufList::new(), ViewList::new());
        let (mut fua, mut unmap, mut zeroes, mut kind) = (false, false, 0, OpKind::Flush);
        for Piece { owner, offset, io } in group {
            kind = io.kind();
            let (len, mut again) = (io.len(), None);
            match io {
                Io::Read(buf) => bufs.push(buf),
                Io::Write { data, fua: forced } => {
                    fua = forced;
                    again = Some(Io::Write { data: data.clone(), fua });
                    views.push(data);
                }
                Io::Zero { len, fua: forced, unmap: free } => {
                    (fua, unmap) = (forced, free);
                    zeroes += len;
                    again = Some(Io::Zero { len, fua, unmap });
                }
                Io::Flush => again = Some(Io::Flush),
            }
            sent.push(Sent { owner, offset, len, again, kind });
        }
        let op = match kind {
            OpKind::Read => Op::Read { offset, bufs },
            OpKind::Write => Op::Write { offset, data: views, fua },
            OpKind::Flush => Op::Flush,
            OpKind::WriteZeroes | OpKind::Discard => Op::WriteZeroes { offset, len: zeroes, fua, unmap },
        };
        let tag = Tag(self.sent.insert(sent));
        dev.submit(Request { tag, op, deadline });
    }
}
