//! The parsed superblock: what all members know in common ([`ArrayMeta`]) and what each knows alone ([`Own`]).
//!
//! Invariants, checked by `decode` on what a disk says and by `encode` on what is about to be written:
//! - each slot of the layout stands in the member table exactly once, each member once; members without a slot
//!   are not in sync and at most [`MAX_SPARES`];
//! - the data area is a whole number of chunks, starts on a MiB, and ends before the tail of the device;
//! - no region overlaps another, copy A or the data; checkpoints lie within the data area;
//! - this member stands in the table.
//!
//! Fields are public, for the array changes them; whatever it makes of them, nothing that breaks an invariant
//! reaches a disk.

use super::format::{
    DATA_ALIGN_BYTES, MAX_DATA_BYTES, RESERVED_BYTES, SUPERBLOCK_BYTES, data_limit, locations,
};
use super::history::{History, Incarnation};
use super::identity::{ArrayName, ArrayUuid, IncarnationUuid, MemberUuid};
use super::state::{Consistency, MemberState};
use crate::dev::BlockSize;
use crate::layout::{Layout, Slot};
use crate::limits::{MAX_MEMBERS, MAX_SPARES};

/// Counters of metadata changes that are written stay below this.
const MAX_COUNTER: u64 = 1 << 63;
/// Those that are read stay below this.
const MAX_READ_COUNTER: u64 = 1 << 62;

/// An entry of the member table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which device.
    pub uuid: MemberUuid,
    /// Its slot; `None` for spares and for those that lost their slot.
    pub slot: Option<Slot>,
    /// Its state.
    pub state: MemberState,
    /// While rebuilding: bytes of its data area, from the start, that are right. Zero otherwise.
    pub rebuilt_bytes: u64,
}

/// A place kept on each member. Zero bytes at offset zero: there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// First byte on the device.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// The places kept between copy A and the data. All empty in arrays made by this version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Regions {
    /// The write-intent bitmap.
    pub write_intent: Region,
    /// The write log.
    pub log: Region,
    /// The checksums of data blocks.
    pub checksums: Region,
}

/// What the superblocks of all members say alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArrayMeta {
    /// Identity of the array.
    pub uuid: ArrayUuid,
    /// Its name.
    pub name: ArrayName,
    /// Level, slots, chunk, copies or parity algorithm.
    pub layout: Layout,
    /// Logical block of the array: the largest of its members'.
    pub block_size: BlockSize,
    /// First byte of the data area on each member.
    pub data_offset: u64,
    /// Bytes of the data area on each member: a multiple of the chunk.
    pub data_bytes: u64,
    /// The places kept before the data area.
    pub regions: Regions,
    /// How redundancy is brought back into step after an unclean stop.
    pub consistency: Consistency,
    /// Whether data blocks have checksums. Never, in this version.
    pub checksums: bool,
    /// When it was created: nanoseconds since 1970 UTC.
    pub created_ns: u64,
    /// When the metadata changed last: nanoseconds since 1970 UTC.
    pub updated_ns: u64,
    /// Raised by each change of the metadata.
    pub events: u64,
    /// False while writes may be in flight that not all members have.
    pub clean: bool,
    /// `Some(n)`: redundancy is complete in the first `n` bytes of the members' data areas only.
    pub resync: Option<u64>,
    /// The incarnations.
    pub history: History,
    /// The member table.
    pub members: Vec<Member>,
    /// Features that writers may ignore, unknown ones included: they are kept.
    pub compat: u64,
    /// Features that readers may ignore. Any unknown one: the array is started read-only.
    pub ro_compat: u64,
    /// Fields of compatible features this version does not know, carried along.
    pub(super) reserved: [u8; RESERVED_BYTES],
}

/// What the superblock of one member says alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Own {
    /// Which member this is.
    pub member: MemberUuid,
    /// Raised by each copy written to this device. Even ones go to copy A, odd ones to copy B.
    pub sequence: u64,
    /// Size of the device when this was written.
    pub device_bytes: u64,
}

impl Own {
    /// Takes the next sequence number and returns where the copy that carries it goes, in bytes on the device.
    pub fn advance(&mut self) -> u64 {
        self.sequence += 1;
        locations(self.device_bytes)[usize::from(self.sequence % 2 == 1)]
    }

    /// The device has grown to `device_bytes`. The next copy goes to its new end, for copy A is to stay until there is
    /// one: it is what leads to the former end. Returns where copy B was, in bytes on the device, if it moves.
    ///
    /// When that copy and the one after it, which goes to A, are durable, nothing leads to the former end any more.
    pub fn grow_to(&mut self, device_bytes: u64) -> Option<u64> {
        let [_, former] = locations(self.device_bytes);
        self.device_bytes = device_bytes;
        if locations(device_bytes)[1] == former {
            return None;
        }
        if (self.sequence + 1).is_multiple_of(2) {
            self.sequence += 1;
        }
        Some(former)
    }
}

/// A superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// What all members say.
    pub array: ArrayMeta,
    /// What this one says.
    pub own: Own,
}

/// Why bytes are no superblock this version can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// Something else, or nothing, is here.
    #[error("no superblock")]
    NotOurs,
    /// A superblock with damaged bytes.
    #[error("checksum is {stored:#010x} but the content has {computed:#010x}")]
    BadCrc {
        /// What the superblock says.
        stored: u32,
        /// What its bytes have.
        computed: u32,
    },
    /// Written by another version of the format.
    #[error("format version {0} is not known to this program (it knows 1): use the version that made it")]
    UnknownVersion(u32),
    /// It uses features this version would break.
    #[error("incompatible features {bits:#x} are not known to this program: use the version that made it")]
    UnknownIncompat {
        /// The unknown ones.
        bits: u64,
    },
    /// The checksum is right and the content is not: written by a defective program.
    #[error("field `{field}` has the impossible value {value}")]
    Impossible {
        /// Which field.
        field: &'static str,
        /// What it says, or which table entry is meant.
        value: u64,
    },
}

pub(super) fn impossible(field: &'static str, value: u64) -> SuperblockError {
    SuperblockError::Impossible { field, value }
}

impl ArrayMeta {
    /// The member in `slot`.
    pub fn in_slot(&self, slot: Slot) -> Option<&Member> {
        self.members.iter().find(|member| member.slot == Some(slot))
    }

    /// The entry of a member.
    pub fn member(&self, uuid: MemberUuid) -> Option<&Member> {
        self.members.iter().find(|member| member.uuid == uuid)
    }

    /// True if the member in `slot` has every acknowledged write.
    pub fn is_in_sync(&self, slot: Slot) -> bool {
        self.in_slot(slot).is_some_and(|member| member.state == MemberState::InSync)
    }

    /// True if a slot's member is not in sync.
    pub fn is_degraded(&self) -> bool {
        self.layout.all_slots().any(|slot| !self.is_in_sync(slot))
    }

    /// Size of the array in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.layout.capacity(self.data_bytes)
    }

    /// Bits of features that forbid writing, for this version knows none.
    pub fn unknown_ro_compat(&self) -> u64 {
        self.ro_compat
    }

    /// Records a change other than of the member table: raises the event counter.
    pub fn touch(&mut self, now_ns: u64) {
        self.events += 1;
        self.updated_ns = now_ns;
    }

    /// Changes the member table: raises the event counter, and begins the incarnation `fresh` if that changed
    /// which members are in sync. The result must reach all members that are left before any write is
    /// acknowledged that not all members of the table as it was have taken.
    pub fn change_members(
        &mut self,
        fresh: IncarnationUuid,
        now_ns: u64,
        change: impl FnOnce(&mut Vec<Member>),
    ) {
        let before = self.in_sync_members();
        change(&mut self.members);
        self.touch(now_ns);
        if self.in_sync_members() != before {
            self.history.begin(Incarnation { uuid: fresh, start_events: self.events });
        }
    }

    fn in_sync_members(&self) -> Vec<MemberUuid> {
        let in_sync = self.members.iter().filter(|member| member.state == MemberState::InSync);
        let mut members: Vec<_> = in_sync.map(|member| member.uuid).collect();
        members.sort_unstable();
        members
    }

    fn check(&self) -> Result<(), SuperblockError> {
        if self.events >= MAX_COUNTER || self.events < self.history.last().start_events {
            return Err(impossible("events", self.events));
        }
        self.check_places()?;
        self.check_members()
    }

    fn check_places(&self) -> Result<(), SuperblockError> {
        if self.data_offset == 0 || !self.data_offset.is_multiple_of(DATA_ALIGN_BYTES) {
            return Err(impossible("data offset", self.data_offset));
        }
        let chunk = u64::from(self.layout.chunk_bytes());
        let (least, most) = (chunk, MAX_DATA_BYTES);
        if !(least..=most).contains(&self.data_bytes) || !self.data_bytes.is_multiple_of(chunk) {
            return Err(impossible("data bytes", self.data_bytes));
        }
        if self.resync.is_some_and(|at| at > self.data_bytes) {
            return Err(impossible("resync checkpoint", self.resync.unwrap_or(0)));
        }
        if self.checksums {
            return Err(impossible("checksums", 1));
        }
        let Regions { write_intent, log, checksums } = self.regions;
        let mut taken = [write_intent, log, checksums];
        taken.sort_unstable_by_key(|region| region.offset);
        let mut free_from = SUPERBLOCK_BYTES as u64;
        for region in taken.into_iter().filter(|&region| region != Region::default()) {
            let end = region.offset.checked_add(region.bytes);
            let aligned = (region.offset | region.bytes).is_multiple_of(SUPERBLOCK_BYTES as u64);
            match end {
                Some(end) if aligned && region.offset >= free_from && end <= self.data_offset => {
                    free_from = end;
                }
                _ => return Err(impossible("region", region.offset)),
            }
        }
        Ok(())
    }

    fn check_members(&self) -> Result<(), SuperblockError> {
        let mut seen = [false; MAX_MEMBERS];
        let mut without_slot = 0;
        for (i, member) in self.members.iter().enumerate() {
            let entry = i as u64;
            if self.members[..i].iter().any(|other| other.uuid == member.uuid) {
                return Err(impossible("member uuid of entry", entry));
            }
            let past_end = member.rebuilt_bytes > self.data_bytes;
            if past_end || (member.rebuilt_bytes > 0 && member.state != MemberState::Rebuilding) {
                return Err(impossible("rebuild checkpoint", member.rebuilt_bytes));
            }
            let slotted = member.slot.is_some();
            let state_fits = match member.state {
                MemberState::InSync | MemberState::Rebuilding => slotted,
                MemberState::Spare => !slotted,
                MemberState::Faulty | MemberState::Missing => true,
            };
            if !state_fits {
                return Err(impossible("state of member entry", entry));
            }
            match member.slot {
                Some(slot) if slot.index() >= self.layout.slots() || seen[slot.index()] => {
                    return Err(impossible("slot of member entry", entry));
                }
                Some(slot) => seen[slot.index()] = true,
                None => without_slot += 1,
            }
        }
        let filled = seen.iter().filter(|&&filled| filled).count();
        if filled != self.layout.slots() || without_slot > MAX_SPARES {
            return Err(impossible("members", self.members.len() as u64));
        }
        Ok(())
    }
}

impl Superblock {
    /// Counters so high that no array reached them by counting are refused when they are read, far below what may be
    /// written: an array that begins with what a disk says can then count for ever and never break an invariant.
    pub(super) fn check_counters(&self) -> Result<(), SuperblockError> {
        match (self.array.events, self.own.sequence) {
            (events, _) if events >= MAX_READ_COUNTER => Err(impossible("events", events)),
            (_, sequence) if sequence >= MAX_READ_COUNTER => Err(impossible("sequence", sequence)),
            _ => Ok(()),
        }
    }

    /// True if `encode` would write what `decode` takes.
    pub(super) fn check(&self) -> Result<(), SuperblockError> {
        self.array.check()?;
        if self.array.member(self.own.member).is_none() {
            return Err(impossible("member uuid", 0));
        }
        if self.own.sequence >= MAX_COUNTER {
            return Err(impossible("sequence", self.own.sequence));
        }
        let data_end = self.array.data_offset.checked_add(self.array.data_bytes);
        if data_end.is_none_or(|end| end > data_limit(self.own.device_bytes)) {
            return Err(impossible("device bytes", self.own.device_bytes));
        }
        Ok(())
    }
}
