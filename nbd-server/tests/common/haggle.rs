//! Options and their replies as they stand on the wire.

use super::{be, open, option};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

pub const ACK: u32 = 1;

/// A reply to an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub option: u32,
    pub kind: u32,
    pub data: Vec<u8>,
}

/// Connects in clear, up to the client flags.
pub fn greet(path: &Path) -> UnixStream {
    greet_with(path, 3)
}

/// As [`greet`], with these client flags.
pub fn greet_with(path: &Path, flags: u32) -> UnixStream {
    let mut socket = open(path);
    let mut greeting = [0; 18];
    socket.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\0\x03");
    socket.write_all(&flags.to_be_bytes()).unwrap();
    socket
}

/// One option and the first reply to it: its kind and its data.
pub fn ask(stream: &mut (impl Read + Write), number: u32, data: &[u8]) -> io::Result<(u32, Vec<u8>)> {
    stream.write_all(&option(number, data))?;
    reply(stream)
}

/// A reply to an option: its kind and its data.
pub fn reply(stream: &mut impl Read) -> io::Result<(u32, Vec<u8>)> {
    whole_reply(stream).map(|reply| (reply.kind, reply.data))
}

fn whole_reply(stream: &mut impl Read) -> io::Result<Reply> {
    let mut head = [0; 20];
    stream.read_exact(&mut head)?;
    assert_eq!(be(&head[..8]), 0x0003_e889_0455_65a9);
    let mut data = vec![0; be(&head[16..]) as usize];
    stream.read_exact(&mut data)?;
    Ok(Reply { option: be(&head[8..12]) as u32, kind: be(&head[12..16]) as u32, data })
}

/// A client that haggles.
pub struct Haggle {
    pub stream: UnixStream,
}

impl Haggle {
    pub fn open(path: &Path) -> Haggle {
        Haggle { stream: greet(path) }
    }

    pub fn with_flags(path: &Path, flags: u32) -> Haggle {
        Haggle { stream: greet_with(path, flags) }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// One option and all replies to it; the last of them acknowledges or is an error.
    pub fn ask(&mut self, number: u32, data: &[u8]) -> Vec<Reply> {
        self.send(&option(number, data));
        let mut replies = Vec::new();
        loop {
            let reply = whole_reply(&mut self.stream).unwrap();
            assert_eq!(reply.option, number, "a reply to another option");
            let kind = reply.kind;
            replies.push(reply);
            if kind == ACK || kind >= 1 << 31 {
                return replies;
            }
        }
    }

    /// The kind of the last reply to an option. An error has a message for people, and ACK has no data.
    pub fn verdict(&mut self, number: u32, data: &[u8]) -> u32 {
        let replies = self.ask(number, data);
        let last = &replies[replies.len() - 1];
        assert!(last.kind != ACK || last.data.is_empty());
        assert!(last.data.len() <= 4096 && std::str::from_utf8(&last.data).is_ok());
        last.kind
    }

    /// All that comes until the server closes the connection.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            // With input that the server has not read the connection is reset: what came before it counts.
            Err(error) if error.kind() != io::ErrorKind::ConnectionReset => panic!("not closed: {error}"),
            _ => rest,
        }
    }

    /// Takes this many bytes that are no reply.
    pub fn take(&mut self, bytes: usize) -> Vec<u8> {
        let mut taken = vec![0; bytes];
        self.stream.read_exact(&mut taken).unwrap();
        taken
    }
}

/// The data of `NBD_OPT_INFO` and `NBD_OPT_GO`.
pub fn info_data(name: &str, wanted: &[u16]) -> Vec<u8> {
    let wanted_bytes: Vec<u8> = wanted.iter().flat_map(|kind| kind.to_be_bytes()).collect();
    let (len, count) = (name.len() as u32, wanted.len() as u16);
    [&len.to_be_bytes(), name.as_bytes(), &count.to_be_bytes(), &wanted_bytes].concat()
}

/// The items of information in the replies to such an option: their kind and the rest.
pub fn infos(replies: &[Reply]) -> Vec<(u16, Vec<u8>)> {
    let infos = replies.iter().filter(|reply| reply.kind == 3);
    infos.map(|reply| (be(&reply.data[..2]) as u16, reply.data[2..].to_vec())).collect()
}
