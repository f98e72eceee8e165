//! One connection of a device: requests go out together, replies come in as they come.
//!
//! Invariants: at most one send and one receive in flight; while data of a read is received straight into the read's
//! memory nothing else is received. When a connection ends, whatever of it is still in the kernel comes back in
//! events whose tokens name it, and the memory with it.

use super::blocking::Dialled;
use super::codec::Codec;
use super::error::{ClientError, Doing};
use super::job::{Job, JobId, Jobs};
use super::reply::{Part, Refusal, ReplyParser};
use super::request::Head;
use super::terms::Terms;
use crate::limits::{CLIENT_QUEUE_DEPTH, DIRECT_RECEIVE_BYTES, MAX_SEALED_BYTES};
use crate::proto::wire::cmd;
use raidcore::buf::{Buf, View};
use raidcore::uring::{Event, EventMemory, Outcome, Port, SendPart, SharedFd};
use rustix::net::{SendFlags, Shutdown};
use smallvec::SmallVec;
use std::sync::Arc;

/// Which of a connection's operations an event is of: the low bits of its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SocketOp {
    Receive = 0,
    Send = 1,
    /// Straight into the memory of a read.
    Direct = 2,
}

impl SocketOp {
    /// The connection and the operation that a token names.
    pub(super) fn of_token(token: u64) -> (u64, SocketOp) {
        let op = match token & 3 {
            0 => SocketOp::Receive,
            1 => SocketOp::Send,
            _ => SocketOp::Direct,
        };
        (token >> 2, op)
    }
}

/// What the first record of a request adds to it, at most; further ones add as much for 16 KiB each.
const SEALING_BYTES: usize = 64;

/// A request that was answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) job: JobId,
    pub(super) result: Result<(), Refusal>,
}

/// A connection on which requests are served.
pub(super) struct Link {
    /// Never used again.
    pub(super) id: u64,
    pub(super) terms: Terms,
    fd: SharedFd,
    codec: Codec,
    parser: ReplyParser,
    /// Where replies are received; `None` while they are.
    staging: Option<Buf>,
    outbox: Vec<SendPart>,
    /// Encrypted bytes in the outbox and on their way.
    sealed: usize,
    is_sending: bool,
    /// The read that data is received for directly, and how much.
    direct: Option<(JobId, u64)>,
}

impl Link {
    pub(super) fn new(id: u64, dialled: Dialled, staging: Buf) -> Link {
        Link {
            id,
            terms: dialled.export,
            fd: Arc::new(dialled.stream),
            codec: dialled.codec,
            parser: ReplyParser::new(dialled.export.replies),
            staging: Some(staging),
            outbox: Vec::new(),
            sealed: 0,
            is_sending: false,
            direct: None,
        }
    }

    /// Requests in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.parser.unanswered()
    }

    /// True if one more request may be sent.
    pub(super) fn has_room(&self) -> bool {
        self.in_flight() < CLIENT_QUEUE_DEPTH as usize && self.sealed < MAX_SEALED_BYTES
    }

    /// Puts the next piece of a job into the outbox.
    pub(super) fn queue(&mut self, id: JobId, job: &mut Job, zeroes: Option<&View>) {
        let piece = job.next_piece(&self.terms, self.codec.is_tls(), zeroes);
        let cookie = job.set_out(id, self.id);
        match piece.kind {
            cmd::READ => self.parser.expect_read(cookie, piece.offset, piece.len),
            _ => self.parser.expect(cookie),
        }
        let head =
            Head { kind: piece.kind, flags: piece.flags, cookie, offset: piece.offset, len: piece.len };
        let head = SendPart::Bytes(head.bytes(self.terms.replies));
        if !self.codec.is_tls() {
            self.outbox.push(head);
            self.outbox.extend(piece.payload);
            return;
        }
        let parts: SmallVec<[&[u8]; 8]> =
            std::iter::once(&head).chain(&piece.payload).map(|part| &part[..]).collect();
        let plain: usize = parts.iter().map(|part| part.len()).sum();
        let mut sealed = Vec::with_capacity(plain + SEALING_BYTES + plain / 256);
        self.codec.seal(&parts, &mut sealed);
        self.push_sealed(sealed);
    }

    fn push_sealed(&mut self, sealed: Vec<u8>) {
        self.sealed += sealed.len();
        if !sealed.is_empty() {
            self.outbox.push(SendPart::Bytes(SmallVec::from_vec(sealed)));
        }
    }

    /// Hands the outbox over, unless the last one is still on its way.
    pub(super) fn pump(&mut self, port: &Port) {
        if !self.is_sending && !self.outbox.is_empty() {
            self.is_sending = true;
            port.send(&self.fd, std::mem::take(&mut self.outbox), self.token(SocketOp::Send));
        }
    }

    /// Begins to receive.
    pub(super) fn start(&mut self, port: &Port) {
        if let Some(staging) = self.staging.take() {
            port.recv(&self.fd, staging, self.token(SocketOp::Receive));
        }
    }

    /// Works an event off. Memory of a direct receive must have been restored to its job before.
    pub(super) fn on_event(
        &mut self,
        op: SocketOp,
        event: Event,
        jobs: &mut Jobs,
        port: &Port,
        answers: &mut Vec<Answer>,
    ) -> Result<(), ClientError> {
        // Its memory is back, however it ended.
        let direct = if op == SocketOp::Direct { self.direct.take() } else { None };
        let count = match event.result {
            Ok(Outcome::Bytes(count)) => count,
            Ok(_) => 0,
            Err(error) => return Err(ClientError::Io(error)),
        };
        match (op, event.memory) {
            (SocketOp::Send, _) => {
                self.is_sending = false;
                self.sealed = self.outbox.iter().map(|part| part.len()).sum::<usize>();
                self.sealed = if self.codec.is_tls() { self.sealed } else { 0 };
                return Ok(());
            }
            (_, _) if count == 0 => return Err(ClientError::Closed(Doing::Transmission)),
            (SocketOp::Receive, EventMemory::Buf(buf)) => {
                let parser = &mut self.parser;
                let opened =
                    self.codec.open(&buf[..count as usize], |plain| parse(parser, plain, jobs, answers));
                self.staging = Some(buf);
                opened?;
                let mut told = Vec::new();
                if self.codec.is_tls() {
                    self.codec.seal(&[], &mut told);
                    self.push_sealed(told);
                }
            }
            (SocketOp::Direct, _) => {
                let asked = direct.map_or(0, |(_, len)| len);
                if count < asked {
                    return Err(ClientError::Closed(Doing::Transmission));
                }
                self.parser.took_data(count);
                parse(&mut self.parser, &[], jobs, answers)?;
            }
            (SocketOp::Receive, _) => return Err(ClientError::Closed(Doing::Transmission)),
        }
        self.go_on(jobs, port);
        Ok(())
    }

    /// Receives what comes next: much data of one read where it belongs, anything else into the staging memory.
    fn go_on(&mut self, jobs: &mut Jobs, port: &Port) {
        if let Some(awaited) = self.parser.awaited()
            && awaited.len >= DIRECT_RECEIVE_BYTES as u64
            && !self.codec.is_tls()
        {
            let id = JobId::of_cookie(awaited.cookie);
            let lent = jobs.get_mut(&id).and_then(|job| job.memory.lend(job.place(awaited.at), awaited.len));
            if let Some(bufs) = lent {
                self.direct = Some((id, awaited.len));
                port.recv_all(&self.fd, bufs, self.token(SocketOp::Direct));
                return;
            }
        }
        self.start(port);
    }

    /// The read whose memory is on loan to this connection.
    pub(super) fn borrower(&self) -> Option<JobId> {
        self.direct.map(|(id, _)| id)
    }

    /// Ends the connection: nothing more is sent or received, and what is in the kernel comes back.
    pub(super) fn hang_up(&self) {
        // A socket that the peer has closed is as good as shut.
        rustix::net::shutdown(&self.fd, Shutdown::Both).unwrap_or_default();
    }

    /// Takes leave, as far as that can be done without waiting.
    pub(super) fn say_good_bye(&self) {
        if !self.is_sending && !self.codec.is_tls() {
            let head = Head { kind: cmd::DISC, flags: 0, cookie: 0, offset: 0, len: 0 };
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            // Who does not take it sees the end of the connection.
            rustix::net::send(&self.fd, &head.bytes(self.terms.replies), flags).unwrap_or_default();
        }
        rustix::net::shutdown(&self.fd, Shutdown::Write).unwrap_or_default();
    }

    fn token(&self, op: SocketOp) -> u64 {
        self.id << 2 | op as u64
    }
}

/// Takes bytes of the protocol: data goes to the memory of its job, answers to the list.
fn parse(
    parser: &mut ReplyParser,
    mut input: &[u8],
    jobs: &mut Jobs,
    answers: &mut Vec<Answer>,
) -> Result<(), ClientError> {
    loop {
        let (taken, part) = parser.next(input);
        match part.map_err(ClientError::Broken)? {
            Part::More => return Ok(()),
            Part::Data { cookie, at, input: range } => {
                // A read that was given up has no job any more, and its data no place to go.
                if let Some(job) = jobs.get_mut(&JobId::of_cookie(cookie)) {
                    let at = job.place(at);
                    job.memory.fill(at, &input[range]);
                }
            }
            Part::Zeroes { cookie, at, len } => {
                if let Some(job) = jobs.get_mut(&JobId::of_cookie(cookie)) {
                    let at = job.place(at);
                    job.memory.zero(at, len);
                }
            }
            Part::Answer { cookie, result } => answers.push(Answer { job: JobId::of_cookie(cookie), result }),
        }
        input = &input[taken..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::terms::{BlockSizes, Replies};
    use raidcore::buf::{Slab, SlabConfig};
    use raidcore::time::Clock;
    use raidcore::uring::{Ring, RingConfig};
    use rustix::io::Errno;
    use std::os::unix::net::UnixStream;

    /// The memory was back and the connection still named its borrower: whoever hung it up noted a loan that no event
    /// would ever end.
    #[test]
    fn a_receive_into_a_reads_memory_that_fails_leaves_no_loan() {
        let slab = Slab::new(&SlabConfig::small()).unwrap();
        let ring = Ring::new(&RingConfig::default(), &Clock::monotonic(), &slab).unwrap();
        let export = Terms {
            size_bytes: 1 << 20,
            flags: 5,
            block: BlockSizes::default(),
            block_announced: false,
            replies: Replies::Simple,
        };
        let stream = UnixStream::pair().unwrap().0.into();
        let dialled = Dialled { stream, export, codec: Codec::default() };
        let mut link = Link::new(1, dialled, slab.alloc(4096).unwrap());
        link.direct = Some((JobId(7), 65536));
        let broken = Event { token: 6, result: Err(Errno::CONNRESET.into()), memory: EventMemory::None };
        let worked = link.on_event(SocketOp::Direct, broken, &mut Jobs::new(), &ring.port(), &mut Vec::new());
        assert!(worked.is_err());
        assert_eq!(link.borrower(), None);
    }
}
