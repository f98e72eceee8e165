//! A port: socket operations of one owner and the queue of their answers.
//!
//! Memory moves in with an operation and comes back with its [`Event`]. Descriptors are shared ([`SharedFd`]): an
//! operation in flight holds its own handle, so that no descriptor number is reused under the kernel. They must
//! be in blocking mode, as they are made: io_uring answers EAGAIN at once on a non-blocking one.
//!
//! Operations have no deadline unless [`Port::give_up_at`] sets one: an idle client may stay for ever.

use super::ring::Ring;
use super::slot::{Done, Failure, Inbox, Work};
use super::socket::{SocketKind, SocketOp};
use crate::buf::{Buf, BufList, View};
use crate::time::Time;
use smallvec::SmallVec;
use std::io;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

/// A descriptor that stays open while an operation on it is in flight, whoever else drops it.
pub type SharedFd = Arc<OwnedFd>;

/// A completion queue for one owner, and its way to start socket operations.
///
/// Every operation carries a token of the caller's choice, which comes back in its event, exactly once. When a
/// port is dropped, its operations are cancelled, and their memory is freed when the kernel lets go of it.
pub struct Port {
    ring: Ring,
    inbox: Rc<Inbox>,
}

/// A piece of what is sent.
#[derive(Debug)]
pub enum SendPart {
    /// A few bytes, such as a header; up to 40 stay off the heap.
    Bytes(SmallVec<[u8; 40]>),
    /// Shared payload.
    View(View),
    /// Payload of its own.
    Buf(Buf),
}

impl Deref for SendPart {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            SendPart::Bytes(bytes) => bytes,
            SendPart::View(view) => view,
            SendPart::Buf(buf) => buf,
        }
    }
}

/// What an operation achieved.
#[derive(Debug)]
pub enum Outcome {
    /// Bytes received or sent. 0 received means that the peer has closed (or that there was no room).
    Bytes(u64),
    /// A connection was accepted.
    Accepted(OwnedFd),
    /// The descriptor can be read, or has an error to be read.
    Readable,
}

/// The memory of an operation, given back.
#[derive(Debug)]
pub enum EventMemory {
    /// It had none, or it was given up and the kernel still has it.
    None,
    /// Of [`Port::recv`].
    Buf(Buf),
    /// Of [`Port::recv_into`] and [`Port::recv_all`].
    Bufs(BufList),
    /// Of [`Port::send`].
    Parts(Vec<SendPart>),
}

/// The answer to an operation.
#[derive(Debug)]
pub struct Event {
    /// The operation's token.
    pub token: u64,
    /// How it ended; the error always carries an error number: ETIMEDOUT when its deadline has passed,
    /// ECANCELED when it was cancelled.
    pub result: io::Result<Outcome>,
    /// Its memory.
    pub memory: EventMemory,
}

impl Port {
    pub(super) fn new(ring: &Ring) -> Port {
        Port { ring: ring.clone(), inbox: ring.new_inbox() }
    }

    /// Accepts one connection of a listening socket. Its descriptor is in blocking mode, as the ring needs it.
    pub fn accept(&self, fd: &SharedFd, token: u64) {
        self.start(fd, SocketKind::Accept, token);
    }

    /// Receives what there is, at least one byte, into `buf`; `Bytes(0)` means that the peer has closed.
    pub fn recv(&self, fd: &SharedFd, buf: Buf, token: u64) {
        self.start(fd, SocketKind::Recv(buf), token);
    }

    /// As [`recv`](Port::recv), into several buffers in order.
    pub fn recv_into(&self, fd: &SharedFd, bufs: BufList, token: u64) {
        self.start(fd, SocketKind::RecvInto { bufs, whole: false, received: 0 }, token);
    }

    /// Receives until all of `bufs` is filled; fewer bytes mean that the peer has closed. After an error or a
    /// cancellation it is unknown how much was taken from the socket.
    pub fn recv_all(&self, fd: &SharedFd, bufs: BufList, token: u64) {
        self.start(fd, SocketKind::RecvInto { bufs, whole: true, received: 0 }, token);
    }

    /// Sends all parts in order, whatever their number and size; answered with `Bytes` of their total when
    /// everything was taken. Two sends in flight on one socket may mix: send one at a time.
    pub fn send(&self, fd: &SharedFd, parts: Vec<SendPart>, token: u64) {
        let total = parts.iter().map(|part| part.len() as u64).sum();
        self.start(fd, SocketKind::Send { parts, sent: 0, total }, token);
    }

    /// Answers when the descriptor can be read.
    pub fn poll_readable(&self, fd: &SharedFd, token: u64) {
        self.start(fd, SocketKind::Poll, token);
    }

    /// Asks to give up the operations with this token. Their events come all the same: cancelled, or however
    /// they ended first. Looks through all operations in flight: for rare use.
    pub fn cancel(&self, token: u64) {
        self.ring.cancel(&self.inbox, token);
    }

    /// Sets the deadline of the operations in flight with this token. At that time they are answered with
    /// ETIMEDOUT and cancelled; memory that the kernel still holds is not given back. The state of the stream
    /// is unknown then. Looks through all operations in flight: for rare use.
    pub fn give_up_at(&self, token: u64, deadline: Time) {
        self.ring.set_deadline(&self.inbox, token, deadline);
    }

    /// The next event, in order of arrival.
    pub fn next(&self) -> Option<Event> {
        let Done { token, ending, work } = self.inbox.pop()?;
        let memory = match work {
            Work::Socket(op) => match op.kind {
                SocketKind::Recv(buf) => EventMemory::Buf(buf),
                SocketKind::RecvInto { bufs, .. } => EventMemory::Bufs(bufs),
                SocketKind::Send { parts, .. } => EventMemory::Parts(parts),
                SocketKind::Accept | SocketKind::Poll => EventMemory::None,
            },
            Work::None | Work::Disk(_) | Work::Kept(_) => EventMemory::None,
        };
        let result = ending.map_err(|failure| {
            io::Error::from_raw_os_error(match failure {
                Failure::Errno(errno) => errno,
                Failure::Late => libc::ETIMEDOUT,
                Failure::Short => libc::EPIPE,
            })
        });
        Some(Event { token, result, memory })
    }

    /// True if an event waits.
    pub fn is_ready(&self) -> bool {
        !self.inbox.is_empty()
    }

    fn start(&self, fd: &SharedFd, kind: SocketKind, token: u64) {
        let work = Work::Socket(SocketOp::new(Arc::clone(fd), kind));
        self.ring.start(&self.inbox, token, Time::NEVER, work);
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.ring.close(&self.inbox);
    }
}
