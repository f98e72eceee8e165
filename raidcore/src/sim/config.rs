//! What kind of disk is simulated, and how often it misbehaves by itself.

use super::Rng;
use crate::dev::{BlockSize, Geometry};
use crate::limits::MAX_REQUEST_BYTES;
use std::time::Duration;

/// How long an operation takes: uniform between two bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latency {
    /// Shortest.
    pub min: Duration,
    /// Longest; if it is below `min`, every operation takes `min`.
    pub max: Duration,
}

impl Latency {
    /// Everything is done at the next `reap`.
    pub const NONE: Latency = Latency { min: Duration::ZERO, max: Duration::ZERO };

    pub(super) fn draw(&self, rng: &mut Rng) -> Duration {
        let span = self.max.saturating_sub(self.min);
        if span.is_zero() {
            return self.min;
        }
        let span_ns = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX - 1);
        self.min + Duration::from_nanos(rng.below(span_ns + 1))
    }
}

/// The probability, from 0 to 1, that a single operation meets a fault.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FaultRates {
    /// A read finds one of its blocks bad. The block stays bad until it is written.
    pub read_error: f64,
    /// A write fails with a medium error; none, some or all of it has been written.
    pub write_error: f64,
    /// A flush fails with a medium error; nothing more is durable than before.
    pub flush_error: f64,
    /// An operation is not answered by its deadline.
    pub hang: f64,
    /// An operation takes [`DiskConfig::slow`] in place of [`DiskConfig::latency`].
    pub slow: f64,
    /// Silent: a write is answered and never done.
    pub lost_write: f64,
    /// Silent: a write is answered, and done at another place of the disk.
    pub misdirected_write: f64,
    /// Silent: a write is answered, and only some of its sectors are written.
    pub torn_write: f64,
    /// Silent: a read delivers one wrong byte; the platter is right.
    pub corrupt_read: f64,
    /// Silent: a flush is answered and makes nothing durable.
    pub lost_flush: f64,
}

impl FaultRates {
    /// Every fault that the disk owns up to, often: errors, hangs, slow answers. None that is silent.
    pub fn rough() -> FaultRates {
        FaultRates {
            read_error: 0.01,
            write_error: 0.002,
            flush_error: 0.001,
            hang: 0.001,
            slow: 0.02,
            ..FaultRates::default()
        }
    }
}

/// A simulated disk.
#[derive(Clone, Debug, PartialEq)]
pub struct DiskConfig {
    /// Size in bytes; rounded down to whole blocks. Only what is written takes memory.
    pub size_bytes: u64,
    /// The logical block.
    pub block_size: BlockSize,
    /// All that looks random follows from it.
    pub seed: u64,
    /// How long an operation takes.
    pub latency: Latency,
    /// How long one takes that is hit by [`FaultRates::slow`].
    pub slow: Latency,
    /// Writes are lost by a power cut until they are flushed. If false, a write is durable when it is done.
    pub volatile_cache: bool,
    /// Bytes the cache holds; what is beyond becomes durable unasked, the oldest first.
    pub cache_bytes: u64,
    /// What a power cut leaves whole: writes tear between sectors of this size. `None`: as the logical block,
    /// which is what disks promise. `B512` on a disk of 4096-byte blocks is one that breaks this promise.
    pub tear: Option<BlockSize>,
    /// The probability that an operation which was given up (deadline, cancel, lost link, killed process) is
    /// executed all the same: at the time it would have been done, or when the disk no longer hangs.
    pub late_execution: f64,
    /// How often faults happen by themselves.
    pub rates: FaultRates,
    /// As [`Geometry::queue_depth`].
    pub queue_depth: u32,
    /// As [`Geometry::max_transfer_bytes`].
    pub max_transfer_bytes: u64,
    /// As [`Geometry::preferred_bytes`].
    pub preferred_bytes: u32,
    /// As [`Geometry::discard`]. What was discarded reads as before, as zeroes or as noise.
    pub discard: bool,
    /// As [`Geometry::read_only`].
    pub read_only: bool,
    /// As [`Geometry::rotational`].
    pub rotational: bool,
    /// Operations the trace remembers; 0 keeps none.
    pub trace: usize,
}

impl Default for DiskConfig {
    /// A well-behaved solid-state disk: 64 MiB, 4 KiB blocks, 20 to 200 µs, a volatile cache, no faults.
    fn default() -> DiskConfig {
        let us = Duration::from_micros;
        DiskConfig {
            latency: Latency { min: us(20), max: us(200) },
            late_execution: 0.5,
            ..DiskConfig::quiet(64 << 20, BlockSize::B4096)
        }
    }
}

impl DiskConfig {
    /// A disk without latency and without faults, but for those that are planted. It has a volatile cache;
    /// what was given up is always executed late.
    pub fn quiet(size_bytes: u64, block_size: BlockSize) -> DiskConfig {
        let ms = Duration::from_millis;
        DiskConfig {
            size_bytes,
            block_size,
            seed: 0,
            latency: Latency::NONE,
            slow: Latency { min: ms(5), max: ms(500) },
            volatile_cache: true,
            cache_bytes: 32 << 20,
            tear: None,
            late_execution: 1.0,
            rates: FaultRates::default(),
            queue_depth: 1024,
            max_transfer_bytes: MAX_REQUEST_BYTES,
            preferred_bytes: 4096,
            discard: true,
            read_only: false,
            rotational: false,
            trace: 0,
        }
    }

    /// The same disk with another seed.
    pub fn with_seed(self, seed: u64) -> DiskConfig {
        DiskConfig { seed, ..self }
    }

    /// The geometry its devices have.
    pub fn geometry(&self) -> Geometry {
        Geometry {
            preferred_bytes: self.preferred_bytes,
            max_transfer_bytes: self.max_transfer_bytes,
            queue_depth: self.queue_depth,
            read_only: self.read_only,
            rotational: self.rotational,
            volatile_cache: self.volatile_cache,
            discard: self.discard,
            unmap_zeroes: true,
            ..Geometry::plain(self.size_bytes, self.block_size)
        }
    }
}
