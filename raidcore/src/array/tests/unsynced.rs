//! Redundancy that is not what it should be yet, after a crash or in a new array: no guess is an answer.

use super::rig::{Rig, Shape, pattern};
use crate::array::AdminError;
use crate::dev::ErrorKind;
use crate::layout::Level;
use crate::meta::MemberState;

/// A stripe as a crash may leave it: an unacknowledged write to column 1 has landed, its parity has not. Then
/// a block of column 0 turns out bad, `bad_row` bytes down.
fn torn_stripe(bad_row: u64) -> Rig {
    let mut rig = Rig::new(Shape { chunk: 65536, ..Shape::new(Level::Raid5, 3) });
    rig.write(0, &pattern(0, 131_072, 1)).unwrap();
    rig.flush().unwrap();
    let start = rig.superblock(0).array.data_offset;
    rig.disks[1].poke(start + 32768, &pattern(99, 512, 9));
    rig.power_cut();
    rig.disks[0].fail_reads(start + bad_row..start + bad_row + 512);
    rig.restart(&[], false).unwrap();
    assert_eq!(rig.last_assembly.resync, Some(0));
    rig
}

/// The resync used to rebuild the whole column of the unit from parity that was in doubt: acknowledged, flushed
/// and readable blocks beside the bad one were lost.
#[test]
fn a_resync_that_meets_a_bad_block_leaves_the_good_ones_around_it_alone() {
    let mut rig = torn_stripe(0);
    rig.settle_background();
    let column = rig.read(4096, 65536 - 4096).unwrap();
    assert!(column == pattern(4096, 65536 - 4096, 1));
    assert!(rig.saw("ResyncIncomplete") && rig.superblock(1).array.resync.is_some());
}

/// It used to be answered with what the torn stripe's parity makes of it, and written back.
#[test]
fn a_bad_block_where_parity_is_in_doubt_is_an_error_and_not_a_guess() {
    let mut rig = torn_stripe(32768);
    assert_eq!(rig.read(32768, 512), Err(ErrorKind::Medium));
    rig.settle_background();
    assert_eq!(rig.read(32768, 512), Err(ErrorKind::Medium), "the resync did not make it up either");
    rig.write(32768, &pattern(32768, 512, 5)).unwrap();
    assert_eq!(rig.read(32768, 512).unwrap(), pattern(32768, 512, 5), "a write heals it");
}

#[test]
fn in_a_new_array_a_bad_block_that_was_written_is_rebuilt_though_the_first_resync_is_not_through() {
    let mut rig = Rig::new(Shape { assume_clean: false, chunk: 65536, ..Shape::new(Level::Raid5, 4) });
    rig.write(0, &pattern(0, 512, 1)).unwrap();
    let start = rig.superblock(0).array.data_offset;
    rig.disks[0].fail_reads(start..start + 512);
    assert_eq!(rig.read(0, 512).unwrap(), pattern(0, 512, 1));
}

/// A unit with bad blocks in two columns, in different rows, was ticked off as in sync, all its rows.
#[test]
fn rows_that_cannot_be_resynced_are_told_and_the_others_of_their_unit_are_resynced() {
    let shape = Shape { chunk: 65536, assume_clean: false, ..Shape::new(Level::Raid5, 5) };
    let mut rig = Rig::new(shape);
    let start = rig.superblock(0).array.data_offset;
    rig.disks[0].fail_reads_for_good(start..start + 512);
    rig.disks[1].fail_reads_for_good(start + 4096..start + 4096 + 512);
    rig.settle_background();
    rig.settle("the commit", |array| !array.commit.is_pending());
    let row = |disk: usize| rig.disks[disk].peek(start + 32768, 512);
    let xor: Vec<u8> = (0..512).map(|i| (0..5).fold(0, |a, d| a ^ row(d)[i])).collect();
    assert!(xor.iter().all(|&b| b == 0), "a row without a bad block");
    assert!(rig.saw("ResyncIncomplete") && !rig.saw("ResyncFinished"));
    assert_eq!(rig.superblock(2).array.resync, Some(0));
}

/// A stop in the middle of the walk recorded how far it had come, past rows it had left: after the next start
/// they counted as in sync.
#[test]
fn a_checkpoint_never_goes_past_a_row_that_could_not_be_resynced() {
    let shape = Shape { chunk: 4096, assume_clean: false, ..Shape::new(Level::Raid5, 3) };
    let mut rig = Rig::new(shape);
    let start = rig.superblock(0).array.data_offset;
    rig.disks[0].fail_reads_for_good(start..start + 512);
    rig.settle("half of the resync", |array| {
        array.status().action.is_some_and(|action| action.done_bytes * 2 > action.total_bytes)
    });
    rig.stop();
    rig.restart(&[], false).unwrap();
    assert_eq!(rig.last_assembly.resync, Some(0));
}

#[test]
fn a_member_is_not_failed_by_hand_while_parity_is_in_doubt() {
    let mut rig = torn_stripe(0);
    rig.disks[0].clear_faults();
    assert!(matches!(rig.array.fail("disk0"), Err(AdminError::InDoubt { .. })));
    rig.settle_background();
    rig.array.fail("disk0").unwrap();
    assert!(rig.read(32768, 512).unwrap() == pattern(32768, 512, 1));
}

#[test]
fn a_member_of_a_new_array_may_be_failed_before_the_first_resync_is_through() {
    let mut rig = Rig::new(Shape { assume_clean: false, ..Shape::new(Level::Raid5, 4) });
    rig.write(0, &pattern(0, 65536, 1)).unwrap();
    rig.array.fail("disk0").unwrap();
    assert!(rig.read(0, 65536).unwrap() == pattern(0, 65536, 1));
}

#[test]
fn a_member_that_dies_while_parity_is_in_doubt_is_told_as_that_and_the_doubt_is_kept() {
    let mut rig = torn_stripe(0);
    rig.disks[2].fail();
    rig.write(65536, &pattern(65536, 4096, 2)).unwrap();
    assert!(rig.saw("ParityInDoubt"));
    assert_eq!(rig.state_of(2), MemberState::Faulty);
    assert!(rig.superblock(0).array.resync.is_some());
}
