//! `raidctl serve`: assembles the arrays on the devices and serves them until it is stopped.

use crate::cli::ServeArgs;
use crate::compose::{Daemon, Setup, uris};
use crate::config::ServeConfig;
use crate::control::socket::{default_control, default_listen};
use crate::failure::Outcome;
use crate::listen;
use crate::output::say;
use nbd_server::listen::{ListenAddr, Listener};

/// Serves until SIGTERM or SIGINT.
pub fn run(args: &ServeArgs) -> Outcome<()> {
    let config = ServeConfig::load(args)?;
    let places = match config.listen.is_empty() {
        true => vec![ListenAddr::Unix(default_listen())],
        false => config.listen,
    };
    let listen: Vec<Listener> = places.iter().map(listen::bind).collect::<Outcome<_>>()?;
    let places: Vec<ListenAddr> = listen.iter().map(|listener| listener.addr().clone()).collect();
    let daemon = Daemon::start(Setup {
        devices: config.devices,
        listen,
        control: config.control.unwrap_or_else(default_control),
        force: args.force,
    })?;
    // For people, and for scripts that wait until the daemon is ready.
    for export in daemon.exports() {
        for uri in uris(&places, &export.name) {
            say(format!("{} {uri}", export.name))?;
        }
    }
    daemon.run()
}
