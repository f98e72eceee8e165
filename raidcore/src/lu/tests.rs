//! Any byte range, against a `Vec<u8>`, over a disk that answers in any order.

use super::*;
use crate::buf::{SlabConfig, ViewList};
use crate::dev::{BlockSize, Checked};
use crate::sim::{Device, Disk, DiskConfig, Latency, Rng, run_until};
use crate::time::Clock;
use std::time::Duration;

const SIZE: u64 = 256 << 10;

struct Rig {
    lu: Lu<Checked<Device>>,
    clock: Clock,
    slab: Slab,
    next: u64,
}

impl Rig {
    fn new(block: BlockSize, seed: u64, slab: &SlabConfig) -> Rig {
        let clock = Clock::virtual_at(Time::from_ns(1));
        let us = Duration::from_micros;
        let latency = Latency { min: us(1), max: us(500) };
        let disk =
            Disk::new(DiskConfig { latency, ..DiskConfig::quiet(SIZE, block) }.with_seed(seed), &clock);
        let slab = Slab::new(slab).unwrap();
        Rig { lu: Lu::new(Checked::new(disk.device()), &slab), clock, slab, next: 0 }
    }

    fn submit(&mut self, op: Op) -> Tag {
        self.next += 1;
        let deadline = self.clock.now() + Duration::from_secs(100);
        self.lu.submit(Request { tag: Tag(self.next), op, deadline });
        Tag(self.next)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Tag {
        let mut buf = self.slab.alloc(bytes.len()).unwrap();
        buf.copy_from_slice(bytes);
        self.submit(Op::Write { offset, data: ViewList::from_iter([buf.freeze()]), fua: false })
    }

    fn finish(&mut self, count: usize) -> Vec<Completion> {
        let mut done = Vec::new();
        run_until(&self.clock, &mut self.lu, &mut done, |_, done| done.len() >= count).unwrap();
        done.sort_by_key(|completion| completion.tag);
        assert_eq!(done.len(), count);
        done
    }

    fn read(&mut self, offset: u64, len: usize) -> Vec<u8> {
        let bufs = self.slab.alloc_list(len).unwrap();
        self.submit(Op::Read { offset, bufs });
        let completion = self.finish(1).remove(0);
        completion.result.unwrap();
        completion.bufs.iter().flat_map(|buf| buf.to_vec()).collect()
    }
}

#[test]
fn any_byte_range_reads_and_writes_as_a_vec_would() {
    for block in [BlockSize::B512, BlockSize::B4096] {
        for seed in 0..30 {
            let mut rig = Rig::new(block, seed, &SlabConfig::small());
            let mut rng = Rng::new(seed);
            let mut model = rig.read(0, SIZE as usize);
            for round in 0..30 {
                // Ranges that touch each other's blocks but not each other's bytes, all in flight together.
                let mut at = rng.below(SIZE / 2);
                let mut tags = 0;
                while tags < 8 {
                    let most = if rng.chance(0.2) { 20_000 } else { 700 };
                    let len = 1 + rng.below(most);
                    let end = (at + len).min(SIZE);
                    if at >= end {
                        break;
                    }
                    let target = &mut model[at as usize..end as usize];
                    if rng.chance(0.2) {
                        target.fill(0);
                        rig.submit(Op::WriteZeroes { offset: at, len: end - at, fua: false, unmap: true });
                    } else {
                        rng.fill(target);
                        let bytes = target.to_vec();
                        rig.write(at, &bytes);
                    }
                    tags += 1;
                    at = end + if rng.chance(0.5) { 0 } else { rng.below(1000) };
                }
                rig.finish(tags).iter().for_each(|completion| completion.result.unwrap());
                let from = rng.below(SIZE - 1);
                let len = 1 + rng.below((SIZE - from).min(30_000));
                assert!(
                    rig.read(from, len as usize) == model[from as usize..(from + len) as usize],
                    "{seed} {round}"
                );
            }
            assert!(rig.read(0, SIZE as usize) == model, "{block:?} seed {seed}");
            assert_eq!(rig.slab.usage().used_bytes, 0);
        }
    }
}

#[test]
fn writes_that_wait_for_memory_are_done_when_some_comes_back() {
    let mut rig = Rig::new(BlockSize::B4096, 3, &SlabConfig::of(&[(4096, 12)]));
    // Each write holds one block of its own and needs two more to be patched; together they want more than is.
    let views: Vec<_> = (0..8u8)
        .map(|i| {
            let mut buf = rig.slab.alloc(100).unwrap();
            buf.fill(i + 1);
            buf.freeze()
        })
        .collect();
    for (i, view) in views.into_iter().enumerate() {
        rig.submit(Op::Write { offset: i as u64 * 8192 + 5, data: ViewList::from_iter([view]), fua: false });
    }
    rig.finish(8).iter().for_each(|completion| completion.result.unwrap());
    (0..8).for_each(|i| assert_eq!(rig.read(i * 8192 + 5, 100), [i as u8 + 1; 100]));
}

#[test]
fn what_no_device_should_see_is_refused_here() {
    let mut rig = Rig::new(BlockSize::B512, 1, &SlabConfig::small());
    let mut refused = |op| {
        rig.submit(op);
        rig.finish(1).remove(0).result.unwrap_err().kind
    };
    assert_eq!(refused(Op::Discard { offset: SIZE, len: 1 }), ErrorKind::OutOfRange);
    assert_eq!(refused(Op::Discard { offset: u64::MAX, len: 2 }), ErrorKind::OutOfRange);
    assert_eq!(refused(Op::Discard { offset: 0, len: 0 }), ErrorKind::Misaligned);
    assert_eq!(
        refused(Op::Read {
            offset: SIZE - 10,
            bufs: Slab::new(&SlabConfig::small()).unwrap().alloc_list(11).unwrap()
        }),
        ErrorKind::OutOfRange
    );
}

#[test]
fn advice_about_part_of_a_block_does_nothing() {
    let mut rig = Rig::new(BlockSize::B4096, 1, &SlabConfig::small());
    rig.write(0, &[7; 8192]);
    rig.finish(1);
    rig.submit(Op::Discard { offset: 1, len: 4095 });
    rig.finish(1);
    assert!(rig.read(0, 8192).iter().all(|&byte| byte == 7));
}
