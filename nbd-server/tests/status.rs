//! `NBD_CMD_BLOCK_STATUS` and reads with holes over a socket, with and without extended headers, by a raw client.

#![allow(clippy::unwrap_used)] // a test may unwrap

mod common;

use common::raw::{Headers, Raw, extents};
use common::{Server, be};
use nbd_server::engine::{Devices, Engine};
use nbd_server::export::{Export, ExportId, Extent, MetaContext, health};
use nbd_server::limits::MAX_EXTENTS;
use nbd_server::listen::{ListenAddr, Listener};
use nbd_server::ram::RamDisk;
use nbd_server::reactor::{Reactor, ReactorConfig};
use raidcore::dev::{Completion, Request};
use raidcore::time::Time;
use std::ops::Range;
use std::path::PathBuf;

const SIZE: u64 = 8 << 20;
const READ: u16 = 0;
const STATUS: u16 = 7;
const DF: u16 = 1 << 2;
const REQ_ONE: u16 = 1 << 3;
const PAYLOAD_LEN: u16 = 1 << 5;
const BOTH: &[&str] = &["raidctl:health", "base:allocation"];

/// An engine that knows something: each MiB is degraded or not in turn, and the last is unreadable.
struct Knowing {
    devices: Devices,
}

impl Engine for Knowing {
    fn submit(&mut self, export: ExportId, request: Request) {
        self.devices.submit(export, request);
    }
    fn reap(&mut self, done: &mut Vec<Completion>) {
        self.devices.reap(done);
    }
    fn wake_at(&self) -> Option<Time> {
        self.devices.wake_at()
    }
    fn extents(&mut self, export: ExportId, context: MetaContext, range: Range<u64>, out: &mut Vec<Extent>) {
        if context == MetaContext::Allocation {
            return self.devices.extents(export, context, range, out);
        }
        let mut at = range.start;
        while at < range.end && out.len() < MAX_EXTENTS {
            // In pieces of 64 KiB, to be joined, and to the end of the export, to be cut.
            let len = (64 << 10) - at % (64 << 10);
            let flags = match at >> 20 {
                7 => health::UNREADABLE,
                mib if mib % 2 == 1 => health::DEGRADED,
                _ => health::REDUNDANT,
            };
            out.push(Extent { len, flags });
            at += len;
        }
    }
}

fn serve(dir: &tempfile::TempDir) -> (Reactor<Knowing>, PathBuf) {
    let path = dir.path().join("s");
    let listener = Listener::bind(&ListenAddr::Unix(path.clone())).unwrap();
    let engine = |_: &_| Ok(Knowing { devices: Devices::new() });
    let reactor = Reactor::spawn(ReactorConfig::small(), engine).unwrap();
    let add = move |host: &mut nbd_server::reactor::Host<Knowing>| {
        let disk = Box::new(RamDisk::new(SIZE as usize));
        let geometry = host.engine_mut().devices.insert(ExportId(1), disk);
        let (name, description) = ("vol".to_owned(), String::new());
        host.add_export(Export { id: ExportId(1), name, description, geometry, byte_granular: true })
            .unwrap();
        host.add_listener(listener).unwrap();
    };
    reactor.handle().call(add).unwrap();
    (reactor, path)
}

#[test]
fn each_selected_context_is_told_in_a_chunk_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let (reactor, path) = serve(&dir);
    const MIB: u64 = 1 << 20;
    for headers in [Headers::Structured, Headers::Extended] {
        let kind = if headers == Headers::Extended { 6 } else { 5 };
        let mut raw = Raw::connect(&path, headers, BOTH);
        let chunks = raw.ask(0, STATUS, MIB / 2, 2 * MIB, b"");
        assert_eq!(chunks.iter().map(|chunk| chunk.kind).collect::<Vec<_>>(), [kind, kind]);
        assert_eq!(extents(&chunks[0]), (1, vec![(2 * MIB, 0)]));
        assert_eq!(extents(&chunks[1]), (2, vec![(MIB / 2, 0), (MIB, 1), (MIB / 2, 0)]));

        let chunks = raw.ask(REQ_ONE, STATUS, 6 * MIB + 512, 2 * MIB - 512, b"");
        assert_eq!(
            chunks.iter().map(extents).collect::<Vec<_>>(),
            [(1, vec![(2 * MIB - 512, 0)]), (2, vec![(MIB - 512, 0)])]
        );
        let chunks = raw.ask(0, STATUS, 7 * MIB, MIB, b"");
        assert_eq!(extents(&chunks[1]), (2, vec![(MIB, 2)]));
        assert_eq!(raw.error(0, STATUS, 7 * MIB, MIB + 1, b""), 22);
        assert_eq!(raw.error(DF, STATUS, 0, MIB, b""), 22);

        let mut one = Raw::connect(&path, headers, &["raidctl:health"]);
        assert_eq!(one.ask(0, STATUS, 0, 512, b"").len(), 1);
        let mut none = Raw::connect(&path, headers, &["raidctl:"]);
        assert_eq!(none.error(0, STATUS, 0, 512, b""), 22);
        assert_eq!(none.error(0, READ, 0, 512, b""), 0, "the connection goes on");
    }
    reactor.handle().stop(common::PATIENCE).unwrap();
    reactor.join();
}

#[test]
fn a_payload_names_the_contexts_to_tell() {
    let dir = tempfile::tempdir().unwrap();
    let (reactor, path) = serve(&dir);
    let mut raw = Raw::connect(&path, Headers::Extended, BOTH);
    assert_ne!(raw.client.flags & 1 << 12, 0);
    let filter = |len: u64, ids: &[u32]| {
        let ids: Vec<u8> = ids.iter().flat_map(|id| id.to_be_bytes()).collect();
        [&len.to_be_bytes()[..], &ids].concat()
    };
    let chunks = raw.ask(PAYLOAD_LEN, STATUS, 0, 12, &filter(1 << 20, &[2]));
    assert_eq!(chunks.iter().map(extents).collect::<Vec<_>>(), [(2, vec![(1 << 20, 0)])]);
    for bad in [filter(4096, &[]), filter(4096, &[9]), filter(4096, &[1, 1]), filter(0, &[1]), vec![7; 600]] {
        assert_eq!(raw.error(PAYLOAD_LEN, STATUS, 0, bad.len() as u64, &bad), 22);
    }
    // A payload where none belongs is taken off the stream.
    assert_eq!(raw.error(PAYLOAD_LEN, READ, 0, 4096, &[0; 4096]), 22);
    assert_eq!(raw.error(0, READ, 0, 4096, b""), 0);
    reactor.handle().stop(common::PATIENCE).unwrap();
    reactor.join();
}

/// Replies to status queries used to be no payload: nobody counted their memory.
#[test]
fn a_client_that_asks_and_does_not_listen_holds_no_more_than_its_share() {
    let dir = tempfile::tempdir().unwrap();
    let (reactor, path) = serve(&dir);
    let mut raw = Raw::connect(&path, Headers::Extended, BOTH);
    raw.client.stream.set_nonblocking(true).unwrap();
    let query = common::raw::extended(0, STATUS, 1, 0, SIZE);
    let mut sent = 0;
    while sent < 200_000 && std::io::Write::write_all(&mut raw.client.stream, &query).is_ok() {
        sent += 1;
    }
    assert!(sent > 0);
    // Another client is served meanwhile.
    let mut other = Raw::connect(&path, Headers::Structured, BOTH);
    assert_eq!(other.ask(0, STATUS, 0, SIZE, b"").len(), 2);
    assert_eq!(other.error(0, READ, 0, 65536, b""), 0);
    drop((raw, other));
    reactor.handle().stop(common::PATIENCE).unwrap();
    reactor.join();
}

#[test]
fn zeroes_are_told_as_holes_unless_the_client_wants_one_chunk() {
    let server = Server::start(RamDisk::new(SIZE as usize));
    let mut writer = server.connect(true);
    writer.write(65536, &[7; 4096]);
    writer.write(131_072 + 5000, &[1]);
    for headers in [Headers::Structured, Headers::Extended] {
        let mut raw = Raw::connect(&server.path, headers, &[]);
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
        assert_eq!(raw.error(DF, READ, 0, 33 << 20, b""), 75);
    }
    drop(writer);
    server.wait_until_idle();
    server.stop();
}
