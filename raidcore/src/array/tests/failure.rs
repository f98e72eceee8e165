//! Faults: what each costs, and what must be on disk before a write is acknowledged.

use super::rig::{Rig, Shape, pattern};
use crate::dev::{ErrorKind, Op};
use crate::layout::Level;
use crate::meta::{ArrayState, MemberState};
use crate::sim::Rng;

const REDUNDANT: [(Level, usize); 5] =
    [(Level::Raid1, 2), (Level::Raid1, 3), (Level::Raid5, 4), (Level::Raid6, 5), (Level::Raid10, 4)];

/// Where a byte of slot `slot` is that the array's address 0.. maps to: the start of its data area.
fn data_start(rig: &Rig) -> u64 {
    rig.superblock(0).array.data_offset
}

#[test]
fn a_block_that_cannot_be_read_is_rebuilt_answered_and_written_back() {
    for (level, slots) in REDUNDANT {
        let mut rig = Rig::new(Shape::new(level, slots));
        let model = rig.read_all();
        let bad = data_start(&rig) + 4096;
        for disk in 0..slots {
            rig.disks[disk].fail_reads(bad..bad + 512);
            assert!(rig.read_all() == model, "{level} with a bad block on disk {disk}");
            rig.disks[disk].clear_faults();
        }
        assert!((0..slots).all(|slot| rig.state_of(slot) == MemberState::InSync));
        rig.check_redundancy(&(0..slots).collect::<Vec<_>>());
    }
}

#[test]
fn the_correction_of_a_read_error_is_told_and_counted_and_happens_once() {
    let mut rig = Rig::new(Shape::new(Level::Raid5, 3));
    let bad = data_start(&rig);
    rig.disks[0].fail_reads(bad..bad + 512);
    rig.read(0, 4096).unwrap();
    assert!(rig.saw("ReadErrorCorrected"));
    let errors = rig.array.status().members[0].errors;
    rig.read(0, 4096).unwrap();
    assert_eq!((errors.read, rig.array.status().members[0].errors), (1, errors));
}

#[test]
fn one_bad_block_under_a_large_merged_read_costs_only_its_own_piece() {
    let mut rig = Rig::new(Shape::new(Level::Raid0, 2));
    let model = rig.read_all();
    let bad = data_start(&rig) + 16384;
    rig.disks[0].fail_reads_for_good(bad..bad + 512);
    let tags: Vec<_> = (0..8)
        .map(|i| {
            let op = rig.read_op(i * 16384, 16384);
            rig.submit(op)
        })
        .collect();
    let done = rig.finish(&tags);
    // Chunk 2 is the second one of disk 0.
    for (i, tag) in tags.iter().enumerate() {
        let completion = &done[tag];
        match completion.result {
            Ok(()) => assert!(completion.bufs[0][..] == model[i * 16384..(i + 1) * 16384]),
            Err(error) => assert_eq!((i, error.kind), (2, ErrorKind::Medium)),
        }
    }
    assert_eq!(done.values().filter(|c| c.result.is_err()).count(), 1);
}

/// Rule 3. At the moment a write is acknowledged, a member that did not take it must be out by the superblock
/// of every other member. Planted bug that this caught while it was written: answering in `after_writes`
/// without looking at `commit.is_pending`.
#[test]
fn no_write_is_acknowledged_before_the_survivors_say_that_a_failed_member_is_out() {
    for (level, slots) in REDUNDANT {
        for step in 0..25 {
            let mut rig = Rig::new(Shape { seed: step, ..Shape::new(level, slots) });
            let mut rng = Rng::new(step);
            rig.disks[1].fail_after(step);
            for version in 0..30 {
                let offset = rng.below(rig.size() / 512 - 32) * 512;
                let bytes = pattern(offset, 512 * (1 + rng.index(32)), version);
                rig.write(offset, &bytes).unwrap();
                let is_out = rig.state_of(1) == MemberState::Faulty;
                for disk in (0..slots).filter(|&disk| disk != 1 && is_out) {
                    let table = rig.superblock(disk).array;
                    assert!(
                        table.members[1].state.is_out(),
                        "{level} step {step}: disk {disk} trusts a dead member"
                    );
                }
            }
            // Large writes use the disk up, should the small ones not have reached it often enough.
            for version in 0..40 {
                rig.write(0, &pattern(0, 131_072, version)).unwrap();
            }
            assert_eq!(rig.state_of(1), MemberState::Faulty, "{level} step {step}");
            assert_eq!(rig.array.state(), ArrayState::Degraded);
            assert!(rig.saw("Fail") && rig.saw("DegradedArray"));
        }
    }
}

#[test]
fn no_write_is_started_before_the_superblocks_say_dirty() {
    for (level, slots) in REDUNDANT {
        let mut rig = Rig::new(Shape::new(level, slots));
        rig.settle("the start", |array| array.status().action.is_none());
        let before: Vec<_> = (0..slots).map(|disk| rig.superblock(disk).array.clean).collect();
        assert!(before.iter().all(|&clean| clean));
        rig.write(0, &pattern(0, 4096, 1)).unwrap();
        assert!((0..slots).all(|disk| !rig.superblock(disk).array.clean));
        rig.settle("the clean mark", |array| array.state() == ArrayState::Clean);
        rig.settle("the commit", |array| !array.commit.is_pending());
        assert!((0..slots).all(|disk| rig.superblock(disk).array.clean), "an idle array is marked clean");
    }
}

#[test]
fn a_member_that_hangs_is_failed_at_the_deadline_and_no_request_fails() {
    for (level, slots) in REDUNDANT {
        let mut rig = Rig::new(Shape::new(level, slots));
        let mut model = rig.read_all();
        rig.disks[1].hang(true);
        model[..65536].copy_from_slice(&pattern(0, 65536, 3));
        rig.write(0, &pattern(0, 65536, 3)).unwrap();
        assert!(rig.read_all() == model);
        assert_eq!(rig.state_of(1), MemberState::Faulty);
        // What was given up is executed late, onto a disk that nobody reads any more.
        rig.disks[1].hang(false);
        assert!(rig.read_all() == model);
    }
}

#[test]
fn losing_more_than_the_level_survives_fails_the_array_loudly_and_leaves_the_superblocks_alone() {
    let mut rig = Rig::new(Shape::new(Level::Raid5, 4));
    rig.write(0, &pattern(0, 65536, 1)).unwrap();
    rig.flush().unwrap();
    rig.disks[0].fail();
    rig.write(65536, &pattern(65536, 65536, 2)).unwrap();
    rig.disks[1].fail();
    let events = rig.superblock(2).array.events;
    let results: Vec<_> = (0..8).map(|i| rig.write(i * 4096, &pattern(0, 4096, 9))).collect();
    assert!(results.contains(&Err(ErrorKind::ArrayFailed)));
    assert!(rig.saw("ArrayFailed") && rig.array.state() == ArrayState::Failed);
    assert_eq!(rig.flush(), Err(ErrorKind::ArrayFailed));
    assert_eq!(rig.superblock(2).array.events, events);
    rig.stop();
    // The second disk was only unplugged. With it back, everything acknowledged is there.
    rig.disks[1].restore();
    rig.restart(&[0], true).unwrap();
    assert!(rig.read(65536, 65536).unwrap() == pattern(65536, 65536, 2));
}

#[test]
fn the_last_copy_of_a_mirror_is_never_failed_for_a_bad_block() {
    let mut rig = Rig::new(Shape::new(Level::Raid1, 2));
    rig.disks[0].fail();
    rig.write(0, &pattern(0, 4096, 1)).unwrap();
    let bad = data_start(&rig) + 8192;
    rig.disks[1].fail_writes(bad..bad + 512);
    assert_eq!(rig.write(8192, &pattern(8192, 512, 2)), Err(ErrorKind::Medium));
    assert!(rig.write(16384, &pattern(16384, 512, 2)).is_ok());
    assert_eq!(rig.read(0, 4096).unwrap(), pattern(0, 4096, 1));
    assert_eq!(rig.array.state(), ArrayState::Degraded);
}

#[test]
fn in_raid0_an_error_is_the_blocks_own() {
    let mut rig = Rig::new(Shape::new(Level::Raid0, 3));
    let bad = data_start(&rig);
    rig.disks[0].fail_writes(bad..bad + 512);
    assert_eq!(rig.write(0, &pattern(0, 512, 1)), Err(ErrorKind::Medium));
    assert!(rig.write(16384, &pattern(0, 512, 1)).is_ok());
    rig.disks[2].fail();
    assert_eq!(rig.read(2 * 16384, 512), Err(ErrorKind::Gone));
    assert_eq!(rig.array.state(), ArrayState::Failed);
}

#[test]
fn a_request_is_answered_at_its_deadline_though_its_disk_hangs() {
    let mut rig = Rig::new(Shape::new(Level::Raid0, 2));
    rig.disks[0].hang(true);
    let before = rig.clock.now();
    assert_eq!(rig.read(0, 512), Err(ErrorKind::Timeout));
    assert!(rig.clock.now().since(before) <= std::time::Duration::from_secs(31));
    assert!(rig.read(16384, 512).is_ok());
}

#[test]
fn what_is_out_of_bounds_or_after_the_end_is_refused() {
    let mut rig = Rig::new(Shape::new(Level::Raid5, 3));
    rig.stop();
    assert_eq!(rig.read(0, 512), Err(ErrorKind::Stopped));
    assert_eq!(rig.run(Op::Flush), Err(ErrorKind::Stopped));
}
