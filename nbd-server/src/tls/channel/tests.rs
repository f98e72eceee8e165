//! Two channels that talk in memory, in portions of every kind.

use super::*;
use crate::tls::samples::Authority;
use crate::tls::{ClientCerts, ClientTls, ServerTls};
use proptest::prelude::*;
use std::path::Path;
use tempfile::TempDir;

fn pair_in(dir: &Path, clients: ClientCerts) -> (Channel, Channel) {
    let server = ServerTls::from_dir(dir, clients).unwrap().channel().unwrap();
    (ClientTls::from_dir(Some(dir)).unwrap().channel("localhost").unwrap(), server)
}

fn pair() -> (Channel, Channel, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    Authority::new().trusted_in(dir.path()).server_in(dir.path()).client_in(dir.path());
    let (client, server) = pair_in(dir.path(), ClientCerts::Require);
    (client, server, dir)
}

/// Moves everything `from` has to send to `to`, in portions; returns the plaintext that came out.
fn carry(from: &mut Channel, to: &mut Channel, portion: usize) -> Result<Vec<u8>, TlsError> {
    let (mut room, mut out) = (vec![0; portion], Vec::new());
    while from.wants_write() {
        let bytes = from.take_ciphertext(&mut room);
        assert!(bytes > 0 && bytes <= portion);
        let mut sent = &room[..bytes];
        while !sent.is_empty() || to.received() > 0 {
            let taken = to.feed(sent)?;
            assert!(to.received() <= 2 * RECORD_BYTES, "holds {} bytes", to.received());
            sent = &sent[taken..];
            let plaintext = to.plaintext().to_vec();
            assert!(taken > 0 || !plaintext.is_empty(), "nothing moves");
            to.consume(plaintext.len());
            out.extend(plaintext);
        }
    }
    Ok(out)
}

fn shake_hands(client: &mut Channel, server: &mut Channel, portion: usize) -> Result<(), TlsError> {
    while client.is_handshaking() || server.is_handshaking() {
        assert!(client.wants_write() || server.wants_write(), "the handshake stands still");
        carry(client, server, portion)?;
        carry(server, client, portion)?;
    }
    Ok(())
}

/// Sends `data` and returns what arrives.
fn say(from: &mut Channel, to: &mut Channel, data: &[u8], portion: usize) -> Vec<u8> {
    let (mut left, mut out) = (data, Vec::new());
    while !left.is_empty() {
        let taken = from.write(&[IoSlice::new(left)]);
        assert!(taken > 0 && taken <= RECORD_BYTES);
        left = &left[taken..];
        assert_eq!(from.write(&[IoSlice::new(b"x")]), 0, "a record at a time");
        out.extend(carry(from, to, portion).unwrap());
    }
    out
}

#[test]
fn what_is_written_on_one_side_is_read_on_the_other_in_portions_of_any_size() {
    for portion in [1, 2, 3, 7, 100, 4095, 4096, 16 << 10, 64 << 10] {
        let (mut client, mut server, _dir) = pair();
        shake_hands(&mut client, &mut server, portion).unwrap();
        let data: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        let count = if portion < 100 { 5000 } else { data.len() };
        assert_eq!(say(&mut client, &mut server, &data[..count], portion), &data[..count]);
        assert_eq!(say(&mut server, &mut client, &data[..count], portion), &data[..count]);
    }
}

#[test]
fn pieces_are_gathered_into_one_record() {
    let (mut client, mut server, _dir) = pair();
    shake_hands(&mut client, &mut server, 4096).unwrap();
    let pieces: Vec<Vec<u8>> = (0..100).map(|i| vec![i; 28]).collect();
    let slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    assert_eq!(server.write(&slices), 2800);
    let mut room = [0; 4096];
    let bytes = server.take_ciphertext(&mut room);
    assert!(bytes < 2800 + 40 && !server.wants_write(), "{bytes}");
    client.feed(&room[..bytes]).unwrap();
    assert_eq!(client.plaintext(), pieces.concat());
}

#[test]
fn ciphertext_is_not_taken_while_plaintext_waits() {
    let (mut client, mut server, _dir) = pair();
    shake_hands(&mut client, &mut server, 4096).unwrap();
    let mut ciphertext = Vec::new();
    for _ in 0..100 {
        assert_eq!(client.write(&[IoSlice::new(&[7; RECORD_BYTES])]), RECORD_BYTES);
        let mut room = vec![0; 2 * RECORD_BYTES];
        let bytes = client.take_ciphertext(&mut room);
        ciphertext.extend_from_slice(&room[..bytes]);
    }
    let taken = server.feed(&ciphertext).unwrap();
    assert!(server.received() > 0 && taken < 2 * RECORD_BYTES + 8192, "{taken}");
    assert_eq!(server.feed(&ciphertext[taken..]), Ok(0));
}

#[test]
fn a_good_bye_is_told_from_a_cut() {
    let (mut client, mut server, _dir) = pair();
    shake_hands(&mut client, &mut server, 4096).unwrap();
    assert_eq!(client.write(&[IoSlice::new(b"last words")]), 10);
    client.close();
    assert_eq!(client.write(&[IoSlice::new(b"more")]), 0);
    assert!(!server.peer_has_closed());
    assert_eq!(carry(&mut client, &mut server, 5).unwrap(), b"last words");
    assert!(server.peer_has_closed());
    assert_eq!(server.feed(b"rubbish behind it").unwrap(), 17);
    assert_eq!(server.plaintext(), b"");
}

#[test]
fn nothing_is_said_behind_the_own_good_bye_whatever_comes() {
    for established in [false, true] {
        let (mut client, mut server, _dir) = pair();
        if established {
            shake_hands(&mut client, &mut server, 4096).unwrap();
        }
        server.close();
        let mut room = [0; 4096];
        assert!(server.take_ciphertext(&mut room) > 0 && server.has_closed());
        let rubbish = b"\x16\x03\x03\x00\x04rubbish";
        assert_eq!(server.feed(rubbish), Ok(rubbish.len()));
        assert!(!server.wants_write() && server.plaintext().is_empty());
    }
}

#[test]
fn a_server_that_another_authority_vouches_for_is_refused() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    Authority::new().trusted_in(dir.path());
    Authority::new().trusted_in(other.path()).server_in(other.path());
    let mut client = ClientTls::from_dir(Some(dir.path())).unwrap().channel("localhost").unwrap();
    let mut server = ServerTls::from_dir(other.path(), ClientCerts::No).unwrap().channel().unwrap();
    let error = shake_hands(&mut client, &mut server, 4096).unwrap_err();
    assert!(matches!(error, TlsError::Protocol(rustls::Error::InvalidCertificate(_))), "{error}");
}

#[test]
fn a_client_shows_a_certificate_where_it_must() {
    for (clients, shown, ours, accepted) in [
        (ClientCerts::No, false, true, true),
        (ClientCerts::No, true, false, true),
        (ClientCerts::Optional, false, true, true),
        (ClientCerts::Optional, true, true, true),
        (ClientCerts::Optional, true, false, false),
        (ClientCerts::Require, false, true, false),
        (ClientCerts::Require, true, true, true),
        (ClientCerts::Require, true, false, false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        authority.trusted_in(dir.path()).server_in(dir.path());
        if shown {
            let another = Authority::new();
            let signer = if ours { &authority } else { &another };
            signer.client_in(dir.path());
        }
        let (mut client, mut server) = pair_in(dir.path(), clients);
        let outcome = shake_hands(&mut client, &mut server, 4096);
        assert_eq!(outcome.is_ok(), accepted, "{clients:?} {shown} {ours}: {outcome:?}");
        if !accepted {
            // The client is told, by an alert.
            assert!(carry(&mut server, &mut client, 4096).is_err());
        }
    }
}

#[test]
fn a_record_longer_than_any_is_refused_and_holds_little() {
    let (_, mut server, _dir) = pair();
    let mut endless = vec![0x16, 3, 1, 0xff, 0xff];
    endless.resize(1 << 20, 0);
    assert!(server.feed(&endless).is_err());
    // A handshake message of 16 MB, in good records.
    let (_, mut server, _dir) = pair();
    let mut endless = Vec::new();
    for part in 0..1000 {
        endless.extend([0x16, 3, 1, 0x40, 0]);
        let start = endless.len();
        endless.resize(start + RECORD_BYTES, 0);
        if part == 0 {
            endless[start..start + 4].copy_from_slice(&[1, 0xff, 0xff, 0xff]);
        }
    }
    assert!(server.feed(&endless).is_err());
}

#[test]
fn after_a_failure_nothing_is_taken_any_more() {
    let (_, mut server, _dir) = pair();
    let error = server.feed(b"GET / HTTP/1.1\r\n\r\n").unwrap_err();
    assert_eq!(server.feed(b"x"), Err(error));
    assert_eq!((server.received(), server.write(&[IoSlice::new(b"x")])), (0, 0));
    let mut alert = [0; 100];
    assert_eq!(server.take_ciphertext(&mut alert), 7);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn rubbish_gives_an_error_and_never_a_panic(
        rubbish in prop::collection::vec(any::<u8>(), 1..300),
        at in 0.0..1.0f64,
        is_established: bool,
    ) {
        let (mut client, mut server, _dir) = pair();
        if is_established {
            shake_hands(&mut client, &mut server, 4096).unwrap();
            client.write(&[IoSlice::new(&[1; 1000])]);
        }
        let mut room = vec![0; 64 << 10];
        let bytes = client.take_ciphertext(&mut room);
        let at = (bytes as f64 * at) as usize;
        let changed = room[at..].iter().zip(&rubbish).take(bytes - at).any(|(a, b)| a != b);
        room[at..at + rubbish.len()].copy_from_slice(&rubbish);
        let fed = server.feed(&room[..bytes]);
        prop_assert!(server.received() == 0 || !changed, "forged data is passed on");
        prop_assert!(fed.is_err() || server.received() == 0 || !changed);
    }
}
