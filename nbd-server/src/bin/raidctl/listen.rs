//! Listening sockets of the daemon, and the URIs under which clients find its exports.

use crate::config::Listen;
use crate::control::socket::{BACKLOG, OwnedSocket};
use crate::failure::{Failure, Outcome};
use rustix::net::sockopt::set_socket_reuseaddr;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

/// A place that is ours to listen at. Dropping it closes the socket, and removes the path of a unix socket.
#[derive(Debug)]
pub enum Bound {
    /// TCP, and its address.
    Tcp(TcpListener, SocketAddr),
    /// Unix.
    Unix(OwnedSocket, PathBuf),
}

impl Bound {
    /// Takes `place`. Nobody can connect until [`listen`](Bound::listen): what is in use by another program is
    /// seen before any device is touched, and a client that gets through finds its array.
    pub fn bind(place: &Listen) -> Outcome<Bound> {
        match place {
            Listen::Unix(path) => Ok(Bound::Unix(OwnedSocket::bind(path)?, path.clone())),
            Listen::Tcp(address) => {
                let listener = bind_tcp(address).map_err(|error| tcp_failure(address, error.into()))?;
                // Port 0 asks for a free one: say which it is.
                let address = listener.local_addr().unwrap_or(*address);
                Ok(Bound::Tcp(listener, address))
            }
        }
    }

    /// Lets clients connect.
    pub fn listen(&self) -> Outcome<()> {
        match self {
            Bound::Unix(socket, _) => socket.listen(),
            Bound::Tcp(listener, address) => {
                listen(listener, BACKLOG).map_err(|error| tcp_failure(address, error.into()))
            }
        }
    }

    /// The NBD URI of `export` here (the format of the NBD project's doc/uri.md).
    pub fn uri(&self, export: &str) -> String {
        match self {
            Bound::Tcp(_, address) => format!("nbd://{address}/{}", encode(export.as_bytes(), b"")),
            Bound::Unix(_, path) => {
                let path = encode(path.as_os_str().as_encoded_bytes(), b"/");
                format!("nbd+unix:///{}?socket={path}", encode(export.as_bytes(), b""))
            }
        }
    }
}

fn bind_tcp(address: &SocketAddr) -> rustix::io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // A server that was just stopped leaves connections behind that would block the port for a minute.
    set_socket_reuseaddr(&socket, true)?;
    bind(&socket, address)?;
    Ok(TcpListener::from(socket))
}

fn tcp_failure(address: &SocketAddr, error: io::Error) -> Failure {
    Failure::new(match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("tcp:{address} is in use by another program: stop it or choose another port")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("tcp:{address} is no address of this machine: choose one of its own, or 0.0.0.0 for all")
        }
        io::ErrorKind::PermissionDenied => {
            format!("tcp:{address} is for root only: choose a port from 1024 on, or run as root")
        }
        _ => format!("cannot listen at tcp:{address}: {error}"),
    })
}

/// Percent-encodes everything but letters, digits, `-._~` and what is in `also`.
fn encode(bytes: &[u8], also: &[u8]) -> String {
    let mut text = String::new();
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || also.contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_survives_odd_paths() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a b&c.sock");
        let bound = Bound::bind(&Listen::Unix(path)).unwrap();
        let uri = bound.uri("vol0");
        assert!(uri.starts_with("nbd+unix:///vol0?socket=/") && uri.ends_with("/a%20b%26c.sock"), "{uri}");
    }

    #[test]
    fn a_port_in_use_is_named_with_the_remedy() {
        let first = Bound::bind(&Listen::Tcp("127.0.0.1:0".parse().unwrap())).unwrap();
        let Bound::Tcp(_, address) = &first else { panic!("{first:?}") };
        first.listen().unwrap();
        assert_eq!(first.uri("x"), format!("nbd://{address}/x"));
        let error = Bound::bind(&Listen::Tcp(*address)).unwrap_err();
        let sentence = error.sentence().unwrap();
        assert!(sentence.contains(&address.to_string()) && sentence.contains("another port"), "{sentence}");
    }
}
