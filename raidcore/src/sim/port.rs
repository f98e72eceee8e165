//! One path to a disk: its requests in flight, and the turn that executes and answers them.
//!
//! Invariants:
//! - Every request is answered exactly once, at its deadline at the latest.
//! - A request that was given up is executed later or never, and no one hears of it.
//! - A slot is in `due` from its start to its execution, in `deadlines` from its submission to its answer.

use super::media::Change;
use super::platter::Platter;
use crate::dev::{Completion, ErrorKind, IoError, Op, Request, Tag};
use crate::limits::SIM_LATE_OPS;
use crate::time::Time;
use std::collections::BTreeSet;
use std::time::Duration;

struct Pending {
    tag: Tag,
    op: Op,
    deadline: Time,
    /// When it is done; `None` until it is started.
    due: Option<Time>,
    /// Among what is done at the same time, chance decides what is first.
    order: u64,
    /// What a flush covers.
    covers: u64,
    given_up: bool,
}

/// A path.
pub(super) struct Port {
    path: usize,
    slots: Vec<Option<Pending>>,
    free: Vec<usize>,
    queued: Vec<usize>,
    due: BTreeSet<(Time, u64, usize)>,
    deadlines: BTreeSet<(Time, usize)>,
    answers: Vec<Completion>,
    /// Requests not answered.
    live: usize,
    /// Requests given up and yet to be executed.
    late: usize,
    /// Cut off for ever, by a power cut.
    pub(super) dead: bool,
    /// Cut off until further notice.
    pub(super) down: bool,
    /// Answers nothing.
    pub(super) hung: bool,
    /// Its device was dropped.
    detached: bool,
}

impl Port {
    pub(super) fn new(path: usize) -> Port {
        Port {
            path,
            slots: Vec::new(),
            free: Vec::new(),
            queued: Vec::new(),
            due: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            answers: Vec::new(),
            live: 0,
            late: 0,
            dead: false,
            down: false,
            hung: false,
            detached: false,
        }
    }

    pub(super) fn submit(&mut self, platter: &mut Platter, request: Request) {
        let Request { tag, op, deadline } = request;
        if self.is_lost(platter) {
            return self.refuse(platter, tag, op, ErrorKind::Gone);
        }
        let covers = platter.media.seq();
        let pending = Pending { tag, op, deadline, due: None, order: 0, covers, given_up: false };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = Some(pending);
                slot
            }
            None => {
                self.slots.push(Some(pending));
                self.slots.len() - 1
            }
        };
        if deadline < Time::NEVER {
            self.deadlines.insert((deadline, slot));
        }
        self.queued.push(slot);
        self.live += 1;
    }

    /// Starts what is queued, executes what is due, gives up what is past its deadline, answers.
    pub(super) fn turn(&mut self, platter: &mut Platter, done: &mut Vec<Completion>) {
        if self.is_lost(platter) {
            self.abandon(platter);
        } else {
            self.start(platter);
        }
        let now = platter.clock.now();
        loop {
            let due = self.due.first().copied().filter(|_| !self.is_hung(platter));
            let deadline = self.deadlines.first().copied();
            // What is done at its deadline is done in time.
            match (due, deadline) {
                (Some((at, _, slot)), other) if at <= now && other.is_none_or(|(by, _)| at <= by) => {
                    self.execute(platter, slot);
                    if self.live > 0 && self.is_lost(platter) {
                        self.abandon(platter);
                    }
                }
                (_, Some((by, slot))) if by <= now => self.give_up(platter, slot, ErrorKind::Timeout),
                _ => break,
            }
        }
        if self.answers.len() > 1 {
            platter.rng.shuffle(&mut self.answers);
        }
        done.append(&mut self.answers);
    }

    pub(super) fn cancel(&mut self, platter: &mut Platter, tag: Tag) {
        let is_it = |slot: &Option<Pending>| slot.as_ref().is_some_and(|p| p.tag == tag && !p.given_up);
        let Some(slot) = self.slots.iter().position(is_it) else { return };
        // What has started may be past stopping; it then ends as if nobody had asked.
        let started = self.slots[slot].as_ref().is_some_and(|pending| pending.due.is_some());
        if !started || self.is_hung(platter) || platter.rng.chance(0.5) {
            self.give_up(platter, slot, ErrorKind::Canceled);
        }
    }

    pub(super) fn wake_at(&self, platter: &Platter) -> Option<Time> {
        if !self.answers.is_empty() || !self.queued.is_empty() || (self.live > 0 && self.is_lost(platter)) {
            return Some(Time::ZERO);
        }
        let due = self.due.first().map(|&(at, ..)| at).filter(|_| !self.is_hung(platter));
        let deadline = self.deadlines.first().map(|&(by, _)| by);
        due.into_iter().chain(deadline).min().filter(|&at| at < Time::NEVER)
    }

    /// The power goes: everything is answered with `Gone`, and the path is dead. Returns the changes that were
    /// under way, which may or may not have reached the platter.
    pub(super) fn power_cut(&mut self, platter: &mut Platter) -> Vec<Change> {
        let mut changes = Vec::new();
        for slot in 0..self.slots.len() {
            let Some(pending) = self.take(slot) else { continue };
            if pending.due.is_some() {
                changes.extend(platter.change_of(&pending.op));
            }
            if !pending.given_up {
                self.refuse(platter, pending.tag, pending.op, ErrorKind::Gone);
            }
        }
        self.queued.clear();
        self.dead = true;
        changes
    }

    /// The device was dropped: as when its process is killed, what the disk was told may still be done.
    pub(super) fn detach(&mut self, platter: &mut Platter) {
        self.abandon(platter);
        self.answers.clear();
        self.detached = true;
    }

    pub(super) fn is_detached(&self) -> bool {
        self.detached
    }

    pub(super) fn path(&self) -> usize {
        self.path
    }

    /// True if nothing will ever happen here.
    pub(super) fn is_over(&self) -> bool {
        self.detached && self.late == 0
    }

    fn is_lost(&self, platter: &Platter) -> bool {
        platter.gone || self.dead || self.down
    }

    fn is_hung(&self, platter: &Platter) -> bool {
        platter.hung || self.hung
    }

    fn start(&mut self, platter: &mut Platter) {
        let now = platter.clock.now();
        for slot in std::mem::take(&mut self.queued) {
            let Some(pending) = &mut self.slots[slot] else { continue };
            if pending.due.is_some() {
                continue;
            }
            let due = if platter.rng.chance(platter.config.rates.hang) {
                let overdue = platter.config.slow.draw(&mut platter.rng) + Duration::from_nanos(1);
                now.max(pending.deadline) + overdue
            } else if platter.rng.chance(platter.config.rates.slow) {
                now + platter.config.slow.draw(&mut platter.rng)
            } else {
                now + platter.config.latency.draw(&mut platter.rng)
            };
            pending.order = platter.rng.next_u64();
            pending.due = Some(due);
            self.due.insert((due, pending.order, slot));
        }
    }

    fn execute(&mut self, platter: &mut Platter, slot: usize) {
        let Some(mut pending) = self.take(slot) else { return };
        let result =
            platter.execute(self.path, pending.tag, &mut pending.op, pending.covers, pending.given_up);
        if pending.given_up {
            return;
        }
        let (offset, len) = pending.op.extent();
        let result = result.map_err(|kind| IoError::new(kind, pending.op.kind(), offset, len));
        let bufs = match pending.op {
            Op::Read { bufs, .. } => bufs,
            _ => crate::buf::BufList::new(),
        };
        self.answers.push(Completion { tag: pending.tag, result, bufs });
    }

    /// Answers without waiting any longer. What has started may still be executed; its memory stays here until
    /// then.
    fn give_up(&mut self, platter: &mut Platter, slot: usize, why: ErrorKind) {
        let Some(pending) = &mut self.slots[slot] else { return };
        let due = pending.due.unwrap_or(Time::NEVER);
        let late = due < Time::NEVER
            && !self.dead
            && self.late < SIM_LATE_OPS
            && platter.rng.chance(platter.config.late_execution);
        if !late {
            let started = pending.due.is_some();
            let Some(pending) = self.take(slot) else { return };
            let start = self.answers.len();
            self.refuse(platter, pending.tag, pending.op, why);
            if started && why == ErrorKind::Timeout {
                // No one can know that the disk has forgotten it: the memory of a read does not go back.
                self.answers[start].bufs.clear();
            }
            return;
        }
        pending.given_up = true;
        let (tag, kind, (offset, len)) = (pending.tag, pending.op.kind(), pending.op.extent());
        self.deadlines.remove(&(pending.deadline, slot));
        self.live -= 1;
        self.late += 1;
        platter.note_refusal(self.path, tag, kind, (offset, len), why);
        self.answers.push(Completion::new(tag, Err(IoError::new(why, kind, offset, len))));
    }

    /// The way to the disk is lost: gives up everything.
    fn abandon(&mut self, platter: &mut Platter) {
        self.queued.clear();
        for slot in 0..self.slots.len() {
            if self.slots[slot].as_ref().is_some_and(|pending| !pending.given_up) {
                self.give_up(platter, slot, ErrorKind::Gone);
            }
        }
    }

    fn refuse(&mut self, platter: &mut Platter, tag: Tag, op: Op, why: ErrorKind) {
        let (kind, (offset, len)) = (op.kind(), op.extent());
        platter.note_refusal(self.path, tag, kind, (offset, len), why);
        self.answers.push(Completion::refused(tag, op, IoError::new(why, kind, offset, len)));
    }

    /// Takes a request out of all books.
    fn take(&mut self, slot: usize) -> Option<Pending> {
        let pending = self.slots[slot].take()?;
        self.free.push(slot);
        match pending.due {
            Some(due) => drop(self.due.remove(&(due, pending.order, slot))),
            None => self.queued.retain(|&queued| queued != slot),
        }
        if pending.given_up {
            self.late -= 1;
        } else {
            self.deadlines.remove(&(pending.deadline, slot));
            self.live -= 1;
        }
        Some(pending)
    }
}
