//! What is written is read back, what is damaged is found, and no bytes whatever make it panic.

use super::super::create::{Candidate, CreateParams, plan_create};
use super::*;
use crate::dev::Geometry;
use proptest::prelude::*;

/// Sets the checksum right, as a defective program of ours would.
fn seal(bytes: &mut [u8]) {
    let checksum = RawSuperblock::checksum_of(bytes);
    bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
}

fn sample(level: Level, slots: usize, spares: usize) -> Superblock {
    let device =
        |i: usize| Candidate { name: format!("d{i}"), geometry: Geometry::plain(1 << 26, BlockSize::B512) };
    let params = CreateParams {
        name: "vol0".to_owned(),
        layout: LayoutSpec::new(level, slots, 64 << 10),
        members: (0..slots).map(device).collect(),
        spares: (slots..slots + spares).map(device).collect(),
        assume_clean: false,
        now_ns: 7,
    };
    let mut next = 0;
    let fresh = || {
        next += 1;
        Uuid::from_u128(next)
    };
    plan_create(&params, fresh).unwrap().remove(0)
}

/// A superblock in the middle of its life, with as much filled in as the seeds say.
fn lived(level: Level, slots: usize, spares: usize, seeds: &[u64]) -> Superblock {
    let mut superblock = sample(level, slots, spares);
    let array = &mut superblock.array;
    for &seed in seeds {
        let fresh = IncarnationUuid(Uuid::from_u128(u128::from(seed) << 64 | u128::from(array.events)));
        let data_bytes = array.data_bytes;
        array.change_members(fresh, seed, |members| {
            let i = seed as usize % members.len();
            let member = &mut members[i];
            (member.state, member.rebuilt_bytes) = match (member.slot, seed % 5) {
                (Some(_), 0) => (MemberState::InSync, 0),
                (Some(_), 1) => (MemberState::Rebuilding, seed % (data_bytes + 1)),
                (None, 0 | 1) => (MemberState::Spare, 0),
                (_, 2 | 3) => (MemberState::Faulty, 0),
                _ => (MemberState::Missing, 0),
            };
        });
        array.clean = seed & 1 == 0;
        array.resync = (seed & 2 == 0).then_some(seed % (data_bytes + 1));
        array.compat = seed;
        array.ro_compat = seed >> 1;
        array.reserved[seed as usize % RESERVED_BYTES] = seed as u8;
        superblock.own.sequence += seed >> 2;
        superblock.own.sequence %= 1 << 62;
    }
    superblock
}

proptest! {
    #[test]
    fn what_was_encoded_decodes_to_the_same(
        level in prop::sample::select(vec![Level::Raid0, Level::Raid1, Level::Raid5, Level::Raid6, Level::Raid10]),
        slots in 4usize..=64,
        spares in 0usize..=32,
        seeds in prop::collection::vec(any::<u64>(), 0..40),
    ) {
        let spares = if level == Level::Raid0 { 0 } else { spares };
        let superblock = lived(level, slots, spares, &seeds);
        let bytes = superblock.encode();
        prop_assert_eq!(Superblock::decode(&bytes), Ok(superblock.clone()));
        prop_assert!(Superblock::decode(&bytes).unwrap().encode() == bytes);
    }

    #[test]
    fn any_bytes_decode_or_fail_without_a_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..5000),
        sealed in any::<bool>(),
    ) {
        if sealed && bytes.len() >= 16 {
            bytes[..8].copy_from_slice(&MAGIC);
            seal(&mut bytes);
        }
        prop_assert!(Superblock::decode(&bytes).is_err());
    }

    /// The checksum is right and a few fields are not: whatever decodes keeps every invariant.
    #[test]
    fn a_superblock_with_forged_fields_decodes_only_if_it_can_be_written_again(
        patches in prop::collection::vec((prop_oneof![16usize..288, 640usize..1200], any::<u8>()), 1..4),
    ) {
        let mut bytes = sample(Level::Raid5, 4, 2).encode();
        for (at, value) in patches {
            bytes[at] = value;
        }
        seal(&mut bytes);
        if let Ok(superblock) = Superblock::decode(&bytes) {
            prop_assert!(superblock.encode() == bytes);
        }
    }
}

#[test]
fn every_single_flipped_bit_is_detected() {
    let superblock = lived(Level::Raid5, 5, 1, &[11, 22, 35]);
    let mut bytes = superblock.encode();
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(Superblock::decode(&bytes).is_err(), "bit {bit}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    assert_eq!(Superblock::decode(&bytes), Ok(superblock));
}

#[test]
fn every_truncation_is_refused() {
    let bytes = sample(Level::Raid1, 2, 0).encode();
    for len in 0..bytes.len() {
        assert_eq!(Superblock::decode(&bytes[..len]), Err(SuperblockError::NotOurs));
    }
}

#[test]
fn versions_and_features_of_the_future_are_refused_by_name() {
    let good = sample(Level::Raid1, 2, 0).encode();
    let forged = |at: usize, value: u8| {
        let mut bytes = good;
        bytes[at] = value;
        seal(&mut bytes);
        Superblock::decode(&bytes)
    };
    assert_eq!(forged(8, 2), Err(SuperblockError::UnknownVersion(2)));
    assert_eq!(forged(32, 4), Err(SuperblockError::UnknownIncompat { bits: 4 }));
    assert!(forged(16, 4).unwrap().array.unknown_ro_compat() == 0, "compatible features are kept");
    assert_eq!(forged(24, 4).unwrap().array.unknown_ro_compat(), 4);
}

#[test]
fn each_impossible_field_is_named() {
    let good = sample(Level::Raid5, 4, 1).encode();
    let table = 1024;
    for (at, value, field) in [
        (88, b'-', "name"),
        (88 + 63, 1, "name"),
        (152, 7, "level"),
        (156, 4, "layout"),
        (160, 1, "chunk bytes"),
        (164, 1, "block bytes"),
        (168, 2, "slots"),
        (168, 3, "slot of member entry"),
        (168, 5, "members"),
        (172, 97, "members"),
        (172, 4, "members"),
        (176, 17, "history"),
        (176, 0, "history"),
        (180, 4, "flags"),
        (184, 2, "consistency"),
        (188, 1, "checksums"),
        (192, 1, "data offset"),
        (200, 1, "data bytes"),
        (208 + 7, 0x80, "events"),
        // With one less than 2^63 and the right checksum, this was taken, and the first change of it panicked.
        (208 + 7, 0x7f, "events"),
        (208 + 7, 0x40, "events"),
        (208, 0, "events"),
        (232 + 7, 1, "resync checkpoint"),
        (240, 1, "region"),
        (40 + 7, 0x80, "sequence"),
        (40 + 7, 0x7f, "sequence"),
        (64, 0xee, "member uuid"),
        (80 + 3, 1, "device bytes"),
        (table + 15, 0xee, "member uuid"),
        (table + 16, 1, "slot of member entry"),
        (table + 16, 70, "slot of a member entry"),
        (table + 18, 0, "state of member entry"),
        (table + 18, 3, "state of member entry"),
        (table + 19, 1, "state of member entry"),
        (table + 24, 1, "rebuild checkpoint"),
        (table + 32 + 15, 3, "member uuid of entry"),
    ] {
        let mut bytes = good;
        bytes[at] = value;
        seal(&mut bytes);
        match Superblock::decode(&bytes) {
            Err(SuperblockError::Impossible { field: named, .. }) => assert_eq!(named, field, "byte {at}"),
            other => panic!("byte {at} = {value}: {other:?}"),
        }
    }
}

#[test]
fn regions_that_overlap_each_other_the_superblock_or_the_data_are_refused() {
    let places = |intent: (u64, u64), log: (u64, u64)| {
        let mut superblock = sample(Level::Raid5, 4, 0);
        let region = |(offset, bytes)| Region { offset, bytes };
        superblock.array.regions =
            Regions { write_intent: region(intent), log: region(log), checksums: Region::default() };
        superblock.check()
    };
    assert_eq!(places((4096, 8192), (12288, 4096)), Ok(()));
    assert_eq!(places((12288, 4096), (4096, 8192)), Ok(()));
    for (intent, log) in [
        ((0, 4096), (0, 0)),
        ((4096, 8192), (8192, 4096)),
        ((4096, 1 << 20), (0, 0)),
        ((4096, 100), (0, 0)),
        ((4096, u64::MAX - 4095), (0, 0)),
    ] {
        assert!(places(intent, log).is_err(), "{intent:?} {log:?}");
    }
}

#[test]
#[should_panic(expected = "about to be written: field `data offset`")]
fn a_superblock_that_would_not_be_read_back_is_never_written() {
    let mut superblock = sample(Level::Raid5, 4, 0);
    superblock.array.data_offset = 4096;
    superblock.encode();
}
