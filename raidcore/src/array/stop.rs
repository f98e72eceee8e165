//! Flushes, the clean mark, and the way to a stop.
//!
//! The superblocks may say "clean" only when every write has reached the platters of every member, so each way
//! to clean goes: no writes under way, flush all members, and only then the commit.

use super::member::MemberId;
use super::plug::{Io, Outcome, Piece};
use super::{Array, Event, Owner};
use crate::dev::{ErrorKind, IoError, OpKind};
use crate::meta::MemberState;
use crate::slots::Key;
use crate::time::Time;

/// Where the array is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Serving,
    /// Finishing what is under way; takes nothing new.
    Draining,
    /// All is done but the flush and the clean mark.
    Closing,
    Stopped,
}

impl Phase {
    pub(super) fn is_serving(self) -> bool {
        self == Phase::Serving
    }
}

/// A flush of all members, and what it is for.
pub(super) struct FlushJob {
    purpose: Purpose,
    left: usize,
    /// The count of writes when the flush began.
    writes_begun: u64,
    /// The walk under way when the flush began, and how far it had come: so far is durable when it is done.
    walk: u64,
    synced_bytes: u64,
    /// A member that the array cannot do without did not flush.
    error: Option<ErrorKind>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The requests it serves.
    Requests(Vec<Key>),
    /// To mark the array clean.
    Clean,
    /// To make the last of a sync durable before the superblocks count on it.
    SyncDone,
}

impl Array {
    /// Flushes for a request; requests that come while such a flush is under way wait for the next one.
    pub(super) fn flush_for(&mut self, parent: Key) {
        let is_for_requests = |job: &FlushJob| matches!(job.purpose, Purpose::Requests(_));
        if self.flushes.iter().any(|(_, job)| is_for_requests(job)) {
            self.flushes_waiting.push(parent);
        } else {
            self.begin_flush(Purpose::Requests(vec![parent]));
        }
    }

    /// Flushes every member that holds data.
    pub(super) fn begin_flush(&mut self, purpose: Purpose) {
        let has_data = |id: &MemberId| self.members[id.0].is_live() && self.members[id.0].slot.is_some();
        let targets: Vec<MemberId> = (0..self.members.len()).map(MemberId).filter(has_data).collect();
        let (walk, synced_bytes) = match &self.sync {
            Some(sync) => (sync.walk(), self.layout.member_bytes_before(sync.checkpoint())),
            None => (0, 0),
        };
        // One more than the members: the job ends below if there are none, and never before it is complete.
        let job = self.flushes.insert(FlushJob {
            purpose,
            left: targets.len() + 1,
            writes_begun: self.writes_begun,
            walk,
            synced_bytes,
            error: None,
        });
        for member in targets {
            let owner = Owner::Flush { job, member };
            self.members[member.0].push(Piece { owner, offset: 0, io: Io::Flush });
        }
        self.flush_part_done(job);
    }

    pub(super) fn on_flushed(&mut self, outcome: Outcome, job: Key, member: MemberId) {
        if let Err(error) = &outcome.result
            && let Some(kind) = self.note_write_error(member, error)
            && let Some(job) = self.flushes.get_mut(job)
        {
            job.error = Some(kind);
        }
        self.flush_part_done(job);
    }

    fn flush_part_done(&mut self, key: Key) {
        let Some(job) = self.flushes.get_mut(key) else { return };
        job.left -= 1;
        if job.left > 0 {
            return;
        }
        let Some(job) = self.flushes.remove(key) else { return };
        match job.purpose {
            Purpose::Requests(parents) => {
                self.end_flush_requests(parents, job.error);
                let waiting = std::mem::take(&mut self.flushes_waiting);
                if !waiting.is_empty() {
                    self.begin_flush(Purpose::Requests(waiting));
                }
            }
            Purpose::Clean => self.mark_clean(&job),
            Purpose::SyncDone => self.end_sync(job.walk, job.error),
        }
    }

    /// Rule 3 holds for flushes as for writes: a member that failed must be out on disk first.
    fn end_flush_requests(&mut self, parents: Vec<Key>, error: Option<ErrorKind>) {
        if let Some(kind) = error {
            let result = Err(IoError::new(kind, OpKind::Flush, 0, 0));
            return parents.into_iter().for_each(|parent| self.piece_done(parent, result));
        }
        self.flushes_awaiting_commit.extend(parents);
        if !self.commit.is_pending() || self.failed {
            self.end_flushes_awaiting();
        }
    }

    pub(super) fn end_flushes_awaiting(&mut self) {
        let result = match self.failed {
            true => Err(IoError::new(ErrorKind::ArrayFailed, OpKind::Flush, 0, 0)),
            false => Ok(()),
        };
        for parent in std::mem::take(&mut self.flushes_awaiting_commit) {
            self.piece_done(parent, result);
        }
    }

    fn mark_clean(&mut self, job: &FlushJob) {
        if job.error.is_some() {
            // What did not reach the medium must be found by a resync. A stop ends unclean.
            self.unclean |= self.phase == Phase::Closing;
            // Tried again after the next pause, not at once.
            self.last_write = self.clock.now();
            return;
        }
        let quiet = self.units.writes() == 0 && self.writes_begun == job.writes_begun;
        if self.failed || !(quiet || self.phase == Phase::Closing) {
            return;
        }
        self.meta.clean = true;
        // The progress of a walk that has ended since is nobody's progress now.
        if let Some(sync) = self.sync.as_ref().filter(|sync| sync.walk() == job.walk) {
            match sync.target() {
                Some(target) => self.members[target.0].rebuilt_bytes = job.synced_bytes,
                None => self.meta.resync = Some(job.synced_bytes),
            }
        }
        self.commit.request();
    }

    /// When the array, if nothing more is written, is to be marked clean.
    pub(super) fn clean_at(&self) -> Option<Time> {
        let is_waiting =
            !self.meta.clean && self.units.writes() == 0 && !self.failed && self.phase.is_serving();
        (is_waiting && !self.is_closing_flush_under_way()).then(|| self.last_write + self.options.clean_delay)
    }

    fn is_closing_flush_under_way(&self) -> bool {
        self.flushes.iter().any(|(_, job)| job.purpose == Purpose::Clean)
    }

    /// Marks an idle array clean, and takes a stopping one to its end.
    pub(super) fn pump_stop(&mut self) {
        if self.clean_at().is_some_and(|at| at <= self.clock.now()) {
            self.begin_flush(Purpose::Clean);
        }
        if self.phase == Phase::Draining {
            let drained = self.parents.len() == 0 && self.units.is_idle() && self.flushes.len() == 0;
            if drained && (self.failed || !self.commit.is_pending()) {
                self.phase = Phase::Closing;
                if !self.failed {
                    self.begin_flush(Purpose::Clean);
                }
            }
        }
        if self.phase == Phase::Closing
            && (self.failed || (self.flushes.len() == 0 && !self.commit.is_pending()))
        {
            self.phase = Phase::Stopped;
            self.event(Event::Stopped { clean: !self.failed && !self.unclean });
        }
    }

    /// Stops: new requests are refused, what is under way is finished, the members are flushed and marked clean.
    /// Go on calling `reap` until [`is_stopped`](Array::is_stopped).
    pub fn stop(&mut self) {
        if self.phase.is_serving() {
            self.phase = Phase::Draining;
        }
    }

    /// True once nothing is under way and nothing will be.
    pub fn is_stopped(&self) -> bool {
        self.phase == Phase::Stopped
    }

    /// True if the array has lost more than its level survives.
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    pub(super) fn is_rebuilding(&self, id: MemberId) -> bool {
        self.members[id.0].state == MemberState::Rebuilding
    }
}
