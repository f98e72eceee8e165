//! Clients that send what no client should: an NBD error or a closed connection, and the server goes on.

use crate::create_clean;
use std::path::Path;
use tests::{Disks, RawClient, Server};

const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;

const OPT_LIST: u32 = 3;
const REP_ACK: u32 = 1;
const REP_SERVER: u32 = 2;
const REP_ERR_UNSUP: u32 = (1 << 31) | 1;

const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;
const ENOTSUP: u32 = 95;

fn served() -> (Disks, Server) {
    let disks = Disks::new(3, 64);
    create_clean("5", &disks);
    let server = Server::start(disks.dir(), disks.all());
    (disks, server)
}

/// The export still works, on a connection of its own.
fn still_serves(socket: &Path) {
    let (mut client, _) = RawClient::open(socket, "vol0").unwrap();
    let block = tests::random_bytes(4096, 5);
    assert_eq!(client.call(WRITE, 8192, 4096, &block, 0).unwrap().error, 0);
    let read = client.call(READ, 8192, 4096, &[], 4096).unwrap();
    assert!(read.data == block, "another block comes back");
}

#[test]
fn requests_past_the_end_are_answered_with_an_error_on_a_live_connection() {
    let (_disks, server) = served();
    let (mut client, size) = RawClient::open(server.socket(), "vol0").unwrap();
    let block = vec![1; 4096];
    for offset in [size, size - 512, u64::MAX - 4095, u64::MAX] {
        assert_eq!(client.call(READ, offset, 4096, &[], 4096).unwrap().error, EINVAL, "read at {offset}");
        assert_eq!(client.call(WRITE, offset, 4096, &block, 0).unwrap().error, ENOSPC, "write at {offset}");
        for command in [TRIM, WRITE_ZEROES] {
            let error = client.call(command, offset, 4096, &[], 0).unwrap().error;
            assert!([EINVAL, ENOSPC].contains(&error), "{command} at {offset}: {error}");
        }
    }
    assert_eq!(client.call(READ, size - 4096, 4096, &[], 4096).unwrap().error, 0);
    still_serves(server.socket());
}

#[test]
fn requests_of_no_length_do_nothing_on_a_live_connection() {
    let (_disks, server) = served();
    let (mut client, _) = RawClient::open(server.socket(), "vol0").unwrap();
    for command in [READ, WRITE, TRIM, WRITE_ZEROES] {
        // The protocol leaves it open whether that is an error.
        let error = client.call(command, 0, 0, &[], 0).unwrap().error;
        assert!([0, EINVAL].contains(&error), "command {command}: {error}");
    }
    assert_eq!(client.call(FLUSH, 0, 0, &[], 0).unwrap().error, 0);
    still_serves(server.socket());
}

#[test]
fn a_read_larger_than_the_maximum_is_refused() {
    let (_disks, server) = served();
    let (mut client, _) = RawClient::open(server.socket(), "vol0").unwrap();
    for len in [(32 << 20) + 4096, u32::MAX] {
        let error = client.call(READ, 0, len, &[], 0).unwrap().error;
        assert!([EINVAL, EOVERFLOW].contains(&error), "{error}");
    }
    still_serves(server.socket());
}

#[test]
fn a_write_larger_than_the_maximum_is_refused_or_disconnected_and_writes_nothing() {
    let (_disks, server) = served();
    let (mut client, _) = RawClient::open(server.socket(), "vol0").unwrap();
    // The data is announced, not sent: a server that waits for 4 GiB of memory here would be stuck.
    client.send(0, WRITE, 0, u32::MAX, &[]).unwrap();
    drop(client);
    let (mut client, _) = RawClient::open(server.socket(), "vol0").unwrap();
    assert!(client.call(READ, 0, 4096, &[], 4096).unwrap().data.iter().all(|&byte| byte == 0));
    still_serves(server.socket());
}

#[test]
fn an_unknown_command_or_flag_is_refused() {
    let (_disks, server) = served();
    let (mut client, _) = RawClient::open(server.socket(), "vol0").unwrap();
    for command in [7, 77, u16::MAX] {
        let error = client.call(command, 0, 4096, &[], 0).unwrap().error;
        assert!([EINVAL, ENOTSUP].contains(&error), "command {command}: {error}");
    }
    still_serves(server.socket());
}

#[test]
fn an_unknown_option_is_refused_and_the_handshake_goes_on() {
    let (_disks, server) = served();
    let mut client = RawClient::connect(server.socket()).unwrap();
    client.send_option(0x7777, b"what?").unwrap();
    assert_eq!(client.option_reply().unwrap().0, REP_ERR_UNSUP);
    client.send_option(OPT_LIST, &[]).unwrap();
    let (kind, name) = client.option_reply().unwrap();
    assert_eq!((kind, &name[4..]), (REP_SERVER, b"vol0".as_slice()));
    assert_eq!(client.option_reply().unwrap().0, REP_ACK);
}

#[test]
fn garbage_closes_the_connection_and_nothing_else() {
    let (_disks, server) = served();
    let mut client = RawClient::connect(server.socket()).unwrap();
    client.send_garbage(&tests::random_bytes(64, 6)).unwrap();
    assert!(client.closed_by_server());
    let (mut client, _) = RawClient::open(server.socket(), "vol0").unwrap();
    client.send_garbage(&tests::random_bytes(28, 7)).unwrap();
    assert!(client.closed_by_server());
    still_serves(server.socket());
}

#[test]
fn an_option_of_gigabytes_closes_the_connection() {
    let (_disks, server) = served();
    let mut client = RawClient::connect(server.socket()).unwrap();
    let mut header = b"IHAVEOPT".to_vec();
    header.extend(OPT_LIST.to_be_bytes());
    header.extend(u32::MAX.to_be_bytes());
    client.send_garbage(&header).unwrap();
    assert!(client.closed_by_server());
    still_serves(server.socket());
}

#[test]
fn a_client_that_vanishes_with_requests_in_flight_disturbs_no_other() {
    let (_disks, server) = served();
    let data = vec![3; 1 << 20];
    for round in 0..20 {
        let (mut client, _) = RawClient::open(server.socket(), "vol0").unwrap();
        for at in 0..8 {
            client.send(0, READ, at << 20, 1 << 20, &[]).unwrap();
        }
        client.send(0, WRITE, (16 + round) << 20, 1 << 20, &data).unwrap();
        // And a write that is cut off in the middle of its data.
        client.send(0, WRITE, 40 << 20, 1 << 20, &data[..1 << 19]).unwrap();
        drop(client);
    }
    still_serves(server.socket());
    assert_eq!(server.array("vol0")["state"].as_str().map(|state| state == "degraded"), Some(false));
    server.stop();
}
