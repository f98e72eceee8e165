//! Socket operations: what the kernel is told, and what its answers mean.
//!
//! A send goes on until everything is sent or it fails; a `recv_all` until its memory is full or the peer has
//! closed. A peer that is gone is an error and never a signal (MSG_NOSIGNAL).
#![allow(unsafe_code)] // takes over descriptors that the kernel made

use super::limits::{MAX_IOVECS, MAX_RETRIES};
use super::port::{Outcome, SendPart, SharedFd};
use super::slot::{Failure, Scratch, Step};
use crate::buf::{Buf, BufList, list_len};
use io_uring::{opcode, squeue, types};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

pub(super) struct SocketOp {
    pub(super) fd: SharedFd,
    pub(super) kind: SocketKind,
    retries: u8,
}

pub(super) enum SocketKind {
    Accept,
    Poll,
    Recv(Buf),
    RecvInto {
        bufs: BufList,
        /// Go on until all is received.
        whole: bool,
        received: u64,
    },
    Send {
        parts: Vec<SendPart>,
        sent: u64,
        /// `sent <= total`, the length of all parts.
        total: u64,
    },
}

impl SocketOp {
    pub(super) fn new(fd: SharedFd, kind: SocketKind) -> SocketOp {
        SocketOp { fd, kind, retries: 0 }
    }

    /// The entry that starts the operation, or goes on with it. The memory it points to is owned by `self` and
    /// `scratch`.
    pub(super) fn prepare(&mut self, scratch: &mut Scratch) -> squeue::Entry {
        let fd = types::Fd(self.fd.as_raw_fd());
        match &mut self.kind {
            SocketKind::Accept => opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut())
                .flags(libc::SOCK_CLOEXEC)
                .build(),
            SocketKind::Poll => opcode::PollAdd::new(fd, libc::POLLIN as u32).build(),
            SocketKind::Recv(buf) => opcode::Recv::new(fd, buf.as_mut_raw(), buf.len() as u32).build(),
            SocketKind::RecvInto { bufs, whole, received } => {
                let pieces = bufs.iter_mut().map(|buf| (buf.as_mut_raw().cast_const(), buf.len()));
                let complete = fill_iovecs(&mut scratch.iov, pieces, *received);
                let flags = if *whole && complete { libc::MSG_WAITALL } else { 0 };
                opcode::RecvMsg::new(fd, message(scratch)).flags(flags as u32).build()
            }
            SocketKind::Send { parts, sent, .. } => {
                let pieces = parts.iter().map(|part| (part.as_ptr(), part.len()));
                let complete = fill_iovecs(&mut scratch.iov, pieces, *sent);
                // MSG_WAITALL lets the kernel go on after a partial send without asking us.
                let wait_all = if complete { libc::MSG_WAITALL } else { 0 };
                let flags = libc::MSG_NOSIGNAL | wait_all;
                match scratch.iov.as_slice() {
                    [only] => {
                        opcode::Send::new(fd, only.iov_base.cast(), only.iov_len as u32).flags(flags).build()
                    }
                    _ => opcode::SendMsg::new(fd, message(scratch)).flags(flags as u32).build(),
                }
            }
        }
    }

    pub(super) fn advance(&mut self, result: i32) -> Step {
        let Ok(count) = u32::try_from(result) else {
            return self.failed(-result);
        };
        match &mut self.kind {
            SocketKind::Accept => {
                // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
                let fd = unsafe { OwnedFd::from_raw_fd(result) };
                Step::Done(Ok(Outcome::Accepted(fd)))
            }
            SocketKind::Poll => Step::Done(Ok(Outcome::Readable)),
            SocketKind::Recv(_) => Step::Done(Ok(Outcome::Bytes(u64::from(count)))),
            SocketKind::RecvInto { bufs, whole, received } => {
                *received += u64::from(count);
                let more = *whole && count > 0 && *received < list_len(bufs);
                if more { Step::Again } else { Step::Done(Ok(Outcome::Bytes(*received))) }
            }
            SocketKind::Send { sent, total, .. } => {
                *sent += u64::from(count);
                match (*sent == *total, count) {
                    (true, _) => Step::Done(Ok(Outcome::Bytes(*sent))),
                    // No stream socket takes nothing of something; going on could spin.
                    (false, 0) => Step::Done(Err(Failure::Errno(libc::EPIPE))),
                    (false, _) => Step::Again,
                }
            }
        }
    }

    fn failed(&mut self, errno: i32) -> Step {
        self.retries += 1;
        let interrupted = errno == libc::EINTR && self.retries <= MAX_RETRIES;
        if interrupted { Step::Again } else { Step::Done(Err(Failure::Errno(errno))) }
    }
}

/// Fills `iov` with what is left of `pieces` after `skip` bytes; false if not all of it fits one call.
pub(super) fn fill_iovecs(
    iov: &mut Vec<libc::iovec>,
    pieces: impl Iterator<Item = (*const u8, usize)>,
    skip: u64,
) -> bool {
    iov.clear();
    let mut skip = skip;
    for (start, len) in pieces {
        let skipped = (len as u64).min(skip) as usize;
        skip -= skipped as u64;
        if skipped == len {
            continue;
        }
        if iov.len() == MAX_IOVECS {
            return false;
        }
        let iov_base = start.wrapping_add(skipped).cast_mut().cast();
        iov.push(libc::iovec { iov_base, iov_len: len - skipped });
    }
    true
}

/// A message header over the scratch's iovecs; it stays where it is while the scratch moves.
fn message(scratch: &mut Scratch) -> *mut libc::msghdr {
    let header = scratch.msg.get_or_insert_with(|| {
        // SAFETY: a message header of zeroes is a valid one: no address, no data, no control message.
        Box::new(unsafe { std::mem::zeroed::<libc::msghdr>() })
    });
    header.msg_iov = scratch.iov.as_mut_ptr();
    header.msg_iovlen = scratch.iov.len() as _;
    &mut **header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iovecs_start_where_the_last_round_ended() {
        let bytes = [0u8; 10];
        let pieces = [(bytes.as_ptr(), 4), (bytes.as_ptr(), 0), (bytes.as_ptr(), 6)];
        let lens = |skip| {
            let mut iov = Vec::new();
            assert!(fill_iovecs(&mut iov, pieces.into_iter(), skip));
            iov.iter().map(|v| v.iov_len).collect::<Vec<_>>()
        };
        assert_eq!(lens(0), [4, 6]);
        assert_eq!(lens(3), [1, 6]);
        assert_eq!(lens(4), [6]);
        assert_eq!(lens(9), [1]);
        assert_eq!(lens(10), [0; 0]);
    }

    #[test]
    fn more_pieces_than_one_call_takes_are_said_to_be_more() {
        let bytes = [0u8; 1];
        let mut iov = Vec::new();
        assert!(!fill_iovecs(&mut iov, (0..=MAX_IOVECS).map(|_| (bytes.as_ptr(), 1)), 0));
        assert_eq!(iov.len(), MAX_IOVECS);
    }
}
