//! Members that became larger: the new size, crashes and losses on the way to it, and what is refused.

use super::edges::turn;
use super::rig::{DISK_BYTES, Rig, Shape, pattern};
use crate::array::{Array, GrowError, GrowTo, Growth};
use crate::dev::{ErrorKind, Tag};
use crate::layout::Level;
use crate::meta::{self, ArrayState, MemberState, Superblock};
use crate::sim::Rng;
use std::collections::HashMap;

/// Large enough for some stripes more of every shape, and not a multiple of anything.
const GROWN_BYTES: u64 = DISK_BYTES + (384 << 10) + 4096 + 512;

const SHAPES: [(Level, usize); 9] = [
    (Level::Raid0, 3),
    (Level::Raid1, 2),
    (Level::Raid1, 3),
    (Level::Raid5, 3),
    (Level::Raid5, 4),
    (Level::Raid6, 5),
    (Level::Raid10, 3),
    (Level::Raid10, 4),
    (Level::Raid10, 5),
];

fn enlarge(rig: &Rig) {
    rig.disks.iter().for_each(|disk| disk.grow(GROWN_BYTES));
}

fn grow(rig: &mut Rig, to: GrowTo) -> Growth {
    let growth = rig.array.grow(to).unwrap();
    assert_eq!(rig.size(), growth.from_bytes, "not before it is durable");
    rig.settle("the growth", |array| !array.is_growing());
    growth
}

/// What an array of this shape holds that is created over disks of the new size. Its data begins at the same place.
fn size_when_created(shape: Shape) -> u64 {
    Rig::new(Shape { disk_bytes: GROWN_BYTES, ..shape }).size()
}

fn slots_of(shape: Shape) -> Vec<usize> {
    (0..shape.slots).collect()
}

#[test]
fn a_grown_array_is_as_one_that_was_created_so_large_and_keeps_its_data() {
    for (level, slots) in SHAPES {
        for chunk in [4096, 16384, 131_072] {
            let shape = Shape { chunk, ..Shape::new(level, slots) };
            let name = format!("{level} of {slots}, chunk {chunk}");
            let mut rig = Rig::new(shape);
            let old = rig.size();
            rig.write(0, &pattern(0, old as usize, 1)).unwrap();
            enlarge(&rig);
            let growth = grow(&mut rig, GrowTo::Max);
            assert_eq!((growth.from_bytes, growth.to_bytes), (old, rig.size()), "{name}");
            assert_eq!(rig.size(), size_when_created(shape), "{name}");
            assert!(rig.saw("Grown"), "{name}");
            // Across the former end, and all of the new part but its first blocks.
            let size = rig.size();
            let tail = (size - old + 4096) as usize;
            rig.write(old - 4096, &pattern(old - 4096, tail, 2)).unwrap();
            assert!(
                rig.read(0, old as usize - 4096).unwrap() == pattern(0, old as usize - 4096, 1),
                "{name}"
            );
            assert!(rig.read(old - 4096, tail).unwrap() == pattern(old - 4096, tail, 2), "{name}");
            assert_eq!(rig.read(size, 512), Err(ErrorKind::OutOfRange), "{name}");
            rig.stop();
            rig.power_cut();
            rig.restart(&[], false).unwrap();
            assert_eq!(rig.size(), size, "{name}");
            rig.settle_background();
            rig.check_redundancy(&slots_of(shape));
            assert!(rig.read(old - 4096, tail).unwrap() == pattern(old - 4096, tail, 2), "{name}");
        }
    }
}

#[test]
fn a_size_that_was_asked_for_is_rounded_up_to_whole_stripes_and_can_be_raised_again() {
    for (level, slots) in SHAPES {
        let mut rig = Rig::new(Shape::new(level, slots));
        let old = rig.size();
        enlarge(&rig);
        let first = grow(&mut rig, GrowTo::Bytes(old + 1));
        assert!(
            first.to_bytes > old && first.to_bytes - old <= 2 * slots as u64 * 16384,
            "{level} of {slots}"
        );
        let second = grow(&mut rig, GrowTo::Max);
        assert_eq!(second.from_bytes, first.to_bytes);
        assert_eq!(rig.size(), size_when_created(Shape::new(level, slots)));
        rig.settle_background();
        rig.check_redundancy(&(0..slots).collect::<Vec<_>>());
    }
}

#[test]
fn only_the_new_part_is_resynced_and_a_stop_in_the_middle_of_it_is_gone_on_from() {
    for (level, slots) in SHAPES.into_iter().filter(|(level, _)| level.is_redundant()) {
        let shape = Shape::new(level, slots);
        let mut rig = Rig::new(shape);
        let old_end = rig.superblock(0).array.data_bytes;
        // Garbage behind the former end, unlike on every disk.
        for (i, disk) in rig.disks.iter().enumerate() {
            disk.grow(GROWN_BYTES);
            let len = (GROWN_BYTES - DISK_BYTES) as usize;
            disk.poke(DISK_BYTES, &pattern(DISK_BYTES, len, 50 + i as u64));
        }
        grow(&mut rig, GrowTo::Max);
        let resync = rig.superblock(0).array.resync;
        assert!(
            resync.is_none_or(|at| at >= old_end.saturating_sub(16384)),
            "{level}: {resync:?} of {old_end}"
        );
        rig.stop();
        rig.restart(&[], false).unwrap();
        rig.settle_background();
        rig.check_redundancy(&slots_of(shape));
        rig.settle("the commit", |array| !array.commit.is_pending());
        assert_eq!(rig.superblock(0).array.resync, None);
    }
}

#[test]
fn a_resync_under_way_goes_on_to_the_new_end() {
    for (level, slots) in SHAPES.into_iter().filter(|(level, _)| level.is_redundant()) {
        for turns in [0, 5, 20, 60, 200] {
            let shape = Shape { assume_clean: false, ..Shape::new(level, slots) };
            let mut rig = Rig::new(shape);
            turn(&mut rig, turns, &mut Vec::new());
            enlarge(&rig);
            grow(&mut rig, GrowTo::Max);
            rig.settle_background();
            rig.check_redundancy(&slots_of(shape));
            assert!(rig.saw("ResyncFinished"));
        }
    }
}

/// What an array has been asked to write: acknowledged with FUA or not (yet).
struct Load {
    rng: Rng,
    next: u64,
    sent: HashMap<Tag, u64>,
    acknowledged: Vec<u64>,
}

const BASE_BYTES: usize = 65536;

impl Load {
    fn new(seed: u64) -> Load {
        let (sent, acknowledged) = (HashMap::new(), Vec::new());
        Load { rng: Rng::new(seed), next: BASE_BYTES as u64, sent, acknowledged }
    }

    /// A few writes, each to a place of its own, and some turns.
    fn step(&mut self, rig: &mut Rig) {
        if self.sent.len() < 4 {
            let at = self.next;
            self.next += 512 * (8 + self.rng.below(3));
            let op = rig.write_op(at, &pattern(at, 4096, at), true);
            self.sent.insert(rig.submit(op), at);
        }
        let mut done = Vec::new();
        turn(rig, 1, &mut done);
        for completion in done {
            let at = self.sent.remove(&completion.tag).unwrap();
            if completion.result.is_ok() {
                self.acknowledged.push(at);
            }
        }
    }

    fn check(&self, rig: &mut Rig, name: &str) {
        assert!(rig.read(0, BASE_BYTES).unwrap() == pattern(0, BASE_BYTES, 9), "{name}: what was flushed");
        for &at in &self.acknowledged {
            assert!(rig.read(at, 4096).unwrap() == pattern(at, 4096, at), "{name}: acknowledged at {at}");
        }
    }
}

fn loaded_rig(shape: Shape) -> (Rig, Load) {
    let mut rig = Rig::new(shape);
    rig.write(0, &pattern(0, BASE_BYTES, 9)).unwrap();
    rig.flush().unwrap();
    if shape.seed.is_multiple_of(2) {
        // One superblock more: now the last one is at the end of the devices, or was.
        rig.settle("the clean mark", |array| {
            array.state() == ArrayState::Clean && !array.commit.is_pending()
        });
    }
    enlarge(&rig);
    (rig, Load::new(shape.seed))
}

/// The power goes after the n-th turn, for n over the whole growth: each time the array comes up with the old size
/// or the new one, with everything that was acknowledged, and can be grown (again).
#[test]
fn a_crash_at_any_moment_of_a_growth_under_load_leaves_the_old_size_or_the_new_one_and_all_data() {
    for (level, slots) in SHAPES {
        let shape = Shape::new(level, slots);
        let new = size_when_created(shape);
        let (mut olds, mut news) = (0, 0);
        for crash_at in 0..90 {
            let name = format!("{level} of {slots}, crash after turn {crash_at}");
            let (mut rig, mut load) = loaded_rig(Shape { seed: crash_at + 1, ..shape });
            let old = rig.size();
            rig.array.grow(GrowTo::Max).unwrap();
            (0..crash_at).for_each(|_| load.step(&mut rig));
            let was_new = rig.size() == new;
            rig.power_cut();
            rig.restart(&[], false).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(rig.last_assembly.left_out.is_empty() && rig.last_assembly.lost.is_empty(), "{name}");
            let size = rig.size();
            assert!(size == new || (size == old && !was_new), "{name}: {size} of {old} or {new}");
            (olds, news) = (olds + usize::from(size == old), news + usize::from(size == new));
            load.check(&mut rig, &name);
            if size == old {
                grow(&mut rig, GrowTo::Max);
                assert_eq!(rig.size(), new, "{name}");
            }
            rig.write(new - 8192, &pattern(new - 8192, 8192, 3)).unwrap();
            load.check(&mut rig, &name);
            if level.is_redundant() {
                rig.settle_background();
                rig.check_redundancy(&slots_of(shape));
            }
            assert!(rig.read(new - 8192, 8192).unwrap() == pattern(new - 8192, 8192, 3), "{name}");
        }
        assert!(olds > 2 && news > 2, "{level}: {olds} old, {news} new");
    }
}

/// A member dies at its n-th operation: the growth is given up, or done without it; nothing is lost.
#[test]
fn a_member_lost_at_any_moment_of_a_growth_costs_the_member_only() {
    for (level, slots) in SHAPES.into_iter().filter(|(level, _)| level.is_redundant()) {
        let shape = Shape::new(level, slots);
        let new = size_when_created(shape);
        let (mut olds, mut news) = (0, 0);
        for step in 0..40 {
            let name = format!("{level} of {slots}, a member lost after {step}");
            let (mut rig, mut load) = loaded_rig(Shape { seed: step + 1, ..shape });
            let old = rig.size();
            rig.disks[step as usize % slots].fail_after(step);
            rig.array.grow(GrowTo::Max).unwrap();
            while rig.array.is_growing() || load.acknowledged.len() < 12 {
                load.step(&mut rig);
            }
            turn(&mut rig, 50, &mut Vec::new());
            let size = rig.size();
            assert!(
                size == new || (size == old && rig.saw("GrowFailed")),
                "{name}: {size}, {:?}",
                rig.events
            );
            (olds, news) = (olds + usize::from(size == old), news + usize::from(size == new));
            load.check(&mut rig, &name);
            rig.write(size - 8192, &pattern(size - 8192, 8192, 3)).unwrap();
            rig.flush().unwrap();
            rig.stop();
            rig.power_cut();
            rig.restart(&[step as usize % slots], false).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(rig.size(), size, "{name}");
            load.check(&mut rig, &name);
            assert!(rig.read(size - 8192, 8192).unwrap() == pattern(size - 8192, 8192, 3), "{name}");
        }
        assert!(olds > 0 && news > 0, "{level} of {slots}: {olds} old, {news} new");
    }
}

/// A client may write what it likes behind the former end, also the superblocks that stood there.
#[test]
fn data_at_a_former_end_is_never_taken_for_a_superblock() {
    let mut rig = Rig::new(Shape::new(Level::Raid1, 2));
    rig.write(0, &pattern(0, 4096, 1)).unwrap();
    rig.stop();
    let [_, former] = meta::locations(DISK_BYTES);
    let forged: Vec<Vec<u8>> = (0..2)
        .map(|disk| {
            let mut superblock: Superblock = rig.superblock(disk);
            superblock.own.sequence += 1000;
            superblock.array.events += 1000;
            superblock.array.clean = false;
            superblock.encode().to_vec()
        })
        .collect();
    rig.restart(&[], false).unwrap();
    enlarge(&rig);
    grow(&mut rig, GrowTo::Max);
    let at = former - rig.superblock(0).array.data_offset;
    assert!(at + 4096 <= rig.size(), "the former end is data now");
    for forged in forged {
        rig.write(at, &forged).unwrap();
        rig.stop();
        rig.restart(&[], false).unwrap();
        assert!(rig.last_assembly.array.clean);
        assert!(rig.read(at, 4096).unwrap() == forged);
    }
}

#[test]
fn growth_that_cannot_be_is_refused_with_the_device_that_is_in_the_way() {
    let mut rig = Rig::new(Shape::new(Level::Raid5, 3));
    let size = rig.size();
    let refused = |rig: &mut Rig, to| rig.array.grow(to).unwrap_err();
    assert!(
        matches!(refused(&mut rig, GrowTo::Max), GrowError::NoRoom { devices, .. } if devices.len() == 3)
    );
    [0, 2].iter().for_each(|&disk: &usize| rig.disks[disk].grow(GROWN_BYTES));
    let no_room = refused(&mut rig, GrowTo::Max);
    assert!(
        no_room.to_string().contains("disk1 is no larger than what is used of it; enlarge it first"),
        "{no_room}"
    );
    let small = refused(&mut rig, GrowTo::Bytes(size + 1));
    assert!(matches!(&small, GrowError::MemberTooSmall { device, .. } if device == "disk1"), "{small}");
    assert!(matches!(refused(&mut rig, GrowTo::Bytes(u64::MAX)), GrowError::MemberTooSmall { .. }));
    assert!(matches!(refused(&mut rig, GrowTo::Bytes(size)), GrowError::NotLarger { .. }));
    let spare = rig.new_disk();
    rig.add(spare);
    rig.disks[1].grow(GROWN_BYTES);
    let spare_small = refused(&mut rig, GrowTo::Max);
    assert!(
        matches!(&spare_small, GrowError::SpareTooSmall { device, .. } if *device == format!("disk{spare}"))
    );
    rig.disks[spare].grow(GROWN_BYTES);
    rig.array.grow(GrowTo::Max).unwrap();
    assert!(matches!(refused(&mut rig, GrowTo::Max), GrowError::UnderWay { .. }));
    rig.settle("the growth", |array| !array.is_growing());
    assert!(rig.size() > size);
    rig.array.fail("disk1").unwrap();
    assert!(matches!(refused(&mut rig, GrowTo::Max), GrowError::Degraded { .. }));
    rig.settle("the rebuild", |array| array.status().members[1].state == MemberState::InSync);
    rig.check_redundancy(&[0, spare, 2]);
    rig.stop();
    assert!(matches!(refused(&mut rig, GrowTo::Max), GrowError::NotServing { .. }));
}

#[test]
fn a_spare_that_is_added_while_the_array_grows_must_fit_the_new_size() {
    let mut rig = Rig::new(Shape::new(Level::Raid1, 2));
    enlarge(&rig);
    rig.array.grow(GrowTo::Max).unwrap();
    let spare = rig.new_disk();
    let device = Box::new(rig.disks[spare].device());
    assert!(rig.array.add("small".into(), device).is_err());
    rig.settle("the growth", |array| !array.is_growing());
}

#[test]
fn a_stop_ends_a_growth_one_way_or_the_other() {
    for turns in 0..25 {
        let mut rig = Rig::new(Shape::new(Level::Raid5, 3));
        rig.write(0, &pattern(0, 65536, 1)).unwrap();
        enlarge(&rig);
        rig.array.grow(GrowTo::Max).unwrap();
        turn(&mut rig, turns, &mut Vec::new());
        rig.array.stop();
        rig.settle("the stop", Array::is_stopped);
        rig.power_cut();
        let size = rig.size();
        rig.restart(&[], false).unwrap();
        assert_eq!(rig.size(), size, "stopped after {turns} turns");
        assert!(rig.last_assembly.array.clean && !rig.array.is_growing());
        assert!(rig.read(0, 65536).unwrap() == pattern(0, 65536, 1));
    }
}

/// The devices grew while nothing ran, right after a crash: what the superblocks said last is at their former ends.
#[test]
fn members_that_grew_while_nothing_ran_are_believed_in_what_they_said_last() {
    for seed in 1..30 {
        let mut rig = Rig::new(Shape { seed, ..Shape::new(Level::Raid1, 2) });
        rig.write(0, &pattern(0, 4096, 1)).unwrap();
        rig.array.fail("disk1").unwrap();
        rig.write(0, &pattern(0, 4096, 2)).unwrap();
        rig.flush().unwrap();
        turn(&mut rig, seed as usize, &mut Vec::new());
        rig.power_cut();
        enlarge(&rig);
        rig.restart(&[], true).unwrap();
        assert!(rig.read(0, 4096).unwrap() == pattern(0, 4096, 2), "seed {seed}");
        assert_eq!(rig.last_assembly.lost.len(), 1, "seed {seed}");
    }
}
