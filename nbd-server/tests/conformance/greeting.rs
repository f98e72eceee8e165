//! "Handshake", "Newstyle negotiation", "Fixed newstyle negotiation", and the flags of both sides.

use crate::common::haggle::Haggle;
use crate::common::{option, request};
use crate::nbd::*;
use crate::stage::{SIZE, Stage};

#[test]
fn the_server_speaks_first_and_offers_fixed_newstyle_and_no_zeroes_and_nothing_else() {
    let stage = Stage::new();
    let mut stream = crate::common::open(&stage.server.path);
    let mut greeting = [0; 18];
    std::io::Read::read_exact(&mut stream, &mut greeting).unwrap();
    assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\x00\x03");
}

#[test]
fn client_flags_that_were_not_offered_close_the_connection_without_a_word() {
    let stage = Stage::new();
    for bit in 2..32 {
        let mut client = Haggle::with_flags(&stage.server.path, 1 << bit | 3);
        assert_eq!(client.rest(), b"", "bit {bit}");
    }
}

/// All four ways to answer the greeting, and the one option that goes with each.
#[test]
fn export_name_is_answered_with_size_flags_and_124_zeroes_unless_those_were_waived() {
    let stage = Stage::new();
    for (flags, zeroes) in [(0, 124), (1, 124), (2, 0), (3, 0)] {
        let mut client = Haggle::with_flags(&stage.server.path, flags);
        client.send(&[option(EXPORT_NAME, b"vol"), request(0, FLUSH, 7, 0, 0)].concat());
        assert_eq!(client.take(8), SIZE.to_be_bytes());
        let flags = client.take(2);
        assert_eq!(flags[1] & 1, 1, "NBD_FLAG_HAS_FLAGS is always set");
        assert_eq!(client.take(zeroes), vec![0; zeroes]);
        // What comes next is the answer to the request: not a byte too many, none too few.
        assert_eq!(
            client.take(16),
            [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0][..], &[0, 0, 0, 0, 0, 0, 0, 7]].concat()
        );
    }
}

#[test]
fn go_has_no_zeroes_behind_it_whatever_the_flags() {
    let stage = Stage::new();
    for flags in [1, 3] {
        let mut client = Haggle::with_flags(&stage.server.path, flags);
        assert_eq!(client.verdict(GO, &[0; 6]), REP_ACK);
        client.send(&request(0, FLUSH, 7, 0, 0));
        assert_eq!(client.take(16)[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
    }
}

/// The specification lets a server be more generous; here it is not relied upon.
#[test]
fn without_fixed_newstyle_every_option_but_export_name_closes_the_connection() {
    let stage = Stage::new();
    for number in [ABORT, LIST, PEEK_EXPORT, STARTTLS, INFO, GO, STRUCTURED_REPLY, EXTENDED_HEADERS, 99] {
        for flags in [0, 2] {
            let mut client = Haggle::with_flags(&stage.server.path, flags);
            client.send(&option(number, b""));
            assert_eq!(client.rest(), b"", "option {number}");
        }
    }
}

#[test]
fn a_greeting_may_be_answered_a_byte_at_a_time() {
    let stage = Stage::new();
    let mut stream = crate::common::open(&stage.server.path);
    for byte in [&[0, 0, 0, 3][..], &option(LIST, b"")].concat() {
        std::io::Write::write_all(&mut stream, &[byte]).unwrap();
        std::thread::yield_now();
    }
    let mut answer = [0; 18 + 20];
    std::io::Read::read_exact(&mut stream, &mut answer).unwrap();
    assert_eq!(answer[18..26], 0x0003_e889_0455_65a9u64.to_be_bytes());
}
