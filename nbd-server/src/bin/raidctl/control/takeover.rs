//! The words of a takeover, which one process asks of another over the control socket, and the wire that carries them
//! and the sockets. docs/TAKEOVER.md tells the whole conversation.
//!
//! The two may be of different versions: words that are added later are optional, and what changes the meaning of
//! those here takes a new number in [`PROTOCOLS`]. Nothing here waits without an end.

use super::MAX_REQUEST_LINE;
use crate::report::StatusReport;
use rustix::cmsg_space;
use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// The forms of this conversation that this version can lead.
pub const PROTOCOLS: [u32; 1] = [1];
/// Most sockets handed over: listeners, control, service manager.
pub const MAX_SOCKETS: usize = nbd_server::limits::MAX_LISTENERS + 2;

/// What the new process says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Ask {
    /// "I would take over": answered with [`Answer::Offer`]. Nothing has happened yet.
    Takeover {
        /// The forms it can lead.
        protocols: Vec<u32>,
        /// Its version, for the log.
        version: String,
    },
    /// "Let go": answered with [`Answer::Released`] once clients are gone and devices free.
    Release,
    /// "I serve": the old process has nothing left to do.
    Serving,
}

/// What the old process says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// What there is to take.
    Offer(Offer),
    /// It is let go of; the sockets come with this line, in this order.
    Released(Vec<Passed>),
    /// The new process is alone from now on.
    Done(String),
    /// The same, but the old process was asked to stop meanwhile, and so the new one is.
    Stop,
    /// No, and why.
    Error(String),
}

/// What a running daemon has to hand over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The form it chose.
    pub protocol: u32,
    /// Its version, for the log.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// The arrays it serves.
    pub arrays: Vec<ArrayName>,
    /// The devices of those, those added since it was started included.
    pub devices: Vec<String>,
    /// Where it listens, as `--listen` takes it, without what is said of TLS.
    pub listen: Vec<String>,
    /// Where clients may or must use TLS: the place, and `allow` or `require`.
    #[serde(default)]
    pub tls: BTreeMap<String, String>,
    /// How long it may take to let go.
    pub release_within_s: u64,
    /// How long it then waits for `serving` before it takes everything back.
    pub serve_within_s: u64,
    /// The interval of the service manager's watchdog, if there is one.
    #[serde(default)]
    pub watchdog_us: Option<u64>,
}

/// A socket that is handed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passed {
    /// What for.
    pub role: Role,
    /// Its file is the daemon's, which removes it when it stops.
    #[serde(default)]
    pub owns_file: bool,
    /// It is the service manager's, and open there as well.
    #[serde(default)]
    pub of_manager: bool,
}

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// For clients.
    Listen,
    /// For control.
    Control,
    /// To the service manager.
    Notify,
}

/// Names an array beyond doubt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArrayName {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
}

impl ArrayName {
    /// All in a report.
    pub fn all(report: &StatusReport) -> Vec<ArrayName> {
        let name = |array: &crate::report::ArrayReport| ArrayName {
            name: array.name.clone(),
            uuid: array.uuid.clone(),
        };
        report.arrays.iter().map(name).collect()
    }

    /// True if the report has it.
    pub fn is_in(&self, report: &StatusReport) -> bool {
        report.arrays.iter().any(|array| array.uuid == self.uuid && array.name == self.name)
    }
}

impl fmt::Display for ArrayName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.uuid)
    }
}

/// One end of the conversation. Lines are received one at a time: no more is taken from the socket than was asked for,
/// so that the sockets that come with a line are not lost.
pub struct Wire {
    stream: UnixStream,
    line: Vec<u8>,
    sockets: Vec<OwnedFd>,
}

impl Wire {
    /// Over a connection on which no answer is under way.
    pub fn new(stream: UnixStream) -> io::Result<Wire> {
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(super::WRITE_LIMIT))?;
        Ok(Wire { stream, line: Vec::new(), sockets: Vec::new() })
    }

    /// Sends a line, and `sockets` with it.
    pub fn send(&mut self, message: &impl Serialize, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        let mut space = vec![MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_SOCKETS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !sockets.is_empty() && !control.push(SendAncillaryMessage::ScmRights(sockets)) {
            return Err(io::Error::other("too many sockets"));
        }
        let mut send = || sendmsg(&self.stream, &[IoSlice::new(&line)], &mut control, SendFlags::NOSIGNAL);
        let sent = retry_on_intr(&mut send)?;
        self.stream.write_all(&line[sent..])
    }

    /// The next line, and the sockets that came with it; `None` if the other end is gone. After a timeout it can be
    /// called again.
    pub fn receive<T: DeserializeOwned>(
        &mut self,
        patience: Duration,
    ) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let until = Instant::now() + patience;
        loop {
            if let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
                let rest = self.line.split_off(end + 1);
                let line = std::mem::replace(&mut self.line, rest);
                return Ok(Some((serde_json::from_slice(&line)?, std::mem::take(&mut self.sockets))));
            }
            if self.line.len() > MAX_REQUEST_LINE || self.sockets.len() > MAX_SOCKETS {
                return Err(io::Error::other("a line or a list of sockets has no end"));
            }
            if self.receive_some(until.saturating_duration_since(Instant::now()))? == 0 {
                return Ok(None);
            }
        }
    }

    fn receive_some(&mut self, patience: Duration) -> io::Result<usize> {
        // Zero would mean for ever.
        self.stream.set_read_timeout(Some(patience.max(Duration::from_millis(1))))?;
        let mut bytes = [0; 4096];
        let mut space = vec![MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_SOCKETS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        // A ring that was closed a moment ago interrupts the thread that used it.
        let received = retry_on_intr(|| {
            let room = &mut [IoSliceMut::new(&mut bytes)];
            recvmsg(&self.stream, room, &mut control, RecvFlags::CMSG_CLOEXEC)
        })?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(sockets) = message {
                self.sockets.extend(sockets);
            }
        }
        self.line.extend_from_slice(&bytes[..received.bytes]);
        Ok(received.bytes)
    }
}

/// True if an operation ended for want of time only.
pub fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    const LONG: Duration = Duration::from_secs(60);

    fn wires() -> (Wire, Wire) {
        let (one, other) = UnixStream::pair().unwrap();
        (Wire::new(one).unwrap(), Wire::new(other).unwrap())
    }

    #[test]
    fn sockets_come_with_their_line() {
        let (mut old, mut new) = wires();
        let (socket, mut peer) = UnixStream::pair().unwrap();
        let passed = vec![Passed { role: Role::Listen, owns_file: true, of_manager: false }; 3];
        old.send(&Answer::Released(passed.clone()), &[socket.as_fd(); 3]).unwrap();
        old.send(&Answer::Done("bye".into()), &[]).unwrap();
        let (answer, sockets) = new.receive::<Answer>(LONG).unwrap().unwrap();
        assert_eq!((answer, sockets.len()), (Answer::Released(passed), 3));
        let mut received = UnixStream::from(sockets.into_iter().next().unwrap());
        received.write_all(b"x").unwrap();
        io::Read::read_exact(&mut peer, &mut [0]).unwrap();
        let (answer, sockets) = new.receive::<Answer>(LONG).unwrap().unwrap();
        assert_eq!((answer, sockets.len()), (Answer::Done("bye".into()), 0));
        drop(old);
        assert!(new.receive::<Answer>(LONG).unwrap().is_none());
    }

    #[test]
    fn a_wait_ends_and_can_be_taken_up_again() {
        let (mut old, mut new) = wires();
        old.stream.write_all(b"{\"op\":").unwrap();
        assert!(is_timeout(&new.receive::<Ask>(Duration::from_millis(20)).unwrap_err()));
        old.stream.write_all(b"\"release\"}\n").unwrap();
        assert_eq!(new.receive::<Ask>(LONG).unwrap().unwrap().0, Ask::Release);
    }

    #[test]
    fn a_line_without_an_end_is_cut_off() {
        let (old, mut new) = wires();
        let mut stream = old.stream.try_clone().unwrap();
        let writing = std::thread::spawn(move || stream.write_all(&vec![b'x'; 4 * MAX_REQUEST_LINE]));
        assert!(new.receive::<Ask>(LONG).is_err());
        drop(new);
        assert!(writing.join().unwrap().is_err());
    }

    /// What a later version adds is passed over; what is asked for in words of this one stays as it is.
    #[test]
    fn the_words_of_the_first_protocol_are_these() {
        let ask = r#"{"op":"takeover","protocols":[1,2],"version":"9.0","colour":"blue"}"#;
        let ask: Ask = serde_json::from_str(ask).unwrap();
        assert_eq!(ask, Ask::Takeover { protocols: vec![1, 2], version: "9.0".into() });
        assert_eq!(serde_json::to_string(&Ask::Serving).unwrap(), r#"{"op":"serving"}"#);
        let released =
            Answer::Released(vec![Passed { role: Role::Control, owns_file: false, of_manager: false }]);
        let line = r#"{"released":[{"role":"control","owns_file":false,"of_manager":false}]}"#;
        assert_eq!(serde_json::to_string(&released).unwrap(), line);
    }
}
