//! From the greeting to the chosen export: fixed newstyle, client side.
//!
//! Bytes go in, bytes to send and steps come out; no I/O, no clock. Asked for, in this order: TLS (if wished; then
//! nothing else is said in clear), extended headers, structured replies, the export with its block sizes. Where the
//! server does not know a thing, the next older one is used, down to `NBD_OPT_EXPORT_NAME`.
//!
//! Invariants: `partial.len() <= need() <= MAX_OPTION_REPLY_BYTES`, so that a server holds at most that much memory;
//! at most `MAX_OPTION_REPLIES` replies are read; after a step other than [`Step::More`] the caller acts on it
//! before it feeds more.

use super::error::{ClientError, Doing, OptionName, ReplyName, Rubbish, Said};
use super::terms::{BlockSizes, Replies, Terms};
use crate::limits::{MAX_OPTION_REPLIES, MAX_OPTION_REPLY_BYTES};
use crate::proto::wire::{
    GREETING_BYTES, INIT_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, handshake_flags, info, opt, rep,
};

/// What a handshake is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Use the export.
    Go,
    /// Learn its size and abilities, and leave.
    Info,
}

/// What to ask for beyond the export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// TLS; without it there is no connection.
    pub tls: bool,
    /// Structured replies, if the server knows them.
    pub structured: bool,
    /// 64-bit headers, if the server knows them.
    pub extended: bool,
}

/// Where a handshake stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// All input is taken: send what is in `out` and feed more.
    More,
    /// Begin TLS now, and call [`Handshake::tls_is_up`] when it stands.
    StartTls,
    /// The export is known: send what is in `out`. With [`Goal::Go`] requests may follow.
    Done(Terms),
}

/// The client's side of a handshake.
#[derive(Debug)]
pub struct Handshake {
    goal: Goal,
    wishes: Wishes,
    export: String,
    state: State,
    /// What has arrived of the item that `state` waits for.
    partial: Vec<u8>,
    replies_read: u32,
    no_zeroes: bool,
    replies: Replies,
    size_and_flags: Option<(u64, u16)>,
    block: Option<BlockSizes>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Greeting,
    ReplyHeader {
        asked: u32,
    },
    ReplyData {
        asked: u32,
        reply: u32,
        len: usize,
    },
    /// The answer to `NBD_OPT_EXPORT_NAME`.
    Export,
    Tls,
    Over,
}

/// `magic, option, reply, length`.
const REPLY_HEADER_BYTES: usize = 20;
/// Set in replies that are errors.
const ERROR_BIT: u32 = 1 << 31;

impl Handshake {
    /// A handshake about to begin. The server speaks first. `export` is at most 4096 bytes long.
    pub fn new(goal: Goal, wishes: Wishes, export: &str) -> Handshake {
        Handshake {
            goal,
            wishes,
            export: export.to_owned(),
            state: State::Greeting,
            partial: Vec::new(),
            replies_read: 0,
            no_zeroes: false,
            replies: Replies::Simple,
            size_and_flags: None,
            block: None,
        }
    }

    /// What is being waited for, for messages.
    pub fn doing(&self) -> Doing {
        match self.state {
            State::Greeting => Doing::Greeting,
            State::ReplyHeader { asked } | State::ReplyData { asked, .. } => Doing::Option(asked),
            State::Export => Doing::Option(opt::EXPORT_NAME),
            State::Tls => Doing::Option(opt::STARTTLS),
            State::Over => Doing::Transmission,
        }
    }

    /// Takes bytes from the server and appends what is to be sent to `out`. Returns how many bytes it took (all
    /// of them unless it stopped at a step) and where the handshake stands. After an error it is over.
    pub fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> (usize, Result<Step, ClientError>) {
        let mut taken = 0;
        loop {
            let missing = self.need() - self.partial.len();
            let used = missing.min(input.len() - taken);
            self.partial.extend_from_slice(&input[taken..taken + used]);
            taken += used;
            if self.state == State::Greeting && !greets(&self.partial) {
                self.partial.clear();
                self.state = State::Over;
                return (taken, Err(ClientError::NotNbd));
            }
            if used < missing || matches!(self.state, State::Tls | State::Over) {
                return (taken, Ok(Step::More));
            }
            let step = self.advance(out);
            if step.is_err() {
                self.state = State::Over;
            }
            match step {
                Ok(Step::More) => {}
                // Whatever came in clear behind the agreement was not said by the server TLS will speak to.
                Ok(Step::StartTls) if taken < input.len() => {
                    return (taken, Err(ClientError::Broken(Rubbish::ClearAfterTls)));
                }
                stop => return (taken, stop),
            }
        }
    }

    /// TLS stands: the handshake goes on inside it.
    pub fn tls_is_up(&mut self, out: &mut Vec<u8>) {
        if self.state == State::Tls {
            self.ask_for_headers(out);
        }
    }

    fn need(&self) -> usize {
        match self.state {
            State::Greeting => GREETING_BYTES,
            State::ReplyHeader { .. } => REPLY_HEADER_BYTES,
            State::ReplyData { len, .. } => len,
            State::Export if self.no_zeroes => 10,
            State::Export => 10 + 124,
            State::Tls | State::Over => 0,
        }
    }

    /// Acts on a complete item.
    fn advance(&mut self, out: &mut Vec<u8>) -> Result<Step, ClientError> {
        let item = std::mem::take(&mut self.partial);
        match self.state {
            State::Greeting => self.greeting(&item, out),
            State::ReplyHeader { asked } => self.header(asked, &item, out),
            State::ReplyData { asked, reply, .. } => {
                self.state = State::ReplyHeader { asked };
                self.reply(asked, reply, &item, out)
            }
            State::Export => {
                self.size_and_flags = Some((be(&item[..8]), be(&item[8..10]) as u16));
                self.done()
            }
            State::Tls | State::Over => Ok(Step::More),
        }
    }

    fn greeting(&mut self, item: &[u8], out: &mut Vec<u8>) -> Result<Step, ClientError> {
        if be(&item[8..16]) != OPTION_MAGIC {
            return Err(ClientError::Oldstyle);
        }
        let flags = be(&item[16..18]) as u16;
        let known = flags & (handshake_flags::FIXED_NEWSTYLE | handshake_flags::NO_ZEROES);
        self.no_zeroes = known & handshake_flags::NO_ZEROES != 0;
        out.extend_from_slice(&u32::from(known).to_be_bytes());
        let fixed = known & handshake_flags::FIXED_NEWSTYLE != 0;
        match (fixed, self.wishes.tls) {
            (true, true) => self.ask(opt::STARTTLS, &[], out),
            (true, false) => self.ask_for_headers(out),
            (false, true) => {
                return Err(ClientError::Tls(
                    "the server is too old for it: use nbd:// in a safe network".into(),
                ));
            }
            (false, false) => self.ask_for_name(out),
        }
        Ok(Step::More)
    }

    fn header(&mut self, asked: u32, item: &[u8], out: &mut Vec<u8>) -> Result<Step, ClientError> {
        let (magic, option) = (be(&item[..8]), be(&item[8..12]) as u32);
        let (reply, len) = (be(&item[12..16]) as u32, be(&item[16..20]) as u32);
        self.replies_read += 1;
        let rubbish = if magic != OPTION_REPLY_MAGIC {
            Rubbish::OptionMagic(magic)
        } else if option != asked {
            Rubbish::WrongOption { asked, got: option }
        } else if len as usize > MAX_OPTION_REPLY_BYTES {
            Rubbish::ReplyTooLong(len)
        } else if self.replies_read > MAX_OPTION_REPLIES {
            Rubbish::EndlessHandshake
        } else if len > 0 {
            self.state = State::ReplyData { asked, reply, len: len as usize };
            return Ok(Step::More);
        } else {
            return self.reply(asked, reply, &[], out);
        };
        Err(ClientError::Broken(rubbish))
    }

    fn reply(&mut self, asked: u32, reply: u32, data: &[u8], out: &mut Vec<u8>) -> Result<Step, ClientError> {
        let is_error = reply & ERROR_BIT != 0;
        match asked {
            opt::STARTTLS | opt::EXTENDED_HEADERS | opt::STRUCTURED_REPLY if reply == rep::ACK => {
                if !data.is_empty() {
                    return Err(ClientError::Broken(Rubbish::WrongLength("an acknowledgement")));
                }
                self.granted(asked, out)
            }
            // What the server does not want is done without; what is wrong in earnest shows at the export.
            opt::EXTENDED_HEADERS if is_error => {
                self.ask_for_structured(out);
                Ok(Step::More)
            }
            opt::STRUCTURED_REPLY if is_error => {
                self.ask_for_export(out);
                Ok(Step::More)
            }
            opt::GO | opt::INFO if reply == rep::INFO => self.info(data),
            opt::GO | opt::INFO if reply == rep::ACK => {
                if asked == opt::INFO {
                    self.ask(opt::ABORT, &[], out);
                }
                self.done()
            }
            opt::GO | opt::INFO if reply == rep::ERR_UNSUP => {
                self.ask_for_name(out);
                Ok(Step::More)
            }
            _ if is_error => Err(ClientError::Refused {
                option: OptionName(asked),
                reply: ReplyName(reply),
                message: Said::new(data),
            }),
            _ => Err(ClientError::Broken(Rubbish::UnexpectedReply { option: asked, reply })),
        }
    }

    fn granted(&mut self, option: u32, out: &mut Vec<u8>) -> Result<Step, ClientError> {
        match option {
            opt::STARTTLS => {
                self.state = State::Tls;
                return Ok(Step::StartTls);
            }
            opt::EXTENDED_HEADERS => self.replies = Replies::Extended,
            _ => self.replies = Replies::Structured,
        }
        self.ask_for_export(out);
        Ok(Step::More)
    }

    fn info(&mut self, data: &[u8]) -> Result<Step, ClientError> {
        let wrong = |what| Err(ClientError::Broken(Rubbish::WrongLength(what)));
        let Some((kind, data)) = data.split_first_chunk::<2>() else {
            return wrong("a piece of information");
        };
        match (u16::from_be_bytes(*kind), data.len()) {
            (info::EXPORT, 10) => self.size_and_flags = Some((be(&data[..8]), be(&data[8..]) as u16)),
            (info::BLOCK_SIZE, 12) => {
                let [min, preferred, max] = [0, 4, 8].map(|at| be(&data[at..at + 4]) as u32);
                let block = BlockSizes::checked(min, preferred, max);
                let rubbish = Rubbish::BlockSizes { min, preferred, max };
                self.block = Some(block.ok_or(ClientError::Broken(rubbish))?);
            }
            (info::EXPORT, _) => return wrong("size and flags"),
            (info::BLOCK_SIZE, _) => return wrong("block sizes"),
            // Names, descriptions, and what is not yet invented.
            _ => {}
        }
        Ok(Step::More)
    }

    fn done(&mut self) -> Result<Step, ClientError> {
        self.state = State::Over;
        let (size_bytes, flags) = self.size_and_flags.ok_or(ClientError::Broken(Rubbish::NoSize))?;
        if i64::try_from(size_bytes).is_err() {
            return Err(ClientError::Broken(Rubbish::Size(size_bytes)));
        }
        let (block, announced) = (self.block.unwrap_or_default(), self.block.is_some());
        Ok(Step::Done(Terms { size_bytes, flags, block, block_announced: announced, replies: self.replies }))
    }

    fn ask_for_headers(&mut self, out: &mut Vec<u8>) {
        if self.wishes.extended {
            self.ask(opt::EXTENDED_HEADERS, &[], out)
        } else {
            self.ask_for_structured(out)
        }
    }

    fn ask_for_structured(&mut self, out: &mut Vec<u8>) {
        if self.wishes.structured {
            self.ask(opt::STRUCTURED_REPLY, &[], out)
        } else {
            self.ask_for_export(out)
        }
    }

    fn ask_for_export(&mut self, out: &mut Vec<u8>) {
        let mut data = (self.export.len() as u32).to_be_bytes().to_vec();
        data.extend_from_slice(self.export.as_bytes());
        data.extend_from_slice(&1u16.to_be_bytes());
        data.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
        self.ask(if self.goal == Goal::Go { opt::GO } else { opt::INFO }, &data, out);
    }

    /// The oldest way. It starts transmission also if the goal was to learn only.
    fn ask_for_name(&mut self, out: &mut Vec<u8>) {
        let name = std::mem::take(&mut self.export);
        self.ask(opt::EXPORT_NAME, name.as_bytes(), out);
        self.state = State::Export;
    }

    fn ask(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        out.extend_from_slice(&option.to_be_bytes());
        out.extend_from_slice(&(data.len() as u32).to_be_bytes());
        out.extend_from_slice(data);
        self.state = State::ReplyHeader { asked: option };
    }
}

/// True while `bytes` may still become a greeting: what speaks first and is no NBD server is known by its first byte.
fn greets(bytes: &[u8]) -> bool {
    let magic = INIT_MAGIC.to_be_bytes();
    let front = bytes.len().min(magic.len());
    bytes[..front] == magic[..front]
}

/// A number of up to eight bytes.
fn be(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests;
