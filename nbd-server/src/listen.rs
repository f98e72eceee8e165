//! Where clients connect: unix sockets and TCP ports.
//!
//! A unix socket's file that nobody listens behind any more is left over from a killed server and is replaced;
//! one that somebody listens behind is never touched. TCP sockets set SO_REUSEADDR, so that a restarted server
//! need not wait for old connections to be forgotten.

use raidcore::uring::SharedFd;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::OwnedFd;
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
    /// Another server is alive behind this socket.
    #[error("another server listens on {0}: stop it or choose another path")]
    Live(PathBuf),
    /// There is something at the path that is no socket.
    #[error("{0} exists and is not a socket: remove it or choose another path")]
    NotASocket(PathBuf),
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
                Ok(Listener { addr, fd: Arc::new(OwnedFd::from(socket)), file: None })
            }
        }
    }

    /// Where it listens; a port that was asked for as 0 is the one that was taken.
    pub fn addr(&self) -> &ListenAddr {
        &self.addr
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
        Ok(Listener { addr: ListenAddr::Unix(path.to_owned()), fd, file: Some((file.dev(), file.ino())) })
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
    fn a_free_port_is_told() {
        let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
        assert!(matches!(listener.addr(), ListenAddr::Tcp(addr) if addr.port() != 0));
        let error = Listener::bind(listener.addr()).unwrap_err();
        assert!(error.to_string().contains("Address already in use"), "{error}");
    }
}
