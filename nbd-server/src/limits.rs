//! Every bound of the server, in one place, tied to each other by assertions the compiler checks.
//!
//! At each of these limits a client meets back-pressure or an error; nothing it sends makes the server grow.

use std::time::Duration;

/// Largest READ or WRITE, announced to the client as the maximum block size.
pub const MAX_REQUEST_BYTES: u32 = 32 << 20;

/// A WRITE larger than [`MAX_REQUEST_BYTES`] is answered with an error after its payload was skipped, if the
/// payload is at most this long; beyond it the connection is closed, for nobody sane sends so much in vain.
pub const MAX_DRAIN_BYTES: u32 = 64 << 20;

/// Longest string the NBD specification allows.
pub const MAX_STRING_BYTES: usize = 4096;

/// Longest description of an export.
pub const MAX_DESCRIPTION_BYTES: usize = 255;

/// Longest option data that is stored; longer data is skipped and answered with `NBD_REP_ERR_TOO_BIG`.
pub const MAX_OPTION_BYTES: usize = 8192;

/// Bytes a client may send before it has chosen an export, skipped option data included.
pub const MAX_HANDSHAKE_BYTES: u64 = 64 << 20;

/// Options a client may send before it has chosen an export: enough to ask for several things about each there can be.
pub const MAX_OPTIONS: u32 = 64 + 4 * MAX_EXPORTS as u32;

/// Queries in one option about metadata contexts.
pub const MAX_META_QUERIES: usize = 128;

/// How long a client may take to choose an export, unless configured otherwise.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest message of a structured error reply.
pub const MAX_ERROR_MESSAGE_BYTES: usize = 64;

/// Exports a reactor offers.
pub const MAX_EXPORTS: usize = 1024;

/// Rules of who may use one export.
pub const MAX_ACCESS_RULES: usize = 256;

/// Most connections a reactor can be configured to serve: each may leave a receive and a send in the kernel for as long
/// as its client likes, and its ring has room for all of them beside what disks do.
pub const MAX_CONNECTIONS: usize = 31_000;

/// Connections a reactor serves, unless configured otherwise; further ones wait in the listen queue. An idle one
/// costs a descriptor, [`SMALL_RECEIVE_BYTES`] of the slab and about a kilobyte more.
pub const DEFAULT_CONNECTIONS: usize = 4096;

/// Requests of one connection that are executed at once; further ones stay unread in its socket.
pub const CONNECTION_QUEUE_DEPTH: u32 = 256;

/// Connections of one client, an IPv4 address, an IPv6 network of 64 bits or a unix user, unless configured otherwise; further ones are closed.
pub const CLIENT_CONNECTIONS: usize = 1024;

/// Requests of one client, on all of its connections, that are executed at once, unless configured otherwise.
pub const CLIENT_REQUESTS: u32 = 1024;

/// Payload of one client in memory at once, received and not yet written or read and not yet sent, however much is
/// free, unless configured otherwise. One request of the largest size always fits.
pub const CLIENT_BYTES: u64 = 64 << 20;

/// A client, and a connection among those of its client, that holds at most this much finds room also in what is
/// kept back from all others.
pub const SMALL_SHARE_BYTES: u64 = 1 << 20;

/// Memory of one receive when a connection is quiet, and when it keeps filling it.
pub const SMALL_RECEIVE_BYTES: usize = 4 << 10;
/// See [`SMALL_RECEIVE_BYTES`].
pub const LARGE_RECEIVE_BYTES: usize = 64 << 10;

/// A payload with at least this much still to come is received where it will be written from, not copied.
pub const DIRECT_RECEIVE_BYTES: usize = 32 << 10;

/// Memory of a request that is not a whole number of the largest blocks is made of pieces of this size.
pub const PIECE_BYTES: usize = 64 << 10;

/// Extents an engine tells of a range at once, and of them at most as many in a reply to `NBD_CMD_BLOCK_STATUS`.
pub const MAX_EXTENTS: usize = 1024;

/// Replies to `NBD_CMD_BLOCK_STATUS` of one connection that are not sent yet. They cost the reactor's own time, and so a
/// connection gets as many of them in a turn, and further queries wait for their sending.
pub const MAX_STATUS_REPLIES: usize = 4;

/// Bytes of a hole that a read tells of instead of sending zeroes, and what it is aligned to.
pub const HOLE_BYTES: usize = 4 << 10;

/// Chunks of data and holes in the reply to one read; what is left is told in the last.
pub const MAX_READ_CHUNKS: usize = 32;

/// A trim or write of zeroes is handed to the device in pieces of at most this many bytes, one after the other, each
/// with a deadline of its own: a slow device has time for each, however long the whole is.
pub const LONG_PIECE_BYTES: u64 = 256 << 20;

/// What `NBD_CMD_CACHE` reads at most, and in which pieces; the rest of its range is not looked at.
pub const MAX_CACHE_BYTES: u64 = 32 << 20;
/// See [`MAX_CACHE_BYTES`].
pub const CACHE_PIECE_BYTES: u64 = 1 << 20;

/// How long a device may take for a request, unless configured otherwise. Longer than a member's deadline, so
/// that an array has time to do without the member.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a machine may be silent before its TCP connections are taken for dead, unless configured otherwise.
pub const DEAD_PEER_TIMEOUT: Duration = Duration::from_secs(300);

/// Longest timeout that can be configured.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(7 * 24 * 3600);

/// How often the log says that connections were refused.
pub const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Lines of the log that wait to be written; further ones are lost, for nothing waits for whoever reads it.
pub const LOG_LINES: usize = 2048;

/// Longest line of the log, its end included.
pub const LOG_LINE_BYTES: usize = 4096;

/// How long a process that ends waits for its log to be written.
pub const LOG_END_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a client may hold memory without taking or giving a byte while others wait for memory, unless configured
/// otherwise.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// How often in a [`STALL_TIMEOUT`] clients that hold memory are looked at while others wait for it: all connections are
/// gone through, so not with each turn.
pub const MIN_STALL_LOOKS: u32 = 8;
/// See [`MIN_STALL_LOOKS`].
pub const MAX_STALL_LOOKS: u32 = 64;

/// How long a connection that is being closed may go without taking its last replies, before it is cut; and
/// what it must take in a second on top, for the end of a large reply is all that is seen of it.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// See [`DRAIN_TIMEOUT`].
pub const DRAIN_BYTES_PER_SECOND: u64 = 8 << 20;

/// How long a control call waits for the reactor.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections that wait for room and are tried in one round of a turn; the others come later.
pub const MAX_TRIED: usize = 8;

/// How long after a request found no memory it is taken for waiting still; then all that wait are tried again.
pub const STARVED_INTERVAL: Duration = Duration::from_secs(1);

/// How often within a turn completions may lead to new requests, before the sockets are looked at again.
pub const MAX_ROUNDS: usize = 8;

/// How long a listener rests after a failed accept: the process is out of descriptors, most likely.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Listeners of a reactor.
pub const MAX_LISTENERS: usize = 64;

/// Largest file of certificates or keys that is read; a list of all public authorities is about 250 KiB.
pub const MAX_CERTIFICATE_FILE_BYTES: u64 = 4 << 20;

/// Control calls waiting for the reactor.
pub const MAILBOX_CALLS: usize = 1024;

/// Longest NBD URI that is read.
pub const MAX_URI_BYTES: usize = 16 << 10;

/// Client: longest data of one reply to an option that is stored; a server that sends more is hung up on.
pub const MAX_OPTION_REPLY_BYTES: usize = 16 << 10;

/// Client: replies to options in one handshake.
pub const MAX_OPTION_REPLIES: u32 = 64;

/// Client: how much of a server's message is shown, in characters.
pub const MAX_SHOWN_CHARS: usize = 200;

/// Client: how long connecting and choosing an export may take, unless configured otherwise.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Client: separate ranges of one read that were answered out of order. Servers that mean well need a few.
pub const MAX_REPLY_FRAGMENTS: usize = 1024;

/// Client: error chunks of one reply.
pub const MAX_REPLY_ERRORS: u32 = 64;

/// Client: requests in flight on one connection.
pub const CLIENT_QUEUE_DEPTH: u32 = 128;

/// Client: connections of one device.
pub const MAX_CLIENT_CONNECTIONS: usize = 8;

/// Client: how long after a connection broke the next one is tried; doubled each time up to [`LAST_BACK_OFF`].
pub const FIRST_BACK_OFF: Duration = Duration::from_millis(100);
/// See [`FIRST_BACK_OFF`].
pub const LAST_BACK_OFF: Duration = Duration::from_secs(5);

/// Client: connections that may break under one request before it is failed: it may be what breaks them.
pub const MAX_SENDS: u32 = 5;

/// Client: most bytes of a range that is zeroed or discarded by one request.
pub const MAX_RANGE_BYTES: u64 = 1 << 30;

/// Client: largest payload of one request on an encrypted connection, and encrypted bytes waiting to be sent before
/// no further request is.
pub const MAX_SEALED_BYTES: usize = 1 << 20;

/// Client: unit in which it is remembered what was written and not flushed; one checksum each.
pub const UNFLUSHED_UNIT_BYTES: u64 = 4096;

/// Client: units remembered (256 MiB of data). What is written beyond them without a flush cannot be looked for after a
/// lost connection, which then costs the device.
pub const MAX_UNFLUSHED_UNITS: usize = 64 << 10;

/// Client: bytes of one look at what was written and not flushed.
pub const VERIFY_BYTES: usize = 64 << 10;

/// Client: how long one such look may take.
pub const LOOK_TIMEOUT: Duration = Duration::from_secs(10);

/// Client: addresses of one name that are tried.
pub const MAX_ADDRESSES: usize = 16;

const _: () = assert!((VERIFY_BYTES as u64).is_multiple_of(UNFLUSHED_UNIT_BYTES));
const _: () = assert!(CLIENT_QUEUE_DEPTH as u64 <= u16::MAX as u64 && MAX_SENDS < u16::MAX as u32);
const _: () = assert!(MAX_OPTION_REPLY_BYTES > MAX_STRING_BYTES * 2 && MAX_URI_BYTES > 3 * MAX_STRING_BYTES);
const _: () = assert!(MAX_REQUEST_BYTES as u64 <= raidcore::limits::MAX_REQUEST_BYTES);
const _: () = assert!(MAX_REQUEST_BYTES as u64 <= CLIENT_BYTES && SMALL_SHARE_BYTES <= CLIENT_BYTES);
const _: () = assert!(CLIENT_CONNECTIONS < DEFAULT_CONNECTIONS);
const _: () = assert!(HOLE_BYTES.is_multiple_of(512) && PIECE_BYTES.is_multiple_of(HOLE_BYTES));
const _: () = assert!(CACHE_PIECE_BYTES <= MAX_REQUEST_BYTES as u64 && CACHE_PIECE_BYTES <= MAX_CACHE_BYTES);
const _: () = assert!(MAX_DRAIN_BYTES > MAX_REQUEST_BYTES);
const _: () =
    assert!(MAX_OPTION_BYTES > MAX_STRING_BYTES + 64 && MAX_OPTION_BYTES as u64 <= MAX_HANDSHAKE_BYTES);
const _: () = assert!(REQUEST_TIMEOUT.as_secs() > raidcore::limits::DEFAULT_DEADLINE.as_secs());
const _: () = assert!(DEFAULT_CONNECTIONS <= MAX_CONNECTIONS && MAX_CONNECTIONS < u16::MAX as usize);
const _: () = assert!(CONNECTION_QUEUE_DEPTH <= u16::MAX as u32);
const _: () = assert!(2 * MAX_CONNECTIONS + MAX_LISTENERS <= raidcore::uring::MAX_STANDING as usize);
