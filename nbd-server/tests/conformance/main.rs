//! What the NBD specification asks of a server, section by section, spoken in raw bytes with a real reactor.
//!
//! A module is a section of the specification (doc/proto.md of the NBD project), and a test says what that asks for, in
//! its name. Where the specification leaves a choice, the test says which one is made here. Its section on TLS has
//! tests of its own in tests/tls.rs, for they need certificates; how hard a server is to hurt is in tests/hard.rs.
//!
//! docs/NBD.md is the table that goes with it, and says what other servers do.

#![allow(clippy::unwrap_used)] // a test may unwrap

#[path = "../common/mod.rs"]
mod common;
mod stage;

mod greeting;
mod options;

mod agreements;
mod export_information;

mod block_sizes;
mod metadata;

mod commands;
mod errors;
mod extended;
mod requests;
mod structured_replies;

mod disconnect;
mod ordering;

/// The numbers of the specification.
mod nbd {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const PEEK_EXPORT: u32 = 4;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
    pub const EXTENDED_HEADERS: u32 = 11;

    pub const REP_ACK: u32 = 1;
    pub const REP_SERVER: u32 = 2;
    pub const REP_META_CONTEXT: u32 = 4;
    pub const ERR_UNSUP: u32 = 0x8000_0001;
    pub const ERR_INVALID: u32 = 0x8000_0003;
    pub const ERR_UNKNOWN: u32 = 0x8000_0006;
    pub const ERR_TOO_BIG: u32 = 0x8000_0009;
    pub const ERR_EXT_HEADER_REQD: u32 = 0x8000_000a;

    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const ZEROES: u16 = 6;
    pub const STATUS: u16 = 7;

    pub const FUA: u16 = 1 << 0;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
    pub const PAYLOAD_LEN: u16 = 1 << 5;

    pub const EPERM: u64 = 1;
    pub const EIO: u64 = 5;
    pub const EINVAL: u64 = 22;
    pub const ENOSPC: u64 = 28;
    pub const EOVERFLOW: u64 = 75;
    pub const ENOTSUP: u64 = 95;
}
