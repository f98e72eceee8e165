//! Who may use an export, shown by a raw client: whom no rule names finds nothing, who may only read cannot write.

#![allow(clippy::unwrap_used)] // a test may unwrap

mod common;

use common::{Server, be, hello, open, option};
use nbd_server::access::Access;
use nbd_server::export::ExportId;
use nbd_server::ram::RamDisk;
use std::io::{Read, Write};

/// Lets in whom `rules` name; `UID` in them is the user of this test.
fn restrict(server: &Server, rules: &[&str]) {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let rules = rules.iter().map(|rule| rule.replace("UID", &uid).parse().unwrap()).collect();
    let access = Access::only(rules).unwrap();
    assert!(server.handle.call(move |host| host.set_access(ExportId(1), access)).unwrap());
}

/// What the server says to `options` after its greeting, up to its closing the connection.
fn converse(server: &Server, options: &[Vec<u8>]) -> Vec<u8> {
    let mut stream = open(&server.path);
    stream.write_all(&[&[0, 0, 0, 3], &options.concat()[..]].concat()).unwrap();
    let mut said = Vec::new();
    stream.read_to_end(&mut said).unwrap();
    said[18..].to_vec()
}

fn info(number: u32, name: &str) -> Vec<u8> {
    option(number, &[&(name.len() as u32).to_be_bytes(), name.as_bytes(), &[0, 0]].concat())
}

#[test]
fn an_export_that_a_client_may_not_use_looks_like_one_that_is_not_there() {
    let server = Server::start(RamDisk::new(1 << 20));
    restrict(&server, &["10.0.0.0/8", "tcp:ro"]);
    let conversation =
        |name: &str| converse(&server, &[option(3, b""), info(6, name), info(7, name), option(2, b"")]);
    assert_eq!(conversation("vol"), conversation("xyz"));
    assert_eq!(conversation(""), conversation("xyz"));
    assert_eq!(converse(&server, &[option(1, b"vol")]), converse(&server, &[option(1, b"xyz")]));
    // The rules may change while the server runs, for those who come then.
    restrict(&server, &["unix:user=UID"]);
    let asked = |name: &str| converse(&server, &[info(6, name), option(2, b"")]);
    assert_ne!(asked("vol"), asked("xyz"));
    let mut client = server.connect(true);
    restrict(&server, &[]);
    client.write(0, b"who is in stays in");
    assert_eq!(conversation("vol"), conversation("xyz"));
    drop(client);
    assert!(server.stop().is_clean());
}

#[test]
fn who_may_only_read_is_told_so_and_cannot_write() {
    const EPERM: u32 = 1;
    const READ_ONLY: u16 = 2;
    let server = Server::start(RamDisk::new(1 << 20));
    let mut writer = server.connect(true);
    writer.write(4096, b"kept");
    restrict(&server, &["unix:user=UID:ro", "unix"]);
    for structured in [false, true] {
        let mut reader = server.connect(structured);
        assert_eq!((reader.flags & READ_ONLY, writer.flags & READ_ONLY), (READ_ONLY, 0));
        // Write, trim, write zeroes.
        for (kind, payload) in [(1, &b"lost"[..]), (4, b""), (6, b"")] {
            assert_eq!(reader.ask(0, kind, 4096, 4, payload).error, EPERM, "command {kind}");
        }
        assert_eq!(reader.ask(0, 3, 0, 0, b"").error, 0, "a flush is no write");
        assert_eq!(reader.read(4096, 4), b"kept");
    }
    // The old way of choosing tells the flags, too.
    let mut stream = open(&server.path);
    stream.write_all(&[&hello(false)[..4], &option(1, b"vol")].concat()).unwrap();
    let mut said = [0; 28];
    stream.read_exact(&mut said).unwrap();
    assert_eq!(be(&said[26..]) as u16 & READ_ONLY, READ_ONLY);
    drop((stream, writer));
    assert!(server.stop().is_clean());
}
