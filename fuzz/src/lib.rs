//! What the fuzz targets do with their bytes. No fuzzer is needed to call it: nbd-server/tests/fuzz.rs runs the same
//! functions over the seeds and over seeded mutations of them.
//!
//! Both targets feed the same bytes whole and in pieces: a peer's bytes may arrive in any portions, and what they
//! mean must not depend on that.

use nbd_server::export::{Export, ExportId, Exports};
use nbd_server::limits::{MAX_DRAIN_BYTES, MAX_REQUEST_BYTES};
use nbd_server::offers::Offers;
use nbd_server::proto::reply::Style;
use nbd_server::proto::{Command, Handshake, Progress, Step, Terms, Transmission, Violation};
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
        style: if kind & 32 == 0 { Style::Simple } else { Style::Structured },
    };
    let whole = transmit(terms, bytes, bytes.len());
    assert_eq!(transmit(terms, bytes, usize::from(*portion) + 1), whole);
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
                Ok(Step::Request(cookie, command)) => {
                    check(&terms, command);
                    seen.push(Seen::Request(cookie.0, command));
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
                    seen.push(Seen::Refused(refusal.cookie.0, refusal.error.code()));
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
        Command::Read { offset, len } => (offset, len, false, true),
        Command::Write { offset, len, .. } => (offset, len, true, true),
        Command::Trim { offset, len, .. } => (offset, len, true, false),
        Command::WriteZeroes { offset, len, .. } => (offset, len, true, false),
        Command::Flush | Command::Disconnect => return,
    };
    let end = offset.checked_add(u64::from(len));
    assert!(len > 0 && end.is_some_and(|end| end <= terms.size_bytes), "{command:?}");
    assert!(offset.is_multiple_of(u64::from(terms.min_block)) && len.is_multiple_of(terms.min_block));
    assert!(!payload || len <= terms.max_payload, "{command:?}");
    assert!(!writes || !terms.read_only, "{command:?}");
}
