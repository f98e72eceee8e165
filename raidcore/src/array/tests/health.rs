//! What the array says of its own health, in the states it goes through.

use super::rig::{LARGE_DISK_BYTES, Rig, Shape};
use crate::array::Health::{self, Degraded, Redundant, Unreadable};
use crate::dev::ErrorKind;
use crate::layout::Level;
use crate::meta::MemberState;

fn runs(rig: &Rig) -> Vec<(u64, Health)> {
    rig.array.health().runs(0..u64::MAX).collect()
}

#[test]
fn a_whole_array_is_redundant_one_without_redundancy_never() {
    for (level, health) in [
        (Level::Raid0, Degraded),
        (Level::Raid1, Redundant),
        (Level::Raid5, Redundant),
        (Level::Raid6, Redundant),
        (Level::Raid10, Redundant),
    ] {
        let rig = Rig::new(Shape::new(level, 4));
        assert_eq!(runs(&rig), [(rig.size(), health)], "{level}");
    }
}

#[test]
fn a_lost_member_degrades_what_it_held_and_a_rebuild_makes_it_whole_from_the_start_on() {
    for level in [Level::Raid5, Level::Raid10, Level::Raid1] {
        let mut rig = Rig::new(Shape { disk_bytes: LARGE_DISK_BYTES, ..Shape::new(level, 4) });
        rig.array.fail("disk1").unwrap();
        let chunk = 16384;
        let lost = match level {
            Level::Raid5 => vec![(rig.size(), Degraded)],
            // Chunks 0, 2, 4... stand on disks 0 and 1.
            Level::Raid10 => (0..rig.size() / chunk)
                .map(|at| (chunk, if at % 2 == 0 { Degraded } else { Redundant }))
                .collect(),
            // Three copies are left.
            _ => vec![(rig.size(), Redundant)],
        };
        assert_eq!(runs(&rig), lost, "{level}");
        let spare = rig.new_disk();
        rig.add(spare);
        let mut half_way = 0;
        while rig.state_of(1) != MemberState::InSync {
            let mut turns = 0;
            rig.settle("a few turns of the rebuild", |_| {
                turns += 1;
                turns > 3
            });
            let done = rig.array.status().action.map_or(0, |action| action.done_bytes);
            let map = rig.array.health();
            assert!((0..done).step_by(4096).all(|at| map.at(at) == Redundant), "{level} at {done}");
            half_way += usize::from(done > 0 && runs(&rig).iter().any(|(_, health)| *health == Degraded));
        }
        assert!(half_way > 0 || level == Level::Raid1, "{level}: the rebuild was never seen half way");
        assert_eq!(runs(&rig), [(rig.size(), Redundant)], "{level}");
    }
}

#[test]
fn raid6_without_one_member_is_redundant_and_without_two_degraded() {
    let mut rig = Rig::new(Shape::new(Level::Raid6, 5));
    for (disk, health) in [("disk1", Redundant), ("disk3", Degraded)] {
        rig.array.fail(disk).unwrap();
        assert_eq!(runs(&rig), [(rig.size(), health)], "without {disk}");
    }
}

#[test]
fn after_an_unclean_stop_nothing_counts_as_redundant_before_the_resync_has_been_there() {
    for level in [Level::Raid1, Level::Raid5, Level::Raid6, Level::Raid10] {
        let mut rig = Rig::new(Shape::new(level, 4));
        rig.write(0, &[7; 4096]).unwrap();
        rig.power_cut();
        rig.restart(&[], false).unwrap();
        assert_eq!(runs(&rig), [(rig.size(), Degraded)], "{level}");
        rig.settle_background();
        assert_eq!(runs(&rig), [(rig.size(), Redundant)], "{level}");
        // What was never written to a new array needs no redundancy.
        let fresh = Rig::new(Shape { assume_clean: false, ..Shape::new(level, 4) });
        assert_eq!(runs(&fresh), [(fresh.size(), Redundant)], "{level}");
    }
}

#[test]
fn a_failed_array_tells_what_can_still_be_read_from_what_cannot() {
    for (level, gone) in [(Level::Raid0, vec![1]), (Level::Raid5, vec![1, 2]), (Level::Raid6, vec![0, 1, 2])]
    {
        let mut rig = Rig::new(Shape::new(level, 4));
        // Each loss is noticed by the reads.
        for disk in gone {
            rig.disks[disk].fail();
            for at in (0..rig.size()).step_by(16384) {
                let read = rig.read(at, 4096);
                assert!(read.is_ok() || read.is_err_and(|kind| kind != ErrorKind::Misaligned));
            }
        }
        let map = rig.array.health();
        let mut seen = [0, 0];
        for at in (0..rig.size()).step_by(16384) {
            let readable = rig.read(at, 4096).is_ok();
            assert_eq!(map.at(at), if readable { Degraded } else { Unreadable }, "{level} at {at}");
            seen[usize::from(readable)] += 1;
        }
        assert!(seen[0] > 0 && seen[1] > 0, "{level}: {seen:?}");
    }
}
