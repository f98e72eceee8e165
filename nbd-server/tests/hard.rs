//! What a client cannot do to the others: slow and silent ones, those with many connections, those that never read.

#![allow(clippy::unwrap_used)] // a test may unwrap

mod common;

use common::{Client, PATIENCE, Server, open, request};
use nbd_server::ram::RamDisk;
use nbd_server::reactor::{ClientLimits, ReactorConfig};
use raidcore::dev::{BlockDev, Completion, Geometry, Request, Tag};
use raidcore::uring::RingConfig;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const MIB: usize = 1 << 20;

/// A disk that answers nothing while `held`, and counts the most requests it had at once.
struct Slow {
    disk: RamDisk,
    waiting: Vec<Request>,
    held: Arc<AtomicBool>,
    most: Arc<AtomicUsize>,
}

impl Slow {
    fn new() -> (Slow, Arc<AtomicBool>, Arc<AtomicUsize>) {
        let (held, most) = (Arc::new(AtomicBool::new(true)), Arc::default());
        let disk = RamDisk::new(8 * MIB);
        (Slow { disk, waiting: Vec::new(), held: Arc::clone(&held), most: Arc::clone(&most) }, held, most)
    }
}

impl BlockDev for Slow {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }
    fn submit(&mut self, request: Request) {
        self.waiting.push(request);
        self.most.fetch_max(self.waiting.len(), Ordering::Relaxed);
    }
    fn reap(&mut self, done: &mut Vec<Completion>) {
        if !self.held.load(Ordering::Acquire) {
            self.waiting.drain(..).for_each(|request| self.disk.submit(request));
            self.disk.reap(done);
        }
    }
    fn cancel(&mut self, _: Tag) {}
}

fn config(clients: ClientLimits) -> ReactorConfig {
    ReactorConfig { clients, ..ReactorConfig::small() }
}

/// One byte now and then, each of them a sign of life.
#[test]
fn a_handshake_is_cut_at_its_limit_however_it_drips() {
    let handshake_timeout = Duration::from_millis(200);
    let server =
        Server::with(config(ClientLimits { handshake_timeout, ..Default::default() }), RamDisk::new(MIB));
    let mut chosen = server.connect(true);
    let mut silent = open(&server.path);
    let mut dripping = open(&server.path);
    let begun = Instant::now();
    // Flags, and then a very long option: never an answer, so that nothing but the limit can end it.
    let long = [&[0, 0, 0, 3][..], &common::option(99, &[0; 100_000])].concat();
    let cut = long.iter().position(|byte| {
        std::thread::sleep(Duration::from_millis(5));
        dripping.write_all(&[*byte]).is_err()
    });
    assert!(cut.is_some() && begun.elapsed() < PATIENCE);
    assert_eq!(silent.read_to_end(&mut Vec::new()).unwrap(), 18, "the greeting and the end");
    chosen.write(0, b"who has chosen stays");
    drop((chosen, dripping));
    server.wait_until_idle();
}

#[test]
fn a_silent_connection_is_closed_only_where_that_is_asked_for_and_never_while_a_request_is_under_way() {
    let (slow, held, _) = Slow::new();
    let idle_timeout = Some(Duration::from_millis(100));
    let server = Server::with(config(ClientLimits { idle_timeout, ..Default::default() }), slow);
    let mut busy = server.connect(false);
    busy.send(&request(0, READ, 1, 0, 512));
    let mut silent = server.connect(false);
    assert!(silent.is_closed());
    // Several limits later.
    assert!(server.connect(false).is_closed());
    held.store(false, Ordering::Release);
    server.handle.call(|_| ()).unwrap();
    assert_eq!(busy.answer(|_| 512).error, 0);
    assert!(busy.is_closed(), "now it is silent");
    server.wait_until_idle();
    assert!(server.stop().is_clean());
}

/// A few bytes of a payload are no reason to let a client keep its memory while others wait; silence they are not.
#[test]
fn who_uploads_slowly_is_not_silent() {
    let idle_timeout = Some(Duration::from_secs(3));
    let server = Server::with(config(ClientLimits { idle_timeout, ..Default::default() }), RamDisk::new(MIB));
    let mut slow = server.connect(false);
    slow.send(&request(0, WRITE, 1, 0, 4096));
    let begun = Instant::now();
    // For more than a limit, and no pause is near one.
    let mut left = 4096;
    while begun.elapsed() < Duration::from_millis(4000) && left > 1 {
        std::thread::sleep(Duration::from_millis(5));
        slow.send(&[7]);
        left -= 1;
    }
    slow.send(&vec![7; left]);
    assert_eq!(slow.answer(|_| 0).error, 0);
    assert!(slow.is_closed(), "now it is silent");
}

#[test]
fn a_client_has_as_many_connections_as_it_may_and_others_have_theirs() {
    let connections = 2;
    let server = Server::with(config(ClientLimits { connections, ..Default::default() }), RamDisk::new(MIB));
    let first = server.connect(true);
    let _second = server.connect(true);
    for _ in 0..100 {
        assert_eq!(open(&server.path).read_to_end(&mut Vec::new()).unwrap(), 0);
    }
    let mut others: Vec<_> = (1..=10).map(|host| server.connect_from(host, true)).collect();
    others.iter_mut().for_each(|other| other.write(0, b"x"));
    drop(first);
    server.wait_for("a place", |host| host.connections().len() == 11);
    server.connect(true).write(0, b"y");
}

/// A hundred connections that take no replies have together what one would have, and others have room.
#[test]
fn a_hundred_connections_of_one_client_hold_no_more_than_one_may() {
    let server = Server::with(ReactorConfig::server(), RamDisk::new(64 * MIB));
    // Structured replies would tell zeroes without sending them.
    let mut hogs: Vec<_> = (0..100).map(|_| server.connect(false)).collect();
    for hog in &mut hogs {
        (0..8).for_each(|cookie| hog.send(&request(0, READ, cookie, 0, MIB as u32)));
    }
    server.wait_for("the client to take all it can get", |host| {
        let all = host.connections();
        all.iter().map(|c| c.held_bytes).sum::<u64>() >= 40 << 20 && all.iter().all(|c| c.in_flight == 0)
    });
    let mut other = server.connect_from(2, false);
    for i in 0..50u64 {
        other.write(i * 4096, &[i as u8; 4096]);
        assert_eq!(other.read(i * 4096, 4096), [i as u8; 4096]);
    }
    assert_eq!(other.read(0, 32 << 20).len(), 32 << 20);
    let held = server.handle.call(|host| host.connections().iter().map(|c| c.held_bytes).sum::<u64>());
    assert!(held.unwrap() <= 48 << 20, "{held:?}");
    assert_eq!(server.handle.call(|host| host.connections().len()), Ok(101));
    drop((hogs, other));
    server.wait_until_idle();
}

#[test]
fn requests_of_a_client_are_bounded_over_all_of_its_connections_and_all_are_answered() {
    let (slow, held, most) = Slow::new();
    let server = Server::with(config(ClientLimits { requests: 3, ..Default::default() }), slow);
    let mut clients: Vec<_> = (0..4).map(|_| server.connect(false)).collect();
    for client in &mut clients {
        (0..8).for_each(|cookie| client.send(&request(0, READ, cookie, 0, 512)));
    }
    let mut other = server.connect_from(2, false);
    other.send(&request(0, READ, 9, 0, 512));
    server.wait_for("requests of both", |host| {
        host.connections().iter().map(|c| c.in_flight).sum::<usize>() >= 4
    });
    held.store(false, Ordering::Release);
    server.handle.call(|_| ()).unwrap();
    for client in &mut clients {
        (0..8).for_each(|_| assert_eq!(client.answer(|_| 512).error, 0));
    }
    assert_eq!(other.answer(|_| 512).error, 0);
    assert_eq!(most.load(Ordering::Relaxed), 4, "three of one, one of the other");
}

/// The receives of some 1,980 quiet connections filled the ring, and no disk and no other client got anything done
/// until they left. Here a small ring and 300 connections do the same.
#[test]
fn quiet_connections_leave_room_in_the_ring_for_those_that_work() {
    let ring = RingConfig { entries: 32, ..RingConfig::default() };
    let config = ReactorConfig { ring, max_connections: 400, ..ReactorConfig::small() };
    let server = Server::with(config, RamDisk::new(8 * MIB));
    let mut works = server.connect(false);
    let quiet: Vec<_> = (0..300).map(|_| server.connect(false)).collect();
    for cookie in 0..10 {
        works.send(&request(0, READ, cookie, 0, 512));
        assert_eq!(works.answer(|_| 512).error, 0);
    }
    drop(quiet);
    server.wait_for("the quiet ones to be gone", |host| host.connections().len() == 1);
}

/// Each of these seemed to move: the one by asking for more while it took no replies, the other by sending a byte
/// now and then. Neither was ever cut, and who waited for memory waited for ever.
#[test]
fn who_holds_memory_and_only_seems_to_move_is_cut_when_others_need_it() {
    let stall_timeout = Duration::from_millis(200);
    for drips in [false, true] {
        let server =
            Server::with(ReactorConfig { stall_timeout, ..ReactorConfig::small() }, RamDisk::new(8 * MIB));
        let mut hog = server.connect(false);
        if drips {
            hog.send(&[&request(0, WRITE, 1, 0, 2 << 20)[..], &vec![1; 2 * MIB - 20_000]].concat());
        } else {
            (0..2).for_each(|cookie| hog.send(&request(0, READ, cookie, 0, 1 << 20)));
        }
        server
            .wait_for("memory to be held", |host| host.connections().iter().any(|c| c.held_bytes >= 1 << 20));
        // Beside one such client there is room for others, but not for all.
        let mut second = server.connect_from(2, true);
        second.send(&[&request(0, WRITE, 1, 0, 2 << 20)[..], b"and no more"].concat());
        server.wait_for("memory to be held", |host| {
            host.connections().iter().filter(|c| c.held_bytes >= 1 << 20).count() == 2
        });
        let mut other = server.connect_from(3, false);
        other.send(&request(0, READ, 1, 0, 2 << 20));
        let sign_of_life = if drips { vec![1] } else { request(0, FLUSH, 7, 0, 0) };
        let begun = Instant::now();
        while hog.stream.write_all(&sign_of_life).is_ok() {
            assert!(begun.elapsed() < PATIENCE, "it is never cut");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(other.answer(|_| 2 << 20).error, 0);
    }
}

/// It was cut the moment it found room if it had waited for that longer than the limit, for all the time it had not
/// moved: nothing had been taken from it.
#[test]
fn who_waited_long_for_memory_is_given_time_once_it_has_some() {
    let stall_timeout = Duration::from_secs(1);
    let (slow, held, _) = Slow::new();
    let server = Server::with(ReactorConfig { stall_timeout, ..ReactorConfig::small() }, slow);
    let mut hogs = [1, 2].map(|host| server.connect_from(host, false));
    hogs.iter_mut().for_each(|hog| hog.send(&request(0, READ, 1, 0, 2 << 20)));
    server.wait_for("memory to be held", |host| host.connections().iter().all(|c| c.in_flight == 1));
    // As much as the socket takes without anybody who reads.
    let mut waits = server.connect_from(3, false);
    waits.send(&[&request(0, WRITE, 2, 0, 2 << 20)[..], &[7; 20_000]].concat());
    let last = server.connect_from(4, false);
    (&last.stream).write_all(&request(0, READ, 3, 0, 2 << 20)).unwrap();
    let begun = server.handle.call(|host| host.clock().now()).unwrap();
    server.wait_for("the limit to pass", move |host| host.clock().now() > begun + 2 * stall_timeout);
    held.store(false, Ordering::Release);
    server.handle.call(|_| ()).unwrap();
    // One takes its reply: now there is memory for the first that waits, and not for the second.
    assert_eq!(hogs[0].answer(|_| 2 << 20).error, 0);
    waits.send(&vec![7; 2 * MIB - 20_000]);
    assert_eq!(waits.answer(|_| 0).error, 0);
    let mut last = last;
    assert_eq!(last.answer(|_| 2 << 20).error, 0);
    drop((hogs, waits, last));
    server.wait_until_idle();
}

/// What a thousand idle connections do to one that works: printed, for the table of figures.
#[test]
#[ignore = "a measurement: cargo test --release -p nbd-server --test hard -- --ignored --nocapture"]
fn measure_an_active_client_beside_a_thousand_idle_ones() {
    let clients = ClientLimits {
        connections: 2000,
        idle_timeout: Some(Duration::from_secs(3600)),
        ..Default::default()
    };
    let server = Server::with(ReactorConfig { clients, ..ReactorConfig::server() }, RamDisk::new(64 * MIB));
    let mut active = server.connect(true);
    let rate = |active: &mut Client, depth: u64| {
        let (begun, mut done) = (Instant::now(), 0u64);
        (0..depth).for_each(|i| active.send(&request(0, READ, i, i * 4096, 4096)));
        while begun.elapsed() < Duration::from_secs(1) {
            active.answer(|_| 4096);
            active.send(&request(0, READ, done, done % 1024 * 4096, 4096));
            done += 1;
        }
        (0..depth).for_each(|_| drop(active.answer(|_| 4096)));
        done as f64 / begun.elapsed().as_secs_f64()
    };
    let median = |active: &mut Client, depth: u64| {
        let mut rates: Vec<_> = (0..7).map(|_| rate(active, depth)).collect();
        rates.sort_by(f64::total_cmp);
        rates[3]
    };
    for depth in [1, 32] {
        let alone = median(&mut active, depth);
        let idle: Vec<_> = (0..1000).map(|_| server.connect(true)).collect();
        let beside = median(&mut active, depth);
        drop(idle);
        server.wait_for("the idle ones to be gone", |host| host.connections().len() == 1);
        let again = median(&mut active, depth);
        println!(
            "4 KiB reads, depth {depth}: alone {alone:.0}/s, beside 1000 idle {beside:.0}/s, alone again {again:.0}/s"
        );
    }
}
