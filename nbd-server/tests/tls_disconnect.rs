//! A client that vanishes at every byte of TLS's entry, and what an idle one costs. Alone in its process: it counts
//! descriptors and memory.
#![cfg(feature = "tls")]
#![allow(clippy::unwrap_used)] // a test may unwrap

mod common;

use common::samples::Authority;
use common::tls::{TlsStream, greet};
use common::{Server, option, request};
use nbd_server::ram::RamDisk;
use nbd_server::tls::{ClientCerts, TlsMode};
use std::io::Write;
use std::path::Path;

/// Connections whose memory is measured.
const IDLE: u64 = 200;

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Memory of this process, in bytes.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Speaks as far as `left` bytes of ciphertext go; true if there was more to say.
fn is_cut(path: &Path, dir: &Path, left: usize) -> bool {
    let converse = || {
        let mut stream = TlsStream::cut_after(path, dir, 4096, left)?;
        stream.go()?;
        stream.write_all(&request(0, 1, 1, 0, 4096))?;
        stream.write_all(&[1; 4096])
    };
    converse().is_err()
}

#[test]
fn tls_leaks_nothing_at_any_cut_and_costs_little_while_idle() {
    let dir = tempfile::tempdir().unwrap();
    Authority::new().trusted_in(dir.path()).server_in(dir.path());
    let mut config = nbd_server::reactor::ReactorConfig::server();
    config.max_connections = 1024;
    let server = Server::with(config, RamDisk::new(1 << 20));
    let path = server.listen_with_tls(dir.path(), TlsMode::Require, ClientCerts::No);
    assert!(!is_cut(&path, dir.path(), usize::MAX));
    server.wait_until_idle();
    let before = open_descriptors();
    let clear = [&[0, 0, 0, 3][..], &option(5, b"")].concat();
    for cut in 0..=clear.len() {
        common::open(&server.path).write_all(&clear[..cut]).unwrap();
    }
    // Every byte of the hello, of the options, and of a write whose data is in a record with its head.
    let mut cut = 0;
    while is_cut(&path, dir.path(), cut) {
        cut += 1;
    }
    assert!(cut > 4096);
    drop(greet(&path));
    server.wait_until_idle();
    assert_eq!(open_descriptors(), before);

    let before = resident_bytes();
    let idle: Vec<_> = (0..IDLE)
        .map(|_| {
            let mut stream = TlsStream::connect(&path, dir.path(), 4096).unwrap();
            stream.go().unwrap();
            // A record of the largest size has been in its buffers.
            stream.write_all(&request(0, 1, 1, 0, 65536)).unwrap();
            stream.write_all(&[1; 65536]).unwrap();
            std::io::Read::read_exact(&mut stream, &mut [0; 16]).unwrap();
            stream.socket
        })
        .collect();
    let each = resident_bytes().saturating_sub(before) / IDLE;
    println!("an idle connection with TLS costs {each} bytes of memory, buffers of the slab included");
    assert!(each < 40 << 10, "{each} bytes");
    drop(idle);
    server.wait_until_idle();
}
