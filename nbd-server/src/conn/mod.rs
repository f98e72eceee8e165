//! One client: bytes between its socket and the protocol, requests between the protocol and its export.
//!
//! A connection never blocks and never waits for itself: it reacts to the end of a receive, of a send, and of a
//! request, and is *settled* once after all events of a turn: whatever became ready goes out in one send.
//!
//! Life: handshake -> transmission -> `closing` (the client took its leave or is asked to go: what is in flight is
//! finished and answered) -> `dead` (the socket is shut; nothing is sent any more) -> gone, once neither the
//! kernel nor a device holds anything of it ([`Conn::is_gone`]).
//!
//! With TLS, `input` is ciphertext, and the plaintext of a record is taken apart before more of it is decrypted.
//!
//! Invariants: at most one receive and one send in flight; no receive while input waits to be taken apart; nothing
//! is sent or taken in clear once the answer to STARTTLS is out.

mod budget;
mod flights;
mod long;
mod memory;
mod outbox;
mod patience;
mod payload;
mod seal;
mod session;
mod sparse;
mod status;

pub(crate) use budget::{Pool, Share};
pub(crate) use flights::connection_of;
pub(crate) use session::ExportState;
pub use session::Traffic;

use crate::access::Peer;
use crate::engine::Engine;
use crate::export::Exports;
use crate::limits::{LARGE_RECEIVE_BYTES, SMALL_RECEIVE_BYTES};
use crate::offers::Offers;
use crate::proto::{Handshake, Negotiated, Progress, Terms, TlsState, Violation};
use crate::tls::{ServerTls, TlsError, TlsMode};
use budget::Budget;
use outbox::Outbox;
use raidcore::buf::{Buf, BufList, Slab};
use raidcore::dev::Completion;
use raidcore::time::Time;
use raidcore::uring::{Event, EventMemory, Outcome, Port, SharedFd};
use seal::Seal;
use session::{Flow, Session};
use std::rc::Rc;

/// What a connection works with during one call.
pub(crate) struct Context<'a> {
    pub(crate) connection: u16,
    pub(crate) port: &'a Port,
    pub(crate) slab: &'a Slab,
    pub(crate) exports: &'a Exports,
    pub(crate) states: &'a [Rc<ExportState>],
    pub(crate) engine: &'a mut dyn Engine,
    /// One more handle is a permit for a large receive, or a large send with TLS; there are at most
    /// `max_large_receives`.
    pub(crate) large_receives: &'a Rc<()>,
    pub(crate) max_large_receives: usize,
    /// When requests submitted now are given up.
    pub(crate) deadline: Time,
    pub(crate) generation: &'a mut u32,
    /// Set when something was submitted: the engine must be reaped to have it started.
    pub(crate) submitted: bool,
    /// Set when a request found no memory.
    pub(crate) starved: bool,
    pub(crate) now: Time,
}

impl Context<'_> {
    fn next_generation(&mut self) -> u32 {
        *self.generation = self.generation.wrapping_add(1);
        *self.generation
    }

    /// A permit for one more large buffer beside those of requests, if there is one.
    fn large_permit(&self) -> Option<Rc<()>> {
        let free = Rc::strong_count(self.large_receives) <= self.max_large_receives;
        free.then(|| Rc::clone(self.large_receives))
    }

    fn token(&self, op: SocketOp) -> u64 {
        u64::from(self.connection) << 1 | op as u64
    }
}

/// Which of a connection's socket operations an event belongs to: the low bit of its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SocketOp {
    Receive = 0,
    Send = 1,
}

/// The number of the connection that a token belongs to.
pub(crate) fn connection_of_token(token: u64) -> u16 {
    (token >> 1) as u16
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) peer: Peer,
    /// What it shares with the other connections of its client.
    share: Rc<Share>,
    fd: SharedFd,
    phase: Phase,
    /// Received and not yet taken apart.
    input: Option<Input>,
    receiving: Receiving,
    /// Bytes of the next receive: grows and shrinks with what arrives.
    receive_bytes: usize,
    outbox: Outbox,
    /// To start TLS with.
    certificates: Option<ServerTls>,
    /// The answer to STARTTLS is on its way out: TLS begins when it is.
    starting_tls: bool,
    seal: Option<Box<Seal>>,
    closing: bool,
    dead: bool,
    accepted_at: Time,
    /// When it was last given something to send, or had taken it.
    sent_at: Time,
    /// When it last sent something worth waiting for more: a few bytes of a payload are not.
    received_at: Time,
    /// When it last sent anything at all.
    heard_at: Time,
    /// When it was first settled while closing.
    closing_since: Option<Time>,
    /// Held while the memory of a receive is large.
    large_receive: Option<Rc<()>>,
}

#[derive(Debug)]
enum Phase {
    Handshake(Handshake),
    Session(Box<Session>),
}

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
enum Offence {
    #[error(transparent)]
    Violation(#[from] Violation),
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
}

/// `from < to <= buf.len()`.
#[derive(Debug)]
struct Input {
    buf: Buf,
    from: usize,
    to: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receiving {
    No,
    Stream,
    /// The rest of a payload, straight into the memory it is written from.
    Direct,
}

impl Conn {
    /// A connection that was just accepted; the greeting is queued. It may use TLS as `mode` says, with these
    /// certificates.
    pub(crate) fn new(
        fd: SharedFd,
        peer: Peer,
        share: Rc<Share>,
        mode: TlsMode,
        certificates: Option<ServerTls>,
        now: Time,
    ) -> Conn {
        let tls = TlsState::Clear { mode, is_possible: certificates.is_some() };
        let mut outbox = Outbox::default();
        outbox.push_bytes(&Handshake::greeting());
        Conn {
            peer,
            share,
            fd,
            phase: Phase::Handshake(Handshake::with_tls(tls)),
            input: None,
            receiving: Receiving::No,
            receive_bytes: SMALL_RECEIVE_BYTES,
            outbox,
            certificates,
            starting_tls: false,
            seal: None,
            closing: false,
            dead: false,
            accepted_at: now,
            sent_at: now,
            received_at: now,
            heard_at: now,
            closing_since: None,
            large_receive: None,
        }
    }

    /// The end of a receive or a send.
    pub(crate) fn on_event(&mut self, event: Event, ctx: &mut Context<'_>) {
        if event.token & 1 == SocketOp::Send as u64 {
            self.sent_at = ctx.now;
            let parts = match event.memory {
                EventMemory::Parts(parts) => parts,
                _ => Vec::new(),
            };
            self.outbox.sent(parts, self.seal.as_deref());
            if let Err(error) = event.result {
                tracing::debug!(peer = %self.peer, %error, "client does not take its replies");
                self.lose();
            }
        } else {
            self.heard_at = ctx.now;
            let is_little =
                matches!(event.result, Ok(Outcome::Bytes(bytes)) if bytes < SMALL_RECEIVE_BYTES as u64);
            if !(is_little && self.payload_left() > 0) {
                self.received_at = ctx.now;
            }
            self.on_received(event);
        }
        self.advance(ctx);
    }

    /// A device has answered one of this connection's requests.
    pub(crate) fn complete(&mut self, completion: Completion, ctx: &mut Context<'_>) {
        if let Phase::Session(session) = &mut self.phase {
            session.complete(completion, &mut self.outbox, ctx);
        }
        if self.dead {
            self.outbox.clear();
        }
    }

    /// Takes requests off the input as far as there is room. Called again when there may be more room.
    pub(crate) fn advance(&mut self, ctx: &mut Context<'_>) {
        if self.closing || self.dead {
            self.input = None;
            return;
        }
        self.start_tls_when_due();
        let was_parked = self.is_parked();
        let mut input = self.input.take();
        let mut seal = self.seal.take();
        let end = match &mut seal {
            None => self.digest_input(&mut input, ctx),
            Some(seal) => self.digest_sealed(seal, &mut input, ctx),
        };
        self.seal = seal;
        self.input = input.filter(|input| input.from < input.to && !self.closing);
        if was_parked && !self.is_parked() {
            // Nothing was taken from it meanwhile: it was not the client that did not move.
            self.received_at = ctx.now;
        }
        if let Err(offence) = end {
            tracing::info!(peer = %self.peer, %offence, "client breaks the protocol");
            self.close();
        }
    }

    /// Takes apart what came in clear.
    fn digest_input(&mut self, input: &mut Option<Input>, ctx: &mut Context<'_>) -> Result<(), Offence> {
        let mut rest = input.as_ref().map_or(&[][..], |input| &input.buf[input.from..input.to]);
        let given = rest.len();
        let end = self.digest(&mut rest, ctx);
        let taken = given - rest.len();
        if let Some(input) = input {
            input.from += taken;
        }
        Ok(end?)
    }

    /// Decrypts and takes apart a record at a time, as long as all that was in it could be taken.
    fn digest_sealed(
        &mut self,
        seal: &mut Seal,
        input: &mut Option<Input>,
        ctx: &mut Context<'_>,
    ) -> Result<(), Offence> {
        loop {
            let mut rest = seal.channel.plaintext();
            let given = rest.len();
            let end = self.digest(&mut rest, ctx);
            let left = rest.len();
            seal.channel.consume(given - left);
            end?;
            if left > 0 || self.closing || self.is_parked() {
                return Ok(());
            }
            match input {
                _ if seal.channel.received() > 0 => {}
                Some(input) if input.from < input.to => {
                    input.from += seal.channel.feed(&input.buf[input.from..input.to])?;
                }
                _ => break,
            }
        }
        if seal.channel.peer_has_closed() {
            self.close();
        }
        Ok(())
    }

    /// Takes options and requests off the front of `rest`, as far as there is room.
    fn digest(&mut self, rest: &mut &[u8], ctx: &mut Context<'_>) -> Result<(), Violation> {
        while !self.closing {
            match &mut self.phase {
                Phase::Handshake(_) if !self.outbox.is_idle() => break,
                Phase::Handshake(handshake) => {
                    let mut reply = Vec::new();
                    let (taken, progress) =
                        handshake.feed(rest, &Offers::to(&self.peer, ctx.exports), &mut reply);
                    *rest = &rest[taken..];
                    self.outbox.push_bytes(&reply);
                    match progress? {
                        Progress::More => break,
                        Progress::Answered => {}
                        Progress::StartTls => self.starting_tls = true,
                        Progress::Chosen(chosen) => self.choose(chosen, ctx),
                        Progress::Aborted => self.close(),
                    }
                }
                Phase::Session(session) => match session.advance(rest, &mut self.outbox, ctx)? {
                    Flow::More | Flow::Parked => break,
                    Flow::Disconnect => self.close(),
                },
            }
        }
        Ok(())
    }

    /// Once the answer to STARTTLS is out, everything else is encrypted.
    #[cfg_attr(not(feature = "tls"), allow(unreachable_code, reason = "there are no channels"))]
    fn start_tls_when_due(&mut self) {
        if !self.starting_tls || !self.outbox.is_idle() {
            return;
        }
        self.starting_tls = false;
        match self.certificates.take().map(|certificates| certificates.channel()) {
            Some(Ok(channel)) => self.seal = Some(Box::new(Seal::new(channel))),
            failed => {
                tracing::error!(peer = %self.peer, ?failed, "cannot start TLS");
                self.close();
            }
        }
    }

    /// Sends what is ready, receives if there is room, and shuts the socket once the last reply is out.
    pub(crate) fn settle(&mut self, ctx: &mut Context<'_>) {
        if self.dead {
            return;
        }
        self.flush(ctx);
        if self.closing {
            self.closing_since.get_or_insert(ctx.now);
        }
        if self.closing && self.in_flight() == 0 && self.is_all_sent() && !self.says_good_bye(ctx) {
            self.kill();
        } else if self.wants_receive() {
            self.receive(ctx);
        }
    }

    fn flush(&mut self, ctx: &mut Context<'_>) {
        let token = ctx.token(SocketOp::Send);
        if self.outbox.flush(self.seal.as_deref_mut(), &self.fd, token, ctx) {
            self.sent_at = ctx.now;
        }
    }

    /// True if nothing waits to be sent.
    fn is_all_sent(&self) -> bool {
        self.outbox.is_idle() && self.seal.as_ref().is_none_or(|seal| !seal.wants_send())
    }

    /// Sends TLS's good-bye as the last bytes; true until it is out.
    fn says_good_bye(&mut self, ctx: &mut Context<'_>) -> bool {
        let Some(seal) = self.seal.as_mut().filter(|seal| !seal.channel.has_closed()) else { return false };
        seal.channel.close();
        self.flush(ctx);
        !self.is_all_sent()
    }

    /// No further requests; closes when those in flight are answered and the answers are sent.
    pub(crate) fn close(&mut self) {
        self.closing = true;
        self.input = None;
        // A direct receive owns the other half of a write that will never be whole.
        if let Phase::Session(session) = &mut self.phase {
            session.hang_up();
        }
    }

    /// The client is gone. After a good-bye it need not wait for the end of what it asked for; else that is given up.
    fn lose(&mut self) {
        let in_order = matches!(&self.phase, Phase::Session(session) if session.took_leave());
        if in_order { self.shut() } else { self.kill() }
    }

    /// Shuts the socket now, and gives up what is not with a device yet.
    pub(crate) fn kill(&mut self) {
        self.shut();
        if let Phase::Session(session) = &mut self.phase {
            session.abandon();
        }
    }

    /// Shuts the socket: the kernel ends what is in flight on it.
    fn shut(&mut self) {
        self.close();
        if !self.dead {
            self.dead = true;
            self.outbox.clear();
            if let Some(seal) = &mut self.seal {
                seal.clear();
            }
            // Fails only if the peer has closed already.
            if let Err(error) = rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Both) {
                tracing::trace!(peer = %self.peer, %error, "shutdown");
            }
        }
    }

    /// True once nothing of it is in the kernel or in a device: it may be dropped, which closes the socket.
    pub(crate) fn is_gone(&self) -> bool {
        self.dead && self.receiving == Receiving::No && !self.outbox.is_sending() && self.in_flight() == 0
    }

    /// True while it waits for room: [`Conn::advance`] it when something has completed.
    pub(crate) fn is_stalled(&self) -> bool {
        let unsent = !self.outbox.is_sending() && !self.is_all_sent();
        let waits = unsent || self.is_parked() || self.has_input() || self.wants_receive();
        !self.closing && !self.dead && waits
    }

    fn is_parked(&self) -> bool {
        matches!(&self.phase, Phase::Session(session) if session.is_parked())
    }

    fn has_input(&self) -> bool {
        self.input.is_some() || self.seal.as_ref().is_some_and(|seal| seal.channel.received() > 0)
    }

    /// True until an export is chosen.
    pub(crate) fn is_in_handshake(&self) -> bool {
        matches!(self.phase, Phase::Handshake(_))
    }

    /// True once TLS has begun.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.seal.is_some()
    }

    /// The export it has chosen.
    pub(crate) fn export(&self) -> Option<&Rc<ExportState>> {
        match &self.phase {
            Phase::Session(session) => Some(&session.export),
            Phase::Handshake(_) => None,
        }
    }

    /// Its export has grown. The protocol has no words to tell the client; one that learns it elsewhere, as the
    /// kernel's does when it is reconfigured on the same sockets, uses the new part from now on.
    pub(crate) fn resize(&mut self, size_bytes: u64) {
        if let Phase::Session(session) = &mut self.phase {
            session.resize(size_bytes);
        }
    }

    /// Requests its device works on.
    pub(crate) fn in_flight(&self) -> usize {
        match &self.phase {
            Phase::Session(session) => session.in_flight(),
            Phase::Handshake(_) => 0,
        }
    }

    /// Bytes of payload it holds in memory.
    pub(crate) fn held_bytes(&self) -> u64 {
        match &self.phase {
            Phase::Session(session) => session.held_bytes(),
            Phase::Handshake(_) => 0,
        }
    }

    /// What it has done.
    pub(crate) fn traffic(&self) -> Traffic {
        match &self.phase {
            Phase::Session(session) => session.traffic,
            Phase::Handshake(_) => Traffic::default(),
        }
    }

    /// Bytes it still owes to a payload.
    fn payload_left(&self) -> u64 {
        match &self.phase {
            Phase::Session(session) => session.payload_left(),
            Phase::Handshake(_) => 0,
        }
    }

    fn choose(&mut self, chosen: Negotiated, ctx: &Context<'_>) {
        let export = Offers::to(&self.peer, ctx.exports).by_id(chosen.export);
        let state = ctx.states.iter().find(|state| state.id == chosen.export);
        let (Some(export), Some(state)) = (export, state) else {
            // It was withdrawn within this very turn, or the client shut out.
            return self.close();
        };
        tracing::info!(peer = %self.peer, export = %export.name, "client attached");
        let budget = Budget::new(&self.share);
        let terms = Terms::of(&export, chosen.style, chosen.contexts);
        self.phase = Phase::Session(Box::new(Session::new(terms, Rc::clone(state), budget)));
    }

    fn on_received(&mut self, event: Event) {
        let how = std::mem::replace(&mut self.receiving, Receiving::No);
        let bytes = match event.result {
            Ok(Outcome::Bytes(bytes)) => bytes,
            Ok(_) => 0,
            Err(error) => {
                tracing::debug!(peer = %self.peer, %error, "client is gone");
                return self.kill();
            }
        };
        if self.closing {
            return;
        }
        match (how, event.memory, &mut self.phase) {
            (Receiving::Stream, EventMemory::Buf(buf), _) if bytes > 0 => {
                self.adapt(bytes as usize, buf.len());
                self.input = Some(Input { buf, from: 0, to: bytes as usize });
            }
            (Receiving::Direct, EventMemory::Bufs(bufs), Phase::Session(session))
                if bytes == session.payload_left() =>
            {
                session.end_direct(bufs);
            }
            // The client has closed its side. What it asked for before is still answered.
            _ => self.close(),
        }
    }

    /// Sizes the next receive by the last one.
    fn adapt(&mut self, received: usize, room: usize) {
        if received == room && room >= SMALL_RECEIVE_BYTES {
            self.receive_bytes = LARGE_RECEIVE_BYTES;
        } else if received <= SMALL_RECEIVE_BYTES / 2 && room > SMALL_RECEIVE_BYTES {
            self.receive_bytes = SMALL_RECEIVE_BYTES;
        }
    }

    fn wants_receive(&self) -> bool {
        let may = self.receiving == Receiving::No && !self.has_input() && !self.closing && !self.dead;
        may && match &self.phase {
            // Half duplex: a client must not send an option before the last one was answered.
            Phase::Handshake(_) => self.is_all_sent(),
            Phase::Session(session) => !session.is_parked(),
        }
    }

    fn receive(&mut self, ctx: &mut Context<'_>) {
        let token = ctx.token(SocketOp::Receive);
        let direct: Option<BufList> = match &mut self.phase {
            Phase::Session(session) if self.seal.is_none() => session.begin_direct(),
            _ => None,
        };
        if let Some(rest) = direct {
            self.receiving = Receiving::Direct;
            return ctx.port.recv_all(&self.fd, rest, token);
        }
        let bytes = match &self.phase {
            Phase::Session(session) if self.seal.is_none() => session.receive_bytes(self.receive_bytes),
            _ => self.receive_bytes,
        };
        self.large_receive = if bytes > SMALL_RECEIVE_BYTES { ctx.large_permit() } else { None };
        let bytes = if self.large_receive.is_some() { bytes } else { bytes.min(SMALL_RECEIVE_BYTES) };
        let buf = ctx.slab.alloc(bytes).or_else(|_| ctx.slab.alloc(bytes.min(SMALL_RECEIVE_BYTES)));
        // Without memory, the next turn in which something completes tries again.
        if let Ok(buf) = buf {
            self.receiving = Receiving::Stream;
            ctx.port.recv(&self.fd, buf, token);
        }
    }
}
