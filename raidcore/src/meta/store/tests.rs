//! Copies that are damaged, missing, older or somebody else's.

use super::super::create::{Candidate, CreateParams, plan_create};
use super::super::superblock::Own;
use super::*;
use crate::blocking::tests::{Mem, blocking};
use crate::dev::{ErrorKind, OpKind};
use crate::layout::{LayoutSpec, Level};
use uuid::Uuid;

const SIZE: usize = 2 << 20;
const B: usize = SIZE - SUPERBLOCK_BYTES;

fn superblock(seed: u128) -> Superblock {
    let device = |i| Candidate { name: format!("d{i}"), geometry: Mem::new(SIZE).geometry };
    let params = CreateParams {
        name: "vol0".to_owned(),
        layout: LayoutSpec::new(Level::Raid1, 2, 64 << 10),
        members: (0..2).map(device).collect(),
        spares: vec![],
        assume_clean: true,
        now_ns: 7,
    };
    let mut next = seed;
    let fresh = || {
        next += 1;
        Uuid::from_u128(next)
    };
    plan_create(&params, fresh).unwrap().remove(0)
}

fn stored() -> (Blocking<Mem>, Superblock) {
    let mut dev = blocking(Mem::new(SIZE));
    let mut superblock = superblock(0);
    store(&mut dev, &mut superblock).unwrap();
    (dev, superblock)
}

#[test]
fn both_copies_are_stored_and_the_newer_one_is_loaded() {
    let (mut dev, superblock) = stored();
    let loaded = load(&mut dev).unwrap();
    assert_eq!(loaded, Loaded { superblock, copies: [CopyState::Valid, CopyState::Stale] });
    assert_eq!(loaded.superblock.own.sequence, 2);
}

#[test]
fn a_damaged_copy_is_mended_from_the_other_one_whichever_it_is() {
    for (place, field) in [(0, 0), (B, 1)] {
        let (mut dev, superblock) = stored();
        dev.inner_mut().bytes[place + 100] ^= 1;
        let mut loaded = load(&mut dev).unwrap();
        assert!(matches!(loaded.copies[field], CopyState::Corrupt(SuperblockError::BadCrc { .. })));
        assert_eq!(loaded.superblock.array, superblock.array);
        assert_eq!(mend(&mut dev, &mut loaded), Ok(true));
        let mut again = load(&mut dev).unwrap();
        assert_eq!(again, loaded);
        assert!(again.copies.iter().all(|copy| !copy.is_bad()));
        assert_eq!(mend(&mut dev, &mut again), Ok(false));
    }
}

#[test]
fn mending_never_touches_the_good_copy_even_if_it_lies_in_the_others_place() {
    let (mut dev, _) = stored();
    let bytes = dev.inner_mut().bytes[..SUPERBLOCK_BYTES].to_vec();
    dev.inner_mut().bytes[B..].copy_from_slice(&bytes);
    dev.inner_mut().bytes[..SUPERBLOCK_BYTES].fill(0);
    let mut loaded = load(&mut dev).unwrap();
    assert_eq!(loaded.copies, [CopyState::Absent, CopyState::Valid]);
    assert_eq!(mend(&mut dev, &mut loaded), Ok(true));
    assert!(dev.inner_mut().bytes[B..] == bytes);
    assert_eq!(load(&mut dev).unwrap().copies, [CopyState::Valid, CopyState::Stale]);
}

#[test]
fn a_crash_in_the_middle_of_any_copy_leaves_the_superblock_before_it() {
    let (mut dev, mut superblock) = stored();
    for round in 0..2 {
        superblock.array.touch(round);
        let old = load(&mut dev).unwrap().superblock;
        let before = dev.inner_mut().bytes.clone();
        let at = superblock.own.advance() as usize;
        let new = superblock.encode();
        for torn in [1, 511, 512, 2048, SUPERBLOCK_BYTES - 1] {
            dev.inner_mut().bytes.copy_from_slice(&before);
            dev.inner_mut().bytes[at..at + torn].copy_from_slice(&new[..torn]);
            // Where the torn-off end is the same in both, the copy is whole: then it is the new one.
            let found = load(&mut dev).unwrap().superblock;
            assert!(found == old || found == superblock, "{torn} bytes");
        }
        dev.inner_mut().bytes[at..at + SUPERBLOCK_BYTES].copy_from_slice(&new);
        assert_eq!(load(&mut dev).unwrap().superblock, superblock);
    }
}

#[test]
fn two_damaged_copies_are_told_from_none_at_all() {
    let (mut dev, _) = stored();
    dev.inner_mut().bytes[200] ^= 1;
    dev.inner_mut().bytes[B + 200] ^= 1;
    let error = load(&mut dev).unwrap_err();
    assert!(matches!(error, LoadError::BothCorrupt(..)));
    assert!(error.to_string().contains("start the array without this device"), "{error}");
    dev.inner_mut().bytes.fill(0);
    assert_eq!(load(&mut dev).unwrap_err(), LoadError::NoSuperblock);
    assert_eq!(load(&mut blocking(Mem::new(4096))).unwrap_err(), LoadError::NoSuperblock);
}

#[test]
fn a_copy_that_cannot_be_read_is_done_without() {
    let (mut dev, superblock) = stored();
    dev.inner_mut().bad = Some((OpKind::Read, 0));
    let loaded = load(&mut dev).unwrap();
    assert_eq!((loaded.superblock.own.sequence, loaded.superblock.array), (1, superblock.array));
    assert!(matches!(loaded.copies[0], CopyState::Unreadable(error) if error.kind == ErrorKind::Medium));
    let mut blank = blocking(Mem::new(SIZE));
    blank.inner_mut().bad = Some((OpKind::Read, 0));
    assert!(matches!(load(&mut blank).unwrap_err(), LoadError::Io(_)));
}

#[test]
fn a_copy_of_an_earlier_array_is_mended_away() {
    let (mut dev, _) = stored();
    let mut old = superblock(1000);
    old.own.sequence = 100;
    old.own.advance();
    dev.inner_mut().bytes[B..].copy_from_slice(&old.encode());
    let mut loaded = load(&mut dev).unwrap();
    assert_eq!(loaded.copies, [CopyState::Valid, CopyState::OtherMember]);
    assert_eq!(mend(&mut dev, &mut loaded), Ok(true));
    assert_eq!(load(&mut dev).unwrap().copies, [CopyState::Stale, CopyState::Valid]);
}

#[test]
fn a_superblock_of_a_later_version_is_left_alone_even_beside_a_known_one() {
    let (mut dev, _) = stored();
    let copy = &mut dev.inner_mut().bytes[B..];
    copy[8] = 2;
    let checksum = super::super::format::RawSuperblock::checksum_of(copy);
    copy[12..16].copy_from_slice(&checksum.to_le_bytes());
    assert_eq!(load(&mut dev).unwrap_err(), LoadError::Unsupported(SuperblockError::UnknownVersion(2)));
}

#[test]
fn a_member_partition_at_the_end_of_a_disk_is_not_taken_for_the_disk() {
    let (mut dev, _) = stored();
    let mut disk = Mem::new(3 * SIZE);
    disk.bytes[2 * SIZE..].copy_from_slice(&dev.inner_mut().bytes);
    let error = load(&mut blocking(disk)).unwrap_err();
    assert_eq!(error, LoadError::Inner { recorded: SIZE as u64, actual: 3 * SIZE as u64 });
}

#[test]
fn a_device_that_has_grown_is_found_by_copy_a_and_gets_a_new_copy_b() {
    let (mut dev, _) = stored();
    let mut grown = Mem::new(2 * SIZE);
    grown.bytes[..SIZE].copy_from_slice(&dev.inner_mut().bytes);
    let mut grown = blocking(grown);
    let mut loaded = load(&mut grown).unwrap();
    assert_eq!(loaded.copies, [CopyState::Valid, CopyState::Absent]);
    assert_eq!(mend(&mut grown, &mut loaded), Ok(true));
    assert_eq!(load(&mut grown).unwrap().superblock.own.device_bytes, 2 * SIZE as u64);
}

#[test]
fn a_write_error_while_storing_is_reported() {
    let mut dev = blocking(Mem::new(SIZE));
    dev.inner_mut().bad = Some((OpKind::Write, B as u64));
    let error = store(&mut dev, &mut superblock(0)).unwrap_err();
    assert!(matches!(error, StoreError::Io(error) if error.kind == ErrorKind::Medium));
}

#[test]
fn a_member_behind_catches_up_and_one_that_is_not_is_left_alone() {
    let (mut dev, mut superblock) = stored();
    let mut loaded = load(&mut dev).unwrap();
    assert_eq!(catch_up(&mut dev, &mut loaded, &superblock.array), Ok(false));
    superblock.array.touch(8);
    assert_eq!(catch_up(&mut dev, &mut loaded, &superblock.array), Ok(true));
    let again = load(&mut dev).unwrap();
    assert_eq!((&again.superblock.array, again.copies), (&superblock.array, loaded.copies));
}

/// `truncate -s` on a member moved the place of copy B, so that B was absent and was to be mended; the superblock
/// with the new size broke the invariant that data fits the device, and `encode` panicked: no array was started.
#[test]
fn a_device_that_has_shrunk_is_refused_and_not_written() {
    let (mut dev, mut old) = stored();
    let size = SIZE - (512 << 10);
    let mut shrunk = Mem::new(size);
    shrunk.bytes.copy_from_slice(&dev.inner_mut().bytes[..size]);
    let before = shrunk.bytes.clone();
    let mut shrunk = blocking(shrunk);
    let mut loaded = load(&mut shrunk).unwrap();
    assert_eq!(loaded.copies, [CopyState::Valid, CopyState::Absent]);
    let refused = StoreError::TooSmall { have_bytes: size as u64, need_bytes: SIZE as u64 };
    assert_eq!(mend(&mut shrunk, &mut loaded), Err(refused));
    let mut newer = loaded.superblock.array.clone();
    newer.touch(8);
    assert_eq!(catch_up(&mut shrunk, &mut loaded, &newer), Err(refused));
    assert_eq!(store(&mut shrunk, &mut old), Err(refused));
    assert!(shrunk.inner_mut().bytes == before);
}

#[test]
fn what_breaks_an_invariant_is_refused_and_does_not_panic() {
    let (mut dev, mut broken) = stored();
    broken.own.member = superblock(1000).own.member;
    assert!(matches!(store(&mut dev, &mut broken), Err(StoreError::Impossible(_))));
}

#[test]
fn erasing_takes_both_copies_and_nothing_else_and_does_not_write_where_nothing_is() {
    let (mut dev, _) = stored();
    dev.inner_mut().bytes[SUPERBLOCK_BYTES..B].fill(7);
    assert_eq!(erase(&mut dev), Ok(()));
    assert_eq!(load(&mut dev).unwrap_err(), LoadError::NoSuperblock);
    assert!(dev.inner_mut().bytes[SUPERBLOCK_BYTES..B].iter().all(|&byte| byte == 7));
    dev.inner_mut().bad = Some((OpKind::Write, 0));
    assert_eq!(erase(&mut dev), Ok(()));
}

#[test]
fn erasing_goes_on_with_the_second_copy_when_the_first_cannot_be_written() {
    let (mut dev, _) = stored();
    dev.inner_mut().bad = Some((OpKind::Write, 0));
    assert_eq!(erase(&mut dev).unwrap_err().kind, ErrorKind::Medium);
    assert!(dev.inner_mut().bytes[B..].iter().all(|&byte| byte == 0));
}

/// A device that holds what `dev` held and is twice as large.
fn grown(dev: &mut Blocking<Mem>) -> Blocking<Mem> {
    let mut grown = Mem::new(2 * SIZE);
    grown.bytes[..SIZE].copy_from_slice(&dev.inner_mut().bytes);
    blocking(grown)
}

/// Copy A was believed on a device that had grown while nothing ran, though the last update had gone to copy B: a
/// member that the update had failed was in sync again, with old data.
#[test]
fn on_a_device_that_has_grown_the_copy_at_the_former_end_counts_if_it_is_the_newer_one() {
    let (mut dev, mut superblock) = stored();
    superblock.array.touch(9);
    write_next(&mut dev, &mut superblock).unwrap();
    assert_eq!(superblock.own.sequence % 2, 1, "it went to copy B");
    let mut large = grown(&mut dev);
    let mut loaded = load(&mut large).unwrap();
    assert_eq!((&loaded.superblock, loaded.copies), (&superblock, [CopyState::Stale, CopyState::Absent]));
    // Until it stands at the new end, copy A must stay: it alone tells where the former end was.
    let before = large.inner_mut().bytes[..SIZE].to_vec();
    large.inner_mut().bad = Some((OpKind::Write, 2 * SIZE as u64 - 1));
    assert!(mend(&mut large, &mut loaded.clone()).is_err());
    assert!(large.inner_mut().bytes[..SIZE] == before);
    large.inner_mut().bad = None;
    assert_eq!(mend(&mut large, &mut loaded), Ok(true));
    let again = load(&mut large).unwrap();
    assert_eq!((&again.superblock.array, again.copies), (&superblock.array, loaded.copies));
    assert_eq!(again.superblock.own.device_bytes, 2 * SIZE as u64);
    assert!(large.inner_mut().bytes[B..SIZE].iter().all(|&byte| byte == 0), "the former one is erased");
}

#[test]
fn what_stands_at_the_former_end_is_not_believed_once_copy_a_knows_the_new_one() {
    let (mut dev, superblock) = stored();
    let mut forged = superblock.clone();
    forged.own.sequence = 1001;
    forged.array.touch(9);
    let mut large = grown(&mut dev);
    let mut loaded = load(&mut large).unwrap();
    mend(&mut large, &mut loaded).unwrap();
    write_next(&mut large, &mut loaded.superblock).unwrap();
    large.inner_mut().bytes[B..SIZE].copy_from_slice(&forged.encode());
    assert_eq!(load(&mut large).unwrap().superblock, loaded.superblock);
}

#[test]
fn a_copy_that_follows_growth_goes_to_the_new_end_first_whatever_came_last() {
    for sequence in [6, 7] {
        let mut own = Own { sequence, device_bytes: SIZE as u64, ..stored().1.own };
        assert_eq!(own.grow_to(2 * SIZE as u64), Some(B as u64));
        assert_eq!((own.advance(), own.advance()), ((2 * SIZE - SUPERBLOCK_BYTES) as u64, 0));
        let mut own = Own { sequence, ..own };
        assert_eq!(own.grow_to(2 * SIZE as u64 + 512), None, "not by a whole copy: it stays where it is");
        assert_eq!(own.sequence, sequence);
    }
}

#[test]
fn erasing_a_device_that_has_grown_takes_the_copy_at_its_former_end_too() {
    let (mut dev, _) = stored();
    let mut large = grown(&mut dev);
    assert_eq!(erase(&mut large), Ok(()));
    assert!(large.inner_mut().bytes.iter().all(|&byte| byte == 0));
}
