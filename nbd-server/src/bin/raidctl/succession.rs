//! The old process's side of a takeover: what it offers, whom it hands over to, and how it knows that the new process
//! has ended when it does not do what it came for.
//!
//! The conversation begins on a control thread, while clients are served as ever; once the new process asks to let go,
//! the daemon's own thread goes on with it ([`crate::daemon`]).

use crate::control::proto::{Reply, Request};
use crate::control::server::Desk;
use crate::control::takeover::{Answer, ArrayName, Ask, Offer, PROTOCOLS, Wire, is_timeout};
use crate::desk::FrontDesk;
use crate::events::EventLog;
use crate::house::Window;
use crate::report::StatusReport;
use crate::signals::Wish;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

/// How long the new process may look at its configuration before it asks to let go.
const THINK_LIMIT: Duration = Duration::from_secs(60);
/// How long a new process that has failed may take to end by itself, and to be dead once it was killed.
const END_LIMIT: Duration = Duration::from_secs(5);

/// A process that wants to take over.
pub struct Heir {
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// The conversation.
    pub wire: Wire,
    process: OwnedFd,
}

impl Heir {
    /// The process at the other end. It is known by a descriptor, so that no other process is ever meant.
    fn at(stream: &UnixStream, version: String) -> io::Result<Heir> {
        let peer = rustix::net::sockopt::socket_peercred(stream)?.pid;
        Ok(Heir {
            pid: peer.as_raw_nonzero().get().cast_unsigned(),
            version,
            wire: Wire::new(stream.try_clone()?)?,
            process: pidfd_open(peer, PidfdFlags::empty())?,
        })
    }

    /// Makes sure that the process has ended: it gets a moment, then it is killed. False if it is there still.
    pub fn end(self) -> bool {
        let Heir { wire, process, .. } = self;
        // It hears that nobody waits for it any more.
        drop(wire);
        if has_ended(&process) {
            return true;
        }
        if let Err(error) = pidfd_send_signal(&process, Signal::KILL) {
            tracing::debug!("kill: {error}");
        }
        has_ended(&process)
    }
}

fn has_ended(process: &OwnedFd) -> bool {
    let limit = Timespec { tv_sec: END_LIMIT.as_secs().cast_signed(), tv_nsec: 0 };
    let wait = || poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&limit));
    rustix::io::retry_on_intr(wait).is_ok_and(|ready| ready > 0)
}

/// What does not change while the daemon serves, of what it offers.
#[derive(Clone)]
pub struct Estate {
    /// Where it listens, as `--listen` takes it.
    pub listen: Vec<String>,
    /// Of these, where TLS is not off, and what it is.
    pub tls: BTreeMap<String, String>,
    /// How long it may take to let go.
    pub release_within: Duration,
    /// How long it then waits.
    pub serve_within: Duration,
    /// The interval of the service manager's watchdog.
    pub watchdog: Option<Duration>,
}

impl Estate {
    fn offer(&self, report: &StatusReport) -> Offer {
        Offer {
            protocol: PROTOCOLS[0],
            version: env!("CARGO_PKG_VERSION").to_string(),
            pid: std::process::id(),
            arrays: ArrayName::all(report),
            devices: devices_in_use(report),
            listen: self.listen.clone(),
            tls: self.tls.clone(),
            release_within_s: self.release_within.as_secs(),
            serve_within_s: self.serve_within.as_secs(),
            watchdog_us: self.watchdog.and_then(|interval| u64::try_from(interval.as_micros()).ok()),
        }
    }
}

/// The devices of all arrays, without those that have failed.
pub fn devices_in_use(report: &StatusReport) -> Vec<String> {
    let members = report.arrays.iter().flat_map(|array| array.members.iter().chain(&array.spares));
    members.filter(|member| member.state != "faulty").filter_map(|member| member.device.clone()).collect()
}

/// The desk of a daemon: the front desk, and beside it the one where a new process asks to take over.
pub struct SuccessionDesk {
    front: FrontDesk,
    window: Arc<Window>,
    estate: Estate,
    post: SyncSender<Wish>,
}

impl SuccessionDesk {
    /// Offers `estate`, and posts whoever asks for it.
    pub fn new(
        front: FrontDesk,
        window: Arc<Window>,
        estate: Estate,
        post: SyncSender<Wish>,
    ) -> SuccessionDesk {
        SuccessionDesk { front, window, estate, post }
    }

    fn converse(&self, stream: &UnixStream, protocols: &[u32], version: String) -> io::Result<()> {
        let mut heir = Heir::at(stream, version)?;
        if !protocols.contains(&PROTOCOLS[0]) {
            let own = env!("CARGO_PKG_VERSION");
            let why = format!("version {own} cannot be taken over by version {}: restart it", heir.version);
            return heir.wire.send(&Answer::Error(why), &[]);
        }
        let offer = self.estate.offer(&self.window.status.lock());
        heir.wire.send(&Answer::Offer(offer), &[])?;
        // An end here is a new process that found something wrong, or that only looked: nothing has happened.
        match heir.wire.receive(THINK_LIMIT) {
            Ok(Some((Ask::Release, _))) => {}
            Err(error) if !is_timeout(&error) => return Err(error),
            _ => return Ok(()),
        }
        match self.post.try_send(Wish::HandOver(Box::new(heir))) {
            Ok(()) => Ok(()),
            Err(_) => Err(io::Error::other("the daemon has too much to do")),
        }
    }
}

impl Desk for SuccessionDesk {
    fn answer(&self, request: Request) -> Reply {
        self.front.answer(request)
    }

    fn events(&self) -> &EventLog {
        self.front.events()
    }

    fn succeed(&self, stream: &UnixStream, ask: Ask) -> io::Result<()> {
        match ask {
            Ask::Takeover { protocols, version } => self.converse(stream, &protocols, version),
            // Out of place: the connection is closed.
            Ask::Release | Ask::Serving => Ok(()),
        }
    }
}
