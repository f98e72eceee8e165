//! `NBD_OPT_INFO`, `NBD_OPT_GO` and `NBD_REP_INFO`; the transmission flags.

use crate::common::be;
use crate::common::haggle::{info_data, infos};
use crate::nbd::*;
use crate::stage::{SIZE, Stage, Witness};

const NAME: u16 = 1;
const DESCRIPTION: u16 = 2;
const BLOCK_SIZE: u16 = 3;

#[test]
fn without_requests_size_and_flags_are_told_and_nothing_else() {
    let stage = Stage::new();
    let mut client = stage.haggle();
    for number in [INFO, GO] {
        let replies = client.ask(number, &info_data("vol", &[]));
        let told = infos(&replies);
        assert_eq!((replies.len(), told.len(), told[0].0, told[0].1.len()), (2, 1, 0, 10));
        assert_eq!(be(&told[0].1[..8]), SIZE);
        assert_eq!(replies[1].kind, REP_ACK);
    }
}

#[test]
fn each_item_that_is_asked_for_is_told_once_and_size_and_flags_always() {
    let stage = Stage::new().reoffer(|export| export.description = "a volume".to_owned());
    // In any order, twice, and with what is not known.
    for wanted in
        [&[BLOCK_SIZE, DESCRIPTION, NAME][..], &[NAME, 77, NAME, DESCRIPTION, 0xffff, BLOCK_SIZE, 0]]
    {
        for number in [INFO, GO] {
            let mut told = infos(&stage.haggle().ask(number, &info_data("", wanted)));
            told.sort();
            assert_eq!(told.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [0, 1, 2, 3]);
            assert_eq!(told[1].1, b"vol", "the name that LIST tells, and not the empty one");
            assert_eq!(told[2].1, b"a volume");
            assert_eq!(told[3].1.len(), 12);
        }
    }
    let none = Stage::new();
    let told = infos(&none.haggle().ask(INFO, &info_data("vol", &[DESCRIPTION])));
    assert_eq!(told.len(), 1, "an export without a description has none to tell");
}

#[test]
fn info_changes_nothing_and_go_then_tells_the_same() {
    let stage = Stage::new();
    let mut client = stage.haggle();
    assert_eq!(client.verdict(STRUCTURED_REPLY, b""), REP_ACK);
    let all = info_data("vol", &[NAME, DESCRIPTION, BLOCK_SIZE]);
    let first = infos(&client.ask(INFO, &all));
    assert_eq!(infos(&client.ask(INFO, &all)), first);
    assert_eq!(infos(&client.ask(GO, &all)), first);
}

#[test]
fn an_unknown_export_is_told_apart_and_haggling_goes_on() {
    let stage = Stage::new();
    let mut client = stage.haggle();
    for name in ["nope", "VOL", "vol ", "vo"] {
        for number in [INFO, GO] {
            let replies = client.ask(number, &info_data(name, &[NAME, BLOCK_SIZE]));
            assert_eq!((replies.len(), replies[0].kind), (1, ERR_UNKNOWN), "no information comes before");
        }
    }
    assert_eq!(client.verdict(GO, &info_data("vol", &[])), REP_ACK);
}

/// Bits of the transmission flags.
fn flags_of(stage: &Stage, options: &[u32]) -> u16 {
    let mut client = stage.haggle();
    options.iter().for_each(|option| assert_eq!(client.verdict(*option, b""), REP_ACK));
    let told = infos(&client.ask(INFO, &info_data("vol", &[])));
    be(&told[0].1[8..]) as u16
}

const HAS_FLAGS: u16 = 1 << 0;
const READ_ONLY: u16 = 1 << 1;
const SEND_FLUSH: u16 = 1 << 2;
const SEND_FUA: u16 = 1 << 3;
const ROTATIONAL: u16 = 1 << 4;
const SEND_TRIM: u16 = 1 << 5;
const SEND_WRITE_ZEROES: u16 = 1 << 6;
const SEND_DF: u16 = 1 << 7;
const CAN_MULTI_CONN: u16 = 1 << 8;
const SEND_CACHE: u16 = 1 << 10;
const SEND_FAST_ZERO: u16 = 1 << 11;

#[test]
fn flags_tell_what_is_supported_and_no_flag_that_is_not_defined_is_set() {
    let always = HAS_FLAGS | SEND_FLUSH | CAN_MULTI_CONN | SEND_CACHE;
    let writable = SEND_FUA | SEND_WRITE_ZEROES | SEND_FAST_ZERO;
    let stage = Stage::new();
    assert_eq!(flags_of(&stage, &[]), always | writable | SEND_TRIM);
    // DF only where replies are structured.
    assert_eq!(flags_of(&stage, &[STRUCTURED_REPLY]), always | writable | SEND_TRIM | SEND_DF);
    assert_eq!(flags_of(&stage, &[EXTENDED_HEADERS]), always | writable | SEND_TRIM | SEND_DF);
    let plain = Stage::of(Witness::ram().with(|geometry| geometry.discard = false));
    assert_eq!(flags_of(&plain, &[]), always | writable);
    let spinning = Stage::of(Witness::ram().with(|geometry| geometry.rotational = true));
    assert_eq!(flags_of(&spinning, &[]), always | writable | SEND_TRIM | ROTATIONAL);
    // Without WRITE_ZEROES there must be no FAST_ZERO.
    let sealed = Stage::of(Witness::ram().with(|geometry| geometry.read_only = true));
    assert_eq!(flags_of(&sealed, &[]), always | READ_ONLY);
}
