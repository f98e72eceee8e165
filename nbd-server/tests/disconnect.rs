//! A client that vanishes at every byte of a conversation. Alone in its process: it counts descriptors.

#![allow(clippy::unwrap_used)] // a test may unwrap

mod common;

use common::{Server, hello, request};
use nbd_server::ram::RamDisk;
use std::io::Write;

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_disconnect_at_any_byte_leaks_neither_memory_nor_descriptors() {
    let server = Server::start(RamDisk::new(1 << 20));
    let conversation = [
        hello(true),
        request(0, 0, 1, 0, 4096),
        request(0, 1, 2, 512, 100),
        vec![7; 100],
        request(1, 4, 3, 0, 4096),
        request(0, 1, 4, 0, 2 << 20),
        vec![8; 40],
    ]
    .concat();
    server.connect(true).read(0, 1);
    server.wait_until_idle();
    let before = open_descriptors();
    for cut in 0..=conversation.len() {
        let mut stream = common::open(&server.path);
        stream.write_all(&conversation[..cut]).unwrap();
    }
    // Clients are accepted in order: behind this one, none is left in the queue.
    server.connect(true).read(0, 1);
    server.wait_until_idle();
    assert_eq!(open_descriptors(), before);
    server.connect(true).write(0, b"the server lives");
    assert!(server.stop().is_clean());
}
