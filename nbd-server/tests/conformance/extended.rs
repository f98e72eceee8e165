//! Extended headers: 64-bit lengths, payload flags, and requests the device does piece by piece.

use crate::common::be;
use crate::common::raw::{Headers, Raw};
use crate::nbd::*;
use crate::stage::{Entry, SIZE, Stage, TIB, Witness};
use nbd_server::limits::{LONG_PIECE_BYTES, MAX_CACHE_BYTES};
use raidcore::dev::{ErrorKind, OpKind};

const STRIPE: u64 = 192 << 10;

/// A device of which each piece can be seen.
fn huge() -> Stage {
    Stage::of(Witness::vast().with(|geometry| {
        geometry.preferred_bytes = STRIPE as u32;
        geometry.queue_depth = 2;
    }))
}

fn raw(stage: &Stage) -> Raw {
    stage.raw(Headers::Extended)
}

#[test]
fn reads_and_writes_go_through_with_their_payload_flag() {
    let stage = Stage::new();
    let mut raw = raw(&stage);
    let data: Vec<u8> = (0..200_000u32).map(|i| (i % 251 + 1) as u8).collect();
    for offset in [0, 3, 65536, SIZE - 200_000] {
        assert_eq!(raw.error(PAYLOAD_LEN | FUA, WRITE, offset, 200_000, &data), 0);
        assert!(raw.read(0, offset, 200_000) == (data.clone(), 0));
    }
    assert_eq!(raw.error(0, WRITE, 0, 4, b"flag"), 0, "a write has its payload also without the flag");
    assert_eq!(raw.error(PAYLOAD_LEN, WRITE, SIZE - 1, 2, b"xy"), ENOSPC);
    assert_eq!(raw.error(0, READ, SIZE, 1, b""), 22);
    assert_eq!(raw.error(0, READ, 0, 1 << 40, b""), 22);
    assert_eq!(raw.error(0, 99, 0, 1, b""), 22);
    assert_eq!(raw.error(0, FLUSH, 0, 0, b""), 0);
    // What is longer than anybody sends ends the connection.
    raw.send(PAYLOAD_LEN, WRITE, 1, 0, 1 << 40);
    assert!(raw.client.is_closed());
    stage.server.wait_until_idle();
    stage.server.stop();
}

#[test]
fn a_whole_device_is_zeroed_and_trimmed_in_pieces_between_stripes() {
    let stage = huge();
    let mut raw = raw(&stage);
    for (flags, command, kind) in [
        (FUA | NO_HOLE, ZEROES, OpKind::WriteZeroes),
        (0, TRIM, OpKind::Discard),
        (FUA, TRIM, OpKind::Discard),
    ] {
        assert_eq!(raw.error(flags, command, 4096, TIB - 4096, b""), 0);
        let mut entries = stage.diary();
        if command == TRIM && flags == FUA {
            assert_eq!(entries.pop().unwrap().kind, OpKind::Flush);
        }
        let mut at = 4096;
        for &Entry { kind: done, offset, len, fua, .. } in &entries {
            assert!(done == kind && offset == at && len <= LONG_PIECE_BYTES, "{done} of {len} at {offset}");
            assert!(offset == 4096 || offset % STRIPE == 0, "a stripe is cut at {offset}");
            assert_eq!(fua, command == ZEROES);
            at += len;
        }
        assert_eq!(at, TIB);
    }
    drop(raw);
    stage.server.wait_until_idle();
    stage.server.stop();
}

#[test]
fn a_piece_that_fails_is_the_last_and_the_answer() {
    const PIECE: u64 = LONG_PIECE_BYTES - LONG_PIECE_BYTES % STRIPE;
    let stage = huge();
    stage.fail(|op| (op.extent().0 == 2 * PIECE).then_some(ErrorKind::NoSpace));
    let mut raw = raw(&stage);
    assert_eq!(raw.error(0, ZEROES, 0, TIB, b""), 28);
    assert_eq!(stage.diary().len(), 3);
    assert_eq!(raw.error(0, READ, 0, 4096, b""), 0);
    drop(raw);
    stage.server.wait_until_idle();
    stage.server.stop();
}

#[test]
fn reading_ahead_looks_at_a_bounded_part_and_finds_bad_blocks() {
    let stage = huge();
    stage.fail(|op| (op.extent().0 == 5 << 20).then_some(ErrorKind::NoSpace));
    let mut raw = raw(&stage);
    assert_ne!(raw.client.flags & 1 << 10, 0);
    assert_eq!(raw.error(0, CACHE, 1 << 30, TIB / 2, b""), 0);
    let read: u64 = stage.diary().iter().map(|entry| entry.len).sum();
    assert_eq!(read, MAX_CACHE_BYTES);
    assert_eq!(raw.error(FUA, CACHE, 1 << 30, 4096, b""), 0);
    assert_eq!(stage.diary().len(), 1);
    assert_eq!(raw.error(0, CACHE, 4 << 20, 4 << 20, b""), 28, "the device's error comes through");
    assert_eq!(raw.error(0, CACHE, TIB, 1, b""), 22);
    assert_eq!(raw.error(0, CACHE, 0, 0, b""), 22);
    drop(raw);
    stage.server.wait_until_idle();
    stage.server.stop();
}

#[test]
fn a_client_that_leaves_does_not_have_its_pieces_finished() {
    let stage = huge();
    for _ in 0..20 {
        let mut raw = raw(&stage);
        raw.send(0, ZEROES, 1, 0, TIB);
        raw.client.stream.shutdown(std::net::Shutdown::Both).unwrap();
        drop(raw);
        stage.server.wait_until_idle();
    }
    // Whoever waits for the end of it would be told; the device is never handed the same piece twice.
    assert!(stage.diary().iter().all(|entry| entry.kind == OpKind::WriteZeroes));
    stage.server.stop();
}

#[test]
fn replies_repeat_the_offset_of_their_request() {
    let stage = Stage::new();
    let mut raw = raw(&stage);
    raw.send(0, READ, 1, 4096, 512);
    raw.send(0, FLUSH, 2, 0, 0);
    raw.send(0, READ, 3, u64::MAX, 512);
    let mut seen: Vec<_> =
        (0..3).map(|_| raw.chunk()).map(|chunk| (chunk.cookie, chunk.offset, chunk.kind)).collect();
    seen.sort_unstable();
    assert_eq!(seen, [(1, 4096, 1), (2, 0, 0), (3, u64::MAX, 0x8001)]);
    raw.send(0, READ, 4, 0, 4096);
    let hole = raw.chunk();
    assert_eq!((hole.kind, be(&hole.payload[8..])), (2, 4096));
    drop(raw);
    stage.server.wait_until_idle();
    stage.server.stop();
}

#[test]
fn a_payload_where_none_belongs_is_skipped_and_einval() {
    let stage = Stage::new();
    let mut raw = raw(&stage);
    let payload = crate::common::request(0, DISC, 0, 0, 0).repeat(3000);
    for kind in [READ, FLUSH, TRIM, CACHE, ZEROES, 8, 99, 0xffff] {
        for len in [0, 1, 32, payload.len()] {
            let (offset, payload) = (0, &payload[..len]);
            let error = raw.error(PAYLOAD_LEN, kind, offset, len as u64, payload);
            assert_eq!(error, EINVAL, "command {kind}, {len} bytes");
        }
    }
    assert_eq!(raw.error(0, READ, 0, 4096, b""), 0);
}

#[test]
fn a_payload_too_long_to_be_skipped_closes_the_connection_whatever_the_command() {
    let stage = Stage::new();
    for kind in [READ, WRITE, STATUS, 99] {
        for len in [65 << 20, 1 << 32, u64::MAX] {
            let mut raw = raw(&stage);
            raw.send(PAYLOAD_LEN, kind, 1, 0, len);
            assert!(raw.client.is_closed(), "command {kind}, {len} bytes");
        }
    }
}

/// Without the flag a length is that of a range, and those may have 64 bits; the end of the export still counts.
#[test]
fn ranges_of_64_bits_are_served_and_those_that_leave_the_export_refused() {
    let stage = huge();
    let mut raw = raw(&stage);
    for (kind, past) in [(TRIM, EINVAL), (CACHE, EINVAL), (STATUS, EINVAL), (ZEROES, ENOSPC)] {
        assert_eq!(raw.error(0, kind, 0, TIB, b""), 0, "command {kind}");
        for (offset, len) in [(0, TIB + 1), (TIB, 1), (1, u64::MAX), (u64::MAX, u64::MAX), (TIB - 1, 2)] {
            assert_eq!(raw.error(0, kind, offset, len, b""), past, "command {kind}: {len} at {offset}");
        }
    }
    assert_eq!(raw.error(0, READ, 0, 1 << 32, b""), EINVAL, "what is sent has a limit");
    assert_eq!(raw.error(0, READ, 0, u64::MAX, b""), EINVAL);
}

/// Extents of 64 bits: the whole of it in one.
#[test]
fn a_status_query_may_be_about_the_whole_export() {
    let stage = huge();
    let chunks = raw(&stage).ask(REQ_ONE, STATUS, 0, TIB, b"");
    assert_eq!(crate::common::raw::extents(&chunks[0]), (1, vec![(TIB, 0)]));
}
