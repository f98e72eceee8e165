//! Between the parsed superblock and its bytes. Pure; `decode` takes any bytes and never panics, and is what the
//! fuzzer calls. What decodes encodes to the same bytes again.

use super::format::{self, *};
use super::history::{History, Incarnation};
use super::identity::{ArrayName, ArrayUuid, IncarnationUuid, MemberUuid};
use super::state::{Consistency, MemberState};
use super::superblock::{ArrayMeta, Member, Own, Region, Regions, Superblock, SuperblockError, impossible};
use crate::dev::BlockSize;
use crate::layout::{Layout, LayoutSpec, Level, ParityAlgorithm, Slot};
use crate::limits::MAX_MEMBERS;
use uuid::Uuid;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

impl Superblock {
    /// The bytes of a copy. Panics if an invariant is broken: writing it would lose the array.
    pub fn encode(&self) -> [u8; SUPERBLOCK_BYTES] {
        if let Err(broken) = self.check() {
            panic!("superblock of array {} about to be written: {broken}", self.array.name);
        }
        let raw = self.to_raw();
        let mut bytes = [0; SUPERBLOCK_BYTES];
        bytes.copy_from_slice(raw.as_bytes());
        let at = std::mem::offset_of!(RawSuperblock, checksum);
        let checksum = RawSuperblock::checksum_of(&bytes);
        bytes[at..at + 4].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    fn to_raw(&self) -> RawSuperblock {
        let Superblock { array, own } = self;
        let region = |region: Region| RawRegion { offset: region.offset.into(), bytes: region.bytes.into() };
        let mut raw = RawSuperblock::new_zeroed();
        raw.magic = MAGIC;
        raw.version = VERSION.into();
        raw.compat = array.compat.into();
        raw.ro_compat = array.ro_compat.into();
        raw.sequence = own.sequence.into();
        raw.array_uuid = *array.uuid.0.as_bytes();
        raw.member_uuid = *own.member.0.as_bytes();
        raw.device_bytes = own.device_bytes.into();
        raw.name[..array.name.as_str().len()].copy_from_slice(array.name.as_str().as_bytes());
        raw.level = u32::from(array.layout.level().number()).into();
        raw.layout = layout_number(&array.layout).into();
        raw.chunk_bytes = array.layout.chunk_bytes().into();
        raw.block_bytes = array.block_size.bytes().into();
        raw.slots = (array.layout.slots() as u32).into();
        raw.members = (array.members.len() as u32).into();
        raw.history_entries = (array.history.entries().len() as u32).into();
        let dirty = if array.clean { 0 } else { FLAG_DIRTY };
        let resync = if array.resync.is_some() { FLAG_RESYNC } else { 0 };
        raw.flags = (dirty | resync).into();
        raw.consistency = array.consistency.number().into();
        raw.checksums = u32::from(array.checksums).into();
        raw.data_offset = array.data_offset.into();
        raw.data_bytes = array.data_bytes.into();
        raw.events = array.events.into();
        raw.created_ns = array.created_ns.into();
        raw.updated_ns = array.updated_ns.into();
        raw.resync_bytes = array.resync.unwrap_or(0).into();
        raw.write_intent = region(array.regions.write_intent);
        raw.log = region(array.regions.log);
        raw.checksum_region = region(array.regions.checksums);
        raw.reserved = array.reserved;
        for (target, source) in raw.history.iter_mut().zip(array.history.entries()) {
            target.uuid = *source.uuid.0.as_bytes();
            target.start_events = source.start_events.into();
        }
        for (target, source) in raw.member_table.iter_mut().zip(&array.members) {
            target.uuid = *source.uuid.0.as_bytes();
            target.slot = source.slot.map_or(NO_SLOT, |slot| slot.index() as u16).into();
            target.state = source.state.number();
            target.rebuilt_bytes = source.rebuilt_bytes.into();
        }
        raw
    }

    /// Parses the bytes of a copy: [`SUPERBLOCK_BYTES`] of them. Never panics, whatever they are.
    pub fn decode(bytes: &[u8]) -> Result<Superblock, SuperblockError> {
        let raw = RawSuperblock::ref_from_bytes(bytes).map_err(|_| SuperblockError::NotOurs)?;
        if raw.magic != MAGIC {
            return Err(SuperblockError::NotOurs);
        }
        let (stored, computed) = (raw.checksum.get(), RawSuperblock::checksum_of(bytes));
        if stored != computed {
            return Err(SuperblockError::BadCrc { stored, computed });
        }
        if raw.version.get() != VERSION {
            return Err(SuperblockError::UnknownVersion(raw.version.get()));
        }
        if raw.incompat.get() != 0 {
            return Err(SuperblockError::UnknownIncompat { bits: raw.incompat.get() });
        }
        let superblock = Superblock { array: decode_array(raw)?, own: decode_own(raw) };
        superblock.check()?;
        superblock.check_counters()?;
        Ok(superblock)
    }
}

/// md's number of a layout: the algorithm of RAID5 and RAID6, RAID10's near copies, zero elsewhere.
fn layout_number(layout: &Layout) -> u32 {
    match (layout.level(), layout.parity_algorithm()) {
        (_, Some(algorithm)) => algorithm.number(),
        (Level::Raid10, None) => layout.copies() as u32,
        _ => 0,
    }
}

fn decode_own(raw: &RawSuperblock) -> Own {
    Own {
        member: MemberUuid(Uuid::from_bytes(raw.member_uuid)),
        sequence: raw.sequence.get(),
        device_bytes: raw.device_bytes.get(),
    }
}

fn decode_array(raw: &RawSuperblock) -> Result<ArrayMeta, SuperblockError> {
    let flags = raw.flags.get();
    if flags & !(FLAG_DIRTY | FLAG_RESYNC) != 0 {
        return Err(impossible("flags", u64::from(flags)));
    }
    let resync = (flags & FLAG_RESYNC != 0).then(|| raw.resync_bytes.get());
    if resync.is_none() && raw.resync_bytes.get() != 0 {
        return Err(impossible("resync checkpoint", raw.resync_bytes.get()));
    }
    if raw.checksums.get() > 1 {
        return Err(impossible("checksums", u64::from(raw.checksums.get())));
    }
    let region = |raw: &RawRegion| Region { offset: raw.offset.get(), bytes: raw.bytes.get() };
    let consistency = raw.consistency.get();
    let block = raw.block_bytes.get();
    Ok(ArrayMeta {
        uuid: ArrayUuid(Uuid::from_bytes(raw.array_uuid)),
        name: decode_name(&raw.name)?,
        layout: decode_layout(raw)?,
        block_size: BlockSize::from_bytes(block).ok_or(impossible("block bytes", u64::from(block)))?,
        data_offset: raw.data_offset.get(),
        data_bytes: raw.data_bytes.get(),
        regions: Regions {
            write_intent: region(&raw.write_intent),
            log: region(&raw.log),
            checksums: region(&raw.checksum_region),
        },
        consistency: Consistency::from_number(consistency)
            .ok_or(impossible("consistency", u64::from(consistency)))?,
        checksums: raw.checksums.get() == 1,
        created_ns: raw.created_ns.get(),
        updated_ns: raw.updated_ns.get(),
        events: raw.events.get(),
        clean: flags & FLAG_DIRTY == 0,
        resync,
        history: decode_history(raw)?,
        members: decode_members(raw)?,
        compat: raw.compat.get(),
        ro_compat: raw.ro_compat.get(),
        reserved: raw.reserved,
    })
}

fn decode_name(raw: &[u8; 64]) -> Result<ArrayName, SuperblockError> {
    let len = raw.iter().position(|&byte| byte == 0).unwrap_or(raw.len());
    let padding_is_zero = raw[len..].iter().all(|&byte| byte == 0);
    let name = std::str::from_utf8(&raw[..len]).ok().and_then(|text| ArrayName::parse(text).ok());
    name.filter(|_| padding_is_zero).ok_or(impossible("name", len as u64))
}

fn decode_layout(raw: &RawSuperblock) -> Result<Layout, SuperblockError> {
    let (level_number, layout_number) = (raw.level.get(), raw.layout.get());
    let level = u8::try_from(level_number).ok().and_then(Level::from_number);
    let level = level.ok_or(impossible("level", u64::from(level_number)))?;
    let slots = raw.slots.get() as usize;
    let mut spec = LayoutSpec::new(level, slots, raw.chunk_bytes.get());
    let bad_layout = impossible("layout", u64::from(layout_number));
    match level {
        Level::Raid5 | Level::Raid6 => {
            spec.algorithm = ParityAlgorithm::from_number(layout_number).ok_or(bad_layout)?;
        }
        Level::Raid10 => spec.copies = layout_number as usize,
        _ if layout_number != 0 => return Err(bad_layout),
        _ => {}
    }
    use crate::layout::LayoutError::{BadChunk, BadCopies};
    Layout::new(spec).map_err(|error| match error {
        BadChunk(bytes) => impossible("chunk bytes", bytes),
        BadCopies { .. } => bad_layout,
        _ => impossible("slots", slots as u64),
    })
}

fn decode_history(raw: &RawSuperblock) -> Result<History, SuperblockError> {
    let bad = impossible("history", u64::from(raw.history_entries.get()));
    let (used, unused) = raw.history.split_at_checked(raw.history_entries.get() as usize).ok_or(bad)?;
    if unused.as_bytes().iter().any(|&byte| byte != 0) {
        return Err(bad);
    }
    let entry = |raw: &RawIncarnation| Incarnation {
        uuid: IncarnationUuid(Uuid::from_bytes(raw.uuid)),
        start_events: raw.start_events.get(),
    };
    History::from_entries(used.iter().map(entry).collect()).ok_or(bad)
}

fn decode_members(raw: &RawSuperblock) -> Result<Vec<Member>, SuperblockError> {
    let bad = impossible("members", u64::from(raw.members.get()));
    let (used, unused) = raw.member_table.split_at_checked(raw.members.get() as usize).ok_or(bad)?;
    if unused.as_bytes().iter().any(|&byte| byte != 0) {
        return Err(bad);
    }
    let mut members = Vec::with_capacity(used.len());
    for (i, entry) in used.iter().enumerate() {
        let slot = match entry.slot.get() {
            format::NO_SLOT => None,
            number if usize::from(number) < MAX_MEMBERS => Some(Slot::from_index(usize::from(number))),
            number => return Err(impossible("slot of a member entry", u64::from(number))),
        };
        let state = MemberState::from_number(entry.state).filter(|_| entry.zero == [0; 5]);
        members.push(Member {
            uuid: MemberUuid(Uuid::from_bytes(entry.uuid)),
            slot,
            state: state.ok_or(impossible("state of member entry", i as u64))?,
            rebuilt_bytes: entry.rebuilt_bytes.get(),
        });
    }
    Ok(members)
}

#[cfg(test)]
mod tests;
