//! The stream of requests: where headers and payload begin and end.
//!
//! The caller asks for the next [`Step`] with the bytes it has. Payload may be handed over in pieces
//! ([`Step::Payload`]), or the caller may receive it past this machine, straight into the memory it will be
//! written from, and say so with [`Transmission::skip_payload`].
//!
//! The payload that says what a status query is about is no such payload: it is collected here, and the caller sees
//! one command.
//!
//! Invariant: `left > 0` in the states that wait for payload, and it never exceeds `MAX_DRAIN_BYTES`.

use super::Violation;
use super::reply::RequestId;
use super::request::{Command, MAX_FILTER_BYTES, RawRequest, Refusal, Terms};
use super::wire::EXTENDED_REQUEST_BYTES;

/// The server's side of the transmission phase.
#[derive(Debug)]
pub struct Transmission {
    terms: Terms,
    state: State,
    header: [u8; EXTENDED_REQUEST_BYTES],
    filter: [u8; MAX_FILTER_BYTES],
}

/// What the bytes were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// All input is consumed; more is needed.
    More,
    /// A request to execute. A write's payload follows in [`Step::Payload`].
    Request(RequestId, Command),
    /// The next piece of the payload of the write before it. Never empty.
    Payload(&'a [u8]),
    /// A request to answer with an error. Its payload was skipped.
    Refused(Refusal),
}

#[derive(Clone, Copy, Debug)]
enum State {
    Header {
        have: usize,
    },
    Payload {
        left: u32,
    },
    /// `have < request.len <= MAX_FILTER_BYTES`
    Filter {
        request: RawRequest,
        have: usize,
    },
    Drain {
        left: u32,
        refusal: Refusal,
    },
}

impl Transmission {
    /// A stream that begins with a request.
    pub fn new(terms: Terms) -> Transmission {
        let (header, filter) = ([0; EXTENDED_REQUEST_BYTES], [0; MAX_FILTER_BYTES]);
        Transmission { terms, state: State::Header { have: 0 }, header, filter }
    }

    /// What the client may ask for.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// The export has grown: requests up to its new end are within the terms from now on.
    pub fn resize(&mut self, size_bytes: u64) {
        self.terms.size_bytes = size_bytes;
    }

    /// The next step, taken off the front of `input`. After an error nothing is fed any more.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Step<'a>, Violation> {
        match self.state {
            // The common case: a whole header, taken apart where it lies.
            State::Header { have: 0 } if input.len() >= self.terms.header_bytes() => {
                let header = take(input, self.terms.header_bytes());
                self.request(RawRequest::parse(self.terms.style, header)?, input)
            }
            State::Header { have } => {
                let whole = self.terms.header_bytes();
                let bytes = take(input, whole - have);
                self.header[have..have + bytes.len()].copy_from_slice(bytes);
                let have = have + bytes.len();
                self.state = State::Header { have };
                if have < whole {
                    return Ok(Step::More);
                }
                self.request(RawRequest::parse(self.terms.style, &self.header[..whole])?, input)
            }
            State::Payload { left } => {
                let bytes = take(input, left as usize);
                self.expect_payload(left - bytes.len() as u32);
                Ok(if bytes.is_empty() { Step::More } else { Step::Payload(bytes) })
            }
            State::Filter { request, have } => Ok(self.filter(input, request, have)),
            State::Drain { left, refusal } => self.drain(input, left, refusal),
        }
    }

    /// Bytes of the current write's payload that have not been handed over.
    pub fn payload_left(&self) -> u32 {
        match self.state {
            State::Payload { left } => left,
            _ => 0,
        }
    }

    /// Bytes that must still arrive before there can be another step: what is left of a header or a payload.
    pub fn wants_bytes(&self) -> usize {
        match self.state {
            State::Header { have } => self.terms.header_bytes() - have,
            State::Filter { request, have } => request.len as usize - have,
            State::Payload { left } | State::Drain { left, .. } => left as usize,
        }
    }

    /// The caller received `bytes` of the payload by itself. Panics if that is more than is left of it.
    pub fn skip_payload(&mut self, bytes: u32) {
        let left = self.payload_left();
        assert!(bytes <= left, "{bytes} bytes received of a payload of {left}");
        self.expect_payload(left - bytes);
    }

    fn request<'a>(&mut self, request: RawRequest, input: &mut &'a [u8]) -> Result<Step<'a>, Violation> {
        let payload = request.payload_bytes(self.terms.style)?;
        if request.has_filter(&self.terms) {
            return Ok(self.filter(input, request, 0));
        }
        match request.decide(&self.terms) {
            Ok(command) => {
                self.expect_payload(if matches!(command, Command::Write { .. }) { payload } else { 0 });
                Ok(Step::Request(request.id(), command))
            }
            // The answer waits until the payload has gone by: some clients do not read while they write.
            Err(refusal) => self.drain(input, payload, refusal),
        }
    }

    fn filter<'a>(&mut self, input: &mut &'a [u8], request: RawRequest, have: usize) -> Step<'a> {
        let whole = request.len as usize;
        let bytes = take(input, whole - have);
        self.filter[have..have + bytes.len()].copy_from_slice(bytes);
        let have = have + bytes.len();
        if have < whole {
            self.state = State::Filter { request, have };
            return Step::More;
        }
        self.state = State::Header { have: 0 };
        match request.decide_filtered(&self.terms, &self.filter[..whole]) {
            Ok(command) => Step::Request(request.id(), command),
            Err(refusal) => Step::Refused(refusal),
        }
    }

    fn drain<'a>(
        &mut self,
        input: &mut &'a [u8],
        left: u32,
        refusal: Refusal,
    ) -> Result<Step<'a>, Violation> {
        let left = left - take(input, left as usize).len() as u32;
        if left > 0 {
            self.state = State::Drain { left, refusal };
            return Ok(Step::More);
        }
        self.state = State::Header { have: 0 };
        Ok(Step::Refused(refusal))
    }

    fn expect_payload(&mut self, left: u32) {
        self.state = if left > 0 { State::Payload { left } } else { State::Header { have: 0 } };
    }
}

/// Up to `most` bytes off the front of `input`.
fn take<'a>(input: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (front, rest) = input.split_at(most.min(input.len()));
    *input = rest;
    front
}

#[cfg(test)]
mod tests;
