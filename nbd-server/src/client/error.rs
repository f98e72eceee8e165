//! Why there is no connection to an export: what the server said, or what it did that no server may.

use super::NbdUri;
use crate::limits::MAX_SHOWN_CHARS;
use std::fmt;
use std::io;

/// A failed attempt to use an export, with its name.
#[derive(Debug, thiserror::Error)]
#[error("{uri}: {error}")]
pub struct ConnectError {
    /// Which export.
    pub uri: Box<NbdUri>,
    /// Why.
    #[source]
    pub error: ClientError,
}

/// What can go wrong between a client and a server. Nothing a server says is trusted; texts of servers are shown
/// without control characters and cut.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The name cannot be resolved.
    #[error("cannot find the host {host:?} ({source}): check the name")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver says.
        source: io::Error,
    },
    /// Nobody answers there.
    #[error("cannot connect ({0}): check that the server runs and listens there")]
    Connect(io::Error),
    /// The connection broke.
    #[error("the connection failed ({0})")]
    Io(io::Error),
    /// The server says nothing.
    #[error("the server did not answer within {seconds} s: check that it is alive and speaks NBD")]
    Silent {
        /// How long it was waited for.
        seconds: u64,
    },
    /// The server hung up.
    #[error("the server closed the connection while {0}")]
    Closed(Doing),
    /// Not a server of NBD.
    #[error("what listens there is no NBD server: check host and port")]
    NotNbd,
    /// A server of before 2012.
    #[error("the server speaks only oldstyle NBD, which is not supported: use a newer one")]
    Oldstyle,
    /// The server refuses an option.
    #[error("the server refuses {option}: {reply}{message}")]
    Refused {
        /// What was asked for.
        option: OptionName,
        /// The reply's name.
        reply: ReplyName,
        /// What the server says about it.
        message: Said,
    },
    /// The server breaks the protocol.
    #[error("the server breaks the protocol: {0}")]
    Broken(Rubbish),
    /// A request was not answered by its deadline.
    #[error("a request was not answered in time")]
    NoAnswer,
    /// The server says that it ends.
    #[error("the server is shutting down")]
    Closing,
    /// Memory for the connection.
    #[error("there is no memory for the connection: use fewer devices, or larger memory")]
    NoMemory,
    /// Its blocks are larger than a device may have.
    #[error("its smallest block has {0} bytes, and 4096 is the most that is supported")]
    BlockTooLarge(u32),
    /// Nothing tells when what is written to it is durable.
    #[error(
        "it may be written and offers no flush (NBD_FLAG_SEND_FLUSH), so acknowledged data could be lost unseen: \
         turn flush on at its server, or serve it read-only"
    )]
    NoFlush,
    /// There is nothing to be a device.
    #[error("it has {0} bytes, less than a block")]
    TooSmall(u64),
    /// TLS is asked for and cannot be had, or was broken.
    #[error("TLS has failed: {0}")]
    Tls(String),
}

/// What was being done when a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Waiting for the greeting.
    Greeting,
    /// Negotiating this option.
    Option(u32),
    /// Serving requests.
    Transmission,
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Doing::Greeting => f.write_str("the greeting was awaited"),
            // It has no error reply: this is how a server says no.
            Doing::Option(1) => f.write_str("the export was asked for: most likely it has none of this name"),
            Doing::Option(option) => write!(f, "{} was negotiated", OptionName(*option)),
            Doing::Transmission => f.write_str("requests were served"),
        }
    }
}

/// What a server did that no server may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rubbish {
    /// A reply to an option without its magic.
    #[error("a reply to an option starts with {0:#018x}")]
    OptionMagic(u64),
    /// A reply to something else than was asked.
    #[error("it answered option {got} where {asked} was asked")]
    WrongOption {
        /// What was asked.
        asked: u32,
        /// What was answered.
        got: u32,
    },
    /// A reply that means nothing here.
    #[error("reply {reply:#x} to option {option}")]
    UnexpectedReply {
        /// What was asked.
        option: u32,
        /// What came.
        reply: u32,
    },
    /// A reply longer than any may be.
    #[error("a reply of {0} bytes to an option")]
    ReplyTooLong(u32),
    /// Replies without an end.
    #[error("its handshake does not end")]
    EndlessHandshake,
    /// Data of the wrong length.
    #[error("{0} of a wrong length")]
    WrongLength(&'static str),
    /// It agreed without telling the size.
    #[error("it agreed without telling the export's size")]
    NoSize,
    /// Block sizes that contradict each other.
    #[error("block sizes {min}, {preferred}, {max}")]
    BlockSizes {
        /// Smallest.
        min: u32,
        /// Preferred.
        preferred: u32,
        /// Largest.
        max: u32,
    },
    /// A size no file can have.
    #[error("an export of {0} bytes")]
    Size(u64),
    /// Bytes in clear behind the agreement to use TLS.
    #[error("bytes in clear after it agreed to TLS")]
    ClearAfterTls,
    /// It says something before it was asked.
    #[error("it speaks before it is asked")]
    Unasked,
    /// A reply to a request without its magic.
    #[error("a reply starts with {0:#010x}")]
    ReplyMagic(u32),
    /// A reply to no request.
    #[error("a reply to request {0:#x}, which was not asked")]
    Cookie(u64),
    /// A chunk of a kind that does not answer this request, or is not known.
    #[error("a chunk of type {0:#x} that does not answer its request")]
    ChunkType(u16),
    /// A chunk whose length does not fit its kind.
    #[error("a chunk of type {kind:#x} with {len} bytes")]
    ChunkLength {
        /// Its type.
        kind: u16,
        /// Its length.
        len: u64,
    },
    /// Data for bytes that were not asked for.
    #[error("data for bytes that were not asked for")]
    OutsideRequest,
    /// Data twice for one byte.
    #[error("data twice for the same bytes")]
    Overlap,
    /// Success without all data.
    #[error("a read answered well with {0} bytes missing")]
    Missing(u64),
    /// More chunks than a reply may have.
    #[error("a reply that does not end")]
    EndlessReply,
    /// An error chunk with error number zero.
    #[error("an error without an error number")]
    ErrorZero,
}

/// An option, printed by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionName(pub u32);

impl fmt::Display for OptionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            1 => "the export (NBD_OPT_EXPORT_NAME)",
            5 => "TLS (NBD_OPT_STARTTLS)",
            6 => "the export (NBD_OPT_INFO)",
            7 => "the export (NBD_OPT_GO)",
            8 => "structured replies (NBD_OPT_STRUCTURED_REPLY)",
            11 => "extended headers (NBD_OPT_EXTENDED_HEADERS)",
            other => return write!(f, "option {other}"),
        })
    }
}

/// An error reply to an option, printed with what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyName(pub u32);

impl fmt::Display for ReplyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 & 0x7fff_ffff {
            1 => "not supported (NBD_REP_ERR_UNSUP)",
            2 => "forbidden by its policy (NBD_REP_ERR_POLICY)",
            3 => "malformed (NBD_REP_ERR_INVALID)",
            4 => "not supported on its platform (NBD_REP_ERR_PLATFORM)",
            5 => "it wants TLS: use nbds:// (NBD_REP_ERR_TLS_REQD)",
            6 => "it has no export of this name (NBD_REP_ERR_UNKNOWN)",
            7 => "it is shutting down (NBD_REP_ERR_SHUTDOWN)",
            8 => "it wants the block size known (NBD_REP_ERR_BLOCK_SIZE_REQD)",
            9 => "too long (NBD_REP_ERR_TOO_BIG)",
            other => return write!(f, "error {other}"),
        })
    }
}

/// A text a server sent, fit to be shown: cut, and without control characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said(String);

impl Said {
    /// From bytes that ought to be UTF-8.
    pub fn new(bytes: &[u8]) -> Said {
        // A character has at most four bytes: what is behind is cut off anyway.
        let front = &bytes[..bytes.len().min(4 * MAX_SHOWN_CHARS)];
        let text = String::from_utf8_lossy(front);
        Said(text.chars().take(MAX_SHOWN_CHARS).flat_map(char::escape_debug).collect())
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "; it says \"{}\"", self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_words_cannot_reach_the_terminal_as_commands_nor_fill_it() {
        let said = Said::new(b"no\x1b[2Jway\xff\n").to_string();
        assert_eq!(said, "; it says \"no\\u{1b}[2Jway\u{fffd}\\n\"");
        assert!(Said::new(&[b'x'; 4096]).to_string().len() < MAX_SHOWN_CHARS + 20);
        assert_eq!(Said::new(b"").to_string(), "");
    }
}
