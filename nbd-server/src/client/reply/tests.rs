//! Replies in any portions, and replies that no server may send.

use super::*;
use proptest::prelude::*;

/// A read of the model: where, and what the server has there.
#[derive(Clone, Debug)]
struct Read {
    offset: u64,
    data: Vec<u8>,
}

fn simple(errno: u32, cookie: u64, data: &[u8]) -> Vec<u8> {
    let head = [SIMPLE_REPLY_MAGIC.to_be_bytes(), errno.to_be_bytes()].concat();
    [head.as_slice(), &cookie.to_be_bytes(), data].concat()
}

fn chunk_of(replies: Replies, flags: u16, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = match replies {
        Replies::Extended => EXTENDED_REPLY_MAGIC.to_be_bytes().to_vec(),
        _ => STRUCTURED_REPLY_MAGIC.to_be_bytes().to_vec(),
    };
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    match replies {
        Replies::Extended => {
            bytes.extend([0; 8]);
            bytes.extend((payload.len() as u64).to_be_bytes());
        }
        _ => bytes.extend((payload.len() as u32).to_be_bytes()),
    }
    bytes.extend(payload);
    bytes
}

fn data(replies: Replies, flags: u16, cookie: u64, offset: u64, bytes: &[u8]) -> Vec<u8> {
    chunk_of(replies, flags, chunk::OFFSET_DATA, cookie, &[&offset.to_be_bytes(), bytes].concat())
}

fn hole(replies: Replies, flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let payload = [offset.to_be_bytes().as_slice(), &len.to_be_bytes()].concat();
    chunk_of(replies, flags, OFFSET_HOLE, cookie, &payload)
}

fn failure(replies: Replies, flags: u16, cookie: u64, errno: u32, said: &str) -> Vec<u8> {
    let head = [errno.to_be_bytes().as_slice(), &(said.len() as u16).to_be_bytes()].concat();
    chunk_of(replies, flags, chunk::ERROR, cookie, &[&head, said.as_bytes()].concat())
}

/// What came of a stream: the memory of each read, the answers in order, and the rubbish that ended it.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    memory: Vec<Vec<u8>>,
    answers: Vec<(u64, Result<(), u32>)>,
    rubbish: Option<Rubbish>,
}

/// Feeds a stream in portions to a parser that expects `reads` under cookies 0, 1, 2..., and a write under 99.
/// Memory starts as 0xee.
fn feed(replies: Replies, reads: &[Read], stream: &[u8], portion: usize) -> Outcome {
    let mut parser = ReplyParser::new(replies);
    let mut outcome = Outcome::default();
    for (cookie, read) in reads.iter().enumerate() {
        parser.expect_read(cookie as u64, read.offset, read.data.len() as u64);
        outcome.memory.push(vec![0xee; read.data.len()]);
    }
    parser.expect(99);
    for mut piece in stream.chunks(portion) {
        loop {
            let (taken, part) = parser.next(piece);
            match part {
                Ok(Part::Data { cookie, at, input }) => {
                    let len = input.len();
                    outcome.memory[cookie as usize][at as usize..][..len].copy_from_slice(&piece[input]);
                }
                Ok(Part::Zeroes { cookie, at, len }) => {
                    outcome.memory[cookie as usize][at as usize..][..len as usize].fill(0);
                }
                Ok(Part::Answer { cookie, result }) => {
                    outcome.answers.push((cookie, result.map_err(|refusal| refusal.errno)));
                }
                Ok(Part::More) => {
                    assert_eq!(taken, piece.len());
                    break;
                }
                Err(rubbish) => {
                    assert_eq!(parser.next(b"more").1, Err(rubbish), "rubbish is final");
                    outcome.rubbish = Some(rubbish);
                    return outcome;
                }
            }
            piece = &piece[taken..];
        }
    }
    outcome
}

fn one_read() -> Vec<Read> {
    vec![Read { offset: 1000, data: (0..100).collect() }]
}

fn rubbish(replies: Replies, stream: &[Vec<u8>]) -> Option<Rubbish> {
    let outcome = feed(replies, &one_read(), &stream.concat(), 1 << 20);
    assert!(outcome.answers.iter().all(|(cookie, result)| *cookie != 0 || result.is_err()), "{outcome:?}");
    outcome.rubbish
}

const S: Replies = Replies::Structured;

#[test]
fn what_does_not_fit_what_was_asked_is_rubbish() {
    let bytes = [7; 100];
    let cases = [
        (vec![data(S, 1, 5, 1000, &bytes)], Rubbish::Cookie(5)),
        (vec![simple(0, 5, &[])], Rubbish::Cookie(5)),
        (vec![simple(0, 0, &bytes)], Rubbish::ReplyMagic(SIMPLE_REPLY_MAGIC)),
        (vec![data(S, 1, 0, 999, &bytes)], Rubbish::OutsideRequest),
        (vec![data(S, 1, 0, 1001, &bytes)], Rubbish::OutsideRequest),
        (vec![data(S, 1, 0, u64::MAX, &bytes)], Rubbish::OutsideRequest),
        (vec![hole(S, 1, 0, 1000, u32::MAX)], Rubbish::OutsideRequest),
        (vec![hole(S, 0, 0, 1000, 0)], Rubbish::EndlessReply),
        (vec![data(S, 0, 0, 1000, &bytes[..50]), data(S, 1, 0, 1049, &bytes[..51])], Rubbish::Overlap),
        (vec![data(S, 0, 0, 1050, &bytes[..50]), hole(S, 1, 0, 1000, 51)], Rubbish::Overlap),
        (vec![data(S, 0, 0, 1000, &bytes), data(S, 0, 0, 1000, &bytes)], Rubbish::Overlap),
        (vec![data(S, 1, 0, 1000, &bytes[..99])], Rubbish::Missing(1)),
        (vec![chunk_of(S, 1, chunk::NONE, 0, &[])], Rubbish::Missing(100)),
        (vec![chunk_of(S, 0, chunk::NONE, 99, &[])], Rubbish::ChunkType(0)),
        (vec![data(S, 1, 99, 1000, &bytes)], Rubbish::ChunkType(1)),
        (vec![chunk_of(S, 1, 5, 0, &[0; 8])], Rubbish::ChunkType(5)),
        (vec![chunk_of(S, 1, chunk::OFFSET_DATA, 0, &[0; 8])], Rubbish::ChunkLength { kind: 1, len: 8 }),
        (vec![chunk_of(S, 1, chunk::ERROR, 0, &[0; 5])], Rubbish::ChunkLength { kind: 0x8001, len: 5 }),
        (
            vec![chunk_of(S, 1, chunk::ERROR, 0, &[0, 0, 0, 5, 0, 9])],
            Rubbish::ChunkLength { kind: 0x8001, len: 6 },
        ),
        (vec![failure(S, 1, 0, 0, "fine")], Rubbish::ErrorZero),
        (vec![failure(S, 0, 0, 5, "no"); 100], Rubbish::EndlessReply),
        (vec![b"HTTP".to_vec()], Rubbish::ReplyMagic(0x4854_5450)),
        (vec![chunk_of(Replies::Extended, 1, 0, 99, &[])], Rubbish::ReplyMagic(EXTENDED_REPLY_MAGIC)),
    ];
    for (stream, expected) in cases {
        assert_eq!(rubbish(S, &stream), Some(expected));
    }
    let twice = [chunk_of(S, 1, chunk::NONE, 99, &[]), chunk_of(S, 1, chunk::NONE, 99, &[])];
    assert_eq!(rubbish(S, &twice), Some(Rubbish::Cookie(99)), "an answer after the answer");
    assert_eq!(
        rubbish(Replies::Simple, &[data(S, 1, 0, 1000, &bytes)]),
        Some(Rubbish::ReplyMagic(STRUCTURED_REPLY_MAGIC))
    );
}

#[test]
fn a_length_no_memory_has_is_refused_by_its_head() {
    let mut head = chunk_of(Replies::Extended, 1, chunk::ERROR, 0, &[]);
    head[24..32].fill(0xff);
    let expected = Rubbish::ChunkLength { kind: 0x8001, len: u64::MAX };
    assert_eq!(rubbish(Replies::Extended, &[head]), Some(expected));
}

#[test]
fn the_first_error_of_a_reply_is_the_requests_whatever_follows() {
    let stream =
        [failure(S, 0, 0, 5, "bad sector"), data(S, 0, 0, 1000, &[1; 100]), failure(S, 1, 0, 28, "and full")];
    let outcome = feed(S, &one_read(), &stream.concat(), 7);
    assert_eq!((outcome.answers, outcome.rubbish), (vec![(0, Err(5))], None));
}

#[test]
fn data_received_past_the_parser_counts() {
    let mut parser = ReplyParser::new(Replies::Simple);
    parser.expect_read(3, 0, 1 << 20);
    let head = simple(0, 3, &[]);
    assert_eq!(parser.next(&head), (16, Ok(Part::More)));
    assert_eq!(parser.awaited(), Some(Awaited { cookie: 3, at: 0, len: 1 << 20 }));
    parser.took_data(1000);
    assert_eq!(parser.awaited(), Some(Awaited { cookie: 3, at: 1000, len: (1 << 20) - 1000 }));
    parser.took_data((1 << 20) - 1000);
    assert_eq!(parser.next(&[]), (0, Ok(Part::Answer { cookie: 3, result: Ok(()) })));
    assert_eq!(parser.unanswered(), 0);
}

/// Reads, and a correct stream of replies to them and to the write, in which chunks of different reads are mixed.
fn conversation() -> impl Strategy<Value = (Replies, Vec<Read>, Vec<u8>)> {
    let read = (0u64..1 << 40, proptest::collection::vec(any::<u8>(), 1..200), any::<u64>());
    let kinds = prop_oneof![Just(Replies::Simple), Just(Replies::Structured), Just(Replies::Extended)];
    (kinds, proptest::collection::vec(read, 1..5), any::<u64>()).prop_map(|(replies, reads, seed)| {
        let mut queues: Vec<Vec<Vec<u8>>> = Vec::new();
        let mut model = Vec::new();
        for (cookie, (offset, bytes, cuts)) in reads.into_iter().enumerate() {
            let cookie = cookie as u64;
            let mut bytes = bytes;
            let mut queue = Vec::new();
            if replies == Replies::Simple {
                queue.push(simple(0, cookie, &bytes));
            } else {
                // Cut into four, every second piece a hole at times, and in an order of its own.
                let len = bytes.len();
                let mut places: Vec<usize> = (0..3).map(|i| (cuts >> (8 * i)) as usize % (len + 1)).collect();
                places.extend([0, len]);
                places.sort_unstable();
                for pair in places.windows(2).filter(|pair| pair[0] < pair[1]) {
                    let (start, end) = (pair[0], pair[1]);
                    let at = offset + start as u64;
                    if cuts >> 40 & 1 == 1 && start % 2 == 1 {
                        bytes[start..end].fill(0);
                        queue.push(hole(replies, 0, cookie, at, (end - start) as u32));
                    } else {
                        queue.push(data(replies, 0, cookie, at, &bytes[start..end]));
                    }
                }
                if cuts >> 41 & 1 == 1 {
                    queue.reverse();
                }
                queue.push(chunk_of(replies, 1, chunk::NONE, cookie, &[]));
            }
            queue.reverse();
            queues.push(queue);
            model.push(Read { offset, data: bytes });
        }
        let write = match replies {
            Replies::Extended => chunk_of(replies, 1, chunk::NONE, 99, &[]),
            _ => simple(0, 99, &[]),
        };
        queues.push(vec![write]);
        let mut stream = Vec::new();
        let mut seed = seed;
        while queues.iter().any(|queue| !queue.is_empty()) {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let which = (seed >> 33) as usize % queues.len();
            stream.extend(queues[which].pop().unwrap_or_default());
        }
        (replies, model, stream)
    })
}

proptest! {
    #[test]
    fn correct_replies_are_understood_in_any_portions((replies, reads, stream) in conversation(), portion in 1usize..300) {
        let outcome = feed(replies, &reads, &stream, portion);
        prop_assert_eq!(outcome.rubbish, None);
        prop_assert_eq!(outcome.answers.len(), reads.len() + 1);
        prop_assert!(outcome.answers.iter().all(|(_, result)| result.is_ok()));
        for (memory, read) in outcome.memory.iter().zip(&reads) {
            prop_assert_eq!(memory, &read.data);
        }
    }

    #[test]
    fn mutated_replies_never_panic_nor_end_a_read_well_that_was_not_answered_whole(
        (replies, reads, mut stream) in conversation(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
        portion in 1usize..300,
    ) {
        for (at, value) in changes {
            *at.get_mut(&mut stream) = value;
        }
        let lost = cut.index(stream.len() + 1);
        stream.truncate(lost);
        // Each byte of memory is written by the parser's word at most once: count instead of copying.
        let mut parser = ReplyParser::new(replies);
        for (cookie, read) in reads.iter().enumerate() {
            parser.expect_read(cookie as u64, read.offset, read.data.len() as u64);
        }
        parser.expect(99);
        let mut written: Vec<Vec<u32>> = reads.iter().map(|read| vec![0; read.data.len()]).collect();
        'stream: for mut piece in stream.chunks(portion) {
            loop {
                let (taken, part) = parser.next(piece);
                piece = &piece[taken..];
                match part {
                    Ok(Part::More) => break,
                    Ok(Part::Data { cookie, at, input }) => {
                        written[cookie as usize][at as usize..][..input.len()].iter_mut().for_each(|n| *n += 1);
                    }
                    Ok(Part::Zeroes { cookie, at, len }) => {
                        written[cookie as usize][at as usize..][..len as usize].iter_mut().for_each(|n| *n += 1);
                    }
                    Ok(Part::Answer { cookie, result: Ok(()) }) if cookie != 99 => {
                        prop_assert!(written[cookie as usize].iter().all(|n| *n == 1));
                    }
                    Ok(Part::Answer { .. }) => {}
                    Err(_) => break 'stream,
                }
            }
        }
        prop_assert!(written.iter().flatten().all(|n| *n <= 1));
    }

    #[test]
    fn any_bytes_at_all_are_survived(stream in proptest::collection::vec(any::<u8>(), 0..400), portion in 1usize..64) {
        for replies in [Replies::Simple, Replies::Structured, Replies::Extended] {
            feed(replies, &one_read(), &stream, portion);
        }
    }
}
