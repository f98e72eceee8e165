//! "Request types" and "Command flags": each command, with each flag, on each kind of connection.

use crate::common::raw::Headers;
use crate::nbd::*;
use crate::stage::{Entry, Line, SIZE, Stage, TIB, Witness};
use raidcore::dev::OpKind;

/// Commands that have a reply, and the flags that belong to them on this connection. FUA belongs to all.
fn known(line: &Line) -> Vec<(u16, u16)> {
    let df = if line.is_simple() { 0 } else { DF };
    let mut known =
        vec![(READ, df), (WRITE, 0), (FLUSH, 0), (TRIM, 0), (CACHE, 0), (ZEROES, NO_HOLE | FAST_ZERO)];
    if !line.is_simple() {
        known.push((STATUS, REQ_ONE));
    }
    known
}

#[test]
fn each_flag_is_taken_where_it_belongs_and_einval_elsewhere() {
    let stage = Stage::new();
    for mut line in stage.lines() {
        for (kind, flags) in known(&line) {
            let (len, payload) = match kind {
                FLUSH => (0, &b""[..]),
                WRITE => (4, &b"data"[..]),
                _ => (512, &b""[..]),
            };
            for flag in (0..16).map(|bit| 1u16 << bit) {
                if flag == PAYLOAD_LEN && line.is_extended() {
                    // It says that a payload follows, whether one belongs there or not: see the section on them.
                    continue;
                }
                let belongs = flags & flag != 0 || flag == FUA;
                let error = line.error(flag, kind, 0, len, payload);
                assert_eq!(error, if belongs { 0 } else { EINVAL }, "command {kind}, flag {flag:#x}");
            }
            assert_eq!(
                line.error(flags & !FAST_ZERO | FUA, kind, 0, len, payload),
                0,
                "command {kind}: all flags"
            );
        }
        line.assert_alive();
    }
}

#[test]
fn unknown_commands_are_einval_whatever_their_flags() {
    let stage = Stage::new();
    for mut line in stage.lines() {
        for kind in [8, 9, 10, 99, 0x7fff, 0x8000, 0xffff] {
            for flags in [0, FUA, DF, 1 << 15] {
                assert_eq!(line.error(flags, kind, 0, 512, b""), EINVAL, "command {kind}");
            }
        }
        line.assert_alive();
    }
}

/// The specification leaves open what they do, and asks not to disconnect.
#[test]
fn requests_of_no_bytes_are_einval_wherever_they_go_and_the_connection_goes_on() {
    let stage = Stage::new();
    for mut line in stage.lines() {
        for kind in [READ, WRITE, TRIM, ZEROES, CACHE, STATUS] {
            for offset in [0, 512, SIZE, SIZE + 1, u64::MAX] {
                assert_eq!(line.error(0, kind, offset, 0, b""), EINVAL, "command {kind} at {offset}");
            }
        }
        line.assert_alive();
    }
    assert!(stage.diary().iter().all(|entry| entry.len > 0));
}

#[test]
fn a_flush_has_neither_offset_nor_length() {
    let stage = Stage::new();
    for mut line in stage.lines() {
        assert_eq!(line.error(0, FLUSH, 0, 0, b""), 0);
        assert_eq!(line.error(0, FLUSH, 512, 0, b""), EINVAL);
        assert_eq!(line.error(0, FLUSH, 0, 512, b""), EINVAL);
    }
}

#[test]
fn written_bytes_are_read_and_written_zeroes_are_zeroes() {
    let stage = Stage::new();
    for mut line in stage.lines() {
        for flags in [0, NO_HOLE, FAST_ZERO, FUA] {
            assert_eq!(line.error(0, WRITE, 1000, 5000, &[7; 5000]), 0);
            assert_eq!(line.error(flags, ZEROES, 2000, 3000, b""), 0);
            let mut reader = stage.server.connect(true);
            let expected = [[7; 1000].as_slice(), &[0; 3000], &[7; 1000]].concat();
            assert!(reader.read(1000, 5000) == expected);
        }
    }
}

/// Fully provisioned means that the device is told so.
#[test]
fn zeroes_without_holes_leave_the_space_allocated() {
    let stage = Stage::new();
    for mut line in stage.lines() {
        stage.diary();
        for (flags, unmap) in [(0, true), (NO_HOLE, false), (FAST_ZERO, true)] {
            assert_eq!(line.error(flags, ZEROES, 4096, 8192, b""), 0);
            let entry = Entry { kind: OpKind::WriteZeroes, offset: 4096, len: 8192, fua: false, unmap };
            assert_eq!(stage.diary(), [entry]);
        }
    }
}

#[test]
fn a_fast_zero_that_is_none_is_enotsup_and_changes_nothing() {
    let slow = Stage::of(Witness::ram().with(|geometry| geometry.unmap_zeroes = false));
    let fast = Stage::new();
    for mut line in slow.lines() {
        slow.diary();
        assert_eq!(line.error(FAST_ZERO, ZEROES, 0, 4096, b""), ENOTSUP);
        assert_eq!(line.error(FAST_ZERO | NO_HOLE, ZEROES, 0, 4096, b""), ENOTSUP);
        assert_eq!(slow.diary(), []);
        assert_eq!(line.error(0, ZEROES, 0, 4096, b""), 0, "slowly it works");
    }
    // Where holes make it fast, it is not so without them.
    for mut line in fast.lines() {
        assert_eq!(line.error(FAST_ZERO | NO_HOLE, ZEROES, 0, 4096, b""), ENOTSUP);
        assert_eq!(line.error(FAST_ZERO, ZEROES, 0, 4096, b""), 0);
    }
}

#[test]
fn a_trim_that_was_not_announced_is_einval() {
    let stage = Stage::of(Witness::ram().with(|geometry| geometry.discard = false));
    for mut line in stage.lines() {
        assert_eq!(line.flags() & 1 << 5, 0);
        assert_eq!(line.error(0, TRIM, 0, 4096, b""), EINVAL);
        line.assert_alive();
    }
}

#[test]
fn a_cache_request_reads_and_changes_nothing() {
    let stage = Stage::new();
    for mut line in stage.lines() {
        line.assert_alive();
        stage.diary();
        assert_eq!(line.error(0, CACHE, 0, SIZE, b""), 0);
        let entries = stage.diary();
        assert!(entries.iter().all(|entry| entry.kind == OpKind::Read));
        assert_eq!(entries.iter().map(|entry| entry.len).sum::<u64>(), SIZE);
    }
}

/// Without extended headers 32 bits of length are a limit, and the device's pieces none.
#[test]
fn the_longest_ranges_of_32_bits_are_served() {
    let stage = Stage::of(Witness::vast());
    let longest = u64::from(u32::MAX - 4095);
    for mut line in stage.lines() {
        for kind in [TRIM, ZEROES, CACHE] {
            assert_eq!(line.error(0, kind, TIB - longest, longest, b""), 0, "command {kind}");
        }
    }
    let chunks = stage.raw(Headers::Structured).ask(0, STATUS, 0, longest, b"");
    assert_eq!(crate::common::raw::extents(&chunks[0]), (1, vec![(longest, 0)]));
}
