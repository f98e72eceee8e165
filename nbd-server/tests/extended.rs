//! Extended headers over a socket: 64-bit lengths, payload flags, and requests the device does piece by piece.

#![allow(clippy::unwrap_used)] // a test may unwrap

mod common;

use common::raw::{Headers, Raw};
use common::{Server, be, hello_with, open, option};
use nbd_server::limits::{LONG_PIECE_BYTES, MAX_CACHE_BYTES};
use nbd_server::ram::RamDisk;
use parking_lot::Mutex;
use raidcore::buf::BufList;
use raidcore::dev::{BlockDev, BlockSize, Completion, ErrorKind, Geometry, Op, OpKind, Request, Tag};
use std::sync::Arc;

const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const ZEROES: u16 = 6;
const FUA: u16 = 1;
const NO_HOLE: u16 = 1 << 1;
const PAYLOAD_LEN: u16 = 1 << 5;

/// 1 TiB of nothing, with a diary. What begins at `bad` fails.
struct Huge {
    queued: Vec<Request>,
    diary: Diary,
    bad: u64,
}

type Diary = Arc<Mutex<Vec<(OpKind, u64, u64, bool)>>>;

const TIB: u64 = 1 << 40;
const STRIPE: u64 = 192 << 10;

impl BlockDev for Huge {
    fn geometry(&self) -> Geometry {
        Geometry {
            discard: true,
            preferred_bytes: STRIPE as u32,
            queue_depth: 2,
            ..Geometry::plain(TIB, BlockSize::B4096)
        }
    }
    fn submit(&mut self, request: Request) {
        self.queued.push(request);
    }
    fn reap(&mut self, done: &mut Vec<Completion>) {
        for request in std::mem::take(&mut self.queued) {
            let (offset, len) = request.op.extent();
            let flag = match request.op {
                Op::WriteZeroes { fua, .. } => fua,
                _ => false,
            };
            self.diary.lock().push((request.op.kind(), offset, len, flag));
            if offset == self.bad && len > 0 {
                done.push(request.refuse(ErrorKind::NoSpace));
                continue;
            }
            let bufs = match request.op {
                Op::Read { bufs, .. } => bufs,
                _ => BufList::new(),
            };
            done.push(Completion { tag: request.tag, result: Ok(()), bufs });
        }
    }
    fn cancel(&mut self, _: Tag) {}
}

fn huge(bad: u64) -> (Server, Diary) {
    let diary = Diary::default();
    (Server::start(Huge { queued: Vec::new(), diary: Arc::clone(&diary), bad }), diary)
}

#[test]
fn reads_and_writes_go_through_with_their_payload_flag() {
    let server = Server::start(RamDisk::new(8 << 20));
    let mut raw = Raw::connect(&server.path, Headers::Extended, &[]);
    let data: Vec<u8> = (0..200_000u32).map(|i| (i % 251 + 1) as u8).collect();
    for offset in [0, 3, 65536, (8 << 20) - 200_000] {
        assert_eq!(raw.error(PAYLOAD_LEN | FUA, WRITE, offset, 200_000, &data), 0);
        assert!(raw.read(0, offset, 200_000) == (data.clone(), 0));
    }
    assert_eq!(raw.error(0, WRITE, 0, 4, b"flag"), 0, "a write has its payload also without the flag");
    assert_eq!(raw.error(PAYLOAD_LEN, WRITE, (8 << 20) - 1, 2, b"xy"), 28);
    assert_eq!(raw.error(0, READ, 8 << 20, 1, b""), 22);
    assert_eq!(raw.error(0, READ, 0, 1 << 40, b""), 22);
    assert_eq!(raw.error(0, 99, 0, 1, b""), 22);
    assert_eq!(raw.error(0, FLUSH, 0, 0, b""), 0);
    // What is longer than anybody sends ends the connection.
    raw.send(PAYLOAD_LEN, WRITE, 1, 0, 1 << 40);
    assert!(raw.client.is_closed());
    server.wait_until_idle();
    server.stop();
}

#[test]
fn export_name_does_not_go_with_extended_headers() {
    let server = Server::start(RamDisk::new(8 << 20));
    let mut stream = open(&server.path);
    let bytes = [vec![0, 0, 0, 3], option(11, b""), option(1, b"vol")].concat();
    std::io::Write::write_all(&mut stream, &bytes).unwrap();
    let mut seen = Vec::new();
    std::io::Read::read_to_end(&mut stream, &mut seen).unwrap();
    assert_eq!(seen.len(), 18 + 20, "the option's answer is the last there is");
    let mut again = open(&server.path);
    assert_eq!(hello_with(&mut again, &[option(11, b"")]).0, 8 << 20);
    drop(again);
    server.wait_until_idle();
    server.stop();
}

#[test]
fn a_whole_device_is_zeroed_and_trimmed_in_pieces_between_stripes() {
    let (server, diary) = huge(u64::MAX);
    let mut raw = Raw::connect(&server.path, Headers::Extended, &[]);
    for (flags, command, kind) in [
        (FUA | NO_HOLE, ZEROES, OpKind::WriteZeroes),
        (0, TRIM, OpKind::Discard),
        (FUA, TRIM, OpKind::Discard),
    ] {
        assert_eq!(raw.error(flags, command, 4096, TIB - 4096, b""), 0);
        let mut entries = std::mem::take(&mut *diary.lock());
        if command == TRIM && flags == FUA {
            assert_eq!(entries.pop().unwrap().0, OpKind::Flush);
        }
        let mut at = 4096;
        for &(done, offset, len, fua) in &entries {
            assert!(done == kind && offset == at && len <= LONG_PIECE_BYTES, "{done} of {len} at {offset}");
            assert!(offset == 4096 || offset % STRIPE == 0, "a stripe is cut at {offset}");
            assert_eq!(fua, command == ZEROES);
            at += len;
        }
        assert_eq!(at, TIB);
    }
    drop(raw);
    server.wait_until_idle();
    server.stop();
}

#[test]
fn a_piece_that_fails_is_the_last_and_the_answer() {
    let piece = LONG_PIECE_BYTES - LONG_PIECE_BYTES % STRIPE;
    let (server, diary) = huge(2 * piece);
    let mut raw = Raw::connect(&server.path, Headers::Extended, &[]);
    assert_eq!(raw.error(0, ZEROES, 0, TIB, b""), 28);
    assert_eq!(diary.lock().len(), 3);
    assert_eq!(raw.error(0, READ, 0, 4096, b""), 0);
    drop(raw);
    server.wait_until_idle();
    server.stop();
}

#[test]
fn reading_ahead_looks_at_a_bounded_part_and_finds_bad_blocks() {
    let (server, diary) = huge(5 << 20);
    let mut raw = Raw::connect(&server.path, Headers::Extended, &[]);
    assert_ne!(raw.client.flags & 1 << 10, 0);
    assert_eq!(raw.error(0, CACHE, 1 << 30, TIB / 2, b""), 0);
    let read: u64 = diary.lock().drain(..).map(|(_, _, len, _)| len).sum();
    assert_eq!(read, MAX_CACHE_BYTES);
    assert_eq!(raw.error(FUA, CACHE, 1 << 30, 4096, b""), 0);
    assert_eq!(diary.lock().len(), 1);
    assert_eq!(raw.error(0, CACHE, 4 << 20, 4 << 20, b""), 28, "the device's error comes through");
    assert_eq!(raw.error(0, CACHE, TIB, 1, b""), 22);
    assert_eq!(raw.error(0, CACHE, 0, 0, b""), 22);
    drop(raw);
    server.wait_until_idle();
    server.stop();
}

#[test]
fn a_client_that_leaves_does_not_have_its_pieces_finished() {
    let (server, diary) = huge(u64::MAX);
    for _ in 0..20 {
        let mut raw = Raw::connect(&server.path, Headers::Extended, &[]);
        raw.send(0, ZEROES, 1, 0, TIB);
        raw.client.stream.shutdown(std::net::Shutdown::Both).unwrap();
        drop(raw);
        server.wait_until_idle();
    }
    // Whoever waits for the end of it would be told; the device is never handed the same piece twice.
    let entries = diary.lock();
    assert!(entries.iter().all(|(kind, ..)| *kind == OpKind::WriteZeroes));
    drop(entries);
    server.stop();
}

#[test]
fn replies_repeat_the_offset_of_their_request() {
    let server = Server::start(RamDisk::new(8 << 20));
    let mut raw = Raw::connect(&server.path, Headers::Extended, &[]);
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
    server.wait_until_idle();
    server.stop();
}
