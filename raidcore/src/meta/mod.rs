//! Superblocks: what an array knows of itself, on its members.
//!
//! - [`Superblock`] is the parsed form, with valid values only; `decode` and `encode` are pure. The bytes are
//!   drawn in docs/FORMAT.md and laid out in `format`.
//! - [`load`], [`store`], [`erase`], [`mend`], [`catch_up`], [`wipe`] and [`foreign_signature`] do the blocking I/O
//!   that create, examine and assembly need. A running array writes its superblocks itself.
//! - [`plan_create`] and [`assemble`] decide, and touch nothing.
//!
//! Three rules make a member's words about the others trustworthy; who writes superblocks must keep them:
//!
//! 1. No write is acknowledged without a member before the superblocks of all members that took it say that
//!    the member is out. So: whoever is `in_sync` in the newest superblock has every acknowledged write.
//! 2. Every change of the array's metadata raises the event counter and goes to all members that are left, and
//!    the next change begins after all of them have it or have failed. So: a member in sync lags at most one.
//! 3. Whenever the set of members in sync changes, a new incarnation begins ([`ArrayMeta::change_members`]).
//!    So: two halves that were written without each other carry different incarnations for ever.

mod assemble;
mod codec;
mod create;
mod format;
mod history;
mod identity;
mod probes;
mod signature;
mod state;
mod store;
mod superblock;

pub use assemble::{AssembleError, Assembly, Found, Half, LeftOut, LeftOutReason, LostSlot, assemble};
pub use create::{Candidate, CreateError, CreateParams, data_bytes_for, plan_create};
pub use format::{SUPERBLOCK_BYTES, TAIL_BYTES, data_offset_for, locations};
pub use history::{HISTORY_ENTRIES, History, Incarnation, Relation};
pub use identity::{ArrayName, ArrayUuid, IncarnationUuid, MemberUuid, NameError};
pub use signature::{Signature, foreign_signature, wipe};
pub use state::{ArrayState, Consistency, MemberState};
pub use store::{CopyState, LoadError, Loaded, StoreError, catch_up, erase, load, mend, store};
pub use superblock::{ArrayMeta, Member, Own, Region, Regions, Superblock, SuperblockError};
