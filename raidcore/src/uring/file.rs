//! A regular file or block device as a [`BlockDev`].
//!
//! - Direct transfers (O_DIRECT) go straight between the slab and the disk. Memory that does not suit the device's
//!   alignment is copied through memory that does; the slab's own blocks always suit.
//! - Files in memory (tmpfs, ramfs) do not know NOWAIT, so io_uring would hand each transfer to a worker thread, at
//!   many times the cost of the copy. Transfers of up to 1 MiB are therefore copied by the reactor itself. A page
//!   of such a file that was swapped out blocks the reactor while it is read back.
//! - A regular file that somebody truncates is gone: it must not be read as zeroes, nor grow again by being written
//!   and look whole. A read that meets the end fails with [`ErrorKind::Gone`]; after writes, and before FUA ones, which
//!   may be the last bytes of the file, its size is looked at (once per [`reap`](BlockDev::reap)), and no write is
//!   answered well that a truncation came before. Afterwards every request fails. A file that is truncated and made
//!   as large as before between two such looks is not noticed.
//! - One that becomes larger, or a block device that does, is as large as before until it is
//!   [looked at again](BlockDev::refresh_size).
//! - FUA is RWF_DSYNC, a flush is `fdatasync`; both are right with and without O_DIRECT.

use super::disk::{DiskKind, DiskOp, Extent, Handle, ZeroWay, copy_pieces};
use super::limits::MAX_INLINE_BYTES;
use super::open::{OpenError, OpenHow, Opened, Warning, open};
use super::port::Outcome;
use super::ring::Ring;
use super::slot::{Done, Ending, Failure, Inbox, Work};
use crate::allocation::Holes;
use crate::buf::{Buf, BufList, Exhausted, ViewList, list_len};
use crate::dev::{BlockDev, Completion, ErrorKind, Geometry, IoError, Op, OpKind, Request, Tag};
use crate::limits::MAX_MEMBER_HOLES;
use rustix::fs::SeekFrom;
use rustix::io::{Errno, ReadWriteFlags};
use smallvec::SmallVec;
use std::cell::Cell;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// An open file or block device on a ring.
///
/// Requests are handed to the kernel by the ring's next [`enter`](Ring::enter). Dropping it cancels what is in
/// flight, releases its claim on the device once the kernel has let go of it, and does not flush.
pub struct File {
    ring: Ring,
    inbox: Rc<Inbox>,
    handle: Rc<Handle>,
    geometry: Geometry,
    path: PathBuf,
    memory_align: usize,
    in_memory: bool,
    is_block: bool,
    /// It is smaller than its geometry. Never unset.
    shrunk: Cell<bool>,
    warning: Option<Warning>,
}

impl File {
    /// Opens and claims a device as `how` says. Every error names the device and the remedy.
    pub fn open(path: &Path, ring: &Ring, how: OpenHow) -> Result<File, OpenError> {
        let opened = open(path, how)?;
        let shape = super::geometry::probe(path, how, &opened)?;
        let missed_direct = how.direct && !opened.direct;
        let Opened { fd, is_block, claims, .. } = opened;
        let fixed = ring.register_file(fd.as_raw_fd());
        let block_bytes = u64::from(shape.geometry.block_size.bytes());
        Ok(File {
            ring: ring.clone(),
            inbox: ring.new_inbox(),
            handle: Rc::new(Handle { fd, fixed, block_bytes, _claims: claims }),
            geometry: shape.geometry,
            path: path.to_owned(),
            memory_align: shape.memory_align,
            in_memory: shape.in_memory,
            is_block,
            shrunk: Cell::new(false),
            warning: missed_direct.then(|| Warning::Buffered { path: path.to_owned() }),
        })
    }

    /// What to tell the administrator, once.
    pub fn warning(&self) -> Option<&Warning> {
        self.warning.as_ref()
    }

    /// The name it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file system says are holes; of a block device nothing is known. It is asked once per hole, and may
    /// block: use it before the ring's thread has others to serve.
    pub fn holes(&self) -> Holes {
        let (mut holes, mut at, size) = (Holes::none(), 0, self.geometry.size_bytes);
        for _ in 0..MAX_MEMBER_HOLES {
            if self.is_block || at >= size {
                break;
            }
            let Ok(hole) = rustix::fs::seek(&self.handle.fd, SeekFrom::Hole(at)) else { break };
            at = match rustix::fs::seek(&self.handle.fd, SeekFrom::Data(hole)) {
                Ok(data) => data.min(size),
                // No data after it.
                Err(Errno::NXIO) => size,
                Err(_) => break,
            };
            holes.push(hole..at);
        }
        holes
    }

    fn start(&self, request: Request) {
        let Request { tag, op, deadline } = request;
        let (offset, len) = op.extent();
        let is_fua = matches!(op, Op::Write { fua: true, .. } | Op::WriteZeroes { fua: true, .. });
        if self.shrunk.get() || (is_fua && self.has_shrunk()) {
            return self.refuse_as_gone(tag, op);
        }
        let inline = self.in_memory && len <= MAX_INLINE_BYTES;
        let kind = match op {
            Op::Read { offset, bufs } if inline => return self.read_inline(tag, offset, bufs),
            Op::Write { offset, data, fua } if inline => return self.write_inline(tag, offset, &data, fua),
            Op::Read { bufs, .. } => {
                let mut bounce = BufList::new();
                if !bufs.iter().all(|buf| self.suits(buf)) {
                    match self.ring.slab().alloc_list(len as usize) {
                        Ok(aligned) => bounce = aligned,
                        Err(Exhausted { .. }) => {
                            return self.refuse_for_memory(tag, DiskKind::Read { bufs, bounce }, offset, len);
                        }
                    }
                }
                DiskKind::Read { bufs, bounce }
            }
            Op::Write { data, fua, .. } if data.iter().all(|view| self.suits(view)) => {
                DiskKind::Write { data, fua }
            }
            Op::Write { data, fua, .. } => match self.aligned_copy(&data, len) {
                Ok(data) => DiskKind::Write { data, fua },
                Err(Exhausted { .. }) => {
                    return self.refuse_for_memory(tag, DiskKind::Write { data, fua }, offset, len);
                }
            },
            Op::Flush => DiskKind::Flush,
            Op::Discard { .. } => DiskKind::Discard,
            Op::WriteZeroes { fua, unmap, .. } => {
                DiskKind::Zeroes { way: if unmap { ZeroWay::Punch } else { ZeroWay::Range }, fua }
            }
        };
        let work = Work::Disk(DiskOp::new(&self.handle, kind, offset, len));
        self.ring.start(&self.inbox, tag.0, deadline, work);
    }

    fn suits(&self, memory: &[u8]) -> bool {
        (memory.as_ptr() as usize | memory.len()).is_multiple_of(self.memory_align)
    }

    /// The bytes of `data` in fresh slab memory, whose alignment suits every device.
    fn aligned_copy(&self, data: &ViewList, len: u64) -> Result<ViewList, Exhausted> {
        let mut copy = self.ring.slab().alloc_list(len as usize)?;
        copy_pieces(data.iter().map(|view| &**view), copy.iter_mut().map(|buf| &mut **buf));
        Ok(copy.into_iter().map(Buf::freeze).collect())
    }

    fn refuse_for_memory(&self, tag: Tag, kind: DiskKind, offset: u64, len: u64) {
        self.answer(tag, kind, offset, len, Err(Failure::Errno(libc::ENOMEM)));
    }

    fn refuse_as_gone(&self, tag: Tag, op: Op) {
        let (offset, len) = op.extent();
        let kind = match op {
            Op::Read { bufs, .. } => DiskKind::Read { bufs, bounce: BufList::new() },
            Op::Write { data, fua, .. } => DiskKind::Write { data, fua },
            Op::Flush => DiskKind::Flush,
            Op::Discard { .. } => DiskKind::Discard,
            Op::WriteZeroes { fua, .. } => DiskKind::Zeroes { way: ZeroWay::Range, fua },
        };
        self.answer(tag, kind, offset, len, Err(Failure::Errno(libc::ENODEV)));
    }

    /// True if a regular file is smaller than its geometry, now or at an earlier look.
    fn has_shrunk(&self) -> bool {
        if !self.is_block && !self.shrunk.get() {
            let size =
                rustix::fs::fstat(&self.handle.fd).ok().and_then(|stat| u64::try_from(stat.st_size).ok());
            self.shrunk.set(size.is_some_and(|size| size < self.geometry.size_bytes));
        }
        self.shrunk.get()
    }

    fn answer(&self, tag: Tag, kind: DiskKind, offset: u64, len: u64, ending: Ending) {
        let work = Work::Disk(DiskOp::new(&self.handle, kind, offset, len));
        self.inbox.push(Done { token: tag.0, ending, work });
    }

    fn read_inline(&self, tag: Tag, offset: u64, mut bufs: BufList) {
        let len = list_len(&bufs);
        let mut slices: SmallVec<[IoSliceMut<'_>; 8]> =
            bufs.iter_mut().map(|buf| IoSliceMut::new(buf)).collect();
        let fd = self.handle.fd.as_fd();
        let mut rest = slices.as_mut_slice();
        let ending = transfer(len, |done| {
            IoSliceMut::advance_slices(&mut rest, done.last as usize);
            rustix::io::preadv(fd, rest, offset + done.total)
        });
        drop(slices);
        self.answer(tag, DiskKind::Read { bufs, bounce: BufList::new() }, offset, len, ending);
    }

    fn write_inline(&self, tag: Tag, offset: u64, data: &ViewList, fua: bool) {
        let len = list_len(data);
        let fd = self.handle.fd.as_fd();
        let flags = if fua { ReadWriteFlags::DSYNC } else { ReadWriteFlags::empty() };
        let mut slices: SmallVec<[IoSlice<'_>; 8]> = data.iter().map(|view| IoSlice::new(view)).collect();
        let mut rest = slices.as_mut_slice();
        let ending = transfer(len, |done| {
            IoSlice::advance_slices(&mut rest, done.last as usize);
            rustix::io::pwritev2(fd, rest, offset + done.total, flags)
        });
        self.answer(tag, DiskKind::Write { data: ViewList::new(), fua }, offset, len, ending);
    }

    fn completion(&self, done: Done, shrunk: &mut Option<bool>) -> Completion {
        let extent = done.work.extent().unwrap_or(Extent { kind: OpKind::Flush, offset: 0, len: 0 });
        let Extent { kind, offset, len } = extent;
        let ending = match done.ending {
            Ok(_) if changes_data(kind) && *shrunk.get_or_insert_with(|| self.has_shrunk()) => {
                Err(Failure::Errno(libc::ENODEV))
            }
            ending => ending,
        };
        let result = ending.map(|_| ()).map_err(|failure| match failure {
            Failure::Errno(errno) => IoError::from_errno(errno, kind, offset, len),
            // The end of the device, where its geometry says that it goes on.
            Failure::Short if kind == OpKind::Read => {
                self.shrunk.set(true);
                IoError::new(ErrorKind::Gone, kind, offset, len)
            }
            Failure::Short => IoError::new(ErrorKind::Short, kind, offset, len),
            Failure::Late => IoError::new(ErrorKind::Timeout, kind, offset, len),
        });
        let bufs = match done.work {
            Work::Disk(DiskOp { kind: DiskKind::Read { bufs, .. }, .. }) => bufs,
            _ => BufList::new(),
        };
        Completion { tag: Tag(done.token), result, bufs }
    }
}

impl BlockDev for File {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn refresh_size(&mut self) {
        // What cannot be asked is as large as it was.
        let Ok(bytes) = super::geometry::size_of(self.handle.fd.as_fd(), self.is_block) else { return };
        let size_bytes = Geometry::plain(bytes, self.geometry.block_size).size_bytes;
        if size_bytes > self.geometry.size_bytes && !self.shrunk.get() {
            self.geometry.size_bytes = size_bytes;
        }
    }

    fn submit(&mut self, request: Request) {
        self.start(request);
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        // Everything in the inbox has been done: one look at the size, after it, is good for all of it.
        let mut shrunk = None;
        while let Some(answer) = self.inbox.pop() {
            done.push(self.completion(answer, &mut shrunk));
        }
    }

    fn cancel(&mut self, tag: Tag) {
        self.ring.cancel(&self.inbox, tag.0);
    }
}

impl Drop for File {
    fn drop(&mut self) {
        self.ring.close(&self.inbox);
        if let Some(index) = self.handle.fixed {
            self.ring.unregister_file(index);
        }
    }
}

fn changes_data(kind: OpKind) -> bool {
    matches!(kind, OpKind::Write | OpKind::WriteZeroes | OpKind::Discard)
}

/// How far an inline transfer has come: in all, and in the last round.
struct Progress {
    total: u64,
    last: u64,
}

/// Repeats `round` until `len` bytes are moved, none is, or it fails.
fn transfer(len: u64, mut round: impl FnMut(Progress) -> rustix::io::Result<usize>) -> Ending {
    let (mut total, mut last) = (0, 0);
    while total < len {
        match round(Progress { total, last }) {
            Ok(0) => return Err(Failure::Short),
            Ok(count) => {
                last = count as u64;
                total += last;
            }
            Err(Errno::INTR) => last = 0,
            Err(errno) => return Err(Failure::Errno(errno.raw_os_error())),
        }
    }
    Ok(Outcome::Bytes(len))
}
