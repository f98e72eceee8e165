//! A server on a unix socket, end to end, by a raw client.

#![allow(clippy::unwrap_used)] // a test may unwrap

mod common;

use common::{Client, PATIENCE, Server, option, request};
use nbd_server::export::ExportId;
use nbd_server::ram::RamDisk;
use nbd_server::reactor::ReactorConfig;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use raidcore::dev::{BlockDev, Completion, Geometry, Request, Tag};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const SIZE: usize = 8 << 20;
const READ: u16 = 0;
const WRITE: u16 = 1;
const TRIM: u16 = 4;
const ZEROES: u16 = 6;
/// In one chunk: zeroes, too, are sent.
const DF: u16 = 1 << 2;

/// A disk that holds its requests back while `held` is set.
struct Moody {
    disk: RamDisk,
    waiting: Vec<Request>,
    held: Arc<AtomicBool>,
    depth: u32,
}

impl Moody {
    fn new() -> Moody {
        Moody { disk: RamDisk::new(SIZE), waiting: Vec::new(), held: Arc::default(), depth: 64 }
    }
}

impl BlockDev for Moody {
    fn geometry(&self) -> Geometry {
        Geometry { queue_depth: self.depth, ..self.disk.geometry() }
    }
    fn submit(&mut self, request: Request) {
        assert!(self.waiting.len() < self.depth as usize, "more requests than the device takes");
        self.waiting.push(request);
    }
    fn reap(&mut self, done: &mut Vec<Completion>) {
        if self.held.load(Ordering::Acquire) {
            return;
        }
        self.waiting.drain(..).for_each(|request| self.disk.submit(request));
        self.disk.reap(done);
    }
    fn cancel(&mut self, _: Tag) {}
}

#[test]
fn what_is_written_is_read_whatever_its_size_and_place() {
    let server = Server::start(RamDisk::new(SIZE));
    let mut model = vec![0u8; SIZE];
    let mut seed = 1u64;
    for structured in [false, true] {
        let mut client = server.connect(structured);
        assert_eq!(client.size, SIZE as u64);
        for len in [1, 511, 512, 4096, 5000, 32 << 10, 65536, 65537, 200_000, 1 << 20, 2 << 20] {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let at = (seed >> 20) as usize % (SIZE - len);
            let data: Vec<u8> = (0..len).map(|i| (i as u64 * 7 + seed) as u8).collect();
            client.write(at as u64, &data);
            model[at..at + len].copy_from_slice(&data);
            assert!(client.read(at as u64, len as u32) == data, "{len} bytes at {at}");
        }
        for at in (0..SIZE).step_by(1 << 20) {
            assert!(client.read(at as u64, 1 << 20) == model[at..at + (1 << 20)]);
        }
    }
    assert!(server.stop().is_clean());
}

#[test]
fn random_requests_in_flight_together_agree_with_a_model() {
    let server = Server::start(RamDisk::new(1 << 20));
    let ops = prop::collection::vec((0u16..4, 0usize..256, 1usize..40_000, any::<u8>()), 1..60);
    let mut runner = TestRunner::new(Config::with_cases(24));
    let result = runner.run(&(ops, any::<bool>()), |(ops, structured)| {
        // Requests in flight together must not overlap: each has a place of its own, cut to it.
        let mut client = server.connect(structured);
        let slot = (1 << 20) / ops.len();
        let mut before = Vec::new();
        for i in 0..ops.len() {
            before.push(client.read((i * slot) as u64, slot as u32));
        }
        let mut stream = Vec::new();
        for (i, &(kind, skew, len, fill)) in ops.iter().enumerate() {
            let (at, len) = (i * slot + skew % slot, len.min(slot - skew % slot));
            let kind = [READ, WRITE, TRIM, ZEROES][usize::from(kind)];
            stream.extend(request(0, kind, i as u64, at as u64, len as u32));
            if kind == WRITE {
                stream.extend(std::iter::repeat_n(fill, len));
            }
        }
        let mut writer = client.stream.try_clone().unwrap();
        let sender = std::thread::spawn(move || std::io::Write::write_all(&mut writer, &stream).unwrap());
        for _ in 0..ops.len() {
            let len_of = |cookie: u64| {
                let (kind, skew, len, _) = ops[cookie as usize];
                if kind == 0 { len.min(slot - skew % slot) } else { 0 }
            };
            let answer = client.answer(len_of);
            prop_assert_eq!(answer.error, 0);
            let i = answer.cookie as usize;
            let from = ops[i].1 % slot;
            prop_assert!(ops[i].0 != 0 || answer.data == before[i][from..from + len_of(i as u64)]);
        }
        sender.join().unwrap();
        for (i, &(kind, skew, len, fill)) in ops.iter().enumerate() {
            let (from, len) = (skew % slot, len.min(slot - skew % slot));
            match kind {
                0 => {}
                1 => before[i][from..from + len].fill(fill),
                _ => before[i][from..from + len].fill(0),
            }
            prop_assert!(client.read((i * slot) as u64, slot as u32) == before[i]);
        }
        Ok(())
    });
    result.unwrap();
    assert!(server.stop().is_clean());
}

#[test]
fn requests_beyond_the_devices_queue_wait_in_the_socket_and_are_all_answered() {
    let mut device = Moody::new();
    device.depth = 3;
    let held = Arc::clone(&device.held);
    held.store(true, Ordering::Release);
    let server = Server::start(device);
    let mut clients = [server.connect(false), server.connect(true)];
    for client in &mut clients {
        let mut stream = Vec::new();
        for cookie in 0..1000 {
            stream.extend(request(0, READ, cookie, cookie * 512, 512));
            stream.extend([&request(0, WRITE, 1000 + cookie, 0, 16)[..], &[1; 16]].concat());
        }
        client.send(&stream);
    }
    held.store(false, Ordering::Release);
    server.handle.call(|_| ()).unwrap();
    for client in &mut clients {
        let mut seen = vec![false; 2000];
        for _ in 0..2000 {
            let answer = client.answer(|cookie| if cookie < 1000 { 512 } else { 0 });
            assert_eq!(answer.error, 0);
            assert!(!std::mem::replace(&mut seen[answer.cookie as usize], true));
        }
    }
    assert!(server.stop().is_clean());
}

#[test]
fn a_client_that_vanishes_leaves_nothing_behind_when_its_requests_end() {
    let device = Moody::new();
    let held = Arc::clone(&device.held);
    held.store(true, Ordering::Release);
    let server = Server::start(device);
    let mut client = server.connect(true);
    for cookie in 0..15 {
        client.send(&request(0, READ, cookie, 0, 60_000));
        client.send(&[&request(0, WRITE, cookie, 0, 50_000)[..], &[1; 50_000]].concat());
    }
    client.send(&[&request(0, WRITE, 99, 0, 500_000)[..], &[1; 40_000]].concat());
    server.wait_for("the requests to be in flight", |host| {
        host.connections().first().is_some_and(|c| c.in_flight >= 30)
    });
    drop(client);
    held.store(false, Ordering::Release);
    server.handle.call(|_| ()).unwrap();
    server.wait_until_idle();
    assert!(server.stop().is_clean());
}

#[test]
fn a_client_that_never_reads_stops_only_itself() {
    let server = Server::with(ReactorConfig::server(), RamDisk::new(SIZE));
    let deaf = server.connect(true);
    let stream = deaf.stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        let mut stream = stream;
        // Ends with an error when the server is asked to close the connection.
        (0..4000).all(|cookie| {
            std::io::Write::write_all(&mut stream, &request(DF, READ, cookie, 0, 1 << 20)).is_ok()
        })
    });
    server.wait_for("the deaf client to fill its budget", |host| {
        host.connections().first().is_some_and(|c| c.held_bytes >= 32 << 20 && c.in_flight == 0)
    });
    let mut other = server.connect(false);
    for i in 0..200u64 {
        other.write(i * 4096, &[i as u8; 4096]);
        assert_eq!(other.read(i * 4096, 4096), [i as u8; 4096]);
    }
    let held = server.handle.call(|host| host.connections()[0].held_bytes).unwrap();
    assert!(held <= 64 << 20, "{held} bytes");
    deaf.stream.shutdown(std::net::Shutdown::Both).unwrap();
    sender.join().unwrap();
    drop((deaf, other));
    server.wait_until_idle();
}

#[test]
fn a_client_that_holds_memory_others_wait_for_is_cut_in_the_end() {
    let stall_timeout = std::time::Duration::from_millis(50);
    let config = ReactorConfig { stall_timeout, ..ReactorConfig::small() };
    let server = Server::with(config, RamDisk::new(SIZE));
    let mut deaf = server.connect(true);
    (0..2).for_each(|cookie| deaf.send(&request(DF, READ, cookie, 0, 1 << 20)));
    let mut stuck = server.connect_from(2, true);
    stuck.send(&[&request(0, WRITE, 1, 0, 2 << 20)[..], b"and no more"].concat());
    // Nobody is cut while there is memory for everybody: both are still there after this.
    server.wait_for("memory to be held", |host| {
        host.connections().len() == 2 && host.connections().iter().all(|c| c.held_bytes > 0)
    });
    let mut other = server.connect(false);
    assert_eq!(other.read(0, 2 << 20).len(), 2 << 20);
    drop((deaf, stuck, other));
    server.wait_until_idle();
}

/// Two clients that did not read their replies, or four that stopped in the middle of a payload, held all memory
/// there was for connections: everybody else waited until they were cut.
#[test]
fn clients_that_take_all_memory_they_can_get_leave_room_for_newcomers() {
    for (hogs, writes) in [(2, false), (8, false), (4, true), (8, true)] {
        let server = Server::with(ReactorConfig::server(), RamDisk::new(64 << 20));
        let mut hungry: Vec<_> = (1..=hogs).map(|host| server.connect_from(host, true)).collect();
        for hog in &mut hungry {
            if writes {
                hog.send(&[&request(0, WRITE, 1, 0, 32 << 20)[..], &[1; 100_000]].concat());
            } else {
                (0..16).for_each(|cookie| hog.send(&request(DF, READ, cookie, 0, 32 << 20)));
            }
        }
        server.wait_for("two of them to hold memory", |host| {
            host.connections().iter().filter(|c| c.held_bytes >= 32 << 20 && c.in_flight == 0).count() >= 2
        });
        let mut other = server.connect(false);
        for i in 0..100u64 {
            other.write(i * 4096, &[i as u8; 4096]);
            assert_eq!(other.read(i * 4096, 4096), [i as u8; 4096]);
        }
        other.write(0, &vec![9; 1 << 20]);
        assert!(other.read(0, 1 << 20) == vec![9; 1 << 20]);
        // Nobody had to be cut for it.
        assert_eq!(server.handle.call(|host| host.connections().len()), Ok(usize::from(hogs) + 1));
        drop((hungry, other));
        server.wait_until_idle();
    }
}

/// A stop used to wait for such a client as long as it waits for devices, a minute.
#[test]
fn a_stop_does_not_wait_long_for_a_client_that_takes_no_replies() {
    let server = Server::with(ReactorConfig::server(), RamDisk::new(SIZE));
    let mut deaf = server.connect(true);
    (0..4).for_each(|cookie| deaf.send(&request(DF, READ, cookie, 0, 4 << 20)));
    server.wait_for("replies that nobody takes", |host| {
        host.connections().first().is_some_and(|c| c.held_bytes >= 4 << 20 && c.in_flight == 0)
    });
    // The limit is far away: only the cut can end this.
    let report = server.handle.stop(std::time::Duration::from_secs(3600)).unwrap();
    assert_eq!((report.cut_connections, report.unflushed), (1, 0));
    drop(deaf);
}

#[test]
fn idle_clients_by_the_hundred_leave_the_server_as_it_is() {
    let server = Server::with(ReactorConfig::server(), RamDisk::new(SIZE));
    let idle: Vec<_> = (0..400).map(|_| server.connect(true)).collect();
    let mut other = server.connect(false);
    other.write(0, &[5; 4096]);
    assert_eq!(other.read(0, 4096), [5; 4096]);
    let used = server.handle.call(|host| host.slab().usage().used_bytes).unwrap();
    assert!(used <= 402 * 4096, "{used} bytes");
    drop((idle, other));
    server.wait_until_idle();
}

#[test]
fn a_withdrawn_export_answers_what_it_has_and_closes() {
    let server = Server::start(RamDisk::new(SIZE));
    let mut client = server.connect(false);
    client.write(0, b"abc");
    let left = server.handle.call(|host| {
        host.remove_export(ExportId(1)).unwrap();
        host.connections_of(ExportId(1))
    });
    assert_eq!(left, Ok(1));
    assert!(client.is_closed());
    server.wait_for("the connection to end", |host| host.connections_of(ExportId(1)) == 0);
    let mut late = common::open(&server.path);
    std::io::Write::write_all(&mut late, &[&[0, 0, 0, 3][..], &option(1, b"vol")].concat()).unwrap();
    let mut greeting = Vec::new();
    std::io::Read::read_to_end(&mut late, &mut greeting).unwrap();
    assert_eq!(greeting.len(), 18);
}

#[test]
fn clients_beyond_the_limit_wait_until_one_leaves() {
    let config = ReactorConfig { max_connections: 2, ..ReactorConfig::small() };
    let server = Server::with(config, RamDisk::new(SIZE));
    let (first, _second) = (server.connect(false), server.connect(false));
    let path = server.path.clone();
    let third = std::thread::spawn(move || Client::connect(&path, true).read(0, 512));
    server.wait_for("two connections", |host| host.connections().len() == 2);
    assert!(!third.is_finished());
    drop(first);
    assert_eq!(third.join().unwrap(), [0; 512]);
}

#[test]
fn a_stop_answers_what_is_in_flight_and_says_what_it_could_not_finish() {
    let device = Moody::new();
    let held = Arc::clone(&device.held);
    held.store(true, Ordering::Release);
    let server = Server::start(device);
    let mut client = server.connect(false);
    client.send(&request(0, READ, 1, 0, 512));
    server.wait_for("the request to be in flight", |host| host.connections()[0].in_flight == 1);
    let handle = server.handle.clone();
    let stopping = std::thread::spawn(move || handle.stop(PATIENCE).unwrap());
    held.store(false, Ordering::Release);
    // A call wakes the reactor, if it has not stopped by now.
    let woken = server.handle.call(|_| ());
    assert!(woken.is_ok() || woken == Err(nbd_server::reactor::CallError::Gone));
    assert_eq!(client.answer(|_| 512).error, 0);
    assert!(client.is_closed());
    assert!(stopping.join().unwrap().is_clean());
    assert!(!server.path.exists());
    assert_eq!(server.handle.call(|_| ()), Err(nbd_server::reactor::CallError::Gone));

    let device = Moody::new();
    device.held.store(true, Ordering::Release);
    let server = Server::start(device);
    let mut client = server.connect(false);
    client.send(&request(0, READ, 1, 0, 512));
    server.wait_for("the request to be in flight", |host| host.connections()[0].in_flight == 1);
    let report = server.handle.stop(std::time::Duration::from_millis(50)).unwrap();
    assert_eq!((report.cut_connections, report.unflushed), (1, 1));
    assert!(client.is_closed());
}
