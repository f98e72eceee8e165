//! The bytes of a superblock, version 1, and where its copies lie. docs/FORMAT.md draws what stands here.
//!
//! All numbers are little-endian. What is not drawn is zero when written. Nothing here knows what a value means.

use super::history::HISTORY_ENTRIES;
use crate::limits::{MAX_CHUNK_BYTES, MAX_MEMBERS, MAX_NAME_BYTES, MAX_SPARES, PAGE_BYTES};
use std::mem::{offset_of, size_of};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a superblock copy.
pub const SUPERBLOCK_BYTES: usize = 4096;

/// Bytes at the end of each member that hold copy B and nothing else.
pub const TAIL_BYTES: u64 = 64 << 10;

/// Data starts on a multiple of this.
pub(super) const DATA_ALIGN_BYTES: u64 = 1 << 20;

/// Where data starts on members smaller than [`LARGE_MEMBER_BYTES`].
const SMALL_DATA_OFFSET: u64 = 1 << 20;
/// Where data starts on all others: room for a write-intent bitmap and a log of a few MiB.
const LARGE_DATA_OFFSET: u64 = 8 << 20;
/// From here on 8 MiB are well below a tenth of the member.
const LARGE_MEMBER_BYTES: u64 = 128 << 20;

/// Most data on one member: 64 times this is still a size in bytes.
pub(super) const MAX_DATA_BYTES: u64 = 1 << 56;

/// First bytes of a superblock.
pub(super) const MAGIC: [u8; 8] = *b"RAIDCORE";
/// The version this code writes, and the only one it reads.
pub(super) const VERSION: u32 = 1;
/// In place of a slot number: none.
pub(super) const NO_SLOT: u16 = u16::MAX;
/// Entries of the member table.
pub(super) const MEMBER_ENTRIES: usize = MAX_MEMBERS + MAX_SPARES;

/// Flag: the array may have been written since it was last marked clean.
pub(super) const FLAG_DIRTY: u32 = 1;
/// Flag: redundancy is not complete past the resync checkpoint.
pub(super) const FLAG_RESYNC: u32 = 2;

/// First bytes of copy A and of copy B on a device of `device_bytes`.
///
/// Copy A is at 0, copy B in the last 4096 bytes that begin on a multiple of 4096. On devices too small for two
/// copies both are at 0; such devices are refused before anything is written.
pub const fn locations(device_bytes: u64) -> [u64; 2] {
    let copy = SUPERBLOCK_BYTES as u64;
    [0, (device_bytes - device_bytes % copy).saturating_sub(copy)]
}

/// Where data starts on members whose smallest has `device_bytes`.
pub const fn data_offset_for(device_bytes: u64) -> u64 {
    if device_bytes < LARGE_MEMBER_BYTES { SMALL_DATA_OFFSET } else { LARGE_DATA_OFFSET }
}

/// Where data must end on a device of `device_bytes`, at the latest.
pub(super) const fn data_limit(device_bytes: u64) -> u64 {
    (device_bytes - device_bytes % SUPERBLOCK_BYTES as u64).saturating_sub(TAIL_BYTES)
}

/// A place on a member.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawRegion {
    pub offset: U64,
    pub bytes: U64,
}

/// An entry of the history.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawIncarnation {
    pub uuid: [u8; 16],
    pub start_events: U64,
}

/// An entry of the member table. All zero: unused.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawMember {
    pub uuid: [u8; 16],
    pub slot: U16,
    pub state: u8,
    pub zero: [u8; 5],
    pub rebuilt_bytes: U64,
}

/// A superblock copy.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawSuperblock {
    pub magic: [u8; 8],
    pub version: U32,
    pub checksum: U32,
    pub compat: U64,
    pub ro_compat: U64,
    pub incompat: U64,
    pub sequence: U64,
    pub array_uuid: [u8; 16],
    pub member_uuid: [u8; 16],
    pub device_bytes: U64,
    pub name: [u8; 64],
    pub level: U32,
    pub layout: U32,
    pub chunk_bytes: U32,
    pub block_bytes: U32,
    pub slots: U32,
    pub members: U32,
    pub history_entries: U32,
    pub flags: U32,
    pub consistency: U32,
    pub checksums: U32,
    pub data_offset: U64,
    pub data_bytes: U64,
    pub events: U64,
    pub created_ns: U64,
    pub updated_ns: U64,
    pub resync_bytes: U64,
    pub write_intent: RawRegion,
    pub log: RawRegion,
    pub checksum_region: RawRegion,
    pub reserved: [u8; RESERVED_BYTES],
    pub history: [RawIncarnation; HISTORY_ENTRIES],
    pub member_table: [RawMember; MEMBER_ENTRIES],
}

/// Room for fields of compatible features.
pub(super) const RESERVED_BYTES: usize = 352;

impl RawSuperblock {
    /// crc32c (Castagnoli) of the whole copy with the checksum field taken as zero.
    pub fn checksum_of(bytes: &[u8]) -> u32 {
        let (head, rest) = bytes.split_at(offset_of!(RawSuperblock, checksum).min(bytes.len()));
        let crc = crc32c::crc32c(head);
        let crc = crc32c::crc32c_append(crc, &[0; 4]);
        crc32c::crc32c_append(crc, rest.get(4..).unwrap_or_default())
    }
}

const _: () = assert!(size_of::<RawSuperblock>() == SUPERBLOCK_BYTES && SUPERBLOCK_BYTES == PAGE_BYTES);
const _: () = assert!(size_of::<RawRegion>() == 16);
const _: () = assert!(size_of::<RawIncarnation>() == 24);
const _: () = assert!(size_of::<RawMember>() == 32 && offset_of!(RawMember, rebuilt_bytes) == 24);
const _: () = assert!(offset_of!(RawSuperblock, checksum) == 12);
const _: () = assert!(offset_of!(RawSuperblock, sequence) == 40);
const _: () = assert!(offset_of!(RawSuperblock, array_uuid) == 48);
const _: () = assert!(offset_of!(RawSuperblock, name) == 88);
const _: () = assert!(offset_of!(RawSuperblock, level) == 152);
const _: () = assert!(offset_of!(RawSuperblock, data_offset) == 192);
const _: () = assert!(offset_of!(RawSuperblock, write_intent) == 240);
const _: () = assert!(offset_of!(RawSuperblock, reserved) == 288);
const _: () = assert!(offset_of!(RawSuperblock, history) == 640);
const _: () = assert!(offset_of!(RawSuperblock, member_table) == 1024);
const _: () = assert!(MAX_NAME_BYTES < 64 && MEMBER_ENTRIES < NO_SLOT as usize);
const _: () = assert!(MAX_DATA_BYTES.checked_mul(MAX_MEMBERS as u64).is_some());
const _: () = assert!(TAIL_BYTES >= 2 * SUPERBLOCK_BYTES as u64);
const _: () = assert!(SMALL_DATA_OFFSET.is_multiple_of(DATA_ALIGN_BYTES));
const _: () = assert!(LARGE_DATA_OFFSET.is_multiple_of(DATA_ALIGN_BYTES));
const _: () = assert!(LARGE_MEMBER_BYTES > LARGE_DATA_OFFSET + MAX_CHUNK_BYTES as u64 + TAIL_BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_b_is_the_last_aligned_page_and_inside_the_tail() {
        assert_eq!(locations(1 << 20), [0, (1 << 20) - 4096]);
        assert_eq!(locations((1 << 20) + 4095), [0, (1 << 20) - 4096]);
        assert_eq!(locations(4095), [0, 0]);
        for size in [1u64 << 20, (1 << 20) + 512, (1 << 30) + 3584] {
            assert!(locations(size)[1] >= data_limit(size) && locations(size)[1] + 4096 <= size);
        }
    }
}
