//! What `NBD_OPT_STARTTLS` changes: which options are answered before it, and whether it may come.

use super::option::put_reply;
use super::wire::{opt, rep};
use crate::tls::TlsMode;

/// Where a handshake stands with TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsState {
    /// Nothing is encrypted so far.
    Clear {
        /// What the listener wants.
        mode: TlsMode,
        /// True if there are certificates, without which TLS cannot begin.
        is_possible: bool,
    },
    /// Everything is encrypted.
    On,
}

impl TlsState {
    /// In clear for ever.
    pub const NEVER: TlsState = TlsState::Clear { mode: TlsMode::Off, is_possible: false };

    /// True if this option has to wait until everything is encrypted.
    pub(super) fn holds_back(self, option: u32) -> bool {
        let required = matches!(self, TlsState::Clear { mode: TlsMode::Require, .. });
        required && !matches!(option, opt::STARTTLS | opt::ABORT)
    }

    /// Answers `NBD_OPT_STARTTLS`; true if TLS begins behind the answer.
    pub(super) fn start(self, data: &[u8], out: &mut Vec<u8>) -> bool {
        let (reply, why) = match self {
            _ if !data.is_empty() => (rep::ERR_INVALID, "this option has no data"),
            TlsState::On => (rep::ERR_INVALID, "TLS is on already"),
            TlsState::Clear { is_possible: false, .. } => (rep::ERR_UNSUP, "this server has no TLS"),
            TlsState::Clear { mode: TlsMode::Off, .. } => {
                (rep::ERR_POLICY, "there is no TLS at this address")
            }
            TlsState::Clear { .. } => (rep::ACK, ""),
        };
        put_reply(out, opt::STARTTLS, reply, &[why.as_bytes()]);
        reply == rep::ACK
    }
}
