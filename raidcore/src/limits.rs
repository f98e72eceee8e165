//! Every bound of the engine, in one place, tied to each other by assertions the compiler checks.

use std::time::Duration;

/// The unit of buffers and of on-disk structures: one page.
pub const PAGE_BYTES: usize = 4096;

/// Largest piece of memory one slab block holds; longer requests carry several blocks.
pub const MAX_BLOCK_BYTES: usize = 1 << 20;

/// Most bytes one slab may hold: the kernel registers at most this much as one buffer.
pub const MAX_SLAB_BYTES: usize = 1 << 30;

/// Largest request an array or a logical unit takes.
pub const MAX_REQUEST_BYTES: u64 = 32 << 20;

/// Most memory segments one device request carries (the kernel's IOV_MAX).
pub const MAX_SEGMENTS: usize = 1024;

/// Smallest and largest chunk.
pub const MIN_CHUNK_BYTES: u32 = 4096;
/// Largest chunk.
pub const MAX_CHUNK_BYTES: u32 = 16 << 20;

/// Most members (slots) of an array, spares not counted.
pub const MAX_MEMBERS: usize = 64;
/// Most spares of an array.
pub const MAX_SPARES: usize = 32;

/// Longest name of an array or a logical unit, in bytes of UTF-8.
pub const MAX_NAME_BYTES: usize = 63;

/// Height of the rows that a stripe is worked on and locked in: scratch memory is at most this times the members.
pub const MAX_ROW_BYTES: u32 = 64 << 10;

/// Requests an array accepts before it completes further ones with `Busy`.
pub const ARRAY_QUEUE_DEPTH: u32 = 4096;

/// Memory of the map of known zeroes of one logical unit, at 2 MiB per TiB: enough for 128 TiB. What lies past it is
/// never known to be zeroes.
pub const MAX_ZERO_MAP_BYTES: usize = 256 << 20;
/// Zeroings of one logical unit under way that may add to its map; what more there are leave it as it is.
pub const MAX_ZERO_CLAIMS: usize = 256;
/// Words of that map, 4 MiB of the unit each, that are looked at for one answer to what is known of a range: 32 GiB at
/// a time, and a few microseconds.
pub const MAX_MAP_WORDS: usize = 8 << 10;
/// Places of an array whose health is looked at for one answer.
pub const MAX_HEALTH_LOOKS: usize = 4 << 10;
/// Holes of one member that are looked for when it is opened; what follows them counts as data.
pub const MAX_MEMBER_HOLES: usize = 16 << 10;
/// Granules of a logical unit that are looked at one by one when an array starts, a fraction of a second's worth; what
/// follows them counts as data. Stretches in which all members have holes, or none, are not looked at so.
pub const MAX_START_GRANULES: u64 = 4 << 20;

/// The deadline of a member's I/O where nobody set another one.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);

/// Turns a simulation runs before it is called unending: far more than any test needs, a few minutes at most.
pub const SIM_RUN_TURNS: u64 = 50_000_000;
/// Turns without a completion and without a due time before a simulation is called stuck.
pub const SIM_IDLE_TURNS: u32 = 16;
/// Writes the cache of a simulated disk holds, whatever their size.
pub const SIM_CACHE_WRITES: usize = 16 << 10;
/// Operations a simulated disk may execute after they were given up; more are dropped.
pub const SIM_LATE_OPS: usize = 4096;
/// Bad places a simulated disk has by chance; more are not added.
pub const SIM_BAD_RANGES: usize = 4096;

const _: () = assert!(MAX_BLOCK_BYTES.is_multiple_of(PAGE_BYTES) && MAX_BLOCK_BYTES <= MAX_SLAB_BYTES);
const _: () = assert!(MAX_REQUEST_BYTES as usize <= MAX_BLOCK_BYTES * MAX_SEGMENTS);
const _: () = assert!(MIN_CHUNK_BYTES as usize >= PAGE_BYTES && MIN_CHUNK_BYTES <= MAX_CHUNK_BYTES);
const _: () = assert!(MAX_ROW_BYTES >= MIN_CHUNK_BYTES && MAX_ROW_BYTES as usize <= MAX_BLOCK_BYTES);
