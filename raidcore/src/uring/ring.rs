//! The ring of one reactor thread: submits, waits, routes completions to inboxes, keeps deadlines.
//!
//! Invariants:
//! - `in_kernel <= features.depth`: what has been put on the submission queue and not completed, cancellations
//!   and the waker's read included. Operations leave room for those, so that a ring full of idle receives can
//!   still be woken and its operations cancelled; the rest waits in `pending`.
//! - `earliest` is later than the earliest deadline of an operation that was not given up by one tick at most.
//! - It blocks only while no answer waits in any inbox.
#![allow(unsafe_code)] // one of the three places: it hands memory to the kernel

use super::limits::{DEADLINE_TICK, DRAIN_AT_DROP, MAX_CANCELS, RESERVED};
use super::port::Port;
use super::setup::{RingConfig, RingFeatures, build};
use super::slot::{Done, Failure, Inbox, Key, Phase, Slots, Step, Work};
use super::waker::Waker;
use crate::buf::{Quarantine, Slab};
use crate::time::{Clock, Time};
use io_uring::{IoUring, opcode, squeue, types};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// A handle to the ring of this thread. Clones, ports and files share the ring; it ends with the last of them.
#[derive(Clone)]
pub struct Ring {
    shared: Rc<Shared>,
}

struct Shared {
    core: RefCell<ManuallyDrop<Core>>,
    clock: Clock,
    slab: Slab,
    features: RingFeatures,
    undelivered: Rc<Cell<usize>>,
}

impl Ring {
    /// Makes a ring for the calling thread and registers the slab with it.
    ///
    /// Features the kernel lacks are done without (see [`features`](Ring::features)); the error is of a kernel
    /// or a sandbox without io_uring, and says what to do.
    pub fn new(config: &RingConfig, clock: &Clock, slab: &Slab) -> io::Result<Ring> {
        let (uring, features) = build(config, slab)?;
        let core = Core {
            uring,
            slots: Slots::default(),
            quarantine: Quarantine::new(),
            pending: VecDeque::new(),
            cancels: VecDeque::new(),
            arrived: Vec::new(),
            in_kernel: 0,
            cancels_in_kernel: 0,
            earliest: Time::NEVER,
            features,
            slab: slab.clone(),
            free_files: (0..features.registered_files).rev().collect(),
            waker: Waker::new()?,
            wake_value: Box::new(0),
            wake_armed: false,
        };
        Ok(Ring {
            shared: Rc::new(Shared {
                core: RefCell::new(ManuallyDrop::new(core)),
                clock: clock.clone(),
                slab: slab.clone(),
                features,
                undelivered: Rc::default(),
            }),
        })
    }

    /// The clock that [`enter`](Ring::enter) refreshes.
    pub fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    /// The slab whose memory is registered.
    pub fn slab(&self) -> &Slab {
        &self.shared.slab
    }

    /// What was obtained from the kernel, for logs.
    pub fn features(&self) -> RingFeatures {
        self.shared.features
    }

    /// A new completion queue for one owner of socket operations.
    pub fn port(&self) -> Port {
        Port::new(self)
    }

    /// One turn: hands over what was submitted, takes what has completed and routes it, gives up what is late.
    ///
    /// If `may_block`, waits until something completes, a [`Waker`] wakes, a deadline passes, or `wait_until`;
    /// but not while an answer waits in a port or a file, so take all of them between two turns. May return
    /// early with nothing done. Errors are the ring's own; operations answer for themselves.
    pub fn enter(&self, wait_until: Option<Time>, may_block: bool) -> io::Result<()> {
        let mut core = self.shared.core.borrow_mut();
        core.arm_wake();
        let now = self.shared.clock.refresh();
        core.give_up_late(now);
        core.feed()?;
        let may_block = may_block && self.shared.undelivered.get() == 0;
        let until = wait_until.unwrap_or(Time::NEVER).min(core.earliest);
        let wait = match (may_block, until) {
            (false, _) => Wait::No,
            (true, Time::NEVER) => Wait::Forever,
            (true, until) if until <= now => Wait::No,
            (true, until) => Wait::For(until.since(now)),
        };
        core.submit(wait)?;
        core.collect();
        let now = self.shared.clock.refresh();
        core.give_up_late(now);
        Ok(())
    }

    /// Wakes this ring from other threads.
    pub fn waker(&self) -> Waker {
        self.shared.core.borrow().waker.clone()
    }

    /// Cancels everything and waits up to `limit` for the kernel to let go. Events arrive as usual.
    ///
    /// False: something is still in the kernel. It stays owned by the ring, and is leaked if the ring ends
    /// before it comes back.
    pub fn drain(&self, limit: Duration) -> bool {
        self.shared.core.borrow_mut().drain(limit)
    }

    /// Operations in the kernel or waiting for it; those that were given up and have not ended count.
    pub fn in_flight(&self) -> usize {
        self.shared.core.borrow().slots.len()
    }

    /// Operations that were given up and whose memory the kernel still holds.
    pub fn quarantined(&self) -> usize {
        self.shared.core.borrow().slots.select(|slot| slot.given_up).len()
    }

    pub(super) fn new_inbox(&self) -> Rc<Inbox> {
        Inbox::new(&self.shared.undelivered)
    }

    pub(super) fn start(&self, inbox: &Rc<Inbox>, token: u64, deadline: Time, work: Work) {
        let mut core = self.shared.core.borrow_mut();
        let key = core.slots.insert(inbox, token, deadline, work);
        core.pending.push_back(key);
        core.earliest = core.earliest.min(deadline);
    }

    pub(super) fn cancel(&self, inbox: &Rc<Inbox>, token: u64) {
        let mut core = self.shared.core.borrow_mut();
        let of_token = |slot: &super::slot::Slot| slot.token == token && is_of(slot, inbox);
        for key in core.slots.select(of_token) {
            core.cancel(key);
        }
    }

    pub(super) fn set_deadline(&self, inbox: &Rc<Inbox>, token: u64, deadline: Time) {
        let mut core = self.shared.core.borrow_mut();
        for key in core.slots.select(|slot| slot.token == token && is_of(slot, inbox)) {
            if let Some(slot) = core.slots.find(key) {
                slot.deadline = deadline;
            }
            core.earliest = core.earliest.min(deadline);
        }
    }

    /// The owner of `inbox` is gone: nobody waits for its operations any more.
    pub(super) fn close(&self, inbox: &Rc<Inbox>) {
        inbox.close();
        let mut core = self.shared.core.borrow_mut();
        for key in core.slots.select(|slot| is_of(slot, inbox)) {
            core.cancel(key);
            if let Some(slot) = core.slots.find(key) {
                slot.given_up = true;
            }
        }
    }

    /// Registers a file; its index, or `None` if the table is full.
    pub(super) fn register_file(&self, fd: RawFd) -> Option<u32> {
        let mut core = self.shared.core.borrow_mut();
        let index = core.free_files.pop()?;
        if core.uring.submitter().register_files_update(index, &[fd]).is_ok() {
            return Some(index);
        }
        core.free_files.push(index);
        None
    }

    /// Forgets a registered file, after its owner's inbox was closed. Operations already in the kernel keep it
    /// open; entries that name the index and are not yet submitted must go first. If that fails, the index is
    /// not used again.
    pub(super) fn unregister_file(&self, index: u32) {
        let mut core = self.shared.core.borrow_mut();
        let submitted = core.submit(Wait::No).is_ok() && core.uring.submission().is_empty();
        if submitted && core.uring.submitter().register_files_update(index, &[-1]).is_ok() {
            core.free_files.push(index);
        }
    }
}

fn is_of(slot: &super::slot::Slot, inbox: &Rc<Inbox>) -> bool {
    slot.inbox.as_ref().is_some_and(|of| Rc::ptr_eq(of, inbox))
}

impl Drop for Shared {
    fn drop(&mut self) {
        let core = self.core.get_mut();
        if core.drain(DRAIN_AT_DROP) {
            // SAFETY: this is the only place that drops the core, and `Shared` is dropped once.
            unsafe { ManuallyDrop::drop(core) };
        } else {
            // The kernel still writes to memory that slots own: all of it, the ring and the slab leak.
        }
    }
}

/// `user_data` of the waker's read and of cancellations: generations that no slot has.
const WAKE: u64 = u64::MAX;
const CANCEL: u64 = u64::MAX - 1;

enum Wait {
    No,
    For(Duration),
    Forever,
}

struct Core {
    uring: IoUring,
    slots: Slots,
    /// What operations that were given up own, until their terminal completion.
    quarantine: Quarantine<Work>,
    /// Operations waiting for room; keys of operations that ended meanwhile are skipped.
    pending: VecDeque<Key>,
    /// Operations to cancel.
    cancels: VecDeque<Key>,
    /// Completions taken from the queue and not yet worked off; empty between turns.
    arrived: Vec<(u64, i32, u32)>,
    in_kernel: u32,
    cancels_in_kernel: u32,
    earliest: Time,
    features: RingFeatures,
    slab: Slab,
    free_files: Vec<u32>,
    waker: Waker,
    wake_value: Box<u64>,
    wake_armed: bool,
}

impl Core {
    fn arm_wake(&mut self) {
        if !self.wake_armed {
            let value: *mut u64 = &mut *self.wake_value;
            let read = opcode::Read::new(types::Fd(self.waker.raw_fd()), value.cast(), 8);
            self.wake_armed = self.push(read.build().user_data(WAKE));
        }
    }

    /// Puts an entry on the submission queue; false if there is no room.
    fn push(&mut self, entry: squeue::Entry) -> bool {
        if self.in_kernel >= self.features.depth {
            return false;
        }
        // SAFETY: what the entry points to is owned by the slot of its key (or by the core, for the waker) until
        // its terminal completion; slots and core are leaked if that does not come.
        let pushed = unsafe { self.uring.submission().push(&entry) }.is_ok();
        self.in_kernel += u32::from(pushed);
        pushed
    }

    /// True if one more operation leaves enough of the completion queue to the ring's own.
    fn has_room(&self) -> bool {
        self.in_kernel + RESERVED < self.features.depth
    }

    /// Moves cancellations and operations to the kernel as far as there is room.
    fn feed(&mut self) -> io::Result<()> {
        loop {
            self.feed_queue();
            let waiting = !self.pending.is_empty() || !self.cancels.is_empty();
            let room = self.has_room() && self.cancels_in_kernel < MAX_CANCELS;
            if !waiting || !room {
                return Ok(());
            }
            // The submission queue is full, the completion queue is not: hand over and go on.
            self.submit(Wait::No)?;
            if self.uring.submission().is_full() {
                return Ok(());
            }
        }
    }

    fn feed_queue(&mut self) {
        while self.cancels_in_kernel < MAX_CANCELS
            && let Some(&key) = self.cancels.front()
        {
            let live = self.slots.find(key).is_some_and(|slot| slot.phase == Phase::InKernel);
            let entry = opcode::AsyncCancel::new(key.user_data()).build().user_data(CANCEL);
            if live && !self.push(entry) {
                break;
            }
            self.cancels_in_kernel += u32::from(live);
            self.cancels.pop_front();
        }
        while let Some(&key) = self.pending.front() {
            if !self.has_room() || self.uring.submission().is_full() {
                return;
            }
            self.pending.pop_front();
            let Some(slot) = self.slots.find(key).filter(|slot| slot.phase == Phase::Queued) else {
                continue;
            };
            let entry = match &mut slot.work {
                Work::Socket(op) => op.prepare(&mut slot.scratch),
                Work::Disk(op) => {
                    let fixed = self.features.fixed_buffers.then_some(&self.slab);
                    op.prepare(&mut slot.scratch, fixed)
                }
                Work::None | Work::Kept(_) => continue,
            };
            slot.phase = Phase::InKernel;
            let pushed = self.push(entry.user_data(key.user_data()));
            debug_assert!(pushed, "room was checked");
        }
    }

    /// Hands the submission queue over and waits.
    fn submit(&mut self, wait: Wait) -> io::Result<()> {
        let nothing_to_do = {
            let queue = self.uring.submission();
            // Without a task-run flag only a call tells whether completions are held back.
            queue.is_empty() && !queue.taskrun() && !queue.cq_overflow()
        };
        let told = self.features.defer_taskrun || self.features.coop_taskrun;
        let submitter = self.uring.submitter();
        let result = match wait {
            Wait::No if nothing_to_do && told => return Ok(()),
            Wait::No => submitter.submit(),
            Wait::Forever => submitter.submit_and_wait(1),
            Wait::For(span) => {
                let timespec = types::Timespec::from(span);
                submitter.submit_with_args(1, &types::SubmitArgs::new().timespec(&timespec))
            }
        };
        match result {
            Ok(_) => Ok(()),
            // The time is up; a signal; the kernel wants completions taken, or has no memory, before it takes more.
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Takes all completions and works them off.
    fn collect(&mut self) {
        let mut arrived = std::mem::take(&mut self.arrived);
        arrived.extend(self.uring.completion().map(|cqe| (cqe.user_data(), cqe.result(), cqe.flags())));
        for (user_data, result, flags) in arrived.drain(..) {
            debug_assert!(!io_uring::cqueue::more(flags), "no operation here completes twice");
            self.in_kernel -= 1;
            match user_data {
                WAKE => {
                    self.wake_armed = false;
                    self.waker.acknowledge();
                }
                // It says nothing about its target, which completes by itself.
                CANCEL => self.cancels_in_kernel -= 1,
                _ => self.completed(Key::from_user_data(user_data), result),
            }
        }
        self.arrived = arrived;
    }

    fn completed(&mut self, key: Key, result: i32) {
        let Some(slot) = self.slots.find(key) else {
            debug_assert!(false, "completion of an unknown operation");
            return;
        };
        let step = match &mut slot.work {
            Work::Socket(op) => op.advance(result),
            Work::Disk(op) => op.advance(result),
            // Given up long ago; its memory is free now.
            Work::Kept(_) => {
                drop(self.quarantine.release(key.user_data()));
                Step::Done(Err(Failure::Late))
            }
            Work::None => Step::Done(Err(Failure::Errno(libc::EIO))),
        };
        match step {
            Step::Done(ending) => self.slots.finish(key, ending),
            Step::Again if slot.given_up || slot.canceled => {
                self.slots.finish(key, Err(Failure::Errno(libc::ECANCELED)));
            }
            Step::Again => {
                slot.phase = Phase::Queued;
                self.pending.push_front(key);
            }
        }
    }

    fn cancel(&mut self, key: Key) {
        let Some(slot) = self.slots.find(key) else { return };
        match slot.phase {
            Phase::Queued => self.slots.finish(key, Err(Failure::Errno(libc::ECANCELED))),
            Phase::InKernel if !slot.canceled => {
                slot.canceled = true;
                self.cancels.push_back(key);
            }
            Phase::InKernel | Phase::Free => {}
        }
    }

    /// Answers operations past their deadline and cancels them; their memory goes into quarantine.
    fn give_up_late(&mut self, now: Time) {
        if now < self.earliest {
            return;
        }
        for key in self.slots.select(|slot| !slot.given_up && slot.deadline <= now) {
            let Some(slot) = self.slots.find(key) else { continue };
            if slot.phase == Phase::Queued {
                self.slots.finish(key, Err(Failure::Late));
                continue;
            }
            slot.given_up = true;
            let extent = slot.work.extent();
            let held = std::mem::replace(&mut slot.work, Work::Kept(extent));
            self.quarantine.hold(key.user_data(), held);
            if let Some(inbox) = &slot.inbox {
                let work = Work::Kept(extent);
                inbox.push(Done { token: slot.token, ending: Err(Failure::Late), work });
            }
            self.cancel(key);
        }
        self.earliest = self.slots.earliest_deadline().max(now + DEADLINE_TICK);
    }

    fn drain(&mut self, limit: Duration) -> bool {
        let start = Instant::now();
        for key in self.slots.select(|_| true) {
            self.cancel(key);
        }
        let mut wake_canceled = false;
        loop {
            if self.wake_armed && !wake_canceled {
                // The waker's read has no slot; it is cancelled by its own name.
                wake_canceled = self.push(opcode::AsyncCancel::new(WAKE).build().user_data(CANCEL));
                self.cancels_in_kernel += u32::from(wake_canceled);
            }
            let fed = self.feed();
            if self.in_kernel == 0 && self.slots.len() == 0 {
                return true;
            }
            let left = limit.saturating_sub(start.elapsed());
            let waited =
                fed.and_then(|()| self.submit(if left.is_zero() { Wait::No } else { Wait::For(left) }));
            self.collect();
            if waited.is_err() || left.is_zero() {
                return self.in_kernel == 0 && self.slots.len() == 0;
            }
        }
    }
}
