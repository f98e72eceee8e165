//! An export as /dev/nbdX, made by the kernel's NBD driver and kept by a process of ours.
//!
//! The kernel moves the data; the [`keeper`] only watches: it replaces connections that died, and tells the kernel when
//! the export has grown. Reads and writes never pass through it, so that they go on without it as long as the
//! connections live.
//!
//! - [`device`] is /dev/nbdX and who uses it.
//! - [`promise`] decides what a server that is back may have changed. Pure.
//! - [`record`] is the file that says which process keeps which device.

pub mod device;
pub mod keeper;
pub mod promise;
pub mod record;

use std::time::Duration;

/// Most connections of one device. The kernel makes a queue for each.
pub const MAX_LINKS: u32 = 16;

/// Connections of a device, if nobody says otherwise and the server allows several.
pub const DEFAULT_LINKS: u32 = 4;

/// How long one handshake may take.
pub const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(5);

/// First and longest pause between two attempts to reach the server again.
pub const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// See [`FIRST_PAUSE`].
pub const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// How long the kernel may take to notice a connection that is closed for us: a socket that comes before is ignored.
pub const NOTICE: Duration = Duration::from_secs(1);

/// How long a device may take to appear, and to be free again.
pub const DEVICE_PATIENCE: Duration = Duration::from_secs(10);

/// How often something is looked at that nobody announces.
pub const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How long an attempt to open a device is waited for.
pub const OPEN_PATIENCE: Duration = Duration::from_secs(2);
