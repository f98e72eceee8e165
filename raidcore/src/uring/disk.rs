//! Operations on files and block devices: what the kernel is told, and what its answers mean.
//!
//! A short transfer is submitted again for the rest, from a block boundary, for as long as each round moves at
//! least one block; a round that moves none (the end of the file) ends the operation as short.
//!
//! Ranges are discarded and zeroed by `fallocate`, on block devices too: the kernel turns it into the device's
//! own commands, discards what the page cache holds of the range, and promises zeroes afterwards. The ioctl
//! BLKDISCARD would block the reactor for as long as the device takes, and promises nothing about what is read.

use super::limits::{MAX_RETRIES, MAX_ZERO_WRITE_BYTES, ZERO_BYTES};
use super::port::Outcome;
use super::slot::{Failure, Scratch, Step};
use super::socket::fill_iovecs;
use crate::buf::{BufList, Slab, ViewList};
use crate::dev::OpKind;
use io_uring::{opcode, squeue, types};
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

/// An open file, and how it is to be used. Operations in flight hold it.
pub(super) struct Handle {
    pub(super) fd: OwnedFd,
    /// Its index among the ring's registered files.
    pub(super) fixed: Option<u32>,
    /// Bytes that a round must be a multiple of to be gone on with.
    pub(super) block_bytes: u64,
    /// Locks on what lies below a loop device; held, never used.
    pub(super) _claims: Vec<OwnedFd>,
}

/// What an operation is about, for its error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) kind: OpKind,
    pub(super) offset: u64,
    pub(super) len: u64,
}

pub(super) struct DiskOp {
    handle: Rc<Handle>,
    pub(super) kind: DiskKind,
    offset: u64,
    len: u64,
    /// `done <= len`, a multiple of the block while the operation goes on.
    done: u64,
    retries: u8,
}

pub(super) enum DiskKind {
    Read {
        bufs: BufList,
        /// Aligned memory that is read into in place of `bufs`; empty if theirs will do.
        bounce: BufList,
    },
    Write {
        data: ViewList,
        fua: bool,
    },
    Flush,
    Discard,
    Zeroes {
        way: ZeroWay,
        fua: bool,
    },
}

/// How a range is being zeroed; each way falls back to the next one where it is not supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ZeroWay {
    /// Give the space back.
    Punch,
    /// Keep the space, let the file system or device zero it.
    Range,
    /// Write zeroes.
    Write,
    /// Zeroed; now made durable.
    Sync,
}

impl DiskOp {
    pub(super) fn new(handle: &Rc<Handle>, kind: DiskKind, offset: u64, len: u64) -> DiskOp {
        DiskOp { handle: Rc::clone(handle), kind, offset, len, done: 0, retries: 0 }
    }

    pub(super) fn extent(&self) -> Extent {
        let kind = match &self.kind {
            DiskKind::Read { .. } => OpKind::Read,
            DiskKind::Write { .. } => OpKind::Write,
            DiskKind::Flush => OpKind::Flush,
            DiskKind::Discard => OpKind::Discard,
            DiskKind::Zeroes { .. } => OpKind::WriteZeroes,
        };
        Extent { kind, offset: self.offset, len: self.len }
    }

    /// The entry that starts the operation, or goes on with it. `registered` is the slab, if it is registered.
    pub(super) fn prepare(&mut self, scratch: &mut Scratch, registered: Option<&Slab>) -> squeue::Entry {
        let at = self.offset + self.done;
        let fd = match self.handle.fixed {
            Some(index) => types::Fd(index as i32),
            None => types::Fd(self.handle.fd.as_raw_fd()),
        };
        let entry = match &mut self.kind {
            DiskKind::Read { bufs, bounce } => {
                let into = if bounce.is_empty() { bufs } else { bounce };
                let pieces = into.iter_mut().map(|buf| (buf.as_mut_raw().cast_const(), buf.len()));
                fill_iovecs(&mut scratch.iov, pieces, self.done);
                read_entry(fd, &scratch.iov, at, registered)
            }
            DiskKind::Write { data, fua } => {
                let pieces = data.iter().map(|view| (view.as_ptr(), view.len()));
                fill_iovecs(&mut scratch.iov, pieces, self.done);
                write_entry(fd, &scratch.iov, at, *fua, registered)
            }
            DiskKind::Flush | DiskKind::Zeroes { way: ZeroWay::Sync, .. } => datasync(fd),
            DiskKind::Discard | DiskKind::Zeroes { way: ZeroWay::Punch, .. } => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                opcode::Fallocate::new(fd, self.len).offset(at).mode(mode).build()
            }
            DiskKind::Zeroes { way: ZeroWay::Range, .. } => {
                let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
                opcode::Fallocate::new(fd, self.len).offset(at).mode(mode).build()
            }
            DiskKind::Zeroes { way: ZeroWay::Write, .. } => {
                let len = (self.len - self.done).min(MAX_ZERO_WRITE_BYTES) as usize;
                let zeroes = |from| (ZEROES.0.as_ptr(), ZERO_BYTES.min(len - from));
                fill_iovecs(&mut scratch.iov, (0..len).step_by(ZERO_BYTES).map(zeroes), 0);
                write_entry(fd, &scratch.iov, at, false, None)
            }
        };
        match self.handle.fixed {
            Some(_) => entry.flags(squeue::Flags::FIXED_FILE),
            None => entry,
        }
    }

    pub(super) fn advance(&mut self, result: i32) -> Step {
        let count = match u32::try_from(result) {
            Ok(count) => u64::from(count),
            Err(_) => return self.failed(-result),
        };
        match &mut self.kind {
            DiskKind::Read { .. } | DiskKind::Write { .. } => self.moved(count),
            DiskKind::Flush | DiskKind::Discard => Step::Done(Ok(Outcome::Bytes(self.len))),
            DiskKind::Zeroes { way: ZeroWay::Write, .. } => match self.moved(count) {
                Step::Done(Ok(_)) => self.zeroed(),
                step => step,
            },
            DiskKind::Zeroes { way: ZeroWay::Sync, .. } => Step::Done(Ok(Outcome::Bytes(self.len))),
            DiskKind::Zeroes { .. } => self.zeroed(),
        }
    }

    /// After a transfer of `count` bytes.
    fn moved(&mut self, count: u64) -> Step {
        let before = self.done;
        // More than was asked for would be the kernel's mistake; it must not become ours.
        self.done = (before + count).min(self.len);
        if self.done == self.len {
            self.copy_out();
            return Step::Done(Ok(Outcome::Bytes(self.len)));
        }
        self.done -= self.done % self.handle.block_bytes;
        if self.done <= before { Step::Done(Err(Failure::Short)) } else { Step::Again }
    }

    fn zeroed(&mut self) -> Step {
        match &mut self.kind {
            DiskKind::Zeroes { way, fua: true } => {
                *way = ZeroWay::Sync;
                Step::Again
            }
            _ => Step::Done(Ok(Outcome::Bytes(self.len))),
        }
    }

    fn failed(&mut self, errno: i32) -> Step {
        if matches!(errno, libc::EINTR | libc::EAGAIN) && self.retries < MAX_RETRIES {
            self.retries += 1;
            return Step::Again;
        }
        if let DiskKind::Zeroes { way, .. } = &mut self.kind
            && matches!(errno, libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENODEV)
        {
            match way {
                ZeroWay::Punch => *way = ZeroWay::Range,
                ZeroWay::Range => *way = ZeroWay::Write,
                ZeroWay::Write | ZeroWay::Sync => return Step::Done(Err(Failure::Errno(errno))),
            }
            return Step::Again;
        }
        Step::Done(Err(Failure::Errno(errno)))
    }

    /// Brings what was read into aligned memory to where it was wanted.
    fn copy_out(&mut self) {
        let DiskKind::Read { bufs, bounce } = &mut self.kind else { return };
        let source = std::mem::take(bounce);
        copy_pieces(source.iter().map(|buf| &**buf), bufs.iter_mut().map(|buf| &mut **buf));
    }
}

/// Copies the bytes of `from`, one piece after the other, to those of `to`, until either ends.
pub(super) fn copy_pieces<'a>(
    from: impl IntoIterator<Item = &'a [u8]>,
    to: impl IntoIterator<Item = &'a mut [u8]>,
) {
    let mut from = from.into_iter();
    let mut source: &[u8] = &[];
    for piece in to {
        let mut rest = piece;
        while !rest.is_empty() {
            if source.is_empty() {
                match from.next() {
                    Some(next) => source = next,
                    None => return,
                }
            }
            let count = source.len().min(rest.len());
            let (filled, left) = rest.split_at_mut(count);
            filled.copy_from_slice(&source[..count]);
            (source, rest) = (&source[count..], left);
        }
    }
}

#[repr(C, align(4096))]
struct Zeroes([u8; ZERO_BYTES]);

static ZEROES: Zeroes = Zeroes([0; ZERO_BYTES]);

/// True if a single piece can go by registered memory.
fn is_registered(iov: &libc::iovec, registered: Option<&Slab>) -> bool {
    registered.is_some_and(|slab| slab.contains(iov.iov_base.cast_const().cast()))
}

fn read_entry(fd: types::Fd, iov: &[libc::iovec], at: u64, registered: Option<&Slab>) -> squeue::Entry {
    match iov {
        [only] if is_registered(only, registered) => {
            opcode::ReadFixed::new(fd, only.iov_base.cast(), only.iov_len as u32, 0).offset(at).build()
        }
        [only] => opcode::Read::new(fd, only.iov_base.cast(), only.iov_len as u32).offset(at).build(),
        _ => opcode::Readv::new(fd, iov.as_ptr(), iov.len() as u32).offset(at).build(),
    }
}

fn write_entry(
    fd: types::Fd,
    iov: &[libc::iovec],
    at: u64,
    fua: bool,
    registered: Option<&Slab>,
) -> squeue::Entry {
    let flags = if fua { libc::RWF_DSYNC } else { 0 };
    match iov {
        [only] if is_registered(only, registered) => {
            let (start, len) = (only.iov_base.cast_const().cast(), only.iov_len as u32);
            opcode::WriteFixed::new(fd, start, len, 0).offset(at).rw_flags(flags).build()
        }
        [only] => {
            let (start, len) = (only.iov_base.cast_const().cast(), only.iov_len as u32);
            opcode::Write::new(fd, start, len).offset(at).rw_flags(flags as _).build()
        }
        _ => opcode::Writev::new(fd, iov.as_ptr(), iov.len() as u32).offset(at).rw_flags(flags as _).build(),
    }
}

fn datasync(fd: types::Fd) -> squeue::Entry {
    opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(kind: DiskKind, len: u64) -> DiskOp {
        let fd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        DiskOp::new(&Rc::new(Handle { fd, fixed: None, block_bytes: 512, _claims: Vec::new() }), kind, 0, len)
    }

    fn write(len: u64) -> DiskOp {
        op(DiskKind::Write { data: ViewList::new(), fua: false }, len)
    }

    #[test]
    fn a_short_transfer_goes_on_from_the_last_whole_block() {
        let mut op = write(4096);
        assert!(matches!(op.advance(1000), Step::Again));
        assert_eq!(op.done, 512);
        assert!(matches!(op.advance(3584), Step::Done(Ok(_))));
    }

    #[test]
    fn a_round_without_progress_is_short() {
        let mut op = write(4096);
        assert!(matches!(op.advance(2048), Step::Again));
        assert!(matches!(op.advance(511), Step::Done(Err(Failure::Short))));
        assert!(matches!(write(4096).advance(0), Step::Done(Err(Failure::Short))));
    }

    #[test]
    fn interruptions_are_repeated_a_bounded_number_of_times() {
        let mut op = write(512);
        for _ in 0..MAX_RETRIES {
            assert!(matches!(op.advance(-libc::EAGAIN), Step::Again));
        }
        assert!(matches!(op.advance(-libc::EAGAIN), Step::Done(Err(Failure::Errno(libc::EAGAIN)))));
    }

    #[test]
    fn zeroing_falls_back_from_punching_to_writing_and_ends_with_a_sync_for_fua() {
        let mut op = op(DiskKind::Zeroes { way: ZeroWay::Punch, fua: true }, 3 << 20);
        let mut ways = Vec::new();
        for result in [-libc::EOPNOTSUPP, -libc::EOPNOTSUPP, 1 << 20, 1 << 20, 1 << 20] {
            assert!(matches!(op.advance(result), Step::Again));
            let DiskKind::Zeroes { way, .. } = op.kind else { panic!() };
            ways.push(way);
        }
        use ZeroWay::*;
        assert_eq!(ways, [Range, Write, Write, Write, Sync]);
        assert!(matches!(op.advance(0), Step::Done(Ok(_))));
    }

    #[test]
    fn an_io_error_while_zeroing_is_not_taken_for_a_missing_feature() {
        let mut op = op(DiskKind::Zeroes { way: ZeroWay::Punch, fua: false }, 4096);
        assert!(matches!(op.advance(-libc::EIO), Step::Done(Err(Failure::Errno(libc::EIO)))));
    }
}
