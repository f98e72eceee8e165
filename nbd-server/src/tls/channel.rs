//! One connection's TLS as a state machine: ciphertext in, plaintext out, and the other way round.
//!
//! Bounds: ciphertext is taken only while no plaintext waits to be read, so that at most a record or two are held;
//! plaintext is taken only while at most a record of ciphertext waits to be sent; a handshake message is at most
//! 64 KiB. A channel in which nothing moves keeps none of it.
//!
//! After an error nothing more is taken or given but the alert that tells the peer. After our own good-bye what the
//! peer still sends is not looked at.

use super::RECORD_BYTES;
use rustls::Connection;
use std::io::{self, BufRead, IoSlice, Read, Write};

/// Why a channel has failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TlsError {
    /// The peer broke the protocol or is not who it should be.
    #[error("{0}{remedy}", remedy = remedy(.0))]
    Protocol(#[from] rustls::Error),
    /// The peer sends a record or a message that is longer than any may be.
    #[error("a message is longer than the protocol allows")]
    TooLong,
    /// This is no name that a certificate could be for.
    #[error("{0:?} is neither a host name nor an address")]
    BadName(String),
}

/// What to do about an error that is about certificates, behind rustls's own words.
fn remedy(error: &rustls::Error) -> &'static str {
    use rustls::AlertDescription as Alert;
    use rustls::CertificateError as Bad;
    match error {
        rustls::Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => {
            ": the other side's certificate is not from an authority in our ca-cert.pem"
        }
        rustls::Error::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => {
            ": use the name that is in it, or tls-hostname=NAME in the URI"
        }
        rustls::Error::AlertReceived(Alert::CertificateRequired) => {
            ": the other side wants a client-cert.pem and its client-key.pem beside our ca-cert.pem"
        }
        // The second is what an authority of the same name with another key comes to.
        rustls::Error::AlertReceived(Alert::UnknownCA | Alert::DecryptError | Alert::BadCertificate) => {
            ": our certificate is not from an authority in the other side's ca-cert.pem"
        }
        _ => "",
    }
}

/// One side of a TLS connection.
#[derive(Debug)]
pub struct Channel {
    connection: Connection,
    /// Plaintext that was received and not yet consumed, in bytes.
    received: usize,
    peer_has_closed: bool,
    has_closed: bool,
    failure: Option<TlsError>,
}

impl Channel {
    pub(super) fn new(mut connection: Connection) -> Channel {
        connection.set_buffer_limit(Some(RECORD_BYTES));
        Channel { connection, received: 0, peer_has_closed: false, has_closed: false, failure: None }
    }

    /// True until both sides agree and data can be written.
    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Takes ciphertext that the peer sent. Returns how much it took: all of it, unless plaintext waits to be
    /// [consumed](Channel::consume) before. After [`Channel::close`] it is dropped.
    pub fn feed(&mut self, ciphertext: &[u8]) -> Result<usize, TlsError> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        // A damaged record would be answered with an alert behind our good-bye, which must be our last word.
        if self.has_closed {
            return Ok(ciphertext.len());
        }
        let fed = self.take_in(ciphertext);
        if let Err(failure) = &fed {
            self.failure = Some(failure.clone());
        }
        fed
    }

    /// Plaintext that was received, or the first piece of it; empty if there is none.
    pub fn plaintext(&mut self) -> &[u8] {
        // The only error is that there is none.
        self.connection.reader().into_first_chunk().unwrap_or_default()
    }

    /// Plaintext that waits to be consumed, in bytes.
    pub fn received(&self) -> usize {
        self.received
    }

    /// Forgets the first bytes of [`Channel::plaintext`], at most as many as it has.
    pub fn consume(&mut self, bytes: usize) {
        self.connection.reader().consume(bytes);
        self.received = self.received.saturating_sub(bytes);
        self.shrink();
    }

    /// Encrypts the first bytes of `plaintext`, in order, as one record where possible. Returns how many it took:
    /// at most a record's worth, and none before the end of the handshake, after the close, or while the ciphertext
    /// of earlier ones is not taken.
    pub fn write(&mut self, plaintext: &[IoSlice<'_>]) -> usize {
        if self.is_handshaking() || self.has_closed || self.wants_write() {
            return 0;
        }
        // The only error is that the channel has failed before.
        self.connection.writer().write_vectored(plaintext).unwrap_or(0)
    }

    /// True if there is ciphertext to be sent.
    pub fn wants_write(&self) -> bool {
        self.connection.wants_write()
    }

    /// Moves ciphertext to be sent into `room`, as much as fits; returns how much that is.
    pub fn take_ciphertext(&mut self, room: &mut [u8]) -> usize {
        let mut left = &mut *room;
        while !left.is_empty() && self.connection.wants_write() {
            // A slice takes what fits and has no errors.
            if self.connection.write_tls(&mut left).unwrap_or(0) == 0 {
                break;
            }
        }
        let left = left.len();
        room.len() - left
    }

    /// Appends all ciphertext to be sent to `out`.
    pub(crate) fn append_ciphertext(&mut self, out: &mut Vec<u8>) {
        // A vector takes everything and has no errors.
        while self.connection.wants_write() && self.connection.write_tls(out).is_ok_and(|bytes| bytes > 0) {}
    }

    /// Says good-bye (`close_notify`), once; nothing can be written any more.
    pub fn close(&mut self) {
        if !std::mem::replace(&mut self.has_closed, true) {
            self.connection.send_close_notify();
        }
    }

    /// True once good-bye was said to the peer; it may still wait to be sent.
    pub fn has_closed(&self) -> bool {
        self.has_closed
    }

    /// True once the peer said good-bye. A connection that ends without it may have been cut by somebody else.
    pub fn peer_has_closed(&self) -> bool {
        self.peer_has_closed
    }

    fn take_in(&mut self, ciphertext: &[u8]) -> Result<usize, TlsError> {
        let mut rest = ciphertext;
        while !rest.is_empty() && self.received == 0 {
            if self.peer_has_closed {
                // What comes after the good-bye is nobody's.
                return Ok(ciphertext.len());
            }
            // Its only error is a message that is too long for its buffer.
            match self.connection.read_tls(&mut rest) {
                Ok(taken) if taken > 0 => {}
                _ => return Err(TlsError::TooLong),
            }
            let state = self.connection.process_new_packets()?;
            self.received = state.plaintext_bytes_to_read();
            self.peer_has_closed = state.peer_has_closed();
        }
        self.shrink();
        Ok(ciphertext.len() - rest.len())
    }

    /// Makes the buffer of a channel that holds no part of a record as small as it is at its start: it does so when
    /// it is about to read, so it is given nothing to read.
    fn shrink(&mut self) {
        if self.received == 0 && !self.peer_has_closed && self.failure.is_none() {
            let nothing = self.connection.read_tls(&mut Nothing);
            debug_assert!(nothing.is_err());
        }
    }
}

/// A source that has nothing at the moment.
struct Nothing;

impl Read for Nothing {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

#[cfg(test)]
mod tests;
