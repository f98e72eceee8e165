//! Where the daemon listens: refusals with a remedy, and the URIs under which clients find its exports.

use crate::afterlife::{AFTERLIFE, LOOK_AGAIN, is_alive};
use crate::failure::{Context, Failure, Outcome};
use nbd_server::client::{Address, NbdUri, TlsParams};
use nbd_server::listen::{ListenAddr, ListenError, ListenSpec, Listener};
use nbd_server::tls::TlsMode;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Reads `unix:PATH` or `tcp:ADDR:PORT`, and what is said of TLS there. Paths are made absolute.
pub fn parse(text: &str) -> Outcome<ListenSpec> {
    let ListenSpec { addr, tls } = text.parse().map_err(Failure::usage)?;
    let addr = match addr {
        ListenAddr::Unix(path) => ListenAddr::Unix(std::path::absolute(&path).context(path.display())?),
        tcp => tcp,
    };
    Ok(ListenSpec { addr, tls })
}

/// Listens at `place`. The folder of a unix socket is made if it is not there.
pub fn bind(place: &ListenAddr) -> Outcome<Listener> {
    if let ListenAddr::Unix(path) = place {
        make_folder(path)?;
    }
    let begun = Instant::now();
    loop {
        match Listener::bind(place) {
            Ok(listener) => return Ok(listener),
            Err(error) if begun.elapsed() < patience_with(&error) => std::thread::sleep(LOOK_AGAIN),
            Err(error) => return Err(explain(error)),
        }
    }
}

/// How long it may pay to try again: a server that was killed may still seem to listen.
fn patience_with(error: &ListenError) -> Duration {
    match error {
        ListenError::Live(path) if listener_is_dead(path) => AFTERLIFE,
        // The owner of a port cannot be asked for, and most often lives.
        ListenError::Io { addr: ListenAddr::Tcp(_), source } if source.kind() == io::ErrorKind::AddrInUse => {
            Duration::from_secs(1)
        }
        _ => Duration::ZERO,
    }
}

/// True if the process that listens at `path` has ended.
fn listener_is_dead(path: &Path) -> bool {
    let Ok(stream) = UnixStream::connect(path) else { return true };
    rustix::net::sockopt::socket_peercred(&stream)
        .is_ok_and(|peer| !is_alive(peer.pid.as_raw_nonzero().get()))
}

fn explain(error: ListenError) -> Failure {
    match &error {
        ListenError::Io { addr: ListenAddr::Tcp(address), source } => match source.kind() {
            io::ErrorKind::AddrInUse => Failure::new(format!(
                "tcp:{address} is in use by another program: stop that or choose another port"
            )),
            io::ErrorKind::AddrNotAvailable => Failure::new(format!(
                "tcp:{address} is no address of this machine: choose one of its own, or 0.0.0.0 for all"
            )),
            io::ErrorKind::PermissionDenied => Failure::new(format!(
                "tcp:{address} is for root only: choose a port from 1024 on, or run as root"
            )),
            _ => Failure::new(error),
        },
        ListenError::Io { addr: ListenAddr::Unix(path), source }
            if source.kind() == io::ErrorKind::InvalidInput =>
        {
            Failure::new(format!(
                "{}: too long for a unix socket (107 bytes), choose a shorter path",
                path.display()
            ))
        }
        _ => Failure::new(error),
    }
}

/// Makes the folder of a socket, for this user alone, if it is not there.
pub fn make_folder(path: &Path) -> Outcome<()> {
    use std::os::unix::fs::DirBuilderExt;
    let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) else { return Ok(()) };
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.context(format!("cannot make the folder {} for the socket", folder.display()))
}

/// The NBD URI of `export` at `place`: with TLS only where nothing else is served.
pub fn uri(place: &ListenAddr, mode: TlsMode, export: &str) -> String {
    let address = match place {
        ListenAddr::Tcp(at) => Address::Tcp { host: at.ip().to_string(), port: at.port() },
        ListenAddr::Unix(path) => Address::Unix(path.clone()),
    };
    let tls = (mode == TlsMode::Require).then(TlsParams::default);
    NbdUri { address, export: export.to_owned(), tls }.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_survives_odd_paths() {
        let dir = tempfile::tempdir().unwrap();
        let place = bind(&ListenAddr::Unix(dir.path().join("a b&c.sock"))).unwrap();
        let expected = format!("nbd+unix:///vol0?socket={}/a%20b%26c.sock", dir.path().display());
        assert_eq!(uri(place.addr(), TlsMode::Allow, "vol0"), expected);
        assert!(uri(place.addr(), TlsMode::Require, "vol0").starts_with("nbds+unix:///vol0?"));
    }

    #[test]
    fn a_port_in_use_is_named_with_the_remedy() {
        let first = bind(&parse("tcp:127.0.0.1:0").unwrap().addr).unwrap();
        let error = bind(first.addr()).unwrap_err();
        let sentence = error.sentence().unwrap();
        assert!(
            sentence.contains(&first.addr().to_string()) && sentence.contains("another port"),
            "{sentence}"
        );
        assert!(uri(first.addr(), TlsMode::Off, "x").starts_with("nbd://127.0.0.1:"));
    }

    #[test]
    fn the_folder_of_a_socket_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/s");
        bind(&ListenAddr::Unix(path.clone())).unwrap();
        assert!(path.parent().unwrap().is_dir());
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_named_as_such() {
        let dir = tempfile::tempdir().unwrap();
        let error = bind(&ListenAddr::Unix(dir.path().join("x".repeat(150)))).unwrap_err();
        assert!(error.sentence().unwrap().contains("shorter"), "{error:?}");
    }

    #[test]
    fn what_is_no_place_to_listen_at_is_wrong_usage() {
        assert_eq!(parse("/run/x.sock").unwrap_err().exit_status(), 2);
    }
}
