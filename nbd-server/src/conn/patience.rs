//! How long a connection is waited for: to choose, to speak, to take its replies, to take the last of them.

use super::{Conn, Phase};
use crate::limits::{DRAIN_BYTES_PER_SECOND, DRAIN_TIMEOUT};
use raidcore::time::Time;
use std::time::Duration;

impl Conn {
    /// If memory waits for the client, to take a reply or to send the rest of a payload: since when at the latest.
    pub(crate) fn holds_memory_since(&self) -> Option<Time> {
        if self.dead || self.held_bytes() == 0 {
            return None;
        }
        // Who takes no replies does not move, whatever it sends meanwhile.
        match self.outbox.is_sending() {
            true => Some(self.sent_at),
            false => (self.payload_left() > 0).then_some(self.received_at),
        }
    }

    /// When it has taken too long to choose, or has been silent for too long; not before that it need be looked at.
    /// `None` if there is no such time.
    pub(crate) fn deadline(&self, handshake: Duration, idle: Option<Duration>, now: Time) -> Option<Time> {
        match self.phase {
            _ if self.closing || self.dead => None,
            Phase::Handshake(_) => Some(self.accepted_at + handshake),
            Phase::Session(_) if self.in_flight() > 0 => idle.map(|idle| now + idle),
            Phase::Session(_) => idle.map(|idle| self.sent_at.max(self.heard_at) + idle),
        }
    }

    /// If it is being closed and only its client's taking the last replies is waited for: when it is cut.
    pub(crate) fn drain_until(&self) -> Option<Time> {
        let since = self.closing_since?.max(self.sent_at);
        let large = Duration::from_millis(self.held_bytes() * 1000 / DRAIN_BYTES_PER_SECOND);
        (!self.dead && self.in_flight() == 0).then(|| since + DRAIN_TIMEOUT + large)
    }
}
