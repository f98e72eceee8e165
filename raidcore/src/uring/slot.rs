//! Operation slots: who owns what an operation needs while the kernel works on it, and the inboxes that answers
//! go to.
//!
//! Invariants:
//! - A slot is free, queued (the kernel knows nothing of it) or in the kernel; only a terminal completion of its
//!   own generation takes it out of the kernel.
//! - Each operation is answered exactly once: at its end, or earlier when it is given up.
//! - Pointers given to the kernel point to the heap or to the slab, never into a slot, for slots move.

use super::disk::{DiskOp, Extent};
use super::port::Outcome;
use super::socket::SocketOp;
use crate::time::Time;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// What an operation is and all it owns.
pub(super) enum Work {
    /// Nothing: the slot is free.
    None,
    Socket(SocketOp),
    Disk(DiskOp),
    /// Given up: the memory is still in the kernel. For a disk operation, what it was about.
    Kept(Option<Extent>),
}

impl Work {
    pub(super) fn extent(&self) -> Option<Extent> {
        match self {
            Work::Disk(op) => Some(op.extent()),
            Work::Kept(extent) => *extent,
            Work::None | Work::Socket(_) => None,
        }
    }
}

/// How an operation ended.
pub(super) type Ending = Result<Outcome, Failure>;

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    Errno(i32),
    /// The end of the file, or no progress, before all was transferred.
    Short,
    /// Given up at its deadline.
    Late,
}

/// What to do after a completion.
pub(super) enum Step {
    /// Submit the rest.
    Again,
    Done(Ending),
}

/// Arrays the kernel reads when an operation is submitted. They stay with the slot to save allocations.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) iov: Vec<libc::iovec>,
    pub(super) msg: Option<Box<libc::msghdr>>,
}

/// The answer to an operation.
pub(super) struct Done {
    pub(super) token: u64,
    pub(super) ending: Ending,
    pub(super) work: Work,
}

/// Where the answers to one owner's operations wait for it.
pub(super) struct Inbox {
    done: RefCell<VecDeque<Done>>,
    open: Cell<bool>,
    /// Answers waiting in all inboxes of the ring.
    undelivered: Rc<Cell<usize>>,
}

impl Inbox {
    pub(super) fn new(undelivered: &Rc<Cell<usize>>) -> Rc<Inbox> {
        let undelivered = Rc::clone(undelivered);
        Rc::new(Inbox { done: RefCell::default(), open: Cell::new(true), undelivered })
    }

    pub(super) fn push(&self, done: Done) {
        if self.open.get() {
            self.undelivered.set(self.undelivered.get() + 1);
            self.done.borrow_mut().push_back(done);
        }
    }

    pub(super) fn pop(&self) -> Option<Done> {
        let done = self.done.borrow_mut().pop_front()?;
        self.undelivered.set(self.undelivered.get() - 1);
        Some(done)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.done.borrow().is_empty()
    }

    /// Its owner is gone: waiting answers, and those still to come, are dropped with their memory.
    pub(super) fn close(&self) {
        self.open.set(false);
        while self.pop().is_some() {}
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Free,
    Queued,
    InKernel,
}

pub(super) struct Slot {
    generation: u32,
    pub(super) phase: Phase,
    /// Its submitter has had an answer (or is gone).
    pub(super) given_up: bool,
    /// A cancellation was asked for: no further rounds.
    pub(super) canceled: bool,
    pub(super) token: u64,
    pub(super) deadline: Time,
    pub(super) inbox: Option<Rc<Inbox>>,
    pub(super) work: Work,
    pub(super) scratch: Scratch,
}

/// Names a slot and one use of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) index: u32,
    generation: u32,
}

impl Key {
    /// As io_uring's `user_data`. Generations stop short of the values with special meaning.
    pub(super) fn user_data(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    pub(super) fn from_user_data(data: u64) -> Key {
        Key { index: data as u32, generation: (data >> 32) as u32 }
    }
}

/// The last generation before they start again; those above are for the ring's own operations.
const LAST_GENERATION: u32 = u32::MAX - 16;

/// All slots of a ring. It grows to the most operations ever in flight, which the submitters bound.
#[derive(Default)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Slots {
    pub(super) fn insert(&mut self, inbox: &Rc<Inbox>, token: u64, deadline: Time, work: Work) -> Key {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.slots.push(Slot {
                    generation: 0,
                    phase: Phase::Free,
                    given_up: false,
                    canceled: false,
                    token: 0,
                    deadline: Time::NEVER,
                    inbox: None,
                    work: Work::None,
                    scratch: Scratch::default(),
                });
                (self.slots.len() - 1) as u32
            }
        };
        let slot = &mut self.slots[index as usize];
        slot.phase = Phase::Queued;
        slot.given_up = false;
        slot.canceled = false;
        slot.token = token;
        slot.deadline = deadline;
        slot.inbox = Some(Rc::clone(inbox));
        slot.work = work;
        Key { index, generation: slot.generation }
    }

    /// The slot, if the key is of its current use.
    pub(super) fn find(&mut self, key: Key) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(key.index as usize)?;
        (slot.generation == key.generation && slot.phase != Phase::Free).then_some(slot)
    }

    /// Ends the use of a slot and answers, unless that was done before. Its memory goes with the answer.
    pub(super) fn finish(&mut self, key: Key, ending: Ending) {
        let Some(slot) = self.find(key) else { return };
        let work = std::mem::replace(&mut slot.work, Work::None);
        let (inbox, token, given_up) = (slot.inbox.take(), slot.token, slot.given_up);
        slot.phase = Phase::Free;
        slot.generation = if slot.generation >= LAST_GENERATION { 0 } else { slot.generation + 1 };
        if slot.scratch.iov.capacity() > super::limits::KEPT_IOVECS {
            slot.scratch.iov = Vec::new();
        }
        self.free.push(key.index);
        if let Some(inbox) = inbox.filter(|_| !given_up) {
            inbox.push(Done { token, ending, work });
        }
    }

    /// Keys of the slots in use that `wanted` picks.
    pub(super) fn select(&self, mut wanted: impl FnMut(&Slot) -> bool) -> Vec<Key> {
        let mut keys = Vec::new();
        for (index, slot) in self.slots.iter().enumerate() {
            if slot.phase != Phase::Free && wanted(slot) {
                keys.push(Key { index: index as u32, generation: slot.generation });
            }
        }
        keys
    }

    /// The earliest deadline of those that were not given up.
    pub(super) fn earliest_deadline(&self) -> Time {
        let waiting = self.slots.iter().filter(|slot| slot.phase != Phase::Free && !slot.given_up);
        waiting.map(|slot| slot.deadline).min().unwrap_or(Time::NEVER)
    }

    /// Slots in use.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}
