//! What is done with requests, one by one.

use super::*;

const TERMS: Terms = Terms {
    size_bytes: 1 << 30,
    min_block: 1,
    max_payload: 32 << 20,
    read_only: false,
    trim: true,
    fast_zeroes: false,
    fast_zero_bytes: 1,
    style: Style::Structured,
    contexts: Contexts::NONE,
    long_piece: LONG_PIECE_BYTES,
};

const STYLE: Style = TERMS.style;

/// The same with extended headers and one of the contexts.
const EXTENDED: Terms = Terms { style: Style::Extended, contexts: HEALTH, ..TERMS };
const HEALTH: Contexts = Contexts::only(MetaContext::Health);

fn request(kind: u16, flags: u16, offset: u64, len: u64) -> RawRequest {
    RawRequest { flags, kind, cookie: Cookie(7), offset, len }
}

fn verdict(terms: Terms, kind: u16, flags: u16, offset: u64, len: u64) -> Result<Command, NbdError> {
    request(kind, flags, offset, len).decide(&terms).map_err(|refusal| refusal.error)
}

#[test]
fn commands_within_the_terms_are_executed() {
    let fua = cmd_flags::FUA;
    let cases = [
        (verdict(TERMS, cmd::READ, 0, 3, 5), Command::Read { offset: 3, len: 5, whole: false }),
        (
            verdict(TERMS, cmd::READ, fua | cmd_flags::DF, 3, 5),
            Command::Read { offset: 3, len: 5, whole: true },
        ),
        (verdict(TERMS, cmd::WRITE, 0, 0, 32 << 20), Command::Write { offset: 0, len: 32 << 20, fua: false }),
        (verdict(TERMS, cmd::WRITE, fua, 0, 1), Command::Write { offset: 0, len: 1, fua: true }),
        (verdict(TERMS, cmd::FLUSH, fua, 0, 0), Command::Flush),
        (verdict(TERMS, cmd::TRIM, fua, 0, 1 << 30), Command::Trim { offset: 0, len: 1 << 30, fua: true }),
        (
            verdict(TERMS, cmd::WRITE_ZEROES, 0, 0, 1 << 30),
            Command::WriteZeroes { offset: 0, len: 1 << 30, fua: false, unmap: true },
        ),
        (
            verdict(TERMS, cmd::WRITE_ZEROES, cmd_flags::NO_HOLE, 8, 8),
            Command::WriteZeroes { offset: 8, len: 8, fua: false, unmap: false },
        ),
        (verdict(TERMS, cmd::CACHE, fua, 1, 1 << 29), Command::Cache { offset: 1, len: 1 << 29 }),
        (verdict(TERMS, cmd::DISC, 0xffff, u64::MAX, u64::MAX), Command::Disconnect),
    ];
    for (got, expected) in cases {
        assert_eq!(got, Ok(expected));
    }
}

#[test]
fn requests_of_no_bytes_are_einval_wherever_they_go() {
    for kind in [cmd::READ, cmd::WRITE, cmd::TRIM, cmd::CACHE, cmd::WRITE_ZEROES] {
        for offset in [0, 1 << 30, (1 << 30) + 1, u64::MAX] {
            assert_eq!(verdict(TERMS, kind, 0, offset, 0), Err(NbdError::Einval));
        }
    }
}

#[test]
fn the_end_of_the_export_is_einval_to_readers_and_enospc_to_writers() {
    for (offset, len) in [(1 << 30, 1), ((1 << 30) - 1, 2), (u64::MAX, 1), (u64::MAX - 1, 4096)] {
        assert_eq!(verdict(TERMS, cmd::READ, 0, offset, len), Err(NbdError::Einval));
        assert_eq!(verdict(TERMS, cmd::TRIM, 0, offset, len), Err(NbdError::Einval));
        assert_eq!(verdict(TERMS, cmd::CACHE, 0, offset, len), Err(NbdError::Einval));
        assert_eq!(verdict(EXTENDED, cmd::BLOCK_STATUS, 0, offset, len), Err(NbdError::Einval));
        assert_eq!(verdict(TERMS, cmd::WRITE, 0, offset, len), Err(NbdError::Enospc));
        assert_eq!(verdict(TERMS, cmd::WRITE_ZEROES, 0, offset, len), Err(NbdError::Enospc));
    }
}

#[test]
fn unknown_commands_and_flags_are_einval() {
    for kind in [cmd::BLOCK_STATUS, 8, 9, 0xffff] {
        assert_eq!(verdict(TERMS, kind, 0, 0, 1), Err(NbdError::Einval));
    }
    for (kind, flags) in [
        (cmd::READ, cmd_flags::NO_HOLE),
        (cmd::WRITE, cmd_flags::DF),
        (cmd::FLUSH, cmd_flags::FAST_ZERO),
        (cmd::TRIM, cmd_flags::NO_HOLE),
        (cmd::CACHE, cmd_flags::DF),
        (cmd::WRITE, cmd_flags::PAYLOAD_LEN),
        (cmd::READ, cmd_flags::REQ_ONE),
        (cmd::WRITE_ZEROES, 1 << 15),
    ] {
        assert_eq!(verdict(TERMS, kind, flags, 0, 0), Err(NbdError::Einval));
    }
    let simple = Terms { style: Style::Simple, ..TERMS };
    assert_eq!(verdict(simple, cmd::READ, cmd_flags::DF, 0, 1), Err(NbdError::Einval));
    let no_trim = Terms { trim: false, ..TERMS };
    assert_eq!(verdict(no_trim, cmd::TRIM, 0, 0, 1), Err(NbdError::Einval));
    assert_eq!(verdict(TERMS, cmd::FLUSH, 0, 1, 0), Err(NbdError::Einval));
    assert_eq!(verdict(TERMS, cmd::FLUSH, 0, 0, 1), Err(NbdError::Einval));
}

#[test]
fn a_read_only_export_permits_reading_and_flushing_only() {
    let terms = Terms { read_only: true, trim: false, ..TERMS };
    for kind in [cmd::WRITE, cmd::TRIM, cmd::WRITE_ZEROES] {
        assert_eq!(verdict(terms, kind, 0, 0, 1), Err(NbdError::Eperm));
    }
    assert!(verdict(terms, cmd::READ, 0, 0, 1).is_ok());
    assert!(verdict(terms, cmd::FLUSH, 0, 0, 0).is_ok());
}

#[test]
fn payloads_have_a_largest_size_and_blocks_a_smallest() {
    for kind in [cmd::READ, cmd::WRITE] {
        assert_eq!(verdict(TERMS, kind, 0, 0, (32 << 20) + 1), Err(NbdError::Einval));
    }
    let blocks = Terms { min_block: 4096, ..TERMS };
    for (offset, len) in [(1, 4096), (4096, 1), (512, 512)] {
        assert_eq!(verdict(blocks, cmd::READ, 0, offset, len), Err(NbdError::Einval));
    }
    assert!(request(cmd::WRITE, 0, 0, u64::from(MAX_DRAIN_BYTES)).payload_bytes(STYLE).is_ok());
    assert!(request(cmd::WRITE, 0, 0, u64::from(MAX_DRAIN_BYTES) + 1).payload_bytes(STYLE).is_err());
    assert_eq!(request(cmd::READ, 0, 0, u64::MAX).payload_bytes(STYLE), Ok(0));
}

#[test]
fn a_fast_zero_that_is_not_fast_is_enotsup() {
    let fast = cmd_flags::FAST_ZERO;
    assert_eq!(verdict(TERMS, cmd::WRITE_ZEROES, fast, 0, 1), Err(NbdError::Enotsup));
    let terms = Terms { fast_zeroes: true, ..TERMS };
    assert!(verdict(terms, cmd::WRITE_ZEROES, fast, 0, 1).is_ok());
    let pinned = fast | cmd_flags::NO_HOLE;
    assert_eq!(verdict(terms, cmd::WRITE_ZEROES, pinned, 0, 1), Err(NbdError::Enotsup));
    // The edges of a stripe with parity are read and written.
    let striped = Terms { fast_zero_bytes: 3 << 16, ..terms };
    assert!(verdict(striped, cmd::WRITE_ZEROES, fast, 3 << 16, 6 << 16).is_ok());
    for (offset, len) in [(0, 4096), (4096, 3 << 16), (0, (3 << 16) + 4096)] {
        assert_eq!(verdict(striped, cmd::WRITE_ZEROES, fast, offset, len), Err(NbdError::Enotsup));
        assert!(verdict(striped, cmd::WRITE_ZEROES, 0, offset, len).is_ok(), "slowly it works");
    }
}

#[test]
fn a_read_too_large_for_one_chunk_is_eoverflow() {
    assert_eq!(verdict(TERMS, cmd::READ, cmd_flags::DF, 0, (32 << 20) + 1), Err(NbdError::Eoverflow));
    assert!(verdict(TERMS, cmd::READ, cmd_flags::DF, 0, 32 << 20).is_ok());
}

#[test]
fn with_extended_headers_lengths_have_64_bits_but_payloads_do_not() {
    let terms = Terms { size_bytes: 1 << 50, ..EXTENDED };
    let (offset, len) = (4096, (1 << 50) - 4096);
    for kind in [cmd::TRIM, cmd::CACHE, cmd::WRITE_ZEROES, cmd::BLOCK_STATUS] {
        assert!(verdict(terms, kind, 0, offset, len).is_ok(), "command {kind}");
        assert!(verdict(terms, kind, 0, offset, len + 1).is_err(), "command {kind}");
        assert_eq!(request(kind, 0, 0, u64::MAX).payload_bytes(Style::Extended), Ok(0));
    }
    assert_eq!(verdict(terms, cmd::READ, 0, 0, 1 << 32), Err(NbdError::Einval));
    assert_eq!(verdict(terms, cmd::WRITE, cmd_flags::PAYLOAD_LEN, 0, 1 << 32), Err(NbdError::Einval));
    for len in [u64::from(MAX_DRAIN_BYTES) + 1, 1 << 32, u64::MAX] {
        let request = request(cmd::TRIM, cmd_flags::PAYLOAD_LEN, 0, len);
        assert_eq!(request.payload_bytes(Style::Extended), Err(Violation::PayloadTooLong(len)));
    }
}

#[test]
fn with_extended_headers_the_flag_tells_whether_there_is_a_payload() {
    let flag = cmd_flags::PAYLOAD_LEN;
    assert!(verdict(EXTENDED, cmd::WRITE, flag, 0, 8).is_ok());
    assert!(verdict(EXTENDED, cmd::WRITE, 0, 0, 8).is_ok(), "a write always has one");
    for kind in [cmd::READ, cmd::FLUSH, cmd::TRIM, cmd::CACHE, cmd::WRITE_ZEROES, cmd::BLOCK_STATUS, 99] {
        assert_eq!(verdict(EXTENDED, kind, flag, 0, 8), Err(NbdError::Einval), "command {kind}");
        assert_eq!(request(kind, flag, 0, 8).payload_bytes(Style::Extended), Ok(8));
    }
}

#[test]
fn a_status_query_needs_a_context_and_may_name_some_of_them() {
    assert_eq!(verdict(TERMS, cmd::BLOCK_STATUS, 0, 0, 1), Err(NbdError::Einval));
    let one = verdict(EXTENDED, cmd::BLOCK_STATUS, cmd_flags::REQ_ONE, 0, 512);
    assert_eq!(one, Ok(Command::BlockStatus { offset: 0, len: 512, contexts: HEALTH, only_first: true }));

    let both = Terms { contexts: Contexts::all(), ..EXTENDED };
    let filtered = |terms: &Terms, len: u64, ids: &[u32]| {
        let ids: Vec<u8> = ids.iter().flat_map(|id| id.to_be_bytes()).collect();
        let filter = [&len.to_be_bytes()[..], &ids].concat();
        let request = request(cmd::BLOCK_STATUS, cmd_flags::PAYLOAD_LEN, 512, filter.len() as u64);
        assert!(request.has_filter(terms) || filter.len() > MAX_FILTER_BYTES || ids.is_empty());
        request.decide_filtered(terms, &filter).map_err(|refusal| refusal.error)
    };
    let asked = |contexts| Ok(Command::BlockStatus { offset: 512, len: 100, contexts, only_first: false });
    assert_eq!(filtered(&both, 100, &[2]), asked(HEALTH));
    assert_eq!(filtered(&both, 100, &[2, 1]), asked(Contexts::all()));
    for (terms, len, ids) in [
        (both, 100, &[][..]),
        (both, 100, &[1, 1]),
        (both, 100, &[3]),
        (both, 100, &[0]),
        (EXTENDED, 100, &[1]),
        (both, 0, &[1]),
        (both, 1 << 30, &[1]),
        (both, u64::MAX, &[1]),
    ] {
        assert_eq!(filtered(&terms, len, ids), Err(NbdError::Einval), "{len} {ids:?}");
    }
    let ragged = [0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0];
    assert!(request(cmd::BLOCK_STATUS, 0, 0, 0).decide_filtered(&both, &ragged).is_err());
}
