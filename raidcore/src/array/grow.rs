//! Growing: the members' devices have become larger, and the array takes the new room.
//!
//! The steps, each durable before the next begins:
//! 1. Each member's superblock goes to its device's new end: a commit like any other, to copy B. Until it is there,
//!    copy A leads to the one at the former end.
//! 2. The copies at the former ends are erased, for they may lie where data will be.
//! 3. One commit says the new size, and that redundancy is complete up to the former one. It is at least the second
//!    one, so both copies know the new end when it is done: nothing leads to the former ends any more, and what
//!    clients write there is never taken for a superblock.
//!
//! Invariants:
//! - A crash at any moment leaves the old size or the new one, with all data of before: data stays where it is.
//! - No request is taken behind the former end before all members say the new size; requests in flight are not
//!   touched.
//! - What does not come to step 3 is given up and leaves the array as large as before.
//! - Only a whole array grows, so that no member has to be believed about a size it has not seen.

use super::member::MemberId;
use super::plug::{Io, Outcome, Piece};
use super::sync::SyncStep;
use super::{Array, Event, Owner};
use crate::layout::Slot;
use crate::meta::{self, MemberState, SUPERBLOCK_BYTES, TAIL_BYTES};

/// How large an array is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrowTo {
    /// As large as its smallest member allows.
    Max,
    /// The array holds at least so many bytes: rounded up to whole stripes.
    Bytes(u64),
}

/// A change of size under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    /// What the array holds now, in bytes.
    pub from_bytes: u64,
    /// What it will hold.
    pub to_bytes: u64,
}

/// Why an array does not grow. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrowError {
    /// The array does not serve any more.
    #[error("{array} has failed or is stopped")]
    NotServing {
        /// Which array.
        array: String,
    },
    /// It is being done already.
    #[error("{array} is growing already: see `raidctl events`")]
    UnderWay {
        /// Which array.
        array: String,
    },
    /// A slot has no member in sync.
    #[error(
        "{array} cannot grow while slot {slot} is {state}: add a device if there is none, and let it be rebuilt"
    )]
    Degraded {
        /// Which array.
        array: String,
        /// The slot.
        slot: Slot,
        /// Its member's state.
        state: MemberState,
    },
    /// A resync could not read some rows.
    #[error(
        "{array} cannot grow: blocks of its members cannot be read and have no redundancy; replace the disk that \
         `raidctl status {array}` counts errors of"
    )]
    ResyncIncomplete {
        /// Which array.
        array: String,
    },
    /// Some members have no room behind their data.
    #[error("{array} cannot grow: {} no larger than what is used of {}; enlarge {} first", are(.devices),
        it(.devices), it(.devices))]
    NoRoom {
        /// Which array.
        array: String,
        /// Those that hold it back.
        devices: Vec<String>,
    },
    /// A member is too small for what was asked.
    #[error(
        "{array} cannot grow to {to_bytes} bytes: {device}, its smallest member, has {have_bytes} bytes and needs \
         {need_bytes}; enlarge it first, or ask for less"
    )]
    MemberTooSmall {
        /// Which array.
        array: String,
        /// The smallest.
        device: String,
        /// Its size in bytes.
        have_bytes: u64,
        /// What it must have.
        need_bytes: u64,
        /// What the array was to hold.
        to_bytes: u64,
    },
    /// A spare would be of no use any more.
    #[error(
        "{array} cannot grow to {to_bytes} bytes: its spare {device} has {have_bytes} bytes and needs {need_bytes}; \
         enlarge it, or do without it: `raidctl remove {array} {device}`"
    )]
    SpareTooSmall {
        /// Which array.
        array: String,
        /// The spare.
        device: String,
        /// Its size in bytes.
        have_bytes: u64,
        /// What it must have.
        need_bytes: u64,
        /// What the array would hold.
        to_bytes: u64,
    },
    /// What was asked is no growth.
    #[error("{array} has {from_bytes} bytes already: arrays only grow, ask for more than that")]
    NotLarger {
        /// Which array.
        array: String,
        /// Its size.
        from_bytes: u64,
    },
}

fn are(devices: &[String]) -> String {
    format!("{} {}", devices.join(", "), if devices.len() == 1 { "is" } else { "are" })
}

fn it(devices: &[String]) -> &'static str {
    if devices.len() == 1 { "it" } else { "them" }
}

/// A growth under way.
pub(super) struct Grow {
    number: u64,
    growth: Growth,
    data_bytes: u64,
    step: Step,
    /// Where superblocks stood before: to be erased.
    former_ends: Vec<(MemberId, u64)>,
}

/// What is waited for.
#[derive(Clone, Copy)]
enum Step {
    /// The commit of this number, which puts superblocks at the new ends.
    NewEnds(u64),
    /// So many former ends to be erased.
    Erasing(usize),
    /// The commit of this number, which says the new size.
    Size(u64),
}

impl Array {
    /// Looks how large the members are now, and begins to grow into what is there. Go on calling `reap`: the size of
    /// the array follows, with [`Event::Grown`], when it is durable; [`is_growing`](Array::is_growing) tells.
    ///
    /// The new part comes into sync in the background, as a new array does. There is no way to skip that: a crash on
    /// the way can leave a superblock in the new part of one member, which the others do not have.
    pub fn grow(&mut self, to: GrowTo) -> Result<Growth, GrowError> {
        self.refuse_growth()?;
        self.members.iter_mut().for_each(|member| member.refresh_size());
        let growth = self.plan_growth(to)?;
        let former_ends = self.move_superblocks();
        let step = Step::NewEnds(self.commit.request());
        let data_bytes = self.layout.member_bytes_for(growth.to_bytes);
        self.growths += 1;
        self.grow = Some(Grow { number: self.growths, growth, data_bytes, step, former_ends });
        Ok(growth)
    }

    /// True while a growth is under way.
    pub fn is_growing(&self) -> bool {
        self.grow.is_some()
    }

    /// What a member must have room for: what it holds, or will hold when a growth under way is done.
    pub(super) fn needed_data_bytes(&self) -> u64 {
        self.grow.as_ref().map_or(self.meta.data_bytes, |grow| grow.data_bytes.max(self.meta.data_bytes))
    }

    fn refuse_growth(&self) -> Result<(), GrowError> {
        let array = self.name();
        if self.failed || !self.phase.is_serving() {
            return Err(GrowError::NotServing { array });
        }
        if self.grow.is_some() {
            return Err(GrowError::UnderWay { array });
        }
        if let Some(slot) = self.layout.all_slots().find(|&slot| !self.is_in_sync(slot)) {
            let state = self.member_of(slot).state;
            return Err(GrowError::Degraded { array, slot, state });
        }
        if self.resync_given_up && self.meta.resync.is_some() {
            return Err(GrowError::ResyncIncomplete { array });
        }
        Ok(())
    }

    fn plan_growth(&self, to: GrowTo) -> Result<Growth, GrowError> {
        let array = self.name();
        let from_bytes = self.geometry.size_bytes;
        let mut in_slots: Vec<(&str, u64)> = self.sizes(MemberState::InSync).collect();
        in_slots.sort_by_key(|&(_, bytes)| bytes);
        let room = |bytes| meta::data_bytes_for(bytes, self.meta.data_offset, &self.layout);
        let Some(&(smallest, have_bytes)) = in_slots.first() else {
            return Err(GrowError::NotServing { array });
        };
        let data_bytes = match to {
            GrowTo::Bytes(bytes) if bytes <= from_bytes => {
                return Err(GrowError::NotLarger { array, from_bytes });
            }
            GrowTo::Bytes(bytes) => self.layout.member_bytes_for(bytes),
            GrowTo::Max if room(have_bytes) <= self.meta.data_bytes => {
                let holds_back = in_slots.iter().filter(|&&(_, bytes)| room(bytes) <= self.meta.data_bytes);
                let devices = holds_back.map(|&(device, _)| device.to_owned()).collect();
                return Err(GrowError::NoRoom { array, devices });
            }
            GrowTo::Max => room(have_bytes),
        };
        let need_bytes = self.meta.data_offset.saturating_add(data_bytes).saturating_add(TAIL_BYTES);
        let device = smallest.to_owned();
        if room(have_bytes) < data_bytes {
            let to_bytes = if let GrowTo::Bytes(bytes) = to { bytes } else { 0 };
            return Err(GrowError::MemberTooSmall { array, device, have_bytes, need_bytes, to_bytes });
        }
        let to_bytes = self.layout.capacity(data_bytes);
        if let Some((spare, have_bytes)) =
            self.sizes(MemberState::Spare).find(|&(_, bytes)| room(bytes) < data_bytes)
        {
            let device = spare.to_owned();
            return Err(GrowError::SpareTooSmall { array, device, have_bytes, need_bytes, to_bytes });
        }
        Ok(Growth { from_bytes, to_bytes })
    }

    /// Names and sizes of the members in `state`.
    fn sizes(&self, state: MemberState) -> impl Iterator<Item = (&str, u64)> {
        let of_state = self.members.iter().filter(move |member| member.state == state && !member.forgotten);
        of_state.filter_map(|member| Some((member.device.as_str(), member.geometry()?.size_bytes)))
    }

    /// From the next commit on, superblocks go to where the devices end now. Returns where they stood.
    fn move_superblocks(&mut self) -> Vec<(MemberId, u64)> {
        let moved = |(id, member): (usize, &mut super::Member)| {
            let size_bytes = member.geometry().filter(|_| member.is_live())?.size_bytes;
            let former = member.own.as_mut()?.grow_to(size_bytes)?;
            Some((MemberId(id), former))
        };
        self.members.iter_mut().enumerate().filter_map(moved).collect()
    }

    /// Takes a growth a step further when what it waits for is done.
    pub(super) fn pump_grow(&mut self) {
        let Some(grow) = &self.grow else { return };
        let step = grow.step;
        if self.failed {
            return self.give_up_growth("the array has failed");
        }
        if !matches!(step, Step::Size(_)) {
            if !self.phase.is_serving() {
                return self.give_up_growth("the array was stopped");
            }
            if self.layout.all_slots().any(|slot| !self.is_in_sync(slot)) {
                return self.give_up_growth("a member was lost");
            }
        }
        match step {
            Step::NewEnds(commit) if self.commit.is_done(commit) => self.erase_former_ends(),
            Step::Erasing(0) => self.announce_size(),
            Step::Size(commit) if self.commit.is_done(commit) => self.end_growth(),
            _ => {}
        }
    }

    fn erase_former_ends(&mut self) {
        let Some(grow) = &mut self.grow else { return };
        let mut places = std::mem::take(&mut grow.former_ends);
        // A spare may have been let go of meanwhile.
        places.retain(|(member, _)| self.members[member.0].is_live());
        grow.step = Step::Erasing(places.len());
        for (member, offset) in places {
            let io = Io::Write { data: self.zeroes.slice(0, SUPERBLOCK_BYTES), fua: true };
            let owner = Owner::Erase { growth: grow.number, member };
            self.members[member.0].push(Piece { owner, offset, io });
        }
    }

    /// What a growth that was given up still erases says nothing of the next one.
    pub(super) fn on_erased(&mut self, outcome: Outcome, growth: u64, member: MemberId) {
        let failed = match &outcome.result {
            Ok(()) => false,
            Err(error) => self.note_write_error(member, error).is_some(),
        };
        let Some(grow) = self.grow.as_mut().filter(|grow| grow.number == growth) else { return };
        if failed {
            return self.give_up_growth("a superblock of before could not be erased");
        }
        if let Step::Erasing(left) = &mut grow.step {
            *left -= 1;
        }
    }

    /// The metadata says the new size from now on; nobody is told before it is durable.
    fn announce_size(&mut self) {
        let Some(&Grow { data_bytes, .. }) = self.grow.as_ref() else { return };
        let former_bytes = std::mem::replace(&mut self.meta.data_bytes, data_bytes);
        if self.meta.resync.is_none() && self.layout.level().is_redundant() {
            self.meta.resync = Some(former_bytes);
            // Where nothing was ever written, parity is unknown, not wrong.
            self.in_doubt = false;
            self.resync_given_up = false;
            self.look_at_health();
        }
        self.lengthen_resync();
        let step = Step::Size(self.commit.request());
        if let Some(grow) = &mut self.grow {
            grow.step = step;
        }
    }

    /// A resync under way was to end at the former end: it goes on to the new one.
    fn lengthen_resync(&mut self) {
        let Some(sync) = self.sync.take_if(|sync| sync.step() == SyncStep::Resync) else { return };
        let total = self.layout.units(self.meta.data_bytes);
        self.walk(SyncStep::Resync, None, total, sync.checkpoint().0);
    }

    fn end_growth(&mut self) {
        let Some(Grow { growth, .. }) = self.grow.take() else { return };
        self.geometry.size_bytes = growth.to_bytes;
        let Growth { from_bytes, to_bytes } = growth;
        self.event(Event::Grown { from_bytes, to_bytes });
    }

    fn give_up_growth(&mut self, reason: &str) {
        if self.grow.take().is_some() {
            self.event(Event::GrowFailed { reason: reason.to_owned() });
        }
    }
}
