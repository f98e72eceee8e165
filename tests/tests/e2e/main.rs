//! End to end: the real `raidctl` in a process of its own, on files and loop devices, used by clients that no one
//! here wrote.
//!
//! The server is `RAIDCTL_BIN`, or the debug build. Every test has its own disks, sockets and server.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

mod bad_create;
mod bad_request;
mod bad_serve;
mod clients;
mod crash;
mod demo;
mod grow;
mod interop;
mod levels;
mod lifecycle;
mod maps;
mod members;
mod nbdsh;
mod remote;
mod stop;
mod takeover;
mod tls;

use std::path::{Path, PathBuf};
use tests::{Disks, Finished, raidctl};

/// Creates `vol0` with 64 KiB chunks on all of `disks`, members of which agree already (they are all zeroes).
fn create_clean(level: &str, disks: &Disks) {
    create(&["--level", level, "--chunk", "64K", "--assume-clean"], disks.all()).ok();
}

/// `raidctl create vol0` with options, then devices.
fn create(options: &[&str], devices: &[PathBuf]) -> Finished {
    let words = ["create", "vol0"].iter().chain(options).map(PathBuf::from);
    raidctl(words.chain(devices.iter().cloned()))
}

/// A path as a command's argument.
fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
