//! The golden image of superblock version 1. Arrays in the field hold such bytes: the file does not change, and
//! every later version of the program must read it as this test does.
//!
//! It was made from the drawing in docs/FORMAT.md by a program that shares no code with this one.

use raidcore::dev::BlockSize;
use raidcore::layout::{Level, ParityAlgorithm, Slot};
use raidcore::meta::{ArrayName, Consistency, MemberState, Superblock};

const GOLDEN: &[u8] = include_bytes!("golden/superblock-v1.bin");

#[test]
fn the_golden_superblock_of_version_1_is_read_as_it_was_meant() {
    let Superblock { array, own } = Superblock::decode(GOLDEN).unwrap();
    assert_eq!(array.uuid.to_string(), "00112233-4455-6677-8899-aabbccddeeff");
    assert_eq!(array.name, ArrayName::parse("golden.vol-1").unwrap());
    assert_eq!((array.layout.level(), array.layout.slots()), (Level::Raid5, 3));
    assert_eq!(array.layout.parity_algorithm(), Some(ParityAlgorithm::LeftSymmetric));
    assert_eq!((array.layout.chunk_bytes(), array.block_size), (128 << 10, BlockSize::B4096));
    assert_eq!((array.data_offset, array.data_bytes), (8 << 20, 1 << 30));
    assert_eq!((array.created_ns, array.updated_ns), (1_700_000_000_000_000_000, 1_700_000_000_000_000_123));
    assert_eq!((array.events, array.clean, array.resync), (42, false, Some(3 << 20)));
    assert_eq!((array.consistency, array.checksums), (Consistency::Resync, false));
    assert_eq!((array.compat, array.ro_compat), (0, 0));
    let starts: Vec<u64> = array.history.entries().iter().map(|entry| entry.start_events).collect();
    assert_eq!(starts, [1, 42]);
    assert_eq!(array.history.last().uuid.to_string(), "00000000-0000-0000-0000-0000000000c2");
    let members: Vec<_> =
        array.members.iter().map(|member| (member.slot, member.state, member.rebuilt_bytes)).collect();
    assert_eq!(
        members,
        [
            (Some(Slot(0)), MemberState::InSync, 0),
            (Some(Slot(1)), MemberState::Rebuilding, 1 << 20),
            (Some(Slot(2)), MemberState::InSync, 0),
            (None, MemberState::Spare, 0),
            (None, MemberState::Faulty, 0),
        ]
    );
    assert_eq!(own.member, array.members[2].uuid);
    assert_eq!((own.sequence, own.device_bytes), (77, (8 << 20) + (1 << 30) + (64 << 10)));
}

#[test]
fn the_golden_superblock_of_version_1_is_written_again_byte_for_byte() {
    assert!(Superblock::decode(GOLDEN).unwrap().encode() == GOLDEN);
}
