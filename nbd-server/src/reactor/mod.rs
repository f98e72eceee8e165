//! The reactor: one thread with a ring, that serves connections and drives the devices behind their exports.
//!
//! Control comes in through [`ReactorHandle::call`]: a closure that runs on the reactor's thread between two turns
//! and reaches everything there through [`Host`]. The data path takes no lock and shares nothing.
//!
//! ```
//! use nbd_server::engine::Devices;
//! use nbd_server::reactor::{Reactor, ReactorConfig};
//! use std::time::Duration;
//!
//! let reactor = Reactor::spawn(ReactorConfig::small(), |_io| Ok(Devices::new()))?;
//! let handle = reactor.handle();
//! let exports = handle.call(|host| host.exports().iter().count())?;
//! assert_eq!(exports, 0);
//! let report = handle.stop(Duration::from_secs(5))?;
//! assert!(report.is_clean());
//! reactor.join();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod accept;
mod clients;
mod host;
mod mailbox;
mod stop;
mod turn;
mod waiting;
mod watch;

pub use clients::ClientLimits;
pub use host::{ConnectionId, ConnectionInfo, Host, HostError, ListenerId};
pub use stop::{StopLimits, StopReport};

use crate::engine::Engine;
use crate::limits::{CALL_TIMEOUT, DEFAULT_CONNECTIONS, REQUEST_TIMEOUT, STALL_TIMEOUT};
use mailbox::{Mail, Mailbox};
use raidcore::buf::{Slab, SlabConfig};
use raidcore::time::Clock;
use raidcore::uring::{Ring, RingConfig, Waker};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// The shape of a reactor.
#[derive(Clone, Debug)]
pub struct ReactorConfig {
    /// Name of the thread, at most 15 bytes.
    pub name: String,
    /// The ring.
    pub ring: RingConfig,
    /// Memory for requests; half of it is for connections, the rest for the devices' own work.
    pub slab: SlabConfig,
    /// Most connections at once; further clients wait in the listen queues.
    pub max_connections: usize,
    /// How long a device may take for a request.
    pub request_timeout: Duration,
    /// How long a client may hold memory without taking or giving a byte while others wait for memory.
    pub stall_timeout: Duration,
    /// What one client may use.
    pub clients: ClientLimits,
}

impl ReactorConfig {
    /// For a server: 192 MiB of memory, 4096 connections, of which an idle one takes 4 KiB.
    pub fn server() -> ReactorConfig {
        ReactorConfig {
            name: "nbd-reactor".to_owned(),
            ring: RingConfig::default(),
            slab: SlabConfig::server(),
            max_connections: DEFAULT_CONNECTIONS,
            request_timeout: REQUEST_TIMEOUT,
            stall_timeout: STALL_TIMEOUT,
            clients: ClientLimits::default(),
        }
    }

    /// Refuses what cannot work, as [`Reactor::spawn`] does.
    pub fn check(&self) -> Result<(), SpawnError> {
        host::check(self)
    }

    /// For tests and small embedders: 11 MiB of memory, 32 connections.
    pub fn small() -> ReactorConfig {
        ReactorConfig { slab: SlabConfig::small(), max_connections: 32, ..ReactorConfig::server() }
    }
}

/// What an engine is built on: the reactor's ring, its memory and its clock.
pub struct Io {
    /// The ring; files opened on it are driven by the reactor.
    pub ring: Ring,
    /// The memory.
    pub slab: Slab,
    /// The clock, refreshed once a turn.
    pub clock: Clock,
}

/// Why a reactor did not start.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The configuration cannot work.
    #[error("reactor configuration: {0}")]
    Config(String),
    /// The system gives no thread, ring or memory.
    #[error("cannot start a reactor: {0}")]
    Io(#[from] std::io::Error),
    /// The engine could not be built.
    #[error("{0}")]
    Engine(Box<dyn std::error::Error + Send + Sync>),
}

/// Why a call has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The reactor has stopped, or has died.
    #[error("the reactor has stopped")]
    Gone,
    /// The reactor did not come to it in time. The call may still run.
    #[error("the reactor did not answer in time")]
    Timeout,
    /// Too many calls wait already.
    #[error("too many calls wait for the reactor")]
    Busy,
}

/// A running reactor. Dropping it stops the reactor without grace and waits for its thread.
pub struct Reactor<E> {
    handle: ReactorHandle<E>,
    thread: Option<JoinHandle<()>>,
}

/// The way to a reactor from other threads. Clones reach the same one.
pub struct ReactorHandle<E> {
    mail: SyncSender<Mail<E>>,
    waker: Waker,
}

impl<E> Clone for ReactorHandle<E> {
    fn clone(&self) -> ReactorHandle<E> {
        ReactorHandle { mail: self.mail.clone(), waker: self.waker.clone() }
    }
}

impl<E: Engine + 'static> Reactor<E> {
    /// Starts a thread with a ring and lets `build` make its engine there.
    pub fn spawn<B>(config: ReactorConfig, build: B) -> Result<Reactor<E>, SpawnError>
    where
        B: FnOnce(&Io) -> Result<E, Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        config.check()?;
        let (mail, mailbox) = mailbox::channel();
        let (started, starting) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(config.name.clone())
            .spawn(move || run(config, build, mailbox, &started))?;
        match starting.recv() {
            Ok(Ok(waker)) => Ok(Reactor { handle: ReactorHandle { mail, waker }, thread: Some(thread) }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(SpawnError::Io(std::io::Error::other("the reactor's thread died at its start"))),
        }
    }
}

impl<E> Reactor<E> {
    /// A handle for another thread.
    pub fn handle(&self) -> ReactorHandle<E> {
        self.handle.clone()
    }

    /// Waits until the reactor has stopped: somebody must have called [`ReactorHandle::stop`].
    pub fn join(mut self) {
        self.join_thread();
    }

    fn join_thread(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the reactor has panicked");
        }
    }
}

impl<E> Drop for Reactor<E> {
    fn drop(&mut self) {
        if self.thread.is_some() {
            // Gone already, or stops now; either way the thread ends.
            if let Err(error) = self.handle.post(Box::new(|host| host.stop_now())) {
                tracing::trace!(%error, "stop");
            }
            self.join_thread();
        }
    }
}

impl<E> ReactorHandle<E> {
    /// Runs `act` on the reactor's thread and returns its answer. It must not block: everything stands still
    /// meanwhile.
    pub fn call<R, F>(&self, act: F) -> Result<R, CallError>
    where
        R: Send + 'static,
        F: FnOnce(&mut Host<E>) -> R + Send + 'static,
    {
        let (answer, answered) = sync_channel(1);
        self.post(Box::new(move |host| {
            // The caller may have given up waiting.
            drop(answer.send(act(host)));
        }))?;
        wait(&answered, CALL_TIMEOUT)
    }

    /// Stops the reactor: no further clients and requests; what is in flight is finished and answered within
    /// `drain`, connections are closed, the exports flushed, the engine stopped. Returns when that is done, or
    /// when `drain` is over and what then hung was given up. A second stop waits for the first.
    pub fn stop(&self, drain: Duration) -> Result<StopReport, CallError> {
        self.stop_within(StopLimits::each(drain))
    }

    /// As [`ReactorHandle::stop`], with limits of their own for clients and devices.
    pub fn stop_within(&self, limits: StopLimits) -> Result<StopReport, CallError> {
        let (answer, answered) = sync_channel(1);
        self.post(Box::new(move |host| host.begin_stop(limits, answer)))?;
        let most = limits.devices.saturating_mul(2).saturating_add(limits.clients);
        wait(&answered, most.saturating_add(CALL_TIMEOUT))
    }

    fn post(&self, mail: Mail<E>) -> Result<(), CallError> {
        mailbox::post(&self.mail, mail)?;
        self.waker.wake();
        Ok(())
    }
}

fn wait<R>(answered: &Receiver<R>, limit: Duration) -> Result<R, CallError> {
    use std::sync::mpsc::RecvTimeoutError;
    answered.recv_timeout(limit).map_err(|error| match error {
        RecvTimeoutError::Timeout => CallError::Timeout,
        RecvTimeoutError::Disconnected => CallError::Gone,
    })
}

/// The reactor's thread.
fn run<E: Engine, B>(
    config: ReactorConfig,
    build: B,
    mailbox: Mailbox<E>,
    started: &SyncSender<Result<Waker, SpawnError>>,
) where
    B: FnOnce(&Io) -> Result<E, Box<dyn std::error::Error + Send + Sync>>,
{
    let begun = begin(&config).and_then(|io| {
        let engine = build(&io).map_err(SpawnError::Engine)?;
        Ok((io.ring.waker(), Host::new(&config, io, engine)))
    });
    let (answer, host) = match begun {
        Ok((waker, host)) => (Ok(waker), Some(host)),
        Err(error) => (Err(error), None),
    };
    if started.send(answer).is_ok()
        && let Some(mut host) = host
    {
        turn::run(&mut host, &mailbox);
        let stopping = std::mem::replace(&mut host.stopping, stop::Stopping::No);
        drop(host);
        stopping.answer();
    }
}

fn begin(config: &ReactorConfig) -> Result<Io, SpawnError> {
    let clock = Clock::monotonic();
    clock.refresh();
    let slab = Slab::new(&config.slab)?;
    let standing = config.ring.standing.saturating_add(host::standing(config));
    let ring = Ring::new(&RingConfig { standing, ..config.ring.clone() }, &clock, &slab)?;
    tracing::info!(features = %ring.features(), "reactor starts");
    Ok(Io { ring, slab, clock })
}
