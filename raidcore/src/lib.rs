//! A zero-copy RAID engine: completion-driven, crash-safe, without a runtime.
//!
//! The engine is built of one seam, [`dev::BlockDev`]: members, arrays and logical units all are one. Time
//! ([`time::Clock`]), memory ([`buf::Slab`]) and I/O come in from outside, so that the same code runs on real
//! disks ([`uring`]) and in a simulator ([`sim`]) whose every failure replays from its seed.

pub mod allocation;
pub mod array;
pub mod blocking;
pub mod buf;
pub mod dev;
pub mod layout;
pub mod limits;
pub mod lu;
pub mod meta;
pub mod parity;
pub mod sim;
mod slots;
pub mod time;
pub mod uring;
