//! The stream of requests by its raw bytes.

use super::super::Contexts;
use super::super::errno::NbdError;
use super::super::reply::Style;
use super::super::wire::{EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC, cmd, cmd_flags};
use super::*;
use crate::export::MetaContext;
use proptest::prelude::*;

const TERMS: Terms = Terms {
    size_bytes: 1 << 30,
    min_block: 1,
    max_payload: 1 << 20,
    read_only: false,
    trim: true,
    fast_zeroes: false,
    fast_zero_bytes: 1,
    style: Style::Simple,
    contexts: Contexts::NONE,
    long_piece: 1 << 20,
};

const EXTENDED: Terms =
    Terms { style: Style::Extended, contexts: Contexts::only(MetaContext::Health), ..TERMS };

fn request(kind: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&0u16.to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes
}

fn extended(kind: u16, flags: u16, cookie: u64, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = EXTENDED_REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes
}

/// A step without the borrow; pieces of one payload joined.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Request(u64, Command),
    Payload(Vec<u8>),
    Refused(u64, NbdError),
    Violation(Violation),
}

fn run(pieces: &[&[u8]]) -> Vec<Seen> {
    run_on(TERMS, pieces)
}

fn run_on(terms: Terms, pieces: &[&[u8]]) -> Vec<Seen> {
    let mut stream = Transmission::new(terms);
    let mut seen: Vec<Seen> = Vec::new();
    for piece in pieces {
        let mut input = *piece;
        loop {
            match stream.next(&mut input) {
                Ok(Step::More) => break assert!(input.is_empty()),
                Ok(Step::Request(id, command)) => seen.push(Seen::Request(id.cookie.0, command)),
                Ok(Step::Payload(bytes)) => match seen.last_mut() {
                    Some(Seen::Payload(before)) => before.extend_from_slice(bytes),
                    _ => seen.push(Seen::Payload(bytes.to_vec())),
                },
                Ok(Step::Refused(refusal)) => seen.push(Seen::Refused(refusal.id.cookie.0, refusal.error)),
                Err(violation) => {
                    seen.push(Seen::Violation(violation));
                    return seen;
                }
            }
        }
    }
    seen
}

fn sample() -> (Vec<u8>, Vec<Seen>) {
    let bytes = [
        request(cmd::READ, 1, 4096, 512),
        request(cmd::WRITE, 2, 0, 300),
        vec![0xab; 300],
        request(cmd::WRITE, 3, 1 << 30, 100),
        vec![0xcd; 100],
        request(cmd::WRITE, 4, 0, 0),
        request(cmd::FLUSH, 5, 0, 0),
        request(0x55, 6, 0, 9),
        request(cmd::DISC, 7, 0, 0),
    ]
    .concat();
    let seen = vec![
        Seen::Request(1, Command::Read { offset: 4096, len: 512, whole: false }),
        Seen::Request(2, Command::Write { offset: 0, len: 300, fua: false }),
        Seen::Payload(vec![0xab; 300]),
        Seen::Refused(3, NbdError::Enospc),
        Seen::Refused(4, NbdError::Einval),
        Seen::Request(5, Command::Flush),
        Seen::Refused(6, NbdError::Einval),
        Seen::Request(7, Command::Disconnect),
    ];
    (bytes, seen)
}

/// Requests with extended headers: with payloads where they belong and where they do not.
fn extended_sample() -> (Vec<u8>, Vec<Seen>) {
    let payload = cmd_flags::PAYLOAD_LEN;
    let filter = |id: u32| [&4096u64.to_be_bytes()[..], &id.to_be_bytes()].concat();
    let bytes = [
        extended(cmd::WRITE, payload, 1, 0, 300),
        vec![0xab; 300],
        // As qemu does it.
        extended(cmd::WRITE, 0, 2, 0, 300),
        vec![0xba; 300],
        extended(cmd::READ, payload, 3, 0, 100),
        vec![0xcd; 100],
        extended(cmd::BLOCK_STATUS, payload, 4, 512, 12),
        filter(2),
        extended(cmd::BLOCK_STATUS, payload, 5, 512, 12),
        filter(1),
        extended(cmd::BLOCK_STATUS, payload, 6, 512, 700),
        vec![0xef; 700],
        extended(cmd::TRIM, 0, 7, 512, (1 << 30) - 512),
        extended(cmd::BLOCK_STATUS, 0, 8, 0, 1 << 30),
        extended(cmd::WRITE_ZEROES, 0, 9, 0, u64::MAX),
        extended(cmd::DISC, 0, 10, 0, 0),
    ]
    .concat();
    let contexts = EXTENDED.contexts;
    let status = |offset, len| Command::BlockStatus { offset, len, contexts, only_first: false };
    let seen = vec![
        Seen::Request(1, Command::Write { offset: 0, len: 300, fua: false }),
        Seen::Payload(vec![0xab; 300]),
        Seen::Request(2, Command::Write { offset: 0, len: 300, fua: false }),
        Seen::Payload(vec![0xba; 300]),
        Seen::Refused(3, NbdError::Einval),
        Seen::Request(4, status(512, 4096)),
        Seen::Refused(5, NbdError::Einval),
        Seen::Refused(6, NbdError::Einval),
        Seen::Request(7, Command::Trim { offset: 512, len: (1 << 30) - 512, fua: false }),
        Seen::Request(8, status(0, 1 << 30)),
        Seen::Refused(9, NbdError::Enospc),
        Seen::Request(10, Command::Disconnect),
    ];
    (bytes, seen)
}

#[test]
fn extended_requests_and_their_payloads_are_told_apart() {
    let (bytes, expected) = extended_sample();
    assert_eq!(run_on(EXTENDED, &[&bytes]), expected);
}

#[test]
fn headers_of_the_other_kind_end_the_connection() {
    let (compact, long) = (request(cmd::FLUSH, 1, 0, 0), extended(cmd::FLUSH, 0, 1, 0, 0));
    let magic = |of| vec![Seen::Violation(Violation::RequestMagic(of))];
    assert_eq!(run_on(TERMS, &[&long]), magic(EXTENDED_REQUEST_MAGIC));
    assert_eq!(run_on(EXTENDED, &[&[&compact[..], &[0; 4]].concat()]), magic(REQUEST_MAGIC));
    let absurd = extended(cmd::READ, cmd_flags::PAYLOAD_LEN, 1, 0, u64::MAX);
    let violation = Violation::PayloadTooLong(u64::MAX);
    assert_eq!(run_on(EXTENDED, &[&absurd]), [Seen::Violation(violation)]);
}

#[test]
fn requests_and_payloads_are_told_apart() {
    let (bytes, expected) = sample();
    assert_eq!(run(&[&bytes]), expected);
}

#[test]
fn a_payload_beyond_the_maximum_is_skipped_and_one_beyond_reason_ends_the_connection() {
    let too_large =
        [request(cmd::WRITE, 1, 0, 2 << 20), vec![1; 2 << 20], request(cmd::FLUSH, 2, 0, 0)].concat();
    assert_eq!(run(&[&too_large]), [Seen::Refused(1, NbdError::Einval), Seen::Request(2, Command::Flush)]);
    let absurd = request(cmd::WRITE, 1, 0, u32::MAX);
    assert_eq!(run(&[&absurd]), [Seen::Violation(Violation::PayloadTooLong(u64::from(u32::MAX)))]);
}

#[test]
fn a_stream_out_of_step_ends_the_connection() {
    let bytes = [request(cmd::FLUSH, 1, 0, 0), vec![0; 28]].concat();
    assert_eq!(
        run(&[&bytes]),
        [Seen::Request(1, Command::Flush), Seen::Violation(Violation::RequestMagic(0))]
    );
}

#[test]
fn payload_received_past_the_machine_is_counted() {
    let mut stream = Transmission::new(TERMS);
    let bytes = [request(cmd::WRITE, 1, 0, 1000), vec![9; 10]].concat();
    let mut input = bytes.as_slice();
    assert!(matches!(stream.next(&mut input), Ok(Step::Request(..))));
    assert_eq!(stream.payload_left(), 1000);
    assert_eq!(stream.next(&mut input), Ok(Step::Payload(&[9; 10])));
    stream.skip_payload(989);
    assert_eq!((stream.payload_left(), stream.wants_bytes()), (1, 1));
    stream.skip_payload(1);
    assert_eq!((stream.payload_left(), stream.wants_bytes()), (0, 28));
}

proptest! {
    #[test]
    fn any_split_of_the_bytes_gives_the_same_steps(cuts in prop::collection::vec(0usize..1600, 0..16)) {
        for (terms, (bytes, expected)) in [(TERMS, sample()), (EXTENDED, extended_sample())] {
            let mut cuts: Vec<_> = cuts.iter().map(|&cut| cut.min(bytes.len())).collect();
            cuts.sort_unstable();
            let (mut pieces, mut start) = (Vec::new(), 0);
            for cut in cuts.into_iter().chain([bytes.len()]) {
                pieces.push(&bytes[start..cut]);
                start = cut;
            }
            prop_assert_eq!(run_on(terms, &pieces), expected);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(noise in prop::collection::vec(any::<u8>(), 0..600), kind in 0u16..9, len: u32) {
        let bytes = [request(kind, 1, 0, len), noise].concat();
        run(&[&bytes]);
        let flags = cmd_flags::PAYLOAD_LEN * (len as u16 & 1);
        run_on(EXTENDED, &[&[&extended(kind, flags, 1, 0, u64::from(len) % 2000), &bytes[28..]].concat()]);
    }
}
