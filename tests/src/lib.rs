//! Support for the tests that cross crates: the real `raidctl`, its disks, and the clients it serves.
//!
//! Everything here waits with a limit and cleans up when it is dropped: processes end by their own id, loop
//! devices are detached, directories removed. It panics where a test should fail, and never decides on its own
//! that a test may be skipped: [`skipped`] asks, and refuses under `CI=true`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod command;
mod disks;
mod need;
mod raw;
mod server;

pub use command::{Finished, program, run, shell};
pub use disks::{Disks, LoopDevice, random_bytes};
pub use need::{Need, skipped};
pub use raw::{RawClient, RawReply};
pub use server::{Server, binary, member, member_state, raidctl, repository, running, takeover};
