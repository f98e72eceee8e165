//! The NBD protocol as state machines over byte slices.
//!
//! Bytes go in, steps and bytes to send come out. Nothing here does I/O or knows a clock, and nothing is
//! reserved for a length that has not been checked against its limit. A client's mistake ends in an error
//! reply or, where the specification leaves no other way, in a [`Violation`] that closes the connection.
//!
//! - [`Handshake`]: from the greeting to the chosen export.
//! - [`Transmission`]: from the chosen export to the end: requests and their payload.
//! - [`reply`]: the heads of replies; [`status`]: the extents of a reply to a status query.
//! - [`meta_context`]: which contexts such a query can ask about.
//! - [`errno`]: the one place where errors become NBD error numbers.

pub mod errno;
mod handshake;
pub mod meta_context;
mod option;
pub mod reply;
mod request;
mod starttls;
pub mod status;
mod transmission;
pub mod wire;

pub use handshake::{Handshake, Negotiated, Progress};
pub use meta_context::Contexts;
pub use request::{Command, RawRequest, Refusal, Terms};
pub use starttls::TlsState;
pub use transmission::{Step, Transmission};

/// A client broke the protocol so that the connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The client flags have a bit that the server did not offer.
    #[error("unknown client flags {0:#x}")]
    ClientFlags(u32),
    /// An option does not start with `IHAVEOPT`.
    #[error("bad option magic {0:#018x}")]
    OptionMagic(u64),
    /// A client that did not negotiate fixed newstyle may send `NBD_OPT_EXPORT_NAME` only.
    #[error("option {0} without fixed newstyle")]
    NotFixedNewstyle(u32),
    /// With extended headers an export is chosen with `NBD_OPT_GO` only.
    #[error("NBD_OPT_EXPORT_NAME after extended headers")]
    ExportNameAfterExtended,
    /// `NBD_OPT_EXPORT_NAME` asks for what is not there; it has no error reply.
    #[error("no such export")]
    UnknownExport,
    /// `NBD_OPT_EXPORT_NAME` in clear, where TLS is required.
    #[error("an export is asked for in clear, and TLS is required")]
    TlsRequired,
    /// Clear bytes follow `NBD_OPT_STARTTLS`; nobody knows who sent them.
    #[error("clear bytes behind NBD_OPT_STARTTLS")]
    ClearBehindStartTls,
    /// More options, or more bytes, than a handshake may have.
    #[error("handshake does not end")]
    EndlessHandshake,
    /// A request does not start with the magic of the headers that were agreed on.
    #[error("bad request magic {0:#010x}")]
    RequestMagic(u32),
    /// A payload is too long even to skip.
    #[error("payload of {0} bytes")]
    PayloadTooLong(u64),
}
