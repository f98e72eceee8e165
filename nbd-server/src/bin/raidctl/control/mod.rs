//! Controlling a daemon: a unix socket, one line of JSON per request, one or more lines back.
//!
//! It runs on threads of its own and never on a reactor: `status` is answered from a snapshot, so that it
//! answers even when every disk hangs. Nothing a client sends or fails to read can grow without a bound: lines,
//! connections and waits are limited.

pub mod client;
pub mod proto;
pub mod server;
pub mod socket;
pub mod takeover;

use std::time::Duration;

/// Longest request, in bytes.
pub const MAX_REQUEST_LINE: usize = 64 << 10;
/// Longest reply, in bytes: 64 members of a few hundred arrays.
pub const MAX_REPLY_LINE: usize = 16 << 20;
/// Connections served at once.
pub const MAX_CONNECTIONS: usize = 32;
/// How long a connection may be without a request before it is closed: connections are few, and whoever holds one for
/// nothing keeps others from asking. `status --watch` asks several times a second.
pub const IDLE_LIMIT: Duration = Duration::from_secs(5);
/// How long a client may take to read a reply.
pub const WRITE_LIMIT: Duration = Duration::from_secs(5);
/// How often a connection that follows events looks whether its client is still there.
pub const FOLLOW_PULSE: Duration = Duration::from_millis(500);
/// How long a client waits for the reply to a status request.
pub const STATUS_PATIENCE: Duration = Duration::from_secs(5);
/// How long a client waits for a request that has work to do.
pub const WORK_PATIENCE: Duration = Duration::from_secs(120);
