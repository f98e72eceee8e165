//! Where clients connect: unix sockets and TCP ports.
//!
//! A unix socket's file that nobody listens behind any more is left over from a killed server and is replaced;
//! one that somebody listens behind is never touched. TCP sockets set SO_REUSEADDR, so that a restarted server
//! need not wait for old connections to be forgotten.

use crate::tls::{TlsMode, UnknownTlsMode};
use raidcore::uring::SharedFd;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// An address to listen on: `unix:PATH` or `tcp:ADDR:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddr {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP port; port 0 takes a free one.
    Tcp(SocketAddr),
}

/// Why it is not possible to listen somewhere.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// It is no address.
    #[error("{0:?} is no address to listen on: use unix:PATH or tcp:ADDR:PORT")]
    BadAddress(String),
    /// What is said of TLS is not understood.
    #[error(transparent)]
    BadTls(UnknownTlsMode),
    /// Another server is alive behind this socket.
    #[error("another server listens on {0}: stop it or choose another path")]
    Live(PathBuf),
    /// There is something at the path that is no socket.
    #[error("{0} exists and is not a socket: remove it or choose another path")]
    NotASocket(PathBuf),
    /// A socket that was handed to us is not one that clients can connect to.
    #[error("it is {0}, not a listening stream socket with a unix path or a TCP port")]
    NotAListener(&'static str),
    /// The system refuses.
    #[error("cannot listen on {addr}: {source}")]
    Io {
        /// Where.
        addr: ListenAddr,
        /// Why.
        source: io::Error,
    },
}

impl FromStr for ListenAddr {
    type Err = ListenError;

    fn from_str(text: &str) -> Result<ListenAddr, ListenError> {
        let bad = || ListenError::BadAddress(text.to_owned());
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(ListenAddr::Unix(PathBuf::from(path))),
            Some(("tcp", addr)) => {
                let resolved = addr.to_socket_addrs().map_err(|_| bad())?.next();
                resolved.map(ListenAddr::Tcp).ok_or_else(bad)
            }
            _ => Err(bad()),
        }
    }
}

/// An address to listen on, and what is said of TLS there: `ADDR[,tls=off|allow|require]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenSpec {
    /// The address.
    pub addr: ListenAddr,
    /// Whether clients use TLS; `None` leaves it to what is said of all addresses.
    pub tls: Option<TlsMode>,
}

impl FromStr for ListenSpec {
    type Err = ListenError;

    fn from_str(text: &str) -> Result<ListenSpec, ListenError> {
        match text.rsplit_once(",tls=") {
            Some((addr, mode)) => {
                Ok(ListenSpec { addr: addr.parse()?, tls: Some(mode.parse().map_err(ListenError::BadTls)?) })
            }
            None => Ok(ListenSpec { addr: text.parse()?, tls: None }),
        }
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddr::Unix(path) => write!(f, "unix:{}", path.display()),
            ListenAddr::Tcp(addr) => write!(f, "tcp:{addr}"),
        }
    }
}

/// A bound socket. Clients that connect wait in its queue until a reactor accepts them. Dropping it removes the
/// file of a unix socket, unless somebody has put another one in its place.
#[derive(Debug)]
pub struct Listener {
    addr: ListenAddr,
    fd: SharedFd,
    /// Device and inode of the unix socket's file.
    file: Option<(u64, u64)>,
    tls: TlsMode,
}

impl Listener {
    /// Binds and listens. Blocks only as long as the system needs for that.
    pub fn bind(addr: &ListenAddr) -> Result<Listener, ListenError> {
        match addr {
            ListenAddr::Unix(path) => Listener::bind_unix(path),
            ListenAddr::Tcp(tcp) => {
                let io = |source| ListenError::Io { addr: addr.clone(), source };
                let socket = TcpListener::bind(tcp).map_err(io)?;
                let addr = ListenAddr::Tcp(socket.local_addr().map_err(io)?);
                Ok(Listener { addr, fd: Arc::new(OwnedFd::from(socket)), file: None, tls: TlsMode::Off })
            }
        }
    }

    /// Takes over a socket that listens already: one of systemd's, or of the server that was here before. The file of
    /// a unix socket stays whoever's it is; see [`Listener::own_file`].
    pub fn inherited(fd: OwnedFd) -> Result<Listener, ListenError> {
        use rustix::net::{AddressFamily, SocketType, sockopt};
        let refused = |_| ListenError::NotAListener("no socket");
        if sockopt::socket_type(&fd).map_err(refused)? != SocketType::STREAM {
            return Err(ListenError::NotAListener("a socket without connections"));
        }
        let family = sockopt::socket_domain(&fd).map_err(refused)?;
        if !matches!(family, AddressFamily::UNIX | AddressFamily::INET | AddressFamily::INET6) {
            return Err(ListenError::NotAListener("a socket of another protocol"));
        }
        if !sockopt::socket_acceptconn(&fd).map_err(refused)? {
            return Err(ListenError::NotAListener("a socket that does not listen"));
        }
        let local = rustix::net::getsockname(&fd).map_err(refused)?;
        let addr = if family == AddressFamily::UNIX {
            let unix = rustix::net::SocketAddrUnix::try_from(local).map_err(refused)?;
            let path = unix.path().ok_or(ListenError::NotAListener("a unix socket without a file"))?;
            ListenAddr::Unix(PathBuf::from(std::ffi::OsStr::from_bytes(path.to_bytes())))
        } else {
            ListenAddr::Tcp(SocketAddr::try_from(local).map_err(refused)?)
        };
        // A ring waits for clients by itself, but only where the socket says that it may be waited for.
        rustix::io::ioctl_fionbio(&fd, false).map_err(refused)?;
        Ok(Listener { addr, fd: Arc::new(fd), file: None, tls: TlsMode::Off })
    }

    /// The same socket once more, to be served. Its file stays with the original.
    pub fn share(&self) -> Listener {
        Listener { addr: self.addr.clone(), fd: Arc::clone(&self.fd), file: None, tls: self.tls }
    }

    /// Says whether the file of a unix socket is removed when this is dropped.
    pub fn own_file(&mut self, own: bool) {
        self.file = match &self.addr {
            ListenAddr::Unix(path) if own => {
                std::fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
            }
            _ => None,
        };
    }

    /// True if dropping it removes the file of a unix socket.
    pub fn owns_file(&self) -> bool {
        self.file.is_some()
    }

    /// Where it listens; a port that was asked for as 0 is the one that was taken.
    pub fn addr(&self) -> &ListenAddr {
        &self.addr
    }

    /// The same, with clients that never, may or must use TLS. Without this they never do.
    pub fn with_tls(mut self, tls: TlsMode) -> Listener {
        self.tls = tls;
        self
    }

    /// Whether its clients use TLS.
    pub fn tls(&self) -> TlsMode {
        self.tls
    }

    /// The socket.
    pub(crate) fn fd(&self) -> &SharedFd {
        &self.fd
    }

    fn bind_unix(path: &Path) -> Result<Listener, ListenError> {
        let io = |source| ListenError::Io { addr: ListenAddr::Unix(path.to_owned()), source };
        let socket = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(path)?;
                UnixListener::bind(path).map_err(io)?
            }
            bound => bound.map_err(io)?,
        };
        let file = std::fs::symlink_metadata(path).map_err(io)?;
        let fd = Arc::new(OwnedFd::from(socket));
        let (addr, file) = (ListenAddr::Unix(path.to_owned()), Some((file.dev(), file.ino())));
        Ok(Listener { addr, fd, file, tls: TlsMode::Off })
    }
}

/// Removes the socket file at `path` if nobody listens behind it.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let io = |source| ListenError::Io { addr: ListenAddr::Unix(path.to_owned()), source };
    let is_socket = std::fs::symlink_metadata(path).map_err(io)?.file_type().is_socket();
    if !is_socket {
        return Err(ListenError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(io)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // A full queue, a permission, or an answer: somebody is there.
        Ok(_) | Err(_) => Err(ListenError::Live(path.to_owned())),
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let (ListenAddr::Unix(path), Some(file)) = (&self.addr, self.file) {
            let now = std::fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()));
            if now.is_ok_and(|now| now == file)
                && let Err(error) = std::fs::remove_file(path)
            {
                tracing::warn!(path = %path.display(), %error, "socket file stays behind");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_alike() {
        for text in ["unix:/run/vol0.sock", "tcp:127.0.0.1:10809", "tcp:[::1]:0"] {
            assert_eq!(text.parse::<ListenAddr>().unwrap().to_string(), text);
        }
        for text in ["", "unix:", "/run/x", "tcp:", "tcp:127.0.0.1", "udp:127.0.0.1:1", "tcp:127.0.0.1:99999"]
        {
            assert!(matches!(text.parse::<ListenAddr>(), Err(ListenError::BadAddress(_))), "{text:?}");
        }
    }

    #[test]
    fn what_is_said_of_tls_stands_behind_the_address() {
        let spec: ListenSpec = "tcp:127.0.0.1:1,tls=require".parse().unwrap();
        assert_eq!((spec.addr.to_string().as_str(), spec.tls), ("tcp:127.0.0.1:1", Some(TlsMode::Require)));
        let spec: ListenSpec = "unix:/a,b".parse().unwrap();
        assert_eq!((spec.addr.to_string().as_str(), spec.tls), ("unix:/a,b", None));
        assert!(matches!("unix:/a,tls=maybe".parse::<ListenSpec>(), Err(ListenError::BadTls(_))));
        assert!(matches!("tls=off".parse::<ListenSpec>(), Err(ListenError::BadAddress(_))));
    }

    #[test]
    fn a_live_socket_is_refused_and_a_stale_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let addr = ListenAddr::Unix(path.clone());
        let listener = Listener::bind(&addr).unwrap();
        assert!(matches!(Listener::bind(&addr), Err(ListenError::Live(p)) if p == path));
        drop(listener);
        assert!(!path.exists());
        // A socket file that outlived its server: std does not remove it.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(Listener::bind(&addr).unwrap());
        std::fs::write(&path, b"precious").unwrap();
        assert!(matches!(Listener::bind(&addr), Err(ListenError::NotASocket(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_shared_listener_leaves_the_file_to_the_original() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let mut listener = Listener::bind(&ListenAddr::Unix(path.clone())).unwrap();
        drop(listener.share());
        assert!(path.exists() && listener.owns_file());
        listener.own_file(false);
        let fd = listener.as_fd().try_clone_to_owned().unwrap();
        drop(listener);
        assert!(path.exists());
        let mut heir = Listener::inherited(fd).unwrap();
        assert_eq!(heir.addr(), &ListenAddr::Unix(path.clone()));
        UnixStream::connect(&path).unwrap();
        heir.own_file(true);
        drop(heir);
        assert!(!path.exists());
    }

    #[test]
    fn only_a_listening_stream_socket_is_inherited() {
        let refused = |fd: OwnedFd| Listener::inherited(fd).unwrap_err().to_string();
        let (one, _other) = UnixStream::pair().unwrap();
        assert!(refused(one.into()).contains("does not listen"));
        let datagram = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(refused(datagram.into()).contains("without connections"));
        let file = tempfile::tempfile().unwrap();
        assert!(refused(file.into()).contains("no socket"));
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = ListenAddr::Tcp(tcp.local_addr().unwrap());
        assert_eq!(Listener::inherited(tcp.into()).unwrap().addr(), &addr);
    }

    #[test]
    fn a_free_port_is_told() {
        let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
        assert!(matches!(listener.addr(), ListenAddr::Tcp(addr) if addr.port() != 0));
        let error = Listener::bind(listener.addr()).unwrap_err();
        assert!(error.to_string().contains("Address already in use"), "{error}");
    }
}
