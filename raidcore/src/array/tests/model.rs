//! Random operations against a `Vec<u8>`: every level, several shapes, healthy and with each member lost.

use super::rig::{Rig, Shape, pattern};
use crate::dev::{BlockSize, Op, Tag};
use crate::layout::Level;
use crate::meta::MemberState;
use crate::sim::{DiskConfig, FaultRates, Latency, Rng};
use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

/// Operations that do not overlap, in flight together; what each does to the model.
struct Batch {
    ops: Vec<(Range<u64>, Planned)>,
}

enum Planned {
    Read,
    Write { version: u64, fua: bool },
    Zero { unmap: bool },
    Flush,
}

fn random_batch(rng: &mut Rng, size: u64, block: u64, version: &mut u64) -> Batch {
    let mut ops: Vec<(Range<u64>, Planned)> = Vec::new();
    for _ in 0..1 + rng.below(8) {
        let blocks = size / block;
        let len = 1 + match rng.below(4) {
            0 => rng.below(8),
            1 => rng.below(64),
            2 => rng.below(300),
            _ => 0,
        };
        let at = rng.below(blocks);
        let range = at * block..(at + len).min(blocks) * block;
        if ops.iter().any(|(other, _)| other.start < range.end && range.start < other.end) {
            continue;
        }
        *version += 1;
        let planned = match rng.below(10) {
            0..=2 => Planned::Read,
            3..=7 => Planned::Write { version: *version, fua: rng.chance(0.1) },
            8 => Planned::Zero { unmap: rng.chance(0.5) },
            _ => Planned::Flush,
        };
        ops.push((range, planned));
    }
    Batch { ops }
}

/// Runs a batch and holds it against the model.
fn run_batch(rig: &mut Rig, model: &mut [u8], batch: &Batch) {
    let mut tags: Vec<Tag> = Vec::new();
    for (range, planned) in &batch.ops {
        let (offset, len) = (range.start, range.end - range.start);
        let op = match planned {
            Planned::Read => rig.read_op(offset, len as usize),
            Planned::Write { version, fua } => {
                rig.write_op(offset, &pattern(offset, len as usize, *version), *fua)
            }
            Planned::Zero { unmap } => Op::WriteZeroes { offset, len, fua: false, unmap: *unmap },
            Planned::Flush => Op::Flush,
        };
        tags.push(rig.submit(op));
    }
    let done = rig.finish(&tags);
    for ((range, planned), tag) in batch.ops.iter().zip(&tags) {
        let completion = &done[tag];
        completion.result.unwrap();
        let target = &mut model[range.start as usize..range.end as usize];
        match planned {
            Planned::Read => {
                let got: Vec<u8> = completion.bufs.iter().flat_map(|buf| buf.to_vec()).collect();
                assert!(got == target, "read of {range:?} is wrong");
            }
            Planned::Write { version, .. } => {
                target.copy_from_slice(&pattern(range.start, target.len(), *version));
            }
            Planned::Zero { .. } => target.fill(0),
            Planned::Flush => {}
        }
    }
}

fn shapes() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for (level, slots) in [
        (Level::Raid0, 2),
        (Level::Raid0, 5),
        (Level::Raid1, 2),
        (Level::Raid1, 3),
        (Level::Raid10, 3),
        (Level::Raid10, 4),
        (Level::Raid5, 3),
        (Level::Raid5, 4),
        (Level::Raid5, 7),
        (Level::Raid6, 4),
        (Level::Raid6, 7),
    ] {
        for (chunk, block) in [(4096, BlockSize::B4096), (16384, BlockSize::B512), (131_072, BlockSize::B512)]
        {
            shapes.push(Shape { chunk, block, ..Shape::new(level, slots) });
        }
    }
    shapes
}

#[test]
fn random_operations_read_back_as_a_vec_would_on_every_level() {
    for (number, shape) in shapes().into_iter().enumerate() {
        for assume_clean in [true, false] {
            let shape = Shape { assume_clean, seed: number as u64 + 1, ..shape };
            let mut rig = Rig::new(shape);
            let mut rng = Rng::new(shape.seed);
            let mut model = rig.read_all();
            let mut version = 0;
            for _ in 0..60 {
                let batch = random_batch(&mut rng, rig.size(), u64::from(shape.block.bytes()), &mut version);
                run_batch(&mut rig, &mut model, &batch);
            }
            assert!(rig.read_all() == model, "{shape:?}");
            rig.stop();
            assert_eq!(rig.slab.usage().used_bytes, 0, "{shape:?} leaks memory");
            if shape.level.is_redundant() && !assume_clean {
                rig.restart(&[], false).unwrap();
                rig.settle_background();
                rig.check_redundancy(&(0..shape.slots).collect::<Vec<_>>());
                assert!(rig.read_all() == model, "{shape:?} after the resync");
            }
        }
    }
}

/// The device stops answering for good at its n-th request, for n over the whole run: data, parity, superblock.
#[test]
fn with_a_member_lost_at_every_step_of_a_run_nothing_is_lost_and_no_error_is_seen() {
    for shape in shapes().into_iter().filter(|shape| shape.level.is_redundant() && shape.chunk == 16384) {
        for step in 0..80 {
            // Each step loses another member, so that over the levels every member meets every step.
            let victim = (step as usize + shape.slots / 2) % shape.slots;
            let mut rig = Rig::new(Shape { seed: step + 1, ..shape });
            let mut rng = Rng::new(step * 7 + victim as u64);
            let mut model = rig.read(0, rig.size() as usize).unwrap();
            rig.disks[victim].fail_after(step);
            if shape.level == Level::Raid6 {
                // Another one goes a little later, or in the same moment.
                let second = (victim + 1 + step as usize % (shape.slots - 1)) % shape.slots;
                rig.disks[second].fail_after(step + step % 5);
            }
            let mut version = step * 1000;
            for _ in 0..12 {
                let batch = random_batch(&mut rng, rig.size(), 512, &mut version);
                run_batch(&mut rig, &mut model, &batch);
            }
            assert!(rig.read_all() == model, "{shape:?} without {victim} from step {step}");
        }
    }
}

#[test]
fn slow_disks_that_answer_in_any_order_change_nothing() {
    for level in [Level::Raid1, Level::Raid5, Level::Raid6, Level::Raid10] {
        for seed in 1..20 {
            let shape = Shape { assume_clean: seed % 2 == 0, seed, ..Shape::new(level, 4) };
            let us = Duration::from_micros;
            let latency = Latency { min: us(10), max: us(5000) };
            let config = DiskConfig { latency, ..DiskConfig::quiet(shape.disk_bytes, shape.block) };
            let mut rig = Rig::with_disks(shape, config);
            let mut rng = Rng::new(seed);
            let mut model = rig.read_all();
            let mut version = 0;
            for _ in 0..30 {
                let batch = random_batch(&mut rng, rig.size(), 512, &mut version);
                run_batch(&mut rig, &mut model, &batch);
            }
            assert!(rig.read_all() == model);
            rig.settle_background();
            rig.check_redundancy(&[0, 1, 2, 3]);
        }
    }
}

/// Overlapping writes in flight together: any order is right, but copies and parity must agree on one.
#[test]
fn overlapping_writes_leave_redundancy_that_matches() {
    for level in [Level::Raid1, Level::Raid5, Level::Raid6, Level::Raid10] {
        let mut rig = Rig::new(Shape::new(level, 4));
        let mut rng = Rng::new(5);
        for round in 0..40 {
            let tags: Vec<Tag> = (0..12)
                .map(|i| {
                    let offset = rng.below(64) * 512;
                    let bytes = pattern(offset, 512 * (1 + rng.index(16)), round * 100 + i);
                    let op = rig.write_op(offset, &bytes, false);
                    rig.submit(op)
                })
                .collect();
            let done = rig.finish(&tags);
            assert!(done.values().all(|completion| completion.result.is_ok()));
        }
        rig.check_redundancy(&[0, 1, 2, 3]);
    }
}

/// Blocks go bad at random on every disk, and heal when they are written. Two bad blocks in one stripe are an
/// error for whoever needs both; wrong data is never an answer, and no member is lost over it.
#[test]
fn blocks_that_go_bad_at_random_are_repaired_and_never_read_as_something_else() {
    for (level, slots) in [(Level::Raid1, 3), (Level::Raid5, 4), (Level::Raid6, 5), (Level::Raid10, 4)] {
        let (mut reads, mut errors) = (0, 0);
        for seed in 1..25 {
            let mut rig = Rig::new(Shape { seed, ..Shape::new(level, slots) });
            let mut rng = Rng::new(seed);
            let mut model = rig.read_all();
            let mut maybe: HashMap<usize, Vec<Vec<u8>>> = HashMap::new();
            let rates = FaultRates { read_error: 0.01, ..FaultRates::default() };
            rig.disks.iter().for_each(|disk| disk.set_rates(rates));
            for version in 0..200 {
                let len = 512 * (1 + rng.index(40));
                let offset = rng.below((rig.size() - len as u64) / 512) * 512;
                let range = offset as usize..offset as usize + len;
                if rng.chance(0.5) {
                    let bytes = pattern(offset, len, version);
                    let written = rig.write(offset, &bytes).is_ok();
                    for (i, block) in bytes.chunks(512).enumerate() {
                        let at = range.start + i * 512;
                        if written {
                            model[at..at + 512].copy_from_slice(block);
                            maybe.remove(&at);
                        } else {
                            // Of a write that failed, each block may be old or new.
                            maybe.entry(at).or_default().push(block.to_vec());
                        }
                    }
                } else {
                    reads += 1;
                    match rig.read(offset, len) {
                        Ok(bytes) => {
                            for (i, block) in bytes.chunks(512).enumerate() {
                                let at = range.start + i * 512;
                                let is_new =
                                    maybe.get(&at).is_some_and(|all| all.iter().any(|new| new == block));
                                assert!(
                                    is_new || block == &model[at..at + 512],
                                    "{level} seed {seed}: wrong data at {at}"
                                );
                            }
                        }
                        Err(_) => errors += 1,
                    }
                }
            }
            assert!((0..slots).all(|slot| rig.state_of(slot) == MemberState::InSync), "{level} seed {seed}");
        }
        assert!(errors * 50 < reads, "{level}: {errors} errors in {reads} reads");
    }
}
