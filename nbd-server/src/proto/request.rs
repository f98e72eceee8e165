//! One request: its header of 28 or 32 bytes, and the decision what is done with it.
//!
//! [`RawRequest::decide`] is the only place that judges a client's request; whatever it returns as a
//! [`Command`] is within the device, not larger than the largest payload, and permitted.

use super::Violation;
use super::errno::NbdError;
use super::meta_context::{Contexts, context_of};
use super::reply::{Cookie, RequestId, Style};
use super::wire::{
    EXTENDED_REQUEST_BYTES, EXTENDED_REQUEST_MAGIC, REQUEST_BYTES, REQUEST_MAGIC, cmd, cmd_flags,
};
use crate::export::{Export, MetaContext};
use crate::limits::{LONG_PIECE_BYTES, MAX_DRAIN_BYTES, MAX_REQUEST_BYTES};
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// A request as it stands on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawRequest {
    /// Flags, see [`cmd_flags`].
    pub flags: u16,
    /// Which command, see [`cmd`].
    pub kind: u16,
    /// The client's name for it.
    pub cookie: Cookie,
    /// First byte on the export.
    pub offset: u64,
    /// Bytes of the export or, if there is a payload, of that.
    pub len: u64,
}

/// What both kinds of headers begin with. A length of 32 bits follows or, in an extended header, of 64.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WireRequest {
    magic: U32,
    flags: U16,
    kind: U16,
    cookie: U64,
    offset: U64,
}

const _: () = assert!(size_of::<WireRequest>() + 4 == REQUEST_BYTES);
const _: () = assert!(size_of::<WireRequest>() + 8 == EXTENDED_REQUEST_BYTES);

/// Bytes of the payload that names the contexts of a status query: a length and at least one number.
const MIN_FILTER_BYTES: u64 = 8 + 4;
/// No number stands in it twice.
pub(super) const MAX_FILTER_BYTES: usize = 8 + 4 * MetaContext::ALL.len();

/// What a connection may ask for: the export's properties, taken when it was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Size of the export in bytes.
    pub size_bytes: u64,
    /// Offsets and lengths are multiples of it.
    pub min_block: u32,
    /// Largest payload in bytes.
    pub max_payload: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// `NBD_CMD_TRIM` was announced.
    pub trim: bool,
    /// A `NBD_CMD_WRITE_ZEROES` that may punch holes is fast.
    pub fast_zeroes: bool,
    /// Of whole pieces of so many bytes, so aligned. Not zero.
    pub fast_zero_bytes: u32,
    /// Which headers and replies were negotiated.
    pub style: Style,
    /// The metadata contexts that were selected.
    pub contexts: Contexts,
    /// Long operations are cut at multiples of it. Not zero.
    pub long_piece: u64,
}

/// A request that may be executed. No length is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read `len` bytes at `offset`.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes, at most the largest payload.
        len: u32,
        /// Answer in one chunk.
        whole: bool,
    },
    /// Write the payload that follows.
    Write {
        /// First byte.
        offset: u64,
        /// Bytes, at most the largest payload.
        len: u32,
        /// Answer only when durable.
        fua: bool,
    },
    /// Make what was answered durable.
    Flush,
    /// The range is no longer needed.
    Trim {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Answer only when durable.
        fua: bool,
    },
    /// The range will be read soon.
    Cache {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Tell what is known of the range.
    BlockStatus {
        /// First byte.
        offset: u64,
        /// Bytes; at most 32 bits of them without extended headers.
        len: u64,
        /// In which contexts; not none.
        contexts: Contexts,
        /// One extent for each of them.
        only_first: bool,
    },
    /// Write zeroes.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Answer only when durable.
        fua: bool,
        /// Holes may be punched.
        unmap: bool,
    },
    /// The client leaves; there is no reply.
    Disconnect,
}

/// A request that is answered with an error instead of being executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which request.
    pub id: RequestId,
    /// The answer.
    pub error: NbdError,
    /// Why, for people.
    pub why: &'static str,
}

impl Terms {
    /// The terms of a connection that chose `export`.
    pub fn of(export: &Export, style: Style, contexts: Contexts) -> Terms {
        let sizes = export.block_sizes();
        let stripe = u64::from(export.geometry.preferred_bytes).clamp(4096, LONG_PIECE_BYTES);
        Terms {
            size_bytes: export.geometry.size_bytes,
            min_block: sizes.min,
            max_payload: sizes.max.min(MAX_REQUEST_BYTES),
            read_only: export.geometry.read_only,
            trim: export.geometry.discard,
            fast_zeroes: export.geometry.unmap_zeroes,
            fast_zero_bytes: export.geometry.fast_zero_bytes.max(1),
            style,
            contexts,
            // An array is cut between its stripes.
            long_piece: LONG_PIECE_BYTES - LONG_PIECE_BYTES % stripe,
        }
    }

    /// Bytes of a request's header.
    pub fn header_bytes(&self) -> usize {
        if self.style == Style::Extended { EXTENDED_REQUEST_BYTES } else { REQUEST_BYTES }
    }
}

impl RawRequest {
    /// Takes a header of [`Terms::header_bytes`] bytes apart; fails only if it is none.
    pub fn parse(style: Style, bytes: &[u8]) -> Result<RawRequest, Violation> {
        let magic = if style == Style::Extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
        let Ok((wire, len)) = WireRequest::ref_from_prefix(bytes) else {
            return Err(Violation::RequestMagic(0));
        };
        if wire.magic.get() != magic {
            return Err(Violation::RequestMagic(wire.magic.get()));
        }
        Ok(RawRequest {
            flags: wire.flags.get(),
            kind: wire.kind.get(),
            cookie: Cookie(wire.cookie.get()),
            offset: wire.offset.get(),
            len: len.iter().fold(0, |number, &byte| number << 8 | u64::from(byte)),
        })
    }

    /// What its reply repeats.
    pub fn id(&self) -> RequestId {
        RequestId { cookie: self.cookie, offset: self.offset }
    }

    /// Bytes of payload that follow the header, whether the request is executed or refused.
    pub fn payload_bytes(&self, style: Style) -> Result<u32, Violation> {
        let has_payload = match style {
            // A write is never without, whatever its flag says: qemu does not set it.
            Style::Extended => self.kind == cmd::WRITE || self.flags & cmd_flags::PAYLOAD_LEN != 0,
            _ => self.kind == cmd::WRITE,
        };
        match u32::try_from(self.len) {
            _ if !has_payload => Ok(0),
            Ok(len) if len <= MAX_DRAIN_BYTES => Ok(len),
            _ => Err(Violation::PayloadTooLong(self.len)),
        }
    }

    /// True if the payload says what a status query is about: [`RawRequest::decide_filtered`] then decides.
    pub(super) fn has_filter(&self, terms: &Terms) -> bool {
        let is_status = self.kind == cmd::BLOCK_STATUS && terms.style == Style::Extended;
        let names_some = (MIN_FILTER_BYTES..=MAX_FILTER_BYTES as u64).contains(&self.len);
        is_status && self.flags & cmd_flags::PAYLOAD_LEN != 0 && names_some && !terms.contexts.is_empty()
    }

    /// What is done with a status query whose payload is `filter`: the length it is about, 64 bits, and numbers of
    /// contexts, 32 bits each.
    pub(super) fn decide_filtered(&self, terms: &Terms, filter: &[u8]) -> Result<Command, Refusal> {
        let refusal = |why| Refusal { id: self.id(), error: NbdError::Einval, why };
        let (len, ids) = filter.split_first_chunk::<8>().ok_or(refusal("payload is too short"))?;
        let mut contexts = Contexts::NONE;
        for id in ids.chunks(4) {
            let id = <[u8; 4]>::try_from(id).map_err(|_| refusal("payload is not whole numbers"))?;
            let known =
                context_of(u32::from_be_bytes(id)).filter(|context| terms.contexts.contains(*context));
            if !contexts.insert(known.ok_or(refusal("metadata context was not selected"))?) {
                return Err(refusal("metadata context is named twice"));
            }
        }
        let (len, flags) = (u64::from_be_bytes(*len), self.flags & !cmd_flags::PAYLOAD_LEN);
        RawRequest { len, flags, ..*self }.decide(&Terms { contexts, ..*terms })
    }

    /// What is done with the request.
    pub fn decide(&self, terms: &Terms) -> Result<Command, Refusal> {
        let (offset, len) = (self.offset, self.len);
        let has = |flag| self.flags & flag != 0;
        if self.kind == cmd::DISC {
            return Ok(Command::Disconnect);
        }
        if let Some((error, why)) = self.objection(terms) {
            return Err(Refusal { id: self.id(), error, why });
        }
        let fua = has(cmd_flags::FUA);
        Ok(match self.kind {
            cmd::FLUSH => Command::Flush,
            cmd::READ => Command::Read { offset, len: len as u32, whole: has(cmd_flags::DF) },
            cmd::WRITE => Command::Write { offset, len: len as u32, fua },
            cmd::TRIM => Command::Trim { offset, len, fua },
            cmd::CACHE => Command::Cache { offset, len },
            cmd::BLOCK_STATUS => {
                let (contexts, only_first) = (terms.contexts, has(cmd_flags::REQ_ONE));
                Command::BlockStatus { offset, len, contexts, only_first }
            }
            _ => Command::WriteZeroes { offset, len, fua, unmap: !has(cmd_flags::NO_HOLE) },
        })
    }

    /// Why the request cannot be executed, if so. The order matters: what the command is comes before whether
    /// it is permitted, and that before where it goes.
    fn objection(&self, terms: &Terms) -> Option<(NbdError, &'static str)> {
        let extended = terms.style == Style::Extended;
        // FUA is accepted on every command: existing clients are known to set it where it means nothing.
        let (known_flags, writes) = match self.kind {
            cmd::READ if terms.style != Style::Simple => (cmd_flags::DF, false),
            cmd::READ | cmd::FLUSH | cmd::CACHE => (0, false),
            cmd::WRITE if extended => (cmd_flags::PAYLOAD_LEN, true),
            cmd::WRITE => (0, true),
            cmd::TRIM if terms.trim || terms.read_only => (0, true),
            cmd::WRITE_ZEROES => (cmd_flags::NO_HOLE | cmd_flags::FAST_ZERO, true),
            cmd::BLOCK_STATUS if !terms.contexts.is_empty() => (cmd_flags::REQ_ONE, false),
            cmd::BLOCK_STATUS => return Some((NbdError::Einval, "no metadata context was selected")),
            _ => return Some((NbdError::Einval, "command is not supported")),
        };
        if self.flags & !(known_flags | cmd_flags::FUA) != 0 {
            return Some((NbdError::Einval, "flags do not belong to this command"));
        }
        if writes && terms.read_only {
            return Some((NbdError::Eperm, "export is read-only"));
        }
        if self.kind == cmd::FLUSH {
            let zero = self.offset == 0 && self.len == 0;
            return (!zero).then_some((NbdError::Einval, "a flush has no offset and no length"));
        }
        // The specification leaves it open what such a request does, so no client means it.
        if self.len == 0 {
            return Some((NbdError::Einval, "a request of no bytes"));
        }
        if matches!(self.kind, cmd::READ | cmd::WRITE) && self.len > u64::from(terms.max_payload) {
            if self.kind == cmd::READ && self.flags & cmd_flags::DF != 0 {
                return Some((NbdError::Eoverflow, "too large for one chunk"));
            }
            return Some((NbdError::Einval, "larger than the maximum block size"));
        }
        if self.offset.checked_add(self.len).is_none_or(|end| end > terms.size_bytes) {
            let error = match self.kind {
                cmd::WRITE | cmd::WRITE_ZEROES => NbdError::Enospc,
                _ => NbdError::Einval,
            };
            return Some((error, "past the end of the export"));
        }
        let min = u64::from(terms.min_block);
        if !self.offset.is_multiple_of(min) || !self.len.is_multiple_of(min) {
            return Some((NbdError::Einval, "not a multiple of the minimum block size"));
        }
        let piece = u64::from(terms.fast_zero_bytes);
        let whole = self.offset.is_multiple_of(piece) && self.len.is_multiple_of(piece);
        let fast = terms.fast_zeroes && whole && self.flags & cmd_flags::NO_HOLE == 0;
        if self.flags & cmd_flags::FAST_ZERO != 0 && self.kind == cmd::WRITE_ZEROES && !fast {
            return Some((NbdError::Enotsup, "zeroing is not faster than writing"));
        }
        None
    }
}

#[cfg(test)]
mod tests;
