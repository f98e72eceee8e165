//! `NBD_OPT_STRUCTURED_REPLY`, `NBD_OPT_EXTENDED_HEADERS`, and STARTTLS where there is no TLS: what is agreed on holds
//! in the transmission phase.

use crate::common::haggle::{Haggle, info_data};
use crate::common::raw::extended;
use crate::common::{be, option, request};
use crate::nbd::*;
use crate::stage::Stage;

const SIMPLE_MAGIC: u64 = 0x6744_6698;
const STRUCTURED_MAGIC: u64 = 0x668e_33ef;
const EXTENDED_MAGIC: u64 = 0x6e8a_278c;

/// The magic a reply to a flush begins with.
fn magic_after(client: &mut Haggle, request: &[u8]) -> u64 {
    assert_eq!(client.verdict(GO, &info_data("vol", &[])), REP_ACK);
    client.send(request);
    be(&client.take(4))
}

#[test]
fn replies_are_simple_unless_something_else_was_agreed_on() {
    let stage = Stage::new();
    for (options, magic) in [
        (&[][..], SIMPLE_MAGIC),
        (&[STRUCTURED_REPLY], STRUCTURED_MAGIC),
        (&[STRUCTURED_REPLY, STRUCTURED_REPLY], STRUCTURED_MAGIC),
        (&[EXTENDED_HEADERS], EXTENDED_MAGIC),
        (&[STRUCTURED_REPLY, EXTENDED_HEADERS], EXTENDED_MAGIC),
        (&[EXTENDED_HEADERS, EXTENDED_HEADERS], EXTENDED_MAGIC),
    ] {
        let mut client = stage.haggle();
        options.iter().for_each(|number| assert_eq!(client.verdict(*number, b""), REP_ACK));
        let request = match magic {
            EXTENDED_MAGIC => extended(0, FLUSH, 1, 0, 0),
            _ => request(0, FLUSH, 1, 0, 0),
        };
        assert_eq!(magic_after(&mut client, &request), magic, "{options:?}");
    }
}

#[test]
fn an_option_that_failed_agrees_on_nothing() {
    let stage = Stage::new();
    for number in [STRUCTURED_REPLY, EXTENDED_HEADERS] {
        for data in [&b"x"[..], &[0; 9000]] {
            let mut client = stage.haggle();
            assert_eq!(client.verdict(number, data), ERR_INVALID);
            assert_eq!(magic_after(&mut client, &request(0, FLUSH, 1, 0, 0)), SIMPLE_MAGIC);
        }
    }
}

#[test]
fn after_extended_headers_structured_replies_are_refused_with_their_own_error() {
    let stage = Stage::new();
    let mut client = stage.haggle();
    assert_eq!(client.verdict(EXTENDED_HEADERS, b""), REP_ACK);
    assert_eq!(client.verdict(STRUCTURED_REPLY, b""), ERR_EXT_HEADER_REQD);
    assert_eq!(magic_after(&mut client, &extended(0, FLUSH, 1, 0, 0)), EXTENDED_MAGIC);
}

#[test]
fn after_extended_headers_export_name_ends_the_session() {
    let stage = Stage::new();
    let mut client = stage.haggle();
    assert_eq!(client.verdict(EXTENDED_HEADERS, b""), REP_ACK);
    client.send(&option(EXPORT_NAME, b"vol"));
    assert_eq!(client.rest(), b"");
}

/// A request of the wrong kind cannot be understood, nor what follows it.
#[test]
fn a_request_with_the_headers_that_were_not_agreed_on_closes_the_connection() {
    let stage = Stage::new();
    for (options, wrong) in [
        (&[][..], extended(0, FLUSH, 1, 0, 0)),
        (&[STRUCTURED_REPLY], extended(0, FLUSH, 1, 0, 0)),
        (&[EXTENDED_HEADERS], [request(0, FLUSH, 1, 0, 0), vec![0; 4]].concat()),
    ] {
        let mut client = stage.haggle();
        options.iter().for_each(|number| assert_eq!(client.verdict(*number, b""), REP_ACK));
        assert_eq!(client.verdict(GO, &info_data("vol", &[])), REP_ACK);
        client.send(&wrong);
        assert_eq!(client.rest(), b"");
    }
}

#[test]
fn without_tls_starttls_is_refused_and_haggling_goes_on_in_clear() {
    let stage = Stage::new();
    let mut client = stage.haggle();
    assert_eq!(client.verdict(STARTTLS, b""), ERR_UNSUP);
    assert_eq!(client.verdict(STARTTLS, b"x"), ERR_INVALID);
    assert_eq!(client.verdict(STARTTLS, &[0; 9000]), ERR_INVALID);
    assert_eq!(client.verdict(GO, &info_data("vol", &[])), REP_ACK);
}
