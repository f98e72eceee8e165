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
use super::long::{Long, Work};
use super::memory::{footprint, pieces};
use super::outbox::Outbox;
use super::payload::Incoming;
use super::{sparse, status};
use crate::export::ExportId;
use crate::limits::{
    CACHE_PIECE_BYTES, CONNECTION_QUEUE_DEPTH, DIRECT_RECEIVE_BYTES, MAX_CACHE_BYTES, MAX_STATUS_REPLIES,
};
use crate::proto::errno::NbdError;
use crate::proto::reply::{Head, Part, RequestId, Style};
use crate::proto::{Command, Refusal, Step, Terms, Transmission, Violation};
use raidcore::buf::BufList;
use raidcore::dev::{Completion, IoError, Op, Request, Tag};
use std::cell::Cell;
use std::ops::Range;
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
    parked: Option<(RequestId, Command)>,
    budget: Rc<Budget>,
    /// The last request was a write that was worth receiving directly.
    last_was_large: bool,
    /// Nobody waits for answers any more: what is under way in pieces goes no further.
    abandoned: bool,
    /// The client has taken its leave in order: what it asked for before is carried out, also if it does not wait.
    took_leave: bool,
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
            abandoned: false,
            took_leave: false,
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
        if let Some((id, command)) = self.parked.take()
            && !self.admit(id, command, out, ctx)
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
                Step::Request(_, Command::Disconnect) => {
                    self.took_leave = true;
                    return Ok(Flow::Disconnect);
                }
                Step::Request(id, command) => {
                    if !self.admit(id, command, out, ctx) {
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

    /// The export has grown.
    pub(super) fn resize(&mut self, size_bytes: u64) {
        self.stream.resize(size_bytes);
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

    /// True once the client has said good-bye.
    pub(super) fn took_leave(&self) -> bool {
        self.took_leave
    }

    /// The client is gone: its requests that are worked on piece by piece end with the piece they are at.
    pub(super) fn abandon(&mut self) {
        self.abandoned = true;
    }

    /// Answers the request of a completion.
    pub(super) fn complete(&mut self, completion: Completion, out: &mut Outbox, ctx: &mut Context<'_>) {
        let Some(mut flight) = self.flights.remove(completion.tag) else {
            tracing::error!(export = %self.export.name, tag = completion.tag.0, "completion of no request");
            return;
        };
        self.export.in_flight.set(self.export.in_flight.get() - 1);
        self.budget.end_request();
        match (completion.result, flight.kind) {
            (Err(error), _) => self.fail(flight.id, &error, out),
            (Ok(()), FlightKind::Read { len, whole }) => {
                self.traffic.requests += 1;
                self.traffic.read_bytes += u64::from(len);
                let style = self.stream.terms().style;
                if whole || style == Style::Simple {
                    let part = Part { offset: flight.id.offset, len, is_last: true };
                    out.push_data(Head::data(style, flight.id, part), completion.bufs, flight.charge.take());
                } else {
                    let parts = sparse::reply(style, flight.id, len, completion.bufs);
                    out.push_parts(parts, flight.charge.take());
                }
            }
            (Ok(()), FlightKind::Plain) => self.succeed(flight.id, out),
            (Ok(()), FlightKind::Long(_)) if self.abandoned => {}
            (Ok(()), FlightKind::Long(mut long)) => match long.next_op(completion.bufs) {
                Some(op) => self.submit(flight.id, FlightKind::Long(long), flight.charge.take(), op, ctx),
                None => self.succeed(flight.id, out),
            },
        }
    }

    /// Starts a request, or parks it and says no.
    fn admit(&mut self, id: RequestId, command: Command, out: &mut Outbox, ctx: &mut Context<'_>) -> bool {
        if self.is_device_full() || self.is_full(out) {
            return self.park(id, command);
        }
        match command {
            // `advance` has dealt with it: there is no reply.
            Command::Disconnect => return true,
            Command::Read { len, .. } | Command::Write { len, .. } => match self.memory(len as usize, ctx) {
                Some((bufs, charge)) => self.begin_transfer(id, command, bufs, charge, ctx),
                None => return self.park(id, command),
            },
            Command::Flush => self.submit(id, FlightKind::Plain, None, Op::Flush, ctx),
            Command::Trim { offset, len, fua } => {
                self.begin_long(id, Work::Trim { fua }, offset..offset + len, None, ctx);
            }
            Command::WriteZeroes { offset, len, fua, unmap } => {
                self.begin_long(id, Work::Zero { fua, unmap }, offset..offset + len, None, ctx);
            }
            Command::Cache { offset, len } => {
                let len = len.min(MAX_CACHE_BYTES);
                match self.memory(len.min(CACHE_PIECE_BYTES) as usize, ctx) {
                    Some(memory) => self.begin_long(id, Work::Cache, offset..offset + len, Some(memory), ctx),
                    None => return self.park(id, command),
                }
            }
            Command::BlockStatus { offset, len, contexts, only_first } => {
                let query = status::Query { contexts, range: offset..offset + len, only_first };
                if !self.tell(id, &query, out, ctx) {
                    return self.park(id, command);
                }
            }
        }
        self.last_was_large =
            matches!(command, Command::Write { len, .. } if len as usize >= DIRECT_RECEIVE_BYTES);
        true
    }

    /// Answers a status query; false if it has to wait. Memory comes before the work.
    fn tell(
        &mut self,
        id: RequestId,
        query: &status::Query,
        out: &mut Outbox,
        ctx: &mut Context<'_>,
    ) -> bool {
        if out.statuses() >= MAX_STATUS_REPLIES {
            return false;
        }
        let Some((room, mut charge)) = self.memory(query.max_reply_bytes(), ctx) else { return false };
        let reply = query.reply(self.stream.terms().style, id, self.export.id, ctx.engine);
        // Most replies are short, and a client may leave them unread.
        let bufs = match pieces(ctx.slab, reply.len()) {
            Ok(bufs) => {
                charge.shrink(footprint(reply.len()));
                bufs
            }
            Err(_) => room,
        };
        out.push_status(status::parts(&reply, bufs), charge);
        self.traffic.requests += 1;
        true
    }

    fn begin_transfer(
        &mut self,
        id: RequestId,
        command: Command,
        bufs: BufList,
        charge: Charge,
        ctx: &mut Context<'_>,
    ) {
        match command {
            Command::Write { offset, fua, .. } => {
                self.incoming = Some(Incoming::new(id, offset, fua, Some(charge), bufs));
            }
            Command::Read { offset, len, whole } => {
                let (kind, op) = (FlightKind::Read { len, whole }, Op::Read { offset, bufs });
                self.submit(id, kind, Some(charge), op, ctx);
            }
            _ => {}
        }
    }

    /// Starts a request of any length on its first piece. `memory` is for a piece, if it needs some.
    fn begin_long(
        &mut self,
        id: RequestId,
        work: Work,
        range: Range<u64>,
        memory: Option<(BufList, Charge)>,
        ctx: &mut Context<'_>,
    ) {
        let (bufs, charge) = memory.map_or((BufList::new(), None), |(bufs, charge)| (bufs, Some(charge)));
        let mut long = Long::new(work, range, self.stream.terms().long_piece);
        if let Some(op) = long.next_op(bufs) {
            self.submit(id, FlightKind::Long(long), charge, op, ctx);
        }
    }

    fn park(&mut self, id: RequestId, command: Command) -> bool {
        self.parked = Some((id, command));
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
    fn memory(&self, len: usize, ctx: &mut Context<'_>) -> Option<(BufList, Charge)> {
        let charge = self.budget.charge(footprint(len));
        let memory = charge.and_then(|charge| Some((pieces(ctx.slab, len).ok()?, charge)));
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
            self.submit(incoming.id, FlightKind::Plain, incoming.charge.take(), op, ctx);
        }
        true
    }

    fn submit(
        &mut self,
        id: RequestId,
        kind: FlightKind,
        charge: Option<Charge>,
        op: Op,
        ctx: &mut Context<'_>,
    ) {
        let tag: Tag =
            self.flights.insert(ctx.connection, ctx.next_generation(), Flight { id, kind, charge });
        self.export.in_flight.set(self.export.in_flight.get() + 1);
        self.budget.begin_request();
        ctx.submitted = true;
        ctx.engine.submit(self.export.id, Request { tag, op, deadline: ctx.deadline });
    }

    fn succeed(&mut self, id: RequestId, out: &mut Outbox) {
        self.traffic.requests += 1;
        out.push(Head::ok(self.stream.terms().style, id));
    }

    fn refuse(&mut self, refusal: Refusal, out: &mut Outbox) {
        tracing::debug!(export = %self.export.name, error = ?refusal.error, why = refusal.why, "request refused");
        self.answer_error(refusal.id, refusal.error, refusal.why, out);
    }

    /// The full cause is logged here, before it is narrowed to one of the protocol's few numbers.
    fn fail(&mut self, id: RequestId, error: &IoError, out: &mut Outbox) {
        let narrowed = NbdError::of(error);
        tracing::warn!(export = %self.export.name, %error, answer = ?narrowed, "request failed");
        let message = match self.stream.terms().style {
            Style::Simple => String::new(),
            _ => error.to_string(),
        };
        self.answer_error(id, narrowed, &message, out);
    }

    fn answer_error(&mut self, id: RequestId, error: NbdError, message: &str, out: &mut Outbox) {
        self.traffic.requests += 1;
        self.traffic.errors += 1;
        out.push(Head::error(self.stream.terms().style, id, error, message));
    }
}
