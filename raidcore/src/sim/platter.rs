//! What all paths of a disk lead to: it executes operations, and decides which of them meet a fault.
//!
//! Invariants:
//! - A fault that is not silent is answered with an error; a silent one is counted and traced.
//! - An event that cannot happen draws no random number, so planting one fault does not change the others'.

use super::Rng;
use super::config::DiskConfig;
use super::faults::Faults;
use super::media::{Change, Media, Parts, Payload, torn};
use super::stats::{Journal, TraceEvent};
use crate::dev::{ErrorKind, Op, OpKind, Tag};
use crate::time::Clock;

/// Discards longer than this never leave noise, which takes memory.
const MAX_NOISE_BYTES: u64 = 1 << 20;

/// A disk without its paths.
pub(super) struct Platter {
    pub(super) config: DiskConfig,
    pub(super) clock: Clock,
    pub(super) rng: Rng,
    pub(super) media: Media,
    pub(super) gone: bool,
    pub(super) hung: bool,
    pub(super) faults: Faults,
    pub(super) journal: Journal,
}

impl Platter {
    /// A platter of zeroes.
    pub(super) fn new(config: DiskConfig, clock: &Clock) -> Platter {
        let block = config.block_size;
        let tear = config.tear.unwrap_or(block);
        let cache_bytes = config.volatile_cache.then_some(config.cache_bytes);
        Platter {
            clock: clock.clone(),
            rng: Rng::new(config.seed),
            media: Media::new(block.bytes().into(), tear.bytes().into(), cache_bytes),
            faults: Faults::default(),
            journal: Journal { trace_limit: config.trace, ..Journal::default() },
            gone: false,
            hung: false,
            config,
        }
    }

    /// Executes one operation; `late` if its request was already given up.
    pub(super) fn execute(
        &mut self,
        path: usize,
        tag: Tag,
        op: &mut Op,
        covers: u64,
        late: bool,
    ) -> Result<(), ErrorKind> {
        let (kind, (offset, len)) = (op.kind(), op.extent());
        if self.faults.spend_operation() {
            self.gone = true;
        }
        let (result, note) = if self.gone { (Err(ErrorKind::Gone), "") } else { self.perform(op, covers) };
        let stats = &mut self.journal.stats;
        stats.late += u64::from(late);
        stats.silent_faults += u64::from(!note.is_empty());
        stats.errors += u64::from(result.is_err() && !late);
        let note = if note.is_empty() && late { "late" } else { note };
        let time = self.clock.now();
        self.journal.record(TraceEvent { time, path, tag, op: kind, offset, len, result, note });
        result
    }

    /// Books a request that is answered without having been executed.
    pub(super) fn note_refusal(
        &mut self,
        path: usize,
        tag: Tag,
        op: OpKind,
        (offset, len): (u64, u64),
        why: ErrorKind,
    ) {
        self.journal.stats.errors += 1;
        self.journal.stats.timeouts += u64::from(why == ErrorKind::Timeout);
        let (time, result) = (self.clock.now(), Err(why));
        self.journal.record(TraceEvent { time, path, tag, op, offset, len, result, note: "" });
    }

    /// What `op` makes of the content; `None` if it leaves it as it is.
    pub(super) fn change_of(&mut self, op: &Op) -> Option<Change> {
        let range = op.range();
        let payload = match op {
            Op::Read { .. } | Op::Flush => return None,
            Op::Write { data, .. } => {
                let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
                data.iter().for_each(|view| bytes.extend_from_slice(view));
                Payload::Data(bytes.into())
            }
            Op::WriteZeroes { .. } => Payload::Zeroes,
            Op::Discard { .. } => match self.rng.below(3) {
                0 => return None,
                1 if range.end - range.start <= MAX_NOISE_BYTES => Payload::Noise(self.rng.next_u64()),
                _ => Payload::Zeroes,
            },
        };
        Some(Change { range, payload })
    }

    fn perform(&mut self, op: &mut Op, covers: u64) -> (Result<(), ErrorKind>, &'static str) {
        let len = op.extent().1;
        let stats = &mut self.journal.stats;
        match op {
            Op::Read { .. } => {
                stats.reads += 1;
                stats.read_bytes += len;
                self.read(op)
            }
            Op::Flush => {
                stats.flushes += 1;
                self.flush(covers)
            }
            &mut Op::Write { fua, .. } => {
                stats.writes += 1;
                stats.fua_writes += u64::from(fua);
                stats.written_bytes += len;
                self.write(op, fua)
            }
            &mut Op::WriteZeroes { fua, .. } => {
                stats.zeroes += 1;
                self.write(op, fua)
            }
            Op::Discard { .. } => {
                stats.discards += 1;
                self.write(op, false)
            }
        }
    }

    fn read(&mut self, op: &mut Op) -> (Result<(), ErrorKind>, &'static str) {
        let range = op.range();
        if self.rng.chance(self.config.rates.read_error) {
            let block = u64::from(self.config.block_size.bytes());
            let at = range.start + self.rng.below((range.end - range.start) / block) * block;
            self.faults.weaken(at..at + block);
            return (Err(ErrorKind::Medium), "");
        }
        if self.faults.read_fails(&range) {
            return (Err(ErrorKind::Medium), "");
        }
        let Op::Read { offset, bufs } = op else { return (Ok(()), "") };
        let mut at = *offset;
        for buf in bufs.iter_mut() {
            self.media.read(at, buf);
            at += buf.len() as u64;
        }
        if self.rng.chance(self.config.rates.corrupt_read) {
            let piece = self.rng.index(bufs.len());
            let byte = self.rng.index(bufs[piece].len());
            bufs[piece][byte] ^= 1 + self.rng.below(255) as u8;
            return (Ok(()), "corrupt");
        }
        (Ok(()), "")
    }

    fn flush(&mut self, covers: u64) -> (Result<(), ErrorKind>, &'static str) {
        if self.rng.chance(self.config.rates.flush_error) {
            return (Err(ErrorKind::Medium), "");
        }
        if self.rng.chance(self.config.rates.lost_flush) {
            return (Ok(()), "lost");
        }
        self.media.flush(covers);
        (Ok(()), "")
    }

    fn write(&mut self, op: &Op, fua: bool) -> (Result<(), ErrorKind>, &'static str) {
        let rates = self.config.rates;
        let range = op.range();
        let is_discard = matches!(op, Op::Discard { .. });
        if self.faults.write_fails(&range) && !is_discard {
            return (Err(ErrorKind::Medium), "");
        }
        let Some(mut change) = self.change_of(op) else { return (Ok(()), "") };
        let tear = u64::from(self.config.tear.unwrap_or(self.config.block_size).bytes());
        let mut parts = Parts::from_elem(range.clone(), 1);
        let (mut result, mut note) = (Ok(()), "");
        if self.rng.chance(rates.write_error) {
            result = Err(ErrorKind::Medium);
            match self.rng.below(3) {
                0 => parts.clear(),
                1 => parts = torn(&mut self.rng, &range, tear),
                _ => {}
            }
        } else if self.rng.chance(rates.lost_write) {
            (parts, note) = (Parts::new(), "lost");
        } else if self.rng.chance(rates.torn_write) {
            (parts, note) = (torn(&mut self.rng, &range, tear), "torn");
        } else if self.rng.chance(rates.misdirected_write) {
            let block = u64::from(self.config.block_size.bytes());
            let len = range.end - range.start;
            let start = self.rng.below(self.config.size_bytes.saturating_sub(len) / block + 1) * block;
            change.range = start..start + len;
            (parts, note) = (Parts::from_elem(change.range.clone(), 1), "misdirected");
        }
        self.media.write(&change, &parts, fua);
        if !is_discard {
            parts.iter().for_each(|part| self.faults.written(part));
        }
        (result, note)
    }
}
