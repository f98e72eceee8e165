//! "Request message" and "Simple reply message": cookies, payload, pipelines, and the end of the export.

use crate::common::haggle::info_data;
use crate::common::raw::Headers;
use crate::common::{be, request};
use crate::nbd::*;
use crate::stage::{SIZE, Stage};
use nbd_server::limits::MAX_DRAIN_BYTES;

/// An offset that tests hold back.
const HELD: u64 = 1 << 20;

#[test]
fn a_simple_reply_is_a_magic_an_error_the_cookie_and_the_data_of_a_read() {
    let stage = Stage::new();
    let mut client = stage.server.connect(false);
    client.write(512, b"some data");
    client.send(&request(0, READ, 0x0102_0304_0506_0708, 512, 9));
    assert_eq!(client.take(16), [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(client.take(9), b"some data");
    // With an error there is no data, however long the read.
    client.send(&request(0, READ, u64::MAX, SIZE, 9));
    assert_eq!(client.take(16)[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 22]);
    client.send(&request(0, FLUSH, 0, 0, 0));
    assert_eq!(client.take(16)[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
}

#[test]
fn cookies_come_back_as_they_were_sent_also_the_same_ones_twice() {
    let stage = Stage::new();
    let cookies = [0, 1, u64::MAX, 1 << 63, 0x4e42_444d_4147_4943, 7, 7, 7];
    let mut simple = stage.server.connect(false);
    for cookie in cookies {
        for (kind, error) in [(READ, 0), (FLUSH, 22), (99, 22)] {
            simple.send(&request(0, kind, cookie, 0, 512));
            let answer = simple.answer(|_| 512);
            assert_eq!((answer.cookie, answer.error), (cookie, error));
        }
    }
    for headers in [Headers::Structured, Headers::Extended] {
        let mut raw = stage.raw(headers);
        for cookie in cookies {
            for kind in [READ, TRIM, CACHE, STATUS, 99] {
                raw.send(0, kind, cookie, 0, 512);
                assert_eq!(raw.chunk().cookie, cookie, "command {kind}");
            }
        }
    }
}

#[test]
fn replies_overtake_each_other_where_the_device_answers_later() {
    let stage = Stage::new();
    stage.hold(|op| op.extent().0 == HELD);
    let mut client = stage.server.connect(false);
    client.send(
        &[request(0, READ, 1, HELD, 512), request(0, READ, 2, 0, 512), request(0, FLUSH, 3, 0, 0)].concat(),
    );
    let len_of = |cookie| if cookie < 3 { 512 } else { 0 };
    let mut first = [client.answer(len_of).cookie, client.answer(len_of).cookie];
    first.sort_unstable();
    assert_eq!(first, [2, 3]);
    stage.release();
    assert_eq!(client.answer(len_of).cookie, 1);
}

#[test]
fn a_pipeline_is_answered_whole_whatever_of_it_is_refused() {
    let stage = Stage::new();
    let mut client = stage.server.connect(false);
    let mut pipeline = Vec::new();
    for round in 0..100u64 {
        let place = round * 4096;
        pipeline.extend(request(0, WRITE, round * 10, place, 4));
        pipeline.extend((round as u32).to_be_bytes());
        pipeline.extend(request(0, READ, round * 10 + 1, SIZE, 512));
        pipeline.extend(request(0, WRITE, round * 10 + 2, SIZE, 600));
        pipeline.extend([0x25; 600]);
        pipeline.extend(request(0, 77, round * 10 + 3, place, 4096));
        pipeline.extend(request(FUA, FLUSH, round * 10 + 4, 0, 0));
    }
    client.send(&pipeline);
    let mut errors = vec![None; 1000];
    for _ in 0..500 {
        let answer = client.answer(|_| 0);
        assert_eq!(errors[answer.cookie as usize].replace(answer.error), None, "answered twice");
    }
    for round in errors.chunks(10) {
        assert_eq!(round[..5], [Some(0), Some(22), Some(28), Some(22), Some(0)]);
    }
    for round in 0..100 {
        assert_eq!(be(&client.read(round * 4096, 4)), round);
    }
}

/// The payload could be taken for requests: it is full of them.
#[test]
fn the_payload_of_a_refused_write_is_skipped() {
    let stage = Stage::new();
    let requests = request(0, DISC, 0, 0, 0).repeat(200_000);
    for mut line in stage.lines() {
        for (flags, offset, len, error) in [
            (0, SIZE, 28, ENOSPC),
            (0, SIZE - 1, 2800, ENOSPC),
            (0, u64::MAX, 1, ENOSPC),
            (DF, 0, 4096, EINVAL),
            (1 << 15, 0, 70_000, EINVAL),
            // More than one payload may have.
            (0, 0, requests.len(), EINVAL),
        ] {
            assert_eq!(
                line.error(flags, WRITE, offset, len as u64, &requests[..len]),
                error,
                "{len} at {offset}"
            );
        }
        line.assert_alive();
    }
}

#[test]
fn a_write_too_long_to_be_skipped_closes_the_connection() {
    let stage = Stage::new();
    let mut client = stage.server.connect(false);
    client.send(&request(0, WRITE, 1, 0, MAX_DRAIN_BYTES + 1));
    assert!(client.is_closed());
    // Less than 32 MiB is no attack, whatever was announced.
    let mut client = stage.server.connect(false);
    let long = vec![0; (32 << 20) - 1];
    assert_eq!(client.ask(0, WRITE, 0, long.len() as u32, &long).error, 22);
    assert_eq!(client.ask(0, FLUSH, 0, 0, b"").error, 0);
}

/// Only a write has a payload there, so that the length of what is not known can be that of a range only.
#[test]
fn without_extended_headers_an_unknown_command_has_no_payload() {
    let stage = Stage::new();
    for mut line in stage.lines().into_iter().filter(|line| !line.is_extended()) {
        for kind in [8, 9, 99, 0x8000, 0xffff] {
            assert_eq!(line.error(0, kind, 0, u32::MAX.into(), b""), EINVAL, "command {kind}");
        }
        line.assert_alive();
    }
}

#[test]
fn a_request_without_its_magic_closes_the_connection() {
    let stage = Stage::new();
    for magic in [0u32, 0x1256_0953, 0x6744_6698, 0x2560_9514, u32::MAX] {
        let mut client = stage.haggle();
        assert_eq!(client.verdict(GO, &info_data("vol", &[])), REP_ACK);
        let mut bytes = request(0, FLUSH, 1, 0, 0);
        bytes[..4].copy_from_slice(&magic.to_be_bytes());
        client.send(&bytes);
        assert_eq!(client.rest(), b"", "{magic:#x}");
    }
}
