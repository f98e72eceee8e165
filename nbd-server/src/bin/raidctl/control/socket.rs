//! Unix sockets with an owner: where they are, who may connect, and what to do with one that is there already.
//!
//! A path where somebody listens is refused; what a killed daemon left behind is replaced; anything that is not a
//! socket is never touched. Our own is removed when it is dropped; one that systemd or a daemon before us made, only once
//! it is made ours.

use crate::failure::{Context, Failure, Outcome};
use crate::listen::make_folder;
use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Clients that may wait to be accepted.
pub const BACKLOG: i32 = 128;

/// A unix socket that is ours to listen on. Dropping it removes the path.
#[derive(Debug)]
pub struct OwnedSocket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
    owns_file: AtomicBool,
}

impl OwnedSocket {
    /// Takes `path`. Nobody can connect until [`listen`](OwnedSocket::listen), and then only this user (mode 0600).
    pub fn bind(path: &Path) -> Outcome<OwnedSocket> {
        let name = path.display();
        make_way(path)?;
        let listener = bind_privately(path).map_err(|error| bind_failure(path, error))?;
        let inode = std::fs::metadata(path).context(name)?.ino();
        Ok(OwnedSocket { listener, path: path.to_path_buf(), inode, owns_file: AtomicBool::new(true) })
    }

    /// Takes over a socket that listens already, without its file: see [`own_file`](OwnedSocket::own_file).
    pub fn inherited(socket: OwnedFd) -> Outcome<OwnedSocket> {
        use rustix::net::sockopt::{socket_acceptconn, socket_domain};
        let is_ours =
            socket_domain(&socket) == Ok(AddressFamily::UNIX) && socket_acceptconn(&socket) == Ok(true);
        let listener = UnixListener::from(socket);
        let address = listener.local_addr();
        let path = address.as_ref().ok().and_then(|address| address.as_pathname()).map(Path::to_path_buf);
        let (true, Some(path)) = (is_ours, path) else {
            return Err(Failure::new("it is not a listening unix socket with a file"));
        };
        let inode = std::fs::symlink_metadata(&path).map_or(0, |found| found.ino());
        Ok(OwnedSocket { listener, path, inode, owns_file: AtomicBool::new(false) })
    }

    /// Says whether the path is removed when this is dropped.
    pub fn own_file(&self, own: bool) {
        self.owns_file.store(own, Ordering::Relaxed);
    }

    /// True if dropping it removes the path.
    pub fn owns_file(&self) -> bool {
        self.owns_file.load(Ordering::Relaxed)
    }

    /// Lets clients connect: once there is somebody to answer them.
    pub fn listen(&self) -> Outcome<()> {
        let listening = listen(&self.listener, BACKLOG);
        listening.map_err(|error| Failure::new(format!("cannot listen at {}: {error}", self.path.display())))
    }

    /// The socket itself.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for OwnedSocket {
    fn drop(&mut self) {
        // Another daemon may have found our path stale, or an administrator removed it: then it is not ours.
        if self.owns_file()
            && std::fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!("cannot remove the socket {}: {error}", self.path.display());
        }
    }
}

/// Makes sure that a socket can be made at `path`: its folder exists, nobody listens there, and what a killed
/// daemon left is gone.
pub fn make_way(path: &Path) -> Outcome<()> {
    let name = path.display();
    make_folder(path)?;
    let found = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.context(format!("cannot look at the socket {name}"))?,
    };
    if !found.file_type().is_socket() {
        return Err(Failure::new(format!(
            "{name} exists and is no socket: choose another path or move it away"
        )));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!("replacing the socket {name}, which a daemon that is gone left behind");
            std::fs::remove_file(path).context(format!("cannot remove the stale socket {name}"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(Failure::new(format!("the socket {name} belongs to another user: choose another path")))
        }
        _ => Err(Failure::new(format!("a running daemon listens at {name}: stop it or choose another path"))),
    }
}

/// Linux gives the path the mode that the socket had when it was bound. So it is set on the socket, before: there
/// is no moment in which others could connect, and the process's mode mask, which other threads use, stays as it is.
fn bind_privately(path: &Path) -> rustix::io::Result<UnixListener> {
    let address = SocketAddrUnix::new(path)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &address)?;
    Ok(UnixListener::from(socket))
}

fn bind_failure(path: &Path, error: rustix::io::Errno) -> Failure {
    let name = path.display();
    match error {
        rustix::io::Errno::NAMETOOLONG => {
            Failure::new(format!("{name} is too long for a unix socket (107 bytes): choose a shorter path"))
        }
        _ => Failure::new(format!("cannot listen at {name}: {error}")),
    }
}

/// Where the daemon is controlled if nobody says otherwise.
pub fn default_control() -> PathBuf {
    runtime_dir().join("control.sock")
}

/// Where the daemon listens if nobody says otherwise.
pub fn default_listen() -> PathBuf {
    runtime_dir().join("nbd.sock")
}

/// /run/raidctl for root, a folder of the user's session otherwise. Users without a session get one below /tmp
/// that carries their number, as tmux's sockets do.
fn runtime_dir() -> PathBuf {
    let user = rustix::process::geteuid();
    if user.is_root() {
        return PathBuf::from("/run/raidctl");
    }
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir).join("raidctl"),
        None => PathBuf::from(format!("/tmp/raidctl-{}", user.as_raw())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_socket_is_private_and_goes_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/control.sock");
        let socket = OwnedSocket::bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_live_socket_is_refused_and_a_stale_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let live = UnixListener::bind(&path).unwrap();
        let error = OwnedSocket::bind(&path).unwrap_err();
        assert!(error.sentence().unwrap().contains("a running daemon listens at"), "{error:?}");
        drop(live);
        assert!(path.exists());
        OwnedSocket::bind(&path).unwrap();
    }

    #[test]
    fn what_is_no_socket_is_never_touched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        assert!(OwnedSocket::bind(&path).unwrap_err().sentence().unwrap().contains("no socket"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "data");
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_named_as_such() {
        let dir = tempfile::tempdir().unwrap();
        let error = OwnedSocket::bind(&dir.path().join("x".repeat(150))).unwrap_err();
        assert!(error.sentence().unwrap().contains("shorter"), "{error:?}");
    }
}
