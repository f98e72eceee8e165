//! Connecting to an export with blocking calls: for command-line tools, and before a device runs.
//!
//! Everything ends within the time given, name resolution included.

use super::codec::Codec;
use super::error::{ClientError, ConnectError, Doing, Rubbish};
use super::handshake::{Goal, Handshake, Step, Wishes};
use super::resolver::resolve;
use super::terms::Terms;
use super::uri::{Address, NbdUri};
use crate::limits::CONNECT_TIMEOUT;
use crate::proto::wire::{REQUEST_BYTES, REQUEST_MAGIC, cmd, opt};
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Receives in which a server that has hung up may have said why.
const LAST_WORDS: u32 = 4;

/// How to connect.
#[derive(Clone, Copy, Debug)]
pub struct ConnectOptions {
    /// How long all of it may take.
    pub timeout: Duration,
    /// Structured replies, if the server knows them.
    pub structured: bool,
    /// 64-bit headers, if the server knows them.
    pub extended: bool,
}

impl Default for ConnectOptions {
    /// Ten seconds, structured replies, headers as everybody knows them.
    fn default() -> ConnectOptions {
        ConnectOptions { timeout: CONNECT_TIMEOUT, structured: true, extended: false }
    }
}

/// A connection on which requests may be sent.
#[derive(Debug)]
pub struct Connected {
    /// The socket, in blocking mode and without timeouts; TCP has `TCP_NODELAY`.
    pub stream: OwnedFd,
    /// The export.
    pub export: Terms,
}

/// Connects and chooses the export. TLS cannot be handed over as a socket: a URI with it is refused.
pub fn connect_blocking(uri: &NbdUri, options: &ConnectOptions) -> Result<Connected, ConnectError> {
    if uri.tls.is_some() {
        let error = ClientError::Tls("the connection is to be handed over, and its keys cannot be".into());
        return Err(ConnectError { uri: Box::new(uri.clone()), error });
    }
    let Dialled { stream, export, .. } = dial(uri, options)?;
    Ok(Connected { stream, export })
}

/// Asks for the export's current size and abilities, and leaves.
pub fn info_blocking(uri: &NbdUri, options: &ConnectOptions) -> Result<Terms, ConnectError> {
    let asked = Call::begin(uri, options).and_then(|mut call| call.negotiate(Goal::Info, uri));
    asked.map_err(|error| ConnectError { uri: Box::new(uri.clone()), error })
}

/// A connection on which requests may be sent, with what its bytes go through.
#[derive(Debug)]
pub(super) struct Dialled {
    pub(super) stream: OwnedFd,
    pub(super) export: Terms,
    pub(super) codec: Codec,
}

/// Connects and chooses the export, in clear or by TLS as the URI says.
pub(super) fn dial(uri: &NbdUri, options: &ConnectOptions) -> Result<Dialled, ConnectError> {
    let dialled = Call::begin(uri, options).and_then(|mut call| {
        let export = call.negotiate(Goal::Go, uri)?;
        let stream = call.stream.into_fd().map_err(ClientError::Io)?;
        Ok(Dialled { stream, export, codec: call.codec })
    });
    dialled.map_err(|error| ConnectError { uri: Box::new(uri.clone()), error })
}

fn open_socket(address: &Address, ends: Instant, options: &ConnectOptions) -> Result<Socket, ClientError> {
    match address {
        Address::Unix(path) => dial_unix(path).map(Socket::Unix).map_err(ClientError::Connect),
        Address::Tcp { host, port } => {
            let mut last = ClientError::Connect(ErrorKind::AddrNotAvailable.into());
            for at in resolve(host, *port, ends)? {
                let left = ends.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(ClientError::Silent { seconds: options.timeout.as_secs() });
                }
                match TcpStream::connect_timeout(&at, left) {
                    Ok(stream) => {
                        stream.set_nodelay(true).map_err(ClientError::Io)?;
                        return Ok(Socket::Tcp(stream));
                    }
                    Err(error) => last = ClientError::Connect(error),
                }
            }
            Err(last)
        }
    }
}

/// A unix socket whose backlog is full would make a blocking connect wait without an end; like this it is refused.
fn dial_unix(path: &Path) -> io::Result<UnixStream> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&fd, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    fn set_timeouts(&self, limit: Option<Duration>) -> io::Result<()> {
        match self {
            Socket::Tcp(stream) => {
                stream.set_read_timeout(limit).and_then(|()| stream.set_write_timeout(limit))
            }
            Socket::Unix(stream) => {
                stream.set_read_timeout(limit).and_then(|()| stream.set_write_timeout(limit))
            }
        }
    }

    fn into_fd(self) -> io::Result<OwnedFd> {
        self.set_timeouts(None)?;
        Ok(match self {
            Socket::Tcp(stream) => stream.into(),
            Socket::Unix(stream) => stream.into(),
        })
    }

    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.read(target),
            Socket::Unix(stream) => stream.read(target),
        }
    }

    fn write(&mut self, source: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.write(source),
            Socket::Unix(stream) => stream.write(source),
        }
    }
}

/// A conversation that must have ended at `ends`.
struct Call<'a> {
    stream: Socket,
    codec: Codec,
    ends: Instant,
    options: &'a ConnectOptions,
}

impl<'a> Call<'a> {
    fn begin(uri: &NbdUri, options: &'a ConnectOptions) -> Result<Call<'a>, ClientError> {
        let ends = Instant::now() + options.timeout;
        Ok(Call { stream: open_socket(&uri.address, ends, options)?, codec: Codec::default(), ends, options })
    }

    fn negotiate(&mut self, goal: Goal, uri: &NbdUri) -> Result<Terms, ClientError> {
        let ConnectOptions { structured, extended, .. } = *self.options;
        let wishes = Wishes { tls: uri.tls.is_some(), structured, extended };
        let mut handshake = Handshake::new(goal, wishes, &uri.export);
        loop {
            let doing = handshake.doing();
            let input = self.receive(doing)?;
            let mut out = Vec::new();
            let (taken, step) = handshake.feed(&input, &mut out);
            let step = step?;
            let is_done = matches!(step, Step::Done(_));
            if is_done && taken < input.len() {
                return Err(ClientError::Broken(Rubbish::Unasked));
            }
            // The oldest way of asking has begun to use the export.
            if is_done && goal == Goal::Info && doing == Doing::Option(opt::EXPORT_NAME) {
                out.extend_from_slice(&good_bye());
            }
            match self.say(&out) {
                // Who was only asked may hang up before our good-bye.
                Err(_) if goal == Goal::Info && is_done => {}
                sent => sent?,
            }
            match step {
                Step::More => {}
                Step::Done(terms) => return Ok(terms),
                Step::StartTls => {
                    self.start_tls(uri)?;
                    let mut out = Vec::new();
                    handshake.tls_is_up(&mut out);
                    self.say(&out)?;
                }
            }
        }
    }

    fn start_tls(&mut self, uri: &NbdUri) -> Result<(), ClientError> {
        self.codec.start(uri)?;
        self.send(&[])?;
        while self.codec.is_handshaking() {
            // A server speaks only when it is asked: nothing but the agreement can be in here.
            if !self.receive(Doing::Option(opt::STARTTLS))?.is_empty() {
                return Err(ClientError::Broken(Rubbish::Unasked));
            }
        }
        Ok(())
    }

    /// Some bytes of the protocol; none if what came was for the codec.
    fn receive(&mut self, doing: Doing) -> Result<Vec<u8>, ClientError> {
        let mut input = [0; 4096];
        let count = self.within(|stream| stream.read(&mut input))?;
        if count == 0 {
            return Err(ClientError::Closed(doing));
        }
        let mut plain = Vec::new();
        let opened = self.codec.open(&input[..count], |bytes| {
            plain.extend_from_slice(bytes);
            Ok::<(), ClientError>(())
        });
        if self.codec.is_tls() {
            // What the agreement has to say, and the reason if there is none.
            let told = self.send(&[]);
            opened?;
            told?;
        }
        Ok(plain)
    }

    /// Sends. A server may have refused our certificate and hung up when it was not yet awaited: then what it said
    /// is worth more than that it does not listen any more.
    fn say(&mut self, plain: &[u8]) -> Result<(), ClientError> {
        let sent = self.send(plain);
        if self.codec.is_tls() && matches!(sent, Err(ClientError::Io(_))) {
            for _ in 0..LAST_WORDS {
                match self.receive(Doing::Option(opt::STARTTLS)) {
                    Ok(_) => {}
                    Err(why @ ClientError::Tls(_)) => return Err(why),
                    Err(_) => break,
                }
            }
        }
        sent
    }

    fn send(&mut self, plain: &[u8]) -> Result<(), ClientError> {
        let mut sealed = Vec::new();
        self.codec.seal(&[plain], &mut sealed);
        let mut bytes = &sealed[..];
        while !bytes.is_empty() {
            match self.within(|stream| stream.write(bytes))? {
                0 => return Err(ClientError::Io(ErrorKind::WriteZero.into())),
                count => bytes = &bytes[count..],
            }
        }
        Ok(())
    }

    /// Runs one call with what is left of the time.
    fn within(
        &mut self,
        mut call: impl FnMut(&mut Socket) -> io::Result<usize>,
    ) -> Result<usize, ClientError> {
        loop {
            let left = self.ends.saturating_duration_since(Instant::now());
            let silent = ClientError::Silent { seconds: self.options.timeout.as_secs() };
            if left.is_zero() {
                return Err(silent);
            }
            self.stream.set_timeouts(Some(left)).map_err(ClientError::Io)?;
            match call(&mut self.stream) {
                Ok(count) => return Ok(count),
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => return Err(silent),
                    _ => return Err(ClientError::Io(error)),
                },
            }
        }
    }
}

/// The request that ends a session.
fn good_bye() -> [u8; REQUEST_BYTES] {
    let mut request = [0; REQUEST_BYTES];
    request[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    request[6..8].copy_from_slice(&cmd::DISC.to_be_bytes());
    request
}
