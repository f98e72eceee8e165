//! Waking a reactor that sleeps in its ring from another thread.
//!
//! An eventfd, read through the ring. Wakes that come while one is on its way already cost no system call.

use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Wakes the ring it came from, from any thread. Clones wake the same ring; outliving the ring is harmless.
#[derive(Clone, Debug)]
pub struct Waker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    fd: OwnedFd,
    /// A wake was written and the ring has not seen it yet.
    pending: AtomicBool,
}

impl Waker {
    pub(super) fn new() -> io::Result<Waker> {
        // Blocking mode on purpose: io_uring answers EAGAIN at once on a non-blocking descriptor.
        let fd = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Waker { shared: Arc::new(Shared { fd, pending: AtomicBool::new(false) }) })
    }

    /// Makes the current or else the next [`Ring::enter`](super::Ring::enter) return. What this thread wrote to
    /// memory before is visible to the reactor after that return.
    pub fn wake(&self) {
        if !self.shared.pending.swap(true, Ordering::AcqRel) {
            // The write can only fail when the counter is full, and a full counter wakes just as well.
            let written = rustix::io::write(&self.shared.fd, &1u64.to_ne_bytes());
            debug_assert!(written.is_ok(), "{written:?}");
        }
    }

    pub(super) fn raw_fd(&self) -> RawFd {
        self.shared.fd.as_raw_fd()
    }

    /// The ring has woken: the next wake writes again.
    pub(super) fn acknowledge(&self) {
        self.shared.pending.swap(false, Ordering::AcqRel);
    }
}
