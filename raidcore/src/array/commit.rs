//! Superblocks: each change of the metadata is written to every live member, one change at a time.
//!
//! Invariants:
//! - A commit counts as done when every member that is still live has its superblock durably (FUA).
//! - Changes asked for while one is being written are in the next one; `is_pending` is true until it is done.
//! - Each write goes to the older of a device's two copies, so that a torn one leaves the other.

use super::member::{Member, MemberId};
use super::plug::{Io, Outcome, Piece};
use super::stop::Phase;
use super::{Array, Owner};
use crate::buf::Buf;
use crate::meta::{self, IncarnationUuid, MemberState, Superblock};
use uuid::Uuid;

/// What is wanted, what is written.
pub(super) struct Commit {
    wanted: u64,
    done: u64,
    writing: Option<Writing>,
    /// The metadata as it is was made to be written first; nothing is to be added to it.
    prepared: bool,
    /// The newest superblocks say the array is clean.
    clean_on_disk: bool,
}

struct Writing {
    generation: u64,
    left: usize,
    clean: bool,
}

impl Commit {
    /// At the start the metadata is new and on no member: it is wanted, and counts as clean.
    pub(super) fn at_start() -> Commit {
        Commit { wanted: 1, done: 0, writing: None, prepared: true, clean_on_disk: true }
    }

    /// The metadata has changed. Returns the number of the commit that says so.
    pub(super) fn request(&mut self) -> u64 {
        self.wanted += 1;
        self.wanted
    }

    /// True if all live members have what was asked for under this number.
    pub(super) fn is_done(&self, number: u64) -> bool {
        self.done >= number
    }

    /// True while a change is not yet on all live members.
    pub(super) fn is_pending(&self) -> bool {
        self.done < self.wanted
    }

    /// True if writes are announced: no superblock says, or is about to say, that the array is clean.
    fn is_dirty_on_disk(&self) -> bool {
        !self.clean_on_disk && self.writing.as_ref().is_none_or(|writing| !writing.clean)
    }
}

impl Array {
    /// True if a write may be started; if not, asks for the superblocks to announce it.
    pub(super) fn may_write(&mut self) -> bool {
        if self.meta.clean {
            self.meta.clean = false;
            self.commit.request();
        }
        self.commit.is_dirty_on_disk()
    }

    /// Starts writing what is wanted, if nothing is being written.
    pub(super) fn pump_commit(&mut self) {
        let over = self.failed || self.phase == Phase::Stopped;
        if over || self.commit.writing.is_some() || !self.commit.is_pending() {
            return;
        }
        // What was asked for since the start is not in the prepared metadata: it is the next commit's.
        let generation = if self.commit.prepared { 1 } else { self.commit.wanted };
        let is_in = |member: &Member| !self.commit.prepared || self.meta.member(member.uuid).is_some();
        let takes_it = |id: &MemberId| self.members[id.0].is_live() && is_in(&self.members[id.0]);
        let live: Vec<MemberId> = (0..self.members.len()).map(MemberId).filter(takes_it).collect();
        if live.is_empty() {
            return;
        }
        // Memory of its own, enough for every member: operations that wait for this commit hold what they hold.
        let bufs: Result<Vec<Buf>, _> =
            live.iter().map(|_| self.superblock_memory.alloc(meta::SUPERBLOCK_BYTES)).collect();
        let Ok(bufs) = bufs else { return };
        self.next_metadata();
        self.commit.writing = Some(Writing { generation, left: live.len(), clean: self.meta.clean });
        for (id, buf) in live.into_iter().zip(bufs) {
            self.write_superblock(id, buf);
        }
    }

    /// Moves the metadata on to what is written next. If it changes who is in sync, a new incarnation begins.
    fn next_metadata(&mut self) {
        if std::mem::take(&mut self.commit.prepared) {
            return;
        }
        let entry = |member: &Member| meta::Member {
            uuid: member.uuid,
            slot: member.slot,
            state: member.state,
            // Only a rebuild has a checkpoint; what a failed target once had counts no more.
            rebuilt_bytes: if member.state == MemberState::Rebuilding { member.rebuilt_bytes } else { 0 },
        };
        let table = self.members.iter().filter(|member| !member.forgotten).map(entry).collect();
        let fresh = IncarnationUuid(Uuid::new_v4());
        self.meta.change_members(fresh, self.clock.wall_ns(), |members| *members = table);
    }

    fn write_superblock(&mut self, id: MemberId, mut buf: Buf) {
        let Some(own) = &mut self.members[id.0].own else { return };
        let offset = own.advance();
        let superblock = Superblock { array: self.meta.clone(), own: *own };
        buf.copy_from_slice(&superblock.encode());
        let io = Io::Write { data: buf.freeze(), fua: true };
        self.members[id.0].push(Piece { owner: Owner::Commit { member: id }, offset, io });
    }

    pub(super) fn on_commit_written(&mut self, outcome: Outcome, id: MemberId) {
        if let Err(error) = &outcome.result
            && self.note_write_error(id, error).is_some()
        {
            // The array cannot do without this member, and it would go on unannounced: no write may be
            // acknowledged on the strength of this commit.
            self.fail_array(id, error);
        }
        let Some(writing) = &mut self.commit.writing else { return };
        writing.left -= 1;
        if writing.left > 0 {
            return;
        }
        self.commit.clean_on_disk = writing.clean;
        self.commit.done = writing.generation;
        self.commit.writing = None;
        if !self.commit.is_pending() {
            self.end_awaiting();
            self.end_flushes_awaiting();
        }
    }
}
