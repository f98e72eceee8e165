//! What `create` is asked for, checked, and turned into superblocks. Pure: it writes nothing.

use super::format::{MAX_DATA_BYTES, TAIL_BYTES, data_limit, data_offset_for};
use super::history::{History, Incarnation};
use super::identity::{ArrayName, ArrayUuid, IncarnationUuid, MemberUuid, NameError};
use super::state::{Consistency, MemberState};
use super::superblock::{ArrayMeta, Member, Own, Regions, Superblock};
use crate::dev::{BlockSize, Geometry};
use crate::layout::{Layout, LayoutError, LayoutSpec, Slot};
use crate::limits::MAX_SPARES;
use std::fmt;
use uuid::Uuid;

/// A device that is to become a member.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// What people call it.
    pub name: String,
    /// Its size and block.
    pub geometry: Geometry,
}

/// What an array is to be.
#[derive(Clone, Debug)]
pub struct CreateParams {
    /// Its name.
    pub name: String,
    /// Level, chunk, copies, algorithm; `slots` is set from `members`.
    pub layout: LayoutSpec,
    /// One device per slot.
    pub members: Vec<Candidate>,
    /// Devices that wait.
    pub spares: Vec<Candidate>,
    /// The members are known to agree already: no first resync.
    pub assume_clean: bool,
    /// Now: nanoseconds since 1970 UTC.
    pub now_ns: u64,
}

/// Why an array cannot be created as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// The name is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Level, number of members, chunk or copies do not fit together.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// More spares than the member table holds.
    #[error("{0} spares given: an array takes at most {MAX_SPARES}")]
    TooManySpares(usize),
    /// RAID0 has nothing a spare could be filled from.
    #[error("raid0 has no redundancy, so a spare is of no use to it: leave out the spare {device}")]
    UselessSpare {
        /// The first one.
        device: String,
    },
    /// The same name twice.
    #[error("{device} is given twice: name each device once")]
    GivenTwice {
        /// Which.
        device: String,
    },
    /// It refuses writes.
    #[error("{device} is read-only: a member must be writable")]
    ReadOnly {
        /// Which.
        device: String,
    },
    /// It has no room for the metadata and one chunk of data.
    #[error(
        "{device} has {have_bytes} bytes: a member of this array needs at least {need_bytes}; \
         use a larger device{}",
        SmallerChunk(*.chunk_bytes)
    )]
    TooSmall {
        /// Which.
        device: String,
        /// Its size.
        have_bytes: u64,
        /// What it would need.
        need_bytes: u64,
        /// The array's chunk.
        chunk_bytes: u32,
    },
}

/// Another remedy, where there is one.
struct SmallerChunk(u32);

impl fmt::Display for SmallerChunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 > 64 << 10 { f.write_str(" or a smaller chunk") } else { Ok(()) }
    }
}

/// The superblocks of a new array: one per member, then one per spare, in the order given. `fresh` is asked for
/// new identities: the array's, the first incarnation's, then each device's.
pub fn plan_create(
    params: &CreateParams,
    mut fresh: impl FnMut() -> Uuid,
) -> Result<Vec<Superblock>, CreateError> {
    let name = ArrayName::parse(&params.name)?;
    let layout = Layout::new(LayoutSpec { slots: params.members.len(), ..params.layout })?;
    let all: Vec<&Candidate> = params.members.iter().chain(&params.spares).collect();
    check_candidates(params, &layout, &all)?;

    let smallest = all.iter().map(|device| device.geometry.size_bytes).min().unwrap_or(0);
    let data_offset = data_offset_for(smallest);
    let data_bytes = data_bytes_for(smallest, data_offset, &layout);
    let largest_block = all.iter().map(|device| device.geometry.block_size).max();
    let uuid = ArrayUuid(fresh());
    let first = Incarnation { uuid: IncarnationUuid(fresh()), start_events: 1 };
    let members: Vec<Member> = (0..all.len())
        .map(|i| {
            let slot = (i < layout.slots()).then(|| Slot::from_index(i));
            let state = if slot.is_some() { MemberState::InSync } else { MemberState::Spare };
            Member { uuid: MemberUuid(fresh()), slot, state, rebuilt_bytes: 0 }
        })
        .collect();
    let needs_resync = layout.level().is_redundant() && !params.assume_clean;
    let array = ArrayMeta {
        uuid,
        name,
        layout,
        block_size: largest_block.unwrap_or(BlockSize::B512),
        data_offset,
        data_bytes,
        regions: Regions::default(),
        consistency: Consistency::Resync,
        checksums: false,
        created_ns: params.now_ns,
        updated_ns: params.now_ns,
        events: 1,
        clean: true,
        resync: needs_resync.then_some(0),
        history: History::beginning(first),
        members,
        compat: 0,
        ro_compat: 0,
        reserved: [0; super::format::RESERVED_BYTES],
    };
    let own = |(member, device): (&Member, &&Candidate)| Own {
        member: member.uuid,
        sequence: 0,
        device_bytes: device.geometry.size_bytes,
    };
    let owns: Vec<Own> = array.members.iter().zip(&all).map(own).collect();
    Ok(owns.into_iter().map(|own| Superblock { array: array.clone(), own }).collect())
}

/// How much data a member takes whose smallest companion, or itself, has `device_bytes`: whole chunks up to the tail.
pub fn data_bytes_for(device_bytes: u64, data_offset: u64, layout: &Layout) -> u64 {
    let room = data_limit(device_bytes).saturating_sub(data_offset).min(MAX_DATA_BYTES);
    room - room % chunk(layout)
}

fn chunk(layout: &Layout) -> u64 {
    u64::from(layout.chunk_bytes())
}

fn check_candidates(params: &CreateParams, layout: &Layout, all: &[&Candidate]) -> Result<(), CreateError> {
    if params.spares.len() > MAX_SPARES {
        return Err(CreateError::TooManySpares(params.spares.len()));
    }
    if let (false, Some(spare)) = (layout.level().is_redundant(), params.spares.first()) {
        return Err(CreateError::UselessSpare { device: spare.name.clone() });
    }
    for (i, candidate) in all.iter().enumerate() {
        let device = candidate.name.clone();
        if all[..i].iter().any(|other| other.name == device) {
            return Err(CreateError::GivenTwice { device });
        }
        if candidate.geometry.read_only {
            return Err(CreateError::ReadOnly { device });
        }
        let have_bytes = candidate.geometry.size_bytes;
        let need_bytes = data_offset_for(0) + chunk(layout) + TAIL_BYTES;
        if have_bytes < need_bytes {
            let chunk_bytes = layout.chunk_bytes();
            return Err(CreateError::TooSmall { device, have_bytes, need_bytes, chunk_bytes });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
