//! Connecting to an export with blocking calls: for command-line tools, and before a device runs.
//!
//! Everything ends within the time given, name resolution included: a resolver that hangs is left to a thread of its
//! own, which ends when the resolver does.

use super::error::{ClientError, ConnectError};
use super::handshake::{Goal, Handshake, Step, Wishes};
use super::terms::Terms;
use super::uri::{Address, NbdUri};
use crate::limits::{CONNECT_TIMEOUT, MAX_ADDRESSES};
use crate::proto::wire::{REQUEST_BYTES, REQUEST_MAGIC, cmd};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

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
    let fail = |error| ConnectError { uri: Box::new(uri.clone()), error };
    if uri.tls.is_some() {
        return Err(fail(ClientError::Tls("the kernel's NBD driver would need it itself".into())));
    }
    let ends = Instant::now() + options.timeout;
    let mut call = Call { stream: dial(&uri.address, ends, options).map_err(fail)?, ends, options };
    let export = call.negotiate(Goal::Go, &uri.export).map_err(fail)?;
    Ok(Connected { stream: call.stream.into_fd().map_err(|error| fail(ClientError::Io(error)))?, export })
}

/// Asks for the export's current size and abilities, and leaves.
pub fn info_blocking(uri: &NbdUri, options: &ConnectOptions) -> Result<Terms, ConnectError> {
    let fail = |error| ConnectError { uri: Box::new(uri.clone()), error };
    if uri.tls.is_some() {
        return Err(fail(ClientError::Tls("it cannot be asked for the size of an export yet".into())));
    }
    let ends = Instant::now() + options.timeout;
    let mut call = Call { stream: dial(&uri.address, ends, options).map_err(fail)?, ends, options };
    call.negotiate(Goal::Info, &uri.export).map_err(fail)
}

/// The addresses of `address`, all of them; unix sockets have none. Waits for the resolver until `ends`.
pub(super) fn resolve(host: &str, port: u16, ends: Instant) -> Result<Vec<SocketAddr>, ClientError> {
    let failed = |source| ClientError::Resolve { host: host.to_owned(), source };
    let (tell, told) = channel();
    let name = (host.to_owned(), port);
    let ask = move || {
        let found = name.to_socket_addrs().map(|found| found.take(MAX_ADDRESSES).collect());
        if tell.send(found).is_err() {
            tracing::debug!("the resolver answered for {} when nobody waited any more", name.0);
        }
    };
    std::thread::Builder::new().name("resolver".into()).spawn(ask).map_err(failed)?;
    match told.recv_timeout(ends.saturating_duration_since(Instant::now())) {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => Err(failed(error)),
        Err(RecvTimeoutError::Timeout) => Err(failed(ErrorKind::TimedOut.into())),
        Err(RecvTimeoutError::Disconnected) => Err(failed(ErrorKind::Other.into())),
    }
}

fn dial(address: &Address, ends: Instant, options: &ConnectOptions) -> Result<Socket, ClientError> {
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
    ends: Instant,
    options: &'a ConnectOptions,
}

impl Call<'_> {
    fn negotiate(&mut self, goal: Goal, export: &str) -> Result<Terms, ClientError> {
        let ConnectOptions { structured, extended, .. } = *self.options;
        let mut handshake = Handshake::new(goal, Wishes { tls: false, structured, extended }, export);
        let (mut input, mut out) = ([0; 4096], Vec::new());
        loop {
            let doing = handshake.doing();
            let count = self.within(|stream| stream.read(&mut input))?;
            if count == 0 {
                return Err(ClientError::Closed(doing));
            }
            let (_, step) = handshake.feed(&input[..count], &mut out);
            let step = step?;
            let has_begun = goal == Goal::Info && matches!(doing, super::Doing::Option(1));
            if matches!(step, Step::Done(_)) && has_begun {
                out.extend_from_slice(&good_bye());
            }
            match self.send(&out) {
                // Who was only asked may hang up before our good-bye.
                Err(_) if goal == Goal::Info && matches!(step, Step::Done(_)) => {}
                sent => sent?,
            }
            out.clear();
            match step {
                Step::More => {}
                Step::Done(terms) => return Ok(terms),
                Step::StartTls => return Err(ClientError::Tls("it was not asked for".into())),
            }
        }
    }

    fn send(&mut self, mut bytes: &[u8]) -> Result<(), ClientError> {
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
