//! What the fuzz targets do with their bytes. No fuzzer is needed to call it: nbd-server/tests/fuzz.rs runs the same
//! functions over the seeds and over seeded mutations of them. What they found stands in docs/FUZZING.md.
//!
//! The targets feed the same bytes whole and in pieces: a peer's bytes may arrive in any portions, and what they
//! mean must not depend on that.

mod superblocks;
mod tls_entry;

pub use superblocks::superblocks;
pub use tls_entry::tls_entry;

use nbd_server::export::{Export, ExportId, Exports, MetaContext};
use nbd_server::limits::{MAX_DRAIN_BYTES, MAX_REQUEST_BYTES};
use nbd_server::offers::Offers;
use nbd_server::proto::reply::Style;
use nbd_server::proto::wire::{OPTION_MAGIC, opt};
use nbd_server::proto::{Command, Contexts, Handshake, Progress, Step, Terms, Transmission, Violation};
use raidcore::dev::{BlockSize, Geometry};

/// A client's side of a handshake. The first byte sets the size of the pieces.
pub fn handshake(data: &[u8]) {
    let Some((&portion, bytes)) = data.split_first() else { return };
    let whole = converse(bytes, bytes.len());
    assert_eq!(converse(bytes, usize::from(portion) + 1), whole);
    // An option answers with at most a list of both exports; the rest is what an error message needs.
    let options = bytes.len() / 16 + 1;
    assert!(whole.0.len() <= 256 * options, "{} bytes sent for {} received", whole.0.len(), bytes.len());
}

/// The data of an option about metadata contexts, in a handshake that is otherwise in order. The first byte sets the
/// size of the pieces, the second the option.
pub fn meta_contexts(data: &[u8]) {
    let [portion, kind, bytes @ ..] = data else { return };
    let number = if kind & 1 == 0 { opt::LIST_META_CONTEXT } else { opt::SET_META_CONTEXT };
    let agreement = if kind & 2 == 0 { opt::STRUCTURED_REPLY } else { opt::EXTENDED_HEADERS };
    let choice = option(opt::GO, b"\0\0\0\x04vol0\0\0");
    let stream = [vec![0, 0, 0, 3], option(agreement, b""), option(number, bytes), choice].concat();
    let whole = converse(&stream, stream.len());
    assert_eq!(converse(&stream, usize::from(*portion) + 1), whole);
    let (out, end, taken) = whole;
    // Three options, each answered in a line or two, whatever the queries are.
    assert!(out.len() <= 512 && taken == stream.len(), "{} bytes sent, {taken} taken", out.len());
    match end {
        Ok(Progress::Chosen(chosen)) => {
            assert!(number == opt::SET_META_CONTEXT || chosen.contexts.is_empty())
        }
        other => panic!("a well-formed handshake ends with {other:?}"),
    }
}

/// A client's side of a transmission. The first byte sets the size of the pieces, the second the export.
pub fn requests(data: &[u8]) {
    let [portion, kind, bytes @ ..] = data else { return };
    let terms = Terms {
        size_bytes: 1 << 24,
        min_block: if kind & 1 == 0 { 1 } else { 4096 },
        max_payload: if kind & 2 == 0 { MAX_REQUEST_BYTES } else { 1 << 16 },
        read_only: kind & 4 != 0,
        trim: kind & 8 != 0,
        fast_zeroes: kind & 16 != 0,
        fast_zero_bytes: 4096,
        style: match kind >> 5 & 3 {
            0 => Style::Simple,
            1 => Style::Structured,
            _ => Style::Extended,
        },
        contexts: match kind >> 5 {
            0 | 2 | 4 => Contexts::NONE,
            6 => Contexts::only(MetaContext::Health),
            _ => Contexts::all(),
        },
        long_piece: 1 << 20,
    };
    let whole = transmit(terms, bytes, bytes.len());
    assert_eq!(transmit(terms, bytes, usize::from(*portion) + 1), whole);
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let header = [OPTION_MAGIC.to_be_bytes().to_vec(), number.to_be_bytes().to_vec()].concat();
    [&header, &(data.len() as u32).to_be_bytes()[..], data].concat()
}

type End = Result<Progress, Violation>;

/// What is sent, how it ends, and how many bytes are taken until then.
fn converse(bytes: &[u8], portion: usize) -> (Vec<u8>, End, usize) {
    let exports = exports();
    let (mut handshake, mut out, mut taken) = (Handshake::new(), Vec::new(), 0);
    for piece in bytes.chunks(portion.max(1)) {
        let mut rest = piece;
        loop {
            let (used, progress) = handshake.feed(rest, &Offers::all(&exports), &mut out);
            taken += used;
            rest = &rest[used..];
            match progress {
                Ok(Progress::More) => {
                    assert!(rest.is_empty(), "bytes are left though more are wanted");
                    break;
                }
                Ok(Progress::Answered) => {}
                end => return (out, end, taken),
            }
        }
    }
    (out, Ok(Progress::More), taken)
}

fn exports() -> Exports {
    let mut exports = Exports::new();
    for (id, name) in [(0, "vol0"), (1, "a")] {
        let geometry = Geometry::plain(1 << 24, BlockSize::B4096);
        let (name, description) = (name.to_owned(), "for the fuzzer".to_owned());
        let added =
            exports.add(Export { id: ExportId(id), name, description, geometry, byte_granular: true });
        assert_eq!(added, Ok(()));
    }
    exports
}

#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Request(u64, Command),
    Refused(u64, u32),
    Payload(usize, u64),
    Violation(Violation),
}

fn transmit(terms: Terms, bytes: &[u8], portion: usize) -> Vec<Seen> {
    let mut stream = Transmission::new(terms);
    let mut seen = Vec::new();
    for piece in bytes.chunks(portion.max(1)) {
        let mut input = piece;
        loop {
            assert!(stream.wants_bytes() > 0 && stream.payload_left() <= MAX_DRAIN_BYTES);
            match stream.next(&mut input) {
                Ok(Step::More) => break assert!(input.is_empty(), "bytes are left though more are wanted"),
                Ok(Step::Request(id, command)) => {
                    check(&terms, command);
                    seen.push(Seen::Request(id.cookie.0, command));
                }
                Ok(Step::Payload(bytes)) => {
                    let sum: u64 = bytes.iter().map(|byte| u64::from(*byte)).sum();
                    match seen.last_mut() {
                        Some(Seen::Payload(len, total)) => {
                            *len += bytes.len();
                            *total += sum;
                        }
                        _ => seen.push(Seen::Payload(bytes.len(), sum)),
                    }
                }
                Ok(Step::Refused(refusal)) => {
                    seen.push(Seen::Refused(refusal.id.cookie.0, refusal.error.code()));
                }
                Err(violation) => {
                    seen.push(Seen::Violation(violation));
                    return seen;
                }
            }
        }
    }
    seen
}

/// Whatever a client sends, a request that is executed lies within the export and is permitted.
fn check(terms: &Terms, command: Command) {
    let (offset, len, writes, payload) = match command {
        Command::Read { offset, len, .. } => (offset, u64::from(len), false, true),
        Command::Write { offset, len, .. } => (offset, u64::from(len), true, true),
        Command::Trim { offset, len, .. } => (offset, len, true, false),
        Command::WriteZeroes { offset, len, .. } => (offset, len, true, false),
        Command::Cache { offset, len } => (offset, len, false, false),
        Command::BlockStatus { offset, len, contexts, .. } => {
            assert!(!contexts.is_empty() && contexts.iter().all(|context| terms.contexts.contains(context)));
            (offset, len, false, false)
        }
        Command::Flush | Command::Disconnect => return,
    };
    let (min, max) = (u64::from(terms.min_block), u64::from(terms.max_payload));
    assert!(len > 0 && offset.checked_add(len).is_some_and(|end| end <= terms.size_bytes), "{command:?}");
    assert!(offset.is_multiple_of(min) && len.is_multiple_of(min), "{command:?}");
    assert!(!payload || len <= max, "{command:?}");
    assert!(!writes || !terms.read_only, "{command:?}");
}

/// A server's side of a handshake, as our client hears it. The first byte sets the size of the pieces, the second what
/// is wished for.
pub fn client_handshake(data: &[u8]) {
    use nbd_server::client;
    let [portion, kind, bytes @ ..] = data else { return };
    let wishes = client::Wishes { tls: kind & 1 != 0, structured: kind & 2 != 0, extended: kind & 4 != 0 };
    let goal = if kind & 8 == 0 { client::Goal::Go } else { client::Goal::Info };
    let listen = |portion: usize| {
        let (mut handshake, mut out) = (client::Handshake::new(goal, wishes, "vol0"), Vec::new());
        for piece in bytes.chunks(portion.max(1)) {
            match handshake.feed(piece, &mut out).1 {
                Ok(client::Step::More) => {}
                // Whether bytes follow in the same piece decides if they are an injection.
                Ok(client::Step::StartTls)
                | Err(client::ClientError::Broken(client::Rubbish::ClearAfterTls)) => {
                    return (out, "tls".to_owned());
                }
                end => return (out, format!("{end:?}")),
            }
        }
        (out, "more".to_owned())
    };
    let (whole, pieces) = (listen(bytes.len()), listen(usize::from(*portion) + 1));
    assert_eq!(whole, pieces);
    assert!(whole.0.len() <= 256, "{} bytes sent", whole.0.len());
}

/// A server's replies to two reads and a write. The first byte sets the size of the pieces, the second the kind of
/// replies. No byte of memory may be written twice, and no read end well that was not written whole.
pub fn client_replies(data: &[u8]) {
    use nbd_server::client::{Part, Replies, ReplyParser};
    let [portion, kind, bytes @ ..] = data else { return };
    let replies = match kind % 3 {
        0 => Replies::Simple,
        1 => Replies::Structured,
        _ => Replies::Extended,
    };
    let mut parser = ReplyParser::new(replies);
    let mut written = [vec![0u8; 512], vec![0u8; 4096]];
    parser.expect_read(0, 0, 512);
    parser.expect_read(1, 1 << 20, 4096);
    parser.expect(2);
    for mut piece in bytes.chunks(usize::from(*portion) + 1) {
        loop {
            let (taken, part) = parser.next(piece);
            piece = &piece[taken..];
            let (cookie, at, len) = match part {
                Ok(Part::More) => break,
                Ok(Part::Data { cookie, at, input }) => (cookie, at as usize, input.len()),
                Ok(Part::Zeroes { cookie, at, len }) => (cookie, at as usize, len as usize),
                Ok(Part::Answer { cookie, result }) => {
                    let is_whole = written.get(cookie as usize).is_none_or(|of| of.iter().all(|n| *n == 1));
                    assert!(is_whole || result.is_err());
                    continue;
                }
                Err(_) => return,
            };
            written[cookie as usize][at..at + len].iter_mut().for_each(|n| *n += 1);
            assert!(written[cookie as usize].iter().all(|n| *n <= 1));
        }
    }
}
