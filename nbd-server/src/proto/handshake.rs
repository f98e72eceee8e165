//! From the greeting to the chosen export: fixed newstyle, server side.
//!
//! Invariants: `partial.len() < need` between two calls, and `need <= MAX_OPTION_BYTES`, so that a client
//! holds at most that much memory; after [`Progress::Chosen`] or [`Progress::Aborted`] nothing is fed any more.

use super::Violation;
use super::meta_context::{ContextRequest, Contexts, id_of};
use super::option::{InfoRequest, Malformed, parse_name, put_infos, put_reply};
use super::reply::Style;
use super::starttls::TlsState;
use super::wire::{GREETING_BYTES, INIT_MAGIC, OPTION_HEADER_BYTES, OPTION_MAGIC, handshake_flags, opt, rep};
use crate::export::{Export, ExportId};
use crate::limits::{MAX_HANDSHAKE_BYTES, MAX_OPTION_BYTES, MAX_OPTIONS};
use crate::offers::Offers;

/// The server's side of a handshake.
#[derive(Debug)]
pub struct Handshake {
    state: State,
    /// What has arrived of the item that `state` waits for.
    partial: Vec<u8>,
    fixed: bool,
    no_zeroes: bool,
    agreed: Agreed,
    tls: TlsState,
    options: u32,
    bytes: u64,
}

/// What options have brought about so far.
#[derive(Clone, Copy, Debug, Default)]
struct Agreed {
    style: Style,
    /// The last selection of metadata contexts, if it succeeded, and of which export.
    selected: Option<(ExportId, Contexts)>,
}

impl Agreed {
    /// The contexts for a connection to `export`: a selection for another one does not count.
    fn contexts(&self, export: ExportId) -> Contexts {
        self.selected.filter(|(of, _)| *of == export).map_or(Contexts::NONE, |(_, contexts)| contexts)
    }

    fn flags(&self, export: &Export) -> u16 {
        export.flags(self.style, self.contexts(export.id))
    }
}

/// Where a handshake stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All input is consumed; more is needed.
    More,
    /// An option was answered: send what is in `out`, then feed the rest of the input.
    Answered,
    /// TLS begins: send what is in `out` in clear; all that follows, in both directions, goes through TLS, and only
    /// what comes out of it is fed. No clear byte has been taken behind the option.
    StartTls,
    /// An export was chosen: send what is in `out`; the rest of the input are requests.
    Chosen(Negotiated),
    /// The client said good-bye: send what is in `out` and close.
    Aborted,
}

/// What client and server agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// The export.
    pub export: ExportId,
    /// The kind of headers and replies.
    pub style: Style,
    /// The metadata contexts that status queries are about.
    pub contexts: Contexts,
}

#[derive(Clone, Copy, Debug)]
enum State {
    ClientFlags,
    Header,
    Data { option: u32, len: usize },
    Skip { option: u32, left: u32 },
}

const TLS_FIRST: (u32, &str) = (rep::ERR_TLS_REQD, "start TLS before anything else");
const NO_DATA: (u32, &str) = (rep::ERR_INVALID, "this option has no data");
const NOT_SUPPORTED: (u32, &str) = (rep::ERR_UNSUP, "option is not supported");

const NO_EXPORT: &str = "no export of this name; see NBD_OPT_LIST";

/// What the server can do, of the handshake flags.
const OFFERED: u16 = handshake_flags::FIXED_NEWSTYLE | handshake_flags::NO_ZEROES;

impl Handshake {
    /// A handshake about to begin, in clear. The server speaks first: send [`Handshake::greeting`].
    pub fn new() -> Handshake {
        Handshake::with_tls(TlsState::NEVER)
    }

    /// As [`Handshake::new`], of a client that may or must use TLS.
    pub fn with_tls(tls: TlsState) -> Handshake {
        Handshake {
            state: State::ClientFlags,
            partial: Vec::new(),
            fixed: false,
            no_zeroes: false,
            agreed: Agreed::default(),
            tls,
            options: 0,
            bytes: 0,
        }
    }

    /// The server's first bytes.
    pub fn greeting() -> [u8; GREETING_BYTES] {
        let mut greeting = [0; GREETING_BYTES];
        greeting[..8].copy_from_slice(&INIT_MAGIC.to_be_bytes());
        greeting[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        greeting[16..].copy_from_slice(&OFFERED.to_be_bytes());
        greeting
    }

    /// Takes bytes from the client and appends what is to be sent to `out`. Returns how many bytes it took
    /// (all of them unless it stopped to have something sent) and where the handshake stands.
    pub fn feed(
        &mut self,
        input: &[u8],
        exports: &Offers<'_>,
        out: &mut Vec<u8>,
    ) -> (usize, Result<Progress, Violation>) {
        let mut taken = 0;
        while let Some(used) = self.take(&input[taken..]) {
            taken += used;
            match self.advance(exports, out) {
                Ok(Progress::More) => {}
                // Whoever can put clear bytes there would have them taken for the client's own.
                Ok(Progress::StartTls) if taken < input.len() => {
                    return (taken, Err(Violation::ClearBehindStartTls));
                }
                stop => return (taken, stop),
            }
        }
        (input.len(), Ok(Progress::More))
    }

    /// Collects the item that the state waits for; `Some(bytes used)` once it is complete.
    fn take(&mut self, input: &[u8]) -> Option<usize> {
        if let State::Skip { option, left } = self.state {
            let used = input.len().min(left as usize);
            self.state = State::Skip { option, left: left - used as u32 };
            return (used == left as usize).then_some(used);
        }
        let missing = self.need() - self.partial.len();
        let used = missing.min(input.len());
        self.partial.extend_from_slice(&input[..used]);
        (used == missing).then_some(used)
    }

    fn need(&self) -> usize {
        match self.state {
            State::ClientFlags => 4,
            State::Header => OPTION_HEADER_BYTES,
            State::Data { len, .. } => len,
            State::Skip { .. } => 0,
        }
    }

    /// Acts on a complete item.
    fn advance(&mut self, exports: &Offers<'_>, out: &mut Vec<u8>) -> Result<Progress, Violation> {
        let item = std::mem::take(&mut self.partial);
        match self.state {
            State::ClientFlags => {
                self.state = State::Header;
                self.client_flags(&item)
            }
            State::Header => self.header(&item),
            State::Data { option, .. } => {
                self.state = State::Header;
                self.option(option, &item, exports, out)
            }
            State::Skip { option, .. } => {
                self.state = State::Header;
                Ok(self.answer_skipped(option, out))
            }
        }
    }

    /// Answers an option whose data was too long to be stored. What such an option is comes before how long it is: who
    /// asks for what is not known here must not be told that fewer bytes would help.
    fn answer_skipped(&mut self, option: u32, out: &mut Vec<u8>) -> Progress {
        let (error, why) = match option {
            opt::ABORT => {
                put_reply(out, option, rep::ACK, &[]);
                return Progress::Aborted;
            }
            _ if self.tls.holds_back(option) => TLS_FIRST,
            opt::LIST | opt::STARTTLS | opt::STRUCTURED_REPLY | opt::EXTENDED_HEADERS => NO_DATA,
            opt::INFO | opt::GO | opt::LIST_META_CONTEXT | opt::SET_META_CONTEXT => {
                (rep::ERR_TOO_BIG, "option data is too long")
            }
            _ => NOT_SUPPORTED,
        };
        if option == opt::SET_META_CONTEXT {
            self.agreed.selected = None;
        }
        put_reply(out, option, error, &[why.as_bytes()]);
        Progress::Answered
    }

    fn client_flags(&mut self, item: &[u8]) -> Result<Progress, Violation> {
        let flags = be_u32(item, 0);
        if flags & !u32::from(OFFERED) != 0 {
            return Err(Violation::ClientFlags(flags));
        }
        self.fixed = flags & u32::from(handshake_flags::FIXED_NEWSTYLE) != 0;
        self.no_zeroes = flags & u32::from(handshake_flags::NO_ZEROES) != 0;
        Ok(Progress::More)
    }

    fn header(&mut self, item: &[u8]) -> Result<Progress, Violation> {
        let magic = u64::from(be_u32(item, 0)) << 32 | u64::from(be_u32(item, 4));
        let (option, len) = (be_u32(item, 8), be_u32(item, 12));
        if magic != OPTION_MAGIC {
            return Err(Violation::OptionMagic(magic));
        }
        if !self.fixed && option != opt::EXPORT_NAME {
            return Err(Violation::NotFixedNewstyle(option));
        }
        if option == opt::EXPORT_NAME && self.tls.holds_back(option) {
            return Err(Violation::TlsRequired);
        }
        self.options += 1;
        self.bytes += OPTION_HEADER_BYTES as u64 + u64::from(len);
        if self.options > MAX_OPTIONS || self.bytes > MAX_HANDSHAKE_BYTES {
            return Err(Violation::EndlessHandshake);
        }
        self.state = match len as usize {
            len if len <= MAX_OPTION_BYTES => State::Data { option, len },
            _ if option == opt::EXPORT_NAME => return Err(Violation::UnknownExport),
            _ => State::Skip { option, left: len },
        };
        Ok(Progress::More)
    }

    fn option(
        &mut self,
        option: u32,
        data: &[u8],
        exports: &Offers<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Progress, Violation> {
        if self.tls.holds_back(option) {
            put_reply(out, option, TLS_FIRST.0, &[TLS_FIRST.1.as_bytes()]);
            return Ok(Progress::Answered);
        }
        match option {
            opt::STARTTLS if self.tls.start(data, out) => {
                self.restart_encrypted();
                return Ok(Progress::StartTls);
            }
            opt::STARTTLS => {}
            opt::EXPORT_NAME => return self.export_name(data, exports, out),
            opt::ABORT => {
                put_reply(out, option, rep::ACK, &[]);
                return Ok(Progress::Aborted);
            }
            opt::INFO | opt::GO => return Ok(self.info(option, data, exports, out)),
            opt::LIST_META_CONTEXT | opt::SET_META_CONTEXT => self.contexts(option, data, exports, out),
            opt::LIST | opt::STRUCTURED_REPLY | opt::EXTENDED_HEADERS if !data.is_empty() => {
                put_reply(out, option, NO_DATA.0, &[NO_DATA.1.as_bytes()]);
            }
            opt::LIST => {
                for export in exports.iter() {
                    let (name, about) = (export.name.as_bytes(), export.description.as_bytes());
                    put_reply(out, option, rep::SERVER, &[&(name.len() as u32).to_be_bytes(), name, about]);
                }
                put_reply(out, option, rep::ACK, &[]);
            }
            opt::STRUCTURED_REPLY if self.agreed.style == Style::Extended => {
                put_reply(out, option, rep::ERR_EXT_HEADER_REQD, &[b"extended headers are agreed on"]);
            }
            opt::STRUCTURED_REPLY => self.agree(option, Style::Structured, out),
            opt::EXTENDED_HEADERS => self.agree(option, Style::Extended, out),
            // Withdrawn options and what is not yet invented.
            _ => put_reply(out, option, NOT_SUPPORTED.0, &[NOT_SUPPORTED.1.as_bytes()]),
        }
        Ok(Progress::Answered)
    }

    /// What was negotiated in clear may have been negotiated by somebody else: all of it is forgotten but the client's
    /// flags, which cannot be said again. What has been spent of the limits stays spent.
    fn restart_encrypted(&mut self) {
        *self = Handshake {
            state: State::Header,
            fixed: self.fixed,
            no_zeroes: self.no_zeroes,
            options: self.options,
            bytes: self.bytes,
            ..Handshake::with_tls(TlsState::On)
        };
    }

    /// Agrees to headers and replies of this kind. To ask for the same again changes nothing.
    fn agree(&mut self, option: u32, style: Style, out: &mut Vec<u8>) {
        self.agreed.style = style;
        put_reply(out, option, rep::ACK, &[]);
    }

    /// Lists or selects metadata contexts. A selection replaces the one before, also if it fails.
    fn contexts(&mut self, option: u32, data: &[u8], exports: &Offers<'_>, out: &mut Vec<u8>) {
        let is_selection = option == opt::SET_META_CONTEXT;
        if is_selection {
            self.agreed.selected = None;
        }
        let (export, contexts) = match self.find_contexts(is_selection, data, exports) {
            Ok(found) => found,
            Err((error, why)) => return put_reply(out, option, error, &[why.as_bytes()]),
        };
        for context in contexts.iter() {
            let id = if is_selection { id_of(context) } else { 0 };
            put_reply(out, option, rep::META_CONTEXT, &[&id.to_be_bytes(), context.name().as_bytes()]);
        }
        if is_selection {
            self.agreed.selected = Some((export, contexts));
        }
        put_reply(out, option, rep::ACK, &[]);
    }

    fn find_contexts(
        &self,
        is_selection: bool,
        data: &[u8],
        exports: &Offers<'_>,
    ) -> Result<(ExportId, Contexts), (u32, &'static str)> {
        if self.agreed.style == Style::Simple {
            return Err((rep::ERR_INVALID, "metadata contexts need structured replies or extended headers"));
        }
        let request = ContextRequest::parse(data).map_err(|Malformed(why)| (rep::ERR_INVALID, why))?;
        if request.queries.are_too_many() {
            return Err((rep::ERR_TOO_BIG, "too many queries in one option"));
        }
        let export = exports.find(request.name).ok_or((rep::ERR_UNKNOWN, NO_EXPORT))?;
        let queries = request.queries;
        Ok((export.id, if is_selection { queries.selected() } else { queries.listed() }))
    }

    fn export_name(
        &self,
        data: &[u8],
        exports: &Offers<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Progress, Violation> {
        if self.agreed.style == Style::Extended {
            return Err(Violation::ExportNameAfterExtended);
        }
        let export = parse_name(data).ok().and_then(|name| exports.find(name));
        let export = export.ok_or(Violation::UnknownExport)?;
        out.extend_from_slice(&export.geometry.size_bytes.to_be_bytes());
        out.extend_from_slice(&self.agreed.flags(&export).to_be_bytes());
        if !self.no_zeroes {
            out.extend_from_slice(&[0; 124]);
        }
        Ok(self.chosen(&export))
    }

    fn info(&self, option: u32, data: &[u8], exports: &Offers<'_>, out: &mut Vec<u8>) -> Progress {
        let request = match InfoRequest::parse(data) {
            Ok(request) => request,
            Err(Malformed(why)) => {
                put_reply(out, option, rep::ERR_INVALID, &[why.as_bytes()]);
                return Progress::Answered;
            }
        };
        let Some(export) = exports.find(request.name) else {
            put_reply(out, option, rep::ERR_UNKNOWN, &[NO_EXPORT.as_bytes()]);
            return Progress::Answered;
        };
        put_infos(out, option, &request, &export, self.agreed.flags(&export));
        put_reply(out, option, rep::ACK, &[]);
        if option == opt::GO { self.chosen(&export) } else { Progress::Answered }
    }

    fn chosen(&self, export: &Export) -> Progress {
        let Agreed { style, .. } = self.agreed;
        Progress::Chosen(Negotiated { export: export.id, style, contexts: self.agreed.contexts(export.id) })
    }
}

impl Default for Handshake {
    fn default() -> Handshake {
        Handshake::new()
    }
}

/// The number at `at` of an item whose length was checked by `take`.
fn be_u32(item: &[u8], at: usize) -> u32 {
    item[at..at + 4].iter().fold(0, |number, &byte| number << 8 | u32::from(byte))
}

#[cfg(test)]
mod agreement;
#[cfg(test)]
mod tests;
