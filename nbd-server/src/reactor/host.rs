//! Everything on a reactor's thread: what a call reaches, and what a turn works on.
//!
//! Invariants:
//! - `exports` and `states` hold the same exports; a connection keeps the state of its export alive.
//! - A connection's place is reused only when nothing of the connection is in the kernel or in a device, so its
//!   number in tokens and tags names one connection.
//! - `dirty` lists each place with `is_dirty` once: those to be settled at the end of the turn. `waiting` lists each
//!   with `is_waiting` once; every connection that is stalled is in one of the two.

use super::accept::Accepting;
use super::clients::Clients;
use super::stop::Stopping;
use super::waiting::Waiting;
use super::watch::Watch;
use super::{Io, ReactorConfig, SpawnError};
use crate::access::{Access, Peer};
use crate::conn::{Conn, Context, ExportState, Pool, Traffic};
use crate::engine::Engine;
use crate::export::{Export, ExportError, ExportId, Exports};
use crate::limits::{
    LARGE_RECEIVE_BYTES, MAX_CONNECTIONS, MAX_LISTENERS, MAX_STALL_LOOKS, MAX_TRIED, MIN_STALL_LOOKS,
    SMALL_RECEIVE_BYTES, STARVED_INTERVAL,
};
use crate::listen::Listener;
use crate::tls::ServerTls;
use raidcore::buf::Slab;
use raidcore::time::{Clock, Time};
use raidcore::uring::{Port, Ring};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// Names a connection while it lives; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// Names a listener; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerId(pub u32);

/// A connection, for `status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// Which one.
    pub id: ConnectionId,
    /// Who.
    pub peer: Peer,
    /// What it uses; `None` while it chooses.
    pub export: Option<(ExportId, String)>,
    /// True if it is encrypted.
    pub tls: bool,
    /// Requests the device works on.
    pub in_flight: usize,
    /// Bytes of payload in memory.
    pub held_bytes: u64,
    /// What it has done.
    pub traffic: Traffic,
}

/// Why a host refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// The table of listeners is full.
    #[error("{MAX_LISTENERS} listeners are open already: close one first")]
    TooManyListeners,
    /// The reactor stops.
    #[error("the server is stopping")]
    Stopping,
    /// The export cannot be offered.
    #[error(transparent)]
    Export(#[from] ExportError),
}

/// The inside of a reactor.
pub struct Host<E> {
    pub(super) io: Io,
    pub(super) port: Port,
    pub(super) engine: E,
    exports: Exports,
    states: Vec<Rc<ExportState>>,
    places: Vec<Option<Place>>,
    free: Vec<u16>,
    pub(super) dirty: Vec<u16>,
    next_connection: u64,
    pub(super) accepting: Accepting,
    /// What new connections start TLS with.
    pub(super) certificates: Option<ServerTls>,
    pub(super) stopping: Stopping,
    pub(super) clients: Clients,
    watch: Watch,
    /// One handle is here, and one with each connection whose receive is large.
    large_receives: Rc<()>,
    max_large_receives: usize,
    generation: u32,
    request_timeout: Duration,
    max_request_bytes: u64,
    /// Something was submitted since the engine was reaped.
    pub(super) submitted: bool,
    /// Those that wait for room.
    pub(super) waiting: Waiting,
    /// In this turn something happened that may have given room back.
    pub(super) happened: bool,
    /// A request found no memory, of a client that holds none for nothing: until when it is taken for waiting still.
    starved_until: Option<Time>,
    stall_timeout: Duration,
    /// When clients that hold memory are looked at next if somebody waits for it.
    stall_look_at: Time,
    /// Connections that were cut because they did not come to an end.
    pub(super) cut_connections: usize,
}

struct Place {
    id: ConnectionId,
    is_dirty: bool,
    is_waiting: bool,
    conn: Conn,
}

/// Operations that clients may leave in the kernel for as long as they like: a receive and a send for each connection,
/// an accept for each listener.
pub(super) fn standing(config: &ReactorConfig) -> u32 {
    (2 * config.max_connections.min(MAX_CONNECTIONS) + MAX_LISTENERS) as u32
}

/// Refuses what cannot work.
pub(super) fn check(config: &ReactorConfig) -> Result<(), SpawnError> {
    let most = MAX_CONNECTIONS;
    let total: usize = config.slab.classes.iter().map(|class| class.block_bytes * class.blocks).sum();
    let receives = config.max_connections.saturating_mul(SMALL_RECEIVE_BYTES);
    if config.max_connections == 0 || config.max_connections > most {
        return Err(SpawnError::Config(format!("connections must be 1 to {most}")));
    }
    if receives > total / 4 {
        let why = format!(
            "{} connections need a slab of {} bytes, not {total}",
            config.max_connections,
            4 * receives
        );
        return Err(SpawnError::Config(why));
    }
    if config.name.contains('\0') || config.request_timeout.is_zero() || config.stall_timeout.is_zero() {
        return Err(SpawnError::Config("name or a timeout is not usable".to_owned()));
    }
    match config.clients.trouble() {
        Some(trouble) => Err(SpawnError::Config(trouble)),
        None => Ok(()),
    }
}

impl<E> Host<E> {
    /// The engine: the daemon's arrays.
    pub fn engine(&self) -> &E {
        &self.engine
    }

    /// The engine, to change it. It is reaped before the reactor sleeps again.
    pub fn engine_mut(&mut self) -> &mut E {
        &mut self.engine
    }

    /// The ring.
    pub fn ring(&self) -> &Ring {
        &self.io.ring
    }

    /// The memory.
    pub fn slab(&self) -> &Slab {
        &self.io.slab
    }

    /// The clock.
    pub fn clock(&self) -> &Clock {
        &self.io.clock
    }

    /// What is offered.
    pub fn exports(&self) -> &Exports {
        &self.exports
    }

    /// Offers an export whose device the engine has. Its largest transfer is lowered to what the slab can hold.
    pub fn add_export(&mut self, mut export: Export) -> Result<(), HostError> {
        if self.stopping.has_begun() {
            return Err(HostError::Stopping);
        }
        let geometry = &mut export.geometry;
        geometry.max_transfer_bytes = geometry.max_transfer_bytes.min(self.max_request_bytes);
        let state = ExportState {
            id: export.id,
            name: export.name.clone(),
            queue_depth: export.geometry.queue_depth.max(1),
            in_flight: Cell::new(0),
        };
        self.exports.add(export)?;
        self.states.push(Rc::new(state));
        Ok(())
    }

    /// Says who may use an export from now on, which at first is everybody; who uses it already goes on. False if
    /// it is not offered.
    pub fn set_access(&mut self, id: ExportId, access: Access) -> bool {
        self.exports.set_access(id, access)
    }

    /// Tells new clients at once that the device behind an export has grown to `size_bytes`. Connected ones, whom the
    /// protocol cannot tell, may use the new part from now on. A device never becomes smaller.
    ///
    /// The reactor does this by itself for what [`Engine::resized`] says.
    pub fn resize_export(&mut self, id: ExportId, size_bytes: u64) -> Result<(), HostError> {
        self.exports.resize(id, size_bytes)?;
        let users = self.places.iter_mut().flatten().map(|place| &mut place.conn);
        users.filter(|conn| conn.export().is_some_and(|state| state.id == id)).for_each(|conn| {
            conn.resize(size_bytes);
        });
        Ok(())
    }

    /// Withdraws an export: new clients do not find it, and its connections are closed once what they have in
    /// flight is answered. The device is out of use when [`Host::connections_of`] is zero.
    pub fn remove_export(&mut self, id: ExportId) -> Option<Export> {
        let export = self.exports.remove(id)?;
        self.states.retain(|state| state.id != id);
        self.close_where(|conn| conn.export().is_some_and(|state| state.id == id));
        Some(export)
    }

    /// Connections that use this export, those being closed included.
    pub fn connections_of(&self, id: ExportId) -> usize {
        let uses = |place: &&Place| place.conn.export().is_some_and(|state| state.id == id);
        self.places.iter().flatten().filter(uses).count()
    }

    /// Accepts clients from `listener` until it is removed.
    pub fn add_listener(&mut self, listener: Listener) -> Result<ListenerId, HostError> {
        if self.stopping.has_begun() {
            return Err(HostError::Stopping);
        }
        self.accepting.add(listener).ok_or(HostError::TooManyListeners)
    }

    /// From now on new connections start TLS with these certificates; those that are there keep theirs. Without any,
    /// nobody can start TLS, and a listener that requires it serves nobody.
    pub fn set_certificates(&mut self, certificates: Option<ServerTls>) {
        self.certificates = certificates;
    }

    /// Stops listening; connections stay. False if there is no such listener.
    pub fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.accepting.remove(id, &self.port)
    }

    /// All connections.
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        let info = |place: &Place| ConnectionInfo {
            id: place.id,
            peer: place.conn.peer,
            export: place.conn.export().map(|state| (state.id, state.name.clone())),
            tls: place.conn.is_encrypted(),
            in_flight: place.conn.in_flight(),
            held_bytes: place.conn.held_bytes(),
            traffic: place.conn.traffic(),
        };
        self.places.iter().flatten().map(info).collect()
    }

    /// Closes a connection once what it has in flight is answered. False if there is none of this name.
    pub fn disconnect(&mut self, id: ConnectionId) -> bool {
        let Some(index) = self.places.iter().position(|p| p.as_ref().is_some_and(|p| p.id == id)) else {
            return false;
        };
        self.change(index as u16, Conn::close);
        true
    }

    /// Connections, those being closed included.
    pub(super) fn live(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn close_where(&mut self, mut wanted: impl FnMut(&Conn) -> bool) {
        for index in 0..self.places.len() as u16 {
            if self.conn(index).is_some_and(&mut wanted) {
                self.change(index, Conn::close);
            }
        }
    }

    pub(super) fn kill_all(&mut self) {
        (0..self.places.len() as u16).for_each(|index| self.change(index, Conn::kill));
    }

    pub(super) fn conn(&self, index: u16) -> Option<&Conn> {
        Some(&self.places.get(usize::from(index))?.as_ref()?.conn)
    }

    fn change(&mut self, index: u16, act: impl FnOnce(&mut Conn)) {
        if let Some(Some(place)) = self.places.get_mut(usize::from(index)) {
            act(&mut place.conn);
            self.happened = true;
            mark(place, index, &mut self.dirty);
        }
    }

    /// Takes a new client in.
    pub(super) fn insert(&mut self, conn: Conn) {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            (self.places.len() - 1) as u16
        });
        let id = ConnectionId(self.next_connection);
        self.next_connection += 1;
        let place =
            self.places[usize::from(index)].insert(Place { id, is_dirty: false, is_waiting: false, conn });
        mark(place, index, &mut self.dirty);
        let limits = self.clients.limits();
        let first =
            limits.idle_timeout.map_or(limits.handshake_timeout, |idle| idle.min(limits.handshake_timeout));
        self.watch.add(self.io.clock.now() + first, id, index);
        let (live, places) = (self.live(), &self.places);
        self.watch.tidy(live, |id, index| is_there(places, id, index));
    }

    /// When the next connection is to be looked at.
    pub(super) fn next_look(&self) -> Option<Time> {
        self.watch.next()
    }

    /// Closes clients that have taken too long to choose, or have been silent for too long.
    pub(super) fn close_late(&mut self, now: Time) {
        while let Some((id, index)) = self.watch.pop_due(now) {
            let limits = self.clients.limits();
            let (handshake, idle) = (limits.handshake_timeout, limits.idle_timeout);
            let conn = self.conn(index).filter(|_| is_there(&self.places, id, index));
            let Some(conn) = conn else { continue };
            match conn.deadline(handshake, idle, now) {
                None => {}
                Some(at) if at > now => self.watch.add(at, id, index),
                Some(_) if conn.is_in_handshake() => {
                    tracing::info!(peer = %conn.peer, "a client did not choose an export in time");
                    self.change(index, Conn::kill);
                }
                Some(_) => {
                    tracing::info!(peer = %conn.peer, "a client was silent for too long");
                    self.change(index, Conn::close);
                }
            }
        }
    }

    /// While requests find no memory, the clients that hold some without moving have a limit. When to look for them
    /// next, or for whether memory is waited for at all; `None` if it is not.
    pub(super) fn next_stall(&self) -> Option<Time> {
        self.starved_until.map(|until| until.min(self.stall_look_at))
    }

    /// Cuts clients that have held memory for too long while others wait for it.
    ///
    /// All connections are looked at, so it is done seldom: turns are many while somebody waits. Who begins to stand
    /// still between two looks is cut that much later.
    pub(super) fn cut_stalled(&mut self, now: Time) {
        if self.starved_until.is_some_and(|until| until <= now) {
            // Who waits still says so when it is tried.
            (self.starved_until, self.happened) = (None, true);
        }
        if self.next_stall().is_none_or(|at| at > now) {
            return;
        }
        let mut next = now + self.stall_timeout / MIN_STALL_LOOKS;
        for index in 0..self.places.len() as u16 {
            let Some(since) = self.conn(index).and_then(Conn::holds_memory_since) else { continue };
            let limit = since + self.stall_timeout;
            if limit <= now {
                tracing::warn!(index, "client holds memory and does not move: it is cut, for others need it");
                self.change(index, Conn::kill);
            } else {
                next = next.min(limit);
            }
        }
        self.stall_look_at = next.max(now + self.stall_timeout / MAX_STALL_LOOKS);
    }

    /// When the next of the connections that are being closed is cut. Those are among the dirty ones.
    pub(super) fn next_drain_end(&self) -> Option<Time> {
        self.dirty.iter().filter_map(|&index| self.conn(index)?.drain_until()).min()
    }

    /// Cuts connections that are being closed and whose clients do not take their last replies.
    pub(super) fn cut_drained(&mut self, now: Time) {
        for at in 0..self.dirty.len() {
            let index = self.dirty[at];
            if self.conn(index).and_then(Conn::drain_until).is_some_and(|until| until <= now) {
                tracing::warn!(index, "client does not take its last replies: it is cut");
                self.cut_connections += 1;
                self.change(index, Conn::kill);
            }
        }
    }

    /// Frees the place of a connection that is gone.
    pub(super) fn remove_if_gone(&mut self, index: u16) -> bool {
        let gone = self.conn(index).is_some_and(Conn::is_gone);
        if gone && let Some(place) = self.places[usize::from(index)].take() {
            tracing::debug!(peer = %place.conn.peer, "connection closed");
            if place.is_waiting {
                self.waiting.remove(index);
            }
            self.happened = true;
            self.clients.leave(&place.conn.peer);
            self.free.push(index);
        }
        gone
    }

    /// Not to be settled again, for now. If it waits for room, it is tried when there may be some.
    pub(super) fn clean(&mut self, index: u16) {
        if let Some(Some(place)) = self.places.get_mut(usize::from(index)) {
            place.is_dirty = false;
            match place.conn.is_stalled() {
                true if !place.is_waiting => {
                    place.is_waiting = true;
                    self.waiting.push(index);
                }
                true => {}
                // What it waited for it has, and may have given something else back with it.
                false => self.happened |= place.is_waiting,
            }
        }
    }
}

impl<E: Engine> Host<E> {
    pub(super) fn new(config: &ReactorConfig, io: Io, engine: E) -> Host<E> {
        let total = io.slab.usage().total_bytes as u64;
        let largest = config.slab.classes.last().map_or(0, |class| class.block_bytes * class.blocks) as u64;
        // Half of the largest blocks, so that two of the largest requests can be under way.
        let max_request_bytes = 1u64 << (largest / 2).min(total / 4).max(4096).ilog2();
        Host {
            port: io.ring.port(),
            io,
            engine,
            exports: Exports::new(),
            states: Vec::new(),
            places: Vec::new(),
            free: Vec::new(),
            dirty: Vec::new(),
            next_connection: 1,
            accepting: Accepting::new(config.max_connections),
            certificates: None,
            stopping: Stopping::No,
            clients: Clients::new(config.clients, Pool::new(total / 2)),
            watch: Watch::default(),
            large_receives: Rc::new(()),
            // An eighth of the memory, beside the quarter that the small ones may take.
            max_large_receives: total as usize / 8 / LARGE_RECEIVE_BYTES,
            generation: 0,
            request_timeout: config.request_timeout,
            max_request_bytes,
            submitted: false,
            waiting: Waiting::default(),
            happened: false,
            starved_until: None,
            stall_timeout: config.stall_timeout,
            stall_look_at: Time::ZERO,
            cut_connections: 0,
        }
    }

    /// Tries a few of those that wait for room.
    pub(super) fn try_waiting(&mut self) {
        for _ in 0..MAX_TRIED {
            let Some(index) = self.waiting.next() else { return };
            let Some(Some(place)) = self.places.get_mut(usize::from(index)) else { continue };
            place.is_waiting = false;
            if place.conn.is_stalled() {
                self.with(index, |conn, ctx| conn.advance(ctx));
                self.happened |= !self.conn(index).is_some_and(Conn::is_stalled);
            }
        }
    }

    /// Lets a connection do something, and settles it at the end of the turn. False if it is not there.
    pub(super) fn with(&mut self, index: u16, act: impl FnOnce(&mut Conn, &mut Context<'_>)) -> bool {
        let Some(Some(place)) = self.places.get_mut(usize::from(index)) else {
            return false;
        };
        mark(place, index, &mut self.dirty);
        let mut context = Context {
            connection: index,
            port: &self.port,
            slab: &self.io.slab,
            exports: &self.exports,
            states: &self.states,
            engine: &mut self.engine,
            large_receives: &self.large_receives,
            max_large_receives: self.max_large_receives,
            deadline: self.io.clock.now() + self.request_timeout,
            generation: &mut self.generation,
            submitted: false,
            starved: false,
            now: self.io.clock.now(),
        };
        act(&mut place.conn, &mut context);
        self.submitted |= context.submitted;
        // A client that does not take its own replies starves nobody but itself.
        if context.starved && place.conn.holds_memory_since().is_none() {
            // Much less than the limit: who was waited for and has what it needs since then is not cut by it.
            let a_while = STARVED_INTERVAL.min(self.stall_timeout / 4);
            self.starved_until = Some(context.now + a_while);
        }
        true
    }
}

fn is_there(places: &[Option<Place>], id: ConnectionId, index: u16) -> bool {
    matches!(places.get(usize::from(index)), Some(Some(place)) if place.id == id)
}

fn mark(place: &mut Place, index: u16, dirty: &mut Vec<u16>) {
    if !place.is_dirty {
        place.is_dirty = true;
        dirty.push(index);
    }
}
