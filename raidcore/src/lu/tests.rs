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
        Rig { lu: Lu::new(Checked::new(disk.device()), &slab, &clock), clock, slab, next: 0 }
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

/// A request that found no memory used to wait for an answer from below, of which there was none to come: it
/// hung for ever, while the LU asked to be woken at once, again and again.
#[test]
fn a_request_that_waits_for_memory_starts_when_some_comes_back_from_elsewhere() {
    let mut rig = Rig::new(BlockSize::B4096, 1, &SlabConfig::of(&[(4096, 4)]));
    let bufs = rig.slab.alloc_list(512).unwrap();
    let held: Vec<_> = (0..3).map(|_| rig.slab.alloc(4096).unwrap()).collect();
    rig.submit(Op::Read { offset: 512, bufs });
    let mut done = Vec::new();
    for _ in 0..10 {
        rig.lu.reap(&mut done);
        assert!(rig.lu.wake_at().unwrap() > rig.clock.now(), "it spins");
        rig.clock.advance_to(rig.lu.wake_at().unwrap());
    }
    assert!(done.is_empty());
    drop(held);
    assert_eq!(rig.finish(1)[0].result, Ok(()));
}

#[test]
fn whatever_waits_for_memory_or_for_another_write_is_answered_by_its_deadline() {
    let mut rig = Rig::new(BlockSize::B4096, 1, &SlabConfig::of(&[(4096, 6)]));
    let views: Vec<_> = (0..3).map(|_| rig.slab.alloc(100).unwrap().freeze()).collect();
    let bufs = rig.slab.alloc_list(512).unwrap();
    let held: Vec<_> = (0..2).map(|_| rig.slab.alloc(4096).unwrap()).collect();
    rig.submit(Op::Read { offset: 512, bufs });
    for view in views {
        rig.submit(Op::Write { offset: 5, data: ViewList::from_iter([view]), fua: false });
    }
    let canceled = rig.submit(Op::WriteZeroes { offset: 7, len: 1, fua: false, unmap: false });
    rig.lu.cancel(canceled);
    let done = rig.finish(5);
    let kinds: Vec<_> = done.iter().map(|completion| completion.result.unwrap_err().kind).collect();
    use ErrorKind::{Canceled, Timeout};
    assert_eq!(kinds, [Timeout, Timeout, Timeout, Timeout, Canceled]);
    assert_eq!(done[0].bufs.len(), 1, "the read's memory comes back");
    drop((held, done));
    assert_eq!(rig.slab.usage().used_bytes, 0);
    rig.write(5, &[7; 100]);
    assert_eq!(rig.finish(1)[0].result, Ok(()), "no lock is left behind");
}

/// An unaligned write used to need memory for the whole request again, beside its payload: a large one waited
/// for ever for what its own client held.
#[test]
fn an_unaligned_request_larger_than_the_free_memory_is_done_in_pieces() {
    for free in [1, 2, 5] {
        let mut rig = Rig::new(BlockSize::B4096, 1, &SlabConfig::of(&[(4096, 10 + free)]));
        let data: ViewList = (0..10u8)
            .map(|i| {
                let mut buf = rig.slab.alloc(4096).unwrap();
                buf.fill(i + 1);
                buf.freeze()
            })
            .collect();
        rig.submit(Op::Write { offset: 512, data, fua: false });
        assert_eq!(rig.finish(1)[0].result, Ok(()));
        let bytes = rig.read(512, 36_000);
        assert!(bytes.iter().enumerate().all(|(i, &byte)| byte as usize == i / 4096 + 1), "{free} free");
    }
}

/// What a device below sees must be whole blocks of aligned memory, segment by segment: a file opened without
/// the page cache takes nothing else.
#[test]
fn every_segment_of_an_unaligned_write_is_whole_blocks_of_aligned_memory() {
    struct Strict<D>(D);
    impl<D: BlockDev> BlockDev for Strict<D> {
        fn geometry(&self) -> Geometry {
            self.0.geometry()
        }
        fn submit(&mut self, request: Request) {
            let whole = |bytes: &[u8]| (bytes.as_ptr() as usize | bytes.len()).is_multiple_of(512);
            match &request.op {
                Op::Write { data, .. } => assert!(data.iter().all(|view| whole(view)), "{data:?}"),
                Op::Read { bufs, .. } => assert!(bufs.iter().all(|buf| whole(buf)), "{bufs:?}"),
                _ => {}
            }
            self.0.submit(request);
        }
        fn reap(&mut self, done: &mut Vec<Completion>) {
            self.0.reap(done);
        }
        fn cancel(&mut self, tag: Tag) {
            self.0.cancel(tag);
        }
        fn wake_at(&self) -> Option<Time> {
            self.0.wake_at()
        }
    }
    let size = 4 << 20;
    for block in [BlockSize::B512, BlockSize::B4096] {
        let clock = Clock::virtual_at(Time::from_ns(1));
        let disk = Disk::new(DiskConfig::quiet(size, block), &clock);
        let slab = Slab::new(&SlabConfig::small()).unwrap();
        let mut lu = Lu::new(Strict(Checked::new(disk.device())), &slab, &clock);
        let mut model = vec![0; size as usize];
        let finish = |lu: &mut Lu<_>, op| {
            lu.submit(Request { tag: Tag(1), op, deadline: Time::NEVER });
            let mut done = Vec::new();
            run_until(&clock, lu, &mut done, |_, done| !done.is_empty()).unwrap();
            done[0].result.unwrap();
            done.remove(0).bufs
        };
        let ranges = [(100_000, 300_001), (1, 2_500_000), (4095, 2), ((1 << 20) - 1, 2), (511, 1)];
        for (round, (offset, len)) in ranges.into_iter().enumerate() {
            let mut bufs = slab.alloc_list(len).unwrap();
            bufs.iter_mut().for_each(|buf| buf.fill(round as u8 + 1));
            model[offset..offset + len].fill(round as u8 + 1);
            let data = bufs.into_iter().map(|buf| buf.freeze()).collect();
            finish(&mut lu, Op::Write { offset: offset as u64, data, fua: true });
            let read = |offset, len| Op::Read { offset, bufs: slab.alloc_list(len).unwrap() };
            let bufs = finish(&mut lu, read(3, 2_600_001));
            let bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.to_vec()).collect();
            assert!(bytes == model[3..][..2_600_001], "{block:?} {offset}+{len}");
        }
    }
}

/// Overlapping writes and zeroings in flight together, done in any order: whichever came last, what is then known to
/// be zeroes is. Of those that never met, each leaves what it says.
#[test]
fn of_writes_and_zeroings_in_flight_together_no_write_is_taken_for_zeroes() {
    use crate::allocation::GRANULE_BYTES;
    let size = 16 * GRANULE_BYTES;
    // All whole blocks: what patches a block waits for the others.
    let (mut met, mut kept) = (0, 0);
    for seed in 0..60 {
        let clock = Clock::virtual_at(Time::from_ns(1));
        let latency = Latency { min: Duration::from_micros(1), max: Duration::from_micros(500) };
        let config = DiskConfig { latency, ..DiskConfig::quiet(size, BlockSize::B512) }.with_seed(seed);
        let (disk, slab) = (Disk::new(config, &clock), Slab::new(&SlabConfig::small()).unwrap());
        let mut lu = Lu::new(Checked::new(disk.device()), &slab, &clock);
        let mut rng = Rng::new(seed);
        for tag in 0..150 {
            let offset = rng.below(size / 512) * 512;
            let len = ((1 + rng.below(500)) * 512).min(size - offset);
            let op = if rng.chance(0.6) {
                Op::WriteZeroes { offset, len, fua: false, unmap: true }
            } else {
                let len = len.min(9 * 512) as usize;
                let mut buf = slab.alloc(len).unwrap();
                buf.fill(tag as u8 | 1);
                Op::Write { offset, data: ViewList::from_iter([buf.freeze()]), fua: false }
            };
            lu.submit(Request { tag: Tag(tag), op, deadline: Time::NEVER });
            // Some of them end before the next is sent.
            let stay = rng.index(5);
            let in_flight = |lu: &Lu<_>| lu.requests.len() + lu.waiting.len();
            run_until(&clock, &mut lu, &mut Vec::new(), |lu, _| in_flight(lu) <= stay).unwrap();
            met += usize::from(stay > 0);
            if stay == 0 {
                let mut at = 0;
                for (len, zero) in lu.zeroes().runs(0..size) {
                    let is_zero = disk.peek(at, len).iter().all(|&byte| byte == 0);
                    assert!(
                        !zero || is_zero,
                        "seed {seed}, request {tag}: data at {at} is said to be zeroes"
                    );
                    kept += usize::from(zero);
                    at += len;
                }
            }
        }
    }
    assert!(met > 1000 && kept > 1000, "{met} {kept}");
}
