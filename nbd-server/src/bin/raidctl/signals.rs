//! SIGINT and SIGTERM as events. The first asks for a clean stop; the second ends the process at once, for an
//! administrator who sends it has lost patience with whatever the clean stop waits for.

use crate::failure::{Context, Outcome};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::sync::mpsc::{Receiver, channel};

/// From now on the first signal is told through the channel, by a thread of its own; on the second one the process is
/// gone.
pub fn stop_on_signal() -> Outcome<Receiver<()>> {
    let (stop, stopped) = channel();
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot set up signals")?;
    std::thread::Builder::new()
        .name("signals".to_string())
        .spawn(move || {
            let mut arrivals = signals.forever();
            if arrivals.next().is_some() {
                tracing::info!("stopping; a second signal stops at once, and the arrays will be resynced");
                if stop.send(()).is_err() {
                    tracing::debug!("the daemon is stopping already");
                }
            }
            if arrivals.next().is_some() {
                eprintln!("raidctl: stopped at once; the arrays will be resynced when they are served again");
                std::process::exit(1);
            }
        })
        .context("cannot start the signal thread")?;
    Ok(stopped)
}
