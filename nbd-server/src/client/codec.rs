//! What lies between the bytes of the protocol and those of the socket: nothing, or TLS.

use super::error::ClientError;
use super::uri::NbdUri;

#[cfg(feature = "tls")]
use crate::tls::{Channel, ClientTls};
#[cfg(feature = "tls")]
use smallvec::SmallVec;
#[cfg(feature = "tls")]
use std::io::IoSlice;

/// The way of one connection's bytes.
#[derive(Debug, Default)]
pub(super) struct Codec {
    #[cfg(feature = "tls")]
    channel: Option<Box<Channel>>,
}

#[cfg(feature = "tls")]
impl Codec {
    /// Begins TLS with the server of `uri`.
    pub(super) fn start(&mut self, uri: &NbdUri) -> Result<(), ClientError> {
        let tls = |error: &dyn std::fmt::Display| ClientError::Tls(error.to_string());
        let params = uri.tls.clone().unwrap_or_default();
        let certificates =
            ClientTls::from_dir(params.certificates.as_deref()).map_err(|error| tls(&error))?;
        let name = match (&params.hostname, &uri.address) {
            (Some(name), _) => name.as_str(),
            (None, super::Address::Tcp { host, .. }) => host.as_str(),
            (None, super::Address::Unix(_)) => "localhost",
        };
        self.channel = Some(Box::new(certificates.channel(name).map_err(|error| tls(&error))?));
        Ok(())
    }

    /// True if what is sent is encrypted.
    pub(super) fn is_tls(&self) -> bool {
        self.channel.is_some()
    }

    /// True while the two sides agree on keys.
    pub(super) fn is_handshaking(&self) -> bool {
        self.channel.as_ref().is_some_and(|channel| channel.is_handshaking())
    }

    /// Appends to `out` what is to be sent for `plain`, all of it in as few records as it takes, and what the way
    /// itself has to send.
    pub(super) fn seal(&mut self, plain: &[&[u8]], out: &mut Vec<u8>) {
        let Some(channel) = &mut self.channel else { return out.extend(plain.iter().copied().flatten()) };
        let mut pieces: SmallVec<[IoSlice<'_>; 8]> = plain.iter().map(|piece| IoSlice::new(piece)).collect();
        let mut rest = &mut pieces[..];
        loop {
            channel.append_ciphertext(out);
            match channel.write(rest) {
                0 => return,
                count => IoSlice::advance_slices(&mut rest, count),
            }
        }
    }

    /// Takes what the socket gave, and hands the bytes of the protocol to `sink`, in order.
    pub(super) fn open<E: From<ClientError>>(
        &mut self,
        input: &[u8],
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(channel) = &mut self.channel else { return sink(input) };
        let mut rest = input;
        loop {
            let taken = channel.feed(rest).map_err(|error| ClientError::Tls(error.to_string()))?;
            rest = &rest[taken..];
            let plain = channel.plaintext();
            let count = plain.len();
            if count == 0 && rest.is_empty() {
                return Ok(());
            }
            if count == 0 && taken == 0 {
                return Err(ClientError::Tls("it does not go on".into()).into());
            }
            sink(plain)?;
            channel.consume(count);
        }
    }
}

#[cfg(not(feature = "tls"))]
impl Codec {
    pub(super) fn start(&mut self, _: &NbdUri) -> Result<(), ClientError> {
        Err(ClientError::Tls("this program was built without it".into()))
    }

    pub(super) fn is_tls(&self) -> bool {
        false
    }

    pub(super) fn is_handshaking(&self) -> bool {
        false
    }

    pub(super) fn seal(&mut self, plain: &[&[u8]], out: &mut Vec<u8>) {
        out.extend(plain.iter().copied().flatten());
    }

    pub(super) fn open<E: From<ClientError>>(
        &mut self,
        input: &[u8],
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        sink(input)
    }
}
