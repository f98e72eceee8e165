//! Option haggling: unknown and withdrawn options, their lengths, ABORT, LIST, EXPORT_NAME, and how haggling ends.

use crate::common::haggle::{Haggle, info_data};
use crate::common::option;
use crate::nbd::*;
use crate::stage::Stage;
use nbd_server::limits::{MAX_EXPORTS, MAX_OPTION_BYTES, MAX_OPTIONS};

/// Data of every kind and length an option may come with, also longer than what is stored.
fn any_data() -> Vec<Vec<u8>> {
    let lengths = [0, 1, 4, 6, 4096, MAX_OPTION_BYTES, MAX_OPTION_BYTES + 1, 100_000, 1 << 20];
    let fills = [0u8, 0xff, b'x'];
    lengths.into_iter().flat_map(|len| fills.map(|fill| vec![fill; len])).collect()
}

fn assert_goes_on(client: &mut Haggle) {
    assert_eq!(client.verdict(LIST, b""), REP_ACK, "haggling goes on");
}

/// Long data used to make it TOO_BIG, so that a client would have tried again with less.
#[test]
fn unknown_and_withdrawn_options_are_unsup_whatever_their_data_and_haggling_goes_on() {
    let stage = Stage::new();
    let mut client = stage.haggle();
    for number in [0, PEEK_EXPORT, EXTENDED_HEADERS + 1, 77, 1 << 31, u32::MAX] {
        for data in any_data() {
            assert_eq!(client.verdict(number, &data), ERR_UNSUP, "option {number}, {} bytes", data.len());
        }
    }
    assert_goes_on(&mut client);
}

/// With data longer than what is stored they were TOO_BIG.
#[test]
fn options_without_data_that_come_with_some_are_invalid() {
    let stage = Stage::new();
    let mut client = stage.haggle();
    for number in [LIST, STRUCTURED_REPLY, EXTENDED_HEADERS] {
        for data in any_data().iter().filter(|data| !data.is_empty()) {
            assert_eq!(client.verdict(number, data), ERR_INVALID, "option {number}, {} bytes", data.len());
        }
    }
    assert_goes_on(&mut client);
}

#[test]
fn options_whose_data_is_not_what_it_says_are_invalid_and_haggling_goes_on() {
    let stage = Stage::new();
    let mut client = stage.haggle();
    assert_eq!(client.verdict(STRUCTURED_REPLY, b""), REP_ACK);
    let good_info = info_data("vol", &[0, 1]);
    let good_context = [&[0, 0, 0, 3][..], b"vol", &[0, 0, 0, 1], &[0, 0, 0, 6], b"base:x"].concat();
    for (number, good) in [
        (INFO, &good_info),
        (GO, &good_info),
        (LIST_META_CONTEXT, &good_context),
        (SET_META_CONTEXT, &good_context),
    ] {
        // One byte more, and every length that is too short.
        assert_eq!(client.verdict(number, &[&good[..], b"\0"].concat()), ERR_INVALID, "option {number}");
        for len in 0..good.len() {
            assert_eq!(client.verdict(number, &good[..len]), ERR_INVALID, "option {number}, {len} bytes");
        }
        // Each byte of a length or count, wrong by its highest bit.
        for at in (0..4).chain(7..good.len().min(9)) {
            let mut bad = good.clone();
            bad[at] ^= 0x80;
            assert_eq!(client.verdict(number, &bad), ERR_INVALID, "option {number}, byte {at}");
        }
    }
    assert_goes_on(&mut client);
}

#[test]
fn options_with_more_data_than_is_stored_are_too_big() {
    let stage = Stage::new();
    let mut client = stage.haggle();
    for number in [INFO, GO, LIST_META_CONTEXT, SET_META_CONTEXT] {
        assert_eq!(client.verdict(number, &vec![0; MAX_OPTION_BYTES + 1]), ERR_TOO_BIG, "option {number}");
    }
    assert_goes_on(&mut client);
}

#[test]
fn names_are_strings_of_up_to_4096_bytes_of_utf_8_without_nul() {
    let stage = Stage::new();
    let mut client = stage.haggle();
    for number in [INFO, GO] {
        assert_eq!(client.verdict(number, &info_data(&"n".repeat(4096), &[])), ERR_UNKNOWN);
        assert_eq!(client.verdict(number, &info_data(&"ü".repeat(2048), &[])), ERR_UNKNOWN);
        assert_eq!(client.verdict(number, &info_data(&"n".repeat(4097), &[])), ERR_INVALID);
        assert_eq!(client.verdict(number, &info_data("v\0l", &[])), ERR_INVALID);
        assert_eq!(client.verdict(number, b"\0\0\0\x03v\xffl\0\0"), ERR_INVALID);
    }
    assert_eq!(client.verdict(GO, &info_data("vol", &[])), REP_ACK);
}

/// With more than 8192 bytes it was TOO_BIG, and the client waited for an end that did not come.
#[test]
fn abort_is_acknowledged_whatever_its_data_and_then_the_connection_is_closed() {
    let stage = Stage::new();
    for data in any_data() {
        let mut client = stage.haggle();
        assert_eq!(client.verdict(ABORT, &data), REP_ACK, "{} bytes", data.len());
        assert_eq!(client.rest(), b"");
    }
}

#[test]
fn a_client_may_say_abort_and_leave_without_waiting_for_the_answer() {
    let stage = Stage::new();
    for _ in 0..20 {
        stage.haggle().send(&option(ABORT, b""));
    }
    stage.server.wait_until_idle();
}

#[test]
fn list_has_a_reply_for_each_export_with_its_name_and_what_it_is() {
    let stage = Stage::new().also(vec!["a".to_owned(), "ü".to_owned()]);
    let replies = stage.haggle().ask(LIST, b"");
    let (last, exports) = replies.split_last().unwrap();
    assert_eq!((last.kind, &last.data[..]), (REP_ACK, &b""[..]));
    assert!(exports.iter().all(|reply| reply.kind == REP_SERVER));
    let told: Vec<_> = exports.iter().map(|reply| &reply.data[..]).collect();
    let expected = ["\0\0\0\x03vol", "\0\0\0\x01aabout a", "\0\0\0\x02üabout ü"];
    assert_eq!(told, expected.map(str::as_bytes));
}

/// `qemu-nbd --list` asks for two things about each export on one connection: with 256 options to a handshake it was
/// hung up on from the 128th export on.
#[test]
fn a_client_may_ask_about_every_export_there_can_be() {
    let names: Vec<_> = (1..MAX_EXPORTS).map(|number| format!("v{number}")).collect();
    let stage = Stage::new().also(names.clone());
    let mut client = stage.haggle();
    assert_eq!(client.verdict(STRUCTURED_REPLY, b""), REP_ACK);
    assert_eq!(client.ask(LIST, b"").len(), MAX_EXPORTS + 1);
    for name in &names {
        assert_eq!(client.verdict(INFO, &info_data(name, &[1, 2, 3])), REP_ACK);
        let contexts = [&(name.len() as u32).to_be_bytes(), name.as_bytes(), &[0; 4]].concat();
        assert_eq!(client.verdict(LIST_META_CONTEXT, &contexts), REP_ACK);
    }
}

/// The one hard disconnect that is the server's to choose: what looks like a denial of service.
#[test]
fn haggling_without_end_is_cut() {
    let stage = Stage::new();
    let mut client = stage.haggle();
    for _ in 0..MAX_OPTIONS {
        assert_eq!(client.verdict(77, b""), ERR_UNSUP);
    }
    client.send(&option(77, b""));
    assert_eq!(client.rest(), b"");
    let mut client = stage.haggle();
    client.send(b"IHAVEOPT\0\0\0\x4d\xff\xff\xff\xff");
    assert_eq!(client.rest(), b"");
}

#[test]
fn an_option_that_does_not_begin_with_its_magic_closes_the_connection() {
    let stage = Stage::new();
    let mut client = stage.haggle();
    client.send(b"GET / HTTP/1.1\r\n");
    assert_eq!(client.rest(), b"");
}

#[test]
fn export_name_cannot_be_refused_so_the_session_is_terminated() {
    let stage = Stage::new().also(vec!["a".to_owned()]);
    // The last is the default export, of which there is none among two.
    for name in [&b"nope"[..], b"v\0l", b"\xff", &[b'n'; 4097], &[b'n'; 9000], b""] {
        let mut client = stage.haggle();
        client.send(&option(EXPORT_NAME, name));
        assert_eq!(client.rest(), b"", "{} bytes", name.len());
    }
}

#[test]
fn the_empty_name_is_the_default_export_if_there_is_one() {
    let stage = Stage::new();
    for number in [INFO, GO] {
        assert_eq!(stage.haggle().verdict(number, &info_data("", &[])), REP_ACK);
    }
    let stage = stage.also(vec!["a".to_owned()]);
    for number in [INFO, GO] {
        assert_eq!(stage.haggle().verdict(number, &info_data("", &[])), ERR_UNKNOWN);
    }
}

#[test]
fn options_that_do_not_wait_for_answers_are_answered_one_after_the_other() {
    let stage = Stage::new();
    let mut client = stage.haggle();
    let many = [option(77, b"x"), option(STRUCTURED_REPLY, b""), option(78, &[0; 20_000])].concat();
    client.send(&many.repeat(20));
    let kinds: Vec<_> = (0..60)
        .map(|_| {
            let head = client.take(20);
            let (kind, len) = (&head[12..16], crate::common::be(&head[16..]));
            let kind = crate::common::be(kind) as u32;
            client.take(len as usize);
            kind
        })
        .collect();
    assert_eq!(kinds, [ERR_UNSUP, REP_ACK, ERR_UNSUP].repeat(20));
    assert_goes_on(&mut client);
}
