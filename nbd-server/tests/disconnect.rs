//! A client that vanishes at every byte of a conversation. Alone in its process: it counts descriptors and memory.

#![allow(clippy::unwrap_used)] // a test may unwrap

mod common;

use common::raw::{extended, queries};
use common::{Server, option, request};
use nbd_server::ram::RamDisk;
use std::io::Write;

const FUA: u16 = 1;
/// With extended headers a write says that its length is that of its payload.
const PAYLOAD_LEN: u16 = 1 << 5;

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// How requests and replies look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Simple,
    Structured,
    Extended,
}

impl Style {
    fn request(self, flags: u16, kind: u16, offset: u64, len: u32) -> Vec<u8> {
        match self {
            Style::Extended => extended(flags, kind, u64::from(kind), offset, u64::from(len)),
            _ => request(flags, kind, u64::from(kind), offset, len),
        }
    }

    /// Every option, an export, every command, and a write that is never whole.
    fn conversation(self) -> Vec<u8> {
        let by_name = [&0u32.to_be_bytes()[..], &[0, 1, 0, 3]].concat();
        let agreement = match self {
            Style::Simple => Vec::new(),
            Style::Structured => option(8, b""),
            Style::Extended => [option(8, b""), option(11, b"")].concat(),
        };
        let contexts = queries(&["base:allocation"]);
        // STARTTLS and an unknown one are refused.
        let asked = [option(3, b""), option(5, b""), option(6, &by_name), option(99, b"?")].concat();
        let chosen = [option(9, &contexts), option(10, &contexts), option(7, &by_name)].concat();
        let write = FUA | if self == Style::Extended { PAYLOAD_LEN } else { 0 };
        let requests = [
            self.request(0, 0, 0, 4096),
            self.request(write, 1, 512, 100),
            vec![7; 100],
            self.request(0, 3, 0, 0),
            self.request(FUA, 4, 0, 4096),
            self.request(0, 5, 0, 4096),
            self.request(FUA, 6, 4096, 4096),
            self.request(0, 7, 0, 8192),
            self.request(0, 77, 0, 1),
            self.request(write, 1, 0, 2 << 20),
            vec![8; 40],
        ];
        [&[0, 0, 0, 3], &agreement[..], &asked, &chosen, &requests.concat()].concat()
    }
}

#[test]
fn a_disconnect_at_any_byte_leaks_neither_memory_nor_descriptors() {
    let server = Server::start(RamDisk::new(1 << 20));
    let flags = [0, 0, 0, 3];
    let by_name =
        [&flags[..], &option(1, b"vol"), &request(0, 0, 1, 0, 512), &request(0, 2, 2, 0, 0)].concat();
    let farewell = [&flags[..], &option(3, b""), &option(2, b"")].concat();
    let mut conversations: Vec<_> =
        [Style::Simple, Style::Structured, Style::Extended].map(Style::conversation).to_vec();
    conversations.extend([by_name, farewell]);
    // The first round brings up what every other uses again.
    let mut steady = None;
    for round in 0..2 {
        for conversation in &conversations {
            for cut in 0..=conversation.len() {
                let mut stream = common::open(&server.path);
                // It may have been closed for what it said before.
                drop(stream.write_all(&conversation[..cut]));
            }
        }
        // Clients are accepted in order: behind this one, none is left in the queue.
        server.connect(true).read(0, 1);
        server.wait_until_idle();
        let now = (open_descriptors(), resident_bytes());
        let (descriptors, resident) = *steady.get_or_insert(now);
        assert_eq!(now.0, descriptors, "round {round}");
        assert!(now.1 <= resident + (4 << 20), "round {round}: {} bytes, then {}", resident, now.1);
    }
    server.connect(true).write(0, b"the server lives");
    assert!(server.stop().is_clean());
}
