//! Making a ring: asks for everything, takes what the kernel has.
//!
//! Nothing here is fatal but the absence of io_uring itself. What was obtained is told by [`RingFeatures`].
#![allow(unsafe_code)] // registers the slab's memory with the kernel

use super::limits::{CQ_PER_SQ, MAX_SQ_ENTRIES, MAX_STANDING, MIN_SQ_ENTRIES, REGISTERED_FILES, SQ_ENTRIES};
use crate::buf::Slab;
use io_uring::IoUring;
use std::fmt;
use std::io;

/// What a ring shall have. The defaults suit a server; tests turn parts off to see the fallbacks work.
#[derive(Clone, Debug)]
pub struct RingConfig {
    /// Submission queue entries, brought into 32 to 32768 and up to a power of two; the completion queue has eight times as many,
    /// as far as the kernel allows.
    pub entries: u32,
    /// Operations that may stay in the kernel for as long as they like, such as the receives of quiet connections:
    /// the completion queue gets room for them on top. Without it they would leave none to disks.
    pub standing: u32,
    /// Files to register, 0 for none.
    pub registered_files: u32,
    /// Register the slab's memory: saves pinning pages at each O_DIRECT operation, at the price of locked memory.
    pub fixed_buffers: bool,
    /// Ask for SINGLE_ISSUER and DEFER_TASKRUN (Linux 6.1): completions are worked off when the reactor asks.
    pub defer_taskrun: bool,
}

impl Default for RingConfig {
    fn default() -> RingConfig {
        RingConfig {
            entries: SQ_ENTRIES,
            standing: 0,
            registered_files: REGISTERED_FILES,
            fixed_buffers: true,
            defer_taskrun: true,
        }
    }
}

/// What a ring got. `Display` gives one line for a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingFeatures {
    /// SINGLE_ISSUER and DEFER_TASKRUN.
    pub defer_taskrun: bool,
    /// COOP_TASKRUN: no interrupt of the reactor for a completion.
    pub coop_taskrun: bool,
    /// The slab is registered. False mostly means that RLIMIT_MEMLOCK forbids it.
    pub fixed_buffers: bool,
    /// How many files can be registered.
    pub registered_files: u32,
    /// Completion queue entries: a few more than operations can be in the kernel at once.
    pub depth: u32,
}

impl fmt::Display for RingFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |on: bool| if on { "on" } else { "off" };
        write!(
            f,
            "io_uring: depth {}, defer_taskrun {}, coop_taskrun {}, fixed buffers {}, registered files {}",
            self.depth,
            word(self.defer_taskrun),
            word(self.coop_taskrun),
            word(self.fixed_buffers),
            self.registered_files
        )
    }
}

/// Sets up the kernel's side.
pub(super) fn build(config: &RingConfig, slab: &Slab) -> io::Result<(IoUring, RingFeatures)> {
    let entries = config.entries.clamp(MIN_SQ_ENTRIES, MAX_SQ_ENTRIES);
    let (uring, mut features) = open(config, entries.next_power_of_two())?;
    if !uring.params().is_feature_ext_arg() || !uring.params().is_feature_nodrop() {
        let why = "io_uring of this kernel is too old: Linux 5.11 or later is needed";
        return Err(io::Error::new(io::ErrorKind::Unsupported, why));
    }
    features.depth = uring.params().cq_entries();
    features.fixed_buffers = config.fixed_buffers && register_slab(&uring, slab);
    // The table counts against RLIMIT_NOFILE: a smaller one is better than none.
    let mut files = config.registered_files;
    while files > 0 && uring.submitter().register_files_sparse(files).is_err() {
        files /= 4;
    }
    features.registered_files = files;
    Ok((uring, features))
}

fn open(config: &RingConfig, entries: u32) -> io::Result<(IoUring, RingFeatures)> {
    let with =
        |defer_taskrun, coop_taskrun| RingFeatures { defer_taskrun, coop_taskrun, ..Default::default() };
    let wishes = [with(true, true), with(true, false), with(false, true), with(false, false)];
    let mut last = io::Error::from_raw_os_error(libc::EINVAL);
    for wish in wishes {
        if wish.defer_taskrun && !config.defer_taskrun {
            continue;
        }
        let mut builder = IoUring::builder();
        builder.setup_cqsize(entries * CQ_PER_SQ + config.standing.min(MAX_STANDING)).setup_clamp();
        if wish.defer_taskrun {
            builder.setup_single_issuer().setup_defer_taskrun();
        }
        if wish.coop_taskrun {
            builder.setup_coop_taskrun();
        }
        if wish.defer_taskrun || wish.coop_taskrun {
            // Tells in shared memory that completions wait for us, so that polling for them costs no call.
            builder.setup_taskrun_flag();
        }
        match builder.build(entries) {
            Ok(uring) => return Ok((uring, wish)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = error,
            Err(error) => return Err(explain(error)),
        }
    }
    Err(explain(last))
}

/// Says what an administrator can do about it.
fn explain(error: io::Error) -> io::Error {
    let remedy = match error.raw_os_error() {
        Some(libc::ENOSYS) => {
            "Linux 5.11 or later with io_uring is needed; a container's seccomp profile may hide it"
        }
        Some(libc::EPERM) => {
            "set the sysctl kernel.io_uring_disabled to 0, or allow io_uring in the seccomp profile"
        }
        Some(libc::ENOMEM) => "raise RLIMIT_MEMLOCK (ulimit -l)",
        _ => "see io_uring_setup(2)",
    };
    io::Error::new(error.kind(), format!("io_uring cannot be set up ({error}): {remedy}"))
}

/// Registers the slab as fixed buffer 0. False if the kernel refuses: plain buffers then do the same, slower.
fn register_slab(uring: &IoUring, slab: &Slab) -> bool {
    let (base, len) = slab.region();
    let region = libc::iovec { iov_base: base.as_ptr().cast(), iov_len: len };
    // SAFETY: the mapping is live, and the ring holds the slab for as long as the registration lasts.
    unsafe { uring.submitter().register_buffers(&[region]) }.is_ok()
}
