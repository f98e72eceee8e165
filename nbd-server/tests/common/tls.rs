//! A client with TLS that waits for its answers, in portions of any size.

pub use super::haggle::{ask, greet, reply};

use super::{PATIENCE, option};
use nbd_server::tls::{Channel, ClientTls};
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

/// A connection that has sent STARTTLS and goes on encrypted.
pub struct TlsStream {
    pub socket: UnixStream,
    pub channel: Channel,
    /// How many bytes it sends and receives at once.
    pub portion: usize,
    /// How many bytes it may still send before it behaves as if it was cut off.
    pub left: usize,
    /// Received and not yet decrypted.
    pending: Vec<u8>,
}

impl TlsStream {
    /// STARTTLS and the TLS handshake, with the certificates in `dir`.
    pub fn connect(path: &Path, dir: &Path, portion: usize) -> io::Result<TlsStream> {
        TlsStream::cut_after(path, dir, portion, usize::MAX)
    }

    /// As [`TlsStream::connect`], but nothing goes out behind this many bytes of ciphertext.
    pub fn cut_after(path: &Path, dir: &Path, portion: usize, left: usize) -> io::Result<TlsStream> {
        TlsStream::begin(greet(path), dir, portion, left)
    }

    /// As [`TlsStream::connect`], on a connection that was greeted.
    pub fn start(socket: UnixStream, dir: &Path, portion: usize) -> io::Result<TlsStream> {
        TlsStream::begin(socket, dir, portion, usize::MAX)
    }

    fn begin(mut socket: UnixStream, dir: &Path, portion: usize, left: usize) -> io::Result<TlsStream> {
        assert_eq!(ask(&mut socket, 5, b"")?.0, 1);
        let channel = ClientTls::from_dir(Some(dir)).unwrap().channel("localhost").unwrap();
        let mut stream = TlsStream { socket, channel, portion, left, pending: Vec::new() };
        stream.shake_hands()?;
        Ok(stream)
    }

    pub fn shake_hands(&mut self) -> io::Result<()> {
        while self.channel.is_handshaking() {
            self.send_ciphertext()?;
            if self.channel.is_handshaking() && self.receive()? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        self.send_ciphertext()
    }

    pub fn send_ciphertext(&mut self) -> io::Result<()> {
        let mut room = vec![0; self.portion];
        while self.channel.wants_write() {
            let bytes = self.channel.take_ciphertext(&mut room);
            self.socket.write_all(&room[..bytes.min(self.left)])?;
            if bytes > self.left {
                return Err(ErrorKind::BrokenPipe.into());
            }
            self.left -= bytes;
        }
        Ok(())
    }

    /// Chooses the default export; structured replies are not asked for.
    pub fn go(&mut self) -> io::Result<()> {
        self.write_all(&option(7, &[0; 6]))?;
        while reply(self)?.0 != 1 {}
        Ok(())
    }

    /// Reads to the end: true if it is the server's good-bye and not a cut.
    pub fn ends_orderly(&mut self) -> bool {
        let begun = Instant::now();
        let mut room = [0; 4096];
        while self.read(&mut room).is_ok_and(|bytes| bytes > 0) {
            assert!(begun.elapsed() < PATIENCE);
        }
        self.channel.peer_has_closed()
    }

    /// Receives a portion, unless there is ciphertext left of the last one.
    fn receive(&mut self) -> io::Result<usize> {
        if self.pending.is_empty() {
            let mut room = vec![0; self.portion];
            let bytes = self.socket.read(&mut room)?;
            self.pending.extend_from_slice(&room[..bytes]);
        }
        let bytes = self.pending.len();
        let taken = self.channel.feed(&self.pending).map_err(io::Error::other)?;
        self.pending.drain(..taken);
        Ok(bytes)
    }
}

impl Read for TlsStream {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        while self.channel.plaintext().is_empty() {
            if self.channel.peer_has_closed() || self.receive()? == 0 {
                return Ok(0);
            }
        }
        let plaintext = self.channel.plaintext();
        let bytes = plaintext.len().min(room.len());
        room[..bytes].copy_from_slice(&plaintext[..bytes]);
        self.channel.consume(bytes);
        Ok(bytes)
    }
}

impl Write for TlsStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.channel.write(&[IoSlice::new(bytes)]);
        self.send_ciphertext()?;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
