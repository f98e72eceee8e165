//! What is known to be zeroes reads as zeroes: from the start on, in every state, whatever was written meanwhile.

use super::rig::{Rig, Shape, pattern};
use crate::allocation::{GRANULE_BYTES, Holes};
use crate::array::Array;
use crate::buf::Slab;
use crate::dev::{BlockDev, Op, Request, Tag};
use crate::layout::{Level, Slot};
use crate::lu::Lu;
use crate::meta::{self, MemberState};
use crate::sim::{Disk, Rng, run_until};
use crate::time::{Clock, Time};

/// Room for two MiB of data.
const MEMBER_BYTES: u64 = (3 << 20) + meta::TAIL_BYTES;

/// A logical unit over an array that was assembled, with what its members' holes tell.
struct Unit {
    lu: Lu<Array>,
    disks: Vec<Disk>,
    clock: Clock,
    slab: Slab,
}

impl Unit {
    /// What a file system would call holes are here the stretches of zeroes.
    fn over(rig: Rig) -> Unit {
        let holes_of = |slot: Slot| {
            let disk = &rig.disks[slot.index()];
            let bytes = disk.peek(0, MEMBER_BYTES);
            let is_hole = |block: &[u8]| block.iter().all(|&byte| byte == 0);
            let blocks = bytes.chunks(4096).enumerate().filter(|(_, block)| is_hole(block));
            blocks.map(|(at, _)| at as u64 * 4096..(at as u64 + 1) * 4096).collect::<Holes>()
        };
        let map = rig.array.zero_map(holes_of);
        let Rig { array, disks, clock, slab, .. } = rig;
        Unit { lu: Lu::new(array, &slab, &clock).with_zero_map(map), disks, clock, slab }
    }

    fn run(&mut self, ops: Vec<Op>) -> Vec<Vec<u8>> {
        let count = ops.len();
        for (tag, op) in ops.into_iter().enumerate() {
            self.lu.submit(Request { tag: Tag(tag as u64), op, deadline: Time::NEVER });
        }
        let mut done = Vec::new();
        run_until(&self.clock, &mut self.lu, &mut done, |_, done| done.len() == count).unwrap();
        done.sort_by_key(|completion| completion.tag);
        let bytes = |completion: crate::dev::Completion| {
            completion.result.unwrap();
            completion.bufs.iter().flat_map(|buf| buf.to_vec()).collect()
        };
        done.into_iter().map(bytes).collect()
    }

    /// Runs until the array is as wanted, with nothing in flight.
    fn settle(&mut self, mut wanted: impl FnMut(&Array) -> bool) {
        run_until(&self.clock, &mut self.lu, &mut Vec::new(), |lu, _| wanted(lu.dev())).unwrap();
    }

    fn size(&self) -> u64 {
        self.lu.geometry().size_bytes
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Op {
        let mut data = crate::buf::ViewList::new();
        let mut rest = bytes;
        for mut buf in self.slab.alloc_list(bytes.len()).unwrap() {
            let (now, later) = rest.split_at(buf.len());
            buf.copy_from_slice(now);
            (rest, data) = (later, data.into_iter().chain([buf.freeze()]).collect());
        }
        Op::Write { offset, data, fua: false }
    }

    /// Reads all that is said to be zeroes; how many bytes that is.
    fn check(&mut self, what: &str) -> u64 {
        let runs: Vec<(u64, bool)> = self.lu.zeroes().runs(0..self.size()).collect();
        let (mut at, mut zeroes) = (0, 0);
        for (len, zero) in runs {
            for from in (at..at + len).step_by(256 << 10).filter(|_| zero) {
                let bufs = self.slab.alloc_list((at + len - from).min(256 << 10) as usize).unwrap();
                let bytes = self.run(vec![Op::Read { offset: from, bufs }]).remove(0);
                assert!(bytes.iter().all(|&byte| byte == 0), "{what}: not zeroes at {from}");
                zeroes += bytes.len() as u64;
            }
            at += len;
        }
        assert_eq!(at, self.size());
        zeroes
    }

    /// A few writes, zeroings and discards that may overlap, in flight together.
    fn change(&mut self, rng: &mut Rng) {
        let ops = (0..1 + rng.index(6)).map(|_| {
            let offset = rng.below(self.size() - 1);
            let most = if rng.chance(0.5) { 300 << 10 } else { 9000 };
            let len = (1 + rng.below(most)).min(self.size() - offset);
            match rng.below(6) {
                0 => Op::Discard { offset, len },
                1 | 2 => Op::WriteZeroes { offset, len, fua: false, unmap: rng.chance(0.8) },
                _ => self.write(offset, &pattern(offset, len as usize, 1 + rng.below(99))),
            }
        });
        let ops = ops.collect();
        self.run(ops);
    }
}

const SHAPES: [(Level, usize); 8] = [
    (Level::Raid0, 3),
    (Level::Raid1, 3),
    (Level::Raid10, 4),
    (Level::Raid10, 3),
    (Level::Raid5, 3),
    (Level::Raid5, 5),
    (Level::Raid6, 4),
    (Level::Raid6, 6),
];

fn shapes() -> impl Iterator<Item = Shape> {
    let with_chunk = |(level, slots)| {
        [4096, 16384, 131_072].map(|chunk| Shape {
            chunk,
            disk_bytes: MEMBER_BYTES,
            ..Shape::new(level, slots)
        })
    };
    SHAPES.into_iter().flat_map(with_chunk)
}

#[test]
fn a_new_array_over_holes_is_all_zeroes_and_a_write_takes_its_granule_out() {
    for shape in shapes() {
        let mut unit = Unit::over(Rig::new(shape));
        assert_eq!(unit.check("new"), unit.size(), "{shape:?}");
        let at = 5 * GRANULE_BYTES + 7;
        let op = unit.write(at, &[1; 3]);
        unit.run(vec![op]);
        let runs: Vec<_> = unit.lu.zeroes().runs(0..unit.size()).take(2).collect();
        assert_eq!(runs, [(5 * GRANULE_BYTES, true), (GRANULE_BYTES, false)]);
        unit.run(vec![Op::WriteZeroes { offset: 0, len: unit.size(), fua: false, unmap: true }]);
        assert_eq!(unit.check("zeroed"), unit.size(), "{shape:?}");
    }
}

/// Members start with data, garbage and holes; the array is healthy, in doubt, new, or without a member; then it is
/// written to, loses one and gets another. (A new array is not written to before its resync has been everywhere: what
/// was never written may change with the member that is lost.)
#[test]
fn what_is_known_to_be_zeroes_reads_as_zeroes_in_every_state() {
    let (mut zeroes, mut degraded) = (0, 0);
    for (shape, seed) in shapes().flat_map(|shape| (1..3).map(move |seed| (shape, seed))) {
        let mut rng = Rng::new(seed);
        let new = rng.chance(0.4);
        let mut rig = Rig::new(Shape { seed, assume_clean: !new, ..shape });
        let data_offset = rig.superblock(0).array.data_offset;
        if new {
            // Garbage everywhere but in some stretches, which are holes; on all members now and then.
            for _ in 0..8 {
                let at = rng.below((2 << 20) / 4096 - 128) * 4096;
                let from = rng.index(rig.disks.len());
                let to = if rng.chance(0.7) { rig.disks.len() } else { from + 1 };
                rig.disks[from..to].iter().for_each(|disk| disk.poke(data_offset + at, &[0; 512 << 10]));
            }
        } else {
            for version in 0..6 {
                let at = rng.below(rig.size() / 512 - 600) * 512;
                rig.write(at, &pattern(at, 512 * (1 + rng.index(600)), version)).unwrap();
            }
            let unclean = rng.chance(0.5);
            if unclean {
                rig.power_cut()
            } else {
                rig.stop()
            }
            let without: &[usize] =
                if !unclean && shape.level.is_redundant() && rng.chance(0.6) { &[1] } else { &[] };
            rig.restart(without, false).unwrap();
        }
        let what = format!("{shape:?} seed {seed}");
        let mut unit = Unit::over(rig);
        zeroes += unit.check(&what);
        if shape.level.is_redundant() {
            let whole = |array: &Array| {
                (0..shape.slots).all(|at| array.status().members[at].state == MemberState::InSync)
            };
            if whole(unit.lu.dev()) {
                if rng.chance(0.5) && !new {
                    unit.settle(|array| array.status().action.is_none());
                }
                if unit.lu.dev_mut().fail("disk1").is_ok() {
                    degraded += unit.check(&format!("{what} degraded"));
                }
            }
            if !whole(unit.lu.dev()) {
                if !new {
                    unit.change(&mut rng);
                }
                unit.check(&format!("{what} degraded and written"));
                let spare = Disk::new(crate::sim::DiskConfig::quiet(MEMBER_BYTES, shape.block), &unit.clock);
                unit.lu.dev_mut().add("spare".into(), Box::new(spare.device())).unwrap();
                unit.disks.push(spare);
                unit.change(&mut rng);
                unit.check(&format!("{what} while it is rebuilt"));
                unit.settle(whole);
            }
        }
        for _ in 0..4 {
            unit.change(&mut rng);
            zeroes += unit.check(&what);
        }
    }
    assert!(zeroes > 20 << 20 && degraded > 2 << 20, "{zeroes} {degraded}");
}

/// In a new array parity says nothing of what was never written: a hole on one member is no zeroes, for when that is
/// lost, something else is read. Holes on all of them are.
#[test]
fn before_the_first_resync_only_what_is_a_hole_on_all_members_is_zeroes() {
    for chunk in [65536, 131_072] {
        let shape =
            Shape { chunk, disk_bytes: MEMBER_BYTES, assume_clean: false, ..Shape::new(Level::Raid5, 4) };
        for (holes, known) in [(1..2, false), (0..4, true)] {
            let rig = Rig::new(shape);
            let data_offset = rig.superblock(0).array.data_offset;
            for (at, disk) in rig.disks.iter().enumerate() {
                let mut bytes = vec![0; MEMBER_BYTES as usize];
                if !holes.contains(&at) {
                    Rng::new(at as u64).fill(&mut bytes);
                }
                disk.poke(data_offset, &bytes[..(MEMBER_BYTES - meta::TAIL_BYTES - data_offset) as usize]);
            }
            let mut unit = Unit::over(rig);
            unit.lu.dev_mut().fail("disk1").unwrap();
            assert_eq!(unit.check("new and without a member"), if known { unit.size() } else { 0 });
        }
    }
}
