//! Tests of the ring against the real kernel.

mod files;
mod loops;
mod opening;
mod sockets;

use super::*;
use crate::buf::{Slab, SlabConfig};
use crate::dev::{BlockDev, Completion, ErrorKind, Op, Request, Tag};
use crate::time::{Clock, Time};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

fn ring_with(config: &RingConfig) -> Ring {
    let slab = Slab::new(&SlabConfig::of(&[(4 << 10, 256), (64 << 10, 32), (1 << 20, 20)])).unwrap();
    Ring::new(config, &Clock::monotonic(), &slab).unwrap()
}

fn ring() -> Ring {
    ring_with(&RingConfig::default())
}

/// Every way a ring can end up, whatever the kernel of the machine has.
fn rings() -> Vec<Ring> {
    let all = RingConfig::default();
    vec![
        ring_with(&all),
        ring_with(&RingConfig { defer_taskrun: false, ..all.clone() }),
        ring_with(&RingConfig { fixed_buffers: false, registered_files: 0, ..all.clone() }),
        ring_with(&RingConfig { entries: 32, ..all }),
    ]
}

fn pair() -> (SharedFd, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Arc::new(OwnedFd::from(ours)), theirs)
}

/// Enters the ring until `done` has something; panics after ten seconds without.
fn until<T>(ring: &Ring, mut done: impl FnMut() -> Option<T>) -> T {
    let limit = ring.clock().refresh() + Duration::from_secs(10);
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(ring.clock().now() < limit, "nothing happened within ten seconds");
        ring.enter(Some(limit), true).unwrap();
    }
}

fn event(ring: &Ring, port: &Port) -> Event {
    until(ring, || port.next())
}

fn errno(result: &io::Result<Outcome>) -> Option<i32> {
    result.as_ref().err().and_then(io::Error::raw_os_error)
}

/// A file of `size` zeroes on the disk or in memory, removed with the folder.
struct TestFile {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

fn test_file(parent: &str, size: u64) -> TestFile {
    let dir = tempfile::tempdir_in(parent).unwrap();
    let path = dir.path().join("disk");
    std::fs::File::create(&path).unwrap().set_len(size).unwrap();
    TestFile { path, _dir: dir }
}

fn on_disk(size: u64) -> TestFile {
    test_file(std::env::temp_dir().to_str().unwrap(), size)
}

fn in_memory(size: u64) -> TestFile {
    test_file("/dev/shm", size)
}

/// Submits one operation and waits for its completion.
fn run(ring: &Ring, file: &mut File, op: Op) -> Completion {
    let deadline = ring.clock().refresh() + Duration::from_secs(30);
    file.submit(Request { tag: Tag(1), op, deadline });
    let mut done = Vec::new();
    until(ring, || {
        file.reap(&mut done);
        done.pop()
    })
}

fn read(ring: &Ring, file: &mut File, offset: u64, len: usize) -> Result<Vec<u8>, ErrorKind> {
    let done = run(ring, file, Op::Read { offset, bufs: ring.slab().alloc_list(len).unwrap() });
    assert_eq!(done.bufs.iter().map(|buf| buf.len()).sum::<usize>(), len);
    done.result.map(|()| done.bufs.iter().flat_map(|buf| buf.to_vec()).collect()).map_err(|e| e.kind)
}

fn write(ring: &Ring, file: &mut File, offset: u64, bytes: &[u8], fua: bool) -> Result<(), ErrorKind> {
    let mut bufs = ring.slab().alloc_list(bytes.len()).unwrap();
    let mut rest = bytes;
    for buf in &mut bufs {
        let (now, later) = rest.split_at(buf.len());
        buf.copy_from_slice(now);
        rest = later;
    }
    let data = bufs.into_iter().map(|buf| buf.freeze()).collect();
    run(ring, file, Op::Write { offset, data, fua }).result.map_err(|e| e.kind)
}

#[test]
fn a_ring_says_what_it_got_and_enters_with_nothing_to_do() {
    for ring in rings() {
        ring.enter(None, false).unwrap();
        let soon = ring.clock().now() + Duration::from_millis(2);
        ring.enter(Some(soon), true).unwrap();
        assert!(ring.features().to_string().starts_with("io_uring: depth "), "{}", ring.features());
        assert!(ring.drain(Duration::from_secs(5)));
        assert_eq!(ring.in_flight(), 0);
    }
}

#[test]
fn a_ring_without_registered_memory_or_files_does_the_same() {
    // As after a refusal for RLIMIT_MEMLOCK, which root cannot provoke.
    let ring = ring_with(&RingConfig { fixed_buffers: false, registered_files: 0, ..RingConfig::default() });
    assert_eq!((ring.features().fixed_buffers, ring.features().registered_files), (false, 0));
    let place = on_disk(1 << 20);
    let mut file = File::open(&place.path, &ring, OpenHow::MEMBER).unwrap();
    write(&ring, &mut file, 4096, &[7; 4096], false).unwrap();
    assert_eq!(read(&ring, &mut file, 4096, 4096).unwrap(), [7; 4096]);
}

#[test]
fn a_waker_ends_the_wait_from_another_thread_and_again_after_a_drain() {
    for ring in rings() {
        for _ in 0..3 {
            let waker = ring.waker();
            let thread = std::thread::spawn(move || waker.wake());
            // Returns only because of the wake: there is nothing else, and no time limit.
            ring.enter(None, true).unwrap();
            thread.join().unwrap();
            assert!(ring.drain(Duration::from_secs(5)));
        }
    }
}

#[test]
fn wakes_before_the_wait_are_not_lost_and_count_once() {
    let ring = ring();
    ring.enter(None, false).unwrap();
    let waker = ring.waker();
    for _ in 0..1000 {
        waker.wake();
    }
    ring.enter(None, true).unwrap();
    let soon = ring.clock().now() + Duration::from_millis(2);
    while ring.clock().now() < soon {
        ring.enter(Some(soon), true).unwrap();
    }
}

#[test]
fn a_waker_that_outlives_its_ring_is_harmless() {
    let ring = ring();
    let waker = ring.waker();
    drop(ring);
    waker.wake();
}
