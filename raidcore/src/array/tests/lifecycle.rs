//! Starts, stops, crashes: what is there afterwards, and what has to be done.

use super::rig::{Rig, Shape, pattern};
use crate::layout::Level;
use crate::meta::{AssembleError, MemberState};
use crate::sim::Rng;

const REDUNDANT: [(Level, usize); 4] =
    [(Level::Raid1, 2), (Level::Raid5, 4), (Level::Raid6, 5), (Level::Raid10, 4)];

#[test]
fn after_a_clean_stop_nothing_is_to_be_done_and_everything_is_there() {
    for (level, slots) in [(Level::Raid0, 2), (Level::Raid1, 2), (Level::Raid5, 4), (Level::Raid10, 4)] {
        let mut rig = Rig::new(Shape::new(level, slots));
        let size = rig.size() as usize;
        rig.write(0, &pattern(0, size, 7)).unwrap();
        rig.stop();
        rig.power_cut();
        rig.restart(&[], false).unwrap();
        assert_eq!(rig.last_assembly.resync, None, "{level}");
        assert!(rig.read_all() == pattern(0, size, 7), "{level}: a clean stop flushes");
        assert!(!rig.saw("ResyncStarted"));
    }
}

#[test]
fn after_a_crash_what_was_flushed_is_there_and_a_resync_restores_redundancy() {
    for (level, slots) in REDUNDANT {
        for seed in 0..20 {
            let mut rig = Rig::new(Shape { seed: seed + 1, ..Shape::new(level, slots) });
            let mut rng = Rng::new(seed);
            rig.write(0, &pattern(0, 131_072, seed)).unwrap();
            rig.flush().unwrap();
            // Writes elsewhere that nobody flushes, some still under way when the power goes.
            let tags: Vec<_> = (0..20)
                .map(|i| {
                    let offset = 131_072 + rng.below(256) * 512;
                    let op = rig.write_op(offset, &pattern(offset, 4096, i), false);
                    rig.submit(op)
                })
                .collect();
            for _ in 0..rng.below(6) {
                crate::dev::BlockDev::reap(&mut rig.array, &mut Vec::new());
            }
            drop(tags);
            rig.power_cut();
            rig.restart(&[], false).unwrap();
            assert!(rig.read(0, 131_072).unwrap() == pattern(0, 131_072, seed), "{level} seed {seed}");
            rig.settle_background();
            rig.check_redundancy(&(0..slots).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_write_with_fua_survives_a_power_cut_that_follows_it() {
    for (level, slots) in REDUNDANT {
        let mut rig = Rig::new(Shape::new(level, slots));
        let op = rig.write_op(8192, &pattern(8192, 20_480, 4), true);
        rig.run(op).unwrap();
        rig.power_cut();
        rig.restart(&[], false).unwrap();
        assert!(rig.read(8192, 20_480).unwrap() == pattern(8192, 20_480, 4), "{level}");
    }
}

#[test]
fn a_new_array_comes_into_sync_in_the_background_and_is_usable_meanwhile() {
    for (level, slots) in REDUNDANT {
        let mut rig = Rig::new(Shape { assume_clean: false, ..Shape::new(level, slots) });
        rig.write(4096, &pattern(4096, 65536, 1)).unwrap();
        assert!(
            rig.array.status().action.is_some(),
            "{level}: the first write came before the resync was over"
        );
        assert!(rig.read(4096, 65536).unwrap() == pattern(4096, 65536, 1));
        rig.settle_background();
        assert!(rig.saw("ResyncStarted") && rig.saw("ResyncFinished"));
        rig.check_redundancy(&(0..slots).collect::<Vec<_>>());
        rig.stop();
        rig.restart(&[], false).unwrap();
        assert_eq!(rig.last_assembly.resync, None);
    }
}

#[test]
fn an_interrupted_resync_goes_on_where_a_clean_stop_left_it() {
    let mut rig = Rig::new(Shape { assume_clean: false, chunk: 4096, ..Shape::new(Level::Raid5, 3) });
    rig.settle("half of the resync", |array| {
        array.status().action.is_some_and(|a| a.done_bytes * 3 > a.total_bytes)
    });
    rig.stop();
    rig.restart(&[], false).unwrap();
    let at = rig.last_assembly.resync.unwrap();
    assert!(at > 0, "the checkpoint was lost");
    rig.settle_background();
    rig.check_redundancy(&[0, 1, 2]);
}

#[test]
fn a_dirty_array_without_a_member_is_started_only_by_force() {
    let mut rig = Rig::new(Shape::new(Level::Raid5, 3));
    rig.write(0, &pattern(0, 4096, 1)).unwrap();
    rig.flush().unwrap();
    rig.power_cut();
    assert!(matches!(rig.restart(&[2], false), Err(AssembleError::DirtyDegraded { .. })));
    rig.restart(&[2], true).unwrap();
    assert!(rig.read(0, 4096).unwrap() == pattern(0, 4096, 1));
    assert_eq!(rig.state_of(2), MemberState::Missing);
}

/// P and Q may both be torn, so that two of them are no better than one.
#[test]
fn a_dirty_raid6_without_a_member_is_started_only_by_force_and_then_brought_into_line() {
    let mut rig = Rig::new(Shape::new(Level::Raid6, 5));
    rig.write(0, &pattern(0, 262_144, 1)).unwrap();
    rig.flush().unwrap();
    // As a crash may leave it: an unacknowledged write has landed, and neither parity has.
    let start = rig.superblock(0).array.data_offset;
    rig.disks[1].poke(start + 4096, &pattern(99, 512, 9));
    rig.power_cut();
    assert!(matches!(rig.restart(&[2], false), Err(AssembleError::DirtyDegraded { .. })));
    rig.restart(&[2], true).unwrap();
    rig.settle_background();
    let all = rig.read_all();
    // P and Q agree again, so that a second loss changes nothing.
    rig.array.fail("disk3").unwrap();
    assert!(rig.read_all() == all);
}

#[test]
fn an_array_that_lacks_too_many_members_is_not_started_and_they_are_named() {
    let mut rig = Rig::new(Shape::new(Level::Raid5, 4));
    rig.stop();
    let error = rig.restart(&[1, 2], false).unwrap_err().to_string();
    assert!(error.contains("slot 1") && error.contains("slot 2"), "{error}");
}

#[test]
fn a_member_that_a_crash_kept_from_the_last_metadata_update_is_brought_up_and_stays_in() {
    let mut rig = Rig::new(Shape::new(Level::Raid5, 3));
    rig.write(0, &pattern(0, 4096, 1)).unwrap();
    let places = crate::meta::locations(super::rig::DISK_BYTES);
    let before = places.map(|at| rig.disks[1].peek(at, 4096));
    rig.stop();
    // The others were marked clean by the stop; this one missed that.
    places.iter().zip(&before).for_each(|(&at, bytes)| rig.disks[1].poke(at, bytes));
    assert_eq!(rig.superblock(1).array.events + 1, rig.superblock(0).array.events);
    rig.restart(&[], false).unwrap();
    assert_eq!(rig.last_assembly.lagging, [1]);
    assert_eq!(rig.state_of(1), MemberState::InSync);
    rig.settle("the first commit", |array| !array.commit.is_pending());
    assert_eq!(rig.superblock(1).array.events, rig.superblock(0).array.events);
}
