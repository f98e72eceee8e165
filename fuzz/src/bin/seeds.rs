//! Writes the seeds that are made by a program: those of `tls_entry` and `superblocks`, and the lengths and orders
//! that real peers do not send. The others were written down from conversations.
//!
//! `cargo run --manifest-path fuzz/Cargo.toml --bin seeds`; only the TLS records of `raw_hello` differ each time.

use nbd_server::proto::wire::{
    EXTENDED_REPLY_MAGIC, OPTION_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, opt,
};
use nbd_server::tls::ClientTls;
use raidcore::dev::{BlockSize, Geometry};
use raidcore::layout::{LayoutSpec, Level};
use raidcore::meta::{Candidate, CreateParams, Superblock, plan_create};
use std::error::Error;
use std::path::{Path, PathBuf};
use uuid::Uuid;

type Seeds = Vec<(&'static str, Vec<u8>)>;

fn main() -> Result<(), Box<dyn Error>> {
    let all = [
        ("tls_entry", tls_entry()?),
        ("superblocks", superblocks()?),
        ("meta_contexts", meta_contexts()),
        ("client_replies", client_replies()),
    ];
    for (target, seeds) in all {
        for (name, bytes) in seeds {
            let folder = home().join("seeds").join(target);
            std::fs::create_dir_all(&folder)?;
            std::fs::write(folder.join(name), bytes)?;
        }
    }
    Ok(())
}

fn home() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

// Acts of the one between client and server: see fuzz/src/tls_entry.rs.
const PASS: u8 = 0;
const PASS_ALL: u8 = 1;
const FLIP: u8 = 2;
const PUT_BEFORE: u8 = 3;
const PUT_BEHIND: u8 = 4;
const DROP: u8 = 5;
const SAY: u8 = 6;
const CLOSE: u8 = 7;
const TO_CLIENT: u8 = 8;

/// As much as one act may pass on.
const MOST: u8 = 255;

/// The greeting to the client, its flags and `NBD_OPT_STARTTLS` to the server.
const UP_TO_STARTTLS: [[u8; 2]; 2] = [[PASS | TO_CLIENT, MOST], [PASS, MOST]];

fn put(act: u8, bytes: &[u8]) -> Vec<u8> {
    [&[act, bytes.len() as u8], bytes].concat()
}

fn tls_entry() -> Result<Seeds, Box<dyn Error>> {
    let start = UP_TO_STARTTLS.concat();
    let hellos = [&start[..], &[PASS | TO_CLIENT, MOST]].concat();
    let list = option(opt::LIST, b"");
    let script = |parts: &[&[u8]]| parts.concat();
    Ok(vec![
        ("honest", vec![13, PASS_ALL, 0]),
        ("honest_info", vec![2, PASS_ALL, 0]),
        ("in_small_pieces", script(&[&[12], &[PASS, 0, PASS | TO_CLIENT, 0].repeat(60), &[PASS_ALL, 0]])),
        ("list_in_tunnel", script(&[&[0], &start, &[PASS | TO_CLIENT, MOST, PASS_ALL, 0], &put(SAY, &list)])),
        ("good_bye", vec![1, PASS_ALL, 0, CLOSE, 0, PASS_ALL, 0, CLOSE | TO_CLIENT, 0]),
        ("clear_behind_starttls", script(&[&[1, PASS | TO_CLIENT, MOST], &put(PUT_BEHIND, &list)])),
        (
            "clear_behind_answer",
            script(&[&[1], &start, &put(PUT_BEHIND | TO_CLIENT, b"injected"), &[PASS_ALL, 0]]),
        ),
        ("list_in_clear_first", script(&[&[1, PASS | TO_CLIENT, MOST, PASS, 0], &put(PUT_BEFORE, &list)])),
        (
            "refused_starttls",
            script(&[&[0], &start, &[DROP | TO_CLIENT, MOST], &put(PUT_BEHIND | TO_CLIENT, &REFUSAL)]),
        ),
        ("damaged_hello", script(&[&[0], &hellos, &[FLIP, 40, 0xff, PASS_ALL, 0]])),
        (
            "damaged_certificate",
            script(&[&[0], &hellos, &[PASS, MOST, FLIP | TO_CLIENT, 200, 1, PASS_ALL, 0]]),
        ),
        ("damaged_data", script(&[&[0, PASS_ALL, 0], &put(SAY, &list), &[FLIP, 20, 1, PASS_ALL, 0]])),
        ("alert_in_clear", script(&[&[0], &hellos, &put(PUT_BEFORE, &[21, 3, 3, 0, 2, 2, 40])])),
        (
            "record_too_long",
            script(&[&[0], &hellos, &[DROP, MOST], &put(PUT_BEFORE, &[22, 3, 3, 0xff, 0xff, 1])]),
        ),
        ("empty_records", script(&[&[0], &hellos, &put(PUT_BEFORE, &[23, 3, 3, 0, 0].repeat(8))])),
        ("raw_hello", script(&[&[0], &hellos, &[DROP, MOST], &put(PUT_BEFORE, &hello()?), &[PASS, MOST]])),
    ])
}

/// A server that knows no TLS: `NBD_REP_ERR_UNSUP`.
const REFUSAL: [u8; 20] = [0, 3, 0xe8, 9, 4, 0x55, 0x65, 0xa9, 0, 0, 0, 5, 0x80, 0, 0, 1, 0, 0, 0, 0];

/// The first record of a client.
fn hello() -> Result<Vec<u8>, Box<dyn Error>> {
    let client = ClientTls::from_dir(Some(&Path::new(&home()).join("certificates")))?;
    let mut room = [0; 255];
    let len = client.channel("localhost")?.take_ciphertext(&mut room);
    Ok(room[..len].to_vec())
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let head = [&OPTION_MAGIC.to_be_bytes()[..], &number.to_be_bytes(), &(data.len() as u32).to_be_bytes()];
    [&head.concat(), data].concat()
}

fn superblocks() -> Result<Seeds, Box<dyn Error>> {
    let raid5 = array(Level::Raid5, 3, 1, 1)?;
    let raid10 = array(Level::Raid10, 4, 0, 2)?;
    let bytes = |blocks: &[&Superblock]| blocks.iter().flat_map(|block| block.encode()).collect::<Vec<u8>>();
    let mut ahead = raid5[0].clone();
    ahead.array.touch(8);
    Ok(vec![
        ("raid0", bytes(&[&array(Level::Raid0, 2, 0, 3)?[0]])),
        ("raid1_degraded", bytes(&[&array(Level::Raid1, 2, 0, 4)?[1]])),
        ("raid5_with_spare", bytes(&raid5.iter().collect::<Vec<_>>())),
        ("raid5_one_ahead", bytes(&[&ahead, &raid5[1], &raid5[2]])),
        ("raid5_twice_the_same", bytes(&[&raid5[0], &raid5[0], &raid5[1]])),
        ("raid10", bytes(&raid10.iter().collect::<Vec<_>>())),
        ("two_arrays", bytes(&[&raid5[0], &raid10[0], &raid5[1], &raid10[1]])),
    ])
}

fn array(level: Level, slots: usize, spares: usize, first: u128) -> Result<Vec<Superblock>, Box<dyn Error>> {
    let device =
        |i: usize| Candidate { name: format!("d{i}"), geometry: Geometry::plain(1 << 26, BlockSize::B512) };
    let params = CreateParams {
        name: "vol0".to_owned(),
        layout: LayoutSpec::new(level, slots, 64 << 10),
        members: (0..slots).map(device).collect(),
        spares: (slots..slots + spares).map(device).collect(),
        assume_clean: false,
        now_ns: 7,
    };
    let mut next = first << 64;
    let fresh = || {
        next += 1;
        Uuid::from_u128(next)
    };
    Ok(plan_create(&params, fresh)?)
}

fn meta_contexts() -> Seeds {
    let text = |text: &str| [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat();
    let of = |kind: u8, export: &str, count: u32, queries: &[&str]| {
        let queries: Vec<u8> = queries.iter().flat_map(|query| text(query)).collect();
        [&[7, kind][..], &text(export), &count.to_be_bytes(), &queries].concat()
    };
    vec![
        ("of_no_export", of(1, "nowhere", 1, &["base:allocation"])),
        ("namespaces", of(0, "vol0", 3, &["base:", "raidctl:", "qemu:"])),
        ("with_extended_headers", of(3, "vol0", 2, &["raidctl:health", "base:allocation"])),
        ("twice_the_same", of(1, "a", 2, &["base:allocation", "base:allocation"])),
        ("more_promised_than_sent", of(1, "vol0", u32::MAX, &["base:allocation"])),
        ("too_many", of(1, "vol0", 129, &["base:x"; 129])),
        ("longest_name", of(1, &"n".repeat(4097), 0, &[])),
    ]
}

/// To a read of 512 bytes (cookie 0), one of 4096 bytes at 1 MiB (1) and a write (2).
fn client_replies() -> Seeds {
    let chunk = |magic: u32, flags: u16, kind: u16, cookie: u64, payload: &[u8]| {
        let len = match magic {
            EXTENDED_REPLY_MAGIC => [&[0; 8][..], &(payload.len() as u64).to_be_bytes()].concat(),
            _ => (payload.len() as u32).to_be_bytes().to_vec(),
        };
        let head =
            [&magic.to_be_bytes()[..], &flags.to_be_bytes(), &kind.to_be_bytes(), &cookie.to_be_bytes()];
        [&head.concat(), &len, payload].concat()
    };
    let structured = |kind, cookie, payload: &[u8]| chunk(STRUCTURED_REPLY_MAGIC, 0, kind, cookie, payload);
    let done = chunk(STRUCTURED_REPLY_MAGIC, 1, 0, 0, b"");
    let hole = |at: u64, len: u32| [&at.to_be_bytes()[..], &len.to_be_bytes()].concat();
    let data = |at: u64, len: usize| [&at.to_be_bytes()[..], &vec![7; len]].concat();
    let simple = |errno: u32, cookie: u64| {
        [&SIMPLE_REPLY_MAGIC.to_be_bytes()[..], &errno.to_be_bytes(), &cookie.to_be_bytes()].concat()
    };
    vec![
        (
            "backwards",
            [&[9, 1], &structured(1, 0, &data(256, 256))[..], &structured(2, 0, &hole(0, 256)), &done]
                .concat(),
        ),
        (
            "twice_the_same_range",
            [&[9, 1], &structured(2, 0, &hole(0, 300))[..], &structured(2, 0, &hole(299, 213)), &done]
                .concat(),
        ),
        ("a_byte_missing", [&[9, 1], &structured(2, 0, &hole(0, 511))[..], &done].concat()),
        ("past_the_end", [&[9, 1], &structured(2, 0, &hole(1, 512))[..], &done].concat()),
        ("hole_at_the_end_of_numbers", [&[9, 1], &structured(2, 1, &hole(u64::MAX, u32::MAX))[..]].concat()),
        ("absurd_length", [&[9, 1, 0x66, 0x8e, 0x33, 0xef, 0, 0, 0x80, 1][..], &[0; 8], &[0xff; 4]].concat()),
        ("answered_twice", [&[9, 0], &simple(0, 2)[..], &simple(0, 2)].concat()),
        ("extended_hole", [&[9, 2], &chunk(EXTENDED_REPLY_MAGIC, 1, 2, 0, &hole(0, 512))[..]].concat()),
    ]
}
