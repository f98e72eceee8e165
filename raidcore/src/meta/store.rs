//! Reading, writing and mending the two copies of a superblock, for create, examine and assembly.
//!
//! Copies are never written at the same time: while one is being written the other is whole, so a crash at any
//! moment leaves one that is right. The copy with the higher sequence number is the superblock; the other one is
//! older, which is its ordinary state, or bad, and is then mended.
//!
//! On a device that has grown, copy B of before is no longer at the end, and may be the newer one: copy A says where
//! the end was when it was written, so it is found there. It counts until copy B stands at the new end.

use super::format::{SUPERBLOCK_BYTES, TAIL_BYTES, data_limit, locations};
use super::superblock::{ArrayMeta, Superblock, SuperblockError};
use crate::blocking::Blocking;
use crate::dev::{BlockDev, IoError};

/// What was found in the place of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyState {
    /// Valid, and the one to go by.
    Valid,
    /// Valid, and overtaken by the other copy.
    Stale,
    /// There, and damaged.
    Corrupt(SuperblockError),
    /// Could not be read.
    Unreadable(IoError),
    /// Valid, but of another array or member: left by an earlier use of the device.
    OtherMember,
    /// Nothing of ours.
    Absent,
}

impl CopyState {
    /// True if this place should be written again.
    pub fn is_bad(self) -> bool {
        !matches!(self, CopyState::Valid | CopyState::Stale)
    }
}

/// A device's superblock, and what became of its copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The newer valid copy.
    pub superblock: Superblock,
    /// Copy A, copy B.
    pub copies: [CopyState; 2],
}

/// Why a device has no superblock that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// It is no member of any array of ours.
    #[error("no superblock: the device is no member of an array (or was wiped)")]
    NoSuperblock,
    /// It was one, and neither copy is valid. The remedy is redundancy: the array can do without the device.
    #[error(
        "both superblock copies are corrupt (A: {}; B: {}): start the array without this device and add it again",
        describe(.0),
        describe(.1)
    )]
    BothCorrupt(CopyState, CopyState),
    /// Made by a version this one must keep its hands off.
    #[error("superblock: {0}")]
    Unsupported(SuperblockError),
    /// A copy lies where it would be on a smaller device: this is a disk whose last partition is a member.
    #[error(
        "the superblock at the end belongs to a device of {recorded} bytes and this one has {actual}: \
         name the partition instead of the disk"
    )]
    Inner {
        /// Size the superblock records.
        recorded: u64,
        /// Size of the device.
        actual: u64,
    },
    /// Neither copy could be read.
    #[error("superblock: {0}")]
    Io(IoError),
}

/// Why a superblock was not written. In each case but `Io` nothing was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The device has shrunk: what the superblock says of the data does not fit it any more.
    #[error("the device has {have_bytes} bytes and its data needs {need_bytes}")]
    TooSmall {
        /// Its size now.
        have_bytes: u64,
        /// What its superblock and data need.
        need_bytes: u64,
    },
    /// What is to be written breaks an invariant of the format: what was read says something no array of ours says.
    #[error("superblock: {0}")]
    Impossible(SuperblockError),
    /// The device.
    #[error(transparent)]
    Io(#[from] IoError),
}

fn describe(copy: &CopyState) -> String {
    match copy {
        CopyState::Valid => "valid".to_owned(),
        CopyState::Stale => "valid, older".to_owned(),
        CopyState::Corrupt(error) => error.to_string(),
        CopyState::Unreadable(error) => error.to_string(),
        CopyState::OtherMember => "of another member".to_owned(),
        CopyState::Absent => "absent".to_owned(),
    }
}

impl std::fmt::Display for CopyState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&describe(self))
    }
}

/// Reads both copies and takes the newer valid one. Writes nothing.
pub fn load<D: BlockDev>(dev: &mut Blocking<D>) -> Result<Loaded, LoadError> {
    let device_bytes = dev.geometry().size_bytes;
    let [a, b] = locations(device_bytes);
    if a == b {
        return Err(LoadError::NoSuperblock);
    }
    let copies = [read_copy(dev, a), read_copy(dev, b)];
    let former = copies[0].as_ref().ok().and_then(|a| former_end_copy(dev, a)).map(|(_, copy)| copy);
    let mut loaded = choose(device_bytes, copies)?;
    if let Some(former) = former
        && former.own.sequence > loaded.superblock.own.sequence
    {
        // Copy A stays as it is until there is a copy B at the new end: until then only A tells where to look.
        let end = if loaded.copies[1].is_bad() { loaded.copies[1] } else { CopyState::Absent };
        loaded = Loaded { superblock: former, copies: [CopyState::Stale, end] };
    }
    Ok(loaded)
}

/// Copy B at the end that the device had when copy `a` was written, if the device has grown since, and its place.
fn former_end_copy<D: BlockDev>(dev: &mut Blocking<D>, a: &Superblock) -> Option<(u64, Superblock)> {
    let place = locations(a.own.device_bytes)[1];
    if place >= locations(dev.geometry().size_bytes)[1] {
        return None;
    }
    let copy = read_copy(dev, place).ok()?;
    let is_its = copy.array.uuid == a.array.uuid
        && copy.own.member == a.own.member
        && copy.own.device_bytes == a.own.device_bytes;
    is_its.then_some((place, copy))
}

/// Writes both copies, each durable before the next, and leaves the sequence number of the second in
/// `superblock`. The device must hold nothing that is still wanted.
pub fn store<D: BlockDev>(dev: &mut Blocking<D>, superblock: &mut Superblock) -> Result<(), StoreError> {
    superblock.own.device_bytes = fitting_bytes(dev, &superblock.array)?;
    for _ in 0..2 {
        write_next(dev, superblock)?;
    }
    Ok(())
}

/// Zeroes both copies, of a device that is to be no member any more, and makes that durable; on one that has grown,
/// the copy at its former end as well. Nothing else is touched,
/// and a place that holds zeroes is not written: this works on a device that has no room left, and after a `store`
/// that failed half-way. Goes on after an error with one copy, to leave as little as can be.
pub fn erase<D: BlockDev>(dev: &mut Blocking<D>) -> Result<(), IoError> {
    let erase_at = |dev: &mut Blocking<D>, offset| {
        let mut bytes = [0; SUPERBLOCK_BYTES];
        match dev.read_at(offset, &mut bytes) {
            Ok(()) if bytes.iter().all(|&byte| byte == 0) => Ok(()),
            _ => dev.write_at(offset, &[0; SUPERBLOCK_BYTES], true),
        }
    };
    let former = read_copy(dev, 0).ok().and_then(|a| former_end_copy(dev, &a));
    let former = former.map_or(Ok(()), |(place, _)| erase_at(dev, place));
    let [a, b] = locations(dev.geometry().size_bytes).map(|offset| erase_at(dev, offset));
    former.and(a).and(b).and(dev.flush())
}

/// Writes the bad copy again, if there is one, from the good one. Returns whether it had to.
///
/// The good copy is not touched: the sequence number goes up by one, and that is the bad one's place. A device that
/// has shrunk is left as it is, with [`StoreError::TooSmall`]: assembly leaves it out. On one that has grown, the bad
/// copy is the one at the new end; the one at the former end is erased after it.
pub fn mend<D: BlockDev>(dev: &mut Blocking<D>, loaded: &mut Loaded) -> Result<bool, StoreError> {
    let Some(bad) = loaded.copies.iter().position(|copy| copy.is_bad()) else { return Ok(false) };
    loaded.superblock.own.device_bytes = fitting_bytes(dev, &loaded.superblock.array)?;
    let former = read_copy(dev, 0).ok().and_then(|a| former_end_copy(dev, &a)).map(|(place, _)| place);
    let bad_is_next = (loaded.superblock.own.sequence + 1) % 2 == bad as u64;
    if !bad_is_next {
        // Only by hand does a copy get into the other's place. Skip a number rather than overwrite the good one.
        loaded.superblock.own.sequence += 1;
    }
    write_next(dev, &mut loaded.superblock)?;
    loaded.copies[bad] = CopyState::Valid;
    loaded.copies[1 - bad] = CopyState::Stale;
    let data_end = loaded.superblock.array.data_offset + loaded.superblock.array.data_bytes;
    if let Some(place) = former.filter(|&place| place >= data_end) {
        // Overtaken by the copy that was just written; the array may grow over its place.
        dev.write_at(place, &[0; SUPERBLOCK_BYTES], true)?;
    }
    Ok(true)
}

/// Brings a member that a crash kept from the last metadata update up to it. Returns whether it had to.
///
/// `array` is what [`assemble`](super::assemble) found to be the newest; `loaded` is this member's.
pub fn catch_up<D: BlockDev>(
    dev: &mut Blocking<D>,
    loaded: &mut Loaded,
    array: &ArrayMeta,
) -> Result<bool, StoreError> {
    if loaded.superblock.array.events >= array.events {
        return Ok(false);
    }
    loaded.superblock.own.device_bytes = fitting_bytes(dev, array)?;
    loaded.superblock.array = array.clone();
    write_next(dev, &mut loaded.superblock)?;
    let newer = usize::from(loaded.superblock.own.sequence % 2 == 1);
    loaded.copies[newer] = CopyState::Valid;
    if loaded.copies[1 - newer] == CopyState::Valid {
        loaded.copies[1 - newer] = CopyState::Stale;
    }
    Ok(true)
}

/// The size of the device, if the array's data still fits it.
fn fitting_bytes<D: BlockDev>(dev: &Blocking<D>, array: &ArrayMeta) -> Result<u64, StoreError> {
    let have_bytes = dev.geometry().size_bytes;
    let need_bytes = array.data_offset.saturating_add(array.data_bytes);
    match data_limit(have_bytes) < need_bytes {
        true => Err(StoreError::TooSmall { have_bytes, need_bytes: need_bytes.saturating_add(TAIL_BYTES) }),
        false => Ok(have_bytes),
    }
}

fn write_next<D: BlockDev>(dev: &mut Blocking<D>, superblock: &mut Superblock) -> Result<(), StoreError> {
    let offset = superblock.own.advance();
    // `encode` panics on what breaks an invariant, and what is written here came from a disk.
    superblock.check().map_err(StoreError::Impossible)?;
    dev.write_at(offset, &superblock.encode(), true)?;
    Ok(dev.flush()?)
}

type Copy = Result<Superblock, CopyFault>;

enum CopyFault {
    Format(SuperblockError),
    Io(IoError),
}

fn read_copy<D: BlockDev>(dev: &mut Blocking<D>, offset: u64) -> Copy {
    let mut bytes = [0; SUPERBLOCK_BYTES];
    dev.read_at(offset, &mut bytes).map_err(CopyFault::Io)?;
    Superblock::decode(&bytes).map_err(CopyFault::Format)
}

fn fault_state(fault: &CopyFault) -> CopyState {
    match fault {
        CopyFault::Format(SuperblockError::NotOurs) => CopyState::Absent,
        CopyFault::Format(error) => CopyState::Corrupt(*error),
        CopyFault::Io(error) => CopyState::Unreadable(*error),
    }
}

fn choose(device_bytes: u64, copies: [Copy; 2]) -> Result<Loaded, LoadError> {
    // A copy made by a later version may be the newer one, whatever the other says.
    for copy in &copies {
        if let Err(CopyFault::Format(
            error @ (SuperblockError::UnknownVersion(_) | SuperblockError::UnknownIncompat { .. }),
        )) = copy
        {
            return Err(LoadError::Unsupported(*error));
        }
    }
    match copies {
        [Ok(a), Ok(b)] => {
            let same = a.array.uuid == b.array.uuid && a.own.member == b.own.member;
            if !same {
                // Create writes copy A first: it is the later use of the device.
                return Ok(Loaded { superblock: a, copies: [CopyState::Valid, CopyState::OtherMember] });
            }
            if b.own.sequence > a.own.sequence {
                Ok(Loaded { superblock: b, copies: [CopyState::Stale, CopyState::Valid] })
            } else {
                Ok(Loaded { superblock: a, copies: [CopyState::Valid, CopyState::Stale] })
            }
        }
        [Ok(a), Err(b)] => Ok(Loaded { superblock: a, copies: [CopyState::Valid, fault_state(&b)] }),
        [Err(a), Ok(b)] => {
            let recorded = b.own.device_bytes;
            if recorded != device_bytes && fault_state(&a) == CopyState::Absent {
                return Err(LoadError::Inner { recorded, actual: device_bytes });
            }
            Ok(Loaded { superblock: b, copies: [fault_state(&a), CopyState::Valid] })
        }
        [Err(a), Err(b)] => Err(match (fault_state(&a), fault_state(&b)) {
            (CopyState::Absent, CopyState::Absent) => LoadError::NoSuperblock,
            (CopyState::Unreadable(error), CopyState::Unreadable(_) | CopyState::Absent)
            | (CopyState::Absent, CopyState::Unreadable(error)) => LoadError::Io(error),
            (a, b) => LoadError::BothCorrupt(a, b),
        }),
    }
}

#[cfg(test)]
mod tests;
