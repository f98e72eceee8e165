//! `nbd-server`: exports logical units as NBD devices.
//!
//! - [`proto`] is the protocol as state machines over byte slices; it does no I/O.
//! - [`export`] says what is offered and under which names, [`listen`] where, [`access`] to whom; [`offers`] is what
//!   one client sees of it.
//! - `conn` is one client: bytes between a socket and the protocol, requests between the protocol and an export.
//! - [`engine`] is what an embedder puts behind the exports: its devices.
//! - [`tls`] is certificates and encryption, for either side of a connection.
//! - [`ram`] is a disk in memory, to try and to measure the server alone.
//! - [`client`] is the other side: exports of other servers, as block devices.
//! - [`reactor`] is the thread that drives connections, listeners and the engine.
//!
//! The protocol is the fixed newstyle of the NBD specification (doc/proto.md of the NetworkBlockDevice project).

pub mod access;
pub mod client;
mod conn;
pub mod engine;
pub mod export;
pub mod limits;
pub mod listen;
pub mod offers;
pub mod proto;
pub mod ram;
pub mod reactor;
pub mod tls;

pub use conn::Traffic;
