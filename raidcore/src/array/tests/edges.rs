//! What broke at the edges: each test keeps the story of a defect.

use super::rig::{DISK_BYTES, LARGE_DISK_BYTES, Rig, Shape, pattern};
use crate::buf::ViewList;
use crate::dev::{BlockDev, Completion, ErrorKind, Geometry, Op, Request, Tag};
use crate::layout::Level;
use crate::meta::{self, ArrayState, MemberState};
use crate::sim::{DiskConfig, FaultRates, Latency};
use crate::time::Time;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// Reaps and lets time pass, at most `turns` times.
pub(super) fn turn(rig: &mut Rig, turns: usize, done: &mut Vec<Completion>) {
    for _ in 0..turns {
        let before = done.len();
        rig.array.reap(done);
        if done.len() == before
            && let Some(at) = rig.array.wake_at()
        {
            rig.clock.advance_to(at);
        }
    }
    let events = rig.array.take_events();
    rig.events.extend(events);
}

/// The error of a flush on a member that the array cannot do without was dropped.
#[test]
fn a_flush_that_failed_where_nothing_makes_up_for_it_is_an_error() {
    for level in [Level::Raid0, Level::Raid1] {
        let mut rig = Rig::new(Shape::new(level, 2));
        if level == Level::Raid1 {
            rig.array.fail("disk1").unwrap();
        }
        rig.write(0, &pattern(0, 4096, 1)).unwrap();
        rig.disks[0].set_rates(FaultRates { flush_error: 1.0, ..FaultRates::default() });
        assert!(rig.flush().is_err(), "{level}");
        rig.stop();
        assert!(rig.events.iter().any(|event| event.to_string().contains("NOT clean")), "{level}");
    }
}

/// A superblock that could not be written on the last copy counted as committed: the write was acknowledged,
/// nothing said that the other member was out, and after a power cut its stale data was read.
#[test]
fn a_superblock_that_cannot_be_written_on_the_last_copy_is_no_commit() {
    let mut rig = Rig::new(Shape::new(Level::Raid1, 2));
    rig.write(0, &pattern(0, 4096, 1)).unwrap();
    rig.flush().unwrap();
    for at in meta::locations(DISK_BYTES) {
        rig.disks[1].fail_writes(at..at + 4096);
    }
    rig.disks[0].fail();
    let acknowledged = rig.write(0, &pattern(0, 4096, 2)).is_ok() && rig.flush().is_ok();
    rig.power_cut();
    rig.disks[0].restore();
    rig.disks[1].clear_faults();
    rig.restart(&[], false).unwrap();
    assert!(!acknowledged || rig.read(0, 4096).unwrap() == pattern(0, 4096, 2));
}

/// The checkpoint of a target that failed stayed in the member table, where only a rebuilding member may have
/// one: the process died over a disk that did.
#[test]
fn a_resumed_rebuild_whose_target_fails_costs_the_target_only() {
    let mut rig = Rig::new(Shape { chunk: 4096, ..Shape::new(Level::Raid5, 3) });
    rig.array.fail("disk2").unwrap();
    let spare = rig.new_disk();
    rig.add(spare);
    rig.settle("half of the rebuild", |array| {
        array.status().action.is_some_and(|a| a.done_bytes * 2 > a.total_bytes)
    });
    rig.stop();
    rig.restart(&[], false).unwrap();
    rig.disks[spare].fail();
    rig.write(0, &pattern(0, 65536, 1)).unwrap();
    assert_eq!(rig.array.state(), ArrayState::Degraded);
}

/// Operations that waited for a commit held the memory the commit needed.
#[test]
fn operations_that_wait_for_a_commit_leave_it_the_memory_it_needs() {
    let shape = Shape { chunk: 4096, disk_bytes: LARGE_DISK_BYTES, ..Shape::new(Level::Raid5, 4) };
    let mut rig = Rig::new(shape);
    rig.write(0, &pattern(0, 512, 1)).unwrap();
    let mut buf = rig.slab.alloc(512).unwrap();
    buf.fill(7);
    let view = buf.freeze();
    let count = 1200u64;
    for i in 0..count {
        rig.submit(Op::Write { offset: i * 3 * 4096, data: ViewList::from_iter([view.clone()]), fua: false });
    }
    let mut done = Vec::new();
    rig.array.reap(&mut done);
    rig.disks[1].fail();
    turn(&mut rig, 20_000, &mut done);
    assert_eq!(done.iter().filter(|c| c.result.is_ok()).count() as u64, count);
}

/// 128 small writes to a missing column of 24 members need more scratch memory than there is, and were put back
/// together for ever.
#[test]
fn a_batch_that_needs_more_memory_than_there_is_is_done_in_parts() {
    let mut rig = Rig::new(Shape { chunk: 65536, ..Shape::new(Level::Raid5, 24) });
    rig.array.fail("disk0").unwrap();
    rig.write(1 << 20, &pattern(0, 512, 1)).unwrap();
    let tags: Vec<Tag> = (0..128)
        .map(|i| {
            let op = rig.write_op(i * 512, &pattern(i * 512, 512, 2), false);
            rig.submit(op)
        })
        .collect();
    let mut done = Vec::new();
    turn(&mut rig, 20_000, &mut done);
    assert_eq!(done.iter().filter(|c| c.result.is_ok()).count(), tags.len());
    assert!(rig.read(0, 65536).unwrap() == pattern(0, 65536, 2));
    rig.stop();
}

/// A flush that began during one walk ended during the next, and the superblocks credited the new target with
/// the progress of the old one.
#[test]
fn progress_of_one_rebuild_target_is_not_credited_to_the_next() {
    let us = Duration::from_micros;
    let shape = Shape { chunk: 4096, disk_bytes: LARGE_DISK_BYTES, ..Shape::new(Level::Raid5, 3) };
    let latency = Latency { min: us(50), max: us(5000) };
    let config = DiskConfig { latency, ..DiskConfig::quiet(shape.disk_bytes, shape.block) };
    for seed in 1..8 {
        let mut rig = Rig::with_disks(Shape { seed, ..shape }, config.clone());
        rig.array.options.clean_delay = Duration::ZERO;
        rig.array.fail("disk2").unwrap();
        let (first, second) = (rig.new_disk(), rig.new_disk());
        rig.add(first);
        rig.add(second);
        rig.settle("half of the rebuild", |array| {
            array.status().action.is_some_and(|a| a.done_bytes * 2 > a.total_bytes)
        });
        rig.write(0, &pattern(0, 512, 1)).unwrap();
        // The flush before the clean mark is under way; the target dies.
        rig.settle("the flush", |array| array.flushes.len() > 0);
        rig.array.fail(&format!("disk{first}")).unwrap();
        rig.settle("the clean mark", |array| array.flushes.len() == 0 && !array.commit.is_pending());
        rig.power_cut();
        rig.restart(&[], true).unwrap();
        rig.settle("the rebuild", |array| array.status().members[2].state == MemberState::InSync);
        rig.check_redundancy(&[0, 1, second]);
    }
}

/// A device that now and then has no room for a write, or takes only small ones.
struct Picky {
    inner: Box<dyn BlockDev>,
    refuse: Rc<Cell<u32>>,
    refused: Vec<Completion>,
    max_transfer_bytes: Option<u64>,
}

impl BlockDev for Picky {
    fn geometry(&self) -> Geometry {
        let geometry = self.inner.geometry();
        let max_transfer_bytes = self.max_transfer_bytes.unwrap_or(geometry.max_transfer_bytes);
        Geometry { max_transfer_bytes, ..geometry }
    }
    fn submit(&mut self, request: Request) {
        if self.refuse.get() > 0 && request.op.is_write() {
            self.refuse.set(self.refuse.get() - 1);
            return self.refused.push(request.refuse(ErrorKind::Busy));
        }
        self.inner.submit(request);
    }
    fn reap(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.refused);
        self.inner.reap(done);
    }
    fn cancel(&mut self, tag: Tag) {
        self.inner.cancel(tag);
    }
    fn wake_at(&self) -> Option<Time> {
        if self.refused.is_empty() { self.inner.wake_at() } else { Some(Time::ZERO) }
    }
}

fn mirror_with_picky(max_transfer_bytes: Option<u64>) -> (Rig, Rc<Cell<u32>>) {
    let mut rig = Rig::new(Shape::new(Level::Raid1, 2));
    rig.array.fail("disk1").unwrap();
    let disk = rig.new_disk();
    let refuse = Rc::new(Cell::new(0));
    let inner = Box::new(rig.disks[disk].device());
    let dev = Picky { inner, refuse: refuse.clone(), refused: Vec::new(), max_transfer_bytes };
    rig.array.add("picky".into(), Box::new(dev)).unwrap();
    rig.array.reap(&mut Vec::new());
    (rig, refuse)
}

/// A shortage of memory on the way to a disk was taken for the disk's fault.
#[test]
fn a_member_that_has_no_room_for_a_while_is_asked_again() {
    let (mut rig, refuse) = mirror_with_picky(None);
    rig.settle("the rebuild", |array| array.status().members[1].state == MemberState::InSync);
    refuse.set(5);
    rig.write(0, &pattern(0, 4096, 1)).unwrap();
    assert_eq!((refuse.get(), rig.state_of(1)), (0, MemberState::InSync));
    refuse.set(u32::MAX);
    rig.write(0, &pattern(0, 4096, 2)).unwrap();
    assert_eq!(rig.state_of(1), MemberState::Faulty, "there is an end to patience");
}

/// Merged transfers were larger than the device takes, and it was failed over that.
#[test]
fn merging_respects_the_largest_transfer_of_a_member() {
    let (mut rig, _) = mirror_with_picky(Some(128 << 10));
    rig.settle("the rebuild", |array| array.status().members[1].state != MemberState::Rebuilding);
    assert_eq!(rig.state_of(1), MemberState::InSync, "{:?}", rig.events);
}

/// The search for work stopped at the first rebuild that had been given up.
#[test]
fn a_rebuild_given_up_holds_back_no_other() {
    let mut rig = Rig::new(Shape::new(Level::Raid10, 4));
    rig.array.fail("disk1").unwrap();
    rig.array.fail("disk3").unwrap();
    let bad = rig.superblock(0).array.data_offset + 65536;
    rig.disks[0].fail_reads_for_good(bad..bad + 512);
    let (a, b) = (rig.new_disk(), rig.new_disk());
    rig.add(a);
    rig.add(b);
    rig.settle("the other rebuild", |array| array.status().members[3].state == MemberState::InSync);
    assert!(rig.saw("RebuildFailed"));
}

/// Members that had failed and were never seen again stayed in the table, without a name to remove them by.
#[test]
fn a_failed_disk_that_never_comes_back_leaves_the_table() {
    let mut rig = Rig::new(Shape::new(Level::Raid1, 2));
    rig.array.fail("disk0").unwrap();
    let spare = rig.new_disk();
    rig.add(spare);
    rig.settle("the rebuild", |array| array.status().members[0].state == MemberState::InSync);
    rig.stop();
    rig.restart(&[0], false).unwrap();
    assert_eq!(rig.array.status().members.len(), 2);
    rig.stop();
    assert_eq!(rig.superblock(spare).array.members.len(), 2);
}

/// It was stopped only by the turn after the one that nobody asked for.
#[test]
fn a_failed_array_that_is_told_to_stop_does_so_in_one_turn() {
    let mut rig = Rig::new(Shape::new(Level::Raid0, 2));
    rig.disks[0].fail();
    assert!(rig.write(0, &pattern(0, 4096, 1)).is_err() && rig.array.has_failed());
    rig.array.stop();
    rig.array.reap(&mut Vec::new());
    assert!(rig.array.is_stopped());
}

/// It went past the data area, towards the superblock copy at the end, and was answered Ok.
#[test]
fn an_array_refuses_what_lies_past_its_end_or_off_its_blocks() {
    let mut rig = Rig::new(Shape::new(Level::Raid1, 2));
    let size = rig.size();
    let op = rig.write_op(size, &pattern(0, 65536, 1), false);
    assert_eq!(rig.run(op), Err(ErrorKind::OutOfRange));
    assert_eq!(
        rig.run(Op::WriteZeroes { offset: 512, len: u64::MAX - 511, fua: false, unmap: true }),
        Err(ErrorKind::OutOfRange)
    );
    let op = rig.write_op(100, &pattern(0, 512, 1), false);
    assert_eq!(rig.run(op), Err(ErrorKind::Misaligned));
}

/// The superblocks were written on behalf of an administrator after the array had said that it was stopped.
#[test]
fn a_stopped_array_takes_no_more_orders() {
    let mut rig = Rig::new(Shape::new(Level::Raid1, 2));
    rig.stop();
    assert!(rig.array.fail("disk0").is_err() && rig.array.remove("disk0").is_err());
}

/// The target of a rebuild had taken a write that the only good copy refused: two versions, both in sync.
#[test]
fn a_write_that_failed_on_the_only_good_copy_leaves_no_two_versions() {
    let shape = Shape { chunk: 4096, disk_bytes: LARGE_DISK_BYTES, ..Shape::new(Level::Raid1, 2) };
    let mut rig = Rig::new(shape);
    rig.array.fail("disk1").unwrap();
    let spare = rig.new_disk();
    rig.add(spare);
    rig.settle("half of the rebuild", |array| {
        array.status().action.is_some_and(|a| a.done_bytes * 2 > a.total_bytes)
    });
    let start = rig.superblock(0).array.data_offset;
    rig.disks[0].fail_writes(start..start + 512);
    assert_eq!(rig.write(0, &pattern(0, 512, 2)), Err(ErrorKind::Medium));
    rig.disks[0].clear_faults();
    rig.settle("the rebuild", |array| array.status().members[1].state == MemberState::InSync);
    rig.check_redundancy(&[0, spare]);
}

/// Rule 6 in RAID0, where no queue orders writes: the caller was told of a timeout before the members were done.
#[test]
fn a_write_that_was_given_up_is_not_executed_after_a_later_one() {
    for seed in 1..10 {
        let shape = Shape { seed, ..Shape::new(Level::Raid0, 2) };
        let us = Duration::from_micros;
        let latency = Latency { min: us(50), max: us(5_000_000) };
        let config = DiskConfig { latency, ..DiskConfig::quiet(DISK_BYTES, shape.block) };
        let mut rig = Rig::with_disks(shape, config);
        let op = rig.write_op(0, &pattern(0, 512, 1), false);
        let deadline = rig.clock.now() + Duration::from_millis(10);
        rig.array.submit(Request { tag: Tag(9999), op, deadline });
        let mut done = Vec::new();
        while done.is_empty() {
            turn(&mut rig, 1, &mut done);
        }
        rig.write(0, &pattern(0, 512, 2)).unwrap();
        turn(&mut rig, 100, &mut Vec::new());
        assert!(rig.read(0, 512).unwrap() == pattern(0, 512, 2), "seed {seed}");
    }
}
