//! The client's handshake against our own server's, against scripted servers, and against mutations of both.

use super::*;
use proptest::prelude::*;

const EVERYTHING: Wishes = Wishes { tls: false, structured: true, extended: true };
const FIXED: u16 = 3;

fn greeting(flags: u16) -> Vec<u8> {
    [INIT_MAGIC.to_be_bytes().as_slice(), &OPTION_MAGIC.to_be_bytes(), &flags.to_be_bytes()].concat()
}

fn reply(option: u32, reply: u32, data: &[u8]) -> Vec<u8> {
    let len = data.len() as u32;
    let numbers = [option.to_be_bytes(), reply.to_be_bytes(), len.to_be_bytes()].concat();
    [OPTION_REPLY_MAGIC.to_be_bytes().as_slice(), &numbers, data].concat()
}

fn size_info(option: u32, size: u64, flags: u16) -> Vec<u8> {
    reply(option, rep::INFO, &[&[0, 0], size.to_be_bytes().as_slice(), &flags.to_be_bytes()].concat())
}

fn block_info(option: u32, sizes: [u32; 3]) -> Vec<u8> {
    let sizes = sizes.map(u32::to_be_bytes).concat();
    reply(option, rep::INFO, &[&info::BLOCK_SIZE.to_be_bytes(), sizes.as_slice()].concat())
}

/// Feeds `said` in pieces of `portion` bytes; what the client says is the second part.
fn run(mut client: Handshake, said: &[u8], portion: usize) -> (Result<Step, ClientError>, Vec<u8>) {
    let mut out = Vec::new();
    for piece in said.chunks(portion) {
        let (taken, step) = client.feed(piece, &mut out);
        assert!(taken <= piece.len());
        match step {
            Ok(Step::More) => assert_eq!(taken, piece.len()),
            stop => return (stop, out),
        }
    }
    (Ok(Step::More), out)
}

fn go(said: &[Vec<u8>]) -> Result<Step, ClientError> {
    run(Handshake::new(Goal::Go, EVERYTHING, "vol"), &said.concat(), 1 << 20).0
}

fn error(said: &[Vec<u8>]) -> String {
    go(said).unwrap_err().to_string()
}

/// A server of today, which knows everything.
fn modern() -> Vec<Vec<u8>> {
    vec![
        greeting(FIXED),
        reply(opt::EXTENDED_HEADERS, rep::ACK, &[]),
        size_info(opt::GO, 1 << 30, 0x1ed),
        block_info(opt::GO, [1, 4096, u32::MAX]),
        reply(opt::GO, rep::INFO, b"\0\x01vol"),
        reply(opt::GO, rep::ACK, &[]),
    ]
}

#[test]
fn a_server_that_knows_everything_is_used_for_everything() {
    let Ok(Step::Done(terms)) = go(&modern()) else { panic!() };
    assert_eq!((terms.size_bytes, terms.flags, terms.replies), (1 << 30, 0x1ed, Replies::Extended));
    assert_eq!(terms.block, BlockSizes { min: 1, preferred: 4096, max: u32::MAX });
    assert!(terms.block_announced);
}

#[test]
fn what_a_server_does_not_know_is_done_without() {
    let said = [
        greeting(FIXED),
        reply(opt::EXTENDED_HEADERS, rep::ERR_UNSUP, b"what?"),
        reply(opt::STRUCTURED_REPLY, rep::ERR_UNSUP, &[]),
        reply(opt::GO, rep::ERR_UNSUP, &[]),
        [(1u64 << 20).to_be_bytes().as_slice(), &[0, 1]].concat(),
    ];
    let (step, out) = run(Handshake::new(Goal::Go, EVERYTHING, "vol"), &said.concat(), 1 << 20);
    let Ok(Step::Done(terms)) = step else { panic!() };
    assert_eq!((terms.size_bytes, terms.flags, terms.replies), (1 << 20, 1, Replies::Simple));
    assert_eq!((terms.block, terms.block_announced), (BlockSizes::default(), false));
    assert!(out.ends_with(b"IHAVEOPT\0\0\0\x01\0\0\0\x03vol"));
}

#[test]
fn an_old_newstyle_server_is_asked_by_name_and_its_zeroes_are_swallowed() {
    let mut said = [greeting(0), vec![0; 6], vec![0x10, 0, 0, 1], vec![0; 124]].concat();
    said.push(0x67);
    let mut client = Handshake::new(Goal::Go, EVERYTHING, "vol");
    let (taken, step) = client.feed(&said, &mut Vec::new());
    assert!(matches!(step, Ok(Step::Done(terms)) if terms.size_bytes == 0x1000));
    assert_eq!(taken, said.len() - 1, "what follows is no part of the handshake");
}

#[test]
fn info_says_good_bye() {
    let said = [
        greeting(FIXED),
        reply(opt::STRUCTURED_REPLY, rep::ACK, &[]),
        size_info(opt::INFO, 4096, 1),
        reply(opt::INFO, rep::ACK, &[]),
    ];
    let wishes = Wishes { extended: false, ..EVERYTHING };
    let (step, out) = run(Handshake::new(Goal::Info, wishes, ""), &said.concat(), 1);
    assert!(matches!(step, Ok(Step::Done(_))));
    assert!(out.ends_with(b"IHAVEOPT\0\0\0\x02\0\0\0\0"));
}

#[test]
fn tls_comes_before_anything_else_and_nothing_in_clear_is_believed_after_it() {
    let tls = Wishes { tls: true, ..EVERYTHING };
    let start = [greeting(FIXED), reply(opt::STARTTLS, rep::ACK, &[])].concat();
    let (step, out) = run(Handshake::new(Goal::Go, tls, "secret"), &start, 1 << 20);
    assert!(matches!(step, Ok(Step::StartTls)));
    assert_eq!(out.len(), 4 + 16, "flags and one option: the export's name is not told in clear");

    let injected = [start, reply(opt::EXTENDED_HEADERS, rep::ACK, &[])].concat();
    let (step, _) = run(Handshake::new(Goal::Go, tls, "secret"), &injected, 1 << 20);
    assert!(matches!(step, Err(ClientError::Broken(Rubbish::ClearAfterTls))));

    let refused = [greeting(FIXED), reply(opt::STARTTLS, rep::ERR_UNSUP, &[])].concat();
    assert!(run(Handshake::new(Goal::Go, tls, "x"), &refused, 99).0.is_err(), "no fall-back to clear");
    assert!(run(Handshake::new(Goal::Go, tls, "x"), &greeting(0), 99).0.is_err());
}

#[test]
fn a_server_is_quoted_when_it_refuses() {
    let mut said = modern();
    said.truncate(2);
    said.push(reply(opt::GO, rep::ERR_UNKNOWN, b"no vol\x07 here"));
    let error = error(&said);
    assert!(error.contains("no export of this name") && error.contains("no vol\\u{7} here"), "{error}");
}

#[test]
fn what_is_no_nbd_server_is_known_by_its_first_bytes() {
    let mut client = Handshake::new(Goal::Go, EVERYTHING, "");
    assert!(matches!(client.feed(b"SSH", &mut Vec::new()).1, Err(ClientError::NotNbd)));
    let oldstyle =
        [INIT_MAGIC.to_be_bytes().as_slice(), &[0, 0, 0x42, 2, 0x81, 0x86, 0x12, 0x53, 0, 0]].concat();
    assert!(matches!(go(&[oldstyle]), Err(ClientError::Oldstyle)));
}

#[test]
fn rubbish_is_told_from_refusals() {
    let with = |at: usize, item: Vec<u8>| {
        let mut said = modern();
        said[at] = item;
        error(&said)
    };
    let mut no_magic = reply(opt::GO, rep::ACK, &[]);
    no_magic[0] ^= 1;
    let mut huge = reply(opt::GO, rep::INFO, &[]);
    huge[16..20].fill(0xff);
    let cases = [
        (with(5, no_magic), "a reply to an option starts with"),
        (with(5, huge), "4294967295 bytes"),
        (with(5, reply(opt::LIST, rep::ACK, &[])), "answered option 3"),
        (with(5, reply(opt::GO, rep::SERVER, &[])), "reply 0x2"),
        (with(1, reply(opt::EXTENDED_HEADERS, rep::INFO, &[])), "reply 0x3"),
        (with(1, reply(opt::EXTENDED_HEADERS, rep::ACK, b"x")), "wrong length"),
        (with(2, reply(opt::GO, rep::INFO, b"x")), "wrong length"),
        (with(2, reply(opt::GO, rep::INFO, &[0; 11])), "wrong length"),
        (with(2, block_info(opt::GO, [512, 4096, 1 << 20])), "without telling the export's size"),
        (with(2, size_info(opt::GO, 1 << 63, 1)), "9223372036854775808"),
        (with(3, block_info(opt::GO, [0, 4096, 1 << 20])), "block sizes"),
        (with(3, block_info(opt::GO, [3, 4096, 1 << 20])), "block sizes"),
        (with(3, block_info(opt::GO, [1 << 17, 1 << 17, 1 << 20])), "block sizes"),
        (with(3, block_info(opt::GO, [4096, 512, 1 << 20])), "block sizes"),
        (with(3, block_info(opt::GO, [512, 4096, 0])), "block sizes"),
    ];
    for (error, part) in cases {
        assert!(error.contains(part), "{error} lacks {part}");
    }
    let endless: Vec<Vec<u8>> = std::iter::once(greeting(FIXED))
        .chain([reply(opt::EXTENDED_HEADERS, rep::ACK, &[])])
        .chain((0..1000).map(|_| reply(opt::GO, rep::INFO, b"\0\x01x")))
        .collect();
    assert!(error(&endless).contains("does not end"));
}

#[test]
fn the_largest_transfer_is_whole_blocks() {
    let mut said = modern();
    said[3] = block_info(opt::GO, [512, 4096, 33_000_000]);
    let Ok(Step::Done(terms)) = go(&said) else { panic!() };
    assert_eq!(terms.block.max % 512, 0);
}

proptest! {
    #[test]
    fn portions_make_no_difference(portion in 1usize..200) {
        let said = modern().concat();
        let run = |portion| run(Handshake::new(Goal::Go, EVERYTHING, "vol"), &said, portion);
        let ((whole, out), (pieces, same)) = (run(said.len()), run(portion));
        prop_assert_eq!(whole.unwrap(), pieces.unwrap());
        prop_assert_eq!(out, same);
    }

    #[test]
    fn mutations_neither_panic_nor_make_it_say_more_than_it_should(
        changes in proptest::collection::vec((0usize..300, any::<u8>()), 1..6),
        cut in 0usize..400,
        portion in 1usize..64,
        wishes in any::<[bool; 3]>(),
    ) {
        let mut said = modern().concat();
        for (at, value) in changes {
            let len = said.len();
            said[at % len] = value;
        }
        said.truncate(cut);
        let [tls, structured, extended] = wishes;
        let client = Handshake::new(Goal::Go, Wishes { tls, structured, extended }, "vol");
        let (step, out) = run(client, &said, portion);
        prop_assert!(out.len() <= 4 + 4 * (16 + 11));
        if let Ok(Step::Done(terms)) = step {
            prop_assert!(!tls && i64::try_from(terms.size_bytes).is_ok() && terms.block.max > 0);
        }
    }
}
