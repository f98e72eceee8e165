//! Memory for I/O: one registered, page-aligned slab, and handles that own pieces of it.
//!
//! - A [`Buf`] is the only handle to its bytes: the kernel may write to it, or its owner may.
//! - A [`View`] is one of several handles to bytes that no longer change: a write may be on its way to three
//!   members from the same memory.
//! - Memory given to the kernel is reused only after the terminal completion of its operation; what an
//!   operation that was given up still holds sits in the [`Quarantine`] until then.
//!
//! Payload is never copied to change hands: handles move, split, join and freeze instead.

mod handle;
mod list;
mod quarantine;
mod slab;

pub use handle::{Buf, View};
pub use list::{BufList, ViewList, list_len};
pub use quarantine::Quarantine;
pub use slab::{Exhausted, Slab, SlabClass, SlabConfig, SlabUsage};
