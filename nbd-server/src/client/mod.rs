//! Exports of other servers, used as block devices and looked at.
//!
//! - [`NbdDev`] is an export as a [`BlockDev`](raidcore::dev::BlockDev).
//! - [`NbdUri`] names an export and where it is.
//! - [`Handshake`] is the way to it, as a state machine over byte slices.
//! - [`ReplyParser`] takes the replies apart, of the same kind.
//! - [`connect_blocking`] and [`info_blocking`] go that way on the calling thread: for command-line tools.
//!
//! A server is not trusted: every length is checked against its limit before memory is used for it, and what it
//! does that no server may is a [`Rubbish`] that ends the connection, never a panic and never wrong data.

mod blocking;
mod codec;
mod dev;
mod error;
mod handshake;
mod job;
mod link;
mod promise;
mod reply;
mod request;
mod resolver;
mod terms;
mod unflushed;
mod uri;

pub use blocking::{ConnectOptions, Connected, connect_blocking, info_blocking};
pub use dev::{NbdDev, NbdOptions, Reached};
pub use error::{ClientError, ConnectError, Doing, OptionName, ReplyName, Rubbish, Said};
pub use handshake::{Goal, Handshake, Step, Wishes};
pub use promise::{Promise, Verdict};
pub use reply::{Awaited, Part, Refusal, ReplyParser};
pub use terms::{BlockSizes, Replies, Terms};
pub use uri::{Address, DEFAULT_PORT, NbdUri, TlsParams, UriError};
