//! Structured replies, extended headers and metadata contexts: what options agree on, in which order.

use super::tests::{after_flags, context_data, exports, go, option, reply};
use super::*;
use crate::limits::MAX_META_QUERIES;
use crate::proto::wire::transmission_flags;

/// The kinds of the replies in `out`.
fn kinds(mut out: &[u8]) -> Vec<u32> {
    let mut kinds = Vec::new();
    while !out.is_empty() {
        kinds.push(be_u32(out, 12));
        out = &out[20 + be_u32(out, 16) as usize..];
    }
    kinds
}

fn set(name: &str, queries: &[&str]) -> Vec<u8> {
    option(opt::SET_META_CONTEXT, &context_data(name, queries))
}

/// What is agreed on when `vol` is chosen after `options`.
fn agreed(options: &[Vec<u8>]) -> (Style, Contexts) {
    let (_, end) =
        after_flags(&exports(&["vol", "b"]), &[&options.concat()[..], &go(opt::GO, "vol", &[])].concat());
    match end {
        Ok(Progress::Chosen(Negotiated { style, contexts, .. })) => (style, contexts),
        other => panic!("{other:?}"),
    }
}

fn structured() -> Vec<u8> {
    option(opt::STRUCTURED_REPLY, b"")
}

fn extended() -> Vec<u8> {
    option(opt::EXTENDED_HEADERS, b"")
}

#[test]
fn extended_headers_come_before_and_after_structured_replies_and_stay() {
    for (options, style, answers) in [
        (vec![structured(), structured()], Style::Structured, vec![rep::ACK, rep::ACK]),
        (vec![structured(), extended()], Style::Extended, vec![rep::ACK, rep::ACK]),
        (vec![extended(), extended()], Style::Extended, vec![rep::ACK, rep::ACK]),
        (vec![extended(), structured()], Style::Extended, vec![rep::ACK, rep::ERR_EXT_HEADER_REQD]),
    ] {
        let (out, _) = after_flags(&exports(&["vol"]), &options.concat());
        assert_eq!((kinds(&out), agreed(&options).0), (answers, style));
    }
    let (_, end) = after_flags(&exports(&["vol"]), &[extended(), option(opt::EXPORT_NAME, b"vol")].concat());
    assert_eq!(end, Err(Violation::ExportNameAfterExtended));
}

#[test]
fn contexts_are_listed_without_and_selected_with_their_numbers() {
    let list = option(opt::LIST_META_CONTEXT, &context_data("vol", &[]));
    let (out, _) =
        after_flags(&exports(&["vol"]), &[structured(), list, set("vol", &["raidctl:health"])].concat());
    let expected = [
        reply(opt::STRUCTURED_REPLY, rep::ACK, b""),
        reply(opt::LIST_META_CONTEXT, rep::META_CONTEXT, b"\0\0\0\0base:allocation"),
        reply(opt::LIST_META_CONTEXT, rep::META_CONTEXT, b"\0\0\0\0raidctl:health"),
        reply(opt::LIST_META_CONTEXT, rep::ACK, b""),
        reply(opt::SET_META_CONTEXT, rep::META_CONTEXT, b"\0\0\0\x02raidctl:health"),
        reply(opt::SET_META_CONTEXT, rep::ACK, b""),
    ];
    assert_eq!(out, expected.concat());
}

#[test]
fn the_last_selection_counts_and_only_for_its_export() {
    let both = set("vol", &["base:allocation", "raidctl:health"]);
    let health = Contexts::only(crate::export::MetaContext::Health);
    let cases = [
        (vec![structured(), both.clone()], Contexts::all()),
        (vec![extended(), both.clone()], Contexts::all()),
        (vec![structured(), both.clone(), set("vol", &["raidctl:health"])], health),
        (vec![structured(), set("vol", &["raidctl:health"]), extended()], health),
        (vec![structured(), both.clone(), set("vol", &[])], Contexts::NONE),
        (vec![structured(), both.clone(), set("vol", &["base:"])], Contexts::NONE),
        (vec![structured(), both.clone(), set("b", &["raidctl:health"])], Contexts::NONE),
        (vec![structured(), both.clone(), set("nope", &["raidctl:health"])], Contexts::NONE),
        (vec![structured(), both.clone(), option(opt::SET_META_CONTEXT, b"?")], Contexts::NONE),
        (vec![structured(), both.clone(), option(opt::SET_META_CONTEXT, &[0; 9000])], Contexts::NONE),
        (vec![both.clone(), structured()], Contexts::NONE),
        (vec![structured(), set("b", &["raidctl:health"])], Contexts::NONE),
        // What only looks does not disturb.
        (
            vec![structured(), both.clone(), go(opt::INFO, "b", &[]), go(opt::GO, "nope", &[])],
            Contexts::all(),
        ),
        (vec![structured(), both, option(opt::LIST_META_CONTEXT, &context_data("b", &[]))], Contexts::all()),
    ];
    for (at, (options, contexts)) in cases.into_iter().enumerate() {
        assert_eq!(agreed(&options).1, contexts, "case {at}");
    }
}

#[test]
fn what_cannot_be_selected_is_refused_with_its_own_error() {
    let many = vec!["base:x"; MAX_META_QUERIES + 1];
    for (bytes, error) in [
        (set("nope", &["base:allocation"]), rep::ERR_UNKNOWN),
        (set("vol", &["allocation"]), rep::ERR_INVALID),
        (set("vol", &many), rep::ERR_TOO_BIG),
        (set("vol", &many[1..]), rep::ACK),
        (option(opt::LIST_META_CONTEXT, &[0; 7]), rep::ERR_INVALID),
    ] {
        let (out, end) = after_flags(&exports(&["vol"]), &[structured(), bytes].concat());
        assert_eq!((kinds(&out), end), (vec![rep::ACK, error], Ok(Progress::More)));
    }
}

#[test]
fn a_payload_for_status_queries_is_announced_where_it_can_be_used() {
    let announced = |options: &[Vec<u8>]| {
        let (out, _) =
            after_flags(&exports(&["vol"]), &[&options.concat()[..], &go(opt::GO, "vol", &[])].concat());
        let at = out.len() - 20 - 2;
        u16::from_be_bytes([out[at], out[at + 1]]) & transmission_flags::BLOCK_STAT_PAYLOAD != 0
    };
    let select = || set("vol", &["base:allocation"]);
    assert!(announced(&[extended(), select()]) && announced(&[structured(), select(), extended()]));
    assert!(!announced(&[extended()]) && !announced(&[structured(), select()]));
}
