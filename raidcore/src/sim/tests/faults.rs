//! Each fault does what it says, and nothing else.

use super::*;

fn rated(rates: FaultRates) -> Rig {
    Rig::new(DiskConfig { rates, trace: 16, ..DiskConfig::quiet(1 << 20, BlockSize::B512) })
}

#[test]
fn a_bad_sector_fails_reads_until_it_is_written() {
    let mut rig = Rig::quiet();
    rig.disk.fail_reads(8192..8193);
    assert_eq!(rig.read(4096, 4096).unwrap(), vec![0; 4096]);
    assert_eq!(rig.read(0, 16384), Err(ErrorKind::Medium));
    assert_eq!(rig.result(Op::Discard { offset: 8192, len: 4096 }), Ok(()));
    assert_eq!(rig.read(8192, 4096), Err(ErrorKind::Medium));
    assert_eq!(rig.write(8192, &[5; 4096]), Ok(()));
    assert_eq!(rig.read(8192, 4096).unwrap(), vec![5; 4096]);
}

#[test]
fn a_permanently_bad_place_stays_bad_until_the_faults_are_cleared() {
    let mut rig = Rig::quiet();
    rig.disk.fail_reads_for_good(0..4096);
    rig.disk.fail_writes(4096..8192);
    assert_eq!(rig.write(0, &[1; 4096]), Ok(()));
    assert_eq!(rig.read(0, 4096), Err(ErrorKind::Medium));
    assert_eq!(rig.write(0, &[2; 8192]), Err(ErrorKind::Medium));
    assert_eq!(rig.disk.peek(0, 8192), [[1; 4096], [0; 4096]].concat());
    rig.disk.clear_faults();
    assert_eq!(rig.read(0, 4096).unwrap(), vec![1; 4096]);
    assert_eq!(rig.write(0, &[2; 8192]), Ok(()));
}

#[test]
fn a_failed_disk_answers_everything_with_gone_until_it_is_restored() {
    let mut rig = Rig::new(DiskConfig::default());
    rig.submit(rig.read_op(0, 4096));
    rig.submit(Op::Flush);
    rig.dev.reap(&mut Vec::new());
    rig.disk.fail();
    let done = rig.collect(2);
    assert!(done.iter().all(|c| c.result.is_err_and(|error| error.kind == ErrorKind::Gone)));
    assert_eq!(rig.write(0, &[1; 4096]), Err(ErrorKind::Gone));
    rig.disk.restore();
    assert_eq!(rig.read(0, 4096).unwrap(), vec![0; 4096]);
}

#[test]
fn a_disk_can_be_told_to_fail_after_so_many_operations() {
    let mut rig = Rig::quiet();
    rig.disk.fail_after(2);
    let results: Vec<_> = (0..4u64).map(|i| rig.write(i * 4096, &[1; 4096])).collect();
    assert_eq!(results, [Ok(()), Ok(()), Err(ErrorKind::Gone), Err(ErrorKind::Gone)]);
    assert_eq!(rig.disk.peek(8192, 4096), vec![0; 4096]);
}

#[test]
fn a_hung_disk_keeps_deadlines_and_executes_late_what_it_was_told() {
    let mut rig = Rig::quiet();
    rig.disk.hang(true);
    rig.submit(rig.write_op(0, &[1; 4096], false));
    let read = rig.submit(rig.read_op(4096, 4096));
    let done = rig.collect(2);
    assert_eq!(rig.clock.now(), Time::ZERO + DEADLINE);
    assert!(done.iter().all(|c| c.result.is_err_and(|error| error.kind == ErrorKind::Timeout)));
    assert!(done.iter().find(|c| c.tag == read).unwrap().bufs.is_empty());
    assert_eq!(rig.disk.peek(0, 4096), vec![0; 4096]);
    assert_eq!(rig.slab.usage().used_bytes, 8192);
    rig.disk.hang(false);
    rig.idle(Duration::ZERO);
    assert_eq!(rig.disk.peek(0, 4096), vec![1; 4096]);
    assert_eq!((rig.disk.stats().late, rig.disk.stats().timeouts), (2, 2));
    assert_eq!(rig.slab.usage().used_bytes, 0);
}

#[test]
fn what_is_done_at_its_deadline_is_in_time_and_what_is_done_after_it_is_not() {
    let took = Duration::from_millis(5);
    let latency = Latency { min: took, max: took };
    for (early, expected) in [(0, Ok(())), (1, Err(ErrorKind::Timeout))] {
        let mut rig = Rig::new(DiskConfig { latency, ..DiskConfig::quiet(1 << 20, BlockSize::B4096) });
        let deadline = Time::ZERO + (took - Duration::from_nanos(early));
        rig.dev.submit(Request { tag: Tag(0), op: Op::Flush, deadline });
        let answer = rig.collect(1).remove(0);
        assert_eq!((answer.result.map_err(|error| error.kind), rig.clock.now()), (expected, deadline));
    }
}

#[test]
fn a_late_write_overwrites_a_later_acknowledged_one_unless_late_execution_is_off() {
    for late_execution in [0.0, 1.0] {
        let quiet = DiskConfig::quiet(1 << 20, BlockSize::B4096);
        let mut rig = Rig::new(DiskConfig { late_execution, ..quiet });
        rig.disk.set_rates(FaultRates { hang: 1.0, ..FaultRates::default() });
        assert_eq!(rig.write(0, &[1; 4096]), Err(ErrorKind::Timeout));
        rig.disk.set_rates(FaultRates::default());
        assert_eq!(rig.write(0, &[2; 4096]), Ok(()));
        rig.idle(Duration::from_secs(60));
        let expected = if late_execution > 0.0 { 1 } else { 2 };
        assert_eq!(rig.disk.peek(0, 4096), vec![expected; 4096]);
    }
}

#[test]
fn a_canceled_request_is_answered_once_and_early_when_the_disk_hangs() {
    let mut rig = Rig::quiet();
    rig.disk.hang(true);
    let started = rig.submit(rig.read_op(0, 4096));
    rig.dev.reap(&mut Vec::new());
    let queued = rig.submit(rig.read_op(0, 4096));
    rig.dev.cancel(started);
    rig.dev.cancel(queued);
    rig.dev.cancel(Tag(999));
    let done = rig.collect(2);
    assert_eq!(rig.clock.now(), Time::ZERO);
    assert!(done.iter().all(|c| c.result.is_err_and(|error| error.kind == ErrorKind::Canceled)));
    let memory = |tag| done.iter().find(|c| c.tag == tag).unwrap().bufs.len();
    assert_eq!((memory(started), memory(queued)), (0, 1));
}

#[test]
fn errors_by_chance_leave_bad_blocks_and_half_written_ranges() {
    let mut rig = rated(FaultRates { read_error: 1.0, write_error: 1.0, ..FaultRates::default() });
    assert_eq!(rig.read(0, 512), Err(ErrorKind::Medium));
    let mut sizes = std::collections::BTreeSet::new();
    for _ in 0..64 {
        rig.disk.poke(4096, &[0; 4096]);
        assert_eq!(rig.write(4096, &[1; 4096]), Err(ErrorKind::Medium));
        sizes.insert(rig.disk.peek(4096, 4096).iter().filter(|&&b| b == 1).count() / 512);
    }
    assert!(sizes.contains(&0) && sizes.contains(&8) && sizes.len() > 3, "{sizes:?}");
    rig.disk.set_rates(FaultRates::default());
    assert_eq!(rig.read(0, 512), Err(ErrorKind::Medium));
    assert_eq!(rig.write(0, &[1; 512]), Ok(()));
    assert_eq!(rig.read(0, 512).unwrap(), vec![1; 512]);
}

#[test]
fn silent_faults_are_answered_as_success_and_counted() {
    let changed = |rig: &Rig| {
        let sectors = rig.disk.peek(0, 1 << 20);
        sectors.chunks(512).enumerate().filter(|(_, s)| s[0] != 0).map(|(i, _)| i).collect::<Vec<_>>()
    };
    let none = FaultRates::default();

    let mut rig = rated(FaultRates { lost_write: 1.0, ..none });
    assert_eq!(rig.write(0, &[1; 4096]), Ok(()));
    assert_eq!(changed(&rig), []);

    let mut rig = rated(FaultRates { torn_write: 1.0, ..none });
    assert_eq!(rig.write(0, &[1; 4096]), Ok(()));
    assert!(changed(&rig).len() < 8 && changed(&rig).iter().all(|&sector| sector < 8));

    let mut rig = rated(FaultRates { misdirected_write: 1.0, ..none });
    assert_eq!(rig.write(0, &[1; 4096]), Ok(()));
    assert_eq!(changed(&rig).len(), 8);
    assert_ne!(changed(&rig)[0], 0);

    let mut rig = rated(FaultRates { corrupt_read: 1.0, ..none });
    assert_eq!(rig.read(0, 4096).unwrap().iter().filter(|&&b| b != 0).count(), 1);
    assert_eq!((changed(&rig), rig.disk.stats().silent_faults), (vec![], 1));
    assert_eq!(rig.disk.trace()[0].to_string(), "0ns path 0 tag 0: read 0+4096 (corrupt)");
}

#[test]
fn corruption_changes_every_byte_and_poke_and_peek_take_any_range() {
    let rig = Rig::quiet();
    rig.disk.poke(4090, &[7; 12]);
    rig.disk.corrupt(4094, 3);
    let bytes = rig.disk.peek(4088, 16);
    assert_eq!((&bytes[..6], &bytes[9..]), (&[0, 0, 7, 7, 7, 7][..], &[7, 7, 7, 7, 7, 0, 0][..]));
    assert!(bytes[6..9].iter().all(|&b| b != 7));
    assert_eq!(rig.disk.durable(4088, 16), bytes);
}

#[test]
fn discarded_blocks_read_as_before_as_zeroes_or_as_noise_and_zeroed_ones_as_zeroes() {
    let mut rig = Rig::quiet();
    let mut seen = [0; 3];
    for _ in 0..50 {
        assert_eq!(rig.write(0, &[9; 8192]), Ok(()));
        assert_eq!(rig.result(Op::Discard { offset: 0, len: 4096 }), Ok(()));
        let bytes = rig.read(0, 8192).unwrap();
        let all = |value| bytes[..4096].iter().all(|&b| b == value);
        seen[if all(9) { 0 } else { if all(0) { 1 } else { 2 } }] += 1;
        assert!(bytes[4096..].iter().all(|&b| b == 9));
    }
    assert!(seen.iter().all(|&times| times > 5), "{seen:?}");
    let zeroes = Op::WriteZeroes { offset: 4096, len: (1 << 20) - 4096, fua: false, unmap: true };
    assert_eq!(rig.result(zeroes), Ok(()));
    assert_eq!(rig.disk.peek(4096, 4096), vec![0; 4096]);
}

#[test]
fn two_devices_are_two_paths_to_the_same_blocks_and_break_apart() {
    let mut rig = Rig::quiet();
    let mut other = Checked::new(rig.disk.device());
    assert_eq!((rig.dev.inner().path(), other.inner().path()), (0, 1));
    let link = rig.dev.inner().link();
    assert_eq!(rig.write(0, &[1; 4096]), Ok(()));
    link.fail();
    assert_eq!(rig.write(0, &[2; 4096]), Err(ErrorKind::Gone));
    std::mem::swap(&mut rig.dev, &mut other);
    assert_eq!(rig.read(0, 4096).unwrap(), vec![1; 4096]);
    std::mem::swap(&mut rig.dev, &mut other);
    link.restore();
    link.hang(true);
    assert_eq!(rig.write(0, &[3; 4096]), Err(ErrorKind::Timeout));
    std::mem::swap(&mut rig.dev, &mut other);
    assert_eq!(rig.write(0, &[4; 4096]), Ok(()));
    drop(other);
    link.hang(false);
    // The write that hung on the broken path still arrives, though its device is gone.
    rig.idle(Duration::ZERO);
    assert_eq!(rig.read(0, 4096).unwrap(), vec![3; 4096]);
}

#[test]
fn a_condition_that_can_never_hold_is_a_typed_error() {
    let mut rig = Rig::quiet();
    let mut done = Vec::new();
    let answer = run_until(&rig.clock, &mut rig.dev, &mut done, |_, done| !done.is_empty());
    assert_eq!(answer, Err(RunError::Stuck { at: Time::ZERO }));
    rig.disk.hang(true);
    let forever = Request { tag: Tag(1), op: Op::Flush, deadline: Time::NEVER };
    rig.dev.submit(forever);
    let answer = run_until(&rig.clock, &mut rig.dev, &mut done, |_, done| !done.is_empty());
    assert_eq!(answer, Err(RunError::Stuck { at: Time::ZERO }));
}
