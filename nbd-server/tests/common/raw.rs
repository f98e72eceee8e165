//! Chunks of replies as they stand on the wire, for tests that look at them one by one.

use super::{Client, be, hello_with, open, option};
use std::path::Path;

/// Which headers the client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Headers {
    Structured,
    Extended,
}

/// One chunk of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub is_last: bool,
    pub kind: u16,
    pub cookie: u64,
    /// The request's offset; only extended headers have it.
    pub offset: u64,
    pub payload: Vec<u8>,
}

/// A client that selects metadata contexts and looks at chunks.
pub struct Raw {
    pub client: Client,
    pub headers: Headers,
}

/// The data of an option about metadata contexts of the default export.
pub fn queries(list: &[&str]) -> Vec<u8> {
    let count = (list.len() as u32).to_be_bytes().to_vec();
    let queries = list.iter().map(|query| [&(query.len() as u32).to_be_bytes(), query.as_bytes()].concat());
    [vec![0; 4], count].into_iter().chain(queries).collect::<Vec<_>>().concat()
}

/// A request with extended headers.
pub fn extended(flags: u16, kind: u16, cookie: u64, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = 0x21e4_1c71u32.to_be_bytes().to_vec();
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes
}

impl Raw {
    pub fn connect(path: &Path, headers: Headers, contexts: &[&str]) -> Raw {
        let agreement = option(if headers == Headers::Extended { 11 } else { 8 }, b"");
        let mut stream = open(path);
        let (size, flags) = hello_with(&mut stream, &[agreement, option(10, &queries(contexts))]);
        Raw { client: Client { stream, structured: true, size, flags }, headers }
    }

    pub fn send(&mut self, flags: u16, kind: u16, cookie: u64, offset: u64, len: u64) {
        let bytes = match self.headers {
            Headers::Structured => super::request(flags, kind, cookie, offset, len as u32),
            Headers::Extended => extended(flags, kind, cookie, offset, len),
        };
        self.client.send(&bytes);
    }

    /// The next chunk, of whichever reply.
    pub fn chunk(&mut self) -> Chunk {
        let is_extended = self.headers == Headers::Extended;
        let head = self.client.take(if is_extended { 32 } else { 20 });
        let (magic, len) = if is_extended { (0x6e8a_278c, &head[24..]) } else { (0x668e_33ef, &head[16..]) };
        assert_eq!(be(&head[..4]), magic);
        let offset = if is_extended { be(&head[16..24]) } else { 0 };
        let (is_last, kind, cookie) = (be(&head[4..6]) == 1, be(&head[6..8]) as u16, be(&head[8..16]));
        Chunk { is_last, kind, cookie, offset, payload: self.client.take(be(len) as usize) }
    }

    /// One request and all chunks of its reply.
    pub fn ask(&mut self, flags: u16, kind: u16, offset: u64, len: u64, payload: &[u8]) -> Vec<Chunk> {
        self.send(flags, kind, 42, offset, len);
        self.client.send(payload);
        let mut chunks: Vec<Chunk> = Vec::new();
        while chunks.last().is_none_or(|chunk| !chunk.is_last) {
            chunks.push(self.chunk());
        }
        let offset = if self.headers == Headers::Extended { offset } else { 0 };
        assert!(chunks.iter().all(|chunk| (chunk.cookie, chunk.offset) == (42, offset)));
        chunks
    }

    /// The error a request is answered with; 0 for none.
    pub fn error(&mut self, flags: u16, kind: u16, offset: u64, len: u64, payload: &[u8]) -> u64 {
        match self.ask(flags, kind, offset, len, payload).as_slice() {
            [chunk] if chunk.kind == 0x8001 => be(&chunk.payload[..4]),
            chunks => {
                assert!(chunks.iter().all(|chunk| chunk.kind < 0x8000), "{chunks:?}");
                0
            }
        }
    }

    /// What a read makes of the range: its bytes, and how many of them came as holes.
    pub fn read(&mut self, flags: u16, offset: u64, len: usize) -> (Vec<u8>, usize) {
        let (mut data, mut holes, mut told) = (vec![0xee; len], 0, 0);
        for chunk in self.ask(flags, 0, offset, len as u64, b"") {
            let at = (be(&chunk.payload[..8]) - offset) as usize;
            let bytes = match chunk.kind {
                1 => chunk.payload[8..].to_vec(),
                2 => vec![0; be(&chunk.payload[8..12]) as usize],
                other => panic!("chunk {other:#x} of a read"),
            };
            holes += if chunk.kind == 2 { bytes.len() } else { 0 };
            told += bytes.len();
            data[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        assert_eq!(told, len);
        (data, holes)
    }
}

/// The number of the context of a status chunk, and its extents as length and status.
pub fn extents(chunk: &Chunk) -> (u64, Vec<(u64, u64)>) {
    let (head, each) = match chunk.kind {
        5 => (4, 8),
        6 => (8, 16),
        other => panic!("chunk {other:#x} of a status query"),
    };
    let list = chunk.payload[head..].chunks(each);
    let list: Vec<_> = list.map(|pair| (be(&pair[..each / 2]), be(&pair[each / 2..]))).collect();
    if each == 16 {
        assert_eq!(be(&chunk.payload[4..8]), list.len() as u64);
    }
    (be(&chunk.payload[..4]), list)
}
