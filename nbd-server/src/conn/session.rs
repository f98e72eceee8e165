//! A client in the transmission phase: requests become operations of the export's device, completions replies.
//!
//! Back-pressure: a request that finds no room (in the connection's queue, the device's queue, the budgets or the
//! slab) is parked; nothing more is taken from the client until it has found room.
//!
//! Invariants:
//! - Each request is in one place: parked, on its way in (`incoming`), in flight, or in the outbox.
//! - `incoming` is there while the stream waits for payload, or the complete write for the device's queue.

use super::Context;
use super::budget::{Budget, Charge};
use super::flights::{Flight, FlightKind, Flights};
use super::outbox::Outbox;
use super::payload::Incoming;
use crate::export::ExportId;
use crate::limits::{CONNECTION_QUEUE_DEPTH, DIRECT_RECEIVE_BYTES, PIECE_BYTES};
use crate::proto::errno::NbdError;
use crate::proto::reply::{Cookie, Head, Style};
use crate::proto::{Command, Refusal, Step, Terms, Transmission, Violation};
use raidcore::buf::{BufList, Exhausted, Slab};
use raidcore::dev::{Completion, IoError, Op, Request, Tag};
use raidcore::limits::{MAX_BLOCK_BYTES, PAGE_BYTES};
use std::cell::Cell;
use std::rc::Rc;

/// What connections of one export share.
#[derive(Debug)]
pub(crate) struct ExportState {
    pub(crate) id: ExportId,
    pub(crate) name: String,
    /// Requests its device takes at once.
    pub(crate) queue_depth: u32,
    /// Requests of all connections that its device works on. `in_flight <= queue_depth`.
    pub(crate) in_flight: Cell<u32>,
}

/// Counters of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests answered.
    pub requests: u64,
    /// Of them, with an error.
    pub errors: u64,
    /// Bytes read successfully.
    pub read_bytes: u64,
    /// Bytes of writes accepted.
    pub write_bytes: u64,
}

/// The transmission phase of one connection.
#[derive(Debug)]
pub(super) struct Session {
    stream: Transmission,
    pub(super) export: Rc<ExportState>,
    flights: Flights,
    incoming: Option<Incoming>,
    parked: Option<(Cookie, Command)>,
    budget: Rc<Budget>,
    /// The last request was a write that was worth receiving directly.
    last_was_large: bool,
    pub(super) traffic: Traffic,
}

/// Why [`Session::advance`] stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// All input is consumed.
    More,
    /// A request waits for room; the rest of the input is not touched.
    Parked,
    /// The client takes its leave.
    Disconnect,
}

impl Session {
    pub(super) fn new(terms: Terms, export: Rc<ExportState>, budget: Rc<Budget>) -> Session {
        Session {
            stream: Transmission::new(terms),
            export,
            flights: Flights::default(),
            incoming: None,
            parked: None,
            budget,
            last_was_large: false,
            traffic: Traffic::default(),
        }
    }

    /// Takes requests off the front of `input` as far as there is room for them.
    pub(super) fn advance(
        &mut self,
        input: &mut &[u8],
        out: &mut Outbox,
        ctx: &mut Context<'_>,
    ) -> Result<Flow, Violation> {
        if let Some((cookie, command)) = self.parked.take()
            && !self.admit(cookie, command, out, ctx)
        {
            return Ok(Flow::Parked);
        }
        if !self.submit_if_complete(ctx) {
            return Ok(Flow::Parked);
        }
        loop {
            // Replies gather behind a client that does not read them; so do its requests, then.
            if self.stream.payload_left() == 0 && self.is_full(out) && !input.is_empty() {
                return Ok(Flow::Parked);
            }
            match self.stream.next(input)? {
                Step::More => return Ok(Flow::More),
                Step::Request(_, Command::Disconnect) => return Ok(Flow::Disconnect),
                Step::Request(cookie, command) => {
                    if !self.admit(cookie, command, out, ctx) {
                        return Ok(Flow::Parked);
                    }
                }
                Step::Payload(bytes) => {
                    if let Some(incoming) = &mut self.incoming {
                        incoming.copy(bytes);
                    }
                    if !self.submit_if_complete(ctx) {
                        return Ok(Flow::Parked);
                    }
                }
                Step::Refused(refusal) => self.refuse(refusal, out),
            }
        }
    }

    /// True while a request waits for room.
    pub(super) fn is_parked(&self) -> bool {
        self.parked.is_some() || (self.incoming.is_some() && self.stream.payload_left() == 0)
    }

    /// Requests in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// Bytes of payload held in memory.
    pub(super) fn held_bytes(&self) -> u64 {
        self.budget.held()
    }

    /// How many bytes to receive next, at most `usual`: no payload should be received only to be copied.
    pub(super) fn receive_bytes(&self, usual: usize) -> usize {
        let boundary = self.incoming.is_none();
        if boundary && self.last_was_large { self.stream.wants_bytes().min(usual) } else { usual }
    }

    /// The memory to receive the rest of the current payload in, if that is worth it.
    pub(super) fn begin_direct(&mut self) -> Option<BufList> {
        if (self.stream.payload_left() as usize) < DIRECT_RECEIVE_BYTES {
            return None;
        }
        self.incoming.as_mut().map(Incoming::split_rest)
    }

    /// The rest of the payload has arrived in the memory of [`Session::begin_direct`], whole.
    pub(super) fn end_direct(&mut self, rest: BufList) {
        self.stream.skip_payload(self.stream.payload_left());
        if let Some(incoming) = &mut self.incoming {
            incoming.join_rest(rest);
        }
    }

    /// Bytes the client still owes to the current payload.
    pub(super) fn payload_left(&self) -> u64 {
        u64::from(self.stream.payload_left())
    }

    /// The client will send nothing more: what it has begun to send is dropped.
    pub(super) fn hang_up(&mut self) {
        self.incoming = None;
        self.parked = None;
        self.budget.give_up();
    }

    /// Answers the request of a completion.
    pub(super) fn complete(&mut self, completion: Completion, out: &mut Outbox, ctx: &mut Context<'_>) {
        let Some(mut flight) = self.flights.remove(completion.tag) else {
            tracing::error!(export = %self.export.name, tag = completion.tag.0, "completion of no request");
            return;
        };
        self.export.in_flight.set(self.export.in_flight.get() - 1);
        self.budget.end_request();
        let style = self.stream.terms().style;
        match (completion.result, flight.kind) {
            (Err(error), _) => self.fail(flight.cookie, &error, out),
            (Ok(()), FlightKind::Read { offset, len }) => {
                self.traffic.requests += 1;
                self.traffic.read_bytes += u64::from(len);
                let head = Head::data(style, flight.cookie, offset, len);
                out.push_data(head, completion.bufs, flight.charge.take());
            }
            (Ok(()), FlightKind::Plain) => self.succeed(flight.cookie, out),
            (Ok(()), FlightKind::ThenFlush) => {
                self.submit(flight.cookie, FlightKind::Plain, None, Op::Flush, ctx);
            }
        }
    }

    /// Starts a request, or parks it and says no.
    fn admit(&mut self, cookie: Cookie, command: Command, out: &mut Outbox, ctx: &mut Context<'_>) -> bool {
        if self.is_device_full() || self.is_full(out) {
            self.parked = Some((cookie, command));
            return false;
        }
        let (op, kind, charge) = match command {
            // `advance` has dealt with it: there is no reply.
            Command::Disconnect => return true,
            Command::Read { offset, len } => match self.memory(len, ctx) {
                Some((bufs, charge)) => {
                    (Op::Read { offset, bufs }, FlightKind::Read { offset, len }, Some(charge))
                }
                None => return self.park(cookie, command),
            },
            Command::Write { offset, len, fua } => match self.memory(len, ctx) {
                Some((bufs, charge)) => {
                    self.last_was_large = len as usize >= DIRECT_RECEIVE_BYTES;
                    self.incoming = Some(Incoming::new(cookie, offset, fua, Some(charge), bufs));
                    return true;
                }
                None => return self.park(cookie, command),
            },
            Command::Flush => (Op::Flush, FlightKind::Plain, None),
            Command::Trim { offset, len, fua } => {
                let kind = if fua { FlightKind::ThenFlush } else { FlightKind::Plain };
                (Op::Discard { offset, len: u64::from(len) }, kind, None)
            }
            Command::WriteZeroes { offset, len, fua, unmap } => {
                (Op::WriteZeroes { offset, len: u64::from(len), fua, unmap }, FlightKind::Plain, None)
            }
        };
        self.last_was_large = false;
        self.submit(cookie, kind, charge, op, ctx);
        true
    }

    fn park(&mut self, cookie: Cookie, command: Command) -> bool {
        self.parked = Some((cookie, command));
        false
    }

    fn is_full(&self, out: &Outbox) -> bool {
        self.flights.len() + out.replies() >= CONNECTION_QUEUE_DEPTH as usize
    }

    fn is_device_full(&self) -> bool {
        self.export.in_flight.get() >= self.export.queue_depth || self.budget.is_out_of_requests()
    }

    /// Memory for a payload. Want of it is noted, of a client that holds none: then clients that hold memory for
    /// nothing have to go.
    fn memory(&self, len: u32, ctx: &mut Context<'_>) -> Option<(BufList, Charge)> {
        let charge = self.budget.charge(footprint(len as usize));
        let memory = charge.and_then(|charge| Some((pieces(ctx.slab, len as usize).ok()?, charge)));
        ctx.starved |= memory.is_none() && self.budget.held() == 0;
        memory
    }

    /// Submits the write whose payload is complete, if there is one; false if the device has no room for it.
    fn submit_if_complete(&mut self, ctx: &mut Context<'_>) -> bool {
        if self.incoming.is_none() || self.stream.payload_left() > 0 {
            return true;
        }
        if self.is_device_full() {
            return false;
        }
        if let Some(mut incoming) = self.incoming.take() {
            let op = Op::Write { offset: incoming.offset, data: incoming.take_data(), fua: incoming.fua };
            self.traffic.write_bytes += op.extent().1;
            self.submit(incoming.cookie, FlightKind::Plain, incoming.charge.take(), op, ctx);
        }
        true
    }

    fn submit(
        &mut self,
        cookie: Cookie,
        kind: FlightKind,
        charge: Option<Charge>,
        op: Op,
        ctx: &mut Context<'_>,
    ) {
        let tag: Tag =
            self.flights.insert(ctx.connection, ctx.next_generation(), Flight { cookie, kind, charge });
        self.export.in_flight.set(self.export.in_flight.get() + 1);
        self.budget.begin_request();
        ctx.submitted = true;
        ctx.engine.submit(self.export.id, Request { tag, op, deadline: ctx.deadline });
    }

    fn succeed(&mut self, cookie: Cookie, out: &mut Outbox) {
        self.traffic.requests += 1;
        out.push(Head::ok(self.stream.terms().style, cookie));
    }

    fn refuse(&mut self, refusal: Refusal, out: &mut Outbox) {
        tracing::debug!(export = %self.export.name, error = ?refusal.error, why = refusal.why, "request refused");
        self.answer_error(refusal.cookie, refusal.error, refusal.why, out);
    }

    /// The full cause is logged here, before it is narrowed to one of the protocol's few numbers.
    fn fail(&mut self, cookie: Cookie, error: &IoError, out: &mut Outbox) {
        let narrowed = NbdError::of(error);
        tracing::warn!(export = %self.export.name, %error, answer = ?narrowed, "request failed");
        let message = match self.stream.terms().style {
            Style::Structured => error.to_string(),
            Style::Simple => String::new(),
        };
        self.answer_error(cookie, narrowed, &message, out);
    }

    fn answer_error(&mut self, cookie: Cookie, error: NbdError, message: &str, out: &mut Outbox) {
        self.traffic.requests += 1;
        self.traffic.errors += 1;
        out.push(Head::error(self.stream.terms().style, cookie, error, message));
    }
}

/// Memory for `len` bytes, in order. A slab takes the smallest block that fits the whole, which for 68 KiB is a
/// megabyte; what is left after the full megabytes is therefore made of smaller pieces while there are any.
fn pieces(slab: &Slab, len: usize) -> Result<BufList, Exhausted> {
    let rest = len % MAX_BLOCK_BYTES;
    let few = if len <= PIECE_BYTES || rest > MAX_BLOCK_BYTES / 2 {
        slab.alloc_list(len)
    } else {
        slab.alloc_list(len - rest).and_then(|list| pieces_of(PIECE_BYTES, slab, list, rest))
    };
    // When large blocks are out there may be small ones, of which a request must not have too many.
    few.or_else(|_| pieces_of(PIECE_BYTES, slab, BufList::new(), len)).or_else(|exhausted| match len {
        len if len <= MAX_BLOCK_BYTES => pieces_of(PAGE_BYTES, slab, BufList::new(), len),
        _ => Err(exhausted),
    })
}

fn pieces_of(size: usize, slab: &Slab, mut list: BufList, mut left: usize) -> Result<BufList, Exhausted> {
    while left > 0 {
        let piece = left.min(size);
        list.push(slab.alloc(piece)?);
        left -= piece;
    }
    Ok(list)
}

/// What [`pieces`] takes of a slab for `len` bytes, in whole blocks: that is what others cannot have.
fn footprint(len: usize) -> u64 {
    let rest = match len % MAX_BLOCK_BYTES {
        rest if len <= PIECE_BYTES && rest <= PAGE_BYTES => PAGE_BYTES,
        rest if rest > MAX_BLOCK_BYTES / 2 => MAX_BLOCK_BYTES,
        rest => rest.next_multiple_of(PIECE_BYTES),
    };
    (len - len % MAX_BLOCK_BYTES + rest) as u64
}
