//! TLS: who gets in by which policy and certificate, what is told in clear, and that data arrives as it was sent.
//!
//! The client is the other end of the server's own channel; clients that no one here wrote are in the end-to-end tests.
#![cfg(feature = "tls")]
#![allow(clippy::unwrap_used)] // a test may unwrap

mod common;

use common::samples::Authority;
use common::tls::{TlsStream, ask, greet, reply};
use common::{Server, be, option, request};
use nbd_server::ram::RamDisk;
use nbd_server::reactor::{ClientLimits, ReactorConfig};
use nbd_server::tls::{ClientCerts, ClientTls, TlsMode};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;

const ACK: u32 = 1;
const ERR_UNSUP: u32 = 0x8000_0001;
const ERR_POLICY: u32 = 0x8000_0002;
const ERR_INVALID: u32 = 0x8000_0003;
const ERR_TLS_REQD: u32 = 0x8000_0005;

/// A server, a place where TLS is in this mode, and the folder of its certificates, which are a client's too.
fn serve(mode: TlsMode, clients: ClientCerts) -> (Server, PathBuf, TempDir) {
    serve_with(ReactorConfig::small(), mode, clients)
}

fn serve_with(config: ReactorConfig, mode: TlsMode, clients: ClientCerts) -> (Server, PathBuf, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    Authority::new().trusted_in(dir.path()).server_in(dir.path()).client_in(dir.path());
    let server = Server::with(config, RamDisk::new(8 << 20));
    let path = server.listen_with_tls(dir.path(), mode, clients);
    (server, path, dir)
}

/// A client in the transmission phase.
fn attach(path: &std::path::Path, dir: &TempDir, portion: usize) -> TlsStream {
    let mut stream = TlsStream::connect(path, dir.path(), portion).unwrap();
    stream.go().unwrap();
    stream
}

fn read_simple(stream: &mut TlsStream, len: usize) -> Vec<u8> {
    let mut answer = vec![0; 16 + len];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!((be(&answer[..4]), be(&answer[4..8])), (0x6744_6698, 0));
    answer.split_off(16)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

#[test]
fn the_policy_of_a_place_decides_what_is_served_in_clear_and_what_encrypted() {
    let bare = Server::start(RamDisk::new(1 << 20));
    assert_eq!(ask(&mut greet(&bare.path), 5, b"").unwrap().0, ERR_UNSUP);
    for (mode, in_clear, encrypted) in
        [(TlsMode::Off, true, ERR_POLICY), (TlsMode::Allow, true, ACK), (TlsMode::Require, false, ACK)]
    {
        let (server, path, dir) = serve(mode, ClientCerts::No);
        let mut clear = greet(&path);
        let (listed, _) = ask(&mut clear, 3, b"").unwrap();
        assert_eq!(listed, if in_clear { 2 } else { ERR_TLS_REQD }, "{mode}");
        if in_clear {
            assert_eq!(reply(&mut clear).unwrap().0, ACK);
        }
        // Also with more data than is stored: then it was TOO_BIG.
        for (number, len) in
            [3, 6, 7, 8, 9, 10, 11, 77].into_iter().flat_map(|number| [(number, 6), (number, 9000)])
        {
            let (kind, _) = ask(&mut greet(&path), number, &vec![0; len]).unwrap();
            assert_eq!(kind == ERR_TLS_REQD, !in_clear, "{mode}: option {number}, {len} bytes");
        }
        let mut named = greet(&path);
        named.write_all(&option(1, b"vol")).unwrap();
        let mut answer = Vec::new();
        if in_clear {
            named.write_all(&request(0, 2, 0, 0, 0)).unwrap();
        }
        named.read_to_end(&mut answer).unwrap();
        assert_eq!(answer.len(), if in_clear { 10 } else { 0 });
        assert_eq!(ask(&mut clear, 5, b"").unwrap().0, encrypted);
        if encrypted == ACK {
            attach(&path, &dir, 4096).write_all(&request(0, 2, 0, 0, 0)).unwrap();
        }
        drop(clear);
        assert_eq!(ask(&mut greet(&path), 2, b"").unwrap().0, ACK);
        server.wait_until_idle();
    }
}

#[test]
fn inside_tls_everything_is_served_and_tls_cannot_be_started_again() {
    let (server, path, dir) = serve(TlsMode::Require, ClientCerts::No);
    let mut stream = TlsStream::connect(&path, dir.path(), 4096).unwrap();
    assert_eq!(ask(&mut stream, 5, b"").unwrap().0, ERR_INVALID);
    let (kind, data) = ask(&mut stream, 3, b"").unwrap();
    assert_eq!((kind, &data[..]), (2, &b"\0\0\0\x03vol"[..]));
    assert_eq!(reply(&mut stream).unwrap().0, ACK);
    stream.go().unwrap();
    let encrypted = |host: &nbd_server::reactor::Host<_>| host.connections().iter().any(|c| c.tls);
    server.wait_for("a connection that is known to be encrypted", encrypted);
    stream.write_all(&request(0, 2, 0, 0, 0)).unwrap();
    assert!(stream.ends_orderly());
    let mut stream = TlsStream::connect(&path, dir.path(), 4096).unwrap();
    assert_eq!(ask(&mut stream, 2, b"").unwrap().0, ACK);
    assert!(stream.ends_orderly());
}

#[test]
fn client_certificates_are_asked_for_as_configured() {
    for (clients, own, foreign, none) in [
        (ClientCerts::No, true, true, true),
        (ClientCerts::Optional, true, false, true),
        (ClientCerts::Require, true, false, false),
    ] {
        let (server, path, dir) = serve(TlsMode::Require, clients);
        let stranger = tempfile::tempdir().unwrap();
        std::fs::copy(dir.path().join("ca-cert.pem"), stranger.path().join("ca-cert.pem")).unwrap();
        let gets_in = |dir: &TempDir| {
            let stream = TlsStream::connect(&path, dir.path(), 4096);
            stream.and_then(|mut stream| stream.go()).is_ok()
        };
        assert_eq!((gets_in(&dir), gets_in(&stranger)), (own, none), "{clients:?}");
        Authority::new().client_in(stranger.path());
        assert_eq!(gets_in(&stranger), foreign, "{clients:?}");
        server.wait_until_idle();
    }
}

#[test]
fn clear_bytes_behind_starttls_are_never_taken_for_encrypted_ones() {
    let (server, path, _dir) = serve(TlsMode::Require, ClientCerts::No);
    for injected in [option(3, b""), option(7, &[0; 6]), vec![0x16], vec![0]] {
        let mut socket = greet(&path);
        socket.write_all(&[option(5, b""), injected.clone()].concat()).unwrap();
        let mut told = Vec::new();
        // A reset instead of an end is as good: the server has closed with bytes unread.
        let _end = socket.read_to_end(&mut told);
        assert!(told.is_empty() || told.len() == 20, "{told:?}");
        // Behind the answer it is TLS that they meet.
        let mut socket = greet(&path);
        assert_eq!(ask(&mut socket, 5, b"").unwrap().0, ACK);
        socket.write_all(&injected).unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        let mut told = Vec::new();
        let _end = socket.read_to_end(&mut told);
        // At most an alert.
        assert!(told.is_empty() || told[0] == 0x15, "{told:?}");
    }
    server.wait_until_idle();
}

/// Silent behind STARTTLS, in the middle of the hello, and before the first option; and a byte now and then.
#[test]
fn a_handshake_that_stalls_inside_tls_is_cut_at_its_limit() {
    let handshake_timeout = Duration::from_millis(300);
    let clients = ClientLimits { handshake_timeout, ..Default::default() };
    let (server, path, dir) =
        serve_with(ReactorConfig { clients, ..ReactorConfig::small() }, TlsMode::Require, ClientCerts::No);
    let mut chosen = attach(&path, &dir, 4096);
    let mut hello = [0; 4096];
    let tls = ClientTls::from_dir(Some(dir.path())).unwrap();
    let bytes = tls.channel("localhost").unwrap().take_ciphertext(&mut hello);
    let silent = [0, 5, bytes - 1, bytes].map(|sent| {
        let mut socket = greet(&path);
        assert_eq!(ask(&mut socket, 5, b"").unwrap().0, ACK);
        socket.write_all(&hello[..sent]).unwrap();
        socket
    });
    let agreed = TlsStream::connect(&path, dir.path(), 4096);
    let mut dripping = greet(&path);
    assert_eq!(ask(&mut dripping, 5, b"").unwrap().0, ACK);
    // A record of handshake that is announced as long and never complete: nothing but the limit can end it.
    let long = [&[0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc][..], &[0; 16_000]].concat();
    let cut = long.iter().any(|byte| {
        std::thread::sleep(Duration::from_millis(5));
        dripping.write_all(&[*byte]).is_err()
    });
    assert!(cut);
    for mut socket in silent {
        // It ends; what the server has said until then is of no interest.
        drop(socket.read_to_end(&mut Vec::new()));
        drop(socket.write_all(&[0; 4096]));
        assert!(socket.write_all(&[0]).is_err());
    }
    drop((agreed, dripping));
    chosen.write_all(&request(0, 0, 1, 0, 512)).unwrap();
    read_simple(&mut chosen, 512);
    drop(chosen);
    server.wait_until_idle();
}

#[test]
fn what_was_agreed_on_in_clear_is_forgotten() {
    let (_server, path, dir) = serve(TlsMode::Allow, ClientCerts::No);
    let mut socket = greet(&path);
    assert_eq!(ask(&mut socket, 8, b"").unwrap().0, ACK);
    let mut stream = TlsStream::start(socket, dir.path(), 4096).unwrap();
    stream.go().unwrap();
    stream.write_all(&request(0, 0, 7, 0, 512)).unwrap();
    assert_eq!(read_simple(&mut stream, 512), [0; 512]);
}

#[test]
fn data_arrives_as_it_was_sent_in_requests_and_portions_of_all_sizes() {
    let (server, path, dir) = serve(TlsMode::Require, ClientCerts::Require);
    for (portion, len) in [(1, 3000), (7, 5000), (4096, 100_000), (65536, 1 << 20), (65536, 1_900_001)] {
        let mut stream = attach(&path, &dir, portion);
        let data = pattern(len);
        stream.write_all(&request(1, 1, 1, 777, len as u32)).unwrap();
        stream.write_all(&data).unwrap();
        read_simple(&mut stream, 0);
        stream.write_all(&request(0, 0, 2, 777, len as u32)).unwrap();
        assert_eq!(read_simple(&mut stream, len), data);
        // Many at once, so that many small replies share a record.
        let count = 200;
        let requests: Vec<u8> = (0..count).flat_map(|i| request(0, 0, i, 777 + i, 13)).collect();
        stream.write_all(&requests).unwrap();
        for _ in 0..count {
            let mut answer = [0; 29];
            stream.read_exact(&mut answer).unwrap();
            let at = be(&answer[8..16]) as usize;
            assert_eq!(&answer[16..], &data[at..at + 13]);
        }
        stream.write_all(&request(0, 2, 0, 0, 0)).unwrap();
        assert!(stream.ends_orderly());
    }
    server.wait_until_idle();
}

#[test]
fn a_write_that_is_cut_off_is_not_executed_at_all() {
    let (server, path, dir) = serve(TlsMode::Require, ClientCerts::No);
    for (sent, orderly) in [(0, true), (1000, true), (20_000, false), (65535, false), (65535, true)] {
        let mut stream = attach(&path, &dir, 4096);
        stream.write_all(&request(0, 1, 1, 0, 65536)).unwrap();
        stream.write_all(&vec![0xEE; sent]).unwrap();
        if orderly {
            stream.channel.close();
            stream.send_ciphertext().unwrap();
        }
        drop(stream);
        server.wait_until_idle();
        let mut stream = attach(&path, &dir, 4096);
        stream.write_all(&request(0, 0, 2, 0, 65536)).unwrap();
        assert!(read_simple(&mut stream, 65536).iter().all(|&byte| byte == 0), "{sent} bytes");
    }
}

#[test]
fn a_forged_record_ends_the_connection_and_changes_nothing() {
    let (server, path, dir) = serve(TlsMode::Require, ClientCerts::No);
    let mut stream = attach(&path, &dir, 4096);
    let whole = [request(0, 1, 1, 0, 512), vec![0xEE; 512]].concat();
    assert_eq!(stream.channel.write(&[std::io::IoSlice::new(&whole)]), whole.len());
    let mut record = [0; 4096];
    let bytes = stream.channel.take_ciphertext(&mut record);
    record[bytes - 30] ^= 1;
    stream.socket.write_all(&record[..bytes]).unwrap();
    assert!(!stream.ends_orderly());
    server.wait_until_idle();
    let mut stream = attach(&path, &dir, 4096);
    stream.write_all(&request(0, 0, 2, 0, 512)).unwrap();
    assert_eq!(read_simple(&mut stream, 512), [0; 512]);
}

#[test]
fn a_client_that_never_reads_stops_only_itself() {
    let (server, path, dir) = serve(TlsMode::Require, ClientCerts::No);
    let mut greedy = attach(&path, &dir, 65536);
    for cookie in 0..4 {
        greedy.write_all(&request(0, 0, cookie, 0, 1 << 20)).unwrap();
    }
    server.wait_for("replies that nobody takes", |host| host.connections().iter().any(|c| c.held_bytes > 0));
    let mut other = attach(&path, &dir, 4096);
    for at in 0..100 {
        other.write_all(&request(0, 1, 1, at * 4096, 4096)).unwrap();
        other.write_all(&[at as u8; 4096]).unwrap();
        read_simple(&mut other, 0);
    }
    // When it reads at last, all of it is there.
    for _ in 0..4 {
        read_simple(&mut greedy, 1 << 20);
    }
    greedy.write_all(&request(0, 0, 9, 0, 1 << 20)).unwrap();
    drop((greedy, other));
    server.wait_until_idle();
}

#[test]
fn a_stop_says_good_bye() {
    let (server, path, dir) = serve(TlsMode::Allow, ClientCerts::No);
    let mut stream = attach(&path, &dir, 4096);
    assert!(server.stop().is_clean());
    assert!(stream.ends_orderly());
}

#[test]
fn new_certificates_are_for_new_connections() {
    let (server, path, dir) = serve(TlsMode::Require, ClientCerts::No);
    let mut old = attach(&path, &dir, 4096);
    let new = tempfile::tempdir().unwrap();
    Authority::new().trusted_in(new.path()).server_in(new.path());
    let certificates = nbd_server::tls::ServerTls::from_dir(new.path(), ClientCerts::No).unwrap();
    server.handle.call(move |host| host.set_certificates(Some(certificates))).unwrap();
    attach(&path, &new, 4096);
    assert!(TlsStream::connect(&path, dir.path(), 4096).is_err());
    old.write_all(&request(0, 0, 1, 0, 512)).unwrap();
    read_simple(&mut old, 512);
}
