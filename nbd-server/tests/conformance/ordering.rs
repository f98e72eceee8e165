//! "Ordering of messages and writes": FLUSH and FUA, on one connection and across several.

use crate::common::request;
use crate::nbd::*;
use crate::stage::Stage;
use raidcore::dev::{Op, OpKind};

fn kinds(stage: &Stage) -> Vec<OpKind> {
    stage.diary().into_iter().map(|entry| entry.kind).collect()
}

/// `NBD_FLAG_CAN_MULTI_CONN` promises it.
#[test]
fn a_flush_covers_what_was_answered_on_any_connection() {
    let stage = Stage::new();
    let mut lines = stage.lines();
    let mut other = stage.server.connect(false);
    assert_ne!(other.flags & 1 << 8, 0);
    for line in &mut lines {
        stage.diary();
        assert_eq!(line.error(0, WRITE, 0, 4, b"data"), 0);
        assert_eq!(line.error(0, TRIM, 8192, 4096, b""), 0);
        assert_eq!(line.error(0, ZEROES, 16384, 4096, b""), 0);
        assert_eq!(other.ask(0, FLUSH, 0, 0, b"").error, 0);
        // The device has all of them when it is asked to flush: they share it.
        assert_eq!(kinds(&stage), [OpKind::Write, OpKind::Discard, OpKind::WriteZeroes, OpKind::Flush]);
    }
}

#[test]
fn a_flush_is_answered_when_the_device_has_flushed_and_not_before() {
    let stage = Stage::new();
    stage.hold(|op| matches!(op, Op::Flush));
    let mut client = stage.server.connect(false);
    client.send(&[request(0, FLUSH, 1, 0, 0), request(0, READ, 2, 0, 512)].concat());
    assert_eq!(client.answer(|_| 512).cookie, 2, "what has nothing to do with it does not wait");
    stage.wait_for_in_flight(1);
    stage.release();
    assert_eq!(client.answer(|_| 0).cookie, 1);
}

#[test]
fn a_flush_that_fails_is_told() {
    let stage = Stage::new();
    stage.fail(|op| matches!(op, Op::Flush).then_some(raidcore::dev::ErrorKind::Medium));
    for mut line in stage.lines() {
        assert_eq!(line.error(0, FLUSH, 0, 0, b""), EIO);
    }
}

/// A device knows FUA for writes and zeroes; a trim is flushed behind.
#[test]
fn fua_reaches_the_device_on_all_that_writes() {
    let stage = Stage::new();
    for mut line in stage.lines() {
        for (flags, fua) in [(0, false), (FUA, true)] {
            stage.diary();
            assert_eq!(line.error(flags, WRITE, 0, 4, b"data"), 0);
            assert_eq!(line.error(flags, ZEROES, 4096, 4096, b""), 0);
            let entries = stage.diary();
            let told: Vec<_> = entries.iter().map(|entry| (entry.kind, entry.fua)).collect();
            assert_eq!(told, [(OpKind::Write, fua), (OpKind::WriteZeroes, fua)]);
        }
        assert_eq!(line.error(0, TRIM, 0, 4096, b""), 0);
        assert_eq!(kinds(&stage), [OpKind::Discard]);
        assert_eq!(line.error(FUA, TRIM, 0, 4096, b""), 0);
        assert_eq!(kinds(&stage), [OpKind::Discard, OpKind::Flush]);
    }
}

#[test]
fn a_trim_with_fua_is_not_answered_before_it_is_flushed_and_fails_with_the_flush() {
    let stage = Stage::new();
    stage.hold(|op| matches!(op, Op::Flush));
    let mut client = stage.server.connect(false);
    client.send(&[request(FUA, TRIM, 1, 0, 4096), request(0, READ, 2, 0, 512)].concat());
    assert_eq!(client.answer(|_| 512).cookie, 2);
    stage.fail(|op| matches!(op, Op::Flush).then_some(raidcore::dev::ErrorKind::Medium));
    stage.release();
    let answer = client.answer(|_| 0);
    assert_eq!((answer.cookie, u64::from(answer.error)), (1, EIO));
}

/// Existing clients set it there; what does not write has nothing to make durable.
#[test]
fn fua_on_what_does_not_write_is_taken_and_flushes_nothing() {
    let stage = Stage::new();
    for mut line in stage.lines() {
        stage.diary();
        assert_eq!(line.error(FUA, READ, 0, 512, b""), 0);
        assert_eq!(line.error(FUA, CACHE, 0, 512, b""), 0);
        assert_eq!(line.error(FUA, STATUS, 0, 512, b""), if line.is_simple() { EINVAL } else { 0 });
        assert_eq!(kinds(&stage), [OpKind::Read, OpKind::Read]);
    }
}
