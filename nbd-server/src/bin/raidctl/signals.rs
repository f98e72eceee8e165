//! SIGINT and SIGTERM as events. The first asks for a clean stop; a second one ends the process at once, for an
//! administrator who sends it has lost patience with whatever the clean stop waits for.
//!
//! Signals within [`ONE_REQUEST`] of the first are the same request: `timeout` signals its child and then its group, and
//! a shell may pass on what the terminal has sent to both already.

use crate::failure::{Context, Outcome};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Signals that come this close together are one request.
const ONE_REQUEST: Duration = Duration::from_secs(1);

/// The request to stop, and what became of it.
pub struct StopRequest {
    /// Told of the first signal.
    pub stopped: Receiver<()>,
    /// To be set once everything is stopped and marked clean, and only the end of the process is missing.
    pub is_clean: Arc<AtomicBool>,
}

/// From now on the first signal is told through the channel, by a thread of its own; on a later one the process is
/// gone, as far as the kernel lets it.
pub fn stop_on_signal() -> Outcome<StopRequest> {
    let (stop, stopped) = channel();
    let is_clean = Arc::new(AtomicBool::new(false));
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot set up signals")?;
    std::thread::Builder::new()
        .name("signals".to_string())
        .spawn({
            let is_clean = Arc::clone(&is_clean);
            move || {
                let mut arrivals = signals.forever();
                if arrivals.next().is_none() {
                    return;
                }
                let first = Instant::now();
                tracing::info!("stopping; a second signal stops at once, and the arrays will be resynced");
                if stop.send(()).is_err() {
                    tracing::debug!("the daemon is stopping already");
                }
                if arrivals.any(|_| first.elapsed() >= ONE_REQUEST) {
                    end_at_once(is_clean.load(Ordering::Acquire));
                }
            }
        })
        .context("cannot start the signal thread")?;
    Ok(StopRequest { stopped, is_clean })
}

fn end_at_once(is_clean: bool) {
    if is_clean {
        eprintln!("raidctl: everything is stopped and marked clean already");
        std::process::exit(0);
    }
    eprintln!("raidctl: stopped at once; the arrays will be resynced when they are served again");
    std::process::exit(1);
}
