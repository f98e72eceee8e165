//! An NBD client without manners: it sends what it is told, also what no client may.
//!
//! It negotiates with NBD_OPT_EXPORT_NAME and reads simple replies only. Everything a well-behaved client does
//! is tested with nbdinfo, qemu and fio instead.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const FIXED_NEWSTYLE: u32 = 1;
const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// A connection in whatever phase the caller has brought it to.
pub struct RawClient {
    stream: UnixStream,
    next_cookie: u64,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawReply {
    /// The NBD error, which has Linux's number; 0 is success.
    pub error: u32,
    /// What was read.
    pub data: Vec<u8>,
}

impl RawClient {
    /// Connects and answers the greeting.
    pub fn connect(socket: &Path) -> io::Result<RawClient> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        stream.write_all(&FIXED_NEWSTYLE.to_be_bytes())?;
        Ok(RawClient { stream, next_cookie: 1 })
    }

    /// Connects and opens an export. Returns the client and the size of the export in bytes.
    pub fn open(socket: &Path, export: &str) -> io::Result<(RawClient, u64)> {
        let mut client = RawClient::connect(socket)?;
        client.send_option(1, export.as_bytes())?;
        let mut answer = [0; 8 + 2 + 124];
        client.stream.read_exact(&mut answer)?;
        let size = u64::from_be_bytes(answer[..8].try_into().unwrap());
        Ok((client, size))
    }

    /// Sends an option.
    pub fn send_option(&mut self, option: u32, data: &[u8]) -> io::Result<()> {
        let mut message = IHAVEOPT.to_be_bytes().to_vec();
        message.extend(option.to_be_bytes());
        message.extend((data.len() as u32).to_be_bytes());
        message.extend(data);
        self.stream.write_all(&message)
    }

    /// Reads the answer to an option: its type, and its data.
    pub fn option_reply(&mut self) -> io::Result<(u32, Vec<u8>)> {
        let mut header = [0; 20];
        self.stream.read_exact(&mut header)?;
        assert_eq!(u64::from_be_bytes(header[..8].try_into().unwrap()), OPTION_REPLY_MAGIC);
        let kind = u32::from_be_bytes(header[12..16].try_into().unwrap());
        let mut data = vec![0; u32::from_be_bytes(header[16..].try_into().unwrap()) as usize];
        self.stream.read_exact(&mut data)?;
        Ok((kind, data))
    }

    /// Sends a request without waiting for its answer. `data` follows the header as it is.
    pub fn send(&mut self, flags: u16, command: u16, offset: u64, len: u32, data: &[u8]) -> io::Result<u64> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let mut message = REQUEST_MAGIC.to_be_bytes().to_vec();
        message.extend(flags.to_be_bytes());
        message.extend(command.to_be_bytes());
        message.extend(cookie.to_be_bytes());
        message.extend(offset.to_be_bytes());
        message.extend(len.to_be_bytes());
        message.extend(data);
        self.stream.write_all(&message)?;
        Ok(cookie)
    }

    /// Sends a request and reads its answer, which has `read_len` bytes of data when it is a success.
    pub fn call(
        &mut self,
        command: u16,
        offset: u64,
        len: u32,
        data: &[u8],
        read_len: usize,
    ) -> io::Result<RawReply> {
        let sent = self.send(0, command, offset, len, data)?;
        let (cookie, error) = self.reply()?;
        assert_eq!(cookie, sent, "an answer to something else");
        let mut data = vec![0; if error == 0 { read_len } else { 0 }];
        self.stream.read_exact(&mut data)?;
        Ok(RawReply { error, data })
    }

    /// Reads the head of the next answer: the cookie of its request, and the error.
    pub fn reply(&mut self) -> io::Result<(u64, u32)> {
        let mut header = [0; 16];
        self.stream.read_exact(&mut header)?;
        assert_eq!(u32::from_be_bytes(header[..4].try_into().unwrap()), REPLY_MAGIC);
        let error = u32::from_be_bytes(header[4..8].try_into().unwrap());
        Ok((u64::from_be_bytes(header[8..].try_into().unwrap()), error))
    }

    /// Sends bytes that are no message at all.
    pub fn send_garbage(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Whether the server has closed the connection, after at most the read timeout.
    pub fn closed_by_server(&mut self) -> bool {
        let mut byte = [0];
        match self.stream.read(&mut byte) {
            Ok(n) => n == 0,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}
