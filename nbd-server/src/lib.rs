//! `nbd-server`: exports logical units as NBD devices.
//!
//! - [`proto`] is the protocol as state machines over byte slices; it does no I/O.
//! - [`export`] says what is offered and under which names.
//!
//! The protocol is the fixed newstyle of the NBD specification (doc/proto.md of the NetworkBlockDevice project).

pub mod export;
pub mod limits;
pub mod proto;
