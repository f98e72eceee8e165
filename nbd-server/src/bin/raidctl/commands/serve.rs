//! `raidctl serve`: assembles the arrays on the devices and serves them until it is stopped, on sockets of its own, of
//! systemd, or of the daemon that it takes over from.

use crate::activation::Activation;
use crate::cli::ServeArgs;
use crate::compose::{Places, Plan, uris};
use crate::config::ServeConfig;
use crate::control::socket::{OwnedSocket, default_control, default_listen};
use crate::daemon::{Daemon, Reload, Setup};
use crate::devices::{Bench, leads_nowhere, refuse_twins};
use crate::failure::{Failure, Outcome};
use crate::listen;
use crate::notify::Notifier;
use crate::output::say;
use crate::takeover::Takeover;
use crate::tls::Tls;
use nbd_server::listen::{ListenAddr, Listener};
use std::sync::Arc;

/// Serves until SIGTERM or SIGINT, or until another process takes over.
pub fn run(args: &ServeArgs) -> Outcome<()> {
    let activation = Activation::from_env()?;
    let config = ServeConfig::load(args)?;
    let daemon = match args.takeover {
        true => take_over(args, config, activation)?,
        false => start(args, config, activation)?,
    };
    // For people, and for scripts that wait until the daemon is ready.
    for export in daemon.exports() {
        for uri in uris(&daemon.places().listen, &export.name) {
            say(format!("{} {uri}", export.name))?;
        }
    }
    daemon.run()
}

fn start(args: &ServeArgs, config: ServeConfig, activation: Activation) -> Outcome<Daemon> {
    let Activation { mut listen, control } = activation;
    let of_manager = addresses(&listen);
    let mut places = config.listen;
    if places.is_empty() && listen.is_empty() {
        places.push(ListenAddr::Unix(default_listen()));
    }
    let mut tls = config.tls;
    tls.reread()?;
    listen = listen.into_iter().map(|socket| tls.over(socket)).collect();
    bind_others(&mut listen, &places, &tls)?;
    tls.check(listen.iter().map(|socket| (socket.addr(), socket.tls())))?;
    let control = match control {
        Some(control) => control,
        None => OwnedSocket::bind(&config.control.unwrap_or_else(default_control))?,
    };
    Daemon::start(Setup {
        plan: Plan {
            devices: config.devices,
            force: args.force,
            required: Vec::new(),
            policy: config.policy,
            tls,
        },
        places: Places { listen, control: Arc::new(control), of_manager },
        drain: args.drain,
        notifier: Notifier::from_env(),
        on_reload: on_reload(args),
    })
}

/// Listens at those of `places` that no socket of `listen` is at.
fn bind_others(listen: &mut Vec<Listener>, places: &[ListenAddr], tls: &Tls) -> Outcome<()> {
    for place in places {
        if !listen.iter().any(|listener| listener.addr() == place) {
            // A free port has another address than the one that was asked for.
            listen.push(listen::bind(place)?.with_tls(tls.mode_at(place)));
        }
    }
    Ok(())
}

/// What can be found wrong is found before the running daemon lets go.
fn take_over(args: &ServeArgs, config: ServeConfig, activation: Activation) -> Outcome<Daemon> {
    let control = config.control.unwrap_or_else(default_control);
    let mut takeover = Takeover::begin(&control)?;
    let devices = takeover.with_devices_in_use(&config.devices);
    refuse_twins(&devices)?;
    if let Some(missing) = config.devices.iter().find(|device| leads_nowhere(device)) {
        return Err(Failure::new(format!("{}: no such device: nothing was taken over", missing.display())));
    }
    // Memory and io_uring are there.
    drop(Bench::new()?);
    let mut listen: Vec<Listener> =
        activation.listen.into_iter().filter(|socket| !takeover.has(socket.addr())).collect();
    let mut tls = config.tls;
    tls.reread()?;
    tls.inherit(&takeover.offer().tls)?;
    listen = listen.into_iter().map(|socket| tls.over(socket)).collect();
    let mut of_manager = addresses(&listen);
    let others: Vec<ListenAddr> =
        config.listen.iter().filter(|place| !takeover.has(place)).cloned().collect();
    bind_others(&mut listen, &others, &tls)?;
    let required = takeover.offer().arrays.clone();
    let had = takeover.places()?;
    // A place that is not configured may be the service manager's, and then it is kept.
    let kept = had.iter().filter(|place| tls.certificates().is_some() || keeps(&config.listen, place));
    let kept = kept.map(|place| (place, tls.mode_at(place)));
    tls.check(listen.iter().map(|socket| (socket.addr(), socket.tls())).chain(kept))?;

    let inheritance = takeover.release()?;
    let mut owned: Vec<bool> = listen.iter().map(Listener::owns_file).collect();
    let mut closed = Vec::new();
    for (socket, passed) in inheritance.listen {
        if passed.of_manager {
            of_manager.push(socket.addr().clone());
        } else if !keeps(&config.listen, socket.addr()) {
            closed.push((socket, passed.owns_file));
            continue;
        }
        listen.push(tls.over(socket));
        owned.push(passed.owns_file);
    }
    let (control, owns_control) = inheritance.control;
    let mut daemon = Daemon::start(Setup {
        plan: Plan { devices, force: args.force, required, policy: config.policy, tls },
        places: Places { listen, control: Arc::new(control), of_manager },
        drain: args.drain,
        notifier: inheritance.notifier,
        on_reload: on_reload(args),
    })?;
    if takeover.finish() {
        daemon.ask_to_stop();
    }
    daemon.own_files(&owned, owns_control);
    for (mut socket, own) in closed {
        tracing::info!("no longer listening at {}", socket.addr());
        socket.own_file(own);
    }
    Ok(daemon)
}

/// True if a place of the daemon before is listened at further, as the configuration has it.
fn keeps(configured: &[ListenAddr], place: &ListenAddr) -> bool {
    configured.is_empty() || configured.contains(place)
}

fn addresses(listen: &[Listener]) -> Vec<ListenAddr> {
    listen.iter().map(|listener| listener.addr().clone()).collect()
}

/// Of what `serve` reads at its start, who may use which export is read again.
fn on_reload(args: &ServeArgs) -> Option<Reload> {
    let args = args.clone();
    Some(Box::new(move || {
        let policy = ServeConfig::load(&args)?.policy;
        Ok((policy, "who may use which export is read again".to_string()))
    }))
}
