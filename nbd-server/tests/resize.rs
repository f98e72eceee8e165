//! An export that grows while clients are connected, seen on the wire.

#![allow(clippy::unwrap_used)] // a test may unwrap

mod common;

use common::{Server, be, open, option};
use nbd_server::export::{ExportError, ExportId};
use nbd_server::ram::RamDisk;
use nbd_server::reactor::HostError;
use raidcore::dev::{BlockDev, Completion, Geometry, Request, Tag};
use raidcore::time::Time;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const SMALL: u64 = 1 << 20;
const LARGE: u64 = 3 << 20;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;

/// A disk that is as large as it is told to be.
struct Elastic {
    disk: RamDisk,
    size: Arc<AtomicU64>,
}

impl BlockDev for Elastic {
    fn geometry(&self) -> Geometry {
        Geometry { size_bytes: self.size.load(Ordering::Acquire), ..self.disk.geometry() }
    }
    fn submit(&mut self, request: Request) {
        self.disk.submit(request);
    }
    fn reap(&mut self, done: &mut Vec<Completion>) {
        self.disk.reap(done);
    }
    fn cancel(&mut self, tag: Tag) {
        self.disk.cancel(tag);
    }
    fn wake_at(&self) -> Option<Time> {
        self.disk.wake_at()
    }
}

fn server() -> (Server, Arc<AtomicU64>) {
    let size = Arc::new(AtomicU64::new(SMALL));
    (Server::start(Elastic { disk: RamDisk::new(LARGE as usize), size: Arc::clone(&size) }), size)
}

/// The device grows; returns when a turn of the reactor has seen it.
fn grow(server: &Server, size: &AtomicU64) {
    size.store(LARGE, Ordering::Release);
    server.wait_for("the export to grow", |host| {
        host.exports().iter().all(|export| export.geometry.size_bytes == LARGE)
    });
}

/// The size that a new client is told `at` some bytes of the answer to `words`.
fn told(server: &Server, words: &[u8], at: usize) -> u64 {
    let mut stream = open(&server.path);
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    stream.write_all(&[&[0, 0, 0, 3], words].concat()).unwrap();
    let mut answer = vec![0; at + 8];
    stream.read_exact(&mut answer).unwrap();
    be(&answer[at..])
}

#[test]
fn each_way_into_an_export_tells_its_new_size() {
    let (server, size) = server();
    // EXPORT_NAME answers with the bare size; GO and INFO with a reply of 20 bytes of header and 2 of type.
    let ways = [(option(1, b"vol"), 0), (option(7, &[0; 6]), 22), (option(6, &[0; 6]), 22)];
    for (words, at) in &ways {
        assert_eq!(told(&server, words, *at), SMALL);
    }
    grow(&server, &size);
    for (words, at) in &ways {
        assert_eq!(told(&server, words, *at), LARGE);
    }
    assert!(server.stop().is_clean());
}

#[test]
fn a_connected_client_may_use_the_new_part_from_then_on() {
    let (server, size) = server();
    let mut clients = [false, true].map(|structured| server.connect(structured));
    for client in &mut clients {
        assert_eq!(client.size, SMALL);
        assert_eq!(client.ask(0, 0, SMALL, 4096, b"").error, EINVAL);
        assert_eq!(client.ask(0, 1, SMALL - 512, 1024, &[1; 1024]).error, ENOSPC);
    }
    grow(&server, &size);
    for client in &mut clients {
        client.write(SMALL - 512, &[7; 1024]);
        assert_eq!(client.read(SMALL - 512, 1024), [7; 1024]);
        assert_eq!(client.ask(0, 6, LARGE - 4096, 4096, b"").error, 0);
        assert_eq!(client.ask(0, 0, LARGE, 512, b"").error, EINVAL);
        assert_eq!(client.ask(0, 1, LARGE, 512, &[1; 512]).error, ENOSPC);
    }
    drop(clients);
    assert!(server.stop().is_clean());
}

#[test]
fn an_export_never_becomes_smaller_and_one_that_is_not_there_is_not_resized() {
    let (server, size) = server();
    grow(&server, &size);
    let (smaller, unknown) = server
        .handle
        .call(|host| {
            (
                host.resize_export(ExportId(1), SMALL).unwrap_err(),
                host.resize_export(ExportId(9), LARGE).unwrap_err(),
            )
        })
        .unwrap();
    assert!(matches!(smaller, HostError::Export(ExportError::Shrinks { .. })), "{smaller}");
    assert!(matches!(unknown, HostError::Export(ExportError::NotOffered(ExportId(9)))), "{unknown}");
    // A device that becomes smaller all the same changes nothing.
    size.store(SMALL, Ordering::Release);
    assert_eq!(server.connect(true).size, LARGE);
    assert!(server.stop().is_clean());
}
