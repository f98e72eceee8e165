//! What the daemon is asked to do beside serving, by signals and by the control socket, in one queue.
//!
//! The first SIGINT or SIGTERM asks for a clean stop; a second one ends the process at once, for an administrator who
//! sends it has lost patience with whatever the clean stop waits for. SIGHUP asks to read again what can be read again.
//!
//! Signals within [`ONE_REQUEST`] of the first are the same request: `timeout` signals its child and then its group, and
//! a shell may pass on what the terminal has sent to both already.

use crate::failure::{Context, Outcome};
use crate::log;
use crate::succession::Heir;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Signals that come this close together are one request.
const ONE_REQUEST: Duration = Duration::from_secs(1);
/// Wishes that may wait. One more of a kind that waits already would change nothing.
const MAX_WISHES: usize = 16;

/// What the daemon is asked to do.
pub enum Wish {
    /// Stop cleanly.
    Stop,
    /// Read again what can be read again.
    Reload,
    /// Hand over to a new process.
    HandOver(Box<Heir>),
}

/// The queue.
pub struct Wishes {
    inbox: Receiver<Wish>,
    /// The way into it.
    pub post: SyncSender<Wish>,
    /// To be set while everything is stopped and marked clean, and only the end of the process is missing.
    pub is_clean: Arc<AtomicBool>,
}

impl Wishes {
    /// From now on signals are wishes, told by a thread of its own; on a second one to stop the process is gone, as
    /// far as the kernel lets it.
    pub fn listen() -> Outcome<Wishes> {
        let (post, inbox) = sync_channel(MAX_WISHES);
        let is_clean = Arc::new(AtomicBool::new(false));
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot set up signals")?;
        std::thread::Builder::new()
            .name("signals".to_string())
            .spawn({
                let (post, is_clean) = (post.clone(), Arc::clone(&is_clean));
                move || watch(&mut signals, &post, &is_clean)
            })
            .context("cannot start the signal thread")?;
        Ok(Wishes { inbox, post, is_clean })
    }

    /// The next wish, if there is one within `patience`.
    pub fn next(&self, patience: Duration) -> Option<Wish> {
        match self.inbox.recv_timeout(patience) {
            Ok(wish) => Some(wish),
            Err(RecvTimeoutError::Timeout) => None,
            // Never: this holds a sender itself.
            Err(RecvTimeoutError::Disconnected) => Some(Wish::Stop),
        }
    }

    /// Whether a stop is among the wishes that wait. The others are void where this is asked.
    pub fn stop_is_among(&self) -> bool {
        std::iter::from_fn(|| self.next(Duration::ZERO)).any(|wish| matches!(wish, Wish::Stop))
    }
}

fn watch(signals: &mut Signals, post: &SyncSender<Wish>, is_clean: &AtomicBool) {
    let mut first: Option<Instant> = None;
    for signal in signals.forever() {
        let wish = match (signal, first) {
            (SIGHUP, None) => Wish::Reload,
            (SIGHUP, Some(_)) => continue,
            (_, None) => {
                first = Some(Instant::now());
                Wish::Stop
            }
            (_, Some(first)) if first.elapsed() >= ONE_REQUEST => {
                return end_at_once(is_clean.load(Ordering::Acquire));
            }
            (_, Some(_)) => continue,
        };
        let is_stop = matches!(wish, Wish::Stop);
        match post.try_send(wish) {
            Ok(()) if is_stop => {
                tracing::info!("stopping; a second signal stops at once, and the arrays will be resynced");
            }
            Ok(()) => {}
            // Nobody takes wishes any more, which is what a stop is for.
            Err(_) if is_stop => tracing::error!("the daemon does not react; a second signal ends it"),
            Err(_) => {}
        }
    }
}

fn end_at_once(is_clean: bool) {
    let (sentence, status) = match is_clean {
        true => ("everything is stopped and marked clean already", 0),
        false => ("stopped at once; the arrays will be resynced when they are served again", 1),
    };
    log::end(Some(sentence));
    std::process::exit(status);
}
