//! Stopping in order: listeners, connections, flushes, engine. Each step has an end.
//!
//! What a client sends once a stop has begun is not answered: its connection ends. `NBD_ESHUTDOWN` would be final, for the
//! kernel's driver and qemu turn it into an I/O error of whoever uses the device; where a connection ends they connect
//! again and repeat what has no answer, and a takeover lives of that. In the handshake `NBD_REP_ERR_SHUTDOWN` can only
//! answer an option. One that was taken up is answered; to wait for one more would let every silent client delay the
//! stop, for an answer that tells it no more than the end of the connection does.

use super::host::Host;
use crate::engine::Engine;
use raidcore::dev::{Completion, IoError, Op, Request, Tag};
use raidcore::time::Time;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

/// How a stop went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopReport {
    /// Connections that were cut because they did not come to an end in time.
    pub cut_connections: usize,
    /// Exports whose last flush failed: what was not flushed before may be lost.
    pub flush_errors: Vec<(String, IoError)>,
    /// Exports whose last flush did not end in time.
    pub unflushed: usize,
    /// The engine did not stop in time.
    pub engine_hung: bool,
}

impl StopReport {
    /// True if every client was answered and everything is durable.
    pub fn is_clean(&self) -> bool {
        *self == StopReport::default()
    }
}

/// How long a stop may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopLimits {
    /// For clients: to have answered what is in flight, and to have taken the answers.
    pub clients: Duration,
    /// For devices, twice: to flush, and to be closed. What is given up here costs a resync.
    pub devices: Duration,
}

impl StopLimits {
    /// The same for each step.
    pub fn each(limit: Duration) -> StopLimits {
        StopLimits { clients: limit, devices: limit }
    }
}

/// In place of a connection's number in the tags of the last flushes.
pub(super) const NO_CONNECTION: u16 = u16::MAX;

/// Where a stop stands.
pub(super) enum Stopping {
    No,
    Going(Box<Going>),
    /// The loop ends.
    Done(Option<Box<Going>>),
}

pub(super) struct Going {
    step: Step,
    /// How long flushing and closing may take, each.
    devices: Duration,
    until: Time,
    report: StopReport,
    /// Exports being flushed; the place is in the tag.
    flushing: Vec<Option<String>>,
    waiting: Vec<SyncSender<StopReport>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Connections,
    Flush,
    Engine,
}

impl Stopping {
    pub(super) fn has_begun(&self) -> bool {
        !matches!(self, Stopping::No)
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self, Stopping::Done(_))
    }

    pub(super) fn wake_at(&self) -> Option<Time> {
        match self {
            Stopping::Going(going) => Some(going.until),
            _ => None,
        }
    }

    /// Tells those who wait. To be called when the host is gone, so that its sockets and files are closed.
    pub(super) fn answer(self) {
        if let Stopping::Done(Some(going)) = self {
            for waiting in going.waiting {
                // Who waits no longer need not know.
                drop(waiting.send(going.report.clone()));
            }
        }
    }
}

impl<E> Host<E> {
    pub(super) fn begin_stop(&mut self, limits: StopLimits, waiting: SyncSender<StopReport>) {
        if let Stopping::Going(going) = &mut self.stopping {
            return going.waiting.push(waiting);
        }
        self.accepting.remove_all(&self.port);
        self.cut_connections = 0;
        self.close_where(|_| true);
        self.stopping = Stopping::Going(Box::new(Going {
            step: Step::Connections,
            devices: limits.devices,
            until: self.io.clock.now() + limits.clients,
            report: StopReport::default(),
            flushing: Vec::new(),
            waiting: vec![waiting],
        }));
    }

    pub(super) fn stop_now(&mut self) {
        self.stopping = Stopping::Done(None);
    }
}

/// Takes the next step of a stop when the last one is finished or out of time. Called once a turn.
pub(super) fn advance<E: Engine>(host: &mut Host<E>, now: Time) {
    let mut going = match std::mem::replace(&mut host.stopping, Stopping::No) {
        Stopping::Going(going) => going,
        other => {
            host.stopping = other;
            return;
        }
    };
    let late = now >= going.until;
    let next = match going.step {
        Step::Connections if host.live() == 0 || late => {
            going.report.cut_connections = host.cut_connections + host.live();
            host.kill_all();
            submit_flushes(host, &mut going);
            Some(Step::Flush)
        }
        Step::Flush if going.flushing.iter().all(Option::is_none) || late => {
            going.report.unflushed = going.flushing.iter().flatten().count();
            host.engine.begin_stop();
            Some(Step::Engine)
        }
        Step::Engine if host.engine.is_stopped() || late => {
            going.report.engine_hung = !host.engine.is_stopped();
            host.stopping = Stopping::Done(Some(going));
            return;
        }
        _ => None,
    };
    if let Some(step) = next {
        going.step = step;
        going.until = now + going.devices;
        // The step is looked at again before the reactor sleeps.
        host.submitted = true;
    }
    host.stopping = Stopping::Going(going);
}

fn submit_flushes<E: Engine>(host: &mut Host<E>, going: &mut Going) {
    let deadline = host.io.clock.now() + going.devices;
    let writable: Vec<_> = host.exports().iter().filter(|e| !e.geometry.read_only).cloned().collect();
    for export in writable {
        let tag = Tag(u64::from(NO_CONNECTION) << 48 | going.flushing.len() as u64);
        host.engine.submit(export.id, Request { tag, op: Op::Flush, deadline });
        going.flushing.push(Some(export.name));
    }
}

/// A last flush has ended.
pub(super) fn flushed<E>(host: &mut Host<E>, completion: Completion) {
    let Stopping::Going(going) = &mut host.stopping else { return };
    let place = going.flushing.get_mut((completion.tag.0 & u64::from(u32::MAX)) as usize);
    if let Some(name) = place.and_then(Option::take)
        && let Err(error) = completion.result
    {
        tracing::error!(export = %name, %error, "the last flush failed");
        going.report.flush_errors.push((name, error));
    }
}
