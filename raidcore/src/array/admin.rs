//! What an administrator does to a running array: fail, remove, add.
//!
//! Each call changes the state at once; the superblocks follow with the next calls of `reap`. What cannot be
//! done safely is refused, with the thing and the remedy named.

use super::assemble::fits;
use super::member::{Member, MemberId};
use super::{Array, Event};
use crate::dev::BlockDev;
use crate::limits::MAX_SPARES;
use crate::meta::{MemberState, MemberUuid, Own, TAIL_BYTES};
use uuid::Uuid;

/// Why an administrator's wish was not carried out. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// No member has this device.
    #[error("{device} is not a member of {array}: see `raidctl status {array}`")]
    NotAMember {
        /// What was named.
        device: String,
        /// Of which array.
        array: String,
    },
    /// The member is out already.
    #[error("{device} is {state} already: remove it with `raidctl remove {array} {device}`")]
    AlreadyOut {
        /// The device.
        device: String,
        /// Its state.
        state: MemberState,
        /// Of which array.
        array: String,
    },
    /// Without it the array would lose data.
    #[error("{array} cannot do without {device}: add another device and let it be rebuilt first")]
    Needed {
        /// The device.
        device: String,
        /// Of which array.
        array: String,
    },
    /// Parity has not been checked since an unclean stop.
    #[error(
        "{array} is being resynced after an unclean stop, and without {device} blocks might be rebuilt wrongly: \
         wait until `raidctl status {array}` shows no resync"
    )]
    InDoubt {
        /// The device.
        device: String,
        /// Of which array.
        array: String,
    },
    /// It is in use.
    #[error("{device} is {state}: fail it first, with `raidctl fail {array} {device}`")]
    InUse {
        /// The device.
        device: String,
        /// Its state.
        state: MemberState,
        /// Of which array.
        array: String,
    },
    /// Requests to it have not ended.
    #[error("{device} has requests under way that it does not answer: try again in a while")]
    NotQuiet {
        /// The device.
        device: String,
    },
    /// It is here already.
    #[error("{device} is a member of {array} already: it is {state}; remove it before you add it again")]
    AlreadyMember {
        /// The device.
        device: String,
        /// Its state.
        state: MemberState,
        /// Of which array.
        array: String,
    },
    /// It cannot hold what the others hold.
    #[error("{device} is too small for {array}: it has {have_bytes} bytes and {need_bytes} are needed")]
    TooSmall {
        /// The device.
        device: String,
        /// For which array.
        array: String,
        /// Its size.
        have_bytes: u64,
        /// What it must have.
        need_bytes: u64,
    },
    /// Its blocks are larger than the array's.
    #[error(
        "{device} has blocks of {have} bytes and {array} of {want}: use a device with blocks of {want} or less"
    )]
    BlockSize {
        /// The device.
        device: String,
        /// For which array.
        array: String,
        /// Its logical block.
        have: u32,
        /// The array's.
        want: u32,
    },
    /// It cannot be written.
    #[error("{device} is read-only: make it writable")]
    ReadOnly {
        /// The device.
        device: String,
    },
    /// It takes too little at a time.
    #[error("{device} cannot take part in {array}: its largest transfer is less than {needed} bytes")]
    Unfit {
        /// The device.
        device: String,
        /// In which array.
        array: String,
        /// What is needed.
        needed: u32,
    },
    /// Spares do no good to an array without redundancy.
    #[error("{array} is a raid0 and has no redundancy to rebuild a device from: it takes no spares")]
    NoRedundancy {
        /// Which array.
        array: String,
    },
    /// More spares than the member table holds.
    #[error("{array} has {MAX_SPARES} members without a slot: remove some first")]
    TooManySpares {
        /// Which array.
        array: String,
    },
    /// The array does not serve any more.
    #[error("{array} has failed or is stopped")]
    NotServing {
        /// Which array.
        array: String,
    },
}

impl Array {
    /// The array's name.
    pub fn name(&self) -> String {
        self.meta.name.to_string()
    }

    /// Fails a member, as if it had failed by itself. Refused if the array cannot do without it.
    pub fn fail(&mut self, device: &str) -> Result<(), AdminError> {
        let id = self.named(device)?;
        let (array, device) = (self.name(), device.to_owned());
        if !self.phase.is_serving() {
            return Err(AdminError::NotServing { array });
        }
        let state = self.members[id.0].state;
        if state.is_out() {
            return Err(AdminError::AlreadyOut { device, state, array });
        }
        if !self.can_lose(id) {
            return Err(AdminError::Needed { device, array });
        }
        let loses_data =
            self.members[id.0].state == MemberState::InSync && self.layout.parity_algorithm().is_some();
        if loses_data && self.in_doubt && self.meta.resync.is_some() {
            return Err(AdminError::InDoubt { device, array });
        }
        self.fail_member(id, "failed by the administrator");
        Ok(())
    }

    /// Lets go of a spare or of a failed member. Its device is closed.
    pub fn remove(&mut self, device: &str) -> Result<(), AdminError> {
        let id = self.named(device)?;
        let (array, device) = (self.name(), device.to_owned());
        if !self.phase.is_serving() {
            return Err(AdminError::NotServing { array });
        }
        let member = &mut self.members[id.0];
        let state = member.state;
        if !matches!(state, MemberState::Spare | MemberState::Faulty) {
            return Err(AdminError::InUse { device, state, array });
        }
        if !member.is_quiet() {
            return Err(AdminError::NotQuiet { device });
        }
        match member.slot {
            // Its slot stays in the table, with nobody in it.
            Some(slot) => {
                *member = Member::missing(member.uuid);
                member.slot = Some(slot);
            }
            None => member.release(),
        }
        self.event(Event::Removed { device });
        self.commit.request();
        Ok(())
    }

    /// Adds a device as a spare; if a slot is free, its rebuild begins. Whatever the device holds is lost: the
    /// caller has made sure that nobody wants it.
    pub fn add(&mut self, device: String, dev: Box<dyn BlockDev>) -> Result<(), AdminError> {
        let array = self.name();
        if self.failed || !self.phase.is_serving() {
            return Err(AdminError::NotServing { array });
        }
        if !self.layout.level().is_redundant() {
            return Err(AdminError::NoRedundancy { array });
        }
        if let Ok(id) = self.named(&device) {
            let state = self.members[id.0].state;
            return Err(AdminError::AlreadyMember { device, state, array });
        }
        let geometry = dev.geometry();
        let need_bytes = self.meta.data_offset + self.needed_data_bytes() + TAIL_BYTES;
        if geometry.size_bytes < need_bytes {
            let have_bytes = geometry.size_bytes;
            return Err(AdminError::TooSmall { device, array, have_bytes, need_bytes });
        }
        if geometry.block_size > self.meta.block_size {
            let (have, want) = (geometry.block_size.bytes(), self.meta.block_size.bytes());
            return Err(AdminError::BlockSize { device, array, have, want });
        }
        if geometry.read_only {
            return Err(AdminError::ReadOnly { device });
        }
        if !fits(&geometry, &self.layout) {
            return Err(AdminError::Unfit { device, array, needed: self.layout.unit_rows() });
        }
        let without_slot = self.members.iter().filter(|member| member.slot.is_none() && !member.forgotten);
        if without_slot.count() >= MAX_SPARES {
            return Err(AdminError::TooManySpares { array });
        }
        let uuid = MemberUuid(Uuid::new_v4());
        let own = Own { member: uuid, sequence: 0, device_bytes: geometry.size_bytes };
        let mut member = Member::present(uuid, device.clone(), dev, own);
        member.state = MemberState::Spare;
        self.members.push(member);
        self.event(Event::SpareAdded { device });
        self.commit.request();
        Ok(())
    }

    fn named(&self, device: &str) -> Result<MemberId, AdminError> {
        let is_it = |member: &Member| !member.forgotten && member.device == device && !device.is_empty();
        let found = self.members.iter().position(is_it).map(MemberId);
        found.ok_or_else(|| AdminError::NotAMember { device: device.to_owned(), array: self.name() })
    }
}
