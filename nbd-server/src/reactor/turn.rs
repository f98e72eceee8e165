//! The loop of a reactor.
//!
//! One turn: what the kernel completed -> calls -> devices, as long as their completions lead to new requests ->
//! every connection that changed is settled: one send with all its replies, one receive. Then the ring is entered
//! once: it takes all of that to the kernel and waits if there is nothing else to do.

use super::host::Host;
use super::mailbox::Mailbox;
use super::{accept, stop};
use crate::conn::{Conn, connection_of, connection_of_token};
use crate::engine::Engine;
use crate::limits::{MAILBOX_CALLS, MAX_ROUNDS};
use raidcore::dev::Completion;
use raidcore::time::Time;

/// Runs until the host has stopped.
pub(super) fn run<E: Engine>(host: &mut Host<E>, mailbox: &Mailbox<E>) {
    let mut done = Vec::new();
    while !host.stopping.is_done() {
        let may_block = !host.submitted && !host.waiting.has_untried();
        if let Err(error) = host.io.ring.enter(wake_at(host), may_block) {
            tracing::error!(%error, "the ring is broken: the reactor ends");
            return;
        }
        // What ended a sleep may be something of the devices that gives room back.
        host.happened = may_block;
        while let Some(event) = host.port.next() {
            host.happened = true;
            match event.token {
                token if accept::is_of_listener(token) => accept::on_event(host, event),
                token => {
                    host.with(connection_of_token(token), |conn, ctx| conn.on_event(event, ctx));
                }
            }
        }
        for call in mailbox.try_iter().take(MAILBOX_CALLS) {
            host.happened = true;
            call(host);
        }
        drive_devices(host, &mut done);
        let now = host.io.clock.now();
        host.close_late(now);
        host.cut_stalled(now);
        host.cut_drained(now);
        settle(host);
        // After settling, which may have seen the last connection off.
        stop::advance(host, now);
        if !host.stopping.has_begun() {
            let live = host.live();
            host.accepting.arm(&host.port, live, now);
        }
    }
}

fn wake_at<E: Engine>(host: &Host<E>) -> Option<Time> {
    let now = host.io.clock.now();
    let times = [
        host.engine.wake_at(),
        host.next_look(),
        host.accepting.wake_at(now),
        host.stopping.wake_at(),
        host.next_stall(),
        host.next_drain_end(),
    ];
    times.into_iter().flatten().min()
}

/// Moves the devices forward. A completion may make room for a parked request, and that may complete at once: so
/// it goes around a few times.
fn drive_devices<E: Engine>(host: &mut Host<E>, done: &mut Vec<Completion>) {
    for _ in 0..MAX_ROUNDS {
        host.submitted = false;
        host.engine.reap(done);
        while let Some((export, size_bytes)) = host.engine.resized() {
            if let Err(error) = host.resize_export(export, size_bytes) {
                tracing::warn!(%error, size_bytes, "a device has another size than its export");
            }
        }
        host.happened |= !done.is_empty();
        for completion in done.drain(..) {
            match connection_of(completion.tag) {
                stop::NO_CONNECTION => stop::flushed(host, completion),
                index => {
                    if !host.with(index, |conn, ctx| conn.complete(completion, ctx)) {
                        tracing::error!(index, "completion of no connection");
                    }
                }
            }
        }
        // Those that have waited come before those that met with something in this turn.
        let fresh = host.dirty.len();
        host.try_waiting();
        for at in 0..fresh {
            let index = host.dirty[at];
            if host.conn(index).is_some_and(Conn::is_stalled) {
                host.with(index, |conn, ctx| conn.advance(ctx));
            }
        }
        if !host.submitted {
            return;
        }
    }
}

/// Sends and receives for every connection that changed. Those that are being closed stay on the list; those that wait
/// for room are on a list of their own.
fn settle<E: Engine>(host: &mut Host<E>) {
    let dirty = std::mem::take(&mut host.dirty);
    let mut still = Vec::new();
    for index in dirty {
        host.with(index, |conn, ctx| conn.settle(ctx));
        if host.remove_if_gone(index) {
            continue;
        }
        if host.conn(index).is_some_and(|conn| conn.drain_until().is_some()) {
            still.push(index);
        } else {
            host.clean(index);
        }
    }
    if host.happened {
        host.waiting.try_all();
    }
    debug_assert!(host.dirty.is_empty(), "settling marks only what is marked");
    host.dirty = still;
}
