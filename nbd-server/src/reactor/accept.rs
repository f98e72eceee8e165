//! Listeners and the clients that arrive at them.
//!
//! Invariant: connections and accepts under way together never exceed the limit of connections, so that every
//! client that is accepted has a place.

use super::clients::ClientLimits;
use super::host::{Host, ListenerId};
use crate::access::Peer;
use crate::conn::Conn;
use crate::engine::Engine;
use crate::limits::{ACCEPT_PAUSE, MAX_LISTENERS};
use crate::listen::{ListenAddr, Listener};
use raidcore::time::Time;
use raidcore::uring::{Event, Outcome, Port, SharedFd};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// Tokens of listeners have this bit, those of connections have not.
const LISTENER_TOKEN: u64 = 1 << 63;

/// True if an event is of a listener.
pub(super) fn is_of_listener(token: u64) -> bool {
    token & LISTENER_TOKEN != 0
}

/// All listeners.
pub(super) struct Accepting {
    list: Vec<Entry>,
    next_id: u32,
    max_connections: usize,
}

struct Entry {
    id: ListenerId,
    listener: Listener,
    /// An accept is under way.
    is_armed: bool,
    /// After a failure: when to go on.
    rest_until: Time,
}

impl Accepting {
    pub(super) fn new(max_connections: usize) -> Accepting {
        Accepting { list: Vec::new(), next_id: 0, max_connections }
    }

    pub(super) fn add(&mut self, listener: Listener) -> Option<ListenerId> {
        if self.list.len() >= MAX_LISTENERS {
            return None;
        }
        let id = ListenerId(self.next_id);
        self.next_id += 1;
        tracing::info!(addr = %listener.addr(), "listening");
        self.list.push(Entry { id, listener, is_armed: false, rest_until: Time::ZERO });
        Some(id)
    }

    pub(super) fn remove(&mut self, id: ListenerId, port: &Port) -> bool {
        let found = self.list.iter().position(|entry| entry.id == id);
        if let Some(at) = found {
            port.cancel(token(id));
            self.list.remove(at);
        }
        found.is_some()
    }

    pub(super) fn remove_all(&mut self, port: &Port) {
        for entry in self.list.drain(..) {
            port.cancel(token(entry.id));
        }
    }

    /// Starts accepts while there is room for more connections than `live`.
    pub(super) fn arm(&mut self, port: &Port, live: usize, now: Time) {
        let mut taken = live + self.list.iter().filter(|entry| entry.is_armed).count();
        for entry in &mut self.list {
            if taken < self.max_connections && !entry.is_armed && entry.rest_until <= now {
                port.accept(entry.listener.fd(), token(entry.id));
                entry.is_armed = true;
                taken += 1;
            }
        }
    }

    /// When a listener has rested enough.
    pub(super) fn wake_at(&self, now: Time) -> Option<Time> {
        self.list.iter().map(|entry| entry.rest_until).filter(|until| *until > now).min()
    }
}

fn token(id: ListenerId) -> u64 {
    LISTENER_TOKEN | u64::from(id.0)
}

/// An accept has ended.
pub(super) fn on_event<E: Engine>(host: &mut Host<E>, event: Event) {
    let now = host.io.clock.now();
    // A client that was accepted while its listener was being removed is dropped, which closes it.
    let Some(entry) = host.accepting.list.iter_mut().find(|entry| token(entry.id) == event.token) else {
        return;
    };
    entry.is_armed = false;
    let fd = match event.result {
        Ok(Outcome::Accepted(fd)) => fd,
        Ok(_) => return,
        Err(error) => {
            tracing::warn!(addr = %entry.listener.addr(), %error, "cannot accept");
            entry.rest_until = now + ACCEPT_PAUSE;
            return;
        }
    };
    let tcp = matches!(entry.listener.addr(), ListenAddr::Tcp(_));
    match welcome(fd, tcp, host.clients.limits()) {
        Ok((fd, peer)) => {
            // Dropped, it is closed.
            let Some(share) = host.clients.enter(&peer, now) else { return };
            tracing::debug!(%peer, "client connected");
            let (mode, certificates) = (entry.listener.tls(), host.certificates.clone());
            let conn = Conn::new(fd, peer, share, mode, certificates, now);
            host.insert(conn);
        }
        Err(error) => tracing::debug!(%error, "client was gone before it was accepted"),
    }
}

/// Prepares a client's socket and finds out who it is.
fn welcome(fd: OwnedFd, tcp: bool, limits: &ClientLimits) -> std::io::Result<(SharedFd, Peer)> {
    use rustix::net::sockopt;
    let peer = if tcp {
        // Replies are whole when they are sent: waiting for more of them only costs time.
        sockopt::set_tcp_nodelay(fd.as_fd(), true)?;
        notice_death(fd.as_fd(), limits.dead_peer_timeout)?;
        let addr = rustix::net::getpeername(&fd)?.map(SocketAddr::try_from);
        let Some(Ok(addr)) = addr else { return Err(io::ErrorKind::NotConnected.into()) };
        Peer::Tcp(SocketAddr::new(addr.ip().to_canonical(), addr.port()))
    } else {
        let process = sockopt::socket_peercred(fd.as_fd())?;
        Peer::Unix {
            uid: process.uid.as_raw(),
            gid: process.gid.as_raw(),
            pid: process.pid.as_raw_nonzero().get(),
        }
    };
    Ok((Arc::new(fd), peer))
}

/// A client whose machine died is noticed: when it is silent the kernel asks it after half of `after` and then three
/// times more; when it was sent something it is given up after `after`.
fn notice_death(fd: BorrowedFd<'_>, after: Duration) -> io::Result<()> {
    use rustix::net::sockopt;
    const PROBES: u32 = 3;
    sockopt::set_socket_keepalive(fd, true)?;
    sockopt::set_tcp_keepidle(fd, after / 2)?;
    sockopt::set_tcp_keepintvl(fd, (after / 2 / (PROBES + 1)).max(Duration::from_secs(1)))?;
    sockopt::set_tcp_keepcnt(fd, PROBES)?;
    Ok(sockopt::set_tcp_user_timeout(fd, u32::try_from(after.as_millis()).unwrap_or(u32::MAX))?)
}
