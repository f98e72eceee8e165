//! "Structured reply chunk message" and `NBD_CMD_READ` with it: chunks, holes, DF, errors with a message.

use crate::common::be;
use crate::common::raw::{Chunk, Headers};
use crate::nbd::*;
use crate::stage::{SIZE, Stage};
use raidcore::dev::{ErrorKind, Op};

const NONE: u16 = 0;
const OFFSET_DATA: u16 = 1;
const OFFSET_HOLE: u16 = 2;
const ERROR: u16 = 0x8001;

const KINDS: [Headers; 2] = [Headers::Structured, Headers::Extended];

#[test]
fn zeroes_are_told_as_holes_unless_the_client_wants_one_chunk() {
    let stage = Stage::new();
    let mut writer = stage.server.connect(true);
    writer.write(65536, &[7; 4096]);
    writer.write(131_072 + 5000, &[1]);
    for headers in [Headers::Structured, Headers::Extended] {
        let mut raw = stage.raw(headers);
        let (data, holes) = raw.read(0, 0, 1 << 20);
        assert!(data.iter().enumerate().all(|(at, byte)| match at {
            65536..69632 => *byte == 7,
            136_072 => *byte == 1,
            _ => *byte == 0,
        }));
        assert_eq!(holes, (1 << 20) - 2 * 4096);
        assert_eq!(raw.read(DF, 0, 1 << 20), (data, 0));
        assert_eq!(raw.ask(DF, READ, 0, 1 << 20, b"").len(), 1);
        assert_eq!(raw.read(0, 65536 - 512, 8192).1, 0, "no whole block of zeroes");
        assert_eq!(raw.ask(0, READ, 65536, 4096, b"")[0].kind, 1);
        let hole = raw.ask(0, READ, 262_144, 65536, b"");
        assert_eq!((hole.len(), hole[0].kind, be(&hole[0].payload[8..])), (1, 2, 65536));
        assert_eq!(raw.error(DF, READ, 0, 33 << 20, b""), EOVERFLOW);
    }
}

/// Checks that chunks of a read are as they must be, whatever they hold.
fn assert_covers(chunks: &[Chunk], offset: u64, len: u64) {
    let mut covered = vec![false; len as usize];
    for (at, chunk) in chunks.iter().enumerate() {
        assert_eq!(chunk.is_last, at == chunks.len() - 1, "DONE is on the last chunk, and on no other");
        let from = be(&chunk.payload[..8]);
        let bytes = match chunk.kind {
            OFFSET_DATA => chunk.payload.len() as u64 - 8,
            OFFSET_HOLE => be(&chunk.payload[8..12]),
            other => panic!("chunk {other:#x}"),
        };
        assert!(chunk.kind != OFFSET_HOLE || chunk.payload.len() == 12);
        assert!(bytes > 0 && from >= offset && from + bytes <= offset + len);
        // Whole blocks of 512, but for the two ends.
        assert!(from == offset || from.is_multiple_of(512));
        assert!(from + bytes == offset + len || (from + bytes).is_multiple_of(512));
        let range = (from - offset) as usize..(from + bytes - offset) as usize;
        assert!(covered[range.clone()].iter().all(|covered| !covered), "chunks overlap");
        covered[range].fill(true);
    }
    assert!(covered.iter().all(|covered| *covered), "bytes are missing");
}

#[test]
fn chunks_of_a_read_cover_its_range_once_and_nothing_beside_it() {
    let stage = Stage::new();
    let mut writer = stage.server.connect(true);
    // Every third block of 4 KiB has data in it.
    (0..64).for_each(|block| writer.write(block * 3 * 4096 + 77, &[7; 100]));
    for headers in KINDS {
        let mut raw = stage.raw(headers);
        for (offset, len) in
            [(0, 1), (0, 4096), (1, 4095), (5, 1 << 20), (4096, 700_000), (4096 * 3 - 1, 9000), (SIZE - 3, 3)]
        {
            assert_covers(&raw.ask(0, READ, offset, len, b""), offset, len);
            let whole = raw.ask(DF, READ, offset, len, b"");
            assert_covers(&whole, offset, len);
            assert_eq!((whole.len(), whole[0].kind), (1, OFFSET_DATA), "DF is one chunk of data");
        }
    }
}

/// The specification wants at least 64 KiB of it.
#[test]
fn unfragmented_reads_work_up_to_the_largest_payload_and_longer_ones_are_eoverflow() {
    let stage = Stage::new();
    for headers in KINDS {
        let mut raw = stage.raw(headers);
        for len in [65536, 1 << 20] {
            let chunks = raw.ask(DF, READ, 0, len, b"");
            assert_eq!((chunks.len(), chunks[0].payload.len() as u64), (1, 8 + len));
        }
        let error = raw.ask(DF, READ, 0, SIZE, b"");
        assert_eq!((error.len(), be(&error[0].payload[..4])), (1, EOVERFLOW), "and no content");
    }
}

#[test]
fn a_success_without_data_is_one_chunk_of_nothing_that_is_the_last() {
    let stage = Stage::new();
    for headers in KINDS {
        let mut raw = stage.raw(headers);
        for kind in [FLUSH, TRIM, ZEROES, CACHE] {
            let len = if kind == FLUSH { 0 } else { 4096 };
            let chunks = raw.ask(0, kind, 0, len, b"");
            let [Chunk { is_last: true, kind: NONE, payload, .. }] = &chunks[..] else {
                panic!("{chunks:?}")
            };
            assert!(payload.is_empty());
        }
    }
}

/// Of the device's errors and of the protocol's, for commands with data and without.
#[test]
fn an_error_is_one_chunk_with_a_number_and_a_message_whose_length_is_told() {
    let stage = Stage::new();
    stage.fail(|op| (op.extent().0 == 4096).then_some(ErrorKind::Medium));
    for headers in KINDS {
        let mut raw = stage.raw(headers);
        for (flags, kind, offset, error) in [
            (0, READ, 4096, EIO),
            (0, TRIM, 4096, EIO),
            (0, READ, SIZE, EINVAL),
            (NO_HOLE, READ, 0, EINVAL),
            (0, 99, 0, EINVAL),
        ] {
            let chunks = raw.ask(flags, kind, offset, 4096, b"");
            let [Chunk { is_last: true, kind: ERROR, payload, .. }] = &chunks[..] else {
                panic!("{chunks:?}")
            };
            assert_eq!(be(&payload[..4]), error);
            assert_eq!(be(&payload[4..6]) as usize, payload.len() - 6);
            assert!(payload.len() > 6 && std::str::from_utf8(&payload[6..]).is_ok());
        }
        assert!(matches!(raw.ask(0, READ, 8192, 4096, b"")[0].kind, OFFSET_DATA | OFFSET_HOLE));
    }
}

/// Once a chunk is out an error could not be told without padding: all data is there before the first of it.
#[test]
fn a_read_that_fails_in_its_midst_sends_no_data() {
    let stage = Stage::new();
    stage.fail(|op| matches!(op, Op::Read { .. }).then_some(ErrorKind::Medium));
    for mut line in stage.lines() {
        assert_eq!(line.error(0, READ, 0, 1 << 20, b""), EIO);
        assert_eq!(line.error(0, FLUSH, 0, 0, b""), 0, "the connection is in step");
    }
}
