//! What work a client can ask of the reactor itself: status queries, and requests that wait for room.

#![allow(clippy::unwrap_used)] // a test may unwrap

mod common;

use common::raw::{Headers, Raw, extended, extents};
use common::{Client, PATIENCE, Server, request};
use nbd_server::engine::{Devices, Engine};
use nbd_server::export::{Export, ExportId, Extent, MetaContext};
use nbd_server::limits::{MAX_EXTENTS, MAX_STATUS_REPLIES};
use nbd_server::listen::{ListenAddr, Listener};
use nbd_server::ram::RamDisk;
use nbd_server::reactor::{ClientLimits, Reactor, ReactorConfig};
use raidcore::allocation::ZeroMap;
use raidcore::dev::{Completion, Request};
use raidcore::time::Time;
use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const READ: u16 = 0;
const STATUS: u16 = 7;
const MIB: usize = 1 << 20;
const SIZE: u64 = 16 << 40;
const CONTEXT: &[&str] = &["base:allocation"];

/// A small disk that is said to be of 16 TiB, of which nothing is known, and what its engine was asked.
struct Asked {
    devices: Devices,
    map: ZeroMap,
    in_all: usize,
    since_reap: usize,
    most: usize,
}

impl Engine for Asked {
    fn submit(&mut self, export: ExportId, request: Request) {
        self.devices.submit(export, request);
    }
    fn reap(&mut self, done: &mut Vec<Completion>) {
        self.since_reap = 0;
        self.devices.reap(done);
    }
    fn wake_at(&self) -> Option<Time> {
        self.devices.wake_at()
    }
    fn extents(&mut self, _: ExportId, _: MetaContext, range: Range<u64>, out: &mut Vec<Extent>) {
        (self.in_all, self.since_reap) = (self.in_all + 1, self.since_reap + 1);
        self.most = self.most.max(self.since_reap);
        out.extend(self.map.runs(range).take(MAX_EXTENTS).map(|(len, _)| Extent { len, flags: 0 }));
    }
}

fn serve_16_tib(dir: &tempfile::TempDir) -> (Reactor<Asked>, PathBuf) {
    let path = dir.path().join("s");
    let listener = Listener::bind(&ListenAddr::Unix(path.clone())).unwrap();
    let map = ZeroMap::unknown(SIZE, None);
    let engine = |_: &_| Ok(Asked { devices: Devices::new(), map, in_all: 0, since_reap: 0, most: 0 });
    let reactor = Reactor::spawn(ReactorConfig::server(), engine).unwrap();
    let add = move |host: &mut nbd_server::reactor::Host<Asked>| {
        let mut geometry = host.engine_mut().devices.insert(ExportId(1), Box::new(RamDisk::new(MIB)));
        geometry.size_bytes = SIZE;
        let (name, description) = ("vol".to_owned(), String::new());
        host.add_export(Export { id: ExportId(1), name, description, geometry, byte_granular: true })
            .unwrap();
        host.add_listener(listener).unwrap();
    };
    reactor.handle().call(add).unwrap();
    (reactor, path)
}

/// They used to be answered all at once, each with a look at the whole device: ten connections with 250 of them each
/// kept everybody else waiting for half a minute.
#[test]
fn status_queries_are_answered_a_few_in_a_turn_and_each_is_looked_up_once() {
    const QUERIES: u64 = 250;
    let dir = tempfile::tempdir().unwrap();
    let (reactor, path) = serve_16_tib(&dir);
    let mut raw = Raw::connect(&path, Headers::Extended, CONTEXT);
    let burst: Vec<u8> = (0..QUERIES).flat_map(|cookie| extended(0, STATUS, cookie, 0, SIZE)).collect();
    raw.client.send(&burst);
    for cookie in 0..QUERIES {
        let chunk = raw.chunk();
        assert_eq!(chunk.cookie, cookie);
        let told: u64 = extents(&chunk).1.iter().map(|(len, _)| len).sum();
        assert!(told > 0 && told < SIZE);
    }
    let asked = reactor.handle().call(|host| (host.engine().in_all, host.engine().most)).unwrap();
    assert_eq!(asked.0, QUERIES as usize);
    assert!(asked.1 <= MAX_STATUS_REPLIES, "{} at once", asked.1);
    reactor.handle().stop(PATIENCE).unwrap();
    reactor.join();
}

#[test]
#[ignore = "a measurement: cargo test --release -p nbd-server --test fair -- --ignored --nocapture"]
fn measure_a_read_beside_status_queries() {
    let dir = tempfile::tempdir().unwrap();
    let (reactor, path) = serve_16_tib(&dir);
    let burst: Vec<u8> = (0..250).flat_map(|cookie| extended(0, STATUS, cookie, 0, SIZE)).collect();
    let mut one = Raw::connect(&path, Headers::Extended, CONTEXT);
    let mut reader = Client::connect(&path, true);
    let begun = Instant::now();
    one.ask(0, STATUS, 0, SIZE, b"");
    println!("one query: {:?}", begun.elapsed());
    let mut askers: Vec<_> = (0..10).map(|_| Raw::connect(&path, Headers::Extended, CONTEXT)).collect();
    askers.iter_mut().for_each(|asker| asker.client.send(&burst));
    let begun = Instant::now();
    reader.stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    reader.read(0, 4096);
    println!("a read of 4 KiB beside 10 x 250 queries: {:?}", begun.elapsed());
    drop(askers);
    reactor.handle().stop(PATIENCE).unwrap();
    reactor.join();
}

#[test]
#[ignore = "a measurement: cargo test --release -p nbd-server --test fair -- --ignored --nocapture"]
fn measure_a_client_beside_a_thousand_that_wait_for_memory() {
    let limits = ClientLimits { connections: 2000, ..Default::default() };
    let server =
        Server::with(ReactorConfig { clients: limits, ..ReactorConfig::server() }, RamDisk::new(64 * MIB));
    let mut active = server.connect_from(2, false);
    let rate = |active: &mut Client| {
        let (begun, mut done) = (Instant::now(), 0u64);
        while begun.elapsed() < Duration::from_secs(2) {
            active.read(done % 1024 * 4096, 4096);
            done += 1;
        }
        done as f64 / begun.elapsed().as_secs_f64()
    };
    let alone = rate(&mut active);
    let mut hogs: Vec<_> = (0..1000).map(|_| server.connect(false)).collect();
    hogs.iter_mut().for_each(|hog| hog.send(&request(0, READ, 1, 0, 32 << 20)));
    let beside = rate(&mut active);
    println!("4 KiB reads, depth 1: alone {alone:.0}/s, beside 1000 that wait {beside:.0}/s");
}
