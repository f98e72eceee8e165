//! Clients and what each of them uses with all of its connections together.
//!
//! Invariant: the table has one entry for each client that has a connection, so that it is never longer than the list
//! of connections.

use crate::access::{ClientKey, Peer};
use crate::conn::{Pool, Share};
use crate::limits::{
    CLIENT_BYTES, CLIENT_CONNECTIONS, CLIENT_REQUESTS, DEAD_PEER_TIMEOUT, HANDSHAKE_TIMEOUT, MAX_TIMEOUT,
    REFUSAL_LOG_INTERVAL, SMALL_SHARE_BYTES,
};
use raidcore::time::Time;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

/// What one client may use: all connections from one IPv4 address or one IPv6 network of 64 bits, or all of one user over unix sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientLimits {
    /// Connections at once; further ones are closed.
    pub connections: usize,
    /// Bytes of payload in memory at once; at least a megabyte. One request of any size fits besides.
    pub bytes: u64,
    /// Requests that are executed at once; further ones wait.
    pub requests: u32,
    /// How long it may take to choose an export.
    pub handshake_timeout: Duration,
    /// After how long without a byte in either direction a connection is closed; `None` never does. A mounted file
    /// system may be silent for days.
    pub idle_timeout: Option<Duration>,
    /// After how long a machine at the other end of a TCP connection that does not answer is taken for dead. One that
    /// takes nothing of what it is sent for so long is, too. Whole seconds, at least 5.
    pub dead_peer_timeout: Duration,
}

impl Default for ClientLimits {
    fn default() -> ClientLimits {
        ClientLimits {
            connections: CLIENT_CONNECTIONS,
            bytes: CLIENT_BYTES,
            requests: CLIENT_REQUESTS,
            handshake_timeout: HANDSHAKE_TIMEOUT,
            idle_timeout: None,
            dead_peer_timeout: DEAD_PEER_TIMEOUT,
        }
    }
}

impl ClientLimits {
    /// What about them cannot work.
    pub(super) fn trouble(&self) -> Option<String> {
        let times = [
            ("handshake_timeout", Some(self.handshake_timeout)),
            ("idle_timeout", self.idle_timeout),
            ("dead_peer_timeout", Some(self.dead_peer_timeout)),
        ];
        let is_wrong = |time: Duration| time.is_zero() || time > MAX_TIMEOUT;
        let wrong = times.iter().find(|(_, time)| time.is_some_and(is_wrong));
        if self.connections == 0 || self.requests == 0 {
            Some("a client needs at least one connection and one request".to_owned())
        } else if self.bytes < SMALL_SHARE_BYTES {
            Some("a client needs at least 1 MiB".to_owned())
        } else if let Some((name, _)) = wrong {
            Some(format!("{name} must be more than zero and at most a week"))
        } else if self.dead_peer_timeout < Duration::from_secs(5) {
            Some("dead_peer_timeout must be at least 5 s".to_owned())
        } else {
            None
        }
    }
}

/// All clients.
pub(super) struct Clients {
    limits: ClientLimits,
    pool: Rc<Pool>,
    table: HashMap<ClientKey, Client>,
    /// Connections refused since the log said so, and when it may say so again.
    refused: u64,
    log_at: Time,
}

struct Client {
    share: Rc<Share>,
    connections: usize,
}

impl Clients {
    pub(super) fn new(limits: ClientLimits, pool: Rc<Pool>) -> Clients {
        Clients { limits, pool, table: HashMap::new(), refused: 0, log_at: Time::ZERO }
    }

    pub(super) fn limits(&self) -> &ClientLimits {
        &self.limits
    }

    /// Counts one more connection; `None` if its client has as many as it may.
    pub(super) fn enter(&mut self, peer: &Peer, now: Time) -> Option<Rc<Share>> {
        let ClientLimits { bytes, requests, .. } = self.limits;
        let new = || Client { share: Share::new(&self.pool, bytes, requests), connections: 0 };
        let client = self.table.entry(peer.client()).or_insert_with(new);
        if client.connections < self.limits.connections {
            client.connections += 1;
            return Some(Rc::clone(&client.share));
        }
        // Whoever does this does it often.
        self.refused += 1;
        if now >= self.log_at {
            let (most, refused) = (self.limits.connections, std::mem::take(&mut self.refused));
            tracing::warn!(client = %peer.client(), most, refused, "client has too many connections: one is closed");
            self.log_at = now + REFUSAL_LOG_INTERVAL;
        }
        None
    }

    /// A connection that has entered is gone.
    pub(super) fn leave(&mut self, peer: &Peer) {
        let key = peer.client();
        if let Some(client) = self.table.get_mut(&key) {
            client.connections -= 1;
            if client.connections == 0 {
                self.table.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_forgotten_with_its_last_connection() {
        let limits = ClientLimits { connections: 2, ..ClientLimits::default() };
        let mut clients = Clients::new(limits, Pool::new(1 << 20));
        let peer = |port: u16| Peer::Tcp(([192, 0, 2, 1], port).into());
        let other = Peer::Unix { uid: 1, gid: 1, pid: 1 };
        let shares = [clients.enter(&peer(1), Time::ZERO), clients.enter(&peer(2), Time::ZERO)];
        assert!(Rc::ptr_eq(shares[0].as_ref().unwrap(), shares[1].as_ref().unwrap()));
        assert!(clients.enter(&peer(3), Time::ZERO).is_none());
        assert!(clients.enter(&other, Time::ZERO).is_some());
        clients.leave(&peer(1));
        assert!(clients.enter(&peer(3), Time::ZERO).is_some());
        clients.leave(&peer(2));
        clients.leave(&peer(3));
        assert_eq!(clients.table.len(), 1);
    }

    #[test]
    fn limits_that_let_nobody_in_are_refused() {
        let good = ClientLimits::default();
        assert_eq!(good.trouble(), None);
        let bad = [
            ClientLimits { connections: 0, ..good },
            ClientLimits { requests: 0, ..good },
            ClientLimits { bytes: 1000, ..good },
            ClientLimits { handshake_timeout: Duration::ZERO, ..good },
            ClientLimits { idle_timeout: Some(Duration::MAX), ..good },
            ClientLimits { dead_peer_timeout: Duration::from_secs(1), ..good },
        ];
        assert!(bad.iter().all(|limits| limits.trouble().is_some()));
    }
}
