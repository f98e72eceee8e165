//! Which devices make up which array, and whether it may be started. Pure: it reads and writes nothing.
//!
//! The decision, for the devices of one array UUID:
//! 1. No two devices are the same member.
//! 2. Superblocks are sorted into lives by their last incarnation. A life that another one grew out of is over.
//!    If two are left, each was written without the other: a split brain, and nothing is started. (A life that
//!    counts on a member which is here and lives another one never took effect: it does not count.)
//! 3. The superblock with the highest event counter of the life that is left says who is in sync. A member it
//!    calls in sync is taken if it lags at most one event: a crash in the middle of a metadata update leaves
//!    members that far apart, and writes wait for the update. One that lags more is an old copy, and is left out.
//! 4. Too few members in sync: not started. Fewer than all: degraded. Parity that an unclean stop may have left
//!    wrong, and a member missing whose data only that parity can tell: not started unless forced.

use super::format::data_limit;
use super::history::{History, Relation};
use super::identity::{ArrayName, IncarnationUuid, MemberUuid};
use super::state::MemberState;
use super::store::Loaded;
use super::superblock::{ArrayMeta, Superblock};
use crate::layout::{Level, Slot};
use std::fmt;

/// A device on which a superblock was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// What people call it.
    pub device: String,
    /// Its superblock.
    pub loaded: Loaded,
    /// Its size.
    pub device_bytes: u64,
}

/// An array that may be started.
#[derive(Clone, Debug)]
pub struct Assembly {
    /// What its newest superblock says. What must be stored before it is used is made by [`Assembly::begin`].
    pub array: ArrayMeta,
    /// Per slot: the device that is in sync or rebuilding there, as an index into what was found.
    pub slots: Vec<Option<usize>>,
    /// Devices that wait, as indices into what was found.
    pub spares: Vec<usize>,
    /// Devices in `slots` and `spares` that a crash kept from the last metadata update: that update must reach
    /// them ([`catch_up`](super::catch_up)) before the next one begins, or a second crash would leave them two
    /// behind and out.
    pub lagging: Vec<usize>,
    /// Devices of the array that must not be used, and why.
    pub left_out: Vec<LeftOut>,
    /// Slots that have no member in sync.
    pub lost: Vec<LostSlot>,
    /// Redundancy must be made complete from this byte of the data areas on.
    pub resync: Option<u64>,
    /// Features forbid this version to write.
    pub read_only: bool,
}

/// A device that belongs to the array and is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Index into what was found.
    pub index: usize,
    /// What people call it.
    pub device: String,
    /// Which member it is.
    pub member: MemberUuid,
    /// Event counter of its superblock.
    pub events: u64,
    /// Event counter of the newest superblock.
    pub newest_events: u64,
    /// Why.
    pub reason: LeftOutReason,
}

/// Why a device is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftOutReason {
    /// The array goes on without it: failed, or away when it was started.
    Out(MemberState),
    /// The array no longer knows it.
    Removed,
    /// In sync by the table, and yet behind: an old copy of the member.
    Stale,
    /// Its last metadata update reached too few members to count.
    Abandoned,
    /// The device is smaller than when it became a member.
    TooSmall {
        /// Its size now.
        have_bytes: u64,
        /// What its superblock and data need.
        need_bytes: u64,
    },
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LeftOut { device, events, newest_events, .. } = self;
        match self.reason {
            LeftOutReason::Out(state) => {
                write!(f, "{device} is stale: the array calls it {state}")?;
            }
            LeftOutReason::Removed => write!(f, "{device} is no longer a member")?,
            LeftOutReason::Stale => write!(f, "{device} is stale: it missed metadata updates")?,
            LeftOutReason::Abandoned => {
                write!(f, "{device} is stale: its last metadata update never took effect")?;
            }
            LeftOutReason::TooSmall { have_bytes, need_bytes } => {
                return write!(
                    f,
                    "{device} has shrunk: it has {have_bytes} bytes and its data needs {need_bytes}"
                );
            }
        }
        write!(f, " (event count {events}, the array's is {newest_events})")
    }
}

/// A slot without a member in sync.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostSlot {
    /// Which slot.
    pub slot: Slot,
    /// The member whose place it is.
    pub member: MemberUuid,
    /// Rebuilding if it is here and partly right; otherwise faulty or missing.
    pub state: MemberState,
    /// The device, if it is here and cannot be used.
    pub left_out: Option<LeftOut>,
}

impl fmt::Display for LostSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {}: ", self.slot)?;
        match (&self.left_out, self.state) {
            (Some(left_out), _) => left_out.fmt(f),
            (None, MemberState::Rebuilding) => write!(f, "member {} is only partly rebuilt", self.member),
            (None, _) => write!(f, "member {} was not found", self.member),
        }
    }
}

/// One life of an array that fell apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Half {
    /// The devices that lived it.
    pub devices: Vec<String>,
    /// The highest event counter among them.
    pub events: u64,
    /// The incarnations it went through.
    pub history: History,
}

impl fmt::Display for Half {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [events {}, history {}]", self.devices.join(" "), self.events, self.history)
    }
}

/// Why an array is not started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssembleError {
    /// More members are lost than the level survives.
    #[error(
        "array {array}: {} of {slots} slots have no usable member, more than {level} survives ({}): \
         attach the missing devices and start it again",
        .lost.len(),
        join(.lost)
    )]
    TooFewMembers {
        /// Which array.
        array: ArrayName,
        /// Its level.
        level: Level,
        /// Its slots.
        slots: usize,
        /// Those without a member in sync.
        lost: Vec<LostSlot>,
    },
    /// Two devices with the same identity.
    #[error(
        "array {array}: {first} and {second} both are member {member}: one is a copy of the other, or the same \
         device by another name; name only one"
    )]
    DuplicateMember {
        /// Which array.
        array: ArrayName,
        /// The identity.
        member: MemberUuid,
        /// A device.
        first: String,
        /// Another device.
        second: String,
    },
    /// Parity may be wrong, after an unclean stop or for want of a resync, and a member is gone that only it can tell.
    #[error(
        "array {array} {} and is degraded ({}): {} may be rebuilt wrongly. {}",
        why_in_doubt(.resync),
        join(.lost),
        what_is_in_doubt(.resync),
        remedy(.lost)
    )]
    DirtyDegraded {
        /// Which array.
        array: ArrayName,
        /// `None`: it was not stopped cleanly. `Some(n)`: it was, before its resync had come past byte `n` of the
        /// members' data areas.
        resync: Option<u64>,
        /// The slots without a member in sync.
        lost: Vec<LostSlot>,
    },
    /// Members were written without each other.
    #[error(
        "array {array} is split: parts of it were written without each other: {}. \
         Start it with the devices of one part only, then add the others, which loses what only they hold",
        join(.halves)
    )]
    SplitBrain {
        /// Which array.
        array: ArrayName,
        /// The parts.
        halves: Vec<Half>,
    },
}

fn why_in_doubt(resync: &Option<u64>) -> &'static str {
    match resync {
        None => "was not stopped cleanly",
        Some(_) => "was stopped before its resync had finished",
    }
}

fn what_is_in_doubt(resync: &Option<u64>) -> String {
    match resync {
        None => "blocks written last".to_owned(),
        Some(0) => "what was on it".to_owned(),
        Some(bytes) => format!("what was on it from byte {bytes} of the data on"),
    }
}

/// Only a device that was not found can be attached; one that is here and out of date does not get better by it.
fn remedy(lost: &[LostSlot]) -> &'static str {
    let is_missing = |slot: &&LostSlot| slot.left_out.is_none() && slot.state != MemberState::Rebuilding;
    match lost.iter().any(|slot| is_missing(&slot)) {
        true => "Attach the missing device, or accept that with --force",
        false => "Accept that with --force, and check what is in the array; then add the device again",
    }
}

fn join<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join("; ")
}

impl Assembly {
    /// True if a slot has no member in sync.
    pub fn is_degraded(&self) -> bool {
        !self.lost.is_empty()
    }

    /// The metadata to store on all members before the first request is served, and after those that lag have
    /// caught up: members that are not here are
    /// missing, which begins the incarnation `fresh` if they were in sync; what an unclean stop left to do is
    /// written down as a resync, and a rebuild it interrupted begins anew.
    pub fn begin(&self, fresh: IncarnationUuid, now_ns: u64) -> ArrayMeta {
        let mut array = self.array.clone();
        let was_clean = array.clean;
        array.change_members(fresh, now_ns, |members| {
            for member in members {
                let Some(slot) = member.slot else { continue };
                if self.slots[slot.index()].is_none() && !member.state.is_out() {
                    member.state = MemberState::Missing;
                    member.rebuilt_bytes = 0;
                }
                if !was_clean {
                    member.rebuilt_bytes = 0;
                }
            }
        });
        array.resync = self.resync;
        array.clean = true;
        array
    }
}

/// Sorts what was found into arrays, in the order in which they first appear, and decides on each. With `force`,
/// an array is started though recently written blocks of a lost member may be rebuilt wrongly.
pub fn assemble(found: &[Found], force: bool) -> Vec<Result<Assembly, AssembleError>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (i, item) in found.iter().enumerate() {
        let uuid = item.loaded.superblock.array.uuid;
        match groups.iter_mut().find(|group| found[group[0]].loaded.superblock.array.uuid == uuid) {
            Some(group) => group.push(i),
            None => groups.push(vec![i]),
        }
    }
    groups.into_iter().map(|group| Group { found, indices: group }.decide(force)).collect()
}

/// The devices of one array UUID.
struct Group<'a> {
    found: &'a [Found],
    indices: Vec<usize>,
}

/// The devices that share their last incarnation.
struct Life {
    /// Indices into what was found; the first has the highest event counter.
    indices: Vec<usize>,
}

impl Group<'_> {
    fn superblock(&self, index: usize) -> &Superblock {
        &self.found[index].loaded.superblock
    }

    fn meta(&self, index: usize) -> &ArrayMeta {
        &self.superblock(index).array
    }

    fn relation(&self, index: usize, other: usize) -> Relation {
        self.meta(index).history.relation(self.meta(index).events, &self.meta(other).history)
    }

    fn decide(&self, force: bool) -> Result<Assembly, AssembleError> {
        self.refuse_duplicates()?;
        let newest = self.newest()?;
        let array = self.meta(newest).clone();
        let mut assembly = Assembly {
            slots: vec![None; array.layout.slots()],
            spares: Vec::new(),
            lagging: Vec::new(),
            left_out: Vec::new(),
            lost: Vec::new(),
            resync: None,
            read_only: array.unknown_ro_compat() != 0,
            array,
        };
        for &index in &self.indices {
            match self.place(index, newest) {
                Ok(Some(slot)) => assembly.slots[slot.index()] = Some(index),
                Ok(None) => assembly.spares.push(index),
                Err(reason) => assembly.left_out.push(LeftOut {
                    index,
                    device: self.found[index].device.clone(),
                    member: self.superblock(index).own.member,
                    events: self.meta(index).events,
                    newest_events: assembly.array.events,
                    reason,
                }),
            }
        }
        let used = assembly.slots.iter().flatten().chain(&assembly.spares);
        assembly.lagging =
            used.copied().filter(|&index| self.meta(index).events < assembly.array.events).collect();
        assembly.lost = lost_slots(&assembly);
        refuse_losses(&assembly, force)?;
        assembly.resync = resync_from(&assembly);
        Ok(assembly)
    }

    fn refuse_duplicates(&self) -> Result<(), AssembleError> {
        for (i, &second) in self.indices.iter().enumerate() {
            let member = self.superblock(second).own.member;
            let same = |&&first: &&usize| self.superblock(first).own.member == member;
            if let Some(&first) = self.indices[..i].iter().find(same) {
                return Err(AssembleError::DuplicateMember {
                    array: self.meta(second).name.clone(),
                    member,
                    first: self.found[first].device.clone(),
                    second: self.found[second].device.clone(),
                });
            }
        }
        Ok(())
    }

    /// The device whose superblock speaks for the array.
    fn newest(&self) -> Result<usize, AssembleError> {
        let lives = self.lives();
        let grown_into = |life: &Life| {
            lives.iter().any(|other| self.relation(life.indices[0], other.indices[0]) == Relation::Ancestor)
        };
        let current: Vec<&Life> = lives.iter().filter(|life| !grown_into(life)).collect();
        if let [only] = current[..] {
            return Ok(only.indices[0]);
        }
        let effective: Vec<&&Life> = current.iter().filter(|life| self.took_effect(life)).collect();
        if let [only] = effective[..] {
            return Ok(only.indices[0]);
        }
        let half = |life: &&Life| Half {
            devices: life.indices.iter().map(|&i| self.found[i].device.clone()).collect(),
            events: self.meta(life.indices[0]).events,
            history: self.meta(life.indices[0]).history.clone(),
        };
        Err(AssembleError::SplitBrain {
            array: self.meta(current[0].indices[0]).name.clone(),
            halves: current.iter().map(half).collect(),
        })
    }

    fn lives(&self) -> Vec<Life> {
        let mut lives: Vec<Life> = Vec::new();
        for &index in &self.indices {
            let last = self.meta(index).history.last().uuid;
            match lives.iter_mut().find(|life| self.meta(life.indices[0]).history.last().uuid == last) {
                Some(life) => life.indices.push(index),
                None => lives.push(Life { indices: vec![index] }),
            }
        }
        for life in &mut lives {
            life.indices.sort_by_key(|&index| std::cmp::Reverse(self.meta(index).events));
        }
        lives
    }

    /// False if the life counts a member in sync that is here and went another way: then no write was ever
    /// acknowledged in it, for writes wait until every member in sync has the superblock.
    fn took_effect(&self, life: &Life) -> bool {
        let head = life.indices[0];
        !self.indices.iter().any(|&index| {
            let entry = self.meta(head).member(self.superblock(index).own.member);
            entry.is_some_and(|member| member.state == MemberState::InSync)
                && self.relation(index, head) == Relation::Diverged
        })
    }

    /// The slot of a device, or none for a spare.
    fn place(&self, index: usize, newest: usize) -> Result<Option<Slot>, LeftOutReason> {
        let (own, array) = (self.meta(index), self.meta(newest));
        let need_bytes = array.data_offset + array.data_bytes;
        let have_bytes = self.found[index].device_bytes;
        if data_limit(have_bytes) < need_bytes {
            let need_bytes = need_bytes + super::format::TAIL_BYTES;
            return Err(LeftOutReason::TooSmall { have_bytes, need_bytes });
        }
        if self.relation(index, newest) == Relation::Diverged {
            return Err(LeftOutReason::Abandoned);
        }
        let entry = array.member(self.superblock(index).own.member).ok_or(LeftOutReason::Removed)?;
        match entry.state {
            MemberState::Spare => Ok(None),
            MemberState::Faulty | MemberState::Missing => Err(LeftOutReason::Out(entry.state)),
            MemberState::InSync | MemberState::Rebuilding if own.events + 1 >= array.events => Ok(entry.slot),
            MemberState::InSync | MemberState::Rebuilding => Err(LeftOutReason::Stale),
        }
    }
}

fn lost_slots(assembly: &Assembly) -> Vec<LostSlot> {
    let array = &assembly.array;
    let lost = |slot: &Slot| assembly.slots[slot.index()].is_none() || !array.is_in_sync(*slot);
    let describe = |slot: Slot| {
        let member = array.in_slot(slot)?;
        let left_out = assembly.left_out.iter().find(|left_out| left_out.member == member.uuid).cloned();
        let present = assembly.slots[slot.index()].is_some();
        let state = if present || member.state.is_out() { member.state } else { MemberState::Missing };
        Some(LostSlot { slot, member: member.uuid, state, left_out })
    };
    array.layout.all_slots().filter(lost).filter_map(describe).collect()
}

fn refuse_losses(assembly: &Assembly, force: bool) -> Result<(), AssembleError> {
    let array = &assembly.array;
    let (name, layout) = (array.name.clone(), array.layout);
    let lost = assembly.lost.clone();
    if !layout.survives(|slot| lost.iter().any(|entry| entry.slot == slot)) {
        let (level, slots) = (layout.level(), layout.slots());
        return Err(AssembleError::TooFewMembers { array: name, level, slots, lost });
    }
    let parity_in_doubt = layout.parity_algorithm().is_some() && (!array.clean || array.resync.is_some());
    if parity_in_doubt && !lost.is_empty() && !force {
        let resync = if array.clean { array.resync } else { None };
        return Err(AssembleError::DirtyDegraded { array: name, resync, lost });
    }
    Ok(())
}

/// From where redundancy must be made complete. Where none is left, there is nothing to complete.
fn resync_from(assembly: &Assembly) -> Option<u64> {
    let array = &assembly.array;
    let in_sync = array.layout.slots() - assembly.lost.len();
    let has_redundancy = match array.layout.level() {
        Level::Raid0 => false,
        Level::Raid1 => in_sync > 1,
        Level::Raid5 | Level::Raid6 => assembly.lost.len() < array.layout.parities(),
        Level::Raid10 => true,
    };
    match (has_redundancy, array.clean) {
        (false, _) => None,
        (true, false) => Some(0),
        (true, true) => array.resync,
    }
}

#[cfg(test)]
mod tests;
