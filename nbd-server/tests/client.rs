//! The client's blocking side: against our server, nbdkit and qemu-nbd where they are installed, and a server that
//! says rubbish, nothing, or hangs up.

#![allow(clippy::unwrap_used)] // a test may unwrap

mod common;

use common::{PATIENCE, Server};
use nbd_server::client::{
    Address, ClientError, ConnectOptions, Doing, NbdUri, Replies, connect_blocking, info_blocking,
};
use nbd_server::ram::RamDisk;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

fn unix(path: &Path, export: &str) -> NbdUri {
    NbdUri { address: Address::Unix(path.to_owned()), export: export.to_owned(), tls: None }
}

fn patient() -> ConnectOptions {
    ConnectOptions { timeout: PATIENCE, ..ConnectOptions::default() }
}

/// A listener that treats its one client as `treat` says.
fn scripted(treat: impl FnOnce(UnixStream) + Send + 'static) -> (tempfile::TempDir, NbdUri, JoinHandle<()>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let thread = std::thread::spawn(move || treat(listener.accept().unwrap().0));
    let uri = unix(&path, "vol");
    (dir, uri, thread)
}

/// What our own server says to a client that asks for `vol`.
fn conversation() -> Vec<u8> {
    let server = Server::start(RamDisk::new(1 << 20));
    let mut stream = common::open(&server.path);
    let name = [&[0, 0, 0, 3], b"vol".as_slice(), &[0, 1, 0, 3]].concat();
    let client = [&[0, 0, 0, 3], &common::option(8, b"")[..], &common::option(7, &name)].concat();
    stream.write_all(&client).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut said = Vec::new();
    stream.read_to_end(&mut said).unwrap();
    said
}

#[test]
fn an_export_of_our_own_is_connected_and_described() {
    let server = Server::start(RamDisk::new(3 << 20));
    for structured in [true, false] {
        let options = ConnectOptions { structured, ..patient() };
        let connected = connect_blocking(&unix(&server.path, "vol"), &options).unwrap();
        assert_eq!(connected.export.size_bytes, 3 << 20);
        assert_eq!(connected.export.replies == Replies::Structured, structured);
        let mut stream = UnixStream::from(connected.stream);
        stream.write_all(&common::request(0, 0, 7, 0, 512)).unwrap();
        let mut head = [0; 16];
        stream.read_exact(&mut head).unwrap();
        let info = info_blocking(&unix(&server.path, ""), &options).unwrap();
        assert_eq!(info, connected.export);
    }
    server.wait_until_idle();
    let error = info_blocking(&unix(&server.path, "vil"), &patient()).unwrap_err();
    assert!(matches!(error.error, ClientError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("/vil?socket=") && error.to_string().contains("no export"), "{error}");
}

#[test]
fn where_nobody_listens_is_said_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let uri = unix(&dir.path().join("nobody"), "");
    let error = connect_blocking(&uri, &patient()).unwrap_err();
    assert!(
        matches!(error.error, ClientError::Connect(_)) && error.to_string().contains("nobody"),
        "{error}"
    );

    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let uri: NbdUri = format!("nbd://{unused}/x").parse().unwrap();
    assert!(matches!(connect_blocking(&uri, &patient()).unwrap_err().error, ClientError::Connect(_)));
    let uri: NbdUri = "nbd://no-such-host.invalid/x".parse().unwrap();
    assert!(matches!(connect_blocking(&uri, &patient()).unwrap_err().error, ClientError::Resolve { .. }));
}

#[test]
fn a_server_that_says_nothing_is_given_up() {
    let (_dir, uri, thread) = scripted(|mut stream| {
        // Until the client has hung up.
        while stream.read(&mut [0; 512]).is_ok_and(|count| count > 0) {}
    });
    let hasty = ConnectOptions { timeout: Duration::from_millis(50), ..patient() };
    let error = connect_blocking(&uri, &hasty).unwrap_err();
    assert!(matches!(error.error, ClientError::Silent { .. }), "{error}");
    thread.join().unwrap();
}

#[test]
fn a_server_that_hangs_up_at_any_byte_is_an_error_and_no_more() {
    let said = conversation();
    assert!(said.len() > 100);
    for cut in 0..said.len() {
        let front = said[..cut].to_vec();
        let (_dir, uri, thread) = scripted(move |mut stream| {
            assert!(stream.write_all(&front).is_ok() || !front.is_empty());
        });
        let error = connect_blocking(&uri, &patient()).unwrap_err();
        assert!(matches!(error.error, ClientError::Closed(_) | ClientError::Io(_)), "at {cut}: {error}");
        if cut == 0 {
            assert!(
                matches!(error.error, ClientError::Closed(Doing::Greeting) | ClientError::Io(_)),
                "{error}"
            );
        }
        thread.join().unwrap();
    }
}

#[test]
fn a_server_that_says_rubbish_is_an_error_and_no_more() {
    let said = conversation();
    for at in 0..said.len() {
        let mut wrong = said.clone();
        wrong[at] ^= 0x5a;
        let (_dir, uri, thread) = scripted(move |mut stream| {
            // The client hangs up as soon as it has heard enough.
            if stream.write_all(&wrong).and_then(|()| stream.shutdown(std::net::Shutdown::Write)).is_ok() {
                while stream.read(&mut [0; 512]).is_ok_and(|count| count > 0) {}
            }
        });
        // Sizes and flags may change meaning and still be well-formed.
        if let Ok(connected) = connect_blocking(&uri, &patient()) {
            assert!(i64::try_from(connected.export.size_bytes).is_ok());
        }
        thread.join().unwrap();
    }
}
