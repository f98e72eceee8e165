//! "Terminating the transmission phase", and `NBD_CMD_DISC`.

use crate::common::raw::{Headers, extended};
use crate::common::{PATIENCE, request};
use crate::nbd::*;
use crate::stage::{SIZE, Stage, TIB, Witness};
use nbd_server::reactor::{CallError, StopLimits};
use raidcore::dev::{Op, OpKind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const HELD: u64 = 1 << 20;

/// The second says good-bye by closing its half of the connection.
#[test]
fn what_is_under_way_at_a_disconnect_is_handled_and_answered_and_disc_itself_is_not() {
    for farewell in [request(0, DISC, 9, 0, 0), Vec::new()] {
        let stage = Stage::new();
        stage.hold(|op| op.extent().0 == HELD);
        let mut client = stage.server.connect(false);
        let requests = [
            request(0, READ, 1, HELD, 512),
            [&request(0, WRITE, 2, 0, 4)[..], b"data"].concat(),
            request(0, ZEROES, 3, HELD, 4096),
            request(0, FLUSH, 4, 0, 0),
            farewell.clone(),
        ];
        client.send(&requests.concat());
        if farewell.is_empty() {
            client.stream.shutdown(std::net::Shutdown::Write).unwrap();
        }
        let len_of = |cookie| if cookie == 1 { 512 } else { 0 };
        let mut answers = vec![client.answer(len_of), client.answer(len_of)];
        stage.wait_for_in_flight(2);
        stage.release();
        answers.extend([client.answer(len_of), client.answer(len_of)]);
        answers.sort_by_key(|answer| answer.cookie);
        assert!(answers.iter().zip(1..).all(|(answer, cookie)| (answer.cookie, answer.error) == (cookie, 0)));
        let mut rest = Vec::new();
        std::io::Read::read_to_end(&mut client.stream, &mut rest).unwrap();
        assert_eq!(rest, b"", "nothing but the end");
        stage.server.wait_until_idle();
    }
}

#[test]
fn disc_is_obeyed_whatever_its_fields() {
    let stage = Stage::new();
    for (flags, offset, len) in [(0, 0, 0), (FUA, 0, 0), (!PAYLOAD_LEN, u64::MAX, u32::MAX)] {
        for structured in [false, true] {
            let mut client = stage.server.connect(structured);
            client.send(&request(flags, DISC, u64::MAX, offset, len));
            assert!(client.is_closed());
        }
        let mut raw = stage.raw(Headers::Extended);
        raw.send(flags, DISC, u64::MAX, offset, len.into());
        assert!(raw.client.is_closed());
    }
}

#[test]
fn what_comes_after_disc_is_not_looked_at() {
    let stage = Stage::new();
    let mut client = stage.server.connect(false);
    let write = [&request(0, WRITE, 2, 0, 5)[..], b"never"].concat();
    client.send(&[request(0, DISC, 1, 0, 0), write].concat());
    // It may be cut off with something unread: then the connection is reset.
    let mut rest = Vec::new();
    let end = std::io::Read::read_to_end(&mut client.stream, &mut rest).map_err(|error| error.kind());
    assert!(matches!(end, Ok(_) | Err(std::io::ErrorKind::ConnectionReset)) && rest.is_empty());
    assert_eq!(stage.server.connect(false).read(0, 5), [0; 5]);
}

/// The rest of a long one was dropped as that of a client that vanished, as soon as an answer found nobody.
#[test]
fn a_client_that_says_disc_and_leaves_has_its_requests_carried_out() {
    let stage = Stage::of(Witness::vast());
    stage.hold(|_| true);
    let mut raw = stage.raw(Headers::Extended);
    let requests = [
        extended(0, ZEROES, 1, 0, TIB),
        extended(0, READ, 2, 0, 4096),
        extended(0, FLUSH, 3, 0, 0),
        extended(0, DISC, 4, 0, 0),
    ];
    raw.client.send(&requests.concat());
    stage.wait_for_in_flight(3);
    drop(raw);
    stage.release();
    stage.server.wait_until_idle();
    let zeroed = stage.diary().iter().filter(|e| e.kind == OpKind::WriteZeroes).map(|e| e.len).sum::<u64>();
    assert_eq!(zeroed, TIB);
}

#[test]
fn after_an_error_reply_the_client_may_still_disconnect_in_order() {
    let stage = Stage::new();
    for mut line in stage.lines() {
        assert_eq!(line.error(0, READ, SIZE, 1, b""), EINVAL);
        line.assert_alive();
    }
    stage.server.wait_until_idle();
}

/// It is not for such a client that a stop would have no end.
#[test]
fn a_stop_out_of_time_gives_up_what_a_client_left_behind() {
    static FLUSHING: AtomicBool = AtomicBool::new(false);
    let stage = Stage::of(Witness::vast());
    stage.hold(|_| true);
    let mut raw = stage.raw(Headers::Extended);
    let requests =
        [extended(0, ZEROES, 1, 0, TIB), extended(0, READ, 2, 0, 4096), extended(0, DISC, 3, 0, 0)];
    raw.client.send(&requests.concat());
    stage.wait_for_in_flight(2);
    drop(raw);
    let handle = stage.server.handle.clone();
    // The answer to the read finds nobody.
    stage.hold(|op| matches!(op, Op::WriteZeroes { .. }));
    stage.server.handle.call(|_| ()).unwrap();
    stage.wait_for_in_flight(1);
    let limits = StopLimits { clients: Duration::from_millis(20), devices: PATIENCE };
    stage.hold(|op| {
        FLUSHING.fetch_or(matches!(op, Op::Flush), Ordering::AcqRel);
        matches!(op, Op::WriteZeroes { .. } | Op::Flush)
    });
    let stopping = std::thread::spawn(move || handle.stop_within(limits).unwrap());
    let begun = Instant::now();
    while !FLUSHING.load(Ordering::Acquire) {
        assert!(begun.elapsed() < PATIENCE, "clients are waited for without end");
        std::thread::yield_now();
    }
    // The piece in hand ends; there is no other.
    stage.hold(|op| matches!(op, Op::Flush));
    stage.server.handle.call(|_| ()).unwrap();
    stage.hold(|_| false);
    // A call wakes the reactor, if it has not stopped by now.
    let woken = stage.server.handle.call(|_| ());
    assert!(woken.is_ok() || woken == Err(CallError::Gone));
    assert_eq!(stopping.join().unwrap().cut_connections, 1);
    assert_eq!(stage.diary().iter().filter(|entry| entry.kind == OpKind::WriteZeroes).count(), 1);
}
