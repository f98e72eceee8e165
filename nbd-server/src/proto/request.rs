//! One request: its 28 bytes, and the decision what is done with it.
//!
//! [`RawRequest::decide`] is the only place that judges a client's request; whatever it returns as a
//! [`Command`] is within the device, not larger than the largest payload, and permitted.

use super::Violation;
use super::errno::NbdError;
use super::reply::{Cookie, Style};
use super::wire::{REQUEST_BYTES, REQUEST_MAGIC, cmd, cmd_flags};
use crate::export::Export;
use crate::limits::{MAX_DRAIN_BYTES, MAX_REQUEST_BYTES};
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, Unaligned};

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
    /// Bytes.
    pub len: u32,
}

/// The 28 bytes.
#[derive(FromBytes, Immutable, Unaligned)]
#[repr(C)]
struct WireRequest {
    magic: U32,
    flags: U16,
    kind: U16,
    cookie: U64,
    offset: U64,
    len: U32,
}

const _: () = assert!(size_of::<WireRequest>() == REQUEST_BYTES);

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
    /// Which replies were negotiated.
    pub style: Style,
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
        len: u32,
        /// Answer only when durable.
        fua: bool,
    },
    /// Write zeroes.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
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
    pub cookie: Cookie,
    /// The answer.
    pub error: NbdError,
    /// Why, for people.
    pub why: &'static str,
}

impl Terms {
    /// The terms of a connection that chose `export`.
    pub fn of(export: &Export, style: Style) -> Terms {
        let sizes = export.block_sizes();
        Terms {
            size_bytes: export.geometry.size_bytes,
            min_block: sizes.min,
            max_payload: sizes.max.min(MAX_REQUEST_BYTES),
            read_only: export.geometry.read_only,
            trim: export.geometry.discard,
            fast_zeroes: export.geometry.unmap_zeroes,
            style,
        }
    }
}

impl RawRequest {
    /// Takes the header apart; fails only if it is none.
    pub fn parse(bytes: &[u8; REQUEST_BYTES]) -> Result<RawRequest, Violation> {
        let wire: &WireRequest = zerocopy::transmute_ref!(bytes);
        if wire.magic.get() != REQUEST_MAGIC {
            return Err(Violation::RequestMagic(wire.magic.get()));
        }
        Ok(RawRequest {
            flags: wire.flags.get(),
            kind: wire.kind.get(),
            cookie: Cookie(wire.cookie.get()),
            offset: wire.offset.get(),
            len: wire.len.get(),
        })
    }

    /// Bytes of payload that follow the header, whether the request is executed or refused.
    pub fn payload_bytes(&self) -> Result<u32, Violation> {
        match self.kind {
            cmd::WRITE if self.len > MAX_DRAIN_BYTES => Err(Violation::PayloadTooLong(self.len)),
            cmd::WRITE => Ok(self.len),
            _ => Ok(0),
        }
    }

    /// What is done with the request.
    pub fn decide(&self, terms: &Terms) -> Result<Command, Refusal> {
        let refuse = |error, why| Err(Refusal { cookie: self.cookie, error, why });
        let (offset, len) = (self.offset, self.len);
        let fua = self.flags & cmd_flags::FUA != 0;
        let no_hole = self.flags & cmd_flags::NO_HOLE != 0;
        if self.kind == cmd::DISC {
            return Ok(Command::Disconnect);
        }
        if let Some((error, why)) = self.objection(terms) {
            return refuse(error, why);
        }
        Ok(match self.kind {
            cmd::FLUSH => Command::Flush,
            cmd::READ => Command::Read { offset, len },
            cmd::WRITE => Command::Write { offset, len, fua },
            cmd::TRIM => Command::Trim { offset, len, fua },
            _ => Command::WriteZeroes { offset, len, fua, unmap: !no_hole },
        })
    }

    /// Why the request cannot be executed, if so. The order matters: what the command is comes before whether
    /// it is permitted, and that before where it goes.
    fn objection(&self, terms: &Terms) -> Option<(NbdError, &'static str)> {
        // FUA is accepted on every command: existing clients are known to set it where it means nothing.
        let (known_flags, writes) = match self.kind {
            cmd::READ if terms.style == Style::Structured => (cmd_flags::DF, false),
            cmd::READ | cmd::FLUSH => (0, false),
            cmd::WRITE => (0, true),
            cmd::TRIM if terms.trim || terms.read_only => (0, true),
            cmd::WRITE_ZEROES => (cmd_flags::NO_HOLE | cmd_flags::FAST_ZERO, true),
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
        if matches!(self.kind, cmd::READ | cmd::WRITE) && self.len > terms.max_payload {
            return Some((NbdError::Einval, "larger than the maximum block size"));
        }
        if self.offset.checked_add(u64::from(self.len)).is_none_or(|end| end > terms.size_bytes) {
            let error = match self.kind {
                cmd::WRITE | cmd::WRITE_ZEROES => NbdError::Enospc,
                _ => NbdError::Einval,
            };
            return Some((error, "past the end of the export"));
        }
        let min = u64::from(terms.min_block);
        if !self.offset.is_multiple_of(min) || !u64::from(self.len).is_multiple_of(min) {
            return Some((NbdError::Einval, "not a multiple of the minimum block size"));
        }
        let fast = terms.fast_zeroes && self.flags & cmd_flags::NO_HOLE == 0;
        if self.flags & cmd_flags::FAST_ZERO != 0 && self.kind == cmd::WRITE_ZEROES && !fast {
            return Some((NbdError::Enotsup, "zeroing is not faster than writing"));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms {
        size_bytes: 1 << 30,
        min_block: 1,
        max_payload: 32 << 20,
        read_only: false,
        trim: true,
        fast_zeroes: false,
        style: Style::Structured,
    };

    fn request(kind: u16, flags: u16, offset: u64, len: u32) -> RawRequest {
        RawRequest { flags, kind, cookie: Cookie(7), offset, len }
    }

    fn verdict(terms: Terms, kind: u16, flags: u16, offset: u64, len: u32) -> Result<Command, NbdError> {
        request(kind, flags, offset, len).decide(&terms).map_err(|refusal| refusal.error)
    }

    #[test]
    fn commands_within_the_terms_are_executed() {
        let fua = cmd_flags::FUA;
        let cases = [
            (verdict(TERMS, cmd::READ, 0, 3, 5), Command::Read { offset: 3, len: 5 }),
            (verdict(TERMS, cmd::READ, fua | cmd_flags::DF, 3, 5), Command::Read { offset: 3, len: 5 }),
            (
                verdict(TERMS, cmd::WRITE, 0, 0, 32 << 20),
                Command::Write { offset: 0, len: 32 << 20, fua: false },
            ),
            (verdict(TERMS, cmd::WRITE, fua, 0, 1), Command::Write { offset: 0, len: 1, fua: true }),
            (verdict(TERMS, cmd::FLUSH, fua, 0, 0), Command::Flush),
            (
                verdict(TERMS, cmd::TRIM, fua, 0, 1 << 30),
                Command::Trim { offset: 0, len: 1 << 30, fua: true },
            ),
            (
                verdict(TERMS, cmd::WRITE_ZEROES, 0, 0, 1 << 30),
                Command::WriteZeroes { offset: 0, len: 1 << 30, fua: false, unmap: true },
            ),
            (
                verdict(TERMS, cmd::WRITE_ZEROES, cmd_flags::NO_HOLE, 8, 8),
                Command::WriteZeroes { offset: 8, len: 8, fua: false, unmap: false },
            ),
            (verdict(TERMS, cmd::DISC, 0xffff, u64::MAX, u32::MAX), Command::Disconnect),
        ];
        for (got, expected) in cases {
            assert_eq!(got, Ok(expected));
        }
    }

    #[test]
    fn requests_of_no_bytes_are_einval_wherever_they_go() {
        for kind in [cmd::READ, cmd::WRITE, cmd::TRIM, cmd::WRITE_ZEROES] {
            for offset in [0, 1 << 30, (1 << 30) + 1, u64::MAX] {
                assert_eq!(verdict(TERMS, kind, 0, offset, 0), Err(NbdError::Einval));
            }
        }
    }

    #[test]
    fn the_end_of_the_export_is_einval_to_readers_and_enospc_to_writers() {
        for (offset, len) in [(1 << 30, 1), ((1 << 30) - 1, 2), (u64::MAX, 1), (u64::MAX - 1, 4096)] {
            assert_eq!(verdict(TERMS, cmd::READ, 0, offset, len), Err(NbdError::Einval));
            assert_eq!(verdict(TERMS, cmd::TRIM, 0, offset, len), Err(NbdError::Einval));
            assert_eq!(verdict(TERMS, cmd::WRITE, 0, offset, len), Err(NbdError::Enospc));
            assert_eq!(verdict(TERMS, cmd::WRITE_ZEROES, 0, offset, len), Err(NbdError::Enospc));
        }
    }

    #[test]
    fn unknown_commands_and_flags_are_einval() {
        for kind in [cmd::CACHE, cmd::BLOCK_STATUS, 8, 9, 0xffff] {
            assert_eq!(verdict(TERMS, kind, 0, 0, 1), Err(NbdError::Einval));
        }
        for (kind, flags) in [
            (cmd::READ, cmd_flags::NO_HOLE),
            (cmd::WRITE, cmd_flags::DF),
            (cmd::FLUSH, cmd_flags::FAST_ZERO),
            (cmd::TRIM, cmd_flags::NO_HOLE),
            (cmd::WRITE_ZEROES, 1 << 15),
        ] {
            assert_eq!(verdict(TERMS, kind, flags, 0, 0), Err(NbdError::Einval));
        }
        let simple = Terms { style: Style::Simple, ..TERMS };
        assert_eq!(verdict(simple, cmd::READ, cmd_flags::DF, 0, 1), Err(NbdError::Einval));
        let no_trim = Terms { trim: false, ..TERMS };
        assert_eq!(verdict(no_trim, cmd::TRIM, 0, 0, 1), Err(NbdError::Einval));
        assert_eq!(verdict(TERMS, cmd::FLUSH, 0, 1, 0), Err(NbdError::Einval));
        assert_eq!(verdict(TERMS, cmd::FLUSH, 0, 0, 1), Err(NbdError::Einval));
    }

    #[test]
    fn a_read_only_export_permits_reading_and_flushing_only() {
        let terms = Terms { read_only: true, trim: false, ..TERMS };
        for kind in [cmd::WRITE, cmd::TRIM, cmd::WRITE_ZEROES] {
            assert_eq!(verdict(terms, kind, 0, 0, 1), Err(NbdError::Eperm));
        }
        assert!(verdict(terms, cmd::READ, 0, 0, 1).is_ok());
        assert!(verdict(terms, cmd::FLUSH, 0, 0, 0).is_ok());
    }

    #[test]
    fn payloads_have_a_largest_size_and_blocks_a_smallest() {
        for kind in [cmd::READ, cmd::WRITE] {
            assert_eq!(verdict(TERMS, kind, 0, 0, (32 << 20) + 1), Err(NbdError::Einval));
        }
        let blocks = Terms { min_block: 4096, ..TERMS };
        for (offset, len) in [(1, 4096), (4096, 1), (512, 512)] {
            assert_eq!(verdict(blocks, cmd::READ, 0, offset, len), Err(NbdError::Einval));
        }
        assert!(request(cmd::WRITE, 0, 0, MAX_DRAIN_BYTES).payload_bytes().is_ok());
        assert!(request(cmd::WRITE, 0, 0, MAX_DRAIN_BYTES + 1).payload_bytes().is_err());
        assert_eq!(request(cmd::READ, 0, 0, u32::MAX).payload_bytes(), Ok(0));
    }

    #[test]
    fn a_fast_zero_that_is_not_fast_is_enotsup() {
        let fast = cmd_flags::FAST_ZERO;
        assert_eq!(verdict(TERMS, cmd::WRITE_ZEROES, fast, 0, 1), Err(NbdError::Enotsup));
        let terms = Terms { fast_zeroes: true, ..TERMS };
        assert!(verdict(terms, cmd::WRITE_ZEROES, fast, 0, 1).is_ok());
        let pinned = fast | cmd_flags::NO_HOLE;
        assert_eq!(verdict(terms, cmd::WRITE_ZEROES, pinned, 0, 1), Err(NbdError::Enotsup));
    }
}
