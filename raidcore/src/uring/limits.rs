//! Every bound of the ring, in one place.

use std::time::Duration;

/// Submission queue entries of a ring by default: more are handed over in several system calls.
pub const SQ_ENTRIES: u32 = 256;

/// Completion queue entries per submission queue entry. Operations in the kernel never exceed the completion
/// queue, so that it cannot overflow; the rest waits in the ring's backlog.
pub const CQ_PER_SQ: u32 = 8;

/// Largest submission queue the kernel takes (IORING_MAX_ENTRIES).
pub const MAX_SQ_ENTRIES: u32 = 32768;

/// Most operations that a ring keeps room for without end: with what the default submission queue adds, the largest
/// completion queue the kernel takes.
pub const MAX_STANDING: u32 = 2 * MAX_SQ_ENTRIES - SQ_ENTRIES * CQ_PER_SQ;

/// Most cancellations in the kernel at once; their completions need room in the completion queue as well.
pub const MAX_CANCELS: u32 = 64;

/// Completion queue entries that operations leave free: for cancellations, the waker's read, and its cancellation.
pub const RESERVED: u32 = MAX_CANCELS + 2;

/// Smallest submission queue; it makes a completion queue with room beside the reserved entries.
pub const MIN_SQ_ENTRIES: u32 = 32;

/// Files a ring registers; those beyond work as well, a file descriptor look-up per operation slower.
pub const REGISTERED_FILES: u32 = 256;

/// Most pieces of memory of one system call (the kernel's UIO_MAXIOV).
pub const MAX_IOVECS: usize = 1024;

/// An iovec array longer than this is given back when its operation ends, rather than kept for the next one.
pub const KEPT_IOVECS: usize = 64;

/// Deadlines are looked at no more often than this.
pub const DEADLINE_TICK: Duration = Duration::from_millis(1);

/// How long the end of a ring waits for what it cancelled before it leaks it.
pub const DRAIN_AT_DROP: Duration = Duration::from_secs(2);

/// How often an operation that the kernel asks to repeat (EINTR, EAGAIN) is repeated.
pub const MAX_RETRIES: u8 = 3;

/// Requests in flight on one file.
pub const FILE_QUEUE_DEPTH: u32 = 1024;

/// Transfers to memory-backed files up to this size are copied at once, larger ones by a kernel thread.
pub const MAX_INLINE_BYTES: u64 = 1 << 20;

/// Static zeroes, written where a file system or device cannot zero a range by itself.
pub const ZERO_BYTES: usize = 64 << 10;

/// Most zeroes in one write.
pub const MAX_ZERO_WRITE_BYTES: u64 = 1 << 20;

/// Loop devices upon loop devices that an identification looks through.
pub const MAX_LOOP_DEPTH: usize = 8;

const _: () = assert!(MIN_SQ_ENTRIES * CQ_PER_SQ > 2 * RESERVED && SQ_ENTRIES <= MAX_SQ_ENTRIES);
const _: () = assert!(MAX_ZERO_WRITE_BYTES as usize / ZERO_BYTES <= MAX_IOVECS);
const _: () = assert!(crate::limits::MAX_SEGMENTS <= MAX_IOVECS && KEPT_IOVECS <= MAX_IOVECS);
