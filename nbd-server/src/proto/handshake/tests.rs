//! The handshake by its raw bytes.

use super::super::wire::info;
use super::*;
use crate::export::Exports;
use crate::tls::TlsMode;
use proptest::prelude::*;
use raidcore::dev::{BlockSize, Geometry};

pub(super) fn exports(names: &[&str]) -> Exports {
    let mut exports = Exports::new();
    for (id, name) in names.iter().enumerate() {
        let geometry = Geometry { preferred_bytes: 65536, ..Geometry::plain(1 << 30, BlockSize::B4096) };
        let (name, description) = (name.to_string(), format!("about {name}"));
        let id = ExportId(id as u32);
        exports.add(Export { id, name, description, geometry, byte_granular: true }).unwrap();
    }
    exports
}

/// Client flags: fixed newstyle and no zeroes.
const FIXED: [u8; 4] = [0, 0, 0, 3];

pub(super) fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let header = [&OPTION_MAGIC.to_be_bytes()[..], &number.to_be_bytes(), &(data.len() as u32).to_be_bytes()];
    [&header.concat(), data].concat()
}

pub(super) fn reply(number: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_reply(&mut out, number, kind, &[data]);
    out
}

pub(super) fn go(number: u32, name: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&(infos.len() as u16).to_be_bytes());
    infos.iter().for_each(|info| data.extend_from_slice(&info.to_be_bytes()));
    option(number, &data)
}

pub(super) fn context_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let string = |text: &str| [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat();
    let queries: Vec<_> = queries.iter().map(|query| string(query)).collect();
    [string(name), (queries.len() as u32).to_be_bytes().to_vec(), queries.concat()].concat()
}

/// Feeds `pieces` one after the other until the handshake ends; what was sent, how it ended, what is left.
fn converse(exports: &Exports, pieces: &[&[u8]]) -> (Vec<u8>, Result<Progress, Violation>, Vec<u8>) {
    let (mut handshake, mut out) = (Handshake::new(), Vec::new());
    let mut pieces = pieces.iter();
    while let Some(mut input) = pieces.next().copied() {
        while !input.is_empty() {
            let (used, progress) = handshake.feed(input, &Offers::all(exports), &mut out);
            input = &input[used..];
            match progress {
                Ok(Progress::More) => assert!(input.is_empty()),
                Ok(Progress::Answered) => {}
                end => {
                    let rest = pieces.fold(input.to_vec(), |rest, piece| [&rest, *piece].concat());
                    return (out, end, rest);
                }
            }
        }
    }
    (out, Ok(Progress::More), Vec::new())
}

pub(super) fn after_flags(exports: &Exports, bytes: &[u8]) -> (Vec<u8>, Result<Progress, Violation>) {
    let (out, end, _) = converse(exports, &[&FIXED, bytes]);
    (out, end)
}

#[test]
fn the_greeting_offers_fixed_newstyle_without_zeroes() {
    assert_eq!(Handshake::greeting(), *b"NBDMAGICIHAVEOPT\x00\x03");
}

#[test]
fn go_tells_what_was_asked_for_and_chooses() {
    let infos = [info::NAME, info::DESCRIPTION, info::BLOCK_SIZE, 77];
    let (out, end) = after_flags(&exports(&["vol", "b"]), &go(opt::GO, "vol", &infos));
    let expected = [
        reply(opt::GO, rep::INFO, &[0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0b1101, 0b0100_1101]),
        reply(opt::GO, rep::INFO, b"\x00\x01vol"),
        reply(opt::GO, rep::INFO, b"\x00\x02about vol"),
        reply(opt::GO, rep::INFO, &[0, 3, 0, 0, 0, 1, 0, 1, 0, 0, 2, 0, 0, 0]),
        reply(opt::GO, rep::ACK, b""),
    ];
    assert_eq!(out, expected.concat());
    assert_eq!(
        end,
        Ok(Progress::Chosen(Negotiated {
            export: ExportId(0),
            style: Style::Simple,
            contexts: Contexts::NONE
        }))
    );
}

#[test]
fn info_tells_the_same_and_goes_on() {
    let both = [go(opt::INFO, "", &[]), option(opt::STRUCTURED_REPLY, b""), go(opt::GO, "", &[])].concat();
    let (out, end) = after_flags(&exports(&["vol"]), &both);
    let size = [0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0];
    let expected = [
        reply(opt::INFO, rep::INFO, &[&size[..], &[0b1101, 0b0100_1101]].concat()),
        reply(opt::INFO, rep::ACK, b""),
        reply(opt::STRUCTURED_REPLY, rep::ACK, b""),
        reply(opt::GO, rep::INFO, &[&size[..], &[0b1101, 0b1100_1101]].concat()),
        reply(opt::GO, rep::ACK, b""),
    ];
    assert_eq!(out, expected.concat());
    assert_eq!(
        end,
        Ok(Progress::Chosen(Negotiated {
            export: ExportId(0),
            style: Style::Structured,
            contexts: Contexts::NONE
        }))
    );
}

#[test]
fn export_name_answers_with_or_without_zeroes() {
    let request = option(opt::EXPORT_NAME, b"vol");
    let answer = [0, 0, 0, 0, 0x40, 0, 0, 0, 0b1101, 0b0100_1101];
    for (flags, zeroes) in [(0u8, 124), (1, 124), (2, 0), (3, 0)] {
        let (out, end, _) = converse(&exports(&["vol"]), &[&[0, 0, 0, flags], &request]);
        assert_eq!(out, [&answer[..], &vec![0; zeroes]].concat(), "client flags {flags}");
        assert!(matches!(end, Ok(Progress::Chosen(_))));
    }
}

#[test]
fn list_names_every_export() {
    let (out, end) = after_flags(&exports(&["a", "b"]), &option(opt::LIST, b""));
    let expected = [
        reply(opt::LIST, rep::SERVER, b"\x00\x00\x00\x01aabout a"),
        reply(opt::LIST, rep::SERVER, b"\x00\x00\x00\x01babout b"),
        reply(opt::LIST, rep::ACK, b""),
    ];
    assert_eq!((out, end), (expected.concat(), Ok(Progress::More)));
}

#[test]
fn an_error_reply_never_ends_the_session() {
    let cases = [
        (option(opt::PEEK_EXPORT, b"x"), rep::ERR_UNSUP),
        (option(opt::STARTTLS, b""), rep::ERR_UNSUP),
        (option(opt::LIST_META_CONTEXT, &context_data("a", &[])), rep::ERR_INVALID),
        (option(opt::SET_META_CONTEXT, &context_data("a", &["base:allocation"])), rep::ERR_INVALID),
        (option(opt::EXTENDED_HEADERS, b"x"), rep::ERR_INVALID),
        (option(0, b""), rep::ERR_UNSUP),
        (option(u32::MAX, &[1; 8192]), rep::ERR_UNSUP),
        (option(opt::LIST, b"x"), rep::ERR_INVALID),
        (option(opt::STRUCTURED_REPLY, b"x"), rep::ERR_INVALID),
        (option(opt::GO, b""), rep::ERR_INVALID),
        (option(opt::INFO, b"\xff\xff\xff\xffvol\x00\x00"), rep::ERR_INVALID),
        (go(opt::GO, "nope", &[]), rep::ERR_UNKNOWN),
        (go(opt::INFO, "", &[]), rep::ERR_UNKNOWN),
        (option(opt::GO, &[0; 8193]), rep::ERR_TOO_BIG),
        (option(opt::SET_META_CONTEXT, &[0; 8193]), rep::ERR_TOO_BIG),
        (option(opt::LIST, &[0; 8193]), rep::ERR_INVALID),
        (option(12345, &[0; 1 << 20]), rep::ERR_UNSUP),
    ];
    for (bytes, kind) in cases {
        let (out, end) = after_flags(&exports(&["a", "b"]), &[bytes, option(opt::ABORT, b"")].concat());
        assert_eq!(u32::from_be_bytes(out[12..16].try_into().unwrap()), kind);
        let message_len = u32::from_be_bytes(out[16..20].try_into().unwrap()) as usize;
        assert!(std::str::from_utf8(&out[20..20 + message_len]).is_ok());
        assert_eq!(out[20 + message_len..], reply(opt::ABORT, rep::ACK, b""));
        assert_eq!(end, Ok(Progress::Aborted));
    }
}

#[test]
fn what_cannot_be_answered_closes_the_connection() {
    let exports = exports(&["a", "b"]);
    let too_many = option(opt::LIST, b"").repeat(MAX_OPTIONS as usize + 1);
    let huge = [&OPTION_MAGIC.to_be_bytes()[..], &[0, 0, 0, 99, 0xff, 0xff, 0xff, 0xff]].concat();
    let cases: [(&[u8], Vec<u8>, Violation); 9] = [
        (&[0, 0, 0, 4], vec![], Violation::ClientFlags(4)),
        (&[0x80, 0, 0, 3], vec![], Violation::ClientFlags(0x8000_0003)),
        (&[0; 4], option(opt::LIST, b""), Violation::NotFixedNewstyle(opt::LIST)),
        (&FIXED, b"GET / HTTP/1.1\r\n".to_vec(), Violation::OptionMagic(0x4745_5420_2f20_4854)),
        (&FIXED, option(opt::EXPORT_NAME, b"nope"), Violation::UnknownExport),
        (&FIXED, option(opt::EXPORT_NAME, b""), Violation::UnknownExport),
        (&FIXED, option(opt::EXPORT_NAME, &[b'a'; 9000]), Violation::UnknownExport),
        (&FIXED, too_many, Violation::EndlessHandshake),
        (&FIXED, huge, Violation::EndlessHandshake),
    ];
    for (flags, bytes, violation) in cases {
        assert_eq!(converse(&exports, &[flags, &bytes]).1, Err(violation));
    }
}

/// Feeds `bytes` to a handshake that stands like this with TLS.
fn with_tls(tls: TlsState, bytes: &[u8]) -> (Handshake, Vec<u8>, Result<Progress, Violation>) {
    let (mut handshake, mut out) = (Handshake::with_tls(tls), Vec::new());
    let mut input = &[&FIXED, bytes].concat()[..];
    loop {
        let (used, progress) = handshake.feed(input, &Offers::all(&exports(&["secret"])), &mut out);
        input = &input[used..];
        if progress != Ok(Progress::Answered) {
            return (handshake, out, progress);
        }
    }
}

const ALLOWED: TlsState = TlsState::Clear { mode: TlsMode::Allow, is_possible: true };
const REQUIRED: TlsState = TlsState::Clear { mode: TlsMode::Require, is_possible: true };

#[test]
fn tls_starts_where_it_may_and_is_refused_with_the_reason_elsewhere() {
    let off = TlsState::Clear { mode: TlsMode::Off, is_possible: true };
    let impossible = TlsState::Clear { mode: TlsMode::Require, is_possible: false };
    let cases = [
        (off, rep::ERR_POLICY),
        (impossible, rep::ERR_UNSUP),
        (TlsState::NEVER, rep::ERR_UNSUP),
        (TlsState::On, rep::ERR_INVALID),
    ];
    for (tls, kind) in cases {
        let (_, out, end) = with_tls(tls, &option(opt::STARTTLS, b""));
        assert_eq!((be_u32(&out, 12), end), (kind, Ok(Progress::More)), "{tls:?}");
    }
    for tls in [ALLOWED, REQUIRED] {
        let (_, out, end) = with_tls(tls, &option(opt::STARTTLS, b""));
        assert_eq!((out, end), (reply(opt::STARTTLS, rep::ACK, b""), Ok(Progress::StartTls)));
        let (_, out, end) = with_tls(tls, &option(opt::STARTTLS, b"x"));
        assert_eq!((be_u32(&out, 12), end), (rep::ERR_INVALID, Ok(Progress::More)));
    }
}

#[test]
fn where_tls_is_required_nothing_is_told_in_clear() {
    for number in (0..14).filter(|number| ![opt::EXPORT_NAME, opt::ABORT, opt::STARTTLS].contains(number)) {
        for data in [&b""[..], b"\0\0\0\x06secret\0\0", &[0; 8192]] {
            let (_, out, end) = with_tls(REQUIRED, &option(number, data));
            assert_eq!((be_u32(&out, 12), end), (rep::ERR_TLS_REQD, Ok(Progress::More)), "option {number}");
            assert!(out.len() < 100);
        }
    }
    assert_eq!(with_tls(REQUIRED, &option(opt::EXPORT_NAME, b"secret")).2, Err(Violation::TlsRequired));
    assert_eq!(with_tls(REQUIRED, &option(opt::EXPORT_NAME, b"nope")).2, Err(Violation::TlsRequired));
    assert_eq!(with_tls(REQUIRED, &option(opt::ABORT, b"")).2, Ok(Progress::Aborted));
    assert!(matches!(with_tls(ALLOWED, &option(opt::EXPORT_NAME, b"secret")).2, Ok(Progress::Chosen(_))));
}

#[test]
fn clear_bytes_behind_starttls_close_the_connection() {
    for behind in [&b"x"[..], &option(opt::LIST, b""), &go(opt::GO, "secret", &[])] {
        let (_, out, end) = with_tls(REQUIRED, &[&option(opt::STARTTLS, b""), behind].concat());
        assert_eq!(end, Err(Violation::ClearBehindStartTls));
        assert_eq!(out, reply(opt::STARTTLS, rep::ACK, b""));
    }
}

#[test]
fn what_was_negotiated_in_clear_is_forgotten() {
    let clear = [option(opt::STRUCTURED_REPLY, b""), option(opt::STARTTLS, b"")].concat();
    let (mut handshake, _, end) = with_tls(ALLOWED, &clear);
    assert_eq!(end, Ok(Progress::StartTls));
    let (exports, mut out) = (exports(&["secret"]), Vec::new());
    let (_, end) = handshake.feed(&go(opt::GO, "secret", &[]), &Offers::all(&exports), &mut out);
    assert!(matches!(end, Ok(Progress::Chosen(Negotiated { style: Style::Simple, .. }))), "{end:?}");
}

#[test]
fn a_handshake_holds_no_more_than_one_options_data() {
    let (exports, mut out) = (exports(&["a"]), Vec::new());
    let mut handshake = Handshake::new();
    let endless = [&FIXED[..], &OPTION_MAGIC.to_be_bytes(), &[0, 0, 0, 99, 3, 0, 0, 0], &[7; 65536]].concat();
    let (_, progress) = handshake.feed(&endless, &Offers::all(&exports), &mut out);
    assert_eq!((progress, handshake.partial.capacity()), (Ok(Progress::More), 0));
}

proptest! {
    #[test]
    fn any_split_of_the_bytes_gives_the_same_conversation(cuts in prop::collection::vec(0usize..600, 0..12)) {
        let exports = exports(&["vol", "b"]);
        let stream = [
            FIXED.to_vec(),
            option(opt::STRUCTURED_REPLY, b""),
            option(opt::LIST, b""),
            option(77, &[1; 100]),
            option(opt::EXTENDED_HEADERS, b""),
            option(opt::LIST_META_CONTEXT, &context_data("b", &[])),
            option(opt::SET_META_CONTEXT, &context_data("vol", &["base:", "raidctl:health"])),
            go(opt::INFO, "b", &[info::NAME]),
            go(opt::GO, "nope", &[]),
            go(opt::GO, "vol", &[info::BLOCK_SIZE]),
            b"requests that came along".to_vec(),
        ]
        .concat();
        let whole = converse(&exports, &[&stream]);
        prop_assert!(matches!(whole.1, Ok(Progress::Chosen(_))));
        prop_assert_eq!(&whole.2, b"requests that came along");
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(stream.len())).collect();
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut start = 0;
        for cut in cuts.into_iter().chain([stream.len()]) {
            pieces.push(&stream[start..cut]);
            start = cut;
        }
        prop_assert_eq!(converse(&exports, &pieces), whole);
    }

    #[test]
    fn no_bytes_make_it_panic_or_send_without_bound(noise in prop::collection::vec(any::<u8>(), 0..600)) {
        let structured = option(opt::STRUCTURED_REPLY, b"");
        for number in [opt::GO, opt::LIST_META_CONTEXT, opt::SET_META_CONTEXT] {
            let pieces = [&FIXED[..], &structured, &option(number, &noise), &noise];
            let (out, _, _) = converse(&exports(&["vol"]), &pieces);
            prop_assert!(out.len() < 1024);
        }
    }
}
