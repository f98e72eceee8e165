//! TLS for listeners and for the client: certificates from a folder, and a channel between plain and encrypted bytes.
//!
//! - [`TlsMode`] says of a listener whether its clients may or must use TLS.
//! - [`ServerTls`] and [`ClientTls`] are one side's certificates, read once; a reload makes a new one.
//! - [`Channel`] is one connection's TLS, either side, as a state machine over byte slices: it does no I/O.
//!
//! TLS 1.3 and 1.2 by rustls, with ring's cryptography. Sessions are not resumed: connections are few and live long,
//! and each one proves its certificate.
//!
//! ```
//! # #[cfg(feature = "tls")]
//! # fn show() -> Result<(), Box<dyn std::error::Error>> {
//! use nbd_server::tls::ClientTls;
//! use std::path::Path;
//!
//! let certificates = ClientTls::from_dir(Some(Path::new("/etc/pki/raidctl")))?;
//! let mut channel = certificates.channel("disks.example.org")?;
//! let mut hello = [0; 4096];
//! let hello = channel.take_ciphertext(&mut hello); // to be sent
//! assert!(hello > 0 && channel.is_handshaking());
//! # Ok(()) }
//! ```

#[cfg(not(feature = "tls"))]
mod absent;
#[cfg(feature = "tls")]
mod certificates;
#[cfg(feature = "tls")]
mod channel;
#[cfg(feature = "tls")]
mod pem;

#[cfg(not(feature = "tls"))]
pub use absent::{Channel, ServerTls, TlsError};
#[cfg(feature = "tls")]
pub use certificates::{CertificateError, ClientCerts, ClientTls, ServerTls};
#[cfg(feature = "tls")]
pub use channel::{Channel, TlsError};

/// Most plaintext in one record; more than that is not encrypted at once.
pub(crate) const RECORD_BYTES: usize = 16 << 10;

use std::fmt;
use std::str::FromStr;

/// Whether the clients of a listener use TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TlsMode {
    /// Never.
    #[default]
    Off,
    /// If they like.
    Allow,
    /// Before anything else: in clear, exports are neither listed nor served.
    Require,
}

impl TlsMode {
    /// The word for it: `off`, `allow` or `require`.
    pub fn word(self) -> &'static str {
        match self {
            TlsMode::Off => "off",
            TlsMode::Allow => "allow",
            TlsMode::Require => "require",
        }
    }
}

/// A word that names no [`TlsMode`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} says nothing about TLS: say off, allow or require")]
pub struct UnknownTlsMode(String);

impl FromStr for TlsMode {
    type Err = UnknownTlsMode;

    fn from_str(word: &str) -> Result<TlsMode, UnknownTlsMode> {
        let known = [TlsMode::Off, TlsMode::Allow, TlsMode::Require];
        known.into_iter().find(|mode| mode.word() == word).ok_or_else(|| UnknownTlsMode(word.to_owned()))
    }
}

impl fmt::Display for TlsMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

#[cfg(all(test, feature = "tls"))]
pub(crate) mod samples;
