//! The disk against its contract: each fault, durability, determinism.

mod crash;
mod faults;
mod model;

use super::*;
use crate::buf::{Slab, SlabConfig, ViewList};
use crate::dev::{BlockDev, BlockSize, Checked, Completion, ErrorKind, Op, Request, Tag};
use crate::time::{Clock, Time};
use std::time::Duration;

/// A disk, its device behind the checked wrapper, and what one needs to ask it something.
struct Rig {
    clock: Clock,
    slab: Slab,
    disk: Disk,
    dev: Checked<Device>,
    next_tag: u64,
}

/// Far away, but kept: a hung request ends there.
const DEADLINE: Duration = Duration::from_secs(30);

impl Rig {
    fn new(config: DiskConfig) -> Rig {
        let clock = Clock::virtual_at(Time::ZERO);
        let slab = Slab::new(&SlabConfig::of(&[(4096, 2048), (65536, 64)])).unwrap();
        let disk = Disk::new(config, &clock);
        let dev = Checked::new(disk.device());
        Rig { clock, slab, disk, dev, next_tag: 0 }
    }

    fn quiet() -> Rig {
        Rig::new(DiskConfig::quiet(1 << 20, BlockSize::B4096))
    }

    fn data(&self, bytes: &[u8]) -> ViewList {
        let mut list = self.slab.alloc_list(bytes.len()).unwrap();
        let mut rest = bytes;
        for buf in &mut list {
            let (head, tail) = rest.split_at(buf.len());
            buf.copy_from_slice(head);
            rest = tail;
        }
        list.into_iter().map(|buf| buf.freeze()).collect()
    }

    fn write_op(&self, offset: u64, bytes: &[u8], fua: bool) -> Op {
        Op::Write { offset, data: self.data(bytes), fua }
    }

    fn read_op(&self, offset: u64, len: usize) -> Op {
        Op::Read { offset, bufs: self.slab.alloc_list(len).unwrap() }
    }

    fn submit(&mut self, op: Op) -> Tag {
        let tag = Tag(self.next_tag);
        self.next_tag += 1;
        self.dev.submit(Request { tag, op, deadline: self.clock.now() + DEADLINE });
        tag
    }

    /// Runs until `count` requests are answered.
    fn collect(&mut self, count: usize) -> Vec<Completion> {
        let mut done = Vec::new();
        run_until(&self.clock, &mut self.dev, &mut done, |_, done| done.len() >= count).unwrap();
        assert_eq!((done.len(), self.dev.broken_promises()), (count, 0));
        done
    }

    fn ask(&mut self, op: Op) -> Completion {
        self.submit(op);
        self.collect(1).remove(0)
    }

    fn result(&mut self, op: Op) -> Result<(), ErrorKind> {
        self.ask(op).result.map_err(|error| error.kind)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ErrorKind> {
        self.result(self.write_op(offset, bytes, false))
    }

    fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, ErrorKind> {
        let answer = self.ask(self.read_op(offset, len));
        answer.result.map_err(|error| error.kind)?;
        Ok(answer.bufs.iter().flat_map(|buf| buf.iter().copied()).collect())
    }

    /// Lets what is late happen, up to `span` from now.
    fn idle(&mut self, span: Duration) {
        self.clock.advance_to(self.clock.now() + span);
        let mut done = Vec::new();
        self.dev.reap(&mut done);
        assert!(done.is_empty());
    }

    fn reboot(&mut self) {
        self.disk.power_cut();
        self.dev = Checked::new(self.disk.device());
    }
}
